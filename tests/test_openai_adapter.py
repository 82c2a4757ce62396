"""The OpenAI adapter against real servers: where requests go and what is in them, what is learnt, retried and told."""

from __future__ import annotations

import email.utils
import itertools
import json
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from canary import KEY, PASSWORD, PROMPT, QUERY
from worker_adapters import OpenAIHttpAdapter, connect
from worker_adapters.errors import (
    EngineUnavailable,
    InvalidRequest,
    StreamTruncated,
    UnknownError,
    WorkerError,
    WorkerTimeout,
)
from worker_adapters.simulate import Exchange, Fault, OpenAISimulator, Request, SimServer

pytestmark = pytest.mark.openai

SOON = 5.0  # seconds: what must come has come by then, even on a loaded machine
CHAT = [{"role": "user", "content": PROMPT}]
JSON = [("Content-Type", "application/json")]
TEXT = {"choices": [{"index": 0, "text": "Hi", "delta": {"content": "Hi"}, "finish_reason": "stop"}]}
RESPONSE = {"type": "response.completed", "response": {"status": "completed"}}
PIECE = {"object": "chat.completion", "choices": [{"message": {"content": "Hi"}, "finish_reason": "stop"}]}


def answer(exchange: Exchange) -> None:
    """A list of models, or a stream of one token."""
    if exchange.request.method == "GET":
        exchange.json(200, {"object": "list", "data": [{"id": "m"}]})
        return
    exchange.head(200, [("Content-Type", "text/event-stream")])
    for value in [RESPONSE] if exchange.request.path.endswith("/responses") else [TEXT]:
        exchange.chunk(f"data: {json.dumps(value)}\n\n".encode())
    exchange.end()


def refusing(*fields: str, **error: Any) -> Callable[[Exchange], None]:
    """Answers only requests that have none of these fields, and blames the first one otherwise."""

    def handle(exchange: Exchange) -> None:
        found = [name for name in fields if name in exchange.request.json]
        if not found:
            answer(exchange)
            return
        told = {"message": f"Unsupported parameter: '{found[0]}'.", "code": "unsupported_parameter", "param": found[0]}
        exchange.json(400, {"error": {**told, **error}})

    return handle


@contextmanager
def adapter(server: SimServer, path: str = "", **options: Any) -> Iterator[OpenAIHttpAdapter]:
    """An adapter of the server that does not try again unless it is told to."""
    fields = {"model": "m", "retry": {"attempts": 1}, **options}
    with OpenAIHttpAdapter(server.url + path, **fields) as made:
        yield made


def posts(server: SimServer) -> list[Request]:
    """The jobs that reached the server."""
    return [request for request in server.requests if request.method == "POST"]


