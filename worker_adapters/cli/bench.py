"""``worker-adapters bench``: many jobs, so many at a time, and how long their tokens took."""

from __future__ import annotations

import importlib.util
import secrets
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import click

from worker_adapters.adapters.catalog import AUTO, available_engines
from worker_adapters.cli.exits import DONE, FAILED, INTERRUPTED, USAGE, exit_for, table
from worker_adapters.cli.interrupt import cancelling
from worker_adapters.cli.load import Load
from worker_adapters.cli.looks import print_json, put
from worker_adapters.cli.progress import progress
from worker_adapters.cli.results import Results
from worker_adapters.cli.target import Submit, check_pool, engine_at, key, pool_of
from worker_adapters.cli.terminal import answering, complain
from worker_adapters.errors import InvalidRequest
from worker_adapters.stream import TokenStream

PROMPT = "Write a long story about a lighthouse, its keeper and a storm."
#: What --plot can draw.
FORMATS = (".png", ".svg")

HELP = """
Send many jobs to an engine, or to a pool of them, and measure how long their tokens take.

Each of -c readers sends its next job when its last one has ended. Measured is what a reader of frames gets: FIRST TOKEN
is the time from before a job is sent to its first frame with content, BETWEEN TOKENS the gap between two such frames of
one job, WHOLE JOB the time to its end. Percentiles are nearest-rank: the smallest value that so many percent of all do
not exceed. Jobs that fail stop nothing and are counted by class; each job is tried once (a pool has its own rules).
Ctrl-C cancels what runs, at the engine, and prints what was measured.

\b
Examples:
  worker-adapters bench --engine vllm -n 200 -c 16
  worker-adapters bench --url http://gpu1:8000 -n 500 -c 64 --max-tokens 256 --plot bench.png
  worker-adapters bench --config pools.toml --pool chat -n 1000 -c 32
  worker-adapters bench --engine llamacpp --json | jq .first_token_ms.p95
"""

EXIT_CODES = table("every job is complete; otherwise the code of the error that came most often")


@click.command(
    help=HELP,
    short_help="Measure many jobs: tokens/s, first token, gaps.",
    epilog=f"\b\nExit codes:\n{EXIT_CODES}",
)
@click.option("-n", "--jobs", type=click.IntRange(1), default=100, show_default=True, help="How many are measured.")
@click.option("-c", "--concurrency", type=click.IntRange(1, 4096), default=8, show_default=True, help="At a time.")
@click.option("--warm-up", type=click.IntRange(0), metavar="JOBS", help="Not measured, sent first.  [default: -c]")
@click.option(
    "--engine",
    type=click.Choice([AUTO, *available_engines()]),
    help="What kind of server it is.  [default: auto, where there is a --url to ask]",
)
@click.option("--url", help="Where it is.  [default: the engine's usual address]")
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False),
    help="A TOML file of pools, instead of --engine and --url.",
)
@click.option("--pool", help="Which pool of --config.  [default: the only one]")
@click.option("--model", help="Which model.  [default: the one that is served]")
@click.option("--prompt", default=PROMPT, help="The same for all jobs.  [default: asks for a long story]")
@click.option("--unique", is_flag=True, help="Begin each prompt with a word of its own, so that none is in a cache.")
@click.option(
    "--chat/--raw",
    default=None,
    help="Ask as a user in a conversation, or let the engine continue the raw text.  [default: raw where it can]",
)
@click.option("--max-tokens", type=click.IntRange(1), default=128, show_default=True, help="Of one answer.")
@click.option("--temperature", type=float, help="0 is greedy.  [default: the engine's]")
@click.option("--timeout", type=float, metavar="SECONDS", help="For a whole job.  [default: none]")
@click.option("--api-key-env", metavar="NAME", help="The environment variable that holds the API key.")
@click.option("--plot", metavar="FILE", help="Draw a chart: .png or .svg. Needs the extra plot.")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON instead.")
@click.pass_context
def bench(
    ctx: click.Context,
    /,
    *,
    jobs: int,
    concurrency: int,
    warm_up: int | None,
    prompt: str,
    unique: bool,
    chat: bool | None,
    timeout: float | None,
    plot: str | None,
    as_json: bool,
    engine: str | None,
    url: str | None,
    config: str | None,
    pool: str | None,
    api_key_env: str | None,
    **fields: Any,
) -> None:
    """See HELP."""
    if plot is not None:
        _check_plot(ctx, plot)
    place, target = _target(concurrency, config, pool, engine=engine, url=url, api_key_env=api_key_env)
    fields = {name: value for name, value in fields.items() if value is not None}
    if timeout is not None:
        fields["timeouts"] = {"total": timeout}
    warm_up = concurrency if warm_up is None else warm_up
    with answering():
        with target as submit:
            send = _sender(partial(submit, **fields), prompt, unique, chat)
            before, load = Load(lambda number: send(jobs + number), warm_up, concurrency), Load(send, jobs, concurrency)
            interrupted = bool(warm_up and _run("warming up", before)) or _run("measuring", load)
        results = Results(place, load, warm_up, fields["max_tokens"], interrupted)
        if as_json:
            print_json(results.to_dict())
        else:
            put(results.render())
    if plot is not None:
        _draw(ctx, results, plot)
    worst = load.figures.worst()
    ctx.exit(INTERRUPTED if interrupted else DONE if worst is None else exit_for(worst).code)


