"""Numbers on a command line."""

from __future__ import annotations

import math
from typing import Any

import click

#: Seconds: longer than anybody waits, and not too long for a clock.
DAY = 86_400.0


class Number(click.FloatRange):
    """A number within bounds. ``nan`` is none, though it is outside of no bound."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """As click has it, which lets ``nan`` pass."""
        number: float = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value!r} is not a number.", param, ctx)
        return number
