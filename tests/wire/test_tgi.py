"""TGI's dialect, event by event: what each adds, where an answer is cut, and what a task is sent as."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from feeding import fed
from worker_adapters.task import TaskRequest
from worker_adapters.wire.delta import Decoder, Delta, EngineFault, Finish, GarbledEvent, ToolDelta, Usage
from worker_adapters.wire.sse import Event, EventSplitter
from worker_adapters.wire.tgi import ChatDecoder, Cut, GenerateDecoder, chat_body, generate_body, told_in_words

pytestmark = pytest.mark.tgi

GARBLED = "garbled"
NEVER = 10**9
CHAT = [{"role": "user", "content": "Hi"}]


def line(value: Any) -> bytes:
    """One event; bytes are its data as they are."""
    raw = value if isinstance(value, bytes) else json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    return b"data: " + raw + b"\n\n"


def token(text: str | None = " x", *, special: bool = False, logprob: Any = -0.5, number: int = 7) -> dict[str, Any]:
    """An event of the native stream."""
    told = {"id": number, "text": text, "logprob": logprob, "special": special}
    return {"index": 1, "token": told, "generated_text": None, "details": None}


def last(text: str | None = " x", reason: str = "eos_token", **more: Any) -> dict[str, Any]:
    """The last event of the native stream; ``more`` changes its details."""
    details = {"finish_reason": reason, "generated_tokens": 3, "seed": None, "input_length": 2, **more}
    return {**token(text, special=text == "</s>"), "generated_text": "whole", "details": details}


def piece(content: str | None = None, finish: str | None = None, **delta: Any) -> dict[str, Any]:
    """A chunk of the chat."""
    said = {"role": "assistant", **({} if content is None else {"content": content}), **delta}
    choice = {"index": 0, "delta": said, "logprobs": None, "finish_reason": finish}
    return {"id": "", "object": "chat.completion.chunk", "model": "m", "choices": [choice], "usage": None}


def call(arguments: str, name: str | None = None, finish: str | None = None) -> dict[str, Any]:
    """A chunk with a piece of a tool call."""
    function = {"name": name, "arguments": arguments}
    return piece(None, finish, tool_calls=[{"index": 0, "id": "0", "type": "function", "function": function}])


def usage(prompt: int, completion: int) -> dict[str, Any]:
    """The chunk after the last one."""
    counts = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return {"id": "", "object": "chat.completion.chunk", "model": "m", "choices": [], "usage": counts}


Made = list[Delta | str | None]


def made(make: Any, values: tuple[Any, ...]) -> Made:
    """What a fresh decoder makes of the events, however they are fed, up to the one that ends the job."""

    def decode(pieces: list[bytes]) -> Made:
        decoder: Decoder = make()
        splitter = EventSplitter()
        said: Made = []
        for event in (event for part in pieces for event in splitter.feed(part)):
            try:
                said.append(decoder.feed(event))
            except GarbledEvent:
                said.append(GARBLED)
            if isinstance(said[-1], Delta) and said[-1].done:
                break
        return said

    return fed(decode, b"".join(map(line, values)))


def native(*values: Any, stop: list[str] | None = None, limit: int = NEVER, logprobs: bool = False) -> Made:
    """What comes of events of the native stream."""
    return made(lambda: GenerateDecoder(Cut(stop or [], limit, logprobs=logprobs), logprobs=logprobs), values)


def chat(
    *values: Any, stop: list[str] | None = None, limit: int = NEVER, logprobs: bool = False, tools: tuple[str, ...] = ()
) -> Made:
    """What comes of chunks of the chat."""
    return made(
        lambda: ChatDecoder(Cut(stop or [], limit, logprobs=logprobs), limit, logprobs=logprobs, tools=tools), values
    )


def texts(deltas: Made) -> list[str]:
    """The texts of all that came."""
    return [delta.text for delta in deltas if isinstance(delta, Delta)]


def ends(deltas: Made) -> list[Finish]:
    """Every reason for ending that came."""
    return [delta.finish for delta in deltas if isinstance(delta, Delta) and delta.finish is not None]


def end(text: str, reason: str, raw: str | None, told: Usage | None = None) -> Delta:
    """The delta that ends a job; what ``last`` counts, unless told else."""
    return Delta(text, finish=Finish(reason, raw), usage=told or Usage(2, 3), done=True)


# --- the native stream


def test_an_event_is_a_token() -> None:
    """A token adds its text; a special one and a piece of a character add none, and still prove that TGI works."""
    assert native(token(" a"), token(""), token("é🦊"), token("<s>", special=True)) == [
        Delta(" a"),
        Delta(),
        Delta("é🦊"),
        Delta(),
    ]


@pytest.mark.parametrize(
    ("raw", "ours"), [("length", "length"), ("eos_token", "stop"), ("stop_sequence", "stop"), ("new", "stop")]
)
def test_the_whole_text_is_the_end(raw: str, ours: str) -> None:
    """A ``generated_text`` that is not null ends the job, with TGI's reason and its counts."""
    assert native(last("!", raw)) == [end("!", ours, raw)]


