"""An OpenAI-compatible server that is not there: api.openai.com by default, others by `flavor`.

Uses no part of the library: its bytes were written from the published schema, servers' sources and recordings, and are
compared with them by independent clients.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Sequence
from typing import Any

from .engine import EngineSimulator, Piece
from .exchange import Exchange, Header
from .faults import Fault
from .openai_events import Answer, pieces, whole
from .openai_flavors import FLAVORS
from .openai_request import DONE, Persona, Refusal, dump, event, scripts
from .openai_responses import Responses, whole_response
from .openai_rules import error_body, error_event, read, usual
from .openai_script import Step, Token, ToolCall
from .recital import SENTENCE

_GENERATES = {"/chat/completions": "chat", "/completions": "completions", "/responses": "responses"}


class OpenAISimulator(EngineSimulator):
    """Speaks the OpenAI HTTP dialect under the flavor's base path (`base_url`).

    `tokens`: what it says, one text a token, then an end token; None: the words of the prompt (of the last user
    message), repeated up to the request's limit. `endless` starts over in place of the end token. `reasoning` pieces
    come first where the flavor sends them; `tool_calls` (name, argument pieces) answer a request with tools; `refusal`
    pieces take the place of the text; `filtered_after` tokens the content filter ends the answer.

    `model` and `models` are what is served (answers say `dated`, where given), `n_ctx` is the window, and `api_key`
    demanded where given. `strict` refuses unknown fields;
    `reasoning_model` wants max_completion_tokens and no temperature; `accepts_stream_options=False` refuses that field
    by name. `azure` (flavor azure) takes the model from the path, wants api-version, and the key in `api-key`. Options
    may be set at any time. Further options: those of EngineSimulator and SimServer.
    """

    def __init__(
        self,
        tokens: Sequence[Token] | None = SENTENCE,
        *,
        flavor: str = "openai",
        azure: bool = False,
        endless: bool = False,
        n_ctx: int = 128000,
        api_key: str | None = None,
        model: str = "gpt-4o-mini",
        models: Sequence[str] = (),
        dated: str | None = None,
        reasoning: Sequence[str] = (),
        tool_calls: Sequence[ToolCall] = (),
        refusal: Sequence[str] = (),
        filtered_after: int | None = None,
        strict: bool = False,
        reasoning_model: bool = False,
        accepts_stream_options: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(tokens, endless=endless, **options)
        self.flavor = FLAVORS["azure" if azure else flavor]
        self.azure = azure or flavor == "azure"
        self.n_ctx = n_ctx
        self.api_key = api_key
        self.model = model
        self.models = tuple(models)
        self.dated = dated
        self.reasoning = tuple(reasoning)
        self.tool_calls = tuple(tool_calls)
        self.refusal = tuple(refusal)
        self.filtered_after = filtered_after
        self.strict = strict
        self.reasoning_model = reasoning_model
        self.accepts_stream_options = accepts_stream_options
        self._responses: dict[Exchange, Responses] = {}

    @property
    def base_url(self) -> str:
        """The URL that clients are configured with."""
        if self.azure:
            return f"{self.url}/openai/deployments/{self.model}"
        return self.url + self.flavor.prefix

    # -- routing -------------------------------------------------------------------------------------------------

    def _route(self, exchange: Exchange) -> tuple[str, str]:
        """The path behind the base path, and the deployment named in it; ("", "") for a path of somebody else's."""
        path = exchange.request.path
        if self.azure and path.startswith("/openai/deployments/"):
            deployment, _, rest = path.removeprefix("/openai/deployments/").partition("/")
            return "/" + rest, deployment
        prefix = self.flavor.prefix
        if self.azure and path.startswith("/openai/v1/"):
            prefix = "/openai/v1"  # the newer base, which needs no api-version
        return (path.removeprefix(prefix), "") if path.startswith(prefix + "/") else ("", "")

    def generates(self, exchange: Exchange) -> bool:
        """True for a POST to a generation endpoint."""
        return exchange.request.method == "POST" and self._route(exchange)[0] in _GENERATES

    def answer(self, exchange: Exchange, fault: Fault) -> None:
        """Answers as the server does: path first, then the key."""
        request = exchange.request
        path, deployment = self._route(exchange)
        page = self.flavor.pages.get(request.path)
        if request.method == "GET" and page is not None:
            status, kind, body = page
            exchange.respond(status, [("Content-Type", kind)] if kind else [], body)
            return
        try:
            if not path or (request.method, path) not in self._known(path):
                self._wrong_path(exchange)
                return
            self._admit(exchange, deployment)
            if request.method == "GET":
                self._list(exchange, path)
            else:
                self._generate(exchange, fault, _GENERATES[path], deployment)
        except Refusal as refusal:
            body = error_body(self.flavor, refusal)
            exchange.respond(refusal.status, self.error_headers(exchange), body)

    def _known(self, path: str) -> set[tuple[str, str]]:
        known = {("POST", name) for name in _GENERATES} | {("GET", "/models")}
        return known | ({("GET", path)} if path.startswith("/models/") else set())

    def _wrong_path(self, exchange: Exchange) -> None:
        request = exchange.request
        status, value = self.flavor.wrong_path
        text = json.dumps(value).replace("{method}", request.method).replace("{path}", request.path)
        exchange.respond(status, self.error_headers(exchange), text.encode())

    def _admit(self, exchange: Exchange, deployment: str) -> None:
        request = exchange.request
        dated = not request.path.startswith("/openai/v1/")
        if self.azure and dated and not request.query.get("api-version"):
            raise Refusal(404, "Resource not found", None, None, "404")
        if self.api_key is None:
            return
        given = (request.header("Authorization") or "").removeprefix("Bearer ")
        if self.azure:
            given = request.header("api-key") or given
        if given == self.api_key:
            return
        if self.azure:
            text = "Access denied due to invalid subscription key or wrong API endpoint."
            raise Refusal(401, text, None, None, "401")
        if not given:
            text = "You didn't provide an API key. You need to provide your API key in an Authorization header."
            raise Refusal(401, text, "invalid_request_error")
        shown = f"{given[:5]}****{given[-3:]}"
        raise Refusal(401, f"Incorrect API key provided: {shown}.", "invalid_request_error", None, "invalid_api_key")

    def _served(self) -> list[str]:
        return [name for name in (self.model, *self.models, self.dated) if name]

    def _list(self, exchange: Exchange, path: str) -> None:
        told = {"object": "model", "created": self.flavor.created, "owned_by": self.flavor.owner}
        cards = [{"id": name, **told} for name in self._served()]
        if path == "/models":
            self._json(exchange, dump({"object": "list", "data": cards}))
            return
        wanted = path.removeprefix("/models/")
        found = [card for card in cards if card["id"] == wanted]
        if not found:
            text = f"The model '{wanted}' does not exist"
            raise Refusal(404, text, "invalid_request_error", "model", "model_not_found")
        self._json(exchange, dump(found[0]))

    # -- generation ----------------------------------------------------------------------------------------------

    def _generate(self, exchange: Exchange, fault: Fault, route: str, deployment: str) -> None:
        answer = self._answer(exchange, route, deployment)
        responses = None
        if route == "responses":
            name = "resp_" + secrets.token_hex(16)
            body, count = answer.job.body, sum(answer.job.counts)
            responses = _Flavored(
                answer.scripts[0], name=name, model=answer.model, created=answer.created, body=body, prompted=count
            )
            responses.named = self.flavor.responses_named
            self._responses[exchange] = responses
        try:
            self._run(exchange, fault, answer, responses)
        finally:
            self._responses.pop(exchange, None)

    def _run(self, exchange: Exchange, fault: Fault, answer: Answer, responses: Responses | None) -> None:
        with self.slot(exchange, fault):
            if not answer.job.stream:
                self._whole(exchange, fault, answer, responses)
                return
            exchange.head(200, self._headers(exchange, self.flavor.stream_type))
            made = pieces(answer) if responses is None else self._response_pieces(answer, responses)
            self.play(exchange, fault, made)

    def _answer(self, exchange: Exchange, route: str, deployment: str) -> Answer:
        try:
            body = json.loads(exchange.request.body.decode("utf-8"))
        except ValueError as error:
            text = "We could not parse the JSON body of your request."
            raise Refusal(400, text, "invalid_request_error") from error
        if not isinstance(body, dict):
            raise Refusal(400, "We expected a JSON object.", "invalid_request_error")
        job = read(
            route,
            body,
            flavor=self.flavor,
            strict=self.strict,
            reasoning_model=self.reasoning_model,
            accepts_stream_options=self.accepts_stream_options,
            n_ctx=self.n_ctx,
        )
        name = deployment or body.get("model")
        if name is None and self.strict:
            raise Refusal(400, "you must provide a model parameter", "invalid_request_error")
        if name is not None and name not in self._served():
            text = f"The model `{name}` does not exist or you do not have access to it."
            raise Refusal(self.flavor.unknown_model, text, "invalid_request_error", None, "model_not_found")
        tokens = self.refusal or self.tokens
        persona = Persona(tokens, self.endless, self.reasoning, self.tool_calls, self.n_ctx)
        try:
            made = scripts(job, persona)
        except NotImplementedError as error:
            raise Refusal(400, str(error), "invalid_request_error", "structured_outputs") from error
        for script in made:
            if self.refusal:
                script.voice = "refusal"
            script.keep_stop = script.keep_stop or self.flavor.keeps_stop
            if self.filtered_after is not None:
                script.limit, script.cut = self.filtered_after, "content_filter"
        served = self.dated or name or self.model
        return Answer(job, made, str(served), self.flavor, self.delay, self.prompt_delay)

    def _response_pieces(self, answer: Answer, form: Responses) -> Iterator[Piece]:
        for data in form.opening():
            yield Piece(data)
        wait = answer.prompt_delay + answer.delay
        for _, step in answer.steps():
            if step is None:
                yield Piece(b"", delay=wait)
                wait = answer.delay
                continue
            for data, tokens in form.step(step):
                yield Piece(data, tokens)
        yield Piece(form.ending(), finish=True)
        if self.flavor.responses_done:
            yield Piece(DONE)

    def _whole(self, exchange: Exchange, fault: Fault, answer: Answer, responses: Responses | None) -> None:
        if fault.kind == "error":
            raise Refusal(fault.code, fault.message or "The server had an error", fault.error_type or "server_error")
        fault.strike_whole(exchange)
        said: list[list[Step]] = [[] for _ in answer.scripts]
        wait = answer.prompt_delay + answer.delay
        for number, step in answer.steps():
            if step is not None:
                said[number].append(step)
            elif wait > 0:
                self._pause(exchange, wait, None)
                wait = answer.delay
        body = whole(answer, said) if responses is None else whole_response(responses, said[0])
        self._json(exchange, dump(body))

    # -- bodies and heads ----------------------------------------------------------------------------------------

    def _json(self, exchange: Exchange, body: bytes) -> None:
        exchange.respond(200, self._headers(exchange, self.flavor.json_type), body)

    def error_headers(self, exchange: Exchange) -> list[Header]:
        """The head of an error answer."""
        return self._fill(exchange, [("Content-Type", self.flavor.json_type), *self.flavor.error_headers])

    def _headers(self, exchange: Exchange, content_type: str) -> list[Header]:
        return self._fill(exchange, [("Content-Type", content_type), *self.flavor.headers])

    def _fill(self, exchange: Exchange, headers: list[Header]) -> list[Header]:
        name = "req_" + secrets.token_hex(10)
        return [(key, value.replace("{request}", name)) for key, value in headers]

    def error_body(self, status: int, message: str | None = None, kind: str | None = None) -> bytes:
        """The flavor's error body."""
        return error_body(self.flavor, usual(status, message, kind))

    def error_events(self, exchange: Exchange, fault: Fault) -> Sequence[bytes]:
        """The flavor's error event, and [DONE] where it sends that too. A Responses stream has its own form: a bare
        `error` event, or the terminal event response.failed if that is the fault's error_type."""
        responses = self._responses.get(exchange)
        if responses is not None:
            failed = fault.error_type == "response.failed"
            return [responses.failure(fault.message or usual(500).message, failed=failed)]
        ending = (DONE,) if self.flavor.done_after_error else ()
        return [*super().error_events(exchange, fault), *ending]

    def error_event(self, status: int, message: str, kind: str, *, old: bool = False) -> bytes:
        """The flavor's error event in a stream of chunks."""
        return error_event(self.flavor, status, message, kind, self.model)


class _Flavored(Responses):
    """Responses events with or without their `event:` lines (LiteLLM leaves them out)."""

    named = True

    def frame(self, kind: str, fields: dict[str, Any]) -> bytes:
        data = {"type": kind, "sequence_number": self._sequence, **fields}
        return event(data, kind if self.named else "")
