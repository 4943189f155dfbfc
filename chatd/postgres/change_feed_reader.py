"""Reads the change feed: what other nodes have committed since a snapshot.

    feed_since(snapshot, wanted) ──► FeedPage: the next snapshot, the database's time, the changes

PostgreSQL leaves out short rows of conversations that the node does not hold (core/feed_filter.py).
So what a node reads depends on its own users and not on the number of nodes.

The reader has a connection of its own, so that it waits behind no client's read, and each statement
has a deadline, as a lane's.

The caller must know when the connection is not that of the last page (`FeedPage.reconnected`). The
server may have crashed, and then reuses transaction ids of transactions that were rolled back
(their WAL was never flushed). A snapshot of before the crash counts these as old, and would miss
the new transactions that have them. Or it may be another server, which has lost the last of them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from typing import Any, Final, LiteralString, NamedTuple, cast

import psycopg

from chatd.errors import Unavailable
from chatd.ids import ConvId
from chatd.postgres import connection, faults
from chatd.postgres.connection import Opener, PgConnection
from chatd.postgres.faults import Outage
from chatd.postgres.queries import query

DEADLINE_S: Final = 5.0
RETRY_MS: Final = 1_000
FEED_SINCE: Final = query("feed_since")
SETTINGS: Final = {**connection.READ, "statement_timeout": f"{int(DEADLINE_S * 1000)}ms"}

ENTRIES, CURSORS = 0, 1  # kinds of rows

HeadChange = tuple[ConvId, int]
CursorsChange = tuple[ConvId, int, int, int, int]


class FeedChanges(NamedTuple):
    """The changes in rows of the feed.

    A conversation may occur more than once, and not in order: the highest value is right.

    heads: (conversation, head); cursors: (conversation, a_delivered, a_read, b_delivered, b_read);
    new: conversations that got their first entry.
    """

    heads: list[HeadChange]
    cursors: list[CursorsChange]
    new: list[ConvId]


class FeedPage(NamedTuple):
    """One reading of the feed.

    `snapshot`: to ask with next. `now_ms`: the database's time when it was taken, in ms since 1970.
    `rtt_s`: how long the answer took. `rows`: how many rows `changes` was decoded from.
    `reconnected`: the connection is not that of the page before.
    """

    snapshot: str
    now_ms: int
    rtt_s: float
    rows: int
    reconnected: bool
    changes: FeedChanges


def decode(rows: Iterable[tuple[int, list[int]]]) -> FeedChanges:
    """Decode rows as `append` and `flush_cursors` write them (sql/migrations/0003_pre_feed.sql).

    Kinds of a later release are ignored.
    """
    changes = FeedChanges([], [], [])
    for kind, data in rows:
        if kind == ENTRIES:
            n = len(data) // 2
            convs = data[:n]
            if min(convs) < 0:
                changes.new.extend(ConvId(-conv) for conv in convs if conv < 0)
                convs = list(map(abs, convs))
            changes.heads.extend(zip(cast("list[ConvId]", convs), data[n:], strict=True))
        elif kind == CURSORS:
            n = len(data) // 5
            columns = (data[at : at + n] for at in range(n, 5 * n, n))
            changes.cursors.extend(zip(cast("list[ConvId]", data[:n]), *columns, strict=True))
    return changes


class FeedReader:
    """One statement at a time.

    Each method raises `errors.Unavailable` on failure, and the next call connects again. The caller
    waits in between.
    """

    def __init__(self, opener: Opener) -> None:
        self._opener = opener
        self._conn: PgConnection | None = None
        self._reconnected = False

    async def page(self, snapshot: str | None, until_ms: int, wanted: bytes) -> FeedPage:
        """What was committed since the snapshot, of the conversations whose bits are in `wanted`.

        Only the next snapshot if there is none yet, or if the database's time is past `until_ms`.
        """
        cur, rtt_s = await self._execute(FEED_SINCE, (snapshot, until_ms, wanted))
        head = None
        rows: list[tuple[int, list[int]]] = []
        for row in await cur.fetchall():
            if row[2] is None:
                head = row
            else:
                rows.append(row[2:])
        assert head is not None, "the query always gives it"
        reconnected, self._reconnected = self._reconnected, False
        return FeedPage(head[0], head[1], rtt_s, len(rows), reconnected, decode(rows))

    async def rows(self, sql: LiteralString, params: Sequence[object]) -> list[tuple[Any, ...]]:
        """The rows of another query."""
        cur, _ = await self._execute(sql, params)
        return await cur.fetchall()

    async def _execute(self, sql: LiteralString, params: Sequence[object]) -> tuple[psycopg.AsyncRawCursor[Any], float]:
        try:
            async with asyncio.timeout(DEADLINE_S):
                cur = psycopg.AsyncRawCursor(await self._connect())
                generation = self._opener.state.generation
                sent = time.perf_counter()
                await cur.execute(sql, params, binary=True)
                if self._opener.state.generation != generation:
                    raise Outage("the log is another one since", "moved", is_unknown=False)
                return cur, time.perf_counter() - sent
        except (Outage, psycopg.Error, OSError, TimeoutError) as e:
            await self.close()
            raise Unavailable(f"the feed cannot be read: {faults.sentence(e)}", retry_ms=RETRY_MS) from e

    async def _connect(self) -> PgConnection:
        if self._conn is not None and not self._conn.closed and self._conn.generation != self._opener.state.generation:
            await self.close()
        if self._conn is None or self._conn.closed:
            self._conn = await self._opener.open("feed", SETTINGS, DEADLINE_S)
            self._reconnected = True
        return self._conn

    async def close(self) -> None:
        """Close the connection, if there is one. Idempotent."""
        conn, self._conn = self._conn, None
        if conn is not None:
            await connection.close(conn)
