"""A long, slow line in front of a server: a TCP proxy with a round trip and one rate for all connections.

    client ──► held for half a round trip, and for as long as the line takes for it ──► server
           ◄── the same ────────────────────────────────────────────────────────────

A connection's first bytes leave one round trip after it was made: setting it up costs that. Both ways
have the rate, each for itself. Not modelled: TCP's slow start, and losses.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

from bench.slow_line import Line, Streams, Way, until_one_ends

PIECE_BYTES: Final = 1_460  # connections that share the line take turns by these
PIECES_MAX: Final = 1_000  # on their way, of one direction of a connection


class LongLine(Line):
    """`bytes_per_s`: of each direction, all connections together."""

    def __init__(self, upstream: int, round_trip_s: float, bytes_per_s: float) -> None:
        super().__init__(upstream)
        self._round_trip_s = round_trip_s
        self._up, self._down = _Direction(round_trip_s / 2, bytes_per_s), _Direction(round_trip_s / 2, bytes_per_s)

    def _ways(self, made_at: float, client: Streams, server: Streams) -> tuple[Way, Way]:
        opens_at = made_at + self._round_trip_s
        return self._up.carry(client[0], server[1], opens_at), self._down.carry(server[0], client[1], opens_at)


class _Direction:
    """One direction of the line, of all its connections."""

    def __init__(self, delay_s: float, bytes_per_s: float) -> None:
        self._delay_s, self._bytes_per_s = delay_s, bytes_per_s
        self._free_at = 0.0

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, opens_at: float) -> None:
        """Until one side ends. What is on its way then still arrives."""
        pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(PIECES_MAX)
        now = asyncio.get_running_loop().time

        async def arrive() -> None:
            while True:
                at, data = await pieces.get()
                await asyncio.sleep(at - now())
                writer.write(data)
                await writer.drain()
                pieces.task_done()

        arriving = asyncio.create_task(arrive())
        try:
            with contextlib.suppress(OSError):
                while data := await reader.read(PIECE_BYTES):
                    self._free_at = max(self._free_at, now(), opens_at) + len(data) / self._bytes_per_s
                    await pieces.put((self._free_at + self._delay_s, data))
                await until_one_ends(pieces.join(), _ended(arriving))
        finally:
            arriving.cancel()


async def _ended(task: asyncio.Task[None]) -> None:
    await asyncio.wait([task])
