"""The embedded engine: a real llama.cpp server on the model that recites."""

import gc
import http.client
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from worker_adapters.embedded import (
    REASONING_TEXT,
    EmbeddedLlamaCpp,
    EmbeddedServerError,
    recital,
    write_reasoning_gguf,
    write_recite_gguf,
    write_tool_call_gguf,
)

pytestmark = [
    pytest.mark.engines,
    pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="needs the wheel xllamacpp"),
]

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedLlamaCpp]:
    """One server with the default model for the tests that only talk to it."""
    with EmbeddedLlamaCpp() as running:
        yield running


def call(
    server: EmbeddedLlamaCpp, path: str, body: dict[str, Any] | None = None, headers: dict[str, str] | None = None
) -> tuple[int, Any]:
    """One exchange: the status and the decoded JSON, or the text of an event stream."""
    connection = http.client.HTTPConnection(server.host, server.port, timeout=20)
    try:
        connection.request("GET" if body is None else "POST", path, json.dumps(body) if body else None, headers or {})
        response = connection.getresponse()
        data = response.read()
        if response.headers.get_content_type() == "application/json":
            return response.status, json.loads(data)
        return response.status, data.decode()
    finally:
        connection.close()


def events(text: str) -> list[Any]:
    """The JSON payloads of an event stream, without the marker of its end."""
    lines = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def until(condition: Any, seconds: float) -> bool:
    """Whether the condition becomes true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def test_starts_fast_and_is_healthy() -> None:
    """A server is ready in less than five seconds and says so."""
    began = time.monotonic()
    with EmbeddedLlamaCpp() as server:
        assert time.monotonic() - began < 5
        assert server.running
        assert server.url == f"http://127.0.0.1:{server.port}"
        assert call(server, "/health") == (200, {"status": "ok"})


def test_streams_the_recital(server: EmbeddedLlamaCpp) -> None:
    """A native stream says the text piece by piece and ends with end-of-sequence."""
    status, text = call(server, "/completion", {"prompt": "Hello.", "stream": True})
    received = events(text)
    assert status == 200
    assert "".join(event["content"] for event in received) == recital()
    assert len(received) > 40
    assert received[-1]["stop_type"] == "eos"


@pytest.mark.parametrize(
    "prompt", ["", "a", "Welcome! This", "the", "no download, no", "naïve", "日本語", "\n", " .", "🙂"]
)
def test_any_prompt_starts_at_the_beginning(server: EmbeddedLlamaCpp, prompt: str) -> None:
    """Whatever the prompt, also words of the text, the recital is whole."""
    assert call(server, "/completion", {"prompt": prompt})[1]["content"] == recital()


def test_chat(server: EmbeddedLlamaCpp) -> None:
    """A chat answers with the recital, streamed and whole."""
    body = {"messages": [{"role": "user", "content": "hi"}]}
    status, answer = call(server, "/v1/chat/completions", body)
    assert (status, answer["choices"][0]["message"]["content"]) == (200, recital())
    _, text = call(server, "/v1/chat/completions", body | {"stream": True})
    deltas = [event["choices"][0]["delta"].get("content") or "" for event in events(text)]
    assert "".join(deltas) == recital()


def test_temperature_zero_is_deterministic(server: EmbeddedLlamaCpp) -> None:
    """Greedy runs give the same tokens, and a wandering one follows its seed."""
    greedy = {"prompt": "x", "temperature": 0, "return_tokens": True}
    assert len({str(call(server, "/completion", greedy)[1]["tokens"]) for _ in range(3)}) == 1
    wander = {"prompt": "x", "temperature": 2, "min_p": 0, "top_p": 1, "n_predict": 40, "return_tokens": True}
    seeded = [call(server, "/completion", wander | {"seed": seed})[1]["tokens"] for seed in (1, 1, 2)]
    assert seeded[0] == seeded[1] != seeded[2]


def test_ignore_eos_is_endless(server: EmbeddedLlamaCpp) -> None:
    """Under ignore_eos the recital starts again after its end, up to the limit."""
    answer = call(server, "/completion", {"prompt": "x", "ignore_eos": True, "n_predict": 120})[1]
    assert answer["stop_type"] == "limit"
    assert answer["tokens_predicted"] == 120
    assert answer["content"].startswith(f"{recital()} {recital()} Welcome!")


def test_endpoints(server: EmbeddedLlamaCpp) -> None:
    """Slots, props and metrics are served, and a slot has its share of the context."""
    assert len(call(server, "/slots")[1]) == 4
    assert call(server, "/props")[1]["default_generation_settings"]["n_ctx"] == 512
    assert "llamacpp:requests_processing" in call(server, "/metrics")[1]


def test_cyclic_never_ends(tmp_path: Path) -> None:
    """A cyclic model goes on until the context is full."""
    model = write_recite_gguf(tmp_path / "model.gguf", words="one two three ", cyclic=True)
    with EmbeddedLlamaCpp(model, slots=1, context=256) as server:
        answer = call(server, "/completion", {"prompt": "x"})[1]
    assert (answer["stop_type"], answer["truncated"]) == ("limit", True)
    assert answer["content"].startswith("one two three  one two three  one")


@pytest.mark.parametrize(
    "text",
    [
        "no no no no no",
        "a b c a b c d",
        "Ünïcödé: 日本語 and 🙂 or 🙃, é é!",
        "  leading\n\nlines\tand trailing \n",
        "<think>x</think>",
        "🙂",
        "aaa🙂.",
        "日本語",
        "single",
    ],
)
def test_recites_any_text(tmp_path: Path, text: str) -> None:
    """Repeated and short words, white space and characters of several bytes all come out as they went in."""
    for by_bytes in (True, False):
        try:
            model = write_recite_gguf(tmp_path / "model.gguf", words=text, byte_fallback=by_bytes)
        except ValueError:
            assert len(text) < 3
            continue
        with EmbeddedLlamaCpp(model) as server:
            answer = call(server, "/completion", {"prompt": "Go", "stream": True})[1]
        assert "".join(event["content"] for event in events(answer)) == text


def test_byte_fallback_holds_a_character_back(server: EmbeddedLlamaCpp) -> None:
    """A character recited by its bytes takes several tokens and arrives whole in one event."""
    _, text = call(server, "/completion", {"prompt": "x", "stream": True})
    counts = {event["content"]: event["tokens_predicted"] for event in events(text)}
    assert counts["é"] == counts[" caf"] + 2


def test_reasoning(tmp_path: Path) -> None:
    """The reasoning model's thoughts come apart from its answer."""
    with EmbeddedLlamaCpp(write_reasoning_gguf(tmp_path / "model.gguf")) as server:
        body = {"messages": [{"role": "user", "content": "hi"}], "stream": True}
        _, text = call(server, "/v1/chat/completions", body)
    deltas = [event["choices"][0]["delta"] for event in events(text)]
    thoughts, _, answer = REASONING_TEXT.removeprefix("<think>").partition("</think>")
    assert "".join(delta.get("reasoning_content") or "" for delta in deltas).strip() == thoughts.strip()
    assert "".join(delta.get("content") or "" for delta in deltas).strip() == answer.strip()


