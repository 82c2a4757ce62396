"""The examples, each as a reader runs it: a process of its own."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import pty
import re
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from worker_adapters.embedded import DEFAULT_WORDS, EmbeddedLlamaCpp, write_recite_gguf
from worker_adapters.simulate import EngineSimulator, Fault, LlamaCppSimulator, OpenAISimulator, VllmSimulator

SOON = 60.0  # seconds that nothing here needs
EXAMPLES = Path(__file__).parent.parent / "examples"
NOBODY = "http://127.0.0.1:9"  # discard: nothing listens there
RECITAL = (
    " the quick brown fox jumps over a lazy dog while seven wise owls watch"
    " from old oak trees and hum softly until dawn breaks"
)
#: With no argument, and with the one that says so.
UNTOLD = pytest.mark.parametrize("arguments", [[], ["--simulated"]], ids=["bare", "simulated"])
CALL = ("days_between", ['{"first": "2024-02-29"', ', "last": "2026-02-28"}'])
CALLED = '[days_between {"first": "2024-02-29", "last": "2026-02-28"} -> 730]\n'
ENDED = re.compile(r"\[stop: (\d+) tokens in, (\d+) out \(exact\); first after \d+ ms, all after \d+ ms\]")


def command(example: str, *arguments: str) -> list[str]:
    """Every warning is an error there, as it is here."""
    return [sys.executable, "-W", "error", str(EXAMPLES / example), *arguments]


def play(example: str, *arguments: str, typed: str = "", **environment: str) -> tuple[int, str, str]:
    """Exit code, output and error output."""
    ended = subprocess.run(
        command(example, *arguments),
        env={**os.environ, **environment},
        input=typed,
        capture_output=True,
        text=True,
        timeout=SOON,
        check=False,
    )
    return ended.returncode, ended.stdout, ended.stderr


def bodies(sim: EngineSimulator) -> list[Any]:
    """The bodies of all POSTs that a simulator got."""
    return [request.json for request in sim.requests if request.method == "POST"]


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts examples that are told something while they run, and leaves none behind."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(example: str, *arguments: str, stderr: int = subprocess.PIPE) -> subprocess.Popen[bytes]:
        started.append(
            subprocess.Popen(command(example, *arguments), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr)
        )
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def until(process: subprocess.Popen[bytes], wanted: bytes) -> bytes:
    """What the process says until it has said what is wanted."""
    assert process.stdout is not None
    said = b""
    while wanted not in said:
        piece = os.read(process.stdout.fileno(), 65536)
        assert piece, f"it ended without {wanted!r}: {said!r}"
        said += piece
    return said


def screens(terminal: int) -> Iterator[bytes]:
    """What is written to a terminal, until nobody holds it any more: Linux says that with an error."""
    try:
        while piece := os.read(terminal, 65536):
            yield piece
    except OSError:
        pass


# --- their manner


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_is_short_and_says_how_to_run_it(example: Path) -> None:
    """Less than 60 lines; its lesson in one, then one for each way to run it, the first of them without arguments."""
    source = example.read_text(encoding="utf-8")
    assert len(source.splitlines()) < 60
    lesson, ways = (ast.get_docstring(ast.parse(source)) or "").split("\n\n")[:2]
    assert len(lesson.splitlines()) == 1
    begun = [way.split("  ")[0] for way in ways.splitlines() if not way.startswith("pip install ")]
    assert begun[0] == f"python examples/{example.name}"
    assert len(begun) >= 2
    assert all(way.startswith(f"{begun[0]} ") for way in begun[1:])
    assert ' != "--simulated"' in source or "--simulated" in ways or "embedded" in source


@pytest.mark.parametrize(
    "example",
    [
        "cancel_from_thread.py",
        "chat.py",
        "handle_errors.py",
        "heartbeat.py",
        "stream.py",
        "structured_output.py",
        "timeouts.py",
        "tool_loop.py",
    ],
)
def test_an_engine_that_is_down_is_one_line(example: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A typed error ends the script with its code and message, not with a traceback."""
    monkeypatch.setattr(sys, "argv", [example, NOBODY])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(EXAMPLES / example), run_name="__main__")
    assert re.fullmatch(r"\n?ENGINE_UNAVAILABLE.*: cannot connect to http://127\.0\.0\.1:9: .*", str(left.value.code))


