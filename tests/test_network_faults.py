"""Bad addresses, bad peers, TLS and proxies: the right typed error within its clock, and the next job works."""

import base64
import socket
import ssl
import threading
import time
from contextlib import contextmanager

import pytest
import trustme

from worker_adapters import (
    AuthenticationFailed,
    CapacityExceeded,
    EngineUnavailable,
    InvalidRequest,
    LlamaCppHttpAdapter,
    ModelNotFound,
    StreamTruncated,
    UnknownError,
    WorkerError,
    WorkerTimeout,
)
from worker_adapters.simulate import Fault, LlamaCppSimulator, SimServer
from worker_adapters.transport.network import Network

pytestmark = pytest.mark.llamacpp
TEXT = "".join(LlamaCppSimulator.__init__.__defaults__[0])
ONCE = {"attempts": 1}


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


def raised(adapter, **fields):
    with pytest.raises(WorkerError) as caught:
        adapter.submit("PROMPT-CANARY", **fields).result()
    assert "CANARY" not in str(caught.value) + repr(caught.value)
    return caught.value


class Names(Network):
    """A network in which names mean what the test says."""

    def __init__(self, *addresses):
        super().__init__()
        self.addresses = addresses

    def resolve(self, host, port):
        if not self.addresses:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, address) for address in self.addresses]


# --- addresses


def test_a_refused_port():
    """A port where nothing listens is EngineUnavailable, retriable, and says so."""
    with LlamaCppHttpAdapter(f"http://127.0.0.1:{free_port()}", retry=ONCE) as adapter:
        error = raised(adapter)
    assert type(error) is EngineUnavailable
    assert (error.phase, error.retriable) == ("connect", True)
    assert "nothing listens" in error.message


def test_an_unknown_name():
    """A name that DNS does not know is EngineUnavailable."""
    with LlamaCppHttpAdapter("http://engine.invalid:1", retry=ONCE, network=Names()) as adapter:
        error = raised(adapter)
    assert isinstance(error, EngineUnavailable)
    assert "the name is not known" in error.message


def test_dead_addresses_before_a_live_one():
    """Of several addresses, dead ones are passed over and the live one serves."""
    with LlamaCppSimulator() as server:
        network = Names(("127.0.0.1", free_port()), ("127.0.0.1", server.port))
        with LlamaCppHttpAdapter("http://engine:1", network=network) as adapter:
            assert adapter.submit("x").result().text == TEXT


def test_an_address_that_swallows_packets_starves_no_other():
    """An address that never answers gets its share of the connect clock, not all of it."""
    with LlamaCppSimulator() as server, socket.create_server(("127.0.0.1", 0), backlog=0) as hole:
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(hole.getsockname())
        network = Names(hole.getsockname(), ("127.0.0.1", server.port))
        with LlamaCppHttpAdapter("http://engine:1", network=network, timeouts={"connect": 1.0}) as adapter:
            assert adapter.submit("x").result().text == TEXT
        for filler in fillers:
            filler.close()


def test_only_dead_addresses():
    """When every address is dead, the error is one, and retriable."""
    network = Names(*[("127.0.0.1", free_port()) for _ in range(3)])
    with LlamaCppHttpAdapter("http://engine:1", retry=ONCE, network=network) as adapter:
        assert raised(adapter).retriable


def test_a_unix_socket(tmp_path):
    """``unix:///path`` reaches an engine through its socket; a missing one is EngineUnavailable."""
    path = str(tmp_path / "engine.sock")
    with LlamaCppSimulator(unix_path=path), LlamaCppHttpAdapter(f"unix://{path}") as adapter:
        assert adapter.submit("x").result().text == TEXT
        assert adapter.health().ready
        assert adapter.props().slots_total == 4
    with LlamaCppHttpAdapter(f"unix://{tmp_path}/none.sock", retry=ONCE) as adapter:
        assert isinstance(raised(adapter), EngineUnavailable)


