"""Exchanges with TGI as its sources write them, played back in many pieces: the frames and errors they call for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from replay import WAIT, WAYS, Recording, ReplayServer, outcome, recordings
from verdicts import Bad, Good, check_bad, check_cuts, check_good
from worker_adapters.adapters.tgi import TgiHttpAdapter
from worker_adapters.errors import (
    AuthenticationFailed,
    CapacityExceeded,
    ContextOverflow,
    EngineUnavailable,
    InvalidRequest,
    PoolUnavailable,
    StreamTruncated,
    UnknownError,
)
from worker_adapters.frames import StartedFrame, TokenFrame
from worker_adapters.timeouts import Timeouts

pytestmark = pytest.mark.tgi

RECORDINGS = recordings("tgi")
GETS = {"/info": RECORDINGS["info"]}
CLOCKS = Timeouts(connect=WAIT, first_token=WAIT, between_tokens=WAIT, total=3 * WAIT)

TEN = " for| /|api|/|v|1|/|projects|/|1"
WHOLE = TEN.replace("|", "")
HEADING = "**|Deep| Learning|:| An| Overview|**\n|================================|=====|\n\n"
OBJECT = '{"|f|irs|t|Name|":"|David|","|h|ob|by|":"|T|rees|","|last|Name|":"|H|olt|z|","|n|um|C|ats|":|2|}'

# Streams that end well. The end token of the second and the last one counts and is not shown.
STREAMS: dict[str, Good] = {
    "chat-stream-eos": Good("OK|!", "stop"),  # without include_usage nobody counts
    "chat-stream-usage": Good(HEADING, "length", (40, 10)),
    "generate-stream-eos-special": Good(OBJECT, "stop", (15, 30), raw="eos_token"),
    "generate-stream-length": Good(TEN, "length", (3, 10)),
    "stream-keepalive-queued": Good(TEN, "length", (3, 10)),
    "stream-speculative-bursts": Good("\n|De|ep| learning| is| a| subset| of| machine| learning", "length", (3, 10)),
}  # fmt: skip
#: Up to 2.2.0 the prompt's tokens are not told.
OLD = "stream-old-no-space"

BUSY = Bad(CapacityExceeded, retriable=True, words="Model is overloaded")

# Streams that fail: the status was 200 before TGI looked at the request.
BROKEN_STREAMS: dict[str, Bad] = {
    "chat-stream-generation-error": Bad(PoolUnavailable, 422, pieces="**|Deep", words="CUDA out of memory"),
    "chat-stream-overloaded-2.3.1": BUSY,
    "stream-closed-by-client": Bad(StreamTruncated, pieces=" for| /|api"),
    "stream-cut-by-server": Bad(StreamTruncated, pieces=" for| /|api|/"),
    "stream-incomplete-midway": Bad(StreamTruncated, pieces=" for| /|api", words="Incomplete generation stream"),
    "stream-overloaded-200": BUSY,
    "stream-validation-error-200": Bad(InvalidRequest, further={"field": "top_p"}, words="must be > 0.0 and < 1.0"),
}

# Refusals. Validation has a status only in answers in one piece, which is not what is asked for here.
REFUSALS: dict[str, Bad] = {
    "bad-body-422-text": Bad(InvalidRequest, 422, words="missing field `inputs`"),
    "bad-json-400-text": Bad(InvalidRequest, 400, words="Failed to parse the request body as JSON"),
    "chat-template-422": Bad(InvalidRequest, 422, words="template not found"),
    "completions-batch-422": Bad(InvalidRequest, 422, words="maximum allowed batch size of 4"),
    "generate-incomplete-500": Bad(EngineUnavailable, 500, words="Incomplete generation"),
    "generate-too-long-422": Bad(
        ContextOverflow, 422, further={"prompt_tokens": 3, "context_size": 512}, words="must be <= 512"
    ),
    "generate-validation-422": Bad(InvalidRequest, 422, further={"field": "temperature"}, words="strictly positive"),
    "health-503": Bad(EngineUnavailable, 503, retriable=True, words="unhealthy"),
    "unauthorized-401": Bad(AuthenticationFailed, 401),
}

# One-shot answers, which no stream was: TGI does not give them to a request for one.
ANSWERS = (
    "chat-nostream", "chat-nostream-tool-call", "compat-root-nostream", "completions-nostream-many-prompts",
    "generate-prefill-logprobs", "generate-stop-fulltext", "tokenize",
)  # fmt: skip
#: What is asked for by GET.
TOLD = ("health-ok", "info", "info-2.2.0", "models")


@pytest.fixture
def server() -> Iterator[ReplayServer]:
    with ReplayServer(dict(GETS)) as running:
        yield running


@pytest.fixture
def tgi(server: ReplayServer) -> Iterator[TgiHttpAdapter]:
    with TgiHttpAdapter(server.url, timeouts=CLOCKS, retry={"attempts": 1}) as adapter:
        yield adapter


def task_of(recording: Recording) -> dict[str, Any]:
    """A task like the recorded request: a conversation on the chat path, a prompt anywhere else."""
    chat = recording.path.startswith("/v1/chat")
    return {"task": [{"role": "user", "content": "my prompt"}] if chat else "my prompt"}


def finish_in(recording: Recording) -> bytes:
    """The event with the reason for ending, as it stands in the body."""
    marks = (b'"finish_reason":"', b'"generated_text":"')
    return next(event for event in recording.body.split(b"\n\n") if any(mark in event for mark in marks)) + b"\n\n"


def test_every_recording_stands_in_a_table() -> None:
    """No recording is left out, and each is what its table says."""
    streams = {*STREAMS, OLD, *BROKEN_STREAMS}
    assert {name for name, recording in RECORDINGS.items() if recording.is_stream} == streams
    assert {name for name, recording in RECORDINGS.items() if (recording.status or 0) >= 400} == set(REFUSALS)
    assert set(RECORDINGS) == {*streams, *REFUSALS, *ANSWERS, *TOLD}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", STREAMS)
def test_a_recorded_stream_gives_its_frames(name: str, way: str, server: ReplayServer, tgi: TgiHttpAdapter) -> None:
    """However its bytes are cut, a stream gives started, its texts, and an end with the reason and what was counted."""
    server.answer = RECORDINGS[name].cut(way)
    check_good(tgi.submit(**task_of(RECORDINGS[name])), STREAMS[name], "tgi")


@pytest.mark.parametrize("way", WAYS)
def test_an_old_stream_tells_only_what_it_generated(way: str, server: ReplayServer, tgi: TgiHttpAdapter) -> None:
    """``data:`` without a space is data too; tokens_in is None where TGI does not tell it (before 2.3.0)."""
    server.answer = RECORDINGS[OLD].cut(way)
    answer = tgi.submit("my prompt").result()
    assert answer.text == WHOLE
    assert (answer.metrics.tokens_in, answer.metrics.tokens_out, answer.metrics.counts) == (None, 10, "exact")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", BROKEN_STREAMS)
def test_a_recorded_failure_keeps_what_came_before(
    name: str, way: str, server: ReplayServer, tgi: TgiHttpAdapter
) -> None:
    """An error in a stream is one typed error that holds what was delivered; before a token, nothing had started."""
    server.answer = RECORDINGS[name].cut(way)
    check_bad(tgi.submit(**task_of(RECORDINGS[name])), BROKEN_STREAMS[name], "tgi")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", REFUSALS)
def test_a_recorded_refusal_is_its_typed_error(name: str, way: str, server: ReplayServer, tgi: TgiHttpAdapter) -> None:
    """A refusal has the class and the fields that TGI's kinds and words call for."""
    server.answer = RECORDINGS[name].cut(way)
    check_bad(tgi.submit(**task_of(RECORDINGS[name])), REFUSALS[name], "tgi")
    assert [method for method, _, _ in server.asked] == ["POST"]


