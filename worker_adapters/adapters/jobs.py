"""JobAdapter: what every adapter does with a job before and beside the engine: checks, registry, options, plans."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from worker_adapters.cancel import Job, JobRegistry, new_job_id
from worker_adapters.clocks import Runtime
from worker_adapters.contract import Attempt, WorkerAdapter
from worker_adapters.errors import InvalidRequest, invalid
from worker_adapters.plan import Plan
from worker_adapters.retry import Retries, RetryBudget, RetryPolicy
from worker_adapters.stream import TokenStream
from worker_adapters.task import TaskLike, TaskRequest
from worker_adapters.timeouts import Timeouts, checked

log = logging.getLogger("worker_adapters.adapters")

#: The fields of a task that an engine may lack, with the value that means "not asked for".
OPTIONAL_FIELDS: dict[str, Any] = {
    "temperature": None, "top_p": None, "top_k": None, "min_p": None, "seed": None, "stop": [],
    "presence_penalty": None, "frequency_penalty": None, "repetition_penalty": None, "logit_bias": None,
    "logprobs": None, "tools": None, "tool_choice": None, "response_format": None, "grammar": None,
}  # fmt: skip


class JobAdapter(WorkerAdapter):
    """An adapter whose jobs are driven by TokenStream."""

    #: Keys of ``extra`` that belong to the adapter on this engine, beside those of task.OWNED_BY_CONTRACT.
    owned: ClassVar[frozenset[str]] = frozenset()
    #: Fields that the engine takes with messages, not with a prompt.
    with_messages: tuple[str, ...] = ()

    def __init__(
        self,
        *,
        model: str | None = None,
        timeouts: Timeouts | Mapping[str, Any] | None = None,
        retry: RetryPolicy | dict[str, Any] | None = None,
        unsupported: str = "error",
        runtime: Runtime | None = None,
    ) -> None:
        if unsupported not in ("error", "ignore"):
            raise invalid("unsupported", 'want "error" or "ignore"')
        if model is not None and not isinstance(model, str):
            raise invalid("model", "want a string")
        self._model = model
        self._timeouts: Timeouts = Timeouts() | checked(timeouts)
        self._retry = RetryPolicy.of(retry)
        self._unsupported = unsupported
        self._runtime = runtime or Runtime()
        self._budget = RetryBudget(self._retry)
        self._jobs = JobRegistry()

    def cancel(self, job_id: str) -> bool:
        return self._jobs.cancel(job_id)

    def check(self, task: TaskRequest) -> TaskRequest:
        return self._checked(task, {})

    def _configuration(self) -> dict[str, Any]:
        """What pickling keeps."""
        return {
            "model": self._model,
            "timeouts": self._timeouts,
            "retry": self._retry,
            "unsupported": self._unsupported,
        }

    def timeouts_of(self, task: TaskRequest) -> Timeouts:
        changed: Timeouts = self._timeouts | task.timeouts
        return changed

    def _checked(self, task: TaskLike, fields: Mapping[str, Any]) -> TaskRequest:
        """The task as this engine will get it.

        :raises InvalidRequest: naming the field.
        """
        if self._model is not None and fields.get("model", getattr(task, "model", None)) is None:
            fields = {**fields, "model": self._model}
        made = TaskRequest.of(task, **fields)
        lacking: list[str] = []
        kind = "prompt" if made.prompt is not None else "messages"
        if not (self.capabilities.prompts if kind == "prompt" else self.capabilities.messages):
            raise self._lacks(kind)
        for name, unset in OPTIONAL_FIELDS.items():
            if getattr(made, name) == unset:
                continue
            if name not in self.capabilities.fields or (kind == "prompt" and name in self.with_messages):
                if self._unsupported == "error":
                    raise self._lacks(name)
                lacking.append(name)
        for key in made.extra:
            if key in self.owned:
                raise self._invalid(f"extra.{key}", "is set by the adapter, not by extra")
        return self._without(made, lacking)

    def _without(self, task: TaskRequest, fields: list[str]) -> TaskRequest:
        """The task without fields that the engine lacks."""
        for name in fields:
            log.warning("%s has no equivalent for %s: dropped", self.engine, name)
        return TaskRequest.of(task, **{name: OPTIONAL_FIELDS[name] for name in fields}) if fields else task

    def _lacks(self, field: str) -> InvalidRequest:
        if field in self.with_messages and field in self.capabilities.fields:
            return self._invalid(field, f"{self.engine} takes it with messages only")
        return self._invalid(field, f"{self.engine} has no equivalent")

    def _invalid(self, field: str, want: str) -> InvalidRequest:
        error = invalid(field, want)
        error.engine = self.engine
        return error

    def _stream(
        self, task: TaskRequest, attempt: Callable[[Job], Callable[[], Attempt]], tries: int | None = None
    ) -> TokenStream:
        """Register the job and plan it.

        :raises InvalidRequest: a job of that id is in flight.
        """
        job = Job(task.job_id or new_job_id())
        if not self._jobs.add(job):
            raise self._invalid("job_id", f"a job {job.job_id} is in flight")
        policy = self._retry if tries is None else RetryPolicy(attempts=tries)
        return TokenStream(
            Plan(
                job=job,
                engine=self.engine,
                place=self._place(),
                attempt=attempt(job),
                timeouts=self.timeouts_of(task),
                retries=lambda: Retries(policy, self._budget, self._runtime.random),
                budget=self._budget,
                runtime=self._runtime,
                release=self._jobs.discard,
            )
        )

    def _place(self) -> str:
        """Engine and URL, as a message may show them."""
        return self.engine

    def _learned(self, task: TaskRequest, facts: Mapping[str, Any]) -> None:
        """The engine's facts at a job's end; an adapter that remembers sessions reads them."""
