"""A host from a mapping or a TOML file: what it makes of it, when, and what it says of what is wrong."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from canary import KEY
from worker_adapters import (
    AdapterHost,
    BreakerPolicy,
    EngineUnavailable,
    InvalidRequest,
    MockAdapter,
    Observer,
    WorkerAdapter,
)
from worker_adapters.adapters.catalog import CATALOG, adapter_class
from worker_adapters.host.config import COMMON, options_of
from worker_adapters.simulate import LlamaCppSimulator, VllmSimulator

pytestmark = pytest.mark.mock

SOON = 20.0  # seconds that nothing here needs
TOML = """
max_workers = 3
policy = "warn"
timeouts = { pool = 2, total = 60 }
breaker = { failures = 2, open_for = 0.5 }

[retry]
attempts = 2

[pools.chat.r0]
engine = "llamacpp"
url = "URL0"
residency = "gpu"
timeouts = { first_token = 120 }
headers = { X-Team = "blue" }

[pools.chat.r1]
engine = "vllm"
url = "URL1"
max_in_flight = 32
retry = { attempts = 1 }

[pools."long context".only]
engine = "mock"
api_key = "env:NOWHERE"
"""


def refused(config: Any, **more: Any) -> InvalidRequest:
    """What a config is refused with."""
    with pytest.raises(InvalidRequest) as caught:
        AdapterHost.from_config(config, **more)
    return caught.value


def pools(**replica: Any) -> dict[str, Any]:
    """A config of one replica."""
    return {"pools": {"chat": {"r0": replica}}}


# --- what is made


@pytest.mark.llamacpp
@pytest.mark.vllm
@pytest.mark.parametrize("form", [str, Path])
def test_a_toml_file_is_a_host(tmp_path: Path, form: Callable[[Path], Any]) -> None:
    """Every key arrives where it belongs, and jobs go to the engines that it names."""
    with LlamaCppSimulator() as one, VllmSimulator() as two:
        path = tmp_path / "pools.toml"
        path.write_text(TOML.replace("URL0", one.url).replace("URL1", two.url))
        with AdapterHost.from_config(form(path)) as host:
            assert repr(host) == "<AdapterHost: chat (2), long context (1); 0 jobs in flight>"
            for replica, sim in (("r0", one), ("r1", two)):
                assert host.submit("hi", pool="chat", replica=replica, max_tokens=3).result().text
                assert [request.method for request in sim.requests].count("POST") == 1
            sent = next(request for request in one.requests if request.method == "POST")
            assert sent.header("X-Team") == "blue"
            told = host.props()
            assert told["chat"]["r0"]["residency"] == "gpu"
            assert told["chat"]["r1"]["max_in_flight"] == 32
            assert host.submit("hi", pool="long context").result().text == "Hello from the mock."


def test_a_mapping_may_hold_what_no_file_can() -> None:
    """A mapping's values go to ``connect`` as they are."""
    replica = {"engine": "mock", "tokens": lambda task: [task.prompt, "!"], "api_key": lambda: "k"}
    with AdapterHost.from_config(pools(**replica)) as host:
        assert host.submit("hi", pool="chat").result().text == "hi!"


def test_more_options_go_before_the_files() -> None:
    """Observers come by argument, and so may what the file says otherwise."""
    told: list[str] = []

    class Listener(Observer):
        def on_submit(self, info: Any) -> None:
            told.append(info.pool)

    config = {**pools(engine="mock"), "max_workers": 0}
    with AdapterHost.from_config(config, observers=[Listener()], max_workers=1) as host:
        host.dispatch("hi", pool="chat").result(SOON)
    assert told == ["chat"]


def test_a_config_without_pools_is_a_host_to_bind_to() -> None:
    """An empty mapping is valid: pools may come later."""
    with AdapterHost.from_config({}) as host:
        host.bind("chat", "r0", MockAdapter())
        assert host.submit("hi", pool="chat").result().text


def test_the_config_is_read_once() -> None:
    """Whoever changes the mapping afterwards changes nothing."""
    config = pools(engine="mock", timeouts={"total": 5})
    with AdapterHost.from_config(config) as host:
        config["pools"]["chat"]["r0"]["timeouts"]["total"] = "x"
        config["pools"]["chat"]["r0"]["engine"] = "nope"
        assert host.submit("hi", pool="chat").result().text


def test_adapters_are_made_when_the_first_job_comes() -> None:
    """Until then nothing is made and nobody is asked; then it is made once."""
    made: list[int] = []

    class Third(MockAdapter):
        def __init__(self, url: str | None = None, **options: Any) -> None:
            made.append(1)
            super().__init__(url, **options)

    with AdapterHost() as host:
        host.bind("chat", "r0", Third)
        assert (made, host.props()["chat"]["r0"]["engine"]) == ([], None)
        host.submit("hi", pool="chat").result()
        host.submit("hi", pool="chat").result()
        assert (made, host.props()["chat"]["r0"]["engine"]) == ([1], "mock")


