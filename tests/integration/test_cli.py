"""The command `chatd`, as an operator types it."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jwt
import psycopg
import pytest

from chatd.chat.auth import KeySet, Verifier
from chatd.config import Settings
from chatd.errors import SettingError
from chatd.postgres.watch import RESTAMP_ROWS
from tests.fix_process import MakeProcess
from tests.fix_server import MakeServer, Server


def chatd(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("CHATD_")}
    return subprocess.run(
        [sys.executable, "-m", "chatd", *args],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**clean, **env},
    )


def test_help_teaches_and_version_tells() -> None:
    help = chatd("--help")
    assert help.returncode == 0
    for word in (
        "serve",
        "config",
        "migrate",
        "token",
        "tail",
        "chat",
        "doctor",
        "nodes",
        "user",
        "epoch",
        "examples:",
    ):
        assert word in help.stdout
    assert chatd("--version").stdout.startswith("chatd ")
    assert "--rate-messages" in chatd("serve", "--help").stdout


@pytest.mark.parametrize("command", ["migrate", "token", "tail", "chat", "doctor", "nodes", "user", "epoch"])
def test_help_of_a_command_is_about_that_command(command: str) -> None:
    help = chatd(command, "--help").stdout
    assert "--rate-messages" not in help
    assert len(help.splitlines()) < 25
    assert "all settings of `chatd serve` are taken too" in " ".join(help.split())


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("serve", "--port", "x"), "port"),
        (("serve", "--database-url", "mysql://x"), "database_url"),
        (("--config", "/nonexistent.toml"), "/nonexistent.toml"),
        (("serve", "--host", "0.0.0.0"), "--keys-file"),
        (("token", "a" * 65), "user id"),
        (("token", "alice", "--ttl-s", "601", "--token-ttl-max-s", "600"), "token_ttl_max_s"),
        (("token", "alice", "--token-ttl-max-s", "-1"), "token_ttl_max_s"),
        (("serve", "--keys-file", "/nonexistent.json"), "/nonexistent.json"),
        (("serve", "--workers", "2", "--database-url", "postgresql://host/x"), "--redis-url"),
        (("epoch", "--data-dir", "/nonexistent"), "/nonexistent"),
    ],
)
def test_a_wrong_setting_is_one_line_and_exit_status_2(args: tuple[str, ...], says: str) -> None:
    result = chatd(*args)
    assert result.returncode == 2, result.stderr
    assert says in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert "Traceback" not in result.stderr


def test_config_prints_what_is_in_force_with_passwords_masked(tmp_path: Path) -> None:
    result = chatd("config", "--data-dir", str(tmp_path), CHATD_DATABASE_URL="postgresql://u:hidden@h/d")
    assert result.returncode == 0
    assert "hidden" not in result.stdout
    assert "database_url = postgresql://u:***@h/d    # CHATD_DATABASE_URL" in result.stdout


def test_token_is_one_that_the_server_takes(tmp_path: Path) -> None:
    token = chatd("token", "alice", "--data-dir", str(tmp_path)).stdout.strip()
    identity = Verifier(KeySet.development(tmp_path), None, None, 5).verify(token, time.time())
    assert identity.user == "alice"


@pytest.mark.parametrize(
    ("flags", "ttl_s"),
    [
        ((), 86_400),
        (("--ttl-s", "700000"), 700_000),
        (("--token-ttl-max-s", "600"), 600),
        (("--ttl-s", "600", "--token-ttl-max-s", "600"), 600),
        (("--ttl-s", "60", "--token-ttl-max-s", "600"), 60),
    ],
)
def test_token_is_valid_for_as_long_as_asked_and_never_longer_than_the_setting(
    tmp_path: Path, flags: tuple[str, ...], ttl_s: int
) -> None:
    token = chatd("token", "alice", "--data-dir", str(tmp_path), *flags).stdout.strip()
    claims = jwt.decode(token, options={"verify_signature": False})
    assert claims["exp"] - claims["iat"] == ttl_s


def test_doctor_says_how_long_tokens_may_be_valid(tmp_path: Path) -> None:
    keys = str(tmp_path / "keys.json")
    chatd("keys", "new", "--keys-file", keys)
    database = ("--database-url", "host=127.0.0.1 port=1")
    assert "token_ttl_max_s is not set" in chatd("doctor", "--keys-file", keys, *database).stdout
    assert (
        "over 600 s are refused" in chatd("doctor", "--keys-file", keys, "--token-ttl-max-s", "600", *database).stdout
    )


def test_migrate_says_what_it_does(empty_db: str) -> None:
    assert "would apply 0001_pre_log" in chatd("migrate", "--dry-run", "--database-url", empty_db).stdout
    assert "applied 0001_pre_log" in chatd("migrate", "--database-url", empty_db).stdout
    assert chatd("migrate", "--database-url", empty_db).stdout == "nothing to do\n"


def test_epoch_is_renewed_after_a_restore(fresh_db: str) -> None:
    first = chatd("epoch", "--database-url", fresh_db).stdout
    assert chatd("epoch", "--database-url", fresh_db).stdout == first
    with psycopg.connect(fresh_db, autocommit=True) as conn:
        # Of the old cluster
        conn.execute("INSERT INTO feed (xid, kind, data) VALUES ('900000000000', 0, '{1,1}'), ('3', 1, '{1,1,1,1,1}')")
        renewed = chatd("epoch", "--renew", "--database-url", fresh_db)
        assert renewed.returncode == 0
        assert renewed.stdout != first
        assert conn.execute("SELECT count(*) FROM feed").fetchone() == (0,)


FUTURE = """SELECT count(*) FROM (SELECT xid FROM conversations UNION ALL SELECT xid FROM cursors) r
    WHERE r.xid >= pg_snapshot_xmax(pg_current_snapshot())"""


def of_another_cluster(conn: psycopg.Connection[Any], conversations: int) -> None:
    """Rows as a dump brings them along: their transactions are ahead of this cluster's."""
    conn.execute(
        "INSERT INTO conversations (a, b, xid) SELECT 'a' || n, 'b' || n, '900000000000' FROM generate_series(1, %s) n",
        (conversations,),
    )
    conn.execute("INSERT INTO cursors (conv, xid) SELECT id, '900000000000' FROM conversations")


