"""What the real Triton says through the adapter: texts of every convention, stop words, refusals, props and health."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from engines.llamacpp_bench import PATIENCE, Reader, text_of, types_of, until
from real_triton.conftest import BOTH, PIECES, TEXT, TOKENS, prompt
from real_triton.server import RealTriton
from worker_adapters import (
    CapacityExceeded,
    EngineUnavailable,
    InvalidRequest,
    ModelNotFound,
    UnknownError,
    WorkerError,
    connect,
    detect,
)
from worker_adapters.adapters.detect import find

pytestmark = [pytest.mark.engines, pytest.mark.real_triton, BOTH]

Make = Callable[..., Any]

#: Every convention: a model that follows it, and how many frames its answer has.
CONVENTIONS = {
    "recite": len(PIECES),
    "plain": len(PIECES),
    "one": 1,
    "vllm_model": len(PIECES),
    "llmapi": len(PIECES),
    "tensorrt_llm_bls": len(PIECES),
    "old_trtllm": len(PIECES),
    "ensemble": len(PIECES),
}
MODELS = pytest.mark.parametrize("model", CONVENTIONS)
#: Those with an input for it.
LIMITED = pytest.mark.parametrize("model", [name for name in CONVENTIONS if name != "plain"])
STOPPABLE = pytest.mark.parametrize("model", [name for name in CONVENTIONS if name not in ("plain", "one")])


@MODELS
def test_streams_the_text_exactly(make: Make, transport: str, model: str) -> None:
    """Every convention streams the recital exactly, characters whole, in contiguous frames between started and end."""
    frames = list(make(transport, model).submit(prompt()))
    assert types_of(frames) == ["started", "token", "end"]
    assert text_of(frames) == TEXT
    assert len(frames) == CONVENTIONS[model] + 2
    assert [frame.index for frame in frames[1:-1]] == list(range(len(frames) - 2))
    assert frames[0].engine == "triton"
    assert frames[0].engine_version.startswith("triton 2.") or frames[0].engine_version.startswith("2.")
    assert frames[0].model == model
    assert frames[-1].finish_reason == "stop"


@LIMITED
def test_max_tokens(make: Make, transport: str, model: str) -> None:
    """A limit is obeyed wherever it falls, also within a character, whose broken half is never shown as text."""
    engine = make(transport, model)
    for count in (1, 3, 13, 14, 19, TOKENS - 1):
        done = engine.submit(prompt(), max_tokens=count).result()
        assert TEXT.startswith(done.text.rstrip("\ufffd"))
        assert len(done.text) >= min(3, count)
        if model not in ("one", "tensorrt_llm_bls", "ensemble", "old_trtllm", "recite"):
            assert done.finish_reason == "length"
        if model == "vllm_model":
            assert (done.metrics.counts, done.metrics.tokens_out) == ("exact", count)


def test_a_model_without_a_limit_is_left(triton: RealTriton, make: Make, transport: str) -> None:
    """A model that knows no max_tokens is cut off at the limit, and told to stop."""
    asked = prompt("endless", "delay=0.005")
    done = make(transport, "plain").submit(asked, max_tokens=7).result()
    assert (done.text, done.finish_reason) == ("The quick brown fox jumps over the", "length")
    until(lambda: triton.when(asked, "ended") is not None)
    assert triton.when(asked, "cancelled") is not None


@STOPPABLE
@pytest.mark.parametrize("words", [["fox jumps"], ["fé with", "never said"], ["🦉"], ["never said"]])
def test_stop_words(make: Make, transport: str, model: str, words: list[str]) -> None:
    """Stop words reach the engine in its own form; text ends before the first of them."""
    cut = TEXT.find(words[0])
    done = make(transport, model).submit(prompt(), stop=words).result()
    assert done.text == (TEXT[:cut] if cut >= 0 else TEXT)
    assert done.finish_reason == "stop"


def test_what_the_vllm_backend_tells(make: Make, transport: str) -> None:
    """Its counts are exact, of the prompt too, its reasons ours, and a token without text makes no frame."""
    engine = make(transport, "vllm_model")
    asked = prompt() + " two more"
    frames = list(engine.submit(asked))
    end = frames[-1]
    assert (end.finish_reason, end.raw_finish_reason) == ("stop", "stop")
    assert (end.metrics.counts, end.metrics.tokens_in, end.metrics.tokens_out) == ("exact", 3, TOKENS)
    assert all(frame.text for frame in frames[1:-1])
    cut = engine.submit(prompt(), max_tokens=5).result()
    assert (cut.finish_reason, cut.raw_finish_reason, cut.metrics.tokens_out) == ("length", "length", 5)


def test_a_models_own_inputs_go_through_extra(make: Make, transport: str) -> None:
    """An input of the model that the contract knows nothing of is given in ``extra``, and one that it lacks refused."""
    engine = make(transport)
    done = engine.submit("say this again", extra={"repeat": True, "delay_ms": 2}).result()
    assert done.text == "say this again"
    with pytest.raises(InvalidRequest) as caught:
        engine.submit("Go", extra={"repaet": True}).start()
    assert caught.value.field == "extra.repaet"


@pytest.mark.parametrize(
    "said",
    ["日本語 🙂 é", "e\u0301" * 20, '"\\\r\t{}[]', "\u202e\ufeff"],
    ids=["scripts", "combining", "json", "marks"],
)
def test_prompts_in_any_script(make: Make, transport: str, said: str) -> None:
    """Whatever characters a prompt has, the model gets them as they are, and its answer comes back as it is."""
    assert make(transport).submit(said, extra={"repeat": True}).result().text == " ".join(said.split())


# --- what it refuses


def test_an_unknown_model(make: Make, transport: str) -> None:
    """An unknown model is ModelNotFound, before any frame."""
    stream = make(transport).submit(prompt(), model="nobody")
    with pytest.raises(ModelNotFound) as caught:
        next(stream)
    assert (caught.value.retriable, caught.value.engine) == (False, "triton")
    assert stream.started is None


@pytest.mark.parametrize("model", ["numbers", "tensorrt_llm", "preprocessing"])
def test_models_that_are_not_of_text(triton: RealTriton, make: Make, transport: str, model: str) -> None:
    """A model without a text in and a text out is refused, before it is asked."""
    before = len(triton.events())
    with pytest.raises(InvalidRequest):
        make(transport, model).submit(prompt()).start()
    assert len(triton.events()) == before


@pytest.mark.parametrize(
    ("model", "fields"),
    [
        ("recite", {"extra": {"delay_ms": "soon"}}),
        ("recite", {"extra": {"delay_ms": 2**31}}),
        ("recite", {"extra": {"repeat": 1}}),
        ("recite", {"max_tokens": 99_999_999_999}),
        ("recite", {"temperature": 0.5}),
        ("tensorrt_llm_bls", {"seed": -1}),
        ("one", {"stop": ["x"]}),
    ],
)
def test_bad_values_are_refused_unsent(
    triton: RealTriton, make: Make, transport: str, model: str, fields: dict[str, Any]
) -> None:
    """A value that its tensor cannot hold, or a field without a tensor, never reaches the server, which would cut it
    to 32 bits or ignore it."""
    before = len(triton.events())
    for _ in range(2):
        with pytest.raises(InvalidRequest) as caught:
            make(transport, model).submit(prompt(), job_id="refused", **fields).start()
        assert not caught.value.retriable
    assert len(triton.events()) == before


def test_a_refusal_of_the_model_itself(make: Make, transport: str) -> None:
    """What vLLM's backend refuses in its own words is an error without a frame."""
    stream = make(transport, "vllm_model").submit(prompt(), extra={"colour": "red"})
    with pytest.raises((InvalidRequest, UnknownError)) as caught:
        next(stream)
    assert (caught.value.tokens_seen, caught.value.retriable) == (0, False)


