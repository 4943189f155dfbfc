"""The log under a node is not the one that it knows: no `ok` for what is not stored, nothing in a
foreign log, and all begin again by a new epoch.

Here the log is changed by SQL under one node; a real failover is in tests/faults/test_failover.py.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from chatd.core.batch import Batch
from chatd.core.conversation import pair_check
from chatd.ids import UserId
from chatd.ops.doctor import examine
from chatd.postgres import watch
from chatd.postgres.connection import Opener
from chatd.postgres.log_state import LogState, LogVerdict, Sight, successor
from chatd.postgres.old_primaries import is_older
from tests.client import Frame, Peer
from tests.fix_server import MakeServer, Server, until_ready
from tests.integration.logs import connect, entries, one
from tests.integration.test_cli import FUTURE, of_another_cluster
from tests.until import until

RESTART = 1012


def conninfo(server: Server) -> str:
    return server.node.store.opener._conninfo


async def befriended(server: Server) -> tuple[Peer, Peer, str]:
    """Two who have written to each other; and the conversation."""
    alice, bob = await server.connect("alice"), await server.connect("bob")
    first = await alice.say("bob", "1")
    await bob.say("alice", "2")
    return alice, bob, first["c"]


async def sent(peer: Peer, to: str, body: str) -> Frame:
    return await peer.say(to, body)


async def again(server: Server, peer: Peer, user: str) -> Peer:
    """The session ends by 1012; the next one of the user, with what the client would say of the log
    before.
    """
    assert await peer.closed() == RESTART
    return await server.connect(user, epoch=peer.welcome["epoch"], since=peer.welcome["since"], cursors={})


async def test_conversations_deleted_under_a_node_get_no_ok(make_server: MakeServer) -> None:
    """Each send was answered `ok` with seq 0 and stored nowhere."""
    server = await make_server()
    alice, bob, c = await befriended(server)
    with connect(conninfo(server)) as db:
        db.execute("DELETE FROM entries")
        db.execute("DELETE FROM conversations")
        answer = await sent(alice, "bob", "3")
        assert (answer["t"], answer.get("code")) == ("err", "unavailable")
        alice, bob = await again(server, alice, "alice"), await again(server, bob, "bob")
        assert alice.welcome["conversations"] == []
        answer = await sent(alice, "bob", "4")
        assert (answer["t"], answer["seq"]) == ("ok", 1)
        assert (await bob.push("entry"))["body"] == "4"
        assert entries(db, int(answer["c"])) == [(1, 0, "4")]
        assert answer["c"] != c


async def test_an_id_that_was_given_to_others_gets_nothing_of_theirs(make_server: MakeServer) -> None:
    """A message of Alice to Bob stood in the log of Dave and Erin."""
    server = await make_server()
    alice, _, c = await befriended(server)
    with connect(conninfo(server)) as db:
        db.execute("UPDATE conversations SET a = 'dave', b = 'erin' WHERE id = %s", (int(c),))
        assert (await sent(alice, "bob", "secret"))["code"] == "unavailable"
        assert "secret" not in [body for _, _, body in entries(db, int(c))]
        alice = await again(server, alice, "alice")
        answer = await sent(alice, "bob", "secret")
        assert answer["t"] == "ok"
        assert answer["c"] != c


async def test_others_of_the_batch_are_written(make_server: MakeServer) -> None:
    server = await make_server(lanes=1, rate_messages=1_000)
    alice, _, c = await befriended(server)
    assert (await sent(alice, "carol", "1"))["t"] == "ok"
    with connect(conninfo(server)) as db:
        server.node.store.log.suspect = lambda **_: None  # type: ignore[method-assign]  # the log is not looked at: only the batch is
        db.execute("UPDATE conversations SET a = 'dave', b = 'erin' WHERE id = %s", (int(c),))
        ids = [await alice.post("send", to=to, cid=str(uuid.uuid4()), body="x") for to in ("bob", "carol", "carol")]
        answers = [await alice.reply(id) for id in ids]
        assert [answer.get("code", answer["t"]) for answer in answers] == ["unavailable", "ok", "ok"]


async def test_a_renewed_epoch_is_seen_by_an_idle_node_within_a_second(make_server: MakeServer) -> None:
    server = await make_server()
    alice, bob, c = await befriended(server)
    with connect(conninfo(server)) as db:
        began = time.monotonic()
        db.execute("UPDATE meta SET epoch = 'renewed'")
        assert await bob.closed() == RESTART
        print(f"seen within {time.monotonic() - began:.2f} s")
    alice = await again(server, alice, "alice")
    assert alice.welcome["epoch"] == "renewed"
    assert [item["c"] for item in alice.welcome["conversations"]] == [c], "all are listed: the mark is of another epoch"
    assert (await sent(alice, "bob", "3"))["seq"] == 3


async def test_a_batch_made_for_the_epoch_before_is_refused(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the watch has looked: the fence alone."""
    server = await make_server()
    alice, _, c = await befriended(server)
    held = asyncio.Event()

    async def wait(*_: object) -> None:
        await held.wait()

    monkeypatch.setattr(server.node.store.watch, "_look", wait)
    with connect(conninfo(server)) as db:
        db.execute("UPDATE meta SET epoch = 'renewed'")
        answer = await sent(alice, "bob", "3")
        assert (answer["code"], answer["retry_ms"]) == ("unavailable", 1000)
        assert len(entries(db, int(c))) == 2
    monkeypatch.undo()
    held.set()
    assert await alice.closed() == RESTART


