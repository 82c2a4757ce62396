"""The Triton adapter against the simulator and servers of a test's own: models, requests, health, props, options."""

from __future__ import annotations

import json
import logging
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import requests

from canary import KEY, KEY_VARIABLE, PROMPT
from worker_adapters import connect
from worker_adapters.adapters.triton import TritonAdapter
from worker_adapters.errors import (
    AuthenticationFailed,
    CapacityExceeded,
    ContextOverflow,
    EngineUnavailable,
    InvalidRequest,
    ModelNotFound,
    PoolUnavailable,
    StreamTruncated,
    UnknownError,
    WorkerError,
)
from worker_adapters.report import Completion
from worker_adapters.simulate import Exchange, Fault, Request, SimServer, TritonSimulator
from worker_adapters.simulate.recital import SENTENCE
from worker_adapters.simulate.triton_models import Model

pytestmark = pytest.mark.triton

SOON = 5.0  # seconds: what must come has come by then, even on a loaded machine
TEXT = "".join(SENTENCE)
EVENTS = [("Content-Type", "text/event-stream; charset=utf-8")]
GONE = "Request for unknown model: 'm' has no available versions"


@contextmanager
def serving(*faults: Fault, **options: Any) -> Iterator[tuple[TritonSimulator, TritonAdapter]]:
    """A simulated Triton, and an adapter of it that does not try again."""
    mine = {
        name: options.pop(name) for name in ("model", "unsupported", "tensors", "retry", "headers") if name in options
    }
    with (
        TritonSimulator(**options) as server,
        TritonAdapter(server.url, **{"retry": {"attempts": 1}, **mine}) as engine,
    ):
        server.misbehave(*faults)
        yield server, engine


def asked(server: SimServer) -> list[str]:
    """What was asked, by path, in order."""
    return [request.path for request in server.requests]


def jobs(server: SimServer) -> list[Request]:
    """The jobs that reached the server."""
    return [request for request in server.requests if request.path.endswith("/generate_stream")]


def failing(engine: TritonAdapter, task: Any = "Hi", **fields: Any) -> WorkerError:
    """What a job fails with."""
    with pytest.raises(WorkerError) as caught:
        engine.submit(task, **fields).result()
    return caught.value


def shape(*inputs: tuple[str, str], decoupled: bool = True, **more: Any) -> dict[str, Any]:
    """A config with the prompt and further optional inputs."""
    told = [("text_input", "STRING"), *inputs]
    return {
        "name": "m",
        "backend": "python",
        "input": [
            {"name": name, "data_type": f"TYPE_{kind}", "dims": [1], "optional": name != "text_input"}
            for name, kind in told
        ],
        "output": [{"name": "text_output", "data_type": "TYPE_STRING", "dims": [1]}],
        "model_transaction_policy": {"decoupled": decoupled},
        **more,
    }


class Scripted:
    """A server that answers as told; the same answer again once its last one is reached.

    :ivar configs: (status, JSON) of the config, one an ask.
    :ivar answers: what a job gets, one a job.
    :ivar index: the list of models.
    """

    def __init__(self, *configs: Any, **options: Any) -> None:
        self.configs = [config if isinstance(config, tuple) else (200, config) for config in configs]
        self.answers: list[Callable[[Exchange], None]] = [said(" the")]
        self.index: Any = [{"name": "m", "version": "1", "state": "READY"}]
        self.options = {"model": "m", "retry": {"attempts": 1}, **options}
        self._lock = threading.Lock()

    @contextmanager
    def running(self) -> Iterator[tuple[SimServer, TritonAdapter]]:
        """The server, and an adapter of it."""
        with SimServer(self) as server, TritonAdapter(server.url, **self.options) as engine:
            yield server, engine

    def __call__(self, exchange: Exchange) -> None:
        path = exchange.request.path
        if path.endswith("/generate_stream"):
            self._next(self.answers)(exchange)
        elif path.endswith("/config"):
            status, value = self._next(self.configs)
            exchange.json(status, value)
        elif path == "/v2/repository/index":
            exchange.json(200, self.index)
        else:
            exchange.json(200, {"name": "triton", "version": "2.51.0"})

    def _next(self, answers: list[Any]) -> Any:
        with self._lock:
            return answers.pop(0) if len(answers) > 1 else answers[0]


def said(*texts: str) -> Callable[[Exchange], None]:
    """Answers a job with these texts."""

    def answer(exchange: Exchange) -> None:
        exchange.head(200, EVENTS)
        for text in texts:
            exchange.chunk(b"data: " + json.dumps({"model_name": "m", "text_output": text}).encode() + b"\n\n")
        exchange.end()

    return answer


def refused(status: int, message: str) -> Callable[[Exchange], None]:
    """Refuses a job before inference."""
    return lambda exchange: exchange.json(status, {"error": message})


# --- every convention, and what each is sent


@pytest.mark.parametrize(
    ("model", "finish", "raw", "counts"),
    [
        ("recite", "stop", None, (None, 24, "counted")),
        ("vllm_model", "stop", "stop", (1, 25, "exact")),  # with its end token
        ("ensemble", "stop", None, (None, 24, "counted")),
        ("tensorrt_llm_bls", "stop", None, (None, 24, "counted")),  # accumulates
        ("llmapi", "stop", "stop", (None, 24, "counted")),  # the same, always
        ("one", "stop", None, (None, 1, "counted")),  # answers once
    ],
)
def test_every_convention_gives_the_same_text(
    model: str, finish: str, raw: str | None, counts: tuple[int | None, int, str]
) -> None:
    """Whatever a model's tensors are called, its text comes whole; reason and counts only from those that tell."""
    with serving(models="all") as (_, engine):
        frames = list(engine.submit("Hi", model=model))
        assert frames[0].to_dict()["model"] == model
        assert "".join(frame.to_dict()["text"] for frame in frames[1:-1]) == TEXT
        end = frames[-1].to_dict()
        assert (end["finish_reason"], end.get("raw_finish_reason")) == (finish, raw)
        metrics = end["metrics"]
        assert (metrics.get("tokens_in"), metrics["tokens_out"], metrics["counts"]) == counts


