"""The pool of connections that all reads of a node share, and the one way to run a query on it.

    rows(sql, params) ──► a pooled connection, of this log and alive ──► rows
                          else the next one, `pool_max` + 1 tries; then Unavailable

Reads are repeated on another connection when theirs turns out dead. After a restart of PostgreSQL
the pool is full of dead connections, and psycopg's pool detects that only by using them. A row that
was read from one log is not given to a caller after the log has changed (`LogState.generation`).

Every query here may be repeated: a write that goes through it is idempotent (it moves values
forward only).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final, LiteralString, NamedTuple

import psycopg
from psycopg_pool import AsyncConnectionPool, PoolTimeout, TooManyRequests
from psycopg_pool.pool_async import ReturnConnection

from chatd import errors
from chatd.postgres import connection, faults
from chatd.postgres.connection import Opener, PgConnection
from chatd.postgres.faults import Fault, Outage
from chatd.postgres.health import Health
from chatd.postgres.queries import name_of

READ_RETRY_MS: Final = 1_000
READ_TIMEOUT_S: Final = 5.0

# psycopg's pool doubles its pauses between attempts to connect up to this, and offers no way to end
# a pause early. With its default of 300 s, reads stayed away for a minute after an outage of three
# minutes. After this time the pool gives the attempt up, and the next read starts a new one at
# once.
RECONNECT_S: Final = 2.0


class InUse(NamedTuple):
    """Pooled connections that a read has, and reads that wait for one."""

    in_use: int
    waiting: int


class _Pool(AsyncConnectionPool[PgConnection]):
    """psycopg's pool, but a reader that is cancelled while it returns its connection loses none.

    psycopg's own pool goes on counting such a connection as in use and makes no other in its place.
    Once the last one is lost that way, no read of the node succeeds until a restart. Rejected: a
    `reset` callback, by which a task of the pool takes every connection back; it adds calls to each
    read (test_costs.py).
    """

    async def putconn(self, conn: PgConnection) -> None:
        try:
            await super().putconn(conn)
        except asyncio.CancelledError:
            self.run_task(ReturnConnection(self, conn, from_getconn=False))
            raise


class ReadPool:
    """`open` before the first `rows`, then `close`.

    `settings`: what each session is set to beside `connection.READ`; `waiting_max`: reads that wait
    for a connection.
    """

    def __init__(
        self, opener: Opener, health: Health, pool_max: int, waiting_max: int, settings: Mapping[str, str]
    ) -> None:
        self._log, self._opener, self._health = opener.state, opener, health
        self._pool_max = pool_max
        self._settings = {**connection.READ, **settings}
        # `used_at` of the connection that was last found dead: those that were not used since are
        # dead, too
        self._dead_before = 0.0
        self._pool = _Pool(
            lambda: opener.conninfo("reads", READ_TIMEOUT_S * 2),
            connection_class=PgConnection,
            min_size=1,
            max_size=pool_max,
            max_waiting=waiting_max,
            timeout=READ_TIMEOUT_S,
            reconnect_timeout=RECONNECT_S,
            kwargs={"autocommit": True, "prepare_threshold": 0},
            configure=self._configure,
            open=False,
        )

    @property
    def usage(self) -> InUse:
        """How busy the pool is."""
        stats = self._pool.get_stats()
        return InUse(stats["pool_size"] - stats["pool_available"], stats["requests_waiting"])

    async def open(self) -> None:
        """Start to connect. A database that is away is no error here."""
        await self._pool.open()

    async def close(self, timeout_s: float) -> None:
        """Close all connections; wait this long for those in use."""
        await self._pool.close(timeout=timeout_s)

    async def rows(
        self, sql: LiteralString, params: Sequence[object], *, refusable: bool = False
    ) -> list[tuple[Any, ...]]:
        """Run a query that may be repeated.

        Raises Overloaded where too many reads wait, Unavailable where the database cannot do it
        now. Raises DataRefused for a fault of the data only if the query is `refusable`: no client
        asked for the others' values, so such an error is an outage of that query.
        """
        generation = self._log.generation
        last: Exception = psycopg.OperationalError("no connection that is of this log")
        for _ in range(self._pool_max + 1):
            is_stale = False
            try:
                async with asyncio.timeout(READ_TIMEOUT_S * 2), self._pool.connection() as conn:
                    quiet_s = time.monotonic() - conn.used_at
                    if conn.generation != self._log.generation or (
                        quiet_s > connection.PROVE_AFTER_S and not await self._is_good(conn)
                    ):
                        await conn.close()  # the pool makes another
                        continue
                    cur = psycopg.AsyncRawCursor(conn)
                    try:
                        await cur.execute(sql, params, binary=True)
                        rows = await cur.fetchall() if cur.description is not None else []
                    except psycopg.Error as e:
                        if not conn.closed and (is_stale := connection.is_stale(conn, e)):
                            await conn.close()
                        raise
                    conn.used_at = time.monotonic()
            except TooManyRequests as e:
                raise errors.Overloaded("too many reads wait for the database", retry_ms=READ_RETRY_MS) from e
            except (PoolTimeout, TimeoutError) as e:
                raise self._unavailable("the database does not answer", e) from e
            except (psycopg.Error, OSError) as e:
                fault = faults.judge(e)
                if fault is Fault.DATA and refusable:
                    raise errors.DataRefused("the database refuses these values; another try will not help") from e
                if fault is Fault.LOCKED:  # the statement has waited already: no second try at once
                    raise errors.Unavailable("another transaction holds what this needs", retry_ms=READ_RETRY_MS) from e
                last = e
                if _is_answer(e) and not is_stale:
                    break  # another connection would give the same answer
                continue
            if self._log.generation != generation:
                raise errors.Unavailable("the log is another one since; connect again", retry_ms=READ_RETRY_MS)
            if self._health.parts:
                self._health.ok("reads")
                self._health.ok(f"reads {name_of(sql)}")
            return rows
        raise self._unavailable(
            "the database cannot do this now", last, f"reads {name_of(sql)}" if _is_answer(last) else "reads"
        ) from last

    async def _is_good(self, conn: PgConnection) -> bool:
        """Whether a connection that was not used for a while is alive.

        Once one is found dead, connections that were unused for longer count as dead without a
        probe.
        """
        if conn.used_at <= self._dead_before or not await connection.is_alive(conn):
            self._dead_before = max(self._dead_before, conn.used_at)
            return False
        return True

    def _unavailable(self, what: str, e: BaseException, part: str = "reads") -> errors.Unavailable:
        trouble = self._health.trouble
        self._health.failed(part, e)
        why = trouble.kind if trouble is not None else faults.kind(e)
        return errors.Unavailable(f"{what} ({why})", retry_ms=READ_RETRY_MS)

    async def _configure(self, conn: PgConnection) -> None:
        """Prepare a new connection of the pool.

        The pool treats what this raises as a failed attempt.
        """
        try:
            async with asyncio.timeout(READ_TIMEOUT_S):
                await self._opener.prepare(conn, self._settings)
        except BaseException as e:
            conn.pgconn.finish()  # the pool does not close it, and the traceback keeps it alive
            if isinstance(e, Outage | psycopg.Error | OSError | TimeoutError):
                self._health.failed("reads", e)
            raise


def _is_answer(e: BaseException) -> bool:
    """Whether the server answered the statement, over a connection that stays usable."""
    return isinstance(e, psycopg.Error) and e.sqlstate is not None and not _ended(e)


def _ended(e: psycopg.Error) -> bool:
    """Whether the connection has ended: operator_intervention (57P), connection_exception (08)."""
    return (e.sqlstate or "")[:3] in ("57P", "08P") or (e.sqlstate or "")[:2] == "08"
