"""`/readyz` says what is so, at once, in each way in which PostgreSQL or Redis can be away; the
metric follows.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import uuid
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from chatd.errors import CloseCode
from chatd.ops import admin, readiness
from chatd.postgres import watch
from chatd.server import Node
from tests.fix_server import MakeServer, Server
from tests.until import until

if TYPE_CHECKING:
    from tests.fix_process import OwnPostgres
    from tests.fix_redis import OwnRedis

FULL = "RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = '53100'"


async def get(node: Node, path: str) -> tuple[int, bytes]:
    reader, writer = await asyncio.open_connection("127.0.0.1", node.admin_port)
    writer.write(f"GET {path} HTTP/1.1\r\n\r\n".encode())
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    return int(head.split()[1]), body


async def ready(node: Node) -> tuple[int, dict[str, Any]]:
    status, body = await get(node, "/readyz")
    return status, json.loads(body)


async def until_it_says(node: Node, status: int, part: str, word: str) -> None:
    """It is so within a look of the watch or two."""

    async def says_so() -> bool:
        got, said = await ready(node)
        told = said.get("reasons" if status == 503 else "degraded", {})
        return got == status and (told.get(part, "").startswith(word) if part else not told)

    await until(says_so, f"/readyz says {status} {part} {word}")


def sql(server: OwnPostgres, *statements: str) -> None:
    with psycopg.connect(server.conninfo, autocommit=True) as conn:
        conn.execute("SET default_transaction_read_only = off")
        for statement in statements:
            conn.execute(statement)


def test_a_probe_is_answered_in_half_a_second() -> None:
    assert readiness.ASK_S < admin.READY_S < 0.5


async def test_a_full_disk_is_seen_by_who_asks_although_nobody_writes(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "SPILL", f"DO $$ BEGIN {FULL}; END $$")
    monkeypatch.setattr(watch, "DISK_S", 0.0)
    await until_it_says(server.node, 503, "database", "disk-full:")
    monkeypatch.setattr(watch, "SPILL", "SELECT 1")
    await until_it_says(server.node, 200, "", "")


@pytest.mark.cluster
async def test_readyz_is_right_whatever_is_away(
    own_postgres: OwnPostgres, own_redis: OwnRedis, make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await make_server(
        database_url=own_postgres.conninfo, redis_url=own_redis.url, lease_ms=1000, drain_ms=2000
    )
    node = server.node
    alice = await server.connect("alice")
    assert await ready(node) == (200, {"ready": True})
    assert b"chatd_ready 1.0\n" in (await get(node, "/metrics"))[1]

    own_redis.kill()
    await until_it_says(node, 200, "redis", "Redis is away")

    own_postgres.freeze()
    # At once, and not when the watch gives up
    assert (await ready(node))[1]["reasons"]["database"].startswith("timeout:")
    own_postgres.thaw()
    await until_it_says(node, 200, "redis", "")

    sql(own_postgres, "ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()")
    await until_it_says(node, 503, "database", "read-only:")
    assert b"chatd_ready 0.0\n" in (await get(node, "/metrics"))[1]
    sql(own_postgres, "ALTER SYSTEM RESET default_transaction_read_only", "SELECT pg_reload_conf()")
    await until_it_says(node, 200, "redis", "")

    await full_and_free_again(own_postgres, server, monkeypatch)

    own_postgres.kill()
    await until_it_says(node, 503, "database", "away:")
    own_postgres.start()
    await until_it_says(node, 200, "redis", "")

    drain = asyncio.create_task(node.drain())
    await asyncio.sleep(0)
    assert "draining" in (await ready(node))[1]["reasons"]
    assert await alice.closed() == CloseCode.RESTART
    await drain


async def full_and_free_again(own_postgres: OwnPostgres, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full, by the error that PostgreSQL gives for it: to who writes, and to the
    watch.
    """
    bob = await server.connect("bob")
    await bob.say("alice")
    monkeypatch.setattr(watch, "SPILL", f"DO $$ BEGIN {FULL}; END $$")
    monkeypatch.setattr(watch, "DISK_S", 0.0)
    sql(
        own_postgres,
        f"CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {FULL}; END $$",
        "CREATE TRIGGER full_disk BEFORE UPDATE ON conversations FOR EACH ROW EXECUTE FUNCTION full_disk()",
    )
    cid = str(uuid.uuid4())
    assert (await bob.say("alice", cid=cid))["code"] == "unavailable"
    assert (await ready(server.node))[1]["reasons"]["database"].startswith("disk-full:")
    await server.node.store.watch.answers(10)
    assert server.node.store.health.parts["disk"].kind == "disk-full"  # so it stays, although nobody writes
    sql(own_postgres, "DROP TRIGGER full_disk ON conversations")
    monkeypatch.undo()
    await bob.insist("alice", cid=cid)
    await until_it_says(server.node, 200, "redis", "")


def test_a_probe_that_left_is_no_error() -> None:
    """Under uvloop, whose transport raises RuntimeError where asyncio's is silent."""
    uvloop = pytest.importorskip("uvloop")
    from structlog.testing import capture_logs

    from chatd.metrics import Metrics

    async def run() -> None:
        left = asyncio.Event()

        async def slow() -> dict[str, str]:
            await left.wait()
            await asyncio.sleep(0.05)  # its end has come in
            return {}

        port = admin.Admin(Metrics(), slow)
        where = await port.start("127.0.0.1", 0)
        for reset in (True, False):
            left.clear()
            _, writer = await asyncio.open_connection("127.0.0.1", where)
            writer.write(b"GET /readyz HTTP/1.1\r\n\r\n")
            await writer.drain()
            await until(lambda: port._tasks)
            (task,) = port._tasks
            if reset:
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
            left.set()
            await asyncio.wait([task])
        await port.stop()

    with capture_logs() as lines:
        uvloop.run(run())
    assert lines == []
