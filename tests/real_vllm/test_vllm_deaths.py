"""The real vLLM killed under its jobs, in part and whole. These tests end the servers, so they come last."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from engines.llamacpp_bench import SOON, Reader, milliseconds, text_of, until
from real_vllm.conftest import TEXT
from real_vllm.server import RealVllm
from worker_adapters import EngineUnavailable, StreamTruncated, VllmHttpAdapter

pytestmark = [pytest.mark.engines, pytest.mark.real_vllm]

Make = Callable[..., Any]
Figures = Callable[[str, object], None]

CHAT = [{"role": "user", "content": "Go"}]
LONG: dict[str, Any] = {"extra": {"ignore_eos": True}, "max_tokens": 500, "temperature": 0}


def test_the_engine_dies(narrow: RealVllm, make: Make, record_property: Figures) -> None:
    """The death of the computing process ends the job that runs and those that wait within a second, and health
    says so."""
    engine = make(VllmHttpAdapter, narrow.url, api_key=narrow.key, retry={"attempts": 1})
    begun = Reader(engine.submit("Go", **LONG), at=4)
    begun.start()
    begun.wait()
    queued = [Reader(engine.submit(task, **LONG)) for task in ("Go", CHAT)]
    for reader in queued:
        reader.start()
    until(lambda: narrow.busy() == 3)
    killed = time.monotonic()
    narrow.kill_engine()
    for reader in (begun, *queued):
        reader.finish()
    took = [reader.ended_at - killed for reader in (begun, *queued)]
    record_property("engine process killed -> error (running, queued)", milliseconds(took))
    assert max(took) < SOON
    assert isinstance(begun.error, EngineUnavailable)
    assert begun.error.partial_text == text_of(begun.frames)
    assert (TEXT * 30).startswith(begun.error.partial_text)
    assert not begun.error.retriable
    for reader in queued:
        assert isinstance(reader.error, EngineUnavailable)
        assert reader.error.tokens_seen == 0
    status = engine.health()
    assert (status.state, status.live, status.ready) == ("unhealthy", False, False)
    with pytest.raises(EngineUnavailable):
        engine.submit("Go").start()
    until(lambda: not narrow.listens())  # the process that serves HTTP outlives the engine by a moment
    with pytest.raises(EngineUnavailable):
        engine.props()


def in_mid_stream(server: RealVllm, engine: VllmHttpAdapter) -> list[Reader]:
    """Eight streams of an engine that stands still: however long the machine takes to kill it, none ends by itself."""
    while True:
        readers = [Reader(engine.submit(task, **LONG), at=2) for task in ("Go", CHAT) * 4]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.wait()
        os.kill(server.engine_pid(), signal.SIGSTOP)
        if all(len(reader.frames) < LONG["max_tokens"] / 2 for reader in readers):
            return readers
        os.kill(server.engine_pid(), signal.SIGCONT)  # the machine stalled: again
        for reader in readers:
            reader.finish()


def test_all_of_it_dies(plain: RealVllm, make: Make, record_property: Figures) -> None:
    """Streams of a server that is killed whole end within a second as truncated, with exactly what was delivered."""
    engine = make(VllmHttpAdapter, plain.url, retry={"attempts": 1})
    readers = in_mid_stream(plain, engine)
    killed = time.monotonic()
    plain.kill()
    for reader in readers:
        reader.finish()
    took = [reader.ended_at - killed for reader in readers]
    record_property("server killed -> error (8 streams, kill included)", milliseconds(took))
    assert max(took) < SOON
    for reader in readers:
        assert type(reader.error) is StreamTruncated
        assert reader.error.partial_text == text_of(reader.frames)
        assert (TEXT * 30).startswith(reader.error.partial_text)
        assert (reader.error.phase, reader.error.retriable) == ("stream", False)
    status = engine.health()
    assert (status.state, status.live, status.ready) == ("unhealthy", False, False)
    with pytest.raises(EngineUnavailable) as caught:
        engine.submit("Go").start()
    assert (caught.value.phase, caught.value.retriable) == ("connect", True)
