"""Error tables: which row decides, and what is decided where none fits."""

from __future__ import annotations

import pytest

from worker_adapters.adapters.llamacpp import LlamaCppHttpAdapter
from worker_adapters.adapters.rules import COMMON_RULES, ErrorRule, error_for
from worker_adapters.errors import (
    ERROR_CLASSES,
    AuthenticationFailed,
    CapacityExceeded,
    ContextOverflow,
    EngineUnavailable,
    InvalidRequest,
    ModelNotFound,
    UnknownError,
    WorkerError,
    WorkerTimeout,
)
from worker_adapters.wire.delta import EngineFault

NOTHING = EngineFault()

# status -> (class, retriable): what any HTTP server means by it.
STATUSES: dict[int | None, tuple[type[WorkerError], bool]] = {
    400: (InvalidRequest, False),
    401: (AuthenticationFailed, False),
    403: (AuthenticationFailed, False),
    404: (ModelNotFound, False),
    405: (InvalidRequest, False),
    407: (AuthenticationFailed, False),
    408: (WorkerTimeout, False),
    413: (InvalidRequest, False),
    418: (InvalidRequest, False),
    422: (InvalidRequest, False),
    429: (CapacityExceeded, True),
    499: (InvalidRequest, False),
    500: (EngineUnavailable, False),
    501: (EngineUnavailable, False),
    502: (EngineUnavailable, False),
    503: (EngineUnavailable, True),
    504: (WorkerTimeout, False),
    599: (EngineUnavailable, False),
    None: (EngineUnavailable, False),
}


@pytest.mark.parametrize("status", STATUSES)
def test_a_status_alone_decides_by_the_common_table(status: int | None) -> None:
    """401, 403, 404, 407, 408, 429, 503 and 504 have rows; other 4xx are the request's fault, all else the engine's."""
    kind, retriable = STATUSES[status]
    error = error_for((), "refusal", status, NOTHING, "m")
    assert (type(error), error.status, error.retriable, error.message) == (kind, status, retriable, "m")
    assert error.phase == "first_token"


@pytest.mark.parametrize("status", [408, 504])
def test_a_timeout_of_the_server_is_the_engine_clock(status: int) -> None:
    """The server's own time-out names the clock ``engine`` and is not retriable: the job may have begun."""
    error = error_for((), "refusal", status, NOTHING, "m")
    assert isinstance(error, WorkerTimeout)
    assert (error.clock, error.retriable) == ("engine", False)


def test_the_first_row_that_fits_decides() -> None:
    """An engine's own rows come before the common ones, in their order."""
    rules = (
        ErrorRule(ContextOverflow, status=400, words="too long"),
        ErrorRule(ModelNotFound, status=400),
        ErrorRule(UnknownError, status=429),
    )
    assert type(error_for(rules, "refusal", 400, EngineFault("it is too long"), "m")) is ContextOverflow
    assert type(error_for(rules, "refusal", 400, NOTHING, "m")) is ModelNotFound
    assert type(error_for(rules, "refusal", 429, NOTHING, "m")) is UnknownError
    assert type(error_for(rules, "refusal", 503, NOTHING, "m")) is EngineUnavailable


@pytest.mark.parametrize(
    ("rule", "fits"),
    [
        (ErrorRule(UnknownError), True),
        (ErrorRule(UnknownError, status=500), True),
        (ErrorRule(UnknownError, status=501), False),
        (ErrorRule(UnknownError, field="server_error"), True),
        (ErrorRule(UnknownError, field="server"), False),
        (ErrorRule(UnknownError, field=""), False),
        (ErrorRule(UnknownError, words="exceeded"), True),
        (ErrorRule(UnknownError, words="exceeds"), False),
        (ErrorRule(UnknownError, position="stream"), True),
        (ErrorRule(UnknownError, position="refusal"), False),
        (ErrorRule(UnknownError, status=500, field="server_error", words="exceeded", position="stream"), True),
        (ErrorRule(UnknownError, status=500, field="server_error", words="missing", position="stream"), False),
    ],
)
def test_a_row_fits_if_all_it_names_fits(rule: ErrorRule, fits: bool) -> None:
    """Status, field, words and position must each fit where a row names them; None fits everything."""
    fault = EngineFault("Context size has been exceeded.", "server_error", 500)
    assert rule.fits("stream", 500, fault) is fits


def test_an_overflow_carries_both_sizes() -> None:
    """A ContextOverflow tells how long the prompt was and what there was room for."""
    error = error_for((ErrorRule(ContextOverflow),), "refusal", 400, EngineFault(prompt_tokens=9, context_size=8), "m")
    assert isinstance(error, ContextOverflow)
    assert (error.prompt_tokens, error.context_size, error.status) == (9, 8, 400)


def test_an_error_in_the_stream_has_its_phase() -> None:
    """Position and phase belong together."""
    assert error_for((), "stream", 500, NOTHING, "m").phase == "stream"
    assert error_for((), "refusal", 500, NOTHING, "m").phase == "first_token"


@pytest.mark.parametrize("kind", ERROR_CLASSES.values())
def test_any_class_can_stand_in_a_row(kind: type[WorkerError]) -> None:
    """Whatever class a table names, the error is made, and a row cannot lift the upper bound of ``retriable``."""
    error = error_for((ErrorRule(kind, retriable=True),), "refusal", 500, NOTHING, "m")
    assert type(error) is kind
    assert error.retriable is bool(error.may_retry)


def test_only_refusals_that_prove_the_job_did_not_start_are_retriable() -> None:
    """In the common table only 429 and 503 may be tried again."""
    assert [rule.status for rule in COMMON_RULES if rule.retriable] == [429, 503]


# llama.cpp: (position, status, type) -> (class, retriable), the rows of its page.
LLAMACPP = [
    ("refusal", 400, "invalid_request_error", InvalidRequest, False),
    ("refusal", 400, "exceed_context_size_error", ContextOverflow, False),
    ("refusal", 401, "authentication_error", AuthenticationFailed, False),
    ("refusal", 404, "not_found_error", ModelNotFound, False),
    ("refusal", 500, "server_error", EngineUnavailable, False),
    ("refusal", 501, "not_supported_error", InvalidRequest, False),
    ("refusal", 503, "unavailable_error", EngineUnavailable, True),
    ("stream", 500, "server_error", EngineUnavailable, False),
    ("stream", None, "", EngineUnavailable, False),
    ("refusal", 502, "", EngineUnavailable, False),
    ("refusal", 429, "", CapacityExceeded, True),
]


@pytest.mark.llamacpp
@pytest.mark.parametrize(("position", "status", "field", "kind", "retriable"), LLAMACPP)
def test_llamacpp_errors_are_those_of_its_page(
    position: str, status: int | None, field: str, kind: type[WorkerError], retriable: bool
) -> None:
    """llama.cpp's types decide before its statuses."""
    error = error_for(LlamaCppHttpAdapter.rules, position, status, EngineFault(field=field, status=status), "m")
    assert (type(error), error.retriable) == (kind, retriable)
