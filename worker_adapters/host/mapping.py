"""Mapping: finished jobs of any number of tasks, a window of them at once, in constant memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from queue import SimpleQueue

from worker_adapters.host.jobs import Job
from worker_adapters.task import TaskLike

Start = Callable[[TaskLike], Job]


def in_order(tasks: Iterator[TaskLike], start: Start, window: int) -> Iterator[Job]:
    running: deque[Job] = deque()
    try:
        for task in tasks:
            running.append(start(task))
            if len(running) >= window:
                yield _ended(running.popleft())
        while running:
            yield _ended(running.popleft())
    finally:
        for job in running:
            job.cancel()


def as_they_end(tasks: Iterator[TaskLike], start: Start, window: int) -> Iterator[Job]:
    ended: SimpleQueue[Job] = SimpleQueue()
    running: set[Job] = set()
    try:
        for task in tasks:
            job = start(task)
            running.add(job)
            job.add_done_callback(ended.put)  # type: ignore[arg-type]  # it is given the Job
            if len(running) >= window:
                done = ended.get()
                running.discard(done)
                yield done
        while running:
            done = ended.get()
            running.discard(done)
            yield done
    finally:
        for job in running:
            job.cancel()


def _ended(job: Job) -> Job:
    job.exception()  # waits; the error, if it is one, is the caller's to look at
    return job
