"""A proxy in front of any TCP server that cuts or swallows at a byte; what it carries it does not
understand.

    proxy = TcpProxy(server.port); await proxy.start()
    proxy.cut(requests=100)    forwards so many more bytes to the server, on all connections together, then closes both sides of that one
    proxy.cut(answers=0)       the same for what the server says: its work is done, and nobody hears of it
    proxy.swallow()            from now on nothing is forwarded, nothing is closed, and new connections are taken: a network that is gone
    proxy.drop()               closes all connections
    proxy.heal()               whatever is armed or swallowed is over for what comes next; what was swallowed stays lost, and its connection
                               is closed: TCP loses nothing of a stream that goes on
    proxy.upstream = port      where new connections lead

`lost` is set once a cut took place. For PostgreSQL, whose messages it knows, there is proxy.py.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

from bench.slow_line import until_one_ends

READ_BYTES: Final = 65_536


class TcpProxy:
    """Listens on `port` between `start` and `stop`."""

    def __init__(self, upstream: int) -> None:
        self.upstream = upstream
        self.port = 0
        self.lost = asyncio.Event()
        self.connections = 0
        self._left: dict[str, int | None] = {"requests": None, "answers": None}
        self._swallows = False
        self._server: asyncio.Server | None = None
        self._links: set[asyncio.Task[None]] = set()
        self._holed: set[asyncio.Task[None]] = set()  # of what these carry something was swallowed

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._link, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for link in list(self._links):
            link.cancel()
        await asyncio.gather(*self._links, return_exceptions=True)

    def drop(self) -> None:
        """Close all connections, now."""
        for link in list(self._links):
            link.cancel()

    def cut(self, *, requests: int | None = None, answers: int | None = None) -> None:
        self.lost.clear()
        self._left = {"requests": requests, "answers": answers}

    def swallow(self) -> None:
        self._swallows = True

    def heal(self) -> None:
        self._swallows = False
        self._left = {"requests": None, "answers": None}
        for link in self._holed:
            link.cancel()
        self._holed.clear()

    async def _link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._links.add(task)
        self.connections += 1
        writers = [writer]
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.upstream)
            writers.append(up_writer)
            await until_one_ends(
                self._pump(task, "requests", reader, up_writer), self._pump(task, "answers", up_reader, writer)
            )
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            for one in writers:
                one.close()
            for one in writers:
                with contextlib.suppress(OSError, asyncio.CancelledError):
                    await one.wait_closed()
            self._links.discard(task)
            self._holed.discard(task)

    async def _pump(
        self, link: asyncio.Task[None], way: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Ends when its side does, or when the link is to be cut."""
        while data := await reader.read(READ_BYTES):
            if self._swallows:
                self._holed.add(link)
                continue
            left = self._left[way]
            if left is not None and len(data) > left:
                writer.write(data[:left])
                await writer.drain()
                self._left[way] = None
                self.lost.set()
                return
            if left is not None:
                self._left[way] = left - len(data)
            writer.write(data)
            await writer.drain()
