"""Workers: the host's own threads. Daemons, named, bounded, started when there is work and gone when there is none."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue

log = logging.getLogger("worker_adapters.host")

#: A thread without work ends after so many seconds.
IDLE = 1.0


class Workers:
    """Runs things, at most so many at once; what comes beyond waits, first come first served.

    :param most: threads.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.RLock()
        self._work: SimpleQueue[Callable[[], object]] = SimpleQueue()
        self._threads = 0
        self._load = 0  # what waits or runs
        self._numbers = 0

    def submit(self, act: Callable[[], object]) -> None:
        """Run it soon, on another thread."""
        with self._lock:
            self._work.put(act)
            self._load += 1
            if self._threads < min(self._load, self._most):
                self._start()

    def _start(self) -> None:
        self._threads += 1
        self._numbers += 1
        name = f"worker-adapters-{os.getpid()}-{self._numbers}"
        try:
            threading.Thread(target=self._run, name=name, daemon=True).start()
        except RuntimeError:  # no more threads
            self._threads -= 1
            if not self._threads:
                raise

    def _run(self) -> None:
        while True:
            try:
                act = self._work.get(timeout=IDLE)
            except Empty:
                with self._lock:
                    if self._work.empty():
                        self._threads -= 1
                        return
                continue
            try:
                act()
            except BaseException:  # a callback of the caller's may raise SystemExit: others need this thread
                log.critical("a callback of a job failed", exc_info=True)
            finally:
                del act  # else it lives until the next one comes
                with self._lock:
                    self._load -= 1

    def reset(self) -> None:
        """In a forked child: the threads are the parent's."""
        self.__init__(self._most)  # type: ignore[misc]  # made anew
