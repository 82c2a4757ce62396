"""Which replica a job goes to, or why to none: pins, sessions, load, slots, readiness, residency, context, fields."""

import threading
from dataclasses import replace

import pytest

from worker_adapters import (
    AdapterHost,
    ContextOverflow,
    EngineProps,
    EngineUnavailable,
    InvalidRequest,
    MockAdapter,
    PoolUnavailable,
    TaskRequest,
)
from worker_adapters.cancel import Job
from worker_adapters.host.placement import BYTES_A_TOKEN, choose, overflow
from worker_adapters.host.replica import Replica


class Told(MockAdapter):
    """A mock whose props and health say what a test wants; it counts who asked."""

    def __init__(self, *, residency="unknown", slots_free=None, fields=None, release_ms=0.0, gate=None, **options):
        super().__init__(**options)
        self.told = {"residency": residency, "slots_free": slots_free}
        self.gate = gate
        self.looks = 0
        self.capabilities = replace(
            MockAdapter.capabilities, **({} if fields is None else {"fields": fields}), release_ms=release_ms
        )

    def props(self):
        self.looks += 1
        if self.gate is not None:
            assert self.gate.wait(10.0)
        return replace(super().props(), **self.told)


def bound(host, **adapters):
    """The adapters as replicas of the pool."""
    for name, adapter in adapters.items():
        host.bind("chat", name, adapter)
    return host


def ran_on(host, task="x", **fields):
    """The replica a job ran on."""
    stream = host.submit(task, pool="chat", **fields)
    stream.start()
    replica = host.jobs()[-1].replica
    stream.result()
    return replica


# --- the choice itself


def replica(name, jobs=0, **told):
    """A replica with so many jobs, whose engine said so."""
    made = Replica("chat", name, MockAdapter())
    made.jobs = {Job(f"{name}-{number}") for number in range(jobs)}
    made.max_in_flight = told.pop("most", None)
    if told:
        made.props = EngineProps("mock", **told)
    return made


def chosen(*replicas, known=None, tried=()):
    """Its name."""
    found = choose(replicas, now=0.0, known=known, tried=tried)
    return found and found.name


def test_untried_then_session_then_load_then_slots():
    """Each only decides what those before it left open."""
    a, b = replica("a", jobs=3, slots_free=0), replica("b", jobs=1, slots_free=1)
    assert chosen(a, b) == "b"
    assert chosen(a, b, known="a") == "a"
    assert chosen(a, b, known="a", tried={a}) == "b"
    assert chosen(a, b, tried={a, b}) == "b"
    c = replica("c", jobs=1, slots_free=5)
    assert chosen(a, b, c) == "c"
    assert chosen(a, c, replica("d", jobs=1)) == "c"  # d's engine does not tell


def test_the_full_are_left_out_and_none_is_chosen_when_all_are():
    """A session waits for nobody: it goes elsewhere while its replica is full."""
    a, b = replica("a", jobs=2, most=2), replica("b", jobs=5, most=6)
    assert chosen(a, b, known="a") == "b"
    b.jobs.add(Job("x"))
    assert chosen(a, b) is None


def test_an_engine_that_is_still_freeing_a_cancelled_job_is_as_busy_as_before():
    """Until its time is over."""
    a = replica("a", most=1)
    a.freeing = [5.0]
    assert choose([a], now=4.9, known=None, tried=()) is None
    assert choose([a], now=5.0, known=None, tried=()) is a
    b = replica("b", jobs=1)
    a.freeing = [9.0, 9.0]
    a.max_in_flight = None
    assert choose([a, b], now=8.0, known=None, tried=()) is b


# --- pins


def test_a_pin_is_obeyed_or_refused():
    """At submit where there is no such replica; at the start where it cannot; another one is never taken."""
    with AdapterHost() as host:
        bound(host, r0=MockAdapter(), r1=MockAdapter(health="unhealthy"))
        assert {ran_on(host, replica="r0") for _ in range(4)} == {"r0"}
        with pytest.raises(InvalidRequest, match="r0, r1") as refused:
            host.submit("x", pool="chat", replica="r2")
        assert refused.value.field == "replica"
        with pytest.raises(EngineUnavailable):
            host.submit("x", pool="chat", replica="r1").result()


def test_an_unknown_pool_is_refused_at_submit():
    """With the names of those there are."""
    with AdapterHost() as host:
        bound(host, r0=MockAdapter())
        with pytest.raises(InvalidRequest, match="chat") as refused:
            host.submit("x", pool="chta")
        assert refused.value.field == "pool"


# --- sessions


