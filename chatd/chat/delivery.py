"""Delivers the log to the sessions: every entry once to each session, in the order of seq.

    SendPipeline ──deliver──► Delivery ──► ok to the sender's session, entry to all others
                                └── a seq is missing, or a session is behind ──► read the log ──┘

`Conversation.head` is the highest seq this node has delivered. A run that starts at head + 1 goes
out at once (`_deliver_run`), and so does the next entry of another node (chat/remote_entries.py).
What starts later shows a gap: another node wrote, or the outcome of a batch was unknown. It waits
in a `Gap` until the missing entries come by the bus, or are read from the log (chat/gap_fill.py).

A session that is behind (after its hello, or while its welcome is made) has the conversation in
`behind`, with the last seq that it got. Live entries are not pushed to it. chat/resync.py reads the
log up to the head, one conversation after another, until the loop turn in which nothing is missing.
An `ok` to such a session waits in `held` until the fill reaches its seq; there it takes the entry's
place.

Two rules of order hold: the transaction has committed before anything here runs, and `ok` and
entries of one conversation leave in the order of seq.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

from chatd import log as logs
from chatd import protocol
from chatd.chat import delivery_log
from chatd.chat import entry_payloads as payloads
from chatd.chat.gap_fill import Gaps
from chatd.chat.ports import OtherNodes
from chatd.chat.presence_push import PresencePush
from chatd.chat.receipts import Receipts
from chatd.chat.resync import Resync
from chatd.core.batch import Item
from chatd.core.conversation import Conversation
from chatd.core.conversations import Registry
from chatd.core.session import LIVE, Session, State, User
from chatd.ids import ConvId
from chatd.metrics import Metrics
from chatd.protocol import MESSAGE, Stored
from chatd.store import Store
from chatd.wire import node_messages
from chatd.wire.frames import encode_text

E = TypeVar("E")  # what an entry is made of: see `payload`
Remote = TypeVar("Remote", Stored, node_messages.Entry)


class Delivery:
    """Implements `ports.CommittedEntries`.

    `spawn` starts a watched task of the node. `now`: seconds, the loop's clock.
    """

    def __init__(
        self, registry: Registry, store: Store, metrics: Metrics, *, now: Callable[[], float],
        later: Callable[[float, Callable[[], None]], object], spawn: Callable[[Coroutine[Any, Any, None]], object],
        presence_push: PresencePush, others: OtherNodes,
    ) -> None:  # fmt: skip
        self.registry, self.store, self.metrics = registry, store, metrics
        self.now, self._presence_push = now, presence_push
        self._others, self._is_shared = others, others.share_log
        self.gaps = Gaps(registry, store, metrics, others, now, later, spawn, self._filled, self._now_open)
        self.resync = Resync(registry, store, metrics, spawn)
        self.receipts = Receipts(registry, metrics, self.gaps)
        self._held_receipts = self.receipts.held

    # ---- entries of this node: ok to the sender, entry to the others -----------------------------

    def deliver(self, conv: Conversation, first: int, ts: int, items: list[Item], now: float) -> None:
        """Deliver new entries of one conversation: at once, or after the gap before them is closed.

        `items[i]` has the seq `first + i`. `ts`: ms since 1970, database clock. `now`: seconds.
        """
        if conv.gap is None and first == conv.head + 1:
            self._deliver_run(conv, first, ts, items, now, self._is_shared)
            return
        is_next = first <= conv.head + 1
        if not is_next:  # others may wait for these: they are not kept by what this node waits for
            self._others.ahead(conv, first, ts, items)
        self.gaps.arrived(conv, first, partial(self._after_gap, conv, first, ts, items, is_next and self._is_shared))

    def _after_gap(self, conv: Conversation, first: int, ts: int, items: list[Item], publish: bool) -> None:
        read = conv.head + 1 - first  # so many were found in the log before: most have their ok (`_filled`)
        for seq, item in enumerate(items[:read], first):
            for one in (item, *(item.twins or ())):
                self.repeat(one, seq, ts)
        if read < len(items):
            self._deliver_run(conv, conv.head + 1, ts, items[read:], self.now(), publish)

    def _deliver_run(self, conv: Conversation, seq: int, ts: int, items: list[Item], now: float, publish: bool) -> None:
        users = self.registry.users
        a, b = users.get(conv.a), users.get(conv.b)
        was_open = conv.open
        if not conv.head:
            self.registry.link_both(conv)
        for item in items:
            side, session = item.side, item.session
            conv.head, conv.ts = seq, ts
            if item.kind == MESSAGE:
                if side == 0:
                    conv.na += 1
                else:
                    conv.nb += 1
            if item.taken_at:
                self.metrics.send_s.observe(now - item.taken_at)
            self._ok(item, conv.id, seq, ts)
            author, reader = (a, b) if side == 0 else (b, a)
            payload = self._broadcast(conv, item, payloads.of_item, author, reader, session)
            if publish and (channels := self._others.channels(author, item.peer, reader)):
                self._others.entry(channels, conv, item, payload or payloads.of_item(conv, item, False))
            if item.twins:
                for twin in item.twins:
                    self.repeat(twin, seq, ts)
            seq += 1
        self.metrics.sends_ok += len(items)
        if logs.DEBUG_ON:
            for n, item in enumerate(items, seq - len(items)):
                delivery_log.delivered(self.registry, conv, n, item.cid, "commit")
        self._delivered(conv, was_open, a, b)

    def _ok(self, item: Item, conv_id: ConvId, seq: int, ts: int) -> None:
        session, frame = item.session, encode_text(protocol.ok_entry(item.id, conv_id, seq, ts))
        if session.behind is not None and conv_id in session.behind:
            session.hold(conv_id, seq, frame)
        else:
            session.sink.send(frame)

    def repeat(self, item: Item, seq: int, ts: int) -> None:
        """Answer the sender with the place of an entry that is in the log already.

        It is there from an earlier try, or from the item's twin.
        """
        if not item.answered(give_back=True):
            return
        self.metrics.sends_dup += 1
        conv = item.conv
        item.session.sink.send(encode_text(protocol.ok_entry(item.id, conv.id, seq, ts, dup=True)))
        if seq > conv.head:
            self.gaps.expect(conv, seq)  # its first writer may have died between commit and delivery

    # ---- the fan-out, of entries from here, from other nodes, and from the log -------------------

    def _broadcast(
        self,
        conv: Conversation,
        e: E,
        payload: Callable[[Conversation, E, bool], bytes],
        author: User | None,
        reader: User | None,
        answered: Session | None = None,
    ) -> bytes | None:
        """Push the conversation's last entry to all sessions of both users, except `answered`.

        `answered` gets an `ok` instead. `payload(conv, e, own)` is called once for each user at
        most. Returns the reader's payload if it was made.
        """
        conv_id, seq, made = conv.id, conv.head, None
        if reader is not None and reader is not author and reader.sessions:
            made = payload(conv, e, False)
            frame = encode_text(made)
            for session in reader.sessions.values():
                self._push(session, conv_id, seq, frame)
        if author is not None:
            frame = b""
            for session in author.sessions.values():
                if session is not answered:
                    frame = frame or encode_text(payload(conv, e, True))
                    self._push(session, conv_id, seq, frame)
        return made

    def _push(self, session: Session, conv_id: ConvId, seq: int, frame: bytes) -> None:
        behind = session.behind
        if session.state is LIVE:
            if behind is None or conv_id not in behind:
                self.metrics.deliveries += 1
                session.sink.send(frame)
        elif session.state is State.OPENING:
            # Its welcome is being made: remember the first entry that it did not get.
            session.miss(conv_id, seq - 1)

    def deliver_remote(
        self, conv: Conversation, e: Remote, payload: Callable[[Conversation, Remote, bool], bytes], by: str,
        answered: Session | None = None,
    ) -> None:  # fmt: skip
        """Deliver the next entry of a conversation, from another node or from the log.

        `by`: where it is from, for the debug log. `answered`: the session that got its `ok`.
        """
        was_open = conv.open
        if not conv.head:
            self.registry.link_both(conv)
        conv.head, conv.ts, conv.na, conv.nb = e.seq, e.ts, e.na, e.nb
        users = self.registry.users
        a, b = users.get(conv.a), users.get(conv.b)
        self._broadcast(conv, e, payload, *((a, b) if e.side == 0 else (b, a)), answered)
        if logs.DEBUG_ON:
            delivery_log.delivered(self.registry, conv, e.seq, e.cid, by)
        self._delivered(conv, was_open, a, b)

    def _delivered(self, conv: Conversation, was_open: bool, a: User | None, b: User | None) -> None:
        """Update what depends on new entries. `a`, `b`: its users, if they are held here."""
        self.registry.latest = conv
        for user in (a, b):
            if user is not None and user.recent is not None:
                user.recent.touched[conv.id] = conv.ts
        if not was_open and conv.open:
            self._now_open(conv)
        if self._held_receipts:
            self.receipts.release(conv)

    def _now_open(self, conv: Conversation) -> None:
        """Both have sent: each gets the other's cursors, and may see the other's presence."""
        self.receipts.push_to_peers(conv)
        self._presence_push.conversation_opened(conv.a, conv.b)

    # ---- entries from the log --------------------------------------------------------------------

    def _filled(self, conv: Conversation, e: Stored, own: Item | None) -> None:
        """Deliver an entry from the fill of a gap, which has many at once.

        A session whose output is paused gets them as fast as its client reads (chat/resync.py).
        `own`: the item that made it, whose result has not come yet.
        """
        for id in {conv.a, conv.b}:
            if (user := self.registry.users.get(id)) is not None:
                for session in user.sessions.values():
                    is_behind = session.behind is not None and conv.id in session.behind
                    if session.state is State.LIVE and session.sink.is_paused and not is_behind:
                        self.resync.miss(session, conv.id, e.seq - 1)
        if own is not None:
            own.has_ok, own.ref = own.answered(), e.ref
            self._ok(own, conv.id, e.seq, e.ts)
            self._others.ahead(conv, e.seq, e.ts, [own])
            self.metrics.sends_ok += 1
        self.deliver_remote(conv, e, payloads.of_stored, "log", None if own is None else own.session)
        for twin in (own and own.twins) or ():
            self.repeat(twin, e.seq, e.ts)
            twin.has_ok = True
