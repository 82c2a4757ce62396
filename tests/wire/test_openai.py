"""The OpenAI dialect's chunks, one by one: what each adds, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from feeding import fed
from worker_adapters.wire.delta import Delta, EngineFault, Finish, GarbledEvent, ToolDelta, Usage
from worker_adapters.wire.openai import ChunkDecoder
from worker_adapters.wire.sse import Event, EventSplitter

pytestmark = pytest.mark.openai

GARBLED = "garbled"
Made = list[Delta | str | None]


def event(value: Any, name: str = "") -> bytes:
    """One event; bytes are its data as they are."""
    raw = value if isinstance(value, bytes) else json.dumps(value, ensure_ascii=False).encode()
    return (b"event: %b\n" % name.encode() if name else b"") + b"data: " + raw + b"\n\n"


def made(stream: bytes, *, logprobs: bool = True) -> Made:
    """What a fresh decoder makes of every event, however the stream is fed; GARBLED where it refuses one."""

    def decode(pieces: list[bytes]) -> Made:
        decoder = ChunkDecoder(logprobs=logprobs)
        splitter = EventSplitter()
        said: Made = []
        for cut in (splitter.feed(piece) for piece in pieces):
            for one in cut:
                try:
                    said.append(decoder.feed(one))
                except GarbledEvent:
                    said.append(GARBLED)
        return said

    return fed(decode, stream)


def chat(*values: Any, logprobs: bool = True) -> Made:
    """What comes of these events."""
    return made(b"".join(map(event, values)), logprobs=logprobs)


def chunk(delta: Any = None, finish: Any = None, index: Any = 0, **more: Any) -> dict[str, Any]:
    """A chat's chunk; ``more`` stands in its choice."""
    choice = {"index": index, "delta": {} if delta is None else delta, "finish_reason": finish, **more}
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}


def call(arguments: Any = "", **more: Any) -> dict[str, Any]:
    """A piece of a tool call."""
    name = more.pop("name", None)
    function = {"arguments": arguments} | ({"name": name} if name else {})
    return {"function": function, **more}


#: What a finish chunk tells beside its reason.
FACTS = {"id": "c", "model": "m"}


def test_a_chunk_is_its_text() -> None:
    """A chunk adds its content as it is, whatever else stands in it."""
    assert chat(chunk({"content": " the"}), chunk({"role": "assistant", "content": "é🦊", "odd": [1]})) == [
        Delta(" the"),
        Delta("é🦊"),
    ]
    assert chat({"choices": [{"text": "Hi", "index": 0, "finish_reason": None}]}) == [Delta("Hi")]


@pytest.mark.parametrize(
    "value",
    [
        chunk({"role": "assistant", "content": ""}),
        chunk({"role": "assistant", "content": None}),
        chunk({}, finish=""),
        {"choices": [{"index": 0, "delta": None, "finish_reason": None}]},
        {"choices": [{"index": 0, "content_filter_offsets": {"check_offset": 44}}]},
        {"choices": [{"index": None, "text": None}]},
        {"choices": [{}]},
    ],
)
def test_a_chunk_without_text_proves_that_the_engine_works(value: Any) -> None:
    """Role chunks, held-back text and a choice without a delta are empty deltas."""
    assert chat(value) == [Delta()]


@pytest.mark.parametrize(
    "value", [b"null", {}, {"choices": None}, {"choices": []}, {"type": "ping"}, {"choices": [], "usage": None}]
)
def test_what_says_nothing_about_the_job_is_no_delta(value: Any) -> None:
    """Pings, filter results and chunks without a choice add nothing, not even a sign of work."""
    assert chat(value) == [None]


def test_the_marker_is_an_end_of_reading_and_no_reason() -> None:
    """``[DONE]`` ends the reading and is no finish; empty data is nothing."""
    assert chat(b"[DONE]") == [Delta(done=True)]
    assert made(b"data:\n\ndata: [DONE] \n\n") == [None, Delta(done=True)]


# --- thoughts, refusals, tools


@pytest.mark.parametrize(
    "delta",
    [{"reasoning": "hm"}, {"reasoning_content": "hm"}, {"reasoning": "hm", "reasoning_content": "hm", "content": None}],
)
def test_thoughts_have_two_names_and_count_once(delta: Any) -> None:
    """``reasoning`` and ``reasoning_content`` are the same thing; vLLM 0.12 to 0.15 sends both."""
    assert chat(chunk(delta)) == [Delta(reasoning="hm")]


def test_a_content_of_parts_is_taken_apart() -> None:
    """Mistral's list content: text is text, thinking is reasoning, other parts are left out."""
    parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "Hi"}]
    assert chat(chunk({"content": [*parts, {"type": "image"}, None, 5]})) == [Delta("Hi", reasoning="hm")]


