"""vLLM adapter.    Seen with 0.32.0 (CPU build, V1 engine) in 2026-11; older generations as its history tells them.

Uses: POST /v1/completions (prompts), POST /v1/chat/completions (messages), GET /health, /version, /v1/models, /metrics,
POST /inference/v1/abort_requests.
Differs from the others: the 200 and its headers come at once, also to a job that will queue for minutes, so only the
first event says that a job runs; unknown fields are ignored in silence, so those of vLLM's own are checked here;
``[DONE]`` also follows errors and aborts; while it loads, its port is closed; a slow engine is never told from a queue.
"""

from __future__ import annotations

from typing import Any

import msgspec

from worker_adapters.adapters.base import HttpAdapter, without_v1
from worker_adapters.adapters.identity import Answer
from worker_adapters.adapters.openai_rules import OPENAI_RULES
from worker_adapters.adapters.rules import ErrorRule
from worker_adapters.errors import AuthenticationFailed
from worker_adapters.jsonvalue import encode, shaped
from worker_adapters.report import Capabilities, EngineProps, HealthStatus
from worker_adapters.task import TaskRequest
from worker_adapters.transport.control import Reply
from worker_adapters.wire.delta import Decoder, WireRequest
from worker_adapters.wire.openai import ChunkDecoder
from worker_adapters.wire.openai_body import chat_fields, present, text_fields
from worker_adapters.wire.prometheus import Sample, Samples


class VllmParams(msgspec.Struct, forbid_unknown_fields=False):
    """The fields of ``extra`` that only vLLM knows, and their types; it would take a wrong one and ignore it."""

    ignore_eos: bool | None = None
    min_tokens: int | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    bad_words: list[str] | None = None
    allowed_token_ids: list[int] | None = None
    length_penalty: float | None = None
    thinking_token_budget: int | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    add_special_tokens: bool | None = None
    truncate_prompt_tokens: int | None = None
    truncation_side: str | None = None
    return_token_ids: bool | None = None
    structured_outputs: dict[str, Any] | None = None
    priority: int | None = None
    session_id: str | None = None
    cache_salt: str | None = None
    kv_transfer_params: dict[str, Any] | None = None
    ec_transfer_params: dict[str, Any] | None = None
    vllm_xargs: dict[str, Any] | None = None
    stream_interval: int | None = None
    reasoning_effort: str | None = None
    include_reasoning: bool | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    documents: list[dict[str, Any]] | None = None
    parallel_tool_calls: bool | None = None


class _Version(msgspec.Struct):
    """GET /version."""

    version: str = "unknown"


class _Card(msgspec.Struct):
    id: str | None = None
    root: str | None = None
    max_model_len: int | None = None  # null on a LoRA's card


class _Models(msgspec.Struct):
    """GET /v1/models: one card a served name, then one a LoRA."""

    data: list[_Card] = []


