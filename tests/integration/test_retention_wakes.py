"""Retention's task: passes when one is wanted, no error that ends it, no server that holds it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg import errors as pg

from chatd.postgres import partitions
from chatd.postgres.faults import Outage
from chatd.postgres.partitions import Retention
from tests.fix_server import until_ready
from tests.integration.logs import connect
from tests.integration.test_clock import DAY_S, Skew
from tests.integration.test_retention import Node
from tests.until import until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.fix_process import OwnPostgres
    from tests.fix_server import MakeServer

REFUSE = """
    CREATE FUNCTION refuse() RETURNS event_trigger LANGUAGE plpgsql AS
        $$BEGIN RAISE insufficient_privilege USING MESSAGE = 'permission denied for schema public'; END$$;
    CREATE EVENT TRIGGER no_tables ON ddl_command_start WHEN TAG IN ('CREATE TABLE') EXECUTE FUNCTION refuse();
"""


async def test_a_clock_that_jumps_past_the_partitions_ahead_leaves_the_node_ready(
    make_server: MakeServer, make_db: Callable[[], str]
) -> None:
    skew = Skew(make_db(), 0)
    server = await make_server(database_url=skew.url, partitions_ahead=1)
    server.node._clock.stepped = lambda by_ms: None  # the send alone is to tell it
    alice = await server.connect("alice")
    skew.set(10 * DAY_S)
    assert (await alice.say("bob"))["t"] == "ok", "its partition is made on demand"
    await until_ready(server.node)


async def test_a_probe_has_the_missing_ones_made_where_nobody_sends(
    make_server: MakeServer, make_db: Callable[[], str]
) -> None:
    skew = Skew(make_db(), 0)
    server = await make_server(database_url=skew.url, partitions_ahead=1)
    server.node._clock.stepped = lambda by_ms: None
    skew.set(10 * DAY_S)
    await until_ready(server.node)


async def test_create_revoked_and_granted_again_leaves_the_node_ready(
    make_server: MakeServer, make_db: Callable[[], str]
) -> None:
    url = make_db()
    server = await make_server(database_url=url, partitions_ahead=1)
    alice = await server.connect("alice")
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute(REFUSE)
        for (name,) in admin.execute(
            "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'entries'::regclass"
        ).fetchall():
            admin.execute(f"DROP TABLE {name}")
        assert (await alice.say("bob"))["code"] == "unavailable"

        async def says_partitions() -> bool:
            return "partitions" in await server.node.readiness.problems()

        await until(says_partitions)
        await until(lambda: server.node.metrics.retention_failed)
        admin.execute("DROP EVENT TRIGGER no_tables")
    await until_ready(server.node)
    assert (await alice.say("carol"))["t"] == "ok"


async def test_no_error_ends_the_task(fresh_db: str, monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node(fresh_db)
    monkeypatch.setattr(partitions, "BACKOFF_S", 0.001)
    monkeypatch.setattr(partitions, "BACKOFF_MAX_S", 0.001)
    monkeypatch.setattr(partitions, "PASS_S_MIN", 0.0)
    errors: list[Exception] = [
        pg.lookup("XX001")("damaged"),
        pg.lookup("42P01")("no table"),
        pg.lookup("25006")("read-only"),
        pg.lookup("57P01")("shut down"),
        psycopg.ProgrammingError("the last operation gave no result"),
        psycopg.InterfaceError("closed"),
        OSError("no route"),
        TimeoutError(),
        ValueError("a value of another form"),
        AssertionError("nothing came"),
    ]
    over = asyncio.Event()

    async def once() -> None:
        if errors:
            raise errors.pop()
        over.set()

    monkeypatch.setattr(node.retention, "once", once)
    task = asyncio.create_task(node.retention.run())
    node.retention.wake()
    async with asyncio.timeout(10):
        await over.wait()
        await until(lambda: not node.retention._backoff_s)
    assert node.metrics.retention_failed == 10
    assert not task.done()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_server_that_hangs_does_not_hold_a_pass(
    own_postgres: OwnPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Node(own_postgres.conninfo)
    one = Retention._make

    async def make(self: Retention, conn: psycopg.AsyncConnection[object]) -> None:
        own_postgres.freeze()
        monkeypatch.setattr(partitions, "ANSWER_S", 0.1)
        await one(self, conn)

    monkeypatch.setattr(Retention, "_make", make)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(10):
            await node.once()
    monkeypatch.setattr(partitions, "CONNECT_S", 0.1)
    with pytest.raises(Outage):  # nor one that takes connections and says nothing
        async with asyncio.timeout(10):
            await node.once()


async def test_a_partition_is_made_where_the_log_is(fresh_db: str) -> None:
    """Whatever comes first in the search_path of who asks: in another schema the check did not see
    it, and each later call failed.
    """
    with connect(fresh_db) as db:
        db.execute("CREATE SCHEMA mine")
        db.execute("SET search_path = mine, public")
        for _ in range(2):
            db.execute("SELECT make_partition(clock_timestamp())")
        made = db.execute(
            "SELECT DISTINCT n.nspname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid JOIN pg_namespace n ON"
            " n.oid = c.relnamespace"
        ).fetchall()
    assert made == [("public",)]
