"""The way of an entry from its frame into a lane: which conversation, may it go, in which order.

    enter ──► (make the conversation) ──► (the gate: what do the limits of all nodes allow?) ──► Session.judge ──► Store.append
      └── refused: blocked, over the bounds, draining ◄──────────────────┘

There are two waits: for the first message to somebody, and for the limits that all nodes share
(`Admission`). Without them everything happens in the loop turn of the frame. Through either,
entries of one conversation stay in the order in which they arrived, because later ones join the
same queue. What a failure, a full queue or a drain means for those that wait is decided when they
come out, in that order (core/send_order.py).

An entry of a session that has closed meanwhile is still written, as one in a lane is: its client
finds it when it resyncs.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Final, NamedTuple, TypeAlias

import structlog

from chatd import errors, protocol
from chatd.chat import hello
from chatd.chat.hello import Services
from chatd.core.batch import Item
from chatd.core.conversation import Conversation
from chatd.core.conversations import check_name
from chatd.core.session import Session, State, Throttled, User, Verdict
from chatd.errors import CloseCode
from chatd.ids import UserId
from chatd.postgres.rows import ConvRow
from chatd.protocol import Entering, Send
from chatd.store import Locked
from chatd.wire import framing

log = structlog.get_logger("entering")

RESOLVING_MAX: Final = 10_000  # sends of one node that wait for a new conversation to be made: 20 MB
# A user's part of them: an outbox of 500 to one new person fits, as before `welcome`
# (core/session.py)
RESOLVING_PER_USER_MAX: Final = 512
MAKE_MAX: Final = 500  # conversations a query: some 10 ms of PostgreSQL
MAKERS_MAX: Final = 2  # queries at a time; most of the pool is for reads
LOCK_MS: Final = 300  # that many wait for another transaction which makes one of theirs; then each waits by itself
RETRY_MS: Final = 1_000

Pair: TypeAlias = tuple[UserId, UserId]


class First(NamedTuple):
    """A send that waits for its conversation. `resent_early`: as `SendOrder.arrive` said."""

    session: Session
    request: Send
    resent_early: bool


class By(NamedTuple):
    """In whose name a conversation is made, and when their limit counted it; 0: it has not."""

    user: User
    taken_at: float


class Entrance:
    """`enter` and `throttled` are called for what a session asks; they raise the refusal."""

    def __init__(self, services: Services) -> None:
        self.s = services
        self.draining = False
        self._decides_at_once = services.admission.decides_at_once
        self._resolving: dict[Pair, list[First]] = {}
        self._resolving_of: dict[UserId, int] = {}  # how many of them are a user's
        self._resolving_n = 0
        self._to_make: dict[Pair, By] = {}  # the longest waiting first
        self._makers = 0
        self._resolved = asyncio.Event()  # nothing waits
        self._resolved.set()

    def enter(self, session: Session, request: Entering) -> None:
        self.s.metrics.sends += 1
        user = session.user
        assert user is not None
        if request.to is not None and type(request) is Send and self._unresolved(user, request.to):
            self._resolve(session, request, user, request.to)
            return
        conv = self.s.registry.find(user, request.c, request.to)
        peer = conv.b if user.id == conv.a else conv.a
        if self.draining:
            raise self._drained(session, request, peer)
        if not self._decides_at_once:
            resent_early = session.order.arrive(peer, request.cid, self.s.now())
            if isinstance(resent_early, errors.Blocked):
                raise resent_early
            self._wait(session, request, conv, resent_early)
            return
        verdict = session.admit(peer, request.cid, self.s.now())
        if isinstance(verdict, errors.Blocked):
            raise verdict
        self._append(session, request, conv, peer, verdict)

    def throttled(self, session: Session, effect: Throttled) -> None:
        """Too many frames a second: refuse it.

        One that makes an entry blocks its conversation, as order asks.
        """
        self.s.metrics.frames_throttled += 1
        request = effect.request
        error: errors.Refused = errors.RateLimited(
            "too many frames a second on this connection", retry_ms=effect.retry_ms
        )
        user = session.user
        if isinstance(request, Entering) and user is not None:
            peer = request.to if request.to is not None else self.s.registry.find(user, request.c, None).peer(user.id)
            error = session.not_queued(peer, request, errors.RateLimited(str(error), retry_ms=effect.retry_ms))
        raise error

    async def idle(self) -> None:
        """Wait until nothing waits for its conversation, nor at the gate."""
        await self._resolved.wait()
        await self.s.admission.idle()

    # ---- into the lane ---------------------------------------------------------------------------

    def _append(self, session: Session, request: Entering, conv: Conversation, peer: UserId, verdict: Verdict) -> None:
        user = session.user
        assert user is not None
        if not self.s.store.append(Item.from_request(session, request, conv, verdict)):
            if verdict.probe:
                session.order.probed(peer)
            else:
                user.window.give_back(verdict.taken_at)
            raise session.not_queued(peer, request, errors.Overloaded("the server's queue is full", retry_ms=RETRY_MS))

    def _wait(self, session: Session, request: Entering, conv: Conversation, resent_early: bool) -> None:
        """On, when it is known what the user's limits allow."""
        if not self.s.admission.put(
            _user(session).window, partial(self._through, session, request, conv, resent_early)
        ):
            raise session.not_queued(
                conv.peer(_user(session).id),
                request,
                errors.Overloaded("the server's queue is full", retry_ms=RETRY_MS),
            )

    def _through(
        self, session: Session, request: Entering, conv: Conversation, resent_early: bool, came: float
    ) -> None:
        """An entry that had to wait goes on, or not. Answers by itself; never raises."""
        try:
            peer = conv.peer(_user(session).id)
            # Before the drain, because an entry behind a failed one must not be the one that is
            # waited for.
            if (blocked := session.order.recheck(peer, request.cid, request.id)) is not None:
                raise blocked
            if self.draining:
                raise self._drained(session, request, peer)
            if self.s.registry.convs.get(conv.id) is not conv:  # the log is another one since (server._log_moved)
                raise session.not_queued(
                    peer, request, errors.Unavailable("the log is another one: connect again", retry_ms=RETRY_MS)
                )
            self._append(session, request, conv, peer, session.judge(peer, resent_early, came))
        except errors.Refused as e:
            self._refuse(session, request, e)
        except Exception:  # a bug of ours must not take others down: this connection ends, loudly
            log.exception("entering.bug", user=_user(session).id)
            session.sink.close(CloseCode.INTERNAL, "internal error")

    def _refuse(self, session: Session, request: Entering, error: errors.Refused) -> None:
        error.__traceback__ = None  # as in Chat.handle
        self.s.metrics.sends_err += 1
        self.s.metrics.error(error.code)
        session.sink.send(framing.encode_text(protocol.err(request.id, error)))

    def _drained(self, session: Session, request: Entering, peer: UserId) -> errors.Refused:
        return session.not_queued(
            peer, request, errors.Unavailable("this server is draining; reconnect", retry_ms=RETRY_MS)
        )

    # ---- the first message -----------------------------------------------------------------------

    def _unresolved(self, user: User, to: UserId) -> bool:
        """No conversation in memory, or earlier sends still wait for it: a later one must not
        overtake them.
        """
        return to not in user.peers or (bool(self._resolving) and _pair(user.id, to) in self._resolving)

    def _resolve(self, session: Session, request: Send, user: User, to: UserId) -> None:
        """A send to somebody with whom there is no conversation in memory: make it, then go on in
        order.
        """
        check_name(user, to)
        if self.draining:
            raise self._drained(session, request, to)
        resent_early = session.order.arrive(to, request.cid, self.s.now())
        if isinstance(resent_early, errors.Blocked):
            raise resent_early
        pair = _pair(user.id, to)
        if self._resolving_n >= RESOLVING_MAX or self._resolving_of.get(user.id, 0) >= RESOLVING_PER_USER_MAX:
            raise session.not_queued(
                to, request, errors.Overloaded("too many new conversations at once", retry_ms=RETRY_MS)
            )
        first = First(session, request, resent_early)
        if (queue := self._resolving.get(pair)) is not None:
            queue.append(first)
        elif (wait := self._begin(pair, user, [first])) > 0:
            raise session.not_queued(to, request, _too_many(wait))
        self._count(session, 1)

    def _begin(self, pair: Pair, user: User, waiting: list[First]) -> float:
        """Make the conversation of a pair in a user's name; else the time (s) until they may open
        another.
        """
        now = self.s.now()
        wait = user.new_convs.take(now) if self._decides_at_once else user.new_convs.refused(now)
        if wait > 0:
            return wait
        self._resolving[pair] = waiting
        self._resolved.clear()
        if self._decides_at_once:
            self._make(pair, user, now)
        else:
            self.s.spawn(self._ask(pair, user))
        return 0.0

    async def _ask(self, pair: Pair, user: User) -> None:
        """May the user open another, by what all nodes have counted?"""
        wait, taken_at = await self.s.admission.take(user.new_convs)
        if wait > 0:
            self._not_made(pair, By(user, 0.0), _too_many(wait))
        else:
            self._make(pair, user, taken_at)

    def _make(self, pair: Pair, user: User, taken_at: float) -> None:
        """Have it made, with what else is to be made by then: one query, as a thousand of one pair
        each take seconds of a busy loop.
        """
        self._to_make[pair] = By(user, taken_at)
        if self._makers < MAKERS_MAX:
            self._makers += 1
            self.s.spawn(self._make_all())

    async def _make_all(self) -> None:
        try:
            while self._to_make:
                asked = {pair: self._to_make.pop(pair) for pair in list(self._to_make)[:MAKE_MAX]}
                try:
                    await self._make_some(asked, LOCK_MS)
                # Somebody else's transaction: the others of this query are not to wait for it, nor
                # the next query
                except Locked:
                    for pair, by in asked.items():
                        self.s.spawn(self._make_one(pair, by))
                except errors.DataRefused as e:
                    for pair, by in asked.items():
                        self._not_made(pair, by, e)
                except errors.Retryable as e:
                    asked |= self._to_make  # what gathered meanwhile has waited as long, and would again
                    self._to_make = {}
                    for pair, by in asked.items():
                        self._not_made(pair, by, e)
        finally:
            self._makers -= 1

    async def _make_one(self, pair: Pair, by: By) -> None:
        try:
            await self._make_some({pair: by}, 0)
        except (errors.Retryable, errors.DataRefused) as e:
            self._not_made(pair, by, e)

    async def _make_some(self, asked: dict[Pair, By], lock_ms: int) -> None:
        known = [
            to if self.s.refuse_unknown and (to := _other(pair, by.user.id)) != by.user.id else None
            for pair, by in asked.items()
        ]
        rows = {(row.a, row.b): row for row in await self.s.store.resolve(list(asked), known, lock_ms)}
        hello.check_pairs(self.s, rows.values())
        for pair, by in asked.items():
            if (row := rows.get(pair)) is None:
                self._not_made(pair, by, errors.NoUser("no such user has been here"))
            else:
                self._made(pair, by, row)

    def _made(self, pair: Pair, by: By, row: ConvRow) -> None:
        """What waited for a conversation goes on, in order."""
        if row.head:
            by.user.new_convs.give_back(by.taken_at)  # it was there already
        conv = hello.merge(self.s, by.user, row)
        for session, request, resent_early in self._take(pair):
            try:
                self._wait(session, request, conv, resent_early)
            except errors.Refused as e:
                self._refuse(session, request, e)

    def _not_made(self, pair: Pair, by: By, error: errors.Refused) -> None:
        """What waited hears why.

        What the other user has sent meanwhile goes on in their own name, if the reason is of the
        one in whose it was asked.

        The slot goes back, also where the outcome is unknown and the row may be there. That is of
        no use before it is resolved again: no listing has a conversation without entries. And
        whoever resolves one takes a slot, and keeps it if it has none.
        """
        by.user.new_convs.give_back(by.taken_at)
        waiting = self._take(pair)
        if isinstance(error, errors.TooManyConversations | errors.NoUser):
            others = [first for first in waiting if _user(first.session).id != by.user.id]
            waiting = [first for first in waiting if first not in others]
            if others:
                self._begin_again(pair, others)
        self._tell(pair, waiting, error)

    def _begin_again(self, pair: Pair, waiting: list[First]) -> None:
        session = waiting[0].session
        if (wait := self._begin(pair, _user(session), waiting)) > 0:
            self._tell(pair, waiting, _too_many(wait))
        else:
            self._count(session, len(waiting))

    def _tell(self, pair: Pair, waiting: list[First], error: errors.Refused) -> None:
        for session, request, _ in waiting:
            to = _other(pair, _user(session).id)
            self._refuse(
                session,
                request,
                session.not_queued(to, request, error) if isinstance(error, errors.Retryable) else error,
            )

    def _take(self, pair: Pair) -> list[First]:
        """What waits for a pair, without the sessions that have left."""
        waiting = self._resolving.pop(pair)
        if not self._resolving:
            self._resolved.set()
        for first in waiting:
            self._count(first.session, -1)
        return [first for first in waiting if first.session.state is State.LIVE]

    def _count(self, session: Session, more: int) -> None:
        id = _user(session).id
        self._resolving_n += more
        self._resolving_of[id] = self._resolving_of.get(id, 0) + more
        if not self._resolving_of[id]:
            del self._resolving_of[id]


def _user(session: Session) -> User:
    assert session.user is not None
    return session.user


def _too_many(wait: float) -> errors.TooManyConversations:
    return errors.TooManyConversations("too many new conversations this hour", retry_ms=int(wait * 1000) + 1)


def _pair(one: UserId, other: UserId) -> Pair:
    """Two users in the order of their bytes, as the conversation has them."""
    return (one, other) if one.encode() <= other.encode() else (other, one)


def _other(pair: Pair, user: UserId) -> UserId:
    return pair[1] if pair[0] == user else pair[0]