def test_an_end_without_details_is_one() -> None:
    """An empty text is whole too; what a server keeps back is not guessed."""
    value = {**token("", special=True), "generated_text": "", "details": None}
    assert native(value) == [end("", "stop", None, Usage())]


@pytest.mark.parametrize(
    ("seed", "facts"), [(2**64 - 1, {"seed": 2**64 - 1}), (0, {"seed": 0}), (None, None), (True, None), ("7", None)]
)
def test_the_seed_is_told(seed: Any, facts: Any) -> None:
    """The seed that TGI picked, of 64 bits without a sign, can be sent again; null is none."""
    [delta] = native(last("", seed=seed))
    assert isinstance(delta, Delta)
    assert delta.facts == facts


@pytest.mark.parametrize("details", [[], "x", 5, {"finish_reason": 5, "generated_tokens": "3", "input_length": None}])
def test_odd_details_are_left_out(details: Any) -> None:
    """Details of another shape are none; the end stands by the text."""
    value = {**token("x"), "generated_text": "x", "details": details}
    assert native(value) == [end("x", "stop", None, Usage())]


def test_without_the_whole_text_there_is_no_end() -> None:
    """Neither details nor a marker end a job."""
    value = {**token("x"), "details": {"finish_reason": "length"}}
    assert native(value, b"[DONE]") == [Delta("x"), Delta(done=True)]


@pytest.mark.parametrize("value", [b"", b"null", {}, {"token": None}, {"generated_text": "x"}])
def test_what_holds_no_token_says_nothing(value: Any) -> None:
    """Events of nobody's are no sign of work."""
    assert native(value) == [None]


@pytest.mark.parametrize("value", [b"{", b"[]", {"token": []}, {"token": {"text": []}}])
def test_what_is_no_event_of_tgi_is_garbled(value: Any) -> None:
    """JSON of another shape, or none, is refused."""
    assert native(value) == [GARBLED]


NATIVE_ERROR = {"error": "Model is overloaded", "error_type": "overloaded"}
CHAT_ERROR = {"error": {"message": "Model is overloaded", "http_status_code": 422}}


@pytest.mark.parametrize("read", [native, chat])
def test_both_forms_of_errors_are_read_on_both_routes(read: Any) -> None:
    """The kind where there is one, else the status that the chat claims for every error."""
    assert read(NATIVE_ERROR) == [Delta(fault=EngineFault("Model is overloaded", "overloaded"))]
    assert read(CHAT_ERROR) == [Delta(fault=EngineFault("Model is overloaded", status=422))]


def test_an_error_of_another_shape_is_read() -> None:
    """Also beneath fields that are not TGI's."""
    assert native({"error": "x", "token": 5}) == [Delta(fault=EngineFault("x"))]


# --- logprobs


