"""How soon a cancel works: from ``cancel()`` in another thread until the reader has its ``end`` frame, phase by phase.

    python benchmarks/cancel.py

The server stands in its own process and stops where the phase wants it to; it also tells when it saw the connection
close, by the same clock. The reader is the main thread, as in life.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import queue
import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from measure import cores, note, percentile, pin, say, table
from server import LLAMACPP, fact, pieces

from worker_adapters import connect

#: What the reader waits for when the cancel comes.
CONNECT, HANDSHAKE, HEAD, FIRST, BETWEEN, FLOWING = PHASES = (
    "connecting", "TLS handshake", "head", "first token", "between tokens", "flowing",
)  # fmt: skip
GOAL_MS = 2.0
#: Seconds after which a server that saw no close will not see one.
PATIENCE = 1.0
TOKENS = 1_000_000


def serve(sock: socket.socket, phase: str, closes: Any) -> None:
    """Answer as far as the phase wants, then note when the client closes."""
    with sock, suppress(OSError):
        if phase == HANDSHAKE:
            while sock.recv(65536):
                pass
        else:
            request = sock.recv(65536)
            if request.startswith(b"GET"):
                sock.sendall(fact(request.split(b" ", 2)[1].decode()))
                return
            if phase != HEAD:
                sock.sendall(LLAMACPP.head)
            if phase == BETWEEN:
                sock.sendall(b"".join(pieces("/completion", 5)[:5]))
            while phase == FLOWING:
                sock.sendall(b"".join(pieces("/completion", 500)[:500]))
            while sock.recv(65536):
                pass
    closes.put(time.monotonic())


def server(phase: str, core: int | None, port: Any, closes: Any) -> None:
    """The server's process."""
    pin(core)
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    port.send(listener.getsockname()[1])
    while True:
        threading.Thread(target=serve, args=(listener.accept()[0], phase, closes), daemon=True).start()


@contextmanager
def serving(phase: str) -> Iterator[tuple[int, Any]]:
    """A server for the phase; its port, and a queue of the times at which it saw a connection close."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    closes = spawn.Queue()
    process = spawn.Process(target=server, args=(phase, cores()[1], theirs, closes), daemon=True)
    process.start()
    try:
        yield ours.recv(), closes
    finally:
        process.kill()
        process.join()


@contextmanager
def black_hole() -> Iterator[tuple[int, None]]:
    """A port that never answers a connection attempt: its backlog is full and nobody accepts."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        fillers = []
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
            fillers.append(filler)
        try:
            yield listener.getsockname()[1], None
        finally:
            for filler in fillers:
                filler.close()


def attempt(engine: Any, delay: float) -> tuple[float, float]:
    """When a job was cancelled, ``delay`` seconds after its start, and when its reader had the end."""
    called = []

    def canceller() -> None:
        time.sleep(delay)
        called.append(time.monotonic())
        stream.cancel()

    stream = engine.submit("a long story", max_tokens=TOKENS)
    thread = threading.Thread(target=canceller)
    thread.start()
    for frame in stream:
        last = frame
    ended = time.monotonic()
    thread.join()
    if last.type != "end" or last.finish_reason != "cancelled":
        raise SystemExit(f"the job ended with {last}")
    return called[0], ended


def measure(phase: str, tries: int) -> dict[str, list[float]]:
    """Milliseconds from the cancel to the reader's end, and to the close the server saw."""
    found: dict[str, list[float]] = {"reader": [], "server": []}
    scheme = "https" if phase == HANDSHAKE else "http"
    peer = black_hole() if phase == CONNECT else serving(phase)
    with peer as (port, closes), connect("llamacpp", f"{scheme}://127.0.0.1:{port}") as engine:
        for number in range(tries + 1):
            called, ended = attempt(engine, random.uniform(0.005, 0.015) if number else 0.2)  # noqa: S311 - a delay
            closed = None if closes is None else closed_at(closes)
            if number:  # the first warms up
                found["reader"].append((ended - called) * 1000.0)
                if closed is not None:
                    found["server"].append((closed - called) * 1000.0)
    return found


def closed_at(closes: Any) -> float:
    """When the server saw the close; infinity if it did not."""
    try:
        return float(closes.get(timeout=PATIENCE))
    except queue.Empty:
        return math.inf


def shown(values: list[float]) -> str:
    """``p50 / p99 / max``."""
    return " / ".join(f"{percentile(values, share):.2f}" for share in (0.5, 0.99, 1.0)) if values else "-"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tries", type=int, default=200, help="in each phase (default 200)")
    parser.add_argument("--phase", action="append", choices=PHASES, help="only this one; may be given again")
    parser.add_argument("--json", action="store_true", help="print every value as JSON")
    options = parser.parse_args()
    pin(cores()[0])
    found = {}
    for phase in options.phase or PHASES:
        note(phase)
        found[phase] = measure(phase, options.tries)
    if options.json:
        say(json.dumps({"ms": found, "goal": GOAL_MS}, indent=2))
        return
    say(f"Milliseconds from cancel(), p50 / p99 / max of {options.tries} tries; goal: reader's p99 <= {GOAL_MS:g}\n")
    rows = []
    for phase, values in found.items():
        kept = percentile(values["reader"], 0.99) <= GOAL_MS
        rows.append((phase, shown(values["reader"]), shown(values["server"]), "ok" if kept else "MISSED"))
    table(("phase", "the reader has its end", "the server saw the close", ""), rows)


if __name__ == "__main__":
    main()
