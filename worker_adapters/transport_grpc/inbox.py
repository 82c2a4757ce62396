"""Inbox: where grpc's threads leave what came, and one reader waits for it."""

from __future__ import annotations

from queue import Empty, SimpleQueue
from typing import Any

#: Messages that may wait for the reader before whoever fills the inbox waits for it: a slow consumer slows the engine.
SIZE = 1024


class Inbox:
    """Filled by one thread, emptied by one. ``close`` may come in a signal handler, in the very thread that waits.

    Holds no call: nothing of what waits here refers back to who fills it, so a dropped reader is freed at once.
    """

    __slots__ = ("_blocked", "_closed", "_queue", "_ready", "_room")

    def __init__(self) -> None:
        self._queue: SimpleQueue[Any] = SimpleQueue()
        self._room: SimpleQueue[None] = SimpleQueue()
        self._ready: list[Any] = []
        self._blocked = False
        self._closed = False

    def put(self, item: Any) -> None:
        """Leave something; waits while the reader is too far behind, unless it wants no more."""
        while self._full():
            self._blocked = True
            if self._full():  # asked again: the reader may have looked in between
                self._room.get()
            self._blocked = False
        self._queue.put(item)

    def _full(self) -> bool:
        return not self._closed and self._queue.qsize() >= SIZE

    def block(self, timeout: float | None) -> bool:
        """Wait until something is there; False after ``timeout`` seconds."""
        if self._ready:
            return True
        try:
            self._ready.append(self._queue.get(timeout=timeout))
        except Empty:
            return False
        return True

    def close(self) -> None:
        """Whatever comes now is not waited for: the job was cancelled, or is over. Wakes both sides."""
        self._closed = True
        self._queue.put(None)
        self._room.put(None)

    def take(self) -> list[Any]:
        """All that is there now."""
        taken, self._ready = self._ready, []
        try:
            while True:
                taken.append(self._queue.get_nowait())
        except Empty:
            pass
        if self._blocked:
            self._room.put(None)
        return [item for item in taken if item is not None]
