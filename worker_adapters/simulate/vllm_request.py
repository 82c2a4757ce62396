"""Reading a generation request the way vLLM 0.32.0 reads it: what it refuses, and in which words."""

from __future__ import annotations

import json
from typing import Any

from .openai_request import Job, Refusal, chat_words, count_chat, messages_of, read_prompts, read_stop

MAX_STOPS = 4
VOCABULARY = 283
_NO_PROMPT = "Either prompt or prompt_embeds must be provided and non-empty. (parameter=prompt)"


def load(body: bytes, content_type: str | None) -> dict[str, Any]:
    """The body's JSON object, or the refusal of what is none."""
    if content_type is None or content_type.partition(";")[0].strip().lower() != "application/json":
        raise _invalid("Unsupported Media Type: Only 'application/json' is allowed")
    try:
        value = json.loads(body.decode("utf-8", "replace"))
    except json.JSONDecodeError as error:
        found = "<dict of 0 items>"
        raise _validation(
            f"body.{error.pos}", "json_invalid", "JSON decode error", found, f"{{'error': {error.msg!r}}}"
        ) from error
    if not isinstance(value, dict):
        raise _validation("body", "model_attributes_type", "Input should be a valid dictionary", _kind(value))
    return value


def read(route: str, body: dict[str, Any], *, names: list[str], n_ctx: int, tool_parser: bool, old: bool) -> Job:
    """The request as a job. Raises Refusal for what vLLM refuses before it opens a stream."""
    _check_types(route, body)
    model = body.get("model")
    if model and model not in names:
        alias = ", ".join(names)
        hint = "" if old else f" Valid aliases: {alias}."
        raise Refusal(404, f"The model `{model}` does not exist.{hint}", "NotFoundError", None if old else "model")
    if route == "completions":
        _check_prompt(body.get("prompt"))
        prompts, counts = read_prompts(body["prompt"])
    else:
        messages = messages_of(body)
        if not messages:
            raise _bad("Cannot apply chat template to an empty conversation. Provide at least one message.", None)
        prompts, counts = [chat_words(messages)], [count_chat(messages)]
    _check_sampling(body)
    limit = _limit(route, body)
    _check_window(body, counts, limit, n_ctx)
    if route == "chat" and body.get("tools") and body.get("tool_choice", "auto") == "auto" and not tool_parser:
        raise _bad('"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set', None)
    return Job(route, body, prompts, counts, limit, read_stop(body.get("stop")), int(body.get("n") or 1))


def _limit(route: str, body: dict[str, Any]) -> int | None:
    if route == "responses":
        value = body.get("max_output_tokens")
    else:
        value = body.get("max_completion_tokens") if route == "chat" else None
        value = body.get("max_tokens") if value is None else value
    if value is None:
        return 16 if route == "completions" else None
    if value < 1:
        raise _bad(f"max_tokens must be at least 1, got {value}.", "max_tokens", value)
    least = body.get("min_tokens") or 0
    if least > value:
        raise _bad(f"min_tokens must be less than or equal to max_tokens={value}, got {least}.", None)
    return int(value)


def _check_window(body: dict[str, Any], counts: list[int], limit: int | None, n_ctx: int) -> None:
    start = f"This model's maximum context length is {n_ctx} tokens. However, your"
    end = "Please reduce the length of the input prompt."
    longest = 7 * n_ctx  # the recorded tokenizer's longest token has seven characters
    prompt = body.get("prompt")
    if isinstance(prompt, str) and len(prompt) > longest:
        raise _bad(
            f"{start} prompt contains {len(prompt)} characters (more than {longest} characters, which is the upper "
            f"bound for {n_ctx} input tokens). {end}",
            "input_text",
            len(prompt),
        )
    if max(counts) >= n_ctx:
        raise _bad(
            f"{start} prompt contains {max(counts)} input tokens, which exceeds this limit even without any output "
            f"tokens. {end}",
            "input_tokens",
            max(counts),
        )
    if limit is not None and limit > n_ctx:
        raise _bad(f"max_tokens={limit} cannot be greater than max_model_len={n_ctx}.", "max_tokens", limit)


def _check_prompt(prompt: Any) -> None:
    if not prompt:
        raise _bad(_NO_PROMPT, "prompt", shown=False)
    ids = prompt if isinstance(prompt, list) else []
    flat = [number for part in ids for number in (part if isinstance(part, list) else [part])]
    strange = [number for number in flat if isinstance(number, int) and not 0 <= number < VOCABULARY]
    if strange:
        raise _bad(f"Token id {strange[0]} is out of vocabulary", None)


