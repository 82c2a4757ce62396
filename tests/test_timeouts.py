"""The five clocks as one validated value."""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker_adapters.errors import InvalidRequest
from worker_adapters.task import TaskRequest
from worker_adapters.timeouts import Timeouts, checked

CLOCKS = ("pool", "connect", "first_token", "between_tokens", "total")
BAD: list[Any] = [
    0, -1, -0.001, float("nan"), float("inf"), -float("inf"), True, False, "SECRET", "5", [5], {}, b"5", 1j,
]  # fmt: skip


def test_the_defaults_are_those_of_the_contract() -> None:
    """pool 30, connect 5, first_token 60, between_tokens 30, and no total."""
    assert dataclasses.asdict(Timeouts()) == {
        "pool": 30.0, "connect": 5.0, "first_token": 60.0, "between_tokens": 30.0, "total": None,
    }  # fmt: skip


@pytest.mark.parametrize("value", BAD, ids=lambda value: str(value)[:20])
@pytest.mark.parametrize("clock", CLOCKS)
def test_a_bad_value_is_refused_by_name(clock: str, value: Any) -> None:
    """Zero, negative, NaN, infinite, bool and no number are refused, naming the clock and not the value."""
    with pytest.raises(InvalidRequest) as caught:
        Timeouts(**{clock: value})
    assert caught.value.field == f"timeouts.{clock}"
    assert "SECRET" not in str(caught.value) + repr(caught.value)


def test_an_integer_beyond_every_float_is_refused_by_name() -> None:
    """A number of 400 digits is no time, and is refused like any other."""
    with pytest.raises(InvalidRequest) as caught:
        Timeouts(total=10**400)
    assert caught.value.field == "timeouts.total"


@pytest.mark.parametrize("clock", CLOCKS)
@pytest.mark.parametrize("value", [None, 1, 0.001, 10**9])
def test_any_positive_number_or_none_is_taken(clock: str, value: float | None) -> None:
    """Integers, floats and None (no limit) are times."""
    assert getattr(Timeouts(**{clock: value}), clock) == value


def test_timeouts_are_frozen_values() -> None:
    """Timeouts cannot be changed, compare by value, hash and pickle."""
    timeouts = Timeouts(connect=1)
    with pytest.raises(AttributeError):
        timeouts.connect = 2  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(timeouts)) == timeouts == Timeouts(connect=1.0)
    assert len({timeouts, Timeouts(connect=1), Timeouts()}) == 2


@given(changes=st.dictionaries(st.sampled_from(CLOCKS), st.none() | st.floats(0.001, 1e6)))
def test_a_mapping_changes_only_the_clocks_it_names(changes: dict[str, float | None]) -> None:
    """``timeouts | {...}`` keeps what the mapping does not name; a whole Timeouts replaces all."""
    base = Timeouts(pool=1, connect=2, first_token=3, between_tokens=4, total=5)
    merged = base | changes
    assert {name: getattr(merged, name) for name in CLOCKS} == {**dataclasses.asdict(base), **changes}
    assert (base | Timeouts()) == Timeouts()
    assert (base | None) is base


def test_checked_keeps_a_part_a_part() -> None:
    """A mapping of some clocks stays a mapping, so that the adapter's other clocks hold; one of all is a Timeouts."""
    assert checked(None) is None
    assert checked(Timeouts(connect=1)) == Timeouts(connect=1)
    assert checked({"connect": 1}) == {"connect": 1}
    assert checked(dataclasses.asdict(Timeouts(connect=1))) == Timeouts(connect=1)


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ({"read": 5}, "timeouts"),
        ({5: 5}, "timeouts"),
        ("SECRET", "timeouts"),
        (5, "timeouts"),
        ([("connect", 5)], "timeouts"),
        ({"connect": "SECRET"}, "timeouts.connect"),
        ({"connect": 0}, "timeouts.connect"),
    ],
)
def test_checked_names_what_is_wrong(value: Any, field: str) -> None:
    """An unknown clock, a bad value or no mapping is an InvalidRequest, also as the field of a task."""
    for make in (checked, lambda value: TaskRequest(prompt="x", timeouts=value)):
        with pytest.raises(InvalidRequest) as caught:
            make(value)
        assert caught.value.field == field
        assert "SECRET" not in str(caught.value) + repr(caught.value)
