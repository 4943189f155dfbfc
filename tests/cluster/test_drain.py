"""One node of several that leaves, or is slow: its own users move or wait, the others' notice
nothing.
"""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.client import peer_at
from tests.cluster.test_fanout import befriend
from tests.cluster.traffic import Traffic, nodes_of, share, together, told, traffic_at
from tests.faults.appends import path_of, through
from tests.fix_cluster import LEASE_S, Nodes
from tests.fix_process import MakeProcess
from tests.fix_redis import OwnRedis
from tests.proxy import Proxy
from tests.until import until

pytestmark = pytest.mark.cluster

CLOSED_RESTART, REPLACED = 1012, 4004
DELAY_S = 0.3


# ---- a drain -------------------------------------------------------------------------------------


async def drain(traffic: Traffic, nodes: Nodes, n: int) -> None:
    """SIGTERM to one of them. Gives nothing: asserts what its users and the others' noticed."""
    loop = asyncio.get_running_loop()
    leaving = nodes[n]
    moving = [one for one in traffic.folk.values() if one.home == leaving.url and one.live.is_set()]
    before = {one.history.user: (one.connections, len(one.notices), len(one.closes)) for one in moving}
    assert len(moving) > 1
    began = loop.time()
    leaving.terminate()
    assert await leaving.ended() == 0, leaving.said()
    ended = loop.time()
    await until(lambda: all(one.live.is_set() and one.connections > before[one.history.user][0] for one in moving))
    moved = sorted(next(at for at in one.live_at if at > began) - began for one in moving)
    notices = [one.notices[before[one.history.user][1] :] for one in moving]
    assert [[notice["kind"] for notice in some] for some in notices] == [["drain"]] * len(moving)
    delays = [some[0]["retry_ms"] for some in notices]
    assert len(set(delays)) > len(delays) // 2, "each has its own"
    assert {one.closes[before[one.history.user][2]] for one in moving} == {CLOSED_RESTART}
    print(
        f"{len(moving)} users moved in {moved[0]:.2f} to {moved[-1]:.2f} s, told to wait {min(delays)} to"
        f" {max(delays)} ms;"
        f" the node ended in {ended - began:.2f} s"
    )
    others = traffic.acks(began, loop.time(), but=lambda one: one in moving)
    print(f"acks of the others: p99 {share(others, 0.99) * 1000:.0f} ms")


async def judged(traffic: Traffic, nodes: Nodes, database_url: str, since: float) -> None:
    """All is there, once; nobody ever looked offline."""
    await traffic.settle(database_url, set())
    acks, came = traffic.acks(since), traffic.deliveries(since)
    print(
        traffic.verify(database_url, set()),
        f"acks p99 {share(acks, 0.99) * 1000:.0f} ms, max {acks[-1]:.2f} s; deliveries max {came[-1]:.2f} s",
    )
    assert traffic.offline(since) == []
    assert traffic.wrong_presence(set()) == []


async def test_a_node_that_drains_under_load_is_missed_by_nobody(
    fresh_db: str, own_redis: OwnRedis, make_process: MakeProcess
) -> None:
    nodes = await nodes_of(3, make_process, fresh_db, own_redis.url)
    await together(nodes)
    async with traffic_at(nodes, users=60, rate=150) as traffic:
        began = asyncio.get_running_loop().time()
        await traffic.posts(100)
        await drain(traffic, nodes, 0)
        await traffic.posts(50)
        await judged(traffic, nodes, fresh_db, began)


@pytest.mark.slow
async def test_three_nodes_are_upgraded_in_turn_under_load(
    fresh_db: str, own_redis: OwnRedis, make_process: MakeProcess
) -> None:
    nodes = await nodes_of(3, make_process, fresh_db, own_redis.url)
    await together(nodes)
    async with traffic_at(nodes, users=60, rate=150) as traffic:
        began = asyncio.get_running_loop().time()
        for n in range(3):
            await traffic.posts(50)
            await drain(traffic, nodes, n)
            await nodes[n].start()
        await until(
            lambda: "node3" in [line["name"] for line in told(nodes[0], "node.left")],
            "the last of the old leases has lapsed",
            3 * LEASE_S,
        )
        await judged(traffic, nodes, fresh_db, began)


async def test_who_is_told_to_wait_longer_than_a_lease_does_not_look_offline(
    fresh_db: str, own_redis: OwnRedis, make_process: MakeProcess
) -> None:
    """A node of 5,000 clients spreads them over 5 s, and a lease is as long.

    Here it is 20 and 2 s and 1 s.
    """
    wide = "import chatd.drain; chatd.drain.NOTICE_MS_PER_CLIENT = 100.0; chatd.drain.GRACE_S = 1.0"
    nodes = await nodes_of(2, make_process, fresh_db, own_redis.url, before=[wide, wide], lease_ms=1_000)
    await together(nodes)
    async with traffic_at(nodes, users=40, rate=60) as traffic:
        began = asyncio.get_running_loop().time()
        await drain(traffic, nodes, 0)
        assert max(one.notices[0]["retry_ms"] for one in traffic.folk.values() if one.notices) > 1_000
        await until(lambda: told(nodes[1], "node.left"), "its lease has lapsed", 15)
        assert told(nodes[1], "node.dead") == []
        await judged(traffic, nodes, fresh_db, began)


