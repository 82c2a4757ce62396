"""The real llama.cpp killed, stopped and brought back at every phase of a job, and the clocks that run meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from engines.conftest import ROUND
from engines.llamacpp_bench import SOON, Reader, milliseconds, take, text_of, usual, wait_queued, wait_silent
from worker_adapters import EngineUnavailable, LlamaCppHttpAdapter, StreamTruncated, TokenStream, WorkerTimeout
from worker_adapters.embedded import EmbeddedLlamaCpp, recital

pytestmark = [pytest.mark.engines, pytest.mark.llamacpp]

Adapters = Callable[..., LlamaCppHttpAdapter]

CHAT = [{"role": "user", "content": "Go"}]
#: More than any test reads.
MANY = 100_000
#: How late a clock may be on a busy machine; it is to be below 50 ms on an idle one.
LATE = 1.0


def read_until_error(stream: TokenStream) -> tuple[list[Any], Exception, float, float]:
    """Whatever still comes, what ended it, when, and since when nothing had come."""
    frames = []
    since = time.monotonic()
    try:
        for frame in stream:
            frames.append(frame)
            since = time.monotonic()
    except Exception as error:
        return frames, error, time.monotonic(), since
    raise AssertionError("the stream ended well")


# --- killed


@pytest.mark.parametrize("task", ["Go", CHAT], ids=["prompt", "chat"])
def test_killed_in_the_middle(
    cyclic: Path, adapters: Adapters, task: Any, record_property: Callable[[str, object], None]
) -> None:
    """A stream whose engine is killed ends within a second as truncated, with exactly what was delivered."""
    took = []
    with EmbeddedLlamaCpp(cyclic, slots=1) as server:
        engine = adapters(server)
        for _ in range(5):
            server.start()
            stream = engine.submit(task, max_tokens=MANY)
            frames = take(stream, 8)
            killed = time.monotonic()
            server.kill()
            more, error, at, _ = read_until_error(stream)
            took.append(at - killed)
            frames += more
            assert type(error) is StreamTruncated
            assert error.partial_text == text_of(frames)
            assert f"{ROUND} {ROUND} {ROUND}".startswith(error.partial_text[: 2 * len(ROUND)])
            assert error.tokens_seen == sum(frame.type == "token" for frame in frames) >= 7
            assert (error.engine, error.job_id, error.phase) == ("llamacpp", stream.job_id, "stream")
            assert not error.retriable
            assert list(stream) == []
            with pytest.raises(StreamTruncated) as again:
                stream.result()
            assert again.value.partial_text == error.partial_text
            assert not engine.cancel(stream.job_id)
    record_property(
        f"killed mid-stream -> error ({'chat' if task is CHAT else 'prompt'}, kill included)", milliseconds(took)
    )
    assert usual(took) < 1


def test_killed_while_a_reader_waits(
    cyclic: Path, adapters: Adapters, record_property: Callable[[str, object], None]
) -> None:
    """A thread that is blocked in next() on an engine that stands still learns of its death within a second."""
    took = []
    with EmbeddedLlamaCpp(cyclic, slots=1) as server:
        engine = adapters(server)
        for _ in range(5):
            server.start()
            reader = Reader(engine.submit("Go", max_tokens=MANY), at=5)
            reader.start()
            reader.wait()
            server.pause()
            killed = time.monotonic()
            server.kill()
            reader.finish()
            took.append(reader.ended_at - killed)
            assert type(reader.error) is StreamTruncated
            assert reader.error.partial_text == text_of(reader.frames)
    record_property("killed while a reader waits -> error (kill included)", milliseconds(took))
    assert usual(took) < 1


def test_killed_with_jobs_of_every_phase(cyclic: Path, adapters: Adapters) -> None:
    """One death, and every job gets its own error: truncated what had begun, unavailable what was still queued."""
    with EmbeddedLlamaCpp(cyclic, slots=2) as server:
        engine = adapters(server)
        begun = [Reader(engine.submit("Go", max_tokens=MANY)) for _ in range(2)]
        for reader in begun:
            reader.start()
            reader.wait()
        queued = [Reader(engine.submit("Go", max_tokens=MANY)) for _ in range(3)]
        for reader in queued:
            reader.start()
        wait_queued(server, 3)
        server.kill()
        for reader in begun + queued:
            reader.finish()
        assert [type(reader.error) for reader in begun] == [StreamTruncated] * 2
        for reader in queued:
            assert type(reader.error) is EngineUnavailable
            assert not reader.error.retriable  # it had the request: who knows what it did
            assert (reader.error.tokens_seen, reader.error.partial_text, reader.frames) == (0, "", [])


def test_killed_before_the_head(cyclic: Path, adapters: Adapters) -> None:
    """An engine that dies with a request it never answered makes the job unavailable, and nothing is sent twice."""
    with EmbeddedLlamaCpp(cyclic, slots=1) as server:
        engine = adapters(server)
        assert engine.health().ready
        server.pause()
        stream = engine.submit("Go")
        wait_silent(stream)
        killed = time.monotonic()
        server.kill()
        _, error, at, _ = read_until_error(stream)
    assert type(error) is EngineUnavailable
    assert (error.retriable, error.tokens_seen) == (False, 0)
    assert at - killed < SOON
    assert stream.started is None


def test_killed_at_the_prompt(ponderous: Path, adapters: Adapters) -> None:
    """An engine that dies after the head and before its first event leaves the job unavailable, not truncated."""
    with EmbeddedLlamaCpp(ponderous, slots=1, context=4096) as server:
        engine = adapters(server)
        stream = engine.submit("x" * 3000)
        wait_silent(stream, 0.3)
        server.kill()
        _, error, _, _ = read_until_error(stream)
    assert type(error) is EngineUnavailable
    assert (error.phase, error.retriable, error.partial_text) == ("first_token", False, "")


def test_down(adapters: Adapters) -> None:
    """An engine that is gone is unavailable, may be tried again, and was tried as often as the policy says."""
    with EmbeddedLlamaCpp(slots=1) as server:
        engine = adapters(server, retry={"attempts": 3, "base": 0.01})
        server.kill()
        stream = engine.submit("Go")
        with pytest.raises(EngineUnavailable) as caught:
            next(stream)
        assert (caught.value.phase, caught.value.retriable, caught.value.status) == ("connect", True, None)
        assert str(server.port) in str(caught.value)


def test_comes_back_on_the_same_port(adapters: Adapters) -> None:
    """The adapter of an engine that was killed works again once the engine is back, with nothing to reset."""
    with EmbeddedLlamaCpp() as server:
        engine = adapters(server, retry={"attempts": 2, "base": 0.01})
        for _ in range(3):
            assert engine.health().ready  # leaves a connection that the kill makes stale
            assert engine.submit("Go").result().text == recital()
            engine.props()
            server.kill()
            with pytest.raises(EngineUnavailable):
                engine.submit("Go").result()
            assert not engine.health().live
            server.start()
            assert engine.submit("Go").result().text == recital()


def test_comes_back_while_a_job_tries(adapters: Adapters) -> None:
    """A job that finds nothing listening goes on trying, and is served by the engine that comes back."""
    with EmbeddedLlamaCpp() as server:
        engine = adapters(server, retry={"attempts": 1000, "base": 0.02, "cap": 0.05, "budget": 1000.0})
        server.kill()
        stream = engine.submit("Go")
        wait_silent(stream, 0.2)
        server.start()
        assert stream.result().text == recital()


def test_killed_when_all_was_said(adapters: Adapters) -> None:
    """What the engine has said whole is whole, though it dies before it is read."""
    with EmbeddedLlamaCpp(slots=1) as server:
        engine = adapters(server)
        stream = engine.submit("Go")
        stream.start()
        for _ in range(3):
            assert engine.health(probe=True).ready  # one after the other, so the first job's answer is sent by now
        server.pause()
        server.kill()
        assert stream.result().text == recital()


# --- clocks


def test_first_token_clock(adapters: Adapters, record_property: Callable[[str, object], None]) -> None:
    """An engine that accepts and says nothing trips the first_token clock, on time and with no second try."""
    late = []
    with EmbeddedLlamaCpp(slots=1) as server:
        engine = adapters(server, timeouts={"first_token": 0.3})
        assert engine.submit("Go").result().text == recital()
        server.pause()
        for task in ("Go", CHAT) * 4:
            stream = engine.submit(task)
            began = time.monotonic()
            with pytest.raises(WorkerTimeout) as caught:
                next(stream)
            late.append(time.monotonic() - began - 0.3)
            assert (caught.value.clock, caught.value.phase) == ("first_token", "first_token")
            assert (caught.value.retriable, caught.value.tokens_seen) == (False, 0)
        server.resume()
        assert engine.submit("Go", timeouts={"first_token": 20}).result().text == recital()
    record_property("first_token clock, late by", milliseconds(late))
    assert min(late) >= 0
    assert max(late) < LATE


def test_first_token_clock_in_the_queue(
    narrow: EmbeddedLlamaCpp, adapters: Adapters, record_property: Callable[[str, object], None]
) -> None:
    """Waiting for a slot counts to first_token; the job that holds the slot is not disturbed."""
    engine = adapters(narrow)
    with engine.submit("Go", max_tokens=MANY) as holder:
        take(holder, 3)
        began = time.monotonic()
        with pytest.raises(WorkerTimeout) as caught:
            engine.submit("Go", timeouts={"first_token": 0.3}).start()
        record_property("first_token clock in the queue, late by", milliseconds([time.monotonic() - began - 0.3]))
        assert caught.value.clock == "first_token"
        assert time.monotonic() - began < 0.3 + LATE
        assert text_of(take(holder, 20))


def test_a_request_that_cannot_be_sent(adapters: Adapters) -> None:
    """A prompt larger than all buffers is ended by first_token and by cancel, if the engine does not read it."""
    with EmbeddedLlamaCpp(slots=1) as server:
        engine = adapters(server)
        server.pause()
        prompt = "x" * 20_000_000
        began = time.monotonic()
        stream = engine.submit(prompt, timeouts={"first_token": 0.3})
        with pytest.raises(WorkerTimeout) as caught:
            next(stream)
        assert caught.value.clock == "first_token"
        assert time.monotonic() - began < 0.3 + LATE + 1  # the prompt is encoded first
        stream = engine.submit(prompt)
        wait_silent(stream)
        assert stream.cancel()
        assert next(stream).finish_reason == "cancelled"


@pytest.mark.parametrize("task", ["Go", CHAT], ids=["prompt", "chat"])
def test_between_tokens_clock(
    cyclic: Path, adapters: Adapters, task: Any, record_property: Callable[[str, object], None]
) -> None:
    """An engine that stands still in the middle trips between_tokens, on time and with what was delivered."""
    late = []
    with EmbeddedLlamaCpp(cyclic, slots=1) as server:
        engine = adapters(server, timeouts={"between_tokens": 0.3})
        for _ in range(5):
            stream = engine.submit(task, max_tokens=MANY)
            frames = take(stream, 5)
            server.pause()
            more, error, at, since = read_until_error(stream)
            late.append(at - since - 0.3)
            frames += more
            assert isinstance(error, WorkerTimeout)
            assert error.clock == "between_tokens"
            assert error.partial_text == text_of(frames)
            assert error.tokens_seen == len(frames) - 1
            assert not error.retriable
            server.resume()
    record_property(f"between_tokens clock ({'chat' if task is CHAT else 'prompt'}), late by", milliseconds(late))
    assert len(late) == 5
    assert min(late) > -0.02  # the reader began to wait a little before the last frame was noted
    assert max(late) < LATE


def test_total_clock(cyclic: Path, adapters: Adapters, record_property: Callable[[str, object], None]) -> None:
    """The total clock ends a stream that flows, and one that stands still."""
    late = []
    with EmbeddedLlamaCpp(cyclic, slots=1) as server:
        engine = adapters(server)
        for paused in (False, True):
            stream = engine.submit("Go", max_tokens=MANY, timeouts={"total": 0.4})
            began = time.monotonic()
            stream.start()
            if paused:
                server.pause()
            frames, error, at, _ = read_until_error(stream)
            late.append(at - began - 0.4)
            assert isinstance(error, WorkerTimeout)
            assert error.clock == "total"
            assert error.partial_text == text_of(frames)
    record_property("total clock, late by", milliseconds(late))
    assert min(late) >= 0
    assert max(late) < LATE


def test_a_slow_consumer_trips_nothing(cyclic: Path, adapters: Adapters) -> None:
    """Time that the consumer takes is nobody's fault: only waiting for the engine counts."""
    with EmbeddedLlamaCpp(cyclic, slots=1) as server:
        engine = adapters(server, timeouts={"first_token": 5, "between_tokens": 0.2})
        stream = engine.submit("Go", max_tokens=5)
        frames = []
        for frame in stream:
            frames.append(frame)
            time.sleep(0.3)
        assert frames[-1].finish_reason == "length"


