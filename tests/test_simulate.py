"""The simulated llama.cpp against recordings of the real one, read by clients that share no code with it."""

from __future__ import annotations

import http.client
import json
import re
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from simulate_clients import (
    RECORDINGS,
    SOON,
    WAIT,
    ask,
    chunks_of,
    read_all,
    read_until,
    split,
    stream,
    text_of,
    token_events,
    unchunk,
)
from worker_adapters.simulate import LlamaCppSimulator

pytestmark = pytest.mark.llamacpp


# Which recordings are not replayed, and why.
NOT_REPLAYED = {
    "the state of the slots and counters depends on what ran before": {
        "slots-after-client-closed", "slots-busy", "slots-fail-on-no-slot-free", "slots-idle", "metrics-busy",
    },
    "a model that reads its prompt, or whose tokens are bytes": {
        "utf8-chat-cut-by-limit", "utf8-cut-by-limit", "utf8-cut-by-limit-json", "prompt-token-ids",
        "completion-json-schema", "json-schema-bad-ref",
    },
    "ignore_eos says another token in place of the end token": {
        "completion-ignore-eos", "completion-context-full", "t-max-predict", "chat-error-in-stream",
        "error-in-stream-kv-full",
    },
    "a part of the API that no adapter uses": {
        "chat-n2", "completion-multi-prompt", "control-unknown-id", "embedding-native-pooled", "embeddings-base64",
        "embeddings-oai", "rerank", "stream-delete", "completion-on-embedding-server",
    },
    "the JSON library's own words about broken JSON": {"error-invalid-utf8-body", "error-lone-surrogate", "error-nan"},
    "another model's chat template and token counts (their shape is compared below)": {
        "chat-reasoning-format-none", "chat-reasoning-json", "chat-tool-call-json",
    },
    "seconds of silence between events": {"ping-long-prompt"},
    "the client went away": {"client-closed", "queued-client-closed"},
    "an older server than the one that is simulated": {"error-tool-call-arguments", "error-tool-without-description"},
}  # fmt: skip
SKIPPED = set().union(*NOT_REPLAYED.values())

REASONING = {"reasoning": ("We count", " sheep", ".", "\n"), "tokens": ("\n", "Forty", " two", "!")}
TOOL_CALL = {"tool_call": ("get_weather", ("{", '"city":', ' "Oslo"', "}"))}
OPTIONS: dict[str, dict[str, Any]] = {
    "chat-reasoning-stream": REASONING,
    "chat-reasoning-json": REASONING,
    "chat-tool-call-stream": TOOL_CALL,
    "chat-tool-call-json": TOOL_CALL,
    "error-501-metrics": {"metrics": False},
    "chat-progress": {"n_ctx": 8192},
    "progress-long-prompt": {"n_ctx": 8192},
}


@pytest.fixture
def sim() -> Iterator[LlamaCppSimulator]:
    """A simulated llama.cpp with the defaults."""
    with LlamaCppSimulator() as simulator:
        yield simulator


VOLATILE = [
    (rb'"timings":\{[^}]*\}', lambda match: re.sub(rb":[-+.e0-9]+", b":N", match[0])),
    (rb'("(?:id_slot|created|cached_tokens|time_ms|cache|processed)":)\d+', rb"\1N"),
    (rb'("id":"(?:chatcmpl-)?)\w{32}"', rb'\1X"'),
    (rb"__media_\w+__", b"__media__"),
    (rb"(llamacpp:\w+) [0-9.]+\n", rb"\1 N\n"),
]


def settle(data: bytes) -> bytes:
    """Replaces what differs between two runs of the same engine: clocks, ids, slots, cache hits."""
    for pattern, replacement in VOLATILE:
        data = re.sub(pattern, replacement, data)  # type: ignore[call-overload, unused-ignore]
    return data