def body_of(task: Any, fields: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    """The JSON that a task is sent as."""
    with SimServer(answer) as server, adapter(server, **options) as engine:
        engine.submit(task, **(fields or {})).result()
        [request] = posts(server)
        body: dict[str, Any] = request.json
        return body


# --- routes

AZURE = "/openai/deployments/d/chat/completions?api-version=2024-10-21"
ROUTES: dict[str, tuple[str, dict[str, Any], Any, str]] = {
    "no path": ("", {}, CHAT, "/v1/chat/completions"),
    "a slash": ("/", {}, CHAT, "/v1/chat/completions"),
    "v1": ("/v1", {}, CHAT, "/v1/chat/completions"),
    "v1 and a slash": ("/v1/", {}, CHAT, "/v1/chat/completions"),
    "Groq": ("/openai/v1", {}, CHAT, "/openai/v1/chat/completions"),
    "OpenRouter": ("/api/v1", {}, CHAT, "/api/v1/chat/completions"),
    "a path without v1": ("/base", {}, CHAT, "/base/chat/completions"),
    "a query": ("/v1?tenant=7", {}, CHAT, "/v1/chat/completions?tenant=7"),
    "a prompt": ("", {}, "Hi", "/v1/completions"),
    "a prompt as a chat": ("", {"api": "chat"}, "Hi", "/v1/chat/completions"),
    "completions": ("", {"api": "completions"}, "Hi", "/v1/completions"),
    "responses": ("", {"api": "responses"}, "Hi", "/v1/responses"),
    "Azure": ("", {"api_version": "2024-10-21", "deployment": "d"}, CHAT, AZURE),
    "Azure, named by the task": ("", {"api_version": "2024-10-21", "model": "d"}, CHAT, AZURE),
    "Azure, its name for all": ("", {"api_version": "2024-10-21", "deployment": "d", "model": "m"}, CHAT, AZURE),
    "Azure, a full URL": ("/openai/deployments/d?api-version=2024-10-21", {}, CHAT, AZURE),
    "Azure, a URL with its name": ("/openai/deployments/d/", {"api_version": "2024-10-21"}, CHAT, AZURE),
    "Azure, a name to be quoted": (
        "",
        {"api_version": "2024-10-21", "deployment": "a b/c"},
        CHAT,
        "/openai/deployments/a%20b%2Fc/chat/completions?api-version=2024-10-21",
    ),
    "Azure's newer base": (
        "/openai/v1",
        {"api_version": "preview"},
        CHAT,
        "/openai/v1/chat/completions?api-version=preview",
    ),
}


@pytest.mark.parametrize("name", ROUTES)
def test_a_job_goes_to_its_route(name: str) -> None:
    """The URL's path is the base, an address alone gets /v1, and Azure has its own forms."""
    path, options, task, target = ROUTES[name]
    with SimServer(answer) as server, adapter(server, path, **options) as engine:
        engine.submit(task).result()
        assert [(request.method, request.target) for request in server.requests] == [("POST", target)]


@pytest.mark.parametrize(
    ("path", "options", "target"),
    [
        ("", {}, "/v1/models"),
        ("/openai/v1/", {}, "/openai/v1/models"),
        ("", {"api_version": "2024-10-21", "deployment": "d"}, "/openai/models?api-version=2024-10-21"),
        ("/openai/deployments/d?api-version=2024-10-21", {}, "/openai/models?api-version=2024-10-21"),
    ],
)
def test_health_and_props_ask_for_the_models(path: str, options: dict[str, Any], target: str) -> None:
    """One GET below the base, and never below a deployment."""
    with SimServer(answer) as server, adapter(server, path, **options) as engine:
        assert engine.health().ready
        assert engine.props().model == "m"
        assert {request.target for request in server.requests} == {target}


@pytest.mark.parametrize(
    ("host", "path", "header"),
    [
        ("name.openai.azure.com", "/openai/v1/chat/completions", "api-key"),
        ("name.cognitiveservices.azure.com", "/openai/v1/chat/completions", "api-key"),
        ("name.services.ai.azure.com", "/openai/v1/chat/completions", "api-key"),
        ("openai.azure.com.example.org", "/v1/chat/completions", "Authorization"),
        ("api.openai.com", "/v1/chat/completions", "Authorization"),
    ],
)
def test_azure_is_known_by_its_host(host: str, path: str, header: str) -> None:
    """Its hosts get its base path and its header for the key; a name that only looks like one gets neither."""
    with SimServer(answer) as server:
        options = {"proxy": server.url, "api_key": KEY, "model": "m"}
        with OpenAIHttpAdapter(f"http://{host}", **options) as engine:
            engine.submit(CHAT).result()
        [request] = server.requests
    assert request.target == f"http://{host}{path}"
    assert request.header(header) == (KEY if header == "api-key" else f"Bearer {KEY}")
    assert request.json.get(
        "max_completion_tokens" if header == "api-key" or host == "api.openai.com" else "max_tokens"
    )


def test_a_unix_socket_has_the_same_routes(tmp_path: Any) -> None:
    """The path of the URL is the socket's: the base is /v1."""
    with SimServer(answer, unix_path=str(tmp_path / "s")) as server, adapter(server) as engine:
        assert engine.submit(CHAT).result().text == "Hi"
        assert engine.health().ready
        assert [request.path for request in server.requests] == ["/v1/chat/completions", "/v1/models"]


def test_a_deployment_wants_an_api_version() -> None:
    """In the URL's query or as an option: without one Azure knows no such path."""
    for options in ({"deployment": "d"}, {"url": "http://127.0.0.1:9/openai/deployments/d"}):
        with pytest.raises(InvalidRequest) as caught:
            OpenAIHttpAdapter(**{"url": "http://127.0.0.1:9", **options})
        assert caught.value.field == "api_version"


def test_azure_without_a_deployment_says_what_it_wants() -> None:
    """A task that names no model has no path: refused by submit, and nothing is sent."""
    with SimServer(answer) as server, adapter(server, api_version="2024-10-21", model=None) as engine:
        with pytest.raises(InvalidRequest, match="deployment") as caught:
            engine.submit(CHAT)
        assert (caught.value.field, server.requests) == ("model", ())


# --- headers

DEPLOYED = {"api_version": "2024-10-21", "deployment": "d"}


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, {"Authorization": None, "api-key": None}),
        ({"api_key": KEY}, {"Authorization": f"Bearer {KEY}", "api-key": None}),
        ({"api_key": KEY, **DEPLOYED}, {"Authorization": None, "api-key": KEY}),
        ({"api_key": KEY, "key_header": "X-Key"}, {"Authorization": None, "X-Key": KEY}),
        ({"api_key": KEY, **DEPLOYED, "key_header": "Authorization"}, {"Authorization": f"Bearer {KEY}"}),
        ({"headers": {"Authorization": "Bearer aad"}, **DEPLOYED}, {"Authorization": "Bearer aad"}),
        ({"organization": "org", "project": "p"}, {"OpenAI-Organization": "org", "OpenAI-Project": "p"}),
        ({"organization": "org", "headers": {"X-A": "b"}}, {"OpenAI-Organization": "org", "X-A": "b"}),
        ({}, {"OpenAI-Organization": None, "OpenAI-Project": None}),
    ],
)
def test_who_asks_stands_in_headers(options: dict[str, Any], wanted: dict[str, str | None]) -> None:
    """Bearer, Azure's api-key or any other header; organization and project where they are given."""
    with SimServer(answer) as server, adapter(server, **options) as engine:
        engine.submit(CHAT).result()
        engine.health()
        for request in server.requests:
            assert {name: request.header(name) for name in wanted} == wanted


