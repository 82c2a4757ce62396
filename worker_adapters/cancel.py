"""Cancellation: a mark that any thread or signal handler can set, and a socket that dies with it.

The rule that keeps one job's cancel from hurting another: the connection is given up under the same lock under which
a cancel shuts it down. Whoever comes second sees what the first one did.
"""

from __future__ import annotations

import itertools
import os
import threading
import weakref
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

Shutdown = Callable[[], object]


class Job:
    """The part of a job that other threads may touch: its id, its cancel mark, and what to shut down.

    The lock is an RLock because a signal handler runs on top of whatever its own thread was doing, even inside this
    lock; each method keeps the order of its steps so that such a second entry between any two of them does no harm.
    """

    __slots__ = ("_lock", "_shutdowns", "_turns", "cancelled", "ended", "inherited", "job_id", "wake")

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        #: Read without the lock, before every frame. Only ever goes from False to True.
        self.cancelled = False
        self.ended = False
        #: Was the process forked while the job was in flight, and is this the child? Then its stream is the parent's.
        self.inherited = False
        #: What a cancel wakes when no socket is waited for (a back-off, a gRPC stream).
        self.wake: SimpleQueue[Any] = SimpleQueue()
        self._lock = threading.RLock()
        #: Gives 0 once: to the call that cancels. Atomic, for a signal handler may cancel inside a cancel.
        self._turns = itertools.count()
        self._shutdowns: tuple[Shutdown, ...] = ()

    def cancel(self) -> bool:
        """True if this call cancelled the job; False if it had ended or was cancelled before. Never blocks on I/O."""
        with self._lock:
            if self.ended or self.inherited or next(self._turns):
                return False
            self.cancelled = True
            self.wake.put(None)
            shutdowns, self._shutdowns = self._shutdowns, ()
            for shutdown in shutdowns:
                shutdown()  # inside the lock: it does not block, and outside it the socket could be another job's
        return True

    def attach(self, shutdown: Shutdown) -> bool:
        """From now on a cancel calls ``shutdown``. False if the job was cancelled before: then it is not attached."""
        with self._lock:
            self._shutdowns += (shutdown,)
            if not self.cancelled:
                return True
            self._shutdowns = ()
            return False

    def detach(self, shutdown: Shutdown) -> bool:
        """A cancel no longer reaches the connection. True if none ever did: only then may it serve another job."""
        with self._lock:
            self._shutdowns = tuple(other for other in self._shutdowns if other != shutdown)
            return not self.cancelled

    def finish(self) -> bool:
        """The job ends now. False if a cancel won: then the end is the cancel's."""
        with self._lock:
            self.ended = True  # before the question: a signal handler may cancel between the two
            return not self.cancelled

    def disown(self) -> None:
        """In a forked child: the job goes on in the parent only. A thread that is gone may hold the lock: not taken."""
        self.inherited = True
        self.cancelled = True  # sends the reader off its hot path, to where it is told
        self._shutdowns = ()
        self._lock = threading.RLock()


class JobRegistry:
    """Jobs in flight by id. Holds jobs, never streams, so that a dropped stream is freed by reference count.

    Only single dict operations, which are atomic and therefore safe in a signal handler.
    """

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}
        _registries.add(self)

    def add(self, job: Job) -> bool:
        """False if a job of that id is in flight."""
        return self._jobs.setdefault(job.job_id, job) is job

    def discard(self, job: Job) -> None:
        """Forget the job; a no-op if it is not there, or if the id is another job's by now."""
        if self._jobs.get(job.job_id) is job:
            self._jobs.pop(job.job_id, None)

    def cancel(self, job_id: str) -> bool:
        """Cancel the job of that id; False if none is in flight."""
        job = self._jobs.get(job_id)
        return job is not None and job.cancel()

    def disown(self) -> None:
        """In a forked child: none of the jobs is ours."""
        jobs, self._jobs = self._jobs, {}
        for job in jobs.values():
            job.disown()

    def __len__(self) -> int:
        return len(self._jobs)


_registries: weakref.WeakSet[JobRegistry] = weakref.WeakSet()


def _disown_all() -> None:
    for registry in list(_registries):
        registry.disown()


if hasattr(os, "register_at_fork"):  # not on Windows, which cannot fork
    os.register_at_fork(after_in_child=_disown_all)


def new_job_id() -> str:
    """A random id, unique across processes."""
    return os.urandom(16).hex()
