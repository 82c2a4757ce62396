"""What servers of the OpenAI dialect do differently, server by server: each is tolerated, or the right typed error."""

from __future__ import annotations

import pytest

from dialect import HI, ROLE, STOP, Case, error, of_delta, piece, play, usage
from replay import streamed, told, written
from verdicts import Bad, Good
from worker_adapters.errors import (
    AuthenticationFailed,
    CapacityExceeded,
    ContextOverflow,
    EngineUnavailable,
    InvalidRequest,
    ModelNotFound,
    StreamTruncated,
    WorkerTimeout,
)
from worker_adapters.frames import ToolCall

pytestmark = pytest.mark.openai

AZURE: dict[str, Case] = {
    "filter results before, between and after": (
        streamed(
            {"id": "", "object": "", "created": 0, "model": "", "choices": [], "prompt_filter_results": []},
            ROLE,
            piece("Hi"),
            {"id": "", "choices": [{"index": 0, "finish_reason": None, "content_filter_offsets": {"check_offset": 9}}]},
            STOP,
            {"id": "", "choices": [{"index": 0, "finish_reason": None, "content_filter_offsets": {"check_offset": 9}}]},
        ),
        HI,
    ),
    "a filtered answer": (streamed(ROLE, piece("Hi"), of_delta({}, "content_filter")), Good("Hi", "content_filter")),
    "the gateway's rate limit": (
        told(429, {"statusCode": 429, "message": "Rate limit is exceeded. Try again in 7 seconds."}, "Retry-After: 7"),
        Bad(CapacityExceeded, 429, retriable=True, further={"retry_after_ms": 7000}, words="Rate limit is exceeded"),
    ),
    "a rate limit without a type": (
        told(429, error(code="429", message="Requests have exceeded the limit.")),
        Bad(CapacityExceeded, 429, retriable=True, words="exceeded the limit"),
    ),
    "an unknown deployment": (
        told(404, error(code="DeploymentNotFound", message="The API deployment does not exist."), "apim-request-id: r"),
        Bad(ModelNotFound, 404, further={"request_id": "r"}, words="The API deployment does not exist"),
    ),
    "a wrong key": (
        told(401, error(code="401", message="Access denied due to invalid subscription key.")),
        Bad(AuthenticationFailed, 401, words="Access denied"),
    ),
}

LLAMA_CPP_PYTHON: dict[str, Case] = {
    "interrupted by another request": (streamed(ROLE, piece("Hi")), Bad(StreamTruncated, pieces="Hi")),
    "pings between tokens": (
        streamed(": ping - 2026-11-22 18:57:45.123456+00:00", ROLE, ": ping - 2026", piece("Hi"), ": ping", STOP),
        HI,
    ),
    "no key": (told(401, {"detail": "Invalid API key"}), Bad(AuthenticationFailed, 401, words="Invalid API key")),
    "a body it cannot read": (
        told(422, {"detail": [{"type": "missing", "loc": ["body", "messages"], "msg": "Field required"}]}),
        Bad(InvalidRequest, 422, further={"field": "messages"}, words="Field required"),
    ),
    "its own fault": (
        told(500, error(message="list index out of range", type="internal_server_error", param=None, code=None)),
        Bad(EngineUnavailable, 500, words="list index out of range"),
    ),
    "too long": (
        told(
            400,
            error(
                message="This model's maximum context length is 512 tokens, however you requested 600 tokens",
                type="invalid_request_error",
                param="messages",
                code="context_length_exceeded",
            ),
        ),
        Bad(ContextOverflow, 400, further={"context_size": 512, "field": "messages"}),
    ),
    "an unknown model": (
        told(400, error(message="no such model", type="invalid_request_error", param=None, code="model_not_found")),
        Bad(ModelNotFound, 400, words="no such model"),
    ),
}

LLAMA_CPP: dict[str, Case] = {
    "two events in one chunk of HTTP": (
        written(
            200,
            b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":null}}]}\n\n'
            b'data: {"choices":[{"index":0,"delta":{"content":"Hi"}}]}\n\n'
            b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"timings":{"predicted_n":1}}\n\n',
            content_type="text/event-stream",
        ),
        HI,
    ),
    "too long": (
        told(400, error(code=400, message="too big", type="exceed_context_size_error", n_prompt_tokens=600, n_ctx=512)),
        Bad(ContextOverflow, 400, further={"prompt_tokens": 600, "context_size": 512}),
    ),
    "loading": (
        told(503, error(code=503, message="Loading model", type="unavailable_error")),
        Bad(EngineUnavailable, 503, retriable=True, words="Loading model"),
    ),
}

