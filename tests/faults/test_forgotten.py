"""Connections to PostgreSQL that a firewall has forgotten: nothing comes back, not even a reset.

The first message after a quiet spell is served.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

import pytest
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from chatd.postgres import connection
from chatd.postgres.connection import KEEPALIVES, Opener
from tests.faults.appends import path_of, through
from tests.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.fix_server import MakeServer


@pytest.fixture
async def proxy(fresh_db: str) -> AsyncIterator[Proxy]:
    async with Proxy(path_of(fresh_db)) as one:
        yield one


async def test_the_first_message_and_read_after_a_quiet_spell_are_served(
    make_server: MakeServer, fresh_db: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "PROVE_AFTER_S", 0.0)  # any spell is a quiet one
    server = await make_server(database_url=through(fresh_db, proxy))
    alice, bob = await server.connect("alice"), await server.connect("bob")
    await alice.say("bob", "one")
    for n in range(3):
        assert proxy.forget() >= 5
        assert (await alice.say("bob", f"{n}"))["t"] == "ok", "a batch is not bet on a connection that was quiet"
        assert (await bob.request("history", to="alice"))["t"] == "ok"
        assert (await server.connect("carol", f"d{n}")).welcome["t"] == "welcome"
    assert server.node.metrics.batches_failed == 0


async def test_a_busy_lane_is_not_asked_for_a_sign_of_life(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    real = connection.is_alive

    async def is_alive(conn: connection.PgConnection) -> bool:
        asked.append(conn)
        return await real(conn)

    monkeypatch.setattr(connection, "is_alive", is_alive)
    server = await make_server(rate_messages=1_000)
    alice = await server.connect("alice")
    for n in range(20):
        assert (await alice.say("bob", f"{n}"))["t"] == "ok"
        assert (await alice.request("history", to="bob"))["t"] == "ok"
    assert asked == []


async def test_keepalives_are_well_under_four_minutes_and_in_force(make_db: Callable[[], str]) -> None:
    """libpq is given them; the kernel says what a socket has.

    A listener that only takes the connection is enough.
    """
    conninfo = Opener(make_db()).conninfo("test", 5.0)
    said = conninfo_to_dict(conninfo)
    assert all(said[name] == str(value) for name, value in KEEPALIVES.items())
    assert KEEPALIVES["keepalives_idle"] + KEEPALIVES["keepalives_interval"] * KEEPALIVES["keepalives_count"] < 120
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        conn = pq.PGconn.connect_start(make_conninfo(conninfo, host="127.0.0.1", port=port, dbname="x").encode())
        loop = asyncio.get_running_loop()
        try:
            while (status := conn.connect_poll()) == pq.PollingStatus.WRITING:
                await loop.run_in_executor(None, lambda: None)
            assert status == pq.PollingStatus.READING
            with socket.socket(fileno=socket.dup(conn.socket)) as sock:
                assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == KEEPALIVES["keepalives_idle"]
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 5_000
        finally:
            conn.finish()
