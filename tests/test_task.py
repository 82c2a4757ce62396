"""TaskRequest and Message: what is refused, by which name, and the ways there and back."""

from __future__ import annotations

import json
import pickle
import types
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker_adapters.errors import InvalidRequest, WorkerError
from worker_adapters.message import ROLES, Message
from worker_adapters.task import OWNED_BY_CONTRACT, PRIORITIES, RESPONSE_FORMATS, TaskRequest
from worker_adapters.timeouts import Timeouts

SECRET = "hunter2-secret"
SURROGATE = SECRET + "\ud83d"
NAN, INF = float("nan"), float("inf")
HUGE = 10**400  # no float is as large
TOOL = {"type": "function", "function": {"name": "f"}}


def nested(depth: int = 100_000) -> Any:
    value: Any = SECRET
    for _ in range(depth):
        value = [value]
    return value


def shown(value: Any) -> str:
    """The name of a parameter in a test's id."""
    try:
        return ascii(value)[:40]
    except RecursionError:
        return "nested"


def looped() -> dict[str, Any]:
    value: dict[str, Any] = {"a": SECRET}
    value["a"] = value
    return value


def number_cases(name: str, low: float | None, high: float | None) -> list[tuple[str, Any]]:
    bad: list[Any] = [SECRET, True, NAN, INF, -INF, [1], {}, 1j]
    bad += [] if low is None else [low - 0.5]
    bad += [] if high is None else [high + 0.5]
    return [(name, value) for value in bad]


def integer_cases(name: str, low: int, high: int) -> list[tuple[str, Any]]:
    return [(name, value) for value in (SECRET, True, 1.0, NAN, [1], low - 1, high + 1, HUGE)]


# (field that the error names, the field that is set, its bad value)
BAD: list[tuple[str, str, Any]] = [
    *((name, name, value) for name in ("job_id", "model", "session_id", "correlation_id")
      for value in ("", "x" * 257, f"{SECRET}\n", f"{SECRET}\0", SURROGATE, 5, b"x", ["x"])),
    *(("prompt", "prompt", value) for value in (5, SECRET.encode(), [SECRET], SURROGATE, True)),
    *(("grammar", "grammar", value) for value in (5, SECRET.encode(), SURROGATE)),
    *((name, name, value) for name, value in [
        *integer_cases("max_tokens", 1, 2**31 - 1), ("max_tokens", None), ("max_tokens", 0), ("max_tokens", -1),
        *integer_cases("top_k", -1, 2**31 - 1), *integer_cases("seed", 0, 2**63 - 1),
        *integer_cases("logprobs", 0, 1000), *number_cases("temperature", 0, None), *number_cases("top_p", 0, 1),
        *number_cases("min_p", 0, 1), *number_cases("presence_penalty", None, None),
        *number_cases("frequency_penalty", None, None), *number_cases("repetition_penalty", 0, None),
    ]),
    *(("stop", "stop", value) for value in ([SECRET, ""], "", [5], 5, SECRET.encode(), {SECRET: 1}, [None])),
    *(("logit_bias", "logit_bias", value) for value in (
        SECRET, 5, [[1, 2]], {SECRET: 1}, {"-1": 1}, {"1.5": 1}, {1: SECRET}, {1: True}, {1: NAN}, {1: None}, {1: INF},
    )),
    *(("tools", "tools", value) for value in (
        [], SECRET, SECRET.encode(), 5, [SECRET], [{}], [{"type": "function"}], [{"function": {"name": 5}}],
        [{"function": SECRET}], [TOOL, None], [{"function": {"name": "f", "x": SURROGATE}}],
        [{"function": {"name": "f", "x": object()}}], [{"function": {"name": "f", "x": NAN}}],
    )),
    *(("tool_choice", "tool_choice", value) for value in (SECRET, "", 5, [SECRET], {"a": SURROGATE}, {"a": object()})),
    *(("response_format.type", "response_format", value) for value in ({}, {"type": SECRET}, {"type": None})),
    *(("response_format.json_schema", "response_format", {"type": "json_schema", **value}) for value in (
        {}, {"json_schema": SECRET}, {"json_schema": {}}, {"json_schema": {"schema": SECRET}},
    )),
    *(("response_format", "response_format", value) for value in (
        SECRET, 5, [SECRET], {"type": "text", "x": SURROGATE}, {"type": "text", "x": nested()},
    )),
    *(("priority", "priority", value) for value in (SECRET, None, 5, ["batch"])),
    *(("metadata", "metadata", value) for value in (SECRET, None, 5, [SECRET])),
    *(("extra", "extra", value) for value in (
        SECRET, None, 5, [SECRET], {5: SECRET}, {"a": SURROGATE}, {"a": NAN}, {"a": object()}, {"a": nested()},
        looped(), {"a": {1, 2}},
    )),
    *((f"extra.{key}", "extra", {key: SECRET}) for key in sorted(OWNED_BY_CONTRACT)),
    *(("timeouts", "timeouts", value) for value in (SECRET, 5, {"read": SECRET})),
    ("timeouts.connect", "timeouts", {"connect": SECRET}),
    *(("messages", "messages", value) for value in (
        [], SECRET, SECRET.encode(), 5, {"role": "user", "content": SECRET}, [SECRET], [5], [None],
        [{"role": "user", "content": SURROGATE}],
        [{"role": "assistant", "tool_calls": [{"x": object()}]}],
    )),
    ("messages.role", "messages", [{"content": SECRET}]),
    ("messages.role", "messages", [{"role": SECRET, "content": "x"}]),
    ("messages.role", "messages", [{"role": None, "content": SECRET}]),
    ("messages.content", "messages", [{"role": "user"}]),
    ("messages.content", "messages", [{"role": "user", "content": [SECRET]}]),
    ("messages.content", "messages", [{"role": "assistant", "tool_calls": []}]),
    ("messages.tool_call_id", "messages", [{"role": "tool", "content": SECRET}]),
    ("messages.banana", "messages", [{"role": "user", "content": "x", "banana": SECRET}]),
]  # fmt: skip


