"""The real Triton under many jobs, threads and forks: nothing is lost or crossed, nothing keeps a process alive."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from json import JSONDecodeError
from typing import Any

import pytest

from engines.llamacpp_bench import SOON, at_once, forked, milliseconds, take, text_of, until, usual
from real_triton.conftest import BOTH, TEXT, prompt
from real_triton.server import RealTriton
from worker_adapters import EngineUnavailable, WorkerAdapter

pytestmark = [pytest.mark.engines, pytest.mark.real_triton, BOTH]

Make = Callable[..., Any]
Figures = Callable[[str, object], None]

#: Python 3.12 and later say so of every fork in a process with threads.
FORKS = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")


def run_jobs(engine: WorkerAdapter, name: str, count: int) -> int:
    """Jobs one after the other, each with an answer that it alone can have; how many were right.

    :raises AssertionError: an answer that is another job's.
    """
    for number in range(count):
        text = f"{name} and {number}"
        done = engine.submit(f"!echo {text}", job_id=f"{name}-{number}").result()
        assert (done.text, done.job_id, done.finish_reason) == (text, f"{name}-{number}", "stop")
    return count


def test_64_threads_of_50_jobs(triton: RealTriton, make: Make, transport: str, record_property: Figures) -> None:
    """64 threads with 50 jobs each on one adapter: 3,200 right answers, none of them another job's, each made once."""
    engine = make(transport, timeouts={"first_token": 100, "connect": 30})
    before = triton.metric("nv_inference_request_success", "recite")
    began = time.monotonic()
    errors = at_once([lambda name=name: run_jobs(engine, f"t{name}", 50) for name in range(64)])
    record_property(f"64 threads x 50 jobs ({transport})", f"{time.monotonic() - began:.1f} s")
    assert errors == []
    until(lambda: triton.metric("nv_inference_request_success", "recite") - before >= 3200)
    assert triton.metric("nv_inference_request_success", "recite") - before == 3200


def test_jobs_beside_questions(make: Make, transport: str) -> None:
    """Health, props and jobs of eight threads share an adapter without harm."""
    engine = make(transport, timeouts={"first_token": 100})

    def mixed(name: str) -> None:
        for number in range(10):
            assert engine.health(timeout=30).ready
            run_jobs(engine, f"{name}-{number}", 2)
            assert engine.props().model == "recite"

    assert at_once([lambda name=name: mixed(name) for name in "abcdefgh"]) == []


@FORKS
def test_a_warm_adapter_works_on_both_sides_of_a_fork(make: Make, transport: str, record_property: Figures) -> None:
    """Parent and child use the adapter at the same time after a fork, 500 jobs each, and every answer is right."""
    engine = make(transport, timeouts={"first_token": 100})
    assert engine.health().ready
    run_jobs(engine, "before", 5)
    began = time.monotonic()
    child = forked(lambda: [run_jobs(engine, "child", 500), engine.props().model])
    mine = run_jobs(engine, "parent", 500)
    assert child() == [500, "recite"]
    assert mine == 500
    record_property(f"500 jobs on each side of a fork ({transport})", f"{time.monotonic() - began:.1f} s")


@FORKS
def test_forks_beside_running_jobs(make: Make, transport: str, record_property: Figures) -> None:
    """Children that are forked while other threads have jobs in flight do their own, and disturb nobody's. Over gRPC
    they may find grpc's own state unusable and be aborted by it, but they never get an answer of others.
    """
    engine = make(transport, timeouts={"first_token": 100})
    run_jobs(engine, "before", 1)
    children: list[Callable[[], Any]] = []

    def child(name: str) -> int:
        signal.alarm(20)  # a child that hangs ends
        return run_jobs(engine, name, 5)

    def forks() -> None:
        children.extend(forked(lambda number=number: child(f"child{number}")) for number in range(5))

    workers: list[Callable[[], object]] = [lambda name=name: run_jobs(engine, f"w{name}", 60) for name in range(4)]
    assert at_once([*workers, forks]) == []
    lost = 0
    for each in children:
        try:
            assert each() == 5
        except JSONDecodeError:  # it could not say anything any more
            lost += 1
    record_property(f"children of 5 forks beside running jobs that were aborted ({transport})", lost)
    assert lost == 0 or transport == "grpc"


@FORKS
def test_an_inherited_stream(make: Make, transport: str) -> None:
    """In the child a stream of the parent raises, whatever is done with it, and the parent's goes on undisturbed."""
    engine = make(transport)
    stream = engine.submit(prompt("endless", "delay=0.01"), max_tokens=100, job_id="inherited")
    frames = take(stream, 5)

    def child() -> list[Any]:
        said: list[Any] = [engine.cancel("inherited"), stream.cancel()]
        for use in (stream.__next__, stream.result, lambda: next(stream.ticks(0.1)), stream.start):
            try:
                use()
                said.append("no error")
            except EngineUnavailable as error:
                said.append("fork" in str(error))
        said.append([frame.type for frame in stream.relay()])
        stream.close()
        said.append(engine.submit(prompt()).result().text)
        return said

    ask_child = forked(child)
    frames += take(stream, 20)
    assert ask_child() == [False, False, True, True, True, True, ["error"], TEXT]
    frames += list(stream)
    assert frames[-1].type == "end"
    assert text_of(frames).startswith(TEXT + " The quick")


ABANDONS = """
import sys
from worker_adapters import connect
engine = connect("triton", sys.argv[1], model="recite")
stream = engine.submit("!endless !delay=0.01 abandoned", max_tokens=100000)
for _ in range(4):
    next(stream)
if sys.argv[2] == "unread":
    waits = engine.submit("!first=1 abandoned", max_tokens=5)
    assert next(waits.ticks(0.3)) is None
print("going", flush=True)
"""


@pytest.mark.parametrize("how", ["read", "unread"])
def test_an_abandoned_stream_keeps_no_process_alive(
    triton: RealTriton, transport: str, how: str, record_property: Figures
) -> None:
    """A program that comes to its end with a stream in the middle ends at once, and the model is told."""
    url = triton.url if transport == "http" else triton.grpc_url
    took = []
    # A matter of which thread has what lock when the program ends: one try proves nothing.
    for _ in range(8 if (transport, how) == ("grpc", "read") else 1):
        command = [sys.executable, "-W", "ignore", "-c", ABANDONS, url, how]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            going = process.stdout.readline()
            began = time.monotonic()
            try:
                status = process.wait(SOON)
            finally:
                process.kill()
            took.append(time.monotonic() - began)
            said = process.stderr.read()
        assert (going, status, said) == ("going\n", 0, "")
    record_property(f"abandoned stream ({how}) -> the process has ended ({transport})", milliseconds(took))
    assert usual(took) < 2
    until(lambda: not triton.running())