def test_the_key_is_asked_for_each_request() -> None:
    """A callable is called anew, so that a key may change while jobs run."""
    keys = iter(["k-first", "k-second"])
    with SimServer(answer) as server, adapter(server, api_key=lambda: next(keys)) as engine:
        for _ in range(2):
            engine.submit(CHAT).result()
        assert [request.header("Authorization") for request in posts(server)] == ["Bearer k-first", "Bearer k-second"]


@pytest.mark.parametrize(("job_id", "sent"), [("job-1", "job-1"), ("été", None)])
def test_the_server_is_told_the_job(job_id: str, sent: str | None) -> None:
    """X-Client-Request-Id is what OpenAI's support finds a request by; a header holds ASCII only."""
    with SimServer(answer) as server, adapter(server) as engine:
        engine.submit(CHAT, job_id=job_id).result()
        [request] = posts(server)
        assert request.header("X-Client-Request-Id") == sent


# --- bodies

ASKED = {"stream": True, "stream_options": {"include_usage": True}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def test_a_task_is_sent_as_it_is_and_no_more() -> None:
    """The exact body of each API: what was not set is not sent."""
    assert body_of(CHAT) == {"model": "m", "messages": CHAT, "max_tokens": 256, **ASKED}
    assert body_of("Hi") == {"model": "m", "prompt": "Hi", "max_tokens": 256, **ASKED}
    assert body_of("Hi", api="chat") == {
        "model": "m", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 256, **ASKED,
    }  # fmt: skip
    assert body_of("Hi", api="completions", model=None) == {"prompt": "Hi", "max_tokens": 256, **ASKED}
    assert body_of("Hi", api="responses") == {"model": "m", "input": "Hi", "max_output_tokens": 256, "stream": True}
    assert body_of(CHAT, api="responses") == {"model": "m", "input": CHAT, "max_output_tokens": 256, "stream": True}


def test_every_field_of_a_chat_reaches_the_server() -> None:
    """All fields that the adapter says it has, under the dialect's names."""
    fields: dict[str, Any] = {
        "max_tokens": 9, "temperature": 0.5, "top_p": 0.9, "seed": 7, "stop": ["a", "b"], "presence_penalty": 0.1,
        "frequency_penalty": 0.2, "logit_bias": {"5": 1.5}, "tools": [TOOL], "tool_choice": "auto",
        "response_format": {"type": "json_schema", "json_schema": {"schema": {}}},
    }  # fmt: skip
    named = {"type": "json_schema", "json_schema": {"name": "answer", "schema": {}}}
    wanted = {**fields, "response_format": named, "logprobs": True, "top_logprobs": 2}
    assert body_of(CHAT, {**fields, "logprobs": 2}) == {"model": "m", "messages": CHAT, **wanted, **ASKED}
    assert body_of("Hi", {"logprobs": 2})["logprobs"] == 2


def test_extra_reaches_the_server_as_it_is() -> None:
    """Unknown fields pass through and win over the adapter's choices of names."""
    body = body_of(CHAT, {"extra": {"top_k": 5, "reasoning_effort": "low", "odd": {"a": [None]}}})
    assert (body["top_k"], body["reasoning_effort"], body["odd"]) == (5, "low", {"a": [None]})


@pytest.mark.parametrize(
    "key", ["stream", "stream_options", "prompt", "messages", "n", "best_of", "echo", "id", "input", "background"]
)
def test_extra_cannot_set_what_the_adapter_owns(key: str) -> None:
    """What decides how the answer is read is not the caller's: named, and nothing is sent."""
    with OpenAIHttpAdapter("http://127.0.0.1:9") as engine, pytest.raises(InvalidRequest) as caught:
        engine.submit("Hi", extra={key: 1})
    assert caught.value.field == f"extra.{key}"


@pytest.mark.parametrize(
    ("api", "task", "field", "value"),
    [
        *[("auto", CHAT, name, 0.5) for name in ("min_p", "repetition_penalty")],
        ("auto", CHAT, "top_k", 5),
        ("auto", CHAT, "grammar", "root ::= x"),
        ("auto", "Hi", "tools", [TOOL]),
        ("auto", "Hi", "response_format", {"type": "json_object"}),
        ("completions", "Hi", "tools", [TOOL]),
        *[("responses", "Hi", name, 0.5) for name in ("presence_penalty", "frequency_penalty")],
        ("responses", "Hi", "stop", ["x"]),
        ("responses", "Hi", "seed", 5),
        ("responses", "Hi", "logit_bias", {"5": 1}),
    ],
)
def test_a_field_without_an_equivalent_is_refused_or_dropped(api: str, task: Any, field: str, value: Any) -> None:
    """Named with the engine; ``unsupported="ignore"`` sends the task without it."""
    with OpenAIHttpAdapter("http://127.0.0.1:9", api=api) as engine:
        with pytest.raises(InvalidRequest, match="openai") as caught:
            engine.submit(task, **{field: value})
        assert caught.value.field == field
        assert field not in engine.capabilities.fields or isinstance(task, str)
    assert body_of(task, {field: value}, api=api, unsupported="ignore") == body_of(task, api=api)


def test_messages_need_a_route_for_them() -> None:
    """``api="completions"`` has none."""
    with OpenAIHttpAdapter("http://127.0.0.1:9", api="completions") as engine, pytest.raises(InvalidRequest):
        engine.submit(CHAT)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("api", "legacy"), ("limit_field", "max_output_tokens"), ("usage", "yes"), ("organization", 5),
        ("organization", "\ud83d"), ("api_version", "\ud83d"), ("deployment", "\ud83d"),
        ("project", 5), ("api_version", 5), ("deployment", 5), ("key_header", "a b"), ("key_header", 5),
    ],
)  # fmt: skip
def test_a_wrong_option_is_named(option: str, value: Any) -> None:
    """At construction, by name."""
    with pytest.raises(InvalidRequest) as caught:
        OpenAIHttpAdapter("http://127.0.0.1:9", **{option: value})
    assert caught.value.field == option


