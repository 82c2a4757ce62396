"""Recordings of a real vLLM, played back through the adapter in many pieces: frames and errors they call for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from replay import WAIT, WAYS, Recording, ReplayServer, recordings
from verdicts import Bad, Good, check_bad, check_cuts, check_good
from worker_adapters.adapters.base import HttpAdapter
from worker_adapters.adapters.openai import OpenAIHttpAdapter
from worker_adapters.adapters.vllm import VllmHttpAdapter
from worker_adapters.errors import (
    AuthenticationFailed,
    CapacityExceeded,
    ContextOverflow,
    EngineUnavailable,
    InvalidRequest,
    ModelNotFound,
    StreamTruncated,
    WorkerError,
)
from worker_adapters.frames import StartedFrame, TokenFrame
from worker_adapters.timeouts import Timeouts

pytestmark = pytest.mark.vllm

RECORDINGS = recordings("vllm")
GETS = {"/version": RECORDINGS["version"], "/v1/models": RECORDINGS["models"], "/metrics": RECORDINGS["metrics"]}
CLOCKS = Timeouts(connect=WAIT, first_token=WAIT, between_tokens=WAIT, total=3 * WAIT)

#: The toy model knows one text by heart, a word a token, and begins again after it.
TEXT = (
    "the quick brown fox jumps over a lazy dog while seven wise owls watch from old oak trees and hum softly"
    " until dawn breaks"
)
#: Its other one, which byte tokens make up: what is no whole character yet makes an empty delta.
BYTES = " owl" + "|é| say|🦉| and|日| done" * 6


def recited(first: int, count: int, between: str = "|") -> str:
    """So many words of it from one on."""
    words = TEXT.split()
    return between.join(f" {words[at % len(words)]}" for at in range(first, first + count))


# Streams that end well. Without stream_options.include_usage vLLM tells no counts.
STREAMS: dict[str, Good] = {
    "abort-route-bare-id": Good(recited(2, 58), "length"),  # the abort asked for matched nothing
    "abort-route-one-of-two-prompts": Good(recited(2, 29), "length"),
    "chat-stream": Good(recited(0, 5), "length"),
    "chat-stream-logprobs": Good(recited(0, 2), "length"),
    "chat-stream-n2": Good(recited(0, 3), "length"),  # of several choices, the first
    "chat-stream-usage": Good(recited(0, 4), "length", (3, 4)),
    "completion-stream": Good(recited(2, 6), "length"),
    "completion-stream-eos": Good(recited(22, 2), "stop"),
    "completion-stream-min-tokens": Good(" breaks| the| quick| brown| fox", "length"),
    "completion-stream-n2": Good(recited(2, 4), "length", (2, 8)),
    "completion-stream-stop-included": Good(recited(2, 6), "stop"),
    "completion-stream-stop-token": Good(recited(2, 3), "stop"),
    "completion-stream-token-ids": Good(recited(2, 4), "length"),
    "completion-stream-two-prompts": Good(recited(2, 3), "length"),
    "completion-stream-usage": Good(recited(2, 6), "length", (2, 6)),
    "completion-stream-usage-continuous": Good(recited(2, 4), "length", (2, 4)),
    "force-include-usage-metrics": Good("é| say", "length", (1, 3)),
    "keep-alive-comment": Good(recited(2, 3), "length"),
    "responses-stream": Good(recited(0, 3), "length", (3, 3), raw="max_output_tokens"),
    "utf8-logprobs": Good(" owl|é| say", "length", (2, 6)),
    "utf8-stream-cut-mid-character": Good("é| say", "length", (1, 5)),
    "utf8-stream-invalid-byte": Good("\ufffd y", "length", (1, 4)),
}

LOST = "EngineCore encountered an issue"
INTERNAL = "Internal server error"

# Streams that fail. [DONE] follows each of them, and proves nothing.
BROKEN_STREAMS: dict[str, Bad] = {
    "abort-route-body-id": Bad(StreamTruncated, pieces=recited(2, 18), words="abort"),
    "abort-route-chat": Bad(StreamTruncated, pieces=recited(0, 19), words="abort"),
    "abort-route-n2": Bad(StreamTruncated, pieces=recited(2, 19), words="abort"),
    "abort-route-queued": Bad(StreamTruncated),  # nothing but [DONE]
    "client-closed-mid-stream": Bad(StreamTruncated, pieces=recited(2, 5)),
    "engine-lost-mid-stream": Bad(EngineUnavailable, 500, pieces=recited(2, 33), words=LOST),
    "engine-lost-queued": Bad(EngineUnavailable, 500, words=LOST),
    "error-mid-stream": Bad(EngineUnavailable, 500, words=INTERNAL),
    "error-mid-stream-chat": Bad(EngineUnavailable, 500, began=True, words=INTERNAL),
    "error-structured-choice-stream": Bad(EngineUnavailable, 500, words=INTERNAL),
    "sigterm-lost-mid-stream": Bad(EngineUnavailable, 500, pieces="|".join(BYTES.split("|")[:35]), words=LOST),
    "sigterm-lost-queued": Bad(EngineUnavailable, 500, pieces="|".join(BYTES.split("|")[:15]), words=LOST),
}

# One-shot answers, which a server that ignores ``stream`` gives: one token frame with all of it.
ANSWERS: dict[str, Good] = {
    "chat-clamped-to-window": Good(recited(0, 486, ""), "length", (6, 506)),  # twenty of its tokens are invisible
    "chat-max-completion-tokens": Good(recited(0, 2, ""), "length", (3, 2)),
    "chat-null-max-tokens": Good(recited(0, 24, ""), "stop", (2, 25)),
    "chat-plain": Good(recited(0, 6, ""), "length", (3, 6)),
    "chat-unknown-role": Good(recited(0, 2, ""), "length", (2, 2)),
    "completion-cached-tokens": Good(" the", "length", (301, 1)),
    "completion-cached-tokens-2": Good(" the", "length", (301, 1)),
    "completion-clamped-to-window": Good(recited(1, 482, ""), "length", (10, 502)),
    "completion-default-max-tokens": Good(recited(1, 16, ""), "length", (1, 16)),
    "completion-echo": Good("the quick brown fox jumps", "length", (3, 2)),
    "completion-ignore-eos-min-tokens": Good(" breaks the quick brown fox", "length", (2, 6)),
    "completion-plain": Good(recited(2, 6, ""), "length", (2, 6)),
    "completion-request-id-body": Good(recited(2, 2, ""), "length", (2, 2)),
    "completion-request-id-header": Good(recited(2, 2, ""), "length", (2, 2)),
    "completion-seeded": Good(recited(2, 8, ""), "length", (2, 8)),
    "completion-unknown-field": Good(" quick", "length", (1, 1)),
    "request-id-body-vs-header": Good(recited(2, 2, ""), "length", (2, 2)),
    "request-id-header-echo": Good(recited(2, 2, ""), "length", (2, 2)),
    "request-id-header-generated": Good(recited(2, 2, ""), "length", (2, 2)),
    "responses-plain": Good(" owlé say", "length", (2, 4), raw="max_output_tokens"),
}


def invalid(field: str | None, words: str, status: int = 400) -> Bad:
    return Bad(InvalidRequest, status, further={"field": field}, words=words)


def overflow(field: str, prompt_tokens: int | None) -> Bad:
    further = {"field": field, "prompt_tokens": prompt_tokens, "context_size": 512}
    return Bad(ContextOverflow, 400, further=further, words="maximum context length is 512 tokens")


# Refusals. ``param`` names the field, as "body.stop" where the validator of the whole body found it.
REFUSALS: dict[str, Bad] = {
    "abort-route-disabled": Bad(AuthenticationFailed, 403, words="Scale-out endpoints are disabled"),
    "abort-route-legacy": Bad(ModelNotFound, 404, words="Not Found"),
    "abort-route-no-key": Bad(AuthenticationFailed, 401, words="Unauthorized"),
    "completion-max-tokens-zero": invalid("max_tokens", "must be at least 1"),
    "engine-lost-new-request": Bad(EngineUnavailable, 500, words=LOST),
    "error-bad-json": invalid(None, "JSON decode error"),  # body.20 is a column, no field
    "error-bad-stop-token": invalid("allowed_token_ids", "out-of-vocab"),
    "error-bad-temperature": invalid("temperature", "must be non-negative"),
    "error-chat-json-object": Bad(EngineUnavailable, 500, words=INTERNAL),
    "error-context-overflow": overflow("input_tokens", 600),
    "error-context-overflow-text": overflow("input_text", None),  # it counted characters only
    "error-empty-messages": invalid(None, "empty conversation"),
    "error-empty-prompt": invalid("prompt", "must be provided"),
    "error-method-not-allowed": invalid(None, "Method Not Allowed", 405),
    "error-min-tokens": invalid(None, "min_tokens must be less"),
    "error-missing-messages": invalid("messages", "Field required"),
    "error-missing-prompt": invalid("prompt", "must be provided"),
    "error-no-api-key": Bad(AuthenticationFailed, 401, words="Unauthorized"),
    "error-queue-full": Bad(CapacityExceeded, 503, retriable=True, words="currently busy"),
    "error-structured-choice": Bad(EngineUnavailable, 500, words=INTERNAL),
    "error-structured-regex": Bad(EngineUnavailable, 500, words=INTERNAL),
    "error-token-id-range": invalid(None, "Token id 99999 is out of vocabulary"),
    "error-too-many-stops": invalid("stop", "at most 4 items"),
    "error-tool-choice": invalid(None, "--enable-auto-tool-choice"),
    "error-unknown-model": Bad(ModelNotFound, 404, words="The model `nope` does not exist"),
    "error-unknown-model-stream": Bad(ModelNotFound, 404, words="The model `nope` does not exist"),
    "error-wrong-api-key": Bad(AuthenticationFailed, 401, words="Unauthorized"),
    "models-no-api-key": Bad(AuthenticationFailed, 401, words="Unauthorized"),
    "responses-background-off": invalid("background", "does not support the background mode"),
    "responses-cancel-sync": invalid("response_id", "Cannot cancel"),
    "responses-cancel-unknown": Bad(ModelNotFound, 404, words="not found"),
    "server-info-404": Bad(ModelNotFound, 404, words="Not Found"),
    "sigterm-lost-nonstream": Bad(EngineUnavailable, 500, words=LOST),
}

# 200, but the answer was cut short, or is no answer to a job at all.
ABORTED = "abort-route-nonstream"
NO_ANSWERS = (
    "abort-route-call", "abort-route-dev", "client-closed-non-stream", "detokenize", "load-tracked", "load-untracked",
    "ping", "responses-background", "responses-cancel", "responses-get", "tokenize", "tokenize-chat",
)  # fmt: skip
#: What is asked for by GET, and tested as that below.
TOLD = ("metrics", "metrics-after-aborts", "models", "models-two-names", "version")


@pytest.fixture
def server() -> Iterator[ReplayServer]:
    with ReplayServer(dict(GETS)) as running:
        yield running


@pytest.fixture
def vllm(server: ReplayServer) -> Iterator[VllmHttpAdapter]:
    with VllmHttpAdapter(server.url, timeouts=CLOCKS, retry={"attempts": 1}) as adapter:
        yield adapter


@pytest.fixture
def responses(server: ReplayServer) -> Iterator[OpenAIHttpAdapter]:
    options: dict[str, Any] = {"api": "responses", "model": "recite", "timeouts": CLOCKS, "retry": {"attempts": 1}}
    with OpenAIHttpAdapter(server.url, **options) as adapter:
        yield adapter


@pytest.fixture
def engine(name: str, vllm: VllmHttpAdapter, responses: OpenAIHttpAdapter) -> HttpAdapter:
    """The adapter that the recording of this test belongs to."""
    return responses if name.startswith("responses-") else vllm


def task_of(recording: Recording) -> dict[str, Any]:
    """A task like the recorded request: a conversation on the chat path, a prompt anywhere else."""
    asked = recording.asked if isinstance(recording.asked, dict) else {}
    if not recording.path.startswith("/v1/chat"):
        return {"task": "my prompt"}
    return {"task": [{"role": "user", "content": "my prompt"}], "logprobs": asked.get("top_logprobs")}


def finish_in(recording: Recording) -> bytes:
    """The event with the first choice's reason for ending, as it stands in the body."""
    marks = (b'"finish_reason":"', b"event: response.completed")
    events = [event for event in recording.body.split(b"\n\n") if any(mark in event for mark in marks)]
    return next(event for event in events if b'"index":1' not in event) + b"\n\n"


