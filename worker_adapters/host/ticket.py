"""Ticket: a job on its way to a replica: what it may use, what it has tried, and what became of it."""

from __future__ import annotations

from worker_adapters.cancel import Job
from worker_adapters.errors import InvalidRequest, WorkerError, invalid
from worker_adapters.frames import ErrorFrame
from worker_adapters.host.replica import Replica
from worker_adapters.task import TaskRequest


class Ticket:
    """A job that wants a place.

    :ivar tasks: the task as each replica's adapter would send it; ``unable``: those that cannot.
    :ivar granted: the replica that has a place for it, until it comes for it; ``place``: where it was last.
    :ivar clock: which one ended its try, if one did.
    :ivar trial: is it the one job that a half-open breaker lets through?
    """

    __slots__ = (
        "batch", "clock", "granted", "job", "pin", "place", "refusal", "task", "tasks", "trial", "tried", "unable",
    )  # fmt: skip

    def __init__(self, task: TaskRequest, job: Job, pin: str | None) -> None:
        self.task = task
        self.job = job
        self.pin = pin
        self.batch = task.priority == "batch"
        self.tried: set[Replica] = set()
        self.tasks: dict[Replica, TaskRequest] = {}
        self.unable: dict[Replica, InvalidRequest] = {}
        self.granted: Replica | None = None
        self.place: Replica | None = None
        self.refusal: WorkerError | None = None
        self.trial = False
        self.clock: str | None = None

    def fits(self, replica: Replica) -> bool:
        """Does the replica's adapter take the task, with every field? Asked once of each."""
        if replica in self.tasks:
            return True
        if replica not in self.unable:
            try:
                self.tasks[replica] = replica.adapter.check(self.task)
            except InvalidRequest as error:
                self.unable[replica] = error.with_traceback(None)  # whose frames hold this ticket
            except Exception as error:  # noqa: BLE001 - the function that makes it may raise anything
                self.unable[replica] = invalid("adapter", f"{replica.label} has none: {type(error).__name__}")
        return replica not in self.unable

    def inability(self) -> WorkerError:
        """Why no replica takes the task: a fresh error, since a raised one holds the frames that hold this ticket."""
        return ErrorFrame.from_exception(next(iter(self.unable.values()))).to_exception()
