"""The writers: lanes that put entries into the log by group commit.

    Store.submit(item) ──► LaneQueue ──gather──► Lane ──append()──► PostgreSQL
                                                  └── Outcome.committed | failed | refused | blocked | outcome_unknown

A lane has one connection and one batch under way; what comes in meanwhile is the next batch. A
conversation stays in one lane while it has anything there, so its entries keep their order; an idle
conversation goes to the first lane with room, so that few lanes with larger batches do the work and
a further one opens only with the load. More lanes than the load needs cost PostgreSQL's CPU
(docs/decisions/0016). Under a load where no conversation is ever idle, a lane with much more to do
than another hands it whole conversations between two batches.

An answer that does not come (connection cut, deadline passed) leaves the outcome unknown: the
sender gets `unavailable` and its retry with the same cid settles it; the conversations go to
`outcome_unknown`, whose heads are looked up when the database is back. A batch that the data makes
fail is halved until only the row at fault is refused. What an error means is decided in
postgres/faults.py.

A batch is fenced by the log that this node knows, and by the two users of each conversation;
`append` refuses it whole where that is wrong. Its answer is read by postgres/append_answer.py: an
item for which `append` gave nothing has no outcome, never an `ok`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final, Protocol

import psycopg
import structlog

from chatd.core.batch import CHECK_SHIFT, PROBE, SIDE_SHIFT, Batch, Item, LaneQueue
from chatd.errors import Refused, Retryable, Unavailable
from chatd.ids import ConvId
from chatd.metrics import Metrics
from chatd.postgres import append_answer, arrays, connection, faults
from chatd.postgres.append_answer import Answer, First
from chatd.postgres.connection import Backend, Connection, Opener
from chatd.postgres.faults import Fault, Outage
from chatd.postgres.health import Health
from chatd.postgres.queries import query
from chatd.protocol import MESSAGE

log = structlog.get_logger("writer")

RETRIES_MAX: Final = 5  # serialization failures and deadlocks of one batch
BACKOFF_MAX_S: Final = 1.0
# Rows of a lane, waiting and under way, before the next one is used. Those under way count: at the
# highest rates a conversation always has something pending, so it stays where it is, and a lane
# that looked empty while its batch was written drew all of them in. A whole batch: rows cost less
# the more of them there are (docs/decisions/0016).
LANE_OPENS_AT: Final = 1_024
# A batch that is out for longer waits for something, a lock or a server that hangs; half the time
# that a message may take
LATE_S: Final = 0.25

STUCK_S: Final = 5.0
LOCKED: Final = "this conversation cannot be written now: another transaction holds it; send it again with the same cid"
FOREIGN: Final = (
    "PostgreSQL refuses a conversation that is as this node knows it, perhaps by a trigger that is not chatd's: {}"
)
APPEND: Final = query("append")
HEADS_DECIDED: Final = query("heads_decided")


class Outcome(Protocol):
    """Who is told what became of items. Called in the order of the log, never twice for an item.
    `now`: the loop's clock, in seconds.
    """

    def committed(self, batch: Batch, answer: Answer, now: float) -> None: ...
    def failed(self, items: list[Item], error: Retryable, *, is_unknown: bool = False) -> None: ...
    def refused(self, item: Item) -> None: ...
    def blocked(self, items: list[Item]) -> None: ...
    def outcome_unknown(self, convs: set[ConvId], writers: set[Backend]) -> None: ...


class Lane:
    """One writer. `run` is its task, for the life of the node."""

    def __init__(
        self, number: int, opener: Opener, queue: LaneQueue, outcome: Outcome, metrics: Metrics, health: Health,
        *, deadline_s: float, edit_window_s: float, partition: Callable[[], Any], now: Callable[[], float],
        feed: bool = False,
    ) -> None:  # fmt: skip
        self.number = number
        self.queue = queue
        self.opens_at = min(LANE_OPENS_AT, queue.rows_max)
        self.others: list[Lane] = []  # of the node; it shares with them
        self.busy = False
        self.rows_underway = 0  # of the batch that PostgreSQL has
        self._opener, self._state, self._health = opener, opener.state, health
        self._settings = {
            **connection.LANE,
            "statement_timeout": f"{int(deadline_s * 1000)}ms",
            **(connection.FEED if feed else {}),
        }
        self._outcome, self._metrics = outcome, metrics
        self._deadline_s = deadline_s
        self._edit_window = f"{edit_window_s} s"
        self._partition, self._now = partition, now
        self._conn: Connection | None = None
        # Generation of the log, and what its last batch was given
        self._acked: tuple[int, dict[ConvId, First]] = (0, {})
        self.idle = asyncio.Event()  # nothing queued, nothing under way
        self.idle.set()
        self._wake = asyncio.Event()
        self._outcome_unknown: set[ConvId] = set()
        self._writers: set[Backend] = set()  # who had their batches
        # Conversations whose row another transaction held, and until when that is looked at before
        # a batch waits for them. One for all lanes.
        self.stuck: dict[ConvId, float] = {}
        # Until it tries to connect again, by itself; 0: it could the last time.
        self.backoff_s = 0.0
        self._not_before = 0.0
        self._refusal = Outage("the database is away")  # why it could not; until it tries again, that is the reason
        self._began_at = 0.0  # of the batch under way
        self._used_at = 0.0  # when the connection was opened, or was given its last batch

    @property
    def load(self) -> int:
        """Rows that wait or are under way."""
        return len(self.queue.items) + self.rows_underway

    @property
    def is_outcome_unknown(self) -> bool:
        """Batches had an unknown outcome, and nobody was told yet where to look: the next one is
        under way, or there is no connection.
        """
        return bool(self._outcome_unknown)

    @property
    def is_responsive(self) -> bool:
        """PostgreSQL answers this lane: where it does not, what another lane can write is given to
        that.
        """
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
        if self._conn is not None and not self._conn.closed and self._conn.generation == self._state.generation:
            return
        await self.close()
        if time.monotonic() < self._not_before:
            raise Outage(str(self._refusal), self._refusal.kind, is_unknown=False)
        try:
            conn = await self._opener.open(f"lane {self.number}", self._settings, self._deadline_s)
            try:
                async with asyncio.timeout(self._deadline_s):
                    await self._opener.compare_heads(conn, self.acked)
            except BaseException:
                conn.pgconn.finish()
                raise
        except (Outage, psycopg.Error, OSError, TimeoutError) as e:
            self.backoff_s = min(max(self.backoff_s * 2, 0.05), BACKOFF_MAX_S)
            self._not_before = time.monotonic() + self.backoff_s
            outage = faults.outage(e, is_unknown=False)
            self._refusal = Outage(str(outage), outage.kind)  # without the traceback, which holds all that was at hand
            raise outage from e
        self.backoff_s = 0.0
        self._conn, self._used_at = conn, time.perf_counter()

    @property
    def acked(self) -> dict[int, int]:
        """Conversation -> a seq that was acked: of the last batch, in the log that is."""
        generation, firsts = self._acked
        return {id: first.seq for id, first in firsts.items()} if generation == self._state.generation else {}

    async def warm(self) -> None:
        """Connect, and have the plans made: when the load opens a lane is the worst moment for
        either.

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
                        self._release_pending(blocked)
                        self._outcome.blocked(blocked)
                    if batch.messages or batch.changes:
                        self.rows_underway = len(batch.messages) + len(batch.changes)
                        await self._write(batch, self._state.generation)
                        self.rows_underway = 0
                    del batch, blocked  # an idle lane must not keep its last messages, and their sessions, alive
                    if self.queue.items:
                        self._share()
                self.busy = False
                self.idle.set()
                if self._outcome_unknown or self.backoff_s:
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
            async with asyncio.timeout(max(self.backoff_s, 0.05) if self._outcome_unknown or self.backoff_s else None):
                await self._wake.wait()
        except TimeoutError:
            pass
        self._wake.clear()

    async def _recover(self) -> None:
        try:
            await self.connect()
        except Outage:
            return
        if self._outcome_unknown:
            self._tell_outcome_unknown()

    def _tell_outcome_unknown(self) -> None:
        convs, self._outcome_unknown = self._outcome_unknown, set()
        writers, self._writers = self._writers, set()
        self._outcome.outcome_unknown(convs, writers)

    async def _write(self, batch: Batch, generation: int) -> None:
        """A batch, or what is left of one, that was gathered of a generation of the log: it is not
        written to another.
        """
        items = batch.items
        began = time.perf_counter()
        if began - self._used_at > connection.PROVE_AFTER_S and self._conn is not None and not self._conn.closed:
            # After a quiet spell: a batch over a dead connection would wait for its deadline, and
            # be unknown
            await connection.is_alive(self._conn)
        self._began_at = self._used_at = began
        try:
            if self.stuck:
                batch = await self._without_stuck(batch)
                items = batch.items
                if not items:
                    return
            if self._state.generation != generation:
                raise Outage("the log is another one since", "moved", is_unknown=False)
            delivered = [item.conv.head for item in items]
            answer = await self._append(batch)
            if self._state.generation != generation:
                raise Outage("the log is another one since", "moved")
            if append_answer.is_behind(batch, answer, delivered):
                self._state.suspect(is_behind=True)
                raise Outage("entries that were delivered are not in the log", "moved")
        except Outage as e:
            self._outage(items, e)
            await self.close_if_broken(e)
        except psycopg.Error as e:
            if faults.judge(e) is Fault.LOCKED:
                await self._write_unlocked(batch, generation, e)
                return
            if len(items) > 1:
                await self._write_halves(batch, generation)
                return
            if faults.judge(e) is Fault.STRANGER:
                await self._write_stranger(items, generation, e)
                return
            log.warning(
                "entry.refused", lane=self.number, conv=items[0].conv.id, sqlstate=e.sqlstate, reason=faults.sentence(e)
            )
            self._release_pending(items)
            if faults.judge(e) is Fault.DATA:
                self._outcome.refused(items[0])
            else:
                self._fail_alone(items)
        else:
            self._metrics.commit_s.observe(time.perf_counter() - self._began_at)
            self._metrics.batch_rows.observe(len(items))
            if self._health.parts:
                self._health.ok("lanes")
            self._acked = (generation, answer.firsts)
            self._release_pending(items)
            self._outcome.committed(batch, answer, self._now())
            if self._outcome_unknown:  # a busy lane is never idle to look
                self._tell_outcome_unknown()

    def _outage(self, items: list[Item], e: Outage) -> None:
        told = self._health.parts.get("lanes")
        # An outage is one line, however many batches fail in it
        tell = log.warning if told is None or told.kind != e.kind else log.debug
        tell(
            "batch.unknown" if e.is_unknown else "batch.failed",
            lane=self.number,
            rows=len(items),
            kind=e.kind,
            reason=str(e),
        )
        self._metrics.batches_failed += 1
        self._health.failed("lanes", e)
        if e.is_unknown:
            self._outcome_unknown.update(item.conv.id for item in items)
            if self._conn is not None and self._conn.backend is not None:
                self._writers.add(self._conn.backend)
        self._release_pending(items)
        error = Unavailable(
            f"the database does not take it now ({e.kind}); send it again with the same cid", retry_ms=1_000
        )
        self._outcome.failed(items, error, is_unknown=e.is_unknown)

    async def close_if_broken(self, e: Outage) -> None:
        """After an answer that says that nothing was done, the connection is good for the next
        batch.
        """
        if e.is_unknown or e.kind == "moved":
            await self.close()

    async def _write_halves(self, batch: Batch, generation: int) -> None:
        for half in batch.halves():
            # What is queued behind an entry of the first half must not be written if that one
            # failed.
            part, blocked = half.sift()
            if blocked:
                self._release_pending(blocked)
                self._outcome.blocked(blocked)
            if part.messages or part.changes:
                await self._write(part, generation)

    async def _write_unlocked(self, batch: Batch, generation: int, e: psycopg.Error) -> None:
        """Another transaction holds the row of one of these conversations for longer than
        `lock_timeout`: the others are not to wait for it.
        """
        items = batch.items
        try:
            locked = await self._locked({item.conv.id for item in items})
        except (Outage, psycopg.Error, OSError, TimeoutError) as probe:
            self._outage(items, faults.outage(probe, is_unknown=False))
            await self.close()
            return
        # The row of a message that one of them changes: messages, which lock no such row, go on
        if not locked and batch.changes:
            if len(items) > 1:
                await self._write_halves(batch, generation)
            else:
                self._release_pending(items)
                self._fail_alone(items)
            return
        if not locked:  # it was let go since, or what is held is no row, as by DDL on the log
            self._outage(items, faults.outage(e, is_unknown=False))
            return
        rest = self._leave(batch, locked)
        if rest.messages or rest.changes:
            await self._write(rest, generation)

    async def _without_stuck(self, batch: Batch) -> Batch:
        """Of conversations that were held a moment ago it is asked first whether they are still:
        without waiting, in one round trip.
        """
        now = time.monotonic()
        for id in [id for id, until in self.stuck.items() if until < now]:
            del self.stuck[id]
        asked = {item.conv.id for item in batch.items if item.conv.id in self.stuck}
        if not asked:
            return batch
        try:
            locked = await self._locked(asked)
        except (psycopg.Error, OSError, TimeoutError) as e:
            raise faults.outage(e, is_unknown=False) from e
        for id in asked - locked:
            self.stuck.pop(id, None)
        return self._leave(batch, locked) if locked else batch

    async def _locked(self, convs: set[ConvId]) -> set[ConvId]:
        await self.connect()
        assert self._conn is not None
        async with asyncio.timeout(self._deadline_s):
            cur: psycopg.AsyncRawCursor[Any] = psycopg.AsyncRawCursor(self._conn)
            await cur.execute(HEADS_DECIDED, (arrays.BigintArray(list(convs)),), binary=True)
            return convs - {row[0] for row in await cur.fetchall()}

    def _leave(self, batch: Batch, locked: set[ConvId]) -> Batch:
        """Fail what is in these conversations; gives the rest."""
        until = time.monotonic() + STUCK_S
        # A lock is one line, however many batches meet it
        tell = log.debug if locked <= self.stuck.keys() else log.warning
        self.stuck.update(dict.fromkeys(locked, until))
        left = [item for item in batch.items if item.conv.id in locked]
        tell("conversation.locked", lane=self.number, conversations=sorted(locked)[:10], rows=len(left))
        self._release_pending(left)
        self._outcome.failed(left, Unavailable(LOCKED, retry_ms=1_000))
        return Batch(
            [i for i in batch.messages if i.conv.id not in locked],
            [i for i in batch.changes if i.conv.id not in locked],
        )

    async def _write_stranger(self, items: list[Item], generation: int, e: psycopg.Error) -> None:
        """One conversation is not the one that this node knows, says the SQLSTATE.

        A trigger of somebody else's may say so: the row is looked at.
        """
        conv = items[0].conv
        try:
            await self.connect()
            assert self._conn is not None
            async with asyncio.timeout(self._deadline_s):
                is_known = await self._opener.holds(self._conn, conv.id, conv.a, conv.b, conv.head)
        except (Outage, psycopg.Error, OSError, TimeoutError) as probe:
            self._outage(items, faults.outage(probe, is_unknown=False))
            await self.close()
            return
        if is_known:
            self._outage(items, Outage(FOREIGN.format(faults.sentence(e)), "other", is_unknown=False))
            return
        if self._state.generation == generation:
            self._state.suspect(is_behind=True)
        self._release_pending(items)
        self._fail_alone(items)

    def _fail_alone(self, items: list[Item]) -> None:
        """One conversation alone cannot be written: it is not the one that this node knows, or
        another transaction holds a message of it.
        """
        self._outcome.failed(
            items,
            Unavailable("this conversation cannot be written now; send it again with the same cid", retry_ms=1_000),
        )

    def drop(self) -> None:
        """The log is another one: what waits was meant for the one before."""
        items = list(self.queue.items)
        self.queue.items.clear()
        if items:
            self._release_pending(items)
            self._outcome.failed(items, Unavailable("the log is another one: connect again", retry_ms=1_000))
        self._outcome_unknown.clear()
        self._writers.clear()

    def _release_pending(self, items: list[Item]) -> None:
        for item in items:
            item.conv.pending -= 1
            if item.twins:
                item.conv.pending -= len(item.twins)

    async def _append(self, batch: Batch) -> Answer:
        """One round trip.

        Raises Outage, or psycopg.Error where a part of the batch is at fault: the data, or a
        conversation.
        """
        m = batch.messages
        convs = {i.conv.id for i in m}
        messages = convs
        if batch.changes:
            convs = convs | {i.conv.id for i in batch.changes}
        m_any = 0
        for i in m:
            m_any |= i.flags
        params = (
            self._state.fence,
            len(convs),
            m_any,
            arrays.BigintArray([i.conv.id for i in m]),
            arrays.UuidArray([i.cid for i in m]),
            arrays.TextArray([i.body for i in m]),
            arrays.IntArray([i.conv.check | i.side << SIDE_SHIFT | i.flags for i in m]),
            *(_change_arrays(batch.changes) if batch.changes else _NO_CHANGES),
            self._edit_window,
        )
        for _ in range(RETRIES_MAX):
            await self.connect()
            conn = self._conn
            assert conn is not None
            try:
                async with asyncio.timeout(self._deadline_s):
                    cur = psycopg.AsyncRawCursor(conn)
                    await cur.execute(APPEND, params, binary=True)
                    rows = await cur.fetchall()
            except (OSError, TimeoutError, psycopg.InterfaceError) as e:
                raise faults.outage(e, is_unknown=True) from e
            except psycopg.Error as e:
                match faults.judge(e):
                    case Fault.CONFLICT:
                        self._metrics.batches_retried += 1
                    case Fault.PARTITION:
                        # Retention is late; short partitions may be over before the next try
                        await self._make_partition()
                    case Fault.DATA | Fault.STRANGER | Fault.LOCKED:
                        raise
                    case Fault.MOVED:
                        self._state.suspect()
                        raise faults.outage(e, is_unknown=False) from e
                    case _ if not conn.closed and connection.is_stale(conn, e):
                        await self.close()
                    case _:
                        # An ERROR has rolled the statement back. With FATAL the connection ends,
                        # and what it had committed is unknown.
                        raise faults.outage(e, is_unknown=conn.closed) from e
            else:
                if conn.warnings:  # committed, but not where it must be
                    conn.warnings = 0
                    raise Outage(f"PostgreSQL warned: {conn.warning}", "warning")
                return append_answer.read(rows, batch, messages)
        raise Outage(f"still in conflict after {RETRIES_MAX} tries", "conflict", is_unknown=False)

    async def _make_partition(self) -> None:
        try:
            await self._partition()
        except (Refused, psycopg.Error, OSError, TimeoutError) as e:
            raise Outage(
                f"no partition for now, and none could be made: {faults.sentence(e)}", "partition", is_unknown=False
            ) from e

    async def close(self) -> None:
        """Let the connection go, if there is one. Idempotent; `connect` makes another."""
        conn, self._conn = self._conn, None
        if conn is not None:
            await connection.close(conn)


def _change_arrays(x: list[Item]) -> tuple[arrays.AnyArray, ...]:
    named = [i.refcid for i in x] if any(i.refcid for i in x) else []  # behind the cids: sql/functions/append.sql
    return (
        arrays.BigintArray([i.conv.id for i in x]),
        arrays.SmallintArray([i.side for i in x]),
        arrays.UuidArray([*(i.cid for i in x), *named]),
        arrays.TextArray([i.body for i in x]),
        arrays.SmallintArray([-i.kind if i.flags & PROBE else i.kind for i in x]),
        arrays.BigintArray([i.ref or 0 for i in x]),
        arrays.IntArray([i.conv.check >> CHECK_SHIFT for i in x]),
    )


_NO_CHANGES: Final = _change_arrays([])  # nearly every batch has none, and to encode that took 5.8 us


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


assert MESSAGE == 0  # `append` has the messages' kind built in