def test_tool_call(tmp_path: Path) -> None:
    """The tool model calls the declared function in pieces."""
    with EmbeddedLlamaCpp(write_tool_call_gguf(tmp_path / "model.gguf")) as server:
        body = {"messages": [{"role": "user", "content": "hi"}], "stream": True, "tools": [WEATHER]}
        _, text = call(server, "/v1/chat/completions", body)
    choices = [event["choices"][0] for event in events(text)]
    calls = [piece for choice in choices for piece in choice["delta"].get("tool_calls", [])]
    assert calls[0]["function"]["name"] == "get_weather"
    assert json.loads("".join(piece["function"]["arguments"] for piece in calls)) == {"city": "Oslo"}
    assert choices[-1]["finish_reason"] == "tool_calls"


def test_ballast_makes_it_slow(tmp_path: Path) -> None:
    """Ballast slows tokens down without taking disk space, and two blocks slow the prompt down."""
    model = write_recite_gguf(tmp_path / "model.gguf", ballast_mib=64, blocks=2)
    assert model.stat().st_size > 64 * 2**20
    assert model.stat().st_blocks * 512 < 2 * 2**20
    with EmbeddedLlamaCpp(model) as server:
        timings = call(server, "/completion", {"prompt": "x" * 300, "n_predict": 10})[1]["timings"]
    assert timings["predicted_per_token_ms"] > 1
    assert timings["prompt_ms"] > 30


def test_hold_loading() -> None:
    """A held server answers 503 until it may load, and then works."""
    with EmbeddedLlamaCpp(hold_loading=True) as server:
        for _ in range(2):
            status, body = call(server, "/health")
            assert (status, body["error"]["message"]) == (503, "Loading model")
            time.sleep(0.1)
        server.finish_loading()
        assert call(server, "/health")[0] == 200
        server.finish_loading()


def test_held_server_can_be_closed() -> None:
    """A server that still loads is ended like any other, at once."""
    server = EmbeddedLlamaCpp(hold_loading=True).start()
    began = time.monotonic()
    server.close()
    assert time.monotonic() - began < 2


