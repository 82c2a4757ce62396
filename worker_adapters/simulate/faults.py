"""Faults: what goes wrong with one generation request, as values."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from .exchange import Exchange, Header, abandon
from .peer import Gone

FINISH: Literal["finish"] = "finish"
After = int | Literal["finish"]
"""When a fault inside a stream strikes: after so many token events, or (FINISH) right after the finish reason."""


class Engine(Protocol):
    """What a fault needs to know of the engine it strikes."""

    def error_body(self, status: int, message: str | None = None, kind: str | None = None) -> bytes:
        """The engine's own JSON error body for an HTTP status."""

    def error_events(self, exchange: Exchange, fault: Fault) -> Sequence[bytes]:
        """How the engine ends a 200 stream with an error: the events, each for a chunk of its own."""

    def error_headers(self, exchange: Exchange) -> list[Header]:
        """The headers of the engine's JSON error answers."""


INTERIM_HEADS = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong. Made by the named constructors below; times are seconds, sizes and offsets bytes.

    Counting: `after` counts token events (content, reasoning or tool-call pieces), not role, progress or end events.
    Where no stream was asked for, silence, cuts and errors strike in place of the answer, and the rest does nothing.
    """

    kind: str
    after: After | None = None
    at: int = 0
    size: int = 0
    every: float = 0.0
    rst: bool = False
    code: int = 0
    headers: tuple[Header, ...] = ()
    payload: bytes | None = None
    sizes: tuple[int, ...] = ()
    message: str = ""
    error_type: str = ""
    old: bool = False

    # -- instead of the engine's answer --------------------------------------------------------------------------

    @classmethod
    def close_before_head(cls) -> Fault:
        """The connection ends (FIN) in place of an answer."""
        return cls("close_before_head")

    @classmethod
    def reset_before_head(cls) -> Fault:
        """The connection is reset (RST) in place of an answer."""
        return cls("close_before_head", rst=True)

    @classmethod
    def status(cls, code: int, body: bytes | str | Any = None, headers: Sequence[Header] = ()) -> Fault:
        """A refusal. `body`: None = the engine's own error form, bytes or str as they are, anything else as JSON."""
        return cls("status", code=code, headers=tuple(headers), payload=_as_bytes(body))

    @classmethod
    def json_200(cls, value: Any) -> Fault:
        """200 with a JSON body although a stream was asked for."""
        return cls("status", code=200, payload=json.dumps(value).encode())

    @classmethod
    def html(cls, status: int = 502) -> Fault:
        """The error page of a proxy that knows no JSON."""
        page = f"<html>\r\n<head><title>{status}</title></head>\r\n<body><h1>{status}</h1></body>\r\n</html>\r\n"
        return cls("status", code=status, headers=(("Content-Type", "text/html"),), payload=page.encode())

    @classmethod
    def redirect(cls, location: str = "/elsewhere", status: int = 307) -> Fault:
        """A redirect."""
        return cls("status", code=status, headers=(("Location", location),), payload=b"")

    # -- silence, with the slot held -----------------------------------------------------------------------------

    @classmethod
    def silent_head(cls) -> Fault:
        """Not even a status line; the slot is held until the client leaves."""
        return cls("silent_head")

    @classmethod
    def half_head(cls, size: int = 20) -> Fault:
        """The first `size` bytes of the head, then silence."""
        return cls("stall_at", at=size)

    @classmethod
    def stall_at(cls, offset: int) -> Fault:
        """Silence after so many bytes of the whole answer, its head included."""
        return cls("stall_at", at=offset)

    @classmethod
    def silent_after_head(cls) -> Fault:
        """The head of a stream, then silence."""
        return cls("silent", after=0)

    @classmethod
    def silent_after(cls, after: After) -> Fault:
        """Some tokens, then silence."""
        return cls("silent", after=after)

    @classmethod
    def comments_only(cls, after: After = 0, every: float = 0.05) -> Fault:
        """Some tokens, then nothing but SSE comments (`:` and an empty line) for ever, one each `every` seconds."""
        return cls("comments", after=after, every=every)

    # -- broken ends ---------------------------------------------------------------------------------------------

    @classmethod
    def cut_at(cls, offset: int, rst: bool = False) -> Fault:
        """The connection ends after so many bytes of the whole answer, its head included: FIN, or RST."""
        return cls("cut_at", at=offset, rst=rst)

    @classmethod
    def cut_after(cls, after: After, rst: bool = False) -> Fault:
        """The connection ends after some tokens, without the last chunk: FIN, or RST."""
        return cls("cut", after=after, rst=rst)

    @classmethod
    def clean_end_after(cls, after: After) -> Fault:
        """The body ends properly after some tokens, but without the engine's own terminal events."""
        return cls("clean_end", after=after)

    @classmethod
    def error_after(
        cls,
        after: After,
        message: str = "",
        code: int = 500,
        error_type: str = "",
        old: bool = False,
    ) -> Fault:
        """The engine's in-stream error event after some tokens, then a clean end; `old`: as older builds wrote it.
        Without message or type the engine's own."""
        return cls("error", after=after, message=message, code=code, error_type=error_type, old=old)

    @classmethod
    def garbage_after(cls, after: After, payload: bytes = b"data: {broken\n\n") -> Fault:
        """Bytes of your choice between two events of the stream, which then goes on."""
        return cls("garbage", after=after, payload=payload)

    # -- the same answer in another guise ------------------------------------------------------------------------

    @classmethod
    def drip(cls, size: int = 1, every: float = 0.0) -> Fault:
        """The whole answer in pieces of `size` bytes, one each `every` seconds."""
        return cls("drip", size=size, every=every)

    @classmethod
    def slow_tokens(cls, delay: float) -> Fault:
        """So many seconds more before each token event."""
        return cls("slow", every=delay)

    @classmethod
    def split_writes(
        cls,
        sizes: Sequence[int] = (1, 2, 3, 5, 8, 13),
        extension: bytes = b";ext=1",
        trailers: bytes = b"X-Trailer: 1\r\n",
        every: float = 0.0,
    ) -> Fault:
        """Events split over chunks of odd sizes with chunk extensions and trailers, each write split again in half."""
        return cls(
            "split", sizes=tuple(sizes), payload=trailers, message=extension.decode("latin-1"), size=7, every=every
        )

    @classmethod
    def close_delimited(cls) -> Fault:
        """No chunks and no length: the body ends with the connection."""
        return cls("close_delimited")

    @classmethod
    def gzip(cls) -> Fault:
        """The body gzip-coded, asked for or not."""
        return cls("gzip")

    @classmethod
    def wrong_content_type(cls, value: str) -> Fault:
        """Another Content-Type on the same body."""
        return cls("content_type", message=value)

    @classmethod
    def extra_after_end(cls, payload: bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") -> Fault:
        """Bytes left over after the body's end."""
        return cls("leftover", payload=payload)

    @classmethod
    def continue_100(cls, preamble: bytes = INTERIM_HEADS) -> Fault:
        """Interim (1xx) heads before the real one."""
        return cls("preamble", payload=preamble)

    # -- how an engine applies it --------------------------------------------------------------------------------

    def install(self, exchange: Exchange) -> None:
        """Bends the exchange's framing and writes, before the engine answers."""
        framing, payload = exchange.framing, self.payload or b""
        if self.kind == "cut_at":
            exchange.write = _until(exchange, self.at, lambda: abandon(exchange, reset=self.rst))
        elif self.kind == "stall_at":
            exchange.write = _until(exchange, self.at, lambda: _silence(exchange))
        elif self.kind == "drip":
            exchange.write = _pieces(exchange, self.size, self.every)
        elif self.kind == "split":
            framing.chunk_sizes, framing.trailers = self.sizes, payload
            framing.extension = self.message.encode("latin-1")
            exchange.write = _pieces(exchange, self.size, self.every)
        elif self.kind == "close_delimited":
            framing.close_delimited = True
        elif self.kind == "gzip":
            framing.gzip = True
        elif self.kind == "content_type":
            framing.edit = self._edit_content_type
        elif self.kind == "leftover":
            framing.leftover = payload
        elif self.kind == "preamble":
            framing.preamble = payload

    def answers(self, exchange: Exchange, engine: Engine) -> bool:
        """Answers in the engine's place: True if it did."""
        if self.kind == "close_before_head":
            abandon(exchange, reset=self.rst)
            return True
        if self.kind != "status":
            return False
        body = engine.error_body(self.code) if self.payload is None else self.payload
        own = {name.lower() for name, _ in self.headers}
        headers = [field for field in engine.error_headers(exchange) if field[0].lower() not in own]
        exchange.respond(self.code, [*headers, *self.headers], body)
        return True

    def before_head(self, exchange: Exchange) -> None:
        """Strikes between the slot and the head."""
        if self.kind == "silent_head":
            raise _silence(exchange)

    def due(self, tokens: int, finished: bool) -> bool:
        """True if it strikes now: so many token events were sent, or the finish reason was."""
        if self.after is None:
            return False
        return finished if self.after == FINISH else tokens == self.after and not finished

    def strike(self, exchange: Exchange, engine: Engine) -> bool:
        """Strikes inside a stream: True if the stream goes on afterwards. May raise Gone."""
        if self.kind == "garbage":
            exchange.chunk(self.payload or b"")
            return True
        if self.kind == "silent":
            raise _silence(exchange)
        if self.kind == "cut":
            raise abandon(exchange, reset=self.rst)
        if self.kind == "comments":
            while exchange.pause(self.every):
                exchange.chunk(b":\n\n")
            raise Gone("commented until the end")
        if self.kind == "error":
            for event in engine.error_events(exchange, self):
                exchange.chunk(event)
        exchange.end()
        return False

    def strike_whole(self, exchange: Exchange) -> None:
        """Strikes an answer that is no stream: silence and cuts come in place of it, other faults leave it alone."""
        if self.kind in ("silent", "comments"):
            raise _silence(exchange)
        if self.kind == "cut":
            raise abandon(exchange, reset=self.rst)

    def _edit_content_type(self, fields: list[Header]) -> list[Header]:
        return [(name, self.message if name.lower() == "content-type" else value) for name, value in fields]


NO_FAULT = Fault("none")


def _as_bytes(body: Any) -> bytes | None:
    if body is None or isinstance(body, bytes):
        return body
    return body.encode() if isinstance(body, str) else json.dumps(body, separators=(",", ":")).encode()


def _silence(exchange: Exchange) -> Exception:
    exchange.wait_gone()
    return Gone("was silent until the end")  # the server closes: with an RST when it is killed


def _until(exchange: Exchange, offset: int, then: Callable[[], Exception]) -> Callable[[bytes], None]:
    """A write that lets `offset` bytes of the answer pass and then does `then`."""
    left = offset
    plain = exchange.write

    def write(data: bytes) -> None:
        nonlocal left
        if len(data) < left:
            left -= len(data)
            plain(data)
            return
        if left:
            plain(data[:left])
        raise then()

    return write


def _pieces(exchange: Exchange, size: int, every: float) -> Callable[[bytes], None]:
    """A write in pieces of `size` bytes, with a pause between two."""
    plain = exchange.write

    def write(data: bytes) -> None:
        for start in range(0, len(data), size):
            if every and not exchange.pause(every):
                raise Gone("left between two pieces")
            plain(data[start : start + size])

    return write
