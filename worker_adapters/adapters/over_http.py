"""An attempt over HTTP: the request, refusals and what they teach, answers in one piece, and the call that stops."""

from __future__ import annotations

import re
import sys
from collections.abc import Generator
from typing import Any, ClassVar

from worker_adapters.adapters.framer import Framer
from worker_adapters.adapters.streaming import StreamingAdapter, correlation, sayable
from worker_adapters.cancel import Job, new_job_id
from worker_adapters.contract import Attempt, Wait
from worker_adapters.errors import WorkerError
from worker_adapters.frames import AnyFrame
from worker_adapters.task import TaskRequest
from worker_adapters.transport.connection import Steps, bounded
from worker_adapters.transport.control import MAX_BODY, Reply, fetch, whole_body
from worker_adapters.transport.endpoint import Endpoint
from worker_adapters.transport.network import Address, Network
from worker_adapters.transport.pool import ConnectionPool
from worker_adapters.transport.reader import Exchange, drive, encode_request
from worker_adapters.wire.delta import WireRequest
from worker_adapters.wire.http1 import Head
from worker_adapters.wire.sse import Event

#: Of a refusal so many bytes are read, for so long (seconds).
ERROR_BODY = 1024 * 1024
ERROR_BODY_WAIT = 2.0
#: A call that tells the engine to stop may hold a reader that has had its end so long (seconds); after one that could
#: not be sent, or was refused, none is made for so long.
STOP = 0.2
STOP_AGAIN = 60.0
JSON = [("Content-Type", "application/json")]
#: Of a text that is cut off: half a key no longer looks like one.
LAST_WORD = re.compile(rb"\S+\Z")