def test_kill_and_come_back() -> None:
    """Kill ends the process in the middle of a stream; a new start brings it back on the same port."""
    with EmbeddedLlamaCpp() as server:
        pid, port = server.pid, server.port
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("POST", "/completion", json.dumps({"prompt": "x", "stream": True, "ignore_eos": True}))
        response = connection.getresponse()
        response.read(1)
        server.kill()
        assert not alive(pid)
        assert not server.running
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            response.read()
        response.close()
        connection.close()
        with pytest.raises(ConnectionRefusedError):
            call(server, "/health")
        server.start()
        assert server.port == port
        assert server.pid != pid
        assert call(server, "/health")[0] == 200


def test_pause_and_resume(server: EmbeddedLlamaCpp) -> None:
    """A paused server accepts connections and says nothing until it is resumed."""
    server.pause()
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(call(server, "/health")))
    thread.start()
    try:
        thread.join(0.3)
        assert thread.is_alive()
    finally:
        server.resume()
        thread.join()
    assert answers == [(200, {"status": "ok"})]


def test_paused_server_can_be_closed() -> None:
    """Closing a paused server takes no longer than closing a running one."""
    with EmbeddedLlamaCpp() as server:
        pid = server.pid
        server.pause()
        began = time.monotonic()
    assert time.monotonic() - began < 2
    assert not alive(pid)


@pytest.mark.parametrize("end", ["exit", "kill", "unclosed"])
def test_parent_death_ends_the_child(end: str) -> None:
    """However the parent dies, the server ends by itself; an orderly exit also deletes the folder."""
    code = (
        "import os, signal, sys\n"
        "from worker_adapters.embedded import EmbeddedLlamaCpp\n"
        "server = EmbeddedLlamaCpp().start()\n"
        "print(server.pid, server.model_path, flush=True)\n"
        "sys.stdin.readline()\n"
        f"end = {end!r}\n"
        "if end == 'kill': os.kill(os.getpid(), signal.SIGKILL)\n"
        "if end == 'exit': os._exit(0)\n"
    )
    root = Path(__file__).parents[1]
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root, text=True
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        pid, _, path = parent.stdout.readline().strip().partition(" ")
        model = Path(path)
        assert alive(int(pid))
        assert model.exists()
        parent.stdin.write("\n")
        parent.stdin.flush()
        parent.wait(10)
    assert until(lambda: not alive(int(pid)), 5)
    assert model.exists() == (end != "unclosed")
    if model.exists():  # nobody was left to delete it
        for file in model.parent.iterdir():
            file.unlink()
        model.parent.rmdir()


def test_ctrl_c_is_the_parents(server: EmbeddedLlamaCpp) -> None:
    """SIGINT, which a terminal sends to the whole group, does not end the server."""
    os.kill(server.pid, signal.SIGINT)
    time.sleep(0.1)
    assert call(server, "/health")[0] == 200


def test_api_key_is_enforced_and_hidden() -> None:
    """Without the key all but health is refused; the key shows neither in the process list nor in the repr."""
    with EmbeddedLlamaCpp(api_key="made-up-key") as server:
        assert call(server, "/health")[0] == 200
        assert call(server, "/props")[0] == 401
        assert call(server, "/props", headers={"Authorization": "Bearer wrong"})[0] == 401
        assert call(server, "/props", headers={"Authorization": "Bearer made-up-key"})[0] == 200
        assert b"made-up-key" not in Path(f"/proc/{server.pid}/cmdline").read_bytes()
        assert "made-up-key" not in repr(server)


def test_two_servers_side_by_side(server: EmbeddedLlamaCpp, tmp_path: Path) -> None:
    """Two servers have their own ports, models and lives."""
    other_model = write_recite_gguf(tmp_path / "other.gguf", words="something else entirely")
    with EmbeddedLlamaCpp(other_model) as other:
        assert other.port != server.port
        assert call(other, "/completion", {"prompt": "x"})[1]["content"] == "something else entirely"
        assert call(server, "/completion", {"prompt": "x"})[1]["content"] == recital()
    assert call(server, "/health")[0] == 200
    assert other_model.exists()


def test_sleeps_when_idle() -> None:
    """With sleep_idle_seconds the model is freed after a second without work."""
    with EmbeddedLlamaCpp(sleep_idle_seconds=1) as server:
        assert until(lambda: call(server, "/props")[1]["is_sleeping"], 10)