def refused(make: Callable[[], object]) -> InvalidRequest:
    """The error; it shows no value, neither its own nor the one it was raised from."""
    with pytest.raises(InvalidRequest) as caught:
        make()
    error = caught.value
    assert SECRET not in str(error) + repr(error) + repr(error.to_dict())
    assert SECRET.encode() not in pickle.dumps(error)
    assert error.__cause__ is None
    assert error.retriable is False
    assert "\n" not in str(error)
    return error


@pytest.mark.parametrize(("named", "field", "value"), BAD, ids=shown)
def test_a_bad_field_is_refused_by_its_name_and_never_shown(named: str, field: str, value: Any) -> None:
    """Every bad value of every field is an InvalidRequest that names the field and never holds the value."""
    source = {} if field in ("prompt", "messages") else {"prompt": "x"}
    error = refused(lambda: TaskRequest(**{**source, field: value}))
    assert error.field == named
    assert named in str(error)


@pytest.mark.parametrize("field", ["temperature", "top_p", "presence_penalty", "repetition_penalty"])
@pytest.mark.parametrize("value", [HUGE, -HUGE], ids=["huge", "minus huge"])
def test_an_integer_beyond_every_float_is_refused_by_name(field: str, value: int) -> None:
    """A number of 400 digits is out of range like any other."""
    assert refused(lambda: TaskRequest(prompt="x", **{field: value})).field == field


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("stop", [SURROGATE]),
        ("logit_bias", {"²": 1}),
        ("logit_bias", {"9" * 5000: 1}),
        ("logit_bias", {1: HUGE}),
        ("tools", [{"function": {"name": "f", "parameters": {None: 1}}}]),
        ("extra", {"a": {True: 1}}),
        ("messages.name", [{"role": "user", "content": "x", "name": 5}]),
        ("messages.tool_call_id", [{"role": "tool", "content": "x", "tool_call_id": 5}]),
        ("messages.tool_calls", [{"role": "assistant", "tool_calls": SECRET}]),
    ],
    ids=shown,
)
def test_what_cannot_be_sent_is_refused_by_name(field: str, value: Any) -> None:
    """What no request body could hold is refused by validation, not by a foreign exception while it is encoded."""
    name = field.partition(".")[0]
    source = {} if name == "messages" else {"prompt": "x"}
    assert refused(lambda: TaskRequest(**{**source, name: value})).field == field


@pytest.mark.parametrize("fields", [{}, {"prompt": SECRET, "messages": [{"role": "user", "content": SECRET}]}])
def test_exactly_one_of_prompt_and_messages(fields: dict[str, Any]) -> None:
    """A task without prompt and messages, or with both, is refused."""
    assert refused(lambda: TaskRequest(**fields)).field == "prompt"