def test_every_recording_stands_in_a_table() -> None:
    """No recording is left out, and each is what its table says."""
    streams = {*STREAMS, *BROKEN_STREAMS}
    assert {name for name, recording in RECORDINGS.items() if recording.is_stream} == streams
    assert {name for name, recording in RECORDINGS.items() if (recording.status or 0) >= 400} == set(REFUSALS)
    assert set(RECORDINGS) == {*streams, *REFUSALS, *ANSWERS, ABORTED, *NO_ANSWERS, *TOLD}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", STREAMS)
def test_a_recorded_stream_gives_its_frames(name: str, way: str, server: ReplayServer, engine: HttpAdapter) -> None:
    """However its bytes are cut, a stream gives started, its texts, and an end with the reason and what was counted."""
    server.answer = RECORDINGS[name].cut(way)
    check_good(engine.submit(**task_of(RECORDINGS[name])), STREAMS[name], engine.engine)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", BROKEN_STREAMS)
def test_a_recorded_failure_keeps_what_came_before(
    name: str, way: str, server: ReplayServer, engine: HttpAdapter
) -> None:
    """An error in a stream, an abort or a loss is one typed error that holds what was delivered, despite its [DONE]."""
    server.answer = RECORDINGS[name].cut(way)
    check_bad(engine.submit(**task_of(RECORDINGS[name])), BROKEN_STREAMS[name], engine.engine)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", REFUSALS)
