"""Reading a generation request the way llama.cpp reads it: what it refuses, clamps, cuts and ignores."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

from .llamacpp_facts import ERROR_TYPES, SETTINGS, dump, float32
from .llamacpp_text import count_tokens, detokenize, echo

VOCABULARY = 283  # ids of the recorded toy model: 3 control tokens, 256 bytes, then words

_MAX_TOKENS = ("n_predict", "max_completion_tokens", "max_tokens")
_BOOLS = (
    "stream",
    "ignore_eos",
    "cache_prompt",
    "return_tokens",
    "return_progress",
    "timings_per_token",
    "post_sampling_probs",
)
# Soft limits: values outside are moved to the nearest one without a word.
_CLAMPS: dict[str, tuple[float, float]] = {
    "temperature": (0.0, math.inf),
    "top_k": (0, math.inf),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "xtc_probability": (0.0, 1.0),
    "xtc_threshold": (0.0, 1.0),
}
_ANY_OBJECT = {"type": "object", "properties": {"answer": {"type": "string"}}}


class Refusal(Exception):
    """The engine answers with an error status before any token; `extra` are further fields of the error object."""

    def __init__(self, status: int, message: str, kind: str | None = None, **extra: Any) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind or ERROR_TYPES[status]
        self.extra = extra


@dataclass
class Job:
    """A generation request understood: texts, token counts, switches and the settings to echo."""

    prompt: str
    """The prompt as the final event echoes it."""
    words: str
    """The user's own text, for a simulator that echoes its prompt."""
    n_prompt: int
    limit: int | None
    settings: dict[str, Any]
    stop: list[str]
    body: dict[str, Any] = field(repr=False)
    chat: bool = False
    id_slot: int | None = None
    n_probs: int = 0

    def flag(self, name: str, default: bool = False) -> bool:
        """A boolean field of the request; null means the default."""
        value = self.body.get(name)
        return default if value is None else bool(value)

    @property
    def include_usage(self) -> bool:
        """True if the client asked for a usage event."""
        options = self.body.get("stream_options")
        return isinstance(options, dict) and bool(options.get("include_usage"))

    @property
    def schema(self) -> Any:
        """The JSON schema that the answer is held to; None without one."""
        wanted = self.body.get("response_format") if self.chat else None
        if not isinstance(wanted, dict):
            return self.body.get("json_schema")
        if wanted.get("type") == "json_object":
            return wanted.get("schema") or _ANY_OBJECT
        held = wanted.get("json_schema")
        return held.get("schema") if isinstance(held, dict) else None

    @property
    def ping_interval(self) -> float | None:
        """Seconds between SSE comments while the prompt is worked on; 30 by default, None when off."""
        value = self.body.get("sse_ping_interval")
        seconds = int(value) if isinstance(value, (int, float)) else 30
        return seconds if seconds > 0 else None


def load(body: bytes) -> dict[str, Any]:
    """The body's JSON object. Raises Refusal (400) in the engine's wording for what is none."""
    if not body:
        raise _parse_error(
            1,
            1,
            "attempting to parse an empty input; check that your input string or stream contains the expected JSON",
            plain=True,
        )
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_no_constant)
        _refuse_surrogates(value, body)
    except UnicodeDecodeError as error:
        raise _parse_error(1, error.start + 1, "invalid string: ill-formed UTF-8 byte") from error
    except json.JSONDecodeError as error:
        raise _parse_error(error.lineno, error.colno, "unexpected input") from error
    except RecursionError as error:
        raise _parse_error(1, 1, "too deeply nested") from error
    if not isinstance(value, dict):
        raise Refusal(400, f"[json.exception.type_error.304] cannot use at() with {_kind(value)}")
    return value


def read_completion(body: dict[str, Any], *, n_ctx: int, slots: int) -> Job:
    """POST /completion, /completions and /v1/completions."""
    if "prompt" not in body:
        raise Refusal(400, "[json.exception.out_of_range.403] key 'prompt' not found")
    prompt, words, count = _read_prompt(body["prompt"])
    return _finish(Job(prompt, words, count, None, {}, [], body), n_ctx, slots)


