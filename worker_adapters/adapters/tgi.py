"""TGI adapter.    From the sources of 0.2.0 to 3.3.7 (in maintenance since 2025-12, so final); seen with none of them.

Uses: POST /generate_stream (prompts), POST /v1/chat/completions (messages), GET /health, /info, /metrics.
Differs from the others: a stream is answered 200 before the request is looked at, so refusals come as events in it; a
stop string stays in the text; there is no request id and no abort route, closing the connection is the cancel; while
weights load the port is closed; since 2.3.0 nothing says where the weights are.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import msgspec

from worker_adapters.adapters.base import HttpAdapter, without_v1
from worker_adapters.adapters.identity import Answer
from worker_adapters.adapters.rules import ErrorRule, ErrorTable
from worker_adapters.errors import (
    CapacityExceeded,
    ContextOverflow,
    EngineUnavailable,
    InvalidRequest,
    PoolUnavailable,
    StreamTruncated,
    UnknownError,
    WorkerError,
)
from worker_adapters.jsonvalue import encode
from worker_adapters.report import Capabilities, EngineProps, HealthStatus
from worker_adapters.task import TaskLike, TaskRequest
from worker_adapters.transport.control import Reply
from worker_adapters.wire.delta import Decoder, EngineFault, WireRequest
from worker_adapters.wire.prometheus import Samples
from worker_adapters.wire.tgi import ChatDecoder, Cut, GenerateDecoder, chat_body, generate_body, told_in_words
from worker_adapters.wire.tgi_tools import names_of

log = logging.getLogger("worker_adapters.adapters.tgi")

#: model_device_type, up to 2.2.0: torch's names.
RESIDENCY = {"cpu": "cpu", "cuda": "gpu", "xpu": "gpu", "hpu": "gpu"}

NO_MEMORY = r"Request failed during generation.*(out of memory|OutOfMemory)"
#: Up to 0.3 without the backticks, and "input tokens".
TOO_LONG = r"\binputs?`? (tokens \+ `?max_new_tokens`? must be <=|must have less than)"


def _rows(error: type[WorkerError], kind: str, words: str, *, retriable: bool = False) -> tuple[ErrorRule, ...]:
    """An error by its type; by its words where it has none: in the chat's stream since 2.4.1, and behind gateways."""
    return (
        ErrorRule(error, field=kind, retriable=retriable),
        ErrorRule(error, field="", words=f"^{words}", retriable=retriable),
    )


class _Info(msgspec.Struct):
    """GET /info, as far as it is read."""

    version: str | None = None
    model_id: str | None = None
    model_sha: str | None = None
    model_device_type: str | None = None  # up to 2.2.0
    max_total_tokens: int | None = None


