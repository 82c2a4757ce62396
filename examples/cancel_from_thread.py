"""Cancel a job from another thread while this one waits for its next token. The engine is free a moment later.

python examples/cancel_from_thread.py http://localhost:8081
"""

import sys
import threading

from worker_adapters import connect

url = sys.argv[1] if len(sys.argv) > 1 else "http://localhost:8081"

with connect("llamacpp", url) as engine:
    # llama.cpp's own option, so that the answer does not end by itself.
    stream = engine.submit("Count, and never stop.", max_tokens=100_000, extra={"ignore_eos": True})

    # Any thread may do it, or a signal handler; engine.cancel(stream.job_id) is the same for who only knows the id.
    stopper = threading.Thread(target=stream.cancel)

    with stream:  # guarantees that the engine is freed, whatever happens in the loop
        for frame in stream:
            if frame.type == "token":
                print(frame.text, end="", flush=True)
                if frame.index == 20:
                    stopper.start()
            elif frame.type == "end":  # a cancel is an ordinary end, never an exception
                print(f"\n[{frame.finish_reason} after {frame.metrics.tokens_out} tokens]")

    stopper.join()

    # What came before the cancel is not lost.
    partial = stream.result()
    print(f"[kept {len(partial.text)} characters; cancelled: {partial.cancelled}]")
