"""One connection to chatd, without reconnects, outbox or cursors.

It is for tools, tests, and clients that do those themselves.

    async with await Connection.open(url, token, device="probe-1") as connection:
        ok = await connection.request("send", to="bob", cid=str(uuid.uuid4()), body="hi")
        async for push in connection.pushes:
            print(push)

Frames are dicts, as docs/protocol.md has them. Requests may be pipelined: `ask` sends at once, in
the order of the calls. Pushes wait in a queue of `PUSHES_MAX`; when it is full nothing more is
read, replies neither, until some are taken. The server's bound for slow consumers then holds.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Final, Self

from chatd.client.errors import ConnectionLost
from chatd.client.frames import Frame
from chatd.client.link import LOST, Link
from chatd.client.stream import Stream

PUSHES_MAX: Final = 10_000


class Connection:
    """Made by `open`, or by `dial` where `hello` is to be said otherwise or not at all."""

    def __init__(self, link: Link, tap: Callable[[Frame], None] | None = None) -> None:
        self.welcome: Frame = {}
        self._link = link
        self._tap = tap
        self._pushes: deque[Frame] = deque()
        self._news = asyncio.Event()
        link.on_frame = self._pushed
        link.on_over = self._news.set

    @classmethod
    async def dial(
        cls, url: str, *, options: Mapping[str, Any] | None = None, tap: Callable[[Frame], None] | None = None
    ) -> Self:
        """The WebSocket alone, before `hello`.

        `options` go to `websockets.connect`; `tap` sees each push at once, even while `pushes` is
        not read.

        Raises OSError, TimeoutError, and websockets' exceptions.
        """
        return cls(await Link.open(url, options), tap)

    @classmethod
    async def open(
        cls, url: str, token: str, *, device: str,
        options: Mapping[str, Any] | None = None, tap: Callable[[Frame], None] | None = None, **hello_keys: Any,
    ) -> Self:  # fmt: skip
        """Dial and say hello; returns when the welcome is complete.

        Further `hello_keys`: `cursors`, `since`, `epoch`, `watch`, `state`, ...
        """
        connection = await cls.dial(url, options=options, tap=tap)
        try:
            await connection.hello(token=token, device=device, **hello_keys)
        except BaseException:
            await connection.close()
            raise
        return connection

    async def hello(self, **keys: Any) -> Frame:
        """Say hello with these keys, `v` included.

        `welcome` has then all pages of the answer as one.
        """
        self.welcome = await self._link.hello(keys)
        return self.welcome

    async def request(self, t: str, **keys: Any) -> Frame:
        """Send a request and wait for its reply. Raises RequestError, ConnectionLost."""
        return await self._link.future(t, keys)

    def ask(self, t: str, **keys: Any) -> asyncio.Future[Frame]:
        """Send a request now; the future gets the reply, or what `request` raises."""
        return self._link.future(t, keys)

    def send_text(self, text: str) -> None:
        """Send any text as a frame, as it is: for trying what a server does with it.

        The reply comes as a push.
        """
        self._link.send_text(text)

    @property
    def last_id(self) -> int:
        """Of the requests sent so far; set it after a `send_text` that used up ids."""
        return self._link.last_id

    @last_id.setter
    def last_id(self, id: int) -> None:
        self._link.last_id = id

    @property
    def close_code(self) -> int | None:
        """None while it is open; 1006 if it ended without a close frame."""
        return self._link.close_code

    @property
    def close_reason(self) -> str:
        """What the close frame says."""
        return self._link.close_reason

    @property
    def pushes(self) -> Stream[Frame]:
        """All frames that are no reply to a request of this class, in order.

        Ends with the connection.
        """
        return Stream(self._next)

    async def next(self, t: str | None = None) -> Frame:
        """The next push; with `t`, the next of that type, while others are dropped.

        Raises ConnectionLost.
        """
        while (frame := await self._next()) is not None:
            if t is None or frame.get("t") == t:
                return frame
        raise ConnectionLost(self.close_code or LOST, self.close_reason)

    async def _next(self) -> Frame | None:
        while not self._pushes:
            if self.close_code is not None:
                await self._link.wait_over()
                return None
            self._news.clear()
            await self._news.wait()
        if len(self._pushes) <= PUSHES_MAX // 2:
            self._link.resume()
        return self._pushes.popleft()

    def _pushed(self, frame: Frame) -> None:
        if self._tap is not None:
            self._tap(frame)
        self._pushes.append(frame)
        self._news.set()
        if len(self._pushes) >= PUSHES_MAX:
            self._link.pause()

    async def wait_closed(self) -> int:
        """Wait until the connection has ended; its close code."""
        await self._link.wait_over()
        return self.close_code or LOST

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Send what is queued, then close. Idempotent."""
        await self._link.close(code, reason)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
