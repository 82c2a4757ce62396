"""What the real Triton does, seen by plain clients: the facts that its adapter is built upon."""

from __future__ import annotations

import http.client
import json
import queue
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from engines.llamacpp_bench import milliseconds, until, usual
from real_triton.conftest import TEXT, TOKENS, prompt
from real_triton.server import RealTriton

pytestmark = [pytest.mark.engines, pytest.mark.real_triton]

#: For the models that are slow on purpose.
SHAPES = {"ensemble": [1, 1], "tensorrt_llm_bls": [1, 1]}


class HttpStream:
    """``generate_stream`` by the standard library's client."""

    def __init__(self, server: RealTriton, model: str, body: dict[str, Any]) -> None:
        self._connection = http.client.HTTPConnection(server.host, server.http_port, timeout=30)
        self._connection.request("POST", f"/v2/models/{model}/generate_stream", json.dumps(body))
        self._socket = self._connection.sock
        self._answer: http.client.HTTPResponse | None = None

    def start(self) -> int:
        """The status, with the first response."""
        self._answer = self._connection.getresponse()
        return self._answer.status

    def lines(self) -> Iterator[bytes]:
        """What stands behind ``data: ``."""
        assert self._answer is not None
        for line in self._answer:
            if line.strip():
                yield line.removeprefix(b"data: ").rstrip(b"\n")

    def texts(self) -> list[bytes]:
        """The text of each event as it came, whole characters or not."""
        return [json.loads(line.decode("latin-1"))["text_output"].encode("latin-1") for line in self.lines()]

    def close(self) -> None:
        """As a client does that has gone away."""
        if self._answer is not None:
            self._answer.close()  # it holds the socket open
        self._connection.close()
        self._socket.close()

    def __enter__(self) -> HttpStream:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class GrpcStream:
    """One request on a stream of ``tritonclient.grpc``, as it is meant to be used."""

    def __init__(self, server: RealTriton, model: str, text: str, request_id: str = "") -> None:
        client = pytest.importorskip("tritonclient.grpc")
        numpy = pytest.importorskip("numpy")
        self._client = client.InferenceServerClient(f"{server.host}:{server.grpc_port}")
        self._came: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
        self._client.start_stream(lambda result, error: self._came.put((result, error)))
        shape = SHAPES.get(model, [1])
        inputs = [client.InferInput("text_input", shape, "BYTES")]
        inputs[0].set_data_from_numpy(numpy.array([text.encode()], dtype=numpy.object_).reshape(shape))
        if model in SHAPES:
            inputs += [client.InferInput("max_tokens", shape, "INT32"), client.InferInput("stream", shape, "BOOL")]
            inputs[1].set_data_from_numpy(numpy.full(shape, 1000, dtype=numpy.int32))
            inputs[2].set_data_from_numpy(numpy.full(shape, True))
        self._client.async_stream_infer(model, inputs, request_id=request_id, enable_empty_final_response=True)

    def next(self) -> bytes | None:
        """The next text; None at the end.

        :raises Exception: the client's own, of an error response.
        """
        result, error = self._came.get(timeout=30)
        if error is not None:
            raise error
        data = result.as_numpy("text_output")
        return None if data is None else b"".join(data.flatten())

    def cancel(self) -> None:
        """Cancel what runs, and close."""
        self._client.stop_stream(cancel_requests=True)
        self._client.close()


@contextmanager
def grpc(*arguments: Any) -> Iterator[GrpcStream]:
    """A stream that is closed whatever happens."""
    stream = GrpcStream(*arguments)
    try:
        yield stream
    finally:
        stream.cancel()


def test_texts_come_as_bytes(triton: RealTriton) -> None:
    """A model's bytes go out as they are, over both transports, wherever its tokens cut a character."""
    with HttpStream(triton, "recite", {"text_input": prompt()}) as stream:
        assert stream.start() == 200
        said = stream.texts()
    assert b"".join(said).decode() == TEXT
    assert (len(said), said[12:14]) == (TOKENS, [b"\xc3", b"\xa9"])
    with grpc(triton, "recite", prompt()) as other:
        assert list(iter(other.next, None)) == said


@pytest.mark.parametrize("transport", ["http", "grpc"])
def test_a_running_job_is_cancelled(triton: RealTriton, transport: str, record_property: Any) -> None:
    """The model knows soon after the socket has closed, or after the stream was cancelled."""
    took = []
    for _ in range(10):
        asked = prompt("endless", "delay=0.01")
        if transport == "http":
            stream = HttpStream(triton, "recite", {"text_input": asked})
            stream.start()
            next(stream.lines())
            began = time.monotonic()
            stream.close()
        else:
            other = GrpcStream(triton, "recite", asked)
            other.next()
            began = time.monotonic()
            other.cancel()
        until(lambda asked=asked: triton.when(asked, "ended") is not None, every=0.005)
        took.append((triton.when(asked, "cancelled") or 0) - began)
        assert took[-1] > 0
    record_property(f"plain client gone -> the model knows ({transport})", milliseconds(took))
    assert usual(took) < 1


