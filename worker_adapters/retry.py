"""When to try again, how long to wait before, and when to stop for everybody's sake.

The rule itself stands in the errors: ``retriable`` is True only where the engine provably did not start the job. Here
is the pace: exponential back-off with full jitter, Retry-After, at most ``attempts`` tries, and a budget per endpoint
so that an engine that is down is not stormed.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from worker_adapters.errors import InvalidRequest, WorkerError
from worker_adapters.late import loading
from worker_adapters.timeouts import check_count, check_seconds

if TYPE_CHECKING:
    from tenacity import RetryCallState, Retrying


@dataclass(frozen=True)
class RetryPolicy:
    """How a refused job is tried again.

    :param attempts: tries in all, the first included; 1 turns retries off.
    :param base: seconds; the n-th wait is random between 0 and ``min(cap, base * 2**(n-1))``.
    :param cap: seconds.
    :param max_retry_after: a Retry-After longer than this many seconds is not waited for: the error comes at once, with
        ``retry_after_ms`` for the caller to judge.
    :param budget: retries an endpoint may spend ahead of its successes; each success pays ``refund`` back. With an
        engine down for good, ``budget`` is all the extra requests it ever sees.
    :param seed: makes the jitter repeatable.
    """

    attempts: int = 4
    base: float = 0.1
    cap: float = 2.0
    max_retry_after: float = 60.0
    budget: float = 10.0
    refund: float = 0.1
    seed: int | None = None

    def __post_init__(self) -> None:
        check_count("retry.attempts", self.attempts, 1)
        for name in ("base", "cap", "max_retry_after"):
            check_seconds(f"retry.{name}", getattr(self, name), optional=False)
        for name in ("budget", "refund"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1e6:
                raise InvalidRequest(message=f"retry.{name}: want a number of at least 0", field=f"retry.{name}")
        if self.seed is not None and not isinstance(self.seed, int):
            raise InvalidRequest(message="retry.seed: want an integer or None", field="retry.seed")

    @classmethod
    def of(cls, value: RetryPolicy | dict[str, Any] | None) -> RetryPolicy:
        """A policy as it is, a mapping of its fields, or None for the defaults.

        :raises InvalidRequest: neither.
        """
        if value is None:
            return cls()
        if isinstance(value, RetryPolicy):
            return value
        try:
            return cls(**value)
        except TypeError:
            known = ", ".join(field.name for field in fields(cls))
            message = f"retry: want RetryPolicy or a mapping of its fields ({known})"
            raise InvalidRequest(message=message, field="retry") from None


class RetryBudget:
    """A bucket of retries that all jobs of one endpoint share.

    Lock-free: a lock held by another thread at a fork would stop the child for ever.
    """

    def __init__(self, policy: RetryPolicy) -> None:
        whole = int(policy.budget)
        self._refund = policy.refund
        self._tokens: deque[None] = deque([None] * whole, maxlen=whole)
        self._credit = 0.0

    def take(self) -> bool:
        """Spend one retry; False if there is none left."""
        try:
            self._tokens.pop()
        except IndexError:
            return False
        return True

    def success(self) -> None:
        """A job was accepted: pay back."""
        self._credit += self._refund
        while self._credit >= 1.0 - 1e-9:
            self._credit -= 1.0
            self._tokens.append(None)


class Retries:
    """The waits of one job, step by step, so that whoever drives it can tick and be cancelled in between.

    Made of tenacity's strategies rather than run by its loop: the loop would sleep where nothing else can happen.
    """

    def __init__(self, policy: RetryPolicy, budget: RetryBudget, roll: Callable[[], float]) -> None:
        self._policy = policy
        self._budget = budget
        self._roll = roll if policy.seed is None else random.Random(policy.seed).random  # noqa: S311 - jitter
        self._controller: Retrying | None = None
        self._state: RetryCallState | None = None

    def after(self, error: WorkerError) -> float | None:
        """Seconds to wait before the next try, or None: give the error to the caller."""
        if self._controller is None or self._state is None:
            with loading:
                import tenacity  # 30 ms, and only a job that was refused needs it

            self._controller = self._strategies(tenacity)
            self._state = tenacity.RetryCallState(self._controller, None, (), {})
        controller, state = self._controller, self._state
        state.set_exception((type(error), error, None))
        if not controller.retry(state) or controller.stop(state):
            state.outcome = None  # else error -> traceback -> frames -> this state -> error is a cycle
            return None
        seconds = float(controller.wait(state))
        state.prepare_for_next_attempt()
        return seconds

    def _strategies(self, tenacity: Any) -> Retrying:
        policy, budget, roll = self._policy, self._budget, self._roll

        def wanted(error: BaseException) -> bool:
            if not isinstance(error, WorkerError) or not error.retriable:
                return False
            return (error.retry_after_ms or 0) <= policy.max_retry_after * 1000

        def wait(state: RetryCallState) -> float:
            backoff = roll() * min(policy.cap, policy.base * 2.0 ** (state.attempt_number - 1))
            error = state.outcome.exception() if state.outcome else None
            return max(backoff, (getattr(error, "retry_after_ms", None) or 0) / 1000.0)

        made: Retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(wanted),
            stop=tenacity.stop_any(tenacity.stop_after_attempt(policy.attempts), lambda state: not budget.take()),
            wait=wait,
        )
        return made
