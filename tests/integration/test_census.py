"""Two nodes over one database that do not hear each other say so; those that do, do not."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from chatd.config import Settings
from chatd.errors import SettingError
from chatd.ops.doctor import Finding, examine
from chatd.postgres import census, watch
from tests.until import until

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping, Sequence

    from tests.fix_redis import OwnRedis
    from tests.fix_server import MakeServer, Server

LOOK_S = 0.25  # instead of a second
LOOKS = 5  # over the grace


@pytest.fixture(autouse=True)
def looks_four_times_as_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """The grace is as many looks as it is in a node, and one more."""
    monkeypatch.setattr(census, "LOOK_S", LOOK_S)
    monkeypatch.setattr(census, "GRACE_S", (LOOKS - 1) * LOOK_S)
    monkeypatch.setattr(watch, "LOOK_S", LOOK_S)


async def unheard(server: Server, n: int) -> None:
    """Until so many are."""
    await until(lambda: server.node.metrics.gauges["nodes_unheard"][1]() == n)


async def looks(server: Server, n: int = LOOKS) -> None:
    """Until the node has looked so many times more."""
    census = server.node.census
    async with asyncio.timeout(30):
        for _ in range(n):
            census._looked.clear()
            await census._looked.wait()


def warnings(logs: Sequence[MutableMapping[str, Any]]) -> list[str]:
    return [str(entry["names"]) for entry in logs if entry["event"] == "nodes.unheard"]


async def nodes_finding(url: str, **settings: Any) -> Finding:
    made = Settings(data_dir=Path("/tmp"), database_url=SecretStr(url), **settings)  # nothing is written there
    return next(one for one in await asyncio.to_thread(examine, made) if one.about == "nodes")


async def test_two_nodes_whose_redis_url_was_forgotten_say_so_once_each(
    make_server: MakeServer, make_db: Callable[[], str]
) -> None:
    url = make_db()
    with capture_logs() as logs:
        first = await make_server(database_url=url, node_name="one")
        assert (await nodes_finding(url)).level == "ok"
        second = await make_server(database_url=url, node_name="two")
        await unheard(first, 1)
        await unheard(second, 1)
        await looks(second, 2)
        found = await nodes_finding(url)
        assert found.bad
        assert "one" in found.what
        assert "redis_url" in found.what
        assert [("one" in names, "two" in names) for names in sorted(warnings(logs))] == [
            (True, False),
            (False, True),
        ], "each names the other, once"
        await second.node.drain()
        await unheard(first, 0)


async def test_a_rolling_restart_of_a_lone_node_is_no_alarm(
    make_server: MakeServer, make_db: Callable[[], str]
) -> None:
    """The old one drains beside the new one, and takes its time."""
    url = make_db()
    with capture_logs() as logs:
        old = await make_server(database_url=url)
        await looks(old, 1)
        peer = await old.connect("alice")
        draining = asyncio.create_task(old.node.drain())
        new = await make_server(database_url=url)
        await looks(new)
        await peer.close()
        await draining
    assert warnings(logs) == []
    assert new.node.census.unheard == []


async def test_other_nodes_refuse_lets_a_second_one_not_start(
    make_server: MakeServer, make_db: Callable[[], str]
) -> None:
    url = make_db()
    first = await make_server(database_url=url, other_nodes="refuse")
    await looks(first, 1)
    with pytest.raises(SettingError, match="redis_url: 1 other node"):
        await make_server(database_url=url, other_nodes="refuse")
    assert (await first.connect("alice")).welcome["t"] == "welcome"


async def test_the_lock_comes_back_with_the_connection(make_server: MakeServer, make_db: Callable[[], str]) -> None:
    url = make_db()
    server = await make_server(database_url=url)
    await looks(server, 1)
    with psycopg.connect(url, autocommit=True) as conn:
        holder = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND classid = %s::bigint::oid"

        async def pid() -> int:
            row = await until(lambda: conn.execute(holder, (0x63686E64,)).fetchone())
            return int(row[0])

        before = await pid()
        conn.execute("SELECT pg_terminate_backend(%s, 1000)", (before,))
        assert await pid() != before


@pytest.mark.cluster
async def test_nodes_over_one_redis_are_no_alarm_and_another_prefix_is_one(
    make_server: MakeServer, make_db: Callable[[], str], own_redis: OwnRedis
) -> None:
    url = make_db()
    together: dict[str, Any] = {"database_url": url, "redis_url": own_redis.url, "lease_ms": 1_000}
    with capture_logs() as logs:
        first, second = await make_server(**together, node_name="one"), await make_server(**together, node_name="two")
        await looks(first)
        await looks(second, 1)
        assert warnings(logs) == []
        assert (await nodes_finding(url, redis_url=own_redis.url)).level == "ok"
        other = await make_server(**together, redis_prefix="other", node_name="three")
        for server, n in ((first, 1), (second, 1), (other, 2)):
            await unheard(server, n)
        found = await nodes_finding(url, redis_url=own_redis.url)
        assert found.bad
        assert "three" in found.what
