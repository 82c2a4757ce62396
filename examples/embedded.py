"""A real llama.cpp server inside your script: no download, no GPU. For trying things out, and for tests.

pip install "worker-adapters[demo]"
python examples/embedded.py
"""

from worker_adapters import StreamTruncated, connect
from worker_adapters.embedded import EmbeddedLlamaCpp

with EmbeddedLlamaCpp() as server, connect("llamacpp", server.url) as engine:
    props = engine.props()
    print(f"{engine.health().state}: {props.slots_total} slots of {props.context_size} tokens at {server.url}")

    # Its model recites one paragraph, whatever you ask.
    completion = engine.submit("Who are you?").result()
    print(completion.text)
    print(f"[{completion.finish_reason}: {completion.metrics.tokens_out} tokens]")

    # A server of one's own can be killed, to see what one's code makes of it.
    with engine.submit("Go on for ever.", max_tokens=100_000, extra={"ignore_eos": True}) as stream:
        try:
            for frame in stream:
                if frame.type == "token" and frame.index == 9:
                    server.kill()
        except StreamTruncated as error:
            print(f"[{error.code} after {error.tokens_seen} tokens]")

    # start() brings it back on the same port.
    server.start()
    print(f"back, and {engine.health().state}")
