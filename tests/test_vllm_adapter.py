"""The vLLM adapter against the simulator and real servers: ids, the abort route, own parameters, health and props."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import requests

from canary import KEY, PROMPT
from worker_adapters import VllmHttpAdapter
from worker_adapters.errors import (
    AuthenticationFailed,
    CapacityExceeded,
    ContextOverflow,
    EngineUnavailable,
    InvalidRequest,
    ModelNotFound,
    StreamTruncated,
    UnknownError,
    WorkerError,
)
from worker_adapters.simulate import Exchange, Fault, Request, SimServer, VllmSimulator

pytestmark = pytest.mark.vllm

SOON = 5.0  # seconds: what must come has come by then, even on a loaded machine
JSON = {"Content-Type": "application/json"}
ABORT = "/inference/v1/abort_requests"
CHAT = [{"role": "user", "content": PROMPT}]


@contextmanager
def serving(**options: Any) -> Iterator[tuple[VllmSimulator, VllmHttpAdapter]]:
    """A simulated vLLM, and an adapter of it that does not try again."""
    with VllmSimulator(**options) as server, VllmHttpAdapter(server.url, retry={"attempts": 1}) as engine:
        yield server, engine


@contextmanager
def answering(answer: Callable[[Exchange], None]) -> Iterator[tuple[SimServer, VllmHttpAdapter]]:
    """A server of a test's own, and an adapter of it."""
    with SimServer(answer) as server, VllmHttpAdapter(server.url, retry={"attempts": 1}) as engine:
        yield server, engine


def at(server: SimServer, path: str) -> list[Request]:
    """The requests for a path."""
    return [request for request in server.requests if request.path == path]


def jobs(server: SimServer) -> list[Request]:
    """The jobs that reached the server."""
    return [request for request in server.requests if request.path.endswith("completions")]


def cancelled(engine: VllmHttpAdapter, task: Any = "Hi", **fields: Any) -> float:
    """Runs a job up to its first token and cancels it; gives the seconds that the reader then took to end."""
    with engine.submit(task, max_tokens=100_000, **fields) as stream:
        next(stream)
        next(stream)
        stream.cancel()
        began = time.monotonic()
        rest = list(stream)
        took = time.monotonic() - began
    assert [frame.type for frame in rest] == ["end"]
    return took


# --- ids


@pytest.mark.parametrize(
    ("job_id", "sent"), [("job-1", "job-1"), ("a b", "a b"), ("été", None), (" x", None), ("x ", None)]
)
def test_the_engine_takes_our_name_of_the_job(job_id: str, sent: str | None) -> None:
    """X-Request-Id is the job's id; one that a header cannot hold faithfully is not sent, and the job runs."""
    with serving() as (server, engine):
        assert engine.submit("Hi", job_id=job_id, max_tokens=2).result().finish_reason == "length"
        [request] = jobs(server)
        assert request.header("X-Request-Id") == sent


def test_the_answer_has_the_job_in_its_id() -> None:
    """What the engine logs of a job can be found by the job's own id."""
    with serving(request_id_headers=True) as (_, engine):
        told = engine.submit("Hi", job_id="job-1", max_tokens=2).result().metrics.engine
        assert (told["id"], told["request_id"]) == ("cmpl-job-1", "job-1")
        assert engine.submit(CHAT, job_id="job-2").result().metrics.engine["id"] == "chatcmpl-job-2"


# --- the abort route


@pytest.mark.parametrize(("task", "name"), [("Hi", "cmpl-job-1-0"), (CHAT, "chatcmpl-job-1")])
def test_a_cancel_calls_the_abort_route_once(task: Any, name: str) -> None:
    """With the engine's own id of the job, on a connection that is not the job's."""
    with serving(endless=True, scale_out=True, delay=0.001) as (server, engine):
        cancelled(engine, task, job_id="job-1")
        [call] = at(server, ABORT)
        assert call.json == {"request_ids": [name]}
        assert call.connection != jobs(server)[0].connection
        assert server.wait_idle(SOON)
        cancelled(engine, task)
        assert len(at(server, ABORT)) == 2