@pytest.mark.parametrize("name", [*ANSWERS, *TOLD])
def test_what_is_no_stream_is_never_a_good_end(name: str, server: ReplayServer, tgi: TgiHttpAdapter) -> None:
    """TGI streams what it was asked to stream: a 200 with anything else comes from somebody else."""
    server.answer = RECORDINGS[name].pieces()
    result = outcome(tgi.submit("my prompt"))
    assert type(result) is UnknownError
    assert (result.retriable, result.partial_text) == (False, "")


@pytest.mark.parametrize("name", [*STREAMS, OLD])
def test_a_stream_cut_anywhere_ends_in_order(name: str, server: ReplayServer, tgi: TgiHttpAdapter) -> None:
    """Wherever TGI dies, there is a typed error or, after its reason for ending, a good end."""
    recording = RECORDINGS[name]
    tgi.engine_version()
    row = STREAMS.get(name, Good(TEN, "length"))
    check_cuts(server, tgi, recording, row, finish=finish_in(recording), task=task_of(recording))


def test_logprobs_come_with_their_tokens(server: ReplayServer, tgi: TgiHttpAdapter) -> None:
    """Asked for logprobs, a token has its own and its id; else neither."""
    recording = RECORDINGS["generate-stream-length"]
    told = [(event["token"]["logprob"], event["token"]["id"]) for event in recording.events]
    for logprobs, wanted in ((0, told), (None, [(None, None)] * 10)):
        server.answer = recording.pieces()
        frames = [f for f in tgi.submit("my prompt", logprobs=logprobs) if isinstance(f, TokenFrame)]
        assert [(frame.logprob, frame.token_id) for frame in frames] == wanted


