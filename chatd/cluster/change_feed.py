"""The change feed: how a node learns from PostgreSQL what other nodes have written.

    append, flush_cursors ──one row per call──► table `feed`
        ──feed_since(last snapshot)──► ChangeFeed ──► heads, cursors, clock
        too late, or a new connection ──► catch up: states of the conversations of all held users

A node asks only for rows of conversations that it holds (core/feed_filter.py), so what it reads
depends on its own users. Long rows, of large batches, and first entries of conversations come to
all nodes. Conversations that are held while the feed is read are looked up after it.

It works whatever Redis has lost. Guarantee: each committed transaction that writes to the feed, of
a conversation that is held, is reported here once, within `interval_s` and one answer, in whatever
order transactions commit. After a time without the database, or in which this process was stopped,
all that was missed is reported. A read costs per batch, not per user: asking for the heads of all
conversations each second would take 388 ms for 200,000.

A node catches up when the feed cannot be trusted: it was away for longer than `BEHIND_S` (rows are
deleted after `KEEP_S`), or its connection is new (postgres/change_feed_reader.py). It then asks for
the conversations of the held users that changed since a mark, `CHUNK_CONVS` at a time with a pause
after each. Reading goes on in between. It asks by user and not by conversation, because what was
missed may be the first entry of a conversation that this node does not know.

The owner must handle two cases. A report may be old or already known: only what is higher than the
value in memory is new. And a report about a conversation that is not in memory is skipped, also
while its user's listing is under way, whose snapshot may be older. So if `pages` has changed since
that listing was asked for, the listed conversations must be looked up.

Position is pure; ChangeFeed has no clock but `now`.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Final, NamedTuple, Protocol, TypeVar

import structlog

from chatd.core.feed_filter import FeedFilter
from chatd.errors import Refused, Unavailable
from chatd.ids import ConvId, UserId
from chatd.metrics import Metrics
from chatd.postgres.change_feed_reader import DEADLINE_S, CursorsChange, FeedPage, HeadChange
from chatd.postgres.rows import ConvRow

log = structlog.get_logger("feed")  # "feed" in logs, metrics, docs and SQL is the change feed

T = TypeVar("T")

BEHIND_S: Final = 20.0  # by the database's clock or by ours, because either may have been stopped or set
KEEP_S: Final = 60.0  # how long rows are kept, by the clock of the node that deletes them
PRUNE_S: Final = 10.0  # between two deletions
PRUNE_ROWS: Final = 50_000  # rows deleted by one statement: 0.1 s
CHUNK_CONVS: Final = 1_000  # conversations in one query of a catch-up: 3 ms
CHUNK_PAUSE_S: Final = 0.005  # the shortest pause after such a query
CHUNK_PAUSES: Final = 2.0  # pause per time of the query: a catch-up takes a third of one core at most
SLICE: Final = 2_000  # rows reported in one turn of the loop
BACKOFF_S: Final = 0.05
BACKOFF_MAX_S: Final = 1.0
# After a crash PostgreSQL may give out some transaction ids again: those of about 0.6 s, the most
# that its WAL may be late. This is more than it gives out in that time.
XIDS_AGAIN: Final = 100_000
FIRST: Final = UserId("")  # sorts before the name of every user
NOTHING_PRUNED: Final = "1:1:"  # a snapshot that sees nothing
assert BEHIND_S + DEADLINE_S < KEEP_S, "a row must be kept while a node may still read it"


class ChangeSource(Protocol):
    """The part of the store that is read here. Every method raises Refused."""

    async def feed(self, snapshot: str | None, until_ms: int, wanted: bytes) -> FeedPage: ...
    async def states(self, users: Sequence[UserId], since: str) -> list[ConvRow]: ...
    async def states_page(self, user: UserId, after: UserId) -> tuple[list[ConvRow], UserId | None]: ...
    async def states_of(self, convs: Sequence[ConvId]) -> list[ConvRow]: ...
    async def feed_prune(self, done: str, upto: str, rows: int) -> int | None: ...


class FeedQuery(NamedTuple):
    """One read of the feed: rows that `snapshot` (None: none wanted) does not see.

    `until_ms`: database time after which the answer cannot be trusted. `asked_at`: our clock, s.
    """

    snapshot: str | None
    until_ms: int
    asked_at: float


class Position:
    """How far the feed is read, what the next page means, and which rows may be deleted. Pure."""

    __slots__ = ("_at", "_marks", "_now_ms", "_pruned", "snapshot")

    def __init__(self) -> None:
        self.snapshot: str | None = None
        self._at = -math.inf
        self._now_ms = 0
        self._marks: deque[tuple[float, str]] = deque()  # snapshots, PRUNE_S apart, the oldest first
        self._pruned = NOTHING_PRUNED

    def query(self, now: float) -> FeedQuery:
        """The next read; without a snapshot if the answer could not be used."""
        if self.snapshot is None or now - self._at > BEHIND_S:
            return FeedQuery(None, 0, now)
        return FeedQuery(self.snapshot, self._now_ms + int(BEHIND_S * 1000), now)

    def took(self, query: FeedQuery, page: FeedPage) -> int | None:
        """Go on from this page.

        Returns the transaction id from which all held users must be caught up; None if the page
        has everything.
        """
        last, self.snapshot = self.snapshot, page.snapshot
        self._at, self._now_ms = query.asked_at, page.now_ms
        if page.reconnected:  # ids may have been given out again
            self._marks.clear()
            self._pruned = NOTHING_PRUNED
        if not self._marks or query.asked_at - self._marks[-1][0] >= PRUNE_S:
            self._marks.append((query.asked_at, page.snapshot))
        # The first page, or one of a server that is behind the last one
        if last is None or xmax(page.snapshot) < xmax(last):
            return 0
        if query.snapshot is None or page.now_ms > query.until_ms or page.reconnected:
            return max(0, xmin(last) - XIDS_AGAIN)
        return None

    def prunable(self, now: float) -> tuple[str, str] | None:
        """(done, upto): rows that snapshot `upto` sees and `done` does not may be deleted.

        None: there are none yet.
        """
        upto = None
        while self._marks and now - self._marks[0][0] >= KEEP_S:
            upto = self._marks.popleft()
        if upto is None:
            return None
        self._marks.appendleft(upto)
        return None if upto[1] == self._pruned else (self._pruned, upto[1])

    def pruned(self, upto: str) -> None:
        """All rows that this snapshot sees are deleted."""
        self._pruned = upto


def xmin(snapshot: str) -> int:
    """The oldest running transaction: what a snapshot does not see is not older than that."""
    return int(snapshot.partition(":")[0])


def xmax(snapshot: str) -> int:
    """The first transaction id that had not begun."""
    return int(snapshot.split(":")[1])


def chunks(users: Iterable[tuple[UserId, int]], convs: int = CHUNK_CONVS) -> deque[list[UserId]]:
    """Split users, given with their numbers of conversations, into lists for one query each.

    A list ends with the user who brings it to `convs` conversations.
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


