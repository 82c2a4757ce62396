"""The models that a simulated Triton can serve by name: one for each way in which an LLM stands behind Triton."""

from __future__ import annotations

from collections.abc import Iterable

from .triton_models import Model, Step

_SAMPLING = (
    "num_return_sequences INT32?, bad_words STRING[-1]?, stop_words STRING[-1]?, exclude_input_in_output BOOL?,"
    "end_id INT32?, pad_id INT32?, top_k INT32?, top_p FP32?, temperature FP32?, length_penalty FP32?,"
    "repetition_penalty FP32?, min_length INT32?, presence_penalty FP32?, frequency_penalty FP32?,"
    "random_seed UINT64?, return_log_probs BOOL?, return_context_logits BOOL?, return_generation_logits BOOL?,"
    "return_kv_cache_reuse_stats BOOL?, beam_width INT32?, stream BOOL?, prompt_embedding_table FP16[-1,-1]?,"
    "prompt_table_extra_id UINT64?, prompt_vocab_size INT32?, embedding_bias_words STRING[-1]?,"
    "embedding_bias_weights FP32[-1]?, lora_task_id UINT64?, lora_weights FP16[-1,-1]?, lora_config INT32[-1,3]?"
)
_TRTLLM_OUT = (
    "text_output STRING[-1], cum_log_probs FP32[-1], output_log_probs FP32[-1,-1], context_logits FP32[-1,-1],"
    "generation_logits FP32[-1,-1,-1], batch_index INT32, sequence_index INT32"
)
_ZEROS = {
    "cum_log_probs": 0.0,
    "output_log_probs": 0.0,
    "context_logits": 0.0,
    "generation_logits": 0.0,
    "batch_index": 0,
    "sequence_index": 0,
}
_ENGINE = {
    "gpt_model_type": "inflight_fused_batching",
    "gpt_model_path": "/engines/recite",
    "max_beam_width": "1",
    "batch_scheduler_policy": "max_utilization",
    "kv_cache_free_gpu_mem_fraction": "0.9",
    "max_tokens_in_paged_kv_cache": "${max_tokens_in_paged_kv_cache}",
    "enable_kv_cache_reuse": "true",
    "cancellation_check_period_ms": "100",
    "decoding_mode": "${decoding_mode}",
    "exclude_input_in_output": "true",
}
_IDS_IN = (
    "input_ids INT32[-1], input_lengths INT32, request_output_len INT32, end_id INT32?, pad_id INT32?,"
    "runtime_top_k INT32?, runtime_top_p FP32?, temperature FP32?, random_seed UINT64?, stop BOOL?, streaming BOOL?"
)
_IDS_OUT = "output_ids INT32[-1,-1], sequence_length INT32[-1]"
LOAD_ERROR = (
    "Internal: RuntimeError: CUDA out of memory. Tried to allocate 20.00 GiB\n\n"
    "At:\n  /models/{0}/1/model.py(2): initialize\n"
)

