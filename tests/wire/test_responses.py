"""The Responses API: what a task asks for, what each event adds, and how a response ends."""

from __future__ import annotations

import json
from typing import Any

import pytest

from feeding import fed
from worker_adapters.task import TaskRequest
from worker_adapters.wire.delta import Delta, EngineFault, Finish, GarbledEvent, ToolDelta, Usage
from worker_adapters.wire.responses import ResponsesDecoder, responses_fields
from worker_adapters.wire.sse import Event, EventSplitter

pytestmark = pytest.mark.openai

GARBLED = "garbled"
Made = list[Delta | str | None]


def made(stream: bytes, *, logprobs: bool = True) -> Made:
    """What a fresh decoder makes of every event, however the stream is fed; GARBLED where it refuses one."""

    def decode(pieces: list[bytes]) -> Made:
        decoder = ResponsesDecoder(logprobs=logprobs)
        splitter = EventSplitter()
        said: Made = []
        for cut in (splitter.feed(piece) for piece in pieces):
            for event in cut:
                try:
                    said.append(decoder.feed(event))
                except GarbledEvent:
                    said.append(GARBLED)
        return said

    return fed(decode, stream)


def events(*values: Any, named: bool = True) -> bytes:
    """Events as OpenAI writes them; not ``named``: data lines only, as LiteLLM's proxy does."""
    return b"".join(
        (f"event: {value['type']}\n".encode() if named and isinstance(value, dict) and "type" in value else b"")
        + b"data: " + (value if isinstance(value, bytes) else json.dumps(value, ensure_ascii=False).encode())
        + b"\n\n"
        for value in values
    )  # fmt: skip


def read(*values: Any, logprobs: bool = True) -> Made:
    """What comes of these events; the same with and without names."""
    result = made(events(*values), logprobs=logprobs)
    assert made(events(*values, named=False), logprobs=logprobs) == result
    return result


def said(text: Any, kind: str = "output_text", item: str = "i", **more: Any) -> dict[str, Any]:
    """A delta of text."""
    return {"type": f"response.{kind}.delta", "item_id": item, "output_index": 0, "delta": text, **more}


def ended(status: Any, name: str = "completed", **more: Any) -> dict[str, Any]:
    """A terminal event."""
    response = {"id": "r", "object": "response", "model": "m", "status": status, "usage": None, **more}
    return {"type": f"response.{name}", "response": response}


def item(number: int, arguments: str = "", done: bool = False, **more: Any) -> dict[str, Any]:
    """A call begins, or is done."""
    call = {"type": "function_call", "id": f"fc_{number}", "call_id": f"call_{number}", "name": "f"}
    kind = "response.output_item." + ("done" if done else "added")
    return {"type": kind, "output_index": number, "item": {**call, "arguments": arguments, **more}}


def arguments(number: int, piece: Any) -> dict[str, Any]:
    """A piece of a call's arguments."""
    return {"type": "response.function_call_arguments.delta", "output_index": number, "delta": piece}


#: What a terminal event tells beside its end.
FACTS = {"id": "r", "model": "m"}


# --- requests


def asked(task: Any = "Hi", **fields: Any) -> dict[str, Any]:
    """The request of a task, less its limit."""
    made = responses_fields(TaskRequest.of(task, **fields))
    assert made.pop("max_output_tokens") == 256
    return made


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
SCHEMA = {"type": "json_schema", "json_schema": {"schema": {"type": "object"}, "strict": True}}


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"model": "m", "temperature": 0.5, "top_p": 0.9}, {"model": "m", "temperature": 0.5, "top_p": 0.9}),
        ({"tools": [TOOL]}, {"tools": [{"type": "function", **TOOL["function"]}]}),  # type: ignore[dict-item]  # is one
        ({"tool_choice": "required"}, {"tool_choice": "required"}),
        ({"tool_choice": {"function": 5}}, {"tool_choice": {"function": 5}}),
        (
            {"tool_choice": {"type": "function", "function": {"name": "f"}}},
            {"tool_choice": {"type": "function", "name": "f"}},
        ),
        ({"response_format": {"type": "json_object"}}, {"text": {"format": {"type": "json_object"}}}),
        (
            {"response_format": SCHEMA},
            {
                "text": {
                    "format": {
                        "type": "json_schema",
                        "name": "answer",
                        "schema": {"type": "object"},
                        "strict": True,
                    }
                }
            },
        ),
        ({"logprobs": 2}, {"top_logprobs": 2, "include": ["message.output_text.logprobs"]}),
    ],
)
def test_a_field_has_the_name_it_has_there(fields: dict[str, Any], wanted: dict[str, Any]) -> None:
    """The API calls and nests some fields otherwise than chat does; what was not set is not sent."""
    assert asked(**fields) == {"input": "Hi", **wanted}