def test_the_abort_route_ends_a_job_whose_connection_stays() -> None:
    """Behind a proxy that keeps a dead client's request alive, the route is what frees the engine."""
    with VllmSimulator(endless=True, scale_out=True, delay=0.001) as server:
        body = {"model": "recite", "prompt": "Hi", "stream": True, "max_tokens": 100_000}
        held = threading.Event()

        def proxy(exchange: Exchange) -> None:
            """Passes the job on by itself, and never tells of the client's end."""
            if exchange.request.path == ABORT:
                answer = requests.post(server.url + ABORT, data=exchange.request.body, headers=JSON, timeout=SOON)
                exchange.respond(answer.status_code, [], answer.content)
                return
            if exchange.request.method == "GET":
                exchange.json(404, {})
                return
            headers = {**JSON, "X-Request-Id": exchange.request.header("X-Request-Id") or ""}
            with requests.post(server.url + "/v1/completions", json=body, headers=headers, stream=True) as upstream:  # noqa: S113 - endless
                exchange.head(200, [("Content-Type", "text/event-stream")])
                for data in upstream.iter_content(None):
                    if not held.is_set():
                        exchange.chunk(data)
                        held.set()

        with answering(proxy) as (_, engine):
            cancelled(engine, job_id="job-1")
            assert held.is_set()
            assert server.wait_idle(SOON)


@pytest.mark.parametrize("status", [403, 404, 401, 500])
def test_a_route_that_is_not_there_is_not_asked_again(status: int) -> None:
    """Without --enable-scale-out it is 403, in older lines 404: one cancel asks, later ones know."""

    def answer(exchange: Exchange) -> None:
        if exchange.request.path == ABORT:
            exchange.json(status, {"error": {"message": "no"}})
        else:
            endless(exchange)

    with answering(answer) as (server, engine):
        for _ in range(3):
            cancelled(engine)
        assert len(at(server, ABORT)) == 1
        assert len(jobs(server)) == 3


def endless(exchange: Exchange) -> None:
    """A stream of tokens without end; 404 to every other question."""
    if exchange.request.method == "GET":
        exchange.json(404, {"detail": "Not Found"})
        return
    exchange.head(200, [("Content-Type", "text/event-stream")])
    event = f"data: {json.dumps({'choices': [{'index': 0, 'text': 'x', 'delta': {'content': 'x'}}]})}\n\n".encode()
    while exchange.pause(0.001):
        exchange.chunk(event)


@pytest.mark.parametrize("half", [b"", b"HTTP/1.1 200 OK\r\nContent-Le"])
def test_a_hanging_abort_route_holds_nobody(half: bytes) -> None:
    """The loop goes on after some 200 ms; a busy engine may obey later, so the next cancel asks again."""

    def answer(exchange: Exchange) -> None:
        if exchange.request.path == ABORT:
            exchange.write(half)
            exchange.wait_gone()
        else:
            endless(exchange)

    with answering(answer) as (server, engine):
        assert cancelled(engine) < 1.0
        assert cancelled(engine) < 1.0
        assert server.wait_for(lambda: len(at(server, ABORT)) == 2 and len(server.closes) >= 4, SOON)


def test_a_cancel_itself_never_waits_for_the_route() -> None:
    """``cancel`` may be called from a signal handler: it does no I/O, only the reader does."""

    def answer(exchange: Exchange) -> None:
        if exchange.request.path == ABORT:
            exchange.wait_gone()
        else:
            endless(exchange)

    with answering(answer) as (server, engine), engine.submit("Hi") as stream:
        next(stream)
        stream.cancel()
        assert next(stream).type == "end"
        assert at(server, ABORT) == []
        assert list(stream) == []
        assert server.wait_for(lambda: len(at(server, ABORT)) == 1, SOON)