@pytest.mark.parametrize("model", ["recite", "vllm_model", "ensemble", "tensorrt_llm_bls", "llmapi", "one"])
def test_every_convention_obeys_limit_and_stop(model: str) -> None:
    """max_tokens and stop reach the model under its own names."""
    with serving(models="all") as (_, engine):
        short = engine.submit("Hi", model=model, max_tokens=3).result()
        assert short.text == "".join(SENTENCE[:3])
        assert short.finish_reason == ("length" if model != "one" else "stop")
        assert "lazy" not in engine.submit("Hi", model=model, stop=["lazy"]).result().text


BODIES: dict[str, dict[str, Any]] = {
    "recite": {"max_tokens": 9, "temperature": 0.5, "seed": 7, "stop": ["x"], "top_k": 2, "stream": True},
    "vllm_model": {
        "sampling_parameters": {"max_tokens": 9, "temperature": 0.5, "top_k": 2, "seed": 7, "stop": ["x"]},
        "stream": True,
        "exclude_input_in_output": True,
        "return_finish_reason": True,
        "return_num_input_tokens": True,
        "return_num_output_tokens": True,
    },
    "ensemble": {
        "max_tokens": 9,
        "temperature": 0.5,
        "top_k": 2,
        "random_seed": 7,
        "stop_words": ["x"],
        "exclude_input_in_output": True,
        "stream": True,
    },
    "llmapi": {
        "sampling_param_max_tokens": 9,
        "sampling_param_temperature": 0.5,
        "sampling_param_top_k": 2,
        "sampling_param_seed": 7,
        "sampling_param_stop": ["x"],
        "sampling_param_exclude_input_from_output": True,
        "return_finish_reason": True,
        "return_stop_reason": True,
        "streaming": True,
    },
}


@pytest.mark.parametrize("model", BODIES)
def test_a_task_is_sent_as_its_model_wants_it_and_no_more(model: str) -> None:
    """The exact body: our name of the job, the prompt, and the tensors that the model has."""
    with serving(models="all") as (server, engine):
        fields = {"max_tokens": 9, "temperature": 0.5, "top_k": 2, "seed": 7, "stop": ["x"]}
        engine.submit("Hi", model=model, job_id="job-1", **fields).result()
        [request] = jobs(server)
        body = dict(request.json)
        if "sampling_parameters" in body:
            body["sampling_parameters"] = json.loads(body["sampling_parameters"])
        assert body == {"id": "job-1", "text_input": "Hi", **BODIES[model]}
        assert request.header("Content-Type") == "application/json"
        assert request.path == f"/v2/models/{model}/generate_stream"


@pytest.mark.parametrize("job_id", ["job-1", 'a "quoted" \\ one', "é 🦉", " x "])
def test_the_id_is_always_sent(job_id: str) -> None:
    """Whatever it is, it is JSON; without one of the user's it is ours."""
    with serving() as (server, engine):
        engine.submit("Hi", max_tokens=1, job_id=job_id).result()
        result = engine.submit("Hi", max_tokens=1).result()
        assert [request.json["id"] for request in jobs(server)] == [job_id, result.job_id]


def test_parameters_of_the_request_go_beside_the_tensors() -> None:
    """``extra={"parameters": ...}``, under their key."""
    with serving() as (server, engine):
        engine.submit("Hi", max_tokens=1, extra={"parameters": {"lora": "a", "x": 1}}).result()
        body = jobs(server)[0].json
        assert body["parameters"] == {"lora": "a", "x": 1}


@pytest.mark.parametrize(
    ("options", "path"),
    [
        ({"version": 3}, "/v2/models/m/versions/3/"),
        ({"version": "3"}, "/v2/models/m/versions/3/"),
        ({"model": "a b/ü"}, "/v2/models/a%20b%2F%C3%BC/"),
    ],
)
def test_a_model_s_path_holds_its_name_and_version(options: dict[str, Any], path: str) -> None:
    """Quoted, the same for its config, its jobs and its readiness."""
    with Scripted(shape(), **options).running() as (server, engine):
        engine.submit("Hi").result()
        engine.health()
        assert asked(server) == [path + "config", path + "generate_stream", "/v2", path + "ready"]


def test_a_base_path_is_kept() -> None:
    """A gateway's prefix stands before every path."""
    with SimServer(Scripted(shape())) as server, TritonAdapter(server.url + "/team/x", model="m") as engine:
        engine.submit("Hi").result()
        assert asked(server)[:2] == ["/team/x/v2/models/m/config", "/team/x/v2/models/m/generate_stream"]


def test_a_limit_that_the_model_does_not_know_is_kept_by_leaving() -> None:
    """A model without an input for it is left after so many pieces, and freed."""
    models = [Model("m", "text_input STRING", "text_output STRING")]
    with serving(models=models, endless=True, delay=0.001) as (server, engine):
        result = engine.submit("Hi", max_tokens=5).result()
        assert (result.text, result.finish_reason) == ("".join(SENTENCE[:5]), "length")
        assert server.wait_idle(SOON)


def test_a_repeated_prompt_is_taken_off() -> None:
    """Old TensorRT-LLM begins its answer with the prompt, which is no answer."""
    script = Scripted(shape(("max_tokens", "INT32"), ("end_id", "INT32")))
    script.answers = [said("once up", "on a time", " there", " was")]
    with script.running() as (_, engine):
        assert engine.submit("once upon a time").result().text == " there was"


# --- which model


def test_the_only_ready_model_needs_no_name() -> None:
    """Asked once; then as if it had been named."""
    with serving(models=["recite", "bad_load", "slow_load"]) as (server, engine):
        for _ in range(2):
            assert next(engine.submit("Hi", max_tokens=1)).to_dict()["model"] == "recite"
        paths = asked(server)
        assert paths[:3] == ["/v2/repository/index", "/v2/models/recite/config", "/v2/models/recite/generate_stream"]
        assert paths.count("/v2/repository/index") == paths.count("/v2/models/recite/config") == 1
        assert engine.health().ready  # the model's, though the server is not


