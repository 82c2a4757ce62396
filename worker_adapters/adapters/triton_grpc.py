"""Triton over gRPC.    Seen with 2.51.0 (24.10), tritonclient 2.73.0 and grpcio 1.85 in 2026-11.

Uses: ModelStreamInfer, ModelConfig, RepositoryIndex, ServerMetadata, ServerReady, ModelReady, ModelStatistics.
Differs from HTTP: a cancel reaches the engine also before the first response; a stream says that it has ended; an error
has its code since 2.68; a request's tensors carry their types. One call a job, all over one connection of the process.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from worker_adapters.adapters.over_grpc import GrpcStreaming
from worker_adapters.adapters.triton import TritonAdapter
from worker_adapters.errors import UnknownError, invalid
from worker_adapters.report import Capabilities
from worker_adapters.task import TaskRequest
from worker_adapters.transport.control import Reply
from worker_adapters.transport.faults import lost
from worker_adapters.transport_grpc.call import Ended, Unary
from worker_adapters.transport_grpc.channel import GrpcChannels
from worker_adapters.wire.delta import Decoder, WireRequest
from worker_adapters.wire.http1 import Head
from worker_adapters.wire.sse import Event
from worker_adapters.wire.triton_grpc import (
    SERVICE,
    UNREACHED,
    GrpcDecoder,
    error_metadata,
    infer_request,
    reply_of,
    rpc_for,
    status_event,
    with_id,
)

STREAM = f"{SERVICE}ModelStreamInfer"


class TritonGrpcAdapter(GrpcStreaming, TritonAdapter):
    """``TritonAdapter`` for ``grpc://`` and ``grpcs://`` URLs; made by it, with its options."""

    default_url = "grpc://127.0.0.1:8001"
    schemes = ("grpc", "grpcs")
    capabilities = Capabilities(
        messages=False,
        fields=TritonAdapter.capabilities.fields,
        exact_counts=False,
        release_ms=10.0,
        release="2-10 ms, also before the first response: at the model's next check; inside an ensemble whose engine "
        "takes no stop, the step that runs goes on to its end",
    )

    def __init__(self, url: str | None = None, **options: Any) -> None:
        super().__init__(url, **options)
        self._check_endpoint()
        self._channels = GrpcChannels(self._endpoint)

    def _check_endpoint(self) -> None:
        given = self._endpoint.options
        if self._endpoint.base or self._endpoint.query:
            raise invalid("url", "gRPC knows no path and no query")
        if self._endpoint.proxy is not None:
            raise invalid("proxy", "gRPC goes through none here")
        if not given["verify"]:
            raise invalid("verify", "gRPC always verifies: say with ca= whom to trust")

    # --- a job

    def encode(self, task: TaskRequest) -> WireRequest:
        name = self._models.name(task.model) or ""
        body = infer_request(name, self._version, self._models[name].config, *self._tensors_for(task))
        return WireRequest(STREAM, body)

    def named(self, request: WireRequest, job_id: str) -> WireRequest:
        metadata = error_metadata(self._identity.known[0])
        return msgspec.structs.replace(request, body=with_id(request.body, job_id), headers=metadata)

    def stops(self, task: TaskRequest, job_id: str) -> WireRequest | None:
        call = self._models.stopping(task.model)
        if call is None:
            return None
        config, tensors = call
        return WireRequest(STREAM, with_id(infer_request(config.name, "", config, tensors, {}), job_id))

    def decoder(self, task: TaskRequest) -> Decoder:
        return GrpcDecoder(self._models[self._models.name(task.model)], task)

    def status_event(self, ended: Ended) -> Event:
        return status_event(*ended)

    # --- the server

    def rpc(self, question: WireRequest) -> WireRequest:
        call = rpc_for(question.path)
        return WireRequest(SERVICE + call.method, call.request.SerializeToString())

    def reply(self, question: WireRequest, answer: Unary) -> Reply:
        code, details = answer.ended
        if code == "UNAVAILABLE" and UNREACHED.search(details):
            raise lost(self._endpoint, self._endpoint.clean(details))
        told = reply_of(rpc_for(question.path), *answer.ended, answer.message)
        if told is None:
            message = f"triton: what {question.path} answered over gRPC is no answer to that: another server?"
            raise UnknownError(message=message, engine=self.engine)
        return Reply(Head(told[0], (("content-type", "application/json"),), keep_alive=False), told[1])

    def infer(self, inputs: Mapping[str, Any], *, model: str | None = None, timeout: float = 60.0) -> dict[str, Any]:
        """Over HTTP only."""
        raise self._invalid("transport", "infer goes over HTTP")

    def close(self) -> None:
        super().close()
        self._channels.close()
