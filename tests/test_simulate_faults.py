"""Every fault does what its name says, seen from the wire."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Iterator

import pytest
import requests

from simulate_clients import (
    RECORDINGS,
    SOON,
    WAIT,
    ask,
    chunks_of,
    read_all,
    read_to_error,
    read_until,
    split,
    stream,
    text_of,
    token_events,
    unchunk,
)
from worker_adapters.simulate import FINISH, Fault, LlamaCppSimulator

pytestmark = pytest.mark.llamacpp


@pytest.fixture
def sim() -> Iterator[LlamaCppSimulator]:
    """A simulated llama.cpp with the defaults."""
    with LlamaCppSimulator() as simulator:
        yield simulator


@pytest.mark.parametrize(
    ("fault", "tokens", "head"),
    [
        (Fault.silent_head(), 0, False),
        (Fault.silent_after_head(), 0, True),
        (Fault.silent_after(3), 3, True),
        (Fault.silent_after(FINISH), 5, True),
        (Fault.half_head(20), 0, False),
        (Fault.stall_at(300), 1, True),
    ],
)
def test_silent_faults_say_so_much_and_notice_the_close(
    sim: LlamaCppSimulator, fault: Fault, tokens: int, head: bool
) -> None:
    """A silent fault sends its share, holds its slot, and frees it at once when the client leaves."""
    sim.misbehave(fault)
    sock = ask(sim)
    assert sim.wait_for(lambda: sim.busy == 1, WAIT)
    data = read_until(sock, b'"stop":', tokens) if tokens else b""
    if head and not tokens:
        data = read_until(sock, b"\r\n\r\n")
    sock.settimeout(0.05)
    rest, error = read_to_error(sock, close=False)
    data += rest
    assert error == "timed out"
    assert token_events(data) == tokens
    assert (b"\r\n\r\n" in data) == head
    left = time.monotonic()
    sock.close()
    assert sim.wait_idle(WAIT)
    assert sim.closes[0].at - left < SOON
    assert sim.closes[0].phase == "answer"


def test_comments_come_for_ever(sim: LlamaCppSimulator) -> None:
    """comments_only sends its tokens, then only comments, each a chunk of its own, until the client leaves."""
    sim.misbehave(Fault.comments_only(after=2, every=0.005))
    sock = ask(sim)
    data = read_until(sock, b"3\r\n:\n\n\r\n", 5)
    assert token_events(data) == 2
    sock.close()
    assert sim.wait_idle(WAIT)


@pytest.mark.parametrize("rst", [False, True])
@pytest.mark.parametrize("offset", [0, 1, 17, 200, 500])
def test_cut_at_ends_after_so_many_bytes(sim: LlamaCppSimulator, offset: int, rst: bool) -> None:
    """cut_at lets exactly so many bytes of the whole answer pass, then ends the connection with a FIN or an RST."""
    sim.misbehave(Fault.cut_at(offset, rst=rst))
    data, error = read_to_error(ask(sim))
    assert len(data) == offset
    assert error == ("ECONNRESET" if rst else None)


@pytest.mark.parametrize(
    ("fault", "tokens", "error"),
    [
        (Fault.close_before_head(), 0, None),
        (Fault.reset_before_head(), 0, "ECONNRESET"),
        (Fault.cut_after(2), 2, None),
        (Fault.cut_after(2, rst=True), 2, "ECONNRESET"),
    ],
)
def test_broken_ends(sim: LlamaCppSimulator, fault: Fault, tokens: int, error: str | None) -> None:
    """A cut comes where it is asked for, with no last chunk, as a FIN or as an RST."""
    sim.misbehave(fault)
    data, code = read_to_error(ask(sim))
    assert (token_events(data), code) == (tokens, error)
    assert not data.endswith(b"0\r\n\r\n")


def test_clean_end_lacks_the_terminal_event(sim: LlamaCppSimulator) -> None:
    """clean_end_after ends the body properly, but without the engine's own end."""
    sim.misbehave(Fault.clean_end_after(2), Fault.clean_end_after(FINISH))
    assert text_of(stream(sim, prompt="hi")) == " the quick"
    events = stream(sim, "/v1/chat/completions", messages=[{"role": "user", "content": "hi"}], max_tokens=2)
    assert events[-1]["choices"][0]["finish_reason"] == "length"  # and no [DONE]


def test_errors_in_the_stream(sim: LlamaCppSimulator) -> None:
    """error_after sends the recorded error event and a clean end; the old form is a line named error."""
    recorded = chunks_of(json.loads(RECORDINGS["error-in-stream-kv-full"].read_text()))[-1]["text"].encode()
    sim.misbehave(Fault.error_after(2), Fault.error_after(1, old=True))
    chunks, _ = unchunk(split(read_all(ask(sim)))[1])
    assert len(chunks) == 3
    assert chunks[-1] == recorded
    chunks, _ = unchunk(split(read_all(ask(sim)))[1])
    assert chunks[-1].startswith(b'error: {"code":500')


