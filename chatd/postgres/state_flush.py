"""Cursors and last-seen times, written behind: coalesced in memory, flushed together, forward only.

    cursor_moved, user_seen ──► dirty values by key ──`flush_ms` later──► flush ──► PostgreSQL

Neither is durable at once, by design (docs/protocol.md, section 6). A row that another transaction
holds is skipped and written by a later flush: a flush waits for a lock once, and then asks whether
it is still held (`_write_unlocked`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any, Final, LiteralString, Protocol, TypeVar

import structlog
from psycopg import errors as pg

from chatd import errors
from chatd.core.conversation import Conversation
from chatd.ids import ConvId, UserId
from chatd.postgres import arrays
from chatd.postgres.queries import query
from chatd.postgres.write_behind import WriteBehind

log = structlog.get_logger("store")

K = TypeVar("K")

LOCK_TRIES: Final = 2  # writes of one flush: each waits for a lock as long as flush_cursors.sql says
STOP_PAUSE_S: Final = 0.02  # between two flushes at a stop

CURSORS_LOCKED: Final = query("cursors_locked")
USERS_LOCKED: Final = query("users_locked")
FLUSH_CURSORS: Final = query("flush_cursors")
FLUSH_USERS: Final = query("flush_users")


class Rows(Protocol):
    """Runs a query; `ReadPool.rows`."""

    async def __call__(self, sql: LiteralString, params: Sequence[object]) -> list[tuple[Any, ...]]: ...


class StateFlush:
    """`run` for the node's life, then `flush_at_stop`."""

    def __init__(self, rows: Rows, flush_ms: int) -> None:
        self._rows, self._flush_s = rows, flush_ms / 1000
        self.cursors: WriteBehind[ConvId, Conversation] = WriteBehind(self._write_cursors)
        self.users: WriteBehind[UserId, int] = WriteBehind(self._write_users)
        self._unwritten: dict[UserId, bool] = {}  # users with a moved cursor that no flush has taken yet
        self._is_idle = True  # nothing is dirty
        self._is_dirty = asyncio.Event()  # the opposite of `_is_idle`, for `run` to wait for
        self._cursors_stuck: set[ConvId] = set()
        self._users_stuck: set[UserId] = set()

    def cursor_moved(self, conv: Conversation) -> None:
        """A cursor of a conversation moved forward: write it within `flush_ms`."""
        self.cursors.put(conv.id, conv)
        if self._is_idle:
            self._begin()
        # A dict, not a set: this is on the path of an ack, and `set.add` is a call
        self._unwritten[conv.a] = self._unwritten[conv.b] = True

    def user_seen(self, user: UserId, now_ms: int) -> None:
        """A user connected or left at `now_ms` (since 1970)."""
        self.users.put(user, now_ms)
        if self._is_idle:
            self._begin()

    def _begin(self) -> None:
        self._is_idle = False
        self._is_dirty.set()

    def forget_cursors(self) -> None:
        """Another log was adopted: cursors of the one before are not written to it.

        A flush of them that is under way puts nothing back: the object that it belongs to is
        replaced here.
        """
        self.cursors = WriteBehind(self._write_cursors)
        self._unwritten = {}

    async def flush(self) -> None:
        """Write everything that is dirty now, also what was locked before.

        Raises Unavailable, Overloaded; what could not be written stays dirty.
        """
        await self.cursors.flush(late=True)
        await self.users.flush(late=True)

    async def flush_cursors_of(self, user: UserId) -> None:
        """Return when that user's cursors are written, as a listing needs them.

        Does not wait for other users' cursors.
        """
        if user in self._unwritten:
            await self.cursors.flush()

    async def run(self) -> None:
        """Flush `flush_ms` after the first value was put, for ever."""
        while True:
            await self._is_dirty.wait()
            await asyncio.sleep(self._flush_s)
            try:
                await self.flush()
            except errors.Refused as e:
                log.warning("flush.late", cursors=len(self.cursors), users=len(self.users), reason=str(e))
            # What is still dirty was locked, was put during the flush, or met an outage
            if not self.cursors and not self.users:
                self._is_idle = True
                self._is_dirty.clear()

    async def flush_at_stop(self, within_s: float) -> None:
        """Flush until nothing is dirty, for at most `within_s`; the rest is lost, and logged.

        A connection that was just cut, or a locked row, is soon available again.
        """
        reason = "the database does not answer"
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while True:
                    try:
                        await self.flush()
                    except errors.Refused as e:
                        reason = str(e)
                    else:
                        if not self.cursors and not self.users:
                            return
                        reason = "other transactions hold the rows"
                    await asyncio.sleep(STOP_PAUSE_S)
        log.warning("flush.lost", cursors=len(self.cursors), users=len(self.users), reason=reason)

    async def _write_cursors(self, convs: dict[ConvId, Conversation]) -> Collection[ConvId]:
        taken, self._unwritten = self._unwritten, {}

        async def write(ids: list[ConvId]) -> None:
            await self._rows(FLUSH_CURSORS, _cursor_arrays([convs[id] for id in ids]))

        async def locked(ids: list[ConvId]) -> set[ConvId]:
            return {row[0] for row in await self._rows(CURSORS_LOCKED, (arrays.BigintArray(ids),))}

        try:
            return await self._write_unlocked(list(convs), self._cursors_stuck, write, locked)
        except BaseException:
            self._unwritten |= taken
            raise

    async def _write_users(self, users: dict[UserId, int]) -> Collection[UserId]:
        async def write(ids: list[UserId]) -> None:
            await self._rows(FLUSH_USERS, (arrays.TextArray(ids), arrays.BigintArray([users[id] for id in ids])))

        async def locked(ids: list[UserId]) -> set[UserId]:
            return {row[0] for row in await self._rows(USERS_LOCKED, (arrays.TextArray(ids),))}

        return await self._write_unlocked(list(users), self._users_stuck, write, locked)

    async def _write_unlocked(
        self,
        keys: list[K],
        stuck: set[K],
        write: Callable[[list[K]], Awaitable[None]],
        locked: Callable[[list[K]], Awaitable[set[K]]],
    ) -> Collection[K]:
        """Write the keys whose row is not locked; gives the locked ones, to be written later.

        `stuck`: keys that were locked in the last flush. Whether they still are is asked first, so
        that a lock is waited for once and not by each flush.
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
        return keys  # locks that are taken and released all the time, or that are not on rows


def _cursor_arrays(convs: list[Conversation]) -> tuple[arrays.BigintArray, ...]:
    columns: tuple[Callable[[Conversation], int], ...] = (
        lambda c: c.id, lambda c: c.a_delivered, lambda c: c.a_read, lambda c: c.b_delivered, lambda c: c.b_read,
    )  # fmt: skip
    return tuple(arrays.BigintArray([column(c) for c in convs]) for column in columns)
