"""One client's TCP connection: bytes to frames to the session, and back in one write a loop turn.

    HANDSHAKE ──101──► OPEN (──► FULL) ──close()──► CLOSING ──► CLOSED
        └── plain HTTP: answered ─────────┘

Guarantees: all output of a loop turn goes out in one `write`, and that of several turns while the node is behind (`flushing`); what waits for a
client that does not read is bounded, and past the bound the client is closed with a code that says so; nothing of a connection is a task or a
timer: `Hub.sweep` looks at all of them, once a second. When the transport is full we also stop reading, so that a client cannot ask for what it does
not take.

The hub holds all connections and knows the limits on them (per node, per address, not yet authenticated). Neighbours: `handshake` (before), `framing`
(bytes <-> frames), `chat` (what a session's frames do).
"""

from __future__ import annotations

import asyncio
import enum
import itertools
import time
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from typing import Final, Literal, cast

import structlog

from chatd import addresses, framing, protocol
from chatd.access_log import AccessLog
from chatd.addresses import Networks
from chatd.arrival import Sources
from chatd.chat import Chat
from chatd.errors import CloseCode, Refused
from chatd.flushing import Flusher
from chatd.framing import Failure, FrameReader, PeerClose, Ping, Pong
from chatd.handshake import Handshake, Pages, refusal
from chatd.limits import TokenBucket
from chatd.opening import Services
from chatd.session import Session, State

logger = structlog.get_logger("connection")

SWEEP_S: Final = 1.0
PING_AT: Final = 0.4  # of heartbeat_ms without a byte: a ping goes out
CLOSE_S: Final = 3.0  # for the peer's part of the closing handshake
WRITE_HIGH_BYTES: Final = 65_536  # handed to the transport at most; the rest waits in our own queue, which is bounded and let go at once


class Phase(enum.Enum):
    HANDSHAKE = "handshake"
    OPEN = "open"
    FULL = "full"  # the client does not read; it is closed at the end of the loop turn
    CLOSING = "closing"
    CLOSED = "closed"


