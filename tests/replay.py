"""Recordings of engines, and a tiny real server that plays one back as bytes, cut in whatever pieces a test wants."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from feeding import pieces_of
from worker_adapters.errors import WorkerError
from worker_adapters.report import Completion
from worker_adapters.stream import TokenStream

WAIT = 10.0  # seconds: what must come has come by then, even on a loaded machine
WAYS = ("whole", "as recorded", "byte by byte", "seed 1", "seed 2")


class Recording:
    """One exchange with a real engine: what was asked and what came, chunk by chunk."""

    def __init__(self, path: Path) -> None:
        recorded = json.loads(path.read_text(encoding="utf-8"))
        response = recorded["response"]
        self.name = path.stem
        self.method: str = recorded["request"]["method"]
        self.path: str = recorded["request"]["path"]
        self.asked: Any = recorded["request"]["body"]
        self.status: int | None = response["status"]
        self.headers: list[tuple[str, str]] = [(name, value) for name, value in response["headers"]]
        self.chunks: list[bytes] = [chunk["text"].encode() for chunk in response["chunks"]]
        self.complete: bool = response["ended"] == "complete"

    def header(self, name: str) -> str:
        """A header's value; empty if it did not come."""
        return next((value for known, value in self.headers if known.lower() == name), "")

    @property
    def is_stream(self) -> bool:
        """Did the engine answer with server-sent events?"""
        return self.header("content-type").startswith("text/event-stream")

    @property
    def body(self) -> bytes:
        """All that the engine said."""
        return b"".join(self.chunks)

    @property
    def events(self) -> list[Any]:
        """The JSON of every event, read with nothing but the blank lines between them."""
        lines = [line for event in self.body.decode().split("\n\n") for line in event.split("\n")]
        return [json.loads(line[6:]) for line in lines if line.startswith("data: ") and line != "data: [DONE]"]

    def head(self, **changes: str) -> bytes:
        """Status line and headers as recorded; ``changes`` replace headers (``content_type="..."``)."""
        replaced = {name.replace("_", "-"): value for name, value in changes.items()}
        if self.header("content-length"):
            replaced["content-length"] = str(len(self.body))  # some recordings had long paths shortened
        lines = [f"HTTP/1.1 {self.status} Recorded"]
        lines += [f"{name}: {replaced.pop(name.lower(), value)}" for name, value in self.headers]
        lines += [f"{name}: {value}" for name, value in replaced.items()]
        return "\r\n".join([*lines, "", ""]).encode()

    def pieces(self) -> list[bytes]:
        """The response as it stood on the wire: the head, then each recorded chunk with its framing, then the end."""
        if self.status is None:
            return []  # the client left before anything came
        if self.header("transfer-encoding") != "chunked":
            return [self.head(), *self.chunks]
        framed = [b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in self.chunks]
        return [self.head(), *framed, *([b"0\r\n\r\n"] if self.complete else [])]

    def cut(self, way: str) -> list[bytes]:
        """The response in pieces, by one of WAYS."""
        recorded = self.pieces()
        whole = b"".join(recorded)
        if way == "whole":
            return [whole]
        if way == "as recorded":
            return recorded
        if way == "byte by byte":
            return [whole[at : at + 1] for at in range(len(whole))]
        return pieces_of(whole, int(way.removeprefix("seed ")))

    def arrived(self, size: int) -> bytes:
        """The part of the body that the first ``size`` bytes of a chunked response hold."""
        body = b""
        for at, piece in enumerate(self.pieces()):
            if size <= 0:
                break
            chunk = b"" if at == 0 or at > len(self.chunks) else self.chunks[at - 1]
            before = piece.index(b"\r\n") + 2
            body += chunk[: max(0, size - before)]
            size -= len(piece)
        return body


def recordings(engine: str) -> dict[str, Recording]:
    """Every recording of an engine by name."""
    folder = Path(__file__).parent / "transcripts" / engine
    return {path.stem: Recording(path) for path in sorted(folder.glob("*.json"))}


