"""Frames: what a stream is made of, and the one table of the order in which they may come.

    started -> (token | reasoning | tool_call)* -> end          (or ``error`` in place of ``end``, from ``relay`` only)

``to_dict`` is written by hand because it runs for every token that a web process relays; absent extras are left out.
Frames are immutable, compare by value and pickle.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import msgspec

from worker_adapters.errors import ERROR_CLASSES, UnknownError, WorkerError, WorkerTimeout
from worker_adapters.jsonvalue import JsonValue

FINISH_REASONS = ("stop", "length", "cancelled", "tool_calls", "content_filter")


class Frame(msgspec.Struct, frozen=True):
    """Base of all frames; ``type`` tells them apart."""

    type: ClassVar[str]

    def to_dict(self) -> dict[str, Any]:
        """The frame as plain JSON values."""
        raise NotImplementedError


class StartedFrame(Frame, frozen=True, gc=False):
    """The engine accepted the job: its first event that was neither a comment nor an error has come.

    :param job_id: the task's, or the one that was made for it.
    :param engine: catalog name, e.g. ``"vllm"``.
    :param engine_version: as the engine tells it, else ``"unknown"``.
    :param model: the one at work, as far as it is known.
    """

    type: ClassVar[Literal["started"]] = "started"
    job_id: str
    engine: str
    engine_version: str
    model: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "type": "started",
            "job_id": self.job_id,
            "engine": self.engine,
            "engine_version": self.engine_version,
            "model": self.model,
        }


class TokenFrame(Frame, frozen=True, gc=False):
    """A piece of the answer; never empty, never half a character.

    :param index: contiguous from 0.
    :param logprob: natural logarithm of its probability, if ``logprobs`` were asked for.
    :param token_id: the model's number of the token, if ``logprobs`` were asked for and the engine tells it.
    """

    type: ClassVar[Literal["token"]] = "token"
    text: str
    index: int
    logprob: float | None = None
    token_id: int | None = None

    def to_dict(self) -> dict[str, Any]:
        frame: dict[str, Any] = {"type": "token", "text": self.text, "index": self.index}
        if self.logprob is not None:
            frame["logprob"] = self.logprob
        if self.token_id is not None:
            frame["token_id"] = self.token_id
        return frame


class ReasoningFrame(Frame, frozen=True, gc=False):
    """A piece of the model's thinking.

    :param index: contiguous from 0, counted apart from the answer's.
    """

    type: ClassVar[Literal["reasoning"]] = "reasoning"
    text: str
    index: int

    def to_dict(self) -> dict[str, Any]:
        return {"type": "reasoning", "text": self.text, "index": self.index}


class ToolCallFrame(Frame, frozen=True, gc=False):
    """A piece of a tool call. The whole calls are in ``EndFrame.tool_calls``.

    :param index: which call, from 0.
    :param arguments: the next piece of its JSON text.
    :param call_id: on the call's first frame only, as ``name``.
    :param name: the function's.
    """

    type: ClassVar[Literal["tool_call"]] = "tool_call"
    index: int
    arguments: str = ""
    call_id: str | None = None
    name: str | None = None

    def to_dict(self) -> dict[str, Any]:
        frame: dict[str, Any] = {"type": "tool_call", "index": self.index}
        if self.call_id is not None:
            frame["call_id"] = self.call_id
        if self.name is not None:
            frame["name"] = self.name
        frame["arguments"] = self.arguments
        return frame


@dataclass(frozen=True)
class ToolCall(JsonValue):
    """A whole tool call.

    :param call_id: the engine's name of it, for the ``tool`` message that answers.
    :param name: the function's.
    :param arguments: the JSON text that the model wrote, not parsed and not validated.
    """

    call_id: str | None
    name: str | None
    arguments: str

    def to_dict(self) -> dict[str, Any]:
        """``{"call_id": ..., "name": ..., "arguments": "{...}"}``"""
        return {"call_id": self.call_id, "name": self.name, "arguments": self.arguments}

    def wire(self) -> dict[str, Any]:
        """The call in OpenAI form, as a later request tells the model what it asked for."""
        return {
            "id": self.call_id,
            "type": "function",
            "function": {"name": self.name, "arguments": self.arguments},
        }


@dataclass(frozen=True)
class Metrics(JsonValue):
    """What a job cost. Times are milliseconds on the caller's clock, None if the job never came that far.

    :param tokens_in: tokens of the prompt; None if the engine did not tell.
    :param tokens_out: tokens of the answer, reasoning included.
    :param counts: ``"exact"`` if both numbers are the engine's own, ``"counted"`` if ``tokens_out`` is the number of
        content frames seen.
    :param queue_ms: start to the engine's first event: queue and prefill.
    :param first_token_ms: start to the first content frame.
    :param decode_ms: first to last content frame.
    :param total_ms: start to end.
    :param tokens_per_second: (tokens_out - 1) / decode time.
    :param engine: what the engine itself told beside the tokens, under its own names.
    """

    tokens_in: int | None = None
    tokens_out: int = 0
    counts: str = "counted"
    queue_ms: float | None = None
    first_token_ms: float | None = None
    decode_ms: float | None = None
    total_ms: float | None = None
    tokens_per_second: float | None = None
    engine: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """All fields; absent ones are None."""
        return dict(self.__dict__)


class EndFrame(Frame, frozen=True):
    """The engine said why it ended (or the job was cancelled). The last frame of every healthy stream.

    :param finish_reason: ``stop``, ``length``, ``cancelled``, ``tool_calls`` or ``content_filter``.
    :param raw_finish_reason: the engine's own word for it; None if it has none, and for a cancelled job.
    :param metrics: what the job cost.
    :param tool_calls: the whole calls, in the order of their index.
    """

    type: ClassVar[Literal["end"]] = "end"
    finish_reason: str
    raw_finish_reason: str | None = None
    metrics: Metrics = Metrics()
    tool_calls: tuple[ToolCall, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        frame: dict[str, Any] = {
            "type": "end",
            "finish_reason": self.finish_reason,
            "raw_finish_reason": self.raw_finish_reason,
            "metrics": self.metrics.to_dict(),
        }
        if self.tool_calls:
            frame["tool_calls"] = [call.to_dict() for call in self.tool_calls]
        return frame


class ErrorFrame(Frame, frozen=True):
    """An error as a frame, for relays.

    :param code: names the error's class, e.g. ``"TIMEOUT"``.
    :param fields: what the error says, by name: those of its class, ``WorkerError.fields`` and its own.
    """

    type: ClassVar[Literal["error"]] = "error"
    code: str
    fields: dict[str, Any]

    @classmethod
    def from_exception(cls, error: BaseException) -> ErrorFrame:
        """Any exception; one that is not a :class:`WorkerError` becomes UNKNOWN and names only its type."""
        if not isinstance(error, WorkerError):
            error = UnknownError(message=f"unexpected {type(error).__name__}")
        return cls(error.code, {name: getattr(error, name) for name in error.fields})

    @property
    def message(self) -> str:
        """What happened."""
        return str(self.fields.get("message", ""))

    @property
    def retriable(self) -> bool:
        """May the job be tried again?"""
        return bool(self.fields.get("retriable", False))

    def to_exception(self) -> WorkerError:
        """The same class with the same fields; an unknown code becomes :class:`UnknownError`."""
        cls = ERROR_CLASSES.get(self.code, UnknownError)
        known = {name: value for name, value in self.fields.items() if name in cls.fields}
        if cls is WorkerTimeout:
            known = {"clock": "engine", **known}
        return cls(**{"message": self.code, **known})

    def to_dict(self) -> dict[str, Any]:
        return {"type": "error", "code": self.code, **self.fields}


#: What may follow what: the one place where the order of frames is decided. None is the state before the first frame.
CONTENT = ("token", "reasoning", "tool_call")
FRAME_ORDER: dict[str | None, tuple[str, ...]] = {
    None: ("started", "end", "error"),  # end at once: cancelled before the engine accepted the job
    "started": (*CONTENT, "end", "error"),
    "token": (*CONTENT, "end", "error"),
    "reasoning": (*CONTENT, "end", "error"),
    "tool_call": (*CONTENT, "end", "error"),
    "end": (),
    "error": (),
}

#: Whatever a stream may yield; ``frame.type`` tells which.
AnyFrame = StartedFrame | TokenFrame | ReasoningFrame | ToolCallFrame | EndFrame | ErrorFrame


def _end_from_dict(d: dict[str, Any]) -> EndFrame:
    calls = tuple(msgspec.convert(call, ToolCall) for call in d.pop("tool_calls", ()))
    metrics = msgspec.convert(d.pop("metrics", {}), Metrics)
    reason, raw = msgspec.convert((d.pop("finish_reason"), d.pop("raw_finish_reason", None)), tuple[str, str | None])
    return EndFrame(reason, raw, metrics, calls, **d)


_FRAME_CLASSES: dict[str, type[Frame]] = {
    cls.type: cls for cls in (StartedFrame, TokenFrame, ReasoningFrame, ToolCallFrame)
}


def frame_from_dict(data: Mapping[str, Any]) -> AnyFrame:
    """The frame that ``to_dict`` wrote.

    :raises ValueError: not a frame: an unknown ``type``, an unknown, missing or mistyped field.
    """
    fields = dict(data)
    kind = fields.pop("type", None)
    try:
        if kind == "error":
            return ErrorFrame(msgspec.convert(fields.pop("code"), str), fields)
        if kind == "end":
            return _end_from_dict(fields)
        cls = _FRAME_CLASSES[kind]
        unknown = fields.keys() - set(cls.__struct_fields__)
        if unknown:
            raise ValueError(f"{kind} frame: unknown field {sorted(unknown)[0]!r}")
        return msgspec.convert(fields, cls)  # type: ignore[return-value]  # the table holds only members of AnyFrame
    except (KeyError, TypeError, msgspec.ValidationError) as error:
        raise ValueError(f"not a frame: type {kind!r}: {error}") from error
