"""llama.cpp's two dialects, event by event: what each event adds, and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest

from feeding import fed
from worker_adapters.message import Message
from worker_adapters.task import TaskRequest
from worker_adapters.wire.delta import Decoder, Delta, EngineFault, Finish, GarbledEvent, ToolDelta, Usage, WireRequest
from worker_adapters.wire.llamacpp import (
    RESPONSE_FIELDS,
    ChatOrErrorDecoder,
    NativeDecoder,
    chat_body,
    completion_fields,
)
from worker_adapters.wire.openai import ChunkDecoder
from worker_adapters.wire.openai_faults import fault_in, fault_of
from worker_adapters.wire.sse import EventSplitter

pytestmark = pytest.mark.llamacpp

GARBLED = "garbled"
Made = list[Delta | str | None]


def deltas(make: Callable[[], Decoder], stream: bytes) -> Made:
    """What a fresh decoder makes of every event of the stream, however it is fed; GARBLED where it refuses one."""

    def decode(pieces: list[bytes]) -> Made:
        decoder = make()
        splitter = EventSplitter(decoder.fields_as_events)
        made: Made = []
        for piece in pieces:
            for event in splitter.feed(piece):
                try:
                    made.append(decoder.feed(event))
                except GarbledEvent:
                    made.append(GARBLED)
        return made

    return fed(decode, stream)


def event(value: Any) -> bytes:
    raw = value if isinstance(value, bytes) else json.dumps(value, ensure_ascii=False).encode()
    return b"data: " + raw + b"\n\n"


def native(*values: Any, probabilities: bool = False) -> Made:
    return deltas(lambda: NativeDecoder(probabilities=probabilities), b"".join(map(event, values)))


def chat(*values: Any) -> Made:
    return deltas(lambda: ChatOrErrorDecoder(logprobs=True), b"".join(map(event, values)))


def token(content: Any, **more: Any) -> dict[str, Any]:
    """A native token event as the server writes it."""
    return {
        "index": 0, "content": content, "tokens": [259], "stop": False, "id_slot": -1,
        "tokens_predicted": 1, "tokens_evaluated": 7, **more,
    }  # fmt: skip


def chunk(delta: Any = None, finish: str | None = None, index: int = 0, **more: Any) -> dict[str, Any]:
    """A chat chunk as the server writes it; ``more`` stands at its root."""
    choice = {"finish_reason": finish, "index": index, "delta": {} if delta is None else delta}
    return {"choices": [choice], "created": 1, "id": "chatcmpl-x", "object": "chat.completion.chunk", **more}


#: What the finish chunk tells beside its reason.
ID = {"id": "chatcmpl-x"}

# --- native


def test_a_token_event_is_its_text() -> None:
    """A token event adds its content and nothing else, whatever other fields it has."""
    assert native(token(" the"), token("é🦊"), token("a", unknown={"deep": [1, None]})) == [
        Delta(" the"),
        Delta("é🦊"),
        Delta("a"),
    ]


def test_an_event_without_text_is_an_empty_delta() -> None:
    """Held-back text, the end token and a null content make an empty delta: it still proves that the engine works."""
    assert native(token(""), token(None), {"stop": False}, {}) == [Delta()] * 4


def test_data_null_says_nothing() -> None:
    """``data: null``, the first event of some streams, is no delta at all."""
    assert native(b"null", token("a")) == [None, Delta("a")]
    assert chat(b"null", chunk({"content": "a"})) == [None, Delta("a")]


def test_a_progress_event_is_no_token() -> None:
    """A progress event, whose ``tokens`` are [0], adds neither text nor a token."""
    progress = token("", tokens=[0], prompt_progress={"total": 9, "cache": 0, "processed": 3, "time_ms": 1})
    [delta] = native(progress)
    assert delta == Delta()


def test_only_the_first_of_several_results_counts() -> None:
    """Events of other results than the first say nothing, even their ends."""
    assert native(token("b", index=1), token("", index=1, stop=True), token("a")) == [None, None, Delta("a")]


FINAL = {
    "index": 0, "content": "", "tokens": [], "id_slot": 3, "stop": True, "model": "m", "tokens_predicted": 5,
    "tokens_evaluated": 15, "generation_settings": {"seed": 1}, "prompt": "the prompt", "has_new_line": False,
    "truncated": False, "stop_type": "limit", "stopping_word": "", "tokens_cached": 19,
    "timings": {"cache_n": 2, "predicted_ms": 1.5},
}  # fmt: skip


def test_the_final_event_ends_with_reason_counts_and_facts() -> None:
    """``stop: true`` brings the reason, exact counts and the engine's facts, and nothing of the prompt it echoes."""
    [delta] = native(FINAL)
    assert delta == Delta(
        finish=Finish("length", "limit"),
        usage=Usage(tokens_in=15, tokens_out=5),
        facts={"timings": {"cache_n": 2, "predicted_ms": 1.5}, "id_slot": 3, "truncated": False, "tokens_cached": 19},
        done=True,
    )
    assert "the prompt" not in repr(delta)


