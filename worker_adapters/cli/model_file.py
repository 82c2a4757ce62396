"""A model file as an engine: a llama.cpp server of its own, for as long as the command runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from rich.text import Text

from worker_adapters.adapters.catalog import connect
from worker_adapters.cli.exits import USAGE
from worker_adapters.cli.interrupt import leave_orderly
from worker_adapters.cli.target import Submit
from worker_adapters.cli.terminal import complain, console, visible
from worker_adapters.embedded import EmbeddedLlamaCpp, EmbeddedServerError
from worker_adapters.embedded.model_file import check_model_file
from worker_adapters.errors import EngineUnavailable, ModelNotFound

#: Tokens of a prompt, or a conversation, and its answer; llama.cpp takes less where the model was trained with less.
CONTEXT = 8192
#: Seconds to load many GB from a slow disk.
LOADING = 600.0
#: Seconds: a CPU may read a long prompt for minutes, and nobody else waits for it.
PATIENT = {"first_token": 3600.0, "between_tokens": 600.0}


@contextmanager
def served(model: str) -> Iterator[Submit]:
    """A llama.cpp server that has loaded this file.

    :raises ModelNotFound: there is no such file, or it is none that llama.cpp loads.
    :raises EngineUnavailable: the server did not start, for another reason.
    """
    leave_orderly()
    path = Path(model)
    with _started(path) as server, connect("llamacpp", server.url, timeouts=PATIENT) as adapter:
        yield adapter.submit


def _started(path: Path) -> EmbeddedLlamaCpp:
    try:
        check_model_file(path)
    except (OSError, ValueError) as error:
        raise ModelNotFound(message=str(error), field="model", phase="submit") from error
    server = EmbeddedLlamaCpp(
        path, alias=path.stem, slots=1, context=CONTEXT, threads=_threads(), start_timeout=LOADING
    )
    try:
        # Shown on a terminal only.
        with console(stderr=True).status(Text(f"Loading {visible(path.name)} ({_size(path)})")):
            return server.start()
    except ImportError as error:
        complain(str(error))
        raise click.exceptions.Exit(USAGE) from None
    except EmbeddedServerError as error:
        if error.reason is None:
            what = str(error).splitlines()[0].removesuffix("; its log ends:")
            raise EngineUnavailable(message=what, phase="connect") from error
        message = f"llama.cpp does not load {path}: {error.reason.rstrip('.?')}"
        raise ModelNotFound(message=message, field="model", phase="connect") from error
    except OSError as error:
        message = f"the embedded llama.cpp server could not be started: {error}"
        raise EngineUnavailable(message=message, phase="connect") from error


def _threads() -> int:
    """Half of the CPUs: that is one a core where a core counts as two, and leaves room where it does not."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, usable // 2)


def _size(path: Path) -> str:
    size = path.stat().st_size
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
