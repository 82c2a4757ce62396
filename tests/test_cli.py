"""The command line: what a person types, sees, and gets as an exit code."""

from __future__ import annotations

import fcntl
import importlib.util
import io
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from worker_adapters import EngineUnavailable, MockAdapter, StreamTruncated, WorkerError, frame_from_dict
from worker_adapters.cli import scenes
from worker_adapters.cli.commands import cli
from worker_adapters.cli.exits import EXITS, exit_for, explain, table
from worker_adapters.cli.play import verdict
from worker_adapters.cli.stage import Stage
from worker_adapters.embedded import write_recite_gguf
from worker_adapters.errors import ERROR_CLASSES
from worker_adapters.simulate import Fault, LlamaCppSimulator

SOON = 20.0  # seconds that nothing here needs
PROMPT = "my secret prompt"
RECITAL = (
    " the quick brown fox jumps over a lazy dog while seven wise owls watch"
    " from old oak trees and hum softly until dawn breaks"
)
#: Every warning is an error, as in pytest itself.
PYTHON = (sys.executable, "-W", "error")
COMMAND = (*PYTHON, "-m", "worker_adapters")

needs_llamacpp = pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="needs the wheel xllamacpp")


@pytest.fixture
def sim() -> Iterator[LlamaCppSimulator]:
    """A simulated llama.cpp with one slot."""
    with LlamaCppSimulator(slots=1) as simulator:
        yield simulator


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts commands in an empty folder, and leaves none behind."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(*command: str, **options: Any) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "TMPDIR": str(tmp_path), **options.pop("env", {})}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        # Unbuffered, so that communicate() goes on exactly where a read ended.
        started.append(subprocess.Popen(command, cwd=tmp_path, env=environment, bufsize=0, **pipes))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def shell(start: Callable[..., subprocess.Popen[bytes]]) -> Callable[..., tuple[int, str, str]]:
    """Runs a command to its end: exit code, stdout, stderr."""

    def execute(*command: str, typed: bytes | None = None, **options: Any) -> tuple[int, str, str]:
        if typed is not None:
            options["stdin"] = subprocess.PIPE
        process = start(*command, **options)
        out, err = process.communicate(typed, timeout=SOON)
        return process.returncode, (out or b"").decode(), (err or b"").decode()

    return execute


def at(sim: LlamaCppSimulator, *arguments: str) -> tuple[str, ...]:
    """``worker-adapters run`` against a simulator."""
    return (*COMMAND, "run", "--engine", "llamacpp", "--url", sim.url, *arguments)


def generation(sim: LlamaCppSimulator) -> tuple[str, dict[str, Any]]:
    """Path and body of the one request for tokens."""
    posted = [request for request in sim.requests if request.method == "POST"]
    assert len(posted) == 1
    return posted[0].path, json.loads(posted[0].body)


def until(condition: Callable[[], bool]) -> bool:
    """Whether the condition becomes true in time."""
    deadline = time.monotonic() + SOON
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True


# --- what is typed


@pytest.mark.parametrize("arguments", [[], *([name] for name in cli.commands)], ids=" ".join)
def test_every_command_explains_itself_with_examples(arguments: list[str]) -> None:
    """--help of every command gives examples that begin with the command's name."""
    answer = CliRunner().invoke(cli, [*arguments, "--help"], prog_name="worker-adapters")
    assert answer.exit_code == 0
    assert "Examples:" in answer.output
    assert re.search(rf"^ +worker-adapters {' '.join(arguments)}", answer.output, re.MULTILINE)


def test_help_holds_the_table_of_exit_codes() -> None:
    """The help of the group and of run list every exit code."""
    for arguments in (["--help"], ["run", "--help"]):
        shown = CliRunner().invoke(cli, arguments, prog_name="worker-adapters").output
        assert [line.strip() for line in shown.splitlines()][-len(EXITS) - 4 :] == [
            line.strip() for line in table().splitlines()[1:]
        ]


