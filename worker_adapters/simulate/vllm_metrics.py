"""GET /metrics of vLLM 0.32.0, and the names of its 0.8 line.

Left out: `_created` lines, and the families of the Python process and of the HTTP layer, which tell nothing of the
engine.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

_STEPS = "0.3 0.5 0.8 1.0 1.5 2.0 2.5 5.0 10.0 15.0 20.0 30.0 40.0 50.0 60.0 120.0 240.0 480.0 960.0 1920.0 7680.0"
_COUNTS = "1.0 2.0 5.0 10.0 20.0 50.0 100.0 200.0 500.0"
_FIRST = "0.001 0.005 0.01 0.02 0.04 0.06 0.08 0.1 0.25 0.5 0.75 1.0 2.5 5.0 7.5 10.0 20.0 40.0 80.0 160.0 640.0 2560.0"
_BETWEEN = "0.01 0.025 0.05 0.075 0.1 0.15 0.2 0.3 0.4 0.5 0.75 1.0 2.5 5.0 7.5 10.0 20.0 40.0 80.0"

# name | kind | label with its values, or a histogram's bounds | figure (of each value, or a histogram's count and sum)
_FAMILIES = f"""
num_requests_running|gauge||running
num_requests_waiting|gauge||waiting
num_requests_waiting_by_reason|gauge|reason=capacity,deferred|waiting,
engine_sleep_state|gauge|sleep_state=awake,weights_offloaded,discard_all|one,,
kv_cache_usage_perc|gauge||kv
prefix_cache_queries_total|counter||prompt
prefix_cache_hits_total|counter||
external_prefix_cache_queries_total|counter||
external_prefix_cache_hits_total|counter||
mm_cache_queries_total|counter||
mm_cache_hits_total|counter||
num_preemptions_total|counter||
prompt_tokens_total|counter||prompt
prompt_tokens_by_source_total|counter|source=local_compute,local_cache_hit,external_kv_transfer|prompt,,
prompt_tokens_cached_total|counter||
prompt_tokens_cached_by_source_total|counter|source=device,host,p2p,disk,external_unspecified|,,,,
generation_tokens_total|counter||generation
request_success_total|counter|finished_reason=stop,length,abort,error,repetition|stop,length,,,
admission_rejections_total|counter|reason=max_num_queued_reqs,max_num_queued_tokens|refused,
request_prompt_tokens|histogram|{_COUNTS}|finished,finished_prompt
request_generation_tokens|histogram|{_COUNTS}|finished,finished_generation
time_to_first_token_seconds|histogram|{_FIRST}|finished,ttft
inter_token_latency_seconds|histogram|{_BETWEEN}|steps,decode
request_time_per_output_token_seconds|histogram|{_BETWEEN}|finished,decode
e2e_request_latency_seconds|histogram|{_STEPS}|finished,e2e
request_queue_time_seconds|histogram|{_STEPS}|finished,
request_inference_time_seconds|histogram|{_STEPS}|finished,e2e
request_prefill_time_seconds|histogram|{_STEPS}|finished,ttft
request_decode_time_seconds|histogram|{_STEPS}|finished,decode
"""

HELP = {
    "num_requests_running": "Number of requests in model execution batches.",
    "num_requests_waiting": "Number of requests waiting to be processed.",
    "kv_cache_usage_perc": "KV-cache usage. 1 means 100 percent usage.",
    "generation_tokens_total": "Number of generation tokens processed.",
    "request_success_total": "Count of successfully processed requests.",
    "time_to_first_token_seconds": "Histogram of time to first token in seconds.",
    "inter_token_latency_seconds": "Histogram of inter-token latency in seconds.",
    "e2e_request_latency_seconds": "Histogram of e2e request latency in seconds.",
    "cache_config_info": "Information of the LLMEngine CacheConfig",
}

CACHE_CONFIG = {
    "_block_size_resolved": "True",
    "block_size": "128",
    "cache_dtype": "auto",
    "effective_attention_block_size": "128",
    "enable_prefix_caching": "True",
    "gpu_memory_utilization": "0.92",
    "is_attention_free": "False",
    "kv_cache_layout": "None",
    "kv_cache_max_concurrency": "4096.0",
    "kv_cache_memory_bytes": "1073741824",
    "kv_cache_size_tokens": "2097152",
    "kv_offloading_backend": "native",
    "kv_offloading_size": "None",
    "num_cpu_blocks": "None",
    "num_gpu_blocks": "16384",
    "num_gpu_blocks_override": "None",
    "prefix_caching_hash_algo": "sha256",
    "sliding_window": "None",
    "user_specified_block_size": "False",
}

# The 0.8 line: other names, and families it did not have yet. Its cache_config_info told of offloaded weights.
_RENAMED = {
    "kv_cache_usage_perc": "gpu_cache_usage_perc",
    "prefix_cache_queries_total": "gpu_prefix_cache_queries_total",
    "prefix_cache_hits_total": "gpu_prefix_cache_hits_total",
    "inter_token_latency_seconds": "time_per_output_token_seconds",
}
_LATER = re.compile(
    r"(external_|mm_cache|engine_sleep|admission|request_time_per|prompt_tokens_(by|cached)|num_requests_waiting_by).*"
    r"|.*(finished_reason=\"(error|repetition)\").*"
)
OLD_CACHE_CONFIG = {
    "block_size": "16",
    "cache_dtype": "auto",
    "cpu_offload_gb": "0",
    "enable_prefix_caching": "True",
    "gpu_memory_utilization": "0.9",
    "is_attention_free": "False",
    "num_cpu_blocks": "None",
    "num_gpu_blocks": "16384",
    "num_gpu_blocks_override": "None",
    "sliding_window": "None",
    "swap_space_bytes": "4294967296",
}


def metrics_text(
    figures: Mapping[str, float], model: str, *, old: bool, extra: Mapping[str, float], labels: Mapping[str, str]
) -> bytes:
    """The body of /metrics. `extra` has further or other samples by name and own labels
    (`engine_sleep_state{sleep_state="awake"}`), `labels` those of cache_config_info."""
    lines = []
    values = {"one": 1.0, "kv": 0.01 * figures.get("running", 0), **figures}
    missing = dict(extra)
    for row in filter(None, _FAMILIES.splitlines()):
        name, kind, labelled, named = row.split("|")
        shown = _RENAMED.get(name, name) if old else name
        samples = list(_samples(shown, kind, labelled, named.split(","), values))
        samples = [(key, missing.pop(key, value)) for key, value in samples if not (old and _LATER.match(key))]
        lines += _family(shown, kind, samples, model) if samples else []
    for key in sorted(missing):
        lines += _family(key.partition("{")[0], "gauge", [(key, missing[key])], model)
    config = {**(OLD_CACHE_CONFIG if old else CACHE_CONFIG), **labels}
    told = ",".join(f'{name}="{value}"' for name, value in sorted({**config, "engine": "0"}.items()))
    lines += _head("cache_config_info", "gauge")
    lines.append(f"vllm:cache_config_info{{{told}}} 1.0")
    return ("\n".join(lines) + "\n").encode()


def _samples(
    name: str, kind: str, labelled: str, named: list[str], values: Mapping[str, float]
) -> Iterator[tuple[str, float]]:
    figures = [float(values.get(figure, 0.0)) for figure in named]
    if kind == "histogram":
        count, total = figures
        mean = total / count if count else 0.0
        for bound in labelled.split():
            yield f'{name}_bucket{{le="{bound}"}}', count if mean <= float(bound) else 0.0
        yield f'{name}_bucket{{le="+Inf"}}', count
        yield f"{name}_count", count
        yield f"{name}_sum", total
    elif labelled:
        label, _, choices = labelled.partition("=")
        for choice, value in zip(choices.split(","), figures, strict=True):
            yield f'{name}{{{label}="{choice}"}}', value
    else:
        yield name, figures[0]


def _head(name: str, kind: str) -> list[str]:
    return [f"# HELP vllm:{name} {HELP.get(name, name)}", f"# TYPE vllm:{name} {kind}"]


def _family(name: str, kind: str, samples: list[tuple[str, float]], model: str) -> list[str]:
    lines = _head(name, kind)
    for key, value in samples:
        shown, _, own = key.partition("{")
        labels = [f'model_name="{model}"', *filter(None, own.rstrip("}").split(","))]
        if not shown.startswith("admission_rejections"):
            labels.append('engine="0"')
        lines.append(f"vllm:{shown}{{{','.join(sorted(labels))}}} {float(value)}")
    return lines
