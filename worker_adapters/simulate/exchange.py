"""One request and the answer to it, as a handler sees them."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.client import responses
from itertools import cycle
from typing import Any

from .peer import Gone, Peer
from .request import Request

Header = tuple[str, str]
JSON_HEADERS: tuple[Header, ...] = (("Content-Type", "application/json"),)


@dataclass
class Framing:
    """How the bytes of an answer are wrapped; faults change it, handlers need not know.

    `preamble` are raw bytes before the head, `edit` changes its fields, `close_delimited` leaves out length and chunks,
    `gzip` codes the body. `chunk_sizes` cuts every body write into chunks of these sizes in turn (bytes); `extension`
    follows each chunk size (`;name=value`), `trailers` are raw header lines after the last chunk, `leftover` raw bytes
    after the body's end.
    """

    preamble: bytes = b""
    edit: Callable[[list[Header]], list[Header]] | None = None
    close_delimited: bool = False
    gzip: bool = False
    chunk_sizes: Sequence[int] = ()
    extension: bytes = b""
    trailers: bytes = b""
    leftover: bytes = b""


class Exchange:
    """What a handler answers with. Every writing method raises Gone when the client went away or the server stops;
    the server catches it, so a handler only needs `try`/`finally` for what it holds.

    `keep_alive` may be cleared: the connection is then closed after this exchange. `last` is True when the server's
    limit of requests a connection is reached with this one.
    """

    def __init__(self, request: Request, peer: Peer, *, last: bool = False) -> None:
        self.request = request
        self.peer = peer
        self.last = last
        self.keep_alive = not (request.wants_close or last)
        self.framing = Framing()
        # Replaced by faults that cut, slow or split the raw bytes.
        self.write: Callable[[bytes], None] = peer.write
        self.head_sent = False
        self.wake = -1
        self._chunked = False
        self._compressor: Any = None
        self._sizes = cycle((1,))

    # -- writing -------------------------------------------------------------------------------------------------

    def head(self, status: int, headers: Sequence[Header] = (), chunked: bool = True) -> None:
        """Sends the status line and `headers` in this order; `Transfer-Encoding: chunked` is added where it lacks."""
        self.write(self._head_bytes(status, list(headers), chunked))

    def chunk(self, *parts: bytes) -> None:
        """Sends body bytes, each part as one chunk of its own, all in one write."""
        self.write(b"".join([self._frame(part) for part in parts]))

    def raw(self, data: bytes) -> None:
        """Sends bytes as they are."""
        self.write(data)

    def end(self) -> None:
        """Ends the body: the last chunk, or the connection's end for a body without chunks or length."""
        tail = b""
        if self._compressor is not None:
            tail = self._chunk_bytes(self._compressor.flush(zlib.Z_FINISH))
        if self._chunked:
            tail += b"0\r\n" + self.framing.trailers + b"\r\n"
        tail += self.framing.leftover
        if tail:
            self.write(tail)

    def respond(self, status: int, headers: Sequence[Header], body: bytes) -> None:
        """Sends a whole answer in one write, to HEAD without its body. A Content-Length without a value marks the real
        one's place."""
        framing = self.framing
        fields = list(headers)
        if framing.gzip:
            body = gzip.compress(body)
            fields.append(("Content-Encoding", "gzip"))
        if framing.close_delimited:
            fields = [field for field in fields if field[0].lower() != "content-length"]
            self.keep_alive = False
        elif not any(name.lower() == "content-length" for name, _ in fields):
            fields.append(("Content-Length", str(len(body))))
        length = str(len(body))
        fields = [(name, length if name.lower() == "content-length" and not value else value) for name, value in fields]
        sent = b"" if self.request.method == "HEAD" else body
        self.write(self._plain_head(status, fields) + sent + framing.leftover)

    def json(self, status: int, value: Any, headers: Sequence[Header] = JSON_HEADERS) -> None:
        """Sends `value` as a JSON answer with its Content-Length."""
        self.respond(status, headers, json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode())

    # -- waiting and ending --------------------------------------------------------------------------------------

    def pause(self, seconds: float) -> bool:
        """Waits; False as soon as the client went away or the server stops. Returns early (True) for each byte that
        the descriptor `wake` has. Resolution: 1 ms."""
        outcome = self.peer.wait(seconds, self.wake)
        if outcome == "ready":
            os.read(self.wake, 1)
        return outcome != "gone"

    def wait_gone(self, timeout: float | None = None) -> bool:
        """Stays silent until the client goes away or the server stops: True; False when `timeout` seconds passed."""
        return self.peer.wait(timeout) == "gone"

    def gone(self) -> bool:
        """True if the client has gone or the server stops, without waiting."""
        return self.peer.gone()

    def reset(self) -> None:
        """Ends the connection with an RST."""
        self.peer.close(reset=True)

    def close(self) -> None:
        """Ends the connection with a FIN, whatever is still owed."""
        self.peer.close()

    # -- framing -------------------------------------------------------------------------------------------------

    def _plain_head(self, status: int, fields: list[Header]) -> bytes:
        if self.head_sent:
            raise RuntimeError("the head was sent already")
        self.head_sent = True
        if self.framing.edit is not None:
            fields = self.framing.edit(fields)
        lines = [f"HTTP/1.1 {status} {responses.get(status, 'Unknown')}"]
        lines += [f"{name}: {value}" for name, value in fields]
        return self.framing.preamble + "\r\n".join([*lines, "", ""]).encode("latin-1")

    def _head_bytes(self, status: int, fields: list[Header], chunked: bool) -> bytes:
        framing = self.framing
        self._chunked = chunked and not framing.close_delimited
        if framing.gzip:
            self._compressor = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
            fields.append(("Content-Encoding", "gzip"))
        if not self._chunked:
            fields = [field for field in fields if field[0].lower() != "transfer-encoding"]
        elif not any(name.lower() == "transfer-encoding" for name, _ in fields):
            fields.append(("Transfer-Encoding", "chunked"))
        if framing.close_delimited:
            self.keep_alive = False
        if framing.chunk_sizes:
            self._sizes = cycle(framing.chunk_sizes)
        return self._plain_head(status, fields)

    def _frame(self, part: bytes) -> bytes:
        if self._compressor is not None:
            part = self._compressor.compress(part) + self._compressor.flush(zlib.Z_SYNC_FLUSH)
        return self._chunk_bytes(part)

    def _chunk_bytes(self, part: bytes) -> bytes:
        framing = self.framing
        if not self._chunked or not part:
            return part
        if not framing.chunk_sizes:
            return b"%x%b\r\n%b\r\n" % (len(part), framing.extension, part)
        framed = bytearray()
        while part:
            size = next(self._sizes)
            piece, part = part[:size], part[size:]
            framed += b"%x%b\r\n%b\r\n" % (len(piece), framing.extension, piece)
        return bytes(framed)


def abandon(exchange: Exchange, *, reset: bool = False) -> Gone:
    """Ends the connection at once; raise what it returns to leave the handler."""
    if reset:
        exchange.reset()
    else:
        exchange.close()
    return Gone("ended by a fault")
