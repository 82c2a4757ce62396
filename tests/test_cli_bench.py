"""``worker-adapters bench``: what it sends, measures, draws, and its exit codes."""

from __future__ import annotations

import json
import math
import random
import re
import signal
import subprocess
import sys
import threading
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from canary import KEY
from command import NOBODY, SOON, Terminal, ended, invoke, started
from worker_adapters import EndFrame, EngineUnavailable, Metrics, MockAdapter, StartedFrame, WorkerTimeout
from worker_adapters.cli.figures import Figures, Measured
from worker_adapters.cli.histogram import Histogram, Timeline
from worker_adapters.cli.load import Load
from worker_adapters.cli.simulate import PORTS, server_for
from worker_adapters.simulate import Fault, LlamaCppSimulator, VllmSimulator

pytestmark = [pytest.mark.llamacpp, pytest.mark.openai, pytest.mark.tgi, pytest.mark.triton, pytest.mark.vllm]

MS = 0.001


@pytest.fixture
def sim() -> Iterator[LlamaCppSimulator]:
    """A simulated llama.cpp."""
    with LlamaCppSimulator(slots=8) as simulator:
        yield simulator


def bench(*arguments: str, jobs: int = 6, at_once: int = 3, **environment: str) -> Any:
    """The command's result for a few jobs."""
    return invoke("bench", "-n", str(jobs), "-c", str(at_once), *arguments, **environment)


def at(sim: LlamaCppSimulator | VllmSimulator, *arguments: str, **options: Any) -> Any:
    """The same against a simulator."""
    return bench("--url", sim.url, *arguments, **options)


def told(answer: Any) -> dict[str, Any]:
    """What --json printed: one line."""
    assert answer.stdout.count("\n") == 1, answer.output
    return json.loads(answer.stdout)


# --- figures


@pytest.mark.parametrize("count", [1, 2, 7, 100, 5000])
def test_percentiles_are_nearest_rank(count: int) -> None:
    """The smallest value that p percent do not exceed, to a thousandth, whatever the spread."""
    chance = random.Random(count)
    values = [10 ** chance.uniform(-3, 6) for _ in range(count)]
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    for percent in (1, 5, 50, 95, 99, 100):
        exact = sorted(values)[math.ceil(percent * count / 100) - 1]
        assert histogram.percentile(percent) == pytest.approx(exact, rel=0.001)
    assert (histogram.count, histogram.least, histogram.most) == (count, min(values), max(values))
    assert histogram.mean == pytest.approx(sum(values) / count)


def test_percentiles_of_few_are_values_that_were_seen() -> None:
    """Of 1 to 20: the 95th percentile is the 19th, the 99th the last, and nothing is interpolated."""
    histogram = Histogram()
    for value in range(1, 21):
        histogram.add(float(value))
    found = [histogram.percentile(percent) for percent in (50, 95, 99)]
    assert found == pytest.approx([10, 19, 20], rel=0.001)
    assert found[-1] == 20.0
    assert Histogram().percentile(50) is None


def test_a_histogram_does_not_grow_with_what_it_holds() -> None:
    """A hundred thousand different values within a factor of ten take at most 2,304 buckets."""
    histogram = Histogram()
    for number in range(100_000):
        histogram.add(1 + number * 9 / 100_000)
    assert len(list(histogram.items())) <= math.log(10) / 0.001 + 1
    assert sum(count for _, count in histogram.items()) == 100_000


def test_a_timeline_widens_its_bins_and_loses_nothing() -> None:
    """Bins double in width when time goes on; what was counted stays counted, in order."""
    timeline = Timeline(width=1.0, most=8)
    for second in range(100):
        timeline.add(second + 0.5)
    rates = timeline.rates(1.0, 100.0)
    assert timeline.width == 16.0
    assert len(rates) == 7
    assert all(rate == pytest.approx(1.0) for _, rate in rates)
    assert [when for when, _ in rates] == [8, 24, 40, 56, 72, 88, 98]
    assert timeline.rates(16.0, 132.0)[-1] == (130, 0)  # nothing came any more, and that is shown


