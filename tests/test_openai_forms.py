"""The OpenAI dialect beyond single servers: answers in one piece, chunks, events, legacy text, Responses."""

from __future__ import annotations

from typing import Any

import pytest

from dialect import CHAT, CLOCKS, HI, ROLE, STOP, Case, error, of_delta, piece, play, usage
from replay import ReplayServer, streamed, told, written
from verdicts import Bad, Good
from worker_adapters.adapters.openai import OpenAIHttpAdapter
from worker_adapters.errors import (
    CapacityExceeded,
    ContextOverflow,
    EngineUnavailable,
    InvalidRequest,
    StreamTruncated,
    WorkerError,
)
from worker_adapters.frames import TokenFrame, ToolCall

pytestmark = pytest.mark.openai

# --- 200, but no stream


def message(content: Any, finish: str | None = "stop", **more: Any) -> dict[str, Any]:
    return {"index": 0, "message": {"role": "assistant", "content": content, **more}, "finish_reason": finish}


CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
ONE_PIECE: dict[str, Case] = {
    "a message": (told(200, {"choices": [message("Hi")], "usage": usage(3, 1)}), Good("Hi", "stop", (3, 1))),
    "a message without usage": (told(200, {"choices": [message("Hi", "length")]}), Good("Hi", "length")),
    "reasoning": (told(200, {"choices": [message("Hi", reasoning="hm")]}), Good("Hi", "stop", reasoning="hm")),
    "a call": (
        told(200, {"choices": [message(None, "tool_calls", tool_calls=[CALL])]}),
        Good("", "tool_calls", calls=(ToolCall("call_1", "f", "{}"),)),
    ),
    "a refusal": (told(200, {"choices": [message(None, refusal="No.")]}), Good("No.", "stop")),
    "an error": (told(200, error(code=502, message="down")), Bad(EngineUnavailable, 502, words="down")),
    "an error in words": (told(200, {"error": "down"}), Bad(EngineUnavailable, None, words="down")),
    "aborted": (told(200, {"choices": [message("Hi", "abort")]}), Bad(StreamTruncated, pieces="Hi")),
    "failed": (told(200, {"choices": [message("Hi", "error")]}), Bad(EngineUnavailable, pieces="Hi")),
}


@pytest.mark.parametrize("case", ONE_PIECE)
def test_an_answer_in_one_piece_is_taken(case: str) -> None:
    """A server that ignores ``stream`` is read all the same, and what it delivered before a failure is kept."""
    play(ONE_PIECE[case])


@pytest.mark.parametrize(
    "answer",
    [
        told(200, {"choices": [message("Hi", None)]}),
        told(200, {"choices": []}),
        told(200, {}),
        told(200, []),
        told(200, None),
        written(200, b'{"choices":[{"index":0,"message":{"content":"H'),
        written(200, b""),
        written(200, b"<html>sign in</html>", content_type="text/html"),
    ],
)
def test_what_is_no_answer_is_never_a_good_end(answer: list[bytes]) -> None:
    """200 without a reason for ending, or with something else, is a typed error that is not tried again."""
    with ReplayServer({}) as server, OpenAIHttpAdapter(server.url, model="m", timeouts=CLOCKS) as engine:
        server.answer = answer
        with pytest.raises(WorkerError) as caught:
            engine.submit(CHAT).result()
        assert len(server.asked) == 1
    assert not isinstance(caught.value, InvalidRequest)
    assert caught.value.retriable is False


# --- chunks of chat

