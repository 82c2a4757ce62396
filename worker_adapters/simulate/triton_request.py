"""Reading a request the way Triton 2.51.0 reads it: what becomes a tensor, what is refused, and in which words."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Any

from .request import Request
from .triton_json import ERRORS, Failure, as_bool, as_int, as_number, as_text, as_uint, load, mistaken
from .triton_models import Model, Tensor

# Numeric types -> how struct packs one element.
FORMATS = {
    "BOOL": "?", "INT8": "b", "INT16": "h", "INT32": "i", "INT64": "q", "UINT8": "B", "UINT16": "H", "UINT32": "I",
    "UINT64": "Q", "FP16": "e", "FP32": "f", "FP64": "d",
}  # fmt: skip
_LENGTH = "Inference-Header-Content-Length"
_BATCH_NOTE = (
    "NOTE: Setting a non-zero max_batch_size in the model config requires a batch dimension to be prepended to each "
    "input shape. If you want to specify the full shape including the batch dim in your input dims config, try setting "
    "max_batch_size to zero. See the model configuration docs for more info on max_batch_size."
)


@dataclass
class Given:
    """One input tensor of a request; the values lie flat."""

    name: str
    datatype: str
    shape: list[int]
    values: list[Any]


@dataclass
class Ask:
    """A request understood. `outputs` are the names asked for (binary or not); none means all, `binary` or not."""

    id: str = ""
    inputs: dict[str, Given] = field(default_factory=dict)
    parameters: dict[str, Any] = field(default_factory=dict)
    outputs: dict[str, bool] = field(default_factory=dict)
    binary: bool = False

    def value(self, *names: str) -> Any:
        """The first element of the first of these inputs that is given, or None."""
        for name in names:
            if name in self.inputs and self.inputs[name].values:
                return self.inputs[name].values[0]
        return None

    def values(self, *names: str) -> list[Any]:
        """All elements of these inputs."""
        return [value for name in names if name in self.inputs for value in self.inputs[name].values]

    def blame(self, status: int, message: str) -> Failure:
        """A refusal that names the request."""
        return Failure(status, f"[request id: {self.id or '<id_unknown>'}] {message}")

    def add(self, given: Given) -> None:
        """Takes one more input. Raises Failure for a second one of a name."""
        if given.name in self.inputs:
            raise self.blame(400, f"input '{given.name}' already exists in request")
        self.inputs[given.name] = given


def value_of(tensor_type: str, value: Any) -> Any:
    """A JSON value as an element of a tensor."""
    if tensor_type == "BYTES":
        return as_text(value)
    if tensor_type == "BOOL":
        return as_bool(value)
    bits = 8 * struct.calcsize("<" + FORMATS[tensor_type])
    if tensor_type.startswith("INT"):
        return as_int(value, bits)
    return as_uint(value, bits) if tensor_type.startswith("UINT") else as_number(value)


# -- generate and generate_stream: flat JSON ---------------------------------------------------------------------------


def read_generate(raw: bytes, model: Model) -> Ask:
    """A generate request: what names an input becomes that tensor, other scalars are request parameters."""
    body = load(raw)
    ask = Ask(id=_id(body))
    if not isinstance(body, dict):
        raise Failure(500, "attempt to get members for non-object")
    _convert(body, model, ask, nested=False)
    check(ask, model)
    return ask


def _convert(body: dict[str, Any], model: Model, ask: Ask, nested: bool) -> None:
    for name, value in body.items():
        if name == "parameters" and not nested:
            if not isinstance(value, dict):
                raise mistaken("object", "object").within("Expected JSON object for keyword: 'parameters'")
            try:
                _convert(value, model, ask, nested=True)
            except Failure as failure:
                raise failure.within("Converting keyword: 'parameters'") from failure
        elif name in model.takes:
            ask.add(_converted(model.takes[name], value, bool(model.max_batch_size)))
        else:
            ask.parameters[name] = _parameter(name, value)


def _parameter(name: str, value: Any) -> Any:
    if not isinstance(value, (str, bool, int, float)):
        raise Failure(400, f"parameter '{name}' has invalid type. It should be either 'int', 'bool', or 'string'.")
    return value


def _converted(tensor: Tensor, value: Any, batched: bool) -> Given:
    given = value if isinstance(value, list) else [value]
    where = "Unable to parse JSON bytes array" if tensor.datatype == "BYTES" else "Unable to parse 'data'"
    texts = [_element(where, "BYTES", item) for item in given] if tensor.datatype == "BYTES" else []
    shape = _shape([-1, *tensor.dims] if batched else list(tensor.dims), len(given))
    if shape is None:
        raise Failure(400, f"The schema can not convert input '{tensor.name}' to tensor with proper shape")
    if tensor.datatype == "FP16":
        instead = f"Please use the binary data format for input {tensor.name}"
        raise Failure(400, f"receiving FP16 data via JSON is not supported. {instead}")
    values = texts or [_element(where, tensor.datatype, item) for item in given]
    return Given(tensor.name, tensor.datatype, shape, values)


def _shape(dims: list[int], count: int) -> list[int] | None:
    """So many elements in these dimensions: the last open one takes what the fixed ones leave. None if they cannot."""
    for size in dims:
        if size != -1 and count % size:
            return None
        count = count if size == -1 else count // size
    for at in range(len(dims) - 1, -1, -1):
        if dims[at] == -1:
            dims[at], count = count, 1
    return dims if count == 1 else None


def _element(where: str, datatype: str, value: Any) -> Any:
    try:
        return value_of(datatype, value)
    except Failure as failure:
        raise failure.within(where) from failure


def _id(body: Any) -> str:
    return str(_element("Unable to parse 'id'", "BYTES", body["id"])) if isinstance(body, dict) and "id" in body else ""


# -- infer: the tensors of the KServe protocol, as JSON or as bytes behind it ------------------------------------------


def read_infer(request: Request, model: Model) -> Ask:
    """An infer request, whose tensors are in the JSON or lie as bytes behind it."""
    size = _header_size(request)
    if not size and len(model.takes) != 1:
        only = f"(found 1) to be deduced but got {len(model.takes)} inputs in '{model.name}' model configuration"
        raise Ask().blame(400, f"Raw request must only have 1 input {only}")
    body = load(request.body[:size])
    ask = Ask(id=_id(body))
    fields = body if isinstance(body, dict) else {}
    _infer_parameters(fields.get("parameters") or {}, ask)
    if not isinstance(fields.get("inputs"), list):
        raise Failure(500, "Unable to parse 'inputs': attempt to access non-existing object member 'inputs'")
    tail = request.body[size:]
    for entry in fields["inputs"]:
        given, tail = _given(entry, tail, model)
        ask.add(given)
    if tail:
        raise Failure(400, f"unexpected additional input data for model '{model.name}'")
    for entry in fields.get("outputs") or ():
        ask.outputs[as_text(entry.get("name"))] = bool((entry.get("parameters") or {}).get("binary_data"))
    check(ask, model)
    return ask


def _header_size(request: Request) -> int:
    told = request.header(_LENGTH)
    length = len(request.body)
    if told is None:
        return length
    size = int(told) if told.isascii() and told.isdigit() else 0
    if size > length:
        raise Failure(400, f"inference header size should be in range (0, {length}), got: {told}", plain=True)
    return size


def _infer_parameters(parameters: dict[str, Any], ask: Ask) -> None:
    for name, value in parameters.items():
        if name == "binary_data_output":
            ask.binary = _element(f"Unable to parse '{name}'", "BOOL", value)
        elif name in ("timeout", "priority"):
            ask.parameters[name] = _element(f"Unable to parse '{name}'", "UINT64", value)
        elif name.startswith("triton_"):
            start = "parameter keys starting with 'triton_' are reserved for Triton usage"
            raise Failure(400, f"{start} and should not be specified.")
        else:
            ask.parameters[name] = _parameter(name, value)


def _given(entry: dict[str, Any], tail: bytes, model: Model) -> tuple[Given, bytes]:
    """One input, and what is left of the bytes behind the JSON."""
    size = (entry.get("parameters") or {}).get("binary_data_size")
    if ("data" in entry) == (size is not None):
        which = " set 'data' 'binary_data_size'" if size is not None else " no field is set"
        raise Failure(
            400,
            "Input must set only one of the following fields: 'data', 'binary_data_size' in 'parameters', "
            f"'shared_memory_region' in 'parameters'. But{which}",
        )
    name, datatype = as_text(entry.get("name")), as_text(entry.get("datatype"))
    shape = [_element("Unable to parse 'shape'", "UINT64", size) for size in entry.get("shape") or ()]
    if datatype != "BYTES" and datatype not in FORMATS:
        raise Failure(400, f"invalid datatype for input {name}")
    if size is None:
        return Given(name, datatype, shape, _listed(entry["data"], datatype, prod(shape))), tail
    if len(tail) < size:
        short = f"expecting {size - len(tail)} additional bytes for model '{model.name}'"
        raise Failure(400, f"unexpected size for input '{name}', {short}")
    return Given(name, datatype, shape, unpack(name, datatype, tail[:size])), tail[size:]


def _listed(data: Any, datatype: str, count: int) -> list[Any]:
    if not isinstance(data, list):
        raise mistaken("array", "array").within("Unable to parse 'data'")
    where = "Unable to parse JSON bytes array" if datatype == "BYTES" else "Unable to parse 'data'"
    values = [_element(where, datatype, value) for value in _flat(data)]
    if datatype != "BYTES" and (len(values) > count or not values):
        raise Failure(500, "Unable to parse 'data': Shape does not match true shape of 'data' field")
    if datatype != "BYTES" and len(values) < count:
        raise Failure(500, "Failed to parse 'data' field: shape does not match true shape")
    return values


def _flat(data: list[Any]) -> Iterator[Any]:
    for item in data:
        if isinstance(item, list):
            yield from _flat(item)
        else:
            yield item


def unpack(name: str, datatype: str, raw: bytes) -> list[Any]:
    """The elements of a tensor's bytes; what is left over of numbers becomes an element of bytes, for `check`."""
    if datatype != "BYTES":
        size = struct.calcsize("<" + FORMATS[datatype])
        whole = len(raw) // size
        numbers: list[Any] = list(struct.unpack(f"<{whole}{FORMATS[datatype]}", raw[: whole * size]))
        return numbers if whole * size == len(raw) else [*numbers, raw]
    texts = []
    while raw:
        length = int.from_bytes(raw[:4], "little")
        if len(raw) - 4 < length:
            what = f"expecting string of length {length} but only {max(0, len(raw) - 4)} bytes available"
            raise Failure(400, f"incomplete string data for inference input '{name}', {what}", plain=True)
        texts.append(raw[4 : 4 + length].decode("utf-8", ERRORS))
        raw = raw[4 + length :]
    return texts