def test_threads_that_come_together_share_one_adapter() -> None:
    """If two threads make it at once, all jobs go to the first, and both are closed."""
    gate = threading.Barrier(8, timeout=SOON)
    closed: list[Any] = []

    class Third(MockAdapter):
        def close(self) -> None:
            closed.append(self)

    made: list[Third] = []

    def make() -> Third:
        gate.wait()
        made.append(Third())
        return made[-1]

    with AdapterHost() as host:
        host.bind("chat", "r0", make)
        threads = [threading.Thread(target=lambda: host.submit("hi", pool="chat").result()) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SOON)
    assert sorted(adapter.attempts for adapter in made) == [*[0] * (len(made) - 1), 8]
    assert set(map(id, closed)) == set(map(id, made))


# --- what is refused, and how


@pytest.mark.parametrize(
    ("config", "field", "words"),
    [
        (7, "config", "want a mapping"),
        (None, "config", "want a mapping"),
        ([], "config", "want a mapping"),
        ({1: 2}, "config", "want a mapping"),
        ({"pool": {}}, "pool", "no such key; there are pools, max_workers, policy, timeouts, retry, breaker"),
        ({"pools": []}, "pools", "want a mapping"),
        ({"pools": {"chat": "mock"}}, "pools.chat", "want a mapping"),
        ({"pools": {"chat": {"r0": "mock"}}}, "pools.chat.r0", "want a mapping"),
        ({"pools": {"chat": {"r0": {1: 2}}}}, "pools.chat.r0", "want a mapping"),
        ({"pools": {"": {"r0": {"engine": "mock"}}}}, "pools..r0.pool", "want a name"),
        (pools(), "pools.chat.r0.engine", "want the name of one"),
        (pools(engine=3), "pools.chat.r0.engine", "want the name of one"),
        (pools(engine="lamacpp"), "pools.chat.r0.engine", "no 'lamacpp'; there are litellm, llamacpp, lmstudio"),
        (pools(engine="auto", url="http://x"), "pools.chat.r0.engine", "worker-adapters detect URL tells it"),
        (pools(engine="llamacpp", url=8081), "pools.chat.r0.url", "want a URL"),
        (pools(engine="llamacpp", maxidle=3), "pools.chat.r0.maxidle", "no such key; there are engine, url, residency"),
        (pools(engine="vllm", tensors={}), "pools.chat.r0.tensors", "no such key; there are engine, url, residency"),
        (
            pools(engine="mock", timeouts={"first": 1}),
            "pools.chat.r0.timeouts",
            "unknown clock 'first'; there are pool,",
        ),
        (pools(engine="mock", timeouts={"total": 0}), "pools.chat.r0.timeouts.total", "want a positive number"),
        (pools(engine="mock", retry={"tries": 1}), "pools.chat.r0.retry", "mapping of its fields (attempts, base,"),
        (pools(engine="mock", retry={"attempts": 0}), "pools.chat.r0.retry.attempts", "want an integer of at least 1"),
        (pools(engine="mock", residency="vram"), "pools.chat.r0.residency", "want one of gpu, partial, cpu"),
        (pools(engine="mock", max_in_flight=0), "pools.chat.r0.max_in_flight", "want an integer of at least 1"),
        ({"max_workers": "many"}, "max_workers", "want an integer of at least 1"),
        ({"policy": "loose"}, "policy", "want one of off, warn, strict"),
        ({"timeouts": {"frist_token": 1}}, "timeouts", "unknown clock 'frist_token'; there are pool, connect,"),
        ({"retry": {"tries": 1}}, "retry", "(attempts, base, cap,"),
        ({"breaker": {"open": 1}}, "breaker", "(failures, open_for, open_most)"),
        ({"breaker": {"failures": 0}}, "breaker.failures", "want an integer of at least 1"),
    ],
)
def test_an_error_names_the_key_and_the_known_ones(config: Any, field: str, words: str) -> None:
    """Every mistake is one InvalidRequest that says where it stands, counted from the top, and what would do."""
    error = refused(config)
    assert error.field == field
    assert str(error).startswith(f"{field}: ")
    assert str(error).count(f"{field}: ") == 1
    assert words in str(error)


@pytest.mark.parametrize("engine", [pytest.param(name, marks=getattr(pytest.mark, name)) for name in sorted(CATALOG)])
def test_the_known_keys_are_those_that_the_adapter_takes(engine: str) -> None:
    """What is listed for an engine is what its constructor takes by name; what all take is always there."""
    known = options_of(adapter_class(engine))
    assert known is not None
    assert known >= COMMON
    own = {"triton": "tensors", "openai": "api_version", "mock": "context_size"}.get(engine, "key_header")
    assert own in known
    assert not known & {"url", "self", "options", "endpoint"}


def test_an_adapter_that_takes_anything_is_asked() -> None:
    """A third party's class may hide its options: then they are checked when it is made."""

    class Narrow(MockAdapter):
        def __init__(self, *urls: str, flavor: int = 0, **options: Any) -> None:
            super().__init__(*urls, **options)

    class Open(WorkerAdapter):
        def __init__(self, url: str | None = None, **options: Any) -> None:
            self.options = options

    assert options_of(Narrow) == {*options_of(MockAdapter), "flavor"}
    assert options_of(Open) is None


