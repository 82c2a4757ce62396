"""Asks a Triton with its own HTTP client and prints what it got, as JSON; run as a process of its own: the client loads
gevent. Arguments: the address, and one that nobody listens at."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from tritonclient import http
from tritonclient.utils import InferenceServerException


def refused(call: Callable[..., Any], *arguments: Any) -> list[str]:
    """The status and the message of what a call raises."""
    try:
        call(*arguments)
    except InferenceServerException as error:
        return [error.status(), error.message()]
    return ["", "nothing was raised"]


def tensor(name: str, datatype: str, value: Any, binary: bool) -> Any:
    """One input of one element."""
    kinds = {"BYTES": np.object_, "INT32": np.int32, "FP32": np.float32, "BOOL": np.bool_}
    made = http.InferInput(name, [1], datatype)
    made.set_data_from_numpy(np.array([value], dtype=kinds[datatype]), binary_data=binary)
    return made


def inputs(binary: bool) -> list[Any]:
    """The four types that LLMs take."""
    return [
        tensor("text_input", "BYTES", "gr\u00fc\u00df dich".encode(), binary),
        tensor("max_tokens", "INT32", 5, binary),
        tensor("temperature", "FP32", 0.5, binary),
        tensor("flag", "BOOL", True, binary),
    ]


def inferred(client: Any, **options: Any) -> list[Any]:
    """The outputs of one inference."""
    result = client.infer("one", **options)
    text, number = result.as_numpy("text_output"), result.as_numpy("logp")
    texts = [each.decode() if isinstance(each, bytes) else each for each in text.tolist()] if text is not None else None
    return [texts, number.tolist(), result.get_response()["outputs"][-1]["shape"]]


def in_threads(url: str) -> list[str]:
    """A client for each of four threads, five inferences each."""
    said: list[str] = []

    def work(number: int) -> None:
        with http.InferenceServerClient(url) as mine:
            for turn in range(5):
                prompt = tensor("text_input", "BYTES", f"{number}-{turn}".encode(), binary=True)
                limit = tensor("max_tokens", "INT32", 1, binary=True)
                said.append(mine.infer("one", [prompt, limit]).as_numpy("text_output")[0].decode())

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(said)


def ask(url: str, nowhere: str) -> dict[str, Any]:
    """Everything that an adapter could ask."""
    told: dict[str, Any] = {}
    with http.InferenceServerClient(url) as client:
        told["live"], told["ready"] = client.is_server_live(), client.is_server_ready()
        told["models"] = {name: client.is_model_ready(name) for name in ("one", "nope", "slow_load")}
        told["server"] = client.get_server_metadata()
        told["metadata"] = client.get_model_metadata("one", "1")
        told["config"] = client.get_model_config("recite")
        told["index"] = client.get_model_repository_index()
        told["logging"], told["trace"] = client.get_log_settings(), client.get_trace_settings()
        told["shared memory"] = client.get_system_shared_memory_status()
        told["binary"] = inferred(client, inputs=inputs(binary=True))
        told["json"] = inferred(client, inputs=inputs(binary=False), request_id="r1")
        one = http.InferRequestedOutput("logp", binary_data=False)
        told["one output"] = inferred(client, inputs=inputs(binary=True), outputs=[one])
        told["zipped"] = inferred(client, inputs=inputs(binary=True), response_compression_algorithm="gzip")
        told["statistics"] = client.get_inference_statistics("one")
        told["unknown"] = refused(client.get_model_config, "nope")
        told["unknown infer"] = refused(client.infer, "nope", inputs(binary=True))
        told["decoupled"] = refused(client.infer, "recite", inputs(binary=True)[:2])
        told["missing"] = refused(client.infer, "one", [])
        told["load"] = [client.load_model("slow_load"), client.is_model_ready("slow_load")]
        told["unload"] = [client.unload_model("slow_load"), client.is_model_ready("slow_load")]
        told["broken"] = refused(client.load_model, "bad_load")
        told["not ready"] = client.is_server_ready()
    told["threads"] = in_threads(url)
    with http.InferenceServerClient(nowhere) as client:
        try:
            client.is_server_live()
        except ConnectionRefusedError as error:
            told["nowhere"] = type(error).__name__
    return told


if __name__ == "__main__":
    print(json.dumps(ask(sys.argv[1], sys.argv[2])))
