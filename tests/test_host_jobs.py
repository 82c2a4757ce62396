"""Dispatched jobs: real Futures; frames that are kept, none lost and none twice; threads that end; reference counts."""

import concurrent.futures
import gc
import logging
import os
import socket
import subprocess
import sys
import textwrap
import threading
import time
import warnings
import weakref

import pytest

from worker_adapters import (
    AdapterHost,
    EndFrame,
    EngineUnavailable,
    ErrorFrame,
    InvalidRequest,
    Job,
    LlamaCppHttpAdapter,
    MockAdapter,
    StreamTruncated,
)
from worker_adapters.errors import CapacityExceeded
from worker_adapters.host.buffer import SIZE, FrameBuffer
from worker_adapters.host.workers import IDLE, Workers
from worker_adapters.simulate import Fault, LlamaCppSimulator

SOON = 10.0  # what is expected at once may take so long on a busy machine


def hosted(*adapters, **options):
    """A host with one pool over them."""
    host = AdapterHost(**options)
    for number, adapter in enumerate(adapters):
        host.bind("chat", f"r{number}", adapter)
    return host


def until(true, what="it"):
    """Waits until it is so."""
    give_up = time.monotonic() + SOON
    while not true():
        assert time.monotonic() < give_up, what
        time.sleep(0.002)


