"""News that is told at most once in so long about the same thing, and the last of it always. Pure: `now` is an argument, in seconds.

    offer(key, news) ──┬── nothing told of late ──► told at once
                       └── else it waits, and newer news takes its place ──due──► told when the time is over

For what is a state and not an entry of a log: somebody types, somebody is away. Ten devices of one user that change it a hundred times a
second cost each watcher one push a second. The first change is told without delay, so a usual one is as quick as without this.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from typing import Final, Generic, TypeVar

TYPING_S: Final = 1.0  # it shows for 6 s, and is repeated every 3 to 5
PRESENCE_S: Final = 0.9  # a change is to be seen within a second on every node: what is left is for the tick and the way there

Key = TypeVar("Key", bound=Hashable)
News = TypeVar("News")


class Pace(Generic[Key, News]):
    """`offer` gives whether to tell it now; `due` gives what has waited long enough. It keeps what was told within the last `every_s`."""

    __slots__ = ("_every_s", "_order", "_waiting", "merged")

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._waiting: dict[Key, News | None] = {}  # of whom something was told of late; what waits to be told of them
        self._order: deque[tuple[float, Key]] = deque()  # (when it may be told again, of whom), one for each of them
        self.merged = 0  # news that was not told because newer took its place, so far

    def __len__(self) -> int:
        return len(self._waiting)

    def offer(self, key: Key, news: News, now: float) -> bool:
        """Tell this now? Else it is kept, in place of what waited; `due` will give it."""
        if key in self._waiting:
            self.merged += self._waiting[key] is not None
            self._waiting[key] = news
            return False
        self._waiting[key] = None
        self._order.append((now + self._every_s, key))
        return True

    def due(self, now: float, stands: Callable[[News], bool] = lambda _: True) -> list[tuple[Key, News]]:
        """What is to be told now. What no longer `stands` is dropped."""
        told: list[tuple[Key, News]] = []
        order = self._order
        while order and order[0][0] <= now:
            _, key = order.popleft()
            news = self._waiting.pop(key)
            if news is not None and stands(news):
                told.append((key, news))
                self._waiting[key] = None
                order.append((now + self._every_s, key))
        return told
