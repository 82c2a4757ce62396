"""``worker-adapters health`` and ``props``: what they print where, and their exit codes."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterator

import pytest

from canary import KEY
from command import NOBODY, SOON, Terminal, ended, invoke, started
from worker_adapters.simulate import Exchange, Fault, LlamaCppSimulator, SimServer, VllmSimulator

pytestmark = [pytest.mark.llamacpp, pytest.mark.vllm]


@pytest.fixture
def sim() -> Iterator[LlamaCppSimulator]:
    """A simulated llama.cpp."""
    with LlamaCppSimulator(build_info="b7000-abc", model="recite.gguf") as simulator:
        yield simulator


# --- health


def test_health_is_a_line_for_each_engine(sim: LlamaCppSimulator) -> None:
    """Piped: what each is, and how, in columns that nothing is cut from; exit 0 if all are ready."""
    with VllmSimulator() as other:
        answer = invoke("health", sim.url, other.url + "/v1")
    head, *rows = (line.split() for line in answer.stdout.splitlines())
    assert (answer.exit_code, answer.stderr) == (0, "")
    assert head == ["URL", "ENGINE", "STATE", "LIVE", "READY", "LATENCY", "MESSAGE"]
    assert [row[:5] for row in rows] == [
        [sim.url, "llamacpp", "healthy", "yes", "yes"],
        [other.url + "/v1", "vllm", "healthy", "yes", "yes"],
    ]
    assert all(line == line.rstrip() for line in answer.stdout.splitlines())


def test_one_that_is_not_ready_is_exit_9(sim: LlamaCppSimulator) -> None:
    """What is wrong stands in its line, and stderr says who is not ready: loading, or not there."""
    sim.loading = True
    answer = invoke("health", sim.url, NOBODY)
    assert answer.exit_code == 9
    assert [line.split()[2:5] for line in answer.stdout.splitlines()[1:]] == [
        ["degraded", "yes", "no"],
        ["unhealthy", "no", "no"],
    ]
    assert "Loading model" in answer.stdout
    assert "nothing listens there" in answer.stdout
    assert answer.stderr == f"worker-adapters: ENGINE_UNAVAILABLE: 2 of 2 not ready: {sim.url}, {NOBODY}\n"


def test_health_as_json_is_a_line_for_each_url(sim: LlamaCppSimulator) -> None:
    """--json: one object a URL, in the order of the URLs, also for one that has no name."""
    answer = invoke("health", NOBODY, sim.url, "--json")
    dead, ready = map(json.loads, answer.stdout.splitlines())
    assert (dead["url"], dead["engine"], dead["state"], dead["live"]) == (NOBODY, None, "unhealthy", False)
    assert (ready["url"], ready["engine"], ready["ready"], ready["message"]) == (sim.url, "llamacpp", True, "")
    assert ready["latency_ms"] > 0
    assert answer.exit_code == 9


def test_engines_are_asked_side_by_side() -> None:
    """Two servers, each of which answers only once the other was asked, are both healthy."""
    asked = [threading.Event(), threading.Event()]

    def answering(own: int) -> Callable[[Exchange], None]:
        def handle(exchange: Exchange) -> None:
            asked[own].set()
            asked[1 - own].wait(SOON)
            exchange.json(200, {"status": "ok"})

        return handle

    with SimServer(answering(0)) as one, SimServer(answering(1)) as other:
        answer = invoke("health", "--engine", "llamacpp", "--timeout", str(SOON), one.url, other.url)
    assert answer.exit_code == 0


def test_only_a_probe_generates(sim: LlamaCppSimulator) -> None:
    """An engine that says it is well and cannot generate is found out by --probe alone."""
    sim.always(Fault.status(500))
    assert invoke("health", "--engine", "llamacpp", sim.url).exit_code == 0
    assert sim.generation_requests == 0
    assert invoke("health", "--engine", "llamacpp", "--probe", sim.url).exit_code == 9
    assert sim.generation_requests == 1


def test_a_url_that_is_none_is_exit_3_and_nobody_is_asked(sim: LlamaCppSimulator) -> None:
    """A wrong URL is told before any engine is asked; the right ones are not shown."""
    answer = invoke("health", sim.url, "localhost:8000")
    assert (answer.exit_code, answer.stdout, sim.requests) == (3, "", ())
    assert "url: want" in answer.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "URL"),
        (("http://h", "--json=3"), "--json"),
        (("http://h", "--engine", "nope"), "'llamacpp'"),
        (("http://h", "--api-key-env", "NO_SUCH_VARIABLE"), "NO_SUCH_VARIABLE"),
    ],
)
@pytest.mark.parametrize("command", ["health", "props"])
def test_a_wrong_command_line_is_exit_2(command: str, arguments: tuple[str, ...], said: str) -> None:
    """A wrong command line names the culprit."""
    answer = invoke(command, *arguments)
    assert answer.exit_code == 2
    assert said in answer.stderr


def test_no_key_is_shown() -> None:
    """A key from the environment lets us in; neither it nor a password in a URL is ever printed."""
    with LlamaCppSimulator(api_key=KEY) as strict:
        url = strict.url.replace("http://", f"http://user:{KEY}@")
        for command in (("health", "--probe"), ("health", "--json"), ("props",), ("props", "--json")):
            answer = invoke(*command, url, "--api-key-env", "ENGINE_KEY", ENGINE_KEY=KEY)
            refused = invoke(*command, url, "--api-key-env", "ENGINE_KEY", ENGINE_KEY="sk-CANARY-another")
            assert (answer.exit_code, "CANARY" in answer.output + refused.output) == (0, False)


@pytest.mark.parametrize("columns", [80, 200])
def test_health_fits_a_terminal(sim: LlamaCppSimulator, columns: int) -> None:
    """A wide terminal has the messages in the table, a narrow one below it; states are coloured, nothing is cut."""
    sim.loading = True
    with (
        Terminal(columns) as terminal,
        started("health", sim.url, stdout=terminal.end, env=terminal.environment) as process,
    ):
        terminal.read()
        assert process.wait(SOON) == 9
    lines = terminal.lines()
    assert max(map(len, lines)) <= columns
    assert "\x1b[33mdegraded" in terminal.shown
    assert ("MESSAGE" in lines[0]) == (columns == 200)
    assert ("Loading model" in lines[1]) == (columns == 200)
    assert any("Loading model" in line for line in lines)


def test_watching_sees_an_engine_come_up(sim: LlamaCppSimulator) -> None:
    """--watch looks again and again; Ctrl-C ends it: exit 130, no traceback."""
    sim.loading = True
    with started("health", sim.url, "--watch", "--every", "0.1", "--json") as process:
        assert json.loads(process.stdout.readline())["state"] == "degraded"
        sim.loading = False
        while json.loads(process.stdout.readline())["state"] != "healthy":
            pass
        process.send_signal(signal.SIGINT)
        code, _, err = ended(process)
    assert (code, err.strip()) == (130, "")


def test_watching_at_a_terminal_draws_in_place(sim: LlamaCppSimulator) -> None:
    """At a terminal the table is drawn again where it was, and the cursor is back at the end."""
    with (
        Terminal(120) as terminal,
        started(
            "health", sim.url, "--watch", "--every", "0.1", stdout=terminal.end, env=terminal.environment
        ) as process,
    ):
        terminal.read(until="\x1b[1A")  # the cursor goes up, to draw again
        process.send_signal(signal.SIGINT)
        terminal.read()
        assert process.wait(SOON) == 130
    assert terminal.shown.rindex("\x1b[?25h") > terminal.shown.rindex("\x1b[?25l")


# --- props


def test_props_are_a_line_each(sim: LlamaCppSimulator) -> None:
    """Name and value; a - for what the engine does not tell, and what its adapter knows of it."""
    answer = invoke("props", sim.url)
    told = dict(line.split(maxsplit=1) for line in answer.stdout.splitlines() if not line.startswith(("jobs", "free")))
    assert (answer.exit_code, answer.stderr) == (0, "")
    assert (told["engine"], told["version"], told["model"]) == ("llamacpp", "b7000-abc", "recite.gguf")
    assert told["slots"] == "4, 4 free"
    assert "jobs running" in answer.stdout
    assert "prompts and conversations" in told["takes"]


def test_props_as_json_are_whole(sim: LlamaCppSimulator) -> None:
    """--json holds the capabilities, and what the engine itself said."""
    answer = invoke("props", "--engine", "llamacpp", sim.url, "--json")
    told = json.loads(answer.stdout)
    assert answer.stdout.count("\n") == 1
    assert told["slots_total"] == 4
    assert "grammar" in told["capabilities"]["fields"]
    assert told["raw"]


def test_props_name_the_model_that_is_asked_for() -> None:
    """--model chooses among several."""
    with VllmSimulator(aliases=["other"]) as engine:
        assert json.loads(invoke("props", engine.url, "--model", "other", "--json").stdout)["model"] == "other"


def test_props_of_nobody_are_exit_9() -> None:
    """A dead engine is one line, named by its address."""
    answer = invoke("props", NOBODY)
    assert (answer.exit_code, answer.stdout) == (9, "")
    assert NOBODY in answer.stderr
    assert answer.stderr.count("\n") == 1


def test_props_that_are_refused_are_exit_6() -> None:
    """A wrong key is its own exit code, with the option that gives another."""
    with LlamaCppSimulator(api_key="another-key") as strict:
        answer = invoke("props", "--engine", "llamacpp", strict.url)
    assert answer.exit_code == 6
    assert "--api-key-env" in answer.stderr


@pytest.mark.parametrize("command", ["health", "props"])
def test_help_gives_examples(command: str) -> None:
    """--help has examples that begin with the command's name, and the exit codes."""
    shown = invoke(command, "--help").output
    assert f"  worker-adapters {command} http://localhost:8000" in shown
    assert "Exit codes:" in shown
