"""When a refused job is tried again, how long is waited, and when an endpoint's budget is spent."""

from __future__ import annotations

import dataclasses
import gc
import pickle
import threading
import weakref
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker_adapters.errors import CapacityExceeded, EngineUnavailable, InvalidRequest, WorkerError, WorkerTimeout
from worker_adapters.retry import Retries, RetryBudget, RetryPolicy


def refusal(**fields: Any) -> WorkerError:
    return CapacityExceeded(message="m", **fields)


def retries(policy: RetryPolicy | None = None, roll: float = 1.0, budget: RetryBudget | None = None) -> Retries:
    """With a roll of 1, each wait is its upper bound."""
    policy = policy or RetryPolicy()
    return Retries(policy, budget or RetryBudget(policy), lambda: roll)


def waits(made: Retries, error: WorkerError, tries: int = 10) -> list[float | None]:
    return [made.after(error) for _ in range(tries)]


def test_the_defaults_are_those_of_the_contract() -> None:
    """Base 100 ms doubling up to 2 s, four attempts, Retry-After up to 60 s."""
    policy = RetryPolicy()
    assert (policy.attempts, policy.base, policy.cap, policy.max_retry_after) == (4, 0.1, 2.0, 60.0)


def test_four_attempts_are_three_waits_that_double() -> None:
    """The n-th wait is at most base times two to the n-1; after the last attempt there is none."""
    assert waits(retries(), refusal(), 4) == pytest.approx([0.1, 0.2, 0.4, None], abs=1e-9)


def test_no_wait_is_longer_than_the_cap() -> None:
    """From the fifth retry on the cap bounds the wait."""
    made = retries(RetryPolicy(attempts=8))
    assert waits(made, refusal(), 8) == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0, None], abs=1e-9)


def test_jitter_is_full() -> None:
    """A wait is anything from 0 to its bound, as the dice say."""
    assert retries(roll=0.0).after(refusal()) == 0.0
    assert retries(roll=0.25).after(refusal()) == pytest.approx(0.025)


def test_a_seed_repeats_the_jitter() -> None:
    """The same seed gives the same waits whatever the injected dice; another seed gives others."""
    one, same, other = (waits(retries(RetryPolicy(seed=seed)), refusal(), 3) for seed in (1, 1, 2))
    assert one == same != other
    assert all(wait is not None and 0 <= wait <= bound for wait, bound in zip(one, (0.1, 0.2, 0.4), strict=True))


def test_one_attempt_turns_retries_off() -> None:
    """With attempts=1 nothing is tried again and no budget is spent."""
    policy = RetryPolicy(attempts=1, budget=1)
    budget = RetryBudget(policy)
    assert retries(policy, budget=budget).after(refusal()) is None
    assert budget.take()


@pytest.mark.parametrize(
    "error",
    [
        refusal(retriable=False),
        refusal(tokens_seen=1),
        EngineUnavailable(message="m"),
        WorkerTimeout(message="m", clock="first_token", retriable=True),
        InvalidRequest(message="m", retriable=True),
    ],
    ids=repr,
)
def test_what_is_not_retriable_is_not_tried_again(error: WorkerError) -> None:
    """The error's own verdict decides, and costs no budget."""
    policy = RetryPolicy(budget=1)
    budget = RetryBudget(policy)
    assert retries(policy, budget=budget).after(error) is None
    assert budget.take()


@pytest.mark.parametrize(
    "error",
    [EngineUnavailable(message="m", retriable=True), WorkerTimeout(message="m", clock="connect"), refusal()],
    ids=repr,
)
def test_what_is_retriable_is_tried_again(error: WorkerError) -> None:
    """A refusal, a connect failure and the connect clock are tried again."""
    assert retries().after(error) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("asked", "waited"), [(0, 0.1), (50, 0.1), (500, 0.5), (60_000, 60.0), (60_001, None), (10**9, None)]
)
def test_retry_after_is_the_least_wait_up_to_its_bound(asked: int, waited: float | None) -> None:
    """A Retry-After longer than the back-off is waited for in full; one over 60 s gives the error at once."""
    after = retries().after(refusal(retry_after_ms=asked))
    assert after == (None if waited is None else pytest.approx(waited))


def test_the_bound_of_retry_after_can_be_set() -> None:
    """max_retry_after decides what is too long."""
    assert retries(RetryPolicy(max_retry_after=1)).after(refusal(retry_after_ms=1001)) is None


