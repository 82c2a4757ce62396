"""What the host adds to an adapter: CPU a token of a dispatched stream, and CPU a job of routing.

CPU is user and system time of the client's process (getrusage), of all its threads. A round is a process of its own;
in it the ways take turns, block by block, so that whatever else the machine does hits all alike: two processes of the
same program differ by more than the host adds.

    python benchmarks/host.py                   about a minute
    python benchmarks/host.py --engine vllm
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from statistics import median
from typing import Any

from dialects import DIALECTS, MODEL
from measure import cores, cpu, note, pin, python, say, spread, table, verdict
from server import Server

from worker_adapters import AdapterHost, connect

Way = Callable[[int], str]  # tokens -> the text
POOL = "bench"


def adapter_submit(ours: Any, host: AdapterHost, task: Any) -> Way:
    """An adapter alone."""
    return lambda tokens: joined(ours.submit(task, max_tokens=tokens))


def host_submit(ours: Any, host: AdapterHost, task: Any) -> Way:
    """Routed, in the caller's thread."""
    return lambda tokens: joined(host.submit(task, pool=POOL, max_tokens=tokens))


def host_dispatch(ours: Any, host: AdapterHost, task: Any) -> Way:
    """Routed, in a thread of the host's, frames passed on."""
    return lambda tokens: joined(host.dispatch(task, pool=POOL, stream=True, max_tokens=tokens))


def adapter_result(ours: Any, host: AdapterHost, task: Any) -> Way:
    """An adapter alone, the whole answer."""
    return lambda tokens: ours.submit(task, max_tokens=tokens).result().text


def host_result(ours: Any, host: AdapterHost, task: Any) -> Way:
    """Routed, the whole answer."""
    return lambda tokens: host.submit(task, pool=POOL, max_tokens=tokens).result().text


def host_future(ours: Any, host: AdapterHost, task: Any) -> Way:
    """Routed, in a thread of the host's, the whole answer."""
    return lambda tokens: host.dispatch(task, pool=POOL, max_tokens=tokens).result().text


def joined(frames: Iterable[Any]) -> str:
    """The text of a stream, frame by frame."""
    return "".join([frame.text for frame in frames if frame.type == "token"])


STREAMS = {"adapter.submit": adapter_submit, "host.submit": host_submit, "host.dispatch(stream=True)": host_dispatch}
JOBS = {
    "adapter.submit(...).result()": adapter_result,
    "host.submit(...).result()": host_result,
    "host.dispatch(...).result()": host_future,
}
ALONE, ROUTED, DISPATCHED = STREAMS
ALONE_JOB, ROUTED_JOB, _ = JOBS
#: At most so many microseconds more: a token of a dispatched stream, and a routed job.
TOKEN_GOAL = 5.0
JOB_GOAL = 30.0


#: Jobs of a way before the next one's turn.
BLOCK = 50


def measure_here(names: list[str], engine: str, url: str, tokens: int, jobs: int) -> list[dict[str, object]]:
    """What a child process does: warm up, then ``jobs`` jobs of ``tokens`` tokens for each way, in turns."""
    with ExitStack() as stack:
        adapters = [stack.enter_context(connect(engine, url, model=MODEL)) for _ in range(2)]
        host = stack.enter_context(AdapterHost())
        for number, ours in enumerate(adapters):
            ours.keeps_streams = True  # llama.cpp does not, but the load server does: no cost of connecting
            host.bind(POOL, f"r{number}", ours)
        ways = [{**STREAMS, **JOBS}[name](adapters[0], host, DIALECTS[engine].task(0.0)) for name in names]
        host.look()  # else its first one, which imports what it needs, falls into the measurement
        for way in ways:
            for _ in range(20):
                way(1)
        block = min(jobs, BLOCK)
        spent: list[list[float]] = [[] for _ in ways]
        texts: set[str] = set()
        for number in range(jobs // block):
            for turn in range(len(ways))[:: 1 if number % 2 else -1]:
                before = cpu()
                texts.update(ways[turn](tokens) for _ in range(block))
                spent[turn].append((cpu() - before) * 1e6 / (tokens * block))
    return [{"us": us, "texts": sorted(texts)} for us in spent]


def measure(core: int | None, *job: object) -> list[dict[str, Any]]:
    """One round in a fresh process: for each way its blocks' microseconds of CPU a token, and the text."""
    child = python(__file__, "--child", json.dumps([core, *job]))
    out, _ = child.communicate()
    if child.returncode:
        raise SystemExit(f"{job[0]}: the client failed")
    found: list[dict[str, Any]] = json.loads(out)
    return found


def run(options: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """All rounds: kind of measurement -> way -> microseconds, one value a block."""
    kinds: dict[str, tuple[dict[str, Any], int, int]] = {
        "token": (STREAMS, options.tokens, 1),
        "job": (JOBS, 1, options.jobs),
    }
    found: dict[str, dict[str, list[float]]] = {kind: {name: [] for name in told[0]} for kind, told in kinds.items()}
    client_core, server_core = cores()
    with Server(server_core) as url:
        for number in range(options.rounds):
            for kind, (ways, tokens, jobs) in kinds.items():
                told = measure(client_core, list(ways), options.engine, url, tokens, jobs)
                for name, way in zip(ways, told, strict=True):
                    found[kind][name] += way["us"]
                if len({text for way in told for text in way["texts"]}) != 1:
                    raise SystemExit("the ways disagree about the text")
            note(f"round {number + 1} of {options.rounds}")
    return found


def added(values: dict[str, list[float]], way: str, to: str) -> list[float]:
    """What a way costs more than another, block by block."""
    return [more - less for more, less in zip(values[way], values[to], strict=True)]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--engine", default="llamacpp", choices=DIALECTS)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=20_000, help="of the stream (default 20000)")
    parser.add_argument("--jobs", type=int, default=1000, help="of one token each (default 1000)")
    parser.add_argument("--json", action="store_true", help="print every value as JSON")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        core, *job = json.loads(options.child)
        pin(core)
        say(json.dumps(measure_here(*job)))
        return
    found = run(options)
    goals = [
        (f"a token: {DISPATCHED} over {ROUTED}", added(found["token"], DISPATCHED, ROUTED), TOKEN_GOAL),
        (f"a job: {ROUTED_JOB} over {ALONE_JOB}", added(found["job"], ROUTED_JOB, ALONE_JOB), JOB_GOAL),
    ]
    if options.json:
        summary = {name: {"median": median(values), "goal": goal} for name, values, goal in goals}
        say(json.dumps({"python": sys.version, "options": vars(options), "us": found, "added": summary}, indent=2))
        return
    say(f"{options.engine}, CPU in microseconds, min / median / max of the blocks; two replicas\n")
    table((f"a stream of {options.tokens} tokens", "a token"), [(n, spread(v)) for n, v in found["token"].items()])
    say()
    table((f"{options.jobs} jobs of one token", "a job"), [(n, spread(v, 0)) for n, v in found["job"].items()])
    say()
    table(("added", "min / median / max", "goal", ""), [verdict(*goal) for goal in goals])


if __name__ == "__main__":
    main()
