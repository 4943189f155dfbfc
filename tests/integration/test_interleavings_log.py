"""The log moves while an answer of the one before is on its way, or shows that it is another one: nothing of the two is mixed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from chatd import errors
from chatd.ids import ConvId, UserId
from chatd.postgres.faults import Outage
from chatd.store import RESOLVE
from tests.fix_server import MakeServer, Server
from tests.integration.logs import connect
from tests.integration.test_interleavings_session import Gate, befriended
from tests.maps import check_maps

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
    async with asyncio.timeout(WAIT_S):
        while server.node.store.epoch != "renewed":
            await asyncio.sleep(0.005)


# ---- what was asked of the log before -------------------------------------------------------------------------------------------------


async def test_floors_of_the_log_before_are_not_taken_over(make_server: MakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Retention asked for them, and the log moved before the answer was there: a floor only rises, and history began too late."""
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
    gate.go.set()
    with pytest.raises(Outage):
        await once
    assert server.node.registry.convs[ConvId(int(c))].floor == 1
    assert server.node.retention._oldest is None, "the next pass asks again"


async def test_conversations_found_in_two_logs_are_not_one_answer(make_server: MakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second query of `resolve` was asked of another log than the first; what both gave went into memory."""
    server = await make_server()
    store = server.node.store
    rows, answers = store._rows, list[Any]()

    async def first_of_each(sql: Any, *args: Any, **keys: Any) -> Any:
        if sql is RESOLVE and answers:
            await move(server)
        found = await rows(sql, *args, **keys)
        if sql is RESOLVE:
            answers.append(found)
            return found[:1]  # the other is being made at this moment
        return found

    monkeypatch.setattr(store, "_rows", first_of_each)
    pairs = [(UserId("alice"), UserId("bob")), (UserId("alice"), UserId("carol"))]
    with pytest.raises(errors.Unavailable):
        await store.resolve(pairs, [None, None])
    assert len(answers) == 2


async def test_a_user_whose_second_listing_saw_another_log_is_not_held_whole(make_server: MakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """`loaded` was put back to what it had been in the log before: of the next hello only what had changed was read."""
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
        await server.node.chat.hellos_done()
    assert asked == 2
    assert not server.node.registry.users[UserId("bob")].loaded
    monkeypatch.undo()
    await check_maps(server.node)
