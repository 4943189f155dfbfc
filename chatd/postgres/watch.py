"""Once a second: is the log the one that this node knows, and does the database take writes?

And what is done where it is another one.

    look ──► SAME       the clock is read; the outage, if there was one, is over
             MOVED      adopt: a new epoch for all nodes, under the lock of the row of `meta`, unless another node has made it
                        ─► `moved` is called: memory of the log is dropped, all sessions are closed with 1012 (server.py)
             LEFT, STANDBY, an error      an outage, with its reason

Every connection compares what it sees when it is opened (postgres/connection.py) and has the watch
look at once where that is another log; nothing is written over it. So the watch finds by itself
what happens to an idle node, and to a log under a connection that stays: `chatd epoch --renew`, a
dump restored in place, rows that were taken out or set back. Of these it sees the newest entry that
this node knows: whatever sets a log back takes that.

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
from chatd.postgres.connection import Connection, Opener
from chatd.postgres.faults import Outage
from chatd.postgres.health import Health
from chatd.postgres.log_state import LogState, Renewals, Sight, Verdict, successor
from chatd.postgres.queries import query

log = structlog.get_logger("database")

LOOK_S: Final = 1.0
ALONE: Final = 1.25  # times `LOOK_S`: without a beat of the node
DEADLINE_S: Final = 2.5
START_S: Final = 10.0
OPEN_S: Final = 8.0  # an outage already: time for two hosts that hang, and the third
COUNT_S: Final = 2.0  # for counting what was lost; it is only for the log
COUNT_CONVS: Final = 5_000  # a query
RESTAMP_ROWS: Final = 500  # conversations a transaction: their senders wait for it, some 10 ms if each row is written
RESTAMP_S: Final = 0.25  # of each second
# Between two tries of the disk, so that a probe is right within 0.5 s; one costs PostgreSQL some 2
# ms
DISK_S: Final = 0.3
# Sorts some 500 KB where 64 KB are allowed: what writes a file shows whether the disk has room, and
# leaves nothing behind.
SPILL: Final = "SELECT count(*) FROM (SELECT repeat(n::text, 100) FROM generate_series(1, 1000) n ORDER BY 1) t"
WATCH: Final = query("watch")
NODES: Final = query("nodes")
# Both in one statement and so in one round trip: the answer of each is a wake of an idle node. The
# parameters of WATCH come behind those of NODES.
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


# What waiting may heal, although the database answers: a standby will be promoted, a disk will have
# room again.
WAITED_FOR: Final = frozenset(("standby", "read-only", "starting", "stopping"))
# What only the operator can mend.
SETTINGS: Final = {"encoding", "pooler", "settings"}


class Latest(NamedTuple):
    """The conversation of the last entry that this node knows: how far it goes at least, and whose
    it is (registry.pair_check).
    """

    id: ConvId
    head: int
    pair: int


NOTHING: Final = (None, None, None)


class Errand(Protocol):
    """Who else asks over the connection of the watch (postgres/census.py)."""

    def asks(self) -> tuple[int, float] | None:
        """The parameters of NODES, to be asked together with the log's state; None: nothing is
        asked now.
        """

    async def look(self, conn: Connection, nodes: Sequence[Sequence[str]] | None) -> None:
        """The log is the one that is known.

        `nodes`: the rows of NODES; None if they were not asked for. Raises what psycopg raises.
        """


class Fall(NamedTuple):
    """How far the log fell back, by what this node held: conversations behind or gone, and entries
    that are not there. None: not counted.
    """

    conversations: int | None
    entries: int | None


class Watch:
    """`start` before anything else asks the database, then `run` for the node's life.

    `moved` is called when another log is adopted, with the state already changed, in the same turn
    of the loop. `held` gives the heads of all conversations in memory, `acked` those of the lanes'
    last batches, `latest` that of the last entry that this node knows. `clock(database's time in
    ms, how long the answer took in s)`.
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
        self._is_told = False  # that the log and memory differ, and that the epoch was renewed for it only a while ago
        self.clock: Callable[[int, float], None] = lambda ms, rtt_s: None
        self.errand: Errand | None = None  # what else is asked over this connection (postgres/census.py)
        self.pulse = Pulse()  # whose beat it is time to look at; the owner's
        self._conn: Connection | None = None
        self._looked = asyncio.Event()  # the look under way, or the next one, is over
        self._is_asked = False  # somebody waits for the next look
        self._disk_tried_at = float("-inf")

    @property
    def _state(self) -> LogState:
        return self._opener.state

    async def probe(self) -> None:
        """Can the database be used, whatever schema it has?

        Raises Outage, whose `kind` tells whether waiting helps.
        """
        await old_primaries.ask(self._opener)
        conn = await self._opener.open("start", connection.COMMON, START_S, compare=False)
        try:
            cur = await conn.execute("SELECT current_setting('transaction_read_only') = 'on'")
            if await cur.fetchone() == (True,):
                raise Outage(READ_ONLY, "read-only", is_unknown=False)
            # A second one beside it: one alone does not show a pooler by transaction, which would
            # keep the locks of migrations, too.
            await connection.close(await self._opener.open("start", connection.COMMON, START_S, compare=False))
        except (psycopg.Error, OSError) as e:
            raise faults.outage(e, is_unknown=False) from e
        finally:
            await connection.close(conn)

    async def start(self) -> None:
        """Learn which log this is. Raises Outage, whose `kind` says whether waiting helps."""
        try:
            await self._look()
        except (psycopg.Error, OSError, TimeoutError) as e:
            raise faults.outage(e, is_unknown=False) from e

    async def run(self) -> None:
        """Look for ever; nothing that PostgreSQL answers ends it."""
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
                await asyncio.sleep(0.02)  # what is suspected by all lanes at once is one look
            except TimeoutError:
                pass

    async def answers(self, within_s: float) -> bool:
        """Look now, at the disk, too; whether the look is over in this time, with whatever result:

        `health` has it.
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
            cur: psycopg.AsyncRawCursor[Any] = psycopg.AsyncRawCursor(conn)
            if asks is None:
                await cur.execute(WATCH, latest or NOTHING, binary=True)
            else:
                await cur.execute(WATCH_NODES, (*asks, *(latest or NOTHING)), binary=True)
            row = await cur.fetchone()
            rtt_s = time.perf_counter() - sent
        if row is None:
            raise Outage("the table `meta` has no row; restore the database", "schema", is_unknown=False)
        seen, is_read_only, now_ms, has_latest = Sight(*row[:3]), row[3], row[4], row[5]
        if latest is not None and not has_latest and self._state.look(seen) is Verdict.SAME:
            self._state.suspect(is_behind=True)
        if self._state.look(seen) is Verdict.MOVED and self._may_adopt(seen):
            if is_read_only:
                raise Outage(READ_ONLY, "read-only", is_unknown=False)
            await self._adopt(conn)
        else:
            self._opener.compare(conn, seen)
            if is_new:
                async with asyncio.timeout(DEADLINE_S):
                    await self._opener.compare_heads(conn, self._acked())
        self.clock(now_ms, rtt_s)
        if row[6] and not is_read_only:
            await self._restamp(conn)
        if self._health.lacks_disk or self._is_asked:
            await self._try_disk(conn)
        if self.errand is not None:
            async with asyncio.timeout(DEADLINE_S):
                await self.errand.look(conn, None if asks is None else row[7] or ())
        if is_read_only:
            raise Outage(READ_ONLY, "read-only", is_unknown=False)

    async def _try_disk(self, conn: Connection) -> None:
        """Somebody asks whether the node serves, or a write has failed for want of disk: on an idle
        node no write would tell.
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

    async def _restamp(self, conn: Connection) -> None:
        """Some steps of what is to be done once after a restore; the next look goes on, of this
        node or of another.
        """
        until = time.monotonic() + RESTAMP_S
        async with asyncio.timeout(DEADLINE_S):
            while time.monotonic() < until:
                cur: psycopg.AsyncRawCursor[Any] = psycopg.AsyncRawCursor(conn)
                await cur.execute(RESTAMP, (RESTAMP_ROWS,), binary=True)
                if await cur.fetchone() != (True,):
                    return

    def _may_adopt(self, seen: Sight) -> bool:
        """A log that is where it was, and differs from memory again although that began anew a
        while ago: told once, and not adopted yet.
        """
        state = self._state
        if not state.is_behind or (seen.epoch, seen.recorded, seen.actual) != (
            state.epoch,
            state.identity,
            state.identity,
        ):
            return True
        if self._renewals.may(time.monotonic()):
            self._is_told = False
            return True
        state.is_behind = False
        if not self._is_told:
            self._is_told = True
            log.error(
                "log.differs",
                reason="log and memory differ again after the epoch was renewed for that: does a trigger change rows?",
            )
        return False

    async def _connect(self) -> tuple[Connection, bool]:
        if self._conn is not None and not self._conn.closed:
            return self._conn, False
        self._conn = await self._opener.open("watch", connection.READ, OPEN_S, compare=False)
        return self._conn, True

    async def _adopt(self, conn: Connection) -> None:
        """Take the log that is there, with a new epoch if nobody has made one."""
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

    async def _count(self, conn: Connection) -> Fall:
        """What is in memory and not in this log."""
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
        """Let the connection go, if there is one. Idempotent."""
        conn, self._conn = self._conn, None
        if conn is not None:
            await connection.close(conn)


READ_ONLY: Final = (
    "the database is read-only (default_transaction_read_only): its disk may be full, or a failover is under way"
)
