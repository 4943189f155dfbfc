"""Presence over nodes, where Redis loses some of it, answers late, or holds what no node has written.

Each drives one order of events.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from chatd.cluster import presence_keys, presence_reader, pubsub
from chatd.cluster.redis.client import RedisUnavailable
from chatd.core.user_status import Remote, Status
from chatd.ids import UserId
from chatd.wire import presence_codec
from tests.fix_gate import Gate
from tests.fix_presence_sync import LEASE_MS, MakeSeat, Seat, acquainted
from tests.fix_redis import OwnRedis
from tests.until import until

pytestmark = pytest.mark.cluster


def own_key(seat: Seat) -> str:
    return f"{{chatd}}:on:{seat.boot}"


def cut_publishing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is published is lost, and not found in rounds."""
    monkeypatch.setattr(pubsub, "DROPPED", 1.0)
    monkeypatch.setattr(presence_reader, "ROUND_USERS", 0)


async def test_a_user_who_leaves_and_one_who_comes_while_the_hash_is_listed_again_are_right_everywhere(
    make_seat: MakeSeat, own_redis: OwnRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = await make_seat("a"), await make_seat("b")
    await acquainted(a, b)
    await b.watch("stays", "leaves", "comes")
    a.come("stays", "leaves")
    await until(lambda: (b.sees("stays"), b.sees("leaves")) == ("online", "online"), "b sees both")
    cut_publishing(monkeypatch)
    with monkeypatch.context() as patch:
        gate = Gate(patch, a.presence_sync._keys, "begin")  # after the list was made
        own_redis.command("DEL", own_key(a))
        await gate.reached.wait()
        a.go("leaves")
        a.come("comes")
        await asyncio.sleep(0.05)  # so long that a flush would have been
        gate.open()
        await until(lambda: a.presence_sync._written, "the hash is whole again")
    right = {b"", b"\1", b"stays", b"comes"}
    await until(lambda: set(own_redis.command("HKEYS", own_key(a))) == right, "what changed is written, too")
    b.presence_sync.back()
    await until(
        lambda: (b.sees("leaves"), b.sees("comes"), b.sees("stays")) == ("offline", "online", "online"), "b is right"
    )


async def test_a_write_of_before_that_arrives_after_a_new_listing_changes_nothing(
    make_seat: MakeSeat, own_redis: OwnRedis
) -> None:
    a = await make_seat("a")
    a.come("alice")
    await until(lambda: own_redis.command("HEXISTS", own_key(a), "alice") == 1, "she is in the hash")
    late = a.presence_sync._keys
    said = a.presence._own[next(iter(a.presence._own.keys()))]
    before = late._writes
    own_redis.command("DEL", own_key(a))
    await until(
        lambda: own_redis.command("HEXISTS", own_key(a), "alice") == 1 and late._writes > before, "it is listed again"
    )
    entry = presence_codec.encode_entry(said)
    answer = await a.redis_client.script(presence_keys.WRITE)(
        [own_key(a), "{chatd}:where"],
        [before, before + 1, "99", 1_000, a.boot, "{chatd}:on:", "PUBLISH", 1, "ghost", entry, 0],
    )
    assert answer == 0
    assert own_redis.command("HEXISTS", own_key(a), "ghost") == 0
    assert own_redis.command("HEXISTS", "{chatd}:where", "ghost") == 0


async def test_a_failover_to_a_replica_that_lacks_the_last_changes_makes_nobody_wrong(
    make_seat: MakeSeat, own_redis: OwnRedis
) -> None:
    """What such a replica has is what the hash was before: it is put back as it was, and all
    connections are cut.
    """
    a, b = await make_seat("a"), await make_seat("b")
    await acquainted(a, b)
    await b.watch("stays", "leaves", "comes")
    a.come("stays", "leaves")
    await until(lambda: (b.sees("stays"), b.sees("leaves")) == ("online", "online"), "b sees both")
    before = own_redis.command("DUMP", own_key(a))
    a.go("leaves")
    a.come("comes")
    await until(lambda: (b.sees("leaves"), b.sees("comes")) == ("offline", "online"), "b sees the change")
    told = len(b.told)
    rewrites = a.metrics.lease_rewrites
    own_redis.command("RESTORE", own_key(a), 2 * LEASE_MS, before, "REPLACE")
    b.presence_sync.back()
    await until(lambda: a.metrics.lease_rewrites > rewrites, "a lists its users again")
    reads = b.metrics.presence_reads
    await until(lambda: b.metrics.presence_reads > reads, "and b reads them")
    await until(lambda: not any(node.stale for node in b.presence_sync._leases.nodes.values()), "b has read all of it")
    assert (b.sees("stays"), b.sees("leaves"), b.sees("comes")) == ("online", "offline", "online")
    assert [
        change.user for change in b.told[told:] if change.status.value == "offline" and change.user == "comes"
    ] == []
    assert [
        change.user for change in b.told[told:] if change.status.value == "online" and change.user == "leaves"
    ] == []


async def test_a_batch_written_after_such_a_failover_and_before_the_next_beat_does_not_hide_what_was_lost(
    make_seat: MakeSeat, own_redis: OwnRedis, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    a, b = await make_seat("a"), await make_seat("b")
    await acquainted(a, b)
    await b.watch("stays", "leaves", "comes", "later")
    a.come("stays", "leaves")
    await until(lambda: (b.sees("stays"), b.sees("leaves")) == ("online", "online"), "b sees both")
    with monkeypatch.context() as patch:
        gate = Gate(patch, a.presence_sync._keys, "beat")
        await gate.reached.wait()
        before = own_redis.command("DUMP", own_key(a))
        a.go("leaves")
        a.come("comes")
        await until(lambda: (b.sees("leaves"), b.sees("comes")) == ("offline", "online"), "b sees the change")
        own_redis.command("RESTORE", own_key(a), 2 * LEASE_MS, before, "REPLACE")
        n = a.presence_sync._n
        a.come("later")
        await until(lambda: a.presence_sync._n > n, "the batch was tried")
        gate.open()
    await until(lambda: b.sees("later") == "online", "b sees who came after it")
    reads = b.metrics.presence_reads
    b.presence_sync.back()
    await until(
        lambda: b.metrics.presence_reads > reads and not b.presence_sync._leases.nodes[a.boot].stale,
        "b has read all of it",
    )
    assert {user: b.sees(user) for user in ("stays", "leaves", "comes", "later")} == {
        "stays": "online", "leaves": "offline", "comes": "online", "later": "online",
    }  # fmt: skip


async def test_a_hash_that_was_evicted_and_got_one_field_since_is_listed_again(
    make_seat: MakeSeat, own_redis: OwnRedis
) -> None:
    a, b = await make_seat("a"), await make_seat("b")
    await acquainted(a, b)
    a.come("alice", "bob")
    await until(lambda: own_redis.command("HLEN", own_key(a)) == 4, "both are in the hash")
    own_redis.command("DEL", own_key(a))
    a.come("carol")
    await b.watch("alice", "bob", "carol")
    await until(lambda: {b.sees(user) for user in ("alice", "bob", "carol")} == {"online"}, "b sees all three")


async def test_a_node_that_died_is_gone_within_a_lease_although_beats_fail(
    make_seat: MakeSeat, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = await make_seat("a"), await make_seat("b")
    await acquainted(a, b)
    await b.watch("alice")
    a.come("alice")
    await until(lambda: b.sees("alice") == "online", "b sees her")
    real, n = b.presence_sync._keys.beat, 0

    async def fails_sometimes(*args: Any, **kwargs: Any) -> Any:
        nonlocal n
        n += 1
        if n % 8 == 0:
            raise RedisUnavailable("on purpose")
        return await real(*args, **kwargs)

    monkeypatch.setattr(b.presence_sync._keys, "beat", fails_sometimes)
    await a.kill()
    beats = n
    await until(lambda: b.sees("alice") == "offline", "b sees that she has gone")
    assert n - beats < 25


REPLIES: list[object] = [
    None,
    7,
    b"x",
    [],
    [None],
    [1, 2, 3],
    [b"a", b"b", b"c"],
    [1, 0, [[b"x", 1, b"y"], [b"\xff" * 16, 1, b""], 5]],
    [1, 0, [[]]],
]


@pytest.mark.parametrize("reply", REPLIES, ids=repr)
async def test_no_answer_of_the_beat_ends_it(
    make_seat: MakeSeat, monkeypatch: pytest.MonkeyPatch, reply: object
) -> None:
    a = await make_seat("a")
    a.come("alice")
    asked = asyncio.Event()

    async def answer(*_: object) -> object:
        asked.set()
        return reply

    with monkeypatch.context() as patch:
        for script in ("_beat", "_begin", "_write"):
            patch.setattr(a.presence_sync._keys, script, answer)
        await asked.wait()
        asked.clear()
        await asked.wait()
    assert a.lives
    b = await make_seat("b")
    await acquainted(a, b)
    await b.watch("alice")
    await until(lambda: b.sees("alice") == "online", "all is right after it")


TYPES: dict[str, tuple[object, ...]] = {
    "string": ("SET", "x"),
    "list": ("RPUSH", "x"),
    "set": ("SADD", "x"),
    "zset": ("ZADD", 1, "x"),
    "hash": ("HSET", "x", "y"),
    "stream": ("XADD", "*", "x", "y"),
}


@pytest.mark.parametrize("kind", TYPES)
async def test_keys_of_any_type_under_our_names_end_nobody_and_are_mended(
    make_seat: MakeSeat, own_redis: OwnRedis, kind: str
) -> None:
    a, b = await make_seat("a"), await make_seat("b")
    await acquainted(a, b)
    a.come("alice")
    await b.watch("alice", "bob")
    await until(lambda: b.sees("alice") == "online", "b sees her")
    verb, *rest = TYPES[kind]
    for key in ("{chatd}:nodes", "{chatd}:info", "{chatd}:where", own_key(a), own_key(b)):
        own_redis.command("DEL", key)
        own_redis.command(verb, key, *rest)
    a.go("alice")
    a.come("bob")
    await until(lambda: (b.sees("alice"), b.sees("bob")) == ("offline", "online"), "b is right")
    types = {"{chatd}:nodes": b"zset", "{chatd}:info": b"hash", "{chatd}:where": b"hash", own_key(a): b"hash"}
    await until(lambda: all(own_redis.command("TYPE", key) == is_of for key, is_of in types.items()), "mended")
    await until(lambda: own_redis.command("HEXISTS", own_key(a), "bob") == 1, "and written")
    assert a.lives
    assert b.lives


INFOS = [
    b"",
    b"\xff",
    b"[]",
    b'{"n":"7"}',
    b'{"n":[]}',
    b'{"n":1e400}',
    b'{"grace_ms":"x","left":7}',
    b'{"name":5,"n":-1}',
    b'{"name":null,"shards":"no"}',
]


async def test_rows_of_wrong_types_beside_leases_end_nobody(make_seat: MakeSeat, own_redis: OwnRedis) -> None:
    a = await make_seat("a")
    for n, info in enumerate(INFOS):
        boot = f"{n:016x}"
        own_redis.command("HSET", "{chatd}:info", boot, info)
        own_redis.command("ZADD", "{chatd}:nodes", "+inf" if n % 3 == 0 else 1e18 if n % 3 == 1 else 0, boot)
        own_redis.command("HSET", f"{{chatd}}:on:{boot}", "", b"\xff" if n % 2 else "7", "alice", info)
    own_redis.command("ZADD", "{chatd}:nodes", 1e18, b"\xff\xfe")
    await a.watch("alice")
    own_redis.command("HSET", "{chatd}:info", a.boot, b'{"n":"x"}')
    beats = a.presence_sync._beaten_at
    await until(lambda: a.presence_sync._beaten_at > beats + 2 * LEASE_MS / 1000, "beats go through")
    await until(lambda: a.presence_sync.nodes == 0, "none of them counts longer than a lease")
    assert a.lives
    b = await make_seat("b")
    await until(lambda: a.presence_sync.nodes == 1, "a real one does")
    assert b.lives


async def test_a_row_that_redis_clock_going_back_left_in_the_future_goes(
    make_seat: MakeSeat, own_redis: OwnRedis
) -> None:
    """What a step back of a day leaves of a node that died before it."""
    seconds, _ = own_redis.command("TIME")
    future = (int(seconds) + 86_400) * 1000
    a = await make_seat("a")
    dead = await make_seat("dead")
    await a.watch("alice")
    dead.come("alice")
    await until(lambda: a.sees("alice") == "online", "a sees her")
    await dead.kill()
    own_redis.command("ZADD", "{chatd}:nodes", future, dead.boot)
    own_redis.command("PERSIST", own_key(dead))
    await until(lambda: a.sees("alice") == "offline", "she goes with her node")
    score = float(own_redis.command("ZSCORE", "{chatd}:nodes", dead.boot))
    assert score < future
    c = await make_seat("c")
    await acquainted(a, c)
    assert a.presence_sync.nodes == 1


async def test_garbage_on_the_presence_channel_ends_nobody(make_seat: MakeSeat, own_redis: OwnRedis) -> None:
    a, b = await make_seat("a"), await make_seat("b")
    await acquainted(a, b)
    await b.watch("alice")
    garbage = [
        b"",
        b"x",
        b"[]",
        b"\xff",
        b"{}",
        b'{"v":1}',
        b'{"v":1,"boot":"%s","n":9007199254740991,"users":[]}' % a.boot.encode(),
        b"[" * 10_000,
    ]
    for data in garbage:
        own_redis.command("PUBLISH", "chatd:presence", data)
        own_redis.command("PUBLISH", "chatd:p:{chatd}:alice", data)
        own_redis.command("PUBLISH", f"chatd:echo:{b.boot}", data)
    a.come("alice")
    await until(lambda: b.sees("alice") == "online", "b sees her, whatever was made up in a's name")
    assert a.lives
    assert b.lives


async def test_a_listing_that_a_failover_cuts_in_two_is_not_taken_for_whole(
    make_seat: MakeSeat, own_redis: OwnRedis
) -> None:
    """The replica has its beginning, and lacks what was listed after that."""
    a = await make_seat("a")
    boot, key = "f" * 16, "{chatd}:on:" + "f" * 16
    keys = presence_keys.PresenceKeys(a.redis_client, "chatd", boot, LEASE_MS)
    await keys.begin()
    before = own_redis.command("DUMP", key)
    await keys.write([(UserId("alice"), Remote(Status.ONLINE, 1, None, ()))], None)
    own_redis.command("RESTORE", key, 2 * LEASE_MS, before, "REPLACE")
    with pytest.raises(RedisUnavailable):
        await keys.write((), 1)
    assert (await keys.read(boot, [UserId("alice")])) is None


async def test_no_two_listings_have_the_same_number(
    make_seat: MakeSeat, own_redis: OwnRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer to the end of the first is lost: a failover from the second to the first would not
    show.
    """
    a = await make_seat("a")
    real = a.presence_sync._keys.write
    ends: list[int] = []

    async def answer_lost(entries: Any, n: int | None) -> None:
        await real(entries, n)
        if n is not None and not entries:
            ends.append(n)
            if len(ends) == 1:
                raise RedisUnavailable("on purpose")

    monkeypatch.setattr(a.presence_sync._keys, "write", answer_lost)
    own_redis.command("DEL", own_key(a))
    await until(lambda: len(ends) == 2, "it is listed twice")
    assert ends[0] < ends[1]
