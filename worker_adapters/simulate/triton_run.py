"""One request at work in a simulated Triton."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from .peer import Peer
from .triton_models import Model
from .triton_request import Ask
from .triton_voice import Manner, Reply, Trouble, manner, recital, replies


@dataclass
class Run:
    """`form` is generate, generate_stream or infer; `peer` hears the client. `stopped` ends it before its time (write
    to `waker`, too), `failed` says that it answers with an error."""

    model: Model
    ask: Ask
    form: str
    peer: Peer
    tokens: Sequence[str | bytes] | None
    endless: bool
    waker: int = -1
    stopped: bool = False
    failed: bool = False
    trouble: str = ""
    manner: Manner | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        try:
            self.manner = manner(self.model, self.ask)
        except Trouble as trouble:
            self.trouble = str(trouble)
            self.failed = True

    @property
    def streams(self) -> bool:
        """True if there is a response for each token."""
        return self.manner is not None and self.manner.streams

    def replies(self) -> Iterator[Reply]:
        """Its responses, until it is stopped."""
        if self.manner is None:
            yield Reply({}, error=self.trouble)
            return
        for reply in replies(self.model, self.manner, recital(self.manner, self.tokens, self.endless)):
            if self.stopped:
                return
            yield reply
