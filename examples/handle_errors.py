"""What can go wrong, and what to do about it: one class an error, the same on every engine.

python examples/handle_errors.py                                  on a simulated engine that misbehaves
python examples/handle_errors.py http://localhost:8081 [MODEL]    on yours: those errors that any engine can be led to
"""

import os
import sys
from typing import Any

from worker_adapters import (
    AuthenticationFailed,
    ContextOverflow,
    InvalidRequest,
    StreamTruncated,
    WorkerAdapter,
    WorkerError,
    WorkerTimeout,
    connect,
)
from worker_adapters.simulate import Fault, LlamaCppSimulator

FAULTS = {"wrong key:": [Fault.status(401)], "cut off:": [Fault.cut_after(3)], "busy:": [Fault.status(429)] * 4}
yours = [word for word in sys.argv[1:] if word != "--simulated"]


def ask(engine: WorkerAdapter, prompt: str = "The quick brown", **fields: Any) -> str:
    try:
        return engine.submit(prompt, **fields).result().text
    except AuthenticationFailed:  # an InvalidRequest too, as the next one is: the special ones stand first
        return "look after the key: no request will do better"
    except ContextOverflow as error:
        return f"shorten it: it has {error.prompt_tokens} tokens, and {error.context_size} fit"
    except InvalidRequest as error:
        return f"mend the request: {error.message}"
    except WorkerTimeout as error:
        return f"waited long enough: {error.clock} fired after {error.tokens_seen} tokens"
    except StreamTruncated as error:
        return f"keep what came, or ask anew: {error.partial_text!r}"
    except WorkerError as error:  # down, busy, out of memory: the adapter has tried again as often as it makes sense
        return f"{error.code}, {'try later' if error.retriable else 'do not repeat it blindly'}: {error.message}"


with LlamaCppSimulator(n_ctx=512, prompt_delay=0.3) as sim:
    url, model = [*(yours or [sim.url]), None][:2]
    try:
        with connect("auto", url, model=model, api_key=os.environ.get("API_KEY"), retry={"base": 0.01}) as engine:
            print("no such value:", ask(engine, temperature=-1))
            print("too long:", ask(engine, "word " * (engine.props().context_size or 1_000_000)))
            for what, faults in FAULTS.items() if not yours else ():
                sim.misbehave(*faults)
                print(what, ask(engine))
            print("too slow:", ask(engine, timeouts={"first_token": 0.001}))
            print("no trouble:", ask(engine))
    except WorkerError as error:
        sys.exit(f"{error.code}: {error.message}")
