"""What is public: names, their methods and properties, and what their constructors take. No Sphinx here."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from typing import Any

#: Modules whose ``__all__`` is public.
MODULES = ("worker_adapters", "worker_adapters.simulate", "worker_adapters.embedded", "worker_adapters.testing")
#: (module, name) of what is public beside them.
OTHERS = (
    ("worker_adapters.contrib.prometheus", "PrometheusObserver"),
    ("worker_adapters.testing.stand", "MockStand"),
    ("worker_adapters.testing.stand", "stand_for"),
)
#: Classes whose members are no interface: the suite's are its tests, the others' are there to be built upon.
INSIDE = {"ConformanceSuite", "JobAdapter", "TgiEngine"}
#: What only the package makes: nobody else calls its constructor.
MADE = {"Exchange", "Fault", "Job", "TokenStream"}


def public() -> Iterator[tuple[str, str, Any]]:
    """(module, name, value)"""
    names = [(module, name) for module in MODULES for name in import_module(module).__all__]
    for module, name in (*names, *OTHERS):
        yield module, name, getattr(import_module(module), name)


def members(value: Any) -> Iterator[tuple[str, str | None]]:
    """(name, docstring) of the methods, properties and explained attributes that the package itself gives a class."""
    for name in dir(value) if inspect.isclass(value) else ():
        home = next((base for base in value.__mro__ if name in vars(base)), object)
        member = getattr(value, name)
        ours = home.__module__.startswith("worker_adapters.") and home.__name__ not in INSIDE
        if not ours or name.startswith("_"):
            continue
        if callable(member) or isinstance(member, property):
            yield name, inspect.getdoc(member)
        elif name in attributes(home):
            yield name, "in a comment"


@cache
def attributes(value: type) -> set[str]:
    """The attributes of a class that a comment of the documentation's (``#:``) stands above."""
    return set(re.findall(r"^    #: .*\n    (\w+)", inspect.getsource(value), re.MULTILINE))


def parameters(value: Any) -> Iterator[str]:
    """What a function or a constructor takes; of a value that is its fields."""
    if callable(value) and getattr(value, "__name__", "") not in MADE:
        for name, parameter in inspect.signature(value).parameters.items():
            if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                yield name


def words(value: Any) -> set[str]:
    """What its docstring speaks of, its bases' docstrings, and the comments above its attributes."""
    found: set[str] = set()
    for home in getattr(value, "__mro__", [value]):
        if getattr(home, "__module__", "").startswith("worker_adapters"):
            found |= {*re.findall(r"\w+", home.__doc__ or ""), *(attributes(home) if inspect.isclass(home) else ())}
    return found
