"""How soon the host's ``cancel`` works: from the call until the consumer has its ``end``, in every state of a job.

    python benchmarks/host_cancel.py

The consumer is the main thread; the cancel comes from another thread, or from a signal handler on top of the consumer.
The servers are those of cancel.py.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any

from cancel import CONNECT, FIRST, FLOWING, TOKENS, black_hole, percentile, serving, shown
from measure import cores, note, pin, say, table

from worker_adapters import AdapterHost, HealthStatus, connect

#: Where the job is when the cancel comes.
QUEUED, PLACELESS, BLOCKED = "queued behind busy workers", "waiting for a place", "flowing, writer blocked"
STATES = (QUEUED, PLACELESS, CONNECT, FIRST, FLOWING, BLOCKED)
SUBMIT, DISPATCH = "submit", "dispatch"
THREAD, SIGNAL = "thread", "signal"
GOAL_MS = 5.0
POOL = "bench"


def ways(state: str) -> tuple[str, ...]:
    """How a job can come into the state."""
    return (DISPATCH,) if state in (QUEUED, BLOCKED) else (SUBMIT, DISPATCH)


@contextmanager
def stage(state: str) -> Iterator[AdapterHost]:
    """A host that brings its jobs into the state."""
    phase = FIRST if held(state) else FLOWING if state == BLOCKED else state
    peer = black_hole() if state == CONNECT else serving(phase)
    with peer as (port, _), connect("llamacpp", f"http://127.0.0.1:{port}") as engine:
        engine.health = lambda **_: HealthStatus("healthy", live=True, ready=True)  # the black hole's would be bad
        with AdapterHost(max_workers=1 if state == QUEUED else 8) as host:
            host.bind(POOL, "r0", engine, max_in_flight=1 if state == PLACELESS else None)
            if held(state):
                host.dispatch("a long story", pool=POOL)
                while not host.props()[POOL]["r0"]["in_flight"]:
                    time.sleep(0.001)
            yield host


def held(state: str) -> bool:
    """Does another job stand in the way?"""
    return state in (QUEUED, PLACELESS)


def from_thread(act: Callable[[], None], delay: float) -> Callable[[], None]:
    """Act in another thread, so many seconds from now; what is given waits for the thread."""

    def later() -> None:
        time.sleep(delay)
        act()

    thread = threading.Thread(target=later)
    thread.start()
    return thread.join


def from_signal(act: Callable[[], None], delay: float) -> Callable[[], None]:
    """Act in a signal handler on top of this thread."""
    signal.signal(signal.SIGALRM, lambda *_: act())
    signal.setitimer(signal.ITIMER_REAL, delay)
    return lambda: signal.signal(signal.SIGALRM, signal.SIG_DFL)


def attempt(host: AdapterHost, state: str, way: str, by: str, delay: float) -> float:
    """Milliseconds from the cancel of a job, ``delay`` seconds after its start, to the consumer's end."""
    called: SimpleQueue[float] = SimpleQueue()

    def cancel() -> None:
        now = time.monotonic()
        host.cancel(job.job_id)
        called.put(now)

    job: Any = host.submit("a long story", pool=POOL, max_tokens=TOKENS)
    if way == DISPATCH:
        job.close()
        job = host.dispatch("a long story", pool=POOL, stream=True, max_tokens=TOKENS)
    over = (from_thread if by == THREAD else from_signal)(cancel, delay)
    at = None
    for frame in job:
        if state == BLOCKED and at is None:
            at = called.get()  # meanwhile the buffer runs full
        last = frame
    ended = time.monotonic()
    over()
    if last.type != "end" or last.finish_reason != "cancelled":
        raise SystemExit(f"the job ended with {last}")
    return (ended - (called.get() if at is None else at)) * 1000.0


def measure(state: str, tries: int) -> dict[str, list[float]]:
    """Milliseconds, by way and by who cancels."""
    found: dict[str, list[float]] = {f"{way}, {by}": [] for way in ways(state) for by in (THREAD, SIGNAL)}
    with stage(state) as host:
        for number in range(tries + 1):
            for name, values in found.items():
                delay = random.uniform(0.02, 0.04) if number else 0.2  # noqa: S311 - a delay
                took = attempt(host, state, *name.split(", "), delay)
                if number:  # the first warms up
                    values.append(took)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tries", type=int, default=100, help="in each state and way (default 100)")
    parser.add_argument("--state", action="append", choices=STATES, help="only this one; may be given again")
    parser.add_argument("--json", action="store_true", help="print every value as JSON")
    options = parser.parse_args()
    pin(cores()[0])
    found = {}
    for state in options.state or STATES:
        note(state)
        found[state] = measure(state, options.tries)
    if options.json:
        say(json.dumps({"ms": found, "goal": GOAL_MS}, indent=2))
        return
    say(f"Milliseconds from cancel(), p50 / p99 / max of {options.tries} tries; goal: p99 <= {GOAL_MS:g}\n")
    rows = []
    for state, values in found.items():
        for name, times in values.items():
            rows.append((state, name, shown(times), "ok" if percentile(times, 0.99) <= GOAL_MS else "MISSED"))
    table(("the job is", "by", "the consumer has its end", ""), rows)


if __name__ == "__main__":
    main()
