"""What happens to PostgreSQL and Redis while the nodes run: killed backends, read-only moments,
locks, steps of clocks, a Redis that is emptied, cut off, frozen, restarted, or replaced by a
replica that lags. Each fault is over when its coroutine returns.

The replica is cut off from its master some time before it takes its place: so it lacks what was
written since. The nodes reach Redis by a proxy. Clocks are stepped where nodes read them:
PostgreSQL's in `Clock.sync`, Redis's in the scripts (test_seeds.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psycopg

from tests.chaos.injector import Injector
from tests.chaos.limits import Outages
from tests.fix_redis import OwnRedis
from tests.proxy import Proxy

LONGER_THAN_LEASE_S: Final = 1.4


@dataclass(slots=True)
class Place:
    """Where the nodes find what they need.

    `redis`: two servers; the second is the one that a failover goes to.
    """

    conninfo: str
    folder: Path
    redis: list[OwnRedis]


class Servers:
    """`of_postgres` and `of_redis` give the faults; `note` is told what happens."""

    def __init__(
        self,
        place: Place,
        proxy: Proxy,
        injector: Injector,
        rng: random.Random,
        note: Callable[[str], None],
        outages: Outages,
    ) -> None:
        self.place, self.proxy, self.injector, self.rng, self.note, self.outages = (
            place,
            proxy,
            injector,
            rng,
            note,
            outages,
        )

    def of_postgres(self) -> list[Callable[[], Awaitable[None]]]:
        return [self._kill_backends, self._read_only, self._lock_row, self._step_database_clock]

    def of_redis(self) -> list[Callable[[], Awaitable[None]]]:
        return [
            self._flush_redis,
            self._cut_redis,
            self._swallow_redis,
            self._fail_over,
            self._step_redis_clock,
            self._restart_redis,
            self._freeze_redis,
        ]

    # ---- PostgreSQL ------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _admin(self) -> Any:
        conn = await psycopg.AsyncConnection.connect(
            self.place.conninfo, autocommit=True, options="-c default_transaction_read_only=off"
        )
        try:
            yield conn
        finally:
            await conn.close()

    async def _kill_backends(self) -> None:
        share = self.rng.choice((0.2, 1.0))
        self.note(f"kill {share} of the backends")
        async with self._admin() as conn:
            await conn.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'chatd%%' AND"
                " random() < %s"
                " AND datname = current_database()",
                (share,),
            )

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

    def _forgets(self) -> None:
        """Redis loses some of what it knew, about now."""
        self.outages.forgot.append(asyncio.get_running_loop().time())

    # ---- Redis -----------------------------------------------------------------------------------

    async def _flush_redis(self) -> None:
        self.note("FLUSHALL")
        self._forgets()
        await asyncio.to_thread(self.place.redis[0].command, "FLUSHALL")
        self._forgets()

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

    async def _restart_redis(self) -> None:
        """Killed, down for a while, and there again at the same place with nothing in it."""
        server, down_s = self.place.redis[0], self.rng.choice((0.0, 0.2, LONGER_THAN_LEASE_S))
        self.note(f"Redis is killed, for {down_s} s")
        self._forgets()
        await asyncio.to_thread(server.kill)
        await asyncio.sleep(down_s)
        await asyncio.to_thread(server.start)
        self._forgets()
        self.note("Redis is there again, and empty")

    async def _freeze_redis(self) -> None:
        """Connections stay, and what is asked meanwhile is done when it goes on."""
        server, frozen_s = self.place.redis[0], self.rng.choice((0.1, 0.5, LONGER_THAN_LEASE_S))
        self.note(f"Redis is frozen, for {frozen_s} s")
        server.freeze()
        try:
            await asyncio.sleep(frozen_s)
        finally:
            server.thaw()
        self.note("Redis goes on")

    async def _fail_over(self) -> None:
        """To a replica that lacks what was written since it lost its master."""
        old, new = self.place.redis
        await asyncio.to_thread(new.command, "REPLICAOF", "127.0.0.1", old.port)
        await asyncio.sleep(self.rng.uniform(0.1, 0.3))
        await asyncio.to_thread(new.command, "REPLICAOF", "NO", "ONE")
        self.note("the replica lags from here on")
        await asyncio.sleep(self.rng.uniform(0.0, 0.5))
        self.note("failover of Redis")
        self._forgets()
        self.proxy.upstream = new.port
        self.proxy.drop()
        self.place.redis.reverse()

    async def _step_redis_clock(self) -> None:
        step_s = self.rng.choice((-3_600, -3, 3, 3_600))
        self.note(f"Redis's clock steps by {step_s} s")
        self._forgets()
        await asyncio.to_thread(self.place.redis[0].command, "INCRBY", self.injector.script_offset_key, step_s)
        self._forgets()