def test_of_several_ready_models_one_must_be_named() -> None:
    """InvalidRequest that lists them; a task may name one."""
    with serving(models=["recite", "one", "bad_load"]) as (_, engine):
        error = failing(engine)
        assert (type(error), error.to_dict()["field"]) == (InvalidRequest, "model")
        assert "one, recite" in error.message
        assert "bad_load" not in error.message
        assert engine.submit("Hi", model="recite", max_tokens=1).result().text == " the"


def test_of_no_ready_model_none_can_be_taken() -> None:
    """The error says that there is none."""
    with serving(models=["slow_load"]) as (_, engine):
        assert "none that is ready" in failing(engine).message


@pytest.mark.parametrize(
    ("model", "kind", "words", "retriable"),
    [
        ("nope", ModelNotFound, "it has", False),
        ("slow_load", EngineUnavailable, "not loaded", True),
        ("bad_load", PoolUnavailable, "CUDA out of memory", False),
        ("tokens_only", InvalidRequest, "token ids", False),
        ("tensorrt_llm", InvalidRequest, "token ids", False),
        ("preprocessing", InvalidRequest, "QUERY", False),
    ],
)
def test_a_model_that_cannot_be_had_says_why(model: str, kind: type[WorkerError], words: str, retriable: bool) -> None:
    """By the index and by its config; nothing is ever generated for it, and no path of the server's is shown."""
    with serving(models="all") as (server, engine):
        error = failing(engine, model=model)
        assert type(error) is kind
        assert words in error.message
        assert "model.py" not in error.message
        assert (error.engine, error.retriable, error.phase) == ("triton", retriable, "submit")
        assert jobs(server) == []


def test_a_load_that_failed_for_another_reason_is_no_lack_of_memory() -> None:
    """UNAVAILABLE with a reason: EngineUnavailable that tells it, without the traceback."""
    broken = Model("broken", "text_input STRING", "text_output STRING", load_error="Internal: no such tokenizer")
    with serving(models=[broken, "recite"]) as (_, engine):
        error = failing(engine, model="broken")
        assert type(error) is EngineUnavailable
        assert "UNAVAILABLE: Internal: no such tokenizer" in error.message


def test_a_model_that_is_loading_is_waited_for() -> None:
    """LOADING may be tried again, and then it works: no state of before is kept."""
    models = ["recite", Model("slow", "text_input STRING", "text_output STRING", loaded=False, load_time=0.6)]
    with serving(models=models, explicit=True) as (server, engine):
        assert "not loaded" in failing(engine, model="slow").message
        load = f"{server.url}/v2/repository/models/slow/load"
        loading = threading.Thread(target=requests.post, args=(load,), kwargs={"timeout": SOON})
        loading.start()
        assert server.wait_for(lambda: "/v2/repository/models/slow/load" in asked(server), SOON)
        error = failing(engine, model="slow")
        assert (type(error), error.retriable) == (EngineUnavailable, True)
        loading.join()
        assert engine.submit("Hi", model="slow").result().text == TEXT


def test_a_model_unloaded_between_two_jobs_is_looked_up_again() -> None:
    """Its config was known: a 404 of the job is EngineUnavailable, and the next try asks what has become of it."""
    script = Scripted(shape(), (404, {"error": GONE}), retry={"attempts": 2, "base": 0.001})
    script.answers = [said(" the"), refused(404, GONE)]
    with script.running() as (server, engine):
        engine.submit("Hi").result()
        script.index = [{"name": "m", "version": "1", "state": "UNLOADING"}]
        error = failing(engine)
        assert (type(error), "UNLOADING" in error.message) == (EngineUnavailable, True)
        assert len(jobs(server)) == 2
        script.index = [{"name": "other", "version": "1", "state": "READY"}]
        assert type(failing(engine)) is ModelNotFound


def test_after_a_reload_a_task_is_written_anew() -> None:
    """Loaded with other inputs: the try after its 404 sends what the new config wants, in one and the same job."""
    script = Scripted(
        shape(("max_tokens", "INT32")), shape(("max_output_tokens", "INT32")), retry={"attempts": 2, "base": 0.001}
    )
    script.answers = [said(" the"), refused(404, GONE), said(" quick")]
    with script.running() as (server, engine):
        assert engine.submit("Hi", max_tokens=3).result().text == " the"
        assert engine.submit("Hi", max_tokens=3).result().text == " quick"
        bodies = [{name for name in request.json if name != "id"} for request in jobs(server)]
        assert bodies == [{"text_input", "max_tokens"}] * 2 + [{"text_input", "max_output_tokens"}]


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (400, "[request id: a] expected number of inputs between 1 and 1 but got 2 inputs for model 'm'"),
        (500, "Unable to parse 'data': attempt to access JSON non-signed-integer as signed-integer"),
    ],
)
def test_after_a_refusal_of_a_request_the_config_is_read_again(status: int, message: str) -> None:
    """A reload may be behind it: the job fails, and the next one asks."""
    script = Scripted(shape(("temperature", "FP32")), shape())
    script.answers = [refused(status, message), said(" the")]
    with script.running() as (server, engine):
        error = failing(engine, temperature=0.5)
        assert (type(error), error.status, error.retriable) == (InvalidRequest, status, False)
        assert "temperature" in failing(engine, temperature=0.5).message  # it has no input for it now
        assert engine.submit("Hi").result().text == " the"
        assert asked(server).count("/v2/models/m/config") == 2


def failed_at_once(message: str) -> Callable[[Exchange], None]:
    """A model's own error in place of its first response: Triton says 400 whatever it is, and sends an event."""

    def answer(exchange: Exchange) -> None:
        exchange.head(400, EVENTS)
        exchange.chunk(b"data: " + json.dumps({"error": message}).encode() + b"\n\n")
        exchange.end()

    return answer


