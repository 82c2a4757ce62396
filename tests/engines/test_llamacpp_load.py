"""The real llama.cpp under many jobs, threads and forks: nothing is lost, nothing crossed, nothing stays open."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engines.llamacpp_bench import SOON, Reader, at_once, forked, take, text_of, types_of
from worker_adapters import EngineUnavailable, LlamaCppHttpAdapter, WorkerError
from worker_adapters.embedded import EmbeddedLlamaCpp

pytestmark = [pytest.mark.engines, pytest.mark.llamacpp]

Adapters = Callable[..., LlamaCppHttpAdapter]
Figures = Callable[[str, object], None]

#: Python 3.12 and later say so of every fork in a process with threads; the test runner has one.
FORKS = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")


@pytest.fixture(scope="module")
def wide() -> Iterator[EmbeddedLlamaCpp]:
    """Many slots."""
    with EmbeddedLlamaCpp(slots=16, context=16 * 512) as running:
        yield running


def saying(text: str) -> dict[str, Any]:
    """The fields of a job that can have no other answer than ``text``: a grammar forces it, whatever the prompt.

    So an answer says whose it is, and one that came to another job cannot go unseen.
    """
    return {"grammar": f'root ::= "{text}"', "temperature": 0, "max_tokens": 64}


def form(prompt: str, number: int) -> Any:
    """Every other job is a conversation."""
    return prompt if number % 2 else [{"role": "user", "content": prompt}]


def run_jobs(engine: LlamaCppHttpAdapter, name: str, count: int) -> int:
    """Jobs one after the other, each with an answer of its own; how many were right.

    :raises AssertionError: an answer that is another job's.
    """
    for number in range(count):
        text = f"{name}-{number}"
        done = engine.submit(form("Go", number), job_id=text, **saying(text)).result()
        assert (done.text, done.job_id, done.finish_reason) == (text, text, "stop")
    return count


def open_files() -> list[str]:
    """What this process has open."""
    names = []
    for entry in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the folder's own descriptor
            names.append(os.readlink(f"/proc/self/fd/{entry}").partition(":")[0])
    return sorted(names)


# --- many jobs


def test_many_jobs_one_after_the_other(server: EmbeddedLlamaCpp, adapters: Adapters) -> None:
    """The engine closes a connection after each stream, whatever it announces; no job is lost to one it has closed."""
    assert run_jobs(adapters(server), "one", 500) == 500


def test_jobs_beside_questions(server: EmbeddedLlamaCpp, adapters: Adapters) -> None:
    """Health, props and jobs of four threads share an adapter and its connections without harm."""
    engine = adapters(server)

    def mixed(name: str) -> None:
        for number in range(40):
            assert engine.health().ready
            run_jobs(engine, f"{name}-{number}", 1)
            if number % 4 == 0:
                assert engine.props().slots_total == 4

    assert at_once([lambda name=name: mixed(name) for name in "abcd"]) == []


def test_64_threads_of_100_jobs(wide: EmbeddedLlamaCpp, adapters: Adapters, record_property: Figures) -> None:
    """64 threads with 100 jobs each on one adapter: 6,400 right answers, none of them another job's."""
    engine = adapters(wide, timeouts={"first_token": 100, "connect": 30})
    right: list[int] = []
    began = time.monotonic()
    errors = at_once([lambda name=name: right.append(run_jobs(engine, f"t{name}", 100)) for name in range(64)])
    record_property("64 threads x 100 jobs", f"{time.monotonic() - began:.1f} s")
    assert errors == []
    assert sum(right) == 6400


