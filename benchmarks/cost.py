"""What a streamed token and a request cost in CPU: our adapters beside a raw socket, urllib3, and requests.

CPU is user and system time of the client's process (getrusage). Every measurement is a process of its own; the clients
take turns, round by round, so that whatever else the machine does hits all alike.

    python benchmarks/cost.py                        each engine: saturated stream, and requests for one token
    python benchmarks/cost.py --engine vllm          only this one
    python benchmarks/cost.py --gap 10 --tokens 200  tokens 10 ms apart
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import socket
import sys
from collections.abc import Callable, Iterator
from statistics import median
from typing import NamedTuple
from urllib.parse import urlsplit

from measure import cores, note, pin, python, say, spread, table, verdict
from server import Server

Stream = Callable[[int, float], Iterator[str]]  # tokens, gap in ms -> texts
DONE = "[DONE]"
MODEL = "bench"


class Dialect(NamedTuple):
    """What the clients have to know of an engine.

    :ivar words: what the request calls its words: ``prompt`` or ``messages``; ``limit``: the number of tokens, which
        stands ``within`` another field, or at the top.
    :ivar also: what else it needs.
    :ivar typed: makes what takes the text out of an event's bytes, by a decoder of the fields that are used.
    :ivar loose: takes it out of an event's text by ``json``.
    """

    path: str
    words: str
    limit: str
    also: dict[str, object]
    typed: Callable[[], Callable[[bytes], str]]
    loose: Callable[[str], str]
    within: str = ""

    def task(self, gap: float) -> str | list[dict[str, str]]:
        """The words, which tell the load server the gap; as the request has them, and ``submit`` takes them."""
        return [{"role": "user", "content": f"{gap:g}"}] if self.words == "messages" else f"{gap:g}"

    def body(self, tokens: int, gap: float) -> bytes:
        """The request."""
        limit = {self.within: {self.limit: tokens}} if self.within else {self.limit: tokens}
        return json.dumps({"model": MODEL, self.words: self.task(gap), **limit, "stream": True, **self.also}).encode()


def adapter(engine: str, url: str) -> Stream:
    """Ours, with all that the contract promises."""
    from worker_adapters import connect

    ours = connect(engine, url, model=MODEL)
    ours.keeps_streams = True  # llama.cpp does not, but the load server does, and all clients are measured alike
    task = DIALECTS[engine].task

    def stream(tokens: int, gap: float) -> Iterator[str]:
        for frame in ours.submit(task(gap), max_tokens=tokens):
            if frame.type == "token":
                yield frame.text

    return stream


def floor(engine: str, url: str) -> Stream:
    """A raw socket and a typed decoder: what no client can be cheaper than."""
    dialect = DIALECTS[engine]
    text_in = dialect.typed()
    parts = urlsplit(url)
    sock = socket.create_connection((parts.hostname, parts.port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    head = f"POST {dialect.path} HTTP/1.1\r\nHost: x\r\nContent-Length: ".encode()

    def stream(tokens: int, gap: float) -> Iterator[str]:
        body = dialect.body(tokens, gap)
        sock.sendall(b"%s%d\r\n\r\n%s" % (head, len(body), body))
        data = b""
        while data != b"0\r\n\r\n":
            data += sock.recv(65536)
            events = data.split(b"\n\n\r\n")
            data = events.pop()
            for event in events:
                text = text_in(event.partition(b"data: ")[2])
                if text:
                    yield text

    return stream


def bare_urllib3(engine: str, url: str) -> Stream:
    """urllib3's public API and a typed decoder: no frames, no clocks, no cancel, no errors."""
    import urllib3

    dialect = DIALECTS[engine]
    text_in = dialect.typed()
    pool = urllib3.connection_from_url(url)

    def stream(tokens: int, gap: float) -> Iterator[str]:
        answer = pool.urlopen(
            "POST",
            dialect.path,
            body=dialect.body(tokens, gap),
            headers={"Content-Type": "application/json"},
            preload_content=False,
        )
        rest = b""
        for piece in answer.read_chunked():
            *events, rest = (rest + piece).split(b"\n\n")
            for event in events:
                text = text_in(event[6:])
                if text:
                    yield text

    return stream


