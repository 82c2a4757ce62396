"""What the contract promises at its edges: whose time a wait is, who wins a race, what is said twice."""

import contextlib
import gc
import signal
import socket
import threading
import time

import pytest

from worker_adapters import (
    EngineUnavailable,
    InvalidRequest,
    LlamaCppHttpAdapter,
    MockAdapter,
    StreamTruncated,
    Timeouts,
    TokenStream,
    WorkerTimeout,
)
from worker_adapters.cancel import Job
from worker_adapters.clocks import Runtime
from worker_adapters.contract import Wait
from worker_adapters.errors import WorkerError
from worker_adapters.frames import EndFrame, ErrorFrame, StartedFrame, TokenFrame
from worker_adapters.plan import Plan
from worker_adapters.retry import Retries, RetryBudget, RetryPolicy
from worker_adapters.simulate import Fault, LlamaCppSimulator, SimServer
from worker_adapters.transport.network import Network

pytestmark = pytest.mark.llamacpp
TEXT = "".join(LlamaCppSimulator.__init__.__defaults__[0])
EVENT = b'data: {"index":0,"content":"%s","stop":false}\n\n'
FINAL = b'data: {"index":0,"content":"","stop":true,"stop_type":"eos","tokens_predicted":1,"tokens_evaluated":1}\n\n'
SSE = [("Content-Type", "text/event-stream")]


# --- whose time a wait is


def test_a_back_off_feeds_no_clock():
    """Waiting for Retry-After is not connecting: a connect clock shorter than it does not fire."""
    with LlamaCppSimulator() as server, LlamaCppHttpAdapter(server.url, timeouts={"connect": 0.3}) as adapter:
        server.misbehave(Fault.status(503, headers=[("Retry-After", "0.7")]))
        assert adapter.submit("x").result().text == TEXT
        assert server.generation_requests == 2


class Scripted(Runtime):
    """Time that only passes where a test says so."""

    def __init__(self):
        self.at = 0.0

    def monotonic(self):
        return self.at

    def waits(self, phase, seconds):
        """Waits, until the engine has been waited for so long."""
        until = self.at + seconds

        def block(timeout):
            self.at = until if timeout is None else min(until, self.at + timeout)
            return self.at == until

        while self.at < until:
            yield Wait(phase, block)


def scripted(*steps, **timeouts):
    """A stream over steps of (phase, seconds), frames, or lists of frames that come at once."""
    runtime = Scripted()

    def attempt():
        for step in steps:
            yield from runtime.waits(*step) if isinstance(step, tuple) else [step if isinstance(step, list) else [step]]

    policy = RetryPolicy(attempts=1)
    budget = RetryBudget(policy)
    return TokenStream(
        Plan(
            job=Job("scripted"),
            engine="scripted",
            place="scripted",
            attempt=attempt,
            timeouts=Timeouts(**timeouts),
            retries=lambda: Retries(policy, budget, runtime.random),
            budget=budget,
            runtime=runtime,
            release=lambda job: None,
        )
    ), runtime


STARTED = StartedFrame("scripted", "scripted", "1")


def test_each_phase_pays_for_its_own_waiting():
    """A slow connect is charged to ``connect`` alone, a slow first token to ``first_token`` alone."""
    stream, _ = scripted(
        ("connect", 0.9), ("first_token", 0.9), STARTED, TokenFrame("a", 0), ("between_tokens", 0.9), EndFrame("stop"),
        connect=1.0, first_token=1.0, between_tokens=1.0,
    )  # fmt: skip
    assert stream.result().text == "a"


def test_waits_of_one_phase_add_up():
    """Several waits without content between them are one wait."""
    stream, runtime = scripted(
        ("first_token", 0.4), ("first_token", 0.4), STARTED, ("first_token", 0.4), TokenFrame("a", 0), first_token=1.0
    )
    with pytest.raises(WorkerTimeout) as caught:
        stream.result()
    assert (caught.value.clock, round(runtime.at, 6)) == ("first_token", 1.0)


