"""Which server answers at a URL: a table of facts, asked with few and cheap GETs under one deadline.

Never a generation, and nothing that makes a server do work: LiteLLM's /health calls every backend, and SGLang's runs a
token, so /health is asked only of a server that has already shown itself to be neither.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit

from worker_adapters.errors import (
    AuthenticationFailed,
    EngineUnavailable,
    InvalidRequest,
    UnknownError,
    WorkerError,
    WorkerTimeout,
)
from worker_adapters.timeouts import check_seconds
from worker_adapters.transport.control import ControlClient, Reply
from worker_adapters.transport.endpoint import ApiKey, Endpoint
from worker_adapters.transport.network import Network
from worker_adapters.transport.pool import ConnectionPool
from worker_adapters.wire.http1 import Head

TIMEOUT = 4.0
#: Of the time that is left, a request gets this share: a path that is never answered must not cost the others theirs.
SHARE = 0.5
#: With less than this left (seconds), nothing more is asked.
LEAST = 0.05
#: A server that has said nothing yet is given up after so many requests.
SILENT = 2

MODELS = "/v1/models"
VERSION = "/version"
HEALTH = "/health"
INFO = "/info"
V2 = "/v2"
ROOT = "/"
ALIVE = "/health/liveliness"
GREETING = "/lmstudio-greeting"
#: An OpenAI dialect whose paths do not begin with /v1, e.g. Azure's ``/openai/deployments/NAME``.
BARE_MODELS = "/models"

#: What stands for an answer that did not come: no fact holds of it.
NOTHING = Reply(Head(0, (), keep_alive=False), b"")


class Found(NamedTuple):
    """A server: its name, and the URL under which ``connect`` finds its API."""

    engine: str
    url: str


class Fact(NamedTuple):
    """What must hold of the answer at a path below the server's root."""

    path: str
    holds: Callable[[Reply], bool]


class Signature(NamedTuple):
    """A server, and the facts by which it is known: all must hold, and a fact is asked only if those before it do."""

    engine: str
    facts: tuple[Fact, ...]


# --- what an answer may say


def _json(reply: Reply) -> dict[str, Any]:
    """The JSON object of a 200, or an empty one."""
    answer = reply.json() if reply.status == 200 else None
    return answer if isinstance(answer, dict) else {}


def _models(reply: Reply) -> list[dict[str, Any]] | None:
    """The entries of an OpenAI model list; None if it is none. Not every server sends ``object`` (OpenRouter), and an
    Ollama without models has sent null for the list."""
    answer = _json(reply)
    entries = answer.get("data")
    if answer.get("object") == "list" and entries is None and "data" in answer:
        return []
    if not isinstance(entries, list) or not all(isinstance(e, dict) and isinstance(e.get("id"), str) for e in entries):
        return None
    return entries if entries or answer.get("object") == "list" else None


def _lists_models(reply: Reply) -> bool:
    return _models(reply) is not None


def _lists_no_models(reply: Reply) -> bool:
    """For a path where no model list belongs: what lists models on every path is no API. Holds of no answer too."""
    return _models(reply) is None


def _owned_by(owner: str) -> Callable[[Reply], bool]:
    """A model list whose entries, as far as the server made them itself, are signed by it."""
    return lambda reply: any(entry.get("owned_by") == owner for entry in _models(reply) or ())


def _lists_like_tgi(reply: Reply) -> bool:
    """TGI's one model owns itself and was created in 1970 (2.3.0 and later)."""
    models = _models(reply) or []
    return len(models) == 1 and models[0].get("created") == 0 and models[0].get("owned_by") == models[0]["id"]


def _lists_like_litellm(reply: Reply) -> bool:
    """LiteLLM created every model at one moment of 2023 (1.106.2). OpenAI created gpt-3.5-turbo then: only a hint."""
    models = _models(reply) or []
    return bool(models) and all(entry.get("created") == 1677610602 for entry in models)


def _from_llamacpp(reply: Reply) -> bool:
    """Every answer of llama.cpp has the header, whatever its status; a proxy may take it away."""
    return reply.head.get("server").strip().lower() == "llama.cpp"


def _fault(reply: Reply) -> Any:
    answer = reply.json() if reply.status >= 400 else None
    return answer.get("error") if isinstance(answer, dict) else None


def _llamacpp_loading(reply: Reply) -> bool:
    return bool(_fault(reply) == {"message": "Loading model", "type": "unavailable_error", "code": 503})


def _llamacpp_wants_a_key(reply: Reply) -> bool:
    return bool(_fault(reply) == {"message": "Invalid API Key", "type": "authentication_error", "code": 401})


def _wants_a_key(reply: Reply) -> bool:
    """The words of vLLM (0.32.0), and of SGLang, whose /version needs the key too."""
    return reply.status == 401 and _fault(reply) == "Unauthorized"


def _refused(reply: Reply) -> bool:
    """What LiteLLM says to no key (500) and to a wrong one (400, without its database), beside the usual."""
    return reply.status in (400, 401, 403, 500)


