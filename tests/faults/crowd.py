"""Several pairs of users with two devices each who talk all the time, and what the end of such a
run must look like.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from collections.abc import AsyncIterator
from typing import Protocol

import psycopg

from tests.faults import checker
from tests.faults.checker import Entry
from tests.faults.client import Client
from tests.until import Late, until

SEED_VARIABLE = "CHATD_FAULT_SEED"
PAIRS = 3
KINDS = {0: "message", 1: "edit", 2: "delete"}


class Place(Protocol):
    url: str

    def token(self, user: str) -> str: ...


def seed() -> int:
    """The run's seed: printed, and set by CHATD_FAULT_SEED to replay it."""
    value = int(os.environ.get(SEED_VARIABLE) or time.time_ns() % 1_000_000_007)
    print(f"replay with {SEED_VARIABLE}={value}")
    return value


class Crowd:
    """The clients. `talking`: they go on making entries."""

    def __init__(
        self, place: Place, rng: random.Random, *, pairs: int = PAIRS, devices: int = 2, pause_s: float = 0.15
    ) -> None:
        self.rng, self.pause_s = rng, pause_s
        self.users = [(f"a{n}", f"b{n}") for n in range(pairs)]
        self.clients = [
            self.client(place, user, f"{user}-{d}", random.Random(rng.getrandbits(64)))
            for pair in self.users for user in pair for d in range(devices)
        ]  # fmt: skip
        self._tasks: list[asyncio.Task[None]] = []
        self._talk: list[asyncio.Task[None]] = []

    def client(self, place: Place, user: str, device: str, rng: random.Random) -> Client:
        """How a device comes to the place."""
        return Client(place.url, place.token(user), user, device, rng)

    @property
    def acked(self) -> int:
        return sum(c.acked for c in self.clients)

    def start(self) -> None:
        self._tasks = [asyncio.create_task(c.run()) for c in self.clients]
        self._talk = [asyncio.create_task(self._talks(c)) for c in self.clients]

    async def _talks(self, client: Client) -> None:
        user = client.history.user
        peer = f"{'b' if user[0] == 'a' else 'a'}{user[1:]}"
        rng = random.Random(self.rng.getrandbits(64))
        n = 0
        while True:
            await asyncio.sleep(rng.uniform(0, 2 * self.pause_s))
            if client.unsent > 50:
                continue
            n += 1
            mine = client.mine.get(peer, [])
            what = rng.random()
            if mine and what < 0.15:
                client.post(peer, "edit", f"{user} edits {n}", rng.choice(mine))
            elif mine and what < 0.2:
                ref = rng.choice(mine)
                mine.remove(ref)
                client.post(peer, "delete", ref=ref)
            else:
                client.post(peer, "message", f"{client.history.device} {n}")

    async def acks(self, more: int, within_s: float = 30.0) -> None:
        """Wait for so many further acks: the crowd is at full work."""
        goal = self.acked + more
        await until(lambda: self.acked >= goal, within_s=within_s)

    async def quiet(self) -> None:
        """No new entries from now on."""
        for task in self._talk:
            task.cancel()
        await asyncio.gather(*self._talk, return_exceptions=True)

    async def settle(self, conninfo: str, within_s: float = 30.0) -> dict[str, list[Entry]]:
        """Wait until every outbox is empty and every device has all of its logs; gives the logs.

        What is wrong then is for `check`.
        """
        await self.quiet()
        with contextlib.suppress(Late):
            await until(lambda: not any(c.unsent for c in self.clients), within_s=within_s)
        log, who = read_log(conninfo)
        with contextlib.suppress(Late):
            await until(lambda: all(self._complete(c, log, who) for c in self.clients), within_s=within_s)
        return log

    @staticmethod
    def _complete(client: Client, log: dict[str, list[Entry]], who: dict[str, set[str]]) -> bool:
        return all(client.have.get(c, 0) >= len(log[c]) for c, users in who.items() if client.history.user in users)

    async def stop(self) -> None:
        await self.quiet()
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def verify(self, conninfo: str) -> str:
        """Assert that nothing is wrong; gives a line on the run."""
        log, who = read_log(conninfo)
        findings = checker.check([c.history for c in self.clients], log)
        for client in self.clients:
            theirs = {c: log[c] for c, users in who.items() if client.history.user in users}
            findings += checker.missing(client.history, theirs)
        unsent = {c.history.device: c.unsent for c in self.clients if c.unsent}
        faults = [(c.history.device, fault) for c in self.clients for fault in c.faults]
        assert not findings, (checker.counts(findings), findings[:10])
        assert not faults, faults[:10]
        assert not unsent, unsent
        entries = sum(map(len, log.values()))
        connections = sum(c.connections for c in self.clients)
        return (
            f"{entries} entries, {self.acked} acks, {connections} connections,"
            f" {sum(len(c.errors) for c in self.clients)} errors answered"
        )


@contextlib.asynccontextmanager
async def crowd_at(place: Place, rng: random.Random, **options: float) -> AsyncIterator[Crowd]:
    crowd = Crowd(place, rng, **options)  # type: ignore[arg-type]
    crowd.start()
    try:
        yield crowd
    finally:
        await crowd.stop()


def read_log(conninfo: str) -> tuple[dict[str, list[Entry]], dict[str, set[str]]]:
    """All conversations with entries as PostgreSQL has them, and who is in each."""
    log: dict[str, list[Entry]] = {}
    who: dict[str, set[str]] = {}
    with psycopg.connect(conninfo) as conn:
        rows = conn.execute(
            "SELECT v.id::text, v.a, v.b, e.seq, (extract(epoch FROM e.ts) * 1000)::bigint, e.side, e.cid::text,"
            " e.kind, e.ref, e.body"
            " FROM entries e JOIN conversations v ON v.id = e.conv ORDER BY v.id, e.seq"
        )
        for c, a, b, seq, ts, side, cid, kind, ref, body in rows:
            who[c] = {a, b}
            log.setdefault(c, []).append(Entry(seq, ts, (a, b)[side], cid, KINDS[kind], ref, body))
    return log, who
