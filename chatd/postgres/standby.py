"""Whether a server is one that may answer in place of the primary: a standby of it. Pure.

    judge(log, sight) ──► STANDBY    a physical standby that shows the log which this node knows
                      ──► PRIMARY    the primary itself
                      ──► a sentence: why it may not answer

A standby of the log has its cluster, database and table, and its epoch. The epoch is a row of that
log, and each move of the log has a new one: so a standby that shows it has replayed the log beyond
its last move, on the timeline of the primary. A standby that stayed on the timeline before a
failover has the epoch before; so has one that lags behind the move. A copy by logical replication,
and a restored dump, are other clusters.

One case shows in nothing but the control file, and there late: a standby that follows another
server, which was promoted and to which no node has ever written.
"""

from __future__ import annotations

import enum
from typing import Final, NamedTuple

from chatd.postgres.log_state import LogState


class Role(enum.Enum):
    """What may answer."""

    STANDBY = enum.auto()
    PRIMARY = enum.auto()


class StandbySight(NamedTuple):
    """The row of sql/queries/replica_sight.sql.

    `place`: cluster, database and table, with slashes. `position`: bytes from the beginning of WAL.
    """

    epoch: str
    recorded: str | None
    actual: str | None
    place: str
    timeline: int
    position: int


OTHER_CLUSTER: Final = "it is no physical standby of the primary: another cluster, database or table"
PROMOTED: Final = "it takes writes and has another log than the primary: promoted, or restored"
OTHER_LOG: Final = "its log is not the one in force: it lags far behind, or follows another primary"
OTHER_TIMELINE: Final = "it has replayed a timeline that is not the primary's: it follows another primary"


def judge(log: LogState, sight: StandbySight) -> Role | str:
    """What a server is to the log that this node knows, or why it may not answer."""
    system, timeline, database, table = log.identity.split("/")
    if sight.place != f"{system}/{database}/{table}":
        return OTHER_CLUSTER
    is_in_force = sight.epoch == log.epoch and sight.recorded == log.identity
    if sight.actual is not None:
        return Role.PRIMARY if is_in_force and sight.actual == log.identity else PROMOTED
    if not is_in_force:
        return OTHER_LOG
    return OTHER_TIMELINE if sight.timeline > int(timeline, 16) else Role.STANDBY
