"""Holds what is not answered yet: one queue per conversation, in the order of the calls. Pure.

Guarantee: an item leaves only by `ok`, by an own entry with its cid, by an error that no retry can
heal, or by `abandon` while it is sure that the server has not done it. So nothing is called failed
while its outcome is unknown. Section 5 of docs/protocol.md is the contract.

      add ──► QUEUED ──next()──► SENT ──ok, own entry──► gone
                ▲                 │ └──err without retry_ms──► gone, FAILED
                └──err + retry_ms, blocked, disconnected──┘

Sends are pipelined: `WINDOW_MAX` in one conversation, `FLYING_MAX` over all. A retryable refusal
makes the conversation's window one, because the server refuses (`blocked`) whatever follows;
`rate_limited` makes the window over all one, because the rate is the user's. Each success widens
both by one. The rate that the server allows (`limit`) is kept to without waiting for its refusals.
Conversations are keyed by peer: that name holds before the first message and over a
change of epoch, which `c` does not.

`now` is in seconds, of any one clock. The caller sends all that `next` returns, in that order, and
calls again at `wake_at`. Every step costs O(1) in the length of the outbox, or O(log n) where
something waits for a time.
"""

from __future__ import annotations

import enum
import heapq
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from chatd.client.errors import CidTaken, OutboxFull
from chatd.client.values import Kind

WINDOW_MAX: Final = 8
FLYING_MAX: Final = 64
ITEMS_MAX: Final = 10_000  # with bodies of 2,048 bytes 20 MB; who is further ahead of the server should wait for it
RETRY_MARGIN_S: Final = 0.02  # on top of `retry_ms`: a request that comes early doubles the wait
SKIP_PAUSE_S: Final = 0.25  # after giving up a cid that is not ours
# Refusals that say "not done". After any other retryable code the outcome is unknown.
NOT_DONE: Final = frozenset({"rate_limited", "overloaded", "too_many_conversations", "blocked"})

assert 1 <= WINDOW_MAX <= FLYING_MAX


class State(enum.Enum):
    """Of an item."""

    QUEUED = "queued"
    SENT = "sent"


class Then(enum.Enum):
    """What the caller does next."""

    AGAIN = "again"  # nothing: it stays
    FAILED = "failed"  # it is gone: those that wait get the error
    SKIP = "skip"  # tell the server to give up a cid
    GONE = "gone"  # it is gone, and the server need not know


@dataclass(slots=True, eq=False)
class Item:
    """One send, edit or delete.

    `outcome_unknown`: an earlier try may have been stored. `code`: of the last refusal.
    """

    peer: str
    cid: str
    kind: Kind
    body: str | None
    ref: int | None
    refcid: str | None = None  # cid of the message that it changes: holds over a change of epoch, which `ref` does not
    outcome_unknown: bool = False
    tried: bool = False
    state: State = State.QUEUED
    code: str | None = None
    counted_at: float | None = None  # when it took its part of the rate

    @property
    def surely_not_done(self) -> bool:
        """It waits here, and the server has not stored it."""
        return self.state is State.QUEUED and not self.outcome_unknown


@dataclass(slots=True, eq=False)
class _Queue:
    items: OrderedDict[str, Item]
    window: int = WINDOW_MAX
    until: float = 0.0
    settling: bool = False  # since a refusal: until all that is on its way has its answer


