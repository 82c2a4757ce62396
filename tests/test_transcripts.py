"""Recordings of a real llama.cpp, played back through the adapter in many pieces: frames and errors they call for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from replay import WAIT, WAYS, Recording, ReplayServer, outcome, recordings
from worker_adapters.adapters.llamacpp import LlamaCppHttpAdapter
from worker_adapters.errors import (
    AuthenticationFailed,
    ContextOverflow,
    EngineUnavailable,
    InvalidRequest,
    ModelNotFound,
    StreamTruncated,
    UnknownError,
    WorkerError,
)
from worker_adapters.frames import AnyFrame, EndFrame, ReasoningFrame, StartedFrame, TokenFrame, ToolCall, ToolCallFrame
from worker_adapters.report import Completion
from worker_adapters.timeouts import Timeouts

pytestmark = pytest.mark.llamacpp

RECORDINGS = recordings("llamacpp")
PROPS = {"/props": RECORDINGS["props"]}
CLOCKS = Timeouts(connect=WAIT, first_token=WAIT, between_tokens=WAIT, total=3 * WAIT)

# Streams that end well: name -> (finish reason, the engine's word for it, tokens in, tokens out); None: not told.
STREAMS: dict[str, tuple[str, str | None, int | None, int | None]] = {
    "completion-ignore-eos": ("length", "limit", 17, 30),
    "completion-json-schema": ("length", "limit", 7, 24),
    "completion-multi-prompt": ("length", "limit", 15, 3),
    "completion-n-predict-0": ("length", "limit", 15, 1),
    "completion-n-probs": ("length", "limit", 15, 3),
    "completion-post-sampling-probs": ("length", "limit", 15, 2),
    "completion-response-fields-stream": ("stop", None, None, None),
    "completion-stop-word": ("stop", "word", 15, 6),
    "completion-stop-word-near-miss": ("length", "limit", 15, 8),
    "completion-stream": ("length", "limit", 15, 6),
    "completion-stream-eos": ("stop", "eos", 15, 25),
    "completion-stream-timings": ("length", "limit", 15, 4),
    "ping-long-prompt": ("length", "limit", 3904, 2),
    "progress-long-prompt": ("length", "limit", 3904, 2),
    "stop-string": ("stop", "word", 15, 4),
    "utf8-cut-by-limit": ("length", "limit", 10, 5),
    "chat-n2": ("length", "length", None, None),
    "chat-progress": ("length", "length", None, None),
    "chat-reasoning-format-none": ("stop", "stop", None, None),
    "chat-reasoning-stream": ("stop", "stop", None, None),
    "chat-stream": ("length", "length", None, None),
    "chat-stream-logprobs": ("length", "length", None, None),
    "chat-stream-usage": ("length", "length", 25, 4),
    "chat-tool-call-stream": ("tool_calls", "tool_calls", None, None),
    "utf8-chat-cut-by-limit": ("length", "length", None, None),
}

# Streams that fail after they began: name -> (class, status).
BROKEN_STREAMS: dict[str, tuple[type[WorkerError], int | None]] = {
    "error-in-stream-kv-full": (EngineUnavailable, 500),
    "chat-error-in-stream": (EngineUnavailable, 500),
    "client-closed": (StreamTruncated, None),
    "v1-completions-stream": (UnknownError, None),  # the OpenAI text dialect, which no path of ours asks for
}

# Refusals: name -> (class, status, may be tried again, further fields).
REFUSALS: dict[str, tuple[type[WorkerError], int, bool, dict[str, Any]]] = {
    "auth-none-props": (AuthenticationFailed, 401, False, {}),
    "auth-none-unknown-path": (AuthenticationFailed, 401, False, {}),
    "auth-wrong": (AuthenticationFailed, 401, False, {}),
    "completion-loading": (EngineUnavailable, 503, True, {}),
    "completion-stream-progress": (ContextOverflow, 400, False, {"prompt_tokens": 1124, "context_size": 512}),
    "error-404": (ModelNotFound, 404, False, {}),
    "error-501-embeddings": (InvalidRequest, 501, False, {}),
    "error-501-infill": (InvalidRequest, 501, False, {}),
    "error-501-metrics": (InvalidRequest, 501, False, {}),
    "error-501-props-post": (InvalidRequest, 501, False, {}),
    "error-501-rerank": (InvalidRequest, 501, False, {}),
    "error-501-slot-action": (InvalidRequest, 501, False, {}),
    "error-bad-grammar": (InvalidRequest, 400, False, {}),
    "error-chat-image-unsupported": (EngineUnavailable, 500, False, {}),
    "error-context-overflow": (ContextOverflow, 400, False, {"prompt_tokens": 3604, "context_size": 512}),
    "error-context-overflow-chat": (ContextOverflow, 400, False, {"prompt_tokens": 3623, "context_size": 512}),
    "error-invalid-utf8-body": (InvalidRequest, 400, False, {}),
    "error-lone-surrogate": (InvalidRequest, 400, False, {}),
    "error-method": (ModelNotFound, 404, False, {}),
    "error-n-too-many": (InvalidRequest, 400, False, {}),
    "error-nan": (InvalidRequest, 400, False, {}),
    "error-param-type": (InvalidRequest, 400, False, {}),
    "error-param-type-int": (InvalidRequest, 400, False, {}),
    "error-prompt-number": (InvalidRequest, 400, False, {}),
    "error-stop-number": (InvalidRequest, 400, False, {}),
    "error-token-id-range": (InvalidRequest, 400, False, {}),
    "error-tool-call-arguments": (InvalidRequest, 500, False, {}),
    "error-tool-without-description": (InvalidRequest, 500, False, {}),
    "health-loading": (EngineUnavailable, 503, True, {}),
    "models-loading": (EngineUnavailable, 503, True, {}),
    "prompt-empty-array": (InvalidRequest, 400, False, {}),
    "props-loading": (EngineUnavailable, 503, True, {}),
    "unknown-path-loading": (EngineUnavailable, 503, True, {}),
}


@pytest.fixture
def server() -> Iterator[ReplayServer]:
    with ReplayServer(PROPS) as running:
        yield running


@pytest.fixture
def engine(server: ReplayServer) -> Iterator[LlamaCppHttpAdapter]:
    with LlamaCppHttpAdapter(server.url, timeouts=CLOCKS, retry={"attempts": 1}) as adapter:
        yield adapter


def task_of(recording: Recording) -> dict[str, Any]:
    """A task like the recorded request: a conversation on the chat path, a prompt anywhere else."""
    asked = recording.asked if isinstance(recording.asked, dict) else {}
    if not recording.path.startswith("/v1/chat"):
        return {"task": "the quick brown", "logprobs": asked.get("n_probs")}
    return {"task": [{"role": "user", "content": "hi there"}], "tools": asked.get("tools")}


def deltas(recording: Recording) -> list[dict[str, Any]]:
    """The deltas of the first choice of a chat stream."""
    choices = [choice for event in recording.events for choice in event.get("choices", ())]
    return [choice["delta"] for choice in choices if choice["index"] == 0]


def answer_of(recording: Recording) -> list[str]:
    """The pieces of the answer that the recording holds."""
    if recording.path.startswith("/v1/chat"):
        pieces = [delta.get("content") for delta in deltas(recording)]
    else:
        events = [event for event in recording.events if event is not None and event.get("index", 0) == 0]
        pieces = [event.get("content") for event in events]
    return [piece for piece in pieces if piece]


def reasoning_of(recording: Recording) -> list[str]:
    if not recording.path.startswith("/v1/chat"):
        return []
    return [delta["reasoning_content"] for delta in deltas(recording) if delta.get("reasoning_content")]


def calls_of(recording: Recording) -> tuple[ToolCall, ...]:
    """The whole tool calls that the recording holds."""
    if not recording.path.startswith("/v1/chat"):
        return ()
    pieces = [call for delta in deltas(recording) for call in delta.get("tool_calls", ())]
    calls = []
    for index in sorted({piece["index"] for piece in pieces}):
        own = [piece for piece in pieces if piece["index"] == index]
        arguments = "".join(piece["function"].get("arguments", "") for piece in own)
        calls.append(ToolCall(own[0]["id"], own[0]["function"]["name"], arguments))
    return tuple(calls)


def of_kind(frames: list[AnyFrame], kind: type) -> list[Any]:
    return [frame for frame in frames if type(frame) is kind]


def test_every_recorded_stream_and_refusal_stands_in_a_table() -> None:
    """No recording of a stream or of an error is left out."""
    streams = {name for name, recording in RECORDINGS.items() if recording.is_stream}
    refusals = {name for name, recording in RECORDINGS.items() if (recording.status or 0) >= 400}
    assert streams == {*STREAMS, *BROKEN_STREAMS}
    assert refusals == set(REFUSALS)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", STREAMS)
def test_a_recorded_stream_gives_its_frames(
    name: str, way: str, server: ReplayServer, engine: LlamaCppHttpAdapter
) -> None:
    """However its bytes are cut, a stream gives started, its texts, and an end with reason and exact counts."""
    recording = RECORDINGS[name]
    finish_reason, raw, tokens_in, tokens_out = STREAMS[name]
    server.answer = recording.cut(way)
    frames = list(engine.submit(**task_of(recording)))
    assert type(frames[0]) is StartedFrame
    assert frames[0].engine == "llamacpp"
    assert frames[0].engine_version == "unknown"  # what b0-unknown means
    tokens = of_kind(frames, TokenFrame)
    assert [token.text for token in tokens] == answer_of(recording)
    assert [token.index for token in tokens] == list(range(len(tokens)))
    reasoning = of_kind(frames, ReasoningFrame)
    assert [piece.text for piece in reasoning] == reasoning_of(recording)
    assert [piece.index for piece in reasoning] == list(range(len(reasoning)))
    end = frames[-1]
    assert isinstance(end, EndFrame)
    assert end.tool_calls == calls_of(recording)
    assert (end.finish_reason, end.raw_finish_reason) == (finish_reason, raw)
    counts = (end.metrics.tokens_in, end.metrics.tokens_out, end.metrics.counts)
    content = len(frames) - 2
    assert counts == (
        tokens_in,
        content if tokens_out is None else tokens_out,
        "counted" if tokens_out is None else "exact",
    )
    assert len(frames) == 2 + len(tokens) + len(reasoning) + len(of_kind(frames, ToolCallFrame))


def test_the_first_piece_of_a_tool_call_alone_names_it(server: ReplayServer, engine: LlamaCppHttpAdapter) -> None:
    """Id and name come with the first frame of a call only; the arguments add up to what the model wrote."""
    recording = RECORDINGS["chat-tool-call-stream"]
    server.answer = recording.cut("as recorded")
    pieces = of_kind(list(engine.submit(**task_of(recording))), ToolCallFrame)
    [call] = calls_of(recording)
    assert [(piece.index, piece.name, piece.call_id) for piece in pieces] == [
        (0, call.name, call.call_id),
        *[(0, None, None)] * (len(pieces) - 1),
    ]
    assert json.loads("".join(piece.arguments for piece in pieces)) == {"city": "Oslo"}


@pytest.mark.parametrize("name", ["completion-n-probs", "completion-post-sampling-probs"])
def test_logprobs_and_ids_come_with_their_tokens(name: str, server: ReplayServer, engine: LlamaCppHttpAdapter) -> None:
    """Asked for logprobs, every token has its logprob and its id."""
    recording = RECORDINGS[name]
    server.answer = recording.cut("as recorded")
    tokens = of_kind(list(engine.submit(**task_of(recording))), TokenFrame)
    assert [token.token_id for token in tokens] == [e["tokens"][0] for e in recording.events if not e["stop"]]
    assert [token.logprob for token in tokens] == [0.0] * len(tokens)


def test_the_end_tells_the_engines_facts_and_no_prompt(server: ReplayServer, engine: LlamaCppHttpAdapter) -> None:
    """The end has timings, slot and seed, and nothing of the prompt that the final event echoes."""
    recording = RECORDINGS["completion-stop-word"]
    server.answer = recording.cut("as recorded")
    end = list(engine.submit("the quick", seed=7))[-1]
    assert isinstance(end, EndFrame)
    final = recording.events[-1]
    assert end.metrics.engine == {
        "seed": 7,
        **{name: final[name] for name in ("timings", "id_slot", "truncated", "stopping_word", "tokens_cached")},
    }


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", BROKEN_STREAMS)
def test_a_recorded_failure_keeps_what_came_before(
    name: str, way: str, server: ReplayServer, engine: LlamaCppHttpAdapter
) -> None:
    """An error in a stream, or its loss, is one typed error that counts and holds what was delivered, and is final."""
    recording = RECORDINGS[name]
    kind, status = BROKEN_STREAMS[name]
    server.answer = recording.cut(way)
    delivered: list[str] = []
    stream = engine.submit(**task_of(recording))
    with pytest.raises(WorkerError) as caught:
        delivered += stream.texts()
    error = caught.value
    assert type(error) is kind
    expected = [] if kind is UnknownError else answer_of(recording)
    assert error.partial_text == "".join(expected)
    assert error.tokens_seen == len(expected)
    assert (error.status, error.phase, error.engine, error.retriable) == (status, "stream", "llamacpp", False)
    assert error.job_id == stream.job_id


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", REFUSALS)
def test_a_recorded_refusal_is_its_typed_error(
    name: str, way: str, server: ReplayServer, engine: LlamaCppHttpAdapter
) -> None:
    """A refusal has the class, status and sizes that the engine's page calls for, and comes before ``started``."""
    recording = RECORDINGS[name]
    kind, status, retriable, further = REFUSALS[name]
    server.answer = recording.cut(way)
    stream = engine.submit(**task_of(recording))
    with pytest.raises(WorkerError) as caught:
        stream.start()
    error = caught.value
    assert type(error) is kind
    assert (error.status, error.retriable, error.tokens_seen, error.engine) == (status, retriable, 0, "llamacpp")
    assert {field: getattr(error, field) for field in further} == further
    assert stream.started is None
    assert [method for method, _, _ in server.asked] == ["POST"]


