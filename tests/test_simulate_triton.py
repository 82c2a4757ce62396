"""The simulated Triton against recordings of the real one (2.51.0), byte for byte, and under its own client."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from openai_clients import Exchange, play, recorded
from simulate_clients import WAIT, ask, connect, read_all, read_to_error, read_until, request_bytes, split, unchunk
from worker_adapters.simulate import FINISH, Fault, TritonSimulator
from worker_adapters.simulate.recital import SENTENCE
from worker_adapters.simulate.triton_catalog import LOAD_ERROR, MODELS
from worker_adapters.simulate.triton_models import Model, Step

pytestmark = pytest.mark.triton

# Host and Content-Length are written anew.
RECORDINGS = {
    name: dataclasses.replace(
        recording,
        asked_headers={key: value for key, value in recording.asked_headers.items() if key == "Content-Type"},
    )
    for name, recording in recorded("triton").items()
}

# The models that were recorded.
RS = Model(
    "rs",
    "text_input STRING, max_tokens INT32?, temperature FP32?, stream BOOL?, delay_ms FP32?, fail_at INT32?,"
    "fail_mode STRING?, stop_words STRING[-1]?",
    "text_output STRING",
    parameters={"gpt_model_type": "inflight_fused_batching"},
)
ONE = Model(
    "one",
    "text_input STRING, max_tokens INT32?, temperature FP32?, delay_ms FP32?, fail_mode STRING?",
    "text_output STRING, logp FP32",
    decoupled=False,
    constants={"logp": -0.5},
)
Q = Model("q", "text_input STRING, delay_ms FP32?", "text_output STRING", decoupled=False, max_batch_size=4)
ENSEMBLE = Model(
    "ensemble",
    "text_input STRING, max_tokens INT32, stream BOOL?",
    "text_output STRING[-1], cum_log_probs FP32[-1], output_log_probs FP32[-1,-1], sequence_index INT32",
    voice="trtllm",
    max_batch_size=4,
    constants={"cum_log_probs": 0.0, "output_log_probs": 0.0, "sequence_index": 0},
    steps=(
        Step(
            "preprocessing",
            {"REQUEST_OUTPUT_LEN": "max_tokens", "QUERY": "text_input"},
            {"INPUT_ID": "_ids", "REQUEST_OUTPUT_LEN": "_len"},
        ),
        Step(
            "tensorrt_llm",
            {"input_ids": "_ids", "streaming": "stream", "request_output_len": "_len"},
            {
                "sequence_index": "sequence_index",
                "cum_log_probs": "cum_log_probs",
                "output_log_probs": "output_log_probs",
                "output_ids": "_out",
            },
        ),
        Step("postprocessing", {"TOKENS_BATCH": "_out"}, {"OUTPUT": "text_output"}),
    ),
)
BROKEN = Model("bad_load", RS.inputs, RS.outputs, load_error=LOAD_ERROR.format("bad_load"), loaded=False)
SLOW = Model("slow_load", RS.inputs, RS.outputs, loaded=False, load_time=30.0)
REPOSITORY = (BROKEN, ENSEMBLE, ONE, Q, RS, SLOW, "vllm_model")
AFTER_FAILED_LOAD = (dataclasses.replace(BROKEN, loaded=True), *REPOSITORY[1:])

# Which recordings are not replayed, and why.
NOT_REPLAYED = {
    "loading and unloading are played live below": {
        "err-during-unload", "err-loading-model", "model-ready-loading", "index-unloading", "index-unloading-later",
    },
    "ends that one of the two sides brought about are played live below": {"client-closed", "server-killed-mid-stream"},
    "figures of a server that did other things before (its names are compared below)": {"model-stats"},
    "an older server than the one that is simulated": {"generate-stream-two-types", "model-config-unknown-400"},
}  # fmt: skip
SKIPPED = set().union(*NOT_REPLAYED.values())

# What went wrong in the model, as a fault; other errors of models have their text from the recording.
FAULTS = {
    "after-stub-crash": Fault.error_after(0),
    "stub-crash-mid-stream": Fault.error_after(2),
    "silent-end": Fault.clean_end_after(2),
    "err-queue-full": Fault.status(503),
    "err-queue-full-infer": Fault.status(503),
    "err-mid-stream": Fault.error_after(2, "model exploded at token 2"),
    "err-mid-stream-continues": Fault.garbage_after(2, RECORDINGS["err-mid-stream-continues"].chunks[2]),
    "err-infer-model-unavailable": Fault.error_after(0, "model says unavailable", code=503),
}


def usual_options(recording: Exchange) -> dict[str, Any]:
    """The simulator's options that fit a recording: its repository, what its model says."""
    options: dict[str, Any] = {"models": REPOSITORY, "explicit": True, "idle_timeout": 0.05, "tokens": SENTENCE[:14]}
    options["endless"] = recording.name == "unload-mid-stream"
    if "/one/" in recording.path:
        options["tokens"] = SENTENCE[:3]
    elif "/q/" in recording.path:
        options["tokens"] = ("ok",)
    elif recording.name == "err-mid-stream-continues":
        options |= {"tokens": (" the", " quick", " fox")}
    if recording.name.endswith("after-failed-load"):
        options["models"] = AFTER_FAILED_LOAD
    if recording.name == "load-explicit-off":
        options["explicit"] = False
    return options


def usual_faults(recording: Exchange) -> list[Fault]:
    """What went wrong in a recording."""
    if recording.name in FAULTS:
        return [FAULTS[recording.name]]
    if recording.name.startswith(("err-code", "err-first", "err-raise")):
        text = recording.body.decode().removeprefix("data: ")
        return [Fault.error_after(0, json.loads(text)["error"])]
    return []


