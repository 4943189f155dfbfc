"""Runs one connection of a `Client` from its welcome to its end: the outbox out, the log in.

Five loops, each woken by an event of the desk, none of which outlives the connection:

    _pump     outbox -> send, edit, delete       _fill     conversations that are behind -> history
    _tell     cursors -> ack, read               _refresh  a new token before the old one ends
    _listen_for_silence

What comes in is handled in the reader's own turn and in its order (see link.py). The session ends
by the link's end, or by `_end` with a reason: `silent`, `jump`, `protocol` (the server broke its
promise), `restart` (it said that it goes away). Then the caller reconnects.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any, Final

from chatd.client import frames
from chatd.client.cursors import Due
from chatd.client.desk import Desk
from chatd.client.errors import ConnectionLost, EpochChanged, NoToken, ProtocolError, RequestError
from chatd.client.frames import Frame, Welcome
from chatd.client.inbox import Step
from chatd.client.link import Link
from chatd.client.outbox import RETRY_MARGIN_S, Item, Then

log = logging.getLogger("chatd.client")

CURSOR_DELAY_S: Final = 0.08  # many entries, one ack
ANSWER_S: Final = 30.0  # a request without its reply for so long: this connection is of no use
FILL_RETRY_S: Final = 5.0  # after a refusal of history that names no time; doubles each time
FILL_RETRY_MAX_S: Final = 300.0
REFRESH_MARGIN_S: Final = 60.0  # before the token ends; a third of what is left of a short one
REFRESH_LEAST_S: Final = 1.0


class Session:
    """`run` once. `draining`: the server goes away; it still answers, and takes nothing new."""

    def __init__(
        self, desk: Desk, link: Link, new_token: Callable[[], Awaitable[str]] | None, *, said_away: bool
    ) -> None:
        self.desk = desk
        self.link = link
        self.draining = False
        self.reason: str | None = None  # why this side ended it
        self.retry_at: float | None = None  # when a draining server wants us back, by the loop's clock
        self._new_token = new_token
        self._failures: dict[str, int] = {}  # by conversation: of its history, in a row
        self._said_away = said_away  # in hello; it may have changed since
        self._loop = asyncio.get_running_loop()
        self._over = asyncio.Event()

    # ---- life ------------------------------------------------------------------------------------

    def enter(self, welcome: Welcome, held: Iterable[Frame]) -> None:
        """Take the welcome and the pushes that overtook it.

        Nothing may be read from the link between the two and this.
        """
        self.link.frame_bytes_max = welcome.limits.frame_bytes
        self.link.on_over = self._over.set
        self.desk.enter(welcome)
        for frame in held:
            self._pushed(frame)
        self.link.on_frame = self._pushed

    async def run(self, welcome: Welcome) -> None:
        """Serve until the link ends, or must be left. Raises what is a bug."""
        if self.link.close_code is not None:
            self._over.set()
        async with asyncio.TaskGroup() as tasks:
            loops = (self._pump(), self._fill(), self._tell(), self._refresh(welcome), self._listen_for_silence())
            running = [tasks.create_task(loop) for loop in loops]
            self._restate()
            await self._over.wait()
            for task in running:
                task.cancel()
        if self.link.close_code is not None:
            try:
                await self.link.wait_over()
            except ProtocolError as e:  # what the link itself cannot read: the pages of a welcome
                log.warning("%s", e)
                self._end("protocol")

    def _restate(self) -> None:
        """Send what the app has set and a new connection does not know."""
        if self.desk.away != self._said_away:
            self._ask("presence", {"state": "away" if self.desk.away else "online"}, lambda _: None)
        if self.desk.watched:
            self._ask("watch", {"users": self.desk.watched}, self._watched)

    def _end(self, reason: str) -> None:
        if self.reason is None:
            self.reason = reason
            log.debug("leaving the connection: %s", reason)
        self._over.set()

    def _ask(self, t: str, keys: dict[str, Any], answer: Callable[[Frame], None]) -> None:
        """Send a request; its reply is handled in order. Not called if the link ends first."""

        def answered(frame: Frame | None) -> None:
            if frame is None or self.reason is not None:
                return
            try:
                answer(frame)
            except ProtocolError as e:
                log.warning("%s", e)
                self._end("protocol")

        self.link.ask(t, keys, answered)

    def now(self) -> float:
        """By the loop's clock."""
        return self._loop.time()

    def say(self, t: str, keys: dict[str, Any]) -> None:
        """Send a request whose outcome changes nothing."""
        self._ask(t, keys, lambda _: None)

    def where(self, peer: str) -> dict[str, Any]:
        """The key by which a request names the conversation with `peer`."""
        c = self.desk.inbox.names.get(peer)
        return {"to": peer} if c is None else {"c": c}

    # ---- out -------------------------------------------------------------------------------------

    async def _pump(self) -> None:
        outbox, to_send = self.desk.outbox, self.desk.to_send
        while not self.draining:
            to_send.clear()
            for item, retry in outbox.next(self._loop.time()):
                self._send(item, retry)
            at = outbox.wake_at()
            try:
                async with asyncio.timeout_at(at):
                    await to_send.wait()
            except TimeoutError:
                pass

    def _send(self, item: Item, retry: bool) -> None:
        keys: dict[str, Any] = self.where(item.peer) | {"cid": item.cid}
        if item.kind != "message":
            keys |= {key: value for key, value in (("ref", item.ref), ("refcid", item.refcid)) if value is not None}
        if item.kind != "delete":
            keys["body"] = item.body
        if retry:
            keys["retry"] = True
        try:
            self._ask("send" if item.kind == "message" else item.kind, keys, partial(self._sent, item))
        except RequestError as e:  # no frame can hold it
            self._refused(item, e)

    def _sent(self, item: Item, reply: Frame) -> None:
        if reply["t"] == "err":
            self._refused(item, RequestError.of(reply))
            return
        sent = frames.sent(reply)
        self.desk.stored(item.peer, item.cid, sent)
        if not sent.dup:  # a dup is outside the order: its entry is pushed or fetched
            entry = frames.Entry(
                sent.c,
                item.peer,
                sent.seq,
                sent.ts,
                True,
                item.kind,
                item.body,
                self.desk.ref_of(item),
                cid=item.cid,
                epoch=self.desk.inbox.epoch or "",
            )
            self._placed(self.desk.inbox.push(entry))

    def _refused(self, item: Item, error: RequestError) -> None:
        match self.desk.outbox.refuse(item, error.code, error.retry_ms, error.cid, self._loop.time()):
            case Then.FAILED:
                # Its message was in the log before, and is not in this one
                is_gone = error.code == "no_message" and item.ref is None
                gone = EpochChanged(f"the log was restored from a backup, without the message of this {item.kind}")
                self.desk.failed(item, gone if is_gone else error)
            case Then.SKIP:
                self.skip(item.peer, error.cid or "")
        self.desk.to_send.set()

    def skip(self, peer: str, cid: str) -> None:
        """Have the server no longer wait for `cid`."""
        self._ask("skip", self.where(peer) | {"cid": cid}, lambda _: None)

    async def _tell(self) -> None:
        while True:
            try:
                async with asyncio.timeout_at(self.desk.cursors.wake_at()):
                    await self.desk.to_tell.wait()
            except TimeoutError:
                pass
            await asyncio.sleep(CURSOR_DELAY_S)
            self.tell()

    def tell(self, *, last: bool = False) -> None:
        """Send the cursors that have moved; all of them before the connection is left (`last`)."""
        self.desk.to_tell.clear()
        for due in self.desk.cursors.due(self._loop.time(), last=last):
            self._ask(due.t, {"c": due.c, "seq": due.seq}, partial(self._told, due))

    def _told(self, due: Due, reply: Frame) -> None:
        cursors = self.desk.cursors
        cursors.answered()
        if cursors.waiting:
            self.desk.to_tell.set()  # there is room for the next
        if reply["t"] != "err":
            cursors.known(due.c, frames.integer(reply, "delivered"), frames.integer(reply, "read"))
            return
        error = RequestError.of(reply)
        if error.retry_ms is None:
            cursors.refused(due.c)
            log.warning("%s of %s in %s was refused: %s", due.t, due.seq, due.c, error)
        else:
            cursors.again(due.c, self._loop.time() + error.retry_ms / 1000 + RETRY_MARGIN_S)
            self.desk.to_tell.set()  # wakes `_tell`, which then waits for that time

    def _watched(self, reply: Frame) -> None:
        if reply["t"] == "err":
            log.warning("watch was refused: %s", RequestError.of(reply))
        else:
            self.desk.seen(frames.presences(reply))

    # ---- in --------------------------------------------------------------------------------------

    def _pushed(self, frame: Frame) -> None:
        if self.reason is not None:
            return
        desk = self.desk
        try:
            match frame["t"]:
                case "entry":
                    entry = self._entry(frame)
                    desk.settle_by(entry)
                    self._placed(desk.inbox.push(entry))
                case "receipt":
                    desk.receipt(frames.receipt(frame, desk.user))
                case "presence":
                    desk.presence(frames.presence(frame))
                case "typing":
                    desk.events.add(frames.typing(frame))
                case "notice":
                    self._notice(frames.notice(frame))
        except ProtocolError as e:
            log.warning("%s", e)
            self._end("protocol")

    def _entry(self, frame: Frame) -> frames.Entry:
        """A pushed entry. One that cannot be read has its place in the log, and nothing to show."""
        inbox = self.desk.inbox
        try:
            return frames.pushed_entry(frame, self.desk.user, inbox.epoch or "")
        except ProtocolError:
            c, seq = frames.place_of(frame)
            if (place := inbox.places.get(c)) is None:
                raise
            log.warning("entry %s of %s cannot be read and is passed over", seq, c)
            if seq > place.seq:
                self.desk.events.add(frames.Unreadable(c, place.peer, seq))
            return frames.Entry(c, place.peer, seq, place.ts, False, "unknown", None)

    def _placed(self, step: Step) -> None:
        match step:
            case Step.NEW:
                self.desk.arrived.set()
            case Step.BEHIND:
                self.desk.to_fill.set()
            case Step.JUMP:
                self._end("jump")

    def _notice(self, notice: frames.Notice) -> None:
        self.desk.events.add(notice)
        if notice.kind != "drain" or self.draining:
            return
        wait_s = (notice.retry_ms or 0) / 1000
        self.draining, self.retry_at = True, self._loop.time() + wait_s
        self.desk.to_send.set()  # wakes the pump, which ends
        self.tell(last=True)
        self._loop.call_later(wait_s, self._end, "restart")

    async def _fill(self) -> None:
        desk = self.desk
        while True:
            want = desk.inbox.want(self._loop.time())
            if want is None:
                desk.to_fill.clear()
                try:
                    async with asyncio.timeout_at(desk.inbox.wake_at()):
                        await desk.to_fill.wait()
                except TimeoutError:
                    pass
                continue
            c, after = want
            try:
                page = frames.page(
                    await self.link.request("history", {"c": c, "after": after, "limit": desk.limits.history}),
                    desk.user, desk.inbox.epoch or "", after=after,
                )  # fmt: skip
                if page.c != c:
                    raise ProtocolError(f"history of {c} was answered with that of {page.c}")
            except ConnectionLost:
                return
            except ProtocolError as e:
                self._put_off(c, after, "protocol", str(e))
            except RequestError as e:
                if e.retry_ms is None:
                    self._put_off(c, after, e.code, e.msg)
                else:  # the rate is the connection's, and a queue that is full is full for all
                    await asyncio.sleep(e.retry_ms / 1000)
            else:
                self._filled(page, after)

    def _filled(self, page: frames.Page, after: int) -> None:
        desk = self.desk
        for entry in page.entries:
            desk.settle_by(entry)
        progress, resets = desk.inbox.fetched(after, page)
        for reset in resets:
            desk.events.add(reset)
        for seq in page.unreadable:
            desk.events.add(frames.Unreadable(page.c, self._peer(page.c), seq))
        desk.arrived.set()
        if progress:
            self._failures.pop(page.c, None)
        else:
            self._put_off(page.c, after, "protocol", f"it brought nothing, although the head is {page.head}")

    def _put_off(self, c: str, after: int, code: str, msg: str) -> None:
        """History of one conversation cannot be had: it waits on its own, longer each time."""
        failures = self._failures[c] = self._failures.get(c, 0) + 1
        wait_s = min(FILL_RETRY_S * 2.0 ** min(failures - 1, 10), FILL_RETRY_MAX_S)
        log.warning("history of %s after %s: %s %s; asked again in %s s", c, after, code, msg, wait_s)
        self.desk.inbox.put_off(c, self._loop.time() + wait_s)
        self.desk.events.add(frames.CatchUpFailed(c, self._peer(c), after, code, msg))

    def _peer(self, c: str) -> str:
        place = self.desk.inbox.places.get(c)
        return "" if place is None else place.peer

    # ---- time ------------------------------------------------------------------------------------

    async def _refresh(self, welcome: Welcome) -> None:
        """Replace the token before it ends.

        By the server's clock as of the welcome, because this machine's clock may be wrong.
        """
        if self._new_token is None or welcome.exp_ms is None:
            return
        started, exp_ms = self._loop.time(), welcome.exp_ms
        while True:
            left_s = (exp_ms - welcome.ts) / 1000 - (self._loop.time() - started)
            await asyncio.sleep(max(REFRESH_LEAST_S, left_s - min(REFRESH_MARGIN_S, left_s / 3)))
            try:
                token = await self._new_token()
                exp_ms = frames.integer(await self.link.request("refresh", {"token": token}), "exp")
            except (ConnectionLost, NoToken):
                return  # without one the server ends this in its time, and `Client` decides
            except Exception as e:  # the token callable is the app's, and may raise anything
                log.warning("no new token yet: %s", e)

    async def _listen_for_silence(self) -> None:
        while True:
            await asyncio.sleep(ANSWER_S / 4)
            if self.link.oldest_s() > ANSWER_S:
                self._end("silent")
                return
