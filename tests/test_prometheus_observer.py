"""The Prometheus observer, read as Prometheus reads it: from the text of a scrape."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from worker_adapters import AdapterHost, CapacityExceeded, EngineUnavailable, MockAdapter
from worker_adapters.contrib.prometheus import PrometheusObserver

pytestmark = pytest.mark.mock

SOON = 20.0  # seconds that nothing here needs
CHAT = {"pool": "chat", "engine": "mock"}
FULL = CapacityExceeded(message="full")
GONE = EngineUnavailable(message="gone")


class Scraped:
    """A registry with an observer, and what a scrape of it says."""

    def __init__(self, **options: Any) -> None:
        self.registry = CollectorRegistry()
        self.observer = PrometheusObserver(self.registry, **options)

    def samples(self) -> dict[str, list[tuple[dict[str, str], float]]]:
        """Name -> labels and value, less when each was created."""
        found: dict[str, list[tuple[dict[str, str], float]]] = {}
        for family in text_string_to_metric_families(generate_latest(self.registry).decode()):
            for sample in family.samples:
                found.setdefault(sample.name, []).append((dict(sample.labels), sample.value))
        return {name: values for name, values in found.items() if not name.endswith("_created")}

    def value(self, name: str, **labels: str) -> float | None:
        """One sample; None if it is not there."""
        return next((value for told, value in self.samples().get(name, ()) if told == {**CHAT, **labels}), None)


def hosting(scraped: Scraped, adapter: Any = None, **options: Any) -> AdapterHost:
    """A host of one replica that the observer watches."""
    host = AdapterHost(**{"observers": [scraped.observer], "retry": {"attempts": 1}, **options})
    host.bind("chat", "r0", MockAdapter() if adapter is None else adapter)
    return host


def test_a_job_that_ends_is_counted_once() -> None:
    """One start, its tokens in and out, one first token, one decode; nothing cancelled, nothing rejected."""
    scraped = Scraped()
    with hosting(scraped) as host:
        host.submit("two words", pool="chat").result()
        host.dispatch("two words", pool="chat").result(SOON)
    assert scraped.value("tasks_started_total") == 2
    assert scraped.value("tokens_in_total") == 4
    assert scraped.value("tokens_out_total") == 10
    assert scraped.value("latency_first_token_ms_count") == 2
    assert scraped.value("latency_decode_ms_count") == 2
    assert scraped.value("latency_decode_ms_bucket", le="600000.0") == 2
    assert "tasks_canceled_total" not in scraped.samples()
    assert "tasks_rejected_total" not in scraped.samples()


def test_a_cancelled_job_is_counted_where_it_was() -> None:
    """With its engine if it had one, with none if it waited; its tokens count, its decode does not."""
    scraped = Scraped()
    with hosting(scraped, MockAdapter(endless=True)) as host:
        with host.submit("hi", pool="chat", job_id="j") as stream:
            for frame in stream:
                if frame.type == "token" and frame.index == 2:
                    assert host.cancel("j")
        unread = host.submit("hi", pool="chat")
        unread.cancel()
        assert unread.result().cancelled
    assert scraped.value("tasks_started_total") == 1
    assert scraped.value("tasks_canceled_total") == 1
    assert scraped.value("tasks_canceled_total", engine="none") == 1
    assert scraped.value("tokens_out_total") == 3
    assert scraped.value("latency_decode_ms_count") is None


@pytest.mark.parametrize(
    ("adapter", "rejected", "tokens"),
    [
        (MockAdapter(error=FULL), {"code": "CAPACITY_EXCEEDED"}, None),
        (MockAdapter(error=GONE, error_after=2), None, 2),
    ],
)
def test_a_failed_job_is_rejected_only_if_no_engine_had_it(adapter: Any, rejected: Any, tokens: float | None) -> None:
    """A refusal counts by its code; what came before a failure counts as tokens."""
    scraped = Scraped()
    with hosting(scraped, adapter) as host:
        host.dispatch("hi", pool="chat").exception(SOON)
    assert scraped.value("tokens_out_total") == tokens
    assert scraped.samples().get("tasks_rejected_total") == (rejected and [({**CHAT, **rejected}, 1.0)])


def test_what_the_pool_refuses_has_no_engine() -> None:
    """No replica: rejected, with the engine none."""
    scraped = Scraped()
    with hosting(scraped) as host:
        stream = host.submit("hi", pool="chat")
        host.unbind("chat", "r0")
        with pytest.raises(EngineUnavailable):
            stream.start()
    assert scraped.value("tasks_rejected_total", engine="none", code="ENGINE_UNAVAILABLE") == 1


def test_labels_are_few() -> None:
    """Whatever users choose (ids, sessions, models) makes no new series."""
    scraped = Scraped()
    with hosting(scraped) as host:
        for number in range(50):
            names = {name: f"{name}-{number}" for name in ("job_id", "session_id", "correlation_id", "model")}
            host.submit("hi", pool="chat", **names).result()
    for name, values in scraped.samples().items():
        assert {frozenset(labels) - {"le"} for labels, _ in values} == {frozenset({"pool", "engine"})}, name
        assert len({labels.get("le") for labels, _ in values}) == len(values), name


def test_names_are_exactly_these() -> None:
    """The names of the metrics are fixed; a namespace goes before each."""
    names = [
        "latency_decode_ms",
        "latency_first_token_ms",
        "tasks_canceled",
        "tasks_rejected",
        "tasks_started",
        "tokens_in",
        "tokens_out",
    ]
    for namespace in ("", "llm"):
        scraped = Scraped(namespace=namespace)
        families = text_string_to_metric_families(generate_latest(scraped.registry).decode())
        prefix = f"{namespace}_" if namespace else ""
        assert sorted(family.name for family in families) == [prefix + name for name in names]


def test_one_observer_serves_many_hosts_and_a_second_one_is_refused() -> None:
    """Series add up over hosts; a registry takes one observer, and is as before when it refuses another."""
    scraped = Scraped()
    for _ in range(2):
        with hosting(scraped) as host:
            host.submit("hi", pool="chat").result()
    with pytest.raises(ValueError, match="Duplicated"):
        PrometheusObserver(scraped.registry)
    assert scraped.value("tasks_started_total") == 2
    PrometheusObserver(scraped.registry, namespace="second")


def test_threads_lose_no_count() -> None:
    """Jobs that end and are cancelled on many threads at once are all counted, while somebody scrapes."""
    scraped, over = Scraped(), threading.Event()

    def scrape() -> None:
        while not over.is_set():
            scraped.samples()

    scraper = threading.Thread(target=scrape)
    scraper.start()
    with hosting(scraped, max_workers=8) as host:
        jobs = [host.dispatch("hi", pool="chat") for _ in range(200)]
        for job in jobs[::4]:
            job.cancel()
        completions = [job.result(SOON) for job in jobs]
    over.set()
    scraper.join()
    cancelled = [done for done in completions if done.cancelled]
    told = scraped.samples()
    assert sum(value for _, value in told.get("tasks_canceled_total", ())) == len(cancelled)
    assert scraped.value("latency_decode_ms_count") == 200 - len(cancelled)
    assert scraped.value("tokens_out_total") == sum(done.metrics.tokens_out for done in completions)


def test_a_job_that_ends_below_the_clients_own_locks_stops_nothing() -> None:
    """The collector or a signal handler may end a job while this thread is inside prometheus_client."""
    scraped = Scraped()
    with hosting(scraped, MockAdapter(endless=True)) as host:
        stream = host.submit("hi", pool="chat")
        stream.start()
        before = signal.signal(signal.SIGUSR1, lambda number, frame: stream.close())

        class Interrupting:
            """A collector that is asked while the registry is read."""

            def collect(self) -> list[Any]:
                counter = scraped.observer._canceled
                with counter._lock:  # the client's own, a plain one
                    signal.raise_signal(signal.SIGUSR1)
                return []

            def describe(self) -> list[Any]:
                return []

        interrupting = Interrupting()
        try:
            scraped.registry.register(interrupting)
            scraped.samples()
        finally:
            scraped.registry.unregister(interrupting)
            signal.signal(signal.SIGUSR1, before)
        assert scraped.value("tasks_canceled_total") == 1


def test_without_the_client_the_extra_is_named() -> None:
    """Importing the module says what to install; importing the package does not need it."""
    program = (
        "import sys; sys.modules['prometheus_client'] = None\n"
        "import worker_adapters; worker_adapters.AdapterHost\n"
        "import worker_adapters.contrib.prometheus\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=SOON)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == (
        'ModuleNotFoundError: PrometheusObserver needs prometheus_client: pip install "worker-adapters[prometheus]"'
    )


def test_a_host_loads_no_client() -> None:
    """Neither the package nor a host loads prometheus_client or contrib."""
    program = (
        "import sys, worker_adapters\n"
        "with worker_adapters.AdapterHost() as host: pass\n"
        "print([name for name in sys.modules if 'prometheus_client' in name or 'contrib' in name])\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=SOON)
    assert (ended.stdout, ended.stderr) == ("[]\n", "")
