"""A small orchestrator over the host, with five engines at once: dispatch, stream, cancel, fail over, drain, reload.

llama.cpp is a simulator, and once more the real one; vLLM, TGI, Triton and OpenAI are simulators. Each engine has a
pool of its own, and all of them have one together.
"""

import importlib.util
import threading
import time
from collections import Counter
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import pytest

from worker_adapters import (
    AdapterHost,
    EngineUnavailable,
    InvalidRequest,
    StreamTruncated,
    WorkerAdapter,
    connect,
)
from worker_adapters.embedded import EmbeddedLlamaCpp, write_recite_gguf
from worker_adapters.simulate import (
    LlamaCppSimulator,
    OpenAISimulator,
    TgiSimulator,
    TritonSimulator,
    VllmSimulator,
)

pytestmark = [pytest.mark.llamacpp, pytest.mark.vllm, pytest.mark.tgi, pytest.mark.triton, pytest.mark.openai]
PATIENCE = 20.0
#: More than any test reads.
MANY = 100_000
ROUND = "alpha bravo charlie delta foxtrot golf hotel india"
SIMULATORS = {"vllm": VllmSimulator, "tgi": TgiSimulator, "triton": TritonSimulator, "openai": OpenAISimulator}
ENGINES = ("llamacpp", *SIMULATORS)
GO = [{"role": "user", "content": "Go"}]
REAL = pytest.param(
    "real",
    marks=[
        pytest.mark.engines,
        pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="needs the wheel xllamacpp"),
    ],
)


def until(question, seconds=PATIENCE):
    """Ask until it is so: for what no event tells."""
    deadline = time.monotonic() + seconds
    while not question():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)


@dataclass
class Orchestrator:
    """What a program with five engines does with them."""

    host: AdapterHost
    adapters: dict[str, WorkerAdapter]
    new_llamacpp: object
    engines: dict[str, object] = field(default_factory=dict)

    def task(self, engine):
        """The form in which an engine takes words: Triton's generic model has no conversations, OpenAI nothing else."""
        return "Go" if self.adapters[engine].capabilities.prompts else GO

    def begin(self, pool, engine, **fields):
        """A dispatched job that keeps frames, once its first token is there; and its frames."""
        job = self.host.dispatch(self.task(engine), pool=pool, replica=engine, stream=True, max_tokens=MANY, **fields)
        frames = iter(job)
        started = next(frames)
        assert (started.type, started.engine) == ("started", engine)
        assert next(frames).type == "token"
        return job, frames

    def ends(self, count, pool="mixed", task="Go"):
        """Run so many jobs at once; engine -> how many it ended."""
        jobs = [self.host.dispatch(task, pool=pool, stream=True, max_tokens=5) for _ in range(count)]
        engines = Counter(next(iter(job)).engine for job in jobs)
        assert {job.result(PATIENCE).finish_reason for job in jobs} <= {"length", "stop"}
        assert all(job.result().text for job in jobs)
        return engines


@contextmanager
def real_llamacpp(folder):
    """Makes real servers of an endless model."""
    path = write_recite_gguf(folder / "cyclic.gguf", words=ROUND, cyclic=True, ballast_mib=8)
    with ExitStack() as stack:
        yield lambda name: stack.enter_context(EmbeddedLlamaCpp(path, alias=name, slots=8, context=8 * 1024))


@contextmanager
def simulated_llamacpp(folder):
    """The same of simulators."""
    with ExitStack() as stack:
        yield lambda name: stack.enter_context(LlamaCppSimulator(endless=True, model=name, slots=8, delay=0.003))


@pytest.fixture(params=["simulated", REAL])
def stage(request, tmp_path):
    """Five engines, bound."""
    llamacpp = real_llamacpp if request.param == "real" else simulated_llamacpp
    with ExitStack() as stack:
        new = stack.enter_context(llamacpp(tmp_path))
        engines = {"llamacpp": new("first")}
        for name, kind in SIMULATORS.items():
            engines[name] = stack.enter_context(kind(endless=True, slots=8, delay=0.003))
        host = stack.enter_context(AdapterHost(breaker={"open_for": 0.5, "open_most": 0.5}))
        adapters = {name: connect(name, engine.url) for name, engine in engines.items()}
        for name, adapter in adapters.items():
            host.bind(name, name, adapter)
            host.bind("mixed", name, adapter)
        yield Orchestrator(host, adapters, new, engines)
    assert host.jobs() == []
    until(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("worker-adapters")])


def test_every_engine_gives_the_same_frames(stage):
    """One job in each pool: the same order of frames from five engines, and the same shape of answer."""
    jobs = {
        name: stage.host.dispatch(stage.task(name), pool=name, stream=True, max_tokens=5, correlation_id="one")
        for name in ENGINES
    }
    for name, job in jobs.items():
        frames = list(job)
        assert [frame.type for frame in frames] == ["started", *["token"] * 5, "end"]
        assert [frame.index for frame in frames[1:-1]] == list(range(5))
        assert frames[0].engine == name
        done = job.result()
        assert done.text == "".join(frame.text for frame in frames[1:-1])
        assert done.finish_reason == frames[-1].finish_reason == "length"


def test_a_mixed_pool_spreads_jobs_over_those_that_can(stage):
    """Jobs at once go where the fewest are, among engines that take their form; a pin is obeyed, or refused."""
    able = {name for name, adapter in stage.adapters.items() if adapter.capabilities.messages}
    jobs = [stage.begin("mixed", name) for name in ENGINES]
    assert {info.replica for info in stage.host.jobs()} == set(ENGINES)
    assert set(stage.ends(15, task=GO)) == able
    with pytest.raises(InvalidRequest, match="messages"):
        stage.host.submit(GO, pool="mixed", replica="triton")
    assert stage.host.cancel_all(pool="mixed") == len(ENGINES)
    assert all(job.result(PATIENCE).finish_reason == "cancelled" for job, _ in jobs)


