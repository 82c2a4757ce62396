"""docs/adding-an-engine.rst, followed to the letter by somebody who has an empty folder."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "adding-an-engine.rst"
EXAMPLE = ROOT / "examples" / "new_engine.py"
BLOCK = re.compile(r"^\.\. code-block:: (\w+)\n(?: +:caption: (\S+)\n)?\n((?:    .*\n|\n)+)", re.MULTILINE)
#: What these commands make is what the tests run in.
MADE = [
    "mkdir parrot && cd parrot",
    "python3 -m venv venv && . venv/bin/activate",
    "pip install worker-adapters pytest",
]
SOON = 300.0  # seconds that nothing here needs


def blocks() -> Iterator[tuple[str, str, str]]:
    """(language, name of the file or "", text) of every block of the page."""
    for language, name, text in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        yield language, name, text.rstrip("\n")


def files() -> dict[str, str]:
    """What the files hold once every block is typed in, each below the one before it."""
    typed: dict[str, list[str]] = {}
    for _, name, text in blocks():
        if name:
            typed.setdefault(name, []).append(text)
    return {name: textwrap.dedent("\n\n".join(texts)) + "\n" for name, texts in typed.items()}


def commands() -> list[tuple[str, str]]:
    """(command, the output that the page shows) of every command, from top to bottom."""
    shown = "".join(textwrap.dedent(text) + "\n" for language, _, text in blocks() if language == "console")
    return re.findall(r"^\$ (.+)\n((?:[^$].*\n)*)", shown, re.MULTILINE)


def surroundings(home: Path) -> dict[str, str]:
    """This Python comes first, and what pip installs goes to a folder: from there alone, with nothing downloaded."""
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PIP_TARGET": str(home),
        "PIP_NO_BUILD_ISOLATION": "0",  # as pip has it, this is what switches isolation off
        "PIP_NO_DEPS": "1",
        "PIP_NO_INDEX": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PYTHONPATH": str(home),
        "PYTEST_ADDOPTS": "-W error",
    }


@pytest.mark.slow
def test_the_page_leads_to_a_passing_conformance_suite(tmp_path: Path) -> None:
    """Its blocks in the files they name, its commands one by one: all succeed, and the last shows what it says."""
    folder, home = tmp_path / "parrot", tmp_path / "installed"
    folder.mkdir()
    for name, text in files().items():
        (folder / name).write_text(text, encoding="utf-8")
    made, todo = commands()[: len(MADE)], commands()[len(MADE) :]
    assert [command for command, _ in made] == MADE
    told = {}
    for command, shown in todo:
        done = subprocess.run(
            ["bash", "-c", command], cwd=folder, env=surroundings(home), capture_output=True, text=True, timeout=SOON,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert shown in ("", done.stdout)
        told[command] = done.stdout
    assert list(told) == ["python -m pytest -q", "pip install .", "python polly.py"]
    assert re.search(r"^\d\d passed in ", told["python -m pytest -q"], re.MULTILINE)  # nothing was left out


def test_the_example_is_of_the_page() -> None:
    """Each line of the example's adapter stands on the page."""
    source = EXAMPLE.read_text(encoding="utf-8")
    kinds = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    assert [kind.name for kind in kinds] == ["ParrotDecoder", "ParrotAdapter"]
    lines = [line for kind in kinds for line in ast.get_source_segment(source, kind).splitlines()]
    page = files()["parrot.py"].splitlines()
    assert [line for line in lines if line not in page] == []
