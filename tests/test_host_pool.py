"""Places: how many jobs a replica has at once, who waits, for how long, in which order, and who gets what is freed."""

import gc
import threading
import time
from dataclasses import replace
from itertools import pairwise

import pytest

from worker_adapters import AdapterHost, EngineUnavailable, MockAdapter, TaskRequest, WorkerTimeout
from worker_adapters.cancel import Job
from worker_adapters.clocks import Runtime
from worker_adapters.errors import CapacityExceeded
from worker_adapters.host.placement import LOOK_AGAIN_MS
from worker_adapters.host.pool import TURNS, Pool
from worker_adapters.host.replica import Replica
from worker_adapters.host.ticket import Ticket
from worker_adapters.retry import RetryPolicy

SOON = 10.0  # what is expected at once may take so long on a busy machine


class Still(Runtime):
    """Time that passes only where the test says so."""

    def __init__(self):
        self.at = 1000.0

    def monotonic(self):
        return self.at


class Freeing(MockAdapter):
    """Its engine needs a while to notice a cancel."""

    def __init__(self, release_ms, **options):
        super().__init__(**options)
        self.capabilities = replace(MockAdapter.capabilities, release_ms=release_ms)


# --- the pool by itself, driven step by step


class Desk:
    """A pool, its clock, and tickets that are asked for by hand."""

    def __init__(self, **replicas):
        self.runtime = Still()
        self.pool = Pool("chat", self.runtime, RetryPolicy(), "off", lambda *words: None)
        self.replicas = {}
        for name, most in replicas.items():
            self.bind(name, most)

    def bind(self, name, most, adapter=None):
        """A replica with so many places; its health was just looked at."""
        made = Replica("chat", name, adapter or MockAdapter(), max_in_flight=most)
        made.looked_at = float("inf")
        self.replicas[name] = made
        self.pool.bind(made, replace=False)

    def asks(self, name, pin=None, **fields):
        """A job that wants a place."""
        return Asking(self, Ticket(TaskRequest(prompt="x", **fields), Job(name), pin))

    @property
    def jobs(self):
        """Replica -> its jobs, by name."""
        return {name: sorted(job.job_id for job in made.jobs) for name, made in self.replicas.items()}

    @property
    def waiting(self):
        """Those in the queues."""
        return [ticket.job.job_id for queue in self.pool._waiting for ticket in queue]


class Asking:
    """A job on its way to a place."""

    def __init__(self, desk, ticket):
        self.desk, self.ticket = desk, ticket
        self.steps = desk.pool.acquire(ticket)
        self.place = self.wait = None
        self.step()

    def step(self):
        """Goes on, as if woken."""
        try:
            self.wait = next(self.steps)
        except StopIteration as end:
            self.place, self.wait = end.value, None
        return self

    @property
    def woken(self):
        """Was it told to look around? Takes the message."""
        wake = self.ticket.job.wake
        found = not wake.empty()
        while not wake.empty():
            wake.get()
        return found

    def ends(self, error=None, *, accepted=True):
        """Its job ends."""
        if accepted:
            self.desk.pool.accepted(self.place)
        self.desk.pool.release(self.ticket, self.place, error, accepted=accepted)


def test_no_more_jobs_than_places():
    """The rest wait, in the order in which they came, and each that ends lets one in."""
    desk = Desk(r0=2)
    asking = [desk.asks(f"j{number}") for number in range(5)]
    assert [one.place is not None for one in asking] == [True, True, False, False, False]
    assert asking[2].wait.phase == "pool"
    asking[1].ends()
    assert [one.woken for one in asking] == [False, False, True, False, False]
    assert asking[2].step().place is desk.replicas["r0"]
    assert asking[3].step().place is None
    assert desk.jobs == {"r0": ["j0", "j2"]}
    for one in (asking[0], asking[2], asking[3].step(), asking[4].step()):
        one.step() if one.place is None else None
        one.ends()
    assert desk.jobs == {"r0": []}
    assert desk.waiting == []


