"""``worker-adapters detect``: what server answers at a URL, and how to connect to it."""

from __future__ import annotations

import json
import os
from typing import Any

import click
from rich.text import Text

from worker_adapters.adapters.catalog import available_engines, connect
from worker_adapters.cli.exits import exit_for, table
from worker_adapters.cli.terminal import answering, complain, console, visible
from worker_adapters.errors import AuthenticationFailed, EngineUnavailable, UnknownError, WorkerError, WorkerTimeout

HELP = """
Name the server that answers at URL.

Its name goes to standard output: llamacpp, vllm, tgi, triton, sglang, ollama, lmstudio, litellm, or openai for any
other with an OpenAI dialect. How to connect to it, its version and its model go to standard error. It sends a few GETs,
never a prompt.

\b
Examples:
  worker-adapters detect http://localhost:8000
  worker-adapters detect https://llm.example.com/v1 --api-key env:LLM_KEY
  worker-adapters detect http://localhost:8081 --json | jq -r .model
"""

#: The health check that comes before the props may take so long (seconds).
HEALTH = 1.0

ADVICE: dict[type[WorkerError], str] = {
    AuthenticationFailed: "Give the key with --api-key env:NAME.",
    EngineUnavailable: "Is the server running there?",
    UnknownError: "Is the path right? A server without a list of models can only be connected to by its name.",
    WorkerTimeout: "Is the address right? Give it more time with --timeout.",
}


@click.command(
    help=HELP,
    short_help="Name the server at a URL.",
    epilog=f"\b\nExit codes:\n{table('the server has a name')}",
)
@click.option("--api-key", metavar="env:NAME", help="The environment variable that holds the API key.")
@click.option(
    "--timeout", type=float, default=4.0, show_default=True, metavar="SECONDS", help="For naming it, all in all."
)
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON instead.")
@click.argument("url")
@click.pass_context
def detect(ctx: click.Context, /, *, url: str, api_key: str | None, timeout: float, as_json: bool) -> None:
    """See HELP."""
    from worker_adapters.adapters.detect import find  # transports: what only this command needs
    from worker_adapters.transport.redact import clean

    _check_key(api_key)
    options: dict[str, Any] = {} if api_key is None else {"api_key": api_key}
    with answering():
        try:
            engine, address = find(url, timeout=timeout, **options)
        except WorkerError as error:
            if as_json:
                _print({"engine": None, "url": clean(url), "code": error.code, "message": error.message})
            complain(f"{error.code}: {error.message.rstrip('.')}. {_advice(error)}".strip())
            ctx.exit(exit_for(error).code)
        told: dict[str, Any] = {"engine": engine, "url": clean(address), "connect": None}
        if engine in available_engines():
            key = f', api_key="{api_key}"' if api_key else ""
            told["connect"] = f'connect("{engine}", "{clean(address)}"{key})'
            told |= _look(engine, address, options)
        if as_json:
            _print(told)
        else:
            print(engine, flush=True)
            _explain(told)


def _check_key(api_key: str | None) -> None:
    """Keys come from the environment: a command line is seen by every user of the machine."""
    if api_key is None:
        return
    name = api_key.removeprefix("env:")
    if name == api_key:
        raise click.UsageError("--api-key: want env:NAME, so that the key itself stands in no process list")
    if not os.environ.get(name):
        raise click.UsageError(f"--api-key: the environment has no variable {name}, or it is empty")


def _look(engine: str, url: str, options: dict[str, Any]) -> dict[str, Any]:
    """State, version and model, as far as a ready server tells them."""
    with connect(engine, url, **options) as adapter:
        health = adapter.health(timeout=HEALTH)
        told: dict[str, Any] = {"ready": health.ready, "message": health.message}
        try:
            props = adapter.props() if health.ready else None
        except WorkerError as error:
            return told | {"message": error.message}
    if props is not None:
        told |= {"engine_version": props.engine_version, "model": props.model}
    return told


def _explain(told: dict[str, Any]) -> None:
    """The same for a person, dimmed."""
    version, model = told.get("engine_version", "unknown"), told.get("model")
    facts = [f"version {version}" if version != "unknown" else "", f"model {model}" if model else ""]
    lines = [
        told["connect"] or "This version of worker-adapters has no adapter for it.",
        ", ".join(fact for fact in facts if fact),
        told.get("message", ""),
    ]
    for line in filter(None, lines):
        console(stderr=True).print(Text(visible(line), style="dim"), soft_wrap=True)


def _print(told: dict[str, Any]) -> None:
    print(json.dumps(told), flush=True)


def _advice(error: WorkerError) -> str:
    if error.phase == "connect" and isinstance(error, EngineUnavailable) and not error.retriable:
        return ""  # a certificate, or a permission: the message says which
    return next((words for cls, words in ADVICE.items() if isinstance(error, cls)), "")