OLD_ERROR = {"object": "error", "message": "broken", "type": "InternalServerError", "param": None, "code": 500}
VLLM: dict[str, Case] = {
    "reasoning": (streamed(ROLE, of_delta({"reasoning": "hm"}), piece("Hi"), STOP), Good("Hi", "stop", reasoning="hm")),
    "reasoning under both names (0.12 to 0.15)": (
        streamed(ROLE, of_delta({"reasoning": "hm", "reasoning_content": "hm"}), piece("Hi"), STOP),
        Good("Hi", "stop", reasoning="hm"),
    ),
    "usage null on every chunk (old)": (streamed(piece("Hi", usage=None), of_delta({}, "stop", usage=None)), HI),
    "an error of one shot, flat (before 0.10.1)": (told(500, OLD_ERROR), Bad(EngineUnavailable, 500, words="broken")),
    "an error in the stream, flat": (
        streamed(ROLE, piece("Hi"), OLD_ERROR),
        Bad(EngineUnavailable, 500, pieces="Hi", words="broken"),
    ),
    "repetition": (streamed(piece("Hi"), of_delta({}, "repetition")), Good("Hi", "stop", raw="repetition")),
    "abort": (streamed(piece("Hi"), of_delta({"content": " you"}, "abort")), Bad(StreamTruncated, pieces="Hi| you")),
    "an abort before any token": (streamed(of_delta({"content": ""}, "abort")), Bad(StreamTruncated)),
    "too long, in the old words": (
        told(
            400,
            {
                "object": "error",
                "message": "This model's maximum context length is 512 tokens. However, you requested 600 tokens",
                "type": "BadRequestError",
                "param": None,
                "code": 400,
            },
        ),
        Bad(ContextOverflow, 400, further={"context_size": 512}),
    ),
    "no HTTP it knows": (
        written(400, b"Invalid HTTP request received.", content_type="text/plain; charset=utf-8"),
        Bad(InvalidRequest, 400),
    ),
}

CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
OTHER = {"id": "call_2", "type": "function", "function": {"name": "g", "arguments": "{}"}}
F, G = ToolCall("call_1", "f", '{"a":1}'), ToolCall("call_2", "g", "{}")
OLLAMA: dict[str, Case] = {
    "an unknown model": (
        told(404, error(message='model "x" not found, try pulling it first', type="not_found_error", code=None)),
        Bad(ModelNotFound, 404, words="try pulling it first"),
    ),
    "a bad request": (
        told(400, error(message="invalid temperature", type="invalid_request_error", param=None, code=None)),
        Bad(InvalidRequest, 400, further={"field": None}, words="invalid temperature"),
    ),
    "an empty prompt only loads": (streamed(of_delta({"content": ""}, "load")), Good("", "stop", raw="load")),
    "whole calls, with an index": (
        streamed(of_delta({"content": "", "tool_calls": [{**CALL, "index": 0}, {**OTHER, "index": 1}]}, "tool_calls")),
        Good("", "tool_calls", calls=(F, G)),
    ),
    "whole calls, without an index (old)": (
        streamed(of_delta({"tool_calls": [CALL]}), of_delta({"tool_calls": [OTHER]}), of_delta({}, "tool_calls")),
        Good("", "tool_calls", calls=(F, G)),
    ),
    "two calls in a chunk, without an index or an id": (
        streamed(of_delta({"tool_calls": [{**CALL, "id": ""}, {**OTHER, "id": ""}]}), of_delta({}, "tool_calls")),
        Good("", "tool_calls", calls=(ToolCall("call_0", "f", '{"a":1}'), ToolCall("call_1", "g", "{}"))),
    ),
    "reasoning": (
        streamed(of_delta({"reasoning": "hm", "content": ""}), piece("Hi"), STOP),
        Good("Hi", "stop", reasoning="hm"),
    ),
}

LM_STUDIO: dict[str, Case] = {
    "no model": (
        told(400, {"error": "No models loaded. Please load a model."}),
        Bad(ModelNotFound, 400, words="No models"),
    ),
    "an error in the stream": (
        streamed('event: error\ndata: {"error":{"message":"Model crashed"},"message":"Model crashed"}', done=False),
        Bad(EngineUnavailable, words="Model crashed"),
    ),
    "an error in words after a token": (
        streamed(piece("Hi"), {"error": "Model unloaded"}, done=False),
        Bad(EngineUnavailable, pieces="Hi", words="Model unloaded"),
    ),
    "no token at all": (streamed(STOP), Good("", "stop")),  # a prompt over the context cannot be told from that
}