#: What backends say, and nothing else. Of vLLM's (23.10 to main) as they said it in Triton 2.51 over a stub of vLLM,
#: whose words are vLLM's; the others as their sources word it.
BACKENDS: dict[str, tuple[type[WorkerError], bool]] = {
    # vllm_backend since 25.03: why is in the server's log alone
    "Error generating stream: 'NoneType' object has no attribute 'lora_name'": (InvalidRequest, False),
    # 23.10 to 24.12
    "Error generating stream: Unexpected keyword argument 'nonsense'": (InvalidRequest, False),
    "Error generating stream: top_p must be in (0, 1], got 7.0.": (InvalidRequest, False),
    "LoRA nope is not supported, we currently support ['alpaca']": (InvalidRequest, False),
    "LoRA feature is not enabled.": (InvalidRequest, False),
    "Error generating stream: EngineCore encountered an issue. See stack trace (above) for the root cause.": (
        EngineUnavailable, False,
    ),
    "Error generating stream: Background loop has errored already.": (EngineUnavailable, False),
    # llmapi of 25.05, and tensorrtllm_backend 0.16, in Triton 2.51 over stubs of their engines
    "Error generating request: require 0 <= top_p <= 1, got top_p=7.0": (InvalidRequest, False),
    "in ensemble 'ensemble', An error occurred when processing the input values for request id raw, the error was"
    " '[TensorRT-LLM][ERROR] Assertion failed: Invalid topP (/src/executor/samplingConfig.cpp:150)'": (
        InvalidRequest, False,
    ),
    "Model is unavailable due to unhealthy vLLM engine": (EngineUnavailable, True),
    "in ensemble 'ensemble', Encountered an error in forwardAsync function: [TensorRT-LLM][ERROR] CUDA runtime error": (
        EngineUnavailable, False,
    ),
    "Error generating stream: boom": (UnknownError, False),
}  # fmt: skip


@pytest.mark.parametrize("message", BACKENDS)
def test_a_backend_s_error_goes_by_its_words(message: str) -> None:
    """A job that an unhealthy engine was not given may be tried elsewhere."""
    script = Scripted(shape())
    script.answers = [failed_at_once(message)]
    with script.running() as (_, engine):
        error = failing(engine)
        assert (type(error), error.retriable) == BACKENDS[message]


@pytest.mark.parametrize(
    ("message", "sizes"),
    [
        (
            "Error generating stream: The decoder prompt (length 5000) is longer than the maximum model length of 2048."
            " Make sure that `max_model_len` is no smaller than the number of text tokens.",
            (5000, 2048),
        ),
        (
            "Executor failed process requestId 3 due to the following error: Prompt length (5000) exceeds maximum input"
            " length (2048). Set log level to info and check TRTGptModel logs for how maximum input length is set",
            (5000, 2048),
        ),
        (
            "Error generating request: The sum of prompt length (5000.0) and query length (0) max_tokens (256) should"
            " not exceed max_seq_len (2048)",
            (5000, 2048),
        ),
    ],
    ids=["vllm", "tensorrt_llm", "llmapi"],
)
def test_a_prompt_that_is_too_long_says_how_long(message: str, sizes: tuple[int, int]) -> None:
    """Each backend has its own words for it."""
    script = Scripted(shape())
    script.answers = [failed_at_once(message)]
    with script.running() as (_, engine):
        error = failing(engine)
        assert isinstance(error, ContextOverflow)
        assert (error.prompt_tokens, error.context_size) == sizes


def test_a_bls_s_traceback_is_not_shown() -> None:
    """TensorRT-LLM's BLS sends all of Python's as its error: what it was raised with remains, however long the way."""
    way = '  File "/models/tensorrt_llm_bls/1/model.py", line 94, in execute\n    for res in res_gen:\n' * 60
    message = (
        f"Traceback (most recent call last):\n{way}Exception: cannot perform speculative decoding\nwithout a draft\n"
    )
    script = Scripted(shape())
    script.answers = [failed_at_once(message)]
    with script.running() as (_, engine):
        shown = failing(engine).message
        assert "Exception: cannot perform speculative decoding without a draft" in shown
        assert "model.py" not in shown


def test_the_only_model_is_looked_for_again_with_its_config() -> None:
    """A job that names none may mean another one by then: after a refusal each is asked once, and then no more."""
    script = Scripted(shape(), model=None)
    script.answers = [said(" the"), refused(404, GONE), said(" quick")]
    with script.running() as (server, engine):
        assert engine.submit("Hi").result().text == " the"
        assert isinstance(failing(engine), EngineUnavailable)
        for _ in range(2):
            assert engine.submit("Hi").result().text == " quick"
        paths = asked(server)
        assert (paths.count("/v2/repository/index"), paths.count("/v2/models/m/config")) == (2, 2)
        script.index = [{"name": "other", "version": "1", "state": "READY"}]
        script.answers = [refused(404, GONE), said(" brown")]
        failing(engine)
        assert engine.submit("Hi").result().text == " brown"
        assert "/v2/models/other/generate_stream" in asked(server)


def test_a_full_queue_says_nothing_against_the_config() -> None:
    """503 is tried again as it is; the config is read once."""
    with serving(Fault.status(503), Fault.status(503), retry={"attempts": 3, "base": 0.001}, model="recite") as (
        server,
        engine,
    ):
        assert engine.submit("Hi", max_tokens=1).result().text == " the"
        assert len(jobs(server)) == 3
        assert asked(server).count("/v2/models/recite/config") == 1


def test_one_job_s_refusal_leaves_another_alone() -> None:
    """A job that waits for its answer is decoded by the config that it was written for, whatever another learned."""
    go_on, waiting = threading.Event(), threading.Event()

    def late(exchange: Exchange) -> None:
        waiting.set()
        assert go_on.wait(SOON)
        said(" the")(exchange)

    script = Scripted(shape(), (404, {"error": GONE}))
    script.answers = [late, refused(404, GONE)]
    with script.running() as (_, engine):
        results: list[Any] = []
        reader = threading.Thread(target=lambda: results.append(engine.submit("Hi").result().text))
        reader.start()
        assert waiting.wait(SOON)
        assert isinstance(failing(engine), EngineUnavailable)
        assert isinstance(failing(engine), EngineUnavailable)
        go_on.set()
        reader.join(SOON)
        assert results == [" the"]


