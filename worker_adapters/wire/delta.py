"""What every dialect decodes to: deltas. And the pieces a dialect is written with. No I/O, no clock."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from typing import Any, TypeVar

import msgspec

from worker_adapters.wire.sse import Event

T = TypeVar("T")


class GarbledEvent(Exception):
    """An event that is not the JSON its engine promises. The message never quotes it: it may hold a prompt."""


class WireRequest(msgspec.Struct, frozen=True):
    """What ``encode`` makes of a task.

    :param path: appended to the base URL's path, e.g. ``"/completion"``.
    :param body: the bytes to send.
    :param headers: on top of those the endpoint sends for every request.
    :param method: POST, unless a control call says otherwise.
    :param facts: what the adapter decided and the user did not say (a seed); stands in ``metrics.engine``.
    """

    path: str
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    method: str = "POST"
    facts: dict[str, Any] = {}

    def __repr__(self) -> str:
        return f"WireRequest({self.method} {self.path}, {len(self.body)} bytes)"  # the body is the prompt


class ToolDelta(msgspec.Struct, frozen=True):
    """A piece of a tool call; the engine says id and name at least once.

    :param index: which call, from 0.
    :param arguments: the next piece of its JSON text.
    :param call_id: the engine's name of the call.
    :param name: the function's.
    """

    index: int
    arguments: str = ""
    call_id: str | None = None
    name: str | None = None


class Finish(msgspec.Struct, frozen=True):
    """Why the engine ended.

    :param reason: ours: ``stop``, ``length``, ``tool_calls`` or ``content_filter``.
    :param raw: the engine's own word.
    """

    reason: str
    raw: str | None


class Usage(msgspec.Struct, frozen=True):
    """Exact token counts, as the engine tells them.

    :param tokens_in: of the prompt.
    :param tokens_out: of the answer, reasoning included.
    """

    tokens_in: int | None = None
    tokens_out: int | None = None


class EngineFault(msgspec.Struct, frozen=True):
    """An error in the engine's words: what its error table decides on.

    :param message: free text; may quote the prompt, so it is redacted before anybody sees it.
    :param field: the engine's machine-readable word for it: its ``type``, or ``code`` where it says no type.
    :param status: the status it claims, if it is in the body of a 200 stream.
    :param prompt_tokens: how long the prompt is, if it says that this is the trouble.
    :param context_size: and how long it may be.
    :param code: its ``code``, where that is a word.
    :param param: the request's field that it blames.
    :param began: tokens, or their count, stand beside it: the engine did start.
    """

    message: str = ""
    field: str = ""
    status: int | None = None
    prompt_tokens: int | None = None
    context_size: int | None = None
    code: str = ""
    param: str | None = None
    began: bool = False


class Delta(msgspec.Struct, gc=False):
    """What one event adds. An empty one still proves that the engine works on the job.

    :param text: of the answer.
    :param reasoning: of the model's thinking.
    :param tools: pieces of tool calls.
    :param logprob: of the token, if it was asked for.
    :param token_id: of the token, if it was asked for.
    :param finish: the engine's reason for ending. A stream without one is truncated.
    :param usage: exact counts.
    :param facts: further facts for ``metrics.engine``.
    :param done: nothing more that matters will come; the connection may still have to end.
    :param fault: the engine's error.
    """

    text: str = ""
    reasoning: str = ""
    tools: tuple[ToolDelta, ...] = ()
    logprob: float | None = None
    token_id: int | None = None
    finish: Finish | None = None
    usage: Usage | None = None
    facts: dict[str, Any] | None = None
    done: bool = False
    fault: EngineFault | None = None


class Decoder(ABC):
    """The state of one stream's decoding; fresh for every attempt."""

    #: Fields that SSE parsers drop but this engine uses, see EventSplitter.
    fields_as_events: frozenset[bytes] = frozenset()
    #: The model that the stream says it is of, once it did.
    model: str | None = None

    @abstractmethod
    def feed(self, event: Event) -> Delta | None:
        """What the event adds; None if it says nothing at all about the job.

        :raises GarbledEvent: not the JSON that the engine promises.
        """

    def ended(self) -> Delta | None:
        """What the end of a whole body means: for engines that say nothing else at their end. None: nothing."""
        return None


#: What msgspec raises for bytes that are not what its type asks for.
REFUSED = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def parse_json(decoder: msgspec.json.Decoder[T], data: bytes) -> T:
    """``data`` as the decoder's type; leniently where msgspec refuses what engines really send.

    That is bytes that are no UTF-8 and lone surrogates (both become U+FFFD), NaN and Infinity (they become null).

    :raises GarbledEvent: not JSON, nested without end, an integer of thousands of digits, or of another shape.
    """
    try:
        return decoder.decode(data)
    except REFUSED:
        pass
    try:
        value = json.loads(data.decode("utf-8", "replace"))
        return msgspec.convert(_mended(value), decoder.type, strict=False)
    except (ValueError, RecursionError, msgspec.MsgspecError) as error:
        raise GarbledEvent(f"{type(error).__name__} in {len(data)} bytes of JSON") from None


# What servers send where the dialect promises a type: the value if it has it, else the empty one.


def mapping(value: Any) -> dict[str, Any]:
    """A JSON object."""
    return value if isinstance(value, dict) else {}


def items(value: Any) -> list[Any]:
    """A JSON list."""
    return value if isinstance(value, list) else []


def text(value: Any) -> str:
    """A JSON string."""
    return value if isinstance(value, str) else ""


def count(value: Any) -> int | None:
    """A JSON integer of at most 64 bits; True is none."""
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63 else None


def _mended(value: Any) -> Any:
    """Lone surrogates and numbers that are none replaced: no consumer could encode them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_mended(item) for item in value]
    if isinstance(value, dict):
        return {_mended(key): _mended(item) for key, item in value.items()}
    return value
