"""Holds the entries that the app was given and has not handled yet. Pure.

    given   5 6 7 8 9           a restart goes on after 6, because 7 may not be handled.
    done    5 6   8 9           Then 7, 8 and 9 are given again.

So handlers may run side by side and end in any order, and none of their entries is lost over a
restart. Conversations are keyed by peer: that name holds over a change of epoch, which `c` does
not. A handler that never says `done` is bounded: at `IN_HAND_MAX` no further entry is given.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final, NamedTuple

from chatd.client.values import Entry

IN_HAND_MAX: Final = 1_000


class Mark(NamedTuple):
    """How far the app was in a conversation: the last seq, its time (0: not known), whether the
    conversation was new.
    """

    taken: int
    taken_ts: int
    is_new: bool


@dataclass(slots=True)
class _Given:
    epoch: str
    before: Mark
    done: bool = False


class InHand:
    """`gave` records an entry, `done` handles it, `first` says where a restart goes on."""

    def __init__(self) -> None:
        self.size = 0  # given and not done
        self._of: dict[str, OrderedDict[int, _Given]] = {}

    @property
    def full(self) -> bool:
        """Whether the app has too many entries that it has not done."""
        return self.size >= IN_HAND_MAX

    def gave(self, entry: Entry, before: Mark) -> None:
        """The app has `entry` from now on; `before` it, it was there."""
        self._of.setdefault(entry.peer, OrderedDict())[entry.seq] = _Given(entry.epoch, before)
        self.size += 1

    def done(self, entry: Entry) -> bool:
        """The app has handled it. False: it is not in hand, or is of another log by now."""
        of = self._of.get(entry.peer)
        given = None if of is None else of.get(entry.seq)
        if given is None or given.done or given.epoch != entry.epoch:
            return False
        given.done = True
        self.size -= 1
        self._trim(entry.peer)
        return True

    def first(self, peer: str, but: Entry | None = None) -> Mark | None:
        """Where a restart goes on in this conversation; None: after all that was given.

        `but`: an entry that counts as done.
        """
        for seq, given in self._of.get(peer, {}).items():
            if not given.done and not (but is not None and (but.peer, but.seq) == (peer, seq)):
                return given.before
        return None

    def drop_after(self, peer: str, seq: int) -> None:
        """These entries are not in the log any more."""
        of = self._of.get(peer)
        if of is None:
            return
        for gone in [one for one in of if one > seq]:
            self.size -= not of.pop(gone).done
        self._trim(peer)

    def keep(self, peers: set[str]) -> None:
        """The conversations with all others are gone."""
        for peer in self._of.keys() - peers:
            self.drop_after(peer, 0)

    def _trim(self, peer: str) -> None:
        of = self._of.get(peer)
        while of and next(iter(of.values())).done:
            of.popitem(last=False)
        if of is not None and not of:
            del self._of[peer]