def usual_options(name: str, recording: dict[str, Any]) -> dict[str, Any]:
    """The simulator's options that fit a recording: its model's name, its state, its key."""
    model = re.search(r'"(?:model|model_alias|id)":"([^"]+\.gguf)"', "".join(c["text"] for c in chunks_of(recording)))
    options: dict[str, Any] = {"n_ctx": 512, "model": model[1] if model else "models/recite.gguf"}
    if name.startswith("auth") or "sk-test" in str(recording["request"]["headers"]):
        options["api_key"] = "sk-test"
    return {**options, "loading": name.endswith("loading"), **OPTIONS.get(name, {})}


@pytest.mark.parametrize("name", [name for name in RECORDINGS if name not in SKIPPED])
def test_recording_is_replayed_byte_for_byte(name: str) -> None:
    """The simulator's head, chunk boundaries and body are those of the real engine, but for clocks, ids and slots."""
    recording = json.loads(RECORDINGS[name].read_text())
    asked, expected = recording["request"], recording["response"]
    headers = "".join(f"{key}: {value}\r\n" for key, value in asked["headers"].items())
    with LlamaCppSimulator(**usual_options(name, recording)) as simulator:
        answer = read_all(ask(simulator, asked["path"], asked["body"], method=asked["method"], headers=headers))
    head, body = split(answer)
    status, *fields = head.decode("latin-1").split("\r\n")
    assert status.split()[1] == str(expected["status"])
    unmeasured = {"Content-Length", "Process-Start-Time-Unix"}
    got = [field.split(": ", 1) for field in fields]
    assert [field for field in got if field[0] not in unmeasured] == [
        field for field in expected["headers"] if field[0] not in unmeasured
    ]
    assert [field[0] for field in got] == [field[0] for field in expected["headers"]]
    parts = unchunk(body)[0] if "Transfer-Encoding: chunked" in fields else [body]
    assert [settle(part) for part in parts] == [settle(chunk["text"].encode()) for chunk in chunks_of(recording)]


def shape(value: Any) -> Any:
    """Names in their order and types, without the values."""
    if isinstance(value, dict):
        return [(name, shape(item)) for name, item in value.items()]
    return [shape(item) for item in value] if isinstance(value, list) else type(value).__name__


@pytest.mark.parametrize("name", ["chat-reasoning-json", "chat-tool-call-json"])
def test_recording_has_the_same_shape(name: str) -> None:
    """Where counts depend on the model, the message, the names, their order and types are the real engine's."""
    recording = json.loads(RECORDINGS[name].read_text())
    with LlamaCppSimulator(**usual_options(name, recording)) as simulator:
        asked = recording["request"]
        got = requests.post(simulator.url + asked["path"], json=asked["body"], timeout=WAIT).json()
    expected = json.loads(chunks_of(recording)[0]["text"])
    assert shape(got) == shape(expected)
    for answer in (got, expected):
        for call in answer["choices"][0]["message"].get("tool_calls", []):
            call["id"] = ""
    assert got["choices"] == expected["choices"]


def test_every_recording_is_replayed_or_has_a_reason() -> None:
    """No recording is left out in silence."""
    assert set(RECORDINGS) >= SKIPPED
    assert len(RECORDINGS) - len(SKIPPED) >= 65


@pytest.mark.parametrize("path", ["/completion", "/v1/chat/completions"])
def test_streams_read_the_same_with_other_clients(sim: LlamaCppSimulator, path: str) -> None:
    """requests + sseclient-py and http.client read the same events as the raw bytes hold."""
    body = {"prompt": "hi", "messages": [{"role": "user", "content": "hi"}], "n_predict": 4, "stream": True}
    events = stream(sim, path, **body)
    connection = http.client.HTTPConnection("127.0.0.1", sim.port, timeout=WAIT)
    connection.request("POST", path, json.dumps(body))
    lines = connection.getresponse().read().decode().split("\n\n")
    connection.close()
    assert [line.removeprefix("data: ") for line in lines[:-1]][:3] != []
    assert len(lines) - 1 == len(events)
    if path == "/completion":
        assert text_of(events) == " the quick brown fox"
        assert events[-1]["stop"] is True
        assert events[-1]["stop_type"] == "limit"
    else:
        texts = [event["choices"][0]["delta"].get("content") for event in events[1:-2]]
        assert texts == [" the", " quick", " brown", " fox"]
        assert events[-1] == "[DONE]"


