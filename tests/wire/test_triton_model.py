"""What a Triton model wants: its convention by its tensors' names, a task as those tensors, and what does not fit."""

from __future__ import annotations

import json
import math
import re
import struct
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from worker_adapters.errors import InvalidRequest
from worker_adapters.task import TaskRequest
from worker_adapters.wire.triton_model import ModelConfig, TextModel, element, public

pytestmark = pytest.mark.triton


def tensors(text: str) -> list[dict[str, Any]]:
    """``name TYPE[dims]?`` with commas between; without dims one element."""
    found = re.findall(r"(\w+) (\w+)(?:\[([-\d,]+)\])?(\??)", text)
    return [
        {
            "name": name,
            "data_type": f"TYPE_{kind}",
            "dims": [int(size) for size in (dims or "1").split(",")],
            "optional": bool(optional),
        }
        for name, kind, dims, optional in found
    ]


def model(
    inputs: str, outputs: str = "text_output STRING", mapped: dict[str, str] | None = None, **config: Any
) -> TextModel:
    """A model with these tensors, as its config shows it."""
    shown = {"name": "m", "input": tensors(inputs), "output": tensors(outputs), **config}
    shown.setdefault("model_transaction_policy", {"decoupled": True})
    return TextModel(msgspec.convert(shown, ModelConfig), mapped or {})


def sent(made: TextModel, **task: Any) -> dict[str, Any]:
    """The tensors of a task, less those that nobody asked of it."""
    return made.tensors_for(TaskRequest(**{"prompt": "Hi", **task}))[0]


def refused(made: TextModel, **task: Any) -> InvalidRequest:
    """Why a task is none for the model."""
    with pytest.raises(InvalidRequest) as caught:
        made.tensors_for(TaskRequest(**{"prompt": "Hi", **task}))
    return caught.value


# Inputs as the sources name them: vllm_backend main, tensorrtllm_backend v0.16.0, TensorRT-LLM's triton_backend main.
VLLM = (
    "text_input STRING, image STRING[-1]?, stream BOOL?, sampling_parameters STRING?, exclude_input_in_output BOOL?,"
    "return_finish_reason BOOL?, return_cumulative_logprob BOOL?, return_logprobs BOOL?,"
    "return_num_input_tokens BOOL?, return_num_output_tokens BOOL?"
)
TRTLLM = (
    "text_input STRING, max_tokens INT32, bad_words STRING[-1]?, stop_words STRING[-1]?, end_id INT32?, pad_id INT32?,"
    "top_k INT32?, top_p FP32?, temperature FP32?, length_penalty FP32?, repetition_penalty FP32?,"
    "presence_penalty FP32?, frequency_penalty FP32?, random_seed UINT64?, return_log_probs BOOL?, beam_width INT32?,"
    "exclude_input_in_output BOOL?, stream BOOL?"
)
OLD_TRTLLM = TRTLLM.replace("exclude_input_in_output BOOL?, ", "")
LLMAPI = (
    "text_input STRING, streaming BOOL?, sampling_param_max_tokens INT32?, sampling_param_temperature FP32?,"
    "sampling_param_top_k INT32?, sampling_param_top_p FP32?, sampling_param_seed UINT64?,"
    "sampling_param_stop STRING[-1]?, sampling_param_presence_penalty FP32?, sampling_param_frequency_penalty FP32?,"
    "sampling_param_exclude_input_from_output BOOL?, return_finish_reason BOOL?, return_stop_reason BOOL?, stop BOOL?"
)
IDS = "input_ids INT32[-1], input_lengths INT32, request_output_len INT32, end_id INT32?, streaming BOOL?"
GENERIC = "text_input STRING, max_tokens INT32?, temperature FP32?, stream BOOL?, seed UINT64?, stop_words STRING[-1]?"

#: Everything that a task may set.
FULL: dict[str, Any] = {
    "max_tokens": 7,
    "temperature": 0.5,
    "top_p": 0.25,
    "top_k": 3,
    "seed": 11,
    "stop": ["a", "b"],
    "presence_penalty": 0.125,
    "frequency_penalty": -0.5,
}


# --- conventions


def test_vllm_takes_its_parameters_as_one_text_of_json() -> None:
    """By ``sampling_parameters``: fields under vLLM's names, our own switches beside them, counts and reason wanted."""
    made = sent(model(VLLM), **FULL, min_p=0.5, repetition_penalty=2.0, extra={"ignore_eos": True})
    assert json.loads(made.pop("sampling_parameters")) == {
        **FULL,
        "min_p": 0.5,
        "repetition_penalty": 2.0,
        "ignore_eos": True,
    }
    assert made == {
        "text_input": "Hi",
        "stream": True,
        "exclude_input_in_output": True,
        "return_finish_reason": True,
        "return_num_input_tokens": True,
        "return_num_output_tokens": True,
    }


