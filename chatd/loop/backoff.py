"""When something that ended is started again: at once the first time, then after pauses that double
up to a bound. Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import random

STEADY_S: Final = 60.0  # what has served for so long ended for another reason than the last time


class Backoff:
    """At once, then after `first_s`, twice that ...

    `max_s`, each cut by up to a half at random: others may have ended at the same moment.
    """

    def __init__(self, rng: random.Random, first_s: float, max_s: float) -> None:
        self._rng, self._first_s, self._max_s = rng, first_s, max_s
        self._ends = 0
        self._next_s = first_s

    def wait_s(self, served_s: float) -> float:
        """It ended after having served for so long."""
        if served_s >= STEADY_S:
            self._ends = 0
        self._ends += 1
        if self._ends == 1:
            self._next_s = self._first_s
            return 0.0
        ceiling, self._next_s = self._next_s, min(self._next_s * 2, self._max_s)
        return ceiling * self._rng.uniform(0.5, 1.0)
