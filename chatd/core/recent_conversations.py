"""In which order a user's conversations are shown: the latest entry first, page by page. Pure.

    touched ──add──► order (ts, id), rising ──from behind──► page

An index by the time of the last entry would have to be written by every send, and without one a
page of 50 reads all 20,000 of a user. But all conversations of a user who is here are in memory, so
their order can be, too. It is made when a client first asks for a page; from then on delivery puts
into `touched` what has a new entry, and the next page brings it to its place. What it was before
stays behind as a stale pair and is passed over; once the stale ones are as many as the others, the
order is made anew. 16 bytes a conversation.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from chatd.core.conversation import Conversation
    from chatd.ids import ConvId, UserId

STALE_MIN: Final = 100  # before it is worth to make it anew


class Place(NamedTuple):
    """Before the conversation `id` whose last entry is of `ts` (ms), so from the next older one on."""

    ts: int
    id: int


class Recent:
    """Of one user. `touched`: conversations with a new entry since the last page."""

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
        """The next ones before a place, or the first, `most` at most.

        `convs`: all in memory; `mine`: all of the user.
        """
        self._bring(mine)
        page: list[Conversation] = []
        n = len(self._ts) if before is None else self._find(before.ts, before.id)
        while n and len(page) < most:
            n -= 1
            conv = convs.get(self._ids[n])  # type: ignore[call-overload]
            if conv is not None and conv.ts == self._ts[n]:
                page.append(conv)
        return page

    def _bring(self, mine: Mapping[UserId, Conversation]) -> None:
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
        """Where (ts, id) stands, or would."""
        n = bisect_left(self._ts, ts)
        while n < len(self._ts) and self._ts[n] == ts and self._ids[n] < id:
            n += 1
        return n
