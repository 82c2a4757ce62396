"""Frames: their dicts, the way back, and the one table of their order."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker_adapters.errors import UnknownError, WorkerTimeout
from worker_adapters.frames import (
    FINISH_REASONS,
    FRAME_ORDER,
    AnyFrame,
    EndFrame,
    ErrorFrame,
    Metrics,
    ReasoningFrame,
    StartedFrame,
    TokenFrame,
    ToolCall,
    ToolCallFrame,
    frame_from_dict,
)
from worker_adapters.tally import Tally

WORDS = st.text(max_size=8)
MAYBE = st.none() | WORDS
NUMBERS = st.none() | st.floats(allow_nan=False, allow_infinity=False)
COUNTS = st.none() | st.integers(0, 2**40)
FACTS = st.dictionaries(
    WORDS, st.none() | st.booleans() | st.integers(-9, 9) | WORDS | st.lists(WORDS, max_size=2), max_size=3
)
CALLS = st.builds(ToolCall, MAYBE, MAYBE, WORDS)
METRICS = st.builds(
    Metrics,
    tokens_in=COUNTS,
    tokens_out=st.integers(0, 9),
    counts=st.sampled_from(["exact", "counted"]),
    queue_ms=NUMBERS,
    first_token_ms=NUMBERS,
    decode_ms=NUMBERS,
    total_ms=NUMBERS,
    tokens_per_second=NUMBERS,
    engine=FACTS,
)
FRAMES = st.one_of(
    st.builds(StartedFrame, WORDS, WORDS, WORDS, MAYBE),
    st.builds(TokenFrame, WORDS, st.integers(0, 9), NUMBERS, COUNTS),
    st.builds(ReasoningFrame, WORDS, st.integers(0, 9)),
    st.builds(ToolCallFrame, st.integers(0, 9), WORDS, MAYBE, MAYBE),
    st.builds(EndFrame, st.sampled_from(FINISH_REASONS), MAYBE, METRICS, st.lists(CALLS, max_size=2).map(tuple)),
)


@given(frame=FRAMES)
def test_every_frame_survives_dict_json_and_pickle(frame: AnyFrame) -> None:
    """``frame_from_dict(frame.to_dict())`` is the same frame, also through JSON and pickle."""
    assert frame_from_dict(frame.to_dict()) == frame
    assert frame_from_dict(json.loads(json.dumps(frame.to_dict()))) == frame
    assert pickle.loads(pickle.dumps(frame)) == frame
    assert frame.to_dict()["type"] == frame.type


# frame -> exactly this dict, keys in this order
DICTS: list[tuple[AnyFrame, dict[str, Any]]] = [
    (TokenFrame("hello", 0), {"type": "token", "text": "hello", "index": 0}),
    (
        TokenFrame("hello", 1, -0.5, 42),
        {"type": "token", "text": "hello", "index": 1, "logprob": -0.5, "token_id": 42},
    ),
    (TokenFrame("x", 2, 0.0, 0), {"type": "token", "text": "x", "index": 2, "logprob": 0.0, "token_id": 0}),
    (ReasoningFrame("hm", 0), {"type": "reasoning", "text": "hm", "index": 0}),
    (
        StartedFrame("j", "vllm", "0.32.0", "m"),
        {"type": "started", "job_id": "j", "engine": "vllm", "engine_version": "0.32.0", "model": "m"},
    ),
    (
        ToolCallFrame(0, '{"ci', "c1", "weather"),
        {"type": "tool_call", "index": 0, "call_id": "c1", "name": "weather", "arguments": '{"ci'},
    ),
    (ToolCallFrame(0, 'ty"'), {"type": "tool_call", "index": 0, "arguments": 'ty"'}),
    (
        EndFrame("stop", "eos", Metrics(tokens_in=3, tokens_out=2, counts="exact", engine={"a": 1})),
        {
            "type": "end",
            "finish_reason": "stop",
            "raw_finish_reason": "eos",
            "metrics": {
                "tokens_in": 3, "tokens_out": 2, "counts": "exact", "queue_ms": None, "first_token_ms": None,
                "decode_ms": None, "total_ms": None, "tokens_per_second": None, "engine": {"a": 1},
            },
        },
    ),
    (
        ErrorFrame("UNKNOWN", {"message": "m", "retriable": False}),
        {"type": "error", "code": "UNKNOWN", "message": "m", "retriable": False},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("frame", "expected"), DICTS)
def test_the_dict_of_a_frame_is_exact(frame: AnyFrame, expected: dict[str, Any]) -> None:
    """A frame's dict has exactly these keys in this order; absent extras are left out, zeros are not."""
    assert frame.to_dict() == expected
    assert list(frame.to_dict()) == list(expected)


def test_whole_tool_calls_stand_in_the_end() -> None:
    """The end of a job with tool calls lists them whole."""
    end = EndFrame("tool_calls", None, Metrics(), (ToolCall("c1", "f", "{}"),))
    assert end.to_dict()["tool_calls"] == [{"call_id": "c1", "name": "f", "arguments": "{}"}]


@pytest.mark.parametrize(("frame", "_expected"), DICTS)
def test_frames_are_immutable(frame: AnyFrame, _expected: dict[str, Any]) -> None:
    """No field of a frame can be set."""
    for name in frame.__struct_fields__:
        with pytest.raises(AttributeError):
            setattr(frame, name, "x")