def test_a_recorded_refusal_is_its_typed_error(name: str, way: str, server: ReplayServer, engine: HttpAdapter) -> None:
    """A refusal has the class and fields that vLLM's page calls for, and the request id that its header tells."""
    server.answer = RECORDINGS[name].cut(way)
    error = check_bad(engine.submit(**task_of(RECORDINGS[name])), REFUSALS[name], engine.engine)
    assert error.request_id == (RECORDINGS[name].header("x-request-id") or None)
    assert [method for method, _, _ in server.asked] == ["POST"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ANSWERS)
def test_a_recorded_answer_in_one_piece_gives_its_frames(
    name: str, way: str, server: ReplayServer, engine: HttpAdapter
) -> None:
    """A JSON answer where a stream was asked for is started, one token and an end with exact counts."""
    server.answer = RECORDINGS[name].cut(way)
    check_good(engine.submit(**task_of(RECORDINGS[name])), ANSWERS[name], engine.engine)


@pytest.mark.parametrize("way", WAYS)
def test_an_aborted_answer_in_one_piece_is_truncated(way: str, server: ReplayServer, vllm: VllmHttpAdapter) -> None:
    """200 with finish_reason "abort" is a failure that holds the text so far."""
    server.answer = RECORDINGS[ABORTED].cut(way)
    check_bad(vllm.submit("my prompt"), Bad(StreamTruncated, pieces=recited(2, 18, ""), words="abort"), "vllm")


