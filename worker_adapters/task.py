"""What a job asks for: :class:`TaskRequest`, one value for every engine, validated before a byte is sent."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from worker_adapters.errors import invalid
from worker_adapters.jsonvalue import JsonValue, encode
from worker_adapters.message import Message
from worker_adapters.timeouts import checked

PRIORITIES = ("interactive", "batch")
RESPONSE_FORMATS = ("text", "json_object", "json_schema")

#: What the contract owns; ``extra`` cannot set it on any engine, because frames, cancel and accounting hang on it.
OWNED_BY_CONTRACT = frozenset(
    {"stream", "stream_options", "prompt", "messages", "n", "best_of", "echo", "id", "job_id", "request_id"}
)


@dataclass(frozen=True)
class TaskRequest(JsonValue):
    """A job: exactly one of ``prompt`` and ``messages``, and how to generate. Frozen, picklable, validated.

    :param job_id: names the job for ``cancel``; one is made if absent.
    :param model: which model; None is the adapter's default.
    :param prompt: raw text to continue.
    :param messages: a conversation (:class:`Message` or mappings).
    :param max_tokens: at most this many tokens, reasoning included; at least 1.
    :param temperature: 0 is greedy; None leaves the engine's default, as for every sampling field.
    :param top_p: sample among the likeliest tokens that together have this probability, 0 to 1.
    :param top_k: sample among so many of the likeliest tokens.
    :param min_p: drop tokens less likely than this share of the likeliest one's probability, 0 to 1.
    :param seed: for repeatable sampling, 0 to 2**63 - 1; engines may take less.
    :param stop: strings that end the answer; they are not part of it.
    :param presence_penalty: subtracted from the logit of every token that came before; OpenAI's scale, -2 to 2.
    :param frequency_penalty: the same, times how often it came.
    :param repetition_penalty: 1 is none; divides the logits of tokens that came before.
    :param logit_bias: token id -> bias.
    :param logprobs: None for none, else how many alternatives to ask for; token frames then carry logprob, token_id.
    :param tools: OpenAI form ``{"type": "function", "function": {"name", "description", "parameters"}}``.
    :param tool_choice: ``"none" | "auto" | "required"`` or OpenAI's mapping.
    :param response_format: ``{"type": "json_object"}`` or ``{"type": "json_schema", "json_schema": {"schema": ...}}``.
    :param grammar: a grammar in the engine's own language (llama.cpp: GBNF).
    :param priority: ``interactive`` or ``batch``; the host's.
    :param session_id: jobs of one session reuse the KV cache where the engine can.
    :param correlation_id: yours, for finding the job in every log on its way. The engine gets it as
        ``X-Correlation-Id``, unless a header cannot say it (it is not ASCII).
    :param timeouts: the clocks of this job: a ``Timeouts``, or a mapping of those that differ from the adapter's.
    :param metadata: yours; never sent.
    :param extra: reaches the engine as it is; cannot set what the contract owns.
    :raises InvalidRequest: naming the field.
    """

    job_id: str | None = None
    model: str | None = None
    prompt: str | None = field(default=None, repr=False)
    messages: list[Message] | None = field(default=None, repr=False)
    max_tokens: int = 256
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: list[str] = field(default_factory=list, repr=False)
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    logprobs: int | None = None
    tools: list[dict[str, Any]] | None = field(default=None, repr=False)
    tool_choice: Any = field(default=None, repr=False)
    response_format: dict[str, Any] | None = field(default=None, repr=False)
    grammar: str | None = field(default=None, repr=False)
    priority: str = "interactive"
    session_id: str | None = None
    correlation_id: str | None = None
    timeouts: Any = None
    metadata: dict[str, Any] = field(default_factory=dict, repr=False)
    extra: dict[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self._validate(_NAMES)

    def _validate(self, names: Iterable[str]) -> None:
        """Bring these fields to their form and check them; the others were before."""
        if (self.prompt is None) == (self.messages is None):
            raise invalid("prompt", "want exactly one of prompt and messages")
        values = self.__dict__  # frozen for users; this is where the value is made
        for name in names:
            value = values[name]
            if value is None and name not in REQUIRED:
                continue
            if name in FORMS:
                value = values[name] = FORMS[name](value)
            if name in CHECKS:
                CHECKS[name](name, value)

    def _changed(self, overrides: Mapping[str, Any]) -> TaskRequest:
        """The task with other values in some fields: only these are validated."""
        made = object.__new__(type(self))
        made.__dict__.update(self.__dict__, **overrides)
        made._validate(overrides)
        return made

    @classmethod
    def of(cls, task: TaskLike | object, **overrides: Any) -> TaskRequest:
        """A task from a TaskRequest, a prompt or a list of messages; ``overrides`` replace fields.

        :raises InvalidRequest: naming the field.
        """
        unknown = overrides.keys() - _FIELD_NAMES
        if unknown:
            name = min(unknown)
            raise invalid(name, "no such field of a task; what only one engine knows goes into extra={...}")
        if isinstance(task, TaskRequest):
            return task._changed(overrides) if overrides else task
        if isinstance(task, str):
            return cls(**{"prompt": task, **overrides})
        if isinstance(task, Sequence) and not isinstance(task, (bytes, bytearray)):
            return cls(**{"messages": list(task), **overrides})
        raise invalid("task", "want a TaskRequest, a prompt string or a list of messages")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TaskRequest:
        """The task that ``to_dict`` wrote, validated by the same rules as one made of arguments.

        :raises InvalidRequest: naming the field.
        """
        if not isinstance(data, Mapping):
            raise invalid("task", "want a mapping of fields")
        unknown = data.keys() - _FIELD_NAMES
        if unknown:
            raise invalid(min(map(str, unknown)), "no such field of a task")
        return cls(**data)

    def texts(self) -> list[str]:
        """Everything the user wrote, for keeping it out of messages and logs."""
        found = [self.prompt or "", self.grammar or "", *self.stop]
        for message in self.messages or ():
            found.append(message.content or "")
            if message.tool_calls:
                found.append(_written(message.tool_calls))
        rest = (self.tools, self.response_format, self.extra, self.metadata)
        found += [_written(value) for value in rest if value]
        return [text for text in found if text]


def _written(value: Any) -> str:
    """The value as text, whatever it is: metadata is never sent, so it is not validated as JSON."""
    try:
        return json.dumps(value, default=str, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        return ""


#: What ``submit`` takes for a task: a TaskRequest, a prompt, or a conversation.
TaskLike = TaskRequest | str | Sequence[Message | Mapping[str, Any]]
_NAMES = tuple(f.name for f in fields(TaskRequest))
_FIELD_NAMES = frozenset(_NAMES)


def _messages(value: Any) -> list[Message]:
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        raise invalid("messages", "want a list of Message or mappings")
    if not value:
        raise invalid("messages", "want at least one message")
    return [Message.of(item) for item in value]


def _stop(value: Any) -> list[str]:
    if value is None or (isinstance(value, list) and not value):
        return []
    strings = [value] if isinstance(value, str) else value
    if not isinstance(strings, Sequence) or not all(isinstance(s, str) and s for s in strings):
        raise invalid("stop", "want strings that are not empty")
    _encodable("stop", list(strings))
    return list(strings)


_TOKEN_ID = re.compile("[0-9]{1,18}")


def _logit_bias(value: Any) -> dict[str, float]:
    if not isinstance(value, Mapping):
        raise invalid("logit_bias", "want a mapping of token id to bias")
    biases = {}
    for token, bias in value.items():
        if not _TOKEN_ID.fullmatch(str(token)) or not _finite(bias):
            raise invalid("logit_bias", "want a mapping of token id to a finite bias")
        biases[str(token)] = float(bias)
    return biases


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


Check = Callable[[str, Any], None]


def _number(low: float, high: float = math.inf) -> Check:
    bounds = {
        (False, False): "",
        (True, False): f" of at least {low:g}",
        (True, True): f" from {low:g} to {high:g}",
    }[low > -math.inf, high < math.inf]

    def check(name: str, value: Any) -> None:
        if not _finite(value) or not low <= value <= high:
            raise invalid(name, f"want a finite number{bounds}")

    return check


def _integer(low: int, high: int) -> Check:
    def check(name: str, value: Any) -> None:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise invalid(name, f"want an integer from {low} to {high}")

    return check


def _choice(*allowed: str) -> Check:
    def check(name: str, value: Any) -> None:
        if value not in allowed:
            raise invalid(name, f"want one of {', '.join(allowed)}")

    return check


def _text(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise invalid(name, "want a string")
    try:
        value.encode()  # not _encodable: a prompt may be large, and escaping it twice is all that JSON would add
    except UnicodeEncodeError:
        raise invalid(name, "cannot be sent in UTF-8 (a lone surrogate)") from None


def _identifier(name: str, value: Any) -> None:
    if not isinstance(value, str) or not 0 < len(value) <= 256 or not value.isprintable():
        raise invalid(name, "want a printable string of 1 to 256 characters")


def _mapping(name: str, value: Any) -> None:
    if not isinstance(value, Mapping):
        raise invalid(name, "want a mapping")


def _extra(name: str, value: Any) -> None:
    _mapping(name, value)
    if not value:
        return
    for key in value:
        if not isinstance(key, str):
            raise invalid(name, "want string keys")
        if key in OWNED_BY_CONTRACT:
            raise invalid(f"extra.{key}", "is set by the contract, not by extra")
    _encodable(name, value)


def _json_mapping(name: str, value: Any) -> None:
    _mapping(name, value)
    _encodable(name, value)


def _response_format(name: str, value: Any) -> None:
    _json_mapping(name, value)
    kind = value.get("type")
    if kind not in RESPONSE_FORMATS:
        raise invalid(f"{name}.type", f"want one of {', '.join(RESPONSE_FORMATS)}")
    if kind == "json_schema":
        inner = value.get("json_schema")
        if not isinstance(inner, Mapping) or not isinstance(inner.get("schema"), Mapping):
            raise invalid(f"{name}.json_schema", 'want {"schema": {...}}')


def _tools(name: str, value: Any) -> None:
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence) or not value:
        raise invalid(name, "want a list of tools")
    for tool in value:
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise invalid(name, 'want {"type": "function", "function": {"name": ...}}')
    _encodable(name, list(value))


def _tool_choice(name: str, value: Any) -> None:
    if isinstance(value, str):
        _choice("none", "auto", "required")(name, value)
    else:
        _json_mapping(name, value)


def _message_list(name: str, value: Any) -> None:
    for message in value:
        _encodable(name, message.wire())


#: Made once: json.dumps makes an encoder at every call that is not its default.
_to_json = json.JSONEncoder(allow_nan=False, ensure_ascii=False).encode


def _encodable(name: str, value: Any) -> None:
    """JSON and UTF-8 can say it: no NaN, no lone surrogate, no object, nothing nested without end."""
    try:
        _to_json(value).encode()
        encode(value)  # the encoder that bodies are written with refuses some keys that json takes
    except (TypeError, ValueError, RecursionError) as error:
        raise invalid(name, f"cannot be sent as JSON in UTF-8 ({type(error).__name__})") from None


REQUIRED = frozenset({"max_tokens", "stop", "priority", "metadata", "extra"})
FORMS: dict[str, Callable[[Any], Any]] = {
    "messages": _messages, "stop": _stop, "timeouts": checked, "logit_bias": _logit_bias,
}  # fmt: skip
CHECKS: dict[str, Check] = {
    "job_id": _identifier,
    "model": _identifier,
    "prompt": _text,
    "messages": _message_list,
    "max_tokens": _integer(1, 2**31 - 1),
    "temperature": _number(0),
    "top_p": _number(0, 1),
    "top_k": _integer(-1, 2**31 - 1),
    "min_p": _number(0, 1),
    "seed": _integer(0, 2**63 - 1),
    "presence_penalty": _number(-math.inf),
    "frequency_penalty": _number(-math.inf),
    "repetition_penalty": _number(0),
    "logprobs": _integer(0, 1000),
    "tools": _tools,
    "tool_choice": _tool_choice,
    "response_format": _response_format,
    "grammar": _text,
    "priority": _choice(*PRIORITIES),
    "session_id": _identifier,
    "correlation_id": _identifier,
    "metadata": _mapping,
    "extra": _extra,
}