BAD_DICTS: dict[str, Any] = {
    "no type": {},
    "an unknown type": {"type": "tokens"},
    "a type that cannot be looked up": {"type": ["token"]},
    "a missing field": {"type": "token", "text": "x"},
    "an unknown field": {"type": "token", "text": "x", "index": 0, "role": "SECRET"},
    "a mistyped text": {"type": "token", "text": 5, "index": 0},
    "a mistyped index": {"type": "token", "text": "SECRET", "index": "SECRET"},
    "a mistyped logprob": {"type": "token", "text": "x", "index": 0, "logprob": "SECRET"},
    "an error without code": {"type": "error", "message": "x"},
    "an end without reason": {"type": "end"},
    "an end with an unknown field": {"type": "end", "finish_reason": "stop", "banana": 1},
    "an end with mistyped metrics": {"type": "end", "finish_reason": "stop", "metrics": "SECRET"},
    "an end with null metrics": {"type": "end", "finish_reason": "stop", "metrics": None},
    "an end with mistyped tool calls": {"type": "end", "finish_reason": "stop", "tool_calls": "SECRET"},
    "an end with a mistyped reason": {"type": "end", "finish_reason": 5},
    "an end with a mistyped raw reason": {"type": "end", "finish_reason": "stop", "raw_finish_reason": 5},
    "an error with a mistyped code": {"type": "error", "code": ["SECRET"], "message": "x"},
}


@pytest.mark.parametrize("name", BAD_DICTS)
def test_what_is_no_frame_is_a_value_error(name: str) -> None:
    """``frame_from_dict`` refuses an unknown type and an unknown, missing or mistyped field, and shows no value."""
    with pytest.raises(ValueError, match=r"frame") as caught:
        frame_from_dict(BAD_DICTS[name])
    assert "SECRET" not in str(caught.value)


def test_frame_from_dict_leaves_its_argument_alone() -> None:
    """The mapping that was passed is not changed."""
    end = EndFrame("stop", None, Metrics(), (ToolCall(None, "f", ""),)).to_dict()
    before = json.dumps(end)
    frame_from_dict(end)
    assert json.dumps(end) == before


# --- errors as frames


def test_a_foreign_exception_shows_only_its_type() -> None:
    """An exception that is none of ours becomes UNKNOWN, without its message: it may hold a secret."""
    frame = ErrorFrame.from_exception(KeyError("SECRET"))
    assert isinstance(frame.to_exception(), UnknownError)
    assert frame.message == "unexpected KeyError"
    assert "SECRET" not in repr(frame)


def test_an_unknown_code_becomes_unknown_error() -> None:
    """A frame of a newer version keeps its message and the common fields as an UnknownError."""
    frame = frame_from_dict({"type": "error", "code": "NEW", "message": "m", "status": 418, "flavour": "x"})
    assert isinstance(frame, ErrorFrame)
    error = frame.to_exception()
    assert isinstance(error, UnknownError)
    assert (error.message, error.status) == ("m", 418)


def test_a_frame_without_message_says_its_code() -> None:
    """An error frame that lacks a message still makes an exception."""
    assert str(ErrorFrame("CAPACITY_EXCEEDED", {}).to_exception()) == "CAPACITY_EXCEEDED"


def test_a_timeout_frame_without_clock_makes_an_exception() -> None:
    """An error frame that lacks the field of its class is still an exception of ours."""
    assert ErrorFrame("TIMEOUT", {"message": "m"}).to_exception().message == "m"


def test_a_frame_cannot_make_an_error_retriable() -> None:
    """The upper bound of ``retriable`` holds for an error that came as a frame."""
    frame = ErrorFrame("TIMEOUT", {"message": "m", "clock": "first_token", "retriable": True})
    error = frame.to_exception()
    assert isinstance(error, WorkerTimeout)
    assert error.retriable is False


# --- the order

EXAMPLES: dict[str, AnyFrame] = {
    "started": StartedFrame("j", "e", "v"),
    "token": TokenFrame("x", 0),
    "reasoning": ReasoningFrame("x", 0),
    "tool_call": ToolCallFrame(0),
    "end": EndFrame("stop"),
    "error": ErrorFrame("UNKNOWN", {}),
}
CONTENT = {"token", "reasoning", "tool_call"}


@pytest.mark.parametrize("after", [None, *EXAMPLES])
def test_the_order_is_started_then_content_then_end(after: str | None) -> None:
    """started -> (token | reasoning | tool_call)* -> end, or an error in place of the end; nothing follows those."""
    expected: set[str] = {"started", "end", "error"} if after is None else {*CONTENT, "end", "error"}
    assert set(FRAME_ORDER[after]) == (set() if after in ("end", "error") else expected)


@pytest.mark.parametrize("kind", EXAMPLES)
@pytest.mark.parametrize("after", [None, *EXAMPLES])
def test_the_guard_follows_the_table(after: str | None, kind: str) -> None:
    """A frame that the table does not allow next is the adapter's fault, and is an UnknownError."""
    tally = Tally()
    if after is not None:
        tally.last_kind = type(EXAMPLES[after])
    if kind in FRAME_ORDER[after]:
        tally.add([EXAMPLES[kind]], 0.0)
    else:
        with pytest.raises(UnknownError):
            tally.add([EXAMPLES[kind]], 0.0)


@given(kinds=st.lists(st.sampled_from(sorted(EXAMPLES)), max_size=8))
def test_a_guarded_sequence_matches_the_pattern(kinds: list[str]) -> None:
    """What passes the guard, frame by frame, is a beginning of the one sequence that the contract allows."""
    tally = Tally()
    passed = []
    for kind in kinds:
        try:
            tally.add([EXAMPLES[kind]], 0.0)
        except UnknownError:
            break
        passed.append(kind)
    assert passed.count("started") <= 1
    assert "started" not in passed[1:]
    assert not CONTENT & set(passed[:1])
    assert not {"end", "error"} & set(passed[:-1])
