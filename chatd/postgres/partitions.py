"""Daily partitions of the log: made ahead of need, dropped once all they hold is past retention.

Each node has one task; one node at a time works.

    ── dropped ──┬── kept: retention ──────────────────┬── ahead ──►  ts
                 │ raise floors ► memory ► detach ► drop│ make

The order of steps when a partition goes, which must not change:
1. `conversations.floor` is raised past it, in batches. Before the detach, so that no reader finds a
   hole at or above a floor.
2. This node's memory gets the floors.
3. DETACH ... CONCURRENTLY. A plain detach or drop would queue every send behind one open reader;
   this one waits for readers without a lock.
4. DROP of a table that no statement can reach any more.
Each step may be interrupted anywhere, and the next pass continues from what it finds: a floor is
only ever raised, a detach that stopped half-way ("detach pending": the partition is gone for new
statements) is finalized, a detached table is dropped. Locks are taken under a `lock_timeout`.

Time along a log never goes back (append). So what a partition holds of a conversation is a prefix
of the rest of its log, and the floor is the highest seq in it + 1. The cids of dropped entries go
with them: a retry of a cid older than the retention makes a new entry (docs/protocol.md).

Other nodes see in their own next pass that the oldest partition has changed, and read the floors of
the conversations they hold. Until then their history is right nevertheless (dropped entries are not
found), with a `floor` in the answer that is too low.

A pass is due every `interval_s`, and at once after `wake`: if a partition had to be made on demand,
none lies ahead. No error ends the task: it is an outage, logged once, and the next pass follows
after a short pause that doubles. Every statement has a deadline on the server and here.

The width of partitions is the database's, not the node's: the first node writes its setting into
`meta`, and as long as there are partitions, a node with another setting does not start. Two widths
would give partitions that overlap.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import psycopg
import structlog
from psycopg import sql

from chatd.errors import ChatdError, SettingError, Unavailable
from chatd.postgres import connection, faults
from chatd.postgres.faults import Outage
from chatd.postgres.queries import query

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Sequence
    from typing import LiteralString

    from chatd.ids import ConvId
    from chatd.metrics import Metrics
    from chatd.postgres.connection import Opener, PgConnection

log = structlog.get_logger("retention")

# enable_hashagg off: raise_floors must walk the index in steps, whatever size the planner assumes.
# synchronous_commit off: nothing here waits for the disk, least of all while it holds senders'
# rows. A crash loses the last steps, latest first, as there is one WAL; the next pass repeats them.
STATEMENT_S: Final = 60
SESSION: Final = {
    **connection.READ,
    "lock_timeout": "2s",
    "statement_timeout": f"{STATEMENT_S}s",
    "synchronous_commit": "off",
    "enable_hashagg": "off",
}
CONNECT_S: Final = 5.0
ANSWER_S: Final = STATEMENT_S + 5.0  # past it the server hangs: its own deadline has passed
BACKOFF_S: Final = 0.5  # after a pass that failed; it doubles
BACKOFF_MAX_S: Final = 30.0
FLOOR_ROWS: Final = 200  # conversations a transaction: their senders wait while it runs, some ms
HELD_ROWS: Final = 5_000  # conversations in memory whose floors are read at once
PASS_S_MIN: Final = 0.2
PASS_S_MAX: Final = 600.0
DAY_S: Final = 86_400

PARTITIONS: Final = query("partitions")
RAISE_FLOORS: Final = query("raise_floors")
FLOORS: Final = query("floors")


class Partition(NamedTuple):
    """A row of partitions.sql. `past`: all that it holds is past retention."""

    name: str
    state: str  # "attached", "pending", "detached"
    past: bool


class Retention:
    """`prepare` before the node serves, then `run` for its life; `once` is one pass.

    `held` gives the conversations in memory, `floors` gets theirs when they have changed.
    `retention_s`: how long entries are kept.
    """

    def __init__(
        self, opener: Opener, *, retention_s: float, partition_s: int, ahead: int, metrics: Metrics,
        held: Callable[[], Iterable[ConvId]], floors: Callable[[list[tuple[ConvId, int]]], None],
    ) -> None:  # fmt: skip
        self._opener = opener
        self._retention_s, self._partition_s, self._ahead = retention_s, partition_s, ahead
        self._metrics, self._held, self._floors = metrics, held, floors
        self._oldest: str | None = None  # the oldest partition when memory's floors were last read
        self.interval_s = min(max(partition_s / 4, PASS_S_MIN), PASS_S_MAX)
        self._due = asyncio.Event()
        self._began_at = -math.inf
        self._backoff_s = 0.0  # 0: the last pass succeeded

    async def prepare(self) -> None:
        """Write or check the width of partitions, and make the first ones.

        Raises SettingError, Unavailable.
        """
        try:
            async with self._connect() as conn:
                # One transaction: a width that is written must have partitions before another node
                # looks
                async with conn.transaction():
                    await self._settle_width(conn)
                    await self._make(conn)
                self._oldest = _oldest(await self._partitions(conn))
        except (Outage, psycopg.Error, OSError, TimeoutError) as e:
            raise Unavailable(f"the log's partitions cannot be made: {faults.sentence(e)}", retry_ms=1_000) from e

    def wake(self) -> None:
        """Have a pass run now: a partition was made on demand, or one is missing. Idempotent."""
        self._due.set()

    async def run(self) -> None:
        """Run passes for ever. A failure is logged once and tried again soon."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._backoff_s or self.interval_s):
                    await self._due.wait()
            # Each probe of readiness may wake it: passes keep a distance nevertheless
            await asyncio.sleep(
                max(0.0, self._began_at + PASS_S_MIN - asyncio.get_running_loop().time()) if self._due.is_set() else 0.0
            )
            self._due.clear()
            await self._pass()

    async def _pass(self) -> None:
        self._began_at = asyncio.get_running_loop().time()
        try:
            await self.once()
        except Exception as e:  # whatever fails in PostgreSQL, libpq or the network: the node serves on
            known = isinstance(e, (Outage, psycopg.Error, OSError, TimeoutError, ChatdError))
            if not self._backoff_s or not known:
                log.warning("retention.late", reason=faults.sentence(e), exc_info=None if known else e)
            self._metrics.retention_failed += 1
            self._backoff_s = min(max(self._backoff_s * 2, BACKOFF_S), BACKOFF_MAX_S, self.interval_s)
        else:
            if self._backoff_s:
                log.info("retention.back")
            self._backoff_s = 0.0

    async def once(self) -> None:
        """One pass: make partitions ahead, drop those past retention, refresh memory's floors.

        Drops nothing if another node is dropping. Raises Outage, psycopg.Error, OSError.
        """
        async with self._connect() as conn:
            await self._make(conn)
            cur = await _execute(conn, "SELECT pg_try_advisory_lock(hashtext('chatd.retention'))")
            if await cur.fetchone() == (True,):
                for partition in await self._partitions(conn):
                    if partition.past:
                        await self._drop(conn, partition)
                    elif partition.state == "pending":  # never ours: a detach by hand that was interrupted
                        await self._detach(conn, partition)
            oldest = _oldest(await self._partitions(conn))
            if oldest != self._oldest:
                await self._refresh(conn)
                self._oldest = oldest
        # the lock goes with the connection

    # ---- steps -----------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _connect(self) -> AsyncIterator[PgConnection]:
        conn = await self._opener.open("retention", SESSION, CONNECT_S)
        try:
            yield conn
        finally:
            await connection.close(conn)

    async def _settle_width(self, conn: psycopg.AsyncConnection[Any]) -> None:
        await _execute(conn, "SELECT pg_advisory_xact_lock(hashtext('chatd.partitions'))")
        cur = await _execute(conn, "SELECT partition_s FROM meta")
        row = await cur.fetchone()
        assert row is not None, "the schema is migrated"
        if row[0] == self._partition_s:
            return
        cur = await _execute(conn, "SELECT count(*) FROM pg_inherits WHERE inhparent = 'entries'::regclass")
        if await cur.fetchone() != (0,):
            raise SettingError(
                f"partition_s: is {self._partition_s}, but the log in this database has partitions of {row[0]} s;"
                f" give {row[0]}"
            )
        await _execute(conn, "UPDATE meta SET partition_s = %s", (self._partition_s,))

    async def _make(self, conn: psycopg.AsyncConnection[Any]) -> None:
        # All from one reading of the clock: with a reading each, short partitions would have holes
        # between them if making one took long.
        cur = await _execute(conn, "SELECT clock_timestamp()")
        now = await cur.fetchone()
        assert now is not None
        for n in range(self._ahead + 1):
            cur = await _execute(
                conn, "SELECT make_partition(%s + make_interval(secs => %s))", (*now, n * self._partition_s)
            )
            row = await cur.fetchone()
            if row is not None and row[0] is not None:
                self._metrics.partitions_made += 1
                log.info("partition.made", name=row[0])

    async def _partitions(self, conn: psycopg.AsyncConnection[Any]) -> list[Partition]:
        return [Partition(*row) for row in await _rows(conn, PARTITIONS, (self._retention_s, self._partition_s))]

    async def _drop(self, conn: PgConnection, partition: Partition) -> None:
        if partition.state == "attached":
            await self._raise_floors(conn, partition)
            await self._refresh(conn)
        if partition.state != "detached":
            await self._detach(conn, partition)
        await _execute(conn, sql.SQL("DROP TABLE IF EXISTS {}").format(sql.Identifier(partition.name)))
        self._metrics.partitions_dropped += 1
        log.info("partition.dropped", name=partition.name)

    async def _raise_floors(self, conn: psycopg.AsyncConnection[Any], partition: Partition) -> None:
        statement = RAISE_FLOORS.replace("PARTITION", sql.Identifier(partition.name).as_string(conn))
        after: int | None = 0
        while after is not None:
            rows = await _rows(conn, statement, (after, FLOOR_ROWS))
            after = rows[0][0] if rows else None

    async def _detach(self, conn: psycopg.AsyncConnection[Any], partition: Partition) -> None:
        mode = "FINALIZE" if partition.state == "pending" else "CONCURRENTLY"
        await _execute(
            conn, sql.SQL("ALTER TABLE entries DETACH PARTITION {} " + mode).format(sql.Identifier(partition.name))
        )

    async def _refresh(self, conn: PgConnection) -> None:
        """Read memory's floors from the database.

        Raises Outage if memory is of another log by the time of the answer: floors only rise.
        """
        held = list(self._held())
        for at in range(0, len(held), HELD_ROWS):
            rows = await self._floors_of(conn, held[at : at + HELD_ROWS])
            if conn.generation != self._opener.state.generation:
                raise Outage("the log is another one since", "moved", is_unknown=False)
            if rows:
                self._floors(rows)

    async def _floors_of(self, conn: PgConnection, convs: list[ConvId]) -> list[tuple[ConvId, int]]:
        return await _rows(conn, FLOORS, (convs,))


def _oldest(partitions: list[Partition]) -> str | None:
    return next((p.name for p in partitions if p.state == "attached"), None)


async def _execute(
    conn: psycopg.AsyncConnection[Any], statement: LiteralString | sql.Composed, params: Sequence[object] = ()
) -> psycopg.AsyncCursor[Any]:
    """One statement with placeholders `%s`; past its deadline the connection is closed."""
    async with asyncio.timeout(ANSWER_S):
        return await conn.execute(statement, params)


async def _rows(conn: psycopg.AsyncConnection[Any], statement: LiteralString, params: Sequence[object]) -> list[Any]:
    """The rows of a query of sql/queries, with placeholders `$1`."""
    cur = psycopg.AsyncRawCursor(conn)
    async with asyncio.timeout(ANSWER_S):
        await cur.execute(statement, params)
        return await cur.fetchall()
