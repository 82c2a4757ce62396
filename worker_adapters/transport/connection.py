"""One connection: connects in steps that cancel, clocks and ticks reach, and dies by shutdown of its socket.

urllib3 brings the TLS defaults and the URL; connecting itself is ours, because its ``connect()`` is one blocking call
in which no heartbeat could be given (docs/decisions).
"""

from __future__ import annotations

import errno
import os
import re
import socket
import ssl
import struct
from collections.abc import Generator
from typing import TypeVar

from worker_adapters.cancel import Job
from worker_adapters.contract import Wait
from worker_adapters.errors import AuthenticationFailed, EngineUnavailable, WorkerError
from worker_adapters.transport.endpoint import Endpoint
from worker_adapters.transport.faults import connect_fault
from worker_adapters.transport.network import Address, Network
from worker_adapters.wire.http1 import Head, MalformedResponse, ResponseParser, request_head

T = TypeVar("T")
Steps = Generator[Wait, None, T]

RECEIVE = 64 * 1024
#: Linger for 0 seconds: close sends a reset.
RESET = struct.pack("ii", 1, 0)
#: An idle connection is dropped after so many seconds, or one second before the server said it would (uvicorn: 5 s).
IDLE_LIMIT = 4.0
_DIGITS = re.compile("[0-9]{1,9}")
#: A unix socket whose backlog is full refuses at once instead of queueing: asked again after so many seconds.
BACKLOG_FULL = 0.02


class Connection:
    """A connected socket that never blocks. Not shared: at any time it belongs to one exchange or to the pool."""

    __slots__ = (
        "_handle", "_network", "_pid", "address", "behind", "broken", "drained", "keep_until", "sock", "uses_left",
    )  # fmt: skip

    def __init__(self, sock: socket.socket, network: Network, address: Address) -> None:
        self.sock = sock
        self.address = address
        self._network = network
        self._handle: socket.socket | None = None
        #: Is there surely nothing to read before the next wait? Saves a recv that would block, once a token.
        self.drained = True
        self._pid = os.getpid()
        #: Did the last read fill its buffer? Then the server sends faster than we read, and may be blocked in sending.
        self.behind = False
        self.broken = False
        self.keep_until = 0.0
        self.uses_left: int | None = None

    def secure(self, context: ssl.SSLContext, host: str) -> ssl.SSLSocket:
        """Wrap the socket for TLS; the handshake is still to be done.

        From here on cancel goes through a duplicate of the plain socket: ``SSLSocket.shutdown`` drops the TLS object,
        and the reader would get ciphertext as data.
        """
        self._handle = self.sock.dup()
        wrapped = context.wrap_socket(self.sock, server_hostname=host, do_handshake_on_connect=False)
        self.sock = wrapped
        return wrapped

    def shutdown(self) -> None:
        """End both directions now: whoever waits for the socket wakes, and the server is told.

        Only in the process that connected: a forked child shares the connection and must not end its parent's.
        """
        if self._pid == os.getpid():
            try:
                (self._handle or self.sock).shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # not connected any more: nobody is left to be told

    def close(self) -> None:
        """Shut down, then close: with a forked child alive, a plain close would be invisible to the server.

        A server that is blocked in sending to us sees no mere shutdown before our kernel forgets the connection, a
        minute later (a zero window keeps being acknowledged); a reset it sees at once.
        """
        self.shutdown()
        if self.behind and self._pid == os.getpid():
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.sock.close()
        if self._handle is not None:
            self._handle.close()

    @property
    def ours(self) -> bool:
        """Was it connected by this process? A forked child shares its parent's connections and leaves them alone."""
        return self._pid == os.getpid()

    def receive(self) -> bytes | None:
        """What is there; None if nothing is yet; ``b""`` at the end (``broken`` tells a reset from a close)."""
        try:
            data = self.sock.recv(RECEIVE)
            self.behind = len(data) == RECEIVE
            self.drained = not self.behind and self._handle is None  # TLS may hold back what no poll sees
            return data
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return None
        except OSError:
            self.broken = True
            return b""

    def send(self, data: memoryview) -> int:
        """How many bytes went out; 0 if none can now, or ever (``broken``)."""
        try:
            return self.sock.send(data)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return 0
        except OSError:
            self.broken = True
            return 0

    def readable(self, phase: str) -> Wait:
        """A wait for bytes to read."""
        return Wait(phase, self._network.waiter(self.sock, read=True, write=False))

    def writable(self, phase: str) -> Wait:
        """A wait for room to send, or for an early answer."""
        return Wait(phase, self._network.waiter(self.sock, read=True, write=True))

    def keep(self, head: Head) -> bool:
        """May it serve another request, by what the server announced? Notes until when."""
        limit, self.uses_left = _keep_alive(head, self.uses_left)
        self.keep_until = self._network.monotonic() + limit
        return limit > 0 and self.uses_left != 0

    def alive(self) -> bool:
        """Is it within its idle limit, ours, and silent? An idle connection that can be read is closed or confused."""
        if self._pid != os.getpid() or self._network.monotonic() >= self.keep_until:
            return False
        return not self._network.waiter(self.sock, read=True, write=False)(0)


