"""TGI's simulator while time passes: the queue, comments, clients that leave, places, a broken shard, silence."""

from __future__ import annotations

import time
from typing import Any

import pytest
import requests

from openai_clients import events_of, recorded, send
from simulate_clients import WAIT, read_all, read_to_error, read_until, split, unchunk
from test_simulate_tgi import tokens_of
from tgi_asking import CHAT, WORDS, generated, post, told
from worker_adapters.simulate import FINISH, Fault, TgiSimulator

pytestmark = pytest.mark.tgi

RECORDINGS = recorded("tgi")
BODY: dict[str, Any] = {"inputs": "Test request", "parameters": {"max_new_tokens": 10, "details": True}}
LONG: dict[str, Any] = {"inputs": "hi", "parameters": {"max_new_tokens": 10**5}}
STREAM = "/generate_stream"


def test_comments_while_it_waits_and_between_tokens() -> None:
    """As in the exchange of a queued request: the head at once, a comment each interval, then the tokens."""
    recording = RECORDINGS["stream-keepalive-queued"]
    comment, *_ = recording.chunks
    tokens = [chunk for chunk in recording.chunks if chunk != comment]
    with TgiSimulator(tokens_of(recording), slots=1, keep_alive=0.02, delay=0.1) as sim:
        first = send(sim, STREAM, {**BODY, "parameters": {"max_new_tokens": 2}})
        assert sim.wait_generations(1, WAIT)
        second = send(sim, STREAM, BODY)
        assert sim.wait_for(lambda: sim.queued == 1, WAIT)
        head, rest = split(read_until(second, b":\n\n"))
        assert b" 200 OK" in head
        assert (sim.queued, sim.generations) == (1, 1)
        chunks = unchunk(rest + read_until(second, b"0\r\n\r\n"))[0]
        assert (chunks[0], [chunk for chunk in chunks if chunk != comment]) == (comment, tokens)
        between = chunks[chunks.index(tokens[0]) : chunks.index(tokens[1])]
        assert comment in between
        for sock in (first, second):
            sock.close()


def test_places() -> None:
    """Requests at work and in the queue have a place each; one more is overloaded at once, wherever it asks."""
    with TgiSimulator(slots=1, max_concurrent_requests=2, delay=30.0) as sim:
        first = send(sim, STREAM, LONG)
        assert sim.wait_generations(1, WAIT)
        queued = send(sim, STREAM, LONG)
        assert sim.wait_for(lambda: sim.queued == 1, WAIT)
        overloaded = {"error": "Model is overloaded", "error_type": "overloaded"}
        assert told(sim, inputs="hi") == [overloaded]
        # The place is taken before the values are looked at.
        assert told(sim, inputs="", parameters={}) == [overloaded]
        answer = post(sim, "/generate", {"inputs": "hi"})
        assert (answer.status_code, answer.json(), "retry-after" in answer.headers) == (429, overloaded, False)
        chat = told(sim, "/v1/chat/completions", messages=CHAT, stream=True)
        assert chat == [{"error": {"message": "Model is overloaded", "http_status_code": 422}}, "[DONE]"]
        assert post(sim, "/v1/chat/completions", {"messages": CHAT}).status_code == 429
        assert sim.generations == 1
        queued.close()
        assert sim.wait_for(lambda: sim.queued == 0, WAIT)
        first.close()
        assert sim.wait_idle(WAIT)
        sim.delay = 0.0
        # Each prompt of a completion takes one.
        prompts = {"prompt": ["a", "b", "c"], "max_tokens": 1, "stream": True}
        events = events_of(post(sim, "/v1/completions", prompts).content)
        assert events[0]["error"]["message"] == "Model is overloaded"
        assert [event["choices"][0]["index"] for event in events[1:-1]] == [0, 1]


def test_a_place_is_free_when_the_body_has_ended() -> None:
    """Requests one after another never meet their own place."""
    with TgiSimulator(WORDS, max_concurrent_requests=1) as sim:
        for _ in range(30):
            assert generated(sim)["details"]["finish_reason"] == "eos_token"
            assert post(sim, "/generate", {"inputs": "hi"}).status_code == 200


def test_a_client_that_leaves_frees_slot_and_permit() -> None:
    """The client's close is seen at once: in the queue, in the prompt, between tokens, and without a stream."""
    for options, path in (
        ({"delay": 30.0}, STREAM),
        ({"prompt_delay": 30.0}, STREAM),
        ({"delay": 30.0}, "/generate"),
        ({"endless": True, "send_buffer": 4096}, STREAM),
    ):
        with TgiSimulator(max_concurrent_requests=1, **options) as sim:
            sock = send(sim, path, LONG)
            assert sim.wait_generations(1, WAIT)
            sock.close()
            left = time.monotonic()
            assert sim.wait_idle(WAIT)
            assert sim.wait_closed(1, WAIT)
            assert sim.closes[0].at - left < WAIT
            sim.delay = sim.prompt_delay = 0.0
            assert generated(sim, max_new_tokens=2)["generated_text"]
            text = requests.get(sim.url + "/metrics", timeout=WAIT).text
            assert 'tgi_request_failure{err="dropped"} 1' in text