GOOD: list[tuple[str, Any, Any]] = [
    ("prompt", "", ""),
    ("prompt", "é🦊\0\n", "é🦊\0\n"),
    ("max_tokens", 1, 1),
    ("max_tokens", 2**31 - 1, 2**31 - 1),
    ("temperature", 0, 0),
    ("temperature", 100.0, 100.0),
    ("top_p", 1, 1),
    ("top_k", -1, -1),
    ("seed", 2**63 - 1, 2**63 - 1),
    ("stop", "x", ["x"]),
    ("stop", ("x", "y"), ["x", "y"]),
    ("stop", None, []),
    ("presence_penalty", -2.5, -2.5),
    ("logit_bias", {5: 1, "6": -0.5}, {"5": 1.0, "6": -0.5}),
    ("logit_bias", {}, {}),
    ("logprobs", 0, 0),
    ("tools", [TOOL], [TOOL]),
    ("tool_choice", "required", "required"),
    ("tool_choice", {"type": "function"}, {"type": "function"}),
    ("response_format", {"type": "json_object"}, {"type": "json_object"}),
    ("priority", "batch", "batch"),
    ("session_id", "x" * 256, "x" * 256),
    ("job_id", "é-1", "é-1"),
    ("metadata", {"o": b"x"}, {"o": b"x"}),
    ("extra", {"mirostat": 1, "deep": {"n": 2}}, {"mirostat": 1, "deep": {"n": 2}}),
]


@pytest.mark.parametrize(("field", "value", "kept"), GOOD, ids=shown)
def test_a_good_field_is_kept(field: str, value: Any, kept: Any) -> None:
    """Values within the bounds are taken; a stop string becomes a list, token ids become strings."""
    task = TaskRequest(**{"prompt": "x", field: value})
    assert getattr(task, field) == kept


def test_the_defaults_are_those_of_the_contract() -> None:
    """max_tokens is 256, priority interactive, sampling fields are None, collections empty."""
    task = TaskRequest(prompt="x")
    assert (task.max_tokens, task.priority, task.stop, task.metadata, task.extra) == (256, "interactive", [], {}, {})
    told = {"prompt", "max_tokens", "priority", "stop", "metadata", "extra"}
    assert all(value is None for name, value in vars(task).items() if name not in told)


def test_a_task_is_frozen() -> None:
    """No field of a task or a message can be set."""
    with pytest.raises(AttributeError):
        TaskRequest(prompt="x").prompt = "y"  # type: ignore[misc]
    with pytest.raises(AttributeError):
        Message("user", "x").role = "tool"  # type: ignore[misc]


def test_the_repr_of_a_task_shows_no_text() -> None:
    """What the user wrote stands in no repr: neither prompt, messages, stop, tools, grammar, metadata nor extra."""
    call = {"id": SECRET, "type": "function", "function": {"name": SECRET, "arguments": SECRET}}
    chat = TaskRequest(
        messages=[Message("user", SECRET), Message("assistant", tool_calls=[call])], stop=[SECRET], grammar=SECRET,
        tools=[{"function": {"name": SECRET}}], metadata={"a": SECRET}, extra={"a": SECRET},
        response_format={"type": "text", "a": SECRET}, tool_choice={"a": SECRET},
    )  # fmt: skip
    assert SECRET not in repr(chat) + repr(chat.messages) + repr(TaskRequest(prompt=SECRET))


# --- of


def test_of_takes_a_task_a_prompt_or_messages() -> None:
    """A TaskRequest stays itself, a string is a prompt, a list is messages; overrides replace fields."""
    task = TaskRequest(prompt="x")
    assert TaskRequest.of(task) is task
    assert TaskRequest.of(task, max_tokens=5) == TaskRequest(prompt="x", max_tokens=5)
    assert TaskRequest.of("x", seed=1) == TaskRequest(prompt="x", seed=1)
    turns = [{"role": "user", "content": "x"}, Message("assistant", "y")]
    expected = TaskRequest(messages=[Message("user", "x"), Message("assistant", "y")])
    assert TaskRequest.of(turns) == TaskRequest.of(tuple(turns)) == expected
    assert TaskRequest.of(task, prompt=None, messages=turns) == expected


@pytest.mark.parametrize("task", [None, 5, SECRET.encode(), bytearray(b"x"), {"prompt": SECRET}, {SECRET}])
def test_of_refuses_anything_else(task: Any) -> None:
    """What is neither task, string nor list is refused as ``task``."""
    assert refused(lambda: TaskRequest.of(task)).field == "task"


def test_of_names_an_unknown_field() -> None:
    """A field that no task has is refused by its name and points to extra."""
    error = refused(lambda: TaskRequest.of("x", max_new_tokens=SECRET))
    assert error.field == "max_new_tokens"
    assert "extra" in str(error)


