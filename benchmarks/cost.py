"""What a streamed token and a request cost in CPU: our adapters beside a raw socket, urllib3, and requests.

CPU is user and system time of the client's process (getrusage). Every measurement is a process of its own; the clients
take turns, round by round, so that whatever else the machine does hits all alike.

    python benchmarks/cost.py                        each engine: saturated stream, and requests for one token
    python benchmarks/cost.py --engine vllm          only this one
    python benchmarks/cost.py --gap 10 --tokens 200  tokens 10 ms apart
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import median

from clients import BY_HAND, OURS, REQUESTS, URLLIB3
from dialects import DIALECTS
from measure import cores, note, python, say, spread, table, verdict
from server import Server

FIGURES = str(Path(__file__).with_name("figures.py"))


def measure(core: int | None, name: str, *job: object) -> tuple[float, str]:
    """One measurement in a fresh process: microseconds of CPU a token, and a digest of the texts."""
    child = python(FIGURES, json.dumps([core, name, *job]))
    out, _ = child.communicate()
    if child.returncode:
        raise SystemExit(f"{name}: the client failed")
    found = json.loads(out)
    return found["us"], found["texts"]


Found = dict[str, dict[str, list[float]]]  # kind of measurement -> client -> microseconds, one value a round


def run(engines: list[str], options: argparse.Namespace) -> dict[str, Found]:
    """All rounds: engine -> what was found."""
    kinds = {"token": (options.tokens, 1, options.gap), "request": (1, options.requests, 0.0)}
    found: dict[str, Found] = {engine: {kind: {name: [] for name in BY_HAND} for kind in kinds} for engine in engines}
    client_core, server_core = cores()
    with Server(server_core) as url:
        for number in range(options.rounds):
            names = BY_HAND[:: 1 if number % 2 else -1]
            for engine in engines:
                for kind, job in kinds.items():
                    answers = set()
                    for name in names:
                        us, texts = measure(client_core, name, engine, url, "cost", *job)
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
    options = parser.parse_args()
    found = run(options.engine or list(DIALECTS), options)
    kept = [goal for engine, values in found.items() for goal in goals(engine, values)]
    if options.json:
        summary = {name: {"median": median(values), "goal": goal} for name, values, goal in kept}
        say(json.dumps({"python": sys.version, "options": vars(options), "us": found, "ratios": summary}, indent=2))
        return
    say(f"CPU in microseconds, min / median / max of {options.rounds} rounds")
    say(f"Streams of {options.tokens} tokens, {options.gap:g} ms apart; {options.requests} requests for one token\n")
    for engine, values in found.items():
        rows = [(name, spread(values["token"][name]), spread(values["request"][name], 0)) for name in BY_HAND]
        table((f"{engine}, POST {DIALECTS[engine].path}", "a token", "a request for 1 token"), rows)
        say()
    table(("ratio", "min / median / max", "goal", ""), [verdict(*goal) for goal in kept])


if __name__ == "__main__":
    main()