@pytest.mark.parametrize("name", [name for name in RECORDINGS if name not in SKIPPED])
def test_recording_is_replayed_byte_for_byte(name: str) -> None:
    """The simulator's head, its order, its chunk boundaries and its body are those of the real engine."""
    recording = RECORDINGS[name]
    with TritonSimulator(**usual_options(recording)) as simulator:
        simulator.misbehave(*usual_faults(recording))
        status, fields, chunks = play(recording, simulator)
    assert status == recording.status
    assert chunks == recording.chunks
    assert [field for field, _ in fields] == [field for field, _ in recording.headers]
    # Where a path in the body was replaced after the recording, the length is that of the original.
    shortened = b"/models/bad_load" in recording.body
    expected = [field for field in recording.headers if not (shortened and field[0] == "Content-Length")]
    assert [field for field in fields if not (shortened and field[0] == "Content-Length")] == expected


def test_every_recording_is_replayed_or_has_a_reason() -> None:
    """No recording is left out in silence."""
    assert set(RECORDINGS) >= SKIPPED
    assert len(RECORDINGS) - len(SKIPPED) >= 80


# -- refusals that were seen with 2.51.0 and not kept as recordings ----------------------------------------------------

PARSE, DATA = "failed to parse the request JSON buffer: ", "Unable to parse 'data': attempt to access JSON non-"
BYTES = "Unable to parse JSON bytes array: attempt to access JSON non-string as string"
KEYWORD, SHAPE = (
    "Converting keyword: 'parameters': ",
    "The schema can not convert input '{}' to tensor with proper shape",
)
KEYWORD_OBJECT = "Expected JSON object for keyword: 'parameters': attempt to access JSON non-object as object"
PARAMETER = "parameter '{}' has invalid type. It should be either 'int', 'bool', or 'string'."


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"[1]", 500, "attempt to get members for non-object"),
        (b'{"a":1,}', 500, PARSE + "Missing a name for object member. at 7"),
        (b'{"a" 1}', 500, PARSE + "Missing a colon after a name of object member. at 5"),
        (b'{"a":1 "b":2}', 500, PARSE + "Missing a comma or '}' after an object member. at 7"),
        (b'{"a":[1 2]}', 500, PARSE + "Missing a comma or ']' after an array element. at 8"),
        (b'{"a":tru}', 500, PARSE + "Invalid value. at 8"),
        (b'{"a":"x', 500, PARSE + "Missing a closing quotation mark in string. at 7"),
        (b'{"a":1}x', 500, PARSE + "The document root must not be followed by other values. at 7"),
        (b'{"a":1', 500, PARSE + "Missing a comma or '}' after an object member. at 6"),
        (b" ", 500, PARSE + "The document is empty. at 1"),
        (b'{"a":"\\x"}', 500, PARSE + "Invalid escape character in string. at 6"),
        (b'{"a":"\n"}', 500, PARSE + "Invalid escape character in string. at 6"),
        (b'{"text_input":"\\ud83d"}', 500, PARSE + "The surrogate pair in string is invalid. at 15"),
        *[
            ({"text_input": "a", "max_tokens": value}, 500, DATA + "signed-integer as signed-integer")
            for value in (1.5, None, True, {"a": 1}, 2**63, 1e3)
        ],
        *[({"max_tokens": value}, 400, SHAPE.format("max_tokens")) for value in ([], [1, 2])],
        *[({"temperature": value}, 500, DATA + "number as double") for value in ("x", None, True)],
        *[({"stream": value}, 500, DATA + "boolean as boolean") for value in (0, "true", None)],
        *[({"seed": value}, 500, DATA + "unsigned-integer as unsigned-integer") for value in (-1, 1.5, "x")],
        *[({"text_input": value}, 500, BYTES) for value in (5, None, [1], {"x": 1})],
        *[({"text_input": value}, 400, SHAPE.format("text_input")) for value in ([], ["a", "b"])],
        *[({"text_input": "a", "stop": value}, 500, BYTES) for value in (5, ["a", 5])],
        *[({"text_input": "a", "foo": value}, 400, PARAMETER.format("foo")) for value in (None, {"a": 1})],
        ({"id": 5}, 500, "Unable to parse 'id': attempt to access JSON non-string as string"),
        *[({"parameters": value}, 500, KEYWORD_OBJECT) for value in (5, [1], None)],
        ({"parameters": {"foo": [1]}}, 400, KEYWORD + PARAMETER.format("foo")),
        ({"parameters": {"max_tokens": "x"}}, 500, KEYWORD + DATA + "signed-integer as signed-integer"),
        ({"parameters": {"parameters": {}}}, 400, KEYWORD + PARAMETER.format("parameters")),
        (
            {"text_input": "a", "max_tokens": 1, "parameters": {"max_tokens": 2}},
            400,
            KEYWORD + "[request id: <id_unknown>] input 'max_tokens' already exists in request",
        ),
        (
            {"id": "a"},
            400,
            "[request id: a] expected number of inputs between 1 and 8 but got 0 inputs for model 'recite'. Got "
            "input(s) [], but missing required input(s) ['text_input']. Please provide all required input(s).",
        ),
    ],
)  # fmt: skip
def test_a_generate_request_is_refused_in_the_engine_s_words(body: Any, status: int, message: str) -> None:
    """Before any response a refusal is JSON with the engine's status and text."""
    with TritonSimulator(idle_timeout=0.05) as sim:
        head, answer = split(read_all(ask(sim, "/v2/models/recite/generate_stream", body)))
    assert json.loads(answer) == {"error": message}
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"\r\nContent-Type: application/json\r\nContent-Length: " in head


