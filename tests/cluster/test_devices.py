"""Which of a user's sessions is closed when the same device, or one too many, connects to another node: 4004 and 4005 say "do not reconnect".

Two nodes in this process, whose clock is the test's.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import pytest
import pytest_asyncio

from chatd import opening
from tests.fix_gate import Gate
from tests.fix_mirror import until
from tests.fix_redis import OwnRedis
from tests.fix_server import MakeServer, Peer, Server

pytestmark = pytest.mark.cluster

REPLACED, TOO_MANY = 4004, 4005
HOUR_MS = 3_600_000


class Clock:
    """PostgreSQL's, as both nodes know it; `behind_ms` is a step back."""

    def __init__(self) -> None:
        self.behind_ms = 0

    def now_ms(self) -> int:
        return int(time.time() * 1000) - self.behind_ms


MakePair: TypeAlias = Callable[..., Awaitable[tuple[Server, Server]]]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest_asyncio.fixture
async def make_pair(make_server: MakeServer, fresh_db: str, own_redis: OwnRedis, clock: Clock) -> MakePair:
    async def make(**settings: Any) -> tuple[Server, Server]:
        a, b = [await make_server(database_url=fresh_db, redis_url=own_redis.url, **settings) for _ in range(2)]
        for one in (a, b):
            one.node.services.now_ms = clock.now_ms
            assert one.node.cluster is not None
            one.node.cluster.mirror._now_ms = clock.now_ms
        clusters = [one.node.cluster for one in (a, b) if one.node.cluster is not None]
        await until(lambda: all(one.mirror.nodes == 1 and one.bus.up for one in clusters), "both hear each other")
        return a, b

    return make


async def lives(peer: Peer) -> None:
    assert (await peer.request("ping"))["t"] == "pong"


def elsewhere(server: Server, user: str) -> bool:
    return server.node.presence.elsewhere(user)  # type: ignore[arg-type]


async def test_a_device_that_goes_to_another_node_and_back_keeps_its_newest_session(make_pair: MakePair, monkeypatch: pytest.MonkeyPatch) -> None:
    """The word about the second session comes while the hello of the third is under way."""
    a, b = await make_pair()
    mirror = a.node.cluster.mirror  # type: ignore[union-attr]
    held: list[bytes] = []
    hear = mirror.heard
    monkeypatch.setattr(mirror, "heard", held.append)
    await a.connect("alice", "phone")
    second = await b.connect("alice", "phone")
    await until(lambda: any(b.node._boot.encode() in data for data in held), "b's word is on its way to a")
    gate = Gate(monkeypatch, opening, "_list", only=lambda s, *_: s is a.node.services)
    third = await a.open()
    hello = await third.post("hello", v=1, token=a.token("alice"), device="phone")
    await gate.reached.wait()
    monkeypatch.setattr(mirror, "heard", hear)
    for data in held:
        hear(data)
    assert elsewhere(a, "alice")
    gate.open()
    assert (await third.reply(hello))["t"] == "welcome"
    await lives(third)
    assert await second.closed() == REPLACED
    await lives(third)


@pytest.mark.parametrize("seen", [False, True], ids=["the old node has not seen the step", "both have"])
async def test_a_session_of_before_a_step_back_of_the_clock_is_the_older_one(make_pair: MakePair, clock: Clock, seen: bool) -> None:
    a, b = await make_pair()
    old = await a.connect("alice", "phone")
    watcher = await b.connect("bob", watch=["alice"])
    clock.behind_ms = HOUR_MS
    if seen:
        for one in (a, b):
            one.node.presence.clock_stepped(HOUR_MS, clock.now_ms(), -HOUR_MS)
    new = await b.connect("alice", "phone")
    assert await old.closed() == REPLACED
    await lives(new)
    back = await a.connect("alice", "phone")
    assert await new.closed() == REPLACED
    await lives(back)
    await lives(watcher)


async def test_one_device_too_many_elsewhere_closes_the_longest_idle_and_not_the_busiest(make_pair: MakePair) -> None:
    a, b = await make_pair(devices_max=3)
    busiest, idle, third = [await a.connect("alice", f"d{n}") for n in range(3)]
    await lives(busiest)  # no other node has been told of that
    fourth = await b.connect("alice", "d4")
    assert await idle.closed() == TOO_MANY
    for peer in (busiest, third, fourth):
        await lives(peer)


async def test_one_device_too_many_closes_one_where_each_node_has_some(make_pair: MakePair) -> None:
    a, b = await make_pair(devices_max=4)
    one, idle, three, four = [await (a, b)[n % 2].connect("alice", f"d{n}") for n in range(4)]
    await until(lambda: elsewhere(a, "alice") and elsewhere(b, "alice"), "each knows of the other's")
    for peer in (four, three, one):
        await lives(peer)
    fifth = await a.connect("alice", "d5")
    assert await idle.closed() == TOO_MANY
    for peer in (one, three, four, fifth):
        await lives(peer)
