"""What values TGI's router refuses, in its order and its words."""

from __future__ import annotations

import json
import secrets
from typing import Any

from .tgi_facts import Version
from .tgi_request import Job, Limits, Refusal
from .tgi_script import LEG, Room


def validate(job: Job, limits: Limits, version: Version, *, chat: bool) -> None:
    """Counts the prompt and checks the values in the router's order. Raises Refusal of the kind `validation`."""
    given = job.parameters
    if (given.get("best_of") or 1) > 1 and not _sampling(given):
        raise _invalid("you must use sampling when `best_of` is > 1")
    _check_ranges(given)
    stops = len(given.get("stop") or ())
    if stops > limits.max_stop_sequences:
        raise _invalid(f"`stop` supports up to {limits.max_stop_sequences} stop sequences. Given: {stops}")
    if given.get("seed") is not None and (given.get("best_of") or 1) > 1:
        raise _invalid("`seed` must not be set when `best_of` > 1")
    job.seed = secrets.randbits(64) if given.get("seed") is None else given["seed"]
    wanted = given.get("top_n_tokens") or 0
    if wanted > limits.max_top_n_tokens:
        raise _invalid(f"`top_n_tokens` must be >= 0 and <= {limits.max_top_n_tokens}. Given: {wanted}")
    if not job.inputs:
        raise _invalid("`inputs` cannot be empty")
    truncate = given.get("truncate")
    if truncate is not None and not 0 < truncate <= limits.max_input_tokens:
        most = limits.max_input_tokens
        raise _invalid(f"`truncate` must be strictly positive and less than {most}. Given: {truncate}")
    job.prompted = len(job.inputs.split()) + (not chat)  # a template's own texts stand for the first token
    job.prompted = min(job.prompted, truncate or job.prompted)
    _measure(job, limits, version)
    _check_schema(given.get("grammar"))


def validate_best_of(wanted: int, limits: Limits) -> None:
    """Checks how many sequences are asked for, which comes before everything else."""
    if limits.max_best_of == 1:
        raise _invalid("`best_of` != 1 is not allowed for this endpoint")
    if wanted > limits.max_best_of:
        raise _invalid(f"`best_of` must be > 0 and <= {limits.max_best_of}. Given: {wanted}")


def check_streamable(job: Job) -> None:
    """Checks what a stream cannot have, which comes before everything else. Raises Refusal."""
    best_of = job.parameters.get("best_of")
    if best_of not in (None, 1):
        raise _invalid("`best_of` != 1 is not supported when streaming tokens")
    if job.flag("decoder_input_details"):
        raise _invalid("`decoder_input_details` == true is not supported when streaming tokens")


def _sampling(given: dict[str, Any]) -> bool:
    named = ("temperature", "top_k", "top_p", "typical_p")
    return bool(given.get("do_sample")) or any(given.get(name) is not None for name in named)


def _check_ranges(given: dict[str, Any]) -> None:
    def value(name: str, default: float) -> float:
        found = given.get(name)
        return default if found is None else float(found)

    for name in ("temperature", "repetition_penalty"):
        if value(name, 1.0) <= 0:
            raise _invalid(f"`{name}` must be strictly positive")
    if not -2 <= value("frequency_penalty", 0.0) <= 2:
        raise _invalid("`frequency_penalty` must be >= -2.0 and <= 2.0")
    for name in ("top_p", "typical_p"):
        if not 0 < value(name, 0.5) < 1:
            raise _invalid(f"`{name}` must be > 0.0 and < 1.0")
    if value("top_k", 1) <= 0:
        raise _invalid("`top_k` must be strictly positive")
    if given.get("max_new_tokens") == 0:
        raise _invalid("`max_new_tokens` must be strictly positive")


def _measure(job: Job, limits: Limits, version: Version) -> None:
    asked = job.parameters.get("max_new_tokens")
    if asked is None and not version.since(3):
        asked = 100
    total, most = limits.max_total_tokens, limits.max_input_tokens
    job.room = Room(job.prompted, asked, most, total, limits.legs)
    size = max(0, total - job.prompted) if asked is None else asked
    size = min(size, LEG) if limits.legs else size
    if job.prompted + size > total:
        raise _invalid(
            f"`inputs` tokens + `max_new_tokens` must be <= {total}. "
            f"Given: {job.prompted} `inputs` tokens and {size} `max_new_tokens`"
        )
    if job.prompted > most:
        raise _invalid(f"`inputs` must have less than {most} tokens. Given: {job.prompted}")


def schema_of(grammar: dict[str, Any]) -> Any:
    """The JSON schema of a grammar."""
    value = grammar["value"]
    if grammar["type"] == "json_schema":
        value = value.get("schema")
    return json.loads(value) if isinstance(value, str) else value


def _check_schema(grammar: dict[str, Any] | None) -> None:
    if grammar is None or grammar["type"] == "regex":
        return
    try:
        schema = schema_of(grammar)
    except json.JSONDecodeError as error:
        at = f"line {error.lineno} column {error.colno}"
        raise _invalid(f"grammar is not valid: expected value at {at}") from error
    if not isinstance(schema, dict):
        raise _invalid("grammar is not supported")
    if "properties" not in schema:
        raise _invalid("grammar is not valid: Grammar must have a 'properties' field")


def _invalid(text: str) -> Refusal:
    return Refusal("Input validation error: " + text, "validation")
