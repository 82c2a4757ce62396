"""TGI's simulator: what each release says, the OpenAI-style routes, heads, figures and faults."""

from __future__ import annotations

import json
from typing import Any

import pytest
import requests

from openai_clients import events_of
from simulate_clients import WAIT, ask, split
from tgi_asking import CHAT, WORDS, generated, post, told
from worker_adapters.simulate import Fault, TgiSimulator

pytestmark = pytest.mark.tgi


# -- releases ----------------------------------------------------------------------------------------------------------


def test_data_lines_of_releases() -> None:
    """No space up to 2.0.x, and no input_length up to 2.2.0."""
    for version, lead, measured in (
        ("1.4.0", b"data:{", False),
        ("2.0.4", b"data:{", False),
        ("2.1.0", b"data: {", False),
        ("2.2.0", b"data: {", False),
        ("2.3.0", b"data: {", True),
        ("3.3.6-dev0", b"data: {", True),
    ):
        with TgiSimulator(version=version) as sim:
            body = post(sim, "/generate_stream", {"inputs": "hi", "parameters": {"details": True}}).content
            assert all(line.startswith(lead) for line in body.split(b"\n\n") if line)
            assert (b'"input_length"' in body) is measured


def test_default_limits_of_releases() -> None:
    """100 tokens up to 2.4.1, then whatever the window holds."""
    for version, count in (("2.4.1", 100), ("3.0.0", 497)):
        with TgiSimulator(version=version, endless=True, max_total_tokens=500) as sim:
            assert generated(sim)["details"]["generated_tokens"] == count


def test_info_of_releases() -> None:
    """Device and dtype up to 2.2.0; the input limit was renamed in 2.1.0; the router names itself since 2.0.3."""

    def info(version: str) -> dict[str, Any]:
        with TgiSimulator(version=version, device="cpu") as sim:
            body: dict[str, Any] = requests.get(sim.url + "/info", timeout=WAIT).json()
            return body

    assert (info("2.0.4")["max_input_length"], "max_input_tokens" in info("2.0.4")) == (131071, False)
    assert (info("2.1.0")["max_input_tokens"], "max_input_length" in info("2.1.0")) == (131071, False)
    assert (info("2.2.0")["model_device_type"], info("2.2.0")["model_dtype"]) == ("cpu", "torch.float16")
    assert not {"model_device_type", "model_dtype", "waiting_served_ratio"} & set(info("2.3.0"))
    assert ("router" in info("2.0.2"), "router" in info("2.0.3")) == (False, True)
    assert info("3.3.6-dev0")["version"] == "3.3.6-dev0"


def test_chat_of_releases() -> None:
    """Reasons, end mark, usage, errors and greedy sampling by release."""

    def chat(version: str, **body: Any) -> list[Any]:
        with TgiSimulator(WORDS, version=version) as sim:
            return told(sim, "/v1/chat/completions", messages=CHAT, stream=True, **body)

    for version, reason, marked in (
        ("2.1.1", "eos_token", False),
        ("2.2.0", "eos_token", True),
        ("2.3.0", "stop", True),
    ):
        events = chat(version)
        assert (events[-1] == "[DONE]") is marked
        last = events[-2] if marked else events[-1]
        assert (last["choices"][0]["finish_reason"], "usage" in last) == (reason, version == "2.3.0")
        assert next(iter(last)) == ("object" if marked else "id")
    events = chat("3.3.6-dev0", max_tokens=3, stream_options={"include_usage": True})
    assert events[-2]["choices"] == []
    assert events[-2]["usage"]["completion_tokens"] == 3
    assert [event["usage"] for event in events[:3]] == [None] * 3
    text = "Input validation error: `temperature` must be strictly positive"
    native = {"error": text, "error_type": "validation"}
    assert chat("2.0.1", temperature=0) == [native]
    assert chat("2.1.1", temperature=-1) == [native]
    assert chat("2.3.1", temperature=-1) == [native, "[DONE]"]
    assert chat("2.4.0", temperature=-1) == ["[DONE]"]  # it drops the errors of a chat's stream
    assert chat("2.4.1", temperature=-1) == [{"error": {"message": text, "http_status_code": 422}}, "[DONE]"]
    assert chat("2.0.2", temperature=0, max_tokens=1)[0]["choices"][0]["delta"]["content"] == " one"
    assert len(chat("3.0.1", max_completion_tokens=1)) == 7
    assert len(chat("3.0.2", max_completion_tokens=1)) == 2


# -- the OpenAI-style routes -------------------------------------------------------------------------------------------

TOOLS = [{"type": "function", "function": {"name": "owl", "parameters": {"properties": {"n": {"type": "integer"}}}}}]


