"""Users who come, say hello, and stay: storms of hellos, and idle connections.

`come` is a closed loop of `at_once` dialling at the same time; with all of them at once it is a
storm as after a restart. A user's time starts when it dials, and with `from_start` when the storm
began, so that waiting for a turn counts.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from bench import wire
from bench.contacts import name
from bench.crowd import Crowd, Endpoint
from bench.generator import Load
from bench.latency import Latencies
from bench.pace import Pacer

TICKS_PER_S = 100.0
CONVERSATION = b'"peer":'  # stands in each conversation of a welcome once


class Arrivals(Load):
    """`first`: they are those who have contacts, from that one on; else they know nobody."""

    def __init__(self, endpoint: Endpoint, tag: str, seed: int, *, connections: int, first: int | None = None) -> None:
        super().__init__(endpoint, tag, seed)
        names = self.names(connections) if first is None else [name(first + u) for u in range(connections)]
        self.crowd = Crowd(endpoint, names, self.rng)
        self.crowd.on_welcome = self._on_welcome
        self._came = 0
        self._marks = [""] * connections
        self._listed = 0

    async def come(self, n: int, at_once: int, at: float = 0.0, marks: bool = False) -> dict[str, Any]:
        """The next n users, from time `at` on, with the mark of their last welcome if `marks`; gives
        what it took, from dialling and from the start, and the conversations that were listed.
        """
        epoch = self.crowd.epoch
        self.crowd.hello = lambda u: {"epoch": epoch, "since": self._marks[u]} if marks and self._marks[u] else {}
        self._listed = 0
        users = range(self._came, self._came + n)
        self._came += n
        await asyncio.sleep(max(0.0, at - time.perf_counter()))
        late = _Lateness()
        started = time.perf_counter()
        took = await self.crowd.connect(at_once, users)
        seconds = time.perf_counter() - started
        hello, lag = Latencies(took).text(), late.stop().text()
        return {"seconds": seconds, "hello": hello, "lag": lag, "listed": self._listed}

    def leave(self) -> None:
        """All go, and may come again."""
        self.crowd.leave(range(self._came))
        self._came = 0

    def _on_welcome(self, user: int, payload: bytes) -> None:
        self._listed += payload.count(CONVERSATION)
        if (mark := wire.mark(payload)) is not None:
            self._marks[user] = mark

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
