"""PostgreSQL clusters of the test's own over TCP, with the wheel's programs: a primary and its
standby, restores, recoveries.

    Cluster         one folder and one port: `start`, `stop` (immediate: a crash), `copy_of` (pg_basebackup),
                    `promote`, `dump`, `recover_to`
    Pair            a primary and a standby, and one URL with both hosts: `lag`, `fail_over`, `old_primary_back`,
                    `rebuild`
    make_cluster    `make_cluster()`: a running one with chatd's schema; `make_cluster(is_new=True)`: of another
                    system identifier, and without it
    pair            a running Pair with chatd's schema

What a standby lacks is decided by `lag`: the process on the primary that sends it the log is
stopped (SIGSTOP) and killed with the primary. As with a slow link, what had been sent is there, and
nothing after it. Everything is stopped and removed at the end of the test, also if pytest is
killed.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeAlias

import psycopg
import pytest

from chatd.postgres import embedded, embedded_process
from chatd.postgres.migrate import migrate
from tests.ports import free_port
from tests.until import blocking_until

WAIT_S: Final = 30.0
DATABASE: Final = "chatd"
SETTINGS: Final = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "shared_buffers": "32MB",
    "wal_level": "replica",
    "wal_keep_size": "256MB",  # a backup for a second standby ends with a checkpoint, which drops what the first lacks
    "wal_init_zero": "off",
    "log_min_messages": "warning",
    "timezone": "UTC",
    "hot_standby": "on",
    "max_connections": "60",
}


class Cluster:
    """One folder of PostgreSQL, and the port that it always has."""

    def __init__(self, folder: Path, owner: pwd.struct_passwd | None) -> None:
        self.folder, self.port, self._owner = folder, free_port(), owner
        self.data, self.log_file, self.archive = folder / "data", folder / "log", folder / "archive"
        self.settings: dict[str, str] = {}
        self._server: subprocess.Popen[bytes] | None = None
        self._watcher: subprocess.Popen[bytes] | None = None
        self._stopped: int | None = None  # the sender of the log to the standby, held by SIGSTOP
        for path in (folder, self.data, self.archive):
            path.mkdir(mode=0o700)
            self._own(path)

    def _own(self, path: Path) -> None:
        if self._owner is not None:
            os.chown(path, self._owner.pw_uid, self._owner.pw_gid)

    def run(self, program: str, *arguments: object, within: str | None = None) -> str:
        """One of the wheel's programs, to its end; gives what it printed."""
        prefix = embedded_process.run_as_prefix(self._owner)
        command = [*prefix, str(embedded_process.binaries() / program), *map(str, arguments)]
        done = subprocess.run(
            command,
            cwd=self.folder,
            input=within,
            capture_output=True,
            text=True,
            env=embedded_process.environment(),
            check=False,
        )
        assert done.returncode == 0, f"{program}: {done.stderr[-2000:]}"
        return done.stdout

    # ---- how to connect --------------------------------------------------------------------------

    @property
    def url(self) -> str:
        return f"postgresql://{embedded.USER}@127.0.0.1:{self.port}/{DATABASE}"

    @contextlib.contextmanager
    def sql(self, dbname: str = DATABASE) -> Iterator[psycopg.Connection[Any]]:
        with psycopg.connect(self.url, dbname=dbname, autocommit=True, connect_timeout=5) as conn:
            yield conn

    def ask(self, statement: str, *values: object) -> Any:
        """One value."""
        with self.sql() as conn:
            row = conn.execute(statement, values).fetchone()
            return None if row is None else row[0]

    # ---- life ------------------------------------------------------------------------------------

    def init(self) -> None:
        self.run(
            "initdb",
            "-D",
            self.data,
            "-U",
            embedded.USER,
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C",
            "--no-sync",
            "--no-instructions",
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
        )

    def start(self, port: int | None = None) -> None:
        """Run it, and return once it takes connections.

        `port`: another one for once, where no node looks for it.
        """
        settings = {**SETTINGS, **self.settings, "port": str(port or self.port)}
        prefix = embedded_process.run_as_prefix(self._owner)
        command = [*prefix, str(embedded_process.binaries() / "postgres"), "-D", str(self.data)]
        with self.log_file.open("ab") as output:
            self._server = subprocess.Popen(
                [*command, *(f"--{name}={value}" for name, value in settings.items())],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env=embedded_process.environment(),
            )
        self._watcher = subprocess.Popen(
            ["/bin/sh", "-c", embedded._WATCHER, "chatd-watcher", str(self._server.pid), str(self.data)],
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.until(self._is_ready, "it takes connections")

    def _is_ready(self) -> bool:
        assert self._server is not None
        assert self._server.poll() is None, f"PostgreSQL ended:\n{self.said()}"
        with contextlib.suppress(FileNotFoundError, IndexError):
            return (self.data / "postmaster.pid").read_text().split()[-1] == "ready"
        return False

    def until(self, holds: Callable[[], Any], claim: str) -> None:
        blocking_until(holds, lambda: f"{claim}\n{self.said()}", WAIT_S)

    @property
    def runs(self) -> bool:
        return self._server is not None and self._server.poll() is None

    def stop(self) -> None:
        """An immediate shutdown: what a crash leaves. Idempotent."""
        if self._watcher is not None:
            self._watcher.kill()
            self._watcher.communicate()
            self._watcher = None
        server, self._server = self._server, None
        if server is None or server.poll() is not None:
            return
        server.send_signal(signal.SIGQUIT)
        if self._stopped is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._stopped, signal.SIGKILL)
            self._stopped = None
        server.wait(WAIT_S)

    def said(self, lines: int = 25) -> str:
        """The end of its log."""
        text = self.log_file.read_text(errors="replace") if self.log_file.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    # ---- replication, backups --------------------------------------------------------------------

    def clear(self) -> None:
        """Nothing of the data is left."""
        self.stop()
        shutil.rmtree(self.data)
        self.data.mkdir(mode=0o700)
        self._own(self.data)

    def backup_of(self, other: Cluster, *, is_standby: bool = False) -> None:
        """A base backup of a running one, in place of what was here."""
        self.clear()
        self.run(
            "pg_basebackup",
            "-d",
            other.url,
            "-D",
            self.data,
            "-c",
            "fast",
            "--no-sync",
            "-X",
            "stream",
            *["-R"] * is_standby,
        )

    def hold_sender(self) -> None:
        """What the standby has not got by now it never gets."""
        self._stopped = self.ask("SELECT pid FROM pg_stat_replication")
        assert self._stopped is not None, "no standby is connected"
        os.kill(self._stopped, signal.SIGSTOP)

    def promote(self) -> None:
        assert self.ask("SELECT pg_promote(true, 30)")

    def restore_dump(self, new: Cluster) -> None:
        """`pg_dump | psql` into the database of another cluster, made here."""
        with new.sql("postgres") as conn:
            conn.execute(f"CREATE DATABASE {DATABASE}")
        new.run("psql", "-q", "-v", "ON_ERROR_STOP=1", "-d", new.url, within=self.run("pg_dump", "-d", self.url))

    def keep_archive(self) -> None:
        """Before `start`: each finished segment of the log is kept."""
        self.settings |= {"archive_mode": "on", "archive_command": f"cp %p {self.archive}/%f"}

    def recover(self, other: Cluster, restore_point: str) -> None:
        """A base backup of `other` is here: go on from its archive until the restore point, and
        take writes then.
        """
        other.ask("SELECT pg_walfile_name(pg_switch_wal())")
        want = other.ask("SELECT pg_walfile_name(pg_current_wal_lsn() - 1)")
        other.until(
            lambda: other.ask("SELECT last_archived_wal >= %s FROM pg_stat_archiver", want), "the log is archived"
        )
        (self.data / "recovery.signal").touch()
        self._own(self.data / "recovery.signal")
        recovery = {
            "restore_command": f"cp {other.archive}/%f %p",
            "recovery_target_name": restore_point,
            "recovery_target_action": "promote",
        }
        kept, self.settings = self.settings, {**self.settings, **recovery}
        self.start()
        self.settings = kept
        self.until(lambda: self.ask("SELECT NOT pg_is_in_recovery()"), "the recovery is over")


