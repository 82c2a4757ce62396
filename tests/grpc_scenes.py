"""What needs a process of its own with Triton over gRPC. Arguments: ``serve``, ``fork URL``, ``abandon URL HOW``."""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

from worker_adapters import EngineUnavailable, connect

JOBS = 100


def serve() -> None:
    """A server of endless words for an endless job, of the prompt for any other; until stdin ends."""
    from grpc_triton import Triton, echo, endless

    with Triton() as server:
        server.answer = lambda call: endless(call) if call.request.id == "endless" else echo(call)
        print(server.url, flush=True)
        sys.stdin.read()


def crossed(engine: Any, side: str) -> int:
    """How many jobs did not get their own reply."""
    return sum(
        engine.submit(f"{side}{number}", max_tokens=2).result().text != f" {side}{number}" * 2 for number in range(JOBS)
    )


def fork(url: str) -> None:
    """Forks with a warm channel and a running stream; prints the child's status and the parent's crossed replies."""
    with connect("triton", url, model="rs") as engine:
        engine.submit("warm", max_tokens=2).result()
        inherited = engine.submit("x", max_tokens=10**6, job_id="endless")
        assert [next(inherited).type for _ in range(3)] == ["started", "token", "token"]
        child = os.fork()
        if not child:
            status = 99
            try:
                try:
                    next(inherited)
                except EngineUnavailable:
                    inherited.close()
                    status = min(crossed(engine, "child"), 90)
            finally:
                os._exit(status)
        told = [crossed(engine, "parent")]
        told.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        told.append([next(inherited).type for _ in range(3)] == ["token"] * 3)
        told.append(inherited.cancel())
        print(told, flush=True)


def abandon(url: str, how: str) -> None:
    """Leaves streams as they are, and ends."""
    engine = connect("triton", url, model="rs")
    streams = [engine.submit("x", max_tokens=10**6, job_id="endless")]
    if how == "many":
        streams += [engine.submit("x", max_tokens=10**6) for _ in range(6)]
    frames = [[next(stream).type for _ in range(3)] for stream in streams]
    if how == "read":
        threading.Thread(target=lambda: [None for _ in streams[0]], daemon=True).start()
    globals().update(engine=engine, streams=streams)  # a module's, freed when the interpreter is about to end
    print(frames[0], flush=True)


if __name__ == "__main__":
    {"serve": serve, "fork": fork, "abandon": abandon}[sys.argv[1]](*sys.argv[2:])
