"""The cancel mark of a job and the registry of jobs in flight, also entered twice at once."""

from __future__ import annotations

import os
import signal
import threading
import weakref
from collections.abc import Callable

import pytest

from worker_adapters.cancel import Job, JobRegistry, new_job_id


def awake(job: Job) -> int:
    """How often the job was woken, without waiting."""
    return job.wake.qsize()


def test_a_cancel_marks_shuts_down_and_wakes_once() -> None:
    """The first cancel is True, calls every shutdown and wakes the reader; any other is False and does nothing."""
    job = Job("j")
    calls: list[str] = []
    assert job.attach(lambda: calls.append("a"))
    assert job.attach(lambda: calls.append("b"))
    assert [job.cancel(), job.cancel()] == [True, False]
    assert job.cancelled
    assert calls == ["a", "b"]
    assert awake(job) == 1


def test_a_cancel_after_the_end_is_too_late() -> None:
    """A job that has ended is not cancelled any more."""
    job = Job("j")
    assert job.finish()
    assert job.cancel() is False
    assert job.cancelled is False
    assert awake(job) == 0


def test_an_end_after_a_cancel_is_the_cancels() -> None:
    """A job that was cancelled does not end by itself."""
    job = Job("j")
    job.cancel()
    assert job.finish() is False
    assert job.cancelled


def test_attach_after_a_cancel_is_refused_and_never_called() -> None:
    """A connection that comes too late is told so, and is the caller's to close."""
    job = Job("j")
    job.cancel()
    calls: list[int] = []
    assert job.attach(lambda: calls.append(1)) is False
    assert job.cancel() is False
    assert calls == []


def test_a_detached_connection_is_not_shut_down() -> None:
    """After detach, which says that no cancel came, none reaches the connection: it may serve another job."""
    job = Job("j")
    calls: list[str] = []
    mine: Callable[[], object] = lambda: calls.append("mine")  # noqa: E731 - compared by identity
    assert job.attach(mine)
    assert job.attach(lambda: calls.append("other"))
    assert job.detach(mine) is True
    assert job.cancel() is True
    assert calls == ["other"]


def test_detach_after_a_cancel_says_so() -> None:
    """A connection that a cancel has touched serves no other job."""
    job = Job("j")
    shutdown = list[int]().clear
    job.attach(shutdown)
    job.cancel()
    assert job.detach(shutdown) is False


def test_detach_of_what_was_never_attached_is_harmless() -> None:
    """Detaching twice, or something else, changes nothing."""
    job = Job("j")
    assert job.detach(lambda: None) is True


def test_a_bound_method_can_be_detached_by_an_equal_one() -> None:
    """``connection.shutdown`` is another object at each look, and still the same shutdown."""
    job = Job("j")
    calls: list[int] = []
    assert job.attach(calls.clear)
    assert job.detach(calls.clear)
    calls.append(1)
    job.cancel()
    assert calls == [1]


@pytest.mark.parametrize("inner", ["cancel", "attach", "detach", "finish"])
def test_every_method_can_run_inside_a_shutdown(inner: str) -> None:
    """A signal handler that enters the job again in the middle of a cancel neither hangs nor does harm."""
    job = Job("j")
    results: list[bool] = []
    calls: list[str] = []

    def late() -> object:
        return calls.append("late")

    def again() -> None:
        calls.append("again")
        method = getattr(job, inner)
        results.append(method() if inner in ("cancel", "finish") else method(late))

    job.attach(again)
    assert job.cancel() is True
    assert results == [False]
    assert calls == ["again"]
    assert job.cancelled
    assert awake(job) == 1


class EntersAgain:
    """A lock that lets the test run something at the worst moment: just after it was taken."""

    def __init__(self, job: Job, handler: Callable[[], object]) -> None:
        self._lock = threading.RLock()
        self._handler: Callable[[], object] | None = handler
        job._lock = self  # type: ignore[assignment]  # stands in for the RLock

    def __enter__(self) -> None:
        self._lock.acquire()
        handler, self._handler = self._handler, None
        if handler is not None:
            handler()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def test_a_cancel_inside_a_cancel_wins_alone() -> None:
    """Of two cancels in one another, exactly one is True and each shutdown is called once."""
    job = Job("j")
    calls: list[int] = []
    job.attach(lambda: calls.append(1))
    inner: list[bool] = []
    EntersAgain(job, lambda: inner.append(job.cancel()))
    assert [job.cancel(), *inner] == [False, True]
    assert calls == [1]
    assert awake(job) == 1


def test_a_cancel_inside_attach_is_not_lost() -> None:
    """A cancel that comes while a connection is attached is noticed by attach."""
    job = Job("j")
    inner: list[bool] = []
    EntersAgain(job, lambda: inner.append(job.cancel()))
    assert job.attach(lambda: None) is False
    assert inner == [True]