class Pair:
    """`primary` and `standby` change places with each failover; `url` names both, always in the
    same order.
    """

    def __init__(self, primary: Cluster, standby: Cluster) -> None:
        self.primary, self.standby = primary, standby
        self.url = f"postgresql://{embedded.USER}@127.0.0.1:{primary.port},127.0.0.1:{standby.port}/{DATABASE}"

    def follow(self) -> None:
        """Make the standby from the primary, and return once it streams and has everything."""
        self.standby.backup_of(self.primary, is_standby=True)
        self.standby.start()
        self.caught_up()

    def caught_up(self) -> None:
        behind = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming' AND replay_lsn >= %s::pg_lsn"
        now = self.primary.ask("SELECT pg_current_wal_lsn()::text")
        self.primary.until(lambda: self.primary.ask(behind, now) == 1, "the standby has all")

    def lag(self) -> None:
        """From now on the standby gets nothing."""
        self.primary.hold_sender()

    def end_primary(self) -> None:
        """The primary crashes. What it had and the standby lacks is lost."""
        self.primary.stop()

    def promote(self) -> None:
        """The standby takes over; both change places."""
        self.standby.promote()
        self.primary, self.standby = self.standby, self.primary

    def fail_over(self) -> None:
        self.end_primary()
        self.promote()

    def old_primary_back(self) -> None:
        """It starts where it was, and takes writes: nobody has fenced it."""
        self.standby.start()

    @contextlib.contextmanager
    def old_log(self) -> Iterator[Cluster]:
        """The old primary, running where no node looks for it."""
        old, kept = self.standby, self.standby.port
        old.port = free_port()
        try:
            old.start()
            yield old
        finally:
            old.stop()
            old.port = kept


