"""``worker-adapters props``: what an engine tells of itself."""

from __future__ import annotations

from typing import Any

import click
from rich.table import Table
from rich.text import Text

from worker_adapters.adapters.catalog import AUTO, available_engines, connect
from worker_adapters.cli.exits import DONE, table
from worker_adapters.cli.looks import print_json, put
from worker_adapters.cli.target import key
from worker_adapters.cli.terminal import answering, visible
from worker_adapters.report import Capabilities, EngineProps

HELP = """
Ask the engine at URL what it is: version, model, context, places for jobs, where the weights are, what it can do.

A - stands for what it does not tell; nothing is guessed. Without --engine the server is asked what it is, first. No
prompt is sent. --json holds the engine's own answers as well, in raw.

\b
Examples:
  worker-adapters props http://localhost:8000
  worker-adapters props --engine triton grpc://localhost:8001
  worker-adapters props http://localhost:8081 --json | jq .raw.props.chat_template
"""


@click.command(
    help=HELP,
    short_help="What an engine tells of itself.",
    epilog=f"\b\nExit codes:\n{table('the engine answered')}",
)
@click.option(
    "--engine",
    type=click.Choice([AUTO, *available_engines()]),
    default=AUTO,
    show_default=True,
    help="What kind of server it is; auto asks it.",
)
@click.option("--model", help="Of several, which one.")
@click.option("--api-key-env", metavar="NAME", help="The environment variable that holds the API key.")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON instead, with all that the engine said.")
@click.argument("url")
@click.pass_context
def props(
    ctx: click.Context, /, *, url: str, engine: str, model: str | None, api_key_env: str | None, as_json: bool
) -> None:
    """See HELP."""
    options = {**key(api_key_env), **({} if model is None else {"model": model})}
    with answering(), connect(engine, url, **options) as adapter:
        told = adapter.props()
        if as_json:
            print_json(told.to_dict())
        else:
            put(render(told))
    ctx.exit(DONE)


def render(told: EngineProps) -> Table:
    """Name and value, one a line."""
    made = Table(box=None, pad_edge=False, show_header=False)
    made.add_column(style="dim", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in [*_facts(told), *_abilities(told.capabilities)]:
        made.add_row(name, Text(visible("-" if value is None else value)))
    return made


def _facts(told: EngineProps) -> list[tuple[str, str | None]]:
    counts: dict[str, Any] = {"jobs running": told.running, "jobs waiting": told.waiting}
    slots = None if told.slots_total is None else f"{told.slots_total}, {_or_dash(told.slots_free)} free"
    cache = None if told.kv_cache_usage is None else f"{told.kv_cache_usage:.0%} full"
    context = None if told.context_size is None else f"{told.context_size} tokens"
    return [
        ("engine", told.engine),
        ("version", told.engine_version),
        ("model", told.model),
        ("identity of the model", told.model_digest),
        ("context of a job", context),
        ("slots", slots),
        *((name, None if count is None else str(count)) for name, count in counts.items()),
        ("KV cache", cache),
        ("weights are on", told.residency),
    ]


def _or_dash(count: int | None) -> str:
    return "-" if count is None else str(count)


def _abilities(can: Capabilities) -> list[tuple[str, str | None]]:
    """What its adapter knows of this kind of engine."""
    takes = [name for name, taken in (("prompts", can.prompts), ("conversations", can.messages)) if taken]
    return [
        ("takes", " and ".join(takes)),
        ("optional fields", ", ".join(can.fields) or None),
        ("counts tokens", "exactly" if can.exact_counts else "not: the frames are counted"),
        ("a closed socket", "stops the job" if can.cancel_by_close else "does not stop the job"),
        ("free after a cancel", can.release or None),
        ("reuses a KV cache", "by session_id" if can.session_cache else "not by session_id"),
    ]