def test_the_time_of_the_consumer_is_not_the_engine_s():
    """Time that passes between two reads feeds no waiting clock; the total clock counts it."""
    steps = [STARTED, TokenFrame("a", 0), ("between_tokens", 0.5), TokenFrame("b", 1), EndFrame("stop")]
    for timeouts, fires in (({"between_tokens": 1.0}, False), ({"between_tokens": 1.0, "total": 5.0}, True)):
        stream, runtime = scripted(*steps, **timeouts)
        next(stream)
        next(stream)
        runtime.at += 100.0
        if fires:
            with pytest.raises(WorkerTimeout) as caught:
                next(stream)
            assert caught.value.clock == "total"
        else:
            assert stream.result().text == "ab"


def test_an_end_that_is_fetched_late_is_no_timeout():
    """Where nothing but the end is left to be given, the answer is whole: ``total`` fires no more."""
    stream, runtime = scripted([STARTED, TokenFrame("a", 0), EndFrame("stop")], total=5.0)
    assert [next(stream).type, next(stream).type] == ["started", "token"]
    runtime.at += 100.0
    assert next(stream).type == "end"


def test_waiting_before_an_empty_delta_counts():
    """The first-token clock adds up over an empty delta: only content restarts it."""

    def handle(exchange):
        if exchange.request.method == "GET":
            exchange.json(404, {})
            return
        exchange.head(200, SSE)
        if exchange.pause(0.3):
            exchange.chunk(EVENT % b"")
            exchange.wait_gone(10)

    with SimServer(handle) as server, LlamaCppHttpAdapter(server.url, timeouts={"first_token": 0.5}) as adapter:
        began = time.monotonic()
        with pytest.raises(WorkerTimeout) as caught:
            adapter.submit("x").result()
        assert caught.value.clock == "first_token"
        assert 0.49 <= time.monotonic() - began < 0.79


# --- who wins


def test_a_cancel_that_meets_an_error_wins(monkeypatch):
    """A cancel that returned True ends the job as cancelled, even in the moment in which it fails."""
    with LlamaCppSimulator() as server, LlamaCppHttpAdapter(server.url) as adapter:
        server.misbehave(Fault.cut_after(2))
        stream = adapter.submit("x")
        finish, answers = stream._plan.job.finish, []
        monkeypatch.setattr(type(stream._plan.job), "finish", lambda job: (answers.append(job.cancel()), finish())[1])
        assert list(stream)[-1].finish_reason == "cancelled"
        assert answers[0] is True


def test_one_thread_reads():
    """A second thread that reads gets a clear error, and the job goes on."""
    with LlamaCppSimulator() as server, LlamaCppHttpAdapter(server.url) as adapter:
        server.misbehave(Fault.silent_after(1))
        stream = adapter.submit("x")
        next(stream)
        next(stream)
        reader = threading.Thread(target=lambda: list(stream))
        reader.start()
        deadline = time.monotonic() + 5
        with pytest.raises(InvalidRequest, match="another thread"):  # noqa: PT012 - it may not be inside yet
            while time.monotonic() < deadline:
                next(stream.ticks(0.001))
        stream.cancel()
        reader.join(5)
        assert not reader.is_alive()


# --- what is said twice


def test_start_raises_again_what_it_raised():
    """``start`` after a failed ``start`` raises the same error: nothing has started."""
    with MockAdapter(error=EngineUnavailable(message="broken", phase="first_token")) as adapter:
        stream = adapter.submit("x")
        for _ in range(2):
            with pytest.raises(EngineUnavailable, match="broken"):
                stream.start()


def test_a_cancelled_and_closed_job_still_has_its_result():
    """``result`` of a cancelled job is its partial completion, also after ``close``."""
    with MockAdapter(endless=True) as adapter:
        stream = adapter.submit("x", max_tokens=1000)
        next(stream)
        next(stream)
        stream.cancel()
        stream.close()
        assert stream.result().cancelled
        assert stream.result().text == "Hello"


