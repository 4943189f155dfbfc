"""Orders of events between this node and PostgreSQL that were wrong once, each driven as it was: by
a lock, or an answer held back.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import uuid
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest

from chatd.core.batch import Item
from chatd.postgres.connection import PgConnection
from chatd.postgres.lane import Lane
from chatd.postgres.write_behind import WriteBehind
from chatd.store import Store
from tests.client import Peer
from tests.fix_server import MakeServer, Server
from tests.integration.logs import connect, entries, one
from tests.maps import check_maps
from tests.until import until

WAIT_S = 20.0


async def befriended(server: Server, one_user: str = "alice", other: str = "bob") -> tuple[Peer, Peer, str]:
    a, b = await server.connect(one_user), await server.connect(other)
    first = await a.say(other, "1")
    await b.say(one_user, "2")
    assert (await a.push("entry"))["seq"] == 2
    assert (await b.push("entry"))["seq"] == 1
    return a, b, first["c"]


def conninfo(server: Server) -> str:
    return server.node.store.opener._conninfo


@contextlib.asynccontextmanager
async def held(server: Server, statement: str, *params: object) -> AsyncIterator[None]:
    """Another transaction holds rows meanwhile."""
    with connect(conninfo(server)) as other, other.transaction():
        other.execute(statement, params)
        yield


# ---- who is linked -------------------------------------------------------------------------------


async def test_whose_listing_is_older_than_the_first_entry_has_the_conversation(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alice's first send waits in its lane; Bob, who is not in memory, says hello: his listing has
    no such conversation. Then it is written.
    """
    server = await make_server()
    store = server.node.store
    alice = await server.connect("alice")
    queued: list[Item] = []
    submit = Lane.submit

    def wait(lane: Lane, item: Item) -> bool:
        queued.append(item)
        return True

    monkeypatch.setattr(Lane, "submit", wait)
    sent = await alice.post("send", to="bob", cid=str(uuid.uuid4()), body="hi")
    await until(lambda: queued)
    bob = await server.connect("bob")
    assert bob.welcome["conversations"] == []
    monkeypatch.setattr(Lane, "submit", submit)
    assert store.lanes.choose(queued[0]).submit(queued[0])
    assert (await alice.reply(sent))["seq"] == 1
    entry = await bob.push("entry")
    assert (await bob.request("read", to="alice", seq=entry["seq"]))["t"] == "ok"
    assert (await bob.say("alice"))["t"] == "ok"
    assert (await bob.request("watch", users=["alice"]))["presence"][0]["state"] == "online", "both have sent"
    await check_maps(server.node)


# ---- what another transaction holds --------------------------------------------------------------


async def test_a_locked_conversation_keeps_no_other_of_its_batch_back(make_server: MakeServer) -> None:
    """All others of the batch were `unavailable` for as long as the lock stood."""
    server = await make_server(lanes=1, rate_messages=1_000)
    alice, _, c = await befriended(server)
    carol, _, _ = await befriended(server, "carol", "dave")
    lane = server.node.store.lanes.all[0]
    async with held(server, "SELECT FROM conversations WHERE id = %s FOR UPDATE", int(c)):
        stuck = await alice.post("send", to="bob", cid=(cid := str(uuid.uuid4())), body="stuck")
        assert (await carol.say("dave", "beside it"))["t"] == "ok"
        answer = await alice.reply(stuck)
        assert (answer["code"], answer["retry_ms"]) == ("unavailable", 1_000)
        assert (await alice.request("send", to="bob", cid=cid, body="stuck", retry=True))["code"] == "unavailable"
        commits = lane._metrics.commit_s
        slow = sum(commits.counts[8:])
        for n in range(10):
            waits = await alice.post("send", to="bob", cid=cid, body="stuck", retry=True)
            assert (await carol.say("dave", str(n)))["t"] == "ok"
            assert (await alice.reply(waits))["code"] == "unavailable"
        assert sum(commits.counts[8:]) == slow, "what was held a moment ago is asked about without waiting"
    assert (await alice.request("send", to="bob", cid=cid, body="stuck", retry=True))["seq"] == 3
    await check_maps(server.node)


async def test_a_locked_message_keeps_no_other_of_its_batch_back(make_server: MakeServer) -> None:
    """Somebody holds the row of a message; an edit of it waits, and what is written beside it does
    not.
    """
    server = await make_server(lanes=1)
    alice, _, c = await befriended(server)
    carol, _, _ = await befriended(server, "carol", "dave")
    async with held(server, "SELECT FROM entries WHERE conv = %s AND seq = 1 FOR UPDATE", int(c)):
        edit = await alice.post("edit", to="bob", ref=1, cid=(cid := str(uuid.uuid4())), body="changed")
        beside = await carol.post("send", to="dave", cid=str(uuid.uuid4()), body="beside it")
        assert (await carol.reply(beside))["t"] == "ok"
        assert (await alice.reply(edit))["code"] == "unavailable"
        assert await server.node.readiness.problems() == {}, "one row is no outage"
    assert (await alice.request("edit", to="bob", ref=1, cid=cid, body="changed", retry=True))["t"] == "ok"
    await check_maps(server.node)