# --- what is learnt


@pytest.mark.parametrize(("given", "used"), [(None, "max_tokens"), ("max_completion_tokens", "max_completion_tokens")])
def test_the_limit_of_a_chat_has_the_name_given(given: str | None, used: str) -> None:
    """The old name for servers in general; /completions knows no other."""
    assert body_of(CHAT, limit_field=given)[used] == 256
    assert body_of("Hi", limit_field=given)["max_tokens"] == 256


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, {"code": "unsupported_parameter", "param": "max_tokens", "message": "no"}),
        (400, {"message": "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."}),
        (422, {"message": "Extra inputs are not permitted", "param": "max_tokens"}),
    ],
)
def test_the_other_name_is_learnt_from_a_refusal(status: int, error: dict[str, Any]) -> None:
    """The job is sent again at once under the other name, without a retry's leave, and later jobs begin with it."""

    def handle(exchange: Exchange) -> None:
        if "max_tokens" in exchange.request.json:
            exchange.json(status, {"error": error})
        else:
            answer(exchange)

    with SimServer(handle) as server, adapter(server) as engine:
        assert [engine.submit(CHAT).result().text for _ in range(3)] == ["Hi"] * 3
        assert len(posts(server)) == 4
        assert posts(server)[-1].json["max_completion_tokens"] == 256


def test_the_old_name_is_learnt_as_well() -> None:
    """A server of Azure's or OpenAI's that wants it, or a user's mistake in the adapter's own choice."""
    with SimServer(refusing("max_completion_tokens")) as server:
        options = {"proxy": server.url, "model": "m"}
        with OpenAIHttpAdapter("http://api.openai.com", **options) as engine:
            assert engine.submit(CHAT).result().text == "Hi"
        assert [("max_tokens" in request.json) for request in posts(server)] == [False, True]


