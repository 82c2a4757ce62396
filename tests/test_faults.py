"""What connecting may raise, and how long a refusal asks to wait."""

from __future__ import annotations

import socket
import ssl
from typing import Any

import pytest
import requests
import urllib3
from hypothesis import given
from hypothesis import strategies as st

from worker_adapters.errors import EngineUnavailable, UnknownError, WorkerTimeout
from worker_adapters.transport.endpoint import Endpoint
from worker_adapters.transport.faults import connect_fault, control_fault, lost, retry_after_ms
from worker_adapters.wire.http1 import Head

NOW = 1_445_412_480.0  # Wed, 21 Oct 2015 07:28:00 GMT
ENDPOINT = Endpoint("http://user:hunter2@engine:8000/base?key=opensesame", api_key="sesame-key")


def asked(**headers: str) -> int | None:
    named = tuple((name.replace("_", "-"), value) for name, value in headers.items())
    return retry_after_ms(Head(503, named, keep_alive=True), NOW)


@pytest.mark.parametrize(
    ("value", "ms"),
    [
        ("0", 0),
        ("3", 3000),
        (" 3 ", 3000),
        ("1.5", 1500),
        ("0.25", 250),
        ("120", 120_000),
        ("Wed, 21 Oct 2015 07:28:10 GMT", 10_000),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0),
        ("Wed, 21 Oct 2015 07:27:00 GMT", 0),
        ("Wed, 21 Oct 2015 09:28:05 +0200", 5000),
        ("Wednesday, 21-Oct-15 07:28:10 GMT", 10_000),
        ("", None),
        ("soon", None),
        ("-5", None),
        ("1e3", None),
        ("1.2.3", None),
        ("nan", None),
        ("inf", None),
        ("9" * 400, 10**12),
        ("²", None),
        ("Wed, 99 Oct 2015 07:28:00 GMT", None),
        ("Wed, 21 Oct 99999 07:28:00 GMT", None),
    ],
)
def test_retry_after_in_seconds_or_as_a_date(value: str, ms: int | None) -> None:
    """Seconds, also with a fraction, and dates become milliseconds; a past date is 0, nonsense is no wish."""
    assert asked(retry_after=value) == ms


@pytest.mark.parametrize(
    ("value", "ms"),
    [
        ("250", 250),
        ("0", 0),
        ("1.9", 1),
        ("-10", None),
        ("soon", None),
        ("nan", None),
        ("inf", None),
        ("9" * 400, 10**12),
    ],
)
def test_retry_after_ms_is_in_milliseconds(value: str, ms: int | None) -> None:
    """``retry-after-ms`` is taken as it is, and before Retry-After."""
    assert asked(retry_after_ms=value) == ms
    if ms is not None:
        assert asked(retry_after="60", retry_after_ms=value) == ms


def test_no_header_is_no_wish() -> None:
    """A refusal without either header asks for nothing."""
    assert asked() is None


@given(value=st.text(st.characters(max_codepoint=255), max_size=40))
def test_no_value_of_the_headers_raises(value: str) -> None:
    """Whatever a server writes there, the answer is a time or None."""
    for ms in (asked(retry_after=value), asked(retry_after_ms=value)):
        assert ms is None or ms >= 0


@given(
    parts=st.lists(st.sampled_from(["Wed,", "21", "Oct", "2015", "07:28:00", "GMT", "+9999", "-0000", ":", "0", "99"]))
)
def test_no_malformed_date_raises(parts: list[str]) -> None:
    """A date in any disorder is a time or None."""
    ms = asked(retry_after=" ".join(parts))
    assert ms is None or ms >= 0


# exception -> (words, may be tried again)
CONNECT = [
    (socket.gaierror(-2, "Name or service not known"), "the name is not known", True),
    (ssl.SSLCertVerificationError(1, "certificate verify failed"), "certificate is not trusted", False),
    (ssl.SSLError(1, "wrong version number"), "the TLS handshake failed", True),
    (ssl.SSLEOFError(8, "EOF occurred"), "the TLS handshake failed", True),
    (ConnectionRefusedError(111, "Connection refused"), "nothing listens there", True),
    (ConnectionResetError(104, "Connection reset by peer"), "the connection was reset", True),
    (FileNotFoundError(2, "No such file or directory"), "there is no such socket", True),
    (PermissionError(13, "Permission denied"), "access to the socket is denied", False),
    (OSError(113, "No route to host"), "it cannot be reached", True),
    (TimeoutError(110, "Connection timed out"), "it cannot be reached", True),
    (BrokenPipeError(32, "Broken pipe"), "it cannot be reached", True),
    (OSError(), "it cannot be reached", True),
    (ConnectionError(None, "the proxy answered 502"), "it cannot be reached", True),
]