def test_cancels_hit_nobody_else(wide: EmbeddedLlamaCpp, adapters: Adapters) -> None:
    """With jobs being cancelled at random, each ends with its own text, whole, or cut off if its cancel said True."""
    engine = adapters(wide, timeouts={"first_token": 100})
    flying: dict[str, None] = {}
    hit: dict[str, bool] = {}
    over = threading.Event()

    def shoot() -> None:
        roll = random.Random(3)
        while not over.wait(0.001):
            for job_id in list(flying):
                if job_id not in hit and roll.random() < 0.05:
                    hit[job_id] = engine.cancel(job_id)

    cut: list[str] = []

    def jobs(name: int) -> None:
        for number in range(60):
            text = f"c{name}-{number}-" + "abcdefghij" * 2
            job_id = f"c{name}-{number}"
            stream = engine.submit(form("Go", number), job_id=job_id, **saying(text))
            flying[job_id] = None
            done = stream.result()
            flying.pop(job_id)
            if done.cancelled:
                assert text.startswith(done.text)
                cut.append(job_id)
            else:
                assert done.text == text

    gunner = threading.Thread(target=shoot, daemon=True)
    gunner.start()
    try:
        assert at_once([lambda name=name: jobs(name) for name in range(16)]) == []
    finally:
        over.set()
        gunner.join()
    assert sorted(cut) == sorted(job_id for job_id, said in hit.items() if said)
    assert len(cut) > 10
    assert run_jobs(engine, "after", 20) == 20


def test_an_id_in_flight_is_taken(engine: LlamaCppHttpAdapter) -> None:
    """Two jobs of one id cannot fly at once, and the id is free as soon as the first has ended, however it ended."""
    for end in ("result", "close", "cancel"):
        stream = engine.submit("Go", job_id="taken")
        stream.start()
        with pytest.raises(ValueError, match="job_id"):
            engine.submit("Go", job_id="taken")
        getattr(stream, end)()
        if end == "cancel":
            assert types_of(stream) == ["end"]


# --- forks


@FORKS
def test_a_warm_adapter_works_on_both_sides_of_a_fork(wide: EmbeddedLlamaCpp, adapters: Adapters) -> None:
    """Parent and child use the adapter at the same time after a fork, 200 jobs each, and every answer is right."""
    engine = adapters(wide)
    for _ in range(3):
        assert engine.health().ready  # leaves a connection in the pool
        run_jobs(engine, "before", 5)
        engine.props()
        child = forked(lambda: [run_jobs(engine, "child", 200), engine.props().slots_total])
        mine = run_jobs(engine, "parent", 200)
        assert engine.health().ready
        assert child() == [200, 16]
        assert mine == 200


@FORKS
def test_a_childs_end_leaves_the_parents_connections_alone(wide: EmbeddedLlamaCpp, adapters: Adapters) -> None:
    """A child that closes the adapter it inherited, and everything in it, does not end what the parent keeps warm."""
    engine = adapters(wide)
    for _ in range(5):
        assert engine.health().ready
        assert forked(engine.close)() is None
        assert run_jobs(engine, "parent", 1) == 1


@FORKS
def test_an_inherited_stream(cyclic: Path, adapters: Adapters) -> None:
    """In the child a stream of the parent raises, whatever is done with it, and the parent's goes on undisturbed."""
    with EmbeddedLlamaCpp(cyclic, slots=2) as server:
        engine = adapters(server)
        stream = engine.submit("Go", max_tokens=200, job_id="inherited")
        frames = take(stream, 5)

        def child() -> list[Any]:
            said: list[Any] = [engine.cancel("inherited"), stream.cancel()]
            for use in (stream.__next__, stream.result, lambda: next(stream.ticks(0.1)), stream.start):
                try:
                    use()
                    said.append("no error")
                except EngineUnavailable as error:
                    said.append("fork" in str(error))
            said.append([frame.type for frame in stream.relay()])
            stream.close()
            said.append(engine.submit("Go", max_tokens=3).result().finish_reason)
            return said

        ask_child = forked(child)
        frames += take(stream, 20)
        assert ask_child() == [False, False, True, True, True, True, ["error"], "length"]
        frames += list(stream)
    assert frames[-1].finish_reason == "length"
    assert frames[-1].metrics.tokens_out == 200
    assert len(text_of(frames).split()) == 200