def test_a_release_twice_gives_back_one_place():
    """Whatever ends a job may come again."""
    desk = Desk(r0=1)
    first, second, third = (desk.asks(name) for name in "abc")
    first.ends()
    first.ends()
    assert desk.jobs == {"r0": ["b"]}
    assert third.step().place is None
    second.step().ends()
    assert third.step().place is not None


def test_who_comes_does_not_overtake_who_waits():
    """Also when the place was freed by time alone, which tells nobody."""
    desk = Desk()
    desk.bind("r0", 1, Freeing(90.0))
    first = desk.asks("first")
    first.ticket.job.cancel()
    first.ends()
    second = desk.asks("second")
    assert second.place is None
    desk.runtime.at += 0.1
    third = desk.asks("third")
    assert third.place is None
    assert second.woken
    assert second.step().place is not None


def test_a_place_is_taken_until_the_engine_has_noticed_the_cancel():
    """A waiter knows when to look again, and nobody has to tell it."""
    desk = Desk()
    desk.bind("r0", 1, Freeing(90.0))
    first, second = desk.asks("first"), desk.asks("second")
    first.ticket.job.cancel()
    first.ends()
    assert second.woken
    assert second.step().place is None
    assert second.wait.until == pytest.approx(desk.runtime.at + 0.09)
    desk.runtime.at += 0.089
    assert second.step().place is None
    desk.runtime.at += 0.002
    assert second.step().place is desk.replicas["r0"]


def test_a_pin_or_a_field_at_the_head_holds_up_nobody_behind():
    """Places that the first cannot use go to the next."""
    desk = Desk(r0=1, r1=1)
    desk.asks("a", pin="r0"), desk.asks("b", pin="r1")
    pinned = [desk.asks(f"p{number}", pin="r0") for number in range(3)]
    free, other = desk.asks("free"), desk.asks("other", priority="batch")
    desk.pool.release(*held(desk, "r1"), None, accepted=True)
    assert free.woken
    assert not any(one.woken for one in pinned)
    assert free.step().place is desk.replicas["r1"]
    free.ends()
    assert other.step().place is desk.replicas["r1"]
    desk.pool.release(*held(desk, "r0"), None, accepted=True)
    assert [one.woken for one in pinned] == [True, False, False]


def held(desk, name):
    """A ticket of the job there, and the replica."""
    found = desk.replicas[name]
    ticket = Ticket(TaskRequest(prompt="x"), next(iter(found.jobs)), None)
    return ticket, found


def test_interactive_goes_before_batch_but_not_for_ever():
    """A waiting batch job goes after at most TURNS interactive ones."""
    desk = Desk(r0=1)
    current = desk.asks("first")
    batch = [desk.asks(f"b{number}", priority="batch") for number in range(3)]
    interactive = [desk.asks(f"i{number}") for number in range(3 * TURNS)]
    order = []
    waiting = batch + interactive
    while waiting:
        current.ends()
        current = next(one for one in waiting if one.ticket.granted is not None)
        waiting.remove(current)
        order.append(current.ticket.job.job_id)
        current.step()
    assert order[:TURNS] == [f"i{number}" for number in range(TURNS)]
    at = [order.index(f"b{number}") for number in range(3)]
    assert at[0] == TURNS
    assert [later - earlier for earlier, later in pairwise(at)] == [TURNS + 1, TURNS + 1]


def test_batch_takes_what_nobody_else_wants():
    """It waits for interactive jobs, not for their absence."""
    desk = Desk(r0=1)
    assert desk.asks("b", priority="batch").place is not None


def test_cancelled_waiters_leave_and_hold_up_nobody():
    """Whether anybody pulls them or not."""
    desk = Desk(r0=1)
    first = desk.asks("first")
    gone, next_one = desk.asks("gone"), desk.asks("next")
    gone.ticket.job.cancel()
    first.ends()
    assert desk.waiting == []
    assert next_one.step().place is not None
    gone.steps.close()
    assert desk.jobs == {"r0": ["next"]}


