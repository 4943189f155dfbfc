"""Which other nodes work on this database, and whether this one hears them: nodes that share no
Redis are found out.

    node ──shared advisory lock (CLASS, its boot)──► PostgreSQL ──all holders──► Census ──those that are not heard──► a warning, or no start

Two nodes over one database whose `redis_url` (or prefix) differs, or was forgotten, ack and store
all, and do not deliver live to each other's users: each learns of the other's entries at the next
hello alone. Nothing else tells of it, so each node registers in PostgreSQL by a lock of its
session, which costs no writes and goes with the session, however that ends. Who is heard is what
Redis lists: of a lone node, nobody.

No false alarm: a node that drains has given its lock back, so the new one of a rolling restart sees
it for a second at most; another node must be unheard for `grace_s` on end; a node is registered
when its lease stands in Redis; a session that asks nothing is of a dead host. While Redis is away
nobody is judged: that is another outage, with its own words.

Rejected: a row per node with a time in it (a write a second each); comparing URLs (one Redis has
many names). It runs on the watch's connection.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import psycopg
import structlog

from chatd.errors import SettingError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence, Set

    from chatd.postgres.connection import Connection

log = structlog.get_logger("census")

CLASS: Final = 0x63686E64  # "chnd"
FRESH_S: Final = 3.0  # a watch asks once a second
GRACE_S: Final = 3.0
LOOK_S: Final = 1.0
REPEAT_S: Final = 600.0
NAMES_MAX: Final = 8  # in a line of the log
REFUSE_S_MAX: Final = 30.0  # a start waits no longer for a word
REGISTER: Final = (
    "SELECT pg_try_advisory_lock_shared($1::integer, $2::integer), "
    "set_config('application_name', left('chatd watch ' || $3::text, 63), false)"
)
UNREGISTER: Final = "SELECT pg_advisory_unlock_shared($1::integer, $2::integer)"
REMEDY: Final = (
    "they do not deliver to each other's users; give all nodes of this database the same redis_url and redis_prefix, "
    "or stop the one that is too many"
)


class Other(NamedTuple):
    """Another node: the number of its lock, and what can be said of it."""

    key: int
    name: str


def key_of(boot: str) -> int:
    """The number that stands for a life of a node, as PostgreSQL shows it (an oid)."""
    return int(boot[:8], 16)


def _signed(key: int) -> int:
    """The same as the integer that PostgreSQL's function takes."""
    return key - (1 << 32) if key >= 1 << 31 else key


class Judge:
    """Who has been unheard for longer than `grace_s`. Pure."""

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        self._since: dict[int, float] = {}

    def unheard(self, others: Iterable[Other], heard: Set[int] | None, now: float) -> list[Other]:
        """`heard`: those that Redis lists; None: it cannot tell now, and nobody is judged."""
        if heard is None:
            self._since.clear()
            return []
        deaf = [other for other in others if other.key not in heard]
        self._since = {other.key: self._since.get(other.key, now) for other in deaf}
        return [other for other in deaf if now - self._since[other.key] >= self._grace_s]


def decode(rows: Iterable[Sequence[Any]]) -> list[Other]:
    """Rows of `nodes`."""
    return [
        Other(int(key), f"{name.removeprefix('chatd watch').strip() or '?'} at {address}")
        for key, name, address in rows
    ]


class Census:
    """`heard` gives the boots that Redis lists, None where it cannot tell.

    `unheard` is who is not heard now.
    """

    def __init__(
        self, *, boot: str, name: str, grace_s: float, heard: Callable[[], Set[str] | None], now: Callable[[], float]
    ) -> None:
        self._key, self.name, self._heard, self._now = key_of(boot), name, heard, now
        self._judge = Judge(max(GRACE_S, grace_s))
        self.is_serving = False  # to be registered: its lease stands in Redis, and it does not drain
        self.unheard: list[Other] = []
        self._others: list[Other] = []
        self._registered_on: Connection | None = None
        self._looked_at = self._warned_at = float("-inf")
        self._looked = asyncio.Event()

    def asks(self) -> tuple[int, float] | None:
        """Implements `watch.Errand`: about once a second, and not on the way in or out, as it is
        not for this node to judge then.
        """
        now = self._now()
        if not self.is_serving or now - self._looked_at < LOOK_S * 0.9:
            return None
        self._looked_at = now
        return CLASS, FRESH_S

    async def look(self, conn: Connection, nodes: Sequence[Sequence[str]] | None) -> None:
        """Implements `watch.Errand`. Raises what psycopg raises."""
        await self._register(conn)
        if not self.is_serving:
            self.unheard = []
            return
        if nodes is None:
            return
        now = self._now()
        self._others = [other for other in decode(nodes) if other.key != self._key]
        boots = self._heard()
        self._tell(
            self._judge.unheard(self._others, None if boots is None else {key_of(boot) for boot in boots}, now), now
        )
        self._looked.set()

    async def _register(self, conn: Connection) -> None:
        is_here = self._registered_on is conn
        if is_here == self.is_serving:
            return
        self._registered_on = None
        if self.is_serving:
            await psycopg.AsyncRawCursor(conn).execute(REGISTER, (CLASS, _signed(self._key), self.name))
            self._registered_on = conn
        elif not conn.closed:
            await psycopg.AsyncRawCursor(conn).execute(UNREGISTER, (CLASS, _signed(self._key)))

    def _tell(self, unheard: list[Other], now: float) -> None:
        was, self.unheard = {other.key for other in self.unheard}, unheard
        if not unheard:
            if was:
                log.info("nodes.unheard_over")
                self._warned_at = float("-inf")
        elif now - self._warned_at >= REPEAT_S or {other.key for other in unheard} - was:
            self._warned_at = now
            log.warning(
                "nodes.unheard", nodes=len(unheard), names=[other.name for other in unheard[:NAMES_MAX]], remedy=REMEDY
            )

    async def refuse(self) -> None:
        """Return when all nodes here are heard; raises SettingError where one is not, for longer
        than the grace.
        """
        try:
            async with asyncio.timeout(REFUSE_S_MAX):
                while True:
                    self._looked.clear()
                    await self._looked.wait()
                    if self.unheard:
                        names = ", ".join(other.name for other in self.unheard[:NAMES_MAX])
                        raise SettingError(
                            f"redis_url: {len(self.unheard)} other node(s) are at work here and are not heard ({names}): {REMEDY}"
                        )
                    boots = self._heard()
                    if boots is not None and {other.key for other in self._others} <= {key_of(boot) for boot in boots}:
                        return
        except TimeoutError:
            log.warning("nodes.unknown", msg="whether other nodes work on this database could not be learned")
