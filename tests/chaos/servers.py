"""What happens to PostgreSQL and Redis while the nodes run: killed backends, read-only moments, locks, steps of clocks, a Redis that is emptied, cut
off, or replaced by a replica that lags. Each fault is over when its coroutine returns.

The replica is cut off from its master some time before it takes its place: so it lacks what was written since. The nodes reach Redis by a proxy.
Clocks are stepped where nodes read them: PostgreSQL's in `Clock.sync`, Redis's in the scripts (test_seeds.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from tests.chaos.injector import Injector
from tests.faults.tcp_proxy import TcpProxy
from tests.fix_redis import OwnRedis


@dataclass(slots=True)
class Place:
    """Where the nodes find what they need. `redis`: two servers; the second is the one that a failover goes to."""

    conninfo: str
    folder: Path
    redis: list[OwnRedis]


class Servers:
    """`of_postgres` and `of_redis` give the faults; `note` is told what happens."""

    def __init__(self, place: Place, proxy: TcpProxy, injector: Injector, rng: random.Random, note: Callable[[str], None]) -> None:
        self.place, self.proxy, self.injector, self.rng, self.note = place, proxy, injector, rng, note

    def of_postgres(self) -> list[Callable[[], Awaitable[None]]]:
        return [self._kill_backends, self._read_only, self._lock_row, self._step_database_clock]

    def of_redis(self) -> list[Callable[[], Awaitable[None]]]:
        return [self._flush_redis, self._cut_redis, self._swallow_redis, self._fail_over, self._step_redis_clock]

    # ---- PostgreSQL ---------------------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _admin(self) -> Any:
        conn = await psycopg.AsyncConnection.connect(self.place.conninfo, autocommit=True, options="-c default_transaction_read_only=off")
        try:
            yield conn
        finally:
            await conn.close()

    async def _kill_backends(self) -> None:
        share = self.rng.choice((0.2, 1.0))
        self.note(f"kill {share} of the backends")
        async with self._admin() as conn:
            await conn.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'chatd%%' AND random() < %s"
                " AND datname = current_database()", (share,),
            )  # fmt: skip

    async def _read_only(self) -> None:
        self.note("read-only")
        async with self._admin() as conn:
            try:
                await conn.execute("ALTER SYSTEM SET default_transaction_read_only = on")
                await conn.execute("SELECT pg_reload_conf()")
                await asyncio.sleep(self.rng.uniform(0.05, 0.4))
            finally:
                await conn.execute("ALTER SYSTEM RESET default_transaction_read_only")
                await conn.execute("SELECT pg_reload_conf()")
        self.note("read-only is over")

    async def _lock_row(self) -> None:
        table = self.rng.choice(("conversations", "cursors"))
        self.note(f"lock a row of {table}")
        async with self._admin() as conn, conn.transaction():
            await conn.execute(f"SELECT 1 FROM {table} ORDER BY random() LIMIT 1 FOR UPDATE")
            await asyncio.sleep(self.rng.uniform(0.05, 0.5))
        self.note("the row is free")

    async def _step_database_clock(self) -> None:
        step_ms = self.rng.choice((-3_600_000, -5_000, 5_000, 3_600_000))
        self.note(f"PostgreSQL's clock steps by {step_ms} ms")
        self.injector.clock_offset_ms += step_ms

    # ---- Redis --------------------------------------------------------------------------------------------------------------------

    async def _flush_redis(self) -> None:
        self.note("FLUSHALL")
        await asyncio.to_thread(self.place.redis[0].command, "FLUSHALL")

    async def _cut_redis(self) -> None:
        self.note("connections to Redis are cut")
        self.proxy.drop()

    async def _swallow_redis(self) -> None:
        self.note("the network to Redis is gone")
        self.proxy.swallow()
        await asyncio.sleep(self.rng.uniform(0.1, 0.7))
        self.proxy.heal()
        if self.rng.random() < 0.5:
            self.proxy.drop()
        self.note("the network to Redis is back")

    async def _fail_over(self) -> None:
        """To a replica that lacks what was written since it lost its master."""
        old, new = self.place.redis
        await asyncio.to_thread(new.command, "REPLICAOF", "127.0.0.1", old.port)
        await asyncio.sleep(self.rng.uniform(0.1, 0.3))
        await asyncio.to_thread(new.command, "REPLICAOF", "NO", "ONE")
        self.note("the replica lags from here on")
        await asyncio.sleep(self.rng.uniform(0.0, 0.5))
        self.note("failover of Redis")
        self.proxy.upstream = new.port
        self.proxy.drop()
        self.place.redis.reverse()

    async def _step_redis_clock(self) -> None:
        step_s = self.rng.choice((-3_600, -3, 3, 3_600))
        self.note(f"Redis's clock steps by {step_s} s")
        await asyncio.to_thread(self.place.redis[0].command, "INCRBY", self.injector.script_offset_key, step_s)
