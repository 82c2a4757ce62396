"""Canaries over everything: what a person or a log may see of jobs that fail in every way, and the watch itself."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from canary import BEARER, CANARY, KEY, KEY_VARIABLE, PASSWORD, PROMPT, QUERY
from worker_adapters import (
    LlamaCppHttpAdapter,
    OpenAIHttpAdapter,
    TgiHttpAdapter,
    TritonAdapter,
    VllmHttpAdapter,
    WorkerError,
)
from worker_adapters.adapters.base import HttpAdapter
from worker_adapters.cli.commands import cli
from worker_adapters.simulate import (
    SIMULATORS,
    EngineSimulator,
    Fault,
    LlamaCppSimulator,
    OpenAISimulator,
    SimServer,
    TgiSimulator,
    TritonSimulator,
    VllmSimulator,
)

CHAT = [{"role": "user", "content": PROMPT}]
#: Name -> adapter and its options, simulator and its options.
ENGINES: dict[str, tuple[type[HttpAdapter], dict[str, Any], type[EngineSimulator], dict[str, Any]]] = {
    "llamacpp": (LlamaCppHttpAdapter, {}, LlamaCppSimulator, {}),
    "openai": (OpenAIHttpAdapter, {"organization": "org", "model": "gpt-4o-mini"}, OpenAISimulator, {}),
    "responses": (OpenAIHttpAdapter, {"api": "responses", "model": "gpt-4o-mini"}, OpenAISimulator, {}),
    "azure": (
        OpenAIHttpAdapter,
        {"api": "chat", "api_version": "2024-10-21", "model": "gpt-4o-mini"},
        OpenAISimulator,
        {"azure": True},
    ),
    "vllm": (VllmHttpAdapter, {"model": "recite"}, VllmSimulator, {}),
    "tgi": (TgiHttpAdapter, {}, TgiSimulator, {}),
    "triton": (TritonAdapter, {"model": "recite"}, TritonSimulator, {}),
}
engines = pytest.mark.parametrize(
    "engine",
    [pytest.param(name, marks=getattr(pytest.mark, ENGINES[name][0].engine)) for name in ENGINES],
)

#: What an engine or a proxy may say of a request: all of it comes back.
QUOTES = f"near '{PROMPT}' of Bearer {KEY}, X-Api-Token: {BEARER}, ?token={QUERY}, user:{PASSWORD}"


FAULTS: dict[str, Fault | None] = {
    "none": None,
    "an object": Fault.status(400, {"error": {"message": QUOTES, "type": "invalid_request_error", "code": "x"}}),
    "a string": Fault.status(400, {"error": QUOTES}),
    "flat": Fault.status(400, {"object": "error", "message": QUOTES, "code": 400}),
    "a detail": Fault.status(422, {"detail": [{"loc": ["body", "x"], "msg": QUOTES}]}),
    "param": Fault.status(400, {"error": {"message": "no", "param": QUOTES}}),
    "type and code": Fault.status(400, {"error": {"message": "no", "type": QUOTES, "code": QUOTES}}),
    "text": Fault.status(500, QUOTES, headers=[("Content-Type", "text/plain")]),
    "a page": Fault.status(502, QUOTES, headers=[("Content-Type", "text/html")]),
    "a media type": Fault.status(502, "x", headers=[("Content-Type", f"text/{KEY}")]),
    "a request id": Fault.status(500, None, headers=[("x-request-id", f"req-{KEY}-{QUERY}")]),
    "a redirect": Fault.redirect(f"http://elsewhere/?token={QUERY}"),
    "200 that is no answer": Fault.json_200({"error": QUOTES}),
    "an event": Fault.error_after(1, message=QUOTES, error_type="x"),
    "a first event": Fault.error_after(0, message=QUOTES),
    "garbage": Fault.garbage_after(1, b'data: {"content": "' + QUOTES.encode() + b'" oops\n\n'),
    "a cut": Fault.cut_after(1),
    "no head": Fault.reset_before_head(),
    "a busy queue": Fault.status(503, {"error": {"message": QUOTES}}),
}


def shown_of(error: WorkerError) -> Iterator[str]:
    """Everything an error can show, less the answer it holds."""
    error.partial_text = ""
    yield from (str(error), repr(error), json.dumps(error.to_dict()), repr(vars(error)), repr(error.args))
    yield repr(pickle.dumps(error))
    yield "".join(traceback.format_exception(error))


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("fault", FAULTS)
@engines
def test_nothing_shows_a_canary(engine: str, fault: str, chat: bool) -> None:
    """Key, header, query, password and prompt stay out of errors, tracebacks, pickles, reprs, health and props."""
    adapter, own, simulator, traits = ENGINES[engine]
    with simulator(**traits, api_key=KEY) as server:
        url = server.url.replace("http://", f"http://user:{PASSWORD}@") + f"?token={QUERY}"
        options = {"api_key": KEY, "headers": {"X-Api-Token": BEARER}, "retry": {"attempts": 2, "base": 0.001}}
        with adapter(url, **options, **own) as made:
            wrong = FAULTS[fault]
            if wrong is not None:
                server.misbehave(wrong, wrong)
            stream = made.submit(CHAT if chat and made.capabilities.messages else PROMPT, max_tokens=3)
            shown = [repr(made), repr(vars(made)), repr(stream)]
            try:
                shown += [repr(stream.result().metrics)]
            except WorkerError as error:
                shown += shown_of(error)
            shown += [repr(stream), repr(made.health())]
            try:
                shown += [repr(made.props())]
            except WorkerError as error:
                shown += shown_of(error)
        assert server.generation_requests, "the fault was never met"
    assert [text for text in shown if CANARY.search(text)] == []


@engines
def test_a_proxy_keeps_its_password(engine: str) -> None:
    """A proxy that refuses, hangs up, or is not there: its password is in no error."""
    adapter, own, _, _ = ENGINES[engine]

    def refuse(exchange: Any) -> None:
        exchange.json(407, {"message": f"user:{PASSWORD} is not known"})

    shown = []
    with SimServer(refuse) as server:
        proxy = server.url.replace("http://", f"http://user:{PASSWORD}@")
        for closed in (False, True):
            for scheme in ("http", "https"):
                with adapter(f"{scheme}://engine.invalid", proxy=proxy, retry={"attempts": 1}, **own) as made:
                    with pytest.raises(WorkerError) as caught:
                        made.submit(PROMPT).result()
                    shown += [repr(made), repr(made.health()), *shown_of(caught.value)]
            if not closed:
                server.close()
    assert [text for text in shown if CANARY.search(text)] == []


@pytest.mark.parametrize("form", [[], ["--json"]])
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("engine", [pytest.param(name, marks=getattr(pytest.mark, name)) for name in SIMULATORS])
def test_the_command_line_shows_no_canary(engine: str, fault: str, form: list[str]) -> None:
    """Neither the answer's stream nor standard error, as text and as JSON, whatever the engine says of the request."""
    _, own, simulator, traits = ENGINES[engine]
    with simulator(**traits, api_key=KEY) as server:
        wrong = FAULTS[fault]
        if wrong is not None:
            server.misbehave(*[wrong] * 4)
        url = server.url.replace("http://", f"http://user:{PASSWORD}@") + f"?token={QUERY}"
        asked = ["run", "--engine", engine, "--url", url, "--api-key-env", KEY_VARIABLE, "--max-tokens", "3", *form]
        result = CliRunner().invoke(cli, [*asked, *(["--model", own["model"]] if "model" in own else []), PROMPT])
        assert server.generation_requests, result.output
    assert not CANARY.search(result.stdout + result.stderr), result.output