def _target(
    concurrency: int,
    config: str | None,
    pool: str | None,
    *,
    engine: str | None,
    url: str | None,
    api_key_env: str | None,
) -> tuple[str, AbstractContextManager[Submit]]:
    """Where the jobs go, in words and in fact."""
    from worker_adapters.transport.redact import clean  # transports: what only a command at work needs

    check_pool(config, pool, engine=engine, url=url, api_key_env=api_key_env)
    if config is not None:
        return f"in {config}" if pool is None else f"in pool {pool} of {config}", pool_of(config, pool)
    if engine is None and url is None:
        raise click.UsageError("which engine? Give --engine or --url, or --config for a pool of them")
    options = {"retry": {"attempts": 1}, "max_idle": concurrency, **key(api_key_env)}
    return "" if url is None else f"at {clean(url)}", engine_at(engine or AUTO, url, **options)


def _sender(submit: Submit, prompt: str, unique: bool, chat: bool | None) -> Callable[[int], TokenStream]:
    """What gives the stream of the n-th job; in a conversation where no engine takes raw text.

    :raises InvalidRequest: every job would be refused.
    """
    salt = secrets.token_hex(4)

    def send(number: int, chat: bool | None = chat) -> TokenStream:
        text = f"{salt}-{number} {prompt}" if unique else prompt
        return submit([{"role": "user", "content": text}] if chat else text)

    try:
        send(0).close()
    except InvalidRequest as error:
        if chat is not None or error.field != "prompt":
            raise
        send(0, chat=True).close()
        return partial(send, chat=True)
    return send


def _run(what: str, load: Load) -> bool:
    """Run the load, showing how it goes; was it interrupted?"""
    with cancelling(load) as interrupt, progress(what, load) as show:
        for _ in load.run():
            show()
    return interrupt.came


def _check_plot(ctx: click.Context, path: str) -> None:
    """Say now, not after an hour, that there will be no chart."""
    if not path.lower().endswith(FORMATS):
        raise click.UsageError(f"--plot: want a file that ends in {' or '.join(FORMATS)}")
    if not Path(path).parent.is_dir():
        raise click.UsageError(f"--plot: there is no folder {Path(path).parent}")
    if importlib.util.find_spec("matplotlib") is None:
        complain('--plot needs matplotlib: pip install "worker-adapters[plot]"')
        ctx.exit(USAGE)


def _draw(ctx: click.Context, results: Results, path: str) -> None:
    """The chart; none of a benchmark that was interrupted, for who presses Ctrl-C wants to leave."""
    if results.interrupted:
        complain(f"--plot: {path} is not drawn of half a benchmark")
        return
    from worker_adapters.cli.chart import draw  # what takes a second, only this needs

    try:
        draw(results, path)
    except OSError as error:
        complain(f"--plot: cannot write {path}: {error.strerror or type(error).__name__}")
        ctx.exit(FAILED)
