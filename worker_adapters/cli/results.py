"""The results of a benchmark, for a person and for a program."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from worker_adapters.cli.figures import Figures
from worker_adapters.cli.histogram import Histogram
from worker_adapters.cli.load import Load
from worker_adapters.cli.printer import milliseconds
from worker_adapters.cli.terminal import visible

PERCENTILES = (50, 95, 99)
COUNTS = {
    "counted": "which are frames",
    "exact": "as the engine counts",
    "mixed": "as the engine counts; of jobs that it did not end, frames",
}
#: Above this share of a core the figures say more about this process than about the engine.
BUSY = 0.8


@dataclass(frozen=True)
class Results:
    """What was asked for, and what came of it.

    :ivar place: where the engines are, in words.
    """

    place: str
    load: Load
    warm_up: int
    max_tokens: int
    interrupted: bool

    @property
    def figures(self) -> Figures:
        """What was measured."""
        return self.load.figures

    @property
    def busy(self) -> float:
        """CPU of this process, as a share of one core."""
        return self.figures.per_second(self.load.cpu)

    def heading(self) -> str:
        """Who was measured."""
        seen = [
            " ".join(part for part in (engine, version, model) if part and part != "unknown")
            for engine, version, model in self.figures.engines
        ]
        nobody = "no engine answered" if self.figures.jobs else "nothing was measured"
        return f"{', '.join(seen) or nobody} {self.place}".strip()

    def conditions(self) -> str:
        """How it was measured."""
        before = f", after {self.warm_up} to warm up" if self.warm_up else ""
        return (
            f"{self.load.jobs} jobs, {self.load.concurrency} at a time, at most {self.max_tokens} tokens each{before}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON has it."""
        figures = self.figures
        return {
            "engines": [
                {"engine": engine, "engine_version": version, "model": model, "jobs": jobs}
                for (engine, version, model), jobs in figures.engines.items()
            ],
            "jobs": self.load.jobs,
            "concurrency": self.load.concurrency,
            "warm_up": self.warm_up,
            "max_tokens": self.max_tokens,
            "interrupted": self.interrupted,
            "completed": figures.completed,
            "failed": figures.failed,
            "cancelled": figures.cancelled,
            "finish_reasons": dict(figures.finish_reasons),
            "errors": {code: {"count": count, "last": said} for code, count, said in figures.explained()},
            "seconds": _rounded(figures.seconds),
            "jobs_per_second": _rounded(figures.per_second(figures.completed)),
            "tokens_out": figures.tokens,
            "counts": figures.counts,
            "tokens_per_second": _rounded(figures.per_second(figures.tokens)),
            "stream_tokens_per_second": _summary(figures.rates, (5, 50, 95)),
            "first_token_ms": _summary(figures.first_token, PERCENTILES),
            "between_tokens_ms": _summary(figures.gaps, PERCENTILES),
            "total_ms": _summary(figures.totals, PERCENTILES),
            "client_cores": _rounded(self.busy),
        }

    def render(self) -> RenderableType:
        """For a person."""
        parts: list[RenderableType] = [
            Text(visible(self.heading()), style="bold"),
            Text(self.conditions() + (" (interrupted)" if self.interrupted else ""), style="dim"),
            "",
            _lines(self._totals()),
            "",
            _times(self.figures),
        ]
        if self.figures.errors:
            parts += ["", _errors(self.figures)]
        if self.busy > BUSY and self.figures.seconds > 1:
            parts += ["", Text(f"This process was busy {self.busy:.0%} of the time: it, too, was measured.", "yellow")]
        return Group(*parts)

    def _totals(self) -> list[tuple[str, str]]:
        figures = self.figures
        counts = [(figures.completed, "complete"), (figures.failed, "failed"), (figures.cancelled, "cancelled")]
        ended = ", ".join(f"{count} {how}" for count, how in counts if count or how == "complete")
        reasons = [(reason, count) for reason, count in figures.finish_reasons.most_common() if reason != "cancelled"]
        return [
            ("jobs", f"{ended} in {figures.seconds:.1f} s, {figures.per_second(figures.completed):.1f} a second"),
            ("ended by", ", ".join(f"{count} {reason}" for reason, count in reasons) or "-"),
            ("tokens", f"{figures.tokens}, {COUNTS[figures.counts]}" if figures.tokens else "0"),
            ("all streams", f"{figures.per_second(figures.tokens):.1f} tokens/s"),
            ("one stream", _rates(figures.rates)),
        ]


def _summary(values: Histogram, percentiles: tuple[int, ...]) -> dict[str, Any]:
    nearest = {f"p{percent}": values.percentile(percent) for percent in percentiles}
    least, most = (values.least, values.most) if values.count else (None, None)
    told = {"mean": values.mean, "min": least, **nearest, "max": most}
    return {"count": values.count, **{name: _rounded(value) for name, value in told.items()}}


def _rounded(value: float | None) -> float | None:
    """To what was measured: a microsecond."""
    return None if value is None else round(value, 3)


def _rates(values: Histogram) -> str:
    median, slow = values.percentile(50), values.percentile(5)
    if median is None or slow is None:
        return "-"
    return f"{median:.1f} tokens/s (median), {slow:.1f} (slowest 5 %)"


def _lines(rows: list[tuple[str, str]]) -> Table:
    made = Table(box=None, pad_edge=False, show_header=False)
    made.add_column(style="dim", no_wrap=True, min_width=len("between tokens"))
    made.add_column(overflow="fold")
    for row in rows:
        made.add_row(*row)
    return made


def _times(figures: Figures) -> Table:
    made = Table(box=None, pad_edge=False, header_style="dim")
    made.add_column("", style="dim", no_wrap=True)
    for heading in (*(f"p{percent}" for percent in PERCENTILES), "max"):
        made.add_column(heading, justify="right", min_width=9, no_wrap=True)
    for name, values in (
        ("first token", figures.first_token),
        ("between tokens", figures.gaps),
        ("whole job", figures.totals),
    ):
        nearest = [values.percentile(percent) for percent in PERCENTILES]
        made.add_row(name, *map(duration, (*nearest, values.most if values.count else None)))
    return made


def duration(value: float | None) -> str:
    """In milliseconds; microseconds are shown too."""
    return f"{value:.3f} ms" if value is not None and value < 0.1 else milliseconds(value)


def _errors(figures: Figures) -> Table:
    made = Table(box=None, pad_edge=False, show_header=False)
    made.add_column(style="red", no_wrap=True)
    made.add_column(justify="right", no_wrap=True)
    made.add_column(overflow="fold")
    for code, count, said in figures.explained():
        made.add_row(code, str(count), Text(visible(said)))
    return made
