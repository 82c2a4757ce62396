"""A host from a mapping or a TOML file: the same shape for scripts, for Django's settings and for the command line."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from worker_adapters.adapters.catalog import AUTO, adapter_class, connect
from worker_adapters.contract import WorkerAdapter
from worker_adapters.errors import InvalidRequest, invalid
from worker_adapters.retry import RetryPolicy
from worker_adapters.timeouts import checked

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")

#: Keys at the top, beside ``pools``.
OPTIONS = ("max_workers", "policy", "timeouts", "retry", "breaker")
#: Keys of a replica that are the host's; all others go to ``connect``.
BINDING = ("residency", "max_in_flight")
#: What ``connect`` takes for every engine, and what no file can hold.
COMMON = {
    "model", "api_key", "headers", "timeouts", "retry", "verify", "ca", "cert", "proxy", "max_idle", "unsupported",
}  # fmt: skip
LIVE = {"network", "runtime"}


class Binding(NamedTuple):
    """One replica as configured."""

    pool: str
    name: str
    make: Callable[[], WorkerAdapter]
    options: dict[str, Any]


def read(config: Mapping[str, Any] | str | Path) -> tuple[dict[str, Any], list[Binding]]:
    """Options of the host, and its replicas, whose adapters are made when their first job comes.

    :param config: a mapping, or the path of a TOML file.
    :raises InvalidRequest: naming the key, and the known ones; or the file cannot be read.
    """
    top = _mapping("config", _toml(config) if isinstance(config, (str, Path)) else config)
    _known("", top, ("pools", *OPTIONS))
    bindings = [
        _binding(pool, name, _mapping(f"pools.{pool}.{name}", told))
        for pool, replicas in _mapping("pools", top.get("pools", {})).items()
        for name, told in _mapping(f"pools.{pool}", replicas).items()
    ]
    return {name: top[name] for name in OPTIONS if name in top}, bindings


def _binding(pool: str, name: str, told: Mapping[str, Any]) -> Binding:
    place = f"pools.{pool}.{name}"
    options = dict(told)
    engine, url = options.pop("engine", None), options.pop("url", None)
    if engine == AUTO:
        raise invalid(f"{place}.engine", "want its name; worker-adapters detect URL tells it")
    known = options_of(at(place, partial(adapter_class, engine)))
    if url is not None and not isinstance(url, str):
        raise invalid(f"{place}.url", "want a URL")
    if known is not None:
        _known(f"{place}.", told, ("engine", "url", *BINDING, *sorted(known - LIVE)), also=LIVE)
    if "timeouts" in options:
        options["timeouts"] = at(place, partial(checked, options["timeouts"]))
    if "retry" in options:
        options["retry"] = at(place, partial(RetryPolicy.of, options["retry"]))
    binding = {key: options.pop(key) for key in BINDING if key in options}
    return Binding(pool, name, partial(at, place, partial(_made, engine, url, options)), binding)


def options_of(adapter: type[WorkerAdapter]) -> set[str] | None:
    """The options that an adapter's class and those above it take by name; None: it takes any."""
    names = set(COMMON)
    for cls in adapter.__mro__[:-1]:
        if "__init__" in vars(cls):
            _, *parameters = inspect.signature(vars(cls)["__init__"]).parameters.values()
            names |= {each.name for each in parameters if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)}
            if not any(each.kind is each.VAR_KEYWORD for each in parameters):
                return names - {"url"}
    return None


def at(place: str, act: Callable[[], T]) -> T:
    """What ``act`` gives; what it refuses is said with its place.

    :raises InvalidRequest: from ``act``.
    """
    try:
        return act()
    except InvalidRequest as error:
        raise invalid(f"{place}.{error.field}", error.message.removeprefix(f"{error.field}: ")) from None


def _made(engine: str, url: str | None, options: dict[str, Any]) -> WorkerAdapter:
    try:
        return connect(engine, url, **options)
    except TypeError as error:  # an adapter that names its options nowhere
        raise invalid("options", f"{engine} does not take them ({error})") from None


def _toml(path: str | Path) -> Any:
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise invalid("config", f"{path} cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:  # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        said = error if isinstance(error, tomllib.TOMLDecodeError) else type(error).__name__
        raise invalid("config", f"{path} is no TOML: {said}") from None


def _mapping(place: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise invalid(place, "want a mapping")
    return value


def _known(place: str, value: Mapping[str, Any], keys: tuple[str, ...], also: Iterable[str] = ()) -> None:
    unknown = sorted(value.keys() - {*keys, *also})
    if unknown:
        raise invalid(f"{place}{unknown[0]}", f"no such key; there are {', '.join(keys)}")
