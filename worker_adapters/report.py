"""What an engine and a job report: health, props, capabilities, completions. Absent is None, never a guess."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any

from worker_adapters.frames import Metrics, ToolCall
from worker_adapters.jsonvalue import JsonValue
from worker_adapters.message import Message

STATES = ("healthy", "degraded", "unhealthy")
RESIDENCIES = ("gpu", "partial", "cpu", "unknown")


@dataclass(frozen=True)
class HealthStatus(JsonValue):
    """One look at an engine.

    :param state: ``healthy`` (ready), ``degraded`` (alive but not ready, e.g. loading, or it refuses our key),
        ``unhealthy`` (down, or it cannot generate).
    :param live: does it answer, and not that it is dead?
    :param ready: does it take jobs?
    :param message: why, in one line.
    :param latency_ms: how long the answer took, in milliseconds.
    """

    state: str
    live: bool
    ready: bool
    message: str = ""
    latency_ms: float | None = None


@dataclass(frozen=True)
class Capabilities(JsonValue):
    """What an engine can do; hosts and tools branch on these, never on an engine's name."""

    #: Does it continue a raw prompt?
    prompts: bool = True
    #: Does it take a conversation?
    messages: bool = True
    #: Which optional TaskRequest fields has it an equivalent for?
    fields: tuple[str, ...] = ()
    #: Does it report exact token counts?
    exact_counts: bool = True
    #: Does closing the socket stop the generation?
    cancel_by_close: bool = True
    #: How soon is the engine free after a cancel, in words a user can plan with?
    release: str = ""
    #: The same as a number, in milliseconds: so long a host counts a cancelled job's place as taken.
    release_ms: float = 0.0
    #: Can jobs of one session reuse its KV cache?
    session_cache: bool = False


@dataclass(frozen=True)
class EngineProps(JsonValue):
    """What an engine says of itself.

    :param engine: catalog name.
    :param engine_version: as the engine tells it, else ``"unknown"``.
    :param model: the one that is served, or the adapter's default.
    :param model_digest: the engine's digest of the model, or an identity built from what it tells.
    :param context_size: tokens one job can use, prompt and answer together.
    :param slots_total: places for jobs, for engines with slots.
    :param slots_free: those that are free now.
    :param running: jobs at work inside the engine, for engines that batch.
    :param waiting: jobs in its queue.
    :param kv_cache_usage: how full the KV cache is, 0 to 1.
    :param residency: where the weights are: gpu, partial (in part, or the KV cache is swapped out), cpu, or unknown (no
        positive signal).
    :param capabilities: what the engine can do.
    :param raw: the engine's own answers, for what we do not interpret.
    """

    engine: str
    engine_version: str = "unknown"
    model: str | None = None
    model_digest: str | None = None
    context_size: int | None = None
    slots_total: int | None = None
    slots_free: int | None = None
    running: int | None = None
    waiting: int | None = None
    kv_cache_usage: float | None = None
    residency: str = "unknown"
    capabilities: Capabilities = field(default_factory=Capabilities)
    raw: dict[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Completion(JsonValue):
    """A whole answer: what ``TokenStream.result()`` returns. A cancelled job's is partial.

    :param text: the answer, without the reasoning.
    :param finish_reason: as in :class:`EndFrame`, with ``raw_finish_reason``.
    :param raw_finish_reason: the engine's own word for it.
    :param reasoning: the model's thinking.
    :param tool_calls: whole calls.
    :param metrics: what the job cost.
    :param job_id: whose answer it is.
    """

    text: str
    finish_reason: str
    raw_finish_reason: str | None = None
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    metrics: Metrics = field(default_factory=Metrics)
    job_id: str = ""

    @property
    def cancelled(self) -> bool:
        """Did a cancel end it?"""
        return self.finish_reason == "cancelled"

    def message(self) -> Message:
        """The answer as the assistant's turn, for the next request of a conversation or of a tool loop.

        Arguments that are no JSON go back as ``{}``: chat templates parse them, and vLLM refuses the request else.

        :raises InvalidRequest: an answer without text and without tool calls is no turn.
        """
        calls = [
            replace(call, arguments=call.arguments if _is_json(call.arguments) else "{}") for call in self.tool_calls
        ]
        return Message("assistant", self.text or None, tool_calls=calls or None)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
