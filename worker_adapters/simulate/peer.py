"""The server's end of one connection: non-blocking, and always listening for the client's close while it waits."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import struct
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

_T = TypeVar("_T")

# POLLRDHUP tells a FIN even behind unread bytes; where the platform lacks it, peeking for EOF has to do.
_RDHUP = getattr(select, "POLLRDHUP", 0)
_HUNG_UP = _RDHUP | select.POLLHUP | select.POLLERR | select.POLLNVAL
_LINGER_ZERO = struct.pack("ii", 1, 0)


class Gone(Exception):
    """The connection is over for the handler: the client went away, the server stops, or a fault ended it."""


class Peer:
    """One accepted socket. Every wait also watches `wake_fd`, which becomes readable when the whole server stops.

    `on_gone` is called once, at the moment the client's end is first seen closed.
    """

    def __init__(self, sock: socket.socket, wake_fd: int, on_gone: Callable[[], None]) -> None:
        sock.setblocking(False)
        self._sock: socket.socket | None = sock
        self._wake_fd = wake_fd
        self._on_gone = on_gone
        self._poll = select.poll()
        self._fd = sock.fileno()
        self._mask = select.POLLIN | _RDHUP
        self._poll.register(self._fd, self._mask)
        self._poll.register(wake_fd, select.POLLIN)
        self.buffer = bytearray()
        self.is_gone = False
        self.stopped = False

    @property
    def closed(self) -> bool:
        """True once this end was closed or reset."""
        return self._sock is None

    def handshake(self, context: ssl.SSLContext, deadline: float | None) -> None:
        """Answers the TLS hello. Raises Gone if the client leaves meanwhile or speaks no TLS."""
        try:
            tls = context.wrap_socket(self._open(), server_side=True, do_handshake_on_connect=False)
            self._sock = tls
            self._retry(tls.do_handshake, deadline)
        except (ssl.SSLError, ConnectionError) as error:
            self._mark_gone()
            raise Gone("no TLS handshake") from error

    def read(self, deadline: float | None = None) -> bytes:
        """The next bytes; b"" at the client's end. Raises Gone when the server stops or `deadline` has passed."""
        sock = self._open()
        try:
            data = self._retry(lambda: sock.recv(65536), deadline)
        except (ConnectionError, ssl.SSLError):
            data = b""
        if not data:
            self._mark_gone()
        return data

    def write(self, data: bytes) -> None:
        """Sends everything; waits while the client does not read. Raises Gone if the client or the server went away."""
        sock = self._open()
        view = memoryview(data)
        try:
            while view:
                sent = self._retry(partial(sock.send, view), None, select.POLLOUT)
                view = view[sent:]
        except (ConnectionError, ssl.SSLError) as error:
            self._mark_gone()
            raise Gone("the client went away") from error

    def gone(self) -> bool:
        """True if the client has closed its end (a half close counts) or the server stops. Does not wait."""
        return self.wait(0.0) == "gone"

    def wait(self, seconds: float | None, extra_fd: int = -1) -> str:
        """Waits: "gone" (client or server), "ready" (`extra_fd` became readable) or "time". Resolution: 1 ms."""
        if self.closed or self.is_gone or self.stopped:
            return "gone"
        deadline = None if seconds is None else time.monotonic() + seconds
        if extra_fd >= 0:
            self._poll.register(extra_fd, select.POLLIN)
        try:
            while True:
                ready = self._poll_until(deadline)
                if self._look(ready):
                    return "gone"
                if any(fd == extra_fd for fd, _ in ready):
                    return "ready"
                if deadline is not None and time.monotonic() >= deadline:
                    return "time"
        finally:
            if extra_fd >= 0:
                self._poll.unregister(extra_fd)

    def close(self, reset: bool = False) -> None:
        """Closes this end; `reset` sends RST in place of FIN. Harmless when closed already."""
        sock, self._sock = self._sock, None
        if sock is None:
            return
        if reset:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
        else:
            if isinstance(sock, ssl.SSLSocket):
                # close_notify, as far as it fits: a body that ends with the connection is else a truncation under TLS.
                with contextlib.suppress(OSError, ValueError):
                    sock.unwrap()
            # A child forked by a test holds this descriptor too: a plain close would then not reach the client.
            with contextlib.suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)
        sock.close()

    def _open(self) -> socket.socket:
        if self._sock is None:
            raise Gone("this end is closed")
        return self._sock

    def _poll_until(self, deadline: float | None) -> list[tuple[int, int]]:
        if deadline is None:
            return self._poll.poll()
        return self._poll.poll(max(0.0, deadline - time.monotonic()) * 1000)

    def _look(self, ready: list[tuple[int, int]]) -> bool:
        """Judges what poll reported: True if the connection is over."""
        for fd, event in ready:
            if fd == self._wake_fd:
                self.stopped = True
                return True
            if fd == self._fd and (event & _HUNG_UP or self._at_end()):
                self._mark_gone()
                return True
        return False

    def _at_end(self) -> bool:
        try:
            # Past the TLS layer on purpose: it cannot peek, and a FIN is a FIN.
            if socket.socket.recv(self._open(), 1, socket.MSG_PEEK) == b"":
                return True
        except BlockingIOError:
            return False
        except OSError:
            return True
        # Bytes of a next request lie there: stop asking for POLLIN, which would stay true for ever.
        self._watch(_RDHUP)
        return False

    def _watch(self, mask: int) -> None:
        if mask != self._mask:
            self._mask = mask
            self._poll.modify(self._fd, mask)

    def _retry(self, operation: Callable[[], _T], deadline: float | None, waiting_for: int = select.POLLIN) -> _T:
        """Repeats a non-blocking operation until it gets through. A write that must wait gives up at a client's FIN."""
        while True:
            try:
                return operation()
            except ssl.SSLWantReadError:
                mask = select.POLLIN
            except ssl.SSLWantWriteError:
                mask = select.POLLOUT
            except BlockingIOError:
                mask = waiting_for
            self._watch(mask | (_RDHUP if waiting_for == select.POLLOUT else 0))
            try:
                ready = self._poll_until(deadline)
            finally:
                self._watch(select.POLLIN | _RDHUP)
            if any(fd == self._wake_fd for fd, _ in ready):
                self.stopped = True
                raise Gone("the server stops")
            if not ready:
                raise Gone("no byte in time")
            if waiting_for == select.POLLOUT and any(event & _RDHUP for _, event in ready):
                raise ConnectionResetError("the client closed while it was written to")

    def _mark_gone(self) -> None:
        if not self.is_gone:
            self.is_gone = True
            self._on_gone()
