"""Brings a database up to this release: numbered SQL files, each applied once, and the functions.

    sql/migrations/0007_pre_receipts.sql     expand: the release before still works on it;
                                             `chatd serve` applies it at start
    sql/functions/append.sql                 applied after the `pre` files, whenever it differs
                                             (chatd/postgres/functions.py)
    sql/migrations/0008_post_receipts.sql    contract: removes what only the release before needs;
                                             `chatd migrate --post`, once every node runs it

Files are applied in the order of their numbers. A pending `post` of an earlier release before a
pending `pre` is an error that names the remedy. An empty database gets all files, as no older node
uses it. A database with a `post` that this release does not know belongs to a newer one, and is
refused; an unknown `pre` is of a newer release that runs beside this one.

Any number of nodes may start at once. One migrates under a session's advisory lock. The others poll
for the lock: a statement that blocks holds a snapshot, for which CREATE INDEX CONCURRENTLY would
wait. If the migrating node dies, the lock goes with its connection.

A file is one transaction together with the row that records it. A file that begins with
`-- transactional: false` is not: each of its statements ends a line with `;`, and the file is
written so that it can be repeated. A lock that is not granted within `LOCK_TIMEOUT` is given up and
tried again: the traffic of running nodes would queue behind the request.

The rows are those of yoyo-migrations, which earlier releases used: those must see what this one has
applied (docs/decisions/0043). No message holds a password: libpq's errors name host, user and
database.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import psycopg
import structlog
from psycopg import errors as pg

from chatd.errors import ChatdError, SettingError
from chatd.postgres import functions
from chatd.postgres.connection import Opener, check_encoding
from chatd.postgres.faults import Outage
from chatd.postgres.queries import folder as sql_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Session = psycopg.Connection[Any]

log = structlog.get_logger("migrate")

WAIT_S_MAX: Final = 600.0  # wait for another node that migrates
POLL_S: Final = 0.1
DEADLINE_S: Final = 60.0  # tcp_user_timeout of the connection; statements may take longer
LOCK_TIMEOUT: Final = "3s"
LOCK_TRIES_MAX: Final = 20
LOCK_KEY: Final = 0x63686174645F6D67  # "chatd_mg"

BOOKS: Final = "_yoyo_migration"  # as yoyo-migrations 9 makes it; migration_hash: SHA-256 of the id
MAKE_BOOKS: Final = """CREATE TABLE IF NOT EXISTS _yoyo_migration (
    migration_hash varchar(64) PRIMARY KEY, migration_id varchar(255), applied_at_utc timestamp
)"""
MARK: Final = "INSERT INTO _yoyo_migration VALUES (%s, %s, clock_timestamp() AT TIME ZONE 'UTC')"
NOT_TRANSACTIONAL: Final = "-- transactional: false\n"


class Migration(NamedTuple):
    """A file of sql/migrations: NNNN_pre|post_what."""

    name: str
    text: str

    @property
    def is_post(self) -> bool:
        return is_post(self.name)

    def run(self, conn: Session) -> None:
        if not self.text.startswith(NOT_TRANSACTIONAL):
            with conn.transaction():
                conn.execute(self.text.encode())
                self._mark(conn)
            return
        for statement in re.split(r";[ \t]*\n", self.text):
            conn.execute(statement.encode())
        with conn.transaction():  # after a crash before this the file runs again
            self._mark(conn)

    def _mark(self, conn: Session) -> None:
        conn.execute(MAKE_BOOKS)
        conn.execute(MARK, (hashlib.sha256(self.name.encode()).hexdigest(), self.name))


def is_post(name: str) -> bool:
    """Whether it is applied by `chatd migrate --post` only."""
    return name.partition("_")[2].startswith("post_")


def migrate(conninfo: str, *, post: bool = False, folder: Path | None = None) -> list[str]:
    """Apply what is pending, `post` files too if `post`. Blocks.

    `folder`: a tree of SQL files to use in place of this release's. Gives the names of what was
    applied, functions as `functions/NAME`. Raises SettingError; ChatdError if no server answers.
    """
    applied: list[str] = []
    with _connect(conninfo) as conn, _lock(conn):
        first, last = _at_functions(_choose(_migrations(folder), _done(conn), post))
        for migration in first:
            applied += _apply(conn, [migration.name], migration.run)
        if stale := functions.compare(conn, functions.read(folder)).stale:
            applied += _apply(conn, [_name(each) for each in stale], lambda conn: functions.apply(conn, stale))
        for migration in last:
            applied += _apply(conn, [migration.name], migration.run)
    return applied


def pending(conninfo: str, *, folder: Path | None = None) -> list[str]:
    """Names of what is not applied yet, in order. Changes nothing. Raises as `migrate`."""
    with _connect(conninfo) as conn:
        done = _done(conn)
        first, last = _at_functions([m for m in _migrations(folder) if m.name not in done])
        stale = functions.compare(conn, functions.read(folder)).stale
    return [*(m.name for m in first), *map(_name, stale), *(m.name for m in last)]


def newer_functions(conninfo: str) -> list[str]:
    """Functions that a newer release has replaced, one sentence each. Raises as `migrate`."""
    with _connect(conninfo) as conn:
        newer = functions.compare(conn, functions.read()).newer
    return [f"{function.name} has version {version}, this release {function.version}" for function, version in newer]


def _name(function: functions.Function) -> str:
    return f"functions/{function.name}"


def _migrations(folder: Path | None) -> list[Migration]:
    files = sorted(((folder or sql_folder()) / "migrations").glob("*.sql"))
    return [Migration(path.stem, path.read_text(encoding="utf-8")) for path in files]


def _choose(migrations: list[Migration], done: set[str], post: bool) -> list[Migration]:
    """The migrations to apply now, in order."""
    newer = sorted(name for name in done - {m.name for m in migrations} if is_post(name))
    if newer:
        raise SettingError(
            f"database_url: the database belongs to a newer chatd ({newer[-1]} was applied); install that one"
        )
    todo = [m for m in migrations if m.name not in done]
    if post or not done:
        return todo
    first, _ = _at_functions(todo)
    waiting = next((m.name for m in first if m.is_post), None)
    if waiting:
        before = f"{waiting} of an earlier release comes before {first[-1].name}"
        raise SettingError(f"database_url: {before}; run `chatd migrate --post` first")
    return first


def _at_functions(migrations: list[Migration]) -> tuple[list[Migration], list[Migration]]:
    """The migrations up to the last `pre`, and the `post` files after it.

    The functions are applied between the two.
    """
    count = max((n for n, m in enumerate(migrations, 1) if not m.is_post), default=0)
    return migrations[:count], migrations[count:]


def _apply(conn: Session, names: list[str], run: Callable[[Session], None]) -> list[str]:
    """Apply, again where a lock was not granted; gives `names`. Raises SettingError."""
    what = ", ".join(names)
    started = time.monotonic()
    for attempt in range(1, LOCK_TRIES_MAX + 1):
        try:
            run(conn)
            break
        except psycopg.Error as e:
            if not _is_lock(e):
                remedy = "the database is as it was before it"
                if isinstance(e, pg.InsufficientPrivilege):
                    remedy = "run `chatd migrate` as the owner of the database and its tables"
                raise SettingError(f"database_url: {what} failed: {_sentence(e)}; {remedy}") from e
            if attempt == LOCK_TRIES_MAX:
                raise SettingError(
                    f"database_url: {what} cannot get its locks ({_sentence(e)}); end long transactions, then try again"
                ) from e
            log.warning("migrate.waits", name=what, attempt=attempt, reason=_sentence(e))
    for name in names:
        log.info("migrate.applied", name=name, s=round(time.monotonic() - started, 3))
    return names


def _is_lock(e: psycopg.Error) -> bool:
    """Whether only another session is in the way.

    The text is PostgreSQL's for a function that another session has just replaced or granted.
    """
    return isinstance(e, pg.LockNotAvailable | pg.DeadlockDetected) or "tuple concurrently updated" in str(e)


def _sentence(e: Exception) -> str:
    return " ".join(str(e).split("\n", 1)[0].split())


def _done(conn: Session) -> set[str]:
    """Names of the migrations that are applied; none in an empty database."""
    if conn.execute("SELECT to_regclass(%s)", (BOOKS,)).fetchone() == (None,):
        return set()
    return {name for (name,) in conn.execute("SELECT migration_id FROM _yoyo_migration")}


@contextlib.contextmanager
def _connect(conninfo: str) -> Iterator[Session]:
    try:
        conn = psycopg.connect(Opener(conninfo).conninfo("migrate", DEADLINE_S), autocommit=True)
    except psycopg.Error as e:
        # A server that does not answer is not a wrong setting: a supervisor must try again, as
        # after a reboot where the database starts later.
        wrong = ("authentication failed", "does not exist", "no pg_hba.conf entry", "no password supplied")
        refused = any(words in str(e) for words in wrong)
        raise (SettingError if refused else ChatdError)(
            f"database_url: cannot connect: {_sentence(e)}; is PostgreSQL running there, and is the URL right?"
        ) from e
    with contextlib.closing(conn):
        try:
            check_encoding(conn)
        except Outage as e:  # no use to make a schema in it
            raise SettingError(f"database_url: {e}") from e
        yield conn


@contextlib.contextmanager
def _lock(conn: Session) -> Iterator[None]:
    """Be the only process that migrates this database, with the settings for it.

    The lock goes with the connection.
    """
    conn.execute(f"SET lock_timeout = '{LOCK_TIMEOUT}'")
    conn.execute("SET statement_timeout = 0")
    if conn.info.server_version >= 17_00_00:
        conn.execute("SET transaction_timeout = 0")
    # Without it the server would finish a dead node's long statement first
    conn.execute("SET client_connection_check_interval = '1s'")
    deadline = time.monotonic() + WAIT_S_MAX
    while conn.execute("SELECT pg_try_advisory_lock(%s)", (LOCK_KEY,)).fetchone() != (True,):
        if time.monotonic() > deadline:
            raise SettingError(
                "database_url: another chatd has been migrating this database for minutes; look what it waits for"
            )
        time.sleep(POLL_S)
    try:
        yield
    finally:
        if not conn.closed:
            conn.execute("SELECT pg_advisory_unlock(%s)", (LOCK_KEY,))