def test_a_place_given_to_a_job_that_was_cancelled_goes_to_the_next():
    """Nobody came for it: it was on its way when the cancel came."""
    desk = Desk(r0=1)
    first, second, third = (desk.asks(name) for name in ("first", "second", "third"))
    first.ends()
    assert second.ticket.granted is not None
    second.ticket.job.cancel()
    second.steps.close()  # what its stream does
    assert third.woken
    assert third.step().place is not None
    assert desk.jobs == {"r0": ["third"]}


def test_a_clock_that_fires_while_a_place_is_on_its_way_gives_it_back():
    """The clock is thrown into the wait."""
    desk = Desk(r0=1)
    first, second, third = (desk.asks(name) for name in ("first", "second", "third"))
    first.ends()
    with pytest.raises(WorkerTimeout):
        second.steps.throw(WorkerTimeout(clock="pool", message="late"))
    assert third.step().place is not None
    assert desk.jobs == {"r0": ["third"]}


def test_a_replica_that_is_bound_serves_those_who_wait():
    """And one that is put in another's place serves those who were pinned to it."""
    desk = Desk(r0=1)
    desk.asks("first")
    second, pinned = desk.asks("second"), desk.asks("pinned", pin="r0")
    desk.bind("r1", 1)
    assert second.step().place is desk.replicas["r1"]
    new = Replica("chat", "r0", MockAdapter(), max_in_flight=1)
    desk.pool.bind(new, replace=True)
    assert pinned.step().place is new
    assert {job.job_id for job in desk.replicas["r0"].jobs} == {"first"}


def test_unbinding_the_last_one_refuses_those_who_wait():
    """At once: nobody would ever serve them."""
    desk = Desk(r0=1)
    desk.asks("first")
    second, pinned = desk.asks("second"), desk.asks("pinned", pin="r0")
    desk.pool.unbind("r0")
    for one in (second, pinned):
        assert one.woken
        with pytest.raises(EngineUnavailable, match="no replica"):
            one.step()


def test_a_breaker_that_opens_refuses_those_who_wait_and_says_when():
    """All at once, without waiting for their turn."""
    desk = Desk(r0=3)
    running = [desk.asks(f"r{number}") for number in range(3)]
    waiting = [desk.asks(f"w{number}") for number in range(3)]
    for one in running:
        one.ends(EngineUnavailable(message="dead"), accepted=False)
    # two of those who waited got the places of the first two that failed
    assert [one.step().place is not None if one.ticket.refusal is None else None for one in waiting][:2] == [True, True]
    with pytest.raises(EngineUnavailable, match="breaker is open") as refused:
        waiting[2].step()
    assert refused.value.retry_after_ms == 1000
    with pytest.raises(EngineUnavailable, match="breaker is open"):
        desk.asks("late")


def test_a_trial_that_is_accepted_lets_the_others_in():
    """Those who waited for the other replica need not wait for one of its jobs to end."""
    desk = Desk(r0=None, r1=1)
    desk.asks("busy", pin="r1")
    for number in range(3):
        desk.asks(f"f{number}", pin="r0").ends(EngineUnavailable(message="dead"), accepted=False)
    desk.runtime.at += 1.0
    trial = desk.asks("trial")
    assert trial.place is desk.replicas["r0"]
    waiting = desk.asks("waiting")
    assert waiting.place is None
    desk.pool.accepted(desk.replicas["r0"])
    assert waiting.woken
    assert waiting.step().place is desk.replicas["r0"]


