"""Message: one turn of a conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from worker_adapters.errors import invalid
from worker_adapters.frames import ToolCall
from worker_adapters.jsonvalue import JsonValue

ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclass(frozen=True)
class Message(JsonValue):
    """One turn of a conversation.

    :param role: system, developer, user, assistant or tool.
    :param content: the text; None only for an assistant turn that consists of tool calls.
    :param name: who speaks, for engines that take it.
    :param tool_calls: an assistant's calls: those of a ``Completion``, or mappings in OpenAI form: ``{"id", "type":
        "function", "function": {...}}``.
    :param tool_call_id: which call a ``tool`` turn answers.
    """

    role: str
    content: str | None = field(default=None, repr=False)
    name: str | None = None
    tool_calls: Sequence[ToolCall | dict[str, Any]] | None = field(default=None, repr=False)
    tool_call_id: str | None = None

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise invalid("messages.role", f"want one of {', '.join(ROLES)}")
        if self.content is None and not (self.role == "assistant" and self.tool_calls):
            raise invalid("messages.content", "want text")
        if self.content is not None and not isinstance(self.content, str):
            raise invalid("messages.content", "want text")
        for name in ("name", "tool_call_id"):
            if not isinstance(getattr(self, name), (str, type(None))):
                raise invalid(f"messages.{name}", "want a string")
        if self.tool_calls is not None:
            object.__setattr__(self, "tool_calls", _calls(self.tool_calls))
        if self.role == "tool" and not self.tool_call_id:
            raise invalid("messages.tool_call_id", "a tool message says which call it answers")

    @classmethod
    def of(cls, value: Message | Mapping[str, Any]) -> Message:
        """A Message as it is, or made of a mapping.

        :raises InvalidRequest: neither, or an unknown key.
        """
        if isinstance(value, Message):
            return value
        if not isinstance(value, Mapping):
            raise invalid("messages", "want a list of Message or mappings")
        unknown = value.keys() - {f.name for f in fields(cls)}
        if unknown:
            raise invalid(f"messages.{sorted(map(str, unknown))[0]}", "unknown key of a message")
        if "role" not in value:
            raise invalid("messages.role", f"want one of {', '.join(ROLES)}")
        return cls(**value)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Message:
        return cls.of(data)

    def wire(self) -> dict[str, Any]:
        """The message in OpenAI form, absent keys left out."""
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in parts.items() if value is not None or name == "content"}


def _calls(value: Any) -> list[dict[str, Any]]:
    """Calls in OpenAI form."""
    if not isinstance(value, (list, tuple)):
        raise invalid("messages.tool_calls", "want a list of calls")
    calls = [call.wire() if isinstance(call, ToolCall) else call for call in value]
    if not all(isinstance(call, Mapping) for call in calls):
        raise invalid("messages.tool_calls", "want a Completion's calls, or mappings")
    return calls