def _keep_alive(head: Head, uses_left: int | None) -> tuple[float, int | None]:
    """Seconds a connection may idle and how many uses it has left, by ``Keep-Alive: timeout=5, max=100``."""
    limit = IDLE_LIMIT
    if uses_left is not None:
        uses_left -= 1
    for part in head.get("keep-alive").split(","):
        name, _, value = part.strip().partition("=")
        if not _DIGITS.fullmatch(value):
            continue
        if name.lower() == "timeout":
            limit = min(limit, int(value) - 1.0)
        elif name.lower() == "max":
            uses_left = int(value) if uses_left is None else min(uses_left, int(value))
    return limit, uses_left


def connect(
    endpoint: Endpoint, network: Network, job: Job, budget: float | None, near: Address | None = None
) -> Steps[Connection]:
    """A new connection, in steps; a cancel of ``job`` reaches its socket from before ``connect()`` on.

    :param budget: seconds for all addresses together. Each gets an equal share of what is left, so that one that
        swallows packets cannot starve the others; the last is ended by the driver's clock.
    :param near: the address of a connection that came about a moment ago, instead of asking the resolver.
    :raises EngineUnavailable: no address could be reached, or the handshake failed.
    :raises AuthenticationFailed: the proxy wants a password.
    """
    try:
        addresses = _addresses(endpoint, network) if near is None else [near]
    except OSError as error:
        raise connect_fault(error, endpoint) from error
    deadline = None if budget is None else network.monotonic() + budget
    while True:
        address = addresses.pop(0)
        until = None
        if deadline is not None and addresses:
            now = network.monotonic()
            until = now + max(0.0, deadline - now) / (len(addresses) + 1)
        try:
            return (yield from _connect_one(endpoint, network, job, address, until))
        except OSError as error:
            if isinstance(error, WorkerError):  # a cancel's, or a clock that fired
                raise
            if not addresses or job.cancelled:
                raise connect_fault(error, endpoint) from error


def _addresses(endpoint: Endpoint, network: Network) -> list[Address]:
    if endpoint.unix_path is not None:
        return [(socket.AF_UNIX, socket.SOCK_STREAM, 0, endpoint.unix_path)]
    return list(network.resolve(*endpoint.address))


def _connect_one(
    endpoint: Endpoint, network: Network, job: Job, address: Address, until: float | None
) -> Steps[Connection]:
    """TCP, then the proxy's CONNECT, then TLS, to one address."""
    connection = Connection(network.socket(*address[:3]), network, address)
    try:
        done = yield from bounded(_establish(connection, endpoint, job, address, network), until, network)
        if done is None:
            raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
    except BaseException:
        job.detach(connection.shutdown)
        connection.close()
        raise
    return connection