def test_a_session_stays_where_its_cache_is():
    """Also where that replica has more jobs than the others; without a session the least busy gets it."""
    with AdapterHost() as host:
        bound(host, r0=MockAdapter(), r1=MockAdapter(), r2=MockAdapter())
        home = ran_on(host, session_id="s")
        held = [host.submit("x", pool="chat", replica=home) for _ in range(3)]
        for stream in held:
            stream.start()
        assert [ran_on(host, session_id="s") for _ in range(4)] == [home] * 4
        assert home not in {ran_on(host) for _ in range(4)}
        for stream in held:
            stream.close()


def test_a_session_moves_when_its_replica_refuses_and_stays_there():
    """Its cache is then where it was answered."""
    with AdapterHost() as host:
        r0, r1 = MockAdapter(), MockAdapter()
        bound(host, r0=r0, r1=r1)
        assert ran_on(host, session_id="s") == "r0"
        r0.state = "degraded"
        assert ran_on(host, session_id="s") == "r1"
        r0.state = "healthy"
        assert ran_on(host, session_id="s") == "r1"


def test_jobs_spread_over_the_least_busy():
    """Nine running jobs over three replicas are three each."""
    with AdapterHost() as host:
        bound(host, r0=MockAdapter(), r1=MockAdapter(), r2=MockAdapter())
        held = [host.submit("x", pool="chat") for _ in range(9)]
        for stream in held:
            stream.start()
        told = host.props()["chat"]
        assert [told[name]["in_flight"] for name in ("r0", "r1", "r2")] == [3, 3, 3]
        for stream in held:
            stream.close()
        assert {one["in_flight"] for one in host.props()["chat"].values()} == {0}


# --- fields


def test_a_field_that_no_replica_has_is_refused_at_submit():
    """Naming it; and nothing stays behind."""
    with AdapterHost() as host:
        bound(host, r0=Told(fields=("seed",)), r1=Told(fields=("seed",)))
        with pytest.raises(InvalidRequest) as refused:
            host.submit("x", pool="chat", grammar="root ::= x")
        assert (refused.value.field, refused.value.phase) == ("grammar", "submit")
        assert host.jobs() == []


def test_a_field_that_one_replica_has_goes_there():
    """However busy it is; a pin elsewhere is refused."""
    with AdapterHost() as host:
        bound(host, r0=Told(fields=()), r1=Told(fields=("seed",)), r2=Told(fields=()))
        held = [host.submit("x", pool="chat", replica="r1") for _ in range(3)]
        for stream in held:
            stream.start()
        assert {ran_on(host, seed=1) for _ in range(4)} == {"r1"}
        with pytest.raises(InvalidRequest) as refused:
            host.submit("x", pool="chat", replica="r0", seed=1)
        assert refused.value.field == "seed"
        for stream in held:
            stream.close()


def test_a_failover_asks_no_replica_that_lacks_a_field():
    """And where there is no other, the refusal is the engine's own."""
    with AdapterHost(retry={"attempts": 2, "base": 0.01}) as host:
        loading = EngineUnavailable(message="loading", retriable=True)
        down, lacking = Told(error=loading), Told(fields=())
        bound(host, r0=down, r1=lacking)
        with pytest.raises(EngineUnavailable, match="loading"):
            host.submit("x", pool="chat", seed=1).result()
        assert (down.attempts, lacking.attempts) == (2, 0)


def test_the_only_replica_that_has_the_field_leaves_while_jobs_wait():
    """They are told which field it was, not left waiting."""
    with AdapterHost() as host:
        host.bind("chat", "r0", Told(fields=("seed",)), max_in_flight=1)
        host.bind("chat", "r1", Told(fields=()))
        with host.submit("x", pool="chat", seed=1) as first:
            first.start()
            second = host.dispatch("x", pool="chat", seed=1)
            assert waits(host, 1)
            threading.Thread(target=host.unbind, args=("chat", "r0")).start()
            with pytest.raises(InvalidRequest) as refused:
                second.result(10.0)
            assert refused.value.field == "seed"


def waits(host, count):
    """Until so many jobs wait in the pool; False after 10 s."""
    pool = host._pools["chat"]
    done = threading.Event()
    for _ in range(1000):
        if sum(map(len, pool._waiting)) >= count:
            return True
        done.wait(0.01)
    return False


# --- readiness


def looked(host, replica="r0", pool="chat"):
    """Waits for the look at that replica which runs or is about to."""
    found = host._pools[pool]._replicas[replica]
    done = threading.Event()
    for _ in range(1000):
        if not found.looking and found.health is not None:
            return host.props()[pool][replica]
        done.wait(0.01)
    raise AssertionError("no look came to an end")


