"""``worker-adapters run``: one job on any engine, or on a pool of them, streamed as it comes."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import click

from worker_adapters.adapters.catalog import AUTO, available_engines, connect
from worker_adapters.cli.exits import DONE, INTERRUPTED, table
from worker_adapters.cli.interrupt import cancelling
from worker_adapters.cli.printer import JsonPrinter, LivePrinter
from worker_adapters.cli.terminal import answering
from worker_adapters.errors import InvalidRequest, WorkerError
from worker_adapters.frames import ErrorFrame
from worker_adapters.host.host import AdapterHost
from worker_adapters.stream import TokenStream

Submit = Callable[..., TokenStream]

HELP = """
Send PROMPT to an engine, or to a pool of them, and print its answer as it comes.

PROMPT - reads the prompt from standard input, without the new line at its end. The answer goes to standard output, with
a new line at its end; reasoning and one line of metrics go to standard error. Ctrl-C cancels the job at the engine and
keeps what came so far; a second Ctrl-C leaves at once.

\b
Examples:
  worker-adapters run --engine llamacpp "The quick brown fox"
  worker-adapters run --engine llamacpp --url http://gpu1:8081 --chat "Who are you?"
  worker-adapters run --engine openai --url http://127.0.0.1:11434 --model llama3.2 --chat "Who are you?"
  worker-adapters run --engine llamacpp --system "Answer in French." - < question.txt
  worker-adapters run --config pools.toml --pool chat "The quick brown fox"
  worker-adapters run --engine mock --json "Hello" | jq .type
"""


@click.command(help=HELP, epilog=f"\b\nExit codes:\n{table()}")
@click.option(
    "--engine",
    type=click.Choice([AUTO, *available_engines()]),
    help="What kind of server it is; auto asks it.",
)
@click.option("--url", help="Where it is.  [default: the engine's usual address]")
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False),
    help="A TOML file of pools, instead of --engine and --url.",
)
@click.option("--pool", help="Which pool of --config.  [default: the only one]")
@click.option("--model", help="Which model.  [default: the one that is served]")
@click.option("--max-tokens", type=int, help="At most so many tokens, reasoning included.  [default: 256]")
@click.option("--temperature", type=float, help="0 is greedy.  [default: the engine's]")
@click.option("--seed", type=int, help="For repeatable sampling.")
@click.option("--stop", multiple=True, help="A string that ends the answer; may be given several times.")
@click.option("--system", metavar="TEXT", help="A system message; implies --chat.")
@click.option(
    "--chat/--raw",
    default=None,
    help="Ask as a user in a conversation, or let the engine continue the raw text.  [default: raw where it can]",
)
@click.option("--timeout", type=float, metavar="SECONDS", help="For the whole job.  [default: none]")
@click.option("--api-key-env", metavar="NAME", help="The environment variable that holds the API key.")
@click.option("--json", "as_json", is_flag=True, help="Print every frame as a line of JSON.")
@click.argument("prompt")
@click.pass_context
def run(
    ctx: click.Context,
    /,
    *,
    engine: str | None,
    url: str | None,
    config: str | None,
    pool: str | None,
    system: str | None,
    chat: bool | None,
    timeout: float | None,
    api_key_env: str | None,
    as_json: bool,
    prompt: str,
    **fields: Any,
) -> None:
    """See HELP."""
    if system is not None and chat is False:
        raise click.UsageError("--system needs a conversation: leave out --raw")
    if config is None:
        target = _engine(engine, url, pool, api_key_env)
    else:
        target = _pool(config, pool, **{"--engine": engine, "--url": url, "--api-key-env": api_key_env})
    fields = {name: value for name, value in fields.items() if value not in (None, ())}
    fields["stop"] = list(fields.get("stop", ()))
    if timeout is not None:
        fields["timeouts"] = {"total": timeout}
    printer = JsonPrinter() if as_json else LivePrinter()
    with answering():
        try:
            with target as submit:
                text = _from_stdin() if prompt == "-" else prompt
                code = _stream(_asked(partial(submit, **fields), text, system, chat), printer)
        except WorkerError as error:
            printer.finish()
            if as_json:
                printer.show(ErrorFrame.from_exception(error))
            raise
    ctx.exit(code)


@contextmanager
def _engine(engine: str | None, url: str | None, pool: str | None, api_key_env: str | None) -> Iterator[Submit]:
    """One engine."""
    if engine is None:
        raise click.UsageError("which engine? Give --engine, or --config for a pool of them")
    if pool is not None:
        raise click.UsageError("--pool needs --config")
    options = {}
    if api_key_env is not None:
        if not os.environ.get(api_key_env):
            raise click.UsageError(f"--api-key-env: the environment has no variable {api_key_env}, or it is empty")
        options["api_key"] = f"env:{api_key_env}"
    with connect(engine, url, **options) as adapter:
        yield adapter.submit


@contextmanager
def _pool(config: str, pool: str | None, **others: str | None) -> Iterator[Submit]:
    """A pool of engines."""
    given = [name for name, value in others.items() if value is not None]
    if given:
        raise click.UsageError(f"--config says where the engines are: leave out {', '.join(given)}")
    with _printed_only(), AdapterHost.from_config(config) as host:
        pools = list(host.props())
        if pool is None and len(pools) != 1:
            raise click.UsageError(f"which pool? Give --pool: {config} has {', '.join(pools) or 'none'}")
        yield partial(host.submit, pool=pool or pools[0])


@contextmanager
def _printed_only() -> Iterator[None]:
    """What becomes of the job is printed; the host need not log it as well."""
    log = logging.getLogger("worker_adapters.host")
    log.addFilter(_names_no_job)
    try:
        yield
    finally:
        log.removeFilter(_names_no_job)


def _names_no_job(record: logging.LogRecord) -> bool:
    return not hasattr(record, "job_id")


def _asked(submit: Submit, prompt: str, system: str | None, chat: bool | None) -> TokenStream:
    """The prompt as it is, or a conversation: as asked, by the system message, or where no engine takes raw text."""
    if chat is None and system is None:
        try:
            return submit(prompt)
        except InvalidRequest as error:
            if error.field != "prompt":
                raise
            chat = True
    if chat is False:
        return submit(prompt)
    messages = [] if system is None else [{"role": "system", "content": system}]
    return submit([*messages, {"role": "user", "content": prompt}])


def _stream(stream: TokenStream, printer: LivePrinter | JsonPrinter) -> int:
    """Print every frame; the exit code.

    :raises WorkerError: the job failed.
    """
    with stream, cancelling(stream) as interrupt:
        for frame in stream.relay():
            if isinstance(frame, ErrorFrame):
                raise frame.to_exception()
            if frame is not None:
                printer.show(frame)
    return INTERRUPTED if interrupt.came else DONE


def _from_stdin() -> str:
    """The prompt from standard input, UTF-8 whatever the locale."""
    if sys.stdin is None:
        raise click.UsageError("PROMPT -: standard input is closed")
    if sys.stdin.isatty():
        click.echo("Reading the prompt from the terminal; Ctrl-D ends it.", err=True)
    try:
        text = sys.stdin.buffer.read().decode()
    except UnicodeDecodeError:
        raise click.UsageError("PROMPT -: standard input is not UTF-8") from None
    return text.removesuffix("\n")
