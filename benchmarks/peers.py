"""Our adapter beside a raw socket, what people write by hand, and other libraries: what a stream costs each of them.

    python benchmarks/peers.py                                    all of it: a quarter of an hour
    python benchmarks/peers.py --client openai --figure request   only this one beside ours, and only this figure
    python benchmarks/peers.py --json FILE --plot FILE.svg        keep the figures, draw them
    python benchmarks/peers.py --show FILE                        print what was kept

Each client is installed once into an environment of its own, in the folder of ``--cache``, and measured in fresh
processes. The clients take turns, round by round, so that whatever else the machine does hits all alike.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import urllib.request
import venv
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import imports
import report
from clients import CLIENTS, OURS
from load import load_server
from measure import cores, note, pin, python, say
from server import SERVED, Server

PROGRAM = str(Path(__file__).with_name("figures.py"))
FIGURES = ("saturated", "paced", "request", "few", "many", "memory", "import", "load")
Cores = tuple[int | None, int | None]
#: Milliseconds between the tokens of a paced stream.
GAP = 10.0
#: Seconds after which a client that has not finished will not.
PATIENCE = 600.0
VERSIONS = """
import importlib.metadata, json
print(json.dumps({each.metadata["Name"]: each.version for each in importlib.metadata.distributions()}))
"""
#: What the load server must be able to do: streams at once, tokens, gap.
LOADS = ((1, 20_000, 0.0), (256, 200, GAP), (256, 1000, 1.0))


def plan(options: argparse.Namespace) -> dict[str, tuple[object, ...]]:
    """Each figure of the clients: what ``figures.py`` measures, and its sizes."""
    few, many = options.threads
    every = {
        "saturated": ("cost", options.tokens, 1, 0.0),
        "paced": ("cost", options.paced, 1, GAP),
        "request": ("cost", 1, options.requests, 0.0),
        "few": ("threads", few, options.paced, GAP),
        "many": ("threads", many, options.paced, GAP),
        "memory": ("memory", few),  # huggingface_hub opens 100 connections at most, and waits for ever for another
        "import": ("import",),
    }
    return {name: job for name, job in every.items() if name in (options.figure or FIGURES)}


def environment(folder: Path, name: str) -> str:
    """The Python of a client's environment, which is made if it is not there."""
    packages = CLIENTS[name].packages
    if not packages:
        return sys.executable
    place = folder / f"{platform.python_version()}-{packages.replace(' ', '-')}"
    executable, finished = place / "bin" / "python", place / "finished"
    if not finished.exists():
        note(f"installing {packages}")
        venv.create(place, clear=True, with_pip=True)
        subprocess.run([executable, "-m", "pip", "install", "--quiet", *packages.split()], check=True)  # noqa: S603 - an environment just made
        finished.touch()
    return str(executable)


def child(executable: str, *job: object) -> dict[str, Any]:
    """One measurement in a fresh process; what it said, nothing if it failed."""
    process = python(PROGRAM, json.dumps(job), executable=executable)
    try:
        out, _ = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        out, _ = process.communicate()
    if process.returncode:
        note(f"failed: {job}")
        return {}
    return json.loads(out)


def imported(executable: str, name: str) -> dict[str, Any]:
    """Milliseconds that a client's import takes, more than the bare interpreter of its environment."""
    program = CLIENTS[name].imports
    return {"ms": imports.measure(program, executable) - imports.measure("pass", executable)}


def served(url: str) -> dict[str, float]:
    """What the load server says of itself."""
    with urllib.request.urlopen(f"{url}{SERVED}") as answer:  # noqa: S310 - our own server
        return json.load(answer)


def measure(executable: str, core: int | None, name: str, url: str, job: tuple[object, ...]) -> dict[str, Any]:
    """One figure of a client; of many streams, also how busy and how late the load server was."""
    if job == ("import",):
        return imported(executable, name)
    before = served(url)
    found = child(executable, core, name, "openai", url, *job)
    if "seconds" in found:
        after = served(url)
        busy = (after["cpu_s"] - before["cpu_s"]) / found["seconds"]
        found["server"] = {"busy": busy, "late_p99_ms": after["late_p99_ms"]}
    return found


