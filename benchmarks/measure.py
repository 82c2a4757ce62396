"""What the benchmarks share: fresh processes, processor cores, and tables."""

from __future__ import annotations

import math
import os
import resource
import subprocess
import sys
from collections.abc import Iterable, Sequence
from statistics import median


def say(line: str = "") -> None:
    """Write a line at once, also into a pipe."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def note(line: str) -> None:
    """Write a line that is not part of the result."""
    sys.stderr.write(f"{line}\n")


def cores() -> tuple[int | None, int | None]:
    """A core for the clients and another for the server; (None, None) where there is but one, or no way to choose."""
    usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return (usable[0], usable[-1]) if len(usable) > 1 else (None, None)


def pin(core: int | None) -> None:
    """Keep this process on one core."""
    if core is not None:
        os.sched_setaffinity(0, {core})


def cpu() -> float:
    """Seconds of user and system time of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def python(*arguments: str, executable: str = sys.executable) -> subprocess.Popen[bytes]:
    """A fresh interpreter, with pipes to its standard input and output."""
    return subprocess.Popen([executable, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # noqa: S603 - this Python, or that of an environment made with it


def percentile(values: Sequence[float], share: float) -> float:
    """The value that ``share`` of all do not exceed."""
    return sorted(values)[math.ceil(share * len(values)) - 1]


def spread(values: Sequence[float], digits: int = 2) -> str:
    """``min / median / max``."""
    return " / ".join(f"{value:.{digits}f}" for value in (min(values), median(values), max(values)))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows in columns: the first flush left, the others flush right."""
    lines = [head, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    for line in lines:
        others = [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        say("  ".join([line[0].ljust(widths[0]), *others]).rstrip())


def verdict(name: str, ratios: Sequence[float], goal: float) -> tuple[str, str, str, str]:
    """A row for a goal: the ratio of every round, and whether the median keeps the goal."""
    return name, spread(ratios), f"{goal:g}", "ok" if median(ratios) <= goal else "MISSED"
