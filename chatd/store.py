"""PostgreSQL as chatd sees it: the log (through the lanes of `postgres/lanes.py`), reads, and what
is written behind.

    append(item) ──► lanes: one connection each                    sends; durable before anybody hears of them
    history, listings, resync, resolve ──► pool, bounded wait      reads, and the making of conversations
    feed, states ──► one connection (postgres/change_feed_reader.py)                what other nodes have written
    cursor_moved, seen ──► dirty maps ──flush_s later──► pool      not durable at once, by design: coalesced, only forward

Every method raises `errors.Unavailable` when the database cannot do it now and `errors.Overloaded`
when too many wait for it; nothing else that a caller must handle, but `Locked` and `DataRefused` of
`resolve`. What an error means: postgres/faults.py. Reads are repeated on another connection when
theirs turns out dead: after a restart of PostgreSQL the pool is full of dead ones, and psycopg's
pool finds out by using them. What was read of one log is not given to the next
(`LogState.generation`).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Final, LiteralString, NamedTuple, TypeVar

import psycopg
import structlog
from psycopg import errors as pg
from psycopg_pool import PoolTimeout, TooManyRequests

from chatd import errors
from chatd.core.batch import Item, LaneQueue
from chatd.core.conversation import Conversation
from chatd.ids import ConvId, UserId
from chatd.metrics import Metrics
from chatd.postgres import arrays as pgarrays
from chatd.postgres import connection, faults, mark
from chatd.postgres import lanes as writer
from chatd.postgres.change_feed_reader import FeedPage, FeedReader
from chatd.postgres.connection import Backend, Connection, Opener
from chatd.postgres.fair_queue import Turns
from chatd.postgres.faults import Fault, Outage
from chatd.postgres.health import Health
from chatd.postgres.log_state import LogState
from chatd.postgres.pool import Pool
from chatd.postgres.queries import name_of, query
from chatd.postgres.watch import SETTINGS, WAITED_FOR, Fall, Latest, Watch
from chatd.postgres.write_behind import Behind
from chatd.protocol import Stored

log = structlog.get_logger("store")

K = TypeVar("K")

READ_RETRY_MS: Final = 1_000
READ_TIMEOUT_S: Final = 5.0

# psycopg's pool doubles its pauses up to this, and nobody can hurry it: with its default of 300 s,
# reads stayed away for a minute after an outage of three. Past it the pool lets go of the attempt,
# and the next read starts a new one at once.
RECONNECT_S: Final = 2.0

# At the end: with a database that is away the node must still end within its drain
# (server.DRAIN_MARGIN_MS)
STOP_FLUSH_S: Final = 0.7
STOP_AGAIN_S: Final = 0.02
STOP_CLOSE_S: Final = 0.5
BEGIN: Final = UserId("")  # before all users, by name
LIST_ROWS_MAX: Final = 1_000  # conversations that one statement reads: some 5 ms of PostgreSQL
HELLOS_WAITING_MAX: Final = 100_000  # pages of hellos that wait: one a connection
LOCK_TRIES: Final = 2  # of a flush: each waits for a lock as long as flush_cursors.sql says

RESOLVE: Final = query("resolve")
LIST_CHANGED: Final = query("list_changed")
LIST_CONVERSATIONS: Final = query("list_conversations")
ENTRIES_BEFORE: Final = query("entries_before")
ENTRIES_AFTER: Final = query("entries_after")
ENTRIES_MANY: Final = query("entries_many")
BACKENDS: Final = query("backends")
HEADS: Final = query("heads")
HEADS_DECIDED: Final = query("heads_decided")
CURSORS_LOCKED: Final = query("cursors_locked")
USERS_LOCKED: Final = query("users_locked")
STATES: Final = query("states")
STATES_OF: Final = query("states_of")
FEED_PRUNE: Final = query("feed_prune")
FLUSH_CURSORS: Final = query("flush_cursors")
FLUSH_USERS: Final = query("flush_users")
SEEN: Final = query("seen")
USER_KNOWN: Final = query("user_known")
META: Final = query("meta")
PARTITIONS_LEFT: Final = query("partitions_left")


class ConvRow(NamedTuple):
    """A conversation as the database has it; the first columns of several queries. `ts` in ms."""

    id: ConvId
    a: UserId
    b: UserId
    head: int
    floor: int
    na: int
    nb: int
    ts: int
    a_delivered: int = 0
    a_read: int = 0
    a_read_n: int = 0
    b_delivered: int = 0
    b_read: int = 0
    b_read_n: int = 0
    changed: bool = False  # of list_changed


class Head(NamedTuple):
    """How far a conversation's log goes, and whose it is. `ts` in ms."""

    id: ConvId
    head: int
    na: int
    nb: int
    ts: int
    a: UserId
    b: UserId


