"""What changed since the marks of many users, found by one pass over all conversations.

    hello with a mark ─► so many a second that a pass costs less? ──no──► None: its own look
                              │ yes                                         ▲ fails, or too few
                              ▼                                             │
                          gathered ──► list_changed_many ───────────────────┴──► Swept: the ids

The look of one hello (list_changed.sql) costs some 6 us a conversation, because nothing that a send
changes is indexed. In a reconnect storm that is most of what PostgreSQL does, and mostly finds
nothing. A pass from end to end costs 0.2 us a conversation, of any user, and answers all hellos
that were there when it began. So it pays where one in some thirty of all conversations would be
looked at (docs/decisions/0062).

A pass has a snapshot like any listing, and each hello that it answers was attached before. So what
is proven of a listing is proven of it. It is a read like others: a failed or refused one answers
None, and each hello looks for itself.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

import structlog

from chatd import errors
from chatd.core.snapshot import Snapshot
from chatd.ids import ConvId, UserId
from chatd.metrics import Metrics
from chatd.postgres import arrays, mark
from chatd.postgres.fair_queue import Turns
from chatd.postgres.log_state import LogState
from chatd.postgres.queries import query
from chatd.postgres.state_flush import Rows

log = structlog.get_logger("store")

LIST_CHANGED_MANY: Final = query("list_changed_many")
TABLE_SIZES: Final = query("table_sizes")

GATHER_S: Final = 0.03  # for which the first one waits for others; then others gather during a pass
# Hellos within a second that begin to gather: so many times as a pass is worth it for, as several
# passes fit into a second. And how many times must have gathered: the rest is lost by waiting.
STORM, WORTH_LEAST = 2.0, 0.5
HELLOS_MIN: Final = 50  # fewer are no storm, however small the tables
USERS_MAX: Final = 2_000  # of a pass
FOUND_MAX: Final = 20_000  # of a pass: some 10 MB here. A pass that finds more answers nobody
PASS_S_MAX: Final = 1.0  # tables for which one takes longer are never passed over
PAUSE_S: Final = 60.0  # after a pass that found more, or failed
SIZES_S: Final = 60.0  # how long the sizes of the tables count
# What PostgreSQL does, measured on 2 cores (docs/decisions/0062)
PASS_S_A_BYTE: Final = 0.45e-9
LOOK_S: Final = 100e-6
LOOK_S_A_CONVERSATION: Final = 7e-6

_SWEEPER: Final = UserId("")  # in the queue of turns: no user has this name


class Swept(NamedTuple):
    """What a pass found for one hello.

    `ids`: the conversations that changed since the mark. `snapshot`, `mark`, `position`: as in
    `ListingPage`. `now_ms`: the database's time, ms since 1970, at `at_s` of the monotonic clock.
    `generation`: of the log (`LogState`).
    """

    ids: list[ConvId]
    snapshot: Snapshot
    mark: str
    now_ms: int
    at_s: float
    position: int
    generation: int


class _Waiting(NamedTuple):
    """A hello that waits for a pass."""

    user: UserId
    mark: mark.Mark
    generation: int
    answer: asyncio.Future[Swept | None]


class Sizes(NamedTuple):
    """As table_sizes.sql gives them: bytes of both tables; conversations and users, -1: unknown."""

    bytes: int
    conversations: float
    users: float

    @property
    def worth(self) -> float:
        """For how many hellos a pass costs PostgreSQL less than a look for each."""
        pass_s = self.bytes * PASS_S_A_BYTE
        if pass_s > PASS_S_MAX:
            return math.inf
        each = 2 * self.conversations / self.users if self.conversations > 0 < self.users else 0.0
        look_s = LOOK_S + each * LOOK_S_A_CONVERSATION
        return max(HELLOS_MIN, math.ceil(pass_s / look_s))


class Rate:
    """Counts what happened within the last second, or a little less. Pure."""

    __slots__ = ("_at", "_before", "_now")

    def __init__(self) -> None:
        self._at, self._before, self._now = 0.0, 0, 0

    def count(self, now: float) -> float:
        """One more at `now` (seconds); gives how many there were within a second."""
        if now - self._at >= 1.0:
            self._before = self._now if now - self._at < 2.0 else 0
            self._at, self._now = now, 0
        self._now += 1
        return self._now + self._before * (1.0 - (now - self._at))


class Sweeps:
    """All passes of a node, one at a time. `run` is a task of the node's life.

    `turns`: those of hellos; a pass takes one. `flush_cursors_of(user)`: a listing needs them
    written.
    """

    def __init__(
        self, rows: Rows, turns: Turns, state: LogState, flush_cursors_of: Callable[[UserId], Awaitable[None]],
        metrics: Metrics,
    ) -> None:  # fmt: skip
        self._rows, self._turns, self._log, self._metrics = rows, turns, state, metrics
        self._flush_cursors_of = flush_cursors_of
        self._rate = Rate()
        self._gathered: list[_Waiting] = []
        self._is_asked = asyncio.Event()
        self._worth: float = HELLOS_MIN
        self._sizes_at = -math.inf
        self._paused_until = -math.inf
        self.gather_s = GATHER_S

    def _is_storm(self) -> bool:
        """Count a hello with a mark; gives whether there are so many that a pass is worth it."""
        now = time.monotonic()
        return self._rate.count(now) >= self._worth * STORM and now >= self._paused_until

    async def changed(self, user: UserId, since: str | None) -> Swept | None:
        """What changed since a client's mark; None: look for yourself.

        The pass begins after this is called. Raises Unavailable, Overloaded.
        """
        if mark.read(since, self._log.epoch) is None or not self._is_storm():
            return None
        await self._flush_cursors_of(user)
        if (known := mark.read(since, self._log.epoch)) is None:
            return None
        asked = _Waiting(user, known, self._log.generation, asyncio.get_running_loop().create_future())
        self._gathered.append(asked)
        self._is_asked.set()
        return await asked.answer

    async def run(self) -> None:
        """Make passes while hellos wait, for ever."""
        while True:
            await self._is_asked.wait()
            await asyncio.sleep(self.gather_s)
            gathered, self._gathered = self._gathered[:USERS_MAX], self._gathered[USERS_MAX:]
            if not self._gathered:
                self._is_asked.clear()
            try:
                await self._answer(gathered)
            except errors.Refused as e:
                self._pause(len(gathered), str(e))
            finally:
                for one in gathered:
                    if not one.answer.done():
                        one.answer.set_result(None)

    def _pause(self, hellos: int, reason: str) -> None:
        self._paused_until = time.monotonic() + PAUSE_S
        log.warning("hello.sweep_failed", hellos=hellos, reason=reason)

    async def _answer(self, gathered: list[_Waiting]) -> None:
        """Answer these, if they are worth a pass. Raises Unavailable, Overloaded."""
        if time.monotonic() - self._sizes_at >= SIZES_S:
            sizes = Sizes(*(await self._rows(TABLE_SIZES, ()))[0])
            self._worth, self._sizes_at = sizes.worth, time.monotonic()
        generation = self._log.generation
        gathered = [one for one in gathered if one.generation == generation and not one.answer.done()]
        if len(gathered) < self._worth * WORTH_LEAST:
            return
        users: dict[UserId, list[tuple[_Waiting, dict[ConvId, None]]]] = {}
        for one in gathered:
            users.setdefault(one.user, []).append((one, {}))
        marks = [one.mark for one in gathered]
        params = (
            arrays.TextArray(list(users)), arrays.BigintArray([m.xid for m in marks]),
            arrays.BigintArray([m.started for m in marks]), FOUND_MAX + 1,
        )  # fmt: skip
        async with self._turns.turn(_SWEEPER):
            (text, started, now_ms, position, *_), *found = await self._rows(LIST_CHANGED_MANY, params)
        if len(found) > FOUND_MAX:
            self._pause(len(gathered), f"more than {FOUND_MAX} conversations changed")
            return
        snapshot, at_s, epoch = Snapshot(text, started), time.monotonic(), self._log.epoch
        for *_, id, a, b, a_xid, b_xid in found:
            for user, xid in ((a, a_xid), (b, b_xid)):
                for one, ids in users.get(user, ()):
                    if xid >= mark.since(one.mark, snapshot):
                        ids[id] = None
        new = str(mark.of(snapshot, epoch))
        for one, ids in (pair for pairs in users.values() for pair in pairs):
            if not one.answer.done():
                self._metrics.hellos_swept += 1
                one.answer.set_result(Swept(list(ids), snapshot, new, now_ms, at_s, position, generation))
