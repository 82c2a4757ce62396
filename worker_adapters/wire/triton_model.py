"""What a Triton model wants: its convention, read off its config, and a task as that model's input tensors. No I/O.

Triton has no parameters, only tensors that each backend names as it likes, and a key that names none is ignored in
silence. So a task is written for the inputs that the model really has, and everything is checked here: the server cuts
integers to 32 bits without a word (seen with 2.51.0). Names read in vllm_backend main, tensorrtllm_backend v0.16.0 and
TensorRT-LLM's llmapi backend; their widths moved between releases, so every type comes from the config.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any

import msgspec

from worker_adapters.errors import InvalidRequest, invalid
from worker_adapters.task import TaskRequest

#: Field of a task -> what models call it; the first that a model has.
NAMES: dict[str, tuple[str, ...]] = {
    "max_tokens": ("max_tokens", "sampling_param_max_tokens", "max_new_tokens", "max_output_tokens"),
    "temperature": ("temperature", "sampling_param_temperature"),
    "top_p": ("top_p", "runtime_top_p", "sampling_param_top_p"),
    "top_k": ("top_k", "runtime_top_k", "sampling_param_top_k"),
    "min_p": ("min_p", "sampling_param_min_p"),
    "seed": ("seed", "random_seed", "sampling_param_seed"),
    "stop": ("stop_words", "stop", "sampling_param_stop"),
    "presence_penalty": ("presence_penalty", "sampling_param_presence_penalty"),
    "frequency_penalty": ("frequency_penalty", "sampling_param_frequency_penalty"),
    "repetition_penalty": ("repetition_penalty", "sampling_param_repetition_penalty"),
}
#: The fields that a user may set; max_tokens always is.
OPTIONAL = tuple(name for name in NAMES if name != "max_tokens")
#: Inputs that ask for what we want, where a model has them: an answer without the prompt, counts, a reason for ending.
SWITCHES = (
    "exclude_input_in_output", "exclude_input_from_output", "sampling_param_exclude_input_from_output",
    "return_finish_reason", "return_stop_reason", "return_num_input_tokens", "return_num_output_tokens",
)  # fmt: skip
STREAM = ("stream", "streaming")
#: Of TensorRT-LLM; "" is none.
WORDS = ("bad_words", "stop_words")
PROMPT, TEXT, SAMPLING = "text_input", "text_output", "sampling_parameters"
#: What ``tensors`` may map.
ROLES = ("prompt", "text", "stream", *NAMES)
BITS = {f"{sign}INT{bits}": (sign, bits) for sign in ("", "U") for bits in (8, 16, 32, 64)}
FLOATS = ("FP16", "BF16", "FP32", "FP64")
#: Their largest finite values; beyond, the server would make an infinity of it.
LARGEST = {"FP16": 65504.0, "BF16": 3.39e38, "FP32": 3.4028235e38, "FP64": sys.float_info.max}


class _Tensor(msgspec.Struct):
    name: str
    data_type: str = ""
    dims: list[int] = []
    optional: bool = False

    @property
    def datatype(self) -> str:
        """As requests say it: ``BYTES``, ``INT32``."""
        plain = self.data_type.removeprefix("TYPE_")
        return "BYTES" if plain == "STRING" else plain

    @property
    def many(self) -> bool:
        """May it hold more than one element?"""
        return self.dims not in ([], [1])


class _Policy(msgspec.Struct):
    decoupled: bool = False


class _Parameter(msgspec.Struct):
    string_value: str = ""


class Step(msgspec.Struct):
    """A model that an ensemble runs."""

    model_name: str = ""


class _Steps(msgspec.Struct):
    step: list[Step] = []


class _Instances(msgspec.Struct):
    kind: str = ""


class ModelConfig(msgspec.Struct):
    """A model's config, as far as it is read. Triton leaves out what is not set."""

    name: str = ""
    platform: str = ""
    backend: str = ""
    max_batch_size: int = 0
    input: list[_Tensor] = []
    output: list[_Tensor] = []
    instance_group: list[_Instances] = []
    model_transaction_policy: _Policy = msgspec.field(default_factory=_Policy)
    parameters: dict[str, _Parameter] = {}
    ensemble_scheduling: _Steps = msgspec.field(default_factory=_Steps)

    def parameter(self, name: str) -> str:
        """A parameter's text; "" if it is not set (``${...}`` is a template's gap)."""
        found = self.parameters.get(name)
        return "" if found is None or found.string_value.startswith("${") else found.string_value

    @property
    def steps(self) -> list[str]:
        """The models that do its work: an ensemble's steps, and the one that BLS scripts name."""
        named = self.parameter("tensorrt_llm_model_name")
        return [step.model_name for step in self.ensemble_scheduling.step if step.model_name] + (
            [named] if named else []
        )


