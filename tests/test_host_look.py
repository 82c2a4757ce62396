"""Looking at every engine of a host at once."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from worker_adapters import AdapterHost, HealthStatus, InvalidRequest, MockAdapter
from worker_adapters.simulate import LlamaCppSimulator, TgiSimulator, VllmSimulator

pytestmark = pytest.mark.mock

SOON = 20.0  # seconds that nothing here needs


class Stuck(MockAdapter):
    """Answers a health check when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()

    def health(self, *, probe: bool = False, timeout: float = 2.0) -> HealthStatus:
        self.go.wait(SOON)
        return super().health(probe=probe, timeout=timeout)


def looking() -> list[str]:
    """The threads that look at engines."""
    return [thread.name for thread in threading.enumerate() if "look" in thread.name]


@pytest.mark.llamacpp
@pytest.mark.tgi
@pytest.mark.vllm
def test_a_look_tells_how_every_engine_is() -> None:
    """Health, version, residency and what runs there, of those that answer and of those that do not."""
    with LlamaCppSimulator(slots=4) as one, VllmSimulator() as two, TgiSimulator() as three:
        three.healthy = False
        urls = {"r0": ("llamacpp", one.url), "r1": ("vllm", two.url), "r2": ("tgi", three.url)}
        urls["r3"] = ("llamacpp", "http://127.0.0.1:9")
        replicas = {name: {"engine": engine, "url": url} for name, (engine, url) in urls.items()}
        replicas["r4"] = {"engine": "mock", "residency": "gpu"}
        with AdapterHost.from_config({"pools": {"chat": replicas}}) as host:
            assert {told["health"] for told in host.props()["chat"].values()} == {None}
            told = host.look()["chat"]
            assert told == host.props()["chat"]
    assert [told[name]["ready"] for name in told] == [True, True, False, False, True]
    assert [told[name]["health"] for name in told] == ["healthy", "healthy", "unhealthy", "unhealthy", "healthy"]
    assert (told["r0"]["slots_total"], told["r0"]["slots_free"]) == (4, 4)
    assert (told["r1"]["running"], told["r1"]["waiting"]) == (0, 0)
    assert told["r1"]["engine_version"].startswith("0.")
    assert "nothing listens there" in told["r3"]["message"]
    assert (told["r4"]["engine"], told["r4"]["residency"], told["r4"]["engine_version"]) == ("mock", "gpu", "mock-1")


def test_a_look_waits_no_longer_than_it_says() -> None:
    """An engine that does not answer holds up nobody; its answer counts when it comes, and its thread ends then."""
    stuck = Stuck()
    with AdapterHost() as host:
        host.bind("chat", "r0", stuck)
        host.bind("chat", "r1", MockAdapter())
        began = time.monotonic()
        told = host.look(timeout=0.1)["chat"]
        assert time.monotonic() - began < SOON / 2
        assert (told["r0"]["health"], told["r1"]["health"]) == (None, "healthy")
        stuck.go.set()
        deadline = time.monotonic() + SOON
        while host.props()["chat"]["r0"]["health"] is None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert host.props()["chat"]["r0"]["health"] == "healthy"
        while looking() and time.monotonic() < deadline:
            time.sleep(0.01)
    assert looking() == []


def test_a_look_at_what_cannot_be_made_says_why() -> None:
    """A replica that has no adapter is unhealthy; a health check that breaks is told, and keeps no job away."""

    class Rude(MockAdapter):
        def health(self, **options: Any) -> HealthStatus:
            raise KeyError("x")

    with AdapterHost.from_config({"pools": {"chat": {"r0": {"engine": "llamacpp", "url": "ftp://a"}}}}) as host:
        host.bind("chat", "r1", Rude())
        told = host.look()["chat"]
    assert (told["r0"]["health"], told["r0"]["ready"]) == ("unhealthy", False)
    assert (told["r1"]["health"], told["r1"]["ready"]) == ("degraded", True)
    assert told["r0"]["message"].startswith("pools.chat.r0.url: ")
    assert told["r1"]["message"] == "KeyError"


@pytest.mark.parametrize("timeout", [0, -1, "soon", None])
def test_a_look_needs_a_time(timeout: Any) -> None:
    """A timeout that is none is refused."""
    with AdapterHost() as host, pytest.raises(InvalidRequest, match="timeout: "):
        host.look(timeout)