def test_logprobs_are_those_of_the_text_that_is_shown() -> None:
    """A text that several tokens made has their sum and the last one's id; NaN is null, and none is none."""
    values = (
        token("", logprob=-1.0, number=1),
        token("é", logprob=-0.25, number=2),
        token(" x", logprob=None, number=3),
        token(" y", logprob=math.nan, number=4),
        last("</s>"),
    )
    told = [(delta.text, delta.logprob, delta.token_id) for delta in native(*values, logprobs=True) if delta]  # type: ignore[union-attr]
    assert told[1:4] == [("é", -1.25, 2), (" x", None, 3), (" y", None, 4)]
    assert all(delta.logprob is None and delta.token_id is None for delta in native(*values) if delta)  # type: ignore[union-attr]


def test_text_that_was_held_back_has_the_logprobs_of_its_tokens() -> None:
    """What the end token releases does not get that token's own."""
    values = (token("a", logprob=-1.0, number=1), token("b", logprob=-2.0, number=2), last("</s>"))
    *held, shown = native(*values, stop=["abc"], logprobs=True)
    assert texts(held) == ["", ""]
    assert isinstance(shown, Delta)
    assert (shown.text, shown.logprob, shown.token_id) == ("ab", -3.0, 2)


# --- stop strings


def cut_at(text: str, stops: list[str]) -> tuple[str, bool]:
    """The rule, character by character: the text up to the first stop string that becomes complete."""
    for size in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:size].endswith(stop)]
        if complete:
            return text[: size - max(map(len, complete))], True
    return text, False


LETTERS = st.text("ab é🦊", max_size=6)


@given(
    tokens=st.lists(LETTERS, min_size=1, max_size=12),
    stops=st.lists(st.text("ab é🦊", min_size=1, max_size=5), max_size=4),
    reason=st.sampled_from(["eos_token", "length", "stop_sequence"]),
)
@example(tokens=["ab", "a", "b"], stops=["abab"], reason="length")
@example(tokens=["aab"], stops=["ab", "aab"], reason="eos_token")
@example(tokens=["abb"], stops=["abba", "bb"], reason="eos_token")
def test_the_text_is_cut_at_the_first_stop_string(tokens: list[str], stops: list[str], reason: str) -> None:
    """Whatever the tokens are, and on both routes, what is shown is the text up to the first complete stop string."""
    *before, final = tokens
    wanted, stopped = cut_at("".join(tokens), stops)
    finish = "length" if reason == "length" and not stopped else "stop"
    for deltas in (
        native(*map(token, before), last(final, reason), stop=stops),
        # The text of an end token is its name, if it has any.
        chat(*map(piece, before), piece(final, reason.replace("eos_token", "stop")), usage(1, 2), stop=stops),
    ):
        assert "".join(texts(deltas)) == wanted
        assert [each.reason for each in ends(deltas)] == [finish]


@given(
    tokens=st.lists(LETTERS, max_size=12),
    stops=st.lists(st.text("ab é🦊", min_size=1, max_size=5), min_size=1, max_size=3),
)
def test_nothing_is_shown_too_early_or_held_too_long(tokens: list[str], stops: list[str]) -> None:
    """Held back is at most the beginning of a stop string: the longest that the text ends with."""
    cut = Cut(stops, NEVER)
    shown, whole = "", ""
    for text in tokens:
        whole += text
        made = cut.take(Delta(text))
        shown += made.text
        if made.finish is not None:
            assert cut_at(whole, stops) == (shown, True)
            return
        held = whole[len(shown) :]
        assert whole.startswith(shown)
        assert not held or any(stop.startswith(held) for stop in stops)
        longest = [
            n for n in range(1, len(whole) + 1) if any(s != whole[-n:] and s.startswith(whole[-n:]) for s in stops)
        ]
        assert len(held) == max(longest, default=0)


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        # TGI misses it, and would run on: the job ends here, and what was generated up to here is known.
        ((token("a"), token("b!!c"), token("d")), end("b", "stop", None, Usage(None, 2))),
        ((token("a!"), token("!"), token("d")), end("", "stop", None, Usage(None, 2))),
        # TGI ends with it, or at the limit.
        ((token("a"), last("b!!", "stop_sequence")), end("b", "stop", "stop_sequence")),
        ((token("a"), last("b!!c", "length")), end("b", "stop", "length")),
        ((token("a"), last("b!", "length")), end("b!", "length", "length")),
    ],
)
def test_a_job_ends_at_its_stop_string(values: Any, wanted: Delta) -> None:
    """With TGI's own reason and counts, if it ends there too."""
    assert native(*values, stop=["!!"])[-1] == wanted


