"""Receipts: the cursors of a conversation, pushed to its users' sessions here.

    a request here (chat/cursors.py) ──────────────────────────► push ──► sessions that are live
    another node, the change feed, a listing ──moved──► advance ──┘
                                                └─► beyond what was delivered here: held

A receipt never names an entry that its reader does not have. A cursor beyond the head waits until
the entry has been delivered: what lies between was lost on its way, and is looked up.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from chatd import protocol
from chatd.chat.gap_fill import Gaps
from chatd.core.conversation import Conversation
from chatd.core.conversations import Registry
from chatd.core.session import Session, State
from chatd.ids import ConvId, UserId
from chatd.metrics import Metrics
from chatd.wire.frames import encode_text

# Conversations whose cursors wait for an entry; past it the oldest are dropped, and the next
# listing has them
HELD_MAX: Final = 10_000
NEVER_MOVED: Final = (0, 0)  # cursors


class Receipts:
    """Of all conversations. Call `release` when an entry has been delivered, if any are `held`."""

    def __init__(self, registry: Registry, metrics: Metrics, gaps: Gaps) -> None:
        self._registry, self._metrics, self._gaps = registry, metrics, gaps
        self.held: dict[ConvId, list[int]] = {}  # cursors of both sides beyond what was delivered here

    def moved(self, conv: Conversation, side: int, delivered: int, read: int) -> None:
        """Cursors from another node or the database: push them if they are new.

        They are pushed as far as their entries were delivered here. The rest waits for the missing
        entries, one of which was lost on its way.
        """
        if delivered > conv.head or read > conv.head:
            self._hold(conv, side, delivered, read)
            self._gaps.look_up((conv.id,))
        else:
            self._move(conv, side, delivered, read)

    def _move(self, conv: Conversation, side: int, delivered: int, read: int) -> None:
        if conv.advance(side, delivered, read):
            self.push(conv, side, None)

    def _hold(self, conv: Conversation, side: int, delivered: int, read: int) -> None:
        held = self.held.setdefault(conv.id, [0, 0, 0, 0])
        held[2 * side] = max(held[2 * side], delivered)
        held[2 * side + 1] = max(held[2 * side + 1], read)
        if len(self.held) > HELD_MAX:
            del self.held[next(iter(self.held))]
        self._move(conv, side, min(delivered, conv.head), min(read, conv.head))

    def release(self, conv: Conversation) -> None:
        """An entry has been delivered: move the cursors that waited for it."""
        held = self.held.pop(conv.id, None)
        if held is not None:
            for side, delivered, read in ((0, *held[:2]), (1, *held[2:])):
                if delivered > conv.head or read > conv.head:
                    self._hold(conv, side, delivered, read)
                else:
                    self._move(conv, side, delivered, read)

    def push_to_peers(self, conv: Conversation) -> None:
        """Both have sent now: push to each the cursors of the other."""
        for side, peer in ((0, conv.b), (1, conv.a)):
            if conv.cursor(side) != NEVER_MOVED:
                self.push(conv, side, None, {peer})

    def push(self, conv: Conversation, side: int, but: Session | None, to: Collection[UserId] | None = None) -> None:
        """Push the cursors of one side to all sessions except `but`.

        They go to the sessions of that side's user, and once both have sent to the other's. `to`:
        to these users only.
        """
        frame = encode_text(protocol.receipt(conv.id, *conv.names(side), *conv.cursor(side)))
        if to is None:
            to = {conv.a, conv.b} if conv.open else {conv.b if side else conv.a}
        for id in to:
            if (user := self._registry.users.get(id)) is not None:
                for session in user.sessions.values():
                    if session.state is State.LIVE:
                        if session is not but:
                            self._metrics.receipts += 1
                            session.sink.send(frame)
                    # Its welcome may have an older one, or not list this conversation
                    elif session.state is State.OPENING:
                        session.cursor_moved(conv.id, side)