# --- a stream, and how it ends


def test_stream_needs_no_server() -> None:
    """With no engine named it plays on a simulated one."""
    code, out, err = play("stream.py")
    assert (code, err) == (0, "")
    assert re.fullmatch(re.escape(RECITAL) + r"\n\[stop: 25 tokens in \d+ ms\]\n", out)


def test_stream_of_any_engine() -> None:
    """The front page's loop prints the answer and its metrics; a failed job is one line and exit 1."""
    with VllmSimulator([" jumps", " over"]) as sim:
        code, out, err = play("stream.py", sim.url)
        assert (code, err) == (0, "")
        assert out.startswith(" jumps over\n[stop: 3 tokens in ")  # vLLM counts the end token
        sim.misbehave(Fault.cut_after(1))
        code, out, err = play("stream.py", sim.url)
    assert (code, out) == (1, " jumps")
    assert err.startswith("\nSTREAM_TRUNCATED after 1 tokens: ")


def test_cancel_from_thread_needs_no_server() -> None:
    """An endless job ends as cancelled, with the text so far."""
    code, out, err = play("cancel_from_thread.py")
    assert (code, err) == (0, "")
    assert re.search(r"\n\[cancelled after \d+ tokens\]\n\[kept \d+ characters; cancelled: True\]\n$", out)


def test_cancel_from_thread_frees_the_engine() -> None:
    """The engine's slot is free once the job was cancelled."""
    with VllmSimulator(endless=True, delay=0.01) as sim:
        code, out, err = play("cancel_from_thread.py", sim.url)
        assert (code, err) == (0, "")
        assert "\n[cancelled after " in out
        assert sim.wait_idle(SOON)


# --- a conversation


def test_chat_remembers_what_was_said() -> None:
    """Each request has all the turns before it, the engine's own among them; a question that failed is none."""
    with LlamaCppSimulator(["Yes."]) as sim:
        sim.misbehave(Fault("none"), Fault.status(400))
        code, out, err = play("chat.py", sim.url, typed="One?\nTwo?\nThree?\n")
        sent = [body["messages"] for body in bodies(sim)]
    assert (code, err) == (0, "")
    assert re.fullmatch(r"> Yes\.\n> \[INVALID_REQUEST: .*\]\n> Yes\.\n> \n\[4 turns\]\n", out)
    asked = [{"role": "user", "content": text} for text in ("One?", "Two?", "Three?")]
    answer = {"role": "assistant", "content": "Yes."}
    assert sent == [asked[:1], [asked[0], answer, asked[1]], [asked[0], answer, asked[2]]]


def test_chat_needs_no_server() -> None:
    """With no engine named it talks to a simulated one."""
    assert play("chat.py", typed="Hello!\n") == (0, f"> {RECITAL}\n> \n[2 turns]\n", "")


def test_ctrl_c_cuts_an_answer_short_and_then_leaves(start: Any) -> None:
    """In an answer Ctrl-C frees the engine and keeps what came as a turn; at the prompt it ends the conversation."""
    with LlamaCppSimulator([" on", " and"], endless=True, delay=0.01, slots=1) as sim:
        process = start("chat.py", sim.url)
        process.stdin.write(b"Go on.\n")
        process.stdin.flush()
        until(process, b" on and")
        process.send_signal(signal.SIGINT)
        until(process, b" [cut short]\n> ")
        assert sim.wait_idle(SOON)
        sim.tokens, sim.endless = ("Yes.",), False
        process.stdin.write(b"Enough?\n")
        process.stdin.flush()
        until(process, b"Yes.\n> ")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=SOON)
        turns = bodies(sim)[1]["messages"]
    assert (process.returncode, out, err) == (0, b"\n[4 turns]\n", b"")
    assert [turn["role"] for turn in turns] == ["user", "assistant", "user"]
    assert turns[1]["content"].startswith(" on and")


# --- errors, clocks, heartbeats


