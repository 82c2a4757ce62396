"""Triton over gRPC: sequences seen with 2.51.0 and tritonclient 2.73.0, sent again by a real gRPC server."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from tritonclient.grpc import model_config_pb2 as config_pb
from tritonclient.grpc import service_pb2 as pb

from canary import KEY, PROMPT
from grpc_triton import RS, WAIT, Answer, Call, Triton, Wire, config, data, endless, failed, recite, silent, tensor
from verdicts import Bad, Good, check_bad, check_good
from worker_adapters import connect
from worker_adapters.adapters.triton import TritonAdapter
from worker_adapters.errors import (
    AuthenticationFailed,
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
from worker_adapters.simulate import SimServer
from worker_adapters.timeouts import Timeouts

pytestmark = pytest.mark.triton

CLOCKS = Timeouts(connect=WAIT, first_token=WAIT, between_tokens=WAIT, total=3 * WAIT)
THREE = " the| quick| brown"
VLLM = "text_input STRING, stream BOOL?, sampling_parameters STRING?, return_finish_reason BOOL?"
ENSEMBLE = "text_input STRING, max_tokens INT32, stream BOOL?, stop_words STRING[]?, random_seed UINT64?"
MODELS = {
    "rs": config("rs", RS),
    "one": config("one", "text_input STRING, max_tokens INT32?", decoupled=False),
    "vllm_model": config("vllm_model", VLLM, backend="vllm"),
    "ensemble": config("ensemble", ENSEMBLE, backend="", platform="ensemble", max_batch_size=4),
}


@contextmanager
def serving(answer: Answer = recite, **options: Any) -> Iterator[tuple[Triton, TritonAdapter]]:
    """A server that answers so, and an adapter of it that does not try again."""
    with Triton(**MODELS) as server:
        server.answer = answer
        fields = {"model": "rs", "timeouts": CLOCKS, "retry": {"attempts": 1}, **options}
        with connect("triton", server.url, **fields) as engine:
            assert isinstance(engine, TritonAdapter)
            yield server, engine


def play(*responses: Any) -> Answer:
    """These responses, and then the end of the call."""

    def answer(call: Call) -> Iterator[Any]:
        yield from responses

    return answer


def words() -> list[Any]:
    """Three of them."""
    return [data(text) for text in THREE.split("|")]


# --- the sequences, by their numbers


def test_1_an_end_that_was_not_told_is_none() -> None:
    """The final response is always asked for; a call that ends well without it has not told its end."""
    with serving(play(*words())) as (server, engine):
        check_bad(engine.submit("Hi", max_tokens=3), Bad(StreamTruncated, pieces=THREE), "triton")
        [call] = server.calls
        assert call.request.parameters["triton_enable_empty_final_response"].bool_param is True


@pytest.mark.parametrize(("limit", "finish"), [(3, "length"), (4, "stop")])
def test_2_an_empty_final_response_is_the_end(limit: int, finish: str) -> None:
    """Three texts, then outputs=[] with triton_final_response: a good end, with no frame of its own."""
    with serving(play(*words(), data(final=True))) as (_, engine):
        check_good(engine.submit("Hi", max_tokens=limit), Good(THREE, finish, raw=...), "triton")


def test_3_the_last_data_may_be_the_end() -> None:
    """The flag on a response with text: the text counts, and nothing else is waited for."""
    with serving(play(data(" the"), data(" quick", final=True))) as (_, engine):
        check_good(engine.submit("Hi", max_tokens=2), Good(" the| quick", "length", raw=...), "triton")


def test_4_every_job_has_a_call_of_its_own() -> None:
    """Two jobs at once never share a stream, on which errors could not be told apart; one request, and no more."""
    with serving() as (server, engine):
        with engine.submit("a", max_tokens=3) as first, engine.submit("b", max_tokens=2) as second:
            started = [next(first), next(second)]
            assert [frame.type for frame in started] == ["started", "started"]
            assert ("".join(first.texts()), "".join(second.texts())) == (" the quick brown", " the quick")
        assert len(server.calls) == 2
        assert all(call.alone for call in server.calls)
        prompts = {call.input("text_input").contents.bytes_contents[0] for call in server.calls}
        assert prompts == {b"a", b"b"}


def test_5_the_request_s_id_is_the_job_s() -> None:
    """Triton takes any id, twice too; ours is the job's, and in UTF-8."""
    with serving() as (server, engine):
        for job_id in ("job-1", "job-1", "é 🦉"):
            engine.submit("Hi", max_tokens=1, job_id=job_id).result()
        assert [call.request.id for call in server.calls] == ["job-1", "job-1", "é 🦉"]


