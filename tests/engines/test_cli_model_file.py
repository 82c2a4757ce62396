"""``run --model FILE.gguf``: a real llama.cpp for as long as the command runs."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from worker_adapters.embedded import recital, write_reasoning_gguf, write_recite_gguf

pytestmark = [pytest.mark.engines, pytest.mark.llamacpp]

SOON = 30.0  # seconds that nothing here needs


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts ``run`` with its temporary files in an empty folder, and leaves no process behind."""
    started: list[subprocess.Popen[bytes]] = []
    folder = tmp_path / "tmp"
    folder.mkdir()

    def begin(*arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        command = (sys.executable, "-W", "error", "-m", "worker_adapters", "run", *arguments)
        environment = {**os.environ, "TMPDIR": str(folder), "TERM": "xterm"}
        started.append(subprocess.Popen(command, cwd=tmp_path, env=environment, bufsize=0, **pipes))
        return started[-1]

    yield begin
    for process in started:
        with process:
            process.kill()
    assert list(folder.iterdir()) == []


def test_a_generated_model_answers(run: Any, tmp_path: Path) -> None:
    """The file is served under its own name, and its answer is all there is on stdout."""
    write_recite_gguf(tmp_path / "parrot.gguf")
    out, err = run("--model", "parrot.gguf", "hi").communicate(timeout=SOON)
    assert out.decode() == recital() + "\n"
    assert (err.count(b"\n"), err.endswith(b", stop\n")) == (1, True)
    frames = run("--model", "parrot.gguf", "--json", "--max-tokens", "2", "hi").communicate(timeout=SOON)[0]
    assert json.loads(frames.splitlines()[0])["model"] == "parrot"


def test_a_conversation_with_a_model_file(run: Any, tmp_path: Path) -> None:
    """One server answers every turn, with what was said before; the metrics tell that the prompt has grown."""
    write_recite_gguf(tmp_path / "parrot.gguf")
    process = run("--model", "parrot.gguf", "--system", "Recite.", "--json", stdin=subprocess.PIPE)
    out, _ = process.communicate(b"one\ntwo\n", timeout=SOON)
    ends = [frame for frame in map(json.loads, out.splitlines()) if frame["type"] == "end"]
    assert process.returncode == 0
    assert [end["finish_reason"] for end in ends] == ["stop", "stop"]
    assert ends[1]["metrics"]["tokens_in"] > ends[0]["metrics"]["tokens_in"] + len(recital())


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda model: model[:100], "failed to read key-value pairs"),
        (lambda model: model[:-40], "'output.weight' data is not within the file bounds"),
        (lambda model: model.replace(b"\5\0\0\0\0\0\0\0llama", b"\5\0\0\0\0\0\0\0lamma"), "architecture: 'lamma'"),
        (lambda model: model[:4] + b"\x63" + model[5:], "version 99"),
    ],
)
def test_what_llamacpp_refuses_is_told_in_its_words(
    run: Any, tmp_path: Path, damage: Callable[[bytes], bytes], said: str
) -> None:
    """A file that is cut off, or of a kind unknown to llama.cpp, is one line with llama.cpp's reason, and exit 5."""
    model = tmp_path / "damaged.gguf"
    write_recite_gguf(model)
    model.write_bytes(damage(model.read_bytes()))
    process = run("--model", "damaged.gguf", "hi")
    out, err = process.communicate(timeout=SOON)
    assert (process.returncode, out, err.count(b"\n")) == (5, b"", 1)
    assert "llama.cpp does not load damaged.gguf: " in err.decode()
    assert said in err.decode()
    assert "Is the file whole" in err.decode()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_an_interrupted_command_takes_its_server_along(
    run: Any, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """Ctrl-C, SIGTERM and a closed terminal end the server, too, and leave no file."""
    write_recite_gguf(tmp_path / "slow.gguf", ballast_mib=40, cyclic=True)
    process = run("--model", "slow.gguf", "--max-tokens", "8000", "hi")
    process.stdout.read(1)
    server = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())
    process.send_signal(number)
    _, err = process.communicate(timeout=SOON)
    assert process.returncode == code
    assert b"Traceback" not in err
    assert not Path(f"/proc/{server}").exists()


def test_a_terminal_sees_the_file_being_loaded(run: Any, tmp_path: Path) -> None:
    """At a terminal the loading is shown and taken away; reasoning is dimmed, the answer is not."""
    write_reasoning_gguf(tmp_path / "thinker.gguf")
    ours, theirs = pty.openpty()
    process = run("--model", "thinker.gguf", "--chat", "hi", stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    try:
        while data := os.read(ours, 4096):
            shown += data
    except OSError:  # Linux ends a pseudo-terminal with an error
        pass
    os.close(ours)
    assert process.wait(SOON) == 0
    loading, _, rest = shown.decode().partition("Loading thinker.gguf (1 MB)")
    assert loading.endswith(" ")
    assert "\x1b[2mThe\x1b[0m\x1b[2m user\x1b[0m" in rest
    assert "\r\nHello! Forty two is the answer.\r\n\x1b[2m" in rest
