"""``worker-adapters status``: the pools of a config, and how every engine in them is."""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import Any

import click
from rich.console import Group, RenderableType

from worker_adapters.cli.exits import DONE, exit_for, table
from worker_adapters.cli.looks import grid, notes, print_json, showing
from worker_adapters.cli.number import DAY, Number
from worker_adapters.cli.terminal import answering, complain
from worker_adapters.errors import EngineUnavailable
from worker_adapters.host.host import AdapterHost

HELP = """
Show the pools of a config: every replica's engine, version, health, and what runs there.

Every engine is asked for its health, and for its properties if it is ready; no prompt is sent. IN FLIGHT are the jobs
that the engine tells of, whoever sent them: of its slots where it has some, with those that wait behind a +. BREAKER is
this command's own, which sends no jobs; a program's host has its own, in host.props().

\b
Examples:
  worker-adapters status --config pools.toml
  worker-adapters status --config pools.toml --watch
  worker-adapters status --config pools.toml --json | jq .chat
"""

Told = dict[str, dict[str, dict[str, Any]]]
HEADINGS = ("POOL", "REPLICA", "ENGINE", "VERSION", "HEALTH", "BREAKER", "IN FLIGHT", "RESIDENCY")
#: What is cut, where a terminal is narrow.
ELASTIC = ("POOL", "REPLICA", "VERSION")


@click.command(
    help=HELP,
    short_help="Show the pools of a config.",
    epilog=f"\b\nExit codes:\n{table('every pool has a ready replica')}",
)
@click.option("--config", required=True, type=click.Path(exists=True, dir_okay=False), help="A TOML file of pools.")
@click.option("--timeout", type=float, default=2.0, show_default=True, metavar="SECONDS", help="For a health check.")
@click.option("--watch", is_flag=True, help="Look again and again, until Ctrl-C.")
@click.option("--every", type=Number(0.1, DAY), default=2.0, show_default=True, help="Seconds between two looks.")
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON instead, for every look.")
@click.pass_context
def status(ctx: click.Context, /, *, config: str, timeout: float, watch: bool, every: float, as_json: bool) -> None:
    """See HELP."""
    shown = nullcontext(print_json) if as_json else showing(render, watch)
    with answering(), AdapterHost.from_config(config) as host, shown as show:
        if not host.props():
            raise click.UsageError(f"--config: {config} names no pool")
        while True:
            told = host.look(timeout)
            show(told)
            if not watch:
                break
            time.sleep(every)
    ctx.exit(_code(told))


def render(told: Told) -> RenderableType:
    """What a host's ``props`` or ``look`` gives, as a table; what is wrong with a replica stands below it."""
    flat = [(pool, name, facts) for pool, replicas in told.items() for name, facts in replicas.items()]
    rows = [(pool, name, *_cells(facts)) for pool, name, facts in flat]
    wrong = [(f"{pool}/{name}", facts["message"]) for pool, name, facts in flat]
    return Group(grid(HEADINGS, rows, ELASTIC), *notes(wrong))


def _cells(facts: dict[str, Any]) -> list[str]:
    version = facts["engine_version"]
    return [
        facts["engine"] or "-",
        "-" if version in (None, "unknown") else version,
        facts["health"] or "no answer",
        facts["breaker"],
        _in_flight(facts),
        facts["residency"],
    ]


def _in_flight(facts: dict[str, Any]) -> str:
    """As the engine tells it: ``3/4`` slots, or ``3`` running, ``+1`` waiting."""
    total, free, running, waiting = (facts[name] for name in ("slots_total", "slots_free", "running", "waiting"))
    if total is not None and free is not None:
        return f"{total - free}/{total}"
    if running is None:
        return "-"
    return f"{running}+{waiting}" if waiting else str(running)


def _code(told: Told) -> int:
    """The exit code: is there a pool that nobody serves?"""
    down = [pool for pool, replicas in told.items() if not any(facts["ready"] for facts in replicas.values())]
    if not down:
        return DONE
    error = EngineUnavailable(message=f"no ready replica in {', '.join(down)}")
    complain(f"{error.code}: {error.message}")
    return exit_for(error).code
