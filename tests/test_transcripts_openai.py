"""Streams and errors of servers that speak the OpenAI dialect, played back in many pieces: frames and errors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from replay import WAIT, WAYS, Recording, ReplayServer, recordings
from verdicts import Bad, Good, check_bad, check_cuts, check_good
from worker_adapters.adapters.openai import OpenAIHttpAdapter
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
from worker_adapters.frames import TokenFrame, ToolCall, ToolCallFrame
from worker_adapters.timeouts import Timeouts

pytestmark = pytest.mark.openai

RECORDINGS = recordings("openai")
CLOCKS = Timeouts(connect=WAIT, first_token=WAIT, between_tokens=WAIT, total=3 * WAIT)
REQUEST_ID = "req_7f0c0d2b4f0e4b7a9b1f"

# Streams that end well.
STREAMS: dict[str, Good] = {
    "azure-chat-stream-filters": Good("Hello| there", "stop"),
    "groq-chat-stream": Good("Hi", "stop", (18, 2)),
    "litellm-chat-stream-vllm": Good(" the| quick| brown| fox| jumps| over| a| lazy", "length"),
    "litellm-reasoning": Good("the| quick", "stop", reasoning="think|think2"),
    "llamacpp-chat-stream-usage": Good(" the| quick| brown| fox", "length", (42, 4)),
    "openai-chat-stream-content-filter": Good("First", "content_filter"),
    "openai-chat-stream-logprobs": Good("Hi| \N{SLIGHTLY SMILING FACE}", "stop"),
    "openai-chat-stream-refusal": Good("I'm sorry|, I can't help with that.", "stop"),
    "openai-chat-stream-tool-calls": Good(
        "",
        "tool_calls",
        calls=(
            ToolCall("call_abc123", "get_current_weather", '{"location":"Boston, MA"}'),
            ToolCall("call_def456", "get_current_weather", '{"location":"Paris"}'),
        ),
    ),
    "openai-chat-stream-usage": Good("Hello| there|!", "stop", (19, 3)),
    "openai-responses-stream": Good("Hi| there!", "stop", (37, 11), raw="completed"),
    "vllm-chat-stream-usage": Good(" the| quick| brown| fox", "length", (4, 4)),
    "vllm-responses-stream": Good(
        " the| quick| brown| fox| jumps| over| a| lazy| dog| while| seven| wise| owls| watch| from| old",
        "length",
        (3, 16),
        raw="max_output_tokens",  # in a response.completed, so the status decides
    ),
}

# Streams that fail after they began.
BROKEN_STREAMS: dict[str, Bad] = {
    "litellm-closed-by-client": Bad(StreamTruncated, pieces="the| quick| w0"),
    "litellm-upstream-drop": Bad(EngineUnavailable, 500, pieces="the| quick", words="litellm.APIConnectionError"),
    "litellm-upstream-error-event": Bad(EngineUnavailable, 500, pieces="the| quick", words="The server had an error"),
    "ollama-stream-runner-died": Bad(StreamTruncated, pieces="the| quick"),  # one empty delta, and a clean end
    "openai-stream-error-event": Bad(EngineUnavailable, pieces="Hello", words="The server had an error"),
    "openrouter-midstream-error": Bad(EngineUnavailable, pieces="Hel|lo", words="Provider disconnected unexpectedly"),
    "sglang-stream-abort-error": Bad(EngineUnavailable, 503, pieces="the", words="Request timed out"),
}

# Refusals.
REFUSALS: dict[str, Bad] = {
    "azure-400-content-filter": Bad(
        InvalidRequest, 400, further={"field": "prompt", "request_id": "8f5d-redacted"}, words="content management"
    ),
    "litellm-429": Bad(
        CapacityExceeded,
        429,
        retriable=True,
        further={"retry_after_ms": 6500, "request_id": "bc5f3a4d-56c6-4f65-87cf-fb9682491cc0"},
        words="Rate limit reached",
    ),
    "litellm-bad-model": Bad(ModelNotFound, 400, further={"field": None}, words="Invalid model name"),  # in words only
    "litellm-no-key": Bad(EngineUnavailable, 500, further={"request_id": None}),  # text/plain: it says no more
    "litellm-upstream-down": Bad(EngineUnavailable, 500, words="Connection error"),
    "mistral-429-flat": Bad(CapacityExceeded, 429, retriable=True, words="Rate limit exceeded"),
    "ollama-503-queue-full": Bad(CapacityExceeded, 503, retriable=True, words="maximum pending requests exceeded"),
    "openai-400-context-length": Bad(
        ContextOverflow,
        400,
        further={"field": "messages", "prompt_tokens": 9001, "context_size": 8192, "request_id": REQUEST_ID},
        words="maximum context length is 8192 tokens",
    ),
    "openai-401": Bad(AuthenticationFailed, 401, further={"request_id": REQUEST_ID}, words="Incorrect API key"),
    "openai-404-model": Bad(ModelNotFound, 404, further={"request_id": REQUEST_ID}, words="`nope` does not exist"),
    "openai-429-insufficient-quota": Bad(
        CapacityExceeded, 429, further={"request_id": REQUEST_ID}, words="exceeded your current quota"
    ),
    "openai-503-overloaded": Bad(
        CapacityExceeded,  # server_is_overloaded
        503,
        retriable=True,
        further={"retry_after_ms": 5000, "request_id": REQUEST_ID},
        words="temporarily overloaded",
    ),
    "trtllm-400-flat": Bad(ContextOverflow, 400, words="The prompt length exceeds the limit"),
    "vllm-bad-model-404": Bad(ModelNotFound, 404, further={"field": "model"}, words="Valid aliases: recite"),
}
#: 200 with an error in place of an answer.
WRONG_PATH = "lmstudio-wrong-path-200"


@pytest.fixture
def server() -> Iterator[ReplayServer]:
    with ReplayServer({}) as running:
        yield running


@pytest.fixture
def name() -> str:
    """What a test that is about no recording is about: chat."""
    return "chat"


@pytest.fixture
def engine(name: str, server: ReplayServer) -> Iterator[OpenAIHttpAdapter]:
    api = "responses" if "-responses-" in name else "auto"
    options: dict[str, Any] = {"api": api, "model": "recorded", "timeouts": CLOCKS, "retry": {"attempts": 1}}
    with OpenAIHttpAdapter(server.url, **options) as adapter:
        yield adapter


def task_of(recording: Recording) -> dict[str, Any]:
    """A task like the recorded request: all but the Responses ones are conversations."""
    asked = recording.asked
    if "messages" not in asked:
        return {"task": "my prompt"}
    logprobs = asked.get("top_logprobs", 0) if asked.get("logprobs") else None
    return {
        "task": [{"role": "user", "content": "my prompt"}],
        "logprobs": logprobs,
        "tools": asked.get("tools"),
    }


def finish_in(recording: Recording) -> bytes:
    """The event with the reason for ending, as it stands in the body."""
    marks = (b'"finish_reason":"', b"event: response.completed")
    return next(e for e in recording.body.split(b"\n\n") if any(mark in e for mark in marks)) + b"\n\n"


def test_every_recording_stands_in_a_table() -> None:
    """No recording is left out, and each is what its table says."""
    streams = {*STREAMS, *BROKEN_STREAMS}
    assert {name for name, recording in RECORDINGS.items() if recording.is_stream} == streams
    assert {name for name, recording in RECORDINGS.items() if (recording.status or 0) >= 400} == set(REFUSALS)
    assert set(RECORDINGS) == {*streams, *REFUSALS, WRONG_PATH}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", STREAMS)
def test_a_recorded_stream_gives_its_frames(
    name: str, way: str, server: ReplayServer, engine: OpenAIHttpAdapter
) -> None:
    """However its bytes are cut, a stream gives started, its texts, and an end with the reason and what was counted."""
    server.answer = RECORDINGS[name].cut(way)
    check_good(engine.submit(**task_of(RECORDINGS[name])), STREAMS[name], "openai")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", BROKEN_STREAMS)
def test_a_recorded_failure_keeps_what_came_before(
    name: str, way: str, server: ReplayServer, engine: OpenAIHttpAdapter
) -> None:
    """An error in a stream, or its loss, is one typed error that counts and holds what was delivered, and is final."""
    server.answer = RECORDINGS[name].cut(way)
    check_bad(engine.submit(**task_of(RECORDINGS[name])), BROKEN_STREAMS[name], "openai")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", REFUSALS)
def test_a_recorded_refusal_is_its_typed_error(
    name: str, way: str, server: ReplayServer, engine: OpenAIHttpAdapter
) -> None:
    """A refusal has the class and fields that its code, type or status call for, in whatever shape it is written."""
    server.answer = RECORDINGS[name].cut(way)
    check_bad(engine.submit(**task_of(RECORDINGS[name])), REFUSALS[name], "openai")
    assert [method for method, _, _ in server.asked] == ["POST"]


@pytest.mark.parametrize("way", WAYS)
def test_an_error_with_status_200_is_an_error(way: str, server: ReplayServer, engine: OpenAIHttpAdapter) -> None:
    """LM Studio answers a wrong path with 200 and words: no empty answer, and not tried again."""
    server.answer = RECORDINGS[WRONG_PATH].cut(way)
    with pytest.raises(WorkerError, match="Unexpected endpoint or method") as caught:
        engine.submit([{"role": "user", "content": "my prompt"}]).start()
    assert (caught.value.retriable, caught.value.tokens_seen, caught.value.phase) == (False, 0, "first_token")


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_cut_anywhere_ends_in_order(name: str, server: ReplayServer, engine: OpenAIHttpAdapter) -> None:
    """Wherever the server dies, there is a typed error or, after its reason for ending, a good end."""
    recording = RECORDINGS[name]
    check_cuts(server, engine, recording, STREAMS[name], finish=finish_in(recording), task=task_of(recording))


def test_logprobs_of_one_chunk_add_up(server: ReplayServer, engine: OpenAIHttpAdapter) -> None:
    """A chunk that two tokens made has the logprob of both together."""
    recording = RECORDINGS["openai-chat-stream-logprobs"]
    server.answer = recording.pieces()
    tokens = [frame for frame in engine.submit(**task_of(recording)) if isinstance(frame, TokenFrame)]
    assert [token.logprob for token in tokens] == pytest.approx([-0.31725305, -0.02 - 0.0001])


def test_the_first_piece_of_a_tool_call_alone_names_it(server: ReplayServer, engine: OpenAIHttpAdapter) -> None:
    """Id and name come with the first frame of each call only; the index says which call a piece belongs to."""
    recording = RECORDINGS["openai-chat-stream-tool-calls"]
    server.answer = recording.pieces()
    frames = [frame for frame in engine.submit(**task_of(recording)) if isinstance(frame, ToolCallFrame)]
    assert [(frame.index, frame.call_id, frame.name, frame.arguments) for frame in frames] == [
        (0, "call_abc123", "get_current_weather", ""),
        (0, None, None, '{"location"'),
        (0, None, None, ':"Boston, MA"}'),
        (1, "call_def456", "get_current_weather", ""),
        (1, None, None, '{"location":"Paris"}'),
    ]


@pytest.mark.parametrize("name", [name for name in STREAMS if RECORDINGS[name].header("x-request-id")])
def test_the_end_tells_the_request_id(name: str, server: ReplayServer, engine: OpenAIHttpAdapter) -> None:
    """What a provider's support asks for stands in the end's engine metrics, and nothing of the prompt does."""
    server.answer = RECORDINGS[name].pieces()
    metrics = engine.submit(**task_of(RECORDINGS[name])).result().metrics.engine
    assert metrics["request_id"] == RECORDINGS[name].header("x-request-id")
    assert "my prompt" not in str(metrics)
