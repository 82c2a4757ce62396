"""What the models of the tests share: an answer token by token, what becomes of it on the way, and notes of all that.

It runs inside Triton's Python backend. A job is told what to do by words of its prompt, ``!endless !delay=0.01`` say,
so that it can be told through any convention and either transport; and by files (see ``Wishes``).
"""

from __future__ import annotations

import codecs
import contextlib
import itertools
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

#: Where notes are written and wishes lie.
FOLDER = Path(os.environ["TRITON_RECORDS"])
#: The letter comes in two tokens and the bird in four.
TEXT = "The quick brown fox jumps over the lazy dog at the café with an owl🦉, and says good night."
SHORT = "So we sat up at the old café🦉"
#: Nobody waits longer for a cancel than this (seconds).
PATIENCE = 20.0
FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


def tokens_of(text: str) -> list[bytes]:
    """A token is a word with the blank before it; every byte of a character beyond ASCII is a token of its own."""
    found: list[bytes] = []
    for piece in text.replace(" ", "\0 ").split("\0"):
        for ascii_only, run in itertools.groupby(piece, str.isascii):
            said = "".join(run).encode()
            found += [said] if ascii_only else [bytes([byte]) for byte in said]
    return [each for each in found if each]


def words(values: dict[str, list[Any]], name: str) -> list[str]:
    """An input of texts, absent or given."""
    return [each.decode() for each in values.get(name, [])]


class Refused(Exception):
    """Becomes an error response.

    :param code: the name of one of ``TritonError``, which is not there yet when a model's code is imported.
    """

    def __init__(self, message: str, code: str = "INTERNAL") -> None:
        super().__init__(message)
        self._code = code

    @property
    def response(self) -> Any:
        """That response."""
        error = pb_utils.TritonError(str(self), getattr(pb_utils.TritonError, self._code))
        return pb_utils.InferenceResponse(output_tensors=[], error=error)


class Wishes(dict[str, str]):
    """What one job is to do: from its prompt, from the first file in ``next``, which is used up, and from ``always``.

    ===========  ====================================================================
    first=S      this long until the first token
    delay=S      this long before every other token
    endless      say it over and over, until ``max_tokens``
    short        say SHORT instead
    echo         say the words of the prompt instead
    hold=N       say no more after N tokens, until cancelled
    fail=N       an error response after N tokens
    full=N       the same, with the words of a full queue
    raise=N      an exception in the model after N tokens
    exit=N       the process of the model ends after N tokens
    ===========  ====================================================================
    """

    def __init__(self, prompt: str) -> None:
        named = [word[1:] for word in prompt.split() if word.startswith("!")]
        named += os.listdir(FOLDER / "always")
        for each in sorted(os.listdir(FOLDER / "next")):
            with contextlib.suppress(FileNotFoundError):  # another job was faster
                (FOLDER / "next" / each).unlink()
                named.append(each.partition(" ")[2])
                break
        super().__init__((name, value) for name, _, value in (each.partition("=") for each in named))

    def at(self, name: str, count: int) -> bool:
        """Is this to happen after ``count`` tokens?"""
        return name in self and int(self[name]) == count


