"""A threaded HTTP/1.1 server over raw sockets: it sees a client's close at once and leaves no thread behind."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from http.client import responses
from types import TracebackType
from typing import TypeVar

from .exchange import Exchange
from .peer import Gone, Peer
from .request import BadRequest, Request
from .request_reader import RequestReader

_Self = TypeVar("_Self", bound="SimServer")

JOIN_SECONDS = 5.0  # how long close() waits for its threads, all together
FULL_SECONDS = 0.05  # between two tries to accept while the process may open no more descriptors


@dataclass(frozen=True)
class ClientClose:
    """A client's end was seen to close: on which connection, when (`time.monotonic()` seconds), and during what.

    `phase` is tls, request (between or inside request heads) or answer (a handler was at work).
    """

    connection: int
    at: float
    phase: str


class SimServer:
    """Listens on `host` and `port` (0: the system chooses one) or on `unix_path`; one daemon thread a connection.

    `handler(exchange)` answers each request; a subclass may override `handle` instead. `ssl_context` makes it speak
    TLS. `idle_timeout` seconds and `max_requests` bound a kept-alive connection; `handshake_silence` never answers the
    TLS hello; `send_buffer` bytes (SO_SNDBUF) makes back-pressure visible early. `record_limit` bounds the kept
    requests and closes.

    Made with `with`: entering starts nothing more (the constructor has bound and listens), leaving closes. The
    constructor raises OSError where the system refuses the address.
    """

    def __init__(
        self,
        handler: Callable[[Exchange], None] | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        unix_path: str | None = None,
        ssl_context: ssl.SSLContext | None = None,
        handshake_silence: bool = False,
        idle_timeout: float | None = 60.0,
        max_requests: int | None = None,
        send_buffer: int | None = None,
        record_limit: int = 100_000,
    ) -> None:
        self._handler = handler
        self._ssl_context = ssl_context
        self._handshake_silence = handshake_silence
        self._idle_timeout = idle_timeout
        self._max_requests = max_requests
        self._host = host
        self._unix_path = unix_path
        self._changed = threading.Condition()
        self._requests: deque[Request] = deque(maxlen=record_limit)
        self._closes: deque[ClientClose] = deque(maxlen=record_limit)
        self._violations: list[str] = []
        self._failures: list[Exception] = []
        self._connections = 0
        self._threads: dict[int, threading.Thread] = {}
        self._stopping = False
        self._reset_all = False
        self._listener = self._listen(port, send_buffer)
        self._wake_read, self._wake_write = os.pipe()
        self._acceptor = threading.Thread(target=self._accept_loop, name="simulate-accept", daemon=True)
        self._acceptor.start()

    # -- what a test reads ---------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """The base URL: http, https or `unix://path`, without a final slash."""
        if self._unix_path is not None:
            return f"unix://{self._unix_path}"
        scheme = "https" if self._ssl_context or self._handshake_silence else "http"
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{scheme}://{host}:{self.port}"

    @property
    def port(self) -> int:
        """The TCP port, 0 on a Unix socket."""
        return self._port

    @property
    def requests(self) -> tuple[Request, ...]:
        """Every request read so far, oldest first."""
        with self._changed:
            return tuple(self._requests)

    @property
    def connections(self) -> int:
        """How many connections were accepted."""
        with self._changed:
            return self._connections

    @property
    def connections_open(self) -> int:
        """How many connections this server has not closed yet."""
        with self._changed:
            return len(self._threads)

    @property
    def closes(self) -> tuple[ClientClose, ...]:
        """The client ends seen to close, in the order they were seen."""
        with self._changed:
            return tuple(self._closes)

    @property
    def violations(self) -> tuple[str, ...]:
        """Why requests were refused as malformed: empty for a well-behaved client."""
        with self._changed:
            return tuple(self._violations)

    def wait_for(self, predicate: Callable[[], bool], timeout: float) -> bool:
        """Waits until `predicate()` is true, asked after every event of the server; False after `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(predicate, timeout)

    def wait_closed(self, count: int, timeout: float) -> bool:
        """Waits until at least `count` client closes were seen; False after `timeout` seconds."""
        return self.wait_for(lambda: len(self._closes) >= count, timeout)

    def notify(self) -> None:
        """Wakes `wait_for` after a change of state of a subclass."""
        with self._changed:
            self._changed.notify_all()

    # -- life ----------------------------------------------------------------------------------------------------

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def kill(self) -> None:
        """Dies like a killed process: no listener, and an RST on every connection, at once. `close` is still due."""
        self._stop(reset=True)

    def close(self) -> None:
        """Stops everything. Raises RuntimeError if a thread is alive after 5 s, or from a handler's own exception."""
        self._stop(reset=False)
        with self._changed:
            wake_read, self._wake_read = self._wake_read, -1
            failure = self._failures.pop(0) if self._failures else None
        if wake_read >= 0:
            os.close(wake_read)
            os.close(self._wake_write)
        if failure is not None:
            raise RuntimeError("a handler of the simulator failed") from failure

    def _stop(self, reset: bool) -> None:
        with self._changed:
            first = not self._stopping
            self._stopping = True
            self._reset_all = self._reset_all or reset
        if first:
            os.write(self._wake_write, b"!")  # never read: the level stays up and wakes every poll, now and later
        deadline = time.monotonic() + JOIN_SECONDS
        self._acceptor.join(JOIN_SECONDS)  # first: after it no connection can be added
        with self._changed:
            threads = list(self._threads.values())
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        threads.append(self._acceptor)
        alive = [thread.name for thread in threads if thread.is_alive()]
        if alive:
            raise RuntimeError(f"threads still alive {JOIN_SECONDS} s after the stop: {', '.join(alive)}")

    # -- threads -------------------------------------------------------------------------------------------------

    def _listen(self, port: int, send_buffer: int | None) -> socket.socket:
        tcp = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        listener = socket.socket(tcp if self._unix_path is None else socket.AF_UNIX, socket.SOCK_STREAM)
        if send_buffer is not None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        if port:
            # Of a server that was here a moment ago, connections may still be fading away.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((self._host, port) if self._unix_path is None else self._unix_path)
        except OSError:
            listener.close()
            raise
        listener.listen(1024)
        listener.setblocking(False)
        self._port = int(listener.getsockname()[1]) if self._unix_path is None else 0
        return listener

    def _accept_loop(self) -> None:
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        poll.register(self._wake_read, select.POLLIN)
        while not self._stopping:
            poll.poll()
            self._accept()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # a forked child may hold it as well
        self._listener.close()
        if self._unix_path is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._unix_path)

    def _accept(self) -> None:
        """Takes a connection. One that the process has no descriptor for waits in the backlog until another ends."""
        try:
            sock = self._listener.accept()[0]
        except (BlockingIOError, ConnectionError):
            return
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            with self._changed:
                self._changed.wait(FULL_SECONDS)
            return
        self._adopt(sock)

    def _adopt(self, sock: socket.socket) -> None:
        if self._unix_path is None:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._changed:
            self._connections += 1
            number = self._connections
            thread = threading.Thread(
                target=self._serve, args=(sock, number), name=f"simulate-connection-{number}", daemon=True
            )
            self._threads[number] = thread
            self._changed.notify_all()
        thread.start()

    def _serve(self, sock: socket.socket, number: int) -> None:
        connection = _Connection(self, sock, number)
        try:
            connection.run()
        except Gone:
            pass
        except Exception as error:  # noqa: BLE001  a handler's own mistake: kept for close(), which raises it
            with self._changed:
                self._failures.append(error)
        finally:
            connection.peer.close(reset=self._reset_all)
            with self._changed:
                del self._threads[number]
                self._changed.notify_all()

    def handle(self, exchange: Exchange) -> None:
        """Answers one request; runs in the connection's thread."""
        if self._handler is None:
            raise NotImplementedError("give SimServer a handler, or override handle")
        self._handler(exchange)

    def _record_request(self, request: Request) -> None:
        with self._changed:
            self._requests.append(request)
            self._changed.notify_all()

    def _record_close(self, close: ClientClose) -> None:
        with self._changed:
            self._closes.append(close)
            self._changed.notify_all()

    def _record_violation(self, message: str) -> None:
        with self._changed:
            self._violations.append(message)
            self._changed.notify_all()


class _Connection:
    """The loop of one connection: handshake, then request after request."""

    def __init__(self, server: SimServer, sock: socket.socket, number: int) -> None:
        self._server = server
        self._number = number
        self._phase = "tls"
        self.peer = Peer(sock, server._wake_read, self._on_gone)
        self._reader = RequestReader(self.peer)

    def _on_gone(self) -> None:
        self._server._record_close(ClientClose(self._number, time.monotonic(), self._phase))

    def run(self) -> None:
        server = self._server
        if server._handshake_silence:
            self.peer.wait(None)
            return
        if server._ssl_context is not None:
            self.peer.handshake(server._ssl_context, time.monotonic() + 30.0)
        served = 0
        while True:
            self._phase = "request"
            request = self._read_request()
            if request is None:
                return
            served += 1
            self._phase = "answer"
            server._record_request(request)
            exchange = Exchange(request, self.peer, last=served == server._max_requests)
            server.handle(exchange)
            if not exchange.keep_alive or self.peer.closed:
                return

    def _read_request(self) -> Request | None:
        """The next request, or None when the connection is over. Answers a malformed one itself."""
        idle = self._server._idle_timeout
        try:
            head = self._reader.head(None if idle is None else time.monotonic() + idle)
            body = None if head is None else self._reader.body(head)
        except BadRequest as error:
            self._server._record_violation(str(error))
            reason = responses[error.status]
            self.peer.write(
                f"HTTP/1.1 {error.status} {reason}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".encode()
            )
            return None
        if head is None or body is None:
            if head is None and self.peer.buffer:
                self._server._record_violation("the connection ended inside a request head")
            return None
        return Request(head.method, head.target, head.headers, body, self._number, time.monotonic(), head.version)
