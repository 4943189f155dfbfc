"""The log moves while an answer of the one before is on its way, or shows that it is another one:
nothing of the two is mixed.
"""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import psycopg
import pytest

from chatd import errors, protocol
from chatd.chat.remote_entries import RemoteEntries
from chatd.ids import Cid, ConvId, UserId
from chatd.postgres import watch
from chatd.postgres.faults import Outage
from chatd.postgres.log_state import Renewals
from chatd.store import RESOLVE
from chatd.wire.node_messages import Entry
from tests.fix_server import MakeServer, Server
from tests.integration.logs import connect
from tests.integration.test_interleavings_session import Gate, befriended
from tests.maps import check_maps, wrong
from tests.until import until

WAIT_S = 20.0
RESTART = 1012


def conninfo(server: Server) -> str:
    return server.node.store.opener._conninfo


async def move(server: Server, *statements: str) -> None:
    """The log becomes another one, with these changes; return when the node has found it."""
    with connect(conninfo(server)) as db:
        for statement in statements:
            db.execute(statement)
        db.execute("UPDATE meta SET epoch = 'renewed'")
    server.node.store.log.suspect()
    await until(lambda: server.node.store.epoch == "renewed")


# ---- what was asked of the log before ------------------------------------------------------------


async def test_floors_of_the_log_before_are_not_taken_over(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Retention asked for them, and the log moved before the answer was there: a floor only rises,
    and history began too late.
    """
    server = await make_server()
    alice, _, c = await befriended(server)
    with connect(conninfo(server)) as db:
        db.execute("UPDATE conversations SET floor = 2")
    server.node.retention._oldest = None
    gate = Gate(monkeypatch, server.node.retention, "_floors_of")
    once = asyncio.create_task(server.node.retention.once())
    await gate.until_reached()
    await move(server, "UPDATE conversations SET floor = 1")
    assert await alice.closed() == RESTART
    alice = await server.connect("alice")
    await alice.request("history", c=c)  # it is in memory then
    gate.go.set()
    with pytest.raises(Outage):
        await once
    assert server.node.registry.convs[ConvId(int(c))].floor == 1
    assert server.node.retention._oldest is None, "the next pass asks again"


async def test_conversations_found_in_two_logs_are_not_one_answer(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second query of `resolve` was asked of another log than the first; what both gave went
    into memory.
    """
    server = await make_server()
    store = server.node.store
    rows, answers = store.read_pool.rows, list[Any]()

    async def first_of_each(sql: Any, *args: Any, **keys: Any) -> Any:
        if sql is RESOLVE and answers:
            await move(server)
        found = await rows(sql, *args, **keys)
        if sql is RESOLVE:
            answers.append(found)
            return found[:1]  # the other is being made at this moment
        return found

    monkeypatch.setattr(store.read_pool, "rows", first_of_each)
    pairs = [(UserId("alice"), UserId("bob")), (UserId("alice"), UserId("carol"))]
    with pytest.raises(errors.Unavailable):
        await store.resolve(pairs, [None, None])
    assert len(answers) == 2


async def test_a_user_whose_second_listing_saw_another_log_is_not_held_whole(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`loaded` was put back to what it had been in the log before: of the next hello only what had
    changed was read.
    """
    server = await make_server()
    store = server.node.store
    _alice, bob, c = await befriended(server)
    real, asked = store.list_changed, 0

    async def list_changed(*args: Any) -> Any:
        nonlocal asked
        asked += 1
        if asked == 2:
            await move(server)
            raise errors.Unavailable("the log is another one since", retry_ms=1)
        listing = await real(*args)
        assert (await bob.request("read", c=c, seq=2))["t"] == "ok"  # the row is older than memory: it is listed again
        return listing

    monkeypatch.setattr(store, "list_changed", list_changed)
    late = await server.open()
    await late.post("hello", v=1, token=server.token("bob"), device="d2")
    assert await late.closed() == RESTART
    async with asyncio.timeout(WAIT_S):
        await server.node.chat.life.hellos_done()
    assert asked == 2
    assert not server.node.registry.users[UserId("bob")].loaded
    monkeypatch.undo()
    await check_maps(server.node)


# ---- what shows that the log is another one ------------------------------------------------------


class Blind:
    """The watch does not look until `see`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
        self._go, real = asyncio.Event(), server.node.store.watch._look

        async def look() -> None:
            await self._go.wait()
            await real()

        monkeypatch.setattr(server.node.store.watch, "_look", look)

    def see(self) -> None:
        self._go.set()


def set_back(db: psycopg.Connection[Any], *convs: tuple[int, str, str]) -> None:
    """Under the node's connections the log is one with these conversations, of three messages each;
    cluster, timeline and epoch are as they were.
    """
    with db.transaction():
        for table in ("entries", "cursors", "conversations"):
            db.execute(f"DELETE FROM {table}")
        for id, a, b in convs:
            db.execute(
                "INSERT INTO conversations (id, a, b, head, na) OVERRIDING SYSTEM VALUE VALUES (%s, %s, %s, 3, 3)",
                (id, a, b),
            )
            db.execute(
                "INSERT INTO entries (conv, seq, ts, cid, na, nb, side, kind, body)"
                " SELECT %s, n, clock_timestamp(), gen_random_uuid(), n, 0, 0, 0, 'theirs' FROM generate_series(1, 3)"
                " n",
                (id,),
            )


@pytest.mark.parametrize("found_by", ["hello", "conversations", "first message", "head", "watch"])
async def test_what_is_others_in_another_log_is_not_mixed(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch, found_by: str
) -> None:
    """The id that memory has for a pair is of another one, or the pair has another id: users were
    linked to the old object, and read by its id.
    """
    server = await make_server()
    alice, bob, c = await befriended(server)
    blind = Blind(monkeypatch, server)
    id = int(c)
    convs = {"conversations": [(id + 100, "alice", "bob")], "first message": [(id, "alice", "erin")]}.get(
        found_by, [(id, "dave", "erin")]
    )
    with connect(conninfo(server)) as db:
        set_back(db, *convs)
    if found_by == "hello":
        dave = await server.open()
        hello = await dave.post("hello", v=1, token=server.token("dave"), device="d1")
        assert (await dave.reply(hello))["code"] == "unavailable"
    elif found_by == "conversations":
        assert (await bob.request("conversations"))["code"] == "unavailable"
    elif found_by == "first message":
        assert (await alice.say("erin"))["code"] == "unavailable"
    elif found_by == "head":
        server.node.delivery.gaps.look_up([ConvId(id)])
    assert wrong(server.node) == []
    blind.see()
    assert await alice.closed() == await bob.closed() == RESTART
    assert [push for push in alice.pushes + bob.pushes if push["t"] == "entry"] == []
    again = await server.connect(convs[0][1])
    assert again.welcome["epoch"] != alice.welcome["epoch"]
    assert [(item["c"], item["peer"], item["head"]) for item in again.welcome["conversations"]] == [
        (str(convs[0][0]), convs[0][2], 3)
    ]
    await check_maps(server.node)


async def test_an_entry_of_another_log_that_a_node_tells_of_is_not_pushed(server: Server) -> None:
    """The other node has the conversation's id for Bob and Carol; Alice was pushed what Carol wrote
    to Bob.
    """
    alice, bob, c = await befriended(server)
    frame = protocol.entry(int(c), 3, 1, b'"bob"', b'"carol"', protocol.MESSAGE, None, "theirs", None)
    told = Entry(ConvId(int(c)), 3, 1, 1, 2, 0, protocol.MESSAGE, Cid(str(uuid.uuid4())), frame)
    entries = RemoteEntries(server.node.registry, server.node.store, server.node.delivery, lambda: 0)
    server.node.registry.users[UserId("bob")].loaded = True  # as on a node among others
    assert not entries.heard(UserId("bob"), told)
    assert not entries.heard(UserId("bob"), told._replace(conv=ConvId(99), frame=frame.replace(b"carol", b"alice")))
    await alice.quiet()
    await bob.quiet()
    assert wrong(server.node) == []


async def test_an_idle_node_finds_a_log_that_lost_its_end(make_server: MakeServer) -> None:
    """It was found by the next send alone."""
    server = await make_server()
    alice, bob, _ = await befriended(server)
    with connect(conninfo(server)) as db:
        db.execute("DELETE FROM entries WHERE seq = 2")
        db.execute("UPDATE conversations SET head = 1, nb = 0")
    assert await alice.closed() == await bob.closed() == RESTART
    bob = await server.connect("bob")
    assert [item["head"] for item in bob.welcome["conversations"]] == [1]


# ---- what does not -------------------------------------------------------------------------------


async def test_another_s_trigger_with_our_sqlstate_renews_no_epoch(make_server: MakeServer) -> None:
    """Each send renewed the epoch and closed all sessions."""
    server = await make_server()
    alice, bob, _ = await befriended(server)
    with connect(conninfo(server)) as db:
        db.execute(
            "CREATE FUNCTION stranger() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE EXCEPTION 'no' USING ERRCODE"
            " = 'CH002'; END$$"
        )
        db.execute("CREATE TRIGGER stranger BEFORE INSERT ON entries FOR EACH ROW EXECUTE FUNCTION stranger()")
        cid = str(uuid.uuid4())
        for _ in range(2):
            assert (await alice.say("bob", "3", cid=cid, retry=True))["code"] == "unavailable"
        assert "other" in (await server.node.readiness.problems())["database"]
        await bob.quiet()
        db.execute("DROP TRIGGER stranger ON entries")
    assert (await alice.say("bob", "3", cid=cid, retry=True))["seq"] == 3
    assert (await server.connect("carol")).welcome["epoch"] == alice.welcome["epoch"]


async def test_a_log_that_differs_again_is_not_begun_anew_without_end(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trigger sets heads back: after the first new epoch all is served as it is there, and an
    error tells it once.
    """
    server = await make_server()
    alice, bob, _ = await befriended(server)
    told: list[str] = []
    monkeypatch.setattr(watch.log, "error", lambda event, **_: told.append(event))
    with connect(conninfo(server)) as db:
        db.execute(
            "CREATE FUNCTION back() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN NEW.head := 2; RETURN NEW; END$$"
        )
        db.execute("CREATE TRIGGER back BEFORE UPDATE ON conversations FOR EACH ROW EXECUTE FUNCTION back()")
        assert (await alice.say("bob", "3"))["code"] == "unavailable"
        assert await alice.closed() == await bob.closed() == RESTART
        alice = await server.connect("alice")
        for _ in range(2):
            cid = str(uuid.uuid4())
            assert (await alice.say("bob", "3", cid=cid))["code"] == "unavailable"
            assert (await alice.request("skip", to="bob", cid=cid))["t"] == "ok"
            server.node.store.log.suspect(is_behind=True)
            await until(lambda: not server.node.store.log.is_behind)
        await alice.quiet()
        assert told == ["log.moved", "log.differs"]
        db.execute("DROP TRIGGER back ON conversations")


def test_renewals_for_what_is_missing_come_after_pauses_that_double() -> None:
    renewals = Renewals()
    at = [now for now in range(20_000) if renewals.may(float(now))]
    assert at[:6] == [0, 10, 30, 70, 150, 310]
    assert len(at) < 15
    assert renewals.may(at[-1] + 2 * 3_600.0 + 1)
    assert renewals.may(at[-1] + 2 * 3_600.0 + 12), "who was quiet for so long begins at the first pause"