def test_vllm_lacks_nothing_and_is_told_only_what_was_set() -> None:
    """A plain task has its limit alone in the JSON; vLLM has an equivalent for every field."""
    made = model(VLLM)
    assert json.loads(sent(made)["sampling_parameters"]) == {"max_tokens": 256}
    assert made.lacks(TaskRequest(prompt="Hi", **FULL, min_p=0.5)) == []
    assert (made.vllm, made.cumulative, made.echoes) == (True, False, False)


def test_vllm_s_older_backend_has_fewer_switches() -> None:
    """Only inputs that the config lists are sent."""
    made = sent(model("text_input STRING, stream BOOL?, sampling_parameters STRING?"))
    assert sorted(made) == ["sampling_parameters", "stream", "text_input"]


@pytest.mark.parametrize(
    "config", [{"platform": "ensemble", "max_batch_size": 4}, {"name": "tensorrt_llm_bls"}, {"backend": "python"}]
)
def test_tensorrt_llm_takes_separate_tensors(config: dict[str, Any]) -> None:
    """By ``max_tokens`` and its kin: each field in the tensor that its sources name, no prompt in the answer."""
    made = model(TRTLLM, "text_output STRING[-1]", **config)
    assert sent(made, **FULL, repetition_penalty=2.0, extra={"bad_words": ["x"], "end_id": 2}) == {
        "text_input": "Hi",
        "max_tokens": 7,
        "temperature": 0.5,
        "top_p": 0.25,
        "top_k": 3,
        "random_seed": 11,
        "stop_words": ["a", "b"],
        "presence_penalty": 0.125,
        "frequency_penalty": -0.5,
        "repetition_penalty": 2.0,
        "exclude_input_in_output": True,
        "stream": True,
        "bad_words": ["x"],
        "end_id": 2,
    }
    assert made.lacks(TaskRequest(prompt="Hi", min_p=0.5)) == ["min_p"]
    assert (made.vllm, made.echoes) == (False, False)


def test_old_tensorrt_llm_repeats_the_prompt() -> None:
    """Without ``exclude_input_in_output`` an answer in one piece begins with the prompt; a stream never does, nor do
    other conventions' answers.
    """
    once = {"model_transaction_policy": {"decoupled": False}}
    assert model(OLD_TRTLLM, **once).echoes
    assert model("text_input STRING, max_tokens INT32, stream BOOL?", platform="ensemble", **once).echoes
    assert model("text_input STRING, max_tokens INT32", platform="ensemble").echoes
    assert not model(OLD_TRTLLM).echoes
    assert not model(TRTLLM, **once).echoes
    assert not model("text_input STRING, max_tokens INT32?, temperature FP32?").echoes
    assert not model(LLMAPI).echoes


def test_tensorrt_llm_0_5_requires_words() -> None:
    """Its ``bad_words`` and ``stop_words`` are not optional, and its integers have no sign: "" is no word."""
    made = model(
        "text_input STRING[-1], max_tokens UINT32[-1], bad_words STRING[-1], stop_words STRING[-1], end_id UINT32?,"
        "pad_id UINT32?, top_k UINT32?, temperature FP32?, random_seed UINT64?, stream BOOL?"
    )
    assert sent(made) == {"text_input": "Hi", "max_tokens": 256, "bad_words": "", "stop_words": "", "stream": True}
    own = sent(made, stop=["x"], extra={"bad_words": ["y", "z"]})
    assert (own["bad_words"], own["stop_words"]) == (["y", "z"], ["x"])


def test_old_vllm_repeats() -> None:
    """Up to 24.02 it has no ``exclude_input_in_output``; its ``stream`` is not optional in 23.10."""
    made = model("text_input STRING, stream BOOL, sampling_parameters STRING?")
    assert made.repeats
    assert not model(VLLM).repeats
    assert sent(made) == {"text_input": "Hi", "stream": True, "sampling_parameters": '{"max_tokens":256}'}


@pytest.mark.parametrize(
    ("told", "cumulative"),
    [
        ("true", True),
        ("True", True),
        ("1", True),
        ("Yes", True),
        ("t", True),
        ("false", False),
        ("${accumulate_tokens}", False),
        (None, False),
    ],
)
def test_the_bls_may_accumulate(told: str | None, cumulative: bool) -> None:
    """``accumulate_tokens`` in its parameters means that each response has all the text so far; ${...} is unset."""
    parameters = {} if told is None else {"accumulate_tokens": {"string_value": told}}
    assert model(TRTLLM, name="tensorrt_llm_bls", parameters=parameters).cumulative is cumulative


