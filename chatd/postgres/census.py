"""Finds other nodes on this database that this node does not hear: they share no Redis with it.

    node ──shared advisory lock (CLASS, its incarnation)──► PostgreSQL
                                                             │ all holders
         a warning, or no start ◄── those not heard ◄── Census

Two nodes on one database whose `redis_url` or `redis_prefix` differs, or is missing, ack and store
everything, and do not deliver live to each other's users: each learns of the other's entries only
at the next hello. No error shows that. So each node registers in PostgreSQL by a lock of its
session, which costs no writes and goes with the session, however that ends. A node is heard if
Redis lists it; a node without Redis hears nobody.

No false alarm: a draining node has given its lock back, so the new node of a rolling restart sees
it for a second at most; another node must be unheard for `grace_s` without a break; a node
registers once its lease is in Redis; a session that has stopped asking is of a dead host. While
Redis is away no node is judged: that is another outage, with its own message.

Rejected: a row for each node with a time in it (a write a second each); comparing URLs (one Redis
has many names). It runs on the watch's connection.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import psycopg
import structlog

from chatd.errors import SettingError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence, Set

    from chatd.postgres.connection import PgConnection

log = structlog.get_logger("census")

CLASS: Final = 0x63686E64  # "chnd"
FRESH_S: Final = 3.0  # since a session's last statement; a watch asks once a second
GRACE_S: Final = 3.0
LOOK_S: Final = 1.0
REPEAT_S: Final = 600.0
NAMES_MAX: Final = 8  # in a line of the log
REFUSE_S_MAX: Final = 30.0  # a start waits no longer for a result
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
    """Another node: the key of its lock, and its name and address for a message."""

    key: int
    name: str


def key_of(incarnation: str) -> int:
    """The lock key of an incarnation, as PostgreSQL shows it (an oid)."""
    return int(incarnation[:8], 16)


def _signed(key: int) -> int:
    """The key as the signed integer that PostgreSQL's function takes."""
    return key - (1 << 32) if key >= 1 << 31 else key


class Judge:
    """Finds nodes that were unheard for at least `grace_s`. Pure."""

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        self._since: dict[int, float] = {}

    def unheard(self, others: Iterable[Other], heard: Set[int] | None, now: float) -> list[Other]:
        """`heard`: keys that Redis lists; None: it is away, and no node is judged."""
        if heard is None:
            self._since.clear()
            return []
        silent = [other for other in others if other.key not in heard]
        self._since = {other.key: self._since.get(other.key, now) for other in silent}
        return [other for other in silent if now - self._since[other.key] >= self._grace_s]


def decode(rows: Iterable[Sequence[Any]]) -> list[Other]:
    """Decode the rows of nodes.sql."""
    return [
        Other(int(key), f"{name.removeprefix('chatd watch').strip() or '?'} at {address}")
        for key, name, address in rows
    ]


class Census:
    """`heard` gives the incarnations that Redis lists, None where Redis is away.

    `unheard`: the nodes that are not heard now.
    """

    def __init__(
        self,
        *,
        incarnation: str,
        name: str,
        grace_s: float,
        heard: Callable[[], Set[str] | None],
        now: Callable[[], float],
    ) -> None:
        self._key, self.name, self._heard, self._now = key_of(incarnation), name, heard, now
        self._judge = Judge(max(GRACE_S, grace_s))
        self.is_serving = False  # registered: its lease is in Redis, and it does not drain
        self.unheard: list[Other] = []
        self._others: list[Other] = []
        self._registered_on: PgConnection | None = None
        self._looked_at = self._warned_at = float("-inf")
        self._looked = asyncio.Event()

    def asks(self) -> tuple[int, float] | None:
        """Implements `watch.Errand`: about once a second, and only while this node serves."""
        now = self._now()
        if not self.is_serving or now - self._looked_at < LOOK_S * 0.9:
            return None
        self._looked_at = now
        return CLASS, FRESH_S

    async def look(self, conn: PgConnection, nodes: Sequence[Sequence[str]] | None) -> None:
        """Implements `watch.Errand`. Raises what psycopg raises."""
        await self._register(conn)
        if not self.is_serving:
            self.unheard = []
            return
        if nodes is None:
            return
        now = self._now()
        self._others = [other for other in decode(nodes) if other.key != self._key]
        heard = self._heard()
        keys = None if heard is None else {key_of(incarnation) for incarnation in heard}
        self._report(self._judge.unheard(self._others, keys, now), now)
        self._looked.set()

    async def _register(self, conn: PgConnection) -> None:
        is_here = self._registered_on is conn
        if is_here == self.is_serving:
            return
        self._registered_on = None
        if self.is_serving:
            await psycopg.AsyncRawCursor(conn).execute(REGISTER, (CLASS, _signed(self._key), self.name))
            self._registered_on = conn
        elif not conn.closed:
            await psycopg.AsyncRawCursor(conn).execute(UNREGISTER, (CLASS, _signed(self._key)))

    def _report(self, unheard: list[Other], now: float) -> None:
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
        """Return once all nodes on this database are heard.

        Raises SettingError if one was unheard for longer than the grace.
        """
        try:
            async with asyncio.timeout(REFUSE_S_MAX):
                while True:
                    self._looked.clear()
                    await self._looked.wait()
                    if self.unheard:
                        names = ", ".join(other.name for other in self.unheard[:NAMES_MAX])
                        raise SettingError(
                            f"redis_url: {len(self.unheard)} other node(s) are at work here and are not heard"
                            f" ({names}): {REMEDY}"
                        )
                    heard = self._heard()
                    if heard is not None and {other.key for other in self._others} <= set(map(key_of, heard)):
                        return
        except TimeoutError:
            log.warning("nodes.unknown", msg="whether other nodes work on this database could not be learned")
