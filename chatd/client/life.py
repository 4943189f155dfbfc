"""The life of a client: `open`, its one connection after another, `close`. What it does with them
is in the classes that build on this one: asking.py, sends.py, receiving.py, handlers.py.

Every call of an app passes `_check` first: a client that was never opened, has ended, or belongs to
another event loop says so at once, and nothing waits for ever.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Final, Self

from chatd.client.arguments import check_url
from chatd.client.desk import Desk
from chatd.client.dial import Dial
from chatd.client.errors import Closed, ConnectionLost, RequestError, Stopped
from chatd.client.frames import Frame, Limits
from chatd.client.inbox import QUEUE_MAX
from chatd.client.outbox import ITEMS_MAX
from chatd.client.reconnect import Reconnector, Token
from chatd.client.session import Session
from chatd.client.store import StateKeeper, Store
from chatd.client.values import Line

log = logging.getLogger("chatd.client")

DRAIN_S: Final = 10.0  # longest wait of `close` for the outbox


class Life:
    """See the module. The arguments are explained in client.py."""

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
        check_url(url)
        if state is not None and store is not None:
            raise ValueError("give a client a state or a store: a store loads the state itself")
        self.url, self.device = url, device
        self._auto_ack = auto_ack
        self._desk = Desk(queue_max, outbox_max)
        if state is not None:
            self._desk.restore(state)
        self._keeper = None if store is None else StateKeeper(store, self._desk.save)
        dial = Dial(rng or random.Random(), renewable=not isinstance(token, str))
        self._reconnector = Reconnector(
            url, token, device, self._desk, dial, options, live=self._up, down=self._down, line=self._set_line
        )
        self._session: Session | None = None  # while live
        self._line = Line("offline", "not_opened")
        self._on_line = on_line
        self._changed = asyncio.Event()  # set when `_session` or `_ended` changes
        self._over = asyncio.Event()
        self._ended: Stopped | None = None
        self._closing = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._prepare()

    def _prepare(self) -> None:
        """For the classes that build on this one: the last step of the constructor."""

    # ---- life ------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Load the state, connect, and wait for the first welcome, however long it takes.

        Raises Stopped where trying again would not help, and what the store raises.
        """
        if self._loop is not None or self._ended is not None:
            raise RuntimeError("a Client lives once: make a new one, with state= to go on from the old one")
        self._loop = asyncio.get_running_loop()
        try:
            if self._keeper is not None:
                state = await self._keeper.start()
                if state is not None:
                    self._desk.restore(state)
                self._desk.on_change = self._keeper.changed
            self._task = asyncio.create_task(self._keep_connected(), name=f"chatd client {self.device}")
            await self._live()
        except BaseException:
            await self.close(drain=False)
            raise

    async def close(self, *, drain: bool = True, drain_s: float = DRAIN_S) -> None:
        """End the client. Idempotent.

        With `drain`, the outbox is sent first, for `drain_s` seconds at most. What is left stays in
        `state()`, and in the store. Cancelled while it drains, it drains no longer, and ends the
        client all the same. Raises what the store raises.
        """
        self._closing = True
        try:
            if drain and self._ended is None and self._task is not None:
                await self._drain(drain_s)
        finally:
            await self._end()

    async def _drain(self, drain_s: float) -> None:
        try:
            async with asyncio.timeout(drain_s):
                await self._desk.emptied.wait()
        except TimeoutError:
            log.warning("closing with %s messages unsent", self._desk.outbox.size)

    async def _end(self) -> None:
        if self._session is not None:
            self._session.tell(last=True)
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._finish(Closed())
        if self._keeper is not None:
            await self._keeper.stop()

    async def wait_ended(self) -> Stopped:
        """Wait until the client has ended; why. `Closed` if `close()` was called."""
        await self._over.wait()
        assert self._ended is not None
        return self._ended

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

    @property
    def line(self) -> Line:
        """How the connection stands. `events` has each change of it."""
        return self._line

    # ---- the connection --------------------------------------------------------------------------

    def _check(self) -> None:
        """Raise where a call could wait for ever, or would be lost."""
        if self._ended is not None:
            raise self._ended
        if self._loop is None:
            raise RuntimeError("this client is not open: `async with Client(...)`, or `await client.open()` first")
        if asyncio.get_running_loop() is not self._loop:
            raise RuntimeError("this client belongs to another event loop; chatd.client.sync is for threads")

    async def _ask(self, t: str, keys: dict[str, Any], peer: str | None = None) -> Frame:
        """Ask over reconnects and after `retry_ms`, until there is an answer.

        For requests that may be repeated.
        """
        self._check()
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
                await self._wait(e.retry_ms / 1000)

    async def _wait(self, wait_s: float) -> None:
        """Sleep. Raises Stopped as soon as the client ends."""
        try:
            async with asyncio.timeout(wait_s):
                raise await self.wait_ended()
        except TimeoutError:
            pass

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
        self._set_line(Line("online"))
        self._changed.set()

    def _down(self) -> None:
        self._session = None

    def _set_line(self, line: Line) -> None:
        if line == self._line:
            return
        self._line = line
        match line.state:
            case "online":
                log.info("online as %s at %s", self.user, self.url)
            case "offline":
                why = f"{line.reason} ({line.detail})" if line.detail else line.reason
                log.info("offline: %s; next try at %s in %.1f s", why, self.url, line.wait_s or 0.0)
            case "stopped":
                log.info("stopped: %s", line.reason)
            case "connecting":
                log.debug("connecting to %s", self.url)
        self._desk.events.add(line)
        if self._on_line is not None:
            try:
                self._on_line(line)
            except Exception:  # the app's
                log.exception("on_line failed")

    def _finish(self, error: Stopped) -> None:
        """End with `error`; after the first call the first reason stays."""
        if self._ended is None:
            self._ended = error
            self._set_line(Line("stopped", error.reason, detail=error.msg))
        self._down()
        self._desk.end(self._ended)
        self._changed.set()
        self._over.set()

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