def test_6_no_tokens_at_all_are_a_good_end() -> None:
    """One response, empty and final."""
    with serving(play(data(final=True))) as (_, engine):
        check_good(engine.submit("Hi"), Good("", "stop", raw=...), "triton")


def test_7_a_model_that_answers_once_may_be_streamed() -> None:
    """One response with the text and the flag."""
    with serving(play(data(" the quick brown", final=True))) as (_, engine):
        check_good(engine.submit("Hi", model="one"), Good(" the quick brown", "stop", raw=...), "triton")


def test_8_an_ensemble_s_tensors_have_a_batch_dimension() -> None:
    """max_batch_size > 0: [1, 1], lists [1, n], each with the type that the config says; other outputs are not read."""
    marks = {"sequence_id": 0, "sequence_start": False, "sequence_end": False}
    more = (tensor("cum_log_probs", 0.0), tensor("output_log_probs", 0.0), tensor("sequence_index", 0))
    responses = [data(text, *more, final=text == " brown", **marks) for text in THREE.split("|")]
    with serving(play(*responses)) as (server, engine):
        stream = engine.submit("Hi", model="ensemble", max_tokens=3, stop=["a", "é"], seed=2**63 - 1)
        check_good(stream, Good(THREE, "length", raw=...), "triton")
        [call] = server.calls
        shown = {each.name: (each.datatype, list(each.shape)) for each in call.request.inputs}
        assert shown == {
            "text_input": ("BYTES", [1, 1]),
            "max_tokens": ("INT32", [1, 1]),
            "stream": ("BOOL", [1, 1]),
            "stop_words": ("BYTES", [1, 2]),
            "random_seed": ("UINT64", [1, 1]),
        }
        assert list(call.input("stop_words").contents.bytes_contents) == [b"a", "é".encode()]
        assert list(call.input("random_seed").contents.uint64_contents) == [2**63 - 1]
        assert list(call.input("stream").contents.bool_contents) == [True]
        assert list(call.input("max_tokens").contents.int_contents) == [3]


def test_a_model_without_batches_has_plain_shapes() -> None:
    """max_batch_size 0: [1], [n]; FP32 as floats; parameters of the request by their types."""
    parameters = {"priority": 1, "tag": "a", "x": 1.5, "b": True}
    with serving() as (server, engine):
        engine.submit("Hi", max_tokens=1, temperature=1, stop=["a"], extra={"parameters": parameters}).result()
        [call] = server.calls
        assert (call.request.model_name, call.request.model_version) == ("rs", "")
        assert {tuple(each.shape) for each in call.request.inputs} == {(1,)}
        assert list(call.input("temperature").contents.fp32_contents) == [1.0]
        told = call.request.parameters
        assert (told["priority"].int64_param, told["tag"].string_param) == (1, "a")
        assert (told["x"].double_param, told["b"].bool_param) == (1.5, True)


def test_a_version_is_asked_for() -> None:
    """``version`` stands in the request and in the question for the config."""
    with serving(version=2) as (server, engine):
        engine.submit("Hi", max_tokens=1).result()
        assert server.calls[0].request.model_version == "2"
        assert [request.version for method, request, _ in server.asked if method == "ModelConfig"] == ["2"]


