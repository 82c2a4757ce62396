"""A Triton inference server that is not there: its HTTP API as of 2.51.0 (24.10), with LLMs of every convention.

Uses no part of the library: its bytes were written from recordings, and are compared with them by independent clients.
"""

from __future__ import annotations

import contextlib
import os
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

from .engine import EngineSimulator, Piece
from .exchange import Exchange, Header
from .faults import FINISH, NO_FAULT, Fault
from .peer import Gone
from .recital import SENTENCE
from .triton_catalog import chosen
from .triton_events import MANY, error, event, flat, tensors
from .triton_json import Failure, as_bool, dump, load
from .triton_models import Model, config, metadata
from .triton_peer import DeafPeer
from .triton_repository import Repository, Served
from .triton_request import Ask, read_generate, read_infer
from .triton_routes import CATEGORIES, ERRORS, LOGGING, TRACE, Route, route, server_metadata
from .triton_run import Run
from .triton_voice import NO_ID, Reply

EVENTS = "text/event-stream; charset=utf-8"
JSON = "application/json"


class TritonSimulator(EngineSimulator):
    """Speaks Triton's HTTP API.

    `tokens`: what every model says, one text (or bytes) a token, then an end token; None: the words of the prompt,
    repeated up to the request's limit, so that crossed replies show. `endless` starts over in place of the end token.
    `models` are names of the catalog, Models of your own, or "all"; the steps of an ensemble come with it.

    `slots` are the instances of all models together; `max_queued` bounds the queue (max_queue_size). `explicit` allows
    load and unload. `version` is Triton's. `api_key` is demanded in the header `key_header` by all but the health
    routes (--http-restricted-api); an Authorization header has it behind `Bearer `. `delay` (seconds a token) and
    `prompt_delay` may be set at any time. Further options: those of EngineSimulator and SimServer.

    As in the engine a client's close is seen only after the first response, and never by an ensemble: till then the
    job runs on. (Silence that a fault brings ends with the client all the same.) A request to a model that takes token
    ids, with `stop` and the id of a running request, ends that one.
    """

    def __init__(
        self,
        tokens: Sequence[str | bytes] | None = SENTENCE,
        *,
        endless: bool = False,
        models: str | Iterable[str | Model] = "recite",
        explicit: bool = False,
        max_queued: int | None = None,
        api_key: str | None = None,
        key_header: str = "authorization",
        version: str = "2.51.0",
        **options: Any,
    ) -> None:
        options.setdefault("idle_timeout", None)  # the server sets no timeout on connections
        super().__init__(tokens, endless=endless, **options)
        self.max_queued = max_queued
        self.api_key = api_key
        self.key_header = key_header
        self.version = version
        self._repository = Repository(chosen(models), explicit, self._changed)
        self._runs: dict[Exchange, Run] = {}

    # -- routing -------------------------------------------------------------------------------------------------

    def generates(self, exchange: Exchange) -> bool:
        """True for a POST to generate, generate_stream or infer."""
        return exchange.request.method == "POST" and route(exchange.request.path).generates

    def answer(self, exchange: Exchange, fault: Fault) -> None:
        """Answers as the engine does: the path first, then the key, then the method."""
        found = route(exchange.request.path)
        try:
            self._admit(exchange, found)
            if found.generates:
                self._infer(exchange, fault, found)
            else:
                self._inform(exchange, found)
        except Failure as failure:
            self._send_whole(exchange, failure.status, error(failure.message), plain=failure.plain)

    def _admit(self, exchange: Exchange, found: Route) -> None:
        if found.kind == "":
            raise Failure(404, "Not Found", plain=True)
        request = exchange.request
        if self.api_key is not None and CATEGORIES[found.kind] != "health":
            bearer = "Bearer " if self.key_header.lower() == "authorization" else ""
            if request.header(self.key_header) != bearer + self.api_key:
                told = f"This API is restricted, expecting header '{self.key_header}'"
                raise Failure(403, told, plain=True)
        if request.method not in found.methods:
            raise Failure(405, "Method Not Allowed", plain=found.plain)

    def _inform(self, exchange: Exchange, found: Route) -> None:
        name, version, repository = found.model, found.version, self._repository
        if found.kind in ("live", "server-ready"):
            ready = found.kind == "live" or repository.ready
            self._send_whole(exchange, 200 if ready else 400, b"", plain=True)
        elif found.kind == "ready":
            if not repository.is_ready(name, version):
                raise Failure(400, "Model version not ready", plain=True)
            self._send_whole(exchange, 200, b"", plain=True)
        elif found.kind in ("index", "load", "unload"):
            self._manage(exchange, found)
        else:
            bodies: dict[str, Callable[[], Any]] = {
                "server": lambda: server_metadata(self.version),
                "model": lambda: metadata(repository.find(name, version).model),
                "config": lambda: config(repository.find(name, version).model),
                "stats": lambda: repository.statistics(name, version),
                "trace/setting": lambda: TRACE,
                "logging": lambda: LOGGING,
                "status": list,
            }
            self._send_whole(exchange, 200, dump(bodies[found.kind]()))

    def _manage(self, exchange: Exchange, found: Route) -> None:
        asked = load(exchange.request.body) if exchange.request.body else {}
        if found.kind == "index":
            ready = as_bool(asked.get("ready", False)) if isinstance(asked, dict) else False
            self._send_whole(exchange, 200, dump(self._repository.index(ready)))
            return
        if found.kind == "load":
            with self._deaf(exchange):
                self._repository.load(found.model, exchange.pause)
        else:
            self._repository.unload(found.model)
        self._send_whole(exchange, 200, b"")

    # -- inference -----------------------------------------------------------------------------------------------

    def _infer(self, exchange: Exchange, fault: Fault, found: Route) -> None:
        request, plain = exchange.request, found.kind == "infer"
        served = self._repository.find(found.model, found.version, plain)
        if plain and served.model.decoupled:
            raise Failure(501, "HTTP end point doesn't support models with decoupled transaction policy", plain=True)
        ask = read_infer(request, served.model) if plain else read_generate(request.body, served.model)
        with self._changed:
            if self.max_queued is not None and self.busy == self._slots.count and self.queued >= self.max_queued:
                raise ask.blame(503, ERRORS[503])
        if served.model.voice == "ids" and ask.value("stop"):
            self._stop_run(exchange, found, ask)
            return
        with self._running(exchange, served, ask, found) as run, self._deaf(exchange):
            if found.kind == "generate_stream":
                self._stream(exchange, fault, run)
            elif plain:
                self._tensors(exchange, fault, run)
            else:
                self._once(exchange, fault, run)

    @contextlib.contextmanager
    def _running(self, exchange: Exchange, served: Served, ask: Ask, found: Route) -> Iterator[Run]:
        """A request at work: counted, and known to those that stop it by its id."""
        run = Run(served.model, ask, found.kind, exchange.peer, self.tokens, self.endless)
        exchange.wake, run.waker = os.pipe()
        began = time.perf_counter()
        with self._changed:
            self._runs[exchange] = run
        self._repository.enter(served)
        try:
            yield run
        finally:
            with self._changed:
                del self._runs[exchange]
                os.close(exchange.wake)
                os.close(run.waker)
                exchange.wake = -1
            self._repository.leave(served, time.perf_counter() - began, run.failed)

    @contextlib.contextmanager
    def _deaf(self, exchange: Exchange) -> Iterator[None]:
        """Nobody watches the connection, until `_open` or the end."""
        hearing = exchange.peer
        exchange.peer = DeafPeer(hearing, self._wake_read)
        try:
            yield
        finally:
            exchange.peer = hearing

    def _stop_run(self, exchange: Exchange, found: Route, ask: Ask) -> None:
        """Ends the running requests of this id, whatever model they asked; the answer is the final flag alone."""
        streamed = found.kind == "generate_stream"
        if not ask.id:
            body = event(error(NO_ID)) if streamed else error(NO_ID)
            self._head(exchange, 400, EVENTS if streamed else JSON)
            exchange.chunk(body)
        else:
            with self._changed:
                for run in self._runs.values():
                    if run.ask.id == ask.id:
                        run.stopped = True
                        os.write(run.waker, b"!")
            self._head(exchange, 200, EVENTS if streamed else JSON)
            if not streamed:
                exchange.chunk(error(MANY))
        exchange.end()

    # -- the three forms of an answer ------------------------------------------------------------------------------

    def _stream(self, exchange: Exchange, fault: Fault, run: Run) -> None:
        with self.slot(exchange, fault):
            if fault.after == 0 or (fault.kind == "error" and not run.streams):
                self._open(exchange, run, 400 if fault.kind == "error" else 200)
            if not run.streams:
                if fault.kind == "error":
                    run.failed = True
                    exchange.chunk(*self.error_events(exchange, fault))
                    exchange.end()
                    return
                fault.strike_whole(exchange)
                fault = NO_FAULT if fault.after is not None else fault
            self.play(exchange, fault, self._pieces(exchange, fault, run))

    def _pieces(self, exchange: Exchange, fault: Fault, run: Run) -> Iterator[Piece]:
        wait, replies = self.prompt_delay, run.replies()
        reply = next(replies, None)
        for following in chain(replies, (None,)):
            if reply is None:
                break
            wait += self.delay * reply.tokens
            last = following is None and fault.after == FINISH
            yield Piece(event(flat(run.model, run.ask, reply)), reply.tokens, wait, finish=last)
            reply, wait = following, 0.0
        if wait:
            self._pause(exchange, wait, None)
        self._open(exchange, run)  # the final flag begins the answer of a model that said nothing

    def _once(self, exchange: Exchange, fault: Fault, run: Run) -> None:
        bodies = []
        with self.slot(exchange, fault):
            for reply in self._paced(exchange, fault, run):
                self._open(exchange, run, 400 if reply.error else 200)
                bodies.append(flat(run.model, run.ask, reply))
            self._open(exchange, run)
            exchange.chunk(bodies[0] if len(bodies) == 1 else error(MANY))
            exchange.end()

    def _tensors(self, exchange: Exchange, fault: Fault, run: Run) -> None:
        with self.slot(exchange, fault):
            replies = list(self._paced(exchange, fault, run))
        if len(replies) != 1:
            raise Failure(500, f"expected a single response, got {len(replies)}", plain=True)
        if replies[0].error:
            raise Failure(fault.code if fault.kind == "error" else 500, replies[0].error, plain=True)
        head, tail = tensors(run.model, run.ask, replies[0])
        kind, more = (JSON, []) if not tail else ("application/octet-stream", [(_LENGTH, str(len(head)))])
        coding = _coding(exchange.request.header("Accept-Encoding") or "")
        body = head + tail
        if coding:
            body = _compress(body, coding)
            more.append(("Content-Encoding", coding))
        exchange.respond(200, [("Content-Type", kind), *more, *self._length(exchange, body)], body)

    def _paced(self, exchange: Exchange, fault: Fault, run: Run) -> Iterator[Reply]:
        """The responses at their pace; a fault strikes in their place."""
        if fault.kind == "error":
            run.failed = True
            yield Reply({}, error=self._message(exchange, fault))
            return
        fault.strike_whole(exchange)
        wait = self.prompt_delay
        extra = fault.every if fault.kind == "slow" else 0.0
        for reply in run.replies():
            wait += (self.delay + extra) * reply.tokens
            if wait:
                self._pause(exchange, wait, None)
            wait = 0.0
            yield reply

    # -- the moment of the first response --------------------------------------------------------------------------

    def _open(self, exchange: Exchange, run: Run, status: int = 200) -> None:
        """Sends the head with the first response; from now on the client's close is seen, but by no ensemble."""
        if exchange.head_sent:
            return
        if not run.model.steps:
            exchange.peer = run.peer
        self._head(exchange, status, EVENTS if run.form == "generate_stream" else JSON)

    def _head(self, exchange: Exchange, status: int, content_type: str) -> None:
        closing = [] if exchange.keep_alive else [("Connection", "close")]
        exchange.head(status, [("Content-Type", content_type), ("Transfer-Encoding", "chunked"), *closing])

    def _send(self, exchange: Exchange, batch: list[bytes]) -> None:
        run = self._runs[exchange]
        if batch:
            self._open(exchange, run, 400 if run.failed else 200)
        try:
            super()._send(exchange, batch)
        except Gone:
            if not run.model.steps or exchange.gone():
                raise
            batch.clear()  # an ensemble speaks on to nobody

    # -- bodies and heads ------------------------------------------------------------------------------------------

    def _send_whole(self, exchange: Exchange, status: int, body: bytes, plain: bool = False) -> None:
        kind = [("Content-Type", "text/plain" if plain else JSON)]
        length = self._length(exchange, body)
        exchange.respond(status, length + kind if plain else kind + length, body)

    def _length(self, exchange: Exchange, body: bytes) -> list[Header]:
        length: list[Header] = [("Content-Length", "")]
        closing: list[Header] = [] if exchange.keep_alive else [("Connection", "close")]
        return length + closing if body else closing + length

    def error_headers(self, exchange: Exchange) -> list[Header]:
        """The headers of a JSON error answer."""
        return [("Content-Type", JSON), *self._length(exchange, b"{}")]

    def error_body(self, status: int, message: str | None = None, kind: str | None = None) -> bytes:
        """The engine's error object; without a message what the engine says with this status."""
        told = ERRORS.get(status, "Not Found").format(next(iter(self._repository.served), ""))
        return error(message or (f"[request id: <id_unknown>] {told}" if status == 503 else told))

    def error_event(self, status: int, message: str, kind: str, *, old: bool = False) -> bytes:
        """The error event of a stream."""
        return event(error(message or ERRORS.get(status, ERRORS[500])))

    def error_events(self, exchange: Exchange, fault: Fault) -> Sequence[bytes]:
        """One error event; by default the backend's process has died."""
        self._runs[exchange].failed = True
        return [event(error(self._message(exchange, fault)))]

    def _message(self, exchange: Exchange, fault: Fault) -> str:
        name = route(exchange.request.path).model
        return fault.message or ERRORS.get(fault.code, ERRORS[500]).format(name)


_LENGTH = "Inference-Header-Content-Length"


def _coding(accepted: str) -> str:
    """The first coding of those listed that the engine knows ("" for none); it looks at weights as well, which no
    client here sends."""
    for name in accepted.lower().split(","):
        if name.strip() in ("identity", "gzip", "deflate"):
            return name.strip().replace("identity", "")
    return ""


def _compress(body: bytes, coding: str) -> bytes:
    packer = zlib.compressobj(wbits=zlib.MAX_WBITS | 16 if coding == "gzip" else zlib.MAX_WBITS)
    return packer.compress(body) + packer.flush()
