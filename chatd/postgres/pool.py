"""The pool of connections that reads share."""

from __future__ import annotations

import asyncio

from psycopg_pool import AsyncConnectionPool
from psycopg_pool.pool_async import ReturnConnection

from chatd.postgres.connection import Connection


class Pool(AsyncConnectionPool[Connection]):
    """psycopg's, but that a reader who is cancelled while it gives its connection back does not
    take it along.

    The pool counts a connection that nobody has as one that is in use, and makes no other in its
    place: with the last one all reads of the node have ended, and only a restart brings them back.
    Turned down: a `reset`, with which a task of the pool's takes all connections back: more calls
    than a read may cost (test_costs.py).
    """

    async def putconn(self, conn: Connection) -> None:
        try:
            await super().putconn(conn)
        except asyncio.CancelledError:
            self.run_task(ReturnConnection(self, conn, from_getconn=False))
            raise