@pytest.mark.parametrize(
    ("told", "finish"),
    [
        ({"stop_type": "eos"}, Finish("stop", "eos")),
        ({"stop_type": "word", "stopping_word": "lazy"}, Finish("stop", "word")),
        ({"stop_type": "limit"}, Finish("length", "limit")),
        ({"stop_type": "limit", "truncated": True}, Finish("length", "limit")),
        ({"stop_type": "none"}, Finish("stop", "none")),
        ({"stop_type": "a new one"}, Finish("stop", "a new one")),
        ({"stop_type": None}, Finish("stop", None)),
        ({"stop_type": None, "stopped_eos": True, "stopped_limit": False}, Finish("stop", None)),
        ({"stop_type": None, "stopped_eos": False, "stopped_limit": True}, Finish("length", None)),
    ],
)
def test_stop_types_become_finish_reasons(told: dict[str, Any], finish: Finish) -> None:
    """``stop_type`` maps to our reasons and stays raw, an unknown one is a stop. Older servers set flags."""
    [delta] = native({**FINAL, **told})
    assert isinstance(delta, Delta)
    assert delta.finish == finish
    assert delta.facts is not None
    assert delta.facts["truncated"] is told.get("truncated", False)
    assert delta.facts.get("stopping_word") == (told.get("stopping_word") or None)


def test_a_final_event_cut_by_response_fields_still_ends() -> None:
    """A final event that tells nothing but ``stop: true`` ends the stream without counts."""
    assert native({"content": "", "stop": True}) == [
        Delta(finish=Finish("stop", None), usage=Usage(None, None), facts={}, done=True)
    ]


def test_text_in_the_final_event_is_not_lost() -> None:
    """A final event that carries text adds it."""
    [delta] = native({**FINAL, "content": "!"})
    assert isinstance(delta, Delta)
    assert (delta.text, delta.done) == ("!", True)


def probability(**told: Any) -> dict[str, Any]:
    return {"completion_probabilities": [{"id": 259, "token": "x", "bytes": [120], **told}]}


@pytest.mark.parametrize(
    ("told", "logprob"),
    [
        (probability(logprob=-0.5, top_logprobs=[]), -0.5),
        (probability(logprob=0), 0.0),
        (probability(logprob=-3.4028234663852886e38), -3.4028234663852886e38),
        (probability(prob=0.25, top_probs=[]), math.log(0.25)),
        (probability(prob=1.0), 0.0),
        (probability(prob=0.0), -3.4e38),
        ({"completion_probabilities": [{"logprob": -1.0}, {"logprob": -0.5}]}, -1.5),
        (probability(content="x", probs=[{"tok_str": "x", "prob": 0.9}]), None),
        ({"completion_probabilities": []}, None),
        ({"completion_probabilities": None}, None),
        ({}, None),
    ],
)
def test_probabilities_become_one_logprob(told: dict[str, Any], logprob: float | None) -> None:
    """``n_probs`` and ``post_sampling_probs`` both give the natural logarithm, summed over the tokens of the event."""
    assert native(token("x", **told), probabilities=True) == [Delta("x", logprob=logprob, token_id=259)]


