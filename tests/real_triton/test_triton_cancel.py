"""Cancels of jobs of the real Triton in every phase: how soon the reader has its end, and how soon the model knows."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from engines.llamacpp_bench import SOON, Reader, milliseconds, take, text_of, until, usual
from real_triton.conftest import BOTH, TEXT, prompt
from real_triton.server import RealTriton

pytestmark = [pytest.mark.engines, pytest.mark.real_triton, BOTH]

Make = Callable[..., Any]
Figures = Callable[[str, object], None]

TRIES = 20
#: What it says over and over.
ROUNDS = " ".join([TEXT] * 400)
#: A model of each convention that can be told, and hears of cancels.
TOLD = pytest.mark.parametrize("model", ["recite", "vllm_model", "llmapi", "tensorrt_llm_bls"])


def spread(seconds: Iterable[float]) -> str:
    """p50 and p99 of some times."""
    times = sorted(seconds)
    last = times[min(len(times) - 1, round(0.99 * len(times)))]
    return f"p50 {statistics.median(times) * 1000:.1f} ms, p99 {last * 1000:.1f} ms, n={len(times)}"


def ended(triton: RealTriton, asked: str) -> None:
    """Wait until the model is done with a job."""
    until(lambda: triton.when(asked, "ended") is not None, every=0.005)


def cancelled(reader: Reader) -> float:
    """Cancel a job from this thread; how long until its reader had the end, with exactly what was delivered."""
    began = time.monotonic()
    assert reader.stream.cancel()
    call = time.monotonic() - began
    reader.finish()
    assert reader.error is None
    assert (reader.frames[-1].type, reader.frames[-1].finish_reason) == ("end", "cancelled")
    done = reader.stream.result()
    assert done.cancelled
    assert done.text == text_of(reader.frames)
    assert call < SOON
    return reader.ended_at - began


@TOLD
def test_in_the_middle(triton: RealTriton, make: Make, transport: str, model: str, record_property: Figures) -> None:
    """A reader blocked between tokens gets the end at once, and the model knows within its next check."""
    engine = make(transport, model)
    reader_took, model_took = [], []
    for _ in range(TRIES if model == "recite" else 5):
        asked = prompt("endless", "delay=0.02")
        reader = Reader(engine.submit(asked, max_tokens=5000), at=4)
        reader.start()
        reader.wait()
        began = time.monotonic()
        reader_took.append(cancelled(reader))
        ended(triton, asked)
        told = triton.when(asked, "cancelled")
        assert told is not None
        model_took.append(told - began)
        assert ROUNDS.startswith(text_of(reader.frames))
    record_property(f"cancel mid-stream -> reader's end ({model}, {transport})", spread(reader_took))
    record_property(f"cancel mid-stream -> the model knows ({model}, {transport})", spread(model_took))
    assert usual(reader_took) < 1
    assert usual(model_took) < 2


def test_while_it_flows(triton: RealTriton, make: Make, transport: str, record_property: Figures) -> None:
    """A stream at full speed is ended as well, and no token comes after. Over gRPC it is held to a token a millisecond:
    the server itself (2.41 to 2.51) may die of a cancel at more than a thousand a second, which is no news of ours.
    """
    engine = make(transport)
    wishes = ["endless", "delay=0.001"] if transport == "grpc" else ["endless"]
    reader_took, model_took = [], []
    for _ in range(5):
        asked = prompt(*wishes)
        reader = Reader(engine.submit(asked, max_tokens=100_000), at=200)
        reader.start()
        reader.wait()
        began = time.monotonic()
        reader_took.append(cancelled(reader))
        count = len(reader.frames)
        ended(triton, asked)
        model_took.append((triton.when(asked, "cancelled") or began + 99) - began)
        assert len(reader.frames) == count
    record_property(f"cancel in full flow -> reader's end ({transport})", spread(reader_took))
    record_property(f"cancel in full flow -> the model knows ({transport})", spread(model_took))
    assert usual(reader_took) < 1
    assert usual(model_took) < 5


@TOLD
def test_before_the_first_response(
    triton: RealTriton, make: Make, transport: str, model: str, record_property: Figures
) -> None:
    """A reader that waits for the first response gets the end at once. Over gRPC the model knows at once, too; over
    HTTP only with its first response, which is what capabilities say of it.
    """
    engine = make(transport, model)
    engine.submit(prompt(), max_tokens=1).result()  # what is asked only once is asked
    reader_took, model_took = [], []
    asked_all = []
    for _ in range(TRIES if model == "recite" else 3):
        asked = prompt("endless", "delay=0.01", "first=0.8" if transport == "http" else "first=10")
        asked_all.append(asked)
        reader = Reader(engine.submit(asked, max_tokens=2000))
        reader.start()
        until(lambda asked=asked: triton.when(asked, "began") is not None, every=0.005)
        began = time.monotonic()
        reader_took.append(cancelled(reader))
        assert [frame.type for frame in reader.frames] == ["end"]
        if transport == "grpc":
            ended(triton, asked)
            model_took.append((triton.when(asked, "cancelled") or began + 99) - began)
    for asked in asked_all:
        ended(triton, asked)
        assert triton.when(asked, "cancelled") is not None
    record_property(f"cancel in prefill -> reader's end ({model}, {transport})", spread(reader_took))
    assert usual(reader_took) < 1
    if transport == "grpc":
        record_property(f"cancel in prefill -> the model knows ({model}, {transport})", spread(model_took))
        assert usual(model_took) < 2
        assert all(triton.events(asked)[-1].tokens == 0 for asked in asked_all)
    else:
        assert "first" in engine.props().capabilities.release


@pytest.mark.parametrize("model", ["slow", "full"])
def test_in_the_queue(triton: RealTriton, make: Make, transport: str, model: str, record_property: Figures) -> None:
    """A job that waits for another ends at once, and the one that runs goes on undisturbed. Over gRPC it never says a
    token: with a dynamic batcher the model never hears of it, without one it is told that the job is cancelled.
    """
    engine = make(transport, model)
    engine.submit(prompt(), max_tokens=1).result()
    holder = engine.submit(prompt("endless", "delay=0.01"), max_tokens=5000)
    held = take(holder, 3)
    took, asked_all = [], []
    for _ in range(TRIES if model == "slow" else 1):  # the other has room for one
        asked = prompt("endless", "delay=0.01")
        asked_all.append(asked)
        reader = Reader(engine.submit(asked, max_tokens=5000))
        reader.start()
        until(lambda: triton.metric("nv_inference_pending_request_count", model) >= 1, every=0.01)
        took.append(cancelled(reader))
        assert [frame.type for frame in reader.frames] == ["end"]
    held += take(holder, 5)
    assert ROUNDS.startswith(text_of(held))
    holder.close()
    until(lambda: triton.metric("nv_inference_pending_request_count", model) == 0 and not triton.running())
    assert engine.submit(prompt(), max_tokens=3).result().text == "The quick brown"
    if transport == "grpc":
        assert all(each.tokens == 0 for asked in asked_all for each in triton.events(asked))
    record_property(f"cancel in the queue -> reader's end ({model}, {transport})", spread(took))
    assert usual(took) < 1


def test_a_model_that_is_not_decoupled(triton: RealTriton, make: Make, transport: str) -> None:
    """The reader of a model that answers once is freed at once, and over gRPC the model knows."""
    engine = make(transport, "one")
    engine.submit(prompt()).result()
    asked = prompt("first=1" if transport == "http" else "first=10")
    reader = Reader(engine.submit(asked))
    reader.start()
    until(lambda: triton.when(asked, "began") is not None, every=0.005)
    assert cancelled(reader) < SOON
    ended(triton, asked)
    assert (triton.when(asked, "cancelled") is not None) == (transport == "grpc")


def test_an_ensemble(triton: RealTriton, make: Make, transport: str, record_property: Figures) -> None:
    """The reader is freed at once, and the engine inside is told by another call, each time."""
    engine = make(transport, "ensemble")
    took = []
    for _ in range(2):
        asked = prompt("endless", "delay=0.01")
        reader = Reader(engine.submit(asked, max_tokens=100), at=4)
        reader.start()
        reader.wait()
        took.append(cancelled(reader))
        ended(triton, asked)
        last = triton.events(asked)
        told = next((each.event for each in last if each.event in ("told to stop", "cancelled")), "nothing")
        assert told == "told to stop"
    record_property(f"cancel of an ensemble -> reader's end ({transport})", milliseconds(took))
    record_property(f"an ensemble's engine was told ({transport})", f"{told}, it said {last[-1].tokens} of 100 tokens")
    assert usual(took) < 1
    assert engine.props().capabilities.release


@pytest.mark.parametrize("end", ["close", "drop", "total"])
def test_other_ways_to_leave(triton: RealTriton, make: Make, transport: str, end: str) -> None:
    """Closing a stream, dropping it, and a clock that fires stop the model as a cancel does."""
    engine = make(transport)
    timeouts = {"timeouts": {"total": 0.5}} if end == "total" else {}
    asked = prompt("endless", "delay=0.01")
    stream = engine.submit(asked, max_tokens=5000, **timeouts)
    take(stream, 3)
    began = time.monotonic()
    if end == "close":
        stream.close()
    elif end == "total":
        with pytest.raises(TimeoutError):
            list(stream)
    del stream
    ended(triton, asked)
    assert triton.when(asked, "cancelled") is not None
    assert (triton.when(asked, "ended") or 0) - began < SOON


def test_cancels_hit_nobody_else(triton: RealTriton, make: Make, transport: str) -> None:
    """With every other of 40 jobs cancelled, the others end whole, each with its own text."""
    engine = make(transport)
    readers = []
    for number in range(40):
        text = f"whole{number} " + " ".join("abcdefghij")
        readers.append((text, Reader(engine.submit(f"!echo !delay=0.02 {text}"), at=4)))
        readers[-1][1].start()
    for _, reader in readers[::2]:
        reader.wait()
        reader.stream.cancel()
    for number, (text, reader) in enumerate(readers):
        reader.finish()
        assert reader.error is None
        done = reader.stream.result()
        assert text.startswith(done.text)
        assert done.text == text or (done.cancelled and number % 2 == 0)
    until(lambda: not triton.running())