def test_9_vllm_takes_json() -> None:
    """Its tensor sampling_parameters; its reason for ending is the model's own."""

    def answer(call: Call) -> Iterator[Any]:
        yield data(" the", tensor("finish_reason", "None"))
        yield data(" quick", tensor("finish_reason", "stop"))
        yield data(final=True)

    with serving(answer) as (server, engine):
        check_good(engine.submit("Hi", model="vllm_model", max_tokens=9), Good(" the| quick", "stop"), "triton")
        told = server.calls[0].input("sampling_parameters").contents.bytes_contents[0]
        assert json.loads(told) == {"max_tokens": 9}


def test_10_an_error_response_ends_the_job() -> None:
    """Without a status, and the call stays open: the job fails by the words, and the call is ended at once."""

    def answer(call: Call) -> Iterator[Any]:
        yield from words()[:2]
        yield failed("model exploded at token 2")
        call.wait_gone()

    with serving(answer) as (server, engine):
        row = Bad(UnknownError, pieces=" the| quick", words="model exploded at token 2")
        check_bad(engine.submit("Hi"), row, "triton")
        assert server.calls[0].wait_gone()


def test_11_the_error_of_one_job_touches_no_other() -> None:
    """Another job over the same connection goes on to its own end."""
    go_on = threading.Event()

    def answer(call: Call) -> Iterator[Any]:
        if call.request.id == "bad":
            yield data(" the")
            yield failed("model exploded at token 1")
            return
        yield data(" a")
        assert go_on.wait(WAIT)
        yield data(" b", final=True)

    with serving(answer) as (_, engine), engine.submit("Hi", job_id="good") as good:
        assert next(good).type == "started"
        check_bad(engine.submit("Hi", job_id="bad"), Bad(UnknownError, pieces=" the"), "triton")
        go_on.set()
        assert good.result().text == " a b"


#: The code of a model's own error in a stream -> what it is.
CODES: dict[str, Bad] = {
    "UNAVAILABLE": Bad(EngineUnavailable, 503),
    "INVALID_ARGUMENT": Bad(InvalidRequest, 400),
    "INTERNAL": Bad(UnknownError, 500),
    "UNKNOWN": Bad(UnknownError, 500),
    "NOT_FOUND": Bad(UnknownError, 404),
    "ALREADY_EXISTS": Bad(UnknownError, 409),
    "UNIMPLEMENTED": Bad(UnknownError, 501),
    "CANCELLED": Bad(StreamTruncated),
    "DEADLINE_EXCEEDED": Bad(WorkerTimeout, 504, further={"clock": "engine"}),
    "UNAUTHENTICATED": Bad(AuthenticationFailed, 401),
    "PERMISSION_DENIED": Bad(AuthenticationFailed, 403),
}


@pytest.mark.parametrize("pieces", ["", " the| quick"])
@pytest.mark.parametrize("code", CODES)
def test_12_errors_have_the_model_s_own_code(code: str, pieces: str) -> None:
    """triton_grpc_error is sent to 2.68 and later: a model's error ends the call with its code; 14 is one of them."""

    def answer(call: Call) -> Iterator[Any]:
        yield from [data(piece) for piece in pieces.split("|") if piece]
        call.abort(code, "model exploded at token 2")

    with serving(answer) as (server, engine):
        server.told["ServerMetadata"].version = "2.68.0"
        expected = CODES[code]
        row = Bad(expected.kind, expected.status, pieces=pieces, further=expected.further, words="model exploded")
        check_bad(engine.submit("Hi"), row, "triton")
        assert server.calls[0].metadata["triton_grpc_error"] == "true"


@pytest.mark.parametrize(
    ("version", "asks"),
    [("2.41.0", False), ("2.51.0", False), ("2.67.1", False), ("", False), ("2.68.0", True), ("3.0", True)],
)
def test_12_a_triton_that_may_die_of_it_is_not_asked_for_codes(version: str, asks: bool) -> None:
    """An error that the model goes on after, as TensorRT-LLM's BLS does, kills 2.51 where codes were asked for."""
    with serving() as (server, engine):
        server.told["ServerMetadata"].version = version
        for _ in range(2):  # the version is known before the first job is sent
            engine.submit("Hi", max_tokens=1).result()
        assert [("triton_grpc_error" in call.metadata) for call in server.calls] == [asks, asks]


