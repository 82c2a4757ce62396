"""Canaries: secrets and a prompt that tests use as if they were real, and a watch over all that the tests show.

The watch is a pytest plugin. It reads every log record at DEBUG, everything printed that a report has, every warning,
and all that is ever put into an error. Where a canary turns up, the session fails and names the place. The answer of an
engine may hold its prompt, so ``partial_text``, which is answer, may too.
"""

from __future__ import annotations

import base64
import logging
import re
from collections.abc import Iterator
from typing import Any

import pytest

from worker_adapters.errors import WorkerError

KEY = "sk-CANARY-key-5f2e81d0"
BEARER = "CANARY-bearer-5f2e81d0"
QUERY = "CANARY-query-5f2e81d0"
PASSWORD = "CANARY-password-5f2e81d0"
PROMPT = "PROMPT-CANARY-5f2e what is my mother's maiden name?"
#: For adapters that are to be pickled: a literal key is not.
KEY_VARIABLE = "WORKER_ADAPTERS_CANARY"
BASIC = base64.b64encode(f"user:{PASSWORD}".encode()).decode()

#: Also canaries of other tests, which are called so too.
CANARY = re.compile(rf"CANARY-[0-9A-Za-z]{{3}}|{re.escape(BASIC)}")
#: Where the texts of an error may hold an answer.
ANSWERS = frozenset({"partial_text"})
#: What every record has; the rest is ``extra``.
PLAIN = frozenset(vars(logging.makeLogRecord({})))


class Watch(logging.Handler):
    """Looks for canaries, and remembers where they were."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.found: list[str] = []
        self._test = "no test"
        self._plain_setattr = WorkerError.__setattr__

    def look(self, place: str, *texts: object) -> None:
        """Notes the place if a canary stands in one of the texts there."""
        if any(CANARY.search(text if isinstance(text, str) else repr(text)) for text in texts):
            self.found.append(f"{self._test}: {place}")

    def emit(self, record: logging.LogRecord) -> None:
        texts = [record.getMessage(), record.args]
        texts += [getattr(record, name) for name in vars(record).keys() - PLAIN]
        if record.exc_info:
            texts.append(logging.Formatter().formatException(record.exc_info))
        self.look(f"the log {record.name} ({record.filename}:{record.lineno})", *texts)

    # --- pytest's hooks

    def pytest_configure(self, config: pytest.Config) -> None:
        config.option.log_level = config.option.log_level or "WARNING"  # pytest's own handlers need no more than before
        root = logging.getLogger()
        root.addHandler(self)
        root.setLevel(logging.DEBUG)
        watch, plain = self, self._plain_setattr

        def watched(error: WorkerError, name: str, value: Any) -> None:
            if name not in ANSWERS:
                watch.look(f"{type(error).__name__}.{name}", value)
            plain(error, name, value)

        WorkerError.__setattr__ = watched  # type: ignore[method-assign]  # all that an error can show is set there

    def pytest_unconfigure(self) -> None:
        logging.getLogger().removeHandler(self)
        WorkerError.__setattr__ = self._plain_setattr  # type: ignore[method-assign]  # as it was

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self._test = item.nodeid
        return (yield)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for name, text in report.sections:
            if "log" not in name:  # the records themselves were read
                self.look(name, text)

    def pytest_warning_recorded(self, warning_message: Any) -> None:
        self.look("a warning", str(warning_message.message))

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.found and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if self.found:
            terminalreporter.section("canaries were shown", red=True)
            for place in dict.fromkeys(self.found):
                terminalreporter.line(place)


def pytest_configure(config: pytest.Config) -> None:
    """For ``-p canary``: the watch alone, without the rules of these tests."""
    config.pluginmanager.register(Watch(), "canaries")
