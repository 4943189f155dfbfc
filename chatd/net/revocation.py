"""Sessions end when a reload removes the key that their token was checked with: close code 4001.

    reload ─► look at every connection, LOOKS_A_TURN at a time ─► active sessions of removed keys, then idle ones ─► end ENDS_A_TURN, pause, ...

A session belongs to the key of its newest token (hello or `refresh`). It has that key in the loop
turn in which the token is checked, so a hello under way is seen here, or is judged by the new keys.
Each session is judged again when its turn comes: it may have brought a token of another key
meanwhile. The next reload takes the place of what is left of this one.

Ends are spread, because each of these clients fetches a token and says hello again: 2,000 a second,
which is a drain's pace at 10,000 clients. Sessions that have asked for something of late go first,
as one that sends does more harm than one that is idle.
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
    from chatd.chat.auth import Keys
    from chatd.core.identity import Key
    from chatd.net.connection import Connection

log = structlog.get_logger("keys")

LOOKS_A_TURN: Final = 2_000  # some 1 ms
ENDS_A_TURN: Final = 20  # some 2 ms: an end is a write to the socket, and a line of the log
PAUSE_S: Final = 0.01
ACTIVE_S: Final = 10.0  # who asked for something within it goes first


class Revocation:
    """One of a node.

    `connections`: those of the node, as they come and go. `now`: seconds, of the sessions' own
    clock.
    """

    def __init__(
        self,
        connections: Collection[Connection],
        *,
        now: Callable[[], float],
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        self._connections, self._now, self._spawn = connections, now, spawn
        self._task: asyncio.Task[None] | None = None

    def begin(self, keys: Keys) -> None:
        """These are the keys now: end the sessions of all others.

        Call it in the turn in which tokens are first judged by them.
        """
        if self._task is not None:
            self._task.cancel()  # it holds nothing
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

    async def _look(self, verdicts: _Verdicts) -> list[Connection]:
        """The connections of removed keys, in the order in which they are to end."""
        active: list[Connection] = []
        idle: list[Connection] = []
        since, all_of_them = self._now() - ACTIVE_S, iter(list(self._connections))
        while some := list(islice(all_of_them, LOOKS_A_TURN)):
            for connection in some:
                if (session := connection.session) is not None and verdicts.has_removed_key(connection):
                    (active if session.active_at > since else idle).append(connection)
            await asyncio.sleep(0)
        return active + idle


class _Verdicts:
    """Which keys are not among these; each is compared once, as sessions share the object of their
    key.
    """

    __slots__ = ("_keys", "_removed")

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._removed: dict[Key, bool] = {}

    def has_removed_key(self, connection: Connection) -> bool:
        """Has it an open session whose token was checked with a key that is gone?"""
        session = connection.session
        if session is None or session.gone or (key := session.key) is None:
            return False
        if (removed := self._removed.get(key)) is None:
            removed = self._removed[key] = not self._keys.keeps(key)
        return removed