TRITON: dict[str, Case] = {
    "an unknown model": (
        told(400, {"detail": "Unknown model: m"}),
        Bad(ModelNotFound, 400, words="Unknown model: m"),
    ),
    "a field that it does not take": (
        told(400, {"detail": "logit bias is not currently supported"}),
        Bad(InvalidRequest, 400, words="logit bias"),
    ),
    "no engine": (
        told(500, {"detail": "No attached inference engine"}),
        Bad(EngineUnavailable, 500, words="No attached inference engine"),
    ),
    "a chat": (streamed(ROLE, piece("Hi"), STOP, {"choices": [], "usage": usage(9, 2)}), Good("Hi", "stop", (9, 2))),
}

SGLANG: dict[str, Case] = {
    "an error of one shot, flat": (
        told(
            400, {"object": "error", "message": "bad top_p", "type": "BadRequestError", "param": "top_p", "code": 400}
        ),
        Bad(InvalidRequest, 400, further={"field": "top_p"}, words="bad top_p"),
    ),
    "an error in the stream, nested": (
        streamed(error(object="error", message="too many", type="x", param=None, code=429)),
        Bad(CapacityExceeded, 429, retriable=True, words="too many"),
    ),
    "abort": (streamed(piece("Hi"), of_delta({}, "abort")), Bad(StreamTruncated, pieces="Hi")),
    "extensions": (
        streamed(
            'event: sglext_ids\ndata: {"rid": "r"}',
            piece("Hi"),
            {"choices": [], "sglext": {"routed_experts": None}},
            {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "matched_stop": 2}]},
        ),
        HI,
    ),
    "reasoning": (
        streamed(of_delta({"content": None, "reasoning_content": "hm"}), piece("Hi"), STOP),
        Good("Hi", "stop", reasoning="hm"),
    ),
}

TENSORRT_LLM: dict[str, Case] = {
    "a validation in words": (told(400, {"error": "top_k: too small"}), Bad(InvalidRequest, 400, words="too small")),
    "an error, flat": (
        told(500, {"object": "error", "message": "died", "type": "InternalError", "param": None, "code": 500}),
        Bad(EngineUnavailable, 500, words="died"),
    ),
}

LOCALAI: dict[str, Case] = {
    "an error in the stream": (
        streamed(ROLE, piece("Hi"), error(code=500, message="rpc error", type="")),
        Bad(EngineUnavailable, 500, pieces="Hi", words="rpc error"),
    ),
    "loading": (
        told(503, error(code="model_loading", message="loading", type="model_loading", loading={}), "Retry-After: 5"),
        Bad(EngineUnavailable, 503, retriable=True, further={"retry_after_ms": 5000}, words="loading"),
    ),
    "opaque: no body": (written(500, b""), Bad(EngineUnavailable, 500)),
    "opaque: no body, no key": (written(401, b""), Bad(AuthenticationFailed, 401)),
    "choices left out, the role again": (
        streamed({"object": "chat.completion.chunk"}, ROLE, of_delta({"role": "assistant"}), piece("Hi"), STOP), HI
    ),
}  # fmt: skip

