"""Decides which entries form the next batch of a lane. Pure.

A lane writes one batch at a time. Entries that arrive during a write wait here and form the next
batch, so batches grow with the load and no entry waits for a timer. The rules of a batch, each with
its reason:

- It has at most `rows_max` rows: they set how long its transaction runs and holds the locks of its
  conversations (docs/decisions/0016).
- Within one conversation no message follows an edit or delete: `append` writes the messages first.
- A cid appears once for one sender and conversation: the second item becomes a twin of the first
  and gets its answer as a duplicate.
- No entry becomes a twin of a probe. A probe writes nothing, and what is behind the entry in its
  own session would be written without it.
- An item is refused as `blocked` if an earlier one of its session and conversation failed while it
  was queued: it must not overtake that one (core/send_order.py). The check is made here, at the
  last moment.

A conversation that always has something pending never leaves its lane by itself. Between two
batches whole conversations can be handed to another lane (`split`).
"""

from __future__ import annotations

import enum
from collections import Counter, deque
from typing import TYPE_CHECKING, Final, NamedTuple

from chatd.protocol import DELETE, EDIT, MESSAGE, Delete, Edit, Send

if TYPE_CHECKING:
    from chatd.core.conversation import Conversation
    from chatd.core.session import Session
    from chatd.ids import Cid, UserId
    from chatd.protocol import Entering


class ItemFlag(enum.IntFlag):
    """The flags of an item in `append`, beside its side and kind (sql/functions/append.sql).

    These are names for readers: items hold plain integers.
    """

    PROBE = 1  # over the rate limit: only look whether the cid is known
    RETRY = 2  # the client may have sent it before: look for the cid in all that is retained


# Plain integers: an operation on an IntFlag costs five calls, one on an int none (Python 3.11), and
# every message needs some.
PROBE: Final = int(ItemFlag.PROBE)
RETRY: Final = int(ItemFlag.RETRY)
SIDE_SHIFT: Final = 2  # above the two flags: the side, one bit
CHECK_SHIFT: Final = 3  # above the side: the pair's check (conversation.pair_check)


class Item:
    """One entry on its way into the log, and where its answer goes.

    Slotted and mutable because it is made once per message.
    """

    __slots__ = (
        "body",
        "cid",
        "conv",
        "flags",
        "has_ok",
        "id",
        "kind",
        "peer",
        "ref",
        "refcid",
        "resent_early",
        "session",
        "side",
        "taken_at",
        "twins",
    )

    def __init__(
        self, session: Session, id: int, conv: Conversation, peer: UserId, side: int,
        cid: Cid, kind: int, body: str | None, ref: int | None, flags: int,
    ) -> None:  # fmt: skip
        self.session, self.id, self.conv, self.peer, self.side = session, id, conv, peer, side
        self.cid, self.kind, self.body, self.ref, self.flags = cid, kind, body, ref, flags
        # The cid of the message that an edit or delete changes, if the client gave it. Then `ref`
        # may be unknown until the item is written.
        self.refcid: Cid | None = None
        self.taken_at = 0.0  # when its slot of the rate limit was taken, in seconds; 0: none was
        self.resent_early = False  # sent again before the `retry_ms` that its sender has read
        self.twins: list[Item] | None = None  # later items of the same cid, side and conversation
        # It was answered when its entry was found in the log, before its lane had the result
        self.has_ok = False

    @classmethod
    def from_request(cls, session: Session, request: Entering, conv: Conversation) -> Item:
        """The item of an entry. `SendOrder.decide` has still to decide whether it is written."""
        assert session.user is not None
        flags = RETRY if request.retry else 0
        side, peer = (0, conv.b) if session.user.id == conv.a else (1, conv.a)
        if type(request) is Send:
            item = cls(session, request.id, conv, peer, side, request.cid, MESSAGE, request.body, None, flags)
        elif type(request) is Edit:
            item = cls(session, request.id, conv, peer, side, request.cid, EDIT, request.body, request.ref, flags)
            item.refcid = request.refcid
        else:
            assert isinstance(request, Delete)
            item = cls(session, request.id, conv, peer, side, request.cid, DELETE, None, request.ref, flags)
            item.refcid = request.refcid
        return item

    def answered(self, *, give_back: bool = False) -> bool:
        """The item has an answer, which ends its probe if it was one.

        `give_back`: give back its slot of the rate limit: nothing was written, and the client is
        not at fault. False: it had its `ok` before, and gets no other answer.
        """
        if self.flags & PROBE:
            if not self.has_ok:
                self.session.order.probed(self.peer)
        elif give_back and self.taken_at and self.session.user is not None:
            self.session.user.window.give_back(self.taken_at)
            self.taken_at = 0.0
        return not self.has_ok


