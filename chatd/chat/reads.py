"""Reads: the requests whose answer needs the database. Each runs as a task.

    Chat.handle ──► Reads.history, conversations, watch ──► begin ──task──► answer ──► session

A read is under way until its answer has left the queue of its connection. There are at most
`READS_MAX` of a session and `USER_READS_MAX` of a user; at the database, one user after another
has a turn (postgres/fair_queue.py). Nothing is read for a client whose output is paused.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Final, TypeAlias

import structlog

from chatd import errors, protocol
from chatd.chat import entry_payloads, history, listing, resync
from chatd.chat.loading import Loading
from chatd.chat.services import Services
from chatd.core.conversations import check_name
from chatd.core.recent_conversations import Place, Recent
from chatd.core.session import Session, User
from chatd.ids import ConvId, UserId
from chatd.postgres.rows import ConvRow
from chatd.wire.frames import encode_text

log = structlog.get_logger("chat")

# The answer, or a function that makes it: called in the loop turn in which the answer is sent, so
# that what it says of memory is true then
Answer: TypeAlias = bytes | Callable[[], bytes]
Work: TypeAlias = Callable[[], Coroutine[Any, Any, Answer]]  # a read: called by the task that runs it

READS_MAX: Final = 8  # of one session at once
# Of all sessions of a user: two devices that connect again at the same time; 4 MB of answers
# (history.PAGE_BYTES_MAX)
USER_READS_MAX: Final = 16
READS_RETRY_MS: Final = 200  # a client that reads has its answers by then
# A `watch` counts as one more frame for each so many names: to check, look up and show 10 names
# takes 0.2 to 1 ms
NAMES_A_FRAME: Final = 10
_CURSOR: Final = re.compile(r"([0-9]{1,19})\.([0-9]{1,19})")
LISTS_MAX: Final = 3  # reads of a page of conversations, while another device moves the cursors in it


class Reads:
    """Of all sessions of a node."""

    def __init__(self, services: Services, loading: Loading) -> None:
        self._s, self._loading = services, loading
        self._filling: dict[Recent, asyncio.Task[None]] = {}  # orders that are being read

    # ---- one per request: each raises Overloaded if too many are under way ----------------------

    def history(self, session: Session, request: protocol.History) -> None:
        self.begin(session, request.id, partial(self._history, session, request))

    def conversations(self, session: Session, request: protocol.Conversations) -> None:
        self.begin(session, request.id, partial(self._conversations, session, request))

    def watch(self, session: Session, request: protocol.WatchRequest) -> None:
        # Before the task: further requests may be read in this turn
        session.frames.owe(self._s.clock.now(), len(request.users) / NAMES_A_FRAME)
        self.begin(session, request.id, partial(self._watch, session, request))

    # ---- their life -----------------------------------------------------------------------------

    def begin(self, session: Session, id: int, work: Work) -> None:
        """Run a read as a task, and send what it gives as the reply to request `id`. Raises
        Overloaded.
        """
        user = session.user
        assert user is not None
        if session.reads >= READS_MAX or user.reads >= USER_READS_MAX:
            self._s.metrics.reads_refused += 1
            whose = (
                f"{READS_MAX} reads at once on a connection"
                if session.reads >= READS_MAX
                else f"{USER_READS_MAX} reads of a user at once"
            )
            raise errors.Overloaded(f"at most {whose}", retry_ms=READS_RETRY_MS)
        session.read_begins()
        user.reads += 1
        self._s.tasks.spawn(self._run(session, user, id, work))

    async def _run(self, session: Session, user: User, id: int, work: Work) -> None:
        try:
            await self._answer(session, id, work)
            await resync.written(session)  # until then its answer is in our memory
        finally:
            session.read_ends()
            user.reads -= 1

    async def _answer(self, session: Session, id: int, work: Work) -> None:
        metrics = self._s.metrics
        try:
            payload = await work()
            if not await self._has_room(session):
                # The log may have been replaced since: nothing from before may get into memory
                return
            if callable(payload):
                payload = payload()
        except errors.Refused as e:
            metrics.error(e.code)
            metrics.reads_refused += isinstance(e, errors.Overloaded)
            payload = protocol.err(id, e)
        except Exception:
            log.exception("request.bug", user=session.user.id if session.user else None)
            payload = protocol.err(id, errors.Refused("a bug of ours; it is logged"))
        session.sink.send(encode_text(payload))

    async def _has_room(self, session: Session) -> bool:
        """Wait until the client takes more. False: the session has ended, nobody gets an answer."""
        await session.sink.drained()
        return not session.gone

    # ---- what each of them reads ----------------------------------------------------------------

    async def _history(self, session: Session, request: protocol.History) -> bytes:
        if not await self._has_room(session):
            return b""
        s, user = self._s, session.user
        assert user is not None
        conv = await self._loading.find(user, request.c, request.to)
        page = history.HistoryPage(request.limit, lambda e: entry_payloads.stored_item(conv, e, user.id))
        async with s.store.read_turns.turn(user.id):
            if session.gone:  # it ended while this waited for its turn
                return b""
            more = await history.read(s.store.history.of(conv, session.position), conv, request, page)
        items = page.items if request.after is not None else page.items[::-1]
        return protocol.ok_history(request.id, conv.id, items, more, conv.head, conv.floor)

    async def _conversations(self, session: Session, request: protocol.Conversations) -> Answer:
        s, user = self._s, session.user
        assert user is not None
        if not await self._has_room(session):
            return b""
        if user.unsure:
            raise errors.Unavailable("what the user has is being looked at again", retry_ms=listing.OPEN_RETRY_MS)
        before = None if request.cursor is None else _place(request.cursor)
        for _ in range(LISTS_MAX):
            # One more than asked for tells whether this is the last page
            page = (await self._recent(user)).page(before, request.limit + 1)
            is_last, page = len(page) <= request.limit, page[: request.limit]
            last = page[-1:]
            rows = await self._rows(user, page)
            await listing.await_heads(s, rows)
            # Another device may move the cursors while this one's output is paused
            if not await self._has_room(session) or not listing.ahead_of(s, rows):
                break
        facts: dict[str, object] = {} if is_last else {"cursor": _cursor(*last)}
        return lambda: protocol.reply(
            request.id, conversations=[listing.conversation_item(s, user, row) for row in rows], **facts
        )

    async def _recent(self, user: User) -> Recent:
        """The order of a user's conversations, made for their sessions' first page.

        Raises Unavailable, Overloaded.
        """
        if (recent := user.recent) is None:
            recent = user.recent = Recent()  # before the read: what gets an entry during it is touched
            if self._s.registry.holds_all:
                recent.fill((conv.ts, conv.id) for conv in user.peers.values() if conv.head)
            else:
                self._filling[recent] = self._s.tasks.spawn(self._fill(user, recent))
        if (filling := self._filling.get(recent)) is not None:
            await asyncio.shield(filling)
            if user.recent is not recent:
                raise errors.Unavailable("the order of the conversations cannot be read", retry_ms=READS_RETRY_MS)
        return recent

    async def _fill(self, user: User, recent: Recent) -> None:
        try:
            recent.fill(await self._s.store.list_recent(user.id))
        except errors.Retryable:
            if user.recent is recent:
                user.recent = None
        finally:
            del self._filling[recent]

    async def _rows(self, user: User, page: list[Place]) -> list[ConvRow]:
        """The rows of a page of conversations. Raises Unavailable."""
        if not page:
            return []
        found = await self._s.store.list_conversations(user.id, [ConvId(place.id) for place in page])
        listing.check_pairs(self._s, found.values())
        if len(found) < len(page):
            raise listing.another_log(self._s)  # rows are never deleted
        return [found[ConvId(place.id)] for place in page]

    async def _watch(self, session: Session, request: protocol.WatchRequest) -> Answer:
        if session.gone:
            return b""  # it ended before this began: what it watches would never be cleared
        s = self._s
        assert session.user is not None
        await self._check_names(session.user, request.users)
        if _left(session):
            return b""
        s.presence.watch(session, session.watch(request.users), request.users)
        await s.presence_push.learn(session, request.users)
        await s.others.look(request.users)
        seen: dict[UserId, int | None] = {}
        await session.sink.drained()
        while s.presence_push.unseen(session, request.users, seen):
            seen |= await s.presence_push.last_seen(session, request.users)
            await session.sink.drained()  # a user may go offline while the output is paused
        return lambda: protocol.reply(request.id, presence=s.presence_push.statuses(session, request.users, seen))

    async def _check_names(self, user: User, names: Sequence[UserId]) -> None:
        """Raises BadField for a name that is none; Unavailable, Overloaded."""
        for name in names:
            try:
                check_name(user, name, "users")
            except errors.BadField:
                if self._s.registry.holds_all:
                    raise
                await self._loading.load_peer(user, name)  # it may be older than today's rules
                check_name(user, name, "users")


def _left(session: Session) -> bool:
    """Whether the connection has ended during a wait."""
    return session.gone


def _place(cursor: str) -> Place:
    """Where a page of conversations begins.

    A cursor has us since 1970 and an id. Nodes of the release before write exact us; this one
    writes whole ms, which end with 999.
    """
    found = _CURSOR.fullmatch(cursor)
    if found is None or not (us := int(found[1])) < 2**62 > (id := int(found[2])):
        raise errors.BadField("`cursor` must come from an earlier answer", field="cursor")
    # Ms are rounded: a conversation rather twice than never
    return Place(us // 1000, id) if us % 1000 == 999 else Place(us // 1000 + 2, 0)


def _cursor(last: Place) -> str:
    return f"{last.ts * 1000 + 999}.{last.id}"