def test_the_clocks_of_a_slow_prompt(ponderous: Path, adapters: Adapters) -> None:
    """The silence of a prompt belongs to first_token alone, and keep-alives do not end it."""
    with EmbeddedLlamaCpp(ponderous, slots=1, context=4096, extra={"sse_ping_interval": 1}) as server:
        engine = adapters(server, timeouts={"first_token": 30, "between_tokens": 0.5})
        began = time.monotonic()
        done = engine.submit("x" * 2000, max_tokens=5).result()
        assert time.monotonic() - began > 0.5
        assert done.finish_reason == "length"
        began = time.monotonic()
        with pytest.raises(WorkerTimeout) as caught:
            engine.submit("y" * 3900, max_tokens=5, timeouts={"first_token": 1.5}).start()
        assert caught.value.clock == "first_token"
        assert 1.5 <= time.monotonic() - began < 1.5 + LATE


def test_ticks_while_nothing_comes(adapters: Adapters) -> None:
    """A reader that asks for ticks is woken in time while the engine stands still, and gets the answer later."""
    with EmbeddedLlamaCpp(slots=1) as server:
        engine = adapters(server)
        server.pause()
        frames = []
        beats = []
        began = time.monotonic()
        for frame, number in zip(engine.submit("Go").ticks(0.1), count(1), strict=False):
            frames.append(frame)
            beats.append(time.monotonic() - began)
            if number == 5:
                server.resume()
    assert frames[:5] == [None] * 5
    assert all(0.1 * at <= beat < 0.1 * at + LATE for at, beat in enumerate(beats[:5], 1))
    assert text_of(frames) == recital()