def test_special_text_is_no_stop_string() -> None:
    """What is not shown is not searched; TGI's own end counts."""
    assert native(token("a"), last("</s>"), stop=["</s>"]) == [
        Delta("a"),
        end("", "stop", "eos_token"),
    ]


def test_the_chat_waits_for_usage_where_tgi_ends_with_the_stop_string() -> None:
    """Where TGI runs on, there is nothing to wait for."""
    *_, ended, counted = chat(piece("a"), piece("b!!", "stop_sequence"), usage(4, 2), stop=["!!"])
    assert isinstance(ended, Delta)
    assert isinstance(counted, Delta)
    assert (ended.text, ended.finish, ended.done) == ("b", Finish("stop", "stop_sequence"), False)
    assert counted.usage == Usage(4, 2)
    assert chat(piece("a"), piece("b!!c"), piece("d"), stop=["!!"])[1:] == [end("b", "stop", None, Usage(None, 2))]


# --- the limit


def test_a_job_ends_at_its_limit() -> None:
    """TGI 3 runs in legs of 1,024 tokens and may go on after the limit: its tokens are not, and the count is exact."""
    ended = end("c", "length", None, Usage(None, 3))
    assert native(token("a"), token("b"), token("c"), token("d"), limit=3)[2:] == [ended]
    assert chat(piece("a"), piece("b"), piece("c"), piece("d"), limit=3)[2:] == [ended]


def test_a_token_that_is_not_shown_counts() -> None:
    """Special tokens and pieces of characters are tokens."""
    values = (token("a"), token(""), token("<x>", special=True), token("d"))
    assert native(*values, limit=3)[-1] == end("", "length", None, Usage(None, 3))


def test_the_limit_releases_what_was_held_back() -> None:
    """It might have become a stop string, and did not."""
    assert texts(native(token("a"), token("!"), token("!"), stop=["!!"], limit=2)) == ["a", "!"]


def test_the_own_end_at_the_limit_is_tgi_s() -> None:
    """The usual case: the last token allowed is the last one, with all that TGI tells."""
    assert native(token("a"), last("b", "length"), limit=2)[-1] == end("b", "length", "length")


# --- the chat

FACTS = {"model": "m"}


@pytest.mark.parametrize(
    ("raw", "ours"), [("stop", "stop"), ("eos_token", "stop"), ("stop_sequence", "stop"), ("length", "length")]
)
def test_a_chat_ends_with_its_reason(raw: str, ours: str) -> None:
    """The end token is "stop" since 2.3.0; the empty id is no fact; an empty reason is none."""
    assert chat(piece("a", ""), piece("", raw), usage(4, 2), b"[DONE]") == [
        Delta("a"),
        Delta(finish=Finish(ours, raw), facts=FACTS),
        Delta(usage=Usage(4, 2), facts=FACTS),
        Delta(done=True),
    ]


CALL = (call("{", "f"), call('"x"'), call(": 1"), call("}"))
PIECES = (ToolDelta(0, "{", "0", "f"), ToolDelta(0, '"x"', "0"), ToolDelta(0, ": 1", "0"), ToolDelta(0, "}", "0"))


