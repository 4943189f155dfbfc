"""A chatd in memory, for tests of clients: the contract of docs/protocol.md over real WebSockets,
and faults on demand.

`fault(session, frame)` is asked before each request is handled. It answers None (handle it), or one
of the words below, or an `err` frame without `id`. Nothing here is shared with the server's code or
with the client's: what this package and the client agree on, they agree on by the page. The
repository's tests hold it to the server's vectors, and list what it cannot do: it checks no token
and no rate, and takes requests as they are. It is no part of the conformance kit's `PlayedServer`,
nor that of it: `chatd-client` ships without the kit, and each would hide the other's mistakes.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from types import TracebackType
from typing import Literal, Self, TypeAlias

import orjson
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from chatd.client.testing.conversation import Frame
from chatd.client.testing.requests import Refused, Requests
from chatd.client.testing.session import Session

# `cut`: the connection ends before the request is handled. `cut after`: it is handled, and the
# connection ends before the reply. `ignore`: nothing happens.
Fault: TypeAlias = Literal["cut", "cut after", "ignore"] | Frame | None


class FakeChatd(Requests):
    """`async with FakeChatd() as server`, then `Client(server.url, token=server.token("me"), ...)`.

    A token is `<user>` or `<user>/<anything>`. `within_s`: a test that takes longer fails.
    """

    def __init__(self, *, within_s: float | None = None) -> None:
        super().__init__()
        self.url = ""
        self.all_sessions: list[Session] = []
        self.fault: Callable[[Session, Frame], Fault] = lambda _session, _frame: None
        self._within_s = within_s
        self._tokens = itertools.count(1)
        self._server: Server | None = None

    def token(self, user: str) -> str:
        """A new token of that user."""
        return f"{user}/{next(self._tokens)}"

    async def __aenter__(self) -> Self:
        self._deadline = asyncio.timeout(self._within_s)
        await self._deadline.__aenter__()
        await self.listen()
        return self

    async def listen(self, port: int = 0) -> None:
        self._server = await serve(
            self._serve,
            "127.0.0.1",
            port,
            subprotocols=[Subprotocol("chatd.v1")],
            compression=None,
            max_queue=None,  # with a bound, a close waits in vain behind what is not taken any more
        )
        self.url = f"ws://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/ws"

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1].split("/")[0])

    async def stop(self) -> None:
        assert self._server is not None
        for session in list(self.sessions.values()):
            session.cut()
        self._server.close()
        await self._server.wait_closed()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self.stop()
        finally:
            await self._deadline.__aexit__(kind, error, trace)
        assert kind is not None or not self.unsaid_repeats, "a repeat says that it is one"

    async def _serve(self, ws: ServerConnection) -> None:
        session = Session(self, ws)
        self.all_sessions.append(session)
        writer = asyncio.create_task(session.write())
        try:
            async for text in ws:
                self._take(session, orjson.loads(text))
        except ConnectionClosed:
            pass
        finally:
            if self.sessions.get((session.user, session.device)) is session:
                del self.sessions[(session.user, session.device)]
            self.presence_changed(session.user)
            session.out.put_nowait(None)
            await writer

    def _take(self, session: Session, frame: Frame) -> None:
        if session.gone:
            return
        assert type(frame["id"]) is int
        assert frame["id"] > session.last_id, "ids grow"
        session.last_id = frame["id"]
        session.requests.append(frame)
        frame = frame | {key: frame[key].lower() for key in ("cid", "refcid") if key in frame}
        fault = self.fault(session, frame)
        if fault == "ignore":
            return
        if fault == "cut":
            session.cut()
            return
        try:
            if isinstance(fault, dict):
                self._block(session, frame, fault)
                raise Refused(**fault)
            reply = self.handle(session, frame)
        except Refused as e:
            reply = e.frame
        if fault == "cut after":
            session.cut()
        elif reply is not None:
            session.push(**({"t": "ok", "id": frame["id"]} | reply))
            for push in session.behind:
                session.push(**push)
        session.behind.clear()
        if (
            reply is not None
            and frame["t"] == "hello"
            and (code := {"unauthorized": 4001, "token_expired": 4002}.get(reply.get("code", "")))
        ):
            session.close(code)