def test_many_first_jobs_at_once() -> None:
    """Each may ask for the config; all get their own reply."""
    with serving(models="all", tokens=None, model="ensemble", slots=16) as (_, engine):
        wrong: list[Any] = []

        def run(number: int) -> None:
            for turn in range(10):
                word = f"{number}x{turn}"
                model = ("ensemble", "recite", "vllm_model")[turn % 3]
                text = engine.submit(word, model=model, max_tokens=3).result().text
                wrong.extend([] if text == f" {word}" * 3 else [text])

        threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert wrong == []


def test_a_question_that_breaks_off_may_be_asked_again() -> None:
    """Nothing was begun yet: a reset of the config's answer is retried, and there is one generation."""

    def answer(exchange: Exchange) -> None:
        if exchange.request.path.endswith("/config") and not answer.__dict__.setdefault("asked", 0):
            answer.__dict__["asked"] = 1
            exchange.reset()
        else:
            script(exchange)

    script = Scripted(shape())
    with (
        SimServer(answer) as server,
        TritonAdapter(server.url, model="m", retry={"attempts": 2, "base": 0.001}) as engine,
    ):
        assert engine.submit("Hi").result().text == " the"
        assert len(jobs(server)) == 1


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ((200, {}), UnknownError),
        ((200, []), UnknownError),
        ((200, {"name": "m", "input": 5}), UnknownError),
        ((401, {"error": "no"}), AuthenticationFailed),
        ((403, {"error": "This API is restricted, expecting header 'x'"}), AuthenticationFailed),
        ((500, {"error": "boom"}), EngineUnavailable),
        ((502, "bad gateway"), EngineUnavailable),
    ],
)
def test_a_config_that_is_none_is_a_typed_error(config: Any, kind: type[WorkerError]) -> None:
    """Another server, a key that is lacking, a gateway: and no job is sent."""
    with Scripted(config).running() as (server, engine):
        error = failing(engine)
        assert isinstance(error, kind)
        assert error.engine == "triton"
        assert jobs(server) == []


# --- fields and extra


def test_a_field_without_an_input_is_refused_or_dropped(caplog: pytest.LogCaptureFixture) -> None:
    """InvalidRequest that names field and model; with unsupported="ignore" it is left out, with one line."""
    with serving() as (server, engine):
        error = failing(engine, presence_penalty=0.5)
        assert (type(error), error.to_dict()["field"]) == (InvalidRequest, "presence_penalty")
        assert "'recite'" in error.message
        assert "temperature (FP32, optional)" in error.message
        assert jobs(server) == []
        with pytest.raises(InvalidRequest):
            engine.submit("Hi", presence_penalty=0.5)  # the config is known by now
    with serving(unsupported="ignore") as (server, engine), caplog.at_level(logging.WARNING):
        assert engine.submit("Hi", presence_penalty=0.5, temperature=0.5, max_tokens=1).result().text == " the"
        assert set(jobs(server)[0].json) == {"id", "text_input", "max_tokens", "temperature", "stream"}
        assert [record.getMessage() for record in caplog.records] == [
            "triton has no equivalent for presence_penalty: dropped"
        ]
        assert failing(engine, extra={"colour": "red"}).to_dict()["field"] == "extra.colour"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"task": [{"role": "user", "content": PROMPT}]}, "messages"),
        ({"grammar": 'root ::= "a"'}, "grammar"),
        ({"logprobs": 1}, "logprobs"),
        ({"extra": {"text_input": "x"}}, "extra.text_input"),
        ({"extra": {"sampling_parameters": "{}"}}, "extra.sampling_parameters"),
        ({"extra": {"stream": False}}, "extra.stream"),
        ({"extra": {"id": "x"}}, "extra.id"),
    ],
)
def test_what_triton_has_no_equivalent_for_is_refused_at_once(fields: dict[str, Any], field: str) -> None:
    """Whatever the model: nothing is asked."""
    with serving() as (server, engine):
        with pytest.raises(InvalidRequest) as caught:
            engine.submit(**{"task": "Hi", **fields})
        assert caught.value.field == field
        assert asked(server) == []


def test_extra_sets_no_part_of_the_contract() -> None:
    """Not under a name of the model's own either: its prompt, its stream, its limit."""
    tensors = {"prompt": "QUERY", "text": "ANSWER", "max_tokens": "LIMIT", "stream": "LIVE"}
    models = [Model("own", "QUERY STRING, LIMIT INT32?, LIVE BOOL?, HEAT FP32?", "ANSWER STRING")]
    with serving(models=models, tensors=tensors) as (server, engine):
        for extra in ({"QUERY": "x"}, {"LIVE": False}, {"LIMIT": 5}):
            assert failing(engine, extra=extra).to_dict()["field"] == f"extra.{next(iter(extra))}"
        engine.submit("Hi", max_tokens=5, extra={"HEAT": 1}).result()
        assert {name: value for name, value in jobs(server)[0].json.items() if name != "id"} == {
            "QUERY": "Hi", "LIMIT": 5, "LIVE": True, "HEAT": 1.0,
        }  # fmt: skip


def test_integers_beyond_their_type_are_refused_before_the_server_cuts_them() -> None:
    """Triton would run 99999999999 modulo 2**32."""
    with serving() as (server, engine):
        error = failing(engine, extra={"top_k": 99_999_999_999})
        assert error.to_dict()["field"] == "extra.top_k"
        assert jobs(server) == []


# --- errors and cancel


def test_a_model_that_dies_mid_stream_keeps_what_came() -> None:
    """An error event in a 200 stream, a cut, and a reset; all keep the text."""
    with serving(Fault.error_after(2)) as (_, engine):
        error = failing(engine)
        assert (type(error), error.tokens_seen, error.partial_text) == (EngineUnavailable, 2, " the quick")
    with serving(Fault.cut_after(2)) as (_, engine):
        assert type(failing(engine)) is StreamTruncated