def test_what_a_job_did_is_counted() -> None:
    """First token, gaps and total are what the reader saw; a job that failed counts without its total."""
    figures = Figures(began=10.0)
    end = EndFrame("stop", "stop", Metrics(tokens_out=5, counts="exact", tokens_per_second=20.0))
    started_frame = StartedFrame("j", "mock", "1", "m")
    figures.add(Measured(10.0, array("d", [10.25, 10.3, 10.5]), started_frame, end, ended=11.0))
    error = EngineUnavailable(message="gone", partial_text="my secret")
    figures.add(Measured(10.5, array("d", [10.6, 10.7]), started_frame, None, error, ended=12.0))
    cancelled = EndFrame("cancelled", None, Metrics())
    figures.add(Measured(11.0, array("d"), None, cancelled, ended=11.5))
    assert (figures.completed, figures.failed, figures.cancelled) == (1, 1, 1)
    assert (figures.tokens, figures.counts, figures.seconds) == (7, "mixed", 2.0)
    assert (figures.first_token.count, figures.gaps.count, figures.totals.count) == (2, 3, 1)
    assert (figures.first_token.least, figures.first_token.most) == pytest.approx((100, 250))
    assert (figures.gaps.least, figures.gaps.most) == pytest.approx((50, 200))
    assert figures.totals.most == pytest.approx(1000)
    assert figures.rates.most == 20.0
    assert figures.explained() == [("ENGINE_UNAVAILABLE", 1, "gone. See the server's log.")]
    assert dict(figures.engines) == {("mock", "1", "m"): 2}


def test_the_error_that_came_most_often_is_told_first() -> None:
    """Errors are counted by class; the most frequent gives the exit code."""
    figures = Figures(began=0.0)
    for error in (WorkerTimeout(message="slow", clock="total"), *[EngineUnavailable(message="gone")] * 2):
        figures.add(Measured(0.0, error=error, ended=1.0))
    assert [(code, count) for code, count, _ in figures.explained()] == [("ENGINE_UNAVAILABLE", 2), ("TIMEOUT", 1)]
    assert figures.worst().code == "ENGINE_UNAVAILABLE"


# --- load


def test_so_many_at_a_time_and_never_more() -> None:
    """Each reader sends its next job when its last one has ended; all of them are at work at once."""
    together = threading.Barrier(3)
    lock = threading.Lock()
    running, most, numbers = 0, 0, []
    engine = MockAdapter(tokens=lambda task: meet())

    def meet() -> list[str]:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        together.wait(SOON)  # passes only if three are here at once
        with lock:
            running -= 1
        return ["a", "b"]

    def submit(number: int) -> Any:
        numbers.append(number)
        return engine.submit("hi")

    load = Load(submit, jobs=12, concurrency=3)
    for _ in load.run():
        pass
    assert (most, sorted(numbers)) == (3, list(range(12)))
    assert (load.figures.completed, load.arrived, load.at_work) == (12, 24, 0)


# --- what is sent, and what comes of it


@pytest.mark.parametrize("engine", sorted(PORTS))
def test_every_engine_is_measured(engine: str) -> None:
    """So many jobs and as many to warm up are sent to any engine; every job's frames are measured."""
    with server_for(engine, host="127.0.0.1", port=0, slots=3) as server:
        url = getattr(server, "base_url", server.url)
        answer = bench("--engine", engine, "--url", url, "--max-tokens", "5", "--json")
        assert server.generations == 6 + 3
    facts = told(answer)
    assert (answer.exit_code, answer.stderr) == (0, "")
    assert (facts["completed"], facts["failed"], facts["finish_reasons"]) == (6, 0, {"length": 6})
    assert (facts["tokens_out"], facts["first_token_ms"]["count"]) == (30, 6)
    assert facts["between_tokens_ms"]["count"] == 24
    assert facts["total_ms"]["p50"] >= facts["first_token_ms"]["min"] > 0


def test_the_mock_is_measured_too() -> None:
    """Without a server: the mock, in words."""
    answer = bench("--engine", "mock")
    assert (answer.exit_code, answer.stderr) == (0, "")
    assert answer.stdout.startswith("mock mock-1 mock\n6 jobs, 3 at a time, at most 128 tokens each, after 3 to warm")
    assert re.search(r"^jobs +6 complete in ", answer.stdout, re.MULTILINE)
    assert re.search(r"^tokens +30, as the engine counts$", answer.stdout, re.MULTILINE)
    for name in ("first token", "between tokens", "whole job"):
        assert re.search(rf"^{name}( +[0-9.]+ ms){{4}}$", answer.stdout, re.MULTILINE)


