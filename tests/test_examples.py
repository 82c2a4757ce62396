"""The examples that play on an engine of any kind, each as a reader runs it: a process of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from worker_adapters.simulate import EngineSimulator, Fault, LlamaCppSimulator, OpenAISimulator, VllmSimulator

SOON = 60.0  # seconds that nothing here needs
EXAMPLES = Path(__file__).parent.parent / "examples"
NOBODY = "http://127.0.0.1:9"  # discard: nothing listens there
#: With no argument, and with the one that says so.
UNTOLD = pytest.mark.parametrize("arguments", [[], ["--simulated"]], ids=["bare", "simulated"])
CALL = ("days_between", ['{"first": "2024-02-29"', ', "last": "2026-02-28"}'])
CALLED = '[days_between {"first": "2024-02-29", "last": "2026-02-28"} -> 730]\n'
ENDED = re.compile(r"\[stop: (\d+) tokens in, (\d+) out \(exact\); first after \d+ ms, all after \d+ ms\]")


def play(example: str, *arguments: str, **environment: str) -> tuple[int, str, str]:
    """Exit code, output and error output; every warning is an error there, as it is here."""
    command = [sys.executable, "-W", "error", str(EXAMPLES / example), *arguments]
    surroundings = {**os.environ, **environment}
    ended = subprocess.run(command, env=surroundings, capture_output=True, text=True, timeout=SOON, check=False)
    return ended.returncode, ended.stdout, ended.stderr


def bodies(sim: EngineSimulator) -> list[Any]:
    """The bodies of all POSTs that a simulator got."""
    return [request.json for request in sim.requests if request.method == "POST"]


# --- a loop of tool calls


@UNTOLD
def test_tool_loop_needs_no_server(arguments: list[str]) -> None:
    """With no engine named it plays on a simulated one: tool called, result told, answer printed."""
    assert play("tool_loop.py", *arguments) == (0, CALLED + "It is 730 days.\n", "")


@pytest.mark.parametrize(("engine", "flavor"), [("openai", "openai"), ("ollama", "ollama"), ("openai", "groq")])
def test_tool_loop_on_any_engine(engine: str, flavor: str) -> None:
    """The loop is the same where calls come in pieces and where they come whole; the key comes from API_KEY."""
    with OpenAISimulator(["Two years."], flavor=flavor, tool_calls=[CALL], api_key="sk-canary") as sim:
        arguments = (engine, sim.base_url, sim.model)
        assert play("tool_loop.py", *arguments, API_KEY="sk-canary") == (0, CALLED + "Two years.\n", "")
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
        code, out, err = play("tool_loop.py", "vllm", sim.url)
        _, asked, result = bodies(sim)[1]["messages"]
    assert (code, out.endswith("]\nSorry.\n"), err) == (0, True, "")
    assert result["content"].startswith(told)
    assert json.loads(asked["tool_calls"][0]["function"]["arguments"]) == arguments


def test_tool_loop_is_bounded() -> None:
    """A model that calls for ever is stopped after five rounds."""
    with LlamaCppSimulator(tool_call=CALL) as sim:  # this one calls whenever there are tools
        code, out, err = play("tool_loop.py", "llamacpp", sim.url)
        assert sim.generations == 5
    assert (code, out, err) == (1, CALLED * 5, "no answer in 5 rounds\n")


@pytest.mark.parametrize("example", ["tool_loop.py", "structured_output.py"])
def test_a_failed_job_is_one_line(example: str) -> None:
    """A typed error is printed as its code and message, without a traceback."""
    code, out, err = play(example, "vllm", NOBODY)
    assert (code, out) == (1, "")
    assert re.fullmatch(r"ENGINE_UNAVAILABLE: cannot connect to http://127\.0\.0\.1:9: .*\n", err)


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
        code, out, err = play("structured_output.py", "openai", sim.base_url, sim.model)
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
    with LlamaCppSimulator([text]) as sim:  # recites, whatever schema it is given
        code, out, err = play("structured_output.py", "llamacpp", sim.url)
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


def test_hundred_prompts_are_a_hundred_lines() -> None:
    """Each prompt's answer is a line of JSON with its id, whatever order they end in; the bar stays on stderr."""
    code, out, err = play("hundred_prompts.py")
    told = [json.loads(line) for line in out.splitlines()]
    assert code == 0, err
    assert {line["id"] for line in told} == {f"prompt-{number}" for number in range(100)}
    assert all(line["text"] for line in told)
    assert "100 answers, 0 errors, " in err
    assert "100%" in err


def test_prompts_from_a_file_that_fail_stop_nothing(tmp_path: Path) -> None:
    """With a config of one's own: a prompt that no engine takes is a line with its error, and the exit code tells."""
    with LlamaCppSimulator(n_ctx=64) as sim:
        config = tmp_path / "pools.toml"
        config.write_text(f'[pools.chat.r0]\nengine = "llamacpp"\nurl = "{sim.url}"\n')
        command = [sys.executable, "-W", "error", str(EXAMPLES / "hundred_prompts.py"), str(config), "chat"]
        prompts = "one\n" + "word " * 200 + "\ntwo\n"
        ended = subprocess.run(command, input=prompts, capture_output=True, text=True, timeout=SOON, check=False)
    told = {line["id"]: line for line in map(json.loads, ended.stdout.splitlines())}
    assert ended.returncode == 1
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