class TgiHttpAdapter(HttpAdapter):
    """Text Generation Inference.

    ``extra`` goes into ``parameters`` of a prompt's request, and beside the messages of a chat. A ``model`` is the name
    of a LoRA adapter; TGI takes an unknown one for the base model. Options are those of ``HttpAdapter``.
    """

    engine = "tgi"
    default_url = "http://127.0.0.1:3000"
    identity_questions = (("/info", _Info),)
    capabilities = Capabilities(
        fields=(
            "temperature", "top_p", "top_k", "seed", "stop", "presence_penalty", "frequency_penalty",
            "repetition_penalty", "logprobs", "tools", "tool_choice", "response_format", "grammar",
        ),
        release_ms=100.0,
        release="after the step that runs: at once while tokens flow, seconds in a long prefill; the llama.cpp backend"
        " of TGI generates to the end",
    )  # fmt: skip
    with_messages = ("tools", "tool_choice", "presence_penalty")
    #: Fields that it takes with a prompt, not with messages.
    with_prompt = ("top_k", "repetition_penalty")
    owned = frozenset({"inputs", "parameters", "details", "decoder_input_details", "max_new_tokens", "stop"})
    rules = (
        ErrorRule(PoolUnavailable, words=NO_MEMORY),
        ErrorRule(ContextOverflow, words=TOO_LONG),
        *_rows(CapacityExceeded, "overloaded", "Model is overloaded", retriable=True),
        *_rows(InvalidRequest, "validation", "Input validation error"),
        *_rows(InvalidRequest, "template_error", "Template error"),
        *_rows(InvalidRequest, "missing_template_variable", "Missing template va"),
        *_rows(InvalidRequest, "tool_error", "Tool error"),
        # Of a shard: it failed every request of its batch.
        *_rows(EngineUnavailable, "generation", "Request failed during generation"),
        *_rows(EngineUnavailable, "stream_serialization_error", "Stream event serialization error"),
        # One-shot it is a 500, which says so itself.
        ErrorRule(StreamTruncated, field="incomplete_generation", position="stream"),  # before 2.3.0
        ErrorRule(StreamTruncated, field="incomplete_generation_stream", position="stream"),
        ErrorRule(StreamTruncated, field="", words="^Incomplete generation", position="stream"),
        ErrorRule(EngineUnavailable, status=424),  # a gateway's word for a shard that is not ready
        # The chat's stream claims this status for every error.
        ErrorRule(UnknownError, field="", status=422, position="stream"),
    )

    def __init__(self, url: str | None = None, **options: Any) -> None:
        super().__init__(without_v1(url), **options)
        self._errors = _Errors(self.engine, self._place(), self._endpoint, self.rules)

    def judge(self, reply: Reply) -> HealthStatus:
        """200 without a body is healthy; TGI's own 503 means that its shards do not answer. It needs no key."""
        where = f"{self._endpoint.shown}{self.health_path}"
        if reply.status == 200 and reply.body:
            message = f"{where}: 200, but not from TGI: a proxy, or another server?"
            return HealthStatus("unhealthy", live=True, ready=False, message=message)
        answer = reply.json()
        if reply.status == 503 and isinstance(answer, dict) and answer.get("error_type") == "healthcheck":
            return HealthStatus("unhealthy", live=True, ready=False, message=f"{where}: the shards do not answer")
        return super().judge(reply)

    def _checked(self, task: TaskLike, fields: Mapping[str, Any]) -> TaskRequest:
        made = super()._checked(task, fields)
        lacking = (
            [] if made.messages is None else [name for name in self.with_prompt if getattr(made, name) is not None]
        )
        if lacking and self._unsupported == "error":
            raise self._invalid(lacking[0], "tgi takes it with a prompt only")
        if lacking:
            log.warning("tgi takes %s with a prompt only: dropped", ", ".join(lacking))
        return TaskRequest.of(made, **dict.fromkeys(lacking)) if lacking else made

    def encode(self, task: TaskRequest) -> WireRequest:
        kind = "text" if task.response_format is None else task.response_format["type"]
        if kind == "json_object":  # TGI wants a schema with properties
            raise self._invalid("response_format.type", "tgi has no json_object, only json_schema")
        if kind != "text" and task.grammar is not None:
            raise self._invalid("grammar", "tgi takes either it or response_format")
        if task.messages is not None:
            return WireRequest("/v1/chat/completions", encode(chat_body(task)))
        return WireRequest("/generate_stream", encode(generate_body(task)))

    def decoder(self, task: TaskRequest) -> Decoder:
        logprobs = task.logprobs is not None
        cut = Cut(task.stop, task.max_tokens, logprobs=logprobs)
        if task.messages is not None:
            tools = [] if task.tool_choice == "none" else names_of(task.tools or [])
            return ChatDecoder(cut, task.max_tokens, logprobs=logprobs, tools=tools)
        return GenerateDecoder(cut, logprobs=logprobs)

    def identity(self, info: _Info) -> Answer:
        return info.version or "unknown", info.model_id

    def props(self) -> EngineProps:
        asking = self.asking()
        info = asking("/info", _Info)
        samples = Samples(asking.text("/metrics"))
        version, model = self._identity.told(info)
        return EngineProps(
            engine=self.engine,
            engine_version=version,
            model=model,
            model_digest=f"{model}/{info.model_sha}" if model and info.model_sha else None,  # null for a local path
            context_size=info.max_total_tokens,
            # Neither is there before it was first touched.
            running=_count(samples.total("tgi_batch_current_size")),
            waiting=_count(samples.total("tgi_queue_size")),
            residency=RESIDENCY.get(info.model_device_type or "", "unknown"),
            capabilities=self.capabilities,
            raw=asking.raw,
        )


class _Errors(ErrorTable):
    """TGI's errors, with what they say in words only."""

    def _clean(self, fault: EngineFault, prompts: list[str]) -> EngineFault:
        return told_in_words(super()._clean(fault, prompts))


def _count(value: float | None) -> int | None:
    return None if value is None else int(value)