def test_a_tool_call_in_a_stream_has_no_reason() -> None:
    """The name comes with the first piece alone, the arguments in pieces; nothing tells how it ended."""
    with TgiSimulator(tool_calls=[("owl", ('{"n"', ": ", "7}"))]) as sim:
        body = {"messages": CHAT, "tools": TOOLS, "stream": True, "stream_options": {"include_usage": True}}
        events = told(sim, "/v1/chat/completions", **body)
        choices = [event["choices"][0] for event in events if event != "[DONE]" and event["choices"]]
        calls = [choice["delta"]["tool_calls"][0] for choice in choices]
        assert [call["function"]["name"] for call in calls] == ["owl", None, None, None]
        assert json.loads("".join(call["function"]["arguments"] for call in calls)) == {"n": 7}
        assert {choice["finish_reason"] for choice in choices} == {None}
        assert {(call["id"], call["index"], call["type"]) for call in calls} == {("0", 0, "function")}
        assert events[-2]["usage"]["completion_tokens"] == 5
        plain = told(sim, "/v1/chat/completions", messages=CHAT, tools=TOOLS, tool_choice="none", stream=True)
        assert plain[0]["choices"][0]["delta"]["content"] == " the"
        cut = post(sim, "/v1/chat/completions", {"messages": CHAT, "tools": TOOLS, "max_tokens": 2})
        assert (cut.status_code, cut.json()["error_type"]) == (422, "tool_error")


@pytest.mark.parametrize(
    ("version", "named", "usage"),
    [("1.4.5", False, False), ("2.0.4", True, False), ("2.3.1", True, True), ("3.1.1", True, True)],
)
def test_up_to_3_1_1_a_call_is_what_the_model_says(version: str, named: bool, usage: bool) -> None:
    """Token by token in place of a list of calls, the end token too, with its reason, and its usage since 2.3.0."""
    with TgiSimulator(tool_calls=[("owl", ('{"n"', ": ", "7}"))], version=version) as sim:
        body = {"messages": CHAT, "tools": TOOLS, "stream": True, "stream_options": {"include_usage": True}}
        chunks = [event for event in told(sim, "/v1/chat/completions", **body) if event != "[DONE]"]
        choices = [chunk["choices"][0] for chunk in chunks]
        calls = [choice["delta"]["tool_calls"] for choice in choices]
        said = "".join(call["function"]["arguments"] for call in calls)
        name = '"_name": "owl", ' if named else ""
        assert said == f'{{"function": {{{name}"n": 7}}}}</s>'
        assert {(call["id"], call["function"]["name"]) for call in calls} == {("", None)}
        assert [choice["finish_reason"] for choice in choices[:-1]] == [None] * (len(choices) - 1)
        assert choices[-1]["finish_reason"] == ("stop" if usage else "eos_token")
        assert bool(chunks[-1].get("usage")) is usage


@pytest.mark.parametrize(
    ("version", "said"),
    [
        ("2.0.4", '{"function": {"_name": "notify_error", "error": " one \\"two\\""}}</s>'),
        ("2.3.1", '{"function": {"_name": "notify_error", "error": " one \\"two\\""}}</s>'),
        ("2.4.0", ' one \\"two\\"'),
        ("3.1.1", ' one \\"two\\"'),
        ("3.2.0", ' one "two"'),
    ],
)
def test_a_text_in_place_of_a_call(version: str, said: str) -> None:
    """A call of ``notify_error`` up to 2.3.1, then a string of the model's JSON without an end, at last a text."""
    with TgiSimulator([" one", ' "two"'], version=version) as sim:
        body = {"messages": CHAT, "tools": TOOLS, "stream": True}
        choices = [event["choices"][0] for event in told(sim, "/v1/chat/completions", **body) if event != "[DONE]"]
        deltas = [choice["delta"] for choice in choices]
        calls = [delta["tool_calls"]["function"]["arguments"] if "tool_calls" in delta else "" for delta in deltas]
        assert "".join(delta.get("content", "") + call for delta, call in zip(deltas, calls, strict=True)) == said
        assert (choices[-1]["finish_reason"] is None) is (version in ("2.4.0", "3.1.1"))
        whole = post(sim, "/v1/chat/completions", {"messages": CHAT, "tools": TOOLS}).json()["choices"][0]["message"]
        assert ("tool_calls" if version == "2.0.4" else "content") in whole


