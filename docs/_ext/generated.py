"""Directives whose tables are written by the code they describe, so that a page cannot drift from it.

``error-table``, ``clock-table``, ``frame-order``, ``field-table``, ``engine-facts ENGINE``, ``exit-codes``,
``cli-help``, ``example-list``.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from worker_adapters import Timeouts, WorkerError, WorkerTimeout
from worker_adapters.adapters.catalog import ALIASES, CATALOG, adapter_class
from worker_adapters.adapters.jobs import OPTIONAL_FIELDS
from worker_adapters.cli.commands import cli
from worker_adapters.cli.exits import DONE, exit_for
from worker_adapters.cli.exits import table as exit_lines
from worker_adapters.errors import CLOCKS, ERROR_CLASSES
from worker_adapters.frames import FRAME_ORDER

EXAMPLES = Path(__file__).parents[2] / "examples"
#: Columns of a terminal, as a page shows it.
WIDTH = 84
#: A cell with nothing in it.
NONE = "\\-"

Rows = Iterable[Sequence[str]]


def table(heading: Sequence[str], rows: Rows, widths: str = "auto") -> Iterator[str]:
    """A list-table."""
    yield from (".. list-table::", "   :header-rows: 1", f"   :widths: {widths}", "")
    for row in (heading, *rows):
        for column, cell in enumerate(row):
            yield f"   {'* -' if column == 0 else '  -'} {cell}"
    yield ""


def codes(names: Iterable[str]) -> str:
    """``a``, ``b``"""
    return ", ".join(f"``{name}``" for name in names) or NONE


def mark(value: bool) -> str:
    return "yes" if value else "no"


# --- errors and clocks


def error_table() -> Iterator[str]:
    """Class, code, what else it is, may it be tried again, its own fields, the command line's exit code."""
    heading = ("class", "code", "also a", "retriable", "fields of its own", "exit code")
    yield from table(heading, map(_error_row, ERROR_CLASSES.values()))


def _error_row(cls: type[WorkerError]) -> Sequence[str]:
    also = [base for base in cls.__bases__ if base is not WorkerError]
    inherited = {name for base in also for name in getattr(base, "fields", ())} | {*WorkerError.fields}
    own = [name for name in cls.fields if name not in inherited]
    made = cls(message="", **({"clock": "connect"} if cls is WorkerTimeout else {}))
    names = ", ".join(map(_linked, also)) or NONE
    return _linked(cls), f"``{cls.code}``", names, _retriable(made), codes(own), str(exit_for(made).code)


def _linked(cls: type) -> str:
    return f":class:`~worker_adapters.{cls.__name__}`" if issubclass(cls, WorkerError) else f"``{cls.__name__}``"


def _retriable(error: WorkerError) -> str:
    """The upper bound, and what holds where nobody said anything else."""
    if isinstance(error, WorkerTimeout):
        return codes(clock for clock in CLOCKS if WorkerTimeout(message="", clock=clock).may_retry) + " only"
    if not error.may_retry:
        return "never"
    return "yes, but for a quota" if error.retriable else "where it did not begin"


def clock_table() -> Iterator[str]:
    """Clock, seconds, may the job be tried again, does it speak against the engine."""
    defaults: dict[str, Any] = {field.name: field.default for field in fields(Timeouts)}

    def row(clock: str) -> Sequence[str]:
        fired = WorkerTimeout(message="", clock=clock)
        seconds = "none" if defaults.get(clock) is None else f"{defaults[clock]:g} s"
        return f"``{clock}``", seconds, mark(fired.retriable), mark(fired.engine_fault)

    heading = ("clock", "default", "retriable", "counts against the engine")
    yield from table(heading, map(row, (*defaults, *(clock for clock in CLOCKS if clock not in defaults))))


def frame_order() -> Iterator[str]:
    """What may follow what."""
    rows = (
        ("nothing" if before is None else f"``{before}``", codes(after) if after else "nothing")
        for before, after in FRAME_ORDER.items()
    )
    yield from table(("after", "may come"), rows)


# --- engines