def test_a_refusal_is_text_and_flagged() -> None:
    """A refusal is shown as the answer that it is, and the end tells it from one."""
    assert chat(chunk({"refusal": "No."})) == [Delta("No.", facts={"refusal": True})]


def test_pieces_of_tool_calls_are_told_apart_by_index() -> None:
    """Id and name come first, then arguments; the index says whose they are."""
    values = (
        chunk({"tool_calls": [call("", index=0, id="a", name="f")]}),
        chunk({"tool_calls": [call('{"x"', index=0), call("{}", index=1, id="b", name="g")]}),
        chunk({"tool_calls": [call(":1}", index=0)]}),
    )
    assert chat(*values) == [
        Delta(tools=(ToolDelta(0, "", "a", "f"),)),
        Delta(tools=(ToolDelta(0, '{"x"'), ToolDelta(1, "{}", "b", "g"))),
        Delta(tools=(ToolDelta(0, ":1}"),)),
    ]


@pytest.mark.parametrize(
    ("pieces", "indexes"),
    [
        ([call(id="a", name="f"), call(id="b", name="g")], [0, 1]),  # Mistral, old Ollama: whole calls
        ([call(id="a", name="f"), call("1"), call(id="b", name="g"), call("2")], [0, 0, 1, 1]),
        ([call(id="a", name="f"), call("1", id="a"), call("2", id="a")], [0, 0, 0]),  # TGI: the id each time
        ([call(id="a", name="f"), call(id="b", name="g"), call("1", id="a")], [0, 1, 0]),
        ([call(name="f"), call(name="f")], [0, 1]),  # no ids at all: a name begins a call
        ([call("1"), call("2")], [0, 0]),
        ([call(id="", name="f"), call("1", id="")], [0, 0]),
        # Gemini: every call has the index 0
        ([call(index=0, id="a", name="f"), call(index=0, id="b", name="f"), call("1", index=0)], [0, 1, 1]),
        ([call(index=0, id="a", name="f"), call("1", index=0, id="a", name="f")], [0, 0]),  # llama-cpp-python
        ([call(index=0, name="f"), call("1", index=0, id="a", name="f")], [0, 0]),
        ([call(index=0, id="a", name="f"), call("1", index=0, id="b")], [0, 0]),
        ([call(index=0, id="f", name="f"), call(index=1, id="f", name="f"), call("1", index=0)], [0, 1, 0]),
        ([call(index=1, id="a", name="f"), call(index=2, id="b", name="f"), call("1", index=1)], [0, 1, 0]),
    ],
)
@pytest.mark.parametrize("together", [True, False])
def test_calls_without_an_index_are_told_apart(pieces: list[Any], indexes: list[int], together: bool) -> None:
    """By id, else by a name, else by their place; in one chunk or in several. So are calls that share an index."""
    values = [chunk({"tool_calls": pieces})] if together else [chunk({"tool_calls": [piece]}) for piece in pieces]
    deltas = [delta for delta in chat(*values) if isinstance(delta, Delta)]
    assert [tool.index for delta in deltas for tool in delta.tools] == indexes


@pytest.mark.parametrize(("written", "text"), [({"x": [1, "é"]}, '{"x":[1,"é"]}'), (None, ""), ("{bad", "{bad")])
def test_arguments_are_text(written: Any, text: str) -> None:
    """An object is written as JSON (old Ollama), and text is passed on, valid or not."""
    assert chat(chunk({"tool_calls": [call(written, index=0)]})) == [Delta(tools=(ToolDelta(0, text),))]


def test_the_function_call_of_old_is_a_tool_call() -> None:
    """``function_call``, which ``tool_calls`` replaced, is call 0."""
    value = chunk({"function_call": {"name": "f", "arguments": "{}"}}, "function_call")
    [delta] = chat(value)
    assert isinstance(delta, Delta)
    assert (delta.tools, delta.finish) == ((ToolDelta(0, "{}", None, "f"),), Finish("tool_calls", "function_call"))


# --- ends


@pytest.mark.parametrize(
    ("raw", "ours"),
    [
        ("stop", "stop"),
        ("length", "length"),
        ("tool_calls", "tool_calls"),
        ("content_filter", "content_filter"),
        ("model_length", "length"),
        ("max_tokens", "length"),
        ("MAX_TOKENS", "length"),
        ("model_context_window_exceeded", "length"),
        ("tool_use", "tool_calls"),
        ("refusal", "content_filter"),
        ("SAFETY", "content_filter"),
        ("end_turn", "stop"),
        ("repetition", "stop"),
        ("eos_token", "stop"),
        ("something new", "stop"),
    ],
)
def test_a_finish_reason_ends_and_is_kept_raw(raw: str, ours: str) -> None:
    """Known reasons are mapped, others end as ``stop``; the text of the same chunk is kept."""
    assert chat(chunk({"content": "x"}, raw)) == [Delta("x", finish=Finish(ours, raw), facts=FACTS)]


