"""The TGI adapter against the simulator and servers of a test's own: refusals in a 200, its own ends, fields, props."""

from __future__ import annotations

import json
import logging
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from canary import PROMPT
from worker_adapters import TgiHttpAdapter, connect
from worker_adapters.errors import (
    CapacityExceeded,
    ContextOverflow,
    EngineUnavailable,
    InvalidRequest,
    PoolUnavailable,
    StreamTruncated,
    UnknownError,
    WorkerError,
)
from worker_adapters.report import Completion
from worker_adapters.simulate import Exchange, Fault, Request, SimServer, TgiSimulator

pytestmark = pytest.mark.tgi

SOON = 5.0  # seconds: what must come has come by then, even on a loaded machine
CHAT = [{"role": "user", "content": PROMPT}]
STREAM = [("Content-Type", "text/event-stream")]
INFO = {"model_id": "m", "model_sha": "abc", "max_total_tokens": 512, "version": "3.3.6-dev0", "max_input_tokens": 511}
#: A task for each route.
ROUTES: dict[str, Any] = {"/generate_stream": "Hi", "/v1/chat/completions": CHAT}


def event(value: Any) -> bytes:
    """One event."""
    return b"data: " + (value if isinstance(value, bytes) else json.dumps(value).encode()) + b"\n\n"


def token(path: str, text: str, reason: str | None = None, count: int = 1) -> bytes:
    """A token as the route gives it; with a reason, the last of so many."""
    if path.startswith("/v1/"):
        choice = {"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": reason}
        return event({"id": "", "model": "m", "choices": [choice], "usage": None})
    details = reason and {"finish_reason": reason, "generated_tokens": count, "seed": None, "input_length": 1}
    told = {"id": 1, "text": text, "logprob": -1.0, "special": False}
    return event({"index": 1, "token": told, "generated_text": reason and text, "details": details})


def done(path: str) -> bytes:
    """What ends a stream of the route."""
    return event(b"[DONE]") if path.startswith("/v1/") else b""


@contextmanager
def answering(
    answer: Callable[[Exchange], None], info: Any = INFO, **options: Any
) -> Iterator[tuple[SimServer, TgiHttpAdapter]]:
    """A server that answers jobs so, and an adapter of it that does not try again."""

    def all_of_it(exchange: Exchange) -> None:
        if exchange.request.method == "POST":
            answer(exchange)
        elif exchange.request.path == "/info":
            exchange.json(200, info)
        else:
            exchange.respond(404, [], b"")

    with SimServer(all_of_it) as server, TgiHttpAdapter(server.url, **{"retry": {"attempts": 1}, **options}) as engine:
        yield server, engine


def streaming(*events: bytes) -> Callable[[Exchange], None]:
    """Answers every job with these events."""

    def answer(exchange: Exchange) -> None:
        exchange.head(200, STREAM)
        exchange.chunk(*events)
        exchange.end()

    return answer


def endless(exchange: Exchange) -> None:
    """Tokens without end, as of a model that knows no other."""
    exchange.head(200, STREAM)
    while exchange.pause(0.001):
        exchange.chunk(token(exchange.request.path, "ab"))


def jobs(server: SimServer) -> list[Request]:
    """The jobs that reached the server."""
    return [request for request in server.requests if request.method == "POST"]


def failing(engine: TgiHttpAdapter, task: Any = "Hi") -> WorkerError:
    """What a job fails with."""
    with pytest.raises(WorkerError) as caught:
        engine.submit(task).result()
    return caught.value


# --- errors


