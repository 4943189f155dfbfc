"""kill -9 of chatd, and of PostgreSQL, at random instants under load: nothing acked is lost, nothing seen twice, no order broken, no hole.

Each kill comes after a random number of acks, so it always hits a server at work. CHATD_FAULT_SEED replays the schedule (not the machine's timing).
"""

from __future__ import annotations

import asyncio
import random

import pytest

from tests.faults.crowd import crowd_at, seed
from tests.fix_process import MakeProcess, OwnPostgres

KILLS = 20
FAST = {"rate_messages": 10_000, "frames_per_s": 100_000, "frames_burst": 100_000, "new_conversations_per_hour": 10_000}


async def kills(own_postgres: OwnPostgres, make_process: MakeProcess, times: int, victim: str) -> None:
    rng = random.Random(seed())
    chatd = await make_process(database_url=own_postgres.conninfo, **FAST)
    async with crowd_at(chatd, rng) as crowd:
        for _ in range(times):
            await crowd.acks(rng.randint(5, 40))
            await asyncio.sleep(rng.uniform(0, 0.05))  # anywhere between two commits
            if victim == "chatd":
                chatd.kill()
                await chatd.start()
            else:
                own_postgres.kill()
                await asyncio.to_thread(own_postgres.start)
                assert chatd.status is None, "chatd must outlive its database"
        await crowd.acks(20)
        await crowd.settle(own_postgres.conninfo)
        print(crowd.verify(own_postgres.conninfo))


async def test_three_kills_of_chatd(own_postgres: OwnPostgres, make_process: MakeProcess) -> None:
    await kills(own_postgres, make_process, 3, "chatd")


@pytest.mark.slow
async def test_kill_of_chatd_20_times(own_postgres: OwnPostgres, make_process: MakeProcess) -> None:
    await kills(own_postgres, make_process, KILLS, "chatd")


@pytest.mark.slow
async def test_kill_of_postgresql_20_times(own_postgres: OwnPostgres, make_process: MakeProcess) -> None:
    await kills(own_postgres, make_process, KILLS, "postgres")
