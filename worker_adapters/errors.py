"""The errors every engine raises: one class, one code, both ways.

A caller asks three questions of an error: may I try again (``retriable``), whose fault was it (the class), and was
text produced (``tokens_seen``, ``partial_text``). The answers are the same for every engine. ``ErrorFrame`` (frames.py)
carries the same fields over a wire and gives the same class back.

No error holds a secret or a prompt: messages that quote an engine pass through ``transport.redact`` first.
"""

from __future__ import annotations

from typing import Any, ClassVar

CLOCKS = ("connect", "first_token", "between_tokens", "total", "pool", "engine")
PHASES = ("submit", "connect", "queue", "first_token", "stream", "end")


class WorkerError(Exception):
    """Base of all errors raised by this library.

    :param message: what happened, where, and what to try; one line, no secret, no prompt.
    :param retriable: True only if the engine provably did not start the job; never True once a token was seen or for a
        class whose ``may_retry`` is False. None takes the class's default.
    :param retry_after_ms: how long the engine asked to wait, in milliseconds.
    :param engine: catalog name of the engine, e.g. ``"llamacpp"``.
    :param job_id: the job that failed.
    :param status: HTTP status of the answer, if there was one.
    :param phase: one of ``submit connect queue first_token stream end``.
    :param tokens_seen: content frames delivered before the error.
    :param partial_text: answer text delivered before the error.
    :param request_id: the server's own name of the request (``x-request-id``), for its support or its log.
    """

    #: What names the class in frames, logs and on the command line.
    code: ClassVar[str] = "UNKNOWN"
    #: May an error of this class ever be retried? The upper bound of ``retriable``.
    may_retry: ClassVar[bool] = False
    #: Is the error retriable when nobody said so?
    retriable_by_default: ClassVar[bool] = False
    #: Does the error speak against the engine (a breaker counts it) rather than against the request?
    engine_fault: ClassVar[bool] = False

    #: Every field an error carries, in the order of its frame; subclasses append their own.
    fields: ClassVar[tuple[str, ...]] = (
        "message",
        "retriable",
        "retry_after_ms",
        "engine",
        "job_id",
        "status",
        "phase",
        "tokens_seen",
        "partial_text",
        "request_id",
    )

    def __init__(
        self,
        *,
        message: str,
        retriable: bool | None = None,
        retry_after_ms: int | None = None,
        engine: str | None = None,
        job_id: str | None = None,
        status: int | None = None,
        phase: str | None = None,
        tokens_seen: int = 0,
        partial_text: str = "",
        request_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_ms = retry_after_ms
        self.engine = engine
        self.job_id = job_id
        self.status = status
        self.phase = phase
        self.tokens_seen = tokens_seen
        self.partial_text = partial_text
        self.request_id = request_id
        self._retriable = self.retriable_by_default if retriable is None else retriable

    @property
    def retriable(self) -> bool:
        """True only if trying again cannot make a second generation."""
        return self._retriable and self.may_retry and self.tokens_seen == 0

    @retriable.setter
    def retriable(self, value: bool) -> None:
        self._retriable = value

    def to_dict(self) -> dict[str, Any]:
        """``{"code": ..., "message": ..., ...}``: the code and every field of this class."""
        return {"code": self.code, **{name: getattr(self, name) for name in self.fields}}

    def __str__(self) -> str:
        return self.message

    def __repr__(self) -> str:
        shown = ("message", "engine", "job_id", "status", "phase", "request_id")
        inside = ", ".join(f"{name}={getattr(self, name)!r}" for name in shown if getattr(self, name) is not None)
        return f"{type(self).__name__}({inside})"

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), {name: getattr(self, name) for name in self.fields}))


def _rebuild(cls: type[WorkerError], fields: dict[str, Any]) -> WorkerError:
    """Unpickle: exceptions with keyword-only arguments cannot use the default protocol."""
    return cls(**fields)


