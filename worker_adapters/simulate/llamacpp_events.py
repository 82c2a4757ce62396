"""Answers of llama.cpp's generation endpoints, event by event (build 'b0-unknown', xllamacpp 2026.10.11549)."""

from __future__ import annotations

import secrets
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from .engine import Piece
from .llamacpp_facts import dump
from .llamacpp_request import Job
from .recital import SENTENCE, Recital, Step

BATCH = 2048  # prompt tokens a batch: one prompt_progress event each
END_TOKEN = 2
_WORD_IDS = {word: 259 + number for number, word in enumerate(SENTENCE)}
_IMPOSSIBLE = -3.4028234663852886e38  # the engine's -FLT_MAX for a token that cannot come
DONE = b"data: [DONE]\n\n"

ToolCall = tuple[str, Sequence[str]]


@lru_cache(maxsize=65536)
def token_id(text: str) -> int:
    """The id of a token: the recorded vocabulary's where it has one (words from 259, ASCII bytes from 3)."""
    if text in _WORD_IDS:
        return _WORD_IDS[text]
    if len(text) == 1 and text.isascii():
        return ord(text) + 3
    return 283 + zlib.crc32(text.encode()) % 30000


def _others(count: int) -> list[dict[str, Any]]:
    """The tokens listed behind the certain one, in the recorded order: <s>, byte tokens, <unk> last."""
    entries: list[dict[str, Any]] = [{"id": 1, "token": "", "bytes": []}]
    entries += [{"id": 3 + byte, "token": chr(byte), "bytes": [byte]} for byte in range(min(count, 0x80))]
    return [*entries[: max(0, count - 1)], {"id": 0, "token": "", "bytes": []}][:count]


@dataclass
class Run:
    """One generation: what to say, where, with which waits (seconds), and its clocks."""

    job: Job
    recital: Recital
    slot: int
    cached: int
    model: str
    build_info: str
    delay: float
    prompt_delay: float
    reasoning: Sequence[str] = ()
    tool_call: ToolCall | None = None
    began: float = field(default_factory=time.perf_counter)
    prompted: float = 0.0
    extra_tokens: int = 0
    id: str = field(default_factory=lambda: "chatcmpl-" + secrets.token_hex(16))
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def predicted(self) -> int:
        """Tokens generated so far, end token, reasoning and tool-call tokens included."""
        return self.recital.predicted + self.extra_tokens

    def timings(self) -> dict[str, Any]:
        """The engine's timings object; milliseconds with the precision of a microsecond."""
        job = self.job
        fresh = job.n_prompt - self.cached
        prompt_ms = max(0.001, round((self.prompted - self.began) * 1000, 3))
        steps = self.predicted - 1
        predicted_ms = max(0.001, round((time.perf_counter() - self.prompted) * 1000, 3))
        if steps <= 0:
            predicted_ms = 0.001
        return {
            "cache_n": self.cached,
            "prompt_n": fresh,
            "prompt_ms": prompt_ms,
            "prompt_per_token_ms": prompt_ms / fresh,
            "prompt_per_second": 1000 / prompt_ms * fresh,
            "predicted_n": self.predicted,
            "predicted_ms": predicted_ms,
            "predicted_per_token_ms": predicted_ms / steps if steps > 0 else 0.0,
            "predicted_per_second": 1000 / predicted_ms * steps if steps > 0 else 0.0,
        }

    def usage(self) -> dict[str, Any]:
        """The OpenAI usage object."""
        return {
            "completion_tokens": self.predicted,
            "prompt_tokens": self.job.n_prompt,
            "total_tokens": self.job.n_prompt + self.predicted,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        }

    def finish_reason(self) -> str:
        """The OpenAI finish reason."""
        if self.recital.stop_type == "limit":
            return "length"
        return "tool_calls" if self.tool_call else "stop"

    def probabilities(self, token: str) -> list[dict[str, Any]]:
        """One token's entry of completion_probabilities; the model is certain, other tokens are impossible."""
        own = {"id": token_id(token), "token": token, "bytes": list(token.encode())}
        if self.job.flag("post_sampling_probs"):
            return [{**own, "prob": 1.0, "top_probs": [{**own, "prob": 1.0}]}]
        others = [{**entry, "logprob": _IMPOSSIBLE} for entry in _others(self.job.n_probs - 1)]
        return [{**own, "logprob": 0.0, "top_logprobs": [{**own, "logprob": 0.0}, *others]}]

    def progress(self) -> Iterator[tuple[dict[str, int], float]]:
        """The prompt_progress objects and the seconds to wait before each; the waits add up to the prompt delay."""
        total, at = self.job.n_prompt, self.cached
        marks = [at, *range(at + BATCH, total, BATCH), total]
        wait = self.prompt_delay / (len(marks) - 1)
        for number, mark in enumerate(marks):
            elapsed = int((time.perf_counter() - self.began + (wait if number else 0.0)) * 1000)
            yield {"total": total, "cache": self.cached, "processed": mark, "time_ms": elapsed}, wait if number else 0.0

    def first_delay(self) -> float:
        """Seconds before the first token."""
        return self.delay + (0.0 if self.job.flag("return_progress") else self.prompt_delay)


