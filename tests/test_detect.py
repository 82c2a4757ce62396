"""What server answers at a URL: every product by its own bytes, and everything that only looks like one."""

import http.server
import json
import socket
import ssl
import threading
import time
from contextlib import closing, contextmanager
from functools import partial
from importlib import import_module
from typing import NamedTuple

import pytest
import trustme

from worker_adapters import (
    AuthenticationFailed,
    EngineUnavailable,
    InvalidRequest,
    LlamaCppHttpAdapter,
    UnknownError,
    WorkerError,
    WorkerTimeout,
    available_engines,
    connect,
    detect,
)
from worker_adapters.adapters import catalog
from worker_adapters.adapters.catalog import ALIASES, CATALOG, adapter_class
from worker_adapters.adapters.detect import BARE, SIGNATURES, find
from worker_adapters.simulate import SIMULATORS, LlamaCppSimulator, SimServer

KEY = "sk-very-secret-key-0123456789"
#: However little answers, an error comes within so many seconds of the default time.
SOON = 5.0

JSON = ("Content-Type", "application/json")
TEXT = ("Content-Type", "text/plain; charset=utf-8")
HTML = ("Content-Type", "text/html")


class Answer(NamedTuple):
    """What stands at a path; a body that is no bytes is sent as JSON."""

    status: int = 200
    body: object = b""
    headers: tuple = (JSON,)


def listing(*entries, **more):
    """A list of models."""
    cards = [{"object": "model", "created": 1700000000, **entry} for entry in entries]
    return Answer(200, {"object": "list", "data": cards, **more})


def product(routes, otherwise, prefix="", delay=0.0):
    """A server that answers GETs from a table of paths."""

    def handle(exchange):
        assert exchange.request.method == "GET"
        assert exchange.request.body == b""
        if delay:
            exchange.pause(delay)
        path = exchange.request.path
        known = path.startswith(prefix) and routes.get(path.removeprefix(prefix))
        answer = known or otherwise
        body = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        exchange.respond(answer.status, answer.headers, body)

    return SimServer(handle)


#: Headers of every answer of llama.cpp (b0-unknown), and its answers.
CPP = (("Server", "llama.cpp"), ("Access-Control-Allow-Origin", ""), ("Content-Type", "application/json"))
LLAMACPP_MODELS = {"models": [{"name": "m"}], **listing({"id": "m", "owned_by": "llamacpp", "meta": {}}).body}
LOADING = {"error": {"message": "Loading model", "type": "unavailable_error", "code": 503}}
NO_KEY = {"error": {"message": "Invalid API Key", "type": "authentication_error", "code": 401}}
NOT_FOUND = {"error": {"message": "File Not Found", "type": "not_found_error", "code": 404}}
FASTAPI = Answer(404, {"detail": "Not Found"})
UVICORN = (("server", "uvicorn"), JSON)
TRITON_EXTENSIONS = ["classification", "sequence", "model_repository", "schedule_policy", "model_configuration"]
TGI = {
    "model_id": "meta-llama/Llama-3.1-8B-Instruct", "model_sha": "0e9e39f2", "model_pipeline_tag": "text-generation",
    "max_concurrent_requests": 128, "max_best_of": 2, "max_stop_sequences": 4, "max_input_tokens": 4095,
    "max_total_tokens": 4096, "validation_workers": 2, "max_client_batch_size": 4, "router": "text-generation-router",
    "version": "3.3.6-dev0", "sha": "dfb3fbe7", "docker_label": "sha-dfb3fbe",
}  # fmt: skip
TGI_NAME = TGI["model_id"]
TGI_OLD = {name: value for name, value in TGI.items() if name not in ("router", "max_input_tokens")}
#: 0.32.0: /version and /health need no key.
VLLM = {"/version": Answer(200, {"version": "0.32.0"}, UVICORN), "/health": Answer(200, b"", (("server", "uvicorn"),))}
#: 1.106.2. The root is a page of documentation; the liveness needs no key.
LITELLM = {"/": Answer(200, b"<!DOCTYPE html><html></html>", (HTML,)), "/health/liveliness": Answer(200, "I'm alive!")}
LITELLM_DATE = 1677610602
#: 0.3.14: 200 on every path, with the words of an error.
LMSTUDIO = (("X-Powered-By", "Express"), ("Content-Type", "application/json; charset=utf-8"))
UNEXPECTED = Answer(200, {"error": "Unexpected endpoint or method. (GET /)"}, LMSTUDIO)
OLLAMA = {"/": Answer(200, b"Ollama is running", (TEXT,)), "/api/version": Answer(200, {"version": "0.33.0"})}
GIN = Answer(404, b"404 page not found", (TEXT,))
GREETING = {"/lmstudio-greeting": Answer(200, {"lmstudio": True}, LMSTUDIO)}
UNAUTHORIZED = Answer(401, {"error": "Unauthorized"}, UVICORN)

