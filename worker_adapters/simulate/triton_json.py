"""JSON as Triton 2.51.0 reads and writes it: RapidJSON's complaints, keys in order, bytes as they are.

Text is kept with `surrogateescape`, so that bytes which are no UTF-8 pass through, as they do in the engine.
"""

from __future__ import annotations

import json
import re
from typing import Any

ERRORS = "surrogateescape"
_CONTROL = re.compile(r'["\\\x00-\x1f]')
_SHORT = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_HALF = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F][0-9a-fA-F]{2})"
    r"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F][0-9a-fA-F]{2}"
)
# What Python's parser says -> what RapidJSON says.
_WORDS = {
    "Expecting property name enclosed in double quotes": "Missing a name for object member.",
    "Expecting ':' delimiter": "Missing a colon after a name of object member.",
    "Unterminated string starting at": "Missing a closing quotation mark in string.",
    "Extra data": "The document root must not be followed by other values.",
    "Invalid control character at": "Invalid escape character in string.",
    "Invalid \\escape": "Invalid escape character in string.",
}


class Failure(Exception):
    """An error answer. `plain` ones have their text under Content-Type text/plain, JSON though it is."""

    def __init__(self, status: int, message: str, plain: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.plain = plain

    def within(self, where: str) -> Failure:
        """The same failure, told from further outside."""
        return Failure(self.status, f"{where}: {self.message}", self.plain)


def dump(value: Any) -> bytes:
    """Compact JSON; a text's undecodable bytes come out as they went in."""
    return _write(value).encode("utf-8", ERRORS)


def _write(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ",".join(f"{_quote(name)}:{_write(item)}" for name, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(_write, value)) + "]"
    return _quote(value) if isinstance(value, str) else json.dumps(value)


def _quote(text: str) -> str:
    return '"' + _CONTROL.sub(lambda found: _SHORT.get(found[0]) or f"\\u{ord(found[0]):04X}", text) + '"'


def load(raw: bytes) -> Any:
    """The value of a body. Raises Failure (status 500, as the engine answers) for what is no JSON."""
    text = raw.decode("utf-8", ERRORS)
    if not text.strip():
        raise _bad("The document is empty.", len(raw))
    half = _HALF.search(text)
    if half is not None:
        raise _bad("The surrogate pair in string is invalid.", half.start())
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise _complaint(text, error.msg, error.pos) from error


def _complaint(text: str, message: str, at: int) -> Failure:
    if message == "Expecting ',' delimiter":
        inside = _inside(text[:at])
        what = "'}' after an object member." if inside == "{" else "']' after an array element."
        return _bad(f"Missing a comma or {what}", at)
    if message.startswith("Illegal trailing comma"):  # Python 3.13, which points at the comma
        message, at = "Expecting property name enclosed in double quotes", at + 1
        message = "Expecting value" if _inside(text[:at]) == "[" else message
    if message == "Unterminated string starting at":
        at = len(text)
    for word in ("true", "false", "null"):
        if message == "Expecting value" and text[at : at + 1] == word[0]:
            at += next(size for size in range(len(word), 0, -1) if text.startswith(word[:size], at))
            break
    return _bad(_WORDS.get(message, "Invalid value."), len(text[:at].encode("utf-8", ERRORS)))


def _inside(text: str) -> str:
    """The bracket that is open at the end of a text."""
    held: list[str] = []
    for mark in re.findall(r'"(?:[^"\\]|\\.)*"|[][{}]', text):
        if mark in ("{", "["):
            held.append(mark)
        elif mark in ("}", "]") and held:
            held.pop()
    return held[-1] if held else "{"


def _bad(message: str, at: int) -> Failure:
    return Failure(500, f"failed to parse the request JSON buffer: {message} at {at}")


# -- what a value is taken for -----------------------------------------------------------------------------------------


def mistaken(what: str, wanted: str) -> Failure:
    """The complaint about a value of another type."""
    return Failure(500, f"attempt to access JSON non-{what} as {wanted}")


def as_text(value: Any) -> str:
    """A string."""
    if not isinstance(value, str):
        raise mistaken("string", "string")
    return value


def as_bool(value: Any) -> bool:
    """A boolean; 0 and 1 are none."""
    if not isinstance(value, bool):
        raise mistaken("boolean", "boolean")
    return value


def as_int(value: Any, bits: int) -> int:
    """An integer of 64 bits, cut to `bits` of them as the engine does."""
    if not isinstance(value, int) or isinstance(value, bool) or not -(2**63) <= value < 2**63:
        raise mistaken("signed-integer", "signed-integer")
    return (value + (1 << bits - 1)) % (1 << bits) - (1 << bits - 1)


def as_uint(value: Any, bits: int) -> int:
    """An unsigned integer of 64 bits, cut to `bits` of them as the engine does."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**64:
        raise mistaken("unsigned-integer", "unsigned-integer")
    return value % (1 << bits)


def as_number(value: Any) -> float:
    """A number."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise mistaken("number", "double")
    return float(value)
