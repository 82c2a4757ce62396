"""Job: a dispatched job as a Future of its Completion, and the frames of one that keeps them."""

from __future__ import annotations

import _thread
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from typing import cast

from worker_adapters.cancel import Job as JobState
from worker_adapters.errors import EngineUnavailable, InvalidRequest
from worker_adapters.frames import AnyFrame, EndFrame, ErrorFrame
from worker_adapters.host.buffer import FrameBuffer
from worker_adapters.report import Completion
from worker_adapters.stream import TokenStream
from worker_adapters.timeouts import check_seconds


class Run:
    """A job at work: what threads and cancels hold. Where frames are kept it does not hold the Job itself, so that one
    which nobody holds any more, and whose frames therefore nobody can read, is cancelled instead of blocking a thread.
    """

    def __init__(self, stream: TokenStream, buffer: FrameBuffer | None) -> None:
        self._stream: TokenStream | None = stream
        self.buffer = buffer
        self._once = threading.Lock()  # never waited for: whoever gets it runs the job, or ends it unrun
        self._job: weakref.ref[Job] | None = None
        self._held: Job | None = None

    def of(self, job: Job) -> None:
        """Whose end this is."""
        self._job = weakref.ref(job, self._dropped)
        self._held = job if self.buffer is None else None

    @property
    def begun(self) -> bool:
        """Is, or was, a thread at work on it?"""
        return self._once.locked()

    def wake(self) -> None:
        """What a cancel does here, also one by id: end the job if no thread has it yet, and free one that waits.

        The thread for it is the plainest there is: this may be a signal handler, and its start waits for nothing.
        """
        if self.buffer is not None:
            self.buffer.close()
        if not self.begun:
            with suppress(RuntimeError):  # no more threads, or the interpreter ends: a worker will come to it
                _thread.start_new_thread(self._apart, ())

    def _apart(self) -> None:
        """Run on a thread that ``threading`` knows; it would keep its own note of the plain one for ever."""
        with suppress(RuntimeError):
            threading.Thread(target=self.run, name="worker-adapters-cancel", daemon=True).start()

    def _dropped(self, _: object, ends: Callable[[], bool] = sys.is_finalizing) -> None:
        stream = self._stream
        if stream is not None and not ends():  # then a thread that is no more may hold the job's lock
            stream.cancel()

    def run(self) -> None:
        """Drive the job to its end, unless another thread does."""
        stream = self._stream
        if stream is None or not self._once.acquire(blocking=False):
            return
        outcome: Completion | BaseException
        try:
            outcome = self._driven(stream)
        except BaseException as error:  # noqa: BLE001 - whatever it is, who waits for the result gets it
            outcome = error
        job = self._job() if self._job is not None else None
        self._stream = self._held = None
        try:
            if job is not None:
                job.end(outcome)
        finally:
            if self.buffer is not None:
                self.buffer.close()
            del job, outcome  # else error -> traceback -> this frame -> error is a cycle
            stream.close()

    def _driven(self, stream: TokenStream) -> Completion:
        for batch in stream.batches():
            if self.buffer is not None:
                self.buffer.put(batch)
            if stream.cancelled and type(batch[-1]) is EndFrame:
                break  # to tell an engine so takes time, and whoever cancelled need not wait for that
        return stream.completion()


