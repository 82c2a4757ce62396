"""Control calls (health, props): requests, mounted on our own connections, with one deadline over all of it.

requests' own time-out restarts at every byte, so a server that drips its answer would hold a health check for hours.
Here requests prepares and urllib3 carries, but the bytes go through the same exchange as a stream's: the same pool,
TLS, proxy and cancel, and an absolute deadline over connect, head and body.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec
import urllib3
from urllib3.connection import HTTPConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

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

if TYPE_CHECKING:
    import requests

MAX_BODY = 8 * 1024 * 1024


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
        self._session: requests.Session | None = None

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

        session = self._session or self._make_session(requests)
        scheme = "https" if self._endpoint.tls else "http"
        url = f"{scheme}://{self._endpoint.authority}{self._endpoint.base}{request.path}"
        try:
            headers = dict([*self._endpoint.headers(), *request.headers])
            prepared = requests.Request(request.method, url, headers=headers, data=request.body or None).prepare()
            prepared.path_asked = request.path  # type: ignore[attr-defined]  # ours, read by Mounted
            answer = session.send(prepared, timeout=timeout, allow_redirects=False, stream=False)
            told = tuple((name.lower(), value) for name, value in answer.headers.items())
            return Reply(Head(answer.status_code, told, keep_alive=False), answer.content)
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError, WorkerError) as error:
            fault = control_fault(error, self._endpoint)
        try:
            raise fault  # outside the handler: there it would become its own context's cause, a cycle
        finally:
            del fault

    def _make_session(self, requests: Any) -> requests.Session:
        """A session that sends what we say and nothing else: no cookies of others, no netrc, no environment."""
        place = (self._endpoint, self._pool, self._network)
        carrier = type("_BoundCarrier", (_Carrier,), {"place": place})
        session = requests.Session()
        session.trust_env = False
        session.headers.clear()
        session.mount("http://", _mounted(requests, carrier))
        session.mount("https://", _mounted(requests, carrier))
        self._session = session
        return session  # type: ignore[no-any-return]  # the module is passed in, so it has no type here


def _mounted(requests: Any, carrier: Any) -> Any:
    """requests' own adapter over a urllib3 manager whose connections are ours."""

    class Mounted(requests.adapters.HTTPAdapter):  # type: ignore[misc]  # as above
        def init_poolmanager(self, *_args: Any, **_options: Any) -> None:
            self.poolmanager = urllib3.PoolManager(num_pools=1)
            self.poolmanager.pool_classes_by_scheme = {
                "http": type("_Pool", (HTTPConnectionPool,), {"ConnectionCls": carrier}),
                "https": type("_TLSPool", (HTTPSConnectionPool,), {"ConnectionCls": carrier}),
            }

        def request_url(self, request: Any, proxies: Any) -> str:
            return str(request.path_asked)  # not the URL's own path, which requests quotes anew

    return Mounted()


class _Carrier(HTTPConnection):
    """urllib3's shape over one exchange: it holds no socket, so there is nothing to keep, to share or to leak."""

    is_verified = True  # our own context verified it, or was told not to
    proxy_is_verified = True
    is_closed = False
    is_connected = True

    #: Whose it is: set by the subclass that a session is mounted on.
    place: ClassVar[tuple[Endpoint, ConnectionPool, Network]]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(options.get("host", "localhost"), options.get("port"), timeout=options.get("timeout"))
        self._wanted: tuple[str, str, list[tuple[str, str]], bytes] = ("GET", "/", [], b"")

    def connect(self) -> None:
        """The exchange connects."""

    def request(self, method: str, url: str, body: Any = None, headers: Any = None, **_options: Any) -> None:
        """Note what to send."""
        self._wanted = (method, url, list((headers or {}).items()), body or b"")

    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override]  # urllib3's own stub says the same
        """Send it and read the whole answer, within the time-out as one deadline."""
        endpoint, pool, network = self.place
        seconds = float(self.timeout) if isinstance(self.timeout, (int, float)) else 5.0
        method, url, headers, body = self._wanted
        exchange = Exchange(endpoint, pool, network, Job(new_job_id()))
        steps = fetch(exchange, url, headers, budget=seconds, method=method, body=body)
        reply = drive(steps, network, seconds, endpoint)
        return urllib3.HTTPResponse(
            body=io.BytesIO(reply.body),
            headers=list(reply.head.headers),  # type: ignore[arg-type]  # pairs are accepted, the stub is narrow
            status=reply.status,
            preload_content=False,
            decode_content=False,
            request_method=method,
        )


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
