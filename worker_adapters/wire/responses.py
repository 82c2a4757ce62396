"""OpenAI's Responses API: its requests and its named events. No I/O.

Order: response.created, response.in_progress, then per item output_item.added, deltas, output_item.done, and one
terminal event: response.completed | incomplete | failed | cancelled, or a bare ``error``. No ``[DONE]`` (LiteLLM adds
one). The JSON's ``type`` decides, not the event's name: LiteLLM's proxy sends data lines only. vLLM 0.32 ends a cut
answer with response.completed whose status says "incomplete": the status decides.
"""

from __future__ import annotations

from typing import Any

import msgspec

from worker_adapters.message import Message
from worker_adapters.task import TaskRequest
from worker_adapters.wire.delta import (
    Decoder,
    Delta,
    EngineFault,
    Finish,
    GarbledEvent,
    ToolDelta,
    items,
    mapping,
    parse_json,
    text,
)
from worker_adapters.wire.openai import DONE, arguments_of, fault_beneath, logprob_sum, usage_facts, usage_of
from worker_adapters.wire.openai_body import present
from worker_adapters.wire.openai_faults import fault_of, fault_within
from worker_adapters.wire.sse import Event

#: incomplete_details.reason -> finish reason.
INCOMPLETE = {"max_output_tokens": "length", "content_filter": "content_filter"}
#: Events whose ``delta`` is text of one kind -> which.
TEXTS = {
    "response.output_text.delta": "text",
    "response.refusal.delta": "refusal",
    "response.reasoning_text.delta": "reasoning",
    "response.reasoning_summary_text.delta": "reasoning",
}
#: Events that repeat the whole of such a text: read only where no delta came before.
WHOLES = {
    "response.output_text.done": ("text", "text"),
    "response.refusal.done": ("refusal", "refusal"),
    "response.reasoning_text.done": ("reasoning", "text"),
    "response.reasoning_summary_text.done": ("reasoning", "text"),
}
TERMINAL = frozenset(f"response.{word}" for word in ("completed", "incomplete", "failed", "cancelled"))


class _Event(msgspec.Struct):
    """The fields that every event is read for."""

    type: str | None = None
    delta: Any = None
    item_id: Any = None
    output_index: int | None = None
    logprobs: Any = None
    error: Any = None


_EVENT = msgspec.json.Decoder(_Event | None)
_MAPPING = msgspec.json.Decoder(dict[str, Any])
_ABORTED = EngineFault("the engine cancelled the response", field="abort", began=True)


