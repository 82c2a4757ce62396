"""Two replicas behind one pool. One dies with jobs on it: what had begun fails with a typed error, the rest goes on.

python examples/two_replicas.py                                on two simulated engines, one of which is killed
python examples/two_replicas.py http://a:8081 http://b:8081    on yours: kill one yourself
"""

import logging
import sys
from collections import Counter
from concurrent.futures import as_completed
from contextlib import ExitStack

from worker_adapters import AdapterHost, JobInfo, Observer, StartedFrame, WorkerError, connect
from worker_adapters.simulate import LlamaCppSimulator

QUESTIONS = [f"{number}. Why is the sky blue?" for number in range(40)]
logging.getLogger("worker_adapters").addHandler(logging.NullHandler())  # what becomes of the jobs is printed below


class Places(Observer):
    """Remembers which replica each job went to."""

    def __init__(self) -> None:
        self.of: dict[str | None, str | None] = {}

    def on_start(self, info: JobInfo, started: StartedFrame) -> None:
        self.of[info.job_id] = info.replica

    def on_error(self, info: JobInfo, error: WorkerError) -> None:
        self.of[info.job_id] = info.replica


with ExitStack() as stack:
    urls, sims = [word for word in sys.argv[1:] if word != "--simulated"], []
    if not urls:
        sims = [stack.enter_context(LlamaCppSimulator(slots=4, delay=0.005)) for _ in range(2)]
        urls = [sim.url for sim in sims]
    places = Places()
    host = stack.enter_context(AdapterHost(observers=[places], breaker={"failures": 2}))
    for number, url in enumerate(urls):
        host.bind("chat", f"r{number}", connect("auto", url), max_in_flight=4)

    # Each job goes to the replica with the fewest; those beyond max_in_flight wait for a place.
    jobs = [host.dispatch(question, pool="chat", max_tokens=32, timeouts={"pool": 300}) for question in QUESTIONS]
    answers: Counter[str | None] = Counter()
    for job in as_completed(jobs):
        try:
            done = job.result()
            print(f"{places.of[done.job_id]}: {done.text[:50]}...")
            answers[places.of[done.job_id]] += 1
        except WorkerError as error:  # it had begun: nobody but you can know whether to ask again
            print(f"{places.of[error.job_id]}: {error.code} after {error.tokens_seen} tokens: {error.message}")
        if len(sims) == 2 and answers.total() == 8:
            print("--- r0 is killed")
            sims.pop(0).kill()

    for name, told in host.props()["chat"].items():
        print(f"[{name}: {answers[name]} answers, its breaker is {told['breaker']}]")
    sys.exit(0 if answers.total() else 1)
