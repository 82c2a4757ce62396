"""Prompts, and where they come from: the command line, a file, a pipe, a terminal. UTF-8 whatever the locale."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import click

#: Stands before what is typed.
SIGN = "> "


def read_prompt(prompt: str | None, file: str | None) -> str:
    """The one prompt of a command line; a last new line is taken off what is read.

    :raises click.UsageError: it is no UTF-8, or cannot be read.
    """
    if file is not None:
        try:
            return _decoded(Path(file).read_bytes(), f"--file {file}").removesuffix("\n")
        except OSError as error:
            raise click.UsageError(f"--file {file} cannot be read: {error.strerror}") from None
    if prompt != "-":
        return prompt or ""
    with _standard_input() as stdin:
        if stdin.isatty():
            click.echo("Reading the prompt from the terminal; Ctrl-D ends it.", err=True)
        return _decoded(stdin.read(), "standard input").removesuffix("\n")


def piped_lines() -> Iterator[str]:
    """The lines of standard input, each as it comes; empty ones are left out.

    :raises click.UsageError: one is no UTF-8, or cannot be read.
    """
    with _standard_input() as stdin:
        for line in stdin:
            if text := _decoded(line, "standard input").strip():
                yield text


def typed_lines() -> Iterator[str]:
    """The lines that are typed, edited as far as Python can; empty ones are left out."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # input() edits with it once it is there

    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    while True:
        try:
            line = _typed()
        except EOFError:
            click.echo(err=True)  # the shell's prompt begins on a line of its own
            return
        if text := line.strip():
            yield text


def _typed() -> str:
    if sys.stdout.isatty():
        return input(SIGN)
    # An answer that goes elsewhere is not to have the sign in it, and there is nothing to edit with.
    click.echo(SIGN, nl=False, err=True)
    return input()


@contextlib.contextmanager
def _standard_input() -> Iterator[BinaryIO]:
    if sys.stdin is None:
        raise click.UsageError("standard input is closed")
    try:
        yield sys.stdin.buffer
    except OSError as error:
        raise click.UsageError(f"standard input cannot be read: {error.strerror}") from None


def _decoded(data: bytes, place: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise click.UsageError(f"{place} is not UTF-8") from None
