"""HTTP/1.1 framing, no I/O: writes a request head, cuts responses out of bytes with llhttp (httptools).

Follows RFC 9112 where servers do, and is strict where a lenient parser could be made to see a body that was not sent.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import httptools
import msgspec

MAX_HEAD = 64 * 1024
#: Of a token, RFC 9110 5.6.2: methods and header names.
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]*")
#: What no request line and no header value may hold; a tab may stand in a value.
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_NO_TARGET = re.compile(r"[\x00-\x20\x7f]")


class MalformedResponse(Exception):
    """The peer's bytes are not HTTP/1.1, or break its framing. The message says where, never with the bytes."""


class Head(msgspec.Struct, frozen=True):
    """Status and headers of a response; header names are lower case."""

    status: int
    headers: tuple[tuple[str, str], ...]
    keep_alive: bool

    def get(self, name: str, default: str = "") -> str:
        """The first header of that name (lower case)."""
        for key, value in self.headers:
            if key == name:
                return value
        return default

    def all(self, name: str) -> str:
        """Every header of that name (lower case), as one list."""
        return ", ".join(value for key, value in self.headers if key == name)

    @property
    def plain(self) -> bool:
        """Is the body what it seems, not compressed?"""
        return self.all("content-encoding").strip().lower() in ("identity", "")

    @property
    def media_type(self) -> str:
        """Content-Type without its parameters, lower case; a lone trailing semicolon is accepted."""
        return self.told_type.lower()

    @property
    def told_type(self) -> str:
        """The same as it was written; a message may show it once it is masked.

        Of several the last counts: Triton up to 2.41 says application/json first, whatever comes.
        """
        said = [value for key, value in self.headers if key == "content-type"]
        return said[-1].split(";", 1)[0].strip() if said else ""


def request_head(method: str, target: str, headers: Iterable[tuple[str, str]]) -> bytes:
    """The head of a request.

    :raises ValueError: CR, LF, NUL or another control character anywhere, or a header that is not Latin-1: somebody
        tries to add a header. The message never shows a value, nor a name that is none: either may hold a secret.
    """
    if not method or not _TOKEN.fullmatch(method) or not target or _NO_TARGET.search(target):
        raise ValueError("request target cannot be sent: control characters or spaces")
    headers = list(headers)
    names = [name for name, _ in headers]
    if not all(names) or not _TOKEN.fullmatch("".join(names)):  # all of them at once: this is done for every request
        raise ValueError("a header cannot be sent: its name is none")
    if _CONTROL.search("".join([value for _, value in headers])):
        bad = next(name for name, value in headers if _CONTROL.search(value))
        raise ValueError(f"header {bad!r} cannot be sent: control characters")
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers)]
    try:
        return "\r\n".join([*lines, "", ""]).encode("latin-1")
    except UnicodeEncodeError:
        raise ValueError("a header cannot be sent: want Latin-1") from None


class ResponseParser:
    """One response, fed in any pieces. Body bytes come out of ``feed``; head, end and leftovers are attributes.

    ``complete`` is True once the framing itself ended the message; ``leftover`` once bytes came after that end (llhttp
    runs on into a next message, which nobody asked for: such a connection is never used again). It is also the object
    that llhttp calls back, so the two are a reference cycle until ``close``.
    """

    __slots__ = (
        "_body", "_fed", "_head_size", "_headers", "_interim", "_parser", "_version", "complete", "head", "leftover",
        "on_body",
    )  # fmt: skip

    def __init__(self) -> None:
        self._body: list[bytes] = []
        #: Called by llhttp for every piece of body: list.append itself, so that no Python frame is made per piece.
        self.on_body = self._body.append
        self._headers: list[tuple[str, str]] = []
        self._fed = 0
        self._head_size = 0
        self._version = "1.1"
        self._interim = False
        self.head: Head | None = None
        self.complete = False
        self.leftover = False
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)

    @property
    def close_delimited(self) -> bool:
        """Does only the end of the connection end this body?"""
        if self.head is None or self.complete:
            return False
        return not self.head.get("content-length") and "chunked" not in self.head.all("transfer-encoding").lower()

    def feed(self, data: bytes) -> list[bytes]:
        """The pieces of body in ``data``.

        :raises MalformedResponse: not HTTP/1.1, broken framing, or a head over 64 KiB.
        """
        if self.complete or self._parser is None:
            self.leftover = self.leftover or bool(data.strip(b"\r\n"))  # llhttp passes over empty lines too
            return []
        self._fed += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            raise MalformedResponse("the server switched protocols") from None
        except httptools.HttpParserError as error:
            if not self.complete:
                raise MalformedResponse(f"not valid HTTP/1.1: {error}") from None
            self.leftover = True  # type: ignore[unreachable]  # llhttp's callbacks set ``complete`` inside feed_data
        if self._version not in ("1.0", "1.1"):
            raise MalformedResponse("not valid HTTP/1.1: another version of HTTP")
        body = self._body.copy()
        self._body.clear()
        if body:
            self._fed = 0
        if self._head_size > MAX_HEAD or self._fed > MAX_HEAD:  # a head, chunk extensions or trailers without end
            raise MalformedResponse(f"more than {MAX_HEAD} bytes of headers")
        return body

    def close(self) -> None:
        """Break the cycle with llhttp's parser; what was parsed stays."""
        self._parser = None

    # What llhttp calls, in its order.

    def on_message_begin(self) -> None:
        if self.complete:
            raise MalformedResponse("bytes after the end")  # stops llhttp; ``feed`` counts it as leftover

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.head is None:  # else it is a trailer
            self._head_size += len(name) + len(value) + 4
            self._headers.append((name.decode("latin-1").lower(), value.decode("latin-1")))

    def on_headers_complete(self) -> None:
        parser = self._parser
        if parser is None:  # cannot be: close() is not called from inside feed_data
            return
        status = parser.get_status_code()
        self._version = parser.get_http_version()
        self._interim = 100 <= status < 200
        if not self._interim:
            # Asked here because llhttp forgets it at the end of the message.
            self.head = Head(status, tuple(self._headers), parser.should_keep_alive())
        self._headers = []

    def on_message_complete(self) -> None:
        if not self._interim:
            self.complete = True