class Job:
    """One request's answer."""

    def __init__(
        self,
        model: str,
        request_id: str,
        prompt: str,
        cancelled: Callable[[], bool],
        *,
        limit: int | None = None,
        stop: list[str] | None = None,
    ) -> None:
        self._about = {"model": model, "id": request_id, "prompt": prompt}
        self.prompt = prompt
        self.wishes = Wishes(prompt)
        #: Why it ended, in the words of the engines.
        self.reason = "stop"
        #: Tokens said.
        self.count = 0
        self._cancelled = cancelled
        self._stopped = threading.Event()
        self._limit = limit
        self._stop = stop or []
        self.note("began")

    def note(self, event: str) -> None:
        """Write down what happens, with the clock that all processes of a machine share."""
        line = json.dumps({**self._about, "event": event, "at": time.monotonic(), "tokens": self.count}) + "\n"
        with (FOLDER / f"{os.getpid()}.jsonl").open("ab", buffering=0) as file:
            file.write(line.encode())

    def abort(self) -> None:
        """End it by the engine's own means."""
        self._stopped.set()

    def tokens(self) -> Iterator[bytes]:
        """Each token in its time, until the end or a cancel."""
        wanted = self._wanted()
        try:
            for number in itertools.count():
                pause = float(self.wishes.get("delay" if number else "first", 0))
                if not (self._wait(pause) and self._becomes(number)):
                    self.reason = "cancelled"
                    self.note("cancelled")
                    return
                token = next(wanted, None)
                if token is None:
                    return
                if number == self._limit:
                    self.reason = "length"
                    return
                self.count += 1
                yield token
        finally:
            self.note("ended")

    def texts(self) -> Iterator[str]:
        """The tokens as text, a broken character held back till it is whole: "" meanwhile."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for token in self.tokens():
            yield decoder.decode(token)

    def _wanted(self) -> Iterator[bytes]:
        said = SHORT if "short" in self.wishes else TEXT
        if "echo" in self.wishes:
            said = " ".join(word for word in self.prompt.split() if not word.startswith("!"))
        cuts = [at for at in map(said.find, self._stop) if at >= 0]
        found = tokens_of(said[: min(cuts)] if cuts else said)
        if "endless" in self.wishes and not cuts and found:
            return itertools.chain(found, itertools.cycle([b" " + found[0], *found[1:]]))
        return iter(found)

    def _becomes(self, number: int) -> bool:
        """What is wished for after ``number`` tokens; False if it was cancelled in that."""
        wishes = self.wishes
        if wishes.at("fail", number):
            raise Refused(f"model exploded at token {number}")
        if wishes.at("full", number):
            raise Refused("Exceeds maximum queue size", "UNAVAILABLE")
        if wishes.at("raise", number):
            raise RuntimeError(f"raised at token {number}")
        if wishes.at("exit", number):
            os._exit(1)
        if wishes.at("hold", number):
            self.note("held")
            return self._wait(PATIENCE)
        return True

    def _wait(self, seconds: float) -> bool:
        """False if it was cancelled meanwhile."""
        deadline = time.monotonic() + seconds
        while not (self._stopped.is_set() or self._cancelled()):
            left = deadline - time.monotonic()
            if left <= 0:
                return True
            time.sleep(min(left, 0.005))
        return False


class Speaker:
    """A decoupled model: subclasses say which job a request is, and what its responses are.

    The parameter ``at_once`` in its configuration (default "true"): a thread for each job, or one after the other.
    """

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        self.name = config["name"]
        self.parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        self.dims = {each["name"]: each["dims"] for each in config["output"]}
        self.batched = config["max_batch_size"] > 0

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            sender = request.get_response_sender()
            values = {each.name(): each.as_numpy().reshape(-1).tolist() for each in request.inputs()}
            # Outputs that nobody asked for are freed without Python's lock, which Python 3.12 does not survive.
            wanted = set(request.requested_output_names())
            arguments = (request.request_id(), values, json.loads(request.parameters() or "{}"), sender, wanted)
            if self.parameters.get("at_once", "true") == "true":
                threading.Thread(target=self._serve, args=arguments, daemon=True).start()
            else:
                self._serve(*arguments)

    def job(
        self, request_id: str, values: dict[str, list[Any]], cancelled: Callable[[], bool], parameters: dict[str, Any]
    ) -> Job:
        """The job of a request, from the values of its inputs and its parameters."""
        raise NotImplementedError

    def answers(self, job: Job, values: dict[str, list[Any]]) -> Iterator[dict[str, list[Any]]]:
        """The outputs of each response."""
        raise NotImplementedError

    def _serve(
        self, request_id: str, values: dict[str, list[Any]], parameters: dict[str, Any], sender: Any, wanted: set[str]
    ) -> None:
        try:
            job = self.job(request_id, values, sender.is_cancelled, parameters)
            for outputs in self.answers(job, values):
                sender.send(pb_utils.InferenceResponse(output_tensors=self._tensors(outputs, wanted)))
        except Refused as refusal:
            sender.send(refusal.response, flags=FINAL)
        else:
            sender.send(flags=FINAL)

    def _tensors(self, outputs: dict[str, list[Any]], wanted: set[str]) -> list[Any]:
        asked = {name: values for name, values in outputs.items() if name in wanted}
        return [tensor(name, values, self.batched + len(self.dims[name])) for name, values in asked.items()]


def tensor(name: str, values: list[Any], rank: int = 1) -> Any:
    """An output tensor: texts, or numbers with their type."""
    kind: Any = np.object_ if isinstance(values[0], bytes) else type(values[0])
    return pb_utils.Tensor(name, np.array(values, dtype=kind).reshape([1] * (rank - 1) + [-1]))