@pytest.mark.llamacpp
def test_a_value_that_the_adapter_refuses_is_told_with_its_place() -> None:
    """Values are the adapter's to judge, when it is made: at the first job, which says the key from the top."""
    with AdapterHost.from_config(pools(engine="llamacpp", url="ftp://a:1")) as host:
        with pytest.raises(InvalidRequest) as caught:
            host.submit("hi", pool="chat")
        assert caught.value.field == "pools.chat.r0.url"
    words = r"pools\.chat\.r0\.max_idle: want an integer of at least 0"
    with AdapterHost.from_config(pools(engine="vllm", max_idle=-1)) as host, pytest.raises(InvalidRequest, match=words):
        host.submit("hi", pool="chat")


def test_a_function_that_raises_is_one_replica_less() -> None:
    """What a caller's own function raises reaches nobody as it is: the others take the job, or it is refused."""

    def broken() -> MockAdapter:
        raise OSError("no such socket")

    with AdapterHost() as host:
        host.bind("chat", "r0", broken)
        with pytest.raises(InvalidRequest, match="raised OSError"):
            host.submit("hi", pool="chat")
        host.bind("chat", "r1", MockAdapter())
        assert host.submit("hi", pool="chat").result().text
        host.bind("other", "r0", lambda: 3)  # type: ignore[arg-type, return-value]  # the mistake
        with pytest.raises(InvalidRequest, match="made none"):
            host.submit("hi", pool="other")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read (No such file or directory)"),
        (b"[pools", "is no TOML: "),
        (b"a = 1\na = 2", "is no TOML: "),
        (b"\xff\xfe", "is no TOML: UnicodeDecodeError"),
        (b"a = " + b"[" * 5000, "is no TOML: "),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None, words: str) -> None:
    """The path and why, in one line."""
    path = tmp_path / "pools.toml"
    if content is not None:
        path.write_bytes(content)
    error = refused(path)
    assert error.field == "config"
    assert str(error).startswith(f"config: {path} {words}")
    assert "\n" not in str(error)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    """A path that is a folder is refused as one that cannot be read."""
    assert "cannot be read" in str(refused(str(tmp_path)))


@pytest.mark.parametrize(
    "config",
    [
        pools(engine="llamacpp", api_key=KEY, apikey=KEY),
        pools(engine="llamacpp", api_key=KEY, url=f"http://user:{KEY}@a:1", max_in_flight=KEY),
        pools(engine="llamacpp", api_key=[KEY]),
        {"policy": KEY},
    ],
)
def test_no_error_shows_a_value(config: Any) -> None:
    """A config holds keys: errors say which key is wrong, and never what it was set to."""
    with pytest.raises(InvalidRequest) as caught, AdapterHost.from_config(config) as host:
        host.submit("hi", pool="chat")
    assert "CANARY" not in repr((str(caught.value), vars(caught.value)))


def test_a_breaker_may_be_a_policy() -> None:
    """A mapping in Python may hold the values themselves."""
    config = {**pools(engine="mock", error=EngineUnavailable(message="gone")), "breaker": BreakerPolicy(failures=1)}
    with AdapterHost.from_config(config, retry={"attempts": 1}) as host:
        with pytest.raises(EngineUnavailable):
            host.submit("hi", pool="chat").result()
        assert host.props()["chat"]["r0"]["breaker"] == "open"


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomli is what older ones have instead")
def test_toml_is_read_with_the_standard_library() -> None:
    """tomli is needed on Python 3.10 alone."""
    from worker_adapters.host import config

    assert config.tomllib.__name__ == "tomllib"


def test_a_host_loads_no_engine() -> None:
    """Until an engine is named, a host costs no HTTP library, no TLS and nothing of an extra."""
    heavy = ["requests", "urllib3", "httptools", "ssl", "tenacity", "prometheus_client", "rich", "asyncio"]
    program = (
        "import sys, worker_adapters\n"
        "with worker_adapters.AdapterHost() as host: pass\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=SOON)
    assert ended.stdout == "[]\n"


@pytest.mark.llamacpp
@pytest.mark.vllm
def test_the_config_in_the_documentation_is_one(tmp_path: Path) -> None:
    """What docs/host.rst shows is a valid file, with the keys that it explains."""
    page = (Path(__file__).parent.parent / "docs" / "host.rst").read_text(encoding="utf-8")
    _, _, rest = page.partition(".. code-block:: toml\n")
    block = "\n".join(line[4:] for line in rest.splitlines() if line.startswith("    ") or not line)
    path = tmp_path / "pools.toml"
    path.write_text(block.partition("\n\nworker-adapters")[0])
    with AdapterHost.from_config(path) as host:
        told = host.props()["chat"]
    assert (list(told), told["r0"]["residency"], told["r1"]["max_in_flight"]) == (["r0", "r1"], "gpu", 32)
