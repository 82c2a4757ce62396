"""``worker-adapters simulate``: an engine's server for people who have no engine."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

import click
from rich.live import Live
from rich.text import Text

from worker_adapters.adapters.catalog import ALIASES
from worker_adapters.cli.exits import DONE, FAILED, table
from worker_adapters.cli.number import DAY, Number
from worker_adapters.cli.target import value_of
from worker_adapters.cli.terminal import answering, complain, console
from worker_adapters.simulate import SIMULATORS, EngineSimulator, Fault

#: Where each engine's adapter looks for it; OpenAI itself is not on this machine, so any free place will do.
PORTS = {
    "llamacpp": 8081,
    "openai": 8080,
    "tgi": 3000,
    "triton": 8000,
    "vllm": 8000,
    **{name: urlsplit(url).port or 0 for name, (_, url) in ALIASES.items()},
}
#: Where a server that listens on every address is found from this machine.
HERE = {"//0.0.0.0:": "//127.0.0.1:", "//[::]:": "//[::1]:"}
#: Seconds between two looks at what is going on.
LOOK = 0.2

HELP = f"""
Serve as ENGINE would, without a model: its paths, its bytes, its errors. For trying things out, and for tests.

ENGINE is {", ".join(sorted(PORTS))}. It recites one sentence, at the pace of --rate, for as many clients at once as
--slots says; more of them wait, as they would. --die-after and its kin make every answer go wrong in one way. The URL
goes to standard output, what to try and what is going on to standard error. Ctrl-C or SIGTERM ends it.

\b
Examples:
  worker-adapters simulate llamacpp
  worker-adapters simulate vllm --port 9000 --rate 200 --slots 64
  worker-adapters simulate openai --die-after 5
  worker-adapters simulate ollama --refuse 429
"""


@click.command(
    help=HELP,
    short_help="Serve as an engine would, without a model.",
    epilog=f"\b\nExit codes:\n{table('it served until Ctrl-C or SIGTERM')}",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0 is every address of this machine.")
@click.option("--port", type=click.IntRange(0, 65535), help="0 is any free one.  [default: the engine's usual port]")
@click.option(
    "--rate",
    type=Number(0, min_open=True),
    default=30,
    show_default=True,
    metavar="TOKENS/S",
    help="Of one answer.",
)
@click.option(
    "--first-token",
    type=Number(0, DAY),
    default=0.1,
    show_default=True,
    metavar="SECONDS",
    help="How long it thinks about a prompt.",
)
@click.option("--slots", type=click.IntRange(1), default=4, show_default=True, help="Answers at once.")
@click.option("--endless", is_flag=True, help="Recite again and again, up to the request's limit.")
@click.option("--api-key-env", metavar="NAME", help="Demand the key in this environment variable.")
@click.option("--die-after", type=click.IntRange(0), metavar="TOKENS", help="Break off every answer after so many.")
@click.option("--error-after", type=click.IntRange(0), metavar="TOKENS", help="Send the engine's error after so many.")
@click.option("--silent-after", type=click.IntRange(0), metavar="TOKENS", help="Say nothing more after so many.")
@click.option("--refuse", type=click.IntRange(400, 599), metavar="STATUS", help="Refuse every job: 429, 503.")
@click.argument("engine", type=click.Choice(sorted(PORTS)), metavar="ENGINE")
@click.pass_context
def simulate(
    ctx: click.Context,
    /,
    *,
    engine: str,
    host: str,
    port: int | None,
    rate: float,
    first_token: float,
    slots: int,
    endless: bool,
    api_key_env: str | None,
    **faults: int | None,
) -> None:
    """See HELP."""
    fault = _fault(**faults)
    api_key = None if api_key_env is None else value_of(api_key_env)
    port = PORTS[engine] if port is None else port
    with answering(), _until_told() as ended:
        try:
            server = server_for(
                engine,
                host=host,
                port=port,
                delay=1 / rate,
                prompt_delay=first_token,
                slots=slots,
                endless=endless,
                api_key=api_key,
            )
        except OSError as error:
            complain(_refused(error, host, port))
            ctx.exit(FAILED)
        with server:
            server.always(fault)
            many = "one answer" if slots == 1 else f"{slots} answers"
            _introduce(engine, _address(server), f"{many} at once, {rate:g} tokens/s each")
            _serve(server, ended)
    ctx.exit(DONE)


def server_for(engine: str, **options: Any) -> EngineSimulator:
    """The simulator of an engine, listening.

    :raises OSError: the system refuses the address.
    """
    if engine in ALIASES:
        options["flavor"] = engine
    module, _, name = SIMULATORS[ALIASES[engine][0] if engine in ALIASES else engine].partition(":")
    made: EngineSimulator = getattr(import_module(module), name)(**options, record_limit=0)
    return made


def _fault(**given: int | None) -> Fault | None:
    """What is to go wrong with every answer."""
    chosen = [(name, value) for name, value in given.items() if value is not None]
    if len(chosen) > 1:
        names = " and ".join("--" + name.replace("_", "-") for name, _ in chosen)
        raise click.UsageError(f"{names}: an answer goes wrong in one way only")
    makers = {
        "die_after": lambda tokens: Fault.cut_after(tokens, rst=True),
        "error_after": Fault.error_after,
        "silent_after": Fault.silent_after,
        "refuse": Fault.status,
    }
    return makers[chosen[0][0]](chosen[0][1]) if chosen else None


def _refused(error: OSError, host: str, port: int) -> str:
    """Why there is no server, and what to try."""
    why = (error.strerror or type(error).__name__).lower()
    return f"cannot listen on {host}, port {port}: {why}. Try --port 0 for any free one, or another --host."


def _address(server: EngineSimulator) -> str:
    """The URL for clients on this machine, with the path that an OpenAI client wants."""
    url: str = getattr(server, "base_url", server.url)
    for everywhere, here in HERE.items():
        url = url.replace(everywhere, here)
    return url


def _introduce(engine: str, url: str, pace: str) -> None:
    """The URL for a program; for a person, what this is and what to try."""
    print(url, flush=True)
    lines = [
        f"A simulated {engine}: no model, {pace}.",
        "Ctrl-C ends it. To try in another terminal:",
        f'  worker-adapters run --engine {engine} --url {url} "Hello"',
        f"  worker-adapters bench --engine {engine} --url {url} -n 40 -c 8",
        f"  worker-adapters health {url}",
    ]
    for line in lines:
        console(stderr=True).print(Text(line, style="dim"), soft_wrap=True)


@contextmanager
def _until_told() -> Iterator[list[int]]:
    """Gives a list that is empty until Ctrl-C or SIGTERM comes. Who was told to ignore Ctrl-C (nohup, ``&``) does."""
    came: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        came.append(number)

    watched = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in watched}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _serve(server: EngineSimulator, ended: list[int]) -> None:
    """Until told to end. On a terminal, a line says what is going on."""
    err = console(stderr=True)
    live = err.is_terminal and not err.is_dumb_terminal
    with Live(_state(server), console=err, auto_refresh=False, transient=True) if live else nullcontext() as shown:
        while not ended:
            time.sleep(LOOK)
            if shown is not None:
                shown.update(_state(server), refresh=True)


def _state(server: EngineSimulator) -> Text:
    counts = {"connections": server.connections, "answers": server.generations, "at work": server.busy}
    said = [f"{count} {name}" for name, count in {**counts, "waiting": server.queued}.items()]
    return Text(", ".join(said), style="dim")
