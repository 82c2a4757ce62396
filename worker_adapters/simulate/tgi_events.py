"""TGI's native answers: an event a token, and the whole in one piece."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from .recital import SENTENCE
from .tgi_facts import Facts
from .tgi_request import Job
from .tgi_script import EOS, Script, Step, token_of


@dataclass
class Run:
    """One answer at work: its prompt's number, and the moments that headers tell of (`time.perf_counter()` seconds)."""

    number: int
    job: Job
    script: Script
    began: float = field(default_factory=time.perf_counter)
    queued: float = 0.0
    started: float = 0.0

    def timings(self) -> dict[str, float]:
        """Seconds spent in all, in validation, in the queue, at work, and a token."""
        now = time.perf_counter()
        work = now - self.started
        return {
            "total": now - self.began,
            "validation": self.queued - self.began,
            "queue": self.started - self.queued,
            "inference": work,
            "per_token": work / max(1, self.script.generated),
        }


def token_json(step: Step) -> dict[str, Any]:
    """A token as the native answers write it; a probability that is no number is null."""
    token = step.token
    logprob = None if math.isnan(token.logprob) else token.logprob
    return {"id": token.id, "text": step.text, "logprob": logprob, "special": token.special}


def top_tokens(step: Step, wanted: int) -> list[dict[str, Any]]:
    """The likeliest tokens in place of this one: itself first, then words of the recital."""
    others = [token_of(SENTENCE[(step.token.id + offset) % len(SENTENCE)]) for offset in range(1, wanted)]
    steps = [step, *(Step(other._replace(logprob=step.token.logprob - 1), str(other.text)) for other in others)]
    return [token_json(each) for each in steps[:wanted]]


class Native:
    """/generate_stream, and / with `stream`."""

    def __init__(self, runs: Sequence[Run], facts: Facts) -> None:
        self.runs = runs
        self.facts = facts

    def events(self, number: int, step: Step) -> Iterator[bytes]:
        """One event; the last one has the whole text."""
        run = self.runs[number]
        told: dict[str, Any] = {"index": run.script.generated, "token": token_json(step)}
        wanted = run.job.parameters.get("top_n_tokens") or 0
        if wanted:
            told["top_tokens"] = top_tokens(step, wanted)
        told["generated_text"] = full_text(run) if step.finish else None
        told["details"] = self._details(run) if step.finish and run.job.flag("details") else None
        yield self.facts.version.event(told)

    def _details(self, run: Run) -> dict[str, Any]:
        told = ending_of(run)
        if self.facts.version.since(2, 3):
            told["input_length"] = run.job.prompted
        return told


def ending_of(run: Run) -> dict[str, Any]:
    """How an answer ended."""
    seed = run.job.seed if run.job.samples else None
    return {"finish_reason": run.script.finish, "generated_tokens": run.script.generated, "seed": seed}


def full_text(run: Run) -> str:
    """The text of an answer, behind its prompt if that was asked for."""
    return (run.job.inputs if run.job.flag("return_full_text") else "") + run.script.text


def native_whole(runs: Sequence[Run], said: Sequence[Sequence[Step]], *, prefill: bool) -> dict[str, Any]:
    """The body of /generate: the first of the sequences, the others among its details."""
    first, *others = [(run, _sequence(run, steps, prefill)) for run, steps in zip(runs, said, strict=True)]
    run, details = first
    whole: dict[str, Any] = {"generated_text": full_text(run)}
    if run.job.flag("details") or run.job.flag("decoder_input_details"):
        if others:
            tops = {"top_tokens": details.pop("top_tokens")} if "top_tokens" in details else {}
            rest = [{"generated_text": full_text(other), **told} for other, told in others]
            details = {**details, "best_of_sequences": rest, **tops}
        whole["details"] = details
    return whole


def _sequence(run: Run, steps: Sequence[Step], prefill: bool) -> dict[str, Any]:
    told = ending_of(run)
    told["prefill"] = _prefill(run.job) if prefill and run.job.flag("decoder_input_details") else []
    told["tokens"] = [token_json(step) for step in steps]
    wanted = run.job.parameters.get("top_n_tokens") or 0
    if wanted:
        told["top_tokens"] = [top_tokens(step, wanted) for step in steps]
    return told


def _prefill(job: Job) -> list[dict[str, Any]]:
    words = [token_of(word) for word in job.inputs.split()]
    tokens = [{"id": word.id, "text": word.text, "logprob": word.logprob} for word in words]
    start: dict[str, Any] = {"id": EOS.id - 1, "text": "<s>", "logprob": None}  # nothing comes before it
    return [start, *tokens][-job.prompted :]