def test_a_shell_completes_commands_and_options(shell: Any) -> None:
    """The line that --help gives for ~/.bashrc makes a shell ask for the rest of a word, and it is told."""
    shown = CliRunner().invoke(cli, ["--help"], prog_name="worker-adapters").output
    assert 'eval "$(_WORKER_ADAPTERS_COMPLETE=bash_source worker-adapters)"' in shown
    asked = {"_WORKER_ADAPTERS_COMPLETE": "bash_complete", "COMP_WORDS": "worker-adapters run --engine ll"}
    assert shell(*COMMAND, env={**asked, "COMP_CWORD": "3"})[:2] == (0, "plain,llamacpp\n")


def test_version_is_the_packages() -> None:
    """--version prints the name and the package's version."""
    from worker_adapters import __version__

    assert CliRunner().invoke(cli, ["--version"], prog_name="worker-adapters").output == (
        f"worker-adapters {__version__}\n"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["hi"], "--engine"),
        (["--engine", "mock"], "PROMPT"),
        (["--engine", "mock", "--raw"], "PROMPT"),
        (["--engine", "mock", "--file", __file__, "hi"], "--file"),
        (["--engine", "mock", "--file", "no such file"], "--file"),
        (["--model", "some-model", "hi"], "--model some-model is no file"),
        (["--model", "model.gguf", "--api-key-env", "HOME", "hi"], "--api-key-env"),
        (["--model", "model.gguf", "--pool", "chat", "hi"], "--config"),
        (["--engine", "nope", "hi"], "'llamacpp'"),
        (["--engine", "mock", "--max-tokens", "many", "hi"], "--max-tokens"),
        (["--engine", "mock", "--system", "Be brief.", "--raw", "hi"], "--raw"),
        (["--engine", "mock", "--api-key-env", "NO_SUCH_VARIABLE", "hi"], "NO_SUCH_VARIABLE"),
    ],
)
def test_a_wrong_command_line_is_exit_2_and_names_the_culprit(arguments: list[str], said: str) -> None:
    """A wrong command line ends with code 2 and names the option, sending nothing."""
    answer = CliRunner().invoke(cli, ["run", *arguments])
    assert answer.exit_code == 2
    assert said in answer.output


def test_a_prompt_that_is_read_must_be_utf8(tmp_path: Path) -> None:
    """A prompt from standard input or a file that is not UTF-8 is a usage error, which names the place."""
    file = tmp_path / "prompt.txt"
    file.write_bytes(b"\xff\xfe")
    for place, arguments in (("standard input", ["-"]), (str(file), ["--file", str(file)])):
        answer = CliRunner().invoke(cli, ["run", "--engine", "mock", *arguments], input=b"\xff\xfe")
        assert answer.exit_code == 2
        assert f"{place} is not UTF-8" in answer.output


def test_a_standard_input_that_cannot_be_read_is_named(shell: Any, tmp_path: Path) -> None:
    """A standard input that is open for writing alone is a usage error, not one of our output."""
    with open(tmp_path / "file", "wb") as file:
        for arguments in (["-"], ["--chat"]):
            code, out, err = shell(*COMMAND, "run", "--engine", "mock", *arguments, stdin=file)
            assert (code, out) == (2, "")
            assert "standard input cannot be read: Bad file descriptor" in err


@pytest.mark.parametrize("seconds", ["nan", "inf", "1e10", "0"])
@pytest.mark.parametrize("option", ["--every", "--timeout"])
def test_what_no_clock_can_wait_is_exit_2(option: str, seconds: str) -> None:
    """Seconds that are no number, or too many for a clock, are a usage error before anybody is asked."""
    answer = CliRunner().invoke(cli, ["health", option, seconds, "--watch", "http://127.0.0.1:9"])
    assert (answer.exit_code, answer.stdout) == (2, "")
    assert option in answer.stderr


# --- what is missing


@pytest.mark.parametrize("module", ["click", "rich"])
def test_without_the_extra_cli_one_line_says_what_to_install(shell: Any, module: str) -> None:
    """Without click or rich: one line with the pip command, exit 2, no traceback."""
    program = f"import sys; sys.modules[{module!r}] = None; from worker_adapters.cli.main import main; main()"
    code, out, err = shell(*PYTHON, "-c", program)
    assert (code, out) == (2, "")
    assert err == f'worker-adapters: the command line needs {module}: pip install "worker-adapters[cli]"\n'


