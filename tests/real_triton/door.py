"""A TCP relay before a real server, whichever protocol it speaks: it can be cut, and close for good."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

#: Nothing more is on its way when nothing has come for so long (seconds).
QUIET = 0.3


class Door:
    """Relays each connection to a port of the loopback address, and its end in either direction."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._last = time.monotonic()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def port(self) -> int:
        """Where it listens."""
        port: int = self._listener.getsockname()[1]
        return port

    def settle(self) -> None:
        """Wait until what the server has sent is through."""
        pause = threading.Event()
        while (left := self._last + QUIET - time.monotonic()) > 0:
            pause.wait(left)

    def cut(self) -> None:
        """End all connections of the moment."""
        with self._lock:
            left = list(self._sockets)
        for each in left:
            _end(each)

    def close(self) -> None:
        """Listen no more and end all connections."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # a blocked accept() does not see a close
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._port))
                for each in (client, server):
                    each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with self._lock:
                    self._sockets |= {client, server}
                for pair in ((client, server), (server, client)):
                    threading.Thread(target=self._relay, args=pair, daemon=True).start()

    def _relay(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self._last = time.monotonic()
                sink.sendall(data)
        for each in (source, sink):
            _end(each)
        with self._lock:
            self._sockets -= {source, sink}


def _end(each: socket.socket) -> None:
    """Close, and wake whoever waits in another thread."""
    with contextlib.suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)
    each.close()
