"""What the real vLLM says through the adapter: texts, stops, seeds, probabilities, grammars, refusals, props."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from engines.llamacpp_bench import PATIENCE, Reader, text_of, types_of, until
from real_vllm.conftest import TEXT
from real_vllm.recite_hf import pieces_of
from real_vllm.server import CONTEXT, MODEL, RealVllm
from worker_adapters import (
    AnyFrame,
    AuthenticationFailed,
    ContextOverflow,
    InvalidRequest,
    ModelNotFound,
    VllmHttpAdapter,
    connect,
    detect,
)

pytestmark = [pytest.mark.engines, pytest.mark.real_vllm]

MESSAGES = [{"role": "system", "content": "Recite."}, {"role": "user", "content": "Go on"}]
FORMS = pytest.mark.parametrize("task", ["Go", MESSAGES], ids=["prompt", "chat"])
#: Tokens of the whole answer, its end included: the letter takes two, the bird four.
TOKENS = len(pieces_of(TEXT)) + 1 + 3 + 1
#: Every letter is as likely as any other, so that the seed alone decides.
DICE: dict[str, Any] = {
    "extra": {"structured_outputs": {"regex": "[a-z]{30}"}}, "temperature": 2.0, "top_p": 1.0, "max_tokens": 40
}  # fmt: skip


@pytest.fixture
def engine(plain: RealVllm, make: Callable[..., Any]) -> VllmHttpAdapter:
    """An adapter of the fast server."""
    made: VllmHttpAdapter = make(VllmHttpAdapter, plain.url, timeouts={"first_token": 120})
    return made


def texts(frames: list[AnyFrame]) -> list[str]:
    """The text of each token frame."""
    return [frame.text for frame in frames if frame.type == "token"]


@FORMS
def test_streams_the_text_exactly(engine: VllmHttpAdapter, task: Any) -> None:
    """A prompt and a conversation both stream the recital exactly, in contiguous frames between started and end."""
    frames = list(engine.submit(task, temperature=0))
    assert types_of(frames) == ["started", "token", "end"]
    assert text_of(frames) == TEXT
    assert [frame.index for frame in frames[1:-1]] == list(range(len(frames) - 2))
    assert (frames[0].engine, frames[0].engine_version, frames[0].model) == ("vllm", "0.32.0", MODEL)
    end = frames[-1]
    assert (end.finish_reason, end.raw_finish_reason) == ("stop", "stop")
    assert (end.metrics.counts, end.metrics.tokens_out) == ("exact", TOKENS)
    heard = "system: Recite.\nuser: Go on\nassistant:" if task is MESSAGES else "Go"
    assert end.metrics.tokens_in == len(heard) + (task is not MESSAGES)  # a chat template adds no token of its own


def test_a_character_comes_whole(narrow: RealVllm, make: Callable[..., Any]) -> None:
    """A letter of two tokens and a bird of four come in one frame each, between the frames of the words around."""
    frames = list(make(VllmHttpAdapter, narrow.url, api_key=narrow.key).submit("Go", temperature=0))
    said = texts(frames)
    assert all(said)
    assert {"é", "🦉"} <= set(said)
    assert frames[-1].metrics.tokens_out == TOKENS


def test_cut_within_a_character(engine: VllmHttpAdapter) -> None:
    """Wherever max_tokens cuts, the count is exact and the text ends before the broken character."""
    for task in ("Go", MESSAGES):
        for count in range(1, TOKENS):
            done = engine.submit(task, max_tokens=count, temperature=0).result()
            assert (done.finish_reason, done.metrics.tokens_out) == ("length", count)
            assert TEXT.startswith(done.text)
            assert len(done.text) >= 3 * min(count, 4)


@pytest.mark.parametrize(
    ("stop", "word"),
    [
        (["fox jumps"], "fox jumps"),
        ([" fox jumps over the la"], " fox jumps over the la"),
        (["fé with", "never said"], "fé with"),
        (["🦉"], "🦉"),
        (["e"], "e"),
        (["The quick"], "The quick"),
        (["never said", "fox jumped"], None),
        (["night.", "good evening"], "night."),
    ],
)
@FORMS
def test_stop_words(engine: VllmHttpAdapter, task: Any, stop: list[str], word: str | None) -> None:
    """The answer ends before the first stop word, however many tokens it spans, and a near miss is given back."""
    frames = list(engine.submit(task, stop=stop, temperature=0))
    assert text_of(frames) == (TEXT if word is None else TEXT[: TEXT.index(word)])
    assert all(texts(frames))
    assert frames[-1].finish_reason == "stop"


@FORMS
def test_seeds(engine: VllmHttpAdapter, task: Any) -> None:
    """The same seed says the same and another one something else. (On a CPU torch reads 32 bits of it.)"""
    seeds = (0, 1, 2**31, 2**32 - 1)
    said = [[engine.submit(task, seed=seed, **DICE).result().text for _ in range(2)] for seed in seeds]
    assert all(one == again and len(one) == 30 for one, again in said)
    assert len({one for one, _ in said}) == 4


@FORMS
def test_logprobs_and_token_ids(engine: VllmHttpAdapter, task: Any) -> None:
    """Asked for, token frames have an id and a logarithm of a probability; else none has."""
    frames = [frame for frame in engine.submit(task, temperature=0, logprobs=2) if frame.type == "token"]
    assert text_of(frames) == TEXT
    assert all(frame.logprob is not None and -1 < frame.logprob <= 0 for frame in frames)
    ids = [frame.token_id for frame in frames]
    assert ids[:3] == [259, 260, 261]  # the words of the model, in the order of its text
    plain = [frame for frame in engine.submit(task, max_tokens=5, temperature=0) if frame.type == "token"]
    assert all(frame.logprob is None and frame.token_id is None for frame in plain)


@FORMS
def test_sampling_fields_reach_the_engine(engine: VllmHttpAdapter, task: Any) -> None:
    """A bias makes the model say a token first; top_k, top_p and min_p each make hot sampling greedy."""
    done = engine.submit(task, temperature=0, max_tokens=1, logit_bias={"261": 100.0}).result()
    assert done.text == " brown"
    for sure in ({"top_k": 1}, {"top_p": 0.001}, {"min_p": 0.99}):
        assert engine.submit(task, temperature=2.0, seed=3, **sure).result().text == TEXT
    assert engine.submit(task, temperature=2.0, seed=3).result().text != TEXT


@FORMS
def test_grammar(engine: VllmHttpAdapter, task: Any) -> None:
    """A grammar forces the answer, and a broken one is the request's fault."""
    assert engine.submit(task, grammar='root ::= "yes" | "no"', temperature=0).result().text in ("yes", "no")
    with pytest.raises(InvalidRequest) as caught:
        engine.submit(task, grammar="root ::= (").start()
    assert (caught.value.status, caught.value.retriable) == (400, False)


