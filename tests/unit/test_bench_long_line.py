"""The line of `bench.long_line`: what a round trip and a rate cost over it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from bench.long_line import LongLine

ROUND_TRIP_S = 0.1
BYTES_PER_S = 100_000
ANSWER = b"x" * 10_000  # a tenth of a second


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while await reader.readline():
        writer.write(ANSWER)
    writer.close()


@asynccontextmanager
async def lined() -> AsyncIterator[LongLine]:
    server = await asyncio.start_server(_answer, "127.0.0.1", 0)
    line = LongLine(server.sockets[0].getsockname()[1], ROUND_TRIP_S, BYTES_PER_S)
    await line.start()
    try:
        yield line
    finally:
        await line.stop()
        server.close()


async def _asked(line: LongLine, times: int) -> list[float]:
    """How long each of so many requests takes on one connection; the first with the making of it."""
    now = asyncio.get_running_loop().time
    took = []
    begun = now()
    reader, writer = await asyncio.open_connection("127.0.0.1", line.port)
    for _ in range(times):
        writer.write(b"?\n")
        assert await reader.readexactly(len(ANSWER)) == ANSWER
        took.append(now() - begun)
        begun = now()
    writer.close()
    return took


async def test_a_request_costs_a_round_trip_and_its_bytes_and_the_first_one_another() -> None:
    async with lined() as line:
        first, second = await _asked(line, 2)
    carried = len(ANSWER) / BYTES_PER_S
    assert first >= 2 * ROUND_TRIP_S + carried
    assert second >= ROUND_TRIP_S + carried


async def test_connections_share_the_rate() -> None:
    async with lined() as line:
        took = await asyncio.gather(*(_asked(line, 1) for _ in range(3)))
    assert max(one for (one,) in took) >= 2 * ROUND_TRIP_S + 3 * len(ANSWER) / BYTES_PER_S
    assert line.connections == 3
