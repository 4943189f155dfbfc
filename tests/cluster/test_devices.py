"""Which of a user's sessions is closed when the same device, or one too many, connects to another node:

4004 and 4005 say "do not reconnect".

Two nodes in this process; PostgreSQL's clock is stepped where they read it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeAlias

import pytest
import pytest_asyncio

from chatd.chat import hello as opening
from chatd.clock import Clock
from chatd.cluster import presence_reader
from chatd.cluster.node import Cluster
from chatd.ids import UserId
from tests.client import Peer
from tests.fix_gate import Gate
from tests.fix_redis import OwnRedis
from tests.fix_server import MakeServer, Server
from tests.until import until

pytestmark = pytest.mark.cluster

REPLACED, TOO_MANY = 4004, 4005
HOUR_MS = 3_600_000


class Steps:
    """PostgreSQL's clock: `at_once` sets it, and those nodes read it before this returns."""

    def __init__(self) -> None:
        self.by_ms = 0
        self.unread: set[Clock] = set()

    async def at_once(self, by_ms: int, read: Iterable[Server], unread: Iterable[Server] = ()) -> None:
        self.by_ms += by_ms
        self.unread = {one.node._clock for one in unread}
        for one in read:
            await one.node._read_clock()
            assert one.node.metrics.clock_steps


MakePair: TypeAlias = Callable[..., Awaitable[tuple[Server, Server]]]


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    steps, sync = Steps(), Clock.sync

    def stepped(self: Clock, db_ms: int, rtt_s: float) -> None:
        if self not in steps.unread:
            sync(self, db_ms + steps.by_ms, rtt_s)

    monkeypatch.setattr(Clock, "sync", stepped)
    return steps


@pytest_asyncio.fixture
async def make_pair(make_server: MakeServer, fresh_db: str, own_redis: OwnRedis) -> MakePair:
    async def make(*older: Server, **settings: Any) -> tuple[Server, Server]:
        """Two servers, or those and one more."""
        all = [*older]
        while len(all) < 2:
            all.append(await make_server(database_url=fresh_db, redis_url=own_redis.url, **settings))
        clusters = [one.node.cluster for one in all if one.node.cluster is not None]
        await until(lambda: all_know(clusters), "both hear each other")
        return all[0], all[1]

    def all_know(clusters: list[Cluster]) -> bool:
        return all(one.presence_sync.nodes == 1 and one.pubsub.up for one in clusters)

    return make


async def lives(peer: Peer) -> None:
    assert (await peer.request("ping"))["t"] == "pong"


def elsewhere(server: Server, user: str) -> bool:
    return server.node.presence.elsewhere(user)  # type: ignore[arg-type]


