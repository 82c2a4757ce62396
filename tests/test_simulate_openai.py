"""The simulated OpenAI-compatible servers: read by the clients people use, and compared with recordings."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import openai
import pytest
import requests
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError, TextGenerationError
from pydantic import BaseModel

from openai_clients import Exchange, events_of, play, recorded, send, shape
from simulate_clients import WAIT, read_all, split, unchunk
from worker_adapters.simulate import FINISH, EngineSimulator, Fault, OpenAISimulator, VllmSimulator
from worker_adapters.simulate.openai_flavors import FLAVORS

pytestmark = pytest.mark.openai

MESSAGES: Any = [{"role": "user", "content": "how is the weather"}]
CALLS = [("get_weather", ("{", '"city":', ' "Oslo"', "}")), ("get_time", ("{", "}"))]
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
    for name in ("get_weather", "get_time")
]
Simulator = Callable[..., Any]
ENGINES = pytest.mark.parametrize("engine", [pytest.param(VllmSimulator, marks=pytest.mark.vllm), OpenAISimulator])


@contextmanager
def served(engine: Simulator, **options: Any) -> Iterator[tuple[Any, openai.OpenAI]]:
    """A simulator and the official client of it."""
    with engine(**options) as simulator:
        base = getattr(simulator, "base_url", simulator.url + "/v1")
        with openai.OpenAI(base_url=base, api_key="sk-test", max_retries=0, timeout=WAIT) as client:
            yield simulator, client


def quiet(simulator: EngineSimulator) -> None:
    """The client spoke proper HTTP, and nothing is left at work."""
    assert simulator.violations == ()
    assert simulator.wait_idle(WAIT)


# -- the official client -----------------------------------------------------------------------------------------------


@ENGINES
def test_the_official_client_streams_and_counts(engine: Simulator) -> None:
    """Chat and completions stream their text; usage comes in a chunk without choices."""
    with served(engine) as (simulator, client):
        model = simulator.model
        assert [card.id for card in client.models.list()] == [model]
        chat = list(
            client.chat.completions.create(
                model=model, messages=MESSAGES, max_tokens=4, stream=True, stream_options={"include_usage": True}
            )
        )
        assert (
            "".join(chunk.choices[0].delta.content or "" for chunk in chat if chunk.choices) == " the quick brown fox"
        )
        assert [chunk.choices[0].finish_reason for chunk in chat if chunk.choices][-1] == "length"
        assert chat[-1].usage.total_tokens == 5 + 4
        text = list(client.completions.create(model=model, prompt="one two", max_tokens=3, stream=True))
        assert "".join(chunk.choices[0].text for chunk in text) == " the quick brown"
        whole = client.completions.create(model=model, prompt="one two", max_tokens=3)
        assert (whole.choices[0].text, whole.usage.completion_tokens) == (" the quick brown", 3)
        plain = client.chat.completions.create(model=model, messages=MESSAGES, stop=["fox"])
        assert (plain.choices[0].message.content, plain.choices[0].finish_reason) == (" the quick brown ", "stop")
        quiet(simulator)


@ENGINES
def test_the_official_client_reads_responses(engine: Simulator) -> None:
    """Responses come as named events with a proper sequence, and whole; tools and reasoning are items."""
    with served(engine, reasoning=("We", " count"), tool_calls=CALLS[:1]) as (simulator, client):
        model = simulator.model
        with client.responses.stream(model=model, input="the quick") as stream:
            kinds = [event.type for event in stream]
            final = stream.get_final_response()
        assert kinds[:2] == ["response.created", "response.in_progress"]
        assert kinds[-1] == "response.completed"
        assert kinds.count("response.output_text.delta") == 24
        assert final.output_text.startswith(" the quick brown")
        assert final.usage.output_tokens == 27
        cut = client.responses.create(model=model, input="the quick", max_output_tokens=4)
        assert (cut.status, cut.incomplete_details.reason) == ("incomplete", "max_output_tokens")
        assert cut.output_text == " the quick"
        tools: Any = [{"type": "function", "name": "get_weather", "parameters": {}, "strict": False}]
        called = client.responses.create(model=model, input="the weather", tools=tools)
        item = called.output[-1]
        assert (item.type, item.name, item.arguments) == ("function_call", "get_weather", '{"city": "Oslo"}')
        result: Any = {"type": "function_call_output", "call_id": item.call_id, "output": "rain"}
        told = client.responses.create(
            model=model, input=[{"role": "user", "content": "x"}, item.model_dump(), result], tools=tools
        )
        assert told.output_text.startswith(" the quick")
        quiet(simulator)


@ENGINES
def test_a_whole_tool_loop(engine: Simulator) -> None:
    """The client gathers streamed calls, sends the results back, and gets text; a named tool is called as wanted."""
    with served(engine, tool_calls=CALLS) as (simulator, client):
        model = simulator.model
        with client.chat.completions.stream(model=model, messages=MESSAGES, tools=TOOLS) as stream:
            for _ in stream:
                pass
            message = stream.get_final_completion().choices[0].message
        calls = message.tool_calls or []
        assert [(call.function.name, call.function.arguments) for call in calls] == [
            (name, "".join(pieces)) for name, pieces in CALLS
        ]
        results: Any = [{"role": "tool", "tool_call_id": call.id, "content": "rain"} for call in calls]
        sent: Any = [*MESSAGES, {"role": "assistant", "tool_calls": [call.model_dump() for call in calls]}, *results]
        answer = client.chat.completions.create(model=model, messages=sent, tools=TOOLS)
        assert (answer.choices[0].message.content or "").startswith(" the quick")
        wanted: Any = {"type": "function", "function": {"name": "get_time"}}
        named = client.chat.completions.create(model=model, messages=MESSAGES, tools=TOOLS, tool_choice=wanted)
        assert [call.function.name for call in named.choices[0].message.tool_calls or []] == ["get_time"]
        assert named.choices[0].finish_reason == ("stop" if engine is VllmSimulator else "tool_calls")
        one = client.chat.completions.create(model=model, messages=MESSAGES, tools=TOOLS, parallel_tool_calls=False)
        assert len(one.choices[0].message.tool_calls or []) == 1
        quiet(simulator)


class Owl(BaseModel):
    """A schema with the usual parts."""

    name: str
    age: int
    wise: bool
    friends: list[str]


@ENGINES
def test_structured_output_fits_its_schema(engine: Simulator) -> None:
    """The client's own parser reads the answer into a model; a required tool gets arguments that fit it."""
    with served(engine) as (simulator, client):
        model = simulator.model
        parsed = client.chat.completions.parse(model=model, messages=MESSAGES, response_format=Owl)
        assert isinstance(parsed.choices[0].message.parsed, Owl)
        answer = client.chat.completions.create(
            model=model, messages=MESSAGES, response_format={"type": "json_object"}, stream=True
        )
        text = "".join(chunk.choices[0].delta.content or "" for chunk in answer if chunk.choices)
        assert isinstance(json.loads(text), dict)
        called = client.chat.completions.create(model=model, messages=MESSAGES, tools=TOOLS, tool_choice="required")
        assert "city" in json.loads((called.choices[0].message.tool_calls or [])[0].function.arguments)
        with client.responses.stream(model=model, input="an owl", text_format=Owl) as stream:
            assert isinstance(stream.until_done().get_final_response().output_parsed, Owl)
        quiet(simulator)


