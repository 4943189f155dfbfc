"""Presence over nodes without PostgreSQL: their parts in this process over a Redis of the test's
own, to be held up at any step.

    make_seat       `await make_seat("a")`: a running `Seat`: presence, pub/sub and presence sync of one node;
                    `prepare` is called with it before it starts
    Seat            `come`, `go`, `watch`; `told` are the changes that its watchers were shown; `kill` is kill -9
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from typing import Any, TypeAlias

import pytest_asyncio

from chatd.clock import Clock
from chatd.cluster.presence_sync import PresenceSync
from chatd.cluster.pubsub import PubSub
from chatd.cluster.redis.client import RedisClient
from chatd.core.steady_time import Steady
from chatd.ids import DeviceId, UserId
from chatd.metrics import Metrics
from chatd.presence import Change, Presence
from tests.fix_redis import OwnRedis
from tests.until import until

LEASE_MS = 1_000


class Seat:
    """One node, as far as presence goes. It is its own listener, of pub/sub too."""

    def __init__(self, url: str, name: str, lease_ms: int, prefix: str) -> None:
        self.boot = os.urandom(8).hex()
        self.metrics = Metrics()
        self.redis_client = RedisClient(url)
        self.presence = Presence(0.0, self.boot)
        self.pubsub = PubSub(self.redis_client, prefix, self.metrics, self.boot)
        self.presence_sync = PresenceSync(
            self.redis_client,
            self.pubsub,
            self.presence,
            self.metrics,
            incarnation=self.boot,
            prefix=prefix,
            lease_ms=lease_ms,
            name=name,
            now=time.monotonic,
            now_ms=lambda: int(time.time() * 1000),
            steady=Steady(Clock(time.monotonic, time.time), lease_ms / 1000),
            facts=dict,
        )
        self.presence_sync.listen(self)
        self.pubsub.listener = self
        self.told: list[Change] = []
        self.heard_frames: list[tuple[UserId, bytes]] = []
        self.tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        work: list[Coroutine[Any, Any, None]] = [
            self.pubsub.run_publisher(),
            self.pubsub.run(),
            self.presence_sync.run_beat(),
            self.presence_sync.run_flush(),
            self.presence_sync.reader.run(),
        ]
        self.tasks = [asyncio.create_task(one) for one in work]

    async def kill(self) -> None:
        """No lease is given back."""
        for task in self.tasks:
            task.cancel()
        self.tasks_ended = await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.redis_client.close()

    @property
    def lives(self) -> bool:
        return bool(self.tasks) and not any(task.done() for task in self.tasks)

    # ---- its users -------------------------------------------------------------------------------

    def come(self, *users: str) -> None:
        for user in users:
            self.announce(self.presence.connect(UserId(user), DeviceId("phone"), False, int(time.time() * 1000)))

    def go(self, *users: str) -> None:
        for user in users:
            self.presence.disconnect(UserId(user), DeviceId("phone"), time.monotonic(), int(time.time() * 1000))
        for change in self.presence.due(time.monotonic(), int(time.time() * 1000)):
            self.announce(change)

    async def watch(self, *users: str) -> None:
        names = [UserId(user) for user in users]
        self.presence.watch(self, (), names)
        await self.presence_sync.reader.look(names)

    def sees(self, user: str) -> str:
        change = self.presence.status(UserId(user))
        return "offline" if change is None else change.status.value

    # ---- the listeners' --------------------------------------------------------------------------

    def announce(self, change: Change | None) -> None:
        if change is not None:
            self.told.append(change)

    def devices_elsewhere(self, user: UserId) -> None:
        """Not of interest here."""

    def touch(self, users: Iterable[UserId], seconds: float) -> None:
        """Likewise."""

    def heard(self, user: UserId, data: bytes) -> None:
        self.heard_frames.append((user, data))

    def heard_presence(self, data: bytes) -> None:
        self.presence_sync.heard(data)

    def heard_status(self, user: UserId, data: bytes) -> None:
        self.presence_sync.heard_status(user, data)

    def away(self) -> None:
        """Pub/sub is away."""

    def back(self) -> None:
        self.presence_sync.back()


MakeSeat: TypeAlias = Callable[..., Awaitable[Seat]]


@pytest_asyncio.fixture
async def make_seat(own_redis: OwnRedis) -> AsyncIterator[MakeSeat]:
    made: list[Seat] = []

    async def make(
        name: str,
        *,
        url: str = "",
        lease_ms: int = LEASE_MS,
        prefix: str = "chatd",
        prepare: Callable[[Seat], None] = lambda seat: None,
    ) -> Seat:
        seat = Seat(url or own_redis.url, name, lease_ms, prefix)
        made.append(seat)
        prepare(seat)
        seat.start()
        await until(lambda: seat.presence_sync._written and seat.pubsub.up, f"{name} is up")
        return seat

    yield make
    for seat in made:
        await seat.kill()


async def acquainted(*seats: Seat) -> None:
    """Each knows all others."""
    await until(lambda: all(seat.presence_sync.nodes == len(seats) - 1 for seat in seats), "all know each other")