def test_llmapi_takes_prefixed_tensors() -> None:
    """By ``sampling_param_max_tokens``; its ``stop`` is a switch that cancels, never the stop strings."""
    made = model(LLMAPI)
    assert sent(made, **FULL) == {
        "text_input": "Hi",
        "sampling_param_max_tokens": 7,
        "sampling_param_temperature": 0.5,
        "sampling_param_top_p": 0.25,
        "sampling_param_top_k": 3,
        "sampling_param_seed": 11,
        "sampling_param_stop": ["a", "b"],
        "sampling_param_presence_penalty": 0.125,
        "sampling_param_frequency_penalty": -0.5,
        "sampling_param_exclude_input_from_output": True,
        "return_finish_reason": True,
        "return_stop_reason": True,
        "streaming": True,
    }
    assert made.cumulative
    without = model(LLMAPI.replace("sampling_param_stop STRING[-1]?,", ""))
    assert without.lacks(TaskRequest(prompt="Hi", stop=["x"])) == ["stop"]


@pytest.mark.parametrize("name", ["max_tokens", "max_new_tokens", "max_output_tokens"])
def test_a_generic_model_s_limit_has_one_of_three_names(name: str) -> None:
    """Whichever the model has; with none of them the reader itself counts."""
    made = model(f"text_input STRING, {name} INT32?")
    assert sent(made, max_tokens=5) == {"text_input": "Hi", name: 5}
    assert made.limited
    assert not model("text_input STRING").limited
    assert sent(model("text_input STRING"), max_tokens=5) == {"text_input": "Hi"}


@pytest.mark.parametrize("decoupled", [True, False])
@pytest.mark.parametrize("inputs", [VLLM, TRTLLM, LLMAPI, GENERIC])
def test_a_stream_is_asked_for_where_the_model_can(inputs: str, decoupled: bool) -> None:
    """``stream`` or ``streaming`` says whether it is decoupled: one that is not refuses, or dies of, true."""
    made = sent(model(inputs, model_transaction_policy={"decoupled": decoupled}))
    assert made["streaming" if "streaming" in inputs else "stream"] is decoupled


def test_a_policy_that_is_not_told_is_none() -> None:
    """Triton leaves ``model_transaction_policy`` out where nothing was set."""
    assert not model(GENERIC, model_transaction_policy={}).decoupled


def test_a_generic_model_takes_what_it_names() -> None:
    """Same-named inputs; of what it has none for, the fields are told."""
    made = model(GENERIC)
    assert sent(made, temperature=0, seed=2**63 - 1, stop=["x"]) == {
        "text_input": "Hi",
        "max_tokens": 256,
        "temperature": 0.0,
        "seed": 2**63 - 1,
        "stop_words": ["x"],
        "stream": True,
    }
    assert made.lacks(TaskRequest(prompt="Hi", **FULL)) == ["top_p", "top_k", "presence_penalty", "frequency_penalty"]


# --- what is no text model


@pytest.mark.parametrize(
    ("inputs", "outputs", "words"),
    [
        (IDS, "output_ids INT32[-1]", "token ids"),
        ("IMAGE FP32[3,224,224]", "SCORES FP32[1000]", "text_input"),
        ("text_input INT32", "text_output STRING", "no text"),
        ("text_input STRING", "text_output FP32", "no text"),
        ("text_input STRING", "embedding FP32[-1]", "text_output"),
        ("QUERY STRING", "text_output STRING", "tensors="),
    ],
)
def test_what_is_no_text_model_says_what_it_has(inputs: str, outputs: str, words: str) -> None:
    """No text in or out, or token ids: InvalidRequest that names the model's tensors."""
    with pytest.raises(InvalidRequest, match=words) as caught:
        model(inputs, outputs)
    assert caught.value.field == "model"
    assert all(tensor["name"] in caught.value.message for tensor in tensors(f"{inputs}, {outputs}"))


# --- tensors of a name of its own


OWN = "QUERY STRING, LIMIT INT32, HEAT FP32?, SAY_IT_LIVE BOOL?, END STRING[-1]?"
MAPPED = {
    "prompt": "QUERY", "text": "ANSWER", "max_tokens": "LIMIT", "temperature": "HEAT", "stream": "SAY_IT_LIVE",
    "stop": "END",
}  # fmt: skip


