"""AdapterHost: what a program with more than one engine holds. It routes jobs, runs them on threads, cancels by id."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from worker_adapters.cancel import Job as JobState
from worker_adapters.cancel import JobRegistry, new_job_id
from worker_adapters.clocks import Runtime
from worker_adapters.errors import InvalidRequest, invalid
from worker_adapters.host.breaker import BreakerPolicy
from worker_adapters.host.buffer import FrameBuffer
from worker_adapters.host.config import at, read
from worker_adapters.host.jobs import Job, Run
from worker_adapters.host.mapping import as_they_end, in_order
from worker_adapters.host.observe import JobInfo, Narrator, Observer, log
from worker_adapters.host.placement import POLICIES
from worker_adapters.host.pool import Pool
from worker_adapters.host.replica import AdapterLike, Replica
from worker_adapters.host.route import FailoverRetries, Limits, Watched, attempt
from worker_adapters.host.ticket import Ticket
from worker_adapters.host.workers import Workers
from worker_adapters.plan import Plan
from worker_adapters.retry import RetryPolicy
from worker_adapters.stream import TokenStream
from worker_adapters.task import TaskLike, TaskRequest
from worker_adapters.timeouts import Timeouts, check_count, check_seconds, checked

#: How long ``close`` and ``unbind`` look around between two jobs that end, in seconds.
DRAIN_LOOK = 0.02


class AdapterHost:
    """Pools of replicas behind ``submit``, ``dispatch``, ``map`` and ``cancel``. Safe to share between threads.

    :param max_workers: threads that run dispatched jobs.
    :param policy: ``"off"``, ``"warn"`` or ``"strict"``: whether engines that are not GPU-resident take jobs.
    :param timeouts: ``pool`` and ``total`` of jobs that name none; the other clocks are those of the adapter at work.
    :param retry: how refused jobs are tried again, on another replica where there is one.
    :param breaker: a :class:`BreakerPolicy`, or a mapping of its fields.
    :param observers: told of every job.
    :param runtime: time and chance; simulations pass their own.
    :raises InvalidRequest: naming the option.
    """

    def __init__(
        self,
        *,
        max_workers: int = 64,
        policy: str = "off",
        timeouts: Timeouts | Mapping[str, Any] | None = None,
        retry: RetryPolicy | dict[str, Any] | None = None,
        breaker: BreakerPolicy | dict[str, Any] | None = None,
        observers: Iterable[Observer] = (),
        runtime: Runtime | None = None,
    ) -> None:
        check_count("max_workers", max_workers, 1)
        if policy not in POLICIES:
            raise invalid("policy", f"want one of {', '.join(POLICIES)}")
        self._policy = policy
        self._timeouts: Timeouts = Timeouts() | checked(timeouts)
        self._retry = RetryPolicy.of(retry)
        self._breaker = BreakerPolicy.of(breaker)
        self._runtime = runtime or Runtime()
        self._narrator = Narrator(list(observers))
        self._workers = Workers(max_workers)
        self._pools: dict[str, Pool] = {}
        self._jobs = JobRegistry()
        self._infos: dict[JobState, JobInfo] = {}
        self._closed = False
        _hosts.add(self)

    @classmethod
    def from_config(cls, config: Mapping[str, Any] | str | Path, **more: Any) -> AdapterHost:
        """The host that a mapping or a TOML file describes; nothing is asked, adapters are made when first needed.

        .. code-block:: toml

            max_workers = 64
            policy = "warn"

            [pools.chat.r0]
            engine = "llamacpp"
            url = "http://a:8081"
            residency = "gpu"
            timeouts = { first_token = 120 }

        :param more: options that no file can hold (``observers``, ``runtime``), or that go before the file's.
        :raises InvalidRequest: naming the key, and the known ones; or the file cannot be read.
        """
        options, bindings = read(config)
        host = cls(**{**options, **more})
        for pool, name, make, binding in bindings:
            at(f"pools.{pool}.{name}", partial(host.bind, pool, name, make, **binding))
        return host

    # --- replicas

    def bind(
        self,
        pool: str,
        replica: str,
        adapter: AdapterLike,
        *,
        residency: str | None = None,
        max_in_flight: int | None = None,
    ) -> None:
        """Put an adapter into a pool, which is made if there is none of that name.

        :param adapter: an adapter, or a function that makes it when the first job comes.
        :param residency: where its weights are, if the engine does not tell: gpu, partial, cpu.
        :param max_in_flight: jobs at once; further ones wait, at most ``timeouts.pool``.
        :raises InvalidRequest: the name is taken, or naming an option.
        """
        made = self._replica(pool, replica, adapter, residency, max_in_flight)
        self._pools.setdefault(pool, self._pool(pool)).bind(made, replace=False)

    def rebind(
        self,
        pool: str,
        replica: str,
        adapter: AdapterLike,
        *,
        residency: str | None = None,
        max_in_flight: int | None = None,
    ) -> None:
        """Put another adapter in a replica's place. Jobs that run end where they started.

        :raises InvalidRequest: there is no such replica, or naming an option.
        """
        made = self._replica(pool, replica, adapter, residency, max_in_flight)
        self._find(pool).bind(made, replace=True)

    def unbind(self, pool: str, replica: str, *, drain: bool = True, timeout: float | None = 30.0) -> bool:
        """Take a replica out: no new jobs from now on.

        :param drain: wait for its jobs to end; False cancels them.
        :param timeout: seconds to wait; jobs that still run then are cancelled. None: as long as it takes.
        :returns: True if every job ended by itself.
        :raises InvalidRequest: there is no such replica.
        """
        check_seconds("timeout", timeout)
        leaving = self._find(pool).unbind(replica)
        if drain and self._wait(lambda: _over(leaving.jobs), timeout):
            return True
        return not [job for job in tuple(leaving.jobs) if job.cancel()]

    def _replica(
        self, pool: str, name: str, adapter: AdapterLike, residency: str | None, max_in_flight: int | None
    ) -> Replica:
        names: dict[str, Any] = {"pool": pool, "replica": name}
        for field, value in names.items():
            if not isinstance(value, str) or not value:
                raise invalid(field, "want a name")
        if self._closed:
            raise invalid("host", "is closed")
        return Replica(pool, name, adapter, residency=residency, max_in_flight=max_in_flight, breaker=self._breaker)

    def _pool(self, name: str) -> Pool:
        return Pool(name, self._runtime, self._retry, self._policy, log.warning)

    def _find(self, pool: str) -> Pool:
        found = self._pools.get(pool)
        if found is None:
            raise invalid("pool", f"there is no {pool!r}; there are {', '.join(sorted(self._pools)) or 'none'}")
        return found

    # --- jobs

    def submit(self, task: TaskLike, *, pool: str, replica: str | None = None, **fields: Any) -> TokenStream:
        """A stream pulled in the caller's own thread. Validates and returns at once, without I/O.

        :param replica: go there or nowhere.
        :param fields: replace fields of the task.
        :raises InvalidRequest: unknown pool or replica, or a task that no replica there can do, naming the field.
        """
        return self._stream(task, pool, replica, fields)[0]

    def _stream(
        self, task: TaskLike, pool: str, replica: str | None, fields: dict[str, Any]
    ) -> tuple[TokenStream, JobState]:
        made = TaskRequest.of(task, **fields)
        state = JobState(made.job_id or new_job_id())
        found = self._find(pool)
        ticket = Ticket(made, state, replica)
        found.check(ticket)
        if not self._jobs.add(state):
            raise invalid("job_id", f"a job {state.job_id} is in flight")
        if self._closed:  # asked after it is registered: else a close that runs just now would miss it
            self._jobs.discard(state)
            raise invalid("host", "is closed")
        info = JobInfo(
            state.job_id, pool, made.priority, self._runtime.monotonic(), made.session_id, made.correlation_id
        )
        self._infos[state] = info
        limits = Limits(self._timeouts | made.timeouts)
        stream = TokenStream(
            Plan(
                job=state,
                engine=None,
                place=f"pool {pool!r}",
                attempt=partial(attempt, found, ticket, info, limits),
                timeouts=limits,
                retries=lambda: FailoverRetries(ticket, found, self._retry, self._runtime),
                budget=found.budget,
                runtime=self._runtime,
                release=self._release,
                watch=Watched(self._narrator, info, found, ticket),
            )
        )
        self._narrator.submitted(info)
        return stream, state

    def _release(self, state: JobState) -> None:
        self._jobs.discard(state)
        self._infos.pop(state, None)

    def dispatch(
        self, task: TaskLike, *, pool: str, replica: str | None = None, stream: bool = False, **fields: Any
    ) -> Job:
        """Start a job on one of the host's threads, as soon as one is free.

        :param stream: keep the frames, for one reader that iterates the job; a slow one slows the engine.
        :raises InvalidRequest: as ``submit``.
        """
        tokens, state = self._stream(task, pool, replica, fields)
        run = Run(tokens, FrameBuffer() if stream else None)
        job = Job(tokens.job_id, pool, state, run)
        if not state.attach(run.wake):
            run.wake()
        self._workers.submit(run.run)
        return job

    def map(
        self,
        tasks: Iterable[TaskLike],
        *,
        pool: str,
        replica: str | None = None,
        window: int = 128,
        ordered: bool = True,
        **fields: Any,
    ) -> Iterator[Job]:
        """Finished jobs of any number of tasks, ``window`` of them at once. One that fails stops nothing.

        Tasks are drawn as jobs are taken, so memory is that of the window. An invalid task is a failed Job. Closing the
        iterator cancels what runs.

        :param ordered: in the order of the tasks; False: as they end.
        :raises InvalidRequest: naming ``window``, ``pool`` or ``replica``.
        """
        check_count("window", window, 1)
        self._find(pool)
        begin = partial(self._started, pool=pool, replica=replica, fields=fields)
        return (in_order if ordered else as_they_end)(iter(tasks), begin, window)

    def _started(self, task: TaskLike, pool: str, replica: str | None, fields: dict[str, Any]) -> Job:
        try:
            return self.dispatch(task, pool=pool, replica=replica, **fields)
        except InvalidRequest as error:
            job = Job(error.job_id or new_job_id(), pool)
            job.end(error.with_traceback(None))  # whose frames hold the job
            return job

    # --- cancel and see

    def cancel(self, job_id: str) -> bool:
        """True if this call cancelled a job in flight. From any thread or signal handler; never blocks on I/O."""
        return self._jobs.cancel(job_id)

    def cancel_all(self, *, pool: str | None = None, session_id: str | None = None) -> int:
        """Cancel every job, or those of a pool or of a session; how many this call cancelled."""
        count = 0
        for job in list(self._infos):
            info = self._infos.get(job)
            if info is not None and pool in (None, info.pool) and session_id in (None, info.session_id):
                count += job.cancel()
        return count

    def jobs(self) -> list[JobInfo]:
        """The jobs in flight: submitted, not ended."""
        return list(self._infos.values())

    def props(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Pool -> replica -> what is known of it: breaker, jobs, health, residency. No I/O: ``look`` asks."""
        now = self._runtime.monotonic()
        pools = list(self._pools.items())  # others may bind meanwhile
        return {name: {replica.name: replica.told(now) for replica in pool.replicas} for name, pool in pools}

    def look(self, timeout: float = 2.0) -> dict[str, dict[str, dict[str, Any]]]:
        """Ask every engine how it is, all at once, and give what is then known, as ``props`` does. Never raises for it.

        :param timeout: seconds for each health check, and again for what is asked after it; later answers still count.
        """
        check_seconds("timeout", timeout, optional=False)
        deadline = self._runtime.monotonic() + 2 * timeout
        for thread in [thread for pool in list(self._pools.values()) for thread in pool.look(timeout)]:
            thread.join(max(0.0, deadline - self._runtime.monotonic()))
        return self.props()

    # --- ending

    def close(self, *, drain: bool = False, timeout: float = 5.0) -> None:
        """End: cancel every job, or with ``drain`` wait for them first. Adapters that were bound are closed.

        :param timeout: seconds to wait for jobs to end.
        """
        check_seconds("timeout", timeout, optional=False)
        self._closed = True
        if not drain or not self._wait(lambda: _over(self._infos), timeout):
            self.cancel_all()
        for pool in self._pools.values():
            for replica in pool.replicas:
                replica.close()

    def _wait(self, over: Callable[[], bool], timeout: float | None) -> bool:
        """Until ``over``, or so many seconds have passed."""
        state = JobState(new_job_id())
        deadline = None if timeout is None else self._runtime.monotonic() + timeout
        while not over():
            if deadline is not None and self._runtime.monotonic() >= deadline:
                return False
            self._runtime.sleep(DRAIN_LOOK, state.wake)
        return True

    def __enter__(self) -> AdapterHost:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        pools = ", ".join(f"{name} ({len(pool.replicas)})" for name, pool in self._pools.items())
        return f"<AdapterHost: {pools or 'no pool'}; {len(self._infos)} jobs in flight>"

    def _reset(self) -> None:
        self._infos.clear()
        self._workers.reset()
        for pool in self._pools.values():
            pool.reset()


def _over(jobs: Collection[JobState]) -> bool:
    """Has each ended, or been cancelled? Who reads a cancelled one may never come for its end."""
    return all(job.cancelled or job.ended for job in tuple(jobs))


_hosts: weakref.WeakSet[AdapterHost] = weakref.WeakSet()


def _reset_all() -> None:
    for host in list(_hosts):
        host._reset()


if hasattr(os, "register_at_fork"):  # not on Windows, which cannot fork
    os.register_at_fork(after_in_child=_reset_all)