def test_handle_errors_has_an_answer_to_each() -> None:
    """Each error reaches the branch that is for it, and the last job has no trouble."""
    code, out, err = play("handle_errors.py")
    assert (code, err) == (0, "")
    assert [line.partition(":")[0] for line in out.splitlines()] == [
        "no such value", "too long", "wrong key", "cut off", "busy", "too slow", "no trouble",
    ]  # fmt: skip
    assert "no such value: mend the request: temperature: " in out
    assert re.search(r"^too long: shorten it: it has \d+ tokens, and 512 fit$", out, re.MULTILINE)
    assert "too slow: waited long enough: first_token fired after 0 tokens\n" in out
    assert "wrong key: look after the key" in out
    assert "cut off: keep what came, or ask anew: ' the quick brown'\n" in out
    assert "busy: CAPACITY_EXCEEDED, try later: " in out
    assert out.endswith(f"no trouble: {RECITAL}\n")


def test_each_clock_fires() -> None:
    """The error names the clock that fired; a slow loop trips none."""
    code, out, err = play("timeouts.py")
    assert (code, err) == (0, "")
    told = [re.sub(r", after \d+\.\d\d s$", "", line) for line in out.splitlines()]
    own, first, between, total, slow = told
    assert (own, slow) == ("as connected: ended in time", "{'between_tokens': 5}: ended in time")
    assert first == "{'first_token': 0.02}: first_token fired, with '' by then"
    assert between.startswith("{'between_tokens': 0.01}: between_tokens fired, with ' the")
    assert total.startswith("{'total': 0.5}: total fired, with '")


def test_heartbeats_come_before_the_first_token() -> None:
    """An event stream for a browser: comments while the engine thinks, then every frame as JSON."""
    code, out, err = play("heartbeat.py")
    assert (code, err, out[-2:]) == (0, "", "\n\n")
    events = out.removesuffix("\n\n").split("\n\n")
    beats = [event for event in events if event == ": still waiting"]
    frames = [json.loads(event.removeprefix("data: ")) for event in events if event.startswith("data: ")]
    assert events[: len(beats)] == beats
    assert beats
    assert len(beats) + len(frames) == len(events)
    assert [frame["type"] for frame in frames] == ["started", *["token"] * 6, "end"]


# --- engines that are there, and one that nobody knows


def test_local_engines_that_are_simulated() -> None:
    """Two engines are found, and where nothing listens is no line."""
    code, out, err = play("local_engines.py", "--simulated")
    assert (code, err) == (0, "")
    one, other = out.splitlines()
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+: llamacpp unknown, healthy, with models/recite\.gguf", one)
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+: vllm 0\.32\.0, healthy, with recite", other)


def test_local_engines_at_addresses_of_ones_own() -> None:
    """An engine that is loading and one that wants a key are lines too; nothing at all is said, with exit code 1."""
    with LlamaCppSimulator(loading=True) as loading, OpenAISimulator(api_key="sk-canary") as openai:
        code, out, err = play("local_engines.py", loading.url, NOBODY, openai.base_url)
        one, other = out.splitlines()
    assert (code, err) == (0, "")
    assert one.startswith(f"{loading.url}: llamacpp, degraded: ")
    assert "Loading model" in one
    assert other.startswith(f"{openai.base_url}: AUTHENTICATION_FAILED: ")
    code, out, err = play("local_engines.py", NOBODY)
    assert (code, err) == (1, "")
    assert out.startswith(f"nothing at {NOBODY}; ")


def test_new_engine_speaks() -> None:
    """An adapter of a few lines gives the same frames as any other; at a dead server, the same error."""
    code, out, err = play("new_engine.py")
    frames = [ast.literal_eval(line) for line in out.splitlines()]
    assert (code, err) == (0, "")
    assert [frame["type"] for frame in frames] == ["started", "token", "token", "end"]
    assert [frames[0][name] for name in ("engine", "engine_version", "model")] == ["parrot", "1.2", "grey"]
    assert [frame["text"] for frame in frames[1:3]] == ["Polly", " is"]
    assert (frames[3]["finish_reason"], frames[3]["raw_finish_reason"]) == ("length", "enough")
    assert (frames[3]["metrics"]["tokens_in"], frames[3]["metrics"]["tokens_out"]) == (3, 2)


