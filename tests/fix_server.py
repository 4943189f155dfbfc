"""A chatd for the tests, on a free port and a database of its own.

    server          a node in the test's own event loop: `.url`, `.token(user)`, `.node` (its parts), `await .connect(user)`
    make_server     the same with settings of the test's: `await make_server(rate_messages=1000)`
    Peer            a test's client: raw frames over `websockets`, nothing of ours in between

Real processes (to be killed) are in `tests/fix_process.py`.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import pytest_asyncio
from pydantic import SecretStr
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from chatd.config import Settings
from chatd.ids import UserId
from chatd.server import Node

Frame: TypeAlias = dict[str, Any]
WAIT_S = 10.0  # for what must come; far beyond what it takes


class Peer:
    """One connection:

    `request` waits for its reply and keeps what is pushed meanwhile; `push` gives the next pushed
    frame.
    """

    def __init__(self, ws: ClientConnection) -> None:
        self.ws = ws
        self.last_id = 0
        self.pushes: list[Frame] = []
        self.welcome: Frame = {}

    async def recv(self) -> Frame:
        async with asyncio.timeout(WAIT_S):
            frame: Frame = json.loads(await self.ws.recv())
            return frame

    async def send_raw(self, data: str | bytes) -> None:
        await self.ws.send(data)

    async def post(self, t: str, **keys: Any) -> int:
        """Send a request and do not wait."""
        self.last_id += 1
        await self.ws.send(json.dumps({"t": t, "id": self.last_id, **keys}))
        return self.last_id

    async def reply(self, id: int) -> Frame:
        while True:
            frame = await self.recv()
            if frame.get("id") == id:
                return frame
            self.pushes.append(frame)

    async def request(self, t: str, **keys: Any) -> Frame:
        return await self.reply(await self.post(t, **keys))

    async def say(self, to: str, body: str = "hi", **keys: Any) -> Frame:
        return await self.request("send", to=to, cid=keys.pop("cid", None) or str(uuid.uuid4()), body=body, **keys)

    async def push(self, t: str | None = None) -> Frame:
        """The next push (of this type: others are dropped)."""
        while True:
            frame = self.pushes.pop(0) if self.pushes else await self.recv()
            if t is None or frame["t"] == t:
                return frame

    async def quiet(self) -> None:
        """Nothing was pushed: everything sent before a ping's answer has arrived when that does."""
        assert (await self.request("ping"))["t"] == "pong"
        assert self.pushes == []

    async def closed(self) -> int:
        """Wait for the end of the connection; gives the close code."""
        try:
            async with asyncio.timeout(WAIT_S):
                while True:
                    self.pushes.append(json.loads(await self.ws.recv()))
        except ConnectionClosed as e:
            return e.rcvd.code if e.rcvd is not None else 1006

    async def close(self) -> None:
        await self.ws.close()


class Server:
    """A running node."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.port = node.port
        self.url = f"ws://127.0.0.1:{node.port}/ws"
        self.http = f"http://127.0.0.1:{node.port}"
        self.admin = f"http://127.0.0.1:{node.admin_port}"
        self.peers: list[Peer] = []

    def token(self, user: str) -> str:
        return self.node.token(UserId(user))

    async def open(self, **options: Any) -> Peer:
        """A connection that has said nothing yet."""
        peer = Peer(await connect(self.url, subprotocols=["chatd.v1"], compression=None, **options))  # type: ignore[list-item]
        self.peers.append(peer)
        return peer

    async def connect(self, user: str, device: str = "d1", **keys: Any) -> Peer:
        """A connection that has said hello; `welcome` holds all pages as one frame."""
        peer = await self.open()
        id = await peer.post("hello", v=1, token=keys.pop("token", None) or self.token(user), device=device, **keys)
        page = peer.welcome = await peer.reply(id)
        assert page["t"] == "welcome", page
        while page["more"]:
            page = await peer.reply(id)
            peer.welcome["conversations"] += page["conversations"]
        peer.welcome.update(more=False, since=page["since"])
        return peer

    async def stop(self) -> None:
        for peer in self.peers:
            peer.ws.transport.abort()
        await self.node.stop()


MakeServer: TypeAlias = Callable[..., Awaitable[Server]]


@pytest_asyncio.fixture
async def make_server(make_db: Callable[[], str], tmp_path: Path) -> AsyncIterator[MakeServer]:
    servers: list[Server] = []

    async def make(**settings: Any) -> Server:
        url = SecretStr(settings.pop("database_url", None) or make_db())
        node = Node(Settings(**{"data_dir": tmp_path, "port": 0, "admin_port": 0, "database_url": url, **settings}))
        try:
            await node.start()
        except BaseException:
            await node.stop()
            raise
        servers.append(Server(node))
        return servers[-1]

    yield make
    for server in servers:
        await server.stop()


@pytest_asyncio.fixture
async def server(make_server: MakeServer) -> Server:
    return await make_server()


@pytest.fixture
def cid() -> str:
    return str(uuid.uuid4())
