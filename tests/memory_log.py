"""What a real engine prints, kept in memory."""

from __future__ import annotations

import os


class MemoryLog:
    """A file without a name or a disk, for a server's stdout and stderr.

    A server that writes its log waits for the disk, and answers nobody meanwhile: on a machine of CI whose disk stood
    still, vLLM's tokens and /metrics did too, for more than 20 s.
    """

    def __init__(self) -> None:
        self.fd = os.memfd_create("log")

    def tail(self, lines: int = 40) -> str:
        """The last lines."""
        size = os.fstat(self.fd).st_size
        text = os.pread(self.fd, 100_000, max(0, size - 100_000))  # the server's own place in it stays where it is
        return "\n".join(text.decode(errors="replace").splitlines()[-lines:])
