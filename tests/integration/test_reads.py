"""What reads cost, by whom: pages end with their bytes, a read is under way until its answer is
taken, users take turns, a resync waits for room.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, NamedTuple, TypeAlias

import psycopg
import pytest
import pytest_asyncio

from bench.slow_line import SlowLine
from chatd import store
from chatd.chat import history, resync, welcome
from chatd.chat.reads import READS_MAX, USER_READS_MAX
from chatd.core import hello_rates
from chatd.core.session import Session
from chatd.ids import ConvId, UserId
from chatd.metrics import Metrics
from chatd.net.connection import ClientConnection
from chatd.postgres.fair_queue import Turns
from tests.faults.raw import Raw
from tests.fix_gate import Gate
from tests.fix_server import MakeServer, Server
from tests.integration.logs import Change, Message, append, connect, conversation, partitions
from tests.rfc6455 import PING, TEXT
from tests.until import until

BODY: Final = "x" * 2_000


class Place(NamedTuple):
    """A server, and its database for what others have written."""

    server: Server
    db: psycopg.Connection[Any]


MakePlace: TypeAlias = Callable[..., Awaitable[Place]]


@pytest_asyncio.fixture
async def make_place(make_server: MakeServer, make_db: Callable[[], str]) -> AsyncIterator[MakePlace]:
    """`before` fills the database before the server starts."""
    conns: list[psycopg.Connection[Any]] = []

    async def make(before: Callable[[psycopg.Connection[Any]], None] = lambda _: None, **settings: Any) -> Place:
        url = make_db()
        conns.append(connect(url))
        partitions(conns[-1])
        before(conns[-1])
        return Place(await make_server(database_url=url, **settings), conns[-1])

    yield make
    for conn in conns:
        conn.close()
    Raw.close_all()


def narrow(server: Server) -> None:
    """The kernel holds little of what goes to the clients that are here now."""
    for connection in server.node.listener.connections:
        assert connection._transport is not None
        with socket.socket(fileno=os.dup(connection._transport.get_extra_info("socket").fileno())) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)


def session_of(server: Server, name: str) -> Session:
    (session,) = server.node.registry.users[UserId(name)].sessions.values()
    return session


# ---- pages ---------------------------------------------------------------------------------------


def edited_often(db: psycopg.Connection[Any]) -> None:
    conv = conversation(db)
    append(db, [Message(conv, BODY)])
    append(db, [], [Change(conv, 1, body=f"{n:03} {BODY}") for n in range(499)])


@pytest.mark.parametrize("forwards", [True, False])
async def test_a_message_edited_500_times_is_told_once_a_page_and_pages_are_bounded(
    make_place: MakePlace, forwards: bool
) -> None:
    place = await make_place(edited_often)
    alice = await place.server.connect("alice")
    c = alice.welcome["conversations"][0]["c"]
    got: list[Any] = []
    at = {"after": 0} if forwards else {}
    while True:
        await alice.ws.send(json.dumps({"t": "history", "id": (id := alice.last_id + 1), "c": c, "limit": 100, **at}))
        alice.last_id = id
        raw = await alice.ws.recv()
        page = json.loads(raw)
        assert len(raw) <= 100_000, "two texts of 2 KB and 400 entries without; it was 800 KB"
        got = [*got, *page["entries"]] if forwards else [*page["entries"], *got]
        if not page["more"]:
            break
        at = {"after": got[-1]["seq"]} if forwards else {"before": got[0]["seq"]}
    assert [e["seq"] for e in got] == list(range(1, 501))
    texts = [e["body"] for e in got if e["body"] is not None]
    assert len(texts) <= 2
    assert set(texts) == {f"498 {BODY}"}


async def test_a_page_of_long_messages_ends_with_its_bytes(
    make_place: MakePlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "PAGE_BYTES_MAX", 20_000)

    def fill(db: psycopg.Connection[Any]) -> None:
        conv = conversation(db)
        append(db, [Message(conv, BODY) for _ in range(30)])

    place = await make_place(fill)
    alice = await place.server.connect("alice")
    first = await alice.request("history", c="1", limit=100)
    assert (len(first["entries"]), first["more"]) == (9, True)
    got = list(first["entries"])
    while first["more"]:
        first = await alice.request("history", c="1", limit=100, before=got[0]["seq"])
        got = [*first["entries"], *got]
    assert [e["seq"] for e in got] == list(range(1, 31))


# ---- under way until it is taken -----------------------------------------------------------------


def hundred(db: psycopg.Connection[Any]) -> None:
    conv = conversation(db)
    append(db, [Message(conv, BODY) for _ in range(100)])


async def test_a_read_is_under_way_until_its_answer_is_taken(make_place: MakePlace) -> None:
    place = await make_place(hundred)
    raw = await Raw.open(place.server.port, receive_bytes=4_096)
    await raw.hello(place.server.token("alice"), "d")
    narrow(place.server)
    session = session_of(place.server, "alice")
    await raw.say("history", 2, c="1", limit=100)
    await until(lambda: session.sink.is_paused)
    assert (session.reads, session.user.reads if session.user else None) == (1, 1)
    answer = await raw.frame()
    assert answer is not None
    assert len(json.loads(answer[1])["entries"]) == 100
    await until(lambda: session.reads == 0)
    assert not session.sink.is_paused


async def say_at_once(raw: Raw, requests: int) -> None:
    """All in one write: once its answers are not taken, nothing more of a client is read."""
    sent = bytearray()

    async def keep(data: bytes) -> None:
        sent.extend(data)

    write, raw.write = raw.write, keep  # type: ignore[method-assign]
    for id in range(2, 2 + requests):
        await raw.say("history", id, c="1", limit=100)
    await write(bytes(sent))


async def test_the_kernel_holds_little_for_a_client_that_does_not_read(make_place: MakePlace) -> None:
    """A ping must not stand behind megabytes, or a client on a slow line is lost while it reads."""
    place = await make_place(hundred)
    raw = await Raw.open(place.server.port, receive_bytes=4_096)
    await raw.hello(place.server.token("alice"), "d")
    session = session_of(place.server, "alice")
    for id in range(2, 6):
        await raw.say("history", id, c="1", limit=100)
    await until(lambda: session.sink.is_paused)
    for _ in range(4):
        assert await raw.frame() is not None
    await until(lambda: session.reads == 0)


async def test_answers_that_are_not_taken_are_under_way_for_all_devices_of_their_user(make_place: MakePlace) -> None:
    """So one account has so many answers in memory, however many devices it has, and other users
    feel nothing of it.
    """

    place = await make_place(hundred)
    server = place.server
    deaf = [await Raw.open(server.port, receive_bytes=4_096) for _ in range(3)]
    for n, raw in enumerate(deaf):
        await raw.hello(server.token("alice"), f"deaf{n}")
    alice, metrics = server.node.registry.users[UserId("alice")], server.node.metrics
    sessions = list(alice.sessions.values())
    for raw in deaf:
        await say_at_once(raw, READS_MAX + 2)
    most = 0

    def paused() -> bool:
        nonlocal most
        most = max(most, alice.reads)
        assert all(session.reads <= READS_MAX for session in sessions)
        return sum(session.sink.is_paused for session in sessions) >= 2

    await until(paused)
    assert most == USER_READS_MAX
    assert metrics.reads_refused >= len(deaf) * (READS_MAX + 2) - USER_READS_MAX - READS_MAX
    assert alice.reads >= READS_MAX, "what is not taken"
    waiting = sum(session.sink._transport.get_write_buffer_size() + session.sink._out_bytes for session in sessions)  # type: ignore[attr-defined]
    assert waiting <= len(deaf) * (history.PAGE_BYTES_MAX + 2 * 65_536)
    bob = await server.connect("bob")
    assert len((await bob.request("history", c="1", limit=100))["entries"]) == 100
    for raw in deaf:
        raw.close()
    await until(lambda: alice.reads == 0)


# ---- turns ---------------------------------------------------------------------------------------


async def test_a_user_who_asks_for_much_keeps_neither_hellos_nor_others_reads(
    make_place: MakePlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(db: psycopg.Connection[Any]) -> None:
        append(db, [Message(conversation(db)), Message(conversation(db, "carol", "dave"))])

    place = await make_place(fill, pool_max=2)
    greedy = [await place.server.connect("alice", f"d{n}") for n in range(2)]
    carol = await place.server.connect("carol")
    served: list[ConvId] = []
    real, gate = place.server.node.store.entries_before, asyncio.Event()

    async def entries_before(conv: ConvId, *args: Any) -> Any:
        served.append(conv)
        await gate.wait()
        return await real(conv, *args)

    monkeypatch.setattr(place.server.node.store, "entries_before", entries_before)
    asked = [(peer, await peer.post("history", c="1")) for peer in greedy for _ in range(8)]
    await until(lambda: place.server.node.store.read_turns.waiting == 15)
    mine = await carol.post("history", c="2")
    await until(lambda: place.server.node.store.read_turns.waiting == 16)
    await place.server.connect("erin")  # hellos have their own
    gate.set()
    assert (await carol.reply(mine))["entries"]
    assert served.index(ConvId(2)) <= 2, "behind the one that was served, and one more"
    for peer, id in asked:
        assert (await peer.reply(id))["t"] == "ok"


async def test_pages_that_are_begun_are_as_many_as_are_read(
    make_place: MakePlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page of a message's many edits takes several reads.

    One that waits for its turn holds nothing in memory: all 16 held rows, of every user.
    """
    place = await make_place(edited_often, pool_max=2)
    devices = [await place.server.connect("alice", f"d{n}") for n in range(2)]
    begun: list[weakref.ref[history.HistoryPage]] = []
    most, real, store = 0, history.HistoryPage.__init__, place.server.node.store
    reading = store.entries_before

    def init(self: history.HistoryPage, *args: Any) -> None:
        real(self, *args)
        begun.append(weakref.ref(self))

    async def entries_before(*args: Any) -> Any:
        nonlocal most
        most = max(most, sum(1 for page in (ref() for ref in begun) if page is not None and page.items))
        return await reading(*args)

    monkeypatch.setattr(history.HistoryPage, "__init__", init)
    monkeypatch.setattr(store, "entries_before", entries_before)
    asked = [(peer, await peer.post("history", c="1", limit=100)) for peer in devices for _ in range(READS_MAX)]
    for peer, id in asked:
        assert len((await peer.reply(id))["entries"]) > 200, "more than one read of the log"
    assert most == 1, "half of pool_max"


