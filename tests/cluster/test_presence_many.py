"""What presence costs a node among many, and nodes of the release before among those of this one.

Counts, not times: messages that a node hears, and calls to Redis.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import orjson
import pytest

from chatd.cluster import presence_keys, presence_reader, pubsub
from chatd.cluster.leases import Lease
from chatd.cluster.redis.client import RedisUnavailable
from chatd.core.user_status import Remote
from chatd.ids import UserId
from chatd.wire import presence_codec
from tests.fix_presence_sync import MakeSeat, Seat, acquainted
from tests.fix_redis import OwnCluster, OwnRedis
from tests.until import until

pytestmark = pytest.mark.cluster

HERS = [f"hers{n}" for n in range(10)]


def where(own_redis: OwnRedis, user: str) -> set[str]:
    """The incarnations that the index has for a user."""
    nodes = (own_redis.command("HGET", "{chatd}:where", user) or b"").decode()
    return {nodes[at : at + 16] for at in range(0, len(nodes), 16)}


# ---- what it costs -------------------------------------------------------------------------------


@pytest.mark.parametrize("nodes", [2, 8])
async def test_what_a_node_hears_depends_on_whom_it_keeps_and_not_on_the_number_of_nodes(
    make_seat: MakeSeat, nodes: int
) -> None:
    watching, *others = [await make_seat(f"node{n}") for n in range(nodes)]
    await acquainted(watching, *others)
    await watching.watch(*HERS)
    heard = watching.metrics.presence_heard
    others[0].come(*HERS)
    for n, other in enumerate(others):
        other.come(*(f"user{n}-{k}" for k in range(50)))
    await until(lambda: all(watching.sees(user) == "online" for user in HERS), "the node sees whom it watches")
    await until(lambda: all(not other.presence._own._dirty for other in others), "all is published")
    await watching.watch("somebody")  # what was published before has arrived
    assert watching.metrics.presence_heard - heard == len(HERS)
    assert all(other.metrics.presence_heard == 0 for other in others), "nobody is watched there"


@pytest.mark.parametrize("nodes", [2, 8])
async def test_a_look_is_one_call_to_redis_however_many_nodes_there_are(
    make_seat: MakeSeat, monkeypatch: pytest.MonkeyPatch, nodes: int
) -> None:
    watching, *others = [await make_seat(f"node{n}", lease_ms=5_000) for n in range(nodes)]
    await acquainted(watching, *others)
    for n, other in enumerate(others):
        other.come(f"user{n}")
    await until(lambda: all(not other.presence._own._dirty for other in others), "all is published")
    await until(lambda: not any(n.stale for n in watching.presence_sync._leases.nodes.values()), "all was read")
    keys, calls = watching.presence_sync._keys, 0
    real = keys._look

    async def counted(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        return await real(*args)

    async def never(*_: Any) -> Any:
        raise AssertionError("a hash was read")

    monkeypatch.setattr(presence_reader, "ROUND_USERS", 0)
    monkeypatch.setattr(presence_reader, "HEARD_S", 60.0)
    monkeypatch.setattr(keys, "_look", counted)
    monkeypatch.setattr(keys, "read", never)
    await watching.watch(*(f"user{n}" for n in range(20)))
    assert [watching.sees(f"user{n}") for n in range(nodes)] == ["online"] * (nodes - 1) + ["offline"]
    assert calls == 1


async def test_users_who_are_not_kept_any_more_are_not_heard_of_any_more(
    make_seat: MakeSeat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence_reader, "LINGER_S", 0.1)
    a, b = await make_seat("a"), await make_seat("b")
    await acquainted(a, b)
    await b.watch("alice", "bob")
    b.presence.watch(b, [UserId("alice"), UserId("bob")], [UserId("bob")])
    await until(lambda: b.pubsub.status_channel(UserId("alice")) not in b.pubsub._subscribed, "b has let her go")
    a.come("alice", "bob")
    await until(lambda: b.sees("bob") == "online", "b sees whom it still watches")
    assert b.metrics.presence_heard == 1
    await b.watch("alice")
    assert b.sees("alice") == "online"
    a.go("alice")
    await until(lambda: b.sees("alice") == "offline", "and hears of her again")


async def hear_in_a_cluster(make_seat: MakeSeat, url: str, monkeypatch: pytest.MonkeyPatch) -> list[Seat]:
    """Two nodes over a Redis Cluster; one hears what the other's users do, of these alone."""
    monkeypatch.setattr(presence_reader, "ROUND_USERS", 0)
    a, b = await make_seat("a", url=url), await make_seat("b", url=url)
    await acquainted(a, b)
    await until(lambda: all(s.redis_client.sharded == a.redis_client.sharded for s in (a, b)), "they agree")
    await b.watch("alice", "bob")
    a.come("alice", "carol")
    await until(lambda: b.sees("alice") == "online", "b sees her")
    a.go("alice")
    await until(lambda: b.sees("alice") == "offline", "and that she leaves")
    assert b.metrics.presence_heard == 2
    return [a, b]


