"""A JSON body read the way TGI's web framework (axum over serde_json) reads it: its complaints, with their place."""

from __future__ import annotations

import json
import re
from typing import Any

Path = tuple[str | int, ...]

_BLANKS = re.compile(r"[ \t\n\r]*")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_STRING = re.compile(r'"(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*"')
_WORDS: dict[str, Any] = {"true": True, "false": False, "null": None}
_INTEGERS = {"u32": (0, 2**32 - 1), "i32": (-(2**31), 2**31 - 1), "u64": (0, 2**64 - 1), "usize": (0, 2**64 - 1)}


class Complaint(Exception):
    """The framework answers for the engine: `status` and a plain text."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


class Document:
    """A parsed body: its `value`, and where each part of it stands."""

    def __init__(self, raw: bytes) -> None:
        self._text = raw.decode("utf-8", "surrogateescape")
        self._at = 0
        self._spans: dict[Path, tuple[int, int]] = {}
        self.value = self._read(())

    def mismatch(self, path: Path, problem: str, *, after: bool = True) -> Complaint:
        """The answer to a value of the wrong type. The reader stands behind a scalar, and before a list or a map."""
        start, end = self._spans[path]
        return Complaint(
            422,
            "Failed to deserialize the JSON body into the target type: "
            + self._located(path, problem, end if after else start),
        )

    # -- the grammar ---------------------------------------------------------------------------------------------

    def _read(self, path: Path) -> Any:
        char = self._peek()
        start = self._at
        if char == "{":
            value: Any = self._object(path)
        elif char == "[":
            value = self._list(path)
        elif char == '"':
            value = self._string(path)
        elif char == "-" or char.isdigit():
            value = self._number(path)
        else:
            value = self._word(path, char)
        self._spans[path] = (start, self._at)
        return value

    def _object(self, path: Path) -> dict[str, Any]:
        found: dict[str, Any] = {}
        self._at += 1
        while self._peek() != "}":
            if found:
                self._comma(path, "object", "}")
            if self._peek() != '"':
                raise self._refused(path, "key must be a string" if self._peek() else "EOF while parsing an object")
            name = self._string(path)
            if self._peek() != ":":
                raise self._refused(path, "expected `:`" if self._peek() else "EOF while parsing an object")
            self._at += 1
            found[name] = self._read((*path, name))
        self._at += 1
        return found

    def _list(self, path: Path) -> list[Any]:
        found: list[Any] = []
        self._at += 1
        while self._peek() != "]":
            if found:
                self._comma(path, "list", "]")
            elif not self._peek():
                raise self._refused(path, "EOF while parsing a list")
            found.append(self._read((*path, len(found))))
        self._at += 1
        return found

    def _comma(self, path: Path, kind: str, end: str) -> None:
        char = self._peek()
        if char != ",":
            article = "an" if kind == "object" else "a"
            raise self._refused(path, f"expected `,` or `{end}`" if char else f"EOF while parsing {article} {kind}")
        self._at += 1
        if self._peek() == end:
            raise self._refused(path, "trailing comma")

    def _string(self, path: Path) -> str:
        match = _STRING.match(self._text, self._at)
        if match is None:
            closed = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL).match(self._text, self._at)
            self._at = closed.end() if closed else len(self._text)
            problem = "invalid escape" if closed else "EOF while parsing a string"
            raise self._refused(path, problem, peeked=False)
        self._at = match.end()
        if re.search("[\udc80-\udcff]", match[0]):
            raise self._refused(path, "invalid unicode code point", peeked=False)
        return str(json.loads(match[0]))

    def _number(self, path: Path) -> int | float:
        match = _NUMBER.match(self._text, self._at)
        if match is None:
            self._at += 1
            raise self._refused(path, "invalid number")
        self._at = match.end()
        return json.loads(match[0])  # type: ignore[no-any-return]  # a number's text

    def _word(self, path: Path, char: str) -> Any:
        for word, value in _WORDS.items():
            if char and word.startswith(char):
                if not self._text.startswith(word, self._at):
                    raise self._refused(path, "expected ident")
                self._at += len(word)
                return value
        raise self._refused(path, "expected value" if char else "EOF while parsing a value")

    def _peek(self) -> str:
        """The next character that is no blank; "" at the end."""
        blanks = _BLANKS.match(self._text, self._at)
        self._at = blanks.end() if blanks else self._at
        return self._text[self._at : self._at + 1]

    # -- complaints ----------------------------------------------------------------------------------------------

    def _refused(self, path: Path, problem: str, *, peeked: bool = True) -> Complaint:
        at = min(len(self._text), self._at + peeked)  # a character that was only looked at counts
        return Complaint(400, "Failed to parse the request body as JSON: " + self._located(path, problem, at))

    def _located(self, path: Path, problem: str, at: int) -> str:
        begin = self._text.rfind("\n", 0, at) + 1
        column = len(self._text[begin:at].encode("utf-8", "surrogateescape"))
        where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")
        lead = f"{where}: " if where else ""
        return f"{lead}{problem} at line {1 + self._text.count(chr(10), 0, at)} column {column}"


def check(document: Document, path: Path, value: Any, kind: str) -> None:
    """Raises Complaint if a value is not of this Rust type: `bool`, `string`, `f32`, an integer's name, `[...]` (a
    list), `struct Name`; a `?` behind it allows null."""
    if value is None and kind.endswith("?"):
        return
    kind = kind.rstrip("?")
    if kind.startswith("["):
        if not isinstance(value, list):
            raise _mistyped(document, path, value, "a sequence")
        for number, item in enumerate(value):
            check(document, (*path, number), item, kind[1:-1])
    elif kind in _INTEGERS:
        if isinstance(value, bool) or not isinstance(value, int):
            raise _mistyped(document, path, value, kind)
        low, high = _INTEGERS[kind]
        if not low <= value <= high:
            raise document.mismatch(path, f"invalid value: integer `{value}`, expected {kind}")
    elif kind == "f32":
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise _mistyped(document, path, value, kind)
    else:
        types: dict[str, tuple[type, str]] = {"bool": (bool, "a boolean"), "string": (str, "a string")}
        wanted, words = types.get(kind, (dict, kind))
        if not isinstance(value, wanted):
            raise _mistyped(document, path, value, words)


def _mistyped(document: Document, path: Path, value: Any, expected: str) -> Complaint:
    if isinstance(value, (list, dict)):
        found = "sequence" if isinstance(value, list) else "map"
        return document.mismatch(path, f"invalid type: {found}, expected {expected}", after=False)
    kinds = {bool: "boolean", int: "integer", float: "floating point", str: "string"}
    text = json.dumps(value, ensure_ascii=False)
    found = "null" if value is None else f"{kinds[type(value)]} " + (text if isinstance(value, str) else f"`{text}`")
    return document.mismatch(path, f"invalid type: {found}, expected {expected}")
