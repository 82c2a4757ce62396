"""TGI's OpenAI-style answers: /v1/chat/completions and /v1/completions."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any

from .openai_request import dump
from .openai_schema import instance
from .openai_schema import pieces as json_pieces
from .openai_script import ToolCall
from .tgi_events import Run, top_tokens
from .tgi_facts import Facts, Version
from .tgi_request import Order, Refusal
from .tgi_script import Spoken, Step, token_of

_REASONS = {"eos_token": "stop"}
APOLOGY = "notify_error"


class _OpenAI:
    """What both endpoints share."""

    def __init__(self, order: Order, runs: Sequence[Run], facts: Facts) -> None:
        self.order = order
        self.runs = runs
        self.facts = facts
        self.model = (order.model if order.route == "chat" else None) or facts.model

    def head(self, kind: str) -> dict[str, Any]:
        """The first keys of a body or a chunk. Up to 2.1.x the kind stood second."""
        told = {"object": kind, "id": ""} if self.facts.version.since(2, 2) else {"id": "", "object": kind}
        return {**told, "created": int(time.time())}

    def usage(self, runs: Sequence[Run]) -> dict[str, int]:
        """The usage of these answers."""
        prompted = sum(run.job.prompted for run in runs)
        generated = sum(run.script.generated for run in runs)
        return {
            "prompt_tokens": prompted,
            "completion_tokens": generated,
            "total_tokens": prompted + generated,
        }

    def reason(self, finish: str | None) -> str | None:
        """A finish reason as the chat says it: "stop" for an end token only since 2.3.0."""
        if finish is None or not self.facts.version.since(2, 3):
            return finish
        return _REASONS.get(finish, finish)

    def names(self) -> dict[str, Any]:
        """Model and fingerprint."""
        return {"model": self.model, "system_fingerprint": self.facts.fingerprint}


class Chat(_OpenAI):
    """/v1/chat/completions. With `calls` the text is a tool call in JSON, and is told piece by piece as one.

    Up to 3.1.1 the pieces are the tokens as they are, from 2.4.0 on held back until they name a function. From 2.4.0 to
    3.1.1 a text in place of a call stood in JSON, too: its stream ends where its string does, without a reason.
    """

    def __init__(self, order: Order, runs: Sequence[Run], facts: Facts, *, calls: bool = False) -> None:
        super().__init__(order, runs, facts)
        version = facts.version
        self._raw = calls and not version.since(3, 2)
        self._held: list[Step] | None = [] if version.since(2, 4) else None
        self._abrupt = not calls and may_call(order.body) and version.since(2, 4) and not version.since(3, 2)
        self._state = "buffering" if calls else "content"
        self._said = ""
        self._call_id = _next_call_id(order)

    def events(self, number: int, step: Step) -> Iterator[bytes]:
        """The chunk of a token, if it has one, and the usage behind the last (up to 3.1.1 in it)."""
        counts = step.finish and self.order.wants_usage and self.facts.version.since(2, 3)
        inside = not self.facts.version.since(3, 2)
        if self._abrupt:
            if step.finish == "eos_token":
                return
            step = step._replace(text=escaped(step.text))
        for each in self._held_back(step) if self._raw else [step]:
            delta = self._call_delta(None, each.text) if self._raw else self._delta(each)
            if delta is not None:
                usage = self.usage(self.runs) if counts and inside and each is step else None
                yield self._chunk([self._choice(each, delta)], usage)
        if counts and not inside:
            yield self._chunk([], self.usage(self.runs))

    def _held_back(self, step: Step) -> list[Step]:
        """The tokens of a call that may be told now."""
        if self._held is None:
            return [step]
        self._held.append(step)
        if (
            re.search(r'\{"function":\{"_name":"[^"]+"', "".join(each.text for each in self._held).replace(" ", ""))
            is None
        ):
            return []
        held, self._held = self._held, None
        return held

    def _chunk(self, choices: list[dict[str, Any]], usage: dict[str, int] | None = None) -> bytes:
        kind = "chat.completion.chunk" if self.facts.version.since(2, 1) else "text_completion"
        told = {**self.head(kind), **self.names(), "choices": choices}
        if self.facts.version.since(2, 3):
            told["usage"] = usage
        return self.facts.version.event(told)

    def _choice(self, step: Step, delta: dict[str, Any]) -> dict[str, Any]:
        logprobs: Any = {"content": [self._logprob(step)]} if self.order.body.get("logprobs") else None
        if logprobs and not self.facts.version.since(1, 4, 1):
            logprobs = step.token.logprob
        index = 0 if self.facts.version.since(1, 4, 4) else self.runs[0].script.generated
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": self.reason(step.finish)}

    def _logprob(self, step: Step) -> dict[str, Any]:
        wanted = self.order.body.get("top_logprobs") or 0
        others = [{"token": each["text"], "logprob": each["logprob"]} for each in top_tokens(step, wanted)]
        return {"token": step.text, "logprob": step.token.logprob, "top_logprobs": others}

    def _delta(self, step: Step) -> dict[str, Any] | None:
        if self._state == "content":
            hidden = step.token.special and self.facts.version.since(2, 0, 2)
            return {"role": "assistant", "content": "" if hidden else step.text}
        self._said += step.text
        if self._state == "buffering":
            name = _call(self._said.rstrip(" \t\r\n,}") + "}}")
            if name is None:
                return None
            self._state = "tool"
            return self._call_delta(str(name["_name"]), "{")
        text = step.text
        if _call(self._said) is not None:
            self._state = "buffering"  # whatever comes now is told no more, its finish reason neither
            text = text.rstrip().removesuffix("}")
        return self._call_delta(None, text)

    def _call_delta(self, name: str | None, arguments: str) -> dict[str, Any]:
        function = {"name": name, "arguments": arguments}
        if not self.facts.version.since(3, 2):
            call = {"index": 0, "id": "", "type": "function", "function": function}
            return {"role": "assistant", "tool_calls": call}
        call = {"index": 0, "id": self._call_id, "type": "function", "function": function}
        return {"role": "assistant", "tool_calls": [call]}

    def whole(self, said: Sequence[Sequence[Step]]) -> dict[str, Any]:
        """The body without a stream. Raises Refusal for a tool call that is no JSON."""
        run = self.runs[0]
        message: dict[str, Any] = {"role": "assistant"}
        if self._state == "content":
            message["content"] = run.script.text
        else:
            call = _tool_call(run.script.text)
            if call["function"]["name"] == APOLOGY and self.facts.version.since(2, 3):
                message["content"] = json.loads(call["function"]["arguments"])["error"]
            else:
                message["tool_calls"] = [call]
        logprobs = {"content": [self._logprob(step) for step in said[0]]} if self.order.body.get("logprobs") else None
        choice = {"index": 0, "message": message, "logprobs": logprobs}
        choice["finish_reason"] = self.reason(run.script.finish)
        kind = "chat.completion" if self.facts.version.since(2, 1) else "text_completion"
        told = {**self.head(kind), **self.names(), "choices": [choice]}
        return {**told, "usage": self.usage(self.runs)}


class Completions(_OpenAI):
    """/v1/completions. Its stream says `eos_token` where the whole body says `stop`."""

    def events(self, number: int, step: Step) -> Iterator[bytes]:
        """The chunk of a token; the last of each prompt has its usage."""
        run = self.runs[number]
        choice = {"index": run.number, "text": step.text, "logprobs": None, "finish_reason": step.finish or ""}
        told = self.head("text_completion")
        if step.finish:
            told |= {**self.names(), "choices": [choice], "usage": self.usage([run])}
        else:
            told |= {"choices": [choice], **self.names()}
        yield self.facts.version.event(told)

    def whole(self, said: Sequence[Sequence[Step]]) -> dict[str, Any]:
        """The body without a stream: what was finished first comes first."""
        order = sorted(range(len(self.runs)), key=lambda number: len(said[number]))
        choices = []
        for run in (self.runs[number] for number in order):
            choice = {"index": run.number, "text": run.script.text, "logprobs": None}
            choices.append({**choice, "finish_reason": self.reason(run.script.finish)})
        told = {**self.head("text_completion"), **self.names(), "choices": choices}
        return {**told, "usage": self.usage(self.runs)}


def may_call(body: dict[str, Any]) -> bool:
    """True for a chat with tools that the model may call or not."""
    return bool(body.get("tools")) and (body.get("tool_choice") or "auto") == "auto"


def called(body: dict[str, Any], scripted: Sequence[ToolCall]) -> ToolCall | None:
    """The tool call that answers a chat; None for a text. One that a request insists on is made up if need be."""
    tools = {tool["function"]["name"]: tool["function"] for tool in body.get("tools") or ()}
    choice = body.get("tool_choice") or "auto"
    if not tools or choice == "none":
        return None
    calls = [call for call in scripted if call[0] in tools]
    if choice == "auto":
        answered = body["messages"] and body["messages"][-1]["role"] == "tool"
        return calls[0] if calls and not answered else None
    name = choice["function"]["name"] if isinstance(choice, dict) else choice
    name = next(iter([call[0] for call in calls] or tools)) if name == "required" else name
    parameters = tools[name].get("parameters") or tools[name].get("arguments") or {"type": "object"}
    return next((call for call in calls if call[0] == name), (name, json_pieces(instance(parameters))))


def call_pieces(name: str, pieces: Sequence[str], *, named: bool = True) -> tuple[str, ...]:
    """What a model says to call a tool: the name among the arguments, all in one JSON object. Up to 2.0.0 no name."""
    arguments = "".join(pieces).strip()
    inner = [*pieces]
    inner[0] = inner[0].lstrip().removeprefix("{")
    inner[-1] = inner[-1] + "}"
    comma = "" if json.loads(arguments) == {} else ", "
    name_too = f'"_name": {json.dumps(name)}{comma}' if named else ""
    return (f'{{"function": {{{name_too}', *inner)


def apologises(body: dict[str, Any], version: Version) -> bool:
    """True if a model that calls no tool says so by a call of another: from 2.0.1 to 2.3.1."""
    return may_call(body) and version.since(2, 0, 1) and not version.since(2, 4)


def apology_pieces(tokens: Sequence[Spoken]) -> tuple[Spoken, ...]:
    """Its text as the reason of that call."""
    said = [token_of(spoken) for spoken in tokens]
    inner = [each.text if isinstance(each.text, bytes) else escaped(each.text) for each in said]
    return (f'{{"function": {{"_name": "{APOLOGY}", "error": "', *inner, '"}}')


def escaped(text: str) -> str:
    """A text as it stands in a string of JSON."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _call(text: str) -> dict[str, Any] | None:
    try:
        function = json.loads(text)["function"]
    except (ValueError, KeyError, TypeError):
        return None
    return function if isinstance(function, dict) and "_name" in function else None


def _tool_call(text: str) -> dict[str, Any]:
    function = _call(text)
    if function is None:
        raise Refusal(f"Tool error: Failed to parse generated text: {json.dumps(text)}", "tool_error")
    name = function.pop("_name")
    told = {"description": None, "name": name, "arguments": dump(function).decode()}
    return {"id": "0", "type": "function", "function": told}


def _next_call_id(order: Order) -> str:
    ids = [
        int(call["id"])
        for message in order.body.get("messages") or ()
        for call in message.get("tool_calls") or ()
        if str(call.get("id", "")).isdigit()
    ]
    return str(max(ids, default=-1) + 1)
