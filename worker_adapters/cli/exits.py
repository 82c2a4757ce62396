"""Exit codes: one for every class of error, and what to try after it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from worker_adapters.errors import (
    AuthenticationFailed,
    CapacityExceeded,
    ContextOverflow,
    EngineUnavailable,
    InvalidRequest,
    ModelNotFound,
    PoolUnavailable,
    StreamTruncated,
    UnknownError,
    WorkerError,
    WorkerTimeout,
)

DONE = 0
FAILED = 1
USAGE = 2
INTERRUPTED = 130
NO_READER = 141


def _unavailable(error: WorkerError) -> str:
    if error.phase == "queue":
        return "See worker-adapters status."
    if error.status == 503:
        return "It is starting, or overloaded: try again in a moment."
    if error.phase == "connect" and not error.retriable:
        return ""  # a certificate, or a permission: the message says which
    if error.phase == "connect":
        return "Is the server running there? Start it, or give the right URL."
    return "See the server's log."


def _timeout(error: WorkerError) -> str:
    return {
        "total": "Give it more time with --timeout.",
        "pool": "Every replica is busy: try again in a moment.",
        "connect": "Is the address right, and reachable from here?",
        "engine": "The server gave up by itself: is it overloaded?",
    }.get(getattr(error, "clock", ""), "The server accepted the job and went silent: is it overloaded? See its log.")


def _capacity(error: WorkerError) -> str:
    if error.retry_after_ms is None:
        return "Try again later."
    return f"Try again in {error.retry_after_ms / 1000:.0f} s, as the server asks."


def _no_gpu(error: WorkerError) -> str:
    if error.phase == "queue":
        return ""  # the pool's policy: the message says which replica is what
    return "Free GPU memory, or load a smaller model."


def _no_model(error: WorkerError) -> str:
    if error.phase == "connect":  # llama.cpp refused the file
        return "Is the file whole, and of a kind that llama.cpp knows?"
    if error.phase == "submit" and error.status is None:
        return ""  # what should be a model file: the message says what it is
    return "Check --model, --engine and the URL."


def _always(words: str) -> Callable[[WorkerError], str]:
    return lambda error: words


class Exit(NamedTuple):
    """What a class of error means to a shell: its code, what happened in a few words, and what to try."""

    error: type[WorkerError]
    code: int
    meaning: str
    advice: Callable[[WorkerError], str]


EXITS = (
    Exit(InvalidRequest, 3, "the request is wrong", _always("")),
    Exit(ContextOverflow, 4, "the prompt is too long", _always("Shorten the prompt, or lower --max-tokens.")),
    Exit(ModelNotFound, 5, "no such model, file, or engine at that URL", _no_model),
    Exit(AuthenticationFailed, 6, "the key was refused", _always("Is the right key in --api-key-env, or in --config?")),
    Exit(CapacityExceeded, 7, "the engine is full", _capacity),
    Exit(PoolUnavailable, 8, "the GPU is full, or the pool's policy refuses", _no_gpu),
    Exit(EngineUnavailable, 9, "the engine is down or failed", _unavailable),
    Exit(StreamTruncated, 10, "the answer broke off", _always("The answer is incomplete. See the server's log.")),
    Exit(WorkerTimeout, 11, "it took too long", _timeout),
    Exit(UnknownError, 12, "anything else", _always("Is --engine right for the server there?")),
)
_BY_CLASS = {row.error: row for row in EXITS}


def exit_for(error: WorkerError) -> Exit:
    """The row of an error, or of the nearest class above it."""
    return next((_BY_CLASS[cls] for cls in type(error).__mro__ if cls in _BY_CLASS), EXITS[-1])


def tokens(count: int) -> str:
    """``1 token``, ``2 tokens``"""
    return f"{count} token" if count == 1 else f"{count} tokens"


def explain(error: WorkerError) -> str:
    """One line: the code, what happened, and what to try. Never a prompt, a secret or a partial answer."""
    message = error.message.rstrip(".")
    so_far = f" (after {tokens(error.tokens_seen)})" if error.tokens_seen else ""
    return f"{error.code}: {message}{so_far}. {exit_for(error).advice(error)}".strip()


def table(done: str = "the answer is complete") -> str:
    """The codes as the help shows them, one a line.

    :param done: what a command promises with 0.
    """
    rows: list[tuple[int, str]] = [
        (DONE, done),
        (FAILED, "demo or simulate failed, or the output cannot be written"),
        (USAGE, "the command line is wrong, or a package is missing"),
        *((row.code, f"{row.error.__name__}: {row.meaning}") for row in EXITS),
        (INTERRUPTED, "Ctrl-C"),
        (NO_READER, "whoever read the output has gone (| head)"),
    ]
    return "\n".join(f"  {code:>3}  {meaning}" for code, meaning in rows)