class Job(Future[Completion]):
    """A job on one of the host's threads. ``result()`` is its Completion, or raises its typed error.

    A real Future: ``as_completed``, ``wait``, ``add_done_callback``. ``cancel()`` works in every state; a cancelled
    job's ``cancelled()`` is True and its ``result()`` the partial Completion. One that was dispatched with
    ``stream=True`` is an iterator of its frames, for one reader; ``ticks`` gives heartbeats. If that one is dropped
    before its end, it is cancelled: nobody could read it.

    :ivar job_id: the task's, or the one that was made for it.
    :ivar pool: where it was dispatched.
    """

    def __init__(self, job_id: str, pool: str, mark: JobState | None = None, run: Run | None = None) -> None:
        super().__init__()
        self.job_id = job_id
        self.pool = pool
        self._mark = mark
        self._run = run
        self._ready: deque[AnyFrame] = deque()
        self._told = False  # was the reader given the end?
        if run is not None:
            run.of(self)

    # --- as a Future

    def cancel(self) -> bool:
        """True unless the job had ended already. From any thread or signal handler; never waits."""
        return self._mark is not None and (self._mark.cancel() or self.cancelled())

    def cancelled(self) -> bool:
        """Did a cancel end it?"""
        mark = self._mark
        return mark is not None and mark.cancelled and not mark.inherited

    def running(self) -> bool:
        """Is a thread at work on it?"""
        return self._run is not None and self._run.begun and not self.done()

    def result(self, timeout: float | None = None) -> Completion:
        """The whole answer; a cancelled job's is partial.

        :raises WorkerError: the job's; or this is a forked child, and the job its parent's.
        :raises TimeoutError: it has not ended within ``timeout`` seconds.
        """
        self._ours()
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """The job's error, or None. Raises as ``result`` where there is no knowing."""
        self._ours()
        return super().exception(timeout)

    def _ours(self) -> None:
        if self._mark is not None and self._mark.inherited:
            message = "this job was dispatched before a fork and belongs to the parent process; dispatch a new one here"
            raise EngineUnavailable(message=message, job_id=self.job_id, phase="stream")

    def end(self, outcome: Completion | BaseException) -> None:
        """It has ended, so or so."""
        if isinstance(outcome, BaseException):
            self.set_exception(outcome)
        else:
            self.set_result(outcome)
        del outcome  # else error -> traceback -> frames -> error is a cycle

    # --- as an iterator of frames

    def __iter__(self) -> Iterator[AnyFrame]:
        """The frames up to the end; the job's error is raised where it came.

        :raises InvalidRequest: the job was not dispatched with ``stream=True``.
        """
        return cast("Iterator[AnyFrame]", self._frames(None))  # which without a tick never gives None

    def ticks(self, every: float = 5.0) -> Iterator[AnyFrame | None]:
        """The frames, and None whenever none came for ``every`` seconds.

        :raises InvalidRequest: as for iterating; or ``every`` is no positive number.
        """
        check_seconds("every", every, optional=False)
        return self._frames(every)

    def relay(self, every: float | None = None) -> Iterator[AnyFrame | None]:
        """The same; never raises for what the job does: an error comes as a last ``error`` frame."""
        check_seconds("every", every)
        return self._relayed(every)

    def _relayed(self, every: float | None) -> Iterator[AnyFrame | None]:
        try:
            yield from self._frames(every)
        except Exception as error:  # noqa: BLE001 - the promise of this method
            yield ErrorFrame.from_exception(error)

    def _frames(self, every: float | None) -> Iterator[AnyFrame | None]:
        buffer = None if self._run is None else self._run.buffer
        mark = self._mark
        if buffer is None or mark is None:
            message = "this job keeps no frames: dispatch it with stream=True"
            raise InvalidRequest(message=message, field="stream", job_id=self.job_id)
        ready = self._ready
        while not self._told:
            if mark.cancelled:
                self._ours()
                ready.clear()  # no token after a cancel
            if ready:
                frame = ready.popleft()
                self._told = type(frame) is EndFrame
                yield frame
                continue
            batch = buffer.take(every)
            if batch is None:
                self._told = True
                yield self._last()
            elif batch:
                ready.extend(batch)
            else:
                yield None

    def _last(self) -> EndFrame:
        """The end that a cancel made, or the job's error."""
        done = self.result()
        return EndFrame(done.finish_reason, done.raw_finish_reason, done.metrics, done.tool_calls)

    def __repr__(self) -> str:
        state = "running" if self.running() else "waiting"
        if self.done():
            state = "cancelled" if self.cancelled() else "ended"
        return f"<Job {self.job_id} in pool {self.pool}: {state}>"
