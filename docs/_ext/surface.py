"""What is public: names, their methods and properties, and what their constructors take. No Sphinx here."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
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
#: Classes whose members are no interface: the suite's are its tests, and how TGI's simulator is built.
INSIDE = {"ConformanceSuite", "TgiEngine"}
#: What only the package makes: its constructor is nobody's to call.
MADE = {"Exchange", "Fault", "Job", "TokenStream"}


def public() -> Iterator[tuple[str, str, Any]]:
    """(module, name, value)"""
    names = [(module, name) for module in MODULES for name in import_module(module).__all__]
    for module, name in (*names, *OTHERS):
        yield module, name, getattr(import_module(module), name)


def members(value: Any) -> Iterator[tuple[str, Any]]:
    """(name, value) of the methods and properties of a class that the package itself defines."""
    for name in dir(value) if inspect.isclass(value) else ():
        home = next((base for base in value.__mro__ if name in vars(base)), object)
        member = getattr(value, name)
        ours = home.__module__.startswith("worker_adapters.") and home.__name__ not in INSIDE
        if ours and not name.startswith("_") and (callable(member) or isinstance(member, property)):
            yield name, member


def parameters(value: Any) -> Iterator[str]:
    """What a function or a constructor takes; of a value that is its fields."""
    if callable(value) and getattr(value, "__name__", "") not in MADE:
        for name, parameter in inspect.signature(value).parameters.items():
            if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                yield name
