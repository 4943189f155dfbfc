"""Gaps: entries that a node misses come by the bus, or are read from the log, and go out in order.

    result, entry that comes early ──► Gap ──wait for the bus──► nothing is missing any more
                                           └─────overdue──► the log is read ──► deliver
    look_up ──heads──► the log has more ──┘

Two people who write to each other on two nodes make gaps all the time: a batch finds that the other
node took the seq before it a millisecond ago, and that entry is on its way over the bus. So a gap
first waits, as long as the bus has lately been late (core/bus_lag.py); there is one timer for all.
Only PostgreSQL says what the log has: where only another node has announced an entry, the head is
looked up before anything is read. Without other nodes, or without a bus, nothing waits.

Reads are bounded, so that 10,000 conversations that are behind after an outage do not starve live
traffic: at most `FILLERS_MAX` queries at a time, with a bounded number of rows each, in turn. A
conversation that misses more goes to the end of the queue. Without listeners here nothing is read:
the head's numbers are copied.

An entry of this node may be read before its lane has the answer. Then its sender gets the `ok` in
that place, and the result answers nothing more (`Item.has_ok`). Not so with a retry: whether it is
a `dup`, and keeps its slot of the rate limit, is known to its result alone.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Final

from chatd import errors
from chatd.chat.ports import OtherNodes
from chatd.chat.unknown_outcomes import LOOK_UP_CONVS, Outcomes
from chatd.core.batch import Item
from chatd.core.bus_lag import BusLag
from chatd.core.conversation import Conversation
from chatd.core.conversations import Registry
from chatd.core.gap import Gap, GapStep
from chatd.ids import ConvId
from chatd.metrics import Metrics
from chatd.postgres.rows import Head
from chatd.protocol import MESSAGE, Stored
from chatd.store import Store

FILL_CONVS: Final = 50  # conversations a query
# Entries of one conversation a query. Live traffic waits while the rows of one query are pushed (8
# ms at most)
FILL_ROWS: Final = 50
FILL_RETRY_S: Final = 0.5
FILLERS_MAX: Final = 2  # queries at a time; the pool's other connections are for clients
SEQ_MAX: Final = (1 << 63) - 1
# Entries of other nodes that wait in all gaps, some 4 MB. Past it the log is read at once. In one
# gap: core/gap.py.
EARLY_ALL_MAX: Final = 5_000


class Awaited:
    """A caller that waits until a conversation has all that the log has now."""

    __slots__ = ("asked", "future", "upto")

    def __init__(self, asked: int) -> None:
        self.asked = asked  # look-ups made before: only a later one knows
        self.upto: int | None = None  # the head that it found
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def end(self) -> None:
        if not self.future.done():
            self.future.set_result(None)


class Gaps:
    """Gaps of all conversations. `outcomes`: batches of which it is not known what became of them.

    `deliver(conv, entry, item)` pushes one entry and moves the head; `item`: of this node, under
    way, that made it. `now`: seconds; `later(seconds, function)` is a timer, `spawn` starts a
    watched task.
    `now_open(conv)` is called when retention has dropped the entry by which both had sent.
    """

    def __init__(
        self, registry: Registry, store: Store, metrics: Metrics, others: OtherNodes,
        now: Callable[[], float], later: Callable[[float, Callable[[], None]], object],
        spawn: Callable[[Coroutine[Any, Any, None]], object],
        deliver: Callable[[Conversation, Stored, Item | None], None], now_open: Callable[[Conversation], None],
    ) -> None:  # fmt: skip
        self._registry, self._store, self._metrics, self._others = registry, store, metrics, others
        self._now, self._later, self._spawn = now, later, spawn
        self._deliver, self._now_open = deliver, now_open
        self.bus_lag = BusLag()
        self.outcomes = Outcomes(
            registry, store, spawn=spawn, look_up=self.look_up, known=self._known, compare=self._compare
        )
        # Gaps that wait for the bus, the longest waiting first: until when, and the head at that
        # time
        self._waits: deque[tuple[float, Conversation, Gap, int]] = deque()
        self._is_timed = False  # the timer of `_waits` runs
        self._early = 0  # entries of other nodes that wait in gaps
        self._open: dict[ConvId, Conversation] = {}  # gaps to read, the longest waiting first
        self._fillers = 0
        self._poked: set[ConvId] = set()
        self._looking = False
        self._looks = 0  # queries of heads so far
        self._awaited: dict[ConvId, list[Awaited]] = {}

    async def closed(self, conv: Conversation) -> None:
        """Look up the head; return when everything up to it has been delivered.

        The caller sets the deadline.
        """
        awaited = Awaited(self._looks)
        self._awaited.setdefault(conv.id, []).append(awaited)
        self.look_up((conv.id,))
        await awaited.future

    def reset(self) -> None:
        """The log is another one: forget what was missing of the one before.

        Callers that wait for it return: their session has ended.
        """
        self._waits.clear()
        self._early = 0
        self._open.clear()
        self._poked.clear()
        self.outcomes.reset()
        for several in self._awaited.values():
            for awaited in several:
                awaited.end()
        self._awaited.clear()

    @property
    def is_settling(self) -> bool:
        """The outcome of some batch is still unknown."""
        return self.outcomes.is_settling

    @property
    def is_at_work(self) -> bool:
        """Some heads are being looked up: no conversation may be let go."""
        return bool(self._looking or self._awaited or self.outcomes.is_at_work)

    # ---- what comes early ------------------------------------------------------------------------

    def arrived(self, conv: Conversation, first: int, run: Callable[[], None]) -> None:
        """A result of this node whose first entry is not the next one, or while there is a gap.

        `run()` delivers it, once everything before it was.
        """
        if first > conv.head + 1:
            self.expect(conv, first - 1).wait(first, run)
        else:
            run()
            self.advanced(conv)

    def early(self, conv: Conversation, seq: int, run: Callable[[], None]) -> None:
        """Another node has published an entry beyond the next one; `run()` delivers it."""
        gap, is_new = conv.gap, conv.gap is None
        if gap is None:
            gap = conv.gap = Gap()
        gap.heard = max(gap.heard, seq)
        before = gap.early
        if self._early < EARLY_ALL_MAX and gap.hold(seq, run):
            self._early += gap.early - before
            if is_new:
                self._wait(conv, gap)
        elif gap.step is GapStep.WAIT:
            self._due(conv, gap)

    def expect(self, conv: Conversation, upto: int) -> Gap:
        """The log has entries up to `upto` at least, which are to be delivered."""
        gap = conv.gap
        if gap is None:
            gap = conv.gap = Gap(upto)
            self._wait(conv, gap)
        gap.upto = max(gap.upto, upto)
        return gap

    def advanced(self, conv: Conversation) -> None:
        """Entries were delivered: run what waited for them."""
        gap = conv.gap
        if gap is not None:
            early = gap.early
            while (run := gap.take(conv.head)) is not None:
                run()
            self._early -= early - gap.early
            if gap.is_closed(conv.head):
                conv.gap = None
                if gap.step is GapStep.WAIT:
                    self._metrics.gaps_closed += 1
        if self._awaited:
            self._release(conv.id, conv.head)

    def _release(self, id: ConvId, head: int) -> None:
        """End the waits for what has been delivered, up to `head`."""
        left: list[Awaited] = []
        for awaited in self._awaited.pop(id, ()):
            if awaited.upto is not None and awaited.upto <= head:
                awaited.end()
            else:
                left.append(awaited)
        if left:
            self._awaited[id] = left

    # ---- waiting for the bus ---------------------------------------------------------------------

    def _wait(self, conv: Conversation, gap: Gap) -> None:
        """Give the bus its time from now on."""
        gap.step = GapStep.WAIT
        if not self._others.hears:
            self._due(conv, gap)
            return
        self._waits.append((self._now() + self.bus_lag.wait_s, conv, gap, conv.head))
        if not self._is_timed:
            self._time(self.bus_lag.wait_s)

    def _time(self, wait_s: float) -> None:
        self._is_timed = True
        self._later(wait_s, self._overdue)

    def _overdue(self) -> None:
        """The time of the gap that waits longest is over, if it is still there."""
        self._is_timed = False
        now = self._now()
        while self._waits:
            until, conv, gap, head = self._waits[0]
            if conv.gap is gap and gap.step is GapStep.WAIT:
                if until > now:
                    self._time(until - now)
                    return
                self._waits.popleft()
                if conv.head > head:
                    self._wait(conv, gap)  # what it waited for has come, and another one is missing
                else:
                    self._due(conv, gap)
            else:
                self._waits.popleft()

    def _due(self, conv: Conversation, gap: Gap) -> None:
        if conv.head < gap.upto:
            self._read(conv, gap)
        else:
            gap.step = GapStep.ASK
            self.look_up((conv.id,))

    def _read(self, conv: Conversation, gap: Gap) -> None:
        gap.step = GapStep.READ
        self._metrics.gap_fills += 1
        self._open[conv.id] = conv
        if self._fillers < FILLERS_MAX:
            self._fillers += 1
            self._spawn(self._fill_gaps())

    # ---- what the log has ------------------------------------------------------------------------

    def look_up(self, convs: Iterable[ConvId]) -> None:
        """The heads of these may be higher than what was delivered: read them.

        Conversations that are asked for in the same loop turn share a query.
        """
        self._poked.update(convs)
        if not self._looking:
            self._looking = True
            self._spawn(self._look_up_poked())

    async def _look_up_poked(self) -> None:
        try:
            while self._poked:
                convs, self._poked = list(self._poked), set()
                for at in range(0, len(convs), LOOK_UP_CONVS):
                    await self._look_up(set(convs[at : at + LOOK_UP_CONVS]))
        finally:
            self._looking = False

    async def _look_up(self, convs: set[ConvId]) -> None:
        while True:
            known = self._known(convs)
            self._looks += 1
            try:
                rows = await self._store.heads(convs)
                break
            except errors.Retryable:
                await asyncio.sleep(FILL_RETRY_S)
        if known.keys() - {row.id for row in rows}:
            self._store.log.suspect(is_behind=True)  # rows of conversations are never deleted
        self._compare(rows, known)
        for row in rows:
            conv = self._registry.convs.get(row.id)
            for awaited in self._awaited.get(row.id, ()):
                if awaited.upto is None and awaited.asked < self._looks:
                    awaited.upto = row.head if conv is not None else 0
            self._release(row.id, 0 if conv is None else conv.head)

    def _known(self, convs: Iterable[ConvId]) -> dict[ConvId, int]:
        """Heads in memory, taken before the log is read: the log has at least these."""
        held = self._registry.convs
        return {id: conv.head for id in convs if (conv := held.get(id)) is not None}

    def _compare(self, rows: Iterable[Head], known: dict[ConvId, int]) -> None:
        for row in rows:
            conv = self._registry.convs.get(row.id)
            if conv is None:
                continue
            if row.a != conv.a or row.b != conv.b or row.head < known.get(row.id, 0):
                self._store.log.suspect(is_behind=True)  # read nothing of it: it may be other users'
            elif row.head > conv.head:
                self._behind(conv, row)
            elif (gap := conv.gap) is not None and gap.step is GapStep.ASK:
                if conv.head < gap.upto:
                    self._wait(conv, gap)  # a result is later than the query
                else:
                    self._early -= gap.early
                    gap.forget_heard()
                    self.advanced(conv)

    def _behind(self, conv: Conversation, row: Head) -> None:
        """The log has more of it than was delivered here."""
        gap = conv.gap
        if not conv.pending and not self._listens(conv) and (gap is None or not gap.has_results):
            conv.head, conv.na, conv.nb, conv.ts = row.head, row.na, row.nb, row.ts
            self.advanced(conv)
            if conv.gap is not None and conv.gap.step is GapStep.ASK:
                self._wait(conv, conv.gap)
            return
        gap = self.expect(conv, row.head)
        if gap.step is GapStep.ASK:
            self._read(conv, gap)

    def _listens(self, conv: Conversation) -> bool:
        """Whether a session here gets its entries."""
        users = self._registry.users
        return any((user := users.get(id)) is not None and user.sessions for id in (conv.a, conv.b))

    # ---- reading it ------------------------------------------------------------------------------

    async def _fill_gaps(self) -> None:
        """Deliver from the log until no gap is to be read."""
        try:
            while self._open:
                reads: dict[ConvId, tuple[Conversation, Gap, int]] = {}
                for id in list(self._open)[:FILL_CONVS]:
                    conv = self._open.pop(id)
                    if (gap := conv.gap) is not None and gap.step is GapStep.READ:
                        if conv.head < gap.upto:
                            reads[id] = (conv, gap, gap.upto)
                        else:
                            self._wait(conv, gap)  # the bus was faster; another node has announced more
                if not reads:
                    continue
                try:
                    rows = await self._store.entries_many(
                        [(id, conv.head, upto) for id, (conv, _, upto) in reads.items()], FILL_ROWS
                    )
                except errors.Retryable:
                    again = {id: conv for id, (conv, gap, _) in reads.items() if self._is_held(conv)}
                    self._open = again | self._open
                    await asyncio.sleep(FILL_RETRY_S)
                    continue
                self._store.history.shown(reads)
                read = self._delivered(rows, {id: conv for id, (conv, _, _) in reads.items() if self._is_held(conv)})
                await self._pass_over([(conv, upto) for id, (conv, _, upto) in reads.items() if id not in read])
                for id, (conv, gap, upto) in reads.items():
                    if conv.gap is not gap or not self._is_held(conv):
                        continue  # it is closed, or the log has moved during the read
                    if conv.head < upto:
                        self._open[id] = conv  # at the end of the queue
                    else:
                        self._wait(conv, gap)  # what is missing now is new
        finally:
            self._fillers -= 1

    def _is_held(self, conv: Conversation) -> bool:
        return self._registry.convs.get(conv.id) is conv

    def _delivered(self, rows: list[tuple[ConvId, Stored]], convs: dict[ConvId, Conversation]) -> set[ConvId]:
        """Deliver what the bus has not brought; gives the conversations that had rows.

        `convs`: those that are of this log still.
        """
        read = {id for id, _ in rows}
        lanes = {conv.lane for id in read if (conv := convs.get(id)) is not None and conv.pending}
        own = self._store.lanes.under_way(lanes) if lanes else {}
        for id, e in rows:
            conv = convs.get(id)
            if conv is not None and e.seq > conv.head:
                self._deliver(conv, e, own.get((id, e.side, e.cid)) if own else None)
                self.advanced(conv)
        return read

    async def _pass_over(self, gone: list[tuple[Conversation, int]]) -> None:
        """Retention has dropped all that these missed: continue behind it.

        The numbers of messages (`na`, `nb`) are those that the log has there.
        """
        if not gone:
            return
        counts: dict[ConvId, tuple[int, int]] = {}
        try:
            for id, e in await self._store.entries_many([(conv.id, upto, SEQ_MAX) for conv, upto in gone], 1):
                own = (e.kind == MESSAGE and e.side == 0, e.kind == MESSAGE and e.side == 1)
                counts[id] = (e.na - own[0], e.nb - own[1])  # before the first entry that is left
            if behind := [conv.id for conv, _ in gone if conv.id not in counts]:
                counts |= {row.id: (row.na, row.nb) for row in await self._store.heads(behind)}
        except errors.Refused:
            # The head is right; the numbers follow with the next entry of another node, or the next
            # hello
            pass
        for conv, upto in gone:
            if upto > conv.head and self._is_held(conv):
                was_open = conv.open
                conv.head = upto
                conv.na, conv.nb = counts.get(conv.id, (conv.na, conv.nb))
                if conv.open and not was_open:
                    self._now_open(conv)
                self.advanced(conv)
