"""Triton over gRPC, from the first connection to the last: cancel, clocks, ticks, forks, restarts, TLS."""

from __future__ import annotations

import gc
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme

from grpc_triton import (
    RS,
    SENTENCE,
    WAIT,
    Answer,
    Call,
    Triton,
    Wire,
    config,
    data,
    echo,
    endless,
    never_accepting,
    silent,
)
from worker_adapters import connect
from worker_adapters.adapters.triton import TritonAdapter
from worker_adapters.errors import EngineUnavailable, WorkerError, WorkerTimeout
from worker_adapters.frames import AnyFrame
from worker_adapters.simulate import SimServer
from worker_adapters.stream import TokenStream

pytestmark = pytest.mark.triton

SOON = 5.0  # seconds: what must come has come by then, even on a loaded machine
AT_ONCE = 1.0  # seconds: what takes a millisecond, on a loaded machine
SCENES = str(Path(__file__).with_name("grpc_scenes.py"))


@contextmanager
def serving(answer: Answer = endless, **options: Any) -> Iterator[tuple[Triton, TritonAdapter]]:
    """A server that answers so, and an adapter of it that does not try again."""
    with Triton() as server:
        server.answer = answer
        with connect("triton", server.url, **{"model": "rs", "retry": {"attempts": 1}, **options}) as engine:
            assert isinstance(engine, TritonAdapter)
            yield server, engine


def until(predicate: Callable[[], Any], seconds: float = SOON) -> bool:
    """Does it come true within so many seconds?"""
    deadline = time.monotonic() + seconds
    while not predicate():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


class Reader(threading.Thread):
    """Reads a stream in a thread, and notes when its last frame came."""

    def __init__(self, stream: TokenStream) -> None:
        super().__init__()
        self.frames: list[AnyFrame] = []
        self.error: WorkerError | None = None
        self.ended_at = 0.0
        self._stream = stream
        self.start()

    def run(self) -> None:
        try:
            self.frames.extend(self._stream)
        except WorkerError as error:
            self.error = error
        self.ended_at = time.monotonic()


