"""One beat per second, in which all work of about that period is done in one wake of the loop.

    Node._sweep ──beat──► every `rest` ends: the check of PostgreSQL, of the embedded server's files

An idle node wakes as often as its timers fire: three timers of a second are three wakes, a shared
one is one. A `rest` does not depend on the beat: without one it ends by itself, a little later.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator


class Pulse:
    """Shares one timer between tasks. The node calls `beat` about once a second."""

    def __init__(self) -> None:
        self._resting: set[asyncio.Timeout] = set()

    def beat(self) -> None:
        """End every `rest` that is under way."""
        for rest in self._resting:
            if not rest.expired():  # an expired timeout cannot be rescheduled
                rest.reschedule(0.0)

    @contextlib.asynccontextmanager
    async def rest(self, longest_s: float) -> AsyncIterator[None]:
        """Raises TimeoutError in its body at the next beat, or after `longest_s` without one."""
        async with asyncio.timeout(longest_s) as rest:
            self._resting.add(rest)
            try:
                yield
            finally:
                self._resting.discard(rest)
