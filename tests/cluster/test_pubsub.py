"""Pub/sub: a subscription that is deaf although it answers, and confirmations that arrive late."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from chatd.cluster.pubsub import PubSub
from chatd.cluster.redis.client import RedisClient, Subscription, SubscriptionListener
from chatd.ids import UserId
from chatd.metrics import Metrics
from tests.fix_presence_sync import MakeSeat, acquainted
from tests.fix_redis import MakeRedis, OwnCluster, OwnRedis
from tests.proxy import Proxy
from tests.until import until

pytestmark = pytest.mark.cluster

ALICE = UserId("alice")


class Ears:
    """A `PubSubListener`."""

    def __init__(self) -> None:
        self.heard_data: list[tuple[UserId, bytes]] = []
        self.backs = self.aways = 0

    def heard(self, user: UserId, data: bytes) -> None:
        self.heard_data.append((user, data))

    def heard_presence(self, data: bytes) -> None:
        """Not of interest here."""

    def heard_status(self, user: UserId, data: bytes) -> None:
        """Likewise."""

    def away(self) -> None:
        self.aways += 1

    def back(self) -> None:
        self.backs += 1


async def test_a_subscription_that_is_kept_at_a_master_that_was_replaced_is_made_again(
    own_redis: OwnRedis, make_redis: MakeRedis, make_seat: MakeSeat
) -> None:
    """A proxy keeps it there, and the isolated master answers its pings; commands go to the new
    one.
    """
    proxy, new = Proxy(own_redis.port), make_redis()
    await proxy.start()
    try:
        a = await make_seat("a", url=f"redis://127.0.0.1:{proxy.port}")
        a.pubsub.hold(ALICE)
        await a.pubsub.subscribed(ALICE)
        reconnects = a.metrics.bus_reconnects
        proxy.upstream = new.port
        own_redis.command("CLIENT", "KILL", "TYPE", "normal")
        await until(
            lambda: a.metrics.bus_reconnects > reconnects and a.pubsub.up,
            "it notices that it does not hear itself, and subscribes again",
        )
        await until(lambda: int(new.command("PUBLISH", "chatd:u:alice", "x")) == 1, "it is subscribed at the new one")
        await until(lambda: (ALICE, b"x") in a.heard_frames, "and hears")
        assert a.lives
    finally:
        await proxy.stop()


async def test_a_subscription_of_which_a_confirmation_was_lost_is_made_again(
    own_redis: OwnRedis, make_seat: MakeSeat, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a proxy. Its pings are answered, and who waits for the channel would wait for ever."""
    a = await make_seat("a")
    await until(lambda: a.pubsub.up)
    lost: list[bytes] = []
    real = Subscription._control

    def control(self: Subscription, name: str, kind: Any, reply: Any) -> None:
        if kind == b"subscribe" and not lost:
            lost.append(reply[1])
        else:
            real(self, name, kind, reply)

    monkeypatch.setattr(Subscription, "_control", control)
    a.pubsub.hold(ALICE)
    await until(lambda: a.metrics.bus_reconnects and a.pubsub.up, "it subscribes again")
    assert lost == [b"chatd:u:alice"]
    await a.pubsub.subscribed(ALICE)
    assert int(own_redis.command("PUBLISH", "chatd:u:alice", "x")) == 1


async def test_a_node_that_hears_itself_is_left_alone(make_seat: MakeSeat) -> None:
    a, b = await make_seat("a"), await make_seat("b")
    await acquainted(a, b)
    echoes = a.pubsub._echo_n
    await until(lambda: a.pubsub._echo_n > echoes + 2, "pings go on")
    assert [seat.metrics.bus_reconnects for seat in (a, b)] == [0, 0]


