"""The models of the tests as a repository that Triton loads: which code, which tensors, which manners."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

CODE = Path(__file__).parent / "models"

GENERIC = ("text_input STRING", "max_tokens INT32?", "stream BOOL?", "stop STRING[]?")
TEXT = ("text_output STRING",)
#: What TensorRT-LLM 0.16 takes for sampling, in the ensemble and in its engine alike.
SAMPLING = (
    "end_id INT32?", "pad_id INT32?", "top_k INT32?", "top_p FP32?", "temperature FP32?", "repetition_penalty FP32?",
    "presence_penalty FP32?", "frequency_penalty FP32?", "random_seed UINT64?",
)  # fmt: skip
OLD_TRTLLM = ("text_input STRING", "max_tokens INT32", "stop_words STRING[]?", *SAMPLING, "stream BOOL?")
TRTLLM = (*OLD_TRTLLM, "exclude_input_in_output BOOL?")
TRTLLM_OUT = ("text_output STRING[]", "cum_log_probs FP32[]", "sequence_index INT32")
VLLM = (
    "text_input STRING", "image STRING[]?", "stream BOOL?", "sampling_parameters STRING?",
    "exclude_input_in_output BOOL?", "return_finish_reason BOOL?", "return_cumulative_logprob BOOL?",
    "return_logprobs BOOL?", "return_num_input_tokens BOOL?", "return_num_output_tokens BOOL?",
)  # fmt: skip
VLLM_OUT = (
    "text_output STRING[]", "finish_reason STRING[]", "cumulative_logprob FP32[]", "logprobs STRING[]",
    "num_input_tokens UINT32", "num_output_tokens UINT32[]",
)  # fmt: skip
LLMAPI = (
    "text_input STRING[]", "streaming BOOL?", "sampling_param_temperature FP32?", "sampling_param_top_k INT32?",
    "sampling_param_top_p FP32?", "sampling_param_frequency_penalty FP32?", "sampling_param_presence_penalty FP32?",
    "sampling_param_max_tokens INT32?", "sampling_param_stop STRING[]?", "sampling_param_seed UINT64?",
    "sampling_param_exclude_input_from_output BOOL?", "return_finish_reason BOOL?", "return_stop_reason BOOL?",
    "stop BOOL?",
)  # fmt: skip


class Model(NamedTuple):
    """A tensor is ``name TYPE``, with ``[]`` if it may have many elements and ``?`` if it may be left out."""

    name: str
    code: str
    inputs: Sequence[str] = GENERIC
    outputs: Sequence[str] = TEXT
    decoupled: bool = True
    batch: int = 0
    #: Its parameters in the configuration.
    parameters: Sequence[str] = ()
    #: More of its configuration, as it stands there.
    more: str = "instance_group [{ kind: KIND_CPU }]"

    @property
    def config(self) -> str:
        """Its ``config.pbtxt``."""
        lines = [f'name: "{self.name}"', f"max_batch_size: {self.batch}", self.more]
        lines.append('platform: "ensemble"' if self.code == "" else 'backend: "python"')
        if self.decoupled and self.code:
            lines.append("model_transaction_policy { decoupled: true }")
        lines += [f"input {_tensor(each)}" for each in self.inputs]
        lines += [f"output {_tensor(each)}" for each in self.outputs]
        for each in self.parameters:
            key, _, value = each.partition("=")
            lines.append(f'parameters {{ key: "{key}" value: {{ string_value: "{value}" }} }}')
        return "\n".join(lines) + "\n"


def _tensor(text: str) -> str:
    found = re.fullmatch(r"(\w+) (\w+)((?:\[,?\])?)(\??)", text)
    assert found, text
    name, kind, many, optional = found.groups()
    dims = {"": "1", "[]": "-1", "[,]": "-1, -1"}[many]
    return f'{{ name: "{name}" data_type: TYPE_{kind} dims: [{dims}]{" optional: true" if optional else ""} }}'


def _step(name: str, inputs: Iterable[str], outputs: Iterable[str]) -> str:
    """A step of an ensemble; each mapping is ``tensor of the step=tensor of the ensemble``."""
    maps = [("input_map", each) for each in inputs] + [("output_map", each) for each in outputs]
    rows = "".join(f'{kind} {{ key: "{each.split("=")[0]}" value: "{each.split("=")[1]}" }} ' for kind, each in maps)
    return f'{{ model_name: "{name}" model_version: -1 {rows}}}'


#: What the ensemble hands to its engine as it is.
HANDED = ["exclude_input_in_output", *(each.split()[0] for each in SAMPLING)]
STEPS = ", ".join(
    [
        _step(
            "preprocessing",
            ["QUERY=text_input", "REQUEST_OUTPUT_LEN=max_tokens", "STOP_WORDS_DICT=stop_words"],
            ["INPUT_ID=_ids", "REQUEST_INPUT_LEN=_lengths", "REQUEST_OUTPUT_LEN=_wanted", "STOP_WORDS_IDS=_stop"],
        ),
        _step(
            "tensorrt_llm",
            [
                "input_ids=_ids", "input_lengths=_lengths", "request_output_len=_wanted", "stop_words_list=_stop",
                "streaming=stream", *[f"{name}={name}" for name in HANDED],
            ],
            ["output_ids=_out", "sequence_length=_length", "cum_log_probs=_probs", "sequence_index=_index"],
        ),
        _step(
            "postprocessing",
            ["TOKENS_BATCH=_out", "SEQUENCE_LENGTH=_length", "CUM_LOG_PROBS=_probs", "SEQUENCE_INDEX=_index"],
            ["OUTPUT=text_output", "OUT_CUM_LOG_PROBS=cum_log_probs", "OUT_SEQUENCE_INDEX=sequence_index"],
        ),
    ]
)  # fmt: skip

MODELS = {
    model.name: model
    for model in [
        Model("recite", "recite", (*GENERIC, "delay_ms INT32?", "repeat BOOL?")),
        Model("plain", "recite", ("text_input STRING",)),
        # One job at a time, so that others wait for it; and a queue with room for one.
        Model("slow", "recite", parameters=["at_once=false"]),
        Model(
            "full", "recite", batch=1, parameters=["at_once=false"],
            more="dynamic_batching { default_queue_policy { max_queue_size: 1 } }",
        ),
        Model("one", "one", GENERIC[:2], decoupled=False, more="instance_group [{ count: 2 kind: KIND_CPU }]"),
        # Their processes end: within ``execute``, which the server waits for; and in a thread that it knows nothing of.
        Model("crash", "recite", parameters=["at_once=false"]),
        Model("vanish", "recite"),
        Model("vllm_model", "vllm_model", VLLM, VLLM_OUT, more="instance_group [{ kind: KIND_MODEL }]"),
        Model("llmapi", "llmapi", LLMAPI, (*TEXT, "finish_reason STRING[]", "stop_reason STRING[]")),
        Model(
            "tensorrt_llm_bls", "bls", TRTLLM, (*TRTLLM_OUT, "output_log_probs FP32[,]"), batch=4,
            parameters=["accumulate_tokens=true", "tensorrt_llm_model_name=tensorrt_llm"],
        ),
        Model("old_trtllm", "bls", OLD_TRTLLM, (*TRTLLM_OUT, "output_log_probs FP32[,]"), batch=4),
        Model(
            "preprocessing", "preprocessing", ("QUERY STRING", "REQUEST_OUTPUT_LEN INT32", "STOP_WORDS_DICT STRING[]?"),
            ("INPUT_ID INT32[]", "REQUEST_INPUT_LEN INT32", "REQUEST_OUTPUT_LEN INT32", "STOP_WORDS_IDS INT32[]"),
            decoupled=False, batch=4,
        ),
        Model(
            "tensorrt_llm", "tensorrt_llm",
            (
                "input_ids INT32[]", "input_lengths INT32", "request_output_len INT32", "stop_words_list INT32[]?",
                "streaming BOOL?", "stop BOOL?", "exclude_input_in_output BOOL?", *SAMPLING,
            ),
            (
                "output_ids INT32[,]", "sequence_length INT32[]", "cum_log_probs FP32[]", "output_log_probs FP32[,]",
                "sequence_index INT32",
            ),
            batch=4,
        ),
        Model(
            "postprocessing", "postprocessing",
            ("TOKENS_BATCH INT32[,]", "SEQUENCE_LENGTH INT32[]", "CUM_LOG_PROBS FP32[]", "SEQUENCE_INDEX INT32"),
            ("OUTPUT STRING[]", "OUT_CUM_LOG_PROBS FP32[]", "OUT_SEQUENCE_INDEX INT32"),
            decoupled=False, batch=4,
        ),
        Model("ensemble", "", TRTLLM, TRTLLM_OUT, batch=4, more=f"ensemble_scheduling {{ step [{STEPS}] }}"),
        Model("numbers", "one", ("x FP32",), ("y FP32",), decoupled=False),
        Model("broken", "broken"),
    ]
}  # fmt: skip
#: All that load and live.
SOUND = [name for name in MODELS if name not in ("broken", "crash", "vanish")]


def write(folder: Path, names: Iterable[str]) -> Path:
    """Write models as Triton wants them, ``name/config.pbtxt`` and ``name/1/model.py``; the folder is returned."""
    for name in names:
        model = MODELS[name]
        version = folder / name / "1"
        version.mkdir(parents=True)
        (folder / name / "config.pbtxt").write_text(model.config, encoding="utf-8")
        if model.code:
            shutil.copy(CODE / f"{model.code}.py", version / "model.py")
            shutil.copy(CODE / "reciting.py", version)  # Triton puts this folder on the model's path
    return folder