def test_the_collector_may_end_a_job_on_top_of_the_pool():
    """Its lock is the same thread's; no place is lost or given twice."""
    desk = Desk(r0=4)
    held = [desk.asks(f"h{number}") for number in range(4)]
    waiting = [desk.asks(f"w{number}") for number in range(40)]
    real = desk.pool._settle

    def settle(ticket):
        if held:
            held.pop().ends()  # what a collection may do at any place
        elif waiting and waiting[-1].place is None and len(waiting) > 20:
            dropped = waiting.pop()
            dropped.ticket.job.cancel()
            dropped.steps.close()
        real(ticket)

    desk.pool._settle = settle
    held.pop().ends()
    while waiting:
        ready = [one for one in waiting if one.ticket.granted is not None]
        assert len(desk.replicas["r0"].jobs) <= 4
        assert ready, desk.waiting
        for one in ready:
            waiting.remove(one)
            one.step().ends()
    assert desk.jobs == {"r0": []}
    assert desk.waiting == []


# --- through a host


def pool_of(host, name="chat"):
    """Its pool."""
    return host._pools[name]


def waiting(host, count):
    """Waits until so many jobs wait for a place."""
    until = time.monotonic() + SOON
    while sum(map(len, pool_of(host)._waiting)) != count:
        assert time.monotonic() < until, "they do not wait"
        time.sleep(0.002)


def test_the_pool_clock_fires_and_says_that_it_was_the_wait():
    """After timeouts.pool of the task, else of the host; then it may be tried again."""
    with AdapterHost(timeouts={"pool": 0.2}) as host:
        host.bind("chat", "r0", MockAdapter(), max_in_flight=1)
        with host.submit("x", pool="chat") as first:
            first.start()
            for fields, least in (({}, 0.2), ({"timeouts": {"pool": 0.4}}, 0.4)):
                began = time.monotonic()
                with pytest.raises(WorkerTimeout) as late:
                    host.submit("x", pool="chat", **fields).result()
                assert least <= time.monotonic() - began < least + 5
                assert (late.value.clock, late.value.phase, late.value.retriable) == ("pool", "queue", True)
                assert late.value.tokens_seen == 0
            assert [info.job_id for info in host.jobs()] == [first.job_id]
        assert host.submit("x", pool="chat").result().finish_reason == "stop"


def test_waiting_ticks_and_the_total_clock_fires_there_too():
    """A heartbeat while it waits; the caller's total is over everything."""
    with AdapterHost() as host:
        host.bind("chat", "r0", MockAdapter(), max_in_flight=1)
        with host.submit("x", pool="chat") as first:
            first.start()
            second = host.submit("x", pool="chat", timeouts={"total": 0.5})
            ticks = second.ticks(0.05)
            assert next(ticks) is None
            with pytest.raises(WorkerTimeout) as late:
                list(ticks)
            assert late.value.clock == "total"
        assert host.jobs() == []


def test_the_pool_wait_counts_once_over_all_tries():
    """A job that was refused and waits again has not got a new clock for it; the engine's clocks begin again."""
    refuses = MockAdapter(error=CapacityExceeded(message="full"), first_delay=0.6)
    answers = MockAdapter(first_delay=0.6)
    with AdapterHost() as host:
        host.bind("chat", "r0", refuses)
        host.bind("chat", "r1", answers)
        done = host.submit("x", pool="chat", timeouts={"first_token": 1.0}).result()
        assert done.finish_reason == "stop"
        assert (refuses.attempts, answers.attempts) == (1, 1)


def test_many_threads_never_exceed_the_places_and_all_get_one():
    """64 jobs over 2 + 3 places; no more than 5 ever run, and none is left over."""
    most, now, lock = [0, 0], [0, 0], threading.Lock()

    def engine(number):
        def tokens(task):
            with lock:
                now[number] += 1
                most[number] = max(most[number], now[number])
            return ["x"]

        class Counting(MockAdapter):
            def attempt(self, task, job):
                try:
                    yield from super().attempt(task, job)
                finally:
                    with lock:
                        now[number] -= 1

        return Counting(tokens=tokens, delay=0.005)

    with AdapterHost(max_workers=64) as host:
        host.bind("chat", "r0", engine(0), max_in_flight=2)
        host.bind("chat", "r1", engine(1), max_in_flight=3)
        jobs = [host.dispatch("x", pool="chat", priority=("interactive", "batch")[n % 2]) for n in range(64)]
        assert {job.result(30.0).finish_reason for job in jobs} == {"stop"}
        assert most == [2, 3]
        assert [one["in_flight"] for one in host.props()["chat"].values()] == [0, 0]
        assert host.jobs() == []


