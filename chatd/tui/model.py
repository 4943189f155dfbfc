"""What the terminal knows: conversations, their logs, what waits to be sent, who is there. Pure.

It gets what the SDK says (`listed`, `page`, `entry`, `sent`, `event`) in any order, and any of it
twice: the SDK's `Log` makes the messages of it. Here is what an app adds to them: which part of a
log is loaded, the cursors, the list. `now` is in seconds of any one clock, and only ends typing.

A log that is shown is one unbroken run up to the newest entry: a page of history joins what has
arrived, because the SDK leaves no hole after the place where it started. `lowest` is where the run
begins; older pages are asked for below it.

What one sends is an `Outgoing` until the server has it. Then it is a message like others, and how
far it has got follows from the peer's cursors.
"""

from __future__ import annotations

import enum
import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from chatd.client import (
    ConversationItem,
    Entry,
    Event,
    Kind,
    Line,
    LineState,
    Log,
    Message,
    Notice,
    Page,
    Presence,
    Receipt,
    Reset,
    Sent,
    Typing,
    Unsent,
)

TYPING_S: Final = 6.0  # docs/protocol.md 7
KEPT_MAX: Final = 500  # messages of a conversation that is not open; the older ones are read again


class Progress(enum.Enum):
    """How far an own message has got."""

    SENDING = "sending"
    SENT = "sent"
    DELIVERED = "delivered"
    READ = "read"
    FAILED = "failed"


@dataclass(slots=True, eq=False)
class Outgoing:
    """A send, edit or delete that the server does not have yet, or has refused (`failed`: why).

    `kind` as in `Entry`. `ref`: the message that it changes. `at`: ms since 1970, by this machine.
    """

    n: int
    peer: str
    kind: Kind
    body: str
    ref: int | None
    at: int
    failed: str | None = None


@dataclass(slots=True, eq=False)
class ConversationView:
    """One log and the cursors in it.

    `lowest`: oldest seq of the run that is loaded; 0: nothing is. `mark`: how far this user had
    read when it was opened.
    """

    peer: str
    c: str | None = None
    head: int = 0
    floor: int = 1
    ts: int = 0
    unread: int = 0
    read: int = 0
    peer_delivered: int = 0
    peer_read: int = 0
    loaded: bool = False
    lowest: int = 0
    typing_until: float = 0.0
    mark: int = 0
    log: Log = field(default_factory=Log)
    outgoing: list[Outgoing] = field(default_factory=list)

    @property
    def has_older(self) -> bool:
        """Whether history has more below what is loaded."""
        return self.loaded and self.lowest > self.floor

    @property
    def newest(self) -> int:
        """Seq of the newest message here; 0: there is none."""
        return next((message.seq for message in reversed(self.log)), 0)

    def progress(self, message: Message) -> Progress:
        """Of an own message. In notes to oneself all is read at once."""
        if message.seq <= self.peer_read:
            return Progress.READ
        return Progress.DELIVERED if message.seq <= self.peer_delivered else Progress.SENT

    def trim(self) -> None:
        """Forget the oldest messages, which can be read again."""
        if len(self.log) > KEPT_MAX:
            self.log.trim(KEPT_MAX)
            self.lowest = next(iter(self.log)).seq

    def forget(self) -> None:
        """The log is another one: all but what waits to be sent."""
        self.log = Log()
        self.c, self.loaded, self.lowest = None, False, 0
        self.head = self.unread = self.read = self.peer_delivered = self.peer_read = 0
        self.mark, self.floor = 0, 1


