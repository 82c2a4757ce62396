"""A load server that is never the bottleneck: each engine's stream, rendered before it is asked for.

It speaks just enough: a POST to a path of ``STREAMS`` streams as many tokens as the request's limit says, as many
milliseconds apart as its prompt says ("0": as fast as the socket takes them, many chunks a send), and a GET of a path
of ``FACTS`` gets what a small server says there. One event is one HTTP chunk, as from the engines; heads and events
have the bytes of recorded ones. Only one thing differs: a real llama.cpp closes after a stream, this server keeps the
connection, so that a request's own cost can be told from that of connecting. In a process of its own, a thread a
connection.

    python benchmarks/server.py        prints its port, and serves until its standard input is closed
"""

from __future__ import annotations

import argparse
import json
import socket
import sys
import threading
import time
from functools import cache
from types import TracebackType
from typing import NamedTuple

from measure import cpu, percentile, pin, python, say

WORDS = (" the", " quick", " brown", " fox", " jumps", " over", " the", " lazy", " dog", ".")


class Recorded(NamedTuple):
    """A stream as an engine sends it; in its events stand ``%(word)s``, ``%(id)d``, ``%(number)d``, ``%(reason)s``.

    :ivar opening: events before the first token, sent with it.
    :ivar token: the event of a token; ``reason`` is null until the last one's.
    :ivar closing: events after the last token.
    :ivar last: the event of the last token, where it says more than the others.
    """

    head: bytes
    opening: tuple[str, ...]
    token: str
    closing: tuple[str, ...]
    last: str = ""


