"""A replica's breaker: every transition, by a clock that the test holds; and what of a job's end it is told."""

import pytest

from worker_adapters import AdapterHost, EngineUnavailable, InvalidRequest, MockAdapter, StreamTruncated, WorkerTimeout
from worker_adapters.clocks import Runtime
from worker_adapters.errors import CapacityExceeded, ContextOverflow, UnknownError
from worker_adapters.host.breaker import CLOSED, HALF_OPEN, OPEN, Breaker, BreakerPolicy


def breaker(**policy):
    """One with round numbers."""
    return Breaker(BreakerPolicy(**{"failures": 3, "open_for": 1.0, "open_most": 4.0, **policy}))


def opened(**policy):
    """One that opened at 0."""
    made = breaker(**policy)
    for _ in range(3):
        made.enter(0.0)
        made.fault(0.0, trial=False)
    return made


# --- the transitions


def test_it_opens_at_the_first_fault_that_is_one_too_many():
    """Two faults are borne; the third opens it, for ``open_for``."""
    made = breaker()
    for _ in range(2):
        made.enter(0.0)
        made.fault(0.0, trial=False)
        assert (made.state, made.admits(0.0)) == (CLOSED, True)
    made.fault(5.0, trial=False)
    assert (made.state, made.admits(5.0), made.opens_in(5.0)) == (OPEN, False, 1.0)
    assert made.opens_in(5.75) == 0.25


def test_faults_count_in_a_row():
    """A job that ended well begins the count again; one that says nothing does not."""
    made = breaker()
    for _ in range(3):
        made.fault(0.0, trial=False)
        made.fault(0.0, trial=False)
        made.success()
    assert made.state == CLOSED
    made.fault(0.0, trial=False)
    made.nothing(trial=False)
    made.fault(0.0, trial=False)
    made.nothing(trial=False)
    made.fault(0.0, trial=False)
    assert made.state == OPEN


def test_an_engine_that_accepts_and_then_dies_every_time_is_left_alone():
    """Accepting a job is not ending it well."""
    made = breaker()
    for _ in range(3):
        made.enter(0.0)
        made.accepted()
        made.fault(0.0, trial=False)
    assert made.state == OPEN


def test_open_becomes_half_open_when_a_job_asks_after_its_time():
    """Not before, and asking whether changes nothing."""
    made = opened()
    assert not made.admits(0.999)
    assert made.admits(1.0)
    assert made.state == OPEN
    assert made.enter(1.0)
    assert made.state == HALF_OPEN
    assert not made.admits(1.0)


def test_a_trial_that_is_accepted_closes_it():
    """And the next opening lasts as long as the first."""
    made = opened()
    made.enter(1.0)
    made.accepted()
    assert (made.state, made.admits(1.0)) == (CLOSED, True)
    assert not made.enter(1.0)
    for _ in range(3):
        made.fault(2.0, trial=False)
    assert made.opens_in(2.0) == 1.0


def test_a_trial_that_fails_opens_it_for_twice_as_long_up_to_the_most():
    """1, 2, 4, 4 seconds."""
    made = opened()
    now = 0.0
    for seconds in (1.0, 2.0, 4.0, 4.0):
        assert made.opens_in(now) == seconds
        now += seconds
        assert made.enter(now)
        made.fault(now, trial=True)
        assert made.state == OPEN


def test_a_trial_that_says_nothing_makes_way_for_another():
    """It was cancelled, or its request was wrong."""
    made = opened()
    assert made.enter(1.0)
    made.nothing(trial=True)
    assert made.state == HALF_OPEN
    assert made.admits(1.0)
    assert made.enter(1.0)


def test_jobs_from_before_it_opened_do_not_decide_a_trial():
    """Their faults and their cancels are old news; that the engine accepts one is not."""
    made = opened()
    made.fault(0.5, trial=False)
    assert made.opens_in(0.5) == 0.5
    assert made.enter(1.0)
    made.fault(1.0, trial=False)
    made.nothing(trial=False)
    assert made.state == HALF_OPEN
    assert not made.admits(1.0)
    made.accepted()
    assert made.state == CLOSED


@pytest.mark.parametrize(
    ("policy", "field"),
    [
        ({"failures": 0}, "breaker.failures"),
        ({"failures": True}, "breaker.failures"),
        ({"open_for": 0}, "breaker.open_for"),
        ({"open_most": float("nan")}, "breaker.open_most"),
        ({"no": 1}, "breaker"),
        (7, "breaker"),
    ],
)
def test_a_policy_is_validated(policy, field):
    """By the host that is given it, naming the field."""
    with pytest.raises(InvalidRequest) as refused:
        AdapterHost(breaker=policy)
    assert refused.value.field == field


