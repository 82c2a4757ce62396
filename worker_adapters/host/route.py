"""Route: how one job of the host goes: its clocks, its tries at replicas, and who is told of it."""

from __future__ import annotations

import sys
from collections.abc import Callable

from worker_adapters.clocks import Runtime
from worker_adapters.contract import Attempt
from worker_adapters.errors import EngineUnavailable, UnknownError, WorkerError, WorkerTimeout
from worker_adapters.frames import EndFrame, StartedFrame
from worker_adapters.host.observe import JobInfo, Narrator
from worker_adapters.host.pool import Pool
from worker_adapters.host.ticket import Ticket
from worker_adapters.plan import Watch, opened
from worker_adapters.retry import Retries, RetryPolicy
from worker_adapters.timeouts import Timeouts


class Limits:
    """The clocks of a job: the host's, until a replica is found whose adapter has its own."""

    __slots__ = ("_current", "pool", "total")

    def __init__(self, current: Timeouts) -> None:
        self._current = current
        self.pool = current.pool
        self.total = current.total

    def placed(self, theirs: Timeouts) -> None:
        """From now on the adapter's; pool and total stay."""
        self._current = theirs

    @property
    def connect(self) -> float | None:
        """Seconds, as of Timeouts."""
        return self._current.connect

    @property
    def first_token(self) -> float | None:
        """Seconds, as of Timeouts."""
        return self._current.first_token

    @property
    def between_tokens(self) -> float | None:
        """Seconds, as of Timeouts."""
        return self._current.between_tokens


class FailoverRetries(Retries):
    """The retry rule over replicas: to another one at once, to the same one after its pause."""

    def __init__(self, ticket: Ticket, pool: Pool, policy: RetryPolicy, runtime: Runtime) -> None:
        super().__init__(policy, pool.budget, runtime.random)
        self._ticket = ticket
        self._others = pool

    def after(self, error: WorkerError) -> float | None:
        if error.phase == "queue":
            return None  # no replica takes jobs: that is said at once
        if not self._others.has_other(self._ticket):
            return super().after(error)
        # How long this engine wants to be left alone does not matter to another.
        plain = EngineUnavailable(message=error.message, retriable=True)
        return None if super().after(plain) is None else 0.0


class Watched(Watch):
    """Passes what becomes of one job on."""

    __slots__ = ("_info", "_narrator", "_pool", "_ticket")

    def __init__(self, narrator: Narrator, info: JobInfo, pool: Pool, ticket: Ticket) -> None:
        self._narrator = narrator
        self._info = info
        self._pool = pool
        self._ticket = ticket

    def tried(self, error: WorkerError) -> None:
        """A try failed."""
        error.engine = error.engine or self._info.engine

    def started(self, started: StartedFrame) -> None:
        """The engine accepted it."""
        self._narrator.started(self._info, started)

    def first_token(self, waited_ms: float) -> None:
        """The first frame with content came."""
        self._narrator.first_token(self._info, waited_ms)

    def ended(self, end: EndFrame, ends: Callable[[], bool] = sys.is_finalizing) -> None:
        """It ended. If by itself, its place is free now, not only when its reader asks for more or lets it go."""
        if ends():
            return  # the interpreter: a thread that is no more may hold the log's lock
        place = self._ticket.place
        if place is not None and end.finish_reason != "cancelled":
            self._pool.release(self._ticket, place, None, accepted=True)
        self._narrator.ended(self._info, end)

    def failed(self, error: WorkerError) -> None:
        """It failed."""
        self._narrator.failed(self._info, error)


def attempt(pool: Pool, ticket: Ticket, info: JobInfo, limits: Limits) -> Attempt:
    """One try: a place, and an attempt of the adapter there."""
    replica = yield from pool.acquire(ticket)
    ticket.place = replica
    adapter, task = replica.adapter, ticket.tasks[replica]
    info.replica, info.engine = replica.name, adapter.engine
    error_there, accepted = None, False
    steps = None
    try:
        limits.placed(adapter.timeouts_of(task))
        steps = adapter.attempt(task, ticket.job)
        first = yield from opened(steps)
        if first is not None:
            accepted = True
            pool.accepted(replica)
            yield first
            yield from steps
    except WorkerError as error:
        error.engine = error.engine or adapter.engine
        if isinstance(error, WorkerTimeout) and error.clock != "engine":
            ticket.clock = error.clock  # ours: the engine is left with the job, and takes its time to see that
        error_there = error
        raise
    except Exception as error:
        error_there = UnknownError(message=f"the adapter failed with {type(error).__name__}")
        raise
    finally:
        if steps is not None:
            steps.close()
        pool.release(ticket, replica, error_there, accepted=accepted)
        del error_there
