"""Where an engine is and how to be let in: one value from which control calls and streams alike are made."""

from __future__ import annotations

import base64
import ipaddress
import os
import ssl
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote, unquote

from urllib3.exceptions import LocationParseError
from urllib3.util import Url, parse_url
from urllib3.util.ssl_ import create_urllib3_context

from worker_adapters.errors import invalid
from worker_adapters.transport.redact import MASK, clean
from worker_adapters.wire.http1 import request_head

ApiKey = str | Callable[[], str] | None
DEFAULT_PORTS = {"http": 80, "https": 443, "grpc": 8001, "grpcs": 8001}
HTTP = ("http", "https", "unix")
USER_AGENT = "worker-adapters"
#: What a request says of its own body and of the answer's; a user's would contradict it.
FRAMING_HEADERS = frozenset({"content-length", "transfer-encoding", "accept-encoding", "connection"})


class Endpoint:
    """URL, key, headers, TLS and proxy of one engine. Immutable in use; shared by all threads.

    :param url: ``http://host:port/base``, ``https://...`` or ``unix:///path/to.sock``; path and query are kept for
        every request.
    :param api_key: a string, ``"env:NAME"`` (read at each request), or a callable (called at each request).
    :param headers: sent with every request.
    :param verify: False does not verify the server's certificate. ``ca``: a file or folder of CA certificates.
    :param cert: our own certificate: a PEM file, or a pair of certificate and key file.
    :param proxy: ``http://user:password@host:port``; used only if given, and never for loopback addresses.
    :param key_header: what carries the key: Authorization, as a Bearer token, or any other name, as it is (Azure:
        ``api-key``).
    :param schemes: of the URL.
    :raises InvalidRequest: naming the option.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: ApiKey = None,
        headers: Mapping[str, str] | None = None,
        verify: bool = True,
        ca: str | None = None,
        cert: str | tuple[str, str] | None = None,
        proxy: str | None = None,
        key_header: str = "Authorization",
        schemes: tuple[str, ...] = HTTP,
    ) -> None:
        if headers is not None and not isinstance(headers, Mapping):
            raise invalid("headers", "want a mapping of strings without control characters")
        self._options: dict[str, Any] = {
            "url": url, "api_key": api_key, "headers": dict(headers or {}),
            "verify": verify, "ca": ca, "cert": cert, "proxy": proxy, "key_header": key_header,
        }  # fmt: skip
        self._schemes = schemes
        if type(verify) is not bool:
            raise invalid("verify", "want True or False; a CA file goes into ca=")
        if api_key is not None and not isinstance(api_key, str) and not callable(api_key):
            raise invalid("api_key", 'want a string, "env:NAME" or a callable')
        self._api_key = api_key
        self._last_key = ""  # what a callable gave last: masked, never pickled
        self._ssl: ssl.SSLContext | None = None
        for name, value in (("ca", ca), ("cert", cert)):
            parts = value if isinstance(value, tuple) and name == "cert" else (value,)
            if value is not None and not all(isinstance(part, (str, os.PathLike)) for part in parts):
                raise invalid(name, "want a path")
        self._place(_parsed("url", url, schemes))
        self.proxy = None if proxy is None else _parsed("proxy", proxy, ("http",))
        if self.proxy is not None and (self.unix_path or _is_loopback(self.host)):
            self.proxy = None  # a proxy elsewhere would be asked for *its* loopback
        for name in self._options["headers"]:
            if str(name).lower() in FRAMING_HEADERS:
                raise invalid("headers", f"{name!r} is set by the request itself")
        try:
            self._options["headers"] = {name: value.strip(" \t") for name, value in self._options["headers"].items()}
            request_head("GET", self.base or "/", self._options["headers"].items())
        except (ValueError, AttributeError, TypeError):
            raise invalid("headers", "want a mapping of strings without control characters") from None
        try:
            request_head("GET", "/", [(key_header, "")])
        except (ValueError, AttributeError, TypeError):
            raise invalid("key_header", "want the name of a header") from None
        self._written = self._written_secrets()

    def _place(self, url: Url) -> None:
        self.scheme = url.scheme or "http"
        self.unix_path = unquote(url.path or "") if self.scheme == "unix" else None
        self.tls = self.scheme in ("https", "grpcs")
        self.host = "localhost" if self.unix_path else (url.host or "").strip("[]")
        self.port = DEFAULT_PORTS.get(self.scheme, 0) if url.port is None else url.port
        self.base = "" if self.unix_path else (url.path or "").rstrip("/")
        self.query = url.query or ""
        self._basic = url.auth
        shown = f"[{self.host}]" if ":" in self.host else self.host
        default = DEFAULT_PORTS.get(self.scheme) == self.port or self.unix_path
        self.authority = shown if default else f"{shown}:{self.port}"
        self.host_and_port = f"{shown}:{self.port}"
        #: The URL as a message may show it: no user, no password, no query.
        self.shown = f"unix://{self.unix_path}" if self.unix_path else f"{self.scheme}://{self.authority}{self.base}"

    @property
    def address(self) -> tuple[str, int]:
        """Host and port to connect to: the proxy's, if there is one."""
        if self.proxy is None:
            return self.host, self.port
        return (self.proxy.host or "").strip("[]"), self.proxy.port or 80

    @property
    def tunnelled(self) -> bool:
        """Does the proxy pass bytes through (CONNECT), rather than requests?"""
        return self.proxy is not None and self.tls

    def target(self, path: str) -> str:
        """The request target of a path: base path before it, query after it, absolute for a plain proxy."""
        target = f"{self.base}{path}"
        if self.query:
            target += ("&" if "?" in target else "?") + self.query
        return f"http://{self.authority}{target}" if self.proxy is not None and not self.tls else target

    def headers(self) -> list[tuple[str, str]]:
        """What every request carries; reads ``env:NAME`` and calls the callable now.

        :raises InvalidRequest: the key cannot be had.
        """
        own = {
            "host": ("Host", self.authority),
            "user-agent": ("User-Agent", USER_AGENT),
            "accept-encoding": ("Accept-Encoding", "identity"),  # decoding belongs to the body's reader; see wire.http1
        }
        if self.proxy is not None and not self.tls:
            own |= {name.lower(): (name, value) for name, value in self.proxy_headers()}
        if self._basic:
            own["authorization"] = ("Authorization", "Basic " + _b64(unquote(self._basic)))
        key = self.key()
        if key:  # an empty one, as of an empty variable, is none
            name = self._options["key_header"]
            own[name.lower()] = (name, f"Bearer {key}" if name.lower() == "authorization" else key)
        for name, value in self._options["headers"].items():
            own[name.lower()] = (name, value)
        return list(own.values())

    def proxy_headers(self) -> list[tuple[str, str]]:
        """What the proxy alone must see."""
        auth = self.proxy.auth if self.proxy is not None else None
        return [("Proxy-Authorization", "Basic " + _b64(unquote(auth)))] if auth else []

    def key(self) -> str | None:
        """The API key as of now.

        :raises InvalidRequest: the environment has no such variable, or the callable gave no string.
        """
        key = self._api_key
        if key is None:
            return None
        if callable(key):
            try:
                key = key()
            except Exception as error:  # noqa: BLE001 - the user's own function
                raise invalid("api_key", f"the callable raised {type(error).__name__}") from None
        elif key.startswith("env:"):
            name = key[4:]
            key = os.environ.get(name)
            if key is None:
                raise invalid("api_key", f"the environment has no variable {name}")
        if type(key) is not str or not key.isprintable() or not key.isascii():
            raise invalid("api_key", "want a printable ASCII string")
        self._last_key = key
        return key

    def ssl_context(self) -> ssl.SSLContext:
        """The one context of this endpoint, made at first use.

        :raises InvalidRequest: a certificate file that cannot be read.
        """
        if self._ssl is None:
            context = create_urllib3_context(cert_reqs=ssl.CERT_REQUIRED)
            ca, cert = self._options["ca"], self._options["cert"]
            try:
                if not self._options["verify"]:
                    context.check_hostname = False
                    context.verify_mode = ssl.CERT_NONE
                elif ca is not None:
                    context.load_verify_locations(**{"capath" if os.path.isdir(ca) else "cafile": ca})
                else:
                    context.load_default_certs()
                if cert is not None:
                    context.load_cert_chain(*((cert,) if isinstance(cert, str) else cert))
            except (OSError, ssl.SSLError) as error:
                raise invalid("ca or cert", f"cannot be loaded ({type(error).__name__})") from error
            self._ssl = context
        return self._ssl

    def secrets(self) -> list[str]:
        """Every value that must never be shown."""
        key = self._api_key
        if key is None:
            return self._written
        now = "" if callable(key) else os.environ.get(key[4:], "") if key.startswith("env:") else key
        return self._written + [value for value in (self._last_key, now) if len(value) >= 4]

    def _written_secrets(self) -> list[str]:
        """Those that stand in the options, but the key."""
        headers = [value for name, value in self._options["headers"].items() if _is_secret(name)]
        found = headers + [value.partition(" ")[2] for value in headers]  # without its scheme, as engines quote a key
        for auth in (self._basic, self.proxy.auth if self.proxy is not None else None):
            if auth:
                password = auth.partition(":")[2]
                found += [auth, unquote(auth), password, unquote(password)]
        found += [part.partition("=")[2] for part in self.query.split("&")]
        return [value for value in found if len(value) >= 4]

    def clean(self, text: str, prompts: list[str] | None = None) -> str:
        """``text`` as one line without this endpoint's secrets and without quotations of ``prompts``."""
        return clean(text, self.secrets(), prompts or ())

    def masked(self, value: Any) -> Any:
        """A JSON value without this endpoint's secrets, else as it is."""
        secrets = self.secrets()
        return _masked(value, secrets) if secrets else value

    def __repr__(self) -> str:
        return f"Endpoint({self.shown})"

    @property
    def url(self) -> str:
        """The URL as it was given, secrets and all: for making the endpoint anew."""
        return str(self._options["url"])

    @property
    def options(self) -> dict[str, Any]:
        """Everything else as it was given."""
        return {name: value for name, value in self._options.items() if name != "url"}

    def __getstate__(self) -> dict[str, Any]:
        key = self._options["api_key"]
        if isinstance(key, str) and not key.startswith("env:"):
            raise TypeError('api_key: a literal key is not pickled; pass "env:NAME" or a callable instead')
        proxy = self._options["proxy"] and _parsed("proxy", self._options["proxy"], ("http",)).auth
        if self._basic or proxy or any(_is_secret(name) for name in self._options["headers"]):
            raise TypeError("a secret in a header or a URL is not pickled; pass api_key instead")
        return {**self._options, "schemes": self._schemes}

    def __setstate__(self, options: dict[str, Any]) -> None:
        self.__init__(**options)  # type: ignore[misc]  # pickled by configuration: made anew


