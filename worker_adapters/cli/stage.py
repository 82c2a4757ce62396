"""The stage of the demo: headings, text that flows, tables, and a ledger of what was promised and what happened."""

from __future__ import annotations

import time
from collections.abc import Iterable

from rich import box
from rich.columns import Columns
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from worker_adapters.cli.terminal import console, visible

INDENT = "   "
#: Lines longer than this are tiring to read.
WIDEST = 100
#: Seconds to read what is there before more comes; on a terminal only.
BREATH = 0.6


class Stage:
    """Prints on stdout, for people: coloured on a terminal, plain in a pipe, never with cursor movements."""

    def __init__(self) -> None:
        self._console = console()
        self._width = min(self._console.width, WIDEST)
        self._column = 0
        #: What was promised and did not happen.
        self.broken: list[str] = []

    def say(self, text: str, style: str = "") -> None:
        """A paragraph."""
        self._console.print(Text(text, style=style), width=self._width)

    def heading(self, title: str, subtitle: str) -> None:
        """The title of a part, after a breath."""
        if self._console.is_terminal:
            time.sleep(BREATH)
        self._console.print()
        self._console.print(Text(title, style="bold cyan"), width=self._width)
        self._console.print(Text(subtitle, style="dim"), width=self._width)
        self._console.print()

    def flow(self, token: str) -> None:
        """A piece of text, at once; lines break between words."""
        token = visible(token).replace("\n", " ")
        if self._column == 0 or (token.startswith(" ") and self._column + len(token) > self._width):
            if self._column:
                self._write("\n")
            token = INDENT + token.lstrip(" ")
            self._column = 0
        self._column += len(token)
        self._write(token)

    def stop(self, mark: str = "", style: str = "bold red") -> None:
        """End the flowing text, with a mark that says how."""
        if mark and self._column + len(mark) + 1 > self._width:
            self._write(f"\n{INDENT}")
        self._write(f" {mark}\n\n" if mark else "\n\n", style)
        self._column = 0

    def tables(self, *tables: tuple[str, Iterable[tuple[str, str]]]) -> None:
        """Tables of names and values, side by side where there is room."""
        shown = Columns([_table(*each) for each in tables], padding=(0, 2))
        self._console.print(Padding(shown, (0, 0, 0, len(INDENT))), width=self._width)

    def fact(self, what: str, value: str, held: bool) -> None:
        """One line of the ledger: what was promised, what was measured, and whether it is so."""
        if not held:
            self.broken.append(what)
        line = Text(INDENT).append("ok  " if held else "NO  ", style="bold green" if held else "bold red")
        self._console.print(line.append(what + ": ").append(value, style="bold"), width=self._width)

    def _write(self, text: str, style: str = "") -> None:
        self._console.print(Text(text, style=style), end="", soft_wrap=True)


def _table(title: str, rows: Iterable[tuple[str, str]]) -> Table:
    made = Table(title=title, title_style="bold", title_justify="left", box=box.ROUNDED, show_header=False)
    made.add_column(style="dim", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in rows:
        made.add_row(name, Text(visible(value)))
    return made