CHUNKS: dict[str, Case] = {
    "choices null, absent, empty": (streamed({"choices": None}, {"id": "c"}, {"choices": []}, piece("Hi"), STOP), HI),
    "a choice without a delta": (streamed(piece("Hi"), {"choices": [{"index": 0, "finish_reason": "stop"}]}), HI),
    "a delta null": (streamed({"choices": [{"index": 0, "delta": None}]}, piece("Hi"), STOP), HI),
    "content null": (streamed(of_delta({"content": None}), piece("Hi"), STOP), HI),
    "text on the finish chunk": (streamed(piece("Hi"), piece(" you", "stop")), Good("Hi| you", "stop")),
    "several choices": (
        streamed(
            {"choices": [{"index": 1, "delta": {"content": "No"}}, {"index": 0, "delta": {"content": "Hi"}}]},
            {"choices": [{"index": 1, "delta": {}, "finish_reason": "length"}]},
            STOP,
        ),
        HI,
    ),
    "another choice's end alone": (
        streamed(piece("Hi"), {"choices": [{"index": 1, "delta": {}, "finish_reason": "stop"}]}),
        Bad(StreamTruncated, pieces="Hi"),
    ),
    "usage on every chunk, the last counts": (
        streamed(piece("Hi", usage=usage(3, 1)), {**STOP, "usage": usage(3, 2)}, {"choices": [], "usage": usage(3, 2)}),
        Good("Hi", "stop", (3, 2)),
    ),
    "usage of zeros tells nothing": (streamed(piece("Hi", usage=usage(0, 0)), {**STOP, "usage": usage(0, 0)}), HI),
    "zeros after the real usage": (
        streamed(piece("Hi"), {**STOP, "usage": usage(3, 1)}, {"choices": [], "usage": usage(0, 0)}),
        Good("Hi", "stop", (3, 1)),
    ),
    "usage's parts null": (
        streamed(piece("Hi"), STOP, {"choices": [], "usage": {**usage(3, 1), "prompt_tokens_details": None}}),
        Good("Hi", "stop", (3, 1)),
    ),
    "a function call of old": (
        streamed(of_delta({"function_call": {"name": "f", "arguments": "{}"}}), of_delta({}, "function_call")),
        Good("", "tool_calls", raw="function_call", calls=(ToolCall("call_0", "f", "{}"),)),
    ),
    "an unknown reason": (streamed(piece("Hi"), of_delta({}, "eos")), Good("Hi", "stop", raw="eos")),
    "only [DONE]": (streamed(), Bad(StreamTruncated)),
    "the role, then [DONE]": (streamed(ROLE), Bad(StreamTruncated, began=True)),
    "no [DONE] after the reason": (streamed(piece("Hi"), STOP, done=False), HI),
    "half an event at the end": (
        written(
            200,
            b'data: {"choices":[{"index":0,"delta":{"content":"Hi"}}]}\n\ndata: {"choices":[{"ind',
            content_type="text/event-stream",
        ),
        Bad(StreamTruncated, pieces="Hi"),
    ),
    "an error, then [DONE]": (streamed(error(message="x", type="server_error")), Bad(EngineUnavailable, words="x")),
}


@pytest.mark.parametrize("case", CHUNKS)
def test_chunks_in_all_their_forms(case: str) -> None:
    """Whatever may be empty, null or absent is; only a finish reason of the first choice ends a stream well."""
    play(CHUNKS[case])


EVENTS = {
    "CRLF": b'data: {"choices":[{"index":0,"delta":{"content":"Hi"}}]}\r\n\r\ndata: FIN\r\n\r\ndata: [DONE]\r\n\r\n',
    "no space": b'data:{"choices":[{"index":0,"delta":{"content":"Hi"}}]}\n\ndata:FIN\n\ndata:[DONE]\n\n',
    "other lines": b': c\n\nid: 1\nretry: 5\nevent: x\ndata: {"type":"ping"}\n\ndata:\n\n'
    b'data: {"choices":[{"delta":{"content":"Hi"}}]}\n\ndata: FIN\n\n',
    "a byte order mark": b'\xef\xbb\xbfdata: {"choices":[{"index":0,"delta":{"content":"Hi"}}]}\n\ndata: FIN\n\n',
}


