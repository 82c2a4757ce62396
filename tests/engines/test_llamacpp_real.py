"""What the real llama.cpp says through the adapter: texts, stops, seeds, probabilities, grammars, thoughts, calls."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engines.llamacpp_bench import text_of, types_of
from worker_adapters import InvalidRequest, LlamaCppHttpAdapter, TaskRequest
from worker_adapters.cancel import Job
from worker_adapters.contract import Attempt, Wait
from worker_adapters.embedded import (
    REASONING_TEXT,
    EmbeddedLlamaCpp,
    recital,
    write_reasoning_gguf,
    write_recite_gguf,
    write_tool_call_gguf,
)

pytestmark = [pytest.mark.engines, pytest.mark.llamacpp]

Adapters = Callable[..., LlamaCppHttpAdapter]

MESSAGES = [{"role": "system", "content": "Recite."}, {"role": "user", "content": "Go on"}]
#: Every letter is as likely as any other, so that the seed alone decides.
DICE: dict[str, Any] = {
    "grammar": 'root ::= [a-z] "-" [a-z]+', "temperature": 1.0, "min_p": 0.0, "top_k": 0, "top_p": 1.0, "max_tokens": 40
}  # fmt: skip
SCRIPTS = "Ünïcödé: 日本語 and 🙂 or 🙃, é é, العربية, हिन्दी!"
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@pytest.mark.parametrize("task", ["Go", MESSAGES], ids=["prompt", "chat"])
def test_streams_the_text_exactly(engine: LlamaCppHttpAdapter, task: Any) -> None:
    """A prompt and a conversation both stream the recital exactly, in contiguous frames between started and end."""
    frames = list(engine.submit(task))
    assert types_of(frames) == ["started", "token", "end"]
    assert text_of(frames) == recital()
    assert [frame.index for frame in frames[1:-1]] == list(range(len(frames) - 2))
    end = frames[-1]
    assert end.finish_reason == "stop"
    assert end.metrics.counts == "exact"
    assert end.metrics.tokens_out > len(frames) - 3  # é takes two tokens and the end one
    assert end.metrics.tokens_in > 0


def test_result_is_the_whole_answer(engine: LlamaCppHttpAdapter) -> None:
    """The completion has the text of the frames, the reason and times in their order."""
    done = engine.submit("Go", job_id="whole-answer").result()
    assert (done.text, done.finish_reason, done.raw_finish_reason) == (recital(), "stop", "eos")
    assert done.job_id == "whole-answer"
    metrics = done.metrics
    assert 0 < metrics.queue_ms <= metrics.first_token_ms <= metrics.total_ms
    assert metrics.engine["timings"]["predicted_n"] == metrics.tokens_out


@pytest.mark.parametrize(
    ("stop", "left", "word"),
    [
        (["cancel halfway"], "arrive, ", "cancel halfway"),
        ([" cancel halfway"], "arrive,", " cancel halfway"),
        (["arrive, cancel halfway, or let"], "tokens ", "arrive, cancel halfway, or let"),
        (["arrive, cancel quickly", "café"], "at the ", "café"),
        (["afé"], "the c", "afé"),
        (["e"], "W", "e"),
        (["Welcome! This"], "", "Welcome! This"),
        (["never said", "arrive, cancel half-way"], "the street.", None),
    ],
)
def test_stop_words(engine: LlamaCppHttpAdapter, stop: list[str], left: str, word: str | None) -> None:
    """The answer ends before the first stop word, however many tokens it spans, and a near miss is given back."""
    done = engine.submit("Go", stop=stop).result()
    whole = recital()
    want = whole if word is None else whole[: whole.index(word)]
    assert done.text == want
    assert want.endswith(left) or word is None
    assert done.finish_reason == "stop"
    assert done.raw_finish_reason == ("word" if word else "eos")
    assert done.metrics.engine.get("stopping_word") == word


def test_stop_words_in_a_chat(engine: LlamaCppHttpAdapter) -> None:
    """A conversation stops at the same place as a prompt."""
    done = engine.submit(MESSAGES, stop=["recites one"]).result()
    assert done.text == recital().partition("recites one")[0]
    assert done.finish_reason == "stop"


def test_length(engine: LlamaCppHttpAdapter) -> None:
    """max_tokens is exact and gives the reason length."""
    for count in (1, 2, 17):
        for task in ("Go", MESSAGES):
            done = engine.submit(task, max_tokens=count).result()
            assert (done.finish_reason, done.metrics.tokens_out) == ("length", count)
            assert recital().startswith(done.text)


def test_seeds(engine: LlamaCppHttpAdapter) -> None:
    """The same seed says the same and another one something else."""
    texts = [[engine.submit("Go", seed=seed, **DICE).result().text for _ in range(3)] for seed in (1, 2, 3, 2**32 - 2)]
    assert all(len(set(said)) == 1 for said in texts)
    assert len({said[0] for said in texts}) == 4


@pytest.mark.parametrize("task", ["Go", MESSAGES], ids=["prompt", "chat"])
def test_a_run_without_a_seed_can_be_repeated(engine: LlamaCppHttpAdapter, task: Any) -> None:
    """The seed that the adapter chose is told, differs from job to job, and repeats the run."""
    runs = [engine.submit(task, **DICE).result() for _ in range(4)]
    seeds = [run.metrics.engine["seed"] for run in runs]
    assert len(set(seeds)) == 4
    assert len({run.text for run in runs}) == 4
    for run, seed in zip(runs, seeds, strict=True):
        again = engine.submit(task, seed=seed, **DICE).result()
        assert again.text == run.text
        assert again.metrics.engine["seed"] == seed


def test_a_seed_that_is_no_seed_here(engine: LlamaCppHttpAdapter) -> None:
    """The engine would take its largest seed for chance and cut larger ones, so both are refused unsent."""
    for seed in (2**32 - 1, 2**32, 2**40):
        with pytest.raises(InvalidRequest) as caught:
            engine.submit("Go", seed=seed)
        assert caught.value.field == "seed"


def test_greedy_is_the_same_every_time(engine: LlamaCppHttpAdapter) -> None:
    """Without temperature ten runs agree in every frame but the first and the last."""
    runs = [list(engine.submit("Go", temperature=0, logprobs=1))[1:-1] for _ in range(10)]
    assert all(run == runs[0] for run in runs)


@pytest.mark.parametrize("task", ["Go", MESSAGES], ids=["prompt", "chat"])
def test_logprobs_and_token_ids(engine: LlamaCppHttpAdapter, task: Any) -> None:
    """Asked for, every token frame has its id and a logarithm of a probability; else none has."""
    frames = [frame for frame in engine.submit(task, temperature=0, logprobs=2) if frame.type == "token"]
    assert text_of(frames) == recital()
    assert all(frame.logprob is not None and -1 < frame.logprob <= 0 for frame in frames)
    ids = [frame.token_id for frame in frames]
    assert ids[:3] == [259, 260, 261]  # the words of the model, in the order of its text
    assert len(set(ids)) == len(ids)
    plain = [frame for frame in engine.submit(task, max_tokens=5) if frame.type == "token"]
    assert all(frame.logprob is None and frame.token_id is None for frame in plain)


def test_logit_bias(engine: LlamaCppHttpAdapter) -> None:
    """A bias on a token's id makes the model say it first."""
    done = engine.submit("Go", temperature=0, max_tokens=1, logit_bias={"261": 100.0}).result()
    assert done.text == " engine"


