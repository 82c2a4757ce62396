"""TGI's rules in its simulator: what is refused and where, how an answer is made and how it ends."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import requests

from openai_clients import events_of
from simulate_clients import WAIT
from tgi_asking import CHAT, WORDS, generated, post, told
from worker_adapters.simulate import TgiSimulator, TgiToken

pytestmark = pytest.mark.tgi


# -- what is refused ---------------------------------------------------------------------------------------------------

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"temperature": 0}, "`temperature` must be strictly positive"),
    ({"temperature": -1.5}, "`temperature` must be strictly positive"),
    ({"repetition_penalty": 0}, "`repetition_penalty` must be strictly positive"),
    ({"frequency_penalty": 2.1}, "`frequency_penalty` must be >= -2.0 and <= 2.0"),
    ({"top_k": 0}, "`top_k` must be strictly positive"),
    ({"top_p": 1.0}, "`top_p` must be > 0.0 and < 1.0"),
    ({"top_p": 0}, "`top_p` must be > 0.0 and < 1.0"),
    ({"typical_p": 1.0}, "`typical_p` must be > 0.0 and < 1.0"),
    ({"max_new_tokens": 0}, "`max_new_tokens` must be strictly positive"),
    ({"stop": list("abcde")}, "`stop` supports up to 4 stop sequences. Given: 5"),
    ({"top_n_tokens": 6}, "`top_n_tokens` must be >= 0 and <= 5. Given: 6"),
    ({"truncate": 0}, "`truncate` must be strictly positive and less than 40. Given: 0"),
    ({"truncate": 41}, "`truncate` must be strictly positive and less than 40. Given: 41"),
    (
        {"max_new_tokens": 60},
        "`inputs` tokens + `max_new_tokens` must be <= 50. Given: 3 `inputs` tokens and 60 `max_new_tokens`",
    ),
    ({"grammar": {"type": "json", "value": {}}}, "grammar is not valid: Grammar must have a 'properties' field"),
    ({"grammar": {"type": "json", "value": 3}}, "grammar is not supported"),
    # The first of several in the router's order.
    ({"top_p": 1.0, "temperature": 0, "max_new_tokens": 0}, "`temperature` must be strictly positive"),
]


@pytest.fixture(scope="module")
def small() -> Any:
    """A server with a small window."""
    with TgiSimulator(max_total_tokens=50, max_input_tokens=40) as simulator:
        yield simulator


@pytest.mark.parametrize(("parameters", "text"), REFUSED)
def test_a_bad_value_is_a_422_or_an_event_in_a_200(small: TgiSimulator, parameters: Any, text: str) -> None:
    """The same words and the same kind either way; the stream then ends as every stream does."""
    expected = {"error": f"Input validation error: {text}", "error_type": "validation"}
    body = {"inputs": "hi there", "parameters": parameters}
    whole = post(small, "/generate", body)
    assert (whole.status_code, whole.json(), list(whole.json())) == (422, expected, ["error", "error_type"])
    streamed = post(small, "/generate_stream", body)
    assert (streamed.status_code, events_of(streamed.content)) == (200, [expected])
    assert streamed.headers["content-type"] == "text/event-stream"
    assert post(small, "/", {**body, "stream": True}).content == streamed.content
    assert small.busy == 0


def test_bad_prompts(small: TgiSimulator) -> None:
    """Empty ones, and such that are too long by themselves or with their answer."""
    for inputs, parameters, text in (
        ("", {}, "`inputs` cannot be empty"),
        ("a " * 45, {"max_new_tokens": 1}, "`inputs` must have less than 40 tokens. Given: 46"),
        ("a " * 45, {"max_new_tokens": 9}, "`inputs` tokens + `max_new_tokens` must be <= 50. Given: 46 `inputs` "
                                           "tokens and 9 `max_new_tokens`"),
    ):  # fmt: skip
        answer = post(small, "/generate", {"inputs": inputs, "parameters": parameters})
        assert (answer.status_code, answer.json()["error"]) == (422, "Input validation error: " + text)
    assert generated(small, "a " * 45, truncate=10)["details"]["input_length"] == 10


def test_best_of(small: TgiSimulator) -> None:
    """Several sequences need sampling, no seed, no stream, and places for all of them."""

    def refused(path: str = "/generate", **parameters: Any) -> str:
        answer = post(small, path, {"inputs": "hi", "parameters": parameters})
        found = answer.json() if path == "/generate" else events_of(answer.content)[0]
        assert found["error_type"] == "validation"
        return str(found["error"]).removeprefix("Input validation error: ")

    assert refused(best_of=3, do_sample=True) == "`best_of` must be > 0 and <= 2. Given: 3"
    assert refused(best_of=2) == "you must use sampling when `best_of` is > 1"
    assert refused(best_of=2, top_k=5, seed=1) == "`seed` must not be set when `best_of` > 1"
    stream = "/generate_stream"
    assert refused(stream, best_of=2) == "`best_of` != 1 is not supported when streaming tokens"
    text = "`decoder_input_details` == true is not supported when streaming tokens"
    assert refused(stream, decoder_input_details=True) == text
    with TgiSimulator(WORDS, max_concurrent_requests=2) as sim:
        parameters = {"best_of": 2, "do_sample": True, "details": True, "max_new_tokens": 2, "top_n_tokens": 1}
        details = post(sim, "/generate", {"inputs": "hi", "parameters": parameters}).json()["details"]
        own = ["finish_reason", "generated_tokens", "seed", "prefill", "tokens"]
        assert list(details) == [*own, "best_of_sequences", "top_tokens"]
        other = details["best_of_sequences"][0]
        assert (list(other), other["generated_text"]) == (["generated_text", *own, "top_tokens"], " one two")
    with TgiSimulator(max_concurrent_requests=1) as sim:
        answer = post(sim, "/generate", {"inputs": "hi", "parameters": {"best_of": 2, "do_sample": True}})
        assert (answer.status_code, answer.json()["error_type"]) == (429, "overloaded")


BODIES: list[tuple[bytes, int, str]] = [
    (b'{"inputs": "hi', 400, "inputs: EOF while parsing a string at line 1 column 14"),
    (b"", 400, "EOF while parsing a value at line 1 column 0"),
    (b'{"inputs": "hi",}', 400, "trailing comma at line 1 column 17"),
    (b'{"inputs" "hi"}', 400, "expected `:` at line 1 column 11"),
    (b'{"inputs": nope}', 400, "inputs: expected ident at line 1 column 12"),
    (b'{"inputs": ?}', 400, "inputs: expected value at line 1 column 12"),
    (b'{"a": [1 2]}', 400, "a: expected `,` or `]` at line 1 column 10"),
    (b'{\n "inputs": 3}', 422, "inputs: invalid type: integer `3`, expected a string at line 2 column 12"),
    (b'{"inputs": null}', 422, "inputs: invalid type: null, expected a string at line 1 column 15"),
    (b'["hi"]', 422, "invalid type: sequence, expected struct GenerateRequest at line 1 column 0"),
    (
        b'{"inputs": "a", "parameters": {"stop": "x"}}',
        422,
        'parameters.stop: invalid type: string "x", expected a sequence at line 1 column 42',
    ),
    (
        b'{"inputs": "a", "parameters": {"stop": ["x", 1]}}',
        422,
        "parameters.stop[1]: invalid type: integer `1`, expected a string at line 1 column 46",
    ),
    (
        b'{"inputs": "a", "parameters": {"max_new_tokens": -1}}',
        422,
        "parameters.max_new_tokens: invalid value: integer `-1`, expected u32 at line 1 column 51",
    ),
    (
        b'{"inputs": "a", "parameters": {"temperature": true}}',
        422,
        "parameters.temperature: invalid type: boolean `true`, expected f32 at line 1 column 50",
    ),
    (
        b'{"inputs": "a", "parameters": null}',
        422,
        "parameters: invalid type: null, expected struct GenerateParameters at line 1 column 34",
    ),
]


@pytest.mark.parametrize(("body", "status", "text"), BODIES)
def test_what_never_reaches_the_router_is_refused_in_plain_text(
    small: TgiSimulator, body: bytes, status: int, text: str
) -> None:
    """The web framework answers, with a real status on the streaming route too."""
    lead = {
        400: "Failed to parse the request body as JSON: ",
        422: "Failed to deserialize the JSON body into the target type: ",
    }
    for path in ("/generate", "/generate_stream"):
        answer = post(small, path, body)
        assert (answer.status_code, answer.text) == (status, lead[status] + text)
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"


def test_other_refusals_of_the_framework(small: TgiSimulator) -> None:
    """Media type, size, path, method: each with a real status and no JSON."""
    answer = requests.post(small.url + "/generate", data="{}", timeout=WAIT)
    assert (answer.status_code, answer.text) == (415, "Expected request with `Content-Type: application/json`")
    with TgiSimulator(payload_limit=50) as sim:
        answer = post(sim, "/generate_stream", {"inputs": "x" * 60})
        assert (answer.status_code, "length limit exceeded" in answer.text) == (413, True)
    assert post(small, "/nowhere", {}).status_code == 404
    answer = requests.get(small.url + "/generate", timeout=WAIT)
    assert (answer.status_code, answer.headers["allow"], answer.content) == (405, "POST", b"")
    with TgiSimulator(version="2.2.0") as old:
        assert requests.get(old.url + "/v1/models", timeout=WAIT).status_code == 404


def test_a_browser_may_ask_first() -> None:
    """OPTIONS is answered whatever the path, without a key; HEAD is GET without a body."""
    with TgiSimulator(api_key="k") as sim:
        allowed = requests.options(sim.url + "/generate_stream", timeout=WAIT)
        assert (allowed.status_code, allowed.content) == (200, b"")
        assert [name for name in allowed.headers if name.startswith("access-control")] == [
            "access-control-allow-methods",
            "access-control-allow-headers",
            "access-control-allow-origin",
        ]
        assert allowed.headers["access-control-allow-methods"] == "GET,POST"
        info = requests.get(sim.url + "/info", timeout=WAIT)
        head = requests.head(sim.url + "/info", timeout=WAIT)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == str(len(info.content))
        assert requests.post(sim.url + "/info", timeout=WAIT).headers["allow"] == "GET,HEAD"


def test_a_key_guards_the_generating_routes_alone() -> None:
    """Without it they are an empty 401; case does not matter; health and facts stay open."""
    with TgiSimulator(api_key="Secret") as sim:
        for path in ("/", "/generate", "/generate_stream", "/v1/chat/completions", "/v1/completions", "/tokenize"):
            for headers in ({}, {"Authorization": "Bearer other"}, {"Authorization": "Secret"}):
                answer = post(sim, path, {"inputs": "hi"}, **headers)
                assert (answer.status_code, answer.content) == (401, b"")
        assert post(sim, "/generate", {"inputs": "hi"}, Authorization="bearer sECRET").status_code == 200
        for path in ("/", "/health", "/ping", "/info", "/v1/models", "/metrics"):
            assert requests.get(sim.url + path, timeout=WAIT).status_code == 200


# -- how an answer is made ---------------------------------------------------------------------------------------------


def test_defaults() -> None:
    """No details unless asked for; sampling is on without parameters and off with them; then there is no seed."""
    with TgiSimulator(WORDS) as sim:
        for parameters in ({}, {"parameters": {}}):
            last = told(sim, inputs="hi", **parameters)[-1]
            assert (last["details"], last["generated_text"]) == (None, " one two three four five")
            assert post(sim, "/generate", {"inputs": "hi", **parameters}).json() == {
                "generated_text": " one two three four five"
            }
        assert generated(sim)["details"]["seed"] is None
        assert generated(sim, seed=7)["details"]["seed"] is None
        assert isinstance(generated(sim, do_sample=True)["details"]["seed"], int)
        for sampling in ({"do_sample": True}, {"temperature": 0.5}, {"top_k": 3}, {"top_p": 0.9}, {"typical_p": 0.9}):
            assert generated(sim, seed=7, **sampling)["details"]["seed"] == 7


def test_events_of_a_stream() -> None:
    """One a token, numbered from 1; the end token is one; the text comes with the last alone; no end mark."""
    with TgiSimulator(WORDS) as sim:
        events = told(sim, inputs="hi there", parameters={"details": True, "return_full_text": True})
        assert [event["index"] for event in events] == [1, 2, 3, 4, 5, 6]
        assert [event["token"]["text"] for event in events] == [*WORDS, "</s>"]
        assert [event["token"]["special"] for event in events] == [False] * 5 + [True]
        assert [event["generated_text"] for event in events] == [None] * 5 + ["hi there one two three four five"]
        assert [event["details"] for event in events[:-1]] == [None] * 5
        ended = {"finish_reason": "eos_token", "generated_tokens": 6, "seed": None, "input_length": 3}
        assert events[-1]["details"] == ended
        assert list(events[-1]) == ["index", "token", "generated_text", "details"]


def test_how_it_ends() -> None:
    """The length is looked at before the end token, and a stop string counts at the end of a token alone."""
    with TgiSimulator(WORDS) as sim:

        def reason(**parameters: Any) -> tuple[str, int, str]:
            last = generated(sim, **parameters)
            return last["details"]["finish_reason"], last["details"]["generated_tokens"], last["generated_text"]

        assert reason(max_new_tokens=2) == ("length", 2, " one two")
        assert reason(max_new_tokens=6) == ("length", 6, "".join(WORDS))  # the sixth is the end token
        assert reason() == ("eos_token", 6, "".join(WORDS))
        assert reason(stop=["two"]) == ("stop_sequence", 2, " one two")  # it stays in the text
        assert reason(stop=["ne two"])[0] == "stop_sequence"
        assert reason(stop=["tw", "thre"])[0] == "eos_token"
        assert reason(stop=["two"], max_new_tokens=2)[0] == "length"
    with TgiSimulator((" one", "\n", "x")) as sim:
        assert generated(sim, stop=["one"])["generated_text"] == " one"
    with TgiSimulator((" one\n", "x")) as sim:  # a line break may follow it within the token
        assert generated(sim, stop=["one"])["generated_text"] == " one\n"


def test_top_tokens_come_if_they_are_asked_for() -> None:
    """Between the token and the text; not at all without."""
    with TgiSimulator(WORDS) as sim:
        event = told(sim, inputs="hi", parameters={"top_n_tokens": 3})[0]
        assert list(event) == ["index", "token", "top_tokens", "generated_text", "details"]
        assert (len(event["top_tokens"]), event["top_tokens"][0]) == (3, event["token"])
        whole = post(sim, "/generate", {"inputs": "hi", "parameters": {"details": True, "top_n_tokens": 2}}).json()
        assert [len(tokens) for tokens in whole["details"]["top_tokens"]] == [2] * 6


def test_characters_of_several_tokens() -> None:
    """They come whole with their last token; a text that ends within one is given up by the decoder."""
    owl = (b"\xf0", b"\x9f", b"\xa6", b"\x89")
    with TgiSimulator((" owl", *owl, "!")) as sim:
        events = told(sim, inputs="hi", parameters={})
        assert [event["token"]["text"] for event in events] == [" owl", "", "", "", "🦉", "!", "</s>"]
        assert events[-1]["generated_text"] == " owl🦉!"
        assert generated(sim, max_new_tokens=3)["generated_text"] == ""


def test_a_probability_that_is_no_number_is_null() -> None:
    """JSON has no NaN."""
    with TgiSimulator([TgiToken("a", 5, math.nan)]) as sim:
        assert told(sim, inputs="hi")[0]["token"] == {"id": 5, "text": "a", "logprob": None, "special": False}


def test_legs() -> None:
    """An answer is made in legs of 1,024 tokens that are sized from what was first asked for; the count is true."""

    def made(sim: TgiSimulator, **parameters: Any) -> tuple[str, int]:
        details = generated(sim, **parameters)["details"]
        return details["finish_reason"], details["generated_tokens"]

    with TgiSimulator(endless=True) as sim:
        assert made(sim, max_new_tokens=1024) == ("length", 1024)
        assert made(sim, max_new_tokens=1500) == ("length", 2048)
        assert made(sim, max_new_tokens=2048) == ("length", 2048)
        last = generated(sim, max_new_tokens=1500)
        assert (last["index"], len(last["generated_text"].split())) == (2048, 2048)
    with TgiSimulator(endless=True, max_total_tokens=1700) as sim:
        assert made(sim, max_new_tokens=1500) == ("length", 1024)  # the second leg would not fit
        assert made(sim, max_new_tokens=10**6) == ("length", 1024)  # and only the first is looked at in time
        assert made(sim) == ("length", 1697)
    for options in ({"legs": False}, {"version": "2.4.1"}):
        with TgiSimulator(endless=True, **options) as sim:
            assert made(sim, max_new_tokens=1500) == ("length", 1500)
    with TgiSimulator([" a"] * 1100) as sim:
        assert made(sim, max_new_tokens=1500) == ("eos_token", 1101)


def test_answers_are_made_of_their_prompt() -> None:
    """With tokens=None an answer repeats its own prompt's words up to the limit."""
    with TgiSimulator(None) as sim:
        assert generated(sim, "job 7 turn 3", max_new_tokens=6)["generated_text"] == " job 7 turn 3 job 7"
        assert generated(sim, "job 7")["generated_text"] == " job 7"
        chat = told(sim, "/v1/chat/completions", messages=CHAT, max_tokens=4, stream=True)
        assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in chat[:-1]) == " How are you How"


def test_grammars() -> None:
    """A schema is answered with an instance of it; an expression is an error of the request."""
    schema = {"type": "object", "properties": {"owl": {"type": "integer", "minimum": 2}}}
    with TgiSimulator() as sim:
        for kind, value in (("json", schema), ("json", json.dumps(schema)), ("json_schema", {"schema": schema})):
            last = generated(sim, grammar={"type": kind, "value": value})
            assert json.loads(last["generated_text"]) == {"owl": 2}
        last = generated(sim, grammar={"type": "regex", "value": "[a-z]+"})
        assert last["error_type"] == "generation"
        answer = post(sim, "/generate", {"inputs": "hi", "parameters": {"grammar": {"type": "xml", "value": 1}}})
        assert (answer.status_code, "unknown variant `xml`" in answer.text) == (422, True)
