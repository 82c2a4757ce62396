"""The Prometheus text format, as far as an engine's gauges need it. No I/O."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

_SAMPLE = re.compile(r"([a-zA-Z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)")
_LABEL = re.compile(r'(?<!\w)([a-zA-Z_]\w*)="([^"\\]*(?:\\.[^"\\]*)*)"')  # linear, whatever comes
#: No line of an engine is longer.
MAX_LINE = 64 * 1024


class Sample(NamedTuple):
    """One line: a name, its labels and a value."""

    name: str
    labels: dict[str, str]
    value: float


class Samples:
    """The samples of one scrape. A name that is missing means "unknown", never 0."""

    def __init__(self, text: str) -> None:
        self._by_name: dict[str, list[Sample]] = {}
        for sample in _samples(text):
            self._by_name.setdefault(sample.name, []).append(sample)

    def all(self, name: str) -> list[Sample]:
        """Every sample of a name."""
        return self._by_name.get(name, [])

    def total(self, *names: str) -> float | None:
        """The sum over all labels of the first name that is there (one engine process a label); None if none is."""
        found = next((samples for samples in map(self.all, names) if samples), None)
        return None if found is None else sum(sample.value for sample in found)

    def largest(self, *names: str) -> float | None:
        """The same for a share, which cannot be summed: that of the fullest engine."""
        found = next((samples for samples in map(self.all, names) if samples), None)
        return None if found is None else max(sample.value for sample in found)

    def labels(self, name: str) -> dict[str, str]:
        """The labels of a name's first sample."""
        return next((sample.labels for sample in self.all(name)), {})


def _samples(text: str) -> Iterator[Sample]:
    for line in text.split("\n"):
        found = None if line.startswith("#") or len(line) > MAX_LINE else _SAMPLE.match(line)
        if found is None:
            continue
        try:
            value = float(found[3])
        except ValueError:
            continue
        if math.isfinite(value):
            yield Sample(found[1], dict(_LABEL.findall(found[2] or "")), value)