async def test_a_page_is_not_read_for_one_who_has_left(make_place: MakePlace, monkeypatch: pytest.MonkeyPatch) -> None:
    place = await make_place(edited_often, pool_max=2)
    alice = await place.server.connect("alice")
    session = session_of(place.server, "alice")
    store = place.server.node.store
    gate = Gate(monkeypatch, store, "entries_before")
    read = 0
    held = store.entries_before

    async def entries_before(*args: Any) -> Any:
        nonlocal read
        read += 1
        return await held(*args)

    monkeypatch.setattr(store, "entries_before", entries_before)
    for _ in range(READS_MAX):
        await alice.post("history", c="1", limit=100)
    await until(lambda: store.read_turns.waiting == READS_MAX - 1)
    await alice.ws.close()
    await until(lambda: session.gone)
    gate.open()
    await until(lambda: session.reads == 0)
    assert read <= history.SCAN_FACTOR, "the one that was under way"


# ---- hellos --------------------------------------------------------------------------------------


def many(db: psycopg.Connection[Any]) -> None:
    append(db, [Message(conversation(db, "alice", f"p{n:02}")) for n in range(20)])


async def test_a_listing_ends_with_its_session(make_place: MakePlace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "LIST_ROWS_MAX", 2)
    place = await make_place(many)
    server = place.server
    pages, gate = 0, asyncio.Event()
    real = server.node.store.read_pool.rows

    async def rows(sql: str, *args: Any, **keys: Any) -> Any:
        nonlocal pages
        found = await real(sql, *args, **keys)
        if sql == store.LIST_CHANGED:
            pages += 1
            await gate.wait()
        return found

    monkeypatch.setattr(server.node.store.read_pool, "rows", rows)
    peers = [await server.open() for _ in range(4)]
    for n, peer in enumerate(peers):
        await peer.post("hello", v=1, token=server.token("alice"), device=f"d{n}")
    await until(lambda: pages > 0 and server.node.services.listings.waiting == 2)
    assert (pages, server.node.store.hello_turns.running, server.node.store.hello_turns.waiting) == (1, 1, 1), (
        "one page of a user at a time"
    )
    for peer in peers:
        peer.ws.transport.abort()
    await until(lambda: not server.node.listener.connections)
    gate.set()
    await server.node.chat.life.hellos_done()
    assert pages <= 2, "that of the second one had been asked for"
    assert server.node.services.listings.running == server.node.store.hello_turns.running == 0
    assert len((await server.connect("alice")).welcome["conversations"]) == 20


