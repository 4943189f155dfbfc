"""Conversations that are not in memory: named, they are loaded; their users know as much as before.

`forget` lets go of all of them at once. A node that does so all the time is in test_model.py and in
tests/chaos. Requests that wait meanwhile are in test_waiting_requests.py.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import tracemalloc
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

import chatd
from chatd import errors, store
from chatd.ids import ConvId, UserId
from chatd.postgres.rows import ConvRow
from tests.client import Peer
from tests.fix_costs import Calls
from tests.fix_process import OwnPostgres
from tests.fix_server import MakeServer, Server
from tests.forgetful import forget, let_go
from tests.integration.logs import Message, append, connect, conversation, partitions
from tests.maps import check_maps
from tests.until import until

RESTART = 1012


def many(url: str, n: int) -> str:
    """Alice has written to n others, in the order of their names."""
    with connect(url) as db:
        partitions(db)
        append(db, [Message(conversation(db, "alice", f"p{k:02}")) for k in range(n)])
    return url


async def friends(server: Server) -> tuple[Peer, Peer, str]:
    """Both have sent, one entry each; nothing of it is in memory."""
    alice, bob = await server.connect("alice"), await server.connect("bob")
    c = (await alice.say("bob", "1"))["c"]
    await bob.say("alice", "2")
    await alice.push("entry")
    await bob.push("entry")
    await forget(server.node)
    assert not server.node.registry.convs
    return alice, bob, c


def statements(server: Server, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The loads from now on."""
    asked: list[str] = []
    real = server.node.store.load_conversations

    async def load(convs: Any, pairs: Any) -> Any:
        asked.append(f"{sorted(convs)} {sorted(pairs)}")
        return await real(convs, pairs)

    monkeypatch.setattr(server.node.store, "load_conversations", load)
    return asked


@pytest.mark.parametrize("by", ["c", "to"])
@pytest.mark.parametrize("t", ["send", "edit", "delete", "read", "ack", "history", "typing"])
async def test_a_request_may_name_what_is_not_in_memory(server: Server, by: str, t: str) -> None:
    alice, bob, c = await friends(server)
    keys: dict[str, dict[str, Any]] = {
        "send": {"cid": str(uuid.uuid4()), "body": "3"}, "edit": {"cid": str(uuid.uuid4()), "ref": 1, "body": "3"},
        "delete": {"cid": str(uuid.uuid4()), "ref": 1}, "read": {"seq": 2}, "ack": {"seq": 2},
    }  # fmt: skip
    reply = await alice.request(t, **({"c": c} if by == "c" else {"to": "bob"}), **keys.get(t, {}))
    assert reply["t"] == "ok", reply
    if t in ("send", "edit", "delete"):
        assert reply["seq"] == (await bob.push("entry"))["seq"] == 3
    elif t in ("read", "ack"):
        assert (await bob.push("receipt"))["delivered"] == 2
    elif t == "typing":
        await bob.push("typing")
    else:
        assert [entry["seq"] for entry in reply["entries"]] == [1, 2]
    await check_maps(server.node)


