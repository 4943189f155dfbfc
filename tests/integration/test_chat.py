"""What two people and their devices see, over real sockets and a real database."""

from __future__ import annotations

import uuid

import pytest

from chatd.chat import welcome
from chatd.net.connection import ClientConnection
from tests.fix_server import MakeServer, Server


async def test_a_message_is_acked_and_reaches_the_peer_and_the_senders_other_devices(server: Server, cid: str) -> None:
    alice, phone, bob = (
        await server.connect("alice"),
        await server.connect("alice", "phone"),
        await server.connect("bob"),
    )
    ok = await alice.say("bob", "hi", cid=cid)
    assert (ok["t"], ok["seq"]) == ("ok", 1)
    entry = await bob.push()
    assert entry == {
        "t": "entry",
        "c": ok["c"],
        "seq": 1,
        "ts": ok["ts"],
        "from": "alice",
        "to": "bob",
        "kind": "message",
        "body": "hi",
    }
    assert await phone.push() == {**entry, "cid": cid}
    await alice.quiet()


async def test_notes_to_oneself(server: Server) -> None:
    alice, phone = await server.connect("alice"), await server.connect("alice", "phone")
    ok = await alice.say("alice", "milk")
    assert (await phone.push())["seq"] == ok["seq"] == 1
    await alice.quiet()
    assert (await alice.request("conversations"))["conversations"][0]["unread"] == 0


async def test_a_retry_returns_the_first_seq_and_inserts_nothing(server: Server, cid: str) -> None:
    alice, bob = await server.connect("alice"), await server.connect("bob")
    first = await alice.say("bob", "one", cid=cid)
    again = await alice.say("bob", "another body", cid=cid, retry=True)
    assert (again["seq"], again["ts"], again["dup"]) == (first["seq"], first["ts"], True)
    assert (await bob.push())["body"] == "one"
    await bob.quiet()


async def test_two_sends_of_one_cid_in_one_batch_make_one_entry(server: Server, cid: str) -> None:
    alice, bob = await server.connect("alice"), await server.connect("bob")
    await alice.say("bob", "zero")
    ids = [await alice.post("send", to="bob", cid=cid, body="x") for _ in range(3)]
    replies = [await alice.reply(id) for id in ids]
    assert {r["seq"] for r in replies} == {2}
    assert [r.get("dup", False) for r in replies] == [False, True, True]
    assert [(await bob.push())["seq"] for _ in range(2)] == [1, 2]
    await bob.quiet()


async def test_pipelined_first_sends_to_a_new_peer_keep_their_order(server: Server) -> None:
    alice, bob = await server.connect("alice"), await server.connect("bob")
    ids = [await alice.post("send", to="bob", cid=str(uuid.uuid4()), body=str(n)) for n in range(10)]
    assert [(await alice.reply(id))["seq"] for id in ids] == list(range(1, 11))
    assert [(await bob.push())["body"] for _ in range(10)] == [str(n) for n in range(10)]


async def test_edit_and_delete_as_history_shows_them(server: Server) -> None:
    alice, bob = await server.connect("alice"), await server.connect("bob")
    ok = await alice.say("bob", "helo")
    c = ok["c"]
    edit = await alice.request("edit", c=c, cid=str(uuid.uuid4()), ref=1, body="hello")
    assert edit["seq"] == 2
    await bob.push()
    assert await bob.push() == {
        "t": "entry",
        "c": c,
        "seq": 2,
        "ts": edit["ts"],
        "from": "alice",
        "to": "bob",
        "kind": "edit",
        "ref": 1,
        "body": "hello",
    }
    page = await bob.request("history", c=c)
    assert [(e["kind"], e["body"], e.get("rev"), e.get("edited")) for e in page["entries"]] == [
        ("message", "hello", 2, edit["ts"]), ("edit", None, None, None),
    ]  # fmt: skip
    gone = await alice.request("delete", c=c, cid=str(uuid.uuid4()), ref=1)
    assert gone["seq"] == 3
    page = await bob.request("history", c=c)
    assert [(e["kind"], e.get("body"), e.get("rev")) for e in page["entries"]] == [
        ("message", None, 3),
        ("edit", None, None),
        ("delete", None, None),
    ]
    assert page["entries"][0]["deleted"] == gone["ts"]
    assert (await alice.request("delete", c=c, cid=str(uuid.uuid4()), ref=1))["code"] == "deleted"


