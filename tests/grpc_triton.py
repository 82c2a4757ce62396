"""A real gRPC server that answers as a test says, with the messages of Triton's inference protocol."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
from tritonclient.grpc import model_config_pb2 as config_pb
from tritonclient.grpc import service_pb2 as pb

SERVICE = "inference.GRPCInferenceService"
WAIT = 10.0  # seconds: what must come has come by then, even on a loaded machine
SENTENCE = [" the", " quick", " brown", " fox", " jumps", " over", " a", " lazy", " dog"]
FINAL = "triton_final_response"
Answer = Callable[["Call"], Iterator[Any]]


def tensor(name: str, *values: Any) -> tuple[str, str, bytes]:
    """An output: its name, type and raw bytes."""
    if isinstance(values[0], (str, bytes)):
        texts = [value.encode() if isinstance(value, str) else value for value in values]
        return name, "BYTES", b"".join(struct.pack("<I", len(text)) + text for text in texts)
    letter, kind = ("f", "FP32") if isinstance(values[0], float) else ("I", "UINT32")
    return name, kind, struct.pack(f"<{len(values)}{letter}", *values)


def data(*outputs: Any, final: bool = False, request: Any = None, **parameters: Any) -> Any:
    """A response; a plain text is the output text_output."""
    made = pb.ModelStreamInferResponse()
    response = made.infer_response
    if request is not None:
        response.id, response.model_name, response.model_version = request.id, request.model_name, "1"
    for key, value in {FINAL: final, **parameters}.items():
        setattr(response.parameters[key], "bool_param" if isinstance(value, bool) else "int64_param", value)
    for output in outputs:
        name, kind, raw = output if isinstance(output, tuple) else tensor("text_output", output)
        response.outputs.add(name=name, datatype=kind, shape=[1])
        response.raw_output_contents.append(raw)
    return made


def failed(message: str) -> Any:
    """An error response, as it comes without ``triton_grpc_error``."""
    return pb.ModelStreamInferResponse(error_message=message)


def config(name: str, inputs: str, *, decoupled: bool = True, **more: Any) -> Any:
    """A model's config; inputs as ``name TYPE, name TYPE?``."""
    made = config_pb.ModelConfig(name=name, **{"backend": "python", **more})
    for part in inputs.split(","):
        tensor_name, kind = part.split()
        many = "[]" in kind
        made.input.add(
            name=tensor_name,
            data_type=config_pb.DataType.Value(f"TYPE_{kind.rstrip('?').removesuffix('[]')}"),
            dims=[-1 if many else 1],
            optional=kind.endswith("?"),
        )
    made.output.add(name="text_output", data_type=config_pb.TYPE_STRING, dims=[1])
    if decoupled:
        made.model_transaction_policy.decoupled = True
    return made


RS = "text_input STRING, max_tokens INT32?, temperature FP32?, stream BOOL?, stop_words STRING[]?"


class Call:
    """One call of ModelStreamInfer.

    :ivar request: the one request on it.
    :ivar gone: set once the call has ended, for whatever reason.
    """

    def __init__(self, requests: Iterator[Any], context: Any) -> None:
        self.gone = threading.Event()
        if not context.add_callback(self.gone.set):
            self.gone.set()
        self.context = context
        self.peer = context.peer()
        self.metadata = dict(context.invocation_metadata())
        self.request = next(requests)
        self.finished = False
        self._requests = requests

    @property
    def alone(self) -> bool:
        """Was it the only request, with no further one announced?"""
        return next(self._requests, None) is None

    def input(self, name: str) -> Any:
        """An input of the request."""
        return next(each for each in self.request.inputs if each.name == name)

    def abort(self, code: str, details: str) -> None:
        """End the call with a status."""
        self.context.abort(getattr(grpc.StatusCode, code), details)

    def wait_gone(self, seconds: float = WAIT) -> bool:
        """Was the call ended by its client within so many seconds?"""
        return self.gone.wait(seconds)


def recite(call: Call) -> Iterator[Any]:
    """So many words as were asked for, then the empty final response."""
    limit = call.input("max_tokens").contents.int_contents[0]
    for at in range(limit):
        yield data(SENTENCE[at % len(SENTENCE)], request=call.request)
    yield data(final=True, request=call.request)


def echo(call: Call) -> Iterator[Any]:
    """The prompt, as many times as tokens were asked for: crossed replies show."""
    prompt = call.input("text_input").contents.bytes_contents[0]
    for _ in range(call.input("max_tokens").contents.int_contents[0]):
        yield data(b" " + prompt)
    yield data(final=True)


def endless(call: Call) -> Iterator[Any]:
    """Words until the client leaves."""
    at = 0
    while not call.gone.wait(0.002):
        yield data(SENTENCE[at % len(SENTENCE)], request=call.request)
        at += 1


def silent(call: Call) -> Iterator[Any]:
    """Nothing until the client leaves."""
    call.gone.wait(3 * WAIT)
    yield from ()