@pytest.mark.parametrize("form", EVENTS)
def test_events_in_all_their_forms(form: str) -> None:
    """Line ends, a missing space, comments, ids and names of events change nothing."""
    body = EVENTS[form].replace(b"FIN", b'{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}')
    play((written(200, body, content_type="text/event-stream; charset=utf-8"), HI))


# --- logprobs


def of_chat(*logprobs: float | None, **more: Any) -> dict[str, Any]:
    """Logprobs as a chunk of a chat has them."""
    return {"content": [{"token": "Hi", "logprob": logprob, "top_logprobs": [], **more} for logprob in logprobs]}


LOGPROBS: dict[str, tuple[Any, float | None]] = {
    "OpenAI": ({**of_chat(-0.5, bytes=[72, 105]), "refusal": None}, -0.5),
    "bytes null": (of_chat(-0.5, bytes=None), -0.5),
    "no bytes, no refusal (TGI, Ollama)": (of_chat(-0.5), -0.5),
    "several tokens add up": (of_chat(-0.5, -0.25), -0.75),
    "impossible (llama.cpp)": (of_chat(-3.4028234663852886e38), -3.4028234663852886e38),
    "clamped (vLLM)": (of_chat(-9999.0), -9999.0),
    "null": (None, None),
    "no tokens": (of_chat(), None),
    "legacy": ({"tokens": ["Hi"], "token_logprobs": [-0.5], "top_logprobs": None, "text_offset": [0]}, -0.5),
    "legacy, null": ({"tokens": ["Hi"], "token_logprobs": [None], "top_logprobs": [None], "text_offset": [0]}, None),
}


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("form", LOGPROBS)
def test_logprobs_in_all_their_forms(form: str, asked: bool) -> None:
    """A token frame has its logprob if that was asked for, and only then."""
    logprobs, expected = LOGPROBS[form]
    chunk = text("Hi") if form.startswith("legacy") else piece("Hi")
    chunk["choices"][0]["logprobs"] = logprobs
    task = "my prompt" if form.startswith("legacy") else CHAT
    with ReplayServer({}) as server, OpenAIHttpAdapter(server.url, model="m", timeouts=CLOCKS) as engine:
        server.answer = streamed(chunk, STOP)
        frames = list(engine.submit(task, logprobs=1 if asked else None))
    [token] = [frame for frame in frames if isinstance(frame, TokenFrame)]
    assert (token.text, token.logprob) == ("Hi", expected if asked else None)


# --- legacy completions


def text(piece: str | None, finish: str | None = None, **more: Any) -> dict[str, Any]:
    choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": finish}
    return {"object": "text_completion", "choices": [choice if piece is None else {**choice, "text": piece}], **more}


TEXTS: dict[str, Case] = {
    "plain": (streamed(text("Hi"), text("", "stop")), HI),
    "the last choice without text (LiteLLM)": (streamed(text("Hi"), text(None, "length")), Good("Hi", "length")),
    "zero usage on every chunk (LiteLLM, Ollama)": (
        streamed(text("Hi", usage=usage(0, 0)), text("", "stop", usage=usage(0, 0))),
        HI,
    ),
    "zero usage, then the real one (Ollama)": (
        streamed(
            text("Hi", usage=usage(0, 0)), text("", "stop", usage=usage(0, 0)), {"choices": [], "usage": usage(3, 1)}
        ),
        Good("Hi", "stop", (3, 1)),
    ),
    "in one piece": (told(200, {**text("Hi", "stop"), "usage": usage(3, 1)}), Good("Hi", "stop", (3, 1))),
    "no reason": (streamed(text("Hi")), Bad(StreamTruncated, pieces="Hi")),
}


@pytest.mark.parametrize("case", TEXTS)
def test_legacy_completions_are_read(case: str) -> None:
    """A prompt's answer is in ``text``; what may be missing is."""
    play(TEXTS[case], "my prompt")


# --- Responses