def test_a_chat_of_1_4() -> None:
    """Up to 1.4.3 a choice's index counts tokens, in 1.4.0 its logprobs are a number; the end token's text is shown."""
    for version, indexes in (("1.4.0", [1, 2]), ("1.4.3", [1, 2]), ("1.4.4", [0, 0]), ("2.0.1", [0, 0])):
        with TgiSimulator(["a"], version=version) as sim:
            events = told(sim, "/v1/chat/completions", messages=CHAT, stream=True, logprobs=True)
            choices = [event["choices"][0] for event in events]
            assert [choice["index"] for choice in choices] == indexes
            assert [choice["delta"]["content"] for choice in choices] == ["a", "</s>"]
            assert isinstance(choices[0]["logprobs"], float) is (version == "1.4.0")
            assert events[0]["object"] == "text_completion"


def test_tools_that_are_insisted_on_or_unknown() -> None:
    """One is made up if nobody scripted it; an unknown one and a grammar beside tools are real 422s."""
    with TgiSimulator() as sim:

        def ask_for(**body: Any) -> requests.Response:
            return post(sim, "/v1/chat/completions", {"messages": CHAT, "tools": TOOLS, "stream": True, **body})

        for choice in ("required", "owl", {"type": "function", "function": {"name": "owl"}}):
            events = events_of(ask_for(tool_choice=choice).content)
            assert events[0]["choices"][0]["delta"]["tool_calls"][0]["function"]["name"] == "owl"
        assert events_of(ask_for().content)[0]["choices"][0]["delta"]["content"] == " the"
        refused = ask_for(tool_choice="cat")
        assert (refused.status_code, refused.json()["error"]) == (422, "Tool error: Tool with name cat not found")
        refused = ask_for(response_format={"type": "json", "value": {"properties": {}}})
        assert (refused.status_code, refused.json()["error_type"]) == (422, "tool_error")


def test_what_the_chat_route_cannot_read() -> None:
    """A bias must be a list, stop strings too, and a message needs a role and a content."""
    with TgiSimulator() as sim:
        for body, text in (
            ({"logit_bias": {"5": 1}}, "logit_bias: invalid type: map, expected a sequence"),
            ({"stop": "x"}, 'stop: invalid type: string "x", expected a sequence'),
            ({"messages": [{"content": "x"}]}, "messages[0]: missing field `role`"),
            ({"messages": [{"role": "user"}]}, "messages[0]: no variant of enum MessageBody found in flattened data"),
            ({"stream_options": None}, "stream_options: invalid type: null, expected struct StreamOptions"),
        ):
            answer = post(sim, "/v1/chat/completions", {"messages": CHAT, "stream": True, **body})
            assert (answer.status_code, text in answer.text) == (422, True), answer.text


def test_logprobs_and_names_of_a_chat() -> None:
    """Probabilities have no bytes; a model's name is echoed whatever it is, "tgi" stands for the served one."""
    with TgiSimulator(WORDS, docker_label="sha-1") as sim:
        body = {"messages": CHAT, "logprobs": True, "top_logprobs": 2, "max_tokens": 1, "model": "nobody"}
        answer = post(sim, "/v1/chat/completions", body).json()
        assert (answer["model"], answer["system_fingerprint"]) == ("nobody", "3.3.6-dev0-sha-1")
        entry = answer["choices"][0]["logprobs"]["content"][0]
        assert (list(entry), len(entry["top_logprobs"])) == (["token", "logprob", "top_logprobs"], 2)
        assert post(sim, "/v1/chat/completions", {**body, "model": "tgi"}).json()["model"] == "recite"


def test_completions() -> None:
    """Prompts interleave by index, each with its usage; the stream says `eos_token` where the whole says `stop`."""
    with TgiSimulator((" one", " two")) as sim:
        events = told(sim, "/v1/completions", prompt=["a", "b c"], stream=True)
        assert [event["choices"][0]["index"] for event in events[:-1]] == [0, 1] * 3
        reasons = [event["choices"][0]["finish_reason"] for event in events[:-1]]
        assert reasons == [""] * 4 + ["eos_token"] * 2
        assert [event["usage"]["prompt_tokens"] for event in events[4:6]] == [2, 3]
        assert (list(events[0]), events[-1]) == (
            ["object", "id", "created", "choices", "model", "system_fingerprint"],
            "[DONE]",
        )
        whole = post(sim, "/v1/completions", {"prompt": ["a", "b c"]})
        assert [choice["finish_reason"] for choice in whole.json()["choices"]] == ["stop", "stop"]
        assert whole.json()["usage"] == {"prompt_tokens": 5, "completion_tokens": 6, "total_tokens": 11}
        assert (whole.headers["x-prompt-tokens"], "x-compute-time" in whole.headers) == ("5", False)
        suffix = post(sim, "/v1/completions", {"prompt": "a", "suffix": "b", "stream": True})
        assert (suffix.status_code, suffix.json()["error_type"]) == (422, "suffix not supported")
        assert post(sim, "/v1/completions", {"prompt": []}).status_code == 422
        events = told(sim, "/v1/completions", prompt=["", "b"], stream=True)
        assert events[0]["error"]["message"] == "Input validation error: `inputs` cannot be empty"
        assert {event["choices"][0]["index"] for event in events[1:-1]} == {1}


