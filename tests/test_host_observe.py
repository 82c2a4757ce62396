"""What the host says of its jobs: to the log, field by field, and to observers, which can do no harm."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from canary import PROMPT
from worker_adapters import (
    AdapterHost,
    CapacityExceeded,
    EndFrame,
    EngineUnavailable,
    JobInfo,
    MockAdapter,
    Observer,
    StartedFrame,
    WorkerError,
)
from worker_adapters.host.observe import FIELDS
from worker_adapters.simulate import Fault, LlamaCppSimulator, VllmSimulator

pytestmark = pytest.mark.mock

SOON = 20.0  # seconds that nothing here needs
NAMES = {"job_id": "j", "session_id": "s", "correlation_id": "c"}
ONCE = {"attempts": 1}


class Records(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.all: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.all.append(record)

    def told(self) -> list[str]:
        """The words of all records, less the names of jobs."""
        return [record.getMessage().partition(": ")[2] for record in self.all]


class Diary(Observer):
    """Writes down all that it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def on_submit(self, info: JobInfo) -> None:
        self.told.append(("submit", info.job_id, info.pool))

    def on_start(self, info: JobInfo, started: StartedFrame) -> None:
        self.told.append(("start", info.replica, started.engine))

    def on_first_token(self, info: JobInfo, waited_ms: float) -> None:
        self.told.append(("first token", waited_ms >= 0))

    def on_end(self, info: JobInfo, end: EndFrame) -> None:
        self.told.append(("end", end.finish_reason))

    def on_error(self, info: JobInfo, error: WorkerError) -> None:
        self.told.append(("error", error.code, info.engine_version))


class Broken(Observer):
    """Every method raises."""

    def on_submit(self, info: JobInfo) -> None:
        raise RuntimeError("broken")

    def on_start(self, info: JobInfo, started: StartedFrame) -> None:
        raise RuntimeError("broken")

    def on_first_token(self, info: JobInfo, waited_ms: float) -> None:
        raise RuntimeError("broken")

    def on_end(self, info: JobInfo, end: EndFrame) -> None:
        raise RuntimeError("broken")

    def on_error(self, info: JobInfo, error: WorkerError) -> None:
        raise RuntimeError("broken")


@pytest.fixture
def records() -> Iterator[Records]:
    """What the host logs, at INFO and above."""
    log, kept = logging.getLogger("worker_adapters.host"), Records()
    before = log.level
    log.addHandler(kept)
    log.setLevel(logging.INFO)
    yield kept
    log.removeHandler(kept)
    log.setLevel(before)


def hosting(adapter: Any = None, **options: Any) -> AdapterHost:
    """A host of one replica."""
    host = AdapterHost(**{"retry": ONCE, **options})
    host.bind("chat", "r0", MockAdapter() if adapter is None else adapter)
    return host


def fields(record: logging.LogRecord) -> dict[str, Any]:
    """The fields of a record that are known."""
    return {name: value for name in FIELDS if (value := getattr(record, name)) is not None}


# --- the log


def test_a_job_is_three_records(records: Records) -> None:
    """Submit, start and end, however many tokens come; each has every field, None until it is known."""
    with hosting(MockAdapter(tokens=["x"] * 500)) as host:
        host.submit("hi", pool="chat", max_tokens=500, **NAMES).result()
    assert records.told() == ["submitted to pool chat", "started on chat/r0", "ended: stop, 500 tokens"]
    submitted, started, ended = map(fields, records.all)
    assert submitted == {**NAMES, "pool": "chat"}
    assert started == {**submitted, "engine": "mock", "engine_version": "mock-1", "replica": "r0"}
    assert ended.pop("decode_ms") >= 0
    assert ended == {**started, "tokens_in": 1, "tokens_out": 500}
    assert {record.levelno for record in records.all} == {logging.INFO}


