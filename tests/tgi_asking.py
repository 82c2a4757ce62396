"""Asking a simulated TGI with a client that shares no code with it."""

from __future__ import annotations

import json
from typing import Any

import requests

from openai_clients import events_of
from simulate_clients import WAIT
from worker_adapters.simulate import TgiSimulator

CHAT = [{"role": "user", "content": "How are you"}]
WORDS = (" one", " two", " three", " four", " five")


def post(simulator: TgiSimulator, path: str, body: Any, **headers: str) -> requests.Response:
    """One request, its answer read to the end."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    fields = {"Content-Type": "application/json", **{name.replace("_", "-"): text for name, text in headers.items()}}
    return requests.post(simulator.url + path, data=raw, headers=fields, timeout=WAIT)


def told(simulator: TgiSimulator, path: str = "/generate_stream", **body: Any) -> list[Any]:
    """The data of a stream's events, parsed."""
    answer = post(simulator, path, body)
    assert answer.status_code == 200, answer.text
    return events_of(answer.content.replace(b"data:{", b"data: {"))


def generated(simulator: TgiSimulator, inputs: str = "hi there", **parameters: Any) -> dict[str, Any]:
    """The last event of a native stream with details."""
    last: dict[str, Any] = told(simulator, inputs=inputs, parameters={"details": True, **parameters})[-1]
    return last