def test_turns_are_items() -> None:
    """Calls and their answers are items of their own, beside the turns that speak."""
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    turns = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Let me see.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "5"},
        {"role": "assistant", "tool_calls": [call]},
    ]
    made = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    assert asked(turns)["input"] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Let me see."},
        made,
        {"type": "function_call_output", "call_id": "c", "output": "5"},
        made,
    ]


# --- text


@pytest.mark.parametrize(
    ("kind", "delta"),
    [
        ("output_text", Delta("Hi")),
        ("refusal", Delta("Hi", facts={"refusal": True})),
        ("reasoning_text", Delta(reasoning="Hi")),
        ("reasoning_summary_text", Delta(reasoning="Hi")),
    ],
)
def test_a_delta_is_its_text(kind: str, delta: Delta) -> None:
    """Text, refusals and thoughts; the ``done`` that repeats them adds nothing."""
    done = {"type": f"response.{kind}.done", "item_id": "i", "text": "Hi", "refusal": "Hi"}
    assert read(said("Hi", kind), done) == [delta, Delta()]
    assert read(done) == [delta]  # a server that sends no deltas
    assert read(said("Hi", kind, item="other"), done) == [delta, delta]


@pytest.mark.parametrize(
    "kind", ["created", "in_progress", "queued", "content_part.added", "web_search_call.searching", "of_tomorrow"]
)
def test_other_events_prove_that_the_engine_works(kind: str) -> None:
    """Whatever else a response goes through is an empty delta; what is no event of a response says nothing."""
    assert read({"type": f"response.{kind}", "response": {"id": "r"}}) == [Delta()]
    assert read({"type": "ping"}, {}, b"null") == [None, None, None]


def test_the_type_decides_and_the_name_helps() -> None:
    """Where the JSON has no type, the event's name is one."""
    assert made(b'event: response.output_text.delta\ndata: {"delta": "Hi"}\n\n') == [Delta("Hi")]
    assert made(b'event: odd\ndata: {"type": "response.output_text.delta", "delta": "Hi"}\n\n') == [Delta("Hi")]


def test_the_first_event_names_the_model() -> None:
    """The model stands in the response that was created."""
    decoder = ResponsesDecoder()
    decoder.feed(Event(b'{"type": "response.created", "response": {"model": "m-2026"}}'))
    assert decoder.model == "m-2026"


def test_logprobs_of_a_delta_add_up() -> None:
    """Each row has one; they are told if they were asked for."""
    event = said("Hi", logprobs=[{"token": "H", "logprob": -0.5}, {"token": "i", "logprob": -1}, {}])
    assert read(event) == [Delta("Hi", logprob=-1.5)]
    assert read(event, logprobs=False) == [Delta("Hi")]


def test_the_marker_is_an_end_of_reading() -> None:
    """LiteLLM adds ``[DONE]``; it is no reason for ending."""
    assert read(b"[DONE]") == [Delta(done=True)]


# --- calls


def test_a_call_comes_in_pieces() -> None:
    """Id and name begin it, deltas are its arguments, and the whole at its end is not said again."""
    values = [item(3), arguments(3, '{"x"'), arguments(3, ":1}"), item(3, '{"x":1}', done=True)]
    assert read(*values) == [
        Delta(tools=(ToolDelta(0, "", "call_3", "f"),)),
        Delta(tools=(ToolDelta(0, '{"x"'),)),
        Delta(tools=(ToolDelta(0, ":1}"),)),
        Delta(tools=(ToolDelta(0, "", "call_3", "f"),)),
    ]


def test_a_call_may_come_whole() -> None:
    """A server that sends no pieces of arguments tells them when the call is done; those before it may still grow."""
    assert read(item(0, "{}"), item(0, '{"a":1}', done=True)) == [
        Delta(tools=(ToolDelta(0, "", "call_0", "f"),)),
        Delta(tools=(ToolDelta(0, '{"a":1}', "call_0", "f"),)),
    ]
    assert read(item(0), item(0, "{}", done=True))[1] == Delta(tools=(ToolDelta(0, "{}", "call_0", "f"),))


def test_calls_are_counted_by_their_places() -> None:
    """Messages stand between them, so a call's number is not its place in the output."""
    message = {"type": "response.output_item.added", "output_index": 1, "item": {"type": "message"}}
    made = read(item(0), message, item(2), arguments(2, "b"), arguments(0, "a"))
    assert [[tool.index for tool in delta.tools] for delta in made if isinstance(delta, Delta)] == [
        [0], [], [1], [1], [0],
    ]  # fmt: skip


# --- ends


@pytest.mark.parametrize(
    ("event", "finish"),
    [
        (ended("completed"), Finish("stop", "completed")),
        (ended("incomplete", "incomplete", incomplete_details={"reason": "max_output_tokens"}), "length"),
        (ended("incomplete", incomplete_details={"reason": "max_output_tokens"}), "length"),  # vLLM 0.32
        (ended("incomplete", "incomplete", incomplete_details={"reason": "content_filter"}), "content_filter"),
        (ended("incomplete", "incomplete", incomplete_details=None), Finish("length", "incomplete")),
    ],
)
def test_the_status_decides_how_it_ends(event: dict[str, Any], finish: Finish | str) -> None:
    """Not the event's name; a cut response is ``length`` unless it says more."""
    if isinstance(finish, str):
        finish = Finish(finish, event["response"]["incomplete_details"]["reason"])
    assert read(event) == [Delta(finish=finish, facts=FACTS, done=True)]


