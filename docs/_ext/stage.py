"""What the samples of the pages run on: ``connect`` finds at any URL the simulator of the engine that is named.

So a sample shows what a user writes, with the user's addresses, and is executed as it stands.
"""

from __future__ import annotations

import atexit
import os
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

import worker_adapters
from worker_adapters.adapters.catalog import ALIASES
from worker_adapters.adapters.catalog import connect as connect_really
from worker_adapters.adapters.detect import detect as detect_really
from worker_adapters.simulate import SIMULATORS, EngineSimulator

#: What a URL that says nothing of its engine leads to.
DEFAULT = "vllm"
OPTIONS: dict[str, dict[str, Any]] = {"triton": {"models": "all"}}
KEYS = ("OPENAI_API_KEY", "VLLM_API_KEY", "LLAMA_KEY")


def connect(engine: str, url: str | None = None, **options: Any) -> worker_adapters.WorkerAdapter:
    """As ``worker_adapters.connect``, to a simulator of its own; URLs of the loopback address are taken as they are."""
    dialect = ALIASES[engine][0] if engine in ALIASES else DEFAULT if engine == "auto" else engine
    if dialect not in SIMULATORS or (url is not None and urlsplit(url).hostname == "127.0.0.1"):
        return connect_really(engine, url, **options)
    return connect_really(engine, _simulated(dialect), **options)


def detect(url: str, **options: Any) -> str:
    """As ``worker_adapters.detect``, of a simulator."""
    return detect_really(_simulated(DEFAULT), **options)


def _simulated(engine: str) -> str:
    module, _, name = SIMULATORS[engine].partition(":")
    simulator: EngineSimulator = getattr(import_module(module), name)(**OPTIONS.get(engine, {}))
    atexit.register(simulator.close)
    return str(getattr(simulator, "base_url", simulator.url))


def set_up() -> None:
    """From now on samples run on simulators."""
    vars(worker_adapters).update(connect=connect, detect=detect)
    os.environ.update(dict.fromkeys(KEYS, "a-key"))
