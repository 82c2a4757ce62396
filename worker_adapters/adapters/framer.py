"""Deltas to frames: numbers them, remembers why the engine ended, and stops at its errors."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from worker_adapters.frames import AnyFrame, EndFrame, Metrics, ReasoningFrame, TokenFrame, ToolCallFrame
from worker_adapters.wire.delta import Decoder, Delta, EngineFault, Finish, GarbledEvent, Usage
from worker_adapters.wire.sse import Event


class Framer:
    """One attempt's frames.

    :ivar began: has the engine said anything but an error? Then it accepted the job.
    :ivar finish: its reason for ending, once it gave one; ``over``: nothing more is to be read.
    :ivar fault, garbled: why no more frames can come. ``unread``: the last event that said nothing of the job.
    """

    __slots__ = (
        "_calls", "_decode", "_reasoning", "_tokens", "_usage", "began", "decoder", "facts", "fault",
        "fields_as_events", "finish", "garbled", "over", "unread",
    )  # fmt: skip

    def __init__(self, decoder: Decoder, facts: dict[str, Any]) -> None:
        self.fields_as_events = decoder.fields_as_events
        self.decoder = decoder
        self._decode = decoder.feed
        self._tokens = 0
        self._reasoning = 0
        self._calls: dict[int, list[bool]] = {}  # call -> were its id and its name said?
        self._usage = Usage()
        self.facts = dict(facts)
        self.began = False
        self.finish: Finish | None = None
        self.fault: EngineFault | None = None
        self.garbled = ""
        self.unread: Any = b""
        self.over = False

    @property
    def content(self) -> bool:
        """Has any frame with content been made?"""
        return bool(self._tokens or self._reasoning or self._calls)

    def feed(self, events: Iterable[Event]) -> list[AnyFrame]:
        """The frames that the events hold, up to an error or the end."""
        frames: list[AnyFrame] = []
        decode = self._decode
        index = self._tokens
        try:
            for event in events:
                delta = decode(event)
                if delta is None:
                    self.unread = event.data
                    continue
                if delta.text:
                    frames.append(TokenFrame(delta.text, index, delta.logprob, delta.token_id))
                    index += 1
                if delta.reasoning or delta.tools:
                    self._rare(delta, frames)
                if delta.finish is not None or delta.done or delta.usage or delta.facts or delta.fault is not None:
                    self._last(delta)
                    if self.over:
                        break
                self.began = True
        except GarbledEvent as error:
            self.garbled = str(error)
            self.over = True
        self._tokens = index
        self.began = self.began or bool(frames)
        return frames

    def conclude(self) -> list[AnyFrame]:
        """What the decoder makes of the end of a whole body, for an engine whose end is nothing else."""
        delta = None if self.over else self.decoder.ended()
        if delta is None:
            return []
        frames: list[AnyFrame] = []
        if delta.text:
            frames.append(TokenFrame(delta.text, self._tokens))
            self._tokens += 1
        self._last(delta)
        return frames

    def _rare(self, delta: Delta, frames: list[AnyFrame]) -> None:
        if delta.reasoning:
            frames.append(ReasoningFrame(delta.reasoning, self._reasoning))
            self._reasoning += 1
        for tool in delta.tools:
            first = tool.index not in self._calls
            said = self._calls.setdefault(tool.index, [False, False])
            call_id = None if said[0] else tool.call_id  # some engines say them again with every piece,
            name = None if said[1] else tool.name  # some only with a later one
            said[:] = [said[0] or call_id is not None, said[1] or name is not None]
            if first or tool.arguments or call_id is not None or name is not None:
                frames.append(ToolCallFrame(tool.index, tool.arguments, call_id, name))

    def _last(self, delta: Delta) -> None:
        if delta.fault is not None:
            self.fault = delta.fault
            self.over = True
            return
        self.began = self.began or delta.finish is not None or delta.usage is not None  # a marker alone says nothing
        self.finish = delta.finish or self.finish
        self.over = delta.done
        self._usage = delta.usage or self._usage
        if delta.facts:
            self.facts.update(delta.facts)

    def end(self, masked: Callable[[Any], Any]) -> EndFrame:
        """The end frame; its times are the stream's to fill in.

        :param masked: keeps secrets out of what the engine told: nothing keeps it from echoing one.
        """
        finish = self.finish or Finish("stop", None)
        usage = self._usage
        metrics = Metrics(
            tokens_in=usage.tokens_in,
            tokens_out=usage.tokens_out or 0,
            counts="counted" if usage.tokens_out is None else "exact",
            engine=masked(self.facts),
        )
        return EndFrame(finish.reason, masked(finish.raw), metrics)