def test_cancel_by_id_on_every_engine(stage):
    """One of two jobs of every engine is cancelled by id: it ends at once, its engine is told, the other one flows."""
    pairs = {name: (stage.begin(name, name), stage.begin(name, name)) for name in ENGINES}
    for name, ((job, frames), (_, other)) in pairs.items():
        assert stage.host.cancel(job.job_id)
        assert list(frames)[-1].finish_reason == "cancelled"
        assert job.cancelled()
        assert not stage.host.cancel(job.job_id)
        assert [next(other).type for _ in range(5)] == ["token"] * 5
        if name != "llamacpp":
            until(lambda engine=stage.engines[name]: engine.busy == 1)
    assert stage.host.cancel_all() == len(ENGINES)
    for name in SIMULATORS:
        assert stage.engines[name].wait_idle(PATIENCE)


@pytest.mark.parametrize("victim", ["llamacpp", "vllm"])
def test_an_engine_dies_and_is_replaced(stage, victim):
    """Jobs on a dead engine end with a typed error; new ones go to others, and to the engine put in its place."""
    job, frames = stage.begin("mixed", victim)
    stage.engines[victim].kill()
    with pytest.raises(StreamTruncated) as caught:
        list(frames)
    assert caught.value.tokens_seen
    assert (caught.value.engine, caught.value.job_id) == (victim, job.job_id)
    for _ in range(5):
        assert victim not in stage.ends(4)
    with pytest.raises(EngineUnavailable) as refused:
        stage.host.submit(stage.task(victim), pool=victim).start()
    assert refused.value.tokens_seen == 0
    with ExitStack() as stack:
        if victim == "llamacpp":
            url = stage.new_llamacpp("second").url
        else:
            url = stack.enter_context(SIMULATORS[victim](endless=True, delay=0.003)).url
        with connect(victim, url) as adapter:
            for pool in ("mixed", victim):
                stage.host.rebind(pool, victim, adapter)
            assert stage.host.submit(stage.task(victim), pool=victim, max_tokens=3).result().finish_reason == "length"
            assert victim in stage.ends(10)
            stage.host.cancel_all()


def test_drain(stage):
    """A replica that leaves takes no new job; the one that runs there ends by itself, and then it is gone."""
    job = stage.host.dispatch("Go", pool="mixed", replica="tgi", stream=True, max_tokens=200)
    frames = iter(job)
    assert next(frames).engine == "tgi"
    drained = []
    leaving = threading.Thread(target=lambda: drained.append(stage.host.unbind("mixed", "tgi", timeout=PATIENCE)))
    leaving.start()
    until(lambda: "tgi" not in stage.host.props()["mixed"])
    assert "tgi" not in stage.ends(12)
    with pytest.raises(InvalidRequest, match="tgi"):
        stage.host.submit("Go", pool="mixed", replica="tgi")
    assert list(frames)[-1].finish_reason == "length"
    leaving.join(PATIENCE)
    assert drained == [True]
    assert stage.host.submit("Go", pool="tgi", max_tokens=2).result().finish_reason == "length"  # the other pool's


def test_unbinding_without_patience(stage):
    """A replica that may not be waited for has its jobs cancelled; the same engine's jobs of another pool go on."""
    job, frames = stage.begin("mixed", "triton")
    other, others = stage.begin("triton", "triton")
    assert stage.host.unbind("mixed", "triton", drain=False) is False
    assert list(frames)[-1].finish_reason == "cancelled"
    assert job.result(PATIENCE).finish_reason == "cancelled"
    assert [next(others).type for _ in range(5)] == ["token"] * 5
    assert other.cancel()


def test_reload(stage):
    """An engine is replaced by one with a new model: what runs ends on the old one, what comes goes to the new one."""
    stream = stage.host.submit("Go", pool="llamacpp", max_tokens=100)
    stream.start()
    assert "first" in stream.started.model
    with connect("llamacpp", stage.new_llamacpp("second").url) as adapter:
        stage.host.rebind("llamacpp", "llamacpp", adapter)
        fresh = stage.host.submit("Go", pool="llamacpp", max_tokens=3)
        fresh.start()
        assert "second" in fresh.started.model
        assert fresh.result().finish_reason == "length"
        assert stream.result().metrics.tokens_out == 100


def test_the_whole_evening(stage):
    """A hundred jobs through ``map`` over all engines, while one of them dies, one leaves and one is replaced."""
    events = iter(
        [
            stage.engines["vllm"].kill,
            lambda: stage.host.unbind("mixed", "openai", drain=False),
            lambda: stage.host.rebind("mixed", "llamacpp", connect("llamacpp", stage.new_llamacpp("second").url)),
        ]
    )
    failed = []
    for number, job in enumerate(stage.host.map(["Go"] * 100, pool="mixed", window=16, max_tokens=10), 1):
        error = job.exception()
        if error is not None:
            failed.append(error)
        elif job.result().finish_reason != "cancelled":
            assert job.result().metrics.tokens_out == 10
        if number % 25 == 0 and number < 100:
            next(events)()
    assert number == 100
    assert {type(error) for error in failed} <= {EngineUnavailable, StreamTruncated}
    assert len(failed) <= 8  # those that were on vLLM when it died
