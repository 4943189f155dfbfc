"""A conversation as it stands, from its entries in whatever order they arrive. Pure.

    entries of `entries`, `history`, `iter_history` ── add ──► messages, each with its last text

For each message the state with the highest `rev` wins (section 4 of docs/protocol.md): an edit or
delete is a state of the message at `ref`, and its own seq is the `rev`. So pages and live entries
may overlap, and a change may arrive before its message. A Log is for one conversation of one epoch;
after a Reset of that conversation, begin a new one.
"""

from __future__ import annotations

import bisect
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from chatd.client.values import Entry

CHANGES_MAX: Final = 10_000  # of messages that are not held: they are older than what was loaded


@dataclass(frozen=True, slots=True)
class Message:
    """A message with its last change. `body` is None if it was deleted.

    `rev`: seq of the last change; 0: it has none. `edited`, `deleted`: the time of it.
    """

    seq: int
    ts: int
    own: bool
    body: str | None
    cid: str | None = None
    rev: int = 0
    edited: int | None = None
    deleted: int | None = None


@dataclass(frozen=True, slots=True)
class _Change:
    rev: int
    body: str | None
    edited: int | None
    deleted: int | None


class Log:
    """`add` takes entries; iterate for the messages, the oldest first, or `reversed`."""

    def __init__(self) -> None:
        self._messages: dict[int, Message] = {}
        self._seqs: list[int] = []  # of the messages, rising
        self._changes: OrderedDict[int, _Change] = OrderedDict()  # by seq of a message that is not held

    def add(self, entry: Entry) -> Message | None:
        """Take an entry; the message that is new or has changed, or None."""
        match entry.kind:
            case "message":
                return self._message(entry)
            case "edit" | "delete" if entry.ref is not None:
                return self._change(entry, entry.ref)
            case _:
                return None

    def _message(self, entry: Entry) -> Message | None:
        message = Message(
            entry.seq, entry.ts, entry.own, entry.body, entry.cid, entry.rev or 0, entry.edited, entry.deleted
        )
        held = self._messages.get(entry.seq)
        if held is not None and held.rev >= message.rev:
            return None
        change = self._changes.pop(entry.seq, None)
        if change is not None and change.rev > message.rev:
            message = _changed(message, change)
        if held is None:
            bisect.insort(self._seqs, entry.seq)
        self._messages[entry.seq] = message
        return message

    def _change(self, entry: Entry, ref: int) -> Message | None:
        is_delete = entry.kind == "delete"
        if not is_delete and entry.body is None:  # its text stands with the message, or a later edit
            return None
        times = (None, entry.ts) if is_delete else (entry.ts, None)
        change = _Change(entry.seq, entry.body, *times)
        message = self._messages.get(ref)
        if message is None:
            known = self._changes.get(ref)
            if known is None or known.rev < change.rev:
                self._changes[ref] = change
            if len(self._changes) > CHANGES_MAX:
                self._changes.popitem(last=False)
            return None
        if message.rev >= change.rev:
            return None
        changed = self._messages[ref] = _changed(message, change)
        return changed

    def get(self, seq: int) -> Message | None:
        """The message of that seq, if it is held."""
        return self._messages.get(seq)

    def trim(self, most: int) -> None:
        """Forget all but the newest `most` messages. The others can be read from history again."""
        gone = self._seqs[: max(0, len(self._seqs) - most)]
        del self._seqs[: len(gone)]
        for seq in gone:
            del self._messages[seq]

    def __iter__(self) -> Iterator[Message]:
        return (self._messages[seq] for seq in self._seqs)

    def __reversed__(self) -> Iterator[Message]:
        return (self._messages[seq] for seq in reversed(self._seqs))

    def __len__(self) -> int:
        return len(self._seqs)


def _changed(message: Message, change: _Change) -> Message:
    return replace(message, rev=change.rev, body=change.body, edited=change.edited, deleted=change.deleted)
