"""The connection by which a node reads the feed: its own, so that a reading waits behind no
client's, and bounded in time as a lane's.

    feed_since(snapshot) ──► FeedPage: the next snapshot, the database's time, and what was committed in between

Whoever reads must know when the connection is another one than that of the last page
(`FeedPage.reconnected`): the server may have crashed, and then gives transaction ids out again that
it had given to transactions which were rolled back (their log was never flushed). To a snapshot of
before they look old, and the new transactions that carry them would be missed. Or it may be another
server, which has lost the last of them.
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
from chatd.postgres.connection import Connection, Opener
from chatd.postgres.faults import Outage
from chatd.postgres.queries import query

DEADLINE_S: Final = 5.0
RETRY_MS: Final = 1_000
FEED_SINCE: Final = query("feed_since")
SETTINGS: Final = {**connection.READ, "statement_timeout": f"{int(DEADLINE_S * 1000)}ms"}

ENTRIES, CURSORS = 0, 1  # kinds of rows

HeadTold = tuple[ConvId, int]
CursorsTold = tuple[ConvId, int, int, int, int]


class Told(NamedTuple):
    """What rows of the feed tell.

    A conversation may come more than once, and not in order: the highest is right.

    heads: (conversation, head); cursors: (conversation, a_delivered, a_read, b_delivered, b_read);
    new: conversations that got their first entry.
    """

    heads: list[HeadTold]
    cursors: list[CursorsTold]
    new: list[ConvId]


class FeedPage(NamedTuple):
    """One reading: the snapshot to ask with next, the database's time when it was taken, how long
    the answer took, and what it tells.
    """

    snapshot: str
    now_ms: int
    rtt_s: float
    rows: int
    reconnected: bool
    told: Told


def decode(rows: Iterable[tuple[int, list[int]]]) -> Told:
    """Rows as `append` and `flush_cursors` write them; see sql/migrations/0003_pre_feed.sql.

    Kinds of a later release are passed over.
    """
    told = Told([], [], [])
    for kind, data in rows:
        if kind == ENTRIES:
            n = len(data) // 2
            convs = data[:n]
            if min(convs) < 0:
                told.new.extend(ConvId(-conv) for conv in convs if conv < 0)
                convs = list(map(abs, convs))
            told.heads.extend(zip(cast("list[ConvId]", convs), data[n:], strict=True))
        elif kind == CURSORS:
            n = len(data) // 5
            columns = (data[at : at + n] for at in range(n, 5 * n, n))
            told.cursors.extend(zip(cast("list[ConvId]", data[:n]), *columns, strict=True))
    return told


class FeedReader:
    """One statement at a time.

    Everything raises `errors.Unavailable`, and connects anew with the next call; pauses are the
    caller's to make.
    """

    def __init__(self, opener: Opener) -> None:
        self._opener = opener
        self._conn: Connection | None = None
        self._reconnected = False

    async def page(self, snapshot: str | None, until_ms: int) -> FeedPage:
        """What was committed since the snapshot; nothing but the next snapshot if there is none, or
        if the time is past `until_ms`.
        """
        cur, rtt_s = await self._execute(FEED_SINCE, (snapshot, until_ms))
        head = None
        rows: list[tuple[int, list[int]]] = []
        for row in await cur.fetchall():
            if row[2] is None:
                head = row
            else:
                rows.append(row[2:])
        assert head is not None, "the query gives it always"
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

    async def _connect(self) -> Connection:
        if self._conn is not None and not self._conn.closed and self._conn.generation != self._opener.state.generation:
            await self.close()
        if self._conn is None or self._conn.closed:
            self._conn = await self._opener.open("feed", SETTINGS, DEADLINE_S)
            self._reconnected = True
        return self._conn

    async def close(self) -> None:
        """Let the connection go, if there is one. Idempotent."""
        conn, self._conn = self._conn, None
        if conn is not None:
            await connection.close(conn)
