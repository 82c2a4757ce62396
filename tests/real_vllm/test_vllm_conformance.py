"""The conformance suite over the real vLLM; what it cannot be told to do wrong, a relay does to its answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from engines.llamacpp_bench import until
from real_vllm.conftest import TEXT
from real_vllm.door import Act, Door
from real_vllm.recite_hf import pieces_of
from real_vllm.server import RealVllm
from worker_adapters import TaskRequest, VllmHttpAdapter, WireRequest
from worker_adapters.testing.conformance import ConformanceSuite
from worker_adapters.testing.stand import Stand

pytestmark = [pytest.mark.engines, pytest.mark.real_vllm]

#: Where the adapters find their key: one given as it is would not be pickled.
KEY = "REAL_VLLM_KEY"
#: So long goes an endless answer: vLLM refuses a max_tokens above its window of 512.
MOST = 450


class Endless(VllmHttpAdapter):
    """Its answers go on until max_tokens."""

    def encode(self, task: TaskRequest) -> WireRequest:
        endless = {**task.extra, "ignore_eos": True}
        return super().encode(dataclasses.replace(task, max_tokens=min(task.max_tokens, MOST), extra=endless))


class VllmStand(Stand):
    """The real vLLM, slow enough that each token comes in an event of its own."""

    engine = "vllm"
    tokens = tuple(pieces_of(TEXT))
    #: A prompt that comes back as the answer would take another model.
    can = Stand.can - {"echo"} | {"comments_after"}

    def __init__(self, server: RealVllm) -> None:
        self._server = server
        self._door = Door(server.port)
        self._kind = VllmHttpAdapter

    def adapter(self, **options: Any) -> VllmHttpAdapter:
        return self._kind(self._door.url, api_key=f"env:{KEY}", **options)

    @property
    def received(self) -> int:
        return self._door.count("POST /v1/")

    def idle(self, timeout: float = 5.0) -> bool:
        until(lambda: not self._server.busy(), timeout, every=0.01)
        return True

    def close(self) -> None:
        self._door.close()

    def silent_head(self) -> None:
        self._door.spoil(Act("hold"))

    def silent_after(self, count: int) -> None:
        self._door.spoil(Act("hold", count))

    def comments_after(self, count: int) -> None:
        """After ``count`` tokens of the next job only keep-alive comments come."""
        self._door.spoil(Act("comments", count))

    def refuse(self, times: int) -> None:
        self._door.spoil(*[Act("refuse")] * times)

    def truncate_after(self, count: int) -> None:
        self._door.spoil(Act("cut", count))

    def fail_after(self, count: int) -> None:
        self._door.spoil(Act("fail", count))

    def endless(self) -> None:
        self._kind = Endless

    def down(self) -> None:
        self._door.close()


class TestVllm(ConformanceSuite):
    @pytest.fixture
    def stand(self, narrow: RealVllm, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stand]:
        monkeypatch.setenv(KEY, narrow.key or "")
        with closing(VllmStand(narrow)) as stand:
            yield stand
