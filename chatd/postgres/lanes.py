"""The lanes: they put entries into the log by group commit.

    SendPipeline ──submit──► Lanes ──► LaneQueue ──gather──► Lane ──append()──► PostgreSQL
                                                              └── Outcome: committed, failed,
                                                                  refused, blocked, unknown

A lane has one connection (postgres/lane_connection.py) and one batch under way; what arrives
during it is the next batch. A conversation stays in one lane while it has anything there, so its
entries keep their order; an idle conversation goes to the first lane with room, so that few lanes
with larger batches do the work and a further one opens only with the load. More lanes than the
load needs cost PostgreSQL's CPU (docs/decisions/0016). Under a load where no conversation is ever
idle, a lane with much more to do than another hands it whole conversations between two batches.

An answer that does not arrive (connection cut, deadline passed) leaves the outcome unknown: the
sender gets `unavailable` and its retry with the same cid has the true answer; the conversations go
to `outcome_unknown`, whose heads are looked up when the database is back. What else can become of
a batch is in postgres/lane_failures.py.

A batch is fenced by the log that this node knows, and by the two users of each conversation;
`append` refuses it whole where that is wrong. Its answer is read by postgres/append_answer.py: an
item for which `append` gave nothing has no outcome, never an `ok`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final, NamedTuple

import psycopg
import structlog

from chatd.core.batch import Batch, Item, LaneQueue, release_pending
from chatd.errors import Unavailable
from chatd.metrics import Metrics
from chatd.postgres import append_answer, connection, faults
from chatd.postgres.append_answer import Outcome
from chatd.postgres.connection import Opener
from chatd.postgres.faults import Outage
from chatd.postgres.health import Health
from chatd.postgres.lane_connection import LaneConnection
from chatd.postgres.lane_failures import BatchFailures

log = structlog.get_logger("writer")

# Rows of a lane, waiting and under way, before the next one is used. Those under way count: at the
# highest rates a conversation always has something pending, so it stays where it is, and a lane
# that looked empty while its batch was written drew all of them in. A whole batch: rows cost less
# the more of them there are (docs/decisions/0016).
LANE_OPENS_AT: Final = 1_024
# A batch that is out for longer waits for something, a lock or a server that hangs; half the time
# that a message may take
LATE_S: Final = 0.25


class Lane(LaneConnection):
    """One lane. `run` is its task for the life of the node. `now`: the loop's clock, seconds."""

    def __init__(
        self,
        number: int,
        opener: Opener,
        queue: LaneQueue,
        outcome: Outcome,
        metrics: Metrics,
        health: Health,
        *,
        deadline_s: float,
        edit_window_s: float,
        partition: Callable[[], Any],
        now: Callable[[], float],
        feed: bool = False,
    ) -> None:
        super().__init__(
            number, opener, metrics, deadline_s=deadline_s, edit_window_s=edit_window_s, partition=partition, feed=feed
        )
        self.queue = queue
        self.opens_at = min(LANE_OPENS_AT, queue.rows_max)
        self.others: list[Lane] = []  # of the node; it shares with them
        self.busy = False
        self.rows_underway = 0  # of the batch that PostgreSQL has
        self._outcome, self._health, self._now = outcome, health, now
        self._failures = BatchFailures(self, outcome, metrics, health, self._write)
        self.idle = asyncio.Event()  # nothing queued, nothing under way
        self.idle.set()
        self._wake = asyncio.Event()
        self._began_at = 0.0  # of the batch under way

    @property
    def load(self) -> int:
        """Rows that wait or are under way."""
        return len(self.queue.items) + self.rows_underway

    @property
    def is_outcome_unknown(self) -> bool:
        """Batches had an unknown outcome, and their conversations are not looked up yet.

        The next batch is under way, or there is no connection.
        """
        return bool(self._failures.unknown)

    @property
    def is_responsive(self) -> bool:
        """PostgreSQL answers this lane. If not, another lane gets what it can write."""
        return not self.backoff_s and (not self.rows_underway or time.perf_counter() - self._began_at < LATE_S)

    def put(self, item: Item) -> None:
        """Queue an item; the caller has checked for room."""
        self.queue.items.append(item)
        if not self.busy:
            self.busy = True
            self.idle.clear()
            self._wake.set()

    def beside(self, others: list[Lane]) -> None:
        """Share work with the other lanes of the node, and what one of them finds locked."""
        self.others = others
        for one in others:
            one._failures.stuck = self._failures.stuck

    async def warm(self) -> None:
        """Connect and plan the statements now, and not when load opens the lane.

        What fails is tried again.
        """
        try:
            await self._append(Batch([], []))
        except (Outage, psycopg.Error) as e:
            log.warning("lane.away", lane=self.number, reason=faults.sentence(e))
            await self.close()

    async def run(self) -> None:
        """Write batches for ever; cancelled at the end of the node, when the queue is empty."""
        try:
            while True:
                await self._wait()
                while self.queue.items:
                    batch, blocked = self.queue.gather()
                    if blocked:
                        release_pending(blocked)
                        self._outcome.blocked(blocked)
                    if batch.messages or batch.changes:
                        self.rows_underway = len(batch.messages) + len(batch.changes)
                        await self._write(batch, self.state.generation)
                        self.rows_underway = 0
                    # An idle lane must not keep its last messages, and their sessions, alive.
                    del batch, blocked
                    if self.queue.items:
                        self._share()
                self.busy = False
                self.idle.set()
                if self._failures.unknown or self.backoff_s:
                    await self._recover()
        finally:
            await self.close()

    def _share(self) -> None:
        """Hand conversations to a lane that has much less to do.

        Here, between two batches, nothing of them is under way: their order holds.
        """
        other = min((one for one in self.others if one.is_responsive), key=lambda one: one.load, default=self)
        excess = self.load - other.load
        if excess > self.opens_at:
            for item in self.queue.split(excess // 2):
                item.conv.lane = other.number
                other.put(item)

    async def _wait(self) -> None:
        # Without a connection, or with an unknown outcome, the lane looks for the database by
        # itself; nobody else may ask.
        try:
            async with asyncio.timeout(max(self.backoff_s, 0.05) if self._failures.unknown or self.backoff_s else None):
                await self._wake.wait()
        except TimeoutError:
            pass
        self._wake.clear()

    async def _recover(self) -> None:
        try:
            await self.connect()
        except Outage:
            return
        if self._failures.unknown:
            self._failures.tell_unknown()

    async def _write(self, batch: Batch, generation: int) -> None:
        """A batch, or what is left of one, that was gathered of a generation of the log: it is not
        written to another.
        """
        items = batch.items
        began = time.perf_counter()
        if began - self._used_at > connection.PROVE_AFTER_S:
            await self.prove()
        self._began_at = self._used_at = began
        try:
            if self._failures.stuck:
                batch = await self._failures.without_stuck(batch)
                items = batch.items
                if not items:
                    return
            if self.state.generation != generation:
                raise Outage("the log is another one since", "moved", is_unknown=False)
            delivered = [item.conv.head for item in items]
            answer = await self._append(batch)
            if self.state.generation != generation:
                raise Outage("the log is another one since", "moved")
            if append_answer.is_behind(batch, answer, delivered):
                self.state.suspect(is_behind=True)
                raise Outage("entries that were delivered are not in the log", "moved")
        except Outage as e:
            self._failures.outage(items, e)
            await self.close_if_broken(e)
        except psycopg.Error as e:
            await self._failures.refused(batch, generation, e)
        else:
            self._metrics.commit_s.observe(time.perf_counter() - self._began_at)
            self._metrics.batch_rows.observe(len(items))
            if self._health.parts:
                self._health.ok("lanes")
            self._acked = (generation, answer.firsts)
            release_pending(items)
            self._outcome.committed(batch, answer, self._now())
            if self._failures.unknown:  # a busy lane is never idle to look
                self._failures.tell_unknown()

    def drop(self) -> None:
        """The log is another one: what waits was meant for the one before."""
        items = list(self.queue.items)
        self.queue.items.clear()
        if items:
            release_pending(items)
            self._outcome.failed(items, Unavailable("the log is another one: connect again", retry_ms=1_000))
        self._failures.forget()


class LaneSettings(NamedTuple):
    """Of all lanes of a node. `feed`: there are other nodes."""

    lanes: int
    rows_max: int  # of a batch
    queue_max: int  # items that wait in a lane
    deadline_s: float
    edit_window_s: float
    feed: bool


class Lanes:
    """All lanes of a node, in `all` from `start` on. Implements `ports.EntryQueue`."""

    def __init__(
        self, opener: Opener, metrics: Metrics, health: Health, settings: LaneSettings, partition: Callable[[], Any]
    ) -> None:
        self.all: list[Lane] = []
        self._opener, self._metrics, self._health = opener, metrics, health
        self._settings, self._partition = settings, partition
        self._queue_max = settings.queue_max

    def submit(self, item: Item) -> bool:
        """Queue an entry for its lane; False: the lane is full, and nothing was queued."""
        lane = choose(self.all, item)
        if len(lane.queue.items) >= self._queue_max:
            return False
        item.conv.pending += 1
        lane.put(item)
        return True

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


def choose(lanes: list[Lane], item: Item) -> Lane:
    """The lane for an item: its conversation's while that has items there, else the first with
    room.
    """
    conv = item.conv
    if conv.pending:
        return lanes[conv.lane]
    for lane in lanes:
        if lane.load < lane.opens_at and lane.is_responsive:
            break
    else:
        lane = min(lanes, key=lambda one: (not one.is_responsive, one.load))
    conv.lane = lane.number
    return lane