#: llama.cpp's server of 2026-10; the last event as cut by ``response_fields``.
LLAMACPP = Recorded(
    b"HTTP/1.1 200 OK\r\nServer: llama.cpp\r\nAccess-Control-Allow-Origin: \r\nX-Accel-Buffering: no\r\n"
    b"Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n",
    (),
    '{"index":0,"content":"%(word)s","tokens":[%(id)d],"stop":false,"id_slot":-1,'
    '"tokens_predicted":%(number)d,"tokens_evaluated":15}',
    (
        '{"index":0,"content":"","stop":true,"stop_type":"limit","stopping_word":"","truncated":false,"id_slot":3,'
        '"tokens_predicted":%(number)d,"tokens_evaluated":15,"tokens_cached":20,"timings":{"cache_n":14,"prompt_n":1,'
        '"prompt_ms":0.22,"predicted_n":%(number)d,"predicted_ms":5.104}}',
    ),
)
_TGI_EVENT = '{"index":%(number)d,"token":{"id":%(id)d,"text":"%(word)s","logprob":-1.5351562,"special":false},'
#: TGI 3.3 by its sources, asked for details.
TGI = Recorded(
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nx-compute-type: gpu+optimized\r\n"
    b"x-compute-characters: 3\r\nx-accel-buffering: no\r\ncache-control: no-cache\r\ntransfer-encoding: chunked\r\n"
    b"date: Sun, 22 Nov 2026 18:40:59 GMT\r\n\r\n",
    (),
    _TGI_EVENT + '"generated_text":null,"details":null}',
    (),
    _TGI_EVENT + '"generated_text":"all of it","details":{"finish_reason":"length","generated_tokens":%(number)d,'
    '"seed":null,"input_length":3}}',
)
#: Triton 2.51.0, a generic model; the body's end is all that it says of its end.
TRITON = Recorded(
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n",
    (),
    '{"id":"812ac47f95c8ca00a7e3640a7fb632d8","model_name":"bench","model_version":"1","text_output":"%(word)s"}',
    (),
)
#: vLLM 0.32.0, asked for usage.
VLLM = Recorded(
    b"HTTP/1.1 200 OK\r\ndate: Sun, 22 Nov 2026 18:40:59 GMT\r\nserver: uvicorn\r\n"
    b"content-type: text/event-stream; charset=utf-8\r\nvary: Origin\r\ntransfer-encoding: chunked\r\n\r\n",
    (),
    '{"id":"cmpl-8030e6a5c4618932","object":"text_completion","created":1795372859,"model":"recite","choices":'
    '[{"index":0,"text":"%(word)s","logprobs":null,"finish_reason":%(reason)s,"stop_reason":null,'
    '"prompt_token_ids":null,"token_ids":null}]}',
    (
        '{"id":"cmpl-8030e6a5c4618932","object":"text_completion","created":1795372859,"model":"recite","choices":[],'
        '"usage":{"prompt_tokens":2,"total_tokens":8,"completion_tokens":%(number)d},'
        '"system_fingerprint":"vllm-0.32.0-a548cd6f"}',
        "[DONE]",
    ),
)
#: What stands at the head of each of OpenAI's chunks.
_CHUNK = (
    '{"id":"chatcmpl-B9MBs8CjcvOU2jLn4n570S5qMJKcT","object":"chat.completion.chunk","created":1741569952,'
    '"model":"gpt-4o-mini-2024-07-18","service_tier":"default","system_fingerprint":"fp_44709d6fcb","choices":'
)
#: OpenAI by its schema 2.3.0, asked for usage.
OPENAI = Recorded(
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nx-request-id: req_7f0c0d2b4f0e4b7a9b1f\r\n"
    b"openai-processing-ms: 172\r\nopenai-version: 2020-10-01\r\nopenai-organization: org-redacted\r\n"
    b"x-ratelimit-limit-requests: 10000\r\nx-ratelimit-remaining-requests: 9999\r\n"
    b"x-ratelimit-reset-requests: 6ms\r\nx-ratelimit-limit-tokens: 200000\r\nx-ratelimit-remaining-tokens: 199981\r\n"
    b"x-ratelimit-reset-tokens: 5ms\r\nTransfer-Encoding: chunked\r\n\r\n",
    (
        _CHUNK + '[{"index":0,"delta":{"role":"assistant","content":"","refusal":null},"logprobs":null,'
        '"finish_reason":null}],"usage":null,"obfuscation":"x8Kq"}',
    ),
    _CHUNK + '[{"index":0,"delta":{"content":"%(word)s"},"logprobs":null,"finish_reason":null}],"usage":null,'
    '"obfuscation":"3fP"}',
    (
        _CHUNK + '[{"index":0,"delta":{},"logprobs":null,"finish_reason":"length"}],"usage":null,"obfuscation":"a"}',
        _CHUNK + '[],"usage":{"prompt_tokens":19,"completion_tokens":%(number)d,"total_tokens":22,'
        '"prompt_tokens_details":{"cached_tokens":0,"audio_tokens":0},"completion_tokens_details":'
        '{"reasoning_tokens":0,"audio_tokens":0,"accepted_prediction_tokens":0,"rejected_prediction_tokens":0}}}',
        "[DONE]",
    ),
)
STREAMS = {
    "/completion": LLAMACPP,
    "/generate_stream": TGI,
    "/v2/models/bench/generate_stream": TRITON,
    "/v1/completions": VLLM,
    "/v1/chat/completions": OPENAI,
}
TENSORS = (
    b'"input":[{"name":"text_input","data_type":"TYPE_STRING","dims":["1"]},{"name":"max_tokens","data_type":"TYPE_INT32",'
    b'"dims":["1"],"optional":true},{"name":"stream","data_type":"TYPE_BOOL","dims":["1"],"optional":true}],'
    b'"output":[{"name":"text_output","data_type":"TYPE_STRING","dims":["1"]}]'
)
FACTS = {
    "/health": b'{"status":"ok"}',
    "/v2/health/live": b"{}",
    "/v2/health/ready": b"{}",
    "/v2/models/bench/ready": b"{}",
    "/props": b'{"build_info":"b1-bench","model_path":"bench.gguf","total_slots":4}',
    "/info": b'{"model_id":"bench","version":"3.3.6-dev0","max_total_tokens":4096,"router":"text-generation-router"}',
    "/v2": b'{"name":"triton","version":"2.51.0","extensions":[]}',
    "/v2/models/bench/config": b'{"name":"bench","backend":"python","max_batch_size":0,'
    b'"model_transaction_policy":{"decoupled":true},' + TENSORS + b"}",
    "/version": b'{"version":"0.32.0"}',
    "/v1/models": b'{"object":"list","data":[{"id":"bench","object":"model","created":1795372859,"owned_by":"bench"}]}',
}


#: How many milliseconds late each piece was sent, since somebody last asked.
LATE: list[float] = []
SERVED = "/served"