def test_a_blocked_reader_has_its_end_before_the_route_is_asked() -> None:
    """The route costs an answer of a busy engine: it is called when the reader comes back for more."""
    with serving(scale_out=True) as (server, engine):
        server.misbehave(Fault.silent_after(1))
        stream = engine.submit("Hi")
        frames = [next(stream), next(stream)]
        threading.Timer(0.2, stream.cancel).start()
        frames.append(next(stream))
        assert [frame.type for frame in frames] == ["started", "token", "end"]
        assert at(server, ABORT) == []
        assert list(stream) == []
        assert len(at(server, ABORT)) == 1


def test_a_stream_that_is_dropped_is_aborted_too() -> None:
    """Leaving the loop is a cancel."""
    with serving(endless=True, scale_out=True, delay=0.001) as (server, engine):
        for frame in engine.submit("Hi", job_id="job-1", max_tokens=100_000):
            if frame.type == "token":
                break
        del frame
        assert server.wait_for(lambda: bool(at(server, ABORT)), SOON)
        assert at(server, ABORT)[0].json == {"request_ids": ["cmpl-job-1-0"]}
        assert server.wait_idle(SOON)


def test_a_queued_job_is_aborted() -> None:
    """A cancel before any event: the engine has the job in its queue."""
    options: dict[str, Any] = {"endless": True, "scale_out": True, "delay": 0.001, "slots": 1}
    with serving(**options) as (server, engine), engine.submit("Hi", max_tokens=100_000) as first:
        next(first)
        waiting = engine.submit("Hi", job_id="job-2")
        threading.Timer(0.2, waiting.cancel).start()
        assert [frame.type for frame in waiting] == ["end"]
        assert [call.json for call in at(server, ABORT)] == [{"request_ids": ["cmpl-job-2-0"]}]


def test_jobs_that_are_not_at_the_engine_are_not_aborted() -> None:
    """Neither one that ended, nor one that was refused or failed, nor one that was never sent."""
    with serving(scale_out=True) as (server, engine):
        done = engine.submit("Hi", max_tokens=2)
        done.result()
        assert done.cancel() is False
        server.misbehave(Fault.status(400), Fault.error_after(1), Fault.cut_after(1))
        for _ in range(3):
            failed = engine.submit("Hi", max_tokens=2)
            with pytest.raises(WorkerError):
                failed.result()
            assert failed.cancel() is False
        early = engine.submit("Hi")
        early.cancel()
        assert [frame.type for frame in early] == ["end"]
        early.close()
        assert at(server, ABORT) == []


def test_a_job_in_a_back_off_is_not_aborted() -> None:
    """It was refused, and waits to be sent again."""
    with VllmSimulator(scale_out=True) as server, VllmHttpAdapter(server.url) as engine:
        server.misbehave(Fault.status(503, headers=[("Retry-After", "30")]))
        stream = engine.submit("Hi")
        for frame in stream.ticks(0.02):
            if frame is None and jobs(server):
                stream.cancel()
        assert at(server, ABORT) == []


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_aborts_nothing() -> None:
    """The job is the parent's: a child that drops its copy of the stream makes no call."""
    with serving(endless=True, scale_out=True, delay=0.001) as (server, engine):
        stream = engine.submit("Hi", max_tokens=100_000)
        next(stream)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                stream.close()
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        next(stream)
        assert at(server, ABORT) == []
        stream.cancel()
        list(stream)
        assert len(at(server, ABORT)) == 1


# --- requests


def body_of(task: Any = "Hi", path: str = "", **fields: Any) -> dict[str, Any]:
    """The JSON that a task is sent as."""
    with VllmSimulator() as server, VllmHttpAdapter(server.url + path) as engine:
        engine.submit(task, **fields).result()
        [request] = jobs(server)
        body: dict[str, Any] = request.json
        return body


ASKED = {"max_tokens": 9, "stream": True, "stream_options": {"include_usage": True}}


def test_a_task_is_sent_as_it_is_and_no_more() -> None:
    """The exact body of both routes; the token limit has its old name, which every vLLM knows."""
    assert body_of(max_tokens=9) == {"prompt": "Hi", **ASKED}
    assert body_of(CHAT, max_tokens=9, model="recite") == {"messages": CHAT, "model": "recite", **ASKED}