def test_headers() -> None:
    """Names in lower case; timings with whole answers alone, in milliseconds but the one in seconds."""
    with TgiSimulator(WORDS) as sim:
        whole = post(sim, "/generate", {"inputs": "hey 🦉"})
        assert (whole.headers["x-compute-characters"], whole.headers["x-generated-tokens"]) == ("5", "6")
        assert float(whole.headers["x-compute-time"]) < WAIT
        for name in ("total", "validation", "queue", "inference"):
            assert whole.headers[f"x-{name}-time"].isdigit()
        with ask(sim, "/generate_stream", {"inputs": "a"}, headers="Content-Type: application/json\r\n") as sock:
            head = split(sock.recv(65536))[0]
        fields = [line.partition(b":")[0] for line in head.split(b"\r\n")[1:]]
        assert all(name == name.lower() for name in fields)
        assert not [name for name in fields if name.endswith(b"-time")]


def test_tokenize() -> None:
    """Spans are offsets in bytes, from 1.4.0 on."""
    with TgiSimulator() as sim:
        found = post(sim, "/tokenize", {"inputs": "hé there"}).json()
        assert [(each["text"], each["start"], each["stop"]) for each in found] == [
            ("", 0, 0), ("hé", 0, 3), (" there", 3, 9),
        ]  # fmt: skip


def test_metrics() -> None:
    """What nothing touched is not there; then counters, gauges and histograms."""
    with TgiSimulator(WORDS) as sim:
        assert requests.get(sim.url + "/metrics", timeout=WAIT).content == b""
        post(sim, "/generate", {"inputs": "hi"})
        post(sim, "/generate", {"inputs": ""})
        text = requests.get(sim.url + "/metrics", timeout=WAIT).text
        for line in (
            "# TYPE tgi_queue_size gauge",
            "tgi_queue_size 0",
            "tgi_batch_current_size 0",
            "tgi_request_count 2",
            "tgi_request_success 1",
            'tgi_request_failure{err="validation"} 1',
            "tgi_request_generated_tokens_count 1",
            "tgi_request_generated_tokens_sum 6",
        ):
            assert line in text.splitlines()


# -- faults ------------------------------------------------------------------------------------------------------------


def test_faults_have_this_engines_form() -> None:
    """An error event ends a stream that then ends well; a refusal may be told inside a 200, or with a status."""
    with TgiSimulator(WORDS) as sim:
        oom = "Request failed during generation: Server error: CUDA out of memory. Tried to allocate 2.00 GiB."
        sim.misbehave(
            Fault.error_after(2),
            Fault.error_after(0, error_type="overloaded"),
            Fault.clean_end_after(3),
            Fault.status(503),
        )
        events = told(sim, inputs="hi")
        assert (len(events), events[-1]) == (3, {"error": oom, "error_type": "generation"})
        assert told(sim, inputs="hi") == [{"error": "Model is overloaded", "error_type": "overloaded"}]
        events = told(sim, inputs="hi")
        assert (len(events), events[-1]["generated_text"]) == (3, None)
        answer = post(sim, "/generate_stream", {"inputs": "hi"})
        assert (answer.status_code, list(answer.json())) == (503, ["error"])
        for fault, status, kind in (
            (Fault.error_after(2), 424, "generation"),
            (Fault.error_after(2, error_type="overloaded"), 429, "overloaded"),
            (Fault.error_after(2, error_type="incomplete_generation"), 500, "incomplete_generation"),
            (Fault.status(429), 429, "overloaded"),
            (Fault.status(424), 424, "generation"),
        ):
            sim.misbehave(fault)
            answer = post(sim, "/generate", {"inputs": "hi"})
            assert (answer.status_code, answer.json()["error_type"]) == (status, kind)
        sim.misbehave(Fault.status(401), Fault.error_after(1, message="no", error_type="tool_error", old=True))
        assert post(sim, "/generate", {"inputs": "hi"}).content == b""
        events = events_of(post(sim, "/v1/chat/completions", {"messages": CHAT, "stream": True}).content)
        assert len(events) == 1  # the old form has no space, no form of its own on this route, and no end mark
