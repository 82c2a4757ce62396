"""What a simulated model answers to one prompt, token by token: reasoning, tool calls, then text.

Limits, stop strings and half characters cut as recorded with vLLM 0.32.0.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from .recital import SENTENCE

ToolCall = tuple[str, Sequence[str]]
"""A tool's name and the pieces of its arguments."""

Token = str | bytes
_WORD_IDS = {word: 3 + number for number, word in enumerate(SENTENCE)}  # as in the recorded model


@lru_cache(maxsize=65536)
def token_id(token: Token) -> int:
    """The id of a token: the recorded vocabulary's where it has one."""
    raw = token if isinstance(token, bytes) else token.encode()
    known = _WORD_IDS.get(raw.decode("utf-8", "replace"))
    return 283 + zlib.crc32(raw) % 30000 if known is None else known


class Step(NamedTuple):
    """One generated token: what it adds for the client ("" while text is held back), and how the answer ended if it
    did. A call's first step, which only names the tool, is no token."""

    kind: str
    text: str
    token: Token = ""
    call: int = 0
    name: str = ""
    tokens: int = 1
    finish: str | None = None
    stop_reason: str | int | None = None


@dataclass
class Script:
    """The steps of one answer, and afterwards how it went.

    `limit`: at most so many tokens; `room`: tokens that fit into the context; `cycle`: no end token; `past_end`: end
    tokens are said (they are invisible) and the recital starts over; `keep_stop`: the stop string is part of the text;
    `voice`: the kind of its text's steps; `cut`: the finish reason of an answer at its limit.
    """

    tokens: Sequence[Token]
    reasoning: Sequence[str] = ()
    calls: Sequence[ToolCall] = ()
    limit: int | None = None
    room: int = 1 << 60
    cycle: bool = False
    past_end: bool = False
    least: int = 0
    stop: Sequence[str] = ()
    stop_ids: Sequence[int] = ()
    keep_stop: bool = False
    call_finish: str = "tool_calls"
    voice: str = "text"
    cut: str = "length"
    generated: int = 0
    reasoned: int = 0
    finish: str | None = None
    stop_reason: str | int | None = None
    ids: list[int] = field(default_factory=list)
    _text: str = ""  # the end of it: what is held back, and what a stop string may reach back to
    _sent: int = 0
    _raw: bytes = b""

    def __iter__(self) -> Iterator[Step]:
        for piece in self.reasoning:
            self.reasoned += 1
            yield self._step("reasoning", piece, piece)
            if self.finish:
                return
        if self.calls:
            yield from self._call()
        else:
            yield from self._recite()

    def abort(self) -> Step:
        """The last step of an answer that was aborted: held text comes out."""
        return self._end("abort", tokens=0)

    def _call(self) -> Iterator[Step]:
        for number, (name, arguments) in enumerate(self.calls):
            yield Step("call", "", "", number, name, tokens=0)
            for piece in arguments:
                yield self._step("call", piece, piece, number)
                if self.finish:
                    return
        self.generated += 1  # the end token
        self.finish = self.call_finish
        yield Step("text", "", "", tokens=0, finish=self.finish)

    def _recite(self) -> Iterator[Step]:
        while True:
            for token in self.tokens:
                yield self._say(token)
                if self.finish:
                    return
            if self.cycle and self.tokens:
                continue
            if not self.past_end and self.generated >= self.least:
                self.generated += 1
                yield self._end("stop")
                return
            yield self._say("")
            if self.finish:
                return

    def _say(self, token: Token) -> Step:
        number = token_id(token)
        if number in self.stop_ids and self.generated >= self.least:
            self.generated += 1
            return self._end("stop", number, token)
        # A text that ends inside a character waits for the rest; a byte that never fits comes with the next token.
        self._raw += token if isinstance(token, bytes) else token.encode()
        text = self._raw.decode("utf-8", "replace")
        if text.endswith("\ufffd"):
            text = ""
        else:
            self._raw = b""
        before = len(self._text)
        self._text += text
        self.ids.append(number)
        found = self._stopped(before) if self.generated >= self.least else None
        if found is not None:
            word, at = found
            self.generated += 1
            self._text = self._text[: at + len(word) * self.keep_stop]
            return self._end("stop", word, token)
        return self._step(self.voice, self._release(), token)

    def _stopped(self, before: int) -> tuple[str, int] | None:
        for word in self.stop:
            at = self._text.find(word, max(0, before - len(word) + 1)) if word else -1
            if at >= 0:
                return word, at
        return None

    def _release(self, everything: bool = False) -> str:
        longest = max(map(len, self.stop), default=1)
        lag = 0 if everything or self.keep_stop else longest - 1
        until = max(self._sent, len(self._text) - lag)
        text = self._text[self._sent : until]
        self._text = self._text[max(0, until - longest) :]  # a stop string may have begun in what is sent
        self._sent = min(until, longest)
        return text

    def _step(self, kind: str, text: str, token: Token, call: int = 0) -> Step:
        self.generated += 1
        if self.generated >= min(self.room, self.room if self.limit is None else self.limit):
            self.finish = self.cut
            if kind == self.voice:
                text += self._release(everything=True)
        return Step(kind, text, token, call, finish=self.finish)

    def _end(self, finish: str, reason: str | int | None = None, token: Token = "", tokens: int = 1) -> Step:
        self.finish, self.stop_reason = finish, reason
        text = self._release(everything=True)
        return Step(self.voice, text, token, tokens=tokens, finish=finish, stop_reason=reason)
