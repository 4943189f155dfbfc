"""Who has not said hello yet: how many, of which address, and who goes when there is no room for one more.

Pure.

    enter ──► counted by the node ──locate──► and by its address ──► leave (it said hello, or is gone)

A connection without a hello costs next to nothing to open, so there are two bounds. Of one address
there may be a share, so that it cannot take all places. Where a bound is reached the oldest goes
and the newest has its place: an honest client says hello within a round trip or two, so it is the
young ones that are worth the room. Refusing the newest instead lets whoever holds all places, and
opens some again as they end, keep everybody else out: 219 of 222 honest clients were refused.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

Guest = TypeVar("Guest", bound=Hashable)


class Strangers(Generic[Guest]):
    """`enter` and `locate` give who has to go for it, if anybody; that one is forgotten here, and
    the caller closes it.
    """

    __slots__ = ("_all", "_most", "_most_of_address", "_of")

    def __init__(self, most: int, most_of_address: int) -> None:
        assert most >= 1
        assert most_of_address >= 1
        self._most, self._most_of_address = most, most_of_address
        self._all: dict[Guest, str] = {}  # the oldest first; its address, empty while that is not known
        self._of: dict[str, dict[Guest, None]] = {}  # by address, the oldest first

    def __len__(self) -> int:
        return len(self._all)

    def of(self, address: str) -> int:
        """How many of this address."""
        return len(self._of.get(address, ()))

    def enter(self, guest: Guest) -> Guest | None:
        """It has connected."""
        oldest = next(iter(self._all)) if len(self._all) >= self._most else None
        if oldest is not None:
            self.leave(oldest)
        self._all[guest] = ""
        return oldest

    def locate(self, guest: Guest, address: str) -> Guest | None:
        """It comes from there. Once; nothing if it has left."""
        if guest not in self._all:
            return None
        same = self._of.get(address)
        oldest = next(iter(same)) if same is not None and len(same) >= self._most_of_address else None
        if oldest is not None:
            self.leave(oldest)
        self._all[guest] = address
        self._of.setdefault(address, {})[guest] = None
        return oldest

    def leave(self, guest: Guest) -> None:
        """It has said hello, or is gone. Idempotent."""
        address = self._all.pop(guest, "")
        if address:
            same = self._of[address]
            del same[guest]
            if not same:
                del self._of[address]
