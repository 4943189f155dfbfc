"""Steady time: what attach times are made from, so that of two sessions of a device every node
takes the same one for the newer. Pure.

    clock.steady_ms()      PostgreSQL's time without its steps (clock.py)
    Steady.ms()            the same plus what was agreed with the other nodes
    told() ──► info beside the lease ──► hear() on other nodes, once a beat

PostgreSQL's clock may be set while nodes run, and each node sees that at its next reading, up to a
second or two after another one. Attach times by that clock would say the opposite of what happened:
a session that began after a step back looked older than a half-open one of before it, and was
closed in its place. Steady time does not follow steps, so it does not matter when a node sees one.

A node that starts after a step begins with PostgreSQL's time as it is now, so its steady time is
off by the steps that the others have been through. It takes over theirs: in its first lease it
moves to what an older node tells, and moves the attach times that it gave until then. Older nodes
stay where they are. Where two have measured the same step with small errors, both go by the larger
sum.

Turned down: raising an attach time above a later one of another node where that looked like one of
before a step. The two cannot be told apart while the clocks differ, and both nodes may raise theirs
in turn. A number from a sequence in PostgreSQL or a counter in Redis: one more round trip a hello,
for what clocks tell as well, and no hello while PostgreSQL is read-only.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from chatd.clock import Clock

NEAR_MS: Final = 250  # how well another node's time is known from its beat; a step is far more


class Told(NamedTuple):
    """What a node says of its steady time.

    `ms`: the time as it is now; `ahead_ms`: of PostgreSQL's clock; `up_ms`: since the node started.
    """

    ms: int
    ahead_ms: int
    up_ms: int


class Steady:
    """`lease_s`: for so long after its start a node takes over the time of older ones."""

    def __init__(self, clock: Clock, lease_s: float) -> None:
        self._clock, self._young_ms = clock, int(lease_s * 1000)
        self._started = clock.now()
        self._agreed_ms = 0

    def ms(self) -> int:
        """Now. It goes back only by small corrections, and where `hear` says so."""
        return self._clock.steady_ms() + self._agreed_ms

    def told(self) -> Told:
        """For the other nodes."""
        up_ms = int((self._clock.now() - self._started) * 1000)
        return Told(self.ms(), self._agreed_ms - round(self._clock.moved_ms), up_ms)

    def hear(self, others: Iterable[Told]) -> int:
        """What other nodes say, their `ms` brought up to now.

        Gives by how much the attach times of this node are to be moved, mostly 0.
        """
        mine, by = self.told(), 0
        others = list(others)
        if mine.up_ms < self._young_ms and (older := [one for one in others if one.up_ms > mine.up_ms + NEAR_MS]):
            by = max(self._off_by(mine, one) for one in older)
        elif near := [over for one in others if 0 < (over := one.ahead_ms - mine.ahead_ms) <= NEAR_MS]:
            self._agreed_ms += max(near)
        self._agreed_ms += by
        return by

    @staticmethod
    def _off_by(mine: Told, older: Told) -> int:
        """How far we are behind an older node.

        Exact if both have seen the same steps: then PostgreSQL's clock is common to both.
        """
        exact, rough = older.ahead_ms - mine.ahead_ms, older.ms - mine.ms
        if abs(exact - rough) <= NEAR_MS:
            return exact
        return rough if abs(rough) > NEAR_MS else 0
