"""Engines that are not there: real HTTP servers on 127.0.0.1 with an engine's exact bytes, which misbehave on request.

Nothing here imports the rest of the library: a simulator that shared the decoder's code would only agree with itself.
"""

from __future__ import annotations

from .engine import EngineSimulator, Piece
from .exchange import Exchange, Framing
from .faults import FINISH, Fault
from .llamacpp import LlamaCppSimulator
from .openai import OpenAISimulator
from .request import Request
from .server import ClientClose, SimServer
from .tgi import TgiSimulator
from .tgi_script import TgiToken
from .triton import TritonSimulator
from .vllm import VllmSimulator

__all__ = [
    "FINISH",
    "SIMULATORS",
    "ClientClose",
    "EngineSimulator",
    "Exchange",
    "Fault",
    "Framing",
    "LlamaCppSimulator",
    "OpenAISimulator",
    "Piece",
    "Request",
    "SimServer",
    "TgiSimulator",
    "TgiToken",
    "TritonSimulator",
    "VllmSimulator",
]

#: Catalog name of an engine -> "module:Class" of its simulator.
SIMULATORS = {
    "llamacpp": "worker_adapters.simulate.llamacpp:LlamaCppSimulator",
    "openai": "worker_adapters.simulate.openai:OpenAISimulator",
    "tgi": "worker_adapters.simulate.tgi:TgiSimulator",
    "triton": "worker_adapters.simulate.triton:TritonSimulator",
    "vllm": "worker_adapters.simulate.vllm:VllmSimulator",
}
