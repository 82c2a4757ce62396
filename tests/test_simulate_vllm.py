"""The simulated vLLM against recordings of the real one (0.32.0), byte for byte where the model allows it."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest
import requests

from openai_clients import Exchange, play, recorded, send
from simulate_clients import SOON, WAIT, read_all, read_until, split, stream, unchunk
from worker_adapters.simulate import FINISH, Fault, VllmSimulator
from worker_adapters.simulate.recital import SENTENCE

pytestmark = pytest.mark.vllm

RECORDINGS = recorded("vllm")

# Which recordings are not replayed, and why.
NOT_REPLAYED = {
    "a model that reads every prompt for itself": {
        "completion-stream-two-prompts", "abort-route-one-of-two-prompts", "completion-echo", "responses-plain",
    },
    "n answers of which each runs at its own pace": {"completion-stream-n2", "abort-route-n2"},
    "the abort route, the engine's death and the queue are played live below": {
        "abort-route-body-id", "abort-route-chat", "abort-route-nonstream", "abort-route-queued",
        "abort-route-bare-id", "engine-lost-mid-stream", "engine-lost-queued", "sigterm-lost-mid-stream",
        "sigterm-lost-nonstream", "sigterm-lost-queued", "error-queue-full", "keep-alive-comment", "load-tracked",
    },
    "the client went away": {"client-closed-mid-stream", "client-closed-non-stream"},
    "another way to start the server": {"abort-route-dev"},
    "background responses, which no adapter asks for": {
        "responses-background", "responses-background-off", "responses-cancel", "responses-cancel-sync",
        "responses-cancel-unknown", "responses-get",
    },
    "figures of a server that did other things before (their names are compared below)": {
        "metrics", "metrics-after-aborts",
    },
    "a prefix cache, and a prompt that ends in a token of one space": {
        "completion-cached-tokens", "completion-cached-tokens-2",
    },
}  # fmt: skip
SKIPPED = set().union(*NOT_REPLAYED.values())

BYTES = (b"\xc3", b"\xa9", " say", b"\xf0", b"\x9f", b"\xa6", b"\x89")  # the other recorded model's tokens
OPTIONS: dict[str, dict[str, Any]] = {
    "models-two-names": {"aliases": ["recite-alias"]},
    "error-tool-choice": {"tool_parser": False},
    "engine-lost-new-request": {"dead": True},
    "abort-route-call": {"scale_out": True},
    "abort-route-no-key": {"scale_out": True},
    "utf8-stream-cut-mid-character": {"tokens": BYTES},
    "utf8-logprobs": {"tokens": (" owl", *BYTES)},
    "utf8-stream-invalid-byte": {"tokens": (b"\xff", " y", b"\xf0", b"\x9f")},
    "force-include-usage-metrics": {"tokens": BYTES},
    # Cut structured output: the recorded vocabulary can follow none.
    "error-chat-json-object": {"grammars": False},
    "error-mid-stream-chat": {"grammars": False},
    "error-structured-choice": {"grammars": False},
    "error-structured-choice-stream": {"grammars": False},
}


def rest_of(prompt: Any) -> tuple[str, ...]:
    """What the recorded model says after a prompt: the sentence goes on, then ends, then starts over."""
    last = prompt[-1] if isinstance(prompt, list) and prompt else str(prompt).split()[-1:]
    at = last - 2 if isinstance(last, int) else SENTENCE.index(" " + last[0]) + 1 if last else 0
    return SENTENCE[at:]


def usual_options(recording: Exchange) -> dict[str, Any]:
    """The simulator's options that fit a recording: its flags, its key, what its model says."""
    asked, text = recording.asked, recording.body.decode()
    names = [name for name, _ in recording.headers]
    options: dict[str, Any] = {"n_ctx": 512, "idle_timeout": 0.05, "request_id_headers": "x-request-id" in names}
    if recording.status == 401 or "Authorization" in recording.asked_headers:
        options["api_key"] = "test-key"
    options["force_usage"] = options["request_metrics"] = '"metrics":{' in text
    options["prompt_details"] = '"cached_tokens":0' in text and "responses" not in recording.path
    body = asked if isinstance(asked, dict) else {}
    if body.get("prompt") and recording.name not in OPTIONS and recording.status == 200:
        rest = rest_of(body["prompt"])
        goes_on = body.get("ignore_eos") or body.get("min_tokens")
        options["tokens"] = (*rest, "", *(*SENTENCE, "") * 21) if goes_on else rest
    return {**options, **OPTIONS.get(recording.name, {})}