class Changed(NamedTuple):
    """One page of what a hello needs: the mark and time of its snapshot, the conversations, and
    where the next page begins; None: it was the last.
    """

    mark: str
    now_ms: int
    rows: list[ConvRow]
    next: UserId | None


class Reads(NamedTuple):
    """Of the pool: connections that a read has, and reads that wait for one."""

    in_use: int
    waiting: int


class Locked(Exception):
    """The database answers, but one of several keeps the others back: ask for each by itself."""


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
    feed: bool = False  # there are other nodes: tell the feed what is written, and read it


class Store:
    """Open with `start`, close with `stop`; `tasks` are to be watched by the node: none may end
    before `stop`.
    """

    def __init__(self, conninfo: str, limits: Limits, metrics: Metrics) -> None:
        self.limits = limits
        self.metrics = metrics
        self.lanes: list[writer.Lane] = []
        self.partition_s = 86_400
        self.on_partition: Callable[[], None] = lambda: None  # one had to be made on demand: those ahead are missing
        self.log = LogState()  # which log this is
        self.opener = Opener(conninfo, self.log)
        self.health = Health(time.monotonic)
        # Set by the owner: the log is another one, drop what is held of it
        self.moved: Callable[[Fall], None] = lambda fall: None
        self.held: Callable[[], Mapping[ConvId, int]] = dict  # likewise: the heads in memory
        self.latest: Callable[[], Latest | None] = lambda: None  # likewise: of the last entry
        self.watch = Watch(
            self.opener,
            self.health,
            moved=self._log_moved,
            held=lambda: self.held(),
            acked=self._acked,
            latest=lambda: self.latest(),
        )
        self._dead_before = 0.0  # monotonic: a connection that was last used then has turned out dead
        self._cursors: Behind[ConvId, Conversation] = Behind(self._write_cursors)
        self._unwritten: dict[UserId, bool] = {}  # users with a cursor that no flush has taken yet
        self._users: Behind[UserId, int] = Behind(self._write_users)
        self._rests = True  # nothing is to be written behind
        self._to_write = asyncio.Event()  # the other way round: what waits for it
        self._cursors_stuck: set[ConvId] = set()
        self._users_stuck: set[UserId] = set()
        self._feed = FeedReader(self.opener)
        # Of the pool's connections clients' reads leave half to the rest, and hellos a quarter. So
        # neither waits for the other's queue, nor does what the node needs for sends (`resolve`,
        # heads, gaps), which waits for no turn.
        self.read_turns = Turns(max(limits.pool_max // 2, 1), max(limits.pool_max // 2, 1), limits.reads_queue_max)
        self.hello_turns = Turns(max(limits.pool_max * 3 // 4, 1), 1, HELLOS_WAITING_MAX)
        self._pool = Pool(
            lambda: self.opener.conninfo("reads", READ_TIMEOUT_S * 2),
            connection_class=Connection,
            min_size=1,
            max_size=limits.pool_max,
            max_waiting=limits.reads_queue_max,
            timeout=READ_TIMEOUT_S,
            reconnect_timeout=RECONNECT_S,
            kwargs={"autocommit": True, "prepare_threshold": 0},
            configure=self._configure,
            open=False,
        )

    @property
    def reads(self) -> Reads:
        """How busy the pool is."""
        stats = self._pool.get_stats()
        return Reads(stats["pool_size"] - stats["pool_available"], stats["requests_waiting"])

    @property
    def epoch(self) -> str:
        return self.log.epoch

    # ---- life ------------------------------------------------------------------------------------

    async def start(self, outcome: writer.Outcome) -> list[Coroutine[Any, Any, None]]:
        """Connect, read what the database says of itself, and give the tasks to run.

        Raises Unavailable, SettingError.
        """
        await self.learn_log()
        self.lanes = [
            writer.Lane(
                n,
                self.opener,
                LaneQueue(self.limits.batch_rows_max),
                outcome,
                self.metrics,
                self.health,
                deadline_s=self.limits.lane_deadline_ms / 1000,
                edit_window_s=self.limits.edit_window_ms / 1000,
                partition=self.make_partition,
                feed=self.limits.feed,
            )
            for n in range(self.limits.lanes)
        ]
        for lane in self.lanes:
            lane.others = [other for other in self.lanes if other is not lane]
            lane.stuck = self.lanes[0].stuck
        try:
            await self.lanes[0].connect()
        except Outage as e:
            raise _cannot_start(e) from e
        await self._pool.open()
        _, self.partition_s = (await self._rows(META, ()))[0]
        await asyncio.gather(*(lane.warm() for lane in self.lanes))
        return [*(lane.run() for lane in self.lanes), self._flush_behind(), self.watch.run()]

    def _acked(self) -> dict[int, int]:
        return {id: seq for lane in self.lanes for id, seq in lane.acked.items()}

    def _log_moved(self, fall: Fall) -> None:
        """Another log was adopted: nothing that was meant for the one before is written to it."""
        for lane in self.lanes:
            lane.drop()
        # The old one's flush, if one is under way, has nowhere to come back to
        self._cursors = Behind(self._write_cursors)
        self._unwritten = {}
        self.moved(fall)

    async def usable(self) -> str:
        """Why the database cannot be used yet although it answers: a reason that waiting may heal;
        empty: it can.

        Raises SettingError for what only the operator can mend, ChatdError if it does not answer.
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
            return ""  # migrate says what is wrong, with its remedy
        self.health.ok("watch")
        return ""

    async def learn_log(self) -> None:
        """See which log the database holds; before anything else is asked of it.

        Raises Unavailable.
        """
        if not self.log.is_known:
            try:
                await self.watch.start()
            except Outage as e:
                raise _cannot_start(e) from e

    async def stop(self) -> None:
        """Write what is behind and close. The lanes' tasks have ended."""
        await self._flush_at_last()
        for lane in self.lanes:  # one whose task never began has not closed its own
            await lane.close()
        await self._feed.close()
        await self.watch.close()
        await self._pool.close(timeout=STOP_CLOSE_S)

    async def _flush_at_last(self) -> None:
        """Write what is behind, with what time there is: a connection that was cut just now, or a
        row that is locked, is soon there again.
        """
        reason = "the database does not answer"
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_FLUSH_S):
                while True:
                    try:
                        await self.flush()
                    except errors.Refused as e:
                        reason = str(e)
                    else:
                        if not self._cursors and not self._users:
                            return
                        reason = "other transactions hold the rows"
                    await asyncio.sleep(STOP_AGAIN_S)
        log.warning("flush.lost", cursors=len(self._cursors), users=len(self._users), reason=reason)

    # ---- the log ---------------------------------------------------------------------------------

    def append(self, item: Item) -> bool:
        """Queue an entry for its lane; False: the lane is full, and nothing was queued."""
        lane = writer.choose(self.lanes, item)
        if len(lane.queue) >= self.limits.lane_queue_max:
            return False
        item.conv.pending += 1
        lane.put(item)
        return True

    @property
    def pending(self) -> int:
        """Items that wait for a lane or are being written."""
        return sum(len(lane.queue) + lane.busy for lane in self.lanes)

    @property
    def is_outcome_unknown(self) -> bool:
        """Some batch has an unknown outcome that nobody looks for yet."""
        return any(lane.is_outcome_unknown for lane in self.lanes)

    async def idle(self) -> None:
        """Wait until every lane has written what it had."""
        while self.pending:  # one that has ended may be handed something by another
            for lane in self.lanes:
                await lane.idle.wait()

    async def make_partition(self, days_ahead: float = 0.0) -> bool:
        """Make the partition that holds a time, `days_ahead` days from now; False if it was there."""
        rows = await self._rows(
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
        """The conversations of pairs (a <= b), made where missing; without those whose `known` user
        has never been here.

        Raises Locked if another transaction makes one of them for longer than `lock_ms` (0: it
        waits as long as a read may take), or if the database refuses one of several; DataRefused if
        it refuses the only one.
        """
        generation = self.log.generation
        if any(known):
            await self._users.flush()  # who came a moment ago has been here
        asked = dict(zip(pairs, known, strict=True))
        found: list[ConvRow] = []
        for _ in range(3):  # a pair that another node makes at this moment is in neither half of the query's answer
            arrays = [
                pgarrays.TextArray(column)
                for column in ([a for a, _ in asked], [b for _, b in asked], list(asked.values()))
            ]
            try:
                rows = await self._rows(RESOLVE, (*arrays, str(lock_ms)), refusable=True)
            except errors.DataRefused as e:
                if len(asked) > 1:
                    raise Locked from e  # one of them: each by itself
                raise
            except errors.Unavailable as e:
                if lock_ms and isinstance(e.__cause__, pg.LockNotAvailable):
                    raise Locked from e
                raise
            if self.log.generation != generation:  # what was found before is of another log than this
                raise errors.Unavailable("the log is another one since; connect again", retry_ms=READ_RETRY_MS)
            for row in rows:
                found.append(ConvRow(*row))
                asked.pop((row[1], row[2]), None)
            if not asked:
                break
        return found

    async def list_changed(
        self, user: UserId, since: str | None, after: UserId, all_rows: bool, named: Sequence[ConvId]
    ) -> Changed:
        """One page of a user's conversations, in order of the other participant from behind
        `after`: of those looked at the ones that changed since the mark, those named, or all. A
        void mark counts as none. It waits for its turn among hellos.
        """
        await self._flush_cursors_of(user)
        known = mark.read(since, self.epoch)
        xid, started = (known.xid, known.started) if known is not None else (0, 0)
        async with self.hello_turns.turn(user):
            rows = await self._rows(
                LIST_CHANGED, (user, xid, after, LIST_ROWS_MAX, all_rows, pgarrays.BigintArray(named), started)
            )
        new = str(mark.made(rows[0][0], rows[0][1], self.epoch))
        return Changed(new, rows[0][2], [ConvRow(*row[4:]) for row in rows if row[4] is not None], rows[0][3])

    async def list_conversations(self, user: UserId, convs: Sequence[ConvId]) -> dict[ConvId, ConvRow]:
        """These of a user's conversations. It waits for its turn among reads."""
        await self._flush_cursors_of(user)
        async with self.read_turns.turn(user):
            rows = await self._rows(LIST_CONVERSATIONS, (pgarrays.BigintArray(convs),))
        return {row[0]: ConvRow(*row) for row in rows}

    async def entries_before(self, conv: ConvId, before: int, floor: int, rows: int) -> list[Stored]:
        """Entries below a seq, the newest first."""
        return [Stored(*row) for row in await self._rows(ENTRIES_BEFORE, (conv, before, floor, rows))]

    async def entries_after(self, conv: ConvId, after: int, upto: int, rows: int) -> list[Stored]:
        """Entries above a seq, the oldest first."""
        return [Stored(*row) for row in await self._rows(ENTRIES_AFTER, (conv, after, upto, rows))]

    async def entries_many(self, wants: Sequence[tuple[ConvId, int, int]], rows: int) -> list[tuple[ConvId, Stored]]:
        """For each (conversation, after, upto) its entries in order, at most `rows` of each."""
        arrays = [pgarrays.BigintArray([w[n] for w in wants]) for n in range(3)]
        return [(row[0], Stored(*row[1:])) for row in await self._rows(ENTRIES_MANY, (*arrays, rows))]

    async def heads_decided(self, convs: Iterable[ConvId]) -> list[Head]:
        """The same, without those that a transaction is writing to at this moment."""
        return [Head(*row) for row in await self._rows(HEADS_DECIDED, (pgarrays.BigintArray(list(convs)),))]

    async def heads(self, convs: Iterable[ConvId]) -> list[Head]:
        """As committed now."""
        return [Head(*row) for row in await self._rows(HEADS, (pgarrays.BigintArray(list(convs)),))]

    async def alive(self, backends: Collection[Backend]) -> set[Backend]:
        """Those that are still there."""
        arrays = (pgarrays.IntArray([b.pid for b in backends]), pgarrays.BigintArray([b.started for b in backends]))
        return {Backend(*row) for row in await self._rows(BACKENDS, arrays)}

    async def seen(self, users: Sequence[UserId]) -> dict[UserId, int]:
        """When users were last seen, in ms; without those who never were."""
        await self._users.flush()
        return dict(await self._rows(SEEN, (pgarrays.TextArray(users),)))

    async def is_known(self, user: UserId) -> bool:
        """Was the user here, or did somebody write to them? Raises Unavailable, Overloaded."""
        return bool((await self._rows(USER_KNOWN, (user,)))[0][0])

    async def ping(self) -> int:
        """The database's time in ms; raises Unavailable."""
        rows = await self._rows("SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint", ())
        return int(rows[0][0])

    async def partitions_left(self) -> int:
        """How many partitions lie ahead of the one in use: readiness and metrics tell it."""
        return int((await self._rows(PARTITIONS_LEFT, (self.partition_s,)))[0][0])

    async def _rows(
        self, sql: LiteralString, params: Sequence[object], *, refusable: bool = False
    ) -> list[tuple[Any, ...]]:
        """Run a query that may be repeated: all of ours may. Raises DataRefused for a fault of the
        data only if it is `refusable`: else nobody asked for what is refused, and it is an outage
        of that query.
        """
        generation = self.log.generation
        last: Exception = psycopg.OperationalError("no connection that is of this log")
        for _ in range(self.limits.pool_max + 1):
            is_stale = False
            try:
                async with asyncio.timeout(READ_TIMEOUT_S * 2), self._pool.connection() as conn:
                    quiet_s = time.monotonic() - conn.used_at
                    if conn.generation != self.log.generation or (
                        quiet_s > connection.PROVE_AFTER_S and not await self._is_good(conn)
                    ):
                        await conn.close()  # the pool makes another
                        continue
                    cur = psycopg.AsyncRawCursor(conn)
                    try:
                        await cur.execute(sql, params, binary=True)
                        rows = await cur.fetchall() if cur.description is not None else []
                    except psycopg.Error as e:
                        if not conn.closed and (is_stale := connection.is_stale(conn, e)):
                            await conn.close()
                        raise
                    conn.used_at = time.monotonic()
            except TooManyRequests as e:
                raise errors.Overloaded("too many reads wait for the database", retry_ms=READ_RETRY_MS) from e
            except (PoolTimeout, TimeoutError) as e:
                raise self._unavailable("the database does not answer", e) from e
            except (psycopg.Error, OSError) as e:
                fault = faults.judge(e)
                if fault is Fault.DATA and refusable:
                    raise errors.DataRefused("the database refuses these values; another try will not help") from e
                if fault is Fault.LOCKED:  # it has waited: not at once again
                    raise errors.Unavailable("another transaction holds what this needs", retry_ms=READ_RETRY_MS) from e
                last = e
                if _is_answer(e) and not is_stale:
                    break  # the next connection would give the same
                continue
            if self.log.generation != generation:
                raise errors.Unavailable("the log is another one since; connect again", retry_ms=READ_RETRY_MS)
            if self.health.parts:
                self.health.ok("reads")
                self.health.ok(f"reads {name_of(sql)}")
            return rows
        raise self._unavailable(
            "the database cannot do this now", last, f"reads {name_of(sql)}" if _is_answer(last) else "reads"
        ) from last

    async def _is_good(self, conn: Connection) -> bool:
        """Does one that was quiet live?

        It is asked; where one is dead, those that were quiet for longer are not even asked.
        """
        if conn.used_at <= self._dead_before or not await connection.is_alive(conn):
            self._dead_before = max(self._dead_before, conn.used_at)
            return False
        return True

    def _unavailable(self, what: str, e: BaseException, part: str = "reads") -> errors.Unavailable:
        trouble = self.health.trouble
        self.health.failed(part, e)
        why = trouble.kind if trouble is not None else faults.kind(e)
        return errors.Unavailable(f"{what} ({why})", retry_ms=READ_RETRY_MS)

    async def _configure(self, conn: Connection) -> None:
        """A new connection of the pool. What is raised here, the pool takes for a failed attempt."""
        try:
            async with asyncio.timeout(READ_TIMEOUT_S):
                await self.opener.prepare(conn, {**connection.READ, **(connection.FEED if self.limits.feed else {})})
        except BaseException as e:
            conn.pgconn.finish()  # the pool leaves it open, and what failed holds on to it
            if isinstance(e, Outage | psycopg.Error | OSError | TimeoutError):
                self.health.failed("reads", e)
            raise

    # ---- the feed: over a connection of its own, one at a time -----------------------------------

    async def feed(self, snapshot: str | None, until_ms: int) -> FeedPage:
        """What was committed since a snapshot, if it is not later than `until_ms`; see
        postgres/change_feed_reader.py.
        """
        return await self._feed.page(snapshot, until_ms)

    async def states(self, users: Sequence[UserId], since: str) -> list[ConvRow]:
        """The conversations of users which a transaction from `since` on has changed."""
        return [ConvRow(*row) for row in await self._feed.rows(STATES, (pgarrays.TextArray(users), since))]

    async def states_page(self, user: UserId, after: UserId) -> tuple[list[ConvRow], UserId | None]:
        """All conversations of one user, a page in order of the other participant from behind
        `after`; and where the next begins, None: nowhere.

        All: what changed is the user's own view (list_changed.sql), and a node is to know the
        cursors of both sides.
        """
        rows = await self._rows(LIST_CHANGED, (user, 0, after, LIST_ROWS_MAX, True, pgarrays.BigintArray([]), 0))
        return [ConvRow(*row[4:]) for row in rows if row[4] is not None], rows[0][3]

    async def states_of(self, convs: Sequence[ConvId]) -> list[ConvRow]:
        """Conversations by id."""
        return [ConvRow(*row) for row in await self._feed.rows(STATES_OF, (pgarrays.BigintArray(convs),))]

    async def feed_prune(self, done: str, upto: str, rows: int) -> int | None:
        """Take out what snapshot `upto` sees and `done` does not, `rows` at most; gives how many
        went, None: another node is at it.
        """
        ours, gone = (await self._feed.rows(FEED_PRUNE, (done, upto, rows)))[0]
        return int(gone) if ours else None

    # ---- written behind --------------------------------------------------------------------------

    def cursor_moved(self, conv: Conversation) -> None:
        """A cursor of a conversation went forward: write it within `cursor_flush_ms`."""
        self._cursors.put(conv.id, conv)
        if self._rests:
            self._begin_flush()
        # No set: this is on the path of an ack, and to add is a call
        self._unwritten[conv.a] = self._unwritten[conv.b] = True

    def user_seen(self, user: UserId, now_ms: int) -> None:
        """A user came or went."""
        self._users.put(user, now_ms)
        if self._rests:
            self._begin_flush()

    def _begin_flush(self) -> None:
        self._rests = False
        self._to_write.set()

    async def flush(self) -> None:
        """Write behind now, also what was locked before.

        Raises Unavailable; what could not be written stays and is tried again.
        """
        await self._cursors.flush(late=True)
        await self._users.flush(late=True)

    async def _flush_cursors_of(self, user: UserId) -> None:
        """A listing of a user needs that user's cursors, and waits for no others'."""
        if user in self._unwritten:
            await self._cursors.flush()

    async def _write_cursors(self, convs: dict[ConvId, Conversation]) -> Collection[ConvId]:
        taken, self._unwritten = self._unwritten, {}

        async def write(ids: list[ConvId]) -> None:
            await self._rows(FLUSH_CURSORS, _cursor_arrays([convs[id] for id in ids]))

        async def locked(ids: list[ConvId]) -> set[ConvId]:
            return {row[0] for row in await self._rows(CURSORS_LOCKED, (pgarrays.BigintArray(ids),))}

        try:
            return await self._write_unlocked(list(convs), self._cursors_stuck, write, locked)
        except BaseException:
            self._unwritten |= taken
            raise

    async def _write_users(self, users: dict[UserId, int]) -> Collection[UserId]:
        async def write(ids: list[UserId]) -> None:
            await self._rows(FLUSH_USERS, (pgarrays.TextArray(ids), pgarrays.BigintArray([users[id] for id in ids])))

        async def locked(ids: list[UserId]) -> set[UserId]:
            return {row[0] for row in await self._rows(USERS_LOCKED, (pgarrays.TextArray(ids),))}

        return await self._write_unlocked(list(users), self._users_stuck, write, locked)

    async def _write_unlocked(
        self,
        keys: list[K],
        stuck: set[K],
        write: Callable[[list[K]], Awaitable[None]],
        locked: Callable[[list[K]], Awaitable[set[K]]],
    ) -> Collection[K]:
        """Gives the keys whose row another transaction holds: they are written later, and the
        others now.

        `stuck`: those that were locked the last time; it is asked whether they still are, so that a
        lock is waited for once and not by each flush.
        """
        suspects = [key for key in keys if key in stuck]
        stuck.difference_update(suspects)
        stuck.update(left := await locked(suspects) if suspects else set())
        for _ in range(LOCK_TRIES):
            free = [key for key in keys if key not in left]
            try:
                if free:
                    await write(free)
                return left
            except errors.Unavailable as e:
                if not isinstance(e.__cause__, pg.LockNotAvailable):
                    raise
            stuck.update(found := await locked(free))
            left |= found
        return keys  # locks that come and go, or not of rows

    async def _flush_behind(self) -> None:
        """Write what was put, `cursor_flush_ms` after the first of it, for ever."""
        while True:
            await self._to_write.wait()
            await asyncio.sleep(self.limits.cursor_flush_ms / 1000)
            try:
                await self.flush()
            except errors.Refused as e:
                log.warning("flush.late", cursors=len(self._cursors), users=len(self._users), reason=str(e))
            # Else some were locked, or came meanwhile, or the database is away
            if not self._cursors and not self._users:
                self._rests = True
                self._to_write.clear()


def _cannot_start(e: Outage) -> errors.ChatdError:
    if e.kind in SETTINGS:
        return errors.SettingError(f"database_url: {e}")
    return errors.Unavailable(f"the database cannot be used: {e}", retry_ms=READ_RETRY_MS)


def _is_answer(e: BaseException) -> bool:
    """The server's answer to the statement, over a connection that goes on."""
    return isinstance(e, psycopg.Error) and e.sqlstate is not None and not _ended(e)


def _ended(e: psycopg.Error) -> bool:
    """The connection's end, not an answer to the statement: operator_intervention and
    connection_exception.
    """
    return (e.sqlstate or "")[:3] in ("57P", "08P") or (e.sqlstate or "")[:2] == "08"


def _cursor_arrays(convs: list[Conversation]) -> tuple[pgarrays.BigintArray, ...]:
    columns: tuple[Callable[[Conversation], int], ...] = (
        lambda c: c.id, lambda c: c.a_delivered, lambda c: c.a_read, lambda c: c.b_delivered, lambda c: c.b_read,
    )  # fmt: skip
    return tuple(pgarrays.BigintArray([column(c) for c in convs]) for column in columns)