@pytest.mark.parametrize("name", NO_ANSWERS)
def test_what_answers_no_job_is_never_a_good_end(name: str, server: ReplayServer, engine: HttpAdapter) -> None:
    """A 200 without a choice, or with a response that is queued or cancelled, is a typed error that is not retried."""
    server.answer = RECORDINGS[name].pieces()
    with pytest.raises(WorkerError) as caught:
        engine.submit("my prompt").result()
    assert not isinstance(caught.value, InvalidRequest)
    assert (caught.value.retriable, caught.value.partial_text) == (False, "")


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_cut_anywhere_ends_in_order(name: str, server: ReplayServer, engine: HttpAdapter) -> None:
    """Wherever vLLM dies, there is a typed error or, after its reason for ending, a good end."""
    recording = RECORDINGS[name]
    engine.engine_version()
    check_cuts(server, engine, recording, STREAMS[name], finish=finish_in(recording), task=task_of(recording))


@pytest.mark.parametrize("name", ["completion-plain", "chat-plain", "responses-plain", "error-queue-full"])
def test_an_answer_in_one_piece_cut_anywhere_is_never_a_good_end(
    name: str, server: ReplayServer, engine: HttpAdapter
) -> None:
    """Half a JSON answer is a typed error; half a refusal keeps the class that its status calls for."""
    recording = RECORDINGS[name]
    whole = b"".join(recording.pieces())
    for size in range(0, len(whole), 7):
        server.answer = [whole[:size]]
        with pytest.raises(WorkerError) as caught:
            engine.submit(**task_of(recording)).result()
        assert not isinstance(caught.value, InvalidRequest), f"cut at {size}: {caught.value!r}"
        assert recording.status == 503 or caught.value.retriable is False, f"cut at {size}"