@pytest.mark.parametrize(
    ("field", "options", "error"),
    [
        ("max_tokens", {}, {"message": "max_tokens is too large: 256. Want at most 64.", "code": "invalid_value"}),
        ("max_tokens", {}, {"message": "'max_tokens': integer below minimum", "code": "integer_below_min_value"}),
        ("max_tokens", {"limit_field": "max_tokens"}, {}),
        ("stream_options", {"usage": True}, {}),
        ("temperature", {}, {}),
    ],
)  # fmt: skip
def test_a_refusal_of_another_kind_teaches_nothing(field: str, options: dict[str, Any], error: dict[str, Any]) -> None:
    """A value, a name that the user chose, or a field of the user's: one POST, and the error as it is."""
    with SimServer(refusing(field, **error)) as server, adapter(server, **options) as engine:
        for number in (1, 2):
            with pytest.raises(InvalidRequest):
                engine.submit(CHAT, temperature=0.5).result()
            assert len(posts(server)) == number
            assert field in posts(server)[-1].json


def test_a_server_that_refuses_both_names_is_not_asked_for_ever() -> None:
    """Two lessons a job, then its word counts."""
    with SimServer(refusing("max_tokens", "max_completion_tokens")) as server, adapter(server) as engine:
        with pytest.raises(InvalidRequest):
            engine.submit(CHAT).result()
        assert len(posts(server)) == 3


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, {"message": "Unrecognized request argument supplied: stream_options", "param": None, "code": None}),
        (422, {"message": "Extra inputs are not permitted", "param": "stream_options"}),
        (400, {"message": "stream_options.include_usage is not supported", "param": "stream_options.include_usage"}),
    ],
)
def test_usage_is_left_out_where_it_is_refused(status: int, error: dict[str, Any]) -> None:
    """Sent again once without; later jobs do not ask, and their tokens are counted."""

    def handle(exchange: Exchange) -> None:
        if "stream_options" in exchange.request.json:
            exchange.json(status, {"error": error})
        else:
            answer(exchange)

    with SimServer(handle) as server, adapter(server) as engine:
        for _ in range(2):
            assert engine.submit(CHAT).result().metrics.counts == "counted"
        assert ["stream_options" in request.json for request in posts(server)] == [True, False, False]


def test_usage_may_be_left_out_from_the_start() -> None:
    """``usage=False`` never asks for it."""
    assert body_of(CHAT, usage=False) == {"model": "m", "messages": CHAT, "max_tokens": 256, "stream": True}


def test_a_strict_validator_is_understood() -> None:
    """FastAPI's list of details names the field: two lessons in one job."""

    def handle(exchange: Exchange) -> None:
        wrong = [name for name in ("stream_options", "max_tokens") if name in exchange.request.json]
        if wrong:
            rows = [{"type": "extra_forbidden", "loc": ["body", wrong[0]], "msg": "Extra inputs are not permitted"}]
            exchange.json(422, {"detail": rows})
        else:
            answer(exchange)

    with SimServer(handle) as server, adapter(server) as engine:
        assert engine.submit(CHAT).result().text == "Hi"
        assert len(posts(server)) == 3


def test_many_threads_learn_at_once() -> None:
    """64 jobs that are all refused before any of them knew: each is sent twice, and none fails."""
    together = threading.Barrier(64)

    def handle(exchange: Exchange) -> None:
        if "max_tokens" in exchange.request.json:
            together.wait(SOON)
        refusing("max_tokens")(exchange)

    with SimServer(handle) as server, adapter(server) as engine:
        with ThreadPoolExecutor(64) as threads:
            texts = list(threads.map(lambda _: engine.submit(CHAT).result().text, range(64)))
        assert texts == ["Hi"] * 64
        assert len(posts(server)) == 128
        engine.submit(CHAT).result()
        assert len(posts(server)) == 129


# --- retries


def jobs_after(fault: Fault, **options: Any) -> tuple[list[Request], WorkerError | None]:
    """A job whose every attempt meets the fault: what reached the server, and the error."""
    with OpenAISimulator() as server:
        server.misbehave(*[fault] * 3)
        fields = {"model": server.model, "retry": {"attempts": 3, "base": 0.001, **options}}
        with OpenAIHttpAdapter(server.base_url, **fields) as engine:
            try:
                engine.submit(CHAT).result()
            except WorkerError as error:
                return posts(server), error
            return posts(server), None


def refusal(status: int, *headers: str, **error: Any) -> Fault:
    """A refusal in OpenAI's words, with headers."""
    pairs = [(name, value) for name, _, value in (header.partition(": ") for header in headers)]
    return Fault.status(status, {"error": {"message": "no", **error}}, headers=pairs)


