"""What servers of the OpenAI dialect mean by their errors: one table for all of them.

Decided by the error's ``code``, then its ``type``, then the status, then its words: half of the servers give no code,
some no type, and a proxy may give only a status. 429 has two meanings, so the quota rows come first.
"""

from __future__ import annotations

from worker_adapters.adapters.rules import ErrorRule
from worker_adapters.errors import (
    AuthenticationFailed,
    CapacityExceeded,
    ContextOverflow,
    EngineUnavailable,
    InvalidRequest,
    ModelNotFound,
    PoolUnavailable,
    StreamTruncated,
    WorkerError,
)

#: No retry brings money back. OpenAI's codes and type.
QUOTA = (
    "insufficient_quota", "credit_balance_exhausted", "organization_spend_limit_exceeded",
    "project_spend_limit_exceeded", "organization_usage_limit_exceeded", "billing_hard_limit_reached",
    "billing_not_active", "exceeded_current_quota_error", "budget_exceeded",
)  # fmt: skip
#: Refused before it began. LiteLLM: throttling_error; Mistral: rate_limited; vLLM's full queue: "Service Unavailable".
BUSY = (
    "rate_limit_exceeded", "rate_limit_error", "rate_limited", "throttling_error", "slow_down", "overloaded_error",
    "server_is_overloaded", "capacity_exceeded", "Service Unavailable",
)  # fmt: skip
#: The page lists three wordings of vLLM alone; llama-cpp-python says "context window", TensorRT-LLM "prompt length".
TOO_LONG = (
    r"context (length|size|window|limit)|maximum context|max_model_len|prompt length|ContextWindowExceeded"
    r"|(prompt|input|messages|tokens)\b(?!['\w\[.]).{0,40}\btoo long|max_tokens.{0,40}too large"
    r"|exceeds the maximum number of tokens|must have less than \d+ tokens|max_new_tokens. must be"
)
NO_MODEL = (
    r"invalid model|not a valid model|model not exist|unknown model: |no models? loaded"
    r"|model\b.{0,120}\b(does not exist|not found|is not available)"
)


def _rows(error: type[WorkerError], words: tuple[str, ...], *, retriable: bool = False) -> tuple[ErrorRule, ...]:
    return tuple(ErrorRule(error, field=word, retriable=retriable) for word in words)


OPENAI_RULES = (
    *_rows(CapacityExceeded, QUOTA),
    *_rows(ContextOverflow, ("context_length_exceeded", "exceed_context_size_error")),
    *_rows(ModelNotFound, ("model_not_found", "DeploymentNotFound", "NotFoundError", "not_found_error")),
    *_rows(AuthenticationFailed, ("invalid_api_key", "authentication_error", "no_db_connection")),
    *_rows(InvalidRequest, ("content_filter", "content_policy_violation", "string_above_max_length")),
    # Groq: one request larger than a minute's limit never fits.
    ErrorRule(CapacityExceeded, status=413, field="rate_limit_exceeded"),
    ErrorRule(CapacityExceeded, words="credit balance"),
    *_rows(CapacityExceeded, BUSY, retriable=True),
    *_rows(StreamTruncated, ("abort",)),
    # Ollama's full queue is a 503 with only words to tell it from a model that loads.
    ErrorRule(
        CapacityExceeded, status=503, words="server busy|maximum pending requests|too many requests", retriable=True
    ),
    ErrorRule(CapacityExceeded, status=402),  # OpenRouter, Hugging Face router: no credits
    ErrorRule(CapacityExceeded, status=498, retriable=True),  # Groq: no capacity left
    ErrorRule(CapacityExceeded, status=529, retriable=True),  # Anthropic behind a proxy: overloaded
    ErrorRule(EngineUnavailable, status=499),  # Ollama: cancelled while the model loaded
    ErrorRule(InvalidRequest, status=501),  # vLLM, TensorRT-LLM: not implemented
    ErrorRule(PoolUnavailable, words=r"out of memory|OutOfMemoryError|more system memory"),
    # Only words are left. A 429 or 503 that says "too many tokens" is decided by its status.
    *(ErrorRule(ContextOverflow, status=status, words=TOO_LONG) for status in (400, 413, 422, 500)),
    ErrorRule(ContextOverflow, words=TOO_LONG, position="stream"),
    ErrorRule(ModelNotFound, status=400, words=NO_MODEL),
    ErrorRule(ModelNotFound, words="Unexpected endpoint"),  # LM Studio answers 200 to a wrong path
    ErrorRule(InvalidRequest, field="invalid_request_error", position="stream"),
)
