"""``worker-adapters simulate``: what it serves, how it goes wrong on request, and how it ends."""

from __future__ import annotations

import signal
import socket
from urllib.parse import urlsplit

import pytest

from canary import KEY
from command import SOON, Terminal, ended, invoke, started
from worker_adapters import WorkerError, connect, detect
from worker_adapters.adapters.catalog import adapter_class
from worker_adapters.cli.simulate import PORTS, server_for
from worker_adapters.simulate import SIMULATORS, LlamaCppSimulator, SimServer

pytestmark = [pytest.mark.llamacpp, pytest.mark.openai, pytest.mark.tgi, pytest.mark.triton, pytest.mark.vllm]


@pytest.mark.parametrize("engine", sorted(PORTS))
def test_each_is_known_for_what_it_is(engine: str) -> None:
    """Every name serves a server that detect knows by that name, and that answers."""
    with server_for(engine, host="127.0.0.1", port=0) as server:
        assert detect(server.url) == engine
        with connect("auto", server.url) as adapter:
            assert adapter.submit("Hi", max_tokens=3).result().text.split() == ["the", "quick", "brown"]


def test_there_is_a_simulator_for_each_and_its_port_is_the_usual_one() -> None:
    """Every simulator can be served, where its engine's adapter looks for it."""
    assert set(SIMULATORS) <= set(PORTS)
    for engine in set(SIMULATORS) - {"openai"}:
        assert urlsplit(adapter_class(engine).default_url).port == PORTS[engine]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_it_is_told_to_end(number: int) -> None:
    """The URL alone on stdout, what to try on stderr; Ctrl-C or SIGTERM ends it in mid-answer: exit 0."""
    with started("simulate", "llamacpp", "--port", "0", "--endless") as process:
        url = process.stdout.readline().decode().strip()
        with connect("llamacpp", url) as engine, engine.submit("hi", max_tokens=10**6) as stream:
            stream.start()
            process.send_signal(number)
            with pytest.raises(WorkerError):
                stream.result()
        code, out, err = ended(process)
    assert (code, out) == (0, "")
    assert f"worker-adapters run --engine llamacpp --url {url}" in err
    assert "Traceback" not in err


def test_a_busy_port_is_one_line() -> None:
    """A port that is taken is named, with what to try: exit 1."""
    with LlamaCppSimulator() as here:
        answer = invoke("simulate", "vllm", "--port", str(here.port))
    assert (answer.exit_code, answer.stdout) == (1, "")
    assert f"cannot listen on 127.0.0.1, port {here.port}: address already in use" in answer.stderr
    assert "--port 0" in answer.stderr
    assert answer.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("option", "code"), [("--die-after", "STREAM_TRUNCATED"), ("--error-after", "ENGINE_UNAVAILABLE")]
)
def test_answers_go_wrong_as_asked(option: str, code: str) -> None:
    """--die-after and its kin strike every answer after so many tokens."""
    with started("simulate", "openai", "--port", "0", option, "3", "--rate", "1000") as process:
        url = process.stdout.readline().decode().strip()
        with connect("openai", url) as engine:
            for _ in range(2):
                with pytest.raises(WorkerError) as caught:
                    engine.submit("hi", max_tokens=20).result()
                assert caught.value.tokens_seen == 3
                assert caught.value.code == code


def test_answers_go_silent_as_asked() -> None:
    """--silent-after: so many tokens come, and then neither a word nor an end."""
    with started("simulate", "openai", "--port", "0", "--silent-after", "3", "--rate", "1000") as process:
        url = process.stdout.readline().decode().strip()
        with connect("openai", url) as engine, engine.submit("hi", max_tokens=20) as stream:
            frames = stream.ticks(every=0.2)
            tokens = 0
            while tokens < 3:
                frame = next(frames)
                tokens += frame is not None and frame.type == "token"
            assert next(frames) is None


def test_every_job_is_refused_as_asked() -> None:
    """--refuse 429: every job is, with the engine's own words; health is none the worse."""
    with started("simulate", "vllm", "--port", "0", "--refuse", "429") as process:
        url = process.stdout.readline().decode().strip()
        with connect("vllm", url, retry={"attempts": 1}) as engine:
            with pytest.raises(WorkerError) as caught:
                engine.submit("hi").result()
            assert caught.value.code == "CAPACITY_EXCEEDED"
            assert engine.health().ready


