"""The real llama.cpp inside your script, on a GGUF file: no server to start, no GPU needed.

pip install "worker-adapters[demo]"
python examples/embedded_gguf.py                       on a model of 2 MB that is made on the spot and recites
python examples/embedded_gguf.py FILE.gguf [PROMPT]    on yours
"""

import os
import sys

from worker_adapters import WorkerError, connect
from worker_adapters.embedded import EmbeddedLlamaCpp, EmbeddedServerError

path = sys.argv[1] if sys.argv[1:] else None
prompt = " ".join(sys.argv[2:]) or "Who are you?"
threads = max(1, (os.cpu_count() or 2) // 2)  # more than there are idle cores makes it slower, not faster

try:
    # A process of its own, which ends with this block, and with this script, however it ends.
    embedded = EmbeddedLlamaCpp(path, context=4096, slots=1, threads=threads)
    with embedded as server, connect("llamacpp", server.url) as engine:
        props = engine.props()
        print(f"[{engine.health().state}: {props.model}, {props.context_size} tokens of context, at {server.url}]")
        for frame in engine.submit([{"role": "user", "content": prompt}]):
            if frame.type == "token":
                print(frame.text, end="", flush=True)
            elif frame.type == "end":
                print(f"\n[{frame.finish_reason}: {frame.metrics.tokens_out} tokens]")
except (ImportError, OSError, ValueError, EmbeddedServerError, WorkerError) as error:
    sys.exit(f"{type(error).__name__}: {error}")
except KeyboardInterrupt:
    sys.exit(130)  # the server has ended by now, as it does with any exception
