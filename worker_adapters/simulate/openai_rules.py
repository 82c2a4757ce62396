"""What api.openai.com and its relatives refuse, and how each writes an error."""

from __future__ import annotations

from typing import Any

from .openai_flavors import Flavor
from .openai_request import Job, Refusal, chat_words, count_chat, dump, event, messages_of, read_prompts, read_stop

# HTTP status -> type, param, code and message of the error api.openai.com gives with it.
ERRORS: dict[int, tuple[str, str | None, str | None, str]] = {
    400: ("invalid_request_error", None, None, "Invalid value for 'messages'."),
    401: ("invalid_request_error", None, "invalid_api_key", "Incorrect API key provided: sk-re****ted."),
    403: (
        "invalid_request_error",
        None,
        "unsupported_country_region_territory",
        "Country, region, or territory not supported",
    ),
    404: (
        "invalid_request_error",
        None,
        "model_not_found",
        "The model `nope` does not exist or you do not have access to it.",
    ),
    408: ("server_error", None, "timeout", "Request timed out."),
    409: ("invalid_request_error", None, "conflict", "The resource is locked by another request."),
    413: ("invalid_request_error", None, "request_too_large", "Request too large."),
    422: ("invalid_request_error", None, None, "Unprocessable entity."),
    429: ("requests", None, "rate_limit_exceeded", "Rate limit reached for gpt-4o-mini on requests per min (RPM)."),
    500: ("server_error", None, None, "The server had an error while processing your request. Sorry about that!"),
    502: ("server_error", None, None, "Bad gateway."),
    503: ("service_unavailable_error", None, "server_is_overloaded", "The requested model is temporarily overloaded."),
    504: ("server_error", None, None, "Gateway timeout."),
}

_COMMON = {
    "model", "stream", "stream_options", "max_tokens", "temperature", "top_p", "n", "seed", "stop", "logprobs",
    "presence_penalty", "frequency_penalty", "logit_bias", "user",
}  # fmt: skip
KNOWN = {
    "chat": _COMMON | {
        "messages", "max_completion_tokens", "top_logprobs", "response_format", "tools", "tool_choice",
        "parallel_tool_calls", "reasoning_effort", "verbosity", "service_tier", "store", "metadata",
        "safety_identifier", "prompt_cache_key", "functions", "function_call", "modalities", "audio", "prediction",
        "web_search_options",
    },
    "completions": _COMMON | {"prompt", "best_of", "echo", "suffix"},
    "responses": {
        "model", "input", "instructions", "stream", "stream_options", "max_output_tokens", "temperature", "top_p",
        "tools", "tool_choice", "parallel_tool_calls", "text", "reasoning", "store", "metadata", "user", "background",
        "previous_response_id", "service_tier", "truncation", "include", "safety_identifier", "prompt_cache_key",
        "top_logprobs", "max_tool_calls", "prompt", "conversation",
    },
}  # fmt: skip
_RANGES = {"temperature": (0, 2), "top_p": (0, 1), "n": (1, 128), "top_logprobs": (0, 20)}
_RANGES |= dict.fromkeys(("presence_penalty", "frequency_penalty"), (-2, 2))


def usual(status: int, message: str | None = None, kind: str | None = None) -> Refusal:
    """The usual refusal with a status; with a message or a type of your own, without its code."""
    own_kind, param, code, text = ERRORS.get(status, ("server_error", None, None, "error"))
    if message is None and kind is None:
        return Refusal(status, text, own_kind, param, code)
    return Refusal(status, message or text, kind or own_kind)


def error_body(flavor: Flavor, refusal: Refusal) -> bytes:
    """The JSON error body of a refusal in a flavor's form."""
    fields = _fields(flavor, refusal)
    if refusal.status in flavor.detail:
        value: Any = {"detail": refusal.message}
    elif flavor.error == "flat":
        value = {"object": "error", **fields}
    elif flavor.error == "text":
        value = {"error": fields["message"]}
    else:
        value = {"error": fields}
    return dump(value) + flavor.error_end


def _fields(flavor: Flavor, refusal: Refusal) -> dict[str, Any]:
    status = refusal.status
    extra = {name: status if value == "{status}" else value for name, value in flavor.error_extra.items()}
    own = extra.pop("type", None) or refusal.kind or ERRORS[400][0]
    fields = {
        "message": refusal.message,
        "type": flavor.error_types.get(status, own),
        "param": refusal.param,
        "code": refusal.code,
    }
    if flavor.error in ("int", "flat"):
        fields["code"] = status
    elif flavor.error == "text_code":
        fields["code"] = str(status)
    return {**fields, **extra}


