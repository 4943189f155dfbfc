"""A program of handlers: what to do with each message and event, and the loop that does it.

    @client.on_message
    async def answer(entry): ...
    client.run()

    run ──► open ──► serve ──► SIGINT, SIGTERM ──► the handlers that run end, the outbox is sent,
                                                   the state is saved

Handlers of different people run side by side. Of one conversation they run one after the other, in
order. An entry is handled when its handlers have returned, or have raised: what fails is logged and
is not tried again.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import signal
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any, Final, TypeAlias, TypeVar

from chatd.client.errors import Stopped
from chatd.client.life import DRAIN_S
from chatd.client.receiving import Receiving
from chatd.client.values import Entry

log = logging.getLogger("chatd.client")

T = TypeVar("T")
EntryHandler: TypeAlias = Callable[[Entry], Awaitable[None]]
H = TypeVar("H", bound=EntryHandler)

SIDE_BY_SIDE: Final = 16
EVENTS_WAITING_MAX: Final = 10_000


class Handlers(Receiving):
    """See the module."""

    def _prepare(self) -> None:
        super()._prepare()
        self._entry_handlers: list[tuple[EntryHandler, bool]] = []  # the bool: messages of others alone
        self._event_handlers: list[tuple[type[Any], Callable[[Any], object]]] = []

    def on_message(self, handler: H) -> H:
        """Call it with each message of somebody else; not with edits, deletes, deleted messages."""
        self._entry_handlers.append((handler, True))
        return handler

    def on_entry(self, handler: H) -> H:
        """Call it with every entry, own ones, edits and deletes too."""
        self._entry_handlers.append((handler, False))
        return handler

    def on_event(self, kind: type[T]) -> Callable[[Callable[[T], object]], Callable[[T], object]]:
        """Call what this decorates with each event of the class `kind`, one after the other.

        It may be a coroutine function.
        """

        def register(handler: Callable[[T], object]) -> Callable[[T], object]:
            self._event_handlers.append((kind, handler))
            return handler

        return register

    async def serve(self, *, side_by_side: int = SIDE_BY_SIDE) -> None:
        """Call the handlers until the client is closed. Raises Stopped if it ended otherwise.

        The client must be open. `side_by_side`: handlers at a time, each of another conversation.
        """
        await self._serve(asyncio.Event(), side_by_side)

    def run(self, *, side_by_side: int = SIDE_BY_SIDE, drain_s: float = DRAIN_S) -> None:
        """Open the client and call the handlers until SIGINT or SIGTERM, then end in good order.

        The handlers that run may finish, for `drain_s` seconds; so may the outbox. A second signal
        ends it at once. Returns then. Raises Stopped if the client ended otherwise. It makes its
        own event loop; where there is one already, use `serve`.
        """
        with contextlib.suppress(KeyboardInterrupt):  # before the loop has its handlers, or after
            asyncio.run(self._run(side_by_side, drain_s))

    async def _run(self, side_by_side: int, drain_s: float) -> None:
        ending = asyncio.Event()
        running = asyncio.create_task(self._life(ending, side_by_side, drain_s))

        def end() -> None:
            if ending.is_set():
                log.info("ended at once, by a second signal")
                running.cancel()
            ending.set()

        with _on_signals(end):
            try:
                await running
            except asyncio.CancelledError:
                if not ending.is_set():
                    raise

    async def _life(self, ending: asyncio.Event, side_by_side: int, drain_s: float) -> None:
        drain = False
        try:
            if await _unless(ending, self._opened()):
                await self._serve(ending, side_by_side, drain_s)
                drain = True
        finally:
            await self.close(drain=drain, drain_s=drain_s)

    async def _opened(self) -> bool:
        await self.open()
        return True

    # ---- the loop --------------------------------------------------------------------------------

    async def _serve(self, ending: asyncio.Event, side_by_side: int, drain_s: float = DRAIN_S) -> None:
        lanes = _Lanes(self._handle, side_by_side)
        with self._serving_events() as events:
            try:
                with self._entries_turn:
                    while (entry := await _unless(ending, self._next_entry(auto_done=False))) is not None:
                        lanes.add(entry)
                await lanes.end(drain_s)
            finally:
                lanes.cancel()
                events.cancel()

    async def _handle(self, entry: Entry) -> None:
        is_message = not entry.own and entry.kind == "message" and entry.body is not None
        for handler, messages_only in self._entry_handlers:
            if messages_only and not is_message:
                continue
            try:
                await handler(entry)
            except Stopped:
                return  # it is not handled: the next process gets it
            except Exception:  # the app's
                log.exception("a handler failed on entry %s of %s", entry.seq, entry.peer)
        entry.done()
        await self.saved()

    @contextlib.contextmanager
    def _serving_events(self) -> Iterator[asyncio.Task[None]]:
        waiting: deque[object] = deque(maxlen=EVENTS_WAITING_MAX)
        news = asyncio.Event()

        def look(what: object) -> None:
            if any(isinstance(what, kind) for kind, _ in self._event_handlers):
                waiting.append(what)
                news.set()

        async def call() -> None:
            while True:
                await news.wait()
                news.clear()
                while waiting:
                    await self._call_event(waiting.popleft())

        self._observers.add(look)
        look(self.line)
        try:
            yield asyncio.create_task(call(), name="chatd event handlers")
        finally:
            self._observers.discard(look)

    async def _call_event(self, event: object) -> None:
        for kind, handler in self._event_handlers:
            if isinstance(event, kind):
                try:
                    result = handler(event)
                    if inspect.isawaitable(result):
                        await result
                except Exception:  # the app's
                    log.exception("a handler failed on %r", event)


class _Lanes:
    """Entries of one conversation one after the other, those of different ones side by side."""

    def __init__(self, handle: Callable[[Entry], Coroutine[Any, Any, None]], side_by_side: int) -> None:
        self._handle = handle
        self._places = asyncio.Semaphore(side_by_side)
        self._waiting: dict[str, deque[Entry]] = {}  # by peer; a peer with a task has a queue
        self._tasks: set[asyncio.Task[None]] = set()

    def add(self, entry: Entry) -> None:
        if (lane := self._waiting.get(entry.peer)) is not None:
            lane.append(entry)
            return
        self._waiting[entry.peer] = deque([entry])
        task = asyncio.create_task(self._work(entry.peer), name=f"chatd handlers of {entry.peer}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _work(self, peer: str) -> None:
        lane = self._waiting[peer]
        while lane:
            async with self._places:
                await self._handle(lane[0])
            lane.popleft()
        del self._waiting[peer]

    async def end(self, within_s: float) -> None:
        """Let those that run finish. What they have not done, the next process gets."""
        for lane in self._waiting.values():
            while len(lane) > 1:
                lane.pop()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=within_s)
            if late:
                log.warning("%s handlers did not end within %s s", len(late), within_s)

    def cancel(self) -> None:
        for task in self._tasks:
            task.cancel()


async def _unless(ending: asyncio.Event, coming: Awaitable[T]) -> T | None:
    """The result, or None if `ending` is set first: then what was awaited is cancelled."""
    wanted = asyncio.ensure_future(coming)
    ends = asyncio.ensure_future(ending.wait())
    try:
        await asyncio.wait([wanted, ends], return_when=asyncio.FIRST_COMPLETED)
        if wanted.done():
            return wanted.result()
        return None
    finally:
        ends.cancel()
        if not wanted.done():
            wanted.cancel()
            await asyncio.wait([wanted])


@contextlib.contextmanager
def _on_signals(end: Callable[[], None]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    caught: list[signal.Signals] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        # Windows, and loops outside the main thread, have none: there Ctrl-C is a KeyboardInterrupt
        with contextlib.suppress(NotImplementedError, ValueError, RuntimeError):
            loop.add_signal_handler(number, end)
            caught.append(number)
    try:
        yield
    finally:
        for number in caught:
            loop.remove_signal_handler(number)
