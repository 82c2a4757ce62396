"""The Responses API of vLLM 0.32.0: the keys of an event in alphabetical order, and `response.completed` for an answer
that was cut (its status says incomplete)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from .engine import Piece
from .openai_request import event
from .openai_responses import Responses, whole_response
from .openai_script import Step
from .vllm_events import Run


class _VllmResponses(Responses):
    def __init__(self, run: Run) -> None:
        body = run.job.body
        super().__init__(
            run.scripts[0], name=run.id, model=run.model, created=run.created, body=body, prompted=run.prompted
        )
        self.run = run

    def frame(self, kind: str, fields: dict[str, Any]) -> bytes:
        everything = {"type": kind, "sequence_number": self._sequence, **fields}
        return event({name: everything[name] for name in sorted(everything)}, kind)

    def terminal(self, status: str) -> str:
        return "response.completed"

    def message(self, name: str, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": name,
            "content": content,
            "role": "assistant",
            "status": status,
            "type": "message",
            "phase": None,
        }

    def part(self, text: str, *, final: bool) -> dict[str, Any]:
        return {"annotations": [], "text": text, "type": "output_text", "logprobs": None if final else []}

    def usage(self) -> dict[str, Any]:
        cached = {"cached_tokens": 0, "cache_write_tokens": 0}
        reasoned = {"reasoning_tokens": self.script.reasoned, "tool_output_tokens": 0}
        return {
            "input_tokens": self.prompted,
            "input_tokens_details": {**cached, "input_tokens_per_turn": [], "cached_tokens_per_turn": []},
            "output_tokens": self.script.generated,
            "output_tokens_details": {
                **reasoned,
                "output_tokens_per_turn": [],
                "tool_output_tokens_per_turn": [],
            },
            "total_tokens": self.prompted + self.script.generated,
        }

    def response(self, status: str) -> dict[str, Any]:
        body, done = self.body, status != "in_progress"
        tools = body.get("tools") or []
        answer = {
            "id": self.name,
            "created_at": self.created,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": body.get("instructions"),
            "metadata": body.get("metadata"),
            "model": self.model,
            "object": "response",
            "output": self.output if done else [],
            "parallel_tool_calls": True,
            "temperature": float(1 if body.get("temperature") is None else body["temperature"]),
            "tool_choice": body.get("tool_choice", "auto" if tools else "none"),
            "tools": tools,
            "top_p": float(body.get("top_p") or 1),
            "background": False,
            "max_output_tokens": body.get("max_output_tokens", self.script.room),
            "max_tool_calls": None,
            "previous_response_id": None,
            "prompt": None,
            "reasoning": body.get("reasoning"),
            "service_tier": "auto",
            "status": status,
            "text": body.get("text"),
            "top_logprobs": None,
            "truncation": "disabled",
            "usage": self.usage() if done else None,
            "user": None,
        }
        if self.run.metrics and done:
            answer["metrics"] = {**self.run.timing(), "speculative_decoding": None}
        ending = ("kv_transfer_params", "ec_transfer_params", "input_messages", "output_messages")
        return {**answer, "presence_penalty": 0.0, "frequency_penalty": 0.0, **dict.fromkeys(ending)}


def response_pieces(run: Run) -> Iterator[Piece]:
    """The whole stream of /v1/responses; no [DONE] ends it."""
    form = _VllmResponses(run)
    for data in form.opening():
        yield Piece(data)
    wait = run.prompt_delay + run.delay
    for _, step in run.steps():
        if step is None:
            yield Piece(b"", delay=wait)
            wait = run.delay
            trouble = run.trouble()
            if trouble is not None:
                yield Piece(run.complain(trouble))
                return
            continue
        for data, tokens in form.step(step):
            yield Piece(data, tokens)
    yield Piece(form.ending(), finish=True)


def response_whole(run: Run, steps: Sequence[Sequence[Step]]) -> dict[str, Any]:
    """The body of /v1/responses without a stream."""
    return whole_response(_VllmResponses(run), steps[0])
