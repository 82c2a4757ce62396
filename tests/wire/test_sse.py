"""Server-sent events by the rules of WHATWG, in every way of feeding, against two other decoders."""

from __future__ import annotations

import json
import re
import time
import tracemalloc
from collections.abc import Iterable
from itertools import pairwise

import pytest
import sseclient
from hypothesis import example, given
from hypothesis import strategies as st

from feeding import fed
from worker_adapters.wire.http1 import Head
from worker_adapters.wire.sse import MAX_EVENT, MAX_LINE, Event, EventSplitter, EventTooLong

Seen = tuple[str, str, str]
XX = b"x" * 2048
MIB = 1024 * 1024


def seen(events: Iterable[Event]) -> list[Seen]:
    """Events as (data, name, id), the data decoded as every reader of it must."""
    return [(event.data.decode("utf-8", "replace"), event.name, event.id) for event in events]


def decode(pieces: Iterable[bytes]) -> list[Seen]:
    """Through the splitter."""
    splitter = EventSplitter()
    return seen([event for piece in pieces for event in splitter.feed(piece)])


def reference(stream: bytes) -> list[Seen]:
    """The rules once more, over the whole stream at once, with no thought for speed."""
    text = stream.decode("utf-8", "replace").removeprefix("\ufeff")
    found: list[Seen] = []
    data: list[str] = []
    name = last_id = ""
    for line in re.split("\r\n|\n|\r", text)[:-1]:
        if not line:
            if data:
                found.append(("\n".join(data), name or "message", last_id))
            data, name = [], ""
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            data.append(value)
        elif field == "event":
            name = value
        elif field == "id" and "\0" not in value:
            last_id = value
    return found


def plain(*data: str, id: str = "") -> list[Seen]:
    return [(text, "message", id) for text in data]