def test_a_response_with_calls_ends_for_them() -> None:
    """``completed`` after a call is ``tool_calls``."""
    [_, end] = read(item(0, "{}"), ended("completed"))
    assert isinstance(end, Delta)
    assert end.finish == Finish("tool_calls", "completed")


def test_the_end_tells_usage() -> None:
    """Counts, and cached and reasoning tokens as facts."""
    usage = {
        "input_tokens": 3, "input_tokens_details": {"cached_tokens": 2},
        "output_tokens": 5, "output_tokens_details": {"reasoning_tokens": 4},
    }  # fmt: skip
    [end] = read(ended("completed", usage=usage, service_tier="default"))
    assert isinstance(end, Delta)
    assert end.usage == Usage(3, 5)
    assert end.facts == {**FACTS, "service_tier": "default", "cached_tokens": 2, "reasoning_tokens": 4}


@pytest.mark.parametrize(
    ("event", "fault"),
    [
        (
            ended("failed", "failed", error={"code": "rate_limit_exceeded", "message": "slow"}),
            EngineFault("slow", "rate_limit_exceeded", code="rate_limit_exceeded"),
        ),
        (ended("failed", "failed", error=None), None),
        (ended("cancelled", "cancelled"), None),
        (ended("in_progress", "completed"), None),
        (
            {"type": "error", "code": "server_error", "message": "no", "param": "input", "sequence_number": 2},
            EngineFault("no", "error", code="server_error", param="input"),
        ),
        ({"type": "error", "error": {"code": "c", "message": "no"}}, EngineFault("no", "c", code="c")),
        ({"error": {"message": "no"}}, EngineFault("no")),
        ({"error": "no"}, EngineFault("no")),
    ],
)
def test_a_failure_is_one_in_every_form(event: dict[str, Any], fault: EngineFault | None) -> None:
    """A failed, cancelled or unfinished response, a bare error event, and a chunk's error that a proxy sends."""
    [delta] = read(event)
    assert isinstance(delta, Delta)
    assert delta.finish is None
    assert delta.fault is not None
    if fault is not None:
        assert (delta.fault.message, delta.fault.code, delta.fault.param) == (fault.message, fault.code, fault.param)


def test_a_response_in_one_piece() -> None:
    """Text, thoughts, refusal, calls, end and counts at once, for servers that ignore ``stream``."""
    output = [
        {"type": "reasoning", "summary": [{"text": "h"}], "content": [{"text": "m"}]},
        {"type": "message", "content": [{"type": "output_text", "text": "Hi"}, {"type": "refusal", "refusal": "!"}]},
        item(1, "{}")["item"],
    ]
    usage = {"input_tokens": 3, "output_tokens": 5}
    [delta] = read({**ended("completed")["response"], "output": output, "usage": usage, "error": None})
    assert isinstance(delta, Delta)
    assert (delta.text, sorted(delta.reasoning)) == ("Hi!", ["h", "m"])
    assert delta == Delta(
        "Hi!",
        reasoning=delta.reasoning,
        tools=(ToolDelta(0, "{}", "call_1", "f"),),
        finish=Finish("tool_calls", "completed"),
        usage=Usage(3, 5),
        facts={**FACTS, "refusal": True},
        done=True,
    )


@pytest.mark.parametrize("data", [b"{", b"[1]", b"5", b'"x"', b"<html>", b"[" * 5000, b'{"output_index": "x"}'])
def test_what_is_no_event_is_garbled(data: bytes) -> None:
    """Anything but the JSON of an event is refused as such."""
    assert read(data) == [GARBLED]


@pytest.mark.parametrize(
    "event",
    [
        said(None),
        said(5),
        said(["x"]),
        arguments(0, None),
        {"type": "response.output_item.added", "item": None},
        {"type": "response.output_item.added", "item": [1]},
        {"type": "response.output_text.done", "item_id": None, "text": None},
        {"type": "response.created", "response": None},
    ],
)
def test_odd_values_say_nothing(event: dict[str, Any]) -> None:
    """What has not its type is as good as absent."""
    [delta] = read(event)
    assert isinstance(delta, Delta)
    assert (delta.text, delta.finish, delta.fault) == ("", None, None)


@pytest.mark.parametrize("response", [None, 5, [], {}, {"status": None}, {"status": 5}])
def test_a_terminal_event_ends_even_without_a_response(response: Any) -> None:
    """The event itself is the engine's end; what it does not tell is not guessed."""
    [delta] = read({"type": "response.completed", "response": response})
    assert isinstance(delta, Delta)
    assert (delta.finish, delta.done) == (Finish("stop", None), True)
