"""Reading a generation request the way TGI's router reads it: what it refuses, and in which words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .openai_request import chat_words, text_of
from .tgi_facts import Version
from .tgi_json import Complaint, Document, Path, check
from .tgi_script import Room

_PARAMETERS = {
    "best_of": "usize?",
    "temperature": "f32?",
    "repetition_penalty": "f32?",
    "frequency_penalty": "f32?",
    "top_k": "i32?",
    "top_p": "f32?",
    "typical_p": "f32?",
    "do_sample": "bool",
    "max_new_tokens": "u32?",
    "return_full_text": "bool?",
    "stop": "[string]",
    "truncate": "usize?",
    "watermark": "bool",
    "details": "bool",
    "decoder_input_details": "bool",
    "seed": "u64?",
    "top_n_tokens": "u32?",
    "grammar": "struct GrammarType?",
    "adapter_id": "string?",
}
_OPENAI = {
    "model": "string?",
    "max_tokens": "u32?",
    "max_completion_tokens": "u32?",
    "temperature": "f32?",
    "top_p": "f32?",
    "frequency_penalty": "f32?",
    "seed": "u64?",
    "stop": "[string]?",
    "stream": "bool",
}
_NATIVE = {"inputs": "string", "parameters": "struct GenerateParameters"}
_FIELDS: dict[str, dict[str, str]] = {
    "native": _NATIVE,
    "compat": {**_NATIVE, "stream": "bool"},
    "completions": {**_OPENAI, "prompt": "", "suffix": "string?", "repetition_penalty": "f32?"},
    "chat": {
        **_OPENAI,
        "messages": "[struct Message]",
        "logit_bias": "[f32]?",
        "logprobs": "bool?",
        "top_logprobs": "u32?",
        "n": "u32?",
        "presence_penalty": "f32?",
        "tools": "[struct Tool]?",
        "tool_prompt": "string?",
        "response_format": "struct GrammarType?",
        "stream_options": "struct StreamOptions",
    },
}
_REQUIRED = {
    "native": ("inputs", "struct GenerateRequest"),
    "compat": ("inputs", "struct CompatGenerateRequest"),
    "completions": ("prompt", "struct CompletionRequest"),
    "chat": ("messages", "struct ChatRequest"),
}
_GRAMMARS = ("json", "json_object", "regex", "json_schema")


class Refusal(Exception):
    """An error of the engine's own: its text and its kind (`error_type`)."""

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.message = message
        self.kind = kind


@dataclass(frozen=True)
class Limits:
    """The server's limits, by their names in /info; and whether answers are cut into legs."""

    max_concurrent_requests: int
    max_best_of: int
    max_stop_sequences: int
    max_top_n_tokens: int
    max_input_tokens: int
    max_total_tokens: int
    max_client_batch_size: int
    legs: bool


@dataclass
class Job:
    """One prompt with its parameters, named as on the native route. `words` is the user's own text, `prompted` counts
    the prompt's tokens, `seed` is null in the answer unless `samples`."""

    inputs: str = field(repr=False)
    parameters: dict[str, Any] = field(repr=False)
    words: str = field(repr=False)
    prompted: int = 0
    room: Room = field(default_factory=lambda: Room(0, None, 0, 0, False))
    seed: int = 0

    def flag(self, name: str) -> bool:
        """A boolean parameter."""
        return bool(self.parameters.get(name))

    @property
    def samples(self) -> bool:
        """True if the shards sample; else they take the likeliest token and use no seed."""
        given = self.parameters
        return bool(
            given.get("do_sample")
            or given.get("temperature", 1.0) not in (None, 1.0)
            or given.get("top_k")
            or given.get("top_p")
            or given.get("typical_p")
        )


@dataclass
class Order:
    """A generation request understood: `route` is native, chat or completions, `jobs` has a job for each prompt."""

    route: str
    stream: bool
    jobs: list[Job]
    body: dict[str, Any] = field(repr=False)

    @property
    def model(self) -> str | None:
        """The model asked for by name; "tgi" stands for the one that is served."""
        name = self.body.get("model")
        return None if name == "tgi" else name

    @property
    def wants_usage(self) -> bool:
        """True if a chunk with the usage was asked for."""
        return bool((self.body.get("stream_options") or {}).get("include_usage"))


# -- types -------------------------------------------------------------------------------------------------------------


def load(body: bytes, content_type: str | None, payload_limit: int) -> Document:
    """The body, parsed. Raises Complaint for what never reaches a handler."""
    kind = (content_type or "").partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise Complaint(415, "Expected request with `Content-Type: application/json`")
    if len(body) > payload_limit:
        raise Complaint(413, "Failed to buffer the request body: length limit exceeded")
    return Document(body)


