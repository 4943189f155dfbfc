"""First messages to somebody: what waits while their conversation is made, its bounds, and a drain
meanwhile.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from chatd import errors
from chatd.chat import new_conversations
from chatd.ids import UserId
from tests.client import Peer
from tests.fix_server import MakeServer, Server
from tests.integration.logs import connect, conversation, one
from tests.until import until

FAST = {"rate_messages": 1_000, "new_conversations_per_hour": 1_000}


def replace(server: Server, resolve: Callable[..., Any]) -> None:
    server.node.store.resolve = resolve  # type: ignore[method-assign]


def held(server: Server) -> asyncio.Event:
    """No conversation is made until this is set."""
    resolve, go_on = server.node.store.resolve, asyncio.Event()

    async def later(*args: Any) -> Any:
        await go_on.wait()
        return await resolve(*args)

    replace(server, later)
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


async def test_changes_wait_behind_the_first_messages_that_they_change(server: Server) -> None:
    """By `refcid` they may be sent before the ok of the message is there."""
    alice = await server.connect("alice")
    go_on = held(server)
    cids = [str(uuid.uuid4()) for _ in range(4)]
    ids = [await alice.post("send", to="bob", cid=cid, body=cid) for cid in cids[:2]]
    ids.append(await alice.post("edit", to="bob", cid=cids[2], refcid=cids[0], body="changed"))
    ids.append(await alice.post("delete", to="bob", cid=cids[3], refcid=cids[1]))
    ids.append(await alice.post("edit", to="carol", cid=str(uuid.uuid4()), refcid=cids[0], body="to nobody"))
    await alice.request("ping")
    assert [reply["code"] for reply in await answers(alice, ids[4:])] == ["no_conversation"]
    go_on.set()
    assert [reply.get("seq") for reply in await answers(alice, ids[:4])] == [1, 2, 3, 4]
    page = await alice.request("history", to="bob")
    assert [entry.get("body") for entry in page["entries"] if entry["kind"] == "message"] == ["changed", None]


async def test_a_user_has_a_part_of_what_may_wait_and_others_have_theirs(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = 20
    monkeypatch.setattr(new_conversations, "WAITING_PER_USER_MAX", most)
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
    assert server.node.chat.new_conversations._waiting_of == {}


async def test_all_users_together_are_bounded(make_server: MakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(new_conversations, "WAITING_MAX", 3)
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
    drain = asyncio.create_task(server.node.drain())
    assert (await alice.recv())["t"] == "notice"
    assert (await alice.say("dave"))["code"] == "unavailable"
    go_on.set()
    assert [reply["code"] for reply in await answers(alice, ids)] == ["unavailable", "blocked"]
    await drain


async def test_what_gets_no_place_meanwhile_blocks_nothing_that_came_before_it(make_server: MakeServer) -> None:
    """One frame too many waits to be sent again; the first message, which waits for its
    conversation, does not wait for that one.
    """
    server = await make_server(**FAST, frames_burst=3, frames_per_s=1)
    alice = await server.connect("alice")  # one frame
    go_on = held(server)
    ids = await post(alice, "bob", 4)
    refused = await answers(alice, ids[2:])
    assert [reply.get("code") for reply in refused] == ["rate_limited", "blocked"]
    go_on.set()
    assert [reply.get("seq") for reply in await answers(alice, ids[:2])] == [1, 2]


async def test_many_conversations_are_made_by_few_queries(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By one each, a thousand users who begin at once waited for seconds, and the bound on what
    waits refused the rest.
    """
    monkeypatch.setattr(new_conversations, "MAKE_MAX", 20)
    server = await make_server(**FAST)
    alice = await server.connect("alice")
    go_on, asked = held(server), []
    resolve = server.node.store.resolve

    async def counted(pairs: Any, *args: Any) -> Any:
        asked.append(len(pairs))
        return await resolve(pairs, *args)

    replace(server, counted)
    ids = [id for n in range(50) for id in await post(alice, f"p{n}")]
    await alice.quiet()
    assert len(asked) <= new_conversations.MAKERS_MAX
    go_on.set()
    assert [reply.get("seq") for reply in await answers(alice, ids)] == [1] * 50
    assert sum(asked) == 50
    assert max(asked) == 20
    assert len(asked) <= new_conversations.MAKERS_MAX + 3
    assert (server.node.chat.new_conversations._makers, server.node.chat.new_conversations._to_make) == (0, {})


async def test_of_one_query_each_has_its_own_answer(make_server: MakeServer) -> None:
    server = await make_server(**FAST, unknown_recipients="refuse")
    alice, bob = await server.connect("alice"), await server.connect("bob")
    await bob.close()
    go_on = held(server)
    ids = [id for name in ("nobody", "bob", "noone", "alice") for id in await post(alice, name)]
    await alice.quiet()
    go_on.set()
    assert [(reply["t"], reply.get("code")) for reply in await answers(alice, ids)] == [
        ("err", "no_user"),
        ("ok", None),
    ] * 2
    assert taken(server, "alice") == 2, "what was not made counts for nothing"


