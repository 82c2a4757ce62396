"""Cancels of jobs of the real llama.cpp, in every phase and from everywhere, and what they leave for the next job."""

from __future__ import annotations

import gc
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from engines.conftest import ROUND
from engines.llamacpp_bench import (
    PATIENCE,
    SOON,
    Reader,
    milliseconds,
    take,
    text_of,
    types_of,
    usual,
    wait_queued,
    wait_silent,
    watch_retries,
)
from worker_adapters import LlamaCppHttpAdapter
from worker_adapters.embedded import EmbeddedLlamaCpp, recital

pytestmark = [pytest.mark.engines, pytest.mark.llamacpp]

Adapters = Callable[..., LlamaCppHttpAdapter]
Figures = Callable[[str, object], None]

CHAT = [{"role": "user", "content": "Go"}]
MANY = 100_000
TRIES = 20


def until_head(engine: LlamaCppHttpAdapter) -> float:
    """How long a new job takes to be accepted: on one slot, how long that takes to be free."""
    began = time.monotonic()
    with engine.submit("Next", max_tokens=1) as stream:
        stream.start()
        took = time.monotonic() - began
        assert stream.result().finish_reason == "length"
    return took


@contextmanager
def handled(number: int, handler: Callable[[], object]) -> Iterator[None]:
    """A signal handler for a while."""
    before = signal.signal(number, lambda *_: handler())
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(number, before)


# --- phases


@pytest.mark.parametrize("task", ["Go", CHAT], ids=["prompt", "chat"])
def test_in_the_middle(narrow: EmbeddedLlamaCpp, adapters: Adapters, task: Any, record_property: Figures) -> None:
    """A reader blocked in next() gets the end at once, with exactly what it was given, and the slot is soon free."""
    engine = adapters(narrow)
    reader_took, head_took = [], []
    for _ in range(TRIES):
        reader = Reader(engine.submit(task, max_tokens=MANY), at=6)
        reader.start()
        reader.wait()
        began = time.monotonic()
        assert engine.cancel(reader.stream.job_id)
        returned = time.monotonic()
        reader.finish()
        reader_took.append(reader.ended_at - began)
        assert returned - began < SOON
        head_took.append(until_head(engine))
        assert reader.error is None
        end = reader.frames[-1]
        assert (end.type, end.finish_reason, end.raw_finish_reason) == ("end", "cancelled", None)
        tokens = len(reader.frames) - 2
        assert (end.metrics.counts, end.metrics.tokens_out) == ("counted", tokens)
        done = reader.stream.result()
        assert done.cancelled
        assert done.text == text_of(reader.frames)
        assert f"{ROUND} {ROUND} {ROUND}".startswith(done.text)
        assert not engine.cancel(reader.stream.job_id)
    kind = "chat" if task is CHAT else "prompt"
    record_property(f"cancel mid-stream -> reader's end ({kind})", milliseconds(reader_took))
    record_property(f"cancel mid-stream -> next job's head ({kind})", milliseconds(head_took))
    assert usual(reader_took) < 1
    assert usual(head_took) < 2


def test_no_token_after_cancel_returned(narrow: EmbeddedLlamaCpp, adapters: Adapters) -> None:
    """No next() that begins after cancel() returned yields a token, also of those that have arrived already."""
    engine = adapters(narrow)
    for at in range(1, 8):
        stream = engine.submit("Go", max_tokens=MANY)
        frames = take(stream, at)
        threading.Event().wait(0.05)  # some more tokens arrive
        assert stream.cancel()
        assert not stream.cancel()
        rest = list(stream)
        assert [frame.type for frame in rest] == ["end"]
        assert stream.result().text == text_of(frames)
        assert rest[0].metrics.tokens_out == at - 1


def test_in_the_queue(narrow: EmbeddedLlamaCpp, adapters: Adapters, record_property: Figures) -> None:
    """A job that waits for a slot ends at once, unstarted, and the one that holds the slot goes on undisturbed."""
    engine = adapters(narrow)
    took = []
    with engine.submit("Go", max_tokens=MANY) as holder:
        held = take(holder, 3)
        for dead in range(5):
            reader = Reader(engine.submit("Go"))
            reader.start()
            wait_queued(narrow, dead + 1)  # while tokens flow, the engine does not notice who has gone
            began = time.monotonic()
            assert engine.cancel(reader.stream.job_id)
            reader.finish()
            took.append(reader.ended_at - began)
            assert [frame.type for frame in reader.frames] == ["end"]
            assert reader.frames[0].finish_reason == "cancelled"
            held += take(holder, 3)
        held += take(holder, 10)
        assert f"{ROUND} {ROUND} {ROUND} {ROUND} {ROUND}".startswith(text_of(held))
    record_property("cancel in the queue -> reader's end", milliseconds(took))
    record_property("five dead jobs in the queue -> next job's head", f"{until_head(engine) * 1000:.1f} ms")
    assert usual(took) < 1


