"""``worker-adapters detect``: what it prints where, and its exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from click.testing import CliRunner, Result

from worker_adapters.adapters import catalog
from worker_adapters.cli.commands import cli
from worker_adapters.cli.exits import EXITS
from worker_adapters.simulate import Exchange, LlamaCppSimulator, SimServer

KEY = "sesame-opens-0123456789"


def run(*arguments: str, **environment: str) -> Result:
    """The command's result; stdout and stderr apart."""
    return CliRunner().invoke(cli, ["detect", *arguments], env=environment, prog_name="worker-adapters")


def serving(status: int, body: object) -> Callable[[Exchange], None]:
    """A handler with one answer to everything."""
    return lambda exchange: exchange.json(status, body)


def test_the_name_alone_is_on_stdout() -> None:
    """The name can be captured; how to connect, version and model stand on stderr."""
    with LlamaCppSimulator(build_info="b7000-abc", model="recite.gguf") as sim:
        answer = run(sim.url + "/v1")
        assert {request.method for request in sim.requests} == {"GET"}
    assert (answer.exit_code, answer.stdout) == (0, "llamacpp\n")
    assert answer.stderr.splitlines() == [
        f'connect("llamacpp", "{sim.url}")',
        "version b7000-abc, model recite.gguf",
    ]


def test_json_is_one_object() -> None:
    """--json prints one object with the same facts, and nothing on stderr."""
    with LlamaCppSimulator(build_info="b7000-abc", model="recite.gguf") as sim:
        answer = run(sim.url, "--json")
    assert json.loads(answer.stdout) == {
        "engine": "llamacpp",
        "url": sim.url,
        "connect": f'connect("llamacpp", "{sim.url}")',
        "ready": True,
        "message": "",
        "engine_version": "b7000-abc",
        "model": "recite.gguf",
    }
    assert answer.stderr == ""


def test_a_server_that_loads_is_named_and_said_to_load() -> None:
    """A server that is not ready is named all the same, at once; what it says of itself is passed on."""
    with LlamaCppSimulator(loading=True) as sim:
        answer = run(sim.url)
    assert (answer.exit_code, answer.stdout) == (0, "llamacpp\n")
    assert "Loading model" in answer.stderr


def test_the_key_comes_from_the_environment() -> None:
    """The key is sent and never shown; the call to use names the variable."""
    with LlamaCppSimulator(api_key=KEY) as sim:
        answer = run(sim.url, "--api-key", "env:ENGINE_KEY", ENGINE_KEY=KEY)
        refused = run(sim.url, "--api-key", "env:ENGINE_KEY", ENGINE_KEY="sesame-wrong-0123")
    assert answer.exit_code == refused.exit_code == 0
    assert f'connect("llamacpp", "{sim.url}", api_key="env:ENGINE_KEY")' in answer.stderr
    assert "model" in answer.stderr
    assert "401" in refused.stderr
    assert "sesame" not in answer.output + refused.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "URL"),
        (("http://h", "--api-key", KEY), "env:NAME"),
        (("http://h", "--api-key", "env:NO_SUCH_VARIABLE_HERE"), "NO_SUCH_VARIABLE_HERE"),
        (("http://h", "--timeout", "soon"), "--timeout"),
    ],
)
def test_a_wrong_command_line_is_exit_2(arguments: tuple[str, ...], said: str) -> None:
    """A wrong command line names the culprit, shows no key and sends nothing."""
    answer = run(*arguments)
    assert answer.exit_code == 2
    assert said in answer.stderr
    assert KEY not in answer.output


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [(404, 12, "UNKNOWN"), (401, 6, "--api-key env:NAME"), (503, 9, "ENGINE_UNAVAILABLE")],
)
@pytest.mark.parametrize("options", [(), ("--json",)])
def test_an_error_is_one_line_and_its_exit_code(status: int, code: int, said: str, options: tuple[str, ...]) -> None:
    """What is not named ends with the code of its class, in one line that says what was asked and what to try."""
    with SimServer(serving(status, {"error": "x"})) as server:
        answer = run(server.url.replace("http://", f"http://user:{KEY}@"), *options)
    assert answer.exit_code == code
    assert code in {row.code for row in EXITS}
    assert said in answer.stderr
    assert "/v1/models" in answer.stderr
    assert answer.stderr.count("\n") == 1
    assert KEY not in answer.output
    if options:
        told = json.loads(answer.stdout)
        assert told["engine"] is None
        assert told["message"] in answer.stderr
    else:
        assert answer.stdout == ""


def test_nothing_there_is_exit_9() -> None:
    """A dead server is named by its address, and asked about."""
    with LlamaCppSimulator() as sim:
        sim.kill()
        answer = run(sim.url)
    assert answer.exit_code == 9
    assert sim.url in answer.stderr
    assert "Is the server running there?" in answer.stderr


def test_a_tarpit_is_exit_11() -> None:
    """A server that never answers ends in time, with the option that gives more of it."""

    def never(exchange: Exchange) -> None:
        exchange.wait_gone()

    with SimServer(never) as server:
        answer = run(server.url, "--timeout", "0.3")
    assert answer.exit_code == 11
    assert "--timeout" in answer.stderr


def test_a_url_that_is_none_is_exit_3() -> None:
    """A URL without a scheme is a wrong request."""
    answer = run("localhost:8000")
    assert answer.exit_code == 3
    assert "http://" in answer.stderr


def test_a_server_without_an_adapter() -> None:
    """A server that is known but has no adapter is named, and said to have none."""

    def triton(exchange: Exchange) -> None:
        found = {"name": "triton", "version": "2.51.0", "extensions": ["schedule_policy"]}
        exchange.json(*((200, found) if exchange.request.path == "/v2" else (404, {"error": "Not Found"})))

    with SimServer(triton) as server, pytest.MonkeyPatch.context() as patch:
        patch.delitem(catalog.CATALOG, "triton", raising=False)
        answer = run(server.url)
        told = json.loads(run(server.url, "--json").stdout)
    assert (answer.exit_code, answer.stdout) == (0, "triton\n")
    assert "no adapter" in answer.stderr
    assert told == {"engine": "triton", "url": server.url, "connect": None}


def test_no_secret_of_the_url_is_printed() -> None:
    """A password in the URL is masked in the call that is shown."""
    with LlamaCppSimulator() as sim:
        answer = run(sim.url.replace("http://", f"http://user:{KEY}@"))
    assert answer.exit_code == 0
    assert "***@" in answer.stderr
    assert KEY not in answer.output


def test_help_gives_examples() -> None:
    """--help has examples that begin with the command's name, and the exit codes."""
    shown = run("--help").output
    assert "  worker-adapters detect http://localhost:8000" in shown
    assert "Exit codes:" in shown