GENERATION = "Request failed during generation: Server error: "
TOO_LONG = (
    "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 512. Given: 3 `inputs` tokens and 1000"
    " `max_new_tokens`"
)
TOO_LONG_ALONE = "Input validation error: `inputs` must have less than 512 tokens. Given: 3"
NO_SHARD = "Request failed during generation: Could not connect to Text Generation server: transport error"
#: (kind, words, status of an answer in one piece) -> the class, and whether it may be tried again.
ERRORS: list[tuple[str, str, int, type[WorkerError], bool]] = [
    ("validation", "Input validation error: `temperature` must be strictly positive", 422, InvalidRequest, False),
    ("validation", TOO_LONG, 422, ContextOverflow, False),
    ("validation", TOO_LONG_ALONE, 422, ContextOverflow, False),
    ("validation", TOO_LONG.replace("`", "").replace("inputs", "input"), 422, ContextOverflow, False),  # 0.3
    ("validation", TOO_LONG_ALONE.replace("`", ""), 422, ContextOverflow, False),
    ("overloaded", "Model is overloaded", 429, CapacityExceeded, True),
    ("generation", GENERATION + "CUDA out of memory. Tried to allocate 2.00 GiB.", 424, PoolUnavailable, False),
    ("generation", GENERATION + "transport error", 424, EngineUnavailable, False),
    ("generation", NO_SHARD, 424, EngineUnavailable, False),
    ("incomplete_generation", "Incomplete generation", 500, StreamTruncated, False),
    ("incomplete_generation_stream", "Incomplete generation stream", 500, StreamTruncated, False),
    ("template_error", "Template error: template not found", 422, InvalidRequest, False),
    ("missing_template_variable", "Missing template vatiable: tools", 422, InvalidRequest, False),
    ("tool_error", "Tool error: no such tool", 422, InvalidRequest, False),
    ("stream_serialization_error", "Stream event serialization error", 500, EngineUnavailable, False),
]  # fmt: skip


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("row", ERRORS)
def test_an_error_event_is_its_typed_error(row: Any, path: str) -> None:
    """By its kind in a 200 stream: as the first event nothing had started, after a token it is never tried again."""
    kind, words, _, error, retriable = row
    failure = event({"error": words, "error_type": kind})
    for before, seen in (((), 0), ((token(path, "a"),), 1)):
        with answering(streaming(*before, failure, done(path))) as (_, engine):
            stream = engine.submit(ROUTES[path])
            with pytest.raises(WorkerError) as caught:
                list(stream)
        assert (type(caught.value), caught.value.status) == (error, None)
        assert (caught.value.retriable, caught.value.tokens_seen) == (retriable and not seen, seen)
        assert (stream.started is not None) is bool(seen)
        assert words[:40] in caught.value.message


@pytest.mark.parametrize("row", ERRORS)
def test_an_error_of_the_chat_is_known_by_its_words(row: Any) -> None:
    """Since 2.4.1 the chat's stream claims 422 for every error and tells no kind."""
    _, words, _, error, retriable = row
    failure = event({"error": {"message": words, "http_status_code": 422}})
    with answering(streaming(failure, event(b"[DONE]"))) as (_, engine):
        caught = failing(engine, CHAT)
    assert (type(caught), caught.status, caught.retriable) == (error, 422, retriable)
    if isinstance(caught, ContextOverflow):
        assert (caught.prompt_tokens, caught.context_size) == (3, 512)


@pytest.mark.parametrize("row", ERRORS)
def test_an_error_with_a_status_is_the_same(row: Any) -> None:
    """An answer in one piece, as template and tool errors give it; it was not cut off, if it is a 500."""
    kind, words, status, error, retriable = row

    def answer(exchange: Exchange) -> None:
        exchange.json(status, {"error": words, "error_type": kind})

    with answering(answer) as (_, engine):
        caught = failing(engine)
    wanted = EngineUnavailable if error is StreamTruncated else error
    assert (type(caught), caught.status, caught.retriable) == (wanted, status, retriable)


