"""Where a page of history is read: at a replica that shows what its reader saw, or the primary.

    of(conv, since) ──► entries_before, entries_after
        a replica is ready ──► the page, and proof in its own snapshot ──► proven: taken
                                                                       └─► behind: the primary

A page of a replica is taken only if no client of this node can have seen a newer state when the
page was asked for:

    head, floor   the conversation's, in the snapshot of the page, are not below those in memory:
                  what this node has delivered. Edits and deletes have a seq: the head covers them
    position      the replica had replayed the log, before that snapshot, up to where it was on disk
                  at the session's hello: what its client has seen before, through any node; and up
                  to what covers `shown` conversations (replay_floor.py)
    log           the epoch in that snapshot is the one that is known, and the server is still a
                  standby. Which servers are asked at all: replica.py, standby.py

Else the primary is asked: one round trip more. Its answer names the head, too, because a message
may stand there as an entry has left it that was not delivered here yet (`shown`).

Only history is read here. A listing builds memory and tells cursors, resync and gap fill ask for
the newest entries: no replica can be ahead of what they need (docs/decisions/0060).
"""

from __future__ import annotations

from collections.abc import Coroutine, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, LiteralString, Protocol

from chatd import errors
from chatd.ids import ConvId
from chatd.postgres.queries import query
from chatd.postgres.read_pool import READ_RETRY_MS, ReadPool
from chatd.postgres.replay_floor import ReplayFloor
from chatd.postgres.replica import Replica
from chatd.protocol import Stored

if TYPE_CHECKING:
    from chatd.core.conversation import Conversation
    from chatd.metrics import Metrics
    from chatd.postgres.log_state import LogState

BEFORE: Final = query("history_proven", PAGE=query("entries_before").replace("LIMIT $4", "LIMIT s.rows"))
AFTER: Final = query("history_proven", PAGE=query("entries_after").replace("LIMIT $4", "LIMIT s.rows"))
PROOF: Final = 4  # columns before those of an entry

# Labels of the metric `history_reads`
PRIMARY: Final = "primary"  # no replica was asked
REPLICA: Final = "replica"
BEHIND: Final = "replica_behind"  # it was, and the primary then
FAILED: Final = "replica_failed"  # the same


class EntryReads(Protocol):
    """Reads parts of a conversation's log: `Store`, or the two places."""

    async def entries_before(self, conv: ConvId, before: int, floor: int, rows: int) -> list[Stored]:
        """Entries from `floor` to below `before`, the newest first, at most `rows`."""

    async def entries_after(self, conv: ConvId, after: int, upto: int, rows: int) -> list[Stored]:
        """Entries above `after` up to `upto`, the oldest first, at most `rows`."""


class HistoryReads(Protocol):
    """See the module. `PrimaryOnly`, or `WithReplica` where there is a `database_replica_url`."""

    def of(self, conv: Conversation, since: int) -> EntryReads:
        """What to read a page with. `since`: the position of the log at the session's hello."""

    def shown(self, convs: Iterable[ConvId]) -> None:
        """Entries of these were read from the log just now, and clients get them."""

    def position(self, of_listing: int) -> int:
        """What a session keeps of the position that its listing was read at."""

    def log_moved(self) -> None:
        """Another log was adopted."""

    def tasks(self) -> list[Coroutine[Any, Any, None]]:
        """What runs for the node's life."""

    async def close(self) -> None:
        """Close all connections."""


class PrimaryOnly:
    """There is no replica: nothing is kept, and nothing more is asked."""

    def __init__(self, primary: EntryReads) -> None:
        self._primary = primary

    def of(self, conv: Conversation, since: int) -> EntryReads:
        return self._primary

    def shown(self, convs: Iterable[ConvId]) -> None:
        pass

    def position(self, of_listing: int) -> int:
        return 0

    def log_moved(self) -> None:
        pass

    def tasks(self) -> list[Coroutine[Any, Any, None]]:
        return []

    async def close(self) -> None:
        pass


class WithReplica:
    """The replica where its page is proven, else the primary."""

    def __init__(
        self, replica: Replica, primary: ReadPool, floor: ReplayFloor, state: LogState, metrics: Metrics
    ) -> None:
        self.replica, self._primary, self._floor, self._state = replica, primary, floor, state
        self._metrics = metrics

    def of(self, conv: Conversation, since: int) -> EntryReads:
        return _TwoPlaces(self, conv, since)

    def shown(self, convs: Iterable[ConvId]) -> None:
        for conv in convs:
            self._floor.shown(conv)

    def position(self, of_listing: int) -> int:
        return of_listing

    def log_moved(self) -> None:
        self._floor.forget()

    def tasks(self) -> list[Coroutine[Any, Any, None]]:
        return [self.replica.run()]

    async def close(self) -> None:
        await self.replica.close()

    async def page(self, sql: LiteralString, params: Sequence[object], conv: Conversation, since: int) -> list[Stored]:
        """Raises what `ReadPool.rows` raises."""
        generation, epoch = self._state.generation, self._state.epoch
        # Before the first await: what is delivered from now on may be missing in this page, as in
        # one that the primary gives
        head, floor, shown = conv.head, conv.floor, self._floor.needed(conv.id)
        place, rows = PRIMARY, None
        if shown is not None and self.replica.is_ready:
            needed = max(shown, since)
            answer = await self.replica.read(sql, (*params, epoch, head, floor), needed)
            if self._state.generation != generation:
                raise errors.Unavailable("the log is another one since; connect again", retry_ms=READ_RETRY_MS)
            if answer is None:
                place = FAILED
            elif answer.position >= needed and _is_proven(answer.rows, head, floor):
                place, rows = REPLICA, answer.rows
            else:
                place = BEHIND
        if rows is None:
            rows = await self._primary.rows(sql, (*params, epoch, 0, 0, False))
            if rows and not _is_proven(rows, 0, 0):
                self._state.suspect()
                raise errors.Unavailable("the log is another one; connect again", retry_ms=READ_RETRY_MS)
        self._metrics.history_read(place)
        if rows and rows[0][1] > conv.head:
            self._floor.shown(conv.id)
        return [Stored(*row[PROOF:]) for row in rows if row[PROOF] is not None]


class _TwoPlaces:
    """The reads of one page, for `chat/history.py`."""

    __slots__ = ("_conv", "_reads", "_since")

    def __init__(self, reads: WithReplica, conv: Conversation, since: int) -> None:
        self._reads, self._conv, self._since = reads, conv, since

    async def entries_before(self, conv: ConvId, before: int, floor: int, rows: int) -> list[Stored]:
        return await self._reads.page(BEFORE, (conv, before, floor, rows), self._conv, self._since)

    async def entries_after(self, conv: ConvId, after: int, upto: int, rows: int) -> list[Stored]:
        return await self._reads.page(AFTER, (conv, after, upto, rows), self._conv, self._since)


def _is_proven(rows: Sequence[tuple[Any, ...]], head: int, floor: int) -> bool:
    """Whether this is the log, with the conversation at least so far. No row: it is not there."""
    return bool(rows) and rows[0][0] is True and rows[0][1] >= head and rows[0][2] >= floor
