"""A row that another transaction holds keeps nobody waiting but those who need that row."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from chatd import errors
from tests.fix_server import MakeServer, Server
from tests.integration.logs import connect
from tests.maps import check_maps


@contextmanager
def locked(conninfo: str, sql: str) -> Iterator[psycopg.Connection[Any]]:
    """Somebody's transaction that holds what this statement locks."""
    with psycopg.connect(conninfo) as conn:
        conn.execute(sql)
        yield conn
        conn.rollback()


async def hello_and_listing(server: Server, user: str) -> list[Any]:
    peer = await server.connect(user)
    reply = await peer.request("conversations", limit=10)
    assert reply["t"] == "ok", reply
    await peer.close()
    return list(reply["conversations"])


async def test_a_locked_row_of_cursors_keeps_no_hello_and_no_listing_waiting(
    make_server: MakeServer, fresh_db: str
) -> None:
    server = await make_server(database_url=fresh_db)
    alice, bob, carol = [await server.connect(user) for user in ("alice", "bob", "carol")]
    c = (await alice.say("bob"))["c"]
    d = (await carol.say("bob"))["c"]
    await bob.request("ack", c=c, seq=1)
    await bob.request("ack", c=d, seq=1)
    await server.node.store.flush()
    with locked(fresh_db, f"SELECT FROM cursors WHERE conv = {c} FOR UPDATE"):
        for conv in (c, d):
            await bob.request("read", c=conv, seq=1)
        async with asyncio.timeout(5):  # it waited for 10 s, and then all were refused
            await server.node.store.flush()
            assert [
                one["read"]
                for one in await hello_and_listing(server, "dave") + await hello_and_listing(server, "carol")
            ] == [0]
            assert {one["c"]: (one["read"], one["unread"]) for one in await hello_and_listing(server, "bob")} == {
                c: (1, 0),
                d: (1, 0),
            }
        with connect(fresh_db) as conn:
            assert conn.execute("SELECT conv FROM cursors WHERE greatest(a_read, b_read) = 1").fetchall() == [(int(d),)]
        assert len(server.node.store.state_flush.cursors) == 1
    await server.node.store.flush()
    with connect(fresh_db) as conn:
        assert len(conn.execute("SELECT FROM cursors WHERE greatest(a_read, b_read) = 1").fetchall()) == 2
    await check_maps(server.node)


async def test_a_locked_row_of_users_keeps_no_hello_waiting(make_server: MakeServer, fresh_db: str) -> None:
    server = await make_server(database_url=fresh_db, unknown_recipients="refuse")
    alice, bob = await server.connect("alice"), await server.connect("bob")
    await server.node.store.flush()
    with locked(fresh_db, "SELECT FROM users WHERE id = 'alice' FOR UPDATE"):
        await alice.close()
        carol = await server.connect("carol", watch=["dave"])
        async with asyncio.timeout(5):
            assert (await carol.request("watch", users=["alice", "carol"]))["t"] == "ok"
            assert (await carol.say("bob"))["t"] == "ok"
            assert (await bob.push("entry"))["from"] == "carol"
    await check_maps(server.node)


async def test_what_is_behind_at_the_end_is_tried_again_while_there_is_time(
    make_server: MakeServer, fresh_db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its connection is cut first, and then somebody holds the row for a moment."""
    server = await make_server(database_url=fresh_db, cursor_flush_ms=1_000)
    alice, bob = await server.connect("alice"), await server.connect("bob")
    c = (await alice.say("bob"))["c"]
    await bob.request("read", c=c, seq=1)
    await server.node.store.flush()
    await alice.say("bob")
    await bob.request("read", c=c, seq=2)
    store = server.node.store
    flush, tries = store.flush, 0

    with locked(fresh_db, f"SELECT FROM cursors WHERE conv = {c} FOR UPDATE") as holder:

        async def tried() -> None:
            nonlocal tries
            tries += 1
            if tries == 1:
                raise errors.Unavailable("cut", retry_ms=100)
            await flush()
            holder.rollback()

        monkeypatch.setattr(store.state_flush, "flush", tried)
        await server.node.stop()
    assert tries == 3
    with connect(fresh_db) as conn:
        assert conn.execute("SELECT greatest(a_read, b_read) FROM cursors").fetchall() == [(2,)]
