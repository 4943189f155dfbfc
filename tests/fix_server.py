"""A chatd for the tests, on a free port and a database of its own.

    server          a node in the test's own event loop: `.url`, `.token(user)`, `.node` (its parts), `await
                    .connect(user)`
    make_server     the same with settings of the test's: `await make_server(rate_messages=1000)`
    until_ready     waits for a node's readiness

Real processes (to be killed) are in `tests/fix_process.py`.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import pytest_asyncio
from pydantic import SecretStr

from chatd.config import Settings
from chatd.ids import UserId
from chatd.server import Node
from tests.client import Peer
from tests.until import until


async def until_ready(node: Node) -> None:
    """Until nothing speaks against sending it clients."""

    async def is_ready() -> bool:
        return not await node.readiness.problems()

    await until(is_ready, "the node is ready")


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
        peer = await Peer.open(self.url, **options)
        self.peers.append(peer)
        return peer

    async def connect(self, user: str, device: str = "d1", **keys: Any) -> Peer:
        """A connection that has said hello; `welcome` holds all pages as one frame."""
        peer = await self.open()
        welcome = await peer.hello(keys.pop("token", None) or self.token(user), device, **keys)
        assert welcome["t"] == "welcome", welcome
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
