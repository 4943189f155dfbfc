"""The pipeline of sends, edits and deletes: from request to lane, from outcome to sender.

It has no I/O.

    enter ──► arrive ──► (wait: conversation) ──► (wait: all nodes' limits) ──► decide ──► submit
                                                                                             │ lane
    Delivery ◄── entries, duplicates ── committed ◄──────────────────────────────────────────┤
    err to the sender ◄── limited, failed, refused, blocked ◄────────────────────────────────┘

There are two waits: for a new conversation (`NewConversations`), and for the limits that all nodes
share (`Admission`). Without them everything happens in the loop turn of the frame. In either, the
entries of one conversation keep their order of arrival, because later ones join the same queue.
What a failure, a full queue or a drain means for them is decided when their wait ends, in that
order.

Each entry has exactly one answer. The caller of `enter` answers what it raises; Delivery answers
with `ok`; every other error is answered by chat/send_errors.py. An entry is written even if its
session has closed since then: its client finds it when it resyncs.

This module reads no clock and starts no task: `now`, in seconds, is an argument. What it needs of
others are the protocols of `ports`.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from chatd import errors
from chatd.chat.ports import (
    Admission,
    CommittedEntries,
    ConversationMaker,
    EntryLanes,
    FirstSend,
    SendCounts,
    SendLog,
    UnknownOutcomes,
)
from chatd.chat.send_errors import SendErrors, draining_error, full_error, not_queued, other_log_error
from chatd.core.batch import PROBE, Batch, Item
from chatd.core.conversation import Conversation
from chatd.core.conversations import Registry, check_name
from chatd.core.effects import Throttled
from chatd.core.session import Session, User
from chatd.errors import CloseCode
from chatd.ids import ConvId, UserId
from chatd.postgres.append_answer import Answer, First, Result, What
from chatd.protocol import Entering, Send

if TYPE_CHECKING:
    from chatd.postgres.connection import Backend

NONE_NEW: Final = First(0, 0)  # a conversation that got no new message: each of its items has a result of its own


class SendPipeline(SendErrors):
    """Implements `ports.FirstSends` and `append_answer.Outcome`."""

    def __init__(
        self,
        registry: Registry,
        lanes: EntryLanes,
        admission: Admission,
        new_conversations: ConversationMaker,
        delivery: CommittedEntries,
        gaps: UnknownOutcomes,
        counts: SendCounts,
        log: SendLog,
    ) -> None:
        super().__init__(counts, log)
        self.draining = False
        self._registry, self._lanes, self._delivery = registry, lanes, delivery
        self._admission, self._decides_at_once = admission, admission.decides_at_once
        self._new_conversations, self._gaps = new_conversations, gaps

    def drain(self) -> None:
        """From now on refuse what is not in a lane yet."""
        self.draining = True

    # ---- in --------------------------------------------------------------------------------------

    def enter(self, session: Session, request: Entering, now: float) -> None:
        """Take a request that was just read. Raises the refusal; else it is answered later."""
        self._counts.sends += 1
        user = session.user
        assert user is not None
        to = request.to
        if to is not None:
            new = self._new_conversations
            if (type(request) is Send and to not in user.peers) or (new.waiting and new.waits(user.id, to)):
                self._begin(session, request, user, to, now)
                return
        conv = self._registry.find(user, request.c, to)
        if session.order.blocked:
            session.order.known(conv.id, conv.peer(user.id))
        item = Item.from_request(session, request, conv)
        if self.draining:
            raise not_queued(session, item.peer, item, draining_error())
        item.resent_early = session.order.arrive(item.peer, item.cid, now)
        if self._decides_at_once:
            self._queue(item, user, now)
        else:
            self._wait(item, user)

    def throttled(self, session: Session, effect: Throttled) -> None:
        """Too many frames a second: raises the refusal.

        A refused entry blocks its conversation, so that later ones do not overtake it.
        """
        self._counts.frames_throttled += 1
        request, user = effect.request, session.user
        error = errors.RateLimited("too many frames a second on this connection", retry_ms=effect.retry_ms)
        if isinstance(request, Entering) and user is not None:
            peer = request.to if request.to is not None else self._registry.find(user, request.c, None).peer(user.id)
            raise not_queued(session, peer, request, error)
        raise error

    def _begin(self, session: Session, request: Entering, user: User, to: UserId, now: float) -> None:
        """A send to a user with whom there is no conversation.

        Or earlier sends still wait for it, and this send, edit or delete must not overtake them.
        """
        if not self._new_conversations.waits(user.id, to):
            self._registry.need(user, to)
        check_name(user, to)
        if self.draining:
            raise not_queued(session, to, request, draining_error())
        resent_early = session.order.arrive(to, request.cid, now)
        refusal = self._new_conversations.put(FirstSend(session, user, request, resent_early), self, now)
        if refusal is not None:
            raise not_queued(session, to, request, refusal)

    def made(self, first: FirstSend, conv: Conversation) -> None:
        """Its conversation exists. Answers the sender; never raises."""
        item = Item.from_request(first.session, first.request, conv)
        item.resent_early = first.resent_early
        try:
            self._wait(item, first.user)
        except errors.Refused as e:
            self._refuse(item.session, item.id, e)

    def not_made(self, first: FirstSend, error: errors.Refused) -> None:
        """Its conversation cannot be made. Answers the sender; never raises."""
        session, _, request, _ = first
        if isinstance(error, errors.Retryable):
            assert request.to is not None
            error = not_queued(session, request.to, request, error)
        self._refuse(session, request.id, error)

    def _wait(self, item: Item, user: User) -> None:
        """Continue when it is known what the user's limits allow. Raises the refusal."""
        if not self._admission.put(user.window, partial(self._admitted, item, user)):
            raise not_queued(item.session, item.peer, item, full_error())

    def _admitted(self, item: Item, user: User, arrived_at: float) -> None:
        """The wait of an entry has ended. Answers the sender if it fails; never raises."""
        try:
            # The log is another one since (server._log_moved)
            if self._registry.convs.get(item.conv.id) is not item.conv:
                raise not_queued(item.session, item.peer, item, other_log_error())
            self._queue(item, user, arrived_at)
        except errors.Refused as e:
            self._refuse(item.session, item.id, e)
        except Exception as e:  # a bug must not affect other sessions: it is logged, and this one is closed
            self._log.bug(user.id, e)
            item.session.sink.close(CloseCode.INTERNAL, "internal error")

    def _queue(self, item: Item, user: User, now: float) -> None:
        """All before it are in their lanes: decide, and give it to its lane. Raises the refusal."""
        session = item.session
        if session.order.decide(item.peer, item.cid, item.id, user, now):
            item.taken_at = now
        else:
            item.flags |= PROBE
            session.own_order().probe(item.peer)
        # The drain is looked at after the order, because an entry behind a failed one must not be
        # the one that is waited for.
        if self.draining or not self._lanes.choose(item).submit(item):
            item.answered(give_back=True)
            raise not_queued(session, item.peer, item, draining_error() if self.draining else full_error())

    # ---- out: the outcomes of items, in the order of the lane ------------------------------------

    def committed(self, batch: Batch, answer: Answer, now: float) -> None:
        """The batch is durable: entries are delivered, the others answered."""
        firsts, messages, changes = answer
        deliver = self._delivery.deliver
        # One message a conversation: the common case
        if not messages and not changes and len(firsts) == len(batch.messages):
            for item in batch.messages:
                seq, ts = firsts[item.conv.id]
                deliver(item.conv, seq, ts, [item], now)
            return
        by_conv: dict[ConvId, list[tuple[Item, Result | None]]] = {}
        for n, item in enumerate(batch.messages):
            by_conv.setdefault(item.conv.id, []).append((item, messages.get(n) if messages else None))
        for conv_id, results in by_conv.items():
            self._mixed(*(firsts.get(conv_id) or NONE_NEW), results, now)
        for item, result in zip(batch.changes, changes, strict=True):
            if result.what is What.WRITTEN:
                item.ref = result.ref or item.ref
                deliver(item.conv, result.seq, result.ts, [item], now)
            else:
                self._made_none(item, result, now)

    def _mixed(self, seq: int, ts: int, results: list[tuple[Item, Result | None]], now: float) -> None:
        """Entries from `seq` on, mixed with items that made none: answered in order of arrival."""
        run: list[Item] = []
        for item, result in results:
            if result is None:
                run.append(item)
                continue
            if run:
                self._delivery.deliver(item.conv, seq, ts, run, now)
                seq, run = seq + len(run), []
            self._made_none(item, result, now)
        if run:
            self._delivery.deliver(run[0].conv, seq, ts, run, now)

    def _made_none(self, item: Item, result: Result, now: float) -> None:
        """Answer an item that made no entry, and its twins alike.

        It is a duplicate, over the limit, or a refused change.
        """
        for one in (item, *(item.twins or ())):
            if result.what is What.DUPLICATE:
                self._delivery.repeat(one, result.seq, result.ts)
            elif result.what is What.LIMITED:
                self._limited(one, now)
            else:
                self._changes_nothing(one, result.what)

    def outcome_unknown(self, convs: set[ConvId], writers: set[Backend]) -> None:
        """The database is back after batches of unknown outcome."""
        self._gaps.outcome_unknown(convs, writers)