def test_a_cancelled_job_says_so(records: Records) -> None:
    """The record of a cancel has what was delivered until then."""
    with hosting(MockAdapter(endless=True)) as host, host.submit("hi", pool="chat", **NAMES) as stream:
        for frame in stream:
            if frame.type == "token" and frame.index == 2:
                host.cancel("j")
    assert records.told()[2:] == ["cancelled after 3 tokens"]
    assert fields(records.all[-1])["tokens_out"] == 3


@pytest.mark.parametrize("started", [False, True])
def test_a_dropped_job_is_a_cancelled_one(records: Records, started: bool) -> None:
    """Whoever leaves a stream cancels its job, and the log has its end."""
    with hosting(MockAdapter(endless=True)) as host:
        stream = host.submit("hi", pool="chat")
        if started:
            stream.start()
        stream.close()
        stream.close()
    assert [told for told in records.told() if told.startswith("cancelled")] == ["cancelled after 0 tokens"]


def test_a_failed_job_is_a_warning(records: Records) -> None:
    """The record of an error has its code and message, and how many tokens came before it."""
    lost = EngineUnavailable(message="gone")
    with hosting(MockAdapter(error=lost, error_after=2)) as host, pytest.raises(EngineUnavailable):
        host.submit("hi", pool="chat").result()
    last = records.all[-1]
    assert (last.levelno, records.told()[-1]) == (logging.WARNING, "ENGINE_UNAVAILABLE: gone")
    assert fields(last)["tokens_out"] == 2
    assert fields(last)["replica"] == "r0"


def test_a_job_that_no_replica_took_has_no_engine(records: Records) -> None:
    """What is refused by the pool is told with the pool alone."""
    with AdapterHost() as host:
        host.bind("chat", "r0", MockAdapter())
        stream = host.submit("hi", pool="chat", **NAMES)
        host.unbind("chat", "r0")
        with pytest.raises(EngineUnavailable):
            stream.start()
    assert fields(records.all[-1]) == {**NAMES, "pool": "chat", "tokens_out": 0}


def test_a_dispatched_job_is_told_alike(records: Records) -> None:
    """On a thread of the host's as in the caller's own."""
    with hosting() as host:
        host.dispatch("hi", pool="chat").result(SOON)
        host.dispatch("hi", pool="chat", stream=True).result(SOON)
    assert records.told() == ["submitted to pool chat", "started on chat/r0", "ended: stop, 5 tokens"] * 2


@pytest.mark.llamacpp
@pytest.mark.vllm
@pytest.mark.parametrize("fault", [None, Fault.cut_after(1), Fault.status(503, "near '" + PROMPT + "'")])
def test_no_prompt_and_no_answer_is_logged(records: Records, fault: Fault | None) -> None:
    """Whatever becomes of a job: neither what was asked nor what was said stands in any field of any record."""
    with LlamaCppSimulator(["ANSWER-", "CANARY-"]) as one, VllmSimulator(["ANSWER-", "CANARY-"]) as two:
        for sim in (one, two):
            if fault is not None:
                sim.misbehave(*[fault] * 3)
        config = {
            "r0": {"engine": "llamacpp", "url": one.url, "api_key": "sk-CANARY-log"},
            "r1": {"engine": "vllm", "url": two.url, "api_key": "sk-CANARY-log"},
        }
        with AdapterHost.from_config({"pools": {"chat": config}, "retry": {"attempts": 2, "base": 0.001}}) as host:
            for task in (PROMPT, [{"role": "user", "content": PROMPT}]):
                host.dispatch(task, pool="chat", metadata={"m": PROMPT}, stop=[PROMPT]).exception(SOON)
            assert PROMPT not in repr((host, host.jobs(), host.props()))
    text = repr([vars(record) for record in records.all])
    assert "ended" in text or fault is not None
    assert "CANARY" not in text


# --- observers


def test_an_observer_is_told_every_step() -> None:
    """Submit, start, first token and end, each once, in their order."""
    diary = Diary()
    with hosting(observers=[diary]) as host:
        host.submit("hi", pool="chat", job_id="j").result()
    assert diary.told == [
        ("submit", "j", "chat"),
        ("start", "r0", "mock"),
        ("first token", True),
        ("end", "stop"),
    ]