class WorkerTimeout(WorkerError, TimeoutError):
    """One of the clocks fired. Only ``connect`` and ``pool`` may be retried: in both the engine never saw the job.

    :param clock: which: ``connect``, ``first_token``, ``between_tokens``, ``total``, ``pool``, or ``engine``, the
        server's own time-out (HTTP 408 or 504, a queue time-out).
    """

    code = "TIMEOUT"
    fields = (*WorkerError.fields, "clock")

    def __init__(self, *, clock: str, **common: Any) -> None:
        if clock not in CLOCKS:
            raise ValueError(f"clock: {clock!r} is not one of {', '.join(CLOCKS)}")
        self.clock = clock
        super().__init__(**common)

    @property
    def may_retry(self) -> bool:  # type: ignore[override]  # the clock decides, so the class cannot
        return self.clock in ("connect", "pool")

    @property
    def retriable_by_default(self) -> bool:  # type: ignore[override]  # as above
        return self.may_retry

    @property
    def engine_fault(self) -> bool:  # type: ignore[override]  # the caller's total and the pool wait blame nobody
        return self.clock not in ("total", "pool")


class EngineUnavailable(WorkerError, ConnectionError):
    """Refused, DNS, TLS, reset, loading, a dead engine, 5xx. Retriable only if the job provably did not start."""

    code = "ENGINE_UNAVAILABLE"
    may_retry = True
    engine_fault = True


class StreamTruncated(EngineUnavailable):
    """The stream died, or ended without the engine's own reason for ending. Never retriable."""

    code = "STREAM_TRUNCATED"
    may_retry = False


class InvalidRequest(WorkerError, ValueError):
    """The request is wrong, by our validation or by the engine's (400, 422).

    :param field: names the culprit, if it is known: a field of the task (``extra.min_tokens``) or an option.
    """

    code = "INVALID_REQUEST"
    fields = (*WorkerError.fields, "field")

    def __init__(self, *, field: str | None = None, **common: Any) -> None:
        self.field = field
        super().__init__(**common)


def invalid(field: str, want: str) -> InvalidRequest:
    """The one form of a validation error: it names the field and what is wanted, never the value (it may be secret)."""
    return InvalidRequest(message=f"{field}: {want}", field=field, phase="submit")


class ContextOverflow(InvalidRequest):
    """The prompt does not fit.

    :param prompt_tokens: what was asked for, if the engine tells.
    :param context_size: what one job can have, in tokens.
    """

    code = "CONTEXT_OVERFLOW"
    fields = (*InvalidRequest.fields, "prompt_tokens", "context_size")

    def __init__(self, *, prompt_tokens: int | None = None, context_size: int | None = None, **common: Any) -> None:
        self.prompt_tokens = prompt_tokens
        self.context_size = context_size
        super().__init__(**common)


class ModelNotFound(InvalidRequest):
    """The engine serves no such model, or the URL leads to no engine (404)."""

    code = "MODEL_NOT_FOUND"


class AuthenticationFailed(InvalidRequest):
    """401, 403, or 407 from a proxy."""

    code = "AUTHENTICATION_FAILED"


class CapacityExceeded(WorkerError):
    """429, overloaded, or queue full: the engine refused the job before it began. Quota errors are not retriable."""

    code = "CAPACITY_EXCEEDED"
    may_retry = True
    retriable_by_default = True


class PoolUnavailable(WorkerError):
    """Refused by the VRAM policy, or the engine is out of GPU memory."""

    code = "POOL_UNAVAILABLE"
    engine_fault = True


class UnknownError(WorkerError):
    """The rest: an engine's answer that fits no rule, or a fault of a third-party adapter."""

    code = "UNKNOWN"
    engine_fault = True


#: code -> class. One class, one code, both ways.
ERROR_CLASSES: dict[str, type[WorkerError]] = {
    cls.code: cls
    for cls in (
        WorkerTimeout,
        EngineUnavailable,
        StreamTruncated,
        InvalidRequest,
        ContextOverflow,
        ModelNotFound,
        AuthenticationFailed,
        CapacityExceeded,
        PoolUnavailable,
        UnknownError,
    )
}