def test_a_full_queue(triton: RealTriton, make: Make, transport: str) -> None:
    """A job that finds the queue full is CapacityExceeded and may be tried again; the others go on."""
    engine = make(transport, "full", retry={"attempts": 1})
    engine.submit(prompt(), max_tokens=1).result()  # what is asked only once is asked
    first = Reader(engine.submit(prompt("endless", "delay=0.01"), max_tokens=10_000), at=2)
    first.start()
    first.wait()
    second = Reader(engine.submit(prompt()))
    second.start()
    until(lambda: triton.metric("nv_inference_pending_request_count", "full") == 1, every=0.01)
    with pytest.raises(CapacityExceeded) as caught:
        engine.submit(prompt()).start()
    assert (caught.value.retriable, caught.value.tokens_seen) == (True, 0)
    waiting = make(transport, "full", retry={"base": 0.2, "attempts": 10}).submit(prompt())
    third = Reader(waiting)
    third.start()
    first.stream.cancel()
    for reader in (first, second, third):
        reader.finish()
        assert reader.error is None
    assert text_of(second.frames) == text_of(third.frames) == TEXT


# --- what goes wrong in a model


@pytest.mark.parametrize("count", [0, 1, 5])
def test_an_error_response(make: Make, transport: str, count: int) -> None:
    """An error that the model reports comes typed, after the tokens before it, and with the model's words."""
    engine = make(transport)
    stream = engine.submit(prompt(f"fail={count}"), job_id="failing")
    with pytest.raises(WorkerError, match="exploded") as caught:
        list(stream)
    error = caught.value
    assert (error.tokens_seen, error.retriable) == (count, False)
    assert error.partial_text == "".join(PIECES[:count])
    assert engine.submit(prompt(), job_id="failing").result().text == TEXT


