"""The paths of Triton's HTTP API, and its answers that never change."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

_MODEL = re.compile(
    r"/v2/models/([^/]+)(?:/versions/([0-9]+))?"
    r"(?:/(infer|generate|generate_stream|ready|config|stats|trace/setting))?"
)
_INDEX = re.compile(r"/v2/repository(?:/[^/]+)?/index")
_CONTROL = re.compile(r"/v2/repository/models/([^/]+)/(load|unload)")
_FIXED = {
    "/v2": "server",
    "/v2/health/live": "live",
    "/v2/health/ready": "server-ready",
    "/v2/models/stats": "stats",
    "/v2/trace/setting": "trace/setting",
    "/v2/logging": "logging",
    "/v2/systemsharedmemory/status": "status",
    "/v2/cudasharedmemory/status": "status",
}
# What a path does -> which group of --http-restricted-api it belongs to.
CATEGORIES = {
    "live": "health", "server-ready": "health", "ready": "health", "server": "metadata", "model": "metadata",
    "infer": "inference", "generate": "inference", "generate_stream": "inference", "config": "model-config",
    "stats": "statistics", "index": "model-repository", "load": "model-repository", "unload": "model-repository",
    "trace/setting": "trace", "logging": "logging", "status": "shared-memory",
}  # fmt: skip
_POSTED = ("infer", "generate", "generate_stream", "index", "load", "unload")
_PLAIN = ("live", "server-ready", "ready", "infer")

TRACE = {
    "trace_level": ["OFF"],
    "trace_rate": "1000",
    "trace_count": "-1",
    "log_frequency": "0",
    "trace_file": "",
    "trace_mode": "triton",
}
LOGGING = {
    "log_file": "",
    "log_info": True,
    "log_warning": True,
    "log_error": True,
    "log_verbose_level": 0,
    "log_format": "default",
}
_EXTENSIONS = (
    "classification", "sequence", "model_repository", "model_repository(unload_dependents)", "schedule_policy",
    "model_configuration", "system_shared_memory", "cuda_shared_memory", "binary_tensor_data", "parameters",
    "statistics", "trace", "logging",
)  # fmt: skip

# HTTP status -> what the engine says with it, if a test says nothing else. `{}` is the model's name.
ERRORS = {
    400: "The schema can not convert input 'text_input' to tensor with proper shape",
    401: "Unauthorized",
    403: "This API is restricted, expecting header 'authorization'",
    404: "Request for unknown model: '{}' is not found",
    405: "Method Not Allowed",
    429: "Too Many Requests",
    500: "Stub process '{}_0_0' is not healthy.",
    501: "HTTP end point doesn't support models with decoupled transaction policy",
    503: "Exceeds maximum queue size",
}


class Route(NamedTuple):
    """What a path asks for; `kind` is "" for a path that is not there."""

    kind: str
    model: str = ""
    version: str = ""

    @property
    def generates(self) -> bool:
        """True for a request for tokens."""
        return self.kind in ("infer", "generate", "generate_stream")

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods it takes."""
        if self.kind in ("trace/setting", "logging"):
            return ("GET", "POST")
        return ("POST",) if self.kind in _POSTED else ("GET",)

    @property
    def plain(self) -> bool:
        """True if it refuses a wrong method under text/plain."""
        return self.kind in _PLAIN


def route(path: str) -> Route:
    """What a path asks for."""
    if path in _FIXED:
        return Route(_FIXED[path])
    if _INDEX.fullmatch(path):
        return Route("index")
    found = _CONTROL.fullmatch(path)
    if found:
        return Route(found[2], found[1])
    found = _MODEL.fullmatch(path)
    return Route(found[3] or "model", found[1], found[2] or "") if found else Route("")


def server_metadata(version: str) -> dict[str, Any]:
    """The body of GET /v2."""
    return {"name": "triton", "version": version, "extensions": list(_EXTENSIONS)}
