"""Real engines that run on this machine from a wheel: no GPU, no download. For the demo, the examples and tests.

``pip install "worker-adapters[demo]"`` brings the wheel; importing this package does not need it.
"""

from worker_adapters.embedded.llamacpp import EmbeddedLlamaCpp, EmbeddedServerError
from worker_adapters.embedded.recite import (
    DEFAULT_CHAT_TEMPLATE,
    DEFAULT_WORDS,
    REASONING_TEXT,
    THINK_AND_TOOLS_CHAT_TEMPLATE,
    TOOL_CALL_TEXT,
    recital,
    write_reasoning_gguf,
    write_recite_gguf,
    write_tool_call_gguf,
)

__all__ = [
    "DEFAULT_CHAT_TEMPLATE",
    "DEFAULT_WORDS",
    "REASONING_TEXT",
    "THINK_AND_TOOLS_CHAT_TEMPLATE",
    "TOOL_CALL_TEXT",
    "EmbeddedLlamaCpp",
    "EmbeddedServerError",
    "recital",
    "write_reasoning_gguf",
    "write_recite_gguf",
    "write_tool_call_gguf",
]
