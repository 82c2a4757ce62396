"""What importing costs in CPU of a fresh interpreter: the package, and with a first adapter, beside requests."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from statistics import median

from measure import cores, pin, python, say, spread, table, verdict

BARE = "bare interpreter"
PACKAGE = "import worker_adapters"
ADAPTER = "... and connect('llamacpp', url)"
REQUESTS = "import requests"

PROGRAMS = {
    BARE: "pass",
    PACKAGE: "import worker_adapters",
    ADAPTER: "from worker_adapters import connect; connect('llamacpp', 'http://127.0.0.1:8081')",
    REQUESTS: "import requests",
}


def measure(program: str, executable: str = sys.executable) -> float:
    """Milliseconds of user and system time of an interpreter that runs ``program``."""
    child = python("-c", program, executable=executable)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    child.communicate()
    if child.returncode:
        raise SystemExit(f"failed: {program}")
    return (usage.ru_utime + usage.ru_stime) * 1000.0


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="print every value as JSON")
    options = parser.parse_args()
    pin(cores()[0])
    found: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PYTHONPYCACHEPREFIX"] = folder  # compiled files for all alike, also where none may be written
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        for program in PROGRAMS.values():
            measure(program)  # writes them
        for _ in range(options.rounds):
            for name, program in PROGRAMS.items():
                found[name].append(measure(program))
    net = {name: [value - bare for value, bare in zip(found[name], found[BARE], strict=True)] for name in PROGRAMS}
    goals = [
        (f"{name} / {REQUESTS}", [ours / theirs for ours, theirs in zip(net[name], net[REQUESTS], strict=True)], goal)
        for name, goal in ((PACKAGE, 0.4), (ADAPTER, 1.8))
    ]
    if options.json:
        summary = {name: {"median": median(values), "goal": goal} for name, values, goal in goals}
        say(json.dumps({"ms": found, "ratios": summary}, indent=2))
        return
    say(f"CPU in milliseconds, min / median / max of {options.rounds} rounds\n")
    rows = [(name, spread(found[name], 1), "" if name == BARE else spread(net[name], 1)) for name in PROGRAMS]
    table(("program", "whole process", "less the bare interpreter"), rows)
    say()
    table(("ratio", "min / median / max", "goal", ""), [verdict(*goal) for goal in goals])


if __name__ == "__main__":
    main()