@pytest.mark.parametrize(
    ("fault", "count"),
    [
        (refusal(429, code="rate_limit_exceeded"), 3),
        (refusal(429), 3),
        (refusal(429, "x-should-retry: false"), 1),
        (refusal(503), 3),
        (refusal(503, "x-should-retry: false"), 1),
        (refusal(500), 1),
        (refusal(500, "x-should-retry: true"), 3),
        (refusal(502), 1),
        (refusal(400), 1),
        (refusal(400, "x-should-retry: true"), 1),
        (refusal(401, "x-should-retry: true"), 1),
        (refusal(402), 1),
        (refusal(402, "x-should-retry: true"), 1),
        (refusal(429, type="insufficient_quota"), 1),
        (refusal(429, "x-should-retry: true", type="insufficient_quota", code="insufficient_quota"), 1),
        (refusal(429, "x-should-retry: true", "retry-after-ms: 1", code="billing_hard_limit_reached"), 1),
        (refusal(429, "retry-after: 3600"), 1),
        (refusal(498), 3),
        (refusal(529), 3),
    ],
)
def test_a_refusal_is_tried_again_only_if_that_may_help(fault: Fault, count: int) -> None:
    """Counted at the server: what says that it did not begin is asked again, money and mistakes are not."""
    requests, error = jobs_after(fault)
    assert len(requests) == count
    assert error is not None


@pytest.mark.parametrize("header", ["retry-after-ms: 300", "retry-after: 0.3", "llm_provider-retry-after-ms: 300"])
def test_the_server_says_when_to_come_back(header: str) -> None:
    """No attempt comes before the time that the refusal asked for."""
    requests, error = jobs_after(refusal(429, header))
    assert error is not None
    assert error.retry_after_ms == 300
    waits = [later.at - sooner.at for sooner, later in itertools.pairwise(requests)]
    assert len(waits) == 2
    assert all(0.29 < wait < SOON for wait in waits)


def test_the_server_may_name_a_date() -> None:
    """Retry-After as a date of HTTP; one that has passed is no wait."""
    for ahead in (30, -30):
        date = email.utils.formatdate(time.time() + ahead, usegmt=True)
        _, error = jobs_after(refusal(429, f"Retry-After: {date}"), max_retry_after=1)
        assert error is not None
        assert error.retry_after_ms is not None
        assert (20_000 < error.retry_after_ms <= 30_000) if ahead > 0 else error.retry_after_ms == 0


# --- request ids


def errors_of(fault: Fault) -> WorkerError:
    """The error of a job that meets the fault."""
    with OpenAISimulator() as server:
        server.misbehave(fault)
        fields = {"model": server.model, "retry": {"attempts": 1}}
        with OpenAIHttpAdapter(server.base_url, **fields) as engine, pytest.raises(WorkerError) as caught:
            engine.submit(CHAT).result()
        return caught.value


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (Fault.status(500), EngineUnavailable),
        (Fault.error_after(0), EngineUnavailable),
        (Fault.error_after(2), EngineUnavailable),
        (Fault.cut_after(0), EngineUnavailable),
        (Fault.cut_after(2), StreamTruncated),
        (Fault.clean_end_after(2), StreamTruncated),
        (Fault.garbage_after(2), UnknownError),
    ],
)
def test_an_error_has_the_request_id(fault: Fault, kind: type[WorkerError]) -> None:
    """Before and inside a stream, in its repr and its frame, and after a pickle."""
    error = errors_of(fault)
    assert isinstance(error, kind)
    assert error.request_id is not None
    assert error.request_id.startswith("req_")
    again = pickle.loads(pickle.dumps(error))
    assert (again.request_id, again.to_dict()) == (error.request_id, error.to_dict())
    assert error.request_id in repr(error)


def test_clocks_that_fire_in_a_stream_have_the_request_id() -> None:
    """The head had come: what hangs can be asked for."""
    with OpenAISimulator() as server:
        server.misbehave(Fault.silent_after(1))
        clocks = {"between_tokens": 0.1}
        with OpenAIHttpAdapter(server.base_url, model=server.model, timeouts=clocks) as engine:
            with pytest.raises(WorkerTimeout) as caught:
                engine.submit(CHAT).result()
            assert (caught.value.request_id or "").startswith("req_")


def test_the_end_has_the_request_id() -> None:
    """Of a good answer it stands in ``metrics.engine``."""
    with OpenAISimulator() as server, OpenAIHttpAdapter(server.base_url, model=server.model) as engine:
        metrics = engine.submit(CHAT).result().metrics
        assert metrics.engine["request_id"].startswith("req_")
        assert metrics.counts == "exact"


