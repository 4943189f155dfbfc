"""What a client sends: messages, edits and deletes, each stored once and in the order of the calls.

submit ──► Sending: cid, state, cancel(), await      send = submit and await; a send that is
                                                     cancelled is taken back where that is safe
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Generator
from typing import Any, Final, Literal, TypeAlias

from chatd.client import frames
from chatd.client.arguments import check_body, check_user, checked_cid
from chatd.client.errors import CidTaken, ClientError, Closed, RequestError, Stopped, Withdrawn
from chatd.client.life import Life
from chatd.client.outbox import Item, Then
from chatd.client.values import Entry, Kind, Sent, Unsent

log = logging.getLogger("chatd.client")

REPLY_CIDS: Final = uuid.UUID("3c1f0f4e-7a52-4a0b-9d0e-6f1d6b1a2c58")  # namespace of reply_cid

# `queued`: it waits here. `sending`: the server may have it. `failed`: it is not in the log and
# never will be. `withdrawn`: `cancel` took it back.
SendingState: TypeAlias = Literal["queued", "sending", "sent", "failed", "withdrawn"]


class Sending:
    """A send, edit or delete, from `Client.submit` to its end.

    `await` it for its place; that raises what `Client.send` raises. Cancelling who awaits it does
    not touch it. A failure that nobody awaits is an `Unsent` event.
    """

    def __init__(
        self, client: Sends, item: Item, future: asyncio.Future[Sent], *, given_cid: bool, follows: bool = False
    ) -> None:
        self._client, self._item, self._future, self._given_cid = client, item, future, given_cid
        self._awaited, self._follows = False, follows
        future.add_done_callback(self._ended)

    @property
    def peer(self) -> str:
        """Whom it is for."""
        return self._item.peer

    @property
    def cid(self) -> str:
        """The id that it is stored under once."""
        return self._item.cid

    @property
    def kind(self) -> Kind:
        """`message`, `edit` or `delete`."""
        return self._item.kind

    @property
    def body(self) -> str | None:
        """The text; None for a delete."""
        return self._item.body

    @property
    def state(self) -> SendingState:
        """Where it is now."""
        if not self._future.done():
            return "queued" if self._item.surely_not_done else "sending"
        match self.error:
            case None:
                return "sent"
            case Withdrawn():
                return "withdrawn"
            case Stopped():  # the client's state has it still
                return "queued" if self._item.surely_not_done else "sending"
            case _:
                return "failed"

    @property
    def error(self) -> BaseException | None:
        """Why it failed; None while it has not."""
        return self._future.exception() if self._future.done() else None

    def cancel(self) -> bool:
        """Take it back. True: it is not in the log and never will be.

        False: it is stored, or may be, or somebody else waits for the same cid (which does not
        matter to a handle of `Client.waiting`). Then it goes on.
        """
        if self._future.done():
            return isinstance(self.error, Withdrawn)
        return self._client._withdraw(self._item, None if self._follows else self._future)

    def amend(self, body: str) -> bool:
        """Another text for it, where it surely is not in the log. True: that one is sent.

        Raises what `Client.send` raises for a text that no server takes.
        """
        check_body(body, self._client.limits.body_bytes)
        return not self._future.done() and self._client._desk.amend(self._item, body)

    def __await__(self) -> Generator[Any, None, Sent]:
        return self._result().__await__()

    async def _result(self) -> Sent:
        self._awaited = True
        sent = await asyncio.shield(self._future)
        if self._given_cid and sent.dup:
            await self._client._check_same(self._item, sent)
        return sent

    def _ended(self, future: asyncio.Future[Sent]) -> None:
        error = future.exception()
        if not self._awaited and not self._follows and isinstance(error, ClientError):
            self._client._unsent(self._item, error)


class Sends(Life):
    """See the module."""

    async def send(self, peer: str, body: str, *, cid: str | None = None) -> Sent:
        """Send a message to the user `peer`; returns once it is durable.

        Calls in one conversation keep their order. With a `cid` of your own (a UUID) the message is
        stored once, however often and by whichever process it is sent, as long as history is kept.
        Cancelling withdraws the message only if it is certain that it was not stored. Otherwise the
        client keeps sending it: it may be in the log, now or later. Raises RequestError (refused
        for good), CidTaken, OutboxFull, Stopped.
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

    def submit(self, peer: str, body: str, *, cid: str | None = None) -> Sending:
        """Send a message without waiting: a handle that can be awaited, asked and cancelled.

        Raises at once what no server would take, and OutboxFull.
        """
        return self._sending(peer, "message", body, None, cid)

    def submit_edit(
        self, peer: str, seq: int, body: str, *, cid: str | None = None, refcid: str | None = None
    ) -> Sending:
        """As `edit`, by a handle."""
        return self._sending(peer, "edit", body, seq, cid, refcid)

    def submit_delete(self, peer: str, seq: int, *, cid: str | None = None, refcid: str | None = None) -> Sending:
        """As `delete`, by a handle."""
        return self._sending(peer, "delete", None, seq, cid, refcid)

    def waiting(self) -> list[Sending]:
        """The handles of what waits to be sent, also of what an earlier process left: in order in a
        conversation.
        """
        self._check()
        desk = self._desk
        return [Sending(self, x, desk.follow(x), given_cid=False, follows=True) for x in desk.outbox.items()]

    async def room(self) -> None:
        """Wait until the outbox takes another send: then the next one does not raise OutboxFull."""
        self._check()
        desk = self._desk
        while not desk.outbox.has_room:
            desk.has_room.clear()
            await desk.has_room.wait()
            self._check()

    def reply_cid(self, entry: Entry, n: int = 0) -> str:
        """The cid of the n-th message that answers `entry`.

        It is the same each time, so an entry that is handled twice is answered once.
        """
        return str(uuid.uuid5(REPLY_CIDS, f"{entry.epoch or self.epoch}/{entry.c}/{entry.seq}/{n}"))

    async def answer(self, entry: Entry, body: str, n: int = 0) -> Sent:
        """`Entry.reply`."""
        sending = self._sending(entry.peer, "message", body, None, self.reply_cid(entry, n), answers=True)
        return await self._finished(sending)

    async def _enter(
        self, peer: str, kind: Kind, body: str | None, ref: int | None, cid: str | None, refcid: str | None = None
    ) -> Sent:
        return await self._finished(self._sending(peer, kind, body, ref, cid, refcid))

    @staticmethod
    async def _finished(sending: Sending) -> Sent:
        try:
            return await sending
        except asyncio.CancelledError:
            sending._client._leave(sending._item, sending._future)
            raise

    def _sending(
        self,
        peer: str,
        kind: Kind,
        body: str | None,
        ref: int | None,
        cid: str | None,
        refcid: str | None = None,
        *,
        answers: bool = False,
    ) -> Sending:
        self._check()
        if self._closing:
            raise Closed
        check_user(peer)
        if body is not None:
            check_body(body, self.limits.body_bytes)
        self._desk.typed.pop(peer, None)  # a message ends the typing; the next sign goes out at once
        given_cid = cid is not None
        cid = str(uuid.uuid4()) if cid is None else checked_cid(cid)
        refcid = None if refcid is None else checked_cid(refcid)
        item, future = self._desk.add(peer, cid, kind, body, ref, refcid, outcome_unknown=given_cid, same=not answers)
        return Sending(self, item, future, given_cid=given_cid and not answers)

    def _leave(self, item: Item, future: asyncio.Future[Sent]) -> None:
        """Who waited was cancelled."""
        if self._desk.leave(item, future) is Then.SKIP and self._session is not None:
            self._session.skip(item.peer, item.cid)

    def _withdraw(self, item: Item, future: asyncio.Future[Sent] | None) -> bool:
        """`future`: of its owner, who must be the only one; None: also where others wait."""
        then = self._desk.take_back(item) if future is None else self._desk.withdraw(item, future)
        if then is Then.SKIP and self._session is not None:
            self._session.skip(item.peer, item.cid)
        return then is not Then.AGAIN

    def _unsent(self, item: Item, error: ClientError) -> None:
        if isinstance(error, Withdrawn | Stopped):
            return
        code, msg = (error.code, error.msg) if isinstance(error, RequestError) else ("epoch_changed", str(error))
        log.warning("a %s nobody waits for was refused: %s", item.kind, code)
        self._desk.events.add(Unsent(item.peer, item.cid, item.kind, item.body, item.ref, code, msg))

    async def _check_same(self, item: Item, sent: Sent) -> None:
        """A dup is the place of whatever has this cid: raise CidTaken if that is something else.

        What cannot be had any more, or was edited since, is taken for the same.
        """
        try:
            reply = await self._ask("history", {"after": sent.seq - 1, "limit": 1}, item.peer)
            page = frames.page(reply, self.user, after=sent.seq - 1)
        except ClientError:
            return
        first = next((entry for entry in page.entries if entry.seq == sent.seq), None)
        if first is None or first.cid != item.cid:
            return
        is_changed = first.rev is not None or first.kind != "message"
        if first.kind != item.kind or not (is_changed or first.body == item.body):
            raise CidTaken(item.cid, sent)
        if item.kind != "message" and None not in (item.ref, first.ref) and item.ref != first.ref:
            raise CidTaken(item.cid, sent)
