"""GET /metrics of TGI's router: a metric exists once it was touched.

Left out: the buckets of histograms (their sum and count are there), and what the shards tell of single steps.
"""

from __future__ import annotations

from collections.abc import Mapping

_HISTOGRAMS = (
    "tgi_request_duration",
    "tgi_request_validation_duration",
    "tgi_request_queue_duration",
    "tgi_request_inference_duration",
    "tgi_request_mean_time_per_token_duration",
    "tgi_request_generated_tokens",
    "tgi_request_input_length",
    "tgi_request_max_new_tokens",
)


class Metrics:
    """Counters and histograms; not safe for threads by itself."""

    def __init__(self) -> None:
        self._counters: dict[str, int] = {}
        self._sums: dict[str, tuple[float, int]] = {}

    def count(self, name: str, label: str = "") -> None:
        """One more; `label` as it is written, `err="validation"`."""
        key = f"{name}{{{label}}}" if label else name
        self._counters[key] = self._counters.get(key, 0) + 1

    def record(self, name: str, value: float) -> None:
        """One more value of a histogram."""
        total, number = self._sums.get(name, (0.0, 0))
        self._sums[name] = (total + value, number + 1)

    def text(self, gauges: Mapping[str, float]) -> bytes:
        """The body of /metrics: counters, gauges, histograms."""
        lines: list[str] = []
        kinds: dict[str, list[str]] = {}
        for key in sorted(self._counters):
            kinds.setdefault(key.partition("{")[0], []).append(f"{key} {self._counters[key]}")
        for name, samples in kinds.items():
            lines += [f"# TYPE {name} counter", *samples, ""]
        for name, value in gauges.items():
            lines += [f"# TYPE {name} gauge", f"{name} {value:g}", ""]
        for name in _HISTOGRAMS:
            if name in self._sums:
                total, number = self._sums[name]
                bucket = f'{name}_bucket{{le="+Inf"}} {number}'
                added = f"{name}_sum {repr(total).removesuffix('.0')}"
                lines += [f"# TYPE {name} histogram", bucket, added, f"{name}_count {number}", ""]
        return "".join(line + "\n" for line in lines).encode()
