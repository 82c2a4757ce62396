"""HttpAdapter: the submit loop, once, for every engine that streams over HTTP.

A subclass is a table of its engine's facts: ``encode``, ``decoder``, error rules, and how to read its health and props.
It holds no I/O, no loop, no thread and no ``try``; those are here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, TypeVar

from worker_adapters.adapters.asking import PROPS, Asking
from worker_adapters.adapters.identity import Answer
from worker_adapters.adapters.over_http import HttpStreaming
from worker_adapters.errors import WorkerError, WorkerTimeout
from worker_adapters.report import EngineProps, HealthStatus
from worker_adapters.stream import TokenStream
from worker_adapters.task import TaskLike
from worker_adapters.timeouts import Timeouts, check_count, check_seconds
from worker_adapters.transport.control import ControlClient, Reply
from worker_adapters.transport.endpoint import HTTP, ApiKey, Endpoint
from worker_adapters.transport.network import Network
from worker_adapters.wire.delta import EngineFault, WireRequest
from worker_adapters.wire.openai_faults import fault_in

Self = TypeVar("Self", bound="HttpAdapter")

MAX_IDLE = 16


class HttpAdapter(HttpStreaming):
    """Base of adapters over HTTP and server-sent events. Public: third parties derive from it.

    A subclass supplies ``engine``, ``default_url``, ``capabilities``, ``encode``, ``decoder``, ``identity`` and, where
    what is shared is not enough, ``judge``, ``props`` and ``rules``.

    :param url: base URL; None is the engine's usual address. A path and a query in it are kept.
    :param model: for tasks that name none.
    :param api_key: a string, ``"env:NAME"`` (read at each request) or a callable.
    :param headers: sent with every request.
    :param timeouts: a :class:`Timeouts`, or a mapping of the clocks to change.
    :param retry: a :class:`RetryPolicy`, or a mapping of its fields.
    :param verify: TLS: is the server's certificate verified?
    :param ca: file or folder of the certificate authorities to trust; None: the system's.
    :param cert: our own certificate: a file, or one of the certificate and one of its key.
    :param proxy: used only if given, never for loopback.
    :param key_header: what carries the key: Authorization, as a Bearer token, or any other name, as it is.
    :param max_idle: idle connections to keep.
    :param unsupported: ``"error"`` refuses a field the engine has no equivalent for; ``"ignore"`` drops it, with one
        log line.
    :param network: time, chance and sockets; simulations pass their own.
    :raises InvalidRequest: naming the option.
    """

    #: The engine's usual address.
    default_url: ClassVar[str] = ""
    #: Of the URLs that it takes.
    schemes: ClassVar[tuple[str, ...]] = HTTP
    #: What a health check asks.
    health_path: str = "/health"
    #: Does a health probe ask in a conversation? A prompt needs no chat template, but not every server takes one.
    probes_chat: bool = False
    #: So many tokens a health probe generates.
    probe_tokens: int = 1

    def __init__(
        self,
        url: str | None = None,
        *,
        model: str | None = None,
        api_key: ApiKey = None,
        headers: Mapping[str, str] | None = None,
        timeouts: Timeouts | Mapping[str, Any] | None = None,
        retry: Any = None,
        verify: bool = True,
        ca: str | None = None,
        cert: str | tuple[str, str] | None = None,
        proxy: str | None = None,
        key_header: str = "Authorization",
        max_idle: int = MAX_IDLE,
        unsupported: str = "error",
        network: Network | None = None,
    ) -> None:
        check_count("max_idle", max_idle, 0)
        endpoint = Endpoint(
            self.default_url if url is None else url,
            schemes=self.schemes,
            api_key=api_key,
            headers=headers,
            verify=verify,
            ca=ca,
            cert=cert,
            proxy=proxy,
            key_header=key_header,
        )
        super().__init__(
            endpoint,
            network or Network(),
            max_idle,
            model=model,
            timeouts=timeouts,
            retry=retry,
            unsupported=unsupported,
        )
        self._control = ControlClient(endpoint, self._pool, self._network)

    # --- what a subclass supplies

    def question(self, path: str) -> WireRequest:
        """The request that asks what stands at ``path``."""
        return WireRequest(path, method="GET")

    def judge(self, reply: Reply) -> HealthStatus:
        """What an answer at ``health_path`` means; a subclass knows its engine's answers.

        A gateway's status (502, 504) says that the engine behind it is not there.
        """
        if reply.status == 200:
            return HealthStatus("healthy", live=True, ready=True)
        fault = fault_in(reply.body) or EngineFault()
        words = fault.message or f"HTTP {reply.status} with {reply.head.told_type or 'no body'}"
        gone = reply.status in (502, 504)
        return HealthStatus(
            "unhealthy" if gone else "degraded",
            live=not gone,
            ready=False,
            message=f"{self._endpoint.shown}{self.health_path}: {self._endpoint.clean(words)}",
        )

    # --- the contract

    def submit(self, task: TaskLike, **fields: Any) -> TokenStream:
        checked = self._checked(task, fields)
        request = self.encode(checked) if self.needs(checked) is None else None
        return self._stream(checked, lambda job: partial(self._attempt, checked, job, request))

    def health(self, *, probe: bool = False, timeout: float = 2.0) -> HealthStatus:
        check_seconds("timeout", timeout, optional=False)
        began = self._network.monotonic()
        status: HealthStatus | None = None
        try:
            status = self.judge(self._ask(self.question(self.health_path), timeout))
            if probe and status.ready:
                self._probe(self._left(began + timeout))
        except WorkerError as error:
            # An engine that does not answer is down; one that refuses our key or fails a probe is alive.
            live = error.status is not None or (status is not None and self._outlives(error, began + timeout))
            state = "degraded" if live and not error.engine_fault else "unhealthy"
            status = HealthStatus(state, live=live, ready=False, message=error.message)
        took = (self._network.monotonic() - began) * 1000.0
        return HealthStatus(status.state, status.live, status.ready, status.message, took)

    def _left(self, until: float) -> float:
        return max(0.05, until - self._network.monotonic())

    def _outlives(self, error: WorkerError, until: float) -> bool:
        """Does the engine still answer, after a probe that failed without a status: with words, or a broken stream?"""
        if isinstance(error, WorkerTimeout):
            return False
        try:
            self._ask(self.question(self.health_path), self._left(until))
        except WorkerError:
            return False
        return True

    def props(self) -> EngineProps:
        """What the answers to ``identity_questions`` say; a subclass whose engine tells more asks it for more.

        :raises WorkerError: the engine is down or refuses us.
        """
        asking = self.asking()
        if not self.identity_questions:
            self._get(self.health_path, PROPS)
        version, model = self._told(asking)
        return EngineProps(self.engine, version, model, capabilities=self.capabilities, raw=asking.raw)

    def engine_version(self) -> str:
        return self._told(self.asking())[0]

    def _told(self, asking: Asking) -> Answer:
        """Version and model, asked for now."""
        if not self.identity_questions:
            return self._identity.known
        (path, shape), *others = self.identity_questions
        return self._identity.told(asking(path, shape), *(asking.maybe(*question) for question in others))

    def close(self) -> None:
        self._pool.close()

    def __repr__(self) -> str:
        endpoint = vars(self).get("_endpoint")  # absent where __init__ refused an option
        return f"{type(self).__name__}({endpoint.shown!r})" if endpoint else f"<{type(self).__name__}, not made>"

    def __getstate__(self) -> dict[str, Any]:
        return {"endpoint": self._endpoint, "max_idle": self._max_idle, **self._configuration()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        endpoint = state.pop("endpoint")
        self.__init__(endpoint.url, **{**endpoint.options, **state})  # type: ignore[misc]  # made anew

    # --- asking the engine about itself

    def asking(self, seconds: float = PROPS) -> Asking:
        """Questions under one deadline: ``asking(path, shape)`` raises, ``asking.maybe(path, shape)`` gives None.

        :raises WorkerError: from each question.
        """
        return Asking(self._get, self._network, self.engine, seconds, self._endpoint.masked)

    def _get(self, path: str, timeout: float) -> Reply:
        try:
            reply = self._ask(self.question(path), timeout)
        except WorkerError as error:
            error.engine = self.engine
            raise
        if reply.status != 200:
            fault = self._errors.read(reply.head, reply.body, [])
            raise self._errors.refusal(reply.head, fault, [], path, self._network.time())
        return reply

    def _ask(self, request: WireRequest, timeout: float) -> Reply:
        """One question, one attempt, under one deadline.

        :raises WorkerError: no whole answer.
        """
        return self._control.ask(request, timeout=timeout)

    def _probe(self, timeout: float) -> None:
        """One token, one attempt, and the deadline of the health check."""
        task: TaskLike = [{"role": "user", "content": "1"}] if self.probes_chat else "1"
        clocks = Timeouts(connect=timeout, first_token=timeout, total=timeout)
        probe = self._checked(task, {"max_tokens": self.probe_tokens, "timeouts": clocks})
        self._stream(probe, lambda job: partial(self._attempt, probe, job, None), tries=1).result()


def without_v1(url: str | None) -> str | None:
    """The root of a server whose ``/v1`` was given, as for OpenAI's client: health and metrics lie beside it."""
    return re.sub(r"/v1/?(?=$|\?)|/$", "", url, count=1) if isinstance(url, str) else url