# --- answers in one piece


def whole(value: Any, headers: Any = JSON) -> Callable[[Exchange], None]:
    """Answers every job with JSON."""
    return lambda exchange: exchange.json(200, value, headers)


@pytest.mark.parametrize(
    ("api", "value", "text"),
    [
        ("chat", PIECE, "Hi"),
        ("completions", {"object": "text_completion", "choices": [{"text": "Hi", "finish_reason": "stop"}]}, "Hi"),
        (
            "responses",
            {"object": "response", "status": "completed", "output": [{"type": "message", "content": [{"text": "Hi"}]}]},
            "Hi",
        ),
        ("chat", {"choices": [{"message": {"content": ""}, "finish_reason": "stop"}]}, ""),
    ],
)
def test_an_answer_in_one_piece_has_the_same_frames(api: str, value: Any, text: str) -> None:
    """started, a token if there is text, and an end with all its times; the connection is used again."""
    with SimServer(whole(value)) as server, adapter(server, api=api) as engine:
        for _ in range(2):
            frames = list(engine.submit("Hi"))
            assert [frame.type for frame in frames] == ["started", *(["token"] if text else []), "end"]
            metrics = frames[-1].metrics  # type: ignore[union-attr]  # the end
            assert 0 <= metrics.first_token_ms <= metrics.total_ms if text else metrics.total_ms >= 0
        assert server.connections == 1


@pytest.mark.parametrize(
    "value",
    [
        {}, [], "text", 5, None, {"choices": []}, {"choices": [{"message": {"content": "Hi"}}]}, {"choices": "Hi"},
        {"object": "list", "data": []}, {"error": "Unexpected endpoint"}, {"error": {"message": "no"}},
    ],
)  # fmt: skip
def test_json_that_is_no_answer_is_an_error(value: Any) -> None:
    """200 with other JSON is typed, not tried again, and no empty answer."""
    with SimServer(whole(value)) as server, adapter(server, retry={"attempts": 3, "base": 0.001}) as engine:
        with pytest.raises(WorkerError) as caught:
            engine.submit(CHAT).result()
        assert "the adapter failed" not in caught.value.message
        assert len(posts(server)) == 1


def stalling(exchange: Exchange) -> None:
    """Half of an answer in one piece, then nothing."""
    exchange.head(200, [*JSON, ("Content-Length", "1000")], chunked=False)
    exchange.write(json.dumps(PIECE)[:20].encode())
    exchange.wait_gone()


def test_a_piece_that_does_not_come_trips_the_clock() -> None:
    """Until the piece is whole, no token has come: first_token."""
    with SimServer(stalling) as server, adapter(server, timeouts={"first_token": 0.2}) as engine:
        began = time.monotonic()
        with pytest.raises(WorkerTimeout) as caught:
            engine.submit(CHAT).result()
        assert caught.value.clock == "first_token"
        assert 0.19 < time.monotonic() - began < SOON
        assert server.wait_closed(1, SOON)


def test_a_piece_that_does_not_come_can_be_cancelled() -> None:
    """A cancel from another thread frees the reader, and the server sees the close."""
    with SimServer(stalling) as server, adapter(server) as engine:
        stream = engine.submit(CHAT)
        threading.Timer(0.1, stream.cancel).start()
        assert [frame.type for frame in stream] == ["end"]
        assert stream.result().finish_reason == "cancelled"
        assert server.wait_closed(1, SOON)


# --- health, props, and the adapter itself


@pytest.mark.parametrize(
    ("status", "body", "state", "live", "words"),
    [
        (200, {"object": "list", "data": []}, "healthy", True, ""),
        (200, {"data": {"id": "m"}}, "unhealthy", True, "no list of models"),
        (200, ["m"], "unhealthy", True, "no list of models"),
        (401, {"error": {"message": "bad key"}}, "degraded", True, "bad key"),
        (403, {"error": {"message": "not here"}}, "degraded", True, "not here"),
        (404, {"detail": "Not Found"}, "degraded", True, "Not Found"),
        (429, {"message": "slow"}, "degraded", True, "slow"),
        (503, {"error": {"message": "Loading model"}}, "degraded", True, "Loading model"),
        (504, {}, "unhealthy", False, "504"),
    ],
)
def test_health_tells_what_the_models_say(status: int, body: Any, state: str, live: bool, words: str) -> None:
    """Only a list of models is healthy; one attempt, and the engine's own words."""
    with SimServer(lambda exchange: exchange.json(status, body)) as server, adapter(server) as engine:
        health = engine.health()
        assert (health.state, health.live, health.ready) == (state, live, state == "healthy")
        assert words in health.message
        assert len(server.requests) == 1