def test_without_the_wheel_the_demo_says_what_to_install(shell: Any) -> None:
    """Without the llama.cpp wheel the demo gives the pip command and exits with 2."""
    program = (
        "import sys; sys.modules['xllamacpp'] = None; sys.argv[1:] = ['demo'];"
        "from worker_adapters.cli.main import main; main()"
    )
    code, out, err = shell(*PYTHON, "-c", program)
    assert (code, out) == (2, "")
    assert err == 'worker-adapters: the demo needs the llama.cpp wheel: pip install "worker-adapters[demo]"\n'


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "there is no model file"),
        (b"", "is empty"),
        (b"PK\3\4", "is no GGUF file"),
        (b"GGUF\3\0\0\0", "ends after 8 bytes"),
    ],
)
def test_what_is_no_model_file_is_one_line(tmp_path: Path, content: bytes | None, said: str) -> None:
    """A --model FILE.gguf that is no model is exit 5 and one line, or an error frame, that names it."""
    model = tmp_path / "model.gguf"
    if content is not None:
        model.write_bytes(content)
    for form in ([], ["--json"]):
        answer = CliRunner().invoke(cli, ["run", "--model", str(model), *form, PROMPT])
        assert answer.exit_code == 5
        assert str(model) in answer.stderr
        assert said in answer.stderr
        assert answer.stderr.count("\n") == 1
        assert PROMPT not in answer.output
    assert frame_from_dict(json.loads(answer.stdout)).type == "error"


def test_a_folder_is_no_model_file(tmp_path: Path) -> None:
    """--model with a folder says that it is one."""
    answer = CliRunner().invoke(cli, ["run", "--model", str(tmp_path), "hi"])
    assert answer.exit_code == 5
    assert f"{tmp_path} is a directory" in answer.stderr


def test_without_the_wheel_a_model_file_says_what_to_install(shell: Any, tmp_path: Path) -> None:
    """Without the llama.cpp wheel run --model FILE.gguf gives the pip command and exits with 2."""
    write_recite_gguf(tmp_path / "model.gguf")
    program = (
        "import sys; sys.modules['xllamacpp'] = None; sys.argv[1:] = ['run', '--model', 'model.gguf', 'hi'];"
        "from worker_adapters.cli.main import main; main()"
    )
    code, out, err = shell(*PYTHON, "-c", program)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert 'pip install "worker-adapters[demo]"' in err


# --- exit codes


def test_every_error_class_has_its_own_exit_code() -> None:
    """Each error class of the contract has one exit code, no two share one, and none is a shell's own."""
    codes = {exit_for(cls(message="m", **_needed(cls))).code for cls in ERROR_CLASSES.values()}
    assert len(codes) == len(ERROR_CLASSES) == len(EXITS)
    assert codes.isdisjoint({0, 1, 2, 126, 127, *range(128, 256)})


def _needed(cls: type[WorkerError]) -> dict[str, str]:
    return {"clock": "total"} if cls.code == "TIMEOUT" else {}


def test_a_third_partys_error_exits_as_the_class_above_it() -> None:
    """An error class of someone else has the exit code of the nearest class of ours."""

    class OutOfFuel(StreamTruncated):
        pass

    assert exit_for(OutOfFuel(message="m")).code == exit_for(StreamTruncated(message="m")).code


def test_an_explanation_never_holds_the_partial_answer() -> None:
    """The line about an error counts the tokens that came, and leaves out their text."""
    for seen, said in ((1, "1 token"), (3, "3 tokens")):
        line = explain(EngineUnavailable(message="gone.", tokens_seen=seen, partial_text="told in confidence"))
        assert line == f"ENGINE_UNAVAILABLE: gone (after {said}). See the server's log."


