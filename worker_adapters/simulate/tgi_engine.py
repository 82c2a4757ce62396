"""TGI's side of a simulated answer that is not HTTP: who may begin, what is said, what is counted, how errors look."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from http.client import responses
from typing import Any

from .engine import EngineSimulator, Piece
from .exchange import Exchange
from .faults import Fault
from .openai_request import dump
from .openai_schema import instance
from .openai_schema import pieces as json_pieces
from .openai_script import ToolCall
from .peer import Gone
from .recital import SENTENCE
from .tgi_chat import Chat, Completions, apologises, apology_pieces, call_pieces, called
from .tgi_events import Native, Run
from .tgi_facts import ERRORS, GATEWAY, KINDS, TOLD, Facts, Version, error
from .tgi_metrics import Metrics
from .tgi_request import Job, Limits, Order, Refusal
from .tgi_rules import schema_of, validate, validate_best_of
from .tgi_script import Script, Spoken, Step, rounds

GENERATES = {
    "/": "native",
    "/generate": "native",
    "/generate_stream": "native",
    "/v1/chat/completions": "chat",
    "/v1/completions": "completions",
}
_FAILURES = {
    "overloaded": "overloaded",
    "generation": "generation",
    "incomplete_generation": "incomplete",
    "incomplete_generation_stream": "incomplete",
    "template_error": "template",
}


class TgiEngine(EngineSimulator):
    """What TgiSimulator is made of; see there."""

    def __init__(
        self,
        tokens: Sequence[Spoken] | None = SENTENCE,
        *,
        endless: bool = False,
        version: str = "3.3.6-dev0",
        model: str = "recite",
        api_key: str | None = None,
        tool_calls: Sequence[ToolCall] = (),
        grammars: bool = True,
        keep_alive: float = 15.0,
        legs: bool = True,
        max_concurrent_requests: int = 128,
        max_best_of: int = 2,
        max_stop_sequences: int = 4,
        max_top_n_tokens: int = 5,
        max_input_tokens: int | None = None,
        max_total_tokens: int = 131072,
        max_client_batch_size: int = 4,
        payload_limit: int = 2_000_000,
        full_text: bool = True,
        template: bool = True,
        prefill_logprobs: bool = False,
        healthy: bool = True,
        shard_error: str = "",
        compute_type: str = "gpu+optimized",
        **options: Any,
    ) -> None:
        # hyper keeps an idle connection for ever.
        options.setdefault("idle_timeout", None)
        self.version = Version(version)
        told = {name: options.pop(name) for name in TOLD if name in options}
        self.facts = Facts(model, self.version, **told)
        super().__init__(tokens, endless=endless, **options)
        self.api_key = api_key
        self.tool_calls = tuple(tool_calls)
        self.grammars = grammars
        self.keep_alive = keep_alive
        self.full_text = full_text
        self.template = template
        self.healthy = healthy
        self.shard_error = shard_error
        self.compute_type = compute_type
        self.payload_limit = payload_limit
        self.prefill_logprobs = prefill_logprobs or not self.version.since(3)
        self.limits = Limits(
            max_concurrent_requests=max_concurrent_requests,
            max_best_of=max_best_of,
            max_stop_sequences=max_stop_sequences,
            max_top_n_tokens=max_top_n_tokens,
            max_input_tokens=max_total_tokens - 1 if max_input_tokens is None else max_input_tokens,
            max_total_tokens=max_total_tokens,
            max_client_batch_size=max_client_batch_size,
            legs=legs and self.version.since(3),
        )
        self._permits = 0
        self._touched = False
        self._metrics = Metrics()

    def generates(self, exchange: Exchange) -> bool:
        """True for a POST to a generation endpoint."""
        return exchange.request.method == "POST" and exchange.request.path in GENERATES

    def wait_idle(self, timeout: float) -> bool:
        """Waits until no slot and no permit is taken and none waits; False after `timeout` seconds."""
        return self.wait_for(lambda: self.busy == self.queued == self._permits == 0, timeout)

    # -- who may begin, and with what ----------------------------------------------------------------------------

    def admit(self, order: Order, number: int, job: Job, stack: ExitStack) -> Run:
        """Takes a permit for as long as the stack lives, then looks at the values. Raises Refusal."""
        began = time.perf_counter()
        stack.enter_context(self._permit())
        validate(job, self.limits, self.version, chat=order.route == "chat")
        script = self._script_of(order, job)
        self._record(tgi_request_input_length=job.prompted, tgi_request_max_new_tokens=job.room.leg(0))
        return Run(number, job, script, began, queued=time.perf_counter())

    @contextmanager
    def _permit(self) -> Iterator[None]:
        with self._changed:
            if self._permits >= self.limits.max_concurrent_requests:
                raise Refusal(ERRORS["overloaded"][1], "overloaded")
            self._permits += 1
        try:
            yield
        finally:
            with self._changed:
                self._permits -= 1
                self._changed.notify_all()

    def sequences(self, order: Order, stack: ExitStack) -> list[Run]:
        """The answers to make: one a prompt, or several of one prompt."""
        wanted = order.jobs[0].parameters.get("best_of") or 1
        if wanted > 1:
            validate_best_of(wanted, self.limits)
        jobs = [Job(job.inputs, job.parameters, job.words) for job in order.jobs for _ in range(wanted)]
        return [self.admit(order, number, job, stack) for number, job in enumerate(jobs)]

    def _script_of(self, order: Order, job: Job) -> Script:
        tokens: Sequence[Spoken] | None = self.tokens
        cycle, grammar = self.endless, job.parameters.get("grammar")
        call = called(order.body, self.tool_calls) if order.route == "chat" else None
        if call is not None:
            tokens, cycle = call_pieces(*call, named=self.version.since(2, 0, 1)), False
        elif order.route == "chat" and tokens is not None and apologises(order.body, self.version):
            tokens, cycle = apology_pieces(tokens), False
        elif grammar is not None and self.grammars:
            if grammar["type"] == "regex":
                raise _broken("this model follows no regular expression")
            tokens, cycle = json_pieces(instance(schema_of(grammar))), False
        elif tokens is None:
            tokens, cycle = tuple(" " + word for word in job.words.split()), cycle or job.room.asked is not None
        return Script(tokens, job.room, job.parameters.get("stop") or (), cycle)

    # -- at work -------------------------------------------------------------------------------------------------

    @contextmanager
    def at_work(
        self, exchange: Exchange, fault: Fault, runs: Sequence[Run], ping: Callable[[], float] | None = None
    ) -> Iterator[None]:
        """Holds a slot for these answers. Raises Gone for a client that left, and counts it."""
        try:
            with self.slot(exchange, fault, ping=ping):
                for run in runs:
                    run.started = time.perf_counter()
                yield
        except Gone:
            self.count("tgi_request_failure", 'err="dropped"')
            raise

    def pieces(
        self, order: Order, runs: Sequence[Run], complaints: Sequence[bytes], done: Callable[[], None]
    ) -> Iterator[Piece]:
        """The whole stream of these answers, behind the complaints about others. `done` is called before it ends."""
        yield from map(Piece, complaints)
        form = self.form(order, runs)
        wait = self.prompt_delay + self.delay
        for number, step in rounds([run.script for run in runs]):
            if step is None:
                if wait > 0:
                    yield Piece(b"", delay=wait)
                wait = self.delay
                if self.shard_error:
                    trouble = self.failed(_broken(self.shard_error))
                    yield Piece(self.facts.complaint(order.route, trouble.message, trouble.kind))
                    break
                continue
            for place, event in enumerate(form.events(number, step)):
                yield Piece(event, tokens=place == 0, finish=place == 0 and step.finish is not None)
            if step.finish:
                self.succeeded(runs[number])
        yield from map(Piece, self.facts.ending(order.route))
        done()

    def say_all(self, exchange: Exchange, runs: Sequence[Run]) -> list[list[Step]]:
        """The steps of all answers, made without a stream."""
        said: list[list[Step]] = [[] for _ in runs]
        wait = self.prompt_delay + self.delay
        for number, step in rounds([run.script for run in runs]):
            if step is not None:
                said[number].append(step)
                continue
            if wait > 0:
                self._pause(exchange, wait, None)
            wait = self.delay
            if self.shard_error:
                raise _broken(self.shard_error)
        return said

    def form(self, order: Order, runs: Sequence[Run]) -> Native | Chat | Completions:
        """How this endpoint says it."""
        if order.route == "native":
            return Native(runs, self.facts)
        if order.route == "completions":
            return Completions(order, runs, self.facts)
        calls = called(order.body, self.tool_calls) is not None or apologises(order.body, self.version)
        return Chat(order, runs, self.facts, calls=calls)

    # -- figures -------------------------------------------------------------------------------------------------

    def count(self, name: str, label: str = "") -> None:
        """One more of a counter."""
        with self._changed:
            self._metrics.count(name, label)

    def failed(self, refusal: Refusal) -> Refusal:
        """Counts a failure; returns it."""
        if refusal.kind != "healthcheck":
            self.count("tgi_request_failure", f'err="{_FAILURES.get(refusal.kind, "validation")}"')
        return refusal

    def succeeded(self, run: Run) -> None:
        """Counts an answer and what it took."""
        spent = run.timings()
        self.count("tgi_request_success")
        self._record(
            tgi_request_duration=spent["total"],
            tgi_request_validation_duration=spent["validation"],
            tgi_request_queue_duration=spent["queue"],
            tgi_request_inference_duration=spent["inference"],
            tgi_request_mean_time_per_token_duration=spent["per_token"],
            tgi_request_generated_tokens=run.script.generated,
        )

    def _record(self, **values: float) -> None:
        with self._changed:
            self._touched = True
            for name, value in values.items():
                self._metrics.record(name, value)

    def metrics_text(self) -> bytes:
        """The body of /metrics. What nothing has touched yet is not there."""
        with self._changed:
            gauges = {"tgi_queue_size": self.queued, "tgi_batch_current_size": self.busy} if self._touched else {}
            return self._metrics.text(gauges)

    # -- error forms ---------------------------------------------------------------------------------------------

    def error_body(self, status: int, message: str | None = None, kind: str | None = None) -> bytes:
        """The error object of a status: the router's own; a gateway's, without a kind; and nothing for a wrong key."""
        if status == 401 and message is None:
            return b""
        kind = kind or KINDS.get(status, "")
        own = ERRORS[kind][1] if kind in ERRORS else GATEWAY.get(status, responses.get(status, "error"))
        return dump(error(message or own, kind))

    def error_event(self, status: int, message: str, kind: str, *, old: bool = False) -> bytes:
        """The error event of a native stream; a generation error if nothing else is said. `old`: without the space."""
        return self._complain("native", message, kind, old)[0]

    def error_events(self, exchange: Exchange, fault: Fault) -> Sequence[bytes]:
        """The error event in the form of the route, and the end mark where there is one. `old`: as in 2.0.4."""
        return self._complain(GENERATES[exchange.request.path], fault.message, fault.error_type, fault.old)

    def _complain(self, route: str, message: str, kind: str, old: bool) -> list[bytes]:
        facts = replace(self.facts, version=Version("2.0.4")) if old else self.facts
        kind = kind or "generation"
        text = message or ERRORS.get(kind, (500, kind))[1]
        return [facts.complaint(route, text, kind), *facts.ending(route)]


def _broken(text: str) -> Refusal:
    return Refusal(f"Request failed during generation: Server error: {text}", "generation")
