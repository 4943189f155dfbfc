"""The services: what each request of a live session does.

    Session.receive ──► Chat.handle ──► SendPipeline, Reads, or a method per request type ──► reply

Everything that a session has decided alone (limits, order, states) has happened before; here ids
are checked against the session's user. What makes an entry goes to chat/send.py, what reads the
database to chat/reads.py; the other requests are answered in the same loop turn. How a session
begins and ends is in chat/session_life.py.
"""

from __future__ import annotations

from typing import assert_never

import structlog

from chatd import errors, protocol
from chatd import log as logs
from chatd.chat.cursors import Cursors
from chatd.chat.loading import Loading
from chatd.chat.new_conversations import NewConversations
from chatd.chat.reads import Reads
from chatd.chat.send import SendPipeline
from chatd.chat.services import Services
from chatd.chat.session_life import SessionLife
from chatd.chat.typing_push import TypingPush
from chatd.chat.waiting_requests import WaitingRequests, give_up
from chatd.core.conversations import NotHeld
from chatd.core.effects import Effect, End, Reply, Throttled
from chatd.core.session import Session
from chatd.loop.alarm import Alarm
from chatd.metrics import Metrics
from chatd.wire.frames import encode_text

log = structlog.get_logger("chat")


class Chat:
    """`handle` is called for each effect of a session; never raises.

    `tick` is to be called when `alarm` rings.
    """

    def __init__(
        self, services: Services, pipeline: SendPipeline, new_conversations: NewConversations, alarm: Alarm
    ) -> None:
        self.s = services
        self.metrics: Metrics = services.metrics
        self.pipeline, self.new_conversations = pipeline, new_conversations
        self._alarm = alarm
        self.typing = TypingPush(services, alarm)
        self.loading = Loading(services)
        self.waiting = WaitingRequests(services, self.loading, self.handle)
        self.reads = Reads(services, self.loading)
        self.cursors = Cursors(services, self.reads)
        self.life = SessionLife(services, self.handle, alarm, self.loading, new_conversations)

    def handle(self, session: Session, effect: Effect, now: float) -> None:
        """Carry out one effect. `now`: when its frame was read, in seconds."""
        if effect is None or (session.waiting is not None and self.waiting.takes(session, effect, now)):
            return
        self.metrics.requests += 1
        if logs.DEBUG_ON:
            log.debug(
                "request",
                user=session.user.id if session.user else None,
                type=type(effect).__name__,
                id=getattr(effect, "id", None),
            )
        try:
            match effect:  # in order of how many there are
                case protocol.Send() | protocol.Edit() | protocol.Delete():
                    self.pipeline.enter(session, effect, now)
                case protocol.Ack() | protocol.Read():
                    self.cursors.move(session, effect)
                case protocol.Typing():
                    self._typing(session, effect)
                case protocol.PingRequest():
                    self._ping(session, effect)
                case protocol.Hello():
                    self.life.begin(session, effect)
                case protocol.History():
                    self.reads.history(session, effect)
                case protocol.Conversations():
                    self.reads.conversations(session, effect)
                case protocol.SetPresence():
                    self._set_presence(session, effect)
                case protocol.WatchRequest():
                    self.reads.watch(session, effect)
                case protocol.Skip():
                    self._skip(session, effect)
                case protocol.Refresh():
                    self.life.refresh(session, effect)
                case Reply():
                    self._reply(session, effect)
                case End():
                    self._end(session, effect)
                case Throttled():
                    self.pipeline.throttled(session, effect)
                case _:
                    assert_never(effect)
        except NotHeld as missing:
            self.waiting.wait(session, effect, now, missing.key)
        except errors.Refused as e:
            # Its frames may hold it, and over the limit there are thousands a second: none is to
            # wait for the collector
            e.__traceback__ = None
            self.metrics.error(e.code)
            request = effect.request if isinstance(effect, Throttled) else effect
            assert not isinstance(request, Reply | End)
            self._send(session, protocol.err(request.id, e))

    def _send(self, session: Session, payload: bytes) -> None:
        session.sink.send(encode_text(payload))

    def _reply(self, session: Session, reply: Reply) -> None:
        self.metrics.frames_bad += 1
        self.metrics.error(reply.code)
        self._send(session, reply.frame)

    def _end(self, session: Session, end: End) -> None:
        if end.frame is not None:
            self._send(session, end.frame)
        session.sink.close(end.code, end.reason)

    # ---- entries: see chat/send.py ---------------------------------------------------------------

    async def sends_queued(self) -> None:
        """Wait until no entry waits for its conversation, nor for the limits that all nodes share:
        all are in their lanes, or refused.
        """
        await self.waiting.idle()
        await self.new_conversations.idle()
        await self.s.admission.idle()

    def _skip(self, session: Session, request: protocol.Skip) -> None:
        give_up(self.s.registry, session, request)
        self._send(session, protocol.ok(request.id))

    # ---- typing ----------------------------------------------------------------------------------

    def _typing(self, session: Session, request: protocol.Typing) -> None:
        user = session.user
        assert user is not None
        conv = self.s.registry.find(user, request.c, request.to)
        if not conv.open:
            raise errors.NotOpen("typing is shown once both have sent something")
        self._send(session, protocol.ok(request.id))
        self.typing.typed(conv, conv.side(user.id), session)

    # ---- presence: see presence_push.py ----------------------------------------------------------

    def _set_presence(self, session: Session, request: protocol.SetPresence) -> None:
        assert session.user is not None
        self._send(session, protocol.ok(request.id))
        self.s.presence_push.announce(
            self.s.presence.connect(session.user.id, session.device, request.away, self.s.clock.now_ms())
        )

    # ---- the rest --------------------------------------------------------------------------------

    def _ping(self, session: Session, request: protocol.PingRequest) -> None:
        self._send(session, protocol.frame("pong", id=request.id, ts=self.s.clock.now_ms()))

    def tick(self) -> None:
        """What is due: grace times that are over, what was held back.

        To be called when the alarm rings, which it sets again.
        """
        self.s.presence_push.tick(self.life.is_opening)
        self.typing.tick()
        for at in (self.s.presence_push.next_due(), self.typing.next_due()):
            self._alarm.by(at)
