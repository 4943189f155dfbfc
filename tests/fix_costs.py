"""What a message costs, counted and not timed: the same on every machine.

    Wire        a client's connection that costs the loop next to nothing: whole bursts in one write, frames counted
                as they come; no task, no timer
    lines_run   lines of Python that a call runs (sys.settrace): whether it goes through all of something
    Calls       calls of Python and C functions, by module and name, while it is entered (sys.setprofile)
    Trips       what libpq sends and gets on every connection of a node: round trips, statements, bytes (PQtrace)
    Tables      rows, index entries and buffers that PostgreSQL touched, from its own statistics, made exact by a
                flush of them
    syscalls    reads and writes of a process, from the kernel's own count

Clients and node share a loop, so a count is of what one turn of it does and not of how the machine
schedules. What runs beside the path by the clock (the sweep, a flush of cursors, autovacuum) can
only add; so `least` measures some times and takes the least of each figure.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import re
import sys
import tempfile
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import CodeType, FrameType, TracebackType
from typing import Any, Final, NamedTuple, Self

import orjson
import psycopg
from psycopg import pq

import chatd
from chatd.store import Store

WAIT_S: Final = 10.0  # for what must come; far beyond what it takes
ROUNDS: Final = 3
# The first line of each message; a statement's text has more
TRACED: Final = re.compile(rb"^([FB])\t(\d+)\t(\w+)", re.MULTILINE)
TRACE_BYTES_MAX: Final = 1 << 24
BODY: Final = "x" * 100
HOME: Final = str(Path(chatd.__file__).parent) + os.sep

Figures = dict[str, float]


async def least(measure: Callable[[], Awaitable[Figures]], rounds: int = ROUNDS) -> Figures:
    """The least of each figure of some rounds; the first one only warms up: statements are
    prepared, buffers are read.
    """
    await measure()
    seen = [await measure() for _ in range(rounds)]
    return {name: min(one[name] for one in seen) for name in seen[0]}


# ---- clients -------------------------------------------------------------------------------------


def masked(payload: bytes) -> bytes:
    """A client's text frame. A key of zeros is a key like any other."""
    size = len(payload)
    assert size < 65_536
    head = bytes((0x81, 0x80 | size)) if size < 126 else b"\x81\xfe" + size.to_bytes(2, "big")
    return head + b"\0\0\0\0" + payload


class Wire(asyncio.Protocol):
    """One connection of `user`.

    `frames` and `bytes_in` count what came since the last `reset`; `texts` keeps it.
    """

    def __init__(self, user: str) -> None:
        self.user = user
        self.texts: list[bytes] = []
        self.bytes_in = 0
        self.last_id = 0
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._shaken = False
        self._want = 0
        self._waiter: asyncio.Future[None] | None = None

    @classmethod
    async def connect(cls, port: int, user: str, token: str, device: str = "d1") -> Wire:
        """A connection that has said hello."""
        loop = asyncio.get_running_loop()
        _, wire = await loop.create_connection(lambda: cls(user), "127.0.0.1", port)
        wire.transport.write(
            b"GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol:"
            b" chatd.v1\r\n\r\n"
        )
        wire.put(wire.frame("hello", v=1, token=token, device=device))
        await wire.until(1)
        assert b'"welcome"' in wire.texts[0], wire.texts
        wire.reset()
        return wire

    @property
    def transport(self) -> asyncio.Transport:
        assert self._transport is not None
        return self._transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._shaken:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            assert self._buffer.startswith(b"HTTP/1.1 101"), bytes(self._buffer)
            del self._buffer[: end + 4]
            self._shaken = True
            data = bytes(self._buffer)
        self.bytes_in += len(data)
        while (frame := self._next()) is not None:
            self.texts.append(frame)
        if self._waiter is not None and len(self.texts) >= self._want:
            self._waiter.set_result(None)
            self._waiter = None

    def _next(self) -> bytes | None:
        b = self._buffer
        if len(b) < 2:
            return None
        start, size = (2, b[1]) if b[1] < 126 else (4, int.from_bytes(b[2:4], "big"))
        if len(b) < start + size:
            return None
        payload = bytes(b[start : start + size])
        del b[: start + size]
        return payload

    async def until(self, frames: int) -> None:
        """Wait for so many frames since `reset`, and see that there are no more."""
        if len(self.texts) < frames:
            self._want, self._waiter = frames, asyncio.get_running_loop().create_future()
            await self._waiter
        assert len(self.texts) == frames, self.texts[frames:]

    def reset(self) -> None:
        self.texts, self.bytes_in = [], 0

    def frame(self, t: str, **keys: Any) -> bytes:
        """A request, ready to be written."""
        self.last_id += 1
        return masked(orjson.dumps({"t": t, "id": self.last_id, **keys}))

    def send(self, to: str, **keys: Any) -> bytes:
        return self.frame("send", **{"to": to, "cid": str(uuid.uuid4()), "body": BODY, **keys})

    def put(self, data: bytes) -> None:
        """In one write, which is a system call here and now: when this returns, it is with the
        kernel.
        """
        self.transport.write(data)


