"""Errors in every form that servers of the OpenAI dialect write them in. No I/O.

``{"error": {...}}`` (OpenAI, vLLM since 0.10.1, llama.cpp, LocalAI, LiteLLM with a string code, OpenRouter),
``{"error": "text"}`` (vLLM's 401, LM Studio, Ollama, TGI, the Hugging Face router), flat ``{"object": "error", ...}``
(vLLM before 0.10.1, SGLang, TensorRT-LLM, Mistral), ``{"message": "text"}`` (gateways), ``{"detail": ...}`` (FastAPI).
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from worker_adapters.wire.delta import EngineFault, GarbledEvent, count, parse_json

_ANY = msgspec.json.Decoder(Any)

#: Sizes that are told in words only (OpenAI, vLLM, llama-cpp-python). Only the first number after the words counts.
CONTEXT_SIZE = re.compile(
    r"(?:context length|context size|context window|max_model_len)"
    r"[^0-9]{0,24}?([0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,15})(?![0-9])",
    re.IGNORECASE,
)
PROMPT_TOKENS = re.compile(
    r"(?:prompt contains(?: at least)?|resulted in|requested tokens \()\s*([0-9]{1,15})(?: input)?(?: tokens|\))",
    re.IGNORECASE,
)
#: A field's name; anything else in ``param`` may be text of the user's.
FIELD_NAME = re.compile(r"[A-Za-z_][\w.\[\]]{0,79}")
#: Keys of an answer that is none of an error.
ANSWER = frozenset({"choices", "output", "data"})
#: Keys that say, beside an error, that the engine had begun.
BEGUN = ("choices", "output", "usage")
#: So much of an error's words is read: it may quote a prompt of megabytes.
WORDS = 4096
NAME = 200
#: Python's, up to the exception that it is of.
TRACEBACK = re.compile(r"Traceback \(most recent call last\):\n(?:[ \t]+.*\n)*")


def fault_of(error: Any) -> EngineFault:
    """The value of an ``error`` key: a mapping, or just words."""
    if not isinstance(error, dict):
        return EngineFault(message=_plain(error))
    code = error.get("code")
    word = code if isinstance(code, str) and not code.isdecimal() else ""
    message = _plain(error.get("message") or error.get("error") or "")
    return EngineFault(
        message=message,
        field=str(error.get("type") or error.get("error_type") or word)[:NAME],
        status=next((n for n in map(_status, map(error.get, _STATUS_KEYS)) if n is not None), None),
        prompt_tokens=_first(count(error.get("n_prompt_tokens")), PROMPT_TOKENS, message),
        context_size=_first(count(error.get("n_ctx")), CONTEXT_SIZE, message),
        code=word[:NAME],
        param=_param(error.get("param")),
    )


def _plain(words: Any) -> str:
    """Without the traceback, which shows the server's paths: pybind11's of Triton's Python backend, which comes behind
    the message, or Python's of TensorRT-LLM's BLS, which comes before it."""
    said = str(words).partition("\n\nAt:\n")[0]
    return (TRACEBACK.split(said)[-1] if said.startswith("Traceback") else said)[:WORDS]


def fault_in(body: bytes) -> EngineFault | None:
    """The error that a JSON body holds; None if it holds none."""
    try:
        value = parse_json(_ANY, body)  # leniently: an engine may quote bytes of a prompt that are no UTF-8
    except GarbledEvent:
        return None
    return fault_within(value)


def fault_within(value: Any) -> EngineFault | None:
    """The error that a JSON value holds, wherever it stands; None if it holds none."""
    if isinstance(value, list) and len(value) == 1:  # Gemini
        value = value[0]
    if not isinstance(value, dict):
        return None
    fault = _within(value)
    began = any(value.get(key) for key in BEGUN)
    return msgspec.structs.replace(fault, began=True) if fault is not None and began else fault


def _within(value: dict[str, Any]) -> EngineFault | None:
    error = value.get("error")
    if isinstance(error, dict):
        return fault_of(error) if error else None
    if error:
        return fault_of({**value, "message": error, "error": None})
    if not ANSWER.isdisjoint(value):
        return None
    if isinstance(value.get("message"), dict):  # Mistral: {"object": "error", "message": {"detail": [...]}}
        return _within(value["message"])
    if isinstance(value.get("message"), str):
        return fault_of(value)
    return _detail(value["detail"]) if value.get("detail") else None


def _detail(detail: Any) -> EngineFault:
    """FastAPI's: words, or a list of ``{"loc": ["body", field], "msg": why}``."""
    rows = [row for row in detail if isinstance(row, dict)] if isinstance(detail, list) else []
    if not rows:
        return fault_of(detail)
    places = [".".join(map(str, row["loc"])) if isinstance(row.get("loc"), list) else "" for row in rows]
    words = "; ".join(f"{place}: {row.get('msg', '')}" for place, row in zip(places, rows, strict=True))
    return EngineFault(message=words[:WORDS], param=_param(places[0]))


#: Where a claimed status may stand: OpenAI's ``code``, TGI's, Azure's gateway's, Mistral's.
_STATUS_KEYS = ("code", "http_status_code", "statusCode", "raw_status_code", "status")


def _status(value: Any) -> int | None:
    if isinstance(value, str) and re.fullmatch("[0-9]{3}", value):
        value = int(value)
    number = count(value)
    return number if number is not None and 100 <= number <= 599 else None


def _param(value: Any) -> str | None:
    """vLLM's validation says ``body.temperature``, its own checks say ``temperature``."""
    name = value.removeprefix("body.") if isinstance(value, str) else ""
    return name if FIELD_NAME.fullmatch(name) else None


def _first(told: int | None, words: re.Pattern[str], message: str) -> int | None:
    found = words.search(message) if told is None else None
    return int(found[1].replace(",", "")) if found else told
