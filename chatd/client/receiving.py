"""What a client is given: entries, each once, and events; and what it says about them.

    inbox ── entries() ──► in hand ── the next is asked for, or entry.done() ──► handled, saved

An entry counts as handled when the loop asks for the next one, or with `auto_done=False` when its
`done()` is called. A store has only what is handled. `state()` also counts the entry that a loop
has in hand.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Any, Literal, TypeVar, overload

from chatd.client.errors import Closed, RequestError, Stopped
from chatd.client.sends import Sends
from chatd.client.store import State
from chatd.client.stream import Stream, Turn
from chatd.client.values import Entry, Event, Reset

T = TypeVar("T")


class Receiving(Sends):
    """See the module."""

    def _prepare(self) -> None:
        super()._prepare()
        self._entries_turn, self._events_turn = Turn("entries()"), Turn("events()")
        self._last: tuple[Entry, asyncio.Task[Any] | None] | None = None  # in the hand of a loop, and whose
        self._room_in_hand = asyncio.Event()
        self._observers: set[Callable[[object], None]] = set()
        self._desk.inbox.on_entry = self._desk.events.on_event = self._observe

    @overload
    def entries(self, *, auto_done: bool = ..., resets: Literal[False] = ...) -> Stream[Entry]: ...

    @overload
    def entries(self, *, auto_done: bool = ..., resets: Literal[True]) -> Stream[Entry | Reset]: ...

    def entries(self, *, auto_done: bool = True, resets: bool = False) -> Stream[Entry] | Stream[Entry | Reset]:
        """Every entry, once. Ends after `close`.

        If the client ended otherwise, raises Stopped after the last entry. `auto_done=False`: an
        entry is handled when its `done()` is called, so several may be handled side by side.
        `resets`: each Reset stands between the entries of the two logs.
        """
        if not resets:
            return Stream[Entry](lambda: self._next_entry(auto_done), self._entries_turn)
        self._desk.inbox.gives_resets = True
        return Stream[Entry | Reset](lambda: self._next_any(auto_done), self._entries_turn)

    def events(self) -> Stream[Event]:
        """The line, receipts, presence, typing, notices, resets, and what failed unawaited.

        A newer event replaces an older one about the same thing.
        """
        return Stream(self._next_event, self._events_turn)

    async def _next_entry(self, auto_done: bool) -> Entry | None:
        while isinstance(entry := await self._next_any(auto_done), Reset):
            pass
        return entry

    async def _next_any(self, auto_done: bool) -> Entry | Reset | None:
        self._check_open()
        desk = self._desk
        await self._handled_last()
        while True:
            if isinstance(self._ended, Closed):
                return None
            if not auto_done and desk.inbox.in_hand.full:
                self._room_in_hand.clear()
                await self._room_in_hand.wait()
                continue
            if (entry := desk.inbox.take_any(in_hand=not auto_done or self._keeper is not None)) is not None:
                desk.to_fill.set()
                if isinstance(entry, Entry):
                    self._give(entry, auto_done)
                return entry
            if self._ended is not None:
                raise self._ended
            desk.arrived.clear()
            await desk.arrived.wait()

    def _give(self, entry: Entry, auto_done: bool) -> None:
        entry.given_by(self)
        if auto_done:
            self._last = (entry, asyncio.current_task())
        if self._auto_ack and not entry.own:
            self._desk.cursors.ack(entry.c, entry.seq)
            self._desk.to_tell.set()

    async def _handled_last(self) -> None:
        """Who asks for the next entry has handled the last one."""
        last, self._last = self._last, None
        if last is not None and self._keeper is not None:
            self.done(last[0])
            await self._keeper.saved()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._last is not None and self._last[1] is asyncio.current_task():
            self._loop_ended()
        await super().__aexit__(kind, error, trace)

    def _loop_ended(self) -> None:
        """A loop over `entries` was left in good order: it has handled what it had in hand."""
        if self._last is not None:
            self.done(self._last[0])

    def done(self, entry: Entry) -> None:
        """`Entry.done`."""
        if self._desk.inbox.in_hand.done(entry):
            self._room_in_hand.set()
            self._desk.on_change()

    async def saved(self) -> None:
        """Wait until the store has all that was handled so far. Raises what the store raises."""
        if self._keeper is not None:
            await self._keeper.saved()

    def state(self) -> State:
        """What a later `Client(state=...)` needs to continue from here: a copy, ready for JSON.

        Each entry that `entries` has given counts as done, the one in hand too; with
        `auto_done=False`, each one whose `done()` was called. Sends whose outcome is not known are
        part of it. It takes time in proportion to the number of conversations.
        """
        return self._desk.save(None if self._last is None else self._last[0])

    async def _next_event(self) -> Event | None:
        self._check_open()
        events = self._desk.events
        while (event := events.take()) is None:
            if isinstance(self._ended, Closed):
                return None
            if self._ended is not None:
                raise self._ended
            events.news.clear()
            await events.news.wait()
        return event

    def _check_open(self) -> None:
        """As `_check`, for streams: they first give what is there."""
        if self._ended is None:
            self._check()

    # ---- looking on ------------------------------------------------------------------------------

    async def wait_for(
        self, kind: type[T], check: Callable[[T], bool] | None = None, *, timeout_s: float | None = None
    ) -> T:
        """Wait for the next entry or event of this class for which `check` is true.

        It looks on, from this call on: `entries` and `events` give it too. Raises TimeoutError,
        Stopped, and what `check` raises.
        """
        self._check()
        found: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        def look(what: object) -> None:
            if found.done() or not isinstance(what, kind):
                return
            try:
                if check is None or check(what):
                    found.set_result(what)
            except Exception as e:  # the app's
                found.set_exception(e)

        def over(task: asyncio.Task[Stopped]) -> None:
            if not task.cancelled() and not found.done():
                found.set_exception(task.result())

        ended = asyncio.create_task(self.wait_ended())
        ended.add_done_callback(over)
        self._observers.add(look)
        try:
            async with asyncio.timeout(timeout_s):
                return await found
        finally:
            self._observers.discard(look)
            ended.cancel()

    def _observe(self, what: object) -> None:
        for look in tuple(self._observers):
            look(what)

    # ---- cursors ---------------------------------------------------------------------------------

    async def read(self, peer: str, seq: int) -> None:
        """The user has seen everything up to `seq`.

        The server gets it soon, together with others; this call waits for nothing. After a Reset, a
        `seq` that the log does not have is passed over: it is of the log before.
        """
        self._move(peer, seq, self._desk.cursors.read)

    async def ack(self, peer: str, seq: int) -> None:
        """This device has everything up to `seq`: for clients without `auto_ack`. As `read`."""
        self._move(peer, seq, self._desk.cursors.ack)

    def _move(self, peer: str, seq: int, move: Callable[[str, int], None]) -> None:
        self._check()
        try:
            move(self._known(peer, seq), seq)
        except RequestError:
            if self._desk.inbox.was_reset:
                return
            raise
        self._desk.to_tell.set()
        self._desk.on_change()

    def _known(self, peer: str, seq: int) -> str:
        c = self._desk.inbox.names.get(peer)
        if c is None:
            raise RequestError("no_conversation", "no such conversation of yours")
        if not 1 <= seq <= self._desk.inbox.places[c].head:
            raise RequestError(
                "bad_seq", f"seq {seq} is beyond the head, {self._desk.inbox.places[c].head}", field="seq"
            )
        return c
