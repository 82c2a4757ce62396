"""The OpenAI dialect's errors and health: what statuses, codes, types, headers and words decide."""

from __future__ import annotations

import pytest

from dialect import error, piece, play
from replay import ReplayServer, streamed, told, written
from verdicts import Bad
from worker_adapters.adapters.openai import OpenAIHttpAdapter
from worker_adapters.errors import (
    AuthenticationFailed,
    CapacityExceeded,
    ContextOverflow,
    EngineUnavailable,
    InvalidRequest,
    ModelNotFound,
    StreamTruncated,
    WorkerError,
    WorkerTimeout,
)

pytestmark = pytest.mark.openai

QUOTAS = (
    "insufficient_quota",
    "credit_balance_exhausted",
    "organization_spend_limit_exceeded",
    "project_spend_limit_exceeded",
    "organization_usage_limit_exceeded",
    "billing_hard_limit_reached",
)
#: (status, type, code) -> class, may it be tried again?
STATUSES: dict[tuple[int, str | None, str | None], tuple[type[WorkerError], bool]] = {
    (400, "invalid_request_error", None): (InvalidRequest, False),
    (400, "invalid_request_error", "unsupported_value"): (InvalidRequest, False),
    (400, "invalid_request_error", "content_policy_violation"): (InvalidRequest, False),
    (400, "invalid_request_error", "context_length_exceeded"): (ContextOverflow, False),
    (401, "invalid_request_error", "invalid_api_key"): (AuthenticationFailed, False),
    (401, None, None): (AuthenticationFailed, False),
    (402, None, None): (CapacityExceeded, False),
    (403, None, None): (AuthenticationFailed, False),
    (404, "invalid_request_error", "model_not_found"): (ModelNotFound, False),
    (404, None, None): (ModelNotFound, False),
    (408, None, None): (WorkerTimeout, False),
    (413, None, None): (InvalidRequest, False),
    (422, None, None): (InvalidRequest, False),
    (429, "requests", "rate_limit_exceeded"): (CapacityExceeded, True),
    (429, "tokens", "rate_limit_exceeded"): (CapacityExceeded, True),
    (429, None, None): (CapacityExceeded, True),
    **{(429, "insufficient_quota", code): (CapacityExceeded, False) for code in QUOTAS},
    **{(429, None, code): (CapacityExceeded, False) for code in QUOTAS},
    (429, "insufficient_quota", None): (CapacityExceeded, False),
    (500, "server_error", None): (EngineUnavailable, False),
    (500, None, None): (EngineUnavailable, False),
    (502, None, None): (EngineUnavailable, False),
    (503, None, None): (EngineUnavailable, True),
    (504, None, None): (WorkerTimeout, False),
    (520, None, None): (EngineUnavailable, False),
}


@pytest.mark.parametrize(("status", "kind", "code"), STATUSES)
def test_a_refusal_is_decided_by_code_type_and_status(status: int, kind: str | None, code: str | None) -> None:
    """Each row of the dialect's table of errors, as OpenAI writes them."""
    cls, retriable = STATUSES[status, kind, code]
    answer = told(status, error(message="so it is", type=kind, param=None, code=code), "x-request-id: r1")
    play((answer, Bad(cls, status, retriable, further={"request_id": "r1"}, words="so it is")))


# Not 401: the key is looked at before a stream opens.
@pytest.mark.parametrize(
    ("status", "kind", "code"), [row for row in STATUSES if row[1:] != (None, None) and row[0] != 401]
)
def test_an_error_in_the_stream_is_decided_by_the_same_table(status: int, kind: str | None, code: str | None) -> None:
    """Before any delta the code decides class and retry; after one, nothing is retried."""
    cls, retriable = STATUSES[status, kind, code]
    event = error(message="so it is", type=kind, param=None, code=code or status)
    claimed = None if code else status
    play((streamed(event), Bad(cls, claimed, retriable, words="so it is")))
    play((streamed(piece("Hi"), event), Bad(cls, claimed, pieces="Hi", words="so it is")))


@pytest.mark.parametrize(
    ("headers", "named"),
    [
        (["x-request-id: r1", "apim-request-id: r2"], "r1"),  # OpenAI, vLLM if told to, Azure
        (["apim-request-id: r2"], "r2"),
        (["x-litellm-call-id: r3"], "r3"),
        (["X-Generation-Id: gen-4"], "gen-4"),  # OpenRouter
        (["X-Correlation-ID: r5"], "r5"),  # LocalAI
        ([], None),
    ],
)
def test_the_request_id_stands_in_any_of_these_headers(headers: list[str], named: str | None) -> None:
    """Of a refusal, of an error in the stream and of a cut stream."""
    further = {"request_id": named}
    play((told(500, error(message="no"), *headers), Bad(EngineUnavailable, 500, further=further)))
    failing = streamed(piece("Hi"), error(message="no"), headers=tuple(headers))
    play((failing, Bad(EngineUnavailable, pieces="Hi", further=further)))
    play((streamed(piece("Hi"), headers=tuple(headers)), Bad(StreamTruncated, pieces="Hi", further=further)))


