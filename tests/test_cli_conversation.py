"""``run --chat`` without a prompt: a conversation, typed at a terminal or piped."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from worker_adapters.cli.commands import cli
from worker_adapters.simulate import Fault, LlamaCppSimulator

pytestmark = pytest.mark.llamacpp

SOON = 20.0  # seconds that nothing here needs
COMMAND = (sys.executable, "-W", "error", "-m", "worker_adapters", "run", "--engine", "llamacpp", "--url")
ANSWER = " Forty two."


@pytest.fixture
def sim() -> Iterator[LlamaCppSimulator]:
    """An engine with few words."""
    with LlamaCppSimulator(slots=1, tokens=(" Forty", " two", ".")) as simulator:
        yield simulator


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts a conversation, and leaves none behind."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(sim: LlamaCppSimulator, *options: str, **pipes: Any) -> subprocess.Popen[bytes]:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **pipes}
        # A process group of its own, so that Ctrl-C is not the test's as well.
        command = [*COMMAND, sim.url, *options]
        started.append(subprocess.Popen(command, bufsize=0, start_new_session=True, **pipes))
        return started[-1]

    yield begin
    for process in started:
        with process:
            process.kill()


def piped(sim: LlamaCppSimulator, lines: bytes, *options: str) -> Result:
    """A whole conversation from a pipe, in this process."""
    return CliRunner().invoke(cli, ["run", "--engine", "llamacpp", "--url", sim.url, *options], input=lines)


class Terminal:
    """A conversation at a pseudo-terminal, all three streams on it unless a test says otherwise."""

    def __init__(self, start: Callable[..., Any], sim: LlamaCppSimulator, *options: str, **streams: Any) -> None:
        self._ours, theirs = pty.openpty()
        environment = {**os.environ, "TERM": "dumb"}
        streams = {"stdin": theirs, "stdout": theirs, "stderr": theirs, **streams}
        self.process = start(sim, "--chat", *options, env=environment, **streams)
        os.close(theirs)
        self._unread = b""

    def until(self, words: str) -> str:
        """What is shown, up to these words."""
        while words.encode() not in self._unread:
            self._unread += os.read(self._ours, 4096)
        shown, found, self._unread = self._unread.partition(words.encode())
        return (shown + found).decode().replace("\r", "")

    def types(self, text: str) -> None:
        """What a person types, at the next prompt."""
        self.until("> ")
        os.write(self._ours, text.encode())

    def asks(self, text: str) -> str:
        """A turn: what is shown from the line that was typed to its metrics."""
        self.types(f"{text}\n")
        return self.until(", stop\r\n")

    def leaves(self) -> int:
        """Ctrl-D; the exit code."""
        self.types("\x04")
        return self.ended()

    def ended(self) -> int:
        """The exit code, when all that was shown is read."""
        try:
            while os.read(self._ours, 4096):
                pass
        except OSError:  # Linux ends a pseudo-terminal with an error
            pass
        os.close(self._ours)
        return self.process.wait(SOON)


def said(sim: LlamaCppSimulator) -> list[list[tuple[str, str]]]:
    """Role and text of the messages of each request."""
    posted = [json.loads(request.body) for request in sim.requests if request.path == "/v1/chat/completions"]
    return [[(message["role"], message["content"]) for message in body["messages"]] for body in posted]


# --- piped


def test_every_line_is_a_turn_and_knows_the_ones_before(sim: LlamaCppSimulator) -> None:
    """Piped, each line is asked with what was said before; the answers are all there is on stdout."""
    told = piped(sim, "How many?\n\nWhy? Grüße\r\n".encode(), "--system", "Be brief.")
    assert (told.exit_code, told.stdout) == (0, f"{ANSWER}\n" * 2)
    assert re.fullmatch(r"(4 tokens, first after .+, stop\n){2}", told.stderr)
    first = [("system", "Be brief."), ("user", "How many?")]
    assert said(sim) == [first, [*first, ("assistant", ANSWER), ("user", "Why? Grüße")]]


def test_a_turn_is_answered_before_the_next_one_is_there(start: Any, sim: LlamaCppSimulator) -> None:
    """A program may wait for an answer before it writes its next line."""
    process = start(sim, "--chat")
    for _ in range(2):
        process.stdin.write(b"How many?\n")
        assert process.stdout.readline().decode() == f"{ANSWER}\n"
    process.stdin.close()
    assert process.wait(SOON) == 0


def test_json_prints_the_frames_of_every_turn(sim: LlamaCppSimulator) -> None:
    """With --json the frames of a conversation come as lines, the errors of turns among them."""
    sim.misbehave(Fault.cut_after(1))
    told = piped(sim, b"one\ntwo\n", "--chat", "--json")
    types = [json.loads(line)["type"] for line in told.stdout.splitlines()]
    assert types == ["started", "token", "error", "started", "token", "token", "token", "end"]
    assert told.exit_code == 10


def test_a_turn_that_failed_was_not_said(sim: LlamaCppSimulator) -> None:
    """An error is one line and the conversation goes on without that turn; the exit code is the error's."""
    sim.misbehave(Fault.status(500), Fault.cut_after(2))
    told = piped(sim, b"one\ntwo\nthree\n", "--chat")
    assert told.stdout == f" Forty two\n{ANSWER}\n"
    codes = [line.split(": ")[1] for line in told.stderr.splitlines()[:2]]
    assert codes == ["ENGINE_UNAVAILABLE", "STREAM_TRUNCATED"]
    assert said(sim)[-1] == [("user", "three")]
    assert told.exit_code == 10


