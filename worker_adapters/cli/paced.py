"""A llama.cpp server whose model is slow on purpose, so that people see tokens flow on any machine."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from worker_adapters.adapters.catalog import connect
from worker_adapters.embedded import EmbeddedLlamaCpp, write_recite_gguf

#: Milliseconds a token: what is aimed at, and what is good enough.
AIM, FAST, SLOW = 18.0, 10.0, 40.0
#: MiB of zero weights that pace the model: first try (right for a small machine), and limits.
BALLAST, LEAST, MOST = 220, 16, 768
#: Tokens in the server's one slot: at this pace an endless job runs for ten minutes.
CONTEXT = 32768


@contextmanager
def paced_server() -> Iterator[EmbeddedLlamaCpp]:
    """A server with one slot at about AIM milliseconds a token; the ballast is fitted to the machine once.

    :raises EmbeddedServerError: it did not start.
    """
    with tempfile.TemporaryDirectory(prefix="worker-adapters-demo-") as folder:
        ballast = BALLAST
        server = _server(folder, ballast)
        with server:
            pace = _pace(server.url)
            if FAST <= pace <= SLOW:
                yield server
                return
        with _server(folder, max(LEAST, min(MOST, round(ballast * AIM / pace)))) as server:
            yield server


def _server(folder: str, ballast: int) -> EmbeddedLlamaCpp:
    model = write_recite_gguf(Path(folder, "recite.gguf"), ballast_mib=ballast)
    return EmbeddedLlamaCpp(model, alias="recite", slots=1, context=CONTEXT)


def _pace(url: str) -> float:
    """Milliseconds a token, of a few tokens."""
    with connect("llamacpp", url) as engine:
        decoded = engine.submit("How fast are you?", max_tokens=6).result().metrics
    return (decoded.decode_ms or AIM) / max(1, decoded.tokens_out - 1)
