"""Let a model call a function of yours, until it has its answer.

python examples/tool_loop.py                                  on a simulated vLLM: no server, no key
python examples/tool_loop.py http://localhost:8000 [MODEL]    on yours; its key, if it wants one, in API_KEY
"""

import json
import os
import sys
from datetime import date

from worker_adapters import Message, ToolCall, WorkerAdapter, WorkerError, connect
from worker_adapters.simulate import VllmSimulator

ROUNDS = 5  # a model may call for ever: somebody has to stop it
DAY = {"type": "string", "description": "YYYY-MM-DD"}
PARAMETERS = {"type": "object", "properties": {"first": DAY, "last": DAY}, "required": ["first", "last"]}
ABOUT = {"name": "days_between", "description": "Number of days from first to last.", "parameters": PARAMETERS}


def days_between(first: str, last: str) -> int:
    return (date.fromisoformat(last) - date.fromisoformat(first)).days


def result_of(call: ToolCall) -> str:
    """What the function says. A model wrote the call: what is wrong with it is told to it, so that it may mend it."""
    try:
        result = str({"days_between": days_between}[call.name](**json.loads(call.arguments)))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        result = f"error: {type(error).__name__}: {error}"
    print(f"[{call.name} {call.arguments} -> {result}]")
    return result


def ask(engine: WorkerAdapter, question: str) -> str:
    messages = [Message("user", question)]
    for _ in range(ROUNDS):
        answer = engine.submit(messages, tools=[{"type": "function", "function": ABOUT}]).result()
        if not answer.tool_calls:
            return answer.text
        messages.append(answer.message())
        messages += [Message("tool", result_of(call), tool_call_id=call.call_id) for call in answer.tool_calls]
    sys.exit(f"no answer in {ROUNDS} rounds")


yours = [word for word in sys.argv[1:] if word != "--simulated"]
scripted = ("days_between", ['{"first": "2024-02-29"', ', "last": "2026-02-28"}'])
with VllmSimulator(["It is", " 730", " days."], tool_calls=[scripted]) as sim:
    url, model = [*(yours or [sim.url]), None][:2]
    try:
        with connect("auto", url, model=model, api_key=os.environ.get("API_KEY")) as engine:
            print(ask(engine, "How many days is it from 2024-02-29 to 2026-02-28? Use the tool."))
    except WorkerError as error:
        sys.exit(f"{error.code}: {error.message}")
