"""The documentation says something of everything that is public. ``tox -e docs`` builds it, and runs its samples."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "worker_adapters"
PAGES = [*(ROOT / "docs").rglob("*.rst"), ROOT / "README.rst"]
#: Parameters whose names say all.
PLAIN = {"data", "network", "options", "path", "runtime", "text", "timeout", "url"}


@pytest.fixture
def surface(monkeypatch):
    """What is public, as the documentation sees it."""
    monkeypatch.syspath_prepend(ROOT / "docs" / "_ext")
    import surface

    yield surface
    sys.modules.pop("surface")


def test_every_public_name_has_a_docstring(surface):
    """Each name, and each method and property of it, says what it is for."""
    silent = [name for _, name, value in surface.public() if callable(value) and not value.__doc__]
    for _, name, value in surface.public():
        silent += [f"{name}.{member}" for member, told in surface.members(value) if not told]
    assert silent == []


def test_every_parameter_is_explained(surface):
    """What a function or a constructor takes, and so each field of a value, stands in a docstring or behind ``#:``."""
    silent = []
    for _, name, value in surface.public():
        known = PLAIN | surface.words(value)
        silent += [f"{name}({parameter})" for parameter in surface.parameters(value) if parameter not in known]
    assert silent == []


def test_every_public_name_stands_in_the_reference(surface):
    """Each name has a directive of its own there; its members come with it."""
    named = set()
    for page in (ROOT / "docs" / "reference").glob("*.rst"):
        named |= set(re.findall(r"^\.\. (?:auto|py:)\w+:: ([\w.]+)", page.read_text(), re.MULTILINE))
    assert {f"{module}.{name}" for module, name, _ in surface.public()} - named == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_a_page_names_exist(page):
    """A file or a folder of the project that stands in a page is there."""
    named = set(re.findall(r"(?<![\w/])(?:docs|examples|benchmarks|tests|wire|adapters)/[a-z_./-]*", page.read_text()))
    assert {name for name in named if not any((folder / name).exists() for folder in (ROOT, PACKAGE))} == set()