def test_new_engine_that_is_down() -> None:
    """An error is the last frame."""
    code, out, err = play("new_engine.py", NOBODY)
    (frame,) = map(ast.literal_eval, out.splitlines())
    assert (code, err, frame["code"], frame["engine"]) == (0, "", "ENGINE_UNAVAILABLE", "parrot")


# --- a loop of tool calls


@UNTOLD
def test_tool_loop_needs_no_server(arguments: list[str]) -> None:
    """With no engine named it plays on a simulated one: tool called, result told, answer printed."""
    assert play("tool_loop.py", *arguments) == (0, CALLED + "It is 730 days.\n", "")


@pytest.mark.parametrize("flavor", ["openai", "ollama", "groq"])
def test_tool_loop_on_any_engine(flavor: str) -> None:
    """The loop is the same where calls come in pieces and where they come whole; the key comes from API_KEY."""
    with OpenAISimulator(["Two years."], flavor=flavor, tool_calls=[CALL], api_key="sk-canary") as sim:
        assert play("tool_loop.py", sim.base_url, sim.model, API_KEY="sk-canary") == (0, CALLED + "Two years.\n", "")
        _, asked, told = bodies(sim)[1]["messages"]
    (call,) = asked["tool_calls"]
    assert told == {"role": "tool", "content": "730", "tool_call_id": call["id"]}


@pytest.mark.parametrize(
    ("call", "told", "arguments"),
    [
        (("days_between", ['{"first": "2024-']), "error: JSONDecodeError: ", {}),
        (("days_between", ["[1, 2]"]), "error: TypeError: ", [1, 2]),
        (
            ("days_between", ['{"first": "soon", "last": "now"}']),
            "error: ValueError: ",
            {"first": "soon", "last": "now"},
        ),
        (("rm", ['{"path": "/"}']), "error: KeyError: 'rm'", {"path": "/"}),
    ],
    ids=["no JSON", "no object", "bad value", "no such tool"],
)
def test_tool_loop_tells_the_model_its_mistakes(call: tuple[str, list[str]], told: str, arguments: Any) -> None:
    """A call that cannot be made is answered with why; what the server is told of it is JSON in any case."""
    with VllmSimulator(["Sorry."], tool_calls=[call]) as sim:
        code, out, err = play("tool_loop.py", sim.url)
        _, asked, result = bodies(sim)[1]["messages"]
    assert (code, out.endswith("]\nSorry.\n"), err) == (0, True, "")
    assert result["content"].startswith(told)
    assert json.loads(asked["tool_calls"][0]["function"]["arguments"]) == arguments


def test_tool_loop_is_bounded() -> None:
    """A model that calls for ever is stopped after five rounds."""
    with LlamaCppSimulator(tool_call=CALL) as sim:  # this one calls whenever there are tools
        code, out, err = play("tool_loop.py", sim.url)
        assert sim.generations == 5
    assert (code, out, err) == (1, CALLED * 5, "no answer in 5 rounds\n")


# --- a dataclass as the answer


@UNTOLD
def test_structured_output_needs_no_server(arguments: list[str]) -> None:
    """With no engine named it plays on a simulated one, and prints the dataclass."""
    code, out, err = play("structured_output.py", *arguments)
    assert (code, err) == (0, "")
    assert re.fullmatch(r"Ticket\(title='.+', urgency='high', minutes_left=\d+, places=\['.+'\]\)\n", out)


