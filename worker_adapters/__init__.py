"""worker_adapters: one blocking contract in front of every LLM engine.

    from worker_adapters import connect

    with connect("llamacpp", "http://localhost:8081") as engine:
        for frame in engine.submit("The quick brown", max_tokens=64):
            if frame.type == "token":
                print(frame.text, end="", flush=True)

Importing this package loads no HTTP library, starts nothing and reads no environment: names resolve on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from worker_adapters.adapters.base import HttpAdapter as HttpAdapter
    from worker_adapters.adapters.catalog import available_engines as available_engines
    from worker_adapters.adapters.catalog import connect as connect
    from worker_adapters.adapters.detect import detect as detect
    from worker_adapters.adapters.llamacpp import LlamaCppHttpAdapter as LlamaCppHttpAdapter
    from worker_adapters.adapters.mock import MockAdapter as MockAdapter
    from worker_adapters.adapters.openai import OpenAIHttpAdapter as OpenAIHttpAdapter
    from worker_adapters.adapters.rules import ErrorRule as ErrorRule
    from worker_adapters.adapters.tgi import TgiHttpAdapter as TgiHttpAdapter
    from worker_adapters.adapters.triton import TritonAdapter as TritonAdapter
    from worker_adapters.adapters.vllm import VllmHttpAdapter as VllmHttpAdapter
    from worker_adapters.contract import WorkerAdapter as WorkerAdapter
    from worker_adapters.errors import AuthenticationFailed as AuthenticationFailed
    from worker_adapters.errors import CapacityExceeded as CapacityExceeded
    from worker_adapters.errors import ContextOverflow as ContextOverflow
    from worker_adapters.errors import EngineUnavailable as EngineUnavailable
    from worker_adapters.errors import InvalidRequest as InvalidRequest
    from worker_adapters.errors import ModelNotFound as ModelNotFound
    from worker_adapters.errors import PoolUnavailable as PoolUnavailable
    from worker_adapters.errors import StreamTruncated as StreamTruncated
    from worker_adapters.errors import UnknownError as UnknownError
    from worker_adapters.errors import WorkerError as WorkerError
    from worker_adapters.errors import WorkerTimeout as WorkerTimeout
    from worker_adapters.frames import AnyFrame as AnyFrame
    from worker_adapters.frames import EndFrame as EndFrame
    from worker_adapters.frames import ErrorFrame as ErrorFrame
    from worker_adapters.frames import Metrics as Metrics
    from worker_adapters.frames import ReasoningFrame as ReasoningFrame
    from worker_adapters.frames import StartedFrame as StartedFrame
    from worker_adapters.frames import TokenFrame as TokenFrame
    from worker_adapters.frames import ToolCall as ToolCall
    from worker_adapters.frames import ToolCallFrame as ToolCallFrame
    from worker_adapters.frames import frame_from_dict as frame_from_dict
    from worker_adapters.host.breaker import BreakerPolicy as BreakerPolicy
    from worker_adapters.host.host import AdapterHost as AdapterHost
    from worker_adapters.host.jobs import Job as Job
    from worker_adapters.host.observe import JobInfo as JobInfo
    from worker_adapters.host.observe import Observer as Observer
    from worker_adapters.message import Message as Message
    from worker_adapters.report import Capabilities as Capabilities
    from worker_adapters.report import Completion as Completion
    from worker_adapters.report import EngineProps as EngineProps
    from worker_adapters.report import HealthStatus as HealthStatus
    from worker_adapters.retry import RetryPolicy as RetryPolicy
    from worker_adapters.stream import TokenStream as TokenStream
    from worker_adapters.task import TaskLike as TaskLike
    from worker_adapters.task import TaskRequest as TaskRequest
    from worker_adapters.timeouts import Timeouts as Timeouts
    from worker_adapters.wire.delta import Decoder as Decoder
    from worker_adapters.wire.delta import Delta as Delta
    from worker_adapters.wire.delta import EngineFault as EngineFault
    from worker_adapters.wire.delta import Finish as Finish
    from worker_adapters.wire.delta import ToolDelta as ToolDelta
    from worker_adapters.wire.delta import Usage as Usage
    from worker_adapters.wire.delta import WireRequest as WireRequest

__version__ = "0.1.0"

#: Where each public name lives.
_HOMES = {
    "adapters.base": ("HttpAdapter",),
    "adapters.catalog": ("available_engines", "connect"),
    "adapters.detect": ("detect",),
    "adapters.llamacpp": ("LlamaCppHttpAdapter",),
    "adapters.mock": ("MockAdapter",),
    "adapters.openai": ("OpenAIHttpAdapter",),
    "adapters.rules": ("ErrorRule",),
    "adapters.tgi": ("TgiHttpAdapter",),
    "adapters.triton": ("TritonAdapter",),
    "adapters.vllm": ("VllmHttpAdapter",),
    "contract": ("WorkerAdapter",),
    "errors": (
        "AuthenticationFailed", "CapacityExceeded", "ContextOverflow", "EngineUnavailable", "InvalidRequest",
        "ModelNotFound", "PoolUnavailable", "StreamTruncated", "UnknownError", "WorkerError", "WorkerTimeout",
    ),
    "frames": (
        "AnyFrame", "EndFrame", "ErrorFrame", "Metrics", "ReasoningFrame", "StartedFrame", "TokenFrame", "ToolCall",
        "ToolCallFrame",
        "frame_from_dict",
    ),
    "host.breaker": ("BreakerPolicy",),
    "host.host": ("AdapterHost",),
    "host.jobs": ("Job",),
    "host.observe": ("JobInfo", "Observer"),
    "report": ("Capabilities", "Completion", "EngineProps", "HealthStatus"),
    "retry": ("RetryPolicy",),
    "stream": ("TokenStream",),
    "message": ("Message",),
    "task": ("TaskLike", "TaskRequest"),
    "timeouts": ("Timeouts",),
    "wire.delta": ("Decoder", "Delta", "EngineFault", "Finish", "ToolDelta", "Usage", "WireRequest"),
}  # fmt: skip
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)  # noqa: PLE0605 - a list of strings, from the one table


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
