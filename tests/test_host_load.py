"""The host under load: ten thousand jobs through ``map``, a thousand streams at once, and cancels in every state.

Engines stand in a process of their own, so that what is measured here is the host's.
"""

import gc
import json
import resource
import signal
import statistics
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from test_cancel_phases import black_hole
from worker_adapters import AdapterHost, TaskRequest, connect
from worker_adapters.simulate import Fault, LlamaCppSimulator

pytestmark = pytest.mark.llamacpp
#: Seconds after which a test stops waiting for what should have come long ago.
PATIENCE = 30.0
#: A cancel is much sooner (benchmarks/host_cancel.py); so much a busy machine may add.
SOON = 1.0

#: Five engines that repeat the words of the prompt.
SIMULATORS = """
import json, sys
from worker_adapters import simulate as s
kinds = {"llamacpp": s.LlamaCppSimulator, "vllm": s.VllmSimulator, "tgi": s.TgiSimulator,
         "triton": s.TritonSimulator, "openai": s.OpenAISimulator}
engines = {name: kind(None, slots=64) for name, kind in kinds.items()}
print(json.dumps({name: engine.url for name, engine in engines.items()}), flush=True)
sys.stdin.read()
"""
#: One thread that speaks llama.cpp on any number of connections; each token is the time at which it was sent.
METRONOME = """
import heapq, json, selectors, socket, sys, time
head = b"HTTP/1.1 200 OK\\r\\nServer: llama.cpp\\r\\nContent-Type: "
def answer(body):
    return head + b"application/json\\r\\nContent-Length: %d\\r\\n\\r\\n%s" % (len(body), body)
def event(**fields):
    data = b"data: %s\\n\\n" % json.dumps(fields).encode()
    return b"%x\\r\\n%s\\r\\n" % (len(data), data)
facts = {"/health": b'{"status":"ok"}', "/props": b'{"build_info":"b1","model_path":"m","total_slots":1000}'}
listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
watched = selectors.DefaultSelector()
watched.register(listener, selectors.EVENT_READ)
watched.register(sys.stdin, selectors.EVENT_READ)
due = []
print(listener.getsockname()[1], flush=True)
while True:
    for key, _ in watched.select(max(0.0, due[0][0] - time.monotonic()) if due else None):
        if key.fileobj is sys.stdin:
            sys.exit()
        if key.fileobj is listener:
            sock = listener.accept()[0]
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            watched.register(sock, selectors.EVENT_READ, [b""])
            continue
        sock, data = key.fileobj, key.data
        more = sock.recv(65536)
        data[0] += more
        start, _, body = data[0].partition(b"\\r\\n\\r\\n")
        if not more:
            watched.unregister(sock)
            sock.close()
        elif start.startswith(b"GET"):
            sock.sendall(answer(facts.get(start.split(b" ")[1].decode(), b"{}")))
            data[0] = b""
        elif body.endswith(b"}"):
            asked = json.loads(body)
            gap = float(asked["prompt"]) / 1000.0
            sock.sendall(head + b"text/event-stream\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n")
            heapq.heappush(due, (time.monotonic() + gap, id(sock), sock, gap, 1, asked["n_predict"]))
    while due and due[0][0] <= time.monotonic():
        at, name, sock, gap, number, last = heapq.heappop(due)
        sent = event(index=0, content=repr(time.monotonic()), tokens=[1], stop=False, tokens_predicted=number)
        if number < last:
            heapq.heappush(due, (at + gap, name, sock, gap, number + 1, last))
        else:
            sent += event(index=0, content="", stop=True, stop_type="limit", tokens_predicted=number,
                          tokens_evaluated=1, timings={}) + b"0\\r\\n\\r\\n"
        sock.sendall(sent)
"""


@contextmanager
def child(program):
    """A program in a process of its own; what it says first."""
    process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        yield json.loads(process.stdout.readline())
    finally:
        process.stdin.close()
        process.wait(PATIENCE)
        process.stdout.close()


def settled(question, seconds=PATIENCE):
    """Ask until it is so: for what no event tells."""
    deadline = time.monotonic() + seconds
    while not question():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)


def resident_mib():
    """What this process holds of memory, without what only waits for the collector."""
    gc.collect()
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def cpu():
    """Seconds of user and system time of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def host_threads():
    """The host's threads that live."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("worker-adapters")]