@FORMS
def test_a_schema(engine: VllmHttpAdapter, task: Any) -> None:
    """A JSON schema forces the answer."""
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"enum": ["wrong", "right"]}}}
    assert engine.submit(task, response_format=wanted, temperature=0).result().text in ('"wrong"', '"right"')


@pytest.mark.parametrize(
    "prompt",
    ["日本語 🙂 é", "a\0b", "\u202e\ufeff\u2028", "e\u0301" * 50, '"\\\n\r\t{}[]'],
    ids=["scripts", "nul", "marks", "combining", "json"],
)
def test_prompts_in_any_script(engine: VllmHttpAdapter, prompt: str) -> None:
    """Whatever characters a prompt has, the engine gets it whole, byte by byte."""
    done = engine.submit(prompt + ".", temperature=0).result()
    assert done.text == TEXT
    assert done.metrics.tokens_in == len((prompt + ".").encode()) + 1


def test_what_the_engine_alone_knows_goes_through_extra(engine: VllmHttpAdapter) -> None:
    """A field of the engine reaches it as it is; a wrong type of one is refused unsent."""
    done = engine.submit("Go", extra={"ignore_eos": True}, max_tokens=2 * TOKENS, temperature=0).result()
    assert done.finish_reason == "length"
    assert done.text.startswith(f"{TEXT}{TEXT[:5]}") or done.text.startswith(f"{TEXT} {TEXT[:5]}")
    with pytest.raises(InvalidRequest) as caught:
        engine.submit("Go", extra={"ignore_eos": "yes"})
    assert caught.value.field == "extra.ignore_eos"


# --- what it refuses


@FORMS
def test_an_unknown_model(engine: VllmHttpAdapter, task: Any) -> None:
    """An unknown model is ModelNotFound, before any frame."""
    stream = engine.submit(task, model="nobody")
    with pytest.raises(ModelNotFound) as caught:
        next(stream)
    assert (caught.value.status, caught.value.retriable, caught.value.engine) == (404, False, "vllm")
    assert stream.started is None


