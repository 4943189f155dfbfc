"""The services: what each request of a live session does.

    Session.receive ──► Chat.handle ──► SendPipeline, or a method per request type ──► reply

Everything that a session has decided alone (limits, order, states) has happened before; here ids
are checked against the session's user. Requests that need no database are answered in the same loop
turn. Reads run as tasks, each under way until its answer has left the queue of its connection: at
most `READS_MAX` a session and `USER_READS_MAX` a user, and at the database one user after another
(postgres/fair_queue.py).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from typing import Any, Final, TypeAlias, assert_never

import structlog

from chatd import errors, protocol
from chatd import log as logs
from chatd.chat import device_limit, history, listing, resync
from chatd.chat import hello as opening
from chatd.chat.delivery import Delivery
from chatd.chat.new_conversations import NewConversations
from chatd.chat.send import SendPipeline
from chatd.chat.services import Services
from chatd.chat.typing_push import TypingPush
from chatd.core import hello_rates
from chatd.core.conversation import Conversation
from chatd.core.conversations import check_name
from chatd.core.recent_conversations import Place
from chatd.core.session import Effect, End, Reply, Session, State, Throttled, User
from chatd.ids import UserId
from chatd.loop.alarm import Alarm
from chatd.metrics import Metrics
from chatd.postgres.rows import ConvRow
from chatd.wire import framing

log = structlog.get_logger("chat")

# A read: made by the task that runs it
Work: TypeAlias = Callable[[], Coroutine[Any, Any, bytes | Callable[[], bytes]]]

READS_MAX: Final = 8  # reads of one session under way at once
# Of all sessions of a user: two devices that come back at the same time; 4 MB of answers
# (history.PAGE_BYTES_MAX)
USER_READS_MAX: Final = 16
READS_RETRY_MS: Final = 200  # what is under way of a client that reads is answered by then
# Of a `watch` count as a frame of their own: each is judged, looked up, and shown: 0.2 to 1 ms for
# 10
NAMES_A_FRAME: Final = 10
LISTS_MAX: Final = 3  # reads of a page of conversations, while another device moves the cursors in it


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
                    self._read(session, effect.id, partial(self._history, session, effect))
                case protocol.Conversations():
                    self._read(session, effect.id, partial(self._conversations, session, effect))
                case protocol.SetPresence():
                    self._set_presence(session, effect)
                case protocol.WatchRequest():
                    self._begin_watch(session, effect)
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
            self._read(session, request.id, partial(self._late_cursor, session, request, conv))
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

    # ---- reads -----------------------------------------------------------------------------------

    def _read(self, session: Session, id: int, work: Work) -> None:
        """Run a read as a task and reply with what it gives; a function is called in the turn in
        which the reply is sent.
        """
        user = session.user
        assert user is not None
        if session.reads >= READS_MAX or user.reads >= USER_READS_MAX:
            self.metrics.reads_refused += 1
            whose = (
                f"{READS_MAX} reads at once on a connection"
                if session.reads >= READS_MAX
                else f"{USER_READS_MAX} reads of a user at once"
            )
            raise errors.Overloaded(f"at most {whose}", retry_ms=READS_RETRY_MS)
        session.read_begins()
        user.reads += 1
        self.s.tasks.spawn(self._run_read(session, user, id, work))

    async def _run_read(self, session: Session, user: User, id: int, work: Work) -> None:
        try:
            await self._answer_read(session, id, work)
            await resync.written(session)  # until then its answer is in our memory
        finally:
            session.read_ends()
            user.reads -= 1

    async def _answer_read(self, session: Session, id: int, work: Work) -> None:
        try:
            payload = await work()
            await self.delivery.drained(session)
            # Nobody hears it; and the log may have moved since, into whose memory nothing of before
            # must get
            if session.gone:
                return
            if callable(payload):
                payload = payload()
        except errors.Refused as e:
            self.metrics.error(e.code)
            self.metrics.reads_refused += isinstance(e, errors.Overloaded)
            payload = protocol.err(id, e)
        except Exception:
            log.exception("request.bug", user=session.user.id if session.user else None)
            payload = protocol.err(id, errors.Refused("a bug of ours; it is logged"))
        self._send(session, payload)

    async def _takes(self, session: Session) -> bool:
        """Wait for room for an answer, as nothing is read for a client that does not read.

        False: it has gone.
        """
        await self.delivery.drained(session)
        return not session.gone

    async def _history(self, session: Session, request: protocol.History) -> bytes:
        if not await self._takes(session):
            return b""
        user = session.user
        assert user is not None
        conv = self.s.registry.find(user, request.c, request.to)
        page = history.HistoryPage(request.limit, lambda e: self.delivery.stored_item(conv, e, user.id))
        async with self.s.store.read_turns.turn(user.id):
            if session.gone:  # while it waited: nobody hears the answer
                return b""
            more = await history.read(self.s.store, conv, request, page)
        items = page.items if request.after is not None else page.items[::-1]
        return protocol.ok_history(request.id, conv.id, items, more, conv.head, conv.floor)

    async def _conversations(self, session: Session, request: protocol.Conversations) -> Callable[[], bytes] | bytes:
        user = session.user
        assert user is not None
        if not await self._takes(session):
            return b""
        if user.unsure:
            raise errors.Unavailable("what the user has is being looked at again", retry_ms=listing.OPEN_RETRY_MS)
        before = None if request.cursor is None else _place(request.cursor)
        for _ in range(LISTS_MAX):
            # One more tells whether this is the last page
            page = self.s.registry.recent(user, before, request.limit + 1)
            is_last, page = len(page) <= request.limit, page[: request.limit]
            last = [Place(conv.ts, conv.id) for conv in page[-1:]]
            rows = await self._rows_of(user, page)
            await listing.await_heads(self.s, rows)
            await self.delivery.drained(session)  # here, as another device may read while this one's output is paused
            if session.gone or not listing.ahead_of(self.s, rows):
                break
        facts: dict[str, object] = {} if is_last else {"cursor": _cursor_of(*last)}
        return lambda: protocol.reply(
            request.id, conversations=[listing.conversation_item(self.s, user, row) for row in rows], **facts
        )

    async def _rows_of(self, user: User, page: list[Conversation]) -> list[ConvRow]:
        """What the database has of a page. Raises Unavailable."""
        if not page:
            return []
        found = await self.s.store.list_conversations(user.id, [conv.id for conv in page])
        listing.check_pairs(self.s, found.values())
        if len(found) < len(page):
            raise listing.another_log(self.s)  # a row never goes
        return [found[conv.id] for conv in page]

    # ---- presence: see presence_push.py ----------------------------------------------------------

    def _begin_watch(self, session: Session, request: protocol.WatchRequest) -> None:
        session.frames.owe(self.s.clock.now(), len(request.users) / NAMES_A_FRAME)  # here, as many may be read in this turn
        self._read(session, request.id, partial(self._watch, session, request))

    async def _watch(self, session: Session, request: protocol.WatchRequest) -> bytes | Callable[[], bytes]:
        if session.gone:
            return b""  # it left before this began: nobody would ever clear what it watches
        assert session.user is not None
        for name in request.users:
            check_name(session.user, name, "users")
        self.s.presence.watch(session, session.watch(request.users), request.users)
        await self.s.others.look(request.users)
        seen: dict[UserId, int | None] = {}
        await self.delivery.drained(session)
        while self.s.presence_push.unseen(session, request.users, seen):
            seen |= await self.s.presence_push.last_seen(session, request.users)
            await self.delivery.drained(session)  # somebody may leave while the output is paused
        return lambda: protocol.reply(request.id, presence=self.s.presence_push.statuses(session, request.users, seen))

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


def _place(cursor: str) -> Place:
    """Where a page begins.

    Cursors are in us, as nodes of the release before make them; ours are in whole ms and end with
    999.
    """
    try:
        us, id = map(int, cursor.split("."))
        if not (0 <= us < 2**62 and 0 <= id < 2**62):
            raise ValueError
    except ValueError:
        raise errors.BadField("`cursor` must come from an earlier answer", field="cursor") from None
    # Ms are rounded: rather one twice than one never
    return Place(us // 1000, id) if us % 1000 == 999 else Place(us // 1000 + 2, 0)


def _cursor_of(last: Place) -> str:
    return f"{last.ts * 1000 + 999}.{last.id}"
