"""Open loop: each thing is due at a fixed time, whatever the server does, so that a stall counts
for all that it holds up.

`Schedule` says when the n-th thing is due, `rounds` and `weighted` who does it. `Pacer` calls
`fire(n)` when it is due, or as soon after as the loop lets it; how late that was is the generator's
lag, which the report shows and holds to a bound. Latency counts from the time due: there is nothing
to correct afterwards (coordinated omission). uvloop's timers have a grid of 1 ms, which adds about
1 ms to what is measured; to spin instead would take a core away from the server.
"""

from __future__ import annotations

import asyncio
import math
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


def weighted(users: int, n: int, hot: float, rng: random.Random) -> array[int]:
    """As `rounds`, but a share `hot` of all things is done by users 0 and 1 alone, in turns."""
    if not hot:
        return rounds(users, n, rng)
    rest = iter(rounds(users - 2, n, rng)) if users > 2 else iter(())
    order: array[int] = array("l")
    for i in range(n):
        is_hot = users == 2 or rng.random() < hot
        order.append(i & 1 if is_hot else next(rest) + 2)
    return order


class Schedule:
    """n things, `rate` a second, from `start`; `burst` of them are due at the same time."""

    __slots__ = ("burst", "n", "rate", "start")

    def __init__(self, start: float, rate: float, n: int, burst: int = 1) -> None:
        assert rate > 0
        assert burst > 0
        self.start, self.rate, self.n, self.burst = start, rate, n, burst

    def due(self, i: int) -> float:
        """Never by adding up intervals: those would drift."""
        return self.start + (i - i % self.burst) / self.rate


class Pacer:
    """Fires a schedule on the running loop. `await pacer.run()` ends when the last one was fired."""

    def __init__(
        self, rate: float, n: int, fire: Callable[[int, float], None], now: Callable[[], float] = time.perf_counter, *,
        start: float | None = None, burst: int = 1,
    ) -> None:  # fmt: skip
        self._loop = asyncio.get_running_loop()
        self._fire, self._now = fire, now
        self._schedule = Schedule(now() + LEAD_S if start is None else start, rate, n, burst)
        self._next = 0
        self.next_due = self._schedule.due(0)  # infinite when all are fired
        self._done: asyncio.Future[None] = self._loop.create_future()

    async def run(self) -> None:
        self._turn()
        await self._done

    def _turn(self) -> None:
        self.fire_due()
        if not self._done.done():
            self._loop.call_later(max(TICK_S, self.next_due - self._now()), self._turn)

    def fire_due(self) -> None:
        """Fire what is due by now. A timer does it each ms; who has the loop for longer (thousands
        of frames that came at once) does it in between, and nothing is late for what the others'
        frames take.
        """
        if self._done.done():
            return
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
            self.next_due = math.inf
            self._done.set_result(None)
        else:
            self.next_due = schedule.due(i)
