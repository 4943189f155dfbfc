"""People who talk from node to node while something is wrong, what they noticed, and what the nodes
say of themselves.

    Traffic         a `Town` of Travellers: `acks`, `presence_seen`, and all that a Town has
    Traveller       goes by a drain's notice, and writes down when its sends were acked and whom it saw go offline
    nodes_of        nodes over a database of the shared server: faster to have than a PostgreSQL of one's own
    told, metrics   what a node wrote into its log, and what its admin port tells
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from websockets.exceptions import ConnectionClosed

from tests.cluster.test_kills import ROOM, Town
from tests.faults.crowd import seed
from tests.fix_cluster import Nodes, Roamer
from tests.fix_process import MakeProcess, Process
from tests.ports import free_port
from tests.until import until

QUIET_S_MAX = 30.0


class Traveller(Roamer):
    """`ack_s`:

    (when it was posted, how long until its ok), by the loop's clock. `offline`: (when, whom it saw
    go offline).
    """

    def __init__(self, urls: Sequence[str], token: str, user: str, device: str, rng: random.Random) -> None:
        super().__init__(urls, token, user, device, rng)
        self.posted_at: dict[str, float] = {}
        self.ack_s: list[tuple[float, float]] = []
        self.offline: list[tuple[float, str]] = []
        self.ended_at: list[float] = []
        self.live_at: list[float] = []
        self.home = ""  # the URL it is connected to, or tries to

    @property
    def url(self) -> str:
        self.home = super().url
        return self.home

    @url.setter
    def url(self, _: str) -> None:
        """As the Roamer's: the URLs are given."""

    def post(self, to: str, kind: str = "message", body: str | None = None, ref: int | None = None) -> str:
        at = asyncio.get_running_loop().time()
        cid = super().post(to, kind, body, ref)
        self.posted_at[cid] = at
        return cid

    def _ok(self, frame: dict[str, Any]) -> None:
        at = self.posted_at[self._sent[frame["id"]].keys["cid"]]
        super()._ok(frame)
        self.ack_s.append((at, asyncio.get_running_loop().time() - at))

    def _begin(self, items: list[dict[str, Any]]) -> None:
        super()._begin(items)
        self.live_at.append(asyncio.get_running_loop().time())

    def _saw(self, facts: dict[str, Any], snapshot: bool = False) -> None:
        super()._saw(facts, snapshot)
        if facts["state"] == "offline":
            self.offline.append((asyncio.get_running_loop().time(), facts["user"]))

    async def _talk(self, ws: Any) -> None:
        notices = len(self.notices)
        try:
            await super()._talk(ws)
        except ConnectionClosed:
            if len(self.notices) > notices:
                self._lost()
                await asyncio.sleep(self.notices[-1]["retry_ms"] / 1000)
            raise
        finally:
            self.ended_at.append(asyncio.get_running_loop().time())


class Traffic(Town):
    """A Town that keeps time."""

    def __init__(self, nodes: Nodes, users: int, rate: float, rng: random.Random) -> None:
        super().__init__(nodes, users, rate, rng)
        self.folk: dict[str, Traveller] = {}
        for n, name in enumerate(self.names):
            one = self.folk[name] = Traveller(
                nodes.urls(n), nodes.token(name), name, "d1", random.Random(rng.getrandbits(64))
            )
            one.watch, one.timed = self.peers(name), True
        self.clients = dict(self.folk)

    def acks(
        self, since: float, until: float = float("inf"), but: Callable[[Traveller], bool] = lambda _: False
    ) -> list[float]:
        """How long sends that were posted in this time waited for their ok, rising."""
        return sorted(s for one in self.folk.values() if not but(one) for at, s in one.ack_s if since <= at < until)

    def deliveries(self, since: float, until: float = float("inf")) -> list[float]:
        """The same until their reader had them."""
        acked = {cid for one in self.folk.values() for cid, at in one.posted_at.items() if since <= at < until}
        kept, self.sent_at = self.sent_at, {cid: at for cid, at in self.sent_at.items() if cid in acked}
        try:
            return self.latencies()
        finally:
            self.sent_at = kept

    def offline(self, since: float) -> list[tuple[str, str]]:
        """(watcher, who looked offline to it) since then."""
        return [(name, user) for name, one in self.folk.items() for at, user in one.offline if at >= since]

    async def posts(self, more: int, within_s: float = QUIET_S_MAX) -> None:
        """Until so many more entries were posted."""
        goal = self.posted + more
        await until(lambda: self.posted >= goal, "the town has not fallen silent", within_s)


@contextlib.asynccontextmanager
async def traffic_at(nodes: Nodes, users: int = 24, rate: float = 60) -> AsyncIterator[Traffic]:
    """People who talk, and see each other."""
    traffic = Traffic(nodes, users, rate, random.Random(seed()))
    traffic.start()
    try:
        await traffic.open_up()
        await until(lambda: not traffic.wrong_presence(set()), lambda: f"{traffic.wrong_presence(set())}")
        traffic.begin()
        yield traffic
    finally:
        await traffic.stop()


def share(values: Sequence[float], part: float) -> float:
    """The value that `part` of these rising ones do not pass."""
    return values[min(len(values) - 1, int(len(values) * part))]


# ---- nodes ---------------------------------------------------------------------------------------


async def nodes_of(
    n: int, make_process: MakeProcess, database_url: str, redis_url: str,
    *, before: Sequence[str] = (), each: Sequence[dict[str, Any]] = (), **settings: Any,
) -> Nodes:  # fmt: skip
    """Nodes that started at the same time, each with an admin port."""
    own = [{"node_name": f"node{k + 1}", "admin_port": free_port(), **(each[k] if each else {})} for k in range(n)]
    common = {"database_url": database_url, "redis_url": redis_url, **ROOM, **settings}
    return Nodes(
        await asyncio.gather(*(make_process(before[k] if before else "", **{**common, **own[k]}) for k in range(n)))
    )


def told(node: Process, event: str) -> list[dict[str, Any]]:
    """The lines of its log about an event."""
    lines = (json.loads(line) for line in node.log_file.read_text().splitlines() if line.startswith("{"))
    return [line for line in lines if line["event"] == event]


async def metrics(node: Process) -> dict[str, float]:
    """What its admin port tells, without labels."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(node.admin.rpartition(":")[2]))
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    text = (await reader.read()).decode()
    writer.close()
    lines = (line.split() for line in text.splitlines() if line.startswith("chatd_") and "{" not in line)
    return {line[0]: float(line[1]) for line in lines}


async def together(nodes: Nodes, within_s: float = QUIET_S_MAX) -> None:
    """Until all nodes hear each other, know each other's presence, and share their limits."""

    async def holds() -> bool:
        said = [await metrics(node) for node in nodes.nodes]
        return all(
            one["chatd_bus_up"] == 1 and one["chatd_presence_stale"] == 0 and one["chatd_quota_open"] == 0
            and one["chatd_nodes_known"] >= len(nodes) - 1 for one in said
        )  # fmt: skip

    await until(holds, "the nodes are together", within_s, pause_s=0.02)
