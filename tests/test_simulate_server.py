"""The server under the simulators: connections, records, TLS, Unix sockets, and an end that leaves nothing behind."""

from __future__ import annotations

import ast
import json
import os
import resource
import socket
import ssl
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import worker_adapters.simulate
from simulate_clients import (
    SOON,
    WAIT,
    ask,
    connect,
    read_all,
    read_to_error,
    read_until,
    request_bytes,
    split,
    token_events,
)
from worker_adapters.simulate import (
    EngineSimulator,
    Exchange,
    Fault,
    LlamaCppSimulator,
    OpenAISimulator,
    SimServer,
    VllmSimulator,
)

pytestmark = pytest.mark.llamacpp

MESSAGES = [{"role": "user", "content": "a"}]


@pytest.fixture
def sim() -> Iterator[LlamaCppSimulator]:
    """A simulated llama.cpp with the defaults."""
    with LlamaCppSimulator() as simulator:
        yield simulator


def test_keep_alive_is_the_real_one(sim: LlamaCppSimulator) -> None:
    """JSON answers keep the connection for 100 requests; a stream closes it although it announces keep-alive."""
    sock = connect(sim)
    for number in range(100):
        sock.sendall(request_bytes("/health", method="GET"))
        head = read_until(sock, b'{"status":"ok"}')
        assert (b"Keep-Alive: timeout=5, max=100" in head) == (number < 99)
    assert read_all(sock) == b""
    assert b"Keep-Alive: timeout=5, max=100" in read_all(ask(sim))
    assert (sim.connections, sim.closes) == (2, ())


def test_idle_connections_are_closed_by_the_server() -> None:
    """A connection with no request for the idle time is closed, and that is no client close."""
    with LlamaCppSimulator(idle_timeout=0.05) as sim:
        assert read_all(connect(sim)) == b""
        assert sim.wait_for(lambda: sim.connections_open == 0, WAIT)
        assert sim.closes == ()


@pytest.mark.parametrize(
    "raw",
    [
        b"GET /health HTTP/1.1\r\n\r\n",
        b"GET  /health HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /health HTTP/1.1\nHost: x\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n",
        b"POST /completion HTTP/1.1\r\nHost: x\r\nContent-Length: +1\r\n\r\nx",
        b"POST /completion HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"POST /completion HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        b"POST /completion HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n\r\n",
        b"POST /completion HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nxyz\r\n0\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\nX-A: \0\r\n\r\n",
    ],
)
def test_malformed_requests_are_refused_and_recorded(sim: LlamaCppSimulator, raw: bytes) -> None:
    """What a sloppy server forgives is refused here, and a test can see why."""
    sock = connect(sim)
    sock.sendall(raw)
    assert read_all(sock)[9:12] == b"400"
    assert len(sim.violations) == 1
    assert sim.requests == ()


def test_a_body_in_chunks_is_a_body(sim: LlamaCppSimulator) -> None:
    """Clients that stream their request are understood, whatever the chunks' sizes, extensions and trailers."""
    body = b'{"prompt":"hi","n_predict":2}'
    head = b"POST /completion HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: Chunked\r\n\r\n"
    chunks = b"5\r\n" + body[:5] + b"\r\n%X;a=b\r\n" % len(body[5:]) + body[5:] + b"\r\n0\r\nX-T: 1\r\n\r\n"
    sock = connect(sim)
    for byte in head + chunks:
        sock.sendall(bytes([byte]))
    assert b'"content":" the quick"' in read_until(sock, b"stop_type")
    sock.sendall(request_bytes("/health", method="GET", headers="Connection: close\r\n"))
    assert read_all(sock).endswith(b'{"status":"ok"}')
    assert [request.body for request in sim.requests] == [body, b""]


def test_a_client_that_leaves_inside_a_chunk_is_seen(sim: LlamaCppSimulator) -> None:
    """Half a body in chunks is no request, and no failure of the server's."""
    with connect(sim) as sock:
        sock.sendall(b"POST /completion HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc")
    assert sim.wait_closed(1, WAIT)
    assert sim.wait_for(lambda: sim.connections_open == 0, WAIT)
    assert (sim.requests, sim.violations) == ((), ())