class TextModel:
    """A model that turns a prompt into text, and how.

    :param tensors: role (see ROLES) -> the tensor that plays it, where the names are nobody's.
    :raises InvalidRequest: it is none, or lacks a tensor that ``tensors`` names; with what it has.
    """

    def __init__(self, config: ModelConfig, tensors: Mapping[str, str]) -> None:
        self.config = config
        self.inputs = {tensor.name: tensor for tensor in config.input}
        self.outputs = {tensor.name: tensor for tensor in config.output}
        self._mapped = tensors
        self.prompt = tensors.get("prompt", PROMPT)
        self.text = tensors.get("text", TEXT)
        self._check(tensors)
        #: vLLM's backend takes its parameters as one text of JSON.
        self.vllm = SAMPLING in self.inputs
        self.decoupled = config.model_transaction_policy.decoupled
        self._stream = tensors.get("stream") or next((name for name in STREAM if name in self.inputs), None)
        excludes = any(name in self.inputs for name in SWITCHES[:3])
        #: TensorRT-LLM's BLS script may send the text so far with every response, its llmapi backend always does.
        accumulates = config.parameter("accumulate_tokens").lower() in ("true", "yes", "1", "t")
        self.cumulative = accumulates or "sampling_param_max_tokens" in self.inputs
        #: TensorRT-LLM before exclude_input_in_output begins with the prompt where it answers in one piece.
        streams = self.decoupled and self._stream is not None
        self.echoes = self._is_trtllm() and not excludes and not streams
        #: vLLM's backend up to 24.02 sends the prompt and the text so far with every response.
        self.repeats = self.vllm and not excludes
        #: vLLM and llmapi take stop strings off their texts; TensorRT-LLM's engine ends with them, others may.
        self.keeps_stops = not self.vllm and "sampling_param_max_tokens" not in self.inputs and self.takes("stop")
        self.limited = self.vllm or self._input("max_tokens") is not None

    def _check(self, tensors: Mapping[str, str]) -> None:
        for role, name in tensors.items():
            if name not in (self.outputs if role == "text" else self.inputs):
                raise self._no_text("tensors", f"{role}: it has no {name!r}")
        if "input_ids" in self.inputs and self.prompt not in self.inputs:
            raise self._no_text("model", "it takes token ids, not text: name the ensemble or the BLS model around it")
        for kind, name, mine in (("input", self.prompt, self.inputs), ("output", self.text, self.outputs)):
            if name not in mine:
                raise self._no_text("model", f"it has no {kind} {name!r}: say with tensors= which plays its part")
            if mine[name].datatype != "BYTES":
                raise self._no_text("model", f"its {kind} {name!r} is no text")

    def _no_text(self, field: str, why: str) -> InvalidRequest:
        return invalid(field, f"Triton's {self.config.name!r}: {why}; {self.shape}")

    def _is_trtllm(self) -> bool:
        signs = {"bad_words", "stop_words", "end_id"} & self.inputs.keys()
        named = self.config.platform == "ensemble" or self.config.name == "tensorrt_llm_bls"
        return "max_tokens" in self.inputs and (bool(signs) or named)

    @property
    def shape(self) -> str:
        """Its tensors, for a message."""
        ins = ", ".join(f"{t.name} ({t.datatype}{', optional' if t.optional else ''})" for t in self.inputs.values())
        outs = ", ".join(f"{t.name} ({t.datatype})" for t in self.outputs.values())
        return f"inputs: {ins or 'none'}; outputs: {outs or 'none'}"

    def _input(self, role: str) -> str | None:
        """The input that takes a field of a task."""
        if role in self._mapped:
            return self._mapped[role]
        found = (name for name in NAMES[role] if name in self.inputs)
        # llmapi's "stop" is a switch that cancels.
        return next((name for name in found if role != "stop" or self.inputs[name].datatype == "BYTES"), None)

    def takes(self, field: str) -> bool:
        """Has it an equivalent for a field of a task?"""
        return self.vllm or self._input(field) is not None

    def lacks(self, task: TaskRequest) -> list[str]:
        """The fields that the task sets and the model does not take."""
        return [name for name in OPTIONAL if getattr(task, name) not in (None, []) and not self.takes(name)]

    def tensors_for(self, task: TaskRequest) -> tuple[dict[str, Any], dict[str, Any]]:
        """Input tensors by name, and request parameters.

        :raises InvalidRequest: a value that its tensor cannot hold, or a required input that nothing fills.
        """
        extra = dict(task.extra)
        parameters = extra.pop("parameters", {})
        if not isinstance(parameters, dict) or not all(map(_is_parameter, parameters.values())):
            raise invalid("extra.parameters", "want a mapping of text, numbers and booleans")
        fields = {name: getattr(task, name) for name in NAMES if getattr(task, name) not in (None, [])}
        made: dict[str, Any] = {self.prompt: task.prompt}
        if self.vllm:
            own = {name: extra.pop(name) for name in list(extra) if name not in self.inputs}
            made[SAMPLING] = msgspec.json.encode({**fields, **own}).decode()
        else:
            made |= {tensor: self._held(name, tensor, fields[name]) for name, tensor in self._filled(fields)}
        made |= {name: True for name in SWITCHES if name in self.inputs}
        if self._stream is not None:
            made[self._stream] = self.decoupled  # a model that answers once refuses it
        for name, value in extra.items():
            if name in (self.prompt, self._stream, self._input("max_tokens")):
                raise invalid(f"extra.{name}", "is set by the adapter, not by extra")
            if name not in self.inputs:
                raise invalid(f"extra.{name}", f"Triton's {self.config.name!r} has no such input; {self.shape}")
            made[name] = self._held(f"extra.{name}", name, value)
        for name in WORDS:  # not optional in TensorRT-LLM 0.5
            if name in self.inputs and not self.inputs[name].optional:
                made.setdefault(name, "")
        empty = [name for name, tensor in self.inputs.items() if not tensor.optional and name not in made]
        if empty:
            raise invalid(f"extra.{empty[0]}", f"Triton's {self.config.name!r} requires it; {self.shape}")
        return made, parameters

    def _filled(self, fields: Mapping[str, Any]) -> list[tuple[str, str]]:
        found = [(name, self._input(name)) for name in fields]
        return [(name, tensor) for name, tensor in found if tensor is not None]

    def _held(self, field: str, name: str, value: Any) -> Any:
        """``value`` as the tensor holds it."""
        tensor = self.inputs[name]
        if not isinstance(value, (list, tuple)):
            return element(field, tensor.datatype, value)
        if not value or (len(value) > 1 and not tensor.many):
            raise invalid(field, f"the input {name!r} takes one value")
        return [element(field, tensor.datatype, each) for each in value]


