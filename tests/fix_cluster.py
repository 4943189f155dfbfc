"""Several nodes as real processes over one PostgreSQL and one Redis of the test's own, and clients
that go from node to node.

    make_nodes      `await make_nodes(3, rate_messages=1000)`: a `Nodes`: its processes, and where clients connect
    Roamer          a fault client that dials another node when its own is gone, as behind a load balancer
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeAlias

import pytest

from tests.faults.client import Client
from tests.fix_process import MakeProcess, OwnPostgres, Process
from tests.fix_redis import OwnRedis

LEASE_S = 5.0
LOSSY = "import chatd.cluster.pubsub; chatd.cluster.pubsub.DROPPED = {share}"
SKEWED = "import time; _real = time.time; time.time = lambda: _real() + {seconds}"


class Nodes:
    """Nodes that are one server."""

    def __init__(self, nodes: list[Process]) -> None:
        self.nodes = nodes

    def __getitem__(self, n: int) -> Process:
        return self.nodes[n]

    def __len__(self) -> int:
        return len(self.nodes)

    def token(self, user: str) -> str:
        return self.nodes[0].token(user)

    def urls(self, home: int) -> list[str]:
        """The nodes' URLs, that of `home` first."""
        return [self.nodes[(home + n) % len(self.nodes)].url for n in range(len(self.nodes))]


class Roamer(Client):
    """Dials its home first, and after each end any of the nodes: so neighbours stay spread over
    nodes, whichever die.
    """

    def __init__(self, urls: Sequence[str], token: str, user: str, device: str, rng: random.Random) -> None:
        self._urls, self._dice, self._dialled = list(urls), random.Random(rng.getrandbits(64)), False
        super().__init__("", token, user, device, rng)

    @property
    def url(self) -> str:
        first, self._dialled = not self._dialled, True
        return self._urls[0] if first else self._dice.choice(self._urls)

    @url.setter
    def url(self, _: str) -> None:
        """The first assignment is the base class's; the URLs are given."""


MakeNodes: TypeAlias = Callable[..., Awaitable[Nodes]]


@pytest.fixture
def make_nodes(own_postgres: OwnPostgres, own_redis: OwnRedis, make_process: MakeProcess) -> MakeNodes:
    async def make(
        n: int, *, before: Sequence[str] = (), each: Sequence[dict[str, Any]] = (), **settings: Any
    ) -> Nodes:
        place = {"database_url": own_postgres.conninfo, "redis_url": own_redis.url}
        own = [{**place, "node_name": f"node{k + 1}", **settings, **(each[k] if each else {})} for k in range(n)]
        starts = (make_process(before[k] if k < len(before) else "", **own[k]) for k in range(n))
        return Nodes(list(await asyncio.gather(*starts)))

    return make
