"""Which models a Triton server has, as far as jobs have asked: what a task must wait for before it can be written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

import msgspec

from worker_adapters.adapters.asking import Asking
from worker_adapters.errors import (
    EngineUnavailable,
    ModelNotFound,
    PoolUnavailable,
    UnknownError,
    WorkerError,
    invalid,
)
from worker_adapters.jsonvalue import shaped
from worker_adapters.transport.control import Reply
from worker_adapters.wire.delta import WireRequest
from worker_adapters.wire.triton_model import ModelConfig, TextModel

#: The list of models, all of them: of one that is not ready the state is wanted, too.
INDEX = WireRequest("/v2/repository/index", b"{}")
#: TensorRT-LLM's engine inside an ensemble, and what it takes for a cancel.
ENGINE, STOP = "tensorrt_llm", "stop"
ENGINE_CONFIG = WireRequest(f"/v2/models/{ENGINE}/config", method="GET")
NAMES_SHOWN = 20
OUT_OF_MEMORY = "out of memory"
GONE = "Request for unknown model"


class Entry(msgspec.Struct):
    """A line of the index. Never loaded: a name and nothing else."""

    name: str
    version: str = ""
    state: str = ""
    reason: str = ""

    @property
    def ready(self) -> bool:
        """Does it take jobs?"""
        return self.state == "READY"


class TritonModels:
    """The configs that were read. Only single operations on dicts and sets: shared between threads without a lock.

    :param tensors: see TextModel.
    :param version: of every model; "" for the server's choice.
    :param refused: makes an error of a reply that is no answer.
    """

    def __init__(
        self, tensors: Mapping[str, str], version: str, refused: Callable[[Reply, WireRequest], WorkerError]
    ) -> None:
        self._tensors = tensors
        self._version = version
        self._refused = refused
        self._known: dict[str, TextModel] = {}
        self._stops: dict[str, ModelConfig | None] = {}  # ensemble -> its engine, if that takes a stop
        self._absent: set[str] = set()
        self._stale: set[str] = set()
        self._sole: str | None = None
        self._sole_stale = False

    def name(self, asked: str | None) -> str | None:
        """The model of a task: the one it names, or the only one that the server has."""
        return asked or self._sole

    def __getitem__(self, name: str | None) -> TextModel:
        return self._known[name or ""]

    def path(self, name: str | None, call: str = "") -> str:
        """The path of a model's call."""
        version = f"/versions/{quote(self._version, safe='')}" if self._version else ""
        return f"/v2/models/{quote(name or '', safe='')}{version}{call}"

    def forget(self, name: str | None) -> None:
        """Ask anew: the model was unloaded, or loaded with another config.

        What was known stays readable, for jobs that are at work by it.
        """
        self._stale.add(name or "")
        self._sole_stale = True

    def question(self, asked: str | None) -> WireRequest | None:
        """What is still to be asked before a task for that model can be written."""
        name = self.name(asked)
        if name is None or name in self._absent or (asked is None and self._sole_stale):
            return INDEX
        if name not in self._known or name in self._stale:
            return WireRequest(self.path(name, "/config"), method="GET")
        if name in self._stops or ENGINE not in self._known[name].config.steps:
            return None
        return ENGINE_CONFIG

    def hears(self, asked: str | None, question: WireRequest, reply: Reply) -> None:
        """The answer to ``question``.

        :raises WorkerError: there is no such model, it is not ready, or it is none for text.
        """
        name = self.name(asked)
        if question is INDEX:
            self._listed(asked, reply)
        elif question is ENGINE_CONFIG:
            config = shaped(reply.json(), ModelConfig) if reply.status == 200 else None
            takes = config is not None and any(tensor.name == STOP for tensor in config.input)
            self._stops[name or ""] = config if takes else None
        elif name and _unknown(reply.status, reply.body.decode("utf-8", "replace")):
            self._absent.add(name)
        elif name:
            self._known[name] = TextModel(self._config(reply, question), self._tensors)
            self._stale.discard(name)

    def _config(self, reply: Reply, question: WireRequest) -> ModelConfig:
        if reply.status != 200:
            raise self._refused(reply, question)
        config: ModelConfig | None = shaped(reply.json(), ModelConfig)
        if config is None or not config.name:
            message = f"triton: what {question.path} answered is no model's config: another server?"
            raise UnknownError(message=message, status=200, phase="submit")
        return config

    def _listed(self, name: str | None, reply: Reply) -> None:
        """Which model is meant, or why the one that was meant cannot be had."""
        entries: list[Entry] | None = shaped(reply.json(), list[Entry]) if reply.status == 200 else None
        if name is None:
            if entries is None:
                raise self._refused(reply, INDEX)
            found = sole(entries)
            if found is None:
                names = sorted({entry.name for entry in entries if entry.ready})
                shown = ", ".join(names[:NAMES_SHOWN]) or "none that is ready"
                raise invalid("model", f"Triton wants the name of a model; it has {shown}")
            self._sole, self._sole_stale = found, False
            if found not in self._absent:
                return
            name = found
        self._absent.discard(name)
        raise _missing(name, entries or [])

    def asked(self, asking: Asking, name: str, call: str, shape: Any) -> Any:
        """What the server tells of a model, outside of any job.

        :raises WorkerError: or why it tells nothing.
        """
        try:
            return asking(self.path(name, call), shape)
        except EngineUnavailable as error:
            if not _unknown(error.status, error.message):
                raise
            why = _missing(name, asking(INDEX.path, list[Entry]))
            why.engine = error.engine
            raise why from None

    def stopping(self, asked: str | None) -> tuple[ModelConfig, dict[str, Any]] | None:
        """The engine and the tensors that end a job inside an ensemble, where a cancel reaches no step; None: no way.

        TensorRT-LLM's engine takes ``stop`` with the id of the request, which an ensemble hands on to its steps. Seen
        on 2.51.0 with tensorrtllm_backend 0.16.0's own Python model over a stub of its engine.
        """
        config = self._stops.get(self.name(asked) or "")
        if config is None:
            return None
        return config, {**{tensor.name: 1 for tensor in config.input if not tensor.optional}, STOP: True}


