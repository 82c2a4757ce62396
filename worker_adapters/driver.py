"""Driver: pulls the steps of one job, and fires its clocks while it waits."""

from __future__ import annotations

from collections.abc import Generator

from worker_adapters.contract import Step, Wait
from worker_adapters.errors import WorkerTimeout
from worker_adapters.frames import AnyFrame
from worker_adapters.plan import Plan

WORDS = {
    "pool": "no free replica",
    "connect": "no connection",
    "first_token": "no first token",
    "between_tokens": "no further token",
}
#: The phase of an error whose clock is not itself a phase.
PHASES = {"pool": "queue", "connect": "connect", "first_token": "first_token", "between_tokens": "stream"}


class Driver:
    """Whoever waits for an engine waits here, and his waiting is counted. One thread at a time.

    It adds up, phase by phase: a new phase, or content, starts it again. A tick or a comment does not: time between two
    waits is the consumer's, so it is not counted, but the waits since the last content frame are one wait.

    :ivar waited: seconds.
    """

    __slots__ = ("_deadline", "_now", "_phase", "_plan", "waited")

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._now = plan.runtime.monotonic
        self._phase = ""
        self._deadline: float | None = None
        self.waited = 0.0

    def begin(self, now: float) -> float | None:
        """The job begins; gives when its total clock fires, if it has one."""
        total = self._plan.timeouts.total
        self._deadline = None if total is None else now + total
        return self._deadline

    def pull(self, steps: Generator[Step, None, None], tick: float | None) -> list[AnyFrame] | None:
        """One batch, or None if ``tick`` seconds passed first or the job was cancelled.

        Time spent in here is time the reader waits for the engine; only it feeds the clocks.

        :raises WorkerError: from the steps, which a clock that fires is thrown into.
        """
        entered = self._now()
        tick_at = None if tick is None else entered + tick
        step = next(steps)
        while isinstance(step, Wait):
            if step.phase != self._phase:
                self._phase = step.phase
                self.waited = 0.0
            now = self._now()
            self.waited += now - entered
            entered = now
            if self._plan.job.cancelled:
                return None
            due = self._due(step, now)
            if due is not None and due <= 0:
                step = steps.throw(self.timeout(self._which(step.phase, now)))
                continue
            if tick_at is not None:
                if now >= tick_at:
                    return None
                due = tick_at - now if due is None else min(due, tick_at - now)
            if step.until is not None:
                due = step.until - now if due is None else min(due, step.until - now)
            step.block(due if due is None or due > 0.0 else 0.0)
            now = self._now()
            self.waited += now - entered  # it was this phase that waited, whatever comes next
            entered = now
            if self._plan.job.cancelled:  # before the attempt goes on: what it still tells the engine can wait
                return None  # type: ignore[unreachable]  # another thread sets it
            step = next(steps)
        self.waited += self._now() - entered
        return step

    def _due(self, step: Wait, now: float) -> float | None:
        """Seconds until a clock fires; None if none runs."""
        limit = getattr(self._plan.timeouts, step.phase) if step.phase else None
        due = None if limit is None else limit - self.waited
        if self._deadline is not None:
            left = self._deadline - now
            due = left if due is None else min(due, left)
        return due

    def _which(self, phase: str, now: float) -> str:
        return "total" if self._deadline is not None and now >= self._deadline else phase

    def timeout(self, clock: str) -> WorkerTimeout:
        """What to raise when that clock fires."""
        limit = getattr(self._plan.timeouts, clock)
        return WorkerTimeout(
            message=f"{self._plan.place}: {WORDS.get(clock, 'no end')} within {limit:g} s (timeouts.{clock})",
            clock=clock,
            phase=PHASES.get(clock, "queue"),
        )
