"""What a simulated model behind Triton says: its recital as the responses of each convention."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .recital import SENTENCE, Recital
from .triton_json import ERRORS
from .triton_models import Model
from .triton_request import Ask

ROOM = 2**31
NOT_DECOUPLED = "Streaming is only supported in decoupled mode."
NO_ID = "A request id must be provided for request cancellation"


class Reply(NamedTuple):
    """One response: its outputs, or the text of an error; and how many tokens it stands for."""

    outputs: dict[str, Any]
    tokens: int = 0
    error: str = ""


class Trouble(Exception):
    """The model answers with an error."""


@dataclass
class Manner:
    """How one request is answered. `streams`: response by response; `cumulative`: each with all the text so far;
    `says_end`: the end token is a response of its own; `extras(finish, tokens)` are outputs beside the text."""

    prompt: str
    limit: int | None
    stop: list[str]
    streams: bool
    cumulative: bool = False
    says_end: bool = False
    past_end: bool = False
    prefix: str = ""
    extras: Callable[[str | None, int], dict[str, Any]] = field(default=lambda finish, tokens: {})


# -- the conventions ---------------------------------------------------------------------------------------------------


def _plain(model: Model, ask: Ask) -> Manner:
    limit = ask.value("max_tokens", "max_new_tokens", "max_output_tokens")
    streams = model.decoupled and ask.value("stream") is not False
    return Manner(ask.value("text_input") or "", limit, ask.values("stop", "stop_words"), streams)


def _trtllm(model: Model, ask: Ask) -> Manner:
    """The ensemble and the BLS of TensorRT-LLM v0.16.0: no finish reason and no counts."""
    streams = bool(ask.value("stream"))
    if streams and not model.decoupled:
        raise Trouble(NOT_DECOUPLED)
    cumulative = model.parameters.get("accumulate_tokens") == "true"
    prompt = ask.value("text_input") or ""
    return Manner(prompt, ask.value("max_tokens"), ask.values("stop_words"), streams, cumulative, says_end=True)


def _llmapi(model: Model, ask: Ask) -> Manner:
    """TensorRT-LLM's llmapi model: every response has the whole text so far, as its model.py sends `output.text`."""
    streams = bool(ask.value("streaming"))
    if streams and not model.decoupled:
        raise Trouble(f"Error generating request: {NOT_DECOUPLED}")

    def extras(finish: str | None, tokens: int) -> dict[str, Any]:
        told = {"finish_reason": str(finish), "stop_reason": "None"}
        return {name: value for name, value in told.items() if ask.value(f"return_{name}")}

    limit = ask.value("sampling_param_max_tokens")
    prompt, stop = ask.value("text_input") or "", ask.values("sampling_param_stop")
    return Manner(prompt, 32 if limit is None else limit, stop, streams, True, says_end=True, extras=extras)


def _vllm(model: Model, ask: Ask) -> Manner:
    """vLLM's backend: sampling in JSON, or in the request parameters where that tensor is missing."""
    prompt, streams = ask.value("text_input") or "", bool(ask.value("stream"))
    excluded = ask.value("exclude_input_in_output")
    if streams and excluded is False:
        raise Trouble("Error generating stream: When streaming, `exclude_input_in_output` = False is not allowed.")
    text = ask.value("sampling_parameters")
    try:
        sampling = ask.parameters if text is None else dict(json.loads(text))
        limit = int(sampling.get("max_tokens", 16))
    except (ValueError, TypeError) as error:
        raise Trouble(f"Error generating stream: {error}") from error
    if limit < 1:
        raise Trouble(f"Error generating stream: max_tokens must be at least 1, got {limit}.")
    stop = sampling.get("stop") or []

    def extras(finish: str | None, tokens: int) -> dict[str, Any]:
        told = {
            "finish_reason": str(finish),
            "cumulative_logprob": 0.0,
            "logprobs": "null",
            "num_input_tokens": len(prompt.split()),
            "num_output_tokens": tokens,
        }
        return {name: value for name, value in told.items() if ask.value(f"return_{name}")}

    return Manner(
        prompt,
        limit,
        [stop] if isinstance(stop, str) else list(stop),
        streams,
        says_end=True,
        past_end=bool(sampling.get("ignore_eos")),
        prefix="" if streams or excluded else prompt,
        extras=extras,
    )


def _ids(model: Model, ask: Ask) -> Manner:
    """Token ids in and out."""
    prompt = " ".join(map(str, ask.values("input_ids")))
    return Manner(prompt, ask.value("request_output_len"), [], bool(ask.value("streaming")))


_MANNERS: dict[str, Callable[[Model, Ask], Manner]] = {
    "plain": _plain, "trtllm": _trtllm, "llmapi": _llmapi, "vllm": _vllm, "ids": _ids
}  # fmt: skip


def manner(model: Model, ask: Ask) -> Manner:
    """How a model answers a request. Raises Trouble for what the model itself refuses."""
    return _MANNERS[model.voice](model, ask)


# -- responses ---------------------------------------------------------------------------------------------------------


def recital(asked: Manner, tokens: Sequence[str | bytes] | None, endless: bool) -> Recital:
    """What is said: the tokens, or the words of the prompt again and again."""
    said = [token if isinstance(token, str) else token.decode("utf-8", ERRORS) for token in tokens or ()]
    if tokens is None:
        said = [" " + word for word in asked.prompt.split()]
    cycle = endless or asked.past_end or (tokens is None and asked.limit is not None)
    return Recital(said, limit=asked.limit, room=ROOM, cycle=cycle, stop=asked.stop)


def replies(model: Model, asked: Manner, speech: Recital) -> Iterator[Reply]:
    """The responses of a request, one by one or one for all."""
    if asked.limit is not None and asked.limit <= 0:
        return
    if not asked.streams:
        for _ in speech:
            pass
        why = "length" if speech.stop_type == "limit" else "stop"
        spoken = speech.predicted - (speech.stop_type == "eos")
        yield Reply(_outputs(model, asked.prefix + speech.text, asked.extras(why, speech.predicted)), spoken)
        return
    said = asked.prefix
    for step in speech:
        ended = step.is_end or step.hits_stop
        if step.is_end and not asked.says_end and not step.text:
            return  # the final flag alone ends it
        finish = "stop" if ended else "length" if step.predicted == asked.limit else None
        said = said + step.text if asked.cumulative else step.text
        yield Reply(_outputs(model, said, asked.extras(finish, 1)), 0 if step.is_end else 1)


def _outputs(model: Model, text: str, extras: dict[str, Any]) -> dict[str, Any]:
    if model.voice == "ids":
        number = SENTENCE.index(text) + 2 if text in SENTENCE else 0
        return {"output_ids": number, "sequence_length": 1, **model.constants}
    return {next(iter(model.gives)): text, **model.constants, **extras}
