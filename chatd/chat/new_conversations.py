"""Makes the conversations that first messages need, while the sends wait in order of arrival.

    put ──► a queue for each pair ──► (may its user open another?) ──► makers, a few queries
                  └── made | not_made, for each that waits ◄─────────────────────┘

One query makes many conversations, because a thousand queries for one pair each took seconds of a
busy loop (docs/decisions/0019). A pair that is held up by another transaction is made by a query of
its own. `FirstSends` (send.py) gets the outcomes in order; sends of sessions that have left by then
are dropped.
"""

from __future__ import annotations

import asyncio
from typing import Final, NamedTuple, TypeAlias

from chatd import errors
from chatd.chat import listing
from chatd.chat.ports import FirstSend, FirstSends
from chatd.chat.services import Services
from chatd.core.conversations import pair_of
from chatd.core.session import State, User
from chatd.ids import UserId
from chatd.postgres.rows import ConvRow
from chatd.store import Locked

WAITING_MAX: Final = 10_000  # sends of one node that wait for a new conversation to be made: 20 MB
# A user's part of them: an outbox of 500 to one new person fits, as before `welcome`
# (core/session.py)
WAITING_PER_USER_MAX: Final = 512
MAKE_MAX: Final = 500  # conversations a query: some 10 ms of PostgreSQL
MAKERS_MAX: Final = 2  # queries at a time; most of the pool is for reads
LOCK_MS: Final = 300  # that many wait for another transaction which makes one of theirs; then each waits by itself
RETRY_MS: Final = 1_000

Pair: TypeAlias = tuple[UserId, UserId]


class By(NamedTuple):
    """The user whose limit counts the conversation, and when it was counted (s); 0: not yet."""

    user: User
    taken_at: float


class FirstQueue(NamedTuple):
    """First messages between a pair, in order, and what gets the outcome."""

    firsts: list[FirstSend]
    sends: FirstSends


