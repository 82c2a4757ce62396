"""At most one generation for one submit, where servers of the OpenAI dialect make that hard to see."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from worker_adapters import EngineUnavailable, OpenAIHttpAdapter, VllmHttpAdapter, WorkerError
from worker_adapters.simulate import Exchange, SimServer

SSE = [("Content-Type", "text/event-stream")]
HALF = {"index": 0, "message": {"content": "half"}, "finish_reason": None}
USED = {"prompt_tokens": 3, "completion_tokens": 500, "total_tokens": 503}
BUSY = {"code": 503, "message": "overloaded"}
OUT_OF_RESOURCES = "insufficient_system_resource"


def whole(value: Any, *headers: tuple[str, str]) -> Callable[[Exchange], None]:
    """An answer in one piece."""
    body = json.dumps(value).encode()
    return lambda exchange: exchange.respond(200, [("Content-Type", "application/json"), *headers], body)


def stream(*chunks: Any) -> Callable[[Exchange], None]:
    """A stream of chunks, well ended."""

    def answer(exchange: Exchange) -> None:
        exchange.head(200, SSE)
        for chunk in chunks:
            exchange.chunk(b"data: " + json.dumps(chunk).encode() + b"\n\n")
        exchange.end()

    return answer


def choice(text: str, reason: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": {"content": text}, "finish_reason": reason}


BEGUN = {
    "an error beside half an answer in one piece": whole({"error": BUSY, "choices": [HALF], "usage": USED}),
    "an answer in one piece without resources": whole(
        {"choices": [{**HALF, "finish_reason": OUT_OF_RESOURCES}], "usage": USED}
    ),
    "an error beside text in the first chunk": stream({"error": BUSY, "choices": [choice("half")]}),
    "a stream that ends without resources at once": stream({"choices": [choice("", OUT_OF_RESOURCES)], "usage": USED}),
    "an error with usage, and the server says retry": whole(
        {"error": BUSY, "choices": [HALF], "usage": USED}, ("x-should-retry", "true")
    ),
}


@pytest.mark.openai
@pytest.mark.parametrize("name", BEGUN)
def test_what_had_begun_is_not_begun_again(name: str) -> None:
    """An error that may be retried is not, where text or a count of tokens stands beside it."""
    with (
        SimServer(BEGUN[name]) as server,
        OpenAIHttpAdapter(server.url, model="m", retry={"base": 0.001}) as engine,
    ):
        with pytest.raises(WorkerError) as caught:
            engine.submit([{"role": "user", "content": "hi"}]).result()
        assert not caught.value.retriable
        assert len(server.requests) == 1


@pytest.mark.openai
def test_text_beside_an_error_is_not_lost() -> None:
    """The last piece of text before an error is delivered, though the error is in the same chunk."""
    with SimServer(BEGUN["an error beside text in the first chunk"]) as server, OpenAIHttpAdapter(server.url) as engine:
        with pytest.raises(EngineUnavailable) as caught:
            engine.submit("hi").result()
        assert (caught.value.tokens_seen, caught.value.partial_text) == (1, "half")


@pytest.mark.vllm
def test_a_slow_identity_loses_no_job() -> None:
    """A server that answers the job and not the question for its version: the job ends well within its clocks."""
    done = threading.Event()

    def handle(exchange: Exchange) -> None:
        if exchange.request.method == "GET":
            done.wait(10)
        else:
            stream({"choices": [{"index": 0, "text": "hi", "finish_reason": "stop"}]})(exchange)

    with SimServer(handle) as server, VllmHttpAdapter(server.url, timeouts={"first_token": 0.3}) as engine:
        try:
            began = time.monotonic()
            assert engine.submit("x").result().text == "hi"
            assert time.monotonic() - began < 5
        finally:
            done.set()


@pytest.mark.openai
def test_each_model_teaches_its_own_name_of_the_limit() -> None:
    """Two models of one server want two names of the token limit; 16 threads at both lose no job."""

    def handle(exchange: Exchange) -> None:
        body = exchange.request.json
        wrong = "max_tokens" if body["model"] == "new" else "max_completion_tokens"
        if wrong in body:
            message = f"Unsupported parameter: '{wrong}' is not supported with this model."
            exchange.json(400, {"error": {"message": message, "code": "unsupported_parameter", "param": wrong}})
            return
        stream({"choices": [choice(body["model"], "stop")]})(exchange)

    failed: list[WorkerError] = []

    def work(number: int) -> None:
        for turn in range(20):
            model = ("new", "old")[(number + turn) % 2]
            try:
                assert engine.submit([{"role": "user", "content": "x"}], model=model).result().text == model
            except WorkerError as error:
                failed.append(error)

    with SimServer(handle) as server, OpenAIHttpAdapter(server.url) as engine:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failed == []
        assert 320 < len(server.requests) <= 320 + 16
