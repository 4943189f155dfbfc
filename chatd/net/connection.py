"""One client's TCP connection: bytes to frames to the session, and back in one write a loop turn.

    HANDSHAKE ──101──► OPEN (──► FULL) ──close()──► CLOSING ──► CLOSED
      │  ▲ └── plain HTTP: the last request answered ──────────────┘
      └──┘ plain HTTP: answered, the next may follow

Output: all frames of a loop turn are written at once, or those of several turns while the node is
behind (`core/write_pacing.py`). The output that waits for a client that does not read is bounded;
past the bound the client is closed with a code that says so.

Input: every frame counts, whatever it is. When the socket is read, and which input waits for its
turn, is in `net/flow_control.py`.

A connection has no task and no timer: `Listener.sweep` checks all of them once a second
(`net/heartbeat.py`). What all connections share is in `net/shared.py`.
"""

from __future__ import annotations

import asyncio
from functools import partial
from http import HTTPStatus
from typing import Final, cast

import structlog

from chatd import addresses
from chatd.core.effects import TOO_FAST
from chatd.core.frame_rate import FrameRate
from chatd.core.read_pacing import FRAME_COST, HANDSHAKE_COST, SLICE_BYTES
from chatd.core.session import Session, State
from chatd.errors import CloseCode
from chatd.net.flow_control import CLOSING, OPEN, FlowControl, Phase
from chatd.net.shared import Shared
from chatd.wire.frames import Event, Failure, PeerClose, Ping, encode_close, encode_pong
from chatd.wire.framing import FrameReader
from chatd.wire.handshake import Afterwards, Handshake, HandshakeResult, refusal

logger = structlog.get_logger("connection")

CLOSE_S: Final = 3.0  # for the client's part of the closing handshake
# Given to the transport at most. The rest waits in our own queue, which is bounded and can be
# dropped at once.
WRITE_HIGH_BYTES: Final = 65_536


