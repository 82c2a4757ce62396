"""Names and sockets, joined to the one seam of time and chance (clocks.Runtime)."""

from __future__ import annotations

import select
import socket as sockets
from collections.abc import Callable
from typing import Any

from worker_adapters.clocks import Runtime

Address = tuple[int, int, int, Any]  # family, type, protocol, address

#: poll() takes milliseconds as a C int; whoever waits longer is asked again.
MAX_WAIT = 86_400.0


class Network(Runtime):
    """The real network; a simulation overrides the methods it wants to decide."""

    def resolve(self, host: str, port: int) -> list[Address]:
        """The addresses of a name, in the order to try them. Cannot be interrupted.

        :raises OSError: the name is not known (socket.gaierror).
        """
        found = sockets.getaddrinfo(host, port, type=sockets.SOCK_STREAM)
        return [(family, kind, protocol, address) for family, kind, protocol, _, address in found]

    def socket(self, family: int, kind: int, protocol: int) -> sockets.socket:
        """A new socket that does not block."""
        made = sockets.socket(family, kind, protocol)
        made.setblocking(False)
        return made

    def waiter(self, sock: sockets.socket, read: bool, write: bool) -> Callable[[float | None], bool]:
        """A function that waits until the socket can be read or written, or has failed; False after so many seconds."""
        poll = select.poll()  # not urllib3's wait_for_socket: it tries whether poll works, at every call
        poll.register(sock, (select.POLLIN if read else 0) | (select.POLLOUT if write else 0))
        wait = poll.poll

        def block(timeout: float | None) -> bool:
            return bool(wait() if timeout is None else wait((timeout if timeout < MAX_WAIT else MAX_WAIT) * 1000.0))

        return block