def ours():
    """The host's threads."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("worker-adapters")]


class Counting(MockAdapter):
    """Says how many pieces its engine was allowed to send."""

    def __init__(self, pieces, **options):
        self.sent = 0
        super().__init__(tokens=[f"{number} " for number in range(pieces)], **options)

    def attempt(self, task, job):
        for step in super().attempt(task, job):
            yield step
            if isinstance(step, list):
                self.sent += 1


# --- a Future


def test_it_is_a_future_in_all_that_futures_do():
    """isinstance, result, exception, done, as_completed, wait, callbacks, repr."""
    with hosted(MockAdapter()) as host:
        job = host.dispatch("x", pool="chat")
        called = []
        job.add_done_callback(called.append)
        assert isinstance(job, concurrent.futures.Future)
        assert isinstance(job, Job)
        done = job.result(SOON)
        assert (done.text, done.finish_reason, done.job_id) == ("Hello from the mock.", "stop", job.job_id)
        assert job.result() is done
        assert job.exception() is None
        assert (job.done(), job.running(), job.cancelled()) == (True, False, False)
        until(lambda: called)
        assert called == [job]
        job.add_done_callback(called.append)
        assert called == [job, job]
        jobs = {host.dispatch("x", pool="chat") for _ in range(10)}
        assert set(concurrent.futures.as_completed(jobs, SOON)) == jobs
        more = [host.dispatch("x", pool="chat") for _ in range(10)]
        assert concurrent.futures.wait(more, SOON) == (set(more), set())
        assert "ended" in repr(job)
        assert host.jobs() == []


def test_wait_returns_at_the_first_failure():
    """FIRST_EXCEPTION, as of any Future."""
    with hosted(MockAdapter(silent_after=1), MockAdapter(error=StreamTruncated(message="cut"))) as host:
        hanging = host.dispatch("x", pool="chat", replica="r0")
        failing = host.dispatch("x", pool="chat", replica="r1")
        done, rest = concurrent.futures.wait([hanging, failing], SOON, return_when=concurrent.futures.FIRST_EXCEPTION)
        assert (done, rest) == ({failing}, {hanging})


def test_result_waits_no_longer_than_it_was_told():
    """And the job goes on."""
    with hosted(MockAdapter(silent_after=1)) as host:
        job = host.dispatch("x", pool="chat")
        with pytest.raises(concurrent.futures.TimeoutError):
            job.result(0.05)
        with pytest.raises(concurrent.futures.TimeoutError):
            job.exception(0.05)
        until(job.running)
        assert not job.done()


def test_its_error_is_the_engines_with_all_its_fields():
    """Raised by result, given by exception, the same each time."""
    error = StreamTruncated(message="cut")
    with hosted(MockAdapter(error=error, error_after=2)) as host:
        job = host.dispatch("x", pool="chat")
        found = job.exception(SOON)
        assert isinstance(found, StreamTruncated)
        assert (found.engine, found.job_id, found.phase) == ("mock", job.job_id, "stream")
        assert (found.tokens_seen, found.partial_text, found.retriable) == (2, "Hello from", False)
        with pytest.raises(StreamTruncated) as raised:
            job.result()
        assert raised.value is found
        assert not job.cancel()
        assert not job.cancelled()


def test_dispatch_refuses_as_submit_does():
    """At the call, and nothing stays behind."""
    with hosted(MockAdapter()) as host:
        for task, fields, field in (
            ("x", {"pool": "no"}, "pool"),
            ("x", {"pool": "chat", "replica": "r9"}, "replica"),
            ("x", {"pool": "chat", "max_tokens": 0}, "max_tokens"),
            ("x", {"pool": "chat", "no_such": 0}, "no_such"),
            (7, {"pool": "chat"}, None),
        ):
            with pytest.raises(InvalidRequest) as refused:
                host.dispatch(task, **fields)
            if field is not None:
                assert refused.value.field == field
        assert host.jobs() == []


def test_an_id_in_flight_is_refused_and_free_again_after():
    """Registered at once, also while it waits for a thread."""
    with hosted(MockAdapter(silent_after=1), max_workers=1) as host:
        first = host.dispatch("x", pool="chat", job_id="same")
        for submit in (host.dispatch, host.submit):
            with pytest.raises(InvalidRequest, match="in flight"):
                submit("x", pool="chat", job_id="same")
        assert host.cancel("same")
        first.result(SOON)
        again = host.dispatch("x", pool="chat", job_id="same")
        assert again.cancel()
        assert again.result(SOON).cancelled


def test_a_closed_host_takes_no_more():
    """Its jobs end; what comes after is refused."""
    host = hosted(MockAdapter(silent_after=1))
    jobs = [host.dispatch("x", pool="chat") for _ in range(3)]
    host.close()
    host.close()
    assert all(job.result(SOON).cancelled for job in jobs)
    for submit in (host.dispatch, host.submit):
        with pytest.raises(InvalidRequest, match="closed"):
            submit("x", pool="chat")
    assert host.jobs() == []


def test_close_with_drain_waits_for_the_jobs():
    """Up to its deadline; what runs then is cancelled."""
    host = hosted(MockAdapter(delay=0.02), MockAdapter(silent_after=1))
    quick = host.dispatch("x", pool="chat", replica="r0")
    slow = host.dispatch("x", pool="chat", replica="r1")
    host.close(drain=True, timeout=0.5)
    assert quick.result(SOON).finish_reason == "stop"
    assert slow.result(SOON).cancelled


# --- threads


def test_dispatch_begins_at_once_while_there_are_threads():
    """A thread that is just taking a job up is no idle one: the next job does not wait for it to end."""
    workers, release = Workers(64), threading.Event()
    for _ in range(20):
        begun = [threading.Event() for _ in range(3)]

        def act(event):
            event.set()
            assert release.wait(SOON)

        release.clear()
        for event in begun:
            workers.submit(lambda event=event: act(event))
        assert all(event.wait(SOON) for event in begun)
        release.set()


def test_no_more_threads_than_max_workers():
    """What is beyond waits for one, first come first served."""
    order, gate, before = [], threading.Event(), set(ours())
    workers = Workers(2)
    for _ in range(2):
        workers.submit(lambda: gate.wait(SOON))
    for number in range(20):
        workers.submit(lambda number=number: order.append(number))
    assert len(set(ours()) - before) == 2
    assert order == []
    gate.set()
    until(lambda: len(order) == 20)
    assert sorted(order) == list(range(20))


def test_workers_end_after_idling():
    """None outlives its use; then there are new ones."""
    with hosted(MockAdapter()) as host:
        for _ in range(2):
            jobs = [host.dispatch("x", pool="chat") for _ in range(8)]
            assert ours()
            assert concurrent.futures.wait(jobs, SOON).not_done == set()
            give_up = time.monotonic() + IDLE + SOON
            while ours():
                assert time.monotonic() < give_up, ours()
                time.sleep(0.02)


def test_a_callback_that_fails_costs_no_thread(caplog):
    """Whatever it raises: the next job finds one."""
    with hosted(MockAdapter(), max_workers=1) as host:
        for error in (ValueError, SystemExit, KeyboardInterrupt):
            job = host.dispatch("x", pool="chat", stream=True)

            def fails(_, error=error):
                raise error

            job.add_done_callback(fails)
            assert [frame.type for frame in job][-1] == "end"
            assert host.dispatch("x", pool="chat").result(SOON).finish_reason == "stop"


def test_threads_are_daemons_with_names():
    """So that nothing keeps a process alive, and a stack dump says whose they are."""
    with hosted(MockAdapter(silent_after=1)) as host:
        job = host.dispatch("x", pool="chat")
        until(job.running)
        assert all(thread.daemon for thread in ours())


def test_a_process_with_jobs_in_flight_exits_at_once():
    """Without close, with jobs that run, wait in the pool and wait for a thread."""
    program = """
        from worker_adapters import AdapterHost, MockAdapter
        host = AdapterHost(max_workers=4)
        host.bind("chat", "r0", MockAdapter(silent_after=1), max_in_flight=2)
        jobs = [host.dispatch("x", pool="chat", stream=n % 2 == 0) for n in range(8)]
        while host.props()["chat"]["r0"]["in_flight"] < 2: pass
        print("out", flush=True)
    """
    began = time.monotonic()
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(program)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "out\n", "")
    assert time.monotonic() - began < 30


# --- frames that are kept


def test_a_job_without_stream_keeps_none():
    """And says how to get them; relay says it in a frame."""
    with hosted(MockAdapter()) as host:
        job = host.dispatch("x", pool="chat")
        for frames in (iter(job), job.ticks()):
            with pytest.raises(InvalidRequest, match="stream=True"):
                next(frames)
        (last,) = job.relay()
        assert isinstance(last, ErrorFrame)
        with pytest.raises(InvalidRequest, match="every"):
            job.ticks(0)
        with pytest.raises(InvalidRequest, match="every"):
            job.relay(-1)


@pytest.mark.parametrize("pause", [0.0, 0.0005])
def test_every_frame_comes_once_and_in_order(pause):
    """Started, the tokens from 0, the end; however slow the reader is."""
    pieces = 5 * SIZE
    with hosted(Counting(pieces)) as host:
        job = host.dispatch("x", pool="chat", stream=True, max_tokens=pieces)
        types, indexes, text = [], [], ""
        for frame in job:
            types.append(frame.type)
            if frame.type == "token":
                indexes.append(frame.index)
                text += frame.text
                if pause:
                    time.sleep(pause)
        assert types == ["started", *["token"] * pieces, "end"]
        assert indexes == list(range(pieces))
        assert job.result(SOON).text == text
        assert frame.metrics.tokens_out == pieces
        assert list(job) == []  # it was told


def test_a_reader_may_stop_and_go_on():
    """With another iterator, in another loop: nothing is lost between them."""
    pieces = 3 * SIZE
    with hosted(Counting(pieces)) as host:
        job = host.dispatch("x", pool="chat", stream=True, max_tokens=pieces)
        indexes = []
        while not job.done() or len(indexes) < pieces:
            for frame in job:
                if frame.type == "token":
                    indexes.append(frame.index)
                    if len(indexes) % 7 == 0:
                        break
        assert indexes == list(range(pieces))
        assert [frame.type for frame in job][-1:] in (["end"], [])


def test_a_slow_reader_slows_the_engine():
    """What is sent ahead is bounded, and it is all there in the end."""
    pieces = 40 * SIZE
    adapter = Counting(pieces)
    with hosted(adapter) as host:
        job = host.dispatch("x", pool="chat", stream=True, max_tokens=pieces)
        frames = iter(job)
        read = 0
        for _ in range(3):
            quiet = -1
            while quiet != adapter.sent:  # until the engine is held
                quiet = adapter.sent
                time.sleep(0.05)
            assert adapter.sent - read <= 2 * SIZE + 2
            for _ in range(SIZE):
                next(frames)
                read += 1
        assert len(list(frames)) == pieces + 2 - read
        assert adapter.sent == pieces + 1  # the end's step is not gone on from


def test_a_job_that_nobody_reads_is_held_and_no_clock_of_it_runs():
    """Its reader is the one who is slow, not the engine."""
    pieces = 4 * SIZE
    adapter = Counting(pieces)
    with hosted(adapter) as host:
        job = host.dispatch(
            "x", pool="chat", stream=True, max_tokens=pieces, timeouts={"between_tokens": 0.1, "first_token": 0.1}
        )
        until(lambda: adapter.sent >= SIZE)
        time.sleep(0.4)
        assert job.running()
        assert sum(frame.type == "token" for frame in job) == pieces


def test_ticks_come_while_nothing_else_does():
    """And restart nothing."""
    with hosted(MockAdapter(first_delay=0.3)) as host:
        frames = list(host.dispatch("x", pool="chat", stream=True).ticks(0.05))
        assert frames.count(None) >= 2
        assert [frame.type for frame in frames if frame is not None] == ["started", *["token"] * 5, "end"]


def test_an_error_comes_after_the_tokens_that_came_before_it():
    """Raised where it happened; relayed as the last frame; the same as result's."""
    error = StreamTruncated(message="cut")
    with hosted(MockAdapter(error=error, error_after=3)) as host:
        job = host.dispatch("x", pool="chat", stream=True)
        job.exception(SOON)  # it has failed before anybody reads
        frames, seen = iter(job), []
        with pytest.raises(StreamTruncated) as raised:
            seen.extend(frames)
        assert raised.value.tokens_seen == 3
        assert list(job) == []
        *seen, last = host.dispatch("x", pool="chat", stream=True).relay()
        assert [frame.type for frame in seen] == ["started", "token", "token", "token"]
        assert isinstance(last, ErrorFrame)
        assert last.to_exception().partial_text == "Hello from the"