class ClientConnection(FlowControl["ClientConnection"]):
    """Implements `sink.Sink` and `read_pacing.Paced`. Slotted: ten thousands are idle."""

    __slots__ = (
        "_close_code", "_handshake", "_out", "_out_bytes", "address", "bytes_in", "bytes_out", "counted", "deadline",
        "number", "pinged_at", "since", "unwritten_before",
    )  # fmt: skip

    def __init__(self, shared: Shared[ClientConnection]) -> None:
        super().__init__(shared)
        self._handshake: Handshake | None = None
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._close_code = 0
        self.address = ""  # the client's; that of a proxy until the handshake is over
        self.counted = ""  # its key for the limit by address; empty: not counted yet
        self.number = 0  # of this node's connections
        self.since = 0.0  # this and the next times in seconds, monotonic
        self.pinged_at = 0.0  # this and `unwritten_before`: net/heartbeat.py
        self.unwritten_before = 0
        self.bytes_in = self.bytes_out = 0
        self.deadline = 0.0  # of the handshake, of the hello, or of closing: whichever is next

    # ---- asyncio's side --------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES)
        name = self._transport.get_extra_info("peername")
        self.address = addresses.plain(str(name[0])) if isinstance(name, tuple) else ""  # "": it has ended
        sources = self._shared.sources
        arrival = sources.arrival(self.address, partial(self._shared.table.locate, self)) if sources.trusted else None
        if not self._shared.table.admit(self, is_known=arrival is None):
            self._phase = Phase.CLOSED
            self._transport.write(refusal(HTTPStatus.SERVICE_UNAVAILABLE))
            self._transport.close()
            return
        self._handshake = Handshake(self._shared.http, self._shared.origins, arrival)

    def connection_lost(self, exc: Exception | None) -> None:
        was, self._phase = self._phase, Phase.CLOSED
        self._out, self._out_bytes, self._reader, self._handshake, self._rest = [], 0, None, None, b""
        self._shared.table.gone(self)
        if was is not Phase.CLOSED and self._session is not None:
            self._end_session("lost" if not self._close_code else "")
        self._transport = self._session = None  # the session refers to this: break the cycle

    def data_received(self, data: bytes) -> None:
        self.heard_at = self._shared.now()
        size, intake = len(data), self._intake
        self.bytes_in += size
        if size > SLICE_BYTES or self._rest or intake.left < 0:
            self._put_off(data)
        else:
            intake.left -= size
            try:
                self._read(data)
            except Exception as e:  # our bug must not end other connections: this one ends, with a log line
                self._bug(e)

    def eof_received(self) -> bool:
        return False  # a half-closed client cannot answer: the transport closes itself

    # ---- in --------------------------------------------------------------------------------------

    def _bug(self, error: Exception) -> None:
        session = self._session
        user = None if session is None or session.user is None else session.user.id
        logger.error("handshake.bug" if session is None else "connection.bug", user=user, exc_info=error)
        if session is None:
            self.abort()
        else:
            self.close(CloseCode.INTERNAL, "internal error")

    def _shake(self, data: bytes) -> None:
        assert self._handshake is not None
        assert self._transport is not None
        result = self._handshake.feed(data)
        if result is None:
            return
        self._intake.left -= HANDSHAKE_COST
        if self._intake.left < self._intake.low:
            self._intake.renew()
        self._transport.write(result.data)
        if result.refused:
            self._shared.table.refused(result.refused, self.address)
        if result.afterwards is not Afterwards.UPGRADED:
            self._answered(result)
            return
        self._handshake = None
        shared = self._shared
        self._phase = Phase.OPEN
        self._reader = FrameReader(shared.frame_bytes_max)
        frames = FrameRate(shared.frames_per_s, shared.frames_burst)
        self._session = Session(self, frames, self.heard_at, shared.bounds)
        self.deadline = self.heard_at + shared.hello_s
        shared.table.shaken(self)
        if result.rest:
            self._rest = result.rest + self._rest
            self._put_off(b"")

    def _answered(self, result: HandshakeResult) -> None:
        """A plain HTTP request has its response.

        The next one follows, in a later turn, or this ends.
        """
        assert self._transport is not None
        self._shared.metrics.http_requests += 1
        if result.afterwards is Afterwards.KEPT:
            self._shared.table.answered(self)
            if result.rest:
                self._rest = result.rest + self._rest
                self._put_off(b"")
            return
        self._phase, self._handshake, self._rest = Phase.CLOSED, None, b""
        self._transport.close()

    def _read(self, data: bytes) -> None:
        """Read a slice."""
        reader, session = self._reader, self._session
        if reader is None or session is None:
            if self._phase is Phase.HANDSHAKE:
                self._shake(data)
            elif self._phase is Phase.CLOSING and self._transport is not None:
                # After a broken frame nothing can be read, but the client has seen our close and
                # answers it.
                self._transport.close()
            return
        shared, now, intake = self._shared, self.heard_at, self._intake
        events = reader.feed(data)
        intake.left -= FRAME_COST * len(events)
        if intake.left < intake.low:
            intake.renew()
        if reader.more:
            self._put_off(b"")
        for event in events:
            if self._phase is not OPEN and type(event) is not PeerClose:
                continue  # we have closed: only the client's close matters
            if type(event) is bytes:
                was = session.state
                shared.chat.handle(session, session.receive(event, now), now)
                if session.state is not was and was is State.AWAIT_HELLO:
                    shared.table.authenticated(self)
                    self._intake = shared.sessions
            elif type(event) is PeerClose:
                self._peer_closed(event)
                return
            elif type(event) is Failure:
                self._reader, self._rest = None, b""
                self.close(event.code, event.reason)
            else:
                self._count(session, event)
        if self._phase is CLOSING and self._reader is not None:
            self._pass_over(events)

    def _count(self, session: Session, event: Event) -> None:
        """Count a frame that is no request: a pong, a ping, a part of a message."""
        if session.frames.take(self.heard_at):
            if type(event) is Ping:  # RFC 6455 5.5.3: only the most recent ping needs an answer
                self.send(encode_pong(event.data))
            return
        self._shared.metrics.frames_throttled += 1
        if session.frames.too_many(self.heard_at):
            self.close(TOO_FAST.code, TOO_FAST.reason)

    def _peer_closed(self, event: PeerClose) -> None:
        if self._phase is Phase.OPEN:
            self.close(event.code or CloseCode.NORMAL, "", log_reason="client")
        self.flush()
        if self._transport is not None:
            self._transport.close()

    # ---- out -------------------------------------------------------------------------------------

    def send(self, frame: bytes) -> None:
        """Queue a whole frame.

        It is written at the end of the loop turn or soon after (`Flusher`), or when the client
        reads again.
        """
        if self._phase is not OPEN:
            return
        out = self._out
        if not out and not self._paused:
            self._shared.to_flush(self)
        out.append(frame)
        self._out_bytes += len(frame)
        if self._out_bytes > self._shared.flush_bytes:
            self._send_much()

    def _send_much(self) -> None:
        """Too much waits for the end of the turn, or for a client that does not read."""
        if not self._paused:
            self.flush()
        elif self._out_bytes > self._shared.out_queue_bytes_max:
            self._out, self._out_bytes = [], 0
            # Close it later: a caller may iterate over maps that the end of a session changes.
            self._phase = Phase.FULL
            self._shared.loop.call_soon(self.close_unread)

    def flush(self) -> None:
        """Write the queue to the transport."""
        out = self._out
        if not out or self._paused or self._transport is None:
            return
        self._transport.write(out[0] if len(out) == 1 else b"".join(out))
        self.bytes_out += self._out_bytes
        self._out, self._out_bytes = [], 0

    def close(self, code: int, reason: str, *, log_reason: str | None = None) -> None:
        """Send a close frame with the reason; the client has `CLOSE_S` to answer.

        Idempotent. The session has ended when this returns.
        """
        if self._phase not in (Phase.OPEN, Phase.FULL) or self._transport is None:
            return
        self.flush()
        self._phase = Phase.CLOSING
        self._close_code = code
        self.deadline = self._shared.now() + CLOSE_S
        # Even into a full transport: it is at most 131 bytes, and a client may read again.
        self._transport.write(b"".join(self._out) + encode_close(code, reason))
        self._out, self._out_bytes = [], 0
        self._read_on()  # to read the client's answer
        self._shared.table.closing(self)
        self._end_session(log_reason if log_reason is not None else reason)

    def close_unread(self) -> None:
        """The client does not read: drop what waits for it, and close."""
        self._shared.metrics.slow_consumers += 1
        self._out, self._out_bytes = [], 0
        self.close(CloseCode.SLOW_CONSUMER, "the client does not read")

    def evict(self) -> None:
        """End a connection without a hello, and do not wait for its answer: its place is needed."""
        self.close(CloseCode.OVERLOADED, "too many connections without a hello")
        if self._phase is Phase.CLOSING and self._transport is not None:
            self._transport.close()
        else:
            self.abort()

    def abort(self) -> None:
        """End the connection at once, without a close frame."""
        if self._transport is not None:
            self._transport.abort()

    def _end_session(self, reason: str) -> None:
        session = self._session
        if session is None or session.state is State.CLOSED:
            return
        shared = self._shared
        shared.access_log.closed(
            session, self.number, self.address, self._close_code, reason, since=self.since, now=shared.now(),
            bytes_in=self.bytes_in, bytes_out=self.bytes_out,
        )  # fmt: skip
        self._shared.chat.life.closed(session)
        self._has_room()

    # ---- for the sweep and the operator ----------------------------------------------------------

    @property
    def phase(self) -> Phase:
        return self._phase

    @property
    def session(self) -> Session | None:
        return self._session

    @property
    def takes(self) -> bool:
        """Whether the client reads: the transport takes our output."""
        return not self._paused

    @property
    def unwritten(self) -> int:
        """Output that the kernel has not taken from the transport, in bytes."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def facts(self) -> dict[str, object]:
        """The fields of `chatd user show`. `takes` False: the client does not read."""
        return {
            "id": self._shared.access_log.id(self.number), "address": self.address,
            "queue_bytes": self._out_bytes + self.unwritten, "takes": self.takes,
            "bytes_in": self.bytes_in, "bytes_out": self.bytes_out,
        }  # fmt: skip