def test_the_sampling_of_vllm_alone_is_in_the_body() -> None:
    """top_k, min_p and repetition_penalty stand at the top; logprobs ask for the tokens' ids too."""
    fields = {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1}
    assert body_of(max_tokens=9, **fields) == {"prompt": "Hi", **fields, **ASKED}
    logprobs = {"logprobs": 2, "return_tokens_as_token_ids": True}
    assert body_of(max_tokens=9, logprobs=2) == {"prompt": "Hi", **logprobs, **ASKED}
    chat = {"logprobs": True, "top_logprobs": 2, "return_tokens_as_token_ids": True}
    assert body_of(CHAT, max_tokens=9, logprobs=2) == {"messages": CHAT, **chat, **ASKED}


def test_a_grammar_is_written_for_both_generations() -> None:
    """``guided_grammar`` up to 0.11, ``structured_outputs`` since: each ignores the other's."""
    grammar = 'root ::= "a"'
    with serving() as (server, engine), pytest.raises(WorkerError):
        engine.submit("Hi", grammar=grammar).result()  # the simulator follows none
    body = jobs(server)[0].json
    assert (body["structured_outputs"], body["guided_grammar"]) == ({"grammar": grammar}, grammar)


@pytest.mark.parametrize("path", ["/v1", "/v1/", "/", ""])
def test_the_url_of_a_client_of_openai_is_taken(path: str) -> None:
    """A final /v1 is no part of the base: health and metrics lie beside it."""
    with VllmSimulator() as server, VllmHttpAdapter(server.url + path) as engine:
        engine.submit("Hi", max_tokens=2).result()
        assert engine.health().ready
        assert {request.path for request in server.requests} == {"/v1/completions", "/version", "/v1/models", "/health"}


def test_a_base_path_is_kept() -> None:
    """Behind a prefix every route has it."""
    paths = []

    def answer(exchange: Exchange) -> None:
        paths.append(exchange.request.path)
        exchange.respond(200, [], b"")

    with SimServer(answer) as server, VllmHttpAdapter(server.url + "/team/v1") as engine:
        assert engine.health().ready
    assert paths == ["/team/health"]