VOLATILE = [
    (r'"((?:chat)?cmpl|resp|msg|modelperm)[-_][0-9a-f]{16}"', r'"\1-X"'),
    (r'"(created|created_at)":\d+', r'"\1":0'),
    (r"vllm-0.32.0-[0-9a-f]{8}", "vllm-0.32.0-X"),
    (r'"(\w+_ms|tokens_per_second)":[0-9.e-]+', r'"\1":0'),
    (r'"token_ids":\[[0-9,]+\]', '"token_ids":[N]'),
    (r'"prompt_token_ids":\[[0-9,]+\]', '"prompt_token_ids":[N]'),
    # Vocabularies of the recorded models differ from the simulator's behind the sentence's words.
    (r'"tokens":\[[0-9,]+\]', '"tokens":[N]'),
]


def settle(text: str) -> str:
    """Replaces what differs between two runs of the same engine: clocks and ids."""
    for pattern, replacement in VOLATILE:
        text = re.sub(pattern, replacement, text)
    return text


@pytest.mark.parametrize("name", [name for name in RECORDINGS if name not in SKIPPED])
def test_recording_is_replayed_byte_for_byte(name: str) -> None:
    """The simulator's head, chunk boundaries and body are those of the real engine, but for clocks and ids."""
    recording = RECORDINGS[name]
    with VllmSimulator(**usual_options(recording)) as simulator:
        status, fields, chunks = play(recording, simulator)
    assert status == recording.status
    assert [settle(chunk.decode()) for chunk in chunks] == [settle(chunk.decode()) for chunk in recording.chunks]
    assert [field[0] for field in fields] == [field[0] for field in recording.headers]
    unmeasured = {"date", "content-length", "x-request-id"}
    assert [field for field in fields if field[0] not in unmeasured] == [
        field for field in recording.headers if field[0] not in unmeasured
    ]


def test_every_recording_is_replayed_or_has_a_reason() -> None:
    """No recording is left out in silence."""
    assert set(RECORDINGS) >= SKIPPED
    assert len(RECORDINGS) - len(SKIPPED) >= 70


# -- what recordings do not hold: queue, abort, death ------------------------------------------------------------------


def chat(simulator: VllmSimulator, **more: Any) -> list[Any]:
    """A streamed chat's events."""
    return stream(simulator, "/v1/chat/completions", messages=[{"role": "user", "content": "hi"}], **more)


def gauge(simulator: VllmSimulator, name: str) -> float:
    """One sample of /metrics."""
    text = requests.get(simulator.url + "/metrics", timeout=WAIT).text
    found = re.search(rf"^vllm:{name}{{[^}}]*}} ([0-9.e+]+)$", text, re.MULTILINE)
    assert found, name
    return float(found[1])


def test_the_head_comes_while_the_request_waits() -> None:
    """200 and the headers come at once; who leaves the queue is forgotten, and the next in it is served."""
    with VllmSimulator(slots=1, endless=True, delay=0.01) as sim:
        first = send(sim, "/v1/completions", {"prompt": "a", "stream": True, "max_tokens": 10**5})
        read_until(first, b"data:")
        gone, second = (send(sim, "/v1/completions", {"prompt": "a", "stream": True, "max_tokens": 2}) for _ in "ab")
        assert b" 200 OK" in read_until(gone, b"\r\n\r\n")
        assert sim.wait_for(lambda: sim.queued == 2, WAIT)
        assert (gauge(sim, "num_requests_running"), gauge(sim, "num_requests_waiting")) == (1, 2)
        gone.close()
        assert sim.wait_for(lambda: sim.queued == 1, WAIT)
        assert sim.generations == 1
        first.close()
        assert read_until(second, b"[DONE]").count(b'"text"') == 2
        second.close()
        assert sim.wait_idle(WAIT)
        assert (sim.generation_requests, sim.generations) == (3, 2)


def test_a_client_that_leaves_frees_the_slot() -> None:
    """The client's close is seen at once, in a pause, in a prompt, without a stream, and when it never reads."""
    body = {"prompt": "a", "max_tokens": 10**5}
    for options, asked in (
        ({"delay": 30.0}, {**body, "stream": True}),
        ({"prompt_delay": 30.0}, {**body, "stream": True}),
        ({"delay": 30.0}, body),
        ({"endless": True}, {**body, "stream": True}),
    ):
        with VllmSimulator(**options, send_buffer=4096) as sim:
            sock = send(sim, "/v1/completions", asked)
            assert sim.wait_generations(1, WAIT)
            sock.close()
            left = time.monotonic()
            assert sim.wait_idle(WAIT)
            assert sim.wait_closed(1, WAIT)
            assert abs(sim.closes[0].at - left) < SOON