def _made(engine: str) -> Any:
    """An adapter: OpenAI's capabilities depend on its options, so they are not the class's."""
    adapter: Any = adapter_class(engine)
    return adapter()


def field_table() -> Iterator[str]:
    """Which engine takes which optional field of a task."""
    adapters = [_made(engine) for engine in CATALOG]
    rows = ((f"``{name}``", *(_taken(adapter, name) for adapter in adapters)) for name in OPTIONAL_FIELDS)
    yield from table(("field", *(f"``{engine}``" for engine in CATALOG)), rows)


def _taken(adapter: Any, field: str) -> str:
    if field not in adapter.capabilities.fields:
        return NONE
    if field in adapter.with_messages:
        return "messages"
    return "prompt" if field in getattr(adapter, "with_prompt", ()) else "yes"


def engine_facts(engine: str) -> Iterator[str]:
    """What the adapter says of its engine."""
    adapter = _made(engine)
    told = adapter.capabilities
    takes = {"raw prompts": told.prompts, "conversations": told.messages}
    facts = [
        ("adapter", f":class:`~worker_adapters.{type(adapter).__name__}`"),
        ("usual address", codes(filter(None, [getattr(adapter, "default_url", "")]))),
        ("also for", codes(name for name, (dialect, _) in ALIASES.items() if dialect == engine)),
        ("takes", ", ".join(what for what, taken in takes.items() if taken)),
        ("fields that it lacks", codes(name for name in OPTIONAL_FIELDS if name not in told.fields)),
        ("with messages only", codes(adapter.with_messages)),
        ("with a prompt only", codes(getattr(adapter, "with_prompt", ()))),
        ("exact token counts", mark(told.exact_counts)),
        ("KV cache by session", mark(told.session_cache)),
        ("free after a cancel", told.release),
    ]
    yield from table(("", f"``{engine}``"), [fact for fact in facts if fact[1] != NONE], "25 75")


# --- the command line


def exit_codes() -> Iterator[str]:
    """Exit code, what happened: as the help shows them. What 0 promises differs, and stands with each command."""
    rows = (line.split(maxsplit=1) for line in exit_lines().splitlines())
    yield from table(("code", "meaning"), (row for row in rows if row[0] != str(DONE)), "10 90")


def cli_help() -> Iterator[str]:
    """A section for each command: its help, as a terminal shows it, and what its exit code 0 promises."""
    group = click.Context(cli, info_name="worker-adapters", terminal_width=WIDTH, color=False)
    for name, command in sorted(cli.commands.items()):
        with click.Context(command, info_name=name, parent=group, terminal_width=WIDTH, color=False) as context:
            text, _, codes = command.get_help(context).partition("\n\n  Exit codes:\n")
        yield from (name, "-" * len(name), "", ".. code-block:: text", "")
        yield from (f"   {line}".rstrip() for line in text.splitlines())
        done = [line.split(maxsplit=1)[1] for line in codes.splitlines() if line.split()[:1] == [str(DONE)]]
        yield from ("", *(f"Exit code {DONE}: {promise}." for promise in done), "")


# --- examples


def example_list() -> Iterator[str]:
    """File, and what its docstring begins with."""
    rows = []
    for path in sorted(EXAMPLES.glob("*.py")):
        about = (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n\n")[0]
        rows.append((f"``examples/{path.name}``", " ".join(about.split()).replace("*", "\\*")))
    yield from table(("file", "what it shows"), rows, "30 70")


def directive(write: Callable[..., Iterable[str]]) -> type[SphinxDirective]:
    """A directive that stands for the lines that ``write`` makes of its arguments."""

    class Generated(SphinxDirective):
        optional_arguments = 1

        def run(self) -> list[nodes.Node]:
            return self.parse_text_to_nodes("\n".join(write(*self.arguments)), allow_section_headings=True)

    return Generated


def setup(app: Sphinx) -> dict[str, Any]:
    for write in (error_table, clock_table, frame_order, field_table, engine_facts, exit_codes, cli_help, example_list):
        app.add_directive(write.__name__.replace("_", "-"), directive(write))
    return {"parallel_read_safe": True}
