"""Whether this node serves, and if not, why: for `/readyz` and the metric `chatd_ready`.

    known()      what is known without asking: starting, draining, a known outage (for the metric)
    problems()   the same, after asking the database; within `ASK_S` (for `/readyz`)
    degraded()   what is away although the node serves: Redis

`watch` asks the database over its own connection. So reads that wait for the pool do not count as
an outage, and a database that hangs is found at the next probe instead of at the watch's own
deadline. Probes at the same time share one question; a probe that leaves early cancels nothing.

A node is ready without Redis: it acks and delivers, and other nodes' entries arrive by the change
feed. All nodes lose Redis at once. A balancer that took all of them out would turn that into an
outage.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final

from chatd.errors import ChatdError

if TYPE_CHECKING:
    from chatd.store import Store

ASK_S: Final = 0.3  # of the 0.5 s within which a probe is answered
PARTITIONS_S: Final = 5.0  # how long a count of the partitions ahead is used


class Readiness:
    """Knows what keeps this node from serving.

    `state` returns the node's own reasons, by part. `missing` is called if no partition lies ahead.
    `redis` returns why Redis is away, or "". `spawn` runs a task of the node. `now`: seconds.
    """

    def __init__(
        self,
        store: Store,
        *,
        state: Callable[[], dict[str, str]],
        missing: Callable[[], None],
        redis: Callable[[], str],
        spawn: Callable[[Coroutine[Any, Any, None]], object],
        now: Callable[[], float],
    ) -> None:
        self._store, self._state, self._missing = store, state, missing
        self._redis, self._spawn, self._now = redis, spawn, now
        self._partitions: int | None = None  # how many lie ahead of the one in use; None: not counted
        self._counted_at = float("-inf")
        self._counting = False

    def known(self) -> dict[str, str]:
        """What keeps the node from serving, by part, as far as it is known."""
        problems = self._state()
        if "database" not in problems and (trouble := self._store.health.trouble) is not None:
            problems["database"] = f"{trouble.kind}: {trouble.sentence}"
        if self._partitions is not None and self._partitions < 1:
            problems["partitions"] = "no partition lies ahead; look at the log for `retention`"
        return problems

    async def problems(self) -> dict[str, str]:
        """The same, after asking the database. Never raises; returns soon after `ASK_S`."""
        known = self.known()
        if "starting" in known:
            return known
        if "database" not in known:
            self._count()
        # Also in an outage, because its reason may have changed
        has_answer = await self._store.watch.answers(ASK_S)
        known = self.known()
        if not has_answer and "database" not in known:
            known["database"] = f"timeout: PostgreSQL gave no answer within {ASK_S:g} s"
        return known

    def degraded(self) -> dict[str, str]:
        """What is away although the node serves, by part."""
        reason = self._redis()
        return {"redis": reason} if reason else {}

    def _count(self) -> None:
        if not self._counting and self._now() - self._counted_at > PARTITIONS_S:
            self._counting = True
            self._spawn(self._count_partitions())

    async def _count_partitions(self) -> None:
        try:
            self._partitions = await self._store.partitions_left()
            self._counted_at = self._now()
            if self._partitions < 1:
                self._missing()
        except ChatdError:
            pass  # an outage, whose reason `health` has
        finally:
            self._counting = False