class Connection(asyncio.Protocol):
    """Implements `session.Sink`. Slotted and lean: ten thousands of them are idle."""

    __slots__ = (
        "_close_code", "_handshake", "_hub", "_out", "_out_bytes", "_paused", "_phase", "_pinged_at", "_reader", "_session", "_transport",
        "address", "bytes_in", "bytes_out", "counted", "deadline", "heard_at", "number", "since",
    )  # fmt: skip

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._phase = Phase.HANDSHAKE
        self._handshake: Handshake | None = None
        self._reader: FrameReader | None = None
        self._session: Session | None = None
        self._transport: asyncio.Transport | None = None
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._paused = False
        self._pinged_at = 0.0
        self._close_code = 0
        self.address = ""  # the client's; that of a proxy until the handshake is over
        self.counted = ""  # what the limit by address counts it as; empty: it does not yet
        self.number = 0  # of this node's connections
        self.since = 0.0
        self.bytes_in = self.bytes_out = 0
        self.heard_at = 0.0
        self.deadline = 0.0  # of the handshake, of hello, of closing; whichever it is in

    # ---- asyncio's side -------------------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES)
        name = self._transport.get_extra_info("peername")
        self.address = addresses.plain(str(name[0])) if isinstance(name, tuple) else ""  # it has left already
        sources = self._hub.sources
        arrival = sources.arrival(self.address, partial(self._hub.locate, self)) if sources.trusted else None
        if not self._hub.admit(self, is_known=arrival is None):
            self._phase = Phase.CLOSED
            self._transport.write(refusal(HTTPStatus.SERVICE_UNAVAILABLE))
            self._transport.close()
            return
        self._handshake = Handshake(self._hub.pages, self._hub.origins, arrival)

    def connection_lost(self, exc: Exception | None) -> None:
        was, self._phase = self._phase, Phase.CLOSED
        self._out, self._out_bytes, self._reader, self._handshake = [], 0, None, None
        self._hub.gone(self)
        if was is not Phase.CLOSED and self._session is not None:
            self._end_session("lost" if not self._close_code else "")
        self._transport = self._session = None  # the session holds this one: they are not to wait for the collector

    def data_received(self, data: bytes) -> None:
        self.heard_at = self._hub.now()
        self.bytes_in += len(data)
        if self._phase is Phase.HANDSHAKE:
            try:
                self._shake(data)
            except Exception:  # as below
                logger.exception("handshake.bug")
                self.abort()
            return
        reader, session = self._reader, self._session
        if reader is None or session is None:
            if self._phase is Phase.CLOSING and self._transport is not None:
                self._transport.close()  # after a broken frame nothing can be read; but the peer has seen our close, and answers
            return
        try:
            self._read(reader, session, data)
        except Exception:  # a bug of ours must not take others down: this connection ends, loudly
            logger.exception("connection.bug", user=_user_of(session))
            self.close(CloseCode.INTERNAL, "internal error")

    def eof_received(self) -> bool:
        return False  # a half-closed peer cannot answer: the transport closes itself

    def pause_writing(self) -> None:
        self._paused = True
        if self._session is not None and self._session.drained is None:
            self._session.drained = self._hub.loop.create_future()
        if self._transport is not None and self._phase is Phase.OPEN:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._paused = False
        self.flush()
        if self._paused:  # it was full again at once
            return
        if self._session is not None and isinstance(waiter := self._session.drained, asyncio.Future):
            self._session.drained = None
            if not waiter.done():
                waiter.set_result(None)
        if self._transport is not None and not self._transport.is_closing() and not self._transport.is_reading():
            self._transport.resume_reading()

    # ---- in -------------------------------------------------------------------------------------------------------------------------

    def _shake(self, data: bytes) -> None:
        assert self._handshake is not None
        assert self._transport is not None
        answer = self._handshake.feed(data)
        if answer is None:
            return
        self._handshake = None
        self._transport.write(answer.data)
        if answer.refused:
            self._hub.refused(answer.refused, self.address)
        if not answer.upgraded:
            self._phase = Phase.CLOSED
            self._transport.close()
            return
        hub = self._hub
        self._phase = Phase.OPEN
        self._reader = FrameReader(hub.frame_bytes_max)
        self._session = Session(self, TokenBucket(hub.frames_per_s, hub.frames_burst), self.heard_at, hub.bounds)
        self.deadline = self.heard_at + hub.hello_s
        hub.shaken(self)
        if answer.rest:
            self.data_received(answer.rest)

    def _read(self, reader: FrameReader, session: Session, data: bytes) -> None:
        hub, now = self._hub, self.heard_at
        for event in reader.feed(data):
            if self._phase is not Phase.OPEN and type(event) is not PeerClose:
                continue  # we have said goodbye: only the peer's close matters
            if type(event) is bytes:
                waits = session.state is State.AWAIT_HELLO
                hub.handle(session, session.receive(event, now))
                if waits and session.state is not State.AWAIT_HELLO:
                    hub.authenticated(self)
            elif type(event) is Ping:
                if session.frames.take(now):  # RFC 6455 5.5.3: one may answer the most recent ping alone
                    self.send(framing.encode_pong(event.data))
            elif type(event) is Pong:
                pass
            elif type(event) is PeerClose:
                self._peer_closed(event)
                return
            elif type(event) is Failure:
                self._reader = None
                self.close(event.code, event.reason)

    def _peer_closed(self, event: PeerClose) -> None:
        if self._phase is Phase.OPEN:
            self.close(event.code or CloseCode.NORMAL, "", log_reason="client")
        self.flush()
        if self._transport is not None:
            self._transport.close()

    # ---- out ------------------------------------------------------------------------------------------------------------------------

    def send(self, frame: bytes) -> None:
        """Queue a whole frame. It leaves at the end of the loop turn or soon after (`Flusher`), or when the peer reads again."""
        if self._phase is not Phase.OPEN:
            return
        out = self._out
        if not out and not self._paused:
            self._hub.to_flush(self)
        out.append(frame)
        self._out_bytes += len(frame)
        if self._out_bytes > self._hub.flush_bytes:
            self._send_much()

    def _send_much(self) -> None:
        """More than is to wait for the turn's end, or for a client that does not read."""
        if not self._paused:
            self.flush()
        elif self._out_bytes > self._hub.out_queue_bytes_max:
            self._hub.services.metrics.slow_consumers += 1
            self._out, self._out_bytes = [], 0
            # Not here: the session's end changes the very maps that whoever sends to many is going through.
            self._phase = Phase.FULL
            self._hub.loop.call_soon(self.close, CloseCode.SLOW_CONSUMER, "the client does not read")

    def flush(self) -> None:
        """Hand what is queued to the transport."""
        out = self._out
        if not out or self._paused or self._transport is None:
            return
        self._transport.write(out[0] if len(out) == 1 else b"".join(out))
        self.bytes_out += self._out_bytes
        self._out, self._out_bytes = [], 0

    def close(self, code: int, reason: str, *, log_reason: str | None = None) -> None:
        """Say why, then close; the peer has `CLOSE_S` to answer. Idempotent; the session has ended when this returns."""
        if self._phase not in (Phase.OPEN, Phase.FULL) or self._transport is None:
            return
        self.flush()
        self._phase = Phase.CLOSING
        self._close_code = code
        self.deadline = self._hub.now() + CLOSE_S
        # Also into a full transport: at most 131 bytes more, and the only way to tell a peer that starts to read again.
        self._transport.write(b"".join(self._out) + framing.encode_close(code, reason))
        self._out, self._out_bytes = [], 0
        if not self._transport.is_reading() and not self._transport.is_closing():
            self._transport.resume_reading()  # or its answer would not be heard
        self._hub.closing(self)
        self._end_session(log_reason if log_reason is not None else reason)

    def ping(self) -> None:
        self.send(framing.encode_ping(b""))

    def abort(self) -> None:
        """Let go of a connection at once."""
        if self._transport is not None:
            self._transport.abort()

    def _end_session(self, reason: str) -> None:
        session = self._session
        if session is None or session.state is State.CLOSED:
            return
        hub = self._hub
        hub.access_log.closed(
            session, self.number, self.address, self._close_code, reason, since=self.since, now=hub.now(), bytes_in=self.bytes_in,
            bytes_out=self.bytes_out,
        )  # fmt: skip
        self._hub.chat.closed(session)

    # ---- the sweep's side -----------------------------------------------------------------------------------------------------------

    @property
    def phase(self) -> Phase:
        return self._phase

    @property
    def session(self) -> Session | None:
        return self._session

    def facts(self) -> dict[str, object]:
        """For `chatd user show`: whose connection, and what waits for it. `takes` False: the client does not read."""
        waiting = self._out_bytes + (0 if self._transport is None else self._transport.get_write_buffer_size())
        return {
            "id": self._hub.access_log.id(self.number), "address": self.address, "queue_bytes": waiting, "takes": not self._paused,
            "bytes_in": self.bytes_in, "bytes_out": self.bytes_out,
        }  # fmt: skip

    def check(self, now: float, now_ms: int, ping_s: float, lost_s: float) -> None:
        """Heartbeat and the token's end; called about once a second."""
        silent = now - self.heard_at
        if silent > ping_s:
            if self._pinged_at <= self.heard_at:  # also where a sweep came too late for that: nobody is lost unasked
                self._pinged_at = now
                self.ping()
            elif silent > lost_s and now - self._pinged_at > SWEEP_S / 2:  # nor before it can answer: a late sweep is followed by another at once
                self._lost()
                return
        session = self._session
        if session is not None and session.state is State.LIVE and now_ms >= session.exp_ms:
            self.close(CloseCode.TOKEN_EXPIRED, "the token has ended")

    def _lost(self) -> None:
        metrics = self._hub.services.metrics
        if self._paused:
            metrics.slow_consumers += 1
            self._out, self._out_bytes = [], 0
            self.close(CloseCode.SLOW_CONSUMER, "the client does not read")
        else:
            metrics.heartbeats_lost += 1
            self.close(CloseCode.HEARTBEAT, "nothing heard")