async def test_a_device_that_goes_to_another_node_and_back_keeps_its_newest_session(
    make_pair: MakePair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The word about the second session comes while the hello of the third is under way."""
    a, b = await make_pair()
    presence_sync = a.node.cluster.presence_sync  # type: ignore[union-attr]
    held: list[tuple[UserId, bytes]] = []
    hear = presence_sync.heard_status
    monkeypatch.setattr(presence_sync, "heard_status", lambda user, data: held.append((user, data)))
    monkeypatch.setattr(presence_reader, "ROUND_USERS", 0)
    await a.connect("alice", "phone")
    second = await b.connect("alice", "phone")
    await until(lambda: any(b.node._incarnation.encode() in data for _, data in held), "b's word is on its way to a")
    gate = Gate(monkeypatch, opening, "read_listing", only=lambda s, *_: s is a.node.services)
    third = await a.open()
    hello = await third.post("hello", v=1, token=a.token("alice"), device="phone")
    await gate.reached.wait()
    monkeypatch.setattr(presence_sync, "heard_status", hear)
    for user, data in held:
        hear(user, data)
    assert elsewhere(a, "alice")
    gate.open()
    assert (await third.reply(hello))["t"] == "welcome"
    await lives(third)
    assert await second.closed() == REPLACED
    await lives(third)


async def test_a_session_of_before_a_step_of_the_clock_is_the_older_one(make_pair: MakePair, steps: Steps) -> None:
    """Whichever node has read it.

    A step back of 5 s is one after which the older session's time seems right.
    """
    a, b = await make_pair()
    watcher = await b.connect("bob", watch=["alice"])
    for step_ms in (-5_000, -HOUR_MS, 5_000, HOUR_MS):
        for read in ((), (a,), (b,), (a, b)):
            device = f"phone{step_ms}-{len(read)}{a in read}"
            old = await a.connect("alice", device)
            await steps.at_once(step_ms, read, [one for one in (a, b) if one not in read])
            new = await b.connect("alice", device)
            assert await old.closed() == REPLACED, (step_ms, read)
            await lives(new)
            back = await a.connect("alice", device)
            assert await new.closed() == REPLACED, (step_ms, read)
            await lives(back)
            await back.close()
    await lives(watcher)


@pytest.mark.parametrize("step_ms", [-HOUR_MS, HOUR_MS])
async def test_a_node_that_started_after_a_step_goes_by_the_same_time(
    make_server: MakeServer, make_pair: MakePair, fresh_db: str, own_redis: OwnRedis, steps: Steps, step_ms: int
) -> None:
    a = await make_server(database_url=fresh_db, redis_url=own_redis.url)
    a.node._steady._started -= 60
    await steps.at_once(step_ms, [a])
    _, c = await make_pair(a)
    await until(lambda: abs(a.node._steady.ms() - c.node._steady.ms()) < 20, "its first beat has told it")
    for old, new in ((a, c), (c, a)):
        first = await old.connect("alice", "phone")
        second = await new.connect("alice", "phone")
        assert await first.closed() == REPLACED
        await lives(second)


async def test_a_session_that_came_and_left_at_once_ends_the_older_one_elsewhere(make_pair: MakePair) -> None:
    a, b = await make_pair()
    half_open = await a.connect("alice", "phone")
    async with b.node.cluster.presence_sync._writing:  # type: ignore[union-attr]
        await (await b.connect("alice", "phone")).close()
        await until(lambda: not b.node.registry.sessions, "the session has ended")
    assert await half_open.closed() == REPLACED
    await until(lambda: b.node.presence._own.keys() == set(), "nothing of it is left")


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


def has_heard_all(server: Server, of: Server) -> bool:
    """Whether one node has all that another has to say of who is there."""
    there, here = of.node.cluster.presence_sync, server.node.cluster.presence_sync  # type: ignore[union-attr]
    return (
        not of.node.presence._own._dirty
        and not there._writing.locked()
        and here._leases.nodes[there.incarnation].n == there._n
    )


async def test_who_comes_back_to_another_node_does_not_look_offline_meanwhile(
    make_pair: MakePair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The grace time on the first node ended while the hello to the second one waited for its
    listing: offline, then online.
    """
    one, two = await make_pair(presence_grace_ms=0)
    alice, bob = await one.connect("alice"), await one.connect("bob", watch=["alice"])
    await alice.say("bob")
    await bob.say("alice")
    while (await bob.push("presence"))["state"] != "online":
        pass
    with monkeypatch.context() as patch:
        patch.setattr(one.node.presence, "due", lambda *_: [])
        gate = Gate(patch, two.node.store, "list_changed")
        # A session that ends before it was published is not known to the second node in time.
        await until(lambda: has_heard_all(two, one), "the second node hears that she is on the first")
        await alice.close()
        await until(lambda: not one.node.registry.users[UserId("alice")].sessions, "alice has left")
        alice = await two.open()
        hello = await alice.post("hello", v=1, token=two.token("alice"), device="d1")
        await gate.reached.wait()
        await until(lambda: elsewhere(one, "alice"), "the first node hears that she is on her way in")
    await until(lambda: not one.node.presence._statuses.users[UserId("alice")].here, "her grace time there is over")
    gate.open()
    assert (await alice.reply(hello))["t"] == "welcome"
    assert [push for push in bob.pushes if push["t"] == "presence"] == []
    assert (await bob.request("watch", users=["alice"]))["presence"][0]["state"] == "online"
    assert [push for push in bob.pushes if push["t"] == "presence"] == []
