"""What the clients have to know of each engine: where its stream is, how it is asked for, and where the text stands."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import NamedTuple

DONE = "[DONE]"
MODEL = "bench"


class Dialect(NamedTuple):
    """What the clients have to know of an engine.

    :ivar words: what the request calls its words: ``prompt`` or ``messages``; ``limit``: the number of tokens, which
        stands ``within`` another field, or at the top.
    :ivar also: what else it needs.
    :ivar typed: makes what takes the text out of an event's bytes, by a decoder of the fields that are used.
    :ivar loose: takes it out of an event's text by ``json``.
    """

    path: str
    words: str
    limit: str
    also: dict[str, object]
    typed: Callable[[], Callable[[bytes], str]]
    loose: Callable[[str], str]
    within: str = ""

    def task(self, gap: float) -> str | list[dict[str, str]]:
        """The words, which tell the load server the gap; as the request has them, and ``submit`` takes them."""
        return [{"role": "user", "content": f"{gap:g}"}] if self.words == "messages" else f"{gap:g}"

    def body(self, tokens: int, gap: float) -> bytes:
        """The request."""
        limit = {self.within: {self.limit: tokens}} if self.within else {self.limit: tokens}
        return json.dumps({"model": MODEL, self.words: self.task(gap), **limit, "stream": True, **self.also}).encode()


def typed_native() -> Callable[[bytes], str]:
    """``content`` at the top; the stream has no end marker."""
    import msgspec

    decode = msgspec.json.Decoder(msgspec.defstruct("Event", [("content", str, "")])).decode

    def text_in(data: bytes) -> str:
        return decode(data).content

    return text_in


def typed_tgi() -> Callable[[bytes], str]:
    """``token.text``."""
    import msgspec

    token = msgspec.defstruct("Token", [("text", str, "")])
    decode = msgspec.json.Decoder(msgspec.defstruct("Event", [("token", token)])).decode

    def text_in(data: bytes) -> str:
        return decode(data).token.text

    return text_in


def typed_triton() -> Callable[[bytes], str]:
    """``text_output`` at the top; the stream has no end marker."""
    import msgspec

    decode = msgspec.json.Decoder(msgspec.defstruct("Event", [("text_output", str, "")])).decode

    def text_in(data: bytes) -> str:
        return decode(data).text_output

    return text_in


def typed_text() -> Callable[[bytes], str]:
    """``choices[0].text``."""
    import msgspec

    choice = msgspec.defstruct("Choice", [("text", str, "")])
    decode = msgspec.json.Decoder(msgspec.defstruct("Chunk", [("choices", list[choice])])).decode
    done = DONE.encode()

    def text_in(data: bytes) -> str:
        if data == done:
            return ""
        choices = decode(data).choices
        return choices[0].text if choices else ""

    return text_in


def typed_chat() -> Callable[[bytes], str]:
    """``choices[0].delta.content``."""
    import msgspec

    delta = msgspec.defstruct("Delta", [("content", str, "")])
    choice = msgspec.defstruct("Choice", [("delta", delta)])
    decode = msgspec.json.Decoder(msgspec.defstruct("Chunk", [("choices", list[choice])])).decode
    done = DONE.encode()

    def text_in(data: bytes) -> str:
        if data == done:
            return ""
        choices = decode(data).choices
        return choices[0].delta.content if choices else ""

    return text_in


def loose_text(data: str) -> str:
    """``choices[0].text``."""
    choices = json.loads(data)["choices"] if data != DONE else []
    return choices[0]["text"] if choices else ""


def loose_chat(data: str) -> str:
    """``choices[0].delta.content``."""
    choices = json.loads(data)["choices"] if data != DONE else []
    return choices[0]["delta"].get("content", "") if choices else ""


USAGE = {"stream_options": {"include_usage": True}}
DIALECTS = {
    "llamacpp": Dialect(
        "/completion", "prompt", "n_predict", {}, typed_native, lambda data: json.loads(data)["content"]
    ),
    "tgi": Dialect(
        "/generate_stream",
        "inputs",
        "max_new_tokens",
        {},
        typed_tgi,
        lambda data: json.loads(data)["token"]["text"],
        within="parameters",
    ),
    "triton": Dialect(
        f"/v2/models/{MODEL}/generate_stream",
        "text_input",
        "max_tokens",
        {},
        typed_triton,
        lambda data: json.loads(data)["text_output"],
    ),
    "vllm": Dialect("/v1/completions", "prompt", "max_tokens", USAGE, typed_text, loose_text),
    "openai": Dialect("/v1/chat/completions", "messages", "max_tokens", USAGE, typed_chat, loose_chat),
}
