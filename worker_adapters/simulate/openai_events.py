"""Chunks and bodies of chat and text completions, as api.openai.com writes them and as a flavor changes them."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .engine import Piece
from .openai_flavors import Flavor
from .openai_request import DONE, Job, event
from .openai_script import Script, Step

_PADDING = ("x8Kq", "3fP", "Zq", "pLm2Tw", "a")


@dataclass
class Answer:
    """One request at work."""

    job: Job
    scripts: list[Script]
    model: str
    flavor: Flavor
    delay: float
    prompt_delay: float
    id: str = ""
    created: int = field(default_factory=lambda: int(time.time()))
    call_ids: list[str] = field(default_factory=lambda: ["call_" + secrets.token_hex(12) for _ in range(16)])

    def __post_init__(self) -> None:
        short = str(secrets.randbelow(1000))
        form = self.flavor.id if self.job.route == "chat" else self.flavor.id.replace("chatcmpl", "cmpl")
        self.id = form.replace("{short}", short).format(secrets.token_hex(14))

    def steps(self) -> Iterator[tuple[int, Step | None]]:
        """(number, step) of all answers in turn; before each round a (0, None) to wait for it."""
        left = {number: iter(script) for number, script in enumerate(self.scripts)}
        while left:
            yield 0, None
            for number in list(left):
                step = next(left[number])
                if step.finish:
                    del left[number]
                yield number, step

    def usage(self) -> dict[str, Any]:
        """The usage object."""
        made = sum(script.generated for script in self.scripts)
        prompted = sum(self.job.counts)
        usage: dict[str, Any] = {
            "prompt_tokens": prompted,
            "completion_tokens": made,
            "total_tokens": prompted + made,
        }
        if self.flavor.details:
            reasoned = sum(script.reasoned for script in self.scripts)
            usage["prompt_tokens_details"] = {"cached_tokens": 0, "audio_tokens": 0}
            usage["completion_tokens_details"] = {
                "reasoning_tokens": reasoned,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            }
        return {**usage, **self.flavor.usage_extra}

    def reason(self, finish: str | None, step: Step) -> str | None:
        """A finish reason in the server's own words."""
        own = self.flavor.finishes
        if finish == "stop" and step.stop_reason is not None and "word" in own:
            return own["word"]
        if finish == "length" and self.job.limit is None and "window" in own:
            return own["window"]
        return own.get(finish, finish) if finish else finish


def pieces(answer: Answer) -> Iterator[Piece]:
    """The whole stream."""
    flavor, form = answer.flavor, _Form(answer)
    for _ in range(2 if flavor.comment else 0):
        yield Piece(flavor.comment)
    if flavor.prelude is not None:
        yield Piece(event(flavor.prelude))
    wait = answer.prompt_delay + answer.delay
    opened: set[int] = set()
    for number, step in answer.steps():
        if step is None:
            if wait > 0:
                yield Piece(b"", delay=wait)
            wait = answer.delay
            continue
        if number not in opened:
            yield from form.opening(number, step)
            opened.add(number)
        said = form.said(number, step)
        if said is not None:
            with_text = flavor.finish_with_text and step.finish is not None
            data = form.chunk(number, said, step if with_text else None, step)
            yield Piece(data, step.tokens or bool(step.name), finish=with_text)
            if with_text:
                continue
        if step.finish:
            if flavor.whole_calls == "apart":
                yield from form.calls(number)
            if flavor.interlude is not None:
                yield Piece(event(flavor.interlude))
            yield Piece(form.chunk(number, form.nothing, step, None), finish=True)
    yield from form.ending()
    yield Piece(DONE)


