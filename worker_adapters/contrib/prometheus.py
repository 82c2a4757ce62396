"""Metrics of a host's jobs for Prometheus. Needs ``pip install "worker-adapters[prometheus]"``."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

from worker_adapters.errors import WorkerError
from worker_adapters.frames import EndFrame, StartedFrame
from worker_adapters.host.observe import JobInfo, Observer

try:
    from prometheus_client import REGISTRY, Counter, Histogram
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "prometheus_client":
        raise
    hint = 'PrometheusObserver needs prometheus_client: pip install "worker-adapters[prometheus]"'
    raise ModuleNotFoundError(hint, name=error.name) from None

#: Upper bounds of the histograms' buckets, in milliseconds.
FIRST_TOKEN_MS = (5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000)
DECODE_MS = (*FIRST_TOKEN_MS, 120_000, 300_000, 600_000)
#: What a label says where no engine was found.
NONE = "none"


class PrometheusObserver(Observer):
    """Counts jobs and tokens, and measures latencies, by pool and engine: ``AdapterHost(observers=[...])``.

    ``tasks_started_total``: an engine accepted it. ``tasks_canceled_total``: cancelled, or dropped, at any time.
    ``tasks_rejected_total`` (also by ``code``): failed before any engine accepted it. ``tokens_in_total`` and
    ``tokens_out_total``; ``latency_first_token_ms``, from when a job began to be driven, its wait for a place included;
    ``latency_decode_ms``, from the first token to the last of a job that ended by itself.

    One observer serves any number of hosts; a second one in the same registry is refused by prometheus_client.

    :param registry: where to register; None: prometheus_client's own.
    :param namespace: put before every name, with an underscore.
    :raises ValueError: the registry has metrics of these names.
    """

    def __init__(self, registry: Any = None, *, namespace: str = "") -> None:
        registry = REGISTRY if registry is None else registry
        common: dict[str, Any] = {"labelnames": ("pool", "engine"), "namespace": namespace, "registry": registry}
        registry.register(self)  # before the metrics, so that a scrape asks it before them
        try:
            self._started = Counter("tasks_started", "Jobs that an engine accepted.", **common)
            self._canceled = Counter("tasks_canceled", "Jobs that were cancelled.", **common)
            by_code = {**common, "labelnames": ("pool", "engine", "code")}
            self._rejected = Counter("tasks_rejected", "Jobs that failed before any engine accepted them.", **by_code)
            self._tokens_in = Counter("tokens_in", "Tokens of prompts, as engines count them.", **common)
            self._tokens_out = Counter("tokens_out", "Tokens of answers.", **common)
            self._first = Histogram("latency_first_token_ms", "To the first token.", buckets=FIRST_TOKEN_MS, **common)
            self._decode = Histogram("latency_decode_ms", "First token to last.", buckets=DECODE_MS, **common)
        except ValueError:
            registry.unregister(self)
            raise
        #: Cancelled ends that are not counted yet. prometheus_client's locks may be held by the very thread in which
        #: the garbage collector, or a signal handler, ends a job; so a cancel is only noted, and counted at the next
        #: event or scrape.
        self._ends: deque[tuple[tuple[str, str], EndFrame]] = deque()

    def on_start(self, info: JobInfo, started: StartedFrame) -> None:
        self._count_ends()
        self._started.labels(*_labels(info)).inc()

    def on_first_token(self, info: JobInfo, waited_ms: float) -> None:
        self._first.labels(*_labels(info)).observe(waited_ms)

    def on_end(self, info: JobInfo, end: EndFrame) -> None:
        self._ends.append((_labels(info), end))
        if end.finish_reason != "cancelled":
            self._count_ends()

    def on_error(self, info: JobInfo, error: WorkerError) -> None:
        self._count_ends()
        if info.engine_version is None:
            self._rejected.labels(*_labels(info), error.code).inc()
        else:
            self._tokens_out.labels(*_labels(info)).inc(error.tokens_seen)

    def _count_ends(self) -> None:
        while self._ends:
            try:
                labels, end = self._ends.popleft()
            except IndexError:  # another thread took it
                return
            told = end.metrics
            if end.finish_reason == "cancelled":
                self._canceled.labels(*labels).inc()
            elif told.decode_ms is not None:
                self._decode.labels(*labels).observe(told.decode_ms)
            if told.tokens_in:
                self._tokens_in.labels(*labels).inc(told.tokens_in)
            if told.tokens_out:
                self._tokens_out.labels(*labels).inc(told.tokens_out)

    # --- as a collector of the registry

    def collect(self) -> Iterable[Any]:
        """Nothing of its own: what is noted is counted before the metrics themselves are asked."""
        self._count_ends()
        return []

    def describe(self) -> Iterable[Any]:
        """Nothing of its own."""
        return []


def _labels(info: JobInfo) -> tuple[str, str]:
    """Few values each: pools are the program's, engines the catalog's. Never a job, a session or a model."""
    return info.pool, info.engine or NONE