def test_the_identity_is_asked_for_once(server: ReplayServer, engine: LlamaCppHttpAdapter) -> None:
    """The first job asks /props for version and model, later ones have them from the cache."""
    server.answer = RECORDINGS["completion-stream"].cut("as recorded")
    models = [next(engine.submit("hi")).to_dict()["model"] for _ in range(3)]
    properties = json.loads(RECORDINGS["props"].body)
    assert models == [properties["model_alias"]] * 3
    assert [path for method, path, _ in server.asked if method == "GET"] == ["/props"]


@pytest.mark.parametrize("name", ["completion-stream", "chat-stream"])
def test_what_is_sent_asks_for_a_stream(name: str, server: ReplayServer, engine: LlamaCppHttpAdapter) -> None:
    """A prompt goes to /completion, a conversation to the chat path, always as a stream with an explicit seed."""
    recording = RECORDINGS[name]
    server.answer = recording.cut("as recorded")
    engine.submit(**task_of(recording), max_tokens=3).result()
    method, path, body = server.asked[0]
    sent = json.loads(body)
    assert (method, path) == ("POST", recording.path)
    assert sent["stream"] is True
    assert 0 <= sent["seed"] < 2**32 - 1
    assert sent.get("n_predict", sent.get("max_tokens")) == 3


