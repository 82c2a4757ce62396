"""Breaker: keeps jobs from an engine that fails, and lets one through now and then to see if it is back."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from worker_adapters.errors import invalid
from worker_adapters.timeouts import check_count, check_seconds

CLOSED, OPEN, HALF_OPEN = "closed", "open", "half_open"


@dataclass(frozen=True)
class BreakerPolicy:
    """When a replica is left alone.

    :param failures: engine faults in a row that open the breaker.
    :param open_for: seconds until a trial, doubled after every trial that fails.
    :param open_most: seconds, at most.
    """

    failures: int = 3
    open_for: float = 1.0
    open_most: float = 30.0

    def __post_init__(self) -> None:
        check_count("breaker.failures", self.failures, 1)
        check_seconds("breaker.open_for", self.open_for, optional=False)
        check_seconds("breaker.open_most", self.open_most, optional=False)

    @classmethod
    def of(cls, value: BreakerPolicy | dict[str, Any] | None) -> BreakerPolicy:
        """A policy as it is, a mapping of its fields, or None for the defaults.

        :raises InvalidRequest: neither.
        """
        if value is None or isinstance(value, BreakerPolicy):
            return value or cls()
        try:
            return cls(**value)
        except TypeError:
            known = ", ".join(field.name for field in fields(cls))
            raise invalid("breaker", f"want BreakerPolicy or a mapping of its fields ({known})") from None


class Breaker:
    """One replica's. Not locked: its pool is. Time comes in, so nothing here waits.

    closed -> open after ``failures`` faults in a row, without a job that ended well in between; open -> half_open when
    its time is over and a job asks; half_open lets one job through, the trial: if the engine accepts it, the breaker
    closes; if it fails, it opens for twice as long.
    """

    __slots__ = ("_faults", "_last", "_policy", "_trial", "_until", "state")

    def __init__(self, policy: BreakerPolicy) -> None:
        self._policy = policy
        self.state = CLOSED
        self._faults = 0
        self._until = 0.0
        self._last = policy.open_for
        self._trial = False

    def admits(self, now: float) -> bool:
        """May a job go through now? Changes nothing."""
        if self.state == OPEN:
            return now >= self._until
        return self.state == CLOSED or not self._trial

    def enter(self, now: float) -> bool:
        """A job goes through, after ``admits`` said so; is it the trial?"""
        if self.state == OPEN:
            self.state = HALF_OPEN
        self._trial = self.state == HALF_OPEN
        return self._trial

    def accepted(self) -> None:
        """The engine accepted a job: it is back, if it was away."""
        if self.state != CLOSED:
            self.success()

    def success(self) -> None:
        """A job ended well."""
        self.state = CLOSED
        self._faults = 0
        self._trial = False
        self._last = self._policy.open_for

    def fault(self, now: float, *, trial: bool) -> None:
        """The engine failed a job."""
        self._faults += 1
        if self.state == HALF_OPEN and trial:
            self._last = min(self._last * 2.0, self._policy.open_most)
        elif self.state != CLOSED or self._faults < self._policy.failures:
            return  # jobs that were under way when it opened say nothing new
        self.state = OPEN
        self._until = now + self._last
        self._trial = False

    def nothing(self, *, trial: bool) -> None:
        """A job ended and says nothing of the engine: it was cancelled, or its request was wrong."""
        if trial:
            self._trial = False

    def opens_in(self, now: float) -> float:
        """Seconds until a job may try; 0 if one may now."""
        return max(0.0, self._until - now) if self.state == OPEN else 0.0
