"""The five clocks, as one validated value. What each one covers, and what it cannot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from worker_adapters.errors import InvalidRequest

#: What a socket can wait for; NaN and infinity are beyond it too.
MAX_SECONDS = 1e9


@dataclass(frozen=True)
class Timeouts:
    """Seconds, or None for no limit. Each fires within 50 ms of its value and costs nothing a token.

    ``first_token`` and ``between_tokens`` run only while a reader waits for the engine: a slow consumer never trips
    them.

    :param pool: waiting for a free place in a pool of replicas (the host's).
    :param connect: every address of the name together, the proxy's CONNECT and the TLS handshake. A DNS lookup counts,
        but cannot be interrupted: the clock fires when it returns.
    :param first_token: from the first byte sent to the first frame with content; queueing and prefill are in it.
    :param between_tokens: between frames with content. SSE keep-alive comments do not feed it.
    :param total: wall time from ``start()``, over all attempts; fires at the next wait or ``next()``, but not once only
        the end is left to be given.
    :raises InvalidRequest: naming the clock: no positive, finite number.
    """

    pool: float | None = 30.0
    connect: float | None = 5.0
    first_token: float | None = 60.0
    between_tokens: float | None = 30.0
    total: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            check_seconds(f"timeouts.{field.name}", getattr(self, field.name))

    def __or__(self, changes: Timeouts | Mapping[str, Any] | None) -> Timeouts:
        """These timeouts with the ones that ``changes`` names; a whole Timeouts replaces them all."""
        if changes is None:
            return self
        return changes if isinstance(changes, Timeouts) else replace(self, **changes)


def checked(value: Any) -> Timeouts | dict[str, Any] | None:
    """A Timeouts as it is; a mapping that names some clocks, validated; one that names all of them as a Timeouts.

    :raises InvalidRequest: an unknown clock or a value that is no time.
    """
    if value is None or isinstance(value, Timeouts):
        return value
    if not isinstance(value, Mapping):
        raise InvalidRequest(message="timeouts: want Timeouts or a mapping of clocks to seconds", field="timeouts")
    names = {field.name for field in fields(Timeouts)}
    unknown = value.keys() - names
    if unknown:
        known = ", ".join(field.name for field in fields(Timeouts))
        message = f"timeouts: unknown clock {min(map(str, unknown))!r}; there are {known}"
        raise InvalidRequest(message=message, field="timeouts")
    whole = Timeouts(**value)
    return whole if value.keys() == names else dict(value)


def check_seconds(field: str, value: Any, *, optional: bool = True) -> None:
    """A positive, finite number of seconds, or None.

    :raises InvalidRequest: zero, negative, NaN, infinite, a bool or no number.
    """
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= MAX_SECONDS:
        raise InvalidRequest(message=f"{field}: want a positive number of seconds or None", field=field)


def check_count(field: str, value: Any, least: int) -> None:
    """An integer of at least ``least``.

    :raises InvalidRequest: a bool, no integer, or too small.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InvalidRequest(message=f"{field}: want an integer of at least {least}", field=field)
