"""Triton's dialect over gRPC: KServe's inference protocol as bytes. No I/O.

Seen with 2.51.0 and tritonclient 2.73.0, whose generated messages are used. A stream's end is the parameter
``triton_final_response``, on an empty response or on the last one with data, and comes only if asked for. An error has
no status of its own unless ``triton_grpc_error`` is sent; then the call ends with it, which suits a call of one job.
A Triton of 2.49 to 2.67 may die of that, where a model says more after its error, as TensorRT-LLM's BLS does: 2.51 had
a SIGSEGV after 3 to 34 errors, and without it none in 400. Its sources mend that in 2.68.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import unquote

import msgspec
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2 as pb

from worker_adapters.errors import invalid
from worker_adapters.task import TaskRequest
from worker_adapters.wire.delta import Decoder, Delta, EngineFault, GarbledEvent
from worker_adapters.wire.openai_faults import fault_of
from worker_adapters.wire.sse import Event
from worker_adapters.wire.triton import Answer, outputs_of
from worker_adapters.wire.triton_model import ModelConfig, TextModel

SERVICE = "/inference.GRPCInferenceService/"
#: Metadata of a stream: an error ends the call, with the model's own code.
ERRORS_AS_STATUS = (("triton_grpc_error", "true"),)
#: The first version that survives it.
SURVIVES = (2, 68)
#: The name of the event that holds how a call ended.
STATUS = "status"
FINAL, WANT_FINAL = "triton_final_response", "triton_enable_empty_final_response"
#: A code -> the HTTP status that means the same, so that one table of errors serves both transports.
HTTP_STATUS = {
    "INVALID_ARGUMENT": 400, "OUT_OF_RANGE": 400, "FAILED_PRECONDITION": 400, "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403, "NOT_FOUND": 404, "ALREADY_EXISTS": 409, "RESOURCE_EXHAUSTED": 429, "INTERNAL": 500,
    "UNKNOWN": 500, "DATA_LOSS": 500, "ABORTED": 500, "UNIMPLEMENTED": 501, "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}  # fmt: skip
MODEL_NOT_READY = b'{"error":"Model version not ready"}'
#: How grpc itself words the end of a connection, as "Stream removed (Socket closed)".
DIED = re.compile("stream removed|socket closed|connection reset|broken pipe|recvmsg:|sendmsg:", re.IGNORECASE)
#: And that none came about, or that it died: no words of the server's.
UNREACHED = re.compile(f"failed to connect to all addresses|{DIED.pattern}", re.IGNORECASE)
#: Type of a tensor -> where its values stand in a request, and struct's letter for one in a raw response.
CONTENTS = {
    "BYTES": "bytes_contents", "BOOL": "bool_contents", "FP32": "fp32_contents", "FP64": "fp64_contents",
    "INT64": "int64_contents", "UINT64": "uint64_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
}  # fmt: skip
LETTERS = {
    "BOOL": "?", "INT8": "b", "INT16": "h", "INT32": "i", "INT64": "q", "UINT8": "B", "UINT16": "H", "UINT32": "I",
    "UINT64": "Q", "FP16": "e", "FP32": "f", "FP64": "d",
}  # fmt: skip


class Rpc(NamedTuple):
    """A control path as a call: its method, its request, and what JSON its response is."""

    method: str
    request: Any
    response: Any
    read: Callable[[Any], Any]


def _json(message: Any) -> Any:
    return MessageToDict(message, preserving_proto_field_name=True)


def rpc_for(path: str) -> Rpc:
    """The call that asks what a path of the HTTP protocol asks."""
    parts = [unquote(part) for part in path.strip("/").split("/")[1:]]  # after v2
    if not parts:
        return Rpc("ServerMetadata", pb.ServerMetadataRequest(), pb.ServerMetadataResponse, _json)
    if parts[0] == "health":
        live = parts[1] == "live"
        if live:
            return Rpc("ServerLive", pb.ServerLiveRequest(), pb.ServerLiveResponse, lambda told: told.live)
        return Rpc("ServerReady", pb.ServerReadyRequest(), pb.ServerReadyResponse, lambda told: told.ready)
    if parts[0] == "repository":
        return Rpc(
            "RepositoryIndex",
            pb.RepositoryIndexRequest(),
            pb.RepositoryIndexResponse,
            lambda told: [_json(model) for model in told.models],
        )
    named = {"name": parts[1], "version": parts[3] if "versions" in parts else ""}
    if parts[-1] == "config":
        request = pb.ModelConfigRequest(**named)
        return Rpc("ModelConfig", request, pb.ModelConfigResponse, lambda told: _json(told.config))
    if parts[-1] == "ready":
        return Rpc("ModelReady", pb.ModelReadyRequest(**named), pb.ModelReadyResponse, lambda told: told.ready)
    return Rpc("ModelStatistics", pb.ModelStatisticsRequest(**named), pb.ModelStatisticsResponse, _json)


def reply_of(rpc: Rpc, code: str, details: str, message: bytes) -> tuple[int, bytes] | None:
    """Status and body as the HTTP protocol would have had them; None if the message is not what that call answers."""
    if code != "OK":
        return HTTP_STATUS.get(code, 500), msgspec.json.encode({"error": details})
    try:
        told = rpc.read(rpc.response.FromString(message))
    except DecodeError:
        return None
    if isinstance(told, bool):  # ready or not: of a server over HTTP a status without words
        return (200, b"") if told else (400, MODEL_NOT_READY if rpc.method == "ModelReady" else b"")
    return 200, msgspec.json.encode(told)


def error_metadata(version: str) -> tuple[tuple[str, str], ...]:
    """What asks a server of that version for the codes of errors, if it may be asked."""
    number = re.match(r"(\d+)\.(\d+)", version)
    return ERRORS_AS_STATUS if number is not None and (int(number[1]), int(number[2])) >= SURVIVES else ()


def infer_request(
    name: str, version: str, config: ModelConfig, tensors: dict[str, Any], parameters: dict[str, Any]
) -> bytes:
    """A request for a stream of responses."""
    datatypes = {tensor.name: tensor.datatype for tensor in config.input}
    request = pb.ModelInferRequest(model_name=name, model_version=version)
    request.parameters[WANT_FINAL].bool_param = True
    for key, value in parameters.items():
        _set_parameter(request.parameters[key], value)
    for key, value in tensors.items():
        datatype = datatypes[key]
        values = list(value) if isinstance(value, list) else [value]
        batch = [1] if config.max_batch_size > 0 else []
        if datatype not in CONTENTS:
            raise invalid(f"extra.{key}", f"{datatype} goes over HTTP only")
        tensor = request.inputs.add(name=key, datatype=datatype, shape=[*batch, len(values)])
        if datatype == "BYTES":
            values = [text.encode("utf-8", "surrogatepass") for text in values]
        getattr(tensor.contents, CONTENTS[datatype]).extend(values)
    return bytes(request.SerializeToString())


def _set_parameter(parameter: Any, value: Any) -> None:
    kind = {bool: "bool_param", int: "int64_param", float: "double_param"}.get(type(value), "string_param")
    setattr(parameter, kind, value)


def with_id(request: bytes, job_id: str) -> bytes:
    """The request under that name: messages are joined by joining their bytes."""
    return request + bytes(pb.ModelInferRequest(id=job_id).SerializeToString())


def status_event(code: str, details: str) -> Event:
    """How a call ended, as the event that the decoder reads last."""
    return Event(msgspec.json.encode((code, details)), STATUS)


class GrpcDecoder(Decoder):
    """Messages of ModelStreamInfer, each an event's data."""

    def __init__(self, model: TextModel, task: TaskRequest) -> None:
        self._name = model.text
        self._answer = Answer(model, task)

    def feed(self, event: Event) -> Delta | None:
        if event.name == STATUS:
            return _ended(event.data)
        try:
            message = pb.ModelStreamInferResponse.FromString(event.data)
            if message.error_message:
                return Delta(fault=fault_of(message.error_message))
            response = message.infer_response
            outputs = _outputs(response)
        except (DecodeError, struct.error, UnicodeDecodeError):
            raise GarbledEvent(f"{len(event.data)} bytes that are no response") from None
        self.model = self.model or response.model_name or None
        made = self._answer.add(outputs_of(outputs, self._name)) if outputs else Delta()
        if response.parameters[FINAL].bool_param and made.fault is None:
            return _joined(made, self._answer.end())
        return made