def _user_of(session: Session) -> str | None:
    return None if session.user is None else session.user.id


class Hub:
    """All connections of a node, their limits, and the work that is done for all of them at once."""

    def __init__(self, services: Services, chat: Chat, pages: Pages, loop: asyncio.AbstractEventLoop, boot: str = "") -> None:
        s = services.settings
        self.services, self.chat, self.pages, self.loop = services, chat, pages, loop
        self.now = services.now
        self.handle = chat.handle
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
        self.access_log = AccessLog(services.metrics, boot, names_proxies=bool(s.trusted_proxies))
        self._numbers = itertools.count(1)
        self._addresses: dict[str, int] = {}
        self._shaking: dict[Connection, None] = {}  # in the handshake, the oldest first
        self._awaiting: dict[Connection, None] = {}  # hello, the oldest first
        self._closing: dict[Connection, None] = {}  # the oldest first
        self.flusher = Flusher(loop.call_soon, loop.call_later, time.perf_counter)
        self.to_flush = self.flusher.add

    # ---- limits ---------------------------------------------------------------------------------------------------------------------

    def admit(self, connection: Connection, *, is_known: bool) -> bool:
        """Room for one more? The caller says 503 if not. `is_known`: its address is the client's, and counts."""
        s, metrics = self.services.settings, self.services.metrics
        if not connection.address:
            return self.refused("left", "")
        if self.sources.refuses(connection.address):
            return self.refused("not_a_proxy", connection.address)
        if len(self.connections) >= s.connections_max:
            return self.refused("connections_max", connection.address)
        if len(self._shaking) + len(self._awaiting) >= s.unauthenticated_max:
            return self.refused("unauthenticated_max", connection.address)
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
        return True

    def locate(self, connection: Connection, address: str, differ: bool) -> bool:
        """A proxy's headers tell the client's address: room for one more of it?"""
        connection.address = address
        if differ:
            self.access_log.headers_differ(address)
        return self._count(connection)

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

    def shaken(self, connection: Connection) -> None:
        """Its handshake is done: it is to say hello."""
        self._shaking.pop(connection, None)
        self._awaiting[connection] = None

    def authenticated(self, connection: Connection) -> None:
        """It has said hello: from now on its own limits hold."""
        self._awaiting.pop(connection, None)

    def closing(self, connection: Connection) -> None:
        self._awaiting.pop(connection, None)
        self._closing[connection] = None

    def opened(self, session: Session) -> None:
        """Its hello was answered with a welcome."""
        connection = cast("Connection", session.sink)
        self.access_log.opened(session, connection.number, connection.address, self.now())

    def hello_refused(self, session: Session, hello: protocol.Hello, error: Refused) -> None:
        connection = cast("Connection", session.sink)
        self.access_log.hello_refused(connection.number, connection.address, hello.device, error, self.now())

    def gone(self, connection: Connection) -> None:
        if connection not in self.connections:
            return
        self.connections.discard(connection)
        if not self.connections:
            self.empty.set()
        for waiting in (self._shaking, self._awaiting, self._closing):
            waiting.pop(connection, None)
        if key := connection.counted:
            if self._addresses[key] == 1:
                del self._addresses[key]
            else:
                self._addresses[key] -= 1

    # ---- for all --------------------------------------------------------------------------------------------------------------------

    def sweep(self) -> None:
        """Deadlines, heartbeats and tokens of all connections: one pass a second, some 0.2 us a connection."""
        now, now_ms = self.now(), self.services.now_ms()
        self._expire(self._shaking, now, lambda c: c.abort(), "handshake_timeout")
        self._expire(self._awaiting, now, lambda c: c.close(CloseCode.HELLO_TIMEOUT, "no hello"), "hello_timeout")
        self._expire(self._closing, now, lambda c: c.abort())
        heartbeat_s = self.services.settings.heartbeat_ms / 1000
        ping_s, lost_s = heartbeat_s * PING_AT, max(heartbeat_s - SWEEP_S, heartbeat_s * 0.8)
        for connection in list(self.connections):
            if connection.phase is Phase.OPEN:
                connection.check(now, now_ms, ping_s, lost_s)

    def _expire(self, waiting: dict[Connection, None], now: float, end: Callable[[Connection], None], refused: str = "") -> None:
        for connection in list(waiting):
            if connection.deadline > now:
                break  # they are in order of their deadlines
            if connection in waiting:
                if refused:
                    self.refused(refused, connection.address)
                end(connection)