class HttpStreaming(StreamingAdapter):
    """What an attempt over HTTP needs of its adapter, and the attempt."""

    #: Does the engine keep a connection open after a stream, if it says so? One that does not would close it under the
    #: next job, which could not be tried again.
    keeps_streams: ClassVar[bool] = True
    #: Names of servers (header ``Server``) that do not, for an adapter that speaks to many.
    closing_servers: ClassVar[frozenset[str]] = frozenset()
    #: May the engine answer a request for a stream in one piece of JSON? Its decoder then reads that as one event.
    one_piece: ClassVar[bool] = False
    #: The header in which the engine takes our name of a job.
    job_id_header: ClassVar[str] = ""

    def __init__(self, endpoint: Endpoint, network: Network, max_idle: int, **options: Any) -> None:
        super().__init__(endpoint, network, **options)
        self._max_idle = max_idle
        self._pool = ConnectionPool(max_idle)
        self._stop_again_at = 0.0

    def stops(self, task: TaskRequest, job_id: str) -> WireRequest | None:
        """The call that tells the engine to stop a job that it knows by our name (``job_id_header``), beside the
        closing of its connection; None: there is none.

        It is what still reaches the engine through a proxy that keeps a dead client's request alive.
        """
        return None

    def refuses(self, reply: Reply) -> bool:
        """Does this answer to ``stops`` say that the server takes no such call?"""
        return reply.status >= 400

    # --- the attempt

    def _asked(
        self, task: TaskRequest, job: Job, request: WireRequest, *, may_learn: bool
    ) -> Generator[list[AnyFrame] | Wait, None, bool]:
        """One request and its answer; False if its refusal taught the adapter to ask in another form."""
        exchange = Exchange(self._endpoint, self._pool, self._network, job)
        request = self.named(request, job.job_id)
        ended = False
        head: Head | None = None
        try:
            sent = encode_request(
                self._endpoint, request.method, request.path, self._headers(task, job, request), request.body
            )
            head = yield from exchange.open(sent + request.body, self.timeouts_of(task).connect)
            piece: bytes | None = None
            if not _is_stream(head):
                body = yield from self._whole(head, exchange)
                fault = self._errors.read(head, body, task.texts())
                told = may_learn and fault is not None and self.learns(head.status, fault, task, request)
                if told and self.encode(task).body != request.body:
                    return False
                if fault is not None or not self._is_whole(head):
                    raise self._errors.refusal(head, fault, task.texts(), request.path, self._network.time())
                piece = body
            yield from self._identified(job, exchange.address)
            framer = Framer(self.decoder(task), request.facts)
            if piece is None:
                yield from self._frames(exchange, framer, task, job)
            else:
                yield from self._frames_of(piece, framer, head, task, job)
            ended = True
            named = self._errors.request_id(head, task.texts)
            framer.facts |= {"request_id": named} if named else {}
            end = framer.end(self._endpoint.masked)
            self._learned(task, end.metrics.engine)
            yield [end]
            return True
        except WorkerError as error:
            if head is not None:
                error.request_id = self._errors.request_id(head, task.texts)
            raise
        finally:
            exchange.close(reuse=ended and self.keeps_streams and not self._closes(head))
            if job.cancelled and exchange.sent and not ended:
                self._stop(task, job, exchange)

    def _closes(self, head: Head | None) -> bool:
        return head is not None and head.get("server") in self.closing_servers

    def _headers(self, task: TaskRequest, job: Job, request: WireRequest) -> list[tuple[str, str]]:
        common = [*JSON, ("Accept", "text/event-stream"), *correlation(task)]
        if self.job_id_header and self._names(job):
            common.append((self.job_id_header, job.job_id))
        return [*common, *request.headers]

    def _names(self, job: Job) -> bool:
        """Does the engine get our name of the job?"""
        return not self.job_id_header or sayable(job.job_id)

    def _whole(self, head: Head, exchange: Exchange) -> Generator[Wait, None, bytes]:
        """The body of an answer in one piece, or as much of a refusal's as comes soon: its status says enough."""
        if self._is_whole(head):
            return (yield from whole_body(exchange, MAX_BODY))
        until = self._network.monotonic() + ERROR_BODY_WAIT
        pieces: list[bytes] = []
        try:
            yield from bounded(whole_body(exchange, ERROR_BODY, pieces), until, self._network)
        except WorkerError:
            pass  # also a clock: what is known by now is worth more than that it fired
        said = b"".join(pieces)
        cut = head.media_type == "text/plain" and (exchange.broken or not exchange.ended)
        return LAST_WORD.sub(b"", said) if cut else said

    def _is_whole(self, head: Head) -> bool:
        return self.one_piece and head.status == 200 and head.plain and head.media_type in ("application/json", "")

    def _stop(self, task: TaskRequest, job: Job, cancelled: Exchange) -> None:
        """Tell the engine of a cancel, if it takes such a call: briefly, since a reader waits for its end."""
        ours = self._names(job) and not job.inherited and not sys.is_finalizing()
        call = self.stops(task, job.job_id) if ours else None
        now = self._network.monotonic()
        if call is None or now < self._stop_again_at:
            return
        exchange = Exchange(self._endpoint, self._pool, self._network, Job(new_job_id()))
        try:
            near = cancelled.address  # a resolver cannot be interrupted
            steps = fetch(exchange, call.path, JSON, budget=STOP, near=near, method=call.method, body=call.body)
            refused = self.refuses(drive(steps, self._network, STOP, self._endpoint))
        except WorkerError:
            refused = not exchange.sent  # a busy engine answers later, and obeys all the same
        self._stop_again_at = now + STOP_AGAIN if refused else 0.0

    def _question(
        self, question: WireRequest, job: Job, near: Address | None = None, budget: float | None = None
    ) -> Steps[Reply]:
        exchange = Exchange(self._endpoint, self._pool, self._network, job)
        headers = JSON if question.body else ()
        return fetch(
            exchange, question.path, headers, budget=budget, near=near, method=question.method, body=question.body
        )

    def _frames_of(self, piece: bytes, framer: Framer, head: Head, task: TaskRequest, job: Job) -> Attempt:
        """The frames of an answer in one piece."""
        frames = framer.feed([Event(piece)])
        if not frames and framer.finish is None and framer.fault is None:
            raise self._errors.refusal(head, None, [], "", self._network.time())
        if frames or framer.fault is None:
            yield [self._started(framer, task, job), *frames]
        self._concluded("", framer, task)


def _is_stream(head: Head) -> bool:
    return head.status == 200 and head.media_type == "text/event-stream" and head.plain