# --- what is no event stream


@pytest.mark.parametrize(
    ("content_type", "accepted"),
    [
        ("text/event-stream;", True),
        ("Text/Event-Stream; charset=windows-1252", True),
        ("x bogus", False),
        ("text/x-bogus", False),
        ("application/json", False),
        ("text/html", False),
    ],
)
def test_only_an_event_stream_is_read_as_one(
    content_type: str, accepted: bool, server: ReplayServer, engine: LlamaCppHttpAdapter
) -> None:
    """A 200 of another type is a typed error that names the type; parameters and a lone semicolon do not matter."""
    recording = RECORDINGS["utf8-chat-cut-by-limit"]
    server.answer = [recording.head(content_type=content_type), *recording.pieces()[1:]]
    stream = engine.submit(**task_of(recording))
    if accepted:
        assert stream.result().text == "".join(answer_of(recording))
        return
    with pytest.raises(UnknownError, match="where an event stream belongs") as caught:
        stream.start()
    assert (caught.value.status, caught.value.retriable) == (200, False)


def test_a_compressed_stream_is_a_typed_error(server: ReplayServer, engine: LlamaCppHttpAdapter) -> None:
    """A body in a Content-Encoding that nobody asked for is refused, not decoded as text."""
    recording = RECORDINGS["completion-stream"]
    server.answer = [recording.head(content_encoding="gzip"), *recording.pieces()[1:]]
    with pytest.raises(UnknownError, match="compressed"):
        engine.submit("hi").result()