class _Form:
    """The chunks of one answer."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.flavor = answer.flavor
        self.chat = answer.job.route == "chat"
        self.nothing: dict[str, Any] = {} if self.chat else {"text": ""}
        self.asked = answer.job.stream_option("include_usage")
        self.thinking = False
        self.sent = 0
        self._calls: dict[int, tuple[str, str]] = {}

    def opening(self, number: int, step: Step) -> Iterator[Piece]:
        """The role, where it comes in a chunk of its own."""
        if not self.chat or self.flavor.role in ("merged", "every"):
            return
        delta: dict[str, Any] = {"role": "assistant", "content": None if step.kind == "refusal" else ""}
        if self.flavor.reasoning is None and step.kind == "call":
            return  # api.openai.com sends the role with the first call
        if step.kind == "refusal":
            delta["refusal"] = ""
        elif self.asked and self.flavor.reasoning is None:
            delta["refusal"] = None
        yield Piece(self.chunk(number, delta, None, None))

    def said(self, number: int, step: Step) -> dict[str, Any] | None:
        """The delta of a step (its `text` in a completion); None if it has nothing to say."""
        if not self.chat:
            return {"text": step.text} if step.text else None
        delta = self._delta(step)
        if delta is None:
            return None
        if self.flavor.reasoning is None and step.kind == "call" and step.name and step.call == 0:
            return {"role": "assistant", "content": None, **delta}
        return self._dressed(delta)

    def calls(self, number: int) -> Iterator[Piece]:
        """The whole calls in a chunk of their own."""
        if self._calls:
            yield Piece(self.chunk(number, self._dressed(self._gathered()), None, None), 1)

    def _dressed(self, delta: dict[str, Any]) -> dict[str, Any]:
        """A delta with the role and the empty content that the flavor puts beside it."""
        if self.flavor.blank_content:
            delta = {"content": "", **delta}
        if self.flavor.role == "every" or (self.flavor.role == "merged" and self.sent == 0):
            return {"role": "assistant", **delta}
        return delta

    def _delta(self, step: Step) -> dict[str, Any] | None:
        flavor = self.flavor
        if step.kind == "call":
            return self._call(step)
        if step.kind == "refusal":
            return {"refusal": step.text} if step.text else None
        if step.kind == "reasoning":
            if flavor.reasoning == "think":
                text, self.thinking = ("" if self.thinking else "<think>") + step.text, True
                return {"content": text}
            if flavor.reasoning == "content":
                return {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": step.text}]}]}
            return None if flavor.reasoning is None else {flavor.reasoning: step.text}
        text = step.text
        if self.thinking:
            text, self.thinking = "</think>" + text, False
        return {"content": text} if text else None

    def _call(self, step: Step) -> dict[str, Any] | None:
        flavor, name = self.flavor, self.answer.call_ids[step.call % 16]
        index = {"index": step.call} if flavor.call_index else {}
        if flavor.whole_calls:
            if step.name:
                self._calls[step.call] = (step.name, "")
                return None
            tool, arguments = self._calls[step.call]
            self._calls[step.call] = (tool, arguments + step.text)
            return None
        if step.name:
            function = {"name": step.name, "arguments": ""}
            return {"tool_calls": [{**index, "id": name, "type": "function", "function": function}]}
        again = {"id": name, "type": "function"} if flavor.call_id_repeated else {}
        return {"tool_calls": [{**index, **again, "function": {"arguments": step.text}}]}

    def _gathered(self) -> dict[str, Any]:
        """All calls in one delta, for servers that send calls whole."""
        calls = []
        for number, (name, arguments) in sorted(self._calls.items()):
            index = {"index": number} if self.flavor.call_index else {}
            function = {"name": name, "arguments": arguments}
            calls.append({**index, "id": self.answer.call_ids[number % 16], "type": "function", "function": function})
        self._calls.clear()
        return {"tool_calls": calls}

    def chunk(self, number: int, delta: Mapping[str, Any], ended: Step | None, step: Step | None) -> bytes:
        """One chunk; `ended` is the step whose finish reason it carries, `step` the one whose text."""
        flavor, answer = self.flavor, self.answer
        if ended is not None and self._calls:
            delta = {**delta, **self._gathered()}
        choice: dict[str, Any] = {"index": number}
        choice |= {"delta": delta} if self.chat else delta
        choice["logprobs"] = self._logprobs(step)
        if ended is not None:
            choice["finish_reason"] = answer.reason(ended.finish, ended)
        elif flavor.running != "absent":
            choice["finish_reason"] = "" if flavor.running == "blank" else None
        if not flavor.logprobs_null and choice["logprobs"] is None:
            del choice["logprobs"]
        choice |= flavor.choice
        if step is not None and step.text:
            choice |= flavor.spoken
        if flavor.stop_key is not None and ended is not None:
            choice[flavor.stop_key] = ended.stop_reason
        more: dict[str, Any] = {}
        if self.asked and flavor.usage_null:
            more["usage"] = None
        if not self.chat and (flavor.usage_zero_text == "always" or (self.asked and flavor.usage_zero_text)):
            more["usage"] = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
        if self.sent == 0:
            more |= flavor.first
        if ended is not None:
            more |= self._last()
        if self.asked and flavor.reasoning is None and self.chat and "service_tier" in flavor.head:
            more["obfuscation"] = _PADDING[self.sent % len(_PADDING)]
        self.sent += 1
        return event(self.frame([choice], more))

    def _last(self) -> dict[str, Any]:
        last = dict(self.flavor.last)
        if self.flavor.usage == "groq":
            last["x_groq"] = {**last.get("x_groq", {}), "usage": self.answer.usage()}
        return last

    def frame(self, choices: Sequence[Mapping[str, Any]], more: Mapping[str, Any]) -> dict[str, Any]:
        """A chunk around its choices."""
        answer, flavor = self.answer, self.flavor
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        frame = {"id": answer.id, "object": kind, "created": answer.created, "model": answer.model, **flavor.head}
        if flavor.fingerprint is not None:
            frame["system_fingerprint"] = flavor.fingerprint.replace("{model}", answer.model)
        return {**frame, "choices": choices, **more}

    def ending(self) -> Iterator[Piece]:
        """The usage, where it comes behind the finish."""
        how = self.flavor.usage
        if how == "groq" or not (self.asked or how == "always"):
            return
        if not self.chat and self.flavor.usage_zero_text == "always":
            return
        choices = [{"index": 0, "delta": {}} if self.chat else {"index": 0}] if how == "choice" else []
        yield Piece(event(self.frame(choices, {"usage": self.answer.usage()})))

    def _logprobs(self, step: Step | None) -> dict[str, Any] | None:
        wanted = self.answer.job.logprobs
        if wanted is None or step is None or not step.tokens:
            return None
        return logprobs([step], wanted, self.chat)


def logprobs(steps: Sequence[Step], wanted: int, chat: bool) -> dict[str, Any]:
    """The logprobs object of some tokens; the model is certain of each."""
    shown = [step.token if isinstance(step.token, str) else step.text for step in steps]
    if not chat:
        offsets = [sum(map(len, shown[:at])) for at in range(len(shown))]
        tops: list[dict[str, float]] = [{token: 0.0} for token in shown]
        return {"tokens": shown, "token_logprobs": [0.0] * len(shown), "top_logprobs": tops, "text_offset": offsets}
    entries = []
    for token in shown:
        own: dict[str, Any] = {"token": token, "logprob": 0.0, "bytes": list(token.encode())}
        entries.append({**own, "top_logprobs": [dict(own)] if wanted else []})
    return {"content": entries, "refusal": None}


def whole(answer: Answer, steps: Sequence[Sequence[Step]]) -> dict[str, Any]:
    """The body of an answer without a stream; `steps` are those of each choice."""
    chat = answer.job.route == "chat"
    choices = []
    for number, said in enumerate(steps):
        choice: dict[str, Any] = {"index": number}
        choice |= {"message": _message(answer, said)} if chat else {"text": "".join(step.text for step in said)}
        wanted = answer.job.logprobs
        listed = [step for step in said if step.tokens and step.token]
        choice["logprobs"] = None if wanted is None else logprobs(listed, wanted, chat)
        choice["finish_reason"] = answer.reason(said[-1].finish, said[-1])
        choice |= answer.flavor.choice
        if answer.flavor.stop_key is not None:
            choice[answer.flavor.stop_key] = said[-1].stop_reason
        choices.append(choice)
    kind = "chat.completion" if chat else "text_completion"
    body = {"id": answer.id, "object": kind, "created": answer.created, "model": answer.model, "choices": choices}
    body["usage"] = answer.usage()
    body |= answer.flavor.head
    if answer.flavor.fingerprint is not None:
        body["system_fingerprint"] = answer.flavor.fingerprint.replace("{model}", answer.model)
    if answer.flavor.usage == "groq":
        body |= answer.flavor.first
    return body


def _message(answer: Answer, steps: Sequence[Step]) -> dict[str, Any]:
    flavor, job = answer.flavor, answer.job
    form = _Form(Answer(job, answer.scripts, answer.model, flavor, 0.0, 0.0, call_ids=answer.call_ids))
    text = "".join(step.text for step in steps if step.kind == "text")
    refusal = "".join(step.text for step in steps if step.kind == "refusal") or None
    reasoning = "".join(step.text for step in steps if step.kind == "reasoning")
    for step in steps:
        if step.kind == "call" and step.name:
            form._calls[step.call] = (step.name, "")
        elif step.kind == "call":
            name, arguments = form._calls[step.call]
            form._calls[step.call] = (name, arguments + step.text)
    called = bool(form._calls)
    content: Any = text
    if called or refusal is not None:
        content = "" if flavor.blank_content else None
    if reasoning and flavor.reasoning == "think":
        content = f"<think>{reasoning}</think>{text}"
    elif reasoning and flavor.reasoning == "content":
        thought = {"type": "thinking", "thinking": [{"type": "text", "text": reasoning}]}
        content = [thought, {"type": "text", "text": text}]
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": refusal, "annotations": []}
    if reasoning and flavor.reasoning not in (None, "think", "content"):
        message[flavor.reasoning] = reasoning
    if called:
        calls = form._gathered()["tool_calls"]
        message["tool_calls"] = [{key: call[key] for key in call if key != "index"} for call in calls]
    return message
