"""One WebSocket of chatd.v1: numbered requests out; replies and pushes in, in order of arrival.

    ask() ─► queue ─► writer task ─► socket ─► reader task ─┬─ reply ─► the `answer` given to ask()
                                                            └─ push  ─► on_frame

It calls back instead of setting futures, because the order across replies and pushes is part of the
protocol: an `ok` takes an entry's place in the log, and a future would be seen one loop turn later
than the push after it. `Connection` adds futures for callers that do not need that order.

A link lives once. Every request is answered exactly once: by its reply, or by None when the link is
over; after that nothing is called. An exception that `on_frame` or an `answer` raises ends the
link, and `wait_over` raises it. The several pages of a `welcome` are one reply here.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

import orjson
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from chatd import protocol
from chatd.client.errors import ConnectionLost, ProtocolError, RequestError
from chatd.client.frames import Frame

Answer: TypeAlias = Callable[[Frame | None], None]

PING_S: Final = 10.0  # the two together are the protocol's 20 s of silence, after which the line is dead
PONG_S: Final = 10.0
CLOSE_S: Final = 1.0  # for the close handshake; a dead line would never finish it
CONNECT_S: Final = 15.0  # for the handshake, and for each page of the welcome
FRAME_IN_BYTES_MAX: Final = 8 << 20  # a history page of 100 messages, each with several changes, all of it escaped
WELCOME_ITEMS_MAX: Final = 1_000_000
EMPTY_PAGES_MAX: Final = 100  # of a welcome, before its last; a server has no reason for one
LOST: Final = 1006

_REPLIES: Final = frozenset({"ok", "err", "pong"})


class Link:
    """Made by `open`; `on_frame` gets what is no reply to a request of `ask`, and may be replaced
    at any time. `on_over` is the last call.
    """

    def __init__(self, ws: ClientConnection) -> None:
        self._ws = ws
        self.on_frame: Callable[[Frame], None] = lambda _: None
        self.on_page: Callable[[], None] = lambda: None
        self.on_over: Callable[[], None] = lambda: None
        self.frame_bytes_max = protocol.FRAME_BYTES_MAX
        self.last_id = 0
        self.close_code: int | None = None  # None while it is open
        self.close_reason = ""
        self._pending: dict[int, tuple[Answer, float]] = {}
        self._pages: dict[int, Frame] = {}
        self._empty_pages = 0
        self._out: deque[str] = deque()
        self._to_write = asyncio.Event()
        self._written = asyncio.Event()
        self._written.set()
        self._readable = asyncio.Event()
        self._readable.set()
        self._loop = asyncio.get_running_loop()
        self._writer = asyncio.create_task(self._write(), name="chatd link writer")
        self._reader = asyncio.create_task(self._read(), name="chatd link reader")

    @classmethod
    async def open(cls, url: str, options: Mapping[str, Any] | None = None) -> Link:
        """Connect; `options` go to `websockets.connect`.

        Raises what that raises: OSError, TimeoutError, WebSocketException.
        """
        settings: dict[str, Any] = {
            "subprotocols": [Subprotocol(protocol.SUBPROTOCOL)], "compression": None, "max_size": FRAME_IN_BYTES_MAX,
            "open_timeout": CONNECT_S, "close_timeout": CLOSE_S, "ping_interval": PING_S, "ping_timeout": PONG_S,
        }  # fmt: skip
        return cls(await connect(url, **(settings | dict(options or {}))))

    # ---- out -------------------------------------------------------------------------------------

    def ask(self, t: str, keys: Mapping[str, Any], answer: Answer) -> None:
        """Send a request.

        `answer` is called later, once. Raises RequestError for what no frame can hold, and then
        nothing was sent.
        """
        try:
            payload = orjson.dumps({"t": t, **keys, "id": self.last_id + 1})
        except TypeError as e:
            raise RequestError("bad_text", f"no JSON can be made of it: {e}") from None
        if len(payload) > self.frame_bytes_max:
            raise RequestError("too_long", f"the frame has {len(payload)} bytes; {self.frame_bytes_max} is the most")
        if self.close_code is not None:
            self._loop.call_soon(answer, None)
            return
        self.last_id += 1
        self._pending[self.last_id] = (answer, self._loop.time())
        self.send_text(payload.decode())

    def send_text(self, text: str) -> None:
        """Any text as a frame, after all that was asked before it."""
        self._out.append(text)
        self._written.clear()
        self._to_write.set()

    async def request(self, t: str, keys: Mapping[str, Any]) -> Frame:
        """Send a request and wait for its reply. Raises RequestError, ConnectionLost."""
        return await self.future(t, keys)

    def future(self, t: str, keys: Mapping[str, Any]) -> asyncio.Future[Frame]:
        """Send a request now; its reply comes by the future.

        Cancelling that drops the reply and nothing else.
        """
        future: asyncio.Future[Frame] = self._loop.create_future()
        # Who drops it need not hear of the end of the link
        future.add_done_callback(lambda done: done.cancelled() or done.exception())

        def answer(frame: Frame | None) -> None:
            if future.done():
                return
            if frame is None:
                future.set_exception(ConnectionLost(self.close_code or LOST, self.close_reason))
            elif frame["t"] == "err":
                future.set_exception(RequestError.of(frame))
            else:
                future.set_result(frame)

        self.ask(t, keys, answer)
        return future

    async def hello(self, keys: Mapping[str, Any]) -> Frame:
        """Say hello; gives all pages of the welcome as one.

        Raises RequestError, ConnectionLost, TimeoutError.
        """
        async with asyncio.timeout(CONNECT_S) as deadline:
            self.on_page = lambda: deadline.reschedule(self._loop.time() + CONNECT_S)
            try:
                return await self.request("hello", {"v": protocol.VERSION, **keys})
            finally:
                self.on_page = lambda: None

    # ---- in --------------------------------------------------------------------------------------

    def pause(self) -> None:
        """Read no further frames until `resume`: the server's own bound then holds."""
        self._readable.clear()

    def resume(self) -> None:
        """See pause."""
        self._readable.set()

    def oldest_s(self) -> float:
        """How long the oldest request has been waiting for its reply; 0 if none does."""
        return self._loop.time() - next(iter(self._pending.values()))[1] if self._pending else 0.0

    def _heard(self, text: str | bytes) -> None:
        try:
            frame = orjson.loads(text)
        except orjson.JSONDecodeError:
            return
        if not isinstance(frame, dict) or not isinstance(t := frame.get("t"), str):
            return
        number = frame.get("id")
        if type(number) is not int or number not in self._pending:
            self.on_frame(frame)
        elif t == "welcome":
            self._page(number, frame)
        elif t in _REPLIES:
            self._pending.pop(number)[0](frame)

    def _page(self, number: int, frame: Frame) -> None:
        items = frame.get("conversations", [])
        if not isinstance(items, list):
            raise ProtocolError("`conversations` should be a list in welcome")
        whole = self._pages.get(number)
        if whole is None:
            whole = self._pages[number] = frame
        else:
            whole["conversations"] += items
            whole.update((k, v) for k, v in frame.items() if k in ("more", "since"))
        if len(whole.setdefault("conversations", [])) > WELCOME_ITEMS_MAX:
            raise ProtocolError(f"this welcome has no end: over {WELCOME_ITEMS_MAX:,} conversations")
        if frame.get("more") is True:
            self._empty_pages += not items
            if self._empty_pages > EMPTY_PAGES_MAX:
                raise ProtocolError(f"this welcome has no end: over {EMPTY_PAGES_MAX} pages without a conversation")
            self.on_page()
        else:
            del self._pages[number]
            self._pending.pop(number)[0](whole)

    # ---- life ------------------------------------------------------------------------------------

    async def _read(self) -> None:
        try:
            while True:
                await self._readable.wait()
                self._heard(await self._ws.recv())
        except ConnectionClosed:
            pass
        finally:
            self._over()
            self._written.set()
            self._writer.cancel()

    async def _write(self) -> None:
        with contextlib.suppress(ConnectionClosed):  # the reader sees it too, with the code
            while True:
                while self._out:
                    await self._ws.send(self._out[0])
                    self._out.popleft()
                self._written.set()
                self._to_write.clear()
                await self._to_write.wait()

    def _over(self) -> None:
        if self.close_code is not None:
            return
        self.close_code = self._ws.close_code or LOST
        self.close_reason = self._ws.close_reason or ""
        pending, self._pending = self._pending, {}
        try:
            for answer, _ in pending.values():
                answer(None)
        finally:
            self.on_over()

    async def wait_over(self) -> None:
        """Wait until the link has ended. Raises what a callback raised."""
        await asyncio.wait([self._reader])
        if not self._reader.cancelled() and (error := self._reader.exception()) is not None:
            raise error

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Send what is queued, then end it, within a bound. Idempotent."""
        try:
            async with asyncio.timeout(CLOSE_S):
                if self.close_code is None:
                    await self._written.wait()
                await self._ws.close(code, reason)
        except TimeoutError:
            self._ws.transport.abort()
        finally:
            self._over()
            self._writer.cancel()
            self._reader.cancel()
            await asyncio.gather(self._writer, self._reader, return_exceptions=True)
