"""The host as a state machine: whatever is done to it in any order, each job ends once and nothing is left over."""

import gc
import threading
import time
import warnings
from collections import Counter

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule, run_state_machine_as_test

from worker_adapters import AdapterHost, InvalidRequest, LlamaCppHttpAdapter, MockAdapter, StreamTruncated, WorkerError
from worker_adapters.contract import Wait
from worker_adapters.errors import EngineUnavailable
from worker_adapters.frames import EndFrame, Metrics, StartedFrame, TokenFrame
from worker_adapters.host.observe import Observer
from worker_adapters.simulate import LlamaCppSimulator

SOON = 20.0  # what is expected at once may take so long on a busy machine
LONG = 100_000  # tokens: a job of so many ends only because somebody ends it
NAMES = ("r0", "r1", "r2")


class ScriptedEngine:
    """An engine in this process: a job of up to 50 tokens says them all at once; a longer one says three and holds."""

    def __init__(self):
        self.alive, self.deaths = True, 0
        self.begun = Counter()
        self.adapter = Scripted(self)

    def die(self):
        """Jobs that run are cut, new ones refused; health says so."""
        self.alive = False
        self.deaths += 1
        self.adapter.state = "unhealthy"

    def come_back(self):
        """As it was before."""
        self.alive = True
        self.adapter.state = "healthy"

    @property
    def generations(self):
        """How many jobs it began."""
        return len(self.begun)

    def idle(self):
        """Nothing to release."""
        return True

    def close(self):
        """Nothing to close."""


class Scripted(MockAdapter):
    """Speaks for it."""

    def __init__(self, engine):
        super().__init__(retry={"attempts": 1})
        self._scripted = engine

    def attempt(self, task, job):
        engine = self._scripted
        deaths = engine.deaths
        if not engine.alive:
            raise EngineUnavailable(message="dead", retriable=True, engine="mock", phase="connect")
        engine.begun[job.job_id] += 1
        yield [StartedFrame(job.job_id, "mock", "1", "m")]
        count = task.max_tokens if task.max_tokens <= 50 else 3
        for index in range(count):
            yield [TokenFrame(f"{index} ", index)]
        while task.max_tokens > 50 and engine.deaths == deaths:
            until = self._runtime.monotonic() + 0.005
            yield Wait(
                "between_tokens", lambda timeout: self._runtime.sleep(min(timeout or 1.0, 0.005), job.wake), until
            )
        if engine.deaths != deaths:
            raise StreamTruncated(message="died", phase="stream")
        yield [EndFrame("stop", "stop", Metrics(1, count, "exact"))]


class SimulatedEngine:
    """An engine behind a socket. One that comes back has another address, and so is bound anew."""

    def __init__(self):
        self._server = LlamaCppSimulator(slots=16, delay=0.001, endless=True)
        self.adapter = LlamaCppHttpAdapter(self._server.url, retry={"attempts": 1}, max_idle=4)

    def die(self):
        """Like a killed process."""
        self._server.kill()

    @property
    def generations(self):
        """How many jobs it began."""
        return self._server.generations

    def idle(self):
        """Has it noticed that everything is over?"""
        return self._server.wait_idle(SOON)

    def close(self):
        """The process, and what speaks to it."""
        self.adapter.close()
        self._server.close()


class Told(Observer):
    """Counts what is told of each job."""

    def __init__(self):
        self.submitted, self.started, self.ended = Counter(), Counter(), Counter()

    def on_submit(self, info):
        self.submitted[info.job_id] += 1

    def on_start(self, info, started):
        self.started[info.job_id] += 1

    def on_end(self, info, end):
        self.ended[info.job_id] += 1

    def on_error(self, info, error):
        self.ended[info.job_id] += 1


class Followed:
    """One job, and all that its reader was given."""

    def __init__(self, stream=None, job=None, frames=False, count=0):
        self.stream, self.job, self.has_frames, self.count = stream, job, frames, count
        self.job_id = (stream or job).job_id
        self.frames, self.error, self.over = [], None, False
        self.cancelled = False

    def is_cancelled(self):
        """Has a cancel of it returned by now?"""
        return self.stream.cancelled if self.stream is not None else self.job.cancelled()

    def read(self, seconds):
        """One more frame, if one comes by then."""
        no_token = self.is_cancelled()
        try:
            frame = next((self.stream or self.job).ticks(seconds))
        except StopIteration:
            assert self.over
            return False
        except WorkerError as error:
            self._failed(error, no_token)
            return False
        if frame is not None:
            assert not self.over, "a frame after the end"
            assert not (no_token and frame.type != "end"), "a token after a cancel"
            self.frames.append(frame)
            self.over = frame.type == "end"
        return frame is not None

    def _failed(self, error, cancelled):
        assert not self.over, "an error after the end"
        assert not cancelled, "an error after a cancel"
        assert error.tokens_seen == len(self.tokens())
        assert error.partial_text == "".join(frame.text for frame in self.tokens())
        self.error, self.over = error, True

    def tokens(self):
        """Those that came."""
        return [frame for frame in self.frames if frame.type == "token"]

    def check(self):
        """What it was given so far is the beginning of a stream, or one from its beginning to its end."""
        types = [frame.type for frame in self.frames]
        assert types.count("started") <= 1
        assert types.count("end") <= 1
        assert types[1:-1].count("started") == types[:-1].count("end") == 0
        assert not types or types[0] == "started" or types == ["end"]
        assert [frame.index for frame in self.tokens()] == list(range(len(self.tokens())))
        if self.over and self.error is None:
            end = self.frames[-1]
            assert (end.finish_reason == "cancelled") == self.is_cancelled()
            if end.finish_reason != "cancelled":
                assert len(self.tokens()) == end.metrics.tokens_out == self.count
            elif self.stream is not None:
                assert len(self.tokens()) == end.metrics.tokens_out


