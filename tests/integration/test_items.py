"""An item of `welcome` and `conversations` is true in itself, wherever its numbers come from:
memory, the log, another node's cursors.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from chatd.chat import listing
from chatd.postgres.partitions import Retention
from tests.integration.logs import Message, age, append, cid, connect, one, partitions

if TYPE_CHECKING:
    import psycopg

    from tests.client import Frame, Peer
    from tests.fix_server import MakeServer, Server


@pytest.fixture
def db_url(make_db: Callable[[], str]) -> str:
    return make_db()


def another_node(db: psycopg.Connection[Any], conv: int, reads_to: int) -> None:
    """What another node would write while its words about it are lost: an entry of alice, and that
    bob has read it there.
    """
    append(db, [Message(conv, "elsewhere", side=0)])
    assert one(db, "SELECT head FROM conversations WHERE id = %s", [conv]) == reads_to
    db.execute(
        "INSERT INTO cursors (conv, a_delivered, a_read, a_read_n, b_delivered, b_read, b_read_n, xid)"
        " VALUES (%s, 0, 0, 0, %s, %s, %s, pg_current_xact_id())"
        " ON CONFLICT (conv) DO UPDATE SET b_delivered = excluded.b_delivered, b_read = excluded.b_read, b_read_n ="
        " excluded.b_read_n",
        (conv, reads_to, reads_to, reads_to),
    )


async def items(server: Server, peer: Peer, **hello: Any) -> list[Frame]:
    """The one conversation of bob as a new session's welcome has it, and as `conversations` has it."""
    other = await server.connect("bob", "other", **hello)
    listed = (await peer.request("conversations"))["conversations"]
    return [*other.welcome["conversations"], *listed]


def is_true(item: Frame) -> bool:
    return bool(max(item["delivered"], item["read"], item["peer_delivered"], item["peer_read"]) <= item["head"])


async def test_where_a_cursor_has_passed_what_was_delivered_here_the_head_is_the_logs(
    make_server: MakeServer, db_url: str
) -> None:
    server = await make_server(database_url=db_url)
    alice, bob = await server.connect("alice"), await server.connect("bob")
    c = (await alice.say("bob"))["c"]
    with connect(db_url) as db:
        another_node(db, int(c), 2)
        for item in await items(server, bob):
            assert (item["head"], item["delivered"], item["read"], item["unread"]) == (2, 2, 2, 0)
        entry = [await bob.push("entry"), await bob.push("entry")][1]
        assert (entry["seq"], entry["body"]) == (2, "elsewhere")
        assert (
            one(db, "SELECT (extract(epoch FROM last_ts) * 1000)::bigint FROM conversations")
            == entry["ts"]
            == item["ts"]
        )


async def test_where_the_log_cannot_be_read_in_time_the_cursors_are_cut_to_the_head(
    make_server: MakeServer, db_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await make_server(database_url=db_url)
    alice, bob = await server.connect("alice"), await server.connect("bob")
    c = (await alice.say("bob"))["c"]
    store, gate = server.node.store, asyncio.Event()
    heads = store.heads

    async def held(*args: Any) -> Any:
        await gate.wait()
        return await heads(*args)

    monkeypatch.setattr(store, "heads", held)
    monkeypatch.setattr(listing, "OVERTAKEN_S_MAX", 0.05)
    with connect(db_url) as db:
        another_node(db, int(c), 2)
    first = await items(server, bob)
    assert [(item["head"], item["read"], item["unread"]) for item in first] == [(1, 1, 0)] * 2
    assert all(is_true(item) for item in first)
    gate.set()
    assert (await bob.push("entry"))["seq"] == 1
    assert (await bob.push("entry"))["seq"] == 2


async def test_unread_counts_what_can_be_read(
    make_server: MakeServer, db_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Retention, "run", lambda _self: asyncio.Event().wait())  # here it passes when it is told
    server = await make_server(database_url=db_url)
    alice = await server.connect("alice")
    for n in range(3):
        conv = int((await alice.say("bob", f"{n}"))["c"])

    async def unread(**hello: Any) -> list[tuple[int, int, int]]:
        """(unread, floor, head) for bob, who has read nothing yet unless told otherwise: as in
        welcome, and as in a list.
        """
        bob = await server.connect("bob", **hello)
        both = [*bob.welcome["conversations"], *(await bob.request("conversations"))["conversations"]]
        return [(item["unread"], item["floor"], item["head"]) for item in both]

    assert await unread() == [(3, 1, 3)] * 2
    with connect(db_url) as db:
        partitions(db, back=45)
        age(db, conv, 40)
        await alice.say("bob", "kept")
        edit = await alice.request("edit", to="bob", cid=cid(), ref=4, body="kept!")
        await server.node.retention.once()
        assert await unread() == [(1, 4, 5)] * 2
        assert one(db, "SELECT ARRAY[a_gone, b_gone, na, nb] FROM conversations") == [3, 0, 4, 0]
        bob = await server.connect("bob")
        await bob.request("read", to="alice", seq=2)  # below the floor: what is gone stays gone
        assert [item["unread"] for item in (await bob.request("conversations"))["conversations"]] == [1]
        partitions(db, back=45)
        age(db, conv, 40)
        await server.node.retention.once()
        assert await unread() == [(0, edit["seq"] + 1, edit["seq"])] * 2
        await bob.close()
        # As floors were raised before there was such a number
        db.execute("UPDATE conversations SET a_gone = 0, b_gone = 0")
        assert await unread() == [(0, edit["seq"] + 1, edit["seq"])] * 2
