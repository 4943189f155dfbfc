"""The lanes of a node: which of them an entry goes to, and their life.

    SendPipeline ──choose──► Lanes ──► the lane that the entry is submitted to (postgres/lane.py)

A conversation stays in one lane while it has anything there, so its entries keep their order; an
idle conversation goes to the first lane with room, so that few lanes with larger batches do the
work and a further one opens only with the load. More lanes than the load needs cost PostgreSQL's
CPU (docs/decisions/0016). A lane but the first that has had nothing to do for minutes holds no
connection; it gets one when the lane before it fills.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from itertools import pairwise
from typing import Any, NamedTuple

from chatd.core.batch import RETRY, Item, LaneQueue
from chatd.ids import ConvId
from chatd.metrics import Metrics
from chatd.postgres.append_answer import Outcome
from chatd.postgres.connection import Opener
from chatd.postgres.health import Health
from chatd.postgres.lane import Lane


class LaneSettings(NamedTuple):
    """Of all lanes of a node. `feed`: there are other nodes."""

    lanes: int
    rows_max: int  # of a batch
    queue_max: int  # items that wait in a lane
    deadline_s: float
    edit_window_s: float
    feed: bool


class Lanes:
    """All lanes of a node, in `all` from `start` on. Implements `ports.EntryLanes`."""

    def __init__(
        self,
        opener: Opener,
        metrics: Metrics,
        health: Health,
        settings: LaneSettings,
        partition: Callable[[], Awaitable[object]],
    ) -> None:
        self.all: list[Lane] = []
        self._opener, self._metrics, self._health = opener, metrics, health
        self._settings, self._partition = settings, partition

    def choose(self, item: Item) -> Lane:
        """The lane for an item: its conversation's while that has items there, else the first with
        room.
        """
        conv = item.conv
        if conv.pending:
            return self.all[conv.lane]
        for lane in self.all:
            if lane.load < lane.opens_at and lane.is_responsive:
                break
        else:
            lane = min(self.all, key=lambda one: (not one.is_responsive, one.load))
        conv.lane = lane.number
        return lane

    def under_way(self, lanes: Iterable[int]) -> dict[tuple[ConvId, int, str], Item]:
        """The items that PostgreSQL has from these lanes, by conversation, side and cid.

        Without retries, whose entries may have been in the log before.
        """
        return {
            (item.conv.id, item.side, item.cid): item
            for lane in lanes
            for item in self.all[lane].underway.items
            if not item.flags & RETRY
        }

    async def start(self, outcome: Outcome) -> None:
        """Make them, and connect the first. Raises Outage."""
        s, now = self._settings, asyncio.get_running_loop().time
        self.all = [
            Lane(
                n,
                self._opener,
                LaneQueue(s.rows_max),
                outcome,
                self._metrics,
                self._health,
                queue_max=s.queue_max,
                deadline_s=s.deadline_s,
                edit_window_s=s.edit_window_s,
                partition=self._partition,
                now=now,
                feed=s.feed,
            )
            for n in range(s.lanes)
        ]
        for lane in reversed(self.all):
            lane.beside([other for other in self.all if other is not lane])
        for lane, following in pairwise(self.all):
            lane.next = following
        await self.all[0].connect()

    async def warm(self) -> None:
        await asyncio.gather(*(lane.warm() for lane in self.all))

    def tasks(self) -> list[Coroutine[Any, Any, None]]:
        """To be run for the life of the node."""
        return [lane.run() for lane in self.all]

    @property
    def pending(self) -> int:
        """Items that wait for a lane or are being written."""
        return sum(len(lane.queue) + lane.busy for lane in self.all)

    @property
    def is_outcome_unknown(self) -> bool:
        """Some batch has an unknown outcome that nobody looks for yet."""
        return any(lane.is_outcome_unknown for lane in self.all)

    @property
    def acked(self) -> dict[int, int]:
        """Conversation -> a seq that was acked: of the last batches, in the log that is."""
        return {id: seq for lane in self.all for id, seq in lane.acked.items()}

    async def idle(self) -> None:
        """Wait until every lane has written what it had."""
        while self.pending:  # one that has ended may be handed something by another
            for lane in self.all:
                await lane.idle.wait()

    def drop(self) -> None:
        """The log is another one: what waits was meant for the one before."""
        for lane in self.all:
            lane.drop()

    async def close(self) -> None:
        """Close all connections. A task that never began has not closed its own."""
        for lane in self.all:
            await lane.close()