def test_a_path_and_a_query_in_the_url_are_kept():
    """A base path stands before every request's own, a query after it; neither shows in a message."""
    with LlamaCppSimulator() as server:
        url = f"{server.url}/base/path?token=QUERY-SECRET-1"
        with LlamaCppHttpAdapter(url) as adapter:
            error = raised(adapter)
            assert isinstance(error, ModelNotFound)
            assert "QUERY-SECRET" not in str(error) + repr(adapter)
            assert not adapter.health().ready
        assert {request.target for request in server.requests} == {
            "/base/path/completion?token=QUERY-SECRET-1",
            "/base/path/health?token=QUERY-SECRET-1",
        }


# --- what answers there


@pytest.mark.parametrize(
    ("fault", "kind", "status"),
    [
        (Fault.html(502), EngineUnavailable, 502),
        (Fault.html(200), UnknownError, 200),
        (
            Fault.json_200({"error": {"code": 400, "message": "no", "type": "invalid_request_error"}}),
            InvalidRequest,
            400,
        ),
        (Fault.json_200({"hello": "world"}), UnknownError, 200),
        (Fault.wrong_content_type("text/plain"), UnknownError, 200),
        (Fault.gzip(), UnknownError, 200),
        (Fault.redirect(), UnknownError, 307),
        (Fault.status(401), AuthenticationFailed, 401),
        (Fault.status(403), AuthenticationFailed, 403),
        (Fault.status(404), ModelNotFound, 404),
        (Fault.status(408, body="x"), WorkerTimeout, 408),
        (Fault.status(413, body="x"), InvalidRequest, 413),
        (Fault.status(422, body="x"), InvalidRequest, 422),
        (Fault.status(429, body="x"), CapacityExceeded, 429),
        (Fault.status(500), EngineUnavailable, 500),
        (Fault.status(501), InvalidRequest, 501),
        (Fault.status(503), EngineUnavailable, 503),
        (Fault.status(504, body="x"), WorkerTimeout, 504),
        (Fault.close_before_head(), EngineUnavailable, None),
        (Fault.reset_before_head(), EngineUnavailable, None),
        (Fault.clean_end_after(0), StreamTruncated, None),
        (Fault.clean_end_after(2), StreamTruncated, None),
        (Fault.cut_after(2), StreamTruncated, None),
        (Fault.cut_after(2, rst=True), StreamTruncated, None),
        (Fault.error_after(0), EngineUnavailable, 500),
        (Fault.error_after(2), EngineUnavailable, 500),
        (Fault.error_after(2, old=True), EngineUnavailable, 500),
        (Fault.garbage_after(2), UnknownError, None),
        (Fault.garbage_after(2, b"data: " + b"[" * 100_000 + b"\n\n"), UnknownError, None),
        (Fault.garbage_after(2, b'data: {"content":"a","index":' + b"9" * 10_000 + b"}\n\n"), UnknownError, None),
        (Fault.garbage_after(2, b"data: " + b"x" * 20_000_000), UnknownError, None),
        (Fault.garbage_after(1, b"data: 7\n\n"), UnknownError, None),
    ],
)
def test_an_engine_that_answers_wrongly(fault, kind, status):
    """Whatever answers in the engine's place, the error is typed, the connection closed, and the next job works."""
    with LlamaCppSimulator() as server, LlamaCppHttpAdapter(server.url, retry=ONCE) as adapter:
        adapter.submit("x").result()
        server.misbehave(fault)
        error = raised(adapter)
        assert type(error) is kind, repr(error)
        assert error.status == status
        assert server.wait_idle(5)
        assert adapter.submit("x").result().text == TEXT


