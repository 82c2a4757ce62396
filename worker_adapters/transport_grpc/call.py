"""One call over gRPC, in steps that a reader pulls: cancel, clocks and ticks reach it as they reach HTTP."""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

import grpc

from worker_adapters.cancel import Job
from worker_adapters.contract import Wait
from worker_adapters.errors import EngineUnavailable
from worker_adapters.transport.connection import Steps, connect
from worker_adapters.transport.endpoint import Endpoint
from worker_adapters.transport.network import Network
from worker_adapters.transport_grpc.channel import GrpcChannels, Line, keep
from worker_adapters.transport_grpc.inbox import Inbox
from worker_adapters.wire.delta import WireRequest

#: How long the end of a call is waited for after the job's end, in seconds, before it is cancelled.
SETTLE = 0.05
#: At the interpreter's exit a thread that reads a call is waited for so long (seconds): far longer than a cancel takes.
LAST = 1.0


class Ended(NamedTuple):
    """How a call ended: grpc's status, by name, and its words."""

    code: str
    details: str

    @property
    def well(self) -> bool:
        """Did the server say that all is well?"""
        return self.code == "OK"


class Unary(NamedTuple):
    """The answer to a call of one message."""

    ended: Ended
    message: bytes


class GrpcCall:
    """The life of one streaming call. Made for one job, pulled by one thread; ``close`` is always called.

    :ivar ended, drained, broken, whole, wait: as of transport.reader.Exchange.
    """

    __slots__ = (
        "_call", "_channels", "_endpoint", "_inbox", "_job", "_line", "_network", "_pid", "_shutdown", "broken",
        "drained", "ended", "wait", "whole",
    )  # fmt: skip

    def __init__(self, endpoint: Endpoint, channels: GrpcChannels, network: Network, job: Job) -> None:
        self._endpoint = endpoint
        self._channels = channels
        self._network = network
        self._job = job
        self._inbox = Inbox()
        self._line: Line | None = None
        self._call: Any = None
        self._shutdown: Callable[[], object] | None = None
        self._pid = os.getpid()
        self.wait = Wait("first_token", self._inbox.block)
        self.drained = True
        self.ended = False
        self.whole = False
        self.broken = ""

    def open(self, request: WireRequest, budget: float | None) -> Steps[None]:
        """Connect if need be, and send the one request of this call.

        :param request: its path is the call's full name, its headers go with the endpoint's as metadata.
        :param budget: seconds for connecting.
        :raises EngineUnavailable: no connection.
        """
        self._line = yield from reached(self._endpoint, self._channels, self._network, self._job, budget)
        # One message and no more: on the wire it is the bidirectional call, and grpc needs no thread to ask for more.
        metadata = list({**dict(self._channels.metadata()), **dict(request.headers)}.items())
        call = self._line.channel.unary_stream(request.path)(request.body, metadata=metadata)
        self._call = call
        self._shutdown = partial(_end, self._inbox, call)
        if not self._job.attach(self._shutdown):
            raise EngineUnavailable(message="the job was cancelled before it was sent", phase="connect")
        _pump(call, self._inbox.put, self._job)

    def receive(self) -> list[Any] | None:
        """The messages that are there now, and at the end how the call ended (Ended); None if nothing is yet."""
        if self.ended:
            return []
        items = self._inbox.take()
        if self._job.cancelled:
            self.ended, self.broken = True, "the job was cancelled"
            return []
        if not items:
            return None
        last = items[-1]
        if self._line is not None and not self._line.proven[0] and isinstance(items[0], bytes):
            self._line.proven[0] = True
        if isinstance(last, Ended):
            self.ended, self.whole = True, last.well
            self.broken = "" if last.well else f"the call ended with {last.code}"
            if last.code == "UNAVAILABLE" and self._line is not None:
                self._channels.discard(self._line)
        return items

    def close(self, *, reuse: bool = False) -> None:
        """End the call, unless it has ended; what it went over stays, for other calls.

        :param reuse: the job has ended well: give the call a moment to end by itself.
        """
        call, self._call = self._call, None
        if call is None:
            return
        if self._pid != os.getpid():
            keep((call, self._line))
            return
        if reuse:
            self._settle()
        self._inbox.close()  # who fills it may be waiting for room
        if self._shutdown is not None:
            self._job.detach(self._shutdown)
        if not self.ended or self._job.cancelled:
            call.cancel()

    def _settle(self) -> None:
        """Let the call end by itself, for a moment."""
        deadline = self._network.monotonic() + SETTLE
        while not self.ended and self._inbox.block(max(0.0, deadline - self._network.monotonic())):
            self.receive()