def test_heartbeats_need_a_period():
    """``ticks`` and ``relay`` refuse a period that is none, at the call."""
    with MockAdapter() as adapter, adapter.submit("x") as stream:
        for call in (stream.ticks, stream.relay):
            with pytest.raises(InvalidRequest) as caught:
                call(every=-1)
            assert caught.value.field == "every"


def test_an_error_counts_only_what_was_delivered():
    """The total clock drops tokens that were decoded and not delivered, and the error does not count them."""

    class Skipping(Network):
        skipped = 0.0

        def monotonic(self):
            return super().monotonic() + self.skipped

    network = Skipping()
    with (
        LlamaCppSimulator(endless=True, events_per_write=64) as server,
        LlamaCppHttpAdapter(server.url, timeouts={"total": 60}, network=network) as adapter,
    ):
        stream = adapter.submit("x", max_tokens=100_000)
        read = [next(stream), next(stream)]
        network.skipped = 61.0
        with pytest.raises(WorkerTimeout) as caught:
            next(stream)
        assert (caught.value.tokens_seen, caught.value.partial_text) == (1, read[1].text)


def test_an_error_frame_names_only_the_type_of_a_foreign_error():
    """A foreign exception becomes UNKNOWN without its words, which may quote anything."""
    frame = ErrorFrame.from_exception(RuntimeError("CANARY"))
    assert (frame.code, "CANARY" in str(frame.to_dict())) == ("UNKNOWN", False)


# --- values that are more than they seem


class Text(str):
    """As Django's SafeString."""


class Whole(int):
    pass


class Real(float):
    """As numpy's float64."""


def test_subclasses_of_plain_values_are_sent():
    """A str, int or float of a subclass is as good as its value."""
    with LlamaCppSimulator() as server, LlamaCppHttpAdapter(server.url) as adapter:
        fields = {"max_tokens": Whole(3), "temperature": Real(0.5), "stop": [Text("zzz")], "extra": {"a": Text("b")}}
        adapter.submit(Text("hi"), **fields).result()
        adapter.submit([{"role": "user", "content": Text("hi")}], **fields).result()
        sent = server.requests[0].json
        assert (sent["prompt"], sent["n_predict"], sent["temperature"], sent["a"]) == ("hi", 3, 0.5, "b")


# --- peers that flood, compress or are early


@pytest.mark.parametrize("flood", ["interim heads", "trailers", "chunk extensions"])
def test_a_flood_that_is_no_body_ends(flood):
    """An answer that never comes to its point ends in a typed error, for jobs and for health."""
    pieces = {
        "interim heads": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        "trailers": (b"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"X-Trailer: y\r\n"),
        "chunk extensions": (b"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n1;", b"abcdefgh"),
    }
    begin, again = pieces[flood]

    def handle(exchange):
        exchange.raw(begin)
        while True:
            exchange.raw(again * 100)

    with SimServer(handle) as server, LlamaCppHttpAdapter(server.url, timeouts={"total": 3}) as adapter:
        began = time.monotonic()
        with pytest.raises(WorkerError):
            adapter.submit("x").result()
        assert not adapter.health(timeout=1).ready
        assert time.monotonic() - began < 10


def test_a_compressed_health_answer_is_not_unpacked():
    """A body that was compressed unasked is a fault: nothing bounds what it unpacks to."""
    with LlamaCppSimulator() as server, LlamaCppHttpAdapter(server.url) as adapter:
        server.misbehave(Fault.gzip(), path="/health")
        status = adapter.health()
        assert not status.ready
        assert "compressed" in status.message


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nKeep-Alive: timeout=\xb2\r\nContent-Length: 15\r\n\r\n" + b'{"status":"ok"}',
        b"HTTP/1.1 302 Found\r\nLocation: http://[\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]",
        b"HTTP/1.1 200 OK\r\nContent-Length: 19\r\n\r\n" + b'{"build_info": 707}',
    ],
)
def test_odd_control_answers_raise_nothing_foreign(answer):
    """Whatever a control call gets, ``health`` reports, ``props`` raises a WorkerError or works, and no job is lost."""

    def handle(exchange):
        if exchange.request.method == "GET":
            exchange.raw(answer)
            exchange.close()
            return
        exchange.head(200, SSE)
        exchange.chunk(EVENT % b"a" + FINAL)
        exchange.end()

    with SimServer(handle) as server, LlamaCppHttpAdapter(server.url) as adapter:
        assert adapter.submit("x").result().text == "a"
        assert adapter.health(timeout=1).live in (True, False)
        try:
            adapter.props()
        except WorkerError as error:
            assert error.engine in (None, "llamacpp")  # noqa: PT017 - either outcome is right
        assert len(adapter._jobs) == 0


