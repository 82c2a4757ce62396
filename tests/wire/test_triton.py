"""Triton's dialect, response by response, as events of HTTP and as messages of gRPC: what each adds, and its end."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb

from worker_adapters.adapters.framer import Framer
from worker_adapters.frames import TokenFrame
from worker_adapters.task import TaskRequest
from worker_adapters.wire.delta import Decoder
from worker_adapters.wire.sse import Event
from worker_adapters.wire.triton import TritonDecoder, flat_body
from worker_adapters.wire.triton_grpc import GrpcDecoder
from worker_adapters.wire.triton_model import ModelConfig, TextModel

pytestmark = pytest.mark.triton

PLAIN = ["text_input", "max_tokens"]
#: Old TensorRT-LLM's, where it answers in one piece: the answer begins with the prompt.
ECHOING = ["text_input", "max_tokens", "end_id"]
KINDS = {"text_input": "TYPE_STRING", "stream": "TYPE_BOOL"}
Outputs = dict[str, Any]


def model(inputs: list[str] = PLAIN, **config: Any) -> TextModel:
    """A model with such inputs."""
    made = [
        {"name": name, "data_type": KINDS.get(name, "TYPE_INT32"), "optional": name != "text_input"} for name in inputs
    ]
    outputs = [{"name": "text_output", "data_type": "TYPE_STRING", "dims": [-1]}]
    return TextModel(msgspec.convert({"name": "m", "input": made, "output": outputs, **config}, ModelConfig), {})


CUMULATIVE = model(name="tensorrt_llm_bls", parameters={"accumulate_tokens": {"string_value": "true"}})


class Heard:
    """What came of a stream."""

    def __init__(self, framer: Framer, frames: list[Any]) -> None:
        self.frames = [frame for frame in frames if isinstance(frame, TokenFrame)]
        self.pieces = [frame.text for frame in self.frames]
        self.text = "".join(self.pieces)
        self.fault = framer.fault
        self.garbled = framer.garbled
        self.over = framer.over
        self.finish = framer.finish and (framer.finish.reason, framer.finish.raw)
        metrics = framer.end(lambda value: value).metrics
        self.counts = (metrics.tokens_in, metrics.tokens_out, metrics.counts)
        self.model = framer.decoder.model


def heard(decoder: Decoder, events: list[Event], *, ended: bool = True) -> Heard:
    """Feeds a decoder with events one by one, then with the end of the body."""
    framer = Framer(decoder, {})
    frames: list[Any] = []
    for event in events:
        if not framer.over:
            frames += framer.feed([event])
    return Heard(framer, frames + (framer.conclude() if ended else []))


def escaped(value: Any) -> bytes:
    """JSON as Triton writes it, text as the bytes that it is."""
    if isinstance(value, bytes):
        plain = [b"\\" + bytes([byte]) if byte in b'"\\' else bytes([byte]) for byte in value]
        return b'"' + b"".join(b"\\u%04x" % each[0] if each < b" " else each for each in plain) + b'"'
    if isinstance(value, list):
        return b"[" + b",".join(map(escaped, value)) + b"]"
    return json.dumps(value, ensure_ascii=False).encode()


def over_http(made: TextModel, *responses: Outputs, ended: bool = True, **task: Any) -> Heard:
    """Responses as ``generate_stream`` shows them."""
    shown = [{**outputs, "model_name": "m", "model_version": "1"} for outputs in responses]
    lines = [b"{" + b",".join(escaped(name) + b":" + escaped(value) for name, value in r.items()) + b"}" for r in shown]
    decoder = TritonDecoder(made, TaskRequest(**{"prompt": "Hi", **task}))
    return heard(decoder, [Event(line) for line in lines], ended=ended)


def tensor(value: Any) -> tuple[str, list[int], bytes]:
    """An output's type, shape and raw bytes."""
    values = value if isinstance(value, list) else [value]
    if isinstance(values[0], (str, bytes)):
        texts = [each.encode("utf-8") if isinstance(each, str) else each for each in values]
        return "BYTES", [len(values)], b"".join(struct.pack("<I", len(text)) + text for text in texts)
    kind, letter = ("FP32", "f") if isinstance(values[0], float) else ("UINT32", "I")
    return kind, [len(values)], struct.pack(f"<{len(values)}{letter}", *values)