def test_a_pool_is_measured(tmp_path: Path, sim: LlamaCppSimulator) -> None:
    """--config and --pool send the jobs to a pool; every engine that answered is named."""
    config = tmp_path / "pools.toml"
    config.write_text(f'[pools.a.r0]\nengine = "llamacpp"\nurl = "{sim.url}"\n[pools.b.r0]\nengine = "mock"\n')
    facts = told(bench("--config", str(config), "--pool", "a", "--json"))
    assert [(row["engine"], row["jobs"]) for row in facts["engines"]] == [("llamacpp", 6)]
    assert "has a, b" in bench("--config", str(config)).stderr


def test_a_slow_model_is_seen_to_be_slow(sim: LlamaCppSimulator) -> None:
    """A model that takes 60 ms for the first token and 20 for each of 23 more is never measured to take less."""
    sim.delay, sim.prompt_delay = 0.02, 0.04
    facts = told(at(sim, "--warm-up", "0", "--json", jobs=3))
    assert facts["first_token_ms"]["min"] >= 55
    assert facts["total_ms"]["min"] >= 500
    assert facts["between_tokens_ms"]["count"] == 3 * 23


def test_fields_reach_the_engine(sim: LlamaCppSimulator) -> None:
    """Prompt, limits and sampling are the task's."""
    at(sim, "--warm-up", "0", "--prompt", "Count", "--max-tokens", "7", "--temperature", "0", jobs=1)
    (request,) = [request for request in sim.requests if request.method == "POST"]
    body = request.json
    assert (request.path, body["prompt"], body["n_predict"], body["temperature"]) == ("/completion", "Count", 7, 0)


def test_chat_asks_in_a_conversation(sim: LlamaCppSimulator) -> None:
    """--chat sends the prompt as a user's message."""
    at(sim, "--warm-up", "0", "--chat", jobs=1)
    assert [request.path for request in sim.requests if request.method == "POST"] == ["/v1/chat/completions"]


def test_unique_prompts_are_in_no_cache(sim: LlamaCppSimulator) -> None:
    """--unique: no two jobs begin alike, those that warm up included; else all are the same."""
    for option, different in ((("--unique",), 9), ((), 1)):
        before = len(sim.requests)
        at(sim, *option)
        prompts = {request.json["prompt"] for request in sim.requests[before:] if request.method == "POST"}
        assert len(prompts) == different
        assert len({prompt.split()[0] for prompt in prompts}) == different


# --- errors


def test_errors_stop_nothing_and_are_counted(sim: LlamaCppSimulator) -> None:
    """Two refused jobs of six: the others are measured, each was tried once, the exit code is the error's."""
    sim.misbehave(Fault.status(429), Fault.status(429))
    answer = at(sim, "--warm-up", "0", "--json")
    facts = told(answer)
    assert (answer.exit_code, facts["completed"], facts["failed"]) == (7, 4, 2)
    assert facts["errors"]["CAPACITY_EXCEEDED"]["count"] == 2
    assert sim.generation_requests == 6


def test_broken_answers_count_with_what_came(sim: LlamaCppSimulator) -> None:
    """Jobs that break off have a first token and gaps, no total; the table says what happened and what to try."""
    sim.always(Fault.cut_after(4, rst=True))
    answer = at(sim)
    assert answer.exit_code == 10
    assert re.search(r"^jobs +0 complete, 6 failed ", answer.stdout, re.MULTILINE)
    assert re.search(r"^tokens +24, which are frames$", answer.stdout, re.MULTILINE)
    assert re.search(r"^STREAM_TRUNCATED +6 .*See the server's log\.$", answer.stdout, re.MULTILINE)
    assert re.search(r"^whole job( +-){4}$", answer.stdout, re.MULTILINE)


def test_nobody_there_is_counted_or_told() -> None:
    """A dead engine fails every job; one that has to be asked what it is, before any."""
    answer = bench("--engine", "vllm", "--url", NOBODY, "--json")
    assert (answer.exit_code, told(answer)["failed"]) == (9, 6)
    unnamed = bench("--url", NOBODY)
    assert (unnamed.exit_code, unnamed.stdout, unnamed.stderr.count("\n")) == (9, "", 1)


