"""A reader for the proxy in front of PostgreSQL that loses exactly the answer to an `append`.

    appends = Appends()
    proxy = Proxy(path_of(conninfo), appends.reader); await proxy.start()
    chatd gets through(conninfo, proxy)

It reads just enough of PostgreSQL's protocol 3.0: which prepared statements hold `append(`, when
one of them is bound, and the ReadyForQuery that ends its answer. That byte comes after the commit
took effect: so what is lost is the answer, never the work. `armed` says what to do the next time:

    "cut"     swallow the answer, then close both sides
    "hang"    swallow the answer, and everything after it, and close nothing
    "before"  swallow the request, then close both sides: nothing is done at all
    "stall"   swallow the request and what follows it, and close nothing
"""

from __future__ import annotations

import asyncio
import struct
from pathlib import Path

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.proxy import SOCKET_NAME, Proxy


def path_of(conninfo: str) -> Path:
    """The socket that it names by its folder."""
    return Path(str(conninfo_to_dict(conninfo)["host"])) / SOCKET_NAME


def through(conninfo: str, proxy: Proxy) -> str:
    """The same database by way of the proxy. The direct way is for the tests themselves: a plain
    connection blocks the loop, which the proxy needs.
    """
    return make_conninfo(conninfo, host=str(proxy.folder))


class Appends:
    """What was seen on all connections. `lost` is set once an answer was lost."""

    def __init__(self) -> None:
        self.armed: str | None = None
        self.lost = asyncio.Event()
        self.count = 0

    def reader(self) -> _Connection:
        return _Connection(self)


class _Messages:
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


class _Connection:
    def __init__(self, appends: Appends) -> None:
        self._appends = appends
        self._asked, self._said = _Messages(untyped_first=True), _Messages(untyped_first=False)
        self._appending: set[bytes] = set()  # names of the statements that hold `append(`
        self._losing: str | None = None

    def requests(self, data: bytes) -> bytes | None:
        if self._losing == "stall":
            return b""
        out = b""
        for type_, message in self._asked.feed(data):
            if type_ == b"P":
                name, sql = message[5:].split(b"\0")[:2]
                if b"append(" in sql:
                    self._appending.add(name)
            elif type_ == b"B" and message[5:].split(b"\0")[1] in self._appending:
                self._appends.count += 1
                if self._appends.armed is not None:
                    self._losing, self._appends.armed = self._appends.armed, None
                    if self._losing in ("before", "stall"):
                        self._appends.lost.set()
                        return None if self._losing == "before" else b""
            out += message
        return out

    def answers(self, data: bytes) -> bytes | None:
        out = b""
        for type_, message in self._said.feed(data):
            if self._losing is None:
                out += message
            elif type_ == b"Z":  # the transaction is over, and chatd will never know
                self._appends.lost.set()
                if self._losing == "cut":
                    return None
        return out
