"""Recordings of a real Triton, played back through the adapter in many pieces: frames and errors they call for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from replay import WAIT, WAYS, Recording, ReplayServer, outcome, recordings, told
from verdicts import Bad, Good, check_bad, check_cuts, check_good, cuts, split
from worker_adapters.adapters.triton import TritonAdapter
from worker_adapters.errors import (
    CapacityExceeded,
    EngineUnavailable,
    InvalidRequest,
    ModelNotFound,
    PoolUnavailable,
    StreamTruncated,
    UnknownError,
    WorkerError,
    WorkerTimeout,
)
from worker_adapters.frames import StartedFrame
from worker_adapters.report import Completion
from worker_adapters.timeouts import Timeouts

pytestmark = pytest.mark.triton

RECORDINGS = recordings("triton")
CLOCKS = Timeouts(connect=WAIT, first_token=WAIT, between_tokens=WAIT, total=3 * WAIT)
#: The toy model knows one text by heart, a word a token, and begins again after it.
TEXT = "the quick brown fox jumps over a lazy dog while seven wise owls watch"


def recited(count: int, between: str = "|") -> str:
    """So many words of it."""
    words = TEXT.split()
    return between.join(f" {words[at % len(words)]}" for at in range(count))


class Config:
    """A model's config as an answer, for a model whose own was not recorded."""

    def __init__(self, name: str, inputs: str, *, decoupled: bool = True, output: str = "text_output") -> None:
        tensors = [part.strip().split(" ") for part in inputs.split(",")]
        self.value = {
            "name": name,
            "backend": "python",
            "max_batch_size": 0,
            "input": [
                {"name": tensor, "data_type": f"TYPE_{kind.rstrip('?')}", "dims": [1], "optional": kind.endswith("?")}
                for tensor, kind in tensors
            ],
            "output": [{"name": output, "data_type": "TYPE_STRING", "dims": [1]}],
            "model_transaction_policy": {"decoupled": decoupled},
        }

    def pieces(self) -> list[bytes]:
        """The response."""
        return told(200, self.value)


ONE = "text_input STRING, max_tokens INT32?, temperature FP32?, delay_ms FP32?, fail_mode STRING?"
VLLM = (
    "text_input STRING, stream BOOL?, sampling_parameters STRING?, exclude_input_in_output BOOL?,"
    "return_finish_reason BOOL?, return_num_input_tokens BOOL?, return_num_output_tokens BOOL?"
)
GETS: dict[str, Any] = {
    "/v2": RECORDINGS["server-metadata"],
    "/v2/repository/index": RECORDINGS["repository-index"],
    "/v2/models/rs/config": RECORDINGS["model-config-decoupled"],
    "/v2/models/ensemble/config": RECORDINGS["model-config-ensemble"],
    "/v2/models/tensorrt_llm/config": RECORDINGS["model-config-unknown"],
    "/v2/models/one/config": Config("one", ONE, decoupled=False),
    "/v2/models/q/config": Config("q", "text_input STRING, delay_ms FP32?", decoupled=False),
    "/v2/models/recite/config": Config("recite", "text_input STRING, max_tokens INT32?"),
    "/v2/models/vllm_model/config": Config("vllm_model", VLLM),
    **{f"/v2/models/{name}/config": Config(name, ONE) for name in ("nope", "slow_load")},
}

# Streams that end well. Triton itself tells neither a reason nor counts: a response is taken for a token.
STREAMS: dict[str, Good] = {
    "err-missing-input": Good(recited(3), "length", raw=...),  # the server's check counts inputs, and this one ran
    "err-missing-input-one": Good(" the quick brown", "stop", raw=...),
    "generate-array-input": Good(recited(1), "length", raw=...),
    "generate-parameters": Good(recited(2), "length", raw=...),
    "generate-stream": Good(recited(4), "length", raw=...),
    "generate-stream-empty": Good("", "stop", raw=...),
    "generate-stream-finaldata": Good(recited(3), "length", raw=...),
    "generate-stream-two-types": Good("The| quick", "length", raw=...),
    "generate-trtllm-ensemble": Good(recited(3), "length", raw=...),
    "generate-unknown-key": Good(recited(1), "length", raw=...),
    "generate-vllm-stream": Good(recited(3), "length", (None, 3)),
    "generate-vllm-top-stream": Good(recited(3), "length", raw=...),
    "silent-end": Good(recited(2), "stop", raw=...),  # a model that ends early cannot be told from one that is done
    "unload-mid-stream": Good(recited(60), "length", raw=...),
}