def infer_bytes(inputs: list[Any], tail: bytes = b"", **fields: Any) -> tuple[bytes, str]:
    """An infer request, and the header that tells where its JSON ends."""
    head = json.dumps({"inputs": inputs, **fields}).encode()
    return head + tail, f"Inference-Header-Content-Length: {len(head)}\r\n"


def tensor(name: str = "text_input", datatype: str = "BYTES", shape: tuple[int, ...] = (1,), **more: Any) -> Any:
    """One input of an infer request."""
    return {"name": name, "datatype": datatype, "shape": list(shape), **more}


def binary(size: int) -> dict[str, Any]:
    """So many bytes behind the JSON."""
    return {"parameters": {"binary_data_size": size}}


HI = struct.pack("<I", 2) + b"hi"
UNKNOWN = "[request id: <id_unknown>] "
NOTHING_SET = (
    "Input must set only one of the following fields: 'data', 'binary_data_size' in 'parameters', "
    "'shared_memory_region' in 'parameters'. But no field is set"
)


@pytest.mark.parametrize(
    ("inputs", "tail", "status", "message"),
    [
        (
            [tensor(**binary(7))], HI, 400,
            "unexpected size for input 'text_input', expecting 1 additional bytes for model 'one'",
        ),
        ([tensor(**binary(6))], HI + b"x", 400, "unexpected additional input data for model 'one'"),
        (
            [tensor(**binary(5))], HI[:5], 400,
            "incomplete string data for inference input 'text_input', expecting string of length 2 but only 1 bytes "
            "available",
        ),
        (
            [tensor(**binary(6)), tensor("max_tokens", "INT32", **binary(3))], HI + b"abc", 400,
            UNKNOWN + "input byte size mismatch for input 'max_tokens' for model 'one'. Expected 4, got 3",
        ),
        ([tensor()], b"", 400, NOTHING_SET),
        ([tensor(data=["a"]), tensor(data=["b"])], b"", 400, UNKNOWN + "input 'text_input' already exists in request"),
        ([tensor(data=[1])], b"", 500, BYTES),
        ([tensor(data="hi")], b"", 500, DATA + "array as array"),
        (
            [tensor(data=["a", "b"])], b"", 400,
            UNKNOWN + "unexpected number of string elements 2 for inference input 'text_input' for model 'one', "
            "expecting 1",
        ),
        (
            [tensor("max_tokens", "INT32", data=[1, 2])], b"", 500,
            "Unable to parse 'data': Shape does not match true shape of 'data' field",
        ),
        ([tensor(datatype="FOO", data=["x"])], b"", 400, "invalid datatype for input text_input"),
        (
            [tensor(shape=(1, 1), data=["a"])], b"", 400,
            UNKNOWN + "unexpected shape for input 'text_input' for model 'one'. Expected [1], got [1,1]. ",
        ),
        (
            [tensor(shape=(-1,), data=["a"])], b"", 500,
            "Unable to parse 'shape': attempt to access JSON non-unsigned-integer as unsigned-integer",
        ),
        (
            [tensor(data=["a"]), tensor("max_tokens", "INT32", data=[1.5])], b"", 500,
            DATA + "signed-integer as signed-integer",
        ),
    ],
)  # fmt: skip
def test_an_infer_request_is_refused_in_the_engine_s_words(
    inputs: list[Any], tail: bytes, status: int, message: str
) -> None:
    """Tensors are checked as the core checks them, in JSON and in bytes."""
    body, headers = infer_bytes(inputs, tail)
    with TritonSimulator(models="one", idle_timeout=0.05) as sim:
        head, answer = split(read_all(ask(sim, "/v2/models/one/infer", body, headers=headers)))
    assert json.loads(answer) == {"error": message}
    assert head.startswith(b"HTTP/1.1 %d " % status)


def test_an_infer_request_without_json_is_refused() -> None:
    """Without a body, or with a length of 0 for its JSON, all is taken for the bytes of an only input."""
    with TritonSimulator(models="one") as sim:
        for headers, body in (({}, b""), ({"Inference-Header-Content-Length": "0"}, b"xx")):
            answer = requests.post(sim.url + "/v2/models/one/infer", data=body, headers=headers, timeout=WAIT)
            assert answer.status_code == 400
            assert answer.json()["error"] == (
                UNKNOWN + "Raw request must only have 1 input (found 1) to be deduced but got 5 inputs in 'one' model "
                "configuration"
            )


def test_a_batch_is_checked() -> None:
    """A model with max_batch_size wants the batch dimension in infer, adds it in generate, and bounds it."""
    with TritonSimulator(("ok",), models=[Q]) as sim:
        url = sim.url + "/v2/models/q/"
        flat = requests.post(url + "infer", json={"inputs": [tensor(data=["a"])]}, timeout=WAIT).json()["error"]
        assert flat.startswith(
            UNKNOWN + "unexpected shape for input 'text_input' for model 'q'. Expected [-1,1], got [1]."
        )
        assert flat.endswith("See the model configuration docs for more info on max_batch_size.")
        many = requests.post(url + "generate", json={"text_input": ["a"] * 5}, timeout=WAIT)
        assert many.json() == {"error": UNKNOWN + "inference request batch-size must be <= 4 for 'q'"}
        assert requests.post(url + "generate", json={"text_input": "a"}, timeout=WAIT).json()["text_output"] == "ok"