@pytest.mark.parametrize(
    ("headers", "milliseconds"),
    [
        (["retry-after: 7"], 7000),
        (["retry-after-ms: 250", "retry-after: 7"], 250),
        (["llm_provider-retry-after: 7"], 7000),
        (["llm_provider-retry-after-ms: 6500.5", "llm_provider-retry-after: 7"], 6500),
        (["x-ratelimit-reset-requests: 6ms"], None),
    ],
)
def test_how_long_to_wait_stands_in_any_of_four_headers(headers: list[str], milliseconds: int | None) -> None:
    """Milliseconds win over seconds, and LiteLLM's renamed ones count too."""
    answer = told(429, error(message="slow", type="requests", code="rate_limit_exceeded"), *headers)
    play((answer, Bad(CapacityExceeded, 429, True, further={"retry_after_ms": milliseconds})))


@pytest.mark.parametrize(
    ("status", "said", "retriable"), [(429, "false", False), (503, "false", False), (429, "true", True)]
)
def test_the_server_may_say_whether_to_retry(status: int, said: str, retriable: bool) -> None:
    """x-should-retry is obeyed, but a quota stays used up."""
    kind = CapacityExceeded if status == 429 else EngineUnavailable
    header = f"x-should-retry: {said}"
    play((told(status, error(message="no"), header), Bad(kind, status, retriable)))
    play((told(429, error(message="no", type="insufficient_quota"), header), Bad(CapacityExceeded, 429)))


@pytest.mark.parametrize(
    "message",
    [
        "This model's maximum context length is 512 tokens",
        "Input is larger than the context size",
        "prompt is too long: 600 tokens > 512 maximum",
        "max_tokens is too large: 600",
    ],
)
@pytest.mark.parametrize("status", [400, 422])
def test_an_overflow_is_known_by_its_words_where_no_code_tells(message: str, status: int) -> None:
    """The wordings of servers that give neither code nor type."""
    play((told(status, {"error": message}), Bad(ContextOverflow, status, words=message[:20])))


@pytest.mark.parametrize(
    ("status", "kind", "retriable"),
    [(502, EngineUnavailable, False), (503, EngineUnavailable, True), (403, AuthenticationFailed, False)],
)
def test_a_page_of_a_proxy_is_judged_by_its_status(status: int, kind: type[WorkerError], retriable: bool) -> None:
    """HTML is no engine's word: it is not quoted."""
    page = written(status, b"<html><title>Bad gateway</title></html>", content_type="text/html; charset=UTF-8")
    play((page, Bad(kind, status, retriable, words="text/html")))


@pytest.mark.parametrize(
    ("reason", "retriable"),
    [
        (". reset reason: connection termination", False),
        (". reset reason: remote reset", False),
        (". retried and the latest reset reason: connection failure", False),
        ("", False),
        (". reset reason: connection failure", True),
        (". reset reason: remote connection failure, transport failure reason: delayed connect error: 111", True),
        (". reset reason: local refused stream reset", True),
        (". reset reason: overflow", True),
    ],
)
def test_a_job_that_envoy_may_have_passed_on_is_not_sent_again(reason: str, retriable: bool) -> None:
    """Envoy's 503 is retriable only where its reason proves that the engine never had the request."""
    words = f"upstream connect error or disconnect/reset before headers{reason}"
    answer = written(503, words.encode(), content_type="text/plain")
    play((answer, Bad(EngineUnavailable, 503, retriable, words=words)))


@pytest.mark.parametrize("before", ["", ": ping\n\n", "event: error\nretry: 3000\n"])
def test_a_refusal_may_come_as_an_event(before: str) -> None:
    """A refusal in the form of a stream has words too: here, that no retry brings the quota back."""
    event = 'data: {"error": {"message": "so it is", "type": "insufficient_quota"}}\n\ndata: [DONE]\n\n'
    answer = written(429, (before + event).encode(), content_type="text/event-stream; charset=utf-8")
    play((answer, Bad(CapacityExceeded, 429, words="so it is")))


# --- health


@pytest.mark.parametrize(
    ("answer", "state", "live"),
    [
        (told(200, {"object": "list", "data": [{"id": "m", "object": "model"}]}), "healthy", True),
        (told(401, error(message="no key", code="invalid_api_key")), "degraded", True),
        (told(200, {"error": "Unexpected endpoint or method. (GET /models)"}), None, None),
        (written(200, b"<html>sign in</html>", content_type="text/html"), None, None),
        (told(503, error(message="Loading model")), "degraded", True),
        (written(502, b""), "unhealthy", False),
    ],
)
def test_health_is_the_list_of_models(answer: list[bytes], state: str | None, live: bool | None) -> None:
    """200 with a list is up, 401 is up with a wrong key; 200 with anything else is no health."""

    class Said:
        """An answer to a GET."""

        @staticmethod
        def pieces() -> list[bytes]:
            return answer

    with (
        ReplayServer({"/v1/models": Said()}) as server,  # type: ignore[dict-item]  # all that is asked of a recording
        OpenAIHttpAdapter(server.url, model="m") as engine,
    ):
        health = engine.health()
    assert health.ready is (state == "healthy")
    if state is not None:
        assert (health.state, health.live) == (state, live)
