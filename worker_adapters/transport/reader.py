"""One exchange: a request out, a response in, in steps that a reader pulls. Head and body are read here and only here.

``request()``, ``getresponse()`` and ``makefile()`` of the libraries are never called on the hot path: their buffers
swallow the first chunk, a timed wait that cuts a head loses it, and they return the connection to their pool before the
job is known to be done, so that a late cancel could shut down another job's socket.
"""

from __future__ import annotations

from collections.abc import Iterable

from worker_adapters.cancel import Job
from worker_adapters.contract import Wait
from worker_adapters.errors import EngineUnavailable, InvalidRequest, WorkerTimeout
from worker_adapters.transport.connection import Connection, Steps, T, connect
from worker_adapters.transport.endpoint import Endpoint
from worker_adapters.transport.faults import lost
from worker_adapters.transport.network import Address, Network
from worker_adapters.transport.pool import ConnectionPool
from worker_adapters.wire.http1 import Head, MalformedResponse, ResponseParser, request_head

#: How long the end of a body is waited for after the job's end, in seconds, so that the connection can serve again.
SETTLE = 0.05


class Exchange:
    """The life of one request on one connection. Made for one job, pulled by one thread; ``close`` is always called.

    :ivar ended: has ``receive`` given out all that will ever come? ``drained``: must it be waited for first?
    :ivar broken: once it has ended: why the body is not whole, or "".
    :ivar sent: did the whole request leave? ``address``: where it went.
    """

    __slots__ = (
        "_connection", "_early", "_job", "_network", "_over", "_parser", "_pool", "address", "broken", "drained",
        "ended", "endpoint", "sent", "wait",
    )  # fmt: skip

    def __init__(self, endpoint: Endpoint, pool: ConnectionPool, network: Network, job: Job) -> None:
        self.endpoint = endpoint
        self._pool = pool
        self._network = network
        self._job = job
        self._connection: Connection | None = None
        self.address: Address | None = None
        self._parser = ResponseParser()
        self._early: list[bytes] = []  # body that came with the head
        self.wait = Wait("first_token", lambda timeout: True)
        self._over = False
        self.sent = False
        self.ended = False
        self.drained = True
        self.broken = ""

    def open(self, request: bytes, connect_budget: float | None, near: Address | None = None) -> Steps[Head]:
        """Connect (or take an idle connection), send, and read the head of the answer.

        :param near: see ``connect``.

        :raises EngineUnavailable: no connection, or it was lost before the head was whole.
        :raises AuthenticationFailed: the proxy wants a password.
        """
        connection = self._pool.take()
        if connection is None:
            connection = yield from connect(self.endpoint, self._network, self._job, connect_budget, near)
            self._connection = connection
        else:
            self._connection = connection
            if not self._job.attach(connection.shutdown):
                raise EngineUnavailable(message="the job was cancelled before it was sent", phase="connect")
        self.address = connection.address
        self.wait = connection.readable("first_token")
        yield from self._send(connection, request)
        while not self._answered():
            yield self.wait  # also after bytes that were no head yet: a flood of interim heads stops no clock
            self._early += self._read(connection) or []
        head = self._parser.head
        if head is None:
            raise lost(self.endpoint, self.broken)
        self.ended = self._over and not self._early
        return head

    @property
    def whole(self) -> bool:
        """Did the framing itself end the body? A closed connection proves nothing."""
        return self._parser.complete

    def _answered(self) -> bool:
        return self._over or self._parser.head is not None

    def _send(self, connection: Connection, request: bytes) -> Steps[None]:
        """Send all, unless the connection breaks or a refusal comes first (a 413, a 401): the answer says why."""
        view = memoryview(request)
        while view and not connection.broken:
            view = view[connection.send(view) :]
            if not view or connection.broken:
                break
            yield connection.writable("first_token")
            self._early += self._read(connection) or []
            head = self._parser.head
            if self._over or (head is not None and head.status >= 300):
                break
        self.sent = not view

    def receive(self) -> list[bytes] | None:
        """The pieces of body that are there now; None if nothing is yet."""
        if self._early:
            body, self._early = self._early, []
            self.ended = self._over
            return body
        connection = self._connection
        if connection is None or self._over:
            self.ended = True
            return []
        return self._read(connection)

    def _read(self, connection: Connection) -> list[bytes] | None:
        """What one recv brings."""
        data = connection.receive()
        self.drained = connection.drained
        if data is None:
            return None
        if not data or self._job.cancelled:  # asked before parsing: a buffer may hold hundreds of tokens
            connection.behind = connection.behind or bool(data)  # it took what a close would have found unread
            self._at_eof(connection)
            return []
        try:
            body = self._parser.feed(data)
        except MalformedResponse as error:
            self._over, self.ended, self.broken = True, True, str(error)
            return []
        self._over = self.ended = self._parser.complete
        return body

    def _at_eof(self, connection: Connection) -> None:
        self._over = self.ended = True
        if self._parser.complete or (self._parser.close_delimited and not connection.broken):
            return
        how = "was reset" if connection.broken else "closed"
        where = "before it answered" if self._parser.head is None else "before the end of the answer"
        self.broken = f"the connection {how} {where}"

    def close(self, *, reuse: bool = False) -> None:
        """Give the connection back to the pool if the response is whole and no cancel touched it; else close it.

        :param reuse: the job has ended well: wait a moment for the rest of the body. Without it, the connection dies,
            which is what tells an engine to stop.
        """
        connection, self._connection = self._connection, None
        if connection is None:
            self._parser.close()
            return
        keep = False
        try:
            head = self._parser.head
            if reuse and self.sent and connection.ours and head is not None and head.keep_alive:
                self._settle(connection)
                whole = self._parser.complete and not self._parser.leftover and not connection.broken
                keep = whole and connection.keep(head)
        finally:
            untouched = self._job.detach(connection.shutdown)
            self._parser.close()
            if keep and untouched:
                self._pool.give(connection)
            else:
                connection.close()

    def _settle(self, connection: Connection) -> None:
        """Read the rest of the body, for a moment."""
        deadline = self._network.monotonic() + SETTLE
        while not self._over:
            got = self._read(connection)
            left = deadline - self._network.monotonic()
            if left <= 0 or (got is None and not self.wait.block(left)):
                return


