"""The writers: lanes that put entries into the log by group commit.

    Store.append(item) ──► LaneQueue ──gather──► Lane ──append()──► PostgreSQL
                                                  └── Outcome.committed | failed | refused | blocked | doubtful

A lane has one connection and one batch under way; what comes in meanwhile is the next batch. A conversation stays in one lane while it has
anything there, so its entries keep their order; an idle conversation goes to the first lane with room, so that few lanes with larger batches do the
work and a further one opens only with the load. More lanes than the load needs cost PostgreSQL's CPU (shared/design.md). Under a load where no
conversation is ever idle, a lane with much more to do than another hands it whole conversations between two batches.

An answer that does not come (connection cut, deadline passed) leaves the outcome unknown: the sender is told `unavailable` and its retry with the
same cid settles it; the conversations go to `doubtful`, whose heads are looked up when the database is back.
A batch that the data makes fail is halved until only the row at fault is refused.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple, Protocol

import psycopg
import structlog
from psycopg import errors as pg
from psycopg import waiting

from chatd import pgarrays
from chatd.errors import Refused, Retryable, Unavailable
from chatd.ids import ConvId
from chatd.lanes import AGAIN, PROBE, Batch, Item, LaneQueue
from chatd.metrics import Metrics
from chatd.protocol import MESSAGE
from chatd.queries import query

log = structlog.get_logger("writer")

RETRIES_MAX: Final = 5  # serialization failures and deadlocks of one batch
BACKOFF_MAX_S: Final = 1.0
# Rows of a lane, waiting and under way, before the next one is used. Those under way count: at the highest rates a conversation always has something
# pending, so it stays where it is, and a lane that looked empty while its batch was written drew all of them in. A whole batch: rows cost less the
# more of them there are (docs/decisions/0016).
LANE_OPENS_AT: Final = 1_024
LATE_S: Final = 0.25  # a batch that is out for longer waits for something, a lock or a server that hangs; half the time that a message may take

# The plan of `append` must not depend on how full the tables were when it was made: each of its joins is a few index probes.
LANE_OPTIONS: Final = (
    "-c enable_seqscan=off -c enable_hashjoin=off -c enable_mergejoin=off -c enable_bitmapscan=off"
    " -c plan_cache_mode=force_generic_plan -c jit=off -c synchronous_commit=on -c client_min_messages=error"
    # `append` looks for duplicates in a snapshot newer than its locks; the database's or role's default may be another level.
    " -c default_transaction_isolation=read\\ committed"
)
FEED_OPTION: Final = "-c chatd.feed=on"  # what this session writes is told to the feed (sql/migrations/0003_pre_feed.sql)
APPEND: Final = query("append")


class Row(NamedTuple):
    """One row of `append`: see its comment in sql/migrations."""

    ord: int | None
    conv: int
    seq: int
    ts: int
    note: str | None


class Outcome(Protocol):
    """Who is told what became of items. Called in the order of the log, never twice for an item."""

    def committed(self, batch: Batch, rows: list[Row]) -> None: ...
    def failed(self, items: list[Item], error: Retryable) -> None: ...
    def refused(self, item: Item) -> None: ...
    def blocked(self, items: list[Item]) -> None: ...
    def doubtful(self, convs: set[ConvId]) -> None: ...


class Outage(Exception):
    """The database did not answer, or cannot: the outcome is unknown."""


def _is_data_fault(e: psycopg.Error) -> bool:
    """The rows are at fault (also by a trigger that raises), not the server, the schema or the connection."""
    return (e.sqlstate or "")[:2] in ("22", "23", "44", "P0")


class Connection(psycopg.AsyncConnection[Any]):
    """psycopg's, but that a wait which is cancelled ends at once and closes the connection.

    psycopg first asks the server to cancel and waits up to 10 s for that; a server that hangs would hold a lane or a reader for so long past its
    deadline. The statement ends by itself at `statement_timeout`.
    """

    async def wait(self, gen: Any, interval: float = 1.0, timeout: float | None = None) -> Any:
        try:
            return await waiting.wait_async(gen, self.pgconn.socket, interval=interval, timeout=timeout)
        except asyncio.CancelledError:
            self.pgconn.finish()
            raise


class Lane:
    """One writer. `run` is its task, for the life of the node."""

    def __init__(
        self, number: int, conninfo: str, queue: LaneQueue, outcome: Outcome, metrics: Metrics,
        *, deadline_s: float, edit_window_s: float, partition: Callable[[], Any], feed: bool = False,
    ) -> None:  # fmt: skip
        self.number = number
        self.queue = queue
        self.opens_at = min(LANE_OPENS_AT, queue.rows_max)
        self.others: list[Lane] = []  # of the node; it shares with them
        self.busy = False
        self.rows_underway = 0  # of the batch that PostgreSQL has
        self._conninfo = psycopg.conninfo.make_conninfo(
            conninfo, connect_timeout=3,
            options=f"{options(conninfo)} {LANE_OPTIONS} -c statement_timeout={int(deadline_s * 1000)} {FEED_OPTION if feed else ''}",
            tcp_user_timeout=int(deadline_s * 1000), application_name=f"chatd lane {number}",
        )  # fmt: skip
        self._outcome, self._metrics = outcome, metrics
        self._deadline_s = deadline_s
        self._edit_window = f"{edit_window_s} s"
        self._partition = partition
        self._conn: psycopg.AsyncConnection[Any] | None = None
        self.idle = asyncio.Event()  # nothing queued, nothing under way
        self.idle.set()
        self._wake = asyncio.Event()
        self._doubtful: set[ConvId] = set()
        # Until it tries to connect again, by itself; 0: it could the last time.
        self.backoff_s = 0.0
        self._not_before = 0.0
        self._began_at = 0.0  # of the batch under way

    @property
    def load(self) -> int:
        """Rows that wait or are under way."""
        return len(self.queue.items) + self.rows_underway

    @property
    def answers(self) -> bool:
        """PostgreSQL does, here: what another lane can write is given to it."""
        return not self.backoff_s and (not self.rows_underway or time.perf_counter() - self._began_at < LATE_S)

    def put(self, item: Item) -> None:
        """Queue an item; the caller has checked for room."""
        self.queue.items.append(item)
        if not self.busy:
            self.busy = True
            self.idle.clear()
            self._wake.set()

    async def connect(self) -> None:
        """Have a connection, or raise Outage."""
        if self._conn is not None and not self._conn.closed:
            return
        if time.monotonic() < self._not_before:
            raise Outage("the database is away")
        try:
            async with asyncio.timeout(self._deadline_s):
                conn = await Connection.connect(self._conninfo, autocommit=True, prepare_threshold=0)
        except (psycopg.Error, OSError, TimeoutError) as e:
            self.backoff_s = min(max(self.backoff_s * 2, 0.05), BACKOFF_MAX_S)
            self._not_before = time.monotonic() + self.backoff_s
            raise Outage(str(e)) from e
        pgarrays.register(conn)
        self.backoff_s = 0.0
        self._conn = conn

    async def warm(self) -> None:
        """Connect, and have the plans made: when the load opens a lane is the worst moment for either. What fails is tried again."""
        try:
            await self._append(Batch([], []))
        except (Outage, psycopg.Error) as e:
            log.warning("lane.away", lane=self.number, reason=str(e))
            await self.close()

    async def run(self) -> None:
        """Write batches for ever; cancelled at the end of the node, when the queue is empty."""
        try:
            while True:
                await self._wait()
                while self.queue.items:
                    batch, blocked = self.queue.gather()
                    if blocked:
                        self._settle(blocked)
                        self._outcome.blocked(blocked)
                    if batch.messages or batch.changes:
                        self.rows_underway = len(batch.messages) + len(batch.changes)
                        await self._write(batch)
                        self.rows_underway = 0
                    del batch, blocked  # an idle lane must not keep its last messages, and their sessions, alive
                    if self.queue.items:
                        self._share()
                self.busy = False
                self.idle.set()
                if self._doubtful or self.backoff_s:
                    await self._recover()
        finally:
            await self.close()

    def _share(self) -> None:
        """Hand conversations to a lane that has much less to do. Here, between two batches, nothing of them is under way: their order holds."""
        other = min((one for one in self.others if one.answers), key=lambda one: one.load, default=self)
        excess = self.load - other.load
        if excess > self.opens_at:
            for item in self.queue.split(excess // 2):
                item.conv.lane = other.number
                other.put(item)

    async def _wait(self) -> None:
        # Without a connection, or with doubtful conversations, the lane looks for the database by itself; nobody else may ask.
        try:
            async with asyncio.timeout(max(self.backoff_s, 0.05) if self._doubtful or self.backoff_s else None):
                await self._wake.wait()
        except TimeoutError:
            pass
        self._wake.clear()

    async def _recover(self) -> None:
        try:
            await self.connect()
        except Outage:
            return
        if self._doubtful:
            self._tell_doubtful()

    def _tell_doubtful(self) -> None:
        doubtful, self._doubtful = self._doubtful, set()
        self._outcome.doubtful(doubtful)

    async def _write(self, batch: Batch) -> None:
        items = batch.items
        self._began_at = time.perf_counter()
        try:
            rows = await self._append(batch)
        except Outage as e:
            log.warning("batch.unknown", lane=self.number, rows=len(items), reason=str(e).splitlines()[0] if str(e) else repr(e))
            self._metrics.batches_failed += 1
            await self.close()
            self._doubtful.update(item.conv.id for item in items)
            self._settle(items)
            self._outcome.failed(items, Unavailable("the database is away; send it again with the same cid", retry_ms=1_000))
        except psycopg.Error as e:
            if len(items) > 1:
                for half in batch.halves():
                    # What is queued behind an entry of the first half must not be written if that one failed.
                    batch, blocked = half.sift()
                    if blocked:
                        self._settle(blocked)
                        self._outcome.blocked(blocked)
                    if batch.messages or batch.changes:
                        await self._write(batch)
                return
            log.warning("entry.refused", lane=self.number, conv=items[0].conv.id, sqlstate=e.sqlstate)
            self._settle(items)
            self._outcome.refused(items[0])
        else:
            self._metrics.commit_s.observe(time.perf_counter() - self._began_at)
            self._metrics.batch_rows.observe(len(items))
            self._settle(items)
            self._outcome.committed(batch, rows)
            if self._doubtful:  # a busy lane is never idle to look
                self._tell_doubtful()

    def _settle(self, items: list[Item]) -> None:
        for item in items:
            item.conv.pending -= 1
            if item.twins:
                item.conv.pending -= len(item.twins)

    async def _append(self, batch: Batch) -> list[Row]:
        """One round trip. Raises Outage, or psycopg.Error where the data is at fault."""
        m = batch.messages
        params = (
            pgarrays.BigintArray([i.conv.id for i in m]), pgarrays.SmallintArray([i.side for i in m]),
            pgarrays.UuidArray([i.cid for i in m]), pgarrays.TextArray([i.body for i in m]), pgarrays.SmallintArray([i.flags for i in m]),
            *(_change_arrays(batch.changes) if batch.changes else _NO_CHANGES), self._edit_window,
        )  # fmt: skip
        for _ in range(RETRIES_MAX):
            await self.connect()
            assert self._conn is not None
            try:
                async with asyncio.timeout(self._deadline_s):
                    cur = psycopg.AsyncRawCursor(self._conn)
                    await cur.execute(APPEND, params, binary=True)
                    return [Row._make(row) for row in await cur.fetchall()]
            except (pg.SerializationFailure, pg.DeadlockDetected):
                self._metrics.batches_retried += 1
            except pg.CheckViolation as e:
                if e.diag.constraint_name is not None:
                    raise
                await self._make_partition()  # no partition for this time: retention is late; short ones may be over before the next try
            except (OSError, TimeoutError, psycopg.InterfaceError) as e:
                raise Outage(repr(e)) from e
            except psycopg.Error as e:
                if _is_data_fault(e):
                    raise
                raise Outage(str(e)) from e
        raise Outage(f"still in conflict after {RETRIES_MAX} tries")

    async def _make_partition(self) -> None:
        try:
            await self._partition()
        except (Refused, psycopg.Error, OSError, TimeoutError) as e:
            raise Outage(f"no partition for now, and none could be made: {e}") from e

    async def close(self) -> None:
        """Let the connection go, if there is one. Idempotent; `connect` makes another."""
        conn, self._conn = self._conn, None
        if conn is not None:
            try:
                async with asyncio.timeout(1):
                    await conn.close()
            except Exception as e:  # a connection in an unknown state may fail in any way; it is let go
                log.debug("lane.close", error=repr(e))


def _change_arrays(x: list[Item]) -> tuple[pgarrays.AnyArray, ...]:
    return (
        pgarrays.BigintArray([i.conv.id for i in x]), pgarrays.SmallintArray([i.side for i in x]),
        pgarrays.UuidArray([i.cid for i in x]), pgarrays.TextArray([i.body for i in x]),
        pgarrays.SmallintArray([-i.kind if i.flags & PROBE else i.kind for i in x]), pgarrays.BigintArray([i.ref or 0 for i in x]),
    )  # fmt: skip


_NO_CHANGES: Final = _change_arrays([])  # nearly every batch has none, and to encode that took 5.8 us


def options(conninfo: str) -> str:
    """What the operator's own conninfo sets for each session, such as a search_path; ours come behind it."""
    return str(psycopg.conninfo.conninfo_to_dict(conninfo).get("options") or "")


def flags(retry: bool, probe: bool) -> int:
    """Item flags as `append` reads them."""
    return (AGAIN if retry else 0) | (PROBE if probe else 0)


def choose(lanes: list[Lane], item: Item) -> Lane:
    """The lane for an item: its conversation's while that has items there, else the first with room."""
    conv = item.conv
    if conv.pending:
        return lanes[conv.lane]
    for lane in lanes:
        if lane.load < lane.opens_at and lane.answers:
            break
    else:
        lane = min(lanes, key=lambda one: (not one.answers, one.load))
    conv.lane = lane.number
    return lane


assert MESSAGE == 0  # `append` has the messages' kind built in
