"""JSON for the plain values (tasks, props, health, completions): dataclasses-json, loaded on first use.

It costs 70 ms to import and 20-30 us a call: fine once a request, never once a token, so frames do not use it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from worker_adapters.late import loading


def _plain(value: Any) -> Any:
    """What msgspec does not take by itself: subclasses of str, int and float, such as numpy's and Django's."""
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int) and not isinstance(value, bool):  # a bool comes here only as a key, which JSON has not
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


#: JSON in UTF-8, fast: what request bodies are written with.
encode = msgspec.json.Encoder(enc_hook=_plain).encode

Self = TypeVar("Self", bound="JsonValue")


def shaped(value: Any, shape: Any) -> Any:
    """``value`` as a ``shape``: a type that msgspec converts JSON to; None if it is none."""
    try:
        return msgspec.convert(value, shape, strict=False)
    except msgspec.ValidationError:
        return None


class JsonValue:
    """Mixin for frozen dataclasses: ``to_dict``, ``from_dict``, ``to_json``, ``from_json``."""

    def to_dict(self) -> dict[str, Any]:
        """Every field as plain JSON values; nested values become dicts."""
        with loading:
            from dataclasses_json import DataClassJsonMixin  # 70 ms, see above

        return DataClassJsonMixin.to_dict(self)  # type: ignore[arg-type]  # works on any dataclass instance

    @classmethod
    def from_dict(cls: type[Self], data: Mapping[str, Any]) -> Self:
        """The value that ``to_dict`` wrote, validated again.

        :raises ValueError: an unknown field; for a task it is an ``InvalidRequest``.
        """
        with loading:
            from dataclasses_json import DataClassJsonMixin  # 70 ms, see above

        if not isinstance(data, Mapping):
            raise ValueError(f"{cls.__name__}: want a mapping")
        known = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]  # subclasses are dataclasses
        unknown = data.keys() - known
        if unknown:
            raise cls._unknown_field(sorted(map(str, unknown))[0])
        try:
            made: Self = DataClassJsonMixin.from_dict.__func__(cls, dict(data))  # type: ignore[attr-defined]  # unbound
        except KeyError as error:
            raise ValueError(f"{cls.__name__}: missing field {error.args[0]!r}") from None
        return made

    @classmethod
    def _unknown_field(cls, name: str) -> ValueError:
        return ValueError(f"{cls.__name__}: unknown field {name!r}")

    def to_json(self) -> str:
        """``to_dict`` as JSON text."""
        return json.dumps(self.to_dict(), allow_nan=False)

    @classmethod
    def from_json(cls: type[Self], text: str | bytes) -> Self:
        """``from_dict`` of JSON text."""
        return cls.from_dict(json.loads(text))
