"""``worker-adapters run``: one job, or a conversation, on any engine, a pool of them, or a model file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import click

from worker_adapters.adapters.catalog import AUTO, available_engines
from worker_adapters.cli.answer import answer
from worker_adapters.cli.conversation import converse
from worker_adapters.cli.exits import table
from worker_adapters.cli.printer import JsonPrinter, LivePrinter
from worker_adapters.cli.prompt import read_prompt
from worker_adapters.cli.target import Submit, check_pool, engine_at, key, pool_of
from worker_adapters.cli.terminal import answering
from worker_adapters.errors import InvalidRequest, WorkerError
from worker_adapters.stream import TokenStream

HELP = """
Send PROMPT to an engine, to a pool of them, or to a model file, and print its answer as it comes.

PROMPT - reads the prompt from standard input, without the new line at its end. The answer goes to standard output, with
a new line at its end; reasoning and one line of metrics go to standard error. Ctrl-C cancels the job at the engine and
keeps what came so far; a second Ctrl-C leaves at once.

Without PROMPT, --chat is a conversation: every line is a turn, typed or piped. Ctrl-C then cancels one answer, and at
the prompt it leaves, as Ctrl-D does; /clear forgets what was said.

--model FILE.gguf alone starts a llama.cpp server of its own on that file, on this machine's CPU; it needs the extra
demo.

\b
Examples:
  worker-adapters run --engine llamacpp "The quick brown fox"
  worker-adapters run --url http://gpu1:8000 --chat "Who are you?"
  worker-adapters run --engine ollama --model llama3.2 --chat
  worker-adapters run --model ./model.gguf --chat --system "Answer in French."
  worker-adapters run --engine llamacpp --file question.txt > answer.txt
  git diff | worker-adapters run --engine vllm --system "Review this." -
  worker-adapters run --config pools.toml --pool chat "The quick brown fox"
  worker-adapters run --engine mock --json "Hello" | jq .type
"""


@click.command(
    help=HELP,
    short_help="Stream one job, or have a conversation.",
    epilog=f"\b\nExit codes:\n{table('the answer is complete; for a conversation: every answer was')}",
)
@click.option(
    "--engine",
    type=click.Choice([AUTO, *available_engines()]),
    help="What kind of server it is; auto asks it.  [default: auto where there is --url]",
)
@click.option("--url", help="Where it is.  [default: the engine's usual address]")
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False),
    help="A TOML file of pools, instead of --engine and --url.",
)
@click.option("--pool", help="Which pool of --config.  [default: the only one]")
@click.option(
    "--model",
    metavar="NAME|FILE.gguf",
    type=click.Path(),
    help="Which model of the engine, or a file to serve here.  [default: the one that is served]",
)
@click.option("--max-tokens", type=int, help="At most so many tokens, reasoning included.  [default: 256]")
@click.option("--temperature", type=float, help="0 is greedy.  [default: the engine's]")
@click.option("--seed", type=int, help="For repeatable sampling.")
@click.option("--stop", multiple=True, help="A string that ends the answer; may be given several times.")
@click.option("--file", metavar="PATH", type=click.Path(exists=True, dir_okay=False), help="Read the prompt from here.")
@click.option("--system", metavar="TEXT", help="A system message; implies --chat.")
@click.option(
    "--chat/--raw",
    default=None,
    help="Ask as a user in a conversation, or let the engine continue the raw text.  [default: raw where it can]",
)
@click.option("--timeout", type=float, metavar="SECONDS", help="For the whole job.  [default: none]")
@click.option("--api-key-env", metavar="NAME", help="The environment variable that holds the API key.")
@click.option("--json", "as_json", is_flag=True, help="Print every frame as a line of JSON.")
@click.argument("prompt", required=False)
@click.pass_context
def run(
    ctx: click.Context,
    /,
    *,
    engine: str | None,
    url: str | None,
    config: str | None,
    pool: str | None,
    model: str | None,
    file: str | None,
    system: str | None,
    chat: bool | None,
    timeout: float | None,
    api_key_env: str | None,
    as_json: bool,
    prompt: str | None,
    **fields: Any,
) -> None:
    """See HELP."""
    if system is not None and chat is False:
        raise click.UsageError("--system needs a conversation: leave out --raw")
    if prompt is not None and file is not None:
        raise click.UsageError("which prompt? Give PROMPT or --file, not both")
    talk = prompt is None and file is None
    if talk and not chat and system is None:
        raise click.UsageError("which prompt? Give PROMPT, or --file, or --chat for a conversation")
    fields = {name: value for name, value in fields.items() if value not in (None, ())}
    fields["stop"] = list(fields.get("stop", ()))
    if timeout is not None:
        fields["timeouts"] = {"total": timeout}
    printer = JsonPrinter() if as_json else LivePrinter()
    target = _target(engine=engine, url=url, config=config, pool=pool, model=model, api_key_env=api_key_env)
    with answering():
        try:
            with target as submit:
                ask = partial(submit, **fields)
                if talk:
                    code = converse(ask, printer, system)
                else:
                    code = answer(_asked(ask, read_prompt(prompt, file), system, chat), printer)
        except WorkerError as error:
            printer.fail(error)
            raise
    ctx.exit(code)


def _target(
    *,
    engine: str | None,
    url: str | None,
    config: str | None,
    pool: str | None,
    model: str | None,
    api_key_env: str | None,
) -> AbstractContextManager[Submit]:
    """Where the jobs go.

    :raises click.UsageError: that cannot be told.
    """
    check_pool(config, pool, engine=engine, url=url, api_key_env=api_key_env)
    if config is not None:
        return _named(pool_of(config, pool), model)
    if engine is not None or url is not None:
        return _named(engine_at(engine or AUTO, url, **key(api_key_env)), model)
    if model is None or not _is_file(model):
        unknown = "" if model is None else f"; --model {model} is no file"
        choices = "--engine or --url, --config for a pool of them, or --model FILE.gguf"
        raise click.UsageError(f"which engine? Give {choices}{unknown}")
    if api_key_env is not None:
        raise click.UsageError(f"--api-key-env: leave it out, {model} is served on this machine")
    from worker_adapters.cli.model_file import served  # a server of our own: what no other target loads

    return served(model)


def _is_file(model: str) -> bool:
    """Is it a path, rather than a model's name?"""
    return model.lower().endswith(".gguf") or os.path.exists(model)


@contextmanager
def _named(target: AbstractContextManager[Submit], model: str | None) -> Iterator[Submit]:
    """The target, asked for one model."""
    with target as submit:
        yield submit if model is None else partial(submit, model=model)


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
