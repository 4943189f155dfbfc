"""A URL with several servers, as a failover is prepared: what is said where none of them, or more
than one, takes writes.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from pydantic import SecretStr

from chatd.cli import main
from chatd.config import Settings
from chatd.ops.doctor import Finding, examine
from chatd.postgres import faults, hosts
from chatd.server import Node
from tests.until import until

if TYPE_CHECKING:
    from tests.fix_failover import Pair

EPOCH = "SELECT epoch FROM meta"


async def bad(settings: Settings) -> list[Finding]:
    return [found for found in await asyncio.to_thread(examine, settings) if found.bad]


def test_each_server_of_a_url_stands_alone() -> None:
    for url, expected in (
        ("postgresql://a,b:5433/db?target_session_attrs=primary", ["a:5432", "b:5433"]),
        ("host=a,b port=6000", ["a:6000", "b:6000"]),
        ("hostaddr=10.0.0.1,10.0.0.2", ["10.0.0.1:5432", "10.0.0.2:5432"]),
        ("postgresql://a/db", ["a:5432"]),
        ("dbname=db", ["local:5432"]),
    ):
        found = hosts.each(url)
        assert list(found) == expected
        assert all("," not in str(value) for alone in found.values() for value in conninfo_to_dict(alone).values())


def test_the_page_tells_each_kind_and_what_to_do() -> None:
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    rows = [line.split("|")[1] for line in page.partition("| kind |")[2].partition("\n\n")[0].splitlines()[2:]]
    told = {kind.strip(" `") for row in rows for kind in row.split(",")}
    assert told == {*faults.KINDS.values(), "standby", "old-primary", "settings", "encoding", "other"}


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (TimeoutError(), "timeout", "SyncRep"),
        (psycopg.OperationalError("to a: refused\nto b: server is in hot standby mode"), "standby", "promote"),
        (psycopg.OperationalError("to a: refused"), "away", "refused"),
    ],
)
def test_an_error_without_a_code_has_a_reason_that_helps(error: Exception, kind: str, says: str) -> None:
    assert faults.kind(error) == faults.outage(error, is_unknown=True).kind == kind
    assert says in faults.sentence(error)
    assert "\n" not in faults.sentence(error)


async def test_none_and_two_that_take_writes_are_told(
    pair: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Between the end of a primary and the promotion of its standby a node that started ended with
    exit status 1; later the old primary is back.
    """
    pair.end_primary()
    settings = Settings(data_dir=tmp_path, port=0, admin_port=0, database_url=SecretStr(pair.url))
    node = Node(settings)
    starting = asyncio.create_task(node.start())
    try:

        async def says_standby() -> bool:
            assert not starting.done(), starting
            return bool(node.admin_port) and "standby: " in str(await node.readiness.problems())

        await until(says_standby)
        assert [(found.about, found.what) for found in await bad(settings)] == [("database", faults.NO_PRIMARY)]
        await asyncio.to_thread(pair.promote)
        async with asyncio.timeout(30):
            await starting
    finally:
        starting.cancel()
        await node.stop()
    await asyncio.to_thread(pair.old_primary_back)
    await two_are_told(pair, settings, capsys)


async def two_are_told(pair: Pair, settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    """No epoch is renewed by guess: the first server of the URL was asked, which is the old
    primary.
    """
    ports = [f"127.0.0.1:{cluster.port}" for cluster in (pair.standby, pair.primary)]
    assert hosts.primaries(pair.url) == ports
    assert [found.about for found in await bad(settings)] == ["servers"]
    before = [cluster.ask(EPOCH) for cluster in (pair.standby, pair.primary)]
    assert await asyncio.to_thread(main, ["epoch", "--renew", "--database-url", pair.url]) == 2
    said = capsys.readouterr().err
    assert all(port in said for port in ports)
    assert [cluster.ask(EPOCH) for cluster in (pair.standby, pair.primary)] == before
    assert await asyncio.to_thread(main, ["epoch", "--renew", "--database-url", hosts.each(pair.url)[ports[1]]]) == 0
    assert pair.primary.ask(EPOCH) != before[1]
    assert pair.standby.ask(EPOCH) == before[0]