def encode_request(
    endpoint: Endpoint, method: str, path: str, headers: Iterable[tuple[str, str]], body: bytes
) -> bytes:
    """The head of a request to ``endpoint``.

    :raises InvalidRequest: something in it cannot be sent, e.g. a line feed in a header.
    """
    every = {name.lower(): (name, value) for name, value in endpoint.headers()}
    every |= {name.lower(): (name, value) for name, value in headers}
    if body or method != "GET":
        every["content-length"] = ("Content-Length", str(len(body)))
    try:
        return request_head(method, endpoint.target(path), every.values())
    except ValueError as error:
        raise InvalidRequest(message=str(error), field="headers", phase="submit") from None


def drive(steps: Steps[T], network: Network, seconds: float, endpoint: Endpoint) -> T:
    """Run steps to their end in this thread, under one deadline over all of them.

    :raises WorkerTimeout: the deadline passed; its clock is the phase it was in.
    """
    deadline = network.monotonic() + seconds
    try:
        while True:
            wait = next(steps)
            left = deadline - network.monotonic()
            if left <= 0:
                clock = wait.phase or "first_token"
                raise WorkerTimeout(
                    message=f"{endpoint.shown}: no whole answer within {seconds:.3g} s", clock=clock, phase=clock
                )
            wait.block(left if wait.until is None else max(0.0, min(left, wait.until - network.monotonic())))
    except StopIteration as stop:
        result: T = stop.value
        return result
    finally:
        steps.close()
