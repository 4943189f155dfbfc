"""What users of the SDK met and should not have: servers, tokens and calls that are wrong, and what
the client then says and does. Each was red once.
"""

from __future__ import annotations

import asyncio
import json
import threading
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve

from chatd.client import (
    CatchUpFailed,
    CidTaken,
    Client,
    Closed,
    Entry,
    Line,
    Presence,
    RequestError,
    Reset,
    Stopped,
    Typing,
    Unreadable,
)
from chatd.client import dial as dial_module
from chatd.client import link as link_module
from chatd.client import session as session_module
from tests.fix_fake_chatd import FakeChatd, Fault, Frame, Session, make_client, next_event
from tests.until import until

# ---- history that cannot be had ---------------------------------------------------------------------


async def take(client: Client, count: int) -> list[Entry]:
    entries = client.entries()
    return [await anext(entries) for _ in range(count)]


async def test_a_conversation_whose_history_fails_holds_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    async with FakeChatd() as server, make_client(server.url, queue_max=1) as client:
        bad = server.conv("bad", "me").c
        server.fault = lambda _s, f: {"code": "internal"} if f["t"] == "history" and f["c"] == bad else None
        server.say("bob", "me", "0")
        server.say("bad", "me", "1", "2")
        server.say("bob", "me", "3", "4")
        assert [e.body for e in await take(client, 3)] == ["0", "3", "4"]
        event = await next_event(client)
        assert event == CatchUpFailed(bad, "bad", 0, "internal", "internal")
        monkeypatch.setattr(session_module, "FILL_RETRY_S", 0.01)
        server.fault = lambda _s, _f: None
        server.session("me").cut()
        assert [e.body for e in await take(client, 2)] == ["1", "2"], "it is asked for again"


async def test_history_that_fails_is_asked_for_again_after_longer_and_longer_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(session_module, "FILL_RETRY_S", 0.005)
    async with FakeChatd() as server, make_client(server.url, queue_max=1) as client:
        faults: list[Fault] = [{"code": "internal"}] * 3
        server.fault = lambda _s, frame: faults.pop() if frame["t"] == "history" and faults else None
        server.say("bob", "me", "1", "2", "3")
        assert [e.body for e in await take(client, 3)] == ["1", "2", "3"]
        assert not faults
        assert len(server.all_sessions) == 1


@pytest.mark.parametrize("broken", [{"seq": 2}, "nonsense", {"seq": "2", "from": 1}])
async def test_an_item_of_history_that_cannot_be_read_is_stepped_over_and_told(broken: Any) -> None:
    async with FakeChatd() as server, make_client(server.url, queue_max=1) as client:
        history = server._on_history

        def with_a_hole(session: Session, frame: Frame) -> Frame:
            reply = history(session, frame)
            reply["entries"] = [broken if isinstance(e, dict) and e["seq"] == 2 else e for e in reply["entries"]]
            return reply

        server.__dict__["_on_history"] = with_a_hole
        conv = server.say("bob", "me", "1", "2", "3")
        assert [e.body for e in await take(client, 2)] == ["1", "3"]
        assert await next_event(client) == Unreadable(conv.c, "bob", 2)
        page = await client.history("bob")
        assert ([e.seq for e in page.entries], page.unreadable) == ([1, 3], (2,))
        assert [e.seq async for e in client.iter_history("bob")] == [3, 1]
        assert len(server.all_sessions) == 1


async def test_a_pushed_entry_that_cannot_be_read_is_stepped_over_and_told() -> None:
    async with FakeChatd() as server, make_client(server.url) as client:
        conv = server.say("bob", "me", "1")
        await take(client, 1)
        conv.log.append(conv.log[0] | {"seq": 2})
        server.session("me").push(t="entry", c=conv.c, seq=2, ts="never")
        server.say("bob", "me", "3")
        assert [e.body for e in await take(client, 1)] == ["3"]
        assert await next_event(client) == Unreadable(conv.c, "bob", 2)
        assert len(server.all_sessions) == 1


