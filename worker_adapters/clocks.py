"""Time and chance, injected: the one seam through which the library touches what it cannot repeat.

``transport.network.Network`` adds names and sockets to it. Nothing else in the package reads a clock, sleeps or rolls
dice, so a simulation that passes its own ``Runtime`` decides all of it.
"""

from __future__ import annotations

import random
import time
from queue import Empty, SimpleQueue
from typing import Any


class Runtime:
    """The real world; a simulation overrides the methods it wants to decide."""

    #: Seconds that only grow. The C function itself: it is asked at every wait.
    monotonic = staticmethod(time.monotonic)

    def time(self) -> float:
        """Seconds since 1970, for HTTP dates."""
        return time.time()

    def random(self) -> float:
        """A number in [0, 1)."""
        return random.random()  # noqa: S311 - jitter and seeds, not cryptography

    def sleep(self, seconds: float, wake: SimpleQueue[Any]) -> bool:
        """Wait; True as soon as something is put into ``wake``, False after ``seconds``.

        SimpleQueue because its ``put`` may be called from a signal handler while this very thread waits in ``get``.
        """
        try:
            wake.get(timeout=max(0.0, seconds))
        except Empty:
            return False
        return True
