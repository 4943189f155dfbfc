"""PostgreSQL as chatd uses it: the log, written through the lanes; reads; what is written behind.

    Lane.submit ──►  one connection a lane              sends; durable before any client sees them
    history, listings, ... ──► read_pool                bounded wait
    history ──► a replica, where there is one           else read_pool (postgres/history_reads.py)
    feed, states ──► one connection of its own          what other nodes have written
    cursor_moved, user_seen ──► state_flush             not durable at once, by design

Each query is a method, by the name of its file in `sql/queries`. `Store` owns the parts of
`chatd.postgres` and their lives; what each part does is written in its module.

Every method raises `errors.Unavailable` when the database cannot do it now, and `errors.Overloaded`
when too many wait for it. No other error needs handling, except `Locked` and `DataRefused` of
`resolve`. What an error of PostgreSQL means is decided in postgres/faults.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, Self

import structlog
from psycopg import errors as pg
from pydantic import SecretStr

from chatd import errors
from chatd.config import Settings, reads_at_once
from chatd.core.feed_filter import NO_FILTER
from chatd.core.snapshot import Snapshot
from chatd.ids import ConvId, UserId
from chatd.metrics import Metrics
from chatd.postgres import arrays as pgarrays
from chatd.postgres import connection, mark, read_pool
from chatd.postgres.append_answer import Outcome
from chatd.postgres.change_feed_reader import FeedPage, FeedReader
from chatd.postgres.connection import Backend, Opener
from chatd.postgres.fair_queue import Turns
from chatd.postgres.faults import Outage
from chatd.postgres.health import Health
from chatd.postgres.history_reads import HistoryReads, PrimaryOnly, WithReplica
from chatd.postgres.lanes import Lanes, LaneSettings
from chatd.postgres.log_state import LogState
from chatd.postgres.queries import query
from chatd.postgres.read_pool import ReadPool
from chatd.postgres.replica import Replica
from chatd.postgres.rows import ConvRow, Head, ListingPage
from chatd.postgres.state_flush import StateFlush
from chatd.postgres.sweep import Sweeps, Swept
from chatd.postgres.watch import SETTINGS, WAITED_FOR, DatabaseWatch, Fall, Latest
from chatd.protocol import Stored

log = structlog.get_logger("store")

# With a database that is away the node must still stop within its drain (drain.MARGIN_MS)
STOP_FLUSH_S: Final = 0.7
STOP_CLOSE_S: Final = 0.5
LIST_ROWS_MAX: Final = 1_000  # conversations that one statement looks at: some 5 ms of PostgreSQL
LIST_ALL_MAX: Final = 240  # that one gives, where all are asked for: a frame of a welcome
HELLOS_WAITING_MAX: Final = 100_000  # waiting pages of hellos: one a connection

RESOLVE: Final = query("resolve")
LIST_CHANGED: Final = query("list_changed")
LIST_CONVERSATIONS: Final = query("list_conversations")
LIST_RECENT: Final = query("list_recent")
LOAD_CONVERSATIONS: Final = query("load_conversations")
OPEN_PAIRS: Final = query("open_pairs")
ENTRIES_BEFORE: Final = query("entries_before")
ENTRIES_AFTER: Final = query("entries_after")
ENTRIES_MANY: Final = query("entries_many")
BACKENDS: Final = query("backends")
HEADS: Final = query("heads")
HEADS_DECIDED: Final = query("heads_decided")
STATES: Final = query("states")
STATES_OF: Final = query("states_of")
FEED_PRUNE: Final = query("feed_prune")
SEEN: Final = query("seen")
USER_KNOWN: Final = query("user_known")
META: Final = query("meta")
PARTITIONS_LEFT: Final = query("partitions_left")


class Locked(Exception):
    """One pair of several is locked or refused, and holds up the others: resolve each by itself."""


class Limits(NamedTuple):
    """The settings that the store needs."""

    lanes: int
    batch_rows_max: int
    lane_queue_max: int
    lane_deadline_ms: int
    pool_max: int
    reads_queue_max: int
    edit_window_ms: int
    cursor_flush_ms: int
    feed: bool = False  # there are other nodes: writes go into the change feed, and it is read

    @classmethod
    def of(cls, s: Settings) -> Self:
        return cls(
            lanes=s.lanes, batch_rows_max=s.batch_rows_max, lane_queue_max=s.lane_queue_max,
            lane_deadline_ms=s.lane_deadline_ms, pool_max=s.pool_max, reads_queue_max=s.reads_queue_max,
            edit_window_ms=s.edit_window_ms, cursor_flush_ms=s.cursor_flush_ms, feed=s.redis_url is not None,
        )  # fmt: skip


class Store:
    """`start`, then run the tasks that it gives, then `stop`. No task ends before `stop`."""

    def __init__(self, conninfo: str, limits: Limits, metrics: Metrics, replica: SecretStr | None = None) -> None:
        """`conninfo`, `replica`: libpq URLs of the primary, and of its standbys if there are."""
        self.limits = limits
        self.metrics = metrics
        self.partition_s = 86_400
        self.on_partition: Callable[[], None] = lambda: None  # a partition was made on demand: none lies ahead
        self.log = LogState()
        self.opener = Opener(conninfo, self.log)
        self.health = Health(time.monotonic)
        lanes = LaneSettings(
            limits.lanes,
            limits.batch_rows_max,
            limits.lane_queue_max,
            limits.lane_deadline_ms / 1000,
            limits.edit_window_ms / 1000,
            limits.feed,
        )
        self.lanes = Lanes(self.opener, metrics, self.health, lanes, self.make_partition)
        # Set by the owner. `moved`: another log was adopted, what memory holds of the old one is
        # dropped. `held`: the heads in memory. `latest`: the last entry that this node knows.
        self.moved: Callable[[Fall], None] = lambda fall: None
        self.held: Callable[[], Mapping[ConvId, int]] = dict
        self.latest: Callable[[], Latest | None] = lambda: None
        self.watch = DatabaseWatch(
            self.opener,
            self.health,
            moved=self._log_moved,
            held=lambda: self.held(),
            acked=lambda: self.lanes.acked,
            latest=lambda: self.latest(),
        )
        self._last_snapshot: Snapshot | None = None  # of a listing
        self._feed = FeedReader(self.opener)
        # Reads of clients leave half of the pool's connections to the rest, and hellos a quarter.
        # So neither waits for the other's queue; and what the node itself needs for sends
        # (`resolve`, heads, gap fill) waits for no turn.
        turns = reads_at_once(limits.pool_max)
        self.read_turns = Turns(turns, turns, limits.reads_queue_max)
        self.hello_turns = Turns(max(limits.pool_max * 3 // 4, 1), 1, HELLOS_WAITING_MAX)
        self.read_pool = ReadPool(
            self.opener, self.health, limits.pool_max, limits.reads_queue_max, connection.FEED if limits.feed else {}
        )
        self.history: HistoryReads = PrimaryOnly(self)
        self.replica: Replica | None = None
        if replica is not None:
            self.replica = Replica(replica.get_secret_value(), self.log, turns, lambda: self.watch.pulse)
            self.history = WithReplica(self.replica, self.read_pool, self.watch.replay_floor, self.log, metrics)
        self.state_flush = StateFlush(self.read_pool.rows, limits.cursor_flush_ms)
        self.sweeps = Sweeps(
            self.read_pool.rows, self.hello_turns, self.log, self.state_flush.flush_cursors_of, metrics
        )
        # Bound here and not called through: `cursor_moved` is on the path of an ack
        self.cursor_moved = self.state_flush.cursor_moved
        self.user_seen = self.state_flush.user_seen
        self.flush = self.state_flush.flush

    @property
    def epoch(self) -> str:
        return self.log.epoch

    # ---- life ------------------------------------------------------------------------------------

    async def start(self, outcome: Outcome) -> list[Coroutine[Any, Any, None]]:
        """Connect, read what the database says of itself, and give the tasks to run.

        Raises Unavailable, SettingError.
        """
        await self.learn_log()
        try:
            await self.lanes.start(outcome)
        except Outage as e:
            raise _cannot_start(e) from e
        await self.read_pool.open()
        _, self.partition_s = (await self.read_pool.rows(META, ()))[0]
        await self.lanes.warm()
        return [*self.lanes.tasks(), self.state_flush.run(), self.watch.run(), self.sweeps.run(), *self.history.tasks()]

    def _log_moved(self, fall: Fall) -> None:
        """Another log was adopted: what was meant for the one before is not written to it."""
        self.lanes.drop()
        self.state_flush.forget_cursors()
        self.history.log_moved()
        self.moved(fall)

    async def usable(self) -> str:
        """Why the database cannot be used yet although it answers, where waiting may help; else "".

        Raises SettingError for what only the operator can mend.
        """
        try:
            await self.watch.probe()
        except Outage as e:
            if e.kind in WAITED_FOR:
                self.health.failed("watch", e)
                return str(e)
            if e.kind in SETTINGS:
                raise _cannot_start(e) from e
            if e.kind != "away":
                log.warning("database.refuses", kind=e.kind, reason=str(e))
            return ""  # `migrate` says what is wrong, with its remedy
        self.health.ok("watch")
        return ""

    async def learn_log(self) -> None:
        """Learn which log the database holds, before anything else is asked of it.

        Raises Unavailable, SettingError.
        """
        if not self.log.is_known:
            try:
                await self.watch.start()
            except Outage as e:
                raise _cannot_start(e) from e

    async def stop(self) -> None:
        """Write what is still dirty, and close all connections. The lanes' tasks have ended."""
        await self.state_flush.flush_at_stop(STOP_FLUSH_S)
        await self.lanes.close()
        await self._feed.close()
        await self.watch.close()
        await self.history.close()
        await self.read_pool.close(STOP_CLOSE_S)

    # ---- the log ---------------------------------------------------------------------------------

    async def make_partition(self, days_ahead: float = 0.0) -> bool:
        """Make the partition of the time `days_ahead` days from now; False if it exists."""
        rows = await self.read_pool.rows(
            "SELECT make_partition(clock_timestamp() + make_interval(secs => $1))", (days_ahead * 86_400,)
        )
        made = rows[0][0] is not None
        self.metrics.partitions_made += made
        if made:
            self.on_partition()
        return made

    # ---- reads -----------------------------------------------------------------------------------

    async def resolve(
        self, pairs: Sequence[tuple[UserId, UserId]], known: Sequence[UserId | None], lock_ms: int = 0
    ) -> list[ConvRow]:
        """The conversations of pairs (a <= b), made where missing.

        `known`: for each pair the user who must have been seen by chatd before, or None. A pair
        whose user was not is left out of the result.

        Raises Locked if another transaction holds one of the pairs for longer than `lock_ms` (0: as
        long as a read may take), or if the database refuses one of several; DataRefused if it
        refuses the only one.
        """
        generation = self.log.generation
        if any(known):
            await self.state_flush.users.flush()  # a user who connected just now counts as known
        asked = dict(zip(pairs, known, strict=True))
        found: list[ConvRow] = []
        for _ in range(3):  # a pair that another node makes at this moment is in neither half of the answer
            arrays = [
                pgarrays.TextArray(column)
                for column in ([a for a, _ in asked], [b for _, b in asked], list(asked.values()))
            ]
            try:
                rows = await self.read_pool.rows(RESOLVE, (*arrays, str(lock_ms)), refusable=True)
            except errors.DataRefused as e:
                if len(asked) > 1:
                    raise Locked from e
                raise
            except errors.Unavailable as e:
                if lock_ms and isinstance(e.__cause__, pg.LockNotAvailable):
                    raise Locked from e
                raise
            if self.log.generation != generation:  # `found` is of another log than these rows
                raise errors.Unavailable(
                    "the log is another one since; connect again", retry_ms=read_pool.READ_RETRY_MS
                )
            for row in rows:
                found.append(ConvRow(*row[:8])._replace(xid=row[8], started=row[9]))
                asked.pop((row[1], row[2]), None)
            if not asked:
                break
        return found

    async def list_changed(
        self, user: UserId, since: str | None, after: UserId, all_rows: bool, named: Sequence[ConvId]
    ) -> ListingPage:
        """One page of a user's conversations, by the other participant's name from behind `after`.

        The page has those that changed since the mark `since`, those in `named`, or all of them
        (`all_rows`). A mark that is not of this log counts as none. Waits for a turn among hellos.
        """
        await self.state_flush.flush_cursors_of(user)
        known = mark.read(since, self.epoch)
        xid, started = (known.xid, known.started) if known is not None else (0, 0)
        rows_max = min(LIST_ROWS_MAX, LIST_ALL_MAX) if all_rows else LIST_ROWS_MAX
        async with self.hello_turns.turn(user):
            rows = await self.read_pool.rows(
                LIST_CHANGED, (user, xid, after, rows_max, all_rows, pgarrays.BigintArray(named), started)
            )
        snapshot = self._same(Snapshot(rows[0][0], rows[0][1]))
        new = str(mark.of(snapshot, self.epoch))
        found = [ConvRow(*row[5:]) for row in rows if row[5] is not None]
        return ListingPage(new, rows[0][2], found, rows[0][3], snapshot, self.history.position(rows[0][4]))

    async def swept(self, user: UserId, since: str | None) -> Swept | None:
        """What changed since the mark, by a pass for many hellos (postgres/sweep.py).

        None: there are not many, or the mark is not of this log; ask `list_changed`. Raises
        Unavailable, Overloaded.
        """
        found = await self.sweeps.changed(user, since)
        return found and found._replace(
            snapshot=self._same(found.snapshot), position=self.history.position(found.position)
        )

    def _same(self, snapshot: Snapshot) -> Snapshot:
        """The object of the listing before if its snapshot was the same: each user keeps one."""
        if self._last_snapshot != snapshot:
            self._last_snapshot = snapshot
            return snapshot
        return self._last_snapshot

    async def list_conversations(
        self, user: UserId, convs: Sequence[ConvId], turns: Turns | None = None
    ) -> dict[ConvId, ConvRow]:
        """These conversations, by id. Waits for a turn among `turns`, else those of clients."""
        await self.state_flush.flush_cursors_of(user)
        async with (turns or self.read_turns).turn(user):
            rows = await self.read_pool.rows(LIST_CONVERSATIONS, (pgarrays.BigintArray(convs),))
        return {row[0]: ConvRow(*row) for row in rows}

    async def list_recent(self, user: UserId) -> list[tuple[int, ConvId]]:
        """(ts of the last entry in ms, id) of a user's conversations, in no order."""
        async with self.read_turns.turn(user):
            rows = await self.read_pool.rows(LIST_RECENT, (user,))
        return [(row[0], row[1]) for row in rows]

    async def load_conversations(
        self, convs: Sequence[ConvId], pairs: Sequence[tuple[UserId, UserId]]
    ) -> list[ConvRow]:
        """Conversations by id, and those between pairs (a <= b); those that are there."""
        arrays = (
            pgarrays.BigintArray(convs), pgarrays.TextArray([a for a, _ in pairs]),
            pgarrays.TextArray([b for _, b in pairs]),
        )  # fmt: skip
        return [ConvRow(*row) for row in await self.read_pool.rows(LOAD_CONVERSATIONS, arrays)]

    async def open_pairs(self, pairs: Sequence[tuple[UserId, UserId]]) -> set[tuple[UserId, UserId]]:
        """Those of the pairs (a <= b) that have both sent."""
        arrays = (pgarrays.TextArray([a for a, _ in pairs]), pgarrays.TextArray([b for _, b in pairs]))
        return {pairs[row[0] - 1] for row in await self.read_pool.rows(OPEN_PAIRS, arrays)}

    async def entries_before(self, conv: ConvId, before: int, floor: int, rows: int) -> list[Stored]:
        """Entries from `floor` to below `before`, the newest first, at most `rows`."""
        return [Stored(*row) for row in await self.read_pool.rows(ENTRIES_BEFORE, (conv, before, floor, rows))]

    async def entries_after(self, conv: ConvId, after: int, upto: int, rows: int) -> list[Stored]:
        """Entries above `after` up to `upto`, the oldest first, at most `rows`."""
        return [Stored(*row) for row in await self.read_pool.rows(ENTRIES_AFTER, (conv, after, upto, rows))]

    async def entries_many(self, wants: Sequence[tuple[ConvId, int, int]], rows: int) -> list[tuple[ConvId, Stored]]:
        """The entries of each (conversation, after, upto) in order, at most `rows` of each."""
        arrays = [pgarrays.BigintArray([w[n] for w in wants]) for n in range(3)]
        return [(row[0], Stored(*row[1:])) for row in await self.read_pool.rows(ENTRIES_MANY, (*arrays, rows))]

    async def heads_decided(self, convs: Iterable[ConvId]) -> list[Head]:
        """Committed heads, without those of conversations that a transaction is writing to now."""
        return [Head(*row) for row in await self.read_pool.rows(HEADS_DECIDED, (pgarrays.BigintArray(list(convs)),))]

    async def heads(self, convs: Iterable[ConvId]) -> list[Head]:
        """Committed heads."""
        return [Head(*row) for row in await self.read_pool.rows(HEADS, (pgarrays.BigintArray(list(convs)),))]

    async def alive(self, backends: Collection[Backend]) -> set[Backend]:
        """Those of the backends that still run."""
        arrays = (pgarrays.IntArray([b.pid for b in backends]), pgarrays.BigintArray([b.started for b in backends]))
        return {Backend(*row) for row in await self.read_pool.rows(BACKENDS, arrays)}

    async def seen(self, users: Sequence[UserId]) -> dict[UserId, int]:
        """When users were last seen, in ms since 1970; without users who never were."""
        await self.state_flush.users.flush()
        return dict(await self.read_pool.rows(SEEN, (pgarrays.TextArray(users),)))

    async def is_known(self, user: UserId) -> bool:
        """Whether the user was ever here, or somebody wrote to them."""
        return bool((await self.read_pool.rows(USER_KNOWN, (user,)))[0][0])

    async def ping(self) -> int:
        """The database's time in ms since 1970."""
        rows = await self.read_pool.rows("SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint", ())
        return int(rows[0][0])

    async def partitions_left(self) -> int:
        """How many partitions lie ahead of the one in use, for readiness and metrics."""
        return int((await self.read_pool.rows(PARTITIONS_LEFT, (self.partition_s,)))[0][0])

    # ---- the change feed: a connection of its own, one statement at a time -----------------------

    async def feed(self, snapshot: str | None, until_ms: int, wanted: bytes = NO_FILTER) -> FeedPage:
        """What was committed since a snapshot; see postgres/change_feed_reader.py.

        Only the next snapshot if the database's time is past `until_ms`. `wanted`: bits of the
        conversations that are held (core/feed_filter.py).
        """
        return await self._feed.page(snapshot, until_ms, wanted)

    async def states(self, users: Sequence[UserId], since: str) -> list[ConvRow]:
        """The conversations of users that the transaction `since` or a later one changed."""
        return [ConvRow(*row) for row in await self._feed.rows(STATES, (pgarrays.TextArray(users), since))]

    async def states_page(self, user: UserId, after: UserId) -> tuple[list[ConvRow], UserId | None]:
        """A page of all conversations of one user, by the other participant's name behind `after`.

        Also gives after whom the next page begins, None if this is the last. All of them: "changed"
        in list_changed.sql is the user's own view, and a node needs the cursors of both sides.
        """
        params = (user, 0, after, LIST_ROWS_MAX, True, pgarrays.BigintArray([]), 0)
        rows = await self.read_pool.rows(LIST_CHANGED, params)
        return [ConvRow(*row[5:]) for row in rows if row[5] is not None], rows[0][3]

    async def states_of(self, convs: Sequence[ConvId]) -> list[ConvRow]:
        """Conversations by id."""
        return [ConvRow(*row) for row in await self._feed.rows(STATES_OF, (pgarrays.BigintArray(convs),))]

    async def feed_prune(self, done: str, upto: str, rows: int) -> int | None:
        """Delete up to `rows` rows of the feed that snapshot `upto` sees and `done` does not.

        Gives how many were deleted; None if another node is pruning.
        """
        ours, gone = (await self._feed.rows(FEED_PRUNE, (done, upto, rows)))[0]
        return int(gone) if ours else None


def _cannot_start(e: Outage) -> errors.ChatdError:
    if e.kind in SETTINGS:
        return errors.SettingError(f"database_url: {e}")
    return errors.Unavailable(f"the database cannot be used: {e}", retry_ms=read_pool.READ_RETRY_MS)