#: Case: (routes, what every other path answers, the engine, at most so many requests).
PRODUCTS = {
    "llamacpp": ({"/v1/models": Answer(200, LLAMACPP_MODELS, CPP)}, Answer(404, NOT_FOUND, CPP), "llamacpp", 1),
    "llamacpp-loading": ({}, Answer(503, LOADING, CPP), "llamacpp", 1),
    "llamacpp-key": ({"/health": Answer(200, {"status": "ok"}, CPP)}, Answer(401, NO_KEY, CPP), "llamacpp", 1),
    "llamacpp-nginx": ({"/v1/models": Answer(200, LLAMACPP_MODELS)}, Answer(404, NOT_FOUND), "llamacpp", 1),
    "llamacpp-nginx-loading": ({}, Answer(503, LOADING), "llamacpp", 1),
    "llamacpp-nginx-key": ({"/health": Answer(200, {"status": "ok"})}, Answer(401, NO_KEY), "llamacpp", 2),
    "vllm": ({"/v1/models": listing({"id": "m", "owned_by": "vllm"}), **VLLM}, FASTAPI, "vllm", 1),
    "vllm-key": ({"/v1/models": UNAUTHORIZED, **VLLM}, FASTAPI, "vllm", 3),
    "vllm-dead-key": ({"/v1/models": UNAUTHORIZED, **VLLM, "/health": Answer(503)}, FASTAPI, "vllm", 3),
    "sglang": ({"/v1/models": listing({"id": "m", "owned_by": "sglang"})}, FASTAPI, "sglang", 1),
    "tgi": (
        {"/v1/models": listing({"id": TGI_NAME, "created": 0, "owned_by": TGI_NAME}), "/info": Answer(200, TGI)},
        Answer(404), "tgi", 2,
    ),
    "tgi-2.2": ({"/info": Answer(200, TGI_OLD)}, Answer(404), "tgi", 3),
    "triton": (
        {"/v2": Answer(200, {"name": "triton", "version": "2.51.0", "extensions": TRITON_EXTENSIONS})},
        Answer(404, {"error": "Not Found"}, (("Content-Type", "text/plain"),)), "triton", 2,
    ),
    "triton-named": ({"/v2": Answer(200, {"name": "box-7", "version": "2.51.0", "extensions": TRITON_EXTENSIONS})},
                     Answer(404), "triton", 2),
    "ollama": ({"/v1/models": listing({"id": "llama3:latest", "owned_by": "library"}), **OLLAMA}, GIN, "ollama", 2),
    "ollama-empty": ({"/v1/models": Answer(200, {"object": "list", "data": None}), **OLLAMA}, GIN, "ollama", 2),
    "ollama-old": (OLLAMA, GIN, "ollama", 4),
    "lmstudio": ({"/v1/models": listing({"id": "qwen", "owned_by": "organization_owner"})}, UNEXPECTED, "lmstudio", 2),
    "lmstudio-greeting": ({"/v1/models": listing({"id": "qwen"}), **GREETING}, Answer(404), "lmstudio", 3),
    "lmstudio-key": (GREETING, Answer(401, {"error": "no"}), "lmstudio", 6),
    "litellm": (
        {"/v1/models": listing({"id": "m", "created": LITELLM_DATE, "owned_by": "openai"}), **LITELLM},
        FASTAPI, "litellm", 2,
    ),
    "litellm-no-key": ({"/v1/models": Answer(500, b"Internal Server", (TEXT,)), **LITELLM}, FASTAPI, "litellm", 2),
    "litellm-key": ({"/v1/models": Answer(401, {"error": {"message": "no"}}), **LITELLM}, FASTAPI, "litellm", 2),
    "openai": ({"/v1/models": listing({"id": "gpt-5", "owned_by": "system"})}, Answer(404, {"error": {}}), "openai", 3),
    "openai-3.5": ({"/v1/models": listing({"id": "gpt-3.5-turbo", "created": LITELLM_DATE})}, Answer(404), "openai", 4),
    "openrouter": ({"/v1/models": Answer(200, {"data": [{"id": "a/b", "name": "B"}]})},
                   Answer(200, b"<html>a site</html>", (HTML,)), "openai", 3),
    "no-models": ({"/v1/models": listing()}, FASTAPI, "openai", 3),
}  # fmt: skip


