"""The users of a load, each with a connection per device to the server.

`Endpoint` is what a generator has to know of the server; it travels as JSON. User u is at node u
modulo the number of nodes, unless `nodes` says where each is (see `layout`). Connection number
u * devices + d is device d of user u.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench import wire
from bench.client import Client
from chatd.chat.auth import KeySet, issue
from chatd.ids import UserId

CONNECTING_MAX: Final = 64  # handshakes under way at once
CONNECT_S_MAX: Final = 60.0
TOKEN_TTL_S: Final = 86_400.0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """`run` makes the names and cids of this run differ from those of another on the same server.

    One of the keys' two places is given.
    """

    host: str
    ports: list[int]
    path: str
    run: int
    keys_file: str | None = None
    keys_dir: str | None = None
    drain_s: float | None = None  # None: as long as the load finds right

    def keys(self) -> KeySet:
        return (
            KeySet.load(Path(self.keys_file))
            if self.keys_file is not None
            else KeySet.development(Path(str(self.keys_dir)))
        )


class Crowd:
    """Users 0 ... n-1.

    Set `on_text` before anything is sent: it gets the connection's number, the payload, and when it
    was read.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        names: Sequence[str],
        rng: random.Random,
        devices: int = 1,
        nodes: Sequence[int] | None = None,
    ) -> None:
        self.endpoint, self.names, self.rng, self.devices = endpoint, list(names), rng, devices
        self.n = len(names)
        self.nodes = [u % len(endpoint.ports) for u in range(self.n)] if nodes is None else list(nodes)  # by user
        self.clients: list[Client] = []
        self.dropped: Counter[int] = Counter()
        self.on_text: Callable[[int, bytes, float], None] = lambda conn, payload, at: None
        self.on_welcome: Callable[[int, bytes], None] = lambda conn, payload: None  # each page of a welcome
        self.on_lost: Callable[[int], None] = lambda conn: None  # a connection that nobody here ended
        self.epoch = ""  # of the server's log, as welcomes tell
        self.hello: Callable[[int], dict[str, Any]] = lambda user: {}  # further keys of a user's hello
        keys, now = endpoint.keys(), time.time()
        self._tokens = [issue(keys, UserId(name), TOKEN_TTL_S, now, None, None) for name in self.names]
        self._upgrade = [wire.upgrade(endpoint.host, port, endpoint.path) for port in endpoint.ports]

    async def connect(self, at_once: int = CONNECTING_MAX, users: Iterable[int] | None = None) -> list[float]:
        """Bring these users in, or all; gives the time each connection took from dialling to its
        last welcome frame. Raises what went wrong first.
        """
        who = range(self.n) if users is None else users
        gate = asyncio.Semaphore(at_once)
        if not self.clients:
            self.clients = [self.absent(0)] * (self.n * self.devices)  # until each has its own
        tasks = [
            asyncio.ensure_future(self._enter(u * self.devices + d, gate)) for u in who for d in range(self.devices)
        ]
        try:
            return await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise

    async def _enter(self, conn: int, gate: asyncio.Semaphore) -> float:
        async with gate:
            return await self.dial(conn)

    async def dial(self, conn: int) -> float:
        """(Re)connect one; gives the seconds until its last welcome frame."""
        async with asyncio.timeout(CONNECT_S_MAX):
            client = self.absent(conn)
            started = time.perf_counter()
            port = self.endpoint.ports[self.nodes[conn // self.devices]]
            await asyncio.get_running_loop().create_connection(lambda: client, self.endpoint.host, port)
            self.clients[conn] = client
            return await client.ready - started

    def absent(self, conn: int) -> Client:
        """A connection that is not made yet."""
        user, device = divmod(conn, self.devices)
        hello = wire.request(
            "hello",
            1,
            self.rng.getrandbits(32),
            v=1,
            token=self._tokens[user],
            device=f"bench{device}",
            **self.hello(user),
        )
        upgrade = self._upgrade[self.nodes[user]]
        return Client(
            conn, upgrade, hello, self._text, self._lost, self._welcome, asyncio.get_running_loop().create_future()
        )

    def _welcome(self, conn: int, payload: bytes) -> None:
        if not self.epoch:
            self.epoch = wire.epoch(payload) or ""
        self.on_welcome(conn, payload)

    def _text(self, conn: int, payload: bytes, at: float) -> None:
        self.on_text(conn, payload, at)

    def _lost(self, client: Client) -> None:
        self.dropped[client.close_code] += 1
        self.on_lost(client.conn)

    def move(self, user: int) -> None:
        """The user's next dial is at another node; those of a node spread over all others."""
        n = len(self.endpoint.ports)
        if n > 1:
            self.nodes[user] = (self.nodes[user] + 1 + user % (n - 1)) % n

    def leave(self, users: Iterable[int] | None = None) -> None:
        for u in range(self.n) if users is None else users:
            for client in self.clients[u * self.devices : (u + 1) * self.devices]:
                client.leave()