@pytest.mark.llamacpp
@pytest.mark.parametrize(
    ("fault", "arguments", "code", "said"),
    [
        (Fault.status(400), (), 3, "INVALID_REQUEST"),
        (Fault.status(404), (), 5, "Check --model"),
        (Fault.status(401), (), 6, "--api-key-env"),
        (Fault.status(429, {"error": {"message": "full"}}, [("Retry-After", "90")]), (), 7, "Try again in 90 s"),
        (Fault.status(500), (), 9, "See the server's log."),
        (Fault.cut_after(4), (), 10, "after 4 tokens"),
        (Fault.silent_after(2), ("--timeout", "0.3"), 11, "--timeout"),
        (Fault.json_200({"ok": True}), (), 12, "Is --engine right"),
    ],
)
def test_an_error_is_one_line_and_its_exit_code(
    shell: Any, sim: LlamaCppSimulator, *, fault: Fault, arguments: tuple[str, ...], code: int, said: str
) -> None:
    """A failed job is one line on stderr that says what to try, the exit code of its class, and never the prompt."""
    sim.misbehave(fault)
    returned, _, err = shell(*at(sim, *arguments, PROMPT))
    assert returned == code
    assert said in err
    assert err.count("\n") == 1
    assert PROMPT not in err


@pytest.mark.llamacpp
def test_a_prompt_that_is_too_long_is_exit_4(shell: Any) -> None:
    """A context overflow has a code of its own and says what to shorten."""
    with LlamaCppSimulator(n_ctx=16) as sim:
        code, out, err = shell(*at(sim, PROMPT * 10))
    assert (code, out) == (4, "")
    assert "--max-tokens" in err


@pytest.mark.llamacpp
def test_a_dead_engine_is_named_and_asked_about(shell: Any, sim: LlamaCppSimulator) -> None:
    """If nothing listens the line names the address, without its secrets, and asks whether the server runs."""
    sim.kill()
    url = sim.url.replace("http://", "http://user:hush-hush@") + "?key=hush-hush"
    code, out, err = shell(*COMMAND, "run", "--engine", "llamacpp", "--url", url, PROMPT)
    assert (code, out) == (9, "")
    assert f"{sim.url}: nothing listens there" in err
    assert "Is the server running there?" in err
    assert "hush" not in err


@pytest.mark.llamacpp
def test_the_key_comes_from_the_environment_and_stays_there(shell: Any) -> None:
    """--api-key-env sends the variable's value; a refused key is exit 6 and is not shown."""
    with LlamaCppSimulator(api_key="sesame-opens") as sim:
        arguments = at(sim, "--api-key-env", "ENGINE_KEY", PROMPT)
        assert shell(*arguments, env={"ENGINE_KEY": "sesame-opens"})[0] == 0
        code, _, err = shell(*arguments, env={"ENGINE_KEY": "sesame-wrong"})
    assert code == 6
    assert "sesame" not in err


# --- what is printed


@pytest.mark.mock
def test_the_answer_is_all_there_is_on_stdout(shell: Any) -> None:
    """The answer stands alone on stdout, with a new line at its end; one line of metrics on stderr."""
    code, out, err = shell(*COMMAND, "run", "--engine", "mock", "hi")
    assert (code, out) == (0, "Hello from the mock.\n")
    assert re.fullmatch(r"5 tokens, first after [\d.]+ ms, [\d.]+ tokens/s, stop\n", err)


@pytest.mark.mock
def test_json_prints_every_frame(shell: Any) -> None:
    """--json prints each frame as a line that frame_from_dict reads, and nothing else."""
    code, out, err = shell(*COMMAND, "run", "--engine", "mock", "--json", "hi")
    frames = [frame_from_dict(json.loads(line)) for line in out.splitlines()]
    assert [frame.type for frame in frames] == ["started", *["token"] * 5, "end"]
    assert (code, err) == (0, "")


@pytest.mark.llamacpp
def test_json_ends_with_the_error(shell: Any, sim: LlamaCppSimulator) -> None:
    """With --json the last line of a failed job is its error frame, in mid-stream as before the first byte."""
    sim.misbehave(Fault.cut_after(2))
    code, out, _ = shell(*at(sim, "--json", PROMPT))
    assert [json.loads(line)["type"] for line in out.splitlines()] == ["started", "token", "token", "error"]
    assert code == 10
    code, out, _ = shell(*at(sim, "--json", "--max-tokens", "0", PROMPT))
    error = frame_from_dict(json.loads(out))
    assert (code, error.type, error.code) == (3, "error", "INVALID_REQUEST")
    assert PROMPT not in out