@FORMS
def test_context_overflow(engine: VllmHttpAdapter, task: Any) -> None:
    """A prompt, or a max_tokens, beyond the window is a ContextOverflow."""
    long = "x" * (CONTEXT + 100)
    prompt = long if task == "Go" else [{"role": "user", "content": long}]
    for fields in ({}, {"max_tokens": 1}):
        with pytest.raises(ContextOverflow) as caught:
            engine.submit(prompt, **fields).start()
        assert (caught.value.status, caught.value.retriable) == (400, False)
        assert "xxxx" not in str(caught.value)
        assert caught.value.context_size in (CONTEXT, None)
    with pytest.raises(ContextOverflow):
        engine.submit(task, max_tokens=CONTEXT + 1).start()


def test_a_window_that_clamps(engine: VllmHttpAdapter) -> None:
    """Where prompt and max_tokens fit each alone, the window ends the answer, with ``length``."""
    done = engine.submit("x" * 400, extra={"ignore_eos": True}, max_tokens=400, temperature=0).result()
    assert done.finish_reason == "length"
    assert done.metrics.tokens_in + done.metrics.tokens_out == CONTEXT


@FORMS
def test_values_it_refuses(engine: VllmHttpAdapter, task: Any) -> None:
    """A value out of range is the request's fault, and the id is free again."""
    for fields in ({"temperature": 2.5}, {"stop": list("abcde")}, {"logprobs": 21}):
        for _ in range(2):
            with pytest.raises(InvalidRequest) as caught:
                engine.submit(task, job_id="refused", **fields).start()
            assert not caught.value.retriable
            assert caught.value.tokens_seen == 0
    assert engine.submit(task, job_id="refused", temperature=0).result().text == TEXT


@FORMS
def test_a_wrong_key(narrow: RealVllm, make: Callable[..., Any], task: Any) -> None:
    """A wrong key, or none, is told as such by jobs and props, and the key itself never; health needs none."""
    for key in ("a-wrong-one", None):
        engine = make(VllmHttpAdapter, narrow.url, api_key=key)
        for question in (engine.submit(task).start, engine.props):
            with pytest.raises(AuthenticationFailed) as caught:
                question()
            assert (caught.value.status, caught.value.retriable) == (401, False)
            assert "a-wrong-one" not in str(caught.value)
        assert engine.health().ready
        assert not engine.health(probe=True).ready


# --- what it says of itself


def test_props(engine: VllmHttpAdapter, plain: RealVllm, make: Callable[..., Any]) -> None:
    """Props have version, model and window, and a CPU server's GPU block counts make no GPU of it."""
    props = engine.props()
    assert (props.engine, props.engine_version, props.model) == ("vllm", "0.32.0", MODEL)
    assert (props.context_size, props.residency) == (CONTEXT, "unknown")
    assert (props.running, props.waiting, props.slots_total) == (0, 0, None)
    assert props.kv_cache_usage == 0
    assert make(VllmHttpAdapter, plain.url + "/v1").props().model_digest == props.model_digest


def test_props_count_what_runs_and_waits(narrow: RealVllm, make: Callable[..., Any]) -> None:
    """While one job runs and two wait for it, props say so, and afterwards that nothing does."""
    engine = make(VllmHttpAdapter, narrow.url, api_key=narrow.key)
    readers = [Reader(engine.submit("Go", extra={"ignore_eos": True}, max_tokens=500), at=3) for _ in range(3)]
    readers[0].start()
    readers[0].wait()
    for reader in readers[1:]:
        reader.start()
    until(lambda: narrow.busy() == 3)
    props = engine.props()
    assert (props.running, props.waiting) == (1, 2)
    assert 0 < props.kv_cache_usage < 0.1
    for reader in readers:
        reader.stream.cancel()
        reader.finish()
    until(lambda: not narrow.busy())
    assert (engine.props().running, engine.props().waiting) == (0, 0)


def test_health(engine: VllmHttpAdapter) -> None:
    """A server that is ready is healthy, and a probe makes it say a token."""
    assert engine.health().ready
    probed = engine.health(probe=True, timeout=PATIENCE)
    assert (probed.state, probed.live, probed.ready) == ("healthy", True, True)


def test_it_is_told_from_the_others(plain: RealVllm, narrow: RealVllm) -> None:
    """``detect`` names it, also by its /v1 and where it wants a key; ``connect("auto")`` streams from it."""
    assert [detect(plain.url), detect(f"{plain.url}/v1"), detect(narrow.url)] == ["vllm"] * 3
    with connect("auto", plain.url) as engine:
        assert (type(engine), engine.submit("Go", temperature=0).result().text) == (VllmHttpAdapter, TEXT)
