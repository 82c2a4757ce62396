"""What simulated engines share: slots with a queue, scripted faults, counters, and the loop that plays a stream."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from .exchange import JSON_HEADERS, Exchange, Header
from .faults import NO_FAULT, Fault
from .peer import Gone
from .recital import SENTENCE
from .server import SimServer


class Piece(NamedTuple):
    """One event of a stream: its `data` as bytes; how many `tokens` it counts for; a `delay` before it in seconds;
    whether it carries the `finish` reason; and whether it is `joined` in one HTTP chunk with the next event (as engines
    often do)."""

    data: bytes
    tokens: int = 0
    delay: float = 0.0
    finish: bool = False
    joined: bool = False


class Withdrawn(Exception):
    """Somebody else took this request out of the queue."""


@dataclass
class _Waiter:
    exchange: Exchange
    wanted: int | None
    signal: int
    slot: int | None = None
    withdrawn: bool = False


class Slots:
    """A fixed number of places to generate in, and a queue that a client leaves by closing its connection."""

    def __init__(self, count: int, changed: threading.Condition, choose: Callable[[list[int]], int]) -> None:
        self.count = count
        self._idle = set(range(count))
        self._queue: deque[_Waiter] = deque()
        self._changed = changed
        self._choose = choose

    def busy(self) -> int:
        """How many slots are taken."""
        with self._changed:
            return self.count - len(self._idle)

    def queued(self) -> int:
        """How many requests wait."""
        with self._changed:
            return len(self._queue)

    def is_idle(self, slot: int) -> bool:
        """True if this slot is free."""
        with self._changed:
            return slot in self._idle

    def acquire(self, exchange: Exchange, wanted: int | None = None, ping: Callable[[], float] | None = None) -> int:
        """Takes a slot (`wanted` if given), first come first served. Raises Gone if the client leaves the queue, and
        Withdrawn if `withdraw` took it out. `ping` is called while it waits and says in how many seconds again.
        """
        with self._changed:
            slot = self._take(wanted)
            if slot is not None:
                return slot
            wake, signal = os.pipe()
            waiter = _Waiter(exchange, wanted, signal)
            self._queue.append(waiter)
            self._changed.notify_all()
        outcome = "gone"
        try:
            outcome = self._wait(exchange, wake, ping)
        finally:
            with self._changed:
                if waiter in self._queue:
                    self._queue.remove(waiter)
                    self._changed.notify_all()
                os.close(wake)
                os.close(signal)
            if waiter.slot is not None and outcome == "gone":
                self.release(waiter.slot)
        if waiter.withdrawn:
            raise Withdrawn("taken out of the queue")
        if waiter.slot is None or outcome == "gone":
            raise Gone("the client left the queue")
        return waiter.slot

    def _wait(self, exchange: Exchange, wake: int, ping: Callable[[], float] | None) -> str:
        outcome = "time"
        while outcome == "time":
            outcome = exchange.peer.wait(None if ping is None else ping(), wake)
        return outcome

    def withdraw(self, exchange: Exchange) -> bool:
        """Takes a request out of the queue: its `acquire` raises Withdrawn. False if it does not wait."""
        with self._changed:
            for waiter in self._queue:
                if waiter.exchange is exchange:
                    waiter.withdrawn = True
                    self._queue.remove(waiter)
                    os.write(waiter.signal, b"!")
                    self._changed.notify_all()
                    return True
        return False

    def release(self, slot: int) -> None:
        """Frees a slot and hands it to the first request in the queue that can use it."""
        with self._changed:
            self._idle.add(slot)
            for waiter in self._queue:
                given = self._take(waiter.wanted)
                if given is not None:
                    waiter.slot = given
                    self._queue.remove(waiter)
                    os.write(waiter.signal, b"!")
                    break
            self._changed.notify_all()

    def _take(self, wanted: int | None) -> int | None:
        candidates = self._idle if wanted is None else self._idle & {wanted}
        if not candidates:
            return None
        slot = self._choose(sorted(candidates))
        self._idle.remove(slot)
        self._changed.notify_all()
        return slot


class EngineSimulator(SimServer):
    """Base of the simulated engines.

    A subclass says which requests generate (`generates`), answers (`answer`), and knows its error forms (`error_body`,
    `error_event`, `error_headers`); it takes a place with `slot` and plays a stream with `play`.

    `tokens`: what it says, token by token; None: the words of the prompt, repeated up to the request's limit. `endless`
    starts over in place of the end. Both are the subclass's to obey, and may be set at any time. `slots` answers are
    generated at once, and further requests wait. `delay` seconds come before each token, `prompt_delay` before the
    first; `events_per_write` events go in one write.
    """

    def __init__(
        self,
        tokens: Sequence[Any] | None = SENTENCE,
        *,
        endless: bool = False,
        slots: int = 4,
        delay: float = 0.0,
        prompt_delay: float = 0.0,
        events_per_write: int = 1,
        **server: Any,
    ) -> None:
        super().__init__(**server)
        self.tokens = None if tokens is None else tuple(tokens)
        self.endless = endless
        self.delay = delay
        self.prompt_delay = prompt_delay
        self.events_per_write = events_per_write
        self._script: deque[Fault] = deque()
        self._path_scripts: dict[str, deque[Fault]] = {}
        self._standing: Fault | None = None
        self._generations = 0
        self._generation_requests = 0
        self._slots = Slots(slots, self._changed, self.choose_slot)

    # -- what a test says and reads ------------------------------------------------------------------------------

    def misbehave(self, *faults: Fault, path: str | None = None) -> None:
        """Queues faults: each is used up by the next generation request, or by the next request of `path`.

        With `path` (an exact one, `/health`) only faults that need no token count apply. Raises ValueError for others.
        """
        if path is not None and any(fault.after is not None or fault.kind == "slow" for fault in faults):
            raise ValueError("a fault that counts tokens strikes generation requests only")
        with self._changed:
            script = self._script if path is None else self._path_scripts.setdefault(path, deque())
            script.extend(faults)

    def always(self, fault: Fault | None) -> None:
        """Applies a fault to every generation request that finds no queued one; None ends it."""
        with self._changed:
            self._standing = fault

    @property
    def generations(self) -> int:
        """How many generation requests got a slot and started; refused and still queued ones are not among them."""
        with self._changed:
            return self._generations

    @property
    def generation_requests(self) -> int:
        """How many requests to generation endpoints arrived, refused ones too."""
        with self._changed:
            return self._generation_requests

    @property
    def busy(self) -> int:
        """How many slots are taken now."""
        return self._slots.busy()

    @property
    def queued(self) -> int:
        """How many requests wait for a slot now."""
        return self._slots.queued()

    def wait_idle(self, timeout: float) -> bool:
        """Waits until no slot is taken and none waits; False after `timeout` seconds."""
        return self.wait_for(lambda: self.busy == 0 and self.queued == 0, timeout)

    def wait_generations(self, count: int, timeout: float) -> bool:
        """Waits until at least `count` generations have started; False after `timeout` seconds."""
        return self.wait_for(lambda: self._generations >= count, timeout)

    # -- what a subclass supplies --------------------------------------------------------------------------------

    def generates(self, exchange: Exchange) -> bool:
        """True for a request that asks for tokens."""
        raise NotImplementedError

    def answer(self, exchange: Exchange, fault: Fault) -> None:
        """Answers one request."""
        raise NotImplementedError

    def error_body(self, status: int, message: str | None = None, kind: str | None = None) -> bytes:
        """The engine's own JSON error body for an HTTP status."""
        raise NotImplementedError

    def error_event(self, status: int, message: str, kind: str, *, old: bool = False) -> bytes:
        """The engine's own error event inside a 200 stream; `old` in the form of its older builds. An empty message
        or kind stands for the engine's own."""
        raise NotImplementedError

    def error_events(self, exchange: Exchange, fault: Fault) -> Sequence[bytes]:
        """How the engine ends a 200 stream with an error: the events, each for a chunk of its own."""
        return [self.error_event(fault.code, fault.message, fault.error_type, old=fault.old)]

    def error_headers(self, exchange: Exchange) -> list[Header]:
        """The headers of a JSON error answer."""
        return list(JSON_HEADERS)

    def choose_slot(self, idle: list[int]) -> int:
        """Picks one of the idle slots (ascending numbers); called with the server's lock held."""
        return idle[0]

    # -- the loop ------------------------------------------------------------------------------------------------

    def handle(self, exchange: Exchange) -> None:
        """Counts, applies the fault that is due, and lets the engine answer."""
        fault = self._take_fault(exchange)
        fault.install(exchange)
        if fault.kind == "silent_head" and not self.generates(exchange):
            fault.before_head(exchange)
        if fault.answers(exchange, self):
            return
        try:
            self.answer(exchange, fault)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            if exchange.head_sent:
                raise
            self._refuse_types(exchange, error)

    def _refuse_types(self, exchange: Exchange, error: Exception) -> None:
        """Answers a request that could not be read: engines check the types of many fields, simulators of few."""
        self._record_violation(f"{exchange.request.path} could not be read: {type(error).__name__}: {error}")
        exchange.respond(400, self.error_headers(exchange), self.error_body(400, "a field is of a wrong type"))

    @contextmanager
    def slot(
        self, exchange: Exchange, fault: Fault, wanted: int | None = None, ping: Callable[[], float] | None = None
    ) -> Iterator[int]:
        """Holds a slot, queueing for it (see `Slots.acquire`); a generation counts as started once it has one."""
        number = self._slots.acquire(exchange, wanted, ping)
        try:
            with self._changed:
                self._generations += 1
                self._changed.notify_all()
            fault.before_head(exchange)
            yield number
        finally:
            self._slots.release(number)

    def play(
        self,
        exchange: Exchange,
        fault: Fault,
        pieces: Iterable[Piece],
        ping_every: float | None = None,
        comment: bytes = b":\n\n",
    ) -> None:
        """Sends the pieces of a stream whose head is sent already, and the body's end; the fault strikes in between.
        While it waits, a `comment` goes out each `ping_every` seconds."""
        if fault.due(0, False) and not fault.strike(exchange, self):
            return
        extra = fault.every if fault.kind == "slow" else 0.0
        tokens, pending = 0, b""
        batch: list[bytes] = []
        for piece in pieces:
            delay = piece.delay + extra * bool(piece.tokens)
            if delay > 0:
                self._send(exchange, batch)
                self._pause(exchange, delay, ping_every, comment)
            if not piece.data:
                continue
            pending += piece.data
            tokens += piece.tokens
            struck = (piece.tokens or piece.finish) and fault.due(tokens, piece.finish)
            if piece.joined and not struck:
                continue
            batch.append(pending)
            pending = b""
            if struck or len(batch) >= self.events_per_write:
                self._send(exchange, batch)
            if struck and not fault.strike(exchange, self):
                return
        self._send(exchange, batch)
        exchange.end()

    def _send(self, exchange: Exchange, batch: list[bytes]) -> None:
        if batch:
            if exchange.gone():
                raise Gone("noticed before a write")
            exchange.chunk(*batch)
            batch.clear()

    def _pause(self, exchange: Exchange, delay: float, ping_every: float | None, comment: bytes = b":\n\n") -> None:
        """Waits `delay` seconds, with an SSE comment each `ping_every` seconds of it."""
        while ping_every is not None and delay > ping_every:
            if not exchange.pause(ping_every):
                raise Gone("left during a pause")
            exchange.chunk(comment)
            delay -= ping_every
        if not exchange.pause(delay):
            raise Gone("left during a pause")

    def _take_fault(self, exchange: Exchange) -> Fault:
        generates = self.generates(exchange)
        with self._changed:
            if generates:
                self._generation_requests += 1
                self._changed.notify_all()
            script = self._path_scripts.get(exchange.request.path)
            if script:
                return script.popleft()
            if not generates:
                return NO_FAULT
            if self._script:
                return self._script.popleft()
            return self._standing or NO_FAULT