@pytest.mark.parametrize(
    ("path", "wrong", "right"),
    [
        ("/v1/completions", "cmpl-job-1", "cmpl-job-1-0"),
        ("/v1/chat/completions", "job-1", "chatcmpl-job-1"),
    ],
)
def test_the_abort_route_wants_the_engine_id(path: str, wrong: str, right: str) -> None:
    """An unknown id is an empty 200 that does nothing; the engine's id ends the stream with finish_reason abort."""
    with VllmSimulator(scale_out=True, endless=True, delay=0.05) as sim:
        body = {"prompt": "a", "messages": [{"role": "user", "content": "a"}], "stream": True, "max_tokens": 10**5}
        sock = send(sim, path, body, headers="X-Request-Id: job-1\r\n")
        read_until(sock, b" quick")
        for name in (wrong, right):
            answer = requests.post(sim.url + "/inference/v1/abort_requests", json={"request_ids": [name]}, timeout=WAIT)
            assert (answer.status_code, answer.content) == (200, b"")
            assert "content-type" not in answer.headers
            if name == wrong:
                read_until(sock, b"data:")
        data = read_until(sock, b"[DONE]")
        assert b'"finish_reason":"abort","stop_reason":null' in data
        sock.close()
        assert sim.wait_idle(WAIT)
        assert gauge(sim, "request_success_total") == 0


def test_the_abort_route_reaches_queued_and_plain_requests() -> None:
    """A queued stream that is aborted is only [DONE], as recorded; a plain answer has its part of the text."""
    with VllmSimulator(scale_out=True, slots=1, delay=0.05, endless=True) as sim:
        abort = sim.url + "/inference/v1/abort_requests"
        plain = send(sim, "/v1/completions", {"prompt": "a", "max_tokens": 10**5, "request_id": "one"})
        assert sim.wait_generations(1, WAIT)
        queued = send(sim, "/v1/completions", {"prompt": "a", "stream": True, "request_id": "two"})
        assert sim.wait_for(lambda: sim.queued == 1, WAIT)
        assert requests.post(abort, json={"request_ids": "cmpl-two-0"}, timeout=WAIT).status_code == 200
        chunks = read_until(queued, b"0\r\n\r\n")
        assert unchunk(split(chunks)[1])[0] == RECORDINGS["abort-route-queued"].chunks
        assert requests.post(abort, json={"request_ids": ["cmpl-one-0"]}, timeout=WAIT).status_code == 200
        head, body = split(read_until(plain, b'"metrics":null}'))
        assert json.loads(body)["choices"][0]["finish_reason"] == "abort"
        assert b" 200 OK" in head
        plain.close()
        queued.close()
        assert sim.wait_idle(WAIT)
        assert requests.post(abort, json={}, timeout=WAIT).status_code == 400


def test_an_engine_that_dies() -> None:
    """Health is 503, open streams get the error event and [DONE], queued ones too, new requests 500."""
    with VllmSimulator(slots=1, delay=0.02, endless=True) as sim:
        running = send(sim, "/v1/completions", {"prompt": "a", "stream": True, "max_tokens": 10**5})
        read_until(running, b"data:")
        queued = send(sim, "/v1/completions", {"prompt": "a", "stream": True})
        assert sim.wait_for(lambda: sim.queued == 1, WAIT)
        sim.dead = True
        assert requests.get(sim.url + "/health", timeout=WAIT).status_code == 503
        lost = RECORDINGS["engine-lost-queued"].chunks
        framed = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in lost) + b"0\r\n\r\n"
        assert read_until(running, b"\r\n0\r\n\r\n").endswith(framed)
        assert unchunk(split(read_until(queued, b"0\r\n\r\n"))[1])[0] == lost
        answer = requests.post(sim.url + "/v1/completions", json={"prompt": "a"}, timeout=WAIT)
        assert answer.content == RECORDINGS["engine-lost-new-request"].body
        for sock in (running, queued):
            sock.close()


def test_a_full_queue_is_refused_before_the_stream() -> None:
    """max_queued answers 503 as recorded, at once."""
    with VllmSimulator(slots=1, max_queued=0, delay=5.0) as sim:
        sock = send(sim, "/v1/completions", {"prompt": "a", "stream": True})
        assert sim.wait_generations(1, WAIT)
        answer = requests.post(sim.url + "/v1/completions", json={"prompt": "a", "stream": True}, timeout=WAIT)
        assert (answer.status_code, answer.content) == (503, RECORDINGS["error-queue-full"].body)
        assert "retry-after" not in answer.headers
        assert gauge(sim, "admission_rejections_total") == 1
        sock.close()


