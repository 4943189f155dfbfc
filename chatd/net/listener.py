"""All connections of a node: who may come in, how long each phase may take, and what is done for
all of them at once.

    Connection ──admit, locate──► Hub ──► room by node, by address, without a hello (`strangers`)
               ◄──abort, close── sweep (once a second): deadlines, heartbeats, tokens

Also what they share: the intakes (how much of what has come is read in a turn) and the flusher
(when output leaves).
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from typing import Literal

from chatd import addresses, protocol
from chatd.addresses import Networks
from chatd.chat.handlers import Chat
from chatd.chat.services import Services
from chatd.core.read_pacing import SESSIONS_BUDGET, STRANGERS_BUDGET, Intake
from chatd.core.unauthenticated import Unauthenticated
from chatd.core.write_pacing import Flusher
from chatd.errors import CloseCode
from chatd.net.access_log import AccessLog
from chatd.net.connection import PING_AT, SWEEP_S, WRITE_HIGH_BYTES, Connection, Phase
from chatd.wire.arrival import Sources
from chatd.wire.handshake import HttpHandler


class Hub:
    """All connections of a node, their limits, and the work that is done for all of them at once."""

    def __init__(
        self, services: Services, chat: Chat, pages: HttpHandler, access_log: AccessLog, loop: asyncio.AbstractEventLoop
    ) -> None:
        s = services.settings
        self.services, self.chat, self.pages, self.loop = services, chat, pages, loop
        self.now = services.clock.now
        self.origins = tuple(s.origins)
        self.bounds = protocol.Bounds(s.body_bytes_max, s.watch_max, s.history_max)
        self.frame_bytes_max, self.out_queue_bytes_max = s.frame_bytes_max, s.out_queue_bytes_max
        self.flush_bytes = min(WRITE_HIGH_BYTES, s.out_queue_bytes_max)
        self.frames_per_s, self.frames_burst = s.frames_per_s, s.frames_burst
        self.handshake_s, self.hello_s = s.handshake_ms / 1000, s.hello_ms / 1000
        self.connections: set[Connection] = set()
        self.empty = asyncio.Event()  # no connection is left
        self.empty.set()
        self.sources = Sources(Networks(s.trusted_proxies), s.forwarded_header, s.proxy_protocol)
        self.access_log = access_log
        self._numbers = itertools.count(1)
        self._addresses: dict[str, int] = {}
        self._unauthenticated: Unauthenticated[Connection] = Unauthenticated(
            s.unauthenticated_max, s.unauthenticated_per_address_max
        )
        self._shaking: dict[Connection, None] = {}  # in the handshake, the oldest first
        self._awaiting: dict[Connection, None] = {}  # hello, the oldest first
        self._closing: dict[Connection, None] = {}  # the oldest first
        self.sessions = Intake(SESSIONS_BUDGET, loop.call_soon)
        self.strangers = Intake(STRANGERS_BUDGET, loop.call_soon)
        self.flusher = Flusher(loop.call_soon, loop.call_later, time.perf_counter)
        self.to_flush = self.flusher.add

    # ---- limits ----------------------------------------------------------------------------------

    def admit(self, connection: Connection, *, is_known: bool) -> bool:
        """Room for one more?

        The caller says 503 if not. `is_known`: its address is the client's, and counts.
        """
        s, metrics = self.services.settings, self.services.metrics
        if not connection.address:
            return self.refused("left", "")
        if self.sources.refuses(connection.address):
            return self.refused("not_a_proxy", connection.address)
        if len(self.connections) >= s.connections_max:
            return self.refused("connections_max", connection.address)
        if self.chat.draining:
            return self.refused("draining", connection.address)
        if is_known and not self._count(connection):
            return False
        metrics.connections += 1
        connection.number = next(self._numbers)
        connection.heard_at = connection.since = self.now()
        connection.deadline = connection.heard_at + self.handshake_s
        self.connections.add(connection)
        self.empty.clear()
        self._shaking[connection] = None
        self._evict(self._unauthenticated.enter(connection))
        if is_known:
            self._evict(self._unauthenticated.locate(connection, connection.counted))
        return True

    def locate(self, connection: Connection, address: str, differ: bool) -> bool:
        """A proxy's headers tell the client's address: room for one more of it?"""
        connection.address = address
        if differ:
            self.access_log.headers_differ(address)
        if not self._count(connection):
            return False
        self._evict(self._unauthenticated.locate(connection, connection.counted))
        return True

    def _count(self, connection: Connection) -> bool:
        """Count it by its address, if there is room."""
        key, limit = addresses.counted_as(connection.address), self.services.settings.connections_per_address_max
        n = self._addresses.get(key, 0)
        self.access_log.counted(connection.address, n + 1, limit)
        if n >= limit:
            return self.refused("connections_per_address_max", connection.address)
        self._addresses[key] = n + 1
        connection.counted = key
        return True

    def refused(self, reason: str, address: str) -> Literal[False]:
        """Count and log a connection that gets no session."""
        self.access_log.refused(reason, address, self.now())
        return False

    def _evict(self, connection: Connection | None) -> None:
        """Its place is given to a newer one."""
        if connection is not None:
            self.refused("evicted", connection.address)
            connection.evict()

    def shaken(self, connection: Connection) -> None:
        """Its handshake is done: it is to say hello."""
        self._shaking.pop(connection, None)
        self._awaiting[connection] = None

    def authenticated(self, connection: Connection) -> None:
        """It has said hello: from now on its own limits hold."""
        self._awaiting.pop(connection, None)
        self._unauthenticated.leave(connection)

    def closing(self, connection: Connection) -> None:
        self._awaiting.pop(connection, None)
        self._closing[connection] = None

    def gone(self, connection: Connection) -> None:
        if connection not in self.connections:
            return
        self.connections.discard(connection)
        self._unauthenticated.leave(connection)
        if not self.connections:
            self.empty.set()
        for waiting in (self._shaking, self._awaiting, self._closing):
            waiting.pop(connection, None)
        if key := connection.counted:
            if self._addresses[key] == 1:
                del self._addresses[key]
            else:
                self._addresses[key] -= 1

    # ---- for all ---------------------------------------------------------------------------------

    def sweep(self) -> None:
        """Deadlines, heartbeats and tokens of all connections: one pass a second, some 0.2 us a
        connection.
        """
        now, now_ms = self.now(), self.services.clock.now_ms()
        self._expire(self._shaking, now, lambda c: c.abort(), "handshake_timeout")
        self._expire(self._awaiting, now, lambda c: c.close(CloseCode.HELLO_TIMEOUT, "no hello"), "hello_timeout")
        self._expire(self._closing, now, lambda c: c.abort())
        heartbeat_s = self.services.settings.heartbeat_ms / 1000
        ping_s, lost_s = heartbeat_s * PING_AT, max(heartbeat_s - SWEEP_S, heartbeat_s * 0.8)
        for connection in list(self.connections):
            if connection.phase is Phase.OPEN:
                connection.check(now, now_ms, ping_s, lost_s)

    def _expire(
        self, waiting: dict[Connection, None], now: float, end: Callable[[Connection], None], refused: str = ""
    ) -> None:
        for connection in list(waiting):
            if connection.deadline > now:
                break  # they are in order of their deadlines
            if connection in waiting:
                if refused:
                    self.refused(refused, connection.address)
                end(connection)
