"""Gap fill: entries that a node missed are found, read from the log and delivered in order.

    look_up ──heads──► open(conv, upto) ──► Gap ──entries, many conversations a query──► deliver
                                                 ──► the results that waited

Only a head in PostgreSQL opens a gap: what another node claims is looked up first. Reads are
bounded, so that 10,000 conversations that are behind after an outage do not starve live traffic:
at most `FILLERS_MAX` queries at a time, with a bounded number of rows each, in turn. A conversation
that misses more goes to the end of the queue. Without listeners here nothing is read: the head's
numbers are copied.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine, Iterable
from typing import Any, Final

from chatd import errors
from chatd.core.conversation import Conversation, Gap
from chatd.core.conversations import Registry
from chatd.ids import ConvId
from chatd.metrics import Metrics
from chatd.postgres.connection import Backend
from chatd.postgres.rows import Head
from chatd.protocol import MESSAGE, Stored
from chatd.store import Store

FILL_CONVS: Final = 50  # conversations a query
# Entries of one conversation a query. Live traffic waits while the rows of one query are pushed (8
# ms at most)
FILL_ROWS: Final = 50
FILL_RETRY_S: Final = 0.5
FILLERS_MAX: Final = 2  # queries at a time; the pool's other connections are for clients
LOOK_UP_CONVS: Final = 1_000  # heads a query: 2 ms
SETTLE_S: Final = 0.5  # between two looks at unknown outcomes
OUTLAST_S: Final = 1.0  # between two looks at backends that may still write: a query by pid, and one by key
SEQ_MAX: Final = (1 << 63) - 1
LOOK_AGAIN_S: Final = 0.1


class Gaps:
    """Gaps of all conversations. Implements `ports.UnknownOutcomes`.

    `deliver(conv, entry)` pushes one entry and moves the head; `spawn` starts a watched task.
    `now_open(conv)` is called when retention has dropped the entry by which both had sent.
    """

    def __init__(
        self, registry: Registry, store: Store, metrics: Metrics,
        spawn: Callable[[Coroutine[Any, Any, None]], object], deliver: Callable[[Conversation, Stored], None],
        now_open: Callable[[Conversation], None],
    ) -> None:  # fmt: skip
        self._registry, self._store, self._metrics, self._spawn = registry, store, metrics, spawn
        self._deliver, self._now_open = deliver, now_open
        self._open: dict[ConvId, Conversation] = {}  # gaps to fill, the longest waiting first
        self._fillers = 0
        self._poked: set[ConvId] = set()
        self._looking = False
        self._outcome_unknown: set[ConvId] = set()
        self._settling = False
        self._outlasted: dict[ConvId, set[Backend]] = {}  # backends that may still write to it
        self._outlasting = False
        # Callers that wait until the conversation misses nothing
        self._awaited: dict[ConvId, list[asyncio.Future[None]]] = {}

    async def closed(self, conv: Conversation) -> None:
        """Look up the head; return when everything up to it has been delivered.

        The caller sets the deadline.
        """
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._awaited.setdefault(conv.id, []).append(future)
        self.look_up((conv.id,))
        await future

    def reset(self) -> None:
        """The log is another one: forget what was missing of the one before.

        Callers that wait for it return: their session has ended.
        """
        self._open.clear()
        self._poked.clear()
        self._outcome_unknown.clear()
        self._outlasted.clear()
        for id in list(self._awaited):
            self._release(id)

    def _release(self, id: ConvId) -> None:
        """End the waits for this conversation."""
        for future in self._awaited.pop(id, ()):
            if not future.done():
                future.set_result(None)

    def outcome_unknown(self, convs: set[ConvId], writers: Collection[Backend] = ()) -> None:
        """The database is back after batches of unknown outcome: look up the heads of `convs`.

        They are read after the transactions of those batches, which may hang for a long time, and
        again until the backends that had the batches (`writers`) have ended: one that hung may
        start a batch that its client gave up long before.
        """
        self._outcome_unknown.update(convs)
        if not self._settling:
            self._settling = True
            self._spawn(self._settle())
        if writers:
            for id in convs:
                self._outlasted.setdefault(id, set()).update(writers)
            if not self._outlasting:
                self._outlasting = True
                self._spawn(self._outlast())

    @property
    def is_settling(self) -> bool:
        """The outcome of some batch is still unknown."""
        return self._settling

    async def _settle(self) -> None:
        try:
            while self._outcome_unknown:
                convs = list(self._outcome_unknown)[:LOOK_UP_CONVS]
                for id in convs:
                    self._outcome_unknown.discard(id)
                known = self._known(convs)
                try:
                    decided = {row.id: row for row in await self._store.heads_decided(convs)}
                except errors.Refused:
                    decided = {}
                if decided:
                    busy = self._compare(list(decided.values()), known, again=False)
                    if busy:
                        self._spawn(self._look_again(busy))
                if undecided := [id for id in convs if id not in decided and id in self._registry.convs]:
                    self._outcome_unknown.update(undecided)
                    await asyncio.sleep(SETTLE_S)
        finally:
            self._settling = False

    async def _outlast(self) -> None:
        try:
            while self._outlasted:
                asked = set().union(*self._outlasted.values())
                try:
                    # Before the heads are read: what a backend wrote before its end is in them
                    gone = asked - await self._store.alive(asked)
                except errors.Refused:
                    gone = set()
                self.look_up([id for id in self._outlasted if id in self._registry.convs])
                self._outlasted = {id: left for id, writers in self._outlasted.items() if (left := writers - gone)}
                if self._outlasted:
                    await asyncio.sleep(OUTLAST_S)
        finally:
            self._outlasting = False

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
                    busy = await self._look_up(set(convs[at : at + LOOK_UP_CONVS]))
                    if busy:
                        self._spawn(self._look_again(busy))
        finally:
            self._looking = False

    async def _look_again(self, convs: set[ConvId]) -> None:
        # once: a user over the rate can have probes under way all the time
        await asyncio.sleep(LOOK_AGAIN_S)
        await self._look_up(convs, again=True)

    async def _look_up(self, convs: set[ConvId], *, again: bool = False) -> set[ConvId]:
        """Open the gaps of conversations that are behind; gives those with items under way.

        A fill of these now would give an entry under way to its sender both as an entry and as a
        duplicate. Their results may show the gap, or not.
        """
        while True:
            known = self._known(convs)
            try:
                rows = await self._store.heads(convs)
                break
            except errors.Retryable:
                await asyncio.sleep(FILL_RETRY_S)
        if known.keys() - {row.id for row in rows}:
            self._store.log.suspect(is_behind=True)  # rows of conversations are never deleted
        return self._compare(rows, known, again=again)

    def _known(self, convs: Iterable[ConvId]) -> dict[ConvId, int]:
        """Heads in memory, taken before the log is read: the log has at least these."""
        held = self._registry.convs
        return {id: conv.head for id in convs if (conv := held.get(id)) is not None}

    def _compare(self, rows: list[Head], known: dict[ConvId, int], *, again: bool) -> set[ConvId]:
        busy: set[ConvId] = set()
        for row in rows:
            conv = self._registry.convs.get(row.id)
            if conv is not None and (row.a != conv.a or row.b != conv.b or row.head < known.get(row.id, 0)):
                self._store.log.suspect(is_behind=True)  # read nothing of it: it may be other users'
                continue
            if conv is None or (row.head <= conv.head and conv.gap is None):
                self._release(row.id)
                continue
            if row.head <= conv.head:
                continue
            if conv.pending and not again:
                busy.add(conv.id)
            elif conv.gap is None and not conv.pending and not self._listens(conv):
                conv.head, conv.na, conv.nb, conv.ts = row.head, row.na, row.nb, row.ts
                self._release(row.id)
            else:
                self.open(conv, row.head)
        return busy

    def _listens(self, conv: Conversation) -> bool:
        """Whether a session here gets its entries."""
        users = self._registry.users
        return any((user := users.get(id)) is not None and user.sessions for id in (conv.a, conv.b))

    def open(self, conv: Conversation, upto: int) -> Gap:
        """The log has entries up to `upto` at least: deliver what is missing.

        Results that arrive during the fill must `wait` in the gap.
        """
        gap = conv.gap
        if gap is None:
            gap = conv.gap = Gap(upto)
            self._metrics.gap_fills += 1
            self._open[conv.id] = conv
            if self._fillers < FILLERS_MAX:
                self._fillers += 1
                self._spawn(self._fill_gaps())
        gap.upto = max(gap.upto, upto)
        return gap

    async def _fill_gaps(self) -> None:
        """Deliver from the log, then run the waiting results, until no conversation has a gap."""
        try:
            while self._open:
                convs = [self._open.pop(id) for id in list(self._open)[:FILL_CONVS]]
                wants = {conv.id: (conv, upto) for conv in convs if (upto := self._missing(conv))}
                if not wants:
                    continue
                try:
                    rows = await self._store.entries_many(
                        [(id, conv.head, upto) for id, (conv, upto) in wants.items()], FILL_ROWS
                    )
                except errors.Retryable:
                    known = self._registry.convs
                    self._open = {
                        conv.id: conv for conv, _ in wants.values() if known.get(conv.id) is conv
                    } | self._open
                    await asyncio.sleep(FILL_RETRY_S)
                    continue
                self._store.history.shown(wants)
                read = dict.fromkeys(wants, 0)
                for conv_id, e in rows:
                    read[conv_id] += 1
                    self._deliver(wants[conv_id][0], e)
                await self._pass_over([(conv, upto) for conv, upto in wants.values() if not read[conv.id]])
                for conv, _ in wants.values():
                    if self._registry.convs.get(conv.id) is not conv:
                        continue  # the log moved during the read: these results are of the one before
                    if self._missing(conv):
                        self._open[conv.id] = conv  # at the end of the queue
        finally:
            self._fillers -= 1

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
            if upto > conv.head:
                was_open = conv.open
                conv.head = upto
                conv.na, conv.nb = counts.get(conv.id, (conv.na, conv.nb))
                if conv.open and not was_open:
                    self._now_open(conv)

    def _missing(self, conv: Conversation) -> int:
        """Run the results whose turn it is; gives the seq up to which the log must be read.

        0: nothing is missing, and the gap is closed.
        """
        gap = conv.gap
        assert gap is not None
        while gap.waiting and gap.waiting[0][0] <= conv.head + 1:
            gap.waiting.pop(0)[1]()
        if gap.waiting:
            return gap.waiting[0][0] - 1
        if conv.head < gap.upto:
            return gap.upto
        conv.gap = None
        self._release(conv.id)
        if gap.heard > conv.head:
            self.look_up((conv.id,))
        return 0