def test_an_interim_answer_does_not_stop_the_upload():
    """``100 Continue`` before the body has been sent changes nothing; a refusal stops the sending and is heard."""
    seen = []

    def serve(listener, refuse):
        sock, _ = listener.accept()
        sock.settimeout(10)
        data = sock.recv(65536)
        refusal = b"HTTP/1.1 413 No\r\nContent-Length: 31\r\n\r\n" + b'{"error":{"message":"too long"}}'
        sock.sendall(refusal if refuse else b"HTTP/1.1 100 Continue\r\n\r\n")
        length = int(data.lower().split(b"content-length: ")[1].split(b"\r\n")[0]) + data.index(b"\r\n\r\n") + 4
        total = len(data)
        while not refuse and total < length:
            total += len(sock.recv(1 << 20))
        if not refuse:
            head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
            sock.sendall(head + EVENT % b"a" + FINAL)
        seen.append(total)
        sock.close()

    for refuse in (False, True):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            server = threading.Thread(target=serve, args=(listener, refuse))
            server.start()
            adapter = LlamaCppHttpAdapter(f"http://127.0.0.1:{listener.getsockname()[1]}")
            adapter._identity.questions = ()
            if refuse:
                with pytest.raises(WorkerError):
                    adapter.submit("x" * 20_000_000).result()
            else:
                assert adapter.submit("x" * 20_000_000).result().text == "a"
            server.join(10)
    assert seen[0] > 20_000_000 > seen[1]


def test_a_base_path_is_sent_as_it_was_given():
    """Control calls and jobs use the same base path, whatever a URL library would make of it."""
    with LlamaCppSimulator() as server, LlamaCppHttpAdapter(f"{server.url}/a%7Eb") as adapter:
        adapter.health()
        with pytest.raises(WorkerError):
            adapter.submit("x").result()
        assert {request.target.rpartition("/")[0] for request in server.requests} == {"/a%7Eb"}


def test_a_tunnel_to_an_ipv6_address_names_its_port():
    """CONNECT always says host and port."""
    asked = []

    def handle(exchange):
        asked.append(exchange.request.target)
        exchange.respond(502, [], b"")

    with (
        SimServer(handle) as proxy,
        LlamaCppHttpAdapter("https://[2001:db8::1]", proxy=proxy.url, retry={"attempts": 1}) as adapter,
    ):
        with pytest.raises(EngineUnavailable):
            adapter.submit("x").result()
        assert asked == ["[2001:db8::1]:443"]


def test_a_full_backlog_of_a_unix_socket_is_waited_for(tmp_path):
    """A unix socket that cannot queue us yet is asked again, within the connect clock."""
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(0)
        filler = socket.socket(socket.AF_UNIX)
        filler.connect(path)
        with LlamaCppHttpAdapter(f"unix://{path}", timeouts={"connect": 0.3}, retry={"attempts": 1}) as adapter:
            with pytest.raises(WorkerTimeout) as caught:
                adapter.submit("x").result()
            assert caught.value.clock == "connect"
        filler.close()