@ENGINES
@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, openai.BadRequestError),
        (401, openai.AuthenticationError),
        (403, openai.PermissionDeniedError),
        (404, openai.NotFoundError),
        (409, openai.ConflictError),
        (422, openai.UnprocessableEntityError),
        (429, openai.RateLimitError),
        (500, openai.InternalServerError),
        (503, openai.InternalServerError),
    ],
)
def test_the_official_client_knows_every_refusal(
    engine: Simulator, status: int, error: type[openai.APIStatusError]
) -> None:
    """Each status makes the client's own exception, with a message in it."""
    with served(engine) as (simulator, client):
        simulator.misbehave(Fault.status(status))
        with pytest.raises(error) as caught:
            client.chat.completions.create(model=simulator.model, messages=MESSAGES, stream=True)
        assert caught.value.status_code == status
        if engine is OpenAISimulator:
            assert caught.value.request_id.startswith("req_")
        quiet(simulator)


@ENGINES
def test_the_official_client_sees_an_error_in_the_stream(engine: Simulator) -> None:
    """Tokens, then the client's APIError; the next request works."""
    with served(engine) as (simulator, client):
        simulator.misbehave(Fault.error_after(2))
        stream = client.chat.completions.create(model=simulator.model, messages=MESSAGES, stream=True)
        assert [next(stream).choices[0].delta.content for _ in range(3)] == ["", " the", " quick"]
        with pytest.raises(openai.APIError) as caught:
            next(stream)
        assert not isinstance(caught.value, openai.APIStatusError)
        quiet(simulator)


