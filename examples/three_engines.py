"""One prompt, several engines: the same frames, the same metrics, the same errors; one that is down stops no other.

python examples/three_engines.py                    on three simulated engines: no server, no key
python examples/three_engines.py llamacpp=http://localhost:8081 vllm=http://localhost:8000 auto=http://gpu-box:8000

Name a model behind a #, as OpenAI wants it: openai=https://api.openai.com/v1#gpt-4o-mini. The key of each engine, if it
wants one, is in OPENAI_API_KEY, VLLM_API_KEY and so on.
"""

import os
import sys
from contextlib import ExitStack

from worker_adapters import WorkerError, connect
from worker_adapters.simulate import LlamaCppSimulator, OpenAISimulator, VllmSimulator

QUESTION = [{"role": "user", "content": "Say in one sentence what a fox is."}]


def ask(name: str, url: str | None, model: str | None) -> bool:
    """Stream one answer; False if there is none."""
    print(f"--- {name}")
    key = os.environ.get(f"{name.upper()}_API_KEY")
    try:
        with connect(name, url, model=model, api_key=key) as engine:  # "auto" asks the server what it is
            for frame in engine.submit(QUESTION, max_tokens=64):
                if frame.type == "started":
                    print(f"[{frame.engine} {frame.engine_version}, {frame.model}]")
                elif frame.type == "token":
                    print(frame.text, end="", flush=True)
                elif frame.type == "end":
                    told = frame.metrics
                    tokens = f"{told.tokens_in} tokens in, {told.tokens_out} out ({told.counts})"
                    times = f"first after {told.first_token_ms or 0:.0f} ms, all after {told.total_ms:.0f} ms"
                    print(f"\n[{frame.finish_reason}: {tokens}; {times}]")
        return True
    except WorkerError as error:
        if error.tokens_seen:
            print()
        again = "may be tried again" if error.retriable else "is not to be tried again"
        print(f"[{type(error).__name__} after {error.tokens_seen} tokens, {again}: {error.message}]")
        return False


with ExitStack() as stack:
    named = [word for word in sys.argv[1:] if word != "--simulated"]
    if not named:
        llamacpp, vllm, openai = map(stack.enter_context, (LlamaCppSimulator(), VllmSimulator(), OpenAISimulator()))
        named = [f"llamacpp={llamacpp.url}", f"vllm={vllm.url}", f"openai={openai.base_url}#gpt-4o-mini"]
    answered = []
    for place in named:
        engine_name, _, rest = place.partition("=")
        address, _, model_name = rest.partition("#")
        answered.append(ask(engine_name, address or None, model_name or None))
    sys.exit(0 if all(answered) else 1)