def requests_sseclient(engine: str, url: str) -> Stream:
    """What most people write: a requests.Session, sseclient-py and json."""
    import requests
    import sseclient

    dialect = DIALECTS[engine]
    text_in = dialect.loose
    session = requests.Session()

    def stream(tokens: int, gap: float) -> Iterator[str]:
        with session.post(f"{url}{dialect.path}", data=dialect.body(tokens, gap), stream=True) as answer:
            for event in sseclient.SSEClient(answer).events():
                text = text_in(event.data)
                if text:
                    yield text

    return stream


CLIENTS = {
    "worker_adapters": adapter,
    "raw socket + msgspec": floor,
    "urllib3 + msgspec": bare_urllib3,
    "requests + sseclient-py": requests_sseclient,
}
OURS, FLOOR, URLLIB3, REQUESTS = CLIENTS


def typed_native() -> Callable[[bytes], str]:
    """``content`` at the top; the stream has no end marker."""
    import msgspec

    decode = msgspec.json.Decoder(msgspec.defstruct("Event", [("content", str, "")])).decode

    def text_in(data: bytes) -> str:
        return decode(data).content

    return text_in


def typed_tgi() -> Callable[[bytes], str]:
    """``token.text``."""
    import msgspec

    token = msgspec.defstruct("Token", [("text", str, "")])
    decode = msgspec.json.Decoder(msgspec.defstruct("Event", [("token", token)])).decode

    def text_in(data: bytes) -> str:
        return decode(data).token.text

    return text_in


def typed_triton() -> Callable[[bytes], str]:
    """``text_output`` at the top; the stream has no end marker."""
    import msgspec

    decode = msgspec.json.Decoder(msgspec.defstruct("Event", [("text_output", str, "")])).decode

    def text_in(data: bytes) -> str:
        return decode(data).text_output

    return text_in


def typed_text() -> Callable[[bytes], str]:
    """``choices[0].text``."""
    import msgspec

    choice = msgspec.defstruct("Choice", [("text", str, "")])
    decode = msgspec.json.Decoder(msgspec.defstruct("Chunk", [("choices", list[choice])])).decode
    done = DONE.encode()

    def text_in(data: bytes) -> str:
        if data == done:
            return ""
        choices = decode(data).choices
        return choices[0].text if choices else ""

    return text_in


def typed_chat() -> Callable[[bytes], str]:
    """``choices[0].delta.content``."""
    import msgspec

    delta = msgspec.defstruct("Delta", [("content", str, "")])
    choice = msgspec.defstruct("Choice", [("delta", delta)])
    decode = msgspec.json.Decoder(msgspec.defstruct("Chunk", [("choices", list[choice])])).decode
    done = DONE.encode()

    def text_in(data: bytes) -> str:
        if data == done:
            return ""
        choices = decode(data).choices
        return choices[0].delta.content if choices else ""

    return text_in


def loose_text(data: str) -> str:
    """``choices[0].text``."""
    choices = json.loads(data)["choices"] if data != DONE else []
    return choices[0]["text"] if choices else ""


def loose_chat(data: str) -> str:
    """``choices[0].delta.content``."""
    choices = json.loads(data)["choices"] if data != DONE else []
    return choices[0]["delta"].get("content", "") if choices else ""


USAGE = {"stream_options": {"include_usage": True}}
DIALECTS = {
    "llamacpp": Dialect(
        "/completion", "prompt", "n_predict", {}, typed_native, lambda data: json.loads(data)["content"]
    ),
    "tgi": Dialect(
        "/generate_stream",
        "inputs",
        "max_new_tokens",
        {},
        typed_tgi,
        lambda data: json.loads(data)["token"]["text"],
        within="parameters",
    ),
    "triton": Dialect(
        f"/v2/models/{MODEL}/generate_stream",
        "text_input",
        "max_tokens",
        {},
        typed_triton,
        lambda data: json.loads(data)["text_output"],
    ),
    "vllm": Dialect("/v1/completions", "prompt", "max_tokens", USAGE, typed_text, loose_text),
    "openai": Dialect("/v1/chat/completions", "messages", "max_tokens", USAGE, typed_chat, loose_chat),
}


