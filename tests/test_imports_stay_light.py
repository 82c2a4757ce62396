"""What nobody asked for is not loaded: gRPC, numpy and gevent stay out of a process that streams over HTTP."""

import subprocess
import sys

import pytest

from worker_adapters.simulate import TritonSimulator

pytestmark = pytest.mark.triton

HEAVY = ["tritonclient", "grpc", "google.protobuf", "numpy", "gevent", "geventhttpclient"]
JOB = """
import sys
import worker_adapters
from worker_adapters import available_engines, connect

made = [connect(name) for name in available_engines()]
with connect("triton", sys.argv[1], model="recite") as engine:
    text = engine.submit("Hi", max_tokens=3).result().text
    print(text.split(), engine.health(probe=True).state, engine.props().model)
"""
USES = {
    "nothing": ("", []),
    "gRPC": ("connect('triton', 'grpc://127.0.0.1:1')", ["tritonclient", "grpc", "google.protobuf", "numpy"]),
}


@pytest.mark.parametrize("use", USES)
def test_every_adapter_is_made_and_one_streams_without_them(use: str) -> None:
    """All engines made, a Triton job over HTTP with health and props: none of them; a gRPC URL brings gRPC's alone."""
    more, loads = USES[use]
    code = f"{JOB}{more}\nprint(*[name for name in {HEAVY} if name in sys.modules])"
    with TritonSimulator() as server:
        done = subprocess.run([sys.executable, "-c", code, server.url], capture_output=True, text=True, check=True)
    said, loaded = done.stdout.splitlines()
    assert said == "['the', 'quick', 'brown'] healthy recite"
    assert loaded.split() == loads