@pytest.fixture(params=sorted(PRODUCTS))
def case(request):
    """One case of PRODUCTS."""
    return PRODUCTS[request.param]


def failed(url, kind, **options):
    """The error of a detection, which comes soon and says no secret."""
    began = time.monotonic()
    with pytest.raises(WorkerError) as caught:
        detect(url, **options)
    assert time.monotonic() - began < SOON
    assert type(caught.value) is kind, repr(caught.value)
    assert KEY not in repr(caught.value) + str(caught.value.to_dict())
    assert str(caught.value) == caught.value.message
    return caught.value


def paths(server):
    """What was asked, in order."""
    return [request.path for request in server.requests]


# --- who it is


def test_every_product_is_known_by_its_answers(case):
    """Each product is named from its documented answers, with few requests, none twice."""
    routes, otherwise, engine, most = case
    with product(routes, otherwise) as server:
        assert detect(server.url) == engine
        assert len(paths(server)) == len(set(paths(server))) <= most
        assert server.connections == 1


@pytest.mark.parametrize("path", ["/v1", "/v1/", "/"])
def test_the_url_may_end_in_v1(case, path):
    """An engine's own paths lie beside /v1, wherever the URL points; the URL to connect to is the root."""
    routes, otherwise, engine, _ = case
    with product(routes, otherwise) as server:
        found = find(server.url + path)
        assert (found.engine, found.url.rstrip("/")) == (engine, server.url)


@pytest.mark.parametrize("path", ["/some/prefix", "/some/prefix/v1"])
def test_a_prefix_is_kept(case, path):
    """Behind a prefix all paths have it, and the URL to connect to has a /v1 only for the OpenAI dialect."""
    routes, otherwise, engine, _ = case
    with product(routes, otherwise, prefix="/some/prefix") as server:
        found = find(f"{server.url}{path}?x=1")
        at_root = engine in ("llamacpp", "vllm", "tgi", "triton")
        assert found == (engine, f"{server.url}/some/prefix{'' if at_root else '/v1'}?x=1")
        assert {request.target.partition("?")[2] for request in server.requests} == {"x=1"}


def test_a_dialect_without_v1():
    """Azure's paths have no /v1: a list of models right below the URL's own path is enough."""
    with product({"/openai/models": listing({"id": "gpt"})}, Answer(404)) as server:
        assert find(server.url + "/openai") == ("openai", server.url + "/openai")
        failed(server.url, UnknownError)
        failed(server.url + "/openai/v1", UnknownError)


