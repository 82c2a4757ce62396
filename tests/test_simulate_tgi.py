"""The simulated TGI against exchanges of the real one, byte for byte where the model allows it."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from openai_clients import FOLDER, Exchange, play, recorded
from worker_adapters.simulate import Fault, TgiSimulator, TgiToken

pytestmark = pytest.mark.tgi

RECORDINGS = recorded("tgi")

# Which exchanges are not replayed, and why.
NOT_REPLAYED = {
    "a model that reads each prompt for itself": {"completions-nostream-many-prompts"},
    "played live in test_simulate_tgi_live": {
        "stream-closed-by-client", "stream-cut-by-server", "stream-keepalive-queued",
    },
}  # fmt: skip
SKIPPED = set().union(*NOT_REPLAYED.values())


def tokens_of(recording: Exchange) -> list[TgiToken] | list[str] | None:
    """What the model says in an exchange; its end token is the simulator's own."""
    text = recording.body.decode()
    if text.startswith(("data:", ":")):
        data = [line[5:] for line in text.splitlines() if line.startswith("data:") and "[DONE]" not in line]
        events = [json.loads(line) for line in data]
        native = [event["token"] for event in events if "token" in event]
        chunks = [event["choices"][0]["delta"]["content"] for event in events if event.get("choices")]
        return [TgiToken(**token) for token in native if not token["special"]] or [chunk for chunk in chunks if chunk]
    if not text.startswith('{"generated_text"') and '"chat.completion"' not in text:
        return None
    whole = json.loads(text)
    if "generated_text" in whole:
        return [TgiToken(**token) for token in whole["details"]["tokens"]]
    said, last = whole["choices"][0]["message"].get("content", ""), whole["usage"]["completion_tokens"] - 1
    return [*said[:last], said[last:]]


def calls_of(recording: Exchange) -> list[tuple[str, list[str]]]:
    """The tool call of a whole chat, in so many pieces that its tokens are as many as the real ones."""
    text = recording.body.decode()
    if '"tool_calls"' not in text:
        return []
    whole = json.loads(text)
    function = whole["choices"][0]["message"]["tool_calls"][0]["function"]
    arguments, count = function["arguments"], whole["usage"]["completion_tokens"] - 2
    return [(function["name"], [*arguments[: count - 1], arguments[count - 1 :]])]


OVERLOADED = {"max_concurrent_requests": 0}
OPTIONS: dict[str, dict[str, Any]] = {
    "chat-stream-overloaded-2.3.1": OVERLOADED,
    "stream-overloaded-200": OVERLOADED,
    "chat-template-422": {"template": False},
    "compat-root-nostream": {"tokens": [" for", " /", "api", "/", "v", "1", "/", "projects", "/", "1"]},
    "generate-prefill-logprobs": {"prefill_logprobs": True},
    "generate-stream-eos-special": {"grammars": False},
    "generate-too-long-422": {"max_total_tokens": 512},
    "health-503": {"healthy": False},
    "info": {
        "max_total_tokens": 4096,
        "model_sha": "0e9e39f249a16976918f6564b8830bc894c89659",
        "sha": "dfb3fbe78e0d1d69251bd33065591c61bafdfaa8",
        "docker_label": "sha-dfb3fbe",
    },
    "info-2.2.0": {
        "max_total_tokens": 2048,
        "max_input_tokens": 1024,
        "model_sha": "e985a63cdc139290c5f700ff1929f0b5942cced2",
    },
    "unauthorized-401": {"api_key": "secret"},
}
FAULTS = {
    "chat-stream-generation-error": Fault.error_after(2),
    "generate-incomplete-500": Fault.error_after(0, error_type="incomplete_generation"),
    "stream-incomplete-midway": Fault.error_after(3, error_type="incomplete_generation_stream"),
}


def version_of(name: str) -> str:
    """The release that an exchange is of."""
    whole = json.loads((FOLDER / "tgi" / f"{name}.json").read_text(encoding="utf-8"))
    return str(whole["engine_version"])


def simulator_for(recording: Exchange, engine_version: str) -> TgiSimulator:
    """A simulator with the version, the names and the words of an exchange."""
    text = recording.body.decode()
    options: dict[str, Any] = {"idle_timeout": 0.05, "tokens": tokens_of(recording), "tool_calls": calls_of(recording)}
    options["version"] = {"3.3.7": "3.3.6-dev0"}.get(engine_version, engine_version)  # what the image calls itself
    for key in ("model", "model_id", "owned_by"):
        found = re.search(rf'"{key}":"([^"]+)"', text)
        if found:
            options["model"] = found[1]
    simulator = TgiSimulator(**{**options, **OPTIONS.get(recording.name, {})})
    if recording.name in FAULTS:
        simulator.misbehave(FAULTS[recording.name])
    return simulator


VOLATILE = [
    (r'"created":[1-9]\d*', '"created":T'),
    # The tokenizers and the templates of the real models count in their own ways.
    (r'"(prompt_tokens|total_tokens|input_length)":\d+', r'"\1":N'),
    (r'"prefill":\[\{.*?\}\]', lambda found: '"prefill":' + re.sub(r'("id"|"logprob"):-?[0-9.]+', r"\1:N", found[0])),
    (r'\{"id":\d+,"text":("[^"]*"),"start"', r'{"id":N,"text":\1,"start"'),
]  # fmt: skip
MEASURED = re.compile(r"date|content-length|x-(?!compute-type|accel).*")


def settle(text: str) -> str:
    """Replaces what differs between two runs, and what another tokenizer counts."""
    for pattern, replacement in VOLATILE:
        text = re.sub(pattern, replacement, text)
    return text


@pytest.mark.parametrize("name", [name for name in RECORDINGS if name not in SKIPPED])
def test_exchange_is_replayed_byte_for_byte(name: str) -> None:
    """Status, header names and their order, chunk boundaries and body are those of the real engine."""
    recording = RECORDINGS[name]
    with simulator_for(recording, version_of(name)) as simulator:
        status, fields, chunks = play(recording, simulator)
    assert status == recording.status
    assert [settle(chunk.decode()) for chunk in chunks] == [settle(chunk.decode()) for chunk in recording.chunks]
    assert [field[0] for field in fields] == [field[0] for field in recording.headers]
    assert [field for field in fields if not MEASURED.fullmatch(field[0])] == [
        field for field in recording.headers if not MEASURED.fullmatch(field[0])
    ]


def test_every_exchange_is_replayed_or_has_a_reason() -> None:
    """No exchange is left out in silence."""
    assert set(RECORDINGS) >= SKIPPED
    assert len(RECORDINGS) - len(SKIPPED) == 30
