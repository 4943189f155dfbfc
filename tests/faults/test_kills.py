"""kill -9 of chatd, and of PostgreSQL, at random instants under load: nothing acked is lost,
nothing seen twice, no order broken, no hole.

Each kill comes after a random number of acks, so it always hits a server at work. CHATD_FAULT_SEED
replays the schedule (not the machine's timing).
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import uuid

import pytest

from chatd.client import Client
from tests.faults import checker
from tests.faults.checker import Acked, Connected, Got, History, Sent
from tests.faults.crowd import crowd_at, read_log, seed
from tests.fix_process import MakeProcess, OwnPostgres
from tests.until import until

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


async def test_the_python_client_over_kills_of_chatd(own_postgres: OwnPostgres, make_process: MakeProcess) -> None:
    """The same promises as an app sees them, through `chatd.client`: it knows nothing of the kills."""
    rng = random.Random(seed())
    chatd = await make_process(database_url=own_postgres.conninfo, **FAST)
    histories = [History(user, f"{user}-{d}") for user in ("ann", "ben") for d in range(2)]
    made = 0
    progress = asyncio.Event()

    async def talk(client: Client, history: History) -> None:
        nonlocal made
        peer = "ben" if history.user == "ann" else "ann"
        for n in range(60):
            cid, body = str(uuid.UUID(int=rng.getrandbits(128), version=4)), f"{history.device} {n}"
            history.events.append(Sent(cid, peer, "message", None, body))
            sent = await client.send(peer, body, cid=cid)
            # That it was given once is for `listen` to see
            history.events.append(Acked(sent.c, sent.seq, sent.ts, cid, True))
            made += 1
            progress.set()

    async def listen(client: Client, history: History) -> None:
        history.events.append(Connected({}))
        async for e in client.entries():
            sender = history.user if e.own else e.peer
            history.events.append(Got(e.c, e.seq, e.ts, sender, e.kind, e.ref, e.body, e.cid))
            progress.set()

    async with contextlib.AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(
                Client(chatd.url, token=chatd.token(h.user), device=h.device, rng=random.Random(rng.random()))
            )
            for h in histories
        ]
        listening = [asyncio.create_task(listen(c, h)) for c, h in zip(clients, histories, strict=True)]
        talking = [asyncio.create_task(talk(c, h)) for c, h in zip(clients, histories, strict=True)]
        for _ in range(3):
            goal = made + rng.randint(5, 30)
            await until(lambda goal=goal: made >= goal, within_s=60, changed=progress)  # type: ignore[misc]
            chatd.kill()
            await chatd.start()
        await asyncio.wait_for(asyncio.gather(*talking), 60)
        log, _ = read_log(own_postgres.conninfo)
        total = sum(map(len, log.values()))
        await until(
            lambda: all(sum(isinstance(e, Got) for e in h.events) >= total for h in histories),
            within_s=60,
            changed=progress,
        )
        for task in listening:
            task.cancel()
        await asyncio.gather(*listening, return_exceptions=True)
    findings = checker.check(histories, log) + [f for h in histories for f in checker.missing(h, log)]
    assert total == 4 * 60
    assert not findings, (checker.counts(findings), findings[:10])
