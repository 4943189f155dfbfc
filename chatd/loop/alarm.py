"""One timer for many due times; while nothing is due there is no timer, and the node sleeps.

    by(at) ──► the earliest of all times ──► rings() returns ──► its task does what is due,
                                                                 and calls `by` for the next time

It serves grace times and pushes that are held back (chat/presence_push.py, chat/typing_push.py),
each of which knows when it is due. Most times are later than the earliest, and cost a comparison.
It rings once per `apart_s` at most, so that the work of many due times is done together. So a time
may be served up to `apart_s` late.

Rejected: a timer of the loop for each due time (10,000 clients that leave are 10,000 timers).
Rejected: polling 20 times a second, which was most of the work of an idle node. Rejected: a
callback of the loop. asyncio logs an exception in it and it never rings again, but a task that
fails stops the node (docs/decisions/0008).
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable
from typing import Final

TIMER_S: Final = 0.001  # resolution of the loop's timers, which may be early by a part of it


class Alarm:
    """An alarm for one waiting task. `now` is monotonic, in seconds."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._at = math.inf
        self._not_before = -math.inf
        self._earlier = asyncio.Event()

    def by(self, at: float | None) -> None:
        """Something is due at `at` (None: nothing is). An earlier time given before stays."""
        if at is not None and at < self._at and (at := max(at, self._not_before)) < self._at:
            self._at = at
            self._earlier.set()

    async def rings(self, apart_s: float) -> None:
        """Return at the earliest time given.

        Forgets that time. The next call waits `apart_s` at least.
        """
        while (left_s := self._at - self._now()) > 0:
            self._earlier.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(left_s, TIMER_S) if left_s < math.inf else None):
                    await self._earlier.wait()
        self._at, self._not_before = math.inf, self._now() + apart_s
