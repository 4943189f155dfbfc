"""Connections to the servers of `database_replica_url`, and reads over them that may fail.

    run ──opens, looks once a second──► ready connections
    read ──one that is ready──► rows, and how far that server was before the read
                              ─► None: none is ready, or it did not answer; the primary is asked

A read never waits for a connection: there are as many as reads of clients at a time
(fair_queue.py), and a read that finds none ready goes to the primary. A connection on which a read
fails is closed. So a server that hangs holds up as many reads as it had connections, `READ_S` each,
and no more. Each connection is compared with the log before its first read, and again about once in
`size` seconds (standby.py).

That the replica does not answer is one line in the log, and one when it is back. It is no outage:
the primary answers.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, LiteralString, NamedTuple

import psycopg
import structlog

from chatd.loop.pulse import Pulse
from chatd.postgres import connection, faults
from chatd.postgres.connection import Opener, PgConnection
from chatd.postgres.faults import Outage
from chatd.postgres.log_state import LogState
from chatd.postgres.queries import query
from chatd.postgres.standby import Role, StandbySight, judge

log = structlog.get_logger("replica")

READ_S: Final = 0.5  # what a read may lose before the primary is asked
OPEN_S: Final = 3.0
LOOK_S: Final = 1.25  # between two looks, where no beat of the node ends the pause
# A statement that its client has given up is ended by the server
SESSION: Final[Mapping[str, str]] = {**connection.READ, "statement_timeout": f"{int(READ_S * 2000)}ms"}

SIGHT: Final = query("replica_sight")
POSITION: Final = query("replica_position")


class _Link:
    """A connection. `position`: the server has replayed the log up to there, or further."""

    __slots__ = ("conn", "position", "role")

    def __init__(self, conn: PgConnection) -> None:
        self.conn, self.position, self.role = conn, 0, Role.STANDBY


class ReplicaRows(NamedTuple):
    """Rows, and up to where the server had replayed the log before their snapshot was taken."""

    rows: list[tuple[Any, ...]]
    position: int


class Replica:
    """`run` for the node's life, then `close`.

    `size`: connections, and so reads at a time. `state`: the log that a server must show. `pulse`:
    a look is due at its beat.
    """

    def __init__(self, conninfo: str, state: LogState, size: int, pulse: Callable[[], Pulse]) -> None:
        self._opener = Opener(conninfo, state, standbys=True)
        self._state, self._size, self._pulse = state, size, pulse
        self._ready: list[_Link] = []  # the one that was used last stands last
        self._open = 0  # connections, those in use too
        self._suspected = asyncio.Event()  # a read failed, or found another server than before
        self._why: str | None = ""  # the kind of failure that was logged last; None: it is up
        self._is_primary = False  # that was logged
        self._warned_at = float("-inf")
        self.position = 0  # of the server that was looked at last

    @property
    def is_up(self) -> bool:
        """Whether a server answers that may be asked."""
        return self._why is None

    # ---- reads ----------------------------------------------------------------------------------

    @property
    def is_ready(self) -> bool:
        """Whether a read finds a connection."""
        return bool(self._ready)

    async def read(self, sql: LiteralString, params: Sequence[object], needed: int) -> ReplicaRows | None:
        """Run a query that may be repeated; None if no connection is ready, or it failed.

        Its last parameter, beside `params`, is whether the server is a standby; its first column is
        whether the server is what it was, its fourth the position. Where the server is not known to
        have replayed the log up to `needed`, that is asked first, in the same round trip.
        """
        while self._ready:
            link = self._ready.pop()
            if link.conn.generation == self._state.generation:
                break
            self._drop(link)
        else:
            return None
        is_good = False
        try:
            async with asyncio.timeout(READ_S):
                answer = await self._ask(link, sql, (*params, link.role is Role.STANDBY), needed)
            is_good = not answer.rows or answer.rows[0][0] is True
            return answer
        except (psycopg.Error, OSError, TimeoutError) as e:
            self._warn(e)
            return None
        finally:
            if is_good:
                self._ready.append(link)
            else:
                self._drop(link)

    async def _ask(self, link: _Link, sql: LiteralString, params: Sequence[object], needed: int) -> ReplicaRows:
        cur: psycopg.AsyncRawCursor[Any] = psycopg.AsyncRawCursor(link.conn)
        if link.position >= needed:
            before = link.position
            await cur.execute(sql, params, binary=True)
        else:
            # Two statements, because the position that a statement gives is a later one than that
            # of its snapshot
            async with link.conn.pipeline():
                first: psycopg.AsyncRawCursor[Any] = psycopg.AsyncRawCursor(link.conn)
                await first.execute(POSITION, binary=True)
                await cur.execute(sql, params, binary=True)
            (before,) = await first.fetchone() or (0,)
        rows = await cur.fetchall()
        link.position = max(before, rows[0][3] if rows else 0)
        link.conn.used_at = time.monotonic()
        return ReplicaRows(rows, before)

    def _drop(self, link: _Link) -> None:
        """Close a connection; the next look opens another."""
        self._open -= 1
        link.conn.pgconn.finish()
        self._suspected.set()

    def _warn(self, e: Exception) -> None:
        if (now := time.monotonic()) - self._warned_at > connection.WARN_AGAIN_S:
            self._warned_at = now
            log.warning("replica.read_failed", kind=faults.kind(e), reason=faults.sentence(e))

    # ---- its life -------------------------------------------------------------------------------

    async def run(self) -> None:
        """Look for ever; no answer of a replica ends it."""
        while True:
            self._suspected.clear()
            try:
                await self._look()
            except Exception as e:
                if not isinstance(e, psycopg.Error | OSError | TimeoutError | Outage):
                    log.exception("replica.bug")
                self._away(e)
            try:
                async with self._pulse().rest(LOOK_S):
                    await self._suspected.wait()
                await asyncio.sleep(0.02)  # all reads fail at once: one look for all
            except TimeoutError:
                pass

    async def _look(self) -> None:
        """Compare the connection that was not used for longest, and open those that are missing."""
        if self._ready:
            await self._check(self._ready.pop(0))
        while self._open < self._size:
            link = _Link(await self._opener.open("replica", SESSION, OPEN_S, compare=False))
            self._open += 1
            await self._check(link)
        if self._why is not None:
            log.info("replica.ready", connections=self._open)
            self._why = None

    async def _check(self, link: _Link) -> None:
        """Have it ready if its server may answer, else close it."""
        try:
            await self._compare(link)
        except BaseException:
            self._drop(link)
            raise
        self._ready.insert(0, link)

    async def _compare(self, link: _Link) -> None:
        """Raises Outage if this server may not answer."""
        async with asyncio.timeout(OPEN_S):
            cur = await psycopg.AsyncRawCursor(link.conn).execute(SIGHT, binary=True)
            row = await cur.fetchone()
        if row is None:
            raise Outage("the table `meta` has no row", "schema", is_unknown=False)
        verdict = judge(self._state, sight := StandbySight(*row))
        if not isinstance(verdict, Role):
            raise Outage(verdict, "other-log", is_unknown=False)
        link.role, link.position = verdict, sight.position
        link.conn.generation = self._state.generation
        self.position = sight.position
        if verdict is Role.PRIMARY and not self._is_primary:
            log.warning("replica.is_primary", reason="database_replica_url leads to the primary: nothing is spared")
        self._is_primary = verdict is Role.PRIMARY

    def _away(self, e: Exception) -> None:
        """A look failed: what is true of one connection is taken to be true of all."""
        for link in self._ready:
            self._drop(link)
        self._ready.clear()
        self._suspected.clear()  # the next look is due at the next beat
        if self._why != (kind := faults.kind(e)):
            self._why = kind
            log.warning(
                "replica.away", kind=kind, reason=faults.sentence(e), msg="history is read from the primary meanwhile"
            )

    async def close(self) -> None:
        """Close the connections that are ready. Idempotent."""
        links, self._ready = self._ready, []
        for link in links:
            self._open -= 1
            await connection.close(link.conn)
