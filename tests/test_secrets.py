"""Canaries: a secret and a prompt, sent through all that can go wrong, appear nowhere a person or a log looks."""

import json
import logging
import pickle

import pytest

from worker_adapters import InvalidRequest, LlamaCppHttpAdapter, MockAdapter, WorkerError
from worker_adapters.simulate import Fault, LlamaCppSimulator

pytestmark = pytest.mark.llamacpp

SECRETS = {
    "key": "sk-CANARY-key-0123456789",
    "header": "CANARY-header-0123",
    "query": "CANARY-query-0123",
    "password": "CANARY-password-0123",
}
PROMPT = "CANARY-prompt: what is my mother's maiden name?"


def echoing(text):
    """A refusal whose message quotes what it was sent, as JSON parsers do."""
    return Fault.status(
        400, body=json.dumps({"error": {"message": f"parse error near '{text}'", "type": "x"}}).encode()
    )


FAULTS = [
    None,
    Fault.status(401),
    Fault.status(503),
    Fault.html(502),
    Fault.cut_after(1),
    Fault.garbage_after(1, f'data: {{"content": "{PROMPT}" oops\n\n'.encode()),
    Fault.error_after(1, message=f"failed on: {PROMPT} with {SECRETS['key']}"),
    echoing(PROMPT),
    echoing(PROMPT[7:30]),
    echoing(f"Authorization: Bearer {SECRETS['key']}"),
    echoing(f"?token={SECRETS['query']}"),
    echoing(SECRETS["header"]),
    echoing("user:" + SECRETS["password"]),
]


def shown(error):
    """Everything an error can show."""
    seen = [str(error), repr(error), json.dumps(error.to_dict()), repr(pickle.dumps(error)), repr(error.__dict__)]
    cause = error.__cause__ or error.__context__
    return seen + ([str(cause), repr(cause)] if cause else [])


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("chat", [False, True])
def test_nothing_shows_a_secret_or_a_prompt(fault, chat, caplog):
    """Key, header, query, password and prompt stay out of logs at DEBUG, errors, reprs and pickles."""
    caplog.set_level(logging.DEBUG)
    with LlamaCppSimulator(api_key=SECRETS["key"]) as server:
        url = server.url.replace("http://", f"http://user:{SECRETS['password']}@") + f"?token={SECRETS['query']}"
        with LlamaCppHttpAdapter(
            url,
            api_key=SECRETS["key"],
            headers={"X-Api-Token": SECRETS["header"]},
            retry={"attempts": 2, "base": 0.001},
        ) as adapter:
            if fault is not None:
                server.misbehave(fault, fault)
            task = [{"role": "user", "content": PROMPT}] if chat else PROMPT
            outputs = [repr(adapter), repr(adapter.__dict__)]
            stream = adapter.submit(task, max_tokens=3, stop=["CANARY-stop"], metadata={"who": "CANARY-meta"})
            outputs.append(repr(stream))
            try:
                outputs.append(repr(stream.result().metrics))
            except WorkerError as error:
                outputs += shown(error)
            outputs += [repr(adapter.health()), repr(adapter.props()), json.dumps(adapter.props().to_dict())]
            outputs += [record.getMessage() + repr(record.__dict__) for record in caplog.records]
    assert [text for text in outputs if "CANARY" in text] == []


def test_a_bad_request_does_not_quote_itself():
    """Validation names the field and never repeats its value."""
    for fields in ({"stop": "CANARY"}, {"tools": "CANARY"}, {"extra": {"CANARY": object()}}, {"grammar": 5}):
        with pytest.raises(InvalidRequest) as caught:
            MockAdapter().submit("CANARY", **fields, max_tokens=0)
        assert not [text for text in shown(caught.value) if "CANARY" in text]