def chunked(*data: bytes) -> list[bytes]:
    """A stream of ours in the head of a recorded one."""
    head = RECORDINGS["chat-stream"].head()
    return [head, *(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in data), b"0\r\n\r\n"]


FINISH = b'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":"stop"}]}\n\n'


@pytest.mark.parametrize("last", [b"data: [DONE]\n", b"data: [DONE]", b"data:[DONE]\r\n\r\n", b"", b"data: {gar"])
def test_the_terminal_marker_matters_only_without_a_reason(
    last: bytes, server: ReplayServer, engine: LlamaCppHttpAdapter
) -> None:
    """After the finish reason the stream has ended well, whatever becomes of the marker."""
    server.answer = chunked(FINISH + last)
    assert engine.submit([{"role": "user", "content": "hi"}]).result().finish_reason == "stop"


@pytest.mark.parametrize("stream", [b"data: [DONE]\n\n", b'data: {"choices":[]}\n\ndata: [DONE]\n\n'])
def test_the_terminal_marker_alone_proves_nothing(
    stream: bytes, server: ReplayServer, engine: LlamaCppHttpAdapter
) -> None:
    """``[DONE]`` without a finish reason before it is a failure, never an empty answer."""
    server.answer = chunked(stream)
    with pytest.raises(EngineUnavailable) as caught:
        engine.submit([{"role": "user", "content": "hi"}]).result()
    assert caught.value.retriable is False