def _version_alone(reply: Reply) -> bool:
    answer = _json(reply)
    return answer.keys() == {"version"} and isinstance(answer["version"], str) and answer["version"] != ""


def _empty(reply: Reply) -> bool:
    return reply.status in (200, 503) and not reply.body


def _says_ok(reply: Reply) -> bool:
    return _json(reply) == {"status": "ok"}


def _text(words: bytes) -> Callable[[Reply], bool]:
    return lambda reply: reply.status == 200 and reply.body.strip() == words


def _unexpected(reply: Reply) -> bool:
    """LM Studio answers 200 to every path and says so (0.3.14 to 0.4.18)."""
    words = _json(reply).get("error")
    return isinstance(words, str) and words.startswith("Unexpected endpoint or method. (GET ")


def _greets(reply: Reply) -> bool:
    return _json(reply).get("lmstudio") is True


def _is_triton(reply: Reply) -> bool:
    """By its extensions: the name is what ``--id`` gave it, and other servers speak KServe's protocol too."""
    answer = _json(reply)
    extensions = answer.get("extensions")
    return isinstance(answer.get("version"), str) and isinstance(extensions, list) and "schedule_policy" in extensions


def _is_tgi(reply: Reply) -> bool:
    """TGI from 0.7.0 on. ``docker_label`` and ``max_concurrent_requests`` stand in the /info of HF's embedding server
    too, ``max_best_of`` does not."""
    answer = _json(reply)
    numbers = [answer.get(name) for name in ("max_best_of", "max_concurrent_requests")]
    return isinstance(answer.get("model_id"), str) and all(type(number) is int for number in numbers)


_ALIVE = _text(b'"I\'m alive!"')
_OLLAMA = _text(b"Ollama is running")

#: Tried from top to bottom; no path is asked twice. What the list of models says alone comes first: it is right for
#: most servers, after one request.
SIGNATURES = (
    Signature("llamacpp", (Fact(MODELS, _from_llamacpp),)),
    Signature("llamacpp", (Fact(MODELS, _owned_by("llamacpp")),)),  # behind a proxy that sets its own Server header
    Signature("llamacpp", (Fact(MODELS, _llamacpp_loading),)),
    Signature("vllm", (Fact(MODELS, _owned_by("vllm")),)),
    Signature("sglang", (Fact(MODELS, _owned_by("sglang")),)),
    # The list needs a key. What these paths say, they say without one.
    Signature("llamacpp", (Fact(MODELS, _llamacpp_wants_a_key), Fact(HEALTH, _says_ok))),
    Signature("vllm", (Fact(MODELS, _wants_a_key), Fact(VERSION, _version_alone), Fact(HEALTH, _empty))),
    Signature("litellm", (Fact(MODELS, _refused), Fact(ALIVE, _ALIVE))),
    # There is a list, and it does not say whose.
    Signature("tgi", (Fact(MODELS, _lists_like_tgi), Fact(INFO, _is_tgi))),
    Signature("litellm", (Fact(MODELS, _lists_like_litellm), Fact(ALIVE, _ALIVE))),
    Signature("ollama", (Fact(MODELS, _lists_models), Fact(ROOT, _OLLAMA))),
    Signature("lmstudio", (Fact(MODELS, _lists_models), Fact(ROOT, _unexpected))),
    Signature("lmstudio", (Fact(MODELS, _lists_models), Fact(GREETING, _greets))),
    Signature("openai", (Fact(MODELS, _lists_models), Fact(ROOT, _lists_no_models), Fact(GREETING, _lists_no_models))),
    # There is none, or not for us.
    Signature("triton", (Fact(V2, _is_triton),)),
    Signature("tgi", (Fact(INFO, _is_tgi),)),  # before 2.3.0
    Signature("ollama", (Fact(ROOT, _OLLAMA),)),
    Signature("lmstudio", (Fact(GREETING, _greets),)),
)
#: Tried last, where the URL has a path that does not end in /v1.
BARE = Signature("openai", (Fact(BARE_MODELS, _lists_models), Fact(ROOT, _lists_no_models)))

#: Their adapters want the root; the others want the URL of the OpenAI dialect.
AT_ROOT = frozenset({"llamacpp", "vllm", "tgi", "triton"})


# --- asking


