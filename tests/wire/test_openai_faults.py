"""Errors in every form the OpenAI dialect has for them, and JSON of any shape, of which nothing but an error comes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from worker_adapters.wire.delta import Decoder, Delta, EngineFault, GarbledEvent
from worker_adapters.wire.openai import ChunkDecoder
from worker_adapters.wire.openai_faults import fault_in, fault_of
from worker_adapters.wire.responses import ResponsesDecoder
from worker_adapters.wire.sse import Event

pytestmark = pytest.mark.openai


def fault(value: Any) -> EngineFault | None:
    """The error that a body holds."""
    return fault_in(value if isinstance(value, bytes) else json.dumps(value).encode())


#: Who writes it so -> (body, what it says).
FORMS: dict[str, tuple[Any, EngineFault]] = {
    "OpenAI": (
        {"error": {"message": "no", "type": "invalid_request_error", "param": "model", "code": "model_not_found"}},
        EngineFault("no", "invalid_request_error", code="model_not_found", param="model"),
    ),
    "OpenAI, keys null": (
        {"error": {"message": "no", "type": None, "param": None, "code": None}},
        EngineFault("no"),
    ),
    "vLLM, llama.cpp, LocalAI": (
        {"error": {"message": "no", "type": "NotFoundError", "param": None, "code": 404}},
        EngineFault("no", "NotFoundError", 404),
    ),
    "LiteLLM": ({"error": {"message": "no", "type": None, "code": "429"}}, EngineFault("no", "", 429)),
    "OpenRouter": (
        {"error": {"code": 502, "message": "no", "metadata": {"raw": "x"}}, "user_id": "u"},
        EngineFault("no", "", 502),
    ),
    "vLLM before 0.10.1, SGLang": (
        {"object": "error", "message": "no", "type": "BadRequestError", "param": None, "code": 400},
        EngineFault("no", "BadRequestError", 400),
    ),
    "Mistral": (
        {"object": "error", "message": "no", "type": "rate_limited", "code": "1300", "raw_status_code": 429},
        EngineFault("no", "rate_limited", 429),
    ),
    "vLLM's 401, LM Studio, Ollama": ({"error": "Unauthorized"}, EngineFault("Unauthorized")),
    "TGI": ({"error": "no", "error_type": "overloaded"}, EngineFault("no", "overloaded")),
    "TGI, in the stream": ({"error": {"message": "no", "http_status_code": 422}}, EngineFault("no", "", 422)),
    "a gateway": ({"message": "slow"}, EngineFault("slow")),
    "Azure's gateway": ({"statusCode": 429, "message": "slow"}, EngineFault("slow", "", 429)),
    "FastAPI": ({"detail": "Not Found"}, EngineFault("Not Found")),
    "FastAPI's validation": (
        {"detail": [{"loc": ["body", "temperature"], "msg": "too hot"}, {"loc": ["body"], "msg": "odd"}, "x"]},
        EngineFault("body.temperature: too hot; body: odd", param="temperature"),
    ),
}


@pytest.mark.parametrize("who", FORMS)
def test_an_error_is_read_in_every_form(who: str) -> None:
    """Words, type, code, claimed status and field, wherever a server puts them."""
    body, wanted = FORMS[who]
    assert fault(body) == wanted


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"<html>", b"null", b"[]", b"5", b'"text"', {}, {"error": None}, {"error": ""}, {"error": {}},
        {"detail": []}, {"detail": ""}, {"message": {"role": "assistant"}},
        {"choices": [], "message": "x"}, {"object": "list", "data": [], "detail": "x"}, {"output": [], "message": "x"},
    ],
)  # fmt: skip
def test_what_is_no_error_is_none(body: Any) -> None:
    """Answers, empty errors and what is no JSON hold none."""
    assert fault(body) is None


@pytest.mark.parametrize(
    ("message", "prompt_tokens", "context_size"),
    [
        # OpenAI; vLLM up to 0.9; vLLM 0.32 (input_tokens, max_tokens); llama-cpp-python.
        ("maximum context length is 128000 tokens. However, your messages resulted in 130000 tokens", 130000, 128000),
        ("maximum context length is 512 tokens. However, you requested 600 tokens (590 in the messages)", None, 512),
        ("maximum context length is 512 tokens, but the prompt contains at least 513 input tokens", 513, 512),
        ("max_tokens cannot be greater than max_model_len=512", None, 512),
        ("Requested tokens (600) exceed context window of 512", 600, 512),
        ("nothing of numbers", None, None),
    ],
)
def test_sizes_are_read_from_words(message: str, prompt_tokens: int | None, context_size: int | None) -> None:
    """Where nothing else tells how long a prompt was and may be, the words do."""
    told = fault({"error": {"message": message}})
    assert told is not None
    assert (told.prompt_tokens, told.context_size) == (prompt_tokens, context_size)


def test_sizes_that_are_told_win_over_words() -> None:
    """llama.cpp tells both as numbers."""
    told = fault_of({"message": "context size 99", "n_prompt_tokens": 600, "n_ctx": 512})
    assert (told.prompt_tokens, told.context_size) == (600, 512)


@pytest.mark.parametrize("status", [99, 600, 42901, True, 429.5, "42", "1300", "4x9", None, [429], 10**30])
def test_only_a_status_is_one(status: Any) -> None:
    """Codes of another kind are not taken for a status of HTTP."""
    assert fault_of({"message": "no", "code": status}).status is None


@pytest.mark.parametrize(
    ("param", "named"),
    [
        ("temperature", "temperature"),
        ("body.temperature", "temperature"),
        ("messages[0].role", "messages[0].role"),
        ("what is my prompt", None),
        ("x" * 81, None),
        (5, None),
        ("", None),
    ],
)
def test_a_field_is_named_only_by_a_name(param: Any, named: str | None) -> None:
    """``param`` may hold text of the user's; only what looks like a name is shown as one."""
    assert fault_of({"message": "no", "param": param}).param == named


