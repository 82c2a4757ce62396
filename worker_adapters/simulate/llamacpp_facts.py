"""Bodies of llama.cpp's HTTP server as recorded: build 'b0-unknown', Python wheel xllamacpp 2026.10.11549."""

from __future__ import annotations

import json
import struct
from typing import Any

# generation_settings of a final event; the key order is the engine's. Floats are float32 (0.949999988079071).
SETTINGS: dict[str, Any] = {
    "seed": 4294967295,
    "temperature": 0.800000011920929,
    "dynatemp_range": 0.0,
    "dynatemp_exponent": 1.0,
    "top_k": 40,
    "top_p": 0.949999988079071,
    "min_p": 0.05000000074505806,
    "top_n_sigma": -1.0,
    "xtc_probability": 0.0,
    "xtc_threshold": 0.10000000149011612,
    "typical_p": 1.0,
    "repeat_last_n": 64,
    "repeat_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "dry_multiplier": 0.0,
    "dry_base": 1.75,
    "dry_allowed_length": 2,
    "dry_penalty_last_n": 64,
    "dry_sequence_breakers": ["\n", ":", '"', "*"],
    "mirostat": 0,
    "mirostat_tau": 5.0,
    "mirostat_eta": 0.10000000149011612,
    "adaptive_target": -1.0,
    "adaptive_decay": 0.8999999761581421,
    "stop": [],
    "max_tokens": -1,
    "n_predict": -1,
    "n_keep": 0,
    "n_discard": 0,
    "ignore_eos": False,
    "stream": False,
    "logit_bias": [],
    "n_probs": 0,
    "min_keep": 0,
    "grammar": "",
    "grammar_lazy": False,
    "grammar_triggers": [],
    "preserved_tokens": [],
    "chat_format": "Content-only",
    "reasoning_format": "deepseek",
    "reasoning_in_content": False,
    "generation_prompt": "",
    "samplers": ["penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature"],
    "speculative.types": "none",
    "timings_per_token": False,
    "post_sampling_probs": False,
    "backend_sampling": False,
    "lora": [],
}

# /props and /slots leave these out.
_NOT_IN_SLOTS = {
    "dry_sequence_breakers",
    "stop",
    "logit_bias",
    "grammar",
    "grammar_lazy",
    "grammar_triggers",
    "preserved_tokens",
}

CHAT_TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"

ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    500: "server_error",
    501: "not_supported_error",
    503: "unavailable_error",
}
ERROR_MESSAGES = {401: "Invalid API Key", 404: "File Not Found", 503: "Loading model"}

NOT_SUPPORTED = {
    ("POST", "/v1/embeddings"): "This server does not support embeddings. Start it with `--embeddings`",
    ("POST", "/embeddings"): "This server does not support embeddings. Start it with `--embeddings`",
    ("POST", "/embedding"): "This server does not support embeddings. Start it with `--embeddings`",
    ("POST", "/v1/rerank"): "This server does not support reranking. Start it with `--reranking`",
    ("POST", "/rerank"): "This server does not support reranking. Start it with `--reranking`",
    ("POST", "/props"): "This server does not support changing global properties. Start it with `--props`",
    ("POST", "/infill"): (
        "Infill is not supported by this model: prefix token is missing."
        " suffix token is missing. middle token is missing. "
    ),
}
NO_SLOT_ACTION = "This server does not support slots action. Start it with `--slot-save-path`"
NO_METRICS = "This server does not support metrics endpoint. Start it with `--metrics`"
NO_SLOTS = "This server does not support slots endpoint. Start it with `--slots`"

