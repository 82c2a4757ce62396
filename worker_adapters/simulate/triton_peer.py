"""A connection that is not watched: Triton pauses a request until its first response, and sees no close till then."""

from __future__ import annotations

import select
import time

from .peer import Peer


class DeafPeer(Peer):
    """The same connection, whose client's close nobody notices; the server's stop (`wake_fd`) is.

    A wait for nothing else than the client's end is a scripted silence, and hears it all the same.
    """

    def __init__(self, peer: Peer, wake_fd: int) -> None:
        # On purpose without the parent's: the socket and its state stay with the peer that hears.
        self._peer = peer
        self._stop_fd = wake_fd
        self._deaf_poll = select.poll()
        self._deaf_poll.register(wake_fd, select.POLLIN)

    @property
    def closed(self) -> bool:
        """True once this end was closed or reset."""
        return self._peer.closed

    def wait(self, seconds: float | None, extra_fd: int = -1) -> str:
        """Waits: "gone" (the server stops), "ready" (`extra_fd` became readable) or "time"."""
        if seconds is None and extra_fd < 0:
            return self._peer.wait(None)
        deadline = None if seconds is None else time.monotonic() + seconds
        if extra_fd >= 0:
            self._deaf_poll.register(extra_fd, select.POLLIN)
        try:
            while True:
                left = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
                ready = {fd for fd, _ in self._deaf_poll.poll(left)}
                if self._stop_fd in ready:
                    self._peer.stopped = True
                    return "gone"
                if ready:
                    return "ready"
                if deadline is not None and time.monotonic() >= deadline:
                    return "time"
        finally:
            if extra_fd >= 0:
                self._deaf_poll.unregister(extra_fd)

    def close(self, reset: bool = False) -> None:
        """Closes this end."""
        self._peer.close(reset)
