"""Cancel in every phase of a job's life, over real sockets. Times are measured in benchmarks; here only: soon."""

import contextlib
import gc
import os
import random
import signal
import socket
import threading
import time
from contextlib import contextmanager
from queue import SimpleQueue

import pytest

from worker_adapters import EngineUnavailable, LlamaCppHttpAdapter, WorkerError, WorkerTimeout
from worker_adapters.simulate import Fault, LlamaCppSimulator, SimServer

pytestmark = pytest.mark.llamacpp
SOON = 5.0


class KeepingAdapter(LlamaCppHttpAdapter):
    """llama.cpp behind a proxy that really keeps connections: only then can one job's cancel reach another's socket."""

    keeps_streams = True


@contextmanager
def black_hole():
    """An address whose connects hang: a listener that never accepts and whose backlog is full."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=0)
    fillers = []
    try:
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
            fillers.append(filler)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        for sock in (*fillers, listener):
            sock.close()


@contextmanager
def silent_tls():
    """A server that accepts and never answers the TLS hello."""
    with SimServer(handshake_silence=True) as server:
        yield server.url.replace("http://", "https://")


@contextmanager
def simulator(fault):
    """A server that does this at every job."""
    with LlamaCppSimulator() as server:
        server.always(fault)
        yield server.url


PHASES = {
    "connect": (black_hole, 0),
    "tls": (silent_tls, 0),
    "head": (lambda: simulator(Fault.silent_head()), 0),
    "half a head": (lambda: simulator(Fault.half_head()), 0),
    "first token": (lambda: simulator(Fault.silent_after_head()), 0),
    "between tokens": (lambda: simulator(Fault.silent_after(3)), 4),
    "comments": (lambda: simulator(Fault.comments_only(2, every=0.001)), 3),
}


def cancel_when_blocked(adapter, stream, frames):
    """Reads ``frames`` frames, then blocks in ``next``; another thread cancels. Gives the frames after the cancel."""
    for _ in range(frames):
        next(stream)
    about_to_block = threading.Event()
    answers = []

    def cancel():
        about_to_block.wait(SOON)
        answers.append(adapter.cancel(stream.job_id))

    canceller = threading.Thread(target=cancel)
    canceller.start()
    about_to_block.set()
    rest = list(stream)
    canceller.join(SOON)
    assert answers == [True]
    return rest


@pytest.mark.parametrize("phase", PHASES)
def test_cancel_frees_the_reader_in_every_phase(phase):
    """A cancel from another thread ends the job at once, wherever it is."""
    place, frames = PHASES[phase]
    with place() as url, LlamaCppHttpAdapter(url, timeouts={"connect": 60}) as adapter:
        for _ in range(1 if frames else 5):
            began = time.monotonic()
            rest = cancel_when_blocked(adapter, adapter.submit("x"), frames)
            assert [frame.type for frame in rest] == ["end"]
            assert rest[0].finish_reason == "cancelled"
            assert time.monotonic() - began < SOON
            if frames:
                break


def test_cancel_while_tokens_flow():
    """A cancel ends a stream whose tokens never stop, and the server sees the close."""
    with LlamaCppSimulator(endless=True) as server, LlamaCppHttpAdapter(server.url) as adapter:
        stream = adapter.submit("x", max_tokens=10_000_000)
        next(stream)
        flowing = threading.Event()
        threading.Thread(target=lambda: (flowing.wait(SOON), adapter.cancel(stream.job_id))).start()
        for count, frame in enumerate(stream):
            if count == 10:
                flowing.set()
            last = frame
        assert last.finish_reason == "cancelled"
        assert server.wait_idle(SOON)


def test_cancel_reaches_a_server_that_is_blocked_in_sending():
    """A server that sends faster than we read sees the close at once, and not when its kernel gives up."""
    with LlamaCppSimulator(endless=True, events_per_write=256) as server, LlamaCppHttpAdapter(server.url) as adapter:
        for _ in range(20):
            stream = adapter.submit("x", max_tokens=10_000_000)
            next(stream)
            threading.Timer(0.02, stream.cancel).start()
            last = list(stream)[-1]
            assert last.finish_reason == "cancelled"
            assert server.wait_idle(SOON)


def test_cancel_from_a_signal_handler():
    """A signal handler in the very thread that reads may cancel the job."""
    with simulator(Fault.silent_after(2)) as url, LlamaCppHttpAdapter(url) as adapter:
        stream = adapter.submit("x")
        answers = []
        before = signal.signal(signal.SIGALRM, lambda *_: answers.append(adapter.cancel(stream.job_id)))
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            last = list(stream)[-1]
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert (last.finish_reason, answers) == ("cancelled", [True])


def test_cancel_from_a_signal_handler_at_any_moment():
    """Cancels from a signal handler that strikes anywhere in a job, also inside its locks, never do harm."""
    with (
        LlamaCppSimulator(tokens=None, close_after_stream=False, max_requests=None) as server,
        KeepingAdapter(server.url) as adapter,
    ):
        current = []

        def strike(*_):
            if current:
                adapter.cancel(current[0])

        before = signal.signal(signal.SIGALRM, strike)
        try:
            for number in range(300):
                stream = adapter.submit(f"job{number}", max_tokens=4)
                current[:] = [stream.job_id]
                signal.setitimer(signal.ITIMER_REAL, random.Random(number).uniform(0.0001, 0.002))
                completion = stream.result()
                signal.setitimer(signal.ITIMER_REAL, 0)
                current.clear()
                assert completion.text.split() == [f"job{number}"] * len(completion.text.split())
                assert completion.finish_reason in ("length", "cancelled")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


def test_cancel_during_a_back_off():
    """A cancel wakes a job that waits to be tried again."""
    with LlamaCppSimulator() as server, LlamaCppHttpAdapter(server.url) as adapter:
        server.misbehave(Fault.status(503, headers=[("Retry-After", "30")]))
        stream = adapter.submit("x")
        for frame in stream.ticks(0.02):
            if frame is None and server.generation_requests == 1:
                adapter.cancel(stream.job_id)
            last = frame
        assert last.finish_reason == "cancelled"


@pytest.mark.slow
def test_a_cancel_that_races_the_end_hurts_nobody():
    """10,000 cancels around the natural end, over a pool of two connections: every job gets its own, whole or cut."""
    with (
        LlamaCppSimulator(tokens=None, close_after_stream=False, max_requests=None, events_per_write=4) as server,
        KeepingAdapter(server.url, max_idle=2) as adapter,
    ):
        adapter.submit("warm", max_tokens=1).result()
        doomed = SimpleQueue()
        wrong = []

        def cancel():
            for job_id in iter(doomed.get, None):
                adapter.cancel(job_id)

        def read(seed):
            chance = random.Random(seed)
            for number in range(5_000):
                word = f"w{seed}x{number}"
                stream = adapter.submit(word, max_tokens=3)
                at = chance.randrange(2, 6)
                words = []
                for count, frame in enumerate(stream):
                    if count == at:
                        doomed.put(stream.job_id)
                    if frame.type == "token":
                        words.append(frame.text.strip())
                    last = frame
                if words != [word] * len(words) or last.finish_reason not in ("length", "cancelled"):
                    wrong.append((word, words, last))
                if last.finish_reason == "length" and len(words) != 3:
                    wrong.append((word, words, last))

        canceller = threading.Thread(target=cancel)
        readers = [threading.Thread(target=read, args=(seed,)) for seed in range(2)]
        for thread in (canceller, *readers):
            thread.start()
        for thread in readers:
            thread.join()
        doomed.put(None)
        canceller.join()
        assert wrong == []
        assert server.connections < 10_000  # else nothing was ever reused, and the race was not run


def open_files():
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.slow
def test_broken_off_loops_leak_nothing():
    """After ``break`` out of 1,000 streams without the garbage collector: no file, no thread, every close seen."""
    with LlamaCppSimulator(endless=True) as server, LlamaCppHttpAdapter(server.url) as adapter:
        adapter.submit("x", max_tokens=1).result()
        assert server.wait_for(lambda: server.connections_open <= 1, SOON)
        files, threads, closes = open_files(), threading.active_count(), len(server.closes)
        gc.disable()
        try:
            for _ in range(1_000):
                for frame in adapter.submit("x", max_tokens=1_000_000):
                    if frame.type == "token":
                        break
            assert server.wait_closed(closes + 1_000, 30)
        finally:
            gc.enable()
        assert server.wait_idle(SOON)
        assert server.wait_for(lambda: server.connections_open <= 1, SOON)
        assert open_files() <= files + 1
        assert server.wait_for(lambda: threading.active_count() <= threads + 1, SOON)


def test_errors_leave_no_cycles():
    """A failed job is freed by reference count alone, once its error is gone."""
    with LlamaCppSimulator() as server, LlamaCppHttpAdapter(server.url, retry={"base": 0.001}) as adapter:
        gc.collect()
        gc.disable()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            for fault in (Fault.cut_after(2), Fault.status(400), Fault.garbage_after(1), *[Fault.status(503)] * 4):
                server.misbehave(fault)
            for _ in range(4):
                with contextlib.suppress(WorkerError):
                    adapter.submit("x").result()
            adapter.submit("x").result()
            gc.collect()
            modules = [(type(thing).__module__, type(thing).__name__) for thing in gc.garbage]
            ours = [name for name in modules if name[0].startswith("worker_adapters") and ".simulate" not in name[0]]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
        assert ours == []


@pytest.mark.filterwarnings("ignore:This process.*fork:DeprecationWarning")
def test_fork_with_a_warm_pool_crosses_nothing():
    """After a fork with idle connections, 2,000 jobs on each side get their own replies."""
    with (
        LlamaCppSimulator(tokens=None, close_after_stream=False, max_requests=None) as server,
        KeepingAdapter(server.url) as adapter,
    ):

        def run(side):
            return sum(
                adapter.submit(f"{side}{number}", max_tokens=2).result().text.split() != [f"{side}{number}"] * 2
                for number in range(2_000)
            )

        warm = [adapter.submit("warm", max_tokens=2) for _ in range(4)]
        for stream in warm:
            next(stream)
        for stream in warm:
            stream.result()
        inherited = adapter.submit("x", max_tokens=2)
        next(inherited)
        child = os.fork()
        if child == 0:
            code = 99
            try:
                try:
                    next(inherited)
                except EngineUnavailable:
                    code = min(run("child"), 90)
            finally:
                os._exit(code)
        crossed = run("parent")
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert crossed == 0
        assert inherited.result().text.split() == ["x", "x"]


@pytest.mark.parametrize("clock", ["connect", "first_token", "between_tokens", "total"])
def test_each_clock_fires_at_its_time(clock):
    """Each clock fires at its value, also against a server that drips comments; late only by the machine's noise."""
    places = {
        "connect": black_hole,
        "first_token": lambda: simulator(Fault.comments_only(0, every=0.005)),
        "between_tokens": lambda: simulator(Fault.comments_only(1, every=0.005)),
        "total": lambda: simulator(Fault.comments_only(1, every=0.005)),
    }
    with places[clock]() as url, LlamaCppHttpAdapter(url, timeouts={clock: 0.4}, retry={"attempts": 1}) as adapter:
        began = time.monotonic()
        with pytest.raises(WorkerTimeout) as caught:
            adapter.submit("x").result()
        took = time.monotonic() - began
        assert caught.value.clock == clock
        assert 0.39 <= took < 0.4 + 1.0
