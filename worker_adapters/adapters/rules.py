"""Error tables: (position, status, field) -> class, in the order in which an engine's page wants them tried."""

from __future__ import annotations

import re
from collections.abc import Callable

import msgspec

from worker_adapters.errors import (
    AuthenticationFailed,
    CapacityExceeded,
    ContextOverflow,
    EngineUnavailable,
    InvalidRequest,
    ModelNotFound,
    UnknownError,
    WorkerError,
    WorkerTimeout,
)
from worker_adapters.transport.endpoint import Endpoint
from worker_adapters.transport.faults import request_id, retry_after_ms
from worker_adapters.wire.delta import EngineFault
from worker_adapters.wire.http1 import Head
from worker_adapters.wire.openai_faults import WORDS, fault_in
from worker_adapters.wire.sse import EventSplitter

#: Of a server's name of a request so many.
REQUEST_ID = 200
#: The field of a refusal that came as an event of a stream and says none: by then the engine had the job.
EVENT = "event"


class ErrorRule(msgspec.Struct, frozen=True):
    """One row. What is None fits everything.

    :param error: the class to raise.
    :param status: HTTP status, or the one an in-stream error claims.
    :param field: the engine's word for it (``code`` or ``type``).
    :param words: a regular expression, found in its message whatever the case; only where an engine gives nothing else.
    :param position: ``"refusal"`` (an answer that is no stream) or ``"stream"`` (an event in a 200 stream).
    :param retriable: the engine provably did not start the job.
    """

    error: type[WorkerError]
    status: int | None = None
    field: str | None = None
    words: str | None = None
    position: str | None = None
    retriable: bool = False

    def fits(self, position: str, status: int | None, fault: EngineFault) -> bool:
        """Does this row decide the case?"""
        return (
            self.position in (None, position)
            and self.status in (None, status)
            and self.field in (None, fault.field, fault.code or None)
            and (self.words is None or re.search(self.words, fault.message, re.IGNORECASE) is not None)
        )


#: Envoy's 503 for a connection to the engine that broke: unless it says that nothing was sent, or that it was refused,
#: the engine may have the job. So also where Envoy has retried: it names the last reason alone.
BROKE = (
    r"disconnect/reset before headers"
    r"(?!\. reset reason: ((local|remote) )?(connection failure|connection timeout|overflow|refused stream))"
)
#: What any HTTP server means by its status; tried after an engine's own rules. 500, 502 and 504 are not retriable: the
#: engine may have started the job.
COMMON_RULES = (
    ErrorRule(AuthenticationFailed, status=401),
    ErrorRule(AuthenticationFailed, status=403),
    ErrorRule(AuthenticationFailed, status=407),
    ErrorRule(ModelNotFound, status=404),
    ErrorRule(WorkerTimeout, status=408),
    ErrorRule(WorkerTimeout, status=504),
    ErrorRule(CapacityExceeded, status=429, retriable=True),
    ErrorRule(EngineUnavailable, status=503, words=BROKE),
    ErrorRule(EngineUnavailable, status=503, retriable=True),
)