async def test_only_the_author_changes_a_message(server: Server) -> None:
    alice, bob = await server.connect("alice"), await server.connect("bob")
    await alice.say("bob", "mine")
    assert (await bob.request("edit", to="alice", cid=str(uuid.uuid4()), ref=1, body="yours"))["code"] == "not_author"
    assert (await bob.request("edit", to="alice", cid=str(uuid.uuid4()), ref=9, body="?"))["code"] == "no_message"


async def test_only_participants_can_use_a_conversation(server: Server, cid: str) -> None:
    alice, _, eve = await server.connect("alice"), await server.connect("bob"), await server.connect("eve")
    c = (await alice.say("bob", "secret"))["c"]
    for t, keys in (
        ("send", {"cid": cid, "body": "x"}),
        ("edit", {"cid": cid, "body": "x", "ref": 1}),
        ("delete", {"cid": cid, "ref": 1}),
        ("ack", {"seq": 1}),
        ("read", {"seq": 1}),
        ("history", {}),
        ("typing", {}),
        ("skip", {"cid": cid}),
    ):
        assert (await eve.request(t, c=c, **keys))["code"] == "no_conversation", t
    other = await server.connect("eve", "other", cursors={c: 0})
    assert other.welcome["conversations"] == []
    snapshot = await eve.request("watch", users=["alice"])
    assert snapshot["presence"] == [{"user": "alice", "state": "hidden", "v": 0}]


async def test_a_client_with_a_cursor_gets_exactly_what_it_missed(server: Server) -> None:
    alice, bob = await server.connect("alice"), await server.connect("bob")
    for n in range(5):
        await alice.say("bob", str(n))
    c = (await bob.push())["c"]
    await bob.close()
    for n in range(5, 8):
        await alice.say("bob", str(n))
    again = await server.connect("bob", cursors={c: 5})
    assert [(await again.push())["seq"] for _ in range(3)] == [6, 7, 8]
    await again.quiet()
    item = again.welcome["conversations"][0]
    assert (item["head"], item["unread"], item["open"]) == (8, 8, False)


async def test_a_cursor_far_behind_is_told_to_page_and_one_beyond_the_head_to_reset(make_server: MakeServer) -> None:
    server = await make_server(resync_entries_max=3, rate_messages=100)
    alice = await server.connect("alice")
    for n in range(6):
        await alice.say("bob", str(n))
    c = alice_c = (await alice.say("bob", "last"))["c"]
    far = await server.connect("bob", cursors={c: 1})
    assert far.welcome["conversations"][0]["page"] is True
    await far.quiet()
    page = await far.request("history", c=c, after=1)
    assert [e["seq"] for e in page["entries"]] == [2, 3, 4, 5, 6, 7]
    beyond = await server.connect("bob", "other", cursors={alice_c: 99})
    assert beyond.welcome["conversations"][0]["reset"] is True
    await beyond.quiet()


async def test_the_mark_lists_only_what_changed_since(server: Server) -> None:
    alice, bob = await server.connect("alice"), await server.connect("bob")
    await alice.say("bob")
    await alice.say("carol")
    since = (await server.connect("alice", "x")).welcome["since"]
    assert len((await server.connect("alice", "y")).welcome["conversations"]) == 2
    await bob.say("alice", "back")
    changed = (await server.connect("alice", "z", since=since)).welcome["conversations"]
    assert "bob" in {item["peer"] for item in changed}
    since = (await server.connect("alice", "x")).welcome["since"]
    assert (await server.connect("alice", "z", since=since)).welcome["conversations"] == []
    await bob.request("read", to="alice", seq=2)
    changed = (await server.connect("alice", "z", since=since)).welcome["conversations"]
    assert [(item["peer"], item["peer_read"]) for item in changed] == [("bob", 2)]


