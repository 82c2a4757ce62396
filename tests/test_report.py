"""Health, props, capabilities and completions: plain values, there and back."""

from __future__ import annotations

import dataclasses
import json
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker_adapters.errors import InvalidRequest
from worker_adapters.frames import FINISH_REASONS, Metrics, ToolCall
from worker_adapters.jsonvalue import JsonValue
from worker_adapters.message import Message
from worker_adapters.report import RESIDENCIES, STATES, Capabilities, Completion, EngineProps, HealthStatus
from worker_adapters.task import TaskRequest

WORDS = st.text(max_size=6)
MAYBE = st.none() | WORDS
COUNTS = st.none() | st.integers(0, 99)
TIMES = st.none() | st.floats(0, 1e6)
RAW = st.dictionaries(WORDS, st.none() | st.integers(-9, 9) | WORDS | st.lists(WORDS, max_size=2), max_size=2)
CAPABILITIES = st.builds(
    Capabilities, st.booleans(), st.booleans(), st.lists(WORDS, max_size=3).map(tuple), st.booleans(), st.booleans(),
    WORDS, st.booleans(),
)  # fmt: skip
METRICS = st.builds(Metrics, COUNTS, st.integers(0, 9), st.sampled_from(["exact", "counted"]), *[TIMES] * 5, RAW)
VALUES: st.SearchStrategy[Any] = st.one_of(
    st.builds(HealthStatus, st.sampled_from(STATES), st.booleans(), st.booleans(), WORDS, TIMES),
    CAPABILITIES,
    st.builds(
        EngineProps, WORDS, WORDS, MAYBE, MAYBE, *[COUNTS] * 5, st.none() | st.floats(0, 1),
        st.sampled_from(RESIDENCIES), CAPABILITIES, RAW,
    ),
    st.builds(
        Completion, WORDS, st.sampled_from(FINISH_REASONS), MAYBE, WORDS,
        st.lists(st.builds(ToolCall, MAYBE, MAYBE, WORDS), max_size=2).map(tuple), METRICS, WORDS,
    ),
    METRICS,
    st.builds(ToolCall, MAYBE, MAYBE, WORDS),
)  # fmt: skip


@given(value=VALUES)
def test_every_value_survives_dict_json_and_pickle(value: JsonValue) -> None:
    """from_dict(to_dict), from_json(to_json) and pickle give the same value of the same class."""
    cls = type(value)
    for again in (
        cls.from_dict(value.to_dict()),
        cls.from_dict(json.loads(json.dumps(value.to_dict()))),
        cls.from_json(value.to_json()),
        pickle.loads(pickle.dumps(value)),
    ):
        assert type(again) is cls
        assert again == value


@pytest.mark.parametrize(
    "value",
    [
        HealthStatus("healthy", live=True, ready=True),
        Capabilities(),
        EngineProps("vllm"),
        Completion("x", "stop"),
        Metrics(),
        ToolCall(None, None, ""),
    ],
    ids=lambda value: type(value).__name__,
)
class TestValues:
    """What holds for each of them."""

    def test_to_dict_has_every_field(self, value: Any) -> None:
        """Absent values are None in the dict, never left out."""
        assert list(value.to_dict()) == [field.name for field in dataclasses.fields(value)]

    def test_it_is_frozen(self, value: Any) -> None:
        """No field can be set."""
        with pytest.raises(AttributeError):
            setattr(value, dataclasses.fields(value)[0].name, "x")

    def test_an_unknown_field_is_refused_by_name(self, value: Any) -> None:
        """``from_dict`` names a field it does not know, and shows no value."""
        with pytest.raises(ValueError, match="banana") as caught:
            type(value).from_dict({**value.to_dict(), "banana": "SECRET"})
        assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize("text", ["[]", "5", "null", '"x"', "{"])
def test_json_that_is_no_value_is_a_value_error(text: str) -> None:
    """``from_json`` raises nothing but ValueError, whatever the text."""
    with pytest.raises(ValueError, match=r"\w"):
        HealthStatus.from_json(text)


@pytest.mark.parametrize(("cls", "missing"), [(HealthStatus, "state"), (EngineProps, "engine"), (Completion, "text")])
def test_a_missing_field_is_a_value_error_that_names_it(cls: type[JsonValue], missing: str) -> None:
    """A mapping that lacks a required field is refused by the field's name."""
    with pytest.raises(ValueError, match=missing):
        cls.from_dict({})


def test_absent_is_none_never_a_guess() -> None:
    """Props that an engine does not tell are None, its version and the residency of its weights ``unknown``."""
    props = EngineProps("vllm").to_dict()
    assert props.pop("capabilities") == Capabilities().to_dict()
    assert props == {
        "engine": "vllm", "engine_version": "unknown", "model": None, "model_digest": None, "context_size": None,
        "slots_total": None, "slots_free": None, "running": None, "waiting": None, "kv_cache_usage": None,
        "residency": "unknown", "raw": {},
    }  # fmt: skip


def test_raw_answers_stand_in_no_repr() -> None:
    """The engine's own answers, which may hold anything, are kept out of the repr of props."""
    assert "SECRET" not in repr(EngineProps("vllm", raw={"a": "SECRET"}))


@pytest.mark.parametrize("reason", FINISH_REASONS)
def test_a_completion_knows_whether_it_was_cancelled(reason: str) -> None:
    """Only the finish reason ``cancelled`` makes a cancelled completion."""
    assert Completion("x", reason).cancelled is (reason == "cancelled")


def test_a_completion_is_the_next_request_s_turn() -> None:
    """An answer goes back into the conversation as it is: its text, and its calls in OpenAI form."""
    said = Completion("Hello", "stop").message()
    assert said.wire() == {"role": "assistant", "content": "Hello"}
    called = Completion("", "tool_calls", tool_calls=(ToolCall("c1", "now", '{"tz":1}'),)).message()
    assert called.wire() == {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "now", "arguments": '{"tz":1}'}}],
    }
    assert TaskRequest(messages=[called]).messages == [called]
    broken = Completion("", "tool_calls", tool_calls=(ToolCall("c1", "now", '{"tz":'),)).message()
    assert broken.wire()["tool_calls"][0]["function"]["arguments"] == "{}"
    with pytest.raises(InvalidRequest, match=r"messages\.content"):
        Completion("", "stop").message()


def test_a_message_takes_no_other_calls() -> None:
    """What is neither a call of a completion nor a mapping is refused by name."""
    with pytest.raises(InvalidRequest, match=r"messages\.tool_calls"):
        Message("assistant", "x", tool_calls=["f"])
