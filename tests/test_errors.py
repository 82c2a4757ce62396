"""The errors: one class, one code, both ways; and who may try again."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import worker_adapters
from worker_adapters.errors import (
    CLOCKS,
    ERROR_CLASSES,
    PHASES,
    AuthenticationFailed,
    CapacityExceeded,
    ContextOverflow,
    EngineUnavailable,
    InvalidRequest,
    ModelNotFound,
    PoolUnavailable,
    StreamTruncated,
    UnknownError,
    WorkerError,
    WorkerTimeout,
)
from worker_adapters.frames import ErrorFrame, frame_from_dict

COMMON = (
    "message", "retriable", "retry_after_ms", "engine", "job_id", "status", "phase", "tokens_seen", "partial_text",
    "request_id",
)  # fmt: skip

# class -> (code, what else it is, its own fields, may it ever be retried, is it when nobody said so, engine's fault)
TABLE: dict[type[WorkerError], tuple[str, tuple[type, ...], tuple[str, ...], bool, bool, bool]] = {
    EngineUnavailable: ("ENGINE_UNAVAILABLE", (ConnectionError, OSError), (), True, False, True),
    StreamTruncated: ("STREAM_TRUNCATED", (EngineUnavailable, ConnectionError), (), False, False, True),
    InvalidRequest: ("INVALID_REQUEST", (ValueError,), ("field",), False, False, False),
    ContextOverflow: (
        "CONTEXT_OVERFLOW", (InvalidRequest, ValueError), ("field", "prompt_tokens", "context_size"),
        False, False, False,
    ),
    ModelNotFound: ("MODEL_NOT_FOUND", (InvalidRequest, ValueError), ("field",), False, False, False),
    AuthenticationFailed: ("AUTHENTICATION_FAILED", (InvalidRequest, ValueError), ("field",), False, False, False),
    CapacityExceeded: ("CAPACITY_EXCEEDED", (), (), True, True, False),
    PoolUnavailable: ("POOL_UNAVAILABLE", (), (), False, False, True),
    UnknownError: ("UNKNOWN", (), (), False, False, True),
}  # fmt: skip

# clock -> (retriable, engine's fault)
CLOCK_TABLE = {
    "connect": (True, True),
    "first_token": (False, True),
    "between_tokens": (False, True),
    "total": (False, False),
    "pool": (True, False),
    "engine": (False, True),
}


def pickled(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


def make(cls: type[WorkerError], **fields: Any) -> WorkerError:
    if cls is WorkerTimeout:
        fields.setdefault("clock", "connect")
    return cls(**{"message": "m", **fields})


def test_the_table_names_every_class() -> None:
    """Every public error has one code, every code one class, and this file states the rules of each."""
    assert set(ERROR_CLASSES.values()) == {*TABLE, WorkerTimeout}
    assert {code: cls for cls, (code, *_) in TABLE.items()} | {"TIMEOUT": WorkerTimeout} == ERROR_CLASSES
    public = {name for name in worker_adapters.__all__ if name in {cls.__name__ for cls in ERROR_CLASSES.values()}}
    assert public == {cls.__name__ for cls in ERROR_CLASSES.values()}


@pytest.mark.parametrize("cls", TABLE)
def test_each_class_is_what_its_row_says(cls: type[WorkerError]) -> None:
    """Code, bases, fields, retriability and fault of a class are those of the contract."""
    code, bases, own, may_retry, by_default, engine_fault = TABLE[cls]
    error = make(cls)
    assert error.code == code
    assert all(isinstance(error, base) for base in (WorkerError, *bases))
    assert error.fields == (*COMMON, *own)
    assert error.retriable is by_default
    assert make(cls, retriable=True).retriable is may_retry
    assert make(cls, retriable=False).retriable is False
    assert error.engine_fault is engine_fault


@pytest.mark.parametrize("clock", CLOCKS)
def test_only_the_clocks_before_the_engine_saw_the_job_are_retriable(clock: str) -> None:
    """Of the clocks only ``connect`` and ``pool`` may be retried; the caller's own limits blame no engine."""
    retriable, engine_fault = CLOCK_TABLE[clock]
    error = WorkerTimeout(message="m", clock=clock)
    assert isinstance(error, TimeoutError)
    assert error.retriable is retriable
    assert WorkerTimeout(message="m", clock=clock, retriable=True).retriable is retriable
    assert WorkerTimeout(message="m", clock=clock, retriable=False).retriable is False
    assert error.engine_fault is engine_fault
    assert error.fields == (*COMMON, "clock")


def test_an_unknown_clock_is_refused() -> None:
    """A timeout names one of the six clocks."""
    with pytest.raises(ValueError, match="clock"):
        WorkerTimeout(message="m", clock="read")


