"""MockAdapter: the contract without an engine, for tests of your own code and as the reference reading of the contract.

Deterministic: the same settings give the same frames. It validates tasks as every adapter does, because a mock that
takes what engines refuse proves nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from worker_adapters.adapters.jobs import OPTIONAL_FIELDS, JobAdapter
from worker_adapters.cancel import Job
from worker_adapters.contract import Attempt, Wait
from worker_adapters.errors import ContextOverflow, EngineUnavailable, InvalidRequest, WorkerError
from worker_adapters.frames import (
    EndFrame,
    ErrorFrame,
    Metrics,
    ReasoningFrame,
    StartedFrame,
    TokenFrame,
    ToolCall,
    ToolCallFrame,
)
from worker_adapters.report import STATES, Capabilities, EngineProps, HealthStatus
from worker_adapters.stream import TokenStream
from worker_adapters.task import TaskLike, TaskRequest

Tokens = Sequence[str] | Callable[[TaskRequest], Sequence[str]]

#: Options that concern a connection: accepted as by every engine, and without meaning here.
TRANSPORT_OPTIONS = frozenset({"api_key", "headers", "verify", "ca", "cert", "proxy", "max_idle", "network"})

FOREVER = 1e9


class MockAdapter(JobAdapter):
    """An engine that says what it is told to.

    :param tokens: the answer, piece by piece, or a function of the task.
    :param reasoning: pieces of thinking before it.
    :param tool_calls: calls made after it, if the task has tools; they end it with ``tool_calls``.
    :param endless: repeat the answer until ``max_tokens``.
    :param silent_after: say nothing more after so many pieces of the answer.
    :param delay: seconds before every piece.
    :param first_delay: seconds before the first event: the queue and the prefill.
    :param error: raised after ``error_after`` pieces of the answer.
    :param error_after: pieces; 0 refuses the job.
    :param fail_first: only so many attempts fail; None: all.
    :param health: ``healthy``, ``degraded`` (loading: jobs are refused, and that may be retried) or ``unhealthy``
        (down). Assign ``adapter.state`` to change it.
    :param version: what props report.
    :param context_size: the same; a prompt with more words, each a token, is ``ContextOverflow``.
    :raises InvalidRequest: naming the option.
    """

    engine = "mock"
    capabilities = Capabilities(fields=tuple(OPTIONAL_FIELDS), session_cache=True, release="at once")

    def __init__(
        self,
        url: str | None = None,
        *,
        tokens: Tokens = ("Hello", " from", " the", " mock", "."),
        reasoning: Sequence[str] = (),
        tool_calls: Sequence[ToolCall] = (),
        endless: bool = False,
        delay: float = 0.0,
        first_delay: float = 0.0,
        silent_after: int | None = None,
        error: WorkerError | None = None,
        error_after: int = 0,
        fail_first: int | None = None,
        health: str = "healthy",
        version: str = "mock-1",
        context_size: int | None = None,
        **options: Any,
    ) -> None:
        self._url = url
        self._options = {name: value for name, value in options.items() if name not in TRANSPORT_OPTIONS}
        super().__init__(**self._options)
        if health not in STATES:
            raise InvalidRequest(message=f"health: want one of {', '.join(STATES)}", field="health", phase="submit")
        self._settings: dict[str, Any] = {
            "tokens": tokens,
            "reasoning": tuple(reasoning),
            "tool_calls": tuple(tool_calls),
            "endless": endless,
            "delay": delay,
            "first_delay": first_delay,
            "silent_after": silent_after,
            "error": error,
            "error_after": error_after,
            "fail_first": fail_first,
            "version": version,
            "context_size": context_size,
        }
        self.state = health
        #: Attempts that reached the engine, refused ones included.
        self.attempts = 0

    def submit(self, task: TaskLike, **fields: Any) -> TokenStream:
        made = self._checked(task, fields)
        return self._stream(made, lambda job: partial(self.attempt, made, job))

    def health(self, *, probe: bool = False, timeout: float = 2.0) -> HealthStatus:
        ready = self.state == "healthy"
        return HealthStatus(self.state, self.state != "unhealthy", ready, "" if ready else "as it was told", 0.0)

    def props(self) -> EngineProps:
        self._refuse_unless_live()
        model = self._model or "mock"
        return EngineProps(
            engine=self.engine,
            engine_version=self._settings["version"],
            model=model,
            model_digest=f"{model}/mock",
            context_size=self._settings["context_size"],
            running=len(self._jobs),
            waiting=0,
            capabilities=self.capabilities,
        )

    def engine_version(self) -> str:
        self._refuse_unless_live()
        return str(self._settings["version"])

    def attempt(self, task: TaskRequest, job: Job) -> Attempt:
        """What an engine does with a job, in the order in which it does it."""
        self.attempts += 1
        number = self.attempts
        yield from self._pause(job, "first_token", self._settings["first_delay"])
        self._refuse_unless_live()
        tokens_in = self._counted(task)
        answer, finish = self._answer(task)
        self._fail_if_due(0, number)
        yield [StartedFrame(job.job_id, self.engine, self._settings["version"], task.model or "mock")]
        for index, text in enumerate(self._settings["reasoning"]):
            yield from self._pause(job, "first_token" if index == 0 else "between_tokens", self._settings["delay"])
            yield [ReasoningFrame(text, index)]
        for index, text in enumerate(answer):
            seconds = FOREVER if index == self._settings["silent_after"] else self._settings["delay"]
            yield from self._pause(job, "between_tokens" if index else "first_token", seconds)
            yield [TokenFrame(text, index)]
            self._fail_if_due(index + 1, number)
        calls = self._settings["tool_calls"] if task.tools else ()
        for index, call in enumerate(calls):
            yield [ToolCallFrame(index, call.arguments, call.call_id, call.name)]
        reason = "tool_calls" if calls else finish
        pieces = len(answer) + len(self._settings["reasoning"])
        yield [EndFrame(reason, reason, Metrics(tokens_in, pieces, "exact"))]

    def _pause(self, job: Job, phase: str, seconds: float) -> Attempt:
        until = self._runtime.monotonic() + seconds
        wait = Wait(phase, lambda timeout: self._runtime.sleep(timeout or 0.0, job.wake), until)
        while self._runtime.monotonic() < until and not job.cancelled:
            yield wait

    def _refuse_unless_live(self) -> None:
        if self.state != "healthy":
            what = "is loading its model" if self.state == "degraded" else "is down"
            raise EngineUnavailable(
                message=f"mock {what}", retriable=True, engine=self.engine, phase="connect",
                status=503 if self.state == "degraded" else None,
            )  # fmt: skip

    def _counted(self, task: TaskRequest) -> int:
        words = (task.prompt or " ".join(m.content or "" for m in task.messages or ())).split()
        size = self._settings["context_size"]
        if size is not None and len(words) > size:
            raise ContextOverflow(
                message=f"mock: the prompt has {len(words)} tokens, the context {size}", engine=self.engine,
                prompt_tokens=len(words), context_size=size, status=400, phase="first_token",
            )  # fmt: skip
        return len(words)

    def _answer(self, task: TaskRequest) -> tuple[list[str], str]:
        """The pieces of the answer, cut by max_tokens and by stop strings, and why it ends."""
        tokens = self._settings["tokens"]
        told = list(tokens(task) if callable(tokens) else tokens)
        pieces = told[: task.max_tokens]
        if self._settings["endless"] and told:
            pieces = [told[i % len(told)] for i in range(task.max_tokens)]
        length = not (len(pieces) == len(told) and not self._settings["endless"])
        text = "".join(pieces)
        cut = min((at for at in (text.find(stop) for stop in task.stop) if at >= 0), default=None)
        if cut is None:
            return pieces, "length" if length else "stop"
        kept, room = [], cut
        for piece in pieces:
            kept.append(piece[:room])
            room -= len(kept[-1])
        return [piece for piece in kept if piece], "stop"

    def _fail_if_due(self, pieces: int, number: int) -> None:
        error, first = self._settings["error"], self._settings["fail_first"]
        if error is not None and pieces == self._settings["error_after"] and (first is None or number <= first):
            raise ErrorFrame.from_exception(error).to_exception()  # a fresh one: errors carry their job's facts

    def __repr__(self) -> str:
        return f"MockAdapter({self.state})"

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self._url, "health": self.state, **self._settings, **self._configuration()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]  # pickled by configuration: made anew