class Machine(RuleBasedStateMachine):
    """A host with one pool; ``engine`` makes what stands behind a replica."""

    engine = ScriptedEngine
    followed = Bundle("followed")

    def __init__(self):
        super().__init__()
        self.told = Told()
        self.host = AdapterHost(
            max_workers=3,
            observers=[self.told],
            timeouts={"pool": 0.05},
            retry={"attempts": 3, "base": 0.001, "cap": 0.002},
            breaker={"failures": 2, "open_for": 0.01, "open_most": 0.02},
        )
        self.engines, self.all_engines, self.replicas = {}, [], []
        self.jobs, self.dropped, self.numbers, self.closed = [], [], 0, False
        self.host.bind("chat", "r0", self._made("r0"))
        self._note()
        self.bind("r1", 2)

    def _made(self, name):
        self.engines[name] = self.engine()
        self.all_engines.append(self.engines[name])
        return self.engines[name].adapter

    def _note(self):
        self.replicas += self.host._pools["chat"].replicas

    def _follow(self, **what):
        self.jobs.append(Followed(**what))
        return self.jobs[-1]

    def _fields(self, count, pin, batch, session):
        self.numbers += 1
        return {
            "pool": "chat", "replica": pin, "max_tokens": count, "job_id": f"j{self.numbers}",
            "priority": "batch" if batch else "interactive", "session_id": session,
        }  # fmt: skip

    def _refused(self, pin):
        return self.closed or (pin is not None and pin not in self.engines)

    counts = st.sampled_from([1, 4, 50, LONG])
    pins = st.sampled_from([None, None, None, *NAMES])
    sessions = st.sampled_from([None, "s", "t"])

    # --- jobs

    @rule(target=followed, count=counts, pin=pins, batch=st.booleans(), session=sessions)
    def submit(self, count, pin, batch, session):
        """A stream, read by this thread."""
        fields = self._fields(count, pin, batch, session)
        try:
            stream = self.host.submit("x", **fields)
        except InvalidRequest:
            assert self._refused(pin)
            self.told.submitted[fields["job_id"]] += 1
            self.told.ended[fields["job_id"]] += 1
            return None
        assert not self._refused(pin)
        return self._follow(stream=stream, count=count)

    @rule(target=followed, count=counts, pin=pins, batch=st.booleans(), session=sessions, stream=st.booleans())
    def dispatch(self, count, pin, batch, session, stream):
        """A job on one of the host's threads."""
        fields = self._fields(count, pin, batch, session)
        try:
            job = self.host.dispatch("x", stream=stream, **fields)
        except InvalidRequest:
            assert self._refused(pin)
            self.told.submitted[fields["job_id"]] += 1
            self.told.ended[fields["job_id"]] += 1
            return None
        assert not self._refused(pin)
        return self._follow(job=job, frames=stream, count=count)

    @rule(target=followed, pin=pins, stream=st.booleans())
    def flood(self, pin, stream):
        """More than there are threads and places; the last is followed on."""
        for count in (LONG, 4, LONG, 50, 1):
            last = self.dispatch(count, pin, count == 4, None, stream)
        return last

    @rule()
    def wait(self):
        """Time passes."""
        time.sleep(0.01)

    @rule(one=followed, frames=st.sampled_from([1, 3, 60]))
    def read(self, one, frames):
        """A few frames, as long as they come."""
        if one is None or (one.job is not None and not one.has_frames):
            return
        for _ in range(frames):
            if not one.read(0.01):
                break

    @rule(one=followed, by_id=st.booleans())
    def cancel(self, one, by_id):
        """By whatever handle."""
        if one is None:
            return
        before = one.is_cancelled()
        said = self.host.cancel(one.job_id) if by_id else (one.stream or one.job).cancel()
        if said:
            assert one.is_cancelled()
            assert not (one.over and not before), "an ended job was cancelled"

    @rule(one=consumes(followed))
    def drop(self, one):
        """Nobody holds it any more."""
        if one is None:
            return
        self.jobs.remove(one)
        one.check()
        self.dropped.append(one.job_id)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # it may never have been read, which is said
            one.stream = one.job = None

    # --- engines and bindings

    @rule(name=st.sampled_from(NAMES))
    def die(self, name):
        """An engine stops at once."""
        if name in self.engines:
            self.engines[name].die()

    @rule(name=st.sampled_from(NAMES))
    def come_back(self, name):
        """It is started again."""
        if name in self.engines and not self.closed:
            back = getattr(self.engines[name], "come_back", None)
            back() if back is not None else self.rebind(name)

    @rule(name=st.sampled_from(NAMES), most=st.sampled_from([None, 1, 2]))
    def bind(self, name, most):
        """One more replica."""
        if name in self.engines or self.closed:
            return
        self.host.bind("chat", name, self._made(name), max_in_flight=most)
        self._note()

    @rule(name=st.sampled_from(NAMES))
    def rebind(self, name):
        """Another in its place; its jobs end where they are."""
        if name in self.engines and not self.closed:
            cancelled = {one.job_id for one in self.jobs if one.is_cancelled()}
            self.host.rebind("chat", name, self._made(name))
            self._note()
            assert {one.job_id for one in self.jobs if one.is_cancelled()} == cancelled

    @rule(name=st.sampled_from(NAMES), drain=st.booleans())
    def unbind(self, name, drain):
        """It leaves: with its jobs, or after them."""
        if name not in self.engines:
            return
        leaving = self.host._pools["chat"]._replicas[name]
        del self.engines[name]
        if self.host.unbind("chat", name, drain=drain, timeout=0.02) and drain:
            assert all(job.cancelled or job.ended for job in leaving.jobs)  # by others, and not read since

    @rule()
    def cancel_all(self):
        """What is in flight is cancelled by this call."""
        self.host.cancel_all()
        for one in self.jobs:
            assert one.is_cancelled() or one.over or one.job is not None or one.stream._ended or one.stream._failed

    # --- what holds at any time

    @invariant()
    def streams_are_in_order(self):
        """Of every job that somebody holds."""
        for one in self.jobs:
            one.check()

    @invariant()
    def no_replica_has_more_than_its_most(self):
        """Also those that have left."""
        for replica in self.replicas:
            assert replica.max_in_flight is None or replica.in_flight <= replica.max_in_flight

    @invariant()
    def at_most_one_generation_a_job(self):
        """Whatever was tried again."""
        assert sum(engine.generations for engine in self.all_engines) <= self.numbers
        for engine in self.all_engines:
            if isinstance(engine, ScriptedEngine):
                assert max(list(engine.begun.values()), default=1) <= 1

    @invariant()
    def nothing_is_told_twice(self):
        """Of any job."""
        for told in (self.told.submitted, self.told.started, self.told.ended):
            assert max(list(told.values()), default=1) <= 1  # a list at once: threads count on

    # --- and in the end

    def teardown(self):
        """The host is closed: everything ends, and nothing is left of it."""
        try:
            self._finish()
        finally:
            self.host.close()
            for engine in self.all_engines:
                engine.close()

    def _finish(self):
        self.closed = True
        self.host.close()
        for one in self.jobs:
            if one.job is not None:
                error = one.job.exception(SOON)
                assert error is None or isinstance(error, WorkerError), error
                assert (error is None and one.job.result().cancelled) == one.job.cancelled()
            if one.stream is not None or one.has_frames:
                while not one.over:
                    one.read(SOON)
                assert not one.read(0.01)
            one.check()
            if one.job is not None and one.has_frames and one.error is None:
                assert one.job.result().text.startswith("".join(frame.text for frame in one.tokens()))
        self.jobs.clear()
        give_up = time.monotonic() + SOON
        while self.host.jobs() or any(replica.jobs for replica in self.replicas):
            assert time.monotonic() < give_up, (self.host.jobs(), [(r.name, r.jobs) for r in self.replicas])
            time.sleep(0.002)
        assert len(self.host._jobs) == 0
        assert not any(self.host._pools["chat"]._waiting)
        every = {f"j{number + 1}" for number in range(self.numbers)}
        assert set(self.told.submitted) == every
        assert set(self.told.ended) == every, every - set(self.told.ended)
        self.at_most_one_generation_a_job()
        self.nothing_is_told_twice()
        assert all(engine.idle() for engine in self.all_engines)


class OverSockets(Machine):
    """The same over real HTTP."""

    engine = SimulatedEngine


def run(machine, examples, steps):
    """So many examples; then no thread of the host is left, nor anything that only the collector would free."""
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            database=None,
            phases=[Phase.generate],  # threads make no two runs alike: shrinking takes long and finds another fault
        ),
    )
    give_up = time.monotonic() + SOON
    while [thread for thread in threading.enumerate() if thread.name.startswith(("worker-adapters", "simulate"))]:
        assert time.monotonic() < give_up, threading.enumerate()
        time.sleep(0.02)
    gc.collect()


@pytest.mark.slow
def test_over_scripted_engines():
    """One started and one end or error a job; no token after a cancel; nothing left over."""
    run(Machine, 120, 50)


@pytest.mark.slow
def test_over_simulators():
    """The same over sockets, which are all closed in the end."""
    run(OverSockets, 20, 30)
