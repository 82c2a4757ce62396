"""Control calls (health, props): requests, mounted on our own connections, with one deadline over all of it.

requests' own time-out restarts at every byte, so a server that drips its answer would hold a health check for hours.
Here requests prepares and reads, but the bytes go through the same exchange as a stream's: the same pool, TLS, proxy
and cancel, and an absolute deadline over connect, head and body.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec
import urllib3

from worker_adapters.cancel import Job, new_job_id
from worker_adapters.errors import UnknownError, WorkerError
from worker_adapters.late import loading
from worker_adapters.transport.connection import Steps
from worker_adapters.transport.endpoint import Endpoint
from worker_adapters.transport.faults import control_fault, lost
from worker_adapters.transport.network import Address, Network
from worker_adapters.transport.pool import ConnectionPool
from worker_adapters.transport.reader import Exchange, drive, encode_request
from worker_adapters.wire.delta import WireRequest
from worker_adapters.wire.http1 import Head

MAX_BODY = 8 * 1024 * 1024
#: Sends a request with these headers, and gives its answer.
Carry = Callable[[Mapping[str, str]], "Reply"]


class Reply(msgspec.Struct, frozen=True):
    """A whole answer.

    :param head: status and headers.
    :param body: as it came.
    """

    head: Head
    body: bytes

    @property
    def status(self) -> int:
        """HTTP status."""
        return self.head.status

    def json(self) -> Any:
        """The body as JSON, or None if it is none."""
        try:
            return msgspec.json.decode(self.body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None


class ControlClient:
    """Small requests with a deadline, for one endpoint; shared between threads. requests is loaded at the first."""

    def __init__(self, endpoint: Endpoint, pool: ConnectionPool, network: Network) -> None:
        self._endpoint = endpoint
        self._pool = pool
        self._network = network

    def get(self, path: str, *, timeout: float) -> Reply:
        """One GET, one attempt: see ``ask``."""
        return self.ask(WireRequest(path, method="GET"), timeout=timeout)

    def ask(self, request: WireRequest, *, timeout: float) -> Reply:
        """One request, one attempt.

        :param timeout: seconds over everything (a DNS lookup cannot be interrupted).
        :raises WorkerError: no whole answer.
        """
        with loading:
            import requests  # 130 ms, and an adapter that only streams never needs it

        def carry(headers: Mapping[str, str]) -> Reply:
            exchange = Exchange(self._endpoint, self._pool, self._network, Job(new_job_id()))
            said, body = headers.items(), request.body
            steps = fetch(exchange, request.path, said, budget=timeout, method=request.method, body=body)
            return drive(steps, self._network, timeout, self._endpoint)

        scheme = "https" if self._endpoint.tls else "http"
        url = f"{scheme}://{self._endpoint.authority}{self._endpoint.base}{request.path}"
        try:
            headers = dict([*self._endpoint.headers(), *request.headers])
            prepared = requests.Request(request.method, url, headers=headers, data=request.body or None).prepare()
            with _session(requests, carry) as session:
                answer = session.send(prepared, allow_redirects=False, stream=False)
            told = tuple((name.lower(), value) for name, value in answer.headers.items())
            return Reply(Head(answer.status_code, told, keep_alive=False), answer.content)
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError, WorkerError) as error:
            fault = control_fault(error, self._endpoint)
        try:
            raise fault  # outside the handler: there it would become its own context's cause, a cycle
        finally:
            del fault


def _session(requests: Any, carry: Carry) -> Any:
    """A session that sends what we say and nothing else: no cookies of others, no netrc, no environment.

    For one request: its locks would not survive a fork beside another thread, nor its cookies be anybody's business.
    """
    session = requests.Session()
    session.trust_env = False
    session.headers.clear()
    carrier = _carrier(requests)(carry)
    session.mount("http://", carrier)
    session.mount("https://", carrier)
    return session


@functools.cache
def _carrier(requests: Any) -> Any:
    """requests' own adapter, but for the connection, which is ours.

    Its ``send`` is left as it is: that is what the package ``responses`` takes the place of.
    """

    class Carrier(requests.adapters.HTTPAdapter):  # type: ignore[misc]  # the module is passed in: it has no type here
        def __init__(self, carry: Carry) -> None:
            super().__init__()
            self._carry = carry

        def get_connection_with_tls_context(self, *_args: Any, **_options: Any) -> Carrier:
            return self

        get_connection = get_connection_with_tls_context  # before requests 2.32

        def urlopen(self, method: str, headers: Mapping[str, str], **_options: Any) -> urllib3.HTTPResponse:
            reply = self._carry(headers)
            return urllib3.HTTPResponse(
                body=io.BytesIO(reply.body),
                headers=list(reply.head.headers),  # type: ignore[arg-type]  # pairs are accepted, the stub is narrow
                status=reply.status,
                preload_content=False,
                decode_content=False,
                request_method=method,
            )

    return Carrier


def fetch(
    exchange: Exchange,
    path: str,
    headers: Iterable[tuple[str, str]] = (),
    *,
    budget: float | None = None,
    near: Address | None = None,
    method: str = "GET",
    body: bytes = b"",
) -> Steps[Reply]:
    """A small request and the whole body of its answer, in steps.

    :param budget, near: for connecting, see ``connect``.
    :raises WorkerError: no whole answer, or a compressed one: it was not asked for, and nothing bounds what it holds.
    """
    done = False
    try:
        request = encode_request(exchange.endpoint, method, path, headers, body)
        head = yield from exchange.open(request + body, budget, near)
        if not head.plain:
            raise UnknownError(message=f"{exchange.endpoint.shown}: a compressed body, which was not asked for")
        answer = yield from whole_body(exchange, MAX_BODY)
        done = True
        return Reply(head, answer)
    finally:
        exchange.close(reuse=done)


def whole_body(exchange: Exchange, limit: int, pieces: list[bytes] | None = None) -> Steps[bytes]:
    """The rest of the body.

    :param pieces: gets it piece by piece, for who can use a part of it.
    :raises EngineUnavailable: it was cut off.
    :raises UnknownError: it is longer than ``limit`` bytes.
    """
    pieces = [] if pieces is None else pieces
    size = 0
    while True:
        body = exchange.receive()
        if body:
            pieces += body
            size += sum(map(len, body))
        if size > limit:
            raise UnknownError(message=f"{exchange.endpoint.shown}: an answer of more than {limit} bytes")
        if exchange.ended:
            if exchange.broken:
                raise lost(exchange.endpoint, exchange.broken)
            return b"".join(pieces)
        yield exchange.wait  # also while bytes keep coming: else an endless answer would stop every clock
