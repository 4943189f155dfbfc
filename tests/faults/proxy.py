"""A proxy between chatd and PostgreSQL that loses exactly the answer to an `append`.

    chatd ──unix──► Proxy ──unix──► PostgreSQL

It reads just enough of PostgreSQL's protocol 3.0: which prepared statements hold `append(`, when
one of them is bound, and the ReadyForQuery that ends its answer. That byte comes after the commit
took effect: so what is lost is the answer, never the work. `armed` says what to do the next time:

    "cut"     swallow the answer, then close both sides
    "hang"    swallow the answer, and everything after it, and close nothing
    "before"  swallow the request, then close both sides: nothing is done at all
    "stall"   swallow the request and close nothing

`forget` is a firewall that forgets idle connections: those that are open carry nothing more, either
way, and nobody closes them; new ones work.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import struct
import tempfile
from pathlib import Path
from typing import Final

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from bench.slow_line import until_one_ends

SOCKET_NAME: Final = ".s.PGSQL.5432"


class Messages:
    """Cuts a byte stream of one direction into (type, whole message).

    The client's first message has no type: it is given as b"".
    """

    def __init__(self, *, untyped_first: bool) -> None:
        self._data = bytearray()
        self._untyped = untyped_first

    def feed(self, data: bytes) -> list[tuple[bytes, bytes]]:
        self._data += data
        out: list[tuple[bytes, bytes]] = []
        while True:
            head = 0 if self._untyped else 1
            if len(self._data) < head + 4:
                return out
            end = head + struct.unpack_from("!I", self._data, head)[0]
            if len(self._data) < end:
                return out
            out.append((bytes(self._data[:head]), bytes(self._data[:end])))
            del self._data[:end]
            self._untyped = False


class Proxy:
    """Give chatd its `conninfo`. `lost` is set once an answer was lost."""

    def __init__(self, conninfo: str) -> None:
        self.direct = conninfo  # past the proxy, which needs the loop that a plain connection blocks
        self._upstream = f"{conninfo_to_dict(conninfo)['host']}/{SOCKET_NAME}"
        self._folder = Path(tempfile.mkdtemp(prefix="chatd-proxy-"))
        self.conninfo = make_conninfo(conninfo, host=str(self._folder))
        self.armed: str | None = None
        self.lost = asyncio.Event()
        self.appends = 0
        self._server: asyncio.Server | None = None
        self._links: set[asyncio.Task[None]] = set()
        self._open: set[_Link] = set()

    def forget(self) -> int:
        """Gives how many connections were open."""
        for link in self._open:
            link.is_forgotten = True
        return len(self._open)

    async def start(self) -> None:
        self._server = await asyncio.start_unix_server(self._link, self._folder / SOCKET_NAME)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        await asyncio.sleep(0)  # what was accepted in this turn begins now
        while links := list(self._links):
            for link in links:
                link.cancel()
            await asyncio.gather(*links, return_exceptions=True)
            self._links.difference_update(links)
        shutil.rmtree(self._folder, ignore_errors=True)

    async def _link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._links.add(task)
        up_writer: asyncio.StreamWriter | None = None
        link: _Link | None = None
        try:
            up_reader, up_writer = await asyncio.open_unix_connection(self._upstream)
            link = _Link(self, writer, up_writer)
            self._open.add(link)
            await until_one_ends(link.requests(reader), link.answers(up_reader))
        except OSError:
            pass
        except asyncio.CancelledError:
            pass
        finally:
            if link is not None:
                self._open.discard(link)
            writers = [one for one in (writer, up_writer) if one is not None]
            for one in writers:  # all of them, before a cancellation can come between
                one.close()
            for one in writers:
                with contextlib.suppress(OSError):
                    await one.wait_closed()
            self._links.discard(task)


class _Link:
    """One connection through the proxy.

    Each pump ends when its side does, or when the link is to be cut.
    """

    def __init__(self, proxy: Proxy, down: asyncio.StreamWriter, up: asyncio.StreamWriter) -> None:
        self._proxy, self._down, self._up = proxy, down, up
        self._appending: set[bytes] = set()  # names of the statements that hold `append(`
        self._losing: str | None = None
        self.is_forgotten = False

    async def requests(self, reader: asyncio.StreamReader) -> None:
        messages = Messages(untyped_first=True)
        while data := await reader.read(65_536):
            if self.is_forgotten:
                continue
            out = b""
            for type_, message in messages.feed(data):
                if type_ == b"P":
                    name, sql = message[5:].split(b"\0")[:2]
                    if b"append(" in sql:
                        self._appending.add(name)
                elif type_ == b"B" and message[5:].split(b"\0")[1] in self._appending:
                    self._proxy.appends += 1
                    if self._proxy.armed is not None:
                        self._losing, self._proxy.armed = self._proxy.armed, None
                        if self._losing in ("before", "stall"):
                            self._proxy.lost.set()
                            if self._losing == "stall":
                                await reader.read(-1)  # until chatd gives it up
                            return
                out += message
            self._up.write(out)
            await self._up.drain()

    async def answers(self, reader: asyncio.StreamReader) -> None:
        messages = Messages(untyped_first=False)
        while data := await reader.read(65_536):
            if self.is_forgotten:
                continue
            for type_, message in messages.feed(data):
                if self._losing is None:
                    self._down.write(message)
                elif type_ == b"Z":  # the transaction is over, and chatd will never know
                    self._proxy.lost.set()
                    if self._losing == "cut":
                        return
            await self._down.drain()