def test_a_cancel_inside_detach_reaches_the_connection() -> None:
    """A cancel that comes before detach is done has shut the connection down, and detach says so."""
    job = Job("j")
    calls: list[int] = []

    def shutdown() -> object:
        return calls.append(1)

    job.attach(shutdown)
    inner: list[bool] = []
    EntersAgain(job, lambda: inner.append(job.cancel()))
    assert job.detach(shutdown) is False
    assert (inner, calls) == ([True], [1])


def test_a_cancel_inside_finish_wins() -> None:
    """A cancel that comes before the end is decided is the end."""
    job = Job("j")
    inner: list[bool] = []
    EntersAgain(job, lambda: inner.append(job.cancel()))
    assert job.finish() is False
    assert inner == [True]


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs a POSIX timer")
def test_cancels_from_a_signal_handler_never_hang() -> None:
    """A handler that cancels at any moment of attach, detach, cancel and finish returns, and one side always wins."""
    jobs = [Job(str(number)) for number in range(2000)]
    current: list[Job] = [jobs[0]]
    won: list[str] = []

    def handler(*_: object) -> None:
        if current[0].cancel():
            won.append(current[0].job_id)

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.0001, 0.0001)
    ended = 0
    try:
        for job in jobs:
            current[0] = job
            calls: list[int] = []
            attached = job.attach(calls.clear)
            untouched = job.detach(calls.clear)
            assert attached or job.cancelled
            assert untouched or job.cancelled
            ended += job.finish()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert sorted(won) == sorted(job.job_id for job in jobs if job.cancelled)
    assert ended + len(won) == len(jobs)


def test_of_many_threads_one_cancels() -> None:
    """Exactly one of many cancels at once is True, and it excludes the end."""
    for _ in range(50):
        job = Job("j")
        barrier = threading.Barrier(4)
        results: list[bool] = []

        def race(act: Callable[[], bool], barrier: threading.Barrier = barrier, results: list[bool] = results) -> None:
            barrier.wait()
            results.append(act())

        threads = [
            threading.Thread(target=race, args=(act,)) for act in (job.cancel, job.cancel, job.cancel, job.finish)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(results) == [False, False, False, True]


# --- the registry


def test_a_job_can_be_cancelled_by_its_id_while_it_is_in_flight() -> None:
    """Cancel is True once, and False for an id that is unknown or no longer in flight."""
    registry = JobRegistry()
    job = Job("j")
    assert registry.cancel("j") is False
    assert registry.add(job)
    assert [registry.cancel("j"), registry.cancel("j")] == [True, False]
    registry.discard(job)
    assert len(registry) == 0
    assert registry.cancel("j") is False


def test_an_id_in_flight_is_taken() -> None:
    """A second job of the same id is refused, the first one stays; the same job may be added again."""
    registry = JobRegistry()
    first, second = Job("j"), Job("j")
    assert [registry.add(first), registry.add(second), registry.add(first)] == [True, False, True]
    registry.discard(second)
    assert len(registry) == 1
    registry.discard(first)
    assert registry.add(second)


def test_discard_twice_is_harmless() -> None:
    """Forgetting what is not there changes nothing, also when the id is another job's by now."""
    registry = JobRegistry()
    first, second = Job("j"), Job("j")
    registry.add(first)
    registry.discard(first)
    registry.add(second)
    registry.discard(first)
    assert len(registry) == 1
    assert registry.cancel("j")
    assert not first.cancelled


def test_a_registry_is_not_kept_alive() -> None:
    """The list of registries for a fork holds none of them."""
    registry = JobRegistry()
    gone = weakref.ref(registry)
    del registry
    assert gone() is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_in_a_forked_child_no_job_is_ours() -> None:
    """The child's registry is empty, its jobs are marked as inherited, and no shutdown is called for the parent's."""
    registry = JobRegistry()
    job = Job("j")
    registry.add(job)
    reader, writer = os.pipe()
    job.attach(lambda: os.write(writer, b"shut down"))
    held = job._lock  # as if a thread that does not exist in the child held it
    with held:
        child = os.fork()
        if child == 0:
            facts = [len(registry) == 0, job.inherited, job.cancelled, not registry.cancel("j"), not job.cancel()]
            os.write(writer, bytes(facts))
            os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        assert pipe.read() == bytes([1] * 5)
    assert (len(registry), job.inherited, job.cancelled) == (1, False, False)


def test_job_ids_are_unique_and_plain() -> None:
    """An id that is made is 32 hexadecimal digits, and never the same twice."""
    ids = {new_job_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(len(made) == 32 and int(made, 16) >= 0 for made in ids)