@pytest.mark.parametrize(
    ("failure", "error"),
    [
        ({"error": {"message": "of tomorrow", "http_status_code": 422}}, UnknownError),  # the status says nothing
        ({"error": "of tomorrow", "error_type": "new"}, EngineUnavailable),
        ({"error": "of tomorrow"}, EngineUnavailable),
    ],
)
def test_an_error_that_is_not_known_blames_no_caller(failure: Any, error: type[WorkerError]) -> None:
    """And is not tried again: who knows what had begun."""
    with answering(streaming(event(failure))) as (_, engine):
        caught = failing(engine, CHAT)
    assert (type(caught), caught.retriable) == (error, False)


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (413, InvalidRequest),
        (415, InvalidRequest),
        (424, EngineUnavailable),
        (429, CapacityExceeded),
        (503, EngineUnavailable),
    ],
)
def test_a_status_without_a_kind_decides_alone(status: int, error: type[WorkerError]) -> None:
    """Text of the web framework, and of gateways: 424 is theirs for a shard that is not ready."""
    with answering(lambda exchange: exchange.respond(status, [("Content-Type", "text/plain")], b"so it is")) as (
        _,
        engine,
    ):
        caught = failing(engine)
    assert (type(caught), caught.status, caught.retriable) == (error, status, status in (429, 503))
    assert "so it is" in caught.message


@pytest.mark.parametrize("path", ROUTES)
def test_an_overload_in_the_stream_is_tried_again(path: str) -> None:
    """Nothing was queued, so the job is sent again, and its reader sees one stream."""

    def answer(exchange: Exchange) -> None:
        busy = len(jobs(server)) < 3
        answers = (
            [event({"error": "Model is overloaded", "error_type": "overloaded"})]
            if busy
            else [token(path, "a", "length")]
        )
        streaming(*answers)(exchange)

    with answering(answer, retry={"base": 0.001}) as (server, engine):
        frames = list(engine.submit(ROUTES[path]))
        assert [frame.type for frame in frames] == ["started", "token", "end"]
        assert len(jobs(server)) == 3


@pytest.mark.parametrize("kind", ["validation", "generation", "incomplete_generation_stream", "tool_error"])
def test_no_other_error_is_tried_again(kind: str) -> None:
    """A shard may have begun, and a wrong request stays wrong."""
    with answering(streaming(event({"error": "x", "error_type": kind})), retry={"base": 0.001}) as (server, engine):
        failing(engine)
        assert len(jobs(server)) == 1


# --- ends that TGI does not make


@pytest.mark.parametrize("path", ROUTES)
def test_a_stop_string_inside_a_token_ends_the_job(path: str) -> None:
    """TGI misses it and would generate on: the connection is closed, which stops it, and is not used again."""
    with answering(endless) as (server, engine):
        answer = engine.submit(ROUTES[path], stop=["ba"], max_tokens=100_000).result()
        assert (answer.text, answer.finish_reason, answer.raw_finish_reason) == ("a", "stop", None)
        assert (answer.metrics.tokens_out, answer.metrics.counts) == (2, "exact")
        assert server.wait_for(lambda: any(close.phase == "answer" for close in server.closes), SOON)


@pytest.mark.parametrize("path", ROUTES)
def test_the_limit_ends_a_job_of_many_legs(path: str) -> None:
    """Never more than max_tokens, whatever TGI makes of it."""
    with answering(endless) as (server, engine):
        answer = engine.submit(ROUTES[path], max_tokens=7).result()
        assert (answer.text, answer.finish_reason, answer.raw_finish_reason) == ("ab" * 7, "length", None)
        assert (answer.metrics.tokens_out, answer.metrics.counts) == (7, "exact")
        assert server.wait_for(lambda: any(close.phase == "answer" for close in server.closes), SOON)
        assert engine.submit(ROUTES[path], max_tokens=2).result().text == "abab"


@pytest.mark.parametrize("path", ROUTES)
def test_a_connection_serves_again_after_tgi_s_own_end(path: str) -> None:
    """One connection for jobs in turn; also where TGI ended at the stop string or at the limit itself."""
    with answering(streaming(token(path, "ab", "stop_sequence", 1), done(path))) as (server, engine):
        for fields, text in (({}, "ab"), ({"stop": "b"}, "a"), ({"max_tokens": 1}, "ab")):
            assert engine.submit(ROUTES[path], **fields).result().text == text
        assert len({request.connection for request in jobs(server)}) == 1


@pytest.mark.parametrize("path", ROUTES)
def test_a_body_that_just_ends_is_truncated(path: str) -> None:
    """A whole HTTP answer without TGI's reason, [DONE] or not."""
    for events in ((), (token(path, "a"),)):
        with answering(streaming(*events, done(path))) as (_, engine):
            error = failing(engine, ROUTES[path])
        assert (type(error), error.tokens_seen) == (StreamTruncated, len(events))


