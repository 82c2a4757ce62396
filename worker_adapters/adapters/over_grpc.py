"""An attempt over gRPC: one call a job, its messages and its status as events; questions as calls of one message."""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Generator
from typing import Any

import msgspec

from worker_adapters.adapters.framer import Framer
from worker_adapters.adapters.streaming import StreamingAdapter, correlation
from worker_adapters.cancel import Job, new_job_id
from worker_adapters.contract import Wait
from worker_adapters.errors import InvalidRequest, WorkerError
from worker_adapters.frames import AnyFrame
from worker_adapters.task import TaskRequest
from worker_adapters.transport.connection import Steps
from worker_adapters.transport.control import Reply
from worker_adapters.transport.network import Address
from worker_adapters.transport.reader import drive
from worker_adapters.transport_grpc.call import Ended, GrpcCall, Unary, unary
from worker_adapters.transport_grpc.channel import GrpcChannels
from worker_adapters.wire.delta import EngineFault, WireRequest
from worker_adapters.wire.sse import Event, EventSplitter

#: So long a call that ends a job may take (seconds).
STOP = 0.2


class GrpcStreaming(StreamingAdapter):
    """What an attempt over gRPC needs of its adapter, and the attempt. ``WireRequest.path`` is a call's full name."""

    _channels: GrpcChannels

    # --- what a subclass supplies

    @abstractmethod
    def status_event(self, ended: Ended) -> Event:
        """How a call ended, as an event for the decoder."""

    def stops(self, task: TaskRequest, job_id: str) -> WireRequest | None:
        """The call that tells the engine to stop a job where a cancelled call does not; None: there is none."""
        return None

    @abstractmethod
    def rpc(self, question: WireRequest) -> WireRequest:
        """A control question as a call: its full name and its message."""

    @abstractmethod
    def reply(self, question: WireRequest, answer: Unary) -> Reply:
        """Its answer, in the form that control questions have everywhere.

        :raises WorkerError: it is none.
        """

    # --- the attempt

    def _asked(
        self, task: TaskRequest, job: Job, request: WireRequest, *, may_learn: bool
    ) -> Generator[list[AnyFrame] | Wait, None, bool]:
        yield from self._identified(job, None)
        call = GrpcCall(self._endpoint, self._channels, self._network, job)
        named = with_headers(self.named(request, job.job_id), correlation(task))
        framer = Framer(self.decoder(task), request.facts)
        sent = ended = False
        try:
            yield from call.open(named, self.timeouts_of(task).connect)
            sent = True
            yield from self._frames(call, framer, task, job)
            ended = True
            end = framer.end(self._endpoint.masked)
            self._learned(task, end.metrics.engine)
            yield [end]
            return True
        except WorkerError as error:
            if not framer.began:
                status = error.status or (400 if isinstance(error, InvalidRequest) else 0)  # most have words alone
                self.learns(status, EngineFault(error.message), task, request)
            raise
        finally:
            call.close(reuse=ended)
            if job.cancelled and sent and not ended:
                self._tell(task, job)

    def _tell(self, task: TaskRequest, job: Job) -> None:
        """Tell the engine of a cancel, if it takes such a call: briefly, since a reader waits for its end."""
        call = None if job.inherited or sys.is_finalizing() else self.stops(task, job.job_id)
        if call is None:
            return
        steps = unary(self._endpoint, self._channels, self._network, Job(new_job_id()), call, budget=STOP)
        try:
            drive(steps, self._network, STOP, self._endpoint)
        except WorkerError:
            pass  # a busy engine answers later, and obeys all the same

    def _events(self, splitter: EventSplitter, body: list[Any]) -> list[Event]:
        """A message is an event: there is nothing to split."""
        return [self.status_event(item) if isinstance(item, Ended) else Event(item) for item in body]

    def _question(
        self, question: WireRequest, job: Job, near: Address | None = None, budget: float | None = None
    ) -> Steps[Reply]:
        call = self.rpc(question)
        answer = yield from unary(self._endpoint, self._channels, self._network, job, call, budget=budget)
        return self.reply(question, answer)

    def _ask(self, request: WireRequest, timeout: float) -> Reply:
        steps = self._question(request, Job(new_job_id()), budget=timeout)
        return drive(steps, self._network, timeout, self._endpoint)


def with_headers(request: WireRequest, headers: list[tuple[str, str]]) -> WireRequest:
    """The request with further metadata, whose keys are in lower case."""
    if not headers:
        return request
    named = [(name.lower(), value) for name, value in headers]
    return msgspec.structs.replace(request, headers=(*request.headers, *named))