_ALL = (
    Model(
        "recite",
        "text_input STRING, max_tokens INT32?, stream BOOL?, temperature FP32?, top_p FP32?, top_k INT32?,"
        "seed UINT64?, stop STRING[-1]?",
        "text_output STRING",
    ),
    Model(
        "vllm_model",
        "text_input STRING, image STRING[-1]?, stream BOOL?, sampling_parameters STRING?,"
        "exclude_input_in_output BOOL?, return_finish_reason BOOL?, return_cumulative_logprob BOOL?,"
        "return_logprobs BOOL?, return_num_input_tokens BOOL?, return_num_output_tokens BOOL?",
        "text_output STRING[-1], finish_reason STRING[-1], cumulative_logprob FP32[-1], logprobs STRING[-1],"
        "num_input_tokens UINT32, num_output_tokens UINT32[-1]",
        voice="vllm",
        backend="vllm",
        kind="KIND_MODEL",
    ),
    Model(
        "ensemble",
        f"text_input STRING, decoder_text_input STRING?, max_tokens INT32, {_SAMPLING}",
        _TRTLLM_OUT,
        voice="trtllm",
        max_batch_size=4,
        constants=_ZEROS,
        steps=(
            Step(
                "preprocessing",
                {"QUERY": "text_input", "REQUEST_OUTPUT_LEN": "max_tokens", "STOP_WORDS_DICT": "stop_words"},
                {"INPUT_ID": "_INPUT_ID", "REQUEST_OUTPUT_LEN": "_REQUEST_OUTPUT_LEN"},
            ),
            Step(
                "tensorrt_llm",
                {"input_ids": "_INPUT_ID", "request_output_len": "_REQUEST_OUTPUT_LEN", "streaming": "stream"},
                {"output_ids": "_TOKENS_BATCH", **{name: name for name in _ZEROS}},
            ),
            Step("postprocessing", {"TOKENS_BATCH": "_TOKENS_BATCH"}, {"OUTPUT": "text_output"}),
        ),
    ),
    Model(
        "preprocessing",
        "QUERY STRING, REQUEST_OUTPUT_LEN INT32, STOP_WORDS_DICT STRING[-1]?",
        "INPUT_ID INT32[-1], REQUEST_OUTPUT_LEN INT32",
        decoupled=False,
        max_batch_size=4,
        parameters={"tokenizer_dir": "/models/tokenizer", "add_special_tokens": "${add_special_tokens}"},
    ),
    Model(
        "tensorrt_llm",
        _IDS_IN,
        _IDS_OUT,
        voice="ids",
        max_batch_size=4,
        backend="tensorrtllm",
        parameters=_ENGINE,
    ),
    Model(
        "postprocessing",
        "TOKENS_BATCH INT32[-1,-1]",
        "OUTPUT STRING[-1]",
        decoupled=False,
        max_batch_size=4,
        parameters={"tokenizer_dir": "/models/tokenizer", "skip_special_tokens": "true"},
    ),
    Model(
        "tensorrt_llm_bls",
        "text_input STRING, image_input FP16[-1,3,-1,-1]?, image_bytes_input UINT8[-1,-1,-1,-1]?,"
        f"image_url_input STRING?, max_tokens INT32, num_draft_tokens INT32?, use_draft_logits BOOL?, {_SAMPLING}",
        _TRTLLM_OUT,
        voice="trtllm",
        max_batch_size=4,
        parameters={
            "accumulate_tokens": "true",
            "tensorrt_llm_model_name": "tensorrt_llm",
            "tensorrt_llm_draft_model_name": "${tensorrt_llm_draft_model_name}",
        },
        constants=_ZEROS,
    ),
    Model(
        "llmapi",
        "text_input STRING[-1], streaming BOOL?, sampling_param_best_of INT32?, sampling_param_temperature FP32?,"
        "sampling_param_top_k INT32?, sampling_param_top_p FP32?, sampling_param_frequency_penalty FP32?,"
        "sampling_param_presence_penalty FP32?, sampling_param_max_tokens INT32?, sampling_param_stop STRING[-1]?,"
        "sampling_param_seed UINT64?, sampling_param_exclude_input_from_output BOOL?,"
        "sampling_param_return_perf_metrics BOOL?, return_finish_reason BOOL?, return_stop_reason BOOL?,"
        "return_cumulative_logprob BOOL?, stop BOOL?",
        "text_output STRING[-1], finish_reason STRING[-1], stop_reason STRING[-1], cumulative_logprob FP32[-1]",
        voice="llmapi",
    ),
    Model(
        "one",
        "text_input STRING, max_tokens INT32?, temperature FP32?, delay_ms FP32?, stop_words STRING[-1]?",
        "text_output STRING, logp FP32",
        decoupled=False,
        constants={"logp": -0.5},
    ),
    Model("tokens_only", _IDS_IN, _IDS_OUT, voice="ids", kind="KIND_GPU", gpus=(0,)),
    Model("bad_load", "text_input STRING", "text_output STRING", load_error=LOAD_ERROR.format("bad_load")),
    Model("slow_load", "text_input STRING", "text_output STRING", loaded=False, load_time=0.5),
)
MODELS: dict[str, Model] = {model.name: model for model in _ALL}


def chosen(models: str | Iterable[str | Model]) -> dict[str, Model]:
    """The models asked for, and the steps of their ensembles, in the order of the names: `all`, a name, or names and
    models. Raises KeyError for a name that is not among MODELS."""
    if models == "all":
        models = _ALL
    asked = [models] if isinstance(models, str) else models
    made = {model.name: model for model in (MODELS[each] if isinstance(each, str) else each for each in asked)}
    steps = {step.model for model in made.values() for step in model.steps}
    return dict(sorted({**{name: MODELS[name] for name in steps - set(made)}, **made}.items()))