def test_the_token_id_is_the_last_of_the_event() -> None:
    """Of an event of several tokens the id is that of the last one; an event without any has none."""
    assert native(token("x", tokens=[1, 2]), token("y", tokens=[]), probabilities=True) == [
        Delta("x", token_id=2),
        Delta("y"),
    ]


def test_probabilities_are_not_read_unless_asked_for() -> None:
    """Without logprobs the lists are passed over, however malformed."""
    assert native(token("x", completion_probabilities="none", tokens="none")) == [Delta("x")]


# --- errors in the stream

KV_FULL = {"code": 500, "message": "Context size has been exceeded.", "type": "server_error"}
FAULT = EngineFault(message="Context size has been exceeded.", field="server_error", status=500)


@pytest.mark.parametrize("make", [NativeDecoder, ChatOrErrorDecoder])
@pytest.mark.parametrize(
    "stream",
    [
        event({"error": KV_FULL}),
        b"error: " + json.dumps(KV_FULL).encode() + b"\n\n",
        b"error: " + json.dumps({"error": KV_FULL}).encode() + b"\r\n\r\n",
        b"event: error\n" + event({"error": KV_FULL}),
    ],
    ids=["data", "error line", "error line with a mapping", "event name"],
)
def test_an_error_in_the_stream_is_a_fault_in_every_form(make: Callable[[], Decoder], stream: bytes) -> None:
    """``data: {"error"}`` and the ``error:`` line of builds before 2025-09 give the same fault."""
    assert deltas(make, stream) == [Delta(fault=FAULT)]


@pytest.mark.parametrize("make", [NativeDecoder, ChatOrErrorDecoder])
def test_an_old_error_line_of_words_is_a_fault_too(make: Callable[[], Decoder]) -> None:
    """An ``error:`` line that is no JSON is the message itself."""
    assert deltas(make, b"error: out of luck \xff\n\n") == [Delta(fault=EngineFault(message="out of luck \ufffd"))]


def test_the_plain_chat_decoder_knows_no_error_line() -> None:
    """The ``error:`` line is llama.cpp's, not the dialect's."""
    assert deltas(ChunkDecoder, b"error: {}\n\n") == []


def test_an_error_that_is_null_is_none() -> None:
    """``"error": null`` beside content is no error."""
    assert native(token("a", error=None)) == [Delta("a")]
    assert chat(chunk({"content": "a"}, error=None)) == [Delta("a")]


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        ("words", EngineFault(message="words")),
        (["words"], EngineFault(message="['words']")),
        ({}, EngineFault()),
        ({"message": None, "type": None, "code": None}, EngineFault()),
        ({"code": "rate_limit", "message": "m"}, EngineFault("m", "rate_limit", code="rate_limit")),
        ({"code": "x", "type": "y"}, EngineFault(field="y", code="x")),
        ({"code": True, "message": 5}, EngineFault("5")),
        (
            {"code": 400, "type": "exceed_context_size_error", "message": "m", "n_prompt_tokens": 9, "n_ctx": 8},
            EngineFault("m", "exceed_context_size_error", 400, 9, 8),
        ),
        ({"n_prompt_tokens": "9", "n_ctx": 8.5}, EngineFault()),
    ],
)
def test_an_error_of_any_shape_becomes_a_fault(error: Any, fault: EngineFault) -> None:
    """Message, type, status and sizes are taken where they have the right type, and nothing raises."""
    assert fault_of(error) == fault


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        (b'{"error":{"message":"m","code":503}}', EngineFault("m", status=503)),
        (b'{"error":"m"}', EngineFault("m")),
        (b'{"error":{"message":"a\xffb","type":"t"}}', EngineFault("a\ufffdb", "t")),
        (b'{"error":{"message":"a\\ud83db","type":"t"}}', EngineFault("a\ufffdb", "t")),
        (b'{"error":{"message":"m","type":"t","x":NaN}}', EngineFault("m", "t")),
        (b'{"error":null}', None),
        (b'{"error":{}}', None),
        (b'{"status":"ok"}', None),
        (b"[1]", None),
        (b"null", None),
        (b"", None),
        (b"<html>", None),
        (b"[" * 100_000, None),
        (b'{"error":' * 100_000, None),
    ],
)
def test_an_error_body_is_found_or_not(body: bytes, fault: EngineFault | None) -> None:
    """The error of a JSON body is found also where it quotes bytes that are no UTF-8; any other body holds none."""
    assert fault_in(body) == fault


