"""Recorded exchanges of the OpenAI dialect, and how to ask a simulator the same again, byte by byte."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simulate_clients import ask, read_all, split, unchunk
from worker_adapters.simulate import SimServer

FOLDER = Path(__file__).parent / "transcripts"


@dataclass(frozen=True)
class Exchange:
    """One recorded exchange."""

    name: str
    method: str
    path: str
    asked: Any
    asked_headers: dict[str, str]
    status: int | None
    headers: list[tuple[str, str]]
    chunks: list[bytes]

    @property
    def body(self) -> bytes:
        """All that was answered."""
        return b"".join(self.chunks)


def recorded(engine: str) -> dict[str, Exchange]:
    """Every recorded exchange of an engine by name."""
    return {path.stem: _read(path) for path in sorted((FOLDER / engine).glob("*.json"))}


def _read(path: Path) -> Exchange:
    whole = json.loads(path.read_text(encoding="utf-8"))
    asked, answer = whole["request"], whole["response"]
    return Exchange(
        path.stem,
        asked["method"],
        asked["path"],
        asked["body"],
        asked["headers"],
        answer["status"],
        [(name, value) for name, value in answer["headers"]],
        [chunk["text"].encode() for chunk in answer["chunks"]],
    )


def play(recording: Exchange, simulator: SimServer, **body: Any) -> tuple[int, list[tuple[str, str]], list[bytes]]:
    """Asks what was asked then (with a changed `body`): status, header fields, body chunks."""
    headers = "".join(f"{name}: {value}\r\n" for name, value in recording.asked_headers.items())
    sent = recording.asked.encode() if isinstance(recording.asked, str) else recording.asked
    if body:
        sent = {**sent, **body}
    head, rest = split(read_all(ask(simulator, recording.path, sent, method=recording.method, headers=headers)))
    status, *fields = head.decode("latin-1").split("\r\n")
    chunks = unchunk(rest)[0] if b"chunked" in head else [rest] if rest else []
    pairs = [field.split(": ", 1) for field in fields]
    return int(status.split()[1]), [(name, value) for name, value in pairs], chunks


def send(server: SimServer, path: str, body: Any, headers: str = "") -> socket.socket:
    """A JSON request on a plain socket."""
    return ask(server, path, body, headers=f"Content-Type: application/json\r\n{headers}")


def events_of(body: bytes) -> list[Any]:
    """The data of each event, parsed; comments are left out."""
    lines = [line.removeprefix("data: ") for line in body.decode().split("\n") if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def shape(value: Any) -> Any:
    """The names in a JSON value, sorted, without the values; what stands in a list counts once."""
    if isinstance(value, dict):
        return [(name, shape(value[name])) for name in sorted(value)]
    return [shape(item) for item in value[:1]] if isinstance(value, list) else None
