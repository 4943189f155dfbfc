"""Orders a user's conversations by their last entry, the latest first, page by page. Pure.

    touched ──add──► order (ts, id), rising ──from the end──► page

In the database, every send would have to write an index by the time of the last entry, and without
an index a page of 50 reads all 20,000 of a user. But all conversations of a held user are in
memory, so their order can be too. It is made when a client first asks for a page. From then on
delivery puts conversations with a new entry into `touched`, and the next page adds them at their
new place. The old pair becomes stale and is passed over. Once there are as many stale pairs as
others, the order is made again. It takes 16 bytes a conversation.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from chatd.core.conversation import Conversation
    from chatd.ids import ConvId, UserId

STALE_MIN: Final = 100  # stale pairs below which the order is not made again


class Place(NamedTuple):
    """A place in the order: just before the conversation `id` whose last entry is of `ts` (ms)."""

    ts: int
    id: int


class Recent:
    """The order of one user. `touched`: conversations with a new entry since the last page."""

    __slots__ = ("_ids", "_ts", "touched")

    def __init__(self, convs: Iterable[Conversation]) -> None:
        self.touched: set[Conversation] = set()
        self._ts, self._ids = array("q"), array("q")
        self._make(convs)

    def _make(self, convs: Iterable[Conversation]) -> None:
        pairs = sorted((conv.ts, conv.id) for conv in convs if conv.head)
        self._ts, self._ids = array("q", (ts for ts, _ in pairs)), array("q", (id for _, id in pairs))

    def page(
        self, convs: Mapping[ConvId, Conversation], mine: Mapping[UserId, Conversation], before: Place | None, most: int
    ) -> list[Conversation]:
        """The conversations from a place on, or from the latest one on; `most` at most.

        `convs`: all conversations in memory; `mine`: all of the user.
        """
        self._place_touched(mine)
        page: list[Conversation] = []
        n = len(self._ts) if before is None else self._find(before.ts, before.id)
        while n and len(page) < most:
            n -= 1
            conv = convs.get(self._ids[n])  # type: ignore[call-overload]
            if conv is not None and conv.ts == self._ts[n]:
                page.append(conv)
        return page

    def _place_touched(self, mine: Mapping[UserId, Conversation]) -> None:
        touched, self.touched = self.touched, set()
        if len(self._ts) + len(touched) > 2 * len(mine) + STALE_MIN:
            self._make(mine.values())
            return
        for conv in sorted(touched, key=lambda conv: (conv.ts, conv.id)):
            n = self._find(conv.ts, conv.id)
            if n == len(self._ts) or self._ts[n] != conv.ts or self._ids[n] != conv.id:
                self._ts.insert(n, conv.ts)
                self._ids.insert(n, conv.id)

    def _find(self, ts: int, id: int) -> int:
        """The index of (ts, id), or where it would be inserted."""
        n = bisect_left(self._ts, ts)
        while n < len(self._ts) and self._ts[n] == ts and self._ids[n] < id:
            n += 1
        return n