class ErrorTable:
    """An engine's answers as typed errors.

    :param place: engine and URL as a message may show them.
    """

    def __init__(self, engine: str, place: str, endpoint: Endpoint, rules: tuple[ErrorRule, ...]) -> None:
        self._engine = engine
        self._place = place
        self._endpoint = endpoint
        self._rules = rules

    def read(self, head: Head, body: bytes, prompts: list[str]) -> EngineFault | None:
        """The engine's words in the body of a refusal, without secrets and without quotations of the prompts: rules
        that go by words must not go by a user's."""
        fault = fault_of_body(head, body)
        return None if fault is None else self._clean(fault, prompts)

    def _clean(self, fault: EngineFault, prompts: list[str]) -> EngineFault:
        words = self._endpoint.clean(fault.message, prompts)
        named = fault.param is not None and self._endpoint.clean(fault.param, prompts) == fault.param
        return msgspec.structs.replace(fault, message=words, param=fault.param if named else None)

    def refusal(self, head: Head, fault: EngineFault | None, prompts: list[str], path: str, now: float) -> WorkerError:
        """The error of an answer that is no stream.

        :param fault: as ``read`` gives it.
        :param now: seconds since 1970.
        """
        if head.status == 200 and fault is None:
            what = self._type(head, prompts) or "nothing we know"
            what = what if head.plain else "a compressed body, which nobody asked for"
            message = f"{self._place} answered 200 with {what} where an event stream belongs"
            return UnknownError(message=message, engine=self._engine, status=200, phase="first_token")
        status = fault.status if head.status == 200 and fault is not None else head.status
        words = fault.message if fault else hint(head.status, self._type(head, prompts))
        message = f"{self._place} answered {head.status} to {path}" + (f": {words}" if words else "")
        error = error_for(self._rules, "refusal", status, fault or EngineFault(), message)
        error.engine = self._engine
        error.retry_after_ms = retry_after_ms(head, now)
        error.request_id = self.request_id(head, lambda: prompts)
        told = head.get("x-should-retry").strip().lower()
        if told in ("true", "false"):  # the server knows best whether it began, but a quota stays used up
            error.retriable = told == "true" and not (isinstance(error, CapacityExceeded) and not error.retriable)
        if fault is not None and fault.began:
            error.retriable = False
        return error

    def _type(self, head: Head, prompts: list[str]) -> str:
        """The answer's Content-Type, as a message may show it."""
        return self._endpoint.clean(head.told_type, prompts)

    def request_id(self, head: Head, texts: Callable[[], list[str]]) -> str | None:
        """The server's own name of the request; nothing keeps a server from echoing a key there, or anything else.

        :param texts: what the user wrote.
        """
        named = request_id(head)
        return named and self._endpoint.clean(named, texts())[:REQUEST_ID]  # masked first: half a key is not seen

    def fault(self, fault: EngineFault, prompts: list[str], *, began: bool) -> WorkerError:
        """The error of an error event.

        :param began: had a delta come? Then the engine did start.
        """
        fault = self._clean(fault, prompts)
        message = f"{self._place} failed in its stream" + (f": {fault.message}" if fault.message else "")
        error = error_for(self._rules, "stream", fault.status, fault, message)
        error.phase = "stream" if began else "first_token"
        error.retriable = error.retriable and not began and not fault.began
        return error


def fault_of_body(head: Head, body: bytes) -> EngineFault | None:
    """The engine's words in the body of a refusal: JSON in any of its forms, an event with it, or plain text."""
    fault = fault_in(body)
    if fault is None and head.media_type == "text/event-stream":  # Triton: an event says why the stream did not begin
        events = EventSplitter().feed(body + b"\n\n")
        fault = next((found for event in events if (found := fault_in(event.data)) is not None), None)
        return None if fault is None else msgspec.structs.replace(fault, field=fault.field or EVENT)
    if fault is None and head.status >= 400 and head.media_type == "text/plain":
        text = body.decode("utf-8", "replace").strip()[:WORDS]
        return EngineFault(text) if text else None
    return fault


def error_for(
    rules: tuple[ErrorRule, ...], position: str, status: int | None, fault: EngineFault, message: str
) -> WorkerError:
    """The typed error of an engine's answer; by its class of status if no rule fits."""
    rule = next((r for r in (*rules, *COMMON_RULES) if r.fits(position, status, fault)), None)
    cls, retriable = (rule.error, rule.retriable) if rule else (_by_class(status), False)
    phase = "first_token" if position == "refusal" else "stream"
    if issubclass(cls, WorkerTimeout):
        return cls(message=message, clock="engine", status=status, phase=phase)
    if issubclass(cls, ContextOverflow):
        return cls(
            message=message,
            status=status,
            phase=phase,
            field=fault.param,
            prompt_tokens=fault.prompt_tokens,
            context_size=fault.context_size,
        )
    if issubclass(cls, InvalidRequest):
        return cls(message=message, status=status, phase=phase, field=fault.param)
    return cls(message=message, status=status, phase=phase, retriable=retriable)


def _by_class(status: int | None) -> type[WorkerError]:
    if status is None or status >= 500:
        return EngineUnavailable  # also an in-stream error that says nothing of itself
    return InvalidRequest if status >= 400 else UnknownError  # a redirect is not followed: the URL is wrong


def hint(status: int, media_type: str) -> str:
    """What an answer without the engine's own words suggests."""
    if 300 <= status < 400:
        return "a redirect, which is not followed: is the URL right?"
    return f"with {media_type}: from a proxy, or another server?" if media_type else ""
