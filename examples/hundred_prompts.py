"""A hundred prompts through a pool, as fast as its engines take them, with a progress bar. A failed one stops nothing.

python examples/hundred_prompts.py                                   on three simulated engines of different speed
python examples/hundred_prompts.py pools.toml POOL < prompts.txt     on yours: a line, a prompt; an answer, a line
"""

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

from rich.console import Console
from rich.progress import Progress

from worker_adapters import AdapterHost, TaskRequest, WorkerError
from worker_adapters.simulate import LlamaCppSimulator, TgiSimulator, VllmSimulator


def simulated(stack: ExitStack) -> dict[str, Any]:
    """A config of engines that are not there."""
    sims = LlamaCppSimulator(slots=8, delay=0.01), VllmSimulator(delay=0.005), TgiSimulator(delay=0.02)
    urls = [stack.enter_context(sim).url for sim in sims]
    engines = dict(zip(("llamacpp", "vllm", "tgi"), urls, strict=True))
    return {"pools": {"chat": {engine: {"engine": engine, "url": url} for engine, url in engines.items()}}}


def tasks(prompts: list[str]) -> Iterator[TaskRequest]:
    """Drawn as places come free, so it may as well be a file that fits into no memory."""
    for number, prompt in enumerate(prompts):
        yield TaskRequest(job_id=f"prompt-{number}", prompt=prompt, max_tokens=32, priority="batch")


with ExitStack() as stack:
    yours = [word for word in sys.argv[1:] if word != "--simulated"]
    config: Any
    if yours:
        config, pool = yours
        prompts = sys.stdin.read().splitlines()
    else:
        config, pool = simulated(stack), "chat"
        prompts = [f"Tell me {number} things about foxes." for number in range(100)]
    host = stack.enter_context(AdapterHost.from_config(config))
    finished = host.map(tasks(prompts), pool=pool, window=24, ordered=False)  # ordered=True: as the prompts come
    tokens = failed = 0
    # Onto a terminal rich prints for us, above its bar; into a file or a pipe the answers go as they are.
    with Progress(console=Console(stderr=True), redirect_stdout=sys.stdout.isatty()) as bar:
        for job in bar.track(finished, total=len(prompts), description="asking"):
            try:
                done = job.result()
                tokens += done.metrics.tokens_out
                print(json.dumps({"id": job.job_id, "text": done.text}))
            except WorkerError as error:
                failed += 1
                print(json.dumps({"id": job.job_id, "error": error.code, "message": error.message}))
    print(f"{len(prompts) - failed} answers, {failed} errors, {tokens} tokens", file=sys.stderr)
    sys.exit(1 if failed else 0)
