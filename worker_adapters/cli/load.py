"""The load of a benchmark: so many jobs, so many at a time, each read in a thread of its own."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator

from worker_adapters.cli.figures import Figures, Measured
from worker_adapters.errors import WorkerError
from worker_adapters.frames import EndFrame, StartedFrame
from worker_adapters.stream import TokenStream

#: Seconds between two looks at how it goes.
LOOK = 0.1
#: How long readers have to see that their jobs were cancelled, in seconds, all together.
FAREWELL = 0.5

Submit = Callable[[int], TokenStream]


class Load:
    """A closed loop: each of ``concurrency`` readers sends its next job when its last one has ended.

    :param submit: gives the stream of the n-th job.
    """

    def __init__(self, submit: Submit, jobs: int, concurrency: int) -> None:
        self.jobs = jobs
        self.concurrency = concurrency
        self.cancelled = False
        #: Seconds of CPU that this process took for it.
        self.cpu = 0.0
        self.figures = Figures(time.perf_counter())
        numbers = iter(range(jobs))
        self._readers = [_Reader(self, submit, numbers) for _ in range(min(jobs, concurrency))]

    def run(self) -> Iterator[None]:
        """Run them all, in the background; yields again and again until they have ended, or were cancelled."""
        self.figures = Figures(time.perf_counter())
        cpu, deadline = time.process_time(), math.inf
        for reader in self._readers:
            reader.thread.start()
        for reader in self._readers:
            while reader.thread.is_alive() and time.monotonic() < deadline:
                reader.thread.join(LOOK)
                yield
                if self.cancelled:
                    deadline = min(deadline, time.monotonic() + FAREWELL)
        self.figures.close()
        self.cpu = time.process_time() - cpu

    def cancel(self) -> bool:
        """Cancel what runs, at the engine, and send no more. From a signal handler; never blocks."""
        self.cancelled = True
        for reader in self._readers:
            stream = reader.stream  # read once: its thread may be done with it between two looks
            if stream is not None:
                stream.cancel()
        return True

    @property
    def at_work(self) -> int:
        """Jobs that run."""
        return sum(reader.stream is not None for reader in self._readers)

    @property
    def arrived(self) -> int:
        """Frames with content that came so far."""
        return sum(reader.arrived for reader in self._readers)


class _Reader:
    """A thread that reads one job after another."""

    def __init__(self, load: Load, submit: Submit, numbers: Iterator[int]) -> None:
        self._load = load
        self._submit = submit
        self._numbers = numbers
        self.stream: TokenStream | None = None
        self.arrived = 0
        self.thread = threading.Thread(target=self._run, name="worker-adapters-bench", daemon=True)

    def _run(self) -> None:
        for number in self._numbers:
            if self._load.cancelled:
                return
            job = Measured(time.perf_counter())
            try:
                self._read(number, job)
            except WorkerError as error:
                job.error, job.ended = error, time.perf_counter()
            self.stream = None
            self._load.figures.add(job)

    def _read(self, number: int, job: Measured) -> None:
        clock = time.perf_counter
        with self._submit(number) as stream:
            self.stream = stream
            if self._load.cancelled:  # a moment ago: the cancel may not have seen this stream
                stream.cancel()
            for frame in stream:
                if isinstance(frame, StartedFrame):
                    job.started = frame
                elif isinstance(frame, EndFrame):
                    job.end, job.ended = frame, clock()
                else:
                    job.arrivals.append(clock())
                    self.arrived += 1