@pytest.mark.parametrize("whose", ["user", "address"])
async def test_too_many_hellos_are_refused_with_the_time_to_wait(
    make_place: MakePlace, monkeypatch: pytest.MonkeyPatch, whose: str
) -> None:
    monkeypatch.setattr(hello_rates, "USER_HELLOS_BURST", 2 if whose == "user" else 100)
    monkeypatch.setattr(hello_rates, "ADDRESS_HELLOS_PER_S", 0.01)
    place = await make_place(connections_per_address_max=2 if whose == "address" else 100)
    names = ["alice", "alice", "alice"] if whose == "user" else ["alice", "bob", "carol"]
    for name in names[:2]:
        await (await place.server.connect(name)).close()
    await until(lambda: not place.server.node.listener.connections)
    peer = await place.server.open()
    answer = await peer.reply(await peer.post("hello", v=1, token=place.server.token(names[2]), device="d"))
    assert (answer["code"], answer["retry_ms"] > 0) == ("overloaded", True)
    assert await peer.closed() == 4009
    metrics: Metrics = place.server.node.metrics
    assert (metrics.hellos_limited, metrics.hellos_refused, metrics.hellos) == (1, {("overloaded",): 1}, 2)
    if whose == "user":
        await place.server.connect("bob")


async def test_a_new_token_counts_as_a_hello_of_its_user_and_closes_nothing(
    make_place: MakePlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hello_rates, "USER_HELLOS_BURST", 3)
    monkeypatch.setattr(hello_rates, "USER_HELLOS_PER_S", 0.01)
    place = await make_place()
    alice, bob = await place.server.connect("alice"), await place.server.connect("bob")
    token = place.server.token("alice")
    assert [(await alice.request("refresh", token=token))["t"] for _ in range(2)] == ["ok", "ok"]
    refused = await alice.request("refresh", token=token)
    assert (refused["code"], refused["retry_ms"] > 0) == ("overloaded", True)
    assert place.server.node.metrics.hellos_limited == 1
    assert (await alice.request("ping"))["t"] == "pong"
    assert (await bob.request("refresh", token=place.server.token("bob")))["t"] == "ok"


