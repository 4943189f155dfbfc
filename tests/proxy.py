"""The proxy of the tests: in front of any server it carries bytes, until a test says otherwise.

    proxy = Proxy(server.port)       listens on a port of its own; with the path of a unix socket, on a path of its own
    proxy.cut(requests=100)          forwards so many more bytes to the server, on all connections together, then
                                     closes that one
    proxy.cut(answers=0)             the same for what the server says: its work is done, and nobody hears of it
    proxy.swallow()                  from now on nothing is forwarded, nothing is closed, and new connections are
                                     taken: a network
                                     that is gone; `swallow("answers")` is one way alone
    proxy.forget()                   the same for the connections that are open now, alone: a firewall that forgets
                                     idle ones
    proxy.drop()                     closes all connections
    proxy.heal()                     whatever is armed or swallowed is over for what comes next; what was swallowed
                                     stays lost, and its
                                     connection is closed: TCP loses nothing of a stream that goes on
    proxy.delay_s = 0.02             each way takes so much longer, in order, and unbounded in between
    proxy.upstream = port            where new connections lead
    Proxy(server.port, tls=context)  speaks TLS to its clients, as what stands before a server in production does

A reader understands what a connection carries and may lose some of it: `Proxy(path, reader)` calls
it for each connection (faults/appends.py reads PostgreSQL).
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import ssl
import tempfile
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from bench.slow_line import until_one_ends

READ_BYTES: Final = 65_536
SOCKET_NAME: Final = ".s.PGSQL.5432"  # libpq knows a folder alone; others do not mind


class Reader(Protocol):
    """Of one connection: gets what comes, gives what goes on; None closes both sides."""

    def requests(self, data: bytes) -> bytes | None: ...

    def answers(self, data: bytes) -> bytes | None: ...


class _Everything:
    def requests(self, data: bytes) -> bytes | None:
        return data

    def answers(self, data: bytes) -> bytes | None:
        return data


class Proxy:
    """Listens on `port`, or at `folder`/SOCKET_NAME, between `start` and `stop`.

    `lost` is set once a `cut` took place.
    """

    def __init__(
        self,
        upstream: int | Path,
        reader: Callable[[], Reader] = _Everything,
        *,
        delay_s: float = 0.0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.upstream = upstream
        self.port = 0
        self.folder: Path | None = None
        self.delay_s = delay_s
        self.lost = asyncio.Event()
        self.connections = 0
        self._reader = reader
        self._tls = tls
        self._left: dict[str, int | None] = {"requests": None, "answers": None}
        self._swallowed: tuple[str, ...] = ()
        self._server: asyncio.Server | None = None
        self._links: set[asyncio.Task[None]] = set()
        self._forgotten: set[asyncio.Task[None]] = set()
        self._holed: set[asyncio.Task[None]] = set()  # of what these carry something was swallowed

    async def start(self) -> None:
        if isinstance(self.upstream, int):
            self._server = await asyncio.start_server(self._link, "127.0.0.1", 0, ssl=self._tls)
            self.port = self._server.sockets[0].getsockname()[1]
        else:
            self.folder = Path(tempfile.mkdtemp(prefix="chatd-proxy-"))
            self._server = await asyncio.start_unix_server(self._link, self.path)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        await asyncio.sleep(0)  # what was accepted in this turn begins now
        while links := list(self._links):
            self.drop()
            await asyncio.gather(*links, return_exceptions=True)
            self._links.difference_update(links)
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    async def __aenter__(self) -> Proxy:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @property
    def path(self) -> Path:
        assert self.folder is not None, "not started, or in front of a port"
        return self.folder / SOCKET_NAME

    def drop(self) -> None:
        for link in list(self._links):
            link.cancel()

    def cut(self, *, requests: int | None = None, answers: int | None = None) -> None:
        self.lost.clear()
        self._left = {"requests": requests, "answers": answers}

    def swallow(self, *ways: str) -> None:
        self._swallowed = ways or ("requests", "answers")

    def forget(self) -> int:
        """Gives how many connections were open."""
        self._forgotten |= self._links
        return len(self._links)

    def heal(self) -> None:
        self._swallowed = ()
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
            up_reader, up_writer = await self._dial()
            writers.append(up_writer)
            both = self._reader()
            await until_one_ends(
                self._carry(task, "requests", both.requests, reader, up_writer),
                self._carry(task, "answers", both.answers, up_reader, writer),
            )
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            for one in writers:  # all of them, before a cancellation can come between
                one.close()
            for one in writers:
                with contextlib.suppress(OSError, asyncio.CancelledError):
                    await one.wait_closed()
            self._links.discard(task)
            self._forgotten.discard(task)
            self._holed.discard(task)

    async def _dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self.upstream, int):
            return await asyncio.open_connection("127.0.0.1", self.upstream)
        return await asyncio.open_unix_connection(self.upstream)

    async def _carry(
        self,
        link: asyncio.Task[None],
        way: str,
        passes: Callable[[bytes], bytes | None],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        """Ends when its side does, or when the connection is to be closed."""
        late: deque[asyncio.TimerHandle] = deque()
        try:
            while data := await reader.read(READ_BYTES):
                if way in self._swallowed or link in self._forgotten:
                    self._holed.add(link)
                    continue
                goes_on = passes(data)
                if goes_on is None:
                    return
                left = self._left[way]
                is_cut = left is not None and len(goes_on) > left
                if left is not None:
                    goes_on = goes_on[:left]
                    self._left[way] = None if is_cut else left - len(goes_on)
                if self.delay_s:
                    timer = asyncio.get_running_loop().call_later(self.delay_s, _write, writer, goes_on, late)
                    late.append(timer)
                else:
                    writer.write(goes_on)
                    await writer.drain()
                if is_cut:
                    self.lost.set()
                    return
        finally:
            for timer in late:
                timer.cancel()


def _write(writer: asyncio.StreamWriter, data: bytes, late: deque[asyncio.TimerHandle]) -> None:
    late.popleft()
    writer.write(data)