def message(outputs: Outputs, final: bool = False) -> Event:
    """A message of ModelStreamInfer, as Triton sends it: its tensors as raw bytes."""
    if "error" in outputs:
        return Event(pb.ModelStreamInferResponse(error_message=outputs["error"]).SerializeToString())
    made = pb.ModelStreamInferResponse()
    made.infer_response.model_name = "m"
    made.infer_response.parameters["triton_final_response"].bool_param = final
    for name, value in outputs.items():
        datatype, shape, raw = tensor(value)
        made.infer_response.outputs.add(name=name, datatype=datatype, shape=shape)
        made.infer_response.raw_output_contents.append(raw)
    return Event(made.SerializeToString())


def over_grpc(made: TextModel, *responses: Outputs, ended: bool = True, **task: Any) -> Heard:
    """Responses as messages, and then the empty final one."""
    events = [message(outputs) for outputs in responses] + ([message({}, final=True)] if ended else [])
    return heard(GrpcDecoder(made, TaskRequest(**{"prompt": "Hi", **task})), events, ended=False)


Way = Callable[..., Heard]
both = pytest.mark.parametrize("way", [over_http, over_grpc])


def said(*texts: Any, **more: Any) -> list[Outputs]:
    """Responses with these texts."""
    return [{"text_output": text, **more} for text in texts]


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    """The bytes in pieces of these sizes, over and over; empty ones too."""
    pieces, at = [], 0
    while at < len(data):
        size = sizes[len(pieces) % len(sizes)] if sizes else 1
        pieces.append(data[at : at + size])
        at += size
        sizes = sizes if any(sizes) else [1]
    return pieces


# --- text


@both
def test_a_response_is_a_piece(way: Way) -> None:
    """Each text is a token frame; an empty one makes none; the end has a reason of ours and counted tokens."""
    made = way(model(), *said(" the", "", " quick"))
    assert made.pieces == [" the", " quick"]
    assert [frame.index for frame in made.frames] == [0, 1]
    assert (made.finish, made.over, made.fault) == (("stop", None), True, None)
    assert made.counts == (None, 0, "counted")  # the stream counts its frames
    assert made.model == "m"


@both
@given(text=st.text(), sizes=st.lists(st.integers(0, 5), min_size=1, max_size=8))
@example(text="né 🦉 日本", sizes=[1])
@example(text='"\\\n\x01é', sizes=[2])
def test_characters_cut_anywhere_come_whole(way: Way, text: str, sizes: list[int]) -> None:
    """A token may end inside a character: its bytes wait for the rest, and no half is ever shown."""
    made = way(model(), *said(*cut(text.encode(), sizes)))
    assert made.text == text
    assert "\ufffd" in text or all("\ufffd" not in piece for piece in made.pieces)


@given(text=st.text(max_size=20), sizes=st.lists(st.integers(1, 3), min_size=1, max_size=4))
def test_a_bare_nan_hurts_no_text(text: str, sizes: list[int]) -> None:
    """A probability that is no number is a bare NaN over HTTP; the text beside it comes whole all the same."""
    events = [Event(b'{"logp":NaN,"text_output":' + escaped(piece) + b"}") for piece in cut(text.encode(), sizes)]
    made = heard(TritonDecoder(model(), TaskRequest(prompt="Hi")), events)
    assert (made.text, made.garbled) == (text, "")


@both
def test_half_a_character_that_nothing_completes_is_shown_where_it_stood(way: Way) -> None:
    """Before the next text, or at the end, it becomes U+FFFD; what is no UTF-8 at all does at once."""
    assert way(model(), *said(b"a\xf0\x9f", "b")).text == "a\ufffdb"
    assert way(model(), *said("a", b"\xf0\x9f")).text == "a\ufffd"
    assert way(model(), *said(b"a\xffb", "c")).text == "a\ufffdbc"
    assert way(model(), *said("b", b"\xf0\x9f", b"\xa6\x89", "c", b"\xc3", b"\xa9")).text == "b🦉cé"


def test_a_lone_surrogate_is_replaced() -> None:
    """Spelled out in JSON it is no character: no consumer could encode it."""
    events = [Event(b'{"text_output":"a\\ud83d"}'), Event(b'{"text_output":"b","x":NaN,"y":"\\ud83d"}')]
    made = heard(TritonDecoder(model(), TaskRequest(prompt="Hi")), events)
    assert made.text == "a\ufffdb"


@both
def test_of_several_answers_the_first_is_taken(way: Way) -> None:
    """Several elements are several answers (beams, sequences): one was asked for."""
    assert way(model(), *said([" the", " das"], [" quick", " flinke"])).pieces == [" the", " quick"]