class Triton:
    """The server.

    :ivar answer: what a stream says.
    :ivar configs: by model; a name that is not there is unknown.
    :ivar refuse: method -> (code, details) to refuse it with.
    :ivar held: method -> what its answer waits for.
    :ivar told: method -> its response.
    :ivar calls: the streams that came.
    :ivar asked: (method, request, metadata) of the other calls.
    """

    def __init__(self, *, port: int = 0, credentials: Any = None, **configs: Any) -> None:
        self.answer: Answer = recite
        self.configs = configs or {"rs": config("rs", RS)}
        self.refuse: dict[str, tuple[str, str]] = {}
        self.held: dict[str, threading.Event] = {}
        self.key: str | None = None
        self.calls: list[Call] = []
        self.asked: list[tuple[str, Any, dict[str, Any]]] = []
        self.index = [("rs", "1", "READY", "")]
        self.told: dict[str, Any] = {
            "ServerMetadata": pb.ServerMetadataResponse(name="triton", version="2.51.0"),
            "ServerLive": pb.ServerLiveResponse(live=True),
            "ServerReady": pb.ServerReadyResponse(ready=True),
            "ModelReady": pb.ModelReadyResponse(ready=True),
            "ModelStatistics": pb.ModelStatisticsResponse(),
        }
        self._server = grpc.server(ThreadPoolExecutor(64), options=[("grpc.so_reuseport", 0)])
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, self._handlers()),))
        address = f"127.0.0.1:{port}"
        if credentials is None:
            self.port = self._server.add_insecure_port(address)
        else:
            self.port = self._server.add_secure_port(address, credentials)
        self.url = f"{'grpcs' if credentials else 'grpc'}://127.0.0.1:{self.port}"

    def __enter__(self) -> Triton:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End all calls, and listen no more."""
        assert self._server.stop(0).wait(WAIT)

    def _handlers(self) -> dict[str, Any]:
        plain = {**self.told, "ModelConfig": None, "RepositoryIndex": None}
        made = {
            method: grpc.unary_unary_rpc_method_handler(
                self._unary(method),
                request_deserializer=getattr(pb, f"{method}Request").FromString,
                response_serializer=getattr(pb, f"{method}Response").SerializeToString,
            )
            for method in plain
        }
        made["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(
            self._stream,
            request_deserializer=pb.ModelInferRequest.FromString,
            response_serializer=pb.ModelStreamInferResponse.SerializeToString,
        )
        return made

    def _admit(self, method: str, context: Any) -> None:
        if self.key is not None and dict(context.invocation_metadata()).get("authorization") != f"Bearer {self.key}":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "This protocol is restricted, expecting header")
        if method in self.refuse:
            code, details = self.refuse[method]
            context.abort(getattr(grpc.StatusCode, code), details)

    def _unary(self, method: str) -> Callable[[Any, Any], Any]:
        def answer(request: Any, context: Any) -> Any:
            self.asked.append((method, request, dict(context.invocation_metadata())))
            self._admit(method, context)
            if method in self.held:
                context.add_callback(self.held[method].set)
                self.held[method].wait(3 * WAIT)
            if method == "ModelConfig":
                if request.name not in self.configs:
                    context.abort(
                        grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{request.name}' is not found"
                    )
                return pb.ModelConfigResponse(config=self.configs[request.name])
            if method == "RepositoryIndex":
                rows = [dict(zip(("name", "version", "state", "reason"), row, strict=True)) for row in self.index]
                return pb.RepositoryIndexResponse(models=rows)
            return self.told[method]

        return answer

    def _stream(self, requests: Iterator[Any], context: Any) -> Iterator[Any]:
        self._admit("ModelStreamInfer", context)
        call = Call(requests, context)
        self.calls.append(call)
        yield from self.answer(call)
        call.finished = True

    def methods(self) -> list[str]:
        """The names of the calls that were no streams, in order."""
        return [method for method, _, _ in self.asked]


class Wire:
    """A TCP proxy in front of a server, which can be broken off as by a crash.

    :ivar connections: made so far.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self.connections = 0
        self._sockets: list[socket.socket] = []
        self._broken = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"grpc://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                return
            self.connections += 1
            self._sockets += [near, far]
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._carry, args=(source, sink), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while piece := source.recv(65536):
                sink.sendall(piece)
            if not self._broken:
                sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def break_off(self, *, reset: bool = False) -> None:
        """End every connection, and listen no more."""
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes the acceptor
        self._listener.close()
        self._broken = True
        for sock in self._sockets:
            if reset:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            try:
                # Also before a reset: a socket that a thread of ours reads is not closed before that read returns.
                sock.shutdown(socket.SHUT_RD if reset else socket.SHUT_RDWR)
            except OSError:
                pass
            sock.close()


@contextmanager
def never_accepting() -> Iterator[str]:
    """The address of a listener whose backlog is full: a connection to it is never made."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        fillers = []
        try:
            for _ in range(8):
                sock = socket.socket()
                sock.setblocking(False)
                sock.connect_ex(listener.getsockname())
                fillers.append(sock)
            yield f"grpc://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            for sock in fillers:
                sock.close()
