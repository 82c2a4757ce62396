"""What a client's process measures: CPU of streams and requests, the first token, many threads, memory.

    python benchmarks/figures.py '[core, client, engine, url, figure, ...]'     prints what it found as JSON

It runs in the client's own environment, which may hold nothing else.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import resource
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from selectors import EVENT_READ, DefaultSelector
from urllib.parse import urlsplit

from clients import CLIENTS, Stream
from dialects import DIALECTS
from measure import cpu, percentile, pin, say

Found = dict[str, float | str]
#: Requests before the measured ones.
WARM = 10


def digest(texts: Iterable[str]) -> str:
    """The same for the same texts."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def warm(stream: Stream) -> Stream:
    """Have it import, connect and compile what it will."""
    for _ in range(WARM):
        list(stream(1, 0.0))
    return stream


def cost(new: Callable[[], Stream], shared: bool, tokens: int, requests: int, gap: float) -> Found:
    """CPU of ``requests`` streams of ``tokens`` tokens, one after another: microseconds a token. And the first token.

    :returns: also ``first_p50_us``, ``first_p99_us``: from the call to the first text.
    """
    stream = warm(new())
    firsts, texts = [], []
    before = cpu()
    for _ in range(requests):
        began = time.perf_counter()
        running = stream(tokens, gap)
        texts = [next(running)]
        firsts.append((time.perf_counter() - began) * 1e6)
        texts += running
    us = (cpu() - before) * 1e6 / (tokens * requests)
    first = {f"first_p{share}_us": percentile(firsts, share / 100) for share in (50, 99)}
    return {"us": us, **first, "texts": digest(texts)}


def lateness(times: list[float], gap: float) -> Iterator[float]:
    """How many milliseconds later than at its best each token of a stream came."""
    since = [moment * 1000.0 - number * gap for number, moment in enumerate(times)]
    return (moment - min(since) for moment in since)


def threads(new: Callable[[], Stream], shared: bool, count: int, tokens: int, gap: float) -> Found:
    """As many streams at once as threads: microseconds of CPU a token, seconds till the last is done.

    :returns: also ``late_p99_ms``, and how many ``failed``: raised, or said something else.
    """
    stream = warm(new())
    streams = [stream] * count if shared else [new() for _ in range(count)]
    expected = digest(stream(tokens, 0.0))
    late: list[float] = []
    done: list[bool] = []
    gate = threading.Barrier(count + 1)

    def read(stream: Stream) -> None:
        times, texts = [], []
        gate.wait()
        try:
            for text in stream(tokens, gap):
                times.append(time.monotonic())
                texts.append(text)
        except Exception as error:  # noqa: BLE001 - whatever a client raises, its stream has failed
            sys.stderr.write(f"{type(error).__name__}: {error}\n"[:200])
            return
        late.extend(lateness(times, gap))
        done.append(digest(texts) == expected)

    readers = [threading.Thread(target=read, args=(stream,)) for stream in streams]
    for reader in readers:
        reader.start()
    gate.wait()
    before, began = cpu(), time.monotonic()
    for reader in readers:
        reader.join()
    return {
        "us": (cpu() - before) * 1e6 / (tokens * count),
        "seconds": time.monotonic() - began,
        "late_p99_ms": percentile(late or [0.0], 0.99),
        "failed": count - sum(done),
        "texts": expected,
    }


def resident() -> float:
    """KiB of memory that this process holds; at most held so far, where the system does not tell."""
    gc.collect()
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1024
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # bytes, on macOS


def memory(new: Callable[[], Stream], shared: bool, count: int) -> Found:
    """KiB that one of ``count`` open streams takes, threads not counted; and the process before them."""
    first = warm(new())
    before = resident()
    opened = []
    for _ in range(count):
        running = (first if shared else new())(1000, 10.0)
        next(running)
        opened.append(running)
    return {"kib": (resident() - before) / count, "process_mib": before / 1024}


def drain(engine: str, url: str, count: int, tokens: int, gap: float) -> Found:
    """What the load server gives a client that looks at nothing: seconds until ``count`` streams at once have ended."""
    dialect, parts = DIALECTS[engine], urlsplit(url)
    body = dialect.body(tokens, gap)
    request = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (dialect.path.encode(), len(body), body)
    selector = DefaultSelector()
    for _ in range(count):
        selector.register(socket.create_connection((parts.hostname, parts.port)), EVENT_READ)
    began = time.monotonic()
    for key in selector.get_map().values():
        key.fileobj.sendall(request)
    while selector.get_map():
        for key, _ in selector.select():
            if key.fileobj.recv(1 << 20).endswith(b"0\r\n\r\n"):
                selector.unregister(key.fileobj)
                key.fileobj.close()
    return {"seconds": time.monotonic() - began}


FIGURES = {"cost": cost, "threads": threads, "memory": memory}


def main() -> None:
    """Measure one."""
    core, name, engine, url, figure, *sizes = json.loads(sys.argv[1])
    pin(core)
    if figure == "drain":
        say(json.dumps(drain(engine, url, *sizes)))
        return
    client = CLIENTS[name]
    say(json.dumps(FIGURES[figure](lambda: client.make(engine, url), client.shared, *sizes)))


if __name__ == "__main__":
    main()