def test_a_tool_call_is_whole_when_its_arguments_are() -> None:
    """No finish reason comes in the stream, and ``[DONE]`` proves nothing: a whole JSON object does."""
    deltas = chat(*CALL, call(""), usage(9, 20), b"[DONE]")
    assert [delta.tools for delta in deltas[:4] if isinstance(delta, Delta)] == [(each,) for each in PIECES]
    assert ends(deltas) == [Finish("tool_calls", None)]
    assert deltas[3:] == [
        Delta(tools=(PIECES[3],), finish=Finish("tool_calls", None)),
        Delta(),
        Delta(usage=Usage(9, 20), facts=FACTS),
        Delta(done=True),
    ]


@pytest.mark.parametrize(
    ("rest", "reasons"),
    [
        ((piece("", "stop"),), [Finish("tool_calls", None), Finish("tool_calls", "stop")]),
        ((call("", finish="length"),), [Finish("tool_calls", None), Finish("tool_calls", "length")]),
        ((piece("<|eot_id|>"), call("<|eot_id|>")), [Finish("tool_calls", None)]),
    ],
)
def test_a_reason_that_comes_all_the_same_is_kept(rest: Any, reasons: list[Finish]) -> None:
    """A whole call ends in tool_calls, whatever TGI calls it, and nothing is added to it."""
    deltas = chat(*CALL, *rest)
    assert ends(deltas) == reasons
    assert all(not (delta.text or delta.tools) for delta in deltas[4:] if isinstance(delta, Delta))


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_tool_call_that_is_cut_proves_nothing(cut: int) -> None:
    """``[DONE]`` after half a call, and counts below the limit, are no end."""
    assert ends(chat(*CALL[:cut], usage(9, 20), b"[DONE]", limit=21)) == []
    assert ends(chat(*CALL[:cut], b"[DONE]")) == []


@pytest.mark.parametrize("cut", [0, 1, 3])
def test_counts_up_to_the_limit_say_that_it_cut_the_call(cut: int) -> None:
    """Usage is told at the end of a generation only; with tools TGI may have held back every token of it."""
    assert ends(chat(*CALL[:cut], usage(9, 20), b"[DONE]", limit=20)) == [Finish("length", None)]


def test_a_reason_for_half_a_call_is_the_end() -> None:
    """TGI ends a call of a function without parameters so, if the last token closes more than one brace."""
    deltas = chat(call("{", "f"), piece("", "stop"))
    assert ends(deltas) == [Finish("tool_calls", "stop")]
    assert called(deltas) == ("f", "{}")
    assert ends(chat(call("{", "f"), piece("", "length"))) == [Finish("length", "length")]


def test_a_comma_behind_the_name_is_no_argument() -> None:
    """3.2 and later say a brace for the name, and then whatever follows it: the comma, if it is a token of its own."""
    assert called(chat(call("{", "f"), call(","), call(' "x"'), call(": 1"), call("}"))) == ("f", '{"x": 1}')
    assert called(chat(call("{", "f"), call(', "x": 1}'))) == ("f", '{"x": 1}')


# --- the chat of older releases, as their sources write it


def called(deltas: Made) -> tuple[str | None, str]:
    """Name and arguments of the one call."""
    pieces = [piece for delta in deltas if isinstance(delta, Delta) for piece in delta.tools]
    assert {piece.index for piece in pieces} <= {0}
    return next((piece.name for piece in pieces if piece.name), None), "".join(piece.arguments for piece in pieces)


def old_call(said: str, finish: str | None = None, usage: Any = None) -> dict[str, Any]:
    """A chunk with a token of a tool call, up to 3.1.1: an object in place of a list, no name, no id."""
    function = {"name": None, "arguments": said}
    chunk = piece(None, finish, tool_calls={"index": 0, "id": "", "type": "function", "function": function})
    return {**chunk, "object": "text_completion", "usage": usage}