async def test_while_the_database_is_away_nobody_waits_for_the_queries_of_others(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(new_conversations, "MAKE_MAX", 2)
    monkeypatch.setattr(new_conversations, "MAKERS_MAX", 1)
    server = await make_server(**FAST)
    alice = await server.connect("alice")
    resolve, go_on, asked = server.node.store.resolve, asyncio.Event(), []

    async def fails(pairs: Any, *_: Any) -> Any:
        asked.append(len(pairs))
        await go_on.wait()
        raise errors.Unavailable("the database is away", retry_ms=100)

    replace(server, fails)
    ids = await post(alice, "bob", 2) + [id for n in range(9) for id in await post(alice, f"p{n}")]
    await alice.quiet()
    go_on.set()
    replies = await answers(alice, ids)
    assert [reply["code"] for reply in replies] == ["unavailable", "blocked", *["unavailable"] * 9]
    assert len(asked) == 1
    assert taken(server, "alice") == 0
    replace(server, resolve)
    assert (await alice.say("carol"))["seq"] == 1


async def test_who_waits_for_another_transaction_keeps_no_other_back(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It makes the conversation of one pair, and does not end; the others of the query, and of the
    next one, are made.
    """
    monkeypatch.setattr(new_conversations, "LOCK_MS", 50)
    monkeypatch.setattr(new_conversations, "MAKERS_MAX", 1)
    server = await make_server(**FAST)
    alice = await server.connect("alice")
    with connect(server.node.store.opener._conninfo) as other:
        with other.transaction():
            conversation(other, "alice", "p1")
            ids = [id for n in range(20) for id in await post(alice, f"p{n}")]
            free = [id for n, id in enumerate(ids) if n != 1]
            assert [reply.get("seq") for reply in await answers(alice, free)] == [1] * 19
            assert (await alice.say("dave"))["seq"] == 1
            assert ids[1] not in [frame.get("id") for frame in alice.pushes]
        assert (await answers(alice, ids[1:2]))[0]["seq"] == 1


async def test_who_is_unknown_at_first_and_writes_meanwhile_is_not_told_that_the_other_is(
    make_server: MakeServer,
) -> None:
    server = await make_server(**FAST, unknown_recipients="refuse")
    alice = await server.connect("alice")
    resolve, go_on = server.node.store.resolve, asyncio.Event()

    async def late(*args: Any) -> Any:
        rows = await resolve(*args)
        await go_on.wait()
        return rows

    replace(server, late)
    first = await post(alice, "bob")
    await alice.quiet()
    bob = await server.connect("bob")
    second = await post(bob, "alice", 2)
    await bob.quiet()
    go_on.set()
    assert (await answers(alice, first))[0]["code"] == "no_user"
    assert [reply.get("seq") for reply in await answers(bob, second)] == [1, 2]
    assert (taken(server, "alice"), taken(server, "bob")) == (0, 1)


def taken(server: Server, user: str) -> int:
    """How many conversations count as opened by a user."""
    return len(server.node.registry.users[UserId(user)].new_convs._takes or ())


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
    await until(lambda: not server.node.chat.new_conversations._waiting)
    assert server.node.chat.new_conversations.waiting == 0
    assert (await (await server.connect("alice")).say("bob"))["seq"] == 1


@pytest.mark.parametrize("then", ["bob", "carol"])
async def test_a_conversation_that_may_have_been_made_counts_once_used(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    """The answer that it was made is lost.

    Its slot goes back: a retry, or another conversation, takes it, and never one more than the
    limit.
    """
    server = await make_server(new_conversations_per_hour=1)
    alice = await server.connect("alice")
    real = server.node.store.resolve

    async def lost(*args: Any) -> Any:
        await real(*args)
        raise errors.Unavailable("the answer was lost", retry_ms=1)

    monkeypatch.setattr(server.node.store, "resolve", lost)
    cid = str(uuid.uuid4())
    assert (await alice.say("bob", cid=cid))["code"] == "unavailable"
    monkeypatch.undo()
    if then == "bob":
        assert (await alice.say("bob", cid=cid, retry=True))["t"] == "ok"
    assert (await alice.say("carol"))["t"] == ("ok" if then == "carol" else "err")
    if then == "carol":
        assert (await alice.say("bob", cid=cid, retry=True))["code"] == "too_many_conversations"
    with connect(server.node.store.opener._conninfo) as db:
        assert one(db, "SELECT count(*) FROM conversations WHERE head > 0") == 1
