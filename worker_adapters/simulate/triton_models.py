"""Models that a simulated Triton serves: their tensors and manners, and how /config and the metadata show them.

Tensors are those of the Python backend's toy models that were recorded with 2.51.0, of vLLM's backend, of
TensorRT-LLM's ensemble and BLS (v0.16.0), and of its llmapi model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

_TENSOR = re.compile(r"(\w+) ([A-Z]+\d*)(?:\[([-\d,]+)\])?(\?)?")


class Tensor(NamedTuple):
    """A tensor of a model."""

    name: str
    kind: str
    dims: tuple[int, ...]
    optional: bool

    @property
    def datatype(self) -> str:
        """Its type on the wire."""
        return "BYTES" if self.kind == "STRING" else self.kind


def tensors(text: str) -> tuple[Tensor, ...]:
    """Tensors from text: `text_input STRING, max_tokens INT32?, stop_words STRING[-1]?`; `?` is optional, no
    dimensions mean `[1]`."""
    found = [_TENSOR.fullmatch(part.strip()) for part in re.split(r",(?![^\[]*\])", text) if part.strip()]
    if None in found:
        raise ValueError(f"no list of tensors: {text}")
    return tuple(
        Tensor(match[1], match[2], tuple(map(int, (match[3] or "1").split(","))), match[4] is not None)
        for match in found
        if match is not None
    )


class Step(NamedTuple):
    """A step of an ensemble; the maps lead from its tensors to the ensemble's."""

    model: str
    inputs: Mapping[str, str] = {}
    outputs: Mapping[str, str] = {}


@dataclass(frozen=True)
class Model:
    """One model of the repository. `inputs` and `outputs` are written as `tensors` reads them.

    `voice` says how it speaks: plain, trtllm, vllm, llmapi or ids (token ids in and out). `constants` are outputs that
    come with every response. `loaded` is False for one that nobody loaded; `load_error` is why loading fails, and
    `load_time` how many seconds it takes.
    """

    name: str
    inputs: str
    outputs: str
    voice: str = "plain"
    decoupled: bool = True
    max_batch_size: int = 0
    backend: str = "python"
    kind: str = "KIND_CPU"
    gpus: tuple[int, ...] = ()
    parameters: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[str, Any] = field(default_factory=dict)
    steps: tuple[Step, ...] = ()
    loaded: bool = True
    load_error: str = ""
    load_time: float = 0.0

    @cached_property
    def takes(self) -> dict[str, Tensor]:
        """Its inputs by name."""
        return {tensor.name: tensor for tensor in tensors(self.inputs)}

    @cached_property
    def gives(self) -> dict[str, Tensor]:
        """Its outputs by name."""
        return {tensor.name: tensor for tensor in tensors(self.outputs)}


# -- as the engine shows them ------------------------------------------------------------------------------------------


def metadata(model: Model) -> dict[str, Any]:
    """The body of GET /v2/models/{name}."""
    batch = [-1] if model.max_batch_size else []

    def shown(tensor: Tensor) -> dict[str, Any]:
        return {"name": tensor.name, "datatype": tensor.datatype, "shape": [*batch, *tensor.dims]}

    return {
        "name": model.name,
        "versions": ["1"],
        "platform": "ensemble" if model.steps else model.backend,
        "inputs": [shown(tensor) for tensor in tensors(model.inputs)],
        "outputs": [shown(tensor) for tensor in tensors(model.outputs)],
    }


def config(model: Model) -> dict[str, Any]:
    """The body of GET /v2/models/{name}/config."""
    shown: dict[str, Any] = {
        "name": model.name,
        "platform": "ensemble" if model.steps else "",
        "backend": "" if model.steps else model.backend,
        "runtime": "",
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": model.max_batch_size,
        "input": [_input(tensor) for tensor in tensors(model.inputs)],
        "output": [_output(tensor) for tensor in tensors(model.outputs)],
        "batch_input": [],
        "batch_output": [],
    }
    if model.steps:
        shown |= {"ensemble_scheduling": {"step": [_step(step) for step in model.steps]}, "instance_group": []}
    else:
        shown |= {"optimization": _OPTIMIZATION, "instance_group": [_group(model)]}
    shown |= {
        "default_model_filename": "model.py" if model.backend in ("python", "vllm") and not model.steps else "",
        "cc_model_filenames": {},
        "metric_tags": {},
        "parameters": {name: {"string_value": value} for name, value in model.parameters.items()},
        "model_warmup": [],
    }
    return {**shown, "model_transaction_policy": {"decoupled": True}} if model.decoupled else shown


_OPTIMIZATION = {
    "priority": "PRIORITY_DEFAULT",
    "input_pinned_memory": {"enable": True},
    "output_pinned_memory": {"enable": True},
    "gather_kernel_buffer_threshold": 0,
    "eager_batching": False,
}


def _input(tensor: Tensor) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "data_type": f"TYPE_{tensor.kind}",
        "format": "FORMAT_NONE",
        "dims": tensor.dims,
        "is_shape_tensor": False,
        "allow_ragged_batch": False,
        "optional": tensor.optional,
        "is_non_linear_format_io": False,
    }


def _output(tensor: Tensor) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "data_type": f"TYPE_{tensor.kind}",
        "dims": tensor.dims,
        "label_filename": "",
        "is_shape_tensor": False,
        "is_non_linear_format_io": False,
    }


def _step(step: Step) -> dict[str, Any]:
    return {
        "model_name": step.model,
        "model_version": -1,
        "input_map": step.inputs,
        "output_map": step.outputs,
        "model_namespace": "",
    }


def _group(model: Model) -> dict[str, Any]:
    return {
        "name": f"{model.name}_0",
        "kind": model.kind,
        "count": 1,
        "gpus": model.gpus,
        "secondary_devices": [],
        "profile": [],
        "passive": False,
        "host_policy": "",
    }
