"""A llama.cpp HTTP server that is not there: build 'b0-unknown', Python wheel xllamacpp 2026.10.11549.

Uses no part of the library: its bytes were written from recordings, and are compared with them by independent clients.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from .engine import EngineSimulator
from .exchange import Exchange, Header
from .faults import Fault
from .llamacpp_events import Chat, Run, ToolCall, chat_json, native_json, native_stream, text_json, text_stream
from .llamacpp_facts import (
    ERROR_MESSAGES,
    ERROR_TYPES,
    NO_METRICS,
    NO_SLOT_ACTION,
    NO_SLOTS,
    NOT_SUPPORTED,
    dump,
    metrics_text,
    models,
    props,
    slot_params,
)
from .llamacpp_request import Job, Refusal, load, read_chat, read_completion, read_messages, render
from .llamacpp_text import count_tokens, detokenize, tokenize
from .openai_schema import instance
from .openai_schema import pieces as json_pieces
from .recital import SENTENCE, Recital

_NATIVE = ("/completion", "/completions")
_GENERATES = frozenset((*_NATIVE, "/v1/completions", "/v1/chat/completions", "/chat/completions"))
KV_FULL = "Context size has been exceeded."  # the one error recorded inside a stream
_PUBLIC = frozenset(("/health", "/v1/health"))


class LlamaCppSimulator(EngineSimulator):
    """Speaks llama.cpp's HTTP API.

    `tokens`: what it says, one text a token, then an end token; None: the words of the prompt (of the last user
    message), repeated up to the request's limit, so that crossed replies show. `endless` (or the request's ignore_eos)
    starts over in place of the end token. `reasoning` pieces come first on the chat endpoint; `tool_call` (name,
    argument pieces) is its answer to a request with tools; a JSON schema is answered with an instance of it, or, with
    `grammars` False, `tokens` are taken to fit any. `n_ctx` is the context of one slot. `delay` (seconds a token),
    `prompt_delay` (seconds), `loading`, `sleeping`, `api_key` may be set at any time.
    `model` and `build_info` are what /props tells; without `metrics` and `slots_endpoint` those two are switched off.
    `close_after_stream=False` keeps the connection after a stream, which the real one never does. Further options:
    those of EngineSimulator and SimServer.
    """

    def __init__(
        self,
        tokens: Sequence[str] | None = SENTENCE,
        *,
        endless: bool = False,
        n_ctx: int = 131072,
        api_key: str | None = None,
        loading: bool = False,
        sleeping: bool = False,
        model: str = "models/recite.gguf",
        build_info: str = "b0-unknown",
        reasoning: Sequence[str] = (),
        tool_call: ToolCall | None = None,
        metrics: bool = True,
        slots_endpoint: bool = True,
        grammars: bool = True,
        close_after_stream: bool = True,
        **options: Any,
    ) -> None:
        # cpp-httplib inside this build: idle connections live 5.0 s, and for at most 100 requests.
        options.setdefault("idle_timeout", 5.0)
        options.setdefault("max_requests", 100)
        super().__init__(tokens, endless=endless, **options)
        self.n_ctx = n_ctx
        self.grammars = grammars
        self.api_key = api_key
        self.loading = loading
        self.sleeping = sleeping
        self.model = model
        self.build_info = build_info
        self.reasoning = tuple(reasoning)
        self.tool_call = tool_call
        self.metrics_on = metrics
        self.slots_on = slots_endpoint
        self.close_after_stream = close_after_stream
        self._tasks = 0
        self._totals: dict[str, float] = {}
        self._runs: dict[int, Run] = {}  # last run of each slot
        self._used: dict[int, int] = {}  # when each slot was last taken, as a task number

    # -- routing -------------------------------------------------------------------------------------------------

    def generates(self, exchange: Exchange) -> bool:
        """True for a POST to a generation endpoint."""
        return exchange.request.method == "POST" and exchange.request.path in _GENERATES

    def answer(self, exchange: Exchange, fault: Fault) -> None:
        """Answers as the engine does: key first, then readiness, then the path. A browser's question what a page may do
        comes before all of them."""
        if exchange.request.method == "OPTIONS":
            exchange.respond(200, self._preflight_headers(exchange), b"")
            return
        try:
            self._admit(exchange)
            if self.generates(exchange):
                self._generate(exchange, fault)
            else:
                self._inform(exchange)
        except Refusal as refusal:
            body = self.error_body(refusal.status, refusal.message, refusal.kind, refusal.extra)
            exchange.respond(refusal.status, self.error_headers(exchange), body)

    def _admit(self, exchange: Exchange) -> None:
        request = exchange.request
        if self.api_key is not None and request.path not in _PUBLIC:
            given = (request.header("Authorization") or "").removeprefix("Bearer ") or request.header("X-Api-Key")
            if given != self.api_key:
                raise Refusal(401, ERROR_MESSAGES[401])
        if self.loading:
            raise Refusal(503, ERROR_MESSAGES[503])

    def _inform(self, exchange: Exchange) -> None:
        request = exchange.request
        what = ("GET" if request.method == "HEAD" else request.method, request.path)
        if what in NOT_SUPPORTED:
            raise Refusal(501, NOT_SUPPORTED[what])
        if request.method == "POST" and request.path.startswith("/slots/"):
            raise Refusal(501, NO_SLOT_ACTION)
        if what in (("GET", "/health"), ("GET", "/v1/health")):
            self._json(exchange, b'{"status":"ok"}')
        elif what == ("GET", "/props"):
            self._json(exchange, self._props())
        elif what in (("GET", "/v1/models"), ("GET", "/models")):
            self._json(exchange, models(model=self.model, n_ctx=self.n_ctx, created=int(time.time())))
        elif what == ("GET", "/slots"):
            self._json(exchange, self._slots_body(exchange))
        elif what == ("GET", "/metrics"):
            self._send_metrics(exchange)
        elif what == ("POST", "/tokenize"):
            self._json(exchange, dump(tokenize(load(request.body))))
        elif what == ("POST", "/detokenize"):
            self._json(exchange, dump(detokenize(load(request.body))))
        elif what == ("POST", "/v1/chat/completions/input_tokens"):
            count = count_tokens(render(read_messages(load(request.body))))
            self._json(exchange, dump({"input_tokens": count, "object": "response.input_tokens"}))
        elif what == ("POST", "/apply-template"):
            self._json(exchange, dump({"prompt": render(read_messages(load(request.body)))}))
        else:
            raise Refusal(404, ERROR_MESSAGES[404])

    # -- generation ----------------------------------------------------------------------------------------------

    def _generate(self, exchange: Exchange, fault: Fault) -> None:
        path = exchange.request.path
        body = load(exchange.request.body)
        read = read_chat if path.endswith("/chat/completions") else read_completion
        job = read(body, n_ctx=self.n_ctx, slots=self._slots.count)
        self.sleeping = False
        with self.slot(exchange, fault, job.id_slot) as slot:
            run = self._start(job, slot)
            try:
                if job.flag("stream"):
                    self._stream(exchange, fault, run, path)
                else:
                    self._whole(exchange, fault, run, path)
            finally:
                self._count(run)

    def _stream(self, exchange: Exchange, fault: Fault, run: Run, path: str) -> None:
        exchange.head(200, self._headers(exchange, "text/event-stream"))
        if self.close_after_stream:
            exchange.keep_alive = False  # the engine hangs up after a stream although it announces keep-alive
        text = native_stream if path in _NATIVE else text_stream
        pieces = Chat(run).pieces() if run.job.chat else text(run)
        self.play(exchange, fault, pieces, run.job.ping_interval)

    def _whole(self, exchange: Exchange, fault: Fault, run: Run, path: str) -> None:
        if fault.kind == "error":
            raise Refusal(fault.code, fault.message or KV_FULL, fault.error_type or "server_error")
        fault.strike_whole(exchange)
        said = len(run.reasoning) + len(run.tool_call[1] if run.tool_call else ())
        run.prompted = time.perf_counter() + run.prompt_delay
        steps = [] if run.tool_call else list(run.recital)
        self._pause(exchange, run.prompt_delay + run.delay * (len(steps) + said), None)
        if run.job.chat:
            body = chat_json(run, steps)
        else:
            body = native_json(run, steps) if path in _NATIVE else text_json(run, steps)
        self._json(exchange, dump(body))

    def _start(self, job: Job, slot: int) -> Run:
        """Makes the run and puts it on its slot, where /slots shows it."""
        reasoning: Sequence[str] = self.reasoning if job.chat else ()
        calls = job.chat and bool(job.body.get("tools")) and job.body.get("tool_choice") != "none"
        tokens, cycle = self.tokens, self.endless or job.flag("ignore_eos")
        if tokens is None:
            tokens, cycle = tuple(" " + word for word in job.words.split()), cycle or job.limit is not None
        if job.schema is not None and self.grammars:
            tokens, cycle = json_pieces(instance(job.schema)), False
        if reasoning and job.body.get("reasoning_format") == "none":
            tokens, reasoning = ("<think>\n", *reasoning, "\n</think>", "\n\n", *tokens), ()
        recital = Recital(tokens, limit=job.limit, room=self.n_ctx - job.n_prompt, cycle=cycle, stop=job.stop)
        with self._changed:
            before = self._runs.get(slot)
            cached = 0
            if before is not None and job.flag("cache_prompt", True):
                same = before.job.prompt == job.prompt
                cached = job.n_prompt - 1 if same else 0
            run = Run(
                job,
                recital,
                slot,
                cached,
                self.model,
                self.build_info,
                self.delay,
                self.prompt_delay,
                reasoning,
                self.tool_call if calls else None,
            )
            self._tasks += 1
            self._runs[slot] = run
            self._used[slot] = self._tasks
        return run

    def choose_slot(self, idle: list[int]) -> int:
        """The slot used longest ago; of unused ones the last, as recorded."""
        return min(idle, key=lambda slot: (self._used.get(slot, 0), -slot))

    def _count(self, run: Run) -> None:
        timings = run.timings()
        added = {
            "prompt_tokens_total": timings["prompt_n"],
            "prompt_tokens_cached_total": run.cached,
            "prompt_seconds_total": timings["prompt_ms"] / 1000,
            "tokens_predicted_total": run.predicted,
            "tokens_predicted_seconds_total": timings["predicted_ms"] / 1000,
            "n_decode_total": run.predicted,
        }
        with self._changed:
            for name, value in added.items():
                self._totals[name] = self._totals.get(name, 0) + value
            longest = max(self._totals.get("n_tokens_max", 0), run.job.n_prompt + run.predicted)
            self._totals["n_tokens_max"] = longest

    # -- bodies and heads ----------------------------------------------------------------------------------------

    def _props(self) -> bytes:
        return props(
            n_ctx=self.n_ctx,
            slots=self._slots.count,
            model=self.model,
            build_info=self.build_info,
            sleeping=self.sleeping,
            tools=self.tool_call is not None,
            metrics=self.metrics_on,
            slots_on=self.slots_on,
        )

    def _slots_body(self, exchange: Exchange) -> bytes:
        if not self.slots_on:
            raise Refusal(501, NO_SLOTS)
        self.sleeping = False  # GET /slots wakes the server
        if "fail_on_no_slot" in exchange.request.query and self.busy == self._slots.count:
            # Recorded: the same type as "loading", told apart by the message only.
            raise Refusal(503, "no slot available")
        return dump([self._slot_entry(number) for number in range(self._slots.count)])

    def _slot_entry(self, number: int) -> dict[str, Any]:
        busy = not self._slots.is_idle(number)
        entry: dict[str, Any] = {"id": number, "n_ctx": self.n_ctx, "speculative": False, "is_processing": busy}
        run = self._runs.get(number)
        if run is None:
            return entry
        left = -1 if run.job.limit is None else run.job.limit - run.predicted
        token = {
            "has_next_token": busy,
            "has_new_line": False,
            "n_remain": left if busy else -1,
            "n_decoded": run.predicted if busy else 0,
        }
        return {
            **entry,
            "id_task": self._used[number],
            "n_prompt_tokens": run.job.n_prompt + run.predicted,
            "n_prompt_tokens_processed": run.job.n_prompt - run.cached if busy else 0,
            "n_prompt_tokens_cache": run.cached if busy else 0,
            "params": slot_params(run.job.settings),
            "next_token": [token],
        }

    def _send_metrics(self, exchange: Exchange) -> None:
        if not self.metrics_on:
            raise Refusal(501, NO_METRICS)
        values = {**self._totals, "requests_processing": self.busy, "requests_deferred": self.queued}
        # The header's value is no Unix time in this build either.
        headers = self._headers(exchange, "text/plain; version=0.0.4")
        headers.insert(2, ("Process-Start-Time-Unix", "480224578"))
        exchange.respond(200, headers, metrics_text(values))

    def _json(self, exchange: Exchange, body: bytes) -> None:
        exchange.respond(200, self._headers(exchange, "application/json; charset=utf-8"), body)

    def error_headers(self, exchange: Exchange) -> list[Header]:
        """The head of an error answer: the connection is closed after every status from 400 up, and says so."""
        exchange.keep_alive = False
        return self._headers(exchange, "application/json; charset=utf-8")

    def _headers(self, exchange: Exchange, content_type: str) -> list[Header]:
        headers = [("Server", "llama.cpp"), ("Access-Control-Allow-Origin", exchange.request.header("Origin") or "")]
        if content_type == "text/event-stream":
            headers += [("X-Accel-Buffering", "no"), ("Content-Type", content_type), ("Transfer-Encoding", "chunked")]
        else:
            headers += [("Content-Type", content_type), ("Content-Length", "")]
        ranges = [("Accept-Ranges", "bytes")] if exchange.request.method == "HEAD" else []
        return [*headers, self._connection(exchange), *ranges]

    def _preflight_headers(self, exchange: Exchange) -> list[Header]:
        """The head of the answer to OPTIONS, whatever the path."""
        return [
            ("Server", "llama.cpp"),
            ("Access-Control-Allow-Origin", exchange.request.header("Origin") or ""),
            ("Access-Control-Allow-Credentials", "true"),
            ("Access-Control-Allow-Methods", "GET, POST, DELETE, OPTIONS"),
            ("Access-Control-Allow-Headers", "*"),
            ("Content-Type", "text/html"),
            self._connection(exchange),
            ("Content-Length", ""),
        ]

    def _connection(self, exchange: Exchange) -> Header:
        return ("Keep-Alive", "timeout=5, max=100") if exchange.keep_alive else ("Connection", "close")

    def error_body(
        self, status: int, message: str | None = None, kind: str | None = None, extra: dict[str, Any] | None = None
    ) -> bytes:
        """The engine's error object; its key order differs between the HTTP layer and the handlers, as recorded."""
        message = message or ERROR_MESSAGES.get(status, "error")
        kind = kind or ERROR_TYPES.get(status, "server_error")
        if status in (401, 404) or message == ERROR_MESSAGES[503]:
            return dump({"error": {"message": message, "type": kind, "code": status}})
        return dump({"error": {"code": status, "message": message, "type": kind, **(extra or {})}})

    def error_event(self, status: int, message: str, kind: str, *, old: bool = False) -> bytes:
        """The error event of a 200 stream; builds before 2025-09 wrote an `error:` line in place of `data:`."""
        error = {"code": status, "message": message or KV_FULL, "type": kind or "server_error"}
        if old:
            return b"error: " + dump(error) + b"\n\n"
        return b"data: " + dump({"error": error}) + b"\n\n"
