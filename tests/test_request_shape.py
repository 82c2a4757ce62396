"""What control calls ask for, seen from inside requests; and what every engine's request carries of its caller."""

import pytest
import responses

from grpc_triton import Triton
from worker_adapters import AuthenticationFailed, LlamaCppHttpAdapter, connect
from worker_adapters.simulate import (
    LlamaCppSimulator,
    OpenAISimulator,
    TgiSimulator,
    TritonSimulator,
    VllmSimulator,
)

pytestmark = pytest.mark.llamacpp
#: What a task's correlation_id is on the wire: a header says nothing but ASCII faithfully.
CORRELATIONS = [("req-7", "req-7"), ("a b", "a b"), ("été", None), (" x", None), (None, None)]
ENGINES = {
    "llamacpp": (LlamaCppSimulator, {}),
    "openai": (OpenAISimulator, {"model": "gpt-4o-mini"}),
    "tgi": (TgiSimulator, {}),
    "triton": (TritonSimulator, {"model": "recite"}),
    "vllm": (VllmSimulator, {}),
}
PROPS = {"build_info": "b4711-abc", "model_alias": "m", "total_slots": 2, "default_generation_settings": {"n_ctx": 7}}


@responses.activate
def test_health_asks_one_path_with_key_and_headers():
    """A health check is one GET of /health below the base path, with key and headers, following no redirect."""
    responses.get("http://engine:8081/base/health", json={"status": "ok"})
    adapter = LlamaCppHttpAdapter("http://engine:8081/base", api_key="k-123456", headers={"X-Team": "blue"})
    assert adapter.health().ready
    (call,) = responses.calls
    assert call.request.headers["Authorization"] == "Bearer k-123456"
    assert call.request.headers["X-Team"] == "blue"
    assert call.request.headers["Accept-Encoding"] == "identity"
    assert call.request.body is None


@responses.activate
def test_props_are_made_of_three_answers():
    """Props come from /props, /v1/models and /slots; what is not offered is left out."""
    responses.get("http://engine:8081/props", json=PROPS)
    responses.get("http://engine:8081/v1/models", json={"data": [{"id": "m", "meta": {"n_params": 5}}]})
    responses.get("http://engine:8081/slots", status=501, json={"error": {"type": "not_supported_error"}})
    props = LlamaCppHttpAdapter("http://engine:8081").props()
    assert (props.engine_version, props.model, props.context_size) == ("b4711-abc", "m", 7)
    assert (props.slots_total, props.slots_free) == (2, None)
    assert props.model_digest == "m/5-----"
    assert sorted(props.raw) == ["/props", "/v1/models"]


@responses.activate
def test_a_refused_key_is_typed():
    """401 of a control call is AuthenticationFailed, at once."""
    responses.get("http://engine:8081/props", status=401, json={"error": {"type": "authentication_error"}})
    with pytest.raises(AuthenticationFailed):
        LlamaCppHttpAdapter("http://engine:8081").engine_version()
    assert len(responses.calls) == 1


@pytest.mark.parametrize(("given", "sent"), CORRELATIONS)
@pytest.mark.parametrize("engine", [pytest.param(name, marks=getattr(pytest.mark, name)) for name in ENGINES])
def test_the_engine_is_told_what_a_job_belongs_to(engine, given, sent):
    """correlation_id is X-Correlation-Id of the job's one request; what a header cannot say stays here, and it runs."""
    simulator, options = ENGINES[engine]
    with simulator() as server, connect(engine, server.url, headers={"X-Correlation-Id": "all"}, **options) as adapter:
        assert adapter.submit("hi", max_tokens=2, correlation_id=given).result().text
        (request,) = [request for request in server.requests if request.method == "POST"]
    found = [value for name, value in request.headers if name.lower() == "x-correlation-id"]
    assert found == [sent or "all"]
    assert given is None or given not in request.body.decode()


@pytest.mark.triton
@pytest.mark.parametrize(("given", "sent"), CORRELATIONS)
def test_over_grpc_it_is_metadata(given, sent):
    """correlation_id is the call's metadata x-correlation-id, once, in the adapter's header's place."""
    options = {"model": "rs", "headers": {"X-Correlation-Id": "all"}}
    with Triton() as server, connect("triton", server.url, **options) as adapter:
        assert adapter.submit("hi", max_tokens=2, correlation_id=given).result().text
        (call,) = server.calls
    found = [value for name, value in call.context.invocation_metadata() if name == "x-correlation-id"]
    assert found == [sent or "all"]
