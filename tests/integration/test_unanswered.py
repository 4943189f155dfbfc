"""Who wrote and was not answered learns nothing of when the other one is there and reads; who was
answered learns it at once, and for good.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.client import Frame, Peer
from tests.fix_server import MakeServer, Server
from tests.integration.logs import Message, append, connect
from tests.integration.test_interleavings_session import Gate
from tests.integration.test_interleavings_store import befriended, conninfo


async def read_unanswered(server: Server) -> tuple[Peer, Peer, str]:
    """Bob has written to alice, who has read it and said nothing."""
    bob, alice = await server.connect("bob"), await server.connect("alice")
    c: str = (await bob.say("alice", "1"))["c"]
    await alice.push("entry")
    assert (await alice.request("read", c=c, seq=1))["read"] == 1
    return bob, alice, c


def cursors(item: Frame) -> tuple[int, int, bool]:
    return item["peer_delivered"], item["peer_read"], item["open"]


async def listed(peer: Peer) -> tuple[int, int, bool]:
    (item,) = (await peer.request("conversations"))["conversations"]
    return cursors(item)


async def test_an_answer_brings_what_was_read_by_then_to_all_devices(server: Server) -> None:
    bob, alice, c = await read_unanswered(server)
    tablet = await server.connect("bob", "tablet")
    assert [cursors(item) for item in tablet.welcome["conversations"]] == [(0, 0, False)]
    await bob.quiet()
    await alice.say("bob", "2")
    for device in (bob, tablet):
        assert (await device.push())["seq"] == 2
        assert await device.push() == {"t": "receipt", "c": c, "from": "alice", "to": "bob", "delivered": 1, "read": 1}
        assert await listed(device) == (1, 1, True)
        await device.quiet()
    await alice.quiet()  # bob's have never moved


async def test_an_answer_that_is_taken_back_has_been_given(server: Server) -> None:
    """Right: what counts is that she sent, as with presence."""
    bob, alice, c = await read_unanswered(server)
    answer = await alice.say("bob", "2")
    await alice.request("delete", c=c, ref=answer["seq"], cid="00000000-0000-4000-8000-000000000001")
    again = await server.connect("bob", "tablet")
    assert [cursors(item) for item in again.welcome["conversations"]] == [(1, 1, True)]
    await alice.request("read", c=c, seq=3)
    assert [(await bob.push("receipt"))["read"] for _ in range(2)] == [1, 3]


async def test_notes_to_oneself_have_nobody_to_hide_from(server: Server) -> None:
    alice, phone = await server.connect("alice"), await server.connect("alice", "phone")
    c = (await alice.say("alice"))["c"]
    await phone.push("entry")
    await phone.request("read", c=c, seq=1)
    assert (await alice.push("receipt"))["read"] == 1
    assert await listed(alice) == (1, 1, True)


@pytest.mark.parametrize(
    "place", ["snapshot", "seen_since"], ids=["before the welcome is made", "between the welcome and going live"]
)
async def test_an_answer_beside_a_hello_brings_the_receipt(
    server: Server, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Right: the welcome and what follows it tell the cursors of now, whichever of them the answer
    comes before.
    """
    _, alice, c = await read_unanswered(server)
    gate = Gate(monkeypatch, server.node.services.presence_push, place)
    tablet = await server.open()
    hello = await tablet.post("hello", v=1, token=server.token("bob"), device="tablet")
    await gate.until_reached()
    await alice.say("bob", "2")
    gate.go.set()
    (item,) = (await tablet.reply(hello))["conversations"]
    assert cursors(item) == ((1, 1, True) if place == "snapshot" else (0, 0, False))
    assert await tablet.push("receipt") == {
        "t": "receipt",
        "c": c,
        "from": "alice",
        "to": "bob",
        "delivered": 1,
        "read": 1,
    }


