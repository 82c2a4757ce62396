"""Connections that a server closes when they idle: never an error, never a second generation."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from worker_adapters import OpenAIHttpAdapter, VllmHttpAdapter
from worker_adapters.simulate import VllmSimulator

#: uvicorn closes a connection that idled so long (seconds), and says nothing of it in any header.
UVICORN = 5.0


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.parametrize("adapter", [VllmHttpAdapter, OpenAIHttpAdapter])
def test_a_thousand_jobs_around_the_idle_close(adapter):
    """1,000 jobs, each begun within 50 ms of the moment at which uvicorn closes the connection of the job before."""
    lines, jobs = 250, 4

    def line(number: int) -> int:
        """One connection's life: a job, 5 s of silence, a job; errors raise."""
        roll = random.Random(number)
        done = 0
        with adapter(server.url, model="recite", retry={"attempts": 1}) as engine:
            for _ in range(jobs):
                completion = engine.submit(f"job{number}", max_tokens=2).result()
                assert completion.text.split() == [f"job{number}"] * 2
                done += 1
                if done < jobs:
                    time.sleep(UVICORN + roll.uniform(-0.05, 0.05))
        return done

    with VllmSimulator(tokens=None, idle_timeout=UVICORN, slots=64) as server:
        with ThreadPoolExecutor(lines) as threads:
            assert sum(threads.map(line, range(lines))) == lines * jobs
        assert server.generation_requests == server.generations == lines * jobs


@pytest.mark.vllm
def test_a_connection_is_used_again_until_it_may_be_closed():
    """Jobs in a row share one connection; one that idled for longer than 4 s is not trusted."""
    with VllmSimulator(idle_timeout=UVICORN) as server, VllmHttpAdapter(server.url, model="recite") as engine:
        for _ in range(5):
            engine.submit("x", max_tokens=2).result()
        jobs = [request.connection for request in server.requests if request.method == "POST"]
        assert len(jobs) == 5
        assert len(set(jobs)) <= 2  # the first job's identity questions may leave a second one on top of the pool
