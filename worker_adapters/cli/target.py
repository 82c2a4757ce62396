"""Where the jobs of a command go: one engine, or a pool of a config."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import click

from worker_adapters.adapters.catalog import connect
from worker_adapters.host.host import AdapterHost
from worker_adapters.stream import TokenStream

Submit = Callable[..., TokenStream]


def key(variable: str | None) -> dict[str, Any]:
    """The option of ``connect`` for ``--api-key-env``."""
    if variable is None:
        return {}
    value_of(variable)
    return {"api_key": f"env:{variable}"}


def value_of(variable: str) -> str:
    """The key that an environment variable holds: on a command line every user of the machine would see it."""
    value = os.environ.get(variable, "")
    if not value:
        raise click.UsageError(f"--api-key-env: the environment has no variable {variable}, or it is empty")
    return value


def check_pool(config: str | None, pool: str | None, **others: str | None) -> None:
    """A config says all about its engines, and only a config has pools.

    :raises click.UsageError: naming the options that contradict that.
    """
    if config is None and pool is not None:
        raise click.UsageError("--pool needs --config")
    given = [f"--{name.replace('_', '-')}" for name, value in others.items() if value is not None]
    if config is not None and given:
        raise click.UsageError(f"--config says where the engines are: leave out {', '.join(given)}")


@contextmanager
def engine_at(engine: str, url: str | None, **options: Any) -> Iterator[Submit]:
    """One engine."""
    with connect(engine, url, **options) as adapter:
        yield adapter.submit


@contextmanager
def pool_of(config: str, pool: str | None) -> Iterator[Submit]:
    """A pool of engines."""
    with _printed_only(), AdapterHost.from_config(config) as host:
        pools = list(host.props())
        if pool is None and len(pools) != 1:
            raise click.UsageError(f"which pool? Give --pool: {config} has {', '.join(pools) or 'none'}")
        yield partial(host.submit, pool=pool or pools[0])


@contextmanager
def _printed_only() -> Iterator[None]:
    """What becomes of the jobs is printed; the host need not log it as well."""
    log = logging.getLogger("worker_adapters.host")
    log.addFilter(_names_no_job)
    try:
        yield
    finally:
        log.removeFilter(_names_no_job)


def _names_no_job(record: logging.LogRecord) -> bool:
    return not hasattr(record, "job_id")
