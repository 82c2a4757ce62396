"""Clients that share no code with the library or its simulators, and the recordings they compare with."""

from __future__ import annotations

import errno
import json
import socket
from pathlib import Path
from typing import Any

import requests
import sseclient

from worker_adapters.simulate import SimServer

RECORDINGS = {path.stem: path for path in sorted((Path(__file__).parent / "transcripts" / "llamacpp").glob("*.json"))}
WAIT = 5.0  # seconds: how long a test waits for what must come
SOON = 0.1  # seconds: what "at once" may take on a loaded machine


def connect(server: SimServer) -> socket.socket:
    """A plain socket with a deadline on every read."""
    sock = socket.create_connection(("127.0.0.1", server.port), timeout=WAIT)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def request_bytes(path: str, body: Any = None, method: str = "POST", headers: str = "") -> bytes:
    """One request on the wire."""
    raw = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    return f"{method} {path} HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: {len(raw)}\r\n\r\n".encode() + raw


def ask(server: SimServer, path: str = "/completion", body: Any = None, **more: Any) -> socket.socket:
    """Sends a request and returns the socket; the default asks for a stream of tokens."""
    sock = connect(server)
    body = {"prompt": "hi", "stream": True, "n_predict": 5} if body is None and path == "/completion" else body
    sock.sendall(request_bytes(path, body, **more))
    return sock


def read_all(sock: socket.socket) -> bytes:
    """Everything up to the end of the connection."""
    with sock:
        return b"".join(iter(lambda: sock.recv(65536), b""))


def read_until(sock: socket.socket, mark: bytes, times: int = 1) -> bytes:
    """Reads until `mark` was seen so often."""
    data = b""
    while data.count(mark) < times:
        part = sock.recv(65536)
        assert part, data
        data += part
    return data


def split(answer: bytes) -> tuple[bytes, bytes]:
    """Head and body."""
    head, _, body = answer.partition(b"\r\n\r\n")
    return head, body


def unchunk(body: bytes) -> tuple[list[bytes], bytes]:
    """The chunks of a body, extensions dropped, and what follows the last one (trailers, leftovers)."""
    chunks = []
    while True:
        size, _, body = body.partition(b"\r\n")
        length = int(size.split(b";")[0], 16)
        if not length:
            return chunks, body
        assert body[length : length + 2] == b"\r\n"
        chunks.append(body[:length])
        body = body[length + 2 :]


def stream(server: SimServer, path: str = "/completion", **body: Any) -> list[Any]:
    """Asks for a stream with requests + sseclient-py: the data of each event, parsed."""
    answer = requests.post(server.url + path, json={"stream": True, **body}, stream=True, timeout=WAIT)
    with answer:
        assert answer.status_code == 200, answer.text
        events = [event.data for event in sseclient.SSEClient(answer.iter_content(512)).events()]
    return [event if event == "[DONE]" else json.loads(event) for event in events]


def text_of(events: list[Any]) -> str:
    """The text of a native stream."""
    return "".join(event["content"] for event in events)


def token_events(data: bytes) -> int:
    """How many token events a native stream holds."""
    return data.count(b'"stop":false')


def read_to_error(sock: socket.socket, close: bool = True) -> tuple[bytes, str | None]:
    """Everything up to the end, and the error's name if the end was one: `ECONNRESET`, or `timed out`."""
    data, failure = b"", None
    try:
        while part := sock.recv(65536):
            data += part
    except TimeoutError:
        failure = "timed out"
    except OSError as error:
        failure = errno.errorcode[error.errno or 0]
    if close:
        sock.close()
    return data, failure


def chunks_of(recording: dict[str, Any]) -> list[dict[str, str]]:
    """The recorded chunks."""
    chunks: list[dict[str, str]] = recording["response"]["chunks"]
    return chunks