def test_no_key_and_no_prompt_is_shown() -> None:
    """The key comes from the environment; neither it nor the prompt stands in results or errors."""
    prompt = "CANARY prompt that the engine quotes"
    with VllmSimulator(api_key=KEY) as strict:
        strict.misbehave(*[Fault.status(400, {"error": {"message": prompt, "code": 400}})] * 5)
        url = strict.url.replace("http://", f"http://user:{KEY}@")
        for form in ((), ("--json",)):
            answer = bench("--url", url, "--prompt", prompt, "--api-key-env", "K", *form, K=KEY)
            assert answer.exit_code in (0, 3)
            assert "CANARY" not in answer.output


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ((), 2, "Give --engine or --url, or --config"),
        (("--engine", "mock", "--pool", "chat"), 2, "--pool needs --config"),
        (("--engine", "mock", "-c", "0"), 2, "-c"),
        (("--engine", "mock", "--max-tokens", "0"), 2, "--max-tokens"),
        (("--engine", "mock", "--api-key-env", "NO_SUCH_VARIABLE"), 2, "NO_SUCH_VARIABLE"),
        (("--engine", "mock", "--plot", "x.pdf"), 2, "ends in .png or .svg"),
        (("--engine", "mock", "--plot", "no/such/folder/x.png"), 2, "there is no folder no/such/folder"),
        (("--engine", "mock", "--temperature", "-1"), 3, "temperature: want"),
        (("--engine", "mock", "--timeout", "0"), 3, "timeouts.total: want"),
    ],
)
def test_a_wrong_command_line_names_the_culprit(arguments: tuple[str, ...], code: int, said: str) -> None:
    """What would fail for every job is told before the first one, on one line or with the usage."""
    answer = bench(*arguments)
    assert (answer.exit_code, answer.stdout) == (code, "")
    assert said in " ".join(answer.stderr.split())


def test_a_wrong_ending_is_told_before_a_job_is_sent(sim: LlamaCppSimulator) -> None:
    """Nobody waits for an hour to hear that there will be no chart."""
    assert at(sim, "--plot", "x.jpg").exit_code == 2
    assert sim.requests == ()


# --- Ctrl-C


@pytest.mark.parametrize("phase", ["tokens", "silence"])
def test_ctrl_c_cancels_and_prints_what_was_measured(sim: LlamaCppSimulator, phase: str) -> None:
    """The engine is free, the results so far are printed, exit 130: while tokens flow, and while none comes."""
    sim.endless, sim.delay = True, 0.002
    if phase == "silence":
        sim.always(Fault.silent_head())
    command = ("bench", "--engine", "llamacpp", "--url", sim.url, "-n", "50", "-c", "3", "--warm-up", "0", "--json")
    with started(*command, "--max-tokens", "1000000") as process:
        assert sim.wait_generations(3, SOON)
        process.send_signal(signal.SIGINT)
        code, out, err = ended(process)
        assert sim.wait_idle(SOON)
    facts = json.loads(out)
    assert (code, err) == (130, "")
    assert (facts["interrupted"], facts["completed"], facts["failed"]) == (True, 0, 0)
    assert facts["cancelled"] <= 3  # fewer only if a reader had no time to see its end
    assert sim.generation_requests == 3


def test_ctrl_c_while_warming_up_measures_nothing(sim: LlamaCppSimulator) -> None:
    """An interrupted warm-up is followed by no job; no chart is drawn."""
    sim.endless, sim.delay = True, 0.002
    with started("bench", "--url", sim.url, "-n", "9", "-c", "2", "--max-tokens", "1000000", "--plot", "x.png") as run:
        assert sim.wait_generations(2, SOON)
        run.send_signal(signal.SIGINT)
        code, out, err = ended(run)
    assert code == 130
    assert "9 jobs, 2 at a time, at most 1000000 tokens each, after 2 to warm up (interrupted)" in out
    assert "x.png is not drawn" in err
    assert sim.generation_requests == 2


# --- terminals


