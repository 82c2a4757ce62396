"""Stream an answer, token by token.

python examples/stream.py http://localhost:8081
"""

import sys

from worker_adapters import WorkerError, connect

url = sys.argv[1] if len(sys.argv) > 1 else "http://localhost:8081"

with connect("llamacpp", url) as engine:  # or "mock", which needs no server: nothing below changes
    try:
        for frame in engine.submit("The quick brown", max_tokens=64):
            if frame.type == "token":
                print(frame.text, end="", flush=True)
            elif frame.type == "end":
                told = frame.metrics
                print(f"\n[{frame.finish_reason}: {told.tokens_out} tokens, first after {told.first_token_ms:.0f} ms]")
    except WorkerError as error:
        # One class an error, whatever the engine; error.retriable says whether to try again.
        sys.exit(f"\n{error.code} after {error.tokens_seen} tokens: {error.message}")