# -- POST /completion ------------------------------------------------------------------------------------------------


@lru_cache(maxsize=65536)
def _native_start(text: str, token: int) -> bytes:
    return b'data: {"index":0,"content":%b,"tokens":[%d],"stop":false,"id_slot":-1,"tokens_predicted":' % (
        dump(text),
        token,
    )


def native_stream(run: Run) -> Iterator[Piece]:
    """Events of /completion: one a token, one for the end token, the final one. No [DONE]."""
    job = run.job
    evaluated = b',"tokens_evaluated":%d' % job.n_prompt
    if job.flag("return_progress"):
        for progress, wait in run.progress():
            body = b"0" + evaluated + b',"prompt_progress":' + dump(progress)
            yield Piece(_native_start("", 0) + body + b"}\n\n", delay=wait)
    wait = run.first_delay()
    every_timing = job.flag("timings_per_token")
    plain = b"}\n\n"
    for step in run.recital:
        run.prompted = run.prompted or time.perf_counter() + wait
        number = END_TOKEN if step.is_end else token_id(step.token)
        data = _native_start(step.text, number) + b"%d" % step.predicted + evaluated
        if job.n_probs:
            data += b',"completion_probabilities":' + dump(run.probabilities(step.token))
        if every_timing or step.hits_stop:
            data += b',"timings":' + dump(run.timings())
        yield Piece(data + plain, 0 if step.is_end else 1, wait)
        wait = run.delay
    yield Piece(b"data: " + dump(native_final(run, "", [])) + b"\n\n", finish=True)


def native_json(run: Run, steps: Sequence[Step]) -> dict[str, Any]:
    """The body of /completion without stream."""
    ids = [END_TOKEN if step.is_end else token_id(step.token) for step in steps]
    body = native_final(run, run.recital.text, ids if run.job.flag("return_tokens") else [])
    if run.job.n_probs:
        body["completion_probabilities"] = [entry for step in steps for entry in run.probabilities(step.token)]
    return body


def native_final(run: Run, content: str, tokens: list[int]) -> dict[str, Any]:
    """The final event, cut to `response_fields` if asked (`a/b` gives the key "a/b" at the root)."""
    job, recital = run.job, run.recital
    body = {
        "index": 0,
        "content": content,
        "tokens": tokens,
        "id_slot": run.slot,
        "stop": True,
        "model": run.model,
        "tokens_predicted": run.predicted,
        "tokens_evaluated": job.n_prompt,
        "generation_settings": job.settings,
        "prompt": job.prompt,
        "has_new_line": "\n" in recital.text,
        "truncated": recital.truncated,
        "stop_type": recital.stop_type,
        "stopping_word": recital.stopping_word,
        # Tokens now in the slot, not reuse: the last generated one is not decoded yet.
        "tokens_cached": job.n_prompt + run.predicted - 1,
        "timings": run.timings(),
    }
    wanted = job.body.get("response_fields")
    return body if not wanted else _select(body, wanted)


def _select(body: dict[str, Any], wanted: Sequence[str]) -> dict[str, Any]:
    chosen: dict[str, Any] = {}
    for path in wanted:
        value: Any = body
        for name in path.split("/"):
            value = value.get(name) if isinstance(value, dict) else None
        if value is not None:
            chosen[path] = value
    return chosen


# -- POST /v1/chat/completions ---------------------------------------------------------------------------------------