@pytest.mark.parametrize("name", sorted(SIMULATORS))
def test_every_simulator_is_known(name):
    """Each of the simulators is named as what it simulates."""
    module, _, cls = SIMULATORS[name].partition(":")
    with getattr(import_module(module), cls)() as server:
        assert detect(server.url) == name
        assert {request.method for request in server.requests} == {"GET"}
        assert len(server.requests) <= 3


@pytest.mark.parametrize("name", ["llamacpp", "vllm"])
def test_an_engine_that_wants_a_key_is_known_without_it(name):
    """The engines are known with the right key, a wrong one, and none."""
    module, _, cls = SIMULATORS[name].partition(":")
    with getattr(import_module(module), cls)(api_key=KEY) as server:
        assert {detect(server.url, api_key=key) for key in (None, "sk-wrong-but-long-enough", KEY)} == {name}
        assert {request.method for request in server.requests} == {"GET"}


def test_a_server_that_loads_is_known():
    """A llama.cpp that loads its model is named: 503 says whose it is."""
    with LlamaCppSimulator(loading=True) as server:
        assert detect(server.url) == "llamacpp"


def test_key_and_headers_are_sent_along():
    """Every question carries the key and the headers, as the adapter's requests will."""
    with product({"/v1/models": listing({"id": "m"})}, Answer(404)) as server:
        assert detect(server.url, api_key=KEY, headers={"X-Tenant": "t"}) == "openai"
        assert {request.header("Authorization") for request in server.requests} == {f"Bearer {KEY}"}
        assert {request.header("X-Tenant") for request in server.requests} == {"t"}


def test_the_table_is_bounded():
    """There are at most nine paths to ask, and the one that may run a token is asked only after others."""
    rows = (*SIGNATURES, BARE)
    assert len({fact.path for row in rows for fact in row.facts}) == 9
    assert all(row.facts[0].path != "/health" for row in rows)


@pytest.mark.parametrize("otherwise", [UNAUTHORIZED, Answer(500), FASTAPI])
def test_health_is_not_asked_of_strangers(otherwise):
    """SGLang's /health generates and LiteLLM's calls every backend: who may be one of them is not asked."""
    with product({"/version": Answer(401, {"error": "Unauthorized"})}, otherwise) as server:
        with pytest.raises(WorkerError):
            detect(server.url)
        assert "/health" not in paths(server)
        assert len(paths(server)) <= 7


# --- who it is not

CATCH_ALLS = {
    "page": Answer(200, b"<html><h1>Welcome</h1> vllm llama.cpp Ollama is running</html>", (HTML,)),
    "ok": Answer(200, {"status": "ok"}),
    "version": Answer(200, {"version": "1.0.0"}),
    "models": listing({"id": "m"}),
    "empty": Answer(200),
    "empty-list": Answer(200, []),
    "empty-object": Answer(200, {}),
    "null": Answer(200, None),
    "error": Answer(200, {"error": "no such thing"}),
    "alive": Answer(200, "I'm alive"),
    "no-utf8": Answer(200, b'{"data": "\xff"}'),
    "odd-types": Answer(200, {"data": [1, None], "extensions": {}, "lmstudio": "yes", "version": 5}),
    "odd-models": Answer(200, {"object": "list", "data": [{"id": 5, "owned_by": "vllm"}]}),
    "deep": Answer(200, b"[" * 100_000),
    "teapot": Answer(418, {"status": "ok"}),
    "binary": Answer(200, bytes(range(256)), (("Content-Type", "application/octet-stream"),)),
}


@pytest.mark.parametrize("name", sorted(CATCH_ALLS))
def test_a_server_that_says_the_same_to_everything_is_none(name):
    """One answer to every path names no engine, whatever it is; the error says what was asked and answered."""
    with product({}, CATCH_ALLS[name]) as server:
        error = failed(server.url, UnknownError, api_key=KEY)
        assert server.url in error.message
        assert "/v1/models" in error.message
        assert str(CATCH_ALLS[name].status) in error.message
        assert len(paths(server)) == len(set(paths(server))) <= 6


