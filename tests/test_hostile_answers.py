"""Answers that do not end, have the wrong form, or quote what must not be shown: what is known of them is told."""

import json

import pytest

from worker_adapters import (
    EngineUnavailable,
    InvalidRequest,
    OpenAIHttpAdapter,
    UnknownError,
    WorkerError,
)
from worker_adapters.simulate import SimServer

CHAT = [{"role": "user", "content": "PROMPT-CANARY"}]
ONCE = {"attempts": 1}
KEY = "CANARY-key-0123456789"
WORDS = b'{"error": {"message": "temperature is odd", "param": "temperature"}}'


def refused(handle, **options):
    """The error that an answer gives."""
    with (
        SimServer(handle) as server,
        OpenAIHttpAdapter(server.url, model="m", retry=ONCE, **options) as adapter,
        pytest.raises(WorkerError) as caught,
    ):
        adapter.submit(CHAT).result()
    assert "CANARY" not in str(caught.value) + repr(caught.value)
    return caught.value


def answering(status, body, media_type, *, more=b""):
    """Answers with a body that never ends: ``more`` is announced and does not come."""

    def handle(exchange):
        head = f"HTTP/1.1 {status} X\r\nContent-Type: {media_type}\r\nContent-Length: {len(body + more)}\r\n\r\n"
        exchange.raw(head.encode() + body)
        if more:
            exchange.wait_gone(30)

    return handle


# --- a refusal that does not end


@pytest.mark.parametrize("clock", ["first_token", "total"])
@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        ((400, WORDS, "application/json"), InvalidRequest, "temperature is odd"),
        ((400, WORDS[:20], "application/json"), InvalidRequest, "answered 400"),
        ((500, b"the GPU is on fire", "text/plain"), EngineUnavailable, "the GPU is on"),
        ((200, b"<html>sign in", "text/html"), UnknownError, "answered 200 with text/html"),
    ],
)
def test_a_refusal_that_does_not_end_keeps_its_status(clock, answer, kind, words):
    """A clock that fires while a refusal's body drips does not hide its status, nor what came of its words."""
    error = refused(answering(*answer, more=b"..."), timeouts={clock: 0.3})
    assert type(error) is kind
    assert error.status == answer[0]
    assert words in error.message


def test_a_refusal_that_is_cut_off_shows_no_half_of_a_key():
    """Half a key no longer looks like one: of a text that is cut off, the last word is not shown."""
    half = KEY[: len(KEY) // 2]
    handle = answering(401, f"I do not know {half}".encode(), "text/plain", more=b"...")
    error = refused(handle, api_key=KEY, timeouts={"first_token": 0.3})
    assert error.message.endswith("I do not know")


def test_a_long_refusal_shows_no_half_of_a_key():
    """Secrets are masked before a text is cut to what is shown."""
    words = "x " * 245 + KEY
    error = refused(answering(401, words.encode(), "text/plain"), api_key=KEY)
    assert KEY[:6] not in error.message


def test_a_long_request_id_shows_no_half_of_a_key():
    """The server's name of a request is masked before it is cut."""
    named = "x" * 190 + KEY

    def handle(exchange):
        exchange.respond(429, [("X-Request-Id", named)], b"")

    error = refused(handle, api_key=KEY)
    assert error.request_id is not None
    assert error.request_id.startswith("x")
    assert KEY[:6] not in error.request_id


# --- a content type that quotes


@pytest.mark.parametrize("status", [200, 404, 500])
def test_a_content_type_that_quotes_is_masked(status):
    """Nothing keeps a server from writing a key or a prompt into its Content-Type, which messages show."""
    for said in (KEY, "text/PROMPT-CANARY"):
        error = refused(answering(status, b"", said), api_key=KEY)
        assert "canary" not in error.message.lower()
    with SimServer(answering(500, b"", KEY)) as server, OpenAIHttpAdapter(server.url, api_key=KEY) as adapter:
        assert "canary" not in json.dumps(adapter.health().to_dict()).lower()