@pytest.mark.parametrize("size", [1, 2, 5, 1000])
@pytest.mark.parametrize(
    ("said", "name", "arguments"),
    [
        ('{"function": {"_name": "f", "x": {"y": "}"}}}', "f", '{"x": {"y": "}"}}'),
        ('{"function":{"_name":"f","x":1}}', "f", '{"x":1}'),
        ('  {\n "function": {"_name": "f"}}', "f", "{}"),
        # The name need not come first, and up to 2.0.0 there is none.
        ('{"function": {"A": 1, "_name": "f"}}', "f", '{"A":1}'),
        ('{"function": {"x": [1, {}], "y": "é"}}', "f", '{"x":[1,{}],"y":"é"}'),
        ('{"function": {"x": "\\ud800", "y": NaN}}', "f", '{"x":"\ufffd","y":null}'),
    ],
)
@pytest.mark.parametrize("end", ["</s>", "<|eot_id|>", ""])
def test_up_to_3_1_1_a_call_is_what_the_model_says(said: str, name: str, arguments: str, end: str, size: int) -> None:
    """From 1.4.3 on: name and arguments out of its JSON, and nothing of its end token."""
    tokens = [old_call(said[at : at + size]) for at in range(0, len(said), size)]
    counts = {"prompt_tokens": 9, "completion_tokens": 20, "total_tokens": 29}
    deltas = chat(*tokens, old_call(end, "stop", counts), b"[DONE]", tools=("f",))
    assert called(deltas) == (name, arguments)
    assert ends(deltas) == [Finish("tool_calls", None), Finish("tool_calls", "stop")]
    assert [delta.usage for delta in deltas if isinstance(delta, Delta) and delta.usage] == [Usage(9, 20)]


def test_up_to_2_0_0_of_several_tools_none_is_named() -> None:
    """TGI itself does not tell which: the arguments do."""
    deltas = chat(old_call('{"function": {"x"'), old_call(": 1}}"), old_call("</s>", "eos_token"), tools=("f", "g"))
    assert called(deltas) == (None, '{"x":1}')
    assert ends(deltas)[-1] == Finish("tool_calls", "eos_token")


def test_an_old_call_that_the_limit_cut_is_told() -> None:
    """With its reason, as any answer."""
    deltas = chat(old_call('{"function": {"_name": "f", "x'), old_call('": 1', "length"), tools=("f",))
    assert called(deltas) == ("f", '{"x": 1')
    assert ends(deltas) == [Finish("length", "length")]


@pytest.mark.parametrize("size", [1, 1000])
def test_notify_error_is_no_tool_of_the_user_s(size: int) -> None:
    """From 2.0.1 to 2.3.1 a model says so why it calls none: its answer, as TGI itself makes of it without a stream."""
    said = '{"function": {"_name": "notify_error", "error": "no \\"owl\\""}}'
    tokens = [old_call(said[at : at + size]) for at in range(0, len(said), size)]
    deltas = chat(*tokens, old_call("</s>", "stop"), b"[DONE]", tools=("f",))
    assert ("".join(texts(deltas)), called(deltas)) == ('no "owl"', (None, ""))
    assert ends(deltas) == [Finish("stop", None), Finish("stop", "stop")]
    assert called(chat(*tokens, tools=("notify_error",))) == ("notify_error", '{"error": "no \\"owl\\""}')


def test_from_2_4_to_3_1_1_an_answer_in_place_of_a_call_ends_with_the_marker() -> None:
    """The router leaves the model's JSON where its string ends. Else, and after half a call, it proves nothing."""
    said = (piece("No"), piece(" owl"), b"[DONE]")
    deltas = chat(*said, tools=("f",), stop=["owls"])
    assert ("".join(texts(deltas)), ends(deltas)) == ("No owl", [Finish("stop", None)])
    assert ends(chat(*said)) == []
    assert ends(chat(b"[DONE]", tools=("f",))) == []
    assert ends(chat(old_call('{"function": {"_name": "f"'), b"[DONE]", tools=("f",))) == []
    assert ends(chat(piece("No", "length"), b"[DONE]", tools=("f",))) == [Finish("length", "length")]


