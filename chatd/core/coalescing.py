"""Coalesces news about one key: at most one in `every_s`, and the last one always goes out.

Pure: `now` is an argument, in seconds.

    offer(key, news) ──┬── under the rate ──► goes out at once
                       └── over it ──► waits, newer news replaces it ──due──► goes out later

This is for states, not for entries of a log: a user types, a user is away. Ten devices of one user
that change a state a hundred times a second cost each watcher one push a second. The first change
goes out without delay, so a single one is as fast as without coalescing.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable
from itertools import count
from typing import Final, Generic, TypeVar

TYPING_S: Final = 1.0  # clients show it for 6 s and repeat it every 3 to 5 s
# A change must be seen on every node within a second: 0.1 s is left for the timer and the network.
PRESENCE_S: Final = 0.9
PRESENCE_BURST: Final = 2  # two changes at once are usual (a page is reloaded), and go out without delay

Key = TypeVar("Key", bound=Hashable)
News = TypeVar("News")


class _Bucket(Generic[News]):
    """The token bucket of a key that had news recently.

    `full_at`: when it is full again, in seconds. `waits`: the news that waits, if any.
    """

    __slots__ = ("full_at", "waits")

    def __init__(self, full_at: float) -> None:
        self.full_at = full_at
        self.waits: News | None = None


class Pace(Generic[Key, News]):
    """One piece of news per key in `every_s` on average, `burst` at once.

    `offer` says whether to send it now. `due` gives the news that has waited long enough.
    """

    __slots__ = ("_ahead_s", "_buckets", "_every_s", "_numbers", "_order", "merged")

    def __init__(self, every_s: float, burst: int = 1) -> None:
        self._every_s = every_s
        self._ahead_s = (burst - 1) * every_s
        self._buckets: dict[Key, _Bucket[News]] = {}
        # A heap of (when to look again, number, key), one for each bucket
        self._order: list[tuple[float, int, Key]] = []
        self._numbers = count()
        self.merged = 0  # news that never went out because newer news replaced it

    def __len__(self) -> int:
        return len(self._buckets)

    def offer(self, key: Key, news: News, now: float) -> bool:
        """True: send this now. False: it is kept in place of older news, for `due`."""
        bucket = self._buckets.get(key)
        if bucket is None:
            self._buckets[key] = _Bucket(now + self._every_s)
            self._look(key, now + self._every_s)
            return True
        if bucket.waits is None and bucket.full_at - now <= self._ahead_s and self._ahead_s:
            bucket.full_at = max(bucket.full_at, now) + self._every_s
            return True
        self.merged += bucket.waits is not None
        bucket.waits = news
        return False

    def next_due(self) -> float | None:
        """When to call `due` next; None if nothing is kept."""
        return self._order[0][0] if self._order else None

    def due(self, now: float, stands: Callable[[News], bool] = lambda _: True) -> list[tuple[Key, News]]:
        """The news to send now. News that no longer `stands` is dropped."""
        news: list[tuple[Key, News]] = []
        order = self._order
        while order and order[0][0] <= now:
            _, _, key = heapq.heappop(order)
            bucket = self._buckets[key]
            if bucket.waits is not None and bucket.full_at - self._ahead_s > now:
                self._look(key, bucket.full_at - self._ahead_s)
                continue
            if bucket.waits is not None:
                if stands(bucket.waits):
                    news.append((key, bucket.waits))
                    bucket.full_at = max(bucket.full_at, now) + self._every_s
                bucket.waits = None
            if bucket.full_at > now:
                self._look(key, now + self._every_s)
            else:
                del self._buckets[key]
        return news

    def _look(self, key: Key, at: float) -> None:
        heapq.heappush(self._order, (at, next(self._numbers), key))