@pytest.mark.llamacpp
def test_reasoning_never_reaches_stdout(shell: Any) -> None:
    """Reasoning goes to stderr, on a line of its own, so that a captured answer is only the answer."""
    with LlamaCppSimulator(reasoning=("Let me", " see."), tokens=("Forty", " two")) as sim:
        code, out, err = shell(*at(sim, "--chat", "hi"))
    assert (code, out) == (0, "Forty two\n")
    assert err.startswith("Let me see.\n")


@pytest.mark.llamacpp
def test_options_become_fields_of_the_task(shell: Any, sim: LlamaCppSimulator) -> None:
    """Every option of run reaches the engine as the field it names."""
    options = ("--max-tokens", "7", "--temperature", "0", "--seed", "5", "--stop", "x", "--stop", "yz", "--model", "m")
    assert shell(*at(sim, *options, "hi"))[0] == 0
    path, body = generation(sim)
    sent = {name: body[name] for name in ("prompt", "n_predict", "temperature", "seed", "stop")}
    assert path == "/completion"
    assert sent == {"prompt": "hi", "n_predict": 7, "temperature": 0, "seed": 5, "stop": ["x", "yz"]}


@pytest.mark.llamacpp
@pytest.mark.parametrize(
    ("options", "roles"), [(("--chat",), ["user"]), (("--system", "Be brief."), ["system", "user"])]
)
def test_chat_and_system_make_a_conversation(
    shell: Any, sim: LlamaCppSimulator, options: tuple[str, ...], roles: list[str]
) -> None:
    """--chat and --system send the prompt as a user's message, after the system's."""
    assert shell(*at(sim, *options, "hi"))[0] == 0
    path, body = generation(sim)
    assert path == "/v1/chat/completions"
    assert [message["role"] for message in body["messages"]] == roles


@pytest.mark.llamacpp
def test_a_dash_reads_the_prompt_from_stdin(shell: Any, sim: LlamaCppSimulator) -> None:
    """PROMPT - sends standard input as UTF-8 in any locale, without the new line at its end."""
    code, _, err = shell(*at(sim, "-"), typed="Grüße\n\n".encode(), env={"LC_ALL": "C", "PYTHONIOENCODING": "ascii"})
    assert code == 0, err
    assert generation(sim)[1]["prompt"] == "Grüße\n"


@pytest.mark.llamacpp
def test_a_file_holds_the_prompt(shell: Any, sim: LlamaCppSimulator, tmp_path: Path) -> None:
    """--file sends a file as UTF-8 in any locale, without a mark at its beginning and the new line at its end."""
    (tmp_path / "prompt.txt").write_bytes("\ufeffGrüße\n\n".encode())
    code, _, err = shell(*at(sim, "--file", "prompt.txt"), env={"LC_ALL": "C", "PYTHONIOENCODING": "ascii"})
    assert code == 0, err
    assert generation(sim)[1]["prompt"] == "Grüße\n"


@pytest.mark.llamacpp
def test_a_url_is_enough(shell: Any, sim: LlamaCppSimulator) -> None:
    """With --url alone the server is asked what it is."""
    code, out, err = shell(*COMMAND, "run", "--url", sim.url, "hi")
    assert (code, out) == (0, RECITAL + "\n"), err


@pytest.mark.llamacpp
def test_a_small_encoding_loses_no_job(shell: Any) -> None:
    """Where stdout cannot say a character the answer has a ? in its place; --json escapes it, and loses nothing."""
    ascii_only = {"PYTHONIOENCODING": "ascii"}
    with LlamaCppSimulator(tokens=("Grüße", " 二")) as sim:
        assert shell(*at(sim, "hi"), env=ascii_only)[:2] == (0, "Gr??e ?\n")
        code, out, _ = shell(*at(sim, "--json", "hi"), env=ascii_only)
    frames = [json.loads(line) for line in out.splitlines()]
    assert out.isascii()
    assert (code, "".join(frame.get("text", "") for frame in frames)) == (0, "Grüße 二")


