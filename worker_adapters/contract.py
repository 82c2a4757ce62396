"""The contract: five methods and ``close``. Everything a host, a view or a script needs to know of an engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar

from worker_adapters.cancel import Job
from worker_adapters.frames import AnyFrame
from worker_adapters.report import Capabilities, EngineProps, HealthStatus
from worker_adapters.task import TaskLike, TaskRequest
from worker_adapters.timeouts import Timeouts

if TYPE_CHECKING:
    from worker_adapters.stream import TokenStream

Block = Callable[[float | None], bool]


class Wait:
    """What an attempt waits for. Whoever drives it decides how long, and what else may happen meanwhile.

    :ivar phase: the clock that runs: ``connect``, ``first_token``, ``between_tokens``, or ``""`` for none.
    :ivar block: waits at most so many seconds (None: without end); False if nothing came. A cancel of the job wakes it.
    :ivar until: a time (Runtime.monotonic) at which the attempt wants to go on in any case, or None.
    """

    __slots__ = ("block", "phase", "until")

    def __init__(self, phase: str, block: Block, until: float | None = None) -> None:
        self.phase = phase
        self.block = block
        self.until = until


#: One try at a job, pulled step by step: batches of frames, and waits in between. It never retries, and closing the
#: generator frees whatever it holds. The frames' times and the order of the whole are the driver's (stream.py).
Step = list[AnyFrame] | Wait
Attempt = Generator[Step, None, None]


class WorkerAdapter(ABC):
    """One engine behind one blocking contract. Shared between threads; survives ``fork``; pickles by configuration.

    A subclass that speaks HTTP derives from ``HttpAdapter`` instead and gets the submit loop for nothing.
    """

    #: Catalog name, as in every frame, error and log line.
    engine: ClassVar[str] = ""
    #: What it can do; hosts and tools branch on these, never on its name.
    capabilities: Capabilities = Capabilities()

    @abstractmethod
    def submit(self, task: TaskLike, **fields: Any) -> TokenStream:
        """Validate, register, return at once without I/O.

        :param task: a TaskRequest, a prompt string, or a list of messages.
        :param fields: replace fields of the task.
        :raises InvalidRequest: naming the field; nothing else.
        """

    @abstractmethod
    def cancel(self, job_id: str) -> bool:
        """True if this call cancelled a job in flight (submitted, not ended).

        From any thread or signal handler; never blocks on I/O. No ``next()`` that begins after it returned yields a
        token.
        """

    @abstractmethod
    def health(self, *, probe: bool = False, timeout: float = 2.0) -> HealthStatus:
        """One look, within ``timeout`` seconds. Never raises for what the engine does.

        :param probe: also generate one token, because engines say 200 while they cannot generate.
        """

    @abstractmethod
    def props(self) -> EngineProps:
        """What the engine says of itself.

        :raises WorkerError: the engine is down or refuses us.
        """

    @abstractmethod
    def engine_version(self) -> str:
        """As the engine tells it; ``"unknown"`` if it does not.

        :raises WorkerError: the engine is down or refuses us.
        """

    def close(self) -> None:  # noqa: B027 - not every engine holds anything
        """Free idle connections. Streams in flight go on; idempotent."""

    def check(self, task: TaskRequest) -> TaskRequest:
        """The task as this engine would get it, with the adapter's defaults. No I/O; what ``submit`` does first.

        :raises InvalidRequest: naming the field that the engine has no equivalent for.
        """
        return task

    def timeouts_of(self, task: TaskRequest) -> Timeouts:
        """The clocks of a job here: the adapter's, changed by the task's."""
        changed: Timeouts = Timeouts() | task.timeouts
        return changed

    def attempt(self, task: TaskRequest, job: Job) -> Attempt:
        """One try, no retries, no pool wait: what ``submit`` and a host drive.

        This default drives a hand-written ``submit`` as one try: it waits inside ``submit``'s own iterator, so ticks
        come only between its frames.
        """
        stream = self.submit(task, job_id=job.job_id)
        try:
            if not job.attach(stream.cancel):
                return
            for frame in stream:
                yield [frame]
        finally:
            job.detach(stream.cancel)
            stream.close()

    def __enter__(self) -> WorkerAdapter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