def test_a_waiter_gets_the_place_of_an_engine_that_needs_long_to_notice_a_cancel():
    """In real time: not before it, and soon after, though nothing happens then."""
    adapter = Freeing(400.0, endless=True, delay=0.01)
    with AdapterHost() as host:
        host.bind("chat", "r0", adapter, max_in_flight=1)
        first = host.dispatch("x", pool="chat", max_tokens=100_000)
        second = host.dispatch("x", pool="chat", max_tokens=2)
        waiting(host, 1)
        first.cancel()
        assert first.result(SOON).cancelled
        began = time.monotonic()
        assert second.result(SOON).finish_reason == "length"
        assert 0.2 < time.monotonic() - began < 5


def test_a_place_is_free_when_the_end_is_delivered():
    """Whether its reader asks for more or not; the name too."""
    with AdapterHost() as host:
        host.bind("chat", "r0", MockAdapter(), max_in_flight=1)
        first = host.submit("x", pool="chat", job_id="same")
        while next(first).type != "end":
            pass
        assert host.jobs() == []
        assert host.submit("x", pool="chat", job_id="same", timeouts={"pool": 1.0}).result().finish_reason == "stop"
        assert host.unbind("chat", "r0")
        assert list(first) == []


def test_a_job_that_is_dropped_while_it_waits_leaves():
    """By reference count alone."""
    with AdapterHost() as host:
        host.bind("chat", "r0", MockAdapter(), max_in_flight=1)
        with host.submit("x", pool="chat") as first:
            first.start()
            second = host.submit("x", pool="chat")
            assert next(second.ticks(0.01)) is None
            gc.disable()
            try:
                del second
                assert sum(map(len, pool_of(host)._waiting)) == 0
                assert len(host.jobs()) == 1
            finally:
                gc.enable()


def test_all_breakers_open_is_said_at_once_with_the_soonest_return():
    """Not after timeouts.pool."""
    with AdapterHost(retry={"attempts": 1}, breaker={"failures": 1, "open_for": 20.0}) as host:
        for name in ("r0", "r1"):
            host.bind("chat", name, MockAdapter(error=EngineUnavailable(message="dead")))
        for _ in range(2):
            with pytest.raises(EngineUnavailable, match="dead"):
                host.submit("x", pool="chat").result()
        began = time.monotonic()
        with pytest.raises(EngineUnavailable, match=r"r0 failed.*r1 failed") as refused:
            host.submit("x", pool="chat").result()
        assert time.monotonic() - began < 5
        assert LOOK_AGAIN_MS < refused.value.retry_after_ms <= 20_000


def test_a_replica_bound_while_others_wait_serves_the_waiters():
    """Dispatched ones, in real threads."""
    with AdapterHost() as host:
        host.bind("chat", "r0", MockAdapter(), max_in_flight=1)
        with host.submit("x", pool="chat") as first:
            first.start()
            jobs = [host.dispatch("x", pool="chat") for _ in range(3)]
            waiting(host, 3)
            host.bind("chat", "r1", MockAdapter(), max_in_flight=1)
            assert {job.result(SOON).finish_reason for job in jobs} == {"stop"}


# --- binding while jobs run


def test_a_rebound_replica_ends_its_jobs_and_gets_no_new_ones():
    """The stream goes on where it began; the next job is the new one's."""
    old, new = MockAdapter(tokens=("a",) * 5), MockAdapter(tokens=("b",) * 5)
    with AdapterHost() as host:
        host.bind("chat", "r0", old)
        stream = host.submit("x", pool="chat")
        stream.start()
        host.rebind("chat", "r0", new)
        assert host.submit("x", pool="chat").result().text == "bbbbb"
        assert stream.result().text == "aaaaa"
        assert (old.attempts, new.attempts) == (1, 1)