# name -> (stream, events). The first group follows web-platform-tests `eventsource/format-*`, the second is our own.
VECTORS: dict[str, tuple[bytes, list[Seen]]] = {
    "bom": (b"\xef\xbb\xbfdata:1\n\n\xef\xbb\xbfdata:2\n\ndata:3\n\n", plain("1", "3")),
    "bom-2": (b"\xef\xbb\xbf\xef\xbb\xbfdata:1\n\ndata:2\n\ndata:3\n\n", plain("2", "3")),
    "comments": (
        b"data:1\r:\0\n:\r\ndata:2\n:" + XX + b"\rdata:3\n:data:fail\r:" + XX + b"\ndata:4\n\n",
        plain("1\n2\n3\n4"),
    ),
    "data-before-final-empty-line": (b"retry:1000\ndata:test1\n\nid:test\ndata:test2", plain("test1")),
    "field-data": (b"data:\n\ndata\ndata\n\ndata:test\n\n", plain("", "\n", "test")),
    "field-event": (b"event:test\ndata:x\n\ndata:x\n\n", [("x", "test", ""), ("x", "message", "")]),
    "field-event-empty": (b"event: \ndata:data\n\n", plain("data")),
    "field-id": ("id: …\ndata:hello\n\n".encode(), plain("hello", id="…")),
    "field-id-2": ("id: …\ndata:hello\n\ndata:a\n\ndata:b\n\n".encode(), plain("hello", "a", "b", id="…")),
    "field-id-3": (b"id:1\ndata:a\n\nid\ndata:b\n\n", [("a", "message", "1"), ("b", "message", "")]),
    "field-id-null": (b"id:1\ndata:a\n\nid:x\0y\ndata:b\n\n", plain("a", "b", id="1")),
    "field-parsing": (
        b"data:\0\ndata:  2\rData:1\ndata\0:2\ndata:1\r\0data:4\nda-ta:3\rdata_5\ndata:3\rdata:\r\n data:32\n"
        b"data:4\n\n",
        plain("\0\n 2\n1\n3\n\n4"),
    ),
    "field-retry": (b"retry:3000\ndata:x\n\n", plain("x")),
    "field-retry-bogus": (b"retry:3000\nretry:1000x\ndata:x\n\n", plain("x")),
    "field-retry-empty": (b"retry\ndata:test\n\n", plain("test")),
    "field-unknown": (
        b"data:test\n data\ndata\nfoobar:xxx\njustsometext\n:thisisacommentyay\ndata:test\n\n",
        plain("test\n\ntest"),
    ),
    "leading-space": (b"data:\ttest\rdata: \ndata:test\n\n", plain("\ttest\n\ntest")),
    "newlines": (b"data:test\r\ndata\ndata:test\r\n\r", plain("test\n\ntest")),
    "null-character": (b"data:\0\n\n\n\n", plain("\0")),
    "utf-8": ("data:ok…\n\n".encode(), plain("ok…")),
    "mixed ends": (b"data: a\n\r\ndata: b\n\r\n", plain("a", "b")),
    "CR only": (b"data: a\r\rdata: b\r\r", plain("a", "b")),
    "CRLF": (b"data: a\r\n\r\ndata: b\r\n\r\n", plain("a", "b")),
    "Unicode line ends in data": (
        'data: {"t":"\u2028\u2029\u0085\x0b\x0c\x1c"}\n\n'.encode(),
        plain('{"t":"\u2028\u2029\u0085\x0b\x0c\x1c"}'),
    ),
    "4-byte characters": ("data: 🦊🎉\n\n".encode(), plain("🦊🎉")),
    "invalid UTF-8": (b"data: a\xffb\n\n", plain("a\ufffdb")),
    "cut UTF-8": (b"data: a\xf0\x9f\ndata: \x8ab\n\n", plain("a\ufffd\n\ufffdb")),
    "keep-alives": (b": ping\n\n:\n\ndata: a\n\n: ping\n\n", plain("a")),
    "no data field": (b"event: x\nid: 7\n\ndata: a\n\n", plain("a", id="7")),
    "[DONE]": (b"data: [DONE]\n\n", plain("[DONE]")),
    "[DONE] without a space": (b"data:[DONE]\n\n", plain("[DONE]")),
    "[DONE] with CRLF": (b"data: [DONE]\r\n\r\n", plain("[DONE]")),
    "[DONE] without a blank line": (b"data: [DONE]\n", []),
    "[DONE] without a line end": (b"data: [DONE]", []),
    "JSON over two data lines": (b'data: {"a":1,\ndata: "b":2}\n\n', plain('{"a":1,\n"b":2}')),
    "nothing": (b"", []),
    "a BOM alone": (b"\xef\xbb\xbf", []),
    "half a BOM, then data": (b"\xef\xbbdata:1\n\ndata:2\n\n", plain("2")),
    "blank lines only": (b"\n\n\r\n\r\r\n", []),
    "several in one buffer": (b"data: 1\n\ndata: 2\n\ndata: 3\n\ndata: 4", plain("1", "2", "3")),
}


@pytest.mark.parametrize("name", VECTORS)
def test_every_vector_gives_its_events_however_it_is_fed(name: str) -> None:
    """The events of a stream are those of the WHATWG rules, whatever the pieces in which it comes."""
    stream, events = VECTORS[name]
    assert fed(decode, stream) == events


@pytest.mark.parametrize("name", VECTORS)
def test_the_reference_agrees_with_every_vector(name: str) -> None:
    """The reference decoder that random streams are compared with is itself right on every vector."""
    stream, events = VECTORS[name]
    assert reference(stream) == events


@pytest.mark.parametrize(
    ("stream", "delay"),
    [
        (b"retry:3000\ndata:x\n\n", 3000),
        (b"retry: 3000\nretry:1000x\ndata:x\n\n", 3000),
        (b"retry\ndata:test\n\n", None),
        (b"retry:-1\n\n", None),
        (b"retry: 1.5\n\n", None),
        ("retry: ٣\n\n".encode(), None),
    ],
)
def test_retry_takes_ascii_digits_only(stream: bytes, delay: int | None) -> None:
    """A ``retry`` field of ASCII digits sets the delay, any other leaves it as it was."""

    def delay_of(pieces: list[bytes]) -> int | None:
        splitter = EventSplitter()
        for piece in pieces:
            splitter.feed(piece)
        return splitter.retry_ms

    assert fed(delay_of, stream) == delay


def test_a_retry_of_many_digits_is_bounded() -> None:
    """A ``retry`` of thousands of digits neither raises nor costs a quadratic conversion."""
    splitter = EventSplitter()
    splitter.feed(b"retry: " + b"9" * 100_000 + b"\n\n")
    assert splitter.retry_ms == 10**18 - 1


