"""One connection of a client to the fake server: what it said, and what goes out to it."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any, Protocol

import orjson
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed

from chatd.client.testing.conversation import Frame


class Sessions(Protocol):
    """The server, as a session needs it."""

    sessions: dict[tuple[str, str], Session]


class Session:
    def __init__(self, server: Sessions, ws: ServerConnection) -> None:
        self.server, self.ws = server, ws
        self.user = self.device = ""
        self.hello: Frame = {}
        self.requests: list[Frame] = []
        self.blocked: dict[str, str] = {}
        self.watched: list[str] = []
        self.last_id = 0
        self.gone = False  # cut: what had been read already is not taken any more
        self.behind: list[Frame] = []  # pushes that follow the reply in the making
        self.out: asyncio.Queue[Frame | tuple[int, str] | None] = asyncio.Queue()

    def push(self, **frame: Any) -> None:
        self.out.put_nowait(frame)

    def close(self, code: int, reason: str = "") -> None:
        """After what is queued."""
        self.server.sessions.pop((self.user, self.device), None)
        self.out.put_nowait((code, reason))

    def cut(self) -> None:
        """At once, without a word; what is queued is lost."""
        if self.server.sessions.get((self.user, self.device)) is self:
            del self.server.sessions[(self.user, self.device)]
        self.gone = True
        while not self.out.empty():
            self.out.get_nowait()
        self.ws.transport.abort()

    async def write(self) -> None:
        with suppress(ConnectionClosed):
            while (what := await self.out.get()) is not None:
                if isinstance(what, tuple):
                    await self.ws.close(*what)
                    return
                await self.ws.send(orjson.dumps(what).decode())