@pytest.mark.parametrize("rows", [0, 1, 2 * RESTAMP_ROWS, 2 * RESTAMP_ROWS + 1])
def test_rows_of_another_cluster_get_ids_of_this_one(fresh_db: str, rows: int) -> None:
    with psycopg.connect(fresh_db, autocommit=True) as conn:
        of_another_cluster(conn, rows)
        assert conn.execute(FUTURE).fetchone() == (2 * rows,)
        assert chatd("epoch", "--renew", "--database-url", fresh_db).returncode == 0
        assert conn.execute(FUTURE).fetchone() == (0,)
        assert conn.execute("SELECT restamp FROM meta").fetchone() == (None,)


def test_epoch_is_renewed_in_a_backup_that_has_no_feed_yet(fresh_db: str) -> None:
    with psycopg.connect(fresh_db, autocommit=True) as conn:
        conn.execute("DROP TABLE feed")
        conn.execute("ALTER TABLE meta DROP COLUMN restamp")
    renewed = chatd("epoch", "--renew", "--database-url", fresh_db)
    assert renewed.returncode == 0, renewed.stderr


def test_doctor_tells_what_is_wrong_and_what_to_do(fresh_db: str, tmp_path: Path) -> None:
    healthy = chatd("doctor", "--database-url", fresh_db, "--data-dir", str(tmp_path))
    assert healthy.returncode == 0, healthy.stdout + healthy.stderr
    assert "ok    database" in healthy.stdout
    ill = chatd(
        "doctor",
        "--database-url",
        "host=127.0.0.1 port=1 password=hidden",
        "--redis-url",
        "redis://:hidden@127.0.0.1:1/0",
    )
    assert ill.returncode == 1
    assert "bad   database" in ill.stdout
    assert "bad   redis" in ill.stdout
    assert "hidden" not in ill.stdout + ill.stderr