def test_nothing_is_asked_before_a_job_comes():
    """Not when it is bound, not when props are read."""
    with AdapterHost() as host:
        adapter = Told()
        bound(host, r0=adapter)
        assert host.props()["chat"]["r0"]["health"] is None
        assert adapter.looks == 0
        host.submit("x", pool="chat").result()
        assert looked(host)["health"] == "healthy"
        assert adapter.looks == 1
        for _ in range(5):
            host.submit("x", pool="chat").result()
        assert adapter.looks == 1  # soon enough to be still true


def test_one_that_is_not_ready_gets_no_job():
    """Its engine said so; the others take them all."""
    with AdapterHost() as host:
        r0, r1 = MockAdapter(health="degraded"), MockAdapter()
        bound(host, r0=r0, r1=r1)
        host.submit("x", pool="chat").result()
        assert not looked(host)["ready"]
        before = r0.attempts
        assert {ran_on(host) for _ in range(5)} == {"r1"}
        assert r0.attempts == before


def test_a_job_is_not_refused_on_old_news():
    """An engine that came back while nobody asked takes the first job that does."""
    with AdapterHost(retry={"attempts": 1}) as host:
        adapter = MockAdapter(health="degraded")
        bound(host, r0=adapter)
        with pytest.raises(EngineUnavailable):
            host.submit("x", pool="chat").result()
        assert not looked(host)["ready"]
        with pytest.raises(EngineUnavailable, match="not ready"):
            host.submit("x", pool="chat").result()  # this news is fresh
        adapter.state = "healthy"
        host._pools["chat"]._replicas["r0"].looked_at -= 3600.0
        assert host.submit("x", pool="chat").result().finish_reason == "stop"


def test_all_not_ready_is_said_at_once_and_when_to_come_back():
    """Which, and what each said."""
    with AdapterHost(retry={"attempts": 1}) as host:
        bound(host, r0=MockAdapter(health="degraded"))
        with pytest.raises(EngineUnavailable):
            host.submit("x", pool="chat").result()
        looked(host)
        with pytest.raises(EngineUnavailable, match=r"r0 is not ready \(as it was told\)") as refused:
            host.submit("x", pool="chat").result()
        assert refused.value.retry_after_ms == 1000
        assert refused.value.phase == "queue"


def test_a_look_that_fails_or_hangs_stops_no_job():
    """A third party's health or props may raise, or not come back: that says nothing of its engine."""
    hangs = threading.Event()

    class Broken(MockAdapter):
        def health(self, *, probe=False, timeout=2.0):
            raise ZeroDivisionError

    class Silent(MockAdapter):
        def health(self, *, probe=False, timeout=2.0):
            assert hangs.wait(30.0)
            return super().health()

        def props(self):
            raise EngineUnavailable(message="no")

    with AdapterHost() as host:
        bound(host, r0=Broken(), r1=Silent())
        host.submit("x", pool="chat").result()
        assert looked(host)["message"] == "ZeroDivisionError"
        for name in ("r0", "r1") * 3:
            assert ran_on(host, replica=name) == name
        hangs.set()
        assert looked(host, "r1")["message"] == "no"
        assert ran_on(host, replica="r1") == "r1"


def test_an_empty_pool_says_so():
    """Its last replica has left."""
    with AdapterHost() as host:
        bound(host, r0=MockAdapter())
        assert host.unbind("chat", "r0")
        with pytest.raises(EngineUnavailable, match="no replica"):
            host.submit("x", pool="chat").result()


# --- residency


@pytest.mark.parametrize("told", ["gpu", "partial", "cpu", "unknown"])
@pytest.mark.parametrize("declared", [None, "gpu", "cpu"])
@pytest.mark.parametrize("policy", ["off", "warn", "strict"])
def test_the_policy_takes_what_is_declared_else_what_is_told(policy, declared, told, caplog):
    """strict refuses all but gpu; warn says it once; off does not care. Unknown is not gpu."""
    adapter = Told(residency=told)
    with AdapterHost(policy=policy) as host:
        host.bind("chat", "r0", adapter, residency=declared)
        found = declared or told
        if policy == "strict" and found != "gpu":
            with pytest.raises(PoolUnavailable) as refused:
                host.submit("x", pool="chat").result()
            words = refused.value.message
            assert "r0" in words
            assert found in words
            assert "accepted: gpu" in words
            assert not refused.value.retriable
            assert adapter.attempts == 0
        else:
            host.submit("x", pool="chat").result()
            looked(host)
            host.submit("x", pool="chat").result()
            host.submit("x", pool="chat").result()
        warned = [record for record in caplog.records if "not known to run on the GPU" in record.getMessage()]
        assert len(warned) == (policy == "warn" and found != "gpu")