def check_types(document: Document, route: str) -> dict[str, Any]:
    """The body of this route. Raises Complaint for a missing field and for values of a wrong type."""
    body, fields = document.value, _FIELDS[route]
    missing, kind = _REQUIRED[route]
    check(document, (), body, kind)
    for name, value in body.items():
        if name in fields:
            check(document, (name,), value, fields[name]) if fields[name] else _check_prompt(document, value)
            _check_inside(document, name, value)
    if missing not in body:
        raise document.mismatch((), f"missing field `{missing}`")
    return dict(body)


def _check_inside(document: Document, name: str, value: Any) -> None:
    if name == "parameters":
        for inner in value:
            if inner in _PARAMETERS:
                check(document, (name, inner), value[inner], _PARAMETERS[inner])
        _check_grammar(document, (name, "grammar"), value.get("grammar"))
    elif name == "response_format":
        _check_grammar(document, (name,), value)
    elif name == "messages":
        for number, message in enumerate(value):
            if "role" not in message:
                raise document.mismatch((name, number), "missing field `role`")
            content, calls = message.get("content"), message.get("tool_calls")
            if not isinstance(content, (str, list)) and not isinstance(calls, list):
                raise document.mismatch((name, number), "no variant of enum MessageBody found in flattened data")


def _check_grammar(document: Document, path: Path, value: Any) -> None:
    if value is None:
        return
    for missing in ("type", "value"):
        if missing not in value:
            raise document.mismatch(path, f"missing field `{missing}`")
    if value["type"] not in _GRAMMARS:
        problem = f"unknown variant `{value['type']}`, expected one of `json`, `regex`, `json_schema`"
        raise document.mismatch((*path, "type"), problem)


def _check_prompt(document: Document, value: Any) -> None:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise document.mismatch(("prompt",), "data did not match any variant of untagged enum PromptDeserializer")
    if not texts:
        raise document.mismatch(("prompt",), "Empty array detected. Do not use an empty array for the prompt.")


# -- what is asked for -------------------------------------------------------------------------------------------------


def read(route: str, body: dict[str, Any], version: Version, limits: Limits, *, template: bool) -> Order:
    """The request as an order. Raises Refusal for what is refused with a real status, stream or not."""
    if route == "native":
        # Without the whole object sampling is on; with it, off unless asked for.
        parameters = dict(body.get("parameters", {"do_sample": True}))
        inputs = body["inputs"]
        return Order(route, bool(body.get("stream")), [Job(inputs, parameters, inputs)], body)
    parameters = _parameters(body, version)
    if route == "completions":
        prompts = [body["prompt"]] if isinstance(body["prompt"], str) else body["prompt"]
        if body.get("suffix") is not None:
            text = "Suffix is not supported and can be achieved by preprocessing the prompt."
            raise Refusal(text, "suffix not supported")
        if len(prompts) > limits.max_client_batch_size:
            text = f"Number of prompts exceeds the maximum allowed batch size of {limits.max_client_batch_size}"
            raise Refusal(text, "batch size exceeded")
        jobs = [Job(prompt, dict(parameters), prompt) for prompt in prompts]
    else:
        _check_tools(body)
        if not template:
            raise Refusal("Template error: template not found", "template_error")
        penalty = body.get("presence_penalty")
        parameters["repetition_penalty"] = None if penalty is None else penalty + 2
        parameters["grammar"] = body.get("response_format")
        parameters["top_n_tokens"] = body.get("top_logprobs")
        messages = body["messages"]
        jobs = [Job(render(messages), parameters, chat_words(messages))]
    return Order(route, bool(body.get("stream")), jobs, body)


def render(messages: Sequence[dict[str, Any]]) -> str:
    """The prompt that the chat template makes of a conversation."""
    turns = [f"<|{each['role']}|>\n{text_of(each.get('content'))}</s>\n" for each in messages]
    return "".join(turns) + "<|assistant|>\n"


def _parameters(body: dict[str, Any], version: Version) -> dict[str, Any]:
    temperature = body.get("temperature")
    greedy = temperature == 0 and version.since(2, 0, 2)
    limit = body.get("max_tokens")
    return {
        "temperature": None if greedy else temperature,
        "do_sample": not greedy,
        "repetition_penalty": body.get("repetition_penalty"),
        "frequency_penalty": body.get("frequency_penalty"),
        "top_p": body.get("top_p"),
        # The second name is read since 3.0.2.
        "max_new_tokens": body.get("max_completion_tokens") if limit is None and version.since(3, 0, 2) else limit,
        "stop": body.get("stop") or [],
        "seed": body.get("seed"),
        "details": True,
    }


def _check_tools(body: dict[str, Any]) -> None:
    tools = body.get("tools")
    if tools is not None and body.get("response_format") is not None:
        raise Refusal("Tool error: Grammar and tools are mutually exclusive", "tool_error")
    choice = body.get("tool_choice")
    name = choice["function"]["name"] if isinstance(choice, dict) else choice
    if tools and name not in (None, "auto", "none", "required", *(tool["function"]["name"] for tool in tools)):
        raise Refusal(f"Tool error: Tool with name {name} not found", "tool_error")
