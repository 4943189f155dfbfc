"""A lane: it puts entries into the log by group commit.

    SendPipeline ──submit──► LaneQueue ──gather──► Lane ──append()──► PostgreSQL
                                                    └── Outcome: committed, failed,
                                                        refused, blocked, unknown

A lane has one connection (postgres/lane_connection.py) and one batch under way; what arrives
during it is the next batch. Which lane an entry goes to is decided by postgres/lanes.py. Under a
load where no conversation is ever idle, a lane with much more to do than another hands it whole
conversations between two batches.

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
from collections.abc import Awaitable, Callable
from typing import Final

import psycopg
import structlog

from chatd.core.batch import Batch, Item, LaneQueue, release_pending
from chatd.errors import Unavailable
from chatd.metrics import Metrics
from chatd.postgres import append_answer, connection
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
IDLE_S: Final = 300.0  # a lane but the first that had nothing to do for this long lets its connection go
# A batch that is out for longer waits for something, a lock or a server that hangs; half the time
# that a message may take
LATE_S: Final = 0.25
NOTHING: Final = Batch([], [])


class Lane(LaneConnection):
    """Implements `ports.EntryLane`. `run` is its task for the life of the node.

    `queue_max`: items that wait in it. `now`: the loop's clock, seconds.
    """

    def __init__(
        self,
        number: int,
        opener: Opener,
        queue: LaneQueue,
        outcome: Outcome,
        metrics: Metrics,
        health: Health,
        *,
        queue_max: int,
        deadline_s: float,
        edit_window_s: float,
        partition: Callable[[], Awaitable[object]],
        now: Callable[[], float],
        feed: bool = False,
    ) -> None:
        super().__init__(
            number, opener, metrics, deadline_s=deadline_s, edit_window_s=edit_window_s, partition=partition, feed=feed
        )
        self.queue, self._queue_max = queue, queue_max
        self.opens_at = min(LANE_OPENS_AT, queue.rows_max)
        self.warms_at = self.opens_at // 2  # rows from which on the next lane has a connection
        self.others: list[Lane] = []  # of the node; it shares with them
        self.next: Lane | None = None  # that opens after this one
        self._is_wanted = False  # the one before it is filling
        self.busy = False
        self.underway, self.rows_underway = NOTHING, 0  # the batch that PostgreSQL has
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

    def submit(self, item: Item) -> bool:
        """Queue an entry; False: the lane is full, and nothing was queued."""
        items = self.queue.items
        if len(items) >= self._queue_max:
            return False
        item.conv.pending += 1
        items.append(item)
        if not self.busy:
            self._begin()
        return True

    def _take_over(self, items: list[Item]) -> None:
        """Queue what another lane hands over, which counts as pending already."""
        for item in items:
            item.conv.lane = self.number
        self.queue.items.extend(items)
        if not self.busy:
            self._begin()

    def want(self) -> None:
        """The load may open this lane soon: have a connection by then."""
        if self._conn is None and not self.busy:
            self._is_wanted = True
            self._wake.set()

    def _begin(self) -> None:
        self.busy = True
        self.idle.clear()
        self._wake.set()

    def beside(self, others: list[Lane]) -> None:
        """Share work with the other lanes of the node, and what one of them finds locked."""
        self.others = others
        for one in others:
            one._failures.stuck = self._failures.stuck

    async def run(self) -> None:
        """Write batches for ever; cancelled at the end of the node, when the queue is empty."""
        try:
            while True:
                await self._wait()
                if self._is_wanted:
                    self._is_wanted = False
                    await self.warm()
                while self.queue.items:
                    if self.next is not None and self.load >= self.warms_at:
                        self.next.want()
                    batch, blocked = self.queue.gather()
                    if blocked:
                        release_pending(blocked)
                        self._outcome.blocked(blocked)
                    if batch.messages or batch.changes:
                        self.underway, self.rows_underway = batch, len(batch.messages) + len(batch.changes)
                        await self._write(batch, self.state.generation)
                        self.underway, self.rows_underway = NOTHING, 0
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
            other._take_over(self.queue.split(excess // 2))

    async def _wait(self) -> None:
        # Without a connection, or with an unknown outcome, the lane looks for the database by
        # itself; nobody else may ask.
        is_looking = bool(self._failures.unknown or self.backoff_s)
        rest_s = IDLE_S if self.number and self._conn is not None else None
        try:
            async with asyncio.timeout(max(self.backoff_s, 0.05) if is_looking else rest_s):
                await self._wake.wait()
        except TimeoutError:
            if not is_looking and not self.queue.items:
                await self.close()
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