def test_binary_tensors_are_byte_for_byte() -> None:
    """Outputs asked for in binary lie behind the JSON, whose length a header tells, as seen with 2.51.0."""
    body, headers = infer_bytes(
        [tensor(**binary(6)), tensor("max_tokens", "INT32", **binary(4)), tensor("temperature", "FP32", **binary(4))],
        HI + struct.pack("<if", 3, 0.5),
        parameters={"binary_data_output": True},
    )
    shown = (
        b'{"model_name":"one","model_version":"1","outputs":[{"name":"text_output","datatype":"BYTES","shape":[1],'
        b'"parameters":{"binary_data_size":20}},{"name":"logp","datatype":"FP32","shape":[1],"parameters":'
        b'{"binary_data_size":4}}]}'
    )
    with TritonSimulator(models="one") as sim:
        answer = read_all(ask(sim, "/v2/models/one/infer", body, headers=headers + "Connection: close\r\n"))
    assert answer == (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nInference-Header-Content-Length: 225\r\n"
        b"Content-Length: 249\r\nConnection: close\r\n\r\n"
        + shown
        + b"\x10\x00\x00\x00 the quick brown\x00\x00\x00\xbf"
    )


def test_answers_to_a_connection_that_closes() -> None:
    """Connection: close has the place it has in the engine's answers: it depends on their kind."""
    with TritonSimulator() as sim:
        heads = {
            path: split(read_all(ask(sim, path, None, method="GET", headers="Connection: close\r\n")))[0]
            for path in ("/v2", "/v2/health/live", "/v2/nothing")
        }
        said = read_all(ask(sim, "/v2/models/recite/generate_stream", {"text_input": "", "max_tokens": 0},
                            headers="Connection: close\r\n"))  # fmt: skip
    assert heads["/v2"].endswith(b"Content-Type: application/json\r\nContent-Length: 285\r\nConnection: close")
    assert heads["/v2/health/live"].endswith(b"Connection: close\r\nContent-Length: 0\r\nContent-Type: text/plain")
    assert heads["/v2/nothing"].endswith(b"Content-Length: 21\r\nConnection: close\r\nContent-Type: text/plain")
    assert said.endswith(b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n0\r\n\r\n")


# -- the repository ----------------------------------------------------------------------------------------------------


def index(sim: TritonSimulator, **body: Any) -> dict[str, Any]:
    """The index: state and reason by name."""
    rows = requests.post(sim.url + "/v2/repository/index", json=body, timeout=WAIT).json()
    return {row["name"]: (row.get("state"), row.get("reason", "")) for row in rows}


def test_one_text_model_by_default_and_all_by_name() -> None:
    """Without options only recite is there; an ensemble brings its steps; "all" is the whole catalog."""
    with TritonSimulator() as sim:
        assert index(sim) == {"recite": ("READY", "")}
        assert requests.get(sim.url + "/v2/health/ready", timeout=WAIT).status_code == 200
    with TritonSimulator(models="ensemble") as sim:
        assert list(index(sim)) == ["ensemble", "postprocessing", "preprocessing", "tensorrt_llm"]
    with TritonSimulator(models="all") as sim:
        states = index(sim)
        assert list(states) == sorted(MODELS)
        assert states["slow_load"] == (None, "")
        assert states["bad_load"] == ("UNAVAILABLE", LOAD_ERROR.format("bad_load"))
        assert list(index(sim, ready=True)) == sorted(set(MODELS) - {"slow_load", "bad_load"})
        assert requests.get(sim.url + "/v2/health/ready", timeout=WAIT).status_code == 400
        for name in MODELS:
            shown = requests.get(f"{sim.url}/v2/models/{name}/config", timeout=WAIT)
            assert shown.status_code == (404 if name in ("slow_load", "bad_load") else 200)
            assert (shown.json().get("name") == name) == (shown.status_code == 200)


def test_a_model_that_loads() -> None:
    """While a load lasts the model is LOADING, not ready and not to be asked; then it serves."""
    with TritonSimulator(models=REPOSITORY, explicit=True) as sim:
        loading = ask(sim, "/v2/repository/models/slow_load/load", {})
        assert sim.wait_for(lambda: sim._repository.served["slow_load"].state == "LOADING", WAIT)
        assert index(sim)["slow_load"] == ("LOADING", "")
        for name, path in (("err-loading-model", "generate"), ("model-ready-loading", "ready")):
            answer = requests.request(
                RECORDINGS[name].method, f"{sim.url}/v2/models/slow_load/{path}", json={"text_input": "a"}, timeout=WAIT
            )
            assert (answer.status_code, answer.content) == (RECORDINGS[name].status, RECORDINGS[name].body)
        loading.close()
    quick = dataclasses.replace(SLOW, load_time=0.01)
    with TritonSimulator(models=[quick], explicit=True) as sim:
        assert requests.post(sim.url + "/v2/repository/models/slow_load/load", timeout=WAIT).status_code == 200
        assert index(sim) == {"slow_load": ("READY", "")}


def test_a_model_that_unloads() -> None:
    """Unloading answers at once; what is at work goes on, what is new is refused, and the reason is `unloaded`."""
    with TritonSimulator(models=AFTER_FAILED_LOAD, explicit=True, endless=True, delay=0.01) as sim:
        stream = ask(sim, "/v2/models/rs/generate_stream", {"text_input": "hi", "max_tokens": 10**6})
        read_until(stream, b"data:", 2)
        answer = requests.post(sim.url + "/v2/repository/models/rs/unload", json={}, timeout=WAIT)
        assert (answer.status_code, answer.content) == (200, b"")
        for name in ("index-unloading", "err-during-unload"):
            recording = RECORDINGS[name]
            answer = requests.request(recording.method, sim.url + recording.path, json=recording.asked, timeout=WAIT)
            assert (answer.status_code, answer.content) == (recording.status, recording.body)
        read_until(stream, b"data:", 2)
        stream.close()
        assert sim.wait_for(lambda: sim._repository.served["rs"].active == 0, WAIT)
        assert index(sim)["rs"] == ("UNAVAILABLE", "unloaded")
        assert requests.post(sim.url + "/v2/repository/models/nope/unload", timeout=WAIT).status_code == 200


def test_statistics_have_the_recorded_names_and_count() -> None:
    """Successes and failures are counted; the names are those of the recording."""
    with TritonSimulator(models=[RS]) as sim:
        sim.misbehave(Fault.error_after(0))
        for _ in "ab":
            requests.post(sim.url + "/v2/models/rs/generate_stream", json={"text_input": "a"}, timeout=WAIT)
        assert sim.wait_for(lambda: sim._repository.served["rs"].active == 0, WAIT)
        shown = requests.get(sim.url + "/v2/models/rs/stats", timeout=WAIT).json()
        stats = shown["model_stats"][0]["inference_stats"]
        assert (stats["success"]["count"], stats["fail"]["count"]) == (1, 1)
        assert requests.get(sim.url + "/v2/models/stats", timeout=WAIT).json() == shown
        unknown = requests.get(sim.url + "/v2/models/nope/stats", timeout=WAIT)
        assert (unknown.status_code, unknown.json()) == (400, {"error": "requested model 'nope' is not available"})

    def names(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: names(item) for name, item in value.items()}
        return [names(item) for item in value] if isinstance(value, list) else None

    assert json.dumps(names(shown)) == json.dumps(names(json.loads(RECORDINGS["model-stats"].body)))


def test_a_restricted_api_wants_its_header() -> None:
    """All but the health routes ask for the header first, in the engine's words; Authorization has it as a bearer."""
    for options, header in (({}, "authorization"), ({"key_header": "x-key"}, "x-key")):
        right = "Bearer secret" if header == "authorization" else "secret"
        with TritonSimulator(api_key="secret", **options) as sim:
            assert requests.get(sim.url + "/v2/health/ready", timeout=WAIT).status_code == 200
            assert requests.get(sim.url + "/v2/nothing", timeout=WAIT).status_code == 404
            for path in ("/v2", "/v2/models/recite/config", "/v2/models/recite/generate"):
                answer = requests.get(sim.url + path, headers={header: "wrong"}, timeout=WAIT)
                assert answer.status_code == 403
                assert answer.json() == {"error": f"This API is restricted, expecting header '{header}'"}
                assert answer.headers["Content-Type"] == "text/plain"
            assert requests.get(sim.url + "/v2", headers={header: right}, timeout=WAIT).status_code == 200


# -- what the conventions say ------------------------------------------------------------------------------------------


def events(sim: TritonSimulator, model: str, **body: Any) -> list[dict[str, Any]]:
    """The events of one stream."""
    answer = requests.post(f"{sim.url}/v2/models/{model}/generate_stream", json=body, timeout=WAIT)
    return [json.loads(line.removeprefix("data: ")) for line in answer.text.split("\n\n") if line]


def texts(sim: TritonSimulator, model: str, **body: Any) -> list[str]:
    """The texts of one stream."""
    return [event["text_output"] for event in events(sim, model, **body)]


@pytest.fixture(scope="module")
def everything() -> Iterator[TritonSimulator]:
    """A simulator with the whole catalog and five tokens to say."""
    with TritonSimulator(SENTENCE[:5], models="all") as simulator:
        yield simulator


def test_the_vllm_backend(everything: TritonSimulator) -> None:
    """Sampling is JSON text; without a stream the prompt stands before the answer; counts and reasons on request."""
    sampling = json.dumps({"max_tokens": 2, "stop": ["brown"]})
    wanted = {"return_finish_reason": True, "return_num_input_tokens": True, "return_num_output_tokens": True}
    whole = events(everything, "vllm_model", text_input="say it", sampling_parameters=sampling, **wanted)
    assert [event["text_output"] for event in whole] == ["say it the quick"]
    assert [whole[0][name] for name in ("finish_reason", "num_input_tokens", "num_output_tokens")] == ["length", 2, 2]
    bare = texts(everything, "vllm_model", text_input="a", exclude_input_in_output=True, sampling_parameters=sampling)
    assert bare == [" the quick"]
    ended = events(everything, "vllm_model", text_input="a", stream=True, parameters={"max_tokens": 9}, **wanted)
    assert [event["finish_reason"] for event in ended] == ["None"] * 5 + ["stop"]
    assert ended[-1]["text_output"] == ""
    assert len(texts(everything, "vllm_model", text_input="a", stream=True)) == 6
    for body, told in (
        ({"stream": True, "exclude_input_in_output": False}, "When streaming, `exclude_input_in_output` = False"),
        ({"sampling_parameters": "{"}, "Expecting property name"),
        ({"parameters": {"max_tokens": 0}}, "max_tokens must be at least 1, got 0."),
    ):
        url = everything.url + "/v2/models/vllm_model/generate_stream"
        answer = requests.post(url, json={"text_input": "a", **body}, timeout=WAIT)
        assert answer.status_code == 400
        assert answer.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        assert answer.text.startswith('data: {"error":"Error generating stream: ' + told)


def test_tensorrt_llm(everything: TritonSimulator) -> None:
    """The ensemble sends what is new, the BLS and llmapi all the text so far; without `stream` there is one event."""
    asked = {"text_input": "a", "max_tokens": 2}
    assert texts(everything, "ensemble", **asked, stream=True) == [" the", " quick"]
    assert texts(everything, "ensemble", **asked) == [" the quick"]
    assert texts(everything, "ensemble", **{**asked, "max_tokens": 9}, stream=True)[-1] == ""
    assert texts(everything, "ensemble", **{**asked, "max_tokens": 9}, stop_words=["brown"]) == [" the quick "]
    assert texts(everything, "tensorrt_llm_bls", **asked, stream=True) == [" the", " the quick"]
    llmapi = {"text_input": "a", "streaming": True, "return_finish_reason": True, "sampling_param_max_tokens": 2}
    assert [(event["text_output"], event["finish_reason"]) for event in events(everything, "llmapi", **llmapi)] == [
        (" the", "None"), (" the quick", "length"),
    ]  # fmt: skip
    plain = Model("batch", MODELS["llmapi"].inputs, MODELS["llmapi"].outputs, voice="llmapi", decoupled=False)
    with TritonSimulator(models=[plain]) as sim:
        assert events(sim, "batch", **llmapi) == [
            {"error": "Error generating request: Streaming is only supported in decoupled mode."}
        ]


def test_models_without_text(everything: TritonSimulator) -> None:
    """Token ids in, token ids out."""
    ids = {"input_ids": [1, 2, 3], "input_lengths": 3, "request_output_len": 2, "streaming": True}
    assert [event["output_ids"] for event in events(everything, "tokens_only", **ids)] == [2, 3]


def test_replies_are_made_of_their_prompt_and_integers_wrap() -> None:
    """With tokens=None a reply repeats its prompt up to the limit; a limit beyond 32 bits is cut to them."""
    with TritonSimulator(None) as sim:
        asked = {"text_input": "job 7 turn 3"}
        assert "".join(texts(sim, "recite", **asked, max_tokens=6)) == " job 7 turn 3 job 7"
        assert "".join(texts(sim, "recite", **asked)) == " job 7 turn 3"
        assert len(texts(sim, "recite", **asked, max_tokens=2**32 + 3)) == 3
        assert texts(sim, "recite", **asked, max_tokens=-1) == []


def test_bytes_pass_as_they_are() -> None:
    """A token that ends inside a character comes as raw bytes, control characters as RapidJSON writes them."""
    tokens = (b"h\xc3", b"\xa9", ' "q" \\ / \n \x01\x1f\x7f \U0001f989')
    with TritonSimulator(tokens, models=["recite"]) as sim:
        url = sim.url + "/v2/models/recite/generate_stream"
        said = requests.post(url, json={"text_input": "a"}, timeout=WAIT).content.split(b"\n\n")
        shown = [event.partition(b'"text_output":')[2][:-1] for event in said[:-1]]
        assert shown[:2] == [b'"h\xc3"', b'"\xa9"']
        assert shown[2] == b'" \\"q\\" \\\\ / \\n \\u0001\\u001F\x7f \xf0\x9f\xa6\x89"'


# -- who is watched, and who is not ------------------------------------------------------------------------------------


def test_the_head_comes_with_the_first_response() -> None:
    """Nothing is sent before the first token."""
    with TritonSimulator(prompt_delay=30.0) as sim:
        sock = ask(sim, "/v2/models/recite/generate_stream", {"text_input": "a"})
        assert sim.wait_generations(1, WAIT)
        sock.settimeout(0.1)
        with pytest.raises(TimeoutError):
            sock.recv(1)
        sock.close()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("recite/generate_stream", {"text_input": "a"}),
        ("recite/generate_stream", {"text_input": "a", "stream": False}),
        ("one/generate", {"text_input": "a"}),
        ("one/infer", {"inputs": [tensor(data=["a"])]}),
    ],
)
def test_a_close_before_the_first_response_is_not_noticed(path: str, body: Any) -> None:
    """The job runs on until its first response is due; only then the slot is free."""
    for delay in (30.0, 0.1):
        with TritonSimulator(SENTENCE[:4], models=["recite", "one"], delay=delay) as sim:
            sock = ask(sim, "/v2/models/" + path, body)
            assert sim.wait_generations(1, WAIT)
            sock.close()
            if delay > WAIT:
                assert not sim.wait_idle(0.2)
                assert sim.closes == ()
            else:
                assert sim.wait_idle(WAIT)


