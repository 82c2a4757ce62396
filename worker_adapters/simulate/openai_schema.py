"""A small deterministic instance of a JSON schema: what a simulated model says when it is held to one."""

from __future__ import annotations

import json
import re
from typing import Any

_PIECE = re.compile(r'"(?:[^"\\]|\\.)*"|[^"]')
_TEXTS = {
    "date": "2024-02-29",
    "date-time": "2024-02-29T12:00:00Z",
    "email": "owl@oak.example",
    "uri": "http://oak.example",
}


def instance(schema: Any, root: Any = None) -> Any:
    """A value that fits the schema: its first choice everywhere, required and optional properties alike."""
    root = schema if root is None else root
    if not isinstance(schema, dict):
        return None
    if "$ref" in schema:
        return instance(_resolve(root, str(schema["$ref"])), root)
    for key in ("anyOf", "oneOf"):
        if schema.get(key):
            return instance(schema[key][0], root)
    if schema.get("allOf"):
        merged = [instance(part, root) for part in schema["allOf"]]
        return {name: value for part in merged if isinstance(part, dict) for name, value in part.items()}
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]
    return _of_type(schema, root)


def _of_type(schema: dict[str, Any], root: Any) -> Any:
    kind = schema.get("type", "object" if "properties" in schema else "string")
    kind = kind[0] if isinstance(kind, list) else kind
    if kind == "object":
        return {name: instance(part, root) for name, part in (schema.get("properties") or {}).items()}
    if kind == "array":
        return [instance(schema.get("items") or {}, root)] * max(1, int(schema.get("minItems", 1)))
    if kind in ("integer", "number"):
        least = schema.get("minimum", schema.get("exclusiveMinimum", 6) + 1)
        return min(least, schema["maximum"]) if "maximum" in schema else least
    if kind == "boolean":
        return True
    if kind == "null":
        return None
    text = _TEXTS.get(str(schema.get("format")), "the quick brown fox")
    return text.ljust(int(schema.get("minLength", 0)), "x")[: schema.get("maxLength")]


def _resolve(root: Any, pointer: str) -> Any:
    value = root
    for name in pointer.removeprefix("#/").split("/"):
        value = value.get(name, {}) if isinstance(value, dict) else {}
    return value


def pieces(value: Any) -> tuple[str, ...]:
    """The JSON text of a value in token-sized pieces: each string and each other character on its own."""
    return tuple(_PIECE.findall(json.dumps(value, ensure_ascii=False)))