# ---- cursors ----------------------------------------------------------------------------------------


async def test_no_cursor_goes_out_before_the_time_that_a_refusal_named() -> None:
    """Cursors of other conversations neither: the rate is the connection's."""
    async with FakeChatd() as server, make_client(server.url) as client:
        loop = asyncio.get_running_loop()
        at: list[tuple[str, float]] = []

        def fault(_session: Session, frame: Frame) -> Fault:
            if frame["t"] != "ack":
                return None
            at.append((frame["c"], loop.time()))
            return {"code": "rate_limited", "retry_ms": 400} if len(at) == 1 else None

        server.fault = fault
        server.say("bob", "me", "1")
        await take(client, 1)
        await until(lambda: at)
        carol = server.say("carol", "me", "1")
        await take(client, 1)
        await until(lambda: carol.cursors.get("me") == [1, 0])
        assert all(when - at[0][1] >= 0.4 for _, when in at[1:])


async def test_fifty_cursors_at_most_are_unanswered() -> None:
    async with FakeChatd() as server, make_client(server.url) as client:
        held: list[Frame] = []
        session = server.session("me")

        def fault(_session: Session, frame: Frame) -> Fault:
            if frame["t"] != "ack" or len(held) < 0:
                return None
            held.append(frame)
            return "ignore"

        server.fault = fault
        convs = [server.say(f"u{n}", "me", "1") for n in range(120)]
        await take(client, 120)
        await until(lambda: len(held) == 50)
        await client.conversations()
        server.fault = lambda _s, _f: None
        for frame in held:
            session.push(t="ok", id=frame["id"], **server._cursor(session, frame))
        await until(lambda: all("me" in conv.cursors for conv in convs))
        assert len(held) == 50


async def test_cursors_that_the_log_before_had_are_passed_over_after_a_reset() -> None:
    async with FakeChatd() as server, make_client(server.url) as client:
        conv = server.say("bob", "me", "1", "2", "3")
        server.say("carol", "me", "1")
        last = (await take(client, 4))[2]
        first = server.session("me")
        server.epoch = "epoch-2"
        del conv.log[1:]
        del server.convs[server.conv("carol", "me").c]
        first.cut()
        await server.until_connected("me", first)
        await client.conversations()
        await client.read("bob", last.seq)
        await client.ack("carol", 1)


# ---- entries and the log that they are of ------------------------------------------------------------


async def test_an_entry_names_its_epoch_and_its_reply_cid_holds_over_a_change_of_it() -> None:
    async with FakeChatd() as server, make_client(server.url) as client:
        server.say("bob", "me", "1")
        (entry,) = await take(client, 1)
        assert entry.epoch == "epoch-1"
        cid = client.reply_cid(entry)
        first = server.session("me")
        server.epoch = "epoch-2"
        first.cut()
        await server.until_connected("me", first)
        await client.conversations()
        assert client.epoch == "epoch-2"
        assert client.reply_cid(entry) == cid


async def test_a_reset_stands_in_the_stream_between_the_two_logs() -> None:
    async with FakeChatd() as server, make_client(server.url) as client:
        entries = client.entries(resets=True)
        conv = server.say("bob", "me", "1", "2")
        await anext(entries)
        await anext(entries)
        first = server.session("me")
        server.epoch = "epoch-2"
        del conv.log[1:]
        first.cut()
        server.say("bob", "me", "another 2")
        await server.until_connected("me", first)
        got = [await anext(entries) for _ in range(3)]
        assert got[:2] == [Reset(None, None), Reset(conv.c, "bob")]
        assert isinstance(got[2], Entry)
        assert (got[2].seq, got[2].body, got[2].epoch) == (2, "another 2", "epoch-2")


@pytest.mark.parametrize("what", ["entries", "events"])
async def test_two_readers_of_one_stream_are_an_error(what: str) -> None:
    async with FakeChatd() as server, make_client(server.url) as client:

        async def read() -> None:
            async for _ in getattr(client, what)():
                pass

        first = asyncio.create_task(read())
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="read by another task already"):
            await read()
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first