LITELLM: dict[str, Case] = {
    "usage after the end, in a chunk with a choice": (
        streamed(
            {"choices": [{"index": 0, "delta": {"content": "Hi"}}]},
            {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
            {"choices": [{"index": 0, "delta": {}}], "usage": usage(3, 1)},
        ),
        Good("Hi", "stop", (3, 1)),
    ),
    "too long": (
        told(400, error(message="litellm.ContextWindowExceededError: no", type=None, param=None, code="400")),
        Bad(ContextOverflow, 400),
    ),
    "a key without a database": (
        told(400, error(message="No connected db.", type="no_db_connection", param=None, code="400")),
        Bad(AuthenticationFailed, 400, words="No connected db"),
    ),
    "pings": (streamed(": ping", {"type": "ping"}, 'event: ping\ndata: {"type":"ping"}', piece("Hi"), STOP), HI),
}

OPENROUTER: dict[str, Case] = {
    "comments": (streamed(": OPENROUTER PROCESSING", ": OPENROUTER PROCESSING", piece("Hi"), STOP), HI),
    "no credits": (
        told(402, error(code=402, message="Insufficient credits")),
        Bad(CapacityExceeded, 402, words="Insufficient credits"),
    ),
    "moderation": (
        told(403, error(code=403, message="flagged", metadata={"reasons": ["x"], "flagged_input": "…"})),
        Bad(AuthenticationFailed, 403, words="flagged"),
    ),
    "an error with status 200": (
        told(200, error(code=429, message="Rate limited", metadata={"provider_name": "P", "raw": "…"})),
        Bad(CapacityExceeded, 429, retriable=True, words="Rate limited"),
    ),
    "an error before any token, choices empty": (
        streamed(": OPENROUTER PROCESSING", {"error": {"code": 502, "message": "down"}, "choices": []}, done=False),
        Bad(EngineUnavailable, 502, words="down"),
    ),
    "a rate limit before any token": (
        streamed({"error": {"code": 429, "message": "slow down"}, "choices": []}, done=False),
        Bad(CapacityExceeded, 429, retriable=True, words="slow down"),
    ),
    "a rate limit after a token": (
        streamed(piece("Hi"), {"error": {"code": 429, "message": "slow down"}, "choices": []}, done=False),
        Bad(CapacityExceeded, 429, pieces="Hi", words="slow down"),
    ),
    "reasoning twice": (
        streamed(
            of_delta({"reasoning": "hm", "reasoning_details": [{"type": "reasoning.text", "text": "hm"}]}),
            piece("Hi"),
            STOP,
        ),
        Good("Hi", "stop", reasoning="hm"),
    ),
}

HF_ROUTER: dict[str, Case] = {
    "no credits": (
        told(402, {"error": "You have exceeded your monthly included credits"}),
        Bad(CapacityExceeded, 402, words="monthly included credits"),
    ),
    "loading": (
        told(503, {"error": "Model x is currently loading", "estimated_time": 20.0}),
        Bad(EngineUnavailable, 503, retriable=True, words="currently loading"),
    ),
    "its own time-out": (told(504, {"error": "upstream"}), Bad(WorkerTimeout, 504, further={"clock": "engine"})),
}

MISTRAL: dict[str, Case] = {
    "the gateway's 401": (told(401, {"message": "Unauthorized"}), Bad(AuthenticationFailed, 401, words="Unauthorized")),
    "the gateway's 429": (
        told(429, {"message": "API rate limit exceeded"}),
        Bad(CapacityExceeded, 429, retriable=True, words="API rate limit exceeded"),
    ),
    "a parameter it does not know": (
        told(
            422, {"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs", "input": 7}]}
        ),
        Bad(InvalidRequest, 422, further={"field": "seed"}, words="Extra inputs"),
    ),
    "content in parts": (
        streamed(
            piece([{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]),
            piece([{"type": "text", "text": "Hi"}]),
            STOP,
        ),
        Good("Hi", "stop", reasoning="hm"),
    ),
    "the window is full": (
        streamed(piece("Hi"), of_delta({}, "model_length")),
        Good("Hi", "length", raw="model_length"),
    ),
    "finish error": (streamed(piece("Hi"), of_delta({}, "error")), Bad(EngineUnavailable, pieces="Hi")),
    "a whole call, without an index": (
        streamed(of_delta({"content": "", "tool_calls": [CALL]}, "tool_calls")),
        Good("", "tool_calls", calls=(F,)),
    ),
}

GROQ: dict[str, Case] = {
    "usage on the finish chunk": (
        streamed(piece("Hi"), of_delta({}, "stop", x_groq={"id": "r", "usage": {**usage(18, 1), "total_time": 0.01}})),
        Good("Hi", "stop", (18, 1)),
    ),
    "flex capacity": (
        told(498, error(message="over capacity", type="capacity", code=None)),
        Bad(CapacityExceeded, 498, retriable=True, words="over capacity"),
    ),
    "an error event": (
        streamed(piece("Hi"), 'event: error\ndata: {"error":{"message":"broke","type":"server_error"}}', done=False),
        Bad(EngineUnavailable, pieces="Hi", words="broke"),
    ),
}

