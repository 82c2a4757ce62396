"""Ctrl-C, or SIGTERM, cancels every job of a host: the engines are free at once, and what came so far is kept.

python examples/cancel_on_signal.py                          on a simulated engine; an alarm plays Ctrl-C after a second
python examples/cancel_on_signal.py http://localhost:8081    on yours: press Ctrl-C
"""

import signal
import sys
from types import FrameType

from worker_adapters import AdapterHost, connect
from worker_adapters.simulate import LlamaCppSimulator

yours = [word for word in sys.argv[1:] if word != "--simulated"]

with LlamaCppSimulator(endless=True, slots=4, delay=0.02) as sim, AdapterHost() as host:
    host.bind("chat", "r0", connect("auto", *(yours or [sim.url])), max_in_flight=4)

    def stop(number: int, frame: FrameType | None) -> None:
        host.cancel_all()  # made for this: no I/O, no log, no wait

    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
        signal.signal(name, stop)
    if not yours:
        signal.setitimer(signal.ITIMER_REAL, 1.0)

    # Long jobs: one that is read here, three at work on threads, and two that wait for a place.
    here = host.submit("Once upon a time", pool="chat", max_tokens=100_000)
    here.start()
    jobs = [host.dispatch(f"Story {number}", pool="chat", max_tokens=100_000) for number in range(5)]

    for frame in here:
        if frame.type == "token":
            print(frame.text, end="", flush=True)
        elif frame.type == "end":  # a cancel is an end like any other
            print(f"\n[{frame.finish_reason} after {frame.metrics.tokens_out} tokens]")
    for job in jobs:
        done = job.result()  # never raises for a cancel
        print(f"[{job!r}: {len(done.text)} characters kept]")
    sys.exit(0 if all(job.cancelled() for job in jobs) else 1)
