"""JSON of shapes that no server should send: whatever stands where, the dialect's decoders keep to their types."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from dialect import CHAT, CLOCKS, of_delta, usage
from replay import ReplayServer, outcome, streamed, told
from worker_adapters.adapters.openai import OpenAIHttpAdapter
from worker_adapters.errors import WorkerError
from worker_adapters.task import TaskRequest
from worker_adapters.wire.delta import Delta, GarbledEvent
from worker_adapters.wire.sse import Event

pytestmark = pytest.mark.openai

ODD: tuple[Any, ...] = (
    None, "", 0, -1, 1.5, True, [], {}, "x", "429", [None], [1], ["x"], [[]], [{}], {"a": 1}, 10**30,
)  # fmt: skip

FUNCTION = {"name": "f", "arguments": "{}"}
SAID = {
    "role": "assistant",
    "content": "Hi",
    "reasoning": "hm",
    "reasoning_content": "hm",
    "refusal": "no",
    "tool_calls": [{"index": 0, "id": "i", "type": "function", "function": FUNCTION}],
    "function_call": FUNCTION,
}
LOGPROBS = {"content": [{"token": "Hi", "logprob": -0.5, "id": 3}]}
OLD_LOGPROBS = {"token_logprobs": [-0.5], "tokens": ["Hi"]}
COUNTS = {**usage(1, 2), "prompt_tokens_details": {"cached_tokens": 1}}
CALL = {"type": "function_call", "id": "i", "call_id": "c", **FUNCTION}
OUTPUT = [
    {"type": "message", "content": [{"type": "output_text", "text": "Hi"}, {"type": "refusal", "refusal": "no"}]},
    {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]},
    CALL,
]
RESPONSE = {
    "id": "r",
    "object": "response",
    "status": "incomplete",
    "incomplete_details": {"reason": "max_output_tokens"},
    "error": None,
    "output": OUTPUT,
    "usage": {"input_tokens": 1, "output_tokens": 2, "output_tokens_details": {"reasoning_tokens": 1}},
}
FAILED = {**RESPONSE, "status": "failed", "error": {"code": "c", "message": "m"}}

#: (api, what is well-formed).
SHAPES: dict[str, tuple[str, Any]] = {
    "a chunk": (
        "chat",
        {
            **of_delta(SAID, usage=COUNTS, x_groq={"id": "x", "usage": usage(1, 2)}, timings={"a": 1}),
            "choices": [{"index": 0, "delta": SAID, "logprobs": LOGPROBS, "finish_reason": "stop", "stop_reason": 1}],
        },
    ),
    "a chunk of text": ("chat", {"choices": [{"text": "Hi", "logprobs": OLD_LOGPROBS, "finish_reason": "stop"}]}),
    "content in parts": (
        "chat",
        of_delta({"content": [{"type": "thinking", "thinking": [{"text": "hm"}]}, {"type": "text", "text": "Hi"}]}),
    ),
    "an answer in one piece": ("chat", {"choices": [{"message": SAID, "finish_reason": "stop"}], "usage": COUNTS}),
    "an error": ("chat", {"error": {"message": "m", "type": "t", "param": "p", "code": 429, "status": 429}}),
    "a flat error": ("chat", {"object": "error", "message": "m", "type": "t", "code": "1300", "raw_status_code": 429}),
    "a detail": ("chat", {"detail": [{"loc": ["body", "x"], "msg": "m", "type": "t"}]}),
    "a delta of text": (
        "responses",
        {"type": "response.output_text.delta", "item_id": "i", "delta": "Hi", "logprobs": [{"logprob": -0.5}]},
    ),
    "a done text": ("responses", {"type": "response.output_text.done", "item_id": "i", "text": "Hi"}),
    "an item": ("responses", {"type": "response.output_item.added", "output_index": 0, "item": CALL}),
    "arguments": ("responses", {"type": "response.function_call_arguments.delta", "output_index": 0, "delta": "{}"}),
    "an end": ("responses", {"type": "response.incomplete", "response": RESPONSE}),
    "a failure": ("responses", {"type": "response.failed", "response": FAILED}),
    "a bare error": ("responses", {"type": "error", "code": "c", "message": "m", "param": "p"}),
    "a response in one piece": ("responses", RESPONSE),
}


def variants(value: Any) -> Iterator[Any]:
    """The value with each of its parts, and all of it, replaced by everything that is odd."""
    yield from ODD
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from ({**value, key: odd} for odd in variants(inner))
    if isinstance(value, list):
        for at, inner in enumerate(value):
            yield from ([*value[:at], odd, *value[at + 1 :]] for odd in variants(inner))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_decoder_keeps_to_its_types(shape: str) -> None:
    """An event of any JSON is a delta whose fields have their types, or garbled: nothing else is ever raised."""
    api, value = SHAPES[shape]
    wrong = []
    with OpenAIHttpAdapter(api=api, model="m") as engine:
        task = TaskRequest.of(CHAT, logprobs=1)
        for variant in variants(value):
            try:
                delta = engine.decoder(task).feed(Event(json.dumps(variant).encode()))
                msgspec.convert(msgspec.to_builtins(delta), Delta | None)
            except GarbledEvent:
                continue
            except Exception as error:
                wrong.append(f"{type(error).__name__}: {error}: {json.dumps(variant)}")
    assert not wrong, f"{len(wrong)}, such as {wrong[:: len(wrong) // 5 + 1]}"


@pytest.mark.parametrize("streams", [True, False])
@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_an_odd_answer_is_a_typed_error(odd: Any, streams: bool) -> None:
    """Odd JSON alone is no answer, as an event or in one piece; no adapter fails over it."""
    with ReplayServer({}) as server, OpenAIHttpAdapter(server.url, model="m", timeouts=CLOCKS) as engine:
        server.answer = streamed(odd, done=False) if streams and not isinstance(odd, str) else told(200, odd)
        result = outcome(engine.submit(CHAT))
    assert isinstance(result, WorkerError)
    assert result.retriable is False
    assert "the adapter failed" not in result.message
