"""Ends sessions whose token was checked with a key that a reload removed: close code 4001.

    reload ─► check all connections, LOOKS_A_TURN at a time
           ─► sessions of removed keys, active ones first ─► end ENDS_A_TURN, pause, ...

A session belongs to the key of its newest token (hello or `refresh`). It gets that key in the loop
turn in which the token is checked, so a hello under way is either seen here or checked with the new
keys. Each session is checked again when its turn comes, because it may have a token of another key
by then. The next reload replaces the rest of this one.

The ends are spread over time, because each of these clients fetches a token and says hello again:
2,000 a second, which is the pace of a drain at 10,000 clients. Sessions with a recent request end
first: one that sends does more harm than an idle one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import structlog

from chatd.errors import CloseCode
from chatd.net.access_log import KEY_REMOVED

if TYPE_CHECKING:
    from chatd.chat.auth import KeySet
    from chatd.core.identity import Key
    from chatd.net.connection import ClientConnection

log = structlog.get_logger("keys")

LOOKS_A_TURN: Final = 2_000  # some 1 ms
ENDS_A_TURN: Final = 20  # some 2 ms: an end is a write to the socket and a line of the log
PAUSE_S: Final = 0.01
ACTIVE_S: Final = 10.0  # sessions with a request in this time end first


class Revocation:
    """Ends the sessions of removed keys on this node.

    `connections`: the live set of the node's connections. `now`: seconds, the sessions' clock.
    """

    def __init__(
        self,
        connections: Collection[ClientConnection],
        *,
        now: Callable[[], float],
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        self._connections, self._now, self._spawn = connections, now, spawn
        self._task: asyncio.Task[None] | None = None

    def begin(self, keys: KeySet) -> None:
        """End the sessions whose key is not among `keys`.

        Call it in the loop turn in which tokens are first checked with these keys.
        """
        if self._task is not None:
            self._task.cancel()  # it holds nothing that must be given back
        self._task = self._spawn(self._run(_Verdicts(keys)))

    async def _run(self, verdicts: _Verdicts) -> None:
        left = await self._look(verdicts)
        began, ended = self._now(), 0
        for at in range(0, len(left), ENDS_A_TURN):
            if at:
                await asyncio.sleep(PAUSE_S)
            for connection in left[at : at + ENDS_A_TURN]:
                if verdicts.has_removed_key(connection):
                    connection.close(CloseCode.UNAUTHORIZED, KEY_REMOVED)
                    ended += 1
        if ended:
            log.info("keys.sessions_ended", sessions=ended, seconds=round(self._now() - began, 3))

    async def _look(self, verdicts: _Verdicts) -> list[ClientConnection]:
        """The connections of removed keys, in the order in which they end."""
        active: list[ClientConnection] = []
        idle: list[ClientConnection] = []
        since, all_of_them = self._now() - ACTIVE_S, iter(list(self._connections))
        while some := list(islice(all_of_them, LOOKS_A_TURN)):
            for connection in some:
                if (session := connection.session) is not None and verdicts.has_removed_key(connection):
                    (active if session.active_at > since else idle).append(connection)
            await asyncio.sleep(0)
        return active + idle


class _Verdicts:
    """Decides whether a key was removed; compares each key object once, as sessions share it."""

    __slots__ = ("_keys", "_removed")

    def __init__(self, keys: KeySet) -> None:
        self._keys = keys
        self._removed: dict[Key, bool] = {}

    def has_removed_key(self, connection: ClientConnection) -> bool:
        """True if it has an open session whose token was checked with a removed key."""
        session = connection.session
        if session is None or session.gone or (key := session.key) is None:
            return False
        if (removed := self._removed.get(key)) is None:
            removed = self._removed[key] = not self._keys.keeps(key)
        return removed