async def test_the_second_half_of_a_batch_is_not_written_to_another_log(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It went out with the new fence, although its session had been closed."""
    server = await make_server(lanes=1, rate_messages=1_000)
    alice, _, c = await befriended(server)
    other = (await sent(alice, "carol", "1"))["c"]
    lane = server.node.store.lanes.all[0]
    calls: list[int] = []
    write = lane._write

    async def between(batch: Batch, *generation: int) -> None:
        calls.append(len(batch.items))
        if calls == [1]:  # what comes meanwhile is one batch
            await until(lambda: len(lane.queue) >= 2)
        if calls == [1, 2, 1, 1]:  # the first half's outcome is known, and the log moves
            with connect(conninfo(server)) as db:
                db.execute("UPDATE meta SET epoch = 'renewed'")
            server.node.store.log.suspect()
            await until(lambda: server.node.store.epoch == "renewed")
        await write(batch, *generation)

    monkeypatch.setattr(lane, "_write", between)
    monkeypatch.setattr(lane._failures, "_write", between)
    with connect(conninfo(server)) as db:
        db.execute("UPDATE conversations SET a = 'dave', b = 'erin' WHERE id = %s", (int(c),))
        await alice.post("send", to="carol", cid=str(uuid.uuid4()), body="2")
        await until(lambda: calls)
        await alice.post("send", to="bob", cid=str(uuid.uuid4()), body="x")
        await alice.post("send", to="carol", cid=str(uuid.uuid4()), body="of the log before")
        assert await alice.closed() == RESTART
        await lane.idle.wait()
        assert calls == [1, 2, 1, 1]
        assert [body for _, _, body in entries(db, int(other))] == ["1", "2"]


async def test_a_log_at_another_place_gets_a_new_epoch_once(make_server: MakeServer, make_db: Any) -> None:
    """As after a restore: what `meta` has recorded is not where the log is.

    Two nodes; one of them makes the epoch.
    """
    url = make_db()
    one_node, other = await make_server(database_url=url), await make_server(database_url=url)
    alice, _, _ = await befriended(one_node)
    bob = await other.connect("bob")
    before = alice.welcome["epoch"]
    with connect(url) as db:
        db.execute("UPDATE meta SET identity = '1/00000001/1/1'")
        alice, bob = await again(one_node, alice, "alice"), await again(other, bob, "bob")
        assert alice.welcome["epoch"] == bob.welcome["epoch"] == one(db, "SELECT epoch FROM meta") != before
        assert one(db, "SELECT identity = log_identity() FROM meta")
    assert (await sent(alice, "bob", "3"))["seq"] == 3


async def test_rows_of_another_cluster_are_not_listed_for_ever(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a dump restored in a new cluster each hello listed all that had ids ahead of its own.
    The node puts it right in steps, and goes on where it was left.
    """
    monkeypatch.setattr(watch, "RESTAMP_ROWS", 2)
    server = await make_server()
    alice, _, c = await befriended(server)
    with connect(conninfo(server)) as db:
        of_another_cluster(db, 5)
        with db.transaction():
            db.execute("UPDATE conversations SET xid = '900000000000'")
            db.execute("UPDATE meta SET identity = '1/00000001/1/1'")
        alice = await again(server, alice, "alice")
        await until_restamped(db)
        assert one(db, FUTURE) == 0
        mark = {"epoch": alice.welcome["epoch"], "cursors": {}}
        listed = await server.connect("alice", since=alice.welcome["since"], **mark)
        assert [item["c"] for item in listed.welcome["conversations"]] == [c], "it was changed once more, by this"
        listed = await server.connect("alice", since=listed.welcome["since"], **mark)
        assert listed.welcome["conversations"] == []
        with db.transaction():  # as a node leaves it that ends halfway
            db.execute("UPDATE conversations SET xid = '900000000000'")
            db.execute("UPDATE meta SET restamp = %s", (int(c),))
        await until_restamped(db)
        assert one(db, "SELECT count(*) FROM conversations WHERE xid >= pg_snapshot_xmax(pg_current_snapshot())") == 1


async def until_restamped(db: psycopg.Connection[Any]) -> None:
    await until(lambda: one(db, "SELECT restamp FROM meta") is None)


async def test_a_log_that_lost_its_end_is_found_when_a_lane_connects(make_server: MakeServer) -> None:
    """A storage that was set back: cluster, timeline and epoch are as they were."""
    server = await make_server(lanes=1)
    alice, bob, _c = await befriended(server)
    before = alice.welcome["epoch"]
    with connect(conninfo(server)) as db:
        db.execute("DELETE FROM entries WHERE seq > 1")
        db.execute("UPDATE conversations SET head = 1, nb = 0")
        db.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'chatd%'")
        alice, bob = await again(server, alice, "alice"), await again(server, bob, "bob")
        assert alice.welcome["epoch"] == one(db, "SELECT epoch FROM meta") != before
        assert [item["head"] for item in alice.welcome["conversations"]] == [1]
        assert (await sent(alice, "bob", "other"))["seq"] == 2
        assert (await bob.push("entry"))["body"] == "other"


@pytest.mark.parametrize("head", [0, 2])
async def test_a_log_that_lost_its_end_under_the_connections_is_found_by_the_next_send(
    make_server: MakeServer, head: int
) -> None:
    """A fresh send was a `dup` by a seq that the peer had for another text; the peer never got it."""
    server = await make_server()
    alice, bob, c = await befriended(server)
    last = [await sent(alice, "bob", body) for body in ("3", "4")][-1]
    assert last["seq"] == 4
    with connect(conninfo(server)) as db:
        db.execute("DELETE FROM entries WHERE seq > %s", (head,))
        db.execute(
            "UPDATE conversations SET head = %s, na = least(na, %s / 2), nb = least(nb, %s / 2)", (head, head, head)
        )
        cid = str(uuid.uuid4())
        answer = await alice.say("bob", "after", cid=cid)
        assert (answer["t"], answer.get("code")) == ("err", "unavailable")
        alice, bob = await again(server, alice, "alice"), await again(server, bob, "bob")
        assert [one["head"] for one in bob.welcome["conversations"]] == [head + 1]
        answer = await alice.say("bob", "after", cid=cid, retry=True)
        assert (answer["t"], answer["seq"], answer["dup"]) == ("ok", head + 1, True)
        assert [body for _, _, body in entries(db, int(c))] == [*"12"[:head], "after"]
        assert (await sent(bob, "alice", "next"))["seq"] == head + 2
        assert (await alice.push("entry"))["body"] == "next"


async def test_a_dump_restored_in_place_is_another_log(make_server: MakeServer) -> None:
    """The same cluster and database; the tables are made anew with the same words in them."""
    server = await make_server()
    alice, _, _c = await befriended(server)
    before = alice.welcome["epoch"]
    with connect(conninfo(server)) as db:
        with db.transaction():
            db.execute("CREATE TABLE again AS SELECT * FROM meta")
            db.execute("DROP TABLE meta")
            db.execute("ALTER TABLE again RENAME TO meta")
            db.execute("ALTER TABLE meta ALTER identity TYPE text, ADD PRIMARY KEY (only_row)")
        alice = await again(server, alice, "alice")
        assert alice.welcome["epoch"] != before
        assert (await sent(alice, "bob", "3"))["seq"] == 3


async def test_cursors_of_the_log_before_are_not_written(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await make_server()

    async def later() -> None:
        """Nothing is written behind until the log has moved."""

    monkeypatch.setattr(server.node.store.state_flush, "flush", later)
    _alice, bob, c = await befriended(server)
    assert (await bob.request("read", c=c, seq=2))["t"] == "ok"
    with connect(conninfo(server)) as db:
        db.execute("UPDATE meta SET epoch = 'renewed'")
        assert await bob.closed() == RESTART
        monkeypatch.undo()
        await server.node.store.flush()
        assert one(db, "SELECT count(*) FROM cursors") == 0
    assert server.node.registry.convs == {}


# ---- what is believed ----------------------------------------------------------------------------


def test_the_pair_is_reckoned_as_postgresql_does(make_db: Any) -> None:
    with connect(make_db()) as db:
        for a, b in (("alice", "bob"), ("é", "日本"), ("a b", "a\u00a0b"), ("x" * 64, "y" * 64)):
            assert one(db, "SELECT pair_check(%s, %s)", (a, b)) == pair_check(UserId(a), UserId(b))


def test_an_epoch_once_left_is_not_gone_back_to() -> None:
    state = LogState()
    state.adopt("first", "1/00000001/5/7")
    assert state.look(Sight("first", "1/00000001/5/7", "1/00000001/5/7")) is LogVerdict.SAME
    assert state.look(Sight("first", "1/00000001/5/7", "1/00000002/5/7")) is LogVerdict.MOVED
    assert state.look(Sight("first", "1/00000001/5/7", None)) is LogVerdict.STANDBY
    state.adopt("second", "1/00000002/5/7")
    assert state.look(Sight("first", "1/00000001/5/7", "1/00000001/5/7")) is LogVerdict.LEFT, "the old primary"
    assert state.look(Sight("first", "1/00000001/5/7", "1/00000003/5/7")) is LogVerdict.MOVED, (
        "a restore of what was there then"
    )
    assert state.look(Sight("second", "1/00000002/5/7", "1/00000002/5/7")) is LogVerdict.SAME
    state.suspect(is_behind=True)
    assert state.look(Sight("second", "1/00000002/5/7", "1/00000002/5/7")) is LogVerdict.MOVED


def test_an_epoch_tells_of_those_before_it_to_a_node_that_was_not_there() -> None:
    epochs = ["f" * 32]
    for _ in range(4):
        epochs.append(successor(epochs[-1], uuid.uuid4().hex))
    state = LogState()
    state.adopt(epochs[3], "1/00000004/5/7")
    for epoch in epochs[:3]:
        assert state.look(Sight(epoch, "1/00000001/5/7", "1/00000001/5/7")) is LogVerdict.LEFT, "an old primary"
        assert is_older(
            Sight(epoch, "1/00000001/5/7", "1/00000001/5/7"), Sight(epochs[3], "1/00000004/5/7", "1/00000004/5/7")
        )
    assert state.look(Sight(epochs[4], "1/00000005/5/7", "1/00000005/5/7")) is LogVerdict.MOVED
    assert state.look(Sight(successor(epochs[0], "e" * 32), "1/00000001/5/7", "1/00000001/5/7")) is LogVerdict.MOVED, (
        "renewed there"
    )
    assert max(map(len, epochs)) < 64
    promoted, left = (
        Sight(epochs[0], "1/00000001/5/7", "1/00000002/5/7"),
        Sight(epochs[0], "1/00000001/5/7", "1/00000001/5/7"),
    )
    assert (is_older(left, promoted), is_older(promoted, left)) == (True, False), "no node has been there yet"


async def test_readiness_tells_the_reason(make_server: MakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server = await make_server()
    with connect(conninfo(server)) as db:
        name = one(db, "SELECT current_database()")
        db.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        db.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'chatd%'")

    async def says_read_only() -> bool:
        return "read-only" in (await server.node.readiness.problems()).get("database", "")

    await until(says_read_only)
    found = await asyncio.to_thread(examine, server.node.settings)
    assert ["read-only" in one.what for one in found if one.bad] == [True]
    assert b'chatd_database_failures_total{kind="read-only"}' in server.node.metrics.exposition()
    alice = await server.connect("alice")
    cid = str(uuid.uuid4())
    assert (await alice.say("bob", "1", cid=cid))["code"] == "unavailable"
    with psycopg.connect(conninfo(server), autocommit=True, options="-c default_transaction_read_only=off") as db:
        db.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
        db.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'chatd%' AND pid <>"
            " pg_backend_pid()"
        )
    await alice.insist("bob", "1", cid=cid)
    await until_ready(server.node)

    async def hangs() -> int:
        raise AssertionError("what is known is told at once")

    monkeypatch.setattr(server.node.store, "partitions_left", hangs)
    server.node.store.health.failed("lanes", psycopg.errors.DiskFull("no space left"))
    assert await server.node.readiness.problems() == {"database": "disk-full: no space left"}


def test_a_host_that_has_an_old_log_is_asked_after_the_others() -> None:
    for url, expected in (
        ("host=a,b,c port=5432,5433,5434", ("b,c,a", "5433,5434,5432")),
        ("host=a,b", ("b,a", "5432,5432")),
        ("postgresql://a,b/db", ("b,a", None)),
        ("host=a", ("a", None)),
    ):
        opener = Opener(url)
        opener.avoid(("a", "5432"))
        made = conninfo_to_dict(opener.conninfo("test", 1.0))
        assert made["host"] == expected[0]
        if url.startswith("host=a,b,c"):
            assert made["port"] == expected[1]


@pytest.mark.parametrize("table", ["entries", "conversations"])
async def test_what_a_trigger_takes_out_in_silence_is_not_acked(make_server: MakeServer, table: str) -> None:
    """It was answered `ok` with the next seq, and no row was there."""
    server = await make_server()
    alice, _, c = await befriended(server)
    event = "INSERT" if table == "entries" else "UPDATE"
    with connect(conninfo(server)) as db:
        db.execute("CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'")
        db.execute(f"CREATE TRIGGER gone BEFORE {event} ON {table} FOR EACH ROW EXECUTE FUNCTION nothing()")
        assert (await sent(alice, "bob", "3"))["code"] == "refused"
        assert (await alice.request("edit", c=c, ref=1, cid=str(uuid.uuid4()), body="x"))["code"] == "refused"
        db.execute(f"DROP TRIGGER gone ON {table}")
        assert (await sent(alice, "bob", "3"))["seq"] == 3
        assert len(entries(db, int(c))) == 3


async def test_an_edit_that_a_trigger_skips_is_not_acked(make_server: MakeServer) -> None:
    server = await make_server()
    alice, _, c = await befriended(server)
    with connect(conninfo(server)) as db:
        db.execute("CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'")
        db.execute("CREATE TRIGGER gone BEFORE UPDATE ON entries FOR EACH ROW EXECUTE FUNCTION nothing()")
        assert (await alice.request("edit", c=c, ref=1, cid=str(uuid.uuid4()), body="x"))["code"] == "refused"
        assert entries(db, int(c))[0][2] == "1"


async def test_an_entry_of_a_later_release_ends_no_node(make_server: MakeServer) -> None:
    """Its nodes write beside ours during an upgrade: the seq counts, and clients pass the kind
    over.
    """
    server = await make_server()
    alice, bob, c = await befriended(server)
    with connect(conninfo(server)) as db:
        db.execute(
            "INSERT INTO entries (conv, seq, ts, cid, na, nb, side, kind)"
            " VALUES (%s, 3, clock_timestamp(), gen_random_uuid(), 1, 1, 0, 9)", (int(c),),
        )  # fmt: skip
        db.execute("UPDATE conversations SET head = 3 WHERE id = %s", (int(c),))
    assert (await alice.say("bob", "4"))["seq"] == 4
    kinds: list[str] = []
    while len(kinds) < 2:
        if (entry := await bob.push("entry"))["seq"] > 2:
            kinds.append(entry["kind"])
    assert kinds == ["other", "message"]
    assert (await bob.request("history", c=c, before=5, limit=10))["t"] == "ok"
