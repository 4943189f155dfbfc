"""Looks once a second whether the database has the known log and takes writes; adopts another log.

    look ──► SAME       the clock is read; an outage, if there was one, is over
         ──► MOVED      adopt: a new epoch for all nodes, under a lock of the row of `meta`,
                        unless another node has made it
                        ─► `moved` is called: memory of the log is dropped, all sessions are closed
                           with 1012 (server.py)
         ──► LEFT, STANDBY, an error      an outage, with its reason

Every connection compares the log when it is opened (postgres/connection.py). Where it finds another
one, it has the watch look at once, and nothing is written over it. The watch itself detects what
happens to an idle node, and to a log under a connection that stays open: `chatd epoch --renew`, a
dump restored in place, rows that were deleted or set back. For the last it checks the newest entry
that this node knows, which is missing whenever a log was set back.

How far the log fell back is counted by what this node holds in memory: what other nodes have acked
is not known here.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

import psycopg
import structlog

from chatd.ids import ConvId
from chatd.loop.pulse import Pulse
from chatd.postgres import arrays, connection, faults, old_primaries
from chatd.postgres.connection import Opener, PgConnection
from chatd.postgres.faults import Outage
from chatd.postgres.health import Health
from chatd.postgres.log_state import LogState, LogVerdict, Renewals, Sight, successor
from chatd.postgres.queries import query
from chatd.postgres.replay_floor import ReplayFloor

log = structlog.get_logger("database")

LOOK_S: Final = 1.0
ALONE: Final = 1.25  # a look is due after so many `LOOK_S` without a beat of the node
DEADLINE_S: Final = 2.5
START_S: Final = 10.0
OPEN_S: Final = 8.0  # it is an outage already: time for two hosts that hang, and a third
COUNT_S: Final = 2.0  # for counting what was lost, which is only logged
COUNT_CONVS: Final = 5_000  # a query
RESTAMP_ROWS: Final = 500  # conversations a transaction: their senders wait for it, some 10 ms if each row is written
RESTAMP_S: Final = 0.25  # of each second
# Between two tries of the disk, so that a probe of readiness is right within 0.5 s. One costs
# PostgreSQL some 2 ms
DISK_S: Final = 0.3
# Sorts some 500 KB with 64 KB of memory: the temporary file shows whether the disk has room, and is
# gone afterwards
SPILL: Final = "SELECT count(*) FROM (SELECT repeat(n::text, 100) FROM generate_series(1, 1000) n ORDER BY 1) t"
WATCH: Final = query("watch")
NODES: Final = query("nodes")
# Both queries in one statement, and so in one round trip: each answer wakes an idle node. The
# parameters of WATCH follow those of NODES.
WATCH_NODES: Final = "\n".join(
    (
        "SELECT w.*, (SELECT array_agg(ARRAY[n.key::text, n.name, n.address] ORDER BY n.key) FROM (",
        NODES,
        ") n (key, name, address)) FROM (",
        WATCH.replace("$3", "$5").replace("$2", "$4").replace("$1", "$3"),
        ") w",
    )
)
RESTAMP: Final = query("restamp")


# Kinds of outage that waiting may end although the database answers: a standby will be promoted, a
# disk will have room again
WAITED_FOR: Final = frozenset(("standby", "read-only", "starting", "stopping"))
# Kinds that only the operator can mend
SETTINGS: Final = {"encoding", "pooler", "settings"}


class Latest(NamedTuple):
    """The conversation of the last entry that this node knows.

    `head`: its log has at least this seq. `pair`: `pair_check` of its users (core/conversation.py).
    """

    id: ConvId
    head: int
    pair: int


NOTHING: Final = (None, None, None)


class Errand(Protocol):
    """What else is asked over the connection of the watch; `Census` (postgres/census.py)."""

    def asks(self) -> tuple[int, float] | None:
        """The parameters of NODES, to be asked with the log's state; None: not this time."""

    async def look(self, conn: PgConnection, nodes: Sequence[Sequence[str]] | None) -> None:
        """Called after each look that found the known log. Raises what psycopg raises.

        `nodes`: the rows of NODES; None if they were not asked for.
        """


class Fall(NamedTuple):
    """How far the log fell back, compared with what this node held. None: not counted.

    `conversations`: those that are behind or gone. `entries`: those that are missing.
    """

    conversations: int | None
    entries: int | None