class Model:
    """All that is shown. `opened`: the conversation on the screen."""

    def __init__(self) -> None:
        self.user = ""
        self.line: LineState = "connecting"
        self.reason = ""  # why the line is stopped
        self.conversations: dict[str, ConversationView] = {}  # by peer
        self.presence: dict[str, Presence] = {}
        self.opened: str | None = None
        self.notes: list[str] = []  # for the person, to be shown once
        self._peers: dict[str, str] = {}  # c -> peer
        self._numbers = itertools.count(1)

    # ---- asked by the widgets --------------------------------------------------------------------

    def listing(self) -> list[ConversationView]:
        """The conversations, that with the latest entry first; those without an entry on top."""
        return sorted(self.conversations.values(), key=lambda it: (it.ts != 0, -it.ts, it.peer))

    def conversation(self, peer: str) -> ConversationView:
        """That with `peer`, made where there is none yet."""
        if (it := self.conversations.get(peer)) is None:
            it = self.conversations[peer] = ConversationView(peer)
        return it

    @property
    def shown(self) -> ConversationView | None:
        """The open one."""
        return None if self.opened is None else self.conversations.get(self.opened)

    @property
    def unread(self) -> int:
        """Messages that were not seen, in all."""
        return sum(it.unread for it in self.conversations.values())

    def unsent(self) -> list[Outgoing]:
        """What the server does not have, refused ones included, in the order of the sends."""
        return sorted((o for it in self.conversations.values() for o in it.outgoing), key=lambda o: o.n)

    def is_typing(self, peer: str, now: float) -> bool:
        """Whether `peer` is typing to this user."""
        it = self.conversations.get(peer)
        return it is not None and now < it.typing_until

    # ---- called by the controller ----------------------------------------------------------------

    def open(self, peer: str) -> ConversationView:
        """Show the conversation with `peer`."""
        if (before := self.shown) is not None and before.peer != peer:
            before.trim()
        it = self.conversation(peer)
        if self.opened != peer:
            it.mark = it.read if it.unread else it.head
        self.opened = peer
        return it

    def listed(self, items: Iterable[ConversationItem]) -> None:
        """A page of the list. What arrived after it was made counts on top."""
        for item in items:
            it = self.conversation(item.peer)
            self._name(it, item.c)
            newer = sum(not m.own and m.seq > max(item.head, it.read) for m in it.log)
            it.unread = newer + (0 if it.read >= item.head else item.unread)
            it.head, it.ts, it.floor = max(it.head, item.head), max(it.ts, item.ts), max(it.floor, item.floor)
            it.read = max(it.read, item.read)
            it.peer_delivered = max(it.peer_delivered, item.peer_delivered)
            it.peer_read = max(it.peer_read, item.peer_read)

    def page(self, peer: str, page: Page) -> None:
        """A page of history: the newest, or the one below what is loaded."""
        it = self.conversation(peer)
        self._name(it, page.c)
        it.head, it.floor = max(it.head, page.head), max(it.floor, page.floor)
        for entry in page.entries:
            it.log.add(entry)
        oldest = [entry.seq for entry in page.entries[:1]] + [message.seq for message in itertools.islice(it.log, 1)]
        it.lowest = min(oldest + [it.lowest] * bool(it.lowest), default=it.floor)
        if not page.more:
            it.floor = it.lowest
        it.loaded = True

    def nothing_there(self, peer: str) -> None:
        """History says that there is no such conversation yet: its log is empty, and all of it
        loaded.
        """
        it = self.conversation(peer)
        it.loaded, it.lowest = True, it.floor

    def entry(self, entry: Entry) -> None:
        """An entry that arrived."""
        it = self.conversation(entry.peer)
        self._name(it, entry.c)
        is_new = it.log.get(entry.seq) is None
        it.log.add(entry)
        if entry.seq > it.head and entry.kind == "message" and not entry.own and is_new and entry.seq > it.read:
            it.unread += 1
        it.head, it.ts = max(it.head, entry.seq), max(it.ts, entry.ts)
        if not entry.own:
            it.typing_until = 0.0
        if not it.loaded and it.lowest == 0:
            it.lowest = entry.seq
        if entry.peer != self.opened and len(it.log) > 2 * KEPT_MAX:
            it.trim()

    def going(self, peer: str, kind: Kind, body: str, ref: int | None, at: int) -> Outgoing:
        """It waits to be sent from now on."""
        outgoing = Outgoing(next(self._numbers), peer, kind, body, ref, at)
        self.conversation(peer).outgoing.append(outgoing)
        return outgoing

    def sent(self, outgoing: Outgoing, sent: Sent) -> None:
        """The server has it."""
        it = self.conversation(outgoing.peer)
        self._name(it, sent.c)
        self.discard(outgoing)
        body = None if outgoing.kind == "delete" else outgoing.body
        it.log.add(Entry(sent.c, it.peer, sent.seq, sent.ts, True, outgoing.kind, body, outgoing.ref))
        it.head, it.ts = max(it.head, sent.seq), max(it.ts, sent.ts)
        if not it.lowest:
            it.lowest = sent.seq

    def discard(self, outgoing: Outgoing) -> None:
        """It is no longer to be shown among what waits."""
        waiting = self.conversation(outgoing.peer).outgoing
        if outgoing in waiting:
            waiting.remove(outgoing)

    def seen(self, peer: str, seq: int) -> None:
        """This user has seen everything up to `seq`, here or on another device."""
        it = self.conversation(peer)
        if seq <= it.read:
            return
        it.read = seq
        newer = sum(not message.own for message in it.log if message.seq > seq)
        it.unread = newer if it.head and (seq >= it.head or (it.lowest and seq >= it.lowest - 1)) else it.unread

    def ended(self, reason: str) -> None:
        """The client has ended and will not connect again."""
        self.line, self.reason = "stopped", reason

    def event(self, event: Event, now: float) -> None:
        """What is no entry."""
        match event:
            case Receipt():
                self._receipt(event)
            case Line():
                if event.state != "stopped":  # that comes with its reason, by `ended`
                    self.line = event.state
            case Presence():
                self.presence[event.user] = event
            case Typing():
                if (peer := self._peers.get(event.c)) is not None and event.user == peer:
                    self.conversation(peer).typing_until = now + TYPING_S
            case Reset():
                for it in list(self.conversations.values()):
                    if event.c is None or it.peer == event.peer:
                        it.forget()
                if event.c is None:
                    self._peers.clear()
            case Notice(kind="drain"):
                self.notes.append("the server restarts; this client moves by itself")
            case Unsent():
                self.notes.append(f"not sent to {event.peer}: {event.code}")

    def _receipt(self, receipt: Receipt) -> None:
        it = self.conversation(receipt.peer)
        if receipt.user == receipt.peer:
            it.peer_delivered = max(it.peer_delivered, receipt.delivered)
            it.peer_read = max(it.peer_read, receipt.read)
        if receipt.user != receipt.peer or receipt.peer == self.user:
            self.seen(receipt.peer, receipt.read)

    def _name(self, it: ConversationView, c: str) -> None:
        it.c = c
        self._peers[c] = it.peer