def read_chat(body: dict[str, Any], *, n_ctx: int, slots: int) -> Job:
    """POST /v1/chat/completions."""
    texts = read_messages(body)
    if not isinstance(body.get("tools") or [], list):
        raise Refusal(500, f"Failed to parse tools: Expected 'tools' to be an array, got {body['tools']}")
    rendered = render(texts)
    users = [text for role, text in texts if role == "user"]
    job = Job(echo(rendered), users[-1] if users else "", count_tokens(rendered), None, {}, [], body, chat=True)
    return _finish(job, n_ctx, slots)


def render(texts: list[tuple[str, str]]) -> str:
    """The recorded chat template's text for (role, text) pairs."""
    return "".join(f"{role}: {text}\n" for role, text in texts) + "assistant:"


def read_messages(body: dict[str, Any]) -> list[tuple[str, str]]:
    """The (role, text) pairs of a chat request, refused in the engine's own words and statuses (500 for some)."""
    if "messages" not in body:
        raise Refusal(400, "'messages' is required")
    messages = body["messages"]
    if not isinstance(messages, list):
        raise Refusal(400, "Expected 'messages' to be an array")
    texts = []
    for message in messages:
        fields = message if isinstance(message, dict) else {}
        role = fields.get("role")
        if role == "assistant":
            if "content" not in fields and "tool_calls" not in fields:
                raise Refusal(400, "Assistant message must contain either 'content' or 'tool_calls'!")
        elif "content" not in fields:
            raise Refusal(400, "All non-assistant messages must contain 'content'")
        text = _content(fields.get("content"))
        if role is None:
            raise Refusal(500, f"Failed to parse messages: Missing 'role' in message: {dump(message).decode()}")
        if not isinstance(role, str):
            what = f"type must be string, but is {_kind(role)}"
            raise Refusal(500, f"Failed to parse messages: [json.exception.type_error.302] {what}")
        texts.append((role, text))
    return texts


def _content(content: Any) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise Refusal(400, "Expected 'content' to be a string or an array")
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "image_url":
            # Not 400, as one would think.
            raise Refusal(
                500, "image input is not supported - hint: if this is unexpected, you may need to provide the mmproj"
            )
        if kind != "text":
            raise Refusal(400, "unsupported content[].type")
        texts.append(str(part.get("text", "")))
    return "\n".join(texts)


_BAD_PROMPT = (
    '"prompt" elements must be a string, a list of tokens, a JSON object containing a prompt string,'
    " or a list of mixed strings & tokens."
)


def _read_prompt(value: Any) -> tuple[str, str, int]:
    """The echoed prompt, its text and its token count."""
    if isinstance(value, dict) and isinstance(value.get("prompt_string"), str):
        value = value["prompt_string"]
    if isinstance(value, str):
        return echo(value), value, count_tokens(value)
    if not isinstance(value, list):
        raise Refusal(400, _BAD_PROMPT)
    if not value:
        raise Refusal(400, '"prompt" must not be empty')
    if not all(isinstance(part, (str, int)) and not isinstance(part, bool) for part in value):
        raise Refusal(400, _BAD_PROMPT)
    if any(isinstance(part, int) and not 0 <= part < VOCABULARY for part in value):
        raise Refusal(400, "Prompt contains invalid tokens")
    if all(isinstance(part, str) for part in value) and len(value) > 1:
        raise Refusal(501, "several prompts in one request are not simulated")
    texts, count = [], 0
    for number, part in enumerate(value):
        # Token ids get no BOS; a string gets one where it opens the prompt.
        texts.append(_piece_text(part) if isinstance(part, int) else echo(part)[0 if number == 0 else len("<s>") :])
        count += 1 if isinstance(part, int) else count_tokens(part) - (number > 0)
    return "".join(texts), " ".join(part for part in value if isinstance(part, str)), count


def _piece_text(token: int) -> str:
    return str(detokenize({"tokens": [token]})["content"])