class DatabaseWatch:
    """`start` before anything else asks the database, then `run` for the node's life.

    `moved` is called when another log is adopted, with the state already changed, in the same turn
    of the loop. `held` gives the heads of all conversations in memory, `acked` those of the lanes'
    last batches, `latest` the last entry that this node knows. `clock(now_ms, rtt_s)` gets the
    database's time and how long the answer took.
    """

    def __init__(
        self,
        opener: Opener,
        health: Health,
        *,
        moved: Callable[[Fall], None],
        held: Callable[[], Mapping[ConvId, int]],
        acked: Callable[[], Mapping[int, int]],
        latest: Callable[[], Latest | None],
    ) -> None:
        self._opener, self._health = opener, health
        self._moved, self._held, self._acked, self._latest = moved, held, acked, latest
        self._renewals = Renewals()
        self._has_warned = False  # log.differs was logged since the last renewal
        self.clock: Callable[[int, float], None] = lambda ms, rtt_s: None
        self.errand: Errand | None = None  # what else is asked over this connection (postgres/census.py)
        self.pulse = Pulse()  # the owner's: a look is due at its beat
        self.replay_floor = ReplayFloor()  # each look tells it the log's position
        self._conn: PgConnection | None = None
        self._looked = asyncio.Event()  # the look under way, or the next one, is over
        self._is_asked = False  # a caller waits for the next look
        self._disk_tried_at = float("-inf")

    @property
    def _state(self) -> LogState:
        return self._opener.state

    async def probe(self) -> None:
        """Raises Outage if the database cannot be used, whatever schema it has.

        The `kind` of the outage tells whether waiting helps.
        """
        await old_primaries.ask(self._opener)
        conn = await self._opener.open("start", connection.COMMON, START_S, compare=False)
        try:
            cur = await conn.execute("SELECT current_setting('transaction_read_only') = 'on'")
            if await cur.fetchone() == (True,):
                raise Outage(READ_ONLY, "read-only", is_unknown=False)
            # A second connection beside it: one alone does not show a pooler by transaction, which
            # would also keep the locks of migrations.
            await connection.close(await self._opener.open("start", connection.COMMON, START_S, compare=False))
        except (psycopg.Error, OSError) as e:
            raise faults.outage(e, is_unknown=False) from e
        finally:
            await connection.close(conn)

    async def start(self) -> None:
        """Learn which log this is. Raises Outage; its `kind` tells whether waiting helps."""
        try:
            await self._look()
        except (psycopg.Error, OSError, TimeoutError) as e:
            raise faults.outage(e, is_unknown=False) from e

    async def run(self) -> None:
        """Look for ever; no answer of PostgreSQL ends it."""
        while True:
            began = time.monotonic()
            try:
                await self._look()
                self._health.ok("watch")
            except Exception as e:
                if not isinstance(e, psycopg.Error | OSError | TimeoutError | Outage):
                    log.exception("watch.bug")
                self._health.failed("watch", e)
                await self.close()
            self._looked.set()
            self._looked = asyncio.Event()
            try:
                async with self.pulse.rest(max(0.05, LOOK_S * ALONE - (time.monotonic() - began))):
                    await self._state.suspected.wait()
                self._state.suspected.clear()
                await asyncio.sleep(0.02)  # all lanes suspect it at once: one look for all
            except TimeoutError:
                pass

    async def answers(self, within_s: float) -> bool:
        """Look now, and try the disk; gives whether the look ended within `within_s`.

        Its result is in `health`.
        """
        looked, self._is_asked = self._looked, True
        self._state.suspected.set()
        try:
            async with asyncio.timeout(within_s):
                await looked.wait()
        except TimeoutError:
            return False
        return True

    async def _look(self) -> None:
        conn, is_new = await self._connect()
        async with asyncio.timeout(DEADLINE_S):
            latest = self._latest()
            sent = time.perf_counter()
            asks = None if self.errand is None else self.errand.asks()
            self.replay_floor.look_begins()
            cur: psycopg.AsyncRawCursor[Any] = psycopg.AsyncRawCursor(conn)
            if asks is None:
                await cur.execute(WATCH, latest or NOTHING, binary=True)
            else:
                await cur.execute(WATCH_NODES, (*asks, *(latest or NOTHING)), binary=True)
            row = await cur.fetchone()
            rtt_s = time.perf_counter() - sent
        if row is None:
            raise Outage("the table `meta` has no row; restore the database", "schema", is_unknown=False)
        seen, is_read_only, now_ms, has_latest, position = Sight(*row[:3]), row[3], row[4], row[5], row[7]
        if latest is not None and not has_latest and self._state.look(seen) is LogVerdict.SAME:
            self._state.suspect(is_behind=True)
        if self._state.look(seen) is LogVerdict.MOVED and self._may_adopt(seen):
            if is_read_only:
                raise Outage(READ_ONLY, "read-only", is_unknown=False)
            await self._adopt(conn)
        else:
            self._opener.compare(conn, seen)
            if is_new:
                async with asyncio.timeout(DEADLINE_S):
                    await self._opener.compare_heads(conn, self._acked())
        self.clock(now_ms, rtt_s)
        self.replay_floor.looked(position)
        if row[6] and not is_read_only:
            await self._restamp(conn)
        if self._health.lacks_disk or self._is_asked:
            await self._try_disk(conn)
        if self.errand is not None:
            async with asyncio.timeout(DEADLINE_S):
                await self.errand.look(conn, None if asks is None else row[8] or ())
        if is_read_only:
            raise Outage(READ_ONLY, "read-only", is_unknown=False)

    async def _try_disk(self, conn: PgConnection) -> None:
        """Try to write a temporary file.

        A caller asks whether the node serves, or a write failed for lack of disk space: on an idle
        node no write would show that this is over.
        """
        if time.monotonic() - self._disk_tried_at < DISK_S:
            return
        self._is_asked, self._disk_tried_at = False, time.monotonic()
        try:
            async with asyncio.timeout(DEADLINE_S), conn.transaction():
                await conn.execute("SET LOCAL work_mem = '64kB'")
                await conn.execute(SPILL)
        except psycopg.Error as e:
            if faults.kind(e) == "disk-full":
                self._health.failed("disk", e)
                return
            if conn.closed:
                raise
        self._health.ok("disk")

    async def _restamp(self, conn: PgConnection) -> None:
        """Run steps of the restamp after a restore, for `RESTAMP_S`.

        The next look, of this node or of another, goes on with it.
        """
        until = time.monotonic() + RESTAMP_S
        async with asyncio.timeout(DEADLINE_S):
            while time.monotonic() < until:
                cur: psycopg.AsyncRawCursor[Any] = psycopg.AsyncRawCursor(conn)
                await cur.execute(RESTAMP, (RESTAMP_ROWS,), binary=True)
                if await cur.fetchone() != (True,):
                    return

    def _may_adopt(self, seen: Sight) -> bool:
        """Whether the log may be adopted now.

        No if it is in its place and differs from memory again, although memory was built from it a
        short time ago. That is logged once.
        """
        state = self._state
        if not state.is_behind or (seen.epoch, seen.recorded, seen.actual) != (
            state.epoch,
            state.identity,
            state.identity,
        ):
            return True
        if self._renewals.may(time.monotonic()):
            self._has_warned = False
            return True
        state.is_behind = False
        if not self._has_warned:
            self._has_warned = True
            log.error(
                "log.differs",
                reason="log and memory differ again after the epoch was renewed for that: does a trigger change rows?",
            )
        return False

    async def _connect(self) -> tuple[PgConnection, bool]:
        if self._conn is not None and not self._conn.closed:
            return self._conn, False
        self._conn = await self._opener.open("watch", connection.READ, OPEN_S, compare=False)
        return self._conn, True

    async def _adopt(self, conn: PgConnection) -> None:
        """Adopt the log of the database, with a new epoch unless another node has made one."""
        state = self._state
        before = (state.epoch, state.identity)
        is_first = not state.is_known
        async with asyncio.timeout(DEADLINE_S), conn.transaction():
            await conn.execute("SET LOCAL lock_timeout = '1s'")
            cur = await conn.execute("SELECT epoch, identity, log_identity() FROM meta FOR UPDATE")
            row = await cur.fetchone()
            assert row is not None
            epoch, recorded, actual = row
            if actual is None:
                raise Outage(connection.STANDBY, "standby", is_unknown=False)
            if recorded is None and is_first:
                await conn.execute("UPDATE meta SET identity = %s, restamp = 0", (actual,))
            elif recorded != actual or (state.is_behind and epoch == state.epoch):
                epoch = successor(epoch, uuid.uuid4().hex)
                await conn.execute("UPDATE meta SET epoch = %s, identity = %s, restamp = 0", (epoch, actual))
                await conn.execute("DELETE FROM feed")  # its rows are of another cluster's transactions
                if is_first:
                    log.error(
                        "log.moved",
                        epoch=epoch,
                        was=recorded,
                        now=actual,
                        reason="a failover or a restore; clients begin anew by the epoch",
                    )
        if is_first:
            state.adopt(epoch, actual)
            return
        fall = await self._count(conn)
        state.adopt(epoch, actual)
        log.error(
            "log.moved",
            epoch_was=before[0],
            epoch=epoch,
            was=before[1],
            now=actual,
            conversations_behind=fall.conversations,
            entries_lost=fall.entries,
            reason="a failover, a restore or `chatd epoch --renew`; all sessions are closed and begin again",
        )
        self._moved(fall)

    async def _count(self, conn: PgConnection) -> Fall:
        """Count what memory holds and this log does not."""
        held = [(id, head) for id, head in self._held().items() if head]
        convs = entries = 0
        try:
            async with asyncio.timeout(COUNT_S):
                for at in range(0, len(held), COUNT_CONVS):
                    part = held[at : at + COUNT_CONVS]
                    cur: psycopg.AsyncRawCursor[Any] = psycopg.AsyncRawCursor(conn)
                    await cur.execute(connection.HEADS, (arrays.BigintArray([id for id, _ in part]),), binary=True)
                    heads = {row[0]: row[1] for row in await cur.fetchall()}
                    for id, head in part:
                        if (missing := head - heads.get(id, 0)) > 0:
                            convs, entries = convs + 1, entries + missing
        except (psycopg.Error, OSError, TimeoutError):
            return Fall(None, None)
        return Fall(convs, entries)

    async def close(self) -> None:
        """Close the connection, if there is one. Idempotent."""
        conn, self._conn = self._conn, None
        if conn is not None:
            await connection.close(conn)


READ_ONLY: Final = (
    "the database is read-only (default_transaction_read_only): its disk may be full, or a failover is under way"
)
