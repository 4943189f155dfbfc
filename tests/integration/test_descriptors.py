"""A node with few descriptors: nobody is cut in silence, and the admin port answers."""

from __future__ import annotations

import asyncio
import json
import re
import urllib.request
from typing import Final

from tests.fix_process import MakeProcess
from tests.ports import free_port

LIMIT: Final = 200
OWN: Final = 4 + 4 + 2 + 128


async def opened(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", port)


async def test_a_node_takes_as_many_clients_as_it_has_descriptors_for(make_process: MakeProcess, fresh_db: str) -> None:
    before = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({LIMIT}, {LIMIT}))"
    node = await make_process(before=before, database_url=fresh_db, admin_port=free_port(), handshake_ms=60_000)
    clients = await asyncio.gather(*(opened(node.port) for _ in range(LIMIT)))
    try:
        answers = [asyncio.create_task(reader.read(12)) for reader, _ in clients]
        async with asyncio.timeout(20):
            while sum(answer.done() for answer in answers) < OWN:
                await asyncio.wait([a for a in answers if not a.done()], return_when=asyncio.FIRST_COMPLETED)
        assert {answer.result() for answer in answers if answer.done()} == {b"HTTP/1.1 503"}
        metrics = (
            await asyncio.to_thread(lambda: urllib.request.urlopen(f"{node.admin}/metrics", timeout=10).read())
        ).decode()
        assert f"chatd_connections_now {LIMIT - OWN}.0" in metrics
        refused = re.findall(r"^chatd_connections_refused_total{.*} ([0-9.]+)$", metrics, re.MULTILINE)
        assert sum(map(float, refused)) == OWN
    finally:
        for answer in answers:
            answer.cancel()
        for _, writer in clients:
            writer.close()
    node.terminate()
    await node.ended()
    events = [json.loads(line) for line in node.log_file.read_text().splitlines() if line.startswith("{")]
    (few,) = [e for e in events if e["event"] == "descriptors.few"]
    assert f"{LIMIT} open files" in few["reason"]
    assert sum(e["event"] == "connections.full" for e in events) <= 1
