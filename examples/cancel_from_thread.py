"""Cancel a job from another thread while this one waits for its next token. The engine is free a moment later.

python examples/cancel_from_thread.py                                  on a simulated engine that never ends
python examples/cancel_from_thread.py http://localhost:8081 [MODEL]    on yours; its key, if it wants one, in API_KEY
"""

import os
import sys
import threading

from worker_adapters import WorkerError, connect
from worker_adapters.simulate import LlamaCppSimulator

yours = [word for word in sys.argv[1:] if word != "--simulated"]

with LlamaCppSimulator(endless=True, delay=0.03) as sim:
    url, model = [*(yours or [sim.url]), None][:2]
    try:
        with connect("auto", url, model=model, api_key=os.environ.get("API_KEY")) as engine:
            stream = engine.submit("Count from one to a million.", max_tokens=100_000)

            # Any thread may do it, or a signal handler; engine.cancel(stream.job_id) is the same for who knows the id.
            stopper = threading.Thread(target=stream.cancel)

            with stream:  # guarantees that the engine is freed, whatever happens in the loop
                for frame in stream:
                    if frame.type == "token":
                        print(frame.text, end="", flush=True)
                        if frame.index == 20:
                            stopper.start()
                    elif frame.type == "end":  # a cancel is an ordinary end, never an exception
                        print(f"\n[{frame.finish_reason} after {frame.metrics.tokens_out} tokens]")

            # What came before the cancel is not lost.
            partial = stream.result()
            print(f"[kept {len(partial.text)} characters; cancelled: {partial.cancelled}]")
    except WorkerError as error:
        sys.exit(f"\n{error.code} after {error.tokens_seen} tokens: {error.message}")
