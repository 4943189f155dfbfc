"""A pass over all conversations finds for many users what a look finds for each.

What a look finds is held by test_store.py. The model of test_model.py runs on such a node, too.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
import pytest

from chatd import errors
from chatd.core.conversation import Conversation
from chatd.ids import ConvId, UserId
from chatd.postgres import mark, sweep
from chatd.postgres.rows import BEGIN
from chatd.postgres.sweep import Sizes
from chatd.store import Store
from tests.client import Peer
from tests.fix_server import MakeServer, Server
from tests.integration.logs import Message, append, connect, conversation, partitions
from tests.integration.stores import LIMITS, NoLane, StartStore, stores
from tests.sweeping import sweeping
from tests.until import until

USERS = [UserId(f"u{n}") for n in range(8)]


@pytest.fixture
def db(fresh_db: str) -> Iterator[psycopg.Connection[Any]]:
    with connect(fresh_db) as conn:
        partitions(conn)
        yield conn


@pytest.fixture
async def start(fresh_db: str, db: psycopg.Connection[Any]) -> AsyncIterator[StartStore]:
    async with stores(fresh_db, NoLane(), LIMITS) as start:
        yield start


class Talk:
    """Conversations between `USERS`, and what happens in them; `marks` are of instants in between."""

    def __init__(self, store: Store, db: psycopg.Connection[Any], seed: int) -> None:
        self.store, self.db, self.rng = store, db, random.Random(seed)
        self.marks: list[str] = []
        self.convs: dict[tuple[UserId, UserId], int] = {}

    async def go_on(self, steps: int) -> None:
        for _ in range(steps):
            a, b = sorted(self.rng.choices(USERS, k=2))
            if (id := self.convs.get((a, b))) is None:
                id = self.convs[a, b] = conversation(self.db, a, b)
            match self.rng.randrange(4):
                case 0:
                    append(self.db, [Message(id, side=0 if a == b else self.rng.randrange(2))])
                case 1:  # one side's cursors alone
                    conv = Conversation(ConvId(id), a, b)
                    conv.advance(self.rng.randrange(2), self.rng.randrange(1, 9), self.rng.randrange(9))
                    self.store.cursor_moved(conv)
                    await self.store.flush()
                case 2:  # as a node of an earlier release leaves them
                    moved = "UPDATE cursors SET xid = pg_current_xact_id(), a_xid = NULL WHERE conv = %s"
                    self.db.execute(moved, (id,))
                case _:
                    page = await self.store.list_changed(USERS[0], "0", BEGIN, True, [])
                    self.marks.append(page.mark)

    async def looks(self, user: UserId, since: str) -> set[int]:
        return {row.id for row in (await self.store.list_changed(user, since, BEGIN, False, [])).rows}


async def swept(store: Store, asked: list[tuple[UserId, str]]) -> list[set[int]]:
    """What one pass finds for these users and marks."""
    found = await asyncio.gather(*(store.swept(user, since) for user, since in asked))
    assert all(one is not None for one in found)
    assert len({one.snapshot for one in found if one is not None}) == 1, "one pass"
    return [set(one.ids) for one in found if one is not None]


@pytest.mark.parametrize("seed", range(4))
async def test_a_pass_finds_what_a_look_finds_for_each(
    start: StartStore, db: psycopg.Connection[Any], seed: int
) -> None:
    """With marks of all ages, of an earlier start of the server, and of the future."""
    store = await start()
    talk = Talk(store, db, seed)
    await talk.go_on(60)
    sweeping(store, gather_s=0.01)
    known = mark.read(talk.marks[-1], store.epoch)
    assert known is not None
    marks = {
        *talk.marks, str(mark.of_all(store.epoch)), str(known._replace(started=1)), str(known._replace(xid=2**60)),
    }  # fmt: skip
    asked = [(user, since) for user in USERS for since in sorted(marks)]
    looks = [await talk.looks(user, since) for user, since in asked]
    assert any(looks)
    assert await swept(store, asked) == looks
    assert set() in await swept(store, [(user, talk.marks[-1]) for user in USERS]), "some have nothing new"


async def test_a_pass_does_not_miss_what_commits_after_it(
    fresh_db: str, start: StartStore, db: psycopg.Connection[Any]
) -> None:
    """The mark that it gives is older than each transaction that it did not see."""
    store = await start()
    sweeping(store)
    slow, fast = conversation(db, "u0", "u1"), conversation(db, "u0", "u2")
    first = (await store.list_changed(USERS[0], "0", BEGIN, True, [])).mark
    with connect(fresh_db) as other, other.transaction():
        append(other, [Message(slow)])  # not committed yet
        append(db, [Message(fast)])
        one = await store.swept(USERS[0], first)
        assert one is not None
        assert one.ids == [fast]
    two = await store.swept(USERS[0], one.mark)
    assert two is not None
    assert slow in two.ids


async def test_cursors_that_are_not_written_yet_are_found(start: StartStore, db: psycopg.Connection[Any]) -> None:
    store = await start()
    sweeping(store)
    id = conversation(db, "u0", "u1")
    append(db, [Message(id), Message(id, side=1)])
    first = (await store.list_changed(USERS[0], "0", BEGIN, True, [])).mark
    conv = Conversation(ConvId(id), *USERS[:2])
    conv.advance(1, 2, 1)
    store.cursor_moved(conv)
    assert await swept(store, [(USERS[0], first)]) == [{id}]


# ---- when one is made ----------------------------------------------------------------------------


async def test_few_hellos_are_no_storm(start: StartStore, db: psycopg.Connection[Any]) -> None:
    store = await start()
    since = (await store.list_changed(USERS[0], "0", BEGIN, True, [])).mark
    for _ in range(sweep.HELLOS_MIN):
        assert await store.swept(USERS[0], since) is None
    assert store.metrics.hellos_swept == 0


async def test_many_are_and_a_mark_of_another_log_is_not_asked_for(
    start: StartStore, db: psycopg.Connection[Any]
) -> None:
    store = await start()
    since = (await store.list_changed(USERS[0], "0", BEGIN, True, [])).mark
    n = 8 * sweep.HELLOS_MIN
    found = await asyncio.gather(*(store.swept(USERS[k % 8], since if k % 2 else "1.1.x") for k in range(n)))
    assert not any(found[::2])
    assert sum(one is not None for one in found) == store.metrics.hellos_swept > n // 2 - 2 * sweep.HELLOS_MIN - 2


def test_a_pass_is_worth_it_where_a_look_for_each_costs_more() -> None:
    some = Sizes(400_000_000, 1_000_000.0, 10_000.0)  # 200 conversations a user
    assert sweep.HELLOS_MIN < some.worth < 200
    assert Sizes(2_000_000_000, 5e6, 5e4).worth > 4 * some.worth, "the tables are five times as long"
    assert Sizes(400_000_000, 1e6, 1e5).worth > 2 * some.worth, "each has few"
    assert Sizes(400_000_000, -1.0, -1.0).worth > 1_000, "nobody knows what each has"
    assert Sizes(0, -1.0, -1.0).worth == sweep.HELLOS_MIN
    assert Sizes(4_000_000_000, 1e7, 1e5).worth == math.inf, "it takes too long"


@pytest.mark.parametrize("why", ["fails", "finds too much"])
async def test_where_a_pass_cannot_answer_each_looks_for_itself(
    start: StartStore, db: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    """And no other pass is tried at once."""
    store = await start()
    sweeping(store)
    append(db, [Message(conversation(db, "u0", "u1"))])
    since = str(mark.of_all(store.epoch))
    if why == "fails":

        async def rows(*_: Any) -> Any:
            raise errors.Unavailable("no", retry_ms=1)

        monkeypatch.setattr(store.sweeps, "_rows", rows)
    else:
        monkeypatch.setattr(sweep, "FOUND_MAX", 0)
    assert await store.swept(USERS[0], since) is None
    monkeypatch.undo()
    assert await store.swept(USERS[0], since) is None
    assert not store.sweeps._gathered


# ---- hellos that are answered by one -------------------------------------------------------------


async def storm(server: Server, marks: dict[str, dict[str, Any]]) -> dict[str, Peer]:
    """All come at once, each with its keys."""
    peers = await asyncio.gather(*(server.connect(user, **keys) for user, keys in marks.items()))
    return dict(zip(marks, peers, strict=True))


def items(peer: Peer) -> dict[str, int]:
    return {item["peer"]: item["head"] for item in peer.welcome["conversations"]}


async def test_all_who_come_back_get_what_they_missed_and_nothing_else(make_server: MakeServer) -> None:
    server = await make_server()
    names = [f"p{n}" for n in range(20)]
    talkers = {name: await server.connect(name) for name in names}
    for n, name in enumerate(names):
        await talkers[name].say(names[n - 1], "before")
        await talkers[names[n - 1]].push("entry")
    await server.node.store.flush()
    keys = {}
    for name in names:
        welcome = (await server.connect(name)).welcome
        assert set(items(server.peers[-1])) == {names[names.index(name) - 1], names[(names.index(name) + 1) % 20]}
        keys[name] = {"since": welcome["since"], "epoch": welcome["epoch"]}
    writer = server.peers[-1]
    await writer.say("p18", "missed")
    for peer in server.peers:
        peer.ws.transport.abort()
    await until(lambda: not server.node.registry.sessions)
    sweeping(server.node.store, gather_s=0.05)
    keys["p3"]["cursors"] = {"1": 0, str(conversation_of(server, "p2", "p3")): 1}  # the first is not theirs
    peers = await storm(server, keys)
    assert server.node.metrics.hellos_swept == len(names)
    named = {"p3": {"p2": 1}, "p18": {"p19": 2}, "p19": {"p18": 2}}
    assert {name: items(peer) for name, peer in peers.items() if items(peer)} == named
    await peers["p18"].say("p19", "live")
    assert (await peers["p19"].push("entry"))["seq"] == 3


def conversation_of(server: Server, a: str, b: str) -> int:
    return next(conv.id for conv in server.node.registry.convs.values() if (conv.a, conv.b) == (a, b))