@pytest.mark.parametrize(
    ("content_type", "accepted"),
    [
        ("text/event-stream", True),
        ("text/event-stream;", True),
        ("Text/Event-Stream; charset=utf-8", True),
        ("text/event-stream ;charset=windows-1252", True),
        ("x bogus", False),
        ("text/x-bogus", False),
        ("", False),
    ],
)
def test_the_media_type_decides_what_is_an_event_stream(content_type: str, accepted: bool) -> None:
    """A lone semicolon and any parameters are accepted after ``text/event-stream``, no other type is."""
    head = Head(200, (("content-type", content_type),), keep_alive=True)
    assert (head.media_type == "text/event-stream") is accepted


def test_the_last_of_several_media_types_counts() -> None:
    """Triton up to 2.41 names two."""
    types = ("application/json", "text/event-stream; charset=utf-8")
    head = Head(200, tuple(("content-type", each) for each in types), keep_alive=True)
    assert head.media_type == "text/event-stream"


def test_json_over_two_data_lines_is_one_object() -> None:
    """Data lines are joined by a line feed, which JSON takes for white space."""
    [(text, _, _)] = fed(decode, b'data: {"a":1,\ndata: "b":2}\n\n')
    assert json.loads(text) == {"a": 1, "b": 2}


# --- against other decoders

PARTS = st.sampled_from([
    b"data", b"data:", b"data: ", b"data:  x", b"event", b"event: ", b"event:n", b"id", b"id: 1", b"id:\0", b"retry: 7",
    b":", b": ping", b"x: y", b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"\xff", b"\xf0\x9f", b"\x0b", b" ", b"a", b"0",
    b"\n", b"\n", b"\n\n", b"\r", b"\r\n", b"\r\n\r\n", b"data: one\n\n", b"data: two\n\n", b"data:three\r\n\r\n",
])  # fmt: skip
STREAMS = st.lists(PARTS | st.binary(max_size=3), max_size=30).map(b"".join)


@given(stream=STREAMS, cuts=st.lists(st.integers(0, 200), max_size=6))
@example(stream=b"data: a\n\nid: 1\n\ndata: b\n\n", cuts=[])
@example(stream=b"data: a\r", cuts=[8])
def test_random_streams_decode_as_by_the_reference(stream: bytes, cuts: list[int]) -> None:
    """Whatever the bytes and wherever they are cut, the splitter and a whole-buffer reading of the rules agree."""
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    pieces = [stream[a:b] for a, b in pairwise(edges)]
    assert decode(pieces) == reference(stream)


@given(stream=STREAMS)
def test_random_streams_decode_alike_however_they_are_fed(stream: bytes) -> None:
    """Whatever the bytes, every way of feeding gives the same events."""
    fed(decode, stream)


LINE = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1, max_size=12
).filter(lambda text: text.strip() == text)
ORDINARY = st.lists(
    st.tuples(st.lists(LINE, min_size=1, max_size=3), st.none() | st.sampled_from(["delta", "error"]), st.booleans()),
    max_size=6,
)


@given(events=ORDINARY)
def test_ordinary_streams_decode_as_by_sseclient(events: list[tuple[list[str], str | None, bool]]) -> None:
    """Where sseclient-py follows the rules (LF ends, no BOM, no id, whole events), it sees the same events."""
    stream = ""
    for lines, name, comment in events:
        stream += ": ping\n\n" if comment else ""
        stream += f"event: {name}\n" if name else ""
        stream += "".join(f"data: {line}\n" for line in lines) + "\n"
    theirs = [(e.data, e.event, "") for e in sseclient.SSEClient(iter([stream.encode()])).events()]
    assert fed(decode, stream.encode()) == theirs


# --- what SSE parsers drop and one engine uses


def test_fields_as_events_delivers_a_field_as_an_event() -> None:
    """A field named in ``fields_as_events`` comes as an event of that name, after the data of its event."""

    def with_errors(pieces: list[bytes]) -> list[Seen]:
        splitter = EventSplitter(frozenset({b"error"}))
        return seen([event for piece in pieces for event in splitter.feed(piece)])

    stream = b'data: 1\n\nerror: {"code":500}\n\nother: x\n\ndata: 2\nerror:late\n\nerror: cut off'
    assert fed(with_errors, stream) == [
        ("1", "message", ""),
        ('{"code":500}', "error", ""),
        ("2", "message", ""),
        ("late", "error", ""),
    ]


