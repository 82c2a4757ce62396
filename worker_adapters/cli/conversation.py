"""A conversation: every line is a turn, and what was said before goes along with it."""

from __future__ import annotations

import sys
from functools import partial
from uuid import uuid4

from rich.text import Text

from worker_adapters.cli.answer import Printer, answer
from worker_adapters.cli.exits import DONE, INTERRUPTED, exit_for, explain
from worker_adapters.cli.prompt import piped_lines, typed_lines
from worker_adapters.cli.target import Submit
from worker_adapters.cli.terminal import complain, console
from worker_adapters.errors import WorkerError
from worker_adapters.message import Message

GREETING = "Ctrl-C stops an answer, /clear forgets what was said, Ctrl-D leaves."


def converse(submit: Submit, printer: Printer, system: str | None) -> int:
    """Answer line after line; the exit code: that of the last turn that failed.

    :raises KeyboardInterrupt: Ctrl-C, while nothing was being answered.
    """
    conversation = Conversation(submit, printer, system)
    if sys.stdin is not None and sys.stdin.isatty():
        return _typed(conversation)
    code = DONE
    for line in piped_lines():
        turned = conversation.turn(line)
        if turned == INTERRUPTED:  # nobody sits there to whom it could come back
            return INTERRUPTED
        code = turned or code
    return code


def _typed(conversation: Conversation) -> int:
    console(stderr=True).print(Text(GREETING, style="dim"), soft_wrap=True)
    code = DONE
    for line in typed_lines():
        if line == "/exit":
            break
        if line == "/clear":
            conversation.clear()
            continue
        turned = conversation.turn(line)
        if turned not in (DONE, INTERRUPTED):
            code = turned
    return code


class Conversation:
    """What was said so far. A turn without an answer was not said.

    :param submit: takes a list of messages.
    """

    def __init__(self, submit: Submit, printer: Printer, system: str | None) -> None:
        # One session: each turn goes where the KV cache of the turns before it is.
        self._submit = partial(submit, session_id=uuid4().hex)
        self._printer = printer
        self._beginning = [] if system is None else [Message("system", system)]
        self._said: list[Message] = []

    def clear(self) -> None:
        """Begin again, after the system's message."""
        self._said = []

    def turn(self, text: str) -> int:
        """Ask, and print the answer or what went wrong; the exit code that it would be alone."""
        question = Message("user", text)
        try:
            stream = self._submit([*self._beginning, *self._said, question])
            code = answer(stream, self._printer)
        except WorkerError as error:
            self._printer.fail(error)
            complain(explain(error))
            return exit_for(error).code
        completion = stream.completion()
        if completion.text or completion.tool_calls:  # cut short or not
            self._said += [question, completion.message()]
        return code