# --- what it says of itself


@MODELS
def test_props(make: Make, transport: str, model: str) -> None:
    """Props name version and model, and no CPU-only server makes a GPU of what it serves."""
    props = make(transport, model).props()
    assert (props.engine, props.model) == ("triton", model)
    assert "2.51" in props.engine_version
    assert props.residency in ("unknown", "cpu")
    if model in ("vllm_model", "tensorrt_llm_bls", "ensemble"):
        assert props.residency == "unknown"
    assert "/tmp" not in repr(props.raw)  # noqa: S108  # paths of the host are nobody's business


def test_props_say_when_a_cancel_frees_the_engine(make: Make, transport: str) -> None:
    """Over HTTP a job is freed at the engine only once its first response has come; capabilities tell."""
    capabilities = make(transport).props().capabilities
    assert capabilities.release
    if transport == "http":
        assert "first" in capabilities.release
    ensemble = make(transport, "ensemble").props().capabilities
    assert ensemble.release


def test_without_a_model_named(make: Make, transport: str) -> None:
    """Of several models one must be named: the refusal says so, before anything is generated."""
    engine = make(transport, None)
    with pytest.raises(InvalidRequest) as caught:
        engine.submit(prompt()).start()
    assert caught.value.field == "model"


def test_health(make: Make, transport: str) -> None:
    """A model that is ready is healthy, with and without a probe; one that is not there is not."""
    engine = make(transport)
    assert engine.health().ready
    probed = engine.health(probe=True, timeout=PATIENCE)
    assert (probed.state, probed.live, probed.ready) == ("healthy", True, True)
    missing = make(transport, "nobody").health()
    assert (missing.live, missing.ready) == (True, False)


def test_it_is_told_from_the_others(triton: RealTriton, transport: str) -> None:
    """``detect`` names it; ``connect`` takes either transport's URL, with or without the transport's name."""
    assert detect(triton.url) == "triton"
    assert find(f"{triton.url}/v1") == ("triton", triton.url)
    with pytest.raises(WorkerError, match="no known engine"):
        detect(f"{triton.url}/elsewhere")
    url = triton.url if transport == "http" else triton.grpc_url
    with connect("triton", url, transport=transport, model="one") as engine:
        assert engine.submit(prompt()).result().text == TEXT
    with connect("auto", triton.url, model="one") as engine:
        assert engine.submit(prompt()).result().text == TEXT


def test_a_server_that_is_not_there(make: Make, transport: str) -> None:
    """Where nothing listens a job is refused at once, health says so, and nothing was started."""
    url = "http://127.0.0.1:9" if transport == "http" else "grpc://127.0.0.1:9"
    with connect("triton", url, model="recite", retry={"attempts": 1}) as engine:
        with pytest.raises(EngineUnavailable) as caught:
            engine.submit(prompt()).start()
        assert (caught.value.retriable, caught.value.phase) == (True, "connect")
        assert engine.health().state == "unhealthy"