def test_a_close_in_the_queue_is_not_noticed() -> None:
    """A request that waits for an instance stays in the queue when its client has gone."""
    with TritonSimulator(slots=1, endless=True, delay=0.01) as sim:
        body = {"text_input": "a", "max_tokens": 10**6}
        first = ask(sim, "/v2/models/recite/generate_stream", body)
        read_until(first, b"data:")
        second = ask(sim, "/v2/models/recite/generate_stream", body)
        assert sim.wait_for(lambda: sim.queued == 1, WAIT)
        second.close()
        assert not sim.wait_for(lambda: sim.queued == 0, 0.2)
        first.close()
        assert sim.wait_idle(WAIT)
        assert sim.generations == 2


@pytest.mark.parametrize("path", ["generate_stream", "generate"])
def test_a_close_after_the_first_response_frees_the_slot(path: str) -> None:
    """Once the head is out the client is watched: also while a token is awaited."""
    for delay in (0.01, 30.0):
        with TritonSimulator(endless=True) as sim:
            sock = ask(sim, "/v2/models/recite/" + path, {"text_input": "a", "max_tokens": 10**6})
            read_until(sock, b"\r\n\r\n")
            sim.delay = delay
            sock.close()
            assert sim.wait_idle(WAIT)


def test_a_half_closed_client_counts_as_gone() -> None:
    """Closing the write side ends the stream, as seen with 2.51.0."""
    with TritonSimulator(endless=True, delay=0.01) as sim, connect(sim) as sock:
        sock.sendall(request_bytes("/v2/models/recite/generate_stream", {"text_input": "a", "max_tokens": 10**6}))
        read_until(sock, b"data:")
        sock.shutdown(socket.SHUT_WR)
        assert sim.wait_idle(WAIT)


