"""What `chatd doctor` says of the servers of `database_replica_url`.

chatd keeps its guarantees whatever they are: where one may not answer, the primary does. So nothing
here is worse than a warning.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import psycopg

from chatd.config import mask_password
from chatd.postgres import connection, faults, hosts
from chatd.postgres.connection import Opener
from chatd.postgres.log_state import LogState
from chatd.postgres.replica import POSITION, SIGHT
from chatd.postgres.standby import Role, StandbySight, judge

CONNECT_S: Final = 5
INSTEAD: Final = "history is read from the primary"


def examine(url: str, primary: psycopg.Connection[tuple[object, ...]], connections: int) -> Iterator[tuple[str, str]]:
    """(level, sentence) for each server of the URL.

    `connections`: how many all nodes of these settings open there.
    """
    if (state := _log_of(primary)) is None:
        yield "warn", "the primary's log has no place yet: no node has served; ask again then"
        return
    at = primary.execute(POSITION).fetchone()
    assert at is not None
    for name, alone in hosts.each(url).items():
        try:
            conninfo = Opener(alone, standbys=True).conninfo("doctor", CONNECT_S)
            with psycopg.connect(conninfo, autocommit=True, prepare_threshold=None) as conn:
                yield from _server(name, conn, state, int(str(at[0])), connections)
        except psycopg.Error as e:
            what = mask_password(faults.sentence(e))
            yield "warn", f"{name} does not answer ({what}): {INSTEAD}; start it, or correct database_replica_url"


def _log_of(primary: psycopg.Connection[tuple[object, ...]]) -> LogState | None:
    """The log of the primary; None if no node has made its epoch for the place where it is."""
    row = primary.execute("SELECT to_regclass('meta') IS NOT NULL").fetchone()
    if row != (True,):
        return None
    row = primary.execute(connection.SIGHT).fetchone()
    if row is None or row[1] is None or row[1] != row[2]:
        return None
    state = LogState()
    state.adopt(str(row[0]), str(row[1]))
    return state


def _server(
    name: str, conn: psycopg.Connection[Any], state: LogState, primary_at: int, connections: int
) -> Iterator[tuple[str, str]]:
    row = conn.execute(SIGHT).fetchone()
    if row is None:
        yield "warn", f"{name}: the table `meta` has no row: {INSTEAD}"
        return
    sight = StandbySight(*row)
    verdict = judge(state, sight)
    if not isinstance(verdict, Role):
        yield "warn", f"{name}: {verdict}: {INSTEAD}"
        return
    if verdict is Role.PRIMARY:
        yield "warn", f"{name} is the primary itself: it takes no load off it"
        return
    yield "ok", f"{name} is a standby of the primary, {max(0, primary_at - sight.position):,} bytes of WAL behind"
    shown = conn.execute("SELECT current_setting('recovery_min_apply_delay'), current_setting('max_connections')")
    delay, most = shown.fetchone() or ("0", "0")
    if delay != "0":
        yield "warn", f"{name}: recovery_min_apply_delay is {delay}: what is younger is read from the primary"
    if int(str(most)) < connections:
        yield "warn", f"{name}: max_connections is {most}; these settings need {connections} there"
