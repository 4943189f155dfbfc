"""What a client holds from one connection to the next, and the futures that wait for outcomes.

It has the pure parts (inbox, outbox, cursors), and the asyncio events that are set when they
change. `client.py` (the app's side) and `session.py` (the connection's side) work on one Desk and
know nothing else of each other.

    app ── send ──► outbox ── to_send ──► session ── push ──► inbox ── arrived ──► entries()
    app ── take ──► inbox ─── to_fill ──► session ── answer ► waiting futures, events
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from chatd.client.cursors import Cursors
from chatd.client.errors import ClientError, EpochChanged, RequestError, Withdrawn
from chatd.client.frames import (
    ConversationItem,
    Entry,
    Event,
    Limits,
    Notice,
    Presence,
    Receipt,
    Reset,
    Sent,
    Typing,
    Unsent,
    Welcome,
)
from chatd.client.inbox import Inbox
from chatd.client.outbox import Item, Outbox, Then
from chatd.client.values import CatchUpFailed, Kind, Line, Unreadable

log = logging.getLogger("chatd.client")

EVENTS_MAX: Final = 10_000
STATE_VERSION: Final = 1
OWN_MAX: Final = 10_000  # own messages whose cids are kept for edits and deletes: some 2 MB


class Events:
    """What `Client.events` gives.

    A newer one about the same thing replaces the older, so a slow reader sees how things stand now.
    """

    def __init__(self) -> None:
        self.news = asyncio.Event()
        self.on_event: Callable[[Event], None] = lambda _: None  # called with each at its arrival
        self._of: OrderedDict[tuple[str, ...], Event] = OrderedDict()

    def add(self, event: Event) -> None:
        """At the end of the queue. When it is full the oldest goes: nobody reads them then."""
        key = _about(event)
        self._of[key] = event
        self._of.move_to_end(key)
        if len(self._of) > EVENTS_MAX:
            self._of.popitem(last=False)
        self.news.set()
        self.on_event(event)

    def drop(self, event: Event) -> None:
        """What it says is not so any more."""
        self._of.pop(_about(event), None)

    def take(self) -> Event | None:
        """The oldest, if any."""
        return self._of.popitem(last=False)[1] if self._of else None


def _about(event: Event) -> tuple[str, ...]:
    match event:
        case Receipt():
            return "receipt", event.c, event.user
        case Presence():
            return "presence", event.user
        case Typing():
            return "typing", event.c, event.user
        case Notice():
            return "notice", event.kind
        case Reset():
            return "reset", event.c or ""
        case Unsent():
            return "unsent", event.peer, event.cid
        case Line():
            return ("line",)
        case Unreadable():
            return "unreadable", event.c, str(event.seq)
        case CatchUpFailed():
            return "catch_up_failed", event.c


class Desk:
    """The state of one client, shared by its two sides (see the module)."""

    def __init__(self, queue_max: int, outbox_max: int) -> None:
        self.user = ""
        self.limits = Limits()
        self.away = False
        self.watched: tuple[str, ...] = ()
        self.inbox = Inbox(queue_max)
        self.outbox = Outbox(outbox_max)
        self.cursors = Cursors()
        self.events = Events()
        self.arrived, self.to_send, self.to_fill, self.to_tell, self.emptied = (asyncio.Event() for _ in range(5))
        self.emptied.set()
        self.has_room = asyncio.Event()
        self.on_change: Callable[[], None] = lambda: None  # called when what `save` gives has changed
        self.typed: OrderedDict[str, float] = OrderedDict()  # peer -> when the last sign of typing went out
        self._waiting: dict[tuple[str, str], list[asyncio.Future[Sent]]] = {}
        # Of handles that somebody asked for later: they own no item, and leave nobody unheard
        self._following: dict[tuple[str, str], asyncio.Future[Sent]] = {}
        self._presence: dict[str, Presence] = {}
        # (peer, seq) -> cid of own messages, the latest last
        self._own: OrderedDict[tuple[str, int], str] = OrderedDict()
        self._peers: dict[str, tuple[int, int]] = {}  # by conversation: how far the peer has got

    # ---- sends -----------------------------------------------------------------------------------

    def add(
        self,
        peer: str,
        cid: str,
        kind: Kind,
        body: str | None,
        ref: int | None,
        refcid: str | None = None,
        *,
        outcome_unknown: bool,
        same: bool = True,
    ) -> tuple[Item, asyncio.Future[Sent]]:
        """Queue an item; the future gets what becomes of it.

        `refcid`: found here where it is not given. `same`: as in `Outbox.add`. Raises OutboxFull,
        CidTaken.
        """
        if ref is not None and refcid is None:
            refcid = self._own.get((peer, ref))
        item = self.outbox.add(peer, cid, kind, body, ref, refcid=refcid, outcome_unknown=outcome_unknown, same=same)
        future: asyncio.Future[Sent] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault((peer, cid), []).append(future)
        self.emptied.clear()
        self.to_send.set()
        self.on_change()
        return item, future

    def follow(self, item: Item) -> asyncio.Future[Sent]:
        """What becomes of an item that is here already."""
        key = (item.peer, item.cid)
        if key not in self._following:
            self._following[key] = asyncio.get_running_loop().create_future()
        return self._following[key]

    def _those_waiting(self, peer: str, cid: str) -> list[asyncio.Future[Sent]]:
        """Owners and followers of an item that is gone. They are taken off."""
        futures = self._waiting.pop((peer, cid), [])
        if (following := self._following.pop((peer, cid), None)) is not None:
            futures.append(following)
        return [future for future in futures if not future.done()]

    def leave(self, item: Item, future: asyncio.Future[Sent]) -> Then:
        """The caller that awaited `future` was cancelled.

        Returns what `Outbox.abandon` says once no other caller waits, else AGAIN.
        """
        futures = self._waiting.get((item.peer, item.cid), [])
        if future in futures:
            futures.remove(future)
        if futures:
            return Then.AGAIN
        self._waiting.pop((item.peer, item.cid), None)
        return self._abandon(item)

    def _abandon(self, item: Item) -> Then:
        """AGAIN: it may be in the log and so it goes on.

        Else all that wait for it get Withdrawn.
        """
        then = self.outbox.abandon(item)
        if then is not Then.AGAIN:
            for future in self._those_waiting(item.peer, item.cid):
                future.set_exception(Withdrawn(f"the {item.kind} {item.cid} to {item.peer} was taken back"))
        self._gone()
        return then

    def take_back(self, item: Item) -> Then:
        """As `withdraw`, also where others wait for it: they get Withdrawn."""
        return self._abandon(item) if item.surely_not_done else Then.AGAIN

    def amend(self, item: Item, body: str) -> bool:
        """Another text for an item that surely is not in the log."""
        if not item.surely_not_done or item.kind == "delete" or not self.outbox.holds(item):
            return False
        item.body = body
        self.on_change()
        return True

    def withdraw(self, item: Item, future: asyncio.Future[Sent]) -> Then:
        """Take an item back, where nobody but the owner of `future` waits for it.

        AGAIN: it may be in the log, and nothing has changed.
        """
        if self._waiting.get((item.peer, item.cid)) != [future]:
            return Then.AGAIN
        return self.take_back(item)

    def stored(self, peer: str, cid: str, sent: Sent) -> None:
        """It is in the log. Idempotent."""
        item = self.outbox.settle(peer, cid, dup=sent.dup)
        if item is None:
            return
        if item.kind == "message":
            self.own(peer, sent.seq, cid)
        for future in self._those_waiting(peer, cid):
            future.set_result(sent)
        self._gone()

    def own(self, peer: str, seq: int, cid: str) -> None:
        """An own message: an edit or delete of it will name it by its cid as well."""
        self._own[(peer, seq)] = cid
        self._own.move_to_end((peer, seq))
        if len(self._own) > OWN_MAX:
            self._own.popitem(last=False)

    def ref_of(self, item: Item) -> int | None:
        """The seq of the message that `item` changes.

        None if the item names it by its cid alone and the seq is not known here.
        """
        if item.ref is not None or item.refcid is None:
            return item.ref
        return next(
            (seq for (peer, seq), cid in reversed(self._own.items()) if peer == item.peer and cid == item.refcid), None
        )

    def failed(self, item: Item, error: ClientError) -> None:
        """It has left the outbox, and will not be in the log."""
        has_owner = bool(self._waiting.get((item.peer, item.cid)))
        for future in self._those_waiting(item.peer, item.cid):
            future.set_exception(error)
        if not has_owner:
            code, msg = (error.code, error.msg) if isinstance(error, RequestError) else ("epoch_changed", str(error))
            log.warning("a %s nobody waits for was refused: %s", item.kind, code)
            self.events.add(Unsent(item.peer, item.cid, item.kind, item.body, item.ref, code, msg))
        self._gone()

    def _gone(self) -> None:
        self.to_send.set()
        self.has_room.set()
        self.on_change()
        if not self.outbox.size:
            self.emptied.set()

    def end(self, error: ClientError) -> None:
        """The client has ended: all that wait get `error`. The outbox keeps its items."""
        for peer, cid in [*self._waiting, *self._following]:
            for future in self._those_waiting(peer, cid):
                future.set_exception(error)
        for event in (self.arrived, self.events.news, self.emptied, self.has_room):
            event.set()

    # ---- what comes in ---------------------------------------------------------------------------

    def enter(self, welcome: Welcome) -> None:
        """A whole welcome."""
        self.user, self.limits = welcome.user, welcome.limits
        self.outbox.limit(welcome.limits.messages, welcome.limits.per_ms / 1000)
        resets = self.inbox.enter(welcome)
        if any(reset.c is None for reset in resets):
            self.cursors.forget()
            self._peers.clear()
            self._own.clear()
            for item in self.outbox.new_epoch():
                self.failed(
                    item,
                    EpochChanged(f"the log was restored from a backup: this {item.kind} may mean another message now"),
                )
        for reset in resets:
            self.events.add(reset)
        self.cursors.welcomed(welcome.items)
        for x in welcome.items:
            self._peer_cursor(x)
        self.seen(welcome.presence)
        for event in (self.arrived, self.to_send, self.to_fill, self.to_tell):
            event.set()
        self.on_change()

    def settle_by(self, entry: Entry) -> None:
        """An entry of the log, pushed or fetched: an own one settles its item in the outbox.

        One of the peer's ends the peer's typing.
        """
        if not entry.own:
            self.events.drop(Typing(entry.c, entry.peer))
        if entry.own and entry.cid is not None:
            if entry.kind == "message":
                self.own(entry.peer, entry.seq, entry.cid)
            self.stored(entry.peer, entry.cid, Sent(entry.c, entry.seq, entry.ts, dup=True))

    def receipt(self, receipt: Receipt) -> None:
        """Somebody's cursors moved: the peer's, or our own by another device."""
        if receipt.user == self.user:
            self.cursors.known(receipt.c, receipt.delivered, receipt.read)
        else:
            self._peers[receipt.c] = (receipt.delivered, receipt.read)
        self.events.add(receipt)

    def _peer_cursor(self, item: ConversationItem) -> None:
        """Report what moved while there was no connection. The first listing is no news."""
        now = (item.peer_delivered, item.peer_read)
        before = self._peers.get(item.c)
        self._peers[item.c] = now
        if before is not None and before != now:
            self.events.add(Receipt(item.c, item.peer, item.peer, *now))

    def seen(self, snapshot: Iterable[Presence]) -> None:
        """How the watched stand now, by a new connection or list: it replaces what was known."""
        for presence in snapshot:
            if self._presence.get(presence.user) != presence:
                self._presence[presence.user] = presence
                self.events.add(presence)

    def presence(self, presence: Presence) -> None:
        """A push: a higher `v` replaces a lower one."""
        known = self._presence.get(presence.user)
        if known is None or presence.v > known.v:
            self._presence[presence.user] = presence
            self.events.add(presence)

    def watch(self, users: tuple[str, ...], snapshot: Iterable[Presence] = ()) -> None:
        """Another list of people to watch, and how they stand: the app has that already."""
        self.watched = users
        kept = {user: presence for user, presence in self._presence.items() if user in set(users)}
        self._presence = kept | {presence.user: presence for presence in snapshot}
        self._presence = {user: p for user, p in self._presence.items() if user in set(users)}

    # ---- over a restart --------------------------------------------------------------------------

    def save(self, done: Entry | None = None) -> dict[str, Any]:
        """All that must outlive the process, as JSON can hold it.

        `done`: an entry in hand that counts as handled.
        """
        return {
            "version": STATE_VERSION,
            "user": self.user,
            **self.inbox.save(done),
            "outbox": self.outbox.save(),
            "cursors": self.cursors.save(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """What `save` gave; into a fresh desk. Raises ValueError for what it did not."""
        try:
            if state["version"] != STATE_VERSION:
                raise ValueError(f"this state is of version {state['version']}; this client knows {STATE_VERSION}")
            self.user = state["user"]
            self.inbox.restore(state)
            self.outbox.restore(state["outbox"])
            self.cursors.restore(state["cursors"])
        except (KeyError, TypeError, AttributeError) as e:
            raise ValueError(f"this is no state of a client: {e!r}") from e
        if self.outbox.size:
            self.emptied.clear()