NEIGHBOURS = {
    "embeddings": {"/info": Answer(200, {
        "model_id": "BAAI/bge", "model_sha": None, "model_dtype": "float16", "model_type": {"embedding": {}},
        "max_concurrent_requests": 512, "max_input_length": 512, "version": "1.5", "docker_label": "sha-1",
    })},
    "mlserver": {"/v2": Answer(200, {"name": "mlserver", "version": "1.6.0", "extensions": []})},
    "healthy": {"/health": Answer(200, {"status": "ok"}), "/version": Answer(200, {"version": "1"})},
    "prometheus": {"/": Answer(200, b"# HELP up\n", (TEXT,))},
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(NEIGHBOURS))
def test_neighbours_are_not_taken_for_engines(name):
    """Servers that share a path or a field with an engine are not named as it."""
    with product(NEIGHBOURS[name], Answer(404)) as server:
        failed(server.url, UnknownError)


def test_a_plain_web_server():
    """Python's own web server is no engine."""
    handler = partial(http.server.SimpleHTTPRequestHandler, directory="/nonexistent")
    handler.func.log_message = lambda *_: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        error = failed(f"http://127.0.0.1:{server.server_port}", UnknownError)
        server.shutdown()
    assert error.status == 404
    assert "/v1/models (404 text/html)" in error.message


def test_a_redirect_is_not_followed_but_told():
    """Where a redirect leads stands in the error, so that the right URL can be given; nobody follows it."""
    with product({}, Answer(301, b"", (("Location", "https://elsewhere.example/v1/models?token=" + KEY),))) as server:
        error = failed(server.url, UnknownError)
        assert "301 to https://elsewhere.example/v1/models" in error.message


@pytest.mark.parametrize("status", [401, 403, 407])
def test_a_server_that_says_nothing_without_a_key(status):
    """If every path needs a key, the error asks for it."""
    with product({}, Answer(status, {"error": {"message": f"bad key {KEY}"}})) as server:
        assert failed(server.url, AuthenticationFailed, api_key=KEY).status == status
        assert len(paths(server)) <= 7


@pytest.mark.parametrize("status", [502, 503, 504])
def test_a_gateway_without_its_server(status):
    """A gateway's own answer means that the engine is not there, not that there is none."""
    with product({}, Answer(status, b"<html>Bad gateway</html>", (HTML,))) as server:
        assert failed(server.url, EngineUnavailable).status == status


# --- no answer


def test_a_closed_port():
    """Nothing listens: EngineUnavailable at once, naming the URL."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    began = time.monotonic()
    error = failed(f"{url}/v1", EngineUnavailable)
    assert time.monotonic() - began < 1.0
    assert url in error.message
    assert error.phase == "connect"


def test_a_name_that_does_not_exist():
    """An unknown name is EngineUnavailable with the name."""
    assert "no-such-host.invalid" in failed("http://no-such-host.invalid:8000", EngineUnavailable).message


def _silent(exchange):
    exchange.wait_gone()


def _drip(exchange):
    exchange.head(200, [JSON, ("Content-Length", "100000")], chunked=False)
    while exchange.pause(0.02):
        exchange.raw(b" ")


def _drip_head(exchange):
    exchange.raw(b"HTTP/1.1 200 OK\r\nX-Long: ")
    while exchange.pause(0.02):
        exchange.raw(b"x")


def _interim(exchange):
    while exchange.pause(0.005):
        exchange.raw(b"HTTP/1.1 100 Continue\r\n\r\n")


def _slow_endless(exchange):
    exchange.head(200, [JSON])
    while exchange.pause(0.005):
        exchange.chunk(b"x" * 1000)


@pytest.mark.parametrize(
    ("tarpit", "options"),
    [(_silent, {}), *((tarpit, {"timeout": 0.5}) for tarpit in (_drip, _drip_head, _interim, _slow_endless))],
)
def test_a_tarpit_is_left_in_time(tarpit, options):
    """A server that accepts and never answers whole ends in WorkerTimeout, with and without a time of the caller's."""
    with SimServer(tarpit) as server:
        error = failed(server.url, WorkerTimeout, **options)
        assert error.clock == "first_token"
        assert server.url in error.message
        assert "/v1/models" in error.message
        assert len(server.requests) == 2