@pytest.mark.parametrize(("raised", "words", "retriable"), CONNECT, ids=lambda value: type(value).__name__)
def test_each_connect_failure_is_an_engine_unavailable(raised: OSError, words: str, retriable: bool) -> None:
    """No byte of the job was sent: every failure says in plain words what failed where, and whether to try again."""
    error = connect_fault(raised, ENDPOINT)
    assert type(error) is EngineUnavailable
    assert (error.retriable, error.phase, error.status) == (retriable, "connect", None)
    assert words in error.message
    assert "http://engine:8000/base" in error.message
    assert (raised.strerror or type(raised).__name__) in error.message


def test_a_proxy_is_named_where_it_failed() -> None:
    """The message of a connect failure through a proxy names the proxy, without its password."""
    endpoint = Endpoint("https://engine", proxy="http://user:hunter2@proxy:3128")
    error = connect_fault(ConnectionRefusedError(111, "Connection refused"), endpoint)
    assert "through the proxy proxy:3128" in error.message
    assert "hunter2" not in error.message


@pytest.mark.parametrize("secret", ["hunter2", "opensesame", "sesame-key"])
def test_no_fault_shows_a_secret(secret: str) -> None:
    """Neither URL, key nor query parameter stands in a message, also where the exception quotes it."""
    for raised in (OSError(1, f"cannot do {secret}"), ConnectionError(None, f"said {secret}")):
        assert secret not in repr(connect_fault(raised, ENDPOINT))
    assert secret not in repr(lost(ENDPOINT, "the connection closed"))
    assert secret not in repr(control_fault(requests.ConnectionError(f"for url {secret}"), ENDPOINT))


def test_a_lost_connection_is_never_retriable() -> None:
    """Once the request was sent, the engine may have begun."""
    error = lost(ENDPOINT, "the connection was reset before it answered", status=200)
    assert type(error) is EngineUnavailable
    assert (error.retriable, error.phase, error.status) == (False, "first_token", 200)


def nest(error: BaseException, *outer: Any) -> BaseException:
    """The error inside others, as requests and urllib3 wrap it."""
    for wrap in outer:
        error = wrap(error)
    return error


OURS = UnknownError(message="ours")


@pytest.mark.parametrize(
    "raised",
    [
        OURS,
        nest(OURS, requests.ConnectionError),
        nest(OURS, lambda e: urllib3.exceptions.MaxRetryError(None, "/", e), requests.ConnectionError),  # type: ignore[arg-type]
        nest(OURS, lambda e: urllib3.exceptions.ProtocolError("aborted", e), requests.ConnectionError),
    ],
    ids=["bare", "requests", "max retries", "protocol"],
)
def test_our_own_error_is_found_inside_those_of_the_libraries(raised: BaseException) -> None:
    """However requests and urllib3 wrap it, the error that our connection raised is the one that is raised."""
    assert control_fault(raised, ENDPOINT) is OURS


def test_our_own_error_is_found_as_the_cause() -> None:
    """Also as ``__cause__`` or ``__context__``, in a chain that bites its own tail."""
    for link in ("__cause__", "__context__"):
        outer = requests.RequestException("x")
        setattr(outer, link, OURS)
        assert control_fault(outer, ENDPOINT) is OURS
    loop = requests.RequestException("x")
    loop.args = (loop,)
    assert isinstance(control_fault(loop, ENDPOINT), EngineUnavailable)


def test_what_is_nobodys_is_named_by_its_type() -> None:
    """A foreign exception of a control call becomes an EngineUnavailable, a time-out a WorkerTimeout."""
    error = control_fault(requests.exceptions.InvalidHeader("SECRET"), ENDPOINT)
    assert type(error) is EngineUnavailable
    assert error.message == "http://engine:8000/base: no usable answer (InvalidHeader)"
    assert isinstance(control_fault(TimeoutError("SECRET"), ENDPOINT), WorkerTimeout)
