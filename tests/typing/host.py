"""What a user of a host writes, for mypy. Checked by `tox -e types`."""

from collections.abc import Iterator
from concurrent.futures import as_completed

from worker_adapters import AdapterHost, EndFrame, Job, JobInfo, Observer, TaskRequest, WorkerError, connect


class Ends(Observer):
    def on_end(self, info: JobInfo, end: EndFrame) -> None:
        print(info.pool, info.replica, info.engine, end.metrics.tokens_out)


def tasks() -> Iterator[TaskRequest]:
    for number in range(100):
        yield TaskRequest(prompt=f"{number}", job_id=f"job-{number}")


with AdapterHost(max_workers=64, timeouts={"pool": 5}, observers=[Ends()]) as host:
    host.bind("chat", "r0", connect("llamacpp", "http://a:8081"), residency="gpu")
    host.bind("chat", "r1", lambda: connect("vllm", "http://b:8000"), max_in_flight=32)
    for frame in host.submit("hi", pool="chat"):
        if frame.type == "token":
            print(frame.text.upper())
    job: Job = host.dispatch([{"role": "user", "content": "hi"}], pool="chat", session_id="s")
    print(job.result(timeout=5).text.upper(), job.cancelled(), job.job_id.upper())
    for tick in host.dispatch("hi", pool="chat", stream=True).ticks(every=5):
        if tick is not None and tick.type == "end":
            print(tick.finish_reason)
    for done in host.map(tasks(), pool="chat", window=16, ordered=False):
        error = done.exception()
        if isinstance(error, WorkerError):
            print(error.code, done.job_id)
    for future in as_completed([job]):
        print(future.result().job_id)
    left: bool = host.unbind("chat", "r0", drain=True, timeout=30)
    print(host.cancel(job.job_id) or left, host.cancel_all(pool="chat") + 1, [info.job_id for info in host.jobs()])
