"""``worker-adapters demo``: the library at work on a real engine, in a few seconds, with nothing to set up."""

from __future__ import annotations

import importlib.util

import click

from worker_adapters.cli.exits import FAILED, USAGE
from worker_adapters.cli.interrupt import leave_orderly
from worker_adapters.cli.terminal import answering, complain

HELP = """
Show streaming, cancelling and a killed server on a real llama.cpp, started on this machine.

It takes a few seconds and needs no key, no GPU and no network: the model is generated, and recites. Every number is
measured while you watch. The exit code is 0 only if all of it really happened.

\b
Examples:
  pip install "worker-adapters[demo]"
  worker-adapters demo
  worker-adapters demo > demo.txt
"""


@click.command(help=HELP, short_help="Stream, cancel and kill a real llama.cpp on this machine.")
@click.pass_context
def demo(ctx: click.Context, /) -> None:
    """See HELP."""
    from worker_adapters.cli.play import play  # what only the demo needs, the other commands do not load
    from worker_adapters.embedded import EmbeddedServerError

    if importlib.util.find_spec("xllamacpp") is None:
        complain('the demo needs the llama.cpp wheel: pip install "worker-adapters[demo]"')
        ctx.exit(USAGE)
    leave_orderly()
    with answering():
        try:
            code = play()
        except EmbeddedServerError as error:
            complain(str(error))
            code = FAILED
    ctx.exit(code)