def test_up_to_1_4_3_a_choice_s_index_counts_tokens() -> None:
    """Its one choice is ours all the same; in 1.4.0 its logprobs are a number; nobody is shown the end token."""

    def token_of(text: str, index: int, logprobs: Any, finish: str | None = None) -> dict[str, Any]:
        chunk = piece(text, finish)
        chunk["choices"][0].update(index=index, logprobs=logprobs)
        return {**chunk, "object": "text_completion"}

    deltas = chat(
        token_of("a", 1, -0.5), token_of(" b", 2, None), token_of("</s>", 3, -1.0, "eos_token"), logprobs=True
    )
    assert texts(deltas) == ["a", " b", ""]
    assert isinstance(deltas[0], Delta)
    assert deltas[0].logprob == -0.5
    assert ends(deltas) == [Finish("stop", "eos_token")]


def test_up_to_0_3_no_token_is_said_to_be_special() -> None:
    """The last one of an answer that an end token ended is it."""
    plain = {"token": {"id": 1, "text": "a", "logprob": -1.0}, "generated_text": None, "details": None}
    final = last("</s>", "eos_token")
    del final["token"]["special"], final["details"]["input_length"]
    assert texts(native(plain, final)) == ["a", ""]
    final["details"]["finish_reason"] = "length"
    assert texts(native(plain, final)) == ["a", "</s>"]


def test_lorax_counts_the_prompt_s_tokens() -> None:
    """Under a name of its own."""
    final = last("", "eos_token", prompt_tokens=7)
    del final["details"]["input_length"]
    assert native(final) == [end("", "stop", "eos_token", Usage(7, 3))]


@pytest.mark.parametrize("arguments", ['{"x": {"y": "}"}}', "{}", '{"x": "a\\"}"}', '{"é": [{}, {"a": "🦊}"}]}'])
def test_a_brace_inside_is_not_the_end(arguments: str) -> None:
    """However the arguments are cut, they end where the object ends."""
    deltas = chat(*map(call, arguments))
    assert [at for at, delta in enumerate(deltas) if isinstance(delta, Delta) and delta.finish] == [len(arguments) - 1]


def test_deep_arguments_are_no_crash() -> None:
    """Braces without end are no object."""
    decoder = ChatDecoder(Cut([], NEVER), NEVER)
    delta = decoder.feed(Event(json.dumps(call('{"a":' * 100_000 + "}")).encode()))
    assert delta is not None
    assert delta.finish is None


# --- what is told in words


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 512. Given: 3 `inputs` tokens and"
            " 1000 `max_new_tokens`",
            {"prompt_tokens": 3, "context_size": 512},
        ),
        (
            "Input validation error: `inputs` must have less than 4095 tokens. Given: 5000",
            {"prompt_tokens": 5000, "context_size": 4095},
        ),
        (  # 0.3
            "Input validation error: input tokens + max_new_tokens must be <= 1512. Given: 1000 input tokens and 600"
            " max_new_tokens",
            {"prompt_tokens": 1000, "context_size": 1512},
        ),
        (
            "Input validation error: inputs must have less than 1000 tokens. Given: 1024",
            {"prompt_tokens": 1024, "context_size": 1000},
        ),
        ("Input validation error: `top_p` must be > 0.0 and < 1.0", {"param": "top_p"}),
        ("Input validation error: `max_new_tokens` must be strictly positive", {"param": "max_tokens"}),
        ("Input validation error: `inputs` cannot be empty", {}),
        ("Input validation error: grammar is not valid", {}),
        ("Model is overloaded", {}),
        ("", {}),
    ],
)
def test_sizes_and_fields_are_read_from_the_words(words: str, told: dict[str, Any]) -> None:
    """TGI tells them nowhere else."""
    assert told_in_words(EngineFault(words, "validation")) == EngineFault(words, "validation", **told)


# --- requests