def test_overrides_are_validated_again() -> None:
    """Replacing a field of a valid task cannot make an invalid one."""
    assert refused(lambda: TaskRequest.of(TaskRequest(prompt="x"), top_p=2)).field == "top_p"
    assert refused(lambda: TaskRequest.of(TaskRequest(prompt="x"), messages=[{"role": "user", "content": ""}])).field


# --- messages


@pytest.mark.parametrize("role", ROLES)
def test_every_role_is_taken(role: str) -> None:
    """system, developer, user, assistant and tool are roles."""
    assert Message(role, "x", tool_call_id="c").role == role


def test_a_message_on_the_wire_leaves_out_what_is_absent() -> None:
    """The OpenAI form has role and content always, the rest if it is there."""
    assert Message("user", "x").wire() == {"role": "user", "content": "x"}
    calls = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    assert Message("assistant", tool_calls=calls).wire() == {"role": "assistant", "content": None, "tool_calls": calls}
    assert Message("tool", "", tool_call_id="c").wire() == {"role": "tool", "content": "", "tool_call_id": "c"}


def test_a_message_of_any_mapping() -> None:
    """Any mapping makes a message, a Message stays itself."""
    message = Message("user", "x", name="n")
    assert Message.of(message) is message
    assert Message.of(types.MappingProxyType({"role": "user", "content": "x", "name": "n"})) == message


# --- the ways there and back

PLAIN_TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
IDS = st.text("abc-123é", min_size=1, max_size=6)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | PLAIN_TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(PLAIN_TEXT, inner, max_size=2),
    max_leaves=4,
)
MAPPINGS = st.dictionaries(PLAIN_TEXT.map(lambda key: f"x{key}"), JSON, max_size=2)
FLOATS = st.none() | st.floats(0, 1)
CALLS = st.just([{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}])
MESSAGES = st.one_of(
    st.builds(Message, st.sampled_from(["system", "developer", "user"]), PLAIN_TEXT, st.none() | IDS),
    st.builds(Message, st.just("assistant"), st.none() | PLAIN_TEXT, tool_calls=CALLS),
    st.builds(Message, st.just("tool"), PLAIN_TEXT, tool_call_id=IDS),
)
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "job_id": IDS, "model": IDS, "max_tokens": st.integers(1, 99), "temperature": FLOATS, "top_p": FLOATS,
        "top_k": st.integers(-1, 9), "min_p": FLOATS, "seed": st.integers(0, 2**63 - 1),
        "stop": st.lists(st.text("ab\n", min_size=1, max_size=3), max_size=2), "presence_penalty": FLOATS,
        "frequency_penalty": FLOATS, "repetition_penalty": FLOATS,
        "logit_bias": st.dictionaries(st.integers(0, 99).map(str), st.floats(-1, 1), max_size=2),
        "logprobs": st.integers(0, 5), "tools": st.just([TOOL]),
        "tool_choice": st.sampled_from(["auto", {"type": "function"}]),
        "response_format": st.sampled_from([
            {"type": "text"}, {"type": "json_object"}, {"type": "json_schema", "json_schema": {"schema": {"a": [1]}}},
        ]),
        "grammar": PLAIN_TEXT, "priority": st.sampled_from(PRIORITIES), "session_id": IDS, "correlation_id": IDS,
        "timeouts": st.sampled_from([Timeouts(), Timeouts(connect=None, total=2), {"connect": 1.5}, {"total": None}]),
        "metadata": MAPPINGS, "extra": MAPPINGS,
    },
)  # fmt: skip
TASKS = st.builds(
    lambda source, fields: TaskRequest(**source, **fields),
    st.builds(lambda prompt: {"prompt": prompt}, PLAIN_TEXT)
    | st.builds(lambda messages: {"messages": messages}, st.lists(MESSAGES, min_size=1, max_size=3)),
    FIELDS,
)


@given(task=TASKS)
def test_a_task_survives_dict_json_and_pickle(task: TaskRequest) -> None:
    """from_dict(to_dict), from_json(to_json) and pickle give the same task, field by field."""
    for again in (
        TaskRequest.from_dict(task.to_dict()),
        TaskRequest.from_json(task.to_json()),
        TaskRequest.from_json(task.to_json().encode()),
        pickle.loads(pickle.dumps(task)),
    ):
        assert again == task
        assert again.to_dict() == task.to_dict()