def test_truncation_is_told_from_refusal():
    """A connection lost before the first event is EngineUnavailable; a stream that ends without a reason is truncated,
    also one that said nothing at all."""
    with LlamaCppSimulator() as server, LlamaCppHttpAdapter(server.url) as adapter:
        server.misbehave(Fault.cut_after(0), Fault.cut_after(1), Fault.clean_end_after(0), Fault.clean_end_after(1))
        kinds = []
        for _ in range(4):
            with pytest.raises(EngineUnavailable) as caught:
                adapter.submit("x").result()
            kinds.append(type(caught.value))
        assert kinds == [EngineUnavailable, StreamTruncated, StreamTruncated, StreamTruncated]


def test_closing_beside_a_reader_leaks_no_job():
    """``cancel`` and ``close`` from another thread, at any moment, raise nowhere and free the job's id."""
    with LlamaCppSimulator(endless=True, events_per_write=32) as server, LlamaCppHttpAdapter(server.url) as adapter:
        wrong = []
        for number in range(150):
            stream = adapter.submit("x", max_tokens=100_000)
            begun = threading.Event()

            def end(stream=stream, begun=begun, number=number):
                begun.wait(5)
                time.sleep(number % 10 / 5000)
                try:
                    if number % 2:
                        stream.cancel()
                    stream.close()
                except Exception as error:
                    wrong.append(error)

            ender = threading.Thread(target=end)
            ender.start()
            for _ in stream:
                begun.set()
            ender.join(5)
        assert wrong == []
        assert len(adapter._jobs) == 0
        assert server.wait_idle(5)


def test_a_close_beside_start_frees_the_job():
    """``start`` in one thread and ``close`` in another leave nothing registered."""
    with LlamaCppSimulator() as server, LlamaCppHttpAdapter(server.url) as adapter:
        server.misbehave(Fault.silent_head())
        stream = adapter.submit("x", job_id="j1")
        starter = threading.Thread(target=stream.start)
        starter.start()
        assert server.wait_for(lambda: server.generation_requests == 1, 5)
        stream.close()
        starter.join(5)
        del stream
        assert len(adapter._jobs) == 0
        adapter.submit("x", job_id="j1").result()


def test_a_handler_that_closes_and_raises_frees_the_job():
    """A signal handler that closes the stream and raises, as Ctrl-C does, leaves nothing registered."""

    class Stop(Exception):
        pass

    def handler(*_):
        stream.close()
        raise Stop

    with LlamaCppSimulator(endless=True) as server, LlamaCppHttpAdapter(server.url) as adapter:
        before = signal.signal(signal.SIGALRM, handler)
        gc.disable()  # Python swallows what a handler raises inside a gc callback, and Hypothesis installs one
        try:
            for number in range(100):
                stream = adapter.submit("x", max_tokens=1_000_000)
                stream.start()  # a socket whose making a handler interrupts is dropped by Python itself, with a warning
                with contextlib.suppress(Stop):
                    signal.setitimer(signal.ITIMER_REAL, 0.0005 + number % 10 / 3000)
                    for _ in stream:
                        pass
                stream.close()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
            gc.enable()
        assert len(adapter._jobs) == 0
        assert server.wait_idle(5)


def test_two_equal_content_types_are_one():
    """A header that a proxy doubled is read once."""

    def handle(exchange):
        exchange.head(200, [*SSE, *SSE])
        exchange.chunk(EVENT % b"a" + FINAL)
        exchange.end()

    with SimServer(handle) as server, LlamaCppHttpAdapter(server.url) as adapter:
        adapter._identity.questions = ()
        assert adapter.submit("x").result().text == "a"


def test_health_believes_only_llama_cpp():
    """A 200 of somebody else's is not health; a gateway's 502 is an engine that is not there."""
    with LlamaCppSimulator() as server, LlamaCppHttpAdapter(server.url) as adapter:
        for fault, live in ((Fault.html(200), True), (Fault.json_200({"hello": 1}), True), (Fault.html(502), False)):
            server.misbehave(fault, path="/health")
            status = adapter.health()
            assert (status.state, status.live, status.ready) == ("unhealthy", live, False)
            assert server.url in status.message
        server.misbehave(Fault.json_200({"status": "ok", "slots_idle": 1, "slots_processing": 0}), path="/health")
        assert adapter.health().ready  # as servers of 2024 said it