def pausing(call: Call) -> Iterator[Any]:
    """Three words, and then nothing more."""
    yield from map(data, SENTENCE[:3])
    yield from silent(call)


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[str]:
    """The address of a server in a process of its own."""
    with subprocess.Popen([sys.executable, SCENES, "serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield process.stdout.readline().decode().strip()
        process.stdin.close()
        assert process.wait(WAIT) == 0


# --- cancel

#: When a job is cancelled -> how the server answers, and how many frames the reader has by then.
MOMENTS: dict[str, tuple[Answer, int]] = {
    "before the first response": (silent, 0),
    "between two responses": (pausing, 4),
    "while they flow": (endless, 4),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_cancel_reaches_reader_and_server_at_once(moment: str) -> None:
    """The reader has its end, and the server's context knows, also before the first response."""
    answer, frames = MOMENTS[moment]
    with serving(answer) as (server, engine):
        stream = engine.submit("Hi", max_tokens=10**6)
        reader = Reader(stream)
        assert until(lambda: server.calls and len(reader.frames) >= frames)
        [call] = server.calls
        assert not call.gone.is_set()
        began = time.monotonic()
        assert stream.cancel()
        assert time.monotonic() - began < AT_ONCE
        assert call.gone.wait(AT_ONCE)
        reader.join(SOON)
        assert (reader.error, reader.is_alive()) == (None, False)
        assert reader.ended_at - began < AT_ONCE
        end = reader.frames[-1].to_dict()
        assert (end["type"], end["finish_reason"]) == ("end", "cancelled")
        assert [frame.type for frame in reader.frames[:-1]] == (["started", *["token"] * len(reader.frames)])[
            : len(reader.frames) - 1
        ]
        assert not stream.cancel()


def test_no_token_comes_after_a_cancel() -> None:
    """Also of what has come already: after cancel() returned, the next frame is the end."""
    with serving() as (server, engine):
        stream = engine.submit("Hi", max_tokens=10**6)
        frames = [next(stream) for _ in range(3)]
        time.sleep(0.1)  # let some more come
        assert engine.cancel(stream.job_id)
        assert next(stream).type == "end"
        assert list(stream) == []
        assert server.calls[0].gone.wait(SOON)
        result = stream.result()
        assert (result.text, result.finish_reason) == (" the quick", "cancelled")
        assert len(frames) == 3


def test_a_cancelled_job_leaves_the_connection_to_others() -> None:
    """Calls end, the connection stays: all jobs of an adapter go over the same one."""
    with serving() as (server, engine):
        other = engine.submit("other", max_tokens=10**6)
        assert next(other).type == "started"
        for _ in range(20):
            with engine.submit("Hi", max_tokens=10**6) as stream:
                assert [next(stream).type for _ in range(2)] == ["started", "token"]
        assert all(call.gone.wait(SOON) for call in server.calls[1:])
        assert not server.calls[0].gone.is_set()
        assert next(other).type == "token"
        other.cancel()
        assert len({call.peer for call in server.calls}) == 1


def test_a_cancel_reaches_a_job_that_only_asks() -> None:
    """While the model's config is waited for."""
    with serving() as (server, engine):
        held = server.held["ModelConfig"] = threading.Event()
        stream = engine.submit("Hi")
        reader = Reader(stream)
        assert until(server.methods)
        began = time.monotonic()
        stream.cancel()
        reader.join(SOON)
        assert reader.ended_at - began < AT_ONCE
        assert [frame.type for frame in reader.frames] == ["end"]
        assert held.wait(SOON)  # the server saw it
        assert server.calls == []


def test_a_cancel_reaches_a_job_that_connects() -> None:
    """Nobody accepts: the reader ends all the same."""
    with never_accepting() as url, connect("triton", url, model="rs") as engine:
        stream = engine.submit("Hi")
        reader = Reader(stream)
        assert not until(lambda: reader.frames or reader.error, 0.2)
        began = time.monotonic()
        stream.cancel()
        reader.join(SOON)
        assert reader.ended_at - began < AT_ONCE
        assert [frame.type for frame in reader.frames] == ["end"]


def test_a_job_cancelled_before_it_starts_is_never_sent() -> None:
    """It yields its end alone, and the server hears of nothing."""
    with serving() as (server, engine):
        stream = engine.submit("Hi")
        stream.cancel()
        assert [frame.type for frame in stream] == ["end"]
        assert (server.methods(), server.calls) == ([], [])


def test_a_signal_handler_may_cancel_anywhere(elsewhere: str) -> None:
    """On top of whatever its own thread does at that moment, grpc's own code too: the end comes, nothing locks up."""
    with connect("triton", elsewhere, model="rs", retry={"attempts": 1}) as engine:
        engine.submit("warm", max_tokens=1).result()
        dice = random.Random(7)
        running: list[TokenStream] = []
        before = signal.signal(signal.SIGALRM, lambda *_: running[-1].cancel())
        try:
            for _ in range(200):
                running.append(engine.submit("x", max_tokens=10**6, job_id="endless"))
                signal.setitimer(signal.ITIMER_REAL, 1e-6 + 0.02 * dice.random() ** 3)
                end = list(running[-1])[-1].to_dict()
                assert (end["type"], end["finish_reason"]) == ("end", "cancelled")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


# --- clocks and ticks


def one_word(call: Call) -> Iterator[Any]:
    """One, and then nothing more."""
    yield data(" the")
    yield from silent(call)


@pytest.mark.parametrize(
    ("clock", "answer", "pieces"),
    [("first_token", silent, 0), ("between_tokens", one_word, 1), ("total", endless, None), ("total", silent, 0)],
)
def test_each_clock_fires_at_its_time(clock: str, answer: Answer, pieces: int | None) -> None:
    """And frees the server: its context sees the end."""
    with serving(answer) as (server, engine):
        engine.engine_version()
        began = time.monotonic()
        with pytest.raises(WorkerTimeout) as caught:
            engine.submit("Hi", max_tokens=10**6, timeouts={clock: 0.4}).result()
        took = time.monotonic() - began
        assert 0.39 <= took < 0.4 + 2 * AT_ONCE
        assert (caught.value.clock, caught.value.retriable) == (clock, False)
        assert pieces is None or caught.value.tokens_seen == pieces
        assert server.calls[0].gone.wait(SOON)


def test_the_connect_clock_fires() -> None:
    """Nobody accepts: the clock of connecting, and the job may be tried again."""
    with never_accepting() as url, connect("triton", url, model="rs", retry={"attempts": 1}) as engine:
        began = time.monotonic()
        with pytest.raises(WorkerTimeout) as caught:
            engine.submit("Hi", timeouts={"connect": 0.4}).result()
        assert 0.39 <= time.monotonic() - began < 0.4 + 2 * AT_ONCE
        assert (caught.value.clock, caught.value.retriable) == ("connect", True)


def test_a_server_that_accepts_and_says_nothing_is_bounded() -> None:
    """A listener that speaks no HTTP/2: the first token's clock, or the total, ends the job; health is bounded too."""
    with SimServer(handshake_silence=True) as server:
        url = f"grpc://127.0.0.1:{server.port}"
        with connect("triton", url, model="rs", retry={"attempts": 1}) as engine:
            for clock in ("first_token", "total"):
                began = time.monotonic()
                with pytest.raises(WorkerTimeout) as caught:
                    engine.submit("Hi", timeouts={clock: 0.4}).result()
                assert caught.value.clock == clock
                assert time.monotonic() - began < 0.4 + 2 * AT_ONCE
            health = engine.health(timeout=0.3)
            assert (health.state, health.ready) == ("unhealthy", False)


def test_a_server_of_another_protocol_is_unavailable() -> None:
    """HTTP/1 on that port: a typed error, no hang and no leak of grpc's exceptions."""
    with SimServer(lambda exchange: exchange.respond(400, [], b"")) as server:
        url = f"grpc://127.0.0.1:{server.port}"
        with connect("triton", url, model="rs", retry={"attempts": 1}, timeouts={"total": SOON}) as engine:
            with pytest.raises((EngineUnavailable, WorkerTimeout)):
                engine.submit("Hi").result()
            assert not engine.health().ready


def test_ticks_come_while_nothing_does() -> None:
    """Heartbeats during the wait for the first response, between responses, and none of it restarts a clock."""
    go_on = threading.Event()

    def answer(call: Call) -> Iterator[Any]:
        go_on.wait(WAIT)
        yield data(" the", final=True)

    with serving(answer) as (_, engine):
        seen: list[str] = []
        for frame in engine.submit("Hi").ticks(every=0.05):
            seen.append("tick" if frame is None else frame.type)
            if seen.count("tick") == 3:
                go_on.set()
        assert seen[:3] == ["tick"] * 3
        assert [kind for kind in seen if kind != "tick"] == ["started", "token", "end"]


def test_a_slow_consumer_loses_nothing() -> None:
    """No clock runs while nobody waits; whatever came meanwhile is there, in order."""
    with serving(echo, timeouts={"between_tokens": 0.3, "first_token": SOON}) as (_, engine):
        stream = engine.submit("Hi", max_tokens=3000)
        assert [next(stream).type for _ in range(2)] == ["started", "token"]
        time.sleep(1.0)
        assert next(stream).type == "token"
        time.sleep(0.5)
        result = stream.result()
        assert result.text == " Hi" * 3000
        assert result.metrics.tokens_out == 3000


# --- what is left behind


def test_broken_off_loops_leak_nothing() -> None:
    """After ``break`` without the garbage collector: every call ended, no thread left, no job known."""
    with serving() as (server, engine):
        engine.submit("Hi", max_tokens=10**6).close()
        gc.collect()
        gc.disable()
        try:
            ids = []
            for number in range(50):
                stream = engine.submit("Hi", max_tokens=10**6, job_id=f"job-{number}")
                for frame in stream:
                    if frame.type == "token":
                        break
                ids.append(stream.job_id)
                del stream, frame
            calls = [call for call in server.calls if call.request.id in ids]
            assert len(calls) == 50
            assert all(call.gone.wait(SOON) for call in calls)
            assert until(lambda: not _pumps())
            assert not any(engine.cancel(job_id) for job_id in ids)
        finally:
            gc.enable()


def _pumps() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "worker-adapters-grpc"]


def test_no_thread_outlives_its_job() -> None:
    """Good ends, failures and clocks: the threads that read are gone after them."""
    with serving(echo) as (server, engine):
        engine.submit("Hi", max_tokens=2).result()
        server.answer = one_word
        with pytest.raises(WorkerTimeout):
            engine.submit("Hi", timeouts={"between_tokens": 0.1}).result()
        server.answer = lambda call: call.abort("INTERNAL", "boom")  # type: ignore[assignment,return-value]
        with pytest.raises(WorkerError):
            engine.submit("Hi").result()
        assert until(lambda: not _pumps())


def test_connections_are_one_an_adapter() -> None:
    """Made by its first call, after one that only looks whether anybody listens; two adapters share none."""
    with Triton() as server:
        server.answer = echo
        wire = Wire(server.port)
        with connect("triton", wire.url, model="rs") as one, connect("triton", wire.url, model="rs") as other:
            for number, engine in enumerate((one, other), 1):
                for _ in range(5):
                    engine.submit("Hi", max_tokens=1).result()
                    assert engine.health().ready
                assert wire.connections == 2 * number
        wire.break_off()


def test_an_adapter_may_be_closed_with_jobs_in_flight() -> None:
    """They go on to their end, and a later job connects anew."""
    with serving() as (server, engine):
        stream = engine.submit("Hi", max_tokens=10**6)
        assert next(stream).type == "started"
        engine.close()
        assert [next(stream).type for _ in range(3)] == ["token"] * 3
        stream.cancel()
        server.answer = echo
        assert engine.submit("Hi", max_tokens=1).result().text == " Hi"


def test_after_a_restart_the_next_job_works_at_once() -> None:
    """Without the back-off of the channel that saw the server go, also after failures in between."""
    with serving(echo) as (server, engine):
        assert engine.submit("Hi", max_tokens=1).result().text == " Hi"
        for _ in range(2):
            server.stop()
            for _ in range(5):
                with pytest.raises(EngineUnavailable):
                    engine.submit("Hi").result()
            with Triton(port=server.port) as again:
                again.answer = echo
                began = time.monotonic()
                assert engine.submit("Ho", max_tokens=1).result().text == " Ho"
                assert time.monotonic() - began < AT_ONCE
                assert engine.health().ready


def test_a_job_over_a_connection_that_died_unseen_is_not_sent_twice() -> None:
    """A restart between two jobs: the second works, or fails without having been sent; never two generations."""
    with serving(echo) as (server, engine):
        engine.submit("Hi", max_tokens=1).result()
        server.stop()
        with Triton(port=server.port) as again:
            again.answer = echo
            for _ in range(2):
                try:
                    assert engine.submit("Ho", max_tokens=1).result().text == " Ho"
                except EngineUnavailable as error:
                    assert error.tokens_seen == 0  # noqa: PT017 - either end is right
            assert len(again.calls) in (1, 2)
            assert engine.submit("Ho", max_tokens=1).result().text == " Ho"


# --- processes


def test_a_fork_with_a_warm_channel_crosses_nothing(elsewhere: str) -> None:
    """Both sides run 100 jobs and get their own replies; the parent's stream raises in the child and goes on there."""
    command = [sys.executable, SCENES, "fork", elsewhere]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() == "[0, 0, True, True]", done.stderr
    assert done.returncode == 0
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("how", ["leave", "read", "many"])
def test_a_process_that_abandons_a_stream_ends(how: str, elsewhere: str) -> None:
    """No thread and no lock of grpc's or ours keeps it, whichever was held when it ended; nor does it complain.

    Left in the middle, or read by another thread, or one of several.
    """
    command = [sys.executable, SCENES, "abandon", elsewhere, how]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(8)]
    try:
        told = [process.communicate(timeout=6 * WAIT) for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait(WAIT)
    assert [process.returncode for process in running] == [0] * 8
    assert told == [("['started', 'token', 'token']\n", "")] * 8


# --- TLS


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """Who signs certificates here."""
    return trustme.CA()


def secured(authority: trustme.CA, *, client: bool = False) -> Triton:
    """A server with a certificate for 127.0.0.1, which may want one of the client."""
    issued = authority.issue_cert("127.0.0.1")
    chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
    root = authority.cert_pem.bytes() if client else None
    credentials = grpc.ssl_server_credentials([(issued.private_key_pem.bytes(), chain)], root, client)
    server = Triton(credentials=credentials, rs=config("rs", RS))
    server.answer = echo
    return server


def test_tls_by_a_ca_of_one_s_own(authority: trustme.CA, tmp_path: Path) -> None:
    """grpcs:// with ca= works and streams; without it the server is not believed."""
    ca = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca))
    with secured(authority) as server:
        with connect("triton", server.url, model="rs", ca=str(ca)) as engine:
            assert engine.submit("Hi", max_tokens=2).result().text == " Hi Hi"
            assert engine.health().ready
            assert engine.engine_version() == "2.51.0"
        with connect("triton", server.url, model="rs", retry={"attempts": 1}) as engine:
            with pytest.raises(EngineUnavailable) as caught:
                engine.submit("Hi").result()
            assert "certificate" in caught.value.message.lower()


