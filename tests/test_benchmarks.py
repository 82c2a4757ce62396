"""The benchmarks: their load server says what engines say, and all their clients read the same out of it.

What they measure is no matter for a test: here is only held that they measure the same thing.
"""

import http.client
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TRANSCRIPTS = ROOT / "tests" / "transcripts"
#: Path, recording, and how many kinds of event are held to it: llama.cpp's last one was recorded with other fields.
RECORDED = [
    ("/completion", "llamacpp/completion-response-fields-stream.json", 1),
    ("/generate_stream", "tgi/generate-stream-length.json", 2),
    ("/v2/models/bench/generate_stream", "triton/generate-stream.json", 1),
    ("/v1/completions", "vllm/completion-stream-usage.json", 4),
    ("/v1/chat/completions", "openai/openai-chat-stream-usage.json", 5),
]


@pytest.fixture
def server(monkeypatch):
    """The load server's module, as a benchmark imports it."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import server

    yield server
    for name in ("server", "measure", "load"):
        sys.modules.pop(name, None)


def shape(value):
    """A JSON value with its keys, lists and nulls, but without what it says."""
    if isinstance(value, dict):
        return {name: shape(item) for name, item in value.items()}
    if isinstance(value, list):
        return [shape(item) for item in value]
    return type(value).__name__


def shapes(texts):
    """The shapes of the events, each once, in their order."""
    values = [text.removeprefix("data: ") for text in texts if text]
    return list(dict.fromkeys(v if v == "[DONE]" else json.dumps(shape(json.loads(v))) for v in values))


@pytest.mark.parametrize(("path", "recording", "kinds"), RECORDED)
def test_the_load_server_sends_events_of_the_recorded_shape(server, path, recording, kinds):
    """Same keys in the same order, same types, same nulls, same events before and after the tokens."""
    response = json.loads((TRANSCRIPTS / recording).read_text())["response"]
    recorded = "".join(chunk["text"] for chunk in response["chunks"]).split("\n\n")
    body = b"".join(server.pieces(path, 3)).decode()
    sent = [line for line in body.split("\r\n") if line.startswith("data: ")]
    wanted = shapes(recorded)[:kinds]
    assert len(wanted) == kinds
    assert shapes(line.strip() for line in sent)[:kinds] == wanted


def everything_from(url, facts, requests):
    """Status, headers and body of each answer, on one connection."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
    answers = []
    for method, asked, body in [*(("GET", name, None) for name in facts), *requests]:
        connection.request(method, asked, body)
        answer = connection.getresponse()
        answers.append((answer.status, answer.getheaders(), answer.read()))
    connection.close()
    return answers


def test_the_compiled_load_server_says_what_the_python_one_says(server, tmp_path):
    """Facts and streams, all at once and piece by piece."""
    import load

    program = load.built(tmp_path)
    if program is None:
        pytest.skip("no C compiler, or no epoll")
    requests = [
        ("POST", "/v1/chat/completions", json.dumps({"messages": [{"content": f"{gap}"}], "max_tokens": 3}))
        for gap in (0, 1)
    ]
    said = []
    for load_server in (load.CompiledServer(program, [3]), server.Server()):
        with load_server as url:
            said.append(everything_from(url, server.FACTS, requests))
            late = json.loads(everything_from(url, [server.SERVED], [])[0][2])
            assert late["paced"] == 4
            assert late["cpu_s"] > 0
    assert said[0] == said[1]


def test_the_page_shows_what_was_kept():
    """The page on performance is what peers.py prints of the newest results."""
    newest = max((ROOT / "benchmarks" / "results").glob("*.json"))
    program = [sys.executable, ROOT / "benchmarks" / "peers.py", "--show", newest]
    done = subprocess.run(program, capture_output=True, check=True, text=True, timeout=60)
    assert (ROOT / "docs" / "captures" / "performance.txt").read_text() == done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["llamacpp", "tgi", "triton", "vllm", "openai"])
def test_all_clients_read_the_same_texts(engine):
    """cost.py fails if one of them does not; and it names a ratio for each goal."""
    program = [sys.executable, ROOT / "benchmarks" / "cost.py", "--engine", engine, "--json"]
    sizes = ["--rounds", "1", "--tokens", "30", "--requests", "2"]
    done = subprocess.run([*program, *sizes], capture_output=True, check=False, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert list(found["us"]) == [engine]
    assert all(ratio["median"] > 0 for ratio in found["ratios"].values())
    assert len(found["ratios"]) == 3


@pytest.mark.slow
def test_all_peers_that_are_here_read_the_same_texts(tmp_path):
    """peers.py fails if one does not; it keeps what it prints, and prints it again from what it kept."""
    kept = tmp_path / "kept.json"
    program = [sys.executable, ROOT / "benchmarks" / "peers.py"]
    peers = ["--here", "--client", "raw socket + msgspec", "--client", "huggingface_hub", "--cache", tmp_path]
    sizes = ["--rounds", "1", "--tokens", "30", "--paced", "3", "--requests", "2", "--threads", "2", "3"]
    figures = ["--figure", "request", "--figure", "many", "--json", kept]
    done = subprocess.run(
        [*program, *peers, *sizes, *figures], capture_output=True, check=False, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(kept.read_text())["figures"]
    assert {name: [told["failed"] for told in rounds] for name, rounds in found["many"].items()} == {
        "worker_adapters": [0],
        "raw socket + msgspec": [0],
        "huggingface_hub": [0],
    }
    assert all(told["us"] > 0 for rounds in found["request"].values() for told in rounds)
    again = subprocess.run([*program, "--show", kept], capture_output=True, check=False, text=True, timeout=60)
    assert again.stdout == done.stdout
