"""Show a sign of life while an engine thinks: proxies and browsers give up on a connection that says nothing.

python examples/heartbeat.py                                  on a simulated engine that thinks for a second
python examples/heartbeat.py http://localhost:8081 [MODEL]    on yours; its key, if it wants one, in API_KEY
"""

import json
import os
import sys
from collections.abc import Iterator

from worker_adapters import TokenStream, WorkerError, connect
from worker_adapters.simulate import LlamaCppSimulator

yours = [word for word in sys.argv[1:] if word != "--simulated"]


def events(stream: TokenStream) -> Iterator[str]:
    """Server-sent events, as a web view returns them. No thread: the reader's own wait is cut into pieces."""
    with stream:  # a browser that leaves closes this generator, and that cancels the job at the engine
        for frame in stream.ticks(every=0.25):
            # None: nothing came for so long, be it in connecting, in the queue, or in the middle of the answer. No
            # clock starts anew for it. (relay(every=0.25) does the same, and makes a last frame of an error.)
            yield ": still waiting\n\n" if frame is None else f"data: {json.dumps(frame.to_dict())}\n\n"


with LlamaCppSimulator(prompt_delay=1.0, delay=0.05) as sim:
    url, model = [*(yours or [sim.url]), None][:2]
    try:
        with connect("auto", url, model=model, api_key=os.environ.get("API_KEY")) as engine:
            for event in events(engine.submit("Once upon a time", max_tokens=6)):
                print(event, end="", flush=True)
    except WorkerError as error:
        sys.exit(f"{error.code}: {error.message}")
