"""The feed: how a node hears from PostgreSQL what other nodes have written, whatever Redis has
lost.

    append, flush_cursors ──one row each──► feed ──feed_since(last snapshot)──► Feed ──► heads, cursors, clock
                                                            too late, or another connection: catch up ──► states of all held users

Guarantee: what a transaction that tells the feed has committed is told here once, at most
`interval_s` and an answer later, in whatever order transactions commit; and after a time without
the database, or without this process, all that was missed. It costs per batch, not per user: asking
for the heads of all conversations each second would take 388 ms for 200,000.

Catching up is for when the feed cannot be trusted: this node was away for longer than `BEHIND_S`
(rows go after `KEEP_S`), or its connection is a new one (postgres/change_feed_reader.py). It asks
for the conversations of the users held, `CHUNK_CONVS` at a time with a pause after each, and gets
those that changed since a mark; reading goes on in between. By user and not by conversation: what
was missed may be the first entry of one that nobody here knows.

Two things are the owner's to know. What is told may be old, or known already: only what is higher
than memory is news. And a conversation that is not in memory is passed over, also while its user's
listing is under way, whose snapshot may be older: if `pages` has moved since that was asked for,
look the listed ones up.

Position is pure; Feed has no clock but `now`.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple, Protocol, TypeVar

import structlog

from chatd.errors import Refused, Unavailable
from chatd.ids import ConvId, UserId
from chatd.metrics import Metrics
from chatd.postgres.change_feed_reader import DEADLINE_S, CursorsChange, FeedPage, HeadChange
from chatd.postgres.rows import ConvRow

log = structlog.get_logger("feed")

T = TypeVar("T")

BEHIND_S: Final = 20.0  # by the database's clock, or by ours: either may have been stopped or set
KEEP_S: Final = 60.0  # how long rows are kept, by the clock of the node that takes them out
PRUNE_S: Final = 10.0
PRUNE_ROWS: Final = 50_000  # a statement: 0.1 s
CHUNK_CONVS: Final = 1_000  # a query of 3 ms
CHUNK_PAUSE_S: Final = 0.005
CHUNK_PAUSES: Final = 2.0  # times as long as the query took: PostgreSQL gives a third of one core at most
SLICE: Final = 2_000  # rows told in one turn of the loop
BACKOFF_S: Final = 0.05
BACKOFF_MAX_S: Final = 1.0
# More than a crashed server gives out twice: those of some 0.6 s, the most that its log may be late
XIDS_AGAIN: Final = 100_000
FIRST: Final = UserId("")  # before the name of every user
NOTHING_PRUNED: Final = "1:1:"  # a snapshot that sees nothing
assert BEHIND_S + DEADLINE_S < KEEP_S, "a row that somebody still reads must be there"


class Source(Protocol):
    """The store. All of these raise Refused."""

    async def feed(self, snapshot: str | None, until_ms: int) -> FeedPage: ...
    async def states(self, users: Sequence[UserId], since: str) -> list[ConvRow]: ...
    async def states_page(self, user: UserId, after: UserId) -> tuple[list[ConvRow], UserId | None]: ...
    async def states_of(self, convs: Sequence[ConvId]) -> list[ConvRow]: ...
    async def feed_prune(self, done: str, upto: str, rows: int) -> int | None: ...


class Question(NamedTuple):
    """What to ask the feed for."""

    snapshot: str | None
    until_ms: int
    asked_at: float


class Position:
    """How far the feed is read, what the next page means, and what nobody needs any more. Pure."""

    __slots__ = ("_at", "_marks", "_now_ms", "_pruned", "snapshot")

    def __init__(self) -> None:
        self.snapshot: str | None = None
        self._at = -math.inf
        self._now_ms = 0
        self._marks: deque[tuple[float, str]] = deque()  # snapshots, PRUNE_S apart, the oldest first
        self._pruned = NOTHING_PRUNED

    def question(self, now: float) -> Question:
        """Ask with no snapshot where the answer could not be used."""
        if self.snapshot is None or now - self._at > BEHIND_S:
            return Question(None, 0, now)
        return Question(self.snapshot, self._now_ms + int(BEHIND_S * 1000), now)

    def took(self, question: Question, page: FeedPage) -> int | None:
        """Go on from this page.

        Gives the transaction id from which on all held users are to be caught up, None if the page
        tells everything.
        """
        last, self.snapshot = self.snapshot, page.snapshot
        self._at, self._now_ms = question.asked_at, page.now_ms
        if page.reconnected:  # ids may have been given out again
            self._marks.clear()
            self._pruned = NOTHING_PRUNED
        if not self._marks or question.asked_at - self._marks[-1][0] >= PRUNE_S:
            self._marks.append((question.asked_at, page.snapshot))
        # The first, or of a server that knows less than the last one did
        if last is None or xmax(page.snapshot) < xmax(last):
            return 0
        if question.snapshot is None or page.now_ms > question.until_ms or page.reconnected:
            return max(0, xmin(last) - XIDS_AGAIN)
        return None

    def prunable(self, now: float) -> tuple[str, str] | None:
        """(done, upto): rows that the second snapshot sees and the first does not are old; None:
        there are none yet.
        """
        upto = None
        while self._marks and now - self._marks[0][0] >= KEEP_S:
            upto = self._marks.popleft()
        if upto is None:
            return None
        self._marks.appendleft(upto)
        return None if upto[1] == self._pruned else (self._pruned, upto[1])

    def pruned(self, upto: str) -> None:
        """All that this snapshot sees is gone."""
        self._pruned = upto


def xmin(snapshot: str) -> int:
    """The oldest transaction that was running: whatever a snapshot does not see is not older."""
    return int(snapshot.partition(":")[0])


def xmax(snapshot: str) -> int:
    """The first transaction that had not begun."""
    return int(snapshot.split(":")[1])


def chunks(users: Iterable[tuple[UserId, int]], convs: int = CHUNK_CONVS) -> deque[list[UserId]]:
    """Users, each with the number of their conversations, in lists of so many conversations or one
    user more.
    """
    out: deque[list[UserId]] = deque()
    room = 0
    for user, n in users:
        if room <= 0:
            out.append([])
            room = convs
        out[-1].append(user)
        room -= n + 1
    return out


class Feed:
    """`run` is its task, for the life of the node. `pages`: how many have been told.

    Called, none of which may raise or block: `clock(database's time in ms, how long the answer
    took)`; `heads` and `cursors` with what was committed; `found` with whole rows, before `heads`
    and `cursors` tell the same of them: such as may be unknown here, for new conversations and in a
    catch-up. `users` gives all users held, with the number of their conversations.
    """

    def __init__(
        self,
        source: Source,
        metrics: Metrics,
        *,
        now: Callable[[], float],
        interval_s: Callable[[], float],
        heads: Callable[[list[HeadChange]], None],
        cursors: Callable[[list[CursorsChange]], None],
        found: Callable[[list[ConvRow]], None],
        clock: Callable[[int, float], None],
        users: Callable[[], Iterable[tuple[UserId, int]]],
    ) -> None:
        self._source, self._metrics = source, metrics
        self._now, self._interval_s = now, interval_s
        self._heads, self._cursors, self._found, self._clock, self._users = heads, cursors, found, clock, users
        self.position = Position()
        self.pages = 0
        self._resets = 0  # what was read before the last one is not told on
        self._new: dict[ConvId, None] = {}  # to be looked up
        self._chunks: deque[list[UserId]] = deque()  # users still to be caught up, with what changed from _since on
        # Users of whom a chunk each is too much for one query, and with whom the next page begins
        self._paged: dict[UserId, UserId] = {}
        self._failed_at: int | None = None  # readings of the feed when the first chunk failed
        self._since = 0
        self._caught = 0
        self._due = self._chunk_due = self._prune_due = -math.inf
        self._away_since: float | None = None
        self._backoff_s = 0.0
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """Read now: something may have been missed, or `interval_s` has become shorter."""
        self._due = -math.inf
        self._woken.set()

    def reset(self) -> None:
        """The log is another one: its feed is read from now on, and what the last one's told is of
        no use.
        """
        self.position = Position()
        self._resets += 1
        self._new.clear()
        self._chunks.clear()
        self.wake()

    @property
    def catching_up(self) -> bool:
        return bool(self._chunks)

    async def run(self) -> None:
        """Read for ever."""
        while True:
            until = await self.turn()
            try:
                async with asyncio.timeout(max(0.0, until - self._now())):
                    await self._woken.wait()
            except TimeoutError:
                pass
            self._woken.clear()

    async def turn(self) -> float:
        """Do what is due; gives the time at which something is again."""
        try:
            if self._now() >= self._due:
                await self._read()
            elif self._chunks and self._now() >= self._chunk_due:
                await self._catch_up()
        except Refused as e:
            self._failed(e)
        return min(self._due, self._chunk_due) if self._chunks else self._due

    def _failed(self, e: Refused) -> None:
        self._metrics.feed_failed += 1
        now = self._now()
        if self._away_since is None:
            self._away_since = now
            log.warning("feed.late", reason=str(e))
        self._backoff_s = min(max(self._backoff_s * 2, BACKOFF_S), BACKOFF_MAX_S)
        self._due = self._chunk_due = now + self._backoff_s

    # ---- reading ---------------------------------------------------------------------------------

    async def _read(self) -> None:
        question = self.position.question(self._now())
        self._due = question.asked_at + self._interval_s()
        page = await self._source.feed(question.snapshot, question.until_ms)
        self._clock(page.now_ms, page.rtt_s)
        if (since := self.position.took(question, page)) is not None:
            self._begin_catch_up(since)
        self._metrics.feed_reads += 1
        self._metrics.feed_rows += page.rows
        self.pages += 1  # before the first is told: a listing that began later is newer than all of them
        self._new.update(dict.fromkeys(page.changes.new))
        await self._sliced(page.changes.heads, self._heads)
        await self._sliced(page.changes.cursors, self._cursors)
        if self._new:
            rows = await self._source.states_of(list(self._new))
            self._new.clear()
            await self._tell(rows)
        await self._prune()
        # A slow database is not asked for more than half of the time
        self._due = max(self._due, self._now() + (self._now() - question.asked_at))
        if self._away_since is not None:
            log.info("feed.back", away_s=round(self._now() - self._away_since, 1))
            self._away_since, self._backoff_s = None, 0.0

    async def _prune(self) -> None:
        now = self._now()
        if now < self._prune_due or (old := self.position.prunable(now)) is None:
            return
        self._prune_due = now + PRUNE_S
        gone = await self._source.feed_prune(*old, PRUNE_ROWS)
        if gone == PRUNE_ROWS:
            self._prune_due = now
        elif gone is not None:
            self.position.pruned(old[1])

    async def _tell(self, rows: list[ConvRow]) -> None:
        await self._sliced(rows, self._found)
        await self._sliced([(row.id, row.head) for row in rows], self._heads)
        await self._sliced(
            [(row.id, row.a_delivered, row.a_read, row.b_delivered, row.b_read) for row in rows], self._cursors
        )

    # ---- catching up -----------------------------------------------------------------------------

    def _begin_catch_up(self, since: int) -> None:
        # Those that the last one had not come to have missed more
        self._since = min(since, self._since) if self._chunks else since
        self._chunks = chunks(self._users())
        self._paged.clear()
        self._caught, self._chunk_due = 0, self._now()
        if self._chunks:
            self._metrics.feed_catchups += 1
            log.info("feed.catchup", users=sum(map(len, self._chunks)))

    async def _catch_up(self) -> None:
        started = self._now()
        users = self._chunks[0]
        try:
            rows, after = await self._missed(users)
        except Refused:
            self._chunk_failed()
            raise
        self._failed_at = None
        if after is not None:
            self._paged[users[0]] = after
        else:
            self._paged.pop(users[0], None)
            self._chunks.popleft()
        self._caught += len(rows)
        took = self._now() - started
        await self._tell(rows)
        self._chunk_due = self._now() + max(CHUNK_PAUSE_S, CHUNK_PAUSES * took)
        if not self._chunks:
            log.info("feed.caughtup", conversations=self._caught)

    async def _missed(self, users: list[UserId]) -> tuple[list[ConvRow], UserId | None]:
        """What changed in the conversations of a chunk, or a page of those of its one user; and
        where the next page begins.
        """
        if (after := self._paged.get(users[0])) is not None:
            return await self._source.states_page(users[0], after)
        return await self._source.states(users, str(self._since)), None

    def _chunk_failed(self) -> None:
        """A chunk that fails again although the feed was read since is too much for one query: it
        is halved, or its one user is read by pages.

        It goes behind the others, which are not to wait for it.
        """
        if self._failed_at is None or self._metrics.feed_reads == self._failed_at:
            self._failed_at = self._metrics.feed_reads
            return
        self._failed_at = None
        users = self._chunks.popleft()
        if len(users) > 1:
            half = len(users) // 2
            self._chunks += [users[:half], users[half:]]
        else:
            self._paged.setdefault(users[0], FIRST)
            self._chunks.append(users)

    async def _sliced(self, rows: list[T], tell: Callable[[list[T]], None]) -> None:
        """Tell all, and let the loop turn in between."""
        resets = self._resets
        for at in range(0, len(rows), SLICE):
            if at:
                await asyncio.sleep(0)
            if self._resets != resets:
                raise Unavailable("the log is another one since", retry_ms=0)
            tell(rows[at : at + SLICE])