def test_it_can_demand_a_key() -> None:
    """--api-key-env: who has not the key is refused; the key is never shown."""
    with started("simulate", "vllm", "--port", "0", "--api-key-env", "SIM_KEY", env={"SIM_KEY": KEY}) as process:
        url = process.stdout.readline().decode().strip()
        for key, code in ((KEY, 0), ("sk-CANARY-another", 6)):
            answer = invoke("props", "--engine", "vllm", url, "--api-key-env", "ENGINE_KEY", ENGINE_KEY=key)
            assert answer.exit_code == code
        process.send_signal(signal.SIGTERM)
        assert "CANARY" not in "".join(map(str, ended(process)))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "ENGINE"),
        (("nope",), "'llamacpp'"),
        (("vllm", "--rate", "0"), "--rate"),
        (("vllm", "--rate", "nan"), "--rate"),
        (("vllm", "--first-token", "inf"), "--first-token"),
        (("vllm", "--port", "70000"), "--port"),
        (("vllm", "--die-after", "3", "--refuse", "503"), "--die-after and --refuse"),
        (("vllm", "--api-key-env", "NO_SUCH_VARIABLE"), "NO_SUCH_VARIABLE"),
    ],
)
def test_a_wrong_command_line_is_exit_2(arguments: tuple[str, ...], said: str) -> None:
    """A wrong command line names the culprit, and nothing is served."""
    answer = invoke("simulate", *arguments)
    assert (answer.exit_code, answer.stdout) == (2, "")
    assert said in " ".join(answer.stderr.split())


def test_an_address_of_somebody_else_is_one_line() -> None:
    """A host that is no address of this machine is exit 1, too."""
    answer = invoke("simulate", "vllm", "--port", "0", "--host", "203.0.113.1")
    assert answer.exit_code == 1
    assert "cannot listen on 203.0.113.1" in answer.stderr


def test_every_address_is_shown_as_one_that_clients_can_use() -> None:
    """With --host 0.0.0.0 the URL that is printed is this machine's."""
    with started("simulate", "llamacpp", "--host", "0.0.0.0", "--port", "0") as process:
        url = process.stdout.readline().decode().strip()
        assert url.startswith("http://127.0.0.1:")
        assert detect(url) == "llamacpp"


def test_a_terminal_shows_what_is_going_on() -> None:
    """At a terminal one line counts connections and answers; piped, there is none (see above)."""
    with (
        Terminal(80) as terminal,
        started("simulate", "llamacpp", "--port", "0", stderr=terminal.end, env=terminal.environment) as process,
    ):
        url = process.stdout.readline().decode().strip()
        with connect("llamacpp", url) as engine:
            engine.submit("hi", max_tokens=2).result()
        assert "1 answers" in terminal.read(until="1 answers")
        process.send_signal(signal.SIGINT)
        assert process.wait(SOON) == 0


def test_help_gives_examples() -> None:
    """--help has examples that begin with the command's name."""
    shown = invoke("simulate", "--help").output
    assert "  worker-adapters simulate llamacpp" in shown
    assert "Exit codes:" in shown


# --- the server below it


def test_a_server_takes_the_place_of_one_that_has_just_ended() -> None:
    """A port of one's own is free again at once, though connections to it are still fading away."""
    with LlamaCppSimulator() as here:
        port = here.port
    with LlamaCppSimulator(port=port), socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(10)
    with LlamaCppSimulator(port=port) as again:  # the first one hung up: the wait is on its side
        assert again.url == f"http://127.0.0.1:{port}"


@pytest.mark.skipif(not socket.has_ipv6, reason="needs IPv6")
def test_a_server_on_ipv6_has_brackets_in_its_url() -> None:
    """An IPv6 address stands in brackets, as URLs want it."""
    try:
        server = SimServer(lambda exchange: exchange.json(200, {}), host="::1")
    except OSError:
        pytest.skip("this machine has no ::1")
    with server:
        assert server.url == f"http://[::1]:{server.port}"
