"""The services: what each request of a live session does.

    Session.receive ──► Chat.handle ──► SendPipeline, Reads, or a method per request type ──► reply

Everything that a session has decided alone (limits, order, states) has happened before; here ids
are checked against the session's user. What makes an entry goes to chat/send.py, what reads the
database to chat/reads.py; the other requests are answered in the same loop turn.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from functools import partial
from typing import assert_never

import structlog

from chatd import errors, protocol
from chatd import log as logs
from chatd.chat import device_limit, listing
from chatd.chat import hello as opening
from chatd.chat.delivery import Delivery
from chatd.chat.new_conversations import NewConversations
from chatd.chat.reads import Reads
from chatd.chat.send import SendPipeline
from chatd.chat.services import Services
from chatd.chat.typing_push import TypingPush
from chatd.core import hello_rates
from chatd.core.conversation import Conversation
from chatd.core.session import Effect, End, Reply, Session, State, Throttled
from chatd.ids import UserId
from chatd.loop.alarm import Alarm
from chatd.metrics import Metrics
from chatd.wire import framing

log = structlog.get_logger("chat")


class Chat:
    """`handle` is called for each effect of a session; never raises.

    `tick` is to be called when `alarm` rings.
    """

    def __init__(
        self,
        services: Services,
        delivery: Delivery,
        pipeline: SendPipeline,
        new_conversations: NewConversations,
        alarm: Alarm,
    ) -> None:
        self.s = services
        self.delivery = delivery
        self.metrics: Metrics = services.metrics
        self.pipeline, self.new_conversations = pipeline, new_conversations
        self._alarm = alarm
        self.typing = TypingPush(services, alarm)
        self.reads = Reads(services)
        self.notice: Callable[[], bytes] = lambda: protocol.frame("notice", kind="drain", retry_ms=0)  # set by a drain
        # How long a user is shown as online after their last session has ended; longer in a drain
        self.grace_s = services.settings.presence_grace_ms / 1000
        self._hellos = 0  # under way
        self._no_hello = asyncio.Event()
        self._no_hello.set()

    def handle(self, session: Session, effect: Effect, now: float) -> None:
        """Carry out one effect. `now`: when its frame was read, in seconds."""
        if effect is None:
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
                    self._cursor(session, effect)
                case protocol.Typing():
                    self._typing(session, effect)
                case protocol.PingRequest():
                    self._ping(session, effect)
                case protocol.Hello():
                    self.s.tasks.spawn(self._open(session, effect))
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
                    self._refresh(session, effect)
                case Reply():
                    self._reply(session, effect)
                case End():
                    self._end(session, effect)
                case Throttled():
                    self.pipeline.throttled(session, effect)
                case _:
                    assert_never(effect)
        except errors.Refused as e:
            # Its frames may hold it, and over the limit there are thousands a second: none is to
            # wait for the collector
            e.__traceback__ = None
            self.metrics.error(e.code)
            request = effect.request if isinstance(effect, Throttled) else effect
            assert not isinstance(request, Reply | End)
            self._send(session, protocol.err(request.id, e))

    def _send(self, session: Session, payload: bytes) -> None:
        session.sink.send(framing.encode_text(payload))

    def _reply(self, session: Session, reply: Reply) -> None:
        self.metrics.frames_bad += 1
        self.metrics.error(reply.code)
        self._send(session, reply.frame)

    def _end(self, session: Session, end: End) -> None:
        if end.frame is not None:
            self._send(session, end.frame)
        session.sink.close(end.code, end.reason)

    async def _open(self, session: Session, hello: protocol.Hello) -> None:
        self._hellos += 1
        self._no_hello.clear()
        try:
            await opening.open_session(self.s, session, hello, self._opened)
        except Exception:  # a bug of ours must not take others down: this session ends, loudly
            log.exception("hello.bug", user=session.user.id if session.user else None)
            self._send(session, protocol.err(hello.id, errors.Refused("a bug of ours; it is logged")))
            session.sink.close(errors.CloseCode.INTERNAL, "internal error")
        finally:
            self._hellos -= 1
            if not self._hellos:
                self._no_hello.set()

    async def hellos_done(self) -> None:
        """Wait until no hello is under way."""
        await self._no_hello.wait()

    def _opened(self, session: Session) -> None:
        """`welcome` is out: go live, then what waited, and fill what is behind."""
        deferred = session.opened()
        self.s.session_log.opened(session)
        if self.draining:  # the notice to all went out while this hello was under way
            self._send(session, self.notice())
        if session.behind:
            self.s.tasks.spawn(self.delivery.fill(session))
        now = self.s.clock.now()
        for request in deferred:
            self.handle(session, request, now)

    # ---- entries: see chat/send.py ---------------------------------------------------------------

    @property
    def draining(self) -> bool:
        """This node goes away: it takes nothing new."""
        return self.pipeline.draining

    def drain(self) -> None:
        self.pipeline.drain()

    async def sends_queued(self) -> None:
        """Wait until no entry waits for its conversation, nor for the limits that all nodes share:
        all are in their lanes, or refused.
        """
        await self.new_conversations.idle()
        await self.s.admission.idle()

    def _skip(self, session: Session, request: protocol.Skip) -> None:
        user = session.user
        assert user is not None
        peer = request.to if request.to is not None else self.s.registry.find(user, request.c, None).peer(user.id)
        session.order.skip(peer, request.cid)
        self._send(session, protocol.ok(request.id))

    # ---- cursors and typing ----------------------------------------------------------------------

    def _cursor(self, session: Session, request: protocol.Ack | protocol.Read) -> None:
        assert session.user is not None
        conv = self.s.registry.find(session.user, request.c, request.to)
        if request.seq > conv.head and (conv.gap is not None or self.s.others.share_log):
            self.reads.begin(session, request.id, partial(self._late_cursor, session, request, conv))
        else:
            self._send(session, self._advance(session, request, conv))

    async def _late_cursor(self, session: Session, request: protocol.Ack | protocol.Read, conv: Conversation) -> bytes:
        """The client may have got on another node what has not come here yet."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(listing.OVERTAKEN_S_MAX):
                await self.delivery.gaps.closed(conv)
        # The log is another one since: its cursors are not this one's
        if self.s.registry.convs.get(conv.id) is not conv:
            raise errors.Unavailable("the log is another one: connect again", retry_ms=listing.OPEN_RETRY_MS)
        if request.seq > conv.head and conv.gap is not None and request.seq <= conv.gap.upto:
            raise errors.Unavailable("this entry is not delivered here yet; try again", retry_ms=listing.OPEN_RETRY_MS)
        return self._advance(session, request, conv)

    def _advance(self, session: Session, request: protocol.Ack | protocol.Read, conv: Conversation) -> bytes:
        """Move the cursor and tell the others; gives the reply."""
        user = session.user
        assert user is not None
        if request.seq > conv.head:
            raise errors.BadSeq(f"seq {request.seq} is beyond the head, {conv.head}", field="seq")
        side = conv.side(user.id)
        moved = conv.advance(side, request.seq, request.seq if type(request) is protocol.Read else 0)
        reply = protocol.ok_cursor(request.id, conv.id, *conv.cursor(side))
        if moved:
            self.s.store.cursor_moved(conv)
            self.delivery.push_receipt(conv, side, session)
            self.s.others.receipt(conv, side, user)
        return reply

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

    def _refresh(self, session: Session, request: protocol.Refresh) -> None:
        assert session.user is not None
        if wait := hello_rates.of_user(session.user, self.s.clock.now()):  # a signature is what a hello costs most
            self.metrics.hellos_limited += 1
            raise errors.Overloaded(
                "too many hellos and new tokens of this user: wait", retry_ms=hello_rates.retry_ms(wait)
            )
        try:
            identity = self.s.keys_in_force.verify(request.token)
            if identity.user != session.user.id:
                raise errors.Unauthorized("a refresh cannot change the user")
        except errors.Refused as e:
            self.s.session_log.refresh_refused(session, e)
            raise
        session.refresh(identity.exp_ms, identity.key)
        self._send(session, protocol.reply(request.id, exp=identity.exp_ms))

    def _ping(self, session: Session, request: protocol.PingRequest) -> None:
        self._send(session, protocol.frame("pong", id=request.id, ts=self.s.clock.now_ms()))

    def closed(self, session: Session) -> None:
        """The connection is gone: let go of everything the session held. Idempotent."""
        if session.state is State.CLOSED:
            return
        session.end()
        user = session.user
        if user is None:
            return
        self.s.presence.watch(session, session.watch(()), ())
        current = user.sessions.get(session.device) is session
        self.s.registry.detach(user, session.device, session, self.s.clock.now())
        if current:
            now_ms = self.s.clock.now_ms()
            self.s.store.user_seen(user.id, now_ms)
            self.s.presence.disconnect(user.id, session.device, self.s.clock.now(), now_ms, self.grace_s)
            self._alarm.by(self.s.presence_push.next_due())

    def _is_opening(self, id: UserId) -> bool:
        user = self.s.registry.users.get(id)
        return user is not None and any(session.state is State.OPENING for session in user.sessions.values())

    def tick(self) -> None:
        """What is due: grace times that are over, what was held back.

        To be called when the alarm rings, which it sets again.
        """
        self.s.presence_push.tick(self._is_opening)
        self.typing.tick()
        for at in (self.s.presence_push.next_due(), self.typing.next_due()):
            self._alarm.by(at)

    def release(self) -> None:
        """Let go of users who have been away for long enough. To be called about once a second."""
        if gone := self.s.registry.release(self.s.clock.now()):
            self.s.others.release(gone)

    # ---- other nodes -----------------------------------------------------------------------------

    def touch(self, users: Iterable[UserId], seconds: float) -> None:
        """Tell other nodes which devices of these users did something in the last `seconds`: the
        users have some there, too.
        """
        device_limit.publish_activity(self.s, users, seconds)