def event(kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": f"response.{kind}", "sequence_number": 1, **fields}


def ended(status: str, kind: str = "", **fields: Any) -> dict[str, Any]:
    used = {"input_tokens": 3, "output_tokens": 1, "total_tokens": 4}
    return event(kind or status, response={"object": "response", "status": status, "usage": used, **fields})


def said(piece: str) -> dict[str, Any]:
    return event("output_text.delta", item_id="i", output_index=0, content_index=0, delta=piece)


CREATED = event("created", response={"id": "r", "status": "in_progress"})
FUNCTION = {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": ""}
RESPONSES: dict[str, Case] = {
    "data lines only, and [DONE] (LiteLLM)": (
        streamed(CREATED, said("Hi"), ended("completed")),
        Good("Hi", "stop", (3, 1), raw="completed"),
    ),
    "incomplete for length": (
        streamed(
            CREATED, said("Hi"), ended("incomplete", incomplete_details={"reason": "max_output_tokens"}), done=False
        ),
        Good("Hi", "length", (3, 1), raw="max_output_tokens"),
    ),
    "incomplete for the filter": (
        streamed(said("Hi"), ended("incomplete", incomplete_details={"reason": "content_filter"}), done=False),
        Good("Hi", "content_filter", (3, 1), raw="content_filter"),
    ),
    "events nobody knows": (
        streamed(CREATED, event("web_search_call.searching"), {"type": "keepalive"}, said("Hi"), ended("completed")),
        Good("Hi", "stop", (3, 1), raw="completed"),
    ),
    "a refusal": (
        streamed(event("refusal.delta", item_id="i", delta="No."), ended("completed"), done=False),
        Good("No.", "stop", (3, 1), raw="completed"),
    ),
    "reasoning": (
        streamed(event("reasoning_summary_text.delta", item_id="i", delta="hm"), said("Hi"), ended("completed")),
        Good("Hi", "stop", (3, 1), raw="completed", reasoning="hm"),
    ),
    "a call": (
        streamed(
            event("output_item.added", output_index=0, item=FUNCTION),
            event("function_call_arguments.delta", output_index=0, item_id="i", delta='{"a"'),
            event("function_call_arguments.delta", output_index=0, item_id="i", delta=":1}"),
            event("function_call_arguments.done", output_index=0, item_id="i", arguments='{"a":1}'),
            event("output_item.done", output_index=0, item={**FUNCTION, "arguments": '{"a":1}'}),
            ended("completed"),
        ),
        Good("", "tool_calls", (3, 1), raw="completed", calls=(ToolCall("call_1", "f", '{"a":1}'),)),
    ),
    "failed": (
        streamed(CREATED, said("Hi"), ended("failed", error={"code": "server_error", "message": "broke"})),
        Bad(EngineUnavailable, pieces="Hi", words="broke"),
    ),
    "failed for its rate": (
        streamed(CREATED, ended("failed", error={"code": "rate_limit_exceeded", "message": "slow"})),
        Bad(CapacityExceeded, began=True, words="slow"),
    ),
    "a bare error": (
        streamed({"type": "error", "code": "server_error", "message": "broke", "param": None, "sequence_number": 2}),
        Bad(EngineUnavailable, words="broke"),
    ),
    "a bare error of the window": (
        streamed({"type": "error", "code": "context_length_exceeded", "message": "long", "param": "input"}),
        Bad(ContextOverflow, further={"field": "input"}, words="long"),
    ),
    "cancelled": (streamed(CREATED, said("Hi"), ended("cancelled")), Bad(StreamTruncated, pieces="Hi")),
    "cut": (streamed(CREATED, said("Hi"), done=False), Bad(StreamTruncated, pieces="Hi")),
    "only [DONE]": (streamed(CREATED), Bad(StreamTruncated, began=True)),
}


@pytest.mark.parametrize("case", RESPONSES)
def test_responses_are_read(case: str) -> None:
    """The JSON's type decides what an event is, and the response's status how it ended."""
    play(RESPONSES[case], "my prompt", api="responses")
