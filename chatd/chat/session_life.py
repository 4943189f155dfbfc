"""The life of a session: from its hello to its end, and until its user is let go.

hello ──begin──► chat/hello.py ──► opened: live, and what waited for the welcome is handled
new token ──refresh──► the session goes on until that one's end
connection gone ──closed──► detached; its user counts as online for a grace time
once a second ──release──► users who have been away for long enough
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from chatd import errors, protocol
from chatd.chat.hello import open_session
from chatd.chat.loading import Loading
from chatd.chat.new_conversations import NewConversations
from chatd.chat.services import Services
from chatd.core import hello_rates
from chatd.core.conversation import Conversation
from chatd.core.effects import Effect
from chatd.core.session import Session, State
from chatd.ids import UserId
from chatd.loop.alarm import Alarm
from chatd.wire.frames import encode_text

log = structlog.get_logger("chat")


class SessionLife:
    """Of all sessions of a node. `handle` carries out the requests that waited for a welcome."""

    def __init__(
        self, services: Services, handle: Callable[[Session, Effect, float], None], alarm: Alarm,
        loading: Loading, new_conversations: NewConversations,
    ) -> None:  # fmt: skip
        self._s, self._handle, self._alarm = services, handle, alarm
        self._loading, self._new_conversations = loading, new_conversations
        self.notice: Callable[[], bytes] | None = None  # set by a drain, which pushes it to all who are live then
        # How long a user is shown as online after their last session has ended; longer in a drain
        self.grace_s = services.settings.presence_grace_ms / 1000
        self._hellos = 0  # under way
        self._no_hello = asyncio.Event()
        self._no_hello.set()

    def begin(self, session: Session, hello: protocol.Hello) -> None:
        """Carry out a hello, as a task."""
        self._s.tasks.spawn(self._open(session, hello))

    async def _open(self, session: Session, hello: protocol.Hello) -> None:
        self._hellos += 1
        self._no_hello.clear()
        try:
            await open_session(self._s, session, hello, self._opened)
        except Exception:  # a bug of ours must not take others down: this session ends, loudly
            log.exception("hello.bug", user=session.user.id if session.user else None)
            error = errors.Refused("a bug of ours; it is logged")
            session.sink.send(encode_text(protocol.err(hello.id, error)))
            session.sink.close(errors.CloseCode.INTERNAL, "internal error")
        finally:
            self._hellos -= 1
            if not self._hellos:
                self._no_hello.set()

    async def hellos_done(self) -> None:
        """Wait until no hello is under way."""
        await self._no_hello.wait()

    def is_opening(self, id: UserId) -> bool:
        """Whether a hello of this user is under way."""
        user = self._s.registry.users.get(id)
        return user is not None and any(session.state is State.OPENING for session in user.sessions.values())

    def _opened(self, session: Session) -> None:
        """`welcome` is out: go live, then what waited, and fill what is behind."""
        s, deferred = self._s, session.opened()
        s.session_log.opened(session)
        if self.notice is not None:  # the notice to all went out while this hello was under way
            session.sink.send(encode_text(self.notice()))
        if session.behind:
            s.tasks.spawn(s.delivery.resync.fill(session))
        now = s.clock.now()
        for request in deferred:
            self._handle(session, request, now)

    def refresh(self, session: Session, request: protocol.Refresh) -> None:
        """Go on with a new token of the same user. Raises Refused."""
        s = self._s
        assert session.user is not None
        if wait := hello_rates.of_user(session.user, s.clock.now()):  # a signature is what a hello costs most
            s.metrics.hellos_limited += 1
            raise errors.Overloaded(
                "too many hellos and new tokens of this user: wait", retry_ms=hello_rates.retry_ms(wait)
            )
        try:
            identity = s.keys_in_force.verify(request.token)
            if identity.user != session.user.id:
                raise errors.Unauthorized("a refresh cannot change the user")
        except errors.Refused as e:
            s.session_log.refresh_refused(session, e)
            raise
        session.refresh(identity.exp_ms, identity.key)
        session.sink.send(encode_text(protocol.reply(request.id, exp=identity.exp_ms)))

    def closed(self, session: Session) -> None:
        """The connection is gone: let go of everything the session held. Idempotent."""
        if session.state is State.CLOSED:
            return
        session.end()
        s, user = self._s, session.user
        if user is None:
            return
        s.presence.watch(session, session.watch(()), ())
        current = user.sessions.get(session.device) is session
        s.registry.detach(user, session.device, session, s.clock.now())
        if current:
            now_ms = s.clock.now_ms()
            s.store.user_seen(user.id, now_ms)
            s.presence.disconnect(user.id, session.device, s.clock.now(), now_ms, self.grace_s)
            self._alarm.by(s.presence_push.next_due())

    def release(self) -> None:
        """Let go of users who have been away for long enough, and of conversations without use.

        To be called about once a second.
        """
        s = self._s
        if gone := s.registry.release(s.clock.now()):
            s.others.release(gone)
        if not s.store.lanes.is_outcome_unknown and not s.delivery.gaps.is_at_work:
            s.metrics.conversations_let_go += s.registry.let_go_unused(self._is_needed)

    def _is_needed(self, conv: Conversation) -> bool:
        """Whether a part works on a conversation.

        A second object for its log would break its order. A row that is read before its cursors are
        written would set them back.
        """
        s = self._s
        return (
            conv.id in s.store.state_flush.cursors
            or conv.id in s.delivery.receipts.held
            or self._loading.is_seeking(conv)
            or self._new_conversations.waits(conv.a, conv.b)
        )
