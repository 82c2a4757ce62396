"""The command line over a host: a job to a pool, and how its engines are."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from canary import KEY
from worker_adapters.cli.commands import cli
from worker_adapters.simulate import LlamaCppSimulator, VllmSimulator

pytestmark = [pytest.mark.llamacpp, pytest.mark.vllm]

SOON = 20.0  # seconds that nothing here needs
COMMAND = (sys.executable, "-W", "error", "-m", "worker_adapters")
PROMPT = "my secret prompt"
NOBODY = "http://127.0.0.1:9"  # discard: nothing listens there
TWO = """
[pools.chat.r0]
engine = "llamacpp"
url = "URL0"
[pools.chat.r1]
engine = "vllm"
url = "URL1"
residency = "gpu"
[pools."a pool with a rather long name".mock]
engine = "mock"
version = "LONG"
"""
LONG = "1.2.3+a.local.build.with.a.long.name"


@pytest.fixture
def sims() -> Iterator[tuple[LlamaCppSimulator, VllmSimulator]]:
    """Two engines."""
    with LlamaCppSimulator(slots=4) as one, VllmSimulator() as two:
        yield one, two


@pytest.fixture
def written(tmp_path: Path, sims: tuple[Any, Any]) -> Callable[..., str]:
    """Writes a config, with the engines' URLs in it, and gives its path."""

    def write(text: str = TWO) -> str:
        path = tmp_path / "pools.toml"
        for name, value in (("URL0", sims[0].url), ("URL1", sims[1].url), ("LONG", LONG)):
            text = text.replace(name, value)
        path.write_text(text)
        return str(path)

    return write


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts a command of its own, and leaves none behind."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(*arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        started.append(subprocess.Popen([*COMMAND, *arguments], bufsize=0, **pipes))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def shell(start: Callable[..., subprocess.Popen[bytes]]) -> Callable[..., tuple[int, str, str]]:
    """Runs a command to its end: exit code, stdout, stderr."""

    def execute(*arguments: str, **options: Any) -> tuple[int, str, str]:
        process = start(*arguments, **options)
        out, err = process.communicate(timeout=SOON)
        return process.returncode, out.decode(), err.decode()

    return execute


def on_terminal(start: Any, columns: int, *arguments: str, until: str = "") -> tuple[int, str]:
    """Exit code and what a terminal of that width gets; with ``until``, Ctrl-C once that was shown twice."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    process = start(*arguments, stdin=theirs, stdout=theirs, stderr=theirs, env={**environment, "TERM": "xterm"})
    os.close(theirs)
    shown = b""
    try:
        while data := os.read(ours, 4096):
            shown += data
            if until and shown.count(until.encode()) >= 2:
                until = ""
                process.send_signal(signal.SIGINT)
    except OSError:
        pass
    os.close(ours)
    return process.wait(SOON), shown.decode().replace("\r", "")


def plain(shown: str) -> list[str]:
    """The lines, less their colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", shown).splitlines()


# --- run


def test_a_pool_answers(shell: Any, written: Any, sims: Any) -> None:
    """The answer alone on stdout, whichever replica gave it; options are fields of the task."""
    code, out, err = shell("run", "--config", written(), "--pool", "chat", "--max-tokens", "4", "--seed", "5", PROMPT)
    posted = [request for sim in sims for request in sim.requests if request.method == "POST"]
    assert (code, len(posted), posted[0].json["seed"]) == (0, 1, 5)
    assert out.endswith("\n")
    assert out.strip()
    assert re.fullmatch(r"4 tokens, .*\n", err)


def test_the_only_pool_needs_no_name(shell: Any, written: Any) -> None:
    """Without --pool the only one is meant."""
    path = written('[pools.only.r0]\nengine = "mock"\n')
    assert shell("run", "--config", path, "hi")[:2] == (0, "Hello from the mock.\n")
    code, out, _ = shell("run", "--config", path, "--json", "hi")
    assert (code, [json.loads(line)["type"] for line in out.splitlines()]) == (0, ["started", *["token"] * 5, "end"])


def test_a_job_goes_round_an_engine_that_is_down(shell: Any, written: Any, sims: Any) -> None:
    """With one engine dead the other answers, and nothing is said of it."""
    sims[0].kill()
    code, out, err = shell("run", "--config", written(), "--pool", "chat", "--max-tokens", "4", PROMPT)
    assert (code, bool(out.strip())) == (0, True)
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["hi"], "Give --engine or --url, --config for a pool"),
        (["--pool", "chat", "--engine", "mock", "hi"], "--pool needs --config"),
        (["--config", "CONFIG", "--engine", "mock", "hi"], "leave out --engine"),
        (["--config", "CONFIG", "--url", "http://x", "--api-key-env", "K", "hi"], "leave out --url, --api-key-env"),
        (["--config", "CONFIG", "hi"], "has chat, a pool with a rather long name"),
        (["--config", "CONFIG.not", "hi"], "does not exist"),
    ],
)
def test_a_wrong_command_line_is_a_usage_error(written: Any, arguments: list[str], words: str) -> None:
    """What cannot be meant together is told apart, with exit code 2."""
    given = [argument.replace("CONFIG", written()) for argument in arguments]
    answer = CliRunner().invoke(cli, ["run", *given])
    assert answer.exit_code == 2
    assert words in " ".join(answer.output.split())


