"""TGI's dialect: requests, the token stream of ``/generate_stream``, and its deviations from OpenAI's chat. No I/O.

Facts from the router's source, 0.2.0 to 3.3.7. A token is an event; the end is a ``generated_text`` that is not null,
and ``[DONE]`` never comes; special tokens count and are not shown; "" is a piece of a character that comes whole later.
The stop string stays in the text, and one that ends inside a token is missed. From 3.0.0 on a job of more than 1,024
tokens runs in legs and may get up to a leg too many. The chat's stream may give a tool call no finish reason at all.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from worker_adapters.task import TaskRequest
from worker_adapters.wire.delta import (
    Decoder,
    Delta,
    EngineFault,
    Finish,
    GarbledEvent,
    Usage,
    count,
    items,
    mapping,
    parse_json,
    text,
)
from worker_adapters.wire.openai import DONE, ChunkDecoder, fault_beneath, logprob_sum
from worker_adapters.wire.openai_body import chat_fields, present
from worker_adapters.wire.openai_faults import NAME, fault_in
from worker_adapters.wire.sse import Event
from worker_adapters.wire.stops import Stops
from worker_adapters.wire.tgi_tools import CallText

#: The name of no LoRA adapter: the base model, whatever it is called. Up to 1.4 a chat has to name a model.
BASE_MODEL = "tgi"
#: finish_reason of the native stream -> ours.
EOS = "eos_token"
FINISH = {"length": "length", EOS: "stop", "stop_sequence": "stop"}
#: How a chunk of the chat shows that it is of an old release: see ``_modern``.
_OLD_CALL, _CHOICE, _FIRST_CHOICE = b'"tool_calls":{', b'"choices":[{"index":', b'"choices":[{"index":0,'

_SIZES = (
    re.compile(r"must be <= (?P<size>\d{1,15})\. Given: (?P<prompt>\d{1,15}) (`inputs`|input) tokens"),
    re.compile(r"inputs`? must have less than (?P<size>\d{1,15}) tokens\. Given: (?P<prompt>\d{1,15})"),
)
_FIELD = re.compile(r"validation error: `(?!inputs`)(\w{1,80})`")


class _Token(msgspec.Struct, gc=False):
    id: int | None = None
    text: str | None = None
    logprob: float | None = None  # NaN is written as null
    special: bool | None = None


class _Event(msgspec.Struct, gc=False):
    """What of an event is read; ``top_tokens`` is not."""

    token: _Token | None = None
    generated_text: str | None = None
    details: Any = None
    error: Any = None


_EVENT = msgspec.json.Decoder(_Event | None)
_OBJECT = msgspec.json.Decoder(dict[str, Any])


class Cut:
    """What of an answer its user sees: nothing from a stop string on, and no more tokens than were asked for.

    Where TGI runs on, the job ends here: without a word of TGI's for it, and its connection is closed before its end,
    which is a cancel.

    :param logprobs: were they asked for? A text of several tokens has their sum, and the last one's id.
    """

    def __init__(self, stops: Iterable[str], limit: int, *, logprobs: bool = False) -> None:
        wanted = tuple(stops)
        self._stops = Stops(wanted) if wanted else None
        self._limit = limit
        self._logprobs = logprobs
        self._unshown: list[float | None] = []
        self._token_id: int | None = None
        self.tokens = 0

    def take(self, made: Delta, *, special: bool = False) -> Delta:
        """Count a token and cut its delta."""
        self.tokens += 1
        stops = self._stops
        if stops is not None:
            made.text = stops.add(made.text)
        if stops is not None and stops.found:
            self._end(made, "stop")
        elif made.finish is None and self.tokens >= self._limit:
            self._end(made, "length")
        if made.finish is not None and stops is not None:
            made.text += stops.held
        if self._logprobs:
            self._sum(made, special)
        return made

    def _end(self, made: Delta, reason: str) -> None:
        raw = None if made.finish is None else made.finish.raw
        if made.finish is None:
            made.usage, made.done = Usage(None, self.tokens), True
        made.finish = Finish(reason, raw)

    def _sum(self, made: Delta, special: bool) -> None:
        if not special:
            self._unshown.append(made.logprob)
            self._token_id = made.token_id
        if made.text:
            made.logprob, made.token_id = logprob_sum(self._unshown), self._token_id
            self._unshown.clear()


class GenerateDecoder(Decoder):
    """Events of ``/generate_stream``."""

    def __init__(self, cut: Cut, *, logprobs: bool = False) -> None:
        self._cut = cut
        self._logprobs = logprobs

    def feed(self, event: Event) -> Delta | None:
        data = event.data
        if not data:
            return None
        if data.startswith(DONE):  # not TGI's, but a proxy's
            return Delta(done=True)
        try:
            told = parse_json(_EVENT, data)
        except GarbledEvent as error:
            return fault_beneath(error, data)
        if told is not None and told.error:
            return Delta(fault=fault_in(data))
        if told is None or told.token is None:
            return None
        token = told.token
        ends = mapping(told.details).get("finish_reason") if told.generated_text is not None else None
        special = token.special if token.special is not None else ends == EOS  # up to 0.3 none is said to be
        made = Delta("" if special else token.text or "")
        if self._logprobs:
            made.logprob, made.token_id = token.logprob, token.id
        if told.generated_text is not None:
            _finish(made, mapping(told.details))
        return self._cut.take(made, special=special)


def _finish(made: Delta, details: dict[str, Any]) -> None:
    """The event with the whole text; ``details`` come only if asked for, ``input_length`` since 2.3.0."""
    raw = text(details.get("finish_reason"))[:NAME]
    made.finish = Finish(FINISH.get(raw, "stop"), raw or None)
    prompted = details.get("input_length", details.get("prompt_tokens"))  # the second is LoRAX's
    made.usage = Usage(count(prompted), count(details.get("generated_tokens")))
    seed = details.get("seed")  # of 64 bits without a sign; null when greedy, the one picked where none was sent
    made.facts = {"seed": seed} if type(seed) is int else None
    made.done = True


class ChatDecoder(ChunkDecoder):
    """Chunks of ``/v1/chat/completions``, one a token; with tools, tokens are held back until the choice is known.

    A tool call is whole when its arguments are: no finish reason has to come. Usage is told only at the end of a
    generation (2.3.0 and later), so it proves one that the limit cut inside a call. From 2.4.0 to 3.1.1 an answer that
    the model prefers to a call ends with ``[DONE]`` and nothing else: the router stops where its JSON string ends.

    :param tools: names of the functions that may be called.
    """

    def __init__(self, cut: Cut, limit: int, *, logprobs: bool = False, tools: Sequence[str] = ()) -> None:
        super().__init__(logprobs=logprobs)
        self._cut = cut
        self._limit = limit
        self._tools = tools
        self._call = CallText(tools)
        self._answers = self._calls_one = self._ended = False

    def feed(self, event: Event) -> Delta | None:
        data = event.data
        old = _FIRST_CHOICE not in data or _OLD_CALL in data
        made = super().feed(_modern(event) if old else event)
        if made is None or made.fault is not None:
            return made
        if made.facts:
            made.facts.pop("id", None)  # is always ""
        if self._ended:
            made.text, made.tools = "", ()
        elif made.done:
            self._marked(made)
        elif made.usage is not None and not (made.text or made.tools or made.finish):
            if (made.usage.tokens_out or 0) >= self._limit:
                made.finish = Finish("length", None)
        else:
            self._token(made)
        if made.finish is not None:
            called = self._call.whole or (self._call.begun and made.finish.reason == "stop")
            made.finish = Finish("tool_calls", made.finish.raw) if called else made.finish
            self._ended = True
        return made

    def _token(self, made: Delta) -> None:
        if made.tools:
            self._called(made)
        elif made.finish is not None and self._call.begun and made.finish.reason == "stop":
            rest = self._call.rest()
            made.tools = () if rest is None else (rest,)
        if made.finish is not None and made.finish.raw == EOS:
            made.text = ""  # up to 2.0.1 it is the end token's
        self._answers = self._answers or bool(made.text)
        self._cut.take(made)

    def _called(self, made: Delta) -> None:
        self._calls_one = True
        pieces = [self._call.add(piece) for piece in made.tools]
        made.tools = tuple([piece for piece in pieces if piece is not None])
        made.text += self._call.apology
        if made.finish is None and (self._call.whole or self._call.apology):
            made.finish = Finish("stop", None)

    def _marked(self, made: Delta) -> None:
        """``[DONE]`` without a reason."""
        if self._tools and self._answers and not self._calls_one:
            made.finish = Finish("stop", None)
            self._cut.take(made)


def _modern(event: Event) -> Event:
    """The event as newer releases write it. Up to 1.4.3 a choice's index counts tokens, and in 1.4.0 its logprobs are a
    number; up to 3.1.1 the one tool call stands where a list of them belongs.
    """
    if _CHOICE not in event.data:  # usage, an error, the marker
        return event
    told = parse_json(_OBJECT, event.data)
    for choice in map(mapping, items(told.get("choices"))):
        choice["index"] = 0
        delta = mapping(choice.get("delta"))
        if isinstance(delta.get("tool_calls"), dict):
            delta["tool_calls"] = [delta["tool_calls"]]
        if isinstance(choice.get("logprobs"), float):
            choice["logprobs"] = {"content": [{"logprob": choice["logprobs"]}]}
    return Event(msgspec.json.encode(told), event.name, event.id)


def told_in_words(fault: EngineFault) -> EngineFault:
    """The error with the sizes and the field that TGI tells in its text alone."""
    sizes = next((found for found in (words.search(fault.message) for words in _SIZES) if found), None)
    if sizes is not None:
        return msgspec.structs.replace(fault, prompt_tokens=int(sizes["prompt"]), context_size=int(sizes["size"]))
    field = _FIELD.search(fault.message)
    if field is None or fault.param is not None:
        return fault
    return msgspec.structs.replace(fault, param="max_tokens" if field[1] == "max_new_tokens" else field[1])


def generate_body(task: TaskRequest) -> dict[str, Any]:
    """``/generate_stream`` for a task with a prompt; ``extra`` stands among the parameters.

    TGI samples where a temperature, top_p or top_k says so, whatever ``do_sample`` is: a greedy job is sent none.
    """
    top_p, top_k = _top_p(task), None if task.temperature == 0 or (task.top_k or 0) <= 0 else task.top_k
    parameters = {
        "max_new_tokens": task.max_tokens,
        "do_sample": bool(task.temperature) or top_p is not None or top_k is not None,
        "temperature": task.temperature or None,  # 0 is an error
        "top_p": top_p,
        "top_k": top_k,
        "seed": task.seed,
        "stop": task.stop or None,
        "repetition_penalty": task.repetition_penalty,
        "frequency_penalty": task.frequency_penalty,
        "grammar": _grammar(task),
        "adapter_id": None if task.model == BASE_MODEL else task.model,
        "details": True,
    }
    return {"inputs": task.prompt, "parameters": present(parameters) | task.extra}


def chat_body(task: TaskRequest) -> dict[str, Any]:
    """``/v1/chat/completions`` for a task with messages; temperature 0 is greedy there since 2.0.2."""
    changed = {
        "model": task.model or BASE_MODEL,
        "top_p": _top_p(task),
        "presence_penalty": task.presence_penalty or None,  # p is taken for a repetition penalty of p + 2
        "response_format": _grammar(task),
        "top_logprobs": None,  # no frame has them, and more than 5 are refused
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return present(chat_fields(task) | changed) | task.extra


def _top_p(task: TaskRequest) -> float | None:
    """1 is an error on the native route; any other makes a greedy job sample."""
    return None if task.temperature == 0 or task.top_p is None or task.top_p >= 1 else task.top_p


def _grammar(task: TaskRequest) -> dict[str, Any] | None:
    """``grammar`` of the native route, ``response_format`` of the chat: both {type, value}."""
    if task.grammar is not None:
        return {"type": "regex", "value": task.grammar}
    if task.response_format is None or task.response_format["type"] == "text":
        return None
    return {"type": "json", "value": task.response_format["json_schema"]["schema"]}
