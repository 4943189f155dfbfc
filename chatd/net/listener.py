"""All connections of a node: which are admitted, how long each phase may take, and the sweep.

    connection ──admit, locate──► Listener ──► room by node, by address, without a hello
               ◄──close, abort─── sweep (once a second): deadlines, heartbeats, tokens

It also makes what the connections share (`net/shared.py`): the intakes, which bound the input read
in a turn, and the flusher, which decides when output is written.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
import time
from collections.abc import Callable
from typing import Final, Literal

from chatd import addresses, protocol
from chatd.addresses import Networks
from chatd.chat.handlers import Chat
from chatd.chat.services import Services
from chatd.core.read_pacing import SESSIONS_BUDGET, UNAUTHENTICATED_BUDGET, Intake
from chatd.core.unauthenticated import Unauthenticated
from chatd.core.write_pacing import Flusher
from chatd.errors import CloseCode
from chatd.net import listen_errors
from chatd.net.access_log import AccessLog
from chatd.net.connection import WRITE_HIGH_BYTES, ClientConnection
from chatd.net.flow_control import Phase
from chatd.net.heartbeat import Heartbeat
from chatd.net.shared import Shared
from chatd.wire.arrival import Sources
from chatd.wire.handshake import KEEP_ALIVE_S, HttpHandler

BACKLOG: Final = 4_096  # connections that the kernel has accepted and this process has not
# SO_RCVBUF: what the kernel buffers of a client's input, and one read can bring (Linux: up to
# twice); it allows 0.6 MB/s at 100 ms.
RECEIVE_BYTES: Final = 65_536
# TCP_NOTSENT_LOWAT: the output that the kernel accepts before it can send it. With the kernel's own
# bound of 4 MB a ping waited behind 16 s of output on a line of 2 Mbit/s, and its client was closed
# as lost while it was reading.
UNSENT_BYTES: Final = 131_072


def tune(listening: socket.socket) -> None:
    """Set what the connections accepted on this socket inherit."""
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)


class Listener:
    """Implements `shared.ConnectionTable`: all connections, their limits and the sweep."""

    def __init__(
        self, services: Services, chat: Chat, http: HttpHandler, access_log: AccessLog, loop: asyncio.AbstractEventLoop
    ) -> None:
        s = services.settings
        self._settings, self._metrics, self._chat = s, services.metrics, chat
        self._now, self._now_ms = services.clock.now, services.clock.now_ms
        self._handshake_s = s.handshake_ms / 1000
        self._heartbeat = Heartbeat(s.heartbeat_ms / 1000, services.metrics)
        self._loop = loop
        self._server: asyncio.Server | None = None
        self.connections: set[ClientConnection] = set()
        self.empty = asyncio.Event()  # set while there is no connection
        self.empty.set()
        self.flusher = Flusher(loop.call_soon, loop.call_later, time.perf_counter)
        self.access_log = access_log
        self.shared: Shared[ClientConnection] = Shared(
            table=self, chat=chat, metrics=services.metrics, access_log=access_log, loop=loop, now=services.clock.now,
            http=http, origins=tuple(s.origins),
            sources=Sources(Networks(s.trusted_proxies), s.forwarded_header, s.proxy_protocol),
            bounds=protocol.Bounds(s.body_bytes_max, s.watch_max, s.history_max), frame_bytes_max=s.frame_bytes_max,
            frames_per_s=s.frames_per_s, frames_burst=s.frames_burst, hello_s=s.hello_ms / 1000,
            sessions=Intake(SESSIONS_BUDGET, loop.call_soon),
            unauthenticated=Intake(UNAUTHENTICATED_BUDGET, loop.call_soon),
            to_flush=self.flusher.add, flush_bytes=min(WRITE_HIGH_BYTES, s.out_queue_bytes_max),
            out_queue_bytes_max=s.out_queue_bytes_max,
        )  # fmt: skip
        self._numbers = itertools.count(1)
        self._addresses: dict[str, int] = {}  # connections by address
        self._unauthenticated: Unauthenticated[ClientConnection] = Unauthenticated(
            s.unauthenticated_max, s.unauthenticated_per_address_max
        )
        self._shaking: dict[ClientConnection, None] = {}  # in the handshake, oldest first
        self._kept: dict[ClientConnection, None] = {}  # between two plain HTTP requests, oldest first
        self._awaiting: dict[ClientConnection, None] = {}  # without a hello, oldest first
        self._closing: dict[ClientConnection, None] = {}  # oldest first

    async def listen(self, host: str, port: int) -> int:
        """Accept connections; port 0: the kernel chooses. Returns the port.

        Raises SettingError with a remedy.
        """
        try:
            self._server = await self._loop.create_server(
                self.make_connection, host, port, backlog=BACKLOG, reuse_address=True
            )
        except (OSError, UnicodeError) as e:
            raise listen_errors.refused("", host, port, e) from e
        for one in self._server.sockets:
            tune(one)
        return int(self._server.sockets[0].getsockname()[1])

    def close(self) -> None:
        """Accept no more. Idempotent."""
        if self._server is not None:
            self._server.close()

    def make_connection(self) -> ClientConnection:
        """The protocol of a new connection, for `loop.create_server`."""
        return ClientConnection(self.shared)

    # ---- limits ----------------------------------------------------------------------------------

    def admit(self, connection: ClientConnection, *, is_known: bool) -> bool:
        """True if there is room for one more; else the caller answers 503.

        `is_known`: its address is the client's, and counts.
        """
        s, metrics = self._settings, self._metrics
        if not connection.address:
            return self.refused("left", "")
        if self.shared.sources.refuses(connection.address):
            return self.refused("not_a_proxy", connection.address)
        if len(self.connections) >= s.connections_max:
            return self.refused("connections_max", connection.address)
        if self._chat.pipeline.draining:
            return self.refused("draining", connection.address)
        if is_known and not self._count(connection):
            return False
        metrics.connections += 1
        connection.number = next(self._numbers)
        connection.heard_at = connection.since = self._now()
        connection.deadline = connection.heard_at + self._handshake_s
        self.connections.add(connection)
        self.empty.clear()
        self._shaking[connection] = None
        self._evict(self._unauthenticated.enter(connection))
        if is_known:
            self._evict(self._unauthenticated.locate(connection, connection.counted))
        return True

    def locate(self, connection: ClientConnection, address: str, differ: bool) -> bool:
        """A proxy's headers name the client's address: True if it has room for one more."""
        connection.address = address
        if differ:
            self.access_log.headers_differ(address)
        if not self._count(connection):
            return False
        self._evict(self._unauthenticated.locate(connection, connection.counted))
        return True

    def _count(self, connection: ClientConnection) -> bool:
        """Count a connection by its address; False if that has no room."""
        key, limit = addresses.counted_as(connection.address), self._settings.connections_per_address_max
        n = self._addresses.get(key, 0)
        self.access_log.counted(connection.address, n + 1, limit)
        if n >= limit:
            return self.refused("connections_per_address_max", connection.address)
        self._addresses[key] = n + 1
        connection.counted = key
        return True

    def refused(self, reason: str, address: str) -> Literal[False]:
        """Count and log a connection that gets no session."""
        self.access_log.refused(reason, address, self._now())
        return False

    def _evict(self, connection: ClientConnection | None) -> None:
        """End a connection whose place a newer one takes."""
        if connection is not None:
            self.refused("evicted", connection.address)
            connection.evict()

    def answered(self, connection: ClientConnection) -> None:
        """A plain HTTP request was answered: the next one must follow, or the connection ends.

        It keeps its place among those without a hello: the longer it is here, the sooner a newer
        one takes it.
        """
        self._shaking.pop(connection, None)
        self._kept.pop(connection, None)
        connection.deadline = self._now() + KEEP_ALIVE_S
        self._kept[connection] = None

    def shaken(self, connection: ClientConnection) -> None:
        """Its handshake is done: a hello must follow."""
        self._shaking.pop(connection, None)
        self._kept.pop(connection, None)
        self._awaiting[connection] = None

    def authenticated(self, connection: ClientConnection) -> None:
        """It has said hello: the limits of its user apply from now on."""
        self._awaiting.pop(connection, None)
        self._unauthenticated.leave(connection)

    def closing(self, connection: ClientConnection) -> None:
        """It waits for the client's part of the closing handshake."""
        self._awaiting.pop(connection, None)
        self._closing[connection] = None

    def gone(self, connection: ClientConnection) -> None:
        """It has ended. Idempotent."""
        if connection not in self.connections:
            return
        self.connections.discard(connection)
        self._unauthenticated.leave(connection)
        if not self.connections:
            self.empty.set()
        for waiting in (self._shaking, self._kept, self._awaiting, self._closing):
            waiting.pop(connection, None)
        if key := connection.counted:
            if self._addresses[key] == 1:
                del self._addresses[key]
            else:
                self._addresses[key] -= 1

    # ---- the sweep -------------------------------------------------------------------------------

    def sweep(self) -> None:
        """Check deadlines, heartbeats and tokens of all connections; call it once a second.

        It takes some 0.2 us a connection.
        """
        now, now_ms = self._now(), self._now_ms()
        self._expire(self._shaking, now, lambda c: c.abort(), "handshake_timeout")
        self._expire(self._kept, now, lambda c: c.abort())
        self._expire(self._awaiting, now, lambda c: c.close(CloseCode.HELLO_TIMEOUT, "no hello"), "hello_timeout")
        self._expire(self._closing, now, lambda c: c.abort())
        for connection in list(self.connections):
            if connection.phase is Phase.OPEN:
                self._heartbeat.check(connection, now, now_ms)

    def _expire(
        self,
        waiting: dict[ClientConnection, None],
        now: float,
        end: Callable[[ClientConnection], None],
        refused: str = "",
    ) -> None:
        for connection in list(waiting):
            if connection.deadline > now:
                break  # in order of deadlines
            if connection in waiting:
                if refused:
                    self.refused(refused, connection.address)
                end(connection)
