"""This user's own cursors: what the server is known to have, and what it is still to be told. Pure.

Only forward. Coalesced: however many entries came, one `ack` or `read` a conversation goes out;
`read` moves `delivered` along, so with it there is no `ack`. The server may forget the last second
of them in a crash; so what a welcome says replaces what was known, and what was wanted beyond it is
told again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from chatd.client.frames import ConversationItem


class Due(NamedTuple):
    """One request to send."""

    t: Literal["ack", "read"]
    c: str
    seq: int


@dataclass(slots=True)
class _Cursor:
    delivered: int = 0
    read: int = 0
    want_delivered: int = 0
    want_read: int = 0

    @property
    def pending(self) -> bool:
        return self.want_read > self.read or self.want_delivered > max(self.delivered, self.want_read)


class Cursors:
    """`ack` and `read` want; `due` gives what to send; `known`, `again` or `refused` tells what
    became of it.
    """

    def __init__(self) -> None:
        self._of: dict[str, _Cursor] = {}
        self._dirty: dict[str, None] = {}  # conversations with something to tell that is not on its way

    def _at(self, c: str) -> _Cursor:
        return self._of.setdefault(c, _Cursor())

    def ack(self, c: str, seq: int) -> None:
        """This device has everything up to `seq`."""
        cursor = self._at(c)
        if seq > cursor.want_delivered:
            cursor.want_delivered = seq
            self._dirty[c] = None

    def read(self, c: str, seq: int) -> None:
        """The user has seen everything up to `seq`."""
        cursor = self._at(c)
        if seq > cursor.want_read:
            cursor.want_read = seq
            self._dirty[c] = None

    def known(self, c: str, delivered: int, read: int) -> None:
        """The server has these, or further ones."""
        cursor = self._at(c)
        cursor.delivered, cursor.read = max(cursor.delivered, delivered), max(cursor.read, read)

    def welcomed(self, items: Iterable[ConversationItem]) -> None:
        """A new connection: what it lists replaces what was known, and what was on its way before
        is to be told again.
        """
        for item in items:
            cursor = self._at(item.c)
            cursor.delivered, cursor.read = item.delivered, item.read
            cursor.want_delivered, cursor.want_read = (
                min(cursor.want_delivered, item.head),
                min(cursor.want_read, item.head),
            )
        self._dirty = dict.fromkeys(c for c, cursor in self._of.items() if cursor.pending)

    @property
    def waiting(self) -> bool:
        """Something is to be told. It may turn out to be known already."""
        return bool(self._dirty)

    def due(self) -> list[Due]:
        """What to send now; it counts as on its way."""
        out: list[Due] = []
        for c in self._dirty:
            cursor = self._of[c]
            if cursor.want_read > cursor.read:
                out.append(Due("read", c, cursor.want_read))
            if cursor.want_delivered > max(cursor.delivered, cursor.want_read):
                out.append(Due("ack", c, cursor.want_delivered))
        self._dirty.clear()
        return out

    def again(self, c: str) -> None:
        """It was refused for now."""
        self._dirty[c] = None

    def refused(self, c: str) -> None:
        """The server will not have it: stop wanting it."""
        cursor = self._at(c)
        cursor.want_delivered, cursor.want_read = cursor.delivered, cursor.read

    def forget(self) -> None:
        """Another epoch."""
        self._of.clear()
        self._dirty.clear()

    def save(self) -> dict[str, list[int]]:
        """What the server may not know yet: c -> [delivered, read]."""
        return {c: [cursor.want_delivered, cursor.want_read] for c, cursor in self._of.items() if cursor.pending}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """What `save` gave."""
        for c, (delivered, read) in saved.items():
            self.ack(c, delivered)
            self.read(c, read)