OOM = "CUDA out of memory. Tried to allocate 2.00 GiB"
DEAD = "Stub process 'rs_0_0' is not healthy."

# Streams that fail after something came.
BROKEN_STREAMS: dict[str, Bad] = {
    "client-closed": Bad(StreamTruncated, pieces=recited(3)),
    "err-mid-stream": Bad(UnknownError, pieces=recited(2), words="model exploded at token 2"),
    "err-mid-stream-continues": Bad(PoolUnavailable, pieces=recited(2), words=OOM),  # the data after it is not read
    "server-killed-mid-stream": Bad(StreamTruncated, pieces=recited(37)),
    "stub-crash-mid-stream": Bad(EngineUnavailable, pieces=recited(2), words=DEAD),
}

EXPLODED = Bad(UnknownError, 400, words="model exploded at token 0")
PARSING = Bad(InvalidRequest, 500, words="failed to parse the request JSON buffer")
GONE = Bad(EngineUnavailable, 404, retriable=True, words="Request for unknown model")
FULL = Bad(CapacityExceeded, 503, retriable=True, words="Exceeds maximum queue size")
BOOM = "message: RuntimeError: boom in execute"

# Refusals of generate_stream. A model's own error comes as 400 whatever its code, and as an event: by its words then.
REFUSALS: dict[str, Bad] = {
    "after-stub-crash": Bad(EngineUnavailable, 400, words=DEAD),
    "err-bad-json": PARSING,
    "err-during-unload": GONE,  # the config was read: it was there
    "err-empty-body": PARSING,
    "err-first-code-cancelled": EXPLODED,
    "err-first-code-invalid": EXPLODED,
    "err-first-code-notfound": EXPLODED,
    "err-first-code-unavailable": EXPLODED,
    "err-raise-before": Bad(UnknownError, 400, words=BOOM),
    "err-shape": Bad(InvalidRequest, 400, words="The schema can not convert input 'text_input'"),
    "err-unknown-model": GONE,
    "err-unknown-version": GONE,
    "err-wrong-type": Bad(InvalidRequest, 500, words="Unable to parse 'data'"),
    "generate-unknown-key-array": Bad(InvalidRequest, 400, words="parameter 'foo' has invalid type"),
}

# Refusals of generate, which is never asked. Recorded of it alone, but they come of generate_stream in the same words.
REFUSED_ONCE: dict[str, Bad] = {
    "err-code-oom": Bad(PoolUnavailable, 400, words=OOM),
    "err-loading-model": GONE,
    "err-queue-full": FULL,
    "err-raise-before-generate": Bad(UnknownError, 400, words=BOOM),
    "err-unloaded-model": GONE,
    "generate-trtllm-ensemble-missing": Bad(InvalidRequest, 400, words="expected number of inputs between 2 and 3"),
}

# Answers of generate and infer, and of other routes: no stream, and never a good end.
NO_STREAMS = [
    "after-stub-crash-generate", "generate-decoupled-many", "generate-one", "generate-trtllm-ensemble-once",
    "infer-json", "infer-json-batched", "load", "server-live", "err-infer-decoupled", "unknown-route",
]  # fmt: skip


def model_of(recording: Recording) -> str:
    """The model that was asked."""
    return recording.path.split("/")[3]


def task_of(recording: Recording) -> dict[str, Any]:
    """The task that asks what was asked."""
    asked = recording.asked if isinstance(recording.asked, dict) else {}
    limit = asked.get("max_tokens", asked.get("parameters", {}).get("max_tokens"))
    task: dict[str, Any] = {"task": asked.get("text_input", "my prompt"), "model": model_of(recording)}
    if not isinstance(task["task"], str):
        task["task"] = "my prompt"
    return {**task, "max_tokens": limit} if isinstance(limit, int) and limit else task


