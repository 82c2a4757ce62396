"""Get an answer as a dataclass: its fields make the JSON schema that the engine is held to.

python examples/structured_output.py                                  on a simulated vLLM: no server, no key
python examples/structured_output.py http://localhost:8000 [MODEL]    on yours; its key, if it wants one, in API_KEY
"""

import json
import os
import sys
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from worker_adapters import WorkerError, connect
from worker_adapters.simulate import VllmSimulator

TYPES = {str: "string", int: "integer", float: "number", bool: "boolean"}
REPORT = "The printer on the second floor is on fire. Nobody is hurt, but payroll is due in ten minutes."


@dataclass
class Ticket:
    title: str
    urgency: Literal["high", "low"]
    minutes_left: int
    places: list[str]


def schema(kind: Any) -> dict[str, Any]:
    if get_origin(kind) is Literal:
        return {"type": "string", "enum": [*get_args(kind)]}
    return {"type": "array", "items": schema(*get_args(kind))} if get_origin(kind) is list else {"type": TYPES[kind]}


def fitting(kind: Any, value: Any, place: str) -> Any:
    """The value, if it is of that kind. Not every server holds its model to a schema, so the answer is checked here."""
    if get_origin(kind) is list and isinstance(value, list):
        return [fitting(*get_args(kind), item, place) for item in value]
    fits = value in get_args(kind) if get_origin(kind) is Literal else type(value) is kind
    if not fits and not (kind is float and type(value) is int):
        raise ValueError(f"{place}: want {json.dumps(schema(kind))}")
    return value


yours = [word for word in sys.argv[1:] if word != "--simulated"]
fields = get_type_hints(Ticket)
properties = {name: schema(kind) for name, kind in fields.items()}
wanted = {"type": "object", "properties": properties, "required": [*fields], "additionalProperties": False}
held = {"type": "json_schema", "json_schema": {"name": "Ticket", "strict": True, "schema": wanted}}
with VllmSimulator() as sim:
    url, model = [*(yours or [sim.url]), None][:2]
    try:
        with connect("auto", url, model=model, api_key=os.environ.get("API_KEY")) as engine:
            answer = engine.submit([{"role": "user", "content": f"File this: {REPORT}"}], response_format=held).result()
        told = json.loads(answer.text)
        print(Ticket(**{name: fitting(kind, told[name], name) for name, kind in fields.items()}))
    except WorkerError as error:
        sys.exit(f"{error.code}: {error.message}")
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        sys.exit(f"the answer (finish_reason {answer.finish_reason}) is no Ticket: {type(error).__name__}: {error}")
