"""Which log a node holds in memory, and whether the database still has that one. Pure.

A log is named by its epoch, a random word in the table `meta`, and by where it is: cluster,
timeline, database and table (`log_identity()` in sql/functions/log_identity.sql). `meta.identity`
says where the log was when its epoch was made.

    look(epoch, recorded, actual) ──► SAME       the node goes on
                                      MOVED      another epoch, or the log is at another place than recorded: it may have lost its end
                                      LEFT       an epoch that was left behind: the old primary is back. Nothing is to be written to it
                                      STANDBY    it takes no writes

A promotion and a restore put the log at another place with the old epoch still in it: who finds
that first makes a new epoch (store.adopt). What was lost cannot be known for sure: a node that died
with the primary has acked entries of which nobody else knows. So each move has a new epoch, also
one that lost nothing (docs/decisions/0020). A move back to an epoch that was left is not made by
itself: two servers that both take writes would send a node to and fro, and each would lose what the
other has. A node that was started since knows the epochs before by the epoch: it ends with their
tags.

What identity cannot show is what is missing, or another's, in a log that is where it was. Then the
epoch is renewed as well, and memory begins anew with what is there. Where something else makes the
log and memory differ, such as a trigger that changes rows, that heals nothing: so renewals of this
kind are bounded (`Renewals`).

`generation` counts the logs that this node has held. Whatever was asked of one generation is not
used in the next.
"""

from __future__ import annotations

import asyncio
import enum
import hashlib
import math
from typing import Final, NamedTuple

PAUSE_S: Final = 10.0  # each closes all sessions: by the second one the operator should look
PAUSE_MAX_S: Final = 3_600.0
FORGET_S: Final = 3_600.0
WORD_CHARS: Final = 16
TAGS: Final = 3  # epochs before it that an epoch tells of
TAG_CHARS: Final = 8


def successor(epoch: str, word: str) -> str:
    """A new epoch of a random word, with the tags of the one before and of those before that:

    43 characters.
    """
    return "-".join((word[:WORD_CHARS], tag(epoch), *tags(epoch)[: TAGS - 1]))


def tags(epoch: str) -> list[str]:
    """Of the epochs before it, the latest first; none where the installation made it, or an earlier
    release.
    """
    return epoch.split("-")[1:]


def tag(epoch: str) -> str:
    """By which later ones tell of it."""
    return hashlib.sha256(epoch.encode()).hexdigest()[:TAG_CHARS]


class Verdict(enum.Enum):
    """What a look at the log has shown."""

    SAME = enum.auto()
    MOVED = enum.auto()
    LEFT = enum.auto()
    STANDBY = enum.auto()


class Sight(NamedTuple):
    """What a connection sees of the log:

    `meta.epoch`, `meta.identity` and `log_identity()`; the last is None on a standby.
    """

    epoch: str
    recorded: str | None
    actual: str | None


class LogState:
    """What this node believes of the log; one object, shared by all that talk to PostgreSQL."""

    def __init__(self) -> None:
        self.epoch = ""
        self.identity = ""
        # What a batch is fenced by: epoch, timeline and table. A connection's cluster and database
        # cannot change
        self.fence = ""
        self.generation = 0
        self.suspected = asyncio.Event()  # somebody has seen another log: the watch is to look at once
        self.is_behind = False  # entries that were acked are not there, although the log is where it was
        self._left: set[str] = set()

    @property
    def is_known(self) -> bool:
        return bool(self.epoch)

    def look(self, sight: Sight) -> Verdict:
        """Compare what a connection sees with what is believed."""
        if sight.actual is None:
            return Verdict.STANDBY
        if sight.recorded == sight.actual and (sight.epoch in self._left or tag(sight.epoch) in tags(self.epoch)):
            return Verdict.LEFT
        if sight.epoch == self.epoch and sight.recorded == sight.actual == self.identity and not self.is_behind:
            return Verdict.SAME
        return Verdict.MOVED

    def suspect(self, *, is_behind: bool = False) -> None:
        """The log seems to be another one. `is_behind`: by what is missing in it."""
        self.is_behind = self.is_behind or is_behind
        self.suspected.set()

    def adopt(self, epoch: str, identity: str) -> None:
        """From now on this is the log."""
        if self.epoch and self.epoch != epoch:
            self._left.add(self.epoch)
        self.epoch, self.identity = epoch, identity
        _, timeline, _, table = identity.split("/")
        self.fence = f"{epoch} {timeline}/{table}"
        self.generation += 1
        self.is_behind = False
        self.suspected.clear()


class Renewals:
    """When an epoch may be renewed for what is missing in a log that is where it was: at once, then
    after pauses that double. `now` in s.
    """

    def __init__(self) -> None:
        self._not_before = -math.inf
        self._pause_s = 0.0

    def may(self, now: float) -> bool:
        """Whether now; that counts as one."""
        if now < self._not_before:
            return False
        if now >= self._not_before + FORGET_S:
            self._pause_s = 0.0
        self._pause_s = min(max(self._pause_s * 2, PAUSE_S), PAUSE_MAX_S)
        self._not_before = now + self._pause_s
        return True