@pytest.mark.parametrize(("name", "count"), [("chat-stream-logprobs", 2), ("utf8-logprobs", 3)])
def test_logprobs_come_with_their_tokens(name: str, count: int, server: ReplayServer, vllm: VllmHttpAdapter) -> None:
    """Asked for logprobs, every token has its own."""
    server.answer = RECORDINGS[name].pieces()
    frames = list(vllm.submit(**task_of(RECORDINGS[name])))
    assert [frame.logprob for frame in frames if isinstance(frame, TokenFrame)] == [0.0] * count


# --- what is asked for by GET


def test_the_identity_is_asked_for_once(server: ReplayServer, vllm: VllmHttpAdapter) -> None:
    """The first job asks for version and model, later ones have them from the cache; the model is the served name."""
    server.answer = RECORDINGS["completion-stream"].pieces()
    for _ in range(3):
        started = next(iter(vllm.submit("my prompt")))
        assert isinstance(started, StartedFrame)
        assert (started.engine, started.engine_version, started.model) == ("vllm", "0.32.0", "recite")
    asked = [path for method, path, _ in server.asked if method == "GET"]
    assert asked.count("/version") == 1
    assert asked.count("/v1/models") == 1


def test_the_version_is_what_vllm_says(vllm: VllmHttpAdapter) -> None:
    """GET /version, which needs no key."""
    assert vllm.engine_version() == "0.32.0"


@pytest.mark.parametrize(
    ("models", "metrics"), [("models", "metrics"), ("models-two-names", "metrics"), ("models", "metrics-after-aborts")]
)
def test_props_are_what_the_recordings_tell(models: str, metrics: str) -> None:
    """Version, first served name, window, and both queues; residency is unknown, since no vLLM tells it by default."""
    gets = {"/version": RECORDINGS["version"], "/v1/models": RECORDINGS[models], "/metrics": RECORDINGS[metrics]}
    with ReplayServer(gets) as server, VllmHttpAdapter(server.url, timeouts=CLOCKS) as vllm:
        props = vllm.props()
    assert (props.engine, props.engine_version, props.model) == ("vllm", "0.32.0", "recite")
    assert (props.context_size, props.running, props.waiting) == (512, 0, 0)
    assert props.residency == "unknown"
    assert props.slots_total is None
    assert props.raw["/v1/models"] == json.loads(RECORDINGS[models].body)


@pytest.mark.parametrize("missing", ["/metrics", "/v1/models"])
def test_props_leave_out_what_is_not_told(missing: str) -> None:
    """What a server does not offer (a proxy hides /metrics, say) is None, never a guess."""
    gets = {**GETS, missing: RECORDINGS["server-info-404"]}
    with ReplayServer(gets) as server, VllmHttpAdapter(server.url, timeouts=CLOCKS, retry={"attempts": 1}) as vllm:
        try:
            props = vllm.props()
        except ModelNotFound:
            assert missing == "/v1/models"
            return
    assert (props.running, props.waiting) == (None, None)
    assert props.model == "recite"


def test_props_without_the_key_are_refused() -> None:
    """A server that wants a key says so by a typed error."""
    gets = {**GETS, "/v1/models": RECORDINGS["models-no-api-key"]}
    with (
        ReplayServer(gets) as server,
        VllmHttpAdapter(server.url, timeouts=CLOCKS) as vllm,
        pytest.raises(AuthenticationFailed) as caught,
    ):
        vllm.props()
    assert (caught.value.status, caught.value.engine, caught.value.retriable) == (401, "vllm", False)


@pytest.mark.parametrize(
    ("answer", "state"),
    [("ping", "healthy"), ("engine-lost-new-request", "degraded"), ("error-queue-full", "degraded")],
)
def test_health_is_what_the_status_says(answer: str, state: str) -> None:
    """GET /health is 200 with an empty body (as its alias /ping), or a status that is no readiness."""
    with ReplayServer({"/health": RECORDINGS[answer]}) as server, VllmHttpAdapter(server.url) as vllm:
        health = vllm.health()
    assert health.ready is (state == "healthy")
    assert (health.state == "healthy") is health.ready
