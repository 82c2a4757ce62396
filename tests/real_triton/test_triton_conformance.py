"""The conformance suite over the real Triton, by either transport; what its models cannot do wrong, a relay does."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from engines.llamacpp_bench import until
from real_triton.conftest import SHORT
from real_triton.door import Door
from real_triton.server import RealTriton
from worker_adapters import WorkerAdapter, connect
from worker_adapters.testing.conformance import ConformanceSuite
from worker_adapters.testing.stand import Stand

pytestmark = [pytest.mark.engines, pytest.mark.real_triton]


class TritonStand(Stand):
    """The real Triton behind a relay; its models are told what to do by files."""

    engine = "triton"
    tokens = SHORT

    def __init__(self, server: RealTriton, transport: str) -> None:
        self._server = server
        self._transport = transport
        self._door = Door(server.http_port if transport == "http" else server.grpc_port)
        self._began = time.monotonic()
        self._always = {"short"}
        self._threads: list[threading.Thread] = []
        server.always(*self._always)

    def adapter(self, **options: Any) -> WorkerAdapter:
        url = f"{self._transport}://127.0.0.1:{self._door.port}"
        return connect("triton", url, model="recite", **options)

    @property
    def received(self) -> int:
        return sum(each.event == "began" and each.at > self._began for each in self._server.events())

    def idle(self, timeout: float = 5.0) -> bool:
        until(lambda: not self._server.running(), timeout, every=0.01)
        return True

    def close(self) -> None:
        self._server.always()
        self._door.close()
        for each in self._threads:
            each.join(20)
        until(lambda: not self._server.running())

    def silent_head(self) -> None:
        # Over HTTP a job whose client has gone is told so by its first response: let that come one day.
        self._server.spoil("first=2")

    def silent_after(self, count: int) -> None:
        self._server.spoil(f"hold={count}")

    def refuse(self, times: int) -> None:
        self._server.spoil(*["full=0"] * times)

    def truncate_after(self, count: int) -> None:
        self._server.spoil(f"hold={count}")
        self._threads.append(threading.Thread(target=self._cut, daemon=True))
        self._threads[-1].start()

    def _cut(self) -> None:
        """Cut the connection once the model holds and all that it said is through."""
        until(lambda: any(each.event == "held" and each.at > self._began for each in self._server.events()), every=0.01)
        self._door.settle()
        self._door.cut()

    def fail_after(self, count: int) -> None:
        self._server.spoil(f"fail={count}")

    def endless(self) -> None:
        self._will("endless", "delay=0.001")

    def echo(self) -> None:
        self._will("echo", "endless")

    def _will(self, *wishes: str) -> None:
        self._always |= set(wishes)
        self._server.always(*self._always)

    def down(self) -> None:
        self._door.close()


@pytest.mark.parametrize("transport", ["http", "grpc"])
class TestTriton(ConformanceSuite):
    @pytest.fixture
    def stand(self, server: RealTriton, transport: str) -> Iterator[Stand]:
        with closing(TritonStand(server, transport)) as stand:
            yield stand