@pytest.mark.parametrize("task", ["Go", MESSAGES], ids=["prompt", "chat"])
def test_grammar(engine: LlamaCppHttpAdapter, task: Any) -> None:
    """A grammar forces the answer, and a broken one is the request's fault."""
    assert engine.submit(task, grammar='root ::= "yes" | "no"', seed=5).result().text in ("yes", "no")
    with pytest.raises(InvalidRequest) as caught:
        engine.submit(task, grammar="root ::= (").start()
    assert caught.value.status == 400
    assert not caught.value.retriable
    assert "root" not in str(caught.value)


def test_characters_of_several_bytes(tmp_path: Path, adapters: Adapters) -> None:
    """Text said byte by byte comes in whole characters; cut by the limit, it ends before the broken one."""
    model = write_recite_gguf(tmp_path / "scripts.gguf", words=SCRIPTS)
    with EmbeddedLlamaCpp(model, slots=1) as server:
        engine = adapters(server)
        whole = engine.submit("x").result()
        assert whole.text == SCRIPTS
        for task in ("x", [{"role": "user", "content": "x"}]):
            for count in range(1, whole.metrics.tokens_out):
                done = engine.submit(task, max_tokens=count).result()
                assert SCRIPTS.startswith(done.text)
                assert done.metrics.tokens_out == count