@pytest.mark.parametrize("value", [None, 5, True, {"a": 1}, [[]], []])
def test_what_is_no_text_says_nothing(value: Any) -> None:
    """An output that holds no text makes no frame and no failure."""
    made = over_http(model(), {"text_output": value}, {"text_output": "x"})
    assert (made.pieces, made.fault, made.garbled) == (["x"], None, "")


def test_responses_without_the_text_are_no_pieces() -> None:
    """Other outputs, or none, are deltas without content."""
    made = over_http(model(), {"logp": -0.5}, {})
    assert (made.pieces, made.finish) == ([], ("stop", None))


@both
def test_the_text_may_be_in_an_output_of_another_name(way: Way) -> None:
    """Where ``tensors`` says so; text_output is then nobody's."""
    shown = {
        "name": "m",
        "input": [{"name": "text_input", "data_type": "TYPE_STRING"}],
        "output": [{"name": name, "data_type": "TYPE_STRING"} for name in ("ANSWER", "text_output")],
    }
    made = TextModel(msgspec.convert(shown, ModelConfig), {"text": "ANSWER"})
    assert way(made, {"ANSWER": " the", "text_output": "x"}, {"ANSWER": b" \xc3"}, {"ANSWER": b"\xa9"}).text == " the é"


# --- texts that hold all before them


@both
@given(text=st.text(), sizes=st.lists(st.integers(0, 5), min_size=1, max_size=8))
@example(text="né 🦉 日本", sizes=[1])
@example(text="a\ufffdb\ufffd", sizes=[1])
def test_the_text_so_far_is_made_pieces(way: Way, text: str, sizes: list[int]) -> None:
    """With accumulate_tokens each response has all so far: only what it has grown by is a frame.

    A tokenizer shows half a character as U+FFFD until it is whole.
    """
    pieces = cut(text.encode(), sizes)
    so_far = [b"".join(pieces[: at + 1]).decode("utf-8", "replace") for at in range(len(pieces))]
    made = way(CUMULATIVE, *said(*so_far))
    assert made.text == text
    assert "\ufffd" in text or all("\ufffd" not in piece for piece in made.pieces)


@both
@given(text=st.text(), sizes=st.lists(st.integers(0, 5), min_size=1, max_size=8))
@example(text="ab🦉c", sizes=[4, 2, 1])
def test_the_text_so_far_may_end_in_half_a_character(way: Way, text: str, sizes: list[int]) -> None:
    """The same where the half stands there as its bytes."""
    pieces = cut(text.encode(), sizes)
    made = way(CUMULATIVE, *said(*(b"".join(pieces[: at + 1]) for at in range(len(pieces)))))
    assert made.text == text


@both
def test_a_text_so_far_that_stays_adds_nothing(way: Way) -> None:
    """The same text again makes no frame; a character that stays half is given at the end."""
    assert way(CUMULATIVE, *said("a", "a", "ab", "ab")).pieces == ["a", "b"]
    assert way(CUMULATIVE, *said("a", "a\ufffd", "a\ufffd")).pieces == ["a", "\ufffd"]


# --- an answer that begins with the prompt


@both
@given(
    prompt=st.text(min_size=1, max_size=12),
    answer=st.text(max_size=12),
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=6),
)
@example(prompt="aa", answer="aab", sizes=[1])
def test_the_prompt_at_the_beginning_is_taken_off(way: Way, prompt: str, answer: str, sizes: list[int]) -> None:
    """Old TensorRT-LLM repeats the prompt, in whatever pieces: the answer begins behind it, once."""
    whole = prompt + answer
    pieces = [piece.decode("utf-16-le", "surrogatepass") for piece in cut(whole.encode("utf-16-le"), [2])]
    if any("\ud800" <= piece <= "\udfff" for piece in pieces):
        pieces = list(whole)
    pieces = ["".join(pieces[at : at + sizes[0]]) for at in range(0, len(pieces), sizes[0])]
    assert way(model(ECHOING), *said(*pieces), prompt=prompt).text == answer


@both
def test_an_answer_that_begins_otherwise_is_left_whole(way: Way) -> None:
    """What only begins like the prompt is answer, also where it ends before it differs."""
    assert way(model(ECHOING), *said("the qu", "ery"), prompt="the quick").text == "the query"
    assert way(model(ECHOING), *said("the q"), prompt="the quick").text == "the q"
    assert way(model(), *said("the quick"), prompt="the quick").text == "the quick"  # this model repeats nothing


OLD_VLLM = model(["text_input", "stream", "sampling_parameters"])