async def test_another_epoch_ignores_cursors_and_mark(server: Server) -> None:
    alice = await server.connect("alice")
    c = (await alice.say("bob"))["c"]
    again = await server.connect("alice", "x", epoch="another", cursors={c: 0}, since="99999999")
    assert [item["c"] for item in again.welcome["conversations"]] == [c]
    await again.quiet()


async def test_cursors_only_go_forward_and_are_pushed_to_the_others(server: Server) -> None:
    alice, bob, phone = await server.connect("alice"), await server.connect("bob"), await server.connect("bob", "phone")
    await bob.say("alice")
    for n in range(2):
        await alice.say("bob", str(n))
    c = (await alice.push("entry"))["c"]
    assert (await bob.request("ack", c=c, seq=3))["delivered"] == 3
    assert await alice.push() == {"t": "receipt", "c": c, "from": "bob", "to": "alice", "delivered": 3, "read": 0}
    assert await phone.push("receipt") == {
        "t": "receipt",
        "c": c,
        "from": "bob",
        "to": "alice",
        "delivered": 3,
        "read": 0,
    }
    assert (await bob.request("read", c=c, seq=2))["read"] == 2
    assert (await bob.request("read", c=c, seq=1))["read"] == 2
    assert (await bob.request("ack", c=c, seq=4))["code"] == "bad_seq"
    assert (await alice.push())["read"] == 2
    await alice.quiet()
    item = (await bob.request("conversations"))["conversations"][0]
    assert (item["delivered"], item["read"], item["unread"]) == (3, 2, 1)


async def test_cursors_survive_a_restart(make_server: MakeServer, fresh_db: str) -> None:
    server = await make_server(database_url=fresh_db)
    alice, bob = await server.connect("alice"), await server.connect("bob")
    await alice.say("bob")
    await bob.say("alice")
    await bob.request("read", to="alice", seq=1)
    await server.node.drain()
    await server.node.stop()
    again = await make_server(database_url=fresh_db)
    item = (await again.connect("alice")).welcome["conversations"][0]
    assert (item["peer_delivered"], item["peer_read"], item["head"]) == (1, 1, 2)


async def test_conversations_are_paged_with_the_latest_entry_first(make_server: MakeServer) -> None:
    server = await make_server(rate_messages=1000)
    alice = await server.connect("alice")
    for n in (*range(7), 2):
        sent = await alice.say(f"user{n}")
        while (await alice.request("ping"))["ts"] <= sent["ts"]:
            pass  # entries of one ms stand in order of their conversations
    peers: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        page = await alice.request("conversations", limit=3, **cursor)
        peers += [item["peer"] for item in page["conversations"]]
        if "cursor" not in page:
            break
        cursor = {"cursor": page["cursor"]}
    assert peers == ["user2", "user6", "user5", "user4", "user3", "user1", "user0"]


async def test_history_counts_messages_and_pages_both_ways(make_server: MakeServer) -> None:
    server = await make_server(rate_messages=1000)
    alice = await server.connect("alice")
    for n in range(12):
        seq = (await alice.say("bob", str(n)))["seq"]
        if n % 2:
            await alice.request("edit", to="bob", cid=str(uuid.uuid4()), ref=seq, body=f"{n}!")
    seqs: list[int] = []
    before: dict[str, int] = {}
    while True:
        page = await alice.request("history", to="bob", limit=5, **before)
        assert sum(e["kind"] == "message" for e in page["entries"]) <= 5
        seqs = [e["seq"] for e in page["entries"]] + seqs
        if not page["more"]:
            break
        before = {"before": page["entries"][0]["seq"]}
    assert seqs == list(range(1, 19))
    seqs, after = [], 0
    while True:
        page = await alice.request("history", to="bob", limit=5, after=after)
        seqs += [e["seq"] for e in page["entries"]]
        if not page["more"]:
            break
        after = seqs[-1]
    assert seqs == list(range(1, 19))