def test_names_that_are_nobody_s_are_mapped() -> None:
    """``tensors`` says which plays which part."""
    made = model(OWN, "ANSWER STRING", MAPPED)
    assert sent(made, max_tokens=3, temperature=1, stop=["x"]) == {
        "QUERY": "Hi",
        "LIMIT": 3,
        "HEAT": 1.0,
        "END": ["x"],
        "SAY_IT_LIVE": True,
    }
    assert (made.text, made.limited) == ("ANSWER", True)
    assert made.lacks(TaskRequest(prompt="Hi", top_p=0.5)) == ["top_p"]


def test_a_mapping_goes_before_a_usual_name() -> None:
    """Of two tensors for one part, the mapped one is used."""
    made = sent(model("text_input STRING, max_tokens INT32?, LIMIT INT32?", mapped={"max_tokens": "LIMIT"}))
    assert made == {"text_input": "Hi", "LIMIT": 256}


@pytest.mark.parametrize("role", ["prompt", "text", "max_tokens", "stream", "seed"])
def test_a_mapping_to_a_tensor_that_is_not_there_is_refused(role: str) -> None:
    """The role, the name and what there is instead; ``text`` is looked for among the outputs."""
    wrong = "text_input" if role == "text" else "text_output"
    with pytest.raises(InvalidRequest, match=f"{role}: it has no '{wrong}'") as caught:
        model(GENERIC, mapped={role: wrong})
    assert caught.value.field == "tensors"


# --- values


def test_a_field_that_the_tensor_cannot_hold_is_named() -> None:
    """A seed that an INT32 cannot hold would be cut by the server without a word."""
    made = model("text_input STRING, seed INT32?, stop STRING?, temperature INT32?")
    assert sent(made, seed=2**31 - 1)["seed"] == 2**31 - 1
    assert refused(made, seed=2**31).field == "seed"
    assert refused(made, stop=["a", "b"]).field == "stop"
    assert refused(made, temperature=0.5).field == "temperature"
    assert sent(made, temperature=1.0)["temperature"] == 1
    assert type(sent(made, temperature=1.0)["temperature"]) is int  # 1.0 for an INT32 is a parse error there


def test_an_unknown_extra_is_refused() -> None:
    """A key that names no tensor would be ignored in silence: it is an error that names it, and what there is."""
    error = refused(model(GENERIC), extra={"max_new_tokens": 5})
    assert error.field == "extra.max_new_tokens"
    assert "max_tokens (INT32, optional)" in error.message
    assert refused(model(VLLM), extra={"stream": "yes"}).field == "extra.stream"


def test_extra_sets_no_part_of_the_contract() -> None:
    """The prompt, the stream and the limit are the task's, under whatever name."""
    for name in ("text_input", "max_tokens"):  # "stream" is no task's to have
        assert refused(model(GENERIC), extra={name: 1}).field == f"extra.{name}"
    assert refused(model(LLMAPI), extra={"streaming": False}).field == "extra.streaming"
    assert refused(model(OWN, "ANSWER STRING", MAPPED), extra={"QUERY": "x"}).field == "extra.QUERY"


def test_an_extra_is_held_by_its_tensor() -> None:
    """``extra`` fills any other input, by its type."""
    made = model(TRTLLM + ", lora_task_id UINT64?")
    assert sent(made, extra={"lora_task_id": 2**64 - 1})["lora_task_id"] == 2**64 - 1
    assert refused(made, extra={"lora_task_id": -1}).field == "extra.lora_task_id"
    assert refused(made, extra={"beam_width": [1, 2]}).field == "extra.beam_width"
    assert refused(made, extra={"bad_words": []}).field == "extra.bad_words"
    assert refused(made, extra={"bad_words": ["x", 1]}).field == "extra.bad_words"
    assert refused(made, extra={"return_log_probs": 1}).field == "extra.return_log_probs"


def test_a_required_input_that_nothing_fills_is_named() -> None:
    """The server only counts inputs, so it is found here; ``extra`` fills it."""
    made = model("text_input STRING, tenant STRING, max_tokens INT32?")
    error = refused(made)
    assert error.field == "extra.tenant"
    assert "requires" in error.message
    assert sent(made, extra={"tenant": "blue"})["tenant"] == "blue"


def test_parameters_of_the_request_are_scalars() -> None:
    """``extra={"parameters": ...}`` is handed over beside the tensors; anything but a flat mapping is refused."""
    made = model(GENERIC)
    task = TaskRequest(prompt="Hi", extra={"parameters": {"priority": 1, "tag": "a", "x": 1.5, "b": True}})
    assert made.tensors_for(task)[1] == {"priority": 1, "tag": "a", "x": 1.5, "b": True}
    for wrong in ([1], "a", {"a": [1]}, {"a": None}, {"a": {"b": 1}}, {"a": 2**63}):
        assert refused(made, extra={"parameters": wrong}).field == "extra.parameters"