LEAKING = '''
"""Tests that show what they should not."""
import logging
import sys
import warnings

from canary import BASIC, BEARER, KEY, PASSWORD, PROMPT, QUERY
from worker_adapters import EngineUnavailable

log = logging.getLogger("worker_adapters.leaky")


def test_message():
    log.debug("sending %s", KEY)


def test_object():
    log.debug("sending %s", {"key": [BEARER]})


def test_extra():
    log.info("sending", extra={"url": f"http://x/?{QUERY}"})


def test_trace():
    try:
        raise ValueError(PASSWORD)
    except ValueError:
        log.info("failed", exc_info=True)


def test_other_logger():
    logging.getLogger("urllib3").debug(PROMPT)


def test_stdout():
    print(PROMPT)


def test_stderr():
    sys.stderr.write(BASIC)


def test_error():
    EngineUnavailable(message=f"near {PROMPT}")


def test_later():
    EngineUnavailable(message="no").request_id = KEY


def test_warning():
    warnings.warn(KEY, stacklevel=1)


def test_well_behaved():
    log.debug("sending")
    print("fine")
    EngineUnavailable(message="no", partial_text=PROMPT)
'''


def pytest_on(tests: str, folder: Path) -> tuple[int, str]:
    """Exit code and output of a pytest of its own, with nothing but the watch."""
    (folder / "test_it.py").write_text(tests)
    path = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "pytest", "-p", "canary", "-p", "no:cacheprovider", "-q", "test_it.py"]
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.mock
def test_the_watch_fails_a_session_that_shows_a_canary(tmp_path: Path) -> None:
    """Every test of it passes; the session does not, and names each place but the well-behaved one."""
    code, output = pytest_on(LEAKING, tmp_path)
    assert code == 1, output
    assert "11 passed" in output
    found = output.partition("canaries were shown")[2]
    for name in (
        "message",
        "object",
        "extra",
        "trace",
        "other_logger",
        "stdout",
        "stderr",
        "error",
        "later",
        "warning",
    ):
        assert f"::test_{name}: " in found, output
    assert "well_behaved" not in found
