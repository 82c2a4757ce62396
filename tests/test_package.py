"""The door of the package: its names, and what importing it costs."""

import importlib.metadata
import pickle
import subprocess
import sys

import pytest

import worker_adapters
from worker_adapters import InvalidRequest, available_engines, connect

NAMES = [
    "AdapterHost", "AnyFrame", "AuthenticationFailed", "BreakerPolicy", "Capabilities", "CapacityExceeded",
    "Completion", "ContextOverflow", "Decoder", "Delta", "EndFrame", "EngineFault", "EngineProps",
    "EngineUnavailable", "ErrorFrame", "ErrorRule", "Finish", "HealthStatus", "HttpAdapter", "InvalidRequest", "Job",
    "JobInfo", "LlamaCppHttpAdapter", "Message", "Metrics", "MockAdapter", "ModelNotFound", "Observer",
    "OpenAIHttpAdapter", "PoolUnavailable", "ReasoningFrame", "RetryPolicy", "StartedFrame", "StreamTruncated",
    "TaskLike", "TaskRequest", "TgiHttpAdapter", "Timeouts", "TokenFrame", "TokenStream", "ToolCall", "ToolCallFrame",
    "ToolDelta", "TritonAdapter", "UnknownError", "Usage", "VllmHttpAdapter", "WireRequest", "WorkerAdapter",
    "WorkerError", "WorkerTimeout", "available_engines", "connect", "detect", "frame_from_dict",
]  # fmt: skip


def fresh(code):
    """What a fresh interpreter prints."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def test_the_public_names():
    """The public names are exactly these, and every one resolves."""
    assert sorted(worker_adapters.__all__, key=str) == sorted(NAMES)
    for name in set(NAMES) - {"AnyFrame", "TaskLike"}:  # unions have no names
        assert getattr(worker_adapters, name).__name__ == name
    assert worker_adapters.TokenFrame in worker_adapters.AnyFrame.__args__
    assert worker_adapters.TaskRequest in worker_adapters.TaskLike.__args__


def test_an_unknown_name_is_an_attribute_error():
    """A name that is not there is an AttributeError that names it."""
    with pytest.raises(AttributeError, match="Nonsense"):
        worker_adapters.Nonsense  # noqa: B018 - the access is the test


def test_the_version_is_the_distribution_s():
    """``__version__`` is what pip installed."""
    assert worker_adapters.__version__ == importlib.metadata.version("worker-adapters")


def test_importing_loads_no_library_and_starts_nothing():
    """``import worker_adapters`` loads no HTTP library, no JSON library of ours, and starts no thread."""
    heavy = ["requests", "urllib3", "httptools", "msgspec", "dataclasses_json", "tenacity", "socket", "ssl", "click"]
    loaded = fresh(
        "import sys, threading, worker_adapters; "
        f"print(*[name for name in {heavy} if name in sys.modules], threading.active_count())"
    )
    assert loaded == ["1"]


def test_an_adapter_loads_what_it_streams_with():
    """A first adapter loads neither requests nor dataclasses-json nor tenacity: they come with their first use."""
    loaded = fresh(
        "import sys, worker_adapters; worker_adapters.connect('llamacpp'); "
        "print(*[name for name in ['requests', 'dataclasses_json', 'tenacity', 'urllib3'] if name in sys.modules])"
    )
    assert loaded == ["urllib3"]


def test_connect_knows_the_catalogued_engines():
    """``connect`` makes an adapter by name; an unknown name lists the known ones."""
    assert {"llamacpp", "mock"} <= set(available_engines())
    with connect("mock") as engine:
        assert engine.submit("hi").result().text
    with pytest.raises(InvalidRequest, match="llamacpp") as caught:
        connect("nonsense")
    assert caught.value.field == "engine"


@pytest.mark.parametrize("engine", ["llamacpp", "mock"])
def test_an_unknown_option_is_a_type_error(engine):
    """An option that an engine does not have is a TypeError that names it."""
    with pytest.raises(TypeError, match="colour"):
        connect(engine, colour="red")


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"max_idle": -1}, "max_idle"),
        ({"unsupported": "maybe"}, "unsupported"),
        ({"timeouts": {"connect": -1}}, "timeouts.connect"),
        ({"timeouts": {"tea": 5}}, "timeouts"),
        ({"retry": {"attempts": 0}}, "retry.attempts"),
        ({"retry": {"colour": 0}}, "retry"),
        ({"api_key": 5}, "api_key"),
        ({"verify": "ca.pem"}, "verify"),
        ({"headers": {"X": "a\r\nEvil: 1"}}, "headers"),
        ({"proxy": "socks5://x:1"}, "proxy"),
    ],
)
def test_a_bad_option_names_itself(options, field):
    """A bad option is an InvalidRequest that names it."""
    with pytest.raises(InvalidRequest) as caught:
        connect("llamacpp", "http://127.0.0.1:1", **options)
    assert caught.value.field == field
    assert "Evil" not in caught.value.message


@pytest.mark.parametrize("url", ["", "localhost:8081", "ftp://x", "http://", "http://[::1", 5])
def test_a_bad_url_is_an_invalid_request(url):
    """A URL that is none, or of a scheme that cannot be spoken, names the field ``url``."""
    with pytest.raises(InvalidRequest) as caught:
        connect("llamacpp", url or " ")
    assert caught.value.field == "url"


def test_adapters_pickle_by_configuration_but_not_with_a_literal_key():
    """A literal key refuses to pickle and says what to use; ``env:NAME`` pickles."""
    with pytest.raises(TypeError, match="env:NAME"):
        pickle.dumps(connect("llamacpp", api_key="sk-very-secret-value"))
    again = pickle.loads(pickle.dumps(connect("llamacpp", "http://h:1/base", api_key="env:KEY", model="m")))
    assert repr(again) == "LlamaCppHttpAdapter('http://h:1/base')"