def _check_sampling(body: dict[str, Any]) -> None:
    temperature = body.get("temperature")
    if temperature is not None and temperature < 0:
        raise _bad(f"temperature must be non-negative, got {float(temperature)}.", "temperature", float(temperature))
    if temperature is not None and temperature > 2:
        raise _bad(f"temperature must be in [0, 2], got {float(temperature)}.", "temperature", float(temperature))
    top_p = body.get("top_p")
    if top_p is not None and not 0 < top_p <= 1:
        raise _bad(f"top_p must be in (0, 1], got {top_p}.", "top_p", top_p)
    wanted = int(body.get("n") or 1)
    if wanted > 1 and temperature == 0:
        raise _bad(f"n must be 1 when using greedy sampling, got {wanted}.", "n", wanted)
    allowed = body.get("allowed_token_ids") or []
    if any(number >= VOCABULARY for number in allowed):
        raise _bad("allowed_token_ids contains out-of-vocab token id!", "allowed_token_ids", allowed)
    if (body.get("logprobs") or 0) > 20 and body.get("logprobs") is not True:
        message = f"Requested sample logprobs of {body['logprobs']}, which is greater than max allowed: 20"
        raise _bad(message, "logprobs", body["logprobs"])


# -- types and missing fields: pydantic's words ------------------------------------------------------------------------

_TYPES: dict[str, tuple[str, str, tuple[type, ...]]] = {
    "stream": ("bool_type", "Input should be a valid boolean", (bool,)),
    "max_tokens": ("int_type", "Input should be a valid integer", (int,)),
    "max_completion_tokens": ("int_type", "Input should be a valid integer", (int,)),
    "max_output_tokens": ("int_type", "Input should be a valid integer", (int,)),
    "n": ("int_type", "Input should be a valid integer", (int,)),
    "temperature": ("float_type", "Input should be a valid number", (int, float)),
    "top_p": ("float_type", "Input should be a valid number", (int, float)),
    "model": ("string_type", "Input should be a valid string", (str,)),
    "messages": ("list_type", "Input should be a valid list", (list,)),
    "tools": ("list_type", "Input should be a valid list", (list,)),
}


def _check_types(route: str, body: dict[str, Any]) -> None:
    required = {"chat": "messages", "responses": "input"}.get(route)
    if required is not None and required not in body:
        raise _validation(f"body.{required}", "missing", "Field required", _kind(body))
    for name, (kind, message, types) in _TYPES.items():
        value = body.get(name)
        if value is not None and (not isinstance(value, types) or (isinstance(value, bool) and bool not in types)):
            raise _validation(f"body.{name}", kind, message, _kind(value))
    stop = body.get("stop")
    if isinstance(stop, list) and len(stop) > MAX_STOPS:
        found = _kind(stop)
        long = f"{{'field_type': 'List', 'max_length': {MAX_STOPS}, 'actual_length': {len(stop)}}}"
        text = f"List should have at most {MAX_STOPS} items after validation, not {len(stop)}"
        first = _detail("string_type", "body.stop", "Input should be a valid string", found)
        second = _detail("too_long", "body.stop", text, found, long)
        raise _invalid(f"2 validation errors:\n  {first}\n  {second}", "body.stop")
    if body.get("stream_options") and not body.get("stream"):
        text = "Value error, Stream options can only be defined when `stream=True`."
        raise _validation("body", "value_error", text, _kind(body))


def _kind(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return f"<{type(value).__name__} of {len(value)} items>"
    return str(value)


def _detail(kind: str, where: str, message: str, found: str, context: str = "") -> str:
    text = f"{{'type': {kind!r}, 'loc': {where!r}, 'msg': {message!r}, 'input': {found!r}"
    return text + (f", 'ctx': {context}}}" if context else "}")


def _validation(where: str, kind: str, message: str, found: str, context: str = "") -> Refusal:
    return _invalid(f"1 validation error:\n  {_detail(kind, where, message, found, context)}", where)


def _invalid(message: str, param: str | None = None) -> Refusal:
    return Refusal(400, message, "Bad Request", param)


def _bad(message: str, param: str | None, value: Any = None, shown: bool = True) -> Refusal:
    if param is not None and shown:
        message += f" (parameter={param}, value={value})"
    return Refusal(400, message, "BadRequestError", param)
