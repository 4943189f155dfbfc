"""Brings a database's schema up to this release: numbered SQL files, applied once each, in order, by yoyo-migrations.

    sql/migrations/0007_pre_receipts.sql     expand: the release before still works on it; `chatd serve` applies it at start
    sql/migrations/0008_post_receipts.sql    contract: takes away what only the release before needs; `chatd migrate --post`, once
                                             every node runs this release

`pre` before `post` of one release, and everything of a release before anything of the next: a pending `post` of an earlier release in
front of a pending `pre` is an error that names the remedy. A database with nothing in it gets all of them, as nobody runs anything older.
A database with a `post` that this release does not know belongs to a newer one, and is refused.

Any number of nodes may start at once: one migrates under a session's advisory lock, the others wait (by trying, not by blocking: a
waiting statement holds a snapshot, which CREATE INDEX CONCURRENTLY would wait for). If that node dies, the lock goes with its connection.
A file is one transaction together with the line that says that it is done, unless it says `-- transactional: false`; a lock that a file
cannot get within `LOCK_TIMEOUT` is given up and tried again, so that the traffic of running nodes does not queue behind it.

yoyo gives the bookkeeping (tables `_yoyo_*`), dependencies and order. What is turned off, and why: its lock is a row with a pid, which a
kill -9 leaves for ever; it marks a migration as done in another transaction than the one that did it; it splits files with sqlparse, which
has to guess at function bodies; its URLs know no libpq keywords; it looks up the host's full name, which may take a DNS timeout.
No password is in any message: yoyo logs names of migrations only, and libpq's errors name host, user and database.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import psycopg
import structlog
from psycopg import errors as pg
from psycopg import sql
from yoyo.backends.core.postgresql import PostgresqlPsycopgBackend
from yoyo.connections import DatabaseURI
from yoyo.migrations import Migration, MigrationList, default_migration_table

from chatd.errors import ChatdError, SettingError
from chatd.postgres.connection import Opener, check_encoding
from chatd.postgres.faults import Outage
from chatd.queries import folder as sql_folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

log = structlog.get_logger("migrate")

WAIT_S_MAX: Final = 600.0  # for another node that migrates
POLL_S: Final = 0.1
DEADLINE_S: Final = 60.0  # what is sent must have arrived by then; statements may take longer
LOCK_TIMEOUT: Final = "3s"
LOCK_TRIES_MAX: Final = 20
LOCK_KEY: Final = 0x63686174645F6D67  # "chatd_mg"


def migrate(conninfo: str, *, post: bool = False, folder: Path | None = None) -> list[str]:
    """Apply what is pending, `post` ones too if asked; gives the names applied. Blocks. Raises SettingError."""
    applied: list[str] = []
    with _backend(conninfo) as backend, backend.lock():
        done = _done(backend.connection)
        for migration in _choose(_migrations(folder), done, post):
            started = time.monotonic()
            _apply(backend, migration)
            log.info("migrate.applied", name=migration.id, s=round(time.monotonic() - started, 3))
            applied.append(migration.id)
    return applied


def pending(conninfo: str, *, folder: Path | None = None) -> list[str]:
    """Names that are not applied yet, in order. Changes nothing. Raises SettingError."""
    with _connect(conninfo) as conn:
        done = _done(conn)
    return [m.id for m in _migrations(folder) if m.id not in done]


def _choose(migrations: MigrationList, done: set[str], post: bool) -> list[Migration]:
    """Which to apply now, in order."""
    known = {m.id for m in migrations}
    newer = sorted(name for name in done - known if _is_post(name))
    if newer:
        raise SettingError(f"database_url: the database belongs to a newer chatd ({newer[-1]} was applied); install that one")
    todo = [m for m in migrations if m.id not in done]
    if post or not done:
        return todo
    chosen: list[Migration] = []
    waiting: str | None = None
    for migration in todo:
        if _is_post(migration.id):
            waiting = waiting or migration.id
        elif waiting:
            raise SettingError(f"database_url: {waiting} of an earlier release comes before {migration.id}; run `chatd migrate --post` first")
        else:
            chosen.append(migration)
    return chosen


def _is_post(name: str) -> bool:
    return name.partition("_")[2].startswith("post_")


def _apply(backend: _Backend, migration: Migration) -> None:
    for attempt in range(1, LOCK_TRIES_MAX + 1):
        try:
            backend.apply_one(migration)
            return
        except (pg.LockNotAvailable, pg.DeadlockDetected) as e:
            if attempt == LOCK_TRIES_MAX:
                raise SettingError(
                    f"database_url: {migration.id} cannot get its locks ({_sentence(e)}); end long transactions, then try again"
                ) from e
            log.warning("migrate.waits", name=migration.id, attempt=attempt, reason=_sentence(e))
        except pg.InsufficientPrivilege as e:
            raise SettingError(
                f"database_url: {migration.id} failed: {_sentence(e)}; run `chatd migrate` as the owner of the database and its tables"
            ) from e
        except psycopg.Error as e:
            raise SettingError(f"database_url: {migration.id} failed: {_sentence(e)}; the database is as it was before it") from e


def _sentence(e: Exception) -> str:
    return " ".join(str(e).split("\n", 1)[0].split())


def _migrations(folder: Path | None) -> MigrationList:
    folder = folder or sql_folder() / "migrations"
    return MigrationList([_File(path.stem, str(path), source_dir=str(folder)) for path in sorted(folder.glob("*.sql"))])


def _done(conn: psycopg.Connection[Any]) -> set[str]:
    """Names of what is applied; none where yoyo has never been."""
    if conn.execute("SELECT to_regclass(%s)", (default_migration_table,)).fetchone() == (None,):
        return set()
    rows = conn.execute(sql.SQL("SELECT migration_id FROM {}").format(sql.Identifier(default_migration_table)))
    return {name for (name,) in rows}


@contextlib.contextmanager
def _connect(conninfo: str) -> Iterator[psycopg.Connection[Any]]:
    try:
        conn = psycopg.connect(Opener(conninfo).conninfo("migrate", DEADLINE_S), autocommit=True)
    except psycopg.Error as e:
        # Nobody there is not a wrong setting, as far as we know: a supervisor must try again, as after a reboot where the database comes up later.
        refused = any(words in str(e) for words in ("authentication failed", "does not exist", "no pg_hba.conf entry", "no password supplied"))
        raise (SettingError if refused else ChatdError)(
            f"database_url: cannot connect: {_sentence(e)}; is PostgreSQL running there, and is the URL right?"
        ) from e
    with contextlib.closing(conn):
        try:
            check_encoding(conn)
        except Outage as e:  # a schema in it would be of no use
            raise SettingError(f"database_url: {e}") from e
        yield conn


@contextlib.contextmanager
def _backend(conninfo: str) -> Iterator[_Backend]:
    with _connect(conninfo) as conn:
        conn.execute(f"SET lock_timeout = '{LOCK_TIMEOUT}'")
        conn.execute("SET statement_timeout = 0")
        if conn.info.server_version >= 17_00_00:
            conn.execute("SET transaction_timeout = 0")
        conn.execute("SET client_connection_check_interval = '1s'")  # or the server would finish a dead node's long statement first
        yield _Backend(conn)


class _File(Migration):  # type: ignore[misc]
    """A migration whose file is one step: PostgreSQL knows best where its statements end."""

    def load(self) -> None:
        loaded = self.loaded
        super().load()
        if not loaded and self.use_transactions:
            self.module.__yoyo_collector__.steps.clear()
            self.module.step(lambda conn: conn.execute(self.source))  # a function: yoyo prints what a statement gives to stdout
            self.steps = self.module.__yoyo_collector__.create_steps(True)


class _Backend(PostgresqlPsycopgBackend):  # type: ignore[misc]
    """yoyo's, on one connection that is there already, with the changes that the module's comment lists."""

    def __init__(self, conn: psycopg.Connection[Any]) -> None:
        self._given = conn
        super().__init__(DatabaseURI("postgresql+psycopg", None, None, None, None, conn.info.dbname, {}), default_migration_table)
        self.has_transactional_ddl = True

    def connect(self, dburi: object) -> psycopg.Connection[Any]:
        return self._given

    @contextlib.contextmanager
    def lock(self, timeout: float | None = None) -> Iterator[None]:
        """Be the only one who migrates this database; may be nested."""
        deadline = time.monotonic() + (WAIT_S_MAX if timeout is None else timeout)
        while self._given.execute("SELECT pg_try_advisory_lock(%s)", (LOCK_KEY,)).fetchone() != (True,):
            if time.monotonic() > deadline:
                raise SettingError("database_url: another chatd has been migrating this database for minutes; look what it waits for")
            time.sleep(POLL_S)
        try:
            yield
        finally:
            if not self._given.closed:
                self._given.execute("SELECT pg_advisory_unlock(%s)", (LOCK_KEY,))

    def apply_one(self, migration: Migration, force: bool = False, mark: bool = True) -> None:
        self.ensure_internal_schema_updated()
        migration.load()
        if migration.use_transactions:
            with self.transaction():
                migration.process_steps(self, "apply")
                self.log_migration(migration, "apply")
                self.mark_one(migration, log=False)
        else:  # must be written so that it can be repeated: a crash may come between the two
            migration.process_steps(self, "apply")
            with self.transaction():
                self.log_migration(migration, "apply")
                self.mark_one(migration, log=False)

    def get_log_data(self, migration: Migration | None = None, operation: str = "apply") -> dict[str, Any]:
        return {
            "id": f"{time.time_ns():x}-{os.getpid()}",
            "migration_id": migration.id if migration else None,
            "migration_hash": migration.hash if migration else None,
            "username": str(os.getuid()),
            "hostname": socket.gethostname(),
            "created_at_utc": datetime.now(UTC).replace(tzinfo=None),
            "operation": operation,
        }
