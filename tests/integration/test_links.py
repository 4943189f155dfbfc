"""Every held conversation of a held user is linked to them, whichever of the two was there first.

A conversation without entries is in no listing: its row is made for a first send that was then
refused, or that is still in a lane.
"""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

from tests.client import Peer
from tests.fix_server import MakeServer, Server
from tests.maps import check_maps, wrong
from tests.until import until

ONE_AN_HOUR = {"rate_messages": 1, "rate_per_ms": 60_000, "new_conversations_per_hour": 1}
FEW = {"new_conversations_per_hour": 1}


def hold_lanes(server: Server) -> asyncio.Event:
    """No batch is written until this is set."""
    go_on = asyncio.Event()
    for lane in server.node.store.lanes.all:
        append = lane._append

        async def later(batch: Any, append: Any = append) -> Any:
            await go_on.wait()
            return await append(batch)

        lane._append = later  # type: ignore[method-assign]
    return go_on


async def until_queued(server: Server, n: int = 1) -> None:
    await until(lambda: sum(conv.pending for conv in server.node.registry.convs.values()) >= n)


async def spend_the_hour(peer: Peer) -> None:
    """The one conversation that they may open in an hour."""
    assert (await peer.say("zoe"))["t"] == "ok"


async def test_a_row_made_for_a_refused_send_is_linked_to_who_comes_later(make_server: MakeServer) -> None:
    server = await make_server(**{**ONE_AN_HOUR, "new_conversations_per_hour": 5})
    alice = await server.connect("alice")
    assert (await alice.say("alice"))["t"] == "ok"  # her rate is used up
    assert (await alice.say("bob"))["code"] == "rate_limited"  # the row is there, without an entry
    bob = await server.connect("bob", watch=["alice"])
    assert bob.welcome["conversations"] == []
    assert wrong(server.node) == []
    row = server.node.registry.users["bob"].peers["alice"]  # type: ignore[index]
    assert row is server.node.registry.users["alice"].peers["bob"]  # type: ignore[index]
    await check_maps(server.node)


async def test_an_entry_in_a_lane_while_its_reader_says_hello(make_server: MakeServer) -> None:
    server = await make_server(**FEW)
    alice = await server.connect("alice", watch=["bob"])
    go_on = hold_lanes(server)
    first = await alice.post("send", to="bob", cid=str(uuid.uuid4()), body="first")
    await until_queued(server)
    bob = await server.connect("bob", watch=["alice"])
    other = await bob.post("send", to="zoe", cid=str(uuid.uuid4()), body="the only one that bob may open")
    await until_queued(server, 2)
    go_on.set()
    assert (await alice.reply(first))["seq"] == 1
    assert (await bob.reply(other))["t"] == "ok"
    assert (await bob.push("entry"))["from"] == "alice"
    assert (await bob.request("read", to="alice", seq=1))["t"] == "ok"
    assert (await bob.say("alice"))["seq"] == 2
    assert (await bob.push("presence"))["state"] == "online"
    assert (await alice.push("presence"))["state"] == "online"
    await check_maps(server.node)


async def test_who_returns_while_their_own_first_entry_is_in_a_lane(make_server: MakeServer, monkeypatch: Any) -> None:
    """Their user object was let go and made again; the conversation stayed, as it was at work."""
    server = await make_server(**FEW)
    alice = await server.connect("alice")
    go_on = hold_lanes(server)
    await alice.post("send", to="bob", cid=str(uuid.uuid4()), body="first")
    await until_queued(server)
    await alice.close()
    registry = server.node.registry
    await until(lambda: not registry.sessions)
    registry.release(server.node.services.clock.now() + 3_600)
    assert not registry.users
    alice = await server.connect("alice")
    assert wrong(server.node) == []
    go_on.set()
    await check_maps(server.node)
    assert (await alice.request("edit", to="bob", cid=str(uuid.uuid4()), ref=1, body="second"))["seq"] == 2


async def test_a_conversation_without_entries_goes_with_the_last_who_asked(make_server: MakeServer) -> None:
    server = await make_server(**{**ONE_AN_HOUR, "new_conversations_per_hour": 5})
    alice = await server.connect("alice")
    await alice.say("alice")
    await alice.say("bob")
    bob = await server.connect("bob")
    registry = server.node.registry
    for peer in (bob, alice):
        await peer.close()
        await until(lambda: registry.sessions <= (peer is bob))
        registry.release(server.node.services.clock.now() + 3_600)
        assert wrong(server.node) == []
    assert (registry.convs, registry._empty, registry.users) == ({}, {}, {})