@pytest.mark.parametrize(
    ("stop", "limit", "text", "stop_type"),
    [
        (["fox jumps over"], 40, " the quick brown ", "word"),
        (["fox jumps high"], 8, " the quick brown fox jumps over a lazy", "limit"),
        (["lazy", "brown"], 40, " the quick ", "word"),
        (["fox jumps"], 4, " the quick brown", "limit"),  # recorded: held text is lost when the limit falls into it
    ],
)
def test_stop_strings_hold_text_back(
    sim: LlamaCppSimulator, stop: list[str], limit: int, text: str, stop_type: str
) -> None:
    """A possible stop string is held back and never sent; a near miss comes later, in one piece."""
    events = stream(sim, prompt="hi", n_predict=limit, stop=stop)
    assert text_of(events) == text
    assert events[-1]["stop_type"] == stop_type


def test_full_slots_keep_the_next_request_waiting_in_silence() -> None:
    """Without a free slot nothing is sent, not even the head; a free slot goes to the first who still waits."""
    with LlamaCppSimulator(slots=1, endless=True, delay=0.01) as sim:
        first = ask(sim, body={"prompt": "a", "stream": True})
        read_until(first, b"data:")
        gone, second = ask(sim), None
        assert sim.wait_for(lambda: sim.queued == 1, WAIT)
        second = ask(sim)
        assert sim.wait_for(lambda: sim.queued == 2, WAIT)
        second.settimeout(0.05)
        with pytest.raises(TimeoutError):
            second.recv(1)
        gone.close()
        assert sim.wait_for(lambda: sim.queued == 1, WAIT)
        assert requests.get(sim.url + "/slots?fail_on_no_slot=1", timeout=WAIT).status_code == 503
        assert sim.generations == 1
        first.close()
        second.settimeout(WAIT)
        assert token_events(read_all(second)) == 5
        assert sim.wait_idle(WAIT)
        assert (sim.generation_requests, sim.generations) == (3, 2)


@pytest.mark.parametrize(
    ("options", "body"),
    [
        ({"delay": 30.0}, {"prompt": "a", "stream": True}),
        ({"prompt_delay": 30.0}, {"prompt": "a", "stream": True}),
        ({"delay": 30.0}, {"prompt": "a"}),
        ({"endless": True, "n_ctx": 10**9}, {"prompt": "a", "stream": True}),
    ],
    ids=["between tokens", "prompt", "not streamed", "client does not read"],
)
def test_a_client_that_leaves_frees_the_slot(options: dict[str, Any], body: dict[str, Any]) -> None:
    """In a pause, in a blocked write and without a stream, the client's close is seen at once and the slot is free."""
    with LlamaCppSimulator(**options, send_buffer=4096) as sim:
        sock = ask(sim, body=body)
        assert sim.wait_generations(1, WAIT)
        sock.close()
        left = time.monotonic()
        assert sim.wait_idle(WAIT)
        assert sim.wait_closed(1, WAIT)
        assert abs(sim.closes[0].at - left) < SOON