def cpu() -> float:
    """Seconds of user and system time of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def measure_here(stream: Stream, tokens: int, requests: int, gap: float) -> dict[str, object]:
    """What a child process does: warm up, then ``requests`` streams of ``tokens`` tokens."""
    for _ in range(3):
        list(stream(1, 0.0))
    before = cpu()
    for _ in range(requests):
        texts = list(stream(tokens, gap))
    took = cpu() - before
    return {"us": took * 1e6 / (tokens * requests), "texts": hashlib.sha256("\0".join(texts).encode()).hexdigest()}


def measure(core: int | None, name: str, *job: object) -> tuple[float, str]:
    """One measurement in a fresh process: microseconds of CPU a token, and a digest of the texts."""
    child = python(__file__, "--child", json.dumps([core, name, *job]))
    out, _ = child.communicate()
    if child.returncode:
        raise SystemExit(f"{name}: the client failed")
    found = json.loads(out)
    return found["us"], found["texts"]


Found = dict[str, dict[str, list[float]]]  # kind of measurement -> client -> microseconds, one value a round


def run(engines: list[str], options: argparse.Namespace) -> dict[str, Found]:
    """All rounds: engine -> what was found."""
    kinds = {"token": (options.tokens, 1, options.gap), "request": (1, options.requests, 0.0)}
    found: dict[str, Found] = {engine: {kind: {name: [] for name in CLIENTS} for kind in kinds} for engine in engines}
    client_core, server_core = cores()
    with Server(server_core) as url:
        for number in range(options.rounds):
            names = list(CLIENTS)[:: 1 if number % 2 else -1]
            for engine in engines:
                for kind, job in kinds.items():
                    answers = set()
                    for name in names:
                        us, texts = measure(client_core, name, engine, url, *job)
                        found[engine][kind][name].append(us)
                        answers.add(texts)
                    if len(answers) != 1:
                        raise SystemExit(f"{engine}: the clients disagree about the texts")
            note(f"round {number + 1} of {options.rounds}")
    return found


def ratios(values: dict[str, list[float]], other: str) -> list[float]:
    """Ours over another's, round by round."""
    return [ours / theirs for ours, theirs in zip(values[OURS], values[other], strict=True)]


def goals(engine: str, found: Found) -> list[tuple[str, list[float], float]]:
    """What is to be kept for an engine: name, ratios, the most that the median may be."""
    return [
        (f"{engine}, a token: ours / {REQUESTS}", ratios(found["token"], REQUESTS), 0.4),
        (f"{engine}, a token: ours / {URLLIB3}", ratios(found["token"], URLLIB3), 1.1),
        (f"{engine}, a request: ours / {REQUESTS}", ratios(found["request"], REQUESTS), 0.55),
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--engine", action="append", choices=DIALECTS, help="only this one; may be given again")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=20_000, help="of the stream (default 20000)")
    parser.add_argument("--requests", type=int, default=500, help="for one token each (default 500)")
    parser.add_argument("--gap", type=float, default=0.0, help="milliseconds between tokens (default 0: saturated)")
    parser.add_argument("--json", action="store_true", help="print every value as JSON")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        core, name, engine, url, *job = json.loads(options.child)
        pin(core)
        say(json.dumps(measure_here(CLIENTS[name](engine, url), *job)))
        return
    found = run(options.engine or list(DIALECTS), options)
    kept = [goal for engine, values in found.items() for goal in goals(engine, values)]
    if options.json:
        summary = {name: {"median": median(values), "goal": goal} for name, values, goal in kept}
        say(json.dumps({"python": sys.version, "options": vars(options), "us": found, "ratios": summary}, indent=2))
        return
    say(f"CPU in microseconds, min / median / max of {options.rounds} rounds")
    say(f"Streams of {options.tokens} tokens, {options.gap:g} ms apart; {options.requests} requests for one token\n")
    for engine, values in found.items():
        rows = [(name, spread(values["token"][name]), spread(values["request"][name], 0)) for name in CLIENTS]
        table((f"{engine}, POST {DIALECTS[engine].path}", "a token", "a request for 1 token"), rows)
        say()
    table(("ratio", "min / median / max", "goal", ""), [verdict(*goal) for goal in kept])


if __name__ == "__main__":
    main()
