"""Orders a user's conversations by their last entry, the latest first, page by page. Pure.

    touched ──add──► order (ts, id), rising ──from the end──► page

In the database, every send would have to write an index by the time of the last entry, and without
an index a page of 50 reads all 20,000 of a user. So the order is in memory: it is made when a
client first asks for a page. From then on delivery puts conversations with a new entry into
`touched`, and the next page adds them at their new place. The old pair becomes stale and is passed
over. Once there are as many stale pairs as others, they are taken out. It takes 16 bytes a
conversation, whether the conversation itself is in memory or not.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable
from typing import Final, NamedTuple

from chatd.ids import ConvId

STALE_MIN: Final = 100  # stale pairs that are never taken out


class Place(NamedTuple):
    """A place in the order: that of the conversation `id` whose last entry is of `ts` (ms)."""

    ts: int
    id: int


class Recent:
    """The order of one user. `touched`: ts (ms) of what got an entry since the last page."""

    __slots__ = ("_added", "_ids", "_latest", "_ts", "touched")

    def __init__(self, places: Iterable[tuple[int, int]] = ()) -> None:
        self.touched: dict[ConvId, int] = {}
        # By id, of those with stale pairs: the ts that counts
        self._latest: dict[int, int] = {}
        self._ts, self._ids = array("q"), array("q")
        self.fill(places)

    def fill(self, places: Iterable[tuple[int, int]]) -> None:
        """The conversations that have entries, as (ts, id). What is `touched` stays so."""
        pairs = sorted(places)
        self._ts, self._ids = array("q", (ts for ts, _ in pairs)), array("q", (id for _, id in pairs))
        self._latest = {}
        self._added = 0  # pairs since: at most as many are stale

    def page(self, before: Place | None, most: int) -> list[Place]:
        """The conversations behind a place, or from the latest one on; `most` at most."""
        self._place_touched()
        page: list[Place] = []
        n = len(self._ts) if before is None else self._find(before.ts, before.id)
        while n and len(page) < most:
            n -= 1
            place = Place(self._ts[n], self._ids[n])
            if self._is_current(place):
                page.append(place)
        return page

    def _is_current(self, place: Place) -> bool:
        return self._latest.get(place.id, place.ts) == place.ts

    def _place_touched(self) -> None:
        touched, self.touched = self.touched, {}
        for id, ts in sorted(touched.items(), key=lambda one: (one[1], one[0])):
            n = self._find(ts, id)
            if n == len(self._ts) or self._ts[n] != ts or self._ids[n] != id:
                self._ts.insert(n, ts)
                self._ids.insert(n, id)
                self._added += 1
            self._latest[id] = ts
        if 2 * self._added > len(self._ts) + STALE_MIN:
            self.fill([place for place in map(Place, self._ts, self._ids) if self._is_current(place)])

    def _find(self, ts: int, id: int) -> int:
        """The index of (ts, id), or where it would be inserted."""
        n = bisect_left(self._ts, ts)
        while n < len(self._ts) and self._ts[n] == ts and self._ids[n] < id:
            n += 1
        return n