def test_noise_is_still_text(engine: LlamaCppHttpAdapter) -> None:
    """Random bytes from a model gone wild come as text that can be encoded."""
    for seed in range(20):
        done = engine.submit("x", temperature=50.0, min_p=0.0, top_k=0, top_p=1.0, seed=seed, max_tokens=100).result()
        assert done.text.encode()


@pytest.mark.parametrize(
    "prompt",
    ["", "日本語 🙂 é", "a\0b", "\u202e\ufeff\u2028", "e\u0301" * 50, '"\\\n\r\t{}[]'],
    ids=["empty", "scripts", "nul", "marks", "combining", "json"],
)
def test_prompts_in_any_script(engine: LlamaCppHttpAdapter, prompt: str) -> None:
    """Whatever characters a prompt has, the engine gets it whole, byte by byte."""
    done = engine.submit(prompt + ".").result()
    assert done.text == recital()
    heard = (prompt + ".").replace(" ", "\u2581")  # how this tokenizer writes a space
    assert done.metrics.tokens_in == len(heard.encode()) + 1


def test_thoughts_are_apart(tmp_path: Path, adapters: Adapters) -> None:
    """Reasoning comes in frames of its own, which texts() leaves out, and is counted."""
    thought, _, answer = REASONING_TEXT.removeprefix("<think>").partition("</think>")
    with EmbeddedLlamaCpp(write_reasoning_gguf(tmp_path / "thinks.gguf")) as server:
        engine = adapters(server)
        frames = list(engine.submit([{"role": "user", "content": "hi"}]))
        texts = "".join(engine.submit([{"role": "user", "content": "hi"}]).texts())
        done = engine.submit([{"role": "user", "content": "hi"}]).result()
    assert types_of(frames) == ["started", "reasoning", "token", "end"]
    assert [f.index for f in frames if f.type == "reasoning"] == list(range(sum(f.type == "reasoning" for f in frames)))
    assert [f.index for f in frames if f.type == "token"] == list(range(sum(f.type == "token" for f in frames)))
    assert done.reasoning.strip() == thought.strip()
    assert done.text.strip() == texts.strip() == text_of(frames).strip() == answer.strip()
    assert done.finish_reason == "stop"


def test_a_tool_is_called(tmp_path: Path, adapters: Adapters) -> None:
    """A call comes in pieces that add up, its id and name on the first, and whole at the end."""
    with EmbeddedLlamaCpp(write_tool_call_gguf(tmp_path / "calls.gguf")) as server:
        engine = adapters(server)
        frames = list(engine.submit([{"role": "user", "content": "Oslo?"}], tools=[WEATHER]))
        with pytest.raises(InvalidRequest, match="tools"):
            engine.submit("Oslo?", tools=[WEATHER])
    assert types_of(frames) == ["started", "tool_call", "end"]
    pieces = [frame for frame in frames if frame.type == "tool_call"]
    assert pieces[0].name == "get_weather"
    assert pieces[0].call_id
    assert all(piece.name is None and piece.call_id is None for piece in pieces[1:])
    (call,) = frames[-1].tool_calls
    assert json.loads(call.arguments) == json.loads("".join(piece.arguments for piece in pieces)) == {"city": "Oslo"}
    assert (call.name, call.call_id) == ("get_weather", pieces[0].call_id)
    assert frames[-1].finish_reason == "tool_calls"


