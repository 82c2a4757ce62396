"""SessionMemory: where the KV cache of a session was last seen."""

from __future__ import annotations

CAPACITY = 1024


class SessionMemory:
    """session_id -> slot, for the sessions used last; bounded. Threads share it: single dict operations, no lock."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._slots: dict[str, int] = {}

    def recall(self, session_id: str) -> int | None:
        """The slot that served the session last."""
        return self._slots.get(session_id)

    def remember(self, session_id: str, slot: int | None) -> None:
        """Note where it was served; None or a negative number is no news."""
        if slot is None or slot < 0:
            return
        self._slots.pop(session_id, None)
        self._slots[session_id] = slot
        if len(self._slots) > self._capacity:
            self._slots.pop(list(self._slots)[0], None)  # noqa: RUF015 - list() is one operation, iter() and next() two