GOOD: dict[str, Any] = {
    "ignore_eos": True, "min_tokens": 1, "stop_token_ids": [2], "include_stop_str_in_output": False, "bad_words": ["x"],
    "length_penalty": 1, "priority": -1, "cache_salt": "s", "stream_interval": 1, "session_id": "s",
    "vllm_xargs": {"a": [1]}, "truncate_prompt_tokens": -1, "of_tomorrow": {"x": None}, "skip_special_tokens": None,
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_parameters_of_vllm_go_through_extra(name: str) -> None:
    """As they are; one that no version here knows passes too."""
    body = body_of(max_tokens=9, extra={name: GOOD[name]})
    assert body == {"prompt": "Hi", **ASKED, name: GOOD[name]}


@pytest.mark.parametrize(
    ("name", "value", "want"),
    [
        ("ignore_eos", "yes", "bool"),
        ("min_tokens", 1.5, "int"),
        ("min_tokens", True, "int"),
        ("stop_token_ids", 2, "list[int]"),
        ("bad_words", "x", "list[str]"),
        ("structured_outputs", "root", "dict"),
        ("priority", "high", "int"),
    ],
)
def test_a_parameter_of_the_wrong_type_is_refused(name: str, value: Any, want: str) -> None:
    """vLLM would take it and ignore it, or fail: it is named, with what it wants, and nothing is sent."""
    with VllmHttpAdapter("http://127.0.0.1:9") as engine, pytest.raises(InvalidRequest, match="vllm") as caught:
        engine.submit("Hi", extra={name: value})
    assert caught.value.field == f"extra.{name}"
    assert want in caught.value.message


@pytest.mark.parametrize("key", ["stream", "stream_options", "n", "request_id", "use_beam_search", "prompt_embeds"])
def test_extra_cannot_set_what_the_adapter_owns(key: str) -> None:
    """What would change how the answer is read, or who it belongs to, is refused."""
    with VllmHttpAdapter("http://127.0.0.1:9") as engine, pytest.raises(InvalidRequest) as caught:
        engine.submit("Hi", extra={key: 1})
    assert caught.value.field == f"extra.{key}"


def test_tools_need_messages() -> None:
    """A prompt's route has none."""
    tool = {"type": "function", "function": {"name": "f"}}
    with VllmHttpAdapter("http://127.0.0.1:9") as engine, pytest.raises(InvalidRequest, match="messages") as caught:
        engine.submit("Hi", tools=[tool])
    assert caught.value.field == "tools"


# --- errors


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(
    ("status", "fields", "kind"),
    [
        (404, {"type": "NotFoundError", "param": "model"}, ModelNotFound),
        (400, {"type": "BadRequestError", "message": "maximum context length is 512 tokens"}, ContextOverflow),
        (400, {"type": "Bad Request", "param": "body.temperature"}, InvalidRequest),
        (401, {}, AuthenticationFailed),
        (403, {"type": "PermissionDeniedError"}, AuthenticationFailed),
        (500, {"type": "InternalServerError"}, EngineUnavailable),
        (503, {"type": "Service Unavailable"}, CapacityExceeded),
        (503, {"type": "ServiceUnavailableError"}, EngineUnavailable),
        (501, {"type": "NotImplementedError"}, InvalidRequest),
    ],
)
def test_both_generations_of_bodies_are_read(status: int, fields: dict[str, Any], kind: type, old: bool) -> None:
    """Under ``error`` since 0.10.1, flat before."""
    told = {"message": "so it is", "code": status, **fields}
    body = {"object": "error", **told} if old else {"error": told}
    with serving() as (server, engine):
        server.misbehave(Fault.status(status, body))
        with pytest.raises(WorkerError) as caught:
            engine.submit("Hi").result()
    error = caught.value
    assert type(error) is kind
    assert told["message"] in error.message
    assert (error.status, error.retriable) == (status, status == 503)
    if status == 400:
        assert getattr(error, "field", None) == ("temperature" if "param" in fields else None)


@pytest.mark.parametrize("old", [False, True])
def test_both_generations_of_error_events_are_read(old: bool) -> None:
    """In the stream too, and the [DONE] behind them proves nothing."""
    with serving() as (server, engine):
        server.misbehave(Fault.error_after(1, message="so it is", old=old))
        with pytest.raises(EngineUnavailable, match="so it is") as caught:
            engine.submit("Hi").result()
        assert (caught.value.tokens_seen, caught.value.retriable) == (1, False)


def test_a_full_queue_is_tried_again_and_a_dead_engine_is_not() -> None:
    """503 of the queue is capacity; an engine that died answers 500, which may have begun."""
    with (
        VllmSimulator(slots=1, max_queued=0, endless=True, delay=0.001) as server,
        VllmHttpAdapter(server.url, retry={"attempts": 3, "base": 0.001}) as engine,
    ):
        with engine.submit("Hi", max_tokens=100_000) as holder:
            next(holder)
            with pytest.raises(CapacityExceeded) as full:
                engine.submit("Hi").result()
        assert full.value.retriable
        assert len(jobs(server)) == 4
        assert server.wait_idle(SOON)
        server.dead = True
        with pytest.raises(EngineUnavailable) as dead:
            engine.submit("Hi").result()
        assert (dead.value.status, dead.value.retriable) == (500, False)
        assert len(jobs(server)) == 5


def test_an_abort_by_somebody_else_is_no_good_end() -> None:
    """The same route in another's hands: the text so far is kept, and finish_reason abort is a failure."""
    with serving(endless=True, scale_out=True, delay=0.001) as (server, engine):
        stream = engine.submit("Hi", job_id="job-1", max_tokens=100_000)
        next(stream)
        next(stream)
        assert requests.post(server.url + ABORT, json={"request_ids": ["cmpl-job-1-0"]}, timeout=SOON).ok
        with pytest.raises(StreamTruncated) as caught:
            list(stream)
        assert caught.value.partial_text
        assert len(at(server, ABORT)) == 1  # and none of ours


# --- health


def health(*, status: int = 200, body: bytes = b"", kind: str = "") -> Any:
    """What the adapter makes of an answer at /health."""
    headers = [("Content-Type", kind)] if kind else []
    with answering(lambda exchange: exchange.respond(status, headers, body)) as (server, engine):
        result = engine.health()
        assert [request.target for request in server.requests] == ["/health"]
    return result


@pytest.mark.parametrize(
    ("answer", "state", "live", "words"),
    [
        ({}, "healthy", True, ""),
        ({"status": 503}, "unhealthy", False, "the engine is dead"),
        (
            {"status": 503, "body": b'{"error":"scaling up"}', "kind": "application/json"},
            "degraded",
            True,
            "scaling up",
        ),
        ({"body": b"<html>", "kind": "text/html"}, "unhealthy", True, "not from vLLM"),
        ({"body": b'{"status":"ok"}', "kind": "application/json"}, "unhealthy", True, "not from vLLM"),
        ({"status": 404, "body": b'{"detail":"Not Found"}', "kind": "application/json"}, "degraded", True, "Not Found"),
        ({"status": 401}, "degraded", True, "401"),
        ({"status": 502, "body": b"<html>", "kind": "text/html"}, "unhealthy", False, "502"),
    ],
)
def test_health_is_the_status_and_the_silence(answer: dict[str, Any], state: str, live: bool, words: str) -> None:
    """200 without a word is health; 503 without one is a dead engine; with words it is something else's."""
    told = health(**answer)
    assert (told.state, told.live, told.ready) == (state, live, state == "healthy")
    assert words in told.message


def test_health_of_a_closed_port_is_down() -> None:
    """vLLM listens only when it is ready: refused is loading or gone, and nobody can tell."""
    with VllmSimulator() as server:
        url = server.url
    with VllmHttpAdapter(url) as engine:
        told = engine.health()
        assert (told.state, told.live, told.ready) == ("unhealthy", False, False)


def test_health_follows_the_engine_and_probes_it() -> None:
    """/health does not test that a token can be made; a probe does, without a key for one and with it for the other."""
    with serving(api_key=KEY) as (server, engine):
        assert engine.health().ready
        probed = engine.health(probe=True)
        assert (probed.ready, probed.live) == (False, True)
        assert len(jobs(server)) == 1
        server.dead = True
        assert engine.health().live is False


# --- identity and props


def test_started_tells_version_and_served_name() -> None:
    """From GET /version and /v1/models, asked once; the task's own model wins."""
    with serving(version="0.9.1", model="first", aliases=["second"]) as (server, engine):
        for _ in range(2):
            stream = engine.submit("Hi", max_tokens=2)
            stream.result()
            assert stream.started is not None
            assert (stream.started.engine_version, stream.started.model) == ("0.9.1", "first")
        other = engine.submit("Hi", max_tokens=2, model="second")
        other.result()
        assert other.started is not None
        assert other.started.model == "second"
        assert len(at(server, "/version")) == len(at(server, "/v1/models")) == 1
        assert engine.engine_version() == "0.9.1"


def test_a_version_that_is_not_told_is_unknown() -> None:
    """A gateway that passes only /v1 on: jobs run, and nothing is asked again with each of them."""

    def answer(exchange: Exchange) -> None:
        if exchange.request.method == "GET":
            exchange.json(404, {"detail": "Not Found"})
            return
        exchange.head(200, [("Content-Type", "text/event-stream")])
        exchange.chunk(b'data: {"model": "m", "choices": [{"text": "Hi", "finish_reason": "stop"}]}\n\n')
        exchange.end()

    with answering(answer) as (server, engine):
        for _ in range(3):
            stream = engine.submit("Hi")
            stream.result()
            assert stream.started is not None
            assert (stream.started.engine_version, stream.started.model) == ("unknown", "m")
        assert len(at(server, "/version")) == 1
        with pytest.raises(ModelNotFound):
            engine.engine_version()


@pytest.mark.parametrize("old", [False, True])
def test_props_are_read_in_both_generations(old: bool) -> None:
    """The KV cache's metric was renamed, others came; running and waiting are the same everywhere."""
    kv = "gpu_cache_usage_perc" if old else "kv_cache_usage_perc"
    gauges = {"num_requests_running": 3.0, "num_requests_waiting": 2.0, kv: 0.25}
    with serving(old=old, gauges=gauges, n_ctx=512, version="0.8.5" if old else "0.32.0") as (_, engine):
        props = engine.props()
    assert (props.engine, props.engine_version, props.model) == ("vllm", "0.8.5" if old else "0.32.0", "recite")
    assert (props.running, props.waiting, props.kv_cache_usage) == (3, 2, 0.25)
    assert (props.context_size, props.model_digest) == (512, "recite/models/recite-hf-512")
    assert props.residency == "unknown"
    assert (props.slots_total, props.slots_free) == (None, None)
    assert sorted(props.raw) == ["/metrics", "/v1/models", "/version"]


ASLEEP = {
    f'engine_sleep_state{{sleep_state="{state}"}}': 0.0 for state in ("awake", "weights_offloaded", "discard_all")
}


@pytest.mark.parametrize(
    ("gauges", "labels", "residency"),
    [
        ({}, {}, "unknown"),
        ({**ASLEEP, 'engine_sleep_state{sleep_state="awake"}': 1.0}, {}, "unknown"),
        ({**ASLEEP, 'engine_sleep_state{sleep_state="weights_offloaded"}': 1.0}, {}, "cpu"),
        ({**ASLEEP, 'engine_sleep_state{sleep_state="discard_all"}': 1.0}, {}, "cpu"),
        ({}, {"cpu_offload_gb": "0"}, "unknown"),
        ({}, {"cpu_offload_gb": "0.0"}, "unknown"),
        ({}, {"cpu_offload_gb": "None"}, "unknown"),
        ({}, {"cpu_offload_gb": "4"}, "partial"),
        ({}, {"swap_space_bytes": "4294967296", "num_gpu_blocks": "16384"}, "unknown"),
        ({"num_requests_swapped": 1.0}, {}, "partial"),
        ({"num_requests_swapped": 0.0, "cpu_cache_usage_perc": 0.5}, {}, "partial"),
        ({"num_requests_swapped": 0.0, "cpu_cache_usage_perc": 0.0}, {}, "unknown"),
    ],
)
def test_residency_is_told_only_by_a_positive_sign(gauges: Any, labels: Any, residency: str) -> None:
    """A CPU build reports GPU blocks and a share of GPU memory as well: they prove nothing."""
    with serving(gauges=gauges, cache_config=labels) as (_, engine):
        assert engine.props().residency == residency


def test_props_need_the_models_and_can_do_without_the_rest() -> None:
    """/version and /metrics may be hidden by a gateway; a list of models that is none is another server."""

    def answer(exchange: Exchange) -> None:
        if exchange.request.path == "/v1/models":
            exchange.json(200, {"data": [{"id": "m", "root": None, "max_model_len": None}]})
        else:
            exchange.json(404, {"detail": "Not Found"})

    with answering(answer) as (_, engine):
        props = engine.props()
        assert (props.engine_version, props.model, props.model_digest, props.context_size) == (
            "unknown",
            "m",
            None,
            None,
        )
        assert (props.running, props.waiting, props.kv_cache_usage, props.residency) == (None, None, None, "unknown")
    with (
        answering(lambda exchange: exchange.json(200, {"data": "none"})) as (_, engine),
        pytest.raises(UnknownError, match="another server"),
    ):
        engine.props()


def test_props_are_those_of_the_adapters_model() -> None:
    """Of several served names that of the adapter; one that is not served has no card."""
    with VllmSimulator(aliases=["second"], n_ctx=512) as server:
        for model, told, size in (("second", "second", 512), ("nobody", "recite", None), (None, "recite", 512)):
            with VllmHttpAdapter(server.url, model=model) as engine:
                props = engine.props()
                assert (props.model, props.context_size) == (told, size)