async def test_reading_beside_a_hello_of_who_was_not_answered_is_not_told(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    bob, alice = await server.connect("bob"), await server.connect("alice")
    c = (await bob.say("alice", "1"))["c"]
    gate = Gate(monkeypatch, server.node.services.presence_push, "seen_since")
    tablet, phone = await server.open(), await server.open()
    hellos = [
        await peer.post("hello", v=1, token=server.token(user), device="d2")
        for peer, user in ((tablet, "bob"), (phone, "alice"))
    ]
    await gate.until_reached()
    await alice.request("read", c=c, seq=1)
    gate.go.set()
    await tablet.reply(hellos[0])
    await phone.reply(hellos[1])
    await tablet.quiet()
    assert (await phone.push("receipt"))["read"] == 1, "her own devices are told"


async def test_an_answer_that_this_node_finds_in_the_log_brings_the_receipt(server: Server) -> None:
    bob, _, c = await read_unanswered(server)
    with connect(conninfo(server)) as db:
        append(db, [Message(int(c), side=0)])
    conv = server.node.registry.convs[int(c)]  # type: ignore[index]
    server.node.delivery.gaps.look_up((conv.id,))
    assert (await bob.push())["seq"] == 2
    assert ((receipt := await bob.push())["t"], receipt["read"]) == ("receipt", 1)


async def test_an_answer_that_retention_took_before_this_node_found_it_brings_the_receipt(server: Server) -> None:
    """Right: by the numbers of messages, which outlive the entries; presence follows too."""
    bob, _, c = await read_unanswered(server)
    assert [one["state"] for one in (await bob.request("watch", users=["alice"]))["presence"]] == ["hidden"]
    conv = server.node.registry.convs[int(c)]  # type: ignore[index]
    with connect(conninfo(server)) as db:
        append(db, [Message(int(c), side=0)])
        db.execute("UPDATE conversations SET floor = 3 WHERE id = %s", (int(c),))
        db.execute("DELETE FROM entries WHERE conv = %s", (int(c),))
        await server.node.delivery.gaps.closed(conv)
    assert (await bob.push("receipt"))["read"] == 1
    assert (await bob.push("presence"))["state"] == "online"


async def test_what_both_have_sent_once_stays_told_when_retention_has_taken_it(
    make_server: MakeServer, fresh_db: str
) -> None:
    """Right: also for a node that has never seen the entries."""
    server = await make_server(database_url=fresh_db)
    alice, bob, c = await befriended(server)
    await alice.request("read", c=c, seq=2)
    await server.node.drain()
    await server.node.stop()
    with connect(fresh_db) as db:
        db.execute("UPDATE conversations SET floor = head + 1, a_gone = na, b_gone = nb")
        db.execute("DELETE FROM entries")
    again = await make_server(database_url=fresh_db)
    alice, bob = await again.connect("alice"), await again.connect("bob", watch=["alice"])
    assert [cursors(item) for item in bob.welcome["conversations"]] == [(2, 2, True)]
    assert [one["state"] for one in bob.welcome["presence"]] == ["online"]
    assert (await bob.say("alice", "3"))["seq"] == 3
    await alice.request("read", c=c, seq=3)
    assert (await bob.push("receipt"))["read"] == 3


async def test_an_answer_that_a_failover_lost_has_not_been_given(make_server: MakeServer) -> None:
    """Right: the new log is the truth; what it lacks is sent again by its author's client, and
    opens it again.
    """
    server = await make_server()
    bob, alice, c = await read_unanswered(server)
    await alice.say("bob", "2")
    with connect(conninfo(server)) as db:
        with db.transaction():
            db.execute("DELETE FROM entries WHERE seq = 2")
            db.execute("UPDATE conversations SET head = 1, na = 0")
            db.execute("UPDATE cursors SET a_delivered = 1, a_read = 1")
            db.execute("UPDATE meta SET epoch = 'renewed'")
        assert (await bob.closed(), await alice.closed()) == (1012, 1012)
        bob, alice = await server.connect("bob"), await server.connect("alice")
        assert [cursors(item) for item in bob.welcome["conversations"]] == [(0, 0, False)]
        await alice.request("read", c=c, seq=1)
        await bob.quiet()
        await alice.say("bob", "2")
        assert (await bob.push("receipt"))["read"] == 1


async def test_a_mark_does_not_tell_that_somebody_read(server: Server) -> None:
    """Right: a listing since a mark says nothing of what the other one did; her own devices learn
    it.
    """
    bob, alice, c = await read_unanswered(server)
    marks = [(await server.connect(user, "d2")).welcome for user in ("bob", "alice")]
    await bob.request("edit", c=c, ref=1, body="1!", cid="00000000-0000-4000-8000-000000000002")
    marks = [(await server.connect(user, "d2")).welcome for user in ("bob", "alice")]
    await alice.request("read", c=c, seq=2)
    since = [{"epoch": one["epoch"], "since": one["since"]} for one in marks]
    again = [await server.connect(user, "d3", **keys) for user, keys in zip(("bob", "alice"), since, strict=True)]
    assert [[item["c"] for item in one.welcome["conversations"]] for one in again] == [[], [c]]


async def test_a_receipt_that_was_kept_back_for_its_entry_comes_after_it(server: Server) -> None:
    """Cursors of another node that are ahead of what was delivered here: kept until the entry is
    there, which is the answer.
    """
    bob, _, c = await read_unanswered(server)
    conv = server.node.registry.convs[int(c)]  # type: ignore[index]
    with connect(conninfo(server)) as db:
        append(db, [Message(int(c), side=0)])
    server.node.delivery.receipts.moved(conv, 0, 2, 2)
    frames: list[Any] = []
    while not frames or frames[-1].get("read") != 2:
        frames.append(await bob.push())
    assert [frame["t"] for frame in frames[:1]] == ["entry"]
    assert [frame["read"] for frame in frames[1:]] == [1, 2], "they only rise"