def test_an_ensemble_never_notices_but_can_be_stopped_by_its_id() -> None:
    """Its job runs on for nobody until a request with `stop` and the same id reaches the inner model."""
    with TritonSimulator(models=["ensemble"], endless=True, delay=0.01) as sim:
        body = {"id": "job-1", "text_input": "a", "max_tokens": 10**6, "stream": True}
        sock = ask(sim, "/v2/models/ensemble/generate_stream", body)
        read_until(sock, b"data:", 2)
        sock.close()
        assert not sim.wait_idle(0.3)
        stop = {"input_ids": [0], "input_lengths": 1, "request_output_len": 1, "stop": True}
        url = sim.url + "/v2/models/tensorrt_llm/generate_stream"
        nameless = requests.post(url, json=stop, timeout=WAIT)
        assert nameless.status_code == 400
        assert nameless.text == 'data: {"error":"A request id must be provided for request cancellation"}\n\n'
        answer = requests.post(url, json={"id": "job-1", **stop}, timeout=WAIT)
        assert (answer.status_code, answer.content) == (200, b"")
        assert sim.wait_idle(WAIT)


def test_a_connection_is_used_again() -> None:
    """After a stream, a refusal and an error in a stream the next request goes over the same connection."""
    with TritonSimulator() as sim, requests.Session() as session:
        sim.misbehave(Fault.error_after(1), Fault.error_after(0))
        for number, body in enumerate(({"text_input": "a"}, {"text_input": "b"}, {"text_input": "c"}, {"nope": []})):
            answer = session.post(sim.url + "/v2/models/recite/generate_stream", json=body, timeout=WAIT)
            assert answer.status_code == (200, 400, 200, 400)[number]
        assert sim.connections == 1


