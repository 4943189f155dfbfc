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
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Final, cast

import structlog

from chatd import framing, protocol
from chatd.chat import Chat
from chatd.errors import CloseCode
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
        "_close_code", "_handshake", "_hub", "_out", "_out_bytes", "_paused", "_peer", "_phase", "_pinged_at", "_reader", "_session", "_transport",
        "deadline", "heard_at",
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
        self._peer = ""
        self._close_code = 0
        self.heard_at = 0.0
        self.deadline = 0.0  # of the handshake, of hello, of closing; whichever it is in

    # ---- asyncio's side -------------------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES)
        name = self._transport.get_extra_info("peername")
        self._peer = str(name[0]) if isinstance(name, tuple) else "local"
        if not self._hub.admit(self, self._peer):
            self._phase = Phase.CLOSED
            self._transport.write(refusal(HTTPStatus.SERVICE_UNAVAILABLE))
            self._transport.close()
            return
        self._handshake = Handshake(self._hub.pages, self._hub.origins)

    def connection_lost(self, exc: Exception | None) -> None:
        was, self._phase = self._phase, Phase.CLOSED
        self._out, self._out_bytes, self._reader = [], 0, None
        self._hub.gone(self, self._peer)
        if was is not Phase.CLOSED and self._session is not None:
            self._end_session("lost" if not self._close_code else "")
        self._transport = self._session = None  # the session holds this one: they are not to wait for the collector

    def data_received(self, data: bytes) -> None:
        self.heard_at = self._hub.now()
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
        name = CloseCode(self._close_code).name.lower() if self._close_code in _CODES else (str(self._close_code) if self._close_code else "lost")
        self._hub.services.metrics.closed(name if self._close_code in _CODES or not self._close_code else "other")
        logger.info("session.closed", user=_user_of(session), device=session.device, code=int(self._close_code) or None, name=name, reason=reason)
        self._hub.chat.closed(session)

    # ---- the sweep's side -----------------------------------------------------------------------------------------------------------

    @property
    def phase(self) -> Phase:
        return self._phase

    @property
    def session(self) -> Session | None:
        return self._session

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


_CODES: Final = frozenset(CloseCode)


def _user_of(session: Session) -> str | None:
    return None if session.user is None else session.user.id


class Hub:
    """All connections of a node, their limits, and the work that is done for all of them at once."""

    def __init__(self, services: Services, chat: Chat, pages: Pages, loop: asyncio.AbstractEventLoop) -> None:
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
        self._addresses: dict[str, int] = {}
        self._shaking: dict[Connection, None] = {}  # in the handshake, the oldest first
        self._awaiting: dict[Connection, None] = {}  # hello, the oldest first
        self._closing: dict[Connection, None] = {}  # the oldest first
        self.flusher = Flusher(loop.call_soon, loop.call_later, time.perf_counter)
        self.to_flush = self.flusher.add

    # ---- limits ---------------------------------------------------------------------------------------------------------------------

    def admit(self, connection: Connection, peer: str) -> bool:
        """Room for one more? The caller says 503 if not."""
        s, metrics = self.services.settings, self.services.metrics
        if (
            len(self.connections) >= s.connections_max
            or len(self._shaking) + len(self._awaiting) >= s.unauthenticated_max
            or self._addresses.get(peer, 0) >= s.connections_per_address_max
            or self.chat.draining
        ):
            metrics.connections_refused += 1
            return False
        metrics.connections += 1
        connection.heard_at = self.now()
        connection.deadline = connection.heard_at + self.handshake_s
        self.connections.add(connection)
        self.empty.clear()
        self._shaking[connection] = None
        self._addresses[peer] = self._addresses.get(peer, 0) + 1
        return True

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

    def gone(self, connection: Connection, peer: str) -> None:
        if connection not in self.connections:
            return
        self.connections.discard(connection)
        if not self.connections:
            self.empty.set()
        for waiting in (self._shaking, self._awaiting, self._closing):
            waiting.pop(connection, None)
        if self._addresses[peer] == 1:
            del self._addresses[peer]
        else:
            self._addresses[peer] -= 1

    # ---- for all --------------------------------------------------------------------------------------------------------------------

    def sweep(self) -> None:
        """Deadlines, heartbeats and tokens of all connections: one pass a second, some 0.2 us a connection."""
        now, now_ms = self.now(), self.services.now_ms()
        self._expire(self._shaking, now, lambda c: c.abort())
        self._expire(self._awaiting, now, lambda c: c.close(CloseCode.HELLO_TIMEOUT, "no hello"))
        self._expire(self._closing, now, lambda c: c.abort())
        heartbeat_s = self.services.settings.heartbeat_ms / 1000
        ping_s, lost_s = heartbeat_s * PING_AT, max(heartbeat_s - SWEEP_S, heartbeat_s * 0.8)
        for connection in list(self.connections):
            if connection.phase is Phase.OPEN:
                connection.check(now, now_ms, ping_s, lost_s)

    def _expire(self, waiting: dict[Connection, None], now: float, end: Callable[[Connection], None]) -> None:
        for connection in list(waiting):
            if connection.deadline > now:
                break  # they are in order of their deadlines
            if connection in waiting:
                self.services.metrics.connections_refused += waiting is not self._closing
                end(connection)
