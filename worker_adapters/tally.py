"""Tally: what a job has delivered, and the guard of the order in which it may."""

from __future__ import annotations

from collections.abc import Iterable

from worker_adapters.errors import UnknownError
from worker_adapters.frames import (
    FRAME_ORDER,
    AnyFrame,
    EndFrame,
    Metrics,
    ReasoningFrame,
    StartedFrame,
    TokenFrame,
    ToolCall,
    ToolCallFrame,
)
from worker_adapters.report import Completion

#: What may follow itself; every other frame is looked up in the table each time.
REPEATED = frozenset({TokenFrame, ReasoningFrame, ToolCallFrame})


class Tally:
    """What a job has delivered so far: texts, tool calls, and when."""

    __slots__ = (
        "call_pieces",
        "content",
        "first_at",
        "last_at",
        "last_kind",
        "queued_at",
        "reasoning",
        "started",
        "texts",
    )

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.reasoning: list[str] = []
        self.call_pieces: list[ToolCallFrame] = []
        self.content = 0
        self.started: StartedFrame | None = None
        self.last_kind: type | None = None
        self.queued_at: float | None = None
        self.first_at: float | None = None
        self.last_at: float | None = None

    def add(self, frames: list[AnyFrame], now: float) -> bool:
        """Count a batch that is about to be delivered. True if it held content.

        :raises UnknownError: a frame that may not come now; an adapter is wrong.
        """
        before = self.content
        for frame in frames:
            kind = type(frame)
            if kind is not self.last_kind or kind not in REPEATED:
                self._guard(kind)
            if kind is TokenFrame:
                self.texts.append(frame.text)  # type: ignore[union-attr]  # the type was just compared
                self.content += 1
            elif isinstance(frame, ReasoningFrame):
                self.reasoning.append(frame.text)
                self.content += 1
            elif isinstance(frame, ToolCallFrame):
                self.call_pieces.append(frame)
                self.content += 1
            elif isinstance(frame, StartedFrame):
                self.started = frame
                self.queued_at = now
        if self.content == before:
            return False
        self.last_at = now
        if self.first_at is None:
            self.first_at = now
        return True

    def _guard(self, kind: type) -> None:
        last = None if self.last_kind is None else self.last_kind.type  # type: ignore[attr-defined]  # frames have one
        if kind.type not in FRAME_ORDER[last]:  # type: ignore[attr-defined]  # as above
            raise UnknownError(message=f"the adapter sent {kind.__name__} after {last}", phase="stream")
        self.last_kind = kind

    def without(self, frames: Iterable[AnyFrame]) -> None:
        """Take back what was counted but will never be delivered: a cancel dropped it."""
        for frame in frames:
            if isinstance(frame, TokenFrame):
                self.texts.pop()
                self.content -= 1
            elif isinstance(frame, ReasoningFrame):
                self.reasoning.pop()
                self.content -= 1
            elif isinstance(frame, ToolCallFrame):
                self.call_pieces.pop()
                self.content -= 1
        if not self.content:
            self.first_at = self.last_at = None

    def tool_calls(self) -> tuple[ToolCall, ...]:
        """Every call, whole, in the order of their indexes.

        One that the engine gave no id is named here: the turn that answers a call must say which one it answers.
        """
        calls: dict[int, list[ToolCallFrame]] = {}
        for piece in self.call_pieces:
            calls.setdefault(piece.index, []).append(piece)
        return tuple(_whole(index, calls[index]) for index in sorted(calls))

    def completion(self, end: EndFrame, job_id: str) -> Completion:
        """The whole answer, or as much of it as was delivered before a cancel."""
        return Completion(
            text="".join(self.texts),
            finish_reason=end.finish_reason,
            raw_finish_reason=end.raw_finish_reason,
            reasoning="".join(self.reasoning),
            tool_calls=end.tool_calls,
            metrics=end.metrics,
            job_id=job_id,
        )

    def metrics(self, told: Metrics, began: float, now: float) -> Metrics:
        """The engine's counts with the caller's times."""

        def ms(later: float | None, earlier: float | None = began) -> float | None:
            return None if later is None or earlier is None else (later - earlier) * 1000.0

        decode = ms(self.last_at, self.first_at)
        out = told.tokens_out if told.counts == "exact" else self.content
        return Metrics(
            tokens_in=told.tokens_in,
            tokens_out=out,
            counts=told.counts,
            queue_ms=ms(self.queued_at),
            first_token_ms=ms(self.first_at),
            decode_ms=decode,
            total_ms=ms(now),
            tokens_per_second=(out - 1) / decode * 1000.0 if decode and out > 1 else None,
            engine=told.engine,
        )


def _whole(index: int, pieces: list[ToolCallFrame]) -> ToolCall:
    call_id = next((piece.call_id for piece in pieces if piece.call_id), f"call_{index}")
    name = next((piece.name for piece in pieces if piece.name), None)
    return ToolCall(call_id, name, "".join([piece.arguments for piece in pieces]))
