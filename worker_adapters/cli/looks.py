"""Looks: what is asked again and again, shown as a table in the place of the one before, or below it, or as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from worker_adapters.cli.terminal import console, visible

COLORS = {"healthy": "green", "degraded": "yellow", "unhealthy": "red", "open": "red", "half_open": "yellow"}
#: A pipe has no width: nothing is cut there.
ENDLESS = 10_000


def columns() -> int:
    """How many there are to fill."""
    out = console()
    return out.width if out.is_terminal else ENDLESS


def put(shown: RenderableType) -> None:
    """Print it: in a pipe with nothing cut, and without the blanks that only fill a screen."""
    out = console()
    if out.is_terminal:
        out.print(shown)
        return
    out.width = ENDLESS
    with out.capture() as captured:
        out.print(shown)
    for line in captured.get().splitlines():
        print(line.rstrip())
    sys.stdout.flush()


@contextmanager
def showing(render: Callable[[Any], RenderableType], watch: bool) -> Iterator[Callable[[Any], object]]:
    """Shows a look as ``render`` makes it: in the place of the one before, or below it."""
    out = console()
    if watch and out.is_terminal:
        with Live(console=out, auto_refresh=False, vertical_overflow="visible") as live:
            yield lambda told: live.update(render(told), refresh=True)
    else:
        yield lambda told: put(Group(render(told), *([""] if watch else [])))


def print_json(told: Any) -> None:
    """One line."""
    print(json.dumps(told), flush=True)


def grid(
    headings: Sequence[str],
    rows: Iterable[Iterable[str]],
    elastic: Collection[str],
    wrapped: Collection[str] = (),
) -> Table:
    """A table without lines. Where a terminal is narrow the ``elastic`` columns are cut, and ``wrapped`` ones fold."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        made.add_column(heading, no_wrap=heading not in (*elastic, *wrapped))
    for row in rows:
        cells = [Text(visible(cell), COLORS.get(cell, ""), no_wrap=True, overflow="ellipsis") for cell in row]
        for heading, cell in zip(headings, cells, strict=True):
            if heading in wrapped:
                cell.no_wrap, cell.overflow = False, "fold"
        made.add_row(*cells)
    return made


def notes(said: Iterable[tuple[str, str]]) -> list[Text]:
    """What is wrong, below a table: whose it is, and what."""
    return [Text(visible(f"{name}: {message}"), style="dim") for name, message in said if message]
