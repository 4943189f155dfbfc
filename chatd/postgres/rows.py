"""Rows as the queries return them: conversations, heads, and a page of a user's conversations.

Pure.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from chatd.ids import ConvId, UserId

BEGIN: Final = UserId("")  # sorts before every user id: where the first page of a listing begins


class ConvRow(NamedTuple):
    """A row of `conversations` with the cursors of both sides.

    `ts`: ms since 1970. `na`, `nb`: messages that side a, side b has sent. `a_read_n`, `b_read_n`:
    messages of the other side up to that side's read cursor.
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

    `mark`, `now_ms`: the mark (mark.py) and the database's time of the snapshot that the page was
    read in. `next`: the other participant after whom the next page begins; None on the last page.
    `position`: up to where the log was on disk then, in bytes from the beginning of WAL; 0 where
    nobody needs it.
    """

    mark: str
    now_ms: int
    rows: list[ConvRow]
    next: UserId | None
    position: int = 0
