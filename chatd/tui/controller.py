"""Does what the person asks by the SDK, and keeps the model of what there is.

`run` until the client ends. Every change of the model ends in a call of `changed`, which must not
block: the app draws later, once for many. Nothing here raises for what the server answers: a
refused send stays in the model with its reason, another refusal is a note.

The SDK does the hard part: order, retries with one cid, reconnects, each entry once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Final

from chatd.client import Client, ClientError, Closed, Kind, RequestError, Reset, Stopped
from chatd.tui.model import ConversationView, Model, Outgoing

CONVERSATIONS_MAX: Final = 1_000  # in the list; others show once something arrives
PAGE: Final = 50  # messages of a page of history
TYPING_EVERY_S: Final = 4.0  # docs/protocol.md 7: every 3 to 5 s
WATCH_DELAY_S: Final = 0.2  # many new names are one request


class Controller:
    """One person's chat. Make it in a running loop; `client` is not opened yet."""

    def __init__(self, client: Client, changed: Callable[[], None]) -> None:
        self.client = client
        self.model = Model()
        self._changed = changed
        self._tasks: set[asyncio.Task[None]] = set()
        self._loading: set[str] = set()
        self._log_number = 0  # of the log: a page that was asked of the one before is of no use
        self._typed_at = 0.0
        self._watched: tuple[str, ...] = ()
        self._begun = asyncio.Event()
        self._to_watch = asyncio.Event()
        self._to_list = asyncio.Event()

    # ---- life ------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Connect, and follow what happens until the client ends; the model then has the reason."""
        opening = asyncio.create_task(self.client.open())
        await asyncio.sleep(0)  # nothing can be asked for before it has begun
        self._begun.set()
        events = asyncio.create_task(self._follow_events())
        try:
            await opening
            await self._follow(events)
        except Stopped as e:
            self._stopped(e)
        finally:
            events.cancel()
            await asyncio.gather(events, return_exceptions=True)

    async def _follow(self, events: asyncio.Task[None]) -> None:
        self.model.user = self.client.user
        self._to_list.set()
        followers = [self._follow_entries, self._follow_list, self._follow_watch]
        tasks = [asyncio.create_task(follow()) for follow in followers]
        try:
            done, _ = await asyncio.wait([events, *tasks], return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def close(self, drain_s: float) -> None:
        """Send what waits for `drain_s` seconds at most, and end."""
        await self.client.close(drain=drain_s > 0, drain_s=drain_s)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _stopped(self, error: Stopped) -> None:
        if not isinstance(error, Closed):
            self.model.ended(error.reason)
            self._changed()

    async def _follow_entries(self) -> None:
        async for entry in self.client.entries():
            is_known = entry.peer in self.model.conversations
            self.model.entry(entry)
            if not is_known:
                self._to_watch.set()
            self._changed()

    async def _follow_events(self) -> None:
        async for event in self.client.events():
            self.model.event(event, time.monotonic())
            if isinstance(event, Reset):
                self._log_number += 1
                self._to_list.set()
                if self.model.opened is not None:
                    self.open(self.model.opened)
            self._changed()

    async def _follow_list(self) -> None:
        """The list of conversations: at the start, and again where the log is another one."""
        while True:
            await self._to_list.wait()
            self._to_list.clear()
            cursor, listed = None, 0
            while listed < CONVERSATIONS_MAX:
                try:
                    page = await self.client.conversations(limit=PAGE, cursor=cursor)
                except RequestError as e:
                    self.note(f"the list of conversations is not to be had: {e}")
                    break
                self.model.listed(page.items)
                self._to_watch.set()
                self._changed()
                cursor, listed = page.cursor, listed + len(page.items)
                if cursor is None:
                    break

    async def _follow_watch(self) -> None:
        """Watch those of the latest conversations, as many as the server allows."""
        while True:
            await self._to_watch.wait()
            await asyncio.sleep(WATCH_DELAY_S)
            self._to_watch.clear()
            names = [it.peer for it in self.model.listing() if it.ts and it.peer != self.model.user]
            wanted = tuple(sorted(names[: self.client.limits.watch]))
            if wanted == self._watched:
                continue
            self._watched = wanted
            try:
                for presence in await self.client.watch(wanted):
                    self.model.event(presence, 0.0)
                self._changed()
            except RequestError as e:
                self.note(f"presence is not to be had: {e}")

    # ---- what the person does --------------------------------------------------------------------

    def open(self, peer: str) -> ConversationView:
        """Show the conversation with `peer`, its newest page at least."""
        it = self.model.open(peer)
        if not it.loaded:
            self._do(self._load(peer, None))
        self._changed()
        return it

    def load_older(self) -> None:
        """Load the page below what is shown, if there is one."""
        it = self.model.shown
        if it is not None and it.has_older:
            self._do(self._load(it.peer, it.lowest))

    def send(self, peer: str, body: str) -> None:
        """Send a message; the model follows what becomes of it."""
        self._go(peer, "message", body, None)

    def edit(self, peer: str, seq: int, body: str) -> None:
        """Replace the text of an own message."""
        self._go(peer, "edit", body, seq)

    def delete(self, peer: str, seq: int) -> None:
        """Remove the text of an own message."""
        self._go(peer, "delete", "", seq)

    def retry(self, outgoing: Outgoing) -> None:
        """Send one again that was refused: it is surely not in the log."""
        if outgoing.failed is not None:
            self.model.discard(outgoing)
            self._go(outgoing.peer, outgoing.kind, outgoing.body, outgoing.ref)

    def discard(self, outgoing: Outgoing) -> None:
        """Give up one that was refused."""
        if outgoing.failed is not None:
            self.model.discard(outgoing)
            self._changed()

    def typed(self) -> None:
        """A key in the composer. The peer of the open conversation hears of it now and then."""
        it, now = self.model.shown, time.monotonic()
        if it is not None and it.head and now - self._typed_at > TYPING_EVERY_S and self.client.connected:
            self._typed_at = now
            self._do(self._tell_typing(it.peer))

    def see(self) -> None:
        """The newest message of the open conversation is on the screen, and somebody is there."""
        it = self.model.shown
        if it is None or it.newest <= it.read:
            return
        if any(not message.own and message.seq > it.read for message in it.log):
            self._do(self._tell_read(it.peer, it.newest))
        self.model.seen(it.peer, it.newest)
        self._changed()

    def away(self, is_away: bool) -> None:
        """Whether nobody is at the keyboard."""
        self._do(self.client.set_away(is_away))

    def note(self, text: str) -> None:
        """Say something to the person, once."""
        self.model.notes.append(text)
        self._changed()

    # ---- by the SDK ------------------------------------------------------------------------------

    def _do(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(self._quietly(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _go(self, peer: str, kind: Kind, body: str, ref: int | None) -> None:
        outgoing = self.model.going(peer, kind, body, ref, time.time_ns() // 1_000_000)
        self._typed_at = 0.0
        self._do(self._deliver(outgoing))
        self._changed()

    async def _deliver(self, outgoing: Outgoing) -> None:
        peer, ref = outgoing.peer, outgoing.ref
        try:
            if ref is None:
                sent = await self.client.send(peer, outgoing.body)
            elif outgoing.kind == "edit":
                sent = await self.client.edit(peer, ref, outgoing.body)
            else:
                sent = await self.client.delete(peer, ref)
        except Stopped:  # it may be in the log: it stays as "sending"
            return
        except ClientError as e:
            outgoing.failed = str(e)
        else:
            self.model.sent(outgoing, sent)
            self._to_watch.set()
        self._changed()

    async def _load(self, peer: str, before: int | None) -> None:
        if peer in self._loading:
            return
        self._loading.add(peer)
        log_number = self._log_number
        try:
            page = await self.client.history(peer, before=before, limit=PAGE)
            while log_number != self._log_number:
                log_number = self._log_number
                page = await self.client.history(peer, limit=PAGE)
            self.model.page(peer, page)
        except RequestError as e:
            self.model.nothing_there(peer)
            if e.code != "no_conversation":
                self.note(f"the log is not to be had: {e}")
        finally:
            self._loading.discard(peer)
            self._changed()

    async def _tell_typing(self, peer: str) -> None:
        try:
            await self.client.typing(peer)
        except RequestError:  # not both have sent yet
            return

    async def _tell_read(self, peer: str, seq: int) -> None:
        try:
            await self.client.read(peer, seq)
        except RequestError:  # another log has taken this one's place in between
            return

    async def _quietly(self, work: Coroutine[None, None, None]) -> None:
        """The client may end under any of these; `run` reports that."""
        try:
            await self._begun.wait()
            await work
        except Stopped:
            return
        finally:
            work.close()  # where it was never begun