def test_before_the_first_response_http_tells_nothing(triton: RealTriton) -> None:
    """A client that goes before its first response is not noticed until then; one of gRPC is, at once."""
    asked = prompt("endless", "first=1", "delay=0.01")
    stream = HttpStream(triton, "recite", {"text_input": asked})
    until(lambda: triton.when(asked, "began") is not None, every=0.005)
    stream.close()
    other = prompt("endless", "first=5")
    with grpc(triton, "recite", other):
        until(lambda: triton.when(other, "began") is not None, every=0.005)
    until(lambda: triton.when(asked, "ended") and triton.when(other, "ended"), every=0.01)  # type: ignore[arg-type,return-value]
    assert [(each.event, each.tokens > 0) for each in triton.events(asked)][1] == ("cancelled", True)
    assert [(each.event, each.tokens) for each in triton.events(other)][1] == ("cancelled", 0)


@pytest.mark.parametrize("transport", ["http", "grpc"])
def test_an_ensemble_is_not_cancelled(triton: RealTriton, transport: str) -> None:
    """The step that runs never hears of it: it says all it was asked for."""
    asked = prompt("endless", "delay=0.002")
    if transport == "http":
        body = {"text_input": asked, "max_tokens": 200, "stream": True}
        stream = HttpStream(triton, "ensemble", body)
        stream.start()
        next(stream.lines())
        stream.close()
    else:
        with grpc(triton, "ensemble", asked) as other:
            other.next()
    until(lambda: triton.when(asked, "ended") is not None)
    assert [each.event for each in triton.events(asked)] == ["began", "ended"]
    assert triton.events(asked)[-1].tokens >= 200


def test_its_engine_can_be_stopped_by_id(triton: RealTriton) -> None:
    """What stops an ensemble's job is a request with ``stop`` to its engine, with the id of the job."""
    asked = prompt("endless", "delay=0.005")
    body = {"id": f"stop-{asked[:5]}", "text_input": asked, "max_tokens": 2000, "stream": True}
    stop = {"id": body["id"], "stop": True, "input_ids": [0], "input_lengths": 1, "request_output_len": 1}
    with HttpStream(triton, "ensemble", body) as stream:
        stream.start()
        status, said = triton.ask("/v2/models/tensorrt_llm/generate", stop)
        assert (status, "cancelled" in said) == (400, True)
        until(lambda: triton.when(asked, "ended") is not None)
        assert [each.event for each in triton.events(asked)] == ["began", "told to stop", "cancelled", "ended"]
        assert list(stream.lines())[-1].startswith(b'{"cum_log_probs"')  # it ends as if it were complete


def test_a_full_queue(triton: RealTriton) -> None:
    """Of three jobs of a model that takes one and lets one wait the last is refused, before inference."""
    body = {"text_input": prompt("endless", "delay=0.01"), "max_tokens": 200}
    other = {"text_input": prompt(), "max_tokens": 1}
    with HttpStream(triton, "full", body) as first:
        first.start()
        with HttpStream(triton, "full", other) as second:
            until(lambda: triton.metric("nv_inference_pending_request_count", "full") == 1, every=0.01)
            status, said = triton.ask("/v2/models/full/generate_stream", other)
            assert (status, json.loads(said)["error"].endswith("Exceeds maximum queue size")) == (503, True)
            first.close()
            assert second.start() == 200
            assert second.texts() == [b"The"]


def test_errors_of_a_model(triton: RealTriton) -> None:
    """An error response is an event: with status 400 if it comes first, else in a stream that began with 200."""
    for count in (0, 2):
        with HttpStream(triton, "recite", {"text_input": prompt(f"fail={count}")}) as stream:
            assert stream.start() == (200 if count else 400)
            *said, error = stream.lines()
        assert (len(said), json.loads(error)) == (count, {"error": f"model exploded at token {count}"})
        with grpc(triton, "recite", prompt(f"fail={count}")) as other:
            for _ in range(count):
                assert other.next()
            with pytest.raises(Exception, match="model exploded") as caught:
                other.next()
            assert "id" not in str(caught.value)


def test_the_other_client(triton: RealTriton) -> None:
    """``tritonclient.http`` can ask one response of a model that is not decoupled, and nothing else of a model."""
    client = pytest.importorskip("tritonclient.http")
    numpy = pytest.importorskip("numpy")
    with client.InferenceServerClient(f"{triton.host}:{triton.http_port}") as engine:
        assert engine.is_model_ready("one")
        given = client.InferInput("text_input", [1], "BYTES")
        given.set_data_from_numpy(numpy.array([prompt()], dtype=numpy.object_))
        assert engine.infer("one", [given]).as_numpy("text_output")[0].decode() == TEXT
        with pytest.raises(Exception, match="decoupled"):
            engine.infer("recite", [given])