def test_head_is_answered_without_a_body(sim: LlamaCppSimulator) -> None:
    """The length is that of GET's body, and the connection goes on."""
    sock = connect(sim)
    sock.sendall(request_bytes("/health", method="HEAD"))
    sock.sendall(request_bytes("/health", method="GET", headers="Connection: close\r\n"))
    first, second, body = read_all(sock).split(b"\r\n\r\n")
    assert [head.split(b"\r\n")[0] for head in (first, second)] == [b"HTTP/1.1 200 OK"] * 2
    assert b"Content-Length: 15" in first
    assert body == b'{"status":"ok"}'


def test_without_a_descriptor_left_a_client_waits() -> None:
    """A process that may open no more files serves on as soon as it may."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with LlamaCppSimulator() as sim:
        waiting = socket.socket()
        waiting.settimeout(WAIT)
        next_free = os.dup(waiting.fileno())
        os.close(next_free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (next_free, limits[1]))
        try:
            waiting.connect(("127.0.0.1", sim.port))
            waiting.sendall(request_bytes("/health", method="GET", headers="Connection: close\r\n"))
            waiting.settimeout(SOON)
            with pytest.raises(TimeoutError):
                waiting.recv(1)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        waiting.settimeout(WAIT)
        assert read_all(waiting).endswith(b'{"status":"ok"}')


@pytest.mark.parametrize("length", ["999999999999", "9" * 5000])
def test_a_body_without_end_is_refused_before_it_comes(sim: LlamaCppSimulator, length: str) -> None:
    """A length beyond all bounds, or beyond all numbers, is 413."""
    sock = connect(sim)
    sock.sendall(f"POST /completion HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n".encode())
    assert read_all(sock).startswith(b"HTTP/1.1 413 ")
    assert sim.violations == ("body too large",)


def test_requests_are_recorded(sim: LlamaCppSimulator) -> None:
    """Method, target, headers in order, body and connection of each request can be read afterwards."""
    read_all(ask(sim, "/completion?x=1", {"prompt": "hi"}, headers="X-One: 1\r\nConnection: close\r\n"))
    (request,) = sim.requests
    assert (request.method, request.target) == ("POST", "/completion?x=1")
    assert (request.path, request.query) == ("/completion", {"x": ["1"]})
    assert [name for name, _ in request.headers] == ["Host", "X-One", "Connection", "Content-Length"]
    assert (request.json, request.connection, request.header("x-one")) == ({"prompt": "hi"}, 1, "1")


def test_close_leaves_no_thread() -> None:
    """close() ends silent, queued, streaming and idle connections, joins every thread, and may be called twice."""
    before = set(threading.enumerate())
    sim = LlamaCppSimulator(slots=2, endless=True, delay=0.01)
    sim.misbehave(Fault.silent_head(), Fault.silent_after(1))
    socks = [ask(sim) for _ in range(4)] + [connect(sim)]
    assert sim.wait_for(lambda: sim.queued == 2 and sim.connections_open == 5, WAIT)
    began = time.monotonic()
    sim.close()
    sim.close()
    assert time.monotonic() - began < 1.0
    assert set(threading.enumerate()) == before
    assert sim.closes == ()
    for sock in socks:
        sock.close()


def test_kill_resets_every_connection() -> None:
    """kill() refuses new connections and resets the open ones, like a killed process."""
    with LlamaCppSimulator(endless=True, delay=0.01) as sim:
        sim.misbehave(Fault.silent_head())
        socks = [ask(sim), ask(sim, body={"prompt": "a", "stream": True}), connect(sim)]
        assert sim.wait_for(lambda: sim.busy == 2 and sim.connections_open == 3, WAIT)
        sim.kill()
        assert [read_to_error(sock)[1] for sock in socks] == ["ECONNRESET"] * 3
        with pytest.raises(ConnectionRefusedError):
            connect(sim)


def test_a_handlers_mistake_is_loud() -> None:
    """An exception of a handler closes its connection and comes out of close()."""

    def handler(exchange: Exchange) -> None:
        raise KeyError("mistake")

    server = SimServer(handler)
    assert read_all(ask(server, "/")) == b""
    with pytest.raises(RuntimeError, match="handler") as caught:
        server.close()
    assert isinstance(caught.value.__cause__, KeyError)


def test_unix_socket(tmp_path: Path) -> None:
    """A server on a Unix socket speaks the same, and takes its path away when it closes."""
    path = tmp_path / "s"
    with LlamaCppSimulator(unix_path=str(path)) as sim:
        assert sim.url == f"unix://{path}"
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(WAIT)
        sock.connect(str(path))
        sock.sendall(request_bytes("/health", method="GET", headers="Connection: close\r\n"))
        assert read_all(sock).endswith(b'{"status":"ok"}')
    assert not path.exists()


def test_tls(tmp_path: Path) -> None:
    """Over TLS the same bytes come, and a close in silence is seen at once."""
    trustme = pytest.importorskip("trustme")
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    with LlamaCppSimulator(ssl_context=context) as sim:
        assert sim.url.startswith("https://")
        sim.misbehave(Fault.close_delimited(), Fault.silent_after(2))
        with trusting.wrap_socket(connect(sim), server_hostname="127.0.0.1", suppress_ragged_eofs=False) as sock:
            sock.sendall(request_bytes("/completion", {"prompt": "a", "stream": True, "n_predict": 3}))
            data = b"".join(iter(lambda: sock.recv(65536), b""))
        assert token_events(data) == 3
        with trusting.wrap_socket(connect(sim), server_hostname="127.0.0.1") as sock:
            sock.sendall(request_bytes("/completion", {"prompt": "a", "stream": True, "n_predict": 3}))
            read_until(sock, b"quick")  # type: ignore[arg-type, unused-ignore]
            left = time.monotonic()
        assert sim.wait_closed(1, WAIT)
        assert sim.closes[0].at - left < SOON


def test_a_tls_hello_may_stay_unanswered() -> None:
    """handshake_silence accepts and never speaks; the client's leaving is seen in the TLS phase."""
    with SimServer(handshake_silence=True) as server:
        sock = connect(server)
        sock.settimeout(0.05)
        context = ssl.create_default_context()
        with pytest.raises(TimeoutError), context.wrap_socket(sock, server_hostname="localhost"):
            pass
        assert server.wait_closed(1, WAIT)
        assert server.closes[0].phase == "tls"