def sent(**fields: Any) -> dict[str, Any]:
    """The parameters of a prompt."""
    body = generate_body(TaskRequest.of("Hi", max_tokens=9, **fields))
    assert body["inputs"] == "Hi"
    parameters: dict[str, Any] = body["parameters"]
    return parameters


GREEDY = {"max_new_tokens": 9, "do_sample": False, "details": True}
SAMPLED = {**GREEDY, "do_sample": True}


@pytest.mark.parametrize(
    ("fields", "parameters"),
    [
        ({}, GREEDY),
        ({"temperature": 0}, GREEDY),
        ({"temperature": 0, "top_p": 0.9, "top_k": 5, "seed": 1}, {**GREEDY, "seed": 1}),
        ({"temperature": 0.5}, {**SAMPLED, "temperature": 0.5}),
        ({"top_p": 0.9}, {**SAMPLED, "top_p": 0.9}),
        ({"top_k": 5}, {**SAMPLED, "top_k": 5}),
        ({"top_p": 1}, GREEDY),
        ({"top_k": 0}, GREEDY),
        ({"top_k": -1, "temperature": 1}, {**SAMPLED, "temperature": 1}),
        ({"repetition_penalty": 1.1, "frequency_penalty": 0.5, "stop": "x"},
         {**GREEDY, "repetition_penalty": 1.1, "frequency_penalty": 0.5, "stop": ["x"]}),
        ({"logprobs": 5}, GREEDY),
        ({"model": "tgi"}, GREEDY),
        ({"model": "my-lora"}, {**GREEDY, "adapter_id": "my-lora"}),
        ({"extra": {"typical_p": 0.9, "truncate": None}}, {**GREEDY, "typical_p": 0.9, "truncate": None}),
        ({"grammar": "a+"}, {**GREEDY, "grammar": {"type": "regex", "value": "a+"}}),
        ({"response_format": {"type": "text"}}, GREEDY),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"properties": {}}}}},
         {**GREEDY, "grammar": {"type": "json", "value": {"properties": {}}}}),
    ],
)  # fmt: skip
def test_a_prompt_is_sent_in_tgi_s_words(fields: dict[str, Any], parameters: dict[str, Any]) -> None:
    """Exactly: TGI's own names, values that it refuses left out, and nothing that would make a greedy job sample."""
    assert sent(**fields) == parameters


ASKED = {"messages": CHAT, "model": "tgi", "max_tokens": 9, "stream": True, "stream_options": {"include_usage": True}}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {}}}]


@pytest.mark.parametrize(
    ("fields", "changed"),
    [
        ({}, {}),
        ({"temperature": 0, "top_p": 0.9}, {"temperature": 0}),
        ({"temperature": 0.5, "top_p": 0.9}, {"temperature": 0.5, "top_p": 0.9}),
        ({"top_p": 1.0, "presence_penalty": 0}, {}),
        ({"presence_penalty": 0.5, "frequency_penalty": 0}, {"presence_penalty": 0.5, "frequency_penalty": 0}),
        ({"stop": "x", "seed": 1}, {"stop": ["x"], "seed": 1}),
        ({"logprobs": 20}, {"logprobs": True}),
        ({"model": "my-lora"}, {"model": "my-lora"}),
        ({"tools": TOOLS, "tool_choice": "auto"}, {"tools": TOOLS, "tool_choice": "auto"}),
        ({"extra": {"guideline": "x"}}, {"guideline": "x"}),
        ({"grammar": "a+"}, {"response_format": {"type": "regex", "value": "a+"}}),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"properties": {}}}}},
         {"response_format": {"type": "json", "value": {"properties": {}}}}),
    ],
)  # fmt: skip
def test_messages_are_sent_in_the_words_of_tgi_s_chat(fields: dict[str, Any], changed: dict[str, Any]) -> None:
    """OpenAI's body, with TGI's response_format, a model in any case, and no presence_penalty of 0."""
    assert chat_body(TaskRequest.of(CHAT, max_tokens=9, **fields)) == ASKED | changed
