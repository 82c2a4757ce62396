"""The command line as a process of its own: in a pipe, and at a terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from click.testing import CliRunner, Result

from worker_adapters.cli.commands import cli

SOON = 20.0  # seconds that nothing here needs
#: Every warning is an error, as in pytest itself.
COMMAND = (sys.executable, "-W", "error", "-m", "worker_adapters")
NOBODY = "http://127.0.0.1:9"  # discard: nothing listens there


def invoke(*arguments: str, **environment: str) -> Result:
    """The command's result, run in this process; stdout and stderr apart."""
    return CliRunner().invoke(cli, [*arguments], env=environment, prog_name="worker-adapters")


@contextmanager
def started(*arguments: str, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A command in a process, with unbuffered pipes; killed at the end, if it still runs."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    process = subprocess.Popen([*COMMAND, *arguments], bufsize=0, **pipes)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def ended(process: subprocess.Popen[bytes]) -> tuple[int, str, str]:
    """Exit code, and what it printed on stdout and stderr (less what was read already)."""
    out, err = process.communicate(timeout=SOON)
    return process.returncode, (out or b"").decode(), (err or b"").decode()


class Terminal:
    """A terminal of so many columns; a command's streams go to ``end``."""

    def __init__(self, columns: int) -> None:
        self._ours, self.end = pty.openpty()
        fcntl.ioctl(self.end, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        unwanted = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR")
        self.environment = {name: value for name, value in os.environ.items() if name not in unwanted}
        self.environment["TERM"] = "xterm"
        self.shown = ""

    def read(self, until: str = "") -> str:
        """What is shown, until that stands there (at once if it does already), or until everybody has left."""
        if self.end >= 0:
            os.close(self.end)  # the command has its own: without ours its end is seen
            self.end = -1
        while not until or until not in self.shown:
            try:
                data = os.read(self._ours, 4096)
            except OSError:
                break
            self.shown += data.decode(errors="replace").replace("\r", "")
        return self.shown

    def lines(self) -> list[str]:
        """The lines, less their colours and the movements of the cursor."""
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.shown).splitlines()

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in (self._ours, self.end):
            if descriptor >= 0:
                os.close(descriptor)