def test_structured_output_asks_for_the_fields() -> None:
    """The schema that is sent has the dataclass's fields, all required and none besides."""
    with OpenAISimulator() as sim:
        code, out, err = play("structured_output.py", sim.base_url, sim.model)
        (body,) = bodies(sim)
    assert (code, out[:7], err) == (0, "Ticket(", "")
    held = body["response_format"]["json_schema"]
    assert (held["name"], held["strict"]) == ("Ticket", True)
    assert held["schema"] == {
        "type": "object",
        "properties": {
            "title": {"type": "string"},
            "urgency": {"type": "string", "enum": ["high", "low"]},
            "minutes_left": {"type": "integer"},
            "places": {"type": "array", "items": {"type": "string"}},
        },
        "required": ["title", "urgency", "minutes_left", "places"],
        "additionalProperties": False,
    }


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("I cannot do that.", "JSONDecodeError: "),
        ("[]", "TypeError: "),
        ('{"title": "Fire", "urgency": "high", "places": []}', "KeyError: 'minutes_left'"),
        (
            '{"title": "Fire", "urgency": "dire", "minutes_left": 10, "places": []}',
            'ValueError: urgency: want {"type": "string", "enum": ["high", "low"]}',
        ),
        (
            '{"title": "Fire", "urgency": "low", "minutes_left": "10", "places": []}',
            'ValueError: minutes_left: want {"type": "integer"}',
        ),
        (
            '{"title": "Fire", "urgency": "low", "minutes_left": 10, "places": [2]}',
            'ValueError: places: want {"type": "string"}',
        ),
    ],
)
def test_structured_output_says_what_does_not_fit(text: str, why: str) -> None:
    """An answer that is no Ticket is one line that says where and what was wanted: some servers ignore a schema."""
    with LlamaCppSimulator([text], grammars=False) as sim:  # recites, whatever schema it is given
        code, out, err = play("structured_output.py", sim.url)
    assert (code, out) == (1, "")
    assert err.startswith(f"the answer (finish_reason stop) is no Ticket: {why}")
    assert len(err.splitlines()) == 1


# --- several engines


@UNTOLD
def test_three_engines_need_no_server(arguments: list[str]) -> None:
    """With no engine named it plays on three simulated ones, and prints the same of each."""
    code, out, err = play("three_engines.py", *arguments)
    assert (code, err) == (0, "")
    assert re.findall(r"^--- (\w+)$", out, re.MULTILINE) == ["llamacpp", "vllm", "openai"]
    assert re.findall(r"^\[(\w+ \S+), \S+\]$", out, re.MULTILINE) == [
        "llamacpp unknown",
        "vllm 0.32.0",
        "openai unknown",
    ]
    assert [out_tokens for _, out_tokens in ENDED.findall(out)] == ["25"] * 3


def test_three_engines_go_on_where_one_is_down() -> None:
    """A server that is down, one that dies and one that wants a key are a line each; the others answer."""
    with VllmSimulator() as vllm, LlamaCppSimulator() as dying, OpenAISimulator(api_key="sk-canary") as openai:
        dying.misbehave(Fault.cut_after(3))
        places = [
            f"auto={vllm.url}",
            f"vllm={NOBODY}",
            f"llamacpp={dying.url}",
            f"openai={openai.base_url}#gpt-4o-mini",
        ]
        code, out, err = play("three_engines.py", *places, OPENAI_API_KEY="sk-wrong")
        assert (code, err) == (1, "")
        assert "[vllm 0.32.0, recite]" in out
        assert "[EngineUnavailable after 0 tokens, may be tried again: cannot connect" in out
        assert "\n[StreamTruncated after 3 tokens, is not to be tried again: " in out
        assert "[AuthenticationFailed after 0 tokens, is not to be tried again: " in out
        assert "sk-wrong" not in out
        code, out, err = play("three_engines.py", *places[::3], OPENAI_API_KEY="sk-canary")
    assert (code, len(ENDED.findall(out)), err) == (0, 2, "")


# --- a host


@UNTOLD
def test_two_replicas_lose_what_had_begun_and_nothing_else(arguments: list[str]) -> None:
    """One of two engines is killed under its jobs: those end with a typed error, all the others with their answer."""
    code, out, err = play("two_replicas.py", *arguments)
    lines = out.splitlines()
    killed = lines.index("--- r0 is killed")
    answers = [line for line in lines if line.endswith("...")]
    lost = [line for line in lines if re.match(r"r[01]: [A-Z_]+ after \d+ tokens: ", line)]
    assert (code, err, len(answers) + len(lost)) == (0, "", 40)
    assert all(line.startswith("r0: ") for line in lost)
    assert all(lines.index(line) > killed for line in lost)
    assert re.fullmatch(
        rf"\[r1: {sum(line[:2] == 'r1' for line in answers)} answers, its breaker is closed\]", lines[-1]
    )