@pytest.mark.parametrize(
    ("stop", "row"),
    [
        # TGI would have ended there.
        ("projects", (" for /api/v1/", "stop", None)),
        # Ends inside a token: TGI runs on.
        ("/v1/p", (" for /api", "stop", None)),
        # The last token completes it, and TGI tests the limit first.
        ("/1", (" for /api/v1/projects", "stop", "length")),
        # Held back for a moment; for three tokens; to the end.
        ("/v2", (WHOLE, "length", "length")),
        ("v1/x", (WHOLE, "length", "length")),
        ("1x", (WHOLE, "length", "length")),
    ],
)
@pytest.mark.parametrize("way", WAYS)
def test_a_stop_string_is_never_seen(stop: str, row: Any, way: str, server: ReplayServer, tgi: TgiHttpAdapter) -> None:
    """The text is cut where a stop string begins, wherever in the tokens it stands; nothing else is lost."""
    server.answer = RECORDINGS["generate-stream-length"].cut(way)
    answer = tgi.submit("my prompt", stop=[stop]).result()
    assert (answer.text, answer.finish_reason, answer.raw_finish_reason) == row


def test_the_limit_ends_a_job_that_tgi_lets_run_on(server: ReplayServer, tgi: TgiHttpAdapter) -> None:
    """Never more tokens than asked for, and an exact count of them; TGI is left before its own end, so no reason."""
    server.answer = RECORDINGS["generate-stream-length"].pieces()
    answer = tgi.submit("my prompt", max_tokens=4).result()
    assert (answer.text, answer.finish_reason, answer.raw_finish_reason) == (" for /api/", "length", None)
    assert (answer.metrics.tokens_in, answer.metrics.tokens_out, answer.metrics.counts) == (None, 4, "exact")


# --- what is asked for by GET


def test_the_identity_is_asked_for_once(server: ReplayServer, tgi: TgiHttpAdapter) -> None:
    """The first job asks /info for version and model, later ones have them from the cache."""
    server.answer = RECORDINGS["generate-stream-length"].pieces()
    for _ in range(3):
        started = next(iter(tgi.submit("my prompt")))
        assert isinstance(started, StartedFrame)
        told = (started.engine, started.engine_version, started.model)
        assert told == ("tgi", "3.3.6-dev0", "meta-llama/Llama-3.1-8B-Instruct")
    assert [path for method, path, _ in server.asked if method == "GET"] == ["/info"]


@pytest.mark.parametrize(("info", "size", "residency"), [("info", 4096, "unknown"), ("info-2.2.0", 2048, "gpu")])
def test_props_are_what_info_tells(info: str, size: int, residency: str) -> None:
    """Version, model, revision and window; the device up to 2.2.0 only, and no queue where metrics are hidden."""
    told = json.loads(RECORDINGS[info].body)
    with ReplayServer({"/info": RECORDINGS[info]}) as server, TgiHttpAdapter(server.url, timeouts=CLOCKS) as tgi:
        props = tgi.props()
        assert tgi.engine_version() == told["version"]
    assert (props.engine, props.engine_version, props.model) == ("tgi", told["version"], told["model_id"])
    assert props.model_digest == f"{told['model_id']}/{told['model_sha']}"
    assert (props.context_size, props.residency) == (size, residency)
    assert (props.running, props.waiting, props.slots_total) == (None, None, None)
    assert props.raw == {"/info": told}


@pytest.mark.parametrize(
    ("answer", "state", "live"),
    [("health-ok", "healthy", True), ("health-503", "unhealthy", True), ("info", "unhealthy", True)],
)
def test_health_is_what_the_status_says(answer: str, state: str, live: bool) -> None:
    """200 without a body is healthy; 503 is a router without its shards; 200 with a body is another server."""
    with ReplayServer({"/health": RECORDINGS[answer]}) as server, TgiHttpAdapter(server.url) as tgi:
        health = tgi.health()
    assert (health.state, health.live, health.ready) == (state, live, state == "healthy")
