"""Answers of vLLM's generation endpoints, event by event, as recorded with vLLM 0.32.0."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from .engine import Piece
from .openai_request import DONE, Job, event
from .openai_script import Script, Step, token_id
from .recital import SENTENCE

_UNLIKELY = -63.979530334472656  # what the recorded model gives every other token


@dataclass
class Run:
    """One request at work. `aborted` holds the numbers of the answers to end; `trouble` is asked after every wait and
    has the message of an error that ends the request, `complain` makes it an event."""

    job: Job
    scripts: list[Script]
    id: str
    model: str
    fingerprint: str
    delay: float
    prompt_delay: float
    trouble: Callable[[], str | None]
    complain: Callable[[str], bytes]
    force_usage: bool = False
    metrics: bool = False
    old: bool = False
    details: bool = False
    created: int = field(default_factory=lambda: int(time.time()))
    began: float = field(default_factory=time.perf_counter)
    first: float = 0.0
    aborted: set[int] = field(default_factory=set)
    waker: int = -1

    @property
    def prompted(self) -> int:
        """Prompt tokens of the request."""
        return sum(self.job.counts)

    @property
    def generated(self) -> int:
        """Tokens generated so far, those of all answers."""
        return sum(script.generated for script in self.scripts)

    def usage(self, generated: int | None = None) -> dict[str, int]:
        """The usage object of a stream."""
        made = self.generated if generated is None else generated
        return {"prompt_tokens": self.prompted, "total_tokens": self.prompted + made, "completion_tokens": made}

    def timing(self) -> dict[str, float]:
        """What --enable-per-request-metrics adds to the last chunk."""
        wait = (self.first or time.perf_counter()) - self.began
        spent = time.perf_counter() - (self.first or time.perf_counter())
        return {
            "time_to_first_token_ms": wait * 1000,
            "generation_time_ms": spent * 1000,
            "queue_time_ms": 0.0125,
            "mean_itl_ms": spent * 1000 / max(1, self.generated - 1),
            "tokens_per_second": self.generated / max(1e-9, wait + spent),
        }

    def tally(self) -> dict[str, float]:
        """What the request adds to the server's counters."""
        finishes = {script.finish for script in self.scripts}
        counted: dict[str, float] = {"generation": self.generated, "prompt": self.prompted if self.first else 0}
        if not self.first or finishes & {None, "abort"}:
            return counted  # recorded: an aborted request enters no counter of requests and no histogram
        now = time.perf_counter()
        return {
            **counted,
            "length" if "length" in finishes else "stop": 1,
            "finished": 1,
            "ttft": self.first - self.began,
            "decode": now - self.first,
            "e2e": now - self.began,
            "steps": max(0, self.generated - 1),
            "finished_prompt": self.prompted,
            "finished_generation": self.generated,
        }

    def steps(self) -> Iterator[tuple[int, Step | None]]:
        """(number, step) of all answers in turn; before each round a (0, None) to wait for it. Aborts end answers."""
        left = {number: iter(script) for number, script in enumerate(self.scripts)}
        while left:
            yield 0, None
            self.first = self.first or time.perf_counter()
            for number in list(left):
                step = self.scripts[number].abort() if number in self.aborted else next(left[number])
                if step.finish:
                    del left[number]
                yield number, step


def pieces(run: Run) -> Iterator[Piece]:
    """The whole stream of /v1/completions or /v1/chat/completions."""
    form = _Chat(run) if run.job.route == "chat" else _Text(run)
    yield from form.opening()
    wait = run.prompt_delay + run.delay
    for number, step in run.steps():
        if step is None:
            if wait > 0:
                yield Piece(b"", delay=wait)
            wait = run.delay
            trouble = run.trouble()
            if trouble is not None:
                yield Piece(run.complain(trouble))
                yield Piece(DONE)
                return
            continue
        data = form.chunk(number, step)
        yield Piece(data, step.tokens or bool(step.name), finish=step.finish is not None)
    if form.wants_usage:
        last = form.frame([], {"usage": run.usage(), "system_fingerprint": run.fingerprint})
        if run.metrics:
            last["metrics"] = run.timing()
        yield Piece(event(last))
    yield Piece(DONE)