def test_a_tool_call_is_whole_without_a_reason() -> None:
    """TGI gives none in a stream; half a call is truncated."""

    def piece(arguments: str, name: str | None = None) -> bytes:
        function = {"name": name, "arguments": arguments}
        delta = {"role": "assistant", "tool_calls": [{"index": 0, "id": "0", "type": "function", "function": function}]}
        return event(
            {"id": "", "model": "m", "choices": [{"index": 0, "delta": delta, "finish_reason": None}], "usage": None}
        )

    tools = [{"type": "function", "function": {"name": "f"}}]
    usage = event({"id": "", "choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 20, "total_tokens": 29}})
    with answering(streaming(piece("{", "f"), piece('"x": 1'), piece("}"), usage, event(b"[DONE]"))) as (_, engine):
        answer = engine.submit(CHAT, tools=tools).result()
    [call] = answer.tool_calls
    assert (call.call_id, call.name, call.arguments) == ("0", "f", '{"x": 1}')
    assert (answer.finish_reason, answer.raw_finish_reason) == ("tool_calls", None)
    assert (answer.metrics.tokens_in, answer.metrics.tokens_out) == (9, 20)
    with answering(streaming(piece("{", "f"), piece('"x": 1'), event(b"[DONE]"))) as (_, engine):
        stream = engine.submit(CHAT, tools=tools)
        with pytest.raises(StreamTruncated):
            stream.result()


# --- fields


@pytest.fixture
def nowhere() -> Iterator[TgiHttpAdapter]:
    """An adapter that nothing may be sent by."""
    with TgiHttpAdapter("http://127.0.0.1:9") as engine:
        yield engine


TOOL = {"type": "function", "function": {"name": "f"}}
SCHEMA = {"type": "json_schema", "json_schema": {"schema": {"properties": {}}}}


@pytest.mark.parametrize(
    ("task", "fields", "named"),
    [
        ("Hi", {"min_p": 0.1}, "min_p"),
        (CHAT, {"min_p": 0.1}, "min_p"),
        ("Hi", {"logit_bias": {1: 1.0}}, "logit_bias"),
        (CHAT, {"logit_bias": {1: 1.0}}, "logit_bias"),
        ("Hi", {"presence_penalty": 0.5}, "presence_penalty"),
        ("Hi", {"tools": [TOOL]}, "tools"),
        (CHAT, {"top_k": 5}, "top_k"),
        (CHAT, {"repetition_penalty": 1.1}, "repetition_penalty"),
        ("Hi", {"response_format": {"type": "json_object"}}, "response_format.type"),
        (CHAT, {"response_format": SCHEMA, "grammar": "a+"}, "grammar"),
    ],
)
def test_what_tgi_lacks_is_refused(task: Any, fields: dict[str, Any], named: str, nowhere: TgiHttpAdapter) -> None:
    """By name, before anything is sent; the two routes have not the same fields."""
    with pytest.raises(InvalidRequest, match="tgi") as caught:
        nowhere.submit(task, **fields)
    assert (caught.value.field, caught.value.engine) == (named, "tgi")


@pytest.mark.parametrize(
    "key", ["inputs", "parameters", "details", "decoder_input_details", "max_new_tokens", "stop", "stream", "best_of"]
)
def test_extra_cannot_set_what_the_adapter_owns(key: str, nowhere: TgiHttpAdapter) -> None:
    """What the reading of the answer hangs on is refused."""
    with pytest.raises(InvalidRequest) as caught:
        nowhere.submit("Hi", extra={key: 1})
    assert caught.value.field == f"extra.{key}"


def sent(task: Any, **fields: Any) -> dict[str, Any]:
    """The JSON that a task is sent as, by an adapter that drops what TGI lacks."""

    def answer(exchange: Exchange) -> None:
        streaming(token(exchange.request.path, "a", "length"))(exchange)

    with answering(answer, unsupported="ignore") as (server, engine):
        engine.submit(task, max_tokens=9, **fields).result()
        [request] = jobs(server)
    body: dict[str, Any] = request.json
    return body


def test_what_tgi_lacks_can_be_dropped(caplog: pytest.LogCaptureFixture) -> None:
    """With unsupported="ignore", and a line in the log for each."""
    greedy = {"max_new_tokens": 9, "do_sample": False, "details": True}
    chat = {
        "model": "tgi",
        "messages": CHAT,
        "max_tokens": 9,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    with caplog.at_level(logging.WARNING, "worker_adapters.adapters"):
        assert sent("Hi", min_p=0.1, presence_penalty=0.5) == {"inputs": "Hi", "parameters": greedy}
        assert sent(CHAT, top_k=5, repetition_penalty=1.1) == chat
    told = " ".join(record.getMessage() for record in caplog.records)
    assert all(name in told for name in ("min_p", "presence_penalty", "top_k", "repetition_penalty"))


@pytest.mark.parametrize("path", ["", "/", "/v1", "/v1/"])
def test_the_url_of_a_client_of_openai_is_taken(path: str) -> None:
    """A final /v1 is no part of the base."""
    with answering(streaming(token("", "a", "length"))) as (server, _), TgiHttpAdapter(server.url + path) as engine:
        engine.submit("Hi").result()
        assert [(request.method, request.path) for request in server.requests] == [
            ("POST", "/generate_stream"),
            ("GET", "/info"),
        ]


def test_the_usual_address() -> None:
    """Without a URL it is the launcher's default; an adapter pickles."""
    with connect("tgi") as engine:
        assert type(engine) is TgiHttpAdapter
        assert "127.0.0.1:3000" in repr(engine)
        assert repr(pickle.loads(pickle.dumps(engine))) == repr(engine)


# --- health and props


@pytest.mark.parametrize(
    ("status", "body", "state", "live"),
    [
        (200, b"", "healthy", True),
        (200, b"<html>", "unhealthy", True),
        (503, b'{"error":"unhealthy","error_type":"healthcheck"}', "unhealthy", True),
        (503, b'{"error":"Model m is currently loading"}', "degraded", True),  # a gateway's
        (502, b"", "unhealthy", False),
        (500, b"", "degraded", True),
    ],
)
def test_health_goes_by_the_status(status: int, body: bytes, state: str, live: bool) -> None:
    """200 counts only without a body, as TGI says it."""
    with SimServer(lambda exchange: exchange.respond(status, [], body)) as server, TgiHttpAdapter(server.url) as engine:
        health = engine.health()
        assert (health.state, health.live, health.ready) == (state, live, state == "healthy")
        assert health.ready or health.message
        assert [request.path for request in server.requests] == ["/health"]


def test_a_probe_generates_one_token() -> None:
    """What /health cannot prove."""

    def answer(exchange: Exchange) -> None:
        if exchange.request.path == "/health":
            exchange.respond(200, [], b"")
        elif exchange.request.path == "/info":
            exchange.json(200, INFO)
        else:
            streaming(event({"error": GENERATION + "x", "error_type": "generation"}))(exchange)

    with SimServer(answer) as server, TgiHttpAdapter(server.url) as engine:
        assert engine.health().ready
        health = engine.health(probe=True)
        assert (health.state, health.live, health.ready) == ("unhealthy", True, False)
        [probe] = jobs(server)
        assert probe.json["parameters"]["max_new_tokens"] == 1


METRICS = """# HELP tgi_queue_size x
# TYPE tgi_queue_size gauge
tgi_queue_size 3
tgi_batch_current_size 2
tgi_batch_current_max_tokens 4096
"""


@pytest.mark.parametrize(
    ("device", "residency"),
    [("cpu", "cpu"), ("cuda", "gpu"), ("xpu", "gpu"), ("hpu", "gpu"), ("meta", "unknown"), (None, "unknown")],
)
@pytest.mark.parametrize(
    ("metrics", "running", "waiting"), [(METRICS, 2, 3), ("tgi_queue_size 0\n", None, 0), ("", None, None)]
)
def test_props_are_what_info_and_metrics_tell(
    device: str | None, residency: str, metrics: str, running: int | None, waiting: int | None
) -> None:
    """A gauge that was never touched does not exist, and is None; so is a device since 2.3.0."""

    def answer(exchange: Exchange) -> None:
        if exchange.request.path == "/info":
            exchange.json(200, {**INFO, "model_device_type": device})
        else:
            exchange.respond(200 if metrics else 404, [("Content-Type", "text/plain")], metrics.encode())

    with SimServer(answer) as server, TgiHttpAdapter(server.url, model="my-lora") as engine:
        props = engine.props()
        assert engine.engine_version() == "3.3.6-dev0"
    assert (props.engine_version, props.model, props.model_digest, props.context_size) == (
        "3.3.6-dev0",
        "m",
        "m/abc",
        512,
    )
    assert (props.residency, props.running, props.waiting) == (residency, running, waiting)
    assert (props.slots_total, props.kv_cache_usage) == (None, None)
    assert props.capabilities.cancel_by_close


def test_what_info_does_not_tell_is_none() -> None:
    """A local path has no revision, and a gateway may hide all of it; another server is none of TGI."""
    with answering(streaming(), info={"model_id": "/data/m", "model_sha": None}) as (_, engine):
        props = engine.props()
        assert (props.engine_version, props.model, props.model_digest) == ("unknown", "/data/m", None)
        assert props.context_size is None
    with answering(streaming(), info=[]) as (_, engine), pytest.raises(UnknownError, match="another server"):
        engine.props()


def test_a_model_is_the_name_of_a_lora() -> None:
    """Asked for, it is what ``started`` says, since TGI never denies one."""
    with answering(streaming(token("", "a", "length"))) as (_, engine):
        for fields, model in (({}, "m"), ({"model": "my-lora"}, "my-lora")):
            stream = engine.submit("Hi", **fields)
            assert isinstance(stream.result(), Completion)
            assert stream.started is not None
            assert (stream.started.engine_version, stream.started.model) == ("3.3.6-dev0", model)


# --- every release


@contextmanager
def simulated(version: str = "3.3.6-dev0", **options: Any) -> Iterator[tuple[TgiSimulator, TgiHttpAdapter]]:
    """A simulated TGI, and an adapter of it."""
    with (
        TgiSimulator(version=version, **options) as server,
        TgiHttpAdapter(server.url, retry={"base": 0.001}) as engine,
    ):
        yield server, engine


RELEASES = ("1.4.0", "1.4.5", "2.0.1", "2.0.4", "2.2.0", "2.3.1", "2.4.0", "3.1.0", "3.2.0", "3.3.6-dev0")
TOKENS = ["One", " two!", " th", "ree", b"\xc3", b"\xa9"]


@pytest.mark.parametrize("version", RELEASES)
@pytest.mark.parametrize("path", ROUTES)
def test_every_release_is_read(version: str, path: str) -> None:
    """Texts, ends and counts are the same; what a release does not tell is None."""
    since_2_3 = version not in RELEASES[:5]
    with simulated(version, tokens=TOKENS) as (server, engine):
        for fields, text, finish, ours in (
            ({}, "One two! threeé", "stop", False),
            ({"stop": "o!"}, "One tw", "stop", False),
            ({"stop": "! t"}, "One two", "stop", True),
            ({"stop": ["zz", "reeé!"]}, "One two! threeé", "stop", False),
            ({"max_tokens": 2}, "One two!", "length", False),
            ({"max_tokens": 2, "stop": "!!"}, "One two!", "length", False),
        ):
            answer = engine.submit(ROUTES[path], **fields).result()
            assert (answer.text, answer.finish_reason) == (text, finish), fields
            assert (answer.raw_finish_reason is None) is ours
            assert (answer.metrics.tokens_in is not None) is (since_2_3 and not ours)
        assert server.wait_idle(SOON)
        assert engine.engine_version() == version
        assert engine.props().residency == ("unknown" if since_2_3 else "gpu")


@pytest.mark.parametrize("version", RELEASES[1:])
def test_every_release_calls_tools(version: str) -> None:
    """Half a call is one that the limit cut (without a name, up to 2.0.0, it is none); a text in place of a call is
    the answer, in whatever form it comes.
    """
    tool = {"type": "function", "function": {"name": "f", "description": "", "parameters": {"type": "object"}}}
    with simulated(version, tokens=TOKENS, tool_calls=[("f", ['{"x"', ": 1", "}"])]) as (server, engine):
        for fields, finish, arguments in (({}, "tool_calls", '{"x": 1}'), ({"max_tokens": 3}, "length", '{"x": 1')):
            answer = engine.submit(CHAT, tools=[tool], **fields).result()
            assert answer.finish_reason == finish
            calls = [] if version == "1.4.5" and finish == "length" else [("f", arguments.replace(" ", ""))]
            assert [(call.name, call.arguments.replace(" ", "")) for call in answer.tool_calls] == calls
        assert engine.submit(CHAT, tools=[tool], tool_choice="none").result().text == "One two! threeé"
        server.tool_calls = ()
        answer = engine.submit(CHAT, tools=[tool]).result()
        assert (answer.text, answer.finish_reason, answer.tool_calls) == ("One two! threeé", "stop", ())


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("legs", [True, False])
def test_a_job_of_many_legs_has_its_limit(path: str, legs: bool) -> None:
    """TGI 3 would give 2,048 tokens to who asks for 1,500; cut by us, its count is exact all the same."""
    room = {"max_input_tokens": 4000, "max_total_tokens": 8000}
    with simulated(tokens=["a"], endless=True, legs=legs, **room) as (server, engine):
        answer = engine.submit(ROUTES[path], max_tokens=1500).result()
        assert answer.text == "a" * 1500
        assert (answer.finish_reason, answer.raw_finish_reason) == ("length", None if legs else "length")
        assert (answer.metrics.tokens_out, answer.metrics.counts) == (1500, "exact")
        assert server.wait_idle(SOON)


@pytest.mark.parametrize("path", ROUTES)
def test_a_schema_is_followed(path: str) -> None:
    """In TGI's own form of it on both routes."""
    schema = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
    with simulated() as (_, engine):
        wanted = {"type": "json_schema", "json_schema": {"schema": schema}}
        assert list(json.loads(engine.submit(ROUTES[path], response_format=wanted).result().text)) == ["a"]


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("version", ["2.0.4", "2.3.1", "3.3.6-dev0"])
def test_an_overloaded_engine_is_tried_again_until_it_has_room(path: str, version: str) -> None:
    """The permit of a job that goes away is free at once."""
    with simulated(version, endless=True, delay=0.001, max_concurrent_requests=1) as (server, engine):
        with engine.submit("Hi", max_tokens=400) as holder:
            next(holder)
            with pytest.raises(CapacityExceeded) as full:
                engine.submit(ROUTES[path], max_tokens=2).result()
            assert full.value.retriable
            assert server.generation_requests == 1 + 4
        assert server.wait_idle(SOON)
        assert engine.submit(ROUTES[path], max_tokens=2).result().finish_reason == "length"


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("version", ["2.0.4", "2.3.1", "3.3.6-dev0"])
def test_a_shard_that_fails_is_not_tried_again(path: str, version: str) -> None:
    """Neither before a token nor after; out of memory is told apart, and health tells of both."""
    with simulated(version) as (server, engine):
        for count in (0, 1):
            server.misbehave(Fault.error_after(count, message="Request failed during generation: Server error: x"))
            before = server.generation_requests
            with pytest.raises(EngineUnavailable) as caught:
                engine.submit(ROUTES[path]).result()
            assert (caught.value.retriable, caught.value.tokens_seen) == (False, count)
            assert server.generation_requests == before + 1
        server.shard_error = "CUDA out of memory. Tried to allocate 2.00 GiB."
        with pytest.raises(PoolUnavailable, match="out of memory"):
            engine.submit(ROUTES[path]).result()
        assert engine.health().state == "unhealthy"
