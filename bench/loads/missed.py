"""One client who missed much, behind a slow line: it comes with its cursors, and reads until it has
all, whole and in order, on one connection.

Order: come, which takes as long as the line does. The line is in this process (`slow_line`), as
nothing else runs here.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import replace
from typing import Any

from bench import wire
from bench.crowd import Crowd, Endpoint
from bench.generator import Load
from bench.slow_line import SlowLine


class Missed(Load):
    """`logs`: the names of the user's conversations, in each of which seqs 1 ... `head` were
    missed. It is over when nothing has come for the drain's time, too.
    """

    DRAIN_S = 40.0  # twice the time after which a node gives a client up

    def __init__(
        self, endpoint: Endpoint, tag: str, seed: int, *, user: str, logs: list[str], head: int, bytes_per_s: float
    ) -> None:
        super().__init__(endpoint, tag, seed)
        self._user, self._logs, self._head, self._bytes_per_s = user, logs, head, bytes_per_s
        self._at = dict.fromkeys(logs, 0)  # the last seq of each
        self._left = head * len(logs)
        self._bytes = 0
        self.wrong: Counter[str] = Counter()
        self._heard_at = 0.0

    async def come(self, epoch: str) -> dict[str, Any]:
        """Gives what came, in how many seconds; ends early if the connection does, or falls silent."""
        line = SlowLine(self.endpoint.ports[0], self._bytes_per_s)
        await line.start()
        crowd = Crowd(replace(self.endpoint, ports=[line.port]), [self._user], self.rng)
        crowd.on_text = self._text
        crowd.hello = lambda user: {"epoch": epoch, "cursors": dict.fromkeys(self._logs, 0)}
        started = self._heard_at = time.perf_counter()
        try:
            await crowd.connect()
            while self._left and not crowd.dropped and time.perf_counter() - self._heard_at < self.drain_s:
                await asyncio.sleep(0.05)
            seconds = time.perf_counter() - started
        finally:
            crowd.leave()
            await line.stop()
        return {
            "seconds": seconds,
            "bytes": self._bytes,
            "missing": self._left,
            "wrong": dict(self.wrong),
            "connections": line.connections,
            "dropped": dict(crowd.dropped),
        }

    def _text(self, conn: int, payload: bytes, at: float) -> None:
        self._heard_at = at
        self._bytes += len(payload)
        if not payload.startswith(wire.ENTRY):
            return
        c, seq = wire.conversation(payload) or "", wire.SEQ.search(payload)
        if seq is None or int(seq[1]) != self._at.get(c, -1) + 1:
            self.wrong[c] += 1
            return
        self._at[c] += 1
        self._left -= 1


LOAD = Missed
