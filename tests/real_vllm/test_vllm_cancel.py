"""Cancels of jobs of the real vLLM, running and queued, over a closed socket and over the route that aborts."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from engines.llamacpp_bench import Reader, milliseconds, take, text_of, until, usual
from real_vllm.conftest import TEXT
from real_vllm.door import Door
from real_vllm.server import RealVllm
from worker_adapters import TokenStream, VllmHttpAdapter

pytestmark = [pytest.mark.engines, pytest.mark.real_vllm]

Make = Callable[..., Any]
Figures = Callable[[str, object], None]

CHAT = [{"role": "user", "content": "Go"}]
FORMS = pytest.mark.parametrize("task", ["Go", CHAT], ids=["prompt", "chat"])
#: More than a minute on the narrow server.
LONG: dict[str, Any] = {"extra": {"ignore_eos": True}, "max_tokens": 4000, "temperature": 0}
ABORT = "POST /inference/v1/abort_requests"
TRIES = 15


@pytest.fixture(autouse=True)
def nothing_ended_by_itself(narrow: RealVllm) -> Iterator[None]:
    """However long a machine stalls: what ended a job of the narrow server was never the job's own length."""
    before = narrow.metric("request_success_total")  # it does not count the aborted
    yield
    assert narrow.metric("request_success_total") == before


def freed(server: RealVllm, began: float, busy: int = 0) -> float:
    """How long since ``began`` until only so many requests run or wait."""
    until(lambda: server.busy() == busy, every=0.002)
    return time.monotonic() - began


def running(stream: TokenStream) -> Reader:
    """A reader whose job has given a few tokens."""
    reader = Reader(stream, at=4)
    reader.start()
    reader.wait()
    assert reader.error is None
    return reader


@FORMS
def test_in_the_middle(narrow: RealVllm, make: Make, task: Any, record_property: Figures) -> None:
    """A reader blocked in next() gets the end at once, with exactly what it was given, and the engine is soon free."""
    engine = make(VllmHttpAdapter, narrow.url, api_key=narrow.key)
    reader_took, free_took, call_took = [], [], []
    for _ in range(TRIES):
        reader = running(engine.submit(task, **LONG))
        began = time.monotonic()
        assert engine.cancel(reader.stream.job_id)
        call_took.append(time.monotonic() - began)
        free_took.append(freed(narrow, began))
        reader.finish()
        reader_took.append(reader.ended_at - began)
        assert reader.error is None
        end = reader.frames[-1]
        assert (end.type, end.finish_reason) == ("end", "cancelled")
        done = reader.stream.result()
        assert done.cancelled
        assert done.text == text_of(reader.frames)
        assert (TEXT + TEXT).startswith(done.text)
    kind = "chat" if task is CHAT else "prompt"
    record_property(f"cancel mid-stream -> cancel() returned ({kind})", milliseconds(call_took))
    record_property(f"cancel mid-stream -> reader's end ({kind})", milliseconds(reader_took))
    record_property(f"cancel mid-stream -> running + waiting is 0 ({kind})", milliseconds(free_took))
    assert usual(reader_took) < 1
    assert usual(free_took) < 5


@FORMS
def test_in_the_queue(narrow: RealVllm, make: Make, task: Any, record_property: Figures) -> None:
    """A job that waits ends at once, and the one that runs goes on undisturbed."""
    engine = make(VllmHttpAdapter, narrow.url, api_key=narrow.key)
    reader_took, free_took = [], []
    holder = engine.submit("Go", **LONG)
    held = take(holder, 3)
    for _ in range(TRIES):
        reader = Reader(engine.submit(task, **LONG))
        reader.start()
        until(lambda: narrow.metric("num_requests_waiting") == 1, every=0.01)
        began = time.monotonic()
        assert engine.cancel(reader.stream.job_id)
        free_took.append(freed(narrow, began, busy=1))
        reader.finish()
        reader_took.append(reader.ended_at - began)
        assert [frame.type for frame in reader.frames] == ["end"]
        assert reader.frames[0].finish_reason == "cancelled"
    held += take(holder, 5)
    assert (TEXT * 30).startswith(text_of(held))
    holder.close()
    freed(narrow, time.monotonic())
    kind = "chat" if task is CHAT else "prompt"
    record_property(f"cancel in the queue -> reader's end ({kind})", milliseconds(reader_took))
    record_property(f"cancel in the queue -> waiting is 0 ({kind})", milliseconds(free_took))
    assert usual(reader_took) < 1
    assert usual(free_took) < 5


