"""Three nodes under load while nodes, Redis and PostgreSQL are killed at random: nothing acked is
lost, nothing doubled, no order broken, no hole, and in the end every watcher knows who is there.

`CHATD_FAULT_SEED` replays the schedule (not the machine's timing). `FAULT_SECONDS=60` makes the two
slow ones last for a minute each: the suite as a whole is to stay under ten, so there they take 14
s, with some five kills each. `FAULT_RATE=5000` offers more than the 500 messages a second; how many
one process of clients posts of them is in the line that is printed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time

import pytest

from tests.faults import checker
from tests.faults.crowd import read_log, seed
from tests.fix_cluster import LOSSY, MakeNodes, Nodes, Roamer
from tests.fix_process import OwnPostgres
from tests.fix_redis import OwnRedis
from tests.until import Late, until

pytestmark = pytest.mark.cluster

ROOM = {"rate_messages": 40, "frames_per_s": 10_000, "frames_burst": 10_000, "new_conversations_per_hour": 1_000}
SECONDS = float(os.environ.get("FAULT_SECONDS", "14"))
RATE = float(os.environ.get("FAULT_RATE", "500"))  # messages a second, of all users
USERS = 300
# Twice what a user sends on the average, in the 5 s of the limit
ROOM_AT_RATE = {**ROOM, "rate_messages": max(40, round(RATE / USERS * 5 * 2))}
GROUPS = 4  # users talk to two others of a ring of so many, who sit on other nodes


class Town:
    """Users in rings of `GROUPS`, each with a device, neighbours on different nodes; each watches
    its neighbours.
    """

    def __init__(self, nodes: Nodes, users: int, rate: float, rng: random.Random) -> None:
        self.rng, self.rate = rng, rate
        self.names = [f"u{n:03}" for n in range(users)]
        self.clients: dict[str, Roamer] = {}
        for n, name in enumerate(self.names):
            client = Roamer(nodes.urls(n), nodes.token(name), name, "d1", random.Random(rng.getrandbits(64)))
            client.watch = self.peers(name)
            client.timed = True
            self.clients[name] = client
        self.sent_at: dict[str, float] = {}
        self.lives: dict[str, asyncio.Task[None]] = {}
        self.talk: asyncio.Task[None] | None = None
        self.posted = 0

    def peers(self, name: str) -> list[str]:
        n = int(name[1:])
        first = n - n % GROUPS
        return [f"u{first + (n - first + step) % GROUPS:03}" for step in (1, GROUPS - 1)]

    def start(self) -> None:
        self.lives = {name: asyncio.create_task(client.run()) for name, client in self.clients.items()}

    async def open_up(self, within_s: float = 60.0) -> None:
        """Everybody says hello to both neighbours, so that presence flows."""
        for client in self.clients.values():
            await client.until(client.live.is_set, within_s)
        for name, client in self.clients.items():
            for peer in self.peers(name):
                client.post(peer, body=f"hello from {name}")
        for client in self.clients.values():
            await client.until(lambda c=client: not c.unsent and len(c.have) == 2, within_s)  # type: ignore[misc]

    async def _talks(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            due += self.rng.expovariate(self.rate)
            if (wait := due - loop.time()) > 0:
                await asyncio.sleep(wait)
            client = self.clients[self.rng.choice(self.names)]
            if client.unsent < 30:
                self.posted += 1
                cid = client.post(self.rng.choice(client.watch), body=f"{client.history.user} {self.posted}")
                self.sent_at[cid] = loop.time()

    def begin(self) -> None:
        self.talk = asyncio.create_task(self._talks())

    async def quiet(self) -> None:
        if self.talk is not None:
            self.talk.cancel()
            await asyncio.gather(self.talk, return_exceptions=True)
            self.talk = None

    async def stop(self) -> None:
        await self.quiet()
        for task in self.lives.values():
            task.cancel()
        await asyncio.gather(*self.lives.values(), return_exceptions=True)

    def leave(self, share: float) -> set[str]:
        """Some go for good; gives who."""
        gone = set(self.rng.sample(self.names, int(len(self.names) * share)))
        for name in gone:
            self.lives[name].cancel()
        return gone

    def wrong_presence(self, gone: set[str]) -> list[tuple[str, str, str]]:
        """(watcher, watched, what the watcher believes) that is not so."""
        wrong = []
        for name, client in self.clients.items():
            if name in gone:
                continue
            for peer in client.watch:
                state = client.presence.get(peer, (0, "nothing"))[1]
                if state != ("offline" if peer in gone else "online"):
                    wrong.append((name, peer, state))
        return wrong

    def latencies(self) -> list[float]:
        """From the moment an entry was posted until its reader had it, in s, rising."""
        acked = {
            e.cid: (e.c, e.seq) for c in self.clients.values() for e in c.history.events if isinstance(e, checker.Acked)
        }
        heard = [c.heard_at for c in self.clients.values()]
        return sorted(
            max(one[acked[cid]] for one in heard if acked[cid] in one) - at
            for cid, at in self.sent_at.items() if cid in acked and any(acked[cid] in one for one in heard)
        )  # fmt: skip

    async def settle(self, conninfo: str, gone: set[str], within_s: float = 60.0) -> None:
        """Every outbox empty, every device complete; what is not, after all, is for `verify`."""
        await self.quiet()
        here = [c for name, c in self.clients.items() if name not in gone]
        with contextlib.suppress(Late):
            await until(lambda: not any(c.unsent for c in here), within_s=within_s)
        log, who = await asyncio.to_thread(read_log, conninfo)
        mine: dict[str, list[str]] = {}
        for c, users in who.items():
            for user in users:
                mine.setdefault(user, []).append(c)
        with contextlib.suppress(Late):
            await until(
                lambda: all(c.have.get(id, 0) >= len(log[id]) for c in here for id in mine.get(c.history.user, ())),
                within_s=within_s,
                pause_s=0.05,
            )

    def verify(self, conninfo: str, gone: set[str]) -> str:
        log, who = read_log(conninfo)
        findings = checker.check([c.history for c in self.clients.values()], log)
        mine: dict[str, dict[str, list[checker.Entry]]] = {}
        for c, users in who.items():
            for user in users:
                mine.setdefault(user, {})[c] = log[c]
        for name, client in self.clients.items():
            if name not in gone:
                findings += checker.missing(client.history, mine.get(name, {}))
        faults = [(name, fault) for name, client in self.clients.items() for fault in client.faults]
        unsent = {name: client.unsent for name, client in self.clients.items() if client.unsent and name not in gone}
        assert not findings, (checker.counts(findings), findings[:10])
        assert not faults, faults[:10]
        assert not unsent, unsent
        connections = sum(c.connections for c in self.clients.values())
        return (
            f"{sum(map(len, log.values()))} entries, {sum(c.acked for c in self.clients.values())} acks, {connections}"
            " connections"
        )


async def wreck(nodes: Nodes, redis: OwnRedis, postgres: OwnPostgres, rng: random.Random, seconds: float) -> None:
    """Kill something every second or two, and start it again."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        await asyncio.sleep(rng.uniform(0.5, 2.5))
        what = rng.random()
        if what < 0.5:
            node = nodes[rng.randrange(len(nodes))]
            print(f"{end - time.monotonic():5.1f} s left: kill -9 node on {node.port}")
            node.kill()
            await asyncio.sleep(rng.uniform(0.0, 3.0))
            await node.start()
        elif what < 0.8:
            print(f"{end - time.monotonic():5.1f} s left: kill -9 redis")
            redis.kill()
            await asyncio.sleep(rng.uniform(0.0, 3.0))
            await asyncio.to_thread(redis.start)
        else:
            print(f"{end - time.monotonic():5.1f} s left: kill -9 postgresql")
            postgres.kill()
            await asyncio.sleep(rng.uniform(0.0, 1.0))
            await asyncio.to_thread(postgres.start)


