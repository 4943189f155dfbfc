"""First messages to somebody: what waits while their conversation is made, its bounds, and a drain meanwhile."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from chatd import entering
from tests.fix_server import MakeServer, Peer, Server

FAST = {"rate_messages": 1_000, "new_conversations_per_hour": 1_000}


def held(server: Server) -> asyncio.Event:
    """No conversation is made until this is set."""
    resolve, go_on = server.node.store.resolve, asyncio.Event()

    async def later(*args: Any) -> Any:
        await go_on.wait()
        return await resolve(*args)

    server.node.store.resolve = later  # type: ignore[method-assign,assignment]
    return go_on


async def post(peer: Peer, to: str, n: int = 1) -> list[int]:
    """The ids of sends that have come in when this returns, and what was answered at once."""
    return [await peer.post("send", to=to, cid=str(uuid.uuid4()), body=str(k)) for k in range(n)]


async def answers(peer: Peer, ids: list[int]) -> list[dict[str, Any]]:
    got = {frame["id"]: frame for frame in peer.pushes if frame.get("id") in ids}
    while not got.keys() >= set(ids):
        frame = await peer.recv()
        if frame.get("id") in ids:
            got[frame["id"]] = frame
    return [got[id] for id in ids]


async def test_a_user_has_a_part_of_what_may_wait_and_others_have_theirs(make_server: MakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    most = 20
    monkeypatch.setattr(entering, "RESOLVING_PER_USER_MAX", most)
    server = await make_server(**FAST)
    alice, carol = await server.connect("alice"), await server.connect("carol")
    go_on = held(server)
    ids = await post(alice, "bob", most // 2) + await post(alice, "dave", most // 2)
    over = await post(alice, "erin", 2)
    await alice.request("ping")
    assert [reply.get("code") for reply in await answers(alice, over)] == ["overloaded", "blocked"]
    waiting = await post(carol, "bob")
    await carol.quiet()
    go_on.set()
    replies = await answers(alice, ids)
    assert [reply.get("seq") for reply in replies] == [*range(1, most // 2 + 1)] * 2
    assert (await carol.reply(waiting[0]))["t"] == "ok"
    assert (await alice.request("skip", to="erin", cid=(await answers(alice, over))[1]["cid"]))["t"] == "ok"
    assert (await alice.say("erin"))["t"] == "ok"
    assert server.node.chat.entrance._resolving_of == {}


async def test_all_users_together_are_bounded(make_server: MakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entering, "RESOLVING_MAX", 3)
    server = await make_server(**FAST)
    alice, carol = await server.connect("alice"), await server.connect("carol")
    go_on = held(server)
    ids = await post(alice, "bob", 3)
    await alice.quiet()
    assert (await carol.say("bob"))["code"] == "overloaded"
    go_on.set()
    assert [reply["t"] for reply in await answers(alice, ids)] == ["ok"] * 3


async def test_a_drain_takes_no_first_messages_and_refuses_those_that_wait(make_server: MakeServer) -> None:
    server = await make_server(**FAST)
    alice = await server.connect("alice")
    go_on = held(server)
    ids = await post(alice, "bob", 2)
    await alice.quiet()
    server.node.chat.drain()
    assert (await alice.say("dave"))["code"] == "unavailable"
    go_on.set()
    assert [reply["code"] for reply in await answers(alice, ids)] == ["unavailable", "blocked"]


async def test_what_gets_no_place_meanwhile_blocks_nothing_that_came_before_it(make_server: MakeServer) -> None:
    """One frame too many waits to be sent again; the first message, which waits for its conversation, does not wait for that one."""
    server = await make_server(**FAST, frames_burst=3, frames_per_s=1)
    alice = await server.connect("alice")  # one frame
    go_on = held(server)
    ids = await post(alice, "bob", 4)
    refused = await answers(alice, ids[2:])
    assert [reply.get("code") for reply in refused] == ["rate_limited", "blocked"]
    go_on.set()
    assert [reply.get("seq") for reply in await answers(alice, ids[:2])] == [1, 2]


@pytest.mark.parametrize("way", ["closes", "is lost"])
async def test_who_leaves_meanwhile_costs_nothing(make_server: MakeServer, way: str) -> None:
    server = await make_server(**FAST)
    alice = await server.connect("alice")
    go_on = held(server)
    await post(alice, "bob", 2)
    await alice.quiet()
    session = server.node.registry.users["alice"].sessions["d1"]  # type: ignore[index]
    if way == "closes":
        await alice.close()
    else:
        alice.ws.transport.abort()
    await until(lambda: session.gone)
    go_on.set()
    await until(lambda: not server.node.chat.entrance._resolving)
    assert server.node.chat.entrance._resolving_n == 0
    assert (await (await server.connect("alice")).say("bob"))["seq"] == 1


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not is_so():
            await asyncio.sleep(0)