@pytest.mark.parametrize(
    "fault",
    [
        Fault.drip(),
        Fault.split_writes((1, 7, 2), extension=b";a=b", trailers=b"X-T: 1\r\n"),
        Fault.close_delimited(),
        Fault.wrong_content_type("text/event-stream;"),
        Fault.wrong_content_type("Text/Event-Stream; charset=utf-8"),
        Fault.extra_after_end(),
        Fault.continue_100(),
        Fault.cut_after("finish"),
    ],
)
def test_an_engine_that_answers_oddly(fault):
    """What is odd but right is read as if it were plain."""
    with LlamaCppSimulator() as server, LlamaCppHttpAdapter(server.url, retry=ONCE) as adapter:
        server.misbehave(fault)
        assert adapter.submit("x").result().text == TEXT
        assert adapter.submit("x").result().text == TEXT


def test_invalid_utf8_becomes_replacement_characters():
    """Bytes that are no UTF-8 inside an event's text become U+FFFD."""
    payload = b'data: {"index":0,"content":"a\xffb","stop":false}\n\n'
    with LlamaCppSimulator() as server, LlamaCppHttpAdapter(server.url, retry=ONCE) as adapter:
        server.misbehave(Fault.garbage_after(1, payload))
        assert "a\ufffdb" in adapter.submit("x").result().text


def test_the_answer_cut_at_every_byte():
    """An answer cut anywhere is a typed error or, after the engine's reason for ending, a good end; never a hang."""
    with LlamaCppSimulator(tokens=("a", "b")) as server, LlamaCppHttpAdapter(server.url, retry=ONCE) as adapter:
        adapter.submit("x").result()
        offset, whole = 0, False
        while not whole:
            server.misbehave(Fault.cut_at(offset))
            began = time.monotonic()
            frames = list(adapter.submit("x").relay())
            assert time.monotonic() - began < 5
            if frames[-1].type == "error":
                assert isinstance(frames[-1].to_exception(), EngineUnavailable)
            else:
                assert "".join(f.text for f in frames if f.type == "token") == "ab"
                whole = True
            offset += 1
        assert offset > 300
        assert adapter.submit("x").result().text == "ab"


def test_retry_after_is_waited_for_and_capped():
    """Retry-After within the cap is waited for; beyond it the error comes at once and carries it."""
    with LlamaCppSimulator() as server, LlamaCppHttpAdapter(server.url, retry={"base": 0.001}) as adapter:
        server.misbehave(Fault.status(503, headers=[("Retry-After", "0.3")]))
        began = time.monotonic()
        assert adapter.submit("x").result().text == TEXT
        assert time.monotonic() - began >= 0.3
        server.misbehave(Fault.status(429, body="busy", headers=[("Retry-After", "9999")]))
        error = raised(adapter)
        assert (type(error), error.retry_after_ms) == (CapacityExceeded, 9_999_000)
        server.misbehave(Fault.status(503, headers=[("Retry-After", "20")]))
        error = raised(adapter, timeouts={"total": 5})
        assert (type(error), error.retry_after_ms) == (EngineUnavailable, 20_000)


def test_an_engine_that_is_down_is_not_stormed():
    """With the engine refusing for good, retries are bounded by the budget: at most 1.1 requests a job."""
    with LlamaCppSimulator(loading=True) as server, LlamaCppHttpAdapter(server.url, retry={"base": 0.0001}) as adapter:
        for _ in range(100):
            assert raised(adapter).retriable
        assert server.generation_requests <= 110


# --- TLS


@contextmanager
def tls_simulator(name="127.0.0.1"):
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    with LlamaCppSimulator(ssl_context=context) as server, authority.cert_pem.tempfile() as ca:
        yield server.url.replace("http://", "https://"), ca


def test_tls_verified():
    """With the CA given, jobs and control calls go through TLS."""
    with tls_simulator() as (url, ca), LlamaCppHttpAdapter(url, ca=ca) as adapter:
        assert adapter.submit("x").result().text == TEXT
        assert adapter.health().ready
        assert adapter.props().slots_total == 4