def test_health_of_nothing_is_down() -> None:
    """Refused: neither alive nor ready, and never raised."""
    with SimServer(answer) as server:
        url = server.url
    with OpenAIHttpAdapter(url) as engine:
        health = engine.health(probe=True)
        assert (health.state, health.live, health.ready) == ("unhealthy", False, False)


def test_a_probe_generates() -> None:
    """One token, by the adapter's own route, and never twice."""
    with OpenAISimulator() as server, OpenAIHttpAdapter(server.base_url, model=server.model) as engine:
        assert engine.health(probe=True).ready
        server.misbehave(Fault.status(503))
        assert not engine.health(probe=True).ready
        assert [request.json["max_tokens"] for request in posts(server)] == [1, 1]


@pytest.mark.parametrize(
    ("cards", "model", "told", "size"),
    [
        ([{"id": "m", "max_model_len": 512}], None, "m", 512),
        ([{"id": "m", "context_length": 512}], None, "m", 512),
        ([{"id": "m", "max_input_tokens": 512}], "m", "m", 512),
        ([{"id": "a", "max_model_len": 1}, {"id": "m", "max_model_len": 512}], "m", "m", 512),
        ([{"id": "a", "max_model_len": 1}, {"id": "b"}], None, None, None),
        ([{"id": "a", "max_model_len": 1}], "m", "m", None),
        ([], None, None, None),
        ([{"id": None, "odd": [1]}], None, None, None),
    ],
)
def test_props_are_what_the_models_tell(
    cards: list[Any], model: str | None, told: str | None, size: int | None
) -> None:
    """The adapter's model, or the only one; of several none is guessed."""

    def handle(exchange: Exchange) -> None:
        exchange.json(200, {"object": "list", "data": cards})

    with SimServer(handle) as server, adapter(server, model=model) as engine:
        props = engine.props()
        assert (props.engine, props.engine_version, props.model, props.context_size) == (
            "openai",
            "unknown",
            told,
            size,
        )
        assert (props.residency, props.running, props.slots_total) == ("unknown", None, None)
        assert props.raw == {"/v1/models": {"object": "list", "data": cards}}
        assert engine.engine_version() == "unknown"


def test_an_adapter_pickles_by_configuration() -> None:
    """Every option of its own comes back; a literal key does not go."""
    options: dict[str, Any] = {
        "api": "chat", "organization": "org", "project": "p", "api_version": "2024-10-21", "deployment": "d",
        "limit_field": "max_tokens", "usage": False, "headers": {"X-A": "b"}, "key_header": "X-Own", "model": "m",
    }  # fmt: skip
    with SimServer(answer) as server, adapter(server, api_key="env:NOBODY_SETS_THIS", **options) as engine:
        state = engine.__getstate__()
        again = pickle.loads(pickle.dumps(engine))
        assert again.__getstate__().keys() == state.keys()
        assert {**state, "endpoint": None} == {**again.__getstate__(), "endpoint": None}
        assert repr(again) == repr(engine)
    with SimServer(answer) as server, adapter(server, **options) as engine, pickle.loads(pickle.dumps(engine)) as again:
        for one in (engine, again):
            one.submit(CHAT).result()
        first, second = posts(server)
        assert (first.target, first.body) == (second.target, second.body)
        assert [pair for pair in first.headers if pair[0] != "X-Client-Request-Id"] == [
            pair for pair in second.headers if pair[0] != "X-Client-Request-Id"
        ]
    with adapter(server, api_key=KEY) as engine, pytest.raises(TypeError, match="env:NAME"):
        pickle.dumps(engine)


def test_a_repr_shows_the_place_alone() -> None:
    """No key, no header, no query."""
    url = f"http://user:{PASSWORD}@127.0.0.1:9/v1?sig={QUERY}"
    with OpenAIHttpAdapter(url, api_key=KEY, organization="org-123456") as engine:
        assert repr(engine) == "OpenAIHttpAdapter('http://127.0.0.1:9/v1')"


def test_connect_passes_every_option_on() -> None:
    """``connect("openai", ...)`` takes the same options, and names one that there is not."""
    with SimServer(answer) as server, connect("openai", server.url, api="chat", usage=False, model="m") as engine:
        engine.submit("Hi").result()
        assert posts(server)[0].path == "/v1/chat/completions"
    with pytest.raises(TypeError, match="apis"):
        connect("openai", "http://127.0.0.1:9", apis="chat")