@pytest.mark.parametrize("end", ["close", "drop", "total"])
def test_other_ways_to_leave(narrow: RealVllm, make: Make, end: str) -> None:
    """Closing a stream, dropping it, and a clock that fires free the engine as a cancel does."""
    engine = make(VllmHttpAdapter, narrow.url, api_key=narrow.key)
    for task in ("Go", CHAT):
        timeouts = {"timeouts": {"total": 1.0}} if end == "total" else {}
        stream = engine.submit(task, **LONG, **timeouts)
        if end == "total":
            with pytest.raises(TimeoutError):
                list(stream)
        else:
            take(stream, 3)
        if end == "close":
            stream.close()
        del stream
        freed(narrow, time.monotonic())


@FORMS
def test_the_route_that_aborts(narrow: RealVllm, make: Make, task: Any, record_property: Figures) -> None:
    """Behind a gateway that hides the end of a connection, the abort route alone ends the job, running or queued."""
    door = make(Door, narrow.port, deaf=True)
    took = []
    for number in range(6):
        # Two, and new ones each time: an adapter that had to wait long for the route leaves it alone for a while.
        engine, other = (make(VllmHttpAdapter, door.url, api_key=narrow.key) for _ in "12")
        holder = running(engine.submit(task, **LONG, job_id=f"held-{number}"))
        waiting = Reader(other.submit(task, **LONG, job_id=f"queued-{number}"))
        waiting.start()
        until(lambda: narrow.busy() == 2, every=0.01)
        assert other.cancel(f"queued-{number}")
        freed(narrow, time.monotonic(), busy=1)
        began = time.monotonic()
        assert engine.cancel(f"held-{number}")
        took.append(freed(narrow, began))
        for reader in (holder, waiting):
            reader.finish()
            assert reader.error is None
            assert reader.frames[-1].finish_reason == "cancelled"
    asked = [json.loads(data.partition(b"\r\n\r\n")[2])["request_ids"] for line, data in door.requests if ABORT in line]
    form = "chatcmpl-{}" if task is CHAT else "cmpl-{}-0"
    assert asked == [[form.format(f"{which}-{n}")] for n in range(6) for which in ("queued", "held")]
    record_property(
        f"cancel behind a deaf gateway -> running + waiting is 0 ({'chat' if task is CHAT else 'prompt'})",
        milliseconds(took),
    )
    assert usual(took) < 5


def test_a_route_that_is_switched_off_is_asked_once(plain: RealVllm, make: Make) -> None:
    """A server without the route says 403 to the first cancel, and is not asked again.

    On a machine that stalls, an adapter may not even reach it in time, and leaves the route alone for a minute; or the
    answer may come after it has stopped waiting, and it asks once more.
    """
    door = make(Door, plain.port)

    def cancel_one(engine: VllmHttpAdapter) -> int:
        stream = engine.submit("Go", **{**LONG, "max_tokens": 500})
        take(stream, 3)
        assert engine.cancel(stream.job_id)
        assert [frame.finish_reason for frame in stream] == ["cancelled"]
        freed(plain, time.monotonic())
        return door.count(ABORT)

    engines = (make(VllmHttpAdapter, door.url) for _ in range(10))
    engine = next(each for each in engines if cancel_one(each))
    asked = [cancel_one(engine) for _ in range(7)]
    assert asked[-1] == asked[-4]


def test_cancels_hit_nobody_else(plain: RealVllm, make: Make) -> None:
    """With every other of 40 jobs cancelled, the others end whole, each with its own text."""
    engine = make(VllmHttpAdapter, plain.url, timeouts={"first_token": 100})
    readers = []
    for number in range(40):
        text = f"whole-{number}-" + "abcdefghij" * 5
        fields: dict[str, Any] = {"extra": {"structured_outputs": {"regex": text}}, "temperature": 0}
        readers.append((text, Reader(engine.submit("Go", **fields), at=4)))
        readers[-1][1].start()
    for _, reader in readers[::2]:
        reader.wait()
        engine.cancel(reader.stream.job_id)
    for number, (text, reader) in enumerate(readers):
        reader.finish()
        assert reader.error is None
        done = reader.stream.result()
        assert text.startswith(done.text)
        assert done.text == text or (done.cancelled and number % 2 == 0)
    freed(plain, time.monotonic())
