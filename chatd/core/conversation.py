"""One conversation as this node holds it: what it has delivered, the cursors, and its gap if any.

Pure. core/conversations.py holds all of them.

`Conversation.head` is the last entry that this node has *delivered to its sessions*, not the last
one in PostgreSQL. An entry beyond head + 1 shows a gap, which is closed before delivery continues
(core/gap.py, chat/gap_fill.py). Cursors only move forward: of memory and database, the
larger value is right.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from chatd.protocol import compact, dumps

if TYPE_CHECKING:
    from chatd.core.gap import Gap
    from chatd.ids import ConvId, UserId


def pair_check(a: UserId, b: UserId) -> int:
    """28 bits that stand for two users, as in sql/functions/pair_check.sql.

    `append` refuses an item whose check is not that of its conversation's users.
    """
    return int.from_bytes(hashlib.sha256(f"{a}\n{b}".encode()).digest()[:4]) >> 4


class Conversation:
    """A log between `a` and `b`, as this node sees it.

    a <= b by bytes; both are the same user for notes to oneself. `head`: seq of the last delivered
    entry. `na`, `nb`: how many messages a and b have ever sent. `ts`: time of the last entry (ms
    since 1970, database clock). `floor`: the lowest seq that retention keeps.
    """

    __slots__ = (
        "a",
        "a_delivered",
        "a_json",
        "a_read",
        "b",
        "b_delivered",
        "b_json",
        "b_read",
        "check",
        "floor",
        "gap",
        "head",
        "id",
        "is_used",
        "lane",
        "loaded_head",
        "na",
        "nb",
        "pending",
        "ts",
    )  # fmt: skip

    def __init__(self, id: ConvId, a: UserId, b: UserId) -> None:
        self.id, self.a, self.b = id, a, b
        self.a_json, self.b_json = compact(dumps(a)), compact(dumps(b))
        self.check = pair_check(a, b) << 3  # above the flags of an item (batch.CHECK_SHIFT)
        self.head = self.na = self.nb = self.ts = 0
        self.floor = 1
        self.a_delivered = self.a_read = self.b_delivered = self.b_read = 0
        self.pending = 0  # items in lanes; while > 0 the conversation stays in `lane`
        self.lane = 0
        self.gap: Gap | None = None  # set while entries before later ones are missing here
        self.is_used = True  # named or heard since it was last looked at (core/unused.py)
        # The head when it was loaded; -1 if it got entries in an earlier stay in memory
        self.loaded_head = 0

    @property
    def open(self) -> bool:
        """True if both have sent, or it is notes to oneself.

        Only then do its users see each other's presence, typing, receipts and cursors. It stays
        true: `na` and `nb` also count messages that retention removed or their author deleted.
        """
        return (self.na > 0 and self.nb > 0) or self.a == self.b

    def peer(self, user: UserId) -> UserId:
        return self.b if user == self.a else self.a

    def side(self, user: UserId) -> int:
        return 0 if user == self.a else 1

    def names(self, side: int) -> tuple[bytes, bytes]:
        """(from, to) as JSON, for an entry or push of this side."""
        return (self.a_json, self.b_json) if side == 0 else (self.b_json, self.a_json)

    def cursor(self, side: int) -> tuple[int, int]:
        """(delivered, read) of a side."""
        return (self.a_delivered, self.a_read) if side == 0 else (self.b_delivered, self.b_read)

    def advance(self, side: int, delivered: int, read: int) -> bool:
        """Move a side's cursors forward; True if one moved. `read` implies `delivered`."""
        old = (self.a_delivered, self.a_read) if side == 0 else (self.b_delivered, self.b_read)
        new = (max(old[0], delivered, read), max(old[1], read))
        if side == 0:
            self.a_delivered, self.a_read = new
        else:
            self.b_delivered, self.b_read = new
        return new != old
