"""The host over two real llama.cpp servers: one dies under load and comes back."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from engines.llamacpp_bench import PATIENCE, SOON, milliseconds, until, usual
from worker_adapters import AdapterHost, EngineUnavailable, Job, StreamTruncated, connect
from worker_adapters.embedded import EmbeddedLlamaCpp

pytestmark = [pytest.mark.engines, pytest.mark.llamacpp]

Figures = Callable[[str, object], None]
#: More than any test reads.
MANY = 100_000
JOBS = 32
#: Faults in a row that open a breaker, and how long it then stays open (seconds).
FAILURES = 3
OPEN_FOR = 0.5


class Stage:
    """Two servers in one pool."""

    def __init__(self, servers: list[EmbeddedLlamaCpp], host: AdapterHost) -> None:
        self.servers = servers
        self.host = host

    def replica(self, name: str) -> dict[str, Any]:
        """What the host knows of one."""
        return self.host.props()["chat"][name]


@pytest.fixture
def stage(cyclic: Path) -> Iterator[Stage]:
    """Both with slots for all the jobs of a test."""
    with ExitStack() as stack:
        options: dict[str, Any] = {"slots": JOBS, "context": JOBS * 256, "extra": {"n_threads_http": 2 * JOBS}}
        servers = [stack.enter_context(EmbeddedLlamaCpp(cyclic, **options)) for _ in range(2)]
        breaker = {"failures": FAILURES, "open_for": OPEN_FOR, "open_most": OPEN_FOR}
        host = stack.enter_context(AdapterHost(breaker=breaker))
        for number, server in enumerate(servers):
            host.bind("chat", f"r{number}", connect("llamacpp", server.url))
        yield Stage(servers, host)
    assert host.jobs() == []


class Consumer(threading.Thread):
    """Reads a dispatched job, and notes where it ran and how it ended."""

    def __init__(self, job: Job) -> None:
        super().__init__(daemon=True)
        self.job = job
        self.tokens = 0
        self.text = ""
        self.replica: str | None = None
        self.error: BaseException | None = None
        self.ended_at = 0.0

    def run(self) -> None:
        try:
            for frame in self.job:
                if frame.type == "token":
                    self.tokens += 1
                    self.text += frame.text
        except Exception as error:
            self.error = error
        self.ended_at = time.monotonic()


def places(host: AdapterHost) -> dict[str, str | None]:
    """Where the jobs in flight are."""
    return {info.job_id: info.replica for info in host.jobs()}


def test_one_of_two_dies_under_load(stage: Stage, record_property: Figures) -> None:
    """Its jobs end at once with a typed error, the other's go on, new ones go there, and it takes load again later."""
    host, first = stage.host, stage.servers[0]
    readers = [
        Consumer(host.dispatch("Go", pool="chat", stream=True, max_tokens=MANY if number % 2 else 120))
        for number in range(JOBS)
    ]
    for reader in readers:
        reader.start()
    until(lambda: all(reader.tokens for reader in readers), every=0.01)
    where = places(host)
    assert Counter(where.values()) == {"r0": JOBS // 2, "r1": JOBS // 2}
    mourners = [reader for reader in readers if where[reader.job.job_id] == "r0"]
    killed = time.monotonic()
    first.kill()

    # the next jobs, while the host has not yet learned of it
    fresh = [host.dispatch("Go", pool="chat", max_tokens=10) for _ in range(JOBS)]
    results = [job.exception(PATIENCE) for job in fresh]
    assert {type(error) for error in results if error is not None} <= {EngineUnavailable, StreamTruncated}
    lost = sum(error is not None for error in results)
    for job, error in zip(fresh, results, strict=True):
        assert error is not None or job.result().metrics.tokens_out == 10

    for reader in mourners:
        reader.join(PATIENCE)
        assert isinstance(reader.error, StreamTruncated)
        assert reader.tokens == reader.error.tokens_seen
        assert reader.text == reader.error.partial_text
    learned = [reader.ended_at - killed for reader in mourners]
    assert usual(learned) < 5
    assert stage.replica("r0")["breaker"] == "open" or not stage.replica("r0")["ready"]

    # new jobs find the other one, and those that were there are whole
    assert [host.dispatch("Go", pool="chat", max_tokens=10).exception(PATIENCE) for _ in range(10)] == [None] * 10
    for reader in readers:
        if reader not in mourners and reader.job.job_id in places(host):
            assert reader.error is None
    assert host.cancel_all() > 0
    for reader in readers:
        reader.join(PATIENCE)
        assert not reader.is_alive()
        assert reader in mourners or reader.error is None
        assert reader.tokens

    # it comes back on its port
    first.start()
    back = time.monotonic()
    until(lambda: _takes_load(host), every=0.05)
    returned = time.monotonic() - back
    assert stage.replica("r0")["breaker"] == "closed"
    record_property(f"{JOBS} jobs on two llama.cpp, one killed: its {len(mourners)} know after", milliseconds(learned))
    record_property(f"{JOBS} new jobs right after the kill: lost", lost)
    record_property("revived -> takes load again", f"{returned * 1000:.0f} ms")


def _takes_load(host: AdapterHost) -> bool:
    """Does a job of two at once end on the first replica?"""
    jobs = [host.dispatch("Go", pool="chat", stream=True, max_tokens=20) for _ in range(2)]
    for job in jobs:
        assert next(iter(job)).type == "started"
    found = "r0" in places(host).values()
    assert [job.exception(PATIENCE) for job in jobs] == [None] * 2
    return found


def test_few_jobs_meet_a_dead_engine(stage: Stage, record_property: Figures, caplog: pytest.LogCaptureFixture) -> None:
    """Two at a time, no job is lost to an engine that is gone, and only the first few even try it."""
    host = stage.host
    caplog.set_level(logging.INFO, "worker_adapters.plan")
    assert host.submit("Go", pool="chat", max_tokens=2).result().finish_reason == "length"
    stage.servers[0].kill()
    took = []
    for _ in range(10):
        began = time.monotonic()
        pair = [host.dispatch("Go", pool="chat", max_tokens=2) for _ in range(2)]  # one for each
        for job in pair:
            assert job.result(PATIENCE).finish_reason == "length"
            took.append(time.monotonic() - began)
    tried = sum("trying again" in record.getMessage() for record in caplog.records)
    record_property("20 jobs beside a dead replica", f"{milliseconds(took)}; {tried} tried it first")
    assert 1 <= tried <= FAILURES + 2  # a trial now and then while it is gone
    assert usual(took) < 5


def test_both_die(stage: Stage) -> None:
    """With no engine left a job is refused at once, with when to come back; with one back, jobs run again."""
    for server in stage.servers:
        server.kill()
    refusals = []
    for _ in range(8):
        began = time.monotonic()
        with pytest.raises(EngineUnavailable) as caught:
            stage.host.submit("Go", pool="chat").start()
        refusals.append((caught.value, time.monotonic() - began))
    error, took = refusals[-1]
    assert (error.phase, error.retriable) == ("queue", True)
    assert error.retry_after_ms
    assert took < SOON
    stage.servers[1].start()

    def works() -> bool:
        try:
            return stage.host.submit("Go", pool="chat", max_tokens=2).result().finish_reason == "length"
        except EngineUnavailable:
            return False

    until(works)
