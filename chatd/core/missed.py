"""What a session has not got yet: entries that are not pushed to it, and cursors. Pure.

    an entry while its welcome is made ──miss──► behind ──► chat/resync.py reads them from the log
    an `ok` of a conversation that it is behind in ──hold──► held, until the fill reaches its seq
    a cursor while its welcome is made ──cursor_moved──► moved, pushed after the welcome

All three are None in a session that misses nothing, as nearly all do.
"""

from __future__ import annotations

from chatd.ids import ConvId


class Missed:
    """A part of each session."""

    __slots__ = ("behind", "held", "moved")

    def __init__(self) -> None:
        self.behind: dict[ConvId, int] | None = None  # by conversation: the seq up to which it was filled
        self.held: dict[tuple[ConvId, int], bytes] | None = None  # `ok`s that wait until the fill reaches their seq
        # While its welcome is made: (conversation, side) whose cursors moved
        self.moved: set[tuple[ConvId, int]] | None = None

    def miss(self, conv: ConvId, after: int) -> None:
        """It has this conversation up to the seq `after`, or less if it missed entries before."""
        self.behind = self.behind or {}
        self.behind[conv] = min(after, self.behind.get(conv, after))

    def filled(self, conv: ConvId, upto: int) -> None:
        """It has this conversation up to the seq `upto`, and misses later entries."""
        self.behind = self.behind or {}
        self.behind[conv] = upto

    def caught_up(self, conv: ConvId) -> None:
        """It misses nothing of this conversation any more: new entries are pushed to it."""
        if self.behind is not None:
            self.behind.pop(conv, None)
            self.behind = self.behind or None

    def hold(self, conv: ConvId, seq: int, frame: bytes) -> None:
        """Keep an `ok` until the fill reaches its seq; it is sent in place of that entry."""
        self.held = self.held or {}
        self.held[conv, seq] = frame

    def take_held(self, conv: ConvId, seq: int) -> bytes | None:
        """The `ok` to send in place of this entry, if there is one."""
        return self.held.pop((conv, seq), None) if self.held else None

    def cursor_moved(self, conv: ConvId, side: int) -> None:
        """A cursor moved while its welcome is made: the welcome may have an older value."""
        self.moved = self.moved or set()
        self.moved.add((conv, side))

    def take_moved(self) -> set[tuple[ConvId, int]]:
        """The cursors that moved, as (conversation, side), to be pushed after the welcome."""
        moved, self.moved = self.moved or set(), None
        return moved