def test_a_server_that_is_killed() -> None:
    """The connection ends without the last chunk, as recorded, and nobody listens any more."""
    with TritonSimulator(models=[RS], tokens=SENTENCE[:14], endless=True, delay=0.01) as sim:
        sock = ask(sim, "/v2/models/rs/generate_stream", {"text_input": "hi", "max_tokens": 300})
        data = read_until(sock, b"data:", 5)
        sim.kill()
        rest, failure = read_to_error(sock)
        assert failure == "ECONNRESET"
        assert not (data + rest).endswith(b"0\r\n\r\n")
        said = [line for line in (data + rest).split(b"\r\n") if line.startswith(b"data: ") and line.endswith(b"\n\n")]
        assert len(said) >= 4
        assert said == RECORDINGS["server-killed-mid-stream"].chunks[: len(said)]
        with pytest.raises(ConnectionRefusedError):
            connect(sim)


def test_a_full_queue_refuses_at_once() -> None:
    """max_queued answers 503 as recorded, with the request's id where there is one."""
    with TritonSimulator(slots=1, max_queued=0, prompt_delay=30.0) as sim:
        sock = ask(sim, "/v2/models/recite/generate_stream", {"text_input": "a"})
        assert sim.wait_generations(1, WAIT)
        for fields, shown in (({}, "<id_unknown>"), ({"id": "j"}, "j")):
            url = sim.url + "/v2/models/recite/generate"
            answer = requests.post(url, json={"text_input": "a", **fields}, timeout=WAIT)
            assert answer.status_code == 503
            assert answer.json() == {"error": f"[request id: {shown}] Exceeds maximum queue size"}
        sock.close()


# -- faults ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "tokens", "head"),
    [
        (Fault.silent_head(), 0, False),
        (Fault.silent_after_head(), 0, True),
        (Fault.silent_after(3), 3, True),
        (Fault.silent_after(FINISH), 5, True),
        (Fault.comments_only(2, every=0.01), 2, True),
    ],
)
@pytest.mark.parametrize("model", ["recite", "ensemble"])
def test_silent_faults_end_with_the_client(model: str, fault: Fault, tokens: int, head: bool) -> None:
    """A silence that a test asks for sends its share and keeps its slot until the client leaves, in an ensemble too."""
    with TritonSimulator(models=model) as sim:
        sim.misbehave(fault)
        sock = ask(sim, f"/v2/models/{model}/generate_stream", {"text_input": "a", "max_tokens": 5, "stream": True})
        assert sim.wait_for(lambda: sim.busy == 1, WAIT)
        data = read_until(sock, b"data:" if tokens else b"\r\n\r\n", tokens or 1) if head else b""
        assert data.count(b"data:") == tokens
        sock.close()
        assert sim.wait_idle(WAIT)


def test_faults_in_answers_of_one_piece() -> None:
    """Errors, silence and cuts come in place of an answer that is no stream."""
    single = {"text_input": "a", "stream": False}
    with TritonSimulator(models=["recite", "one"]) as sim:
        base = sim.url + "/v2/models/"
        sim.misbehave(Fault.error_after(2), Fault.error_after(1), Fault.error_after(0, "no", code=404), Fault.drip(7))
        streamed = requests.post(base + "recite/generate_stream", json=single, timeout=WAIT)
        assert (streamed.status_code, streamed.text) == (
            400, "data: {\"error\":\"Stub process 'recite_0_0' is not healthy.\"}\n\n",
        )  # fmt: skip
        whole = requests.post(base + "one/generate", json=single, timeout=WAIT)
        assert (whole.status_code, whole.json()) == (400, {"error": "Stub process 'one_0_0' is not healthy."})
        tensors = {"inputs": [tensor(data=["a"])]}
        infer = requests.post(base + "one/infer", json=tensors, timeout=WAIT)
        assert (infer.status_code, infer.json(), infer.headers["Content-Type"]) == (404, {"error": "no"}, "text/plain")
        assert requests.post(base + "one/infer", json=tensors, timeout=WAIT).json()["model_name"] == "one"
        for path, body in (("recite/generate_stream", single), ("one/generate", single), ("one/infer", tensors)):
            sim.misbehave(Fault.cut_after(1), Fault.silent_after(1))
            assert read_all(ask(sim, "/v2/models/" + path, body)) == b""
            sock = ask(sim, "/v2/models/" + path, body)
            assert sim.wait_for(lambda: sim.busy == 1, WAIT)
            sock.close()
            assert sim.wait_idle(WAIT)


