"""What comes in: every entry once and in order, over cuts, paged welcomes, jumps, a slow app and a
restart of the process.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from chatd.client import CatchUpFailed, CidTaken, Client, Entry, Presence, Receipt, RequestError, Reset, Sent, Typing
from chatd.client import session as session_module
from tests.fix_fake_chatd import FakeChatd, Fault, Frame, Session, make_client, next_event
from tests.until import until


async def take(client: Client, count: int) -> list[Entry]:
    entries = client.entries()
    return [await anext(entries) for _ in range(count)]


def seqs(entries: list[Entry]) -> list[int]:
    return [e.seq for e in entries]


async def test_live_entries_come_once_ones_own_included() -> None:
    async with FakeChatd() as server:
        server.say("bob", "me", "before the start")
        async with make_client(server.url) as client, make_client(server.url, device="phone") as phone:
            server.say("bob", "me", "one")
            await client.send("bob", "two")
            await phone.send("bob", "three")
            got = await take(client, 3)
            assert [(e.seq, e.own, e.body, e.peer) for e in got] == [
                (2, False, "one", "bob"),
                (3, True, "two", "bob"),
                (4, True, "three", "bob"),
            ]


async def test_what_was_missed_comes_before_what_is_new() -> None:
    async with FakeChatd() as server, make_client(server.url) as client:
        server.say("bob", "me", "1", "2")
        assert seqs(await take(client, 2)) == [1, 2]
        first = server.session("me")
        first.cut()
        server.say("bob", "me", "3")
        await server.until_connected("me", first)
        server.say("bob", "me", "4")
        assert seqs(await take(client, 2)) == [3, 4]


async def test_too_much_to_send_is_paged_before_live_entries() -> None:
    async with FakeChatd() as server, make_client(server.url) as client:
        server.say("bob", "me", "1")
        await take(client, 1)
        server.resync_max = 10
        first = server.session("me")
        first.cut()
        server.say("bob", "me", *(f"{n}" for n in range(2, 252)))
        pages = 0

        def live_in_between(_session: Session, frame: Frame) -> Fault:
            nonlocal pages
            if frame["t"] == "history":
                pages += 1
                server.say("bob", "me", f"{server.conv('bob', 'me').head + 1}")
            return None

        server.fault = live_in_between
        got = await take(client, 250 + 3)
        assert [e.body for e in got] == [f"{n}" for n in range(2, 255)]
        assert pages == 3


async def test_a_conversation_that_began_while_away_comes_whole() -> None:
    async with FakeChatd() as server, make_client(server.url) as client:
        server.session("me").cut()
        server.say("carol", "me", "1", "2", "3")
        assert [(e.peer, e.seq) for e in await take(client, 3)] == [("carol", 1), ("carol", 2), ("carol", 3)]


@pytest.mark.parametrize("pages", [0, 1, 2])
async def test_a_welcome_cut_after_some_pages_loses_nothing(pages: int) -> None:
    async with FakeChatd() as server:
        server.welcome_items = 2
        for n in range(6):
            server.say(f"u{n}", "me", "old")
        async with make_client(server.url) as client:
            first = server.session("me")
            server.cut_welcome_after = pages
            first.cut()
            for n in range(6):
                server.say(f"u{n}", "me", "new")
            got = await take(client, 6)
            assert sorted((e.peer, e.seq) for e in got) == [(f"u{n}", 2) for n in range(6)]
            assert len(server.all_sessions) == 3, "the second was cut"


async def test_a_jump_is_mended_by_a_new_connection() -> None:
    async with FakeChatd() as server, make_client(server.url) as client:
        conv = server.say("bob", "me", "1")
        await take(client, 1)
        session = server.session("me")
        del server.sessions[("me", "bot")]  # nothing is pushed to it
        server.say("bob", "me", "2")
        server.sessions[("me", "bot")] = session
        server.say("bob", "me", "3")
        assert seqs(await take(client, 2)) == [2, 3]
        assert len(server.all_sessions) == 2
        assert conv.c not in server.all_sessions[1].hello["cursors"], "what is behind comes by history"


async def test_a_slow_app_costs_bounded_memory_and_no_entry_and_holds_up_no_reply() -> None:
    async with FakeChatd() as server, make_client(server.url, queue_max=5) as client:
        for n in range(200):
            server.say("bob", "me", f"{n}")
        for n in range(30):
            server.say("carol", "me", f"{n}")
        await client.send("dan", "replies come although nothing was taken")
        assert len(client._desk.inbox.queue) == 5
        by_peer: dict[str, list[int]] = {}
        async for e in client.entries():
            await client.send("dan", f"saw {e.seq}") if e.seq % 50 == 0 else None
            by_peer.setdefault(e.peer, []).append(e.seq)
            assert len(client._desk.inbox.queue) <= 5 + 100
            if (
                len(by_peer.get("bob", ())) == 200
                and len(by_peer.get("carol", ())) == 30
                and len(by_peer.get("dan", ())) == 5
            ):
                break
        assert by_peer == {"bob": [*range(1, 201)], "carol": [*range(1, 31)], "dan": [*range(1, 6)]}


async def test_a_cut_while_history_is_being_fetched_goes_on_after_it() -> None:
    async with FakeChatd() as server, make_client(server.url, queue_max=3) as client:
        faults: list[Fault] = ["cut", "cut after", {"code": "overloaded", "retry_ms": 5}, None, "cut"]
        server.fault = lambda _s, frame: faults.pop(0) if frame["t"] == "history" and faults else None
        server.say("bob", "me", *(f"{n}" for n in range(250)))
        assert seqs(await take(client, 250)) == [*range(1, 251)]
        assert not faults


async def test_edits_and_deletes_are_entries_and_resync_gives_messages_as_they_stand() -> None:
    async with FakeChatd() as server, make_client(server.url) as client:
        await client.send("bob", "frist")
        server.session("me").cut()
        conv = server.conv("me", "bob")
        server.add(conv, "me", "message", "cid-x", body="second")
        server.add(conv, "me", "edit", "cid-y", ref=2, body="second!")
        server.add(conv, "me", "delete", "cid-z", ref=1)
        _, second, edit, delete = await take(client, 4)
        assert (second.body, second.rev, second.edited) == ("second!", 3, edit.ts)
        assert (edit.kind, edit.ref, edit.body) == ("edit", 2, "second!")
        assert (delete.kind, delete.ref, delete.body) == ("delete", 1, None)


async def test_a_restarted_process_goes_on_where_its_state_was_stored() -> None:
    """State stored after each entry, crashes without warning: every entry handled once, replies
    too.
    """
    async with FakeChatd() as server:
        stored: dict[str, Any] | None = None
        handled: list[int] = []
        async with make_client(server.url) as client:
            stored = client.state()
        for life in range(6):
            client = make_client(server.url, state=json.loads(json.dumps(stored)))
            await client.open()
            server.say("bob", "me", *(f"{life}" for _ in range(3)))
            fresh = 0
            async for e in client.entries():
                if not e.own:
                    await client.send("bob", f"re {e.seq}", cid=client.reply_cid(e))
                    if life % 2 and fresh == 1:
                        break  # crash after the reply, before the state is stored
                    handled.append(e.seq)
                stored = client.state()
                fresh += not e.own
                if fresh == 3:
                    break
            await client.close(drain=False)
        async with make_client(server.url, state=stored) as client:
            while len(handled) < 18:
                e = await anext(client.entries())
                if not e.own:
                    await client.send("bob", f"re {e.seq}", cid=client.reply_cid(e))
                    handled.append(e.seq)
        of_bob = [e["seq"] for e in server.conv("bob", "me").log if e["from"] == "bob"]
        assert handled == of_bob
        assert sorted(e["body"] for e in server.conv("bob", "me").log if e["from"] == "me") == sorted(
            f"re {seq}" for seq in of_bob
        )


async def test_another_epoch_is_told_and_the_log_goes_on_where_it_parts_from_the_one_before() -> None:
    async with FakeChatd() as server, make_client(server.url) as client:
        server.say("bob", "me", "1", "2", "3")
        await take(client, 3)
        first = server.session("me")
        server.epoch = "epoch-2"
        conv = server.conv("bob", "me")
        del conv.log[1:]
        first.cut()
        server.say("bob", "me", "another 2")
        await server.until_connected("me", first)
        server.say("bob", "me", "another 3")
        assert [(e.seq, e.body) for e in await take(client, 2)] == [(2, "another 2"), (3, "another 3")]
        assert [await next_event(client), await next_event(client)] == [Reset(None, None), Reset(conv.c, "bob")]


async def test_in_another_epoch_an_edit_of_what_was_shown_comes_with_its_text() -> None:
    """It was made before this client was back: then history tells its text with the message, which
    the app has already and is not given again.
    """
    async with FakeChatd() as server, make_client(server.url) as client:
        server.say("bob", "me", "1", "2")
        await take(client, 2)
        server.epoch = "epoch-2"
        server.session("me").cut()
        server.add(server.conv("bob", "me"), "bob", "edit", "cid-x", ref=1, body="1, edited")
        (edit,) = await take(client, 1)
        assert (edit.seq, edit.kind, edit.ref, edit.body) == (3, "edit", 1, "1, edited")


async def test_a_hello_that_the_server_will_not_have_is_said_without_places_and_nothing_is_lost() -> None:
    async with FakeChatd() as server, make_client(server.url) as client:
        server.say("bob", "me", "1")
        await take(client, 1)
        server.fault = lambda _s, frame: {"code": "bad_field", "field": "since"} if frame.get("since") else None
        server.session("me").cut()
        server.say("bob", "me", "2", "3")
        assert seqs(await take(client, 2)) == [2, 3]
        assert "epoch" not in server.all_sessions[-1].hello


async def test_broken_promises_end_the_connection_and_not_the_client() -> None:
    async with FakeChatd() as server, make_client(server.url) as client:
        for nonsense in ({"t": "entry", "seq": 1}, {"t": "presence", "user": 1}, {"t": "receipt"}):
            session = server.session("me")
            session.push(**nonsense)
            await server.until_connected("me", session)
        server.say("bob", "me", "1")
        assert seqs(await take(client, 1)) == [1]


@pytest.mark.parametrize(("t", "reply"), [
    ("send", {"c": "12", "seq": "1"}),
    ("read", {"c": "12", "delivered": None, "read": 1}),
])  # fmt: skip
async def test_a_reply_that_cannot_be_ends_the_connection_and_not_the_client(
    monkeypatch: pytest.MonkeyPatch, t: str, reply: Frame
) -> None:
    async with FakeChatd() as server, make_client(server.url, queue_max=1) as client:
        first = server.session("me")
        answered: list[Frame] = []

        def once(_session: Session, frame: Frame) -> Frame:
            answered.append(frame)
            monkeypatch.undo()
            return reply

        monkeypatch.setattr(server, f"_on_{t}", once)
        server.say("bob", "me", "1", "2", "3")
        sending = asyncio.create_task(client.send("bob", "4"))
        got = await take(client, 1)
        await client.read("bob", 1)
        await server.until_connected("me", first)
        assert len(answered) == 1
        assert [e.body for e in got + await take(client, 3)] == ["1", "2", "3", "4"]
        assert (await sending).seq == 4


async def test_a_log_that_shrank_while_it_was_fetched_is_a_reset() -> None:
    async with FakeChatd() as server, make_client(server.url, queue_max=2) as client:
        conv = server.say("bob", "me", "1", "2", "3", "4")
        await client.conversations()  # the pushes are in
        del conv.log[1:]
        await take(client, 1)
        assert await next_event(client) == Reset(conv.c, "bob")
        server.say("bob", "me", "another 2")
        assert [(e.seq, e.body) for e in await take(client, 1)] == [(2, "another 2")]


async def test_a_dup_tells_a_place_and_makes_no_entry() -> None:
    """The answer to a repeat overtakes the entry itself, whose words are the first ones."""
    cid = "8c1e0000-0000-4000-8000-000000000001"
    async with FakeChatd() as server, make_client(server.url) as client:
        session = server.sessions.pop(("me", "bot"))  # nothing is pushed to it for a moment
        conv = server.conv("me", "bob")
        made = server.add(conv, "me", "message", cid, body="first words")
        with pytest.raises(CidTaken) as e:
            await client.send("bob", "other words", cid=cid)
        assert e.value.sent == Sent(conv.c, 1, made["ts"], dup=True)
        session.push(t="entry", c=conv.c, **made)
        assert [e.body for e in await take(client, 1)] == ["first words"]


async def test_history_that_brings_nothing_is_not_asked_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "FILL_RETRY_S", 0.01)
    async with FakeChatd() as server, make_client(server.url, queue_max=1) as client:
        conv = server.conv("bob", "me")
        asked: list[Frame] = []

        def nothing(_session: Session, frame: Frame) -> Frame:
            asked.append(frame)
            server.__dict__.pop("_on_history")  # once
            return {"c": conv.c, "entries": [], "more": False, "head": conv.head, "floor": 1}

        server.__dict__["_on_history"] = nothing
        server.say("bob", "me", "1", "2", "3")
        assert seqs(await take(client, 3)) == [1, 2, 3]
        assert len(asked) == 1
        assert len(server.all_sessions) == 1
        assert await next_event(client) == CatchUpFailed(
            conv.c, "bob", 1, "protocol", "it brought nothing, although the head is 3"
        )


async def test_frames_of_a_later_version_are_passed_over() -> None:
    async with FakeChatd() as server, make_client(server.url) as client:
        server.session("me").push(t="hologram", c="1")
        conv = server.conv("bob", "me")
        server.add(conv, "bob", "poll", "x", options=["a"])
        server.say("bob", "me", "2")
        assert [(e.seq, e.body) for e in await take(client, 1)] == [(2, "2")]


async def test_what_was_taken_is_acked_once_for_many_and_read_on_demand() -> None:
    async with FakeChatd() as server:
        async with make_client(server.url) as client:
            conv = server.say("bob", "me", *(f"{n}" for n in range(10)))
            await take(client, 10)
            await client.read("bob", 4)
        requests = [(f["t"], f["seq"]) for f in server.all_sessions[0].requests if f["t"] in ("ack", "read")]
        assert sorted(requests) == [("ack", 10), ("read", 4)]
        assert conv.cursors["me"] == [10, 4]


async def test_without_auto_ack_nothing_is_acked_but_what_is_said() -> None:
    async with FakeChatd() as server:
        async with make_client(server.url, auto_ack=False) as client:
            conv = server.say("bob", "me", "1", "2")
            await take(client, 2)
            await client.ack("bob", 1)
        assert conv.cursors["me"] == [1, 0]


async def test_a_cursor_survives_a_cut_and_a_restart() -> None:
    async with FakeChatd() as server:
        server.say("bob", "me", "0")
        client = make_client(server.url)
        await client.open()
        conv = server.say("bob", "me", "1", "2")
        await take(client, 2)
        await client.read("bob", 2)
        server.fault = lambda _s, frame: "cut" if frame["t"] in ("ack", "read") else None
        await client.close(drain=False)
        server.fault = lambda _s, _f: None
        assert "me" not in conv.cursors
        async with make_client(server.url, state=client.state()):
            pass
        assert conv.cursors["me"] == [3, 2]


async def test_a_cursor_whose_answer_was_lost_is_told_again() -> None:
    async with FakeChatd() as server, make_client(server.url) as client:
        conv = server.say("bob", "me", "1", "2")
        await take(client, 2)
        faults: list[Fault] = ["cut"]
        server.fault = lambda _s, frame: faults.pop() if frame["t"] == "read" and faults else None
        await client.read("bob", 2)
        await until(lambda: conv.cursors.get("me") == [2, 2])
        assert len(server.all_sessions) == 2


async def test_a_cursor_refused_for_now_is_told_after_the_time_named_and_one_refused_for_good_is_not() -> None:
    async with FakeChatd() as server, make_client(server.url, auto_ack=False) as client:
        conv = server.say("bob", "me", "1", "2")
        await take(client, 2)
        faults: list[Fault] = [{"code": "rate_limited", "retry_ms": 5}, {"code": "bad_seq"}]
        reads: list[int] = []

        def fault(_session: Session, frame: Frame) -> Fault:
            if frame["t"] != "read":
                return None
            reads.append(frame["seq"])
            return faults.pop(0) if faults else None

        server.fault = fault
        await client.read("bob", 1)
        await until(lambda: len(reads) >= 2)
        await client.conversations()  # the refusal is in
        server.session("me").cut()
        await client.conversations()
        await client.read("bob", 2)
        await until(lambda: conv.cursors.get("me") == [2, 2])
        assert reads == [1, 1, 2]


async def test_cursors_that_cannot_be_are_refused_here() -> None:
    async with FakeChatd() as server, make_client(server.url) as client:
        server.say("bob", "me", "1")
        await take(client, 1)
        for peer, seq, code in (("nobody", 1, "no_conversation"), ("bob", 2, "bad_seq"), ("bob", 0, "bad_seq")):
            with pytest.raises(RequestError, match=code):
                await client.read(peer, seq)


async def test_history_and_conversations_are_asked_again_after_a_cut() -> None:
    async with FakeChatd() as server, make_client(server.url) as client:
        for n in range(5):
            server.say(f"u{n}", "me", "a", "b", "c")
        faults: list[Fault] = ["cut", "cut after", {"code": "unavailable", "retry_ms": 5}]
        server.fault = lambda _s, frame: (
            faults.pop(0) if frame["t"] in ("history", "conversations") and faults else None
        )
        page = await client.history("u3", before=3, limit=1)
        assert ([e.body for e in page.entries], page.more, page.head) == (["b"], True, 3)
        faults = ["cut"]
        listed = await client.conversations(limit=3)
        assert [item.peer for item in listed.items] == ["u4", "u3", "u2"]
        listed = await client.conversations(limit=3, cursor=listed.cursor)
        assert ([item.peer for item in listed.items], listed.cursor) == (["u1", "u0"], None)
        with pytest.raises(RequestError, match="no_conversation"):
            await client.history("stranger")


async def test_events_tell_receipts_presence_and_typing_the_newest_of_each() -> None:
    async with (
        FakeChatd() as server,
        make_client(server.url) as client,
        make_client(server.url, token="bob", device="b") as bob,
    ):
        await client.send("bob", "hi")
        await bob.send("me", "hello")
        await client.send("bob", "how")
        assert [p.state for p in await client.watch(["bob", "carol"])] == ["online", "offline"]
        async for e in bob.entries():
            await bob.read("me", e.seq)
            if e.seq == 3:
                break
        await bob.typing("me")
        seen: list[object] = []
        async for event in client.events():
            seen.append(event)
            if isinstance(event, Receipt) and event.read == 3:
                break
        c = server.conv("me", "bob").c
        assert Typing(c, "bob") in seen
        assert Receipt(c, "bob", "bob", 3, 3) in seen
        assert not [e for e in seen if isinstance(e, Presence)], "`watch` has returned it"
        await bob.close()
        while not (isinstance(event := await anext(client.events()), Presence) and event.state == "offline"):
            pass


async def test_what_is_watched_is_watched_again_after_a_cut_and_the_difference_is_told() -> None:
    async with FakeChatd() as server, make_client(server.url) as client:
        assert [p.state for p in await client.watch(["bob"])] == ["offline"]
        server.session("me").cut()
        async with make_client(server.url, token="bob", device="b"):
            while not (isinstance(event := await anext(client.events()), Presence) and event.state == "online"):
                pass
        assert server.session("me").watched == ["bob"]


async def test_receipts_that_came_while_away_are_told() -> None:
    async with FakeChatd() as server, make_client(server.url) as client:
        await client.send("bob", "hi")
        server.say("bob", "me", "hello")  # both have sent: receipts flow
        first = server.session("me")
        first.cut()
        await server.until_connected("me", first)
        await client.conversations()  # the welcome is in
        second = server.session("me")
        second.cut()
        conv = server.conv("me", "bob")
        conv.cursors["bob"], conv.changed = [1, 1], server.now + 1
        assert await next_event(client) == Receipt(conv.c, "bob", "bob", 1, 1)


async def test_typing_where_it_may_not_be_shown_changes_nothing() -> None:
    async with FakeChatd() as server, make_client(server.url) as client:
        await client.send("bob", "hi")
        await client.typing("bob")
        await client.conversations()
        assert [frame["t"] for frame in server.session("me").requests][-2:] == ["typing", "conversations"]
        assert client.connected
