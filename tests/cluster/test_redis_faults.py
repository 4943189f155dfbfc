"""Redis that is wrong: not ours, full, read-only, silent, cut off.

Nobody is declared dead for it, entries come by the feed, sends are acked as fast as ever, and all
is well again without anybody's help.
"""

from __future__ import annotations

import asyncio
import random
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.client import peer_at
from tests.cluster.test_fanout import befriend, watch_online
from tests.cluster.test_workers import serve
from tests.cluster.traffic import QUIET_S_MAX, Traffic, metrics, nodes_of, share, together, told, traffic_at
from tests.faults.crowd import seed
from tests.fix_cluster import LEASE_S, Nodes
from tests.fix_process import MakeProcess, Process
from tests.fix_redis import MakeRedis, OwnRedis
from tests.proxy import Proxy
from tests.until import until

pytestmark = pytest.mark.cluster

SHORT_LEASE_S = 1.0
CUTS = 8


# ---- a password that is wrong --------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("given", "says"),
    [(":wrong@", "user or password that Redis does not take"), ("", "has no password, and Redis asks for one")],
)
def test_a_wrong_password_is_one_line_that_says_what_to_do(
    make_redis: MakeRedis, fresh_db: str, tmp_path: Path, given: str, says: str, workers: int
) -> None:
    redis = make_redis(password="the right one")
    url = f"redis://{given}127.0.0.1:{redis.port}"
    flags = [
        f"--database-url={fresh_db}",
        f"--redis-url={url}",
        "--port=0",
        "--admin-port=-1",
        f"--data-dir={tmp_path}",
        f"--workers={workers}",
    ]
    result: subprocess.CompletedProcess[str] = serve(*flags)
    said = [line for line in result.stderr.splitlines() if line.startswith("chatd: ")]
    assert (result.returncode, len(said)) == (2, 1), result.stderr
    assert said[0].startswith("chatd: redis_url: redis://")
    assert says in said[0]
    assert "redis://:password@host" in said[0]
    assert "wrong@" not in result.stderr
    assert "Traceback" not in result.stderr


async def test_a_password_that_changes_is_told_and_awaited(
    fresh_db: str, make_redis: MakeRedis, make_process: MakeProcess
) -> None:
    redis = make_redis(password="old")
    nodes = await nodes_of(2, make_process, fresh_db, redis.url, lease_ms=int(SHORT_LEASE_S * 1000))
    await together(nodes)
    async with peer_at(nodes[0], "alice") as alice, peer_at(nodes[1], "bob") as bob:
        await befriend(alice, "alice", bob, "bob")
        await watch_online(alice, "bob")
        change_password(redis, "new")
        for node in nodes.nodes:
            await until(partial(says_password, node), f"{node.port} says why")
        await until(lambda: stale(nodes), "both say that presence may be old")
        for n in (3, 4):
            assert (await alice.say("bob", "by the feed"))["seq"] == n
            assert (await bob.push("entry"))["seq"] == n
        assert (await metrics(nodes[0]))["chatd_quota_open"] == 1
        await bob.request("presence", state="away")
        change_password(redis, "old")
        await together(nodes)
        assert (await alice.push("presence"))["state"] == "away"
        await alice.quiet()
    assert [told(node, "node.dead") for node in nodes.nodes] == [[], []]
    assert not any(
        "new" in line["reason"] or "old" in line["reason"] for node in nodes.nodes for line in told(node, "redis.away")
    )


def change_password(redis: OwnRedis, password: str) -> None:
    """For all: connections that are open keep what they were let in with."""
    redis.config("requirepass", password)
    redis.password = password
    for kind in ("normal", "pubsub"):
        redis.command("CLIENT", "KILL", "TYPE", kind)


def says_password(node: Process) -> bool:
    return any("password" in line["reason"] for line in told(node, "redis.away"))


async def stale(nodes: Nodes) -> bool:
    said = [await metrics(node) for node in nodes.nodes]
    return all((one["chatd_bus_up"], one["chatd_presence_stale"]) == (0, 1) for one in said)


# ---- full, read-only, silent ---------------------------------------------------------------------


class Fault(NamedTuple):
    """How it begins (told how long it is to last) and ends; `bus`: what is published still goes
    through.
    """

    begin: Callable[[OwnRedis, float], object]
    end: Callable[[OwnRedis], object]
    bus: bool


FAULTS = {
    "full": Fault(lambda redis, _: redis.config("maxmemory", 1), lambda redis: redis.config("maxmemory", 0), True),
    "a replica of a dead master": Fault(
        lambda redis, _: redis.command("REPLICAOF", "127.0.0.1", 1),
        lambda redis: redis.command("REPLICAOF", "NO", "ONE"),
        True,
    ),
    "frozen": Fault(lambda redis, _: redis.freeze(), lambda redis: redis.thaw(), False),
    "killed, and empty when it is back": Fault(lambda redis, _: redis.kill(), lambda redis: redis.start(), False),
    "paused": Fault(
        lambda redis, s: redis.command("CLIENT", "PAUSE", int(s * 1000), "ALL"),
        lambda redis: redis.command("PING"),
        False,
    ),
}


