"""The model repository of a simulated Triton: what is loaded, what is not and why, and how it has served."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .triton_json import Failure
from .triton_models import Model

NO_CONTROL = "explicit model load / unload is not allowed if polling is enabled"
_PARTS = ("queue", "compute_input", "compute_infer", "compute_output")


@dataclass
class Served:
    """A model and how it is doing. `state` is None for one that was never loaded."""

    model: Model
    state: str | None = None
    reason: str = ""
    active: int = 0
    succeeded: int = 0
    failed: int = 0
    succeeded_ns: int = 0
    failed_ns: int = 0
    last: int = 0

    def count(self, seconds: float, failed: bool) -> None:
        """Adds one request to the statistics."""
        spent = int(seconds * 1e9)
        if failed:
            self.failed, self.failed_ns = self.failed + 1, self.failed_ns + spent
        else:
            self.succeeded, self.succeeded_ns = self.succeeded + 1, self.succeeded_ns + spent
            self.last = int(time.time() * 1000)

    def row(self) -> dict[str, Any]:
        """Its row in the index."""
        if self.state is None:
            return {"name": self.model.name}
        told = {"name": self.model.name, "version": "1", "state": self.state}
        return {**told, "reason": self.reason} if self.reason else told

    def statistics(self) -> dict[str, Any]:
        """Its entry in the statistics; all the time of a request is told as inference."""
        count, spent = self.succeeded, self.succeeded_ns
        compute = {part: {"count": count, "ns": spent if part == "compute_infer" else 0} for part in _PARTS}
        batch = {"batch_size": 1, **{part: compute[part] for part in _PARTS[1:]}}
        return {
            "name": self.model.name,
            "version": "1",
            "last_inference": self.last,
            "inference_count": count,
            "execution_count": count,
            "inference_stats": {
                "success": {"count": count, "ns": spent},
                "fail": {"count": self.failed, "ns": self.failed_ns},
                **compute,
                "cache_hit": {"count": 0, "ns": 0},
                "cache_miss": {"count": 0, "ns": 0},
            },
            "response_stats": {},
            "batch_stats": [batch] if count else [],
            "memory_usage": [],
        }


class Repository:
    """Every model by name. `explicit` allows loading and unloading (--model-control-mode=explicit)."""

    def __init__(self, models: Mapping[str, Model], explicit: bool, lock: threading.Condition) -> None:
        self.explicit = explicit
        self.served = {name: Served(model) for name, model in models.items()}
        self._lock = lock
        for served in self.served.values():
            if served.model.loaded:
                self._settle(served)

    @property
    def ready(self) -> bool:
        """False while any model's load has failed, though all others serve (strict readiness)."""
        with self._lock:
            return not any(served.model.load_error and served.state for served in self.served.values())

    def is_ready(self, name: str, version: str) -> bool:
        """True if this model serves."""
        with self._lock:
            served = self.served.get(name)
            return served is not None and served.state == "READY" and version in ("", "1")

    def find(self, name: str, version: str, plain: bool = False) -> Served:
        """A model that serves. Raises Failure for any other, in the core's words."""
        with self._lock:
            served = self.served.get(name)
            what = "" if served and served.state == "READY" else "has no available versions"
            if served is None or served.state is None:
                what = "is not found"
            elif version not in ("", "1"):
                what = f"version {version} is not found"
            if served is None or what:
                raise Failure(404, f"Request for unknown model: '{name}' {what}", plain)
            return served

    def index(self, ready: bool) -> list[dict[str, Any]]:
        """The rows of the index."""
        with self._lock:
            return [served.row() for served in self.served.values() if not ready or served.state == "READY"]

    def statistics(self, name: str, version: str) -> dict[str, Any]:
        """The statistics of a model, or of all that serve."""
        with self._lock:
            serving = {served.model.name: served for served in self.served.values() if served.state == "READY"}
            if name and name not in serving:
                raise Failure(400, f"requested model '{name}' is not available")
            if version not in ("", "1"):
                raise Failure(400, f"requested model version is not available for model '{name}'")
            asked = [serving[name]] if name else serving.values()
            return {"model_stats": [served.statistics() for served in asked]}

    # -- loading -------------------------------------------------------------------------------------------------

    def load(self, name: str, wait: Callable[[float], object]) -> None:
        """Loads a model, for as long as it takes. Raises Failure if that fails."""
        self._check_control()
        served = self.served.get(name)
        if served is None:
            raise Failure(500, f"failed to load '{name}', failed to poll from model repository")
        if served.model.load_time:
            self._set(served, "LOADING")
            wait(served.model.load_time)
        self._settle(served)
        if served.model.load_error:
            failed = f"version 1 is at UNAVAILABLE state: {served.model.load_error};\n"
            raise Failure(400, f"load failed for model '{name}': {failed}")

    def unload(self, name: str) -> None:
        """Unloads a model: at once for new requests, while those at work go on. An unknown one is no error."""
        self._check_control()
        served = self.served.get(name)
        if served is not None and served.state is not None:
            self._set(served, "UNLOADING")
            self._drain(served)

    def enter(self, served: Served) -> None:
        """A request to this model begins."""
        with self._lock:
            served.active += 1

    def leave(self, served: Served, seconds: float, failed: bool) -> None:
        """A request to this model has ended."""
        with self._lock:
            served.active -= 1
            served.count(seconds, failed)
            self._drain(served)

    def _check_control(self) -> None:
        if not self.explicit:
            raise Failure(503, NO_CONTROL)

    def _settle(self, served: Served) -> None:
        broken = served.model.load_error
        self._set(served, "UNAVAILABLE" if broken else "READY", broken)

    def _drain(self, served: Served) -> None:
        if served.state == "UNLOADING" and not served.active:
            self._set(served, "UNAVAILABLE", "unloaded")

    def _set(self, served: Served, state: str, reason: str = "") -> None:
        with self._lock:
            served.state, served.reason = state, reason
            self._lock.notify_all()
