"""What a simulated model says: a fixed recital, cut by limits and stop strings the way llama.cpp cuts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

_TEXT = (
    "the quick brown fox jumps over a lazy dog while seven wise owls watch"
    " from old oak trees and hum softly until dawn breaks"
)
SENTENCE: tuple[str, ...] = tuple(f" {word}" for word in _TEXT.split())
"""The default recital, one token a word with its leading space: what the recordings' toy model says."""


class Step(NamedTuple):
    """One token: the text it releases ("" while text is held back), its own text, how many tokens so far."""

    text: str
    token: str
    predicted: int
    is_end: bool = False
    hits_stop: bool = False


class Recital:
    """Iterates over steps; afterwards it knows how it ended.

    `limit`: at most so many tokens (None: no limit); `room`: tokens that fit into the context; `cycle`: no end token.
    After the iteration `stop_type` is eos, limit or word, `text` everything said, cut at the stop string.
    """

    def __init__(
        self, tokens: Sequence[str], *, limit: int | None, room: int, cycle: bool, stop: Sequence[str]
    ) -> None:
        self._tokens = tokens
        self._limit = limit
        self._room = room
        self._cycle = cycle and bool(tokens)
        self._stop = [word for word in stop if word]
        self.stop_type = "none"
        self.stopping_word = ""
        self.truncated = False
        self.predicted = 0
        self._said: list[str] = []
        self._held = ""

    @property
    def text(self) -> str:
        """Everything said so far, text that is held back included."""
        return "".join(self._said) + self._held

    def __iter__(self) -> Iterator[Step]:
        while True:
            for token in self._tokens:
                self.predicted += 1
                yield self._say(token)
                if self.stop_type == "word" or self._full():
                    return
            if not self._cycle:
                break
        self.predicted += 1
        self.stop_type = "eos"
        yield Step(self._release(self._held), "", self.predicted, is_end=True)

    def _full(self) -> bool:
        if self._limit is not None and self.predicted >= self._limit:
            self.stop_type = "limit"
        elif self.predicted >= self._room:
            self.stop_type, self.truncated = "limit", True
        return self.stop_type == "limit"

    def _say(self, token: str) -> Step:
        if not self._stop:
            self._said.append(token)
            return Step(token, token, self.predicted)
        text = self._held + token
        found = [(at, word) for word in self._stop if (at := text.find(word)) >= 0]
        if found:
            at, word = min(found, key=lambda hit: hit[0])
            self.stop_type, self.stopping_word = "word", word
            return Step(self._release(text[:at]), token, self.predicted, hits_stop=True)
        if any(_may_begin(text, word) for word in self._stop):
            # llama.cpp b0-unknown holds the whole unsent text back, a space before the possible stop string too.
            self._held = text
            return Step("", token, self.predicted)
        return Step(self._release(text), token, self.predicted)

    def _release(self, text: str) -> str:
        self._held = ""
        self._said.append(text)
        return text


def _may_begin(text: str, word: str) -> bool:
    """True if the end of `text` is a beginning of `word`."""
    return any(text.endswith(word[:size]) for size in range(1, min(len(text), len(word)) + 1))