#: Words of an error without a code -> what it is, as the first of a stream.
WORDS: dict[str, Bad] = {
    "Request for unknown model: 'rs' is not found": Bad(EngineUnavailable, retriable=True),
    "[request id: a] expected number of inputs between 1 and 5 but got 0 inputs for model 'one'": Bad(InvalidRequest),
    "[request id: a] inference input 'text_input' data-type is 'INT32', but model 'one' expects": Bad(InvalidRequest),
    "[request id: a] unexpected shape for input 'text_input' for model 'one'. Expected [1], got": Bad(InvalidRequest),
    "unexpected inference input 'zzz' for model 'one'": Bad(InvalidRequest),
    "[request id: a] inference request batch-size must be <= 4 for 'ensemble'": Bad(InvalidRequest),
    "Exceeds maximum queue size": Bad(CapacityExceeded, retriable=True),
    "Request timeout expired": Bad(WorkerTimeout, further={"clock": "engine"}),
    "CUDA out of memory. Tried to allocate 2.00 GiB": Bad(PoolUnavailable),
    "Stub process 'rs_0_0' is not healthy.": Bad(EngineUnavailable),
    "Model is unavailable due to unhealthy vLLM engine": Bad(EngineUnavailable, retriable=True),
    "Error generating stream: 'NoneType' object has no attribute 'lora_name'": Bad(InvalidRequest),
    "LoRA nope is not supported, we currently support ['alpaca']": Bad(InvalidRequest),
    "Failed to process the request(s) for model 'rs_0_0', message: RuntimeError: boom": Bad(UnknownError),
    "ModelInfer RPC doesn't support models with decoupled transaction policy": Bad(UnknownError),
    "Streaming is only supported in decoupled mode.": Bad(InvalidRequest),
}


@pytest.mark.parametrize("message", WORDS)
def test_13_an_error_without_a_code_goes_by_its_words(message: str) -> None:
    """Of what is refused before inference, and of a dead backend, only the words tell."""
    with serving(play(failed(message))) as (_, engine):
        check_bad(engine.submit("Hi"), WORDS[message], "triton")


def test_an_exception_s_traceback_is_not_shown() -> None:
    """Of an exception in execute the words remain, not the host's paths."""
    message = (
        "Failed to process the request(s), message: RuntimeError: boom\n\nAt:\n  /models/rs/1/model.py(16): execute\n"
    )

    def aborting(call: Call) -> Iterator[Any]:
        yield from ()
        call.abort("INTERNAL", message)

    for answer, status in ((play(failed(message)), None), (aborting, 500)):
        with serving(answer) as (_, engine):
            error = check_bad(engine.submit("Hi"), Bad(UnknownError, status, words="boom"), "triton")
        assert "model.py" not in error.message


def test_15_nobody_there() -> None:
    """Refused before anything is sent: EngineUnavailable, which may be tried again."""
    with Triton() as server:
        url = server.url
    with connect("triton", url, model="rs", retry={"attempts": 1}) as engine:
        with pytest.raises(EngineUnavailable) as caught:
            engine.submit("Hi").result()
        assert (type(caught.value), caught.value.retriable) == (EngineUnavailable, True)
        assert caught.value.phase == "connect"
        health = engine.health()
        assert (health.state, health.live, health.ready) == ("unhealthy", False, False)


def test_20_an_error_before_a_crash_is_what_is_told() -> None:
    """An error response, and a moment later the server dies: the first counts."""

    def answer(call: Call) -> Iterator[Any]:
        yield failed("Failed to process the request(s) for model 'rs_0_0', message: RuntimeError: boom in execute")
        call.abort("UNAVAILABLE", "Stream removed (Socket closed)")

    with serving(answer) as (_, engine):
        check_bad(engine.submit("Hi"), Bad(UnknownError, words="boom in execute"), "triton")


