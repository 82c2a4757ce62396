"""The recorded toy vocabulary: bytes from id 3, words from 259; how it counts, echoes and shows a prompt."""

from __future__ import annotations

from typing import Any

from .recital import SENTENCE


def count_tokens(text: str) -> int:
    """Prompt tokens of a text: BOS and one a byte, but " a" is one word of the recorded vocabulary."""
    marked = _marked(text)
    return 1 + len(marked.encode()) - 3 * marked.count("\u2581a") if text else 1


def echo(text: str) -> str:
    """The prompt as the engine gives it back: its tokens' texts, byte tokens of the space mark unchanged."""
    return "<s>" + _marked(text).replace("\u2581a", " a") if text else "<s>"


def _marked(text: str) -> str:
    return "\u2581" + text.replace(" ", "\u2581")


def tokenize(body: dict[str, Any]) -> dict[str, Any]:
    """The answer to POST /tokenize: ids, or ids with pieces (bytes that are no text come as arrays)."""
    content = body.get("content", "")
    marked = _marked(str(content)).encode() if content else b""
    ids = [1] if body.get("add_special") else []
    while marked:
        if marked.startswith(b"\xe2\x96\x81a"):
            ids.append(259 + SENTENCE.index(" a"))
            marked = marked[4:]
        else:
            ids.append(marked[0] + 3)
            marked = marked[1:]
    if not body.get("with_pieces"):
        return {"tokens": ids}
    return {"tokens": [{"id": number, "piece": _piece(number)} for number in ids]}


def detokenize(body: dict[str, Any]) -> dict[str, Any]:
    """The answer to POST /detokenize."""
    parts = [_piece(int(number)) for number in body.get("tokens", [])]
    raw = b"".join(part.encode() if isinstance(part, str) else bytes(part) for part in parts)
    return {"content": raw.decode("utf-8", "replace")}


def _piece(number: int) -> str | list[int]:
    if number < 3:
        return ("<unk>", "<s>", "</s>")[number]
    if number < 259:
        byte = number - 3
        return chr(byte) if byte < 0x80 else [byte]
    return SENTENCE[number - 259] if number - 259 < len(SENTENCE) else ""