def _masked(value: Any, secrets: list[str]) -> Any:
    if isinstance(value, str):
        for secret in secrets:
            value = value.replace(secret, MASK)
    elif isinstance(value, dict):
        return {_masked(key, secrets): _masked(item, secrets) for key, item in value.items()}
    elif isinstance(value, list):
        return [_masked(item, secrets) for item in value]
    return value


def _parsed(option: str, url: Any, schemes: tuple[str, ...]) -> Url:
    if not isinstance(url, str) or "://" not in url:
        raise invalid(option, f"want a URL that begins with {' or '.join(s + '://' for s in schemes)}")
    try:
        if url.startswith("unix://"):
            path = url[len("unix://") :]
            parsed = Url(scheme="unix", path=quote(path) if path.startswith("/") else None)
        else:
            parsed = parse_url(url)
            (parsed.host or "").strip("[]").encode("idna")
    except (LocationParseError, ValueError):
        raise invalid(option, "is no URL") from None
    if parsed.scheme not in schemes or not (parsed.path if parsed.scheme == "unix" else parsed.host):
        raise invalid(option, f"want a URL that begins with {' or '.join(s + '://' for s in schemes)}")
    return parsed


def _b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_secret(header: str) -> bool:
    name = header.lower()
    return any(word in name for word in ("auth", "key", "token", "secret", "cookie", "password"))
