"""How a benchmark is getting on: one line on stderr, at a terminal only."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from worker_adapters.cli.load import Load
from worker_adapters.cli.printer import milliseconds
from worker_adapters.cli.terminal import console

#: The rate shown is that of so many looks.
LOOKS = 20


@contextmanager
def progress(what: str, load: Load) -> Iterator[Callable[[], None]]:
    """Gives what shows how it is going now; the line is gone at the end."""
    err = console(stderr=True)
    if not err.is_terminal or err.is_dumb_terminal:
        yield lambda: None
        return
    err.width -= len("^C ")  # what the terminal itself writes behind the line must not wrap it
    shown = (TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), TextColumn("{task.fields[said]}"))
    with Progress(*shown, console=err, auto_refresh=False, transient=True) as line:
        err.show_cursor()  # rich hides it, and a second Ctrl-C leaves no time to show it again
        task = line.add_task(what, total=load.jobs, said="")
        seen: deque[tuple[float, int]] = deque(maxlen=LOOKS)

        def show() -> None:
            seen.append((time.monotonic(), load.arrived))
            ended, failed, first = load.figures.glimpse()
            said = [f"{load.at_work} at work", f"{_rate(seen):.0f} tokens/s"]
            said += [f"first {milliseconds(first)}"] if first is not None else []
            said += [f"{failed} failed"] if failed else []
            line.update(task, completed=ended, said=", ".join(said), refresh=True)

        yield show


def _rate(seen: deque[tuple[float, int]]) -> float:
    (began, before), (now, arrived) = seen[0], seen[-1]
    return (arrived - before) / (now - began) if now > began else 0.0