# ---- calls ---------------------------------------------------------------------------------------


class Calls:
    """Counts of this thread while entered.

    `python` of all modules, `c` of what chatd's own code calls: by (module, function).
    """

    def __init__(self) -> None:
        self.python: Counter[tuple[str, str]] = Counter()
        self.c: Counter[tuple[str, str]] = Counter()
        self.c_of_psycopg = 0
        self._modules: dict[str, str] = {}
        self._before: Any = None

    def __enter__(self) -> Self:
        self._before = sys.getprofile()
        sys.setprofile(self._see)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        sys.setprofile(self._before)

    def _module(self, code: CodeType) -> str:
        name = code.co_filename
        module = self._modules.get(name)
        if module is None:
            path = Path(name)
            library = next((part for part in ("asyncio", "psycopg") if part in path.parts), "")
            module = (
                ".".join(("chatd", *path.with_suffix("").parts[len(Path(HOME).parts) :]))
                if name.startswith(HOME)
                else library
            )
            self._modules[name] = module
        return module

    def _see(self, frame: FrameType, event: str, what: Any) -> None:
        if event == "call":
            code = frame.f_code
            module = self._module(code)
            if (
                module == "asyncio"
                and frame.f_back is not None
                and self._module(frame.f_back.f_code).startswith("chatd.")
            ):
                self.python[("asyncio from chatd", code.co_name)] += 1
            self.python[(module, code.co_name)] += 1
        elif event == "c_call":
            module = self._module(frame.f_code)
            if module.startswith("chatd."):
                self.c[(module, what.__name__)] += 1
            elif module == "psycopg":
                self.c_of_psycopg += 1

    @property
    def ours(self) -> int:
        """Calls of functions of chatd, and of C functions by them."""
        return self._sum(self.python, "chatd.") + self.c.total()

    def of(self, *modules: str) -> int:
        """The same of some modules."""
        return sum(
            self._sum(counts, f"chatd.{module}", whole=True) for counts in (self.python, self.c) for module in modules
        )

    @property
    def beneath(self) -> int:
        """Calls of functions of psycopg and asyncio, and of C functions by psycopg; the clients
        have some of asyncio's.
        """
        return self._sum(self.python, "psycopg") + self._sum(self.python, "asyncio", whole=True) + self.c_of_psycopg

    def named(self, name: str) -> int:
        """Calls of that C function by chatd."""
        return sum(n for (_, called), n in self.c.items() if called == name)

    @staticmethod
    def _sum(counts: Counter[tuple[str, str]], module: str, *, whole: bool = False) -> int:
        return sum(n for (one, _), n in counts.items() if (one == module if whole else one.startswith(module)))


def lines_run(call: Callable[[], object]) -> int:
    """All lines that it runs, whoever's."""
    lines = 0

    def see(frame: FrameType, event: str, what: Any) -> Any:
        nonlocal lines
        lines += event == "line"
        return see

    before = sys.gettrace()
    sys.settrace(see)
    try:
        call()
    finally:
        sys.settrace(before)
    return lines


# ---- PostgreSQL ----------------------------------------------------------------------------------


class Traffic(NamedTuple):
    """What went over the traced connections."""

    trips: int  # times that a connection waited for an answer
    parsed: int  # statements that PostgreSQL had to parse
    executed: int
    bytes_out: int
    bytes_in: int