@pytest.fixture
def server() -> Iterator[ReplayServer]:
    with ReplayServer(dict(GETS)) as running:
        yield running


@pytest.fixture
def engine(server: ReplayServer) -> Iterator[TritonAdapter]:
    with TritonAdapter(server.url, timeouts=CLOCKS, retry={"attempts": 1}) as made:
        yield made


def test_no_recording_of_a_job_is_left_out() -> None:
    """Every recorded answer of generate_stream is in one of the tables."""
    streamed = {name for name, recording in RECORDINGS.items() if recording.path.endswith("/generate_stream")}
    assert streamed == STREAMS.keys() | BROKEN_STREAMS.keys() | REFUSALS.keys()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", STREAMS)
def test_a_recorded_stream_gives_its_frames(name: str, way: str, server: ReplayServer, engine: TritonAdapter) -> None:
    """However its bytes are cut, a stream gives started, its texts, and an end with what the model told of it."""
    server.answer = RECORDINGS[name].cut(way)
    check_good(engine.submit(**task_of(RECORDINGS[name])), STREAMS[name], "triton")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", BROKEN_STREAMS)
def test_a_recorded_failure_keeps_what_came_before(
    name: str, way: str, server: ReplayServer, engine: TritonAdapter
) -> None:
    """An error in a 200 stream, or a connection that ends without the zero chunk, is one typed error."""
    server.answer = RECORDINGS[name].cut(way)
    check_bad(engine.submit(**task_of(RECORDINGS[name])), BROKEN_STREAMS[name], "triton")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", [*REFUSALS, *REFUSED_ONCE])
def test_a_recorded_refusal_is_its_typed_error(
    name: str, way: str, server: ReplayServer, engine: TritonAdapter
) -> None:
    """JSON before inference, an event of a stream from the model: the class that the words call for, and no path."""
    server.answer = RECORDINGS[name].cut(way)
    row = {**REFUSALS, **REFUSED_ONCE}[name]
    error = check_bad(engine.submit(**task_of(RECORDINGS[name])), row, "triton")
    assert ".py" not in error.message, "a traceback of the server's"


@pytest.mark.parametrize("name", NO_STREAMS)
def test_what_is_no_stream_is_never_a_good_end(name: str, server: ReplayServer, engine: TritonAdapter) -> None:
    """An answer in one piece, even a 200 with a text or an error in it, is a typed error that is not tried again."""
    server.answer = RECORDINGS[name].cut("whole")
    with pytest.raises(WorkerError) as caught:
        engine.submit("my prompt", model="one").result()
    assert (caught.value.retriable, caught.value.partial_text) == (False, "")
    assert len([path for _, path, _ in server.asked if path.endswith("generate_stream")]) == 1


@pytest.mark.parametrize("name", [name for name in STREAMS if name != "generate-vllm-stream"])
def test_a_stream_cut_anywhere_is_never_a_good_end(name: str, server: ReplayServer, engine: TritonAdapter) -> None:
    """Only the whole zero chunk is the end: wherever the connection dies before, there is a typed error."""
    recording, row = RECORDINGS[name], STREAMS[name]
    whole = b"".join(recording.pieces())
    assert whole.endswith(b"0\r\n\r\n")
    task, texts = task_of(recording), split(row.pieces)
    for size in cuts(recording):
        server.answer = [whole[:size]]
        result = outcome(engine.submit(**task))
        where = f"cut at {size} of {len(whole)}: {result!r}"
        assert isinstance(result, EngineUnavailable), where
        assert result.retriable is False, where  # the engine may have begun
        assert result.partial_text == "".join(texts[: result.tokens_seen]), where
        assert type(result) is StreamTruncated or not result.tokens_seen, where
    server.answer = [whole]
    assert engine.submit(**task).result().text == "".join(texts), "the job after the cuts"