def test_progress_is_shown_at_a_terminal_alone(sim: LlamaCppSimulator) -> None:
    """A terminal at stderr shows how it is going, and is clean at the end; a pipe gets nothing."""
    sim.delay = 0.01
    command = ("bench", "--url", sim.url, "-n", "4", "-c", "2", "--warm-up", "0")
    with (
        Terminal(80) as terminal,
        started(*command, stderr=terminal.end, env=terminal.environment) as process,
    ):
        terminal.read()
        code, out, _ = ended(process)
    assert (code, out.startswith("llamacpp")) == (0, True)
    assert "measuring" in terminal.shown
    assert re.search(r"/4.*tokens/s", terminal.shown)
    assert terminal.shown.rindex("\x1b[?25h") > terminal.shown.rindex("\x1b[?25l")
    assert terminal.shown.endswith("\x1b[2K")


def test_the_cursor_is_there_whenever_bench_ends(sim: LlamaCppSimulator) -> None:
    """While its progress is shown the cursor is, too: a second Ctrl-C, or a kill, has no time to show it again."""
    sim.endless, sim.delay = True, 0.002
    command = ("bench", "--url", sim.url, "-n", "9", "-c", "2", "--max-tokens", "1000000")
    with (
        Terminal(80) as terminal,
        started(*command, stderr=terminal.end, env=terminal.environment) as process,
    ):
        terminal.read(until="tokens/s")
        process.kill()
        terminal.read()
    assert terminal.shown.rfind("\x1b[?25h") > terminal.shown.rfind("\x1b[?25l")


@pytest.mark.parametrize("columns", [80, 200])
def test_results_fit_a_terminal(sim: LlamaCppSimulator, columns: int) -> None:
    """No line is longer than the terminal is wide; errors wrap."""
    sim.always(Fault.cut_after(4, rst=True))
    with (
        Terminal(columns) as terminal,
        started("bench", "--url", sim.url, "-n", "2", stdout=terminal.end, env=terminal.environment) as process,
    ):
        terminal.read()
        assert process.wait(SOON) == 10
    lines = terminal.lines()
    assert max(map(len, lines)) <= columns
    assert any(line.startswith("STREAM_TRUNCATED") for line in lines)


# --- charts


@pytest.fixture
def drawn(sim: LlamaCppSimulator, tmp_path: Path) -> Callable[[str], bytes]:
    """Draws a chart into a file of that name; in a process of its own, since matplotlib takes a second and 60 MB."""
    pytest.importorskip("matplotlib")

    def draw(name: str) -> bytes:
        path = tmp_path / name
        command = ("bench", "--url", sim.url, "-n", "6", "-c", "3", "--plot", str(path))
        environment = {"MPLCONFIGDIR": str(tmp_path), "PATH": "", "NO_COLOR": "1"}
        with started(*command, env=environment) as process:
            code, out, _ = ended(process)
        assert code in (0, 9)
        assert "first token" in out
        return path.read_bytes()

    return draw


@pytest.mark.parametrize(("name", "begins"), [("chart.png", b"\x89PNG\r\n"), ("chart.SVG", b"<?xml")])
def test_a_chart_is_drawn(drawn: Callable[[str], bytes], name: str, begins: bytes) -> None:
    """--plot writes what the file's ending says."""
    assert drawn(name).startswith(begins)


def test_a_chart_of_failures_alone_is_drawn(sim: LlamaCppSimulator, drawn: Callable[[str], bytes]) -> None:
    """Where no job got a token there is still a chart."""
    sim.always(Fault.close_before_head())
    assert drawn("chart.png").startswith(b"\x89PNG\r\n")


def test_without_matplotlib_one_line_says_what_to_install(sim: LlamaCppSimulator) -> None:
    """Without matplotlib: one line with the pip command, exit 2, before any job is sent."""
    program = (
        "import sys; sys.modules['matplotlib'] = None;"
        f"sys.argv[1:] = ['bench', '--url', {sim.url!r}, '--plot', 'x.png'];"
        "from worker_adapters.cli.main import main; main()"
    )
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SOON, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == 'worker-adapters: --plot needs matplotlib: pip install "worker-adapters[plot]"\n'
    assert sim.requests == ()


def test_help_gives_examples_and_definitions() -> None:
    """--help has examples that begin with the command's name, and says what is measured."""
    shown = " ".join(invoke("bench", "--help").output.split())
    assert "worker-adapters bench --engine vllm -n 200 -c 16" in shown
    assert "the smallest value that so many percent of all do not exceed" in shown
    assert "0 every job is complete" in shown
