"""HTTP/1.1 framing: responses cut out of bytes in every way of feeding, and the head of a request."""

from __future__ import annotations

import gc
import pickle
import weakref
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from feeding import fed
from worker_adapters.wire.http1 import MAX_HEAD, Head, MalformedResponse, ResponseParser, request_head

OK = b"HTTP/1.1 200 OK\r\n"
Response = tuple[int | None, bytes, bool, bool, bool]


def parse(pieces: list[bytes]) -> Response | str:
    """(status, body, complete, leftover, close_delimited), or "malformed"."""
    parser = ResponseParser()
    body = b""
    try:
        for piece in pieces:
            body += b"".join(parser.feed(piece))
    except MalformedResponse:
        return "malformed"
    finally:
        parser.close()
    return parser.head and parser.head.status, body, parser.complete, parser.leftover, parser.close_delimited


def head_of(data: bytes) -> Head:
    parser = ResponseParser()
    parser.feed(data)
    parser.close()
    assert parser.head is not None
    return parser.head


WHOLE = (200, b"abcde", True, False, False)

# name -> (bytes, what they are)
RESPONSES: dict[str, tuple[bytes, Response]] = {
    "content-length": (OK + b"Content-Length: 5\r\n\r\nabcde", WHOLE),
    "chunked": (OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n3\r\ncde\r\n0\r\n\r\n", WHOLE),
    "chunked, size in capitals and with zeros": (
        OK + b"Transfer-Encoding: Chunked\r\n\r\n00A\r\n0123456789\r\n0\r\n\r\n",
        (200, b"0123456789", True, False, False),
    ),
    "chunk extensions": (OK + b'Transfer-Encoding: chunked\r\n\r\n5;a=b;c="d;e"\r\nabcde\r\n0;last\r\n\r\n', WHOLE),
    "trailers": (OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\nX-Sum: 1\r\nX-Two: 2\r\n\r\n", WHOLE),
    "ended by the connection": (OK + b"Content-Type: text/plain\r\n\r\nabcde", (200, b"abcde", False, False, True)),
    "HTTP/1.0": (b"HTTP/1.0 200 OK\r\n\r\nabcde", (200, b"abcde", False, False, True)),
    "HTTP/1.0 with a length": (b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nabcde", WHOLE),
    "no reason phrase": (b"HTTP/1.1 200\r\nContent-Length: 5\r\n\r\nabcde", WHOLE),
    "100 before": (b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"Content-Length: 5\r\n\r\nabcde", WHOLE),
    "103 before, with headers": (
        b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + OK + b"Content-Length: 5\r\n\r\nabcde",
        WHOLE,
    ),
    "several 1xx before": (b"HTTP/1.1 102 Processing\r\n\r\n" * 3 + OK + b"Content-Length: 5\r\n\r\nabcde", WHOLE),
    "204": (b"HTTP/1.1 204 No Content\r\nServer: x\r\n\r\n", (204, b"", True, False, False)),
    "304": (b"HTTP/1.1 304 Not Modified\r\n\r\n", (304, b"", True, False, False)),
    "an empty body": (OK + b"Content-Length: 0\r\n\r\n", (200, b"", True, False, False)),
    "bytes after the end": (OK + b"Content-Length: 5\r\n\r\nabcdeX", (200, b"abcde", True, True, False)),
    "bytes after the last chunk": (
        OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\nX",
        (200, b"abcde", True, True, False),
    ),
    "bytes after a 204": (b"HTTP/1.1 204 No\r\nContent-Length: 3\r\n\r\nabc", (204, b"", True, True, False)),
    "bytes after Connection: close": (
        OK + b"Connection: close\r\nContent-Length: 5\r\n\r\nabcdeX",
        (200, b"abcde", True, True, False),
    ),
    "empty lines before and after": (b"\r\n" + OK + b"Content-Length: 5\r\n\r\nabcde\r\n\r\n", WHOLE),
    "two responses": ((OK + b"Content-Length: 5\r\n\r\nabcde") * 2, (200, b"abcde", True, True, False)),
    "a second response of garbage": (
        OK + b"Content-Length: 5\r\n\r\nabcdeHTTP/1.1 banana\r\n\r\n",
        (200, b"abcde", True, True, False),
    ),
    "cut in the head": (OK + b"Content-Len", (None, b"", False, False, False)),
    "cut in the body": (OK + b"Content-Length: 9\r\n\r\nabcde", (200, b"abcde", False, False, False)),
    "cut before the last chunk": (
        OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n",
        (200, b"abcde", False, False, False),
    ),
    "an upgrade that is only offered": (OK + b"Upgrade: h2c\r\nContent-Length: 5\r\n\r\nabcde", WHOLE),
}

MALFORMED: dict[str, bytes] = {
    "the same length twice": OK + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nabcde",
    "two lengths": OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
    "a list of lengths": OK + b"Content-Length: 5, 5\r\n\r\nabcde",
    "a length and chunked": OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n",
    "chunked and a length": OK + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n5\r\nabcde\r\n0\r\n\r\n",
    "a negative length": OK + b"Content-Length: -5\r\n\r\nabcde",
    "a signed length": OK + b"Content-Length: +5\r\n\r\nabcde",
    "a length of 30 digits": OK + b"Content-Length: " + b"9" * 30 + b"\r\n\r\nabcde",
    "a chunk size that is none": OK + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\nabc\r\n0\r\n\r\n",
    "a chunk size of 20 digits": OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 20 + b"\r\nabc",
    "a chunk longer than it says": OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabcde\r\n0\r\n\r\n",
    "line feeds without CR": b"HTTP/1.1 200 OK\nContent-Length: 5\n\nabcde",
    "a folded header": OK + b"X: a\r\n b\r\nContent-Length: 5\r\n\r\nabcde",
    "a space before the colon": OK + b"Content-Length : 5\r\n\r\nabcde",
    "NUL in a header": OK + b"X: a\0b\r\nContent-Length: 5\r\n\r\nabcde",
    "CR in a header": OK + b"X: a\rb\r\nContent-Length: 5\r\n\r\nabcde",
    "no HTTP": b"hello world\r\n\r\n",
    "binary": bytes(range(256)),
    "a TLS alert": b"\x15\x03\x01\x00\x02\x02\x46",
    "HTTP/2 settings": b"\x00\x00\x12\x04\x00\x00\x00\x00\x00",
    "the HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/2 in words": b"HTTP/2 200\r\nContent-Length: 5\r\n\r\nabcde",
    "HTTP/2.0": b"HTTP/2.0 200 OK\r\nContent-Length: 5\r\n\r\nabcde",
    "HTTP/0.9": b"HTTP/0.9 200 OK\r\nContent-Length: 5\r\n\r\nabcde",
    "a status that is none": b"HTTP/1.1 OK\r\n\r\n",
    "101 with an upgrade": b"HTTP/1.1 101 Switching\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\nxx",
    "101 without one": b"HTTP/1.1 101 Switching\r\n\r\nxx",
    "a head of 64 KiB": OK + b"X: " + b"x" * MAX_HEAD + b"\r\nContent-Length: 5\r\n\r\nabcde",
    "many headers": OK + b"X: y\r\n" * 12_000 + b"Content-Length: 5\r\n\r\nabcde",
    "a head without end": OK + b"X: " + b"x" * (2 * MAX_HEAD),
    "interim responses without end": b"HTTP/1.1 100 Continue\r\n\r\n" * 3000,
}


@pytest.mark.parametrize("name", RESPONSES)
def test_a_response_is_cut_out_alike_however_it_is_fed(name: str) -> None:
    """Status, body, end and leftovers follow from the bytes alone, not from the pieces in which they come."""
    data, expected = RESPONSES[name]
    assert fed(parse, data) == expected


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_response_is_refused_however_it_is_fed(name: str) -> None:
    """What a lenient parser could read in two ways, or is no HTTP/1.1, is refused in whatever pieces it comes."""
    assert fed(parse, MALFORMED[name]) == "malformed"


@given(pieces=st.lists(st.binary(min_size=1, max_size=40), max_size=8), cuts=st.lists(st.integers(0, 500), max_size=8))
@example(pieces=[b"\r\n0\r\n\r\n"], cuts=[])
def test_a_chunked_body_is_its_chunks_joined(pieces: list[bytes], cuts: list[int]) -> None:
    """Whatever bytes the chunks hold and wherever the stream is cut, the body is the chunks and nothing else."""
    data = OK + b"Transfer-Encoding: chunked\r\n\r\n"
    data += b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    parts = [data[a:b] for a, b in pairwise(edges)]
    assert parse(parts) == (200, b"".join(pieces), True, False, False)


@given(data=st.binary(max_size=80))
def test_any_bytes_parse_or_are_refused_with_one_exception(data: bytes) -> None:
    """Whatever a peer sends, the parser raises nothing but MalformedResponse."""
    parse([data])
    parse([OK + data])
    parse([OK + b"Transfer-Encoding: chunked\r\n\r\n" + data])


def test_the_head_keeps_headers_in_order_with_lower_case_names() -> None:
    """Names are lower case, values are as sent, repeated headers stay apart and ``get`` gives the first."""
    head = head_of(OK + b"X-A: One\r\nx-a: two\r\nServer:  s \xe9\r\nContent-Length: 0\r\n\r\n")
    assert head.headers == (("x-a", "One"), ("x-a", "two"), ("server", "s é"), ("content-length", "0"))
    assert (head.get("x-a"), head.get("none"), head.get("none", "-")) == ("One", "", "-")


def test_headers_of_interim_responses_and_trailers_are_no_headers() -> None:
    """The head holds what stands in the final response's head only."""
    data = b"HTTP/1.1 103 Early\r\nX-Early: 1\r\n\r\n" + OK + b"X-Head: 1\r\nTransfer-Encoding: chunked\r\n\r\n"
    data += b"0\r\nX-Late: 1\r\n\r\n"
    assert [name for name, _ in head_of(data).headers] == ["x-head", "transfer-encoding"]


@pytest.mark.parametrize(
    ("data", "keep_alive"),
    [
        (OK + b"Content-Length: 0\r\n\r\n", True),
        (OK + b"Connection: close\r\nContent-Length: 0\r\n\r\n", False),
        (OK + b"Connection: Keep-Alive\r\nContent-Length: 0\r\n\r\n", True),
        (OK + b"\r\n", False),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", True),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", False),
        (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n", True),
    ],
)
def test_keep_alive_follows_version_headers_and_framing(data: bytes, keep_alive: bool) -> None:
    """A connection may serve again only if version, Connection header and framing all allow it."""
    assert head_of(data).keep_alive is keep_alive


def test_a_head_of_almost_64_kib_is_read() -> None:
    """The bound on the head is 64 KiB, not less."""
    data = OK + b"X: " + b"x" * (MAX_HEAD - 100) + b"\r\nContent-Length: 5\r\n\r\nabcde"
    assert fed(parse, data) == WHOLE


def test_a_long_body_does_not_count_as_head() -> None:
    """A body far over the bound of the head, in the same buffer as the head, is read."""
    body = b"x" * (3 * MAX_HEAD)
    assert parse([OK + b"Content-Length: %d\r\n\r\n" % len(body) + body]) == (200, body, True, False, False)


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_response_is_never_quoted(name: str) -> None:
    """The message says what is wrong, never with the peer's bytes: they may hold a prompt."""
    marked = MALFORMED[name].replace(b"abcde", b"SECRET") + b"SECRET"
    with pytest.raises(MalformedResponse) as caught:
        ResponseParser().feed(marked)
    assert "SECRET" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_a_closed_parser_is_freed_by_reference_count() -> None:
    """After ``close`` no cycle keeps the parser and what it holds."""

    class Watched(ResponseParser):
        __slots__ = ("__weakref__",)

    parser = Watched()
    parser.feed(RESPONSES["chunked"][0])
    parser.close()
    gone = weakref.ref(parser)
    gc.disable()
    try:
        del parser
        assert gone() is None
    finally:
        gc.enable()


def test_a_closed_parser_counts_bytes_as_leftover() -> None:
    """``feed`` after ``close`` gives no body and marks the connection as not to be used again."""
    parser = ResponseParser()
    parser.close()
    assert parser.feed(b"x") == []
    assert parser.leftover


def test_a_head_pickles_and_compares_by_value() -> None:
    """Heads are plain values."""
    head = head_of(OK + b"Content-Length: 0\r\n\r\n")
    assert pickle.loads(pickle.dumps(head)) == head


# --- writing


def test_a_request_head_is_what_stands_on_the_wire() -> None:
    """Method, target and headers are written in order, ended by an empty line."""
    head = request_head("POST", "/v1/x?a=b", [("Host", "h:1"), ("X-Latin", "é"), ("X-Tab", "a\tb"), ("X-Empty", "")])
    assert head == b"POST /v1/x?a=b HTTP/1.1\r\nHost: h:1\r\nX-Latin: \xe9\r\nX-Tab: a\tb\r\nX-Empty: \r\n\r\n"


@pytest.mark.parametrize("bad", ["\r", "\n", "\0", "\r\n", "\x01", "\x7f"], ids=repr)
@pytest.mark.parametrize("where", ["method", "target", "name", "value"])
def test_control_characters_are_refused_everywhere(where: str, bad: str) -> None:
    """CR, LF, NUL or another control character in any part of a request is refused, and what is refused never shown."""
    parts = {"method": "GET", "target": "/", "name": "X", "value": "v"}
    parts[where] = f"SECRET{bad}X-Injected: 1"
    with pytest.raises(ValueError, match="cannot be sent") as caught:
        request_head(parts["method"], parts["target"], [("Host", "h"), (parts["name"], parts["value"])])
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize("name", ["", "X:", "X Y", "X\tY", "Ä", "Authorization: Bearer SECRET", "(x)", 'x"'])
def test_a_header_name_is_a_token(name: str) -> None:
    """What is no token in the sense of RFC 9110 names no header, and is not shown: it may be a secret."""
    with pytest.raises(ValueError, match="cannot be sent") as caught:
        request_head("GET", "/", [(name, "v")])
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize("target", ["", " ", "/a b", "/\t"])
def test_a_target_has_no_white_space(target: str) -> None:
    """A target that is empty or would end early is refused."""
    with pytest.raises(ValueError, match="target cannot be sent"):
        request_head("GET", target, [])


@pytest.mark.parametrize(("target", "value"), [("/", "€ SECRET"), ("/€", "v"), ("/", "\ud83d")], ids=ascii)
def test_what_is_not_latin_1_is_refused(target: str, value: str) -> None:
    """Characters beyond Latin-1 are refused without showing the value."""
    with pytest.raises(ValueError, match="want Latin-1") as caught:
        request_head("GET", target, [("X", value)])
    assert "SECRET" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


@given(name=st.text(max_size=8), value=st.text(max_size=12), target=st.text(max_size=8))
def test_whatever_is_written_has_as_many_lines_as_headers(name: str, value: str, target: str) -> None:
    """No input adds a line to a request head."""
    try:
        head = request_head("GET", "/" + target, [("Host", "h"), (name, value)])
    except ValueError:
        return
    assert head.count(b"\r\n") == head.count(b"\n") == head.count(b"\r") == 4
    assert head.split(b"\r\n")[0].count(b" ") == 2