# ---- what ends a client, and how it says so ----------------------------------------------------------


async def test_stopped_has_the_close_code_and_what_the_server_said() -> None:
    async with FakeChatd() as server:
        async with make_client(server.url) as client:
            server.session("me").close(4005, "too many devices")
            assert (await client.wait_ended()).close_code == 4005
        server.refused_tokens["me"] = "unauthorized"
        with pytest.raises(Stopped, match="unauthorized") as e:
            await make_client(server.url).open()
        assert (e.value.close_code, e.value.msg) == (4001, "unauthorized")
        server.fault = lambda _s, _f: {"code": "bad_field", "field": "device", "msg": "device is none"}
        with pytest.raises(Stopped, match="bad_field") as e:
            await make_client(server.url, token="you", device="?").open()
        assert (e.value.field, e.value.msg) == ("device", "device is none")


async def test_a_token_callable_that_is_cancelled_from_within_is_called_again() -> None:
    tries: list[bool] = []

    async def token(renew: bool) -> str:
        tries.append(renew)
        if len(tries) == 1:
            raise asyncio.CancelledError
        return "me"

    async with FakeChatd() as server, make_client(server.url, token=token) as client:
        assert (client.user, len(tries)) == ("me", 2)


async def test_a_token_callable_that_gives_no_token_is_called_again() -> None:
    given: list[Any] = [None, 7, "me"]
    async with FakeChatd() as server, make_client(server.url, token=lambda _renew: given.pop(0)) as client:
        assert client.user == "me"


@pytest.mark.parametrize("token", ["me\n", " \tme ", lambda _: "me\r\n"])
async def test_white_space_around_a_token_is_not_sent(token: Any) -> None:
    async with FakeChatd() as server, make_client(server.url, token=token) as client:
        assert client.user == "me"


