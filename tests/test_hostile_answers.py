"""Answers that do not end, have the wrong form, or quote what must not be shown: what is known of them is told."""

import itertools
import json

import pytest

from worker_adapters import (
    EngineUnavailable,
    InvalidRequest,
    LlamaCppHttpAdapter,
    OpenAIHttpAdapter,
    StreamTruncated,
    UnknownError,
    WorkerError,
    WorkerTimeout,
)
from worker_adapters.cancel import Job
from worker_adapters.contract import Wait
from worker_adapters.simulate import LlamaCppSimulator, SimServer

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


# --- an error that has not the form of a stream


@pytest.mark.parametrize("before", [b"", b'data: {"choices": [{"index": 0, "delta": {"content": "a"}}]}\n\n'])
@pytest.mark.parametrize(
    "said",
    [
        b'{"error": {"message": "no such LoRA", "code": 400}}',
        b'{\n  "error": {\n    "message": "no such LoRA",\n    "code": "400"\n  }\n}\n',
        b'data: {"message": "no such LoRA", "code": 400}\n\n',
        b'data: {"detail": [{"loc": ["body", "lora"], "msg": "no such LoRA"}], "code": 400}\n\ndata: [DONE]\n\n',
    ],
)
def test_a_stream_that_turns_into_an_error_tells_its_words(before, said):
    """A 200 that announces events and then holds a bare JSON error, or one of a gateway's, is that error."""
    error = refused(answering(200, before + said, "text/event-stream"))
    assert not isinstance(error, StreamTruncated)
    assert "no such LoRA" in error.message
    assert error.tokens_seen == bool(before)
    assert not error.retriable


def test_odd_events_before_a_good_end_are_no_error():
    """What looks like an error is one only where the engine never gives its reason for ending."""
    odd = b'data: {"message": "your place in the queue: 3"}\n\n{"detail": "hello"}\n\n'
    good = b'data: {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'
    with (
        SimServer(answering(200, odd + good, "text/event-stream")) as server,
        OpenAIHttpAdapter(server.url, model="m") as adapter,
    ):
        assert adapter.submit(CHAT).result().text == "a"


# --- clocks beside what is not the answer itself


def test_an_answer_whose_counts_are_late_is_whole():
    """Once the engine has given its reason for ending, ``total`` ends the wait for its counts, and the job is good."""
    said = b'data: {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": "stop"}]}\n\n'
    with (
        SimServer(answering(200, said, "text/event-stream", more=b"data: ...")) as server,
        OpenAIHttpAdapter(server.url, model="m", timeouts={"total": 0.5}) as adapter,
    ):
        answer = adapter.submit(CHAT).result()
    assert (answer.text, answer.finish_reason) == ("a", "stop")


def test_the_version_is_asked_for_on_the_clock_of_the_first_token():
    """No other phase comes between the answer's head and its first token: the first job waits as long as any."""
    with LlamaCppSimulator() as server, LlamaCppHttpAdapter(server.url) as adapter:
        phases = []
        for step in adapter.attempt(adapter.check("x"), Job("j")):
            if isinstance(step, list):
                break
            phases.append(step.phase)
            assert step.block(10)
    assert [phase for phase, _ in itertools.groupby(phases)] == ["connect", "first_token"]
    assert any(request.method == "GET" for request in server.requests)


@pytest.mark.parametrize("clock", ["first_token", "total"])
def test_a_clock_that_fires_while_the_version_is_asked_for(clock):
    """``first_token`` gives the question up, and the answer that lies there counts; ``total`` ends the job."""
    said = (
        b'data: {"index":0,"content":"a","stop":true,"stop_type":"eos","tokens_predicted":1,"tokens_evaluated":1}\n\n'
    )
    answer = answering(200, said, "text/event-stream")

    def handle(exchange):
        if exchange.request.method == "GET":
            exchange.wait_gone(30)
        else:
            answer(exchange)

    with SimServer(handle) as server, LlamaCppHttpAdapter(server.url) as adapter:
        steps = adapter.attempt(adapter.check("x"), Job("j"))
        step = next(steps)
        while not any(request.method == "GET" for request in server.requests):
            assert isinstance(step, Wait)
            step.block(0.05)
            step = next(steps)
        fired = WorkerTimeout(clock=clock, message="late")
        if clock == "total":
            with pytest.raises(WorkerTimeout):
                steps.throw(fired)
        else:
            started, token = steps.throw(fired)
            assert (started.engine_version, token.text) == ("unknown", "a")
        steps.close()
