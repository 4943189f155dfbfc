"""Two people on two nodes notice nothing of it: entries, receipts, typing, presence, devices,
retries; also when Redis loses every message.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
import redis as redis_py

from chatd.wire.node_messages import Codec
from tests.client import Peer, peer_at
from tests.cluster.traffic import nodes_of
from tests.fix_cluster import LOSSY, Nodes
from tests.fix_process import MakeProcess
from tests.fix_redis import OwnRedis

pytestmark = pytest.mark.cluster

REPLACED, TOO_MANY = 4004, 4005


@pytest_asyncio.fixture
async def nodes(fresh_db: str, own_redis: OwnRedis, make_process: MakeProcess) -> AsyncIterator[Nodes]:
    yield await nodes_of(2, make_process, fresh_db, own_redis.url, rate_messages=1000)


async def befriend(one: Peer, a: str, other: Peer, b: str) -> str:
    """Both send, so that the conversation is open; gives its id."""
    c: str = (await one.say(b, "hello"))["c"]
    await other.push("entry")
    await other.say(a, "hello yourself")
    await one.push("entry")
    return c


async def watch_online(watcher: Peer, user: str) -> None:
    """Watch a user who is online, and wait until that is seen: it may be still on its way from
    their node, and then it is pushed.
    """
    (states,) = (await watcher.request("watch", users=[user]))["presence"]
    while states["state"] != "online":
        states = await watcher.push("presence")
    watcher.pushes.clear()  # it may have been pushed, too, with the same version


async def test_the_first_message_and_all_others_reach_the_other_node(nodes: Nodes) -> None:
    async with (
        peer_at(nodes[0], "alice") as alice,
        peer_at(nodes[1], "bob") as bob,
        peer_at(nodes[1], "alice", "d2") as tablet,
    ):
        cid = str(uuid.uuid4())
        ok = await alice.say("bob", "first", cid=cid)
        got, own = await bob.push("entry"), await tablet.push("entry")
        assert (got["c"], got["seq"], got["body"], got["from"], got["to"]) == (ok["c"], 1, "first", "alice", "bob")
        assert "cid" not in got
        assert own["cid"] == cid
        assert {k: v for k, v in own.items() if k != "cid"} == got
        for n in range(2, 30):
            sender, reader = (bob, alice) if n % 3 == 0 else (alice, bob)
            ok = await sender.say("alice" if sender is bob else "bob", str(n))
            assert ok["seq"] == n
            assert ((await reader.push("entry"))["seq"], (await tablet.push("entry"))["seq"]) == (n, n)
        await bob.quiet()


async def test_edits_and_deletes_too(nodes: Nodes) -> None:
    async with peer_at(nodes[0], "alice") as alice, peer_at(nodes[1], "bob") as bob:
        ok = await alice.say("bob", "frist")
        await bob.push("entry")
        await alice.request("edit", c=ok["c"], ref=1, cid=str(uuid.uuid4()), body="first")
        assert ((edit := await bob.push("entry"))["kind"], edit["ref"], edit["body"]) == ("edit", 1, "first")
        await alice.request("delete", c=ok["c"], ref=1, cid=str(uuid.uuid4()))
        assert ((gone := await bob.push("entry"))["kind"], gone["ref"]) == ("delete", 1)


async def test_receipts_read_marks_and_typing(nodes: Nodes) -> None:
    async with (
        peer_at(nodes[0], "alice") as alice,
        peer_at(nodes[1], "bob") as bob,
        peer_at(nodes[0], "bob", "d2") as tablet,
    ):
        c = await befriend(alice, "alice", bob, "bob")
        await bob.request("read", c=c, seq=1)
        seen, own = await alice.push("receipt"), await tablet.push("receipt")
        assert (seen["from"], seen["read"]) == ("bob", 1)
        assert (own["from"], own["read"]) == ("bob", 1)
        await bob.request("typing", c=c)
        assert (await alice.push("typing"))["from"] == "bob"


async def test_presence_is_seen_from_the_other_node(nodes: Nodes) -> None:
    async with peer_at(nodes[0], "alice") as alice:
        async with peer_at(nodes[1], "bob") as bob:
            await befriend(alice, "alice", bob, "bob")
            await watch_online(alice, "bob")
            await bob.request("presence", state="away")
            assert (away := await alice.push("presence"))["state"] == "away"
        off = await alice.push("presence")
        assert (off["state"], off["v"] > away["v"]) == ("offline", True)
        async with peer_at(nodes[1], "bob"):
            on = await alice.push("presence")
            assert (on["state"], on["v"] > off["v"]) == ("online", True)
            assert [s["state"] for s in (await alice.request("watch", users=["bob"]))["presence"]] == ["online"]


async def test_a_retry_on_the_other_node_is_a_duplicate(nodes: Nodes) -> None:
    cid = str(uuid.uuid4())
    async with (
        peer_at(nodes[0], "alice") as alice,
        peer_at(nodes[1], "alice", "d2") as tablet,
        peer_at(nodes[1], "bob") as bob,
    ):
        first = await alice.say("bob", "once", cid=cid)
        again = await tablet.say("bob", "another body", cid=cid, retry=True)
        assert (again["dup"], again["seq"], again["ts"]) == (True, first["seq"], first["ts"])
        assert (await bob.push("entry"))["body"] == "once"
        await bob.quiet()


async def test_two_nodes_write_one_conversation_at_once(nodes: Nodes) -> None:
    async with (
        peer_at(nodes[0], "alice") as alice,
        peer_at(nodes[1], "bob") as bob,
        peer_at(nodes[0], "bob", "d2") as tablet,
    ):
        await befriend(alice, "alice", bob, "bob")
        await tablet.push("entry")
        await tablet.push("entry")

        async def burst(peer: Peer, to: str, n: int) -> dict[int, str]:
            ids = [await peer.post("send", to=to, cid=str(uuid.uuid4()), body=f"to {to} {k}") for k in range(n)]
            return {(await peer.reply(id))["seq"]: f"to {to} {k}" for k, id in enumerate(ids)}

        one, other = await asyncio.gather(burst(alice, "bob", 100), burst(bob, "alice", 100))
        truth = one | other
        assert sorted(truth) == list(range(3, 203)), "no hole, none twice"
        assert [(e := await tablet.push("entry"))["seq"] for _ in range(200)] == list(range(3, 203))
        for peer, mine in ((alice, one), (bob, other)):
            got = {(e := await peer.push("entry"))["seq"]: e["body"] for _ in range(100)}
            assert got == {seq: body for seq, body in truth.items() if seq not in mine}


async def test_the_same_device_elsewhere_replaces_this_one(nodes: Nodes) -> None:
    async with peer_at(nodes[0], "alice", "phone") as old, peer_at(nodes[1], "alice", "phone") as new:
        assert await old.closed() == REPLACED
        assert (await new.request("ping"))["t"] == "pong"
        await new.quiet()


async def test_the_eleventh_device_closes_the_longest_idle_on_whichever_node(
    fresh_db: str, own_redis: OwnRedis, make_process: MakeProcess
) -> None:
    nodes = await nodes_of(2, make_process, fresh_db, own_redis.url, devices_max=3)
    async with contextlib.AsyncExitStack() as stack:
        d1, d2, d3, d4 = [await stack.enter_async_context(peer_at(nodes[n % 2], "alice", f"d{n}")) for n in range(1, 5)]
        assert await d1.closed() == TOO_MANY
        for peer in (d2, d3, d4):
            assert (await peer.request("ping"))["t"] == "pong"


async def test_what_redis_loses_is_found(fresh_db: str, own_redis: OwnRedis, make_process: MakeProcess) -> None:
    """Every publish is dropped: an entry with nothing behind it, the first one of a conversation, a
    receipt, an own read mark.
    """
    nodes = await nodes_of(2, make_process, fresh_db, own_redis.url, before=[LOSSY.format(share=1.0)] * 2)
    async with (
        peer_at(nodes[0], "alice") as alice,
        peer_at(nodes[1], "bob") as bob,
        peer_at(nodes[0], "bob", "d2") as tablet,
    ):
        slowest = 0.0
        for n in (1, 2, 3):
            ok = await alice.say("bob", str(n))
            began = time.monotonic()
            assert (await bob.push("entry"))["seq"] == n
            slowest = max(slowest, time.monotonic() - began)
            await tablet.push("entry")
        await bob.request("read", c=ok["c"], seq=3)
        assert (await tablet.push("receipt"))["read"] == 3
        await bob.say("alice", "4")  # until he has sent, Alice gets no receipt of his
        assert (await alice.push("receipt"))["read"] == 3
        await bob.request("read", c=ok["c"], seq=4)
        began = time.monotonic()
        assert (await alice.push("receipt"))["read"] == 4
        assert (await tablet.push("receipt"))["read"] == 4
        slowest = max(slowest, time.monotonic() - began)
        print(f"found within {slowest:.2f} s")


async def test_garbage_and_newer_versions_on_the_bus(nodes: Nodes, own_redis: OwnRedis) -> None:
    async with peer_at(nodes[0], "alice") as alice, peer_at(nodes[1], "bob") as bob:
        c = await befriend(alice, "alice", bob, "bob")
        redis = redis_py.Redis.from_url(own_redis.url)
        codec = Codec("00" * 8, alice.welcome["epoch"])
        frame = b'{"t":"entry","c":"%d","seq":%d,"ts":5,"from":"alice","to":"bob","kind":"message","body":"x"}'
        good = codec.entry(int(c), 3, 5, 2, 1, 0, 0, str(uuid.uuid4()), frame % (int(c), 3))
        far = codec.entry(int(c), 1 << 62, 5, 2, 1, 0, 0, str(uuid.uuid4()), frame % (int(c), 1 << 62))
        for data in (
            b"",
            b"\0",
            b"{}",
            b"\xff" * 300,
            bytes([9]) + good[1:],
            good[:40],
            good[:-1],
            good[:70] + b"garbage",
            far,
            b'{"v":2}',
            b"x" * (2 << 20),
        ):
            redis.publish("chatd:u:bob", data)
            redis.publish("chatd:presence", data)
        redis.publish(
            "chatd:presence",
            b'{"v":1,"boot":"' + b"00" * 8 + b'","n":1,"users":[["bob","sleeping",1,null,[]],["",1,2,3,4]]}',
        )
        redis.publish("chatd:u:carol", good)
        assert (await alice.say("bob", "still here"))["seq"] == 3
        assert (await bob.push("entry"))["body"] == "still here"
        await bob.quiet()


async def presence_of(peer: Peer, user: str) -> dict[str, Any]:
    while (facts := await peer.push("presence"))["user"] != user:
        pass
    return facts


async def test_a_killed_node_leaves_no_ghost_beyond_its_lease(nodes: Nodes) -> None:
    async with peer_at(nodes[0], "alice") as alice, peer_at(nodes[1], "bob") as bob:
        await befriend(alice, "alice", bob, "bob")
        await watch_online(alice, "bob")
        nodes[1].kill()
        began = time.monotonic()
        assert (await presence_of(alice, "bob"))["state"] == "offline"
        print(f"offline {time.monotonic() - began:.2f} s after the kill")


async def test_a_paused_node_that_comes_back_is_right_again_both_ways(nodes: Nodes) -> None:
    async with peer_at(nodes[0], "alice") as alice, peer_at(nodes[1], "bob") as bob:
        c = await befriend(alice, "alice", bob, "bob")
        await watch_online(alice, "bob")
        await watch_online(bob, "alice")
        nodes[1].freeze()
        gone = await presence_of(alice, "bob")
        assert gone["state"] == "offline"
        await alice.request("presence", state="away")
        ok = await alice.say("bob", "while you were away")
        nodes[1].thaw()
        back = await alice.push("presence")
        assert (back["user"], back["state"], back["v"] > gone["v"]) == ("bob", "online", True)
        pushed = [await bob.push(), await bob.push()]
        assert {(p["t"], p.get("state"), p.get("seq")) for p in pushed} == {
            ("presence", "away", None),
            ("entry", None, ok["seq"]),
        }
        assert (await bob.say("alice", "thanks"))["c"] == c
        assert (await alice.push("entry"))["body"] == "thanks"


async def test_a_user_that_moves_between_nodes_does_not_flap(nodes: Nodes) -> None:
    async with peer_at(nodes[0], "alice") as alice:
        async with peer_at(nodes[0], "bob") as bob:
            await befriend(alice, "alice", bob, "bob")
            await alice.request("watch", users=["bob"])
        for n in range(6):
            async with peer_at(nodes[(n + 1) % 2], "bob") as bob:
                assert (await bob.request("ping"))["t"] == "pong"
        async with peer_at(nodes[1], "bob") as bob:
            await bob.say("alice", "arrived")
            pushed = [p async for p in _until_entry(alice)]
        assert [p for p in pushed if p["t"] == "presence"] == []


async def _until_entry(peer: Peer) -> AsyncIterator[dict[str, Any]]:
    while (frame := await peer.push())["t"] != "entry":
        yield frame


async def test_presence_is_seen_across_nodes_always(nodes: Nodes) -> None:
    """Also where it changes again at once: of that one push in 0.9 s at most, and the last state."""
    names = [f"bob{n}" for n in range(4)]
    async with peer_at(nodes[0], "alice") as alice, contextlib.AsyncExitStack() as stack:
        bobs = [await stack.enter_async_context(peer_at(nodes[1], name)) for name in names]
        for name, bob in zip(names, bobs, strict=True):
            await befriend(alice, "alice", bob, name)
            await watch_online(alice, name)
        await alice.request("watch", users=names)
        took = []
        for state in ("away", "online", "away"):
            began = time.monotonic()
            await asyncio.gather(*(bob.request("presence", state=state) for bob in bobs))
            waited_for = set(names)
            while waited_for:
                push = await alice.push("presence")
                if push["state"] == state and push["user"] in waited_for:
                    waited_for.discard(push["user"])
                    took.append(time.monotonic() - began)
        took.sort()
        print(f"median {took[len(took) // 2] * 1000:.1f} ms, slowest {took[-1] * 1000:.1f} ms")
