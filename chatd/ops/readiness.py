"""Whether this node serves, and if not, why: for `/readyz` and `chatd_ready`.

    known()      what is known without asking: starting, draining, an outage that somebody has met      for the metric
    problems()   the same, and the database is asked now; within `ASK_S`, whatever it does              for `/readyz`
    degraded()   what is away although the node serves: Redis

The database is asked by its watch, over the watch's own connection: reads that wait for the pool
are no outage, and a database that hangs is seen at the next probe instead of at the watch's own
deadline. Whoever asks shares one question; a probe that leaves early cancels nothing.

Without Redis a node is ready: it acks and delivers, and other nodes' entries come by the change
feed. All nodes lose Redis at once, and a balancer that took all of them out would make an outage of
it.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final

from chatd.errors import ChatdError

if TYPE_CHECKING:
    from chatd.store import Store

ASK_S: Final = 0.3  # of the 0.5 s in which a probe has its answer
PARTITIONS_S: Final = 5.0  # how long a count of the partitions ahead is good for


class Readiness:
    """`state` gives the node's own reasons, by part; `missing`: called where no partition lies
    ahead; `now`: seconds.
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
        self._store, self._state, self._missing, self._redis, self._spawn, self._now = (
            store,
            state,
            missing,
            redis,
            spawn,
            now,
        )
        self._partitions: int | None = None  # ahead of the one in use; None: not counted yet
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
        """The same, with the database asked. Never raises; ends within `ASK_S` and some."""
        known = self.known()
        if "starting" in known:
            return known
        if "database" not in known:
            self._count()
        has_answer = await self._store.watch.answers(ASK_S)  # in an outage, too: its reason may be another one by now
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
            pass  # an outage: `health` has its reason
        finally:
            self._counting = False
