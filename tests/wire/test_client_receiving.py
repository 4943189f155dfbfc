"""Looking on: how the line stands, the end of a client, and waiting for one thing."""

from __future__ import annotations

import asyncio
import logging

import pytest

from chatd.client import Closed, Entry, Line, Receipt, RequestError
from chatd.client import in_hand as in_hand_module
from tests.fix_fake_chatd import FakeChatd, make_client
from tests.until import until


async def test_the_line_tells_how_it_stands(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "chatd.client")
    seen: list[Line] = []
    async with FakeChatd() as server:
        client = make_client(server.url)
        assert client.line == Line("offline", "not_opened")
        await client.open()
        client._observers.add(lambda what: seen.append(what) if isinstance(what, Line) else None)
        assert client.line == Line("online")
        server.session("me").close(4006, "slow consumer")
        await until(lambda: seen and seen[-1].state == "online")
        assert [(line.state, line.reason) for line in seen] == [
            ("offline", "slow_consumer"),
            ("connecting", ""),
            ("online", ""),
        ]
        assert seen[0].wait_s is not None
        await client.close()
        assert client.line == Line("stopped", "closed")
        events = [event async for event in client.events()]
        assert events == [Line("stopped", "closed")], "of several the last is kept"
    text = caplog.text
    assert "online as me at ws://" in text
    assert "offline: slow_consumer; next try at ws://" in text
    assert "stopped: closed" in text


async def test_a_server_that_is_not_there_is_told_and_why() -> None:
    async with FakeChatd() as server:
        url = server.url
        await server.stop()
        client = make_client(url)
        opening = asyncio.create_task(client.open())
        await asyncio.sleep(0)
        line = await client.wait_for(Line, lambda line: line.state == "offline")
        assert line.reason == "unreachable"
        assert url in line.detail
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        await server.listen()


async def test_the_end_of_a_client_can_be_waited_for() -> None:
    async with FakeChatd() as server:
        async with make_client(server.url) as client:
            waiting = asyncio.create_task(client.wait_ended())
            await asyncio.sleep(0)
            server.session("me").close(4004, "replaced")
            assert (await waiting).reason == "replaced"
        async with make_client(server.url) as client:
            pass
        assert isinstance(await client.wait_ended(), Closed)


async def test_one_entry_or_event_is_waited_for_and_taken_from_nobody() -> None:
    async with FakeChatd() as server, make_client(server.url) as client:
        waiting = asyncio.create_task(client.wait_for(Entry, lambda e: e.body == "yes"))
        await asyncio.sleep(0)
        await client.send("bob", "sure?")
        server.say("bob", "me", "no", "yes")
        assert (await waiting).seq == 3
        entries = client.entries()
        assert [(await anext(entries)).body for _ in range(3)] == ["sure?", "no", "yes"]
        receipt = asyncio.create_task(client.wait_for(Receipt))
        await asyncio.sleep(0)
        async with make_client(server.url, token="bob", device="b") as bob:
            await bob.read("me", 1)
            assert (await receipt).read == 1
        with pytest.raises(TimeoutError):
            await client.wait_for(Entry, timeout_s=0.01)
        broken = asyncio.create_task(client.wait_for(Entry, lambda e: e.seq / 0 > 1))
        ended = asyncio.create_task(client.wait_for(Entry, lambda e: e.body == "never"))
        await asyncio.sleep(0)
        server.say("bob", "me", "x")
        with pytest.raises(ZeroDivisionError):
            await broken
        await client.close()
        with pytest.raises(Closed):
            await ended
        assert client._observers == set()


async def test_a_reply_is_stored_once_and_the_first_words_stand() -> None:
    async with FakeChatd() as server, make_client(server.url) as client:
        server.say("bob", "me", "question")
        entry = await anext(client.entries())
        first = await entry.reply("answer")
        again = await entry.reply("another answer")
        assert (again.seq, again.dup) == (first.seq, True)
        await entry.reply("and one more", n=1)
        assert server.texts("bob", "me") == ["question", "answer", "and one more"]
        page = await client.history("bob")
        with pytest.raises(RuntimeError, match="not given by"):
            await page.entries[0].reply("x")


async def test_who_says_done_to_nothing_is_given_only_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_hand_module, "IN_HAND_MAX", 3)
    async with FakeChatd() as server, make_client(server.url) as client:
        server.say("bob", "me", *"12345")
        entries = client.entries(auto_done=False)
        given = [await anext(entries) for _ in range(3)]
        coming = asyncio.create_task(anext(entries))
        await client.conversations()
        assert not coming.done()
        given[1].done()
        assert (await coming).body == "4"
        assert client.state()["places"][given[0].c][1] == 0


async def test_cursors_of_nobody_are_an_error_where_nothing_was_reset() -> None:
    async with FakeChatd() as server, make_client(server.url) as client:
        with pytest.raises(RequestError, match="no_conversation"):
            await client.read("nobody", 1)