def release_pending(items: list[Item]) -> None:
    """These items and their twins are not in a lane any more."""
    for item in items:
        item.conv.pending -= 1
        if item.twins:
            item.conv.pending -= len(item.twins)


class Batch(NamedTuple):
    """The rows of one call of `append`, in order: messages, then changes (edits and deletes)."""

    messages: list[Item]
    changes: list[Item]

    @property
    def items(self) -> list[Item]:
        return self.messages + self.changes if self.changes else self.messages

    def halves(self) -> tuple[Batch, Batch]:
        """Two batches that have the same effect if written one after the other.

        Used to find the row that the database refuses.
        """
        m, x = self.messages, self.changes
        if not x:
            return Batch(m[: len(m) // 2], []), Batch(m[len(m) // 2 :], [])
        if not m:
            return Batch([], x[: len(x) // 2]), Batch([], x[len(x) // 2 :])
        return Batch(m, []), Batch([], x)

    def sift(self) -> tuple[Batch, list[Item]]:
        """(The batch without the items that must not overtake a failed one, these items).

        Used for the half that waited while the other half was written.
        """
        blocked: list[Item] = []
        return Batch(_kept(self.messages, blocked), _kept(self.changes, blocked)), blocked


def _kept(items: list[Item], blocked: list[Item]) -> list[Item]:
    kept = []
    for item in items:
        if not _overtakes(item):
            kept.append(item)
            continue
        twins, item.twins = item.twins or [], None
        blocked += [item, *filter(_overtakes, twins)]
        if rest := [twin for twin in twins if not _overtakes(twin)]:  # twins from other devices
            rest.sort(key=_is_probe)  # the row writes if one of them does
            rest[0].twins = rest[1:] or None
            kept.append(rest[0])
    return kept


def _is_probe(item: Item) -> bool:
    return bool(item.flags & PROBE)


def _overtakes(item: Item) -> bool:
    """True if an earlier item of its session and conversation failed while this one was queued."""
    order = item.session.order
    return bool(order.cuts) and order.overtaken(item.peer, item.id) is not None


class LaneQueue:
    """The items that wait for a lane, in order of arrival."""

    __slots__ = ("items", "rows_max")

    def __init__(self, rows_max: int) -> None:
        self.items: deque[Item] = deque()
        self.rows_max = rows_max

    def __len__(self) -> int:
        return len(self.items)

    def gather(self) -> tuple[Batch, list[Item]]:
        """Take the next batch off the queue, and the items to refuse as `blocked`."""
        messages: list[Item] = []
        changes: list[Item] = []
        blocked: list[Item] = []
        seen: dict[tuple[int, int, str], Item] = {}
        changed: set[int] = set()
        items = self.items
        while items and len(seen) < self.rows_max:
            item = items[0]
            conv_id = item.conv.id
            if item.kind == MESSAGE and conv_id in changed:
                break
            items.popleft()
            if item.session.order.cuts and _overtakes(item):
                blocked.append(item)
                continue
            key = (conv_id, item.side, item.cid)
            first = seen.get(key)
            if first is not None:
                if first.flags & PROBE > item.flags & PROBE:  # it is written, the first one is not
                    items.appendleft(item)
                    break
                if first.twins is None:
                    first.twins = []
                first.twins.append(item)
                continue
            seen[key] = item
            if item.kind == MESSAGE:
                messages.append(item)
            else:
                changed.add(conv_id)
                changes.append(item)
        return Batch(messages, changes), blocked

    def split(self, rows: int) -> list[Item]:
        """Remove whole conversations, at most `rows` items in all; gives their items in order."""
        counts = Counter(item.conv.id for item in self.items)
        taken: set[int] = set()
        for conv_id, count in reversed(counts.items()):  # the front of the queue is written next: leave it
            if count <= rows:
                taken.add(conv_id)
                rows -= count
        split = [item for item in self.items if item.conv.id in taken]
        self.items = deque(item for item in self.items if item.conv.id not in taken)
        return split
