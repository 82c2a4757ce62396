"""``worker-adapters health``: how one engine is, or many, asked all at once."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

import click
from rich.console import Group, RenderableType

from worker_adapters.adapters.catalog import AUTO, available_engines, connect
from worker_adapters.cli.exits import DONE, exit_for, table
from worker_adapters.cli.looks import columns, grid, notes, print_json, showing
from worker_adapters.cli.number import DAY, Number
from worker_adapters.cli.printer import milliseconds
from worker_adapters.cli.target import key
from worker_adapters.cli.terminal import answering, complain
from worker_adapters.contract import WorkerAdapter
from worker_adapters.errors import EngineUnavailable, WorkerError
from worker_adapters.host.workers import Workers
from worker_adapters.report import HealthStatus

HELP = """
Ask the engines at URL... how they are, all at once.

LIVE: does it answer? READY: does it take jobs? Engines say yes while they cannot generate: --probe has each of them
make one token as well. Without --engine each server is asked what it is, first. Ctrl-C ends --watch.

\b
Examples:
  worker-adapters health http://localhost:8000
  worker-adapters health http://gpu1:8000 http://gpu2:8000 http://gpu3:8081 --watch
  worker-adapters health --engine vllm --probe http://localhost:8000 && ./send-traffic
  worker-adapters health http://gpu1:8000 http://gpu2:8000 --json | jq -r 'select(.ready | not).url'
"""

HEADINGS = ("URL", "ENGINE", "STATE", "LIVE", "READY", "LATENCY", "MESSAGE")
#: What is cut, where a terminal is narrow.
ELASTIC = ("URL",)
#: On a narrower terminal the messages stand below the table.
WIDE = 120
#: Threads: more engines than this are asked one after another.
AT_ONCE = 64
#: What a name server may take beyond the time-outs, in seconds: a lookup cannot be interrupted.
GRACE = 1.0

Told = dict[str, Any]


@click.command(
    help=HELP,
    short_help="How the engines at some URLs are.",
    epilog=f"\b\nExit codes:\n{table('every engine is ready')}",
)
@click.option(
    "--engine",
    type=click.Choice([AUTO, *available_engines()]),
    default=AUTO,
    show_default=True,
    help="What kind of server it is; auto asks it.",
)
@click.option("--probe", is_flag=True, help="Have each generate one token, too.")
@click.option(
    "--timeout",
    type=Number(0, DAY, min_open=True),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="For the check; and as much again for finding out what it is.",
)
@click.option("--watch", is_flag=True, help="Look again and again, until Ctrl-C.")
@click.option("--every", type=Number(0.1, DAY), default=2.0, show_default=True, help="Seconds between two looks.")
@click.option("--api-key-env", metavar="NAME", help="The environment variable that holds the API key.")
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON for each engine instead.")
@click.argument("urls", metavar="URL...", nargs=-1, required=True)
@click.pass_context
def health(
    ctx: click.Context,
    /,
    *,
    urls: tuple[str, ...],
    engine: str,
    probe: bool,
    timeout: float,
    watch: bool,
    every: float,
    api_key_env: str | None,
    as_json: bool,
) -> None:
    """See HELP."""
    options = key(api_key_env)
    shown = nullcontext(_print_each) if as_json else showing(partial(render, wide=columns() >= WIDE), watch)
    with answering(), shown as show:
        ask = _asker([_Engine(url, engine, options) for url in urls], probe, timeout)
        while True:
            told = ask()
            show(told)
            if not watch:
                break
            time.sleep(every)
    ctx.exit(_code(told))


def _print_each(told: list[Told]) -> None:
    for engine in told:
        print_json(engine)


def render(told: list[Told], *, wide: bool) -> RenderableType:
    """The table; where it is not ``wide``, the messages stand below it."""
    headings = HEADINGS if wide else HEADINGS[:-1]
    rows = [_cells(engine)[: len(headings)] for engine in told]
    below = [] if wide else notes((engine["url"], engine["message"]) for engine in told)
    return Group(grid(headings, rows, ELASTIC, wrapped=("MESSAGE",)), *below)


def _cells(told: Told) -> list[str]:
    yes_or_no = ["yes" if told[name] else "no" for name in ("live", "ready")]
    return [
        told["url"],
        told["engine"] or "-",
        told["state"],
        *yes_or_no,
        milliseconds(told["latency_ms"]),
        told["message"],
    ]


class _Engine:
    """A URL, and the adapter for it once it is known what is there.

    :raises InvalidRequest: it is no URL.
    """

    def __init__(self, url: str, engine: str, options: dict[str, Any]) -> None:
        from worker_adapters.transport.endpoint import Endpoint  # transports: what only a command at work needs
        from worker_adapters.transport.redact import clean

        self._url = url
        self._options = options
        self._name: str | None = None
        self._adapter: WorkerAdapter | None = None
        if engine == AUTO:
            Endpoint(url)
        else:
            self._use(engine, url)
        self._shown = clean(url)

    def look(self, probe: bool, timeout: float) -> Told:
        """How it is."""
        try:
            adapter = self._adapter or self._found(timeout)
        except WorkerError as error:
            return self.told(_unknown(error))
        return self.told(adapter.health(probe=probe, timeout=timeout))

    def told(self, status: HealthStatus) -> Told:
        """As it is shown."""
        return {"url": self._shown, "engine": self._name, **status.to_dict()}

    def _found(self, timeout: float) -> WorkerAdapter:
        from worker_adapters.adapters.detect import find

        return self._use(*find(self._url, timeout=timeout, **self._options))

    def _use(self, engine: str, url: str) -> WorkerAdapter:
        self._adapter = connect(engine, url, **self._options)
        self._name = engine
        return self._adapter


def _unknown(error: WorkerError) -> HealthStatus:
    """The state of a server that did not say what it is: if it said anything, it lives."""
    live = error.status is not None
    return HealthStatus("degraded" if live else "unhealthy", live, False, error.message)


def _asker(engines: list[_Engine], probe: bool, timeout: float) -> Callable[[], list[Told]]:
    """Asks them all at once, on threads of their own. Who has not answered in time is said to be silent."""
    workers = Workers(AT_ONCE)
    rounds = -(-len(engines) // AT_ONCE)
    limit = 2 * timeout * rounds + GRACE
    silent = HealthStatus("unhealthy", False, False, f"no answer in {limit:g} s; is it the name server?")

    def look_at(engine: _Engine, answers: SimpleQueue[tuple[_Engine, Told]]) -> None:
        answers.put((engine, engine.look(probe, timeout)))

    def ask() -> list[Told]:
        answers: SimpleQueue[tuple[_Engine, Told]] = SimpleQueue()
        for engine in engines:
            workers.submit(partial(look_at, engine, answers))
        told: dict[_Engine, Told] = {}
        deadline = time.monotonic() + limit
        while len(told) < len(engines):
            try:
                engine, answer = answers.get(timeout=max(0.0, deadline - time.monotonic()))
            except Empty:
                break
            told[engine] = answer
        return [told.get(engine) or engine.told(silent) for engine in engines]

    return ask


def _code(told: list[Told]) -> int:
    """The exit code: is every engine ready?"""
    waiting = [engine["url"] for engine in told if not engine["ready"]]
    if not waiting:
        return DONE
    error = EngineUnavailable(message=f"{len(waiting)} of {len(told)} not ready: {', '.join(waiting)}")
    complain(f"{error.code}: {error.message}")
    return exit_for(error).code
