"""Holds this user's own cursors: those that the server has, and those still to be sent. Pure.

Cursors only move forward. They are coalesced: for any number of entries one `ack` or `read` goes
out per conversation. `read` moves `delivered` along, so there is no `ack` with it. A crash of the
server may lose the last second of them. So what a welcome says replaces what was known, and what
was wanted beyond it is sent again.

After a refusal with a time nothing of any conversation goes out before that time, because the rate
is the connection's. `FLYING_MAX` requests are unanswered at most. `now` is in seconds, of any one
clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

from chatd.client.frames import ConversationItem

FLYING_MAX: Final = 50


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
    """`ack` and `read` move a cursor; `due` returns what to send.

    `known`, `again` or `refused` reports the outcome.
    """

    def __init__(self) -> None:
        self._of: dict[str, _Cursor] = {}
        self._dirty: dict[str, None] = {}  # conversations with a cursor to send that is not under way
        self._flying = 0
        self._not_before = 0.0

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
        """A new connection: its listing replaces what was known; the rest is sent again."""
        for item in items:
            cursor = self._at(item.c)
            cursor.delivered, cursor.read = item.delivered, item.read
            cursor.want_delivered, cursor.want_read = (
                min(cursor.want_delivered, item.head),
                min(cursor.want_read, item.head),
            )
        self._dirty = dict.fromkeys(c for c, cursor in self._of.items() if cursor.pending)
        self._flying, self._not_before = 0, 0.0

    @property
    def waiting(self) -> bool:
        """Whether a cursor is to be sent. The server may have it by then."""
        return bool(self._dirty)

    def due(self, now: float = 0.0, *, last: bool = False) -> list[Due]:
        """What to send now; it counts as under way, until `answered`.

        `last`: the connection ends after this, so all goes out.
        """
        out: list[Due] = []
        if now < self._not_before and not last:
            return out
        while self._dirty and (last or self._flying + len(out) < FLYING_MAX):
            c = next(iter(self._dirty))
            del self._dirty[c]
            cursor = self._of[c]
            if cursor.want_read > cursor.read:
                out.append(Due("read", c, cursor.want_read))
            if cursor.want_delivered > max(cursor.delivered, cursor.want_read):
                out.append(Due("ack", c, cursor.want_delivered))
        self._flying += len(out)
        return out

    def wake_at(self) -> float | None:
        """When `due` may have something again without an answer; None: never."""
        return self._not_before if self._dirty and self._flying < FLYING_MAX else None

    def answered(self) -> None:
        """One of what `due` returned has its answer."""
        self._flying = max(0, self._flying - 1)

    def again(self, c: str, not_before: float = 0.0) -> None:
        """The server refused it for now: `due` returns it again, and nothing before that time."""
        self._dirty[c] = None
        self._not_before = max(self._not_before, not_before)

    def refused(self, c: str) -> None:
        """The server refused it for good: drop it."""
        cursor = self._at(c)
        cursor.want_delivered, cursor.want_read = cursor.delivered, cursor.read

    def forget(self) -> None:
        """Drop all, because the epoch changed."""
        self._of.clear()
        self._dirty.clear()
        self._flying, self._not_before = 0, 0.0

    def save(self) -> dict[str, list[int]]:
        """What the server may not know yet: c -> [delivered, read]."""
        return {c: [cursor.want_delivered, cursor.want_read] for c, cursor in self._of.items() if cursor.pending}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """What `save` gave."""
        for c, (delivered, read) in saved.items():
            self.ack(c, delivered)
            self.read(c, read)
