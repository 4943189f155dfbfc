"""The epoch of a log, read or renewed after a restore, for `chatd epoch` (docs/operations.md)."""

from __future__ import annotations

import uuid
from typing import Any

import psycopg

from chatd.errors import ChatdError, SettingError
from chatd.postgres import faults, hosts
from chatd.postgres.connection import Opener
from chatd.postgres.log_state import successor
from chatd.postgres.watch import RESTAMP, RESTAMP_ROWS


def read(conninfo: str, connect_s: int, *, renew: bool = False) -> str:
    """The epoch, after a renewal if `renew`; "" if there is none.

    Raises ChatdError with a remedy, SettingError if several servers of the URL take writes.
    """
    try:
        with psycopg.connect(Opener(conninfo).conninfo("epoch", connect_s), autocommit=True) as conn:
            _one_primary(conninfo)
            if renew:
                _renew(conn)
            row = conn.execute("SELECT epoch FROM meta").fetchone()
    except psycopg.Error as e:
        remedy = {"schema": "; run `chatd migrate` first", "standby": ""}.get(faults.kind(e), "; check --database-url")
        raise ChatdError(f"the epoch cannot be read or set: {faults.sentence(e)}{remedy}") from None
    return str(row[0]) if row else ""


def _one_primary(conninfo: str) -> None:
    """Raises SettingError if two servers take writes.

    Each has an epoch of its own, and the wrong one would be shown or renewed.
    """
    if len(hosts.each(conninfo)) > 1 and len(found := hosts.primaries(conninfo)) > 1:
        raise SettingError(
            f"database_url: {len(found)} of its servers take writes ({', '.join(found)}); stop the old primary,"
            " or name one alone by --database-url"
        )


def _renew(conn: psycopg.Connection[Any]) -> None:
    """Make a new epoch, and give rows of another cluster's transactions ids of this one's.

    The second runs in short transactions, so that no sender waits long.
    """
    has_restamp = "SELECT true FROM pg_attribute WHERE attrelid = 'meta'::regclass AND attname = 'restamp'"
    with conn.transaction():
        before = conn.execute("SELECT epoch FROM meta FOR UPDATE").fetchone()
        conn.execute("UPDATE meta SET epoch = %s", (successor(str(before[0]) if before else "", uuid.uuid4().hex),))
        if conn.execute("SELECT to_regclass('feed')").fetchone() != (None,):  # a backup of an older release has none
            conn.execute("DELETE FROM feed")
        is_new = conn.execute(has_restamp).fetchone() is not None  # else the migration restamps
        if is_new:
            conn.execute("UPDATE meta SET restamp = 0")
    while is_new and psycopg.RawCursor(conn).execute(RESTAMP, (RESTAMP_ROWS,)).fetchone() == (True,):
        pass
