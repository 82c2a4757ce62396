"""One HTTP/1.1 request, and the strict parser that reads it: what a sloppy server forgives, this one refuses loudly."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlsplit

MAX_HEAD = 64 * 1024
MAX_BODY = 256 * 1024 * 1024

_REQUEST_LINE = re.compile(rb"([A-Z]+) ([!-~]+) HTTP/1\.([01])\Z")
_DIGITS = 18  # of a length: Python reads no number of thousands
_CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]{1,8}\Z")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*(.*?)[ \t]*\Z", re.DOTALL)


class BadRequest(Exception):
    """The bytes are no request this server takes; `status` is what it answers before it hangs up."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Request:
    """One request as it arrived: `method`, `target` (path and query), HTTP `version`, `headers` and `body`; on which
    `connection`, numbered from 1; `at` is `time.monotonic()` seconds when its last byte was read."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    connection: int
    at: float
    version: str = "1.1"

    @property
    def path(self) -> str:
        """The target without its query."""
        return urlsplit(self.target).path if "?" in self.target else self.target

    @property
    def query(self) -> dict[str, list[str]]:
        """The query's names and values."""
        return parse_qs(urlsplit(self.target).query, keep_blank_values=True)

    @property
    def json(self) -> Any:
        """The body as JSON; ValueError (UnicodeDecodeError, JSONDecodeError) when it is none."""
        return json.loads(self.body.decode("utf-8"))

    def header(self, name: str) -> str | None:
        """The first value of a header, whatever its case, or None."""
        wanted = name.lower()
        for key, value in self.headers:
            if key.lower() == wanted:
                return value
        return None

    @property
    def wants_close(self) -> bool:
        """True if the client asked for the connection to end with this exchange."""
        return self.version == "1.0" or "close" in (self.header("Connection") or "").lower()


@dataclass(frozen=True)
class Head:
    """A parsed request head and the body that follows it: `body_length` bytes, or chunks."""

    method: str
    target: str
    version: str
    headers: tuple[tuple[str, str], ...]
    body_length: int
    chunked: bool
    expects_continue: bool


def parse_head(raw: bytes) -> Head:
    """Parses a request head (without its final empty line). Raises BadRequest for anything unusual."""
    if b"\0" in raw or raw.count(b"\n") != raw.count(b"\r\n") or raw.count(b"\r") != raw.count(b"\r\n"):
        raise BadRequest("NUL, bare CR or bare LF in the head")
    request_line, *lines = raw.split(b"\r\n")
    match = _REQUEST_LINE.match(request_line)
    if match is None:
        raise BadRequest("malformed request line")
    headers = tuple(_parse_header(line) for line in lines)
    names = [name.lower() for name, _ in headers]
    version = "1." + match[3].decode()
    if version == "1.1" and names.count("host") != 1:
        raise BadRequest("an HTTP/1.1 request needs exactly one Host")
    codings = [value.lower() for name, value in headers if name.lower() == "transfer-encoding"]
    lengths = [value for name, value in headers if name.lower() == "content-length"]
    if codings and (codings != ["chunked"] or lengths or version == "1.0"):
        raise BadRequest("a Transfer-Encoding that is not chunked alone, or one beside a Content-Length")
    if len(lengths) > 1 or any(not (value.isascii() and value.isdigit()) for value in lengths):
        raise BadRequest("malformed Content-Length")
    if lengths and len(lengths[0]) > _DIGITS:
        raise BadRequest("body too large", 413)
    length = int(lengths[0]) if lengths else 0
    if length > MAX_BODY:
        raise BadRequest("body too large", 413)
    expects = any(name.lower() == "expect" and value.lower() == "100-continue" for name, value in headers)
    return Head(match[1].decode(), match[2].decode(), version, headers, length, bool(codings), expects)


def parse_chunk_size(line: bytes) -> int:
    """The bytes of the chunk that follows this line (without its CR LF). Raises BadRequest for what is no size."""
    size = line.partition(b";")[0].strip()
    if _CHUNK_SIZE.match(size) is None:
        raise BadRequest("malformed chunk size")
    return int(size, 16)


def _parse_header(line: bytes) -> tuple[str, str]:
    match = _HEADER.match(line)
    if match is None:
        raise BadRequest("malformed header line")
    return match[1].decode("ascii"), match[2].decode("latin-1")
