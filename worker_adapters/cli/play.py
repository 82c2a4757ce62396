"""The play of the demo: its scenes in order, and the verdict."""

from __future__ import annotations

import time

from worker_adapters.adapters.catalog import connect
from worker_adapters.cli import scenes
from worker_adapters.cli.exits import DONE, FAILED
from worker_adapters.cli.paced import paced_server
from worker_adapters.cli.stage import INDENT, Stage

INTRODUCTION = """\
This starts a real llama.cpp server on this machine, with a tiny model that recites one paragraph: no key, no GPU, no \
network. Then it streams an answer, cancels an endless one, and kills the server in the middle of a third."""


def play() -> int:
    """All scenes; the exit code.

    :raises EmbeddedServerError: the server did not start.
    :raises WorkerError: something failed that was not meant to.
    """
    began = time.monotonic()
    stage = Stage()
    stage.say("worker-adapters demo", "bold")
    stage.say(INTRODUCTION)
    with paced_server() as server, connect("llamacpp", server.url) as engine:
        # Asked before the scene is shown: the first question loads requests, and from here on Ctrl-C finds no half-done
        # import, whose file Python would complain of.
        health, props = engine.health(), engine.props()
        stage.heading(
            "1. A server with one slot",
            f'Up after {time.monotonic() - began:.1f} s. with connect("llamacpp", "{server.url}") as engine:',
        )
        scenes.look(stage, health, props)
        stage.heading("2. Stream", "for frame in engine.submit(prompt): ...")
        scenes.stream(stage, engine)
        stage.heading(
            "3. Cancel from another thread",
            "An endless job holds the one slot. stream.cancel() ends it; the next job is submitted right after.",
        )
        scenes.cancel(stage, engine)
        stage.heading("4. Kill the server", "SIGKILL in mid-answer: one typed error, and at once.")
        scenes.kill(stage, engine, server)
    return verdict(stage, time.monotonic() - began)


def verdict(stage: Stage, seconds: float) -> int:
    """Say whether everything happened; the exit code."""
    stage.say("")
    if stage.broken:
        stage.say(f"Not as promised: {'; '.join(stage.broken)}.", "bold red")
        return FAILED
    stage.say(f"All of it happened, in {seconds:.1f} s. The server is gone and left nothing behind.", "bold green")
    own = 'worker-adapters run --engine llamacpp --url http://localhost:8081 "Hello"'
    stage.say(f"Next, your own server:\n{INDENT}{own}")
    return DONE