async def test_one_that_is_in_use_costs_no_query_and_one_that_is_not_costs_one(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, bob, c = await friends(server)
    asked = statements(server, monkeypatch)
    for _ in range(3):
        await alice.request("send", c=c, cid=str(uuid.uuid4()), body="x")
        await bob.say("alice")
    assert asked == [f"[{c}] []"]
    assert server.node.metrics.conversations_loaded == 1


async def test_a_stranger_takes_nothing_into_memory(server: Server) -> None:
    _, _, c = await friends(server)
    carol = await server.connect("carol")
    for name in (c, "999"):
        reply = await carol.request("history", c=name)
        assert reply["code"] == "no_conversation", reply
        assert (await carol.request("read", c=name, seq=1))["code"] == "no_conversation"
        send = await carol.request("send", c=name, cid=str(uuid.uuid4()), body="x")
        assert send["code"] == "no_conversation"
    assert not server.node.registry.convs


async def test_names_of_nobody_are_refused_as_before(server: Server) -> None:
    alice, _, _ = await friends(server)
    assert (await alice.request("read", to="zoe", seq=1))["code"] == "no_conversation"
    assert (await alice.request("edit", to="zoe", cid=str(uuid.uuid4()), ref=1, body="x"))["code"] == "no_conversation"
    assert (await alice.request("send", to="\u200b", cid=str(uuid.uuid4()), body="x"))["code"] == "bad_field"
    assert (await alice.request("watch", users=["\u200b"]))["code"] == "bad_field"


# ---- what a session gets -------------------------------------------------------------------------


async def test_a_hello_takes_into_memory_what_it_is_behind_in_and_nothing_else(
    make_server: MakeServer, make_db: Callable[[], str]
) -> None:
    server = await make_server(database_url=many(make_db(), 30))
    alice = await server.connect("alice", cursors={"3": 0, "4": 1, "5": 9})
    assert len(alice.welcome["conversations"]) == 30
    assert [item["c"] for item in alice.welcome["conversations"] if item.get("reset")] == ["5"]
    entry = await alice.push("entry")
    assert (entry["c"], entry["seq"]) == ("3", 1)
    await alice.quiet()
    assert list(server.node.registry.convs) == [3]


async def test_cursors_are_those_of_before(server: Server) -> None:
    """They are written before it is let go."""
    alice, bob, c = await friends(server)
    await alice.request("read", c=c, seq=2)
    await forget(server.node)
    assert (await alice.request("ack", c=c, seq=1))["read"] == 2
    again = await server.connect("bob", "d2")
    assert again.welcome["conversations"][0]["peer_read"] == 2
    assert (await bob.push("receipt"))["read"] == 2


async def test_it_stays_while_its_cursors_are_not_written(server: Server) -> None:
    """Also during the flush: a row that is read before its end would set them back."""
    alice, _, c = await friends(server)
    held_up, go_on = asyncio.Event(), asyncio.Event()
    flush = server.node.store.state_flush
    real = flush.cursors._write

    async def write(convs: Any) -> Any:
        held_up.set()
        await go_on.wait()
        return await real(convs)

    flush.cursors._write = write
    await alice.request("read", c=c, seq=2)
    let_go(server.node)
    assert ConvId(int(c)) in server.node.registry.convs
    flushing = asyncio.create_task(flush.flush())
    await held_up.wait()
    let_go(server.node)
    assert ConvId(int(c)) in server.node.registry.convs
    go_on.set()
    await flushing
    let_go(server.node)
    assert not server.node.registry.convs
    assert (await alice.request("ack", c=c, seq=1))["read"] == 2


async def test_it_stays_while_its_row_is_read(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the peer's name; it is loaded by its id, written to, and let go before that answer is there:
    the older row would come into memory, and the next entry would show a gap that is none.
    """
    alice, bob, c = await friends(server)
    read, go_on = asyncio.Event(), asyncio.Event()
    real = server.node.store.load_conversations

    async def load(convs: Any, pairs: Any) -> Any:
        rows = await real(convs, pairs)
        if pairs:
            read.set()
            await go_on.wait()
        return rows

    monkeypatch.setattr(server.node.store, "load_conversations", load)
    late = await alice.post("read", to="bob", seq=1)
    await read.wait()
    assert (await bob.request("send", c=c, cid=str(uuid.uuid4()), body="3"))["seq"] == 3
    await alice.push("entry")
    await forget(server.node)
    go_on.set()
    assert (await alice.reply(late))["t"] == "ok"
    assert (await bob.request("send", c=c, cid=str(uuid.uuid4()), body="4"))["seq"] == 4
    assert (await alice.push("entry"))["seq"] == 4
    assert server.node.metrics.gap_fills == server.node.metrics.conversations_unproven == 0
    await check_maps(server.node)


async def test_the_list_has_what_is_not_in_memory_in_its_order(
    make_server: MakeServer, make_db: Callable[[], str]
) -> None:
    server = await make_server(database_url=many(make_db(), 9))
    alice, p05 = await server.connect("alice"), await server.connect("p05")

    async def listed() -> list[str]:
        names: list[str] = []
        keys: dict[str, Any] = {}
        while True:
            page = await alice.request("conversations", limit=4, **keys)
            names += [item["peer"] for item in page["conversations"]]
            if "cursor" not in page:
                return names
            keys = {"cursor": page["cursor"]}

    everyone = [f"p{n:02}" for n in range(8, -1, -1)]
    assert await listed() == everyone
    assert not server.node.registry.convs, "a page takes none into memory"
    await p05.say("alice")
    await alice.push("entry")
    await forget(server.node)
    assert await listed() == ["p05", *(name for name in everyone if name != "p05")]


async def test_presence_is_shown_to_who_may_see_it(server: Server) -> None:
    """Also where the conversation by which they may is not in memory."""
    alice, bob, _ = await friends(server)
    zoe = await server.connect("zoe")
    await zoe.say("alice")  # alice has not answered
    await alice.push("entry")
    await forget(server.node)

    def states(shown: Any) -> dict[str, str]:
        return {one["user"]: one["state"] for one in shown}

    expected = {"bob": "online", "zoe": "hidden", "nobody": "hidden", "alice": "online"}
    assert states((await alice.request("watch", users=list(expected)))["presence"]) == expected
    again = await server.connect(
        "alice", "d2", watch=list(expected), since=alice.welcome["since"], epoch=alice.welcome["epoch"]
    )
    assert states(again.welcome["presence"]) == expected
    await bob.request("presence", state="away")
    for peer in (alice, again):
        assert [(p["user"], p["state"]) for p in [await peer.push("presence")]] == [("bob", "away")]
    await forget(server.node)
    await alice.say("zoe")
    for peer in (alice, again):
        push = await peer.push("presence")
        assert (push["user"], push["state"]) == ("zoe", "online")
    await forget(server.node)
    await zoe.request("presence", state="away")
    assert (await alice.push("presence"))["state"] == (await again.push("presence"))["state"] == "away"


# ---- what somebody else has written --------------------------------------------------------------


def elsewhere(url: str, c: str) -> None:
    """A server that this one knows nothing of writes an entry."""
    with connect(url) as db:
        append(db, [Message(int(c), "of nobody here")])


async def test_entries_of_another_server_end_the_sessions_that_were_not_told_of_them(
    make_server: MakeServer, make_db: Callable[[], str]
) -> None:
    """A node of before, whose last batch took longer than the start of this one: a session that is
    told of the next entry alone would have a hole.
    """
    server = await make_server(database_url=(url := make_db()))
    alice, bob, c = await friends(server)
    carol = await server.connect("carol")
    elsewhere(url, c)
    await bob.post("send", c=c, cid=str(uuid.uuid4()), body="4")
    assert await alice.closed() == await bob.closed() == RESTART
    assert [push["seq"] for push in alice.pushes + bob.pushes if push["t"] == "entry"] == []
    await carol.quiet()
    assert server.node.metrics.conversations_unproven == 1
    again = await server.connect("alice", cursors={c: 2})
    assert (await again.push("entry"))["body"] == "of nobody here"
    await again.quiet()


async def test_entries_of_this_server_do_not(server: Server) -> None:
    """Let go and loaded again and again, by sessions that were there before and after."""
    alice, bob, c = await friends(server)
    for n in range(3, 9):
        desk = await server.connect("alice", "desk")
        assert (await bob.say("alice", str(n)))["seq"] == n
        await forget(server.node)
        assert (await alice.push("entry"))["seq"] == (await desk.push("entry"))["seq"] == n
        await alice.request("history", c=c)  # loaded, and let go without an entry
        await forget(server.node)
        await desk.close()
    assert server.node.metrics.conversations_unproven == 0
    await alice.quiet()


async def test_entries_of_another_server_during_a_hello_end_it(
    make_server: MakeServer, make_db: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alice's listing does not have them, and bob's request brings them into memory meanwhile."""
    server = await make_server(database_url=(url := make_db()))
    alice, bob, c = await friends(server)
    await alice.close()
    await until(lambda: not server.node.registry.users[UserId("alice")].sessions)
    listed, go_on = asyncio.Event(), asyncio.Event()
    real = server.node.store.list_changed

    async def list_changed(*args: Any) -> Any:
        page = await real(*args)
        listed.set()
        await go_on.wait()
        return page

    monkeypatch.setattr(server.node.store, "list_changed", list_changed)
    hello = await server.open()
    await hello.post(
        "hello", v=1, token=server.token("alice"), device="d1", since=alice.welcome["since"],
        epoch=alice.welcome["epoch"],
    )  # fmt: skip
    await listed.wait()
    elsewhere(url, c)
    await bob.post("history", c=c)
    assert await bob.closed() == RESTART
    assert ConvId(int(c)) in server.node.registry.convs
    go_on.set()
    assert await hello.closed() in (RESTART, 4009)
    assert not any(frame["t"] == "welcome" for frame in hello.pushes), hello.pushes
    again = await server.connect("alice", cursors={c: 2})
    assert (await again.push("entry"))["body"] == "of nobody here"


async def test_after_a_restart_of_postgresql_nobody_is_closed_for_what_others_lack(
    make_server: MakeServer, own_postgres: OwnPostgres
) -> None:
    """Sessions that began before it are closed, once each, when they name what is not in memory.
    Who connected since then stays, however many of these name their conversation: a bot would come
    back once for each of its users, until it had too many hellos.
    """
    server = await make_server(database_url=own_postgres.conninfo)
    names = ["ann", "bea", "cho"]
    writers = [await server.connect(name) for name in names]
    convs = {name: (await writer.say("bot", "1"))["c"] for name, writer in zip(names, writers, strict=True)}
    for writer in writers:
        await writer.close()
    await until(lambda: not server.node.registry.sessions)
    await forget(server.node)
    bot, peers = await server.connect("bot"), {name: await server.connect(name) for name in names}
    assert not server.node.registry.convs
    own_postgres.kill()
    own_postgres.start()
    await bot.close()

    async def back() -> Peer | None:
        peer = await server.open()
        welcome = await peer.hello(server.token("bot"), cursors=dict.fromkeys(convs.values(), 1))
        return peer if welcome["t"] == "welcome" else None

    bot = await until(back, "PostgreSQL is back")
    for name in names:
        cid = str(uuid.uuid4())
        await peers[name].post("send", to="bot", cid=cid, body="2")
        assert await peers[name].closed() == RESTART
        again = await server.connect(name, cursors={convs[name]: 1})
        assert (await again.insist("bot", "2", cid))["seq"] == 2
        assert (await bot.push("entry"))["from"] == name
    await bot.quiet()


# ---- a welcome of many pages ---------------------------------------------------------------------


def between_pages(server: Server, monkeypatch: pytest.MonkeyPatch, do: Callable[[int], Any]) -> None:
    """Pages of 10, and `do(n)` before page n is read, from 0."""
    monkeypatch.setattr(store, "LIST_ALL_MAX", 10)
    real, calls = server.node.store.list_changed, itertools.count()

    async def list_changed(*args: Any) -> Any:
        await do(next(calls))
        return await real(*args)

    monkeypatch.setattr(server.node.store, "list_changed", list_changed)


async def test_what_happens_between_its_pages_is_listed_or_pushed_once(
    make_server: MakeServer, make_db: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a conversation that was listed, in one that is to come, and in a new one."""
    server = await make_server(database_url=many(make_db(), 30))
    writers = {name: await server.connect(name) for name in ("p03", "p25", "p00a")}

    async def do(n: int) -> None:
        if n == 2:
            for writer in writers.values():
                await writer.say("alice", "between")
            await writers["p03"].request("read", c="4", seq=1)

    between_pages(server, monkeypatch, do)
    alice = await server.connect("alice")
    heads = {item["peer"]: item["head"] for item in alice.welcome["conversations"]}
    assert set(heads) >= {f"p{k:02}" for k in range(30)}
    assert (await alice.push("receipt"))["read"] == 1
    pushed = {(entry["from"], entry["seq"]) for entry in [await alice.push("entry"), await alice.push("entry")]}
    assert (heads["p03"], heads["p25"], heads.get("p00a")) == (1, 2, None)
    assert pushed == {("p03", 2), ("p00a", 1)}
    await alice.quiet()
    keys = {"since": alice.welcome["since"], "epoch": alice.welcome["epoch"]}
    again = await server.connect("alice", "d2", **keys)
    assert {item["peer"] for item in again.welcome["conversations"]} == set(writers), "the mark is the first page's"


async def test_of_its_rows_none_are_in_memory_while_the_next_are_read(
    make_server: MakeServer, make_db: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await make_server(database_url=many(make_db(), 95))
    rows: list[int] = []

    async def do(n: int) -> None:
        rows.append(sum(type(one) is ConvRow for one in gc.get_objects()))

    between_pages(server, monkeypatch, do)
    alice = await server.connect("alice")
    assert len(alice.welcome["conversations"]) == 95
    assert rows == [0] * 10


async def test_a_page_that_cannot_be_read_ends_the_hello(
    make_server: MakeServer, make_db: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await make_server(database_url=many(make_db(), 30))

    async def do(n: int) -> None:
        if n == 2:
            raise errors.Unavailable("no", retry_ms=1)

    between_pages(server, monkeypatch, do)
    alice = await server.open()
    id = await alice.post("hello", v=1, token=server.token("alice"), device="d1")
    pages = [await alice.reply(id) for _ in range(3)]
    assert [page.get("more") for page in pages] == [True, True, None]
    assert (pages[2]["t"], pages[2]["code"]) == ("err", "unavailable")
    assert await alice.closed() == errors.CloseCode.OVERLOADED
    assert len((await server.connect("alice")).welcome["conversations"]) == 30


# ---- what it costs -------------------------------------------------------------------------------


def filled(db: psycopg.Connection[Any], users: int, each: int) -> None:
    """`users` with `each` conversations, whose other sides are not here."""
    partitions(db)
    db.execute(
        "INSERT INTO conversations (a, b, head, na) SELECT 'u' || i, 'x' || j, 1, 1"
        " FROM generate_series(1, %s) i, generate_series(1, %s) j",
        (users, each),
    )


async def test_a_hello_with_a_mark_costs_the_node_the_same_with_many_conversations(
    make_server: MakeServer, make_db: Callable[[], str]
) -> None:
    """Of those that did not change nothing comes to the node, up to `store.LIST_ROWS_MAX`, a page."""
    calls: dict[int, int] = {}
    for each in (10, 900):
        url = make_db()
        with connect(url) as db:
            filled(db, 1, each)
        server = await make_server(database_url=url, log_level="error")
        peer = await server.connect("u1")
        assert len(peer.welcome["conversations"]) == each
        keys = {"since": peer.welcome["since"], "epoch": peer.welcome["epoch"]}
        await server.connect("u1", **keys)  # what is done once is done
        figures = []
        for _ in range(3):
            with Calls() as counted:
                assert (await server.connect("u1", **keys)).welcome["conversations"] == []
            figures.append(counted.ours)
        calls[each] = min(figures)
        assert not server.node.registry.convs
    assert calls[900] < calls[10] * 1.2, calls


def held() -> int:
    """Bytes that lines of chatd have allocated and that are still there."""
    gc.collect()
    snapshot = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, f"{Path(chatd.__file__).parent}/*")])
    return sum(trace.size for trace in snapshot.traces)


async def test_a_user_costs_no_more_with_more_conversations(
    make_server: MakeServer, make_db: Callable[[], str]
) -> None:
    """Listed cold, and then all of them named, but not lately."""
    sizes: dict[tuple[int, str], float] = {}
    for each in (1, 100):
        url = make_db()
        with connect(url) as db:
            filled(db, 20, each)
        server = await make_server(database_url=url, log_level="error", frames_per_s=100_000, frames_burst=100_000)
        for n in range(5):
            await server.connect(f"warm{n}")
        tracemalloc.start()
        before = held()
        peers = [await server.connect(f"u{n + 1}") for n in range(20)]
        await server.node.store.flush()
        sizes[each, "listed"] = (held() - before) / 20
        for peer in peers:
            for item in peer.welcome["conversations"]:
                assert (await peer.request("read", c=item["c"], seq=1))["t"] == "ok"
            await server.node.store.flush()  # its arrays, too, are kept until the next one
        await forget(server.node)
        sizes[each, "used"] = (held() - before) / 20
        tracemalloc.stop()
        assert not server.node.registry.convs
    assert sizes[100, "listed"] < sizes[1, "listed"] + 500, sizes
    assert sizes[100, "used"] < sizes[1, "used"] + 6_000, sizes  # in memory each takes 480