def test_strict_waits_for_what_an_engine_reports():
    """The first job of an undeclared replica is neither refused nor let in before its engine has told."""
    gate = threading.Event()
    with AdapterHost(policy="strict") as host:
        bound(host, r0=Told(residency="gpu", gate=gate))
        job = host.dispatch("x", pool="chat")
        assert waits(host, 1)
        gate.set()
        assert job.result(10.0).finish_reason == "stop"


def test_strict_prefers_those_on_the_gpu_and_waits_for_them():
    """A full one is waited for; one elsewhere is never the way out."""
    with AdapterHost(policy="strict") as host:
        host.bind("chat", "r0", MockAdapter(), residency="gpu", max_in_flight=1)
        host.bind("chat", "r1", MockAdapter(), residency="cpu")
        with host.submit("x", pool="chat") as first:
            first.start()
            second = host.dispatch("x", pool="chat")
            assert waits(host, 1)
        assert second.result(10.0).finish_reason == "stop"


def test_strict_with_its_gpu_replica_down_is_unavailable_not_refused():
    """To come back later helps; the one on the CPU has nothing to do with it."""
    with AdapterHost(policy="strict", retry={"attempts": 4, "base": 0.01}) as host:
        down, cpu = MockAdapter(error=EngineUnavailable(message="down", retriable=True)), MockAdapter()
        host.bind("chat", "r0", down, residency="gpu")
        host.bind("chat", "r1", cpu, residency="cpu")
        with pytest.raises(EngineUnavailable) as refused:
            host.submit("x", pool="chat").result()
        assert "r1" not in refused.value.message
        with pytest.raises(EngineUnavailable) as refused:
            host.submit("x", pool="chat").result()
        assert refused.value.retry_after_ms > 0
        assert cpu.attempts == 0


# --- context


def test_a_prompt_that_cannot_fit_is_refused_without_a_question():
    """More characters than any tokenizer packs into so many tokens."""
    with AdapterHost() as host:
        adapter = Told(context_size=4)
        bound(host, r0=adapter)
        host.submit("x", pool="chat").result()
        looked(host)
        attempts = adapter.attempts
        with pytest.raises(ContextOverflow) as refused:
            host.submit("x" * (4 * BYTES_A_TOKEN + 1), pool="chat").result()
        assert refused.value.context_size == 4
        assert adapter.attempts == attempts
        with pytest.raises(ContextOverflow):  # the engine's own: five words
            host.submit("a b c d e", pool="chat").result()
        assert adapter.attempts == attempts + 1


@pytest.mark.parametrize("sizes", [(), (None,), (1, None), (1, 9)])
def test_what_is_not_certain_is_the_engines_to_say(sizes):
    """No props yet, an engine that does not tell, or one whose context is larger."""
    replicas = [replica(f"r{number}", context_size=size) for number, size in enumerate(sizes)]
    assert overflow(TaskRequest(prompt="x" * 9 * BYTES_A_TOKEN), replicas) is None
    assert overflow(TaskRequest(prompt="x" * 9 * BYTES_A_TOKEN), [*replicas, replica("new")]) is None


def test_messages_count_as_well():
    """All of them together."""
    half = {"role": "user", "content": "x" * BYTES_A_TOKEN}
    there = [replica("r0", context_size=1)]
    assert overflow(TaskRequest.of([half]), there) is None
    found = overflow(TaskRequest.of([half, {"role": "assistant", "content": "y"}, half]), there)
    assert found is not None
    assert "y" not in found.message.split()


# --- adapters that are made when they are needed


def test_an_adapter_is_made_once_by_whichever_job_needs_it():
    """However many come at once; the others' replicas are not made."""
    made = []
    begin = threading.Barrier(8)

    def make():
        made.append(MockAdapter())
        return made[-1]

    with AdapterHost() as host:
        host.bind("chat", "r0", make)

        def run():
            begin.wait(10.0)
            host.submit("x", pool="chat").result()

        threads = [threading.Thread(target=run) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10.0)
        assert sum(adapter.attempts > 0 for adapter in made) == 1
        assert max(adapter.attempts for adapter in made) == 8


def test_one_that_cannot_be_made_harms_no_other():
    """The jobs go where there is an adapter; alone, it is an InvalidRequest at submit that says which and why."""

    def breaks():
        raise OSError("no such file")

    with AdapterHost() as host:
        bound(host, r0=MockAdapter(), r1=breaks)
        held = host.submit("x", pool="chat")
        held.start()
        assert ran_on(host) == "r0"
        held.close()
        host.bind("other", "r0", breaks)
        with pytest.raises(InvalidRequest, match="other/r0") as refused:
            host.submit("x", pool="other")
        assert "OSError" in refused.value.message
        assert host.jobs() == []
