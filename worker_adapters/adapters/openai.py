"""OpenAI adapter: api.openai.com, Azure, and every server that says ``/v1``.    Schema 2.3.0 (2026-08).

Uses: POST {base}/chat/completions, {base}/completions, {base}/responses, GET {base}/models.
Differs from the others: there is no health route, no version and no cancel route (closing the connection is the
cancel); nothing says where a model is; 429 may mean "later" or "never"; and no two servers that speak the dialect speak
it alike: what they do to it is listed in docs/openai-servers.rst, and tolerated.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from worker_adapters.adapters.base import HttpAdapter
from worker_adapters.adapters.openai_routes import OPENAI_HOST, Routes
from worker_adapters.adapters.openai_rules import OPENAI_RULES
from worker_adapters.errors import invalid
from worker_adapters.jsonvalue import encode
from worker_adapters.report import Capabilities, EngineProps, HealthStatus
from worker_adapters.task import TaskRequest
from worker_adapters.transport.control import Reply
from worker_adapters.wire.delta import Decoder, EngineFault, WireRequest
from worker_adapters.wire.openai import ChunkDecoder
from worker_adapters.wire.openai_body import MAX_COMPLETION_TOKENS, MAX_TOKENS, chat_fields, text_fields
from worker_adapters.wire.responses import ResponsesDecoder, responses_fields

LIMITS = (MAX_TOKENS, MAX_COMPLETION_TOKENS)
FIELDS = (
    "temperature", "top_p", "seed", "stop", "presence_penalty", "frequency_penalty", "logit_bias", "logprobs",
    "tools", "tool_choice", "response_format",
)  # fmt: skip
#: What a prompt on ``/completions`` cannot have.
CHAT_ONLY = ("tools", "tool_choice", "response_format")
FIELDS_OF = {
    "auto": FIELDS,
    "chat": FIELDS,
    "completions": tuple(name for name in FIELDS if name not in CHAT_ONLY),
    "responses": ("temperature", "top_p", "logprobs", *CHAT_ONLY),
}
#: How servers say that they do not know a field.
UNKNOWN_FIELD = re.compile(
    r"unsupported|not supported|unrecognized|unknown|unexpected|extra (inputs|fields)|not permitted", re.IGNORECASE
)
#: And that they know it, but not such a value.
BAD_VALUE = re.compile(r"\bvalues?\b|too (large|high|big)|at most|greater|less than|exceed|maximum", re.IGNORECASE)


class _Model(msgspec.Struct):
    id: str | None = None
    max_model_len: int | None = None  # vLLM, SGLang
    context_length: int | None = None  # OpenRouter
    max_input_tokens: int | None = None  # LiteLLM


class _Models(msgspec.Struct):
    """GET {base}/models, as far as it is read."""

    data: list[_Model]


class OpenAIHttpAdapter(HttpAdapter):
    """Any OpenAI-compatible server.

    A URL without a path gets ``/v1``; one with a path is the base as it is (``/openai/v1``, ``/api/v1``). Azure is
    known by its host, or by ``api_version`` or ``deployment``: its key goes into the header ``api-key``, and with an
    ``api_version`` the path is ``/openai/deployments/NAME``.

    :param api: ``"auto"``: messages go to /chat/completions, prompts to /completions. ``"chat"``: a prompt is sent as
        the user's one message, for servers without /completions. ``"completions"``: prompts only. ``"responses"``: the
        Responses API.
    :param organization: for OpenAI's header of this name.
    :param project: the same.
    :param api_version: Azure's, e.g. ``"2024-10-21"``.
    :param deployment: Azure's name of it; None: the task's model.
    :param limit_field: what the server calls the token limit of a chat: ``"max_tokens"`` or
        ``"max_completion_tokens"``. None: the new name for OpenAI and Azure, the old one for all others, and the other
        one as soon as the server refuses it.
    :param usage: ask for token counts in the stream? None: yes, unless the server refuses the field.
    :raises InvalidRequest: naming the option. Further options are those of ``HttpAdapter``; of those ``headers`` go
        before ``organization`` and ``project``, and ``key_header`` before Azure's.
    """

    engine = "openai"
    default_url = "https://api.openai.com/v1"
    one_piece = True
    closing_servers = frozenset({"llama.cpp"})  # announces keep-alive with every stream, and closes after it
    job_id_header = "X-Client-Request-Id"
    owned = frozenset({"input", "background"})  # a background response outlives its connection
    rules = OPENAI_RULES

    def __init__(
        self,
        url: str | None = None,
        *,
        api: str = "auto",
        organization: str | None = None,
        project: str | None = None,
        api_version: str | None = None,
        deployment: str | None = None,
        limit_field: str | None = None,
        usage: bool | None = None,
        headers: Any = None,
        key_header: str | None = None,
        **options: Any,
    ) -> None:
        chosen: dict[str, Any] = {
            "api": api, "organization": organization, "project": project, "api_version": api_version,
            "deployment": deployment, "limit_field": limit_field, "usage": usage,
        }  # fmt: skip
        _check(chosen)
        routes = Routes(url if isinstance(url, str) else self.default_url, api_version, deployment)
        if routes.in_deployments and routes.api_version is None:
            raise invalid("api_version", "Azure's deployments want one, e.g. 2024-10-21")
        named = {"OpenAI-Organization": organization, "OpenAI-Project": project}
        own = {name: value for name, value in named.items() if value is not None}
        super().__init__(
            routes.url if isinstance(url, str) else url,
            headers={**own, **headers} if isinstance(headers, Mapping) else own if headers is None else headers,
            key_header=key_header if key_header is not None else ("api-key" if routes.azure else "Authorization"),
            **options,
        )
        self._routes = routes
        self._chosen = {**chosen, "api_version": routes.api_version, "deployment": routes.deployment}
        self._api = api
        # Only OpenAI and Azure are sure to take the new name: Ollama 0.33 ignores it in silence, and answers without
        # limit.
        new = routes.azure or routes.host == OPENAI_HOST
        self._limit = limit_field or (MAX_COMPLETION_TOKENS if new else MAX_TOKENS)
        self._limit_of: dict[str | None, str] = {}
        self._usage = usage is not False
        self.health_path = routes.models
        self.with_messages = CHAT_ONLY if api == "auto" else ()
        self.probes_chat = api != "completions"
        self.probe_tokens = 16 if api == "responses" else 1  # OpenAI takes no less there
        self.capabilities = Capabilities(
            messages=api != "completions",
            fields=FIELDS_OF[api],
            release_ms=100.0,
            release="as soon as the server notices a closed connection; TensorRT-LLM polls once a second",
        )

    def encode(self, task: TaskRequest) -> WireRequest:
        if self._api == "responses":
            route, fields = "/responses", responses_fields(task)
        elif task.messages is not None or self._api == "chat":
            route, fields = "/chat/completions", chat_fields(task, self._limit_of.get(task.model, self._limit))
        else:
            route, fields = "/completions", text_fields(task)
        asked = {"stream_options": {"include_usage": True}} if self._usage and self._api != "responses" else {}
        if self._routes.in_deployments and not (self._routes.deployment or task.model):
            raise self._invalid("model", "Azure wants the name of a deployment: deployment= or model=")
        path = self._routes.path(route, task.model)
        return WireRequest(path, encode({**fields, "stream": True, **asked, **task.extra}))

    def decoder(self, task: TaskRequest) -> Decoder:
        make = ResponsesDecoder if self._api == "responses" else ChunkDecoder
        return make(logprobs=task.logprobs is not None)

    def learns(self, status: int, fault: EngineFault, task: TaskRequest, request: WireRequest) -> bool:
        """A server that validates strictly names the field it does not know: swap it, or leave it out.

        Models of one server differ in the limit's name, so it is remembered for each.
        """
        if status not in (400, 422) or BAD_VALUE.search(fault.message):
            return False
        sent = MAX_TOKENS if b'"max_tokens":' in request.body else MAX_COMPLETION_TOKENS
        if "/chat/" in request.path and self._chosen["limit_field"] is None and _is_unknown(sent, fault):
            self._limit_of[task.model] = MAX_TOKENS if sent == MAX_COMPLETION_TOKENS else MAX_COMPLETION_TOKENS
            return True
        if self._chosen["usage"] is None and _is_unknown("stream_options", fault):
            self._usage = False
            return True
        return False

    def judge(self, reply: Reply) -> HealthStatus:
        """The list of models is all that every server has; a 200 with anything else is not one of them."""
        answer = reply.json()
        if reply.status == 200 and not (isinstance(answer, dict) and isinstance(answer.get("data"), list)):
            message = f"{self._endpoint.shown}{self.health_path}: 200, but no list of models: is the URL right?"
            return HealthStatus("unhealthy", live=True, ready=False, message=message)
        return super().judge(reply)

    def props(self) -> EngineProps:
        asking = self.asking()
        models = asking(self.health_path, _Models).data
        sole = models[0] if len(models) == 1 else _Model()
        entry = next((model for model in models if model.id == self._model), sole if self._model is None else _Model())
        return EngineProps(
            engine=self.engine,
            model=entry.id or self._model,
            context_size=entry.max_model_len or entry.context_length or entry.max_input_tokens,
            capabilities=self.capabilities,
            raw=asking.raw,
        )

    def _configuration(self) -> dict[str, Any]:
        return {**super()._configuration(), **self._chosen}


def _is_unknown(field: str, fault: EngineFault) -> bool:
    """Does the refusal say that the server does not know the field?"""
    if fault.param is not None and fault.param.partition(".")[0] == field:
        return fault.code == "unsupported_parameter" or UNKNOWN_FIELD.search(fault.message) is not None
    near = rf"\b{field}\b.{{0,60}}({UNKNOWN_FIELD.pattern})|({UNKNOWN_FIELD.pattern}).{{0,60}}\b{field}\b"
    return fault.param is None and re.search(near, fault.message, re.IGNORECASE) is not None


def _check(chosen: dict[str, Any]) -> None:
    """:raises InvalidRequest: naming the option."""
    wants: dict[str, tuple[bool, str]] = {
        "api": (isinstance(chosen["api"], str) and chosen["api"] in FIELDS_OF, f"want one of {', '.join(FIELDS_OF)}"),
        "limit_field": (chosen["limit_field"] in (None, *LIMITS), f"want one of {', '.join(LIMITS)}, or None"),
        "usage": (chosen["usage"] is None or type(chosen["usage"]) is bool, "want True, False or None"),
    }
    texts = ("organization", "project", "api_version", "deployment")
    wants |= {name: (_is_text(chosen[name]), "want a string without control characters") for name in texts}
    wrong = next((name for name in wants if not wants[name][0]), None)
    if wrong is not None:
        raise invalid(wrong, wants[wrong][1])


def _is_text(value: Any) -> bool:
    """None, or what can be sent."""
    return value is None or (isinstance(value, str) and value.isprintable())
