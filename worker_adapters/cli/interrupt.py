"""Ctrl-C: the first one cancels the job at the engine, the second one leaves at once. And SIGTERM, where it matters."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Protocol

from worker_adapters.cli.exits import INTERRUPTED


class Cancellable(Protocol):
    """What Ctrl-C cancels: a stream, or many."""

    def cancel(self) -> bool:
        """From a signal handler; never blocks."""


class Interrupt:
    """Has Ctrl-C come?"""

    def __init__(self, stream: Cancellable) -> None:
        self.came = False
        self._stream = stream

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The signal handler. ``cancel`` may be called from one; its reader then gets the end of the job."""
        if self.came:
            os._exit(INTERRUPTED)
        self.came = True
        self._stream.cancel()


@contextmanager
def cancelling(stream: Cancellable) -> Iterator[Interrupt]:
    """While inside, Ctrl-C cancels ``stream``. A process that was told to ignore Ctrl-C (nohup, ``&``) still does."""
    interrupt = Interrupt(stream)
    before = signal.getsignal(signal.SIGINT)
    if before is None or before == signal.SIG_IGN:  # None: somebody else's, not set from Python
        yield interrupt
        return
    signal.signal(signal.SIGINT, interrupt.handle)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, before)


def leave_orderly() -> None:
    """From now on SIGTERM and a closed terminal end the command as an exception does; its server and files go, too."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _leave)


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)
