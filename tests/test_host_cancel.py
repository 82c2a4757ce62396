"""Cancels of a host's jobs in every state, from a thread, from a signal handler, by job, stream, id and all at once."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from worker_adapters import AdapterHost, LlamaCppHttpAdapter, MockAdapter, StreamTruncated
from worker_adapters.host.buffer import SIZE
from worker_adapters.simulate import LlamaCppSimulator

SOON = 10.0  # what is expected at once may take so long on a busy machine


def hosted(*adapters, most=None, **options):
    """A host with one pool over them."""
    host = AdapterHost(**options)
    for number, adapter in enumerate(adapters):
        host.bind("chat", f"r{number}", adapter, max_in_flight=most)
    return host


def until(true, what="it"):
    """Waits until it is so."""
    give_up = time.monotonic() + SOON
    while not true():
        assert time.monotonic() < give_up, what
        time.sleep(0.002)


class Stage:
    """A host and a job in one of its states. ``token`` says whether its reader has had one."""

    STATES = ("queued", "waiting", "connecting", "running", "blocked")

    def __init__(self, state, stream):
        self.state, self.stream = state, stream
        self.others = []
        options = {"first_delay": 60.0} if state == "connecting" else {"tokens": ("x",), "endless": True}
        if state == "running":
            options = {"silent_after": 3}
        self.adapter = MockAdapter(timeouts={"first_token": None, "between_tokens": None}, **options)
        self.host = hosted(self.adapter, most=1, max_workers=1 if state == "queued" else 8, timeouts={"pool": None})
        if state in ("queued", "waiting"):
            held = self.host.submit("x", pool="chat", max_tokens=1_000_000)
            held.start()
            self.others.append(held)
        if state == "queued":
            self.others.append(self.host.dispatch("x", pool="chat"))
            until(self.others[-1].running)
        self.attempts = self.adapter.attempts
        self.job = self.host.dispatch("x", pool="chat", stream=stream, max_tokens=1_000_000)
        getattr(self, f"_{state}")()

    def _queued(self):
        time.sleep(0.02)
        assert not self.job.running()

    def _waiting(self):
        until(lambda: any(map(len, self.host._pools["chat"]._waiting)))

    def _connecting(self):
        until(lambda: self.adapter.attempts == self.attempts + 1)

    def _running(self):
        self._connecting()
        time.sleep(0.05)

    def _blocked(self):
        buffer = self.job._run.buffer
        until(lambda: buffer is None or buffer._blocked)

    def over(self):
        """The job was cancelled: everything of it is gone, and the engine got no more than it had."""
        done = self.job.result(SOON)
        assert (done.finish_reason, done.cancelled, self.job.cancelled()) == ("cancelled", True, True)
        assert self.job.done()
        assert not self.job.running()
        if self.state in ("queued", "waiting"):
            assert self.adapter.attempts == self.attempts
            assert done.text == ""
        until(lambda: self.job.job_id not in [info.job_id for info in self.host.jobs()])
        assert not self.host.cancel(self.job.job_id)
        assert self.job.cancel()  # as of any cancelled Future
        for other in self.others:
            other.cancel()
        for other in self.others:
            other.result()
        until(lambda: self.host.props()["chat"]["r0"]["in_flight"] == 0)
        return done

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.host.close()


WAYS = {
    "job": lambda stage: stage.job.cancel(),
    "id": lambda stage: stage.host.cancel(stage.job.job_id),
    "stream": lambda stage: stage.job._run._stream.cancel(),
}


def states():
    """Of jobs with frames and without; only the former can be blocked."""
    for state in Stage.STATES:
        for stream in (False, True):
            if stream or state != "blocked":
                yield pytest.param(state, stream, id=f"{state}-{'frames' if stream else 'result'}")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("state", "stream"), list(states()))
def test_a_cancel_ends_a_job_in_every_state(state, stream, way):
    """True, once; the result is there at once, partial, and nothing was sent that had not been."""
    with Stage(state, stream) as stage:
        began = time.monotonic()
        assert WAYS[way](stage) is True
        assert stage.job.cancelled()
        assert stage.host.cancel(stage.job.job_id) is False
        stage.job.result(SOON)
        assert time.monotonic() - began < 5
        if stream:
            assert [frame.type for frame in stage.job] == ["end"]
        stage.over()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("state", "stream"), list(states()))
def test_a_signal_handler_cancels_a_job_that_its_own_thread_waits_for(state, stream, way):
    """The handler runs on top of the consumer's wait: no deadlock, and the consumer goes on."""
    with Stage(state, stream) as stage:
        said = []
        before = signal.signal(signal.SIGALRM, lambda *_: said.append(WAYS[way](stage)))
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            if state == "blocked":
                assert stage.job.result(SOON).cancelled
            elif stream:
                frames = list(stage.job)
                assert frames[-1].finish_reason == "cancelled"
            else:
                assert stage.job.result(SOON).cancelled
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert said == [True]
        stage.over()


