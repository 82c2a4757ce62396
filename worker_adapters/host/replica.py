"""Replica: one adapter in a pool, what is known of its engine, and what runs there. Its pool's lock guards it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from worker_adapters.cancel import Job
from worker_adapters.contract import WorkerAdapter
from worker_adapters.errors import InvalidRequest, WorkerError, invalid
from worker_adapters.host.breaker import Breaker, BreakerPolicy
from worker_adapters.report import RESIDENCIES, EngineProps, HealthStatus
from worker_adapters.timeouts import check_count

AdapterLike = WorkerAdapter | Callable[[], WorkerAdapter]


class Replica:
    """One binding.

    :param adapter: an adapter, or a function that makes it when the first job comes.
    :param residency: declared by whoever binds it, where the engine does not tell.
    :param max_in_flight: jobs at once; None: as many as come.
    :ivar jobs: those there now. ``freeing``: until when engines of cancelled jobs may still be at work on them.
    :ivar accepted_at: when its engine last took a job.
    :ivar props, health: as last seen; None until seen. ``looked_at``: when.
    """

    __slots__ = (
        "_made", "_make", "accepted_at", "breaker", "declared", "draining", "freeing", "health", "jobs",
        "looked_at", "looking", "max_in_flight", "name", "pool", "props", "warned",
    )  # fmt: skip

    def __init__(
        self,
        pool: str,
        name: str,
        adapter: AdapterLike,
        *,
        residency: str | None = None,
        max_in_flight: int | None = None,
        breaker: BreakerPolicy | None = None,
    ) -> None:
        if not isinstance(adapter, WorkerAdapter) and not callable(adapter):
            raise invalid("adapter", "want an adapter, or a function that makes one")
        if residency is not None and residency not in RESIDENCIES:
            raise invalid("residency", f"want one of {', '.join(RESIDENCIES)}")
        if max_in_flight is not None:
            check_count("max_in_flight", max_in_flight, 1)
        self.pool = pool
        self.name = name
        self._made: list[WorkerAdapter] = [adapter] if isinstance(adapter, WorkerAdapter) else []
        self._make: Any = adapter
        self.declared = residency
        self.max_in_flight = max_in_flight
        self.breaker = Breaker(breaker or BreakerPolicy())
        self.jobs: set[Job] = set()
        self.freeing: list[float] = []
        self.props: EngineProps | None = None
        self.health: HealthStatus | None = None
        self.looked_at = float("-inf")
        self.accepted_at = float("-inf")
        self.looking = False
        self.draining = False
        self.warned = False

    @property
    def label(self) -> str:
        """``pool/replica``, as messages and logs name it."""
        return f"{self.pool}/{self.name}"

    @property
    def adapter(self) -> WorkerAdapter:
        """The adapter, made now if it was not.

        :raises InvalidRequest: its function makes none.
        """
        if not self._made:
            self._made.append(self._new())  # whoever appended first wins: threads may come here together
        return self._made[0]

    def _new(self) -> WorkerAdapter:
        try:
            made: Any = self._make()
        except InvalidRequest:
            raise
        except Exception as error:
            raise invalid("adapter", f"the function of {self.label} raised {type(error).__name__}") from error
        if not isinstance(made, WorkerAdapter):
            raise invalid("adapter", f"the function of {self.label} made none")
        return made

    @property
    def engine(self) -> str | None:
        """Its engine's name, once its adapter was made."""
        return self._made[0].engine if self._made else None

    def seen(self, timeout: float) -> tuple[HealthStatus, EngineProps | None]:
        """Ask the engine how it is, and what it says of itself if it is ready. I/O; never raises."""
        try:
            adapter = self.adapter
        except InvalidRequest as error:
            return HealthStatus("unhealthy", live=False, ready=False, message=error.message), None
        try:
            health = adapter.health(timeout=timeout)
            return health, adapter.props() if health.ready else None
        except WorkerError as error:
            return HealthStatus("degraded", live=True, ready=True, message=error.message), None
        except Exception as error:  # noqa: BLE001 - a third party's adapter may raise anything
            return HealthStatus("degraded", live=True, ready=True, message=type(error).__name__), None

    def close(self) -> None:
        """Close the adapter, if it was made."""
        for adapter in self._made:
            adapter.close()

    @property
    def residency(self) -> str:
        """Where its weights are: as declared, else as the engine tells; "unknown" until it told."""
        return self.declared or (self.props.residency if self.props is not None else "unknown")

    @property
    def ready(self) -> bool:
        """Does it take jobs, as far as is known? Until a look says otherwise, it does."""
        return self.health is None or self.health.ready

    @property
    def in_flight(self) -> int:
        """How many jobs are there."""
        return len(self.jobs)

    def left(self, now: float) -> bool:
        """A job was given up: is its engine at work on it for a moment yet?"""
        seconds = self.adapter.capabilities.release_ms / 1000.0
        if seconds > 0:
            self.freeing.append(now + seconds)
        return seconds > 0

    def reset(self) -> None:
        """In a forked child: no job and no thread of the parent's is ours."""
        self.jobs = set()
        self.freeing = []
        self.looking = False
        self.breaker.nothing(trial=True)

    def busy(self, now: float) -> int:
        """Jobs there, and engines that may not have noticed a cancel yet."""
        if self.freeing:
            self.freeing = [until for until in self.freeing if until > now]
            return len(self.jobs) + len(self.freeing)
        return len(self.jobs)

    def has_room(self, now: float) -> bool:
        """May another job go there?"""
        return self.max_in_flight is None or self.busy(now) < self.max_in_flight

    def told(self, now: float) -> dict[str, Any]:
        """All of it, for people. ``running``, ``waiting`` and the slots are the engine's, of whoever's jobs."""
        health, props = self.health, self.props
        return {
            "breaker": self.breaker.state,
            "opens_in_ms": int(self.breaker.opens_in(now) * 1000),
            "in_flight": self.in_flight,
            "max_in_flight": self.max_in_flight,
            "ready": self.ready,
            "health": None if health is None else health.state,
            "message": "" if health is None else health.message,
            "residency": self.residency,
            "engine": self.engine,
            "engine_version": None if props is None else props.engine_version,
            "model": None if props is None else props.model,
            "running": None if props is None else props.running,
            "waiting": None if props is None else props.waiting,
            "slots_total": None if props is None else props.slots_total,
            "slots_free": None if props is None else props.slots_free,
        }

    @property
    def free_slots(self) -> int:
        """As the engine told last; 0 if it does not tell. Only breaks ties."""
        return (self.props.slots_free or 0) if self.props is not None else 0