def test_extra_parameters() -> None:
    """The alias and extra parameters reach the engine, nested ones too."""
    with EmbeddedLlamaCpp(alias="parrot", extra={"sampling.top_k": 7}) as server:
        props = call(server, "/props")[1]
        models = call(server, "/v1/models")[1]
    assert models["data"][0]["id"] == props["model_alias"] == "parrot"
    assert props["default_generation_settings"]["params"]["top_k"] == 7


def test_nothing_leaks() -> None:
    """Ten servers, closed twice, killed, collected or failed, leave no process, descriptor or folder behind."""

    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    with EmbeddedLlamaCpp():
        pass  # whatever the first start opens for good
    gc.collect()
    before = descriptors()
    for round_ in range(10):
        server = EmbeddedLlamaCpp(hold_loading=round_ % 2 == 0).start()
        pid, folder = server.pid, server.model_path.parent
        if round_ % 3 == 0:
            server.kill()
            server.close()
            server.close()
        elif round_ % 3 == 1:
            server.close()
        del server  # every third is only collected
        gc.collect()
        assert not alive(pid)
        assert not folder.exists()
    with pytest.raises(EmbeddedServerError):
        EmbeddedLlamaCpp(extra={"nope": 1}).start()
    gc.collect()
    assert descriptors() == before


@pytest.mark.skipif(sys.version_info >= (3, 12) and threading.active_count() > 1, reason="fork with threads warns")
def test_a_forked_copy_ends_nothing(server: EmbeddedLlamaCpp) -> None:
    """Closing in a forked copy of the process leaves the server to the process that started it."""
    forked = os.fork()
    if not forked:
        server.close()
        os._exit(0)
    os.waitpid(forked, 0)
    assert call(server, "/health")[0] == 200
    assert server.model_path.exists()


def test_missing_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the wheel the error says what to install."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=re.escape('pip install "worker-adapters[demo]"')):
        EmbeddedLlamaCpp().start()


def test_bad_model_files(tmp_path: Path, server: EmbeddedLlamaCpp) -> None:
    """A missing, a foreign and a cut model file each give an error with the path."""
    missing = tmp_path / "missing.gguf"
    with pytest.raises(FileNotFoundError, match=re.escape(str(missing))):
        EmbeddedLlamaCpp(missing).start()
    foreign = tmp_path / "foreign.gguf"
    foreign.write_bytes(b"PK\x03\x04 and so on")
    with pytest.raises(ValueError, match=re.escape(str(foreign))):
        EmbeddedLlamaCpp(foreign).start()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(server.model_path.read_bytes()[:5000])
    with pytest.raises(EmbeddedServerError, match=re.escape(str(cut))) as caught:
        EmbeddedLlamaCpp(cut).start()
    assert "its log ends" in str(caught.value)
    assert re.fullmatch("string length .+|failed to read .+", caught.value.reason or "")


def test_port_in_use(server: EmbeddedLlamaCpp) -> None:
    """A port that is taken is an error with the engine's own words."""
    with pytest.raises(EmbeddedServerError, match=str(server.port)):
        EmbeddedLlamaCpp(port=server.port).start()


def test_start_deadline() -> None:
    """A server that is not ready in time is ended and the error says how long it had."""
    server = EmbeddedLlamaCpp(start_timeout=0.001)
    with pytest.raises(EmbeddedServerError, match=r"within 0\.001 s"):
        server.start()
    assert not server.running


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"words": " a "}, "words"),
        ({"width": 100}, "width"),
        ({"width": 64}, "width"),
        ({"blocks": 0}, "blocks"),
        ({"ballast_mib": -1}, "ballast_mib"),
        ({"weight": 0}, "weight"),
        ({"context_length": 0}, "context_length"),
    ],
)
def test_bad_sizes(tmp_path: Path, options: dict[str, Any], named: str) -> None:
    """A size that does not fit is refused by name and writes no file."""
    with pytest.raises(ValueError, match=named):
        write_recite_gguf(tmp_path / "model.gguf", **options)
    assert not list(tmp_path.iterdir())


def test_file_is_what_gguf_reads(tmp_path: Path) -> None:
    """The reference reader finds the metadata and tensors that were meant."""
    gguf = pytest.importorskip("gguf")
    model = write_recite_gguf(tmp_path / "model.gguf", words="one two three", blocks=3, width=512)
    reader = gguf.GGUFReader(model)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert len(tensors) == 3 + 3 * 9
    assert list(tensors["token_embd.weight"].shape) == [512, 259 + 4]
    assert tensors["output.weight"].data.max() == 8.0
    assert reader.fields["llama.block_count"].contents() == 3
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    assert tokens[259:] == ["one", "▁two", "▁three", "▁one"]