def test_a_job_that_has_ended_cannot_be_cancelled():
    """Not when it ended well, not when it failed; its frames stay to be read."""
    with hosted(MockAdapter(), MockAdapter(error=StreamTruncated(message="cut"), error_after=1)) as host:
        good = host.dispatch("x", pool="chat", replica="r0", stream=True)
        bad = host.dispatch("x", pool="chat", replica="r1")
        good.result(SOON)
        bad.exception(SOON)
        for job in (good, bad):
            assert job.cancel() is False
            assert job.cancelled() is False
            assert host.cancel(job.job_id) is False
        assert [frame.type for frame in good] == ["started", *["token"] * 5, "end"]


def test_an_unknown_id_is_no_job():
    """False."""
    with hosted(MockAdapter()) as host:
        assert host.cancel("no") is False


@pytest.mark.parametrize("stream", [False, True])
def test_nobody_waits_until_the_engine_was_told(stream):
    """Some are told of a cancel by a call of its own: the reader has its end and the caller the result before."""
    told = threading.Event()

    class Slow(MockAdapter):
        def attempt(self, task, job):
            try:
                yield from super().attempt(task, job)
            finally:
                assert told.wait(SOON)

    with hosted(Slow(silent_after=1)) as host:
        job = host.dispatch("x", pool="chat", stream=stream)
        until(job.running)
        assert job.cancel()
        if stream:
            assert list(job)[-1].finish_reason == "cancelled"
        assert job.result(SOON / 2).cancelled
        assert host.jobs() == []
        told.set()
        until(lambda: host.props()["chat"]["r0"]["in_flight"] == 0)


def test_a_partial_completion_holds_what_had_come():
    """And the reader's frames are its beginning; the end counts what the result holds."""
    with hosted(MockAdapter(silent_after=3)) as host:
        job = host.dispatch("x", pool="chat", stream=True)
        frames = iter(job)
        seen = [next(frames) for _ in range(4)]
        assert job.cancel()
        (end,) = frames
        done = job.result(SOON)
        assert done.text == "".join(frame.text for frame in seen[1:]) == "Hello from the"
        assert (end.finish_reason, end.metrics.tokens_out) == ("cancelled", 3)
        assert done.metrics == end.metrics


def test_no_token_after_a_cancel_returned():
    """However many lie there: from another thread, at any moment, every next() that begins after it gives the end."""
    with hosted(MockAdapter(tokens=("x",), endless=True)) as host:
        for number in range(60):
            job = host.dispatch("x", pool="chat", stream=True, max_tokens=1_000_000)
            returned, late = threading.Event(), []
            by = (job.cancel, lambda job=job: host.cancel(job.job_id))[number % 2]

            def cancels(by=by, returned=returned, number=number):
                time.sleep(number % 10 / 2000)
                assert by()
                returned.set()

            thread = threading.Thread(target=cancels)
            thread.start()
            frames = iter(job)
            while True:
                after = returned.is_set()
                frame = next(frames)
                if frame.type == "end":
                    break
                late += [frame] if after else []
            assert late == []
            assert frame.finish_reason == "cancelled"
            assert list(frames) == []
            thread.join(SOON)


