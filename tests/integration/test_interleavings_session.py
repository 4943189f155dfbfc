"""Orders of events between requests, answers and pushes of one node that were wrong once, each
driven as it was: by an answer that is held back.
"""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest

from chatd.chat import listing, session_life
from chatd.ids import UserId
from chatd.net.connection import ClientConnection
from chatd.postgres.faults import Outage
from chatd.presence import Presence
from tests.client import Peer
from tests.fix_server import MakeServer, Server
from tests.integration.logs import connect, one
from tests.maps import check_maps
from tests.until import until

WAIT_S = 20.0


async def befriended(server: Server) -> tuple[Peer, Peer, str]:
    alice, bob = await server.connect("alice"), await server.connect("bob")
    first = await alice.say("bob", "1")
    await bob.say("alice", "2")
    assert (await alice.push("entry"))["seq"] == 2
    assert (await bob.push("entry"))["seq"] == 1
    return alice, bob, first["c"]


class Gate:
    """Holds the results of a coroutine function back until `go`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        self.real, self.reached, self.go = getattr(owner, name), asyncio.Event(), asyncio.Event()
        monkeypatch.setattr(owner, name, self.call)

    async def call(self, *args: Any, **keys: Any) -> Any:
        result = await self.real(*args, **keys)
        self.reached.set()
        await self.go.wait()
        return result

    async def until_reached(self) -> None:
        async with asyncio.timeout(WAIT_S):
            await self.reached.wait()


async def test_what_may_have_been_written_keeps_its_slot_of_the_rate(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers that come late, or never: 18 to 20 messages in 5 s went through."""
    server = await make_server(rate_messages=3, rate_per_ms=600_000, lanes=1)
    alice = await server.connect("alice")
    assert (await alice.say("alice", "1"))["t"] == "ok"
    lane = server.node.store.lanes.all[0]
    append = lane._append

    async def lost(batch: Any) -> Any:
        await append(batch)
        raise Outage("the answer was lost", "away")

    monkeypatch.setattr(lane, "_append", lost)
    cids = [str(uuid.uuid4()) for _ in range(2)]
    assert (await alice.say("alice", "2", cid=cids[0]))["code"] == "unavailable"
    monkeypatch.setattr(lane, "_append", append)
    assert (await alice.say("alice", "2", cid=cids[0], retry=True)).get("dup") is True
    assert (await alice.say("alice", "3", cid=cids[1]))["t"] == "ok"
    assert (await alice.say("alice", "4"))["code"] == "rate_limited", "three were written"
    with connect(server.node.store.opener._conninfo) as db:
        assert one(db, "SELECT count(*) FROM entries") == 3


