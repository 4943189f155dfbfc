"""The connection of one lane: opened again by itself, and the round trip of `append` over it.

    connect ──► Opener ──► the lane's log, compared with what was acked
    _append ──► rows of a batch ──► Answer

After a failure it waits before the next try (`backoff_s`), and gives the reason of the last one
until then. A serialization failure or a deadlock is tried again at once; a missing partition is
made. Other errors are the caller's: an `Outage`, or psycopg's error where a part of the batch is
at fault.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import psycopg
import structlog

from chatd.core.batch import CHECK_SHIFT, PROBE, SIDE_SHIFT, Batch, Item
from chatd.core.conversation import Conversation
from chatd.errors import Refused
from chatd.ids import ConvId
from chatd.metrics import Metrics
from chatd.postgres import append_answer, arrays, connection, faults
from chatd.postgres.append_answer import Answer, First
from chatd.postgres.connection import Backend, Opener, PgConnection
from chatd.postgres.faults import Fault, Outage
from chatd.postgres.queries import query
from chatd.protocol import MESSAGE

log = structlog.get_logger("writer")

RETRIES_MAX: Final = 5  # serialization failures and deadlocks of one batch
BACKOFF_MAX_S: Final = 1.0
APPEND: Final = query("append")
HEADS_DECIDED: Final = query("heads_decided")


class LaneConnection:
    """Of lane `number`. `partition` makes the partition of now; `feed`: there are other nodes."""

    def __init__(
        self,
        number: int,
        opener: Opener,
        metrics: Metrics,
        *,
        deadline_s: float,
        edit_window_s: float,
        partition: Callable[[], Awaitable[object]],
        feed: bool,
    ) -> None:
        self.number = number
        self._opener, self.state, self._metrics = opener, opener.state, metrics
        self._settings = {
            **connection.LANE,
            "statement_timeout": f"{int(deadline_s * 1000)}ms",
            **(connection.FEED if feed else {}),
        }
        self._deadline_s, self._edit_window, self._partition = deadline_s, f"{edit_window_s} s", partition
        self._conn: PgConnection | None = None
        # Generation of the log, and what its last batch was given
        self._acked: tuple[int, dict[ConvId, First]] = (0, {})
        # Until it tries to connect again, by itself; 0: it could the last time.
        self.backoff_s = 0.0
        self._not_before = 0.0
        # Why the last try failed: the reason that is given until the next one
        self._refusal = Outage("the database is away")
        self._used_at = 0.0  # when the connection was opened, or was given its last batch

    async def connect(self) -> None:
        """Have a connection, or raise Outage."""
        if self._conn is not None and not self._conn.closed and self._conn.generation == self.state.generation:
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
            # A copy without the traceback, which holds all that was at hand.
            self._refusal = Outage(str(outage), outage.kind)
            raise outage from e
        self.backoff_s = 0.0
        self._conn, self._used_at = conn, time.perf_counter()

    @property
    def acked(self) -> dict[int, int]:
        """Conversation -> a seq that was acked: of the last batch, in the log that is."""
        generation, firsts = self._acked
        return {id: first.seq for id, first in firsts.items()} if generation == self.state.generation else {}

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

    @property
    def backend(self) -> Backend | None:
        """Who serves it in PostgreSQL, as far as that is known."""
        return None if self._conn is None else self._conn.backend

    async def prove(self) -> None:
        """See that a connection which was quiet is alive: over a dead one a batch would wait for
        its deadline, and its outcome be unknown.
        """
        if self._conn is not None and not self._conn.closed:
            await connection.is_alive(self._conn)

    async def close_if_broken(self, e: Outage) -> None:
        """After an answer that says that nothing was done, the connection is good for the next
        batch.
        """
        if e.is_unknown or e.kind == "moved":
            await self.close()

    async def locked(self, convs: set[ConvId]) -> set[ConvId]:
        """Those of these conversations whose row another transaction holds."""
        await self.connect()
        assert self._conn is not None
        async with asyncio.timeout(self._deadline_s):
            cur: psycopg.AsyncRawCursor[Any] = psycopg.AsyncRawCursor(self._conn)
            await cur.execute(HEADS_DECIDED, (arrays.BigintArray(list(convs)),), binary=True)
            return convs - {row[0] for row in await cur.fetchall()}

    async def holds(self, conv: Conversation) -> bool:
        """The row of a conversation is as this node knows it."""
        await self.connect()
        assert self._conn is not None
        async with asyncio.timeout(self._deadline_s):
            return await self._opener.holds(self._conn, conv.id, conv.a, conv.b, conv.head)

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
            self.state.fence,
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
                        self.state.suspect()
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
    # Behind the cids: sql/functions/append.sql
    named = [i.refcid for i in x] if any(i.refcid for i in x) else []
    return (
        arrays.BigintArray([i.conv.id for i in x]),
        arrays.SmallintArray([i.side for i in x]),
        arrays.UuidArray([*(i.cid for i in x), *named]),
        arrays.TextArray([i.body for i in x]),
        arrays.SmallintArray([-i.kind if i.flags & PROBE else i.kind for i in x]),
        arrays.BigintArray([i.ref or 0 for i in x]),
        arrays.IntArray([i.conv.check >> CHECK_SHIFT for i in x]),
    )


# Nearly every batch has none, and to encode that took 5.8 us.
_NO_CHANGES: Final = _change_arrays([])


assert MESSAGE == 0  # `append` has the messages' kind built in