async def test_a_node_that_has_just_started_knows_who_is_where(
    fresh_db: str, own_redis: OwnRedis, make_process: MakeProcess
) -> None:
    """Clients come at once in a rolling upgrade, and nobody is to look offline to them; also where
    Redis is far.
    """
    async with Proxy(own_redis.socket, delay_s=0.02) as way:
        one = (await nodes_of(1, make_process, fresh_db, own_redis.url))[0]
        async with peer_at(one, "alice", "old") as alice, peer_at(one, "bob") as bob:
            await befriend(alice, "alice", bob, "bob")
            other = await make_process(database_url=fresh_db, redis_url=f"unix://{way.path}", node_name="far")
            async with peer_at(other, "alice", "new", watch=["bob"]) as peer:
                assert [facts["state"] for facts in peer.welcome["presence"]] == ["online"]


async def test_who_comes_while_redis_answers_slowly_sees_others_online(
    fresh_db: str, own_redis: OwnRedis, make_process: MakeProcess
) -> None:
    """After a drain all come at once, and a read of presence may take long."""
    async with Proxy(own_redis.socket) as way:
        nodes = await nodes_of(2, make_process, fresh_db, own_redis.url, each=[{}, {"redis_url": f"unix://{way.path}"}])
        await together(nodes)
        async with peer_at(nodes[0], "alice", "old") as alice, peer_at(nodes[0], "bob") as bob:
            await befriend(alice, "alice", bob, "bob")
            way.delay_s = DELAY_S
            async with peer_at(nodes[1], "alice", "new", watch=["bob"]) as peer:
                assert [facts["state"] for facts in peer.welcome["presence"]] == ["online"]


# ---- slow ----------------------------------------------------------------------------------------


async def test_a_slow_way_to_postgresql_slows_its_own_node_alone(
    fresh_db: str, own_redis: OwnRedis, make_process: MakeProcess
) -> None:
    async with Proxy(path_of(fresh_db)) as way:
        slow_url = through(fresh_db, way)
        nodes = await nodes_of(2, make_process, fresh_db, own_redis.url, each=[{"database_url": slow_url}, {}])
        await together(nodes)
        # Neighbours sit on different nodes: every conversation is written by both.
        async with traffic_at(nodes, users=24, rate=60) as traffic:
            way.delay_s = DELAY_S
            began = asyncio.get_running_loop().time()
            await traffic.posts(250)
            slow = traffic.acks(began, but=lambda one: one.home != nodes[0].url)
            fast = traffic.acks(began, but=lambda one: one.home != nodes[1].url)
            for name, acks in (("slow", slow), ("other", fast)):
                print(
                    f"acks of the {name} node: median {share(acks, 0.5) * 1000:.0f} ms, p99"
                    f" {share(acks, 0.99) * 1000:.0f} ms"
                )
            assert slow[0] > 2 * DELAY_S
            assert share(fast, 0.5) < slow[0], "most of the other node's come before the first of the slow one"
            await judged(traffic, nodes, fresh_db, began)
        for node in nodes.nodes:
            assert told(node, "node.dead") == []


@pytest.mark.slow  # to start is slow
async def test_a_node_with_a_slow_way_has_the_right_clock(
    fresh_db: str, own_redis: OwnRedis, make_process: MakeProcess
) -> None:
    """Which of two sessions of one device is the later one is told by the nodes' clocks."""
    delay_s = 0.1  # a start takes some fifty round trips
    async with Proxy(path_of(fresh_db), delay_s=delay_s) as way:
        slow_url = through(fresh_db, way)
        nodes = await nodes_of(
            2, make_process, fresh_db, own_redis.url, each=[{"database_url": slow_url}, {}], partitions_ahead=1
        )
        await together(nodes)
        async with peer_at(nodes[0], "alice") as alice, peer_at(nodes[1], "bob") as bob:
            for peer in (alice, bob):
                assert abs((await peer.request("ping"))["ts"] - time.time() * 1000) < delay_s * 1000 / 2
            await befriend(alice, "alice", bob, "bob")
        for first, second in ((1, 0), (0, 1)):
            async with peer_at(nodes[first], "carol", "phone") as old, peer_at(nodes[second], "carol", "phone") as new:
                assert await old.closed() == REPLACED
                assert (await new.request("ping"))["t"] == "pong"
                await new.quiet()