def rounds(
    options: argparse.Namespace, pythons: dict[str, str], pair: Cores
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Figure, client, and what was found, till all rounds are done."""
    jobs = plan(options)
    counts = {1, options.tokens, options.paced, 1000}
    client_core, server_core = pair
    with load_server(options.cache, counts, server_core) as url:
        for number in range(options.rounds):
            for figure, job in jobs.items():
                for name in list(pythons)[:: 1 if number % 2 else -1]:
                    yield figure, name, measure(pythons[name], client_core, name, url, job)
            note(f"round {number + 1} of {options.rounds}")


def loads(options: argparse.Namespace, pair: Cores) -> dict[str, list[dict[str, Any]]]:
    """What the load servers can do, with a client that only empties the socket."""
    client_core, server_core = pair
    counts = {tokens for _, tokens, _ in LOADS}
    servers = {"compiled": load_server(options.cache, counts, server_core), "Python": Server(server_core)}
    if isinstance(servers["compiled"], Server):
        del servers["compiled"]
    found: dict[str, list[dict[str, Any]]] = {}
    for kind, server in servers.items():
        with server as url:
            found[kind] = []
            for streams, tokens, gap in LOADS:
                before = served(url)
                seconds = child(sys.executable, client_core, "drain", "openai", url, "drain", streams, tokens, gap)
                after = served(url)
                found[kind].append(
                    {
                        "streams": streams,
                        "gap_ms": gap,
                        "events_per_s": streams * tokens / seconds["seconds"],
                        "busy": (after["cpu_s"] - before["cpu_s"]) / seconds["seconds"],
                        "late_p99_ms": after["late_p99_ms"],
                    }
                )
    return found


def processor() -> str:
    """The machine's processor, in few words."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return " ".join(line.partition(":")[2].split()[:3])
    return platform.processor() or platform.machine()


def versions(executable: str) -> dict[str, str]:
    """Of all that is installed in an environment."""
    return json.loads(subprocess.check_output([executable, "-c", VERSIONS]))  # noqa: S603 - an environment of ours


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Everything: what, when, where, and every value of every round."""
    names = [name for name in CLIENTS if not options.client or name in (OURS, *options.client)]
    pythons = {name: sys.executable if options.here else environment(options.cache, name) for name in names}
    pair = cores()
    pin(pair[0])  # and with this process all interpreters that it starts
    for name, executable in pythons.items():
        imports.measure(CLIENTS[name].imports, executable)  # compiles it
    few, many = options.threads
    result: dict[str, Any] = {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "machine": f"{os.cpu_count()} cores, {processor()}, {platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: versions(executable) for name, executable in pythons.items()},
        "sizes": {name: getattr(options, name) for name in ("rounds", "tokens", "paced", "requests")}
        | {"few": few, "many": many, "gap_ms": GAP},
        "loads": loads(options, pair) if "load" in (options.figure or FIGURES) else {},
        "figures": {figure: {name: [] for name in names} for figure in plan(options)},
    }
    texts: dict[str, str] = {}
    for figure, name, found in rounds(options, pythons, pair):
        said = found.pop("texts", None)
        if said is not None and texts.setdefault(figure, said) != said:
            raise SystemExit(f"{name}: reads other texts than the others")
        result["figures"][figure][name].append(found)
    return result


def main() -> None:
    """Measure, keep, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--client", action="append", choices=CLIENTS, help="only this one and ours; may be repeated")
    parser.add_argument(
        "--figure",
        action="append",
        choices=FIGURES,
        help="only this one; may be repeated",
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=20_000, help="of the saturated stream (default 20000)")
    parser.add_argument("--paced", type=int, default=200, help="tokens of each paced stream (default 200)")
    parser.add_argument("--requests", type=int, default=500, help="for one token each (default 500)")
    parser.add_argument("--threads", type=int, nargs=2, default=(64, 256), metavar=("FEW", "MANY"))
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path.home() / ".cache" / "worker-adapters-bench",
        metavar="FOLDER",
        help="of the environments and the load server (default ~/.cache/worker-adapters-bench)",
    )
    parser.add_argument("--here", action="store_true", help="install nothing: this Python has all the clients")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep every value")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw the medians: .svg, .png, .pdf; takes matplotlib"
    )
    parser.add_argument("--show", type=Path, metavar="FILE", help="measure nothing: print, and draw, what was kept")
    options = parser.parse_args()
    if options.show:
        result = json.loads(options.show.read_text(encoding="utf-8"))
    else:
        result = run(options)
        if options.json:
            options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    say(report.written(result))
    if options.plot:
        report.draw(result, options.plot)


if __name__ == "__main__":
    main()