def test_simulators_import_nothing_of_the_library() -> None:
    """A simulator that shared the decoder's code would only agree with itself."""
    folder = Path(worker_adapters.simulate.__file__).parent
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1, path
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
                assert all(str(name).split(".")[0] in sys.stdlib_module_names for name in names), path


@pytest.mark.parametrize(
    ("simulator", "path", "body"),
    [
        (VllmSimulator, "/v1/completions", {"prompt": "a", "stop": 1}),
        (VllmSimulator, "/detokenize", {"tokens": [None]}),
        (OpenAISimulator, "/v1/chat/completions", {"messages": MESSAGES, "tools": "x"}),
        (OpenAISimulator, "/v1/completions", {"prompt": "a", "logprobs": "x", "stream": True}),
        (LlamaCppSimulator, "/detokenize", {"tokens": "x"}),
    ],
)
def test_a_field_of_a_strange_type_is_the_requests_fault(
    simulator: type[EngineSimulator], path: str, body: dict[str, Any]
) -> None:
    """It is refused in the engine's form, the slot is free, the connection usable, and a test can see why."""
    with simulator() as sim:
        sock = ask(sim, path, body, headers="Content-Type: application/json\r\nConnection: close\r\n")
        head, answer = split(read_all(sock))
        assert head.startswith(b"HTTP/1.1 400 ")
        assert json.loads(answer)["error"]["message"] == "a field is of a wrong type"
        assert (sim.busy, len(sim.violations)) == (0, 1)
        assert sim.violations[0].startswith(f"{path} could not be read: ")
