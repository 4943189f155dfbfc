"""Which log a node holds in memory, and whether the database still has that one. Pure.

A log is named by its epoch, a random word in the table `meta`, and by its place: cluster, timeline,
database and table (`log_identity()` in sql/functions/log_identity.sql). `meta.identity` is the
place where the log was when its epoch was made.

    look(epoch, recorded, actual)
      ──► SAME       the node goes on
      ──► MOVED      another epoch, or another place than recorded: the log may have lost its end
      ──► LEFT       an epoch that was left: the old primary is back. Nothing is written to it
      ──► STANDBY    the server takes no writes

A promotion and a restore put the log at another place with the old epoch still in it. The first
node that finds this makes a new epoch (watch.py). What was lost cannot be known for sure: a node
that died with the primary has acked entries that no other node knows. So each move has a new epoch,
also one that lost nothing (docs/decisions/0020).

No node moves back to an epoch that was left: between two servers that both take writes a node would
go to and fro, and each server would lose what the other has. A node that was started later knows
the epochs before from the epoch itself, which ends with their tags.

Identity cannot show that entries of a log in its place are missing, or are another log's. Then the
epoch is renewed as well, and memory is built again from what is there. If something else makes log
and memory differ, such as a trigger that changes rows, a renewal does not help: so renewals of this
kind are bounded (`Renewals`).

`generation` counts the logs that this node has held. What was read in one generation is not used in
the next.
"""

from __future__ import annotations

import asyncio
import enum
import hashlib
import math
from typing import Final, NamedTuple

PAUSE_S: Final = 10.0  # a renewal closes all sessions: the operator should act before the second
PAUSE_MAX_S: Final = 3_600.0
FORGET_S: Final = 3_600.0
WORD_CHARS: Final = 16
TAGS: Final = 3  # earlier epochs that an epoch names
TAG_CHARS: Final = 8


def successor(epoch: str, word: str) -> str:
    """A new epoch: a random word, then the tags of the epoch before and of those before that.

    43 characters.
    """
    return "-".join((word[:WORD_CHARS], tag(epoch), *tags(epoch)[: TAGS - 1]))


def tags(epoch: str) -> list[str]:
    """Tags of the epochs before this one, the latest first.

    Empty where the installation or an earlier release made it.
    """
    return epoch.split("-")[1:]


def tag(epoch: str) -> str:
    """The short hash by which later epochs name this one."""
    return hashlib.sha256(epoch.encode()).hexdigest()[:TAG_CHARS]


class LogVerdict(enum.Enum):
    """What a look at the log found; see the module."""

    SAME = enum.auto()
    MOVED = enum.auto()
    LEFT = enum.auto()
    STANDBY = enum.auto()


class Sight(NamedTuple):
    """What a connection sees of the log: `meta.epoch`, `meta.identity`, `log_identity()`.

    The last is None on a standby.
    """

    epoch: str
    recorded: str | None
    actual: str | None


class LogState:
    """The log that this node knows. One object, shared by all connections of the node."""

    def __init__(self) -> None:
        self.epoch = ""
        self.identity = ""
        # Sent with each batch, which `append` refuses if it differs: epoch, timeline and table. A
        # connection's cluster and database cannot change.
        self.fence = ""
        self.generation = 0
        self.suspected = asyncio.Event()  # a connection saw another log: the watch looks at once
        self.is_behind = False  # acked entries are missing, although the log is in its place
        self._left: set[str] = set()

    @property
    def is_known(self) -> bool:
        return bool(self.epoch)

    def look(self, sight: Sight) -> LogVerdict:
        """Compare what a connection sees with the log that is known."""
        if sight.actual is None:
            return LogVerdict.STANDBY
        if sight.recorded == sight.actual and (sight.epoch in self._left or tag(sight.epoch) in tags(self.epoch)):
            return LogVerdict.LEFT
        if sight.epoch == self.epoch and sight.recorded == sight.actual == self.identity and not self.is_behind:
            return LogVerdict.SAME
        return LogVerdict.MOVED

    def suspect(self, *, is_behind: bool = False) -> None:
        """The log may be another one; the watch looks. `is_behind`: because entries are missing."""
        self.is_behind = self.is_behind or is_behind
        self.suspected.set()

    def adopt(self, epoch: str, identity: str) -> None:
        """This is the log from now on."""
        if self.epoch and self.epoch != epoch:
            self._left.add(self.epoch)
        self.epoch, self.identity = epoch, identity
        _, timeline, _, table = identity.split("/")
        self.fence = f"{epoch} {timeline}/{table}"
        self.generation += 1
        self.is_behind = False
        self.suspected.clear()


class Renewals:
    """When an epoch may be renewed because a log in its place has entries missing.

    At once, then after pauses that double. `now` in s.
    """

    def __init__(self) -> None:
        self._not_before = -math.inf
        self._pause_s = 0.0

    def may(self, now: float) -> bool:
        """Whether it may be renewed now. A yes counts as a renewal."""
        if now < self._not_before:
            return False
        if now >= self._not_before + FORGET_S:
            self._pause_s = 0.0
        self._pause_s = min(max(self._pause_s * 2, PAUSE_S), PAUSE_MAX_S)
        self._not_before = now + self._pause_s
        return True
