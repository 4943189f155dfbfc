"""How long a gap waits for the bus before the log is read, by how late the bus is. Pure.

    an entry of another node that comes early, late, or closes a gap ──lag──► heard ──► wait_s

The lag is the time from the commit of an entry to its arrival here. It is a few ms, and tens of ms
on a node that is behind. A wait that is too short costs a query for each gap, at the time at which
there is least room for it. A wait that is too long delays what Redis has really lost. So the wait
follows the longest lag of late, which is forgotten by a part with each later one.
"""

from __future__ import annotations

from typing import Final

WAIT_MIN_S: Final = 0.015
WAIT_MAX_S: Final = 0.2  # a tenth of the time within which an entry that Redis lost must come
MARGIN: Final = 1.5  # wait per lag
FORGETS: Final = 1 / 64  # of the difference to the longest lag, with each entry


class BusLag:
    """Of one node. `wait_s`: how long a gap waits now, in seconds."""

    __slots__ = ("_longest_s", "wait_s")

    def __init__(self) -> None:
        self._longest_s = 0.0
        self.wait_s = WAIT_MIN_S

    def heard(self, lag_s: float) -> None:
        """An entry arrived so long after its commit; less than 0 where clocks differ."""
        lag_s = min(max(lag_s, 0.0), WAIT_MAX_S)
        longest_s = self._longest_s
        self._longest_s = lag_s if lag_s > longest_s else longest_s + (lag_s - longest_s) * FORGETS
        self.wait_s = min(max(self._longest_s * MARGIN, WAIT_MIN_S), WAIT_MAX_S)