def test_bytes_of_a_prompt_do_not_hide_an_error() -> None:
    """An engine may quote bytes that are no UTF-8."""
    assert fault(b'{"error": {"message": "near \xff"}}') == EngineFault("near �")


@pytest.mark.parametrize("words", ["context length {}", "prompt contains {} tokens", "max_model_len={}"])
@pytest.mark.parametrize("digits", [19, 5000])
def test_a_number_of_too_many_digits_is_no_size(words: str, digits: int) -> None:
    """Words that hold more digits than a size can have cost no error, and give none that no relay could carry."""
    told = fault({"error": {"message": words.format("9" * digits)}})
    assert told is not None
    assert (told.prompt_tokens, told.context_size) == (None, None)


# --- anything at all

#: Strings that are more than text somewhere in the dialect, or nearly numbers.
WORDS = (
    "", "0", "1", "null", "true", "1.5", "\ud800", "²²²", "stop", "error", "abort", "tool_calls", "function_call",
    "response", "function_call_output", "completed", "failed", "incomplete", "429", "token_id:7", "token_id:²",
    "context length 99", "9" * 5000, "context length " + "9" * 5000, "token_id:" + "9" * 5000,
)  # fmt: skip
NAMES = (
    "index", "id", "text", "message", "error", "type", "code", "delta", "choices", "thinking", "content", "arguments",
    "function", "finish_reason", "usage", "status", "object", "detail", "loc", "output", "model", "x",
)  # fmt: skip
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.sampled_from([0, 1, 10**30, -(10**400)]) | st.floats()
    | st.sampled_from(WORDS) | st.text(max_size=3)
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=3),
    max_leaves=6,
)