@ENGINES
def test_the_official_client_reads_logprobs(engine: Simulator) -> None:
    """Each token has its logprob, in the form of the endpoint, streamed and whole."""
    with served(engine) as (simulator, client):
        model = simulator.model
        asked: dict[str, Any] = {"model": model, "messages": MESSAGES, "max_tokens": 2, "logprobs": True}
        whole = client.chat.completions.create(**asked, top_logprobs=1)
        listed = whole.choices[0].logprobs.content or []
        assert [(entry.token, bytes(entry.bytes or []).decode()) for entry in listed] == [
            (" the", " the"),
            (" quick",) * 2,
        ]
        assert [len(entry.top_logprobs) for entry in listed] == [1, 1]
        parts = [chunk.choices[0].logprobs for chunk in client.chat.completions.create(**asked, stream=True)]
        assert [entry.token for part in parts if part for entry in part.content or []] == [" the", " quick"]
        text = client.completions.create(model=model, prompt="x", max_tokens=2, logprobs=1).choices[0].logprobs
        assert (text.tokens, text.text_offset) == ([" the", " quick"], [0, 4])
        quiet(simulator)


def test_a_responses_stream_can_fail_in_two_ways() -> None:
    """The bare error event and the terminal response.failed both reach the official client, with their reason."""
    with served(OpenAISimulator) as (simulator, client):
        simulator.misbehave(Fault.error_after(2), Fault.error_after(2, error_type="response.failed"))
        bare = list(client.responses.create(model=simulator.model, input="x", stream=True))[-1]
        assert (bare.type, bare.code) == ("error", "server_error")
        last = list(client.responses.create(model=simulator.model, input="x", stream=True))[-1]
        assert (last.type, last.response.status, last.response.error.code) == (
            "response.failed", "failed", "server_error",
        )  # fmt: skip
        quiet(simulator)


@ENGINES
def test_keys_models_and_windows_are_checked(engine: Simulator) -> None:
    """A wrong key, an unknown model and a long prompt are refused as each server refuses them."""
    with served(engine, api_key="sk-right", n_ctx=64) as (simulator, client):
        with pytest.raises(openai.AuthenticationError):
            client.models.list()
        right = client.with_options(api_key="sk-right")
        with pytest.raises(openai.NotFoundError) as missing:
            right.chat.completions.create(model="nope", messages=MESSAGES)
        assert "`nope` does not exist" in str(missing.value)
        with pytest.raises(openai.BadRequestError) as long:
            right.completions.create(model=simulator.model, prompt="a " * 65)
        assert "maximum context length is 64 tokens" in str(long.value)
        quiet(simulator)


@ENGINES
def test_closing_the_client_frees_the_slot(engine: Simulator) -> None:
    """A stream that is closed ends at once on the server; a queued request that goes leaves the queue."""
    with served(engine, slots=1, endless=True, delay=0.01) as (simulator, client):
        stream = client.chat.completions.create(model=simulator.model, messages=MESSAGES, stream=True, max_tokens=10**4)
        next(iter(stream))
        sock = send(simulator, "/v1/chat/completions", {"messages": MESSAGES, "stream": True})
        assert simulator.wait_for(lambda: simulator.queued == 1, WAIT)
        sock.close()
        assert simulator.wait_for(lambda: simulator.queued == 0, WAIT)
        assert simulator.busy == 1
        stream.close()
        quiet(simulator)
        assert (simulator.generation_requests, simulator.generations) == (2, 1)


