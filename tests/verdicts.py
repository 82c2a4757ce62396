"""What a played-back answer must come to: the rows of tables of recordings, and the one way to check them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from types import EllipsisType
from typing import Any

import pytest

from replay import Recording, ReplayServer, outcome
from worker_adapters.adapters.base import HttpAdapter
from worker_adapters.errors import EngineUnavailable, StreamTruncated, WorkerError
from worker_adapters.frames import AnyFrame, EndFrame, ReasoningFrame, StartedFrame, TokenFrame, ToolCall, ToolCallFrame
from worker_adapters.report import Completion
from worker_adapters.stream import TokenStream


@dataclass(frozen=True)
class Good:
    """A good end.

    :param pieces: the answer's token frames, with "|" between them.
    :param finish, raw: the finish reason, and the engine's word for it (the same, if it is not given; ... : no word).
    :param usage: (tokens in, tokens out) as the engine told them; None: it did not.
    :param reasoning: the reasoning frames, with "|" between them.
    :param calls: the whole tool calls.
    """

    pieces: str
    finish: str
    usage: tuple[int | None, int] | None = None
    raw: str | EllipsisType | None = None
    reasoning: str = ""
    calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True)
class Bad:
    """A failure.

    :param kind, status, retriable: of the error.
    :param pieces: the token frames delivered before it, with "|" between them.
    :param began: did the engine say anything but an error before it? Then there is a started frame.
    :param further: more fields of the error.
    :param words: part of its message.
    """

    kind: type[WorkerError]
    status: int | None = None
    retriable: bool = False
    pieces: str = ""
    began: bool = False
    further: dict[str, Any] = field(default_factory=dict)
    words: str = ""


def split(pieces: str) -> list[str]:
    """The pieces of a row."""
    return pieces.split("|") if pieces else []


def of_kind(frames: list[AnyFrame], kind: type) -> list[Any]:
    """The frames of one type."""
    return [frame for frame in frames if type(frame) is kind]


def check_good(stream: TokenStream, row: Good, engine: str) -> EndFrame:
    """The stream gives exactly the frames of the row."""
    frames = list(stream)
    assert type(frames[0]) is StartedFrame
    assert (frames[0].job_id, frames[0].engine) == (stream.job_id, engine)
    tokens = of_kind(frames, TokenFrame)
    assert [token.text for token in tokens] == split(row.pieces), str(frames)
    assert [token.index for token in tokens] == list(range(len(tokens)))
    reasoning = of_kind(frames, ReasoningFrame)
    assert [piece.text for piece in reasoning] == split(row.reasoning), str(frames)
    assert [piece.index for piece in reasoning] == list(range(len(reasoning)))
    end = frames[-1]
    assert isinstance(end, EndFrame)
    assert end.tool_calls == row.calls, str(end)
    raw = None if row.raw is ... else row.raw or row.finish
    assert (end.finish_reason, end.raw_finish_reason) == (row.finish, raw), str(end)
    content = len(tokens) + len(reasoning) + len(of_kind(frames, ToolCallFrame))
    assert len(frames) == 2 + content
    counts = (end.metrics.tokens_in, end.metrics.tokens_out, end.metrics.counts)
    assert counts == ((None, content, "counted") if row.usage is None else (*row.usage, "exact")), str(end)
    return end


def check_bad(stream: TokenStream, row: Bad, engine: str) -> WorkerError:
    """The stream delivers what the row says, then raises its error."""
    delivered: list[str] = []
    with pytest.raises(WorkerError) as caught:
        delivered += stream.texts()
    error = caught.value
    assert type(error) is row.kind, repr(error)
    pieces = split(row.pieces)
    assert delivered == pieces, f"{delivered} before {error!r}"
    assert (error.tokens_seen, error.partial_text) == (len(pieces), "".join(pieces)), repr(error)
    assert (error.status, error.retriable, error.engine) == (row.status, row.retriable, engine), repr(error)
    assert error.job_id == stream.job_id
    began = row.began or bool(pieces)
    assert (stream.started is not None) is began, repr(error)
    assert error.phase == ("stream" if began else "first_token"), repr(error)
    further = {name: getattr(error, name) for name in row.further}
    assert further == row.further, f"{further} of {error!r}"
    assert row.words in error.message, repr(error)
    assert "\n" not in error.message, repr(error)
    return error


def cuts(recording: Recording) -> Iterator[int]:
    """Sizes to cut a response at: every byte near the end of each chunk, and every 61st elsewhere."""
    pieces = recording.pieces()
    size = 0
    for piece in pieces:
        yield from range(size, size + len(piece) - 4, 61)
        size += len(piece)
        yield from range(size - 4, size)


def check_cuts(
    server: ReplayServer, engine: HttpAdapter, recording: Recording, row: Good, *, finish: bytes, task: dict[str, Any]
) -> None:
    """Cut anywhere, the answer fails in order; only once the event ``finish`` has come whole it is a good end."""
    assert finish in recording.body
    whole = b"".join(recording.pieces())
    texts = split(row.pieces)
    for size in cuts(recording):
        body = recording.arrived(size)
        server.answer = [whole[:size]]
        result = outcome(engine.submit(**task))
        where = f"cut at {size}: {result!r}"
        if finish in body:
            assert isinstance(result, Completion), where
            assert (result.text, result.finish_reason) == ("".join(texts), row.finish), where
            assert (result.reasoning, result.tool_calls) == ("".join(split(row.reasoning)), row.calls), where
            continue
        assert isinstance(result, EngineUnavailable), where
        assert result.retriable is False, where  # the engine may have begun
        assert "".join(texts).startswith(result.partial_text), where
        if not (row.reasoning or row.calls):
            assert result.partial_text == "".join(texts[: result.tokens_seen]), where
        if result.tokens_seen:
            assert type(result) is StreamTruncated, where
    server.answer = [whole]
    assert engine.submit(**task).result().text == "".join(texts), "the job after the cuts"
