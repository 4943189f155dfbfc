"""Requests that wait for a conversation that is not in memory, and those behind them."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import pytest

from chatd import errors
from chatd.core.session import DEFERRED_MAX
from chatd.errors import CloseCode
from tests.fix_gate import Gate
from tests.fix_server import MakeServer, Server
from tests.integration.test_loading import friends, many, statements
from tests.maps import check_maps


async def away(*args: Any) -> Any:
    """In place of a read, while the database is away."""
    raise errors.Unavailable("away", retry_ms=10)


async def test_sends_keep_their_order_whatever_they_name_it_by(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """And requests that need nothing loaded do not overtake them, since one may be of the same log."""
    alice, bob, c = await friends(server)
    carol = await server.connect("carol")
    await alice.say("carol")  # in memory
    gate = Gate(monkeypatch, server.node.store, "load_conversations")
    names: list[dict[str, str]] = [{"c": c}, {"to": "bob"}, {"to": "carol"}, {"c": c}, {"to": "dave"}, {"to": "bob"}]
    ids = [await alice.post("send", cid=str(uuid.uuid4()), body=str(n), **name) for n, name in enumerate(names)]
    ping = await alice.post("ping")
    await gate.reached.wait()
    await carol.push("entry")
    await carol.quiet()
    gate.open()
    assert [(await alice.reply(id))["seq"] for id in ids] == [3, 4, 2, 5, 1, 6]
    assert (await alice.reply(ping))["t"] == "pong"
    assert [(await bob.push("entry"))["body"] for _ in range(4)] == ["0", "1", "3", "5"]
    await check_maps(server.node)


async def test_what_many_requests_name_is_loaded_at_once(
    make_server: MakeServer, make_db: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await make_server(database_url=many(make_db(), 30))
    alice = await server.connect("alice")
    asked = statements(server, monkeypatch)
    ids = [await alice.post("read", to=f"p{n:02}", seq=1) for n in range(30)]
    assert {(await alice.reply(id))["read"] for id in ids} == {1}
    assert len(asked) <= 3, asked  # the first; what came with it or meanwhile


async def test_the_database_is_away(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each that needs the conversation is refused, and an entry blocks what is behind it."""
    alice, bob, c = await friends(server)

    cids = [str(uuid.uuid4()) for _ in range(4)]
    with monkeypatch.context() as patch:
        patch.setattr(server.node.store, "load_conversations", away)
        first = [
            await alice.request("send", c=c, cid=cids[0], body="0"),
            await alice.request("send", to="bob", cid=cids[1], body="1"),
            await alice.request("read", c=c, seq=1),
            await alice.request("history", c=c),
        ]
    assert [reply["code"] for reply in first] == ["unavailable"] * 4
    await bob.say("alice", "in between")  # it is in memory
    later = await alice.request("send", c=c, cid=cids[2], body="2")
    assert (later["code"], later["cid"]) == ("blocked", cids[0])
    assert (await alice.request("send", to="bob", cid=cids[1], body="1"))["cid"] == cids[0]
    assert (await alice.request("send", to="bob", cid=cids[0], body="0"))["seq"] == 4
    assert (await alice.request("send", c=c, cid=cids[1], body="1"))["seq"] == 5
    assert [(await bob.push("entry"))["body"] for _ in range(2)] == ["0", "1"]


@pytest.mark.parametrize("by", ["c", "to"])
async def test_an_entry_that_could_not_be_loaded_is_given_up(
    server: Server, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    alice, bob, c = await friends(server)
    cid = str(uuid.uuid4())

    with monkeypatch.context() as patch:
        patch.setattr(server.node.store, "load_conversations", away)
        assert (await alice.request("send", c=c, cid=cid, body="0"))["code"] == "unavailable"
    skip = await alice.request("skip", cid=cid, **({"c": c} if by == "c" else {"to": "bob"}))
    assert skip["t"] == "ok", skip
    assert (await alice.request("send", c=c, cid=str(uuid.uuid4()), body="1"))["seq"] == 3
    assert (await bob.push("entry"))["body"] == "1"


async def test_who_sends_too_much_while_one_waits_is_closed(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await make_server(frames_per_s=1_000_000, frames_burst=1_000_000)
    alice, bob, c = await friends(server)
    gate = Gate(monkeypatch, server.node.store, "load_conversations")
    for _ in range(DEFERRED_MAX):
        await alice.post("read", c=c, seq=1)
    await gate.reached.wait()
    await bob.quiet()
    await alice.post("read", c=c, seq=1)
    assert await alice.closed() == CloseCode.OVERLOADED
    gate.open()
    await check_maps(server.node)