OVERLOADED = b'data: {"error":{"code":503,"message":"no slot","type":"unavailable_error"}}\n\n'
EMPTY = b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":null}}]}\n\n'


@pytest.mark.parametrize(
    ("stream", "retriable"), [(OVERLOADED, True), (b": ping\n\n" + OVERLOADED, True), (EMPTY + OVERLOADED, False)]
)
def test_an_in_band_refusal_is_retriable_only_before_the_engine_began(
    stream: bytes, retriable: bool, server: ReplayServer, engine: LlamaCppHttpAdapter
) -> None:
    """A 200 stream whose first event is an error started nothing; once a delta came, even an empty one, it did."""
    server.answer = chunked(stream)
    with pytest.raises(EngineUnavailable) as caught:
        engine.submit([{"role": "user", "content": "hi"}]).result()
    assert caught.value.retriable is retriable


# --- cut anywhere


def said(event: dict[str, Any]) -> tuple[str, bool]:
    """The text of an event, and whether it holds the reason for ending."""
    if "choices" not in event:
        return event["content"], event["stop"]
    [choice] = event["choices"]
    return choice["delta"].get("content") or "", choice["finish_reason"] is not None


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize("name", ["completion-response-fields-stream", "utf8-chat-cut-by-limit"])
def test_a_response_cut_at_any_byte_ends_in_order(
    name: str, reset: bool, server: ReplayServer, engine: LlamaCppHttpAdapter
) -> None:
    """Wherever the engine dies, in its head or body, there is a typed error or, after its reason, a good end."""
    recording = RECORDINGS[name]
    whole = b"".join(recording.pieces())
    texts = answer_of(recording)
    engine.engine_version()  # so that each job below is one request
    for size in range(0, len(whole), 5 if reset else 1):
        events = recording.arrived(size).decode("utf-8", "replace").split("\n\n")[:-1]
        seen = [said(json.loads(event[6:])) for event in events if event != "data: [DONE]"]
        ended = any(last for _, last in seen)
        server.answer, server.reset = [whole[:size]], reset
        result = outcome(engine.submit(**task_of(recording)))
        where = f"cut at {size}: {result!r}"
        if isinstance(result, Completion):
            assert ended, where
            assert result.text == "".join(texts), where
        else:
            assert isinstance(result, EngineUnavailable), where
            assert result.retriable is False, where  # the engine may have begun
            assert result.partial_text == "".join(texts[: result.tokens_seen]), where
        if not reset:  # a reset may overtake what was sent before it
            expected = Completion if ended else StreamTruncated if seen else EngineUnavailable
            assert type(result) is expected, where
            assert ended or result.partial_text == "".join(text for text, _ in seen), where
        server.answer, server.reset = [whole], False
        assert engine.submit(**task_of(recording)).result().text == "".join(texts), f"the job after a cut at {size}"


def test_bytes_after_the_end_do_not_disturb(server: ReplayServer, engine: LlamaCppHttpAdapter) -> None:
    """A second response after the first, which nobody asked for, reaches no job."""
    whole = b"".join(RECORDINGS["completion-stream"].pieces())
    server.answer = [whole + b"".join(RECORDINGS["completion-stop-word"].pieces())]
    expected = "".join(answer_of(RECORDINGS["completion-stream"]))
    assert [engine.submit("hi").result().text for _ in range(3)] == [expected] * 3


@pytest.mark.parametrize(
    "data", [b"", b"\r\n", b"garbage\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\n", b"\x15\x03\x01\x00\x02\x02\x46"]
)
def test_what_is_no_http_is_a_typed_error(data: bytes, server: ReplayServer, engine: LlamaCppHttpAdapter) -> None:
    """A peer that speaks something else is an EngineUnavailable, not to be tried again."""
    server.answer = [data]
    with pytest.raises(EngineUnavailable) as caught:
        engine.submit("hi").start()
    assert (caught.value.retriable, caught.value.phase) == (False, "first_token")