def test_a_refusal_comes_first():
    """No frame before it."""
    with hosted(refusing(), retry={"attempts": 2, "base": 0.01}) as host:
        frames = iter(host.dispatch("x", pool="chat", stream=True))
        with pytest.raises(CapacityExceeded):
            next(frames)


# --- jobs that nobody holds


def test_a_job_that_keeps_frames_and_is_dropped_is_cancelled():
    """Nobody could read it: no thread is blocked, no place is kept. By reference count alone."""
    adapter = MockAdapter(endless=True)
    with hosted(adapter) as host:
        gc.disable()
        try:
            job = host.dispatch("x", pool="chat", stream=True, max_tokens=1_000_000)
            frames = iter(job)
            assert next(frames).type == "started"
            del job
            assert next(frames).type == "token"  # the iterator holds it
            frames.close()
            del frames
            until(lambda: not host.jobs(), "it is still there")
        finally:
            gc.enable()
        assert host.props()["chat"]["r0"]["in_flight"] == 0


def test_a_dropped_job_that_waits_for_a_thread_never_begins():
    """Cancelled in the queue."""
    first, second = MockAdapter(silent_after=1), MockAdapter()
    with hosted(first, second, max_workers=1) as host:
        held = host.dispatch("x", pool="chat", replica="r0")
        until(held.running)
        host.dispatch("x", pool="chat", replica="r1", stream=True)
        until(lambda: len(host.jobs()) == 1, "it is still there")
        assert second.attempts == 0