# --- what a host's breaker hears


class Scripted(Runtime):
    """Time that passes only where the test or a wait says so."""

    def __init__(self):
        self.at = 1000.0

    def monotonic(self):
        return self.at

    def sleep(self, seconds, wake):
        self.at += seconds
        return not wake.empty() and wake.get() is None


def failing(error, **options):
    """A host over one engine that fails every job so, on a clock of its own."""
    runtime = Scripted()
    adapter = MockAdapter(error=error, runtime=runtime, **options)
    host = AdapterHost(runtime=runtime, retry={"attempts": 1}, breaker={"open_for": 1.0})
    host.bind("chat", "r0", adapter)
    return host, adapter, runtime


def state(host):
    """Of its one breaker."""
    return host.props()["chat"]["r0"]["breaker"]


@pytest.mark.parametrize(
    "error",
    [
        EngineUnavailable(message="down", retriable=False),
        UnknownError(message="?"),
        StreamTruncated(message="cut"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("after", [0, 2])
def test_faults_of_the_engine_open_it(error, after):
    """Before and after the first token; then jobs are refused at once, with when to come back."""
    host, adapter, runtime = failing(error, error_after=after)
    with host:
        for _ in range(3):
            with pytest.raises(type(error)):
                host.submit("x", pool="chat").result()
        assert state(host) == OPEN
        runtime.at += 0.25
        with pytest.raises(EngineUnavailable) as refused:
            host.submit("x", pool="chat").result()
        told = refused.value
        assert (told.retry_after_ms, told.phase, told.retriable) == (750, "queue", True)
        assert "r0" in told.message
        assert adapter.attempts == 3


@pytest.mark.parametrize(
    "error",
    [InvalidRequest(message="no"), ContextOverflow(message="long"), CapacityExceeded(message="full")],
    ids=lambda error: type(error).__name__,
)
def test_what_the_request_or_the_load_is_to_blame_for_opens_nothing(error):
    """The engine is well."""
    host, adapter, _ = failing(error)
    with host:
        for _ in range(6):
            with pytest.raises(type(error)):
                host.submit("x", pool="chat").result()
        assert state(host) == CLOSED
        assert adapter.attempts == 6


@pytest.mark.parametrize("options", [{"first_delay": 9.0}, {"silent_after": 2}], ids=["first_token", "between_tokens"])
def test_clocks_that_wait_for_the_engine_open_it(options):
    """A replica that swallows jobs is left alone too; the error says which engine it was."""
    host, _, _ = failing(None, timeouts={"first_token": 2.0, "between_tokens": 2.0}, **options)
    with host:
        for _ in range(3):
            with pytest.raises(WorkerTimeout) as late:
                host.submit("x", pool="chat").result()
            assert late.value.engine == "mock"
        assert state(host) == OPEN


def test_the_callers_own_clock_opens_nothing():
    """``total`` blames nobody."""
    host, _, _ = failing(None, silent_after=2, timeouts={"between_tokens": None})
    with host:
        for _ in range(4):
            with pytest.raises(WorkerTimeout) as late:
                host.submit("x", pool="chat", timeouts={"total": 1.0}).result()
            assert late.value.clock == "total"
        assert state(host) == CLOSED


def test_cancels_open_nothing_and_a_cancelled_trial_makes_way():
    """A user who gives up says nothing of the engine."""
    host, adapter, runtime = failing(EngineUnavailable(message="down"), fail_first=3, endless=True)
    with host:
        for _ in range(3):
            with pytest.raises(EngineUnavailable):
                host.submit("x", pool="chat").result()
        runtime.at += 1.0
        trial = host.submit("x", pool="chat")
        adapter._settings["first_delay"] = 1.0
        assert next(trial.ticks(0.5)) is None
        assert state(host) == HALF_OPEN
        with pytest.raises(EngineUnavailable):
            host.submit("x", pool="chat").result()  # one at a time
        trial.cancel()
        assert trial.result().cancelled
        assert state(host) == HALF_OPEN
        assert host.submit("x", pool="chat", max_tokens=2).result().finish_reason == "length"
        assert state(host) == CLOSED


def test_a_trial_that_fails_keeps_it_open_twice_as_long():
    """Through the host, on its clock."""
    host, _, runtime = failing(EngineUnavailable(message="down", retriable=False))
    with host:
        for seconds in (1.0, 2.0, 4.0):
            while state(host) != OPEN:
                with pytest.raises(EngineUnavailable, match="down"):
                    host.submit("x", pool="chat").result()
            assert host.props()["chat"]["r0"]["opens_in_ms"] == seconds * 1000
            runtime.at += seconds
            with pytest.raises(EngineUnavailable, match="down"):
                host.submit("x", pool="chat").result()
