"""Identity: which version and model an engine says it is, asked once and remembered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from worker_adapters.jsonvalue import shaped

#: Version and model may cost the first job so long (seconds), and are asked again after a failure only so much later.
IDENTIFY = 0.5
IDENTIFY_AGAIN = 60.0

Answer = tuple[str, str | None]


class Identity:
    """What ``started`` says of the engine.

    :param questions: (path, type of the JSON there); the first one must be answered.
    :param read: makes version and model of the answers; None for one that was not given.
    """

    def __init__(self, questions: tuple[tuple[str, Any], ...], read: Callable[..., Answer]) -> None:
        self.questions = questions
        self._read = read
        self._known: Answer | None = None
        self._again_at = 0.0

    @property
    def known(self) -> Answer:
        """Version and model; "unknown" and None until told."""
        return self._known or ("unknown", None)

    def due(self, now: float) -> bool:
        """Is it time to ask?"""
        return self._known is None and bool(self.questions) and now >= self._again_at

    def told(self, *answers: Any) -> Answer:
        """Remember the answers, already of their types."""
        self._known = self._read(*answers)
        return self._known

    def heard(self, answers: list[Any], now: float) -> None:
        """Remember answers as they came. A version is no reason to lose a job: a bad answer is asked for later."""
        read = [
            None if answer is None else shaped(answer, shape)
            for answer, (_, shape) in zip(answers, self.questions, strict=True)
        ]
        if read[0] is None:
            self._again_at = now + IDENTIFY_AGAIN
        else:
            self.told(*read)
