"""Which engines run on this machine? Asks the usual addresses, all at once, what answers there.

python examples/local_engines.py                          at the usual addresses
python examples/local_engines.py --simulated              at two simulated engines, and where nothing listens
python examples/local_engines.py http://gpu-box:8000 ...  at yours
"""

import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from worker_adapters import EngineUnavailable, WorkerError, connect, detect
from worker_adapters.simulate import LlamaCppSimulator, VllmSimulator

#: llama.cpp; vLLM, and Triton, which shares it; TGI; Ollama; LM Studio; SGLang; LiteLLM.
PORTS = (8080, 8081, 8000, 3000, 11434, 1234, 30000, 4000)


def look(url: str) -> str | None:
    """What answers at ``url``, in one line; None: nothing does."""
    try:
        name = detect(url)  # a few GETs, never a generation
        with connect("auto", url) as engine:
            health = engine.health()
            if not health.ready:
                return f"{url}: {name}, {health.state}: {health.message}"
            props = engine.props()
            return f"{url}: {name} {props.engine_version}, {health.state}, with {props.model or 'several models'}"
    except EngineUnavailable as error:
        return None if error.phase == "connect" else f"{url}: {error.message}"
    except WorkerError as error:  # something else listens there, or it wants a key
        return f"{url}: {error.code}: {error.message}"


with ExitStack() as stack:
    urls = sys.argv[1:] or [f"http://127.0.0.1:{port}" for port in PORTS]
    if urls == ["--simulated"]:
        urls = [stack.enter_context(sim).url for sim in (LlamaCppSimulator(), VllmSimulator())]
        urls.append("http://127.0.0.1:9")
    with ThreadPoolExecutor() as threads:
        found = [line for line in threads.map(look, urls) if line]
    print("\n".join(found) or f"nothing at {', '.join(urls)}; worker-adapters demo brings an engine of its own")
    sys.exit(0 if found else 1)