def _ended(data: bytes) -> Delta | None:
    code, details = msgspec.json.decode(data, type=tuple[str, str])
    if code == "OK" or (code == "UNAVAILABLE" and DIED.search(details)):
        return None  # a connection that died tells no more of the job than over HTTP
    if code == "CANCELLED":
        return Delta(fault=EngineFault(details or "the request was cancelled", field="abort"))
    fault = fault_of(details)
    return Delta(fault=msgspec.structs.replace(fault, field=code, status=HTTP_STATUS.get(code, 500)))


def _joined(made: Delta, end: Delta) -> Delta:
    """The last data and the end, where one message says both."""
    return msgspec.structs.replace(end, text=made.text + end.text)


def _outputs(response: Any) -> dict[str, Any]:
    """Values by output name: text as the bytes it is."""
    raw = response.raw_output_contents
    made: dict[str, Any] = {}
    for at, tensor in enumerate(response.outputs):
        if at < len(raw):
            made[tensor.name] = _values(tensor.datatype, raw[at])
        elif tensor.datatype in CONTENTS:
            made[tensor.name] = list(getattr(tensor.contents, CONTENTS[tensor.datatype]))
    return made


def _values(datatype: str, raw: bytes) -> list[Any]:
    if datatype == "BYTES":  # each element after its length
        values, at = [], 0
        while at < len(raw):
            (size,) = struct.unpack_from("<I", raw, at)
            values.append(raw[at + 4 : at + 4 + size])
            at += 4 + size
        return values
    letter = LETTERS.get(datatype)
    return list(struct.unpack(f"<{len(raw) // struct.calcsize(letter)}{letter}", raw)) if letter else []