@both
@pytest.mark.parametrize(
    ("sent", "pieces"),
    [
        (["Hi thereThe", "Hi thereThe fox", "Hi thereThe fox", "Hi thereThe fox."], ["The", " fox", "."]),
        (["Hi there", "Hi thereThe"], ["The"]),
        (["Hi thereHi there", "Hi thereHi there!"], ["Hi there", "!"]),
        # Other models look the same and send pieces.
        (["The", " fox", "."], ["The", " fox", "."]),
        (["Hi there", " I", " am"], ["Hi there I", " am"]),
        (["", "Hi", "Hi"], ["Hi", "Hi"]),
    ],
)
def test_vllm_23_10_sends_the_prompt_and_all_so_far(way: Way, sent: list[str], pieces: list[str]) -> None:
    """Up to 24.02 with every response (recorded of the backend of 23.10 in Triton 2.51): its pieces are the answer."""
    assert way(OLD_VLLM, *said(*sent), prompt="Hi there").pieces == pieces


# --- stop strings


def stoppable(name: str = "stop_words", more: tuple[str, ...] = (), **config: Any) -> TextModel:
    """A model that takes stop strings, and is TensorRT-LLM's unless it is something else."""
    kinds = {"text_input": "STRING", "sampling_parameters": "STRING", "exclude_input_in_output": "BOOL", name: "STRING"}
    inputs = ["text_input", "max_tokens", "exclude_input_in_output", name, *more]
    made = [
        {"name": each, "data_type": f"TYPE_{kinds.get(each, 'INT32')}", "optional": each != "text_input"}
        for each in inputs
    ]
    outputs = [{"name": "text_output", "data_type": "TYPE_STRING", "dims": [-1]}]
    return TextModel(msgspec.convert({"name": "m", "input": made, "output": outputs, **config}, ModelConfig), {})


@both
@pytest.mark.parametrize(
    ("sent", "pieces"),
    [
        (["The quick", " brown", " fox"], ["The quick", " brown", " "]),  # it ends with the stop string
        (["The", " fo", "x"], ["The", " "]),
        (["The", " fo", "g", "."], ["The", " ", "fog", "."]),
        (["The", " fo"], ["The", " ", "fo"]),
        (["fox"], []),
        (["The fox jumps"], ["The "]),
    ],
)
def test_tensorrt_llm_leaves_a_stop_string_in_its_text(way: Way, sent: list[str], pieces: list[str]) -> None:
    """Its engine's last tokens are the stop string, by its sources, and its postprocessing shows all tokens. An answer
    ends where the first one begins; what may be its beginning is held back until the next response decides, or the end.
    """
    done = way(stoppable(), *said(*sent), stop=["fox", "zebra"])
    assert (done.pieces, done.finish) == (pieces, ("stop", None))
    assert way(stoppable("stop"), *said(*sent), stop=["fox"]).pieces == pieces  # any model may


@both
def test_a_stop_string_in_a_text_so_far(way: Way) -> None:
    """TensorRT-LLM's BLS may say all so far with every response: it is looked for in what that adds."""
    made = stoppable(parameters={"accumulate_tokens": {"string_value": "true"}})
    assert way(made, *said("The", "The fo", "The fox"), stop=["fox"]).pieces == ["The", " "]


@both
def test_vllm_and_llmapi_take_stop_strings_off_themselves(way: Way) -> None:
    """What they say is answer, also one that ``include_stop_str_in_output`` asked for."""
    for made in (
        stoppable(more=("sampling_parameters",)),
        stoppable("sampling_param_stop", ("sampling_param_max_tokens",)),
    ):
        assert way(made, *said("The fox"), stop=["fox"]).text == "The fox"


# --- the end


@both
@pytest.mark.parametrize(
    ("told", "reason"),
    [("stop", "stop"), ("length", "length"), ("eos", "stop"), ("something new", "stop")],
)
def test_a_model_s_own_reason_is_its_end(way: Way, told: str, reason: str) -> None:
    """vLLM's backend says "None" until the last response; its words are kept as they are."""
    responses = [*said(" the", finish_reason="None"), *said(" quick", finish_reason=told)]
    made = way(model(), *responses, ended=False)
    assert (made.finish, made.over) == ((reason, told), False)  # counts may follow
    assert way(model(), *responses).finish == (reason, told)


@both
@pytest.mark.parametrize(("told", "field"), [("abort", "abort"), ("cancelled", "abort"), ("timeout", "timeout")])
def test_a_reason_that_is_none_is_a_failure(way: Way, told: str, field: str) -> None:
    """An abort by somebody else and a limit of the server's are no ends of the answer."""
    made = way(model(), *said(" the"), *said(" quick", finish_reason=told))
    assert made.fault is not None
    assert (made.fault.field, told in made.fault.message, made.finish) == (field, True, None)