@pytest.mark.llamacpp
def test_a_terminal_obeys_no_model(start: Any) -> None:
    """On a terminal the control characters of an answer are spelled out; a pipe gets them as they are."""
    with LlamaCppSimulator(tokens=("red: ", "\x1b[31m", "!")) as sim:
        ours, theirs = pty.openpty()
        process = start(*at(sim, "hi"), stdout=theirs, env={"TERM": "xterm"})
        os.close(theirs)
        shown = _all_of(ours)
        os.close(ours)
        assert process.wait(SOON) == 0
        piped = start(*at(sim, "hi")).communicate(timeout=SOON)[0]
    assert shown == b"red: \\x1b[31m!\r\n"
    assert piped == b"red: \x1b[31m!\n"


def _all_of(terminal: int) -> bytes:
    """Read a pseudo-terminal to its end; Linux ends it with an error."""
    read = b""
    try:
        while data := os.read(terminal, 4096):
            read += data
    except OSError:
        pass
    return read


# --- output that goes nowhere


@pytest.mark.llamacpp
@pytest.mark.parametrize("form", [(), ("--json",)])
def test_a_reader_that_goes_frees_the_engine(start: Any, sim: LlamaCppSimulator, form: tuple[str, ...]) -> None:
    """When whoever reads stdout goes (| head), the job is cancelled at the engine: exit 141, not a word."""
    sim.endless = True
    process = start(*at(sim, *form, "--max-tokens", "1000000", "hi"))
    process.stdout.read(1)
    process.stdout.close()
    assert process.wait(SOON) == 141
    assert process.stderr.read() == b""
    assert sim.wait_idle(SOON)


@pytest.mark.mock
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_line(shell: Any) -> None:
    """Output that cannot be written is one line on stderr and exit 1."""
    with open("/dev/full", "wb") as full:
        code, _, err = shell(*COMMAND, "run", "--engine", "mock", "hi", stdout=full)
    assert code == 1
    assert err == "worker-adapters: cannot write the output: No space left on device\n"


@pytest.mark.mock
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_streams_swallow_what_is_said(shell: Any, closed: str) -> None:
    """With stdout or stderr closed from the start the job runs as ever."""
    assert shell("sh", "-c", f'exec "$@" {closed}', "sh", *COMMAND, "run", "--engine", "mock", "hi")[0] == 0


# --- Ctrl-C


@pytest.mark.llamacpp
@pytest.mark.parametrize("form", [(), ("--json",)])
def test_ctrl_c_cancels_at_the_engine_and_keeps_what_came(
    start: Any, sim: LlamaCppSimulator, form: tuple[str, ...]
) -> None:
    """The first Ctrl-C cancels the job: the engine is free, the text so far and a cancelled end are out, exit 130."""
    sim.endless, sim.delay = True, 0.002
    process = start(*at(sim, *form, "--max-tokens", "1000000", "hi"))
    first = process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=SOON)
    assert process.returncode == 130
    assert sim.wait_idle(SOON)
    assert b"Traceback" not in err
    text = (first + out).decode()
    if form:
        assert json.loads(text.splitlines()[-1])["finish_reason"] == "cancelled"
    else:
        assert text.startswith(" the")
        assert text.endswith("\n")
        assert b"cancelled\n" in err


@pytest.mark.llamacpp
def test_ctrl_c_reaches_a_job_that_waits_for_its_first_token(start: Any, sim: LlamaCppSimulator) -> None:
    """Ctrl-C also ends a job whose engine has not said a byte."""
    sim.misbehave(Fault.silent_head())
    process = start(*at(sim, "hi"))
    assert sim.wait_for(lambda: sim.busy == 1, SOON)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=SOON)
    assert (process.returncode, out, err) == (130, b"", b"0 tokens, cancelled\n")
    assert sim.wait_idle(SOON)


@pytest.mark.llamacpp
@pytest.mark.skipif(not hasattr(fcntl, "F_SETPIPE_SZ"), reason="pipes of a known size are Linux's")
def test_a_second_ctrl_c_leaves_at_once(start: Any, sim: LlamaCppSimulator) -> None:
    """While nobody reads stdout the first Ctrl-C frees the engine, and the second one ends the process."""
    sim.endless, sim.tokens = True, ("x",)  # one byte a write, so that the pipe is full to the last
    process = start(*at(sim, "--max-tokens", "1000000", "hi"))
    size = fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, 4096)
    assert until(lambda: _waiting_in(process.stdout) == size)
    process.send_signal(signal.SIGINT)
    assert sim.wait_idle(SOON)
    process.send_signal(signal.SIGINT)
    assert process.wait(SOON) == 130
    assert process.stderr.read() == b""


