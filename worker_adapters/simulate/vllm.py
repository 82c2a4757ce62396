"""A vLLM OpenAI server that is not there: vLLM 0.32.0, uvicorn with the Python front end.

Uses no part of the library: its bytes were written from recordings, and are compared with them by independent clients.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from email.utils import formatdate
from http.client import responses
from typing import Any

from .engine import EngineSimulator, Withdrawn
from .exchange import Exchange, Header
from .faults import Fault
from .openai_request import DONE, Job, Persona, Refusal, dump, event, forced_tokens, scripts
from .openai_script import Script, Step, Token, ToolCall
from .recital import SENTENCE
from .vllm_events import Run, pieces, whole
from .vllm_facts import ENGINE_DEAD, ERRORS, FINGERPRINT, QUEUE_FULL, SCALE_OUT_OFF, detokenize, models, tokenize
from .vllm_metrics import metrics_text
from .vllm_preflight import is_preflight, preflight_headers
from .vllm_request import load, read
from .vllm_responses import response_pieces, response_whole

_GENERATES = {"/v1/completions": "completions", "/v1/chat/completions": "chat", "/v1/responses": "responses"}
_ROUTES: dict[str, tuple[str, ...]] = {
    "/health": ("GET",),
    "/ping": ("GET", "POST"),
    "/version": ("GET",),
    "/metrics": ("GET",),
    "/load": ("GET",),
    "/v1/models": ("GET",),
    "/tokenize": ("POST",),
    "/detokenize": ("POST",),
    "/inference/v1/abort_requests": ("POST",),
    **dict.fromkeys(_GENERATES, ("POST",)),
}
_GUARDED = ("/v1", "/v2", "/inference", "/cohere")  # everything else needs no key
KEEP_ALIVE = b": keep-alive\n\n"


class VllmSimulator(EngineSimulator):
    """Speaks the HTTP API of vLLM's OpenAI server.

    `tokens`: what it says, one text (or bytes) a token, then an end token; None: the words of the prompt (of the last
    user message), repeated up to the request's limit, so that crossed replies show. `endless` starts over in place of
    the end token. `reasoning` pieces come first in a chat; `tool_calls` (name, argument pieces) answer a request with
    tools; a schema is answered with an instance of it, where `grammars` can be followed. `model` and `aliases` are the
    served names, `root` the path behind them, `n_ctx` the window; `version` is told, and `api_key` demanded.

    Server options by their effect: `scale_out` opens the abort route, `keep_alive_comments` (seconds) sends comments
    into silent streams, `max_queued` bounds the queue, `force_usage`, `request_metrics`, `request_id_headers`,
    `prompt_details`, `track_load`, `tool_parser` are the flags of nearly these names. `dead` is the state after the
    engine process died: 503 and 500, and error events in open streams. `old` speaks like the 0.8 line: flat errors, old
    metric names, `reasoning_content`. `gauges` adds or replaces samples of /metrics by name and labels, `cache_config`
    labels of cache_config_info. `dead`, `delay` (seconds a token), `prompt_delay` may be set at any time. Further
    options: those of EngineSimulator and SimServer.
    """

    def __init__(
        self,
        tokens: Sequence[Token] | None = SENTENCE,
        *,
        endless: bool = False,
        n_ctx: int = 131072,
        api_key: str | None = None,
        model: str = "recite",
        aliases: Sequence[str] = (),
        root: str = "models/recite-hf",
        version: str = "0.32.0",
        reasoning: Sequence[str] = (),
        tool_calls: Sequence[ToolCall] = (),
        tool_parser: bool = True,
        grammars: bool = True,
        dead: bool = False,
        old: bool = False,
        scale_out: bool = False,
        keep_alive_comments: float | None = None,
        max_queued: int | None = None,
        force_usage: bool = False,
        request_metrics: bool = False,
        request_id_headers: bool = False,
        prompt_details: bool = False,
        track_load: bool = False,
        gauges: Mapping[str, float] | None = None,
        cache_config: Mapping[str, str] | None = None,
        **options: Any,
    ) -> None:
        # uvicorn under vLLM: idle connections end 5.0 s after the last answer.
        options.setdefault("idle_timeout", 5.0)
        super().__init__(tokens, endless=endless, **options)
        self.n_ctx = n_ctx
        self.api_key = api_key
        self.model = model
        self.aliases = tuple(aliases)
        self.root = root
        self.version = version
        self.reasoning = tuple(reasoning)
        self.tool_calls = tuple(tool_calls)
        self.tool_parser = tool_parser
        self.grammars = grammars
        self.dead = dead
        self.old = old
        self.scale_out = scale_out
        self.keep_alive_comments = keep_alive_comments
        self.max_queued = max_queued
        self.force_usage = force_usage
        self.request_metrics = request_metrics
        self.request_id_headers = request_id_headers
        self.prompt_details = prompt_details
        self.track_load = track_load
        self.gauges = dict(gauges or {})
        self.cache_config = dict(cache_config or {})
        self._open: dict[Exchange, Run] = {}
        self._totals: dict[str, float] = {}

    # -- routing -------------------------------------------------------------------------------------------------

    def generates(self, exchange: Exchange) -> bool:
        """True for a POST to a generation endpoint."""
        return exchange.request.method == "POST" and exchange.request.path in _GENERATES

    def answer(self, exchange: Exchange, fault: Fault) -> None:
        """Answers as the engine does: key first, then the path and the method. A browser's question what a page may do
        comes before all of them."""
        request = exchange.request
        if is_preflight(request):
            exchange.respond(200, preflight_headers(request), b"OK")
            return
        guarded = self.api_key is not None and request.path.startswith(_GUARDED)
        if guarded and request.header("Authorization") != f"Bearer {self.api_key}":
            exchange.respond(401, self._headers(exchange, "application/json", 401), self.error_body(401))
            return
        allowed = _ROUTES.get(request.path)
        if allowed is None:
            self._json(exchange, b'{"detail":"Not Found"}', 404)
        elif request.method not in allowed:
            headers = self._headers(exchange, "application/json")
            headers.insert(2, ("allow", ", ".join(allowed)))
            exchange.respond(405, headers, b'{"detail":"Method Not Allowed"}')
        else:
            self._dispatch(exchange, fault)

    def _dispatch(self, exchange: Exchange, fault: Fault) -> None:
        try:
            if self.generates(exchange):
                self._generate(exchange, fault)
            elif exchange.request.method == "POST" and exchange.request.path != "/ping":
                self._post(exchange)
            else:
                self._inform(exchange)
        except Refusal as refusal:
            body = self.error_body(refusal.status, refusal.message, refusal.kind, refusal.param)
            exchange.respond(refusal.status, self._headers(exchange, "application/json"), body)

    def _inform(self, exchange: Exchange) -> None:
        path = exchange.request.path
        if path in ("/health", "/ping"):
            exchange.respond(503 if self.dead else 200, self._headers(exchange, ""), b"")
        elif path == "/version":
            self._json(exchange, dump({"version": self.version}))
        elif path == "/load":
            with self._changed:
                self._json(exchange, dump({"server_load": len(self._open) if self.track_load else 0}))
        elif path == "/metrics":
            text = metrics_text(self._figures(), self.model, old=self.old, extra=self.gauges, labels=self.cache_config)
            headers = self._headers(exchange, "text/plain; version=1.0.0; charset=utf-8")
            exchange.respond(200, headers, text)
        else:
            names = [self.model, *self.aliases]
            self._json(exchange, dump(models(names, root=self.root, n_ctx=self.n_ctx, created=int(time.time()))))

    def _post(self, exchange: Exchange) -> None:
        request = exchange.request
        if request.path == "/inference/v1/abort_requests" and not self.scale_out:
            raise Refusal(403, SCALE_OUT_OFF, "PermissionDeniedError")
        body = load(request.body, request.header("Content-Type"))
        if request.path == "/tokenize":
            self._json(exchange, dump(tokenize(body, self.n_ctx)))
        elif request.path == "/detokenize":
            self._json(exchange, dump(detokenize(body)))
        else:
            wanted = body.get("request_ids")
            if wanted is None:
                raise Refusal(400, "Missing 'request_ids' in request body", "BadRequestError")
            self._abort([wanted] if isinstance(wanted, str) else list(wanted))
            exchange.respond(200, self._headers(exchange, ""), b"")

    # -- generation ----------------------------------------------------------------------------------------------

    def _generate(self, exchange: Exchange, fault: Fault) -> None:
        request = exchange.request
        route = _GENERATES[request.path]
        if self.dead:
            raise Refusal(500, ENGINE_DEAD, "InternalServerError")
        body = load(request.body, request.header("Content-Type"))
        names = [self.model, *self.aliases]
        job = read(route, body, names=names, n_ctx=self.n_ctx, tool_parser=self.tool_parser, old=self.old)
        with self._changed:
            if self.max_queued is not None and self.busy == self._slots.count and self.queued >= self.max_queued:
                self._add(refused=1)
                raise Refusal(503, QUEUE_FULL, "Service Unavailable")
        with self._registered(exchange, job) as run:
            if job.stream:
                self._stream(exchange, fault, run)
            else:
                self._whole(exchange, fault, run)

    def _stream(self, exchange: Exchange, fault: Fault, run: Run) -> None:
        if fault.kind != "silent_head":  # the head comes at once, queued or not
            exchange.head(200, self._headers(exchange, "text/event-stream; charset=utf-8"))
        interval = self.keep_alive_comments if run.job.route != "responses" else None
        try:
            with self.slot(exchange, fault, ping=self._pinger(exchange, interval)):
                made = response_pieces(run) if run.job.route == "responses" else pieces(run)
                self.play(exchange, fault, made, interval, KEEP_ALIVE)
        except Withdrawn:
            exchange.chunk(DONE)  # recorded: nothing else, no chunk, no reason, no error
            exchange.end()

    def _whole(self, exchange: Exchange, fault: Fault, run: Run) -> None:
        said: list[list[Step]] = [[] for _ in run.scripts]
        try:
            with self.slot(exchange, fault):
                if fault.kind == "error":
                    message, kind = fault.message or ERRORS[500][1], fault.error_type or ERRORS[500][0]
                    raise Refusal(fault.code, message, kind)
                fault.strike_whole(exchange)
                wait = run.prompt_delay + run.delay
                for number, step in run.steps():
                    if step is not None:
                        said[number].append(step)
                        continue
                    if wait > 0:
                        self._pause(exchange, wait, None)
                    wait = run.delay
                    trouble = run.trouble()
                    if trouble is not None:
                        raise Refusal(500, trouble, "InternalServerError")
        except Withdrawn:
            said = [[script.abort()] for script in run.scripts]
        body = response_whole(run, said) if run.job.route == "responses" else whole(run, said)
        self._json(exchange, dump(body))

    @contextlib.contextmanager
    def _registered(self, exchange: Exchange, job: Job) -> Iterator[Run]:
        """The run of a request, known to /load and to the abort route while it is open."""
        run = self._run(exchange, job)
        if self.scale_out:
            exchange.wake, run.waker = os.pipe()
        with self._changed:
            self._open[exchange] = run
        try:
            yield run
        finally:
            with self._changed:
                del self._open[exchange]
                if run.waker >= 0:
                    os.close(exchange.wake)
                    os.close(run.waker)
                    exchange.wake = -1
            self._add(**run.tally())

    def _run(self, exchange: Exchange, job: Job) -> Run:
        body = job.body
        persona = Persona(self.tokens, self.endless, self.reasoning, self.tool_calls, self.n_ctx)
        if self.old and "guided_json" in body:
            body["structured_outputs"] = {"json": body["guided_json"]}
        try:
            made: list[Script] = scripts(job, persona, named_finish="stop")
            broken = not self.grammars and forced_tokens(body) is not None
        except NotImplementedError:
            # Recorded: a grammar that the vocabulary cannot follow is an error of this one request.
            made, broken = [Script(()) for _ in job.prompts], True
        if job.route == "responses":
            name = str(body.get("request_id") or "resp_" + secrets.token_hex(8))
        else:
            base = exchange.request.header("X-Request-Id") or body.get("request_id") or secrets.token_hex(8)
            name = ("chatcmpl-" if job.route == "chat" else "cmpl-") + str(base)
        return Run(
            job,
            made,
            name,
            self.model,
            FINGERPRINT.format(self.version),
            self.delay,
            self.prompt_delay,
            lambda: ENGINE_DEAD if self.dead else ERRORS[500][1] if broken else None,
            lambda message: self.error_event(500, message, "InternalServerError"),
            force_usage=self.force_usage,
            metrics=self.request_metrics,
            old=self.old,
            details=self.prompt_details,
        )

    def _pinger(self, exchange: Exchange, interval: float | None) -> Callable[[], float] | None:
        if interval is None:
            return None
        waited = False

        def ping() -> float:
            nonlocal waited
            if waited:
                exchange.chunk(KEEP_ALIVE)
            waited = True
            return interval

        return ping

    def _abort(self, names: list[str]) -> None:
        """Ends the requests of these engine-side ids: `cmpl-<id>-<prompt number>`, `chatcmpl-<id>`."""
        with self._changed:
            for exchange, run in self._open.items():
                job = run.job
                ids = [f"{run.id}-{number}" for number in range(len(job.prompts))]
                ids = ids if job.route == "completions" else [run.id]
                hit = {number for number, name in enumerate(ids) if name in names}
                if not hit:
                    continue
                run.aborted |= {prompt * job.n + choice for prompt in hit for choice in range(job.n)}
                if len(hit) < len(ids) or not self._slots.withdraw(exchange):
                    os.write(run.waker, b"!")

    # -- figures -------------------------------------------------------------------------------------------------

    def _add(self, **values: float) -> None:
        with self._changed:
            for name, value in values.items():
                self._totals[name] = self._totals.get(name, 0) + value

    def _figures(self) -> dict[str, float]:
        with self._changed:
            return {**self._totals, "running": self.busy, "waiting": self.queued}

    # -- bodies and heads ----------------------------------------------------------------------------------------

    def _json(self, exchange: Exchange, body: bytes, status: int = 200) -> None:
        exchange.respond(status, self._headers(exchange, "application/json"), body)

    def error_headers(self, exchange: Exchange) -> list[Header]:
        """The head of an error answer."""
        return self._headers(exchange, "application/json")

    def _headers(self, exchange: Exchange, content_type: str, status: int = 200) -> list[Header]:
        stream = content_type.startswith("text/event-stream")
        headers = [("date", formatdate(usegmt=True)), ("server", "uvicorn")]
        if not stream:
            headers.append(("content-length", ""))
        if content_type:
            headers.append(("content-type", content_type))
        if status != 401:  # the key check stands before the layer that adds them
            if exchange.request.header("Origin"):
                headers.append(("access-control-allow-origin", "*"))
            headers.append(("vary", "Origin"))
        if self.request_id_headers:
            headers.append(("x-request-id", exchange.request.header("X-Request-Id") or uuid.uuid4().hex))
        if not exchange.keep_alive:
            headers.append(("connection", "close"))
        if stream:
            headers.append(("transfer-encoding", "chunked"))
        return headers

    def error_body(
        self, status: int, message: str | None = None, kind: str | None = None, param: str | None = None
    ) -> bytes:
        """The engine's error object; with a wrong key the error is a bare string."""
        if status == 401 and message is None:
            return b'{"error":"Unauthorized"}'
        return dump(self._error(status, message, kind, param, self.old))

    def error_events(self, exchange: Exchange, fault: Fault) -> Sequence[bytes]:
        """The error event, and [DONE] behind it as recorded (for /v1/responses, which has none, not recorded)."""
        ending = () if exchange.request.path == "/v1/responses" else (DONE,)
        return [*super().error_events(exchange, fault), *ending]

    def error_event(self, status: int, message: str, kind: str, *, old: bool = False) -> bytes:
        """The error event of a 200 stream. It is the one event with spaces in its JSON."""
        error = self._error(status, message or None, kind or None, None, old or self.old)
        return event(error, spaced=True)

    def _error(
        self, status: int, message: str | None, kind: str | None, param: str | None, old: bool
    ) -> dict[str, Any]:
        phrase = responses.get(status, "Unknown")
        own_kind, own_message = ERRORS.get(status, (phrase, phrase))
        fields = {"message": message or own_message, "type": kind or own_kind, "param": param, "code": status}
        return {"object": "error", **fields} if old else {"error": fields}