def test_the_exchange_of_a_client_that_leaves() -> None:
    """What it saw is the recorded beginning."""
    recording = RECORDINGS["stream-closed-by-client"]
    with TgiSimulator(tokens_of(recording), endless=True, delay=0.02) as sim:
        sock = send(sim, STREAM, BODY)
        chunks = split(read_until(sock, b'"index":3'))[1]
        sock.close()
        assert chunks.startswith(b"".join(b"%x\r\n%b\r\n" % (len(each), each) for each in recording.chunks[:2]))
        assert sim.wait_idle(WAIT)


def test_a_router_that_is_killed() -> None:
    """The body ends without its last chunk and without details, as recorded; afterwards nobody listens."""
    recording = RECORDINGS["stream-cut-by-server"]
    framed = b"".join(b"%x\r\n%b\r\n" % (len(each), each) for each in recording.chunks)
    with TgiSimulator(tokens_of(recording)) as sim:
        sim.misbehave(Fault.cut_after(len(recording.chunks)))
        assert split(read_all(send(sim, STREAM, BODY)))[1] == framed
        sim.delay = 30.0
        running = send(sim, STREAM, BODY)
        assert sim.wait_generations(2, WAIT)
        read_until(running, b"\r\n\r\n")
        sim.kill()
        assert read_to_error(running) == (b"", "ECONNRESET")
        with pytest.raises(requests.ConnectionError):
            requests.get(sim.url + "/health", timeout=WAIT)


def test_a_broken_shard() -> None:
    """Every answer at work ends with the error, on each route in its form, and health is a 503 until it is mended."""
    text = "Request failed during generation: Server error: shard died"
    native = {"error": text, "error_type": "generation"}
    with TgiSimulator(endless=True, delay=0.02) as sim:
        running = send(sim, STREAM, LONG)
        chat = send(sim, "/v1/chat/completions", {"messages": CHAT, "stream": True})
        for sock in (running, chat):
            read_until(sock, b"data:")
        sim.shard_error = "shard died"
        assert events_of(b"\n" + read_until(running, b"0\r\n\r\n"))[-1] == native
        events = events_of(b"\n" + read_until(chat, b"0\r\n\r\n"))
        assert events[-2:] == [{"error": {"message": text, "http_status_code": 422}}, "[DONE]"]
        answer = post(sim, "/generate", {"inputs": "hi"})
        assert (answer.status_code, answer.json()) == (424, native)
        assert requests.get(sim.url + "/health", timeout=WAIT).content == RECORDINGS["health-503"].body
        sim.shard_error = ""
        assert requests.get(sim.url + "/health", timeout=WAIT).status_code == 200
        for sock in (running, chat):
            sock.close()


@pytest.mark.parametrize(
    ("fault", "tokens", "head"),
    [
        (Fault.silent_head(), 0, False),
        (Fault.silent_after_head(), 0, True),
        (Fault.silent_after(3), 3, True),
        (Fault.silent_after(FINISH), 5, True),
        (Fault.comments_only(2, every=0.01), 2, True),
    ],
)
def test_silent_faults_hold_the_slot(fault: Fault, tokens: int, head: bool) -> None:
    """A silent fault sends its share and keeps its slot until the client leaves."""
    with TgiSimulator() as sim:
        sim.misbehave(fault)
        sock = send(sim, STREAM, {"inputs": "a", "parameters": {"max_new_tokens": 5}})
        assert sim.wait_for(lambda: sim.busy == 1, WAIT)
        data = read_until(sock, b'"token"' if tokens else b"\r\n\r\n", tokens or 1) if head else b""
        assert data.count(b'"token"') == tokens
        if fault.kind == "comments":
            read_until(sock, b":\n\n", 3)
        else:
            sock.settimeout(0.05)
            with pytest.raises(TimeoutError):
                sock.recv(1)
        sock.close()
        assert sim.wait_idle(WAIT)


def test_a_silent_head_in_front_of_a_refusal() -> None:
    """A fault that sends no head sends none for a refused request either."""
    with TgiSimulator() as sim:
        sim.misbehave(Fault.silent_head())
        sock = send(sim, STREAM, {"inputs": ""})
        assert sim.wait_for(lambda: sim.generation_requests == 1, WAIT)
        sock.settimeout(0.05)
        with pytest.raises(TimeoutError):
            sock.recv(1)
        sock.close()
