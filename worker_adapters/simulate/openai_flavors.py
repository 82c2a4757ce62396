"""How servers that call themselves OpenAI-compatible differ in their bytes: one row of facts for each.

The defaults are api.openai.com's. Rows are READ in the servers' sources or in reports, or SEEN on the wire where noted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Header = tuple[str, str]

JSON = "application/json"
SSE = "text/event-stream"
SSE_UTF8 = "text/event-stream; charset=utf-8"

_UVICORN = (("date", "Sun, 22 Nov 2026 18:57:45 GMT"), ("server", "uvicorn"))
_LIMITS = (
    ("x-ratelimit-limit-requests", "10000"),
    ("x-ratelimit-remaining-requests", "9999"),
    ("x-ratelimit-reset-requests", "6ms"),
    ("x-ratelimit-limit-tokens", "200000"),
    ("x-ratelimit-remaining-tokens", "199981"),
    ("x-ratelimit-reset-tokens", "5ms"),
)
_SAFE = {name: {"filtered": False, "severity": "safe"} for name in ("hate", "self_harm", "sexual", "violence")}


@dataclass(frozen=True)
class Flavor:
    """What one server writes differently. Extra fields are dicts that go behind (or, for `head`, before) the others."""

    prefix: str = "/v1"
    """The path of the base URL."""
    stream_type: str = SSE_UTF8
    json_type: str = JSON
    headers: tuple[Header, ...] = ()
    """Further headers of a good answer; `{request}` is this exchange's id."""
    error_headers: tuple[Header, ...] = ()
    id: str = "chatcmpl-{}"
    fingerprint: str | None = "fp_44709d6fcb"

    error: str = "object"
    """object: {"error":{message,type,param,code}}; int, text_code: the same with the status as code; flat: without
    wrapper; text: {"error":"..."}."""
    detail: tuple[int, ...] = ()
    """Statuses that the web framework answers: {"detail":"..."}."""
    error_types: Mapping[int, str] = field(default_factory=dict)
    error_extra: Mapping[str, Any] = field(default_factory=dict)
    error_end: bytes = b""
    unknown_model: int = 404
    validation: int = 400
    stream_error: str = "object"
    """object, int, text_code: as above, in an unnamed event; nested: an object with object and int code; chunk: a chunk
    with a top-level error and finish_reason error; named: `event: error`; tgi: http_status_code; blank: an empty chunk
    in place of an error; none: nothing at all."""
    done_after_error: bool = False

    role: str = "empty"
    """The role comes: empty: first, with content ""; merged: with the first text; every: in every chunk."""
    running: str = "null"
    """finish_reason before the end: null, blank ("") or absent."""
    finish_with_text: bool = False
    """The finish comes with the last text, not in a chunk of its own."""
    usage: str = "chunk"
    """Where usage comes: chunk (of its own, no choices), choice (the same with an empty choice), groq (in x_groq on the
    finish chunk, asked or not), always (a chunk of its own, asked or not)."""
    usage_null: bool = True
    """usage is null on every other chunk, if asked for."""
    usage_zero_text: str = ""
    """Completions carry a zero usage on every chunk: always, and never the real one; asked: if asked for, and the real
    one behind the finish."""
    usage_extra: Mapping[str, Any] = field(default_factory=dict)
    details: bool = True
    """Usage has the details objects."""

    reasoning: str | None = "reasoning_content"
    """The delta's key; "content" for a list of parts; "think" for tags inside the text; None: never sent."""
    blank_content: bool = False
    """A delta without text has content "" beside what it has."""
    whole_calls: str = ""
    """Calls come whole, all in one delta: finish: on the finish chunk; apart: before it."""
    call_index: bool = True
    call_id_repeated: bool = False

    head: Mapping[str, Any] = field(default_factory=dict)
    first: Mapping[str, Any] = field(default_factory=dict)
    choice: Mapping[str, Any] = field(default_factory=dict)
    last: Mapping[str, Any] = field(default_factory=dict)
    spoken: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of a choice that has text."""
    logprobs_null: bool = True
    """A choice says null where no logprobs were asked for."""
    stop_key: str | None = None
    """The key of a choice that names the stop string that matched."""
    prelude: Mapping[str, Any] | None = None
    """A chunk before all others."""
    interlude: Mapping[str, Any] | None = None
    """A chunk before the finish."""
    comment: bytes = b""
    """A comment sent before the first chunk, twice."""

    keeps_stop: bool = False
    """The stop string stays in the text."""
    finishes: Mapping[str, str] = field(default_factory=dict)
    """Own names of finish reasons."""
    ignored: tuple[str, ...] = ()
    """Request fields that are not even read."""
    refused: tuple[str, ...] = ()
    """Request fields that are refused as unknown."""
    responses_done: bool = False
    responses_named: bool = True
    wrong_path: tuple[int, Any] = (404, {"error": "Not Found"})
    owner: str = "system"
    """Whose the listed models are; `created`: since when."""
    created: int = 1721172741
    pages: Mapping[str, tuple[int, str, bytes]] = field(default_factory=dict)
    """Further GET paths: status, content type, body."""


FLAVORS: dict[str, Flavor] = {
    "openai": Flavor(
        headers=(
            ("x-request-id", "{request}"),
            ("openai-processing-ms", "172"),
            ("openai-version", "2020-10-01"),
            ("openai-organization", "org-redacted"),
            *_LIMITS,
        ),
        error_headers=(("x-request-id", "{request}"), ("openai-processing-ms", "9")),
        reasoning=None,
        head={"service_tier": "default"},
    ),
    # The first chunk is about the prompt alone; with asynchronous filters a choice has offsets and no delta.
    "azure": Flavor(
        prefix="/openai",
        headers=(
            ("apim-request-id", "8f5d5b0e-redacted"),
            ("x-request-id", "{request}"),
            ("x-ms-region", "East US"),
            ("azureml-model-session", "d001-redacted"),
            ("x-ratelimit-remaining-requests", "99"),
            ("x-ratelimit-remaining-tokens", "99980"),
        ),
        error_headers=(("apim-request-id", "{request}"),),
        fingerprint="fp_b705f0c291",
        error_types={400: "invalid_request_error"},
        reasoning=None,
        choice={"content_filter_results": {}},
        spoken={"content_filter_results": _SAFE},
        prelude={
            "id": "",
            "object": "",
            "created": 0,
            "model": "",
            "choices": [],
            "prompt_filter_results": [{"prompt_index": 0, "content_filter_results": _SAFE}],
        },
        interlude={
            "id": "",
            "object": "",
            "created": 0,
            "model": "",
            "choices": [
                {
                    "index": 0,
                    "finish_reason": None,
                    "content_filter_results": _SAFE,
                    "content_filter_offsets": {"check_offset": 4522, "start_offset": 4522, "end_offset": 4686},
                }
            ],
        },
    ),
    # Usage unasked, in x_groq; a request id in the first chunk.
    "groq": Flavor(
        prefix="/openai/v1",
        stream_type=SSE,
        headers=(
            ("x-ratelimit-limit-requests", "14400"),
            ("x-ratelimit-remaining-tokens", "17997"),
            ("x-ratelimit-reset-requests", "2m59.56s"),
        ),
        usage="groq",
        usage_null=False,
        usage_extra={"queue_time": 0.02, "prompt_time": 0.003, "completion_time": 0.01, "total_time": 0.013},
        details=False,
        reasoning="reasoning",
        whole_calls="finish",
        refused=("logit_bias", "logprobs", "top_logprobs"),
        first={"x_groq": {"id": "req_01jbd6g2qdfw2adyrt2az8hz4w"}},
        last={"x_groq": {"id": "req_01jbd6g2qdfw2adyrt2az8hz4w"}},
    ),
    # Flat errors, whole tool calls without index, content as a list of parts while it thinks.
    "mistral": Flavor(
        stream_type=SSE,
        fingerprint=None,
        id="cmpl-{}",
        error="flat",
        error_types={429: "rate_limited", 401: "unauthorized", 404: "invalid_model", 500: "internal_error"},
        error_extra={"code": "1300", "raw_status_code": "{status}"},
        validation=422,
        detail=(422,),
        stream_error="chunk",
        usage="always",
        usage_null=False,
        details=False,
        reasoning="content",
        whole_calls="finish",
        call_index=False,
        finishes={"window": "model_length"},
        refused=("stream_options", "logprobs", "max_completion_tokens", "seed", "user"),
    ),
    # Comments while it waits; a chunk with error and finish_reason "error" when a provider is lost.
    "openrouter": Flavor(
        prefix="/api/v1",
        stream_type=SSE,
        headers=(("X-Generation-Id", "gen-1741569952-redacted"),),
        id="gen-{}",
        fingerprint=None,
        head={"provider": "SomeHost"},
        error="int",
        stream_error="chunk",
        role="every",
        usage_null=False,
        reasoning="reasoning",
        choice={"native_finish_reason": None},
        comment=b": OPENROUTER PROCESSING\n\n",
    ),
    # SEEN (1.106.2): keys that are null are dropped, usage comes with an empty choice, codes are strings.
    "litellm": Flavor(
        headers=(
            ("x-litellm-call-id", "{request}"),
            ("x-litellm-model-id", "37dee703"),
            ("x-litellm-version", "1.106.2"),
            ("x-litellm-attempted-retries", "0"),
            ("x-litellm-attempted-fallbacks", "0"),
            ("cache-control", "no-cache"),
        ),
        error_headers=(("x-litellm-call-id", "{request}"), ("x-litellm-response-cost", "0")),
        fingerprint=None,
        error="text_code",
        error_types={429: "throttling_error", 500: "internal_server_error"},
        unknown_model=400,
        stream_error="text_code",
        running="absent",
        logprobs_null=False,
        last={"system_fingerprint": "vllm-0.32.0-a548cd6f"},  # that of the server behind it
        usage="choice",
        usage_null=False,
        usage_zero_text="always",
        responses_done=True,
        responses_named=False,
        owner="openai",
        created=1677610602,
        pages={
            "/health/liveliness": (200, JSON, b'"I\'m alive!"'),
            "/health/readiness": (200, JSON, b'{"status":"healthy"}'),
        },
    ),
    # 0.33: an error of the runner is decoded as an empty message and the body just ends.
    "ollama": Flavor(
        stream_type=SSE,
        id="chatcmpl-{short}",
        fingerprint="fp_ollama",
        error_types={400: "invalid_request_error", 404: "not_found_error"},
        error_extra={"code": None, "type": "api_error"},
        error_end=b"\n",
        stream_error="blank",
        role="merged",
        logprobs_null=False,
        usage_null=False,
        usage_zero_text="asked",
        details=False,
        reasoning="reasoning",
        blank_content=True,
        whole_calls="apart",
        ignored=("max_completion_tokens", "n", "logit_bias", "tool_choice"),
        owner="library",
        pages={
            "/": (200, "text/plain; charset=utf-8", b"Ollama is running"),
            "/api/version": (200, "application/json; charset=utf-8", b'{"version":"0.33.0"}'),
        },
    ),
    # A wrong path is 200 with an error text; errors in streams are named events.
    "lmstudio": Flavor(
        stream_type=SSE,
        headers=(("X-Powered-By", "Express"),),
        error_headers=(("X-Powered-By", "Express"),),
        json_type="application/json; charset=utf-8",
        error="text",
        stream_error="named",
        role="merged",
        usage_null=False,
        details=False,
        fingerprint="{model}",
        owner="organization_owner",
        wrong_path=(200, {"error": "Unexpected endpoint or method. ({method} {path})"}),
    ),
    # Flat errors before the stream, nested ones inside it, then [DONE].
    "sglang": Flavor(
        stream_type=SSE_UTF8,
        headers=_UVICORN,
        error_headers=_UVICORN,
        id="{}",
        fingerprint=None,
        error="flat",
        error_types={
            400: "BadRequestError",
            404: "NotFoundError",
            500: "InternalServerError",
            503: "SERVICE_UNAVAILABLE",
        },
        stream_error="nested",
        done_after_error=True,
        usage_null=False,
        choice={"matched_stop": None},
        stop_key="matched_stop",
        owner="sglang",
        pages={"/health": (200, JSON, b""), "/health_generate": (200, JSON, b"")},
    ),
    # Flat errors; a validation error is a text; /metrics is JSON.
    "tensorrt-llm": Flavor(
        headers=_UVICORN,
        error_headers=_UVICORN,
        fingerprint=None,
        error="flat",
        error_types={
            400: "BadRequestError",
            404: "NotFoundError",
            500: "InternalServerError",
            501: "NotImplementedError",
        },
        stream_error="none",
        usage_null=False,
        choice={"stop_reason": None},
        stop_key="stop_reason",
        pages={
            "/health": (200, "", b""),
            "/version": (200, JSON, b'{"version":"1.0.0"}'),
            "/metrics": (200, JSON, b"[]"),
        },
    ),
    # 0.3.35: one request at a time; refusals of the web framework in "detail".
    "llama-cpp-python": Flavor(
        headers=(*_UVICORN, ("openai-processing-ms", "12")),
        error_headers=_UVICORN,
        fingerprint=None,
        error_types={500: "internal_server_error"},
        validation=422,
        detail=(401, 422),
        reasoning="think",
        stream_error="none",
        done_after_error=True,
        usage_null=False,
        details=False,
        comment=b": ping - 2026-11-22 18:57:45.000000+00:00\r\n\r\n",
        ignored=("n",),
    ),
    # 4.9: an error event, then [DONE]; the role may come twice.
    "localai": Flavor(
        stream_type=SSE,
        headers=(("X-Correlation-ID", "{request}"),),
        fingerprint=None,
        error="int",
        stream_error="int",
        done_after_error=True,
        usage_null=False,
        details=False,
        pages={"/readyz": (200, "text/plain", b"OK"), "/healthz": (200, "text/plain", b"OK")},
    ),
    # The role in every chunk, "" as long as it runs, own finish reasons, the finish with the last text.
    "tgi": Flavor(
        stream_type=SSE,
        fingerprint="3.3.5-native",
        error="text",
        stream_error="tgi",
        done_after_error=True,
        role="every",
        running="blank",
        finish_with_text=True,
        usage_null=False,
        details=False,
        call_id_repeated=True,
        finishes={"stop": "eos_token", "word": "stop_sequence"},
        keeps_stop=True,
        pages={"/health": (200, "", b"")},
    ),
}