@given(message=MESSAGES)
def test_a_message_survives_dict_json_and_pickle(message: Message) -> None:
    """A message is the same after every way there and back."""
    assert Message.from_dict(message.to_dict()) == message
    assert Message.from_json(message.to_json()) == message
    assert pickle.loads(pickle.dumps(message)) == message
    json.dumps(message.wire())


@pytest.mark.parametrize("kind", RESPONSE_FORMATS)
def test_every_response_format_is_taken(kind: str) -> None:
    """text, json_object and json_schema are formats."""
    TaskRequest(prompt="x", response_format={"type": kind, "json_schema": {"schema": {}}})


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ({"prompt": "x", "banana": SECRET}, "banana"),
        ({"prompt": "x", "max_tokens": 0}, "max_tokens"),
        ({}, "prompt"),
        ({"prompt": "x", "timeouts": {"read": 1}}, "timeouts"),
        ({"prompt": "x", "extra": {"stream": SECRET}}, "extra.stream"),
    ],
)
def test_from_dict_validates_again(data: dict[str, Any], named: str) -> None:
    """A mapping that is no valid task is refused by the name of the field."""
    assert refused(lambda: TaskRequest.from_dict(data)).field == named
    assert refused(lambda: TaskRequest.from_json(json.dumps(data))).field == named


@pytest.mark.parametrize(
    "data",
    [
        {"prompt": "x", "temperature": SECRET},
        {"prompt": "x", "logit_bias": {"1": SECRET}},
        {"prompt": "x", "metadata": SECRET},
        {"prompt": "x", "tools": 5},
        {"prompt": "x", "max_tokens": None},
        {"prompt": "x", "stop": 5},
        {"messages": SECRET},
        {"messages": [SECRET]},
        {"messages": [{"content": SECRET}]},
        {"messages": [{"role": "user", "content": "x", "banana": SECRET}]},
        {"messages": [{"role": SECRET, "content": "x"}]},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("default:.*non-optional type")
def test_a_mistyped_mapping_is_an_invalid_request(data: dict[str, Any]) -> None:
    """What is refused as an argument is refused from a mapping, by the same error and without the value."""
    refused(lambda: TaskRequest.from_dict(data))


@pytest.mark.parametrize("text", ["[]", "5", "null", '"x"', "{", "", '{"prompt":"x","temperature":NaN}'])
def test_json_that_is_no_task_is_a_value_error(text: str) -> None:
    """Whatever the text, ``from_json`` raises nothing but ValueError."""
    with pytest.raises(ValueError, match=r"\w"):
        TaskRequest.from_json(text)


def test_stop_strings_in_a_mapping_stay_whole() -> None:
    """A stop string that comes in a mapping is one string, not its characters."""
    assert TaskRequest.from_dict({"prompt": "x", "stop": "abc"}).stop == ["abc"]


# --- what must be kept out of messages


def test_texts_holds_everything_the_user_wrote() -> None:
    """Prompt or messages, tool calls, stop, grammar, tools, format, extra and metadata are all in ``texts``."""
    call = {"id": "c", "function": {"name": "f", "arguments": "in the call"}}
    task = TaskRequest(
        messages=[Message("user", "in the turn"), Message("assistant", tool_calls=[call])], stop=["in the stop"],
        grammar="in the grammar", tools=[{"function": {"name": "in the tool"}}], metadata={"a": "in metadata"},
        extra={"a": "in extra"}, response_format={"type": "text", "a": "in the format"},
    )  # fmt: skip
    found = "\n".join(task.texts())
    wrote = ["turn", "call", "stop", "grammar", "tool"]
    assert all(f"in the {what}" in found for what in wrote)
    assert all(f"in {what}" in found for what in ("metadata", "extra", "the format"))
    assert TaskRequest(prompt="only this").texts() == ["only this"]


def test_texts_never_raises() -> None:
    """``texts`` is asked for while an error is made, so metadata of any kind does not disturb it."""
    for metadata in ({(1, 2): "tuple key"}, {"a": object()}, {"a": nested()}, looped()):
        assert isinstance(TaskRequest(prompt="x", metadata=metadata).texts(), list)


def test_an_invalid_request_is_a_value_error_of_ours() -> None:
    """A caller can catch validation as ValueError or as WorkerError."""
    error = refused(lambda: TaskRequest(prompt="x", top_p=2))
    assert isinstance(error, ValueError)
    assert isinstance(error, WorkerError)
    assert (error.code, error.phase) == ("INVALID_REQUEST", "submit")
