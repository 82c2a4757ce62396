"""The clients that are compared: ours, a raw socket, what people write by hand, and other libraries.

Each is made of an engine's name and URL and gives a function that streams texts. Each has an environment of its own, so
it imports what it needs when it is made.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from dialects import DIALECTS, MODEL

#: Else LiteLLM fetches a list of prices when it is imported. For child processes too.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

Stream = Callable[[int, float], Iterator[str]]  # tokens, gap in ms -> texts


class Client(NamedTuple):
    """A client.

    :ivar make: engine, URL -> its stream.
    :ivar packages: what pip installs for it; nothing for ours, which is installed already.
    :ivar imports: the program that shows what its import costs.
    :ivar shared: threads may share one; else each has its own.
    """

    make: Callable[[str, str], Stream]
    packages: str
    imports: str
    shared: bool


def adapter(engine: str, url: str) -> Stream:
    """Ours, with all that the contract promises."""
    from worker_adapters import connect

    ours = connect(engine, url, model=MODEL)
    ours.keeps_streams = True  # llama.cpp does not, but the load server does, and all clients are measured alike
    task = DIALECTS[engine].task

    def stream(tokens: int, gap: float) -> Iterator[str]:
        for frame in ours.submit(task(gap), max_tokens=tokens):
            if frame.type == "token":
                yield frame.text

    return stream


def floor(engine: str, url: str) -> Stream:
    """A raw socket and a typed decoder: what no client can be cheaper than."""
    dialect = DIALECTS[engine]
    text_in = dialect.typed()
    parts = urlsplit(url)
    sock = socket.create_connection((parts.hostname, parts.port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    head = f"POST {dialect.path} HTTP/1.1\r\nHost: x\r\nContent-Length: ".encode()

    def stream(tokens: int, gap: float) -> Iterator[str]:
        body = dialect.body(tokens, gap)
        sock.sendall(b"%s%d\r\n\r\n%s" % (head, len(body), body))
        data = b""
        while data != b"0\r\n\r\n":
            data += sock.recv(65536)
            events = data.split(b"\n\n\r\n")
            data = events.pop()
            for event in events:
                text = text_in(event.partition(b"data: ")[2])
                if text:
                    yield text

    return stream


def bare_urllib3(engine: str, url: str) -> Stream:
    """urllib3's public API and a typed decoder: no frames, no clocks, no cancel, no errors."""
    import urllib3

    dialect = DIALECTS[engine]
    text_in = dialect.typed()
    pool = urllib3.connection_from_url(url)

    def stream(tokens: int, gap: float) -> Iterator[str]:
        answer = pool.urlopen(
            "POST",
            dialect.path,
            body=dialect.body(tokens, gap),
            headers={"Content-Type": "application/json"},
            preload_content=False,
        )
        rest = b""
        for piece in answer.read_chunked():
            *events, rest = (rest + piece).split(b"\n\n")
            for event in events:
                text = text_in(event[6:])
                if text:
                    yield text

    return stream


def requests_sseclient(engine: str, url: str) -> Stream:
    """What most people write: a requests.Session, sseclient-py and json."""
    import requests
    import sseclient

    dialect = DIALECTS[engine]
    text_in = dialect.loose
    session = requests.Session()

    def stream(tokens: int, gap: float) -> Iterator[str]:
        with session.post(f"{url}{dialect.path}", data=dialect.body(tokens, gap), stream=True) as answer:
            for event in sseclient.SSEClient(answer).events():
                text = text_in(event.data)
                if text:
                    yield text

    return stream


def httpx_sse(engine: str, url: str) -> Stream:
    """An httpx.Client, httpx-sse and json."""
    import httpx
    from httpx_sse import connect_sse

    dialect = DIALECTS[engine]
    text_in = dialect.loose
    unlimited = httpx.Limits(max_connections=None, max_keepalive_connections=None)  # else 256 threads take turns
    client = httpx.Client(timeout=60.0, limits=unlimited)
    headers = {"Content-Type": "application/json"}

    def stream(tokens: int, gap: float) -> Iterator[str]:
        body = dialect.body(tokens, gap)
        with connect_sse(client, "POST", f"{url}{dialect.path}", content=body, headers=headers) as source:
            for event in source.iter_sse():
                text = text_in(event.data)
                if text:
                    yield text

    return stream


def chat(tokens: int, gap: float) -> dict[str, Any]:
    """The arguments that a library of OpenAI's dialect is called with."""
    dialect = DIALECTS["openai"]
    return {"messages": dialect.task(gap), dialect.limit: tokens, "stream": True, **dialect.also}


def texts_of(chunks: Iterable[Any]) -> Iterator[str]:
    """The texts in such a library's chunks."""
    for chunk in chunks:
        text = chunk.choices[0].delta.content if chunk.choices else None
        if text:
            yield text


def openai(engine: str, url: str) -> Stream:
    """OpenAI's own library."""
    from openai import OpenAI

    client = OpenAI(base_url=f"{url}/v1", api_key="none")
    create = client.chat.completions.create
    return lambda tokens, gap: texts_of(create(model=MODEL, **chat(tokens, gap)))


def huggingface_hub(engine: str, url: str) -> Stream:
    """Hugging Face's own library."""
    from huggingface_hub import InferenceClient

    client = InferenceClient(base_url=f"{url}/v1", api_key="none")
    return lambda tokens, gap: texts_of(client.chat_completion(**chat(tokens, gap)))


def litellm(engine: str, url: str) -> Stream:
    """LiteLLM."""
    from litellm import completion

    where = {"model": f"openai/{MODEL}", "api_base": f"{url}/v1", "api_key": "none"}
    return lambda tokens, gap: texts_of(completion(**where, **chat(tokens, gap)))


OURS, FLOOR, URLLIB3, REQUESTS = (
    "worker_adapters", "raw socket + msgspec", "urllib3 + msgspec", "requests + sseclient-py",
)  # fmt: skip
CLIENTS = {
    OURS: Client(
        adapter,
        "",
        "from worker_adapters import connect; connect('openai', 'http://127.0.0.1:1', model='m')",
        shared=True,
    ),
    FLOOR: Client(floor, "msgspec", "import socket, msgspec", shared=False),
    URLLIB3: Client(bare_urllib3, "urllib3 msgspec", "import urllib3, msgspec", shared=False),
    REQUESTS: Client(requests_sseclient, "requests sseclient-py", "import requests, sseclient", shared=False),
    "httpx + httpx-sse": Client(httpx_sse, "httpx httpx-sse", "import httpx, httpx_sse", shared=True),
    "openai": Client(openai, "openai", "from openai import OpenAI", shared=True),
    "huggingface_hub": Client(
        huggingface_hub, "huggingface_hub", "from huggingface_hub import InferenceClient", shared=True
    ),
    "litellm": Client(litellm, "litellm", "from litellm import completion", shared=True),
}
#: Those that speak every dialect.
BY_HAND = (OURS, FLOOR, URLLIB3, REQUESTS)