class VllmHttpAdapter(HttpAdapter):
    """vLLM's OpenAI-compatible server, with what vLLM alone can do.

    ``extra`` takes vLLM's own parameters, checked against :class:`~worker_adapters.adapters.vllm.VllmParams`. Options
    are those of ``HttpAdapter``.
    """

    engine = "vllm"
    default_url = "http://127.0.0.1:8000"
    identity_questions = (("/version", _Version), ("/v1/models", _Models))
    one_piece = True
    job_id_header = "X-Request-Id"
    capabilities = Capabilities(
        fields=(
            "temperature", "top_p", "top_k", "min_p", "seed", "stop", "presence_penalty", "frequency_penalty",
            "repetition_penalty", "logit_bias", "logprobs", "tools", "tool_choice", "response_format", "grammar",
        ),
        session_cache=True,
        release_ms=60.0,
        release="17-56 ms: about two engine steps; a long prefill step is finished first",
    )  # fmt: skip
    with_messages = ("tools", "tool_choice")
    owned = frozenset({"use_beam_search", "prompt_embeds"})
    rules = (
        ErrorRule(AuthenticationFailed, field="PermissionDeniedError"),
        *OPENAI_RULES,
    )

    def __init__(self, url: str | None = None, **options: Any) -> None:
        super().__init__(without_v1(url), **options)

    def judge(self, reply: Reply) -> HealthStatus:
        """200 without a body is healthy, 503 without one a dead engine; with words it is scaling. It needs no key."""
        where = f"{self._endpoint.shown}{self.health_path}"
        if reply.status == 503 and not reply.body:
            return HealthStatus("unhealthy", live=False, ready=False, message=f"{where}: the engine is dead")
        if reply.status == 200 and reply.body:
            message = f"{where}: 200, but not from vLLM: a proxy, or another server?"
            return HealthStatus("unhealthy", live=True, ready=False, message=message)
        return super().judge(reply)

    def encode(self, task: TaskRequest) -> WireRequest:
        self._check_extra(task.extra)
        chat = task.messages is not None
        fields = chat_fields(task) if chat else text_fields(task)
        body = {**fields, **_own(task), "stream": True, "stream_options": {"include_usage": True}, **task.extra}
        return WireRequest("/v1/chat/completions" if chat else "/v1/completions", encode(body))

    def _check_extra(self, extra: dict[str, Any]) -> None:
        wrong = next((name for name, value in extra.items() if shaped({name: value}, VllmParams) is None), None)
        if wrong is not None:
            want = str(VllmParams.__annotations__[wrong]).removesuffix(" | None")
            raise self._invalid(f"extra.{wrong}", f"vllm wants {want}")

    def decoder(self, task: TaskRequest) -> Decoder:
        return ChunkDecoder(logprobs=task.logprobs is not None)

    def stops(self, task: TaskRequest, job_id: str) -> WireRequest | None:
        """Only the full external id matches, and any id is answered with 200; the route needs --enable-scale-out."""
        external = f"chatcmpl-{job_id}" if task.messages is not None else f"cmpl-{job_id}-0"
        return WireRequest("/inference/v1/abort_requests", encode({"request_ids": [external]}))

    def identity(self, version: _Version, models: _Models | None) -> Answer:
        cards = models.data if models is not None else []
        return version.version, cards[0].id if cards else None

    def props(self) -> EngineProps:
        asking = self.asking()
        models = asking("/v1/models", _Models)
        told = asking.maybe("/version", _Version) or _Version()
        samples = Samples(asking.text("/metrics"))
        version, first = self._identity.told(told, models)
        card = next((card for card in models.data if card.id == (self._model or first)), _Card())
        return EngineProps(
            engine=self.engine,
            engine_version=version,
            model=card.id or first,
            model_digest=_digest(card),
            context_size=card.max_model_len,
            running=_count(samples.total("vllm:num_requests_running")),
            waiting=_count(samples.total("vllm:num_requests_waiting")),
            # The second name up to 0.8, both for a while, the first one since 2025-11.
            kv_cache_usage=samples.largest("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
            residency=_residency(samples),
            capabilities=self.capabilities,
            raw=asking.raw,
        )


def _own(task: TaskRequest) -> dict[str, Any]:
    """The fields that OpenAI lacks."""
    fields: dict[str, Any] = {
        "top_k": task.top_k,
        "min_p": task.min_p,
        "repetition_penalty": task.repetition_penalty,
        "return_tokens_as_token_ids": True if task.logprobs is not None else None,  # else no token has an id
    }
    if task.grammar is not None:
        # guided_grammar up to 0.11, ignored in silence from 0.12; structured_outputs since 0.11.
        fields |= {"structured_outputs": {"grammar": task.grammar}, "guided_grammar": task.grammar}
    return present(fields)


def _digest(card: _Card) -> str | None:
    """``name/path-window``: vLLM tells no digest; the same server settings give the same text."""
    return f"{card.id}/{card.root}-{card.max_model_len}" if card.id and card.root else None


def _count(value: float | None) -> int | None:
    return None if value is None else int(value)


def _residency(samples: Samples) -> str:
    """Unknown, unless something says that weights or KV cache are not on the device: a CPU build reports GPU blocks
    and a GPU memory share too. The labels of offloading are those of 0.6 to 0.8; 0.32 tells of it nowhere."""
    states = samples.all("vllm:engine_sleep_state")
    engines = {state.labels.get("engine") for state in states}
    asleep = {state.labels.get("engine") for state in states if _tells_sleep(state)}
    if asleep:
        return "cpu" if asleep == engines else "partial"
    offloaded = samples.labels("vllm:cache_config_info").get("cpu_offload_gb", "0")
    swapped = samples.total("vllm:num_requests_swapped") or samples.total("vllm:cpu_cache_usage_perc")
    return "partial" if swapped or offloaded not in ("0", "0.0", "None", "") else "unknown"


def _tells_sleep(state: Sample) -> bool:
    """awake 0, or a level of sleep 1: the weights are in host memory or gone."""
    return state.value == float(state.labels.get("sleep_state") != "awake")