@pytest.mark.parametrize("rest", [b'data: {"text_output": " qui', b'data: {"text_output": " quick"}', b"data: {}\n"])
def test_a_body_that_ends_inside_an_event_is_not_whole(rest: bytes) -> None:
    """A proxy that speaks HTTP/1.0 to Triton takes its crash for the end of the answer, and says so to us."""

    def answer(exchange: Exchange) -> None:
        exchange.head(200, EVENTS)
        exchange.chunk(b'data: {"text_output": " the"}\n\n' + rest)
        exchange.end()

    server = Scripted(shape())
    server.answers = [answer]
    with server.running() as (_, engine):
        error = failing(engine)
        assert (type(error), error.partial_text) == (StreamTruncated, " the")


def test_a_queue_that_is_full_may_be_tried_again() -> None:
    """CapacityExceeded, retriable."""
    with serving(max_queued=0, slots=1, endless=True, delay=0.01) as (_, engine):
        with engine.submit("Hi", max_tokens=10**6) as stream:
            next(stream)
            error = failing(engine)
        assert (type(error), error.retriable, error.status) == (CapacityExceeded, True, 503)


def test_a_cancel_while_tokens_flow_frees_the_engine() -> None:
    """The reader at once, the model at its next check."""
    with serving(endless=True, delay=0.001) as (server, engine), engine.submit("Hi", max_tokens=10**6) as stream:
        assert [next(stream).type for _ in range(3)] == ["started", "token", "token"]
        assert stream.cancel()
        assert [frame.type for frame in stream] == ["end"]
        assert server.wait_idle(SOON)


def test_a_cancel_before_the_first_response_frees_the_reader_alone() -> None:
    """The server watches no connection until then: the job runs to its first response. The adapter says so."""
    with serving(prompt_delay=1.0, endless=True, delay=0.001) as (server, engine):
        engine.engine_version()
        stream = engine.submit("Hi", max_tokens=10**6)
        frames: list[Any] = []
        reader = threading.Thread(target=lambda: frames.extend(stream))
        reader.start()
        assert server.wait_for(lambda: server.busy == 1, SOON)
        began = time.monotonic()
        stream.cancel()
        reader.join(SOON)
        assert time.monotonic() - began < 0.8
        assert [frame.type for frame in frames] == ["end"]
        assert server.busy == 1
        assert server.wait_idle(SOON)
        assert "before the first response" in engine.capabilities.release


def test_a_cancelled_ensemble_is_stopped_by_its_id() -> None:
    """A closed connection reaches no step: its engine is told, by the job's id and what it requires."""
    with serving(models="ensemble", model="ensemble", endless=True, delay=0.005) as (server, engine):
        with engine.submit("Hi", max_tokens=10**6, job_id="job-1") as stream:
            assert [next(stream).type for _ in range(2)] == ["started", "token"]
            stream.cancel()
            assert [frame.type for frame in stream] == ["end"]
        assert server.wait_idle(SOON)
        [stop] = [request for request in jobs(server) if "tensorrt_llm/" in request.path]
        assert stop.json == {
            "id": "job-1", "stop": True, "input_ids": 1, "input_lengths": 1, "request_output_len": 1,
        }  # fmt: skip
        assert engine.submit("Hi", max_tokens=2).result().text == " the quick"
        assert asked(server).count("/v2/models/tensorrt_llm/config") == 1


