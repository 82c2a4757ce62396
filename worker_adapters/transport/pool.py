"""Idle connections of one endpoint, for the next request of any thread. There is no upper bound to those in use."""

from __future__ import annotations

import os
from collections import deque

from worker_adapters.transport.connection import Connection


class ConnectionPool:
    """The newest idle connection first. Keyed by pid: a forked child starts with none and leaves the parent's alone.

    Only single operations on a deque, no lock: a lock could be held by another thread at a fork, or by this one while
    the garbage collector ends a stream on top of it.

    :param max_idle: how many idle connections to keep.
    """

    def __init__(self, max_idle: int) -> None:
        self._max_idle = max_idle
        self._pid = os.getpid()
        self._idle: deque[Connection] = deque()

    def _own(self) -> deque[Connection]:
        """Ours; in a forked child the inherited sockets are closed first (without shutdown, they are the parent's)."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            inherited, self._idle = self._idle, deque()
            for connection in inherited:
                connection.close()
        return self._idle

    def take(self) -> Connection | None:
        """An idle connection that still looks alive, or None: make a new one."""
        idle = self._own()
        while idle:
            try:
                connection = idle.pop()
            except IndexError:  # another thread took it
                return None
            if connection.alive():
                return connection
            connection.close()
        return None

    def give(self, connection: Connection) -> None:
        """Keep the connection for later; the oldest goes if there are too many."""
        idle = self._own()
        idle.append(connection)
        if len(idle) > self._max_idle:
            self._drop_oldest(idle)

    def close(self) -> None:
        """Close what is idle; the pool can still be used."""
        idle = self._own()
        while idle:
            self._drop_oldest(idle)

    @staticmethod
    def _drop_oldest(idle: deque[Connection]) -> None:
        try:
            connection = idle.popleft()
        except IndexError:  # another thread took it
            return
        connection.close()

    def __del__(self) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._idle)