# --- map


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("ordered", [True, False])
def test_ten_thousand_jobs_in_constant_memory(ordered, record_property):
    """Every task's answer comes, once, to its own job, in order where order is asked for; memory does not grow."""
    count = 10_000 if ordered else 3_000

    def tasks():
        for number in range(count):
            words = f"job{number:05}"
            form = {"prompt": words} if number % 2 else {"messages": [{"role": "user", "content": words}]}
            yield TaskRequest(job_id=words, max_tokens=3, **form)

    seen, memory, objects = [], [], []
    with child(SIMULATORS) as urls, AdapterHost(max_workers=32) as host:
        for engine, url in urls.items():
            host.bind("mixed", engine, connect(engine, url))
        began, spent = time.monotonic(), cpu()
        for job in host.map(tasks(), pool="mixed", window=32, ordered=ordered):
            done = job.result()
            seen.append(done.job_id)
            assert job.job_id == done.job_id
            assert done.job_id in done.text
            if len(seen) % 1000 == 0:
                memory.append(resident_mib())
                objects.append(len(gc.get_objects()))
        took, spent = time.monotonic() - began, cpu() - spent
        assert host.jobs() == []
    record_property(
        f"map, {count} jobs, ordered={ordered}",
        f"{count / took:.0f} jobs/s, {spent / count * 1e6:.0f} us CPU a job, RSS MiB {[round(m, 1) for m in memory]}",
    )
    assert (seen if ordered else sorted(seen)) == [f"job{number:05}" for number in range(count)]
    assert memory[-1] - memory[0] < 12  # 32 threads use their heaps unevenly
    assert objects[-1] - objects[0] < 1000


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("window", [1, 8])
def test_a_slow_consumer_holds_map_back(window, ordered):
    """However slow the consumer is, no more than ``window`` tasks are drawn, and sent, ahead of it."""
    drawn, taken = [], 0

    def tasks():
        for number in range(40):
            drawn.append(number)
            yield f"task {number}"

    with LlamaCppSimulator(slots=16) as engine, AdapterHost() as host:
        host.bind("chat", "r0", connect("llamacpp", engine.url))
        jobs = host.map(tasks(), pool="chat", window=window, ordered=ordered, max_tokens=2)
        assert drawn == []
        for job in jobs:
            taken += 1
            assert job.result().finish_reason == "length"
            if taken in (1, 5, 20):
                settled(lambda: engine.generations == len(drawn) and engine.busy == 0)  # all that was begun has ended
            assert len(drawn) <= taken + window - 1
        assert engine.generation_requests == taken == 40


def test_what_map_left_behind_is_cancelled():
    """Closing the iterator cancels the jobs of its window; one job's failure stopped nothing before."""
    with LlamaCppSimulator(slots=2, endless=True, delay=0.01) as engine, AdapterHost() as host:
        host.bind("chat", "r0", connect("llamacpp", engine.url))
        tasks = [{"no": "task"}, *(TaskRequest(prompt="Go", max_tokens=1000) for _ in range(5))]
        jobs = host.map(tasks, pool="chat", window=6)
        assert type(next(jobs).exception()).__name__ == "InvalidRequest"
        jobs.close()
        settled(lambda: not host.jobs() and engine.busy == 0)


# --- a thousand streams