async def test_what_was_surely_not_written_gives_its_slot_back(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await make_server(rate_messages=2, rate_per_ms=600_000, lanes=1)
    alice = await server.connect("alice")
    assert (await alice.say("alice", "1"))["t"] == "ok"
    lane = server.node.store.lanes.all[0]
    append, cid = lane._append, str(uuid.uuid4())

    async def refused(batch: Any) -> Any:
        raise Outage("read-only", "read-only", is_unknown=False)

    monkeypatch.setattr(lane, "_append", refused)
    assert (await alice.say("alice", "2", cid=cid))["code"] == "unavailable"
    monkeypatch.setattr(lane, "_append", append)
    assert (await alice.say("alice", "2", cid=cid, retry=True))["t"] == "ok"


async def test_a_read_of_a_seq_that_a_dup_named_waits_for_the_gap(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await make_server(lanes=1)
    alice, bob, c = await befriended(server)
    lane = server.node.store.lanes.all[0]
    append, cid = lane._append, str(uuid.uuid4())

    async def lost(batch: Any) -> Any:
        await append(batch)
        raise Outage("the answer was lost", "away")

    monkeypatch.setattr(lane, "_append", lost)
    monkeypatch.setattr(server.node.delivery.gaps.outcomes, "outcome_unknown", lambda *_: None)
    assert (await alice.say("bob", "3", cid=cid))["code"] == "unavailable"
    monkeypatch.setattr(lane, "_append", append)
    gate = Gate(monkeypatch, server.node.store, "entries_many")
    dup = await alice.say("bob", "3", cid=cid, retry=True)
    assert (dup.get("dup"), dup["seq"]) == (True, 3)
    read = await alice.post("read", c=c, seq=3)
    await gate.until_reached()
    gate.go.set()
    assert (await alice.reply(read))["t"] == "ok"
    assert (await bob.push("entry"))["seq"] == 3
    await check_maps(server.node)


async def test_the_answer_to_a_watch_is_as_of_the_turn_in_which_it_is_sent(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The output was paused; who is watched came meanwhile:

    `online` was pushed, then the older answer said `offline`.
    """
    server = await make_server(presence_grace_ms=0)
    alice, bob, _ = await befriended(server)
    await bob.close()
    await until(lambda: server.node.presence.status(UserId("bob")) is None)
    waits = asyncio.Event()
    entered = asyncio.Event()

    async def drained(connection: ClientConnection) -> None:
        entered.set()
        await waits.wait()

    monkeypatch.setattr(ClientConnection, "drained", drained)
    watch = await alice.post("watch", users=["bob"])
    async with asyncio.timeout(WAIT_S):
        await entered.wait()
    monkeypatch.setattr(ClientConnection, "drained", lambda connection: asyncio.sleep(0))
    await server.connect("bob")
    waits.set()
    assert (await alice.reply(watch))["presence"][0]["state"] == "online"


async def left(server: Server, peer: Peer, user: str) -> None:
    """The user has left, and their grace time is over."""
    await peer.close()
    await until(lambda: server.node.presence.status(UserId(user)) is None)


async def test_who_leaves_before_the_answer_to_a_watch_was_last_seen_then(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their time was asked for while they were there: the answer said `offline` and not since when."""
    server = await make_server(presence_grace_ms=0)
    alice, bob, _ = await befriended(server)
    pause = Pause(monkeypatch)
    watch = await alice.post("watch", users=["bob"])
    await pause.until_reached()
    await left(server, bob, "bob")
    pause.go.set()
    (told,) = (await alice.reply(watch))["presence"]
    assert (told["state"], "seen" in told) == ("offline", True)


async def test_who_leaves_before_the_end_of_a_welcome_was_last_seen_then(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await make_server(presence_grace_ms=0)
    _, bob, _ = await befriended(server)
    pause = Pause(monkeypatch)
    late = await server.open()
    hello = await late.post("hello", v=1, token=server.token("alice"), device="d2", watch=["bob"])
    await pause.until_reached()
    await left(server, bob, "bob")
    pause.go.set()
    assert (await late.reply(hello))["presence"][0]["state"] == "online"
    told = await late.push("presence")
    assert (told["state"], "seen" in told) == ("offline", True)


async def test_whom_the_first_answer_makes_visible_was_last_seen_then(make_server: MakeServer) -> None:
    """Bob has written and left; Alice writes back and may see him from now on."""
    server = await make_server(presence_grace_ms=0)
    alice, bob = await server.connect("alice", watch=["bob"]), await server.connect("bob")
    assert (await bob.say("alice", "1"))["t"] == "ok"
    await left(server, bob, "bob")
    assert (await alice.say("bob", "2"))["t"] == "ok"
    told = await alice.push("presence")
    assert (told["user"], told["state"], "seen" in told) == ("bob", "offline", True)


async def test_pipelined_watches_are_each_answered_for_their_own_users(server: Server) -> None:
    alice = await server.connect("alice")
    first, second = await alice.post("watch", users=["bob", "carol"]), await alice.post("watch", users=["dave"])
    assert [p["user"] for p in (await alice.reply(first))["presence"]] == ["bob", "carol"]
    assert [p["user"] for p in (await alice.reply(second))["presence"]] == ["dave"]


async def test_a_drain_tells_who_says_hello_meanwhile(make_server: MakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The session was closed with 1012 and no notice."""
    server = await make_server()
    gate = Gate(monkeypatch, server.node.store, "list_changed")
    peer = await server.open()
    hello = await peer.post("hello", v=1, token=server.token("alice"), device="d1")
    await gate.until_reached()
    drain = asyncio.create_task(server.node.drain())
    await until(lambda: server.node.pipeline.draining)
    gate.go.set()
    assert (await peer.reply(hello))["t"] == "welcome"
    assert (await peer.push("notice"))["kind"] == "drain"
    assert await peer.closed() == 1012
    await drain


async def test_no_more_is_unread_than_stands_behind_the_read_cursor(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another device read while the welcome was made: it said `read` 5 with 10 unread."""
    server = await make_server(rate_messages=100)
    alice, bob, c = await befriended(server)
    for n in range(10):
        await alice.say("bob", str(n))
    gate = Gate(monkeypatch, server.node.store, "list_changed")
    late = await server.open()
    hello = await late.post("hello", v=1, token=server.token("bob"), device="d2")
    await gate.until_reached()
    assert (await bob.request("read", c=c, seq=10))["t"] == "ok"
    gate.go.set()
    (item,) = (await late.reply(hello))["conversations"]
    assert (item["head"], item["read"], item["unread"]) == (12, 10, 2)


async def test_no_grace_ends_while_a_session_opens(make_server: MakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hello took longer than the grace: watchers saw offline, then online."""
    server = await make_server(presence_grace_ms=100)
    alice, bob, _ = await befriended(server)
    assert (await alice.request("watch", users=["bob"]))["presence"][0]["state"] == "online"
    due = Presence.due
    ended = asyncio.Event()

    def look(self: Presence, now: float, *args: Any) -> Any:
        """As if a second more had passed than has."""
        if gate.reached.is_set():
            ended.set()
            now += 1.0
        return due(self, now, *args)

    gate = Gate(monkeypatch, server.node.store, "list_changed")
    monkeypatch.setattr(Presence, "due", look)
    peer = await server.open()
    await bob.close()
    hello = await peer.post("hello", v=1, token=server.token("bob"), device="d1")
    await gate.until_reached()
    async with asyncio.timeout(WAIT_S):
        await ended.wait()
    await alice.quiet()
    gate.go.set()
    assert (await peer.reply(hello))["t"] == "welcome"
    await alice.quiet()


async def test_an_entry_whose_author_was_let_go_and_came_back_leaves_no_hole(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its result was out for longer than its author was held; the session of their return got the
    next `ok` over a seq that it never saw.
    """
    server = await make_server(lanes=1)
    alice, _, _ = await befriended(server)
    gate = Gate(monkeypatch, server.node.store.lanes.all[0], "_append")
    await alice.post("send", to="bob", cid=str(uuid.uuid4()), body="3")
    await gate.until_reached()
    await alice.close()
    registry = server.node.registry
    await until(lambda: not registry.users[UserId("alice")].sessions)
    registry.release(server.node._clock.now() + 3_600)
    assert UserId("alice") not in registry.users
    again = await server.connect("alice")
    gate.go.set()
    assert (await again.push("entry"))["seq"] == 3
    assert (await again.say("bob", "4"))["seq"] == 4
    await check_maps(server.node)


def lose_answers(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the lane writes is committed, and its answer lost, until `monkeypatch` is asked for
    something else.
    """
    lane = server.node.store.lanes.all[0]
    append = lane._append

    async def lost(batch: Any) -> Any:
        await append(batch)
        raise Outage("the answer was lost", "away")

    monkeypatch.setattr(lane, "_append", lost)


async def first_of_unknown_outcome(server: Server, monkeypatch: pytest.MonkeyPatch) -> tuple[Peer, str, Gate]:
    """Alice's first message to Bob was written; the retry says so, and the gap before it is held
    open.
    """
    alice, cid = await server.connect("alice"), str(uuid.uuid4())
    with monkeypatch.context() as patch:
        lose_answers(server, patch)
        patch.setattr(server.node.delivery.gaps.outcomes, "outcome_unknown", lambda *_: None)
        assert (await alice.say("bob", "1", cid=cid))["code"] == "unavailable"
    gate = Gate(monkeypatch, server.node.store, "entries_many")
    dup = await alice.say("bob", "1", cid=cid, retry=True)
    assert (dup.get("dup"), dup["seq"]) == (True, 1)
    return alice, dup["c"], gate


async def test_a_conversation_that_a_dup_named_is_known_before_its_first_entry_is_read(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """`no_conversation`, for the `c` of the answer before."""
    server = await make_server(lanes=1)
    alice, c, gate = await first_of_unknown_outcome(server, monkeypatch)
    read = await alice.post("read", c=c, seq=1)
    await gate.until_reached()
    gate.go.set()
    assert (await alice.reply(read))["t"] == "ok"
    await check_maps(server.node)


async def test_a_seq_that_a_dup_named_is_never_beyond_the_head(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gap takes longer than a read waits for it:

    `bad_seq` says that the client is wrong, and it is not.
    """
    server = await make_server(lanes=1)
    monkeypatch.setattr(listing, "OVERTAKEN_S_MAX", 0.0)
    alice, c, gate = await first_of_unknown_outcome(server, monkeypatch)
    assert (await alice.request("read", c=c, seq=1))["code"] == "unavailable"
    assert (await alice.request("read", c=c, seq=2))["code"] == "bad_seq", "nobody has named that one"
    gate.go.set()
    assert (await alice.push("entry"))["seq"] == 1
    assert (await alice.request("read", c=c, seq=1))["t"] == "ok"


async def test_a_cid_of_unknown_outcome_keeps_one_slot_however_often_it_was_queued(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await make_server(rate_messages=4, rate_per_ms=600_000, lanes=1)
    alice, cid = await server.connect("alice"), str(uuid.uuid4())
    assert (await alice.say("alice", "1"))["t"] == "ok"
    with monkeypatch.context() as patch:
        gate = Gate(patch, server.node.store.lanes.all[0], "_append")
        before = await alice.post("send", to="alice", cid=str(uuid.uuid4()), body="2")
        await gate.until_reached()
        twins = [await alice.post("send", to="alice", cid=cid, body="3") for _ in range(2)]
        assert (await alice.request("ping"))["t"] == "pong"  # both are queued
        patch.undo()
        lose_answers(server, patch)
        gate.go.set()
        assert (await alice.reply(before))["t"] == "ok"
        assert [(await alice.reply(id))["t"] for id in twins] == ["err", "err"]
    assert (await alice.say("alice", "3", cid=cid, retry=True)).get("dup") is True
    assert (await alice.say("alice", "4"))["t"] == "ok"
    assert (await alice.say("alice", "5"))["code"] == "rate_limited", "four were written"


async def turns(server: Server) -> tuple[Peer, Peer, str]:
    """Ten messages, by turns: Alice's have odd seqs."""
    alice, bob, c = await befriended(server)
    for _ in range(4):
        await alice.say("bob")
        await bob.say("alice")
    return alice, bob, c


async def test_a_welcome_counts_what_is_unread_from_the_cursor_that_it_tells(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both had written: `read` was memory's, and `unread` all entries behind it, one's own too."""
    server = await make_server(rate_messages=100)
    _, bob, c = await turns(server)
    gate = Gate(monkeypatch, server.node.services.presence_push, "snapshot")
    late = await server.open()
    hello = await late.post("hello", v=1, token=server.token("bob"), device="d2")
    await gate.until_reached()  # behind the listing
    assert (await bob.request("read", c=c, seq=6))["t"] == "ok"
    gate.go.set()
    (item,) = (await late.reply(hello))["conversations"]
    assert (item["read"], item["unread"]) == (0, 5)
    assert (await late.push("receipt"))["read"] == 6


class Pause:
    """The output of connections takes nothing more until `go`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.go = asyncio.Event(), asyncio.Event()
        monkeypatch.setattr(ClientConnection, "drained", self._wait)

    async def _wait(self) -> None:
        self.reached.set()
        await self.go.wait()

    async def until_reached(self) -> None:
        async with asyncio.timeout(WAIT_S):
            await self.reached.wait()


async def test_a_listing_counts_what_is_unread_as_of_the_turn_in_which_it_is_sent(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await make_server(rate_messages=100)
    _, bob, c = await turns(server)
    other = await server.connect("bob", device="d2")
    pause = Pause(monkeypatch)
    listing = await other.post("conversations", limit=10)
    await pause.until_reached()
    assert (await bob.request("read", c=c, seq=6))["t"] == "ok"
    pause.go.set()
    (item,) = (await other.reply(listing))["conversations"]
    assert (item["read"], item["unread"]) == (6, 2)


async def test_a_listing_of_the_log_before_leaves_nothing_in_memory(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its session had ended; its rows were merged all the same, and the id is somebody else's in
    the log that is.
    """
    server = await make_server()
    _, bob, c = await befriended(server)
    pause = Pause(monkeypatch)
    await bob.post("conversations", limit=10)
    await pause.until_reached()
    with connect(server.node.store.opener._conninfo) as db:
        db.execute("UPDATE conversations SET a = 'dave', b = 'erin' WHERE id = %s", (int(c),))
        db.execute("UPDATE meta SET epoch = 'renewed'")
    assert await bob.closed() == 1012
    (task,) = [task for task in asyncio.all_tasks() if "Reads._run" in repr(task)]
    pause.go.set()
    await asyncio.wait([task])
    assert server.node.registry.convs == {}
    dave = await server.connect("dave")
    assert [item["peer"] for item in dave.welcome["conversations"]] == ["erin"]


async def test_a_hello_that_waits_while_the_log_moves_ends_without_a_bug(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its conversations were looked up in a memory that had been dropped: KeyError, close 1011."""
    server = await make_server()
    _, bob, _ = await befriended(server)
    gate = Gate(monkeypatch, listing, "await_heads")
    late = await server.open()
    await late.post("hello", v=1, token=server.token("bob"), device="d2")
    await gate.until_reached()
    bugs: list[str] = []
    monkeypatch.setattr(session_life.log, "exception", lambda event, **_: bugs.append(event))
    with connect(server.node.store.opener._conninfo) as db:
        db.execute("UPDATE meta SET epoch = 'renewed'")
    assert await late.closed() == await bob.closed() == 1012
    gate.go.set()
    async with asyncio.timeout(WAIT_S):
        await server.node.chat.life.hellos_done()
    assert bugs == []
