"""The server that is measured: a chatd of its own on a fresh embedded PostgreSQL, or one that runs already (--url).

An own one is a process of its own, with the limits on rates lifted by settings and nothing else changed; `--set name=value` changes more.
Its folder goes at the end. CPU and memory are known for an own one only.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from bench import procs
from bench.procs import Cpu
from chatd.auth import Keys, issue
from chatd.ids import UserId

READY_S_MAX: Final = 60.0
STOP_S_MAX: Final = 30.0
TOKEN_TTL_S: Final = 86_400.0

LIFTED: Final[dict[str, object]] = {
    "rate_messages": 10_000, "rate_per_ms": 10, "frames_per_s": 1_000_000, "frames_burst": 1_000_000, "new_conversations_per_hour": 10_000,
    "unauthenticated_max": 100_000, "connections_per_address_max": 100_000,
}  # fmt: skip


class TargetError(Exception):
    """The server did not do what a measurement needs; the text says what to do."""


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", help="measure a running server (ws://host:port/ws) instead of one of our own; its limits must be lifted by you")
    parser.add_argument("--keys-file", type=Path, metavar="FILE", help="with --url: the keys to make tokens with")
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="with --url: make tokens with the development key in there")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of our own server")


class Target:
    """Make it with `own` or `running`; `async with` starts and stops it."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.own: bool = options.url is None
        self.settings: dict[str, object] = dict(LIFTED) if self.own else {}
        self.settings.update(pair.split("=", 1) for pair in options.set)
        self.host, self.port, self.path = "127.0.0.1", 0, "/ws"
        self.folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._keys: Keys | None = None
        if not self.own:
            url = urlsplit(options.url)
            if url.scheme != "ws" or url.hostname is None:
                raise TargetError(f"--url: {options.url} is not ws://host:port/ws; the bench speaks no TLS")
            if (options.keys_file is None) == (options.data_dir is None):
                raise TargetError("--url: give --keys-file or --data-dir too, to make tokens with")
            self.host, self.port, self.path = url.hostname, url.port or 80, url.path or "/"
            self._keys = Keys.load(options.keys_file) if options.keys_file is not None else Keys.development(options.data_dir)

    def token(self, user: str) -> str:
        assert self._keys is not None
        return issue(self._keys, UserId(user), TOKEN_TTL_S, time.time(), None, None)

    # ---- life -----------------------------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Target:
        if self.own:
            try:
                await self._start()
            except BaseException:
                await self.__aexit__()
                raise
        return self

    async def __aexit__(self, *_: object) -> None:
        process = self._process
        if process is not None and process.poll() is None:
            process.terminate()
            try:
                await asyncio.to_thread(process.wait, STOP_S_MAX)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    async def _start(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="chatd-bench-"))
        log_file = self.folder / "chatd.log"
        settings = {"data_dir": self.folder / "data", "port": 0, "admin_port": -1, "log_level": "warning", **self.settings}
        environment = {name: value for name, value in os.environ.items() if not name.startswith("CHATD_")}
        with log_file.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "chatd", "serve", *(f"--{name.replace('_', '-')}={value}" for name, value in settings.items())],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment,
            )  # fmt: skip
        until = time.monotonic() + READY_S_MAX
        while (ready := re.search(r"open http://127\.0\.0\.1:(\d+)/", said := log_file.read_text())) is None:
            if self._process.poll() is not None or time.monotonic() > until:
                raise TargetError(f"chatd did not start, status {self._process.poll()}; it said:\n{said[-2000:]}")
            await asyncio.sleep(0.05)
        self.port = int(ready[1])
        self._keys = Keys.development(self.folder / "data")

    def check(self) -> None:
        """Raises TargetError if our server has ended."""
        if self._process is not None and self._process.poll() is not None:
            assert self.folder is not None
            raise TargetError(f"chatd ended with status {self._process.poll()}; it said:\n{(self.folder / 'chatd.log').read_text()[-2000:]}")

    @property
    def complaints(self) -> int:
        """Lines of the server's log: at level warning, a good run has the one of its start."""
        return 0 if self.folder is None else sum(1 for line in (self.folder / "chatd.log").open() if line.startswith("{"))

    # ---- what it costs ----------------------------------------------------------------------------------------------------------------

    def _trees(self) -> tuple[set[int], set[int]]:
        """Processes of chatd, and of its PostgreSQL."""
        if self._process is None or self.folder is None:
            return set(), set()
        postmaster = 0
        with contextlib.suppress(OSError, ValueError):
            postmaster = int((self.folder / "data" / "postgres" / "postmaster.pid").read_text().split()[0])
        postgres = procs.tree(postmaster) if postmaster else set()
        return procs.tree(self._process.pid, but=[postmaster]) - postgres, postgres

    def cpu(self) -> Cpu:
        server, postgres = self._trees()
        return Cpu(procs.cpu_s(server), procs.cpu_s(postgres), procs.cpu_s([os.getpid()]), procs.machine_s())

    def memory_kib(self) -> tuple[int, int]:
        """(PSS, RSS) of the server without PostgreSQL."""
        return procs.memory_kib(self._trees()[0])