@contextmanager
def breakable(answer: Answer) -> Iterator[tuple[Triton, Wire, TritonAdapter]]:
    """A server behind a wire that a test can break."""
    with Triton(**MODELS) as server:
        server.answer = answer
        wire = Wire(server.port)
        with connect("triton", wire.url, model="rs", timeouts=CLOCKS, retry={"attempts": 1}) as engine:
            assert isinstance(engine, TritonAdapter)
            yield server, wire, engine


@pytest.mark.parametrize("reset", [False, True])
def test_21_a_server_that_dies_mid_stream(reset: bool) -> None:
    """What had come stands in the error, which is a truncation: the stream stopped without the engine's end."""
    with breakable(endless) as (_, wire, engine):
        stream = engine.submit("Hi", max_tokens=10**6)
        frames = iter(stream)
        came = [next(frames).type for _ in range(4)]
        assert came == ["started", "token", "token", "token"]
        wire.break_off(reset=reset)
        with pytest.raises(StreamTruncated) as caught:
            list(frames)
        assert caught.value.tokens_seen >= 3
        assert caught.value.partial_text.startswith(" the quick brown")
        assert (caught.value.retriable, caught.value.phase) == (False, "stream")


@pytest.mark.parametrize("reset", [False, True])
def test_a_server_that_dies_before_the_first_response(reset: bool) -> None:
    """The job may have begun there: EngineUnavailable, never tried again."""
    with breakable(silent) as (server, wire, engine):
        stream = engine.submit("Hi")
        caught: list[WorkerError] = []

        def read() -> None:
            with pytest.raises(WorkerError) as failure:
                stream.result()
            caught.append(failure.value)

        reader = threading.Thread(target=read)
        reader.start()
        while not server.calls:
            assert reader.is_alive()
            reader.join(0.01)
        wire.break_off(reset=reset)
        reader.join(WAIT)
        [error] = caught
        assert (type(error), error.retriable, error.tokens_seen) == (EngineUnavailable, False, 0)


# --- control calls


UNARY = [
    ("NOT_FOUND", "Request for unknown model: 'rs' version 9 is not found", EngineUnavailable, 404),
    ("UNAUTHENTICATED", "who are you", AuthenticationFailed, 401),
    ("PERMISSION_DENIED", "not you", AuthenticationFailed, 403),
    ("INVALID_ARGUMENT", "no", InvalidRequest, 400),
    ("INTERNAL", "boom", EngineUnavailable, 500),
    ("UNAVAILABLE", "not now", EngineUnavailable, 503),
    ("RESOURCE_EXHAUSTED", "busy", CapacityExceeded, 429),
    ("UNIMPLEMENTED", "Method not found!", WorkerError, 501),
]


@pytest.mark.parametrize(("code", "details", "kind", "status"), UNARY)
def test_a_refused_question_is_its_typed_error(code: str, details: str, kind: type[WorkerError], status: int) -> None:
    """The config's refusal is the job's: with the status that says the same over HTTP."""
    with serving() as (server, engine):
        server.refuse["ModelConfig"] = (code, details)
        with pytest.raises(kind) as caught:
            engine.submit("Hi").result()
        assert caught.value.status == status
        assert server.calls == []
        server.refuse.clear()
        assert engine.submit("Hi", max_tokens=1).result().text == " the"


