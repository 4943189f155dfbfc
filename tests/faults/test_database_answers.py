"""A database that answers otherwise: another encoding, a role whose settings or rights are not
chatd's, rows and schemas that were moved by hand.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from pydantic import SecretStr
from structlog.testing import capture_logs

from chatd.config import Settings
from chatd.errors import Refused
from chatd.ids import UserId
from chatd.ops.doctor import examine
from chatd.postgres import connection, watch
from chatd.postgres.health import Health
from chatd.postgres.migrate import migrate
from chatd.server import Node
from tests.fix_server import Server, until_ready
from tests.until import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from chatd.postgres.embedded import Embedded
    from tests.fix_process import OwnPostgres
    from tests.fix_server import MakeServer

TEXT = "naïve – Привет 🙂"
_numbers = itertools.count(1)


def admin(conninfo: str) -> psycopg.Connection[Any]:
    return psycopg.connect(conninfo, autocommit=True)


@pytest.fixture
def make_encoded(postgres: Embedded) -> Iterator[Callable[[str], str]]:
    """A database of another encoding."""
    made: list[str] = []

    def make(encoding: str) -> str:
        made.append(f"encoded_{next(_numbers)}")
        with admin(make_conninfo(postgres.conninfo, dbname="postgres")) as conn:
            conn.execute(
                f"CREATE DATABASE {made[-1]} ENCODING '{encoding}' LOCALE_PROVIDER libc LOCALE 'C' TEMPLATE template0"
            )
        return make_conninfo(postgres.conninfo, dbname=made[-1])

    yield make
    with admin(make_conninfo(postgres.conninfo, dbname="postgres")) as conn:
        for name in made:
            conn.execute(f"DROP DATABASE {name} WITH (FORCE)")


async def text_is_right(server: Server) -> None:
    alice, bob = await server.connect("alice"), await server.connect("bob")
    assert (await alice.say("bob", TEXT))["t"] == "ok"
    assert (await bob.push("entry"))["body"] == TEXT
    assert (await bob.request("history", to="alice"))["entries"][-1]["body"] == TEXT
    again = await server.connect("bob", "other", cursors={str(next(iter(server.node.registry.convs))): 0})
    assert (await again.push("entry"))["body"] == TEXT, "a resync"


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
async def test_a_database_of_another_encoding_is_refused_in_one_sentence(
    make_encoded: Callable[[str], str], encoding: str
) -> None:
    url = make_encoded(encoding)
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "chatd", "serve", "--database-url", url, "--port", "0", "--admin-port", "-1"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert f"encoding is {encoding}" in last
    assert "ENCODING 'UTF8'" in last
    assert "Traceback" not in done.stderr
    migrated = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "chatd", "migrate", "--database-url", url],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (migrated.returncode, f"encoding is {encoding}" in migrated.stderr) == (2, True), migrated.stderr
    with admin(url) as conn:
        assert conn.execute("SELECT count(*) FROM pg_class WHERE relname = 'conversations'").fetchone() == (0,), (
            "nothing was made in it"
        )
    found = await asyncio.to_thread(examine, Settings(data_dir=Path("/tmp"), database_url=SecretStr(url)))
    assert any(f.bad and encoding in f.what for f in found)


async def test_a_database_whose_client_encoding_is_latin1_keeps_texts_right(
    make_server: MakeServer, make_db: Callable[[], str]
) -> None:
    url = make_db()
    with admin(url) as conn:
        conn.execute(f"ALTER DATABASE {conn.info.dbname} SET client_encoding = 'LATIN1'")
    await text_is_right(await make_server(database_url=url))


async def test_pgclientencoding_changes_nothing(
    make_server: MakeServer, make_db: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environ, "PGCLIENTENCODING", "LATIN1")
    url = make_db()
    await text_is_right(await make_server(database_url=url))
    found = await asyncio.to_thread(examine, Settings(data_dir=Path("/tmp"), database_url=SecretStr(url)))
    assert [f for f in found if f.bad] == []


@pytest.fixture
def role_db(empty_db: str) -> Iterator[tuple[str, str]]:
    """(as the superuser, as a role that owns the schema's tables)."""
    name = f"role_{next(_numbers)}"
    with admin(empty_db) as conn:
        conn.execute(f"CREATE ROLE {name} LOGIN")
        conn.execute(f"GRANT CREATE ON DATABASE {conn.info.dbname} TO {name}")
        conn.execute(f"GRANT ALL ON SCHEMA public TO {name}")
    theirs = make_conninfo(empty_db, user=name)
    migrate(theirs)
    yield empty_db, theirs
    with admin(empty_db) as conn:
        conn.execute(f"DROP OWNED BY {name}")
        conn.execute(f"DROP ROLE {name}")


@pytest.mark.parametrize(
    ("breaks", "mends"),
    [
        ("ALTER SCHEMA public RENAME TO moved", "ALTER SCHEMA moved RENAME TO public"),
        ("ALTER TABLE cursors RENAME TO gone", "ALTER TABLE gone RENAME TO cursors"),
        ("ALTER TABLE conversations OWNER TO CURRENT_USER", "ALTER TABLE conversations OWNER TO {role}"),
        ("ALTER TABLE meta OWNER TO CURRENT_USER", "ALTER TABLE meta OWNER TO {role}"),
        ("REVOKE ALL ON SCHEMA public FROM {role}", "GRANT ALL ON SCHEMA public TO {role}"),
        ("ALTER ROLE {role} NOLOGIN", "ALTER ROLE {role} LOGIN"),
        ("ALTER ROLE {role} SET search_path = nowhere", "ALTER ROLE {role} RESET search_path"),
    ],
)
async def test_a_schema_moved_and_a_right_taken_are_an_outage_of_one_line(
    make_server: MakeServer, role_db: tuple[str, str], breaks: str, mends: str
) -> None:
    owner, theirs = role_db
    role = psycopg.conninfo.conninfo_to_dict(theirs)["user"]
    server = await make_server(
        database_url=theirs, cursor_flush_ms=50, frames_per_s=10_000, frames_burst=10_000, rate_messages=1_000
    )
    alice, bob = await server.connect("alice"), await server.connect("bob")
    sent = await alice.say("bob")
    assert (await bob.push("entry"))["seq"] == 1
    cut = "SELECT pg_terminate_backend(pid, 1000) FROM pg_stat_activity WHERE usename = %s"
    with admin(owner) as conn, capture_logs() as logs:
        conn.execute(breaks.format(role=role))
        if "ROLE" in breaks or "SCHEMA" in breaks:  # what those mean comes to those who connect
            conn.execute(cut, (role,))
        await bob.request("read", c=sent["c"], upto=1)
        answer = await alice.say("somebody")
        assert answer["t"] == "ok" or answer["code"] == "unavailable", answer

        async def reason() -> str | None:
            said = await server.node.readiness.problems()
            if "database" not in said and "TABLE" in breaks:  # the watch does not look at those
                await alice.say("bob", cid=str(uuid.uuid4()))
                await bob.request("conversations")
            return said.get("database")

        assert await until(reason, pause_s=0.05)
        conn.execute(mends.format(role=role))
        if "search_path" in breaks:
            conn.execute(cut, (role,))
    assert not server.node.tasks.failed.done()
    errors = [entry for entry in logs if entry["log_level"] in ("error", "critical")]
    assert len(errors) <= 2, errors
    await alice.request("skip", to="bob")
    await alice.insist("carol")
    await until_ready(server.node)
    assert (await bob.request("history", to="alice"))["t"] == "ok"
    assert bob.ws.close_code is None


@pytest.mark.parametrize(("setting", "value"), [("idle_session_timeout", "5s"), ("transaction_timeout", "5s")])
async def test_no_time_limit_of_the_role_ends_a_session(role_db: tuple[str, str], setting: str, value: str) -> None:
    """Each message after a quiet spell was of unknown outcome."""
    owner, theirs = role_db
    with admin(owner) as conn:
        if conn.info.server_version < connection.NEWER.get(setting, ("", 0))[1]:
            pytest.skip("this PostgreSQL does not have it")
        conn.execute(f"ALTER ROLE {psycopg.conninfo.conninfo_to_dict(theirs)['user']} SET {setting} = '{value}'")
    session = await connection.Opener(theirs).open("test", connection.READ, 5.0, compare=False)
    cur = await session.execute(f"SELECT current_setting('{setting}')")
    assert await cur.fetchone() == ("0",)
    await connection.close(session)


async def test_a_column_of_another_type_is_no_outage(make_server: MakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions keep plans for the type of before: each statement over them failed until the node
    was started anew.
    """
    monkeypatch.setattr(connection, "RENEW_S", 0.0)
    server = await make_server(pool_max=1)
    alice = await server.connect("alice")
    sent = await alice.say("bob")
    assert (await alice.request("edit", to="bob", cid=str(uuid.uuid4()), ref=sent["seq"], body="1"))["t"] == "ok"
    assert (await alice.request("conversations"))["t"] == "ok"
    with admin(server.node.store.opener._conninfo) as conn:
        conn.execute("ALTER TABLE conversations ALTER a TYPE varchar(64), ALTER b TYPE varchar(64)")
    assert (await alice.request("edit", to="bob", cid=str(uuid.uuid4()), ref=sent["seq"], body="2"))["t"] == "ok"
    assert (await alice.request("conversations"))["t"] == "ok"
    assert not await server.node.readiness.problems()


async def test_a_query_that_fails_beside_others_is_one_outage(
    make_server: MakeServer, role_db: tuple[str, str]
) -> None:
    """Each of the others was the end of it, and the next failure another one."""
    owner, theirs = role_db
    server = await make_server(database_url=theirs, cursor_flush_ms=1_000)
    alice, store = await server.connect("alice"), server.node.store
    await store.flush()
    with admin(owner) as conn, capture_logs() as logs:
        conn.execute("ALTER TABLE users OWNER TO CURRENT_USER")
        for n in range(3):
            store.user_seen(UserId("alice"), n)
            with pytest.raises(Refused):
                await store.flush()
            assert (await alice.request("conversations"))["t"] == "ok"
            assert "no-right" in (await server.node.readiness.problems())["database"]
        conn.execute(f"ALTER TABLE users OWNER TO {psycopg.conninfo.conninfo_to_dict(theirs)['user']}")
        with contextlib.suppress(Refused):  # that of a regular flush that was under way
            await store.flush()
        await store.flush()
        assert not await server.node.readiness.problems()
    assert [entry["event"] for entry in logs if entry["event"].startswith("database.")] == [
        "database.outage",
        "database.back",
    ]


async def test_rows_that_a_policy_hides_are_an_outage(make_server: MakeServer, role_db: tuple[str, str]) -> None:
    """History was empty, in silence."""
    owner, theirs = role_db
    server = await make_server(database_url=theirs)
    alice = await server.connect("alice")
    await alice.say("bob")
    with admin(owner) as conn:
        conn.execute("ALTER TABLE entries ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY")
        conn.execute("CREATE POLICY writes ON entries FOR INSERT WITH CHECK (true)")
    assert (await alice.request("history", to="bob"))["code"] == "unavailable"
    assert "row-level security" in (await server.node.readiness.problems())["database"]


async def test_a_host_that_hangs_keeps_the_watch_from_no_other(
    postgres: Embedded, fresh_db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine of the old primary hangs; it was asked first, for longer than the watch waited,
    and so without end.
    """
    monkeypatch.setattr(watch, "DEADLINE_S", 1.0)
    place = psycopg.conninfo.conninfo_to_dict(fresh_db)
    with socket.create_server(("127.0.0.1", 0)) as hangs:  # it takes connections, and never answers
        hung = hangs.getsockname()[1]
        opener = connection.Opener(
            make_conninfo(fresh_db, host=f"127.0.0.1,{place['host']}", port=f"{hung},5432", connect_timeout=2)
        )
        looks = watch.DatabaseWatch(
            opener, Health(time.monotonic), moved=lambda fall: None, held=dict, acked=dict, latest=lambda: None
        )
        await looks.start()
        await looks.close()
        after = psycopg.conninfo.conninfo_to_dict(opener.conninfo("test", 1.0))
        assert after["port"] == f"5432,{hung}", "and it is asked last from now on"


async def test_a_node_started_on_a_hot_standby_waits_and_says_why(own_postgres: OwnPostgres, tmp_path: Path) -> None:
    """The cluster is started again as a standby of nobody, and promoted."""
    migrate(own_postgres.conninfo)
    await asyncio.to_thread(own_postgres.stop)
    signal = own_postgres.cluster / "standby.signal"
    signal.touch()
    os.chown(signal, own_postgres.cluster.stat().st_uid, own_postgres.cluster.stat().st_gid)
    conninfo = await asyncio.to_thread(own_postgres.start)
    node = Node(Settings(data_dir=tmp_path, port=0, admin_port=0, database_url=SecretStr(conninfo)))
    starting = asyncio.create_task(node.start())
    try:

        async def says_standby() -> bool:
            assert not starting.done(), starting
            return bool(node.admin_port) and "standby" in str(await node.readiness.problems())

        await until(says_standby)
        found = await asyncio.to_thread(examine, Settings(data_dir=tmp_path, database_url=SecretStr(conninfo)))
        assert any(f.bad and "standby" in f.what for f in found)
        with admin(conninfo) as conn:
            assert conn.execute("SELECT pg_promote()").fetchone() == (True,)
        async with asyncio.timeout(30):
            await starting
            await until_ready(node)
        server = Server(node)
        alice = await server.connect("alice")
        assert (await alice.say("bob"))["t"] == "ok"
        await server.stop()
    finally:
        starting.cancel()
        await node.stop()
