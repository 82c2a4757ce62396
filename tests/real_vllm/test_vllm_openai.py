"""The OpenAI adapter before the real vLLM: chat, completions and the Responses API."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from engines.llamacpp_bench import Reader, at_once, milliseconds, text_of, types_of, until, usual
from real_vllm.conftest import TEXT
from real_vllm.recite_hf import pieces_of
from real_vllm.server import CONTEXT, MODEL, RealVllm
from worker_adapters import ContextOverflow, InvalidRequest, ModelNotFound, OpenAIHttpAdapter

pytestmark = [pytest.mark.engines, pytest.mark.real_vllm]

Make = Callable[..., Any]
Figures = Callable[[str, object], None]

#: The letter takes two tokens, the bird four, the end one.
TOKENS = len(pieces_of(TEXT)) + 1 + 3 + 1
MESSAGES = [{"role": "user", "content": "Go"}]
APIS = pytest.mark.parametrize(
    ("api", "task"),
    [("auto", "Go"), ("completions", "Go"), ("auto", MESSAGES), ("chat", "Go"), ("responses", "Go"),
     ("responses", MESSAGES)],
    ids=["prompt", "completions", "messages", "chat", "responses-prompt", "responses-messages"],
)  # fmt: skip


@APIS
def test_streams_the_text_exactly(plain: RealVllm, make: Make, api: str, task: Any) -> None:
    """Each API streams the recital exactly, with exact counts."""
    frames = list(make(OpenAIHttpAdapter, plain.url, api=api, model=MODEL).submit(task, temperature=0))
    assert types_of(frames) == ["started", "token", "end"]
    assert text_of(frames) == TEXT
    assert (frames[0].engine, frames[0].engine_version, frames[0].model) == ("openai", "unknown", MODEL)
    end = frames[-1]
    assert (end.finish_reason, end.metrics.counts, end.metrics.tokens_out) == ("stop", "exact", TOKENS)
    assert end.metrics.tokens_in > 0


@APIS
def test_length(plain: RealVllm, make: Make, api: str, task: Any) -> None:
    """max_tokens is exact and gives the reason length, whatever the API calls it."""
    engine = make(OpenAIHttpAdapter, plain.url, api=api, model=MODEL)
    for count in (1, 5, 17):
        done = engine.submit(task, max_tokens=count, temperature=0).result()
        assert (done.finish_reason, done.metrics.tokens_out) == ("length", count)
        assert TEXT.startswith(done.text)


@APIS
def test_cancel(
    narrow: RealVllm, make: Make, api: str, task: Any, record_property: Callable[[str, object], None]
) -> None:
    """Each API's job ends with a cancel, running or queued, and soon frees the engine."""
    engine = make(OpenAIHttpAdapter, narrow.url, api_key=narrow.key, api=api, model=MODEL)
    took = []
    ended = narrow.metric("request_success_total")
    for _ in range(3):
        fields: dict[str, Any] = {"extra": {"ignore_eos": True}, "max_tokens": 4000, "temperature": 0}
        holder = Reader(engine.submit(task, **fields), at=4)
        holder.start()
        holder.wait()
        queued = Reader(engine.submit(task, **fields))
        queued.start()
        until(lambda: narrow.busy() == 2, every=0.01)
        began = time.monotonic()
        for reader in (queued, holder):
            assert reader.stream.cancel()
        until(lambda: not narrow.busy(), every=0.002)
        took.append(time.monotonic() - began)
        for reader in (queued, holder):
            reader.finish()
            assert reader.error is None
            assert reader.frames[-1].finish_reason == "cancelled"
    record_property(
        f"openai ({api}, {'prompt' if task == 'Go' else 'messages'}): two cancels -> running + waiting is 0",
        milliseconds(took),
    )
    assert narrow.metric("request_success_total") == ended, "a job ended by itself, not by its cancel"
    assert usual(took) < 5


@APIS
def test_refusals(plain: RealVllm, make: Make, api: str, task: Any) -> None:
    """An unknown model, a prompt beyond the window, a bad value: each is its own error, before any frame."""
    engine = make(OpenAIHttpAdapter, plain.url, api=api, model=MODEL)
    long = "x" * (CONTEXT + 100)
    refusals: list[tuple[type[InvalidRequest], Any, dict[str, Any]]] = [
        (ModelNotFound, task, {"model": "nobody"}),
        (ContextOverflow, long if task == "Go" else [{"role": "user", "content": long}], {"max_tokens": 1}),
        (InvalidRequest, task, {"temperature": 2.5}),
    ]
    for kind, prompt, fields in refusals:
        with pytest.raises(kind) as caught:
            engine.submit(prompt, **fields).start()
        assert caught.value.status in (400, 404)
        assert not caught.value.retriable
        assert "xxxx" not in str(caught.value)


@APIS
def test_threads_cross_no_texts(plain: RealVllm, make: Make, api: str, task: Any) -> None:
    """16 threads with 10 jobs each: every answer is its own job's."""
    engine = make(OpenAIHttpAdapter, plain.url, api=api, model=MODEL, timeouts={"first_token": 100})

    def jobs(name: int) -> None:
        for number in range(10):
            text = f"t{name}-{number}"
            fields: dict[str, Any] = {"extra": {"structured_outputs": {"regex": text}}, "temperature": 0}
            assert engine.submit(task, **fields).result().text == text

    assert at_once([lambda name=name: jobs(name) for name in range(16)]) == []


def test_props_and_health(plain: RealVllm, make: Make) -> None:
    """Whatever is told in the list of models is in the props; health knows the server from the wrong path."""
    engine = make(OpenAIHttpAdapter, plain.url)
    props = engine.props()
    assert (props.model, props.context_size, props.residency) == (MODEL, CONTEXT, "unknown")
    assert engine.health().ready
    assert not make(OpenAIHttpAdapter, plain.url + "/v2").health().ready


def test_logprobs(plain: RealVllm, make: Make) -> None:
    """Asked for, tokens have a logarithm of a probability."""
    for api, task in (("completions", "Go"), ("chat", MESSAGES)):
        engine = make(OpenAIHttpAdapter, plain.url, api=api, model=MODEL)
        frames = [frame for frame in engine.submit(task, temperature=0, logprobs=1) if frame.type == "token"]
        assert text_of(frames) == TEXT
        assert all(frame.logprob is not None and -1 < frame.logprob <= 0 for frame in frames)
