"""Routes: where a server of the OpenAI dialect keeps what, told by its URL.

http://host:8000                     /v1/chat/completions
https://api.groq.com/openai/v1       /openai/v1/chat/completions: a path is the base, as it is
https://NAME.openai.azure.com        /openai/v1/chat/completions
the same, with an api_version        /openai/deployments/DEPLOYMENT/chat/completions?api-version=...
"""

from __future__ import annotations

import re
from urllib.parse import quote, unquote, urlsplit

from worker_adapters.errors import invalid

OPENAI_HOST = "api.openai.com"
AZURE_HOSTS = (".openai.azure.com", ".cognitiveservices.azure.com", ".services.ai.azure.com")

#: What a pasted URL may hold beside the base.
_ROUTE = re.compile(r"/(?:chat/completions|completions|responses)/?(?=$|[?#])")
_DEPLOYMENT = re.compile(r"/deployments/([^/?#]+)/?(?=$|[?#])")
_VERSION = re.compile(r"(?<=[?&])api-version=([^&#]*)&?")


class Routes:
    """Paths below a base URL.

    :ivar url: the URL without the route, the deployment and the API version that it may name.
    :ivar api_version, deployment: those given, or else those of the URL.
    :ivar azure: is it one of Azure's?
    """

    def __init__(self, url: str, api_version: str | None, deployment: str | None) -> None:
        url, version = _without(_VERSION, _ROUTE.sub("", url, count=1))
        url, named = _without(_DEPLOYMENT, url)
        self.url = url.rstrip("?&")
        self.api_version = api_version or version
        self.deployment = deployment or named
        try:
            place = urlsplit(self.url)
            self.host = place.hostname or ""
        except ValueError:
            raise invalid("url", "is no URL") from None
        self.azure = bool(self.api_version or self.deployment) or self.host.endswith(AZURE_HOSTS)
        path = "" if place.scheme == "unix" else place.path.rstrip("/")
        self.in_deployments = bool(self.deployment or (self.api_version and not path.endswith("/v1")))
        self._version = f"?api-version={quote(self.api_version, safe='')}" if self.api_version else ""
        if path:
            self._root = ""
        elif self.azure:
            self._root = "/openai" if self.in_deployments else "/openai/v1"
        else:
            self._root = "/v1"

    def path(self, route: str, model: str | None = None) -> str:
        """``route`` below the base, in Azure's deployments below that of ``model`` unless one was named for all."""
        deployment = self.deployment or model
        place = f"/deployments/{quote(deployment, safe='')}" if self.in_deployments and deployment else ""
        return f"{self._root}{place}{route}{self._version}"

    @property
    def models(self) -> str:
        """The list of models; no deployment has one of its own."""
        return f"{self._root}/models{self._version}"


def _without(part: re.Pattern[str], url: str) -> tuple[str, str | None]:
    """The URL without a part, and what the part named."""
    found = part.search(url)
    return (url, None) if found is None else (url.replace(found[0], "", 1), unquote(found[1]))
