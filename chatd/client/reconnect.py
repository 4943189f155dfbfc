"""Keeps a client connected: the token, the link, `hello`, and the wait before the next try.

    token ─► Link.open ─► hello ─► Session.run ─► end ─┐
      ▲                                                │ Dial: when, with which token, or never
      └───────────────── wait ─────────────────────────┘

`Client` (client.py) starts it and gets the sessions; dial.py has the policy.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import ssl
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, NoReturn, TypeAlias

import orjson
from websockets.exceptions import (
    InvalidMessage,
    InvalidStatus,
    InvalidUpgrade,
    InvalidURI,
    NegotiationError,
    WebSocketException,
)

from chatd.client import frames
from chatd.client.desk import Desk
from chatd.client.dial import SETTLED_S, Dial, Next
from chatd.client.errors import ConnectionLost, NoToken, ProtocolError, RequestError, Stopped
from chatd.client.frames import Frame
from chatd.client.link import Link
from chatd.client.session import Session
from chatd.client.values import Line

log = logging.getLogger("chatd.client")

Token: TypeAlias = str | Callable[[bool], str | Awaitable[str]]

TOKEN_S: Final = 30.0  # longest wait for the app's token callable
HELD_FRAMES_MAX: Final = 20_000  # pushes that overtake the end of a welcome
HELLO_MARGIN_BYTES: Final = 64


class Reconnector:
    """One connection after another.

    `live` is called with each session once its welcome is complete, `down` when it has ended,
    `line` with how the connection stands.
    """

    def __init__(
        self,
        url: str,
        token: Token,
        device: str,
        desk: Desk,
        dial: Dial,
        options: Mapping[str, Any] | None,
        *,
        live: Callable[[Session], None],
        down: Callable[[], None],
        line: Callable[[Line], None],
    ) -> None:
        self._url, self._device, self._options = url, device, options
        # A file or a shell leaves a line end behind it, and the server takes no token with one
        self._token = token.strip() if isinstance(token, str) else token
        self._desk, self.dial = desk, dial
        self._live, self._down, self._line = live, down, line
        self._refusal: RequestError | None = None  # of the last hello
        self._why = ""  # the last try found no chatd
        self._bare = False  # the server refused a hello with places in the log: the next has none

    async def run(self) -> NoReturn:
        """Connect again and again. Raises Stopped where another try would not help."""
        while True:
            self._line(Line("connecting"))
            then = await self._connect_once()
            log.debug("connection over: %s; next in %s s", then.reason, then.wait_s)
            if then.wait_s is None:
                field = None if self._refusal is None else self._refusal.field
                raise Stopped(then.reason, then.close_code, field=field, msg=self._why)
            self._line(Line("offline", then.reason, then.wait_s, self._why))
            await asyncio.sleep(then.wait_s)

    async def _connect_once(self) -> Next:
        """One connection, from its token to its end; what follows it."""
        self._refusal, self._why = None, ""
        try:
            token = await self._a_token(self.dial.renew)
        except NoToken as e:
            raise Stopped("no_token", detail=str(e)) from e
        except Exception as e:  # the callable is the app's and may raise anything
            log.warning("no token: %r", e)
            return self.dial.no_token()
        try:
            link = await Link.open(self._url, self._options)
        except (OSError, TimeoutError, WebSocketException) as e:
            return self._not_connected(e)
        try:
            return await self._serve(link, token)
        finally:
            self._down()
            self._desk.outbox.disconnected()
            await link.close()

    async def _serve(self, link: Link, token: str) -> Next:
        """From `hello` to the end of the connection."""
        held: list[Frame] = []

        def hold(frame: Frame) -> None:
            held.append(frame)
            if len(held) > HELD_FRAMES_MAX:
                raise ProtocolError("too many pushes before the end of the welcome")

        link.on_frame = hold
        keys = self._hello(token)
        try:
            welcome = frames.welcome(await link.hello(keys))
        except RequestError as e:
            return self._hello_refused(e, "epoch" in keys)
        except ConnectionLost as e:
            try:
                await link.wait_over()
            except ProtocolError as fault:  # what the link itself cannot read: the pages of a welcome
                return self._no_welcome(fault)
            return self.dial.closed(e.close_code)
        except (TimeoutError, ProtocolError) as e:
            return self._no_welcome(e)
        if (user := self._desk.user) not in ("", welcome.user):
            raise Stopped("another_user", detail=f"the token is of {welcome.user}, the state of {user}")
        new_token = None if isinstance(self._token, str) else lambda: self._a_token(True)
        session = Session(self._desk, link, new_token, said_away=keys["state"] == "away")
        session.enter(welcome, held)
        self.dial.live()
        self._bare = False
        self._live(session)
        settled = asyncio.get_running_loop().call_later(SETTLED_S, self.dial.settled)
        try:
            await session.run(welcome)
        finally:
            settled.cancel()
        wait_s = None if session.retry_at is None else max(0.0, session.retry_at - asyncio.get_running_loop().time())
        if session.reason not in (None, "restart"):
            return self.dial.left(session.reason)
        return self.dial.closed(link.close_code or 1012, named_s=wait_s)

    def _hello(self, token: str) -> dict[str, Any]:
        """The keys of `hello`, with as many places in the log as one frame holds."""
        keys: dict[str, Any] = {
            "token": token,
            "device": self._device,
            "state": "away" if self._desk.away else "online",
            "features": [],
        }
        if self._bare:
            return keys | self._desk.inbox.bare()
        room = self._desk.limits.frame_bytes - len(orjson.dumps(keys)) - HELLO_MARGIN_BYTES
        return keys | self._desk.inbox.hello(room)

    def _hello_refused(self, error: RequestError, resuming: bool) -> Next:
        log.warning("hello was refused: %s", error)
        self._refusal, self._why = error, error.msg
        if error.retry_ms is None and resuming and error.code not in ("unauthorized", "token_expired"):
            self._bare = True  # it may refuse the mark or a cursor; without them it lists everything
            return self.dial.left(error.code)
        return self.dial.refused(error.code, error.retry_ms)

    def _no_welcome(self, error: Exception) -> Next:
        log.warning("no welcome: %r", error)
        self._why = str(error)
        return self.dial.left("no_welcome")

    def _not_connected(self, error: Exception) -> Next:
        self._why = f"{self._url}: {error}" if str(error) else f"{self._url}: {error!r}"
        log.debug("cannot connect: %r", error)
        match error:
            case InvalidStatus():
                return self.dial.unreachable(error.response.status_code)
            case ssl.SSLError():  # no TLS there, or a certificate that is not trusted
                return self.dial.not_chatd("tls")
            case InvalidMessage() if not isinstance(error.__cause__, EOFError | OSError):
                return self.dial.not_chatd("no_http")  # a TLS server answers a `ws://` so, too
            case InvalidURI() | InvalidUpgrade() | NegotiationError():
                return self.dial.not_chatd("no_websocket")
            case _:
                return self.dial.unreachable()

    async def renewed(self) -> str:
        """A new token. Raises RuntimeError where it is a text, and what the callable raises."""
        if isinstance(self._token, str):
            raise RuntimeError("the token of this client is a text: give it a callable, which can return another one")
        return await self._a_token(True)

    async def _a_token(self, renew: bool) -> str:
        """The app's token, within `TOKEN_S`. Raises NoToken, and anything else that is to be tried
        again.
        """
        if isinstance(self._token, str):
            return self._token
        try:
            async with asyncio.timeout(TOKEN_S):
                token = self._token(renew)
                token = await token if inspect.isawaitable(token) else token
        except asyncio.CancelledError as e:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise RuntimeError("the token callable was cancelled from within") from e
        if not isinstance(token, str):
            raise TypeError(f"the token callable returned {type(token).__name__} and no str")
        return token.strip()
