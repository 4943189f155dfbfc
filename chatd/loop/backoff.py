"""The pause before a restart: none the first time, then pauses that double up to a bound. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import random

STEADY_S: Final = 60.0  # after serving this long, an end counts as the first one


class Backoff:
    """Pauses of 0, `first_s`, twice that, and so on up to `max_s`.

    Each is cut by up to a half at random, because others may have ended at the same moment.
    """

    def __init__(self, rng: random.Random, first_s: float, max_s: float) -> None:
        self._rng, self._first_s, self._max_s = rng, first_s, max_s
        self._ends = 0
        self._next_s = first_s

    def wait_s(self, served_s: float) -> float:
        """The pause in seconds, after an end that followed `served_s` of service."""
        if served_s >= STEADY_S:
            self._ends = 0
        self._ends += 1
        if self._ends == 1:
            self._next_s = self._first_s
            return 0.0
        ceiling, self._next_s = self._next_s, min(self._next_s * 2, self._max_s)
        return ceiling * self._rng.uniform(0.5, 1.0)
