"""What a user writes, for mypy: frames are told apart by ``type``, errors by class. Checked by `tox -e types`."""

from worker_adapters import WorkerTimeout, connect

with connect("llamacpp", "http://localhost:8081") as engine:
    for frame in engine.submit("The quick brown", max_tokens=64):
        if frame.type == "token":
            print(frame.text, end="", flush=True)
    completion = engine.submit([{"role": "user", "content": "hi"}]).result()
    print(completion.text.upper(), completion.metrics.tokens_per_second)
    try:
        for tick in engine.submit("x", job_id="a").ticks(every=5):
            if tick is None:
                continue
            if tick.type == "end":
                print(tick.finish_reason, tick.metrics.tokens_out)
            elif tick.type == "tool_call":
                print(tick.arguments)
    except WorkerTimeout as error:
        print(error.clock, error.partial_text)
