"""The client of chatd: sends, and gives every entry once, over any number of connections.

    async with Client(url, token=token, device="bot-1") as client:
        await client.send("bob", "hi")
        async for entry in client.entries():
            ...

Guarantees, and what they rest on:
- `send`, `edit`, `delete` return once the entry is durable. They raise RequestError only when it is
  not in the log and never will be. Until one of the two is known they try again, over reconnects,
  with the same cid.
- `entries` gives every entry after the place where this client started, once and in order of seq
  per conversation: the peer's, and this user's own from any device. With `state` it continues where
  that state was taken. inbox.py says how, and what bounds the memory.
- Nothing here waits for a slow reader of `entries` or `events`.

A client is for one event loop and is used once: `open`, then `close`; `state()` outlives it.
Neighbours: `reconnect.py` makes its connections, `session.py` is one of them, `desk.py` keeps what
outlives them. docs/client.md is the page for users.
"""

from __future__ import annotations

import asyncio
import logging
import random
import uuid
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self

from chatd.client import frames
from chatd.client.arguments import check_body, check_user, checked_cid
from chatd.client.desk import Desk
from chatd.client.dial import Dial
from chatd.client.errors import Closed, ConnectionLost, RequestError, Stopped
from chatd.client.frames import ConversationPage, Entry, Event, Frame, Limits, Page, Presence, Sent
from chatd.client.inbox import QUEUE_MAX
from chatd.client.outbox import ITEMS_MAX, Then
from chatd.client.reconnect import Reconnector, Token
from chatd.client.session import Session
from chatd.client.stream import Stream

log = logging.getLogger("chatd.client")

DRAIN_S: Final = 10.0  # longest wait of `close` for the outbox
REPLY_CIDS: Final = uuid.UUID("3c1f0f4e-7a52-4a0b-9d0e-6f1d6b1a2c58")  # namespace of reply_cid


