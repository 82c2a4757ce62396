"""Every public name, and every public method and property, has its place in the reference: else a warning."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from surface import MODULES, members, public

log = logging.getLogger(__name__)


def missing(documented: set[str]) -> Iterator[str]:
    """The public names that are not among those documented; a member may stand at a base."""
    for module, name, value in public():
        if f"{module}.{name}" not in documented:
            yield f"{module}.{name}"
        for member, _ in members(value):
            places = [f"{module}.{name}", *(place for base in value.__mro__ for place in _places(base))]
            if not any(f"{place}.{member}" in documented for place in places):
                yield f"{module}.{name}.{member}"


def _places(base: type) -> Iterator[str]:
    """Where a class may be documented: in its own module, or in the one that makes it public."""
    yield from (f"{module}.{base.__name__}" for module in (base.__module__, *MODULES))


def check(app: Sphinx, env: BuildEnvironment) -> None:
    for name in missing(set(env.domains.python_domain.objects)):
        log.warning("%s is public and not in the reference", name, type="complete")


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("env-check-consistency", check)
    return {"parallel_read_safe": True}