@FORKS
def test_a_child_that_drops_what_it_inherited(cyclic: Path, adapters: Adapters) -> None:
    """Streams that a child merely inherits and that die with it, begun or not, disturb nobody."""
    with EmbeddedLlamaCpp(cyclic, slots=2) as server:
        engine = adapters(server)
        held = {"begun": engine.submit("Go", max_tokens=100), "waiting": engine.submit("Go", max_tokens=3)}
        frames = take(held["begun"], 5)

        def child() -> int:
            held.clear()
            gc.collect()
            return 1

        assert forked(child)() == 1
        frames += list(held["begun"])
        assert frames[-1].finish_reason == "length"
        assert held["waiting"].result().finish_reason == "length"


@FORKS
def test_a_cancel_is_seen_though_a_child_lives(narrow: EmbeddedLlamaCpp, adapters: Adapters) -> None:
    """A child that holds a copy of the socket does not keep the cancelled or dropped job of its parent alive."""
    engine = adapters(narrow)
    for end in ("cancel", "close", "drop"):
        out, into = os.pipe()
        stream = engine.submit("Go", max_tokens=100_000)
        take(stream, 5)
        alive = forked(lambda out=out, into=into: [os.close(into), os.read(out, 1)][0])
        if end == "drop":
            del stream
        else:
            getattr(stream, end)()
        began = time.monotonic()
        assert engine.submit("Go", max_tokens=1).result().finish_reason == "length"
        assert time.monotonic() - began < SOON
        os.close(into)
        os.close(out)
        assert alive() is None


# --- leaks


def test_nothing_stays_open(cyclic: Path, adapters: Adapters) -> None:
    """After jobs that end in every way, descriptors and threads are what they were before."""
    with EmbeddedLlamaCpp(cyclic, slots=2) as server:

        def every_way() -> None:
            with LlamaCppHttpAdapter(server.url, retry={"attempts": 2, "base": 0.01}) as engine:
                engine.health(probe=True)
                engine.props()
                assert engine.submit("Go", max_tokens=3).result().finish_reason == "length"
                for task in ({"prompt": "x" * 5000}, {"prompt": "Go", "extra": {"n_keep": "many"}}):
                    with pytest.raises(WorkerError):
                        engine.submit(task.pop("prompt"), **task).start()
                for _ in engine.submit("Go", max_tokens=1000):
                    break
                stream = engine.submit("Go", max_tokens=1000)
                take(stream, 3)
                stream.cancel()
                assert types_of(stream) == ["end"]
                server.pause()
                with pytest.raises(WorkerError):
                    engine.submit("Go", timeouts={"first_token": 0.05}).start()
                engine.health(timeout=0.05)
                server.resume()
                readers = [Reader(engine.submit("Go", max_tokens=5)) for _ in range(4)]
                for reader in readers:
                    reader.start()
                for reader in readers:
                    reader.finish()
                    assert reader.error is None

        every_way()  # whatever the first time opens for good
        gc.collect()
        before = open_files(), threading.active_count()
        for _ in range(10):
            every_way()
        gc.collect()
        assert (open_files(), threading.active_count()) == before


def test_an_open_adapter_keeps_few_connections(wide: EmbeddedLlamaCpp, adapters: Adapters) -> None:
    """However many threads used an adapter, no more connections stay open than it may keep idle."""
    before = open_files().count("socket")
    engine = adapters(wide, max_idle=3, timeouts={"first_token": 100})
    assert at_once([lambda name=name: run_jobs(engine, f"k{name}", 5) for name in range(16)]) == []
    assert at_once([lambda: engine.health().ready or 1 / 0] * 16) == []
    assert open_files().count("socket") - before <= 3
    engine.close()
    assert open_files().count("socket") == before
