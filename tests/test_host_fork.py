"""A host before and after a fork: both sides work, and nothing of the parent's jobs is the child's."""

import gc
import os
import signal
import threading
import time
import traceback
import warnings

import pytest

from worker_adapters import AdapterHost, EngineUnavailable, LlamaCppHttpAdapter, MockAdapter
from worker_adapters.simulate import LlamaCppSimulator

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    pytest.mark.filterwarnings("ignore:This process.*fork:DeprecationWarning"),
]
SOON = 10.0  # what is expected at once may take so long on a busy machine
LATE = 60  # seconds after which a child that hangs is killed


def in_child(act):
    """Runs ``act`` in a forked child; how it went there."""
    child = os.fork()
    if not child:
        signal.alarm(LATE)
        code = 1
        try:
            act()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def until(true):
    """Waits until it is so."""
    give_up = time.monotonic() + SOON
    while not true():
        assert time.monotonic() < give_up
        time.sleep(0.002)


def works(host):
    """Everything a host does, a few times."""
    for number in range(5):
        assert host.submit("x", pool="chat").result().finish_reason == "stop"
        job = host.dispatch("x", pool="chat", stream=number % 2 == 0)
        assert job.result(SOON).finish_reason == "stop"
    assert len(list(host.map(["x"] * 10, pool="chat", window=4))) == 10
    cancelled = host.dispatch("x", pool="chat")
    cancelled.cancel()
    cancelled.result(SOON)
    assert host.jobs() == []
    assert len(host._jobs) == 0


def test_a_host_works_on_both_sides():
    """With warm connections, idle workers and everything known of the engine."""
    with LlamaCppSimulator() as engine, AdapterHost() as host:
        host.bind("chat", "r0", LlamaCppHttpAdapter(engine.url), max_in_flight=2)
        works(host)
        assert in_child(lambda: works(host)) == 0
        works(host)
        assert engine.wait_idle(SOON)


def test_an_inherited_stream_is_its_parents():
    """It raises in the child, where its place is free; dropping it there changes nothing; the parent reads on."""
    with LlamaCppSimulator(delay=0.01) as engine, AdapterHost() as host:
        host.bind("chat", "r0", LlamaCppHttpAdapter(engine.url), max_in_flight=1)
        kept = [host.submit("x", pool="chat")]
        kept[0].start()
        name = kept[0].job_id

        def child():
            with pytest.raises(EngineUnavailable, match="before a fork"):
                next(kept[0])
            assert host.jobs() == []
            assert host.cancel(name) is False
            assert host.cancel_all() == 0
            assert host.props()["chat"]["r0"]["in_flight"] == 0
            again = host.submit("x", pool="chat", job_id=name)  # the name is free here
            again.start()
            kept.clear()
            gc.collect()
            assert host.props()["chat"]["r0"]["in_flight"] == 1
            assert [info.job_id for info in host.jobs()] == [name]
            assert again.result().finish_reason == "stop"
            assert host.props()["chat"]["r0"]["in_flight"] == 0
            host.close()

        assert in_child(child) == 0
        assert host.props()["chat"]["r0"]["in_flight"] == 1
        assert kept[0].result().finish_reason == "stop"


def test_an_inherited_job_is_its_parents():
    """Nothing would ever end it in the child: it says so instead of letting one wait."""
    with AdapterHost(max_workers=1) as host:
        host.bind("chat", "r0", MockAdapter(silent_after=1))
        running = host.dispatch("x", pool="chat", stream=True)
        queued = host.dispatch("x", pool="chat")
        until(running.running)

        def child():
            for job in (running, queued):
                assert job.cancel() is False
                assert job.cancelled() is False
                for ask in (job.result, job.exception):
                    with pytest.raises(EngineUnavailable, match="before a fork"):
                        ask(SOON)
            with pytest.raises(EngineUnavailable, match="before a fork"):
                list(running)
            host.bind("chat", "r1", MockAdapter())
            assert host.dispatch("x", pool="chat", replica="r1").result(SOON).finish_reason == "stop"
            host.close()

        assert in_child(child) == 0
        assert running.cancel()
        assert queued.cancel()
        assert running.result(SOON).cancelled
        assert queued.result(SOON).cancelled


def test_a_job_that_had_ended_is_everybodys():
    """Its result was there before the fork."""
    with AdapterHost() as host:
        host.bind("chat", "r0", MockAdapter())
        job = host.dispatch("x", pool="chat", stream=True)
        text = job.result(SOON).text

        def child():
            assert job.result(SOON).text == text
            assert [frame.type for frame in job] == ["started", *["token"] * 5, "end"]

        until(lambda: not host.jobs())
        assert in_child(child) == 0
        assert [frame.type for frame in job] == ["started", *["token"] * 5, "end"]


def test_those_who_wait_and_a_trial_are_the_parents():
    """In the child nobody waits, and a half-open breaker lets its own job try."""
    adapter = MockAdapter(error=EngineUnavailable(message="dead"), fail_first=1)
    with AdapterHost(breaker={"failures": 1, "open_for": 0.05}, retry={"attempts": 1}) as host:
        host.bind("chat", "r0", adapter, max_in_flight=1)
        with pytest.raises(EngineUnavailable, match="dead"):
            host.submit("x", pool="chat").result()
        time.sleep(0.1)
        adapter._settings["first_delay"] = 0.3
        trial = host.dispatch("x", pool="chat")
        until(lambda: host.props()["chat"]["r0"]["breaker"] == "half_open")

        def child():
            adapter._settings["first_delay"] = 0.0
            assert host.submit("x", pool="chat").result().finish_reason == "stop"
            assert host.props()["chat"]["r0"]["breaker"] == "closed"

        assert in_child(child) == 0
        assert trial.result(SOON).finish_reason == "stop"


def test_a_fork_amid_the_work_of_many_threads():
    """Whatever lock they hold just then: the child's host is as new, and the parent's goes on."""
    stop, ended = threading.Event(), []
    with AdapterHost(max_workers=8) as host:
        for number in range(2):
            host.bind("chat", f"r{number}", MockAdapter(), max_in_flight=2)

        def busy():
            while not stop.is_set():
                ended.append(host.dispatch("x", pool="chat", stream=len(ended) % 2 == 0).result(SOON).finish_reason)
                ended.append(host.submit("x", pool="chat", priority="batch").result().finish_reason)

        threads = [threading.Thread(target=busy) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            codes = [in_child(lambda: works(host)) for _ in range(12)]
        finally:
            stop.set()
            for thread in threads:
                thread.join(SOON)
        assert codes == [0] * 12
        assert set(ended) == {"stop"}
        assert host.jobs() == []


def test_a_child_that_ends_cancels_nothing_of_its_parent():
    """Not by leaving, not by closing its host, not by the collector."""
    with LlamaCppSimulator(delay=0.01) as engine, AdapterHost() as host:
        engine.endless = True
        host.bind("chat", "r0", LlamaCppHttpAdapter(engine.url))
        job = host.dispatch("x", pool="chat", max_tokens=100_000)
        stream = host.submit("x", pool="chat", max_tokens=100_000)
        stream.start()
        assert engine.wait_for(lambda: engine.busy == 2, SOON)

        def child():
            warnings.simplefilter("ignore")
            host.close()
            gc.collect()

        assert in_child(child) == 0
        assert next(stream).type in ("started", "token")
        assert job.running()
        assert engine.busy == 2
        assert host.cancel_all() == 2
        assert stream.result().cancelled
        assert job.result(SOON).cancelled
        assert engine.wait_idle(SOON)