# -- what the core checks ----------------------------------------------------------------------------------------------


def check(ask: Ask, model: Model) -> None:
    """Compares a request with the model's configuration. Raises Failure in the core's own order and words."""
    for name in ask.outputs:
        if name not in model.gives:
            raise Failure(400, f"unexpected inference output '{name}' for model '{model.name}'")
    _check_count(ask, model)
    batch: int | None = None
    for given in ask.inputs.values() if model.max_batch_size else ():
        size = given.shape[0] if given.shape else 0
        if batch is not None and size != batch:
            raise ask.blame(400, f"input '{given.name}' batch size does not match other inputs for '{model.name}'")
        batch = size
        if size > model.max_batch_size and len(given.shape) == len(model.takes[given.name].dims) + 1:
            raise ask.blame(400, f"inference request batch-size must be <= {model.max_batch_size} for '{model.name}'")
    for given in ask.inputs.values():
        _check_input(ask, given, model)


def _check_count(ask: Ask, model: Model) -> None:
    """Only the number of inputs is looked at: a missing one passes where others fill its place, as recorded."""
    known, needed = model.takes, [tensor.name for tensor in model.takes.values() if not tensor.optional]
    if len(needed) <= len(ask.inputs) <= len(known):
        return
    wanted = f"number of inputs between {len(needed)} and {len(known)}"
    if len(needed) == len(known):
        wanted = f"{len(known)} inputs"
    got = ",".join(f"'{name}'" for name in ask.inputs)
    missing = ",".join(f"'{name}'" for name in needed if name not in ask.inputs)
    missing = f"[{missing}]" if missing else "]"  # as seen where there are too many
    raise ask.blame(
        400,
        f"expected {wanted} but got {len(ask.inputs)} inputs for model '{model.name}'. Got input(s) [{got}], but "
        f"missing required input(s) {missing}. Please provide all required input(s).",
    )


