"""Buffer: frames from the thread that reads an engine to the one that consumes them. Bounded; nothing is dropped."""

from __future__ import annotations

from collections import deque
from queue import Empty, SimpleQueue

from worker_adapters.frames import AnyFrame

#: Frames that may wait for a consumer before the reader waits for it.
SIZE = 256


class FrameBuffer:
    """One writer, one reader. Batches while the reader lags, so a token costs no wake-up of its own.

    Waits on SimpleQueues alone: a cancel may come in a signal handler on top of either side.
    """

    def __init__(self, size: int = SIZE) -> None:
        self._size = size
        self._batches: deque[list[AnyFrame]] = deque()
        self._written = 0  # by the writer alone
        self._read = 0  # by the reader alone
        self._news: SimpleQueue[None] = SimpleQueue()
        self._room: SimpleQueue[None] = SimpleQueue()
        self._starving = True
        self._blocked = False
        self.closed = False

    def put(self, batch: list[AnyFrame]) -> None:
        """Pass a batch on; waits while the consumer is too far behind. After ``close`` it goes nowhere."""
        while self._full():
            self._blocked = True
            if self._full():  # asked again: the reader may have looked in between
                self._room.get()
            self._blocked = False
        self._batches.append(batch)
        self._written += len(batch)
        if self._starving:
            self._starving = False
            self._news.put(None)

    def take(self, timeout: float | None = None) -> list[AnyFrame] | None:
        """All that is there; [] if nothing came within ``timeout`` seconds, None after the last."""
        while not self._batches and not self.closed:
            self._starving = True
            if not self._batches and not self.closed:
                try:
                    self._news.get(timeout=timeout)
                except Empty:
                    return []
            self._starving = False
        if not self._batches:
            return None
        frames: list[AnyFrame] = []
        while self._batches:
            frames += self._batches.popleft()
        self._read += len(frames)
        if self._blocked:
            self._room.put(None)
        return frames

    def _full(self) -> bool:
        return self._written - self._read >= self._size and not self.closed

    def close(self) -> None:
        """No more frames; wakes both sides. From any thread or signal handler."""
        self.closed = True
        self._news.put(None)
        self._room.put(None)