def test_a_job_without_frames_goes_on_when_it_is_dropped():
    """Fire and forget; its callbacks are called."""
    adapter, ended = MockAdapter(delay=0.02), threading.Event()
    with hosted(adapter) as host:
        host.dispatch("x", pool="chat").add_done_callback(lambda job: ended.set())
        assert ended.wait(SOON)
        assert adapter.attempts == 1


def test_jobs_are_freed_by_reference_count_whatever_became_of_them():
    """Ended, failed, refused, cancelled, with frames and without."""
    adapters = [
        MockAdapter(),
        MockAdapter(error=StreamTruncated(message="cut"), error_after=1),
        MockAdapter(error=EngineUnavailable(message="no")),
        MockAdapter(silent_after=1),
    ]
    with hosted(*adapters) as host:
        gc.collect()
        gc.disable()
        try:
            for number in range(len(adapters)):
                for stream in (False, True):
                    job = host.dispatch("x", pool="chat", replica=f"r{number}", stream=stream)
                    if number == 3:
                        assert job.cancel()
                    error = job.exception(SOON)
                    assert (error is None) == (number in (0, 3))
                    dead = weakref.ref(job)
                    del job, error
                    until(lambda dead=dead: dead() is None, f"r{number} is still there")
        finally:
            gc.enable()


# --- streams of submit


def counts():
    """What must be as before: open files, threads."""
    return len(os.listdir("/proc/self/fd")), threading.active_count()


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files in /proc")
@pytest.mark.slow
def test_a_thousand_dropped_streams_leave_nothing_behind():
    """At any point of their life, by reference count alone: no file, thread, place or name."""
    with LlamaCppSimulator(slots=64) as engine:
        host = hosted(LlamaCppHttpAdapter(engine.url), timeouts={"pool": 5})
        with host, warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # some are dropped unstarted, which is the point
            host.submit("x", pool="chat").result()
            until(lambda: not ours())
            until(lambda: engine.connections_open <= 1)
            gc.collect()
            gc.disable()
            try:
                before = counts()
                for number in range(1000):
                    stream = host.submit("x", pool="chat", max_tokens=20)
                    for _ in range(number % 4):
                        next(stream)
                    if number % 7 == 0:
                        stream.cancel()
                    del stream
                assert host.jobs() == []
                assert len(host._jobs) == 0
                assert host.props()["chat"]["r0"]["in_flight"] == 0
                until(lambda: engine.connections_open <= 1)
                until(lambda: counts()[0] <= before[0] + 1 and not ours(), (before, counts()))
            finally:
                gc.enable()


