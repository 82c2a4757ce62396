"""What TGI says of itself and of its errors, by version."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from .openai_request import dump
from .openai_script import token_id

OUT_OF_MEMORY = "Server error: CUDA out of memory. Tried to allocate 2.00 GiB."

# error_type -> status of a one-shot answer, text
ERRORS: dict[str, tuple[int, str]] = {
    "generation": (424, f"Request failed during generation: {OUT_OF_MEMORY}"),
    "overloaded": (429, "Model is overloaded"),
    "validation": (422, "Input validation error: `inputs` cannot be empty"),
    "incomplete_generation": (500, "Incomplete generation"),
    "incomplete_generation_stream": (500, "Incomplete generation stream"),
    "stream_serialization_error": (500, "Stream event serialization error"),
    "template_error": (422, "Template error: template not found"),
    "missing_template_variable": (422, "Missing template vatiable: tools"),  # the engine's spelling
    "tool_error": (422, "Tool error: Tool with name owl not found"),
    "suffix not supported": (422, "Suffix is not supported and can be achieved by preprocessing the prompt."),
    "batch size exceeded": (422, "Number of prompts exceeds the maximum allowed batch size of 4"),
    "healthcheck": (503, "unhealthy"),
}
# The kind that an HTTP status stands for; others come from gateways, without a kind.
KINDS = {424: "generation", 429: "overloaded", 422: "validation", 500: "incomplete_generation"}
GATEWAY = {503: "Model recite is currently loading"}


@dataclass(frozen=True)
class Version:
    """A version as /info tells it, "3.3.6-dev0"."""

    text: str

    def since(self, *number: int) -> bool:
        """True from this version on."""
        return self._number >= number

    @cached_property
    def _number(self) -> tuple[int, ...]:
        return tuple(int(part) for part in re.findall(r"\d+", self.text)[:3])

    def event(self, value: Any) -> bytes:
        """One server-sent event; no space behind the colon up to 2.0.x."""
        data = value if isinstance(value, bytes) else dump(value)
        return (b"data: " if self.since(2, 1) else b"data:") + data + b"\n\n"


def error(message: str, kind: str = "") -> dict[str, str]:
    """The native error object; without a kind as a gateway writes it."""
    return {"error": message, "error_type": kind} if kind else {"error": message}


def openai_error(message: str) -> dict[str, Any]:
    """The error object of the /v1 streams since 2.4.1: one number for everything."""
    return {"error": {"message": message, "http_status_code": 422}}


@dataclass(frozen=True)
class Facts:
    """What /info tells besides limits. `device` and `dtype` are told up to 2.2.0 only."""

    model: str
    version: Version
    model_sha: str | None = None
    pipeline_tag: str | None = "text-generation"
    device: str = "cuda"
    dtype: str = "torch.float16"
    sha: str | None = None
    docker_label: str | None = None

    @property
    def fingerprint(self) -> str:
        """The `system_fingerprint` of /v1 answers."""
        return f"{self.version.text}-{self.docker_label or 'native'}"

    def complaint(self, route: str, message: str, kind: str) -> bytes:
        """An error event. On /v1 it is native up to 2.4.0, and has no kind from 2.4.1 on; a chat of 2.4.0 has none."""
        bare = route != "native" and self.version.since(2, 4, 1)
        if route == "chat" and self.version.since(2, 4) and not bare:
            return b""  # 2.4.0 drops the errors of a chat's stream
        return self.version.event(openai_error(message) if bare else error(message, kind))

    def ending(self, route: str) -> tuple[bytes, ...]:
        """What ends every stream: an end mark on /v1 since 2.2.0, nothing on the native routes."""
        marked = route != "native" and self.version.since(2, 2)
        return (self.version.event(b"[DONE]"),) if marked else ()

    def info(self, limits: dict[str, int]) -> dict[str, Any]:
        """The body of /info."""
        version = self.version
        told: dict[str, Any] = {"model_id": self.model, "model_sha": self.model_sha}
        wordy = not version.since(2, 3)
        if wordy:
            told |= {"model_dtype": self.dtype, "model_device_type": self.device}
        told["model_pipeline_tag"] = self.pipeline_tag
        told |= {name: limits[name] for name in ("max_concurrent_requests", "max_best_of", "max_stop_sequences")}
        told["max_input_tokens" if version.since(2, 1) else "max_input_length"] = limits["max_input_tokens"]
        told["max_total_tokens"] = limits["max_total_tokens"]
        if wordy:
            told |= {"waiting_served_ratio": 1.2, "max_batch_total_tokens": 32000, "max_waiting_tokens": 20}
            told |= {"max_batch_size": None} if version.since(1, 4, 1) else {}
        told["validation_workers"] = 2
        if version.since(2, 0, 1):
            told["max_client_batch_size"] = limits["max_client_batch_size"]
        if version.since(2, 0, 3):
            told["router"] = "text-generation-router"
        return {**told, "version": version.text, "sha": self.sha, "docker_label": self.docker_label}

    def models(self) -> dict[str, Any]:
        """The body of /v1/models."""
        only = {"id": self.model, "object": "model", "created": 0, "owned_by": self.model}
        return {"object": "list", "data": [only]}


TOLD = ("model_sha", "pipeline_tag", "device", "dtype", "sha", "docker_label")


def tokenize(text: str) -> list[dict[str, Any]]:
    """The body of /tokenize: words with their leading space, offsets in bytes; the first token has no text."""
    found = [{"id": 1, "text": "", "start": 0, "stop": 0}]
    at = 0
    for word in re.findall(r"\s?\S+|\s", text):
        size = len(word.encode())
        found.append({"id": token_id(word), "text": word, "start": at, "stop": at + size})
        at += size
    return found