def test_fields_as_events_are_dropped_unless_named() -> None:
    """Without ``fields_as_events`` an unknown field is no event."""
    assert fed(decode, b"error: {}\n\ndata: 1\n\n") == plain("1")


# --- bounds


def endless(head: bytes, piece: bytes) -> int:
    """Feed ``piece`` without end; the bytes that were taken before the splitter refused."""
    splitter = EventSplitter()
    splitter.feed(head)
    taken = 0
    while True:
        try:
            splitter.feed(piece)
        except EventTooLong:
            return taken
        taken += len(piece)
        assert taken <= 2 * MAX_EVENT, "never refused"


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (b"data: ", b"x" * MIB),
        (b": ", b"x" * MIB),
        (b"", b"data: " + b"x" * MIB + b"\n"),
        (b"", b"unknown: " + b"x" * MIB + b"\r\n"),
    ],
    ids=["line", "comment line", "data lines", "unknown lines"],
)
def test_a_line_or_an_event_over_the_bound_is_refused(head: bytes, piece: bytes) -> None:
    """A line, and the lines of one event together, hold at most 16 MiB; what is held in memory is bounded by it."""
    tracemalloc.start()
    try:
        taken = endless(head, piece)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken <= MAX_LINE
    assert peak < 3 * MAX_LINE


@pytest.mark.parametrize("form", [b"data: %s\n\n", b"data: %s\r\n\r\n", b": %s\n\n", b"data: %s"])
@pytest.mark.parametrize("cut", [0, 1000, MAX_LINE])
def test_the_bound_is_the_same_in_one_buffer_and_in_two(form: bytes, cut: int) -> None:
    """A line of more than 16 MiB is refused also where one buffer holds all of it."""
    stream = form % (b"x" * (MAX_LINE + 1))
    splitter = EventSplitter()
    with pytest.raises(EventTooLong):
        splitter.feed(stream[:cut]), splitter.feed(stream[cut:])


def test_the_longest_allowed_event_comes_whole() -> None:
    """An event just under the bound is delivered."""
    data = b"x" * (MAX_EVENT - 16)
    [event] = EventSplitter().feed(b"data: " + data + b"\n\n")
    assert event.data == data


def test_comments_take_no_memory() -> None:
    """Keep-alive comments are forgotten as they come, however many there are."""
    splitter = EventSplitter()
    comment = b": " + b"x" * MIB + b"\n\n"
    tracemalloc.start()
    try:
        for _ in range(64):
            assert splitter.feed(comment) == []
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * MIB


# --- linear time


def seconds(stream: bytes, step: int) -> float:
    """CPU seconds to split the stream in pieces of ``step`` bytes: the best of three."""

    def once() -> float:
        splitter = EventSplitter()
        began = time.process_time()
        events = [event for at in range(0, len(stream), step) for event in splitter.feed(stream[at : at + step])]
        took = time.process_time() - began
        assert len(events) == 1
        return took

    return min(once() for _ in range(3))


def test_a_long_line_takes_linear_time() -> None:
    """A line four times as long, in 1 KiB pieces, takes about four times as long, not sixteen."""
    short, long = (seconds(b"data: " + b"x" * size + b"\n\n", 1024) for size in (2 * MIB, 8 * MIB))
    assert long < 4 * 3 * short


def test_many_lines_in_one_event_take_linear_time() -> None:
    """An event of four times as many data lines takes about four times as long, not sixteen."""
    short, long = (seconds(b"data: x\n" * lines + b"\n", 1000) for lines in (50_000, 200_000))
    assert long < 4 * 3 * short


def test_a_long_line_in_many_pieces_comes_whole() -> None:
    """A line of 1 MiB in 4 KiB pieces is one event."""
    text = "".join(chr(97 + at % 26) for at in range(MIB))
    stream = f"data: {text}\n\n".encode()
    assert decode(stream[at : at + 4096] for at in range(0, len(stream), 4096)) == plain(text)