@pytest.mark.parametrize("raw", ["error", "ERROR", "abort", "network_error", "insufficient_system_resource"])
def test_some_reasons_are_failures(raw: str) -> None:
    """An answer that was aborted or broke down is not whole, whatever its last chunk says."""
    [delta] = chat(chunk({"content": "x"}, raw))
    assert isinstance(delta, Delta)
    assert (delta.text, delta.finish) == ("x", None)
    assert delta.fault is not None


def test_the_finish_chunk_tells_facts() -> None:
    """What servers say there about a job is kept for the metrics; what is null is not."""
    value = chunk({}, "stop", stop_reason=7, matched_stop=None, native_finish_reason="STOP")
    value |= {"system_fingerprint": "fp", "service_tier": None, "provider": "p", "timings": {"a": 1}, "private": "x"}
    [delta] = chat(value)
    assert delta == Delta(
        finish=Finish("stop", "stop"),
        facts={
            **FACTS, "system_fingerprint": "fp", "provider": "p", "timings": {"a": 1},
            "stop_reason": 7, "native_finish_reason": "STOP",
        },
    )  # fmt: skip


USAGE = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}


@pytest.mark.parametrize("choices", [{"choices": []}, {"choices": None}, {}])
def test_usage_may_come_without_a_choice(choices: dict[str, Any]) -> None:
    """The chunk after the finish: counts, and their details as facts."""
    details = {"prompt_tokens_details": {"cached_tokens": 2}, "completion_tokens_details": {"reasoning_tokens": None}}
    [delta] = chat({**choices, "usage": {**USAGE, **details}})
    assert delta == Delta(usage=Usage(3, 5), facts={"cached_tokens": 2})


def test_usage_may_come_with_a_choice_or_in_x_groq() -> None:
    """LiteLLM's usage chunk has an empty choice; Groq's counts stand beside the finish."""
    assert chat({"choices": [{"index": 0, "delta": {}}], "usage": USAGE}) == [Delta(usage=Usage(3, 5))]
    [delta] = chat({**chunk({}, "stop"), "x_groq": {"id": "r", "usage": USAGE}})
    assert isinstance(delta, Delta)
    assert delta.usage == Usage(3, 5)


@pytest.mark.parametrize(
    "usage", [{"prompt_tokens": 0, "completion_tokens": 0}, {}, [], "3", 3, {"prompt_tokens": "3"}]
)
def test_usage_of_zeros_or_of_no_shape_is_none(usage: Any) -> None:
    """Ollama and LiteLLM put zeros on every chunk of a text; nothing else counts either."""
    assert chat({"choices": [{"index": 0, "text": "x"}], "usage": usage}) == [Delta("x")]


def test_only_the_first_choice_counts() -> None:
    """Chunks of other choices say nothing, even their ends; choice 0 is found wherever it stands."""
    assert chat(chunk({"content": "b"}, index=1), chunk({}, "stop", index=1), chunk({"content": "a"})) == [
        None,
        None,
        Delta("a"),
    ]
    both = {"choices": [*chunk({"content": "b"}, index=1)["choices"], *chunk({"content": "a"}, "stop")["choices"]]}
    [delta] = chat(both)
    assert delta == Delta("a", finish=Finish("stop", "stop"))


def test_an_answer_in_one_piece_is_one_chunk() -> None:
    """Servers that ignore ``stream`` answer with a ``message``: text, thoughts, calls, end and counts at once."""
    message = {"role": "assistant", "content": "Hi", "reasoning": "hm", "tool_calls": [call("{}", id="a", name="f")]}
    whole = {"id": "c", "model": "m", "usage": USAGE}
    whole["choices"] = [{"index": 0, "message": message, "finish_reason": "tool_calls"}]
    assert chat(whole) == [
        Delta(
            "Hi",
            reasoning="hm",
            tools=(ToolDelta(0, "{}", "a", "f"),),
            finish=Finish("tool_calls", "tool_calls"),
            usage=Usage(3, 5),
            facts=FACTS,
        )
    ]


def test_the_first_choice_names_the_model() -> None:
    """Azure's first chunk has a model of "", and answers may name a dated one."""
    decoder = ChunkDecoder()
    for value, model in (({"choices": [], "model": ""}, None), (chunk({"content": "x"}), "m")):
        decoder.feed(Event(json.dumps(value).encode()))
        assert decoder.model == model


# --- logprobs

ROWS = [{"token": "token_id:7", "logprob": -0.5}, {"token": "token_id:9", "logprob": -1}]


