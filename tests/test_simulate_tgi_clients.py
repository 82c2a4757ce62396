"""The simulated TGI read by its own clients: huggingface_hub, and Hugging Face's text-generation.

The second one asks for huggingface_hub below 1.0 but uses nothing that has changed since: it is installed without its
requirements (`pip install --no-deps text-generation==0.7.0`), and without it its tests are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import (
    GenerationError,
    HfHubHTTPError,
    IncompleteGenerationError,
    OverloadedError,
    UnknownError,
    ValidationError,
)

from simulate_clients import WAIT
from tgi_asking import CHAT, WORDS
from worker_adapters.simulate import Fault, TgiSimulator

pytestmark = pytest.mark.tgi

TEXT = "".join(WORDS)
#: Version of the server -> what it is built on: the line without a space, the last native chat, the last of all.
VERSIONS = pytest.mark.parametrize("version", ["2.0.4", "2.4.0", "3.3.6-dev0"])


@pytest.fixture
def sim() -> Iterator[TgiSimulator]:
    """A server that says five words."""
    with TgiSimulator(WORDS) as simulator:
        yield simulator


def hub(simulator: TgiSimulator) -> InferenceClient:
    """Hugging Face's own client."""
    return InferenceClient(base_url=simulator.url, timeout=WAIT)


def until_error(events: Iterator[Any], kind: type[Exception]) -> Iterator[Any]:
    """What comes before this exception, which must come."""
    while True:
        try:
            event = next(events)
        except kind:
            return
        except StopIteration:
            pytest.fail("it ended well")
        yield event


# -- huggingface_hub ---------------------------------------------------------------------------------------------------


@VERSIONS
def test_hub_streams(version: str) -> None:
    """Tokens one by one, the end with its details; and as plain texts, the special one among them."""
    with TgiSimulator(WORDS, version=version) as sim, hub(sim) as client:
        events = list(client.text_generation("Hi", stream=True, details=True, max_new_tokens=9))
        assert [event.token.text for event in events] == [*WORDS, "</s>"]
        assert [event.token.special for event in events] == [False] * 5 + [True]
        last = events[-1]
        assert last.generated_text == "Hi" + TEXT  # it asks /, which puts the prompt before its answers
        assert (last.details.finish_reason, last.details.generated_tokens) == ("eos_token", 6)
        assert [event.index for event in events] == [1, 2, 3, 4, 5, 6]
        assert "".join(client.text_generation("Hi", stream=True)) == TEXT + "</s>"
        stopped = list(client.text_generation("Hi", stream=True, details=True, stop=["three"]))[-1]
        assert (stopped.details.finish_reason, stopped.generated_text) == ("stop_sequence", "Hi one two three")


def test_hub_gets_whole_answers(sim: TgiSimulator) -> None:
    """The text, the details, the best of two, and the likeliest tokens."""
    client = hub(sim)
    assert client.text_generation("Hi", return_full_text=False) == TEXT
    assert client.text_generation("Hi", return_full_text=True) == "Hi" + TEXT
    whole = client.text_generation("Hi", details=True, seed=3, do_sample=True, max_new_tokens=2, top_n_tokens=2)
    assert (whole.details.finish_reason, whole.details.seed, whole.details.generated_tokens) == ("length", 3, 2)
    assert [token.text for token in whole.details.tokens] == [" one", " two"]
    assert [len(tokens) for tokens in whole.details.top_tokens or ()] == [2, 2]
    best = client.text_generation("Hi", details=True, best_of=2, do_sample=True)
    assert [each.generated_text for each in best.details.best_of_sequences or ()] == [f"Hi{TEXT}"]


@VERSIONS
def test_hub_chats(version: str) -> None:
    """A conversation in chunks and in one piece."""
    with TgiSimulator(WORDS, version=version) as sim, hub(sim) as client:
        chunks = list(client.chat_completion(CHAT, stream=True))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == TEXT
        ended = "eos_token" if version == "2.0.4" else "stop"
        assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * 5 + [ended]
        whole = client.chat_completion(CHAT, max_tokens=2)
        assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == (" one two", "length")
        assert whole.usage.completion_tokens == 2


def test_hub_chats_with_usage_and_tools(sim: TgiSimulator) -> None:
    """The chunk of the usage has no choices; a tool call comes in pieces."""
    client = hub(sim)
    chunks = list(client.chat_completion(CHAT, stream=True, stream_options={"include_usage": True}))
    assert (chunks[-1].choices, chunks[-1].usage.completion_tokens) == ([], 6)
    sim.tool_calls = (("owl", ('{"n": ', "7}")),)
    tools: Any = [{"type": "function", "function": {"name": "owl", "parameters": {"properties": {"n": {}}}}}]
    pieces = [chunk.choices[0].delta.tool_calls[0] for chunk in client.chat_completion(CHAT, tools=tools, stream=True)]
    assert pieces[0].function.name == "owl"
    assert "".join(piece.function.arguments for piece in pieces) == '{"n": 7}'
    call = client.chat_completion(CHAT, tools=tools).choices[0].message.tool_calls[0]
    assert (call.function.name, call.function.arguments) == ("owl", '{"n":7}')


IN_BAND: list[tuple[Fault, type[Exception]]] = [
    (Fault.error_after(0, error_type="overloaded"), OverloadedError),
    (Fault.error_after(0, error_type="validation"), ValidationError),
    (Fault.error_after(2), GenerationError),
    (Fault.error_after(2, error_type="incomplete_generation"), IncompleteGenerationError),
    (Fault.error_after(2, error_type="incomplete_generation_stream"), UnknownError),
]


