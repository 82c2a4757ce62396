"""Triton's one-shot inference over HTTP (KServe v2 with binary tensors), by NVIDIA's own codec. No I/O.

``tritonclient.http`` knows how tensors lie on the wire, and its static methods do just that. Its client is not used: it
runs on gevent, hangs when shared between threads, and leaves eight descriptors behind in every thread that used one
(docs/decisions).
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import msgspec

from worker_adapters.errors import InvalidRequest, UnknownError, invalid
from worker_adapters.wire.delta import WireRequest

#: Where the JSON of a body ends and its tensors begin.
LENGTH = "Inference-Header-Content-Length"
EXTRA = 'pip install "worker-adapters[triton]"'


class TensorInfo(msgspec.Struct):
    """A tensor as the model's metadata tells it: -1 stands for any size."""

    name: str
    datatype: str
    shape: list[int] = []


class ModelMetadata(msgspec.Struct):
    """GET /v2/models/NAME."""

    name: str
    inputs: list[TensorInfo] = []


def infer_request(path: str, metadata: ModelMetadata, inputs: Mapping[str, Any]) -> WireRequest:
    """The request with its tensors.

    :raises InvalidRequest: an input that the model lacks, or a value that it cannot hold; or no tritonclient.
    """
    if find_spec("tritonclient") is None or find_spec("geventhttpclient") is None:
        raise InvalidRequest(message=f"infer needs tritonclient: {EXTRA}", field="engine", phase="submit")
    from tritonclient.http import InferenceServerClient, InferInput

    known = {tensor.name: tensor for tensor in metadata.inputs}
    tensors = []
    for name, value in inputs.items():
        if name not in known:
            raise invalid(f"inputs.{name}", f"Triton's {metadata.name!r} has no such input; it has {', '.join(known)}")
        array = _array(known[name], value)
        tensor = InferInput(name, list(array.shape), known[name].datatype)
        tensor.set_data_from_numpy(array)
        tensors.append(tensor)
    body, size = InferenceServerClient.generate_request_body(tensors)
    headers = () if size is None else ((LENGTH, str(size)),)
    return WireRequest(path, bytes(body), headers=headers)


def infer_outputs(body: bytes, length: str) -> dict[str, Any]:
    """Nested lists by output name; text as str.

    :param length: the header LENGTH of the answer, or "".
    :raises UnknownError: it is no such answer.
    """
    from tritonclient.http import InferenceServerClient

    try:
        result = InferenceServerClient.parse_response_body(body, header_length=int(length) if length else None)
        names = [output["name"] for output in result.get_response()["outputs"]]
        return {name: _plain(result.as_numpy(name).tolist()) for name in names}
    except Exception as error:  # noqa: BLE001 - the codec of somebody else, fed with whatever came
        message = f"triton answered infer with {len(body)} bytes that are no tensors ({type(error).__name__})"
        raise UnknownError(message=message, engine="triton", status=200) from None


def _array(tensor: TensorInfo, value: Any) -> Any:
    """``value`` with the type and the number of dimensions of its tensor."""
    import numpy
    from tritonclient.utils import triton_to_np_dtype

    try:
        if tensor.datatype == "BYTES":
            array = numpy.vectorize(_encoded, otypes=[object])(numpy.asarray(value, dtype=object))
        else:
            given = numpy.asarray(value)
            with numpy.errstate(over="raise", invalid="raise"):
                array = given.astype(triton_to_np_dtype(tensor.datatype))
            if not tensor.datatype.startswith(("FP", "BF")) and not numpy.array_equal(array, given):
                raise ValueError("it would be cut")
    except (ValueError, TypeError, ArithmeticError):
        raise invalid(f"inputs.{tensor.name}", f"the model takes {tensor.datatype} there") from None
    return array.reshape((1,) * (len(tensor.shape) - array.ndim) + array.shape)


def _encoded(text: Any) -> bytes:
    if isinstance(text, bytes):
        return text
    if isinstance(text, str):
        return text.encode()
    raise TypeError("neither text nor bytes")


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
