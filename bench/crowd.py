"""The users of a run, each with one connection to the server."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from bench import wire
from bench.client import Client

if TYPE_CHECKING:
    from bench.target import Target

CONNECTING_MAX: Final = 64  # handshakes under way at once
CONNECT_S_MAX: Final = 60.0


class Crowd:
    """Users 0 ... n-1; u and u ^ 1 are peers. Set `on_text` before anything is sent."""

    def __init__(self, target: Target, n: int, seed: int) -> None:
        assert n % 2 == 0
        self.target, self.n = target, n
        self.rng = random.Random(seed)
        self.run = self.rng.getrandbits(32) if target.own else random.SystemRandom().getrandbits(32)
        self.names = [f"b{self.run:08x}-{u}" for u in range(n)]
        self.peer_of = [u ^ 1 for u in range(n)]
        self.clients: list[Client] = []
        self.dropped: Counter[int] = Counter()
        self.on_text: Callable[[int, bytes, float], None] = lambda user, payload, at: None
        self._hellos: list[bytes] = []

    async def connect(self, at_once: int = CONNECTING_MAX, hello: Callable[[int], dict[str, Any]] = lambda u: {}) -> list[float]:
        """Bring everybody in; gives the time that each took from dialling to the last welcome frame. Raises what went wrong first."""
        upgrade = wire.upgrade(self.target.host, self.target.port, self.target.path)
        hellos = [
            wire.request("hello", 1, self.rng.getrandbits(32), v=1, token=self.target.token(name), device="bench", **hello(u))
            for u, name in enumerate(self.names)
        ]
        gate = asyncio.Semaphore(at_once)
        tasks = [asyncio.ensure_future(self._dial(u, upgrade, hellos[u], gate)) for u in range(self.n)]
        try:
            dialled = await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise
        self.clients = [client for client, _ in dialled]
        return [took for _, took in dialled]

    async def _dial(self, u: int, upgrade: bytes, hello: bytes, gate: asyncio.Semaphore) -> tuple[Client, float]:
        loop = asyncio.get_running_loop()
        async with gate, asyncio.timeout(CONNECT_S_MAX):
            started = time.perf_counter()
            _, client = await loop.create_connection(
                lambda: Client(u, upgrade, hello, self._text, self._lost, loop.create_future()), self.target.host, self.target.port
            )
            return client, await client.ready - started

    def _text(self, user: int, payload: bytes, at: float) -> None:
        self.on_text(user, payload, at)

    def _lost(self, client: Client) -> None:
        self.dropped[client.close_code] += 1

    def leave(self) -> None:
        for client in self.clients:
            client.leave()