def test_comments_come_in_the_queue_and_between_tokens() -> None:
    """keep_alive_comments sends the recorded comment while nothing else is sent."""
    with VllmSimulator(slots=1, keep_alive_comments=0.02, delay=0.1) as sim:
        first, second = (send(sim, "/v1/completions", {"prompt": "a", "stream": True, "max_tokens": 2}) for _ in "ab")
        comment = RECORDINGS["keep-alive-comment"].chunks[0]
        for sock in (first, second):
            chunks = unchunk(split(read_until(sock, b"0\r\n\r\n"))[1])[0]
            assert chunks[0] == comment
            assert b'"text"' in chunks[-2]
            sock.close()


def test_load_counts_open_requests_if_it_is_told_to() -> None:
    """/load is 0 without tracking."""
    for tracked in (False, True):
        with VllmSimulator(track_load=tracked, delay=5.0) as sim:
            sock = send(sim, "/v1/completions", {"prompt": "a", "stream": True})
            assert sim.wait_generations(1, WAIT)
            assert requests.get(sim.url + "/load", timeout=WAIT).json() == {"server_load": int(tracked)}
            sock.close()


# -- faults ------------------------------------------------------------------------------------------------------------


def test_faults_have_this_engines_form() -> None:
    """Refusals, error events and cuts look as vLLM's own: [DONE] follows an error event, in both generations."""
    body = {"prompt": "a", "stream": True}
    for old in (False, True):
        with VllmSimulator(old=old, idle_timeout=0.05) as sim:
            sim.misbehave(Fault.error_after(2), Fault.status(503), Fault.status(401), Fault.clean_end_after(FINISH))
            chunks = unchunk(split(read_all(send(sim, "/v1/completions", body)))[1])[0]
            assert chunks[3] == b"data: [DONE]\n\n"
            if not old:
                assert chunks[2] == RECORDINGS["error-mid-stream"].chunks[0]
            error = json.loads(chunks[2].removeprefix(b"data: "))
            assert (error if old else error["error"])["code"] == 500
            full = requests.post(sim.url + "/v1/completions", json=body, timeout=WAIT)
            assert full.status_code == 503
            assert (full.json() if old else full.json()["error"])["type"] == "Service Unavailable"
            assert requests.post(sim.url + "/v1/completions", json=body, timeout=WAIT).json() == {
                "error": "Unauthorized"
            }
            ended = unchunk(split(read_all(send(sim, "/v1/completions", body)))[1])[0]
            assert b'"finish_reason":"length"' in ended[-1]


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
    with VllmSimulator() as sim:
        sim.misbehave(fault)
        sock = send(sim, "/v1/completions", {"prompt": "a", "stream": True, "max_tokens": 5})
        assert sim.wait_for(lambda: sim.busy == 1, WAIT)
        data = read_until(sock, b'"text"' if tokens else b"\r\n\r\n", tokens or 1) if head else b""
        assert data.count(b'"text"') == tokens
        sock.settimeout(0.05)
        if fault.kind != "comments":
            with pytest.raises(TimeoutError):
                sock.recv(1)
        sock.close()
        assert sim.wait_idle(WAIT)


# -- what it says ------------------------------------------------------------------------------------------------------


def test_stop_strings_hold_text_back() -> None:
    """Text lags by the longest stop string less one character, as measured with the real engine, and is cut there."""
    with VllmSimulator(SENTENCE[2:]) as sim:
        events = stream(sim, "/v1/completions", prompt="the quick", max_tokens=30, stop=["over a lazy"])
        texts = [event["choices"][0]["text"] for event in events[:-1]]
        assert texts == ["", "", " brown", " fox ", "ju", "mps "]
        assert events[-2]["choices"][0]["stop_reason"] == "over a lazy"
        near = stream(sim, "/v1/completions", prompt="the quick", max_tokens=6, stop=["over a loaf"])
        assert "".join(event["choices"][0]["text"] for event in near[:-1]) == " brown fox jumps over a lazy"


def test_replies_are_made_of_their_prompt() -> None:
    """With tokens=None a reply repeats its own prompt's words up to the limit."""
    with VllmSimulator(None) as sim:
        events = stream(sim, "/v1/completions", prompt="job 7 turn 3", max_tokens=6)
        assert "".join(event["choices"][0]["text"] for event in events[:-1]) == " job 7 turn 3 job 7"


