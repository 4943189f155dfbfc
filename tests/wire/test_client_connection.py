"""One connection without reconnecting: numbers, replies, pushes, the pages of a welcome, its end."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve

from chatd.client import Connection, ConnectionLost, ProtocolError, RequestError
from chatd.client import connection as connection_module
from tests.fix_fake_chatd import FakeChatd
from tests.until import until

CID = "8c1e0000-0000-4000-8000-000000000001"


async def test_requests_are_numbered_and_replies_find_them_in_any_order() -> None:
    async with FakeChatd() as server, await Connection.open(server.url, "me", device="d") as connection:
        session = server.session("me")
        server.fault = lambda _s, frame: "ignore" if frame["t"] == "ping" else None
        ping = connection.ask("ping")
        ok = await connection.request("send", to="bob", cid=CID, body="hi")
        assert (ok["seq"], ok["id"]) == (1, 3)
        session.push(t="pong", id=2, ts=5)
        assert (await ping)["ts"] == 5
        assert [frame["id"] for frame in session.requests] == [1, 2, 3]


async def test_a_refusal_is_an_error_with_its_keys() -> None:
    async with FakeChatd() as server, await Connection.open(server.url, "me", device="d") as connection:
        server.fault = lambda _s, _f: {"code": "rate_limited", "retry_ms": 70}
        with pytest.raises(RequestError) as e:
            await connection.request("send", to="bob", cid=CID, body="hi")
        assert (e.value.code, e.value.retry_ms) == ("rate_limited", 70)


async def test_a_welcome_of_many_pages_is_one() -> None:
    async with FakeChatd() as server:
        server.welcome_items = 2
        for n in range(5):
            server.say(f"u{n}", "me", "hi")
        async with await Connection.open(server.url, "me", device="d") as connection:
            assert len(connection.welcome["conversations"]) == 5
            assert connection.welcome["user"] == "me"
            assert connection.welcome["since"]
            assert connection.welcome["more"] is False


async def test_a_welcome_cut_in_the_middle_is_none() -> None:
    async with FakeChatd() as server:
        server.welcome_items, server.cut_welcome_after = 2, 2
        for n in range(5):
            server.say(f"u{n}", "me", "hi")
        with pytest.raises(ConnectionLost):
            await Connection.open(server.url, "me", device="d")


async def test_hello_keys_go_through_and_a_refused_hello_raises() -> None:
    async with FakeChatd() as server:
        conv = server.say("bob", "me", "one", "two")
        async with await Connection.open(
            server.url, "me", device="d", epoch=server.epoch, cursors={conv.c: 1}
        ) as connection:
            push = await anext(connection.pushes)
            assert (push["t"], push["seq"]) == ("entry", 2)
        server.refused_tokens["me"] = "unauthorized"
        with pytest.raises(RequestError, match="unauthorized"):
            await Connection.open(server.url, "me", device="d")


async def test_pushes_come_in_order_and_end_with_the_connection() -> None:
    async with FakeChatd() as server:
        seen: list[dict[str, Any]] = []
        connection = await Connection.open(server.url, "me", device="d", tap=seen.append)
        server.say("bob", "me", *(f"{n}" for n in range(20)))
        server.session("me").close(1012, "restart")
        assert [push["body"] async for push in connection.pushes] == [f"{n}" for n in range(20)]
        assert [push["body"] for push in seen] == [f"{n}" for n in range(20)]
        assert (connection.close_code, connection.close_reason) == (1012, "restart")
        with pytest.raises(ConnectionLost) as e:
            await connection.request("ping")
        assert e.value.close_code == 1012
        with pytest.raises(ConnectionLost):
            await connection.next("entry")
        await connection.close()
        await connection.close()


async def test_who_waits_for_a_reply_hears_of_the_end() -> None:
    async with FakeChatd() as server, await Connection.open(server.url, "me", device="d") as connection:
        server.fault = lambda _s, _f: "cut"
        first, second = connection.ask("ping"), connection.ask("ping")
        for future in (first, second):
            with pytest.raises(ConnectionLost) as e:
                await future
            assert e.value.close_code == 1006
        assert await connection.wait_closed() == 1006


async def test_a_cancelled_request_disturbs_no_other() -> None:
    async with FakeChatd() as server, await Connection.open(server.url, "me", device="d") as connection:
        server.fault = lambda _s, frame: "ignore" if frame["id"] == 2 else None
        waiting = asyncio.create_task(connection.request("ping"))
        await asyncio.sleep(0)  # it has asked
        await connection.request("ping")
        waiting.cancel()
        server.session("me").push(t="pong", id=2, ts=1)
        assert (await connection.request("ping"))["id"] == 4


async def test_raw_text_goes_out_as_it_is_and_its_reply_comes_as_a_push() -> None:
    async with FakeChatd() as server, await Connection.dial(server.url) as connection:
        connection.send_text('{"t":"hello","id":7,"v":1,"token":"me","device":"d"}')
        assert (await connection.next())["id"] == 7
        connection.last_id = 7
        assert (await connection.request("ping"))["id"] == 8


async def test_what_no_frame_can_hold_is_not_sent() -> None:
    async with FakeChatd() as server, await Connection.open(server.url, "me", device="d") as connection:
        with pytest.raises(RequestError, match="too_long"):
            await connection.request("watch", users=["x" * 64] * 300)
        with pytest.raises(RequestError, match="bad_text"):
            await connection.request("send", to="bob", cid=CID, body="\ud800")
        assert (await connection.request("ping"))["id"] == 2


async def test_pushes_nobody_takes_stop_the_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "PUSHES_MAX", 10)
    async with FakeChatd() as server, await Connection.open(server.url, "me", device="d") as connection:
        server.say("bob", "me", *(f"{n}" for n in range(50)))
        pong = connection.ask("ping")
        await until(lambda: len(connection._pushes) >= 10)
        for _ in range(100):
            await asyncio.sleep(0)
        assert len(connection._pushes) == 10
        assert not pong.done()
        assert [(await connection.next())["seq"] for _ in range(50)] == list(range(1, 51))
        assert (await pong)["t"] == "pong"


async def test_what_a_callback_raises_ends_the_link_and_is_told() -> None:
    def tap(_: object) -> None:
        raise ProtocolError("seeded")

    async with FakeChatd() as server:
        connection = await Connection.open(server.url, "me", device="d", tap=tap)
        server.say("bob", "me", "hi")
        with pytest.raises(ProtocolError, match="seeded"):
            await anext(connection.pushes)
        await connection.close()


async def test_what_is_no_frame_is_passed_over() -> None:
    async def odd(ws: ServerConnection) -> None:
        hello = json.loads(await ws.recv())
        for text in (
            "",
            "[1]",
            "{}",
            '{"t":5}',
            '{"t":"new_one","x":[1]}',
            '{"t":"ok","id":"1"}',
            '{"t":"ok","id":99}',
            '{"t":"ok","id":true}',
        ):
            await ws.send(text)
        await ws.send(json.dumps({"t": "welcome", "id": hello["id"], "more": False}))
        await ws.wait_closed()

    async with serve(odd, "127.0.0.1", 0) as server, asyncio.timeout(10):
        url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with await Connection.open(url, "me", device="d") as connection:
            assert connection.welcome["conversations"] == []
            assert (await connection.next())["t"] == "new_one"