def _check_input(ask: Ask, given: Given, model: Model) -> None:
    name, where = given.name, f"for model '{model.name}'"
    tensor = model.takes.get(name)
    if tensor is None:
        raise Failure(400, f"unexpected inference input '{name}' {where}")
    if tensor.datatype != given.datatype:
        mismatch = f"data-type is '{given.datatype}', but model '{model.name}' expects '{tensor.datatype}'"
        raise ask.blame(400, f"inference input '{name}' {mismatch}")
    wanted = [-1, *tensor.dims] if model.max_batch_size else list(tensor.dims)
    fits = len(wanted) == len(given.shape) and all(
        want in (-1, size) for want, size in zip(wanted, given.shape, strict=True)
    )
    if not fits:
        shown = [f"[{','.join(map(str, shape))}]" for shape in (wanted, given.shape)]
        note = _BATCH_NOTE if model.max_batch_size else ""
        raise ask.blame(
            400, f"unexpected shape for input '{name}' {where}. Expected {shown[0]}, got {shown[1]}. {note}"
        )
    count = prod(given.shape)
    if given.datatype == "BYTES" and len(given.values) != count:
        found = f"unexpected number of string elements {len(given.values)} for inference input '{name}'"
        raise ask.blame(400, f"{found} {where}, expecting {count}")
    if given.datatype != "BYTES":
        size = struct.calcsize("<" + FORMATS[given.datatype])
        left = given.values[-1] if given.values else b""
        found_size = len(left) if isinstance(left, bytes) and left else size * len(given.values)
        if found_size != size * count:
            mismatch = f"Expected {size * count}, got {found_size}"
            raise ask.blame(400, f"input byte size mismatch for input '{name}' {where}. {mismatch}")