def test_reasoning_comes_first_under_its_own_key() -> None:
    """delta.reasoning in 0.32, delta.reasoning_content in older lines."""
    for old, key in ((False, "reasoning"), (True, "reasoning_content")):
        with VllmSimulator(reasoning=("We", " count"), old=old) as sim:
            deltas = [event["choices"][0]["delta"] for event in chat(sim, max_tokens=4)[1:-1]]
            assert deltas == [{key: "We"}, {key: " count"}, {"content": " the"}, {"content": " quick"}]


def test_n_answers_interleave_by_index() -> None:
    """Each index has its own role chunk and its own finish; one [DONE] ends all; usage counts both."""
    with VllmSimulator() as sim:
        events = chat(sim, max_tokens=3, n=2, stream_options={"include_usage": True})
        recorded_order = [chunk for chunk in RECORDINGS["chat-stream-n2"].chunks if b'"choices"' in chunk]
        expected = [json.loads(chunk.removeprefix(b"data: "))["choices"][0]["index"] for chunk in recorded_order]
        assert [event["choices"][0]["index"] for event in events[:-2]] == expected
        assert events[-2]["usage"]["completion_tokens"] == 6


def test_metrics_have_the_recorded_names() -> None:
    """Every sample is one the real engine has, with the same labels; old names are those of the older line."""
    pattern = re.compile(rb"^(vllm:\w+)\{([^}]*)\}", re.MULTILINE)

    def samples(body: bytes) -> set[tuple[str, str]]:
        return {(name.decode(), re.sub(r'"[^"]*"', "", labels.decode())) for name, labels in pattern.findall(body)}

    with VllmSimulator(model="recite") as sim:
        stream(sim, "/v1/completions", prompt="a", max_tokens=2)
        answer = requests.get(sim.url + "/metrics", timeout=WAIT)
        assert answer.headers["content-type"] == "text/plain; version=1.0.0; charset=utf-8"
        mine, real = samples(answer.content), samples(RECORDINGS["metrics"].body)
        configs = [dict.fromkeys(labels.split(",")) for name, labels in mine | real if name.endswith("config_info")]
        assert set(configs[0]) <= set(configs[1]) or set(configs[1]) <= set(configs[0])
        assert {row for row in mine - real if not row[0].endswith("config_info")} == set()
        assert gauge(sim, "generation_tokens_total") == 2
    with VllmSimulator(old=True, cache_config={"cpu_offload_gb": "4"}) as sim:
        text = requests.get(sim.url + "/metrics", timeout=WAIT).text
        assert "vllm:gpu_cache_usage_perc{" in text
        assert "vllm:kv_cache_usage_perc" not in text
        assert 'cpu_offload_gb="4"' in text
    with VllmSimulator(gauges={'engine_sleep_state{sleep_state="awake"}': 0, "num_preemptions_total": 3}) as sim:
        text = requests.get(sim.url + "/metrics", timeout=WAIT).text
        assert 'vllm:engine_sleep_state{engine="0",model_name="recite",sleep_state="awake"} 0.0' in text
        assert gauge(sim, "num_preemptions_total") == 3


def test_a_browser_may_ask_first() -> None:
    """A preflight needs no key; what a page of another origin may read is said on every answer to it."""
    asked = {"Origin": "http://page", "Access-Control-Request-Method": "POST"}
    with VllmSimulator(api_key="k") as sim:
        url = sim.url + "/v1/chat/completions"
        allowed = requests.options(
            url, headers={**asked, "Access-Control-Request-Headers": "authorization"}, timeout=WAIT
        )
        assert (allowed.status_code, allowed.text) == (200, "OK")
        assert allowed.headers["access-control-allow-origin"] == "*"
        assert allowed.headers["access-control-allow-headers"] == "authorization"
        assert "POST" in allowed.headers["access-control-allow-methods"]
        plain = requests.options(sim.url + "/health", headers={"Origin": "http://page"}, timeout=WAIT)
        assert (plain.status_code, plain.headers["allow"]) == (405, "GET")
        health = requests.get(sim.url + "/health", headers={"Origin": "http://page"}, timeout=WAIT)
        assert health.headers["access-control-allow-origin"] == "*"
        assert "access-control-allow-origin" not in requests.get(sim.url + "/health", timeout=WAIT).headers


def test_a_status_without_words_of_its_own_has_its_phrase() -> None:
    """What the front end raises as an HTTP error is named by its status."""
    with VllmSimulator() as sim:
        sim.misbehave(Fault.status(429))
        refused = requests.post(sim.url + "/v1/chat/completions", json={"messages": []}, timeout=WAIT)
    assert refused.json()["error"] == {
        "message": "Too Many Requests",
        "type": "Too Many Requests",
        "param": None,
        "code": 429,
    }
