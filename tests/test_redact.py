"""What a message may show: no secret, nothing shaped like one, no quotation of a prompt, one line."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker_adapters.transport.redact import MASK, QUOTED, SHOWN, clean


def test_known_secrets_are_masked_wherever_they_stand() -> None:
    """Every occurrence of a secret is replaced, also inside a word."""
    assert clean("key hunter2, again:hunter2x", ["hunter2"]) == f"key {MASK}, again:{MASK}x"
    assert clean("nothing", ["", "hunter2"]) == "nothing"


SHAPED = [
    ("sk-proj-abcdefghij0123456789", "OpenAI"),
    ("hf_abcdefghijklmnopqrstuvwx", "Hugging Face"),
    ("gsk_abcdefghijklmnopqrst", "Groq"),
    ("xai-abcdefghijklmnopqrst", "xAI"),
    ("nvapi-abcdefghijklmnopqrst", "NVIDIA"),
    ("ghp_abcdefghijklmnopqrstuvwxyz0123456789", "GitHub"),
    ("github_pat_11ABCDEFG0abcdefghij", "GitHub, fine-grained"),
    ("glpat-abcdefghijklmnopqrst", "GitLab"),
    ("AKIAIOSFODNN7EXAMPLE", "AWS"),
    ("AIzaSyA-abcdefghijklmnopqrstuvwxyz12345", "Google"),
    ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl", "JWT"),
]


@pytest.mark.parametrize("secret", [key for key, _ in SHAPED], ids=[issuer for _, issuer in SHAPED])
def test_keys_are_known_by_their_shape(secret: str) -> None:
    """A key of a known issuer is masked wherever it stands, whoever quotes it."""
    for text in (secret, f"Incorrect API key provided: {secret}.", f'{{"key":"{secret}"}}', f"a/{secret}/b"):
        assert secret not in clean(text)
        assert MASK in clean(text)


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Bearer opensesame",
        "authorization: bearer opensesame",
        "Authorization: Basic opensesame",
        "Authorization: Token opensesame",
        "Authorization: Digest opensesame",
        "Proxy-Authorization: Negotiate opensesame",
        '{"Authorization": "Bearer opensesame"}',
        '{"authorization":"opensesame"}',
        "got Bearer   opensesame, sorry",
        "X-Api-Key: opensesame",
        "x-api-key=opensesame",
        "api_key=opensesame&x=1",
        "APIKEY = opensesame",
        "'api-key': 'opensesame'",
        "access_token=opensesame",
        "HF_TOKEN=opensesame",
        "client_secret: opensesame",
        "password=opensesame;",
        "DB_PASSWORD: opensesame",
        "https://h/x?token=opensesame&y=1",
        "https://h/x?X-Amz-Signature=opensesame",
        "http://user:opensesame@host/path",
        "http://opensesame@host",
        "http://user:pass@opensesame@host/path",
        "postgresql+psycopg://u:opensesame@h/db",
    ],
)
def test_what_is_introduced_as_a_secret_is_masked(text: str) -> None:
    """Headers, JSON keys, query parameters, variables and what stands before the @ of a URL are masked."""
    cleaned = clean(text)
    assert "opensesame" not in cleaned
    assert MASK in cleaned


@pytest.mark.parametrize(
    "text",
    [
        "request (3604 tokens) exceeds the available context size (512 tokens), try increasing it",
        "Field 'temperature': [json.exception.type_error.302] type must be number, but is string",
        "model 'llama-3.1-8b-instruct' not found",
        "cannot connect to http://127.0.0.1:8081: nothing listens there (Connection refused)",
        "[json.exception.parse_error.101] parse error at line 1, column 34: syntax error",
    ],
)
def test_ordinary_messages_stay_as_they_are(text: str) -> None:
    """What engines say about sizes, fields and models is not mistaken for a secret."""
    assert clean(text) == text


# --- prompts

PROMPT = "the quick brown fox jumps over the lazy dog"


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        (f"bad prompt: {PROMPT}!", "bad prompt: [...]!"),
        ("near 'quick brown' here", "near '[...]' here"),
        ("near 'quick' here", "near 'quick' here"),
        ("quick brown and lazy dog", "[...]and[...]"),
        ("nothing of it", "nothing of it"),
        ("", ""),
    ],
)
def test_quotations_of_a_prompt_are_left_out(text: str, cleaned: str) -> None:
    """Every run of eight or more characters of the prompt is replaced, shorter ones are no quotation."""
    assert clean(text, prompts=[PROMPT]) == cleaned


@pytest.mark.parametrize(
    ("prompt", "cleaned"), [("lazy", "a [...] dog"), ("lazy dog", "a [...]"), ("dog", "a lazy dog"), ("", "a lazy dog")]
)
def test_a_short_prompt_is_replaced_whole(prompt: str, cleaned: str) -> None:
    """A prompt of four to seven characters is replaced where all of it stands; a shorter one is a common word."""
    assert clean("a lazy dog", prompts=[prompt]) == cleaned


def test_every_prompt_is_left_out() -> None:
    """All texts of a task count."""
    assert clean("first text, second text", prompts=["first text", "second text"]) == "[...], [...]"


def test_runs_that_overlap_leave_nothing_between_them() -> None:
    """Where two parts of a prompt overlap in a message, the whole of both is left out."""
    assert clean("x abcdefghij x", prompts=["abcdefgh+cdefghij"]) == "x [...] x"


@given(text=st.text("abc ", max_size=60), prompt=st.text("abc ", min_size=QUOTED, max_size=60))
def test_no_run_of_a_prompt_is_ever_shown(text: str, prompt: str) -> None:
    """Whatever text and prompt, no eight characters in a row of the prompt stand in the result."""
    cleaned = clean(text, prompts=[prompt])
    assert not any(prompt[at : at + QUOTED] in cleaned for at in range(len(prompt) - QUOTED + 1))


@pytest.mark.parametrize("size", [150, 4 * SHOWN])
def test_a_long_prompt_costs_no_second(size: int) -> None:
    """An error that meets a prompt of a million characters is made at once, however much of it it quotes."""
    prompt = "a" * 1_000_000
    text = (("a" * 7 + "b") * size)[:size]
    began = time.process_time()
    clean(text, prompts=[prompt])
    clean(prompt[:size], prompts=[prompt])
    assert time.process_time() - began < 2.0


# --- one short line


def test_control_characters_become_spaces() -> None:
    """A message is one line: no engine adds a line to a log or moves a terminal's cursor."""
    assert clean("a\r\nb\tc\0d\x1b[31me\x85f\u2028g\n") == "a b c d [31me f g"