MakeCluster: TypeAlias = Callable[..., Cluster]


@pytest.fixture(scope="session")
def cluster_template() -> Iterator[Path]:
    """The folder of a cluster with chatd's schema, not running: a copy of it is faster to have than
    a new one.
    """
    owner = embedded_process.run_as(None)
    with tempfile.TemporaryDirectory(prefix="chatd-pair-") as place:
        cluster = Cluster(Path(place) / "template", owner)
        try:
            cluster.init()
            cluster.start()
            with cluster.sql("postgres") as conn:
                conn.execute(f"CREATE DATABASE {DATABASE}")
            migrate(cluster.url)
            with cluster.sql() as conn:
                conn.execute("CHECKPOINT")
        finally:
            cluster.stop()
        (cluster.data / "postmaster.pid").unlink(missing_ok=True)
        yield cluster.data


@pytest.fixture
def make_cluster(cluster_template: Path) -> Iterator[MakeCluster]:
    owner = embedded_process.run_as(None)
    clusters: list[Cluster] = []
    with tempfile.TemporaryDirectory(prefix="chatd-pair-") as place:

        def make(*, is_new: bool = False, runs: bool = True, archives: bool = False) -> Cluster:
            cluster = Cluster(Path(place) / f"c{len(clusters)}", owner)
            clusters.append(cluster)
            if archives:
                cluster.keep_archive()
            if is_new:
                cluster.init()
            else:
                shutil.rmtree(cluster.data)
                subprocess.run(["/bin/cp", "-a", str(cluster_template), str(cluster.data)], check=True)
            if runs:
                cluster.start()
            return cluster

        yield make
        for n, cluster in enumerate(clusters):
            cluster.stop()
            print(f"--- end of the log of PostgreSQL {n} on port {cluster.port} ---\n{cluster.said()}")


@pytest.fixture
def pair(make_cluster: MakeCluster) -> Pair:
    both = Pair(make_cluster(), make_cluster(runs=False))
    both.follow()
    return both