FUNCTION = {"name": "f", "arguments": "{}"}
ROWS = [{"token": "token_id:7", "logprob": -0.5}]
COUNTS = {"prompt_tokens": 3, "completion_tokens": 5}
MESSAGE = {
    "content": "Hi", "reasoning": "hm", "refusal": "no", "function_call": FUNCTION,
    "tool_calls": [{"index": 0, "id": "a", "function": FUNCTION}],
}  # fmt: skip
WHOLE = {
    "model": "m",
    "choices": [{"index": 0, "delta": MESSAGE, "finish_reason": "stop", "logprobs": {"content": ROWS}}],
    "usage": {**COUNTS, "prompt_tokens_details": {"cached_tokens": 1}},
    "x_groq": {"usage": COUNTS},
}
ITEM = {"type": "function_call", "id": "i", "call_id": "c", **FUNCTION}
RESPONSE = {
    "id": "r", "object": "response", "status": "incomplete", "incomplete_details": {"reason": "content_filter"},
    "error": None, "usage": {"input_tokens": 1, "output_tokens": 2, "output_tokens_details": {"reasoning_tokens": 1}},
    "output": [{"content": [{"text": "Hi"}, {"refusal": "no"}]}, ITEM, {"summary": [{"text": "hm"}]}],
}  # fmt: skip
VALID: dict[str, tuple[type[Decoder], list[Any]]] = {
    "chunks": (
        ChunkDecoder,
        [
            WHOLE,
            {
                "choices": [
                    {"text": "Hi", "logprobs": {"tokens": ["a"], "token_logprobs": [-1]}, "finish_reason": "stop"}
                ]
            },
            {"choices": [], "usage": COUNTS},
            {"error": {"message": "m", "type": "t", "param": "p", "code": 429}},
            {"object": "error", "message": "m", "code": "1300", "raw_status_code": 429, "n_ctx": 5},
            {"detail": [{"loc": ["body", "x"], "msg": "m"}]},
        ],
    ),
    "responses": (
        ResponsesDecoder,
        [
            {"type": "response.output_text.delta", "item_id": "i", "delta": "Hi", "logprobs": [{"logprob": -0.5}]},
            {"type": "response.output_text.done", "item_id": "i", "text": "Hi"},
            {"type": "response.output_item.done", "output_index": 0, "item": ITEM},
            {"type": "response.function_call_arguments.delta", "output_index": 0, "delta": "{}"},
            {"type": "response.completed", "response": RESPONSE},
            {
                "type": "response.failed",
                "response": {**RESPONSE, "status": "failed", "error": {"code": "c", "message": 1}},
            },
            {"type": "error", "code": "c", "message": "m", "param": "p"},
            RESPONSE,
        ],
    ),
}


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands in a JSON value: the keys that lead there."""
    yield at
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inner:
        yield from places(part, (*at, key))


def put(value: Any, at: tuple[Any, ...], odd: Any) -> Any:
    """The value with something else there."""
    if not at:
        return odd
    changed = value.copy()
    changed[at[0]] = put(value[at[0]], at[1:], odd)
    return changed


@st.composite
def streams(draw: Callable[..., Any], valid: list[Any]) -> list[Event]:
    """Some events, each valid but for up to three places."""
    events = []
    for _ in range(draw(st.integers(1, 3))):
        value = draw(st.sampled_from(valid))
        for _ in range(draw(st.integers(0, 3))):
            value = put(value, draw(st.sampled_from(list(places(value)))), draw(VALUES))
        events.append(Event(json.dumps(value).encode(), draw(st.sampled_from(["message", "error"]))))
    return events


def check(make: type[Decoder], events: list[Event]) -> None:
    """Each event is a delta whose fields have their types, or garbled."""
    decoder = make(logprobs=True)  # type: ignore[call-arg]  # both dialects' have it
    for event in events:
        try:
            delta = decoder.feed(event)
        except GarbledEvent:
            continue
        msgspec.convert(msgspec.to_builtins(delta), Delta | None)


def alone(value: Any) -> list[Event]:
    """A stream of one event."""
    return [Event(json.dumps(value).encode())]


@example(alone({"choices": [{"index": "0", "finish_reason": "stop"}]}))
@example(alone({"choices": [{"index": "null", "finish_reason": "stop"}]}))
@example(alone({"choices": [{"logprobs": {"content": [{"token": "token_id:" + "9" * 5000}]}}]}))
@example(alone({"error": {"message": "context length " + "9" * 5000}}))
@example(alone({"error": {"message": "no", "code": "²²²"}}))
@settings(max_examples=150)
@given(streams(VALID["chunks"][1]))
def test_no_json_breaks_the_decoder_of_chunks(events: list[Event]) -> None:
    """Whatever JSON stands in a chunk, and wherever: a well-typed delta or GarbledEvent, and no other exception."""
    check(ChunkDecoder, events)


@example(alone({"type": "error", "message": "context length " + "9" * 5000}))
@example(alone({"type": "response.failed", "response": {"status": "failed", "error": {"status": "²²²"}}}))
@settings(max_examples=150)
@given(streams(VALID["responses"][1]))
def test_no_json_breaks_the_decoder_of_responses(events: list[Event]) -> None:
    """The same for the events of the Responses API."""
    check(ResponsesDecoder, events)


@pytest.mark.parametrize("make", [ChunkDecoder, ResponsesDecoder])
@settings(max_examples=50)
@given(data=st.binary(max_size=40) | st.sampled_from([b"[" * 100_000, b"9" * 5000, b'{"a":' * 2000, b"\xef\xbb\xbf{}"]))
def test_no_bytes_break_a_decoder(make: type[Decoder], data: bytes) -> None:
    """Bytes that are no JSON are garbled."""
    check(make, [Event(data)])


def test_the_fuzz_reaches_what_it_means_to() -> None:
    """The values that are changed are read whole before they are: none is garbled."""
    for make, values in VALID.values():
        for value in values:
            decoder = make(logprobs=True)  # type: ignore[call-arg]  # both dialects' have it
            assert decoder.feed(Event(json.dumps(value).encode())) is not None or "detail" in value, str(value)
