"""The real vLLM under many jobs and threads: nothing is lost, nothing crossed, nothing generated twice."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from engines.llamacpp_bench import at_once
from real_vllm.conftest import TEXT
from real_vllm.door import Door
from real_vllm.server import RealVllm
from worker_adapters import VllmHttpAdapter

pytestmark = [pytest.mark.engines, pytest.mark.real_vllm]

Make = Callable[..., Any]
Figures = Callable[[str, object], None]


def run_jobs(engine: VllmHttpAdapter, name: str, count: int) -> None:
    """Jobs one after the other, every other a conversation, each with an answer that it alone can have."""
    for number in range(count):
        text = f"{name}-{number}"
        task: Any = "Go" if number % 2 else [{"role": "user", "content": "Go"}]
        fields: dict[str, Any] = {"extra": {"structured_outputs": {"regex": text}}, "temperature": 0}
        done = engine.submit(task, job_id=text, **fields).result()
        assert (done.text, done.job_id, done.finish_reason) == (text, text, "stop")


def test_64_threads_of_50_jobs(plain: RealVllm, make: Make, record_property: Figures) -> None:
    """64 threads with 50 jobs each on one adapter: 3,200 right answers, none of them another job's, each made once."""
    engine = make(VllmHttpAdapter, plain.url, timeouts={"first_token": 100, "connect": 30})
    before = plain.metric("request_success_total")
    began = time.monotonic()
    errors = at_once([lambda name=name: run_jobs(engine, f"t{name}", 50) for name in range(64)])
    record_property("64 threads x 50 jobs", f"{time.monotonic() - began:.1f} s")
    assert errors == []
    assert plain.metric("request_success_total") - before == 3200


def test_jobs_about_the_end_of_idle_connections(plain: RealVllm, make: Make, record_property: Figures) -> None:
    """uvicorn closes a connection 5 s after its last answer: jobs that come just then all succeed, and run once."""
    clients, rounds = 50, 4
    engine = make(VllmHttpAdapter, plain.url, max_idle=clients, timeouts={"first_token": 100})
    before = plain.metric("request_success_total"), plain.metric("prompt_tokens_total")
    ready = threading.Barrier(clients)
    pause = threading.Event()

    def client(number: int) -> None:
        for turn in range(rounds):
            if turn:
                pause.wait(4.9 + 0.2 * number / clients)
            else:
                ready.wait(30)
            assert engine.submit("Go", temperature=0).result().text == TEXT

    assert at_once([lambda number=number: client(number) for number in range(clients)]) == []
    jobs = clients * rounds
    assert plain.metric("request_success_total") - before[0] == jobs
    assert plain.metric("prompt_tokens_total") - before[1] == jobs * 3
    record_property("jobs 4.9 to 5.1 s apart", f"{jobs}, each generated once")


def test_jobs_in_a_row_share_a_connection(plain: RealVllm, make: Make, record_property: Figures) -> None:
    """Jobs of a session go one after the other over the same connection."""
    door = make(Door, plain.port)
    engine = make(VllmHttpAdapter, door.url)
    said = [{"role": "user", "content": "Go"}]
    took = []
    for turn in range(6):
        began = time.monotonic()
        done = engine.submit(said, session_id="mine", temperature=0).result()
        took.append(time.monotonic() - began)
        assert done.text == TEXT
        said = [*said[-2:], {"role": "assistant", "content": f"turn {turn}"}, {"role": "user", "content": "More"}]
    assert door.count("POST /v1/chat") == 6
    assert door.connections <= 2  # the first job also asks for version and model, while its own stream goes on
    record_property("a job of 24 tokens, whole", f"p50 {statistics.median(took) * 1000:.1f} ms, n={len(took)}")


def test_jobs_beside_questions(plain: RealVllm, make: Make) -> None:
    """Health, props and jobs of eight threads share an adapter and its connections without harm."""
    engine = make(VllmHttpAdapter, plain.url, timeouts={"first_token": 100})

    def mixed(name: str) -> None:
        for number in range(10):
            assert engine.health(timeout=30).ready
            run_jobs(engine, f"{name}-{number}", 2)
            assert engine.props().engine_version == "0.32.0"

    assert at_once([lambda name=name: mixed(name) for name in "abcdefgh"]) == []