def test_two_first_jobs_of_an_ensemble_know_both_how_to_stop() -> None:
    """Its own config, answered twice, is never taken for its engine's."""
    both, going = threading.Barrier(2, timeout=SOON), threading.Event()
    tensors = [
        {"name": name, "data_type": "TYPE_INT32", "dims": [1], "optional": name == "stop"}
        for name in ("input_ids", "stop")
    ]
    mine = shape(platform="ensemble", ensemble_scheduling={"step": [{"model_name": "tensorrt_llm"}]})
    stopped: list[Any] = []

    def flowing(exchange: Exchange) -> None:
        exchange.head(200, EVENTS)
        while exchange.pause(0.002):
            exchange.chunk(b'data: {"text_output":"a"}\n\n')

    def answer(exchange: Exchange) -> None:
        path = exchange.request.path
        if path == "/v2/models/m/config":
            if both.wait():  # the other one's comes once the first job has all that it wants to know
                assert going.wait(SOON)
            exchange.json(200, mine)
        elif path == "/v2/models/tensorrt_llm/config":
            exchange.json(200, {"name": "tensorrt_llm", "input": tensors})
        elif path == "/v2/models/tensorrt_llm/generate_stream":
            stopped.append(exchange.request.json["id"])
            said()(exchange)
        elif path.endswith("/generate_stream"):
            going.set()
            flowing(exchange)
        else:
            exchange.json(200, {"version": "2.51.0"})

    with SimServer(answer) as server, TritonAdapter(server.url, model="m", retry={"attempts": 1}) as engine:

        def run(job_id: str) -> None:
            with engine.submit("Hi", job_id=job_id, max_tokens=10**6) as stream:
                for frame in stream:
                    if frame.type == "token":
                        stream.cancel()

        threads = [threading.Thread(target=run, args=(f"job-{number}",)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SOON)
        assert sorted(stopped) == ["job-0", "job-1"]


def test_no_other_model_is_ever_stopped_so() -> None:
    """A model without such a step, or whose step takes no stop, is only left."""
    bare = Model("tensorrt_llm", "input_ids INT32[-1]", "output_ids INT32[-1]", voice="ids")
    for models, model in ((["recite", "tensorrt_llm"], "recite"), (["ensemble", bare], "ensemble")):
        with serving(models=models, model=model, endless=True, delay=0.005) as (server, engine):
            with engine.submit("Hi", max_tokens=10**6) as stream:
                next(stream)
                stream.cancel()
                list(stream)
            assert len(jobs(server)) == 1


def test_a_connection_serves_many_jobs() -> None:
    """Triton keeps it open after a stream: jobs one after the other need no other."""
    with serving() as (server, engine):
        engine.submit("Hi", max_tokens=2).result()
        before = server.connections  # one more for the version, asked while the job's own was at work
        for _ in range(5):
            engine.submit("Hi", max_tokens=2).result()
        assert server.connections == before == 2


# --- health


def test_a_server_with_a_broken_model_is_unready_though_it_serves() -> None:
    """The first lie: of a named model its own readiness counts."""
    with serving(models=["recite", "one", "bad_load"]) as (server, engine):
        health = engine.health()
        assert (health.state, health.live, health.ready) == ("degraded", True, False)
        assert "model=" in health.message
        with TritonAdapter(server.url, model="recite") as named:
            assert named.health().state == "healthy"
            assert named.health(probe=True, timeout=SOON).state == "healthy"
        with TritonAdapter(server.url, model="bad_load") as broken:
            assert (broken.health().live, broken.health().ready) == (True, False)


def test_a_dead_backend_is_called_ready_until_it_is_probed() -> None:
    """The second lie: only a token tells."""
    with serving(model="recite") as (server, engine):
        server.always(Fault.error_after(0))
        assert engine.health().ready
        health = engine.health(probe=True, timeout=SOON)
        assert (health.state, health.ready) == ("unhealthy", False)
        assert "Stub process" in health.message
        assert len(jobs(server)) == 1  # a probe is never tried again


def test_a_page_of_something_else_is_no_triton() -> None:
    """200 with a body is a proxy's, or another server's."""
    with SimServer(lambda exchange: exchange.json(200, {"status": "ok"})) as server:
        health = TritonAdapter(server.url).health()
        assert (health.state, health.ready) == ("unhealthy", False)
        assert "not from Triton" in health.message


def test_health_of_nobody() -> None:
    """Nothing listens: unhealthy, without an exception."""
    health = TritonAdapter("http://127.0.0.1:1").health()
    assert (health.state, health.live) == ("unhealthy", False)


# --- props


@pytest.mark.parametrize(
    ("model", "residency", "digest"),
    [
        ("ensemble", "unknown", "ensemble/1-ensemble"),
        ("vllm_model", "unknown", "vllm_model/1-vllm"),
        ("tokens_only", "gpu", "tokens_only/1-python"),
        ("cpu_only", "cpu", "cpu_only/1-onnxruntime"),
        ("around", "gpu", "around/1-python"),
    ],
)
def test_props_tell_what_the_server_does(model: str, residency: str, digest: str) -> None:
    """KIND_GPU of the model or of a step is the GPU; KIND_CPU says nothing of a backend that uses it all the same."""
    plain = {"inputs": "text_input STRING", "outputs": "text_output STRING"}
    models = [
        "ensemble",
        "vllm_model",
        "tokens_only",
        Model("cpu_only", **plain, backend="onnxruntime"),
        Model("around", **plain, parameters={"tensorrt_llm_model_name": "tokens_only"}),
    ]
    with serving(models=models, model=model) as (_, engine):
        props = engine.props()
        assert (props.engine, props.engine_version, props.model) == ("triton", "2.51.0", model)
        assert (props.residency, props.model_digest) == (residency, digest)
        assert engine.engine_version() == "2.51.0"
        assert not props.capabilities.messages
        assert props.to_dict()["context_size"] is None


def test_props_hold_no_path_of_the_server_s() -> None:
    """Parameters of models and tracebacks are left out of raw; the rest is there by its path."""
    with serving(models="all", model="ensemble") as (_, engine):
        raw = engine.props().raw
        assert {"/v2", "/v2/repository/index", "/v2/models/ensemble/config", "/v2/models/ensemble/stats"} <= set(raw)
        assert "/v2/models/tensorrt_llm/config" in raw
        for path in ("/models/tokenizer", "/engines", "model.py(", "At:"):
            assert path not in json.dumps(raw)
        assert "CUDA out of memory" in json.dumps(raw)


def test_props_of_a_server_with_many_models_name_none() -> None:
    """Without a name there is none to tell of; with a single ready one it is that."""
    with serving(models=["recite", "one"]) as (_, engine):
        props = engine.props()
        assert (props.model, props.model_digest, props.residency) == (None, None, "unknown")
    with serving(models=["recite", "slow_load"]) as (_, engine):
        assert engine.props().model == "recite"


@pytest.mark.parametrize(
    ("model", "kind"), [("nope", ModelNotFound), ("slow_load", EngineUnavailable), ("bad_load", PoolUnavailable)]
)
def test_props_and_infer_of_a_model_that_is_not_there(model: str, kind: type[WorkerError]) -> None:
    """The same errors as a job's, and at once: nothing is gained by asking for seconds."""
    with serving(models=["recite", "slow_load", "bad_load"], model=model) as (_, engine):
        for ask in (engine.props, lambda: engine.infer({"text_input": "x"})):
            began = time.monotonic()
            with pytest.raises(WorkerError) as caught:
                ask()
            assert type(caught.value) is kind
            assert caught.value.engine == "triton"
            assert time.monotonic() - began < 3.0


# --- infer


def test_infer_is_one_request_and_one_response() -> None:
    """Values by the model's types, text as str, numbers as they are."""
    batched = Model("batched", "text_input STRING", "text_output STRING", decoupled=False, max_batch_size=4)
    with serving(models=["one", batched]) as (server, engine):
        outputs = engine.infer({"text_input": "grüß dich", "max_tokens": 3, "temperature": 1}, model="one")
        assert outputs == {"text_output": [" the quick brown"], "logp": [-0.5]}
        assert asked(server) == ["/v2/models/one", "/v2/models/one/infer"]
        assert engine.infer({"text_input": b"x", "max_tokens": [2]}, model="one")["text_output"] == [" the quick"]
        for value in ("Hi", ["Hi"], [["Hi"]]):  # the batch's dimension is added where it is missing
            assert engine.infer({"text_input": value}, model="batched") == {"text_output": [[TEXT]]}


@pytest.mark.parametrize(
    ("inputs", "field"),
    [
        ({"text_input": "x", "colour": "red"}, "inputs.colour"),
        ({"text_input": 5}, "inputs.text_input"),
        ({"text_input": "x", "max_tokens": 2**31}, "inputs.max_tokens"),
        ({"text_input": "x", "max_tokens": 1.5}, "inputs.max_tokens"),
        ({"text_input": "x", "max_tokens": "many"}, "inputs.max_tokens"),
        ({"text_input": "x", "max_tokens": None}, "inputs.max_tokens"),
        ({"text_input": "x", "temperature": "hot"}, "inputs.temperature"),
        ({"text_input": "x", "temperature": 1e300}, "inputs.temperature"),
        ({"text_input": "x", "max_tokens": [[1], [2, 3]]}, "inputs.max_tokens"),
    ],
)
def test_infer_refuses_what_an_input_cannot_hold(inputs: dict[str, Any], field: str) -> None:
    """Before anything is inferred, by name: nothing is cut, nothing becomes an infinity."""
    with serving(models="one", model="one") as (server, engine):
        with pytest.raises(InvalidRequest) as caught:
            engine.infer(inputs)
        assert caught.value.field == field
        assert asked(server) == ["/v2/models/one"]


def test_infer_of_a_stream_or_of_nobody_is_refused() -> None:
    """A decoupled model answers 501 there; without a name there is nobody to ask; a failure is typed."""
    with serving(models="all") as (server, engine):
        with pytest.raises(UnknownError) as caught:
            engine.infer({"text_input": "x"}, model="recite")
        assert caught.value.status == 501
        with pytest.raises(InvalidRequest):
            engine.infer({"text_input": "x"})
        server.misbehave(Fault.status(503))
        with pytest.raises(CapacityExceeded):
            engine.infer({"text_input": "x"}, model="one")
        with pytest.raises(InvalidRequest):
            engine.infer({}, model="one")  # the server counts its inputs


def test_infer_s_timeout_is_over_everything() -> None:
    """Its question and its inference together."""

    def slow(exchange: Exchange) -> None:
        exchange.pause(1.5)
        if exchange.request.method == "GET":
            exchange.json(200, {"name": "m", "inputs": [{"name": "x", "datatype": "BYTES", "shape": [1]}]})
        else:
            exchange.wait_gone(SOON)

    with SimServer(slow) as server, TritonAdapter(server.url, model="m") as engine:
        began = time.monotonic()
        with pytest.raises(WorkerError):
            engine.infer({"x": "y"}, timeout=2.0)
        assert time.monotonic() - began < 3.2


@pytest.mark.parametrize("body", [b"", b"{}", b'{"outputs":[]}', b'{"outputs":[{"name":"x"}]}', b"\xff" * 9])
def test_an_answer_to_infer_that_holds_no_tensors_is_a_typed_error(body: bytes) -> None:
    """What the codec makes of it never leaks."""

    def answer(exchange: Exchange) -> None:
        if exchange.request.method == "GET":
            exchange.json(200, {"name": "m", "inputs": [{"name": "x", "datatype": "BYTES", "shape": [1]}]})
        else:
            exchange.respond(200, [("Content-Type", "application/json")], body)

    with SimServer(answer) as server, TritonAdapter(server.url, model="m") as engine:
        if body == b'{"outputs":[]}':
            assert engine.infer({"x": "y"}) == {}
            return
        with pytest.raises(UnknownError) as caught:
            engine.infer({"x": "y"})
        assert "no tensors" in caught.value.message


# --- options


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"transport": "quic"}, "transport"),
        ({"transport": "grpc", "url": "http://h:8000"}, "transport"),
        ({"transport": "http", "url": "grpc://h:8001"}, "transport"),
        ({"tensors": {"colour": "X"}}, "tensors"),
        ({"tensors": {"prompt": 5}}, "tensors"),
        ({"tensors": "prompt"}, "tensors"),
        ({"url": "ftp://h"}, "url"),
        ({"unsupported": "maybe"}, "unsupported"),
    ],
)
def test_a_bad_option_names_itself(options: dict[str, Any], field: str) -> None:
    """Before anything is sent."""
    with pytest.raises(InvalidRequest) as caught:
        connect("triton", **options)
    assert caught.value.field == field