class Client:
    """A user's messages over reconnects; the guarantees are in the module's docstring.

    `token`: the token, or a callable (also async) that returns it; it is called with True when a
    new one is needed. `device` must be stable per installation: another connection with the same
    one ends this client. `state`: what `state()` returned in an earlier process. `auto_ack`:
    entries taken from `entries` count as delivered. `queue_max`: entries in memory that wait for
    the app. `outbox_max`: sends that wait for the server. `options` go to `websockets.connect`.
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
        self._auto_ack = auto_ack
        self._desk = Desk(queue_max, outbox_max)
        if state is not None:
            self._desk.restore(state)
        dial = Dial(rng or random.Random(), renewable=not isinstance(token, str))
        self._reconnector = Reconnector(url, token, device, self._desk, dial, options, live=self._up, down=self._down)
        self._session: Session | None = None  # while live
        self._changed = asyncio.Event()  # set when `_session` or `_ended` changes
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
        """End the client. Idempotent.

        With `drain`, the outbox is sent first, for `drain_s` seconds at most. What is left stays in
        `state()`.
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
        """The user that the token names; "" before the first welcome."""
        return self._desk.user

    @property
    def epoch(self) -> str | None:
        """The epoch of the log: with `c` and `seq` it names an entry for good."""
        return self._desk.inbox.epoch

    @property
    def limits(self) -> Limits:
        """What the server allows."""
        return self._desk.limits

    @property
    def connected(self) -> bool:
        """Whether there is a connection now. Requests wait for one, so few apps need this."""
        return self._session is not None

    def state(self) -> dict[str, Any]:
        """What a later `Client(state=...)` needs to continue from here: a copy, ready for JSON.

        Each entry that `entries` has given counts as done, the one in hand too. Sends whose outcome
        is not known are part of it. It takes time in proportion to the number of conversations.
        """
        return self._desk.save()

    # ---- sending ---------------------------------------------------------------------------------

    async def send(self, peer: str, body: str, *, cid: str | None = None) -> Sent:
        """Send a message to the user `peer`; returns once it is durable.

        Calls in one conversation keep their order. With a `cid` of your own (a UUID) the message is
        stored once, however often and by whichever process it is sent, as long as history is kept.
        Cancelling withdraws the message only if it is certain that it was not stored. Otherwise the
        client keeps sending it: it may be in the log, now or later. Raises RequestError (refused
        for good), OutboxFull, Stopped.
        """
        return await self._enter(peer, "message", body, None, cid)

    async def edit(self, peer: str, seq: int, body: str, *, cid: str | None = None, refcid: str | None = None) -> Sent:
        """Replace the text of one's own message `seq`. As `send`; also raises EpochChanged.

        `refcid`: the cid of that message (`Entry.cid`). The client knows it for messages that it
        sent or received. Without it, an edit that is not stored before the log is restored from a
        backup raises EpochChanged, because another message may stand at `seq` then.
        """
        return await self._enter(peer, "edit", body, seq, cid, refcid)

    async def delete(self, peer: str, seq: int, *, cid: str | None = None, refcid: str | None = None) -> Sent:
        """Remove the text of one's own message `seq`. As `edit`."""
        return await self._enter(peer, "delete", None, seq, cid, refcid)

    def reply_cid(self, entry: Entry, n: int = 0) -> str:
        """The cid of the n-th message that answers `entry`.

        It is the same each time, so an entry that is handled twice is answered once.
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
        outcome_unknown = cid is not None
        cid = str(uuid.uuid4()) if cid is None else checked_cid(cid)
        item, future = self._desk.add(
            peer, cid, kind, body, ref, None if refcid is None else checked_cid(refcid), outcome_unknown=outcome_unknown
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

        Ends after `close`. If the client ended otherwise, raises Stopped after the last entry.
        """
        return Stream(self._next_entry)

    def events(self) -> Stream[Event]:
        """Receipts, presence, typing, notices, resets, and refusals of sends that nobody awaits.

        A newer event replaces an older one about the same thing.
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

        The server gets it soon, together with others; this call waits for nothing.
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
        """A page of the conversations, that with the latest entry first.

        The `cursor` of a page asks for the next.
        """
        return frames.conversation_page(
            await self._ask("conversations", {"limit": limit} | ({} if cursor is None else {"cursor": cursor}))
        )

    async def watch(self, users: Sequence[str]) -> tuple[Presence, ...]:
        """Watch the presence of these users in `events`, over reconnects; replaces the last list.

        Returns their presence now.
        """
        for user in users:
            check_user(user)
        self._desk.watch(tuple(dict.fromkeys(users)))
        snapshot = frames.presences(await self._ask("watch", {"users": self._desk.watched}))
        self._desk.seen(snapshot)
        return snapshot

    async def typing(self, peer: str) -> None:
        """Show `peer` that this user is typing; does nothing without a connection.

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
        """Ask over reconnects and after `retry_ms`, until there is an answer.

        For requests that may be repeated.
        """
        while True:
            session = await self._live()
            try:
                return await session.link.request(t, keys | ({} if peer is None else session.where(peer)))
            except ConnectionLost:
                if self._session is session:  # this coroutine saw its end before the reconnector did
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

    def _up(self, session: Session) -> None:
        self._session = session
        self._changed.set()

    def _down(self) -> None:
        self._session = None

    def _finish(self, error: Stopped) -> None:
        """End with `error`; after the first call the first reason stays."""
        if self._ended is None:
            self._ended = error
        self._down()
        self._desk.end(self._ended)
        self._changed.set()

    async def _keep_connected(self) -> None:
        try:
            await self._reconnector.run()
        except asyncio.CancelledError:
            self._finish(Closed())
            raise
        except Stopped as e:
            self._finish(e)
        except Exception as e:
            self._finish(Stopped("bug", detail=repr(e)))
            log.exception("the client failed; please report this")
