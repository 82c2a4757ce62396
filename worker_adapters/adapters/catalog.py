"""Which adapters there are: one table, dotted names resolved on first use, and the door for third parties."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from worker_adapters.contract import WorkerAdapter
from worker_adapters.errors import InvalidRequest
from worker_adapters.late import loading

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

#: The built-in engines. An entry point cannot shadow one of them, nor an alias.
CATALOG: dict[str, str] = {
    "llamacpp": "worker_adapters.adapters.llamacpp:LlamaCppHttpAdapter",
    "mock": "worker_adapters.adapters.mock:MockAdapter",
    "openai": "worker_adapters.adapters.openai:OpenAIHttpAdapter",
    "tgi": "worker_adapters.adapters.tgi:TgiHttpAdapter",
    "triton": "worker_adapters.adapters.triton:TritonAdapter",
    "vllm": "worker_adapters.adapters.vllm:VllmHttpAdapter",
}
#: Products whose dialect is another engine's, with their usual address. ``connect("ollama")`` is an OpenAI adapter.
ALIASES: dict[str, tuple[str, str]] = {
    "litellm": ("openai", "http://127.0.0.1:4000"),
    "lmstudio": ("openai", "http://127.0.0.1:1234"),
    "ollama": ("openai", "http://127.0.0.1:11434"),
    "sglang": ("openai", "http://127.0.0.1:30000"),
}
#: The name of no engine: ``connect`` asks the server. What it asks is loaded only then.
AUTO = "auto"
DETECTION = "worker_adapters.adapters.detect"
#: The options of ``connect`` that say how to reach a server.
REACHING = ("api_key", "headers", "verify", "ca", "cert", "proxy", "key_header", "network")
#: Third parties register ``name = module:Class`` here.
ENTRY_POINT_GROUP = "worker_adapters.adapters"


def available_engines() -> list[str]:
    """Every engine that ``connect`` knows by name, sorted."""
    return sorted({*CATALOG, *ALIASES, *_third_party()})


def adapter_class(engine: str) -> type[WorkerAdapter]:
    """The class of an engine.

    :raises InvalidRequest: no such engine; the message lists those there are.
    """
    if not isinstance(engine, str):
        raise InvalidRequest(message="engine: want the name of one", field="engine", phase="submit")
    engine = ALIASES[engine][0] if engine in ALIASES else engine
    if engine in CATALOG:
        module, _, name = CATALOG[engine].partition(":")
        with loading:
            found: type[WorkerAdapter] = getattr(import_module(module), name)
        return found
    point = _third_party().get(engine)
    if point is None:
        known = ", ".join(available_engines())
        raise InvalidRequest(message=f"engine: no {engine!r}; there are {known}", field="engine", phase="submit")
    loaded: type[WorkerAdapter] = point.load()
    return loaded


def connect(engine: str, url: str | None = None, **options: Any) -> WorkerAdapter:
    """An adapter of ``engine`` for the server at ``url`` (None: the engine's usual address). Sends nothing.

    ``connect("auto", url)`` asks the server first what it is, as :func:`detect` does.

    :param options: the same for every engine: ``model, api_key, headers, timeouts, retry, verify, ca, cert, proxy,
        max_idle, unsupported``, explained at :class:`HttpAdapter`; an engine's own are documented with it.

        >>> engine = connect("llamacpp", "http://gpu-box:8081", api_key="env:LLAMA_KEY", timeouts={"first_token": 120})

    :raises InvalidRequest: no such engine, or a bad option.
    :raises TypeError: an unknown option, naming it.
    :raises WorkerError: with "auto" only: no server that is known answers there.
    """
    if engine == AUTO:
        engine, url = _detected(url, options)
    adapter = adapter_class(engine)
    if url is None and engine in ALIASES:
        url = ALIASES[engine][1]
    return adapter(url, **options)  # type: ignore[call-arg]  # every catalogued class takes a URL first


def _detected(url: str | None, options: dict[str, Any]) -> tuple[str, str]:
    """The engine at ``url``, and the URL its adapter wants.

    :raises WorkerError: as ``detect``; InvalidRequest also if the server is known but has no adapter.
    """
    if url is None:
        raise InvalidRequest(message='url: connect("auto", url) needs one to ask', field="url", phase="submit")
    reaching = {name: options[name] for name in REACHING if name in options}
    with loading:
        detection = import_module(DETECTION)
    found: tuple[str, str] = detection.find(url, **reaching)
    if found[0] not in available_engines():
        known = ", ".join(available_engines())
        message = f"engine: a {found[0]} server answers there, and there is no adapter for it; there are {known}"
        raise InvalidRequest(message=message, field="engine", phase="submit")
    return found


def _third_party() -> dict[str, EntryPoint]:
    from importlib.metadata import entry_points  # 30 ms, and a built-in engine needs none

    ours = {*CATALOG, *ALIASES, AUTO}
    return {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP) if point.name not in ours}
