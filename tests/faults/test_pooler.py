"""PgBouncer before PostgreSQL: by session it works and `ok` is durable, whatever it does with
`options`; by transaction it is refused.
"""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from pydantic import SecretStr

from chatd.config import Settings
from chatd.errors import ChatdError
from chatd.ops.doctor import Finding, examine
from chatd.postgres import faults
from tests.faults.crowd import crowd_at, seed
from tests.faults.test_kills import FAST

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.fix_pgbouncer import MakeBouncer
    from tests.fix_process import MakeProcess, OwnPostgres
    from tests.fix_server import MakeServer

WAYS: list[dict[str, Any]] = [{}, {"ignore_startup_parameters": "options,extra_float_digits"}]


def off(conninfo: str) -> None:
    """The database says that a commit need not wait for the disk."""
    with psycopg.connect(conninfo, autocommit=True) as conn:
        conn.execute(f"ALTER DATABASE {conn.info.dbname} SET synchronous_commit = off")


async def findings(url: str) -> list[Finding]:
    made = Settings(data_dir=Path("/tmp"), database_url=SecretStr(url))
    return await asyncio.to_thread(examine, made)


@pytest.mark.parametrize("settings", WAYS, ids=["default", "ignores options"])
async def test_by_session_it_works_and_lanes_wait_for_the_disk(
    make_server: MakeServer, make_db: Callable[[], str], make_bouncer: MakeBouncer, settings: dict[str, Any]
) -> None:
    url = make_db()
    off(url)
    through = make_bouncer(url, **settings)
    if settings:  # an operator's own; the pooler drops them in silence
        through = make_conninfo(through, options="-c synchronous_commit=off")
    server = await make_server(database_url=through)
    alice, bob = await server.connect("alice"), await server.connect("bob")
    assert (await alice.say("bob", "naïve 🙂"))["t"] == "ok"
    assert (await bob.request("history", to="alice"))["entries"][0]["body"] == "naïve 🙂"
    for lane in server.node.store.lanes.all:
        assert lane._conn is not None
        cur = await lane._conn.execute(
            "SELECT current_setting('synchronous_commit'), current_setting('client_encoding')"
        )
        assert await cur.fetchone() == ("on", "UTF8")
    found = await findings(through)
    assert [f for f in found if f.bad] == []


@pytest.mark.parametrize("size", [1, 20])
async def test_by_transaction_serve_migrate_and_doctor_refuse(
    make_server: MakeServer, make_db: Callable[[], str], make_bouncer: MakeBouncer, size: int
) -> None:
    through = make_bouncer(make_db(), pool_mode="transaction", default_pool_size=size)
    with pytest.raises(ChatdError, match="pool by session"):
        await make_server(database_url=through)
    for words in (("serve", "--port", "0", "--admin-port", "-1"), ("migrate",)):
        done = await asyncio.to_thread(
            subprocess.run, [sys.executable, "-m", "chatd", *words, "--database-url", through],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 2, done.stderr
        assert faults.POOLER in done.stderr.strip().splitlines()[-1]
        assert "Traceback" not in done.stderr
    assert any(f.bad and "pool by session" in f.what for f in await findings(through))


@pytest.mark.parametrize("settings", WAYS, ids=["default", "ignores options"])
async def test_what_was_acked_through_it_outlives_kills_of_postgresql(
    own_postgres: OwnPostgres, make_process: MakeProcess, make_bouncer: MakeBouncer, settings: dict[str, Any]
) -> None:
    off(own_postgres.conninfo)
    rng = random.Random(seed())
    chatd = await make_process(
        database_url=make_bouncer(own_postgres.conninfo, server_login_retry=1, **settings), **FAST
    )
    async with crowd_at(chatd, rng) as crowd:
        for _ in range(2):
            await crowd.acks(rng.randint(20, 60))
            own_postgres.kill()
            await asyncio.to_thread(own_postgres.start)
            assert chatd.status is None, "chatd must outlive its database"
        await crowd.acks(20)
        await crowd.settle(own_postgres.conninfo)
        print(crowd.verify(own_postgres.conninfo))
