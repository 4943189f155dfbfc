"""Bounds the connections without a hello, by node and by address, and picks the one to close. Pure.

    enter ──► counted by node ──locate──► and by address ──► leave (it said hello, or has ended)

A connection without a hello costs its client next to nothing, so there are two bounds: one for the
node, and one for each address, so that an address cannot take all places. At a bound the oldest is
closed and the newest takes its place: an honest client says hello within a round trip or two, so
the young ones are worth the room. If the newest were refused instead, a client that holds all
places and reopens them as they end would keep all others out: 219 of 222 honest ones were refused.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

Guest = TypeVar("Guest", bound=Hashable)


class Unauthenticated(Generic[Guest]):
    """The connections without a hello, at most `most`, and `most_of_address` of one address.

    `enter` and `locate` give the one to close for the new one, or None. It is already taken out
    here; the caller closes it.
    """

    __slots__ = ("_all", "_most", "_most_of_address", "_of")

    def __init__(self, most: int, most_of_address: int) -> None:
        assert most >= 1
        assert most_of_address >= 1
        self._most, self._most_of_address = most, most_of_address
        self._all: dict[Guest, str] = {}  # oldest first; the address, empty while it is not known
        self._of: dict[str, dict[Guest, None]] = {}  # by address, oldest first

    def __len__(self) -> int:
        return len(self._all)

    def of(self, address: str) -> int:
        """How many this address has."""
        return len(self._of.get(address, ()))

    def enter(self, guest: Guest) -> Guest | None:
        """Add one that has connected."""
        oldest = next(iter(self._all)) if len(self._all) >= self._most else None
        if oldest is not None:
            self.leave(oldest)
        self._all[guest] = ""
        return oldest

    def locate(self, guest: Guest, address: str) -> Guest | None:
        """Set the address of one, once; does nothing if it has left."""
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
        """Take out one that said hello or has ended. Idempotent."""
        address = self._all.pop(guest, "")
        if address:
            same = self._of[address]
            del same[guest]
            if not same:
                del self._of[address]
