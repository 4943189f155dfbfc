"""The client of chatd: send, and see every entry once, over any number of connections.

    async with Client(url, token=token, device="bot-1") as client:
        await client.send("bob", "hi")
        async for entry in client.entries():
            ...

Guarantees, and what they rest on:
- `send`, `edit`, `delete` return once the entry is durable, and raise RequestError only when it is
  not in the log and never will be. Until one of the two is known they go on, over reconnects, with
  the same cid.
- `entries` gives every entry after the place where this client started, once and in order of seq
  per conversation: the peer's, and this user's own, whichever device sent them. With `state` it
  goes on where that state was taken. See inbox.py for how, and for the bound on memory.
- Nothing here waits for a slow reader of `entries` or `events`.

A client is for one event loop, and lives once: `open`, then `close`; what outlives it is `state()`.
Neighbours: `session.py` is one of its connections, `desk.py` what it keeps between them, `dial.py`
says when to connect again. docs/client.md is the page for those who use it.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import random
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self, TypeAlias

import orjson
from websockets.exceptions import InvalidStatus, WebSocketException

from chatd.client import frames
from chatd.client.arguments import check_body, check_user, checked_cid
from chatd.client.desk import Desk
from chatd.client.dial import SETTLED_S, Dial, Next
from chatd.client.errors import Closed, ConnectionLost, NoToken, ProtocolError, RequestError, Stopped
from chatd.client.frames import ConversationPage, Entry, Event, Frame, Limits, Page, Presence, Sent
from chatd.client.inbox import QUEUE_MAX
from chatd.client.link import Link
from chatd.client.outbox import ITEMS_MAX, Then
from chatd.client.session import Session
from chatd.client.stream import Stream

log = logging.getLogger("chatd.client")

Token: TypeAlias = str | Callable[[bool], str | Awaitable[str]]

DRAIN_S: Final = 10.0
TOKEN_S: Final = 30.0
HELD_FRAMES_MAX: Final = 20_000  # pushes that overtake the end of a welcome
HELLO_MARGIN_BYTES: Final = 64
REPLY_CIDS: Final = uuid.UUID("3c1f0f4e-7a52-4a0b-9d0e-6f1d6b1a2c58")  # namespace of reply_cid


class Client:
    """See the module.

    `token`: the token, or a callable (also async) that gives it; it is called with True when a new
    one is needed.

    `device` must be stable per installation: another connection with the same one ends this one for
    good. `state`: what `state()` gave in an earlier process. `auto_ack`: entries that were taken
    from `entries` count as delivered. `options` go to `websockets.connect`.
    """

    def __init__(
        self,
        url: str,
        *,
        token: Token,
        device: str,
        state: Mapping[str, Any] | None = None,
        auto_ack: bool = True,
        queue_max: int = QUEUE_MAX,
        outbox_max: int = ITEMS_MAX,
        options: Mapping[str, Any] | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.url, self.device = url, device
        self._token, self._auto_ack, self._options = token, auto_ack, options
        self._desk = Desk(queue_max, outbox_max)
        if state is not None:
            self._desk.restore(state)
        self._dial = Dial(rng or random.Random(), renewable=not isinstance(token, str))
        self._bare = False  # say hello without places: the server refused them
        self._session: Session | None = None  # while live
        self._changed = asyncio.Event()  # `_session` or `_ended` did
        self._ended: Stopped | None = None
        self._closing = False
        self._task: asyncio.Task[None] | None = None

    # ---- life ------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Connect, and wait for the first welcome, however long it takes.

        Raises Stopped where trying again would not help.
        """
        if self._task is not None or self._ended is not None:
            raise RuntimeError("a Client lives once: make a new one, with state= to go on from the old one")
        self._task = asyncio.create_task(self._keep_connected(), name=f"chatd client {self.device}")
        try:
            await self._live()
        except BaseException:
            await self.close(drain=False)
            raise

    async def close(self, *, drain: bool = True, drain_s: float = DRAIN_S) -> None:
        """End it.

        With `drain`, what waits in the outbox is sent before, for `drain_s` at most; the rest stays
        in `state()`. Idempotent.
        """
        self._closing = True
        if drain and self._ended is None and self._task is not None:
            try:
                async with asyncio.timeout(drain_s):
                    await self._desk.emptied.wait()
            except TimeoutError:
                log.warning("closing with %s messages unsent", self._desk.outbox.size)
        if self._session is not None:
            self._session.tell()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._finish(Closed())

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close(drain=kind is None)

    @property
    def user(self) -> str:
        """Whom the token names; "" before the first welcome."""
        return self._desk.user

    @property
    def epoch(self) -> str | None:
        """Of the log that entries come from: with `c` and `seq` it names an entry for ever."""
        return self._desk.inbox.epoch

    @property
    def limits(self) -> Limits:
        """What the server allows."""
        return self._desk.limits

    @property
    def connected(self) -> bool:
        """Just now. Nothing need be made of it: requests wait for a connection."""
        return self._session is not None

    def state(self) -> dict[str, Any]:
        """What a later `Client(state=...)` needs to go on from here: JSON-able, a copy.

        It counts each entry that `entries` has given as done, the one in hand too; and it holds
        what is not yet known to be sent. Costs time in proportion to the number of conversations.
        """
        return self._desk.save()

    # ---- sending ---------------------------------------------------------------------------------

    async def send(self, peer: str, body: str, *, cid: str | None = None) -> Sent:
        """Send a message to the user `peer`; returns once it is durable.

        Calls in one conversation keep their order.

        With a `cid` of your own (a UUID) the send is done once however often it is asked for, by
        any process, for as long as history is kept. Cancelling takes the message back only if it
        has surely not been stored; otherwise it goes on being sent: it may be in the log, now or
        later. Raises RequestError (refused for good), OutboxFull, Stopped.
        """
        return await self._enter(peer, "message", body, None, cid)

    async def edit(self, peer: str, seq: int, body: str, *, cid: str | None = None, refcid: str | None = None) -> Sent:
        """Give one's own message `seq` another text. As `send`; also raises EpochChanged.

        `refcid`: the cid of that message (`Entry.cid`). Known for the messages of this client and
        those that it was given; without it an edit that is not stored before the log is restored
        from a backup raises EpochChanged, for another message may stand at `seq` now.
        """
        return await self._enter(peer, "edit", body, seq, cid, refcid)

    async def delete(self, peer: str, seq: int, *, cid: str | None = None, refcid: str | None = None) -> Sent:
        """Take the text out of one's own message `seq`. As `edit`."""
        return await self._enter(peer, "delete", None, seq, cid, refcid)

    def reply_cid(self, entry: Entry, n: int = 0) -> str:
        """A cid for the n-th thing sent because of `entry`: the same whenever it is asked for, so
        that handling an entry twice sends once.
        """
        return str(uuid.uuid5(REPLY_CIDS, f"{self.epoch}/{entry.c}/{entry.seq}/{n}"))

    async def _enter(
        self, peer: str, kind: str, body: str | None, ref: int | None, cid: str | None, refcid: str | None = None
    ) -> Sent:
        if self._closing or self._ended is not None:
            raise self._ended or Closed()
        check_user(peer)
        if body is not None:
            check_body(body, self.limits.body_bytes)
        doubtful = cid is not None
        cid = str(uuid.uuid4()) if cid is None else checked_cid(cid)
        item, future = self._desk.add(
            peer, cid, kind, body, ref, None if refcid is None else checked_cid(refcid), doubtful=doubtful
        )
        try:
            return await future
        except asyncio.CancelledError:
            if self._desk.leave(item, future) is Then.SKIP and self._session is not None:
                self._session.skip(peer, cid)
            raise

    # ---- receiving -------------------------------------------------------------------------------

    def entries(self) -> Stream[Entry]:
        """Every entry, once.

        Ends after `close`; raises Stopped if the client ended otherwise, after the last entry it
        had.
        """
        return Stream(self._next_entry)

    def events(self) -> Stream[Event]:
        """Receipts, presence, typing, notices, resets, refusals of what nobody waits for.

        A newer one replaces an older one about the same thing.
        """
        return Stream(self._next_event)

    async def _next_entry(self) -> Entry | None:
        desk = self._desk
        while True:
            if isinstance(self._ended, Closed):
                return None
            if (entry := desk.inbox.take()) is not None:
                desk.to_fill.set()
                if self._auto_ack and not entry.own:
                    desk.cursors.ack(entry.c, entry.seq)
                    desk.to_tell.set()
                return entry
            if self._ended is not None:
                raise self._ended
            desk.arrived.clear()
            await desk.arrived.wait()

    async def _next_event(self) -> Event | None:
        events = self._desk.events
        while (event := events.take()) is None:
            if isinstance(self._ended, Closed):
                return None
            if self._ended is not None:
                raise self._ended
            events.news.clear()
            await events.news.wait()
        return event

    async def read(self, peer: str, seq: int) -> None:
        """The user has seen everything up to `seq`.

        Told to the server soon, together with others; nothing is waited for.
        """
        self._desk.cursors.read(self._known(peer, seq), seq)
        self._desk.to_tell.set()

    async def ack(self, peer: str, seq: int) -> None:
        """This device has everything up to `seq`: for clients without `auto_ack`. As `read`."""
        self._desk.cursors.ack(self._known(peer, seq), seq)
        self._desk.to_tell.set()

    def _known(self, peer: str, seq: int) -> str:
        c = self._desk.inbox.names.get(peer)
        if c is None:
            raise RequestError("no_conversation", "no such conversation of yours")
        if not 1 <= seq <= self._desk.inbox.places[c].head:
            raise RequestError(
                "bad_seq", f"seq {seq} is beyond the head, {self._desk.inbox.places[c].head}", field="seq"
            )
        return c

    # ---- asking ----------------------------------------------------------------------------------

    async def history(self, peer: str, *, before: int | None = None, after: int | None = None, limit: int = 50) -> Page:
        """A page of the log: the newest, or older than `before`, or newer than `after`.

        `limit` counts messages.
        """
        check_user(peer)
        keys = {"before": before, "after": after, "limit": limit}
        reply = await self._ask("history", {k: v for k, v in keys.items() if v is not None}, peer)
        page = frames.page(reply, self.user)
        for entry in page.entries:
            if entry.own and entry.cid is not None and entry.kind == "message":
                self._desk.own(peer, entry.seq, entry.cid)
        return page

    async def conversations(self, *, limit: int = 50, cursor: str | None = None) -> ConversationPage:
        """A page of the conversations, the latest entry first; go on with the `cursor` of the page
        before.
        """
        return frames.conversation_page(
            await self._ask("conversations", {"limit": limit} | ({} if cursor is None else {"cursor": cursor}))
        )

    async def watch(self, users: Sequence[str]) -> tuple[Presence, ...]:
        """Whose presence `events` tells, from now on and over reconnects; replaces the last list.

        Returns how they stand now.
        """
        for user in users:
            check_user(user)
        self._desk.watch(tuple(dict.fromkeys(users)))
        snapshot = frames.presences(await self._ask("watch", {"users": self._desk.watched}))
        self._desk.seen(snapshot)
        return snapshot

    async def typing(self, peer: str) -> None:
        """Tell `peer` that one is typing; lost without a word where there is no connection.

        Raises RequestError (`not_open`).
        """
        check_user(peer)
        session = self._session
        if session is None:
            return
        try:
            await session.link.request("typing", session.where(peer))
        except ConnectionLost:
            return
        except RequestError as e:
            if e.retry_ms is None:
                raise

    async def set_away(self, away: bool) -> None:
        """Whether this device is idle; holds over reconnects."""
        self._desk.away = away
        if self._session is not None:
            await self._ask("presence", {"state": "away" if away else "online"})

    async def _ask(self, t: str, keys: dict[str, Any], peer: str | None = None) -> Frame:
        """A request that may be asked any number of times: over reconnects and after `retry_ms`,
        until there is an answer.
        """
        while True:
            session = await self._live()
            try:
                return await session.link.request(t, keys | ({} if peer is None else session.where(peer)))
            except ConnectionLost:
                if self._session is session:  # its end is seen here before it is seen there
                    self._down()
            except RequestError as e:
                if e.retry_ms is None:
                    raise
                await asyncio.sleep(e.retry_ms / 1000)

    # ---- the connection --------------------------------------------------------------------------

    async def _live(self) -> Session:
        """The session, once there is one. Raises Stopped."""
        while self._session is None or self._session.draining:
            if self._ended is not None:
                raise self._ended
            self._changed.clear()
            await self._changed.wait()
        return self._session

    def _down(self) -> None:
        self._session = None

    def _finish(self, error: Stopped) -> None:
        """Idempotent: the first reason stands."""
        if self._ended is None:
            self._ended = error
        self._down()
        self._desk.end(self._ended)
        self._changed.set()

    async def _keep_connected(self) -> None:
        try:
            while True:
                then = await self._connect_once()
                log.debug("connection over: %s; next in %s s", then.reason, then.wait_s)
                if then.wait_s is None:
                    self._finish(Stopped(then.reason))
                    return
                await asyncio.sleep(then.wait_s)
        except asyncio.CancelledError:
            self._finish(Closed())
            raise
        except Stopped as e:
            self._finish(e)
        except Exception as e:
            self._finish(Stopped("bug", detail=repr(e)))
            log.exception("the client failed; please report this")

    async def _connect_once(self) -> Next:
        """One connection, from the token to its end."""
        try:
            async with asyncio.timeout(TOKEN_S):
                token = await self._a_token(self._dial.renew)
        except NoToken as e:
            raise Stopped("no_token", detail=str(e)) from e
        except Exception as e:  # the callable is the app's, and may raise anything
            log.warning("no token: %r", e)
            return self._dial.no_token()
        try:
            link = await Link.open(self.url, self._options)
        except InvalidStatus as e:
            return self._dial.unreachable(e.response.status_code)
        except (OSError, TimeoutError, WebSocketException) as e:
            log.debug("cannot connect: %r", e)
            return self._dial.unreachable()
        try:
            return await self._serve(link, token)
        finally:
            self._down()
            self._desk.outbox.disconnected()
            await link.close()

    async def _serve(self, link: Link, token: str) -> Next:
        held: list[Frame] = []

        def hold(frame: Frame) -> None:
            held.append(frame)
            if len(held) > HELD_FRAMES_MAX:
                raise ProtocolError("too many pushes before the end of the welcome")

        link.on_frame = hold
        keys = self._hello(token)
        try:
            welcome = frames.welcome(await link.hello(keys))
        except RequestError as e:
            return self._hello_refused(e, "epoch" in keys)
        except ConnectionLost as e:
            return self._dial.closed(e.close_code)
        except (TimeoutError, ProtocolError) as e:
            log.warning("no welcome: %r", e)
            return self._dial.left("no_welcome")
        if self.user not in ("", welcome.user):
            raise Stopped("another_user", detail=f"the token is of {welcome.user}, the state of {self.user}")
        new_token = None if isinstance(self._token, str) else lambda: self._a_token(True)
        session = Session(self._desk, link, new_token, said_away=keys["state"] == "away")
        session.enter(welcome, held)
        self._dial.live()
        self._bare = False
        self._session = session
        self._changed.set()
        settled = asyncio.get_running_loop().call_later(SETTLED_S, self._dial.settled)
        try:
            await session.run(welcome)
        finally:
            settled.cancel()
        wait_s = None if session.retry_at is None else max(0.0, session.retry_at - asyncio.get_running_loop().time())
        if session.reason not in (None, "restart"):
            return self._dial.left(session.reason)
        return self._dial.closed(link.close_code or 1012, named_s=wait_s)

    def _hello(self, token: str) -> dict[str, Any]:
        keys: dict[str, Any] = {
            "token": token,
            "device": self.device,
            "state": "away" if self._desk.away else "online",
            "features": [],
        }
        if self._bare:
            return keys | self._desk.inbox.bare()
        room = self.limits.frame_bytes - len(orjson.dumps(keys)) - HELLO_MARGIN_BYTES
        return keys | self._desk.inbox.hello(room)

    def _hello_refused(self, error: RequestError, resuming: bool) -> Next:
        log.warning("hello was refused: %s", error)
        if error.retry_ms is None and resuming and error.code not in ("unauthorized", "token_expired"):
            self._bare = True  # perhaps the mark or a cursor is what it refuses; without them it lists everything
            return self._dial.left(error.code)
        return self._dial.refused(error.code, error.retry_ms)

    async def _a_token(self, renew: bool) -> str:
        if isinstance(self._token, str):
            return self._token
        token = self._token(renew)
        return await token if inspect.isawaitable(token) else token