@pytest.mark.slow
def test_a_thousand_streams_at_ten_tokens_a_second(record_property):
    """A thousand dispatched streams at once, each with a consumer, end whole; each token is on time."""
    streams, tokens, gap = 1000, 40, 100.0
    delays, ends, errors = [], [], []

    def consume(job):
        own = []
        try:
            for frame in job:
                if frame.type == "token":
                    own.append(time.monotonic() - float(frame.text))
            ends.append(frame)
        except Exception as error:
            errors.append(error)
        delays.append(own)

    with child(METRONOME) as port, AdapterHost(max_workers=streams) as host:
        host.bind("chat", "r0", connect("llamacpp", f"http://127.0.0.1:{port}"))
        began, spent = time.monotonic(), cpu()
        readers = []
        for _ in range(streams):
            job = host.dispatch(f"{gap}", pool="chat", stream=True, max_tokens=tokens)
            readers.append(threading.Thread(target=consume, args=(job,), daemon=True))
            readers[-1].start()
        begun = time.monotonic() - began
        for reader in readers:
            reader.join(PATIENCE + 60)
        took, spent = time.monotonic() - began, cpu() - spent
        assert not any(reader.is_alive() for reader in readers)
        assert errors == []
        assert [end.finish_reason for end in ends] == ["length"] * streams
        assert [len(own) for own in delays] == [tokens] * streams
        settled(lambda: not host.jobs() and not host_threads())
    every = sorted(delay for own in delays for delay in own)
    steady = sorted(delay for own in delays for delay in own[tokens // 2 :])
    for name, values in (("all", every), ("second half", steady)):
        p50, p99 = statistics.median(values), values[int(0.99 * len(values))]
        record_property(
            f"1000 streams at 10 tokens/s, engine to consumer, {name}",
            f"p50 {p50 * 1000:.1f} ms, p99 {p99 * 1000:.0f} ms, max {values[-1] * 1000:.0f} ms",
        )
    record_property(
        "1000 streams, begun and done",
        f"{begun:.1f} s, {took:.1f} s; CPU {spent:.1f} s, {spent / len(every) * 1e6:.0f} us a token",
    )


# --- cancel


@contextmanager
def engine_at(url, **options):
    """A host with one replica, and what it holds."""
    with connect("llamacpp", url) as adapter, AdapterHost(**options.pop("host", {})) as host:
        host.bind("chat", "r0", adapter, **options)
        yield host


@contextmanager
def simulated(*faults, holder=False, endless=False, **options):
    """The same over a simulator; with ``holder`` another job stands in the way."""
    with LlamaCppSimulator(slots=4, endless=endless) as engine, engine_at(engine.url, **options) as host:
        engine.misbehave(*faults)
        if holder:
            host.dispatch("in the way", pool="chat")
            settled(lambda: engine.generations == 1)
        yield host


@contextmanager
def connecting():
    with black_hole() as url, engine_at(url) as host:
        yield host


#: State -> what brings a job into it, and after how many frames it is there.
SILENT = Fault.silent_after_head()
STATES = {
    "queued behind busy workers": (lambda: simulated(SILENT, holder=True, host={"max_workers": 1}), 0),
    "waiting for a place": (lambda: simulated(SILENT, holder=True, max_in_flight=1), 0),
    "connecting": (connecting, 0),
    "head": (lambda: simulated(Fault.silent_head()), 0),
    "first token": (lambda: simulated(SILENT), 0),
    "between tokens": (lambda: simulated(Fault.silent_after(3)), 4),
    "flowing": (lambda: simulated(endless=True), 4),
    "writer blocked": (lambda: simulated(endless=True), 1),
}


@contextmanager
def cancelling(by, act, delay):
    """Act once, ``delay`` seconds from now: in another thread, or in a signal handler on top of this one."""
    if by == "thread":
        timer = threading.Timer(delay, act)
        timer.start()
        yield
        timer.join()
    else:
        before = signal.signal(signal.SIGALRM, lambda *_: act())
        signal.setitimer(signal.ITIMER_REAL, delay)
        yield
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("by", ["thread", "signal"])
@pytest.mark.parametrize("way", ["submit", "dispatch", "frames"])
@pytest.mark.parametrize("state", STATES)
def test_cancel_in_every_state(state, way, by):
    """A cancel by id ends the job for its consumer at once, leaves nothing behind, and is no fault of the engine's."""
    if way == "submit" and state in ("queued behind busy workers", "writer blocked"):
        pytest.skip("no such state in the caller's own thread")
    stage, first = STATES[state]
    called = []
    with stage() as host:
        fields = {"pool": "chat", "max_tokens": 1_000_000, "job_id": "mine"}
        job = host.submit("Go", **fields) if way == "submit" else host.dispatch("Go", stream=way == "frames", **fields)

        def act():
            called.append(time.monotonic())
            called.append(host.cancel("mine"))

        frames = None if way == "dispatch" else iter(job)
        seen = [next(frames) for _ in range(first if frames else 0)]
        with cancelling(by, act, 0.1):
            if state == "writer blocked" or frames is None:
                while len(called) < 2:
                    time.sleep(0.001)
            if frames is not None:
                seen += frames
                assert seen[-1].finish_reason == "cancelled"
            done = job.result()
            took = time.monotonic() - called[0]
        assert called[1] is True
        assert done.finish_reason == "cancelled"
        assert way == "submit" or job.cancelled()
        assert host.cancel("mine") is False
        assert took < SOON
        settled(lambda: not [info for info in host.jobs() if info.job_id == "mine"], SOON)
        assert host.props()["chat"]["r0"]["breaker"] == "closed"


def test_cancels_never_open_the_breaker():
    """Jobs cancelled while they flow lose their connections, and the engine is not blamed for it."""
    with simulated(endless=True) as host:
        for _ in range(20):
            stream = host.submit("Go", pool="chat", max_tokens=1_000_000)
            next(stream)
            timer = threading.Timer(0.005, stream.cancel)
            timer.start()
            assert list(stream)[-1].finish_reason == "cancelled"
            timer.join()
        assert host.props()["chat"]["r0"]["breaker"] == "closed"


# --- the benchmarks


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "sizes", "values"),
    [
        ("host.py", ["--rounds", "1", "--tokens", "300", "--jobs", "2"], ("us", "added")),
        ("host_cancel.py", ["--tries", "1"], ("ms", "goal")),
    ],
)
def test_the_benchmarks_run(program, sizes, values):
    """All ways give the same text, every cancel ends its job; else the program fails."""
    path = Path(__file__).parent.parent / "benchmarks" / program
    done = subprocess.run(
        [sys.executable, path, "--json", *sizes], capture_output=True, check=False, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert all(json.loads(done.stdout)[name] for name in values)
