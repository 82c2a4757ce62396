"""A stand holds one engine still while the conformance suite tries its adapter: the mock, or a simulator."""

from __future__ import annotations

from abc import ABC, abstractmethod
from importlib import import_module
from typing import Any

from worker_adapters.adapters.catalog import adapter_class
from worker_adapters.contract import WorkerAdapter
from worker_adapters.errors import EngineUnavailable, StreamTruncated
from worker_adapters.simulate import SIMULATORS, EngineSimulator, Fault

TOKENS = ("One", " two", " three", " four", " five")
FOREVER = 3600.0


class Stand(ABC):
    """One engine that does what a test tells it to.

    Tell it first, then ask for the ``adapter``. A behaviour that an engine cannot be given is left out of ``can``, and
    the suite skips its tests with that as the reason.
    """

    engine: str
    #: What it answers, piece by piece.
    tokens: tuple[str, ...] = TOKENS
    #: As many tokens as a job may ask for and never come to the end of within a test.
    most_tokens: int = 100_000
    #: The behaviours it can be given: the names of the methods below.
    can: frozenset[str] = frozenset(
        {"silent_head", "silent_after", "refuse", "truncate_after", "fail_after", "endless", "echo", "down"}
    )

    @abstractmethod
    def adapter(self, **options: Any) -> WorkerAdapter:
        """A new adapter of the engine."""

    @property
    @abstractmethod
    def received(self) -> int:
        """Jobs that reached the engine, refused ones too."""

    @abstractmethod
    def idle(self, timeout: float = 5.0) -> bool:
        """Has the engine, within ``timeout`` seconds, nothing left to do?"""

    @abstractmethod
    def close(self) -> None:
        """End the engine."""

    def silent_head(self) -> None:
        """The next job is received and never answered."""
        raise NotImplementedError

    def silent_after(self, count: int) -> None:
        """The next job stops after ``count`` tokens, without a word."""
        raise NotImplementedError

    def refuse(self, times: int) -> None:
        """The next ``times`` jobs are refused before they begin, in a way that may be tried again."""
        raise NotImplementedError

    def truncate_after(self, count: int) -> None:
        """The next job's answer is cut off after ``count`` tokens."""
        raise NotImplementedError

    def fail_after(self, count: int) -> None:
        """The engine reports an error after ``count`` tokens of the next job."""
        raise NotImplementedError

    def endless(self) -> None:
        """Answers go on until max_tokens."""
        raise NotImplementedError

    def echo(self) -> None:
        """An answer consists of the words of its prompt, repeated until max_tokens."""
        raise NotImplementedError

    def down(self) -> None:
        """The engine is gone."""
        raise NotImplementedError


class MockStand(Stand):
    """The mock adapter."""

    engine = "mock"
    most_tokens = 10_000_000

    def __init__(self) -> None:
        self._options: dict[str, Any] = {"tokens": self.tokens}
        self._made: list[Any] = []

    def adapter(self, **options: Any) -> WorkerAdapter:
        made = adapter_class("mock")(**{**self._options, **options})
        self._made.append(made)
        return made

    @property
    def received(self) -> int:
        return sum(made.attempts for made in self._made)

    def idle(self, timeout: float = 5.0) -> bool:
        return all(made.props().running == 0 for made in self._made)

    def close(self) -> None:
        self._made.clear()

    def silent_head(self) -> None:
        self._options["first_delay"] = FOREVER

    def silent_after(self, count: int) -> None:
        self._options["silent_after"] = count

    def refuse(self, times: int) -> None:
        error = EngineUnavailable(message="loading", retriable=True, status=503, phase="first_token")
        self._options.update(error=error, error_after=0, fail_first=times)

    def truncate_after(self, count: int) -> None:
        self._options.update(error=StreamTruncated(message="cut off", phase="stream"), error_after=count)

    def fail_after(self, count: int) -> None:
        self._options.update(error=EngineUnavailable(message="broken", phase="stream"), error_after=count)

    def endless(self) -> None:
        self._options["endless"] = True

    def echo(self) -> None:
        self._options.update(tokens=lambda task: [f" {word}" for word in task.prompt.split()], endless=True)

    def down(self) -> None:
        self._options["health"] = "unhealthy"
        for made in self._made:
            made.state = "unhealthy"


class SimulatorStand(Stand):
    """An engine's simulator: a real server on the loopback address.

    :param adapter: the class under test.
    :param simulator: the engine it is for; it is told what to say, and closed with the stand.
    """

    can = Stand.can | {"comments_after"}

    def __init__(self, adapter: type[WorkerAdapter], simulator: EngineSimulator) -> None:
        self.engine = adapter.engine
        self.simulator = simulator
        self._class = adapter
        simulator.tokens = self.tokens

    def adapter(self, **options: Any) -> WorkerAdapter:
        return self._class(self.simulator.url, **options)  # type: ignore[call-arg]  # an adapter takes a URL first

    @property
    def received(self) -> int:
        return self.simulator.generation_requests

    def idle(self, timeout: float = 5.0) -> bool:
        return self.simulator.wait_idle(timeout)

    def close(self) -> None:
        self.simulator.close()

    def silent_head(self) -> None:
        self.simulator.misbehave(Fault.silent_head())

    def silent_after(self, count: int) -> None:
        self.simulator.misbehave(Fault.silent_after(count))

    def comments_after(self, count: int) -> None:
        """After ``count`` tokens of the next job only keep-alive comments come, 100 a second."""
        self.simulator.misbehave(Fault.comments_only(count, every=0.01))

    def refuse(self, times: int) -> None:
        self.simulator.misbehave(*[Fault.status(503)] * times)

    def truncate_after(self, count: int) -> None:
        self.simulator.misbehave(Fault.cut_after(count))

    def fail_after(self, count: int) -> None:
        self.simulator.misbehave(Fault.error_after(count))

    def endless(self) -> None:
        self.simulator.endless = True

    def echo(self) -> None:
        self.simulator.tokens = None

    def down(self) -> None:
        self.simulator.kill()


def stand_for(engine: str) -> Stand:
    """The stand of a catalogued engine."""
    if engine == "mock":
        return MockStand()
    module, _, name = SIMULATORS[engine].partition(":")
    return SimulatorStand(adapter_class(engine), getattr(import_module(module), name)())