def test_a_turn_without_an_answer_was_not_said() -> None:
    """A model that only thought has no turn in the history: engines refuse empty ones."""
    with LlamaCppSimulator(reasoning=("Hm.",), tokens=()) as sim:
        assert piped(sim, b"one\ntwo\n", "--chat").exit_code == 0
        assert said(sim) == [[("user", "one")], [("user", "two")]]


def test_lines_must_be_utf8(sim: LlamaCppSimulator) -> None:
    """A line that is no UTF-8 ends the conversation as a usage error, after the turns before it."""
    told = piped(sim, b"one\n\xff\n", "--chat")
    assert (told.exit_code, told.stdout) == (2, f"{ANSWER}\n")
    assert "standard input is not UTF-8" in told.stderr


def test_ctrl_c_ends_a_piped_conversation(start: Any, sim: LlamaCppSimulator) -> None:
    """Where nobody sits at a prompt, Ctrl-C cancels the answer and leaves; the lines after it are not asked."""
    sim.endless, sim.delay = True, 0.002
    process = start(sim, "--chat", "--max-tokens", "1000000")
    process.stdin.write(b"one\ntwo\n")
    process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=SOON)
    assert process.returncode == 130
    assert len(said(sim)) == 1
    assert sim.wait_idle(SOON)


# --- at a terminal


def test_a_conversation_at_a_terminal(start: Any, sim: LlamaCppSimulator) -> None:
    """A sign stands before what is typed, the answer and its metrics after it; Ctrl-D leaves with 0."""
    terminal = Terminal(start, sim)
    assert "Ctrl-D leaves" in terminal.until("\n")
    assert re.fullmatch(rf"(.*\n)?{ANSWER}\n4 tokens, .+, stop\n", terminal.asks("How many?"))
    assert terminal.leaves() == 0


def test_what_was_said_can_be_forgotten(start: Any, sim: LlamaCppSimulator) -> None:
    """/clear begins again after the system's message, /exit leaves; neither is sent."""
    terminal = Terminal(start, sim, "--system", "Be brief.")
    terminal.asks("one")
    terminal.types("/clear\n")
    terminal.asks("two")
    terminal.types("/exit\n")
    assert terminal.ended() == 0
    system = ("system", "Be brief.")
    assert said(sim) == [[system, ("user", "one")], [system, ("user", "two")]]


def test_ctrl_c_cancels_one_answer_and_keeps_what_came(start: Any, sim: LlamaCppSimulator) -> None:
    """Ctrl-C while the engine answers frees it and comes back to the prompt; the partial answer is a turn."""
    sim.endless, sim.delay = True, 0.002
    terminal = Terminal(start, sim, "--max-tokens", "1000000")
    terminal.types("one\n")
    terminal.until("two.")
    terminal.process.send_signal(signal.SIGINT)
    terminal.until("cancelled")
    assert sim.wait_idle(SOON)
    sim.endless, sim.delay = False, 0.0
    terminal.asks("two")
    assert terminal.leaves() == 0
    asked = said(sim)[-1]
    assert [role for role, _ in asked] == ["user", "assistant", "user"]
    assert asked[1][1].startswith(ANSWER)


def test_ctrl_c_before_the_first_token_takes_the_turn_back(start: Any, sim: LlamaCppSimulator) -> None:
    """A turn that was cancelled before a token came was not said."""
    sim.misbehave(Fault.silent_head())
    terminal = Terminal(start, sim)
    terminal.types("one\n")
    assert sim.wait_for(lambda: sim.busy == 1, SOON)
    terminal.process.send_signal(signal.SIGINT)
    terminal.until("0 tokens, cancelled")
    terminal.asks("two")
    assert terminal.leaves() == 0
    assert said(sim)[-1] == [("user", "two")]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs to see a process sleep")
def test_ctrl_c_at_the_prompt_leaves(start: Any, sim: LlamaCppSimulator) -> None:
    """Ctrl-C while nothing is being answered leaves with 130, without a traceback."""
    terminal = Terminal(start, sim, stderr=subprocess.PIPE)
    terminal.until("> ")
    # readline shows the sign before it waits; a signal in between would wait for the next key.
    deadline = time.monotonic() + SOON
    while _state_of(terminal.process.pid) != "S":
        assert time.monotonic() < deadline
        time.sleep(0.002)
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.ended() == 130
    assert b"Traceback" not in terminal.process.stderr.read()


def _state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_an_error_comes_back_to_the_prompt(start: Any, sim: LlamaCppSimulator) -> None:
    """A turn that fails at a terminal is one line, and the next one is asked without it."""
    sim.misbehave(Fault.status(500))
    terminal = Terminal(start, sim)
    terminal.types("one\n")
    assert "ENGINE_UNAVAILABLE" in terminal.until("server's log.")
    terminal.asks("two")
    assert terminal.leaves() == 9
    assert said(sim)[-1] == [("user", "two")]


def test_the_sign_is_no_part_of_an_answer(start: Any, sim: LlamaCppSimulator) -> None:
    """With stdout elsewhere (| tee) only the answers go there."""
    terminal = Terminal(start, sim, stdout=subprocess.PIPE)
    terminal.asks("one")
    assert terminal.leaves() == 0
    assert terminal.process.stdout.read().decode() == f"{ANSWER}\n"