@pytest.mark.parametrize("why", ["refused", "breaker", "overflow", "policy", "pool", "closed", "truncated", "clock"])
def test_a_stream_that_failed_is_freed_with_its_error(why):
    """An error holds its traceback, and that the stream; nothing of them holds the error."""
    options = {
        "refused": {"error": EngineUnavailable(message="no", retriable=False)},
        "truncated": {"error": StreamTruncated(message="cut"), "error_after": 1},
        "clock": {"silent_after": 1, "timeouts": {"between_tokens": 0.05}},
    }
    adapter = MockAdapter(**options.get(why, {}))
    host = AdapterHost(policy="strict" if why == "policy" else "off", breaker={"failures": 1})
    host.bind("chat", "r0", adapter, residency="cpu", max_in_flight=1)
    with host:
        held = host.submit("x", pool="chat") if why == "pool" else None
        if held is not None:
            held.start()
        if why == "breaker":
            adapter._settings["error"] = EngineUnavailable(message="no")
            with pytest.raises(EngineUnavailable):
                host.submit("x", pool="chat").result()
        gc.collect()
        gc.disable()
        try:
            stream = host.submit("x" * (2000 if why == "overflow" else 1), pool="chat", timeouts={"pool": 0.05})
            if why == "closed":
                host.unbind("chat", "r0")
            dead = weakref.ref(stream)
            try:
                stream.result()
            except Exception:
                pass
            else:
                assert why == "overflow"
            del stream
            assert dead() is None
        finally:
            gc.enable()
        if held is not None:
            held.close()
        assert host.jobs() == []


def test_a_refusal_at_submit_holds_nothing_either():
    """Neither the caller's frame nor what stands in it."""

    class Mark:
        pass

    class Few(MockAdapter):
        capabilities = MockAdapter.capabilities.__class__()

    with hosted(Few()) as host:
        host.submit("x", pool="chat").result()

        def asks():
            mark = Mark()
            with pytest.raises(InvalidRequest):
                host.submit("x", pool="chat", seed=1)
            return weakref.ref(mark)

        gc.collect()
        gc.disable()
        try:
            assert asks()() is None
        finally:
            gc.enable()


# --- failover


def refusing(words="full", **fields):
    """An engine that has no room."""
    return MockAdapter(error=CapacityExceeded(message=words, **fields))


def test_another_replica_gets_the_job_at_once():
    """However long the first wants to be left alone: the other did not ask for that."""
    busy = refusing(retry_after_ms=90_000)
    other = MockAdapter()
    with hosted(busy, other) as host:
        began = time.monotonic()
        for _ in range(3):
            assert host.submit("x", pool="chat").result().finish_reason == "stop"
        assert time.monotonic() - began < 5
        assert other.attempts == 3
        assert busy.attempts >= 1


@pytest.mark.parametrize("how", ["503", "refused"])
def test_failover_over_http(how):
    """A status and a closed port: one generation, on the other."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        closed = f"http://127.0.0.1:{taken.getsockname()[1]}"
    with LlamaCppSimulator() as first, LlamaCppSimulator() as second:
        first.always(Fault.status(503, headers=[("Retry-After", "30")]))
        url = first.url if how == "503" else closed
        with hosted(LlamaCppHttpAdapter(url), LlamaCppHttpAdapter(second.url)) as host:
            began = time.monotonic()
            jobs = [host.dispatch("x", pool="chat") for _ in range(6)]
            assert {job.result(SOON).finish_reason for job in jobs} == {"stop"}
            assert time.monotonic() - began < SOON
            assert second.generation_requests == 6
            assert first.generations == 0


def test_no_second_generation_once_a_token_came():
    """Nor after started: the error is the caller's, and says what was seen."""
    for after in (1, 3):
        dying, other = MockAdapter(error=EngineUnavailable(message="dead"), error_after=after), MockAdapter()
        with hosted(dying, other) as host:
            with pytest.raises(EngineUnavailable) as dead:
                host.submit("x", pool="chat", replica=None, session_id=None).result()
            assert (dying.attempts, other.attempts) == (1, 0)
            assert (dead.value.tokens_seen, dead.value.phase, dead.value.retriable) == (after, "stream", False)
            assert (dead.value.engine, bool(dead.value.job_id)) == ("mock", True)


