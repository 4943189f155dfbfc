"""Open loop: each thing is due at a fixed time, whatever the server does, so that a stall counts for all that it holds up.

`Schedule` says who does the n-th thing: users in rounds, each round in another order. `Pacer` calls `fire(n)` when it is due, or as soon after
as the loop lets it; how late that was is the generator's lag, which the report shows and holds to a bound.
uvloop's timers have a grid of 1 ms, which adds about 1 ms to what is measured; to spin instead would take a core away from the server.
"""

from __future__ import annotations

import asyncio
import random
import time
from array import array
from collections.abc import Callable
from typing import Final

TICK_S: Final = 0.001
LEAD_S: Final = 0.05  # from the call to the first due time


def rounds(users: int, n: int, rng: random.Random) -> array[int]:
    """The user of each of n things: everybody once a round, each round shuffled anew."""
    order: array[int] = array("l")
    everybody = list(range(users))
    while len(order) < n:
        rng.shuffle(everybody)
        order.extend(everybody[: n - len(order)])
    return order


class Schedule:
    """n things, `rate` a second, from `start`."""

    __slots__ = ("n", "rate", "start")

    def __init__(self, start: float, rate: float, n: int) -> None:
        assert rate > 0
        self.start, self.rate, self.n = start, rate, n

    def due(self, i: int) -> float:
        """Never by adding up intervals: those would drift."""
        return self.start + i / self.rate


class Pacer:
    """Fires a schedule on the running loop. `await pacer.run()` ends when the last one was fired."""

    def __init__(self, rate: float, n: int, fire: Callable[[int, float], None], now: Callable[[], float] = time.perf_counter) -> None:
        self._loop = asyncio.get_running_loop()
        self._fire, self._now = fire, now
        self._schedule = Schedule(now() + LEAD_S, rate, n)
        self._next = 0
        self._done: asyncio.Future[None] = self._loop.create_future()

    async def run(self) -> None:
        self._turn()
        await self._done

    def _turn(self) -> None:
        schedule, now = self._schedule, self._now()
        i = self._next
        try:
            while i < schedule.n and (due := schedule.due(i)) <= now:
                self._fire(i, due)
                i += 1
        except BaseException as e:  # a callback's exception would only be logged, and the run would wait for ever
            self._done.set_exception(e)
            return
        self._next = i
        if i == schedule.n:
            self._done.set_result(None)
        else:
            self._loop.call_later(max(TICK_S, schedule.due(i) - self._now()), self._turn)
