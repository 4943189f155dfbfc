"""The beat of a node, once a second: what is to be done about that often is done then, in one wake
of the loop, and has no timer of its own.

    Node._sweep ──beat──► whoever rests goes on: the look at PostgreSQL, the look at the embedded server's files

An idle node wakes as often as its timers fire. Each second that has three timers is three wakes;
with one it is one. Nobody depends on the beat: a rest without one ends by itself, a little later.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator


class Pulse:
    """`beat` is called about once a second."""

    def __init__(self) -> None:
        self._resting: set[asyncio.Timeout] = set()

    def beat(self) -> None:
        """End every rest that is under way."""
        for rest in self._resting:
            if not rest.expired():  # one whose time is over already cannot be moved
                rest.reschedule(0.0)

    @contextlib.asynccontextmanager
    async def rest(self, longest_s: float) -> AsyncIterator[None]:
        """What is awaited in it gets a TimeoutError at the next beat, or after so many seconds
        without one.
        """
        async with asyncio.timeout(longest_s) as rest:
            self._resting.add(rest)
            try:
                yield
            finally:
                self._resting.discard(rest)
