"""Stream an answer, token by token.

python examples/stream.py                                  on a simulated engine: no server, no key
python examples/stream.py http://localhost:8081 [MODEL]    on yours; its key, if it wants one, in API_KEY
"""

import os
import sys

from worker_adapters import WorkerError, connect
from worker_adapters.simulate import LlamaCppSimulator

yours = [word for word in sys.argv[1:] if word != "--simulated"]

with LlamaCppSimulator(delay=0.03) as sim:
    url, model = [*(yours or [sim.url]), None][:2]
    try:
        # "auto" asks the server what it is; connect("llamacpp", url) spares the question. Nothing below changes.
        with connect("auto", url, model=model, api_key=os.environ.get("API_KEY")) as engine:
            for frame in engine.submit("The quick brown", max_tokens=64):
                if frame.type == "token":
                    print(frame.text, end="", flush=True)
                elif frame.type == "end":
                    told = frame.metrics
                    print(f"\n[{frame.finish_reason}: {told.tokens_out} tokens in {told.total_ms:.0f} ms]")
    except WorkerError as error:
        # One class an error, whatever the engine; error.retriable says whether to try again.
        sys.exit(f"\n{error.code} after {error.tokens_seen} tokens: {error.message}")
