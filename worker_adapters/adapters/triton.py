"""Triton adapter.    Seen with 2.51.0 (24.10), python backends on the CPU, in 2026-11; among them vLLM's, 23.10 to
main, over a stub of vLLM, and tensorrtllm_backend's 0.16; others of TensorRT-LLM's as their sources are (0.5 to
0.18, llmapi).

Uses: POST /v2/models/NAME/generate_stream, GET /v2/models/NAME/config, POST /v2/repository/index, GET /v2,
/v2/health/ready, /v2/models/NAME/ready; over gRPC (see triton_grpc.py) the calls of the same names.
Differs from the others: a model is whatever its tensors are, so a task is written once the model's config was read; a
reason for ending and counts come from vLLM's backend and llmapi alone; the head of an answer comes with the first
response, and until then the server watches no connection: over HTTP a cancel frees the reader and not the engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import msgspec

from worker_adapters.adapters.asking import PROPS
from worker_adapters.adapters.base import HttpAdapter
from worker_adapters.adapters.identity import Answer
from worker_adapters.adapters.rules import EVENT, ErrorRule, ErrorTable
from worker_adapters.adapters.triton_models import GONE, INDEX, Entry, TritonModels, sole
from worker_adapters.errors import (
    AuthenticationFailed,
    CapacityExceeded,
    ContextOverflow,
    EngineUnavailable,
    InvalidRequest,
    PoolUnavailable,
    StreamTruncated,
    UnknownError,
    WorkerError,
    WorkerTimeout,
    invalid,
)
from worker_adapters.jsonvalue import encode
from worker_adapters.report import Capabilities, EngineProps, HealthStatus
from worker_adapters.task import TaskRequest
from worker_adapters.timeouts import check_seconds
from worker_adapters.transport.control import Reply
from worker_adapters.wire.delta import Decoder, EngineFault, WireRequest
from worker_adapters.wire.triton import TOO_LONG, TritonDecoder, flat_body, told_in_words
from worker_adapters.wire.triton_infer import LENGTH, ModelMetadata, infer_outputs, infer_request
from worker_adapters.wire.triton_model import OPTIONAL, ROLES, ModelConfig, public

#: Loaded with its transport: nobody else needs grpc.
OVER_GRPC = ("worker_adapters.adapters.triton_grpc", "TritonGrpcAdapter")
EXTRA = 'pip install "worker-adapters[triton-grpc]"'
#: vLLM's backend: of its sampling parameters (since 25.03 its log alone says what), and of an engine that is dead.
BAD_SAMPLING = (
    r"Error generating (stream|request): "  # the second is llmapi's
    r"(Unexpected keyword argument|require |\w+ (must be|cannot) |'NoneType' .* 'lora_name')"
)
NO_LORA = "^LoRA .*is not (supported|enabled)"
#: TensorRT-LLM's engine fails every request of its batch so.
DEAD = (
    r"EngineCore encountered an issue|(Background|Engine) loop (has errored|is not running|is stopped)"
    r"|Encountered an error in forward"
)
#: Backends whose models are on the GPU whatever their instances say.
SAYS_NOTHING = frozenset({"tensorrtllm", "vllm", "python", ""})


class _Server(msgspec.Struct):
    """GET /v2: the server's version; no field anywhere carries a backend's."""

    version: str = "unknown"


class TritonAdapter(HttpAdapter):
    """NVIDIA Triton: over HTTP, or over gRPC with a URL ``grpc://host:8001`` or ``transport="grpc"``.

    :param url: the default is http://127.0.0.1:8000, with ``transport="grpc"`` grpc://127.0.0.1:8001.
    :param model: the model's name; None: the only one that the server has ready.
    :param version: of the model; None: the server's choice.
    :param tensors: which tensor plays which part, where a model's names are its own: ``prompt``, ``text`` (the output),
        ``stream``, or a field of a task, e.g. ``{"prompt": "QUERY", "text": "ANSWER", "max_tokens": "LIMIT"}``.
    :param transport: ``"http"`` or ``"grpc"``; None goes by the URL.
    :raises InvalidRequest: naming the option. Further options are those of ``HttpAdapter``.

    ``extra`` takes a model's other inputs by name, ``extra={"parameters": {...}}`` parameters of the request, and for
    vLLM's backend any other sampling parameter of vLLM's.
    """

    engine = "triton"
    default_url = "http://127.0.0.1:8000"
    identity_questions = (("/v2", _Server),)
    capabilities: Capabilities = Capabilities(
        messages=False,
        fields=OPTIONAL,
        exact_counts=False,
        release_ms=10.0,
        release="2-7 ms once tokens flow; before the first response (which gRPC reaches), and inside an ensemble whose "
        "engine takes no stop, the job runs to its end: the server watches no connection there",
    )
    owned = frozenset({"id", "text_input", "sampling_parameters"})
    rules = (
        # Words first: over HTTP the code of a model's error is lost (always 400), in a stream it has none.
        ErrorRule(StreamTruncated, field="abort"),
        ErrorRule(WorkerTimeout, field="timeout"),
        ErrorRule(CapacityExceeded, words="Exceeds maximum queue size", retriable=True),
        ErrorRule(WorkerTimeout, words="Request timeout expired"),
        ErrorRule(PoolUnavailable, words="out of memory|Failed to allocate|cudaMalloc"),
        # The model was there when its config was read: it was unloaded, or is loaded anew. The next try looks again.
        ErrorRule(EngineUnavailable, words=GONE, retriable=True),
        ErrorRule(EngineUnavailable, words="unhealthy vLLM engine", retriable=True),  # looked at before a job is begun
        ErrorRule(EngineUnavailable, words=rf"Stub process .* is not healthy|Socket closed|{DEAD}"),
        ErrorRule(EngineUnavailable, words="failed to connect to all addresses", retriable=True),
        ErrorRule(StreamTruncated, words="request was cancelled|Locally cancelled"),
        ErrorRule(UnknownError, words="support models with decoupled"),
        ErrorRule(ContextOverflow, words=TOO_LONG),
        ErrorRule(InvalidRequest, words=f"{BAD_SAMPLING}|{NO_LORA}"),
        ErrorRule(
            InvalidRequest,
            words=r"Unable to parse|failed to parse the request JSON|expected number of inputs|unexpected shape"
            r"|data-type is|unexpected inference input|batch-size must be|has invalid type|schema can not convert"
            r"|only supported in decoupled mode|A value is required for|processing the input values for request id",
        ),
        ErrorRule(UnknownError, words=r"Failed to process the request"),
        # What a model itself says: over HTTP without any sign of what it means.
        ErrorRule(UnknownError, field=EVENT, position="refusal"),
        ErrorRule(InvalidRequest, status=400, position="stream"),
        ErrorRule(AuthenticationFailed, status=401, position="stream"),
        ErrorRule(AuthenticationFailed, status=403, position="stream"),
        ErrorRule(CapacityExceeded, status=429, position="stream", retriable=True),
        ErrorRule(EngineUnavailable, status=503, position="stream"),
        ErrorRule(WorkerTimeout, status=504, position="stream"),
        ErrorRule(UnknownError, position="stream"),
    )

    def __new__(cls, url: Any = None, *, transport: Any = None, **_options: Any) -> TritonAdapter:
        """One name for both transports."""
        grpc = transport == "grpc" or (isinstance(url, str) and url.startswith(("grpc://", "grpcs://")))
        if grpc and (find_spec("grpc") is None or find_spec("tritonclient") is None):
            raise invalid("transport", f"gRPC needs tritonclient: {EXTRA}")
        chosen = getattr(import_module(OVER_GRPC[0]), OVER_GRPC[1]) if grpc and cls is TritonAdapter else cls
        made: TritonAdapter = object.__new__(chosen)
        return made

    def __init__(
        self,
        url: str | None = None,
        *,
        version: str | int | None = None,
        tensors: Mapping[str, str] | None = None,
        transport: str | None = None,
        **options: Any,
    ) -> None:
        _check(url, tensors, transport)
        self._tensors = dict(tensors or {})
        self._version = "" if version is None else str(version)
        self._models = TritonModels(self._tensors, self._version, self._refused)
        super().__init__(url, **options)
        self._errors = _Errors(self.engine, self._place(), self._endpoint, self.rules)

    # --- a job

    def needs(self, task: TaskRequest) -> WireRequest | None:
        return self._models.question(task.model)

    def hears(self, task: TaskRequest, question: WireRequest, reply: Reply) -> None:
        self._models.hears(task.model, question, reply)

    def _refused(self, reply: Reply, question: WireRequest) -> WorkerError:
        fault = self._errors.read(reply.head, reply.body, [])
        return self._errors.refusal(reply.head, fault, [], question.path, self._runtime.time())

    def encode(self, task: TaskRequest) -> WireRequest:
        name = self._models.name(task.model)
        return WireRequest(self._models.path(name, "/generate_stream"), encode(flat_body(*self._tensors_for(task))))

    def _tensors_for(self, task: TaskRequest) -> tuple[dict[str, Any], dict[str, Any]]:
        model = self._models[self._models.name(task.model)]
        lacking = model.lacks(task)
        if lacking and self._unsupported == "error":
            raise self._invalid(lacking[0], f"the model {model.config.name!r} has no input for it; {model.shape}")
        return model.tensors_for(self._without(task, lacking))

    def named(self, request: WireRequest, job_id: str) -> WireRequest:
        return msgspec.structs.replace(request, body=b'{"id":%b,%b' % (encode(job_id), request.body[1:]))

    def decoder(self, task: TaskRequest) -> Decoder:
        return TritonDecoder(self._models[self._models.name(task.model)], task)

    def learns(self, status: int, fault: EngineFault, task: TaskRequest, request: WireRequest) -> bool:
        """A model may be loaded anew at any time: its config is read again after a refusal that may come of that."""
        if status in (400, 404, 500) or GONE in fault.message:  # 500: a value that is no longer of its input's type
            self._models.forget(self._models.name(task.model))
        return False

    def stops(self, task: TaskRequest, job_id: str) -> WireRequest | None:
        call = self._models.stopping(task.model)
        if call is None:
            return None
        return WireRequest(f"/v2/models/{call[0].name}/generate_stream", encode({"id": job_id, **call[1]}))

    def refuses(self, reply: Reply) -> bool:
        """TensorRT-LLM answers a stop that it obeyed with an error: "Request cancelled by client", as an event."""
        return super().refuses(reply) and reply.head.media_type != "text/event-stream"

    # --- the server

    @property
    def health_path(self) -> str:  # type: ignore[override]  # here it depends on what is known
        """The model's, where one is meant: one model that fails to load makes the whole server unready."""
        name = self._models.name(self._model)
        return self._models.path(name, "/ready") if name else "/v2/health/ready"

    def judge(self, reply: Reply) -> HealthStatus:
        """Ready stays 200 when a model's process has died (2.51): only ``probe`` tells."""
        where = f"{self._endpoint.shown}{self.health_path}"
        if reply.status == 200 and reply.body:
            message = f"{where}: 200, but not from Triton: a proxy, or another server?"
            return HealthStatus("unhealthy", live=True, ready=False, message=message)
        if reply.status == 400 and not reply.body:
            message = f"{where}: a model has failed to load; others may serve: say which with model="
            return HealthStatus("degraded", live=True, ready=False, message=message)
        return super().judge(reply)

    def question(self, path: str) -> WireRequest:
        return INDEX if path == INDEX.path else super().question(path)

    def identity(self, server: _Server) -> Answer:
        return server.version, self._models.name(self._model)

    def props(self) -> EngineProps:
        asking = self.asking()
        version, _ = self._identity.told(asking("/v2", _Server))
        entries = asking(INDEX.path, list[Entry])
        name = self._models.name(self._model) or sole(entries)
        config = self._models.asked(asking, name, "/config", ModelConfig) if name else ModelConfig()
        steps = [asking.maybe(f"/v2/models/{step}/config", ModelConfig) or ModelConfig() for step in config.steps]
        if name:
            asking.maybe(self._models.path(name, "/stats"), dict[str, Any])
        return EngineProps(
            engine=self.engine,
            engine_version=version,
            model=name,
            model_digest=_digest(config, entries),
            residency=_residency([config, *steps]),
            capabilities=self.capabilities,
            raw={path: public(answer) for path, answer in asking.raw.items()},
        )

    def infer(self, inputs: Mapping[str, Any], *, model: str | None = None, timeout: float = 60.0) -> dict[str, Any]:
        """One request and its one response of any model that is not decoupled: a tokenizer, a classifier, embeddings.

        Not a job: it streams nothing, and cannot be cancelled.

        :param inputs: values by input name: scalars, nested lists or numpy arrays; their types are the model's.
        :param timeout: seconds over everything.
        :returns: nested lists by output name; text as str.
        :raises WorkerError: as a job's errors.
        """
        check_seconds("timeout", timeout, optional=False)
        name = model or self._models.name(self._model)
        if not name:
            raise self._invalid("model", "want the name of one")
        until = self._network.monotonic() + timeout
        metadata = self._models.asked(self.asking(min(timeout, PROPS)), name, "", ModelMetadata)
        request = infer_request(self._models.path(name, "/infer"), metadata, inputs)
        reply = self._ask(request, max(0.05, until - self._network.monotonic()))
        if reply.status != 200:
            raise self._refused(reply, request)
        return infer_outputs(reply.body, reply.head.get(LENGTH.lower()))

    def _configuration(self) -> dict[str, Any]:
        return {**super()._configuration(), "version": self._version or None, "tensors": self._tensors}