@pytest.mark.parametrize(("fault", "kind"), IN_BAND)
def test_hub_raises_its_own_errors(sim: TgiSimulator, fault: Fault, kind: type[Exception]) -> None:
    """From an event in a 200 as from the body of a status."""
    client = hub(sim)
    sim.misbehave(fault, fault)
    before = len(list(until_error(client.text_generation("Hi", stream=True, details=True), kind)))
    assert before == fault.after
    with pytest.raises(kind):
        client.text_generation("Hi")


def test_hub_is_refused_by_the_router_itself(sim: TgiSimulator) -> None:
    """A bad value and a full server, both ways."""
    client = hub(sim)
    for stream in (True, False):
        with pytest.raises(ValidationError, match=r"`top_p` must be > 0\.0 and < 1\.0"):
            list(client.text_generation("Hi", stream=stream, top_p=1.0))
    with TgiSimulator(max_concurrent_requests=0) as full, hub(full) as client:
        for stream in (True, False):
            with pytest.raises(OverloadedError, match="Model is overloaded"):
                list(client.text_generation("Hi", stream=stream))


def test_hub_on_errors_of_a_chat() -> None:
    """Native in the stream up to 2.3.1, typed therefore; since 2.4.1 an object without a kind; whole ones by status."""
    for version, kind in (("2.3.1", OverloadedError), ("2.4.1", UnknownError)):
        with TgiSimulator(max_concurrent_requests=0, version=version) as full, hub(full) as client:
            with pytest.raises(kind):
                list(client.chat_completion(CHAT, stream=True))
            with pytest.raises(HfHubHTTPError) as caught:
                client.chat_completion(CHAT)
            assert caught.value.response.status_code == 429


# -- text-generation ---------------------------------------------------------------------------------------------------

DICT = pytest.mark.filterwarnings("ignore:The `dict` method is deprecated")  # its own use of pydantic


@pytest.fixture
def text_generation() -> Any:
    """The client's package."""
    return pytest.importorskip(
        "text_generation", reason="installed by hand: pip install --no-deps text-generation==0.7.0"
    )


@DICT
@VERSIONS
def test_client_streams(text_generation: Any, version: str) -> None:
    """Every token with its text; the text and the reason with the last."""
    with TgiSimulator(WORDS, version=version) as sim:
        client = text_generation.Client(sim.url, timeout=WAIT)
        events = list(client.generate_stream("Hi", max_new_tokens=9))
        assert [event.token.text for event in events] == [*WORDS, "</s>"]
        assert events[-1].generated_text == TEXT
        details = events[-1].details
        assert (details.finish_reason.value, details.generated_tokens, details.seed) == ("eos_token", 6, None)
        stopped = list(client.generate_stream("Hi", stop_sequences=["two"], do_sample=True, seed=5, top_n_tokens=2))
        assert (stopped[-1].details.finish_reason.value, stopped[-1].details.seed) == ("stop_sequence", 5)
        assert [len(event.top_tokens) for event in stopped] == [2, 2]


@DICT
def test_client_gets_whole_answers(text_generation: Any, sim: TgiSimulator) -> None:
    """It asks /, which wraps the answer in an array."""
    client = text_generation.Client(sim.url, timeout=WAIT)
    whole = client.generate("Hi", max_new_tokens=3, return_full_text=True)
    assert (whole.generated_text, whole.details.finish_reason.value) == ("Hi one two three", "length")
    again = client.generate("Hi").details.tokens
    assert [token.id for token in whole.details.tokens] == [token.id for token in again[:3]]
    assert sim.requests[-1].path == "/"
    chat = client.chat([{"role": "user", "content": "Hi"}], max_tokens=2)
    assert (chat.choices[0].message.content, chat.usage["completion_tokens"]) == (" one two", 2)


@DICT
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("overloaded", "OverloadedError"),
        ("generation", "GenerationError"),
        ("incomplete_generation", "IncompleteGenerationError"),
        ("validation", "ValidationError"),
        ("incomplete_generation_stream", "UnknownError"),
    ],
)
def test_client_raises_its_own_errors(text_generation: Any, sim: TgiSimulator, kind: str, name: str) -> None:
    """From an event in a 200 as from the body of a status; before and after tokens."""
    client = text_generation.Client(sim.url, timeout=WAIT)
    expected = getattr(text_generation.errors, name)
    for after in (0, 2):
        sim.misbehave(Fault.error_after(after, error_type=kind))
        assert [event.token.text for event in until_error(client.generate_stream("Hi"), expected)] == [*WORDS[:after]]
    sim.misbehave(Fault.error_after(0, error_type=kind))
    with pytest.raises(expected):
        client.generate("Hi")


@DICT
def test_client_is_refused_by_the_router_itself(text_generation: Any, sim: TgiSimulator) -> None:
    """A prompt that is too long, and a full server, both ways."""
    with TgiSimulator(max_total_tokens=20, max_concurrent_requests=1) as small:
        client = text_generation.Client(small.url, timeout=WAIT)
        for ask in (client.generate, lambda *prompt: list(client.generate_stream(*prompt))):
            with pytest.raises(text_generation.errors.ValidationError, match=r"must be <= 20\. Given: 101 `inputs`"):
                ask("a " * 100)
    with TgiSimulator(max_concurrent_requests=0) as full:
        client = text_generation.Client(full.url, timeout=WAIT)
        for ask in (client.generate, lambda *prompt: list(client.generate_stream(*prompt))):
            with pytest.raises(text_generation.errors.OverloadedError, match="Model is overloaded"):
                ask("Hi")
