"""The real llama.cpp at its limits: a context that is too small, a key that is wrong, a model that is not there yet."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engines.conftest import ROUND
from engines.llamacpp_bench import (
    PATIENCE,
    SOON,
    Reader,
    ask,
    at_once,
    text_of,
    types_of,
    until,
    wait_silent,
    watch_retries,
)
from worker_adapters import AuthenticationFailed, ContextOverflow, EngineUnavailable, LlamaCppHttpAdapter, TokenStream
from worker_adapters.embedded import EmbeddedLlamaCpp, recital

pytestmark = [pytest.mark.engines, pytest.mark.llamacpp]

Adapters = Callable[..., LlamaCppHttpAdapter]
KEY = "made-up-key-0123456789"


def chat(text: str) -> list[dict[str, str]]:
    """A conversation of one turn."""
    return [{"role": "user", "content": text}]


# --- context


@pytest.mark.parametrize("form", [str, chat], ids=["prompt", "chat"])
@pytest.mark.parametrize("size", [600, 100_000])
def test_a_prompt_that_does_not_fit(engine: LlamaCppHttpAdapter, form: Callable[[str], Any], size: int) -> None:
    """A prompt longer than a slot's context is refused with both numbers, and without quoting it."""
    prompt = "overflowing" * (size // 11)
    with pytest.raises(ContextOverflow) as caught:
        engine.submit(form(prompt)).start()
    error = caught.value
    assert error.context_size == 512
    assert error.prompt_tokens is not None
    assert len(prompt) < error.prompt_tokens < len(prompt) + 30
    assert (error.status, error.retriable, error.tokens_seen) == (400, False, 0)
    assert "flowing" not in str(error)
    assert engine.submit("Go").result().text == recital()


@pytest.mark.parametrize("form", [str, chat], ids=["prompt", "chat"])
def test_a_context_that_fills(cyclic: Path, adapters: Adapters, form: Callable[[str], Any]) -> None:
    """A context that fills while generating ends the answer with the reason length."""
    with EmbeddedLlamaCpp(cyclic, slots=1, context=256) as server:
        done = adapters(server).submit(form("Go"), max_tokens=100_000).result()
    assert done.finish_reason == "length"
    assert done.metrics.tokens_in + done.metrics.tokens_out == pytest.approx(256, abs=2)
    assert done.text.startswith(f"{ROUND} {ROUND}")
    if form is str:
        assert done.metrics.engine["truncated"] is True


def test_a_cache_that_several_jobs_fill(cyclic: Path, adapters: Adapters) -> None:
    """Where the slots share one cache and it is full, whoever is cut off is told so with what it got."""
    with EmbeddedLlamaCpp(cyclic, slots=2, context=256, extra={"kv_unified": True}) as server:
        engine = adapters(server)
        readers = [Reader(engine.submit("Go", max_tokens=100_000)) for _ in range(2)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.finish()
        for reader in readers:
            if reader.error is None:
                assert reader.frames[-1].finish_reason == "length"
            else:
                assert type(reader.error) is EngineUnavailable
                assert not reader.error.retriable
                assert reader.error.partial_text.startswith(ROUND)
        assert any(reader.error is not None for reader in readers)
        assert engine.submit("Go", max_tokens=3).result().finish_reason == "length"


# --- keys


def test_keys(monkeypatch: pytest.MonkeyPatch, adapters: Adapters) -> None:
    """A missing and a wrong key are refused everywhere but at health; the right one, however given, works."""
    monkeypatch.setenv("LLAMACPP_TEST_KEY", KEY)
    with EmbeddedLlamaCpp(api_key=KEY) as server:
        for wrong in (None, "wrong-key-0123456789"):
            engine = adapters(server, api_key=wrong)
            for asked in (
                engine.submit("Go").start,
                engine.submit(chat("Go")).start,
                engine.props,
                engine.engine_version,
            ):
                with pytest.raises(AuthenticationFailed) as caught:
                    asked()
                assert (caught.value.status, caught.value.retriable) == (401, False)
                assert "wrong-key" not in f"{caught.value} {caught.value!r}"
            assert engine.health().ready
            assert not engine.health(probe=True).ready
        for right in (KEY, "env:LLAMACPP_TEST_KEY", lambda: KEY):
            engine = adapters(server, api_key=right)
            assert engine.submit("Go").result().text == recital()
            assert engine.props().slots_total == 4
            assert engine.health(probe=True).ready
            assert KEY not in repr(engine)


def test_the_key_of_the_moment(adapters: Adapters) -> None:
    """A callable key is asked for every job, so a key that is changed is used at once."""
    keys = ["wrong-key-0123456789"]
    with EmbeddedLlamaCpp(api_key=KEY) as server:
        engine = adapters(server, api_key=lambda: keys[-1])
        with pytest.raises(AuthenticationFailed):
            engine.submit("Go").start()
        keys.append(KEY)
        assert engine.submit("Go").result().text == recital()


# --- loading


def test_loading_is_retriable(adapters: Adapters) -> None:
    """While the model loads a job is refused as unavailable, which may be tried again; health says why."""
    with EmbeddedLlamaCpp(hold_loading=True) as server:
        engine = adapters(server, retry={"attempts": 1})
        for task in ("Go", chat("Go")):
            with pytest.raises(EngineUnavailable) as caught:
                engine.submit(task).start()
            assert type(caught.value) is EngineUnavailable
            assert (caught.value.status, caught.value.retriable) == (503, True)
        for probe in (False, True):
            health = engine.health(probe=probe)
            assert (health.state, health.live, health.ready) == ("degraded", True, False)
            assert "Loading" in health.message
        server.finish_loading()
        assert engine.health().state == "healthy"
        assert engine.submit("Go").result().text == recital()


def test_a_short_loading_is_not_noticed(adapters: Adapters) -> None:
    """The adapter's own retries carry a job and a question over the time that the model takes to load."""
    asked: list[Any] = []
    with EmbeddedLlamaCpp(hold_loading=True) as server:
        engine = adapters(server, retry={"attempts": 50, "base": 0.02, "cap": 0.1, "budget": 50.0})
        question = threading.Thread(target=lambda: asked.append(engine.props()), daemon=True)
        reader = Reader(engine.submit("Go"))
        with watch_retries() as refused:
            question.start()
            reader.start()
            assert refused.wait(PATIENCE)
        server.finish_loading()
        reader.finish()
        question.join(PATIENCE)
    assert reader.error is None
    assert text_of(reader.frames) == recital()
    assert types_of(reader.frames) == ["started", "token", "end"]
    assert [props.slots_total for props in asked] == [4]


def test_a_long_loading_ends_the_questions(adapters: Adapters) -> None:
    """Props of an engine that goes on loading fail typed within their 5 seconds."""
    with EmbeddedLlamaCpp(hold_loading=True) as server:
        engine = adapters(server)
        began = time.monotonic()
        with pytest.raises(EngineUnavailable) as caught:
            engine.props()
        assert time.monotonic() - began < SOON
        assert caught.value.status == 503


# --- health and props


def test_health_of_an_engine_that_is_down(adapters: Adapters) -> None:
    """Nothing listens: unhealthy, neither live nor ready, within the time and without raising; props raise."""
    with EmbeddedLlamaCpp() as server:
        engine = adapters(server, retry={"attempts": 1})
        server.kill()
        for probe in (False, True):
            health = engine.health(probe=probe)
            assert (health.state, health.live, health.ready) == ("unhealthy", False, False)
            assert health.message
            assert health.latency_ms < SOON * 1000
        with pytest.raises(EngineUnavailable):
            engine.engine_version()


def test_health_when_ready(engine: LlamaCppHttpAdapter) -> None:
    """A ready engine is healthy, also by a probe that generates, and tells how long it took."""
    for probe in (False, True):
        health = engine.health(probe=probe)
        assert (health.state, health.live, health.ready) == ("healthy", True, True)
        assert 0 < health.latency_ms < SOON * 1000


def test_health_when_busy(narrow: EmbeddedLlamaCpp, adapters: Adapters) -> None:
    """An engine whose one slot is taken is healthy; a probe waits no longer than it may and leaves nothing behind."""
    engine = adapters(narrow)
    with engine.submit("Go", max_tokens=5000) as stream:
        stream.start()
        assert engine.health().ready
        began = time.monotonic()
        health = engine.health(probe=True, timeout=0.3)
        assert time.monotonic() - began < 4.5  # unless told, it would wait for 5
        assert not health.ready
        props = engine.props()
        assert (props.slots_total, props.slots_free) == (1, 0)
        assert next(stream).type == "started"
    until(lambda: engine.props().slots_free == 1, every=2.0)
    assert engine.health(probe=True).ready


def test_health_when_it_says_nothing(adapters: Adapters) -> None:
    """An engine that accepts and stays silent is unhealthy once the time is over."""
    with EmbeddedLlamaCpp() as server:
        engine = adapters(server)
        assert engine.health().ready
        server.pause()
        for probe in (False, True):
            began = time.monotonic()
            health = engine.health(probe=probe, timeout=0.3)
            assert 0.29 < time.monotonic() - began < 4.5  # unless told, it would wait for 5
            assert health.state == "unhealthy"
            assert not health.ready
        server.resume()
        assert engine.health().ready


def test_many_health_checks_at_once(engine: LlamaCppHttpAdapter, caplog: pytest.LogCaptureFixture) -> None:
    """Health from many threads is right for each of them and writes no warning to anybody's log."""
    with caplog.at_level(logging.WARNING):
        assert not at_once([lambda: [engine.health().ready or 1 / 0 for _ in range(20)]] * 8)
    assert [record.getMessage() for record in caplog.records] == []


def test_a_sleeping_engine(adapters: Adapters) -> None:
    """An engine that sleeps is healthy; asking for health, props and version lets it sleep on, and a job wakes it."""
    with EmbeddedLlamaCpp(sleep_idle_seconds=1) as server:
        engine = adapters(server)
        assert engine.submit("Go").result().text == recital()
        until(lambda: '"is_sleeping":true' in ask(server, "/props"))
        for _ in range(3):
            assert engine.health().ready
            props = engine.props()
            assert props.raw["/props"]["is_sleeping"] is True
            assert (props.slots_total, props.slots_free, props.context_size) == (4, None, 512)
            engine.engine_version()
        assert '"is_sleeping":true' in ask(server, "/props")
        assert engine.submit("Go").result().text == recital()


def test_props(server: EmbeddedLlamaCpp, engine: LlamaCppHttpAdapter) -> None:
    """Props tell the model, the context of one slot and the slots; what the engine does not tell is not guessed."""
    props = engine.props()
    assert props.engine == "llamacpp"
    assert props.context_size == 512
    assert (props.slots_total, props.slots_free) == (4, 4)
    assert (props.running, props.waiting, props.residency) == (None, None, "unknown")
    assert props.model
    assert str(server.model_path).endswith(props.model) or props.model in str(server.model_path)
    assert "seed" in props.capabilities.fields
    assert props.to_dict()["raw"]["/props"]["total_slots"] == 4


def test_props_where_slots_are_not_told(adapters: Adapters) -> None:
    """A server that does not serve its slots leaves the free ones unknown."""
    with EmbeddedLlamaCpp(endpoints=False) as server:
        props = adapters(server).props()
    assert (props.slots_total, props.slots_free) == (4, None)


def test_the_version(engine: LlamaCppHttpAdapter) -> None:
    """A build that names no commit has the version unknown, in the answer and in every started frame."""
    build = engine.props().raw["/props"]["build_info"]
    want = "unknown" if build.endswith("-unknown") else build
    assert engine.engine_version() == want
    stream = engine.submit("Go")
    started = next(stream)
    assert (started.engine, started.engine_version) == ("llamacpp", want)
    assert started.model == engine.props().model
    stream.close()


def test_the_first_job_tells_the_version_too(server: EmbeddedLlamaCpp, adapters: Adapters) -> None:
    """An adapter that was never asked anything still names engine and model in its first started frame."""
    started = next(iter(adapters(server).submit("Go", max_tokens=1).relay()))
    assert started.model == adapters(server).props().model


def test_a_cancel_takes_no_version_from_later_jobs(server: EmbeddedLlamaCpp, adapters: Adapters) -> None:
    """A first job that is cancelled while the version is asked for leaves the asking to the next one."""
    streams: list[TokenStream] = []
    asked: list[None] = []

    def key() -> str:
        asked.append(None)
        if len(asked) == 2:  # the job's own request was the first
            streams[0].cancel()
        return "unused"

    engine = adapters(server, api_key=key)
    streams.append(engine.submit("Go"))
    assert types_of(streams[0]) == ["end"]
    with engine.submit("Go") as stream:
        assert next(stream).model == adapters(server).props().model


def test_a_models_identity_is_stable(cyclic: Path, adapters: Adapters) -> None:
    """The identity of a model is the same after a restart and another one for another model."""
    with EmbeddedLlamaCpp(cyclic, alias="parrot", slots=1) as server:
        before = adapters(server).props()
        server.kill()
        server.start()
        after = adapters(server).props()
    with EmbeddedLlamaCpp(alias="parrot", slots=1) as other:
        foreign = adapters(other).props()
    assert before.model == after.model == foreign.model == "parrot"
    assert before.model_digest
    assert before.model_digest == after.model_digest != foreign.model_digest


def test_props_of_a_slow_prompt(ponderous: Path, adapters: Adapters) -> None:
    """While a prompt is computed health answers, and props do not take longer than their 5 seconds."""
    with EmbeddedLlamaCpp(ponderous, slots=1, context=4096, batch=512) as server:
        engine = adapters(server)
        with engine.submit("x" * 3000) as stream:
            wait_silent(stream)
            assert engine.health().ready
            began = time.monotonic()
            assert engine.props().slots_free in (0, None)
            assert time.monotonic() - began < SOON