@pytest.mark.parametrize("payload", [b"data: {broken\n\n", b"data: \xff\xfe\n\n", b"data: " + b"[" * 5000 + b"\n\n"])
def test_garbage_stands_between_two_events(sim: LlamaCppSimulator, payload: bytes) -> None:
    """garbage_after puts its bytes between two events, and the stream goes on."""
    sim.misbehave(Fault.garbage_after(1, payload))
    chunks, _ = unchunk(split(read_all(ask(sim)))[1])
    assert chunks[1] == payload
    assert token_events(b"".join(chunks)) == 5


def test_a_very_long_line_passes(sim: LlamaCppSimulator) -> None:
    """20 MB in one line reach the client whole."""
    sim.misbehave(Fault.garbage_after(1, b"data: " + b"x" * 20_000_000 + b"\n\n"))
    assert len(read_all(ask(sim))) > 20_000_000


def test_refusals(sim: LlamaCppSimulator) -> None:
    """A status fault sends its status, headers and body; without a body the engine's own form of it."""
    sim.misbehave(
        Fault.status(429, {"error": {"message": "slow down"}}, [("Retry-After", "1.5")]),
        Fault.status(503),
        Fault.html(502),
        Fault.redirect("/elsewhere"),
        Fault.json_200({"ok": True}),
    )
    first, loading, page, moved, whole = (
        requests.post(sim.url + "/completion", json={"prompt": "x"}, timeout=WAIT, allow_redirects=False)
        for _ in range(5)
    )
    assert (first.status_code, first.headers["Retry-After"]) == (429, "1.5")
    assert first.json() == {"error": {"message": "slow down"}}
    assert (loading.status_code, loading.json()["error"]["message"]) == (503, "Loading model")
    assert (page.status_code, page.headers["Content-Type"]) == (502, "text/html")
    assert (moved.status_code, moved.headers["Location"]) == (307, "/elsewhere")
    assert (whole.status_code, whole.json()) == (200, {"ok": True})
    assert (sim.generation_requests, sim.generations) == (5, 0)


@pytest.mark.parametrize(
    "fault",
    [
        Fault.drip(size=7),
        Fault.split_writes(),
        Fault.close_delimited(),
        Fault.gzip(),
        Fault.continue_100(b"HTTP/1.1 100 Continue\r\n\r\n"),
        Fault.slow_tokens(0.002),
        Fault.extra_after_end(),
    ],
)
def test_disguises_change_no_content(sim: LlamaCppSimulator, fault: Fault) -> None:
    """However the bytes are wrapped and split, an HTTP client reads the same events."""
    plain = [event["content"] for event in stream(sim, prompt="hi", n_predict=5)]
    sim.misbehave(fault)
    assert [event["content"] for event in stream(sim, prompt="hi", n_predict=5)] == plain


def test_disguises_on_the_wire(sim: LlamaCppSimulator) -> None:
    """Each disguise shows on the wire as it is named."""
    sim.misbehave(
        Fault.split_writes(sizes=(1, 2), extension=b";a=b", trailers=b"X-End: 1\r\n"),
        Fault.close_delimited(),
        Fault.gzip(),
        Fault.continue_100(),
        Fault.wrong_content_type("text/plain"),
        Fault.extra_after_end(b"LEFT"),
    )
    pieces, closed, zipped, interim, odd, extra = (read_all(ask(sim)) for _ in range(6))
    assert split(pieces)[1].startswith(b"1;a=b\r\nd\r\n2;a=b\r\nat\r\n")
    assert pieces.endswith(b"\r\n0\r\nX-End: 1\r\n\r\n")
    assert b"Transfer-Encoding" not in split(closed)[0]
    assert split(closed)[1].startswith(b"data: {")
    assert b"Content-Encoding: gzip" in zipped
    assert gzip.decompress(b"".join(unchunk(split(zipped)[1])[0])).startswith(b"data: {")
    assert interim.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\n")
    assert b"Content-Type: text/plain\r\n" in odd
    assert unchunk(split(extra)[1])[1] == b"\r\nLEFT"


def test_faults_are_used_up_in_order(sim: LlamaCppSimulator) -> None:
    """Queued faults go first, one a generation request; then the standing one; other requests use none up."""
    sim.always(Fault.status(503))
    sim.misbehave(Fault.status(500), Fault.status(429))
    sim.misbehave(Fault.status(418), path="/health")
    assert requests.get(sim.url + "/props", timeout=WAIT).status_code == 200
    post = [requests.post(sim.url + "/completion", json={"prompt": "x"}, timeout=WAIT).status_code for _ in range(4)]
    assert post == [500, 429, 503, 503]
    assert [requests.get(sim.url + "/health", timeout=WAIT).status_code for _ in range(2)] == [418, 200]
    sim.always(None)
    assert stream(sim, prompt="hi")[-1]["stop"] is True
    with pytest.raises(ValueError, match="counts tokens"):
        sim.misbehave(Fault.silent_after(2), path="/health")
