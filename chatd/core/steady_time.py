"""Steady time, the clock of attach times: all nodes agree which session of a device is newer. Pure.

    clock.steady_ms()      PostgreSQL's time without its steps (clock.py)
    Steady.ms()            the same plus an offset agreed with the other nodes
    reading() ──► info beside the lease ──► adjust() on other nodes, once a beat

PostgreSQL's clock may be set while nodes run, and each node sees that at its next reading, a second
or two after another one. Attach times by that clock would be in the wrong order: a session that
began after a step back looked older than a half-open one from before the step, and was closed in
its place. Steady time does not follow steps, so it does not matter when a node sees one.

A node that starts after a step begins with PostgreSQL's present time, so its steady time is off by
the steps that the others have seen. It takes over theirs: during its first lease it moves to the
reading of an older node, and moves the attach times that it has given by then. Older nodes do not
move. If two nodes measured the same step with small errors, both use the larger sum.

Rejected: raising an attach time above a later one of another node if that looked like one from
before a step. While the clocks differ, the two look alike, and both nodes may raise theirs in turn.
Rejected: a number from a sequence in PostgreSQL or a counter in Redis. It is one more round trip a
hello for what clocks can do, and no hello while PostgreSQL is read-only.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from chatd.clock import Clock

NEAR_MS: Final = 250  # the error of another node's time as its beat gives it; a step is far larger


class SteadyReading(NamedTuple):
    """A node's steady time, as it publishes it.

    `ms`: the steady time now; `ahead_ms`: how far it is ahead of PostgreSQL's clock; `up_ms`: the
    time since the node started.
    """

    ms: int
    ahead_ms: int
    up_ms: int


class Steady:
    """The steady time of this node; for `lease_s` after its start it follows older nodes."""

    def __init__(self, clock: Clock, lease_s: float) -> None:
        self._clock, self._young_ms = clock, int(lease_s * 1000)
        self._started = clock.now()
        self._agreed_ms = 0

    def ms(self) -> int:
        """The steady time now, in ms. It goes back only by small corrections and by `adjust`."""
        return self._clock.steady_ms() + self._agreed_ms

    def reading(self) -> SteadyReading:
        """The reading to publish for other nodes."""
        up_ms = int((self._clock.now() - self._started) * 1000)
        return SteadyReading(self.ms(), self._agreed_ms - round(self._clock.moved_ms), up_ms)

    def adjust(self, others: Iterable[SteadyReading]) -> int:
        """Adjust this node's time to the readings of other nodes, whose `ms` is brought up to now.

        Gives the ms by which the caller must move the attach times of this node, mostly 0.
        """
        mine, by = self.reading(), 0
        others = list(others)
        if mine.up_ms < self._young_ms and (older := [one for one in others if one.up_ms > mine.up_ms + NEAR_MS]):
            by = max(self._off_by(mine, one) for one in older)
        elif near := [over for one in others if 0 < (over := one.ahead_ms - mine.ahead_ms) <= NEAR_MS]:
            self._agreed_ms += max(near)
        self._agreed_ms += by
        return by

    @staticmethod
    def _off_by(mine: SteadyReading, older: SteadyReading) -> int:
        """How far this node is behind an older one, in ms.

        Exact if both have seen the same steps, since both then share PostgreSQL's clock.
        """
        exact, rough = older.ahead_ms - mine.ahead_ms, older.ms - mine.ms
        if abs(exact - rough) <= NEAR_MS:
            return exact
        return rough if abs(rough) > NEAR_MS else 0
