"""The OpenAI dialect's requests: what it calls the fields of a task. No I/O."""

from __future__ import annotations

from typing import Any

from worker_adapters.task import TaskRequest

#: The name of the token limit that every server but OpenAI's own knows; theirs refuse it for models that reason.
MAX_TOKENS = "max_tokens"
MAX_COMPLETION_TOKENS = "max_completion_tokens"


def chat_fields(task: TaskRequest, limit: str = MAX_TOKENS) -> dict[str, Any]:
    """``/chat/completions`` for a task with messages, or with a prompt as the user's one message.

    :param limit: what the server calls the token limit.
    """
    messages = [message.wire() for message in task.messages or ()] or [{"role": "user", "content": task.prompt}]
    fields = {"messages": messages, limit: task.max_tokens, **_common(task)} | _tool_fields(task)
    if task.logprobs is not None:
        fields |= {"logprobs": True, "top_logprobs": task.logprobs}
    return present(fields)


def text_fields(task: TaskRequest) -> dict[str, Any]:
    """``/completions`` for a task with a prompt."""
    return present({"prompt": task.prompt, MAX_TOKENS: task.max_tokens, **_common(task), "logprobs": task.logprobs})


def _common(task: TaskRequest) -> dict[str, Any]:
    return {
        "model": task.model,
        **sampling_fields(task),
        "logit_bias": task.logit_bias,
        "response_format": _named_format(task.response_format),
    }


def sampling_fields(task: TaskRequest) -> dict[str, Any]:
    """How to sample, by the names that llama.cpp's native dialect shares."""
    return {
        "temperature": task.temperature,
        "top_p": task.top_p,
        "seed": task.seed,
        "stop": task.stop or None,
        "presence_penalty": task.presence_penalty,
        "frequency_penalty": task.frequency_penalty,
    }


def _tool_fields(task: TaskRequest) -> dict[str, Any]:
    return {"tools": task.tools, "tool_choice": task.tool_choice}


def _named_format(wanted: dict[str, Any] | None) -> dict[str, Any] | None:
    """The dialect wants every schema to have a name (OpenAI answers 400 without, vLLM too)."""
    if wanted is None or wanted["type"] != "json_schema":
        return wanted
    return {**wanted, "json_schema": {"name": "answer", **wanted["json_schema"]}}


def present(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields without those that are None: an absent field leaves the server's default."""
    return {name: value for name, value in fields.items() if value is not None}
