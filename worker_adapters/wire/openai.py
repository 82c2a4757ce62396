"""The OpenAI dialect's stream: chunks of ``/chat/completions`` and ``/completions``. No I/O.

What servers make of it, and what therefore holds here (the tests name each server):
``choices`` may be empty, null or absent (usage, filter results, pings), a choice may lack ``delta``, and whatever is
not there may be null or ""; ``finish_reason`` is the proof of completeness, ``[DONE]`` is none: it also follows errors
and aborts; a truthy top-level ``error`` is a failure wherever it stands; usage may come on every chunk, on the finish
chunk, after it, in ``x_groq``, or as zeros; a chunk is not a token; the thoughts of a model are called ``reasoning`` or
``reasoning_content``, or both at once; a tool call may come whole, without an index, or with its id on every piece.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from worker_adapters.wire.delta import (
    REFUSED,
    Decoder,
    Delta,
    EngineFault,
    Finish,
    GarbledEvent,
    ToolDelta,
    Usage,
    count,
    items,
    mapping,
    parse_json,
    text,
)
from worker_adapters.wire.openai_faults import NAME, fault_in, fault_of, fault_within
from worker_adapters.wire.sse import Event

DONE = b"[DONE]"

#: finish_reason of the dialect, in lower case -> ours; anything else ends the stream as "stop". Gateways also pass the
#: words of the APIs behind them on.
FINISH = {
    "stop": "stop",
    "length": "length",
    "model_length": "length",  # Mistral: the window was full
    "max_tokens": "length",  # Anthropic, Bedrock, Gemini, Cohere
    "max_output_tokens": "length",
    "model_context_window_exceeded": "length",  # Anthropic
    "tool_calls": "tool_calls",
    "tool_call": "tool_calls",  # Cohere
    "tool_use": "tool_calls",  # Anthropic, Bedrock
    "function_call": "tool_calls",
    "content_filter": "content_filter",
    "content_filtered": "content_filter",  # Bedrock
    "guardrail_intervened": "content_filter",
    "refusal": "content_filter",  # Anthropic
    "sensitive": "content_filter",  # Zhipu
    # Gemini
    "safety": "content_filter",
    "recitation": "content_filter",
    "blocklist": "content_filter",
    "prohibited_content": "content_filter",
    "spii": "content_filter",
}
#: Reasons that are failures: the answer is not whole. vLLM and SGLang say abort when somebody else ended the job.
FAILURES = {
    "error": EngineFault("the engine ended the answer with an error", field="error", began=True),
    "abort": EngineFault("the engine aborted the job", field="abort", began=True),
    "network_error": EngineFault("the engine ended the answer with an error", field="error", began=True),  # Zhipu
    # DeepSeek
    "insufficient_system_resource": EngineFault("the engine ran out of resources", "overloaded_error", began=True),
}
#: What the finish chunk tells beside its reason, and where: kept in ``metrics.engine``.
FACTS = ("id", "model", "system_fingerprint", "service_tier", "metrics", "timings", "provider")
CHOICE_FACTS = ("stop_reason", "matched_stop", "native_finish_reason")
#: No answer has more: each costs the caller's tool loop a turn.
MAX_CALLS = 4096
#: How vLLM writes a token under return_tokens_as_token_ids.
_TOKEN_ID = re.compile(r"token_id:([0-9]{1,18})")
#: The index of the choice that is ours, as servers write it.
_FIRST = (None, 0, "0")


class _Function(msgspec.Struct, gc=False):
    name: str | None = None
    arguments: Any = None


class _ToolCall(msgspec.Struct, gc=False):
    index: int | None = None
    id: Any = None
    function: _Function | None = None


class _Message(msgspec.Struct, gc=False):
    """A choice's ``delta``, or the ``message`` of an answer in one piece."""

    content: Any = None
    reasoning_content: Any = None
    reasoning: Any = None
    refusal: Any = None
    tool_calls: list[_ToolCall] | None = None
    function_call: _Function | None = None


class _Choice(msgspec.Struct, gc=False):
    index: int | None = None
    delta: _Message | None = None
    text: str | None = None
    finish_reason: str | None = None
    logprobs: Any = None
    message: _Message | None = None


class _Chunk(msgspec.Struct, gc=False):
    choices: list[_Choice] | None = None
    usage: Any = None
    error: Any = None


