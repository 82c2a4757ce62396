"""An adapter for an engine of your own, in one file. docs/adding-an-engine.rst explains it, and goes on from there.

python examples/new_engine.py                          on a parrot that is not there: no server, no key
python examples/new_engine.py http://localhost:7070    on yours
"""

import json
import sys

from worker_adapters import Capabilities, Decoder, Delta, EngineFault, Finish, HttpAdapter, Usage, WireRequest
from worker_adapters.simulate import SimServer

ENDS = {"done": "stop", "enough": "length"}


class ParrotDecoder(Decoder):
    """The state of one answer: this engine's events need none."""

    def feed(self, event):
        match json.loads(event.data):
            case {"word": word}:
                return Delta(word)
            case {"bye": why, "heard": heard, "said": said}:
                return Delta(finish=Finish(ENDS[why], why), usage=Usage(heard, said), done=True)
            case {"error": {"code": code, "message": message}}:
                return Delta(fault=EngineFault(message, code))


class ParrotAdapter(HttpAdapter):
    """A parrot: it says again what it hears."""

    engine = "parrot"
    default_url = "http://127.0.0.1:7070"
    capabilities = Capabilities(messages=False, fields=("temperature",))
    identity_questions = (("/about", dict),)

    def encode(self, task):
        asked = {"hear": task.prompt, "most": task.max_tokens, "mood": task.temperature, **task.extra}
        return WireRequest("/talk", json.dumps(asked).encode())

    def decoder(self, task):
        return ParrotDecoder()

    def identity(self, about):
        return about.get("version", "unknown"), about.get("model")


def parrot(exchange):
    if exchange.request.path == "/talk":
        talk = b'data: {"word": "Polly"}\n\ndata: {"word": " is"}\n\ndata: {"bye": "enough", "heard": 3, "said": 2}\n\n'
        exchange.respond(200, [("Content-Type", "text/event-stream")], talk)
    else:
        exchange.json(200, {"version": "1.2", "model": "grey"})


yours = [word for word in sys.argv[1:] if word != "--simulated"]
with SimServer(parrot) as sim, ParrotAdapter(*(yours or [sim.url])) as engine:
    for frame in engine.submit("Polly is hungry", max_tokens=2).relay():  # an error is a last frame
        print(frame.to_dict())