def test_tls_untrusted():
    """A certificate that nobody vouches for, or of another name, is refused, and not retried."""
    with tls_simulator() as (url, _), LlamaCppHttpAdapter(url) as adapter:
        error = raised(adapter)
        assert type(error) is EngineUnavailable
        assert "not trusted" in error.message
        assert not error.retriable
        assert adapter.health().state == "unhealthy"
    with tls_simulator("other.example") as (url, ca), LlamaCppHttpAdapter(url, ca=ca) as adapter:
        assert "not trusted" in raised(adapter).message


def test_tls_unverified_on_request():
    """``verify=False`` takes any certificate."""
    with tls_simulator() as (url, _), LlamaCppHttpAdapter(url, verify=False) as adapter:
        assert adapter.submit("x").result().text == TEXT


def test_cancel_over_tls():
    """A cancel frees a reader blocked inside TLS, and the server sees the close."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with LlamaCppSimulator(ssl_context=context) as server, authority.cert_pem.tempfile() as ca:
        url = server.url.replace("http://", "https://")
        server.misbehave(Fault.silent_after(2))
        with LlamaCppHttpAdapter(url, ca=ca) as adapter:
            stream = adapter.submit("x")
            for _ in range(3):
                next(stream)
            threading.Timer(0.05, stream.cancel).start()
            assert [frame.type for frame in stream] == ["end"]
            assert server.wait_idle(5)


# --- proxies


@contextmanager
def proxy(password=None):
    """A CONNECT and plain proxy that sends everything to one simulator; gives its URL and what was asked of it."""
    asked = []

    def handle(exchange):
        request = exchange.request
        asked.append((request.method, request.target))
        if password is not None:
            want = "Basic " + base64.b64encode(f"user:{password}".encode()).decode()
            if request.header("Proxy-Authorization") != want:
                exchange.respond(407, [("Proxy-Authenticate", "Basic")], b"")
                return
        exchange.respond(502, [("Content-Type", "text/html")], b"<h1>no</h1>")

    with SimServer(handle) as server:
        yield server.url, asked


def test_a_proxy_is_asked_only_for_what_is_not_loopback():
    """A configured proxy gets requests for other hosts in absolute form, and never those for this machine."""
    with proxy() as (url, asked), LlamaCppSimulator() as server:
        with LlamaCppHttpAdapter(server.url, proxy=url) as adapter:
            assert adapter.submit("x").result().text == TEXT
        assert asked == []
        with LlamaCppHttpAdapter("http://engine.example:8081/v", proxy=url, retry=ONCE) as adapter:
            assert raised(adapter).status == 502
        assert asked == [("POST", "http://engine.example:8081/v/completion")]


def test_a_proxy_that_refuses_to_tunnel():
    """CONNECT goes to the proxy; its refusal is EngineUnavailable and names the proxy."""
    with proxy() as (url, asked), LlamaCppHttpAdapter("https://engine.example", proxy=url, retry=ONCE) as adapter:
        error = raised(adapter)
        assert type(error) is EngineUnavailable
        assert "502" in error.message
        assert url.removeprefix("http://") in error.message
        assert asked == [("CONNECT", "engine.example:443")]


def test_a_proxy_that_wants_a_password():
    """407 is AuthenticationFailed; the password that is given is sent, and never shown."""
    with proxy("PROXY-SECRET-9") as (url, asked):
        with LlamaCppHttpAdapter("https://engine.example", proxy=url, retry=ONCE) as adapter:
            assert isinstance(raised(adapter), AuthenticationFailed)
        given = url.replace("http://", "http://user:PROXY-SECRET-9@")
        with LlamaCppHttpAdapter("https://engine.example", proxy=given, retry=ONCE) as adapter:
            error = raised(adapter)
            assert type(error) is EngineUnavailable
            assert "PROXY-SECRET" not in str(error) + repr(adapter)
        assert len(asked) == 2


def test_the_environment_names_no_proxy(monkeypatch):
    """Proxy variables of the environment are not obeyed: a proxy is used only if it is given."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("no_proxy", raising=False)
    with LlamaCppSimulator() as server, LlamaCppHttpAdapter(server.url) as adapter:
        assert adapter.submit("x").result().text == TEXT
        assert adapter.health().ready