@pytest.mark.parametrize(
    ("row", "kind", "words"),
    [
        (("nope", "1", "READY", ""), EngineUnavailable, "version"),
        (("nope", "", "", ""), EngineUnavailable, "not loaded"),
        (("nope", "1", "LOADING", ""), EngineUnavailable, "LOADING"),
        (("nope", "1", "UNAVAILABLE", "Internal: boom\n\nAt:\n  /models/x.py(1): f"), EngineUnavailable, "boom"),
        (("nope", "1", "UNAVAILABLE", "Internal: CUDA out of memory."), PoolUnavailable, "out of memory"),
        (("other", "1", "READY", ""), ModelNotFound, "other"),
    ],
)
def test_an_unknown_model_is_looked_up_in_the_index(row: Any, kind: type[WorkerError], words: str) -> None:
    """As over HTTP: what the index says of it decides."""
    with serving(model="nope") as (server, engine):
        server.index = [row]
        with pytest.raises(WorkerError, match=words) as caught:
            engine.submit("Hi").result()
        assert type(caught.value) is kind
        assert ".py" not in caught.value.message
        assert server.methods() == ["ModelConfig", "RepositoryIndex"]


@pytest.mark.parametrize("message", [message for message, row in WORDS.items() if row.kind is InvalidRequest])
def test_after_a_refusal_of_a_request_the_config_is_read_again(message: str) -> None:
    """It has no code, but a reload may be behind it: the next job asks, and is written for the new inputs."""
    with serving(play(failed(message))) as (server, engine):
        with pytest.raises(InvalidRequest):
            engine.submit("Hi").result()
        server.configs["rs"] = config("rs", "text_input STRING, max_output_tokens INT32?")
        server.answer = play(data(final=True))
        engine.submit("Hi").result()
        assert {each.name for each in server.calls[1].request.inputs} == {"text_input", "max_output_tokens"}


def test_the_only_model_needs_no_name() -> None:
    """Without a name the index tells; of several ready ones, one must be named."""
    with serving(model=None) as (server, engine):
        server.index = [("rs", "1", "READY", ""), ("bad_load", "1", "UNAVAILABLE", "x")]
        result = engine.submit("Hi", max_tokens=1)
        assert next(result).to_dict()["model"] == "rs"
        assert server.methods() == ["RepositoryIndex", "ModelConfig", "ServerMetadata"]
    with serving(model=None) as (server, engine):
        server.index = [("rs", "1", "READY", ""), ("one", "1", "READY", "")]
        with pytest.raises(InvalidRequest, match="one, rs") as caught:
            engine.submit("Hi").result()
        assert caught.value.field == "model"


def test_started_tells_version_and_model() -> None:
    """From ServerMetadata, once."""
    with serving() as (server, engine):
        for _ in range(2):
            started = next(engine.submit("Hi", max_tokens=1)).to_dict()
            assert (started["engine"], started["engine_version"], started["model"]) == ("triton", "2.51.0", "rs")
        assert server.methods().count("ServerMetadata") == 1
        assert server.methods().count("ModelConfig") == 1


def test_health_asks_for_the_model_or_the_server() -> None:
    """ModelReady where a model is meant, else ServerReady; not ready is no failure of ours."""
    with serving() as (server, engine):
        assert engine.health().state == "healthy"
        server.told["ModelReady"] = pb.ModelReadyResponse(ready=False)
        health = engine.health()
        assert (health.state, health.live, health.ready) == ("degraded", True, False)
        assert "rs" in health.message
        assert "others may serve" not in health.message  # which one is meant was said
        assert [request.name for _, request, _ in server.asked] == ["rs", "rs"]
    with serving(model=None) as (server, engine):
        assert engine.health().state == "healthy"
        server.told["ServerReady"] = pb.ServerReadyResponse(ready=False)
        assert engine.health().state == "degraded"
        assert server.methods() == ["ServerReady", "ServerReady"]


def test_health_of_a_port_that_speaks_no_grpc_is_down() -> None:
    """Whoever listens there, Triton is not it: over HTTP the same port is down too, not merely not ready."""
    with (
        SimServer(lambda exchange: exchange.json(400, {})) as server,
        TritonAdapter(server.url.replace("http", "grpc"), model="rs", retry={"attempts": 1}) as engine,
    ):
        health = engine.health()
        assert (health.state, health.live, health.ready) == ("unhealthy", False, False)
        with pytest.raises(EngineUnavailable, match="failed to connect") as caught:
            engine.submit("Hi").result()
        assert caught.value.status is None