def test_tls_with_a_certificate_of_our_own(authority: trustme.CA, tmp_path: Path) -> None:
    """A server that wants one gets it, from one file or from two."""
    ca, chain, key, both = (tmp_path / name for name in ("ca.pem", "chain.pem", "key.pem", "both.pem"))
    authority.cert_pem.write_to_path(str(ca))
    ours = authority.issue_cert("client")
    ours.cert_chain_pems[0].write_to_path(str(chain))
    ours.private_key_pem.write_to_path(str(key))
    ours.private_key_and_cert_chain_pem.write_to_path(str(both))
    with secured(authority, client=True) as server:
        for cert in ((str(chain), str(key)), str(both)):
            with connect("triton", server.url, model="rs", ca=str(ca), cert=cert) as engine:
                assert engine.submit("Hi", max_tokens=1).result().text == " Hi"
        with (
            connect("triton", server.url, model="rs", ca=str(ca), retry={"attempts": 1}) as engine,
            pytest.raises(EngineUnavailable),
        ):
            engine.submit("Hi", timeouts={"total": WAIT}).result()


def test_no_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """grpc would read it; a proxy is used only where one is configured, and over gRPC none can be."""
    for name in ("grpc_proxy", "http_proxy", "https_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("no_grpc_proxy", raising=False)
    with serving(echo) as (_, engine):
        assert engine.submit("Hi", max_tokens=1).result().text == " Hi"