def test_an_unknown_option_is_a_type_error() -> None:
    """On either transport."""
    for url in ("http://h", "grpc://h"):
        with pytest.raises(TypeError, match="colour"):
            connect("triton", url, colour="red")


@pytest.mark.parametrize("url", ["http://h:1/base", "grpc://h:1"])
def test_adapters_pickle_by_configuration(url: str) -> None:
    """Transport, version, mapped tensors and model come back; a literal key does not travel."""
    options = {"model": "m", "version": 3, "tensors": {"prompt": "QUERY"}, "unsupported": "ignore"}
    made = connect("triton", url, api_key=f"env:{KEY_VARIABLE}", **options)
    again = pickle.loads(pickle.dumps(made))
    assert (type(again), repr(again)) == (type(made), repr(made))
    assert again._configuration() == made._configuration()
    with pytest.raises(TypeError, match="env:NAME"):
        pickle.dumps(connect("triton", url, api_key=KEY))


@pytest.mark.parametrize("url", ["http://h:1/base", "grpc://h:1"])
def test_a_pickled_adapter_still_works(url: str) -> None:
    """What it learned stays behind, its mapping comes along."""
    tensors = {"prompt": "QUERY", "text": "ANSWER"}
    models = [Model("own", "QUERY STRING", "ANSWER STRING")]
    with serving(models=models, tensors=tensors) as (_, engine):
        engine.submit("Hi", max_tokens=2).result()
        with pickle.loads(pickle.dumps(engine)) as again:
            assert isinstance(again.submit("Hi", max_tokens=2).result(), Completion)


def test_the_key_goes_in_its_header() -> None:
    """--http-restricted-api wants a header: any name, with every question and every job."""
    for header in ("authorization", "x-key"):
        with TritonSimulator(api_key=KEY, key_header=header) as server:
            with TritonAdapter(server.url, model="recite", api_key=KEY, key_header=header) as engine:
                assert engine.submit("Hi", max_tokens=1).result().text == " the"
                assert engine.props().model == "recite"
            with TritonAdapter(server.url, model="recite", retry={"attempts": 1}) as engine:
                error = failing(engine)
                assert (type(error), error.status) == (AuthenticationFailed, 403)
                assert engine.health().live
