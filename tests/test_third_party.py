"""An engine of somebody else's: an adapter made of public names only, found through its entry point."""

import json
import sys

import pytest

from worker_adapters import (
    CapacityExceeded,
    Decoder,
    Delta,
    EngineFault,
    EngineUnavailable,
    ErrorRule,
    Finish,
    HttpAdapter,
    InvalidRequest,
    StreamTruncated,
    Usage,
    WireRequest,
    available_engines,
    connect,
)
from worker_adapters.simulate import SimServer

WHO = {"version": "7", "model": "bear"}


class ToyDecoder(Decoder):
    """Events are ``{"say": text}``, ``{"bye": reason, "cost": [in, out]}`` or ``{"no": why}``."""

    def feed(self, event):
        said = json.loads(event.data)
        if "no" in said:
            return Delta(fault=EngineFault(message=said["no"], field=said["no"]))
        if "bye" in said:
            return Delta(finish=Finish("stop", said["bye"]), usage=Usage(*said["cost"]), done=True)
        return Delta(said["say"])


class ToyAdapter(HttpAdapter):
    """A toy engine, as a table of its facts."""

    engine = "toy"
    default_url = "http://127.0.0.1:9"
    rules = (ErrorRule(CapacityExceeded, field="full", retriable=True),)

    def encode(self, task):
        return WireRequest("/toy", json.dumps({"ask": task.prompt}).encode())

    def decoder(self, task):
        return ToyDecoder()


@pytest.fixture
def toy():
    """The toy engine: answers by the word it is asked."""
    script = {
        "hello": [{"say": "hi"}, {"say": " you"}, {"bye": "done", "cost": [1, 2]}],
        "cut": [{"say": "hi"}],
    }
    refusals = [{"no": "full"}]

    def handle(exchange):
        asked = exchange.request.json["ask"]
        events = [refusals.pop()] if asked == "full" and refusals else script.get(asked, script["hello"])
        exchange.head(200, [("Content-Type", "text/event-stream")])
        for event in events:
            exchange.chunk(b"data: " + json.dumps(event).encode() + b"\n\n")
        exchange.end()

    with SimServer(handle) as server, ToyAdapter(server.url, retry={"base": 0.001}) as adapter:
        yield adapter


def test_a_third_party_adapter_brings_only_its_facts(toy):
    """Frames, counts, errors and retries come from the base; the adapter holds none of it."""
    completion = toy.submit("hello").result()
    assert (completion.text, completion.finish_reason, completion.raw_finish_reason) == ("hi you", "stop", "done")
    assert (completion.metrics.tokens_in, completion.metrics.tokens_out, completion.metrics.counts) == (1, 2, "exact")
    assert toy.submit("full").result().text == "hi you"
    with pytest.raises(StreamTruncated):
        toy.submit("cut").result()


class NamedToy(ToyAdapter):
    """A toy that says who it is."""

    identity_questions = (("/who", dict),)

    def identity(self, who):
        return who["version"], who["model"]


@pytest.mark.parametrize(
    ("kind", "told"), [(ToyAdapter, ("unknown", None, {})), (NamedToy, ("7", "bear", {"/who": WHO}))]
)
def test_props_tell_who_it_is_without_a_word_of_the_adapter(kind, told):
    """The inherited props hold what the identity says; of an engine that says nothing, that it is there."""
    with SimServer(lambda exchange: exchange.json(200, WHO)) as server, kind(server.url) as adapter:
        props = adapter.props()
        assert (props.engine_version, props.model, props.raw) == told
        assert (props.engine, props.capabilities) == ("toy", kind.capabilities)
        assert adapter.engine_version() == told[0]


def test_props_of_an_engine_that_is_down():
    """They are an error, also where there is nothing to be told."""
    with ToyAdapter("http://127.0.0.1:9") as adapter, pytest.raises(EngineUnavailable):
        adapter.props()


def test_a_field_it_does_not_name_is_refused_or_dropped(toy, caplog):
    """A field outside its capabilities is refused by name, or dropped with one log line."""
    with pytest.raises(InvalidRequest) as caught:
        toy.submit("hello", temperature=0.5)
    assert (caught.value.field, "toy" in caught.value.message) == ("temperature", True)
    lenient = ToyAdapter(toy._endpoint.url, unsupported="ignore")
    assert lenient.submit("hello", temperature=0.5).result().text == "hi you"
    assert [record.getMessage() for record in caplog.records] == ["toy has no equivalent for temperature: dropped"]


def test_entry_points_add_engines_and_shadow_none(tmp_path, monkeypatch):
    """An installed entry point adds its engine to ``connect``; one that is called like a built-in is not heard."""
    info = tmp_path / "toy-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    points = "[worker_adapters.adapters]\ntoy = toy_engine:ToyAdapter\nmock = toy_engine:ToyAdapter\n"
    (info / "entry_points.txt").write_text(points)
    monkeypatch.syspath_prepend(str(tmp_path))
    module = type(sys)("toy_engine")
    module.ToyAdapter = ToyAdapter
    monkeypatch.setitem(sys.modules, "toy_engine", module)
    assert {"toy", "mock", "llamacpp"} <= set(available_engines())
    with connect("toy", "http://127.0.0.1:1") as adapter:
        assert type(adapter) is ToyAdapter
    with connect("mock") as mock:
        assert mock.engine == "mock"
