"""Takes the requests of one connection off its peer, head and body."""

from __future__ import annotations

from .peer import Peer
from .request import MAX_BODY, MAX_HEAD, BadRequest, Head, parse_chunk_size, parse_head


class RequestReader:
    """Reads from `peer`, and leaves in its buffer what comes early of a next request.

    Its methods raise BadRequest for bytes that are no request, and Gone when the server stops.
    """

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    def head(self, deadline: float | None) -> Head | None:
        """The next request's head; None at the client's end. Raises Gone when `deadline` has passed."""
        raw = self._until(b"\r\n\r\n", BadRequest("head too large", 431), deadline)
        return None if raw is None else parse_head(raw)

    def body(self, head: Head) -> bytes | None:
        """The body behind a head; None when the client leaves in the middle of it."""
        if head.expects_continue:
            self._peer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return self._chunks() if head.chunked else self._take(head.body_length)

    def _chunks(self) -> bytes | None:
        body = bytearray()
        while (line := self._line()) is not None and (size := parse_chunk_size(line)):
            if len(body) + size > MAX_BODY:
                raise BadRequest("body too large", 413)
            chunk = self._take(size + 2)
            if chunk is None:
                return None
            if not chunk.endswith(b"\r\n"):
                raise BadRequest("a chunk that is longer than its size")
            body += chunk[:-2]
        while line:  # trailers, which no engine reads
            line = self._line()
        return None if line is None else bytes(body)

    def _line(self) -> bytes | None:
        return self._until(b"\r\n", BadRequest("a line of the body's framing is too long"))

    def _until(self, mark: bytes, too_long: BadRequest, deadline: float | None = None) -> bytes | None:
        """What comes before the mark, which is dropped; None at the client's end."""
        buffer = self._peer.buffer
        while (end := buffer.find(mark)) < 0:
            if len(buffer) > MAX_HEAD:
                raise too_long
            if not self._more(deadline):
                return None
        found = bytes(buffer[:end])
        del buffer[: end + len(mark)]
        return found

    def _take(self, length: int) -> bytes | None:
        """The next `length` bytes; None at the client's end."""
        buffer = self._peer.buffer
        while len(buffer) < length:
            if not self._more():
                return None
        taken = bytes(buffer[:length])
        del buffer[:length]
        return taken

    def _more(self, deadline: float | None = None) -> bool:
        data = self._peer.read(deadline)
        self._peer.buffer += data
        return bool(data)