class Slow:
    """A subscription whose confirmations come when the test says so."""

    outdated = False

    def __init__(self) -> None:
        self.sent: list[tuple[str, str]] = []
        self.listener: SubscriptionListener
        self.confirms: Callable[[str], bool] = lambda _: True

    async def connect(self) -> None:
        """At once."""

    async def close(self) -> None:
        """Likewise."""

    def echoes(self, name: str) -> list[str]:
        return [name]

    async def subscribe(self, names: list[str]) -> None:
        for name in names:
            self.sent.append(("+", name))
            if self.confirms(name):
                self.listener.confirmed(name)

    async def unsubscribe(self, names: list[str]) -> None:
        self.sent += [("-", name) for name in names]

    async def ping(self) -> None:
        """Never answered."""

    async def listen(self, listener: SubscriptionListener) -> None:
        self.listener = listener
        await asyncio.Event().wait()

    def about(self, channel: str) -> str:
        return "".join(sign for sign, name in self.sent if name == channel)


@pytest.mark.parametrize("again", ["before the confirmation", "after it"])
async def test_a_subscription_that_is_confirmed_after_its_release_is_none(
    redis_client: RedisClient, monkeypatch: pytest.MonkeyPatch, again: str
) -> None:
    slow, channel = Slow(), "chatd:u:alice"
    slow.confirms = lambda name: name != channel
    monkeypatch.setattr(redis_client, "subscription", lambda: slow)
    monkeypatch.setattr("chatd.cluster.pubsub.PING_S", 60.0)
    pubsub = PubSub(redis_client, "chatd", Metrics(), "0" * 16)
    pubsub.listener = Ears()
    task = asyncio.create_task(pubsub.run())
    try:
        await until(lambda: pubsub.up, "it is up")
        pubsub.hold(ALICE)
        await until(lambda: slow.about(channel) == "+", "asked for")
        pubsub.release([ALICE])
        await until(lambda: slow.about(channel) == "+-", "given up")
        if again == "after it":
            slow.listener.confirmed(channel)
            pubsub.hold(ALICE)
            waiting = asyncio.create_task(pubsub.subscribed(ALICE))
        else:
            pubsub.hold(ALICE)
            waiting = asyncio.create_task(pubsub.subscribed(ALICE))
            await asyncio.sleep(0)
            slow.listener.confirmed(channel)
        await until(lambda: slow.about(channel) == "+-+", "asked for again")
        assert not waiting.done(), "what was confirmed was the one that has been given up"
        slow.listener.confirmed(channel)
        await until(waiting.done, "it is heard from now on")
        slow.listener.heard(channel, b"x")
        assert isinstance(pubsub.listener, Ears)
        ears = pubsub.listener
        await until(lambda: ears.heard_data == [(ALICE, b"x")], "heard")
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_nodes_that_decided_differently_on_sharded_channels_agree(
    own_cluster: OwnCluster, make_seat: MakeSeat, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One takes the masters for new enough, as after a rolling upgrade; the other looked before
    that.
    """
    monkeypatch.setattr("chatd.cluster.redis.client.SHARDED_MIN", (99, 0))
    a = await make_seat("a", url=own_cluster.url)
    b = await make_seat("b", url=own_cluster.url, lease_ms=60_000)
    await until(lambda: a.presence_sync.nodes == 1, "a knows b")
    for seat in (a, b):
        seat.pubsub.hold(ALICE)
        await seat.pubsub.subscribed(ALICE)
    assert (a.redis_client.shards, b.redis_client.shards) == (False, False), "this Redis is too old for it"

    async def sees_new_masters(*_: object) -> None:
        a.redis_client._sharded = True

    a.redis_client._ask_shards = sees_new_masters  # type: ignore[method-assign, assignment]
    a.redis_client._sharded = True
    a.presence_sync._soon.set()
    await until(lambda: a.redis_client.sharded is False, "a goes by the one that cannot")
    await until(lambda: a.pubsub.up, "and hears")
    b.pubsub.publish(ALICE, b"from b")
    await until(lambda: (ALICE, b"from b") in a.heard_frames, "what b publishes")
    a.pubsub.publish(ALICE, b"from a")
    await until(lambda: (ALICE, b"from a") in b.heard_frames, "and b what a publishes")


async def test_sharded_channels_are_used_where_all_can(redis_client: RedisClient) -> None:
    redis_client._sharded = True
    for others, sharded in ((False, False), (True, True)):
        redis_client.agree(sharded=others)
        assert redis_client.sharded is sharded
    redis_client._sharded = None
    assert redis_client.sharded is None, "no Cluster"
