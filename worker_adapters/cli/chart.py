"""The chart of a benchmark, drawn by matplotlib (extra ``plot``): throughput over time, and how long tokens took."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from worker_adapters.cli.histogram import Histogram
from worker_adapters.cli.results import PERCENTILES, Results, duration

BLUE, GREEN, RED, GREY = "#2563eb", "#0d9488", "#dc2626", "#6b7280"
#: Bars of a distribution, and of the throughput over time.
BARS, MOMENTS = 48, 120
#: The multiples of 1, 10, 100... that are written below an axis which spans less than so many times its beginning.
MARKS = ((5, range(1, 10)), (300, (1, 2, 5)), (math.inf, (1,)))
#: Nothing is shown that is so many times shorter than the 99th percentile.
SHORTEST = 500
#: Throughput is averaged over so many seconds, or over more of a long run.
MOMENT = 0.2


def draw(results: Results, path: str) -> None:
    """Write the chart; the ending of ``path`` says in which format.

    :raises OSError: it cannot be written.
    """
    figure = Figure(figsize=(10, 6.2), layout="constrained", facecolor="white")
    figure.suptitle(results.heading(), x=0.01, ha="left", fontsize=12, fontweight="bold", parse_math=False)
    grid = figure.add_gridspec(2, 2, height_ratios=(1, 1.15), hspace=0.08)
    _throughput(figure.add_subplot(grid[0, :]), results)
    _distribution(figure.add_subplot(grid[1, 0]), "Time to first token", results.figures.first_token, BLUE, "jobs")
    _distribution(figure.add_subplot(grid[1, 1]), "Between tokens", results.figures.gaps, GREEN, "gaps")
    figure.savefig(path, format=Path(path).suffix[1:].lower(), dpi=150)


def _throughput(axes: Axes, results: Results) -> None:
    """Tokens/s over time, and where jobs failed."""
    figures = results.figures
    moment = max(min(MOMENT, figures.seconds / 20), figures.seconds / MOMENTS)
    times, rates = zip(*figures.arrivals.rates(moment, figures.seconds), strict=True)
    axes.fill_between(times, rates, color=BLUE, alpha=0.15, linewidth=0)
    axes.plot(times, rates, color=BLUE, linewidth=1.5)
    failed = [at for at, rate in figures.failures.rates(moment, figures.seconds) if rate]
    if failed:
        axes.plot(failed, [0] * len(failed), "v", color=RED, clip_on=False, label=f"{figures.failed} jobs failed")
        axes.legend(frameon=False, loc="upper right", fontsize=8)
    axes.set_xlim(0, max(figures.seconds, figures.arrivals.width))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("seconds", color=GREY)
    axes.set_ylabel("tokens/s", color=GREY)
    said = f"{figures.tokens} tokens, {figures.per_second(figures.tokens):.0f} a second in all"
    _title(axes, results.conditions(), said)
    _tidy(axes)


def _distribution(axes: Axes, name: str, values: Histogram, color: str, what: str) -> None:
    """How many took how long, on a logarithmic scale, with the percentiles."""
    _title(axes, name, f"{values.count} {what}")
    _tidy(axes)
    axes.set_xlabel("milliseconds", color=GREY)
    axes.set_ylabel(what, color=GREY)
    if not values.count:
        return
    low, high = _limits(values)
    if low > values.least:
        axes.set_xlabel(f"milliseconds (below {low:.2g}: in the first bar)", color=GREY)
    edges = [low * (high / low) ** (number / BARS) for number in range(BARS + 1)]
    counts = [0] * BARS
    for value, count in values.items():
        place = int(math.log(value / low) / math.log(high / low) * BARS)
        counts[min(max(place, 0), BARS - 1)] += count
    widths = [right - left for left, right in pairwise(edges)]
    axes.bar(edges[:-1], counts, widths, align="edge", color=color, alpha=0.75, edgecolor="white", linewidth=0.5)
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.set_ylim(0, max(counts) * 1.35)
    marks = next(marks for span, marks in MARKS if high / low < span)
    axes.xaxis.set_major_locator(LogLocator(subs=marks))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    _percentiles(axes, values)


def _limits(values: Histogram) -> tuple[float, float]:
    """Least and most that are shown: all of a long tail; of frames that came in one read, only how many they are."""
    low = max(values.percentile(1) or 0.0, (values.percentile(99) or 0.0) / SHORTEST)
    high = values.most
    narrow = 1.6 if high / low < 1.6 else 1.15  # else a hair's breadth of noise would fill the page
    return low / narrow, high * narrow


def _percentiles(axes: Axes, values: Histogram) -> None:
    """A line each; their labels stand one below the other, so that near ones stay legible."""
    low, high = axes.get_xlim()
    for row, percent in enumerate(PERCENTILES):
        at = values.percentile(percent) or low
        on_the_left = at > math.sqrt(low * high)
        axes.axvline(at, color=GREY, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.annotate(
            f" p{percent} {duration(at)} ",
            (at, 0.96 - 0.085 * row),
            xycoords=("data", "axes fraction"),
            ha="right" if on_the_left else "left",
            va="center",
            fontsize=8,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.6},
        )


def _title(axes: Axes, title: str, subtitle: str) -> None:
    axes.set_title(title, loc="left", fontsize=10, parse_math=False)
    axes.set_title(subtitle, loc="right", fontsize=8, color=GREY, parse_math=False)


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#d1d5db")
    axes.tick_params(which="both", color="#d1d5db", labelcolor=GREY, labelsize=8)
    axes.grid(axis="y", color="#e5e7eb", linewidth=0.6)
    axes.set_axisbelow(True)
