"""Delivers the log to the sessions: every entry once to each session, in the order of seq.

    SendPipeline ──deliver──► Delivery ──► ok to the sender's session, entry to all others
                                └── a seq is missing, or a session is behind ──► read the log ──┘

`Conversation.head` is the highest seq this node has delivered. A run that starts at head + 1 goes
out at once (`_deliver_run`). One that starts later shows a gap: the outcome of a batch was unknown,
or another node wrote. Then the conversation's runs wait in a `Gap` while the missing entries are
read and delivered (chat/gap_fill.py). PostgreSQL decides: a part that learns of a higher head calls
`poke`, and the head is looked up. An entry from another node (`heard`) is therefore delivered if it
is the next one; otherwise it only shows where to look.

A session that is behind (after its hello, or while its welcome is made) has the conversation in
`behind`, with the last seq that it got. Live entries are not pushed to it. chat/resync.py reads the
log up to the head, one conversation after another, until the loop turn in which nothing is missing.
An `ok` to such a session waits in `held` until the fill reaches its seq; there it takes the entry's
place.

Two rules of order hold: the transaction has committed before anything here runs, and `ok` and
entries of one conversation leave in the order of seq.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Coroutine
from functools import partial
from typing import Any, Final, TypeVar

from chatd import log as logs
from chatd import protocol
from chatd.chat import delivery_log
from chatd.chat.gap_fill import Gaps
from chatd.chat.ports import OtherNodes
from chatd.chat.presence_push import PresencePush
from chatd.chat.resync import Resync
from chatd.core.batch import Item
from chatd.core.conversation import Conversation
from chatd.core.conversations import Registry
from chatd.core.session import Session, State, User
from chatd.ids import ConvId, UserId
from chatd.metrics import Metrics
from chatd.postgres.connection import Backend
from chatd.protocol import MESSAGE, Stored
from chatd.store import Store
from chatd.wire import framing, node_messages

# Conversations whose cursors wait for an entry; past it the oldest are dropped, and the next
# listing has them
EARLY_MAX: Final = 10_000
NEVER_MOVED: Final = (0, 0)  # cursors
E = TypeVar("E")  # what an entry is made of: see `payload`
Remote = TypeVar("Remote", Stored, node_messages.Entry)


class Delivery:
    """Implements `ports.CommittedEntries`.

    `spawn` starts a watched task of the node. `now`: seconds, the loop's clock.
    """

    def __init__(
        self, registry: Registry, store: Store, metrics: Metrics, *, now: Callable[[], float],
        spawn: Callable[[Coroutine[Any, Any, None]], object], presence_push: PresencePush, others: OtherNodes,
    ) -> None:  # fmt: skip
        self.registry, self.store, self.metrics = registry, store, metrics
        self.now, self._presence_push = now, presence_push
        self._early: dict[ConvId, list[int]] = {}  # cursors of both sides beyond what was delivered here
        self._others, self._is_shared = others, others.share_log
        self.gaps = Gaps(registry, store, metrics, spawn, self._filled, self._now_open)
        self.resync = Resync(registry, store, metrics, spawn, self.stored_frame)

    # ---- entries of this node: ok to the sender, entry to the others -----------------------------

    def deliver(self, conv: Conversation, first: int, ts: int, items: list[Item], now: float) -> None:
        """Deliver new entries of one conversation: at once, or after the gap before them is filled.

        `items[i]` has the seq `first + i`. `ts`: ms since 1970, database clock. `now`: seconds.
        """
        if conv.gap is None and first == conv.head + 1:
            self._deliver_run(conv, first, ts, items, now)
            return
        self.gaps.open(conv, first - 1).wait(first, partial(self._after_gap, conv, first, ts, items))

    def _after_gap(self, conv: Conversation, first: int, ts: int, items: list[Item]) -> None:
        # The fill has read so many of them too, and pushed them to the sender as entries: their ok
        # must not take that place again.
        read = conv.head + 1 - first
        for seq, item in enumerate(items[:read], first):
            for one in (item, *(item.twins or ())):
                self.repeat(one, seq, ts)
        if read < len(items):
            self._deliver_run(conv, conv.head + 1, ts, items[read:], self.now())

    def _deliver_run(self, conv: Conversation, seq: int, ts: int, items: list[Item], now: float) -> None:
        others, is_shared = self._others, self._is_shared  # bound once: a node without others pays no call
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
            payload = self._broadcast(conv, item, _payload_of_item, author, reader, session)
            if is_shared and (channels := others.channels(author, item.peer, reader)):
                others.entry(channels, conv, item, payload or _payload_of_item(conv, item, False))
            if item.twins:
                for twin in item.twins:
                    self.repeat(twin, seq, ts)
            seq += 1
        self.metrics.sends_ok += len(items)
        if logs.DEBUG_ON:
            for n, item in enumerate(items, seq - len(items)):
                delivery_log.told(self.registry, conv, n, item.cid, "commit")
        self._delivered(conv, was_open, a, b)

    def _ok(self, item: Item, conv_id: ConvId, seq: int, ts: int) -> None:
        session, frame = item.session, framing.encode_text(protocol.ok_entry(item.id, conv_id, seq, ts))
        if session.behind is not None and conv_id in session.behind:
            session.hold(conv_id, seq, frame)
        else:
            session.sink.send(frame)

    def repeat(self, item: Item, seq: int, ts: int) -> None:
        """Answer the sender with the place of an entry that is in the log already.

        It is there from an earlier try, or from the item's twin.
        """
        item.answered(give_back=True)
        self.metrics.sends_dup += 1
        conv = item.conv
        item.session.sink.send(framing.encode_text(protocol.ok_entry(item.id, conv.id, seq, ts, dup=True)))
        if seq > conv.head:
            self.gaps.open(conv, seq)  # its first writer may have died between commit and delivery

    def outcome_unknown(self, convs: set[ConvId], writers: Collection[Backend] = ()) -> None:
        """The database is back after batches of unknown outcome: look up the heads of `convs`.

        They are read after the transactions of those batches, and again until the backends that had
        the batches (`writers`) have ended: one that hung may start a batch that its client gave up
        long before.
        """
        self.gaps.settle(convs)
        if writers:
            self.gaps.outlast(convs, writers)

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
            frame = framing.encode_text(made)
            for session in reader.sessions.values():
                self._push(session, conv_id, seq, frame)
        if author is not None:
            frame = b""
            for session in author.sessions.values():
                if session is not answered:
                    frame = frame or framing.encode_text(payload(conv, e, True))
                    self._push(session, conv_id, seq, frame)
        return made

    def _push(self, session: Session, conv_id: ConvId, seq: int, frame: bytes) -> None:
        behind = session.behind
        if session.state is State.LIVE:
            if behind is None or conv_id not in behind:
                self.metrics.deliveries += 1
                session.sink.send(frame)
        elif session.state is State.OPENING:
            # Its welcome is being made: remember the first entry that it did not get.
            session.miss(conv_id, seq - 1)

    def _deliver_remote(
        self, conv: Conversation, e: Remote, payload: Callable[[Conversation, Remote, bool], bytes], by: str
    ) -> None:
        """Deliver the next entry of a conversation, which this node has not written."""
        was_open = conv.open
        if not conv.head:
            self.registry.link_both(conv)
        conv.head, conv.ts, conv.na, conv.nb = e.seq, e.ts, e.na, e.nb
        users = self.registry.users
        a, b = users.get(conv.a), users.get(conv.b)
        self._broadcast(conv, e, payload, *((a, b) if e.side == 0 else (b, a)))
        if logs.DEBUG_ON:
            delivery_log.told(self.registry, conv, e.seq, e.cid, by)
        self._delivered(conv, was_open, a, b)

    def _delivered(self, conv: Conversation, was_open: bool, a: User | None, b: User | None) -> None:
        """Update what depends on new entries. `a`, `b`: its users, if they are held here."""
        self.registry.latest = conv
        for user in (a, b):
            if user is not None and user.recent is not None:
                user.recent.touched.add(conv)
        if not was_open and conv.open:
            self._now_open(conv)
        if self._early:
            self._release_cursors(conv)

    # ---- gaps ------------------------------------------------------------------------------------

    def poke(self, conv: Conversation) -> None:
        """Look up the head of this conversation: it may be higher than what was delivered."""
        self.gaps.look_up((conv.id,))

    # ---- from other nodes ------------------------------------------------------------------------

    def heard(self, to: UserId, e: node_messages.Entry) -> bool:
        """Another node has written an entry of a user who is held here. False: it is invalid."""
        conv = self.registry.convs.get(e.conv)
        if conv is None:
            user = self.registry.users.get(to)
            if user is None:
                return True
            if not user.loaded:
                user.early = user.early or {}
                user.early[e.conv] = e.seq  # its listing is under way, and may be older
                return True
            names = protocol.parties(e.frame, e.side)
            if names is None or to not in names:
                return False
            if not self.registry.fits(e.conv, *names):
                self.store.log.suspect()
                return False
            conv = self.registry.hold(e.conv, *names)
        elif (to != conv.a and to != conv.b) or not _is_between(conv, e):
            return False
        if conv.gap is not None:
            conv.gap.heard = max(conv.gap.heard, e.seq)
        elif e.seq == conv.head + 1:
            self._deliver_remote(conv, e, _payload_of_remote, "bus")
        elif e.seq > conv.head:
            self.poke(conv)
        return True

    def moved(self, conv: Conversation, side: int, delivered: int, read: int) -> None:
        """Cursors from another node or the database: push them if they are new.

        They are pushed as far as their entries were delivered here. The rest waits for the missing
        entries, one of which was lost on its way.
        """
        if delivered > conv.head or read > conv.head:
            self._hold_cursors(conv, side, delivered, read)
            self.poke(conv)
        else:
            self._move(conv, side, delivered, read)

    def _move(self, conv: Conversation, side: int, delivered: int, read: int) -> None:
        if conv.advance(side, delivered, read):
            self.push_receipt(conv, side, None)

    def _hold_cursors(self, conv: Conversation, side: int, delivered: int, read: int) -> None:
        held = self._early.setdefault(conv.id, [0, 0, 0, 0])
        held[2 * side] = max(held[2 * side], delivered)
        held[2 * side + 1] = max(held[2 * side + 1], read)
        if len(self._early) > EARLY_MAX:
            del self._early[next(iter(self._early))]
        self._move(conv, side, min(delivered, conv.head), min(read, conv.head))

    def _release_cursors(self, conv: Conversation) -> None:
        """An entry has been delivered: move the cursors that waited for it."""
        held = self._early.pop(conv.id, None)
        if held is not None:
            for side, delivered, read in ((0, *held[:2]), (1, *held[2:])):
                if delivered > conv.head or read > conv.head:
                    self._hold_cursors(conv, side, delivered, read)
                else:
                    self._move(conv, side, delivered, read)

    def _now_open(self, conv: Conversation) -> None:
        """Both have sent: each gets the other's cursors, and may see the other's presence."""
        for side, peer in ((0, conv.b), (1, conv.a)):
            if conv.cursor(side) != NEVER_MOVED:
                self.push_receipt(conv, side, None, {peer})
        self._presence_push.conversation_opened(conv.a, conv.b)

    def push_receipt(
        self, conv: Conversation, side: int, but: Session | None, to: Collection[UserId] | None = None
    ) -> None:
        """Push the cursors of one side to all sessions except `but`.

        They go to the sessions of that side's user, and once both have sent to the other's. `to`:
        to these users only.
        """
        frame = framing.encode_text(protocol.receipt(conv.id, *conv.names(side), *conv.cursor(side)))
        if to is None:
            to = {conv.a, conv.b} if conv.open else {conv.b if side else conv.a}
        for id in to:
            if (user := self.registry.users.get(id)) is not None:
                for session in user.sessions.values():
                    if session.state is State.LIVE:
                        if session is not but:
                            self.metrics.receipts += 1
                            session.sink.send(frame)
                    # Its welcome may have an older one, or not list this conversation
                    elif session.state is State.OPENING:
                        session.cursor_moved(conv.id, side)

    # ---- entries from the log --------------------------------------------------------------------

    def _filled(self, conv: Conversation, e: Stored) -> None:
        """Deliver an entry from the fill of a gap, which has many at once.

        A session whose output is paused gets them as fast as its client reads (chat/resync.py).
        """
        for id in {conv.a, conv.b}:
            if (user := self.registry.users.get(id)) is not None:
                for session in user.sessions.values():
                    is_behind = session.behind is not None and conv.id in session.behind
                    if session.state is State.LIVE and session.sink.is_paused and not is_behind:
                        self.resync.miss(session, conv.id, e.seq - 1)
        self._deliver_remote(conv, e, _payload_of_stored, "log")

    def stored_frame(self, conv: Conversation, e: Stored, reader: UserId) -> bytes:
        """An entry from the log as a push to one of the two."""
        return framing.encode_text(_payload_of_stored(conv, e, conv.side(reader) == e.side))

    def stored_item(self, conv: Conversation, e: Stored, reader: UserId) -> bytes:
        """An entry from the log as an item of history."""
        return protocol.stored_entry(b"{", e, *conv.names(e.side), conv.side(reader) == e.side)

    # ---- sessions that are behind: see chat/resync.py --------------------------------------------

    async def fill(self, session: Session) -> None:
        """Bring a session up to the heads of the conversations it is behind in; then they are live.

        Ends early if it closes.
        """
        await self.resync.fill(session)

    async def drained(self, session: Session) -> None:
        """Wait until the session's connection takes more output, or is closed."""
        await session.sink.drained()


def _payload_of_item(conv: Conversation, item: Item, own: bool) -> bytes:
    from_json, to_json = conv.names(item.side)
    cid = item.cid if own else None
    return protocol.entry(conv.id, conv.head, conv.ts, from_json, to_json, item.kind, item.ref, item.body, cid)


def _payload_of_remote(conv: Conversation, e: node_messages.Entry, own: bool) -> bytes:
    return node_messages.own(e.frame, e.cid) if own else e.frame


def _payload_of_stored(conv: Conversation, e: Stored, own: bool) -> bytes:
    return protocol.stored_entry(protocol.entry_head(conv.id), e, *conv.names(e.side), own)


def _is_between(conv: Conversation, e: node_messages.Entry) -> bool:
    """Whether the entry of another node is of these two. Its id may be of others in another log."""
    return b',"from":%b,"to":%b,' % conv.names(e.side) in e.frame or protocol.parties(e.frame, e.side) == (
        conv.a,
        conv.b,
    )