async def test_presence_is_heard_over_a_cluster(
    make_seat: MakeSeat, own_cluster: OwnCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    await hear_in_a_cluster(make_seat, own_cluster.url, monkeypatch)


@pytest.mark.usefixtures("sharded_pubsub")
async def test_presence_is_heard_over_sharded_channels(
    make_seat: MakeSeat, own_cluster: OwnCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    seats = await hear_in_a_cluster(make_seat, own_cluster.url, monkeypatch)
    assert all(seat.redis_client.sharded for seat in seats)


# ---- losses --------------------------------------------------------------------------------------


async def test_a_loss_that_nothing_explains_is_found_in_rounds(
    make_seat: MakeSeat, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = await make_seat("a"), await make_seat("b")
    await acquainted(a, b)
    await b.watch("alice", "bob")
    a.come("bob")
    await until(lambda: b.sees("bob") == "online", "b sees him")
    monkeypatch.setattr(pubsub, "DROPPED", 1.0)
    a.come("alice")
    a.go("bob")
    await until(lambda: (b.sees("alice"), b.sees("bob")) == ("online", "offline"), "b is right")
    assert a.metrics.publishes_lost == 2


def confirm_late(seat: Seat, monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Its subscriptions are confirmed once the event is set."""
    real, confirmed = seat.pubsub._until_confirmed, asyncio.Event()

    async def late(channels: Any) -> None:
        await confirmed.wait()
        await real(channels)

    monkeypatch.setattr(seat.pubsub, "_until_confirmed", late)
    return confirmed


async def test_a_change_between_the_wish_to_hear_and_hearing_is_read(
    make_seat: MakeSeat, own_redis: OwnRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = await make_seat("a"), await make_seat("b")
    await acquainted(a, b)
    monkeypatch.setattr(presence_reader, "HEARD_S", 60.0)
    monkeypatch.setattr(presence_reader, "ROUND_USERS", 0)
    confirmed = confirm_late(b, monkeypatch)
    looking = asyncio.create_task(b.watch("alice"))
    monkeypatch.setattr(pubsub, "DROPPED", 1.0)
    a.come("alice")
    await until(lambda: where(own_redis, "alice") == {a.boot}, "she is written")
    assert b.sees("alice") == "offline"
    confirmed.set()
    await looking
    assert b.sees("alice") == "online"


async def test_what_is_heard_before_the_answer_of_a_look_does_not_void_the_answer(
    make_seat: MakeSeat, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another user of the same node comes after Redis has read, and is heard of before that."""
    a, b = await make_seat("a"), await make_seat("b")
    await acquainted(a, b)
    await b.watch("other")
    a.come("alice")
    await until(lambda: not a.presence._own._dirty, "she is written")
    real = b.presence_sync.reader._keys.look

    async def late(*args: Any) -> Any:
        answer = await real(*args)
        a.come("other")
        await until(lambda: b.sees("other") == "online", "b hears of the other one")
        return answer

    monkeypatch.setattr(b.presence_sync.reader._keys, "look", late)
    monkeypatch.setattr(presence_reader, "ROUND_USERS", 0)
    await b.watch("alice")
    assert (b.sees("alice"), b.sees("other")) == ("online", "online")


async def test_a_look_does_not_wait_for_long_to_hear_and_reads_again_once_it_does(
    make_seat: MakeSeat, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = await make_seat("a"), await make_seat("b")
    await acquainted(a, b)
    a.come("early")
    await until(lambda: not a.presence._own._dirty, "she is written")
    monkeypatch.setattr(presence_reader, "HEARD_S", 0.02)
    monkeypatch.setattr(presence_reader, "ROUND_USERS", 0)
    confirmed = confirm_late(b, monkeypatch)
    await b.watch("alice", "early")
    assert (b.sees("alice"), b.sees("early")) == ("offline", "online")
    monkeypatch.setattr(pubsub, "DROPPED", 1.0)
    a.come("alice")
    await until(lambda: not a.presence._own._dirty, "she is written")
    confirmed.set()
    await until(lambda: b.sees("alice") == "online", "b has read her again")


async def test_an_index_that_was_evicted_is_made_again_and_nobody_looks_offline_meanwhile(
    make_seat: MakeSeat, own_redis: OwnRedis
) -> None:
    a, b = await make_seat("a"), await make_seat("b")
    await acquainted(a, b)
    a.come("alice", "bob")
    await b.watch("alice")
    await until(lambda: b.sees("alice") == "online", "b sees her")
    told = len(b.told)
    own_redis.command("DEL", "{chatd}:where")
    own_redis.command("HSET", "{chatd}:where", "somebody", "f" * 16)  # what another node wrote since
    b.presence_sync.back()
    await until(lambda: where(own_redis, "bob") == {a.boot}, "a lists its users again")
    await b.watch("bob")
    await until(lambda: b.sees("bob") == "online", "b finds him by it")
    assert "alice" not in {change.user for change in b.told[told:]}


NO_ANSWERS: list[object] = [
    None,
    7,
    [],
    [[], []],
    [[b"1"], [0]],
    [[b"1"], [0, 5, b"x"]],
    [[b"1"], [1, 0, b"x"]],
    [[b"1"], [b"0", 0, b"x"]],
    [[b"1"], [0, 0, None]],
]


@pytest.mark.parametrize("reply", NO_ANSWERS, ids=repr)
def test_what_is_no_answer_of_a_look_counts_as_an_outage(reply: object) -> None:
    with pytest.raises(RedisUnavailable):
        presence_keys.read_look(reply, ["f" * 16], [UserId("alice")])


# ---- the index -----------------------------------------------------------------------------------


async def test_the_index_has_each_user_at_the_nodes_where_they_are(make_seat: MakeSeat, own_redis: OwnRedis) -> None:
    a, b = await make_seat("a"), await make_seat("b")
    await acquainted(a, b)
    a.come("alice", "bob")
    b.come("alice")
    await until(lambda: where(own_redis, "alice") == {a.boot, b.boot}, "she is at both")
    a.go("alice")
    await until(lambda: where(own_redis, "alice") == {b.boot}, "she has left one")
    b.go("alice")
    await until(lambda: own_redis.command("HEXISTS", "{chatd}:where", "alice") == 0, "she has left both")
    assert where(own_redis, "bob") == {a.boot}


async def test_what_a_dead_node_leaves_in_the_index_goes(make_seat: MakeSeat, own_redis: OwnRedis) -> None:
    a, b = await make_seat("a"), await make_seat("b")
    await acquainted(a, b)
    a.come("alice", "bob", "carol")
    await until(lambda: where(own_redis, "carol") == {a.boot}, "they are in it")
    await a.kill()
    await until(lambda: own_redis.command("EXISTS", f"{{chatd}}:on:{a.boot}") == 0, "its hash has expired")
    b.come("bob")
    await until(lambda: where(own_redis, "bob") == {b.boot}, "who comes again takes it out")
    await until(lambda: own_redis.command("HLEN", "{chatd}:where") == 2, "what is left is swept: bob, and b itself")


# ---- the release before --------------------------------------------------------------------------


@pytest.fixture
def release_before(monkeypatch: pytest.MonkeyPatch) -> Callable[[Seat], None]:
    """Makes a node of a seat, before it starts, as that release has them.

    It knows no listings and no index, and hears and publishes on the channel of all.
    """

    def prepare(seat: Seat) -> None:
        sync = seat.presence_sync
        keys, leases = sync._keys, sync._leases
        beat, judge = keys.beat, leases.judge

        async def tells_no_listing(info: bytes, **rest: Any) -> Any:
            told = orjson.loads(info)
            del told["listing"]
            return await beat(orjson.dumps(told), **rest)

        def sees_no_listing(rows: list[Lease], now: float) -> Any:
            return judge([row._replace(info=row.info._replace(listing=None)) for row in rows], now)

        async def publish(batch: list[tuple[UserId, Remote]]) -> None:
            n = sync._n + 1
            try:
                await keys.write(batch, n)
            finally:
                sync._n = n
            seat.pubsub.publish_presence(presence_codec.encode_batch(sync.incarnation, n, batch))

        monkeypatch.setattr(keys, "_where", "{chatd}:nowhere")
        monkeypatch.setattr(keys, "beat", tells_no_listing)
        monkeypatch.setattr(leases, "judge", sees_no_listing)
        monkeypatch.setattr(sync, "_publish", publish)
        monkeypatch.setattr(sync, "heard_status", lambda user, data: None)

    return prepare


async def test_nodes_of_two_releases_see_each_others_users(
    make_seat: MakeSeat, own_redis: OwnRedis, release_before: Callable[[Seat], None]
) -> None:
    a, b = await make_seat("a"), await make_seat("b")
    old = await make_seat("old", prepare=release_before)
    await acquainted(a, b, old)
    old.come("early")
    await until(lambda: not old.presence._own._dirty, "it is written")
    assert where(own_redis, "early") == set()
    for seat in (a, b, old):
        await seat.watch("alice", "olga", "early")
        assert seat is old or seat.sees("early") == "online"
    old.come("olga")
    a.come("alice")
    both = ("online", "online")
    await until(lambda: all((s.sees("alice"), s.sees("olga")) == both for s in (a, b, old)), "all see both")
    old.go("olga")
    a.go("alice")
    both = ("offline", "offline")
    await until(lambda: all((s.sees("alice"), s.sees("olga")) == both for s in (a, b, old)), "and that they leave")
    reads = [seat.metrics.presence_reads for seat in (a, b)]
    a.come("alice")
    await until(lambda: all(s.sees("alice") == "online" for s in (b, old)), "all see her again")
    assert [seat.metrics.presence_reads for seat in (a, b)] == reads, "no number has a hole between new nodes"


@pytest.mark.parametrize("loses", ["old", "new"])
async def test_what_is_lost_between_two_releases_is_found_by_its_number(
    make_seat: MakeSeat, monkeypatch: pytest.MonkeyPatch, release_before: Callable[[Seat], None], loses: str
) -> None:
    new, old = await make_seat("new"), await make_seat("old", prepare=release_before)
    await acquainted(new, old)
    monkeypatch.setattr(presence_reader, "ROUND_USERS", 0)
    speaks, hears = (new, old) if loses == "old" else (old, new)
    await hears.watch("alice")
    monkeypatch.setattr(speaks.pubsub, "publish_presence", lambda data: None)
    speaks.come("alice")
    await until(lambda: hears.sees("alice") == "online", "the beat says that there is more")


async def test_once_no_node_of_the_release_before_is_left_nothing_goes_to_all(
    make_seat: MakeSeat, monkeypatch: pytest.MonkeyPatch, release_before: Callable[[Seat], None]
) -> None:
    a, b = await make_seat("a"), await make_seat("b")
    old = await make_seat("old", prepare=release_before)
    await acquainted(a, b, old)
    to_all: list[bytes] = []
    monkeypatch.setattr(a.pubsub, "publish_presence", to_all.append)
    await b.watch("alice", "bob")
    a.come("alice")
    await until(lambda: b.sees("alice") == "online", "b sees her")
    assert len(to_all) == 1
    await old.kill()
    await until(lambda: a.presence_sync.nodes == 1, "it is dead")
    a.come("bob")
    await until(lambda: b.sees("bob") == "online", "b sees him")
    assert len(to_all) == 1