def _waiting_in(pipe: io.FileIO) -> int:
    """How many bytes nobody has read yet."""
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, b"\0" * 4), sys.byteorder)


@pytest.mark.llamacpp
def test_a_process_told_to_ignore_ctrl_c_does(start: Any, sim: LlamaCppSimulator) -> None:
    """Under nohup or &, where Ctrl-C is ignored, the job runs to its end."""
    sim.delay = 0.01
    process = start("sh", "-c", 'trap "" INT; exec "$@"', "sh", *at(sim, "hi"))
    first = process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=SOON)
    assert (process.returncode, (first + out).decode()) == (0, RECITAL + "\n")


# --- the demo


@pytest.mark.mock
def test_a_promise_that_does_not_hold_fails_the_demo(capsys: pytest.CaptureFixture[str]) -> None:
    """The demo's exit code is 1, and its last words name what was promised, if a scene saw something else."""
    stage = Stage()
    scenes.stream(stage, MockAdapter(tokens=("Something", " else.")))
    assert verdict(stage, 1.0) == 1
    assert "Not as promised: the whole text came" in capsys.readouterr().out


@pytest.mark.mock
def test_a_cancel_that_does_nothing_fails_the_demo() -> None:
    """The cancel scene is not content with an endless job that ended by itself."""
    stage = Stage()
    scenes.cancel(stage, MockAdapter(tokens=["Welcome!"] * (scenes.BEFORE_CANCEL - 1)))
    assert verdict(stage, 1.0) == 1


@pytest.mark.engines
@needs_llamacpp
def test_the_demo_happens(shell: Any, tmp_path: Path) -> None:
    """Piped, the demo exits with 0 in time, shows every scene in plain text of 80 columns, and leaves no file."""
    began = time.monotonic()
    code, out, err = shell(*COMMAND, "demo")
    assert (code, err) == (0, ""), out
    assert time.monotonic() - began < 20
    for said in ("healthy", "café", "metrics", "[cancelled]", "[killed]", "STREAM_TRUNCATED", "unhealthy"):
        assert said in out
    assert "NO  " not in out
    assert "\x1b" not in out
    assert max(map(len, out.splitlines())) <= 80
    assert list(tmp_path.iterdir()) == []


@pytest.mark.engines
@needs_llamacpp
@pytest.mark.parametrize(
    ("number", "code", "scene"),
    [
        (signal.SIGINT, 130, b"1. "),
        (signal.SIGINT, 130, b"Welcome!"),
        (signal.SIGINT, 130, b"[killed]"),
        (signal.SIGTERM, 143, b"Welcome!"),
        (signal.SIGHUP, 129, b"Welcome!"),
    ],
)
def test_an_interrupted_demo_leaves_nothing(
    start: Any, tmp_path: Path, *, scene: bytes, number: signal.Signals, code: int
) -> None:
    """Ctrl-C, SIGTERM and SIGHUP end the demo at once: no traceback, no server, no file."""
    process = start(*COMMAND, "demo")
    shown = b""
    while scene not in shown or b"http://" not in shown:
        line = process.stdout.readline()
        assert line, "the demo ended before its time"
        shown += line
    process.send_signal(number)
    began = time.monotonic()
    out, err = process.communicate(timeout=SOON)
    assert time.monotonic() - began < 5
    assert (process.returncode, err.strip()) == (code, b"")
    host, port = re.search(rb"http://([\d.]+):(\d+)", shown + out).groups()
    with socket.socket() as probe:
        assert probe.connect_ex((host.decode(), int(port))) != 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.engines
@needs_llamacpp
def test_a_demo_without_a_reader_ends(start: Any, tmp_path: Path) -> None:
    """When whoever reads the demo goes (| head), it ends with 141, without a word and without a file."""
    process = start(*COMMAND, "demo")
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(SOON) == 141
    assert process.stderr.read() == b""
    assert list(tmp_path.iterdir()) == []