def test_in_a_slow_prompt(ponderous: Path, adapters: Adapters, record_property: Figures) -> None:
    """A cancel during the prompt ends the reader at once; the slot is free when the engine notices, batches later."""
    reader_took, head_took = [], []
    with EmbeddedLlamaCpp(ponderous, slots=1, context=4096, batch=256) as server:
        engine = adapters(server)
        for turn in range(3):
            reader = Reader(engine.submit(f"{turn}" * 3500))
            waiting = engine.submit(f"{turn}" * 3500)
            wait_silent(waiting, 0.3)
            assert waiting.cancel()
            assert waiting.result().text == ""
            reader.start()
            assert not reader.reached.wait(0.2)
            began = time.monotonic()
            assert reader.stream.cancel()
            reader.finish()
            reader_took.append(reader.ended_at - began)
            head_took.append(until_head(engine))
            assert types_of(reader.frames) == ["end"]
    record_property("cancel in a slow prompt -> reader's end", milliseconds(reader_took))
    record_property("cancel in a slow prompt (batch 256) -> next job's head", milliseconds(head_took))
    assert usual(reader_took) < 1
    assert usual(head_took) < 6


def test_before_and_after(engine: LlamaCppHttpAdapter) -> None:
    """A job that was never sent ends unsent; one that has ended cannot be cancelled, nor can an unknown one."""
    early = engine.submit("Go")
    assert engine.cancel(early.job_id)
    assert [frame.type for frame in early] == ["end"]
    late = engine.submit("Go")
    done = late.result()
    assert not engine.cancel(late.job_id)
    assert not late.cancel()
    assert late.result() == done
    assert done.finish_reason == "stop"
    assert not engine.cancel("no such job")


def test_while_it_tries_again(adapters: Adapters) -> None:
    """A cancel between two attempts ends the job without a third."""
    with EmbeddedLlamaCpp(hold_loading=True) as server:
        engine = adapters(server, retry={"attempts": 100, "base": 30.0, "cap": 60.0, "seed": 1})
        reader = Reader(engine.submit("Go"))
        with watch_retries() as refused:
            reader.start()
            assert refused.wait(PATIENCE)
        began = time.monotonic()
        assert reader.stream.cancel()
        reader.finish()
        assert reader.ended_at - began < SOON
        assert types_of(reader.frames) == ["end"]


def test_of_an_engine_that_stands_still(adapters: Adapters, record_property: Figures) -> None:
    """The cancel of a reader needs nothing of the engine."""
    took = []
    with EmbeddedLlamaCpp(slots=1) as server:
        engine = adapters(server)
        server.pause()
        for _ in range(TRIES):
            reader = Reader(engine.submit("Go"))
            reader.start()
            assert not reader.reached.wait(0.02)
            began = time.monotonic()
            assert reader.stream.cancel()
            reader.finish()
            took.append(reader.ended_at - began)
            assert types_of(reader.frames) == ["end"]
        server.resume()
        assert engine.submit("Go").result().text == recital()
    record_property("cancel, engine paused -> reader's end", milliseconds(took))
    assert usual(took) < 1


# --- signal handlers


def test_from_a_handler_in_the_loop(narrow: EmbeddedLlamaCpp, adapters: Adapters) -> None:
    """A handler that runs between two frames cancels by the id; the next frame is the end."""
    engine = adapters(narrow)
    said: list[bool] = []
    frames = []
    stream = engine.submit("Go", max_tokens=MANY, job_id="signalled")
    with handled(signal.SIGUSR1, lambda: said.append(engine.cancel("signalled"))):
        for frame in stream:
            frames.append(frame)
            if len(frames) == 5:
                signal.raise_signal(signal.SIGUSR1)
    assert said == [True]
    assert len(frames) == 6
    assert frames[-1].finish_reason == "cancelled"


