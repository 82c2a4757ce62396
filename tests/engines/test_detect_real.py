"""What detect says of the real llama.cpp."""

from __future__ import annotations

import pytest

from worker_adapters import EngineUnavailable, LlamaCppHttpAdapter, connect, detect
from worker_adapters.embedded import EmbeddedLlamaCpp

pytestmark = pytest.mark.engines


@pytest.mark.llamacpp
@pytest.mark.parametrize("path", ["", "/v1"])
def test_llamacpp(server: EmbeddedLlamaCpp, path: str) -> None:
    """The real llama.cpp is named, and ``connect("auto")`` streams from it."""
    assert detect(server.url + path) == "llamacpp"
    with connect("auto", server.url + path) as engine:
        assert isinstance(engine, LlamaCppHttpAdapter)
        assert engine.submit("the quick brown", max_tokens=4, temperature=0).result().metrics.tokens_out == 4


@pytest.mark.llamacpp
def test_llamacpp_that_wants_a_key() -> None:
    """The real llama.cpp is named without its key."""
    with EmbeddedLlamaCpp(extra={"api_keys": ["sesame"]}) as server:
        assert detect(server.url) == detect(server.url, api_key="sesame") == "llamacpp"


@pytest.mark.llamacpp
def test_llamacpp_that_is_gone(server: EmbeddedLlamaCpp) -> None:
    """Where a llama.cpp was, nothing is found at once."""
    with EmbeddedLlamaCpp() as gone:
        url = gone.url
    with pytest.raises(EngineUnavailable, match="nothing listens"):
        detect(url)