def reached(
    endpoint: Endpoint, channels: GrpcChannels, network: Network, job: Job, budget: float | None
) -> Steps[Line]:
    """The channel to call over, known to lead to a server that listens.

    grpc tells nobody when it is connected, so before the first message of a channel a connection of our own is made and
    dropped: its clock, its cancel and its words are those of every other engine.

    :raises EngineUnavailable: no connection.
    """
    line = channels.line()
    if not line.proven[0]:
        connection = yield from connect(endpoint, network, job, budget)
        job.detach(connection.shutdown)
        connection.close()
    return line


def unary(
    endpoint: Endpoint,
    channels: GrpcChannels,
    network: Network,
    job: Job,
    request: WireRequest,
    *,
    budget: float | None = None,
) -> Steps[Unary]:
    """One message there and one back.

    :raises EngineUnavailable: no connection, or the job was cancelled.
    """
    line = yield from reached(endpoint, channels, network, job, budget)
    inbox = Inbox()
    future = line.channel.unary_unary(request.path).future(request.body, metadata=channels.metadata())
    shutdown = partial(_end, inbox, future)
    pid = os.getpid()
    try:
        if not job.attach(shutdown):
            raise EngineUnavailable(message="the job was cancelled", phase="connect")
        future.add_done_callback(partial(_told, inbox.put))
        wait = Wait("first_token", inbox.block)
        while not (told := inbox.take()):
            if job.cancelled:
                raise EngineUnavailable(message="the job was cancelled", phase="first_token")
            yield wait
        answer: Unary = told[0]
        line.proven[0] = line.proven[0] or answer.ended.code != "UNAVAILABLE"
        if answer.ended.code == "UNAVAILABLE":
            channels.discard(line)
        return answer
    finally:
        job.detach(shutdown)
        if pid == os.getpid():
            future.cancel()
        else:
            keep((future, line))


def _end(inbox: Inbox, call: Any) -> None:
    """What a cancel does, from any thread: wake the reader, tell the server. grpc's lock is never held for long."""
    inbox.close()
    call.cancel()


class Running(NamedTuple):
    """A call that is being read: its job, the thread that reads it, and what says that grpc's own is done with it."""

    job: Job
    thread: threading.Thread
    gone: SimpleQueue[None]


_running: dict[Any, Running] = {}


def _pump(call: Any, put: Callable[[Any], object], job: Job) -> None:
    """Read a call to its end, in a thread that holds the call and where its messages go, and ends with it.

    Only a thread that blocks in it can read a call.
    """
    thread = threading.Thread(target=_read, args=(call, put), name="worker-adapters-grpc", daemon=True)
    gone: SimpleQueue[None] = SimpleQueue()
    if not call.add_callback(partial(gone.put, None)):
        gone.put(None)
    _running[call] = Running(job, thread, gone)
    thread.start()


def _read(call: Any, put: Callable[[Any], object]) -> None:
    try:
        for message in call:
            put(message)
    except grpc.RpcError:
        pass  # the status says it
    put(Ended(call.code().name, call.details() or ""))
    _running.pop(call, None)


def _end_all() -> None:
    """At the interpreter's exit, while threads still run: a daemon that is frozen later may hold a call's lock, and
    whoever frees that call would wait for it for ever (grpcio 1.85)."""
    running = list(_running.values())
    for each in running:
        each.job.cancel()
    for each in running:
        each.thread.join(LAST)
        try:
            each.gone.get(timeout=LAST)
        except Empty:
            pass


def _disown_all() -> None:
    """In a forked child."""
    keep(dict(_running))
    _running.clear()


atexit.register(_end_all)
if hasattr(os, "register_at_fork"):  # not on Windows, which cannot fork
    os.register_at_fork(after_in_child=_disown_all)


def _told(put: Callable[[Any], object], future: Any) -> None:
    ended = Ended(future.code().name, future.details() or "")
    put(Unary(ended, future.result() if ended.well else b""))
