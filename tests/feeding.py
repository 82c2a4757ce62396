"""The one way in which tests feed a decoder: the same bytes in many pieces, always with the same result."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")

#: Inputs up to this length are fed at every split into two.
SHORT = 400


def ways(
    data: bytes, recorded: Sequence[bytes] = (), seeds: Iterable[int] = range(3)
) -> Iterator[tuple[str, list[bytes]]]:
    """(name, pieces): whole, byte by byte, every split into two of a short input, as recorded, and at random."""
    yield "whole", [data]
    yield "byte by byte", [data[at : at + 1] for at in range(len(data))]
    if len(data) <= SHORT:
        for at in range(1, len(data)):
            yield f"split at {at}", [data[:at], data[at:]]
    if recorded:
        assert b"".join(recorded) == data
        yield "as recorded", list(recorded)
    for seed in seeds:
        yield f"at random, seed {seed}", pieces_of(data, seed)


def pieces_of(data: bytes, seed: int) -> list[bytes]:
    """Cut at random: some pieces of a few bytes, some long, some empty."""
    dice = random.Random(seed)
    pieces = []
    at = 0
    while at < len(data):
        size = dice.choice((0, 1, 2, 3, 7, 64, 1024))
        pieces.append(data[at : at + size])
        at += size
    return pieces


def fed(decode: Callable[[list[bytes]], T], data: bytes, recorded: Sequence[bytes] = ()) -> T:
    """What ``decode`` makes of the pieces; fails if it is not the same for every way of cutting."""
    named = ways(data, recorded)
    first, pieces = next(named)
    result = decode(pieces)
    for name, pieces in named:
        again = decode(pieces)
        assert again == result, f"{name} differs from {first}: {str(again)[:200]} != {str(result)[:200]}"
    return result