@pytest.mark.parametrize(
    ("told", "logprob", "token_id"),
    [
        ({"content": ROWS}, -1.5, 9),
        ({"content": [{"token": "Hi", "logprob": -0.5, "id": 3}]}, -0.5, 3),
        ({"content": [{"token": "Hi", "logprob": -0.5}]}, -0.5, None),
        ({"refusal": ROWS[:1], "content": None}, -0.5, 7),
        ({"tokens": ["token_id:7"], "token_logprobs": [-0.25]}, -0.25, 7),
        ({"tokens": [" a"], "token_logprobs": [None]}, None, None),
        ({"content": []}, None, None),
        ({"content": [{"token": "token_id:x", "logprob": None}]}, None, None),
    ],
)
def test_logprobs_of_a_chunk_add_up(told: Any, logprob: float | None, token_id: int | None) -> None:
    """Chat and text write them differently; a chunk of several tokens has the logprob of all, and the last one's id."""
    assert chat(chunk({"content": "x"}, logprobs=told)) == [Delta("x", logprob=logprob, token_id=token_id)]
    assert chat(chunk({"content": "x"}, logprobs=told), logprobs=False) == [Delta("x")]


@pytest.mark.parametrize(
    "data",
    [
        b'{"choices":[{"delta":{"content":"x"},"logprobs":{"content":[{"logprob":NaN}]}}]}',
        b'{"choices":[{"delta":{"content":"x"},"logprobs":{"content":[{"logprob":-Infinity}]}}]}',
        b'{"choices":[{"delta":{"content":"x"},"finish_reason":"stop"}],"timings":{"ms":NaN}}',
    ],
)
def test_what_no_json_can_carry_is_left_out(data: bytes) -> None:
    """NaN and infinity, as Python servers write them, cost no chunk, and no frame has them: no relay could send it."""
    [delta] = made(event(data))
    assert isinstance(delta, Delta)
    assert delta.text == "x"
    json.dumps([delta.logprob, delta.facts], allow_nan=False)


# --- failures


@pytest.mark.parametrize(
    ("value", "text", "began"),
    [
        ({"error": {"message": "no", "type": "t", "code": 500}}, "", False),
        ({"error": "no"}, "", False),
        ({"error": "no", "choices": [{"index": 0, "delta": {"content": "x"}}]}, "x", True),
        ({"object": "error", "message": "no", "code": 500}, "", False),
        ({**chunk({}, "error"), "error": {"code": 502, "message": "no"}}, "", True),  # OpenRouter
    ],
)
def test_an_error_is_one_wherever_it_stands(value: Any, text: str, began: bool) -> None:
    """A truthy top-level ``error`` and a flat error are failures, also beside a last piece of text."""
    [delta] = chat(value)
    assert isinstance(delta, Delta)
    assert delta.fault is not None
    assert (delta.fault.message, delta.fault.began) == ("no", began)
    assert delta == Delta(text, fault=delta.fault)


def test_an_event_named_error_is_a_failure() -> None:
    """LM Studio's and Groq's ``event: error``, with an object or flat; without a word it is still one."""
    named = {"error": {"message": "no"}, "message": "no"}
    assert made(event(named, "error")) == [Delta(fault=EngineFault("no"))]
    assert made(event({"message": "no"}, "error")) == [Delta(fault=EngineFault("no"))]
    assert made(event({}, "error")) == [Delta(fault=EngineFault())]


@pytest.mark.parametrize("falsy", [None, "", {}, [], 0, False])
def test_no_error_is_no_error(falsy: Any) -> None:
    """``"error": null`` on every chunk is none."""
    assert chat({**chunk({"content": "x"}), "error": falsy}) == [Delta("x")]


@pytest.mark.parametrize(
    "data",
    [
        b"{", b"[1]", b'"text"', b"5", b"true", b"<html>", b"[" * 5000, b'{"a":' * 5000, b'{"choices": 5}',
        b'{"choices": [null]}', b'{"choices": [{"delta": "x"}]}', b'{"choices": [{"delta": {"tool_calls": [null]}}]}',
    ],
)  # fmt: skip
def test_what_is_no_chunk_is_garbled(data: bytes) -> None:
    """Anything but the JSON of a chunk is refused as such, and never quoted."""
    assert made(event(data)) == [GARBLED]
    with pytest.raises(GarbledEvent) as caught:
        ChunkDecoder().feed(Event(b'{"choices": "my prompt'))
    assert "prompt" not in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [
        b'{"choices":[{"index":0,"delta":{"content":"a\xff"}}]}',
        b'{"choices":[{"index":0,"delta":{"content":"a\\ud800"}}]}',
    ],
)
def test_bytes_that_are_no_text_are_replaced(data: bytes) -> None:
    """Broken UTF-8 and lone surrogates become U+FFFD: one bad character costs no answer."""
    assert made(event(data)) == [Delta("a�")]