def test_after_the_model_s_own_reason_a_cut_is_an_end(server: ReplayServer, engine: TritonAdapter) -> None:
    """vLLM's backend tells its reason with the last piece: cut before it a stream fails, after it nothing lacks."""
    recording = RECORDINGS["generate-vllm-stream"]
    finish = recording.chunks[-1]
    assert b'"finish_reason":"length"' in finish
    row = STREAMS["generate-vllm-stream"]
    check_cuts(server, engine, recording, row, finish=finish, task=task_of(recording))


@pytest.mark.parametrize("name", ["after-stub-crash", "err-queue-full", "err-wrong-type", "err-unknown-model"])
def test_a_refusal_cut_anywhere_is_a_typed_error(name: str, server: ReplayServer, engine: TritonAdapter) -> None:
    """Half a refusal is never a good end, and never blamed on the request unless its status or its words say so."""
    recording = RECORDINGS[name]
    whole = b"".join(recording.pieces())
    for size in range(0, len(whole), 7):
        server.answer = [whole[:size]]
        result = outcome(engine.submit("my prompt", model="rs"))
        assert isinstance(result, WorkerError), f"cut at {size}"
        assert not isinstance(result, (WorkerTimeout, Completion)), f"cut at {size}: {result!r}"
        if not whole[:size].count(b"\r\n\r\n"):
            assert type(result) is EngineUnavailable, f"cut at {size}: {result!r}"


# --- what is asked before a job


def test_a_job_asks_for_the_config_once_and_for_the_version_once(server: ReplayServer, engine: TritonAdapter) -> None:
    """The first job asks for the model's config, and then for the version; later ones only send their job."""
    server.answer = RECORDINGS["generate-stream"].pieces()
    for _ in range(3):
        started = next(iter(engine.submit("hi", model="rs")))
        assert isinstance(started, StartedFrame)
        assert (started.engine, started.engine_version, started.model) == ("triton", "2.51.0", "rs")
    paths = [path for _, path, _ in server.asked]
    assert paths[:3] == ["/v2/models/rs/config", "/v2/models/rs/generate_stream", "/v2"]
    assert paths[3:] == ["/v2/models/rs/generate_stream"] * 2


def unknown(name: str, index: str, config: str = "model-config-unknown") -> WorkerError:
    """What comes of a job for a model whose config is not to be had, with that list of models."""
    gets = {**GETS, "/v2/repository/index": RECORDINGS[index]}
    gets[f"/v2/models/{name}/config"] = RECORDINGS[config]
    with ReplayServer(gets) as server, TritonAdapter(server.url, timeouts=CLOCKS, retry={"attempts": 1}) as engine:
        with pytest.raises(WorkerError) as caught:
            engine.submit("hi", model=name).result()
        assert [path for _, path, _ in server.asked] == [f"/v2/models/{name}/config", "/v2/repository/index"]
        assert server.asked[1][0] == "POST"
    return caught.value


@pytest.mark.parametrize("config", ["model-config-unknown", "model-config-unknown-400"])
def test_an_unknown_model_is_not_found(config: str) -> None:
    """A name that the index does not list: ModelNotFound, with the names that it has. 2.41 says 400 for the config."""
    error = unknown("nope", "repository-index", config)
    assert type(error) is ModelNotFound
    assert (error.field, error.status, error.retriable) == ("model", 404, False)
    assert "vllm_model" in error.message


@pytest.mark.parametrize(
    ("name", "index", "words"),
    [
        ("slow_load", "repository-index", "not loaded"),
        ("bad_load", "repository-index", "not loaded"),
        ("rs", "index-unloading", "UNLOADING"),
        ("rs", "index-unloading-later", "UNLOADING"),
    ],
)
def test_a_model_that_is_not_ready_is_unavailable(name: str, index: str, words: str) -> None:
    """One that the index lists, in another state or in none: EngineUnavailable, which may be tried again."""
    error = unknown(name, index)
    assert (type(error), error.status, error.retriable) == (EngineUnavailable, 404, True)
    assert words in error.message


