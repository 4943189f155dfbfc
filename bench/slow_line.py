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
from typing import Any, Final

PIECE_BYTES: Final = 4_096
BUFFER_BYTES: Final = 16_384  # SO_RCVBUF and SO_SNDBUF; Linux takes twice that


class SlowLine:
    """Listens on `port` between `start` and `stop`.

    `bytes_per_s`: of each connection, towards its client.
    """

    def __init__(self, upstream: int, bytes_per_s: float) -> None:
        self._upstream, self._bytes_per_s = upstream, bytes_per_s
        self.port = 0
        self.connections = 0  # that were made so far
        self._server: asyncio.Server | None = None
        self._links: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        listener = _narrow()
        listener.bind(("127.0.0.1", 0))
        self._server = await asyncio.start_server(self._link, sock=listener, limit=PIECE_BYTES)
        self.port = listener.getsockname()[1]

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
        try:
            sock = _narrow()
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self._upstream))
            up_reader, up_writer = await asyncio.open_connection(sock=sock, limit=PIECE_BYTES)
            writers.append(up_writer)
            for one in writers:
                one.transport.set_write_buffer_limits(high=0)
            await until_one_ends(_carry(reader, up_writer, 0.0), _carry(up_reader, writer, self._bytes_per_s))
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            for one in writers:
                one.close()
            self._links.discard(task)


async def until_one_ends(*ways: Coroutine[Any, Any, None]) -> None:
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
