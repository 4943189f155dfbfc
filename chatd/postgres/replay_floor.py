"""How far a replica must have replayed the log before it may answer for a conversation. Pure.

    shown(conv) ──► not covered ──look_begins──► asked for ──looked(position)──► position covers it

What a session got from this node's memory has a seq up to the head there, and the answer of a
replica is compared with that head (history_reads.py). What this node read from the log may show
more: a message as an edit has left it whose own entry has not been delivered here yet. Such a
conversation is `shown`. The next look of the watch tells a position of the log that covers it;
until then the replica may not answer for it. Looks are a second apart.

Positions are bytes from the beginning of WAL, of the primary, and mean something in one log only:
`forget` when it moves.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from chatd.ids import ConvId

CONVS_MAX: Final = 10_000  # remembered one by one; some 1 MB
# Looks remembered one by one. A replica that is further behind than these has to reach the oldest
# of them for all conversations.
LOOKS_MAX: Final = 16


class ReplayFloor:
    """See the module. `primary`: the position at the last look; 0 before the first."""

    def __init__(self) -> None:
        self.primary = 0
        self.forget()

    def forget(self) -> None:
        """The log is another one: no position of the one before means anything."""
        self._open: set[ConvId] = set()  # shown since the last look began
        self._asked: set[ConvId] = set()  # shown before it, and it is under way or has failed
        self._is_full = self._is_asked_full = False  # all conversations count as such
        self._covered: deque[tuple[int, set[ConvId]]] = deque()  # by position, rising
        self._of_all = 0  # of every conversation

    def shown(self, conv: ConvId) -> None:
        """A client may have seen of this conversation what lies beyond the head in memory."""
        if len(self._open) < CONVS_MAX:
            self._open.add(conv)
        else:
            self._is_full = True

    def look_begins(self) -> None:
        """The position of the log is being asked for. Repeated after a look that failed."""
        self._asked |= self._open
        self._is_asked_full = self._is_asked_full or self._is_full or len(self._asked) > CONVS_MAX
        if self._is_asked_full:
            self._asked = set()
        self._open, self._is_full = set(), False

    def looked(self, position: int) -> None:
        """The answer to the last `look_begins`."""
        self.primary = position
        if self._is_asked_full:
            self._of_all = max(self._of_all, position)
        elif self._asked:
            self._covered.append((position, self._asked))
        self._asked, self._is_asked_full = set(), False
        while len(self._covered) > LOOKS_MAX or sum(len(convs) for _, convs in self._covered) > CONVS_MAX:
            oldest, _ = self._covered.popleft()
            self._of_all = max(self._of_all, oldest)

    def needed(self, conv: ConvId) -> int | None:
        """The position that covers what was shown of a conversation; None: not known yet."""
        if self._is_full or self._is_asked_full or conv in self._open or conv in self._asked:
            return None
        for position, convs in reversed(self._covered):
            if conv in convs:
                return position
        return self._of_all