async def test_a_welcome_without_end_is_left_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty pages, each of which said that more follow, were read for ever."""
    monkeypatch.setattr(link_module, "EMPTY_PAGES_MAX", 3)

    async def endless(ws: ServerConnection) -> None:
        page = {"t": "welcome", "id": json.loads(await ws.recv())["id"], "conversations": [], "more": True}
        while True:
            await ws.send(json.dumps(page))

    lines: list[Line] = []
    async with serve(endless, "127.0.0.1", 0) as server, asyncio.timeout(10):
        client = make_client(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}", on_line=lines.append)
        opening = asyncio.create_task(client.open())
        await until(lambda: any(line.state == "offline" for line in lines))
        await client.close()
        await asyncio.gather(opening, return_exceptions=True)
    (_, left, *_) = lines
    assert (left.state, left.reason) == ("offline", "no_welcome")
    assert left.detail == "this welcome has no end: over 3 pages without a conversation"


async def test_a_client_that_was_let_in_outlives_a_key_rotation() -> None:
    """Not every node knows the new key at once: several tokens in a row are refused."""
    async with FakeChatd() as server:
        given = iter(range(100))
        async with make_client(server.url, token=lambda _renew: f"me/{next(given)}") as client:
            server.refused_tokens = {f"me/{n}": "unauthorized" for n in range(1, 6)}
            server.session("me").close(4001, "unauthorized")
            await until(lambda: any(s.hello.get("token") == "me/6" for s in server.all_sessions))
            await client.conversations()
            assert client.connected
            server.refused_tokens = {f"me/{n}": "unauthorized" for n in range(100)}
            server.session("me").close(4001, "unauthorized")
            assert (await client.wait_ended()).reason == "unauthorized"
        assert next(given) == 6 + dial_module.REFUSALS_MAX + 1, "and gives up in the end"


@pytest.mark.parametrize(("url", "text"), [
    ("http://127.0.0.1:8080/ws", "write ws://127.0.0.1:8080/ws"),
    ("https://chat.example/ws", "write wss://chat.example/ws"),
    ("ws://127.0.0.1:99999/ws", "port"), ("ws://127.0.0.1:none/ws", "port"), ("ws:///ws", "no host"), ("chat", "ws://"),
])  # fmt: skip
def test_an_url_that_cannot_be_one_is_refused_at_once(url: str, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Client(url, token="me", device="d")


async def test_what_is_no_chatd_ends_the_client_before_its_first_welcome() -> None:
    async def tls(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\x15\x03\x01\x00\x02\x02\x46\r\n\r\n")  # an alert: what a TLS server answers to `GET`
        writer.close()

    async with asyncio.timeout(10), await asyncio.start_server(tls, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(Stopped, match="no_http"):
            await make_client(f"ws://127.0.0.1:{port}/ws").open()
        with pytest.raises(Stopped, match="tls") as e:
            await make_client(f"wss://127.0.0.1:{port}/ws").open()
        assert f"wss://127.0.0.1:{port}/ws" in str(e.value)

    async def never(_ws: ServerConnection) -> None: ...

    a_page = serve(never, "127.0.0.1", 0, process_request=lambda c, _r: c.respond(200, "a page\n"))
    async with asyncio.timeout(10), a_page as page:
        with pytest.raises(Stopped, match="http_200"):
            await make_client(f"ws://127.0.0.1:{page.sockets[0].getsockname()[1]}/").open()


async def test_a_server_that_hangs_up_before_its_answer_is_tried_again() -> None:
    tries: list[int] = []

    async def hang_up(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tries.append(1)
        writer.close()

    async with asyncio.timeout(10), await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
        client = make_client(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/ws")
        opening = asyncio.create_task(client.open())
        await until(lambda: len(tries) >= 3)
        assert client.line.state in ("connecting", "offline")
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening


def calls(client: Client) -> dict[str, Callable[[], Any]]:
    """Every call that waits or has an effect."""
    return {
        "send": lambda: client.send("bob", "x"), "edit": lambda: client.edit("bob", 1, "x"),
        "delete": lambda: client.delete("bob", 1), "read": lambda: client.read("bob", 1),
        "ack": lambda: client.ack("bob", 1), "history": lambda: client.history("bob"),
        "conversations": client.conversations, "watch": lambda: client.watch(["bob"]),
        "typing": lambda: client.typing("bob"), "set_away": lambda: client.set_away(True),
        "room": client.room, "wait_for": lambda: client.wait_for(Entry),
        "iter_history": lambda: anext(client.iter_history("bob")),
    }  # fmt: skip


async def raised_by(call: Callable[[], Any]) -> type[Exception] | None:
    try:
        await call()
    except Exception as e:
        return type(e)
    return None


async def test_every_call_of_a_client_that_has_ended_raises_stopped() -> None:
    async with FakeChatd() as server:
        client = make_client(server.url)
        await client.open()
        server.say("bob", "me", "1")
        await take(client, 1)
        await client.close()
        for name, call in calls(client).items():
            assert await raised_by(call) is Closed, name
        with pytest.raises(Closed):
            client.submit("bob", "x")


async def test_a_client_that_was_never_opened_says_so_in_every_call() -> None:
    client = make_client("ws://127.0.0.1:1/ws")
    for name, call in calls(client).items():
        assert await raised_by(call) is RuntimeError, name
    for stream in (client.entries(), client.events()):
        with pytest.raises(RuntimeError, match="not open"):
            await anext(stream)


async def test_a_client_of_another_loop_says_so() -> None:
    async with FakeChatd() as server, make_client(server.url) as client:
        raised: list[BaseException] = []

        def elsewhere() -> None:
            try:
                asyncio.run(client.send("bob", "x"))
            except RuntimeError as e:
                raised.append(e)

        thread = threading.Thread(target=elsewhere)
        thread.start()
        await asyncio.to_thread(thread.join)
        assert "another event loop" in str(raised[0])


async def test_history_in_a_wait_ends_with_the_client() -> None:
    async with FakeChatd() as server:
        client = make_client(server.url)
        await client.open()
        met: list[Frame] = []

        def fault(_session: Session, frame: Frame) -> Fault:
            if frame["t"] != "history":
                return None
            met.append(frame)
            return {"code": "overloaded", "retry_ms": 60_000}

        server.fault = fault
        asking = asyncio.create_task(client.history("bob"))
        await until(lambda: met)
        await client.conversations()  # the refusal is in
        await client.close()
        with pytest.raises(Closed):
            await asking


async def test_a_wait_without_end_is_cut_to_an_hour() -> None:
    assert RequestError.of({"code": "x", "retry_ms": 10**13}).retry_ms == 3_600_000
    assert RequestError.of({"code": "x", "retry_ms": 1e30}).retry_ms == 3_600_000
    assert RequestError.of({"code": "x", "retry_ms": True}).retry_ms is None


# ---- cids -------------------------------------------------------------------------------------------


async def test_a_cid_that_is_of_another_message_is_an_error_that_names_its_place() -> None:
    cid = str(uuid.uuid4())
    async with FakeChatd() as server, make_client(server.url) as client:
        sent = await client.send("bob", "first", cid=cid)
        again = await client.send("bob", "first", cid=cid)
        assert (again.seq, again.dup) == (sent.seq, True)
        for call in (client.send("bob", "second", cid=cid), client.edit("bob", 1, "x", cid=cid)):
            with pytest.raises(CidTaken) as e:
                await call
            assert e.value.sent is not None
            assert e.value.sent.seq == sent.seq
        await client.edit("bob", 1, "first, edited")
        assert (await client.send("bob", "first", cid=cid)).dup, "it may have been the same before its edit"
        server.fault = lambda _s, f: "ignore" if f["t"] == "send" else None
        waiting = client.submit("carol", "one", cid=cid)
        with pytest.raises(CidTaken):
            client.submit("carol", "two", cid=cid)
        assert waiting.state == "sending"
        server.session("me").cut()
        server.fault = lambda _s, _f: None
        await waiting
        assert server.texts("me", "carol") == ["one"]


# ---- presence and typing -----------------------------------------------------------------------------


async def test_a_watch_list_that_is_refused_leaves_the_good_one() -> None:
    async with FakeChatd() as server, make_client(server.url) as client:
        await client.watch(["bob"])
        server.fault = lambda _s, f: {"code": "bad_field", "field": "users"} if "bad" in f.get("users", ()) else None
        with pytest.raises(RequestError, match="bad_field"):
            await client.watch(["bad"])
        first = server.session("me")
        first.cut()
        second = await server.until_connected("me", first)
        await until(lambda: second.watched == ["bob"])
        with pytest.raises(TypeError, match=r"watch\(\['bob'\]\)"):
            await client.watch("bob")


async def test_a_snapshot_comes_once() -> None:
    async with FakeChatd() as server, make_client(server.url) as client:
        assert [p.state for p in await client.watch(["bob"])] == ["offline"]
        async with make_client(server.url, token="bob", device="b"):
            event = await next_event(client)
            assert isinstance(event, Presence)
            assert event.state == "online"


async def test_typing_waits_for_nothing_and_goes_out_once_in_three_seconds() -> None:
    async with FakeChatd() as server, make_client(server.url) as client:
        await client.send("bob", "hi")
        server.say("bob", "me", "hello")
        server.fault = lambda _s, frame: "ignore" if frame["t"] == "typing" else None
        for _ in range(5):
            await client.typing("bob")
        await client.send("bob", "how")
        await client.typing("bob")
        await client.conversations()
        assert [f["t"] for f in server.session("me").requests].count("typing") == 2


async def test_typing_ends_with_the_entry() -> None:
    async with FakeChatd() as server, make_client(server.url) as client:
        conv = server.say("bob", "me", "1")
        await client.send("bob", "2")
        server.session("me").push(t="typing", c=conv.c, **{"from": "bob", "to": "me"})
        server.session("me").push(t="typing", c=conv.c, **{"from": "eve", "to": "me"})
        server.say("bob", "me", "3")
        await take(client, 3)
        assert await next_event(client) == Typing(conv.c, "eve")
