"""The server of the tests against the real Triton, adapters of it, and the figures that those tests measure."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from real_triton.repository import SOUND
from real_triton.server import RealTriton, wheel
from worker_adapters import WorkerAdapter, connect

HERE = Path(__file__).parent
#: What the models say. The letter comes in two tokens and the bird in four.
TEXT = "The quick brown fox jumps over the lazy dog at the café with an owl🦉, and says good night."
#: The same in whole characters.
PIECES = (
    *(("The", " quick", " brown", " fox", " jumps", " over", " the", " lazy", " dog", " at", " the", " caf", "é")),
    *((" with", " an", " owl", "🦉", ",", " and", " says", " good", " night.")),
)
#: And of a short answer.
SHORT = ("So", " we", " sat", " up", " at", " the", " old", " caf", "é", "🦉")
#: Tokens of the whole answer.
TOKENS = len(PIECES) + 1 + 3
BOTH = pytest.mark.parametrize("transport", ["http", "grpc"])

_numbers = itertools.count()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip without the wheel; and the tests that kill servers come last."""
    if wheel() is None:
        for item in items:
            if item.path.parent == HERE:
                item.add_marker(pytest.mark.skip(reason="needs the wheel nvidia-pytriton: tox -e triton"))
    items.sort(key=lambda item: item.path == HERE / "test_triton_deaths.py")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """List what the tests measured."""
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, ())]
    ours = [report for report in reports if "real_triton" in getattr(report, "nodeid", "")]
    figures = [(name, value) for report in ours for name, value in getattr(report, "user_properties", ())]
    if figures:
        terminalreporter.section("figures")
        for name, value in figures:
            terminalreporter.line(f"{name}: {value}")


@pytest.fixture(scope="session")
def server() -> Iterator[RealTriton]:
    """With every model that loads; for tests that leave it as it was."""
    with RealTriton(SOUND) as running:
        yield running


@pytest.fixture
def triton(server: RealTriton) -> RealTriton:
    """The server of all tests, with no wish left over from the last one."""
    server.always()
    return server


def adapter_of(server: RealTriton, transport: str, model: str | None = "recite", **options: Any) -> WorkerAdapter:
    """A new adapter of a server."""
    return connect("triton", server.url if transport == "http" else server.grpc_url, model=model, **options)


def prompt(*wishes: str) -> str:
    """A prompt that no other job has, with wishes for its answer (see ``Wishes``)."""
    return " ".join([f"p{next(_numbers)}", *(f"!{wish}" for wish in wishes)])


@pytest.fixture
def make(triton: RealTriton) -> Iterator[Callable[..., Any]]:
    """Makes adapters that are closed when the test is over: of the shared server, unless another is named."""
    with ExitStack() as ends:

        def build(transport: str, model: str | None = "recite", server: RealTriton = triton, **options: Any) -> Any:
            made = adapter_of(server, transport, model, **options)
            ends.callback(made.close)
            return made

        yield build