def test_replies_can_be_told_apart() -> None:
    """With tokens=None a reply is made of its own prompt's words, so replies crossed between threads would show."""
    with LlamaCppSimulator(None, slots=8) as sim:
        texts: dict[int, str] = {}

        def ask_often(number: int) -> None:
            for turn in range(10):
                texts[number * 100 + turn] = text_of(stream(sim, prompt=f"job {number} turn {turn}", n_predict=6))

        threads = [threading.Thread(target=ask_often, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT * 4)
        assert texts == {n * 100 + t: f" job {n} turn {t} job {n}" for n in range(8) for t in range(10)}


def test_loading_sleeping_and_keys() -> None:
    """Loading refuses every path but keys go first; health is public; /slots wakes a sleeping server."""
    with LlamaCppSimulator(api_key="k", loading=True, sleeping=True) as sim:
        key = {"Authorization": "Bearer k"}
        assert requests.get(sim.url + "/nope", timeout=WAIT).status_code == 401
        assert requests.get(sim.url + "/nope", headers=key, timeout=WAIT).status_code == 503
        assert requests.get(sim.url + "/health", timeout=WAIT).status_code == 503
        sim.loading = False
        assert requests.get(sim.url + "/health", timeout=WAIT).json() == {"status": "ok"}
        assert requests.get(sim.url + "/props", headers={"X-Api-Key": "k"}, timeout=WAIT).json()["is_sleeping"] is True
        assert len(requests.get(sim.url + "/slots", headers=key, timeout=WAIT).json()) == 4
        assert requests.get(sim.url + "/props", headers=key, timeout=WAIT).json()["is_sleeping"] is False


def test_pings_come_while_the_prompt_is_worked_on() -> None:
    """sse_ping_interval puts comments into the prompt's wait, behind the head."""
    with LlamaCppSimulator(prompt_delay=1.2) as sim:
        answer = read_all(ask(sim, body={"prompt": "a", "stream": True, "n_predict": 1, "sse_ping_interval": 1}))
        assert unchunk(split(answer)[1])[0][0] == b":\n\n"


def test_a_browser_may_ask_first() -> None:
    """OPTIONS is answered whatever the path, without a key, with the real server's bytes (seen on one)."""
    with LlamaCppSimulator(api_key="k") as sim:
        asked = "Origin: http://page\r\nAccess-Control-Request-Method: POST\r\nConnection: close\r\n"
        answer = read_all(ask(sim, "/v1/chat/completions", method="OPTIONS", headers=asked))
    assert answer == (
        b"HTTP/1.1 200 OK\r\nServer: llama.cpp\r\nAccess-Control-Allow-Origin: http://page\r\n"
        b"Access-Control-Allow-Credentials: true\r\nAccess-Control-Allow-Methods: GET, POST, DELETE, OPTIONS\r\n"
        b"Access-Control-Allow-Headers: *\r\nContent-Type: text/html\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    )


def test_head_has_the_real_head() -> None:
    """HEAD is GET without a body, and one header more (seen on a real server)."""
    with LlamaCppSimulator() as sim:
        answer = read_all(ask(sim, "/health", method="HEAD", headers="Connection: close\r\n"))
    assert answer == (
        b"HTTP/1.1 200 OK\r\nServer: llama.cpp\r\nAccess-Control-Allow-Origin: \r\n"
        b"Content-Type: application/json; charset=utf-8\r\nContent-Length: 15\r\nConnection: close\r\n"
        b"Accept-Ranges: bytes\r\n\r\n"
    )


SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}, "n": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("path", "asked", "said"),
    [
        ("/completion", {"prompt": "a", "json_schema": SCHEMA}, {"city": "the quick brown fox", "n": 7}),
        (
            "/v1/chat/completions",
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}},
            {"city": "the quick brown fox", "n": 7},
        ),
        (
            "/v1/chat/completions",
            {"response_format": {"type": "json_object", "schema": {"enum": ["owl"]}}},
            "owl",
        ),
        ("/v1/chat/completions", {"response_format": {"type": "json_object"}}, {"answer": "the quick brown fox"}),
        ("/v1/chat/completions", {"response_format": {"type": "text"}}, None),
    ],
)
def test_a_schema_is_answered_with_an_instance_of_it(path: str, asked: dict[str, Any], said: Any) -> None:
    """Where the engine holds its answer to a schema by a grammar, clients find what they asked for."""
    with LlamaCppSimulator(("Hi",)) as sim:
        body = {"messages": [{"role": "user", "content": "a"}], **asked}
        answer = requests.post(sim.url + path, json=body, timeout=WAIT).json()
    text = answer["choices"][0]["message"]["content"] if "choices" in answer else answer["content"]
    assert text == "Hi" if said is None else json.loads(text) == said
