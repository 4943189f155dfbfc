"""News that is told at most so often about the same thing, and the last of it always.

Pure: `now` is an argument, in seconds.

    offer(key, news) ──┬── little told of late ──► told at once
                       └── else it waits, and newer news takes its place ──due──► told when the time is over

For what is a state and not an entry of a log: somebody types, somebody is away. Ten devices of one
user that change it a hundred times a second cost each watcher one push a second. The first change
is told without delay, so a usual one is as quick as without this.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable
from itertools import count
from typing import Final, Generic, TypeVar

TYPING_S: Final = 1.0  # it shows for 6 s, and is repeated every 3 to 5
# A change is to be seen within a second on every node: what is left is for the alarm and the way
# there
PRESENCE_S: Final = 0.9
PRESENCE_BURST: Final = 2  # to and fro at once is usual (a page that is loaded again), and is seen without delay

Key = TypeVar("Key", bound=Hashable)
News = TypeVar("News")


class _Told(Generic[News]):
    """Of whom something was told of late.

    `full_at`: when its bucket is full again; `waits`: what is to be told next.
    """

    __slots__ = ("full_at", "waits")

    def __init__(self, full_at: float) -> None:
        self.full_at = full_at
        self.waits: News | None = None


class Pace(Generic[Key, News]):
    """One in `every_s` on average, `burst` at once.

    `offer` gives whether to tell it now; `due` gives what has waited long enough.
    """

    __slots__ = ("_ahead_s", "_every_s", "_numbers", "_order", "_told", "merged")

    def __init__(self, every_s: float, burst: int = 1) -> None:
        self._every_s = every_s
        self._ahead_s = (burst - 1) * every_s
        self._told: dict[Key, _Told[News]] = {}
        # A heap of (when to look again, number, at whom), one for each of them
        self._order: list[tuple[float, int, Key]] = []
        self._numbers = count()
        self.merged = 0  # news that was not told because newer took its place, so far

    def __len__(self) -> int:
        return len(self._told)

    def offer(self, key: Key, news: News, now: float) -> bool:
        """Tell this now? Else it is kept, in place of what waited; `due` will give it."""
        told = self._told.get(key)
        if told is None:
            self._told[key] = _Told(now + self._every_s)
            self._look(key, now + self._every_s)
            return True
        if told.waits is None and told.full_at - now <= self._ahead_s and self._ahead_s:
            told.full_at = max(told.full_at, now) + self._every_s
            return True
        self.merged += told.waits is not None
        told.waits = news
        return False

    def next_due(self) -> float | None:
        """When `due` is to be called next; None: nothing waits, and nothing is kept."""
        return self._order[0][0] if self._order else None

    def due(self, now: float, stands: Callable[[News], bool] = lambda _: True) -> list[tuple[Key, News]]:
        """What is to be told now. What no longer `stands` is dropped."""
        news: list[tuple[Key, News]] = []
        order = self._order
        while order and order[0][0] <= now:
            _, _, key = heapq.heappop(order)
            told = self._told[key]
            if told.waits is not None and told.full_at - self._ahead_s > now:
                self._look(key, told.full_at - self._ahead_s)
                continue
            if told.waits is not None:
                if stands(told.waits):
                    news.append((key, told.waits))
                    told.full_at = max(told.full_at, now) + self._every_s
                told.waits = None
            if told.full_at > now:
                self._look(key, now + self._every_s)
            else:
                del self._told[key]
        return news

    def _look(self, key: Key, at: float) -> None:
        heapq.heappush(self._order, (at, next(self._numbers), key))