INTEGERS = {f"{sign}INT{bits}": (bits, not sign) for sign in ("", "U") for bits in (8, 16, 32, 64)}


@pytest.mark.parametrize("datatype", INTEGERS)
def test_integers_end_where_their_type_does(datatype: str) -> None:
    """Each width to its last value, and not one beyond; never a bool, a fraction or a text."""
    bits, signed = INTEGERS[datatype]
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    for value in (low, high, 0, 1, 1.0):
        held = element("f", datatype, value)
        assert (held, type(held)) == (value, int)
    for value in (low - 1, high + 1, True, 0.5, math.nan, math.inf, "1", None, [1], 10**400, 1e300):
        with pytest.raises(InvalidRequest, match=datatype) as caught:
            element("f", datatype, value)
        assert caught.value.field == "f"


LARGEST = {"FP16": 65504.0, "FP32": (2 - 2**-23) * 2.0**127, "FP64": math.ldexp(2 - 2**-52, 1023)}


@pytest.mark.parametrize("datatype", [*LARGEST, "BF16"])
def test_floats_stay_finite(datatype: str) -> None:
    """To the largest value of the type, also as integers; never what the server would make an infinity of."""
    largest = LARGEST.get(datatype, (2 - 2**-7) * 2.0**127)
    for value in (largest, -largest, 0, 1, 5e-324):
        held = element("f", datatype, value)
        assert (held, type(held)) == (float(value), float)
    beyond = [math.nan, math.inf, -math.inf, True, "1", None, 10**400]
    for value in [*beyond, *([] if datatype == "FP64" else [largest * 1.01, -largest * 1.01])]:
        with pytest.raises(InvalidRequest, match=datatype):
            element("f", datatype, value)


@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers())
@example(3.4028235e38)
@example(3.4028236e38)
def test_what_an_fp32_takes_is_finite_in_32_bits(value: float) -> None:
    """Whatever is accepted can be packed as a 32-bit float."""
    try:
        held = element("f", "FP32", value)
    except InvalidRequest:
        assert abs(value) > (2 - 2**-23) * 2.0**127
        return
    struct.pack("<f", held)


@pytest.mark.parametrize(
    ("datatype", "good", "bad"),
    [("BOOL", [True, False], [0, 1, "true", None]), ("BYTES", ["", "é\0"], [b"x", 1, None, True])],
)
def test_text_and_switches_are_just_that(datatype: str, good: list[Any], bad: list[Any]) -> None:
    """No number is a switch, no number or bytes a text."""
    for value in good:
        assert element("f", datatype, value) is value
    for value in bad:
        with pytest.raises(InvalidRequest, match=datatype):
            element("f", datatype, value)


@pytest.mark.parametrize("datatype", ["", "INVALID", "INT128"])
def test_a_type_that_nobody_knows_is_refused(datatype: str) -> None:
    """An input of an unknown type cannot be filled."""
    with pytest.raises(InvalidRequest):
        element("f", datatype, 1)


# --- configs, and what may be shown


def test_the_steps_are_those_of_an_ensemble_or_of_a_script() -> None:
    """An ensemble's models, and the one that TensorRT-LLM's BLS names; a template's gap names none."""
    steps = {"step": [{"model_name": "preprocessing"}, {"model_name": "tensorrt_llm"}]}
    assert model(TRTLLM, ensemble_scheduling=steps).config.steps == ["preprocessing", "tensorrt_llm"]
    for told, names in (("tensorrt_llm", ["tensorrt_llm"]), ("${tensorrt_llm_model_name}", []), ("", [])):
        named = {"tensorrt_llm_model_name": {"string_value": told}}
        assert model(TRTLLM, parameters=named).config.steps == names


def test_what_shows_the_server_s_disk_is_not_shown() -> None:
    """A model's parameters are left out, and tracebacks behind a reason."""
    assert public({"name": "m", "parameters": {"tokenizer_dir": {"string_value": "/models/x"}}}) == {"name": "m"}
    reason = "Internal: RuntimeError: boom\n\nAt:\n  /models/m/1/model.py(2): initialize\n"
    assert public([{"name": "m", "reason": reason}]) == [{"name": "m", "reason": "Internal: RuntimeError: boom"}]
    assert public("x") == "x"
