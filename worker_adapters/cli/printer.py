"""Printers: frames as a person reads them, or as a program does."""

from __future__ import annotations

import json
import sys

from rich.text import Text

from worker_adapters.cli.exits import tokens
from worker_adapters.cli.terminal import console, visible
from worker_adapters.errors import WorkerError
from worker_adapters.frames import AnyFrame, EndFrame, ErrorFrame, Metrics, ReasoningFrame, TokenFrame


class LivePrinter:
    """The answer on stdout as it comes, and nothing else there; reasoning and metrics dimmed on stderr."""

    def __init__(self) -> None:
        self._out = sys.stdout
        self._terminal = self._out.isatty()
        self._err = console(stderr=True)
        self._last = {"out": "\n", "err": "\n"}

    def show(self, frame: AnyFrame) -> None:
        """Print a frame; what it holds is on the screen when this returns."""
        if isinstance(frame, TokenFrame):
            self._end_line("err")
            self._say(frame.text)
        elif isinstance(frame, ReasoningFrame):
            if self._terminal:
                self._end_line("out")
            self._err.print(Text(visible(frame.text), style="dim"), end="", soft_wrap=True)
            self._last["err"] = frame.text[-1:] or self._last["err"]
        elif isinstance(frame, EndFrame):
            for call in frame.tool_calls:
                self._end_line("out")
                self._say(f"{call.name}({call.arguments})")
            self._end_lines()
            self._err.print(Text(summary(frame), style="dim"), soft_wrap=True)

    def fail(self, error: WorkerError) -> None:
        """The job failed. Whoever caught the error says so, on a line of its own."""
        self._end_lines()

    def _end_lines(self) -> None:
        self._end_line("err")
        self._end_line("out")

    def _say(self, text: str) -> None:
        self._out.write(visible(text) if self._terminal else text)
        self._out.flush()
        self._last["out"] = text[-1:] or self._last["out"]

    def _end_line(self, stream: str) -> None:
        if self._last[stream] != "\n":
            self._last[stream] = "\n"
            if stream == "err":
                self._err.print()
            else:
                self._out.write("\n")
                self._out.flush()


class JsonPrinter:
    """Every frame as one line of JSON on stdout."""

    def show(self, frame: AnyFrame) -> None:
        """Print a frame; escaped where the encoding of stdout lacks a character, so that nothing is lost."""
        line = json.dumps(frame.to_dict(), ensure_ascii=False)
        try:
            line.encode(sys.stdout.encoding or "utf-8")
        except UnicodeEncodeError:
            line = json.dumps(frame.to_dict())
        print(line, flush=True)

    def fail(self, error: WorkerError) -> None:
        """The job failed: its last frame is the error."""
        self.show(ErrorFrame.from_exception(error))


def summary(end: EndFrame) -> str:
    """``50 tokens, first after 15 ms, 66.6 tokens/s, stop``"""
    told = end.metrics
    parts = [tokens(told.tokens_out)]
    if told.first_token_ms is not None:
        parts.append(f"first after {milliseconds(told.first_token_ms)}")
    if told.tokens_per_second is not None:
        parts.append(f"{told.tokens_per_second:.1f} tokens/s")
    return ", ".join([*parts, end.finish_reason])


def milliseconds(value: float | None) -> str:
    """``0.57 ms``, ``36 ms``, or nothing."""
    if value is None:
        return "-"
    return f"{value:.2f} ms" if value < 10 else f"{value:.0f} ms"


def metric_rows(metrics: Metrics) -> list[tuple[str, str]]:
    """Name and value of every clock and count of a job."""
    rate = metrics.tokens_per_second
    return [
        ("tokens in", "-" if metrics.tokens_in is None else str(metrics.tokens_in)),
        ("tokens out", f"{metrics.tokens_out} ({metrics.counts})"),
        ("queue", milliseconds(metrics.queue_ms)),
        ("first token", milliseconds(metrics.first_token_ms)),
        ("decode", milliseconds(metrics.decode_ms)),
        ("total", milliseconds(metrics.total_ms)),
        ("rate", "-" if rate is None else f"{rate:.1f} tokens/s"),
    ]
