"""The figures of a benchmark: what any number of jobs did, in constant memory."""

from __future__ import annotations

import threading
from array import array
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise

from worker_adapters.cli.exits import explain
from worker_adapters.cli.histogram import Histogram, Timeline
from worker_adapters.errors import WorkerError
from worker_adapters.frames import EndFrame, StartedFrame


@dataclass
class Measured:
    """One job, as its reader saw it; times in seconds (``time.perf_counter``).

    :ivar began: before it was sent.
    :ivar arrivals: when each frame with content was there.
    :ivar ended: when its end or its error was.
    """

    began: float
    arrivals: array[float] = field(default_factory=lambda: array("d"))
    started: StartedFrame | None = None
    end: EndFrame | None = None
    error: WorkerError | None = None
    ended: float = 0.0


class Figures:
    """Adds up jobs; shared by their readers.

    A job that failed, or was cancelled, counts with the tokens that came, its first token and its gaps, not with its
    total time.

    :ivar first_token: milliseconds from before a job is sent to its first frame with content.
    :ivar gaps: milliseconds between two frames with content of one job; frames that one read brings are next to none
        apart.
    :ivar totals: milliseconds from before a job is sent to its end.
    :ivar rates: tokens/s of one stream, from its first token on.
    :ivar errors: code -> how many, and what the last one said.
    """

    def __init__(self, began: float) -> None:
        self.began = self.ended = began
        self.first_token, self.gaps, self.totals, self.rates = (Histogram() for _ in range(4))
        self.jobs = 0
        self.tokens = 0
        self._counted: set[str] = set()
        self.finish_reasons: Counter[str] = Counter()
        self.engines: Counter[tuple[str, str, str | None]] = Counter()
        self.errors: dict[str, tuple[int, WorkerError]] = {}
        self.arrivals, self.failures = Timeline(), Timeline()
        self._lock = threading.Lock()
        self._closed = False

    def close(self) -> None:
        """What comes from now on is too late."""
        with self._lock:
            self._closed = True

    def add(self, job: Measured) -> None:
        """Another job has ended."""
        with self._lock:
            if self._closed:
                return
            self.jobs += 1
            self.ended = max(self.ended, job.ended)
            if job.started is not None:
                self.engines[job.started.engine, job.started.engine_version, job.started.model] += 1
            self._add_times(job)
            if job.error is not None:
                self._add_error(job.error, job.ended)
            elif job.end is not None:
                self.finish_reasons[job.end.finish_reason] += 1
            self._add_tokens(job)

    def _add_times(self, job: Measured) -> None:
        if job.arrivals:
            self.first_token.add((job.arrivals[0] - job.began) * 1000.0)
        for one, following in pairwise(job.arrivals):
            self.gaps.add((following - one) * 1000.0)
        for at in job.arrivals:
            self.arrivals.add(at - self.began)

    def _add_error(self, error: WorkerError, at: float) -> None:
        count = self.errors[error.code][0] if error.code in self.errors else 0
        error.partial_text = ""
        self.errors[error.code] = count + 1, error.with_traceback(None)
        self.failures.add(at - self.began)

    def _add_tokens(self, job: Measured) -> None:
        """As the engine counts them, where it has said so at the end; else the frames."""
        if job.end is None or job.end.finish_reason == "cancelled":
            self.tokens += len(job.arrivals)
            self._counted |= {"counted"} if job.arrivals else set()
            return
        told = job.end.metrics
        self.tokens += told.tokens_out
        self._counted.add(told.counts)
        self.totals.add((job.ended - job.began) * 1000.0)
        if told.tokens_per_second is not None:
            self.rates.add(told.tokens_per_second)

    # --- what is told

    def glimpse(self) -> tuple[int, int, float | None]:
        """How many jobs have ended, how many failed, and the median time to the first token; while more come in."""
        with self._lock:
            return self.jobs, self.failed, self.first_token.percentile(50)

    @property
    def seconds(self) -> float:
        """From the first job's beginning to the last one's end."""
        return self.ended - self.began

    @property
    def failed(self) -> int:
        """Jobs that ended with an error."""
        return sum(count for count, _ in self.errors.values())

    @property
    def cancelled(self) -> int:
        """Jobs that Ctrl-C ended."""
        return self.finish_reasons["cancelled"]

    @property
    def completed(self) -> int:
        """Jobs that the engine ended."""
        return self.finish_reasons.total() - self.cancelled

    @property
    def counts(self) -> str:
        """How the tokens were counted: ``exact`` (by the engine), ``counted`` (the frames), or ``mixed``."""
        return "mixed" if len(self._counted) > 1 else next(iter(self._counted), "counted")

    def per_second(self, count: float) -> float:
        """So many, in all that time."""
        return count / self.seconds if self.seconds > 0 else 0.0

    def worst(self) -> WorkerError | None:
        """The error that came most often."""
        return max(self.errors.values(), key=lambda row: row[0])[1] if self.errors else None

    def explained(self) -> list[tuple[str, int, str]]:
        """Code, count, and what the last one said, the most frequent first."""
        rows = sorted(self.errors.items(), key=lambda row: -row[1][0])
        return [(code, count, explain(error).removeprefix(f"{code}: ")) for code, (count, error) in rows]