class ResponsesDecoder(Decoder):
    """Events of a streamed ``/responses``, or the response itself where a server gave it in one piece."""

    def __init__(self, *, logprobs: bool = False) -> None:
        self._logprobs = logprobs
        self._seen: set[tuple[str, str]] = set()  # (kind of text, item) that deltas came for
        self._calls: dict[int | None, int] = {}  # output_index -> which call
        self._written: set[int] = set()  # calls whose arguments came in deltas

    def feed(self, event: Event) -> Delta | None:
        data = event.data
        if data[:6] == DONE or not data:
            return Delta(done=True) if data else None
        try:
            told = parse_json(_EVENT, data)
        except GarbledEvent as error:
            return fault_beneath(error, data)
        if told is None:
            return None
        kind = told.type or event.name
        if kind in TEXTS:
            return self._text(TEXTS[kind], told)
        if told.error or kind == "error":
            value = parse_json(_MAPPING, data)
            return Delta(fault=fault_within(value) or fault_of({**value, "type": value.get("code")}))
        return self._other(kind, told, parse_json(_MAPPING, data))

    def _other(self, kind: str, told: _Event, value: dict[str, Any]) -> Delta | None:
        if kind in WHOLES:
            what, key = WHOLES[kind]
            told.delta = value.get(key)
            said = {(what, text(told.item_id)), (what, "")} & self._seen  # a delta may lack the id that the whole has
            return Delta() if said else self._text(what, told)
        if kind == "response.function_call_arguments.delta":
            call = self._call(told.output_index)
            self._written.add(call)
            return Delta(tools=(ToolDelta(call, arguments_of(told.delta)),))
        if kind == "response.function_call_arguments.done":
            item = {"type": "function_call", "arguments": value.get("arguments")}
            return self._item(item, told.output_index, whole=True)
        if kind in ("response.output_item.added", "response.output_item.done"):
            return self._item(value.get("item"), told.output_index, whole=kind.endswith("done"))
        if kind in TERMINAL:
            response = mapping(value.get("response"))
            return self._end(response) if self._seen or self._calls else self._whole(response)
        if value.get("object") == "response":
            return self._whole(value)
        self.model = self.model or text(mapping(value.get("response")).get("model")) or None
        return Delta() if kind.startswith("response.") else None

    def _text(self, kind: str, told: _Event) -> Delta:
        made = Delta()
        piece = text(told.delta)
        self._seen.add((kind, text(told.item_id)))
        if kind == "reasoning":
            made.reasoning = piece
            return made
        made.text = piece
        if kind == "refusal":
            made.facts = {"refusal": True}
        if self._logprobs:
            made.logprob = logprob_sum([mapping(row).get("logprob") for row in items(told.logprobs)])
        return made

    def _call(self, output_index: int | None) -> int:
        return self._calls.setdefault(output_index, len(self._calls))

    def _item(self, value: Any, output_index: int | None, *, whole: bool) -> Delta:
        """A call begins with id and name; when it is done, its arguments are whole, for servers that send no deltas."""
        item = mapping(value)
        if item.get("type") != "function_call":
            return Delta()
        call = self._call(output_index)
        arguments = arguments_of(item.get("arguments")) if whole and call not in self._written else ""
        if arguments:
            self._written.add(call)
        call_id, name = text(item.get("call_id")) or text(item.get("id")), text(item.get("name"))
        return Delta(tools=(ToolDelta(call, arguments, call_id or None, name or None),))

    def _end(self, response: dict[str, Any]) -> Delta:
        made = Delta(usage=usage_of(response.get("usage")), facts=_facts(response), done=True)
        status = text(response.get("status"))
        reason = text(mapping(response.get("incomplete_details")).get("reason"))
        if status == "failed":
            error = mapping(response.get("error"))
            fault = fault_of({**error, "type": error.get("code")})
            made.fault = msgspec.structs.replace(fault, began=bool(response.get("output") or made.usage))
        elif status in ("cancelled", "queued", "in_progress"):
            made.fault = _ABORTED
        elif status == "incomplete":
            made.finish = Finish(INCOMPLETE.get(reason, "length"), reason or status)
        else:
            made.finish = Finish("tool_calls" if self._calls else "stop", status or None)
        return made

    def _whole(self, response: dict[str, Any]) -> Delta:
        """An answer in one piece."""
        said, thoughts, refused = "", "", ""
        tools: list[ToolDelta] = []
        for place, value in enumerate(items(response.get("output"))):
            tools += self._item(value, place, whole=True).tools
            item = mapping(value)
            parts = [mapping(part) for part in (*items(item.get("content")), *items(item.get("summary")))]
            words = "".join(text(part.get("text")) for part in parts)
            if item.get("type") == "reasoning":
                thoughts += words
            else:
                said += words
                refused += "".join(text(part.get("refusal")) for part in parts)
        made = self._end(response)
        made.text, made.reasoning, made.tools = said + refused, thoughts, tuple(tools)
        if refused:
            made.facts = {**(made.facts or {}), "refusal": True}
        return made


def _facts(response: dict[str, Any]) -> dict[str, Any]:
    told = {name: response[name] for name in ("id", "model", "service_tier") if response.get(name) is not None}
    return told | usage_facts(response.get("usage"))


def responses_fields(task: TaskRequest) -> dict[str, Any]:
    """``/responses`` for a task. The API has no stop strings, penalties, seed or logit bias."""
    fields: dict[str, Any] = {
        "model": task.model,
        "input": task.prompt if task.messages is None else [item for turn in task.messages for item in _items(turn)],
        "max_output_tokens": task.max_tokens,
        "temperature": task.temperature,
        "top_p": task.top_p,
        "tools": task.tools and [_tool(tool) for tool in task.tools],
        "tool_choice": _choice(task.tool_choice),
        "text": _format(task.response_format),
    }
    if task.logprobs is not None:
        fields |= {"top_logprobs": task.logprobs, "include": ["message.output_text.logprobs"]}
    return present(fields)


def _items(turn: Message) -> list[dict[str, Any]]:
    """A turn as input items: calls and their answers are items of their own."""
    if turn.role == "tool":
        return [{"type": "function_call_output", "call_id": turn.tool_call_id, "output": turn.content}]
    said = [] if turn.content is None else [{"role": turn.role, "content": turn.content}]
    return said + [
        {"type": "function_call", "call_id": mapping(call).get("id"), **mapping(mapping(call).get("function"))}
        for call in turn.tool_calls or ()
    ]


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    """Chat nests a function's name and schema, Responses does not."""
    return {"type": "function", **tool["function"]}


def _choice(choice: Any) -> Any:
    function = mapping(mapping(choice).get("function"))
    return {"type": "function", **function} if function else choice


def _format(wanted: dict[str, Any] | None) -> dict[str, Any] | None:
    if wanted is None:
        return None
    inner = {"name": "answer", **wanted["json_schema"]} if wanted["type"] == "json_schema" else {}
    return {"format": {"type": wanted["type"], **inner}}
