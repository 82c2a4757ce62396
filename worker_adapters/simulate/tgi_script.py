"""What a simulated model says to one prompt under TGI: tokens, when it stops, and legs of 1,024 tokens.

How it stops is read from the shards' code: the length is tested before the end token, and a stop string counts only
where the text ends with it after a token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from .openai_script import token_id

LEG = 1024  # tokens of one leg, since 3.0.0


class TgiToken(NamedTuple):
    """A token with everything the wire tells of it: its `text`, `id` and `logprob`, and whether it is `special`."""

    text: str | bytes
    id: int
    logprob: float
    special: bool = False


Spoken = str | bytes | TgiToken
EOS = TgiToken("</s>", 2, 0.0, special=True)


def token_of(spoken: Spoken) -> TgiToken:
    """A token from a text, or from the bytes of a part of a character."""
    if isinstance(spoken, TgiToken):
        return spoken
    number = token_id(spoken)
    return TgiToken(spoken, number, -(1 + number % 63) / 64)


class Step(NamedTuple):
    """One generated token: what of its text is whole characters by now, and how the answer ended if it did."""

    token: TgiToken
    text: str
    finish: str | None = None


@dataclass(frozen=True)
class Room:
    """How long an answer may be. `asked` is the request's own limit; `legs` cuts the answer into legs."""

    prompted: int
    asked: int | None
    max_input: int
    max_total: int
    legs: bool

    @property
    def total(self) -> int:
        """After so many tokens no further leg begins."""
        return self.max_total - self.prompted if self.asked is None else self.asked

    def leg(self, generated: int) -> int:
        """Tokens of the next leg after so many; 0 if it does not fit. It is sized from what was asked for first, as
        if nothing had been generated yet: so 1,500 asked for are up to 2,048."""
        used = self.prompted + generated
        size = self.max_total - used if self.asked is None else self.asked
        size = min(size, LEG) if self.legs else size
        return 0 if used + size > self.max_total or used > self.max_input else size


@dataclass
class Script:
    """The steps of one answer, and afterwards how it went. `cycle`: no end token, the text starts over."""

    tokens: Sequence[Spoken]
    room: Room
    stop: Sequence[str] = ()
    cycle: bool = False
    generated: int = 0
    finish: str | None = None
    text: str = ""
    _raw: bytearray = field(default_factory=bytearray)  # what the leg said, end tokens left out
    _pending: bytes = b""  # the beginning of a character
    _tail: str = ""  # where a stop string is looked for

    def __iter__(self) -> Iterator[Step]:
        size, said = self.room.leg(0), 0
        for token in self._source():
            self.generated += 1
            said += 1
            step = self._say(token, said >= size)
            if step.finish:
                self._close_leg()
                again = step.finish == "length" and self.generated < self.room.total
                size, said = (self.room.leg(self.generated) if again else 0), 0
            if step.finish and size:
                step = step._replace(finish=None)
                self._tail = ""
            self.finish = step.finish
            yield step
            if self.finish:
                return

    def _source(self) -> Iterator[TgiToken]:
        tokens = [token_of(spoken) for spoken in self.tokens]
        while True:
            yield from tokens
            if not (self.cycle and tokens):
                yield EOS

    def _say(self, token: TgiToken, full: bool) -> Step:
        raw = token.text if isinstance(token.text, bytes) else token.text.encode()
        self._raw += b"" if token.special else raw
        self._pending += raw
        text = self._pending.decode("utf-8", "replace")
        if text.endswith("\ufffd"):
            text = ""
        else:
            self._pending = b""
        if full:
            return Step(token, text, "length")
        if token.special and token.id == EOS.id:
            return Step(token, text, "eos_token")
        if self.stop:
            self._tail = (self._tail + text)[-300:]
            # The pattern is `<stop>$`, so that one line break may follow it.
            if any(self._tail.endswith((word, word + "\n")) for word in self.stop):
                return Step(token, text, "stop_sequence")
        return Step(token, text)

    def _close_leg(self) -> None:
        text = self._raw.decode("utf-8", "replace")
        # The decoder gives nothing at all for a text that ends inside a character.
        self.text += "" if text.endswith("\ufffd") else text
        self._raw.clear()


def rounds(scripts: Sequence[Script]) -> Iterator[tuple[int, Step | None]]:
    """(number, step) of all answers in turn; before each round a (0, None) to wait for it."""
    left = {number: iter(script) for number, script in enumerate(scripts)}
    while left:
        yield 0, None
        for number in list(left):
            step = next(left[number])
            if step.finish:
                del left[number]
            yield number, step