@pytest.mark.parametrize("others", [0, 3])
def test_a_session_keeps_its_cache(server: EmbeddedLlamaCpp, adapters: Adapters, others: int) -> None:
    """The second turn of a session computes only what is new, also with other sessions in between."""
    engine = adapters(server)
    first = f"session with {others} others: " + "tell me more. " * 10
    answer = engine.submit(first, session_id="mine", max_tokens=20).result()
    for other in range(others):
        engine.submit(f"{other} " * 40, session_id=f"other {other}", max_tokens=20).result()
    turn = engine.submit(f"{first}{answer.text} And then?", session_id="mine", max_tokens=20).result()
    assert turn.metrics.engine["timings"]["cache_n"] >= len(first)
    assert turn.metrics.tokens_in > turn.metrics.engine["timings"]["cache_n"]


def test_a_chat_session_keeps_its_cache(engine: LlamaCppHttpAdapter) -> None:
    """A conversation that goes on reuses the turns before."""
    turns: list[dict[str, str]] = [{"role": "user", "content": "In a chat of its own: " + "tell me more. " * 8}]
    answer = engine.submit(turns, session_id="chat", max_tokens=20).result()
    turns += [{"role": "assistant", "content": answer.text}, {"role": "user", "content": "And then?"}]
    done = engine.submit(turns, session_id="chat", max_tokens=20).result()
    assert done.metrics.engine["timings"]["cache_n"] > 100


def test_jobs_of_one_session_run_side_by_side(cyclic: Path, adapters: Adapters) -> None:
    """A second job of a session, as a host drives it, does not wait for the first while another slot is free."""

    def first_frames(attempt: Attempt) -> list[Any]:
        for step in attempt:
            if not isinstance(step, Wait):
                return step
            assert step.block(5.0), "it waits for the slot of the first"
        raise AssertionError("no frame came")

    with EmbeddedLlamaCpp(cyclic, slots=2, context=16384) as server:
        engine = adapters(server)
        assert engine.submit("Go", session_id="mine", max_tokens=3).result().metrics.engine["id_slot"] >= 0
        task = TaskRequest.of("Go", session_id="mine", max_tokens=100_000)
        attempts = [engine.attempt(task, Job(f"side by side {number}")) for number in range(2)]
        try:
            assert [first_frames(attempt)[0].type for attempt in attempts] == ["started"] * 2
        finally:
            for attempt in attempts:
                attempt.close()


def test_a_pickled_adapter_works(server: EmbeddedLlamaCpp, adapters: Adapters) -> None:
    """An adapter that was pickled after use, connections and all, is a new one of the same configuration."""
    engine = adapters(server, timeouts={"first_token": 7}, api_key="env:PATH")
    assert engine.submit("Go").result().text == recital()
    engine.props()
    with pickle.loads(pickle.dumps(engine)) as twin:
        assert twin.submit("Go").result().text == recital()
        assert twin.props().model == engine.props().model


def test_what_the_engine_alone_knows_goes_through_extra(engine: LlamaCppHttpAdapter) -> None:
    """A field of the engine reaches it as it is; what the contract or the adapter owns cannot be set."""
    done = engine.submit("Go", extra={"ignore_eos": True}, max_tokens=120).result()
    assert done.finish_reason == "length"
    assert done.text.startswith(f"{recital()} {recital()}")
    for owned in ("stream", "n_cmpl", "id_slot", "response_fields"):
        with pytest.raises(InvalidRequest) as caught:
            engine.submit("Go", extra={owned: 1})
        assert caught.value.field == f"extra.{owned}"


def test_the_wrong_type_in_extra_is_the_requests_fault(engine: LlamaCppHttpAdapter) -> None:
    """A refusal comes as a typed error before any frame, names the engine, and frees the id."""
    for _ in range(2):
        stream = engine.submit("Go", extra={"n_keep": "many"}, job_id="refused")
        with pytest.raises(InvalidRequest) as caught:
            next(stream)
        assert (caught.value.status, caught.value.engine, caught.value.job_id) == (400, "llamacpp", "refused")
        assert caught.value.tokens_seen == 0
        assert stream.started is None