def sole(entries: list[Entry]) -> str | None:
    """The only model that takes jobs, if there is just one."""
    names = {entry.name for entry in entries if entry.ready}
    return names.pop() if len(names) == 1 else None


def _unknown(status: int | None, words: str) -> bool:
    """Does the server not know the model? Up to 2.41 it says so with 400, as for much else, then with 404."""
    return status == 404 or (status == 400 and GONE in words)


def _missing(name: str, entries: list[Entry]) -> WorkerError:
    """Why a model's config cannot be had."""
    found = [entry for entry in entries if entry.name == name]
    if not found:
        shown = ", ".join(sorted({entry.name for entry in entries})[:NAMES_SHOWN])
        message = f"triton has no model {name!r}" + (f"; it has {shown}" if shown else "")
        return ModelNotFound(message=message, field="model", status=404, phase="submit")
    if any(entry.ready for entry in found):  # between our two questions, or another version
        message = f"triton has no such version of the model {name!r}, or loads it just now"
        return EngineUnavailable(message=message, status=404, retriable=True, phase="submit")
    reason = next((entry.reason for entry in found if entry.reason), "").partition("\n\nAt:\n")[0]
    states = ", ".join(sorted({entry.state for entry in found if entry.state})) or "not loaded"
    message = f"triton's model {name!r} is {states}" + (f": {reason}" if reason else "")
    if OUT_OF_MEMORY in reason.lower():
        return PoolUnavailable(message=message, status=404, phase="submit")
    return EngineUnavailable(message=message, status=404, retriable=True, phase="submit")