# --- chat


def test_a_chat_stream_delta_by_delta() -> None:
    """Role, reasoning, text, finish, usage and ``[DONE]`` each add what they say."""
    timings = {"cache_n": 1}
    assert chat(
        chunk({"role": "assistant", "content": None}),
        chunk({"reasoning_content": "hm"}),
        chunk({"content": "hi"}),
        chunk({}, "stop"),
        {"choices": [], "usage": {"completion_tokens": 2, "prompt_tokens": 7, "total_tokens": 9}, "timings": timings},
        b"[DONE]",
    ) == [
        Delta(),
        Delta(reasoning="hm"),
        Delta("hi"),
        Delta(finish=Finish("stop", "stop"), facts=ID),
        Delta(usage=Usage(7, 2), facts={"timings": timings}),
        Delta(done=True),
    ]


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ("stop", "stop"),
        ("length", "length"),
        ("tool_calls", "tool_calls"),
        ("function_call", "tool_calls"),
        ("content_filter", "content_filter"),
        ("something new", "stop"),
    ],
)
def test_chat_finish_reasons(raw: str, reason: str) -> None:
    """Every finish reason of the dialect maps to ours; an unknown one is a stop with its raw form."""
    assert chat(chunk({}, raw)) == [Delta(finish=Finish(reason, raw), facts=ID)]


def test_timings_of_the_finish_chunk_are_facts() -> None:
    """Without include_usage the timings stand at the root of the finish chunk."""
    assert chat(chunk({}, "stop", timings={"predicted_n": 3})) == [
        Delta(finish=Finish("stop", "stop"), facts={**ID, "timings": {"predicted_n": 3}})
    ]


def test_tool_calls_come_piece_by_piece() -> None:
    """The first piece has id and name, later ones only arguments; null stands for absent; calls are told by index."""
    first = {"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": "{"}}
    assert chat(
        chunk({"tool_calls": [first]}),
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": '"a":1}'}}]}),
        chunk({"tool_calls": [{"index": 1, "id": "c2", "function": {"name": "g", "arguments": None}}, {"index": 2}]}),
        chunk({"tool_calls": None}),
    ) == [
        Delta(tools=(ToolDelta(0, "{", "c1", "f"),)),
        Delta(tools=(ToolDelta(0, '"a":1}'),)),
        Delta(tools=(ToolDelta(1, "", "c2", "g"), ToolDelta(2))),
        Delta(),
    ]


def test_chat_logprobs_are_summed_and_the_last_id_kept() -> None:
    """``logprobs.content`` beside the delta gives one logprob and one id an event."""
    choice = chunk({"content": "ab"})
    choice["choices"][0]["logprobs"] = {"content": [{"id": 1, "logprob": -1.0}, {"id": 2, "logprob": -0.5}]}
    none = chunk({"content": "c"})
    none["choices"][0]["logprobs"] = {"content": None}
    assert chat(choice, none) == [Delta("ab", logprob=-1.5, token_id=2), Delta("c")]


