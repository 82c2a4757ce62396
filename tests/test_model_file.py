"""What is said of a model file before an engine is started on it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from worker_adapters.embedded import write_recite_gguf
from worker_adapters.embedded.model_file import check_model_file


def _nothing(path: Path) -> None:
    """There is no such file."""


def _loop(path: Path) -> None:
    path.symlink_to(path)


def _below_a_file(path: Path) -> None:
    path.symlink_to(Path(__file__) / "model.gguf")


def _holding(data: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data)


@pytest.mark.parametrize(
    ("make", "kind", "said"),
    [
        (_nothing, FileNotFoundError, "there is no model file"),
        (Path.mkdir, IsADirectoryError, "is a directory"),
        (_loop, OSError, "cannot be read: Too many levels of symbolic links"),
        (_below_a_file, NotADirectoryError, "cannot be read: Not a directory"),
        (os.mkfifo, ValueError, "is no regular file"),
        (_holding(b""), ValueError, "is empty"),
        (_holding(b"GGU"), ValueError, "it begins with b'GGU'"),
        (_holding(b"GGUF\3\0\0\0" + bytes(15)), ValueError, "ends after 23 bytes"),
        (_holding(b"version https://git-lfs.github.com/spec/v1\n"), ValueError, "git lfs pull"),
        (_holding(b"<!doctype html>"), ValueError, "a web page"),
        (_holding(b"PK\3\4"), ValueError, "a ZIP archive"),
        (_holding(b"tjgg\3\0\0\0"), ValueError, "older format"),
    ],
)
def test_what_is_no_gguf_file_is_refused_by_name(
    tmp_path: Path, make: Callable[[Path], object], kind: type[Exception], said: str
) -> None:
    """A file that is not there, cannot be read, or is something else is refused in one line with its path."""
    path = tmp_path / "model.gguf"
    make(path)
    with pytest.raises(kind, match=re.escape(said)) as caught:
        check_model_file(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_of_someone_else_cannot_be_read(tmp_path: Path) -> None:
    """A file without the permission to read it is a PermissionError that says so."""
    path = write_recite_gguf(tmp_path / "model.gguf")
    path.chmod(0)
    with pytest.raises(PermissionError, match="cannot be read: Permission denied"):
        check_model_file(path)


def test_a_gguf_file_is_taken(tmp_path: Path) -> None:
    """A whole GGUF file passes, and so does its bare header: the engine says what is missing."""
    model = write_recite_gguf(tmp_path / "model.gguf")
    check_model_file(model)
    header = tmp_path / "header.gguf"
    header.write_bytes(model.read_bytes()[:24])
    check_model_file(header)