async def endure(traffic: Traffic, nodes: Nodes, redis: OwnRedis, fault: Fault, lasts_s: float, lease_s: float) -> None:
    """Have a fault under load, and somebody who goes and somebody who comes meanwhile; then wait
    for a lease and more.
    """
    loop = asyncio.get_running_loop()
    began = loop.time()
    await asyncio.to_thread(fault.begin, redis, lasts_s)
    gone = traffic.leave(0.1)
    if not fault.bus:

        async def all_noticed() -> bool:
            return not any([(await metrics(node))["chatd_bus_up"] for node in nodes.nodes])

        await until(all_noticed, within_s=lasts_s, pause_s=0.05)  # at its end some faults are over by themselves
    await asyncio.sleep(max(0.0, began + lasts_s - loop.time()))
    seen = [one for one in traffic.offline(began) if one[1] not in gone]
    assert not seen, f"looked offline while Redis was away: {seen[:5]}"
    await asyncio.to_thread(fault.end, redis)
    over = loop.time()
    await until(lambda: not traffic.wrong_presence(gone), lambda: f"{traffic.wrong_presence(gone)[:10]}")
    right = loop.time()
    await together(nodes)
    back = loop.time()
    await asyncio.sleep(max(0.0, over + lease_s + 1.0 - loop.time()))
    acks, came = traffic.acks(began), traffic.deliveries(began)
    print(
        f"{len(acks)} acks p99 {share(acks, 0.99) * 1000:.0f} ms, max {acks[-1] * 1000:.0f}; deliveries median"
        f" {share(came, 0.5) * 1000:.0f} ms,"
        f" max {came[-1]:.2f} s; presence right {right - over:.2f} s after the end, limits together {back - over:.1f} s"
    )
    seen = [one for one in traffic.offline(began) if one[1] not in gone]
    assert not seen, f"looked offline after Redis was away: {seen[:5]}"
    for node in nodes.nodes:
        assert told(node, "node.dead") == []


async def while_redis_is(
    what: str, make_process: MakeProcess, database_url: str, redis: OwnRedis, lasts_s: float, lease_s: float
) -> None:
    nodes = await nodes_of(2, make_process, database_url, redis.url, lease_ms=int(lease_s * 1000))
    await together(nodes)
    async with traffic_at(nodes) as traffic:
        await traffic.posts(20)
        await endure(traffic, nodes, redis, FAULTS[what], lasts_s, lease_s)
        here = [await metrics(node) for node in nodes.nodes]
        assert all(one["chatd_quota_local_total"] > 0 for one in here), "limits were each node's own"
        gone = {name for name, life in traffic.lives.items() if life.done()}
        await traffic.settle(database_url, gone)
        print(traffic.verify(database_url, gone))


@pytest.mark.parametrize("what", ["full", "frozen", "killed, and empty when it is back"])
async def test_redis_that_is_of_no_use_for_three_leases(
    fresh_db: str, own_redis: OwnRedis, make_process: MakeProcess, what: str
) -> None:
    await while_redis_is(what, make_process, fresh_db, own_redis, 3 * SHORT_LEASE_S, SHORT_LEASE_S)


@pytest.mark.slow
async def test_paused_for_two_leases_of_production(
    fresh_db: str, own_redis: OwnRedis, make_process: MakeProcess
) -> None:
    await while_redis_is("paused", make_process, fresh_db, own_redis, 2 * LEASE_S, LEASE_S)


# ---- cut off -------------------------------------------------------------------------------------


async def test_connections_cut_in_the_middle_lose_and_double_nothing(
    fresh_db: str, own_redis: OwnRedis, make_process: MakeProcess
) -> None:
    """At any byte of what goes to Redis, and of its answers: a script that ran and was not heard
    of, half a publish, half a message.
    """
    rng = random.Random(seed())
    proxies = [Proxy(own_redis.port) for _ in range(2)]
    for proxy in proxies:
        await proxy.start()
    each = [{"redis_url": f"redis://127.0.0.1:{proxy.port}"} for proxy in proxies]
    nodes = await nodes_of(2, make_process, fresh_db, own_redis.url, each=each)
    try:
        await together(nodes)
        async with traffic_at(nodes, rate=100) as traffic:
            began = asyncio.get_running_loop().time()
            for n in range(CUTS):
                proxy = proxies[n % 2]
                proxy.cut(**{("requests", "answers")[n // 2 % 2]: rng.randrange(1, 10_000)})
                async with asyncio.timeout(QUIET_S_MAX):
                    await proxy.lost.wait()
                await traffic.posts(rng.randrange(10, 40))
            for proxy in proxies:
                proxy.heal()
            await together(nodes)
            await traffic.settle(fresh_db, set())
            acks, came = traffic.acks(began), traffic.deliveries(began)
            said = [await metrics(node) for node in nodes.nodes]
            print(
                traffic.verify(fresh_db, set()),
                f"{sum(proxy.connections for proxy in proxies)} connections to Redis",
                end=", ",
            )
            print(
                f"{len(acks)} acks p99 {share(acks, 0.99) * 1000:.0f} ms; deliveries median"
                f" {share(came, 0.5) * 1000:.0f} ms, max {came[-1]:.2f} s"
            )
            assert (
                sum(
                    one["chatd_bus_reconnects_total"]
                    + one["chatd_lease_failures_total"]
                    + one["chatd_publishes_lost_total"]
                    for one in said
                )
                > 0
            )
            assert traffic.offline(began) == []
            assert traffic.wrong_presence(set()) == []
    finally:
        for node in nodes.nodes:
            node.kill()
        for proxy in proxies:
            await proxy.stop()