@both
@pytest.mark.parametrize(("limit", "reason"), [(3, "length"), (2, "length"), (4, "stop")])
def test_without_a_reason_the_limit_tells(way: Way, limit: int, reason: str) -> None:
    """As many pieces as tokens were allowed: it was the limit, as far as anybody knows."""
    assert way(model(), *said("a", "b", "", "c"), max_tokens=limit).finish == (reason, None)


@both
def test_a_model_without_a_limit_is_left_at_ours(way: Way) -> None:
    """One that has no input for it is stopped by leaving; nothing after that is read."""
    made = way(model(["text_input"]), *said("a", "b", "c", "d"), max_tokens=2, ended=False)
    assert (made.pieces, made.finish, made.over) == (["a", "b"], ("length", None), True)


@both
def test_counts_are_the_model_s_own(way: Way) -> None:
    """vLLM's backend counts its tokens by response, to be added up, and the prompt's with each."""
    one = {"num_output_tokens": 1, "num_input_tokens": 4, "finish_reason": "None"}
    last = {"num_output_tokens": 2, "num_input_tokens": 4, "finish_reason": "stop"}
    assert way(model(), *said("a", "", "b", **one), *said("c", **last)).counts == (4, 5, "exact")
    assert way(model(), *said("a", num_output_tokens=[2])).counts == (None, 2, "exact")
    assert way(model(), *said("a", num_input_tokens=4)).counts[0] == 4


@both
def test_no_response_at_all_is_an_empty_answer(way: Way) -> None:
    """A model that says nothing has ended well with no tokens."""
    made = way(model())
    assert (made.pieces, made.finish, made.fault) == ([], ("stop", None), None)


# --- errors


@both
def test_an_error_ends_the_stream(way: Way) -> None:
    """Its words are told, and data that a model sends after it are not read."""
    made = way(model(), *said(" the"), {"error": "model exploded"}, *said(" fox"))
    assert made.pieces == [" the"]
    assert made.fault is not None
    assert (made.fault.message, made.over, made.finish) == ("model exploded", True, None)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b'{"error":"out of memory \xff","x":1}', "out of memory \ufffd"),
        (b'{"error":"out of memory","logp":NaN}', "out of memory"),
        (b'{"error":"boom\\n\\nAt:\\n  /models/m/1/model.py(2): execute\\n"}', "boom"),
        (b'{"error":"out of memory","text_output":"N/A"}', "out of memory"),
    ],
)
def test_an_error_s_words_are_read_leniently(data: bytes, words: str) -> None:
    """Bytes that are no text, NaN beside it, a traceback with the server's paths: the words remain; no text counts."""
    made = heard(TritonDecoder(model(), TaskRequest(prompt="Hi")), [Event(data)])
    assert made.fault is not None
    assert (made.fault.message, made.pieces) == (words, [])


@pytest.mark.parametrize("data", [b"", b"nope", b"[]", b'"x"', b"null", b"{", b'{"text_output":', b"[" * 100_000])
def test_what_is_no_object_is_garbled(data: bytes) -> None:
    """An event that is no JSON object is told without its text, which may quote a prompt."""
    made = heard(TritonDecoder(model(), TaskRequest(prompt="Hi")), [Event(data)])
    assert made.garbled
    assert "nope" not in made.garbled


@given(st.binary(max_size=60))
def test_no_bytes_break_the_decoder(data: bytes) -> None:
    """Whatever comes is a delta or garbled, never another exception."""
    heard(TritonDecoder(model(), TaskRequest(prompt="Hi")), [Event(data), Event(b"{" + data + b"}")])


@given(st.recursive(st.none() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner, max_size=3)))
def test_no_value_breaks_the_decoder(value: Any) -> None:
    """Nor does any value of any output that is read."""
    names = ("text_output", "finish_reason", "num_output_tokens", "num_input_tokens", "model_name", "error")
    for name in names:
        for made in (model(), CUMULATIVE, model(ECHOING)):
            events = [Event(json.dumps({"text_output": "a", name: value}).encode())] * 2
            heard(TritonDecoder(made, TaskRequest(prompt="Hi")), events)


# --- what is sent


def test_a_body_is_flat() -> None:
    """Inputs by name at the top; parameters of the request, where there are any, beneath their key."""
    assert flat_body({"text_input": "Hi"}, {}) == {"text_input": "Hi"}
    assert flat_body({"text_input": "Hi"}, {"priority": 1}) == {"text_input": "Hi", "parameters": {"priority": 1}}
