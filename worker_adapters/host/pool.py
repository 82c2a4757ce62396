"""Pool: replicas of one kind, and the jobs that wait for a place among them."""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Generator

from worker_adapters.cancel import Job
from worker_adapters.clocks import Runtime
from worker_adapters.contract import Wait
from worker_adapters.errors import EngineUnavailable, WorkerError, invalid
from worker_adapters.host.breaker import CLOSED
from worker_adapters.host.placement import choose, none_usable, not_resident, overflow, resident, usable
from worker_adapters.host.replica import Replica
from worker_adapters.host.ticket import Ticket
from worker_adapters.retry import RetryBudget, RetryPolicy

#: After so many interactive jobs in a row a waiting batch job goes first.
TURNS = 8
#: Sessions whose replica is remembered.
SESSIONS = 10_000
#: A replica is looked at again, while jobs come, after so many seconds; one that is not ready sooner.
LOOK = 5.0
LOOK_AGAIN = 1.0
#: A look may take so long (seconds).
LOOKING = 2.0
#: Those that blame an engine when they fire.
CLOCKS_OF_ENGINES = ("connect", "first_token", "between_tokens")
#: A waiting job looks around at least so often (seconds); whatever frees a place wakes it anyway.
LONGEST_WAIT = 60.0


class Pool:
    """A named set of replicas. Every method may be called from any thread.

    The lock is an RLock, since the garbage collector may end a stream, and so free a place, on top of any of this.
    """

    def __init__(self, name: str, runtime: Runtime, retry: RetryPolicy, policy: str, warn: Callable[..., None]) -> None:
        self.name = name
        self.budget = RetryBudget(retry)
        self._runtime = runtime
        self._policy = policy
        self._warn = warn
        self._lock = threading.RLock()
        self._replicas: dict[str, Replica] = {}
        self._waiting: tuple[deque[Ticket], deque[Ticket]] = (deque(), deque())  # interactive, batch
        self._turns = 0
        self._serving = self._again = False
        self._sessions: OrderedDict[str, str] = OrderedDict()

    # --- binding

    @property
    def replicas(self) -> list[Replica]:
        """Those bound now."""
        return list(self._replicas.values())

    def bind(self, replica: Replica, *, replace: bool) -> Replica | None:
        """Put a replica in; the one that it takes the place of, which takes no more jobs.

        :raises InvalidRequest: the name is taken, or with ``replace`` is not.
        """
        with self._lock:
            before = self._replicas.get(replica.name)
            if (before is not None) != replace:
                raise invalid("replica", f"{replica.label} is {'not bound' if replace else 'bound'}")
            self._replicas = {**self._replicas, replica.name: replica}
            if before is not None:
                before.draining = True
            self._serve()
        return before

    def unbind(self, name: str) -> Replica:
        """Take a replica out. Its jobs run on.

        :raises InvalidRequest: there is none of that name.
        """
        with self._lock:
            if name not in self._replicas:
                raise invalid("replica", f"{self.name}/{name} is not bound")
            replica = self._replicas[name]
            self._replicas = {key: value for key, value in self._replicas.items() if key != name}
            replica.draining = True
            self._serve()
        return replica

    def check(self, ticket: Ticket) -> None:
        """Is there any replica that could ever run this?

        :raises InvalidRequest: no such replica, or none that takes every field.
        """
        if ticket.pin is not None and ticket.pin not in self._replicas:
            known = ", ".join(sorted(self._replicas)) or "none"
            raise invalid("replica", f"pool {self.name!r} has no {ticket.pin!r}; it has {known}")
        candidates = self._able(ticket)
        if candidates and not any(ticket.fits(replica) for replica in candidates):
            raise ticket.inability()

    # --- places

    def acquire(self, ticket: Ticket) -> Generator[Wait, None, Replica]:
        """A place, in steps that wait; the replica. Always followed by ``release``.

        :raises WorkerError: no replica takes the job, or may.
        """
        try:
            with self._lock:
                until = self._ask(ticket)
            while ticket.granted is None and ticket.refusal is None and not ticket.job.cancelled:
                yield Wait("pool", lambda timeout: self._sleep(timeout, ticket.job), until)
                with self._lock:
                    until = self._serve(ticket)
        except BaseException:
            self._leave(ticket)
            raise
        with self._lock:
            replica, ticket.granted = ticket.granted, None
        if replica is not None:
            return replica
        self._leave(ticket)
        refusal, ticket.refusal = ticket.refusal, None
        try:
            raise refusal or EngineUnavailable(message="the job was cancelled while it waited", phase="queue")
        finally:
            del refusal  # else error -> traceback -> this frame -> error is a cycle

    def _ask(self, ticket: Ticket) -> float | None:
        """A place at once where nobody waits; else behind them. When to ask again, see ``_serve``."""
        if not any(self._waiting):
            self._settle(ticket)
            if ticket.granted is not None or ticket.refusal is not None:
                return None
        self._waiting[ticket.batch].append(ticket)
        return self._serve(ticket)

    def _sleep(self, timeout: float | None, job: Job) -> bool:
        return self._runtime.sleep(LONGEST_WAIT if timeout is None else min(timeout, LONGEST_WAIT), job.wake)

    def has_other(self, ticket: Ticket) -> bool:
        """Is there a replica with room that this job may go to and has not been on?"""
        now = self._runtime.monotonic()
        with self._lock:
            others = [r for r in usable(self.replicas, now) if r not in ticket.tried and ticket.pin in (None, r.name)]
            may = [r for r in others if self._policy != "strict" or resident(r)]
            return any(replica.has_room(now) and ticket.fits(replica) for replica in may)

    def _leave(self, ticket: Ticket, ends: Callable[[], bool] = sys.is_finalizing) -> None:
        if ends():
            return  # the interpreter: a thread that is no more may hold the lock
        with self._lock:
            if ticket in self._waiting[ticket.batch]:
                self._waiting[ticket.batch].remove(ticket)
            self._give_back(ticket)
            self._serve()

    def _give_back(self, ticket: Ticket) -> None:
        """The job does not come for its place."""
        granted, ticket.granted = ticket.granted, None
        if granted is not None:
            granted.jobs.discard(ticket.job)
            granted.breaker.nothing(trial=ticket.trial)

    def release(
        self,
        ticket: Ticket,
        replica: Replica,
        error: WorkerError | None,
        *,
        accepted: bool,
        ends: Callable[[], bool] = sys.is_finalizing,
    ) -> None:
        """The job there has ended; again is harmless.

        :param error: why, if it failed; one that is no engine's fault says nothing of the engine.
        :param accepted: did the engine take it?
        """
        if ends():
            return  # as in ``_leave``
        now = self._runtime.monotonic()
        with self._lock:
            if ticket.job not in replica.jobs:
                return  # the parent's, before a fork
            replica.jobs.discard(ticket.job)
            if (ticket.job.cancelled or ticket.clock is not None) and replica.left(now):
                for waiting in (*self._waiting[0], *self._waiting[1]):
                    waiting.job.wake.put(None)  # to note when that will be over
            fault = ticket.clock in CLOCKS_OF_ENGINES or (error is not None and error.engine_fault)
            if fault and not ticket.job.cancelled:  # a cancel shuts the connection down, and that is no engine's doing
                replica.breaker.fault(now, trial=ticket.trial)
            elif accepted and not ticket.job.cancelled and error is None and ticket.clock is None:
                replica.breaker.success()
            else:
                replica.breaker.nothing(trial=ticket.trial)
            self._serve()

    def accepted(self, replica: Replica) -> None:
        """The engine took a job."""
        with self._lock:
            replica.accepted_at = self._runtime.monotonic()
            if replica.breaker.state != CLOSED:
                replica.breaker.accepted()
                self._serve()

    def _serve(self, asking: Ticket | None = None) -> float | None:
        """Give places to those who wait, interactive ones first, but never to them for ever.

        :param asking: not woken: it is here.
        :returns: when to ask again, where no event will say so: an engine is then done with a job that was cancelled.
        """
        if not any(self._waiting):
            return None
        if self._serving:  # the collector ended a stream on top of this very method
            self._again = True
            return None
        self._serving = True
        try:
            self._again = True
            while self._again:
                self._again = False
                self._serve_all(asking)
        finally:
            self._serving = False
        return min((until for replica in self._replicas.values() for until in replica.freeing), default=None)

    def _serve_all(self, asking: Ticket | None) -> None:
        stuck: set[str | None] = set()
        while (ticket := self._first(stuck)) is not None:
            self._waiting[ticket.batch].remove(ticket)
            if ticket.job.cancelled:
                self._give_back(ticket)
            elif ticket.granted is not None:
                self._turns = 0 if ticket.batch else self._turns + 1
            if ticket is not asking:
                ticket.job.wake.put(None)

    def _first(self, stuck: set[str | None]) -> Ticket | None:
        """The first of those waiting that is granted a place, refused, or cancelled.

        :param stuck: pins whose replicas are full: nobody who wants the same needs to be looked at.
        """
        interactive, batch = self._waiting
        for ticket in (*batch, *interactive) if self._turns >= TURNS else (*interactive, *batch):
            if not ticket.job.cancelled and not ticket.unable and ticket.pin in stuck:
                continue
            if not ticket.job.cancelled:
                self._settle(ticket)
            if ticket.job.cancelled or ticket.granted is not None or ticket.refusal is not None:
                if ticket in self._waiting[ticket.batch]:
                    return ticket
                self._give_back(ticket)  # it left meanwhile
            elif not ticket.unable:
                stuck.add(ticket.pin)
        return None

    def _settle(self, ticket: Ticket) -> None:
        """Grant, refuse, or leave waiting."""
        now = self._runtime.monotonic()
        able = self._able(ticket)
        for replica in able:
            if now - replica.looked_at >= LOOK_AGAIN:
                self._look(replica, now)
        found = usable(able, now)
        if not found:
            if not any(not r.ready and r.looking and r.breaker.admits(now) for r in able):
                ticket.refusal = none_usable(self.name, able, now) if able or not ticket.unable else ticket.inability()
            return  # else what is known of one is old, and is being asked just now
        if self._policy != "off":
            allowed = self._allowed(found)
            if allowed is None:
                return  # one is being looked at
            if not allowed:
                down = [replica for replica in able if resident(replica)]
                ticket.refusal = none_usable(self.name, down, now) if down else not_resident(self.name, found)
                return
            found = allowed
        ticket.refusal = overflow(ticket.task, found)
        if ticket.refusal is not None:
            return
        session = ticket.task.session_id
        known = self._sessions.get(session) if session is not None else None
        chosen = choose(found, now=now, known=known, tried=ticket.tried)
        if chosen is None:
            return
        if ticket.fits(chosen):
            self._grant(ticket, chosen, now)
        else:
            self._settle(ticket)  # among the others

    def _able(self, ticket: Ticket) -> list[Replica]:
        """Those that it may go to, as far as is known."""
        if ticket.pin is None and not ticket.unable:
            return list(self._replicas.values())
        return [r for r in self._replicas.values() if ticket.pin in (None, r.name) and r not in ticket.unable]

    def _grant(self, ticket: Ticket, replica: Replica, now: float) -> None:
        replica.jobs.add(ticket.job)
        ticket.trial = replica.breaker.enter(now)
        ticket.clock = None
        ticket.granted = replica
        ticket.tried.add(replica)
        session = ticket.task.session_id
        if session is not None:
            self._sessions[session] = replica.name
            self._sessions.move_to_end(session)
            if len(self._sessions) > SESSIONS:
                self._sessions.popitem(last=False)

    def _allowed(self, found: list[Replica]) -> list[Replica] | None:
        """Those that the policy takes; None: what one reports is not known yet, and is asked just now."""
        good = [replica for replica in found if resident(replica)]
        if self._policy == "strict":
            unknown = [r for r in found if r.props is None and r.declared is None and r.looking]
            return good or (None if unknown else [])
        for replica in found:
            if not resident(replica) and replica.props is not None and not replica.warned:
                replica.warned = True
                self._warn("%s is not known to run on the GPU alone: residency %s", replica.label, replica.residency)
        return found

    # --- looking at engines

    def _look(self, replica: Replica, now: float) -> None:
        """Ask an engine how it is, in a thread that ends with the answer; only while jobs come, and not too often."""
        due = now - replica.looked_at >= (LOOK if replica.ready else LOOK_AGAIN)
        if due and not replica.looking:
            replica.looking = True
            if self._begin_look(replica, LOOKING) is None:
                replica.looking = False  # another job will ask

    def look(self, timeout: float) -> list[threading.Thread]:
        """Ask every engine how it is; each thread ends with its answer."""
        begun = [self._begin_look(replica, timeout) for replica in self.replicas]
        return [thread for thread in begun if thread is not None]

    def _begin_look(self, replica: Replica, timeout: float) -> threading.Thread | None:
        name = f"worker-adapters-look-{replica.label}"
        thread = threading.Thread(target=self._looked, args=(replica, timeout), name=name, daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no more threads
            return None
        return thread

    def _looked(self, replica: Replica, timeout: float) -> None:
        health, props = replica.seen(timeout)
        with self._lock:
            replica.looked_at = self._runtime.monotonic()
            # An engine with its hands full may not answer in time (llama.cpp's HTTP threads): its jobs say more.
            if health.live or replica.looked_at - replica.accepted_at > LOOK:
                replica.health = health
            replica.props = props or replica.props
            replica.looking = False
            self._serve()

    def reset(self) -> None:
        """In a forked child: no job and no thread of the parent's is ours."""
        self._lock = threading.RLock()
        self._waiting = (deque(), deque())
        self._serving = False
        for replica in self._replicas.values():
            replica.reset()
