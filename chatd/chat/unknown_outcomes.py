"""What became of batches whose answer was lost: the log says, once nothing can write them any more.

    pipeline ──outcome_unknown──► heads that no transaction writes to now ──► Gaps: deliver the rest
                                  backends that may still write ──until they have ended──► look_up

The log is read after the transactions of such batches, which may hang for a long time, and again
until the backends that had the batches have ended: one that hung may start a batch that its client
gave up long before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine, Iterable
from typing import Any, Final

from chatd import errors
from chatd.core.conversations import Registry
from chatd.ids import ConvId
from chatd.postgres.connection import Backend
from chatd.postgres.rows import Head
from chatd.store import Store

LOOK_UP_CONVS: Final = 1_000  # heads a query: 2 ms
SETTLE_S: Final = 0.5  # between two looks at unknown outcomes
OUTLAST_S: Final = 1.0  # between two looks at backends that may still write: a query by pid, and one by key


class Outcomes:
    """Implements `ports.UnknownOutcomes`.

    `spawn` starts a watched task. `look_up`, `known`, `compare`: of `Gaps`.
    """

    def __init__(
        self, registry: Registry, store: Store, *, spawn: Callable[[Coroutine[Any, Any, None]], object],
        look_up: Callable[[Iterable[ConvId]], None], known: Callable[[Iterable[ConvId]], dict[ConvId, int]],
        compare: Callable[[Iterable[Head], dict[ConvId, int]], None],
    ) -> None:  # fmt: skip
        self._registry, self._store, self._spawn = registry, store, spawn
        self._look_up, self._known, self._compare = look_up, known, compare
        self._unknown: set[ConvId] = set()
        self._settling = False
        self._outlasted: dict[ConvId, set[Backend]] = {}  # backends that may still write to it
        self._outlasting = False

    def reset(self) -> None:
        """The log is another one: nothing of the one before is looked up."""
        self._unknown.clear()
        self._outlasted.clear()

    def outcome_unknown(self, convs: set[ConvId], writers: Collection[Backend] = ()) -> None:
        """The database is back after batches of unknown outcome: look up the heads of `convs`.

        `writers`: the backends that had the batches.
        """
        self._unknown.update(convs)
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

    @property
    def is_at_work(self) -> bool:
        """Heads are looked up because of such batches, or backends may still write."""
        return self._settling or self._outlasting

    async def _settle(self) -> None:
        try:
            while self._unknown:
                convs = list(self._unknown)[:LOOK_UP_CONVS]
                for id in convs:
                    self._unknown.discard(id)
                known = self._known(convs)
                try:
                    decided = {row.id: row for row in await self._store.heads_decided(convs)}
                except errors.Refused:
                    decided = {}
                self._compare(decided.values(), known)
                if undecided := [id for id in convs if id not in decided and id in self._registry.convs]:
                    self._unknown.update(undecided)
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
                self._look_up([id for id in self._outlasted if id in self._registry.convs])
                self._outlasted = {id: left for id, writers in self._outlasted.items() if (left := writers - gone)}
                if self._outlasted:
                    await asyncio.sleep(OUTLAST_S)
        finally:
            self._outlasting = False
