"""The Redis client against servers that take each other's place:

Sentinels with their master and replica, and a Cluster.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from chatd.cluster.redis import client as client_module
from chatd.cluster.redis.client import RedisUnavailable
from tests.fix_redis import MakeRedis, OwnCluster, OwnSentinel, version
from tests.fix_redis_client import SOON_S, Listening, MakeRedisClient, fail, refused, until_back
from tests.proxy import Proxy
from tests.until import until

pytestmark = pytest.mark.cluster


# ---- Sentinel ------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["kill", "freeze"])
async def test_a_failover_is_away_and_then_another_master(
    end: str, own_sentinel: OwnSentinel, make_redis_client: MakeRedisClient
) -> None:
    redis_client = make_redis_client(own_sentinel.url, connect_s=0.5)
    old, new = own_sentinel.master, own_sentinel.replica
    await asyncio.gather(*(redis_client.command("PING") for _ in range(5)))
    async with Listening(redis_client) as heard:
        await heard.to("chatd:u:1")
        getattr(old, end)()
        with pytest.raises(RedisUnavailable):
            await redis_client.command("SET", "{chatd}:a", 1)
        if end == "kill":
            await heard.ear.until_away()
    await until_back(redis_client)
    assert own_sentinel.master is new
    for n in range(10):  # no connection is left that leads to the old one
        await redis_client.command("SET", f"{{chatd}}:{n}", 1)
    async with Listening(redis_client) as heard:
        await heard.to("chatd:u:1")
        await redis_client.publish([("chatd:u:1", b"x")])
        await heard.ear.until(lambda: len(heard.ear.messages) == 1)
        if end == "freeze":
            old.thaw()
            assert await redis_client.command("SET", "{chatd}:a", 2)
    assert new.command("GET", "{chatd}:a") == (b"2" if end == "freeze" else None)


async def test_a_sentinel_that_is_dead_or_hangs_is_passed_over(
    own_sentinel: OwnSentinel, make_redis: MakeRedis, make_redis_client: MakeRedisClient
) -> None:
    dead, hangs = make_redis(), make_redis()
    dead.kill()
    hangs.freeze()
    live = own_sentinel.url.split("//")[1]
    redis_client = make_redis_client(f"redis+sentinel://127.0.0.1:{dead.port},127.0.0.1:{hangs.port},{live}")
    await redis_client.check()
    async with Listening(redis_client) as heard:
        await heard.to("chatd:u:1")
    nobody = make_redis_client(own_sentinel.url.replace("chatd-test", "other"))
    with pytest.raises(RedisUnavailable, match="master of other"):
        await nobody.check()


async def test_sentinels_may_have_a_password_of_their_own(
    redis_folder: Path, make_redis_client: MakeRedisClient
) -> None:
    servers = OwnSentinel(redis_folder / "s", password="pa", sentinel_password="hidden")
    try:
        servers.start()
        await make_redis_client(servers.url).check()
        assert "sentinel_password" in await refused(make_redis_client(servers.url.partition("?")[0]))
    finally:
        servers.kill()


# ---- Cluster -------------------------------------------------------------------------------------


async def test_a_cluster_shards_its_channels_where_it_can(
    own_cluster: OwnCluster, make_redis_client: MakeRedisClient, sharded_pubsub: None
) -> None:
    redis_client = make_redis_client(own_cluster.url)
    names = [f"chatd:u:{n}" for n in range(300)]
    async with Listening(redis_client) as heard:
        await heard.to(*names)
        for server in own_cluster.servers:
            mine = {name.decode() for name in server.command("PUBSUB", "SHARDCHANNELS")}
            assert len(mine) > 50
            assert mine == {name for name in names if own_cluster.owner(name) is server}
            assert server.command("PUBSUB", "CHANNELS") == []


async def test_a_cluster_that_cannot_shard_carries_all_over_one_master(
    own_cluster: OwnCluster, make_redis_client: MakeRedisClient, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setattr(client_module, "SHARDED_MIN", (99,))
    one, other = make_redis_client(own_cluster.url), make_redis_client(own_cluster.url)
    names = [f"chatd:u:{n}" for n in range(300)]
    async with Listening(one) as heard:
        await heard.to(*names)
        assert sorted(len(server.command("PUBSUB", "CHANNELS")) for server in own_cluster.servers) == [0, 0, 300]
        await other.publish([(name, b"x") for name in names])
        await heard.ear.until(lambda: [m.channel for m in heard.ear.messages] == names)


async def test_a_slot_that_moves_ends_the_subscription_and_stops_no_publish(
    own_cluster: OwnCluster, make_redis_client: MakeRedisClient, sharded_pubsub: None
) -> None:  # fmt: skip
    redis_client = make_redis_client(own_cluster.url)
    await redis_client.check()
    async with Listening(redis_client) as heard:
        await heard.to("chatd:u:1", "chatd:u:2")
        target = next(server for server in own_cluster.servers if server is not own_cluster.owner("chatd:u:1"))
        own_cluster.move("chatd:u:1", target)
        assert "slots" in str(await heard.ear.until_away())
    await redis_client.publish([("chatd:u:1", b"redirected")])
    async with Listening(redis_client) as heard:
        await heard.to("chatd:u:1")
        await redis_client.publish([("chatd:u:1", b"x")])
        await heard.ear.until(lambda: [m.data for m in heard.ear.messages] == [b"x"])


async def test_a_master_that_is_killed_is_away_until_it_is_back(
    own_cluster: OwnCluster, make_redis_client: MakeRedisClient
) -> None:
    redis_client = make_redis_client(own_cluster.url)
    names = [f"chatd:u:{n}" for n in range(30)]
    async with Listening(redis_client) as heard:
        await heard.to(*names)
        dead = (
            own_cluster.owner(names[0])
            if version() >= (7,)
            else min(own_cluster.servers, key=lambda server: server.port)
        )
        dead.kill()
        await heard.ear.until_away()
        with pytest.raises(RedisUnavailable):
            await redis_client.publish([(name, b"x") for name in names])
    dead.start()
    own_cluster.await_ok()
    await until_back(redis_client)
    async with Listening(redis_client) as heard:
        await heard.to(*names)
        await redis_client.publish([(name, b"x") for name in names])
        await heard.ear.until(lambda: {m.channel for m in heard.ear.messages} == set(names))


async def test_a_cluster_s_new_client_publishes_at_once_and_the_old_one_leaves_no_connection(
    own_cluster: OwnCluster, make_redis_client: MakeRedisClient, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setattr(client_module, "RENEW_S", 0)
    redis_client = make_redis_client(own_cluster.url)
    messages = [(f"chatd:u:{n}", b"x") for n in range(30)]
    for _ in range(3):
        await redis_client.publish(messages)
        with pytest.raises(RedisUnavailable):
            await redis_client.run(fail)
    own_cluster.servers[1].kill()  # not the first: redis-py asks that one for its commands, and gives up without it
    for n in range(30):  # one of them is the dead one's
        with contextlib.suppress(RedisUnavailable):
            await redis_client.command("GET", f"chatd:{n}")
    await redis_client.close()
    async with asyncio.timeout(SOON_S):
        for server in own_cluster.servers[::2]:
            # The one that asks
            await until(lambda: len(server.command("CLIENT", "LIST", "TYPE", "normal").splitlines()) <= 1)


async def test_a_cluster_that_moved_altogether_is_found_by_its_url(
    redis_folder: Path, make_redis_client: MakeRedisClient
) -> None:
    old, new = (OwnCluster(redis_folder / name, masters=1) for name in ("old", "new"))
    proxy = Proxy(0)
    try:
        old.start()
        new.start()
        proxy.upstream = old.servers[0].port
        await proxy.start()
        redis_client = make_redis_client(f"redis+cluster://127.0.0.1:{proxy.port}")
        await redis_client.command("SET", "{chatd}:a", "old")
        old.kill()
        proxy.upstream = new.servers[0].port  # as a name that leads elsewhere now
        await until_back(redis_client)
        await redis_client.command("SET", "{chatd}:a", "new")
        assert new.servers[0].command("GET", "{chatd}:a") == b"new"
    finally:
        await proxy.stop()
        old.kill()
        new.kill()
