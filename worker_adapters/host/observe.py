"""Narration: what the host says of its jobs, to logs and to observers. Never per token, never a prompt or a secret."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import msgspec

from worker_adapters.errors import WorkerError
from worker_adapters.frames import EndFrame, StartedFrame

log = logging.getLogger("worker_adapters.host")

#: What the log says of a job beside the words: on every record, None where it is not known (yet).
FIELDS = (
    "job_id", "session_id", "correlation_id", "engine", "engine_version", "pool", "replica", "tokens_in", "tokens_out",
    "decode_ms",
)  # fmt: skip


class JobInfo(msgspec.Struct):
    """Who a job is, for logs, observers and ``host.jobs()``.

    :param job_id: its name, for ``host.cancel``.
    :param pool: where it was submitted.
    :param priority: ``interactive`` or ``batch``.
    :param since: when it was submitted: seconds, on the clock of ``time.monotonic``.
    :param session_id: the task's.
    :param correlation_id: the task's.
    :param replica: None until it has a place.
    :param engine: catalog name; None until it has a place.
    :param engine_version: None until that engine has accepted it.
    """

    job_id: str
    pool: str
    priority: str
    since: float
    session_id: str | None = None
    correlation_id: str | None = None
    replica: str | None = None
    engine: str | None = None
    engine_version: str | None = None


class Observer:
    """Told of every job, in the thread that drives it: be quick. One that raises is logged, and the job goes on.

    Every method does nothing until it is overridden. ``on_submit`` is followed by exactly one of ``on_end`` and
    ``on_error``; a job that was dropped counts as cancelled, and then the thread is whichever dropped it.
    """

    def on_submit(self, info: JobInfo) -> None:
        """A job was submitted."""

    def on_start(self, info: JobInfo, started: StartedFrame) -> None:
        """An engine accepted it."""

    def on_first_token(self, info: JobInfo, waited_ms: float) -> None:
        """Its first frame with content came, so long after it began to be driven; the wait for a place counts."""

    def on_end(self, info: JobInfo, end: EndFrame) -> None:
        """It ended; ``end.finish_reason`` is ``cancelled`` if a cancel did it."""

    def on_error(self, info: JobInfo, error: WorkerError) -> None:
        """It failed. With ``info.engine_version`` None no engine had accepted it: it was refused."""


class Narrator:
    """Tells the log and the observers."""

    def __init__(self, observers: Iterable[Observer]) -> None:
        self._observers = tuple(observers)

    def submitted(self, info: JobInfo) -> None:
        """A job was submitted."""
        if self._observers:
            self._tell("on_submit", info)
        _say(logging.INFO, info, "submitted to pool %s", info.pool)

    def started(self, info: JobInfo, started: StartedFrame) -> None:
        """An engine accepted a job."""
        info.engine, info.engine_version = started.engine, started.engine_version
        if self._observers:
            self._tell("on_start", info, started)
        _say(logging.INFO, info, "started on %s/%s", info.pool, info.replica)

    def first_token(self, info: JobInfo, waited_ms: float) -> None:
        """The first frame with content came. Not for the log: the end tells it too."""
        if self._observers:
            self._tell("on_first_token", info, waited_ms)

    def ended(self, info: JobInfo, end: EndFrame) -> None:
        """A job ended, or was cancelled."""
        if self._observers:
            self._tell("on_end", info, end)
        if not log.isEnabledFor(logging.INFO):
            return
        told = end.metrics
        counts = {"tokens_in": told.tokens_in, "tokens_out": told.tokens_out, "decode_ms": told.decode_ms}
        if end.finish_reason == "cancelled":
            _say(logging.INFO, info, "cancelled after %d tokens", told.tokens_out, **counts)
        else:
            _say(logging.INFO, info, "ended: %s, %d tokens", end.finish_reason, told.tokens_out, **counts)

    def failed(self, info: JobInfo, error: WorkerError) -> None:
        """A job failed."""
        self._tell("on_error", info, error)
        _say(logging.WARNING, info, "%s: %s", error.code, error.message, tokens_out=error.tokens_seen)

    def _tell(self, method: str, *what: Any) -> None:
        for observer in self._observers:
            try:
                getattr(observer, method)(*what)
            except Exception:
                log.exception("%s.%s failed", type(observer).__name__, method)


def _say(level: int, info: JobInfo, words: str, *values: Any, **told: Any) -> None:
    if log.isEnabledFor(level):
        fields = {name: told.get(name, getattr(info, name, None)) for name in FIELDS}
        log.log(level, "job %s: " + words, info.job_id, *values, extra=fields)  # noqa: G003 - the words are constants