def test_an_observer_knows_a_refusal_from_a_failure() -> None:
    """Only a job that an engine had accepted has that engine's version."""
    diary = Diary()
    with hosting(observers=[diary]) as host:
        host.bind("full", "r0", MockAdapter(error=CapacityExceeded(message="full")))
        host.bind("weak", "r0", MockAdapter(error=EngineUnavailable(message="gone"), error_after=1))
        host.dispatch("hi", pool="full").exception(SOON)
        host.dispatch("hi", pool="weak").exception(SOON)
    errors = [told for told in diary.told if told[0] == "error"]
    assert errors == [("error", "CAPACITY_EXCEEDED", None), ("error", "ENGINE_UNAVAILABLE", "mock-1")]


def test_a_job_that_goes_elsewhere_is_one_job() -> None:
    """A failover is not told as an error; the start names the replica that took it."""
    diary = Diary()
    with AdapterHost(observers=[diary], retry={"base": 0.001}) as host:
        full = CapacityExceeded(message="full", retriable=True)
        host.bind("chat", "r0", MockAdapter(error=full))
        host.bind("chat", "r1", MockAdapter())
        host.submit("hi", pool="chat").result()
    assert [told[0] for told in diary.told] == ["submit", "start", "first token", "end"]
    assert diary.told[1] == ("start", "r1", "mock")


@pytest.mark.parametrize("pool", ["chat", "weak"])
def test_an_observer_that_raises_harms_nothing(records: Records, pool: str) -> None:
    """Its failure is logged; the job, the others and their order are as without it."""
    diary = Diary()
    with hosting(observers=[Broken(), diary]) as host:
        host.bind("weak", "r0", MockAdapter(error=EngineUnavailable(message="gone"), error_after=1))
        job = host.dispatch("hi", pool=pool)
        assert (job.exception(SOON) is None) == (pool == "chat")
        assert host.jobs() == []
    assert [told[0] for told in diary.told] == ["submit", "start", "first token", "end" if pool == "chat" else "error"]
    failures = [record for record in records.all if record.exc_info]
    assert [record.getMessage().split()[0] for record in failures] == [
        f"Broken.on_{name}" for name in ("submit", "start", "first_token", "end" if pool == "chat" else "error")
    ]


# --- signal handlers

STATES = ["unstarted", "streaming", "dispatched", "waiting for a place", "waiting for a thread"]


@pytest.mark.parametrize("state", STATES)
def test_a_cancel_in_a_signal_handler_tells_nobody_there(records: Records, state: str) -> None:
    """What a handler interrupts may hold a log's or an observer's lock: the end is told by whoever drives the job."""
    handling: list[str] = []
    told: list[str] = []

    def note() -> None:
        if threading.current_thread() is threading.main_thread():
            told.extend(handling)

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            note()

    class Ends(Observer):
        def on_end(self, info: JobInfo, end: EndFrame) -> None:
            note()

    def handle(number: int, frame: Any) -> None:
        handling.append(state)
        assert host.cancel("j")
        handling.clear()

    listener, root = Listener(), logging.getLogger()
    root.addHandler(listener)
    before = signal.signal(signal.SIGUSR1, handle)
    try:
        with AdapterHost(max_workers=1 if state == "waiting for a thread" else 2, observers=[Ends()]) as host:
            host.bind("chat", "r0", MockAdapter(endless=True, delay=0.001), max_in_flight=1)
            first = host.dispatch("hi", pool="chat", max_tokens=10**6) if state.startswith("waiting") else None
            begin = host.submit if state in ("unstarted", "streaming") else host.dispatch
            job = begin("hi", pool="chat", job_id="j", max_tokens=10**6)
            if state == "streaming":
                assert [next(job).type for _ in range(2)] == ["started", "token"]
            signal.raise_signal(signal.SIGUSR1)
            assert job.result().cancelled
            assert first is None or first.cancel()
    finally:
        signal.signal(signal.SIGUSR1, before)
        root.removeHandler(listener)
    assert told == []
    assert any(words.startswith("cancelled") for words in records.told())
