"""Counts of what was measured, in constant memory however much there is: how large, and when."""

from __future__ import annotations

import math
from collections.abc import Iterator

#: A bucket is this much wider than the one below it, as a logarithm: a thousandth.
STEP = 0.001
#: Smaller values are counted as this one.
FLOOR = 1e-4


class Histogram:
    """How often which positive value was seen.

    A percentile is nearest-rank: the smallest value seen that at least p percent of all do not exceed. It is exact to a
    twentieth of a percent, the half of a bucket; count, mean, least and most are exact.
    """

    def __init__(self) -> None:
        self.count = 0
        self.least = math.inf
        self.most = 0.0
        self._total = 0.0
        self._buckets: dict[int, int] = {}

    def add(self, value: float) -> None:
        """One more of them."""
        bucket = math.floor(math.log(max(value, FLOOR)) / STEP)
        self._buckets[bucket] = self._buckets.get(bucket, 0) + 1
        self.count += 1
        self._total += value
        self.least = min(self.least, value)
        self.most = max(self.most, value)

    @property
    def mean(self) -> float | None:
        """The arithmetic mean, or None of nothing."""
        return self._total / self.count if self.count else None

    def percentile(self, percent: int) -> float | None:
        """The value at nearest rank, or None of nothing."""
        rank = max(1, -(-percent * self.count // 100))
        if rank == self.count:
            return self.most
        for value, seen in self._ascending():
            if seen >= rank:
                return min(max(value, self.least), self.most)
        return None

    def items(self) -> Iterator[tuple[float, int]]:
        """Value and count of every bucket, ascending."""
        for bucket in sorted(self._buckets):
            yield math.exp((bucket + 0.5) * STEP), self._buckets[bucket]

    def _ascending(self) -> Iterator[tuple[float, int]]:
        """Every value, and how many are no larger."""
        seen = 0
        for value, count in self.items():
            seen += count
            yield value, seen


class Timeline:
    """How much came when: counts in bins of equal width, which doubles when there are too many of them.

    :param width: of a bin at first, in seconds.
    :param most: bins.
    """

    def __init__(self, width: float = 0.05, most: int = 800) -> None:
        self.width = self._least = width
        self._most = most
        self._bins: list[int] = []

    def add(self, at: float, count: int = 1) -> None:
        """So many more, ``at`` seconds after the beginning."""
        place = int(max(0.0, at) / self.width)
        while place >= self._most:
            pairs = zip(self._bins[::2], [*self._bins[1::2], 0], strict=False)
            self._bins = [one + other for one, other in pairs]
            self.width *= 2
            place //= 2
        self._bins += [0] * (place + 1 - len(self._bins))
        self._bins[place] += count

    def rates(self, width: float, end: float) -> list[tuple[float, float]]:
        """Middle of a bin (seconds) and how much came there a second, in bins of at least ``width`` seconds.

        :param end: of it all; the last bin is only as wide as what there is of it.
        """
        group = max(1, math.ceil(width / self.width))
        bins = max(len(self._bins), math.ceil(end / self.width))
        rates = []
        for first in range(0, bins, group):
            left = first * self.width
            wide = min(group * self.width, max(end - left, self._least))
            rates.append((left + wide / 2, sum(self._bins[first : first + group]) / wide))
        return rates