def test_a_long_text_is_cut() -> None:
    """At most 500 characters are shown, and dots say that there was more."""
    assert clean("word " * 1000) == ("word " * 100) + "..."
    assert clean("x" * SHOWN) == "x" * SHOWN


@pytest.mark.parametrize("offset", range(1, 40, 3))
def test_no_part_of_a_secret_survives_a_cut(offset: int) -> None:
    """A secret that lies across the place where a text is cut leaves no piece of itself."""
    secret = "0123456789-hunter2-secret-abcdef"
    for shown in (SHOWN, 4 * SHOWN):
        text = ("some prompt text " * 200)[: shown - offset] + secret + " tail" * 400
        assert secret[:6] not in clean(text, [secret])
        assert secret[:6] not in clean(text, [secret], ["some prompt text some prompt text"])
        key = "sk-" + "0123456789" * 4
        text = ("some prompt text " * 200)[: shown - offset] + " " + key + " tail" * 400
        assert "01234567" not in clean(text, prompts=["some prompt text some prompt text"])


def test_a_huge_text_is_cleaned_in_linear_time() -> None:
    """An error body of megabytes costs no more than looking at it."""
    for text in ("a" * 5_000_000, "token=" * 500_000, "a-" * 2_000_000, "://" * 1_000_000, " " * 3_000_000):
        began = time.process_time()
        assert len(clean(text, ["secret"])) <= SHOWN + 3
        assert time.process_time() - began < 2.0


@given(text=st.text(max_size=200), secret=st.text(min_size=4, max_size=10))
def test_whatever_the_text_the_result_is_one_short_line(text: str, secret: str) -> None:
    """No text breaks the cleaning, and no secret that is not part of the mask itself remains."""
    cleaned = clean(text + secret + text, [secret])
    assert len(cleaned.splitlines()) <= 1
    assert len(cleaned) <= SHOWN + 3
    assert secret not in clean(f"x {secret} y", [secret]) or secret in f"x {MASK} y"
