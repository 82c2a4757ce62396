"""The OpenAI adapter before the real llama.cpp's /v1: texts, counts, refusals, cancels, many jobs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from engines.llamacpp_bench import SOON, Reader, at_once, milliseconds, take, text_of, types_of, until, usual
from worker_adapters import ContextOverflow, EngineUnavailable, InvalidRequest, OpenAIHttpAdapter, StreamTruncated
from worker_adapters.embedded import EmbeddedLlamaCpp, recital

pytestmark = [pytest.mark.engines]

Make = Callable[..., OpenAIHttpAdapter]

MESSAGES = [{"role": "system", "content": "Recite."}, {"role": "user", "content": "Go on"}]
FORMS = pytest.mark.parametrize("task", ["Go", MESSAGES], ids=["prompt", "chat"])
MANY = 100_000


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes adapters that are closed when the test is over."""
    made: list[OpenAIHttpAdapter] = []

    def build(server: EmbeddedLlamaCpp, **options: Any) -> OpenAIHttpAdapter:
        made.append(OpenAIHttpAdapter(server.url, **options))
        return made[-1]

    yield build
    for adapter in made:
        adapter.close()


@FORMS
def test_streams_the_text_exactly(server: EmbeddedLlamaCpp, make: Make, task: Any) -> None:
    """A prompt and a conversation stream the recital exactly, with the server's own counts."""
    frames = list(make(server).submit(task))
    assert types_of(frames) == ["started", "token", "end"]
    assert text_of(frames) == recital()
    assert [frame.index for frame in frames[1:-1]] == list(range(len(frames) - 2))
    assert frames[0].engine == "openai"
    end = frames[-1]
    assert (end.finish_reason, end.metrics.counts) == ("stop", "exact")
    assert end.metrics.tokens_out > len(frames) - 3  # é takes two tokens and the end one
    assert end.metrics.tokens_in > 0


@FORMS
def test_length_and_stop(server: EmbeddedLlamaCpp, make: Make, task: Any) -> None:
    """max_tokens is exact, and the answer ends before the first stop word."""
    engine = make(server)
    for count in (1, 17):
        done = engine.submit(task, max_tokens=count).result()
        assert (done.finish_reason, done.metrics.tokens_out) == ("length", count)
        assert recital().startswith(done.text)
    done = engine.submit(task, stop=["cancel halfway", "never said"]).result()
    assert (done.text, done.finish_reason) == (recital().partition("cancel halfway")[0], "stop")


def test_a_prompt_as_a_conversation(server: EmbeddedLlamaCpp, make: Make) -> None:
    """With api="chat" a prompt is asked as a conversation, with the same answer."""
    assert make(server, api="chat").submit("Go").result().text == recital()


@FORMS
def test_cancel_frees_the_slot(
    narrow: EmbeddedLlamaCpp, make: Make, task: Any, record_property: Callable[[str, object], None]
) -> None:
    """A cancelled job ends at once with what it was given, and the next one soon gets its slot."""
    engine = make(narrow)
    reader_took, head_took = [], []
    for _ in range(10):
        reader = Reader(engine.submit(task, max_tokens=MANY), at=6)
        reader.start()
        reader.wait()
        began = time.monotonic()
        assert engine.cancel(reader.stream.job_id)
        reader.finish()
        reader_took.append(reader.ended_at - began)
        assert engine.submit("Next", max_tokens=1).result().finish_reason == "length"
        head_took.append(time.monotonic() - began)
        assert reader.error is None
        assert reader.frames[-1].finish_reason == "cancelled"
        assert reader.stream.result().text == text_of(reader.frames)
    kind = "chat" if task is MESSAGES else "prompt"
    record_property(f"openai on llama.cpp: cancel -> reader's end ({kind})", milliseconds(reader_took))
    record_property(f"openai on llama.cpp: cancel -> next job's answer ({kind})", milliseconds(head_took))
    assert usual(reader_took) < 1
    assert usual(head_took) < 2


@FORMS
def test_refusals(server: EmbeddedLlamaCpp, make: Make, task: Any) -> None:
    """A prompt beyond the window and a wrong type are the request's fault, before any frame, and quote no prompt."""
    engine = make(server)
    long = "x" * 5000
    with pytest.raises(ContextOverflow) as caught:
        engine.submit(long if task == "Go" else [{"role": "user", "content": long}]).start()
    assert (caught.value.status, caught.value.retriable, caught.value.engine) == (400, False, "openai")
    assert "xxxx" not in str(caught.value)
    for _ in range(2):
        with pytest.raises(InvalidRequest) as wrong:
            engine.submit(task, extra={"n_keep": "many"}, job_id="refused").start()
        assert (wrong.value.status, wrong.value.retriable) == (400, False)


@FORMS
def test_killed_in_the_middle(make: Make, cyclic: Any, task: Any) -> None:
    """A stream whose server is killed ends within a second as truncated; then nothing answers any more."""
    with EmbeddedLlamaCpp(cyclic, slots=1) as server:
        engine = make(server, retry={"attempts": 1})
        stream = engine.submit(task, max_tokens=MANY)
        frames = take(stream, 8)
        killed = time.monotonic()
        server.kill()
        with pytest.raises(StreamTruncated) as caught:
            frames += list(stream)
        assert time.monotonic() - killed < SOON
        assert caught.value.partial_text.startswith(text_of(frames))
        assert not caught.value.retriable
        assert not engine.health().live
        with pytest.raises(EngineUnavailable):
            engine.submit(task).start()


def test_a_key(make: Make) -> None:
    """A wrong key is told from a right one, in jobs and in health."""
    with EmbeddedLlamaCpp(slots=1, api_key="the-right-one") as server:
        assert make(server, api_key="the-right-one").submit("Go").result().text == recital()
        wrong = make(server, api_key="a-wrong-one")
        with pytest.raises(InvalidRequest) as caught:
            wrong.submit("Go").start()
        assert caught.value.code == "AUTHENTICATION_FAILED"
        assert "a-wrong-one" not in str(caught.value)


def test_props_and_health(server: EmbeddedLlamaCpp, make: Make) -> None:
    """The list of models tells the model; a path where there is no such list is not healthy."""
    engine = make(server)
    assert engine.health().ready
    props = engine.props()
    assert props.model
    assert (props.engine, props.engine_version, props.residency) == ("openai", "unknown", "unknown")
    missing = OpenAIHttpAdapter(server.url + "/nowhere")
    assert not missing.health().ready
    missing.close()


def test_32_threads_of_20_jobs(make: Make, record_property: Callable[[str, object], None]) -> None:
    """32 threads with 20 jobs each on one adapter: 640 right answers, none of them another job's."""
    with EmbeddedLlamaCpp(slots=16, context=16 * 512, extra={"n_threads_http": 48}) as server:
        engine = make(server, timeouts={"first_token": 100, "connect": 30})

        def jobs(name: int) -> None:
            for number in range(20):
                text = f"o{name}-{number}"
                task: Any = "Go" if number % 2 else [{"role": "user", "content": "Go"}]
                fields: dict[str, Any] = {"extra": {"grammar": f'root ::= "{text}"'}, "temperature": 0}
                done = engine.submit(task, job_id=text, **fields).result()
                assert (done.text, done.job_id, done.finish_reason) == (text, text, "stop")

        began = time.monotonic()
        assert at_once([lambda name=name: jobs(name) for name in range(32)]) == []
        record_property("openai on llama.cpp: 32 threads x 20 jobs", f"{time.monotonic() - began:.1f} s")
        until(lambda: engine.submit("Go", max_tokens=1).result().finish_reason == "length")
