"""What a message costs, held to bounds that do not depend on the machine: a longer path fails here
before a bench sees it.

`BOUNDS` has each figure as it was when measured and the most it may be. Counts that are law (one
statement a batch) have no margin; the others have some 5 to 20 %: a function call more for every
message is seen, another patch release of Python or of libpq is not. Who makes the path shorter
takes the bound down with it; who must make it longer takes it up, in the same commit, with the
reason there. `-rP` prints each figure beside its bound.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import tracemalloc
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple, TypeAlias

import pytest
import pytest_asyncio

import chatd.postgres.watch
import chatd.server
from chatd.core.batch import Batch
from chatd.net.connection import ClientConnection
from chatd.postgres.append_answer import Answer
from chatd.store import Store
from tests.fix_costs import BODY, HOME, WAIT_S, Calls, Figures, Tables, Traffic, Trips, Wire, least, syscalls
from tests.fix_process import MakeProcess, Process
from tests.fix_server import MakeServer, Server

PAIRS: Final = 5
EACH: Final = 20  # sends of a user in a burst
N: Final = 2 * PAIRS * EACH
ONES: Final = 20  # sends that go one at a time
IDLE: Final = 200  # sessions; of 50, a map that grew in one round and not in another was 4 % of a conversation
PAGE: Final = 50  # messages of history
# The period is longer than any test: what a window lets go of meanwhile would be counted by the
# clock.
FREE: Final = {
    "rate_messages": 10_000,
    "rate_per_ms": 3_600_000,
    "frames_per_s": 1_000_000,
    "frames_burst": 1_000_000,
    "cursor_flush_ms": 1000,
}


class Bound(NamedTuple):
    """`measured` with Python 3.11, PostgreSQL 18 and psycopg 3.3."""

    measured: float
    most: float
    why: str


# burst: 10 users in 5 conversations send 20 messages each, all read in one turn of the loop.
# Figures are for a message unless they say otherwise. alone: one at a time, each acked and
# delivered before the next.
BOUNDS: Final[dict[str, Bound]] = {
    "burst: calls": Bound(80.26, 82.5, "functions of chatd, and C functions that they call"),
    "burst: calls, frame to lane": Bound(
        47.17, 47.5, "framing, protocol, session, limits, handlers, send; the way out in these is some 8 of them"
    ),
    "burst: calls, lane": Bound(15.41, 16.9, "store, batch, lanes, append_answer, arrays"),
    "burst: calls, delivery": Bound(
        17.55, 19, "delivery, connection, conversations (where it is found on the way in, too), metrics"
    ),
    "burst: JSON read": Bound(1, 1, "the frame"),
    "burst: JSON made": Bound(1, 1, "the body: ok and entry are formatted around it"),
    "burst: frames made": Bound(2, 2, "ok, entry"),
    "burst: calls beneath, of a batch": Bound(519, 600, "psycopg and asyncio, of the clients too: for 200 messages"),
    "burst: reads of a connection": Bound(1, 1, "20 frames each"),
    "burst: writes of a connection": Bound(1, 1, "20 acks and 20 entries each, gathered over the turn"),
    "burst: flushes": Bound(1, 1, "one for all connections"),
    "burst: tasks": Bound(0, 0, "a message is no task"),
    "burst: timers": Bound(2, 2, "the lane's deadline and psycopg's wait, of a batch"),
    "burst: round trips of a batch": Bound(1, 1, "200 messages, one transaction"),
    "burst: statements of a batch": Bound(1, 1, "append"),
    "burst: statements parsed": Bound(0, 0, "prepared once a connection"),
    "burst: bytes to PostgreSQL": Bound(
        145.74, 149, "body 100 + 4, cid 16 + 4, conversation 12, flags with side and pair 8"
    ),
    "burst: bytes from PostgreSQL": Bound(1.99, 2.1, "a row a conversation, not a message"),
    "burst: rows inserted": Bound(1, 1, "the entry; no row for the feed on a single node"),
    "burst: rows updated": Bound(0.025, 0.025, "a counter a conversation, not a message"),
    "burst: rows updated, not HOT": Bound(0, 0, "nothing that a send changes is indexed"),
    "burst: rows scanned": Bound(0, 0, "no plan with a sequential scan"),
    "burst: index probes": Bound(1.03, 1.05, "the duplicate check; tomorrow's partitions are pruned"),
    "burst: index entries": Bound(0.06, 0.06, "two a conversation, one a batch for the fence"),
    "burst: buffers": Bound(6.05, 6.7, "table and index pages, small tables"),
    "burst: WAL bytes": Bound(400.2, 425, "row 170, its entries in two indexes, the commit's part; no full pages"),
    "alone: calls": Bound(
        181,
        183,
        "as above, with all of a batch on one message, the clock read twice a turn, and what a read costs of its turn",
    ),
    "alone: calls beneath": Bound(222.05, 245, "as above"),
    "alone: reads": Bound(1, 1, "of a connection"),
    "alone: writes": Bound(2, 2, "ok, entry"),
    "alone: flushes": Bound(1, 1, "for both"),
    "alone: tasks": Bound(0, 0, "as above"),
    "alone: timers": Bound(2, 2, "as above"),
    "alone: round trips": Bound(1, 1, "send to ack"),
    "alone: statements": Bound(1, 1, "append"),
    "alone: statements parsed": Bound(0, 0, "as above"),
    "alone: bytes to PostgreSQL": Bound(511, 520, "fifteen parameters around one message, the fence 50 of it"),
    "alone: bytes from PostgreSQL": Bound(194, 200, "117 of them describe the columns"),
    "alone: rows inserted": Bound(1, 1, "as above"),
    "alone: rows updated": Bound(1, 1, "the counter"),
    "alone: rows updated, not HOT": Bound(0, 0, "as above"),
    "alone: rows scanned": Bound(0, 0, "as above"),
    "alone: index probes": Bound(4, 4, "fence, lock, duplicate check, counter"),
    "alone: index entries": Bound(3, 3, "fence, lock, counter"),
    "alone: buffers": Bound(13, 14, "as above, two of them for the fence"),
    "alone: WAL bytes": Bound(577.2, 620, "with lock, counter and commit of its own"),
    "8 devices: calls": Bound(117.95, 120.5, "three of the sender, five of the receiver: some 5 a further device"),
    "8 devices: JSON made": Bound(2, 2, "body for all of the receiver's, body for the sender's others"),
    "8 devices: frames made": Bound(3, 3, "ok, entry, the sender's own entry with its cid"),
    "8 devices: writes of a connection": Bound(1, 1, "20 messages in one"),
    "4 lanes: round trips of a burst": Bound(3, 4, "a lane opens when 48 wait in those before it"),
    "resend: round trips of a batch": Bound(1, 1, "append"),
    "resend: rows inserted": Bound(0, 0, "the first result is told"),
    "resend: rows updated": Bound(0, 0, "likewise"),
    "resend: index entries": Bound(1.02, 1.05, "the entry with that cid"),
    "ack: calls": Bound(55.0, 56.75, "to the ok and the receipt for the other side"),
    "ack: frames made": Bound(2, 2, "ok, receipt"),
    "ack: writes of a connection": Bound(1, 1, "20 in one"),
    "ack: tasks": Bound(0, 0, "written behind"),
    "ack: timers": Bound(0, 0, "written behind"),
    "ack, read, typing, presence, ping: round trips": Bound(0, 0, "nothing of them is durable at once"),
    "flush of cursors: round trips": Bound(1, 1, "for all conversations"),
    "flush of cursors: rows written": Bound(1, 1, "four moves of one conversation"),
    "history: round trips": Bound(1, 1, "a page without edits"),
    "history: index entries of a page of 50": Bound(51, 51, "one more tells whether there is more"),
    "history: rows scanned": Bound(0, 0, "index alone"),
    "history: buffers": Bound(19, 21, "of one partition with entries; sql/queries/entries_before.sql for the others"),
    "conversations: round trips": Bound(1, 1, "one page"),
    "conversations: index entries for one": Bound(1, 1, "of the side the user is on"),
    "hello of a held user: round trips": Bound(1, 1, "what changed since"),
    "bytes of an ok": Bound(54, 54, "id, c, seq, ts"),
    "bytes of an entry, without its body": Bound(104, 104, "names of 5 characters each"),
    "bytes of frames about them": Bound(3, 3, "header: 2, or 4 from 126 bytes on"),
    "kernel, burst: reads of a connection": Bound(1, 1.5, "uvloop's `read`"),
    "kernel, burst: writes of a connection": Bound(1, 1.5, "uvloop's `write`"),
    "kernel, alone: reads": Bound(1, 1.1, "the send"),
    "kernel, alone: writes": Bound(2, 2.1, "ok, entry"),
    "memory: a message that waits": Bound(388.64, 415, "item, body 149, cid 85, time of its slot, place in the queue"),
    "memory: at most while it is read": Bound(863.75, 950, "a read of 20 frames, by message: the payloads, too"),
    "memory: its two frames": Bound(395.48, 410, "ok 56 + 33, entry 208 + 33, places in the queues"),
    "memory: in the last batch of a lane": Bound(
        20.4, 30, "an idle lane keeps nothing of its last batch; with the time of its slot"
    ),
    "memory: for ever": Bound(7.72, 16, "the time in the user's window, 8, bounded by rate_messages"),
    "memory: an idle session": Bound(
        1770, 1830, "connection (address, bytes, log number), reader, session, user with limits, presence, maps"
    ),
    "memory: a conversation": Bound(
        503, 515, "with both users' windows of one send, and of its stay in memory: when it is used, how it came"
    ),
}


def check(figures: Figures) -> None:
    """Every figure is within its bound; all those over it are told at once."""
    over = []
    for name, value in figures.items():
        measured, most, why = BOUNDS[name]
        print(f"{name:<50} {value:>10.2f} {measured:>10.2f} {most:>10.2f}")
        if value > most:
            over.append(f"{name}: {value:.2f}, and {most:g} is the most ({why})")
    assert not over, "the path has become longer:\n" + "\n".join(over)


class Crowd:
    """Users in pairs, each pair with a conversation in which both have sent; on a node with one
    lane, so that a burst is one batch.
    """

    def __init__(self, port: int, token: Callable[[str], str]) -> None:
        self.port, self.token = port, token
        self.wires: list[Wire] = []

    async def fill(self) -> None:
        for n in range(2 * PAIRS):
            self.wires.append(await self.join(f"user{n}"))
        for n, wire in enumerate(self.wires):
            peer = self.wires[n ^ 1]
            wire.put(wire.send(peer.user))
            await wire.until(1)
            await peer.until(1)
            self.reset()

    async def join(self, user: str, device: str = "d1") -> Wire:
        return await Wire.connect(self.port, user, self.token(user), device)

    def reset(self) -> None:
        for wire in self.wires:
            wire.reset()

    def bursts(self) -> list[tuple[Wire, bytes]]:
        return [
            (wire, b"".join(wire.send(self.wires[n ^ 1].user) for _ in range(EACH)))
            for n, wire in enumerate(self.wires)
        ]

    async def arrived(self) -> None:
        """Every ok and every entry of a burst."""
        for wire in self.wires:
            await wire.until(2 * EACH)

    async def burst(self) -> None:
        for wire, data in self.bursts():
            wire.put(data)
        await self.arrived()

    async def alone(self) -> None:
        sender, peer = self.wires[:2]
        for n in range(1, ONES + 1):
            sender.put(sender.send(peer.user))
            await sender.until(n)
            await peer.until(n)

    async def asked(self, wire: Wire, t: str, **keys: Any) -> bytes:
        """One request and its one answer."""
        wire.reset()
        wire.put(wire.frame(t, **keys))
        await wire.until(1)
        return wire.texts[0]


class Home(Crowd):
    """A crowd whose node runs in this loop."""

    def __init__(self, server: Server, conninfo: str) -> None:
        super().__init__(server.port, server.token)
        self.conninfo, self.node = conninfo, server.node

    @property
    def store(self) -> Store:
        return self.node.store

    def connection(self, user: str) -> ClientConnection:
        """The node's end of a user's only connection."""
        (found,) = [
            c
            for c in self.node.listener.connections
            if c.session is not None and c.session.user is not None and c.session.user.id == user
        ]
        return found


MakeHome: TypeAlias = Callable[..., Awaitable[Home]]


@pytest_asyncio.fixture
async def make_home(
    make_server: MakeServer, make_db: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[MakeHome]:
    # What runs by the clock is not of the path: a slow machine would see more of it.
    monkeypatch.setattr(chatd.server, "TICK_S", 3_600.0)
    monkeypatch.setattr(chatd.postgres.watch, "LOOK_S", 3_600.0)
    monkeypatch.setattr(chatd.server.Node, "_sweep", lambda node: asyncio.Event().wait())

    async def make(**settings: Any) -> Home:
        conninfo = make_db()
        home = Home(await make_server(database_url=conninfo, pool_max=1, **{"lanes": 1, **FREE, **settings}), conninfo)
        await home.fill()
        return home

    async with asyncio.timeout(WAIT_S * 3):
        yield make


@pytest_asyncio.fixture
async def home(make_home: MakeHome) -> Home:
    return await make_home()


# ---- calls ---------------------------------------------------------------------------------------

# Of framing and protocol some are of the way out.
IN: Final = (
    "wire.framing", "wire.frames", "request_decoders", "request_fields", "protocol", "ids", "core.session",
    "core.send_order", "core.rate_limit", "chat.handlers", "chat.send",
)  # fmt: skip
LANE: Final = (
    "core.batch", "postgres.lanes", "postgres.lane", "postgres.lane_connection", "postgres.append_answer",
    "postgres.arrays",
)  # fmt: skip
OUT: Final = (
    "chat.delivery", "chat.entry_payloads", "net.connection", "core.conversation", "core.conversations", "metrics",
)  # fmt: skip


async def test_calls_of_messages_in_a_burst(home: Home) -> None:
    async def measure() -> Figures:
        home.reset()
        with Calls() as calls:
            await home.burst()
        return {
            "burst: calls": calls.ours / N,
            "burst: calls, frame to lane": calls.of(*IN) / N,
            "burst: calls, lane": calls.of(*LANE) / N,
            "burst: calls, delivery": calls.of(*OUT) / N,
            "burst: JSON read": calls.named("loads") / N,
            "burst: JSON made": calls.named("dumps") / N,
            "burst: frames made": calls.python["chatd.wire.frames", "encode_text"] / N,
            "burst: calls beneath, of a batch": calls.beneath,
            "burst: reads of a connection": calls.python["chatd.net.connection", "data_received"] / len(home.wires),
            "burst: writes of a connection": calls.python["asyncio from chatd", "write"] / len(home.wires),
            "burst: flushes": calls.python["asyncio from chatd", "call_soon"],
            "burst: tasks": calls.python["asyncio", "create_task"],
            "burst: timers": calls.python["asyncio", "call_at"],
        }

    check(await least(measure))


async def test_calls_of_a_message_alone(home: Home) -> None:
    async def measure() -> Figures:
        home.reset()
        with Calls() as calls:
            await home.alone()
        return {
            "alone: calls": calls.ours / ONES,
            "alone: calls beneath": calls.beneath / ONES,
            "alone: reads": calls.python["chatd.net.connection", "data_received"] / ONES,
            "alone: writes": calls.python["asyncio from chatd", "write"] / ONES,
            "alone: flushes": calls.python["asyncio from chatd", "call_soon"] / ONES,
            "alone: tasks": calls.python["asyncio", "create_task"] / ONES,
            "alone: timers": calls.python["asyncio", "call_at"] / ONES,
        }

    check(await least(measure))


async def test_an_entry_is_encoded_once_for_all_devices(home: Home) -> None:
    sender, peer = home.wires[:2]
    mine = [sender, await home.join(sender.user, "d2"), await home.join(sender.user, "d3")]
    theirs = [peer, *[await home.join(peer.user, f"d{n}") for n in range(2, 6)]]

    async def measure() -> Figures:
        for wire in (*mine, *theirs):
            wire.reset()
        with Calls() as calls:
            sender.put(b"".join(sender.send(peer.user) for _ in range(EACH)))
            for wire in (*mine, *theirs):
                await wire.until(EACH)
        return {
            "8 devices: calls": calls.ours / EACH,
            "8 devices: JSON made": calls.named("dumps") / EACH,
            "8 devices: frames made": calls.python["chatd.wire.frames", "encode_text"] / EACH,
            "8 devices: writes of a connection": calls.python["asyncio from chatd", "write"]
            / (len(mine) + len(theirs)),
        }

    check(await least(measure))


async def test_calls_of_cursors(home: Home) -> None:
    reader, peer = home.wires[:2]
    seq = 0

    async def measure() -> Figures:
        nonlocal seq
        home.reset()
        peer.put(b"".join(peer.send(reader.user) for _ in range(EACH)))
        await peer.until(EACH)
        await reader.until(EACH)
        home.reset()
        seq += EACH
        acks = b"".join(reader.frame("ack", to=peer.user, seq=seq - EACH + n) for n in range(1, EACH + 1))
        with Calls() as calls:
            reader.put(acks)
            await reader.until(EACH)
            await peer.until(EACH)
        return {
            "ack: calls": calls.ours / EACH,
            "ack: frames made": calls.python["chatd.wire.frames", "encode_text"] / EACH,
            "ack: writes of a connection": calls.python["asyncio from chatd", "write"] / 2,
            "ack: tasks": calls.python["asyncio", "create_task"],
            "ack: timers": calls.python["asyncio", "call_at"],
        }

    check(await least(measure))


# ---- PostgreSQL ----------------------------------------------------------------------------------


def sql(name: str, traffic: Traffic, touched: dict[str, int], n: int) -> Figures:
    """What `n` messages cost PostgreSQL."""
    return {
        f"{name}: statements parsed": traffic.parsed,
        f"{name}: bytes to PostgreSQL": traffic.bytes_out / n,
        f"{name}: bytes from PostgreSQL": traffic.bytes_in / n,
        f"{name}: rows inserted": touched["inserted"] / n,
        f"{name}: rows updated": touched["updated"] / n,
        f"{name}: rows updated, not HOT": touched["updated_not_hot"],
        f"{name}: rows scanned": touched["rows_scanned"],
        f"{name}: index probes": touched["probes"] / n,
        f"{name}: index entries": touched["index_entries"] / n,
        f"{name}: buffers": touched["buffers"] / n,
        f"{name}: WAL bytes": touched["wal_bytes"] / n,
    }


async def test_sql_of_messages_in_a_burst(home: Home) -> None:
    with Trips(home.store) as trips, Tables(home.conninfo, home.store) as tables:

        async def measure() -> Figures:
            home.reset()
            await tables.take()
            trips.take()
            await home.burst()
            traffic = trips.take()
            return {
                "burst: round trips of a batch": traffic.trips,
                "burst: statements of a batch": traffic.executed,
                **sql("burst", traffic, await tables.take(), N),
            }

        check(await least(measure))


async def test_sql_of_a_message_alone(home: Home) -> None:
    with Trips(home.store) as trips, Tables(home.conninfo, home.store) as tables:

        async def measure() -> Figures:
            home.reset()
            await tables.take()
            trips.take()
            await home.alone()
            traffic = trips.take()
            return {
                "alone: round trips": traffic.trips / ONES,
                "alone: statements": traffic.executed / ONES,
                **sql("alone", traffic, await tables.take(), ONES),
            }

        check(await least(measure))


async def test_lanes_open_with_the_load_and_no_further(make_home: MakeHome) -> None:
    home = await make_home(lanes=4)
    await home.burst()  # the lanes connect
    with Trips(home.store) as trips:

        async def measure() -> Figures:
            home.reset()
            trips.take()
            await home.burst()
            return {"4 lanes: round trips of a burst": trips.take().trips}

        check(await least(measure))


async def test_a_resend_writes_nothing(home: Home) -> None:
    again = []
    for n, wire in enumerate(home.wires):
        cids = [str(uuid.uuid4()) for _ in range(EACH)]
        again.append((wire, home.wires[n ^ 1].user, cids))
        wire.reset()

    def put() -> None:
        for wire, to, cids in again:
            wire.put(b"".join(wire.send(to, cid=cid) for cid in cids))

    put()
    await home.arrived()
    with Trips(home.store) as trips, Tables(home.conninfo, home.store) as tables:

        async def measure() -> Figures:
            home.reset()
            await tables.take()
            trips.take()
            put()
            for wire, _, _ in again:
                await wire.until(EACH)
            traffic, touched = trips.take(), await tables.take()
            return {
                "resend: round trips of a batch": traffic.trips,
                "resend: rows inserted": touched["inserted"],
                "resend: rows updated": touched["updated"],
                "resend: index entries": touched["index_entries"] / N,
            }

        check(await least(measure))


async def test_what_is_not_durable_asks_nothing(home: Home) -> None:
    reader, peer = home.wires[:2]
    await home.burst()
    seq = EACH * 2
    with Trips(home.store) as trips, Tables(home.conninfo, home.store) as tables:

        async def measure() -> Figures:
            nonlocal seq
            home.reset()
            await home.burst()
            seq += EACH * 2
            await home.store.flush()
            await tables.take()
            home.reset()
            trips.take()
            for t, keys in (
                ("ack", {"to": peer.user, "seq": seq - 1}),
                ("ack", {"to": peer.user, "seq": seq}),
                ("read", {"to": peer.user, "seq": seq - 1}),
                ("read", {"to": peer.user, "seq": seq}),
                ("typing", {"to": peer.user}),
                ("presence", {"state": "away"}),
                ("presence", {"state": "online"}),
                ("ping", {}),
            ):
                await home.asked(reader, t, **keys)
            asked = trips.take().trips
            await home.store.flush()
            flushed = trips.take().trips
            touched = await tables.take()
            return {
                "ack, read, typing, presence, ping: round trips": asked,
                "flush of cursors: round trips": flushed,
                "flush of cursors: rows written": touched["inserted"] + touched["updated"],
            }

        check(await least(measure))


async def test_reads(home: Home) -> None:
    reader, peer = home.wires[:2]
    for _ in range(3):
        home.reset()
        await home.burst()
    with Trips(home.store) as trips, Tables(home.conninfo, home.store) as tables:

        async def measure() -> Figures:
            await home.store.flush()
            await tables.take()
            trips.take()
            page = await home.asked(reader, "history", to=peer.user, limit=PAGE, before=PAGE + 20)
            assert page.count(b'"seq"') == PAGE
            history, touched = trips.take().trips, await tables.take()
            trips.take()
            await home.asked(reader, "conversations", limit=10)
            listing, listed = trips.take().trips, await tables.take()
            trips.take()
            device = await home.join(reader.user, "d2")
            hello = trips.take().trips
            device.transport.abort()
            return {
                "history: round trips": history,
                "history: index entries of a page of 50": touched["index_entries"],
                "history: rows scanned": touched["rows_scanned"],
                "history: buffers": touched["buffers"],
                "conversations: round trips": listing,
                "conversations: index entries for one": listed["index_entries"],
                "hello of a held user: round trips": hello,
            }

        check(await least(measure))


# ---- bytes and system calls ----------------------------------------------------------------------


async def test_bytes_to_clients(home: Home) -> None:
    async def measure() -> Figures:
        home.reset()
        await home.burst()
        oks = [len(text) for wire in home.wires for text in wire.texts if text.startswith(b'{"t":"ok"')]
        entries = [len(text) for wire in home.wires for text in wire.texts if text.startswith(b'{"t":"entry"')]
        assert len(oks) == len(entries) == N
        payload = sum(oks) + sum(entries)
        return {
            "bytes of an ok": sum(oks) / N,
            "bytes of an entry, without its body": sum(entries) / N - len(BODY),
            "bytes of frames about them": (sum(wire.bytes_in for wire in home.wires) - payload) / (2 * N),
        }

    check(await least(measure, rounds=1))


async def test_system_calls_of_the_process(make_process: MakeProcess, make_db: Callable[[], str]) -> None:
    """With uvloop, as in production.

    It is stopped while clients write, so that all of a burst is there when it looks.
    """
    process = await make_process(database_url=make_db(), lanes=1, log_level="warning", **FREE)
    async with asyncio.timeout(WAIT_S * 3):
        crowd = Crowd(process.port, process.token)
        await crowd.fill()
        check(await least(lambda: _calls_of_kernel(process, crowd)))


async def _calls_of_kernel(process: Process, crowd: Crowd) -> Figures:
    crowd.reset()
    data = crowd.bursts()
    before = syscalls(process.pid)
    process.freeze()
    for wire, burst in data:
        wire.put(burst)
    process.thaw()
    await crowd.arrived()
    middle = syscalls(process.pid)
    crowd.reset()
    await crowd.alone()
    after = syscalls(process.pid)
    return {
        "kernel, burst: reads of a connection": (middle[0] - before[0]) / len(crowd.wires),
        "kernel, burst: writes of a connection": (middle[1] - before[1]) / len(crowd.wires),
        "kernel, alone: reads": (after[0] - middle[0]) / ONES,
        "kernel, alone: writes": (after[1] - middle[1]) / ONES,
    }


# ---- memory --------------------------------------------------------------------------------------


@contextmanager
def traced() -> Iterator[None]:
    gc.collect()
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()


def held() -> int:
    """Bytes that lines of chatd have allocated and that are still there."""
    gc.collect()
    snapshot = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, f"{HOME}*")])
    return sum(trace.size for trace in snapshot.traces)


async def test_memory_of_messages(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    committed = home.node.pipeline.committed
    frames: list[int] = []

    def weigh(batch: Batch, answer: Answer, now: float) -> None:
        before = tracemalloc.get_traced_memory()[0]
        committed(batch, answer, now)
        frames.append(tracemalloc.get_traced_memory()[0] - before)

    monkeypatch.setattr(home.node.pipeline, "committed", weigh)
    ends = {wire: home.connection(wire.user) for wire in home.wires}

    def read(data: list[tuple[Wire, bytes]]) -> tuple[int, float]:
        """All of a burst, with no turn of the loop between: the lane has not begun.

        Gives what they hold, and the most that one read took.
        """
        waiting, most = 0, 0.0
        for wire, burst in data:
            before, _ = tracemalloc.get_traced_memory()
            tracemalloc.reset_peak()
            ends[wire].data_received(burst)
            now, peak = tracemalloc.get_traced_memory()
            waiting, most = waiting + now - before, max(most, (peak - before) / EACH)
        return waiting, most

    async def measure() -> Figures:
        frames.clear()
        for user in home.node.registry.users.values():
            user.window._takes = None  # or the whole of what earlier rounds took would count as new when it grows
        with traced():
            first, left = held(), []
            for _ in range(2):
                home.reset()
                waiting, most = read(home.bursts())
                await home.arrived()
                left.append(held())
        return {
            "memory: a message that waits": waiting / N,
            "memory: at most while it is read": most,
            "memory: its two frames": min(frames) / N,
            "memory: in the last batch of a lane": (left[0] - first) / N,
            "memory: for ever": (left[1] - left[0]) / N,
        }

    check(await least(measure))


async def test_memory_of_idle_sessions(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    # Pytest keeps each line of the log, in memory
    monkeypatch.setattr(home.node.listener.access_log, "opened", lambda *facts: None)
    rounds = itertools.count()

    async def measure() -> Figures:
        name = f"idle{next(rounds)}-"
        await home.store.flush()
        with traced():
            before = held()  # each time with nothing left to be written behind
            wires = [await home.join(f"{name}{n:02}") for n in range(IDLE)]
            await home.store.flush()
            sessions = held()
            for wire, peer in zip(wires[::2], wires[1::2], strict=True):
                wire.put(wire.send(peer.user))
                await wire.until(1)
                await peer.until(1)
            await home.store.flush()
            conversations = held()
        return {
            "memory: an idle session": (sessions - before) / IDLE,
            "memory: a conversation": (conversations - sessions) / (IDLE / 2),
        }

    check(await least(measure, rounds=2))