def test_every_error_counts_as_an_attempt() -> None:
    """Errors of different kinds share the attempts of one job."""
    made = retries()
    errors = [refusal(), EngineUnavailable(message="m", retriable=True), WorkerTimeout(message="m", clock="connect")]
    assert [made.after(error) for error in errors] == pytest.approx([0.1, 0.2, 0.4])
    assert made.after(refusal()) is None


def test_the_error_that_is_given_up_on_is_freed() -> None:
    """Giving up leaves no reference cycle around the error."""

    class Watched(CapacityExceeded):
        pass

    made = retries(RetryPolicy(attempts=1))
    error = Watched(message="m")
    gone = weakref.ref(error)
    gc.disable()
    try:
        made.after(error)
        del error
        assert gone() is None
    finally:
        gc.enable()


# --- the budget


def test_the_budget_bounds_all_jobs_of_an_endpoint() -> None:
    """With an engine down for good, ``budget`` is all the extra requests it sees, however many jobs there are."""
    policy = RetryPolicy(budget=10)
    budget = RetryBudget(policy)
    again = sum(wait is not None for _ in range(50) for wait in waits(retries(policy, budget=budget), refusal(), 4))
    assert again == 10


def test_successes_pay_back_up_to_the_budget() -> None:
    """Ten successes pay for one more retry, and no number of them for more than the budget."""
    budget = RetryBudget(RetryPolicy(budget=2, refund=0.1))
    assert [budget.take(), budget.take(), budget.take()] == [True, True, False]
    for _ in range(9):
        budget.success()
    assert not budget.take()
    for _ in range(2):
        budget.success()
    assert budget.take()
    for _ in range(1000):
        budget.success()
    assert [budget.take(), budget.take(), budget.take()] == [True, True, False]


def test_a_budget_of_nothing_allows_no_retry() -> None:
    """budget=0 turns retries off for the endpoint."""
    assert retries(RetryPolicy(budget=0)).after(refusal()) is None


def test_threads_share_the_budget_without_losing_count() -> None:
    """However many threads take at once, no retry is spent twice."""
    budget = RetryBudget(RetryPolicy(budget=1000))
    taken: list[bool] = []
    threads = [threading.Thread(target=lambda: taken.extend([budget.take() for _ in range(400)])) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(taken) == 1000


# --- the policy


BAD = [
    *(("attempts", value) for value in (0, -1, True, 1.5, "3", None)),
    *((name, value) for name in ("base", "cap", "max_retry_after") for value in (0, -1, True, "SECRET", float("nan"))),
    *((name, None) for name in ("base", "cap", "max_retry_after")),
    *((name, value) for name in ("budget", "refund") for value in (-1, True, "SECRET", float("nan"), None)),
    *(("seed", value) for value in ([1], {})),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_bad_option_is_refused_by_name(name: str, value: Any) -> None:
    """Every option is validated when the policy is made, naming it and never showing the value."""
    with pytest.raises(InvalidRequest) as caught:
        RetryPolicy(**{name: value})
    assert caught.value.field == f"retry.{name}"
    assert "SECRET" not in str(caught.value) + repr(caught.value)


def test_of_takes_a_policy_a_mapping_or_nothing() -> None:
    """A policy stays itself, a mapping names what differs, None is the defaults."""
    policy = RetryPolicy(attempts=2)
    assert RetryPolicy.of(policy) is policy
    assert RetryPolicy.of({"attempts": 2}) == policy
    assert RetryPolicy.of(None) == RetryPolicy()


@pytest.mark.parametrize("value", [5, "SECRET", {"banana": "SECRET"}, {5: 5}, [1]])
def test_of_refuses_anything_else(value: Any) -> None:
    """What is neither policy nor mapping of its fields is refused as ``retry``."""
    with pytest.raises(InvalidRequest) as caught:
        RetryPolicy.of(value)
    assert caught.value.field == "retry"
    assert "SECRET" not in str(caught.value) + repr(caught.value)


@given(attempts=st.integers(1, 9), base=st.floats(0.001, 5), cap=st.floats(0.001, 9), roll=st.floats(0, 1))
def test_any_policy_keeps_its_bounds(attempts: int, base: float, cap: float, roll: float) -> None:
    """Whatever the policy, there are attempts - 1 waits, each between 0 and the smaller of cap and back-off."""
    policy = RetryPolicy(attempts=attempts, base=base, cap=cap, budget=100)
    found = waits(retries(policy, roll), refusal(), attempts)
    assert found.pop() is None
    for number, wait in enumerate(found):
        assert wait is not None
        assert 0 <= wait <= min(cap, base * 2**number) * 1.000001
    again = pickle.loads(pickle.dumps(policy))
    assert again == policy == RetryPolicy.of(dataclasses.asdict(policy))
