"""How one job is driven: a plan, and its attempts one after the other."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from typing import Any

import msgspec

from worker_adapters.cancel import Job
from worker_adapters.clocks import Runtime
from worker_adapters.contract import Attempt, Step, Wait
from worker_adapters.errors import WorkerError, WorkerTimeout
from worker_adapters.frames import AnyFrame, EndFrame, StartedFrame
from worker_adapters.retry import Retries, RetryBudget

log = logging.getLogger("worker_adapters.plan")


class Watch:
    """Is told of a job as it goes, in the thread that drives it; this one does not care. Refers to no stream."""

    __slots__ = ()

    def tried(self, error: WorkerError) -> None:
        """A try failed, or a clock ended it; there may be another."""

    def started(self, started: StartedFrame) -> None:
        """The engine accepted it."""

    def first_token(self, waited_ms: float) -> None:
        """The first frame with content came, so long after the job began."""

    def ended(self, end: EndFrame) -> None:
        """It ended, or was cancelled; also where nobody was left to be given the end."""

    def failed(self, error: WorkerError) -> None:
        """It failed."""


NOBODY = Watch()


class Plan(msgspec.Struct, frozen=True):
    """How a job is driven; made by an adapter or a host for every job.

    :param engine: None until a host has found one.
    :param place: engine and URL as a message may show them, e.g. ``"llamacpp at http://gpu-box:8081"``.
    :param attempt: begins one try.
    :param timeouts: has the clocks as attributes: a Timeouts, or whatever knows those that hold by now.
    :param release: called when the job has ended in whatever way; again is harmless.
    :param watch: told of what becomes of it.
    """

    job: Job
    engine: str | None
    place: str
    attempt: Callable[[], Attempt]
    timeouts: Any
    retries: Callable[[], Retries]
    budget: RetryBudget
    runtime: Runtime
    release: Callable[[Job], None]
    watch: Watch = NOBODY


def opened(attempt: Attempt) -> Generator[Wait, None, list[AnyFrame] | None]:
    """An attempt up to its first batch, or to its end without one.

    A clock that fires goes on to the attempt: it may know more of what went wrong than that time passed.
    """
    try:
        step = next(attempt)
        while not isinstance(step, list):
            try:
                yield step
            except WorkerTimeout as clock:
                step = attempt.throw(clock)
            else:
                step = next(attempt)
    except StopIteration:
        return None
    return step


def tries(plan: Plan, deadline: float | None) -> Generator[Step, None, None]:
    """Attempts until one is accepted, with waits between them. Never a second one once a frame has come."""
    retries: Retries | None = None
    while True:
        accepted = False
        attempt = plan.attempt()
        try:
            first = yield from opened(attempt)
            if first is not None:
                accepted = True
                plan.budget.success()
                yield first
                yield from attempt
            return
        except WorkerError as error:
            plan.watch.tried(error)
            if accepted or not error.retriable or plan.job.cancelled:
                raise
            retries = retries or plan.retries()
            seconds = retries.after(error)
            until = plan.runtime.monotonic() + (seconds or 0.0)
            if seconds is None or (deadline is not None and until >= deadline):
                raise
            log.info("job %s: %s (%s); trying again in %.2f s", plan.job.job_id, error.code, error.message, seconds)
        finally:
            attempt.close()
        pause = Wait("", lambda timeout: plan.runtime.sleep(timeout or 0.0, plan.job.wake), until)
        yield pause  # even if it is over at once: the next try's clocks start at 0
        while plan.runtime.monotonic() < until and not plan.job.cancelled:
            yield pause
        if plan.job.cancelled:
            return  # type: ignore[unreachable]  # another thread sets it
