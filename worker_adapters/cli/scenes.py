"""The scenes of the demo. Each does something to a real engine, shows it, and checks that it happened."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

from worker_adapters.cli.printer import metric_rows, milliseconds
from worker_adapters.cli.stage import Stage
from worker_adapters.contract import WorkerAdapter
from worker_adapters.embedded import EmbeddedLlamaCpp, recital
from worker_adapters.errors import StreamTruncated, WorkerError
from worker_adapters.frames import AnyFrame, EndFrame, TokenFrame
from worker_adapters.report import EngineProps, HealthStatus
from worker_adapters.stream import TokenStream

PROMPT = "Please introduce yourself."
#: A job that never ends by itself: the model starts again after its last word.
ENDLESS = {"max_tokens": 1_000_000, "extra": {"ignore_eos": True}}
#: Tokens to let flow before something happens.
BEFORE_CANCEL, BEFORE_KILL = 42, 36
#: Milliseconds that nothing here may take; far more than it does, for machines that are busy.
LIMIT = 2000.0


class Elsewhere:
    """Does one thing in another thread when told to, and notes when it began."""

    def __init__(self, act: Callable[[], object]) -> None:
        self._act = act
        self._go = threading.Event()
        self._thread = threading.Thread(target=self._wait, name="worker-adapters-demo", daemon=True)
        self._thread.start()
        self._wanted = False
        self.at = -math.inf
        self.returned: object = None

    def _wait(self) -> None:
        self._go.wait()
        if self._wanted:
            self.at = time.monotonic()
            self.returned = self._act()

    def now(self) -> None:
        """Let it happen; returns at once."""
        self._wanted = True
        self._go.set()

    def join(self) -> None:
        """Wait until it has happened; what nobody wanted by now never will."""
        self._go.set()
        self._thread.join()

    def ms_until(self, moment: float) -> float:
        """Milliseconds from its beginning to ``moment``; infinite if it never began."""
        return (moment - self.at) * 1000.0


def look(stage: Stage, health: HealthStatus, props: EngineProps) -> None:
    """What the engine says of itself."""
    stage.tables(
        (
            "health",
            [
                ("state", health.state),
                ("live", "yes" if health.live else "no"),
                ("ready", "yes" if health.ready else "no"),
                ("answered in", milliseconds(health.latency_ms)),
            ],
        ),
        (
            "props",
            [
                ("engine", props.engine),
                ("version", props.engine_version),
                ("model", props.model or "-"),
                ("context", f"{props.context_size} tokens"),
                ("slots", f"{props.slots_free} of {props.slots_total} free"),
                ("residency", props.residency),
            ],
        ),
    )
    stage.fact("the engine is up", health.state, health.ready)


def stream(stage: Stage, engine: WorkerAdapter) -> None:
    """A job to its end."""
    said, end = "", None
    for frame in engine.submit(PROMPT, max_tokens=128):
        if isinstance(frame, TokenFrame):
            said += frame.text
            stage.flow(frame.text)
        elif isinstance(frame, EndFrame):
            end = frame
    stage.stop()
    if end is not None:
        stage.tables(("metrics", metric_rows(end.metrics)))
    reason = end.finish_reason if end else "nothing"
    stage.fact("the whole text came, and the engine said why it ended", reason, said == recital() and reason == "stop")


def cancel(stage: Stage, engine: WorkerAdapter) -> None:
    """An endless job, cancelled by another thread while this one waits for its next token."""
    with engine.submit(PROMPT, **ENDLESS) as job:
        canceller = Elsewhere(job.cancel)
        last = _read(stage, job, BEFORE_CANCEL, canceller)
        ended_at = time.monotonic()
        with engine.submit(PROMPT, max_tokens=4) as following:
            following.start()
            served_at = time.monotonic()
            answer = following.result().text
    canceller.join()
    stage.stop("[cancelled]")
    reason = last.finish_reason if isinstance(last, EndFrame) else "nothing"
    reader, slot = canceller.ms_until(ended_at), canceller.ms_until(served_at)
    stage.fact("cancel() took the job, and the reader's loop ended with", reason, reason == "cancelled")
    stage.fact("from cancel() to that end", milliseconds(reader), canceller.returned is True and reader < LIMIT)
    stage.fact("from cancel() to the next job's start in the one slot", milliseconds(slot), slot < LIMIT)
    stage.fact("what that job answered", answer, recital().startswith(answer) and answer != "")


def kill(stage: Stage, engine: WorkerAdapter, server: EmbeddedLlamaCpp) -> None:
    """The server dies in the middle of an answer."""
    killer = Elsewhere(server.kill)
    caught: WorkerError | None = None
    with engine.submit(PROMPT, **ENDLESS) as job:
        try:
            _read(stage, job, BEFORE_KILL, killer)
        except WorkerError as error:
            caught = error
        failed_at = time.monotonic()
    killer.join()
    stage.stop("[killed]")
    if caught is None:
        stage.fact("the reader was told", "no error came", held=False)
        return
    took = killer.ms_until(failed_at)
    stage.tables(
        (
            "the error that the loop raised",
            [
                ("class", type(caught).__name__),
                ("code", caught.code),
                ("message", caught.message),
                ("tokens_seen", str(caught.tokens_seen)),
                ("retriable", "yes" if caught.retriable else "no"),
            ],
        )
    )
    held = isinstance(caught, StreamTruncated) and caught.tokens_seen >= BEFORE_KILL
    stage.fact("from the kill to this error", milliseconds(took), held and took < LIMIT)
    state = engine.health().state
    stage.fact("health() now says", state, state == "unhealthy")


def _read(stage: Stage, job: TokenStream, enough: int, event: Elsewhere) -> AnyFrame | None:
    """Show tokens; after ``enough`` of them let ``event`` happen, and go on reading. The last frame."""
    seen, frame = 0, None
    for frame in job:
        if isinstance(frame, TokenFrame):
            stage.flow(frame.text)
            seen += 1
            if seen == enough:
                event.now()
    return frame
