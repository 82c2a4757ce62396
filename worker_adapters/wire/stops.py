"""Stop strings, cut off here where an engine leaves them in its text: TGI; TensorRT-LLM, but for llmapi. No I/O."""

from __future__ import annotations

from collections.abc import Iterable


class Stops:
    """What of a text may be shown: nothing from the first complete stop string on, whatever the pieces are.

    :param stops: at least one.
    :ivar held: the text's end, which may be the beginning of a stop string: the next piece decides, or the end.
    :ivar found: has one come?
    """

    def __init__(self, stops: Iterable[str]) -> None:
        self._stops = tuple(stops)
        self.held = ""
        self.found = False

    def add(self, said: str) -> str:
        """What may be shown now that this was said."""
        whole = self.held + said
        self.held = ""
        found = [(at + len(stop), at) for stop in self._stops if (at := whole.find(stop)) >= 0]
        if found:
            self.found = True
            return whole[: min(found)[1]]
        shown = len(whole) - max([_begun(whole, stop) for stop in self._stops])
        self.held = whole[shown:]
        return whole[:shown]


def _begun(whole: str, stop: str) -> int:
    """So much of the text's end is the beginning of the stop string."""
    at = whole.find(stop[0], max(0, len(whole) - len(stop) + 1))
    while at >= 0 and not stop.startswith(whole[at:]):
        at = whole.find(stop[0], at + 1)
    return len(whole) - at if at >= 0 else 0