async def test_the_rate_limit_holds_over_devices_and_a_known_cid_is_free(make_server: MakeServer) -> None:
    server = await make_server(rate_messages=3, rate_per_ms=60_000)
    alice, phone = await server.connect("alice"), await server.connect("alice", "phone")
    cids = [str(uuid.uuid4()) for _ in range(3)]
    for cid in cids:
        await alice.say("bob", cid=cid)
    refused = await phone.say("bob")
    assert refused["code"] == "rate_limited"
    assert 0 < refused["retry_ms"] <= 60_000
    known = await alice.say("bob", cid=cids[0], retry=True)
    assert (known["seq"], known["dup"]) == (1, True)


async def test_later_sends_are_blocked_until_the_refused_one_comes_again_or_is_given_up(
    make_server: MakeServer,
) -> None:
    server = await make_server(rate_messages=1, rate_per_ms=60_000)
    alice = await server.connect("alice")
    await alice.say("bob")
    first, second = str(uuid.uuid4()), str(uuid.uuid4())
    assert (await alice.say("bob", cid=first))["code"] == "rate_limited"
    blocked = await alice.say("bob", cid=second)
    assert (blocked["code"], blocked["cid"]) == ("blocked", first)
    assert (await alice.request("skip", to="bob", cid=first))["t"] == "ok"
    assert (await alice.say("bob", cid=second))["code"] == "rate_limited"


async def test_the_same_device_replaces_its_session_and_the_eleventh_closes_the_longest_idle(server: Server) -> None:
    first = await server.connect("alice", "a")
    second = await server.connect("alice", "a")
    assert await first.closed() == 4004
    others = [await server.connect("alice", f"d{n}") for n in range(9)]
    await second.request("ping")
    await server.connect("alice", "eleventh")
    assert await others[0].closed() == 4005
    await second.quiet()


async def test_presence_flows_once_both_have_sent(server: Server) -> None:
    alice = await server.connect("alice", watch=["bob"])
    bob = await server.connect("bob")
    assert alice.welcome["presence"] == [{"user": "bob", "state": "hidden", "v": 0}]
    await alice.say("bob")
    assert (await alice.request("typing", to="bob"))["code"] == "not_open"
    await alice.quiet()
    await bob.say("alice")
    online = await alice.push("presence")
    assert (online["user"], online["state"]) == ("bob", "online")
    assert (await alice.request("typing", to="bob"))["t"] == "ok"
    assert (await bob.push("typing"))["from"] == "alice"
    await bob.request("presence", state="away")
    away = await alice.push("presence")
    assert (away["state"], away["v"] > online["v"]) == ("away", True)
    await bob.close()
    offline = await alice.push("presence")
    assert (offline["state"], offline["v"] > away["v"], offline["seen"] > 0) == ("offline", True, True)
    snapshot = (await alice.request("watch", users=["bob"]))["presence"]
    assert (snapshot[0]["state"], snapshot[0]["seen"]) == ("offline", offline["seen"])


async def test_several_devices_make_one_status_and_a_quick_reconnect_does_not_flap(server: Server) -> None:
    alice, bob = await server.connect("alice", watch=["bob"]), await server.connect("bob")
    await alice.say("bob")
    await bob.say("alice")
    assert (await alice.push("presence"))["state"] == "online"
    phone = await server.connect("bob", "phone", state="away")
    await bob.close()
    assert (await alice.push("presence"))["state"] == "away"
    again = await server.connect("bob")
    assert (await alice.push("presence"))["state"] == "online"
    await phone.close()
    await again.close()
    await server.connect("bob")
    alice.pushes.clear()
    await alice.quiet()


async def test_a_message_waits_for_a_user_who_never_connected_or_is_refused_by_setting(make_server: MakeServer) -> None:
    server = await make_server()
    alice = await server.connect("alice")
    assert (await alice.say("nobody"))["seq"] == 1
    nobody = await server.connect("nobody")
    assert nobody.welcome["conversations"][0]["unread"] == 1
    strict = await make_server(unknown_recipients="refuse")
    alice = await strict.connect("alice")
    assert (await alice.say("nobody"))["code"] == "no_user"
    await strict.connect("nobody")
    await strict.node.store.flush()
    assert (await alice.say("nobody"))["seq"] == 1


