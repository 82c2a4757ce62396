"""The load server for many streams at once: ``load.c``, built on the spot; or ``server.py`` where it cannot be."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType

from measure import note
from server import FACTS, STREAMS, Server, fact, pieces

SOURCE = Path(__file__).with_suffix(".c")


class CompiledServer:
    """``load.c`` in its own process, for as long as the ``with`` block runs.

    :param counts: the numbers of tokens that a stream of OpenAI's chat may have.
    """

    def __init__(self, program: Path, counts: Iterable[int], core: int | None = None) -> None:
        self._program, self._counts, self._core = program, counts, core

    def __enter__(self) -> str:
        self._process = subprocess.Popen([self._program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # noqa: S603 - what was just built
        if self._core is not None:
            os.sched_setaffinity(self._process.pid, {self._core})
        for answer in self._answers():
            self._process.stdin.write(answer)
        self._process.stdin.flush()
        return f"http://127.0.0.1:{int(self._process.stdout.readline())}"

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._process.communicate()  # closes its standard input

    def _answers(self) -> Iterable[bytes]:
        """What it sends, as ``load.c`` wants to be told."""
        for path in FACTS:
            yield b"fact %s %d\n%s" % (path.encode(), len(fact(path)), fact(path))
        path = "/v1/chat/completions"
        for count in sorted(set(self._counts)):
            told = [STREAMS[path].head, *pieces(path, count)]
            yield b"stream %d %d\n" % (count, len(told))
            yield from (b"%d\n%s" % (len(piece), piece) for piece in told)
        yield b"serve\n"


def built(folder: Path) -> Path | None:
    """The program in ``folder``, made if it is not there or old; None without a compiler, or without epoll."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        return None
    program = folder / "load"
    if not program.exists() or program.stat().st_mtime < SOURCE.stat().st_mtime:
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run([compiler, "-O2", "-o", program, SOURCE], check=True)  # noqa: S603 - the compiler found above
    return program


def load_server(folder: Path, counts: Iterable[int], core: int | None) -> AbstractContextManager[str]:
    """The compiled server if there can be one; its ``with`` block has the URL."""
    program = built(folder)
    if program is None:
        note("no compiler: the load server is the Python one, which may limit many streams at once")
        return Server(core)
    return CompiledServer(program, counts, core)