# --- keeping connections


class KeepingAdapter(LlamaCppHttpAdapter):
    keeps_streams = True


def test_connections_are_reused():
    """Jobs one after the other share a connection, where the engine keeps it."""
    with LlamaCppSimulator(close_after_stream=False) as server, KeepingAdapter(server.url) as adapter:
        for _ in range(20):
            adapter.submit("x").result()
        assert server.connections <= 2


def test_an_idle_connection_that_the_server_closed_is_not_used():
    """A connection that died in the pool is noticed before it is used: no error, one request a job."""
    with (
        LlamaCppSimulator(close_after_stream=False, idle_timeout=0.05) as server,
        KeepingAdapter(server.url) as adapter,
    ):
        for number in range(4):
            adapter.submit("x").result()
            assert server.wait_for(lambda: server.connections_open == 0, 5)
            assert server.generation_requests == number + 1


def test_bytes_after_the_end_spoil_the_connection():
    """A connection on which bytes came after the answer serves no other job."""
    with LlamaCppSimulator(close_after_stream=False) as server, KeepingAdapter(server.url) as adapter:
        adapter.submit("x").result()
        server.misbehave(Fault.extra_after_end())
        adapter.submit("x").result()
        assert adapter.submit("x").result().text == TEXT
        assert server.violations == ()


def test_the_server_s_keep_alive_is_obeyed():
    """``Keep-Alive: max`` counts down, and a time-out of a second is too short to reuse."""
    with LlamaCppSimulator(close_after_stream=False, max_requests=3) as server, KeepingAdapter(server.url) as adapter:
        for _ in range(9):
            assert adapter.submit("x").result().text == TEXT
        assert server.connections >= 3


# --- control calls


def test_a_control_call_has_one_deadline():
    """A server that drips its answer cannot hold a health check beyond its time-out."""
    with LlamaCppSimulator() as server, LlamaCppHttpAdapter(server.url) as adapter:
        server.misbehave(Fault.drip(1, every=0.05), path="/health")
        began = time.monotonic()
        status = adapter.health(timeout=0.3)
        assert time.monotonic() - began < 2
        assert (status.state, status.ready) == ("unhealthy", False)


def test_health_tells_loading_from_down():
    """Loading is alive and not ready; a refused key is alive; nothing there is down."""
    with LlamaCppSimulator(loading=True) as server, LlamaCppHttpAdapter(server.url) as adapter:
        loading = adapter.health()
        assert (loading.state, loading.live, loading.ready) == ("degraded", True, False)
        assert "Loading model" in loading.message
        server.loading = False
        assert adapter.health().ready
    assert adapter.health().state == "unhealthy"


def test_a_probe_notices_an_engine_that_cannot_generate():
    """``probe`` generates a token: an engine that says 200 and cannot is not healthy."""
    with LlamaCppSimulator() as server, LlamaCppHttpAdapter(server.url) as adapter:
        server.misbehave(Fault.status(500))
        status = adapter.health(probe=True)
        assert (status.live, status.ready) == (True, False)
        server.misbehave(Fault.silent_head())
        assert not adapter.health(probe=True, timeout=0.3).ready
        assert server.generation_requests == 2


def test_props_wait_out_a_short_loading():
    """``props`` is retried while the engine loads, within five seconds."""
    with LlamaCppSimulator() as server, LlamaCppHttpAdapter(server.url) as adapter:
        server.misbehave(Fault.status(503), Fault.status(503), path="/props")
        assert adapter.props().model == "models/recite.gguf"


def test_props_leave_a_sleeping_server_asleep():
    """A sleeping server is not asked for its slots: that would wake it."""
    with LlamaCppSimulator(sleeping=True) as server, LlamaCppHttpAdapter(server.url) as adapter:
        props = adapter.props()
        assert (props.slots_total, props.slots_free) == (4, None)
        assert "/slots" not in {request.path for request in server.requests}