def answered(db: psycopg.Connection[Any]) -> None:
    many(db)
    append(db, [Message(id, side=1) for (id,) in db.execute("SELECT id FROM conversations").fetchall()])


async def test_receipts_that_waited_for_a_welcome_leave_room_between_them(
    make_place: MakePlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(welcome, "RECEIPTS_A_TURN", 5)
    place = await make_place(answered)
    services = place.server.node.services
    desk = await place.server.connect("alice", "desk")
    for n in range(1, 21):
        await desk.request("history", c=str(n), limit=1)  # it is in memory then
    asked, real = 0, ClientConnection.drained

    async def drained(connection: ClientConnection) -> None:
        nonlocal asked
        asked += connection.session is not None and connection.session.live
        await real(connection)

    monkeypatch.setattr(ClientConnection, "drained", drained)
    gate = Gate(monkeypatch, services.presence_push, "seen_since")
    opened = asyncio.create_task(place.server.connect("alice"))
    await gate.reached.wait()
    for conv in place.server.node.registry.users[UserId("alice")].peers.values():
        place.server.node.delivery.receipts.moved(conv, 1, 1, 1)
    gate.open()
    alice = await opened
    assert len({(await alice.push("receipt"))["c"] for _ in range(20)}) == 20
    assert asked == 4


# ---- the list ------------------------------------------------------------------------------------


async def test_a_page_of_the_list_reads_its_conversations_and_no_others(make_place: MakePlace) -> None:
    place = await make_place(many, rate_messages=1_000)
    alice, p03 = await place.server.connect("alice"), await place.server.connect("p03")
    asked: list[list[ConvId]] = []
    real = place.server.node.store.list_conversations

    async def list_conversations(user: UserId, convs: list[ConvId]) -> Any:
        asked.append(convs)
        return await real(user, convs)

    place.server.node.store.list_conversations = list_conversations  # type: ignore[method-assign, assignment]
    first = await alice.request("conversations", limit=1)
    await p03.say("alice")
    await alice.say("new")
    await alice.push("entry")
    page = await alice.request("conversations", limit=2)
    assert [item["peer"] for item in page["conversations"]] == ["new", "p03"]
    assert [item["unread"] for item in page["conversations"]] == [0, 1]
    rest = await alice.request("conversations", limit=100, cursor=page["cursor"])
    assert {item["peer"] for item in rest["conversations"]} == {f"p{n:02}" for n in range(20) if n != 3}
    assert [len(convs) for convs in asked] == [1, 2, 19]
    assert len(first["conversations"]) == 1


async def test_a_cursor_of_the_release_before_goes_on_where_it_was(make_place: MakePlace) -> None:
    """In us; several have their last entry in one ms. Better one twice than one never."""
    place = await make_place(many)
    alice = await place.server.connect("alice")
    whole = (await alice.request("conversations", limit=100))["conversations"]
    rows = place.db.execute(
        "SELECT (extract(epoch FROM last_ts) * 1000000)::bigint, id FROM conversations ORDER BY last_ts, id"
    ).fetchall()
    us, id = rows[10]
    page = (await alice.request("conversations", limit=100, cursor=f"{us}.{id}"))["conversations"]
    assert {str(id) for _, id in rows[:10]} <= {item["c"] for item in page} <= {item["c"] for item in whole}
    for wrong in ("x", "1", "1.x", "-1.2", "1.2.3", "1_0.1", "\u0661.1", "1.1\n", f"{2**62}.1", f"1.{2**62}"):
        assert (await alice.request("conversations", cursor=wrong))["code"] == "bad_field"


# ---- what was missed -----------------------------------------------------------------------------


async def test_a_client_that_reads_gets_all_that_it_missed_whatever_its_size(
    make_place: MakePlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten times what may wait for it, in few long conversations and in many short ones.

    It was closed with 4006, again and again.
    """
    sizes = [250] * 5 + [25] * 50

    def fill(db: psycopg.Connection[Any]) -> None:
        for n, size in enumerate(sizes):
            conv = conversation(db, "alice", f"p{n}")
            append(db, [Message(conv, BODY, side=1) for _ in range(size)])

    place = await make_place(fill, out_queue_bytes_max=512_000)
    most, real = 0, ClientConnection._send_much

    def send_much(self: ClientConnection) -> None:
        nonlocal most
        most = max(most, self._out_bytes)
        real(self)

    monkeypatch.setattr(ClientConnection, "_send_much", send_much)
    raw = await Raw.open(place.server.port, receive_bytes=65_536)
    narrow(place.server)
    epoch = place.server.node.store.epoch
    cursors = {str(n): 0 for n in range(1, len(sizes) + 1)}
    await raw.say("hello", 1, v=1, token=place.server.token("alice"), device="d", epoch=epoch, cursors=cursors)
    got: dict[str, list[int]] = {}
    count = 0
    while count < 2_500:
        frame = await raw.frame()
        assert frame is not None
        assert frame[0] == 1, "closed"
        entry = json.loads(frame[1])
        if entry["t"] == "entry":
            count += 1
            got.setdefault(entry["c"], []).append(entry["seq"])
    assert got == {str(n): list(range(1, size + 1)) for n, size in enumerate(sizes, 1)}
    assert most <= resync.CHUNK_BYTES + 2 * len(BODY)
    assert place.server.node.metrics.slow_consumers == 0


async def test_a_reconnect_storm_does_not_fill_the_queue_of_reads_with_its_resyncs(
    make_place: MakePlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were refused, asked again after a pause, and kept others out."""
    users = [f"p{n}" for n in range(8)]
    refused: list[UserId] = []
    make_room = Turns._make_room

    def recorded(turns: Turns, user: UserId) -> None:
        refused.append(user)
        make_room(turns, user)

    def fill(db: psycopg.Connection[Any]) -> None:
        for user in users:
            append(db, [Message(conversation(db, "alice", user))])

    monkeypatch.setattr(Turns, "_make_room", recorded)
    monkeypatch.setattr(resync, "QUEUED_MAX", 3)
    server, db = await make_place(fill, pool_max=2, reads_queue_max=3)
    database, metrics = server.node.store, server.node.metrics
    convs = dict(db.execute("SELECT b, id FROM conversations").fetchall())
    gate = Gate(monkeypatch, database, "entries_many")
    peers = [await server.connect(user, epoch=database.epoch, cursors={str(convs[user]): 0}) for user in users]
    await until(lambda: metrics.resyncs == len(users))
    await until(lambda: database.read_turns.waiting == 2)  # one is read, and the others wait elsewhere
    gate.open()
    for peer in peers:
        assert (await peer.push("entry"))["seq"] == 1
    assert refused == []


async def test_a_client_on_a_slow_line_reads_for_many_heartbeats(make_place: MakePlace) -> None:
    """It answers a ping when it has read it, behind what is on the line already.

    It was lost (4007): a ping stood behind megabytes in the kernel.

    2 Mbit/s, 21 MB and 20 s for a heartbeat, all in a twentieth of the time, and shorter (`python
    -m bench slowline` has the whole).
    """
    entries, convs = 250, 8

    def fill(db: psycopg.Connection[Any]) -> None:
        for n in range(convs):
            conv = conversation(db, "alice", f"p{n}")
            append(db, [Message(conv, BODY, side=1) for _ in range(entries)])

    place = await make_place(fill, heartbeat_ms=1_000)
    line = SlowLine(place.server.port, 1_000_000)
    await line.start()
    raw = await Raw.open(line.port)
    cursors = {str(n): 0 for n in range(1, convs + 1)}
    await raw.say(
        "hello",
        1,
        v=1,
        token=place.server.token("alice"),
        device="d",
        epoch=place.server.node.store.epoch,
        cursors=cursors,
    )
    got: dict[str, list[int]] = {}
    count = 0
    while count < entries * convs:
        frame = await raw.frame()
        assert frame is not None, "cut"
        assert frame[0] in (TEXT, PING), f"closed with {int.from_bytes(frame[1][:2])}"
        if frame[0] == PING:
            await raw.write(bytes((0x8A, 0x80, 0, 0, 0, 0)))
        elif (entry := json.loads(frame[1]))["t"] == "entry":
            count += 1
            got.setdefault(entry["c"], []).append(entry["seq"])
    await line.stop()
    assert got == {str(n): list(range(1, entries + 1)) for n in range(1, convs + 1)}
    assert (line.connections, place.server.node.metrics.heartbeats_lost, place.server.node.metrics.slow_consumers) == (
        1,
        0,
        0,
    )


async def test_a_gap_is_filled_for_a_client_whose_output_is_paused_once_it_takes_more(make_place: MakePlace) -> None:
    place = await make_place(many)
    alice = await place.server.connect("alice")
    node = place.server.node
    await alice.request("history", c="3")  # it is in memory then
    conv = node.registry.convs[ConvId(3)]
    session = session_of(place.server, "alice")
    paused: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    session.sink._room = paused  # type: ignore[attr-defined]
    append(place.db, [Message(conv.id, f"{n}", side=1) for n in range(5)])
    node.delivery.gaps.look_up((conv.id,))
    await until(lambda: conv.head == 6 and conv.gap is None)
    assert session.behind == {conv.id: 1}
    assert session.sink._out_bytes == 0  # type: ignore[attr-defined]
    session.sink._room = None  # type: ignore[attr-defined]
    paused.set_result(None)
    assert [(await alice.push("entry"))["seq"] for _ in range(5)] == [2, 3, 4, 5, 6]
    await until(lambda: session.behind is None)
