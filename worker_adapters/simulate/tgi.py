"""A TGI router that is not there: Text Generation Inference 1.4 to 3.3.7, v3 backend.

Uses no part of the library: its bytes follow the router's own serialisation, and are read by independent clients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from email.utils import formatdate
from typing import Any

from .exchange import Exchange, Header
from .faults import Fault
from .openai_request import dump
from .tgi_engine import GENERATES, TgiEngine
from .tgi_events import Native, Run, native_whole
from .tgi_facts import ERRORS, error, tokenize
from .tgi_json import Complaint
from .tgi_request import Order, Refusal, check_types, load, read
from .tgi_rules import check_streamable
from .tgi_script import Step

_GETS = ("/", "/health", "/ping", "/info", "/metrics", "/v1/models")
_POSTS = (*GENERATES, "/tokenize")
KEEP_ALIVE = b":\n\n"
_VARY = ("vary", "origin, access-control-request-method, access-control-request-headers")


class TgiSimulator(TgiEngine):
    """Speaks the HTTP API of TGI's router.

    `tokens`: what it says, one text (or bytes, or a TgiToken) a token, then the end token `</s>`; None: the words of
    the prompt (of the last user message), repeated up to the request's limit, so that crossed replies show. `endless`
    starts over in place of the end token. `tool_calls` (name, argument pieces) answer a chat with tools, the first of
    them only; else the model picks none. JSON grammars are answered with an instance of them; a regular expression,
    which this model cannot follow, is an error of that request; `grammars` False: `tokens` are taken to fit any.

    `version` ("3.3.6-dev0", "2.2.0", "2.0.4", from 1.4) chooses names, forms and defaults of that release. `slots` is
    the batch; `max_concurrent_requests` bounds requests at work and in the queue together, and one more is overloaded
    at once. Limits have the names of /info (`max_best_of`, `max_stop_sequences`, `max_top_n_tokens`,
    `max_input_tokens`, `max_total_tokens`, `max_client_batch_size`); a body is at most `payload_limit` bytes; `api_key`
    is demanded; `compute_type` stands in a header. `legs`: since 3.0.0 an answer is made in legs of 1,024 tokens and
    may be longer than asked for (here a leg keeps its slot); False makes the limit exact. `keep_alive` seconds are
    between two comments of a silent stream.

    `shard_error`, a text, is the state of a broken shard: every answer at work ends with it and /health is 503; and
    `healthy` False makes /health 503 alone. Both, `delay` (seconds a token), `prompt_delay` and `keep_alive` may be set
    at any time. `prefill_logprobs` is the flag of nearly this name, `template` False a model without a chat template,
    `full_text` whether / puts the prompt before its answers. `model_sha`, `pipeline_tag`, `device`, `dtype`, `sha` and
    `docker_label` are what /info tells. Further options: those of EngineSimulator and SimServer.
    """

    # -- routing -------------------------------------------------------------------------------------------------

    def answer(self, exchange: Exchange, fault: Fault) -> None:
        """Answers as the engine does: the path and the method, the key, the body's form, and then its sense."""
        request = exchange.request
        path = request.path
        if request.method == "OPTIONS":  # a browser asks what a page of another origin may do, whatever the path
            exchange.respond(200, self._preflight_headers(exchange), b"")
            return
        methods = [method for method, paths in (("GET", _GETS), ("HEAD", _GETS), ("POST", _POSTS)) if path in paths]
        if not methods or (path == "/v1/models" and not self.version.since(2, 3)):
            exchange.respond(404, self._headers(exchange), b"")
        elif request.method not in methods:
            headers = self._headers(exchange)
            exchange.respond(405, [("allow", ",".join(methods)), *headers], b"")
        elif request.method == "POST" and not self._knows(request.header("Authorization")):
            exchange.respond(401, self._headers(exchange), b"")
        else:
            self._dispatch(exchange, fault)

    def _knows(self, given: str | None) -> bool:
        return self.api_key is None or (given or "").lower() == f"bearer {self.api_key}".lower()

    def _dispatch(self, exchange: Exchange, fault: Fault) -> None:
        try:
            if exchange.request.method in ("GET", "HEAD"):
                self._inform(exchange)
            elif exchange.request.path == "/tokenize":
                self._json(exchange, dump(tokenize(self._read(exchange, "native")["inputs"])))
            else:
                self._generate(exchange, fault)
        except Complaint as complaint:
            headers = self._headers(exchange, "text/plain; charset=utf-8")
            exchange.respond(complaint.status, headers, complaint.text.encode("utf-8", "surrogateescape"))
        except Refusal as refusal:
            self.failed(refusal)
            status = ERRORS[refusal.kind][0] if refusal.kind in ERRORS else 500
            self._json(exchange, dump(error(refusal.message, refusal.kind)), status)

    def _inform(self, exchange: Exchange) -> None:
        path = exchange.request.path
        if path == "/info":
            self._json(exchange, dump(self.facts.info(asdict(self.limits))))
        elif path == "/v1/models":
            self._json(exchange, dump(self.facts.models()))
        elif path == "/metrics":
            exchange.respond(200, self._headers(exchange, "text/plain; charset=utf-8"), self.metrics_text())
        elif self.healthy and not self.shard_error:
            exchange.respond(200, self._headers(exchange), b"")
        else:
            raise Refusal(ERRORS["healthcheck"][1], "healthcheck")

    def _read(self, exchange: Exchange, route: str) -> dict[str, Any]:
        request = exchange.request
        return check_types(load(request.body, request.header("Content-Type"), self.payload_limit), route)

    # -- generation ----------------------------------------------------------------------------------------------

    def _generate(self, exchange: Exchange, fault: Fault) -> None:
        path = exchange.request.path
        route = GENERATES[path]
        body = self._read(exchange, "compat" if path == "/" else route)
        order = read(route, body, self.version, self.limits, template=self.template)
        if path in ("/generate", "/generate_stream"):
            order.stream = path == "/generate_stream"
        if path == "/" and order.jobs[0].parameters.get("return_full_text") is None:
            order.jobs[0].parameters["return_full_text"] = self.full_text
        for _ in range(len(order.jobs) + (route != "native")):  # the /v1 handlers count once more
            self.count("tgi_request_count")
        (self._stream if order.stream else self._whole)(exchange, fault, order)

    def _stream(self, exchange: Exchange, fault: Fault, order: Order) -> None:
        if fault.kind != "silent_head":  # the head comes before the request is looked at
            exchange.head(200, self._stream_headers(exchange, order))
        with ExitStack() as stack:
            runs, refusals = [], []
            for number, job in enumerate(order.jobs):
                try:
                    check_streamable(job)
                    runs.append(self.admit(order, number, job, stack))
                except Refusal as refusal:
                    refusals.append(self.failed(refusal))
            complaints = [self.facts.complaint(order.route, each.message, each.kind) for each in refusals]
            if not runs:
                self._refuse(exchange, fault, [*complaints, *self.facts.ending(order.route)])
                return
            with self.at_work(exchange, fault, runs, ping=self._pinger(exchange)):
                pieces = self.pieces(order, runs, complaints, stack.close)
                self.play(exchange, fault, pieces, self.keep_alive, KEEP_ALIVE)

    def _refuse(self, exchange: Exchange, fault: Fault, events: Sequence[bytes]) -> None:
        fault.before_head(exchange)
        for event in events:
            exchange.chunk(event)
        exchange.end()

    def _whole(self, exchange: Exchange, fault: Fault, order: Order) -> None:
        with ExitStack() as stack:
            runs = self.sequences(order, stack)
            with self.at_work(exchange, fault, runs):
                if fault.kind == "error":
                    kind = fault.error_type or "generation"
                    raise Refusal(fault.message or ERRORS.get(kind, (500, kind))[1], kind)
                fault.strike_whole(exchange)
                said = self.say_all(exchange, runs)
        body = self._body(order, runs, said)
        headers = self._headers(exchange, "application/json", self._timings(order, runs))
        for run in runs:
            self.succeeded(run)
        exchange.respond(200, headers, dump([body] if exchange.request.path == "/" else body))

    def _body(self, order: Order, runs: Sequence[Run], said: Sequence[Sequence[Step]]) -> dict[str, Any]:
        form = self.form(order, runs)
        if isinstance(form, Native):
            return native_whole(runs, said, prefill=self.prefill_logprobs)
        return form.whole(said)

    def _pinger(self, exchange: Exchange) -> Callable[[], float]:
        waited = False

        def ping() -> float:
            nonlocal waited
            if waited:
                exchange.chunk(KEEP_ALIVE)
            waited = True
            return self.keep_alive

        return ping

    # -- heads ---------------------------------------------------------------------------------------------------

    def _json(self, exchange: Exchange, body: bytes, status: int = 200) -> None:
        exchange.respond(status, self._headers(exchange, "application/json"), body)

    def error_headers(self, exchange: Exchange) -> list[Header]:
        """The head of an error answer."""
        return self._headers(exchange, "application/json")

    def _stream_headers(self, exchange: Exchange, order: Order) -> list[Header]:
        own = [("cache-control", "no-cache"), ("x-compute-type", self.compute_type)]
        own += [("x-compute-characters", str(_characters(order))), ("x-accel-buffering", "no")]
        return self._headers(exchange, "text/event-stream", own)

    def _timings(self, order: Order, runs: Sequence[Run]) -> list[Header]:
        """The headers of a whole answer: milliseconds, those of several prompts added up."""
        counted = runs if order.route == "completions" else runs[:1]
        spent = [run.timings() for run in counted]

        def total(name: str) -> str:
            return str(sum(int(each[name] * 1000) for each in spent))

        whole = [("x-compute-time", repr(spent[0]["total"]))] if order.route != "completions" else []
        return [
            ("x-compute-type", self.compute_type),
            *whole,
            ("x-compute-characters", str(_characters(order))),
            ("x-total-time", total("total")),
            ("x-validation-time", total("validation")),
            ("x-queue-time", total("queue")),
            ("x-inference-time", total("inference")),
            ("x-time-per-token", total("per_token")),
            ("x-prompt-tokens", str(sum(run.job.prompted for run in counted))),
            ("x-generated-tokens", str(sum(run.script.generated for run in counted))),
        ]

    def _headers(self, exchange: Exchange, content_type: str = "", own: Sequence[Header] = ()) -> list[Header]:
        # The length is written last, but where there is no content it comes first.
        length = [("transfer-encoding", "chunked")] if content_type == "text/event-stream" else [("content-length", "")]
        headers = [("content-type", content_type)] if content_type else length
        headers += own
        headers += [_VARY, ("access-control-allow-origin", "*")]
        if content_type:
            headers += length
        return [*headers, *self._last_headers(exchange)]

    def _preflight_headers(self, exchange: Exchange) -> list[Header]:
        allowed = [("access-control-allow-methods", "GET,POST"), ("access-control-allow-headers", "content-type")]
        origin = [("access-control-allow-origin", "*"), ("content-length", "")]
        return [_VARY, *allowed, *origin, *self._last_headers(exchange)]

    def _last_headers(self, exchange: Exchange) -> list[Header]:
        close = [] if exchange.keep_alive else [("connection", "close")]
        return [*close, ("date", formatdate(usegmt=True))]


def _characters(order: Order) -> int:
    return sum(len(job.inputs) for job in order.jobs)
