"""Bytes of the OpenAI dialect written by hand, and what must come of them."""

from __future__ import annotations

from typing import Any

from replay import WAIT, ReplayServer
from verdicts import Bad, Good, check_bad, check_good
from worker_adapters.adapters.openai import OpenAIHttpAdapter
from worker_adapters.timeouts import Timeouts

CLOCKS = Timeouts(connect=WAIT, first_token=WAIT, between_tokens=WAIT, total=3 * WAIT)
CHAT = [{"role": "user", "content": "my prompt"}]
Case = tuple[list[bytes], Good | Bad]


def play(case: Case, task: Any = CHAT, **options: Any) -> None:
    """Submits a task (a conversation, unless told else), answers it, and checks what comes of it."""
    answer, row = case
    fields = {"model": "m", "timeouts": CLOCKS, "retry": {"attempts": 1}, **options}
    with ReplayServer({}) as server, OpenAIHttpAdapter(server.url, **fields) as engine:
        server.answer = answer
        check = check_good if isinstance(row, Good) else check_bad
        check(engine.submit(task), row, "openai")


def piece(content: Any = None, finish: str | None = None, **extra: Any) -> dict[str, Any]:
    """A chunk of a chat."""
    delta = {} if content is None else {"content": content}
    return of_delta(delta, finish, **extra)


def of_delta(delta: dict[str, Any], finish: str | None = None, **extra: Any) -> dict[str, Any]:
    """A chunk of a chat with such a delta."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice], **extra}


def usage(prompt: int, completion: int) -> dict[str, Any]:
    """Counts as chat and completions tell them."""
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def error(**fields: Any) -> dict[str, Any]:
    """An error in the shape that OpenAI's schema wants."""
    return {"error": fields}


ROLE = of_delta({"role": "assistant", "content": ""})
STOP = of_delta({}, "stop")
HI = Good("Hi", "stop")