def test_a_cancel_of_an_ensemble_is_told_to_its_engine() -> None:
    """A cancelled call reaches no step of it: TensorRT-LLM's engine is told by another call, with the job's id."""
    made = config("ensemble", ENSEMBLE, backend="", platform="ensemble", max_batch_size=4)
    made.ensemble_scheduling.step.add(model_name="tensorrt_llm", model_version=-1)
    ids = "input_ids INT32[], input_lengths INT32, request_output_len INT32, stop BOOL?"
    models = {"ensemble": made, "tensorrt_llm": config("tensorrt_llm", ids, backend="python", max_batch_size=4)}

    def answer(call: Call) -> Iterator[Any]:
        return play(data(final=True))(call) if call.request.model_name == "tensorrt_llm" else endless(call)

    with Triton(**models) as server:
        server.answer = answer
        with connect("triton", server.url, model="ensemble", timeouts=CLOCKS) as engine:
            with engine.submit("Hi", job_id="mine") as stream:
                assert next(stream).type == "started"
                assert stream.cancel()
                assert stream.result().cancelled
            assert len(server.calls) == 2
            told = server.calls[1]
            assert (told.request.model_name, told.request.id) == ("tensorrt_llm", "mine")
            assert list(told.input("stop").contents.bool_contents) == [True]
            assert {each.name: (each.datatype, list(each.shape)) for each in told.request.inputs} == {
                **dict.fromkeys(("input_ids", "input_lengths", "request_output_len"), ("INT32", [1, 1])),
                "stop": ("BOOL", [1, 1]),
            }


def test_a_probe_generates_one_token() -> None:
    """A model whose process has died is still called ready; a probe finds out."""
    with serving() as (server, engine):
        assert engine.health(probe=True).ready
        assert list(server.calls[0].input("max_tokens").contents.int_contents) == [1]
        server.answer = play(failed("Stub process 'rs_0_0' is not healthy."))
        health = engine.health(probe=True)
        assert (health.state, health.live, health.ready) == ("unhealthy", True, False)
        assert "Stub process" in health.message


def test_props_are_what_the_calls_tell() -> None:
    """As over HTTP, of the same calls: version, model, identity, residency; nothing of the server's disk."""
    with serving(model="ensemble") as (server, engine):
        made = config("ensemble", ENSEMBLE, backend="", platform="ensemble", max_batch_size=4)
        made.parameters["tokenizer_dir"].string_value = "/models/tokenizer"
        made.ensemble_scheduling.step.add(model_name="tensorrt_llm", model_version=-1)
        engine_config = config("tensorrt_llm", "input_ids INT32[]", backend="tensorrtllm")
        engine_config.instance_group.add(kind=config_pb.ModelInstanceGroup.KIND_GPU, count=1)
        server.configs |= {"ensemble": made, "tensorrt_llm": engine_config}
        server.index = [("ensemble", "1", "READY", ""), ("x", "1", "UNAVAILABLE", "boom\n\nAt:\n  /models/x.py(1): f")]
        props = engine.props()
        assert engine.engine_version() == "2.51.0"
    assert (props.engine_version, props.model, props.residency) == ("2.51.0", "ensemble", "gpu")
    assert props.model_digest == "ensemble/1-ensemble"
    assert "tokenizer" not in str(props.raw)
    assert "x.py" not in str(props.raw)
    assert "boom" in str(props.raw)
    assert not props.capabilities.messages


# --- keys, headers and options


def test_key_and_headers_are_metadata() -> None:
    """On every call: the key as a bearer token, other headers under their names in small letters."""
    with serving(api_key=KEY, headers={"X-Team": "blue"}) as (server, engine):
        server.key = KEY
        engine.submit(PROMPT, max_tokens=1).result()
        assert engine.health().ready
        for metadata in (*(each for _, _, each in server.asked), server.calls[0].metadata):
            assert (metadata["authorization"], metadata["x-team"]) == (f"Bearer {KEY}", "blue")


