"""How long an engine may take: four clocks, and an error that says which of them fired.

python examples/timeouts.py                                  on a simulated engine: 0.3 s for the prompt, 0.05 s a token
python examples/timeouts.py http://localhost:8081 [MODEL]    on yours; its key, if it wants one, in API_KEY
"""

import os
import sys
import time
from typing import Any

from worker_adapters import WorkerAdapter, WorkerError, WorkerTimeout, connect
from worker_adapters.simulate import LlamaCppSimulator

yours = [word for word in sys.argv[1:] if word != "--simulated"]


def ask(engine: WorkerAdapter, clocks: dict[str, Any], pause: float = 0.0) -> None:
    """One job under clocks of its own: seconds, or None for no limit."""
    began = time.monotonic()
    try:
        with engine.submit("The quick brown", max_tokens=8, timeouts=clocks) as stream:
            for _ in stream.texts():
                time.sleep(pause)
        told = "ended in time"
    except WorkerTimeout as error:  # .clock says which; what came before is kept, and the engine is freed
        told = f"{error.clock} fired, with {error.partial_text!r} by then"
    print(f"{clocks or 'as connected'}: {told}, after {time.monotonic() - began:.2f} s")


with LlamaCppSimulator(prompt_delay=0.3, delay=0.05) as sim:
    url, model = [*(yours or [sim.url]), None][:2]
    try:
        # Clocks of the adapter hold for all its jobs. connect covers DNS, TCP, proxy and TLS.
        clocks = {"connect": 3, "first_token": 60, "between_tokens": 30, "total": 300}
        with connect("auto", url, model=model, api_key=os.environ.get("API_KEY"), timeouts=clocks) as engine:
            ask(engine, {})
            ask(engine, {"first_token": 0.02})  # queueing and reading the prompt are in it
            ask(engine, {"between_tokens": 0.01})
            ask(engine, {"total": 0.5})
            # What takes long here is this loop, not the engine: no waiting clock runs meanwhile.
            ask(engine, {"between_tokens": 5}, pause=0.1)
    except WorkerError as error:
        sys.exit(f"{error.code}: {error.message}")
