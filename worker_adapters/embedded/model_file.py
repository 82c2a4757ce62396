"""What can be said of a model file before an engine is started on it."""

from __future__ import annotations

import os
import stat
import struct
from pathlib import Path

__all__ = ["check_model_file"]

_MAGIC = b"GGUF"
#: Magic, version, number of tensors, number of key-value pairs.
_HEADER = struct.Struct("<4sIQQ")
#: What people have in a file with that name, by how it begins, and what to do about it.
_OTHERS = (
    (b"version https://git-lfs", "it is a Git LFS pointer to the model: fetch the model itself with git lfs pull"),
    (b"<", "it is a web page: the download went wrong"),
    (b"PK", "it is a ZIP archive, perhaps a PyTorch checkpoint: convert it with llama.cpp's convert_hf_to_gguf.py"),
    (b"lmgg", "it is of llama.cpp's older format GGML: get the model as GGUF"),
    (b"tjgg", "it is of llama.cpp's older format GGJT: get the model as GGUF"),
)


def check_model_file(path: Path) -> None:
    """Refuse what is no GGUF file; what is inside, and whether all of it is there, only the engine knows.

    :raises FileNotFoundError: there is no such file.
    :raises IsADirectoryError: it is a directory.
    :raises OSError: it cannot be read.
    :raises ValueError: it is empty, cut off in its header, or no GGUF file.
    """
    if os.path.isdir(path):
        raise IsADirectoryError(f"the model {path} is a directory, not a GGUF file")
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe would take from it what the engine needs
            raise ValueError(f"the model {path} is no regular file")
        with path.open("rb") as file:
            head = file.read(64)
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no model file {path}") from None
    except OSError as error:
        raise type(error)(f"the model file {path} cannot be read: {error.strerror}") from error
    if not head:
        raise ValueError(f"the model file {path} is empty")
    if not head.startswith(_MAGIC):
        known = next((words for start, words in _OTHERS if head.startswith(start)), f"it begins with {head[:4]!r}")
        raise ValueError(f"the model file {path} is no GGUF file; {known}")
    if len(head) < _HEADER.size:
        raise ValueError(f"the model file {path} ends after {len(head)} bytes: the download was cut off")