def test_a_tool_that_only_looks_leaves_no_database_behind(tmp_path: Path) -> None:
    doctor = chatd("doctor", "--data-dir", str(tmp_path / "new"))
    assert doctor.returncode == 0, doctor.stdout + doctor.stderr
    assert "which the first start makes" in doctor.stdout
    assert "ok    database: PostgreSQL 18" in doctor.stdout
    assert "would apply 0001_pre_log" in chatd("migrate", "--dry-run", "--data-dir", str(tmp_path / "new")).stdout
    assert "--data-dir" in chatd("epoch", "--data-dir", str(tmp_path / "new")).stderr
    assert not (tmp_path / "new").exists()


def test_doctor_tells_of_a_data_dir_that_cannot_be_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    doctor = chatd("doctor", "--data-dir", str(tmp_path / "file" / "data"))
    assert doctor.returncode == 1
    assert "bad   database" in doctor.stdout
    assert "--data-dir" in doctor.stdout


async def test_tools_work_beside_a_running_chatd_and_a_second_one_says_one_line(
    make_process: MakeProcess, tmp_path: Path
) -> None:
    running = await make_process()
    first = await asyncio.to_thread(chatd, "epoch", "--data-dir", str(tmp_path))
    assert (first.returncode, len(first.stdout.strip())) == (0, 32), first.stderr
    doctor = await asyncio.to_thread(chatd, "doctor", "--data-dir", str(tmp_path))
    assert doctor.returncode == 0, doctor.stdout
    assert "in use by a running chatd" in doctor.stdout
    assert (await asyncio.to_thread(chatd, "migrate", "--data-dir", str(tmp_path))).stdout == "nothing to do\n"
    second = await asyncio.to_thread(chatd, "serve", "--port", "0", "--admin-port", "-1", "--data-dir", str(tmp_path))
    assert second.returncode == 2
    assert len(second.stderr.splitlines()) == 1, second.stderr
    assert "another chatd" in second.stderr
    third = await asyncio.to_thread(chatd, "epoch", "--renew", "--data-dir", str(tmp_path))
    assert third.stdout != first.stdout
    assert "within a second" in third.stderr
    running.terminate()
    assert await running.ended() == 0
    assert (await asyncio.to_thread(chatd, "epoch", "--data-dir", str(tmp_path))).stdout == third.stdout


async def test_tail_says_what_it_waits_for_and_when_that_is_there(make_server: MakeServer, tmp_path: Path) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    args = ["tail", "alice", "--port", str(port), "--data-dir", str(tmp_path)]
    tail = await asyncio.create_subprocess_exec(sys.executable, "-m", "chatd", *args, stderr=subprocess.PIPE)
    assert tail.stderr is not None
    try:
        async with asyncio.timeout(20):
            assert b"Ctrl-C ends it" in await tail.stderr.readline()
            assert f"cannot connect to ws://127.0.0.1:{port}/ws".encode() in await tail.stderr.readline()
            await make_server(port=port)
            assert await tail.stderr.readline() == b"chatd: connected\n"
    finally:
        tail.terminate()
        await tail.wait()


async def test_tail_shows_messages_as_they_come(server: Server, tmp_path: Path) -> None:
    alice, bob = await server.connect("alice", "phone"), await server.connect("bob", watch=["alice"])
    await alice.say("bob")
    await bob.say("alice")
    await alice.close()
    while (await bob.push("presence"))["state"] != "offline":
        pass
    args = ["tail", "alice", "--url", server.url, "--data-dir", str(tmp_path)]
    tail = await asyncio.create_subprocess_exec(sys.executable, "-m", "chatd", *args, stdout=subprocess.PIPE)
    assert tail.stdout is not None
    try:
        assert (await bob.push("presence"))["state"] == "online"
        bodies: list[str] = []
        await bob.say("alice", "one \u202e")
        while not any("one" in line for line in bodies):
            bodies.append((await asyncio.wait_for(tail.stdout.readline(), 20)).decode())
        assert "bob" in bodies[-1]
        assert "\u202e" not in bodies[-1]
    finally:
        tail.terminate()
        await tail.wait()


async def test_a_host_that_this_machine_does_not_have_is_blamed_and_not_the_port(make_server: MakeServer) -> None:
    with pytest.raises(SettingError, match=r"^host: .*203\.0\.113\.9"):
        await make_server(host="203.0.113.9", allow_remote_dev=True)


def test_settings_have_a_default_for_everything() -> None:
    assert Settings().port == 8080
