"""What a lane does with a batch that PostgreSQL did not take.

Nothing is lost, and no more is refused than what is at fault.

    outage         nobody's fault: all of it fails, to be sent again; if its outcome is unknown, its
                   conversations are looked up when the database is back
    data           the batch is halved until only the row at fault is refused
    locked         another transaction holds the row of a conversation: what is in that one fails,
                   the others are written; for `STUCK_S` it is asked first whether it is held still
    stranger       a conversation is not the one that this node knows: the log may be another one

What an error means is decided in postgres/faults.py.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Final

import psycopg
import structlog

from chatd.core.batch import Batch, Item, release_pending
from chatd.errors import Unavailable
from chatd.ids import ConvId
from chatd.metrics import Metrics
from chatd.postgres import faults
from chatd.postgres.append_answer import Outcome
from chatd.postgres.connection import Backend
from chatd.postgres.faults import Fault, Outage
from chatd.postgres.health import Health
from chatd.postgres.lane_connection import LaneConnection

log = structlog.get_logger("writer")

STUCK_S: Final = 5.0
LOCKED: Final = "this conversation cannot be written now: another transaction holds it; send it again with the same cid"
FOREIGN: Final = (
    "PostgreSQL refuses a conversation that is as this node knows it, perhaps by a trigger that is not chatd's: {}"
)


class BatchFailures:
    """Of one lane. `write(part, generation)`: what is left of a batch."""

    def __init__(
        self,
        lane: LaneConnection,
        outcome: Outcome,
        metrics: Metrics,
        health: Health,
        write: Callable[[Batch, int], Awaitable[None]],
    ) -> None:
        self._lane, self._outcome, self._metrics, self._health, self._write = lane, outcome, metrics, health, write
        self.unknown: set[ConvId] = set()  # conversations of batches whose outcome is unknown
        self.writers: set[Backend] = set()  # who had these batches
        # Conversations whose row another transaction held, and until when that is looked at before
        # a batch waits for them. One for all lanes.
        self.stuck: dict[ConvId, float] = {}

    def tell_unknown(self) -> None:
        """The database is there: have the conversations of unknown outcome looked up."""
        convs, self.unknown = self.unknown, set()
        writers, self.writers = self.writers, set()
        self._outcome.outcome_unknown(convs, writers)

    def forget(self) -> None:
        """The log is another one: nothing of the one before is looked up."""
        self.unknown.clear()
        self.writers.clear()

    async def refused(self, batch: Batch, generation: int, e: psycopg.Error) -> None:
        """PostgreSQL refuses a batch for a part of it."""
        items, fault = batch.items, faults.judge(e)
        if fault is Fault.LOCKED:
            await self._unlocked(batch, generation, e)
        elif len(items) > 1:
            await self._halves(batch, generation)
        elif fault is Fault.STRANGER:
            await self._stranger(items, generation, e)
        else:
            log.warning(
                "entry.refused",
                lane=self._lane.number,
                conv=items[0].conv.id,
                sqlstate=e.sqlstate,
                reason=faults.sentence(e),
            )
            release_pending(items)
            if fault is Fault.DATA:
                self._outcome.refused(items[0])
            else:
                self._alone(items)

    def outage(self, items: list[Item], e: Outage) -> None:
        known = self._health.parts.get("lanes")
        # An outage is one line, however many batches fail in it
        tell = log.warning if known is None or known.kind != e.kind else log.debug
        tell(
            "batch.unknown" if e.is_unknown else "batch.failed",
            lane=self._lane.number,
            rows=len(items),
            kind=e.kind,
            reason=str(e),
        )
        self._metrics.batches_failed += 1
        self._health.failed("lanes", e)
        if e.is_unknown:
            self.unknown.update(item.conv.id for item in items)
            if (backend := self._lane.backend) is not None:
                self.writers.add(backend)
        release_pending(items)
        error = Unavailable(
            f"the database does not take it now ({e.kind}); send it again with the same cid", retry_ms=1_000
        )
        self._outcome.failed(items, error, is_unknown=e.is_unknown)

    async def _halves(self, batch: Batch, generation: int) -> None:
        for half in batch.halves():
            # What is queued behind an entry of the first half must not be written if that one
            # failed.
            part, blocked = half.sift()
            if blocked:
                release_pending(blocked)
                self._outcome.blocked(blocked)
            if part.messages or part.changes:
                await self._write(part, generation)

    async def _unlocked(self, batch: Batch, generation: int, e: psycopg.Error) -> None:
        """Another transaction holds the row of one of these conversations for longer than
        `lock_timeout`: the others are not to wait for it.
        """
        items = batch.items
        try:
            locked = await self._lane.locked({item.conv.id for item in items})
        except (Outage, psycopg.Error, OSError, TimeoutError) as probe:
            self.outage(items, faults.outage(probe, is_unknown=False))
            await self._lane.close()
            return
        # The row of a message that one of them changes: messages, which lock no such row, go on
        if not locked and batch.changes:
            if len(items) > 1:
                await self._halves(batch, generation)
            else:
                release_pending(items)
                self._alone(items)
            return
        if not locked:  # it was let go since, or what is held is no row, as by DDL on the log
            self.outage(items, faults.outage(e, is_unknown=False))
            return
        rest = self._leave(batch, locked)
        if rest.messages or rest.changes:
            await self._write(rest, generation)

    async def without_stuck(self, batch: Batch) -> Batch:
        """Of conversations that were held a moment ago it is asked first whether they are still:
        without waiting, in one round trip.
        """
        now = time.monotonic()
        for id in [id for id, until in self.stuck.items() if until < now]:
            del self.stuck[id]
        asked = {item.conv.id for item in batch.items if item.conv.id in self.stuck}
        if not asked:
            return batch
        try:
            locked = await self._lane.locked(asked)
        except (psycopg.Error, OSError, TimeoutError) as e:
            raise faults.outage(e, is_unknown=False) from e
        for id in asked - locked:
            self.stuck.pop(id, None)
        return self._leave(batch, locked) if locked else batch

    def _leave(self, batch: Batch, locked: set[ConvId]) -> Batch:
        """Fail what is in these conversations; gives the rest."""
        until = time.monotonic() + STUCK_S
        # A lock is one line, however many batches meet it
        tell = log.debug if locked <= self.stuck.keys() else log.warning
        self.stuck.update(dict.fromkeys(locked, until))
        left = [item for item in batch.items if item.conv.id in locked]
        tell("conversation.locked", lane=self._lane.number, conversations=sorted(locked)[:10], rows=len(left))
        release_pending(left)
        self._outcome.failed(left, Unavailable(LOCKED, retry_ms=1_000))
        return Batch(
            [i for i in batch.messages if i.conv.id not in locked],
            [i for i in batch.changes if i.conv.id not in locked],
        )

    async def _stranger(self, items: list[Item], generation: int, e: psycopg.Error) -> None:
        """One conversation is not the one that this node knows, says the SQLSTATE.

        A trigger of somebody else's may say so: the row is looked at.
        """
        try:
            is_known = await self._lane.holds(items[0].conv)
        except (Outage, psycopg.Error, OSError, TimeoutError) as probe:
            self.outage(items, faults.outage(probe, is_unknown=False))
            await self._lane.close()
            return
        if is_known:
            self.outage(items, Outage(FOREIGN.format(faults.sentence(e)), "other", is_unknown=False))
            return
        if self._lane.state.generation == generation:
            self._lane.state.suspect(is_behind=True)
        release_pending(items)
        self._alone(items)

    def _alone(self, items: list[Item]) -> None:
        """One conversation alone cannot be written: it is not the one that this node knows, or
        another transaction holds a message of it.
        """
        self._outcome.failed(
            items,
            Unavailable("this conversation cannot be written now; send it again with the same cid", retry_ms=1_000),
        )
