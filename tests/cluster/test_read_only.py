"""The database turns read-only for some seconds under three nodes at work, as a managed service
does whose disk is full, or a failover.

Cursors move, sessions come, first messages go to new people all the while. No node dies, nothing
acked is lost, sessions stay, and all is back within a second. READ_ONLY_SECONDS sets how long (6 in
the field's case).
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import time
import uuid
from typing import TYPE_CHECKING

import psycopg
import pytest

from tests.client import peer_at
from tests.faults.crowd import crowd_at, seed
from tests.faults.test_kills import FAST
from tests.ports import free_port
from tests.until import until

if TYPE_CHECKING:
    from tests.fix_cluster import MakeNodes, Nodes
    from tests.fix_process import OwnPostgres, Process

READ_ONLY_S = float(os.environ.get("READ_ONLY_SECONDS", "2"))

pytestmark = pytest.mark.cluster


def set_read_only(conninfo: str, value: str) -> None:
    with psycopg.connect(conninfo, autocommit=True) as conn:
        conn.execute("SET default_transaction_read_only = off")
        conn.execute(f"ALTER SYSTEM SET default_transaction_read_only = {value}")
        conn.execute("SELECT pg_reload_conf()")


async def ask(admin: str) -> dict[str, object]:
    """What `/readyz` says."""
    host, port = admin.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
    answer = await reader.read()
    writer.close()
    said: dict[str, object] = json.loads(answer.partition(b"\r\n\r\n")[2])
    return said


_names = itertools.count(1)


async def comes_and_writes(process: Process, back: asyncio.Event, times: list[float]) -> None:
    """Newcomers, one after the other: hello, a first message to somebody new, a read cursor.

    Whatever is refused is refused for now.

    The time of the first ok after `back` is noted.
    """
    while True:
        name = f"new{next(_names)}"
        async with peer_at(process, name) as peer:
            if peer.welcome["t"] == "err":
                assert peer.welcome["code"] == "unavailable", peer.welcome
            else:
                sent = await peer.say(f"friend of {name}", cid=str(uuid.uuid4()))
                assert sent["t"] == "ok" or sent["code"] == "unavailable", sent
                if sent["t"] == "ok":
                    await peer.request("read", c=sent["c"], upto=sent["seq"])
                    if back.is_set():
                        times.append(time.monotonic())
                        return
        await asyncio.sleep(0.05)


async def stands(nodes: Nodes, admins: list[str]) -> None:
    """Until each node's readiness says read-only."""
    for process, admin in zip(nodes.nodes, admins, strict=True):

        async def says_read_only() -> bool:
            assert process.status is None, process.said()
            said = await ask(admin)
            return "read-only" in str(said.get("reasons")) and said["ready"] is False

        await until(says_read_only, pause_s=0.05)


class Spread:
    """Each client dials the next node: pairs talk across nodes."""

    def __init__(self, nodes: Nodes) -> None:
        self._urls, self.token = itertools.cycle(node.url for node in nodes.nodes), nodes.token

    @property
    def url(self) -> str:
        return next(self._urls)

    @url.setter
    def url(self, _: str) -> None: ...


async def test_read_only_for_seconds_kills_no_node_and_loses_nothing(
    own_postgres: OwnPostgres, make_nodes: MakeNodes
) -> None:
    rng = random.Random(seed())
    ports = [free_port() for _ in range(3)]
    nodes = await make_nodes(3, each=[{"admin_port": port} for port in ports], **FAST)
    admins = [node.admin for node in nodes.nodes]
    async with crowd_at(Spread(nodes), rng) as crowd:
        await crowd.acks(30)
        before = [client.connections for client in crowd.clients]
        back, times = asyncio.Event(), list[float]()
        newcomers = [asyncio.create_task(comes_and_writes(process, back, times)) for process in nodes.nodes]
        began = time.monotonic()
        await asyncio.to_thread(set_read_only, own_postgres.conninfo, "on")
        await stands(nodes, admins)
        await asyncio.sleep(max(0.0, began + READ_ONLY_S - time.monotonic()))
        await asyncio.to_thread(set_read_only, own_postgres.conninfo, "off")
        back_at = time.monotonic()
        back.set()
        async with asyncio.timeout(30):
            await asyncio.gather(*newcomers)
        print(f"served again after {[round(at - back_at, 2) for at in times]} s")
        await crowd.acks(30)
        assert [process.status for process in nodes.nodes] == [None] * 3
        assert [client.connections for client in crowd.clients] == before, "sessions stay"
        for admin in admins:

            async def is_ready() -> bool:
                return (await ask(admin))["ready"] is True

            await until(is_ready, pause_s=0.05)
        await crowd.settle(own_postgres.conninfo)
        print(crowd.verify(own_postgres.conninfo))
