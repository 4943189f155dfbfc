"""The command `chatd`, as an operator types it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from chatd.auth import Keys, Verifier
from chatd.config import Settings
from tests.fix_server import Server


def chatd(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("CHATD_")}
    return subprocess.run([sys.executable, "-m", "chatd", *args], capture_output=True, text=True, timeout=60, check=False, env={**clean, **env})


def test_help_teaches_and_version_tells() -> None:
    help = chatd("--help")
    assert help.returncode == 0
    for word in ("serve", "config", "migrate", "token", "tail", "doctor", "epoch", "examples:"):
        assert word in help.stdout
    assert chatd("--version").stdout.startswith("chatd ")
    assert "--rate-messages" in chatd("serve", "--help").stdout


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("serve", "--port", "x"), "port"),
        (("serve", "--database-url", "mysql://x"), "database_url"),
        (("--config", "/nonexistent.toml"), "/nonexistent.toml"),
        (("serve", "--host", "0.0.0.0"), "--keys-file"),
        (("token", "a" * 65), "user id"),
        (("serve", "--keys-file", "/nonexistent.json"), "/nonexistent.json"),
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
    identity = Verifier(Keys.development(tmp_path), None, None, 5).verify(token, time.time())
    assert identity.user == "alice"


def test_migrate_says_what_it_does(empty_db: str) -> None:
    assert "would apply 0001_pre_log" in chatd("migrate", "--dry-run", "--database-url", empty_db).stdout
    assert "applied 0001_pre_log" in chatd("migrate", "--database-url", empty_db).stdout
    assert chatd("migrate", "--database-url", empty_db).stdout == "nothing to do\n"


def test_epoch_is_renewed_after_a_restore(fresh_db: str) -> None:
    first = chatd("epoch", "--database-url", fresh_db).stdout
    assert chatd("epoch", "--database-url", fresh_db).stdout == first
    renewed = chatd("epoch", "--renew", "--database-url", fresh_db)
    assert renewed.returncode == 0
    assert renewed.stdout != first


def test_doctor_tells_what_is_wrong_and_what_to_do(fresh_db: str, tmp_path: Path) -> None:
    healthy = chatd("doctor", "--database-url", fresh_db, "--data-dir", str(tmp_path))
    assert healthy.returncode == 0, healthy.stdout + healthy.stderr
    assert "ok    database" in healthy.stdout
    ill = chatd("doctor", "--database-url", "host=127.0.0.1 port=1 password=hidden", "--redis-url", "redis://:hidden@127.0.0.1:1/0")
    assert ill.returncode == 1
    assert "bad   database" in ill.stdout
    assert "bad   redis" in ill.stdout
    assert "hidden" not in ill.stdout + ill.stderr


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


def test_settings_have_a_default_for_everything() -> None:
    assert Settings().port == 8080
