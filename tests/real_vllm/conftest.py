"""The servers of the tests against the real vLLM, and the figures that those tests measure."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from engines.llamacpp_bench import PATIENCE
from real_vllm.door import Door
from real_vllm.recite_hf import write_recite_hf
from real_vllm.server import LONG_CONTEXT, RealVllm

HERE = Path(__file__).parent
#: What both models say. The letter and the bird come byte by byte, the one in two tokens and the other in four.
TEXT = "The quick brown fox jumps over the lazy dog at the café with an owl🦉, and says good night."
#: Clocks that no machine's stall makes fire.
PATIENT = {"connect": PATIENCE, "first_token": PATIENCE, "between_tokens": PATIENCE}
#: Some 20 ms a token (at the fewest: the server's own work comes on top).
BALLAST_MIB = 200


def there() -> bool:
    """Is vLLM installed? Not whether it can be imported: this folder's parent is on the path."""
    try:
        return bool(importlib.metadata.version("vllm"))
    except importlib.metadata.PackageNotFoundError:
        return False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip without the wheel; and the tests that kill the servers come last."""
    if not there():
        for item in items:
            if item.path.parent == HERE:
                item.add_marker(pytest.mark.skip(reason="needs vLLM: tox -e vllm"))
    items.sort(key=lambda item: item.path == HERE / "test_vllm_deaths.py")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failure shows the end of the servers' logs."""
    report = yield
    servers = getattr(item, "funcargs", {}).get("servers")
    if report.failed and servers is not None:
        report.sections += [(f"{name}'s log", server.log.tail(15)) for name, server in servers._asdict().items()]
    return report


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """List what the tests measured."""
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, ())]
    ours = [report for report in reports if "real_vllm" in getattr(report, "nodeid", "")]
    figures = [(name, value) for report in ours for name, value in getattr(report, "user_properties", ())]
    if figures:
        terminalreporter.section("figures")
        for name, value in figures:
            terminalreporter.line(f"{name}: {value}")


class Servers(NamedTuple):
    """Both servers of a session."""

    plain: RealVllm
    narrow: RealVllm


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Started side by side: each takes half a minute and more."""
    folder = tmp_path_factory.mktemp("vllm")
    with ExitStack() as ends:
        made = Servers(
            RealVllm(write_recite_hf(folder / "plain", TEXT), folder, slots=64),
            RealVllm(
                write_recite_hf(folder / "narrow", TEXT, weight=20.0, ballast_mib=BALLAST_MIB, context=LONG_CONTEXT),
                folder,
                slots=1,
                context=LONG_CONTEXT,
                key="the-right-one",
                flags=["--enable-scale-out"],
            ),
        )
        for server in made:
            ends.callback(server.close)
            server.launch()
        for server in made:
            server.wait_ready()
        yield made


@pytest.fixture(scope="session")
def plain(servers: Servers) -> RealVllm:
    """Fast, with room for 64 jobs, and started without any special flag."""
    return servers.plain


@pytest.fixture(scope="session")
def narrow(servers: Servers) -> RealVllm:
    """Slow, with room for one job at a time and a key; it has the route that aborts."""
    return servers.narrow


@pytest.fixture
def make() -> Iterator[Callable[..., Any]]:
    """Makes adapters and doors that are closed when the test is over."""
    with ExitStack() as ends:

        def build(kind: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
            if kind is not Door:
                options["timeouts"] = {**PATIENT, **options.get("timeouts", {})}
            made = kind(*arguments, **options)
            ends.callback(made.close)
            return made

        yield build
