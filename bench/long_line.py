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

from bench.slow_line import until_one_ends

PIECE_BYTES: Final = 1_460  # connections that share the line take turns by these
PIECES_MAX: Final = 1_000  # on their way, of one direction of a connection


class LongLine:
    """Listens on `port` between `start` and `stop`."""

    def __init__(self, upstream: int, round_trip_s: float, bytes_per_s: float) -> None:
        self._upstream, self._round_trip_s = upstream, round_trip_s
        self._ways = _Way(round_trip_s / 2, bytes_per_s), _Way(round_trip_s / 2, bytes_per_s)
        self.port = 0
        self.connections = 0  # that were made so far
        self._server: asyncio.Server | None = None
        self._links: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._link, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for link in list(self._links):
            link.cancel()
        await asyncio.gather(*self._links, return_exceptions=True)

    async def _link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._links.add(task)
        self.connections += 1
        writers = [writer]
        up, down = self._ways
        try:
            opens_at = asyncio.get_running_loop().time() + self._round_trip_s
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._upstream)
            writers.append(up_writer)
            await until_one_ends(up.carry(reader, up_writer, opens_at), down.carry(up_reader, writer, opens_at))
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            for one in writers:
                one.close()
            self._links.discard(task)


class _Way:
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
