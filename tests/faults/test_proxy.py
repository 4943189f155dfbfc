"""The connection to PostgreSQL ends between a COMMIT that took effect and its answer: invariants 1,
3 and 5.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.faults.appends import Appends, path_of, through
from tests.faults.crowd import read_log
from tests.fix_server import MakeServer, Server
from tests.proxy import Proxy

DEADLINE_MS = 500


@pytest.fixture
def appends() -> Appends:
    return Appends()


@pytest_asyncio.fixture
async def proxy(fresh_db: str, appends: Appends) -> AsyncIterator[Proxy]:
    async with Proxy(path_of(fresh_db), appends.reader) as one:
        yield one


@pytest_asyncio.fixture
async def proxied(fresh_db: str, proxy: Proxy, make_server: MakeServer) -> Server:
    return await make_server(database_url=through(fresh_db, proxy), lane_deadline_ms=DEADLINE_MS)


@pytest.mark.parametrize("how", ["cut", "hang"])
async def test_an_answer_lost_after_the_commit(
    proxied: Server, fresh_db: str, appends: Appends, cid: str, how: str
) -> None:
    alice, phone, bob = (
        await proxied.connect("alice"),
        await proxied.connect("alice", "phone"),
        await proxied.connect("bob"),
    )
    first = await alice.say("bob", "one")
    assert ((await bob.push())["seq"], (await phone.push())["seq"]) == (1, 1)

    appends.armed = how
    id = await alice.post("send", to="bob", cid=cid, body="two")
    await appends.lost.wait()
    lost_at = time.monotonic()
    error = await alice.reply(id)
    assert (error["code"], error["retry_ms"] > 0) == ("unavailable", True)

    # Nothing follows it, and nobody sends it again: it is found all the same, once.
    entry = await bob.push()
    seen_s = time.monotonic() - lost_at
    assert entry | {"ts": 0} == {
        "t": "entry",
        "c": first["c"],
        "seq": 2,
        "ts": 0,
        "from": "alice",
        "to": "bob",
        "kind": "message",
        "body": "two",
    }
    assert await phone.push() == {**entry, "cid": cid}
    assert await alice.push() == {**entry, "cid": cid}  # it settles the outbox
    print(f"found after {seen_s:.2f} s")

    again = await alice.say("bob", "two", cid=cid, retry=True)
    assert (again["t"], again["seq"], again["ts"], again["dup"]) == ("ok", 2, entry["ts"], True)
    assert (await alice.say("bob", "three"))["seq"] == 3
    assert ((await bob.push())["seq"], (await phone.push())["seq"]) == (3, 3)
    for peer in (alice, phone, bob):
        await peer.quiet()
    log, _ = read_log(fresh_db)
    assert [e.body for e in log[first["c"]]] == ["one", "two", "three"]


async def test_a_request_lost_before_the_commit_leaves_nothing(proxied: Server, appends: Appends, cid: str) -> None:
    alice, bob = await proxied.connect("alice"), await proxied.connect("bob")
    await alice.say("bob", "one")
    appends.armed = "before"
    assert (await alice.say("bob", "two", cid=cid))["code"] == "unavailable"
    again = await alice.say("bob", "two", cid=cid, retry=True)
    assert (again["seq"], "dup" in again) == (2, False)
    assert [(await bob.push())["seq"] for _ in range(2)] == [1, 2]
    await bob.quiet()


@pytest.mark.parametrize("how", ["cut", "hang"])
async def test_a_retry_at_once_by_another_device(proxied: Server, appends: Appends, cid: str, how: str) -> None:
    """The session that sent it is gone; the outbox of the same user goes on elsewhere, and comes
    before the node has looked by itself.
    """
    alice, phone, bob = (
        await proxied.connect("alice"),
        await proxied.connect("alice", "phone"),
        await proxied.connect("bob"),
    )
    await alice.say("bob", "one")
    appends.armed = how
    await alice.post("send", to="bob", cid=cid, body="two")
    await appends.lost.wait()
    alice.ws.transport.abort()
    again = await phone.say("bob", "two", cid=cid, retry=True)
    while again.get("code") == "unavailable":
        again = await phone.say("bob", "two", cid=cid, retry=True)
    assert (again["seq"], again["dup"]) == (2, True)
    assert [(await bob.push())["seq"] for _ in range(2)] == [1, 2]
    assert [(await phone.push())["seq"] for _ in range(2)] == [1, 2]
    await bob.quiet()
    await phone.quiet()


async def test_what_was_pipelined_behind_it_keeps_its_place(
    proxied: Server, fresh_db: str, appends: Appends, cid: str
) -> None:
    alice, bob = await proxied.connect("alice"), await proxied.connect("bob")
    await alice.say("bob", "0")
    appends.armed = "cut"
    cids = [cid, *(f"00000000-0000-4000-8000-{n:012}" for n in range(5))]
    ids = [await alice.post("send", to="bob", cid=one, body=str(n)) for n, one in enumerate(cids, 1)]
    replies = [await alice.reply(id) for id in ids]
    assert replies[0]["code"] == "unavailable"
    assert {r["code"] for r in replies[1:]} == {"blocked"}
    assert {r["cid"] for r in replies[1:]} == {cid}
    for one in cids:
        assert (await alice.say("bob", "other", cid=one, retry=True))["t"] == "ok"
    bodies = [(await bob.push())["body"] for _ in range(7)]
    assert bodies[:2] == ["0", "1"]
    await bob.quiet()
    log, _ = read_log(fresh_db)
    ((entries),) = log.values()
    assert [e.cid for e in entries[1:]] == cids


async def test_what_was_queued_behind_one_that_never_arrived_does_not_overtake_it(
    proxied: Server, appends: Appends, cid: str
) -> None:
    """The second batch waits in its lane while the first one fails; it must not be written, though
    the database is there again.
    """
    alice, bob = await proxied.connect("alice"), await proxied.connect("bob")
    await alice.say("bob", "0")
    appends.armed = "stall"
    cids = [cid, *(f"00000000-0000-4000-8000-{n:012}" for n in range(5))]
    ids = [await alice.post("send", to="bob", cid=cids[0], body="1")]
    await appends.lost.wait()
    ids += [await alice.post("send", to="bob", cid=one, body=str(n)) for n, one in enumerate(cids[1:], 2)]
    replies = [await alice.reply(id) for id in ids]
    assert [r["code"] for r in replies] == ["unavailable"] + ["blocked"] * 5
    for n, one in enumerate(cids, 1):
        assert (await alice.say("bob", str(n), cid=one, retry=True))["seq"] == n + 1
    assert [(await bob.push())["body"] for _ in range(7)] == list("0123456")
    await bob.quiet()


async def test_an_edit_whose_answer_was_lost(proxied: Server, appends: Appends, cid: str) -> None:
    alice, bob = await proxied.connect("alice"), await proxied.connect("bob")
    first = await alice.say("bob", "helo")
    appends.armed = "cut"
    error = await alice.request("edit", to="bob", cid=cid, ref=first["seq"], body="hello")
    assert error["code"] == "unavailable"
    assert [((e := await bob.push())["seq"], e["kind"], e["body"]) for _ in range(2)] == [
        (1, "message", "helo"),
        (2, "edit", "hello"),
    ]
    again = await alice.request("edit", to="bob", cid=cid, ref=first["seq"], body="hello", retry=True)
    assert (again["seq"], again["dup"]) == (2, True)
    await bob.quiet()


async def test_answers_lost_again_and_again_while_all_talk(proxied: Server, fresh_db: str, appends: Appends) -> None:
    """Losses in a row under pipelined sends in both directions; every cid is in the log once, every
    reader saw 1, 2, 3 ...
    """
    alice, bob = await proxied.connect("alice"), await proxied.connect("bob")
    first = await alice.say("bob", "0")
    for n in range(1, 4):
        appends.lost.clear()
        appends.armed = ("cut", "before", "hang")[n % 3]
        cids = [f"00000000-0000-4000-8000-{n:06}{k:06}" for k in range(2)]
        ids = [
            await peer.post("send", to=to, cid=c, body=c)
            for peer, to, c in ((alice, "bob", cids[0]), (bob, "alice", cids[1]))
        ]
        for peer, to, id, c in ((alice, "bob", ids[0], cids[0]), (bob, "alice", ids[1], cids[1])):
            reply = await peer.reply(id)
            while reply["t"] == "err":
                assert reply["code"] == "unavailable"
                await asyncio.sleep(0)
                reply = await peer.say(to, c, cid=c, retry=True)
    log, _ = read_log(fresh_db)
    entries = log[first["c"]]
    assert [e.seq for e in entries] == list(range(1, 8))
    assert len({e.cid for e in entries}) == 7
    for peer in (alice, bob):  # what was pushed, and what was acked in its place: each seq once, in order
        await peer.request("ping")
        seqs = [p["seq"] for p in peer.pushes if p["t"] == "entry"]
        assert seqs == sorted(set(seqs))


async def test_a_settled_entry_blocks_until_it_is_skipped(proxied: Server, appends: Appends, cid: str) -> None:
    """Its outcome was unknown, then its own entry came and nobody will send it again:

    `blocked` names it, and `skip` lets the others go on.
    """
    alice, bob = await proxied.connect("alice"), await proxied.connect("bob")
    await alice.say("bob", "0")
    appends.armed = "cut"
    assert (await alice.say("bob", "1", cid=cid))["code"] == "unavailable"
    assert (await alice.push("entry"))["cid"] == cid
    later = str(uuid.uuid4())
    refused = await alice.say("bob", "2", cid=later)
    assert (refused["code"], refused["cid"]) == ("blocked", cid)
    assert (await alice.request("skip", to="bob", cid=cid))["t"] == "ok"
    assert (await alice.say("bob", "2", cid=later, retry=True))["seq"] == 3
    assert [(await bob.push())["body"] for _ in range(3)] == ["0", "1", "2"]