class _Named(msgspec.Struct):
    model: Any = None


_NAMED = msgspec.json.Decoder(_Named)
_CHUNK = msgspec.json.Decoder(_Chunk | None)
_MAPPING = msgspec.json.Decoder(dict[str, Any])


class ChunkDecoder(Decoder):
    """Chunks of chat or text; of several choices only the first, since the contract asks for one.

    An answer in one piece, as some servers give to a request for a stream, is one chunk with a ``message``.

    :param logprobs: were they asked for?
    """

    def __init__(self, *, logprobs: bool = False) -> None:
        self._logprobs = logprobs
        self._calls: dict[str, int] = {}  # id -> which tool call
        self._places: dict[int | None, tuple[int, str]] = {}  # index -> which call came last there, and its id
        self._count = 0
        self._first = True

    def feed(self, event: Event) -> Delta | None:
        data = event.data
        if not data or (data[0] == DONE[0] and data.startswith(DONE)):
            return Delta(done=True) if data else None
        try:
            chunk = _CHUNK.decode(data)
        except REFUSED:
            try:
                chunk = parse_json(_CHUNK, data)
            except GarbledEvent as error:
                return fault_beneath(error, data)
        if chunk is None:
            return None
        choices = chunk.choices
        choice = choices[0] if choices and not choices[0].index else _ours(choices)
        if choice is None or chunk.error:
            return self._aside(event, chunk, choice)
        if self._first:
            self._first = False
            self.model = text(parse_json(_NAMED, data).model)[:NAME] or None
        message = choice.delta or choice.message
        made = Delta(choice.text or "")
        if message is not None:
            self._said(message, made)
        if choice.logprobs and self._logprobs:
            made.logprob, made.token_id = _logprob(choice.logprobs)
        if chunk.usage:
            made.usage = usage_of(chunk.usage)
        if choice.finish_reason:
            self._finish(choice.finish_reason, data, made)
        return made

    def _said(self, message: _Message, made: Delta) -> None:
        content = message.content
        if type(content) is str:
            made.text = content
        elif content:
            made.text, made.reasoning = _parts(content)
        thoughts = message.reasoning_content or message.reasoning  # vLLM 0.12 to 0.15 sends the same text twice
        if thoughts:
            made.reasoning += text(thoughts)
        if message.refusal:
            made.text += text(message.refusal)
            made.facts = {"refusal": True}
        if message.tool_calls:
            made.tools = tuple([self._tool(call) for call in message.tool_calls])
        elif message.function_call is not None:
            made.tools = (_tool_delta(0, None, message.function_call),)

    def _tool(self, call: _ToolCall) -> ToolDelta:
        """Which call a piece belongs to: by its index, else by its id, else (a name begins a call) by its place.

        Gemini gives every call the index 0: there, a name with another id begins a call too.
        """
        call_id, named = text(call.id), bool(call.function and call.function.name)
        which, known_id = self._places.get(call.index, (None, ""))
        if call.index is None:
            which = self._calls.get(call_id, None if call_id or named else which)
        elif named and call_id and known_id not in ("", call_id):
            which = None
        if which is None:
            which, known_id = self._count, ""
            self._count += 1
        if self._count > MAX_CALLS:
            raise GarbledEvent(f"more than {MAX_CALLS} tool calls")
        self._places[call.index] = which, call_id or known_id
        if call_id:
            self._calls[call_id] = which
        return _tool_delta(which, call_id, call.function)

    def _finish(self, reason: str, data: bytes, made: Delta) -> None:
        told = parse_json(_MAPPING, data)
        first = next((each for each in map(mapping, items(told.get("choices"))) if each.get("index") in _FIRST), {})
        word = reason.lower()
        if word in FAILURES:
            said = mapping(first.get("error"))  # OpenRouter
            made.fault = msgspec.structs.replace(fault_of(said), began=True) if said else FAILURES[word]
            return
        made.finish = Finish(FINISH.get(word, "stop"), reason[:NAME])
        made.facts = ((made.facts or {}) | _facts(told) | _named(first, CHOICE_FACTS)) or None
        made.usage = made.usage or usage_of(mapping(told.get("x_groq")).get("usage"))

    def _aside(self, event: Event, chunk: _Chunk, choice: _Choice | None) -> Delta | None:
        """An error, beside which a last text may stand; or a chunk without our choice: usage after the end, an error in
        another form, or nothing to us."""
        if chunk.error:
            made = Delta(fault=fault_in(event.data))
            if choice is not None and choice.delta is not None:
                self._said(choice.delta, made)
            return made
        told = parse_json(_MAPPING, event.data)
        if event.name == "error" or told.get("object") == "error":
            return Delta(fault=fault_within(told) or fault_of(told))
        usage = usage_of(chunk.usage)
        return Delta(usage=usage, facts=_facts(told)) if usage else None