def test_a_handshake_without_end():
    """A TLS handshake that never ends is a connect time-out."""
    with SimServer(handshake_silence=True) as server:
        assert failed(server.url, WorkerTimeout, timeout=0.5).clock == "connect"


def test_the_time_is_the_callers():
    """``timeout`` bounds everything together, also when every path is slow."""
    with product({}, Answer(404), delay=0.12) as server:
        began = time.monotonic()
        failed(server.url, WorkerTimeout, timeout=0.4)
        assert time.monotonic() - began < 0.6


def test_one_path_that_hangs_costs_only_its_share():
    """A path that is never answered does not keep the others from naming the engine."""

    def handle(exchange):
        if exchange.request.path == "/v1/models":
            exchange.wait_gone()
        elif exchange.request.path == "/v2":
            exchange.json(200, {"name": "triton", "version": "2.51.0", "extensions": TRITON_EXTENSIONS})

    with SimServer(handle) as server:
        assert detect(server.url, timeout=1.0) == "triton"


def test_an_endless_body_at_full_speed():
    """A body without end is left after some megabytes."""

    def handle(exchange):
        exchange.head(200, [JSON])
        while True:
            exchange.chunk(b"x" * 65536)

    with SimServer(handle) as server:
        assert server.url in failed(server.url, UnknownError).message


@pytest.mark.parametrize("greeting", [b"SSH-2.0-OpenSSH_9.6\r\n", b"-ERR unknown command\r\n", b""])
def test_what_speaks_no_http(greeting):
    """SSH, Redis, and a server that hangs up are EngineUnavailable, naming the URL."""

    def handle(exchange):
        exchange.raw(greeting)
        exchange.close()

    with SimServer(handle) as server:
        assert server.url in failed(server.url, EngineUnavailable).message