class _Form:
    """One endpoint's chunks."""

    kind = ""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.wants_usage = run.force_usage or run.job.stream_option("include_usage")
        self.continuous = run.force_usage or (self.wants_usage and run.job.stream_option("continuous_usage_stats"))
        self.offsets = [0] * len(run.scripts)

    def opening(self) -> Iterator[Piece]:
        """What comes before the first token."""
        return iter(())

    def frame(self, choices: list[dict[str, Any]], more: dict[str, Any]) -> dict[str, Any]:
        """A chunk around its choices."""
        head = {"id": self.run.id, "object": self.kind, "created": self.run.created, "model": self.run.model}
        return {**head, "choices": choices, **more}

    def chunk(self, number: int, step: Step) -> bytes:
        """The chunk of one step."""
        more: dict[str, Any] = {}
        if self.continuous:
            more["usage"] = self.stats()
        elif self.run.old and self.wants_usage:
            more["usage"] = None
        if step.finish and not self.wants_usage:
            more["system_fingerprint"] = self.run.fingerprint
        return event(self.frame([self.choice(number, step)], more))

    def stats(self) -> dict[str, Any]:
        """The usage of a chunk."""
        return dict(self.run.usage())

    def choice(self, number: int, step: Step) -> dict[str, Any]:
        """The choice of a step's chunk."""
        raise NotImplementedError


