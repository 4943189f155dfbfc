"""From the log to the sessions: every entry once to each session, in the order of seq.

    Lane ──Outcome──► Delivery ──► session of the sender (ok) and all other sessions of both users (entry)
                        └── a seq is missing, or a session is behind ──► read the log ──┘

`Conversation.head` is the highest seq this node has delivered. A result that starts at head + 1
goes out at once (`_fan_out`). One that starts later shows a gap: somebody's outcome was unknown, or
another node wrote. Then the conversation's results wait in a `Gap` while the missing entries are
read and delivered (chat/gap_fill.py). What PostgreSQL has is right; whoever learns of a higher head
pokes (`poke`), and it is looked up. So an entry that another node tells of (`heard`) is delivered
if it is the next one, and else only shows where to look.

A session that is behind (after its hello, or while its welcome is made) has the conversation in
`behind`, with the seq it has got to. Live entries pass it by; chat/resync.py reads the log up to
the head, conversation by conversation, until the loop turn in which nothing is missing. An `ok` to
such a session waits in `held` until the fill reaches its seq, where it takes the entry's place.

Order that is law: the transaction has committed before anything here runs; and for one conversation
ok and entries leave in the order of seq.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Coroutine
from typing import Any, Final

import structlog

from chatd import errors, protocol
from chatd import log as logs
from chatd.chat import delivery_log
from chatd.chat.gap_fill import Gaps
from chatd.chat.ports import OtherNodes
from chatd.chat.presence_push import PresencePush
from chatd.chat.resync import Resync
from chatd.core.batch import PROBE, Batch, Item
from chatd.core.conversation import Conversation
from chatd.core.conversations import Registry
from chatd.core.rate_limit import TokenBucket
from chatd.core.session import End, Session, State
from chatd.ids import ConvId, UserId
from chatd.metrics import Metrics
from chatd.postgres.append_answer import Answer, First, Result, What
from chatd.postgres.connection import Backend
from chatd.protocol import MESSAGE, Stored
from chatd.store import Store
from chatd.wire import framing, node_messages

log = structlog.get_logger("delivery")

# Conversations whose cursors wait for an entry; past it the oldest are dropped, and the next
# listing has them
EARLY_MAX: Final = 10_000
HITS_LOGGED_PER_S: Final = 5.0  # the metric counts all of them; the log is not a flooder's to fill
HITS_LOGGED_BURST: Final = 20

NEVER_MOVED: Final = (0, 0)  # cursors
NONE_NEW: Final = First(0, 0)  # a conversation that got no new message: each of its items has a result of its own

REFUSALS: Final[dict[What, Callable[[], errors.ClientFault]]] = {
    What.NO_MESSAGE: lambda: errors.NoMessage("`ref` is not a message that is still kept"),
    What.NOT_AUTHOR: lambda: errors.NotAuthor("only its author changes a message"),
    What.DELETED: lambda: errors.Deleted("the message was deleted before"),
    What.TOO_LATE: lambda: errors.TooLate("the time to edit this message is over"),
}


class Delivery:
    """Implements `writer.Outcome`.

    `spawn` starts a watched task of the node; `now` is the loop's clock in seconds.
    """

    def __init__(
        self, registry: Registry, store: Store, metrics: Metrics, *, now: Callable[[], float],
        spawn: Callable[[Coroutine[Any, Any, None]], object], presence_push: PresencePush, others: OtherNodes,
    ) -> None:  # fmt: skip
        self.registry, self.store, self.metrics = registry, store, metrics
        self.now, self._spawn, self._presence_push = now, spawn, presence_push
        self._hits_logged = TokenBucket(HITS_LOGGED_PER_S, HITS_LOGGED_BURST)
        self._early: dict[ConvId, list[int]] = {}  # cursors of both sides beyond what was delivered here
        self._others, self._is_shared = others, others.share_log
        self.gaps = Gaps(registry, store, metrics, spawn, self._fan_out_stored, self._now_open)
        self.resync = Resync(registry, store, metrics, spawn, self.stored_frame)

    # ---- what became of a batch ------------------------------------------------------------------

    def committed(self, batch: Batch, answer: Answer) -> None:
        """The batch is durable: answer and deliver."""
        firsts, messages, changes = answer
        # One message a conversation: the common case
        if not messages and not changes and len(firsts) == len(batch.messages):
            for item in batch.messages:
                seq, ts = firsts[item.conv.id]
                self._deliver(item.conv, seq, ts, [item])
            return
        by_conv: dict[ConvId, list[tuple[Item, Result | None]]] = {}
        for n, item in enumerate(batch.messages):
            by_conv.setdefault(item.conv.id, []).append((item, messages.get(n) if messages else None))
        for conv_id, results in by_conv.items():
            self._mixed(*(firsts.get(conv_id) or NONE_NEW), results)
        for item, result in zip(batch.changes, changes, strict=True):
            if result.what is What.WRITTEN:
                item.ref = result.ref or item.ref
                self._deliver(item.conv, result.seq, result.ts, [item])
            else:
                self._made_none(item, result)

    def _mixed(self, seq: int, ts: int, results: list[tuple[Item, Result | None]]) -> None:
        """Entries from `seq` on, and between them items that made none: answered in the order in
        which they arrived.
        """
        run: list[Item] = []
        for item, result in results:
            if result is None:
                run.append(item)
                continue
            if run:
                self._deliver(item.conv, seq, ts, run)
                seq, run = seq + len(run), []
            self._made_none(item, result)
        if run:
            self._deliver(run[0].conv, seq, ts, run)

    def _made_none(self, item: Item, result: Result) -> None:
        """An item that made no entry: a duplicate, one over the limit, or a refused change; its
        twins get the same.
        """
        for one in (item, *(item.twins or ())):
            if result.what is What.DUPLICATE:
                self._dup(one, result.seq, result.ts)
            elif result.what is What.LIMITED:
                self._limited(one)
            else:
                self._error(one, REFUSALS[result.what]())
        if result.what is What.DUPLICATE and result.seq > item.conv.head:
            self.gaps.open(item.conv, result.seq)  # its first writer may have died between commit and delivery

    def _dup(self, item: Item, seq: int, ts: int) -> None:
        self._free(item, give_back=True)
        self.metrics.sends_dup += 1
        item.session.sink.send(framing.encode_text(protocol.ok_entry(item.id, item.conv.id, seq, ts, dup=True)))

    def _limited(self, item: Item) -> None:
        self._free(item, give_back=True)
        self.metrics.limit_hits += 1
        if self._hits_logged.take(self.now()):
            log.info(
                "limit.hit",
                user=item.session.user.id if item.session.user else None,
                conv=item.conv.id,
                again=item.resent_early,
            )
        verdict = item.session.limited(item.peer, item.cid, item.id, item.resent_early, self.now())
        if isinstance(verdict, End):
            item.session.sink.close(verdict.code, verdict.reason)
            return
        self._answer_error(item, verdict)

    def _error(self, item: Item, error: errors.Refused) -> None:
        self._free(item)
        self._answer_error(item, error)

    def _answer_error(self, item: Item, error: errors.Refused) -> None:
        self.metrics.sends_err += 1
        self.metrics.error(error.code)
        if logs.DEBUG_ON:
            log.debug(
                "send.err",
                user=item.session.user.id if item.session.user else None,
                conv=item.conv.id,
                id=item.id,
                code=error.code,
            )
        item.session.sink.send(framing.encode_text(protocol.err(item.id, error)))

    def _free(self, item: Item, *, give_back: bool = False) -> None:
        """An item is answered: its probe is in; its slot of the rate goes back if it made nothing
        through no fault of the client.
        """
        if item.flags & PROBE:
            item.session.order.probed(item.peer)
        elif give_back and item.taken_at and item.session.user is not None:
            item.session.user.window.give_back(item.taken_at)

    def failed(self, items: list[Item], error: errors.Retryable, *, is_unknown: bool = False) -> None:
        """The outcome is unknown, or nothing was done: the client sends again.

        What may have been written keeps its slot of the rate: given back, and taken again for
        others, it would let more through than the rate is. A retry that shows `dup` gives back its
        own.
        """
        for item in items:
            for one in (item, *(item.twins or ())):
                # A cid is written once: its twins make nothing
                self._free(one, give_back=not is_unknown or one is not item)
                self._answer_error(one, one.session.failed(one.peer, one.cid, one.id, error))

    def refused(self, item: Item) -> None:
        """The database refuses this one for good."""
        error = errors.DataRefused("the database refused this entry; another try will not help")
        for one in (item, *(item.twins or ())):
            self._error(one, error)

    def blocked(self, items: list[Item]) -> None:
        """An earlier one in the conversation failed after these were queued."""
        for item in items:
            self._free(item, give_back=True)
            waiting = item.session.order.overtaken(item.peer, item.id)
            self._answer_error(item, errors.Blocked("an earlier entry here waits to be sent again", cid=waiting))

    def outcome_unknown(self, convs: set[ConvId], writers: Collection[Backend] = ()) -> None:
        """The database is back after batches of unknown outcome: see how far these conversations
        got, once their transactions are over.

        And until the backends that had the batches are gone: one that hung may begin with a batch
        that its client has long given up.
        """
        self.gaps.settle(convs)
        if writers:
            self.gaps.outlast(convs, writers)

    # ---- live entries ----------------------------------------------------------------------------

    def _deliver(self, conv: Conversation, first: int, ts: int, items: list[Item]) -> None:
        """New entries `first` ... of one conversation, in order: now, or after the gap before them
        is filled.
        """
        gap = conv.gap
        if gap is None and first == conv.head + 1:
            self._fan_out(conv, first, ts, items)
            return
        self.gaps.open(conv, first - 1).wait(first, lambda: self._after_gap(conv, first, ts, items))

    def _after_gap(self, conv: Conversation, first: int, ts: int, items: list[Item]) -> None:
        read = conv.head + 1 - first  # so many of them the fill has read too, and given to the sender as entries:
        for seq, item in enumerate(items[:read], first):  # their ok must not take that place again
            for one in (item, *(item.twins or ())):
                self._dup(one, seq, ts)
        if read < len(items):
            self._fan_out(conv, conv.head + 1, ts, items[read:])

    def _fan_out(self, conv: Conversation, seq: int, ts: int, items: list[Item]) -> None:
        conv_id = conv.id
        self.registry.latest = conv
        users = self.registry.users
        others, is_shared = self._others, self._is_shared  # bound once: a node alone pays no call
        was_open = conv.open
        now = self.now()
        if not conv.head:
            self.registry.link_both(conv)
        for item in items:
            conv.head, conv.ts = seq, ts
            if item.taken_at:
                self.metrics.send_s.observe(now - item.taken_at)
            side = item.side
            if item.kind == MESSAGE:
                if side == 0:
                    conv.na += 1
                else:
                    conv.nb += 1
            self._free(item)
            session = item.session
            self._own(session, conv_id, seq, framing.encode_text(protocol.ok_entry(item.id, conv_id, seq, ts)))
            peer = users.get(item.peer)
            me = session.user
            if session.state is State.CLOSED:  # its user may have been let go since, and be here again
                me = users.get(conv.a if side == 0 else conv.b)
            from_json, to_json = conv.names(side)
            here = peer is not None and peer is not me and bool(peer.sessions)
            channels = others.channels(me, item.peer, peer) if is_shared else ()
            if here or channels:
                payload = protocol.entry(conv_id, seq, ts, from_json, to_json, item.kind, item.ref, item.body, None)
                if peer is not None and here:
                    frame = framing.encode_text(payload)
                    for other in peer.sessions.values():
                        self._push(other, conv_id, seq, frame)
                if channels:
                    others.entry(channels, conv, item, payload)
            if me is not None and (len(me.sessions) > 1 or me.sessions.get(session.device) is not session):
                frame = framing.encode_text(
                    protocol.entry(conv_id, seq, ts, from_json, to_json, item.kind, item.ref, item.body, item.cid)
                )
                for other in me.sessions.values():
                    if other is not session:
                        self._push(other, conv_id, seq, frame)
            if item.twins:
                for twin in item.twins:
                    self._dup(twin, seq, ts)
            if me is not None and me.recent is not None:
                me.recent.touched.add(conv)
            if peer is not None and peer.recent is not None:
                peer.recent.touched.add(conv)
            seq += 1
        self.metrics.sends_ok += len(items)
        if logs.DEBUG_ON:
            for n, item in enumerate(items, seq - len(items)):
                delivery_log.told(self.registry, conv, n, item.cid, "commit")
        if not was_open and conv.open:
            self._now_open(conv)
        if self._early:
            self._release_cursors(conv)

    def _push(self, session: Session, conv_id: ConvId, seq: int, frame: bytes) -> None:
        behind = session.behind
        if session.state is State.LIVE:
            if behind is None or conv_id not in behind:
                self.metrics.deliveries += 1
                session.sink.send(frame)
        elif session.state is State.OPENING:
            # Its welcome is being made: remember the first entry that passed it by.
            session.miss(conv_id, seq - 1)

    def _push_stored(self, session: Session, conv_id: ConvId, seq: int, frame: bytes) -> None:
        """From the fill of a gap, which has many at once: a session whose output is paused gets
        them as fast as its client reads.
        """
        is_paused = session.state is State.LIVE and session.sink.is_paused
        if is_paused and (session.behind is None or conv_id not in session.behind):
            self.resync.miss(session, conv_id, seq - 1)
        else:
            self._push(session, conv_id, seq, frame)

    def _own(self, session: Session, conv_id: ConvId, seq: int, frame: bytes) -> None:
        if session.behind is not None and conv_id in session.behind:
            session.hold(conv_id, seq, frame)
        else:
            session.sink.send(frame)

    # ---- gaps ------------------------------------------------------------------------------------

    def poke(self, conv: Conversation) -> None:
        """This conversation's head may be higher than what was delivered: look."""
        self.gaps.look_up((conv.id,))

    # ---- what other nodes tell -------------------------------------------------------------------

    def heard(self, to: UserId, e: node_messages.Entry) -> bool:
        """Another node has written an entry of a user who is held here. False: it cannot be right."""
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
            self._fan_out_heard(conv, e)
        elif e.seq > conv.head:
            self.poke(conv)
        return True

    def _fan_out_heard(self, conv: Conversation, e: node_messages.Entry) -> None:
        was_open = conv.open
        if not conv.head:
            self.registry.link_both(conv)
        conv.head, conv.ts, conv.na, conv.nb = e.seq, e.ts, e.na, e.nb
        self.registry.latest = conv
        self.registry.touch(conv)
        users = self.registry.users
        author, reader = (conv.a, conv.b) if e.side == 0 else (conv.b, conv.a)
        if (user := users.get(author)) is not None and user.sessions:
            frame = framing.encode_text(node_messages.own(e.frame, e.cid))
            for session in user.sessions.values():
                self._push(session, conv.id, e.seq, frame)
        if reader != author and (user := users.get(reader)) is not None and user.sessions:
            frame = framing.encode_text(e.frame)
            for session in user.sessions.values():
                self._push(session, conv.id, e.seq, frame)
        if logs.DEBUG_ON:
            delivery_log.told(self.registry, conv, e.seq, e.cid, "bus")
        if not was_open and conv.open:
            self._now_open(conv)
        if self._early:
            self._release_cursors(conv)

    def moved(self, conv: Conversation, side: int, delivered: int, read: int) -> None:
        """Cursors that another node, or the database, tells: push them if they are news.

        As far as the entries that they speak of were delivered here: the rest waits for those, one
        of which has been lost on its way.
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
        """An entry has been delivered: the cursors that waited for it follow."""
        held = self._early.pop(conv.id, None)
        if held is not None:
            for side, delivered, read in ((0, *held[:2]), (1, *held[2:])):
                if delivered > conv.head or read > conv.head:
                    self._hold_cursors(conv, side, delivered, read)
                else:
                    self._move(conv, side, delivered, read)

    def _now_open(self, conv: Conversation) -> None:
        """Both have sent: each learns how far the other has got by now, and may see the other's
        presence.
        """
        for side, peer in ((0, conv.b), (1, conv.a)):
            if conv.cursor(side) != NEVER_MOVED:
                self.push_receipt(conv, side, None, {peer})
        self._presence_push.conversation_opened(conv.a, conv.b)

    def push_receipt(
        self, conv: Conversation, side: int, but: Session | None, to: Collection[UserId] | None = None
    ) -> None:
        """Tell all sessions, `but` one, how far that side has got: those of its user, and of the
        other once both have sent. `to`: of these users.
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
                    # Its welcome may tell an older one, or nothing of this conversation
                    elif session.state is State.OPENING:
                        session.cursor_moved(conv.id, side)

    def _fan_out_stored(self, conv: Conversation, e: Stored) -> None:
        was_open = conv.open
        if not conv.head:
            self.registry.link_both(conv)
        conv.head, conv.ts, conv.na, conv.nb = e.seq, e.ts, e.na, e.nb
        self.registry.latest = conv
        self.registry.touch(conv)
        for id in {conv.a, conv.b}:
            user = self.registry.users.get(id)
            if user is not None and user.sessions:
                frame = self.stored_frame(conv, e, id)
                for session in user.sessions.values():
                    self._push_stored(session, conv.id, e.seq, frame)
        if logs.DEBUG_ON:
            delivery_log.told(self.registry, conv, e.seq, e.cid, "log")
        if not was_open and conv.open:
            self._now_open(conv)
        if self._early:
            self._release_cursors(conv)

    def stored_frame(self, conv: Conversation, e: Stored, reader: UserId) -> bytes:
        """An entry from the log as a push to one of the two."""
        return framing.encode_text(self.stored_item(conv, e, reader, protocol.entry_head(conv.id)))

    def stored_item(self, conv: Conversation, e: Stored, reader: UserId, head: bytes = b"{") -> bytes:
        """An entry from the log, as an item of history or with the head of a push."""
        from_json, to_json = conv.names(e.side)
        return protocol.stored_entry(head, e, from_json, to_json, conv.side(reader) == e.side)

    # ---- sessions that are behind: see chat/resync.py --------------------------------------------

    async def fill(self, session: Session) -> None:
        """Bring a session up to the heads of the conversations it is behind in; then they are live.

        Ends early if it closes.
        """
        await self.resync.fill(session)

    async def drained(self, session: Session) -> None:
        """Wait until the session's connection takes more; returns at once when it does, or when it
        is closed.
        """
        await session.sink.drained()


def _is_between(conv: Conversation, e: node_messages.Entry) -> bool:
    """Is the entry that another node tells of one of these two users?

    In another log this id may be of others.
    """
    return b',"from":%b,"to":%b,' % conv.names(e.side) in e.frame or protocol.parties(e.frame, e.side) == (
        conv.a,
        conv.b,
    )
