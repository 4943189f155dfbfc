"""What waits in a conversation for entries before it. Pure.

    a result of this node, an entry of another node ──too early──► wait ──► take, in order of seq
                                          what lies between comes by the bus, or from the log ──┘

A gap is open as long as the log has entries that were not delivered here. Nearly always what is
missing is on its way over the bus, so the gap first waits for it (`GapStep.WAIT`); only then is the
log read (chat/gap_fill.py). In every step what has become the next entry is delivered at once.
"""

from __future__ import annotations

import enum
from bisect import bisect_left, insort
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

# Entries of other nodes that wait in one conversation. Far more than two people write while one
# entry is late. More of them: the log is read, where they are as well.
EARLY_MAX: Final = 64


class GapStep(enum.Enum):
    """What is done about a gap."""

    WAIT = enum.auto()  # what is missing may be on its way over the bus
    ASK = enum.auto()  # its head is looked up: only another node has announced the entries
    READ = enum.auto()  # the log is read


class InGap(NamedTuple):
    """One result, or one entry of another node. `run()` delivers it; `first`: its first seq."""

    first: int
    is_early: bool  # an entry of another node
    run: Callable[[], None]


def _first(one: InGap) -> int:
    return one.first


class Gap:
    """Of one conversation, as long as it misses entries."""

    __slots__ = ("early", "heard", "step", "upto", "waiting")

    def __init__(self, upto: int = 0) -> None:
        self.upto = upto  # PostgreSQL has entries up to this seq at least
        self.heard = 0  # the highest seq that another node has announced
        self.step = GapStep.WAIT
        self.early = 0  # entries of other nodes in `waiting`
        self.waiting: list[InGap] = []  # in order of seq

    def wait(self, first: int, run: Callable[[], None]) -> None:
        """Keep a result of this node, whose first entry has the seq `first`."""
        insort(self.waiting, InGap(first, False, run), key=_first)

    def hold(self, seq: int, run: Callable[[], None]) -> bool:
        """Keep an entry of another node. False: there are too many, and it is not kept."""
        at = bisect_left(self.waiting, seq, key=_first)
        if at < len(self.waiting) and self.waiting[at].first == seq:
            return True  # it was published on the channels of both users
        if self.early >= EARLY_MAX:
            return False
        self.waiting.insert(at, InGap(seq, True, run))
        self.early += 1
        return True

    def take(self, head: int) -> Callable[[], None] | None:
        """What is to be run now that everything up to `head` has been delivered; None: nothing.

        An entry of another node that was delivered otherwise is dropped. A result is not: its items
        may not be answered yet.
        """
        while self.waiting and self.waiting[0].first <= head + 1:
            first, is_early, run = self.waiting.pop(0)
            self.early -= is_early
            if first > head or not is_early:
                return run
        return None

    def forget_heard(self) -> None:
        """What other nodes announced is not in the log."""
        self.heard = self.early = 0
        self.waiting = [one for one in self.waiting if not one.is_early]

    @property
    def has_results(self) -> bool:
        """Whether results of this node wait."""
        return len(self.waiting) > self.early

    def is_closed(self, head: int) -> bool:
        """Whether nothing is missing any more."""
        return head >= self.upto and head >= self.heard
