"""One timer for all that a part of the node does at times of its own; while nothing is due there is
none, and the node sleeps.

    by(at) ──► the earliest of all times ──► rings() returns ──► whoever waits does what is due, and says by when there is more

For grace times and for news that is held back (presence_push.py, chat/typing_push.py): each knows
when it is due. Most are later than the earliest, and cost a comparison. The work of many due times
is gathered: it rings once in `apart_s`, so late a time may come.

Turned down: a timer of the loop for each due time (10,000 clients that leave are 10,000 timers); a
look 20 times a second, which was most of what an idle node did; a callback of the loop: an
exception in one is logged by asyncio, and it never rings again, where a task that fails stops the
node (docs/decisions/0008).
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable
from typing import Final

TIMER_S: Final = 0.001  # the loop's timers are no finer, and may be early by a part of that


class Alarm:
    """For one task that waits. `now` is monotonic, in seconds."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._at = math.inf
        self._not_before = -math.inf
        self._earlier = asyncio.Event()

    def by(self, at: float | None) -> None:
        """Something is due then; None: nothing is. An earlier time that was given stands."""
        if at is not None and at < self._at and (at := max(at, self._not_before)) < self._at:
            self._at = at
            self._earlier.set()

    async def rings(self, apart_s: float) -> None:
        """Return when the earliest time is there.

        It is forgotten then, and the next call waits `apart_s` at least.
        """
        while (left_s := self._at - self._now()) > 0:
            self._earlier.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(left_s, TIMER_S) if left_s < math.inf else None):
                    await self._earlier.wait()
        self._at, self._not_before = math.inf, self._now() + apart_s