class _Errors(ErrorTable):
    """Triton's errors, with what the backends say in words only."""

    def _clean(self, fault: EngineFault, prompts: list[str]) -> EngineFault:
        return told_in_words(super()._clean(fault, prompts))


def _digest(config: ModelConfig, entries: list[Entry]) -> str | None:
    """``name/versions-backend``: Triton tells no digest; the same repository gives the same text."""
    versions = [entry.version for entry in entries if entry.name == config.name and entry.ready]
    return f"{config.name}/{','.join(versions)}-{config.backend or config.platform}" if config.name else None


def _residency(configs: list[ModelConfig]) -> str:
    """Instances on a GPU say so. On the CPU they say it of backends that have no other way to use a GPU."""
    kinds = {(instances.kind, config.backend) for config in configs for instances in config.instance_group}
    if any(kind == "KIND_GPU" for kind, _ in kinds):
        return "gpu"
    return (
        "cpu" if kinds and all(kind == "KIND_CPU" and name not in SAYS_NOTHING for kind, name in kinds) else "unknown"
    )


def _check(url: Any, tensors: Any, transport: Any) -> None:
    """:raises InvalidRequest: naming the option."""
    if transport not in (None, "http", "grpc"):
        raise invalid("transport", 'want "http" or "grpc"')
    if transport is not None and isinstance(url, str) and url.startswith("grpc") != (transport == "grpc"):
        raise invalid("transport", f"{transport!r} does not fit the URL")
    if tensors is not None and not (
        isinstance(tensors, Mapping) and all(role in ROLES and isinstance(name, str) for role, name in tensors.items())
    ):
        raise invalid("tensors", f"want a mapping of {', '.join(ROLES)} to names of tensors")
