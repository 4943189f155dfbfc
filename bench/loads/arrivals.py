"""Users who come, say hello, and stay: storms of hellos, and idle connections.

`come` is a closed loop of `at_once` dialling at the same time; with all of them at once it is a
storm as after a restart. A user's time starts when it dials, and with `from_start` when the storm
began, so that waiting for a turn counts.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from bench.crowd import Crowd, Endpoint
from bench.generator import Load
from bench.latency import Latencies
from bench.pace import Pacer

TICKS_PER_S = 100.0


class Arrivals(Load):
    def __init__(self, endpoint: Endpoint, tag: str, seed: int, *, connections: int) -> None:
        super().__init__(endpoint, tag, seed)
        self.crowd = Crowd(endpoint, self.names(connections), self.rng)
        self._came = 0

    async def come(self, n: int, at_once: int, at: float = 0.0) -> dict[str, Any]:
        """The next n users, from time `at` on; gives what it took, from dialling and from the
        start.
        """
        users = range(self._came, self._came + n)
        self._came += n
        await asyncio.sleep(max(0.0, at - time.perf_counter()))
        late = _Lateness()
        started = time.perf_counter()
        took = await self.crowd.connect(at_once, users)
        seconds = time.perf_counter() - started
        return {"seconds": seconds, "hello": Latencies(took).text(), "lag": late.stop().text()}

    def leave(self) -> None:
        self.crowd.leave()

    def dropped(self) -> dict[int, int]:
        return dict(self.crowd.dropped)


class _Lateness:
    """How late this process's own loop is while it connects: a timer of its own."""

    def __init__(self) -> None:
        self._late: list[float] = []
        self._task = asyncio.ensure_future(
            Pacer(TICKS_PER_S, 10**9, lambda i, due: self._late.append(time.perf_counter() - due)).run()
        )

    def stop(self) -> Latencies:
        self._task.cancel()
        return Latencies(self._late)


LOAD = Arrivals
