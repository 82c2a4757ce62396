"""Triton's dialect over HTTP: ``POST /v2/models/NAME/generate_stream``. No I/O.

Seen with 2.51.0 (24.10): one ``data:`` event a response, keys sorted, outputs of one element as scalars; no comments,
no ``[DONE]``, no final event: the zero chunk of the body is the end, and a connection that dies without it the only
sign of a crash. An ``error`` may be followed by more data. Text that is no UTF-8 comes as its raw bytes.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

import msgspec

from worker_adapters.task import TaskRequest
from worker_adapters.wire.delta import REFUSED, Decoder, Delta, EngineFault, Finish, Usage, count, parse_json, text
from worker_adapters.wire.openai_faults import fault_of
from worker_adapters.wire.sse import Event
from worker_adapters.wire.stops import Stops
from worker_adapters.wire.triton_model import TextModel

#: vLLM's and TensorRT-LLM's words for an end -> ours. vLLM's backend says the text of Python's None until then.
FINISH = {"stop": "stop", "length": "length", "eos": "stop", "stop_words": "stop", "end_id": "stop"}
UNFINISHED = ("", "None", "not_finished")
#: Ends that are none -> what the table of errors knows them by: cancelled by somebody else, or by the server's clock.
BROKEN = {"abort": "abort", "cancelled": "abort", "timeout": "timeout", "timed_out": "timeout"}
#: A prompt that is too long, in the words of vLLM, of TensorRT-LLM's engine and of its llmapi.
_SIZES = (
    r"prompt \(length (?P<prompt>\d{1,15})\) is longer than the maximum model length of (?P<size>\d{1,15})",
    r"Prompt length \((?P<prompt>\d{1,15})\) exceeds maximum input length \((?P<size>\d{1,15})\)",
    r"sum of prompt length \((?P<prompt>\d{1,15})[.\d]*\).{1,99}should not exceed \w{1,40} \((?P<size>\d{1,15})\)",
)
TOO_LONG = (
    "is longer than the maximum model length|exceeds maximum input length|sum of prompt length .*should not exceed"
)
_ANY = msgspec.json.Decoder(dict[str, Any])


class Outputs(msgspec.Struct, gc=False):
    """What of a response is read; ``said`` is the output that holds its text."""

    said: Any = None
    finish_reason: Any = None
    num_output_tokens: Any = None
    num_input_tokens: Any = None
    model_name: Any = None
    error: Any = None


@cache
def outputs_decoder(name: str) -> msgspec.json.Decoder[Outputs]:
    """For a model whose text is in the output of that name."""
    fields: list[tuple[str, Any, Any]] = [(field, Any, None) for field in Outputs.__struct_fields__]
    return msgspec.json.Decoder(
        msgspec.defstruct("NamedOutputs", fields, bases=(Outputs,), rename={"said": name}, gc=False)
    )


def outputs_of(values: Mapping[str, Any], name: str) -> Outputs:
    """The same of values by output name."""
    told = {field: values.get(field) for field in Outputs.__struct_fields__}
    return Outputs(**{**told, "said": values.get(name)})


def flat_body(tensors: dict[str, Any], parameters: dict[str, Any]) -> dict[str, Any]:
    """The JSON of ``generate_stream``: inputs by name, of one element or of several."""
    return {**tensors, "parameters": parameters} if parameters else tensors


class TritonDecoder(Decoder):
    """Events of ``generate_stream``."""

    def __init__(self, model: TextModel, task: TaskRequest) -> None:
        self._name = model.text
        self._decode = outputs_decoder(model.text).decode
        self._answer = Answer(model, task)

    def feed(self, event: Event) -> Delta | None:
        try:
            outputs = self._decode(event.data)
        except REFUSED:
            outputs = outputs_of(_lenient(event.data), self._name)
        if outputs.error:
            return Delta(fault=fault_of(_readable(outputs.error)))
        if self.model is None:
            self.model = text(outputs.model_name) or None
        return self._answer.add(outputs)

    def ended(self) -> Delta:
        return self._answer.end()


def _lenient(data: bytes) -> dict[str, Any]:
    """The JSON of an event; a text that is no UTF-8 as bytes: the rest of its character comes with the next event.

    :raises GarbledEvent: it is no JSON object.
    """
    try:
        outputs = json.loads(data.decode("utf-8", "surrogateescape"))
        return {name: _raw(value) for name, value in outputs.items()}
    except (ValueError, AttributeError, RecursionError):
        return parse_json(_ANY, data)  # lone surrogates, spelled out; or the error that says what it is


def _raw(value: Any) -> Any:
    """A text as the bytes that it was sent as."""
    if isinstance(value, list):
        return [_raw(each) for each in value]
    return value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value


class Answer:
    """The outputs of a model's responses, one after the other, as deltas; what carries them does not matter.

    :param task: for its prompt, which old TensorRT-LLM repeats, and its limit, which some models have no input for.
    """

    def __init__(self, model: TextModel, task: TaskRequest) -> None:
        self._so_far = SoFar() if model.cumulative else None
        self._echo = Echo(task.prompt or "") if model.echoes else None
        self._repeated = Repeated(task.prompt or "") if model.repeats else None
        self._stops = Stops(task.stop) if task.stop and model.keeps_stops else None
        self._limit = task.max_tokens
        self._limited = model.limited
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        #: Is a text just what it adds?
        self._plain = not (model.cumulative or model.echoes or model.repeats)
        self._responses = 0
        self._tokens_in: int | None = None
        self._tokens_out: int | None = None
        self._finish: Finish | None = None

    def add(self, outputs: Outputs) -> Delta:
        """What one response adds."""
        said = outputs.said if type(outputs.said) is str else first(outputs.said)
        made = Delta(said if self._plain and type(said) is str else self._said(said))
        if said:
            self._responses += 1  # also one of half a character: it is a token all the same
        if outputs.num_output_tokens is not None or outputs.num_input_tokens is not None:
            self._count(outputs)
        if outputs.finish_reason is not None:
            self._ends(made, _plain(first(outputs.finish_reason)))
        if not self._limited and self._responses >= self._limit and made.finish is None:
            self._close(made, Finish("length", None))
            made.done = True  # the model knows of no limit: leaving is what stops it
        return made if self._stops is None else self._cut(made, self._stops)

    def _cut(self, made: Delta, stops: Stops) -> Delta:
        """The answer ends where a stop string begins."""
        made.text = stops.add(made.text)
        if stops.found:
            self._close(made, Finish("stop", None if self._finish is None else self._finish.raw))
            made.done = True
        elif made.done:
            made.text += stops.held
        return made

    def end(self) -> Delta:
        """What the end of all responses adds. Most models give no reason; a response is taken for a token."""
        made = Delta(self._left())
        self._close(made, self._finish or Finish("length" if self._responses >= self._limit else "stop", None))
        made.done = True
        return made if self._stops is None else self._cut(made, self._stops)

    def _ends(self, made: Delta, reason: str) -> None:
        if reason in BROKEN:
            made.fault = EngineFault(f"the model ended with {reason}", field=BROKEN[reason])
        elif reason not in UNFINISHED:
            self._close(made, Finish(FINISH.get(reason, "stop"), reason))

    def _close(self, made: Delta, finish: Finish) -> None:
        made.finish = self._finish = finish
        if self._tokens_out is not None or self._tokens_in is not None:
            made.usage = Usage(self._tokens_in, self._tokens_out)

    def _count(self, outputs: Outputs) -> None:
        """vLLM's counts: its own tokens with each response, the prompt's with every one."""
        out = count(first(outputs.num_output_tokens))
        if out is not None:
            self._tokens_out = (self._tokens_out or 0) + out
        known = count(first(outputs.num_input_tokens))
        self._tokens_in = self._tokens_in if known is None else known

    def _said(self, value: Any) -> str:
        """The new text of a response: whole characters, without what came before and without the prompt."""
        if self._repeated is not None:
            return self._repeated.add(text(_readable(value)))
        if self._so_far is not None:
            said = self._so_far.add(text(_readable(value)))  # half a character is there again, and whole, with the next
        elif isinstance(value, bytes):
            said = self._utf8.decode(value)
            self._plain = self._echo is None and not self._utf8.getstate()[0]
        else:
            said = text(value)
            said = said and self._half() + said  # an empty text says nothing of the rest of a character
        return said if self._echo is None else self._echo.add(said)

    def _half(self) -> str:
        """The character that a whole text left unfinished."""
        if not self._utf8.getstate()[0]:
            return ""
        half = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return half

    def _left(self) -> str:
        """What was held back until the end."""
        said = self._half()
        if self._so_far is not None:
            said += self._so_far.rest
        return said if self._echo is None else self._echo.add(said) + self._echo.held


class SoFar:
    """Makes pieces of texts that each hold all before: TensorRT-LLM's BLS with ``accumulate_tokens``.

    :ivar rest: what may be half a character, and is given once it is whole.
    """

    def __init__(self) -> None:
        self._given = ""
        self.rest = ""

    def add(self, so_far: str) -> str:
        """What the text has grown by."""
        whole = so_far.rstrip("\ufffd")
        self.rest = so_far[len(whole) :]
        added = whole[len(self._given) :] if whole.startswith(self._given) else ""
        self._given = whole if added else self._given
        return added


class Repeated:
    """Makes pieces of texts that each hold the prompt and all before: vLLM's backend up to 24.02.

    Other models look the same and send pieces: a text that does not go on from the last one is one.
    """

    def __init__(self, prompt: str) -> None:
        self._prompt = prompt
        self._so_far: str | None = prompt
        self._held = ""  # a first text that was the prompt and no more, which a piece may be, too

    def add(self, said: str) -> str:
        """What of it is new."""
        if self._so_far is None:
            return said
        if not said.startswith(self._so_far):
            self._so_far = None
            return self._held + said
        added = said[len(self._so_far) :]
        self._so_far = said
        self._held = said if said == self._prompt else ""
        return added


class Echo:
    """Takes the prompt off the beginning of an answer that repeats it. One that begins otherwise is left as it is.

    :ivar held: a beginning of the prompt, which may yet be one of the answer.
    """

    def __init__(self, prompt: str) -> None:
        self._prompt = prompt
        self.held = ""

    def add(self, said: str) -> str:
        """What of it is answer."""
        if not self._prompt:
            return said
        self.held += said
        if self._prompt.startswith(self.held) and self.held != self._prompt:
            return ""
        answer, self.held, self._prompt = self.held.removeprefix(self._prompt), "", ""
        return answer


def told_in_words(fault: EngineFault) -> EngineFault:
    """The error with the sizes that backends tell in their text alone."""
    found = next((sizes for words in _SIZES if (sizes := re.search(words, fault.message)) is not None), None)
    if found is None:
        return fault
    return msgspec.structs.replace(fault, prompt_tokens=int(found["prompt"]), context_size=int(found["size"]))


def first(value: Any) -> Any:
    """An output's first element: several are several answers, of which one was asked for."""
    return (value[0] if value else None) if isinstance(value, list) else value


def _readable(value: Any) -> Any:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _plain(value: Any) -> str:
    return text(_readable(value))
