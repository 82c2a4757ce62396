"""What is loaded late is loaded whole, whoever else needs it or forks meanwhile."""

import os
import subprocess
import sys

import pytest

from worker_adapters.simulate import LlamaCppSimulator

SOON = 60  # seconds: for what hangs for ever if it is wrong

SLOW = """
import os, signal, sys, threading
from importlib.abc import MetaPathFinder
from worker_adapters import connect


class Slow(MetaPathFinder):
    "Holds up the import of requests, in its midst."

    begun, go_on = threading.Event(), threading.Event()

    def find_spec(self, name, path, target=None):
        if name == "requests.sessions":
            self.begun.set()
            self.go_on.wait(30)


sys.meta_path.insert(0, Slow())
engine = connect("llamacpp", sys.argv[1])
states = []
first = threading.Thread(target=lambda: states.append(engine.health().state))
first.start()
assert Slow.begun.wait(30)
"""
FORK = """
threading.Timer(0.3, Slow.go_on.set).start()  # a fork that does not wait comes before it
child = os.fork()
if not child:
    signal.alarm(30)
    os._exit(0 if engine.health().ready else 1)
first.join()
print(states, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
THREADS = """
others = [threading.Thread(target=lambda: states.append(engine.health().state)) for _ in range(8)]
for thread in others:
    thread.start()
Slow.go_on.set()
for thread in (first, *others):
    thread.join()
print(states, 0)
"""


@pytest.mark.parametrize(
    ("act", "asked"),
    [
        pytest.param(FORK, 1, marks=pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")),
        pytest.param(THREADS, 9),
    ],
    ids=["fork", "threads"],
)
def test_the_first_control_call_is_under_way(act: str, asked: int) -> None:
    """A child that is forked while a thread of its parent loads requests asks its engine too; so do other threads."""
    with LlamaCppSimulator() as server:
        command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", SLOW + act, server.url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SOON, check=False)
    assert (done.stdout, done.stderr) == (f"{['healthy'] * asked} 0\n", "")