@pytest.mark.parametrize(
    ("config", "arguments", "code", "words"),
    [
        (TWO, ("--pool", "chta"), 3, "pool: there is no 'chta'; there are a pool with a rather long name, chat"),
        ("pools = 3", (), 3, "pools: want a mapping"),
        ("[pool.chat.r0]", (), 3, "pool: no such key; there are pools, max_workers"),
        ("[pools.chat.r0]\nengine = 'llamcpp'", (), 3, "pools.chat.r0.engine: no 'llamcpp'; there are"),
        ("[pools.chat.r0]\nengine = 'mock'\napikey = 'sk-CANARY-1'", (), 3, "pools.chat.r0.apikey: no such key;"),
        ("[pools.chat", (), 3, "is no TOML"),
        (f"[pools.chat.r0]\nengine = 'vllm'\nurl = '{NOBODY}'", (), 9, "nothing listens there"),
        ("policy = 'strict'\n[pools.chat.r0]\nengine = 'mock'", (), 8, "accepted: gpu"),
    ],
)
def test_an_error_is_one_line_and_its_code(
    shell: Any, written: Any, *, config: str, arguments: tuple[str, ...], code: int, words: str
) -> None:
    """What is wrong with the config or the pool is said in one line, once, and never with a value of it."""
    returned, out, err = shell("run", "--config", written(config), *arguments, PROMPT)
    assert (returned, out) == (code, "")
    assert words in err
    assert err.count("\n") == 1
    assert PROMPT not in err
    assert "CANARY" not in err


def test_ctrl_c_frees_the_engine(start: Any, written: Any, sims: Any) -> None:
    """Ctrl-C cancels a job in a pool as it does any other: exit 130, the text so far, the engine free."""
    sims[0].endless, sims[0].delay = True, 0.002
    path = written('[pools.chat.r0]\nengine = "llamacpp"\nurl = "URL0"\n')
    process = start("run", "--config", path, "--max-tokens", "1000000", "hi")
    first = process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=SOON)
    assert (process.returncode, (first + out)[:4]) == (130, b" the")
    assert err.endswith(b"cancelled\n")
    assert b"Traceback" not in err
    assert sims[0].wait_idle(SOON)


def test_a_pool_of_chat_engines_is_asked_in_a_conversation(shell: Any, written: Any) -> None:
    """Where no engine continues raw text the prompt is a user's message, as with --chat; --raw insists."""
    with LlamaCppSimulator() as sim:
        path = written(f'[pools.chat.r0]\nengine = "llamacpp"\nurl = "{sim.url}"\n')
        for option, route in (("--chat", "/v1/chat/completions"), ("--raw", "/completion")):
            assert shell("run", "--config", path, option, "hi")[0] == 0
            assert [request.path for request in sim.requests if request.method == "POST"][-1] == route


# --- status


def test_status_is_a_table(shell: Any, written: Any) -> None:
    """Piped: a line a replica, in columns that nothing is cut from, and nothing else; exit 0."""
    code, out, err = shell("status", "--config", written())
    lines = [re.split(r" {2,}", line.strip()) for line in out.splitlines()]
    assert (code, err) == (0, "")
    assert lines == [
        ["POOL", "REPLICA", "ENGINE", "VERSION", "HEALTH", "BREAKER", "IN FLIGHT", "RESIDENCY"],
        ["chat", "r0", "llamacpp", "-", "healthy", "closed", "0/4", "unknown"],
        ["chat", "r1", "vllm", "0.32.0", "healthy", "closed", "0", "gpu"],
        ["a pool with a rather long name", "mock", "mock", LONG, "healthy", "closed", "0", "unknown"],
    ]
    assert "\x1b" not in out


@pytest.mark.parametrize("columns", [80, 200])
def test_status_fits_a_terminal(start: Any, written: Any, columns: int) -> None:
    """Names and versions give way; health, breaker, jobs and residency are never cut."""
    code, shown = on_terminal(start, columns, "status", "--config", written())
    lines = plain(shown)
    assert (code, len(lines)) == (0, 4)
    assert max(map(len, lines)) <= columns
    assert " ".join(lines[0].split()) == "POOL REPLICA ENGINE VERSION HEALTH BREAKER IN FLIGHT RESIDENCY"
    for line, tail in zip(lines[1:], ("0/4 unknown", "0 gpu", "0 unknown"), strict=True):
        assert " ".join(line.split()).endswith(f"healthy closed {tail}")
    assert ("…" in shown) == (columns == 80)
    assert "\x1b[32mhealthy" in shown