# -- huggingface_hub ---------------------------------------------------------------------------------------------------


@ENGINES
def test_hugging_face_clients_read_it(engine: Simulator) -> None:
    """InferenceClient streams, counts usage and gathers tool calls."""
    with served(engine, tool_calls=CALLS[:1]) as (simulator, _):
        with InferenceClient(base_url=simulator.url + "/v1", api_key="sk-test", timeout=WAIT) as client:
            chunks = list(
                client.chat_completion(
                    MESSAGES, model=simulator.model, max_tokens=3, stream=True, stream_options={"include_usage": True}
                )
            )
            said = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
            assert "".join(text or "" for text in said) == " the quick brown"
            assert chunks[-1].usage.completion_tokens == 3
            answer = client.chat_completion(MESSAGES, model=simulator.model, tools=TOOLS)
            assert answer.choices[0].message.tool_calls[0].function.name == "get_weather"
            simulator.misbehave(Fault.status(429), Fault.error_after(1))
            with pytest.raises(HfHubHTTPError):
                client.chat_completion(MESSAGES, model=simulator.model)
            broken = client.chat_completion(MESSAGES, model=simulator.model, stream=True)
            assert [next(broken).choices[0].delta.content for _ in range(2)] == ["", " the"]
            with pytest.raises(TextGenerationError):
                next(broken)
        quiet(simulator)


# -- rules of api.openai.com -------------------------------------------------------------------------------------------


def test_strict_servers_name_what_they_refuse() -> None:
    """Unknown fields, max_tokens for a reasoning model, and stream_options are refused by name."""
    refused: list[tuple[dict[str, Any], dict[str, Any], str, str | None]] = [
        ({"strict": True}, {"top_k": 5}, "top_k", "unknown_parameter"),
        ({"reasoning_model": True}, {"max_tokens": 5}, "max_tokens", "unsupported_parameter"),
        ({"reasoning_model": True}, {"temperature": 0.5}, "temperature", "unsupported_value"),
        ({"accepts_stream_options": False}, {"stream": True, "stream_options": {}}, "stream_options", None),
        ({}, {"stream_options": {"include_usage": True}}, "stream_options", None),
        ({}, {"temperature": 2.5}, "temperature", "invalid_value"),
    ]
    for options, more, param, code in refused:
        with OpenAISimulator(**options) as simulator:
            body = {"model": simulator.model, "messages": MESSAGES, **more}
            answer = requests.post(simulator.url + "/v1/chat/completions", json=body, timeout=WAIT)
            error = answer.json()["error"]
            assert (answer.status_code, error["param"], error["code"]) == (400, param, code)
            assert list(error) == ["message", "type", "param", "code"]
            fine = {**body, "stream": True, "max_completion_tokens": 2}
            for name in more.keys() - {"stream"}:
                del fine[name]
            assert requests.post(simulator.url + "/v1/chat/completions", json=fine, timeout=WAIT).ok
            assert (
                requests.get(f"{simulator.url}/v1/models/{simulator.model}", timeout=WAIT).json()["object"] == "model"
            )
            assert requests.get(simulator.url + "/v1/models/nope", timeout=WAIT).status_code == 404
            assert requests.get(simulator.url + "/models", timeout=WAIT).status_code == 404


def test_every_answer_has_a_request_id_and_limits() -> None:
    """x-request-id is on every answer and never the same; a good one tells the limits and the time."""
    with OpenAISimulator() as simulator:
        good = requests.get(simulator.url + "/v1/models", timeout=WAIT)
        bad = requests.post(simulator.url + "/v1/chat/completions", json={}, timeout=WAIT)
        assert good.headers["x-request-id"] != bad.headers["x-request-id"]
        assert good.headers["x-ratelimit-reset-requests"] == "6ms"
        assert bad.headers["openai-processing-ms"]