class Outbox:
    """See the module. An item is named by (peer, cid): a cid is unique in its conversation only."""

    def __init__(self, items_max: int = ITEMS_MAX) -> None:
        self.items_max = items_max
        self.size = 0
        self._queues: dict[str, _Queue] = {}
        self._ready: OrderedDict[str, None] = OrderedDict()  # peers that may have something to send
        self._later: list[tuple[float, str]] = []  # heap of (time, peer): ready from then on
        self._window = FLYING_MAX
        self._flying = 0
        self._until = 0.0  # nothing goes anywhere before this time
        self._messages, self._per_s = 0, 0.0
        self._counted: deque[float] = deque()  # times of the last sends, `_messages` at most

    @property
    def has_room(self) -> bool:
        """Whether `add` takes another item."""
        return self.size < self.items_max

    def limit(self, messages: int, per_s: float) -> None:
        """What the server allows: so many in any such time. 0: no limit."""
        self._messages, self._per_s = messages, per_s
        while len(self._counted) > max(messages, 0):
            self._counted.popleft()

    def _count(self, item: Item, now: float) -> bool:
        """Whether the rate has room for it now; then it has taken its part."""
        if self._messages <= 0 or item.counted_at is not None:
            return True
        if len(self._counted) >= self._messages:
            if now < (free_at := self._counted[0] + self._per_s + RETRY_MARGIN_S):
                self._until = max(self._until, free_at)
                return False
            self._counted.popleft()
        item.counted_at = now
        self._counted.append(now)
        return True

    def _give_back(self, item: Item) -> None:
        """The server did not count it: it was refused, or had been stored before."""
        if item.counted_at is not None:
            with suppress(ValueError):  # it is long ago
                self._counted.remove(item.counted_at)
            item.counted_at = None

    def add(
        self,
        peer: str,
        cid: str,
        kind: Kind,
        body: str | None,
        ref: int | None,
        *,
        refcid: str | None = None,
        outcome_unknown: bool = False,
        same: bool = True,
    ) -> Item:
        """Queue an item; the one that has this (peer, cid) already is returned as it is.

        `same`: they must say the same. Raises OutboxFull, CidTaken.
        """
        queue = self._queues.get(peer)
        if queue is not None and (known := queue.items.get(cid)) is not None:
            # A change of epoch takes the `ref` from an item
            other_ref = None not in (known.ref, ref) and known.ref != ref
            if same and ((known.kind, known.body) != (kind, body) or other_ref):
                raise CidTaken(cid)
            return known
        if self.size >= self.items_max:
            raise OutboxFull(f"{self.size} messages wait to be sent; await some of them first")
        if queue is None:
            queue = self._queues[peer] = _Queue(OrderedDict())
        item = queue.items[cid] = Item(
            peer, cid, kind, body, ref, refcid, outcome_unknown=outcome_unknown, tried=outcome_unknown
        )
        self.size += 1
        self._ready[peer] = None
        return item

    def items(self) -> list[Item]:
        """All that waits, those of a conversation in order."""
        return [item for queue in self._queues.values() for item in queue.items.values()]

    def holds(self, item: Item) -> bool:
        """Whether it is here still."""
        queue = self._queues.get(item.peer)
        return queue is not None and queue.items.get(item.cid) is item

    def disconnected(self) -> None:
        """The connection has ended, and with it all blocks, waits and windows.

        What was under way has an unknown outcome.
        """
        self._later.clear()
        self._flying, self._window, self._until = 0, FLYING_MAX, 0.0
        for peer, queue in list(self._queues.items()):
            queue.window, queue.until, queue.settling = WINDOW_MAX, 0.0, False
            for item in queue.items.values():
                item.code = None
                if item.state is State.SENT:
                    item.state, item.outcome_unknown = State.QUEUED, True
            if queue.items:
                self._ready[peer] = None
            else:
                del self._queues[peer]

    def next(self, now: float) -> list[tuple[Item, bool]]:
        """What to send now, in order, each with whether `retry` goes along. It counts as sent."""
        out: list[tuple[Item, bool]] = []
        while self._later and self._later[0][0] <= now:
            self._ready[heapq.heappop(self._later)[1]] = None
        if now < self._until:
            return out
        while self._ready and self._flying < self._window:
            peer = next(iter(self._ready))
            queue = self._queues.get(peer)
            if queue is None or now < queue.until:
                if queue is not None:
                    heapq.heappush(self._later, (queue.until, peer))
                del self._ready[peer]
                continue
            if queue.settling and any(item.state is State.SENT for item in islice(queue.items.values(), WINDOW_MAX)):
                # What was on its way when one was refused may yet be: nothing may overtake it. Its
                # answer comes first
                del self._ready[peer]
                continue
            queue.settling = False
            for item in islice(queue.items.values(), queue.window):
                if item.state is State.SENT:
                    continue
                if self._flying >= self._window:
                    self._ready.move_to_end(peer)  # the others have their turn first
                    return out
                if not self._count(item, now):
                    return out
                out.append((item, item.tried))
                item.state, item.tried = State.SENT, True
                self._flying += 1
            del self._ready[peer]
        return out

    def wake_at(self) -> float | None:
        """When `next` may have something again without an answer or an `add`; None: never."""
        if self._flying >= self._window:
            return None
        if self._ready:
            return self._until
        return max(self._later[0][0], self._until) if self._later else None

    def settle(self, peer: str, cid: str, *, dup: bool = False) -> Item | None:
        """It is in the log: an `ok` has arrived, or an own entry with this cid.

        None if nothing waited for it. `dup`: it had been there, and costs nothing of the rate.
        """
        queue = self._queues.get(peer)
        item = queue.items.get(cid) if queue is not None else None
        if queue is None or item is None:
            return None
        if not queue.settling:  # an ok to what was sent before the refusal says nothing of what follows
            queue.window = min(queue.window + 1, WINDOW_MAX)
        self._window = min(self._window + 1, FLYING_MAX)
        if dup:
            self._give_back(item)
        self._remove(queue, item)
        return item

    def refuse(self, item: Item, code: str, retry_ms: int | None, blocked_by: str | None, now: float) -> Then:
        """An `err` answers the item's last try.

        SKIP: give up the cid `blocked_by`, which is not in this outbox.
        """
        queue = self._queues.get(item.peer)
        if queue is None or queue.items.get(item.cid) is not item:
            return Then.AGAIN  # settled by its entry before
        assert item.state is State.SENT
        item.code = code
        if retry_ms is None or code in NOT_DONE:
            self._give_back(item)
        if code != "blocked" and retry_ms is None:
            self._remove(queue, item)
            return Then.FAILED
        self._flying -= 1
        item.state = State.QUEUED
        queue.window, queue.settling = 1, True
        self._ready[item.peer] = None
        if code == "blocked":
            if blocked_by in queue.items and blocked_by != item.cid:
                return Then.AGAIN
            queue.until = max(queue.until, now + SKIP_PAUSE_S)
            return Then.AGAIN if blocked_by is None else Then.SKIP
        item.outcome_unknown = item.outcome_unknown or code not in NOT_DONE
        queue.until = now + (retry_ms or 0) / 1000 + RETRY_MARGIN_S
        if code == "rate_limited":
            self._until = max(self._until, queue.until)
            self._window = 1
        return Then.AGAIN

    def abandon(self, item: Item) -> Then:
        """Nobody waits for it any more.

        AGAIN: it may be in the log and so it goes on; else it is gone, and for SKIP the server
        waits for it.
        """
        queue = self._queues.get(item.peer)
        if queue is None or queue.items.get(item.cid) is not item:
            return Then.GONE
        if not item.surely_not_done:
            return Then.AGAIN
        self._remove(queue, item)
        if item.code is None or item.code == "blocked":
            return Then.GONE
        queue.until = 0.0  # later items need not wait; where the rate is the reason, `_until` still holds
        return Then.SKIP

    def new_epoch(self) -> list[Item]:
        """The log is another one.

        What names no place in the old one stays: sends, and changes by `refcid`, which from now on
        name nothing else.

        Changes by `ref` alone go, because another message of their author may stand there now.
        """
        changes = [item for item in self.items() if item.kind != "message"]
        gone = [item for item in changes if item.refcid is None]
        for item in changes:
            item.ref = None if item.refcid is not None else item.ref
        for item in gone:
            self._remove(self._queues[item.peer], item)
        return gone

    def save(self) -> list[dict[str, Any]]:
        """All items, as JSON can hold them."""
        return [
            {"peer": i.peer, "cid": i.cid, "kind": i.kind, "body": i.body, "ref": i.ref, "refcid": i.refcid}
            for i in self.items()
        ]  # fmt: skip

    def restore(self, saved: Sequence[Mapping[str, Any]]) -> None:
        """What `save` gave. Each may have been sent since then: its outcome is unknown."""
        for x in saved:
            self.add(x["peer"], x["cid"], x["kind"], x["body"], x["ref"], refcid=x.get("refcid"), outcome_unknown=True)

    def _remove(self, queue: _Queue, item: Item) -> None:
        if item.state is State.SENT:
            self._flying -= 1
        del queue.items[item.cid]
        self.size -= 1
        if queue.items:
            self._ready[item.peer] = None
        # A narrow window is a block that the server may still hold: it outlives its items
        elif queue.window == WINDOW_MAX:
            del self._queues[item.peer]
            self._ready.pop(item.peer, None)