def fault_beneath(error: GarbledEvent, data: bytes) -> Delta:
    """An event of the wrong shape may still say what failed.

    :raises GarbledEvent: it does not.
    """
    fault = fault_in(data)
    if fault is not None:
        return Delta(fault=fault)
    try:
        raise error
    finally:
        del error  # else error -> traceback -> this frame -> error is a cycle


def _ours(choices: list[_Choice] | None) -> _Choice | None:
    """Choice 0, wherever it stands; one without an index is it."""
    return next((choice for choice in choices or () if not choice.index), None)


def _facts(told: dict[str, Any]) -> dict[str, Any]:
    """What a finish or a usage chunk tells for ``metrics.engine``."""
    return _named(told, FACTS) | usage_facts(told.get("usage"))


def _named(told: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: told[name] for name in names if told.get(name) is not None}


def _tool_delta(index: int, call_id: str | None, function: _Function | None) -> ToolDelta:
    function = function or _Function()
    return ToolDelta(index, arguments_of(function.arguments), call_id or None, function.name or None)


def arguments_of(written: Any) -> str:
    """A call's arguments as the text that they are; old Ollama sends an object."""
    if written is None or isinstance(written, str):
        return written or ""
    return msgspec.json.encode(written).decode()


def _parts(content: Any) -> tuple[str, str]:
    """Text and thoughts of a content that is a list of typed parts (Mistral)."""
    said, thoughts = "", ""
    for part in items(content):
        thought = mapping(part).get("thinking")
        thoughts += text(thought) or _parts(thought)[0]
        said += text(part) or text(mapping(part).get("text"))
    return said, thoughts


def _logprob(told: Any) -> tuple[float | None, int | None]:
    """Sum of a chunk's logprobs, and its last token's id where a server tells it.

    Chat: ``{"content": [{"token", "logprob"}]}``; text: ``{"tokens": [...], "token_logprobs": [...]}``.
    """
    told = mapping(told)
    if "token_logprobs" in told:
        numbers, tokens = items(told["token_logprobs"]), items(told.get("tokens"))
    else:
        rows = [mapping(row) for row in items(told.get("content")) or items(told.get("refusal"))]
        numbers = [row.get("logprob") for row in rows]
        tokens = [row.get("id", row.get("token")) for row in rows]
    return logprob_sum(numbers), _token_id(tokens[-1]) if tokens else None


def logprob_sum(numbers: list[Any]) -> float | None:
    """The logprob of several tokens together; None if none is told."""
    known = [float(number) for number in numbers if isinstance(number, float) or count(number) is not None]
    return sum(known) if known else None


def _token_id(token: Any) -> int | None:
    named = _TOKEN_ID.fullmatch(text(token))
    return int(named[1]) if named else count(token)


def usage_of(told: Any) -> Usage | None:
    """Token counts; None where they are absent or all zero, as on every chunk of Ollama's and LiteLLM's text."""
    told = mapping(told)
    into, out = (count(told.get(new, told.get(old))) for new, old in _COUNTS)
    return Usage(into, out) if into or out else None


def usage_facts(told: Any) -> dict[str, Any]:
    """What usage tells beside the counts: cached prompt tokens, reasoning tokens."""
    found = [(inner, count(mapping(mapping(told).get(outer)).get(inner))) for outer, inner in _DETAILS]
    return {name: number for name, number in found if number is not None}


#: Names of chat and text, and of the Responses API.
_COUNTS = (("prompt_tokens", "input_tokens"), ("completion_tokens", "output_tokens"))
_DETAILS = (
    ("prompt_tokens_details", "cached_tokens"),
    ("input_tokens_details", "cached_tokens"),
    ("completion_tokens_details", "reasoning_tokens"),
    ("output_tokens_details", "reasoning_tokens"),
)