class ChangeFeed:
    """Reads the feed and reports it. `run` is its task, for the life of the node.

    It calls the following functions, none of which may raise or block:
    - `clock(database time in ms since 1970, seconds that the answer took)`;
    - `heads` and `cursors` with what was committed;
    - `found` with whole rows of conversations that may be unknown here (new ones, and those of a
      catch-up), before `heads` and `cursors` of the same rows.

    `users` returns all held users with the numbers of their conversations. `pages` counts the pages
    reported so far. `wanted`: the conversations to ask for.
    """

    def __init__(
        self,
        source: ChangeSource,
        metrics: Metrics,
        *,
        now: Callable[[], float],
        interval_s: Callable[[], float],
        heads: Callable[[list[HeadChange]], None],
        cursors: Callable[[list[CursorsChange]], None],
        found: Callable[[list[ConvRow]], None],
        clock: Callable[[int, float], None],
        users: Callable[[], Iterable[tuple[UserId, int]]],
        wanted: FeedFilter,
    ) -> None:
        self._source, self._metrics = source, metrics
        self._now, self._interval_s = now, interval_s
        self._heads, self._cursors, self._found, self._clock, self._users = heads, cursors, found, clock, users
        self._wanted = wanted
        self.position = Position()
        self.pages = 0
        self._resets = 0  # rows read before the last reset are not reported
        self._new: dict[ConvId, None] = {}  # conversations to look up, in order
        self._chunks: deque[list[UserId]] = deque()  # users not caught up yet, with changes from _since on
        # User who is too much for one query even alone -> the peer after whom the next page begins
        self._paged: dict[UserId, UserId] = {}
        self._failed_at: int | None = None  # `feed_reads` when the first chunk failed
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
        """The database holds another log: read its feed, and drop what the old one reported."""
        self.position = Position()
        self._resets += 1
        self._new.clear()
        self._chunks.clear()
        self.wake()

    @property
    def catching_up(self) -> bool:
        """Whether some held users are not caught up yet."""
        return bool(self._chunks)

    async def run(self) -> None:
        """Read the feed. Never returns."""
        while True:
            until = await self.turn()
            try:
                async with asyncio.timeout(max(0.0, until - self._now())):
                    await self._woken.wait()
            except TimeoutError:
                pass
            self._woken.clear()

    async def turn(self) -> float:
        """Do what is due; returns the time at which something is due next."""
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
        query = self.position.query(self._now())
        self._due = query.asked_at + self._interval_s()
        page = await self._source.feed(query.snapshot, query.until_ms, self._wanted.begin())
        late = self._wanted.end()  # held since the question: the page lacks their rows
        self._clock(page.now_ms, page.rtt_s)
        if (since := self.position.took(query, page)) is not None:
            self._begin_catch_up(since)
        self._metrics.feed_reads += 1
        self._metrics.feed_rows += page.rows
        self.pages += 1  # before its first row is reported: a listing that began later is newer
        self._new.update(dict.fromkeys(page.changes.new))
        self._new.update(dict.fromkeys(late))
        await self._sliced(page.changes.heads, self._heads)
        await self._sliced(page.changes.cursors, self._cursors)
        while self._new:
            convs = list(islice(self._new, CHUNK_CONVS))
            rows = await self._source.states_of(convs)
            for conv in convs:
                self._new.pop(conv, None)
            await self._report(rows)
        await self._prune()
        # Reads take at most half of the time of a slow database
        self._due = max(self._due, self._now() + (self._now() - query.asked_at))
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

    async def _report(self, rows: list[ConvRow]) -> None:
        await self._sliced(rows, self._found)
        await self._sliced([(row.id, row.head) for row in rows], self._heads)
        await self._sliced(
            [(row.id, row.a_delivered, row.a_read, row.b_delivered, row.b_read) for row in rows], self._cursors
        )

    # ---- catching up -----------------------------------------------------------------------------

    def _begin_catch_up(self, since: int) -> None:
        # Users whom an unfinished catch-up did not reach have missed more
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
        await self._report(rows)
        self._chunk_due = self._now() + max(CHUNK_PAUSE_S, CHUNK_PAUSES * took)
        if not self._chunks:
            log.info("feed.caughtup", conversations=self._caught)

    async def _missed(self, users: list[UserId]) -> tuple[list[ConvRow], UserId | None]:
        """(rows, after): changed conversations of a chunk, or one page of those of its only user.

        `after`: the peer after whom the next page begins; None if there is none.
        """
        if (after := self._paged.get(users[0])) is not None:
            return await self._source.states_page(users[0], after)
        return await self._source.states(users, str(self._since)), None

    def _chunk_failed(self) -> None:
        """Split a chunk that fails again although the feed was read in between.

        Such a chunk is too much for one query. It is halved, or its only user is read by pages. It
        goes behind the others, so that they do not wait for it.
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

    async def _sliced(self, rows: list[T], report: Callable[[list[T]], None]) -> None:
        """Report all rows, `SLICE` per turn of the loop."""
        resets = self._resets
        for at in range(0, len(rows), SLICE):
            if at:
                await asyncio.sleep(0)
            if self._resets != resets:
                raise Unavailable("the log has been replaced since", retry_ms=0)
            report(rows[at : at + SLICE])