@pytest.mark.parametrize("drain", [True, False])
def test_unbind_waits_for_its_jobs_or_cancels_them(drain):
    """True only if every job ended by itself; jobs of others go on."""
    with AdapterHost() as host:
        for name in ("r0", "r1"):
            host.bind("chat", name, MockAdapter(tokens=("x",) * 40, delay=0.01))
        jobs = {name: host.dispatch("x", pool="chat", replica=name) for name in ("r0", "r1")}
        while not all(one["in_flight"] for one in host.props()["chat"].values()):
            time.sleep(0.002)
        assert host.unbind("chat", "r0", drain=drain) is drain
        assert jobs["r0"].result(SOON).cancelled is not drain
        assert not jobs["r1"].result(SOON).cancelled


def test_unbind_cancels_what_does_not_end_in_time():
    """And says so."""
    with AdapterHost() as host:
        host.bind("chat", "r0", MockAdapter(silent_after=1))
        job = host.dispatch("x", pool="chat")
        while not host.props()["chat"]["r0"]["in_flight"]:
            time.sleep(0.002)
        assert host.unbind("chat", "r0", timeout=0.1) is False
        assert job.result(SOON).cancelled


def test_a_drain_waits_for_nobody_who_was_cancelled():
    """The reader of such a job may never come for its end."""
    with AdapterHost() as host:
        host.bind("chat", "r0", MockAdapter(silent_after=1))
        stream = host.submit("x", pool="chat")
        stream.start()
        stream.cancel()
        began = time.monotonic()
        assert host.unbind("chat", "r0") is True
        host.close(drain=True, timeout=20.0)
        assert time.monotonic() - began < SOON
        assert stream.result().cancelled


def test_unbind_reaches_a_job_whose_thread_has_not_noticed_its_place_yet():
    """It has the place, so it is the replica's; not so the jobs of the one that is bound under the name next."""
    with AdapterHost() as host:
        host.bind("chat", "r0", MockAdapter(endless=True), max_in_flight=1)
        first = host.submit("x", pool="chat", max_tokens=100)
        first.start()
        second = host.submit("x", pool="chat", max_tokens=100)
        assert next(second.ticks(0.01)) is None
        first.close()  # now second has the place, and does not know it
        host.unbind("chat", "r0", drain=False)
        host.bind("chat", "r0", MockAdapter())
        assert second.result().cancelled
        assert host.submit("x", pool="chat").result().finish_reason == "stop"


def test_an_id_can_be_used_again_and_the_old_stream_takes_nothing_with_it():
    """The job is known as long as it runs, whatever becomes of the one that had its name before."""
    with AdapterHost() as host:
        host.bind("chat", "r0", MockAdapter())
        old = host.submit("x", pool="chat", job_id="same")
        old.result()
        new = host.submit("x", pool="chat", job_id="same")
        new.start()
        old.close()
        del old
        assert [info.job_id for info in host.jobs()] == ["same"]
        assert host.cancel_all() == 1
        assert new.result().cancelled
        assert host.jobs() == []


def test_a_full_replica_is_no_reason_to_give_up_a_retry_pause():
    """With no other place to go, the engine's Retry-After is kept."""
    adapter = MockAdapter(error=CapacityExceeded(message="full", retry_after_ms=300), fail_first=1)
    with AdapterHost(policy="strict") as host:
        host.bind("chat", "r0", adapter, residency="gpu")
        host.bind("chat", "r1", MockAdapter(), residency="cpu")
        began = time.monotonic()
        assert host.submit("x", pool="chat").result().finish_reason == "stop"
        assert time.monotonic() - began >= 0.3
        assert adapter.attempts == 2