class Trips:
    """Traces every connection that a store holds now: lanes that are connected, and those of the
    pool.
    """

    def __init__(self, store: Store) -> None:
        self._traced: list[tuple[psycopg.AsyncConnection[Any], int]] = []
        self._read: dict[int, int] = {}  # by file: up to where
        for conn in connections(store):
            with tempfile.TemporaryFile(prefix="chatd-trace-", buffering=0) as file:
                trace = os.dup(file.fileno())
            conn.pgconn.trace(trace)  # from now on it is libpq's, for as long as the process lives
            conn.pgconn.set_trace_flags(pq.Trace.SUPPRESS_TIMESTAMPS)
            self._traced.append((conn, trace))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for conn, _ in self._traced:
            conn.pgconn.untrace()

    def take(self) -> Traffic:
        """What went since the last call."""
        ctypes.CDLL(None).fflush(None)  # libpq writes through C's buffers
        trips = parsed = executed = bytes_out = bytes_in = 0
        for _, trace in self._traced:
            at = self._read.get(trace, 0)
            text = os.pread(trace, TRACE_BYTES_MAX, at)
            assert len(text) < TRACE_BYTES_MAX
            self._read[trace] = at + len(text)
            for way, size, kind in TRACED.findall(text):
                if way == b"F":
                    bytes_out += int(size) + 1  # the length does not count the byte before it
                    trips += kind in (b"Sync", b"Query")
                    parsed += kind in (b"Parse", b"Query")
                    executed += kind in (b"Execute", b"Query")
                else:
                    bytes_in += int(size) + 1
        return Traffic(trips, parsed, executed, bytes_out, bytes_in)


def connections(store: Store) -> list[psycopg.AsyncConnection[Any]]:
    """Those that a store holds now and nobody uses: of its lanes and of its pool."""
    return [*(lane._conn for lane in store.lanes.all if lane._conn is not None), *store.read_pool._pool._pool]


TOUCHED: Final = """
    SELECT coalesce(sum(t.n_tup_ins) FILTER (WHERE t.relname LIKE 'entries%'), 0)::bigint AS entries_inserted,
        coalesce(sum(t.n_tup_ins), 0)::bigint AS inserted,
        coalesce(sum(t.n_tup_upd), 0)::bigint AS updated,
        coalesce(sum(t.n_tup_upd - t.n_tup_hot_upd), 0)::bigint AS updated_not_hot,
        coalesce(sum(t.seq_tup_read), 0)::bigint AS rows_scanned,
        coalesce(sum(x.scans), 0)::bigint AS probes,
        coalesce(sum(x.entries), 0)::bigint AS index_entries,
        coalesce(sum(io.heap_blks_hit + io.heap_blks_read + io.idx_blks_hit + io.idx_blks_read), 0)::bigint AS buffers
    FROM pg_stat_user_tables t JOIN pg_statio_user_tables io USING (relid)
    LEFT JOIN (
        SELECT relid, sum(idx_scan) AS scans, sum(idx_tup_read) AS entries FROM pg_stat_user_indexes GROUP BY relid
    ) x USING (relid)
"""


class Tables:
    """PostgreSQL's own counts of a database, as differences.

    Backends tell theirs at most once a second: they are asked to first.
    """

    def __init__(self, conninfo: str, store: Store) -> None:
        self._store = store
        self._db = psycopg.connect(conninfo, autocommit=True)
        self._last: dict[str, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._db.close()

    async def take(self) -> dict[str, int]:
        """The differences since the last call. Only while nothing runs in the store's connections."""
        for conn in connections(self._store):
            await conn.execute("SELECT pg_stat_force_next_flush()")
        cur = self._db.execute(TOUCHED)
        assert cur.description is not None
        row = cur.fetchone()
        assert row is not None
        now = dict(zip([column.name for column in cur.description], row, strict=True))
        now["wal_bytes"] = self._db.execute("SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint").fetchall()[0][0]
        last, self._last = self._last, now
        return {name: value - last.get(name, 0) for name, value in now.items()}


# ---- the kernel ----------------------------------------------------------------------------------


def syscalls(pid: int) -> tuple[int, int]:
    """(reads, writes) of a process so far. libuv uses read and write for sockets, which count;
    libpq's recv and send do not.
    """
    lines = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    return int(lines["syscr"]), int(lines["syscw"])
