"""llama.cpp server adapter.    Seen with build b0-unknown (wheel xllamacpp 2026.10.11549) in 2026-11.

Uses: POST /completion (prompts), POST /v1/chat/completions (messages), GET /health, /props, /v1/models, /slots.
Differs from the others: there is no cancel endpoint and no request id, so closing the socket is the cancel; nothing at
all is sent, not even the status line, while a job waits for a slot; a random seed is never reported back, so one is
always sent; /slots wakes a sleeping server and, polled, keeps dead requests alive, so it is asked once and only awake.
With more jobs waiting than the server has slots + 4, its HTTP threads run out and /health may wait too, as if the
engine were down: start it with ``--threads-http`` above the number of jobs you send at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from worker_adapters.adapters.base import HttpAdapter, without_v1
from worker_adapters.adapters.rules import ErrorRule
from worker_adapters.adapters.sessions import SessionMemory
from worker_adapters.errors import (
    AuthenticationFailed,
    ContextOverflow,
    EngineUnavailable,
    InvalidRequest,
    ModelNotFound,
)
from worker_adapters.jsonvalue import encode
from worker_adapters.report import Capabilities, EngineProps, HealthStatus
from worker_adapters.task import TaskRequest
from worker_adapters.transport.control import Reply
from worker_adapters.wire.delta import Decoder, WireRequest, mapping
from worker_adapters.wire.llamacpp import ChatOrErrorDecoder, NativeDecoder, chat_body, completion_fields

#: uint32, and its largest value means "random".
SEEDS = 2**32 - 1

#: What a model's identity is made of, since no llama.cpp tells a digest (/v1/models ``digest`` is "").
IDENTITY = ("n_params", "size", "n_vocab", "n_ctx_train", "n_embd", "ftype")


class _Settings(msgspec.Struct):
    n_ctx: int | None = None


class _Props(msgspec.Struct):
    """GET /props, as far as it is read."""

    build_info: str | None = None
    model_alias: str | None = None
    model_path: str | None = None
    total_slots: int | None = None
    is_sleeping: bool = False
    endpoint_slots: bool = True
    default_generation_settings: _Settings = msgspec.field(default_factory=_Settings)


class _Model(msgspec.Struct):
    id: str | None = None
    meta: dict[str, Any] | None = None  # null in a router


class _Models(msgspec.Struct):
    """GET /v1/models, as far as it is read."""

    data: list[_Model] = []


class _Slot(msgspec.Struct):
    """GET /slots: only this field is safe to read."""

    is_processing: bool = False


class LlamaCppHttpAdapter(HttpAdapter):
    """llama.cpp's own server, by its native API."""

    engine = "llamacpp"
    default_url = "http://127.0.0.1:8081"
    identity_questions = (("/props", _Props),)
    keeps_streams = False  # announces keep-alive with every stream, and closes after it
    capabilities = Capabilities(
        fields=(
            "temperature", "top_p", "top_k", "min_p", "seed", "stop", "presence_penalty", "frequency_penalty",
            "repetition_penalty", "logit_bias", "logprobs", "tools", "tool_choice", "response_format", "grammar",
        ),
        session_cache=True,
        release_ms=90.0,
        release="20-90 ms while tokens flow; during a prompt batch when the batch is done, which may be seconds",
    )  # fmt: skip
    with_messages = ("tools", "tool_choice")
    owned = frozenset({"n_cmpl", "id_slot", "response_fields", "conversation_id"})
    rules = (
        # Overflow is 400 even for a stream, and carries both numbers.
        ErrorRule(ContextOverflow, field="exceed_context_size_error"),
        ErrorRule(AuthenticationFailed, field="authentication_error"),
        ErrorRule(ModelNotFound, field="not_found_error"),
        # Loading, on any path. Nothing was started.
        ErrorRule(EngineUnavailable, field="unavailable_error", position="refusal", retriable=True),
        # Embeddings, rerank, slots or metrics that are not switched on.
        ErrorRule(InvalidRequest, field="not_supported_error"),
        ErrorRule(InvalidRequest, field="invalid_request_error"),
        # A tool without a description (b7376), arguments of an earlier call that are no JSON (xllamacpp 0.2.14).
        ErrorRule(InvalidRequest, field="server_error", words="Failed to parse tool", position="refusal"),
        # A server_error goes by its status: 500 in the stream is also what a full unified KV cache says, and then the
        # request itself was in order.
    )

    def __init__(self, url: str | None = None, **options: Any) -> None:
        super().__init__(without_v1(url), **options)
        self._slots = SessionMemory()

    def judge(self, reply: Reply) -> HealthStatus:
        """200 counts only with llama.cpp's own words: a proxy's sign-in page is 200 too. It needs no key: whether ours
        is right, only ``probe`` or ``props`` tell."""
        if reply.status == 200 and mapping(reply.json()).get("status") != "ok":  # in 2024 its slots stood there too
            message = f"{self._endpoint.shown}/health: 200, but not from llama.cpp: a proxy, or another server?"
            return HealthStatus("unhealthy", live=True, ready=False, message=message)
        return super().judge(reply)

    def encode(self, task: TaskRequest) -> WireRequest:
        seed = int(self._runtime.random() * SEEDS) if task.seed is None else task.seed
        if seed >= SEEDS:  # larger ones are cut to 32 bits in silence
            raise self._invalid("seed", f"llama.cpp wants an integer below {SEEDS}")
        fields = chat_body(task) if task.messages is not None else completion_fields(task)
        body = encode({**fields, **self._session(task), "seed": seed, "stream": True, **task.extra})
        path = "/v1/chat/completions" if task.messages is not None else "/completion"
        return WireRequest(path, body, facts={"seed": seed})

    def _session(self, task: TaskRequest) -> dict[str, Any]:
        """KV reuse. A pinned slot that is busy makes the job wait though others are free, so it is pinned only while no
        other job of this adapter runs; without a pin the server looks for the longest common prefix itself."""
        if task.session_id is None:
            return {}
        slot = self._slots.recall(task.session_id)
        pin = {"id_slot": slot} if slot is not None and not self._running else {}
        return {"cache_prompt": True, **pin}

    def _learned(self, task: TaskRequest, facts: Mapping[str, Any]) -> None:
        if task.session_id is not None:
            self._slots.remember(task.session_id, facts.get("id_slot"))

    def decoder(self, task: TaskRequest) -> Decoder:
        if task.messages is not None:
            return ChatOrErrorDecoder(logprobs=task.logprobs is not None)
        return NativeDecoder(probabilities=task.logprobs is not None)

    def identity(self, props: _Props) -> tuple[str, str | None]:
        build = props.build_info or ""
        version = "unknown" if not build or build.endswith("-unknown") else build
        return version, props.model_alias or props.model_path

    def props(self) -> EngineProps:
        asking = self.asking()
        props = asking("/props", _Props)
        models = asking.maybe("/v1/models", _Models) or _Models()
        entry = models.data[0] if models.data else _Model()
        slots = asking.maybe("/slots", list[_Slot]) if props.endpoint_slots and not props.is_sleeping else None
        version, model = self._identity.told(props)
        return EngineProps(
            engine=self.engine,
            engine_version=version,
            model=model or entry.id,
            model_digest=_identity(entry),
            context_size=props.default_generation_settings.n_ctx,  # of one slot
            slots_total=props.total_slots,
            slots_free=None if slots is None else sum(not slot.is_processing for slot in slots),
            capabilities=self.capabilities,
            raw=asking.raw,
        )


def _identity(entry: _Model) -> str | None:
    """``name/n_params-size-...``: the same model file gives the same text; None if the server tells too little."""
    if not entry.id or not entry.meta:
        return None
    return f"{entry.id}/" + "-".join(str(entry.meta.get(name, "")) for name in IDENTITY)
