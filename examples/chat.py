"""A conversation: each answer becomes a turn of the next request. Ctrl-C cuts an answer short, Ctrl-D leaves.

python examples/chat.py                                  with a simulated engine, which always says the same
python examples/chat.py http://localhost:8081 [MODEL]    with yours; its key, if it wants one, in API_KEY
"""

import os
import signal
import sys

from worker_adapters import Message, WorkerAdapter, WorkerError, connect
from worker_adapters.simulate import LlamaCppSimulator

yours = [word for word in sys.argv[1:] if word != "--simulated"]


def answered(engine: WorkerAdapter, turns: list[Message]) -> list[Message]:
    """The conversation with the engine's answer at its end; as it was, if there is none."""
    # One session: an engine that can, keeps what it has already read.
    with engine.submit(turns, max_tokens=1024, session_id="chat") as stream:
        before = signal.signal(signal.SIGINT, lambda number, frame: stream.cancel())  # the engine is free at once
        try:
            for text in stream.texts():
                print(text, end="", flush=True)
            done = stream.result()  # of a cancelled answer, what came of it
            print(" [cut short]" if done.cancelled else "")
            return [*turns, done.message()] if done.text else turns[:-1]
        except WorkerError as error:
            print(f"[{error.code}: {error.message}]")
            return turns[:-1]
        finally:
            signal.signal(signal.SIGINT, before)


turns: list[Message] = []
with LlamaCppSimulator(delay=0.05) as sim:
    url, model = [*(yours or [sim.url]), None][:2]
    try:
        with connect("auto", url, model=model, api_key=os.environ.get("API_KEY")) as engine:
            while True:
                turns = answered(engine, [*turns, Message("user", input("> "))])
    except WorkerError as error:
        sys.exit(f"{error.code}: {error.message}")
    except (EOFError, KeyboardInterrupt):
        print(f"\n[{len(turns)} turns]")
