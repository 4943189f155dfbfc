"""What was delivered of a user's conversations that are no longer in memory. Pure.

A conversation that nobody has used for a while is let go (core/conversations.py). If it got entries
while it was in memory, its head is kept here, 16 bytes, until the user's last session ends. With it
a node tells, when the conversation is named again, that nobody else has added to the log.
"""

from __future__ import annotations

from array import array

from chatd.ids import ConvId


class Delivered:
    """The heads, by conversation."""

    __slots__ = ("_heads", "_ids")

    def __init__(self) -> None:
        self._ids, self._heads = array("q"), array("q")

    def __len__(self) -> int:
        return len(self._ids)

    def put(self, conv: ConvId, head: int) -> None:
        """Keep the head of a conversation that is let go; it is not here yet."""
        self._ids.append(conv)
        self._heads.append(head)

    def take(self, conv: ConvId) -> int | None:
        """Its head, which is not kept any longer; None if there is none."""
        try:
            at = self._ids.index(conv)
        except ValueError:
            return None
        head = self._heads[at]
        self._ids[at], self._heads[at] = self._ids[-1], self._heads[-1]
        self._ids.pop()
        self._heads.pop()
        return head