def test_what_may_not_be_retried_goes_to_no_other():
    """An unclear reset may have begun the job; a wrong request is wrong everywhere."""
    for error in (EngineUnavailable(message="reset", retriable=False), InvalidRequest(message="no")):
        first, other = MockAdapter(error=error), MockAdapter()
        with hosted(first, other) as host:
            with pytest.raises(type(error)) as refused:
                host.submit("x", pool="chat").result()
            assert (first.attempts, other.attempts) == (1, 0)
            assert (refused.value.engine, refused.value.tokens_seen) == ("mock", 0)


def test_attempts_are_counted_over_all_replicas():
    """Four tries at three replicas, each before any again; then the last refusal."""
    adapters = [refusing(f"full {number}") for number in range(3)]
    with hosted(*adapters, retry={"attempts": 4, "base": 0.01}) as host:
        with pytest.raises(CapacityExceeded) as refused:
            host.submit("x", pool="chat").result()
        assert sorted(adapter.attempts for adapter in adapters) == [1, 1, 2]
        assert refused.value.engine == "mock"


def test_the_budget_of_a_pool_bounds_what_a_dead_pool_sees():
    """All jobs together."""
    adapters = [refusing() for _ in range(2)]
    with hosted(*adapters, retry={"attempts": 4, "base": 0.001, "budget": 5.0}) as host:
        for _ in range(20):
            with pytest.raises(CapacityExceeded):
                host.submit("x", pool="chat").result()
        assert sum(adapter.attempts for adapter in adapters) == 20 + 5


def test_retries_can_be_turned_off():
    """One attempt is one attempt, whoever else is there."""
    first, other = refusing(), MockAdapter()
    with hosted(first, other, retry={"attempts": 1}) as host:
        with pytest.raises(CapacityExceeded):
            host.submit("x", pool="chat").result()
        assert other.attempts == 0


def test_the_total_clock_is_over_all_tries():
    """A pause that would pass it is not begun."""
    adapter = refusing(retry_after_ms=5000)
    with hosted(adapter) as host:
        began = time.monotonic()
        with pytest.raises(CapacityExceeded):
            host.submit("x", pool="chat", timeouts={"total": 1.0}).result()
        assert time.monotonic() - began < 4


# --- the buffer by itself


def test_the_buffer_gives_all_that_is_there():
    """Batches while the reader lags; None only after the last."""
    buffer = FrameBuffer(4)
    ends = [EndFrame("stop", None, None) for _ in range(5)]
    buffer.put(ends[:2])
    buffer.put(ends[2:4])
    assert buffer.take() == ends[:4]
    assert buffer.take(0.01) == []
    buffer.put(ends[4:])
    buffer.close()
    assert buffer.take() == ends[4:]
    assert buffer.take() is None
    buffer.put(ends)  # goes on without a wait
    buffer.put(ends)


def test_a_buffer_frees_both_sides_when_it_is_closed():
    """A writer that is held, and a reader that waits."""
    for act in (lambda buffer: [buffer.put([None]) for _ in range(9)], lambda buffer: buffer.take()):
        buffer, ended = FrameBuffer(2), threading.Event()
        thread = threading.Thread(target=lambda act=act, buffer=buffer, ended=ended: (act(buffer), ended.set()))
        thread.start()
        assert not ended.wait(0.05)
        buffer.close()
        assert ended.wait(SOON)
        thread.join(SOON)


def test_no_wake_up_of_the_buffer_is_lost():
    """Writer and reader at full speed, with rooms of one to a few frames."""
    for size in (1, 2, 7):
        buffer, count = FrameBuffer(size), 3000
        thread = threading.Thread(target=lambda buffer=buffer: [buffer.put([number]) for number in range(3000)])
        thread.start()
        got = []
        while len(got) < count:
            batch = buffer.take(SOON)
            assert batch, "nothing came"
            got += batch
        assert got == list(range(count))
        thread.join(SOON)


def test_nothing_of_a_job_is_logged_per_token(caplog):
    """A line when it is submitted, starts and ends."""
    caplog.set_level(logging.INFO, "worker_adapters")
    with hosted(Counting(500)) as host:
        host.dispatch("x", pool="chat", max_tokens=500).result(SOON)
    assert len(caplog.records) < 10