def test_two_replicas_of_ones_own_share_the_jobs() -> None:
    """At URLs of any engines, of which none dies, every job has its answer."""
    with VllmSimulator(delay=0.001) as one, LlamaCppSimulator(delay=0.001) as other:
        code, out, err = play("two_replicas.py", one.url, other.url)
        assert one.generations + other.generations == 40
    *answers, r0, r1 = out.splitlines()
    assert (code, err, len(answers)) == (0, "", 40)
    counts = [re.fullmatch(r"\[r[01]: (\d+) answers, its breaker is closed\]", line) for line in (r0, r1)]
    assert [int(count[1]) for count in counts if count] == [one.generations, other.generations]


def test_hundred_prompts_are_a_hundred_lines(start: Any) -> None:
    """Each answer is a line of JSON with its prompt's id, in whatever order; only the bar is on the terminal."""
    ours, theirs = pty.openpty()
    shown: list[bytes] = []
    try:
        process = start("hundred_prompts.py", stderr=theirs)
        os.close(theirs)
        screen = threading.Thread(target=lambda: shown.extend(screens(ours)))
        screen.start()
        out, _ = process.communicate(timeout=SOON)
        screen.join(SOON)
    finally:
        os.close(ours)
    told = [json.loads(line) for line in out.splitlines()]
    bar = b"".join(shown)
    assert process.returncode == 0, bar
    assert {line["id"] for line in told} == {f"prompt-{number}" for number in range(100)}
    assert all(line["text"] for line in told)
    assert b"100%" in bar
    assert b"100 answers, 0 errors, " in bar
    assert b"prompt-" not in bar


def test_prompts_from_a_file_that_fail_stop_nothing(tmp_path: Path) -> None:
    """With a config of one's own: a prompt that no engine takes is a line with its error, and the exit code tells."""
    with LlamaCppSimulator(n_ctx=64) as sim:
        config = tmp_path / "pools.toml"
        config.write_text(f'[pools.chat.r0]\nengine = "llamacpp"\nurl = "{sim.url}"\n')
        prompts = "one\n" + "word " * 200 + "\ntwo\n"
        code, out, _ = play("hundred_prompts.py", str(config), "chat", typed=prompts)
    told = {line["id"]: line for line in map(json.loads, out.splitlines())}
    assert code == 1
    assert told["prompt-1"]["error"] == "CONTEXT_OVERFLOW"
    assert told["prompt-0"]["text"]
    assert told["prompt-2"]["text"]


def test_a_signal_cancels_every_job() -> None:
    """Jobs that are read, at work and waiting all end as cancelled, with what came so far."""
    code, out, err = play("cancel_on_signal.py")
    assert (code, err) == (0, "")
    assert re.search(r"\n\[cancelled after \d+ tokens\]\n", out)
    kept = [int(found) for found in re.findall(r"in pool chat: cancelled>: (\d+) characters kept\]", out)]
    assert len(kept) == 5
    assert kept.count(0) >= 2


def test_ctrl_c_cancels_every_job(start: Any) -> None:
    """The same by a real Ctrl-C, on engines of one's own: they are free at once."""
    with VllmSimulator(endless=True, slots=4, delay=0.01) as sim:
        process = start("cancel_on_signal.py", sim.url)
        until(process, b" quick brown")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=SOON)
        assert sim.wait_idle(SOON)
    assert (process.returncode, err) == (0, b"")
    assert b"\n[cancelled after " in out
    assert out.count(b" in pool chat: cancelled>: ") == 5


# --- on the real llama.cpp


needs_llamacpp = pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="needs the wheel xllamacpp")


@pytest.fixture(scope="module")
def llamacpp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedLlamaCpp]:
    """A real server whose answers never end."""
    model = write_recite_gguf(tmp_path_factory.mktemp("model") / "cyclic.gguf", cyclic=True, ballast_mib=40)
    with EmbeddedLlamaCpp(model, context=4096) as server:
        yield server