def test_one_of_many_cancels_wins():
    """By every way at once, from many threads: one of them is told that it did it."""
    with hosted(MockAdapter(silent_after=1)) as host:
        for _ in range(30):
            job = host.dispatch("x", pool="chat", stream=True)
            begin, said = threading.Barrier(4), []

            def cancels(begin=begin, said=said, job=job):
                begin.wait(SOON)
                said.append(host.cancel(job.job_id))

            threads = [threading.Thread(target=cancels) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(SOON)
            assert sorted(said) == [False, False, False, True]
            assert job.result(SOON).cancelled
            assert host.jobs() == []


def test_a_cancel_races_the_end_and_one_of_them_wins():
    """What it returned, cancelled(), the result and the last frame say the same."""
    with hosted(MockAdapter(tokens=("x",) * 3)) as host:
        outcomes = set()
        for number in range(300):
            job = host.dispatch("x", pool="chat", stream=number % 2 == 0)
            if number % 3:
                time.sleep(number % 17 / 20_000)
            said = job.cancel()
            assert job.cancelled() is said
            done = job.result(SOON)
            assert done.cancelled is said
            if number % 2 == 0:
                *_, end = job
                assert end.finish_reason == done.finish_reason
            outcomes.add(said)
        assert True in outcomes


def test_cancel_all_by_pool_and_by_session():
    """Those that match, and it says how many it was that this call cancelled."""
    with hosted(MockAdapter(silent_after=1), max_workers=2) as host:
        host.bind("other", "r0", MockAdapter(silent_after=1))
        streams = [host.submit("x", pool="chat", session_id="s") for _ in range(2)]
        jobs = [host.dispatch("x", pool=pool, session_id=who) for pool in ("chat", "other") for who in ("s", None)]
        assert len(host.jobs()) == 6
        assert host.cancel_all(pool="chat", session_id="s") == 3
        assert host.cancel_all(pool="chat", session_id="s") == 0
        assert host.cancel_all(session_id="s") == 1
        assert host.cancel_all(pool="none") == 0
        assert host.cancel_all() == 2
        assert [stream.result().cancelled for stream in streams] == [True, True]
        assert [job.result(SOON).cancelled for job in jobs] == [True] * 4
        assert host.jobs() == []


@pytest.mark.parametrize("count", [2000])
def test_thousands_that_wait_for_a_thread_are_cancelled_at_once(count):
    """Each ends, whatever the system says of that many threads."""
    with hosted(MockAdapter(silent_after=1), max_workers=2) as host:
        jobs = [host.dispatch("x", pool="chat") for _ in range(count)]
        began = time.monotonic()
        assert host.cancel_all() == count
        assert all(job.result(30.0).cancelled for job in jobs)
        assert time.monotonic() - began < 30
        assert host.jobs() == []


def test_no_thread_that_ends_a_cancelled_job_is_kept_in_mind():
    """threading remembers every plain thread that logged anything, for ever: these are none."""
    with Stage("queued", stream=False) as stage:
        before = set(threading.enumerate())
        stage.job.add_done_callback(lambda job: threading.current_thread())
        assert stage.job.cancel()
        stage.job.result(SOON)
        stage.over()
        until(lambda: not [t for t in set(threading.enumerate()) - before if "Dummy" in type(t).__name__])
        assert not [t for t in threading.enumerate() if t.name.startswith("Dummy")]


def test_a_callback_may_cancel_and_dispatch():
    """On the thread that ended the job."""
    with hosted(MockAdapter(silent_after=1)) as host:
        first, second = (host.dispatch("x", pool="chat") for _ in range(2))
        third = []
        first.add_done_callback(lambda job: (second.cancel(), third.append(host.dispatch("x", pool="chat"))))
        first.cancel()
        assert second.result(SOON).cancelled
        until(lambda: third)
        assert third[0].cancel()


# --- a submitted stream


@pytest.mark.parametrize("way", ["stream", "host"])
@pytest.mark.parametrize("state", ["unstarted", "waiting", "running", "backoff"])
def test_a_stream_of_submit_is_cancelled_in_every_state(state, way):
    """From a signal handler on top of its own reader."""
    adapter = MockAdapter(silent_after=2, timeouts={"first_token": None, "between_tokens": None})
    with hosted(adapter, most=1, retry={"base": 60.0, "cap": 60.0, "seed": 3}) as host:
        if state == "waiting":
            held = host.submit("x", pool="chat")
            held.start()
        if state == "backoff":
            adapter.state = "degraded"
        stream = host.submit("x", pool="chat")
        cancel = {"stream": stream.cancel, "host": lambda: host.cancel(stream.job_id)}[way]
        said = []
        if state == "unstarted":
            said.append(cancel())
        before = signal.signal(signal.SIGALRM, lambda *_: said.append(cancel()))
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            frames = list(stream)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert said[0] is True
        assert frames[-1].finish_reason == "cancelled"
        assert len(frames) == (4 if state == "running" else 1)
        assert stream.result().cancelled
        if state == "waiting":
            held.close()
        assert host.jobs() == []
        until(lambda: host.props()["chat"]["r0"]["in_flight"] == 0)


def test_a_signal_that_comes_at_any_moment_leaves_everything_in_order():
    """A handler cancels the job that its own thread is submitting, waiting for, reading, closing: 400 times."""
    with hosted(MockAdapter(tokens=("x",), endless=True), MockAdapter(delay=0.001), most=2, max_workers=4) as host:
        current = []

        def cancels(*_):
            for job in tuple(current):
                host.cancel(job)
                host.cancel(job)

        before = signal.signal(signal.SIGALRM, cancels)
        try:
            for number in range(400):
                name = f"j{number}"
                current[:] = [name]
                signal.setitimer(signal.ITIMER_REAL, 0.0001 + number % 40 / 20_000)
                if number % 2:
                    frames = list(host.submit("x", pool="chat", job_id=name, max_tokens=100_000, replica="r0"))
                else:
                    frames = list(host.dispatch("x", pool="chat", job_id=name, max_tokens=300, stream=True))
                assert frames[-1].type == "end"
                indexes = [frame.index for frame in frames if frame.type == "token"]
                assert indexes == list(range(len(indexes)))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        until(lambda: host.jobs() == [])
        until(lambda: {one["in_flight"] for one in host.props()["chat"].values()} == {0})
        assert host.submit("x", pool="chat").result().finish_reason in ("stop", "length")


# --- engines


def test_engines_are_released_whoever_cancels():
    """Eight running on a simulator: cancelled one by one and all at once, no slot is kept."""
    with LlamaCppSimulator(slots=8, delay=0.01) as engine:
        engine.endless = True
        with hosted(LlamaCppHttpAdapter(engine.url)) as host:
            for all_at_once in (False, True):
                jobs = [host.dispatch("x", pool="chat", max_tokens=100_000, stream=n % 2 == 0) for n in range(8)]
                assert engine.wait_for(lambda: engine.busy == 8, SOON)
                if all_at_once:
                    host.cancel_all()
                else:
                    assert all(job.cancel() for job in jobs)
                assert all(job.result(SOON).cancelled for job in jobs)
                assert engine.wait_idle(SOON)


CHILD = """
    import sys, time
    from worker_adapters import AdapterHost, LlamaCppHttpAdapter
    with AdapterHost(max_workers=8) as host:
        host.bind("chat", "r0", LlamaCppHttpAdapter(sys.argv[1]))
        jobs = [host.dispatch("x", pool="chat", max_tokens=100_000, stream=n % 2 == 0) for n in range(12)]
        print("ready", flush=True)
        {wait}
"""
WAITS = {
    "result": "jobs[1].result()",
    "frames": "deque = [frame for frame in jobs[0]]",
    "stream": "list(host.submit('x', pool='chat', max_tokens=100_000))",
    "map": "list(host.map(['x'] * 50, pool='chat', max_tokens=100_000))",
    "sleep": "time.sleep(60)",
}


@pytest.mark.parametrize("wait", WAITS)
def test_ctrl_c_ends_a_process_and_releases_its_engines(wait):
    """Inside ``with AdapterHost()`` with eight running jobs and four waiting: out within seconds, no slot kept."""
    with LlamaCppSimulator(slots=16, delay=0.01) as engine:
        engine.endless = True
        program = textwrap.dedent(CHILD).format(wait=WAITS[wait])
        command = [sys.executable, "-c", program, engine.url]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
            try:
                assert child.stdout.readline() == "ready\n"
                assert engine.wait_for(lambda: engine.busy >= 8, 30)
                time.sleep(0.3)  # until it waits: a signal just before that interrupts nothing
                began = time.monotonic()
                os.kill(child.pid, signal.SIGINT)
                _, said = child.communicate(timeout=30)
                took = time.monotonic() - began
            finally:
                child.kill()
        assert said.rstrip().endswith("KeyboardInterrupt")
        assert said.count("Traceback") == 1
        assert took < 5
        assert engine.wait_idle(SOON)


def test_the_reader_is_blocked_by_nothing_while_the_buffer_is_full():
    """A cancel drops what lies there: the reader is given the end at once, not SIZE tokens."""
    with Stage("blocked", stream=True) as stage:
        frames = iter(stage.job)
        assert [next(frames).type for _ in range(3)] == ["started", "token", "token"]
        assert stage.job.cancel()
        (end,) = frames
        assert end.finish_reason == "cancelled"
        assert len(stage.over().text) >= SIZE - 1
