"""Maps each watched user to the sessions that watch them. Pure.

A user without a watcher has no entry, so the map is as large as what is watched.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, KeysView
from typing import NamedTuple

from chatd.ids import UserId


class WatchChange(NamedTuple):
    """`first`: users whose first watcher this is; `last`: users who have no watcher any more."""

    first: list[UserId]
    last: list[UserId]


class Watchers:
    """The sessions that watch each user."""

    __slots__ = ("_of",)

    def __init__(self) -> None:
        self._of: dict[UserId, set[Hashable]] = {}

    def __contains__(self, user: UserId) -> bool:
        return user in self._of

    def __len__(self) -> int:
        return len(self._of)

    def of(self, user: UserId) -> Iterable[Hashable]:
        return self._of.get(user, ())

    def users(self) -> KeysView[UserId]:
        """The users who are watched."""
        return self._of.keys()

    def items(self) -> Iterable[tuple[UserId, set[Hashable]]]:
        return self._of.items()

    def replace(self, watcher: Hashable, old: Iterable[UserId], new: Iterable[UserId]) -> WatchChange:
        """Replace what a session watches: `old` by `new`."""
        names = dict.fromkeys(new)
        first: list[UserId] = []
        last: list[UserId] = []
        for user in names:
            watchers = self._of.get(user)
            if watchers is None:
                first.append(user)
                watchers = self._of[user] = set()
            watchers.add(watcher)
        for user in old:
            watchers = None if user in names else self._of.get(user)
            if watchers is not None:
                watchers.discard(watcher)
                if not watchers:
                    del self._of[user]
                    last.append(user)
        return WatchChange(first, last)