def _establish(connection: Connection, endpoint: Endpoint, job: Job, address: Address, network: Network) -> Steps[bool]:
    yield from _reach(connection, job, address, network)
    if endpoint.tunnelled:
        yield from _tunnel(connection, endpoint)
    if endpoint.tls:
        yield from _handshake(connection, endpoint, job)
    return True


def bounded(steps: Steps[T], until: float | None, network: Network, phase: str | None = None) -> Steps[T | None]:
    """Steps that give up, with None, at ``until`` (Runtime.monotonic).

    :param phase: the clock that all their waits count to; None leaves each its own.
    """
    try:
        while until is None or network.monotonic() < until:
            wait = next(steps)
            wait.until = until
            wait.phase = wait.phase if phase is None else phase
            yield wait
        return None
    except StopIteration as stop:
        result: T = stop.value
        return result
    finally:
        steps.close()


def _reach(connection: Connection, job: Job, address: Address, network: Network) -> Steps[None]:
    sock = connection.sock
    if not job.attach(connection.shutdown):
        raise EngineUnavailable(message="the job was cancelled while connecting", phase="connect")
    if address[0] != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    code = sock.connect_ex(address[3])
    while code == errno.EAGAIN and address[0] == socket.AF_UNIX and not job.cancelled:
        yield Wait("connect", lambda timeout: network.sleep(min(BACKLOG_FULL, timeout or BACKLOG_FULL), job.wake))
        code = sock.connect_ex(address[3])
    writable = network.waiter(sock, read=False, write=True)
    while code == errno.EINPROGRESS:
        yield Wait("connect", writable)
        if writable(0):
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        raise OSError(code, os.strerror(code))


def _handshake(connection: Connection, endpoint: Endpoint, job: Job) -> Steps[None]:
    wrapped = connection.secure(endpoint.ssl_context(), endpoint.host)
    if job.cancelled:  # it may have come between the duplicate and the wrapped socket
        raise EngineUnavailable(message="the job was cancelled while connecting", phase="connect")
    while True:
        try:
            wrapped.do_handshake()
        except ssl.SSLWantReadError:
            yield connection.readable("connect")
        except ssl.SSLWantWriteError:
            yield connection.writable("connect")
        else:
            return


def _tunnel(connection: Connection, endpoint: Endpoint) -> Steps[None]:
    """Ask the proxy for a connection to the engine."""
    authority = endpoint.host_and_port
    request = request_head("CONNECT", authority, [("Host", authority), *endpoint.proxy_headers()])
    yield from _send(connection, request)
    head = yield from _tunnel_head(connection, endpoint)
    if head.status == 407:
        raise AuthenticationFailed(
            message=f"the proxy {endpoint.address[0]}:{endpoint.address[1]} wants a user and a password",
            status=407,
            phase="connect",
        )
    if not 200 <= head.status < 300:
        raise ConnectionError(None, f"the proxy answered {head.status}")


def _tunnel_head(connection: Connection, endpoint: Endpoint) -> Steps[Head]:
    parser = ResponseParser()
    early: list[bytes] = []
    try:
        while parser.head is None:
            data = connection.receive()
            if data is None:
                yield connection.readable("connect")
            elif not data:
                raise ConnectionError(None, "the proxy closed the connection")
            else:
                early = parser.feed(data)
        if early and parser.head.status < 300:
            raise ConnectionError(None, "the proxy spoke before its time")
        return parser.head
    except MalformedResponse as error:
        raise ConnectionError(None, f"the proxy's answer is {error}") from error
    finally:
        parser.close()


def _send(connection: Connection, data: bytes) -> Steps[None]:
    view = memoryview(data)
    while view and not connection.broken:
        view = view[connection.send(view) :]
        if view:
            yield connection.writable("connect")
