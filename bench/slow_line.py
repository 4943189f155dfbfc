"""A slow line in front of a server: a TCP proxy that carries so many bytes a second to each client,
and holds little itself.

    server ──► [16 KB] a piece, then as long as the line takes for it [16 KB] ──► client
           ◄──────────────────────── as it comes ────────────────────────

What has not been carried waits at the server, as behind a line: the proxy's own buffers, and the
kernel's for it, are some 64 KB.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Coroutine
from typing import Any, Final, TypeAlias

Streams: TypeAlias = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Way: TypeAlias = Coroutine[Any, Any, None]

PIECE_BYTES: Final = 4_096
BUFFER_BYTES: Final = 16_384  # SO_RCVBUF and SO_SNDBUF; Linux takes twice that


class Line:
    """A TCP proxy that listens on `port` between `start` and `stop`. Which line it is, its `_ways` say."""

    def __init__(self, upstream: int) -> None:
        self._upstream = upstream
        self.port = 0
        self.connections = 0  # that were made so far
        self._server: asyncio.Server | None = None
        self._links: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._server = await self._listen()
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
        made_at = asyncio.get_running_loop().time()
        writers = [writer]
        try:
            up_reader, up_writer = await self._dial()
            writers.append(up_writer)
            await until_one_ends(*self._ways(made_at, (reader, writer), (up_reader, up_writer)))
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            for one in writers:
                one.close()
            self._links.discard(task)

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._link, "127.0.0.1", 0)

    async def _dial(self) -> Streams:
        return await asyncio.open_connection("127.0.0.1", self._upstream)

    def _ways(self, made_at: float, client: Streams, server: Streams) -> tuple[Way, Way]:
        """What carries bytes up and down. `made_at`: when the client's connection was, by the loop's clock."""
        raise NotImplementedError


class SlowLine(Line):
    """`bytes_per_s`: of each connection, towards its client."""

    def __init__(self, upstream: int, bytes_per_s: float) -> None:
        super().__init__(upstream)
        self._bytes_per_s = bytes_per_s

    async def _listen(self) -> asyncio.Server:
        listener = _narrow()
        listener.bind(("127.0.0.1", 0))
        return await asyncio.start_server(self._link, sock=listener, limit=PIECE_BYTES)

    async def _dial(self) -> Streams:
        sock = _narrow()
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self._upstream))
        return await asyncio.open_connection(sock=sock, limit=PIECE_BYTES)

    def _ways(self, made_at: float, client: Streams, server: Streams) -> tuple[Way, Way]:
        for _, writer in (client, server):
            writer.transport.set_write_buffer_limits(high=0)
        return _carry(client[0], server[1], 0.0), _carry(server[0], client[1], self._bytes_per_s)


async def until_one_ends(*ways: Way) -> None:
    """Run the ways of a proxy's connection until the first of them ends, with whatever result; then
    the others are cancelled.
    """
    tasks = [asyncio.create_task(way) for way in ways]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, bytes_per_s: float) -> None:
    """Until one side ends.

    The line is busy for as long as a piece takes; it gains no credit while nothing is to be
    carried.
    """
    now = asyncio.get_running_loop().time
    free_at = now()
    with contextlib.suppress(OSError):
        while data := await reader.read(PIECE_BYTES):
            writer.write(data)
            await writer.drain()
            if bytes_per_s:
                free_at = max(free_at, now()) + len(data) / bytes_per_s
                await asyncio.sleep(free_at - now())


def _narrow() -> socket.socket:
    sock = socket.socket()
    for way in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        sock.setsockopt(socket.SOL_SOCKET, way, BUFFER_BYTES)
    return sock
