"""The one table that turns what libraries and the operating system raise into our errors.

None of those exceptions ever leaves this package.
"""

from __future__ import annotations

import email.utils
import re
import socket
import ssl
from datetime import timezone
from typing import Any

from worker_adapters.errors import EngineUnavailable, WorkerError, WorkerTimeout
from worker_adapters.transport.endpoint import Endpoint
from worker_adapters.wire.http1 import Head

_SECONDS = re.compile(r"[0-9]+(\.[0-9]*)?")
FOREVER_MS = 1e12

#: Exception while connecting -> (what to say, may it be tried again). The first that fits; all are EngineUnavailable,
#: since no byte of the job was sent.
CONNECT_FAULTS: tuple[tuple[type[BaseException], str, bool], ...] = (
    (socket.gaierror, "the name is not known", True),
    (ssl.SSLCertVerificationError, "the server's certificate is not trusted", False),
    (ssl.SSLError, "the TLS handshake failed; does the server speak TLS there?", True),
    (ConnectionRefusedError, "nothing listens there", True),
    (ConnectionResetError, "the connection was reset", True),
    (FileNotFoundError, "there is no such socket", True),
    (PermissionError, "access to the socket is denied", False),
    (OSError, "it cannot be reached", True),
)


def connect_fault(error: BaseException, endpoint: Endpoint) -> EngineUnavailable:
    """No connection came about: safe to retry."""
    words, retriable = next((w, r) for kind, w, r in CONNECT_FAULTS if isinstance(error, kind))
    via = f" through the proxy {endpoint.address[0]}:{endpoint.address[1]}" if endpoint.proxy is not None else ""
    reason = endpoint.clean(getattr(error, "strerror", None) or type(error).__name__)
    return EngineUnavailable(
        message=f"cannot connect to {endpoint.shown}{via}: {words} ({reason})", retriable=retriable, phase="connect"
    )


def lost(endpoint: Endpoint, what: str, status: int | None = None) -> EngineUnavailable:
    """The connection was lost, or spoke nonsense, before the engine's first event.

    Not retriable: the engine may have started the job.
    """
    return EngineUnavailable(message=f"{endpoint.shown}: {what}", status=status, phase="first_token")


def retry_after_ms(head: Head, now: float) -> int | None:
    """How long a refusal asks to wait, in milliseconds: ``retry-after-ms``, or Retry-After in seconds or as a date.

    LiteLLM passes its upstream's headers on with a prefix, and only so (seen with 1.106).

    :param now: seconds since 1970.
    """
    asked = (head.get("retry-after-ms") or head.get("llm_provider-retry-after-ms")).strip()
    if _SECONDS.fullmatch(asked):
        return int(min(float(asked), FOREVER_MS))
    asked = (head.get("retry-after") or head.get("llm_provider-retry-after")).strip()
    if _SECONDS.fullmatch(asked):
        return int(min(float(asked) * 1000, FOREVER_MS))
    try:
        date = email.utils.parsedate_to_datetime(asked)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=timezone.utc)  # HTTP knows no other; asctime dates and -0000 come without
    return int(min(max(0.0, (date.timestamp() - now) * 1000), FOREVER_MS))


#: Where servers put their own name of a request; the first that is there. Azure, LiteLLM, OpenRouter, LocalAI.
REQUEST_ID_HEADERS = ("x-request-id", "apim-request-id", "x-litellm-call-id", "x-generation-id", "x-correlation-id")


def request_id(head: Head) -> str | None:
    """The server's own name of the request."""
    return next((value for value in map(head.get, REQUEST_ID_HEADERS) if value), None)


def control_fault(error: BaseException, endpoint: Endpoint) -> WorkerError:
    """What a control call through requests raised: our own error from inside it, if there is one."""
    seen: set[int] = set()
    pending: list[Any] = [error]
    while pending:
        found = pending.pop(0)
        if not isinstance(found, BaseException) or id(found) in seen:
            continue
        seen.add(id(found))
        if isinstance(found, WorkerError):
            return found
        pending += [found.__cause__, found.__context__, getattr(found, "reason", None), *found.args]
    if isinstance(error, TimeoutError):
        return WorkerTimeout(message=f"{endpoint.shown}: no answer in time", clock="connect", phase="connect")
    return EngineUnavailable(message=f"{endpoint.shown}: no usable answer ({type(error).__name__})", phase="connect")