async def test_the_session_ends_with_its_token_unless_refreshed(server: Server) -> None:
    alice = await server.connect("alice")
    exp = alice.welcome["exp"]
    assert (await alice.request("refresh", token=server.token("alice")))["exp"] >= exp
    assert (await alice.request("refresh", token=server.token("bob")))["code"] == "unauthorized"
    assert (await alice.request("refresh", token="x.y.z"))["code"] == "unauthorized"
    session = server.node.registry.users["alice"].sessions["d1"]  # type: ignore[index]
    session.exp_ms = 0
    assert await alice.closed() == 4002


async def test_new_conversations_are_limited(make_server: MakeServer) -> None:
    server = await make_server(new_conversations_per_hour=2)
    alice = await server.connect("alice")
    await alice.say("u1")
    await alice.say("u2")
    refused = await alice.say("u3")
    assert (refused["code"], refused["retry_ms"] > 0) == ("too_many_conversations", True)
    assert (await alice.say("u1"))["seq"] == 2


async def test_a_drain_answers_what_it_has_taken_and_says_when_to_come_back(server: Server) -> None:
    alice, bob = await server.connect("alice"), await server.connect("bob")
    await alice.say("bob")
    await bob.push()
    id = await alice.post("send", to="bob", cid=str(uuid.uuid4()), body="last")
    await alice.request("ping")
    await server.node.drain()
    code = await alice.closed()
    assert code == 1012
    replies = [f for f in alice.pushes if f.get("id") == id]
    assert replies[0]["t"] == "ok"
    notice = next(f for f in alice.pushes if f["t"] == "notice")
    assert notice["kind"] == "drain"
    assert notice["retry_ms"] >= 0
    assert await bob.closed() == 1012
    assert [f["seq"] for f in bob.pushes if f["t"] == "entry"] == [2]


async def test_a_long_welcome_comes_in_pages_and_nothing_is_missed_meanwhile(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(welcome, "WELCOME_ITEMS", 1)
    server = await make_server(rate_messages=100)
    alice, bob = await server.connect("alice"), await server.connect("bob")
    for peer in ("bob", "carol", "dave"):
        await alice.say(peer)
    drained = ClientConnection.drained
    turns = 0

    async def while_paged(connection: ClientConnection) -> None:
        nonlocal turns
        await drained(connection)
        turns += connection.session is not None and connection.session.device == "slow"
        if turns == 3:  # two pages are out, the last one is not
            turns += 1
            await bob.say("alice", "while you were being welcomed")
            await bob.request("read", to="alice", seq=1)

    monkeypatch.setattr(ClientConnection, "drained", while_paged)
    slow = await server.open()
    id = await slow.post("hello", v=1, token=server.token("alice"), device="slow")
    pages = [await slow.reply(id) for _ in range(3)]
    assert [page["more"] for page in pages] == [True, True, False]
    assert [item["peer"] for page in pages for item in page["conversations"]] == ["bob", "carol", "dave"]
    assert "since" not in pages[0]
    assert "epoch" in pages[0]
    pushes = {(await slow.push())["t"]: 1 for _ in range(2)}
    assert set(pushes) == {"entry", "receipt"}
    await slow.quiet()


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5])
async def test_the_last_page_of_the_list_has_no_cursor_and_none_is_empty(server: Server, limit: int) -> None:
    alice = await server.connect("alice")
    for peer in ("bob", "carol", "dave", "erin"):
        await alice.say(peer, "hi")
    listed: list[str] = []
    cursor: dict[str, object] = {}
    while True:
        page = await alice.request("conversations", limit=limit, **cursor)
        assert page["conversations"]
        listed += [item["c"] for item in page["conversations"]]
        if "cursor" not in page:
            break
        cursor = {"cursor": page["cursor"]}
    assert len(set(listed)) == len(listed) == 4
