"""What vLLM's front end tells a browser that asks what a page of another origin may do, as Starlette 1.10 writes it."""

from __future__ import annotations

from email.utils import formatdate

from .exchange import Header
from .request import Request

_VARY = "Origin, Access-Control-Request-Method, Access-Control-Request-Headers, Access-Control-Request-Private-Network"


def is_preflight(request: Request) -> bool:
    """True for the question; any other OPTIONS is a wrong method."""
    asked = request.header("Origin") and request.header("Access-Control-Request-Method")
    return request.method == "OPTIONS" and bool(asked)


def preflight_headers(request: Request) -> list[Header]:
    """The head of the answer; its body is "OK"."""
    asked = request.header("Access-Control-Request-Headers")
    return [
        ("date", formatdate(usegmt=True)),
        ("server", "uvicorn"),
        ("vary", _VARY),
        ("access-control-allow-origin", "*"),
        ("access-control-allow-methods", "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT, QUERY"),
        ("access-control-max-age", "600"),
        *([] if asked is None else [("access-control-allow-headers", asked)]),
        ("content-length", ""),
        ("content-type", "text/plain; charset=utf-8"),
    ]
