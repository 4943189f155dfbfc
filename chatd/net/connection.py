"""One client's TCP connection: bytes to frames to the session, and back in one write a loop turn.

    HANDSHAKE ──101──► OPEN (──► FULL) ──close()──► CLOSING ──► CLOSED
        └── plain HTTP: answered ─────────┘

Guarantees: all output of a loop turn goes out in one `write`, and that of several turns while the
node is behind (`flushing`); what waits for a client that does not read is bounded, and past the
bound the client is closed with a code that says so; nothing of a connection is a task or a timer:
`Hub.sweep` looks at all of them, once a second. When the transport is full we also stop reading, so
that a client cannot ask for what it does not take. What comes in is bounded by turns (`intake`): a
slice of each connection, and every frame counts, whatever it is. What waits for its turn is one
read of the socket at most (`RECEIVE_BYTES`), as none other follows meanwhile.

Neighbours: `hub` (all connections, and the limits on them), `handshake` (before), `framing` (bytes
<-> frames), `chat` (what a session's frames do).
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Sequence
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, cast

import structlog

from chatd import addresses
from chatd.core.rate_limit import TokenBucket
from chatd.core.read_pacing import FRAME_COST, HANDSHAKE_COST, SLICE_BYTES
from chatd.core.session import Session, State
from chatd.errors import CloseCode
from chatd.wire import framing
from chatd.wire.framing import Event, Failure, FrameReader, PeerClose, Ping
from chatd.wire.handshake import Handshake, refusal

if TYPE_CHECKING:
    from chatd.net.listener import Hub

logger = structlog.get_logger("connection")

SWEEP_S: Final = 1.0
PING_AT: Final = 0.4  # of heartbeat_ms without a byte: a ping goes out
CLOSE_S: Final = 3.0  # for the peer's part of the closing handshake
# Passed over while we wait for it: an outbox may have been on its way. Past it nothing more is read
CLOSING_FRAMES_MAX: Final = 512
# SO_RCVBUF: what the kernel holds of a client, and one read can bring (Linux: up to twice); 0.6
# MB/s at 100 ms
RECEIVE_BYTES: Final = 65_536
# TCP_NOTSENT_LOWAT: what the kernel takes of a client's output before it can send it. With its own
# bound, 4 MB, a ping stood behind 16 s of a line of 2 Mbit/s, and its client was lost while it
# read.
UNSENT_BYTES: Final = 131_072
# Handed to the transport at most; the rest waits in our own queue, which is bounded and let go at
# once
WRITE_HIGH_BYTES: Final = 65_536


class Phase(enum.Enum):
    HANDSHAKE = "handshake"
    OPEN = "open"
    FULL = "full"  # the client does not read; it is closed at the end of the loop turn
    CLOSING = "closing"
    CLOSED = "closed"


class Connection(asyncio.Protocol):
    """Implements `session.Sink`. Slotted and lean: ten thousands of them are idle."""

    __slots__ = (
        "_close_code",
        "_handshake",
        "_hub",
        "_intake",
        "_is_waiting",
        "_left",
        "_out",
        "_out_bytes",
        "_passed_over",
        "_paused",
        "_phase",
        "_pinged_at",
        "_reader",
        "_rest",
        "_room",
        "_session",
        "_transport",
        "address",
        "bytes_in",
        "bytes_out",
        "counted",
        "deadline",
        "heard_at",
        "number",
        "since",
    )

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._intake = hub.strangers
        self._phase = Phase.HANDSHAKE
        self._handshake: Handshake | None = None
        self._reader: FrameReader | None = None
        self._session: Session | None = None
        self._transport: asyncio.Transport | None = None
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._paused = False
        self._room: asyncio.Future[None] | None = None  # while its session waits for the client to take more
        self._rest = b""  # has come, and waits for its turn to be read
        self._is_waiting = False  # in the intake's ring
        self._passed_over = 0  # frames since we closed
        self._left = 0  # bytes that the kernel had not taken when it was last looked, while paused
        self._pinged_at = 0.0
        self._close_code = 0
        self.address = ""  # the client's; that of a proxy until the handshake is over
        self.counted = ""  # what the limit by address counts it as; empty: it does not yet
        self.number = 0  # of this node's connections
        self.since = 0.0
        self.bytes_in = self.bytes_out = 0
        self.heard_at = 0.0
        self.deadline = 0.0  # of the handshake, of hello, of closing; whichever it is in

    # ---- asyncio's side --------------------------------------------------------------------------

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
        self._out, self._out_bytes, self._reader, self._handshake, self._rest = [], 0, None, None, b""
        self._hub.gone(self)
        if was is not Phase.CLOSED and self._session is not None:
            self._end_session("lost" if not self._close_code else "")
        self._transport = self._session = None  # the session holds this one: they are not to wait for the collector

    def data_received(self, data: bytes) -> None:
        self.heard_at = self._hub.now()
        size, intake = len(data), self._intake
        self.bytes_in += size
        if size > SLICE_BYTES or self._rest or intake.left < 0:
            self._put_off(data)
        else:
            intake.left -= size
            try:
                self._read(data)
            except Exception as e:  # a bug of ours must not take others down: this connection ends, loudly
                self._bug(e)

    def eof_received(self) -> bool:
        return False  # a half-closed peer cannot answer: the transport closes itself

    def pause_writing(self) -> None:
        self._paused = True
        if self._room is None and self._session is not None and self._session.state is not State.CLOSED:
            self._room = self._hub.loop.create_future()
        if self._transport is not None and self._phase is Phase.OPEN:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._paused = False
        # It takes what it gets, which is as good as a pong: while it was paused, no pong was read
        self.heard_at = self._hub.now()
        self.flush()
        if self._paused:  # it was full again at once
            return
        self._has_room()
        self._read_on()

    @property
    def is_paused(self) -> bool:
        return self._room is not None

    async def drained(self) -> None:
        while (room := self._room) is not None:
            await asyncio.wait([room])

    def _has_room(self) -> None:
        """The client takes more, or its session has ended: whoever waits in `drained` goes on."""
        room, self._room = self._room, None
        if room is not None and not room.done():
            room.set_result(None)

    # ---- in --------------------------------------------------------------------------------------

    def _put_off(self, data: bytes) -> None:
        """Read this in later turns, and nothing more from the socket before."""
        self._rest += data
        if not self._is_waiting and self._transport is not None:
            self._is_waiting = True
            self._hub.services.metrics.reads_put_off += 1
            if not self._transport.is_closing():
                self._transport.pause_reading()
            self._intake.put_off(self)

    def take_slice(self) -> bool:
        """Implements `intake.Source`."""
        intake, reader = self._intake, self._reader
        # `resume_writing` goes on
        if self._phase is Phase.CLOSED or (self._paused and self._phase is not Phase.CLOSING):
            self._is_waiting = False
            return False
        self.heard_at, data = self._hub.now(), b""
        if reader is None or not reader.more:
            data, self._rest = self._rest[:SLICE_BYTES], self._rest[SLICE_BYTES:]
            intake.left -= len(data)
        if data or (reader is not None and reader.more):  # else it was closed meanwhile
            try:
                self._read(data)
            except Exception as e:  # as above
                self._bug(e)
        self._is_waiting = bool(self._rest) or (self._reader is not None and self._reader.more)
        if self._is_waiting and self._intake is not intake:  # it has said hello meanwhile
            self._intake.put_off(self)
            return False
        self._read_on()
        return self._is_waiting

    def _read_on(self) -> None:
        """Read from the socket again, unless the client does not read or something that came before
        waits.
        """
        transport = self._transport
        if (
            transport is None
            or transport.is_closing()
            or self._is_waiting
            or (self._paused and self._phase is not Phase.CLOSING)
        ):
            return
        if self._rest or (self._reader is not None and self._reader.more):
            self._put_off(b"")
        elif not transport.is_reading() and self._passed_over <= CLOSING_FRAMES_MAX:
            transport.resume_reading()

    def _bug(self, error: Exception) -> None:
        session = self._session
        user = None if session is None else _user_of(session)
        logger.error("handshake.bug" if session is None else "connection.bug", user=user, exc_info=error)
        if session is None:
            self.abort()
        else:
            self.close(CloseCode.INTERNAL, "internal error")

    def _shake(self, data: bytes) -> None:
        assert self._handshake is not None
        assert self._transport is not None
        answer = self._handshake.feed(data)
        if answer is None:
            return
        self._intake.left -= HANDSHAKE_COST
        if self._intake.left < self._intake.low:
            self._intake.renew()
        self._handshake = None
        self._transport.write(answer.data)
        if answer.refused:
            self._hub.refused(answer.refused, self.address)
        if not answer.upgraded:
            self._phase = Phase.CLOSED
            self._rest = b""
            self._transport.close()
            return
        hub = self._hub
        self._phase = Phase.OPEN
        self._reader = FrameReader(hub.frame_bytes_max)
        self._session = Session(self, TokenBucket(hub.frames_per_s, hub.frames_burst), self.heard_at, hub.bounds)
        self.deadline = self.heard_at + hub.hello_s
        hub.shaken(self)
        if answer.rest:
            self._rest = answer.rest + self._rest
            self._put_off(b"")

    def _read(self, data: bytes) -> None:
        """Read a slice."""
        reader, session = self._reader, self._session
        if reader is None or session is None:
            if self._phase is Phase.HANDSHAKE:
                self._shake(data)
            elif self._phase is Phase.CLOSING and self._transport is not None:
                # After a broken frame nothing can be read; but the peer has seen our close, and
                # answers
                self._transport.close()
            return
        hub, now, intake = self._hub, self.heard_at, self._intake
        events = reader.feed(data)
        intake.left -= FRAME_COST * len(events)
        if intake.left < intake.low:
            intake.renew()
        if reader.more:
            self._put_off(b"")
        for event in events:
            if self._phase is not Phase.OPEN and type(event) is not PeerClose:
                continue  # we have said goodbye: only the peer's close matters
            if type(event) is bytes:
                waits = session.state is State.AWAIT_HELLO
                hub.chat.handle(session, session.receive(event, now), now)
                if waits and session.state is not State.AWAIT_HELLO:
                    hub.authenticated(self)
                    self._intake = hub.sessions
            elif type(event) is PeerClose:
                self._peer_closed(event)
                return
            elif type(event) is Failure:
                self._reader, self._rest = None, b""
                self.close(event.code, event.reason)
            else:
                self._count(session, event)
        if self._phase is Phase.CLOSING and self._reader is not None:
            self._pass_over(events)

    def _count(self, session: Session, event: Event) -> None:
        """A frame that asks for nothing: a pong, a ping, a part of a message."""
        if session.frames.take(self.heard_at):
            if type(event) is Ping:  # RFC 6455 5.5.3: one may answer the most recent ping alone
                self.send(framing.encode_pong(event.data))
            return
        self._hub.services.metrics.frames_throttled += 1
        if (end := session.excess(self.heard_at)) is not None:
            self.close(end.code, end.reason)

    def _pass_over(self, events: Sequence[Event]) -> None:
        """What came after our close.

        A client that goes on sending, or sends what is no frame, is not read any more: the sweep
        ends it.
        """
        self._passed_over += CLOSING_FRAMES_MAX + 1 if events and type(events[-1]) is Failure else len(events)
        if self._passed_over > CLOSING_FRAMES_MAX and self._transport is not None and not self._transport.is_closing():
            self._hub.services.metrics.closing_floods += 1
            self._reader, self._rest = None, b""
            self._transport.pause_reading()

    def _peer_closed(self, event: PeerClose) -> None:
        if self._phase is Phase.OPEN:
            self.close(event.code or CloseCode.NORMAL, "", log_reason="client")
        self.flush()
        if self._transport is not None:
            self._transport.close()

    # ---- out -------------------------------------------------------------------------------------

    def send(self, frame: bytes) -> None:
        """Queue a whole frame.

        It leaves at the end of the loop turn or soon after (`Flusher`), or when the peer reads
        again.
        """
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
            # Not here: the session's end changes the very maps that whoever sends to many is going
            # through.
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
        """Say why, then close; the peer has `CLOSE_S` to answer.

        Idempotent; the session has ended when this returns.
        """
        if self._phase not in (Phase.OPEN, Phase.FULL) or self._transport is None:
            return
        self.flush()
        self._phase = Phase.CLOSING
        self._close_code = code
        self.deadline = self._hub.now() + CLOSE_S
        # Also into a full transport: at most 131 bytes more, and the only way to tell a peer that
        # starts to read again.
        self._transport.write(b"".join(self._out) + framing.encode_close(code, reason))
        self._out, self._out_bytes = [], 0
        self._read_on()  # or its answer would not be heard
        self._hub.closing(self)
        self._end_session(log_reason if log_reason is not None else reason)

    def ping(self) -> None:
        self.send(framing.encode_ping(b""))

    def evict(self) -> None:
        """Let go of one that has not said hello, without waiting for its answer: it would hold what
        is to be free.
        """
        self.close(CloseCode.OVERLOADED, "too many connections without a hello")
        if self._phase is Phase.CLOSING and self._transport is not None:
            self._transport.close()
        else:
            self.abort()

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
            session,
            self.number,
            self.address,
            self._close_code,
            reason,
            since=self.since,
            now=hub.now(),
            bytes_in=self.bytes_in,
            bytes_out=self.bytes_out,
        )
        self._hub.chat.closed(session)
        self._has_room()

    # ---- the sweep's side ------------------------------------------------------------------------

    @property
    def phase(self) -> Phase:
        return self._phase

    @property
    def session(self) -> Session | None:
        return self._session

    def facts(self) -> dict[str, object]:
        """For `chatd user show`: whose connection, and what waits for it.

        `takes` False: the client does not read.
        """
        waiting = self._out_bytes + (0 if self._transport is None else self._transport.get_write_buffer_size())
        return {
            "id": self._hub.access_log.id(self.number),
            "address": self.address,
            "queue_bytes": waiting,
            "takes": not self._paused,
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
        }

    def check(self, now: float, now_ms: int, ping_s: float, lost_s: float) -> None:
        """Heartbeat and the token's end; called about once a second."""
        if self._paused and self._has_taken():
            self.heard_at = now
        silent = now - self.heard_at
        if silent > ping_s:
            if self._pinged_at <= self.heard_at:  # also where a sweep came too late for that: nobody is lost unasked
                self._pinged_at = now
                self.ping()
            # Nor before it can answer: a late sweep is followed by another at once
            elif silent > lost_s and now - self._pinged_at > SWEEP_S / 2:
                self._lost()
                return
        session = self._session
        if session is not None and session.state is State.LIVE and now_ms >= session.exp_ms:
            self.close(CloseCode.TOKEN_EXPIRED, "the token has ended")

    def _has_taken(self) -> bool:
        """Has a paused client taken something since the last look? Then it reads, however slowly."""
        assert self._transport is not None
        was, self._left = self._left, self._transport.get_write_buffer_size()
        return self._left < was

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