def _is_parameter(value: Any) -> bool:
    return isinstance(value, (str, float)) or (isinstance(value, int) and -(2**63) <= value < 2**63)


def element(field: str, datatype: str, value: Any) -> Any:
    """One element of a tensor, checked: the server would wrap or misread what does not fit.

    :raises InvalidRequest: it does not fit.
    """
    whole = isinstance(value, int) and not isinstance(value, bool)
    number = whole or (isinstance(value, float) and math.isfinite(value))
    if datatype == "BYTES" and isinstance(value, str):
        return value
    if datatype == "BOOL" and isinstance(value, bool):
        return value
    if datatype in FLOATS and number and abs(value) <= LARGEST[datatype]:
        return float(value)
    if datatype in BITS and number and value == int(value):
        sign, bits = BITS[datatype]
        low, high = (0, 2**bits) if sign else (-(2 ** (bits - 1)), 2 ** (bits - 1))
        if low <= value < high:
            return int(value)
    raise invalid(field, f"the model takes {datatype} there")


def public(answer: Any) -> Any:
    """What Triton tells of itself, less what shows the server's disk: a model's parameters, and tracebacks."""
    if isinstance(answer, list):
        return [public(each) for each in answer]
    if not isinstance(answer, dict):
        return answer
    shown = {name: value for name, value in answer.items() if name != "parameters"}
    if isinstance(shown.get("reason"), str):
        shown["reason"] = shown["reason"].partition("\n\nAt:\n")[0]
    return shown