def test_what_a_server_quotes_is_not_shown() -> None:
    """Neither key nor prompt, in an error response, in a status, in a refused question; the rest of the words is."""
    words = f"boom for {PROMPT} by {KEY}"

    def aborting(call: Call) -> Iterator[Any]:
        yield from ()
        call.abort("INTERNAL", words)

    for answer in (play(failed(words)), aborting):
        with serving(answer, api_key=KEY) as (server, engine):
            with pytest.raises(WorkerError, match="boom for") as caught:
                engine.submit(PROMPT).result()
            assert KEY not in caught.value.message
            assert PROMPT[:20] not in caught.value.message
            server.refuse["ServerMetadata"] = ("INTERNAL", f"boom for {KEY}")
            with pytest.raises(WorkerError, match="boom for") as caught:
                engine.engine_version()
            assert KEY not in caught.value.message


def test_a_wrong_key_is_refused() -> None:
    """AuthenticationFailed, at the first call; the server lives."""
    with serving(api_key="sk-CANARY-wrong") as (server, engine):
        server.key = KEY
        with pytest.raises(AuthenticationFailed) as caught:
            engine.submit("Hi").result()
        assert (caught.value.status, caught.value.retriable) == (401, False)
        assert server.methods() == ["ModelConfig"]
        assert (engine.health().live, engine.health().ready) == (True, False)


@pytest.mark.parametrize(
    ("url", "options", "field"),
    [
        ("grpc://h:1/base", {}, "url"),
        ("grpc://h:1?x=1", {}, "url"),
        ("http://h:1", {"transport": "grpc"}, "transport"),
        ("grpc://h:1", {"transport": "http"}, "transport"),
        ("grpc://h:1", {"transport": "carrier pigeon"}, "transport"),
        ("grpc://h:1", {"verify": False}, "verify"),
        ("grpc://h:1", {"proxy": "http://p:1"}, "proxy"),
        ("grpc://h:1", {"tensors": {"colour": "X"}}, "tensors"),
        ("grpc://h:1", {"tensors": ["prompt"]}, "tensors"),
        ("grpcs://h:1", {"ca": "/nowhere/ca.pem"}, "ca or cert"),
        ("grpc://h:1", {"headers": {"X-Team": "é"}}, "headers"),
        ("grpc://h:1", {"headers": {"X-Team-bin": "x"}}, "headers"),
        ("grpc://h:1", {"headers": {"X!": "x"}}, "headers"),
        ("grpc://h:1", {"key_header": "X-Key!", "api_key": "env:X"}, "headers"),
    ],
)
def test_options_that_grpc_cannot_do_are_refused(url: str, options: dict[str, Any], field: str) -> None:
    """Before anything is sent, by name."""
    with pytest.raises(InvalidRequest) as caught:
        connect("triton", url, model="rs", **options).submit("Hi").result()
    assert caught.value.field == field


def test_the_transport_goes_by_option_or_url() -> None:
    """Without a URL, this host at the usual port; the adapter says what it can."""
    assert repr(connect("triton", transport="grpc")).endswith("'grpc://127.0.0.1')")
    assert repr(connect("triton")).endswith("'http://127.0.0.1:8000')")
    assert connect("triton", "grpc://h").capabilities.release != connect("triton", "http://h").capabilities.release


def test_infer_goes_over_http() -> None:
    """Over gRPC it is refused, and says so."""
    with serving() as (_, engine), pytest.raises(InvalidRequest, match="HTTP"):
        engine.infer({"text_input": "Hi"})


def test_what_a_tensor_cannot_carry_is_refused() -> None:
    """A 16-bit float has no place in a request's contents: InvalidRequest that names it."""
    with serving(model="half") as (server, engine):
        server.configs["half"] = config("half", "text_input STRING, table FP16[]?")
        with pytest.raises(InvalidRequest) as caught:
            engine.submit("Hi", extra={"table": [0.5]}).result()
        assert caught.value.field == "extra.table"