async def havoc(
    nodes: Nodes, own_redis: OwnRedis, own_postgres: OwnPostgres, *, users: int, rate: float, seconds: float
) -> None:
    rng = random.Random(seed())
    town = Town(nodes, users, rate, rng)
    town.start()
    try:
        await town.open_up()
        town.begin()
        await wreck(nodes, own_redis, own_postgres, rng, seconds)
        gone = town.leave(0.1)
        last_fault = time.monotonic()
        await until(lambda: not town.wrong_presence(gone), lambda: f"{town.wrong_presence(gone)[:10]}")
        took = time.monotonic() - last_fault
        await town.settle(own_postgres.conninfo, gone)
        print(
            town.verify(own_postgres.conninfo, gone),
            f"{town.posted} posted, presence right {took:.1f} s after the last fault",
        )
    finally:
        await town.stop()


async def test_what_is_dropped_comes_all_the_same(make_nodes: MakeNodes, own_postgres: OwnPostgres) -> None:
    nodes = await make_nodes(3, before=[LOSSY.format(share=0.3)] * 3, **ROOM)
    town = Town(nodes, 60, 100, random.Random(seed()))
    town.start()
    try:
        await town.open_up()
        town.begin()
        await until(lambda: town.posted >= 600, within_s=60)
        await town.settle(own_postgres.conninfo, set())
        took = town.latencies()
        print(
            town.verify(own_postgres.conninfo, set()),
            f"median {took[len(took) // 2] * 1000:.1f} ms, slowest {took[-1]:.2f} s",
        )
        assert took[len(took) * 9 // 10] > 0.1, "nothing was dropped"
    finally:
        await town.stop()


@pytest.mark.slow
async def test_three_nodes_300_users_500_messages_a_second(
    make_nodes: MakeNodes, own_redis: OwnRedis, own_postgres: OwnPostgres
) -> None:
    nodes = await make_nodes(3, **ROOM_AT_RATE)
    await havoc(nodes, own_redis, own_postgres, users=USERS, rate=RATE, seconds=SECONDS)


@pytest.mark.slow
async def test_the_same_with_three_of_ten_publishes_lost(
    make_nodes: MakeNodes, own_redis: OwnRedis, own_postgres: OwnPostgres
) -> None:
    nodes = await make_nodes(3, before=[LOSSY.format(share=0.3)] * 3, **ROOM_AT_RATE)
    await havoc(nodes, own_redis, own_postgres, users=USERS, rate=RATE, seconds=SECONDS)