def served() -> bytes:
    """How late pieces were sent, which is then forgotten; and how much CPU this process took so far."""
    late = [LATE.pop() for _ in range(len(LATE))]
    shares = {f"late_p{share}_ms": percentile(late or [0.0], share / 100) for share in (50, 99)}
    return json.dumps({"cpu_s": cpu(), "paced": len(late), **shares}).encode()


def fact(path: str) -> bytes:
    """The answer to a GET."""
    body = served() if path == SERVED else FACTS.get(path)
    status, body = (b"404 Not Found", b"{}") if body is None else (b"200 OK", body)
    head = b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % (status, len(body)) + body


def chunk(data: str) -> bytes:
    """An HTTP chunk of one event."""
    event = b"data: %s\n\n" % data.encode()
    return b"%x\r\n%s\r\n" % (len(event), event)


@cache
def pieces(path: str, tokens: int) -> list[bytes]:
    """The whole body in ``tokens + 1`` pieces: the tokens, and all that follows them."""
    engine = STREAMS[path]
    told = [
        {"word": WORDS[i % len(WORDS)], "id": 259 + i % len(WORDS), "number": i + 1, "reason": "null"}
        for i in range(tokens)
    ]
    told[-1]["reason"] = '"length"'
    made = [chunk(engine.token % values) for values in told[:-1]] + [chunk((engine.last or engine.token) % told[-1])]
    made[0] = b"".join(chunk(event) for event in engine.opening) + made[0]
    return [*made, b"".join(chunk(event % told[-1]) for event in engine.closing) + b"0\r\n\r\n"]


@cache
def whole(path: str, tokens: int) -> bytes:
    """Head and body in one."""
    return STREAMS[path].head + b"".join(pieces(path, tokens))


def stream(sock: socket.socket, path: str, tokens: int, gap: float) -> None:
    """Answer with a stream: at once, or with ``gap`` seconds before each piece."""
    if not gap:
        sock.sendall(whole(path, tokens))
        return
    sock.sendall(STREAMS[path].head)
    due = time.monotonic()
    for piece in pieces(path, tokens):
        due += gap
        time.sleep(max(0.0, due - time.monotonic()))
        LATE.append((time.monotonic() - due) * 1000.0)
        sock.sendall(piece)


def job(asked: dict[str, object]) -> tuple[int, float]:
    """How many tokens a request wants, and how many seconds apart."""
    fields = {**asked, **asked.get("parameters", {})}
    words = next(fields[name] for name in ("prompt", "inputs", "text_input", "messages") if name in fields)
    limit = next(fields[name] for name in ("n_predict", "max_new_tokens", "max_tokens") if name in fields)
    return limit, float(words if isinstance(words, str) else words[0]["content"]) / 1000.0


def serve(sock: socket.socket) -> None:
    """One connection, request after request."""
    data = b""
    with sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while True:
            while b"\r\n\r\n" not in data:
                more = sock.recv(65536)
                if not more:
                    return
                data += more
            head, _, data = data.partition(b"\r\n\r\n")
            size = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
            while len(data) < size:
                data += sock.recv(65536)
            body, data = data[:size], data[size:]
            method, path, _ = head.split(b" ", 2)
            if method == b"GET":
                sock.sendall(fact(path.decode()))
            else:
                stream(sock, path.decode(), *job(json.loads(body)))


def _guarded(sock: socket.socket) -> None:
    try:
        serve(sock)
    except OSError:
        pass  # the client went away


def accept(listener: socket.socket) -> None:
    """Connections, for ever."""
    while True:
        threading.Thread(target=_guarded, args=(listener.accept()[0],), daemon=True).start()


class Server:
    """The server in its own process, for as long as the ``with`` block runs."""

    def __init__(self, core: int | None = None) -> None:
        self._options = [] if core is None else [f"--core={core}"]

    def __enter__(self) -> str:
        self._process = python(__file__, *self._options)
        return f"http://127.0.0.1:{int(self._process.stdout.readline())}"

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._process.communicate()  # closes its standard input


def main() -> None:
    """Serve."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--core", type=int, help="run on this core only")
    options = parser.parse_args()
    pin(options.core)
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    say(str(listener.getsockname()[1]))
    threading.Thread(target=accept, args=(listener,), daemon=True).start()
    sys.stdin.read()


if __name__ == "__main__":
    main()