@pytest.mark.parametrize("cls", [*TABLE, WorkerTimeout])
def test_nothing_is_retriable_once_a_token_was_seen(cls: type[WorkerError]) -> None:
    """Whatever its class and whoever said so, an error after a token is not retriable, and never becomes it again."""
    error = make(cls, retriable=True)
    error.tokens_seen = 1
    assert error.retriable is False
    error.retriable = True
    assert error.retriable is False
    assert make(cls, retriable=True, tokens_seen=3).retriable is False


@pytest.mark.parametrize("cls", [WorkerError, *TABLE, WorkerTimeout])
def test_fields_are_keyword_only(cls: type[WorkerError]) -> None:
    """An error takes no positional argument, so no field is ever confused with another, and needs a message."""
    with pytest.raises(TypeError):
        cls("m")  # type: ignore[misc]
    with pytest.raises(TypeError):
        cls(**({"clock": "pool"} if cls is WorkerTimeout else {}))
    with pytest.raises(TypeError):
        make(cls, banana=1)


def test_str_is_the_message_and_repr_names_what_identifies() -> None:
    """``str`` is the message alone; ``repr`` adds engine, job, status and phase, and never the partial text."""
    error = EngineUnavailable(
        message="down", engine="vllm", job_id="j", status=500, phase="stream", partial_text="SECRET"
    )
    assert str(error) == "down"
    assert repr(error) == "EngineUnavailable(message='down', engine='vllm', job_id='j', status=500, phase='stream')"
    assert "SECRET" not in repr(error) + str(error)


def test_to_dict_holds_the_code_and_every_field() -> None:
    """``to_dict`` is the code and all fields of the class, absent ones as None."""
    assert ContextOverflow(message="m", prompt_tokens=9, context_size=8, status=400).to_dict() == {
        "code": "CONTEXT_OVERFLOW", "message": "m", "retriable": False, "retry_after_ms": None, "engine": None,
        "job_id": None, "status": 400, "phase": None, "tokens_seen": 0, "partial_text": "", "request_id": None,
        "field": None,
        "prompt_tokens": 9, "context_size": 8,
    }  # fmt: skip


WORDS = st.text(max_size=10)
COUNTS = st.none() | st.integers(0, 2**40)


@st.composite
def errors(draw: st.DrawFn) -> WorkerError:
    cls = draw(st.sampled_from([*TABLE, WorkerTimeout]))
    fields: dict[str, Any] = {
        "message": draw(WORDS), "retriable": draw(st.none() | st.booleans()), "retry_after_ms": draw(COUNTS),
        "engine": draw(st.none() | WORDS), "job_id": draw(st.none() | WORDS), "status": draw(COUNTS),
        "phase": draw(st.none() | st.sampled_from(PHASES)), "tokens_seen": draw(st.integers(0, 3)),
        "partial_text": draw(WORDS),
        "request_id": draw(st.none() | WORDS),
    }  # fmt: skip
    for name in cls.fields:
        if name == "clock":
            fields[name] = draw(st.sampled_from(CLOCKS))
        elif name == "field":
            fields[name] = draw(st.none() | WORDS)
        elif name in ("prompt_tokens", "context_size"):
            fields[name] = draw(COUNTS)
    return cls(**fields)


def same(one: WorkerError, other: WorkerError) -> bool:
    return type(one) is type(other) and one.to_dict() == other.to_dict() and str(one) == str(other)


@given(error=errors())
def test_an_error_survives_pickle_and_copy_with_every_field(error: WorkerError) -> None:
    """Class, code and every field are the same after pickle, copy and deepcopy."""
    for again in (pickled(error), copy.copy(error), copy.deepcopy(error)):
        assert same(error, again)


@given(error=errors())
def test_an_error_survives_its_frame_with_every_field(error: WorkerError) -> None:
    """Error to frame, to dict, to frame, to exception gives the same class with the same fields."""
    frame = ErrorFrame.from_exception(error)
    assert frame.to_dict() == {"type": "error", **error.to_dict()}
    assert (frame.message, frame.retriable) == (error.message, error.retriable)
    assert same(error, frame.to_exception())
    again = frame_from_dict(frame.to_dict())
    assert again == frame
    assert isinstance(again, ErrorFrame)
    assert same(error, again.to_exception())
    assert pickled(frame) == frame


def test_a_third_party_error_class_pickles_by_its_own_fields() -> None:
    """A subclass that appends fields needs nothing else to be pickled."""
    error = OutOfCredits(message="m", balance=3)
    assert same(error, pickled(error))
    assert pickled(error).balance == 3


class OutOfCredits(WorkerError):
    """An error of a third-party adapter."""

    code = "OUT_OF_CREDITS"
    fields = (*WorkerError.fields, "balance")

    def __init__(self, *, balance: int, **common: Any) -> None:
        self.balance = balance
        super().__init__(**common)


def test_the_cause_is_kept_in_the_process() -> None:
    """``raise ... from`` works as for any exception."""
    with pytest.raises(EngineUnavailable) as caught:
        raise EngineUnavailable(message="m") from OSError("x")
    assert isinstance(caught.value.__cause__, OSError)
