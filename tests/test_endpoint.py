"""Where an engine is and how to be let in, and that nobody else learns it."""

from __future__ import annotations

import base64
import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker_adapters.errors import InvalidRequest
from worker_adapters.transport.endpoint import Endpoint
from worker_adapters.transport.reader import encode_request

SECRET = "hunter2-opensesame"


def pickled(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


def refused(make: Callable[[], object], field: str) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        make()
    assert caught.value.field == field
    assert SECRET not in str(caught.value) + repr(caught.value)
    return caught.value


def sent(endpoint: Endpoint) -> dict[str, str]:
    """The headers of a request, by lower-case name."""
    return {name.lower(): value for name, value in endpoint.headers()}


# --- URLs

# URL -> (host, port, authority, target of /x, shown)
URLS = [
    ("http://h", ("h", 80, "h", "/x", "http://h")),
    ("http://h/", ("h", 80, "h", "/x", "http://h")),
    ("http://h:80", ("h", 80, "h", "/x", "http://h")),
    ("http://h:8081", ("h", 8081, "h:8081", "/x", "http://h:8081")),
    ("https://h", ("h", 443, "h", "/x", "https://h")),
    ("https://h:443/", ("h", 443, "h", "/x", "https://h")),
    ("https://h:80", ("h", 80, "h:80", "/x", "https://h:80")),
    ("HTTP://Host.EXAMPLE:1", ("host.example", 1, "host.example:1", "/x", "http://host.example:1")),
    ("http://h/base", ("h", 80, "h", "/base/x", "http://h/base")),
    ("http://h/base/", ("h", 80, "h", "/base/x", "http://h/base")),
    ("http://h/a/b//", ("h", 80, "h", "/a/b/x", "http://h/a/b")),
    ("http://h/a b", ("h", 80, "h", "/a%20b/x", "http://h/a%20b")),
    ("http://h/a%2Fb", ("h", 80, "h", "/a%2Fb/x", "http://h/a%2Fb")),
    ("http://h?tenant=a", ("h", 80, "h", "/x?tenant=a", "http://h")),
    ("http://h/base?tenant=a&b", ("h", 80, "h", "/base/x?tenant=a&b", "http://h/base")),
    ("http://h/base#part", ("h", 80, "h", "/base/x", "http://h/base")),
    ("http://127.0.0.1:5", ("127.0.0.1", 5, "127.0.0.1:5", "/x", "http://127.0.0.1:5")),
    ("http://[::1]", ("::1", 80, "[::1]", "/x", "http://[::1]")),
    ("http://[::1]:5/b", ("::1", 5, "[::1]:5", "/b/x", "http://[::1]:5/b")),
    ("http://u:p@h:5", ("h", 5, "h:5", "/x", "http://h:5")),
    ("unix:///run/engine.sock", ("localhost", 0, "localhost", "/x", "unix:///run/engine.sock")),
    ("unix:///run/my engine%.sock", ("localhost", 0, "localhost", "/x", "unix:///run/my engine%.sock")),
]


@pytest.mark.parametrize(("url", "expected"), URLS, ids=[url for url, _ in URLS])
def test_a_url_says_where_to_connect_and_what_to_ask(url: str, expected: tuple[Any, ...]) -> None:
    """Host, port, authority and target follow from the URL; path and query are kept for every request."""
    endpoint = Endpoint(url)
    assert (endpoint.host, endpoint.port, endpoint.authority, endpoint.target("/x"), endpoint.shown) == expected
    assert endpoint.tls is url.startswith("https")
    assert sent(endpoint)["host"] == endpoint.authority
    assert endpoint.url == url


def test_a_query_joins_one_that_the_path_has() -> None:
    """The endpoint's query comes after that of the request."""
    assert Endpoint("http://h?a=1").target("/x?b=2") == "/x?b=2&a=1"


def test_a_unix_path_is_kept_as_it_is() -> None:
    """``unix:///path`` names a socket file, whatever characters its name has."""
    assert Endpoint("unix:///run/a b%20ü?.sock").unix_path == "/run/a b%20ü?.sock"
    assert Endpoint("http://h").unix_path is None


@pytest.mark.parametrize(
    "url",
    [
        "", "h", "h:80", "//h", "http:/h", "http://", "http:///x", "ftp://h", "ws://h", f"{SECRET}", f"x://{SECRET}",
        f"http://u:{SECRET}@", f"http://u:{SECRET}@h:99999", f"http://u:{SECRET}@h:port", "http://h:-1",
        f"http://[{SECRET}", f"http://u:{SECRET}@ho st", f"http://h\r\nX-Injected: {SECRET}", "unix://", "unix:///\ud83d",
        None, 5, b"http://h", ["http://h"],
    ],
    ids=ascii,
)  # fmt: skip
def test_what_is_no_url_is_refused_and_not_shown(url: Any) -> None:
    """Another scheme, no host, a bad port or no string is an InvalidRequest of ``url`` that does not repeat it."""
    refused(lambda: Endpoint(url), "url")


@given(url=st.sampled_from(["http://", "https://u:p@", "unix://", "http://h/", "http://h:1?"]).flatmap(
    lambda start: st.text(max_size=12).map(lambda rest: start + rest)
))  # fmt: skip
def test_any_text_is_a_url_or_refused(url: str) -> None:
    """Whatever the text, an endpoint is made whose requests are sound, or it is refused as ``url``."""
    try:
        endpoint = Endpoint(url)
    except InvalidRequest as error:
        field = error.field
    else:
        head = encode_request(endpoint, "GET", "/x", (), b"")
        field = None
        assert head.split(b"\r\n")[0].count(b" ") == 2
        assert head.count(b"\r\n") == len(endpoint.headers()) + 2
    assert field in (None, "url")


# --- being let in


def test_the_headers_of_every_request() -> None:
    """Host, User-Agent and ``Accept-Encoding: identity`` are sent always, nothing else unless asked for."""
    assert sent(Endpoint("http://h:1")) == {
        "host": "h:1",
        "user-agent": "worker-adapters",
        "accept-encoding": "identity",
    }


def test_a_literal_key_is_a_bearer_token() -> None:
    """A string is the key."""
    assert sent(Endpoint("http://h", api_key=SECRET))["authorization"] == f"Bearer {SECRET}"


def test_a_key_from_the_environment_is_read_at_each_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """``env:NAME`` follows the variable; without it, the error names the variable and not a value."""
    endpoint = Endpoint("http://h", api_key="env:ENGINE_KEY")
    for value in ("first", "second"):
        monkeypatch.setenv("ENGINE_KEY", value)
        assert sent(endpoint)["authorization"] == f"Bearer {value}"
    monkeypatch.delenv("ENGINE_KEY")
    assert "ENGINE_KEY" in str(refused(endpoint.headers, "api_key"))


def test_a_callable_key_is_called_at_each_request() -> None:
    """A callable may rotate the key."""
    keys = iter(["first", "second"])
    endpoint = Endpoint("http://h", api_key=lambda: next(keys))
    assert [sent(endpoint)["authorization"] for _ in range(2)] == ["Bearer first", "Bearer second"]


@pytest.mark.parametrize("key", [f"{SECRET}\n", f"{SECRET}\r\nX: y", f"{SECRET}\0", f"{SECRET}é", 5, None, b"x"])
def test_a_key_that_cannot_be_sent_is_refused_and_not_shown(key: Any) -> None:
    """A key with a line end (read from a file), or that is no ASCII string, is refused when it is used."""
    refused(Endpoint("http://h", api_key=lambda: key).headers, "api_key")
    if isinstance(key, str):
        refused(Endpoint("http://h", api_key=key).headers, "api_key")


@pytest.mark.parametrize("key", [5, b"x", ["x"], object()])
def test_what_can_be_no_key_is_refused_at_once(key: Any) -> None:
    """A key is a string or a callable."""
    refused(lambda: Endpoint("http://h", api_key=key), "api_key")


def test_a_user_in_the_url_is_basic_authentication() -> None:
    """User and password of the URL are sent, decoded, as Basic; an API key goes before them."""
    basic = sent(Endpoint("http://us%40er:p%3Ass@h"))["authorization"]
    assert basic == "Basic " + base64.b64encode(b"us@er:p:ss").decode()
    assert sent(Endpoint("http://u:p@h", api_key="k"))["authorization"] == "Bearer k"


def test_headers_of_the_user_replace_ours() -> None:
    """A configured header is sent with every request and replaces ours of that name, whatever its case."""
    endpoint = Endpoint(
        "http://h", api_key="k", headers={"AUTHORIZATION": "Custom x", "X-Tenant": "a", "user-agent": "me"}
    )
    assert endpoint.headers() == [
        ("Host", "h"),
        ("user-agent", "me"),
        ("Accept-Encoding", "identity"),
        ("AUTHORIZATION", "Custom x"),
        ("X-Tenant", "a"),
    ]


@pytest.mark.parametrize(
    "headers",
    [
        {"X": f"{SECRET}\r\nX-Injected: 1"},
        {"X": f"{SECRET}\n"},
        {"X": f"{SECRET}\0"},
        {f"{SECRET}\r\nX": "y"},
        {f"X: {SECRET}": "y"},
        {"": SECRET},
        {"X": f"{SECRET}€"},
        {"X": 5},
        {"X": None},
        {5: SECRET},
        {"X": SECRET.encode()},
        SECRET,
        5,
        [SECRET],
    ],
    ids=ascii,
)
def test_headers_that_cannot_be_sent_are_refused_and_not_shown(headers: Any) -> None:
    """A line end, NUL or no string in a header is an InvalidRequest of ``headers`` that does not repeat it."""
    refused(lambda: Endpoint("http://h", headers=headers), "headers")


def test_a_request_with_a_line_end_in_a_header_is_refused() -> None:
    """What an adapter adds to one request is checked like the rest."""
    refused(lambda: encode_request(Endpoint("http://h"), "GET", "/", [("X", f"{SECRET}\r\n")], b""), "headers")


@pytest.mark.parametrize("verify", ["/path/ca.pem", 0, None])
def test_verify_is_a_bool(verify: Any) -> None:
    """A CA file goes into ``ca``, not into ``verify``."""
    refused(lambda: Endpoint("https://h", verify=verify), "verify")


@pytest.mark.parametrize("option", ["ca", "cert"])
def test_a_certificate_that_cannot_be_read_is_refused(option: str) -> None:
    """A file that is not there is an InvalidRequest when TLS is first used."""
    endpoint = Endpoint("https://h", **{option: "/nonexistent/file.pem"})
    refused(endpoint.ssl_context, "ca or cert")


def test_there_is_one_tls_context() -> None:
    """All connections of an endpoint share one context; ``verify=False`` alone switches verification off."""
    endpoint = Endpoint("https://h")
    context = endpoint.ssl_context()
    assert endpoint.ssl_context() is context
    assert context.check_hostname
    assert not Endpoint("https://h", verify=False).ssl_context().check_hostname


# --- proxies


def test_no_proxy_unless_one_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment's proxies are not used."""
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://proxy:3128")
    assert Endpoint("http://h").proxy is None
    assert Endpoint("https://h").address == ("h", 443)


def test_a_plain_proxy_gets_absolute_targets_and_its_password() -> None:
    """Over http the proxy passes requests on: it is connected to, and sees the whole URL and its own user."""
    endpoint = Endpoint("http://h:5/base?a=1", proxy="http://us%40er:pw@proxy:3128")
    assert endpoint.address == ("proxy", 3128)
    assert not endpoint.tunnelled
    assert endpoint.target("/x") == "http://h:5/base/x?a=1"
    assert sent(endpoint)["proxy-authorization"] == "Basic " + base64.b64encode(b"us@er:pw").decode()


def test_a_tunnel_keeps_the_password_of_the_proxy_from_the_engine() -> None:
    """Over https the proxy passes bytes on: only it sees its user, and the engine an ordinary target."""
    endpoint = Endpoint("https://h/base", proxy="http://u:pw@[::2]")
    assert endpoint.address == ("::2", 80)
    assert endpoint.tunnelled
    assert endpoint.target("/x") == "/base/x"
    assert "proxy-authorization" not in sent(endpoint)
    assert endpoint.proxy_headers() == [("Proxy-Authorization", "Basic " + base64.b64encode(b"u:pw").decode())]


@pytest.mark.parametrize(
    "url",
    ["http://localhost", "http://LOCALHOST:5", "http://a.localhost", "http://127.0.0.1", "http://127.9.9.9:5",
     "http://[::1]", "https://localhost", "unix:///run/x.sock"],
)  # fmt: skip
def test_loopback_never_goes_through_a_proxy(url: str) -> None:
    """A proxy elsewhere would be asked for its own loopback."""
    assert Endpoint(url, proxy="http://proxy:3128").proxy is None


@pytest.mark.parametrize("url", ["http://10.0.0.1", "http://localhost.example", "http://128.0.0.1", "http://[::2]"])
def test_all_else_goes_through_it(url: str) -> None:
    """Private addresses and look-alikes are not loopback."""
    assert Endpoint(url, proxy="http://proxy:3128").proxy is not None


@pytest.mark.parametrize("proxy", ["proxy:3128", "https://proxy", "socks5://proxy", f"http://u:{SECRET}@", "", 5])
def test_a_proxy_that_is_no_http_url_is_refused(proxy: Any) -> None:
    """Only ``http://`` proxies are spoken to, and their password is not repeated."""
    refused(lambda: Endpoint("http://h", proxy=proxy), "proxy")


# --- secrets


def loaded() -> Endpoint:
    return Endpoint(
        "https://user:url-pass%40word@h/base?key=query-secret&t=tenant",
        api_key="literal-key-secret",
        headers={
            "X-Api-Key": "header-secret",
            "Cookie": "cookie-secret",
            "X-Auth": "auth-secret",
            "X-Plain": "shown",
            "Proxy-Authorization": "Bearer behind-a-scheme",
        },
        proxy="http://pu:proxy-pass@proxy:3128",
    )


SECRETS = (
    "url-pass%40word", "url-pass@word", "query-secret", "literal-key-secret", "header-secret", "cookie-secret",
    "auth-secret", "proxy-pass", "behind-a-scheme",
)  # fmt: skip


@pytest.mark.parametrize("secret", SECRETS)
def test_no_secret_is_ever_shown(secret: str) -> None:
    """Passwords, keys, secret headers and query values stand in no repr, and are masked in any text."""
    endpoint = loaded()
    assert secret in endpoint.secrets()
    assert secret not in repr(endpoint) + str(endpoint) + endpoint.shown
    assert secret not in endpoint.clean(f"the engine said {secret} is bad")


def test_clean_leaves_the_rest() -> None:
    """Headers that are no secret stay, prompts go."""
    assert loaded().clean("X-Plain was shown for the long prompt", ["the long prompt"]) == "X-Plain was shown for [...]"


def test_a_key_of_the_environment_is_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The value of the variable is a secret, its name is not."""
    monkeypatch.setenv("ENGINE_KEY", SECRET)
    endpoint = Endpoint("http://h", api_key="env:ENGINE_KEY")
    assert SECRET not in endpoint.clean(f"bad key {SECRET}")
    assert endpoint.clean("ENGINE_KEY") == "ENGINE_KEY"


def test_a_key_of_a_callable_is_masked() -> None:
    """The key that a callable gave for a request is masked where the engine repeats it."""
    endpoint = Endpoint("http://h", api_key=lambda: SECRET)
    endpoint.headers()
    assert SECRET not in endpoint.clean(f"bad key {SECRET}")


# --- pickling


def named_key() -> str:
    return "k"


@pytest.mark.parametrize("key", [None, "env:ENGINE_KEY", named_key])
def test_an_endpoint_is_pickled_by_configuration(key: Any) -> None:
    """Without a literal key an endpoint is made anew from its options; no TLS context goes along."""
    endpoint = Endpoint("https://h/base?a=1", api_key=key, headers={"X": "y"}, verify=False, proxy="http://proxy:1")
    endpoint.ssl_context()
    for again in (pickled(endpoint), copy.copy(endpoint)):
        assert (again.url, again.options) == (endpoint.url, endpoint.options)
        assert again.target("/x") == endpoint.target("/x")


def test_a_literal_key_refuses_to_pickle() -> None:
    """The error says what to use instead, and does not repeat the key."""
    with pytest.raises(TypeError, match="env:NAME") as caught:
        pickle.dumps(Endpoint("http://h", api_key=SECRET))
    assert SECRET not in str(caught.value)