class NewConversations:
    """Implements `ports.ConversationMaker`."""

    def __init__(self, services: Services) -> None:
        self.s = services
        self.waiting = 0  # sends
        self._decides_at_once = services.admission.decides_at_once
        self._waiting: dict[Pair, FirstQueue] = {}
        self._waiting_of: dict[UserId, int] = {}  # how many of them are a user's
        self._to_make: dict[Pair, By] = {}  # the longest waiting first
        self._makers = 0
        self._none_waits = asyncio.Event()
        self._none_waits.set()

    async def idle(self) -> None:
        """Wait until nothing waits for its conversation."""
        await self._none_waits.wait()

    # ---- ports.ConversationMaker -----------------------------------------------------------------

    def waits(self, user: UserId, to: UserId) -> bool:
        """Sends between these two wait."""
        return pair_of(user, to) in self._waiting

    def put(self, first: FirstSend, sends: FirstSends, now: float) -> errors.Retryable | None:
        """Queue it for its conversation, or return the refusal.

        `sends` gets the outcome, never before this returns.
        """
        user, to = first.user, first.request.to
        assert to is not None
        pair = pair_of(user.id, to)
        if self.waiting >= WAITING_MAX or self._waiting_of.get(user.id, 0) >= WAITING_PER_USER_MAX:
            return errors.Overloaded("too many new conversations at once", retry_ms=RETRY_MS)
        if (queue := self._waiting.get(pair)) is not None:
            queue.firsts.append(first)
        elif (wait := self._begin(pair, user, FirstQueue([first], sends), now)) > 0:
            return _too_many(wait)
        self._count(user, 1)
        return None

    def _begin(self, pair: Pair, user: User, waiting: FirstQueue, now: float) -> float:
        """Make the conversation of a pair, counted by the limit of `user`.

        Returns the time (s) until the user may open another; 0: it is under way. `_not_made` must
        not run before this returns, because what waits is not counted yet.
        """
        wait = user.new_convs.take(now) if self._decides_at_once else user.new_convs.refused(now)
        if wait > 0:
            return wait
        self._waiting[pair] = waiting
        self._none_waits.clear()
        if self._decides_at_once:
            self._make(pair, By(user, now))
        else:
            self.s.tasks.spawn(self._ask(pair, user))
        return 0.0

    async def _ask(self, pair: Pair, user: User) -> None:
        """May the user open another, by what all nodes have counted?"""
        wait, taken_at = await self.s.admission.take(user.new_convs)
        if wait > 0:
            self._not_made(pair, By(user, 0.0), _too_many(wait))
        else:
            self._make(pair, By(user, taken_at))

    # ---- the makers ------------------------------------------------------------------------------

    def _make(self, pair: Pair, by: By) -> None:
        """Queue the pair for the next query."""
        self._to_make[pair] = by
        if self._makers < MAKERS_MAX:
            self._makers += 1
            self.s.tasks.spawn(self._make_all())

    async def _make_all(self) -> None:
        try:
            while self._to_make:
                asked = {pair: self._to_make.pop(pair) for pair in list(self._to_make)[:MAKE_MAX]}
                try:
                    await self._make_some(asked, LOCK_MS)
                # Another transaction holds one of them: neither the other pairs of this query nor
                # the next query may wait for it.
                except Locked:
                    for pair, by in asked.items():
                        self.s.tasks.spawn(self._make_one(pair, by))
                except errors.DataRefused as e:
                    for pair, by in asked.items():
                        self._not_made(pair, by, e)
                except errors.Retryable as e:
                    asked |= self._to_make  # what gathered in the meantime has waited as long, and would again
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
        known: list[UserId | None] = [None] * len(asked)
        if self.s.refuse_unknown:
            others = [(_other(pair, by.user.id), by.user.id) for pair, by in asked.items()]
            known = [to if to != user else None for to, user in others]
        rows = {(row.a, row.b): row for row in await self.s.store.resolve(list(asked), known, lock_ms)}
        listing.check_pairs(self.s, rows.values())
        for pair, by in asked.items():
            if (row := rows.get(pair)) is None:
                self._not_made(pair, by, errors.NoUser("no such user has been here"))
            else:
                self._made(pair, by, row)

    # ---- what waited goes on ---------------------------------------------------------------------

    def _made(self, pair: Pair, by: By, row: ConvRow) -> None:
        if row.head:
            by.user.new_convs.give_back(by.taken_at)  # it was there already
        conv = listing.merge(self.s, by.user, row)
        firsts, sends = self._take(pair)
        for first in firsts:
            sends.made(first, conv)

    def _not_made(self, pair: Pair, by: By, error: errors.Refused) -> None:
        """Answer those that waited with the error.

        If it concerns only the user who was counted, sends of the other user start again, counted
        by that user's limit. The slot of the limit is given back, also if the outcome is unknown
        and the row may exist: no listing has a conversation without entries, so it is of no use
        before it is resolved again, and that takes a slot again and keeps it.
        """
        by.user.new_convs.give_back(by.taken_at)
        firsts, sends = self._take(pair)
        if isinstance(error, errors.TooManyConversations | errors.NoUser):
            others = [first for first in firsts if first.user.id != by.user.id]
            firsts = [first for first in firsts if first not in others]
            if others:
                self._begin_again(pair, FirstQueue(others, sends))
        for first in firsts:
            sends.not_made(first, error)

    def _begin_again(self, pair: Pair, waiting: FirstQueue) -> None:
        user = waiting.firsts[0].user
        if (wait := self._begin(pair, user, waiting, self.s.clock.now())) > 0:
            for first in waiting.firsts:
                waiting.sends.not_made(first, _too_many(wait))
        else:
            self._count(user, len(waiting.firsts))

    def _take(self, pair: Pair) -> FirstQueue:
        """What waits for a pair, without the sessions that have left."""
        firsts, sends = self._waiting.pop(pair)
        if not self._waiting:
            self._none_waits.set()
        for first in firsts:
            self._count(first.user, -1)
        return FirstQueue([first for first in firsts if first.session.state is State.LIVE], sends)

    def _count(self, user: User, more: int) -> None:
        self.waiting += more
        self._waiting_of[user.id] = self._waiting_of.get(user.id, 0) + more
        if not self._waiting_of[user.id]:
            del self._waiting_of[user.id]


def _too_many(wait: float) -> errors.TooManyConversations:
    return errors.TooManyConversations("too many new conversations this hour", retry_ms=int(wait * 1000) + 1)


def _other(pair: Pair, user: UserId) -> UserId:
    return pair[1] if pair[0] == user else pair[0]
