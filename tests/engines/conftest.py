"""Servers and adapters for the tests against real engines, and the figures that those tests measure."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from worker_adapters import LlamaCppHttpAdapter
from worker_adapters.embedded import EmbeddedLlamaCpp, write_recite_gguf

#: What the cyclic models say, over and over.
ROUND = "alpha bravo charlie delta foxtrot golf hotel india"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without the wheel there is no engine to ask."""
    if importlib.util.find_spec("xllamacpp") is None:
        for item in items:
            if item.path.parent == Path(__file__).parent:
                item.add_marker(pytest.mark.skip(reason="needs the wheel xllamacpp"))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """List what the tests measured."""
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, ())]
    figures = [(name, value) for report in reports for name, value in getattr(report, "user_properties", ())]
    if figures:
        terminalreporter.section("figures")
        for name, value in figures:
            terminalreporter.line(f"{name}: {value}")


@pytest.fixture(scope="session")
def cyclic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that never ends, 3 to 5 ms a token."""
    path = tmp_path_factory.mktemp("models") / "cyclic.gguf"
    return write_recite_gguf(path, words=ROUND, cyclic=True, ballast_mib=40)


@pytest.fixture(scope="session")
def ponderous(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that never ends and reads its prompts slowly, about 1 ms a token."""
    path = tmp_path_factory.mktemp("models") / "ponderous.gguf"
    return write_recite_gguf(path, words=ROUND, cyclic=True, ballast_mib=64, blocks=2)


@pytest.fixture(scope="session")
def server() -> Iterator[EmbeddedLlamaCpp]:
    """Four slots of 512 tokens; for tests that leave it as it was."""
    with EmbeddedLlamaCpp() as running:
        yield running


@pytest.fixture(scope="session")
def narrow(cyclic: Path) -> Iterator[EmbeddedLlamaCpp]:
    """One slot that a job holds until it is cancelled; for tests that leave it as it was.

    It has threads enough: with more requests than those (slots + 4), one that comes beside another can be left lying
    until a thread is free, even a question for health.
    """
    with EmbeddedLlamaCpp(cyclic, slots=1, context=8192, extra={"n_threads_http": 32}) as running:
        yield running


@pytest.fixture
def adapters() -> Iterator[Callable[..., LlamaCppHttpAdapter]]:
    """Makes adapters that are closed when the test is over."""
    made: list[LlamaCppHttpAdapter] = []

    def make(server: EmbeddedLlamaCpp, **options: Any) -> LlamaCppHttpAdapter:
        made.append(LlamaCppHttpAdapter(server.url, **options))
        return made[-1]

    yield make
    for adapter in made:
        adapter.close()


@pytest.fixture
def engine(server: EmbeddedLlamaCpp, adapters: Callable[..., LlamaCppHttpAdapter]) -> LlamaCppHttpAdapter:
    """An adapter of the shared server."""
    return adapters(server)