def test_azure_has_its_own_routes() -> None:
    """The deployment stands in the path, api-version is due, the key is in api-key; the official client reads it."""
    with OpenAISimulator(azure=True, api_key="k", model="my-gpt4o") as simulator:
        with openai.AzureOpenAI(
            azure_endpoint=simulator.url, api_key="k", api_version="2024-06-01", max_retries=0, timeout=WAIT
        ) as client:
            chunks = list(
                client.chat.completions.create(model="my-gpt4o", messages=MESSAGES, stream=True, max_tokens=2)
            )
            assert chunks[0].choices == []
            texts = [choice.delta.content for chunk in chunks for choice in chunk.choices if choice.delta]
            assert "".join(text or "" for text in texts) == " the quick"
            simulator.misbehave(Fault.status(429))
            with pytest.raises(openai.RateLimitError):
                client.chat.completions.create(model="my-gpt4o", messages=MESSAGES)
        path = simulator.base_url + "/chat/completions"
        assert requests.post(path, json={"messages": MESSAGES}, timeout=WAIT).status_code == 404
        path += "?api-version=2024-06-01"
        assert requests.post(path, json={"messages": MESSAGES}, timeout=WAIT).status_code == 401
        for key in ({"api-key": "k"}, {"Authorization": "Bearer k"}):
            assert requests.post(path, json={"messages": MESSAGES}, headers=key, timeout=WAIT).ok
        for models in ("/openai/v1/models", "/openai/models?api-version=2024-06-01"):
            assert requests.get(simulator.url + models, headers={"api-key": "k"}, timeout=WAIT).ok
        assert requests.get(simulator.url + "/openai/models", headers={"api-key": "k"}, timeout=WAIT).status_code == 404


def test_web_frameworks_refuse_in_their_own_form() -> None:
    """A wrong key and a failed validation come as `detail` where the framework answers and not the server."""
    with OpenAISimulator(flavor="llama-cpp-python", api_key="k") as simulator:
        path = simulator.base_url + "/chat/completions"
        assert list(requests.post(path, json={"messages": MESSAGES}, timeout=WAIT).json()) == ["detail"]
    with OpenAISimulator(flavor="mistral", model="m") as simulator:
        body = {"model": "m", "messages": MESSAGES, "stream": True, "stream_options": {}}
        answer = requests.post(simulator.base_url + "/chat/completions", json=body, timeout=WAIT)
        assert (answer.status_code, list(answer.json())) == (422, ["detail"])
        assert "stream_options" in answer.text


def test_servers_have_pages_of_their_own() -> None:
    """Health and version pages answer without a key, as each server has them."""
    for flavor, facts in FLAVORS.items():
        with OpenAISimulator(flavor=flavor, api_key="k") as simulator:
            for path, (status, _, body) in facts.pages.items():
                answer = requests.get(simulator.url + path, timeout=WAIT)
                assert (answer.status_code, answer.content) == (status, body)
            if flavor not in ("azure", "openai"):
                assert requests.get(simulator.base_url + "/models", timeout=WAIT).status_code == 401


# -- recordings and flavors --------------------------------------------------------------------------------------------

RECORDINGS = recorded("openai")

# Streams and refusals of each server -> how its simulator is set up for them.
STREAMS: dict[str, tuple[str, dict[str, Any], Fault | None]] = {
    "openai-chat-stream-usage": ("openai", {}, None),
    "openai-chat-stream-tool-calls": ("openai", {"tool_calls": [("f", ("{", "}")), ("g", ("{}",))]}, None),
    "openai-chat-stream-refusal": ("openai", {"refusal": ("I'm sorry", ", no.")}, None),
    "openai-chat-stream-content-filter": ("openai", {"filtered_after": 1}, None),
    "openai-responses-stream": ("openai", {}, None),
    "openai-stream-error-event": ("openai", {}, Fault.error_after(1)),
    "openai-401": ("openai", {}, Fault.status(401)),
    "openai-404-model": ("openai", {}, Fault.status(404)),
    "openai-503-overloaded": ("openai", {}, Fault.status(503, headers=[("retry-after", "5")])),
    "azure-chat-stream-filters": ("azure", {"model": "my-gpt4o"}, None),
    "groq-chat-stream": ("groq", {}, None),
    "litellm-chat-stream-vllm": ("litellm", {}, None),
    "litellm-upstream-drop": ("litellm", {}, Fault.error_after(2)),
    "litellm-upstream-error-event": ("litellm", {}, Fault.error_after(2)),
    "litellm-429": ("litellm", {}, Fault.status(429)),
    "lmstudio-wrong-path-200": ("lmstudio", {}, None),
    "mistral-429-flat": ("mistral", {}, Fault.status(429)),
    "ollama-503-queue-full": ("ollama", {}, Fault.status(503)),
    "ollama-stream-runner-died": ("ollama", {}, Fault.error_after(2)),
    "openrouter-midstream-error": ("openrouter", {}, Fault.error_after(2)),
    "sglang-stream-abort-error": ("sglang", {}, Fault.error_after(1)),
    "trtllm-400-flat": ("tensorrt-llm", {}, Fault.status(400)),
}


