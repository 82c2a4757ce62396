"""One job: its frames printed as they come, cancelled by Ctrl-C."""

from __future__ import annotations

from worker_adapters.cli.exits import DONE, INTERRUPTED
from worker_adapters.cli.interrupt import cancelling
from worker_adapters.cli.printer import JsonPrinter, LivePrinter
from worker_adapters.frames import ErrorFrame
from worker_adapters.stream import TokenStream

Printer = LivePrinter | JsonPrinter


def answer(stream: TokenStream, printer: Printer) -> int:
    """Print every frame; the exit code.

    :raises WorkerError: the job failed.
    """
    with stream, cancelling(stream) as interrupt:
        for frame in stream.relay():
            if isinstance(frame, ErrorFrame):
                raise frame.to_exception()
            if frame is not None:
                printer.show(frame)
    return INTERRUPTED if interrupt.came else DONE