class _Server:
    """What a server answered so far: each path is asked once, and all of them under one deadline."""

    def __init__(self, endpoint: Endpoint, control: ControlClient, network: Network, timeout: float) -> None:
        self._endpoint = endpoint
        self._control = control
        self._network = network
        self._began = network.monotonic()
        self._timeout = timeout
        self._replies: dict[str, Reply] = {}
        self._failures: list[WorkerError] = []

    def bears(self, signature: Signature) -> bool:
        """Do all facts hold?

        :raises WorkerError: there is no connection, or the server says nothing to anything.
        """
        return all(fact.holds(self._ask(fact.path)) for fact in signature.facts)

    def _ask(self, path: str) -> Reply:
        """What stands at ``path``; NOTHING if there was no answer."""
        if path not in self._replies:
            self._replies[path] = self._get(path)
        return self._replies[path]

    def _get(self, path: str) -> Reply:
        left = self._timeout - self._passed()
        if left < LEAST:
            raise self._silent(path)
        try:
            return self._control.get(path, timeout=left * SHARE)
        except WorkerError as error:
            if error.phase == "connect" or isinstance(error, InvalidRequest):
                raise
            self._failures.append(error)
            if len(self._failures) == SILENT and all(reply is NOTHING for reply in self._replies.values()):
                raise self._silent(path) from None
            return NOTHING

    def _passed(self) -> float:
        return self._network.monotonic() - self._began

    def _silent(self, path: str) -> WorkerError:
        """A time-out says what was asked in all that time; another failure speaks for itself."""
        first = self._failures[0] if self._failures else None
        if first is not None and not isinstance(first, WorkerTimeout):
            return first
        asked = ", ".join({**self._replies, path: NOTHING})
        message = f"{self._endpoint.shown}: no whole answer in {self._passed():.1f} s; asked {asked}"
        return WorkerTimeout(message=message, clock="first_token", phase="first_token")

    def unknown(self) -> WorkerError:
        """The error that says what was asked and answered, after no signature fitted."""
        models = self._replies[MODELS]
        asked = ", ".join(f"{path} ({_said(reply)})" for path, reply in self._replies.items())
        told: dict[str, Any] = {"status": models.status or None, "phase": "first_token"}
        where, asked = self._endpoint.shown, self._endpoint.clean(f"asked {asked}")
        if models.status in (401, 403, 407):
            return AuthenticationFailed(message=f"{where} wants another key to say what it is; {asked}", **told)
        if models.status in (502, 503, 504):
            return EngineUnavailable(
                message=f"{where}: a gateway without its server, or a server that starts; {asked}", **told
            )
        return UnknownError(message=f"{where}: no known engine answers there; {asked}", **told)


def _said(reply: Reply) -> str:
    """An answer in two words."""
    if reply is NOTHING:
        return "no answer"
    where = reply.head.get("location") if 300 <= reply.status < 400 else ""
    return f"{reply.status} " + (f"to {where}" if where else reply.head.told_type or "of no type")


def detect(
    url: str,
    *,
    api_key: ApiKey = None,
    headers: Mapping[str, str] | None = None,
    verify: bool = True,
    ca: str | None = None,
    cert: str | tuple[str, str] | None = None,
    proxy: str | None = None,
    key_header: str = "Authorization",
    timeout: float = TIMEOUT,
    network: Network | None = None,
) -> str:
    """The name of the server at ``url``, for ``connect``: llamacpp, vllm, tgi, triton, sglang, ollama, lmstudio,
    litellm, or openai for any other that lists its models as OpenAI does.

        >>> detect("http://gpu-box:8000")
        'vllm'

    It sends at most nine GETs, one to three for the usual servers. ``api_key, headers, verify, ca, cert, proxy,
    key_header`` are the options of :class:`HttpAdapter`; the URL may end in ``/v1`` or not.

    :param timeout: seconds over everything (a DNS lookup cannot be interrupted).
    :raises EngineUnavailable: nothing listens there, TLS fails, or a gateway has lost its server.
    :raises WorkerTimeout: it does not answer.
    :raises AuthenticationFailed: without another key the server does not say what it is.
    :raises UnknownError: something else answers there; the message says what was asked.
    :raises InvalidRequest: a bad option.
    """
    options = {
        "api_key": api_key, "headers": headers, "verify": verify, "ca": ca, "cert": cert, "proxy": proxy,
        "key_header": key_header,
    }  # fmt: skip
    return find(url, timeout=timeout, network=network, **options).engine


def find(url: str, *, timeout: float = TIMEOUT, network: Network | None = None, **options: Any) -> Found:
    """The same, and the URL to connect to: without the /v1 for the engines that stand beside it, with it for others.

    :raises WorkerError: as ``detect``.
    """
    check_seconds("timeout", timeout, optional=False)
    Endpoint(url, **options)  # refuses what is no URL before it is taken apart
    root = _root(url)
    endpoint = Endpoint(root, **options)
    network = network or Network()
    pool = ConnectionPool(max_idle=1)
    try:
        server = _Server(endpoint, ControlClient(endpoint, pool, network), network, timeout)
        for signature in SIGNATURES:
            if server.bears(signature):
                at_root = signature.engine in AT_ROOT or not endpoint.base
                return Found(signature.engine, root if at_root else _joined(root, "/v1"))
        if root == url and endpoint.base and server.bears(BARE):
            return Found(BARE.engine, url)
        raise server.unknown()
    finally:
        pool.close()


def _root(url: str) -> str:
    """The URL without a /v1 at the end of its path. A socket's path is no URL path."""
    if url.startswith("unix://"):
        return url
    parts = urlsplit(url)
    path = parts.path.rstrip("/")
    return urlunsplit(parts._replace(path=path.removesuffix("/v1"))) if path.endswith("/v1") else url


def _joined(root: str, path: str) -> str:
    parts = urlsplit(root)
    return urlunsplit(parts._replace(path=parts.path.rstrip("/") + path))
