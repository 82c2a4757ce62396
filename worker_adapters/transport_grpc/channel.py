"""Channels: one connection to an engine for every process, over which any number of calls go at once."""

from __future__ import annotations

import os
import re
from typing import Any, NamedTuple

import grpc

from worker_adapters.errors import invalid
from worker_adapters.transport.endpoint import Endpoint

NAME = re.compile("[0-9a-z_.-]+")
#: Set by grpc itself, or without meaning there.
NOT_METADATA = frozenset({"host", "user-agent", "accept-encoding"})
OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # A proxy is used only where one is configured, never one of the environment's.
    ("grpc.enable_http_proxy", 0),
    # Connections are the channel's own: shared ones would survive a fork in both processes, and go on waiting out the
    # back-off of another channel's failure.
    ("grpc.use_local_subchannel_pool", 1),
]
#: A forked child keeps what it inherited and never touches it: grpc would end its parent's calls, or hang.
_inherited: list[Any] = []


class Line(NamedTuple):
    """A channel, and whether a message has come over it yet: grpc itself does not say if it is connected."""

    channel: Any
    pid: int
    proven: list[bool]


class GrpcChannels:
    """The channel of one endpoint; shared between threads, another one in a forked child.

    :raises InvalidRequest: a header that is no metadata.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        headers: dict[str, str] = {endpoint.options["key_header"]: "", **(endpoint.options["headers"] or {})}
        if not all(map(_is_metadata, headers, headers.values())):
            want = "names of letters, digits, '-', '_' and '.', none that ends in -bin, with printable ASCII"
            raise invalid("headers", f"gRPC takes {want}")
        self._endpoint = endpoint
        self._line: Line | None = None

    def line(self) -> Line:
        """The channel that calls of this process go over now."""
        line = self._line
        if line is not None and line.pid != os.getpid():
            _inherited.append(line)
            line = None
        if line is None:
            line = self._line = Line(self._open(), os.getpid(), [False])
        return line

    def discard(self, line: Line) -> None:
        """The next call gets a new channel, without this one's back-off. Calls in flight keep theirs."""
        if self._line is line:
            self._line = None

    def close(self) -> None:
        """Forget the channel: it closes when its last call has ended."""
        line, self._line = self._line, None
        if line is not None and line.pid != os.getpid():
            _inherited.append(line)

    def metadata(self) -> list[tuple[str, str]]:
        """Key and headers, as every call carries them.

        :raises InvalidRequest: the key cannot be had.
        """
        named = [(name.lower(), value) for name, value in self._endpoint.headers()]
        return [(name, value) for name, value in named if name not in NOT_METADATA]

    def _open(self) -> Any:
        target = self._endpoint.host_and_port
        if not self._endpoint.tls:
            return grpc.insecure_channel(target, OPTIONS)
        return grpc.secure_channel(target, self._credentials(), OPTIONS)

    def _credentials(self) -> Any:
        ca, cert = self._endpoint.options["ca"], self._endpoint.options["cert"]
        chain, key = (cert, cert) if isinstance(cert, (str, os.PathLike)) else cert or (None, None)
        try:
            return grpc.ssl_channel_credentials(_read(ca), _read(key), _read(chain))
        except OSError as error:
            raise invalid("ca or cert", f"cannot be loaded ({type(error).__name__})") from error


def _is_metadata(name: str, value: str) -> bool:
    """May it be sent as it is? ``-bin`` stands for bytes."""
    fits = NAME.fullmatch(name.lower()) is not None and not name.lower().endswith("-bin")
    return fits and value.isascii() and value.isprintable()


def keep(inherited: Any) -> None:
    """In a forked child: never free this."""
    _inherited.append(inherited)


def _read(path: Any) -> bytes | None:
    if path is None:
        return None
    with open(path, "rb") as file:
        return file.read()
