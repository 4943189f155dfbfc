"""The client for programs without an event loop: scripts, notebooks, threads.

    with Client(url, token=token, device="script-1") as client:
        client.send("bob", "hi")
        for entry in client.entries(timeout_s=10.0):
            print(entry.peer, entry.body)

It is `chatd.client.Client` in a thread with a loop of its own. Each method waits there and returns
here, so it works where a loop runs already, as in a notebook. What the token callable and the store
do, they do in that thread.

Ctrl-C ends the call that waits, and nothing else: a send is taken back where that is safe, and an
entry that had come is the next one's. `with` then closes the client, without waiting for the
outbox; another Ctrl-C ends that at once. loop_thread.py says why it may come at any step. Any
thread may call the client; the entries and the events have one reader each.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Generic, Literal, ParamSpec, Self, TypeVar, overload

from chatd.client import client as client_module
from chatd.client import sends
from chatd.client.errors import Stopped
from chatd.client.inbox import QUEUE_MAX
from chatd.client.life import DRAIN_S
from chatd.client.loop_thread import LoopThread
from chatd.client.outbox import ITEMS_MAX
from chatd.client.reconnect import Token
from chatd.client.store import State, Store
from chatd.client.stream import Stream
from chatd.client.values import (
    ConversationItem,
    ConversationPage,
    Entry,
    Event,
    Kind,
    Limits,
    Line,
    Page,
    Presence,
    Reset,
    Sent,
)

P = ParamSpec("P")
T = TypeVar("T")


log = logging.getLogger("chatd.client")

LEAVE_S: Final = 10.0  # longest wait for a client's end after an error; its store or its token may hang


class Items(Generic[T]):
    """An iterator over a stream of the client; ends with it, or after `timeout_s` without one."""

    def __init__(self, client: Client, stream: Stream[T], waiting: deque[T], timeout_s: float | None) -> None:
        self._client, self._stream, self._waiting, self._timeout_s = client, stream, waiting, timeout_s

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        while not self._waiting:
            if not self._client._call(self._pull):
                raise StopIteration
        return self._waiting.popleft()

    async def _pull(self) -> bool:
        """What has come waits in `_waiting`, also if this call is interrupted just then."""
        try:
            async with asyncio.timeout(self._timeout_s):
                self._waiting.append(await anext(self._stream))
        except (TimeoutError, StopAsyncIteration):
            return False
        return True


class Sending:
    """As `chatd.client.Sending`; `result` waits for its place."""

    def __init__(self, client: Client, sending: sends.Sending) -> None:
        self._client, self._sending = client, sending

    @property
    def peer(self) -> str:
        """Whom it is for."""
        return self._sending.peer

    @property
    def cid(self) -> str:
        """The id that it is stored under once."""
        return self._sending.cid

    @property
    def kind(self) -> Kind:
        """`message`, `edit` or `delete`."""
        return self._sending.kind

    @property
    def body(self) -> str | None:
        """The text; None for a delete."""
        return self._sending.body

    @property
    def state(self) -> sends.SendingState:
        """Where it is now."""
        return self._sending.state

    @property
    def error(self) -> BaseException | None:
        """Why it failed; None while it has not."""
        return self._sending.error

    def cancel(self) -> bool:
        """Take it back. True: it is not in the log and never will be."""

        async def cancel() -> bool:
            return self._sending.cancel()

        return self._client._call(cancel)

    def amend(self, body: str) -> bool:
        """Another text for it, where it surely is not in the log. True: that one is sent."""

        async def amend() -> bool:
            return self._sending.amend(body)

        return self._client._call(amend)

    def result(self, *, timeout_s: float | None = None) -> Sent:
        """Its place. Raises TimeoutError (then it goes on), and what `Client.send` raises."""

        async def result() -> Sent:
            async with asyncio.timeout(timeout_s):
                return await self._sending

        return self._client._call(result)


class Client:
    """See the module. Arguments and methods are those of `chatd.client.Client`."""

    def __init__(
        self,
        url: str,
        *,
        token: Token,
        device: str,
        state: Mapping[str, Any] | None = None,
        store: Store | None = None,
        auto_ack: bool = True,
        queue_max: int = QUEUE_MAX,
        outbox_max: int = ITEMS_MAX,
        on_line: Callable[[Line], object] | None = None,
        options: Mapping[str, Any] | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._client = client_module.Client(
            url, token=token, device=device, state=state, store=store, auto_ack=auto_ack,
            queue_max=queue_max, outbox_max=outbox_max, on_line=on_line, options=options, rng=rng,
        )  # fmt: skip
        self._thread: LoopThread | None = None
        self._entries: deque[Entry | Reset] = deque()
        self._events: deque[Event] = deque()

    def _call(self, function: Callable[P, Awaitable[T]], *args: P.args, **keys: P.kwargs) -> T:
        if self._thread is None:
            raise RuntimeError("this client is not open: `with Client(...)`, or `client.open()` first")
        return self._thread.call(lambda: function(*args, **keys))

    # ---- life ------------------------------------------------------------------------------------

    def open(self, *, timeout_s: float | None = None) -> Self:
        """Connect, and wait for the first welcome.

        After `timeout_s`: TimeoutError, which says how the line stood. Raises as the async one.
        """
        if self._thread is not None:
            raise RuntimeError("a Client lives once: make a new one")
        self._thread = LoopThread(f"chatd client {self._client.device}")

        async def opened() -> None:
            opening = asyncio.create_task(self._client.open())
            try:
                done, _ = await asyncio.wait([opening], timeout=timeout_s)
                stood = self._client.line  # before the cancelling ends it
            finally:
                opening.cancel()
                await asyncio.wait([opening])
            if not done:
                raise TimeoutError(self._no_welcome(timeout_s, stood))
            await opening

        try:
            self._thread.start()
            self._call(opened)
        except BaseException:
            self._thread.stop()
            raise
        return self

    def _no_welcome(self, timeout_s: float | None, line: Line) -> str:
        stands = ", ".join(part for part in (line.state, line.reason, line.detail) if part)
        return (
            f"no welcome from {self._client.url} within {timeout_s} s (the line: {stands});"
            " see that chatd runs there and that the token callable returns, or give a longer timeout_s"
        )

    def close(self, *, drain: bool = True, drain_s: float = DRAIN_S) -> None:
        """End the client, as `chatd.client.Client.close` does. Idempotent."""

        async def close() -> None:
            await self._client.close(drain=drain, drain_s=drain_s)

        self._end(close)

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._end(self._leave)
            return
        try:
            self._end(lambda: self._client.close(drain=False), LEAVE_S)
        except TimeoutError:  # the error that is on its way says more
            log.warning("the client did not close within %s s", LEAVE_S)

    async def _leave(self) -> None:
        self._client._loop_ended()
        await self._client.close()

    def _end(self, close: Callable[[], Awaitable[None]], within_s: float | None = None) -> None:
        if self._thread is None or self._thread.stopped:
            return
        self._thread.check()
        try:
            self._thread.call(close, within_s=within_s)
        finally:
            self._thread.stop()

    def wait_ended(self, *, timeout_s: float | None = None) -> Stopped:
        """Wait until the client has ended; why. Raises TimeoutError."""

        async def ended() -> Stopped:
            async with asyncio.timeout(timeout_s):
                return await self._client.wait_ended()

        return self._call(ended)

    @property
    def user(self) -> str:
        """The user that the token names."""
        return self._client.user

    @property
    def epoch(self) -> str | None:
        """The epoch of the log."""
        return self._client.epoch

    @property
    def limits(self) -> Limits:
        """What the server allows."""
        return self._client.limits

    @property
    def connected(self) -> bool:
        """Whether there is a connection now."""
        return self._client.connected

    @property
    def line(self) -> Line:
        """How the connection stands."""
        return self._client.line

    # ---- sending ---------------------------------------------------------------------------------

    def send(self, peer: str, body: str, *, cid: str | None = None, timeout_s: float | None = None) -> Sent:
        """Send a message; returns once it is durable.

        After `timeout_s`: TimeoutError. The message is then taken back, or may be in the log, as
        docs/client.md says of a send that is cancelled.
        """

        async def sent() -> Sent:
            async with asyncio.timeout(timeout_s):
                return await self._client.send(peer, body, cid=cid)

        return self._call(sent)

    def edit(self, peer: str, seq: int, body: str, *, cid: str | None = None, refcid: str | None = None) -> Sent:
        """Replace the text of one's own message `seq`."""
        return self._call(self._client.edit, peer, seq, body, cid=cid, refcid=refcid)

    def delete(self, peer: str, seq: int, *, cid: str | None = None, refcid: str | None = None) -> Sent:
        """Remove the text of one's own message `seq`."""
        return self._call(self._client.delete, peer, seq, cid=cid, refcid=refcid)

    def submit(self, peer: str, body: str, *, cid: str | None = None) -> Sending:
        """Send a message without waiting."""

        async def submit() -> Sending:
            return Sending(self, self._client.submit(peer, body, cid=cid))

        return self._call(submit)

    def reply(self, entry: Entry, body: str, *, n: int = 0) -> Sent:
        """Send the n-th answer to `entry`, once over any number of tries and restarts."""
        return self._call(self._client.answer, entry, body, n)

    def reply_cid(self, entry: Entry, n: int = 0) -> str:
        """The cid of the n-th message that answers `entry`."""
        return self._client.reply_cid(entry, n)

    def waiting(self) -> list[Sending]:
        """The handles of what waits to be sent."""

        async def waiting() -> list[Sending]:
            return [Sending(self, sending) for sending in self._client.waiting()]

        return self._call(waiting)

    def room(self) -> None:
        """Wait until the outbox takes another send."""
        self._call(self._client.room)

    # ---- receiving -------------------------------------------------------------------------------

    @overload
    def entries(self, *, timeout_s: float | None = ..., resets: Literal[False] = ...) -> Items[Entry]: ...

    @overload
    def entries(self, *, timeout_s: float | None = ..., resets: Literal[True]) -> Items[Entry | Reset]: ...

    def entries(self, *, timeout_s: float | None = None, resets: bool = False) -> Items[Entry] | Items[Entry | Reset]:
        """Every entry, once. Ends after `close`, and after `timeout_s` without one.

        An entry is handled when the next one is asked for.
        """
        if resets:
            return Items(self, self._client.entries(resets=True), self._entries, timeout_s)
        waiting: deque[Any] = self._entries  # of entries alone: nobody asked for resets
        return Items[Entry](self, self._client.entries(), waiting, timeout_s)

    def events(self, *, timeout_s: float | None = None) -> Items[Event]:
        """What is no entry. Ends as `entries` does."""
        return Items(self, self._client.events(), self._events, timeout_s)

    def wait_for(self, kind: type[T], check: Callable[[T], bool] | None = None, *, timeout_s: float | None = None) -> T:
        """Wait for the next entry or event of this class. `check` runs in the client's thread."""
        return self._call(self._client.wait_for, kind, check, timeout_s=timeout_s)

    def read(self, peer: str, seq: int) -> None:
        """The user has seen everything up to `seq`."""
        self._call(self._client.read, peer, seq)

    def ack(self, peer: str, seq: int) -> None:
        """This device has everything up to `seq`."""
        self._call(self._client.ack, peer, seq)

    def state(self) -> State:
        """What a later `Client(state=...)` needs to continue from here."""

        async def state() -> State:
            return self._client.state()

        return self._client.state() if self._closed else self._call(state)

    @property
    def _closed(self) -> bool:
        return self._thread is None or self._thread.stopped

    # ---- asking ----------------------------------------------------------------------------------

    def history(self, peer: str, *, before: int | None = None, after: int | None = None, limit: int = 50) -> Page:
        """A page of the log."""
        return self._call(self._client.history, peer, before=before, after=after, limit=limit)

    def iter_history(self, peer: str, *, before: int | None = None, after: int | None = None) -> Iterator[Entry]:
        """All entries with `peer`, from the newest on, or with `after` from there to the newest."""
        return self._iterate(self._client.iter_history(peer, before=before, after=after))

    def conversations(self, *, limit: int = 50, cursor: str | None = None) -> ConversationPage:
        """A page of the conversations."""
        return self._call(self._client.conversations, limit=limit, cursor=cursor)

    def iter_conversations(self) -> Iterator[ConversationItem]:
        """All conversations, that with the latest entry first."""
        return self._iterate(self._client.iter_conversations())

    def watch(self, users: Sequence[str]) -> tuple[Presence, ...]:
        """Watch the presence of these users."""
        return self._call(self._client.watch, users)

    def typing(self, peer: str) -> None:
        """Show `peer` that this user is typing."""
        self._call(self._client.typing, peer)

    def refresh(self) -> None:
        """Get a new token, and give it to the server on this connection."""
        self._call(self._client.refresh)

    def set_away(self, away: bool) -> None:
        """Whether this device is idle."""
        self._call(self._client.set_away, away)

    def _iterate(self, items: AsyncIterator[T]) -> Iterator[T]:
        async def following() -> tuple[T, ...]:
            async for item in items:
                return (item,)
            return ()

        while found := self._call(following):
            yield found[0]
