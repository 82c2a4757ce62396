"""The standard streams as they really are: missing, in a small encoding, piped, or gone."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

import click
from rich.console import Console
from rich.text import Text

from worker_adapters.cli.exits import FAILED, NO_READER, exit_for, explain
from worker_adapters.errors import WorkerError

#: What a model may say but a terminal must not obey: control characters, shown as escapes. New line and tab stay.
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


class PipeConsole(Console):
    """A console whose broken pipe is an exception like that of any other file (rich exits with 1 instead)."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def console(*, stderr: bool = False) -> Console:
    """A console on stdout or stderr that prints what it is given: no markup, no guessed highlights."""
    return PipeConsole(stderr=stderr, markup=False, highlight=False, emoji=False)


def prepare() -> None:
    """Make stdout and stderr take any text: closed ones swallow it, small encodings replace what they lack."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            setattr(sys, name, io.TextIOWrapper(io.FileIO(nowhere, "w", closefd=False), encoding="utf-8"))
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def visible(text: str) -> str:
    """``text`` with its control characters spelled out."""
    return text.translate(_CONTROLS)


def complain(text: str) -> None:
    """One line on stderr, however long."""
    line = Text("worker-adapters: ", style="bold red").append(visible(text), style="not bold default")
    console(stderr=True).print(line, soft_wrap=True)


@contextmanager
def answering() -> Iterator[None]:
    """Turn an error of the engine, or of our own output, into one line and an exit code."""
    try:
        yield
        sys.stdout.flush()
    except WorkerError as error:
        complain(explain(error))
        raise click.exceptions.Exit(exit_for(error).code) from None
    except BrokenPipeError:
        _abandon(sys.stdout, sys.stderr)
        raise click.exceptions.Exit(NO_READER) from None
    except OSError as error:
        _abandon(sys.stdout)
        complain(f"cannot write the output: {error.strerror or type(error).__name__}")
        raise click.exceptions.Exit(FAILED) from None


def _abandon(*streams: TextIO) -> None:
    """Whatever is still buffered goes nowhere, so that the interpreter's last flush does not fail again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in streams:
        os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
