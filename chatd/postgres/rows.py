"""Rows as the queries return them: conversations, heads, and a page of a user's conversations.

Pure.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from chatd.core.snapshot import Snapshot
from chatd.ids import ConvId, UserId

BEGIN: Final = UserId("")  # sorts before every user id: where the first page of a listing begins


class ConvRow(NamedTuple):
    """A row of `conversations` with the cursors of both sides.

    `ts`: ms since 1970. `na`, `nb`: messages that side a, side b has sent. `a_read_n`, `b_read_n`:
    messages of the other side up to that side's read cursor. `xid`: the transaction that wrote the
    head, `started`: as in core/snapshot.py; both are read where a conversation may be loaded.

    It answers what a `Conversation` does, for one that is not in memory.
    """

    id: ConvId
    a: UserId
    b: UserId
    head: int
    floor: int
    na: int
    nb: int
    ts: int
    a_delivered: int = 0
    a_read: int = 0
    a_read_n: int = 0
    b_delivered: int = 0
    b_read: int = 0
    b_read_n: int = 0
    changed: bool = False  # in list_changed.sql only: changed since the client's mark
    xid: int = 0
    started: int = 0

    @property
    def open(self) -> bool:
        return (self.na > 0 and self.nb > 0) or self.a == self.b

    def peer(self, user: UserId) -> UserId:
        return self.b if user == self.a else self.a

    def side(self, user: UserId) -> int:
        return 0 if user == self.a else 1

    def cursor(self, side: int) -> tuple[int, int]:
        return (self.a_delivered, self.a_read) if side == 0 else (self.b_delivered, self.b_read)


class Head(NamedTuple):
    """The last entry of a conversation's log. `ts`: ms since 1970; the rest as in `ConvRow`."""

    id: ConvId
    head: int
    na: int
    nb: int
    ts: int
    a: UserId
    b: UserId


class ListingPage(NamedTuple):
    """One page of a user's conversations.

    `mark`, `now_ms`, `snapshot`: the mark (mark.py), the database's time, and the snapshot that the
    page was read in. `next`: the other participant after whom the next page begins; None on the
    last page. `position`: up to where the log was on disk then, in bytes from the beginning of WAL;
    0 where nobody needs it.
    """

    mark: str
    now_ms: int
    rows: list[ConvRow]
    next: UserId | None
    snapshot: Snapshot
    position: int = 0
