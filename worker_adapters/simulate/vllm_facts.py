"""Bodies and texts of vLLM's HTTP server as recorded with 0.32.0."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from .openai_request import chat_words, count_chat, messages_of
from .openai_script import token_id
from .recital import SENTENCE

FINGERPRINT = "vllm-{}-a548cd6f"
ENGINE_DEAD = "EngineCore encountered an issue. See stack trace (above) for the root cause."
QUEUE_FULL = (
    "The engine is currently busy and cannot accept new requests. Please try again later or on a different instance."
)
SCALE_OUT_OFF = "Scale-out endpoints are disabled. Restart vllm serve with --enable-scale-out to enable them."

# HTTP status -> the type of its error object and a message the engine gives with it.
ERRORS: dict[int, tuple[str, str]] = {
    400: ("BadRequestError", "temperature must be non-negative, got -1.0. (parameter=temperature, value=-1.0)"),
    401: ("Unauthorized", "Unauthorized"),
    403: ("PermissionDeniedError", SCALE_OUT_OFF),
    404: ("NotFoundError", "The model `nope` does not exist. Valid aliases: recite."),
    500: ("InternalServerError", "Internal server error"),
    501: ("NotImplementedError", "Not implemented"),
    503: ("Service Unavailable", QUEUE_FULL),
}


def models(names: Sequence[str], *, root: str, n_ctx: int, created: int) -> dict[str, Any]:
    """The body of /v1/models: one card a served name."""
    return {"object": "list", "data": [_card(name, root, n_ctx, created) for name in names]}


def _card(name: str, root: str, n_ctx: int, created: int) -> dict[str, Any]:
    permission = {
        "id": "modelperm-" + secrets.token_hex(8),
        "object": "model_permission",
        "created": created,
        "allow_create_engine": False,
        "allow_sampling": True,
        "allow_logprobs": True,
        "allow_search_indices": False,
        "allow_view": True,
        "allow_fine_tuning": False,
        "organization": "*",
        "group": None,
        "is_blocking": False,
    }
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "vllm",
        "root": root,
        "parent": None,
        "max_model_len": n_ctx,
        "permission": [permission],
    }


def tokenize(body: dict[str, Any], n_ctx: int) -> dict[str, Any]:
    """The answer to POST /tokenize: a word is a token; a chat has an end token (0) after each message."""
    words = str(body.get("prompt") or "").split()
    ids = [token_id(" " + word) for word in words]
    if "messages" in body:
        messages = messages_of(body)
        words = chat_words(messages).split()
        ids = [token_id(" " + word) for word in words]
        ids += [0] * (count_chat(messages) - len(ids))
    shown = ["\u2581" + word for word in words] if body.get("return_token_strs") else None
    return {"count": len(ids), "max_model_len": n_ctx, "tokens": ids, "token_strs": shown}


def detokenize(body: dict[str, Any]) -> dict[str, Any]:
    """The answer to POST /detokenize."""
    words = [SENTENCE[number - 3] for number in body.get("tokens", ()) if 0 <= number - 3 < len(SENTENCE)]
    return {"prompt": "".join(words)}
