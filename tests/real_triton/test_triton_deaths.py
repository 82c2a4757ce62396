"""The real Triton and its models killed under their jobs, in part and whole. Each test has a server of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from engines.llamacpp_bench import PATIENCE, SOON, Reader, milliseconds, text_of, until
from real_triton.conftest import BOTH, PIECES, TEXT, prompt
from real_triton.server import RealTriton
from worker_adapters import (
    EngineUnavailable,
    PoolUnavailable,
    StreamTruncated,
    UnknownError,
    WorkerAdapter,
    WorkerTimeout,
    connect,
)

pytestmark = [pytest.mark.engines, pytest.mark.real_triton]

Figures = Callable[[str, object], None]

ROUNDS = " ".join([TEXT] * 20)


@pytest.fixture(scope="module")
def fragile() -> Iterator[RealTriton]:
    """A server whose models die and do not load; it must live."""
    with RealTriton(["recite", "crash", "vanish"]) as running:
        yield running


@pytest.fixture
def mortal() -> Iterator[RealTriton]:
    """A server to kill."""
    with RealTriton(["recite", "slow"]) as running:
        yield running


@contextmanager
def adapters(server: RealTriton, model: str) -> Iterator[dict[str, WorkerAdapter]]:
    """One of each transport, without retries."""
    with ExitStack() as ends:
        made = {
            name: connect("triton", url, model=model, retry={"attempts": 1})
            for name, url in (("http", server.url), ("grpc", server.grpc_url))
        }
        for each in made.values():
            ends.callback(each.close)
        yield made


def awake(server: RealTriton, engine: WorkerAdapter, model: str) -> None:
    """Let the model say its text. Triton's Python backend (2.51) holds a model's process for dead when it has not said
    that it lives within a second of a message; where the machine stalls that long it is wrong (seen twice), and stays
    so. Then the model is loaded anew.
    """
    try:
        assert engine.submit(prompt()).result().text == TEXT
    except EngineUnavailable as error:
        if "Stub process" not in error.message:
            raise
        server.reload(model)
        assert engine.submit(prompt()).result().text == TEXT


@BOTH
def test_a_models_process_dies(fragile: RealTriton, transport: str, record_property: Figures) -> None:
    """A job whose model's process ends raises EngineUnavailable with what came before it, and so do those after it.
    The server calls the model ready all along, which deceives no probe. Loaded anew, the model works again.
    """
    with adapters(fragile, "crash") as made:
        engine = made[transport]
        awake(fragile, engine, "crash")
        reader = Reader(engine.submit(prompt("delay=0.05", "exit=3")), at=4)
        reader.start()
        reader.wait()
        began = time.monotonic()
        reader.finish()
        record_property(f"model's process ended -> error ({transport})", f"{reader.ended_at - began:.2f} s")
        error = reader.error
        assert isinstance(error, EngineUnavailable)
        assert (error.tokens_seen, error.partial_text) == (3, "".join(PIECES[:3]))
        assert not error.retriable
        assert fragile.ask("/v2/models/crash/ready")[0] == 200  # a lie
        with pytest.raises(EngineUnavailable) as caught:
            engine.submit(prompt()).start()
        assert caught.value.tokens_seen == 0
        seen = engine.health(probe=True, timeout=PATIENCE)
        assert (seen.live, seen.ready) == (True, False)
        fragile.reload("crash")
        assert engine.submit(prompt()).result().text == TEXT
        assert engine.health(probe=True, timeout=PATIENCE).ready


@BOTH
def test_a_models_process_vanishes(fragile: RealTriton, transport: str) -> None:
    """Of a process that ended while a thread of its own answered the server says nothing, ever: our clock ends the
    job.
    """
    with adapters(fragile, "vanish") as made:
        engine = made[transport]
        awake(fragile, engine, "vanish")
        stream = engine.submit(prompt("exit=3"), timeouts={"between_tokens": 5})
        with pytest.raises(WorkerTimeout) as caught:
            list(stream)
        assert (caught.value.clock, caught.value.partial_text) == ("between_tokens", "".join(PIECES[:3]))
        with pytest.raises(EngineUnavailable):
            engine.submit(prompt()).start()
        assert not engine.health(probe=True, timeout=PATIENCE).ready
        fragile.reload("vanish")
        assert engine.submit(prompt()).result().text == TEXT


def test_a_failed_load(fragile: RealTriton) -> None:
    """After a model failed to load the server calls itself unready, though all others serve: a model is judged by
    itself. And a job for the broken one is refused.
    """
    assert fragile.ready()
    assert fragile.load("broken") == 400
    assert fragile.ready() is False
    with adapters(fragile, "recite") as made:
        for engine in made.values():
            assert engine.health().ready
            assert engine.submit(prompt()).result().text == TEXT
            assert engine.props().model == "recite"
            assert not engine.health().message or "broken" not in engine.health().message
            with pytest.raises((PoolUnavailable, EngineUnavailable)) as caught:
                engine.submit(prompt(), model="broken").start()
            assert "/models/" not in str(caught.value)  # a traceback with the host's paths is part of the reason
    with adapters(fragile, "broken") as made:
        for engine in made.values():
            status = engine.health()
            assert (status.live, status.ready) == (True, False)


@BOTH
def test_a_model_raises(mortal: RealTriton, transport: str, record_property: Figures) -> None:
    """An exception in the model ends its job, typed, with what came before it. (Over gRPC it may end the server.)"""
    with adapters(mortal, "slow") as made:
        reader = Reader(made[transport].submit(prompt("delay=0.02", "raise=3")))
        reader.start()
        reader.finish()
        assert isinstance(reader.error, (UnknownError, EngineUnavailable))
        assert (reader.error.tokens_seen, reader.error.retriable) == (3, False)
        assert "/models/" not in str(reader.error)
        record_property(f"exception in a model ({transport})", f"{type(reader.error).__name__}")


@BOTH
def test_the_server_dies(mortal: RealTriton, transport: str, record_property: Figures) -> None:
    """Streams of a server that is killed end within a second, with exactly what was delivered; so does a job that
    waits for its first token; and then there is no engine.
    """
    with adapters(mortal, "recite") as made:
        engine = made[transport]
        readers = [Reader(engine.submit(prompt("endless", "delay=0.01"), max_tokens=5000), at=3) for _ in range(8)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.wait()
        asked = prompt("first=30")
        waiting = Reader(engine.submit(asked))
        waiting.start()
        until(lambda: mortal.when(asked, "began") is not None)
        killed = time.monotonic()
        mortal.kill_server()
        for reader in (*readers, waiting):
            reader.finish()
        took = [reader.ended_at - killed for reader in (*readers, waiting)]
        record_property(f"server killed -> error (8 streams and one that waits, {transport})", milliseconds(took))
        assert max(took) < SOON
        for reader in readers:
            assert type(reader.error) is StreamTruncated
            assert reader.error.partial_text == text_of(reader.frames)
            assert ROUNDS.startswith(reader.error.partial_text)
            assert (reader.error.phase, reader.error.retriable) == ("stream", False)
        assert isinstance(waiting.error, EngineUnavailable)
        assert (waiting.error.tokens_seen, waiting.error.retriable) == (0, False)
        status = engine.health()
        assert (status.state, status.live, status.ready) == ("unhealthy", False, False)
        with pytest.raises(EngineUnavailable) as caught:
            engine.submit(prompt()).start()
        assert (caught.value.phase, caught.value.retriable) == ("connect", True)


@BOTH
def test_a_server_that_comes_back(mortal: RealTriton, transport: str) -> None:
    """An adapter that had jobs with a server works with the next one at the same address."""
    with adapters(mortal, "recite") as made:
        engine = made[transport]
        assert engine.submit(prompt()).result().text == TEXT
        mortal.kill()
        with pytest.raises(EngineUnavailable):
            engine.submit(prompt()).start()
        mortal.start(again=True)
        assert engine.submit(prompt()).result().text == TEXT
