"""A TCP relay before a real server: it counts what comes, and can spoil an answer that the server gave well."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
import time
from collections import deque
from typing import NamedTuple

#: The end of an event in its chunk (uvicorn sends one event a chunk).
EVENT_END = b"\n\n\r\n"
TEXT = re.compile(rb'"(?:text|content|delta)":"(?!")')
#: vLLM's keep-alive, as a chunk.
COMMENT = b"e\r\n: keep-alive\n\n\r\n"
#: What vLLM 0.32 says of a full queue, and of an engine that failed in a stream.
FULL = {"error": {"message": "The queue is full", "type": "Service Unavailable", "param": None, "code": 503}}
FAILED = {"error": {"message": "Internal server error", "type": "InternalServerError", "param": None, "code": 500}}


class Act(NamedTuple):
    """What becomes of an answer: after ``count`` events with text it is held up (``hold``), cut off (``cut``), ends
    with an error (``fail``), or goes on with comments alone, 100 a second (``comments``). ``refuse`` never asks the
    server.
    """

    kind: str
    count: int = 0


class Door:
    """Relays each connection, and its end in either direction.

    :param deaf: does not tell the server that a client has gone, as some gateways do.
    """

    def __init__(self, port: int, *, deaf: bool = False) -> None:
        self._port = port
        self._deaf = deaf
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._acts: deque[Act] = deque()
        #: Each request: its line, and the bytes that came with it.
        self.requests: list[tuple[str, bytes]] = []
        self.connections = 0
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        """Base URL."""
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def count(self, start: str) -> int:
        """How many requests began like this, ``"POST /v1/"`` say."""
        with self._lock:
            return sum(line.startswith(start) for line, _ in self.requests)

    def spoil(self, *acts: Act) -> None:
        """What becomes of the next jobs."""
        self._acts.extend(acts)

    def close(self) -> None:
        """Listen no more and end all connections."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # a blocked accept() does not see a close
        self._listener.close()
        with self._lock:
            left = list(self._sockets)
        for each in left:
            _end(each)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                with self._lock:
                    self.connections += 1
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        """From the client to the server; the other direction has a thread of its own."""
        acts: deque[Act] = deque()  # of this connection's jobs
        with contextlib.ExitStack() as ends:
            server: socket.socket | None = None
            self._keep(client, ends)
            with contextlib.suppress(OSError):
                while data := client.recv(65536):
                    line = data.partition(b"\r\n")[0].decode("latin-1")
                    if line.startswith(("POST ", "GET ")):
                        with self._lock:
                            self.requests.append((line, data))
                        if line.startswith("POST /v1/") and self._acts:
                            acts.append(self._acts.popleft())
                    if acts and acts[0].kind == "refuse":
                        acts.popleft()
                        body = json.dumps(FULL).encode()
                        head = f"HTTP/1.1 503 \r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
                        client.sendall(head.encode() + body)
                        continue
                    if server is None:
                        server = socket.create_connection(("127.0.0.1", self._port))
                        if not self._deaf:
                            self._keep(server, ends)
                        threading.Thread(target=self._answer, args=(server, client, acts), daemon=True).start()
                    server.sendall(data)

    def _keep(self, each: socket.socket, ends: contextlib.ExitStack) -> None:
        """Close a socket when its relay ends, or with the door."""
        with self._lock:
            self._sockets.add(each)
        ends.callback(self._drop, each)

    def _drop(self, each: socket.socket) -> None:
        with self._lock:
            self._sockets.discard(each)
        _end(each)

    def _answer(self, server: socket.socket, client: socket.socket, acts: deque[Act]) -> None:
        """From the server to the client, event by event while one is to be spoilt."""
        held = False
        seen = 0
        rest = b""
        with contextlib.suppress(OSError):
            while data := server.recv(65536):
                if held or not acts:
                    if not held:
                        self._tell(client, data)
                    continue
                rest += data
                held = acts[0].count == 0
                while not held and EVENT_END in rest:
                    event, _, rest = rest.partition(EVENT_END)
                    client.sendall(event + EVENT_END)
                    seen += bool(TEXT.search(event))
                    held = seen == acts[0].count
                if held and acts[0].kind != "hold":
                    if acts[0].kind == "fail":
                        ending = f"data: {json.dumps(FAILED)}\n\ndata: [DONE]\n\n".encode()
                        client.sendall(b"%x\r\n%s\r\n0\r\n\r\n" % (len(ending), ending))
                    while acts[0].kind == "comments":  # until the client goes
                        client.sendall(COMMENT)
                        time.sleep(0.01)
                    break
        _end(client)
        _end(server)

    def _tell(self, client: socket.socket, data: bytes) -> None:
        """Pass bytes on; a deaf door goes on reading when nobody listens any more."""
        try:
            client.sendall(data)
        except OSError:
            if not self._deaf:
                raise


def _end(each: socket.socket) -> None:
    """Close, and wake whoever waits in another thread."""
    with contextlib.suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)
    each.close()