TGI: dict[str, Case] = {
    "the role on every chunk, no [DONE]": (
        streamed(
            of_delta({"role": "assistant", "content": "Hi"}, ""),
            of_delta({"role": "assistant", "content": ""}, "eos_token"),
            done=False,
        ),
        Good("Hi", "stop", raw="eos_token"),
    ),
    "a stop sequence": (
        streamed(piece("Hi"), piece(" END", "stop_sequence")),
        Good("Hi| END", "stop", raw="stop_sequence"),
    ),
    "an empty reason is none": (streamed(of_delta({"content": "Hi"}, "")), Bad(StreamTruncated, pieces="Hi")),
    "an error in the stream": (
        streamed(error(message="Input validation error", http_status_code=422)),
        Bad(InvalidRequest, 422, words="Input validation error"),
    ),
    "overloaded": (
        told(429, {"error": "Model is overloaded", "error_type": "overloaded"}),
        Bad(CapacityExceeded, 429, retriable=True, words="Model is overloaded"),
    ),
    "a call's id on every piece, comments": (
        streamed(
            ":",
            of_delta({"tool_calls": [{"index": 0, "id": "0", "function": {"name": "f", "arguments": '{"a"'}}]}),
            ":",
            of_delta({"tool_calls": [{"index": 0, "id": "0", "function": {"name": "", "arguments": ":1}"}}]}),
            of_delta({}, "tool_calls"),
        ),
        Good("", "tool_calls", calls=(ToolCall("0", "f", '{"a":1}'),)),
    ),
}


@pytest.mark.parametrize("case", AZURE)
def test_azure_filters_and_gateway(case: str) -> None:
    """Azure's filter results are no content, and its gateway's errors lack a type."""
    play(AZURE[case])


@pytest.mark.parametrize("case", LLAMA_CPP_PYTHON)
def test_llama_cpp_python_interrupts_and_details(case: str) -> None:
    """llama-cpp-python ends an interrupted stream with [DONE], pings by comments, and writes errors as details."""
    play(LLAMA_CPP_PYTHON[case])


@pytest.mark.parametrize("case", LLAMA_CPP)
def test_llama_cpp_server_is_read_too(case: str) -> None:
    """llama.cpp's /v1 gives null content first, timings at the end, and both sizes of an overflow."""
    play(LLAMA_CPP[case])


@pytest.mark.parametrize("case", VLLM)
def test_vllm_of_all_ages(case: str) -> None:
    """vLLM's reasoning has had two names, its errors two shapes; repetition is a stop and abort is none."""
    play(VLLM[case])


@pytest.mark.parametrize("case", OLLAMA)
def test_ollama_calls_and_loads(case: str) -> None:
    """Ollama sends whole tool calls, of old without an index, and passes its own reasons on."""
    play(OLLAMA[case])


@pytest.mark.parametrize("case", LM_STUDIO)
def test_lm_studio_errors_are_words(case: str) -> None:
    """LM Studio's errors are words or named events."""
    play(LM_STUDIO[case])


@pytest.mark.parametrize("case", TRITON)
def test_tritons_own_frontend_words(case: str) -> None:
    """Everything is FastAPI's ``detail``, read in its source (2.71)."""
    play(TRITON[case])


@pytest.mark.parametrize("case", SGLANG)
def test_sglang_errors_and_extensions(case: str) -> None:
    """SGLang's errors are flat or nested, and its extensions are not content."""
    play(SGLANG[case])


@pytest.mark.parametrize("case", TENSORRT_LLM)
def test_tensorrt_llm_errors(case: str) -> None:
    """TensorRT-LLM's errors are flat, or words."""
    play(TENSORRT_LLM[case])


@pytest.mark.parametrize("case", LOCALAI)
def test_localai_loads_and_hides(case: str) -> None:
    """LocalAI loads with 503, can hide its errors' bodies, and leaves out choices."""
    play(LOCALAI[case])


@pytest.mark.parametrize("case", LITELLM)
def test_litellm_words_and_pings(case: str) -> None:
    """LiteLLM leaves keys out, words errors anew, and can ping."""
    play(LITELLM[case])


@pytest.mark.parametrize("case", OPENROUTER)
def test_openrouter_errors_anywhere(case: str) -> None:
    """OpenRouter's errors come with 200 too, before or after tokens, with or without choices."""
    play(OPENROUTER[case])


@pytest.mark.parametrize("case", HF_ROUTER)
def test_hf_router_words(case: str) -> None:
    """The Hugging Face router says in words that credits are used up or a model loads."""
    play(HF_ROUTER[case])


@pytest.mark.parametrize("case", MISTRAL)
def test_mistral_parts_and_details(case: str) -> None:
    """Mistral's content may be parts, its calls come whole, and its window has a reason of its own."""
    play(MISTRAL[case])


@pytest.mark.parametrize("case", GROQ)
def test_groq_usage_and_capacity(case: str) -> None:
    """Groq tells usage unasked in x_groq, and has a status of its own for capacity."""
    play(GROQ[case])


@pytest.mark.parametrize("case", TGI)
def test_tgi_reasons_and_roles(case: str) -> None:
    """TGI's /v1 has reasons of its own, an empty one while it runs, and may lack [DONE]."""
    play(TGI[case])
