"""The Responses API: named events around items, the same order everywhere; shapes and key order are the server's."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from typing import Any

from .openai_request import event
from .openai_script import Script, Step


class Responses:
    """One answer of /v1/responses, in api.openai.com's shapes; a server with other shapes overrides what differs."""

    reasoning_prefix = "rs_"

    def __init__(
        self, script: Script, *, name: str, model: str, created: int, body: dict[str, Any], prompted: int
    ) -> None:
        self.script = script
        self.name = name
        self.model = model
        self.created = created
        self.body = body
        self.prompted = prompted
        self.output: list[dict[str, Any]] = []
        self._sequence = 0

    # -- shapes --------------------------------------------------------------------------------------------------

    def frame(self, kind: str, fields: dict[str, Any]) -> bytes:
        """One event on the wire."""
        return event({"type": kind, "sequence_number": self._sequence, **fields}, kind)

    def response(self, status: str) -> dict[str, Any]:
        """The response object."""
        done = status != "in_progress"
        return {
            "id": self.name,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "model": self.model,
            "output": self.output if done else [],
            "usage": self.usage() if done else None,
        }

    def usage(self) -> dict[str, Any]:
        """The usage object."""
        made = self.script.generated
        return {
            "input_tokens": self.prompted,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": made,
            "output_tokens_details": {"reasoning_tokens": self.script.reasoned},
            "total_tokens": self.prompted + made,
        }

    def message(self, name: str, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        """A message item."""
        return {"id": name, "type": "message", "status": status, "role": "assistant", "content": content}

    def part(self, text: str, *, final: bool) -> dict[str, Any]:
        """A text part of a message."""
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    def terminal(self, status: str) -> str:
        """The last event's name."""
        return "response.completed" if status == "completed" else "response.incomplete"

    # -- the stream ----------------------------------------------------------------------------------------------

    def opening(self) -> Iterator[bytes]:
        """The events before the first token."""
        for kind in ("response.created", "response.in_progress"):
            yield self._event(kind, {"response": self.response("in_progress")})

    def step(self, step: Step) -> Iterator[tuple[bytes, int]]:
        """The events of one step, and the tokens each counts for; those that open and close items count for none."""
        kind = f"call {step.call}" if step.kind == "call" else step.kind
        if kind != self._open:
            yield from ((data, 0) for data in self._close())
            if step.text or step.kind == "call" or not step.finish:
                yield from ((data, 0) for data in self._begin(kind, step))
        if step.text:
            self._said += step.text
            yield self._delta(step.text), step.tokens
        if step.finish:
            yield from ((data, 0) for data in self._close())

    def ending(self) -> bytes:
        """The terminal event."""
        status = self.status()
        return self._event(self.terminal(status), {"response": self.response(status)})

    def failure(self, message: str, *, failed: bool) -> bytes:
        """The event of an error: `error` on its own, or the terminal response.failed."""
        if not failed:
            return self._event("error", {"code": "server_error", "message": message, "param": None})
        response = {**self.response("failed"), "error": {"code": "server_error", "message": message}}
        return self._event("response.failed", {"response": response})

    def status(self) -> str:
        """How the response ended."""
        return "incomplete" if self.script.finish == "length" else "completed"

    # -- items ---------------------------------------------------------------------------------------------------

    _open = ""
    _said = ""
    _item: dict[str, Any]

    @property
    def _at(self) -> dict[str, Any]:
        return {"item_id": self._item["id"], "output_index": len(self.output)}

    def _begin(self, kind: str, step: Step) -> Iterator[bytes]:
        self._open, self._said = kind, ""
        number = secrets.token_hex(8)
        if kind == "text":
            self._item = self.message(f"msg_{number}", "in_progress", [])
        elif kind == "reasoning":
            self._item = {"id": self.reasoning_prefix + number, "type": "reasoning", "summary": [], "content": []}
        else:
            call = {"id": f"fc_{number}", "type": "function_call", "status": "in_progress"}
            self._item = {**call, "arguments": "", "call_id": f"call_{number}", "name": step.name}
        yield self._event("response.output_item.added", {"output_index": len(self.output), "item": dict(self._item)})
        if kind == "text":
            part = {**self._at, "content_index": 0, "part": self.part("", final=False)}
            yield self._event("response.content_part.added", part)

    def _delta(self, text: str) -> bytes:
        if self._open.startswith("call"):
            return self._event("response.function_call_arguments.delta", {**self._at, "delta": text})
        fields = {**self._at, "content_index": 0, "delta": text}
        if self._open == "reasoning":
            return self._event("response.reasoning_text.delta", fields)
        return self._event("response.output_text.delta", {**fields, "logprobs": []})

    def _close(self) -> Iterator[bytes]:
        if not self._open:
            return
        text, at = self._said, {**self._at, "content_index": 0}
        if self._open == "text":
            self._item = self.message(self._item["id"], "completed", [self.part(text, final=True)])
            yield self._event("response.output_text.done", {**at, "text": text, "logprobs": []})
            yield self._event("response.content_part.done", {**at, "part": self.part(text, final=True)})
        elif self._open == "reasoning":
            self._item["content"] = [{"type": "reasoning_text", "text": text}]
            yield self._event("response.reasoning_text.done", {**at, "text": text})
        else:
            self._item |= {"status": "completed", "arguments": text}
            done = {**self._at, "name": self._item["name"], "arguments": text}
            yield self._event("response.function_call_arguments.done", done)
        index, self._open = len(self.output), ""
        self.output.append(self._item)
        yield self._event("response.output_item.done", {"output_index": index, "item": self._item})

    def _event(self, kind: str, fields: dict[str, Any]) -> bytes:
        data = self.frame(kind, fields)
        self._sequence += 1
        return data


def whole_response(form: Responses, steps: Sequence[Step]) -> dict[str, Any]:
    """The body of an answer without a stream."""
    for step in steps:
        for _ in form.step(step):
            pass
    return form.response(form.status())