# Kind, name, help text of /metrics, in the engine's order.
METRICS: tuple[tuple[str, str, str], ...] = (
    ("counter", "prompt_tokens_total", "Number of prompt tokens processed, excluding cached tokens"),
    ("counter", "prompt_tokens_cached_total", "Number of prompt tokens reused from the cache"),
    ("counter", "prompt_seconds_total", "Total time spent processing prompts"),
    ("counter", "tokens_predicted_total", "Number of generation tokens processed"),
    ("counter", "tokens_predicted_seconds_total", "Total time spent generating tokens"),
    (
        "counter",
        "n_decode_total",
        "Total number of llama_decode() calls, excluding speculative decoding and multimodal decoding",
    ),
    ("counter", "n_tokens_max", "Largest observed sequence length (prompt + generation)"),
    ("counter", "spec_decode_num_draft_tokens_total", "Speculative: Total draft tokens generated"),
    (
        "counter",
        "spec_decode_num_accepted_tokens_total",
        "Speculative: Total draft tokens accepted by the target model",
    ),
    ("counter", "spec_decode_num_drafts_total", "Speculative: Total speculative decoding verification steps"),
    ("gauge", "prompt_tokens_seconds", "Average prompt throughput in tokens/s"),
    ("gauge", "predicted_tokens_seconds", "Average generation throughput in tokens/s"),
    ("gauge", "requests_processing", "Number of requests processing"),
    ("gauge", "requests_deferred", "Number of requests deferred"),
    ("gauge", "n_busy_slots_per_decode", "Average number of busy slots per llama_decode() call"),
)


def dump(value: Any) -> bytes:
    """JSON as the engine writes it: no spaces, UTF-8 as it is."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def float32(value: float) -> float:
    """The value as the engine keeps and echoes it."""
    return float(struct.unpack("f", struct.pack("f", value))[0])


def slot_params(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings as /slots and /props show them."""
    return {name: value for name, value in settings.items() if name not in _NOT_IN_SLOTS}


def metrics_text(values: dict[str, float]) -> bytes:
    """The body of /metrics."""
    lines = []
    for kind, name, text in METRICS:
        full = f"llamacpp:{name}"
        lines += [f"# HELP {full} {text}", f"# TYPE {full} {kind}", f"{full} {values.get(name, 0):.6g}"]
    return ("\n".join(lines) + "\n").encode()


def props(
    *, n_ctx: int, slots: int, model: str, build_info: str, sleeping: bool, tools: bool, metrics: bool, slots_on: bool
) -> bytes:
    """The body of /props."""
    params = slot_params({**SETTINGS, "reasoning_format": "none"})
    caps = {
        "supports_object_arguments": False,
        "supports_parallel_tool_calls": False,
        "supports_preserve_reasoning": False,
        "supports_reasoning_effort": False,
        "supports_string_content": True,
        "supports_system_role": True,
        "supports_tool_calls": tools,
        "supports_tools": tools,
        "supports_typed_content": False,
    }
    return dump(
        {
            "default_generation_settings": {"params": params, "n_ctx": n_ctx},
            "total_slots": slots,
            "model_alias": model,
            "model_ftype": "all F32",
            "model_path": model,
            "modalities": {"vision": False, "video": False, "audio": False},
            "media_marker": "<__media_ZpVfqZd3cAZLVIkyNQFNtrM9ufmO14aw__>",
            "endpoint_slots": slots_on,
            "endpoint_props": True,
            "endpoint_metrics": metrics,
            "ui": True,
            "ui_settings": {},
            "chat_template": CHAT_TEMPLATE,
            "chat_template_caps": caps,
            "bos_token": "<s>",
            "eos_token": "</s>",
            "build_info": build_info,
            "is_sleeping": sleeping,
            "cors_proxy_enabled": False,
        }
    )


def models(*, model: str, n_ctx: int, created: int) -> bytes:
    """The body of /v1/models: two lists, one that looks like Ollama's and one that looks like OpenAI's."""
    details = {
        "parent_model": "",
        "format": "gguf",
        "family": "",
        "families": [""],
        "parameter_size": "",
        "quantization_level": "",
    }
    like_ollama = {
        "name": model,
        "model": model,
        "modified_at": "",
        "size": "",
        "digest": "",
        "type": "model",
        "description": "",
        "tags": [""],
        "capabilities": ["completion"],
        "parameters": "",
        "details": details,
    }
    like_openai = {
        "id": model,
        "aliases": [model],
        "tags": [],
        "object": "model",
        "architecture": {"input_modalities": ["text"], "output_modalities": ["text"]},
        "created": created,
        "owned_by": "llamacpp",
        "meta": {
            "vocab_type": 1,
            "n_vocab": 283,
            "n_ctx": n_ctx,
            "n_ctx_train": 2048,
            "n_embd": 288,
            "n_params": 523296,
            "size": 2093184,
            "ftype": "all F32",
        },
    }
    return dump({"models": [like_ollama], "object": "list", "data": [like_openai]})