def forms(recording: Exchange, body: bytes) -> set[str]:
    """The distinct shapes of an answer's events. In no order of keys: what is built from a schema has none."""
    stream = any(name.lower() == "content-type" and "event-stream" in value for name, value in recording.headers)
    return {str(shape(value)) for value in (events_of(body) if stream else [json.loads(body)])}


@pytest.mark.parametrize("name", STREAMS)
def test_recording_has_the_same_shape(name: str) -> None:
    """Status, content type, and the keys of every kind of event are those of the recorded answer."""
    recording = RECORDINGS[name]
    flavor, options, fault = STREAMS[name]
    options = {"model": (recording.asked or {}).get("model", "m"), "tokens": ("Hi", " you"), **options}
    with OpenAISimulator(flavor=flavor, idle_timeout=0.05, **options) as simulator:
        if fault is not None:
            simulator.misbehave(fault)
        status, headers, chunks = play(recording, simulator)
    assert status == recording.status
    kinds = [value for known in (headers, recording.headers) for key, value in known if key.lower() == "content-type"]
    assert kinds[0] == kinds[1]
    assert forms(recording, b"".join(chunks)) == forms(recording, recording.body)
    if b"data:" in recording.body:
        assert (b"[DONE]" in b"".join(chunks)) == (b"[DONE]" in recording.body)


@pytest.mark.parametrize("flavor", FLAVORS)
def test_every_flavor_says_the_same(flavor: str) -> None:
    """However a server writes it, the text, the finish and the number of tokens can be read."""
    with OpenAISimulator(("Hi", " you"), flavor=flavor, model="m", idle_timeout=0.05) as simulator:
        path = simulator.base_url.removeprefix(simulator.url) + "/chat/completions?api-version=1"
        options = {} if "stream_options" in FLAVORS[flavor].refused else {"stream_options": {"include_usage": True}}
        body = {"model": "m", "messages": MESSAGES, "stream": True, **options}
        data = b"".join(unchunk(split(read_all(send(simulator, path, body)))[1])[0])
        chunks = [chunk for chunk in events_of(data) if chunk != "[DONE]"]
        deltas = [choice.get("delta", {}) for chunk in chunks for choice in chunk["choices"]]
        assert "".join(delta.get("content") or "" for delta in deltas) == "Hi you"
        reasons = [choice.get("finish_reason") for chunk in chunks for choice in chunk["choices"]]
        assert [reason for reason in reasons if reason] == [FLAVORS[flavor].finishes.get("stop", "stop")]
        usages = [chunk.get("usage") or chunk.get("x_groq", {}).get("usage") for chunk in chunks]
        assert [usage["completion_tokens"] for usage in usages if usage] == [3]
        text = requests.post(
            simulator.base_url + "/completions?api-version=1", json={"model": "m", "prompt": "x"}, timeout=WAIT
        )
        assert text.json()["choices"][0]["text"] == "Hi you"


