"""Tool calls in a chat's stream of TGI, of every release, as name and arguments. No I/O.

Read in the router's sources. From 3.2.0 on the name comes with the first piece, the arguments in pieces. From 1.4.3 to
3.1.1 the pieces are what the model says, its end token included: ``{"function": {"_name": "f", "x": 1}}``, up to 2.0.0
without the name. Instead of a call, a model says from 2.0.1 to 2.3.1 why it makes none, as a call of ``notify_error``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import msgspec

from worker_adapters.wire.delta import ToolDelta, mapping, parse_json, text

#: The beginning of what a model says, up to the name of its function.
_NAMED = re.compile(r'\s*\{\s*"function"\s*:\s*\{\s*"_name"\s*:\s*"([^"\\]+)"')
APOLOGY = "notify_error"
#: Its one call has this name in answers of one piece, in all releases.
CALL_ID = "0"
_JSON = json.JSONDecoder()
_OBJECT = msgspec.json.Decoder(dict[str, Any])


class CallText:
    """One answer's tool call: there is only one an answer.

    :param offered: names of the functions that may be called.
    :ivar begun: is its name known, or did it come without one?
    :ivar whole: are its arguments a whole JSON object? They follow a grammar, so nothing can come after it.
    :ivar apology: why the model makes no call, which is its answer then.
    """

    def __init__(self, offered: Sequence[str]) -> None:
        self._offered = offered
        self._said = ""
        self._arguments = ""
        self.begun = self.whole = False
        self.apology = ""

    def add(self, piece: ToolDelta) -> ToolDelta | None:
        """What a piece adds; None as long as it is not known what is called."""
        name, said = piece.name, piece.arguments
        if name is None and not self.begun:
            self._said += said
            name, said = self._unwrapped()
        self.begun = self.begun or name is not None or bool(said)
        return self._more(name, said, piece.call_id) if self.begun else None

    def rest(self) -> ToolDelta | None:
        """What is missing of a call that is over: of one without arguments 3.2 and later say the first brace only,
        where the last token closes more than one."""
        return self._more(None, "}", None) if self._arguments == "{" else None

    def _unwrapped(self) -> tuple[str | None, str]:
        """Name and first arguments of what the model has said; neither, if they are not there yet."""
        found = _NAMED.match(self._said)
        if found is not None and (found[1] != APOLOGY or found[1] in self._offered):
            return found[1], "{" + self._said[found.end() :].lstrip(", \t\r\n")
        end = object_end(self._said)
        if not end:
            return None, ""
        whole = parse_json(_OBJECT, self._said[:end].encode())
        function = mapping(whole.get("function")) or whole
        name = text(function.pop("_name", self._offered[0] if len(self._offered) == 1 else None)) or None
        if name == APOLOGY and name not in self._offered:
            self.apology = str(function.get("error") or "")
            return None, ""
        return name, msgspec.json.encode(function).decode()

    def _more(self, name: str | None, said: str, call_id: str | None) -> ToolDelta:
        if self._arguments == "{":
            said = said.lstrip(", \t\r\n")  # 3.2 and later, too, may leave the comma behind the name
        before = len(self._arguments)
        self._arguments += said
        if "}" in said:
            end = object_end(self._arguments)
            self.whole = end > 0
            self._arguments = self._arguments[: end or None]
        return ToolDelta(0, self._arguments[before:], call_id or CALL_ID, name)


def object_end(said: str) -> int:
    """Where the JSON object at the beginning of a text ends; 0 if there is no whole one."""
    try:
        found, end = _JSON.raw_decode(said, len(said) - len(said.lstrip()))
    except (ValueError, RecursionError):
        return 0
    return end if isinstance(found, dict) else 0


def names_of(tools: Sequence[Any]) -> list[str]:
    """The names of a task's functions."""
    named = [mapping(mapping(tool).get("function")).get("name") for tool in tools]
    return [name for name in named if isinstance(name, str)]