def test_status_says_what_is_wrong(shell: Any, written: Any, sims: Any) -> None:
    """The reason stands below the table; a pool that nobody serves is exit 9, one that somebody serves is not."""
    sims[0].kill()
    code, out, err = shell("status", "--config", written())
    assert (code, err) == (0, "")
    assert re.search(r"^chat +r0 +llamacpp +- +unhealthy ", out, re.MULTILINE)
    assert re.search(r"^chat/r0: .*nothing listens there", out, re.MULTILINE)
    sims[1].kill()
    code, out, err = shell("status", "--config", written())
    assert (code, err) == (9, "worker-adapters: ENGINE_UNAVAILABLE: no ready replica in chat\n")


def test_status_tells_jobs_of_others(shell: Any, written: Any, sims: Any) -> None:
    """In flight is what the engine tells, whoever sent it."""
    from worker_adapters import connect

    sims[0].endless, sims[0].delay = True, 0.005
    with connect("llamacpp", sims[0].url) as engine, engine.submit("hi", max_tokens=10**6) as stream:
        stream.start()
        _, out, _ = shell("status", "--config", written())
    assert re.search(r"^chat +r0 .* 1/4 ", out, re.MULTILINE)


def test_status_as_json(shell: Any, written: Any) -> None:
    """--json is one line of what host.look() gives, also of what the table leaves out."""
    code, out, _ = shell("status", "--config", written(), "--json")
    told = json.loads(out)
    assert (code, out.count("\n"), list(told)) == (0, 1, ["chat", "a pool with a rather long name"])
    assert told["chat"]["r1"]["model"] == "recite"


@pytest.mark.parametrize(
    ("config", "code", "words"),
    [("", 2, "names no pool"), ("x = 1", 3, "x: no such key"), ("[pools.chat.r0]\nengine='x'", 3, "pools.chat.r0.")],
)
def test_status_of_a_wrong_config(shell: Any, written: Any, config: str, code: int, words: str) -> None:
    """A config that says nothing, or something wrong, is told as by run."""
    returned, out, err = shell("status", "--config", written(config))
    assert (returned, out) == (code, "")
    assert words in " ".join(err.split())


def test_status_shows_no_key(shell: Any, written: Any, sims: Any) -> None:
    """A key, and a password in a URL, stay out of table, notes and JSON, also when the engine refuses them."""
    url = sims[0].url.replace("http://", f"http://user:{KEY}@")
    config = f'[pools.chat.r0]\nengine="llamacpp"\nurl="{url}"\napi_key="{KEY}"\n'
    with LlamaCppSimulator(api_key="another-key-of-it") as strict:
        config += f'[pools.chat.r1]\nengine="llamacpp"\nurl="{strict.url}"\napi_key="{KEY}"\n'
        for form in ((), ("--json",)):
            _, out, err = shell("status", "--config", written(config), *form)
            assert "chat" in out
            assert "CANARY" not in out + err


def test_watching_is_live_on_a_terminal(start: Any, written: Any) -> None:
    """--watch draws the table again in its place, until Ctrl-C: exit 130, the cursor back, no traceback."""
    arguments = ("status", "--config", written(), "--watch", "--every", "0.1")
    code, shown = on_terminal(start, 100, *arguments, until="RESIDENCY")
    assert code == 130
    assert "\x1b[1A" in shown  # the cursor goes up, to draw again
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")
    assert "Traceback" not in shown


def test_watching_through_a_pipe_is_table_after_table(start: Any, written: Any) -> None:
    """Piped, each look is a table of its own below the last; when the reader goes, it ends: exit 141."""
    process = start("status", "--config", written(), "--watch", "--every", "0.1")
    heads, empty = 0, 0
    while heads < 2:
        line = process.stdout.readline()
        assert line, "it ended before its time"
        heads, empty = heads + line.startswith(b"POOL"), empty + (line == b"\n")
    assert empty == 1
    process.stdout.close()
    assert (process.wait(SOON), process.stderr.read()) == (141, b"")


def test_status_explains_itself() -> None:
    """--help gives examples, and the exit codes."""
    shown = CliRunner().invoke(cli, ["status", "--help"], prog_name="worker-adapters").output
    assert "worker-adapters status --config pools.toml" in shown
    assert "0 every pool has a ready replica" in " ".join(shown.split())