def test_a_model_that_did_not_fit_is_an_unavailable_pool() -> None:
    """Out of GPU memory at load: PoolUnavailable with the reason, less the traceback and its paths."""
    error = unknown("bad_load", "index-after-failed-load")
    assert (type(error), error.retriable) == (PoolUnavailable, False)
    assert "CUDA out of memory. Tried to allocate 20.00 GiB" in error.message
    assert "UNAVAILABLE" in error.message
    assert "model.py" not in error.message


def test_of_several_models_one_must_be_named(engine: TritonAdapter, server: ReplayServer) -> None:
    """Without a model's name, on a server with many: InvalidRequest that lists those that are ready, and no job."""
    with pytest.raises(InvalidRequest) as caught:
        engine.submit("hi").result()
    assert caught.value.field == "model"
    ready = ["ensemble", "one", "postprocessing", "preprocessing", "q", "rs", "tensorrt_llm", "vllm_model"]
    assert ", ".join(ready) in caught.value.message
    assert "slow_load" not in caught.value.message
    assert [path for _, path, _ in server.asked] == ["/v2/repository/index"]


# --- health and props


@pytest.mark.parametrize(
    ("path", "model", "answer", "state", "live"),
    [
        ("/v2/health/ready", None, "server-ready", "healthy", True),
        ("/v2/health/ready", None, "server-ready-after-failed-load", "degraded", True),
        ("/v2/models/rs/ready", "rs", "model-ready", "healthy", True),
        ("/v2/models/rs/ready", "rs", "model-ready-after-crash", "healthy", True),  # only a probe tells
        ("/v2/models/nope/ready", "nope", "model-ready-unknown", "degraded", True),
        ("/v2/models/rs/ready", "rs", "model-ready-loading", "degraded", True),
        ("/v2/models/rs/ready", "rs", "model-ready-unloaded", "degraded", True),
        ("/v2/models/rs/ready", "rs", "unknown-route", "degraded", True),
    ],
)
def test_health_is_what_the_recordings_tell(path: str, model: str | None, answer: str, state: str, live: bool) -> None:
    """Of a named model its own readiness counts; of the server's, one failed load makes it unready though it lives."""
    with (
        ReplayServer({path: RECORDINGS[answer]}) as server,
        TritonAdapter(server.url, model=model, timeouts=CLOCKS) as engine,
    ):
        health = engine.health()
        assert [asked for _, asked, _ in server.asked] == [path]
    assert (health.state, health.live, health.ready) == (state, live, state == "healthy")
    if answer == "server-ready-after-failed-load":
        assert "model" in health.message
    if answer.startswith("model-ready-") and state == "degraded":
        assert "Model version not ready" in health.message


def test_props_are_what_the_recordings_tell() -> None:
    """Version, model, an identity made of its versions and its backend; nothing that shows the server's disk."""
    gets = {**GETS, "/v2/models/rs/stats": RECORDINGS["model-stats"]}
    with ReplayServer(gets) as server, TritonAdapter(server.url, model="rs", timeouts=CLOCKS) as engine:
        props = engine.props()
        assert engine.engine_version() == "2.51.0"
    assert (props.engine, props.engine_version, props.model) == ("triton", "2.51.0", "rs")
    assert props.model_digest == "rs/1-python"
    assert props.residency == "unknown"  # KIND_CPU of a python backend says nothing of a GPU
    assert (props.context_size, props.slots_total, props.slots_free) == (None, None, None)
    assert props.raw["/v2"] == json.loads(RECORDINGS["server-metadata"].body)
    assert props.raw["/v2/models/rs/stats"] == json.loads(RECORDINGS["model-stats"].body)
    assert "parameters" not in props.raw["/v2/models/rs/config"]


def test_props_show_no_traceback() -> None:
    """The reason of a failed load stands in ``raw`` without the host's paths."""
    gets = {**GETS, "/v2/repository/index": RECORDINGS["index-after-failed-load"]}
    with ReplayServer(gets) as server, TritonAdapter(server.url, model="ensemble", timeouts=CLOCKS) as engine:
        props = engine.props()
    assert "CUDA out of memory" in str(props.raw)
    assert "model.py" not in str(props.raw)
    assert props.model_digest == "ensemble/1-ensemble"
