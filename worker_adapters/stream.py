"""TokenStream: pulls an attempt in the caller's own thread, and is the only place where clocks fire, refused jobs are
tried again, cancels turn into ends, and the order of frames is guarded.

An attempt is a generator of batches and waits (contract.Step). Nothing it holds refers back to the stream, so dropping
the stream frees everything at once, by reference count alone.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import replace
from types import TracebackType

import msgspec

from worker_adapters.contract import Step
from worker_adapters.driver import Driver
from worker_adapters.errors import EngineUnavailable, InvalidRequest, StreamTruncated, UnknownError, WorkerError
from worker_adapters.frames import AnyFrame, EndFrame, ErrorFrame, Metrics, StartedFrame, TokenFrame
from worker_adapters.plan import Plan, tries
from worker_adapters.report import Completion
from worker_adapters.tally import Tally
from worker_adapters.timeouts import check_seconds

log = logging.getLogger("worker_adapters.stream")


class TokenStream:
    """The frames of one job: an iterator and a context manager, pulled in the caller's own thread.

    Made by ``submit``; nothing is sent before the first ``next()``, ``start()``, ``result()``, ``texts()``, ``ticks()``
    or ``relay()``. One thread reads; any thread may ``cancel``. ``with`` sends nothing, it guarantees ``close()``.
    Dropping a stream closes it; a stream dropped unstarted gives a ResourceWarning, since its job was never sent.

    :ivar job_id: the task's, or the one that was made for it.
    :raises WorkerError: from ``next()``, with ``tokens_seen`` and ``partial_text``.
    """

    __slots__ = (
        "__weakref__", "_began", "_closed", "_deadline", "_driver", "_driving", "_end", "_ended", "_failed", "_now",
        "_owed", "_plan", "_reading", "_ready", "_steps", "_tally", "job_id",
    )  # fmt: skip

    def __init__(self, plan: Plan) -> None:
        self.job_id = plan.job.job_id
        self._plan = plan
        self._now = plan.runtime.monotonic
        self._tally = Tally()
        self._driver = Driver(plan)
        self._ready: deque[AnyFrame] = deque()
        self._steps: Generator[Step, None, None] | None = None
        self._reading = threading.RLock()  # never waited for: it only tells a second reader that it is one
        self._began: float | None = None
        self._deadline: float | None = None
        self._end: EndFrame | None = None  # decoded, not yet delivered
        self._ended: EndFrame | None = None  # delivered
        self._failed: ErrorFrame | None = None
        self._closed = False
        self._driving = False  # is a thread inside the driver?
        self._owed = False  # closed after a cancel, whose end nobody was given: ``result`` makes it

    # --- reading

    def __iter__(self) -> TokenStream:
        return self

    def __next__(self) -> AnyFrame:
        ready = self._ready
        if ready and self._deadline is None and not self._plan.job.cancelled:
            return ready.popleft()
        frame = self._next(None)
        if frame is None:
            raise StopIteration  # cannot be: without a tick, _next waits
        return frame

    @property
    def started(self) -> StartedFrame | None:
        """The started frame if the engine has accepted the job, else None. No I/O."""
        return self._tally.started

    def start(self) -> None:
        """Send the task and wait until the engine has accepted it. A second call, or one on a cancelled job, returns.

        :raises WorkerError: the engine refused, now or at an earlier call; everything is freed.
        """
        if self._failed is not None and self._tally.started is None:
            raise self._failed.to_exception()
        while self._live() and self._tally.started is None and self._end is None:
            self._fill(None)
        if self._closed:
            self._free()

    def batches(self) -> Iterator[list[AnyFrame]]:
        """The frames, in lists of those that are there together: for who passes them on."""
        for frame in self:
            batch = [frame]
            if self._ready and self._deadline is None and not self._plan.job.cancelled:
                batch += self._ready
                self._ready.clear()
            yield batch

    def texts(self) -> Iterator[str]:
        """The answer's text, piece by piece: no reasoning, no tool calls."""
        yield from (frame.text for frame in self if type(frame) is TokenFrame)

    def ticks(self, every: float = 5.0) -> Iterator[AnyFrame | None]:
        """The frames, and None whenever nothing came for ``every`` seconds: also while connecting, queued, in prefill.

        Heartbeats without a thread. A tick restarts no clock.

        :raises InvalidRequest: ``every`` is no positive number.
        """
        check_seconds("every", every, optional=False)
        return self._ticking(every)

    def _ticking(self, every: float) -> Iterator[AnyFrame | None]:
        while True:
            try:
                frame = self._next(every)
            except StopIteration:
                return
            yield frame

    def relay(self, every: float | None = None) -> Iterator[AnyFrame | None]:
        """The frames; never raises: an error comes as a last ``error`` frame. Closes the stream at its end.

        :param every: also yield None whenever nothing came for so many seconds, as ``ticks`` does.
        :raises InvalidRequest: ``every`` is no positive number; at the call, not while iterating.
        """
        check_seconds("every", every)
        return self._relaying(every)

    def _relaying(self, every: float | None) -> Iterator[AnyFrame | None]:
        try:
            while True:
                try:
                    frame = self._next(every)
                except StopIteration:
                    return
                except Exception as error:  # noqa: BLE001 - the promise of this method
                    last = ErrorFrame.from_exception(error)
                    break
                yield frame
            yield last
        finally:
            self.close()

    def result(self) -> Completion:
        """Read to the end; the whole answer, also of what was read before. A cancelled job's is partial.

        :raises WorkerError: the job failed (again, if it failed before), or was closed before its end.
        """
        deque(self, maxlen=0)
        return self.completion()

    def completion(self) -> Completion:
        """``result`` of a stream whose end was delivered, without reading on: what is still to be freed can wait."""
        if self._owed and self._ended is None:
            self._deliver_cancelled()
        if self._failed is not None:
            raise self._failed.to_exception()
        if self._ended is None:
            raise UnknownError(message="the stream was closed before its end", job_id=self.job_id, phase="stream")
        return self._tally.completion(self._ended, self.job_id)

    # --- ending

    @property
    def cancelled(self) -> bool:
        """Was the job cancelled?"""
        return self._plan.job.cancelled

    def cancel(self) -> bool:
        """True if this call cancelled the job; from any thread or signal handler. The reader gets ``end``/cancelled."""
        return self._plan.job.cancel()

    def close(self) -> None:
        """Free everything; an unfinished job is cancelled at the engine. Idempotent; no frames come after it."""
        if not self._closed:
            self._owed = self._live_but_cancelled()
            ours = self._ended is None and not self._plan.job.inherited
            self._closed = True
            if ours:
                self._plan.job.cancel()
            if ours and self._failed is None:
                self._plan.watch.ended(self._left())
        self._free()  # also a second time: the first may have had to leave it to a reader

    def _left(self) -> EndFrame:
        """The end of a job that was left: nobody is given it."""
        if not self._reading.acquire(blocking=False):
            return EndFrame("cancelled", None, Metrics(), ())  # a reader is inside, and counts
        try:
            return self._cancelled_end()
        finally:
            self._reading.release()

    def _free(self) -> None:
        if not self._reading.acquire(blocking=False):
            return  # a reader is inside; the cancel woke it, and it frees everything on its way out
        try:
            steps = self._steps
            if self._driving:
                return  # so is this very thread, below a signal handler; its wait may not lose its socket
            self._steps = None
            if steps is not None:
                steps.close()
            self._plan.release(self._plan.job)
        finally:
            self._reading.release()

    def __enter__(self) -> TokenStream:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        try:
            unstarted = self._began is None and not self._closed and not self._plan.job.cancelled
        except AttributeError:  # __init__ failed
            return
        self.close()
        if unstarted:
            warnings.warn(
                f"job {self.job_id} was submitted but never read: a TokenStream sends nothing until its first next(), "
                "start() or result(); iterate it, or close it",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )

    def __repr__(self) -> str:
        state = "closed" if self._closed else "started" if self.started else "waiting"
        if self._failed is not None:
            state = f"failed ({self._failed.code})"
        elif self._ended is not None or self._plan.job.cancelled:
            state = "cancelled" if self._plan.job.cancelled else "ended"
        return f"<TokenStream job {self.job_id} on {self._plan.engine}: {state}, {self._tally.content} frames>"

    def __reduce__(self) -> str:
        raise TypeError("a TokenStream holds a live connection and cannot be pickled; pickle its frames or result()")

    # --- the machine

    def _live(self) -> bool:
        """Is there more to come? Also where a forked child is told that the stream is its parent's."""
        if self._plan.job.inherited:
            raise EngineUnavailable(
                message="this stream was begun before a fork and belongs to the parent process; submit a new job here",
                job_id=self.job_id,
                engine=self._plan.engine,
                phase="stream",
            )
        return not (self._closed or self._failed is not None or self._ended is not None or self._plan.job.cancelled)

    def _live_but_cancelled(self) -> bool:
        """Is the end that a cancel makes still to be delivered?"""
        job = self._plan.job
        unended = self._ended is None and self._failed is None and not self._closed
        return job.cancelled and unended and not job.inherited

    def _next(self, tick: float | None) -> AnyFrame | None:
        """The next frame; None if none came within ``tick`` seconds."""
        while self._live():
            if self._end is not None and not self._ready:
                return self._deliver_end(self._end)  # also if it is late: the answer is whole
            if self._deadline is not None and self._now() > self._deadline:
                self._fail(self._driver.timeout("total"))
                continue  # a cancel came first
            if self._ready:
                return self._ready.popleft()
            if self._fill(tick):
                if self._ready and self._deadline is None and not self._plan.job.cancelled:
                    return self._ready.popleft()
            elif self._live():
                return None
        if self._live_but_cancelled():
            return self._deliver_cancelled()
        self._free()  # the end was delivered: the connection may now go back to its pool
        raise StopIteration

    def _deliver_end(self, end: EndFrame) -> EndFrame:
        if not self._plan.job.finish():
            return self._deliver_cancelled()
        self._ended = end
        self._plan.release(self._plan.job)
        self._plan.watch.ended(end)
        log.debug("job %s: ended: %s, %d frames", self.job_id, end.finish_reason, self._tally.content)
        return end

    def _deliver_cancelled(self) -> EndFrame:
        """Whatever was decoded and not delivered is dropped; the end says what was delivered.

        The reader gets it at once: the cancel has shut the connection down, and the rest (an engine's abort route) is
        done at the following ``next()`` or ``close()``, as after a natural end.
        """
        self._ended = self._cancelled_end()
        if not self._owed:
            self._plan.watch.ended(self._ended)
        self._plan.release(self._plan.job)
        log.debug("job %s: cancelled after %d frames", self.job_id, self._tally.content)
        return self._ended

    def _cancelled_end(self) -> EndFrame:
        """The end that a cancel makes, of what was delivered."""
        self._tally.without(self._ready)
        self._ready.clear()
        told = Metrics() if self._end is None else replace(self._end.metrics, counts="counted", tokens_out=0)
        now = self._now()
        metrics = self._tally.metrics(told, now if self._began is None else self._began, now)
        return EndFrame("cancelled", None, metrics, self._tally.tool_calls())

    def _fill(self, tick: float | None) -> bool:
        """Drive until a batch has come; False if ``tick`` seconds passed first, or the job was cancelled."""
        steps = self._steps or self._begin()
        if not self._reading.acquire(False):
            if not self._live():
                return False  # another thread is freeing it
            message = "another thread is reading this stream: one thread reads, any thread may cancel"
            raise InvalidRequest(message=message, job_id=self.job_id, engine=self._plan.engine)
        try:
            self._driving = True
            try:
                batch = self._driver.pull(steps, tick)
            finally:
                self._driving = False
        except WorkerError as error:
            if not self._plan.job.cancelled:
                self._fail(error)
            batch = None
        except StopIteration:
            if not self._plan.job.cancelled:
                self._fail(StreamTruncated(message="the stream ended without the engine's reason", phase="stream"))
            batch = None
        except Exception as error:  # noqa: BLE001 - a third party's adapter may raise anything
            if not self._plan.job.cancelled:
                self._fail(UnknownError(message=f"the adapter failed with {type(error).__name__}"), error)
            batch = None
        except BaseException:
            self.close()
            raise
        finally:
            self._reading.release()
        return batch is not None and self._accept(batch)

    def _begin(self) -> Generator[Step, None, None]:
        log.debug("job %s: sending to %s", self.job_id, self._plan.place)
        self._began = self._now()
        self._deadline = self._driver.begin(self._began)
        self._steps = tries(self._plan, self._deadline)
        return self._steps

    def _accept(self, batch: list[AnyFrame]) -> bool:
        tally, now = self._tally, self._now()
        begun, first = tally.started, tally.first_at
        began = now if self._began is None else self._began
        if tally.add(batch, now):
            self._driver.waited = 0.0
        if begun is None and tally.started is not None:
            self._plan.watch.started(tally.started)
        if first is None and tally.first_at is not None:
            self._plan.watch.first_token((now - began) * 1000.0)
        if batch and (end := batch[-1]).type == "end":
            batch.pop()
            metrics = tally.metrics(end.metrics, began, now)
            self._end = msgspec.structs.replace(end, metrics=metrics, tool_calls=tally.tool_calls())
        self._ready.extend(batch)
        return True

    def _fail(self, error: WorkerError, cause: BaseException | None = None) -> None:
        """Free everything, then raise ``error`` with what the stream knows; unless a cancel came first, and won."""
        if not self._plan.job.finish():
            return
        self._tally.without(self._ready)
        self._ready.clear()
        error.engine = error.engine or getattr(self._tally.started, "engine", self._plan.engine)
        error.job_id = self.job_id
        error.tokens_seen = self._tally.content
        error.partial_text = "".join(self._tally.texts)
        if self._tally.content and error.phase != "end":
            error.phase = "stream"
        self._failed = ErrorFrame.from_exception(error)
        log.debug("job %s: failed: %s: %s", self.job_id, error.code, error.message)
        self._plan.watch.failed(error)
        self._free()
        try:
            raise error from (cause or error.__cause__)
        finally:
            del error, cause  # else error -> traceback -> this frame -> error is a cycle
