"""The group of commands, and how one is executed."""

from __future__ import annotations

import click

import worker_adapters
from worker_adapters.cli import terminal
from worker_adapters.cli.bench import bench
from worker_adapters.cli.demo import demo
from worker_adapters.cli.detect import detect
from worker_adapters.cli.exits import INTERRUPTED, table
from worker_adapters.cli.health import health
from worker_adapters.cli.props import props
from worker_adapters.cli.run import run
from worker_adapters.cli.simulate import simulate
from worker_adapters.cli.status import status

EXAMPLES = """
\b
Examples:
  worker-adapters demo
  worker-adapters detect http://localhost:8000
  worker-adapters run --engine llamacpp "The quick brown fox"
  worker-adapters run --model model.gguf --chat
  worker-adapters health http://gpu1:8000 http://gpu2:8000 --watch
  worker-adapters bench --engine vllm -n 200 -c 16
  worker-adapters status --config pools.toml
  worker-adapters simulate vllm

\b
Completion, for bash in ~/.bashrc (zsh: with zsh_source, fish: fish_source):
  eval "$(_WORKER_ADAPTERS_COMPLETE=bash_source worker-adapters)"
"""


@click.group(
    help=f"One blocking contract in front of every LLM engine.\n{EXAMPLES}",
    epilog=f"\b\nExit codes:\n{table('done, and all is well: each command says what that means')}",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(worker_adapters.__version__, message="%(prog)s %(version)s")
def cli() -> None:
    """Only a group: every command is one of its own."""


cli.add_command(bench)
cli.add_command(demo)
cli.add_command(detect)
cli.add_command(health)
cli.add_command(props)
cli.add_command(run)
cli.add_command(simulate)
cli.add_command(status)


def execute(args: list[str] | None = None) -> int:
    """Run a command line (None: the process's own) and return its exit code. No traceback for what users do."""
    terminal.prepare()
    try:
        return cli.main(args, prog_name="worker-adapters", standalone_mode=False) or 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