def test_slow_tokens_and_ends_of_streams() -> None:
    """Delays come before tokens and before the head; a finish is the last event, a clean end has the last chunk."""
    with TritonSimulator(SENTENCE[:2], idle_timeout=0.05) as sim:
        sim.misbehave(Fault.slow_tokens(0.05), Fault.cut_after(FINISH), Fault.clean_end_after(1), Fault.status(401))
        path, body = "/v2/models/recite/generate_stream", {"text_input": "a"}
        assert len(unchunk(split(read_all(ask(sim, path, body)))[1])[0]) == 2
        cut = read_all(ask(sim, path, body))
        assert cut.count(b"data:") == 2
        assert not cut.endswith(b"0\r\n\r\n")
        assert len(unchunk(split(read_all(ask(sim, path, body)))[1])[0]) == 1
        assert b" 401 " in read_all(ask(sim, path, body))


def test_many_streams_at_once_do_not_cross() -> None:
    """Forty clients over eight slots each get their own words and their own id."""
    wrong: list[Any] = []
    with TritonSimulator(None, slots=8) as sim:

        def work(number: int) -> None:
            said = events(sim, "recite", id=f"j{number}", text_input=f"job {number}", max_tokens=50)
            right = [" job", f" {number}"] * 25
            if [event["text_output"] for event in said] != right or {event["id"] for event in said} != {f"j{number}"}:
                wrong.append((number, said))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(40)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60.0)
        assert wrong == []
        assert (sim.generations, sim.generation_requests) == (40, 40)
        assert sim.wait_idle(WAIT)


# -- the engine's own client -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    """What Triton's own client gets from a simulator, asked in a process of its own."""
    if importlib.util.find_spec("tritonclient") is None:
        pytest.skip("needs tritonclient[http]")
    one = dataclasses.replace(ONE, inputs="text_input STRING, max_tokens INT32?, temperature FP32?, flag BOOL?")
    models = ["recite", one, dataclasses.replace(SLOW, load_time=0.01), BROKEN]
    with socket.create_server(("127.0.0.1", 0)) as free:
        nowhere = f"127.0.0.1:{free.getsockname()[1]}"
    script = str(Path(__file__).parent / "triton_client.py")
    with TritonSimulator(None, models=models, explicit=True) as sim:
        command = [sys.executable, "-W", "error", script, sim.url.removeprefix("http://"), nowhere]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        assert sim.violations == ()
    shown: dict[str, Any] = json.loads(done.stdout)
    return shown


def test_the_client_reads_what_the_server_says_of_itself(told: dict[str, Any]) -> None:
    """Health, metadata, configuration, index, statistics and settings."""
    assert (told["live"], told["ready"], told["not ready"]) == (True, True, False)
    assert told["models"] == {"one": True, "nope": False, "slow_load": False}
    assert told["server"] == json.loads(RECORDINGS["server-metadata"].body)
    assert told["logging"] == json.loads(RECORDINGS["logging"].body)
    assert told["trace"] == json.loads(RECORDINGS["trace-setting"].body)
    assert told["shared memory"] == []
    assert told["metadata"]["inputs"][0] == {"name": "text_input", "datatype": "BYTES", "shape": [1]}
    assert told["config"]["model_transaction_policy"] == {"decoupled": True}
    assert [row.get("state") for row in told["index"]] == [None, "READY", "READY", None]
    assert told["statistics"]["model_stats"][0]["inference_count"] == 4


def test_the_client_infers_in_both_protocols(told: dict[str, Any]) -> None:
    """Tensors of four types pass as bytes and as JSON, compressed too; a thread has a client of its own."""
    expected = [[" grüß dich grüß dich grüß"], [-0.5], [1]]
    assert told["binary"] == told["json"] == told["zipped"] == expected
    assert told["one output"] == [None, [-0.5], [1]]
    assert told["threads"] == sorted(f" {number}-{turn}" for number in range(4) for turn in range(5))


def test_the_client_raises_what_the_server_refuses(told: dict[str, Any]) -> None:
    """InferenceServerException has the status as text and the engine's message."""
    unknown = ["404", "Request for unknown model: 'nope' is not found"]
    assert told["unknown"] == told["unknown infer"] == unknown
    assert told["decoupled"] == ["501", "HTTP end point doesn't support models with decoupled transaction policy"]
    assert told["missing"][0] == "400"
    assert told["missing"][1].startswith(
        "[request id: <id_unknown>] expected number of inputs between 1 and 4 but got 0"
    )
    assert (told["load"], told["unload"]) == ([None, True], [None, False])
    assert told["broken"][0] == "400"
    assert told["broken"][1].startswith(
        "load failed for model 'bad_load': version 1 is at UNAVAILABLE state: Internal: "
    )
    assert told["nowhere"] == "ConnectionRefusedError"
