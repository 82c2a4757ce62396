"""Responses of Triton 2.51.0 on the wire: flat JSON with sorted keys, or the tensors of the KServe protocol."""

from __future__ import annotations

import struct
from typing import Any

from .triton_json import ERRORS, dump
from .triton_models import Model, Tensor
from .triton_request import FORMATS, Ask
from .triton_voice import Reply

MANY = (
    "generate expects model to produce exactly 1 response, use generate stream for model that generates various number "
    "of responses"
)
_SEQUENCE = {"sequence_id": 0, "sequence_start": False, "sequence_end": False}


def error(message: str) -> bytes:
    """The engine's error object."""
    return dump({"error": message})


def event(data: bytes) -> bytes:
    """One server-sent event."""
    return b"data: " + data + b"\n\n"


def flat(model: Model, ask: Ask, reply: Reply) -> bytes:
    """A response of generate and generate_stream."""
    if reply.error:
        return error(reply.error)
    body: dict[str, Any] = {"model_name": model.name, "model_version": "1", **reply.outputs}
    if ask.id:
        body["id"] = ask.id
    if model.steps:
        body |= _SEQUENCE
    return dump(dict(sorted(body.items())))


def tensors(model: Model, ask: Ask, reply: Reply) -> tuple[bytes, bytes]:
    """A response of infer: the JSON, and the bytes of the tensors that were asked for in binary."""
    outputs, tail = [], b""
    for name, value in reply.outputs.items():
        if ask.outputs and name not in ask.outputs:
            continue
        tensor = model.gives[name]
        shown: dict[str, Any] = {"name": name, "datatype": tensor.datatype, "shape": _shape(model, tensor)}
        if ask.outputs.get(name, False if ask.outputs else ask.binary):
            raw = pack(tensor.datatype, value)
            shown["parameters"] = {"binary_data_size": len(raw)}
            tail += raw
        else:
            shown["data"] = [value]
        outputs.append(shown)
    head = {"id": ask.id} if ask.id else {}
    return dump({**head, "model_name": model.name, "model_version": "1", "outputs": outputs}), tail


def _shape(model: Model, tensor: Tensor) -> list[int]:
    """One element in as many dimensions as the configuration has."""
    return [1] * (len(tensor.dims) + bool(model.max_batch_size))


def pack(datatype: str, value: Any) -> bytes:
    """One element as bytes."""
    if datatype == "BYTES":
        raw = str(value).encode("utf-8", ERRORS)
        return struct.pack("<I", len(raw)) + raw
    return struct.pack("<" + FORMATS[datatype], value)
