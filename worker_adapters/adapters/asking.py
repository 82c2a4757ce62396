"""Asking: idempotent questions to an engine, under one deadline."""

from __future__ import annotations

from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

import msgspec

from worker_adapters.errors import EngineUnavailable, UnknownError, WorkerError
from worker_adapters.late import loading
from worker_adapters.transport.control import Reply
from worker_adapters.transport.network import Network

T = TypeVar("T")

#: props and engine_version: seconds over all their requests and retries, and tries of each.
PROPS = 5.0
PROPS_ATTEMPTS = 8
#: What is not essential is waited for so long (seconds): llama.cpp answers /slots between two batches of work.
OPTIONAL = 1.0


class Asking:
    """Idempotent questions: retried on connect failure, reset and 503, all within one deadline.

    :ivar raw: path -> the JSON or the text that stood there, for what nobody interprets.
    """

    def __init__(
        self,
        get: Callable[[str, float], Reply],
        network: Network,
        engine: str,
        seconds: float,
        masked: Callable[[Any], Any],
    ) -> None:
        self.raw: dict[str, Any] = {}
        self._get = get
        self._masked = masked
        self._engine = engine
        self._network = network
        self._deadline = network.monotonic() + seconds

    def __call__(self, path: str, shape: Any) -> Any:
        """What stands at ``path``, as a ``shape``: a type that msgspec converts JSON to.

        :raises WorkerError: the engine is down, refuses us, or says something else there.
        """
        with loading:
            import tenacity  # 30 ms, and only who asks for props needs it

        def left() -> float:
            return self._deadline - self._network.monotonic()

        return tenacity.Retrying(
            retry=tenacity.retry_if_exception(_passing),
            stop=lambda state: state.attempt_number >= PROPS_ATTEMPTS or left() <= 0,
            wait=lambda state: min(max(0.0, left()), self._network.random() * 0.1 * 2.0**state.attempt_number),
            sleep=self._sleep,
            reraise=True,
        )(lambda: self._ask(path, shape, max(0.05, left())))

    def _ask(self, path: str, shape: Any, seconds: float) -> Any:
        answer = self._get(path, seconds).json()
        try:
            shaped = msgspec.convert(answer, shape, strict=False)
        except msgspec.ValidationError:
            message = f"{self._engine}: what {path} answered is not what {self._engine} says there: another server?"
            raise UnknownError(message=message, engine=self._engine, status=200) from None
        self.raw[path] = self._masked(answer)
        return shaped

    def _sleep(self, seconds: float) -> None:
        self._network.sleep(seconds, SimpleQueue())  # nobody puts anything there: a plain sleep on the injected clock

    def maybe(self, path: str, shape: Any) -> Any:
        """The same, or None if the engine does not offer it, or not soon."""
        try:
            return self._twice(lambda: self._ask(path, shape, self._soon()))
        except WorkerError:
            return None

    def text(self, path: str) -> str:
        """What stands at ``path`` as plain text; "" if the engine does not offer it, or not soon."""
        try:
            text = self._twice(lambda: self._get(path, self._soon())).body.decode("utf-8", "replace")
        except WorkerError:
            return ""
        self.raw[path] = self._masked(text)
        return text

    def _twice(self, ask: Callable[[], T]) -> T:
        try:
            return ask()
        except EngineUnavailable as error:
            if error.status is not None or error.phase == "connect":
                raise
            return ask()  # the server closed an idle connection beneath the question

    def _soon(self) -> float:
        return max(0.05, min(self._deadline - self._network.monotonic(), OPTIONAL))


def _passing(error: BaseException) -> bool:
    """May the fault be gone in a moment? A question may be asked again also after an unclear reset."""
    return isinstance(error, EngineUnavailable) and (
        error.status == 503 or (error.status is None and (error.retriable or error.phase != "connect"))
    )