@pytest.mark.engines
@needs_llamacpp
@pytest.mark.parametrize(
    ("example", "said"),
    [
        ("stream.py", r"Welcome! This engine .*\n\[length: 64 tokens in \d+ ms\]\n"),
        ("cancel_from_thread.py", r"Welcome! .*\n\[cancelled after \d+ tokens\]\n\[kept \d+ .*; cancelled: True\]\n"),
        (
            "handle_errors.py",
            r"no such value: mend .*\ntoo long: shorten it: it has \d+ tokens, and 1024 fit\n"
            r"too slow: (waited long enough: first_token fired after 0 tokens|Welcome! .*)\nno trouble: Welcome! .*\n",
        ),
        ("timeouts.py", r"as connected: ended in time, after .*\n"),
        ("heartbeat.py", r'.*data: \{"type": "started", .*"finish_reason": "length", .*\n\n'),
        ("local_engines.py", r"http://127\.0\.0\.1:\d+: llamacpp .*, healthy, with .*cyclic\.gguf\n"),
        ("three_engines.py", r"--- auto\n\[llamacpp .*\n\[length: \d+ tokens in, 64 out \(exact\); .*\]\n"),
    ],
)
def test_an_example_on_the_real_one(example: str, said: str, llamacpp: EmbeddedLlamaCpp) -> None:
    """What an example does on a simulated engine, it does on the real one."""
    where = f"auto={llamacpp.url}" if example == "three_engines.py" else llamacpp.url
    code, out, err = play(example, where)
    assert (code, err) == (0, "")
    assert re.fullmatch(said, out, re.DOTALL), out


@pytest.mark.engines
@needs_llamacpp
def test_chat_with_the_real_one(start: Any, llamacpp: EmbeddedLlamaCpp) -> None:
    """An answer that would never end is cut short by Ctrl-C, and the next question is answered."""
    process = start("chat.py", llamacpp.url)
    for question in (b"Who are you?\n", b"And who else?\n"):
        process.stdin.write(question)
        process.stdin.flush()
        until(process, b"Welcome! This engine")
        process.send_signal(signal.SIGINT)
        until(process, b" [cut short]\n> ")
    out, err = process.communicate(timeout=SOON)
    assert (process.returncode, out, err) == (0, b"\n[4 turns]\n", b"")


@pytest.mark.engines
@needs_llamacpp
def test_embedded_gguf_on_a_model_made_on_the_spot() -> None:
    """Without a file it makes one, which recites to its end."""
    code, out, err = play("embedded_gguf.py")
    assert (code, err) == (0, "")
    assert re.fullmatch(
        rf"\[healthy: .*recite\.gguf, 4096 tokens of context, at http://.*\]\n"
        rf"{re.escape(' '.join(DEFAULT_WORDS))}\n\[stop: 50 tokens\]\n",
        out,
    )


@pytest.mark.engines
@needs_llamacpp
def test_embedded_gguf_on_a_file(tmp_path: Path) -> None:
    """A file of one's own is served; one that is missing, none or broken is a line that names it."""
    model = write_recite_gguf(tmp_path / "mine.gguf", words="Hello from a file.")
    code, out, err = play("embedded_gguf.py", str(model), "Who", "are", "you?")
    assert (code, err) == (0, "")
    assert "mine.gguf, 4096 tokens of context, at " in out
    assert "\nHello from a file.\n[stop: " in out
    (tmp_path / "none.gguf").write_text("no model")
    (tmp_path / "broken.gguf").write_bytes(model.read_bytes()[:1000])
    for name, kind in (("gone", "FileNotFoundError"), ("none", "ValueError"), ("broken", "EmbeddedServerError")):
        code, out, err = play("embedded_gguf.py", str(tmp_path / f"{name}.gguf"))
        assert (code, out) == (1, "")
        assert err.startswith(f"{kind}: ")
        assert f"{name}.gguf" in err
        assert "Traceback" not in err


@pytest.mark.engines
@needs_llamacpp
def test_ctrl_c_ends_the_embedded_server_too(start: Any, tmp_path: Path) -> None:
    """Ctrl-C in the middle of an answer ends the script, and its server with it."""
    model = write_recite_gguf(tmp_path / "cyclic.gguf", cyclic=True, ballast_mib=400)
    process = start("embedded_gguf.py", str(model))
    said = until(process, b"Welcome! ")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=SOON)
    assert process.returncode == 130
    assert err == b""
    url = re.search(rb"at (http://.*)\]", said)
    assert url is not None
    assert play("stream.py", url[1].decode())[2].startswith("\nENGINE_UNAVAILABLE after 0 tokens: cannot connect to ")
