"""llama.cpp's native dialect: ``POST /completion``. No I/O.

Facts from the server of 2026-10 (build ``b0-unknown``, wheel xllamacpp 2026.10.11549), replayed by the tests from
recordings: no ``[DONE]``, the end is ``stop:true``; ``data: null`` may come first; events with empty ``content`` are
real tokens (a stop string is held back, or the end token); ``tokens`` are no count, ``tokens_predicted`` of the final
event is; ``id_slot`` is -1 until then. Errors come as ``data: {"error": ...}``, before 2025-09 as an ``error:`` line.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec

from worker_adapters.task import TaskRequest
from worker_adapters.wire.delta import Decoder, Delta, Finish, GarbledEvent, Usage, parse_json
from worker_adapters.wire.openai import ChunkDecoder
from worker_adapters.wire.openai_body import chat_fields, present, sampling_fields
from worker_adapters.wire.openai_faults import fault_of
from worker_adapters.wire.sse import Event

#: stop_type -> finish reason; ``limit`` is n_predict reached or (``truncated``) the context full.
STOP_TYPE = {"eos": "stop", "word": "stop", "limit": "length", "none": "stop"}

#: What the final event is cut to: uncut, it repeats the whole prompt and every setting.
RESPONSE_FIELDS = (
    "index",
    "content",
    "stop",
    "stop_type",
    "stopping_word",
    "truncated",
    "id_slot",
    "tokens_predicted",
    "tokens_evaluated",
    "tokens_cached",
    "timings",
)


class _Token(msgspec.Struct):
    """The fields that every event is read for."""

    content: str | None = None
    stop: bool | None = False
    index: int = 0
    error: Any = None


class _Probability(msgspec.Struct):
    logprob: float | None = None
    prob: float | None = None


class _TokenWithProbabilities(_Token):
    """Only where logprobs were asked for: the lists cost more than the rest together."""

    tokens: list[int] | None = None
    completion_probabilities: list[_Probability] | None = None


class _Final(msgspec.Struct):
    """The event with ``stop:true``."""

    tokens_predicted: int | None = None
    tokens_evaluated: int | None = None
    tokens_cached: int | None = None
    stop_type: str | None = None
    stopped_limit: bool | None = None  # before 2024-12, in place of stop_type
    stopping_word: str | None = None
    truncated: bool | None = None
    id_slot: int | None = None
    timings: dict[str, Any] | None = None


_TOKEN = msgspec.json.Decoder(_Token | None)
_TOKEN_WITH_PROBABILITIES = msgspec.json.Decoder(_TokenWithProbabilities | None)
_FINAL = msgspec.json.Decoder(_Final)
_ERROR = msgspec.json.Decoder(Any)


class NativeDecoder(Decoder):
    """Events of a streamed ``/completion``; of several results only the first, since the contract asks for one."""

    fields_as_events = frozenset({b"error"})

    def __init__(self, *, probabilities: bool = False) -> None:
        self._decoder: Any = _TOKEN_WITH_PROBABILITIES if probabilities else _TOKEN
        self._probabilities = probabilities

    def feed(self, event: Event) -> Delta | None:
        if event.name == "error":
            return Delta(fault=fault_of(_old_error(event.data)))
        token = parse_json(self._decoder, event.data)
        if token is None:
            return None
        if token.error:
            return Delta(fault=fault_of(token.error))
        if token.index:
            return None
        made = Delta(token.content or "")
        if token.stop:
            self._end(made, event.data)
        elif self._probabilities:
            made.token_id = token.tokens[-1] if token.tokens else None
            made.logprob = _logprob(token.completion_probabilities)
        return made

    def _end(self, made: Delta, data: bytes) -> None:
        final = parse_json(_FINAL, data)
        reason = final.stop_type or ("limit" if final.stopped_limit else "none")
        made.finish = Finish(STOP_TYPE.get(reason, "stop"), final.stop_type)
        made.usage = Usage(final.tokens_evaluated, final.tokens_predicted)
        shown = ("timings", "id_slot", "truncated", "stopping_word", "tokens_cached")
        made.facts = {name: getattr(final, name) for name in shown if getattr(final, name) not in (None, "")}
        made.done = True


class ChatOrErrorDecoder(ChunkDecoder):
    """The chat dialect with llama.cpp's old ``error:`` line."""

    fields_as_events = frozenset({b"error"})

    def feed(self, event: Event) -> Delta | None:
        if event.name == "error":
            return Delta(fault=fault_of(_old_error(event.data)))
        return super().feed(event)


def _old_error(data: bytes) -> Any:
    """An ``error:`` line holds the error itself, or a mapping with it."""
    try:
        value = parse_json(_ERROR, data)
    except GarbledEvent:
        return data.decode("utf-8", "replace")
    return value.get("error", value) if isinstance(value, dict) else value


def _logprob(probabilities: list[_Probability] | None) -> float | None:
    """The event's logprob: the sum, where held-back text makes an event of several tokens."""
    if not probabilities or any(p.logprob is None and p.prob is None for p in probabilities):
        return None  # before 2024-12 they had another shape
    return sum(p.logprob if p.logprob is not None else _log(p.prob) for p in probabilities)


def _log(probability: float | None) -> float:
    """post_sampling_probs (through ``extra``) gives probabilities in place of logarithms."""
    return math.log(probability) if probability else -3.4e38  # the server's own value for the impossible


def completion_fields(task: TaskRequest) -> dict[str, Any]:
    """What ``/completion`` calls the fields of a task with a prompt; absent ones left out."""
    fields: dict[str, Any] = {
        "prompt": task.prompt,
        "n_predict": task.max_tokens,
        "model": task.model,  # ignored by a server of one model, routes in a router
        **sampling_fields(task),
        "logit_bias": task.logit_bias and [[int(token), bias] for token, bias in task.logit_bias.items()],
        "n_probs": None if task.logprobs is None else max(1, task.logprobs),
        "json_schema": _schema(task.response_format),
        "response_fields": RESPONSE_FIELDS,
    }
    return present(fields | native_fields(task))


def chat_body(task: TaskRequest) -> dict[str, Any]:
    """What ``/v1/chat/completions`` calls the fields of a task with messages: OpenAI's names and llama.cpp's own."""
    return chat_fields(task) | present(native_fields(task)) | {"stream_options": {"include_usage": True}}


def native_fields(task: TaskRequest) -> dict[str, Any]:
    """The fields that both paths call alike."""
    return {
        "top_k": task.top_k,
        "min_p": task.min_p,
        "repeat_penalty": task.repetition_penalty,
        "grammar": task.grammar,
    }


def _schema(response_format: dict[str, Any] | None) -> Any:
    """``json_schema`` as ``/completion`` wants it: the bare schema."""
    if response_format is None or response_format["type"] == "text":
        return None
    if response_format["type"] == "json_object":
        return {"type": "object"}
    return response_format["json_schema"]["schema"]
