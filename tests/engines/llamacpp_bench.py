"""What the tests against the real llama.cpp share: readers in threads, forked children, small questions."""

from __future__ import annotations

import http.client
import json
import logging
import os
import statistics
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from worker_adapters import TokenStream
from worker_adapters.embedded import EmbeddedLlamaCpp
from worker_adapters.frames import AnyFrame

#: Seconds after which a test stops waiting for what should have come long ago. Machines of CI stall for 20 and more.
PATIENCE = 90.0
#: Seconds that a machine may stall for in a single try: less than a job left alone, or a clock that ends it, takes.
SOON = 20.0


def text_of(frames: Iterable[AnyFrame | None]) -> str:
    """The answer's text in some frames."""
    return "".join(frame.text for frame in frames if frame is not None and frame.type == "token")


def types_of(frames: Iterable[AnyFrame | None]) -> list[str]:
    """The types of some frames, each run of equal ones once."""
    names = [frame.type for frame in frames if frame is not None]
    return [name for at, name in enumerate(names) if at == 0 or names[at - 1] != name]


def take(stream: TokenStream, count: int) -> list[AnyFrame]:
    """The next ``count`` frames."""
    return [next(stream) for _ in range(count)]


def wait_silent(stream: TokenStream, seconds: float = 0.05) -> None:
    """Start a job and return once the engine has left it waiting for so long without a frame."""
    assert next(stream.ticks(seconds)) is None


class Reader(threading.Thread):
    """Reads a stream in its own thread and notes what came, and when it ended."""

    def __init__(self, stream: TokenStream, at: int = 1) -> None:
        super().__init__(daemon=True)
        self.stream = stream
        self.frames: list[AnyFrame] = []
        self.error: BaseException | None = None
        self.ended_at = 0.0
        #: Set once ``at`` frames have come, or the stream has ended.
        self.reached = threading.Event()
        self._at = at

    def run(self) -> None:
        try:
            for frame in self.stream:
                self.frames.append(frame)
                if len(self.frames) == self._at:
                    self.reached.set()
        except BaseException as error:
            self.error = error
        finally:
            self.ended_at = time.monotonic()
            self.reached.set()

    def wait(self) -> None:
        """Until ``at`` frames have come."""
        assert self.reached.wait(PATIENCE), "the frames never came"

    def finish(self) -> None:
        """Until the stream has ended."""
        self.join(PATIENCE)
        assert not self.is_alive(), "the reader hangs"


@contextmanager
def watch_retries() -> Iterator[threading.Event]:
    """An event that is set as soon as a job is about to be tried again."""
    seen = threading.Event()
    log = logging.getLogger("worker_adapters")
    level = log.level

    class Watch(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "trying again" in record.getMessage():
                seen.set()

    watch = Watch()
    log.addHandler(watch)
    log.setLevel(logging.INFO)
    try:
        yield seen
    finally:
        log.setLevel(level)
        log.removeHandler(watch)


def at_once(workers: Iterable[Callable[[], object]]) -> list[BaseException]:
    """Run each worker in a thread of its own; what they raised."""
    errors: list[BaseException] = []

    def guarded(worker: Callable[[], object]) -> None:
        try:
            worker()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(worker,), daemon=True) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
        assert not thread.is_alive(), "a worker hangs"
    return errors


def ask(server: EmbeddedLlamaCpp, path: str) -> str:
    """A GET that goes by none of our own code."""
    connection = http.client.HTTPConnection(server.host, server.port, timeout=PATIENCE)
    try:
        connection.request("GET", path)
        return connection.getresponse().read().decode()
    finally:
        connection.close()


def until(question: Callable[[], bool], seconds: float = PATIENCE, every: float = 0.1) -> None:
    """Ask again and again, for what no event tells."""
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not question():
        assert time.monotonic() < deadline, "it never happened"
        pause.wait(every)


def wait_queued(server: EmbeddedLlamaCpp, jobs: int = 1) -> None:
    """Until so many jobs wait for a slot. Only before a cancel: questions keep jobs alive whose client has gone."""
    until(lambda: f"llamacpp:requests_deferred {jobs}\n" in ask(server, "/metrics"))


def forked(child: Callable[[], object]) -> Callable[[], Any]:
    """Run ``child`` in a forked process; call the result for what it returned (JSON), or fail with what it raised.

    The child leaves by ``os._exit``, so nothing of the test runner runs in it.
    """
    out, into = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            answer = json.dumps({"returned": child()})
        except BaseException:
            answer = json.dumps({"raised": traceback.format_exc()})
        finally:
            os.write(into, answer.encode())
            os._exit(0)
    os.close(into)

    def result() -> Any:
        with os.fdopen(out, "rb") as pipe:
            said = pipe.read()
        os.waitpid(pid, 0)
        answer = json.loads(said)
        assert "raised" not in answer, answer["raised"]
        return answer["returned"]

    return result


def usual(seconds: Iterable[float]) -> float:
    """The median of some times, which no single stall of the machine changes."""
    return statistics.median(seconds)


def milliseconds(seconds: Iterable[float]) -> str:
    """p50 and the largest of some times."""
    times = sorted(seconds)
    return f"p50 {statistics.median(times) * 1000:.1f} ms, max {times[-1] * 1000:.1f} ms, n={len(times)}"
