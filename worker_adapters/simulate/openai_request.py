"""Reading a request of the OpenAI dialect: what it asks for, whoever answers it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .openai_schema import instance, pieces
from .openai_script import Script, Token, ToolCall

_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode  # json.dumps makes one a call


def dump(value: Any) -> bytes:
    """Compact JSON with real UTF-8, as these servers write it."""
    return _encode(value).encode()


def event(value: Any, name: str = "", *, spaced: bool = False) -> bytes:
    """One server-sent event; `spaced` puts spaces behind commas and colons, as Python's json does."""
    head = f"event: {name}\n".encode() if name else b""
    return head + b"data: " + (json.dumps(value).encode() if spaced else dump(value)) + b"\n\n"


DONE = b"data: [DONE]\n\n"


class Refusal(Exception):
    """An error status before any token."""

    def __init__(
        self, status: int, message: str, kind: str | None = None, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param
        self.code = code


@dataclass
class Job:
    """A generation request understood. `route` is chat, completions or responses; `prompts` has the words of each
    prompt and `counts` its tokens; `n` answers are asked for each."""

    route: str
    body: dict[str, Any] = field(repr=False)
    prompts: list[str]
    counts: list[int]
    limit: int | None
    stop: list[str]
    n: int = 1
    logprobs: int | None = field(init=False)
    """How many alternatives to list with each token; None: no logprobs."""

    def __post_init__(self) -> None:
        value: Any = self.body.get("logprobs")
        if self.route == "chat":
            self.logprobs = int(self.body.get("top_logprobs") or 0) if value else None
        else:
            self.logprobs = None if value is None or value is False else int(value)

    def flag(self, name: str, default: bool = False) -> bool:
        """A boolean field of the request; null means the default."""
        value = self.body.get(name)
        return default if value is None else bool(value)

    @property
    def stream(self) -> bool:
        """True if a stream is asked for."""
        return self.flag("stream")

    def stream_option(self, name: str) -> bool:
        """A boolean among the stream options."""
        options = self.body.get("stream_options")
        return isinstance(options, dict) and bool(options.get(name))


def text_of(content: Any) -> str:
    """The text of a message's content: a string, or the text parts of a list."""
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        return " ".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""


def messages_of(body: dict[str, Any]) -> list[dict[str, Any]]:
    """The messages of a chat, or the input items of a Responses request (a text is one user message)."""
    value = body.get("messages", body.get("input"))
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def chat_words(messages: Sequence[dict[str, Any]]) -> str:
    """The last user message's text."""
    users = [message for message in messages if message.get("role") == "user"]
    return text_of(users[-1].get("content")) if users else ""


def count_chat(messages: Sequence[dict[str, Any]]) -> int:
    """Tokens of a chat: one a word and one to end each message."""
    return sum(len(text_of(message.get("content")).split()) + 1 for message in messages)


def read_prompts(value: Any) -> tuple[list[str], list[int]]:
    """The words and the token counts of a completion's prompt: text, texts, ids or lists of ids."""
    if isinstance(value, list) and value and all(isinstance(part, int) for part in value):
        value = [value]
    parts = value if isinstance(value, list) else [value]
    words = [part if isinstance(part, str) else " ".join(map(str, part)) for part in parts]
    return words, [len(part.split()) for part in words]


def read_stop(value: Any) -> list[str]:
    """The stop strings."""
    return [value] if isinstance(value, str) else [str(word) for word in value or ()]


# -- what the model is made to say -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Persona:
    """What a simulated model says if nothing else is asked of it."""

    tokens: Sequence[Token] | None
    endless: bool
    reasoning: Sequence[str]
    tool_calls: Sequence[ToolCall]
    n_ctx: int


def calls_for(job: Job, persona: Persona) -> tuple[Sequence[ToolCall], str]:
    """The tool calls that answer this request, and the choice that led to them: auto, required, named or "".

    A request whose last message is a tool's result gets text. A tool nobody scripted is called with arguments that
    fit its parameters, if the request insists on it.
    """
    tools = job.body.get("tools")
    choice = job.body.get("tool_choice") or "auto"
    if not tools or choice == "none" or job.route == "completions":
        return (), ""
    last = (messages_of(job.body) or [{}])[-1]
    if choice == "auto" and (last.get("role") == "tool" or last.get("type") == "function_call_output"):
        return (), ""
    functions = {tool["function"]["name"]: tool["function"] for tool in map(_wrapped, tools)}
    calls = [call for call in persona.tool_calls if call[0] in functions] or list(persona.tool_calls)
    if choice == "auto":
        single = job.body.get("parallel_tool_calls") is False
        return (calls[:1] if single else calls), "auto" if calls else ""
    named = _wrapped(choice)["function"]["name"] if isinstance(choice, dict) else ""
    wanted = named or (calls[0][0] if calls else next(iter(functions)))
    scripted = [call for call in calls if call[0] == wanted]
    invented = [(wanted, pieces(instance(functions.get(wanted, {}).get("parameters") or {"type": "object"})))]
    return scripted or invented, "named" if named else "required"


def _wrapped(tool: dict[str, Any]) -> dict[str, Any]:
    """A tool in the chat form; the Responses form has the function's fields at the top."""
    return tool if "function" in tool else {"function": tool}


def forced_tokens(body: dict[str, Any]) -> Sequence[Token] | None:
    """The answer a structured-output request forces, in pieces; None if it forces none.

    Raises NotImplementedError for a grammar or a regular expression.
    """
    wanted = body.get("response_format") or (body.get("text") or {}).get("format") or {}
    kind = wanted.get("type")
    if kind == "json_schema":
        return pieces(instance((wanted.get("json_schema") or wanted).get("schema") or {}))
    if kind == "json_object":
        return pieces({"answer": "the quick brown fox"})
    held = body.get("structured_outputs") or {}
    if held.get("regex") is not None or held.get("grammar") is not None:
        raise NotImplementedError("this model follows no grammar")
    if held.get("choice"):
        return (str(held["choice"][0]),)
    schema = held.get("json")
    if schema is not None:
        return pieces(instance(json.loads(schema) if isinstance(schema, str) else schema))
    return pieces({"answer": "the quick brown fox"}) if held.get("json_object") else None


def scripts(job: Job, persona: Persona, named_finish: str = "tool_calls") -> list[Script]:
    """One script for each prompt and answer asked for; answer number = prompt number * n + choice."""
    calls, choice = calls_for(job, persona)
    forced = forced_tokens(job.body)
    made = []
    for words, count in zip(job.prompts, job.counts, strict=True):
        tokens: Sequence[Token] = persona.tokens if persona.tokens is not None else _echo(words)
        cycle = persona.endless or (persona.tokens is None and job.limit is not None)
        if forced is not None:
            tokens, cycle = forced, False
        made += [
            Script(
                tokens,
                reasoning=() if job.route == "completions" else persona.reasoning,
                calls=calls,
                limit=job.limit,
                room=persona.n_ctx - count,
                cycle=cycle,
                past_end=forced is None and job.flag("ignore_eos"),
                least=int(job.body.get("min_tokens") or 0),
                stop=job.stop,
                stop_ids=job.body.get("stop_token_ids") or (),
                keep_stop=job.flag("include_stop_str_in_output"),
                call_finish=named_finish if choice == "named" else "tool_calls",
            )
            for _ in range(job.n)
        ]
    return made


def _echo(words: str) -> tuple[str, ...]:
    return tuple(" " + word for word in words.split())