class Chat:
    """Chunks of one chat stream; the fields after `choices` are rendered once."""

    def __init__(self, run: Run) -> None:
        self._run = run
        common = {
            "created": run.created,
            "id": run.id,
            "model": run.model,
            "system_fingerprint": run.build_info,
            "object": "chat.completion.chunk",
        }
        self._common = dump(common)[1:-1]
        self._role = self._event(b'{"role":"assistant","content":null}')

    def pieces(self) -> Iterator[Piece]:
        """Role, reasoning, content or a tool call, the finish, usage if asked, [DONE]."""
        run, job = self._run, self._run.job
        if job.flag("return_progress"):
            for progress, pause in run.progress():
                extra = b',"prompt_progress":' + dump(progress)
                yield Piece(self._event(b'{"role":"assistant","content":null}', extra=extra), delay=pause)
        wait = run.first_delay()
        run.prompted = time.perf_counter() + wait
        if run.reasoning or run.tool_call:
            yield Piece(self._role, delay=wait)
            yield from self._thoughts()
            wait = run.delay
        if run.tool_call:
            yield from self._call(run.tool_call)
        else:
            yield from self._content(wait, role=not run.reasoning)
        yield from self._finish()

    def _thoughts(self) -> Iterator[Piece]:
        run = self._run
        if run.reasoning:
            run.extra_tokens += 2  # the tags are tokens that nobody sees
        for text in run.reasoning:
            run.extra_tokens += 1
            yield Piece(self._event(b'{"reasoning_content":%b}' % dump(text)), 1, run.delay)

    def _call(self, call: ToolCall) -> Iterator[Piece]:
        name, arguments = call
        run = self._run
        run.recital.stop_type = "eos"
        run.extra_tokens += 4  # opening, name, closing and end token
        first = {"index": 0, "id": secrets.token_hex(16), "type": "function"}
        for number, text in enumerate(arguments):
            run.extra_tokens += 1
            delta: dict[str, Any] = {"index": 0, "function": {"arguments": text}}
            if number == 0:
                delta = {**first, "function": {"name": name, "arguments": text}}
            yield Piece(self._event(b'{"tool_calls":[%b]}' % dump(delta)), 1, run.delay)

    def _content(self, wait: float, role: bool) -> Iterator[Piece]:
        run = self._run
        for step in run.recital:
            if role:
                # The first chunk on the wire holds two events: the role and the first text.
                yield Piece(self._role, delay=wait, joined=bool(step.text))
                role, wait = False, 0.0
            if step.text:
                extra = b',"timings":' + dump(run.timings()) if step.hits_stop else b""
                data = self._event(b'{"content":%b}' % dump(step.text), step.token, extra=extra)
                yield Piece(data, 0 if step.is_end else 1, wait)
            else:
                yield Piece(b"", delay=wait)
            wait = run.delay

    def _finish(self) -> Iterator[Piece]:
        run = self._run
        timings = b',"timings":' + dump(run.timings())
        reason = dump(run.finish_reason())
        if run.job.include_usage:
            yield Piece(self._event(b"{}", reason=reason), finish=True, joined=True)
            usage = b',"usage":' + dump(run.usage())
            yield Piece(b'data: {"choices":[],%b%b%b}\n\n' % (self._common, usage, timings))
        else:
            yield Piece(self._event(b"{}", reason=reason, extra=timings), finish=True)
        yield Piece(DONE)

    def _event(self, delta: bytes, token: str | None = None, *, reason: bytes = b"null", extra: bytes = b"") -> bytes:
        logprobs = b""
        if token is not None and self._run.job.n_probs:
            logprobs = b',"logprobs":' + dump({"content": self._run.probabilities(token)})
        return b'data: {"choices":[{"finish_reason":%b,"index":0,"delta":%b%b}],%b%b}\n\n' % (
            reason,
            delta,
            logprobs,
            self._common,
            extra,
        )


def chat_json(run: Run, steps: Sequence[Step]) -> dict[str, Any]:
    """The body of /v1/chat/completions without stream."""
    message: dict[str, Any] = {"role": "assistant", "content": "" if run.tool_call else run.recital.text}
    if run.reasoning:
        message["reasoning_content"] = "".join(run.reasoning)
        run.extra_tokens += 2 + len(run.reasoning)
    if run.tool_call:
        name, arguments = run.tool_call
        run.extra_tokens += 4 + len(arguments)
        function = {"name": name, "arguments": "".join(arguments)}
        message["tool_calls"] = [{"type": "function", "function": function, "id": secrets.token_hex(16)}]
    choice: dict[str, Any] = {"finish_reason": run.finish_reason(), "index": 0, "message": message}
    if run.job.n_probs:
        choice["logprobs"] = {"content": [entry for step in steps for entry in run.probabilities(step.token)]}
    return _openai_body(run, choice, "chat.completion")


# -- POST /v1/completions --------------------------------------------------------------------------------------------


def text_stream(run: Run) -> Iterator[Piece]:
    """Events of /v1/completions: usage always stands in the last one, then [DONE]."""
    wait = run.first_delay()
    for step in run.recital:
        run.prompted = run.prompted or time.perf_counter() + wait
        logprobs = {"content": run.probabilities(step.token)} if run.job.n_probs else None
        choice = {"text": step.text, "index": 0, "logprobs": logprobs, "finish_reason": None}
        body: dict[str, Any] = {
            "choices": [choice],
            "created": run.created,
            "model": run.model,
            "system_fingerprint": run.build_info,
            "object": "text_completion",
            "id": run.id,
        }
        if step.hits_stop:
            body["timings"] = run.timings()
        yield Piece(b"data: " + dump(body) + b"\n\n", 0 if step.is_end else 1, wait)
        wait = run.delay
    choice = {"text": "", "index": 0, "logprobs": None, "finish_reason": run.finish_reason()}
    yield Piece(b"data: " + dump(_openai_body(run, choice, "text_completion")) + b"\n\n", finish=True)
    yield Piece(DONE)


def text_json(run: Run, steps: Sequence[Step]) -> dict[str, Any]:
    """The body of /v1/completions without stream."""
    logprobs = None
    if run.job.n_probs:
        logprobs = {"content": [entry for step in steps for entry in run.probabilities(step.token)]}
    choice = {"text": run.recital.text, "index": 0, "logprobs": logprobs, "finish_reason": run.finish_reason()}
    return _openai_body(run, choice, "text_completion")


def _openai_body(run: Run, choice: dict[str, Any], kind: str) -> dict[str, Any]:
    return {
        "choices": [choice],
        "created": run.created,
        "model": run.model,
        "system_fingerprint": run.build_info,
        "object": kind,
        "usage": run.usage(),
        "id": run.id,
        "timings": run.timings(),
    }