@contextmanager
def secure():
    """A llama.cpp behind TLS: its URL, and its CA."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with LlamaCppSimulator(ssl_context=context) as server, authority.cert_pem.tempfile() as ca:
        yield server.url, ca


def test_tls():
    """A certificate that nobody vouches for is refused; its CA, or ``verify=False``, lets it pass."""
    with secure() as (url, ca):
        error = failed(url, EngineUnavailable)
        assert "not trusted" in error.message
        assert not error.retriable
        assert detect(url, ca=ca) == detect(url, verify=False) == "llamacpp"
        assert connect("auto", url, ca=ca).health().ready


def test_a_unix_socket(tmp_path):
    """A server on a Unix socket is named too."""
    with LlamaCppSimulator(unix_path=str(tmp_path / "v1")) as server:
        assert find(server.url) == ("llamacpp", server.url)


# --- secrets and options


def test_no_message_holds_a_secret():
    """Neither the key nor what stands in the URL comes out, whatever goes wrong."""
    with product({}, Answer(404, b"you sent " + KEY.encode(), (("Content-Type", f"text/{KEY}"),))) as server:
        url = server.url.replace("http://", f"http://user:{KEY}@") + f"/v1?key={KEY}"
        failed(url, UnknownError, api_key=KEY, headers={"X-Api-Key": KEY})
    failed(url, EngineUnavailable, api_key=KEY)


@pytest.mark.parametrize(
    ("url", "options", "field"),
    [
        ("localhost:8000", {}, "url"),
        ("http://[::1", {}, "url"),
        (None, {}, "url"),
        ("http://127.0.0.1:1", {"timeout": 0}, "timeout"),
        ("http://127.0.0.1:1", {"timeout": True}, "timeout"),
        ("http://127.0.0.1:1", {"verify": "no"}, "verify"),
        ("http://127.0.0.1:1", {"api_key": "env:NO_SUCH_VARIABLE_HERE"}, "api_key"),
    ],
)
def test_a_bad_option_names_itself(url, options, field):
    """A bad option is InvalidRequest and names itself; nothing is sent."""
    assert failed(url, InvalidRequest, **options).field == field


def test_nothing_is_left_open():
    """The connection of a detection ends with it, found or not."""
    with product(*PRODUCTS["openai"][:2]) as server, product({}, Answer(404)) as other:
        detect(server.url)
        failed(other.url, UnknownError)
        assert server.wait_closed(1, SOON)
        assert other.wait_closed(1, SOON)


# --- connect


def test_connect_auto_asks_and_connects():
    """``connect("auto", url)`` is the adapter of what answers there, with every option."""
    with (
        LlamaCppSimulator(api_key=KEY) as server,
        connect("auto", server.url + "/v1", api_key=KEY, model="m") as engine,
    ):
        assert isinstance(engine, LlamaCppHttpAdapter)
        assert engine.submit("hi", max_tokens=3).result().text
    with LlamaCppSimulator() as server, connect(detect(server.url), server.url) as engine:
        assert engine.health().ready


def test_connect_auto_needs_a_url():
    """There is nothing to ask without a URL."""
    with pytest.raises(InvalidRequest) as caught:
        connect("auto")
    assert caught.value.field == "url"


def test_connect_auto_passes_the_errors_of_detect_on():
    """What detect raises, connect raises."""
    with product({}, Answer(404)) as server, pytest.raises(UnknownError):
        connect("auto", server.url)
    with pytest.raises(InvalidRequest, match="verify"):
        connect("auto", "http://127.0.0.1:1", verify="no")


def test_a_known_server_without_an_adapter(monkeypatch):
    """A server that is known, but has no adapter, is InvalidRequest that says both."""
    monkeypatch.delitem(catalog.CATALOG, "tgi", raising=False)
    with product(*PRODUCTS["tgi"][:2]) as server, pytest.raises(InvalidRequest, match=r"tgi.*no adapter") as caught:
        connect("auto", server.url)
    assert caught.value.field == "engine"


def test_every_name_is_listed():
    """Aliases are engines to connect to; "auto" is the name of none."""
    assert {*ALIASES, *CATALOG} <= set(available_engines())
    assert "auto" not in available_engines()
    assert set(ALIASES).isdisjoint(CATALOG)
    with pytest.raises(InvalidRequest):
        connect(["ollama"])


@pytest.mark.parametrize("name", sorted(ALIASES))
def test_an_alias_is_the_openai_adapter_at_the_usual_address(name):
    """``connect("ollama")`` needs no URL; with one it goes there."""
    engine, usual = ALIASES[name]
    with connect(name) as adapter, connect(name, "http://gpu:1") as elsewhere:
        assert type(adapter) is type(elsewhere) is adapter_class(name) is adapter_class(engine)
        assert usual in repr(adapter)
        assert "http://gpu:1" in repr(elsewhere)


@pytest.mark.parametrize(("name", "path"), [("auto", ""), ("auto", "/v1"), (None, "")])
def test_what_detect_gives_connects(case, name, path):
    """``connect(detect(url), url)`` finds the server's own paths; ``connect("auto", url)`` also below a /v1."""
    routes, otherwise, engine, _ = case
    if engine not in available_engines():
        pytest.skip(f"no adapter for {engine}")
    with product(routes, otherwise) as server:
        url = server.url + path
        with connect(name or detect(url), url) as adapter:
            asked = len(server.requests)
            adapter.health()
            assert paths(server)[asked] in ("/health", "/v1/models", "/v2/health/ready")