async def test_a_locked_row_of_cursors_keeps_nobody_back(make_server: MakeServer) -> None:
    """Every hello and listing of all users took 10 s, then failed."""
    server = await make_server()
    _alice, bob, c = await befriended(server)
    carol, dave, other = await befriended(server, "carol", "dave")
    assert (await bob.request("ack", c=c, seq=1))["t"] == "ok"
    await server.node.store.flush()
    async with held(server, "SELECT FROM cursors WHERE conv = %s FOR UPDATE", int(c)):
        assert (await bob.request("read", c=c, seq=2))["t"] == "ok"
        assert (await dave.request("read", c=other, seq=1))["t"] == "ok"
        assert (await carol.request("conversations"))["t"] == "ok"
        assert (await bob.request("conversations"))["t"] == "ok", "memory has what could not be written"
        await server.node.store.flush()
        with connect(conninfo(server)) as db:
            assert one(db, "SELECT b_read FROM cursors WHERE conv = %s", (int(other),)) == 1, "the others are written"
        assert len(server.node.store.state_flush.cursors) == 1, "the locked row is dirty still"
    await server.node.store.flush()
    with connect(conninfo(server)) as db:
        assert one(db, "SELECT b_read FROM cursors WHERE conv = %s", (int(c),)) == 2


async def test_a_commit_that_hangs_past_its_deadline_is_delivered_when_it_is_over(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It hung past both looks at its head, as at a standby that does not answer; the sender left.

    Nobody ever got the entry.
    """
    server = await make_server(lanes=1, lane_deadline_ms=1_000)
    alice, bob, c = await befriended(server)
    looks = 0
    decided = Store.heads_decided

    async def look(self: Store, convs: Any) -> Any:
        nonlocal looks
        rows = await decided(self, convs)
        looks += 1
        return rows

    monkeypatch.setattr(Store, "heads_decided", look)
    with connect(conninfo(server)) as writer:
        with writer.transaction():
            # The same as a batch whose commit waits: the row is locked, the entry is there, and
            # nobody sees either.
            writer.execute("SELECT FROM conversations WHERE id = %s FOR NO KEY UPDATE", (int(c),))
            writer.execute(
                "INSERT INTO entries (conv, seq, ts, cid, na, nb, side, kind, body)"
                " VALUES (%s, 3, clock_timestamp(), gen_random_uuid(), 2, 1, 0, 0, 'late')",
                (int(c),),
            )
            writer.execute("UPDATE conversations SET head = 3, na = 2 WHERE id = %s", (int(c),))
            await alice.close()
            server.node.delivery.gaps.outcomes.outcome_unknown({int(c)})  # type: ignore[arg-type]
            await until(lambda: looks >= 3)
            await bob.quiet()
        assert (await bob.push("entry"))["body"] == "late"
    await check_maps(server.node)


async def test_a_backend_that_wakes_up_long_after_its_deadline_is_waited_for(make_server: MakeServer) -> None:
    """It was stopped before it had read its batch, and looks at the head found nothing to wait for.

    What it wrote in the end nobody ever got.
    """
    server = await make_server(lanes=1, lane_deadline_ms=200)
    alice, bob, _ = await befriended(server)
    conn = server.node.store.lanes.all[0]._conn
    assert conn is not None
    assert conn.backend is not None
    os.kill(conn.backend.pid, signal.SIGSTOP)
    try:
        assert (await alice.say("bob", "late"))["code"] == "unavailable"
        gaps = server.node.delivery.gaps
        outcomes = gaps.outcomes
        await until(lambda: outcomes._outlasted and not (outcomes._unknown or outcomes._settling or gaps._looking))
        await alice.close()
        await bob.quiet()
    finally:
        os.kill(conn.backend.pid, signal.SIGCONT)
    assert (await bob.push("entry"))["body"] == "late"
    await check_maps(server.node)
    assert outcomes._outlasted == {}


async def test_who_waits_for_what_is_written_behind_waits_for_two_flushes_at_most() -> None:
    """Each of 40 waited for the flush of each before."""
    going: list[asyncio.Event] = []

    async def write(values: dict[str, int]) -> None:
        going.append(asyncio.Event())
        await going[-1].wait()

    behind: WriteBehind[str, int] = WriteBehind(write)
    behind.put("a", 0)
    waiting = [asyncio.create_task(behind.flush())]
    await asyncio.sleep(0)
    for n in range(40):
        behind.put("a", n)
        waiting.append(asyncio.create_task(behind.flush()))
        await asyncio.sleep(0)
    going[0].set()
    async with asyncio.timeout(WAIT_S):
        await until(lambda: len(going) >= 2)
        behind.put("a", 99)  # somebody goes on
        going[1].set()
        await asyncio.gather(*waiting)
    assert (len(going), len(behind)) == (2, 1)


# ---- what retention takes ------------------------------------------------------------------------


async def test_a_gap_of_which_retention_has_taken_all_leaves_the_numbers_right(make_server: MakeServer) -> None:
    """`na`, `nb` stayed as they were: unread and `open` were wrong from then on."""
    server = await make_server()
    alice, bob, c = await befriended(server)
    conv = server.node.registry.convs[int(c)]  # type: ignore[index]
    with connect(conninfo(server)) as db:
        db.execute("UPDATE conversations SET head = 9, na = 6, nb = 3, floor = 10 WHERE id = %s", (int(c),))
        db.execute("DELETE FROM entries WHERE conv = %s", (int(c),))
        await server.node.delivery.gaps.closed(conv)
        assert (conv.head, conv.na, conv.nb) == (9, 6, 3)
        assert (await alice.say("bob", "next"))["seq"] == 10
        assert entries(db, int(c)) == [(10, 0, "next")]
    assert (await bob.push("entry"))["seq"] == 10


# ---- the pool of reads ---------------------------------------------------------------------------


async def test_a_connection_that_cannot_be_set_does_not_stay_open(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of the pool's attempts left one more, until PostgreSQL had too many."""
    server = await make_server()

    async def fails(*_: object) -> None:
        raise psycopg.OperationalError("not now")

    monkeypatch.setattr(server.node.store.opener, "prepare", fails)
    conn = await PgConnection.connect(conninfo(server))
    with pytest.raises(psycopg.OperationalError):
        await server.node.store.read_pool._configure(conn)
    assert conn.closed