def error_event(flavor: Flavor, status: int, message: str, kind: str, model: str) -> bytes:
    """The error event of a 200 stream in a flavor's form."""
    text = message or ERRORS[500][3]
    fields: dict[str, Any] = {"message": text, "type": kind or "server_error", "param": None, "code": None}
    chunk: dict[str, Any] = {"id": flavor.id.format("1", short="1"), "object": "chat.completion.chunk", "created": 1}
    chunk |= {"model": model, **flavor.head}
    if flavor.fingerprint is not None:
        chunk["system_fingerprint"] = flavor.fingerprint
    choice: dict[str, Any] = {"index": 0, "delta": {"content": ""}}
    choice |= {"logprobs": None} if flavor.logprobs_null else {}
    how = flavor.stream_error
    if how == "none":
        return b""
    if how == "blank":
        return event({**chunk, "model": "", "choices": [{**choice, "finish_reason": None}]})
    if how == "chunk":
        ended = {**choice, "finish_reason": "error", **dict.fromkeys(flavor.choice, "error")}
        return event({**chunk, "choices": [ended], "error": {"code": status, "message": text}})
    if how == "named":
        return event({"error": {"message": text}, "message": text}, "error")
    if how == "nested":
        return event({"error": {"object": "error", **fields, "code": status}})
    if how == "tgi":
        return event({"error": {"message": text, "http_status_code": status}})
    if how == "text_code":
        return event({"error": {**fields, "type": None, "code": str(status)}}, spaced=True)
    return event({"error": {**fields, "code": status} if how == "int" else fields})


def read(
    route: str,
    body: dict[str, Any],
    *,
    flavor: Flavor,
    strict: bool,
    reasoning_model: bool,
    accepts_stream_options: bool,
    n_ctx: int,
) -> Job:
    """The request as a job. Raises Refusal for what the server refuses before a stream opens."""
    for name in sorted(body):
        if name in flavor.refused or (strict and name not in KNOWN[route]):
            raise _invalid(f"Unrecognized request argument supplied: {name}", name, "unknown_parameter", flavor)
    if "stream_options" in body and not accepts_stream_options:
        raise _invalid("Unrecognized request argument supplied: stream_options", "stream_options", None, flavor)
    if body.get("stream_options") and not body.get("stream"):
        text = "The 'stream_options' parameter is only allowed when 'stream' is enabled."
        raise _invalid(text, "stream_options", None, flavor)
    if reasoning_model and route == "chat":
        _check_reasoning(body, flavor)
    for name, (low, high) in _RANGES.items():
        value = body.get(name)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and not low <= value <= high:
            text = f"Invalid '{name}': expected a value between {low} and {high}, but got {value} instead."
            raise _invalid(text, name, "invalid_value", flavor)
    job = _job(route, {name: value for name, value in body.items() if name not in flavor.ignored}, flavor)
    if max(job.counts) >= n_ctx:
        what = "messages" if route != "completions" else "prompt"
        text = (
            f"This model's maximum context length is {n_ctx} tokens. However, your {what} resulted in "
            f"{max(job.counts)} tokens. Please reduce the length of the {what}."
        )
        raise _invalid(text, what, "context_length_exceeded", flavor)
    return job


def _job(route: str, body: dict[str, Any], flavor: Flavor) -> Job:
    if route == "completions":
        if not body.get("prompt") and body.get("prompt") != "":
            raise _invalid("Missing required parameter: 'prompt'.", "prompt", "missing_required_parameter", flavor)
        prompts, counts = read_prompts(body["prompt"])
        limit = 16 if body.get("max_tokens") is None else body["max_tokens"]
    else:
        messages = messages_of(body)
        if not messages:
            what = "input" if route == "responses" else "messages"
            raise _invalid(f"Missing required parameter: '{what}'.", what, "missing_required_parameter", flavor)
        prompts, counts = [chat_words(messages)], [count_chat(messages)]
        names = ("max_output_tokens",) if route == "responses" else ("max_completion_tokens", "max_tokens")
        limit = next((body[name] for name in names if body.get(name) is not None), None)
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        text = f"Invalid 'max_tokens': integer below minimum value. Expected a value >= 1, but got {limit} instead."
        raise _invalid(text, "max_tokens", "integer_below_min_value", flavor)
    return Job(route, body, prompts, counts, limit, read_stop(body.get("stop")), int(body.get("n") or 1))


def _check_reasoning(body: dict[str, Any], flavor: Flavor) -> None:
    if body.get("max_tokens") is not None:
        text = (
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
        )
        raise _invalid(text, "max_tokens", "unsupported_parameter", flavor)
    if body.get("temperature") not in (None, 1):
        text = (
            f"Unsupported value: 'temperature' does not support {body['temperature']} with this model. Only the "
            "default (1) value is supported."
        )
        raise _invalid(text, "temperature", "unsupported_value", flavor)
    if body.get("stop") is not None:
        text = "Unsupported parameter: 'stop' is not supported with this model."
        raise _invalid(text, "stop", "unsupported_parameter", flavor)


def _invalid(message: str, param: str, code: str | None, flavor: Flavor) -> Refusal:
    status = flavor.validation if code == "unknown_parameter" or param == "stream_options" else 400
    return Refusal(status, message, "invalid_request_error", param, code)