@pytest.mark.parametrize("flavor", FLAVORS)
def test_every_flavor_has_its_own_error_forms(flavor: str) -> None:
    """A refusal and an error inside a stream come in each server's form, with [DONE] behind it where it sends one."""
    facts = FLAVORS[flavor]
    with OpenAISimulator(flavor=flavor, model="m", idle_timeout=0.05) as simulator:
        simulator.misbehave(Fault.status(503), Fault.error_after(1), Fault.clean_end_after(FINISH))
        path = simulator.base_url + "/chat/completions?api-version=1"
        body = {"model": "m", "messages": MESSAGES, "stream": True}
        refused = requests.post(path, json=body, timeout=WAIT)
        error = refused.json()
        wrapped = {"flat": error, "text": {"message": error.get("error")}}
        assert wrapped.get(facts.error, error.get("error"))["message"]
        data = requests.post(path, json=body, timeout=WAIT).content
        assert (b"error" in data) == (facts.stream_error not in ("none", "blank"))
        assert (b"[DONE]" in data) == facts.done_after_error
        assert b"[DONE]" not in requests.post(path, json=body, timeout=WAIT).content
        missing = requests.post(path, json={**body, "model": "nope"}, timeout=WAIT).status_code
        assert missing == (200 if flavor == "azure" else facts.unknown_model)


def test_tool_calls_come_whole_where_a_server_sends_them_so() -> None:
    """One delta holds all calls, without index where the server leaves it out."""
    for flavor in ("ollama", "mistral"):
        with OpenAISimulator(flavor=flavor, model="m", tool_calls=CALLS, idle_timeout=0.05) as simulator:
            body = {"model": "m", "messages": MESSAGES, "stream": True, "tools": TOOLS}
            data = requests.post(simulator.base_url + "/chat/completions", json=body, timeout=WAIT).content
            deltas = [
                chunk["choices"][0]["delta"] for chunk in events_of(data) if chunk != "[DONE]" and chunk["choices"]
            ]
            calls = [delta["tool_calls"] for delta in deltas if "tool_calls" in delta]
            assert [[call["function"]["arguments"] for call in group] for group in calls] == [
                ["".join(pieces) for _, pieces in CALLS]
            ]
            assert ("index" in calls[0][0]) == FLAVORS[flavor].call_index


def test_ollamas_deltas_have_a_content_and_its_calls_a_chunk() -> None:
    """As Ollama 0.33 writes them: the role once, content "" beside reasoning and calls, an empty finish."""
    with OpenAISimulator(
        flavor="ollama", model="m", reasoning=["Hm"], tool_calls=CALLS[:1], idle_timeout=0.05
    ) as simulator:
        body = {"model": "m", "messages": MESSAGES, "stream": True, "tools": TOOLS}
        data = requests.post(simulator.base_url + "/chat/completions", json=body, timeout=WAIT).content
        whole = requests.post(simulator.base_url + "/chat/completions", json={**body, "stream": False}, timeout=WAIT)
    choices = [chunk["choices"][0] for chunk in events_of(data) if chunk != "[DONE]"]
    (call,) = choices[1]["delta"].pop("tool_calls")
    assert call["function"] == {"name": CALLS[0][0], "arguments": "".join(CALLS[0][1])}
    assert [(choice["delta"], choice["finish_reason"]) for choice in choices] == [
        ({"role": "assistant", "content": "", "reasoning": "Hm"}, None),
        ({"content": ""}, None),
        ({}, "tool_calls"),
    ]
    assert whole.json()["choices"][0]["message"]["content"] == ""


@pytest.mark.parametrize(("flavor", "told"), [("ollama", [0, 0, 0, 3]), ("litellm", [0, 0, 0])])
def test_usage_of_a_text_completion_in_a_stream(flavor: str, told: list[int]) -> None:
    """Ollama says 0 until the real count behind the finish, if asked; LiteLLM says nothing else, asked or not."""
    with OpenAISimulator(("Hi", " you"), flavor=flavor, model="m", idle_timeout=0.05) as simulator:
        url = simulator.base_url + "/completions"
        body = {"model": "m", "prompt": "x", "stream": True}
        asked = requests.post(url, json={**body, "stream_options": {"include_usage": True}}, timeout=WAIT).content
        plain = requests.post(url, json=body, timeout=WAIT).content
    counts = [chunk["usage"]["completion_tokens"] for chunk in events_of(asked) if chunk != "[DONE]"]
    assert counts == told
    assert (b"usage" in plain) == (flavor == "litellm")
