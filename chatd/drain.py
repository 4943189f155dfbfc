"""Empties a node without a loss, within `drain_ms`: the part of its end before its parts are
stopped.

    notice to clients ─► wait for hellos ─► wait for sends ─► wait for the lanes ─► close 1012

The caller has stopped new connections and new entries before (`Node.drain`). Each wait ends at the
deadline at the latest; what is then without an answer was not acked.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import TYPE_CHECKING, Any, Final

import structlog

from chatd import protocol
from chatd.core.session import State
from chatd.errors import CloseCode
from chatd.wire.frames import encode_text

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from chatd.chat.handlers import Chat
    from chatd.net.listener import Listener
    from chatd.postgres.lanes import Lanes

log = structlog.get_logger("server")  # the name that operators know these events by

MARGIN_MS: Final = 1_500  # part of `drain_ms` that is kept for closing the database and the process
# Longest wait for hellos under way, which get their notice after the welcome.
HELLOS_S_MAX: Final = 3.0
# Users stay online for the delay in their notice plus this time, so that nobody looks offline
# during an upgrade
GRACE_S: Final = 5.0
NOTICE_MS_PER_CLIENT: Final = 1.0  # reconnects are spread over so much time for each client
NOTICE_MS_MIN: Final = 200.0
NOTICE_MS_MAX: Final = 5_000
# Times the last start of a node without others: the drain comes first, and a busy machine is
# slower
RESTART_MARGIN: Final = 1.5


class Drain:
    """One drain. `grace_s`: how long a user without a session counts as online from now on."""

    def __init__(
        self,
        chat: Chat,
        listener: Listener,
        lanes: Lanes,
        *,
        drain_ms: int,
        restart_ms: float,
        now: Callable[[], float],
    ) -> None:
        """`restart_ms`: how long no node serves; 0 if other nodes do.

        `now`: seconds, the loop's clock.
        """
        self._chat, self._listener, self._lanes, self._now = chat, listener, lanes, now
        self._deadline = now() + max(0, drain_ms - MARGIN_MS) / 1000
        self._first_ms, self._last_ms = notice_ms(len(listener.connections), restart_ms)
        self.grace_s = self._last_ms / 1000 + GRACE_S

    async def run(self) -> None:
        """Return when all is answered and every connection is closed, or at the deadline."""
        chat, listener, lanes = self._chat, self._listener, self._lanes
        log.info("drain.begun", connections=len(listener.connections), pending=lanes.pending)
        chat.life.grace_s, chat.life.notice = self.grace_s, self._notice
        for connection in list(listener.connections):
            if (session := connection.session) is not None and session.state is State.LIVE:
                connection.send(encode_text(self._notice()))
        await self._until(chat.life.hellos_done(), min(self._deadline, self._now() + HELLOS_S_MAX))
        await self._until(chat.sends_queued(), self._deadline)
        await self._until(lanes.idle(), self._deadline)
        for connection in list(listener.connections):
            if connection.session is None:
                connection.abort()
            connection.close(CloseCode.RESTART, "restart")
        await self._until(listener.empty.wait(), self._deadline)
        log.info("drain.done", left=len(listener.connections), pending=lanes.pending)

    def _notice(self) -> bytes:
        """A `notice` with a delay of its own, so that the clients do not reconnect at once."""
        return protocol.frame("notice", kind="drain", retry_ms=int(random.uniform(self._first_ms, self._last_ms)))

    async def _until(self, event: Coroutine[Any, Any, object], deadline: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                await event


def notice_ms(connections: int, restart_ms: float) -> tuple[float, float]:
    """The earliest and the latest time (ms) at which clients reconnect.

    It starts at 0 if other nodes serve, else when this node is expected to serve again.
    """
    window_ms = min(NOTICE_MS_MAX, max(NOTICE_MS_MIN, connections * NOTICE_MS_PER_CLIENT))
    first_ms = min(NOTICE_MS_MAX, restart_ms * RESTART_MARGIN)
    return first_ms, first_ms + window_ms