def test_only_the_first_choice_counts() -> None:
    """Chunks of other choices say nothing of the answer, wherever choice 0 stands in the list."""
    both = chunk({"content": "b"}, index=1)
    both["choices"].append({"index": 0, "delta": {"content": "a"}, "finish_reason": None})
    assert chat(chunk({"content": "b"}, index=1), chunk({}, "stop", index=1), both) == [None, None, Delta("a")]


@pytest.mark.parametrize("value", [{}, {"choices": None}, {"choices": []}, {"choices": [{"index": 0}]}])
def test_a_chunk_without_content_is_harmless(value: Any) -> None:
    """A chunk without choices or without a delta adds nothing."""
    assert chat(value) in ([None], [Delta()])


# --- what engines really send, and what nobody should

# (name, JSON that stands for the text, the text)
ODD_TEXTS = [
    ("invalid UTF-8", b'"a\xffb"', "a\ufffdb"),
    ("cut UTF-8", b'"a\xf0\x9f\x8e"', "a\ufffd"),
    ("a CESU surrogate", b'"a\xed\xa0\xbdb"', "a\ufffd\ufffd\ufffdb"),
    ("a lone high surrogate", b'"a\\ud83db"', "a\ufffdb"),
    ("a lone low surrogate", b'"a\\udc8ab"', "a\ufffdb"),
    ("surrogates the wrong way round", b'"\\ude00\\ud83d"', "\ufffd\ufffd"),
    ("a high surrogate at the end", b'"a\\ud83d"', "a\ufffd"),
    ("a pair", b'"\\ud83d\\ude00"', "😀"),
    ("a lone surrogate beside a pair", b'"\\ud83d\\ud83d\\ude00"', "\ufffd😀"),
    ("NUL", b'"a\\u0000b"', "a\0b"),
    ("line ends", b'"\\r\\n\xe2\x80\xa8"', "\r\n\u2028"),
]


@pytest.mark.parametrize(("name", "raw", "text"), ODD_TEXTS, ids=[row[0] for row in ODD_TEXTS])
def test_text_is_always_valid_unicode(name: str, raw: bytes, text: str) -> None:
    """Bytes that are no UTF-8 and lone surrogates become U+FFFD, on both paths, and lose nothing beside them."""
    [one] = native(b'{"content":' + raw + b',"stop":false}')
    [other] = chat(b'{"choices":[{"index":0,"delta":{"content":' + raw + b"}}]}")
    assert one == other == Delta(text)


def test_nan_and_infinity_are_read() -> None:
    """NaN and Infinity, which are no JSON but are sent, do not cost the event: they are null."""
    assert native(b'{"content":"a","x":NaN}', b'{"content":"b","y":[-Infinity]}') == [Delta("a"), Delta("b")]
    [delta] = native(b'{"content":"","stop":true,"timings":{"ms":NaN}}')
    assert isinstance(delta, Delta)
    assert delta.facts is not None
    assert delta.facts["timings"] == {"ms": None}


def test_null_stands_where_a_string_belongs() -> None:
    """null for content, arguments, name, id or stop_type is the same as absent."""
    nulls = {"index": 0, "id": None, "function": {"name": None, "arguments": None}}
    assert chat(chunk({"content": None, "reasoning_content": None, "tool_calls": [nulls]})) == [
        Delta(tools=(ToolDelta(0),))
    ]
    assert native(token(None, stop=None)) == [Delta()]


BOMB = 200_000
GARBAGE = {
    "no JSON": b"{",
    "words": b"hello",
    "a number": b"5",
    "a string": b'"text"',
    "a list": b"[]",
    "true": b"true",
    "text of another type": b'{"content":{"a":1},"choices":5}',
    "two values": b"{}{}",
    "a nested list without end": b'{"content":"a","choices":[{"index":0}],"x":' + b"[" * BOMB,
    "a nested list": b'{"content":' + b"[" * BOMB + b"]" * BOMB + b',"choices":5}',
    "a nested mapping": b'{"a":' * BOMB + b"1" + b"}" * BOMB,
    "an integer of 10,000 digits": b'{"index":' + b"9" * 10_000 + b',"choices":[{"index":' + b"9" * 10_000 + b"}]}",
}