def written(status: int, body: bytes, *headers: str, content_type: str = "application/json") -> list[bytes]:
    """A response of ours, with its length told."""
    lines = [f"HTTP/1.1 {status} Written", f"Content-Type: {content_type}", f"Content-Length: {len(body)}", *headers]
    return ["\r\n".join([*lines, "", ""]).encode(), body]


def told(status: int, value: Any, *headers: str) -> list[bytes]:
    """A JSON response of ours."""
    return written(status, json.dumps(value).encode(), *headers)


def streamed(*events: Any, done: bool = True, headers: tuple[str, ...] = ()) -> list[bytes]:
    """A stream of ours, an event to a chunk: text as it is, anything else as one line of JSON; then ``[DONE]``."""
    blocks = [event if isinstance(event, str) else "data: " + json.dumps(event, ensure_ascii=False) for event in events]
    chunks = [f"{block}\n\n".encode() for block in (*blocks, "data: [DONE]")[: None if done else -1]]
    lines = ["HTTP/1.1 200 OK", "Content-Type: text/event-stream", "Transfer-Encoding: chunked", *headers]
    framed = [b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks]
    return ["\r\n".join([*lines, "", ""]).encode(), *framed, b"0\r\n\r\n"]


def outcome(stream: TokenStream) -> Completion | WorkerError:
    """How a job ends."""
    try:
        return stream.result()
    except WorkerError as error:
        return error


class ReplayServer:
    """Answers a path that ``gets`` has with what it has there, and every other POST with ``answer``, piece by piece.

    :ivar answer: the pieces to send; the connection is closed after the last one.
    :ivar reset: close with a reset instead.
    :ivar asked: (method, path, body) of every request, in order.
    """

    def __init__(self, gets: dict[str, Recording]) -> None:
        self.answer: Iterable[bytes] = ()
        self.reset = False
        self.asked: list[tuple[str, str, bytes]] = []
        self._gets = gets
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads: list[threading.Thread] = []
        self._acceptor = threading.Thread(target=self._accept, name="replay")
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> ReplayServer:
        self._acceptor.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes the acceptor
        self._acceptor.join(WAIT)
        self._listener.close()
        for thread in self._threads:
            thread.join(WAIT)
            assert not thread.is_alive()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self._threads = [thread for thread in self._threads if thread.is_alive()]
            thread = threading.Thread(target=self._serve, args=(sock,), name="replay connection")
            self._threads.append(thread)
            thread.start()

    def _serve(self, sock: socket.socket) -> None:
        with sock:
            sock.settimeout(WAIT)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                method, path = self._request(sock)
                known = self._gets.get(path)
                pieces = known.pieces() if known is not None else self.answer if method == "POST" else []
                if path.endswith("/abort_requests"):  # no recorded server takes it, and this one answers once
                    pieces = [b"HTTP/1.1 403 Forbidden\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"]
                if known is not None and pieces:  # it is closed now: who were not told might ask again on it
                    pieces = [pieces[0].replace(b"\r\n", b"\r\nConnection: close\r\n", 1), *pieces[1:]]
                for piece in pieces:
                    sock.sendall(piece)
            except OSError:
                return  # the client went away, which is its right
            if self.reset and method == "POST":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _request(self, sock: socket.socket) -> tuple[str, str]:
        data = b""
        while b"\r\n\r\n" not in data:
            data += self._more(sock)
        head, _, body = data.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        lengths = [line.partition(":")[2] for line in lines if line.lower().startswith("content-length:")]
        while len(body) < int(lengths[0] if lengths else 0):
            body += self._more(sock)
        method, path, _ = lines[0].split(" ")
        self.asked.append((method, path, body))
        return method, path

    @staticmethod
    def _more(sock: socket.socket) -> bytes:
        data = sock.recv(65536)
        if not data:
            raise OSError("closed by the client")
        return data