@pytest.mark.parametrize("phase", ["stream", "queue"])
def test_from_a_handler_while_blocked(narrow: EmbeddedLlamaCpp, adapters: Adapters, phase: str) -> None:
    """A handler that interrupts the main thread in its wait for the engine cancels the very job it waits for."""
    engine = adapters(narrow)
    said: list[bool] = []
    holder = engine.submit("Go", max_tokens=MANY)
    if phase == "queue":
        holder.start()
    stream = engine.submit("Go", max_tokens=MANY, job_id=f"blocked {phase}")

    def shoot() -> None:
        if phase == "queue":
            wait_queued(narrow)
        os.kill(os.getpid(), signal.SIGUSR1)

    thread = threading.Thread(target=shoot, daemon=True)
    with handled(signal.SIGUSR1, lambda: said.append(engine.cancel(stream.job_id))):
        if phase == "stream":
            stream.start()
        thread.start()
        frames = list(stream)
        thread.join(PATIENCE)
    holder.close()
    assert said == [True]
    assert frames[-1].finish_reason == "cancelled"
    assert (stream.started is None) == (phase == "queue")


def test_from_a_handler_at_any_moment(server: EmbeddedLlamaCpp, adapters: Adapters) -> None:
    """Whenever a handler strikes, the job ends cancelled or whole, with the text of its frames, and never hangs."""
    engine = adapters(server)
    roll = random.Random(7)
    ends = {"cancelled": 0, "stop": 0}
    current: list[Any] = []
    said: list[bool] = []
    with handled(signal.SIGALRM, lambda: said.append(current[-1].cancel())):
        for turn in range(150):
            said.clear()
            stream = engine.submit("Go" if turn % 2 else CHAT)
            current[:] = [stream]
            signal.setitimer(signal.ITIMER_REAL, roll.uniform(0.0001, 0.02))
            frames = list(stream)
            signal.setitimer(signal.ITIMER_REAL, 0)
            reason = frames[-1].finish_reason
            ends[reason] += 1
            assert (reason == "cancelled") == (said[:1] == [True])
            assert recital().startswith(text_of(frames))
            assert reason == "cancelled" or text_of(frames) == recital()
            assert stream.result().text == text_of(frames)
    assert ends["cancelled"] > 5
    assert ends["stop"] > 5


# --- abandoned


@contextmanager
def without_gc() -> Iterator[None]:
    """Only reference counts free anything."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


WAYS: dict[str, Callable[[Any], Iterator[Any]]] = {
    "frames": iter,
    "texts": lambda stream: stream.texts(),
    "ticks": lambda stream: stream.ticks(1.0),
    "relay": lambda stream: stream.relay(),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_dropped_stream_frees_its_slot(
    narrow: EmbeddedLlamaCpp, adapters: Adapters, way: str, record_property: Figures
) -> None:
    """A loop that is left by break drops its stream, and that alone cancels the job at the engine."""
    engine = adapters(narrow)
    took = []
    with without_gc():
        for _ in range(5):
            for number, _frame in enumerate(WAYS[way](engine.submit("Go", max_tokens=MANY, job_id="dropped"))):
                if number == 5:
                    break
            assert not engine.cancel("dropped")
            took.append(until_head(engine))
    record_property(f"abandoned ({way}) -> next job's head", milliseconds(took))
    assert usual(took) < 2


def test_a_stream_closed_by_an_exception_frees_its_slot(narrow: EmbeddedLlamaCpp, adapters: Adapters) -> None:
    """An exception that leaves the with block ends the job, though its traceback still holds the stream."""
    engine = adapters(narrow)
    stream = engine.submit("Go", max_tokens=MANY)
    error: Exception | None = None
    try:
        with stream:
            for frame in stream:
                assert frame.type == "end"
    except AssertionError as caught:
        error = caught
    assert until_head(engine) < SOON
    assert error is not None
    assert list(stream) == []


def test_closed_by_another_thread(narrow: EmbeddedLlamaCpp, adapters: Adapters) -> None:
    """Closing a stream that another thread reads ends that reader and frees the slot."""
    engine = adapters(narrow)
    for _ in range(5):
        reader = Reader(engine.submit("Go", max_tokens=MANY), at=4)
        reader.start()
        reader.wait()
        reader.stream.close()
        reader.finish()
        assert reader.error is None
        assert until_head(engine) < SOON


def test_closing_the_adapter_leaves_streams_alone(narrow: EmbeddedLlamaCpp, adapters: Adapters) -> None:
    """close() of the adapter frees what is idle; a stream in flight goes on, and new jobs work."""
    engine = adapters(narrow)
    with engine.submit("Go", max_tokens=30) as stream:
        frames = take(stream, 4)
        engine.close()
        engine.close()
        frames += list(stream)
    assert frames[-1].finish_reason == "length"
    assert engine.submit("Go", max_tokens=2).result().finish_reason == "length"