@pytest.mark.parametrize("name", GARBAGE)
@pytest.mark.parametrize("make", [NativeDecoder, ChatOrErrorDecoder])
def test_garbage_is_one_typed_refusal(make: Callable[[], Decoder], name: str) -> None:
    """An event that is not the JSON its engine promises raises GarbledEvent and nothing else, also a nested bomb."""
    decoder = make()
    [garbage] = EventSplitter().feed(event(GARBAGE[name]))
    with pytest.raises(GarbledEvent) as caught:
        decoder.feed(garbage)
    assert len(str(caught.value)) < 100
    assert caught.value.__suppress_context__


def test_a_refusal_never_quotes_the_event() -> None:
    """The message of a garbled event says how long it is, not what it says: it may hold a prompt."""
    decoder = NativeDecoder()
    [garbage] = EventSplitter().feed(event(b'{"content": SECRET'))
    with pytest.raises(GarbledEvent) as caught:
        decoder.feed(garbage)
    assert "SECRET" not in str(caught.value)
    assert "18 bytes" in str(caught.value)


# --- what is sent


def test_a_prompt_becomes_native_fields() -> None:
    """Every field of a task with a prompt has its native name; absent ones are left out."""
    task = TaskRequest(
        prompt="p", model="m", max_tokens=5, temperature=0, top_p=0.5, top_k=3, min_p=0.1, stop="x",
        presence_penalty=0.1, frequency_penalty=0.2, repetition_penalty=1.1, logit_bias={7: -1}, logprobs=0,
        grammar="g",
    )  # fmt: skip
    assert completion_fields(task) == {
        "prompt": "p", "model": "m", "n_predict": 5, "temperature": 0, "top_p": 0.5, "top_k": 3, "min_p": 0.1,
        "stop": ["x"], "presence_penalty": 0.1, "frequency_penalty": 0.2, "repeat_penalty": 1.1,
        "logit_bias": [[7, -1.0]], "n_probs": 1, "grammar": "g", "response_fields": RESPONSE_FIELDS,
    }  # fmt: skip
    assert completion_fields(TaskRequest(prompt="p")) == {
        "prompt": "p",
        "n_predict": 256,
        "response_fields": RESPONSE_FIELDS,
    }


@pytest.mark.parametrize(
    ("response_format", "schema"),
    [
        (None, None),
        ({"type": "text"}, None),
        ({"type": "json_object"}, {"type": "object"}),
        ({"type": "json_schema", "json_schema": {"schema": {"type": "array"}}}, {"type": "array"}),
    ],
)
def test_a_response_format_becomes_the_bare_schema(response_format: Any, schema: Any) -> None:
    """``/completion`` gets the schema itself."""
    task = TaskRequest(prompt="p", response_format=response_format)
    assert completion_fields(task).get("json_schema") == schema


def test_messages_become_the_chat_dialect() -> None:
    """A task with messages has OpenAI's names and llama.cpp's own, and asks for usage."""
    tools = [{"type": "function", "function": {"name": "f"}}]
    task = TaskRequest(
        messages=[Message("user", "hi")], max_tokens=5, top_k=3, repetition_penalty=1.1, logprobs=2, tools=tools,
        tool_choice="auto", stop=["a"], logit_bias={"7": 1},
    )  # fmt: skip
    assert chat_body(task) == {
        "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5, "top_k": 3, "repeat_penalty": 1.1,
        "logprobs": True, "top_logprobs": 2, "tools": tools, "tool_choice": "auto", "stop": ["a"],
        "logit_bias": {"7": 1.0}, "stream_options": {"include_usage": True},
    }  # fmt: skip


def test_a_wire_request_shows_no_prompt() -> None:
    """The repr of a request tells its size, not its body."""
    shown = repr(WireRequest("/completion", b"SECRET", headers=(("Authorization", "SECRET"),)))
    assert shown == "WireRequest(POST /completion, 6 bytes)"
