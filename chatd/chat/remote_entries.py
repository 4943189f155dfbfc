"""Entries that other nodes publish over Redis: each is delivered here once it is the next one.

    Relay ──heard──► is it of these two users? ──► the next one: Delivery
                                               └─► a later one: waits in a gap (chat/gap_fill.py)

What another node says is fast but not complete, and it may be of another log: PostgreSQL decides.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from chatd.chat import entry_payloads
from chatd.chat.delivery import Delivery
from chatd.core.conversation import Conversation
from chatd.core.conversations import Registry
from chatd.ids import UserId
from chatd.protocol import MESSAGE
from chatd.store import Store
from chatd.wire import node_messages
from chatd.wire.node_messages import Entry


class RemoteEntries:
    """Of one node. `now_ms`: ms since 1970, the database's clock."""

    def __init__(self, registry: Registry, store: Store, delivery: Delivery, now_ms: Callable[[], int]) -> None:
        self._registry, self._store, self._delivery, self._now_ms = registry, store, delivery, now_ms
        self._gaps = delivery.gaps

    def heard(self, to: UserId, e: Entry) -> bool:
        """Another node has written an entry of a user who is held here. False: it is invalid."""
        conv = self._registry.convs.get(e.conv)
        if conv is None:
            user = self._registry.users.get(to)
            if user is None:
                return True
            if not user.loaded:
                user.early = user.early or {}
                user.early[e.conv] = e.seq  # its listing is under way, and may be older
                return True
            names = node_messages.parties(e.frame, e.side)
            if names is None or to not in names:
                return False
            if not self._registry.fits(e.conv, *names):
                self._store.log.suspect()
                return False
            conv = self._registry.hold(e.conv, *names)
        elif (to != conv.a and to != conv.b) or not _is_between(conv, e):
            return False
        if e.seq == conv.head + 1:
            self._deliver(conv, e)
            if conv.gap is None:
                return True
            self._gaps.advanced(conv)
        elif e.seq > conv.head:
            self._gaps.early(conv, e.seq, partial(self._deliver, conv, e))
        # How late the bus is matters to gaps alone: only what opens one, closes one or comes after
        # the log was read is measured.
        self._gaps.bus_lag.heard((self._now_ms() - e.ts) / 1000)
        return True

    def _deliver(self, conv: Conversation, e: Entry) -> None:
        """Deliver the next entry."""
        if not e.na and not e.nb:  # its writer did not know what is before it
            is_message = e.kind == MESSAGE
            e = e._replace(na=conv.na + (is_message and e.side == 0), nb=conv.nb + (is_message and e.side == 1))
        self._delivery.deliver_remote(conv, e, entry_payloads.of_remote, "bus")


def _is_between(conv: Conversation, e: Entry) -> bool:
    """Whether the entry of another node is of these two. Its id may be of others in another log."""
    return b',"from":%b,"to":%b,' % conv.names(e.side) in e.frame or node_messages.parties(e.frame, e.side) == (
        conv.a,
        conv.b,
    )