def _finish(job: Job, n_ctx: int, slots: int) -> Job:
    """Reads the fields every generation request shares."""
    body = job.body
    job.limit = _limit(body)
    job.stop = _stop(body.get("stop"))
    for name in ("n", "n_cmpl"):
        wanted = 1 if body.get(name) is None else int(_number(body, name))
        if not 1 <= wanted <= slots:
            raise Refusal(400, f"Field '{name}': Value must be between 1 <= value <= {slots}, but got {wanted}")
        if wanted > 1:
            raise Refusal(501, "several results of one request are not simulated")
    for name in _BOOLS:
        if body.get(name) is not None and not isinstance(body[name], bool):
            raise _wrong_type(name, "boolean", body[name])
    grammar = body.get("grammar") or ""
    if isinstance(grammar, str) and grammar.count("(") != grammar.count(")"):
        raise Refusal(400, "Failed to initialize samplers: failed to parse grammar")
    job.settings = _settings(job)
    slot = body.get("id_slot")
    job.id_slot = int(slot) if isinstance(slot, int) and 0 <= slot < slots else None
    if job.chat:
        job.n_probs = int(body.get("top_logprobs") or 0) if job.flag("logprobs") else 0
    else:
        job.n_probs = int(body.get("n_probs") or body.get("logprobs") or 0)
    if job.n_prompt >= n_ctx:
        raise Refusal(
            400,
            f"request ({job.n_prompt} tokens) exceeds the available context size ({n_ctx} tokens), try increasing it",
            "exceed_context_size_error",
            n_prompt_tokens=job.n_prompt,
            n_ctx=n_ctx,
        )
    return job


def _limit(body: dict[str, Any]) -> int | None:
    for name in _MAX_TOKENS:
        if body.get(name) is not None:
            value = int(_number(body, name))
            if value < -1:
                raise Refusal(400, f"Field '{name}': Value must be between -1 <= value <= 2147483647, but got {value}")
            # 0 generates one token in llama.cpp b0-unknown, although its manual says none.
            return None if value == -1 else max(1, value)
    return None


def _stop(value: Any) -> list[str]:
    if value is None:
        return []
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        return []  # a number or an object is ignored
    for word in value:
        if not isinstance(word, str):
            raise _wrong_type("stop", "string", word)
    return list(value)


def _settings(job: Job) -> dict[str, Any]:
    body = job.body
    settings = dict(SETTINGS)
    for name in body.keys() & SETTINGS.keys():
        value, default = body[name], SETTINGS[name]
        if value is None:
            continue
        if isinstance(default, bool) or (isinstance(default, str) and isinstance(value, str)):
            settings[name] = value
        elif isinstance(default, (float, int)):
            low, high = _CLAMPS.get(name, (-math.inf, math.inf))
            number = min(max(_number(body, name), low), high)
            settings[name] = float32(number) if isinstance(default, float) else int(number)
        elif name == "samplers" and isinstance(value, list):
            settings[name] = [sampler for sampler in value if sampler in default]  # unknown names vanish
        elif name == "lora":
            settings[name] = value
    settings["seed"] = int(settings["seed"]) & 0xFFFFFFFF
    asked = next((int(body[name]) for name in _MAX_TOKENS if body.get(name) is not None), -1)
    settings["max_tokens"] = settings["n_predict"] = asked
    settings["stop"] = job.stop
    if settings["ignore_eos"]:
        settings["logit_bias"] = [{"bias": None, "token": 2}]  # minus infinity, which JSON cannot say
    if job.chat:
        settings["chat_format"] = "peg-native"
    return settings


def _number(body: dict[str, Any], name: str) -> float:
    value = body[name]
    if not isinstance(value, (int, float)):  # true counts as 1 here, as in the engine's JSON library
        raise _wrong_type(name, "number", value)
    return value


def _wrong_type(name: str, wanted: str, value: Any) -> Refusal:
    return Refusal(400, f"Field '{name}': [json.exception.type_error.302] type must be {wanted}, but is {_kind(value)}")


def _kind(value: Any) -> str:
    """The name the engine's JSON library has for a value's type."""
    if value is None:
        return "null"
    kinds = {bool: "boolean", int: "number", float: "number", str: "string", list: "array", dict: "object"}
    return kinds[type(value)]


def _parse_error(line: int, column: int, what: str, plain: bool = False) -> Refusal:
    what = what if plain else f"syntax error while parsing value - {what}"
    return Refusal(400, f"[json.exception.parse_error.101] parse error at line {line}, column {column}: {what}")


def _no_constant(name: str) -> Any:
    raise _parse_error(1, 1, f"invalid literal; last read: '{name}'")


def _refuse_surrogates(value: Any, body: bytes) -> None:
    """A JSON escape of half a surrogate pair is an error for the engine, where Python lets it pass."""
    if b"\\ud" not in body.lower():
        return
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise _parse_error(
            1, 1, "invalid string: surrogate U+D800..U+DBFF must be followed by U+DC00..U+DFFF"
        ) from error
