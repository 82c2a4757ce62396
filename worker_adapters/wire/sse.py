"""Server-sent events, no I/O: cuts a byte stream into events by the WHATWG rules, in linear time and bounded memory.

The common case, an event that is one ``data:`` line ended by a blank line, is cut by two C-level splits a buffer. All
else (CR line ends, several lines, other fields, an event in pieces) goes line by line through one slow path with the
same result. sseclient-py is not used for it: it re-joins the event at every line, which is quadratic (docs/decisions).
"""

from __future__ import annotations

import msgspec

MAX_LINE = 16 * 1024 * 1024
MAX_EVENT = 16 * 1024 * 1024
#: Of what stands in no event.
MAX_OUTSIDE = 64 * 1024
_BOM = b"\xef\xbb\xbf"
#: As a number: ``bytes in bytes`` first makes an error of it that it is none, which costs a paced token more than the
#: search (CPython 3.10 to 3.13).
_CR = 0x0D


class EventTooLong(Exception):
    """A line or an event over the bound: the peer does not speak server-sent events, or means harm."""


class Event(msgspec.Struct, frozen=True, gc=False):
    """One server-sent event.

    :param data: UTF-8; its ``data:`` lines, joined.
    :param name: what ``event:`` said.
    :param id: the last one that the stream has set.
    """

    data: bytes
    name: str = "message"
    id: str = ""


class EventSplitter:
    """Feed bytes in any pieces, get whole events. An event that the stream's end cuts off is never delivered.

    :param fields_as_events: names of fields that SSE parsers drop but an engine uses: such a line's value is delivered
        as an event of that name (llama.cpp before 2025-09 wrote its in-stream errors as an ``error:`` line).
    """

    __slots__ = (
        "_also",
        "_cr",
        "_data",
        "_id",
        "_line",
        "_line_size",
        "_name",
        "_outside",
        "_outside_size",
        "_size",
        "_start",
        "_stray",
        "retry_ms",
    )

    def __init__(self, fields_as_events: frozenset[bytes] = frozenset()) -> None:
        self._also = fields_as_events
        self._start = True  # may a BOM still come?
        self._cr = False  # did the last byte fed end a line with CR, so that an LF now belongs to it?
        self._line: list[bytes] = []  # the pieces of the unfinished line
        self._line_size = 0
        self._data: list[bytes] = []  # data lines of the unfinished event
        self._stray: list[Event] = []  # what fields_as_events found in it
        self._outside: list[bytes] = []  # lines of no known field
        self._outside_size = 0
        self._size = 0
        self._name = b""
        self._id = ""
        self.retry_ms: int | None = None

    @property
    def between_events(self) -> bool:
        """Is nothing pending, neither a line nor an event?"""
        return not (self._line or self._data or self._stray or self._name or self._cr or self._start)

    @property
    def cut_off(self) -> bool:
        """Is part of an event pending, which the stream's end would lose?"""
        return bool(self._line or self._data)

    @property
    def outside(self) -> bytes:
        """What stood in no event, 64 KiB at most, and the unfinished line: a server that forgets that it streams may
        write its error there."""
        return b"\n".join([*self._outside, b"".join(self._line)])

    def feed(self, data: bytes) -> list[Event]:
        """The events that ``data`` completes.

        :raises EventTooLong: a line or an event over 16 MiB.
        """
        if self._start:
            data = self._skip_bom(data)
        if not data:
            return []
        if _CR in data or len(data) > MAX_LINE:
            return self._feed_lines(data)
        between = self.between_events
        if (
            between
            and data.endswith(b"\n\n")
            and data.startswith(b"data: ")
            and data.count(b"\n") == 2
            and not self._id
        ):
            return [Event(data[6:-2])]  # one token, as a paced stream brings it
        events: list[Event] = []
        if not between:  # a buffer nearly always cuts an event: only that one goes line by line
            head, blank, data = data.partition(b"\n\n")
            events = self._feed_lines(head + blank)
        return events + self._feed_blocks(data)

    def _feed_blocks(self, data: bytes) -> list[Event]:
        """From between two events on: those that are one data line each, in one go; anything else line by line."""
        whole, blank, rest = data.rpartition(b"\n\n")
        values = whole.removeprefix(b"data: ").split(b"\n\ndata: ")
        # Fewer splits than blank lines: a line feed that ends no event, or an event that begins with something else.
        if not blank or self._id or not whole.startswith(b"data: ") or whole.count(b"\n") != 2 * (len(values) - 1):
            return self._feed_lines(data)
        events = list(map(Event, values))
        return events + self._feed_lines(rest) if rest else events

    def _skip_bom(self, data: bytes) -> bytes:
        """Drop one BOM at the very start, also if it comes byte by byte."""
        data = b"".join(self._line) + data
        self._line = []
        self._line_size = 0
        if len(data) < 3 and _BOM.startswith(data):
            self._line = [data] if data else []
            return b""
        self._start = False
        return data.removeprefix(_BOM)

    def _feed_lines(self, data: bytes) -> list[Event]:
        """Line by line: the whole of the rules."""
        events: list[Event] = []
        if self._cr:
            self._cr = False
            if data[:1] == b"\n":
                data = data[1:]
        if _CR in data:
            self._cr = data[-1:] == b"\r"
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        lines = data.split(b"\n")
        rest = lines.pop()
        for line in lines:
            if self._line:
                self._line.append(line)
                line = b"".join(self._line)  # noqa: PLW2901 - the line is its pieces
                self._line = []
                self._line_size = 0
            if line:
                self._take_line(line)
            else:
                self._dispatch(events)
        if rest:
            self._line.append(rest)
            self._line_size += len(rest)
            if self._line_size > MAX_LINE:
                raise EventTooLong(f"a line of server-sent events is longer than {MAX_LINE} bytes")
        return events

    def _take_line(self, line: bytes) -> None:
        if len(line) > MAX_LINE:
            raise EventTooLong(f"a line of server-sent events is longer than {MAX_LINE} bytes")
        field, colon, value = line.partition(b":")
        if colon and not field:
            return  # a comment
        if value[:1] == b" ":
            value = value[1:]
        self._size += len(value) + 1
        if self._size > MAX_EVENT:
            raise EventTooLong(f"a server-sent event is longer than {MAX_EVENT} bytes")
        if field == b"data":
            self._data.append(value)
        elif field == b"event":
            self._name = value
        elif field == b"id":
            if b"\0" not in value:
                self._id = value.decode("utf-8", "replace")
        elif field == b"retry":
            if value.isdigit():
                self.retry_ms = int(value[:18])
        else:
            self._take_unknown(field, value, line)

    def _take_unknown(self, field: bytes, value: bytes, line: bytes) -> None:
        """A field that the rules do not know."""
        if field in self._also:
            self._stray.append(Event(value, field.decode("latin-1"), self._id))
        elif self._outside_size + len(line) <= MAX_OUTSIDE:
            self._outside.append(line)
            self._outside_size += len(line)

    def _dispatch(self, events: list[Event]) -> None:
        """A blank line: deliver what the event holds; an event without data only keeps its id."""
        if self._data:
            name = self._name.decode("utf-8", "replace") or "message"
            events.append(Event(b"\n".join(self._data), name, self._id))
            self._data = []
        if self._stray:
            events += self._stray
            self._stray = []
        self._name = b""
        self._size = 0