class _Text(_Form):
    kind = "text_completion"

    def choice(self, number: int, step: Step) -> dict[str, Any]:
        run = self.run
        wants_ids = run.job.flag("return_token_ids")
        logprobs = None
        if run.job.logprobs is not None and step.tokens:
            logprobs = text_logprobs([step], run.job.logprobs, self.offsets[number])
            self.offsets[number] += len(show(step))
        prompt_ids = None
        if wants_ids and run.scripts[number].generated == 1:
            words = run.job.prompts[number // run.job.n].split()
            prompt_ids = [token_id(" " + word) for word in words]
        return {
            "index": number,
            "text": step.text,
            "logprobs": logprobs,
            "finish_reason": step.finish,
            "stop_reason": step.stop_reason,
            "prompt_token_ids": prompt_ids,
            "token_ids": [token_id(step.token)] if wants_ids and step.tokens else None,
        }


class _Chat(_Form):
    kind = "chat.completion.chunk"

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self.call_ids = [call_id() for _ in range(16)]

    def opening(self) -> Iterator[Piece]:
        """The role chunk of each answer; it comes as soon as the request runs."""
        yield Piece(b"", delay=self.run.prompt_delay)
        self.run.prompt_delay = 0.0
        for number in range(len(self.run.scripts)):
            delta = {"role": "assistant", "content": ""}
            choice = {"index": number, "delta": delta, "logprobs": None, "finish_reason": None}
            more: dict[str, Any] = {"usage": self.stats()} if self.continuous else {}
            yield Piece(event(self.frame([choice], {**more, "prompt_token_ids": None, "prompt_text": None})))

    def stats(self) -> dict[str, Any]:
        return {**self.run.usage(), "completion_tokens_details": None}

    def choice(self, number: int, step: Step) -> dict[str, Any]:
        run = self.run
        logprobs = None
        if run.job.logprobs is not None and step.tokens:
            logprobs = {"content": [chat_logprob(step, run.job.logprobs)]}
        choice = {"index": number, "delta": self.delta(step), "logprobs": logprobs, "finish_reason": step.finish}
        if step.finish:
            choice["stop_reason"] = step.stop_reason
        wants_ids = run.job.flag("return_token_ids") and step.tokens
        return {**choice, "token_ids": [token_id(step.token)] if wants_ids else None}

    def delta(self, step: Step) -> dict[str, Any]:
        """The delta of a step."""
        if step.kind == "reasoning":
            return {"reasoning_content" if self.run.old else "reasoning": step.text}
        if step.kind == "text":
            return {"content": step.text}
        if step.name:
            function = {"name": step.name, "arguments": ""}
            call = {"id": self.call_ids[step.call % 16], "type": "function", "index": step.call, "function": function}
            return {"tool_calls": [call]}
        return {"tool_calls": [{"index": step.call, "function": {"arguments": step.text}}]}


# -- without a stream --------------------------------------------------------------------------------------------------


def whole(run: Run, steps: Sequence[Sequence[Step]]) -> dict[str, Any]:
    """The body of an answer without a stream; `steps` are those of each answer."""
    chat = run.job.route == "chat"
    choice = _chat_choice if chat else _text_choice
    choices = [choice(run, number, said) for number, said in enumerate(steps)]
    empty = {"cached_tokens": 0, "created_cache_tokens": None, "multimodal_tokens": None}
    details = {"prompt_tokens_details": empty if run.details else None, "completion_tokens_details": None}
    body = {
        "id": run.id,
        "object": "chat.completion" if chat else "text_completion",
        "created": run.created,
        "model": run.model,
        "choices": choices,
        "service_tier": None,
        "system_fingerprint": run.fingerprint,
        "usage": {**run.usage(), **details},
    }
    if chat:
        body |= {"prompt_logprobs": None, "prompt_token_ids": None, "prompt_text": None}
    timing = {**run.timing(), "speculative_decoding": None} if run.metrics else None
    return {**body, "kv_transfer_params": None, "ec_transfer_params": None, "metrics": timing}


def _text_choice(run: Run, number: int, steps: Sequence[Step]) -> dict[str, Any]:
    wants_ids = run.job.flag("return_token_ids")
    said = [step for step in steps if step.tokens]
    logprobs = text_logprobs(said, run.job.logprobs, 0) if run.job.logprobs is not None else None
    return {
        "index": number,
        "text": "".join(step.text for step in steps),
        "logprobs": logprobs,
        "finish_reason": steps[-1].finish,
        "stop_reason": steps[-1].stop_reason,
        "token_ids": run.scripts[number].ids if wants_ids else None,
        "prompt_logprobs": None,
        "prompt_token_ids": None,
        "routed_experts": None,
    }


def _chat_choice(run: Run, number: int, steps: Sequence[Step]) -> dict[str, Any]:
    calls: dict[int, dict[str, Any]] = {}
    for step in steps:
        if step.kind == "call" and step.name:
            calls[step.call] = {"name": step.name, "arguments": ""}
        elif step.kind == "call":
            calls[step.call]["arguments"] += step.text
    reasoning = "".join(step.text for step in steps if step.kind == "reasoning") or None
    message: dict[str, Any] = {
        "role": "assistant",
        "content": None if calls else "".join(step.text for step in steps if step.kind == "text"),
        "refusal": None,
        "annotations": None,
        "audio": None,
        "function_call": None,
    }
    if calls:
        made = [{"id": call_id(), "type": "function", "function": calls[key]} for key in sorted(calls)]
        message["tool_calls"] = made
    message["reasoning_content" if run.old else "reasoning"] = reasoning
    said = [step for step in steps if step.tokens]
    logprobs = None
    if run.job.logprobs is not None:
        logprobs = {"content": [chat_logprob(step, run.job.logprobs) for step in said]}
    return {
        "index": number,
        "message": message,
        "logprobs": logprobs,
        "finish_reason": steps[-1].finish,
        "stop_reason": steps[-1].stop_reason,
        "token_ids": run.scripts[number].ids if run.job.flag("return_token_ids") else None,
        "routed_experts": None,
    }


def call_id() -> str:
    """A tool call's id."""
    return "chatcmpl-tool-" + secrets.token_hex(8)


# -- logprobs: the model is certain ------------------------------------------------------------------------------------


def show(step: Step) -> str:
    """A token as logprobs show it; bytes of a half character show as nothing."""
    return step.token if isinstance(step.token, str) else step.text


def _others(token: str, count: int) -> list[str]:
    ranked = [" oak", *(word for word in SENTENCE if word != " oak")]
    return [word for word in ranked if word != token][: max(0, count - 1)]


def chat_logprob(step: Step, count: int) -> dict[str, Any]:
    """A token's entry in a chat's logprobs."""
    token = show(step)
    listed = [(token, 0.0), *((word, _UNLIKELY) for word in _others(token, count))][:count]
    return {
        "token": token,
        "logprob": 0.0,
        "bytes": list(token.encode()),
        "top_logprobs": [{"token": text, "logprob": value, "bytes": list(text.encode())} for text, value in listed],
    }


def text_logprobs(steps: Sequence[Step], count: int, offset: int) -> dict[str, Any]:
    """The logprobs object of a completion."""
    tokens = [show(step) for step in steps]
    offsets = [offset + sum(map(len, tokens[:at])) for at in range(len(tokens))]
    tops = [{token: 0.0, **dict.fromkeys(_others(token, count), _UNLIKELY)} for token in tokens]
    return {"text_offset": offsets, "token_logprobs": [0.0] * len(tokens), "tokens": tokens, "top_logprobs": tops}
